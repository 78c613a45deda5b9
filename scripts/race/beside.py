"""Short prompts beside a prompt of 8 K tokens: who waits for whom, and how long.

A turn has four parts: short requests undisturbed; the long prompt alone, and one half as long (what a chunk of it
costs follows from the two); then the long prompt again while clients keep asking short things until its first token
has come. Only what was asked or arrived while the long prompt was being read counts.
"""

import asyncio
from dataclasses import dataclass

from oxlo_local import bench
from oxlo_local.bench import Sample
from oxlo_local.stream_connection import StreamConnection
from race.asking import PATIENCE, checked, first_token, many, milliseconds, one, prompts
from race.loads import Figures, Track, last_chunk, spread
from race.racers import Racer
from race.ratios import Bar

SHORT_ANSWER = 24
HEAD_START = 0.3  # seconds that the long prompt is ahead of the first short one
CHUNKS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Beside:
    """The load. `chunk` = our prefill tokens a step beside running sequences."""

    clients: int = 4
    chunk: int = 256
    gpu: bool = False
    turns: int = 1
    name: str = "beside-long"

    @property
    def bars(self) -> tuple[Bar, ...]:
        return (
            Bar("short_ttft_p95", "at_most", 0.3),
            Bar("gap_in_chunks", "own_at_most", 1.0),
            Bar("long_times_alone", "own_at_most", 2.0),
            Bar("gap_p95_times_undisturbed", "own_at_most", 1.5 if self.gpu else None),
        )

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """All four parts."""
        sizes = track.sizes
        quiet = await self._quiet(racer, track, seed)
        alone, half = [
            await self._long_ttft(racer, track, f"{seed} {tokens}", tokens)
            for tokens in (sizes.long, sizes.long // 2)
        ]
        long, shorts = await self._together(racer, track, seed)
        first = first_token(long)
        ttfts = milliseconds(first_token(each) - each.asked for each in shorts if each.asked < first)
        gaps = milliseconds(
            later - earlier
            for each in shorts
            for earlier, later in zip(each.arrivals, each.arrivals[1:], strict=False)
            if later <= first
        )
        found: Figures = {"long_alone": alone, "long_ttft": 1000 * (first - long.asked), **quiet}
        found |= {**spread(ttfts, "short_ttft"), **spread(gaps, "gap")}
        found["long_times_alone"] = found["long_ttft"] / alone
        found["chunk_ms"] = last_chunk(alone, half, sizes.long, min(self.chunk, sizes.long // 2))
        if gaps:
            found["gap_p95_times_undisturbed"] = found["gap_p95"] / quiet["quiet_gap_p95"]
            found["gap_in_chunks"] = found["gap_max"] / (found["chunk_ms"] + quiet["quiet_gap_p95"])
        return found

    async def _quiet(self, racer: Racer, track: Track, seed: str) -> Figures:
        """Gaps of the short ones among themselves, from the moment when all have begun."""
        texts = prompts(track.scale, f"quiet {seed}", track.sizes.prompt, self.clients)
        round_ = await many(racer, [track.voice.ask(text, SHORT_ANSWER) for text in texts], self.clients)
        begun = max(first_token(sample) for sample in round_.samples)
        gaps = milliseconds(
            later - earlier
            for sample in round_.samples
            for earlier, later in zip(sample.arrivals, sample.arrivals[1:], strict=False)
            if earlier >= begun
        )
        return dict(spread(gaps or [1.0], "quiet_gap"))

    async def _long_ttft(self, racer: Racer, track: Track, seed: str, tokens: int) -> float:
        (text,) = prompts(track.scale, f"alone {seed}", tokens, 1)
        sample = await one(racer, track.voice.ask(text, 1))
        return 1000 * (first_token(sample) - sample.asked)

    async def _together(self, racer: Racer, track: Track, seed: str) -> tuple[Sample, list[Sample]]:
        (text,) = prompts(track.scale, f"long {seed}", track.sizes.long, 1)
        texts = iter(prompts(track.scale, f"short {seed}", track.sizes.prompt, 999))
        long = asyncio.create_task(one(racer, track.voice.ask(text, 1)))
        await asyncio.sleep(HEAD_START)
        shorts: list[Sample] = []

        async def client() -> None:
            connection = StreamConnection(racer.address)
            try:
                while not long.done():
                    ask = track.voice.ask(next(texts), SHORT_ANSWER)
                    shorts.append(checked(racer, await bench.measure(connection, ask, PATIENCE)))
            finally:
                connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(client())
        return await long, shorts


@dataclass(frozen=True)
class Chunk:
    """The same of our server alone, with prefill in chunks of so many tokens: one point of the curve."""

    chunk: int
    turns: int = 1

    @property
    def name(self) -> str:
        return f"chunk-{self.chunk}"

    @property
    def bars(self) -> tuple[Bar, ...]:
        shown = (
            "short_ttft_p95",
            "gap_p95",
            "gap_max",
            "gap_p95_times_undisturbed",
            "long_ttft",
            "long_times_alone",
        )
        return tuple(Bar(figure, "own_at_most", None) for figure in shown)

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """All four parts; the prompts are those of every other chunk."""
        return await Beside(chunk=self.chunk).run(racer, track, seed)
