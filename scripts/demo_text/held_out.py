"""The held-out questions, and the check that training never came near them."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .conversations import Conversation, Message, slot_lists, tool_schemas
from .grammar import HERE

HELD_OUT = HERE / "held_out.toml"


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer, and what must (not) be in it; "a|b" = either of them."""

    conversation: Conversation
    must: tuple[str, ...]
    must_not: tuple[str, ...]

    def right(self, answer: str) -> bool:
        """Whether the answer holds all that it must and nothing that it must not."""
        text = answer.lower()
        return all(any(part.lower() in text for part in want.split("|")) for want in self.must) and not any(
            bad.lower() in text for bad in self.must_not
        )


def held_out(path: Path = HELD_OUT) -> list[Question]:
    """The questions of a file such as held_out.toml."""
    made = []
    for raw in tomllib.loads(path.read_text())["question"]:
        messages: list[Message] = [{"role": "system", "content": raw["system"]}] if "system" in raw else []
        messages += raw.get("history", [])
        if "ask" in raw:
            messages.append({"role": "user", "content": raw["ask"]})
        tools = tool_schemas(random.Random(0), raw.get("tools", ()))
        made.append(
            Question(Conversation(messages, tools), tuple(raw["must"]), tuple(raw.get("must_not", ())))
        )
    return made


@lru_cache(maxsize=1)
def _values() -> frozenset[str]:
    """Slot values: two questions that differ only in these have the same template."""
    lists = slot_lists()
    names = ("names", "cities", "items", "places", "opposites", "coloured", "goods")
    parts = {part for name in names for value in lists[name] for part in value.lower().split(">")}
    return frozenset(
        word
        for part in parts
        for word in part.split()
        if word not in {"a", "an", "the", "of", "on", "in", "up", "no", "to"}
    )


def template_of(text: str) -> tuple[str, ...]:
    """The words of a question with numbers, model names and slot values blanked."""
    words = re.findall(r"[a-z0-9][\w.'-]*", text.lower().replace("'s", " is"))
    words = [word.strip(".'-") for word in words]
    return tuple("_" if re.search(r"\d", word) or word in _values() else word for word in words)


def eights(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every run of eight words."""
    return {words[at : at + 8] for at in range(len(words) - 7)}


class Exam:
    """The held-out questions in the form in which training prompts are compared with them."""

    def __init__(self, questions: Iterable[Question]) -> None:
        last = [_user_texts(question.conversation)[-1] for question in questions]
        self._templates = {template_of(text): text for text in last}
        self._runs = {run: text for words, text in self._templates.items() for run in eights(words)}

    def near(self, prompt: str) -> set[str]:
        """The questions that have the prompt's template, or eight words in a row in common with it."""
        words = template_of(prompt)
        found = {self._runs[run] for run in eights(words) & self._runs.keys()}
        return found | ({self._templates[words]} if words in self._templates else set())

    def gives_away(self, conversation: Conversation) -> bool:
        """Whether any prompt of the conversation is near to a question."""
        return any(self.near(text) for text in _user_texts(conversation))


def overlaps(questions: Iterable[Question], conversations: Iterable[Conversation]) -> list[tuple[str, str]]:
    """(held-out question, training prompt) wherever they are near each other."""
    exam = Exam(questions)
    prompts = dict.fromkeys(text for made in conversations for text in _user_texts(made))
    return [(question, prompt) for prompt in prompts for question in sorted(exam.near(prompt))]


def _user_texts(conversation: Conversation) -> list[str]:
    return [str(message["content"]) for message in conversation.messages if message["role"] == "user"]
