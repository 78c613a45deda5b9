"""The text of a conversation: the chat template that goes into the GGUF is the one that training goes through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import jinja2

from .conversations import Message
from .grammar import HERE

TEMPLATE = HERE / "chat_template.jinja"


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text().rstrip())


def render(messages: Sequence[Message], tools: Sequence[Message] = (), *, ask: bool = False) -> str:
    """The text of a conversation; `ask`: it ends where the model has to answer."""
    offered = {"tools": tools} if tools else {}
    return _template().render(messages=messages, add_generation_prompt=ask, **offered)
