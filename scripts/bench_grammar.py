"""What schemas and tools cost: a mask by itself, and the throughput of many clients with and without them.

    scripts/bench-grammar [--vocab 151936 | --vocab-from FILE] [--clients 16] [--tokens 128] [--rounds 5] [--masks-only]

A model of random weights stands for a real one of its shape; it ends an answer once in a vocabulary, and the schema
wants more than any answer here is long. Rounds are interleaved, the first of them is not counted, and no two loads
share a prompt.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from oxlo_local.calls import (  # noqa: E402  # after the path that leads to this checkout
    Constraint,
    Done,
    Failed,
    Load,
    Message,
    PromptCall,
    Sampling,
    Text,
    TextCall,
    TextOptions,
    Tool,
)
from oxlo_local.engines.text.engine import TextEngine  # noqa: E402
from oxlo_local.engines.text.forced import Wanted, frame  # noqa: E402
from oxlo_local.engines.text.grammar import Grammars  # noqa: E402
from oxlo_local.engines.text.toolcalls import FORMATS  # noqa: E402
from oxlo_local.engines.weights import Weights  # noqa: E402
from oxlo_local.random_model import Shape, write  # noqa: E402

TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["book", "film", "piece of music"]},
        "year": {"type": "integer", "minimum": 1500, "maximum": 2100},
        "people": {
            "type": "array",
            "minItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$"},
                    "role": TEXT,
                },
                "required": ["name", "role"],
                "additionalProperties": False,
            },
        },
        "summary": {"type": "string", "minLength": 4000},
    },
    "required": ["title", "kind", "year", "people", "summary"],
    "additionalProperties": False,
}
CONSTRAINT = Constraint("json_schema", json.dumps(SCHEMA), "response_format")
GREEDY = Sampling(temperature=0)  # the cheapest draw, so that the rest shows most
TEMPLATE = """{% if tools %}<|im_start|>system
You may call functions: <tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
Answer with <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def show(name: str, seconds: list[float]) -> None:
    """One line: median, p95 and worst, in microseconds."""
    middle, high, worst = statistics.median(seconds), percentile(seconds, 0.95), max(seconds)
    print(f"  {name:<30} p50 {middle * 1e6:7.0f}  p95 {high * 1e6:7.0f}  max {worst * 1e6:7.0f} us")


def masks(path: Path, tokens: int) -> None:
    """The cost of one token: its mask, and applying it to a row of logits."""
    weights = Weights(path, 0, lambda _: None)
    begun = time.perf_counter()
    grammars = Grammars(weights)
    guide = grammars.guide(CONSTRAINT)
    print(
        f"vocabulary of {weights.n_vocab}: {time.perf_counter() - begun:.2f} s until the first schema is compiled"
    )
    begun = time.perf_counter()
    again = grammars.guide(CONSTRAINT)
    print(f"  a schema known already         {(time.perf_counter() - begun) * 1e6:7.0f} us")
    random = np.random.default_rng(1)
    looking, restricting, accepting = [], [], []
    guide = again
    guide.begin()
    for _ in range(tokens):
        logits = random.standard_normal(weights.n_vocab, dtype=np.float32)
        logits[list(weights.eog)] = -np.inf
        started = time.perf_counter()
        guide.look_ahead()
        looked = time.perf_counter()
        guide.restrict(logits)
        restricted = time.perf_counter()
        token = int(logits.argmax())
        assert guide.allows(token)
        accepted = time.perf_counter()
        guide.accept(token)
        looking.append(looked - started)
        restricting.append(restricted - looked)
        accepting.append(time.perf_counter() - accepted)
        if guide.complete:
            guide = grammars.guide(CONSTRAINT)
            guide.begin()
    show("mask (beside the decode)", looking)
    show("applied to a row", restricting)
    show("state after a token", accepting)
    show("all three", [sum(each) for each in zip(looking, restricting, accepting, strict=True)])
    grammars.close()
    weights.close()


CALL = {
    "place": 'Oslo, the "Tiger City", where 3 < 4 & trams run\nas far as the fjord',
    "days": 3,
    "unit": "celsius",
    "note": "And what should one wear there in the evening?",
    "tags": ["winter", "snow (much)"],
}
ARGUMENTS = {
    "type": "object",
    "properties": {
        "place": TEXT,
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "note": {"type": "string", "maxLength": 200},
        "tags": {"type": "array", "items": TEXT},
    },
    "required": ["place", "days", "unit", "note", "tags"],
    "additionalProperties": False,
}


