"""Requests of the race: the same bytes to both servers, every sampling field spelled out.

A model with a chat template is asked through /v1/chat/completions, one without through /v1/completions. The sampling is
llama-server's own default chain (temperature 0.8, top_k 40, top_p 0.95, min_p 0.05): what is unset would mean different
things to the two servers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

import msgspec

from oxlo_local import bench
from oxlo_local.bench import Ask, Round, Sample, Scale
from oxlo_local.client import CHAT_PATH, COMPLETIONS_PATH
from oxlo_local.stream_connection import StreamConnection
from race.racers import Racer

SAMPLED: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
GREEDY: Mapping[str, float] = {"temperature": 0.0}
PATIENCE = 3600.0  # seconds: a peer on one core may need minutes to a first token
Messages = list[dict[str, str]]


class RaceFailed(Exception):
    """A request that has to succeed has failed, so that the turn's figures mean nothing."""


@dataclass(frozen=True)
class Voice:
    """How a model is spoken to. `template` says whether its file has a chat template."""

    model: str
    template: bool
    seed: int = 1

    @property
    def path(self) -> str:
        """Where its requests go."""
        return CHAT_PATH if self.template else COMPLETIONS_PATH

    def body(
        self, prompt: str | Messages, answer: int, sampling: Mapping[str, float], **more: object
    ) -> dict[str, object]:
        """The request as an object; a text becomes one user's turn where there is a template."""
        said: dict[str, object] = {"prompt": prompt}
        limit = "max_tokens"
        if self.template:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            said, limit = {"messages": turns}, "max_completion_tokens"
        return {"model": self.model, **said, limit: answer, "seed": self.seed, **sampling, **more}

    def ask(
        self, prompt: str | Messages, answer: int, sampling: Mapping[str, float] = SAMPLED, label: str = ""
    ) -> Ask:
        """The request, streamed."""
        streamed = self.body(prompt, answer, sampling, stream=True, stream_options={"include_usage": True})
        return Ask(msgspec.json.encode(streamed), label, self.path)


async def one(racer: Racer, ask: Ask) -> Sample:
    """One request over a connection of its own. Raises RaceFailed."""
    connection = StreamConnection(racer.address)
    try:
        return checked(racer, await bench.measure(connection, ask, PATIENCE))
    finally:
        connection.close()


async def many(racer: Racer, asks: list[Ask], clients: int) -> Round:
    """All of `asks` by so many clients, each one at a time. Raises RaceFailed when one of them fails."""
    round_ = await bench.run_round(racer.address, asks, clients, PATIENCE)
    for sample in round_.samples:
        checked(racer, sample)
    return round_


def checked(racer: Racer, sample: Sample) -> Sample:
    """The sample, unless it failed. A random model may end an answer before its first token: that is no failure."""
    if sample.error is not None:
        raise RaceFailed(f"{racer.name} failed a request: {sample.error}: {sample.reason}")
    return sample


def first_token(sample: Sample) -> float:
    """When the first token came; of an answer without any, when it ended, which is the same step."""
    return sample.arrivals[0] if sample.arrivals else sample.ended


async def scale_of(racer: Racer, voice: Voice) -> Scale:
    """How many tokens our words make, from two small requests."""
    random, counted = Random("probe"), []
    for words in bench.PROBE_WORDS:
        sample = await one(racer, voice.ask(bench.text(random, words, f"probe.{words}"), 1))
        counted.append(sample.usage.prompt_tokens)
    return Scale.through(bench.PROBE_WORDS[0], counted[0], bench.PROBE_WORDS[1], counted[1])


def prompts(scale: Scale, seed: str, tokens: int, number: int) -> list[str]:
    """So many texts of about `tokens` tokens in a prompt, no two of which begin alike."""
    random = Random(seed)
    mark = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=4))
    return [bench.text(random, scale.words(tokens), f"{_letters(i)}{mark}") for i in range(number)]


def _letters(number: int) -> str:
    """A number in letters: digits make other tokens than words."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:03d}")


def milliseconds(seconds: Iterable[float]) -> list[float]:
    """In ascending order."""
    return sorted(1000 * each for each in seconds)
