"""What constrained decoding costs: a mask by itself, and the throughput of many clients with and without a schema.

    python scripts/bench_grammar.py [--vocab 151936] [--clients 16] [--tokens 48] [--rounds 3]

A model of random weights stands for a real one of its shape; it ends an answer once in a vocabulary, and the schema
wants more than any answer here is long. Rounds are interleaved, the first of them is not counted, and no two loads
share a prompt.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from oxlo_local.calls import Constraint, Done, Load, Sampling, TextCall, TextOptions
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.text.grammar import Grammars
from oxlo_local.engines.weights import Weights
from oxlo_local.random_model import Shape, write

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


def round_of(
    engine: TextEngine, clients: int, tokens: int, constraint: Constraint | None, number: int
) -> float:
    """Tokens a second of the clients' answers together."""
    for client in range(clients):
        prompt = [20 + client, *([100 + number] * 20)]
        sampling = Sampling(temperature=0)  # the cheapest draw, so that the rest shows most
        engine.submit(
            TextCall(
                f"{number}-{client}",
                prompts=[prompt],
                max_tokens=tokens,
                sampling=sampling,
                constraint=constraint,
            )
        )
    begun, written = time.perf_counter(), 0
    while engine.busy():
        for event in engine.step():
            if isinstance(event, Done):
                written += event.usage.completion_tokens
    return written / (time.perf_counter() - begun)


def throughput(path: Path, clients: int, tokens: int, rounds: int) -> None:
    """Tokens a second of all clients together, without and with the schema."""
    options = TextOptions(ctx=512, parallel=clients, threads=1)
    engine = TextEngine(Load("text", "bench", str(path), options), lambda _: None)
    free: list[float] = []
    bound: list[float] = []
    loads: list[tuple[list[float], Constraint | None]] = [(free, None), (bound, CONSTRAINT)]
    number = 0
    for counted in range(rounds + 1):
        for speeds, constraint in loads if counted % 2 else reversed(loads):
            speed = round_of(engine, clients, tokens, constraint, number)
            number += 1
            if counted:
                speeds.append(speed)
    engine.close()
    ratios = [with_ / without for without, with_ in zip(free, bound, strict=True)]
    print(
        f"{clients} clients, {tokens} tokens each: {statistics.median(free):.1f} tok/s free, "
        f"{statistics.median(bound):.1f} tok/s under a schema; ratios {', '.join(f'{each:.3f}' for each in ratios)}, "
        f"median {statistics.median(ratios):.3f}"
    )


def main() -> None:
    """Write the model, measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
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
        write(path, shape=shape)
        masks(path, 400)
        throughput(path, asked.clients, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
