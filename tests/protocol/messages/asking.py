"""Requests of /v1/messages for tests, and what becomes of them."""

import json

from oxlo_local.calls import ModelFacts, TextCall
from oxlo_local.protocol.messages.request import AskedMessage, decode

HELLO: list[dict[str, object]] = [{"role": "user", "content": "hi"}]
SWITCH = ModelFacts("qwen", 4096, 1, thinks=True, thinking_knows=["enable_thinking"])
EFFORT = ModelFacts("gpt-oss", 4096, 1, thinks=True, thinking_knows=["reasoning_effort"])
BUDGET = ModelFacts("seed", 4096, 1, thinks=True, thinking_knows=["thinking_budget"])
PLAIN = ModelFacts("llama", 4096, 1)


def body(**fields: object) -> bytes:
    """A request with these fields over the least that one needs; None leaves a field out."""
    whole = {"model": "m", "max_tokens": 10, "messages": HELLO, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


def asked(**fields: object) -> AskedMessage:
    """What is read of it."""
    return decode(body(**fields), strict=False)[0]


def call(facts: ModelFacts = PLAIN, /, **fields: object) -> TextCall:
    """The call that it becomes."""
    return asked(**fields).call({}, facts, "c")[0]


def warnings(facts: ModelFacts = PLAIN, /, **fields: object) -> list[str]:
    """What is said to have no effect."""
    read, warned = decode(body(**fields), strict=False)
    return warned + read.call({}, facts, "c")[1]
