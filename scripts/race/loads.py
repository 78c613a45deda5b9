"""The loads that both servers run turn by turn: plain throughput, first tokens, a shared beginning.

A load says what it asks, and turns the samples of one turn of one server into named figures; which figure has which bar
stands beside it. Lengths are in tokens. Every turn has new prompts, the same ones for both servers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from oxlo_local import bench
from oxlo_local.bench import Round, Scale
from race.asking import Voice, first_token, many, one, prompts
from race.racers import Racer
from race.ratios import Bar

Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How long everything is, in tokens; the numbers of the table, unless they are scaled down for a trial."""

    prompt: int = 108
    answer: int = 64
    shared: int = 2000
    sharing: int = 2100  # the whole prompt
    long: int = 8192
    turns: int = 20  # of a conversation
    said: int = 8  # words of a user's turn

    def scaled(self, factor: float) -> "Sizes":
        """All lengths times `factor`, for trials; the figures then say nothing about the bars."""

        def less(tokens: int, least: int) -> int:
            return max(least, round(tokens * factor))

        return Sizes(
            prompt=less(self.prompt, 24),
            answer=less(self.answer, 4),
            shared=less(self.shared, 64),
            sharing=less(self.shared, 64) + less(self.sharing - self.shared, 24),
            long=less(self.long, 256),
            turns=less(self.turns, 3),
            said=self.said,
        )


@dataclass(frozen=True)
class Track:
    """What a load needs to know of the model it runs on."""

    voice: Voice
    scale: Scale
    sizes: Sizes


class Load(Protocol):
    """One line of the table. `turns` = how often the servers take turns within a round."""

    @property
    def name(self) -> str: ...

    @property
    def turns(self) -> int: ...

    @property
    def bars(self) -> tuple[Bar, ...]: ...

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures: ...


def figures_of(round_: Round) -> Figures:
    """What every throughput load tells of a turn. Rates are over the whole turn, times in milliseconds."""
    found = bench.figures(round_)
    told: dict[str, float] = {
        "tokens_per_second": found.tokens_per_second,
        "all_tokens_per_second": round((found.prompt_tokens + found.completion_tokens) / round_.seconds, 2),
        "requests_per_second": found.requests_per_second,
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
        "completion_tokens": found.completion_tokens,
        "client_share": found.client_cpu_share,
    }
    for name, times in (("ttft", found.ttft_ms), ("gap", found.gap_ms)):
        if times is not None:
            told |= {f"{name}_p50": times.p50, f"{name}_p95": times.p95, f"{name}_max": times.max}
    return told


@dataclass(frozen=True)
class Clients:
    """So many clients with distinct prompts, all at once: prefill and decode together."""

    clients: int
    turns: int = 1

    @property
    def name(self) -> str:
        return f"clients-{self.clients}"

    @property
    def bars(self) -> tuple[Bar, ...]:
        return (
            Bar("tokens_per_second", "at_least", 1.0),
            Bar("all_tokens_per_second", "at_least", 0.95, "floor"),
            Bar("ttft_p50", "at_most", None),
        )

    @property
    def requests(self) -> int:
        """One a client, so that the work is llama-batched-bench's; one client asks four times."""
        return self.clients if self.clients > 1 else 4

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """All requests of a turn."""
        texts = prompts(track.scale, f"{self.name} {seed}", track.sizes.prompt, self.requests)
        asks = [track.voice.ask(text, track.sizes.answer) for text in texts]
        return figures_of(await many(racer, asks, self.clients))


@dataclass(frozen=True)
class FirstToken:
    """One client, one request a turn: time to first token of a new prompt, then of the same prompt again.

    The servers change places after every request, so that a pair is a second apart.
    """

    turns: int = 12
    name: str = "first-token"
    bars: tuple[Bar, ...] = (Bar("ttft_new", "extra", 3.0), Bar("ttft_again", "extra", 3.0))

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """Two requests of two tokens; again: all but one token of the prompt is cached."""
        (text,) = prompts(track.scale, f"first {seed}", track.sizes.prompt, 1)
        new, again = [await one(racer, track.voice.ask(text, 2)) for _ in range(2)]
        return {
            "ttft_new": 1000 * (first_token(new) - new.asked),
            "ttft_again": 1000 * (first_token(again) - again.asked),
            "cached_tokens": again.usage.cached_tokens,
        }


@dataclass(frozen=True)
class Shared:
    """Many clients at once, whose prompts share nearly all of their beginning, which nobody has computed yet."""

    clients: int = 16
    turns: int = 1
    name: str = "shared"
    bars: tuple[Bar, ...] = (Bar("ttft_p95", "at_most", 0.2), Bar("tokens_per_second", "at_least", None))

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """All at once; short answers, since the first token is what counts."""
        sizes = track.sizes
        (beginning,) = prompts(track.scale, f"shared {seed}", sizes.shared, 1)
        random = Random(f"own {seed}")
        own = track.scale.words(sizes.sharing - sizes.shared, beside=True)
        ends = [
            bench.text(random, own, f"{'abcdefghijklmnopqrstuvwxyz'[i % 26]}") for i in range(self.clients)
        ]
        asks = [track.voice.ask(f"{beginning} {end}", max(4, sizes.answer // 4)) for end in ends]
        return figures_of(await many(racer, asks, self.clients))


@dataclass(frozen=True)
class Overhead:
    """Clients on a model that computes next to nothing: what is left is everything around the model."""

    clients: int = 32
    requests: int = 192
    turns: int = 1
    name: str = "overhead"
    bars: tuple[Bar, ...] = (
        Bar("requests_per_second", "at_least", 1.0),
        Bar("tokens_per_second", "at_least", None),
    )

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """Short prompts, short answers, ledger and keys on."""
        texts = prompts(track.scale, f"overhead {seed}", 32, self.requests)
        return figures_of(await many(racer, [track.voice.ask(text, 32) for text in texts], self.clients))


def last_chunk(long: float, half: float, tokens: int, chunk: int) -> float:
    """Milliseconds that the last `chunk` tokens of a prompt cost, from its TTFT and that of one half as long.

    A prompt of n tokens takes a*n + b*n*n (the second part is attention over what came before).
    """
    curve = max(0.0, (long - 2 * half) / (tokens * tokens / 2))
    slope = max(0.0, (long - curve * tokens * tokens) / tokens)
    before = tokens - chunk
    return long - (slope * before + curve * before * before)


def spread(times: list[float], name: str) -> Mapping[str, float]:
    """p50, p95 and maximum of ascending milliseconds; nothing for no values."""
    if not times:
        return {}
    p50, p95 = (bench.percentile(times, share) for share in (0.5, 0.95))
    return {f"{name}_p50": p50, f"{name}_p95": p95, f"{name}_max": times[-1]}
