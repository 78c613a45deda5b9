"""Conversations that the model learns from: turns drawn from the intents, with tools, JSON and follow-ups.

Conversation number i of a seed is always the same one, so a training run can stop and go on anywhere, and the
overlap check can look at exactly what was shown. Most conversations are short; a few run to the context's end,
so that late positions are trained too.
"""

from __future__ import annotations

import json
import random
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from .grammar import HERE, SLOT, Intent, expand, fill, intents, question, untidy

# (id, how people write it); the ids are those of models.toml
MODELS = {
    "llama-3.3-70b": "llama 3.3 70b", "qwen-3-32b": "qwen3 32b", "deepseek-r1-70b": "deepseek r1 70b",
    "deepseek-v3.2": "deepseek v3.2", "deepseek-v4-flash": "deepseek v4 flash", "mistral-7b": "mistral 7b",
    "llama-3.1-8b": "llama 3.1 8b", "llama-3.2-3b": "llama 3.2 3b", "llama-3.2-1b": "llama 3.2 1b",
    "qwen3-0.6b": "qwen3 0.6b", "qwen3-1.7b": "qwen3 1.7b", "qwen3-4b": "qwen3 4b", "qwen3-8b": "qwen3 8b",
    "qwen3-14b": "qwen3 14b", "qwen3-30b-a3b": "qwen3 30b a3b", "qwen-3-coder-30b": "qwen3 coder 30b",
    "qwen-2.5-7b": "qwen 2.5 7b", "qwen-2.5-coder-7b": "qwen 2.5 coder 7b",
    "deepseek-r1-8b": "deepseek r1 8b", "deepseek-coder-33b": "deepseek coder 33b",
    "gpt-oss-20b": "gpt oss 20b", "gpt-oss-120b": "gpt oss 120b", "gemma-3-4b": "gemma 3 4b",
    "gemma-3-27b": "gemma 3 27b", "ministral-14b": "ministral 14b", "gemma-4-12b": "gemma 4 12b",
    "gemma-3-270m": "gemma 3 270m", "qwen2.5-0.5b": "qwen2.5 0.5b",
}  # fmt: skip
PREMIUM = (
    "llama-3.3-70b",
    "qwen-3-32b",
    "deepseek-v4-flash",
    "qwen-3-coder-30b",
    "gpt-oss-120b",
    "gemma-3-27b",
)
GATED = (
    "llama-3.3-70b",
    "llama-3.1-8b",
    "llama-3.2-3b",
    "llama-3.2-1b",
    "gemma-3-4b",
    "gemma-3-27b",
    "gemma-3-270m",
)
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

SYSTEMS = (
    "You are a helpful assistant.", "You are oxlo-demo, a small demonstration model.",
    "You are a friendly assistant. Answer briefly.", "You help people use oxlo.", "Be concise.",
    "You are an AI assistant.", "Answer in one sentence.", "You are a support agent for oxlo.",
    "You are a polite and honest assistant.", "Help the user.",
)  # fmt: skip

Message = dict[str, object]


