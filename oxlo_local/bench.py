"""A closed-loop load generator: so many clients, each with one request at a time, and what they saw.

The loads: independent requests at several numbers of clients; a shared prefix (many requests, one long beginning); a
mix of short and long prompts, told apart in the figures. Every prompt of a run is different from its first word on, so
that only what is meant to be cached is; the texts depend on the seed alone. Rounds are interleaved (all loads once,
then all again), so that a machine that slows down does so to all of them.

How to read the figures. Tokens are the server's own counts (`usage`). TTFT runs from sending the request to the first
piece of text, connecting included. A gap is the time between two pieces of one answer as they reach this process; with
one piece a token that is the inter-token time. `at_once` is how many answers were streaming at the same moment. What
this process itself burns stands beside them: on a small machine it takes its CPU from the server.
"""

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from msgspec import Struct

from oxlo_local.client import CHAT_PATH, Address, ChatBody, ChatUsage, Chunk, Turn, encode_chat
from oxlo_local.errors import BadRequest, OxloError
from oxlo_local.stream_connection import StreamConnection

WORDS = (
    "the a of and to in is it that was for on are with as they be at one have this from by hot but some what there we "
    "can out other were all your when up use word how said each she which do their time if will way about many then "
    "them would write like so these her long make thing see him two has look more day could go come did my sound no "
    "most number who over know water than call first people may down side been now find"
).split()

GROUP_CLIENTS = 8  # clients of the shared and the mixed load
SHARED_REQUESTS = 2  # a client, in the shared load
LONG_EVERY = 4  # one request in so many is long, in the mixed load
LONG_TIMES = 8  # the long prompt, in short ones
PROBE_WORDS = (8, 48)
MARGIN = 16  # tokens by which a prompt made of words may miss its length


# -- what to ask --------------------------------------------------------------------------------------------------


class Plan(Struct, frozen=True, kw_only=True):
    """A run. Token numbers are targets: words are not tokens, and the figures tell what the server counted."""

    model: str
    context: int | None = None  # tokens; None = the server did not say
    clients: tuple[int, ...] = (1, 8, 16, 32)
    groups: tuple[str, ...] = ("clients", "shared", "mixed")
    requests: int = 16  # a load and round; at least one a client
    prompt_tokens: int = 108
    max_tokens: int = 64
    shared_tokens: int = 400
    rounds: int = 3
    temperature: float = 0.0
    seed: int = 1
    patience: float = 600.0  # seconds that one answer may take


@dataclass(frozen=True)
class Ask:
    """One request of a load, encoded; `label` tells short from long."""

    body: bytes
    label: str = ""
    path: str = CHAT_PATH


@dataclass(frozen=True)
class Load:
    """So many clients, and the requests that they share in one round."""

    name: str
    clients: int
    asks: Callable[[int], list[Ask]]


@dataclass(frozen=True)
class Scale:
    """How this model's tokenizer turns our words into prompt tokens."""

    fixed: float  # what the chat template adds
    per_word: float

    @classmethod
    def through(cls, few: int, tokens_of_few: int, many: int, tokens_of_many: int) -> "Scale":
        """The line through two measured prompts."""
        per_word = max((tokens_of_many - tokens_of_few) / (many - few), 0.1)
        return cls(tokens_of_few - few * per_word, per_word)

    def words(self, tokens: int, *, beside: bool = False) -> int:
        """Words that make about `tokens`; `beside` another text, so that the template is counted already."""
        return max(round((tokens - (0 if beside else self.fixed)) / self.per_word), 1)


def loads(plan: Plan, scale: Scale) -> list[Load]:
    """The loads of a run. Raises BadRequest when a prompt and its answer cannot fit the model's context."""
    longest = LONG_TIMES * plan.prompt_tokens
    if plan.context is not None:
        room = plan.context - plan.max_tokens - MARGIN
        wanted = max(plan.prompt_tokens, plan.shared_tokens + MARGIN * 2 if "shared" in plan.groups else 0)
        if wanted > room:
            raise BadRequest(
                f"prompts of {wanted} tokens and answers of {plan.max_tokens} do not fit the context of "
                f"{plan.context}; lower --prompt-tokens, --shared-tokens or --max-tokens"
            )
        longest = min(longest, room)
    found: list[Load] = []
    if "clients" in plan.groups:
        found += [Load(_clients(n), n, _Independent(plan, scale, n)) for n in plan.clients]
    if "shared" in plan.groups:
        found.append(Load(f"shared, {_clients(GROUP_CLIENTS)}", GROUP_CLIENTS, _Shared(plan, scale)))
    if "mixed" in plan.groups:
        found.append(Load(f"mixed, {_clients(GROUP_CLIENTS)}", GROUP_CLIENTS, _Mixed(plan, scale, longest)))
    return found


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


@dataclass(frozen=True)
class _Independent:
    plan: Plan
    scale: Scale
    clients: int

    def __call__(self, turn: int) -> list[Ask]:
        random = Random(f"{self.plan.seed} clients {self.clients} {turn}")
        words = self.scale.words(self.plan.prompt_tokens)
        return [
            Ask(encoded(self.plan, text(random, words, f"{self.clients}.{turn}.{number}")))
            for number in range(max(self.plan.requests, self.clients))
        ]


