"""Requests that no client should send: each gets a 4xx in the error shape, costs nothing, and hurts nobody."""

import json
from dataclasses import dataclass, field

import pytest

from tests.api.conftest import Site, chat_body
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}


@dataclass
class Bad:
    """A request, and the status, code and param that answer it."""

    body: object
    param: str | None = None
    code: str = "invalid_value"
    status: int = 400
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)

    @property
    def data(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def chat(param: str | None = None, code: str = "invalid_value", **fields: object) -> Bad:
    return Bad({**chat_body(), **fields}, param, code)


def said(message: object, param: str | None = None, code: str = "invalid_value") -> Bad:
    return chat(param, code, messages=[message])


def completion(param: str | None = None, code: str = "invalid_value", **fields: object) -> Bad:
    return Bad({"model": "echo", "prompt": "x", **fields}, param, code, path=COMPLETIONS)


HELLO = {"role": "user", "content": "x"}
LATER = "unsupported_value"

TABLE = {
    # no JSON object
    "empty": Bad(b""),
    "spaces": Bad(b"   "),
    "garbage": Bad(b"\x00\x01\x02\xff"),
    "not-utf8": Bad(b'{"model": "\xff\xfe"}'),
    "utf16": Bad('{"model": "echo"}'.encode("utf-16")),
    "bom": Bad(b"\xef\xbb\xbf" + json.dumps(chat_body()).encode()),
    "cut": Bad(json.dumps(chat_body()).encode()[:-3]),
    "two-objects": Bad(json.dumps(chat_body()).encode() * 2),
    "single-quotes": Bad(b"{'model': 'echo'}"),
    "comment": Bad(b'{"model": "echo" /* mine */}'),
    "trailing-comma": Bad(b'{"model": "echo",}'),
    "nan": Bad(b'{"model": "echo", "temperature": NaN}', param="temperature"),
    "infinity": Bad(b'{"model": "echo", "temperature": -Infinity}', param="temperature"),
    "out-of-range-number": Bad(b'{"model": "echo", "temperature": 1e999}'),
    "lone-surrogate": Bad(b'{"model": "\\ud800"}'),
    "deep-arrays": Bad(b"[" * 200_000),
    "deep-objects": Bad(b'{"a":' * 200_000),
    "deep-inside": Bad(b'{"model":"echo","messages":' + b"[" * 9000 + b"]" * 9000 + b"}"),
    "array": Bad([chat_body()]),
    "string": Bad("hello"),
    "null": Bad(None),
    "number": Bad(7),
    "duplicate-model": Bad(b'{"model": "echo", "model": "idle", "messages": []}', "model"),
    "duplicate-inside": Bad(
        b'{"model":"echo","messages":[{"role":"user","content":"a","content":"b"}]}', "content"
    ),
    # model and messages
    "no-model": Bad({"messages": [HELLO]}, "model"),
    "no-messages": Bad({"model": "echo"}, "messages"),
    "model-number": chat("model", model=5),
    "model-null": chat("model", model=None),
    "model-empty": chat("model", model=""),
    "model-long": chat("model", model="x" * 10_000),
    "model-unknown": Bad({**chat_body(), "model": "gpt-4o"}, "model", "model_not_found", 404),
    "model-path": Bad({**chat_body(), "model": "../../etc/passwd"}, "model", "model_not_found", 404),
    "model-control": Bad({**chat_body(), "model": "a\r\nb\x00"}, "model", "model_not_found", 404),
    "model-of-speech": Bad({**chat_body(), "model": "ear"}, "model", "unsupported_value"),
    "messages-empty": chat("messages", messages=[]),
    "messages-string": chat("messages", messages="hello"),
    "messages-object": chat("messages", messages={}),
    "message-string": said("hello", "messages[0]"),
    "message-null": said(None, "messages[0]"),
    "no-role": said({"content": "x"}, "messages[0].role"),
    "unknown-role": said({**HELLO, "role": "robot"}, "messages[0].role"),
    "role-number": said({**HELLO, "role": 1}, "messages[0].role"),
    "no-content": said({"role": "user"}, "messages[0].content"),
    "content-number": said({"role": "user", "content": 5}, "messages[0].content"),
    "content-object": said({"role": "user", "content": {}}, "messages[0].content"),
    "content-empty-list": said({"role": "user", "content": []}, "messages[0].content"),
    "part-string": said({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
    "part-without-type": said({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
    "part-without-text": said(
        {"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"
    ),
    "part-image": said(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        "messages[0].content[0].image_url.url",
    ),
    "part-image-of-no-kind": said(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:text/html;base64,eA=="}}]},
        "messages[0].content[0].image_url.url",
        LATER,
    ),
    "part-image-of-the-model": said(
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]},
        "messages[0].content[0].type",
        LATER,
    ),
    "tool-role": said({"role": "tool", "content": "4", "tool_call_id": "a"}, "messages[0].tool_call_id"),
    "tool-calls": said({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
    "tool-name": chat("tools[0].function.name", tools=[{"type": "function", "function": {"name": "a b\n"}}]),
    "tool-choice": chat("tool_choice", tool_choice="required"),
    "functions": chat("functions[0].name", functions=[{"description": "f"}]),
    "effort": chat("reasoning_effort", reasoning_effort="much"),
    # numbers out of their range or of another type
    "temperature-text": chat("temperature", temperature="hot"),
    "temperature-bool": chat("temperature", temperature=True),
    "temperature-high": chat("temperature", temperature=2.5),
    "temperature-low": chat("temperature", temperature=-1),
    "top-p": chat("top_p", top_p=1.1),
    "top-k": chat("top_k", top_k=-5),
    "min-p": chat("min_p", min_p=-0.5),
    "typical-p": chat("typical_p", typical_p=7),
    "repeat-penalty": chat("repeat_penalty", repeat_penalty=-1),
    "frequency-penalty": chat("frequency_penalty", frequency_penalty=3),
    "presence-penalty": chat("presence_penalty", presence_penalty=-3),
    "mirostat": chat("mirostat", mirostat=9),
    "n-zero": chat("n", n=0),
    "n-many": chat("n", n=129),
    "n-float": chat("n", n=1.5),
    "max-tokens-zero": chat("max_tokens", max_tokens=0),
    "max-tokens-text": chat("max_tokens", max_tokens="10"),
    "max-tokens-huge": chat("max_tokens", max_tokens=10**30),
    "max-tokens-twice": chat("max_completion_tokens", max_tokens=1, max_completion_tokens=2),
    "seed-big": chat("seed", seed=2**64),
    "logprobs-number": chat("logprobs", logprobs=2),
    "top-logprobs-alone": chat("top_logprobs", top_logprobs=2),
    "top-logprobs-many": chat("top_logprobs", logprobs=True, top_logprobs=21),
    "stop-five": chat("stop", stop=list("abcde")),
    "stop-empty": chat("stop", stop=""),
    "stop-number": chat("stop", stop=1),
    "bias-key": chat("logit_bias", logit_bias={"a": 1}),
    "bias-value": chat("logit_bias[...]", logit_bias={"1": 200}),
    "bias-list": chat("logit_bias", logit_bias=[1, 2]),
    "stream-text": chat("stream", stream="true"),
    "options-without-stream": chat("stream_options", stream_options={"include_usage": True}),
    "options-list": chat("stream_options", stream=True, stream_options=[]),
    "metadata-number": chat("metadata[...]", metadata={"a": 1}),
    "metadata-many": chat("metadata", metadata={str(n): "" for n in range(17)}),
    "user-number": chat("user", user=1),
    # what later work brings
    "tools": chat("tools[0].type", LATER, tools=[{"type": "custom", "custom": {"name": "f"}}]),
    "schema-keyword": chat("guided_json.not", LATER, guided_json={"not": {}}),
    "schema-circle": chat("guided_json.$ref", LATER, guided_json={"$ref": "#"}),
    "schema-type": chat("response_format.type", response_format={"type": "xml"}),
    "two-constraints": chat("guided_choice", guided_regex="a", guided_choice=["a"]),
    "audio-out": chat("modalities", LATER, modalities=["text", "audio"]),
    "prediction": chat(
        "prediction.content[0]", prediction={"type": "content", "content": [{"type": "image_url"}]}
    ),
    "store": chat("store", LATER, store=True),
    "tier-above": chat("service_tier", LATER, service_tier="priority"),
    "tier-elsewhere": chat("service_tier", LATER, service_tier="scale"),
    "continues-the-user": chat("continue_final_message", continue_final_message=True),
    "continues-and-not": chat(
        "add_generation_prompt", continue_final_message=False, add_generation_prompt=False
    ),
    "web-search": chat("web_search_options", LATER, web_search_options={}),
    "verbosity": chat("verbosity", LATER, verbosity="low"),
    "tail-free": chat("tfs_z", LATER, tfs_z=0.5),
    # completions
    "no-prompt": Bad({"model": "echo"}, "prompt", path=COMPLETIONS),
    "prompt-object": completion("prompt", prompt={"text": "x"}),
    "prompt-empty-list": completion("prompt", prompt=[]),
    "prompt-mixed": completion("prompt[1]", prompt=["a", 1]),
    "prompt-negative": completion("prompt[0]", prompt=[-1]),
    "prompt-empty-tokens": completion("prompt[0]", prompt=[[]]),
    "prompts-many": completion("prompt", prompt=["x"] * 3000),
    "best-of": completion("best_of", LATER, best_of=4),
    "legacy-logprobs": completion("logprobs", logprobs=6),
    "echo-text": completion("echo", echo="yes"),
    "suffix-list": completion("suffix", suffix=["x"]),
    "no-tokens": completion("max_tokens", max_tokens=0),
    # HTTP
    "text": Bad(chat_body(), None, "unsupported_media_type", 415, headers={"content-type": "text/plain"}),
    "no-type": Bad(chat_body(), None, "unsupported_media_type", 415, headers={}),
    "form": Bad(b"model=echo", None, "unsupported_media_type", 415,
                headers={"content-type": "application/x-www-form-urlencoded"}),
    "latin1": Bad(chat_body(), None, "unsupported_media_type", 415,
                  headers={"content-type": "application/json; charset=latin-1"}),
    "gzip": Bad(chat_body(), None, "unsupported_media_type", 415, headers={**JSON, "content-encoding": "gzip"}),
    "chain": Bad(chat_body(), headers={**JSON, "x-oxlo-chain": "a b;c"}),
    "get": Bad(b"", None, "method_not_allowed", 405, method="GET"),
    "put": Bad(chat_body(), None, "method_not_allowed", 405, method="PUT"),
    "delete-model": Bad(b"", None, "method_not_allowed", 405, path="/v1/models/echo", method="DELETE"),
    "odd-method": Bad(b"", None, "method_not_allowed", 405, method="PROPFIND"),
    "no-method": Bad(b"", method="BREW"),
    "unknown-route": Bad(chat_body(), None, "not_found", 404, path="/v1/chat"),
    "slash": Bad(chat_body(), None, "not_found", 404, path=CHAT + "/"),
    "root": Bad(b"", None, "not_found", 404, path="/", method="GET"),
    "traversal": Bad(b"", None, "not_found", 404, path="/v1/%2e%2e/%2e%2e/etc/passwd", method="GET"),
    "no-model-id": Bad(b"", "model", "model_not_found", 404, path="/v1/models/", method="GET"),
    "null-in-path": Bad(b"", "model", "model_not_found", 404, path="/v1/models/%00%0d%0a", method="GET"),
}  # fmt: skip


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 100


@pytest.mark.parametrize("name", TABLE)
def test_a_malformed_request_is_told_so(site: Site, name: str) -> None:
    bad = TABLE[name]
    answer = site.client.request(bad.method, bad.path, content=bad.data, headers=bad.headers)
    value = answer.json()
    judge("ErrorResponse", value)
    error = value["error"]
    assert (answer.status_code, error["code"], error["param"]) == (bad.status, bad.code, bad.param)
    assert error["type"] == "invalid_request_error" and error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert "x-oxlo-entry" not in answer.headers


def test_the_server_is_well_after_all_of_them(site: Site) -> None:
    rows, pid = len(site.rows()), site.fleet.status()[0].pid
    for bad in TABLE.values():
        answer = site.client.request(bad.method, bad.path, content=bad.data, headers=bad.headers)
        assert 400 <= answer.status_code < 500
    assert site.client.get("/readyz").status_code == 200
    answer = site.client.post(CHAT, json=chat_body("still here"))
    assert answer.json()["choices"][0]["message"]["content"] == "still here "
    worker = site.fleet.status()[0]
    assert (worker.pid, worker.restarts, len(site.rows())) == (pid, 0, rows + 1)