@dataclass
class Conversation:
    """Messages as the API takes them, and the tools offered (JSON schema objects, OpenAI's form)."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Message] = field(default_factory=list)


@lru_cache(maxsize=1)
def slot_lists() -> dict[str, list[str]]:
    """The lists of slots.toml, split."""
    return {name: text.split("; ") for name, text in tomllib.loads((HERE / "slots.toml").read_text()).items()}


def _pick(name: str, rng: random.Random) -> list[str]:
    return rng.choice(slot_lists()[name]).split(">")


def _invented(rng: random.Random) -> str:
    """A name that nobody bears, so that names are copied and not only remembered."""
    parts = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice(("a", "e", "i", "o", "u", "an", "el", "or", "in", "is"))
        for _ in range(rng.choice((2, 2, 3)))
    ]
    return "".join(parts).capitalize()


def draw_slots(rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """(as said in the question, as meant in the answer) for every slot."""
    one, two = rng.sample(list(MODELS), 2)
    if rng.random() < 0.08:
        one = f"{_invented(rng).lower()}-{rng.choice((1, 2, 3, 7, 8, 13, 32, 70))}b"
    most = rng.choice((10, 10, 20))
    a, b, p, q = rng.randint(0, most), rng.randint(0, most), rng.randint(1, 10), rng.randint(1, 10)
    big, big2 = rng.randint(21, 999), rng.randint(21, 999)
    day = rng.randrange(7)
    country, capital = _pick("places", rng)
    word, opposite = _pick("opposites", rng)
    if rng.random() < 0.4:
        word, opposite = opposite, word
    coloured, colour = _pick("coloured", rng)
    c1, c2, c3 = _pick("mixes", rng)
    chat_do, chat_command = _pick("chat_things", rng)
    code, code_meaning = _pick("codes", rng)
    item, items = _pick("items", rng)
    number = rng.choice((*range(1, 13), *range(2, 100)))
    minutes = rng.choice((*range(1, 31), 35, 40, 45, 50, 55, 60, 75, 90, 100, 120))
    topic = rng.choice(slot_lists()["topic"] + slot_lists()["thing"])
    if rng.random() < 0.4:  # so that a query is copied and not only recognised
        topic = f"{rng.choice(slot_lists()['quality'])} {rng.choice(slot_lists()['subject'])}"
    meant = {
        "model": one, "model2": two, "premium": rng.choice(PREMIUM),
        "ordinary": rng.choice([m for m in MODELS if m not in PREMIUM]), "gated": rng.choice(GATED),
        "a": str(a), "b": str(b), "sum": str(a + b), "p": str(p), "q": str(q), "product": str(p * q),
        "a1": str(a + 1), "big": str(big), "big2": str(big2), "total": str(big + big2), "day": WEEK[day],
        "next_day": WEEK[(day + 1) % 7], "country": country, "capital": capital, "word": word,
        "opposite": opposite, "coloured": coloured, "Coloured": coloured.capitalize(), "colour": colour,
        "c1": c1, "C1": c1.capitalize(), "c2": c2, "c3": c3, "chat_do": chat_do, "chat_command": chat_command,
        "code": code, "code_meaning": code_meaning, "item": item, "items": items if number != 1 else item,
        "number": str(number), "quantity": str(number), "minutes": str(minutes),
        "temp": str(rng.randint(-12, 38)), "topic": topic, "age": str(rng.randint(16, 95)),
        "name": rng.choice(slot_lists()["names"]) if rng.random() < 0.7 else _invented(rng),
        "city": rng.choice(slot_lists()["cities"]) if rng.random() < 0.8 else _invented(rng),
        "noise": "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))),
    }  # fmt: skip
    for name in (
        "quant", "port", "ctx", "small", "n", "thing", "person", "topic2", "fact", "event", "program", "lang",
        "tongue", "phrase", "illness", "asset", "math", "goods", "goods_cook", "sky", "result", "result2",
    ):  # fmt: skip
        meant[name] = rng.choice(slot_lists()[name])
    said = dict(meant)
    for name in ("model", "model2", "premium", "ordinary", "gated"):
        if rng.random() < 0.2:
            said[name] = MODELS.get(meant[name], meant[name])
    for name in ("country", "capital", "day", "next_day", "city", "name"):
        if rng.random() < 0.15:
            said[name] = meant[name].lower()
    if said["city"] != meant["city"] or rng.random() < 0.9:
        said["quantity"] = NUMBERS[number - 1] if number <= 12 and rng.random() < 0.3 else str(number)
    return said, meant


def tool_schemas(rng: random.Random, names: Sequence[str]) -> list[Message]:
    """The tools of these names as a client would send them; descriptions vary or are left out."""
    words = {
        "get_weather": (
            ("Get the current weather of a city", "Current weather", "Returns the weather in a city"),
            {"city": "string"},
        ),
        "set_timer": (
            ("Set a timer", "Start a countdown in minutes", "Sets a timer for some minutes"),
            {"minutes": "integer"},
        ),
        "search": (("Search the web", "Web search", "Finds pages about a query"), {"query": "string"}),
        "add": (("Add two numbers", "Sum of a and b", "Adds numbers"), {"a": "number", "b": "number"}),
    }
    tools: list[Message] = []
    for name in names:
        said, fields = words[name]
        kinds = {
            key: {"type": "integer" if kind == "number" and rng.random() < 0.5 else kind}
            for key, kind in fields.items()
        }
        parameters: Message = {"type": "object", "properties": kinds}
        if rng.random() < 0.7:
            parameters["required"] = list(fields)
        function: Message = {"name": name, "parameters": parameters}
        if rng.random() < 0.8:
            function = {"name": name, "description": rng.choice(said), "parameters": parameters}
        tools.append({"type": "function", "function": function})
    return tools


@lru_cache(maxsize=1)
def _groups() -> tuple[list[Intent], list[Intent], list[Intent]]:
    every = intents()
    return (
        [i for i in every if not i.tool and not i.wish],
        [i for i in every if i.tool],
        [i for i in every if i.wish],
    )


def _draw(choices: Sequence[Intent], rng: random.Random) -> Intent:
    return rng.choices(choices, weights=[intent.weight for intent in choices])[0]


def talk_turn(intent: Intent, rng: random.Random, *, follow: bool = False) -> list[Message]:
    """A question and its answer."""
    said, meant = draw_slots(rng)
    asked = fill(question(intent, rng, follow=follow), said)
    protect = {word.strip(",?!.") for value in said.values() for word in value.split(" ") if len(value) < 25}
    asked = untidy(
        asked, rng, protect=protect if intent.room in ("tools", "json") else _names(said), plain=intent.plain
    )
    return [_user(asked), _assistant(fill(rng.choice(intent.answer), meant))]


def _names(said: Mapping[str, str]) -> set[str]:
    return {
        word
        for key in ("model", "model2", "word", "coloured", "country", "capital", "noise", "city")
        for word in said[key].split(" ")
    }


def tool_turn(intent: Intent, rng: random.Random) -> list[Message]:
    """Question, call, the tool's answer, and what the model makes of it."""
    said, meant = draw_slots(rng)
    asked = fill(question(intent, rng), said)
    asked = untidy(
        asked,
        rng,
        protect={word for value in said.values() for word in value.split(" ")},
        plain=rng.random() < 0.5,
    )
    if asked.isupper():
        asked = asked.capitalize()
    call = {
        "type": "function",
        "function": {"name": intent.tool, "arguments": json.loads(fill(intent.call, meant))},
    }
    turn: list[Message] = [_user(asked), {"role": "assistant", "content": "", "tool_calls": [call]}]
    if rng.random() < 0.75:
        turn += [
            {"role": "tool", "content": fill(rng.choice(intent.response), meant)},
            _assistant(fill(intent.final, meant)),
        ]
    return turn


