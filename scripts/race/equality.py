"""Greedy answers: the same tokens as llama-server's for one client, and the same in company, but for rounding.

Each prompt is asked alone and then beside seven others, of both servers, with log-probabilities. Two answers may part
where the arithmetic differs (another batch shape adds up in another order). So the distance is measured first: how far
the log-probabilities of the *same* tokens lie apart in llama-server's own two runs, alone and in company. An answer of
ours that parts from the other one is excused only where, at the parting, the two tokens' log-probabilities lie closer
together than twice that distance (each of the two may have moved), and never by more than `LARGEST`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import msgspec
from msgspec import Struct

from race.asking import GREEDY, PATIENCE, RaceFailed, prompts
from race.loads import Figures, Track
from race.racers import Racer
from race.ratios import Bar

PROMPTS, COMPANY = 6, 8
CANDIDATES = 5
SMALLEST, LARGEST = 0.002, 0.1  # of the distance that is excused; flash attention on a CPU rounds to 1e-2


class _Top(Struct, frozen=True):
    token: str
    logprob: float


class _Item(Struct, frozen=True):
    token: str
    logprob: float
    top_logprobs: list[_Top]


class _Logprobs(Struct, frozen=True):
    """Both forms: `content` of chats (llama-server has it for completions too), the lists of completions."""

    content: list[_Item] | None = None
    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []


class _Choice(Struct, frozen=True):
    logprobs: _Logprobs


class _Answer(Struct, frozen=True):
    choices: list[_Choice]


@dataclass(frozen=True)
class Token:
    """A chosen token, and the log-probabilities of it and of its rivals."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Parting:
    """Where two answers first differ, and how close the two tokens were to each other there, in the nearer answer."""

    at: int
    margin: float


def tokens_of(body: bytes) -> list[Token]:
    """The tokens of an answer's first choice."""
    found = msgspec.json.decode(body, type=_Answer).choices[0].logprobs
    if found.content is not None:
        return [
            Token(item.token, item.logprob, {top.token: top.logprob for top in item.top_logprobs})
            for item in found.content
        ]
    listed = zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    return [Token(text, logprob, top) for text, logprob, top in listed]


def distance(one: Sequence[Token], other: Sequence[Token]) -> float:
    """The largest difference of log-probability over the tokens that both answers have in common from the start."""
    furthest = 0.0
    for a, b in zip(one, other, strict=False):
        if a.text != b.text:
            break
        furthest = max(furthest, abs(a.logprob - b.logprob))
    return furthest


def parting(one: Sequence[Token], other: Sequence[Token]) -> Parting | None:
    """Where the answers part; None when they are equal. A token that is no rival is infinitely far."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a.text != b.text:
            margins = [
                mine.logprob - mine.top[theirs.text]
                for mine, theirs in ((a, b), (b, a))
                if theirs.text in mine.top
            ]
            return Parting(at, min(margins, default=float("inf")))
    return None if len(one) == len(other) else Parting(min(len(one), len(other)), float("inf"))


def unexplained(pairs: Sequence[tuple[Sequence[Token], Sequence[Token]]], rounding: float) -> int:
    """How many pairs of answers part by more than `rounding` explains."""
    allowed = min(max(2 * rounding, SMALLEST), LARGEST)
    partings = [parting(one, other) for one, other in pairs]
    return sum(each is not None and each.margin > allowed for each in partings)


Answers = list[list[Token]]


@dataclass(frozen=True)
class Greedy:
    """The load. It is no race: `compare` wants both servers' answers at once."""

    name: str = "greedy"
    bars: tuple[Bar, ...] = (
        Bar("unexplained_against_peer", "own_at_most", 0),
        Bar("unexplained_in_company", "own_at_most", 0),
        Bar("company_distance", "at_most", None),
    )

    async def answers(self, racer: Racer, track: Track, seed: str) -> tuple[Answers, Answers]:
        """Each prompt's answer alone, and in company."""
        texts = prompts(track.scale, f"greedy {seed}", track.sizes.prompt, PROMPTS)
        others = prompts(track.scale, f"company {seed}", track.sizes.prompt, COMPANY - 1)
        bearer = {"authorization": f"Bearer {racer.address.token}"} if racer.address.token else {}
        async with httpx.AsyncClient(
            base_url=racer.address.url, headers=bearer, timeout=PATIENCE, trust_env=False
        ) as client:
            alone = [await self._answer(client, track, text) for text in texts]
            company = []
            for text in texts:
                crowd = await asyncio.gather(*(self._answer(client, track, each) for each in (text, *others)))
                company.append(crowd[0])
        return alone, company

    async def _answer(self, client: httpx.AsyncClient, track: Track, text: str) -> list[Token]:
        wanted: dict[str, object] = {"logprobs": CANDIDATES}
        if track.voice.template:
            wanted = {"logprobs": True, "top_logprobs": CANDIDATES}
        body = track.voice.body(text, track.sizes.answer, GREEDY, **wanted)
        answer = await client.post(track.voice.path, json=body)
        if answer.status_code != 200:
            raise RaceFailed(f"{client.base_url} answered {answer.status_code}: {answer.text[:200]}")
        return tokens_of(answer.content)


def compare(ours: tuple[Answers, Answers], peers: tuple[Answers, Answers]) -> tuple[Figures, Figures]:
    """Our figures and the peer's."""
    found: list[Figures] = []
    for alone, company in (ours, peers):
        pairs = list(zip(alone, company, strict=True))
        found.append(
            {
                "company_distance": max(distance(*pair) for pair in pairs),
                "parted_in_company": sum(parting(*pair) is not None for pair in pairs),
            }
        )
    rounding = found[1]["company_distance"]
    against = list(zip(ours[0], peers[0], strict=True))
    found[0] |= {
        "against_peer_distance": max(distance(*pair) for pair in against),
        "parted_from_peer": sum(parting(*pair) is not None for pair in against),
        "unexplained_against_peer": unexplained(against, max(rounding, _allowance(found))),
        "unexplained_in_company": unexplained(list(zip(*ours, strict=True)), rounding),
        "tokens_compared": sum(len(answer) for answer in ours[0]),
    }
    return found[0], found[1]


def _allowance(found: Sequence[Figures]) -> float:
    """Between two servers both runs' own distances count: their batches have different shapes."""
    return max(each["company_distance"] for each in found)
