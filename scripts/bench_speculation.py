"""What speculative decoding brings and costs: answers that copy their prompt and answers that do not.

    python scripts/bench_speculation.py [--clients 1,4] [--tokens 128] [--rounds 3] [--every 40]

Two models. `oxlo-demo` answers questions; where it is to copy, the client predicts its answer but for a word in every
`--every`. `150m` is a random model of 150 M weights whose layers were silenced and whose output was put in an order:
each token has one that follows it. It costs what such a model costs, and where its prompt holds what follows, but for
a token in every `--every`, it copies. Its draft model has two layers, as large a vocabulary, and the same order.

Rounds are interleaved, the first is not counted, and no two share a prompt.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace as reshaped
from pathlib import Path

import gguf
import numpy as np
from msgspec.structs import replace

from oxlo_local.calls import Done, Failed, Load, Message, Sampling, Text, TextCall, TextOptions
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.random_model import SHAPES, Shape, write

DEMO = Path(__file__).parent.parent / "oxlo_local" / "embedded" / "oxlo-demo.gguf"
SMALL = Shape(d=256, layers=2, heads=4, kv_heads=2, ff=512, vocab=151_936, context=8192)
QUESTIONS = (
    "What is oxlo?",
    "How do I make an API key?",
    "What does a request cost?",
    "Which models can I use?",
    "How do I start the server?",
    "What does the ledger show?",
    "How do I stream an answer?",
    "What happens when the queue is full?",
)
FIRST = 1000  # tokens from here on stand in the order


def order_of(vocab: int) -> list[int]:
    """The tokens of an ordered model, each followed by the next."""
    order: list[int] = np.random.default_rng(1).permutation(np.arange(FIRST, vocab)).tolist()
    return order


def ordered(path: Path, shape: Shape) -> Path:
    """A random model whose layers add nothing and whose output matrix is its embedding, a place further on."""
    write(path, shape=shape, quant="Q8_0")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, "r+").tensors}
    order = order_of(shape.vocab)
    for name, data in tensors.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            data[:] = 0
    tensors["output.weight"][:FIRST] = 0
    tensors["output.weight"][np.roll(order, -1)] = tensors["token_embd.weight"][order]
    tensors["output.weight"].flush()
    return path


class Walk:
    """Calls for an ordered model, each at a new place of its order."""

    def __init__(self, tokens: int, every: int) -> None:
        self._order = order_of(SHAPES["150m"].vocab)
        self._tokens, self._every = tokens, every
        self._place = 0

    def call(self, id: str, *, copies: bool) -> TextCall:
        """Continue at a new place, behind a text that holds what follows, or something else."""
        begin = self._place + 1
        self._place += 2 * self._tokens
        shown = begin if copies else begin + 40_000
        text = self._order[shown : shown + self._tokens]
        text[:: self._every] = [FIRST // 2] * len(text[:: self._every])
        prompt = [*text, *self._order[begin - 8 : begin]]
        return TextCall(id, prompts=[prompt], max_tokens=self._tokens, sampling=Sampling(temperature=0.8))


class Questions:
    """Calls for the demo: what it answers, and where it is to copy, that answer as a prediction."""

    def __init__(self, path: Path, tokens: int, every: int) -> None:
        self._tokens, self._every = tokens, every
        self._asked = 0
        engine = TextEngine(
            Load("text", "demo", str(path), TextOptions(ctx=512, parallel=1, threads=1)), lambda _: None
        )
        self._answers = [self._answer(engine, question) for question in QUESTIONS]
        engine.close()

    def _answer(self, engine: TextEngine, question: str) -> str:
        engine.submit(self._call("a", question, 0.0))
        return "".join(event.text for event in events(engine) if isinstance(event, Text))

    def _call(self, id: str, question: str, temperature: float) -> TextCall:
        sampling = Sampling(temperature=temperature)
        return TextCall(id, messages=[Message("user", question)], max_tokens=self._tokens, sampling=sampling)

    def call(self, id: str, *, copies: bool) -> TextCall:
        """The next question."""
        number = self._asked % len(QUESTIONS)
        self._asked += 1
        made = self._call(id, QUESTIONS[number], 0.0 if copies else 0.8)
        if not copies:
            return made
        words = self._answers[number].split(" ")
        words[self._every // 2 :: self._every] = ["elsewhere"] * len(words[self._every // 2 :: self._every])
        return replace(made, prediction=" ".join(words))


def events(engine: TextEngine) -> Iterator[object]:
    """All that comes up until nothing is left to do."""
    while engine.busy():
        yield from engine.step()


def speed(engine: TextEngine, load: Walk | Questions, clients: int, *, copies: bool, each: int) -> float:
    """Tokens a second of `clients` that ask `each` times, one after the other."""
    left = {str(client): each for client in range(clients)}
    for client in left:
        engine.submit(load.call(client, copies=copies))
    begun, written = time.perf_counter(), 0
    for event in events(engine):
        assert not isinstance(event, Failed), event
        if isinstance(event, Done):
            written += event.usage.completion_tokens
            left[event.id] -= 1
            if left[event.id]:
                engine.submit(load.call(event.id, copies=copies))
    return written / (time.perf_counter() - begun)


def compare(
    name: str, ways: dict[str, TextEngine], load: Walk | Questions, asked: argparse.Namespace
) -> None:
    """One line for each load, number of clients and way."""
    for copies in (True, False):
        for clients in map(int, asked.clients.split(",")):
            found: dict[str, list[float]] = {way: [] for way in ways}
            before = {way: engine.gauges() for way, engine in ways.items()}
            for counted in range(asked.rounds + 1):
                for way in sorted(ways, reverse=bool(counted % 2)):
                    each = 1 if name == "150m" else 8
                    found[way].append(speed(ways[way], load, clients, copies=copies, each=each))
            plain = found["none"][1:]
            for way, engine in ways.items():
                ratios = [one / other for one, other in zip(found[way][1:], plain, strict=True)]
                guessed = engine.gauges().guessed_tokens - before[way].guessed_tokens
                right = engine.gauges().accepted_tokens - before[way].accepted_tokens
                print(
                    f"{name:<10} {'copies' if copies else 'plain':<7} {clients:>3} clients  {way:<7}"
                    f" {statistics.median(found[way][1:]):8.1f} tokens/s  ratio {statistics.median(ratios):.2f}"
                    f" ({min(ratios):.2f}-{max(ratios):.2f})  {right} of {guessed} guessed tokens right",
                    flush=True,
                )


def ways_of(paths: dict[str, Path], name: str, parallel: int) -> dict[str, TextEngine]:
    """An engine for each way of speculating."""
    plain = TextOptions(ctx=1024, parallel=parallel, threads=1, speculation="none")
    options = {"none": plain, "lookup": replace(plain, speculation="lookup")}
    if name == "150m":
        options["draft"] = replace(plain, speculation="draft", draft=str(paths["draft"]))
    return {
        way: TextEngine(Load("text", name, str(paths[name]), made), lambda _: None)
        for way, made in options.items()
    }


def main() -> None:
    """Make the models, measure the ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = {"oxlo-demo": DEMO}
        for name, shape in (("150m", reshaped(SHAPES["150m"], tied=False)), ("draft", SMALL)):
            paths[name] = ordered(Path(folder) / f"{name}.gguf", shape)
        loads: dict[str, Walk | Questions] = {
            "oxlo-demo": Questions(DEMO, asked.tokens, asked.every),
            "150m": Walk(asked.tokens, asked.every),
        }
        for name, load in loads.items():
            engines = ways_of(paths, name, max(map(int, asked.clients.split(","))))
            compare(name, engines, load, asked)
            for engine in engines.values():
                engine.close()


if __name__ == "__main__":
    main()
