"""Conversations: eight at once, each of twenty turns, and how much of each prompt is computed again.

A turn's prompt is all that was said so far and one thing more. New in it is what lies behind the longest common prefix,
in tokens, of that prompt and of what this conversation has computed: its last prompt and answer, but for the answer's
last token, whose row nobody needed. The answer's tokens are read from its text, so the model's text has to tokenise
back to itself; turns in which it does not are counted (`not_back`).

Computed is told twice: by the usage of each answer (prompt_tokens - cached_tokens), and by our engine's own counter.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from oxlo_local import bench
from oxlo_local.calls import Message, TextCall, TextOptions
from oxlo_local.client import Chunk
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.reading import Prompt, Reader
from oxlo_local.stream_connection import StreamConnection
from race.asking import GREEDY, Messages, RaceFailed
from race.loads import Figures, Track
from race.racers import Racer
from race.ratios import Bar

ANSWER = 8  # tokens of an answer at most


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Tongue:
    """A model's template and tokenizer, in this process, so that prompts can be counted as the server reads them."""

    def __init__(self, path: Path) -> None:
        self._llama = Llama(path, TextOptions(ctx=2048, parallel=1, threads=1), lambda _: None)
        self._reader = Reader(self._llama)
        self.template = self._reader.chats

    def read(self, prompt: str | Messages) -> Prompt:
        """The prompt as the server computes it: its tokens, and the text that the template made."""
        if isinstance(prompt, str):
            return self._reader.read(TextCall("", prompts=[prompt]))[0]
        messages = [Message(turn["role"], turn["content"]) for turn in prompt]
        return self._reader.read(TextCall("", messages=messages))[0]

    def tokens(self, text: str) -> list[int]:
        """Any text, as a whole prompt."""
        return self._llama.tokenize(text, special=True, add_special=True)


@dataclass
class Talk:
    """One conversation so far. `computed` is what the server may have in its cache."""

    messages: Messages = field(default_factory=list)
    text: str = ""
    computed: list[int] = field(default_factory=list)
    new: int = 0
    asked: int = 0
    not_back: int = 0
    turns: int = 0

    def say(self, words: str, *, template: bool) -> str | Messages:
        """The user's next turn; the whole prompt."""
        if template:
            self.messages.append({"role": "user", "content": words})
            return list(self.messages)
        self.text += f" {words}" if self.text else words
        return self.text

    def hear(self, prompt: str | Messages, answer: str, usage: tuple[int, int, int], tongue: Tongue) -> None:
        """Take the answer. `usage` = prompt, cached and completion tokens, as the server counted them."""
        read = tongue.read(prompt)
        tokens = read.tokens
        counted, cached, completion = usage
        if len(tokens) != counted:
            raise RaceFailed(f"a prompt of {len(tokens)} tokens was counted as {counted}")
        self.new += len(tokens) - common(tokens, self.computed)
        self.asked += counted - cached
        whole = tongue.tokens(read.text + answer)
        self.not_back += len(whole) != len(tokens) + completion or whole[: len(tokens)] != tokens
        self.computed = whole[:-1]
        self.messages.append({"role": "assistant", "content": answer})
        self.text += answer
        self.turns += 1


@dataclass(frozen=True)
class Talks:
    """The load."""

    tongue: Tongue
    clients: int = 8
    turns: int = 1
    name: str = "conversations"
    bars: tuple[Bar, ...] = (
        Bar("computed_over_new", "own_at_most", 1.1),
        Bar("asked_over_new", "own_at_most", 1.1),
        Bar("seconds", "at_most", None),
    )

    async def run(self, racer: Racer, track: Track, seed: str) -> Figures:
        """All conversations at once; each says its next thing when it has its answer."""
        before = racer.gauges().prefill_tokens if racer.admin else 0
        talks = [Talk() for _ in range(self.clients)]
        begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number, talk in enumerate(talks):
                group.create_task(self._hold(racer, track, talk, f"{seed} {number}"))
        seconds = asyncio.get_running_loop().time() - begun
        new, asked = sum(talk.new for talk in talks), sum(talk.asked for talk in talks)
        found: Figures = {
            "new_tokens": new,
            "asked_over_new": asked / new,
            "not_back": sum(talk.not_back for talk in talks),
            "turns_held": sum(talk.turns for talk in talks),
            "seconds": seconds,
        }
        if racer.admin:
            found["computed_over_new"] = (racer.gauges().prefill_tokens - before) / new
        return found

    async def _hold(self, racer: Racer, track: Track, talk: Talk, seed: str) -> None:
        random = Random(f"talk {seed}")
        connection = StreamConnection(racer.address)
        try:
            for _ in range(track.sizes.turns):
                words = " ".join(random.choices(bench.WORDS, k=track.sizes.said))
                prompt = talk.say(words, template=self.tongue.template)
                await self._turn(connection, track, talk, prompt)
        finally:
            connection.close()

    async def _turn(
        self, connection: StreamConnection, track: Track, talk: Talk, prompt: str | Messages
    ) -> None:
        pieces: list[str] = []
        usage: list[tuple[int, int, int]] = []

        def take(chunk: Chunk) -> None:
            pieces.append(chunk.text)
            if chunk.usage is not None:
                told = chunk.usage
                usage.append((told.prompt_tokens, told.cached_tokens, told.completion_tokens))

        ask = track.voice.ask(prompt, ANSWER, GREEDY)
        await connection.chat(ask.body, take, ask.path)
        talk.hear(prompt, "".join(pieces), usage[-1], self.tongue)
