"""The runner of client suites: its judge is not blind, and a failure is an ability only when nothing else is wrong."""

import json
from pathlib import Path

import httpx
import pytest

from client_suites import judge, verdict
from client_suites.verdict import Ability, Result
from client_suites.wire import Exchange, Wire
from tests.conftest import RunningServer

CHAT = "/v1/chat/completions"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, object], *, index: int = 0, reason: str | None = None) -> dict[str, object]:
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}]}


FIRST = chunk({"role": "assistant", "content": ""})
CALLED = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
LAST = chunk({}, reason="stop")


def stream(*chunks: dict[str, object], test: str = "a", done: bool = True, **asked: object) -> Exchange:
    text = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + ("data: [DONE]\n\n" if done else "")
    return Exchange(
        "s",
        test,
        "POST",
        CHAT,
        json.dumps(asked).encode(),
        200,
        "text/event-stream",
        text.encode(),
        whole=True,
    )


def error(code: str, test: str = "a") -> Exchange:
    told = {"message": "no", "type": "invalid_request_error", "param": None, "code": code}
    return Exchange(
        "s", test, "POST", CHAT, b"{}", 400, "application/json", json.dumps({"error": told}).encode()
    )


def test_a_good_stream_has_no_faults() -> None:
    good = [FIRST, chunk({"tool_calls": [CALLED]}), chunk({}, reason="tool_calls")]
    good[1:2] = [good[1], chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})]
    assert judge.faults(stream(*good)) == []
    assert judge.faults(stream(FIRST, LAST)) == []


@pytest.mark.parametrize(
    ("words", "exchange"),
    [
        ("[DONE]", stream(FIRST, LAST, done=False)),
        ("without a finish_reason", stream(FIRST, chunk({"content": "x"}))),
        ("follows a finish_reason", stream(FIRST, LAST, chunk({"content": "x"}, reason="stop"))),
        ("role", stream(chunk({"content": "x"}), LAST)),
        ("lower index", stream(chunk({"role": "assistant"}, index=1), FIRST, LAST)),
        ("usage was asked for", stream(FIRST, LAST, stream_options={"include_usage": True})),
        ("several ids", stream(FIRST, {**LAST, "id": "chatcmpl-2"})),
        ("without a call", stream(FIRST, chunk({}, reason="tool_calls"))),
        ("next index", stream(FIRST, chunk({"tool_calls": [{**CALLED, "index": 1}]}), LAST)),
        ("JSONDecodeError", stream(FIRST, chunk({"tool_calls": [CALLED]}), chunk({}, reason="tool_calls"))),
        ("ValidationError", stream(FIRST, {**LAST, "choices": [{"index": "0"}]})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_fault_of_a_stream_is_seen(words: str, exchange: Exchange) -> None:
    assert any(words in fault for fault in judge.faults(exchange))


def judged(outcome: str, exchange: Exchange, known: Ability | None = None) -> verdict.Verdict:
    expected = {} if known is None else {known.test: known}
    return verdict.judge_suite("s", [Result("a", outcome, "words")], [exchange], expected)


KNOWN = Ability("s", "a", "too small")


def test_a_failure_is_an_ability_only_when_the_wire_is_clean() -> None:
    clean, broken = stream(FIRST, LAST), stream(FIRST, LAST, done=False)
    assert judged("failed", clean, KNOWN).ability == {"a": "too small"}
    assert judged("failed", clean).unexpected == {"a": "words"}
    assert "[DONE]" in judged("failed", broken, KNOWN).protocol["a"]
    assert "[DONE]" in judged("passed", broken).protocol["a"]
    assert (
        "context_length_exceeded" in judged("failed", error("context_length_exceeded"), KNOWN).protocol["a"]
    )
    allowed = Ability("s", "a", "too small", refused="context_length_exceeded")
    assert judged("failed", error("context_length_exceeded"), allowed).as_expected


def test_an_ability_that_has_been_gained_is_not_expected() -> None:
    assert not judged("passed", stream(FIRST, LAST), KNOWN).as_expected
    assert not judged("passed", stream(FIRST, LAST), Ability("s", "gone", "too small")).as_expected
    assert judged("passed", stream(FIRST, LAST)).as_expected


def test_results_are_read_as_both_runners_write_them(tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="test_x.TestY" name="a[b]"/>'
        '<testcase classname="test" name="a title"><failure message="why"/></testcase>'
        '<testcase classname="test_x" name="c"><skipped message="later"/></testcase></testsuite></testsuites>'
    )
    assert verdict.read_junit(path) == [
        Result("TestY::a[b]", "passed"),
        Result("a title", "failed", "why"),
        Result("c", "skipped", "later"),
    ]


def test_the_wire_knows_whose_an_exchange_is_and_dictates(server: RunningServer) -> None:
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40}
    dictated = {"guided_choice": ["a fixed answer"]}
    with Wire(server.url, {("s", "told"): [dictated]}) as wire:
        said = []
        for test in ("free", "told"):
            httpx.put(f"{wire.url}/s/test", content=test)
            answer = httpx.post(f"{wire.url}/s{CHAT}", json=body)
            said.append(answer.json()["choices"][0]["message"]["content"])
        with httpx.stream("POST", f"{wire.url}/s{CHAT}", json={**body, "stream": True}) as streamed:
            lines = list(streamed.iter_lines())
    assert said[0] != "a fixed answer" == said[1]
    assert lines[-2] == "data: [DONE]"
    assert [exchange.test for exchange in wire.exchanges] == ["free", "told", "told"]
    assert all(exchange.whole and not judge.faults(exchange) for exchange in wire.exchanges)


def test_the_known_failures_can_be_read() -> None:
    known = verdict.read_expected(Path(verdict.__file__).parent / "expected.toml")
    assert known and all(each.why and isinstance(each.dictate, list) for each in known)