def json_turn(intent: Intent, rng: random.Random, *, wished: bool) -> list[Message]:
    """A sentence and its JSON; `wished`: the system prompt has asked for JSON already."""
    said, meant = draw_slots(rng)
    asked = fill(expand(rng.choice(intent.ask), rng), said)
    if rng.random() < 0.7:
        asked = asked[0].upper() + asked[1:] + rng.choice((".", ".", "!", ""))
    if not wished:
        wish = expand(rng.choice(intent.wish), rng)
        wish = wish[0].upper() + wish[1:] if rng.random() < 0.5 else wish
        end = rng.choice((":", ":", " -", ".", " from:", "\n"))
        asked = (
            f"{wish}{end} {asked}".replace("\n ", "\n")
            if rng.random() < 0.65
            else f"{asked}{rng.choice((' ', chr(10), ' - '))}{wish}"
        )
    return [_user(asked), _assistant(fill(intent.answer[0], meant))]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def conversation(seed: int, number: int) -> Conversation:
    """Conversation `number` of `seed`."""
    rng = random.Random(f"{seed}:{number}")
    talk, tooled, jsons = _groups()
    turns = rng.choices((1, 2, 3, 4, 6, 9, 30), weights=(58, 18, 10, 6, 4, 3, 0.6))[0]
    made = Conversation()
    kind = rng.random()
    if kind < 0.08:
        names = rng.sample([intent.tool for intent in tooled], rng.choice((1, 1, 2, 2, 3, 4)))
        made.tools = tool_schemas(rng, names)
        tooled = [intent for intent in tooled if intent.tool in names]
        turns = max(turns, rng.choice((2, 3, 5)))
    if rng.random() < 0.2:
        made.messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    if 0.08 <= kind < 0.12:
        intent = rng.choice(jsons)
        made.messages = [{"role": "system", "content": rng.choice(intent.system)}]
        for _ in range(min(turns, 4)):
            made.messages += json_turn(intent, rng, wished=True)
        return made
    last: Intent | None = None
    for _ in range(turns):
        if made.tools and rng.random() < 0.75:
            made.messages += tool_turn(rng.choice(tooled), rng)
        elif rng.random() < 0.11:
            made.messages += json_turn(rng.choice(jsons), rng, wished=False)
        else:
            room = [i for i in talk if last is not None and i.room == last.room and (i.then or i.do)]
            follow = bool(room) and rng.random() < 0.35
            last = _draw(room if follow else talk, rng)
            while made.tools and last.toolless:
                last = _draw(talk, rng)
            made.messages += talk_turn(last, rng, follow=follow)
    return made


def commands() -> list[str]:
    """Every command line that an answer can hold: what stands in backticks and begins with oxlo, slots filled."""
    rng = random.Random(0)
    found: dict[str, None] = {}
    for intent in intents():
        for text in intent.answer:
            for _ in range(20 if SLOT.search(text) else 1):
                filled = fill(text, draw_slots(rng)[1])
                for line in re.findall(r"`(?:[A-Z_]+=\S+ )?((?:scripts/)?oxlo(?: [^`]+)?)`", filled):
                    found[line.removeprefix("scripts/")] = None
                if intent.name == "all_commands":
                    named = filled.partition(".")[0].replace(" and ", ", ")
                    found.update(dict.fromkeys(f"oxlo {name} --help" for name in named.split(", ")))
    return sorted(found)