def notations(path: Path, rounds: int) -> None:
    """The cost of a token's mask over whole calls that are forced, in every format; its markers are plain text."""
    weights = Weights(path, 0, lambda _: None)
    grammars = Grammars(weights)
    random = np.random.default_rng(1)
    logits = random.standard_normal(weights.n_vocab, dtype=np.float32)
    print("masks of whole calls that are forced, by format (bar: p95 below 1000 us)")
    for format in FORMATS:
        calls = format.writing.grammar({"forecast": json.dumps(ARGUMENTS)}, parallel=True)
        wanted = frame(Wanted(format, None, calls), {})
        text = format.writing.text([("forecast", json.dumps(CALL))])
        seconds = []
        for counted in range(rounds + 1):
            guide = grammars.guide(wanted)
            guide.begin()
            for token in weights.tokenize(text, special=False, add_special=False):
                started = time.perf_counter()
                guide.look_ahead()
                looked = time.perf_counter() - started
                guide.restrict(logits.copy())
                assert guide.allows(token), f"{format.name} refuses what it writes"
                guide.accept(token)
                seconds += [looked] * bool(counted)
        show(f"{format.name}, {len(seconds) // rounds} tokens", seconds)
    grammars.close()
    weights.close()


Asks = Callable[[int, int], TextCall]  # from the round's number and the client's


def asks(constraint: Constraint | None, tokens: int) -> Asks:
    """Completions of short prompts, all different, under a constraint or none."""

    def ask(number: int, client: int) -> TextCall:
        prompt = [20 + client, *([100 + number] * 20)]
        return TextCall(
            f"{number}-{client}", prompts=[prompt], max_tokens=tokens, sampling=GREEDY, constraint=constraint
        )

    return ask


def asks_with_tools(choice: Literal["auto", "required"], tokens: int) -> Asks:
    """Chats with a function, which the model may call or has to."""
    tool = Tool("note", json.dumps(SCHEMA), "Note a work.", strict=True)

    def ask(number: int, client: int) -> TextCall:
        said = [Message("user", f"{client} {number} " * 5)]
        return TextCall(
            f"{number}-{client}",
            messages=said,
            tools=[tool],
            tool_choice=choice,
            max_tokens=tokens,
            sampling=GREEDY,
        )

    return ask


def asks_rendered(engine: TextEngine, of: Asks, tokens: int) -> Asks:
    """Completions of the very prompts that the chats of `of` come to."""

    def ask(number: int, client: int) -> TextCall:
        chat = of(number, client)
        engine.submit(PromptCall(f"{chat.id}-prompt", chat))
        prompts: list[str | list[int]] = []
        while not prompts:
            prompts += [event.text for event in engine.step() if isinstance(event, Text)]
        return TextCall(chat.id, prompts=prompts, max_tokens=tokens, sampling=GREEDY)

    return ask


def round_of(engine: TextEngine, clients: int, ask: Asks, number: int) -> float:
    """Tokens a second of the clients' answers together."""
    calls = [ask(number, client) for client in range(clients)]
    while engine.busy():
        engine.step()
    for call in calls:
        engine.submit(call)
    begun, written = time.perf_counter(), 0
    while engine.busy():
        for event in engine.step():
            if isinstance(event, Done):
                written += event.usage.completion_tokens
            elif isinstance(event, Failed):
                raise SystemExit(f"a call failed: {event.message}")
    return written / (time.perf_counter() - begun)


def throughput(path: Path, clients: int, tokens: int, rounds: int) -> None:
    """Tokens a second of all clients together: each kind of answer beside the same load without it."""
    options = TextOptions(ctx=2048, parallel=clients, threads=1, chat_template=TEMPLATE)
    engine = TextEngine(Load("text", "bench", str(path), options), lambda _: None)
    may, must = asks_with_tools("auto", tokens), asks_with_tools("required", tokens)
    free = asks_rendered(engine, may, tokens)
    loads = {
        "a schema": (asks(None, tokens), asks(CONSTRAINT, tokens)),
        "a tool that may be called": (free, may),
        "a tool that has to be called": (free, must),
    }
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
    number = 0
    for counted in range(rounds + 1):
        for name, (without, with_) in loads.items():
            number += 2
            order = ((0, without), (1, with_)) if counted % 2 else ((1, with_), (0, without))
            pair = [0.0, 0.0]
            for place, ask in order:
                pair[place] = round_of(engine, clients, ask, number + place)
            if counted:
                speeds[name].append((pair[0], pair[1]))
    engine.close()
    print(f"{clients} clients, {tokens} tokens each, tokens/s of all together (bar: ratio >= 0.95)")
    for name, pairs in speeds.items():
        ratios = sorted(bound / plain for plain, bound in pairs)
        plain, bound = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(
            f"  {name:<30} {plain:6.1f} without, {bound:6.1f} with: "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        )


def main() -> None:
    """Write the model, measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab-from", type=Path, help="a GGUF file whose vocabulary is taken")
    parser.add_argument("--masks-only", action="store_true", help="leave the throughput out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        heads = asked.width // 64
        shape = Shape(
            d=asked.width,
            layers=asked.layers,
            heads=heads,
            kv_heads=heads // 2,
            ff=3 * asked.width,
            vocab=asked.vocab,
        )
        write(path, shape=shape, vocab_from=asked.vocab_from)
        masks(path, 400)
        notations(path, asked.rounds)
        if asked.masks_only:
            return
        throughput(path, asked.clients, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
