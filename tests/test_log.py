"""Log lines carry their request's id; JSON lines can be read back."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from oxlo_local import log


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("oxlo", "oxlo_local", "uvicorn")]
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_a_text_line_names_room_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("info")
    token = log.request_id.set("req-7")
    logging.getLogger("oxlo_local.ledger").info("closed %d", 3)
    logging.getLogger("oxlo_local.ledger").debug("too fine")
    log.request_id.reset(token)
    logging.getLogger("oxlo.api").warning("by nobody")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("I oxlo_local.ledger [req-7] closed 3")
    assert second.endswith("W oxlo.api [-] by nobody")


def test_a_json_line_is_one_object_with_the_trace_inside(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("warning", "json")
    try:
        raise ValueError('with "quotes"\nand lines')
    except ValueError:
        logging.getLogger("oxlo_local.x").exception("it broke")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["request"], found["message"]) == (
        "error",
        "oxlo_local.x",
        "-",
        "it broke",
    )
    assert "and lines" in found["error"] and found["time"].endswith("+00:00")


def test_a_second_start_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("info")
    log.start("info")
    logging.getLogger("oxlo_local.x").info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_http_library_speaks_only_of_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("debug")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("trouble")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_worker_s_last_words_hold_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log.start_worker()
    try:
        raise RuntimeError("the engine gave up")
    except RuntimeError:
        log.last_words()
    assert "the worker cannot go on" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("RuntimeError: the engine gave up")