@dataclass(frozen=True)
class _Shared:
    plan: Plan
    scale: Scale

    def __call__(self, turn: int) -> list[Ask]:
        random = Random(f"{self.plan.seed} shared {turn}")
        beginning = text(random, self.scale.words(self.plan.shared_tokens), f"shared.{turn}")
        own = self.scale.words(max(self.plan.shared_tokens // 10, 1), beside=True)
        return [
            Ask(encoded(self.plan, f"{beginning} {text(random, own, str(number))}"))
            for number in range(GROUP_CLIENTS * SHARED_REQUESTS)
        ]


@dataclass(frozen=True)
class _Mixed:
    plan: Plan
    scale: Scale
    longest: int

    def __call__(self, turn: int) -> list[Ask]:
        random = Random(f"{self.plan.seed} mixed {turn}")
        asks = []
        for number in range(max(self.plan.requests, GROUP_CLIENTS)):
            label = "long" if number % LONG_EVERY == LONG_EVERY - 1 else "short"
            words = self.scale.words(self.longest if label == "long" else self.plan.prompt_tokens)
            asks.append(Ask(encoded(self.plan, text(random, words, f"{label}.{turn}.{number}")), label))
        return asks


def text(random: Random, words: int, mark: str) -> str:
    """`words` words, the first of them a mark, so that no two prompts share a beginning."""
    return " ".join([mark, *random.choices(WORDS, k=max(words - 1, 0))])


def encoded(plan: Plan, prompt: str, max_tokens: int | None = None) -> bytes:
    """The request for one prompt."""
    return encode_chat(
        ChatBody(
            model=plan.model,
            messages=[Turn("user", prompt)],
            max_completion_tokens=max_tokens or plan.max_tokens,
            temperature=plan.temperature,
            seed=plan.seed,
        )
    )


# -- asking -------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One request as this process saw it; times in seconds of one clock.

    `error` is the code it failed with, `reason` the words beside it.
    """

    label: str
    asked: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    usage: ChatUsage = ChatUsage()
    error: str | None = None
    reason: str = ""

    def take(self, chunk: Chunk) -> None:
        """A chunk has arrived."""
        if chunk.has_output:
            self.arrivals.append(time.perf_counter())
        if chunk.usage is not None:
            self.usage = chunk.usage


async def measure(connection: StreamConnection, ask: Ask, patience: float) -> Sample:
    """Send one request and watch its answer come in. Never raises for a failed one: its code is in the sample."""
    sample = Sample(ask.label, time.perf_counter())
    try:
        async with asyncio.timeout(patience):
            await connection.chat(ask.body, sample.take, ask.path)
    except OxloError as error:
        sample.error, sample.reason = error.code, error.message
    except TimeoutError:
        sample.error, sample.reason = "client_timeout", f"no whole answer within {patience:g} s"
    sample.ended = time.perf_counter()
    return sample


@dataclass(frozen=True)
class Round:
    """One load, once: its samples, the seconds it took, the CPU seconds that this process burnt meanwhile."""

    samples: list[Sample]
    seconds: float
    cpu_seconds: float


async def run_round(address: Address, asks: Sequence[Ask], clients: int, patience: float) -> Round:
    """Let `clients` clients work off `asks`, each one at a time over a connection of its own."""
    waiting = iter(asks)
    samples: list[Sample] = []

    async def client() -> None:
        connection = StreamConnection(address)
        try:
            for ask in waiting:
                samples.append(await measure(connection, ask, patience))
        finally:
            connection.close()

    began, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Round(samples, time.perf_counter() - began, time.process_time() - cpu)


async def probe(address: Address, plan: Plan) -> Scale:
    """Learn from two small requests how many tokens our words make. Raises what the server answers."""
    connection = StreamConnection(address)
    random = Random(f"{plan.seed} probe")
    counted: list[int] = []
    try:
        for words in PROBE_WORDS:
            sample = Sample("", time.perf_counter())
            await connection.chat(encoded(plan, text(random, words, f"probe.{words}"), 1), sample.take)
            counted.append(sample.usage.prompt_tokens)
    finally:
        connection.close()
    if counted[0] == 0:
        raise BadRequest(
            "the server reports no usage in its streams (stream_options.include_usage): nothing to measure"
        )
    return Scale.through(PROBE_WORDS[0], counted[0], PROBE_WORDS[1], counted[1])


# -- what it came to ----------------------------------------------------------------------------------------------


class Quantiles(Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p95: float
    max: float


class Figures(Struct, frozen=True):
    """One load in one round. `None` where there is nothing to tell, because every request failed."""

    requests: int
    errors: dict[str, int]
    tokens_per_second: float
    requests_per_second: float
    ttft_ms: Quantiles | None
    gap_ms: Quantiles | None
    at_once: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    client_cpu_share: float


class Spread(Struct, frozen=True):
    """A figure over the rounds."""

    median: float
    low: float
    high: float


class Row(Struct, frozen=True):
    """A load over all its rounds. Times in milliseconds; keys such as `ttft_p50`."""

    name: str
    clients: int
    summary: dict[str, Spread]
    errors: dict[str, int]
    rounds: list[Figures]


class Report(Struct, frozen=True):
    """A whole run."""

    url: str
    plan: Plan
    rows: list[Row]
    warnings: list[str]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the ascending values lie, interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def quantiles(seconds: Sequence[float]) -> Quantiles | None:
    """p50, p95 and maximum of durations in seconds, in milliseconds to three places."""
    if not seconds:
        return None
    ordered = sorted(1000 * value for value in seconds)
    return Quantiles(
        round(percentile(ordered, 0.5), 3), round(percentile(ordered, 0.95), 3), round(ordered[-1], 3)
    )


def at_once(samples: Sequence[Sample]) -> int:
    """The most answers that were streaming (first piece come, end not yet) at one moment."""
    moments = [(sample.arrivals[0], 1) for sample in samples if sample.arrivals]
    moments += [(sample.ended, -1) for sample in samples if sample.arrivals]
    streaming = most = 0
    for _, change in sorted(moments):
        streaming += change
        most = max(most, streaming)
    return most


def figures(round_: Round, label: str | None = None) -> Figures:
    """The figures of a round, or of its requests with one label (rates are over the whole round's time)."""
    chosen = [sample for sample in round_.samples if label is None or sample.label == label]
    good = [sample for sample in chosen if sample.error is None]
    completion = sum(sample.usage.completion_tokens for sample in good)
    gaps = [later - earlier for sample in good for earlier, later in _pairs(sample.arrivals)]
    return Figures(
        requests=len(chosen),
        errors=dict(Counter(sample.error for sample in chosen if sample.error is not None)),
        tokens_per_second=round(completion / round_.seconds, 2),
        requests_per_second=round(len(good) / round_.seconds, 3),
        ttft_ms=quantiles([sample.arrivals[0] - sample.asked for sample in good if sample.arrivals]),
        gap_ms=quantiles(gaps),
        at_once=at_once(chosen),
        prompt_tokens=sum(sample.usage.prompt_tokens for sample in good),
        cached_tokens=sum(sample.usage.cached_tokens for sample in good),
        completion_tokens=completion,
        client_cpu_share=round(round_.cpu_seconds / round_.seconds, 4),
    )


def _pairs(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    return zip(values, values[1:], strict=False)


def row(name: str, clients: int, rounds: Sequence[Figures]) -> Row:
    """Medians and spreads over the rounds of one load."""
    values: dict[str, list[float]] = {}
    for each in rounds:
        for key in ("tokens_per_second", "requests_per_second", "at_once", "client_cpu_share"):
            values.setdefault(key, []).append(getattr(each, key))
        for key, measured in (("ttft", each.ttft_ms), ("gap", each.gap_ms)):
            for part in Quantiles.__struct_fields__ if measured is not None else ():
                values.setdefault(f"{key}_{part}", []).append(getattr(measured, part))
    summary = {
        key: Spread(round(statistics.median(some), 3), min(some), max(some)) for key, some in values.items()
    }
    errors: Counter[str] = Counter()
    for each in rounds:
        errors.update(each.errors)
    return Row(name, clients, summary, dict(errors), list(rounds))


def rows(load: Load, rounds: Sequence[Round]) -> list[Row]:
    """The rows of one load: all its requests, and each label apart where there are several."""
    labels = sorted({sample.label for round_ in rounds for sample in round_.samples} - {""}, reverse=True)
    found = [row(load.name, load.clients, [figures(round_) for round_ in rounds])]
    for label in labels:
        found.append(row(f"  {label} prompts", load.clients, [figures(round_, label) for round_ in rounds]))
    return found


def warnings(found: Sequence[Row]) -> list[str]:
    """What makes the figures less than they seem."""
    said = []
    for each in found:
        prompt = sum(figure.prompt_tokens for figure in each.rounds)
        cached = sum(figure.cached_tokens for figure in each.rounds)
        if cached > prompt / 2 and not each.name.startswith("shared"):
            said.append(
                f"{each.name}: {cached} of {prompt} prompt tokens were cached although every prompt is new; "
                "a run with the same seed came before? Choose another --seed"
            )
        if each.summary["client_cpu_share"].median > 0.5:
            said.append(
                f"{each.name}: this client used {each.summary['client_cpu_share'].median:.0%} of a core itself"
            )
    return said


async def bench(address: Address, plan: Plan, progress: Callable[[str], None]) -> Report:
    """Run the plan. `progress` is told what runs now. Raises what the server answers to the first, small requests."""
    todo = loads(plan, await probe(address, plan))
    seen: dict[str, list[Round]] = {load.name: [] for load in todo}
    for turn in range(plan.rounds):
        for load in todo:
            progress(f"round {turn + 1} of {plan.rounds}: {load.name}")
            seen[load.name].append(await run_round(address, load.asks(turn), load.clients, plan.patience))
    found = [each for load in todo for each in rows(load, seen[load.name])]
    return Report(address.url, plan, found, warnings(found))
