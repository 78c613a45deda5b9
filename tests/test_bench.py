"""The load generator: what it asks, how it counts, and that it tells the truth about a server whose times are known."""

import asyncio
import json
from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from oxlo_local import bench
from oxlo_local.bench import Figures, Load, Plan, Round, Sample, Scale, Spread
from oxlo_local.cli import figures as figures_room
from oxlo_local.client import ChatUsage, PromptDetails, locate
from oxlo_local.errors import BadRequest, ModelNotFound
from tests.conftest import RunningServer
from tests.random_server import random_server
from tests.stub_server import CHAT, DONE, HEAD, Reply, Stub, answer, piece, refusal, stub_server

SCALE = Scale(fixed=10, per_word=2)
PLAN = Plan(model="m", context=1000, clients=(1, 4), prompt_tokens=50, max_tokens=8, shared_tokens=100)


def prompts(load: Load, turn: int) -> list[str]:
    bodies = [json.loads(ask.body) for ask in load.asks(turn)]
    return [str(body["messages"][0]["content"]) for body in bodies]


# -- what it asks -----------------------------------------------------------------------------------------------


def test_words_are_scaled_to_tokens_by_what_the_server_counted() -> None:
    scale = Scale.through(8, 26, 48, 106)
    assert scale == Scale(10.0, 2.0)
    assert scale.words(110) == 50 and scale.words(110, beside=True) == 55 and scale.words(1) == 1


def test_the_loads_of_a_plan() -> None:
    named = {load.name: load for load in bench.loads(PLAN, SCALE)}
    assert list(named) == ["1 client", "4 clients", "shared, 8 clients", "mixed, 8 clients"]
    assert [len(load.asks(0)) for load in named.values()] == [16, 16, 16, 16]
    many = bench.loads(msgspec.structs.replace(PLAN, clients=(40,), groups=("clients",)), SCALE)
    assert len(many[0].asks(0)) == 40


def test_no_two_prompts_of_a_run_share_their_first_word() -> None:
    plan = msgspec.structs.replace(PLAN, groups=("clients", "mixed"))
    first = [
        text.split()[0]
        for load in bench.loads(plan, SCALE)
        for turn in range(3)
        for text in prompts(load, turn)
    ]
    assert len(set(first)) == len(first)


def test_prompts_depend_on_the_seed_alone() -> None:
    one, same = (bench.loads(PLAN, SCALE)[0].asks(1) for _ in range(2))
    other = bench.loads(msgspec.structs.replace(PLAN, seed=2), SCALE)[0].asks(1)
    assert one == same and one != other


def test_the_shared_prefix_is_shared_within_a_round_only() -> None:
    shared = next(load for load in bench.loads(PLAN, SCALE) if load.name.startswith("shared"))
    begin = len(" ".join(prompts(shared, 0)[0].split()[:45]))  # (100 - 10) / 2 words
    assert len({text[:begin] for text in prompts(shared, 0)}) == 1
    assert len(set(prompts(shared, 0))) == 16
    assert prompts(shared, 0)[0].split()[0] != prompts(shared, 1)[0].split()[0]


def test_long_prompts_stay_inside_the_context() -> None:
    mixed = bench.loads(PLAN, SCALE)[-1]
    lengths = {
        ask.label: len(text.split()) for ask, text in zip(mixed.asks(0), prompts(mixed, 0), strict=True)
    }
    assert lengths == {"short": 20, "long": 195}
    tight = bench.loads(msgspec.structs.replace(PLAN, context=200), SCALE)[-1]
    assert max(len(text.split()) for text in prompts(tight, 0)) == 83  # (200 - 8 - 16 - 10) / 2


def test_a_plan_that_cannot_fit_is_refused_with_what_to_lower() -> None:
    with pytest.raises(BadRequest, match=r"132 tokens.*context of 120.*--shared-tokens"):
        bench.loads(msgspec.structs.replace(PLAN, context=120), SCALE)


# -- how it counts ----------------------------------------------------------------------------------------------


def seen(
    asked: float, arrivals: list[float], label: str = "", cached: int = 0, error: str | None = None
) -> Sample:
    counted = ChatUsage(100, len(arrivals), PromptDetails(cached))
    return Sample(label, asked, arrivals, arrivals[-1] if arrivals else asked, counted, error)


def test_percentiles_are_interpolated() -> None:
    assert [bench.percentile([10, 20, 30, 40], share) for share in (0, 0.5, 0.95, 1)] == [
        10,
        25,
        pytest.approx(38.5),
        40,
    ]
    assert bench.percentile([7], 0.95) == 7
    assert bench.quantiles([]) is None


def test_figures_of_a_round() -> None:
    samples = [
        seen(0, [1.0, 1.1, 1.3], "short", cached=60),
        seen(0, [2.0, 2.1], "long"),
        seen(3, [], "short", error="queue_full"),
    ]
    got = bench.figures(Round(samples, seconds=4, cpu_seconds=0.2))
    assert (got.requests, got.errors) == (3, {"queue_full": 1})
    assert (got.tokens_per_second, got.requests_per_second, got.client_cpu_share) == (1.25, 0.5, 0.05)
    assert (got.prompt_tokens, got.cached_tokens, got.completion_tokens) == (200, 60, 5)
    assert got.ttft_ms is not None and (got.ttft_ms.p50, got.ttft_ms.max) == (1500, 2000)
    assert got.gap_ms is not None and (got.gap_ms.p50, got.gap_ms.max) == (100, 200)
    short = bench.figures(Round(samples, 4, 0.2), "short")
    assert (short.requests, short.completion_tokens, short.ttft_ms) == (2, 3, bench.quantiles([1.0]))


def test_at_once_counts_answers_that_stream_together() -> None:
    apart = [seen(0, [1, 2]), seen(0, [3, 4]), seen(0, [5, 6])]
    together = [seen(0, [1, 5]), seen(0, [2, 6]), seen(0, [3, 7]), seen(0, [])]
    assert bench.at_once(apart) == 1 and bench.at_once(together) == 3


def one_round(tokens_per_second: float, cached: int = 0, cpu: float = 0.1) -> Figures:
    return Figures(
        2, {"timeout": 1}, tokens_per_second, 1, None, bench.quantiles([0.1]), 2, 100, cached, 10, cpu
    )


def test_rounds_become_medians_with_their_spread() -> None:
    got = bench.row("r", 2, [one_round(speed) for speed in (10, 30, 20)])
    assert got.summary["tokens_per_second"] == Spread(20, 10, 30)
    assert "ttft_p50" not in got.summary and got.summary["gap_max"] == Spread(100, 100, 100)
    assert got.errors == {"timeout": 3}


def test_what_spoils_the_figures_is_said() -> None:
    rows = [
        bench.row("16 clients", 16, [one_round(1, cached=90)]),
        bench.row("shared, 8 clients", 8, [one_round(1, cached=90)]),
        bench.row("1 client", 1, [one_round(1, cpu=0.8)]),
    ]
    said = bench.warnings(rows)
    assert len(said) == 2 and "--seed" in said[0] and "80%" in said[1]


# -- asking -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with random_server(tmp_path_factory.mktemp("nonsense")) as server:
        yield server


async def test_a_round_counts_every_request_once_and_failures_by_code(stub: Stub) -> None:
    stub.replies[CHAT] = [
        answer("a", "b", cached=2),
        refusal(429, "queue_full", "full"),
        Reply([piece("a")], headers=HEAD, cut=True),
        answer("a", "b", "c"),
    ]
    load = bench.loads(msgspec.structs.replace(PLAN, clients=(3,), groups=("clients",), requests=6), SCALE)[0]
    got = bench.figures(await bench.run_round(stub.address, load.asks(0), 3, 5))
    assert got.requests == 6 and got.errors == {"queue_full": 1, "server_error": 1}
    assert got.completion_tokens == 2 + 3 * 3 and got.cached_tokens == 2
    assert sorted(seen.body for seen in stub.seen) == sorted(ask.body for ask in load.asks(0))
    assert (
        1 <= len({seen.port for seen in stub.seen}) <= 4
    )  # three clients, one of which had to connect again


async def test_an_answer_that_takes_too_long_is_counted_and_cut(stub: Stub) -> None:
    endless = Reply([piece("la")], headers=HEAD, endless=True)
    stub.replies[CHAT] = [endless]
    load = bench.loads(msgspec.structs.replace(PLAN, clients=(1,), groups=("clients",), requests=1), SCALE)[0]
    got = bench.figures(await bench.run_round(stub.address, load.asks(0), 1, 0.05))
    assert got.errors == {"client_timeout": 1}
    assert await asyncio.to_thread(endless.left.wait, 5)


async def test_a_server_that_counts_no_tokens_cannot_be_measured(stub: Stub) -> None:
    stub.replies[CHAT] = [Reply([piece("a"), DONE], headers=HEAD)]
    with pytest.raises(BadRequest, match="usage"):
        await bench.probe(stub.address, PLAN)


async def test_what_the_server_refuses_at_the_start_is_raised(stub: Stub) -> None:
    stub.replies[CHAT] = [refusal(404, "model_not_found", "no such model")]
    with pytest.raises(ModelNotFound, match="no such model"):
        await bench.bench(stub.address, PLAN, lambda _: None)


# -- a real server ----------------------------------------------------------------------------------------------


async def test_a_real_server_is_measured(nonsense: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        model=nonsense.model,
        clients=(1, 4),
        requests=4,
        prompt_tokens=60,
        max_tokens=8,
        shared_tokens=90,
        rounds=2,
        seed=Random().randrange(10**9),
    )
    told: list[str] = []
    report = await bench.bench(locate(nonsense.home / "serve.json"), plan, told.append)
    names = [
        "1 client",
        "4 clients",
        "shared, 8 clients",
        "mixed, 8 clients",
        "  short prompts",
        "  long prompts",
    ]
    assert [row.name for row in report.rows] == names
    assert len(told) == 8 and told[0] == "round 1 of 2: 1 client"
    for row in report.rows:
        assert row.errors == {} and row.summary["tokens_per_second"].low > 0, row
        assert all(figure.completion_tokens <= 8 * figure.requests for figure in row.rounds)
        assert row.summary["ttft_p50"].low > 0
    one, shared = report.rows[0], report.rows[2]
    assert all(30 < figure.prompt_tokens / figure.requests < 90 for figure in one.rounds)
    assert all(figure.cached_tokens > figure.prompt_tokens / 4 for figure in shared.rounds)

    figures_room.show(report)
    printed = capsys.readouterr().out
    assert all(name.strip() in printed for name in names) and plan.model in printed
    again = msgspec.json.decode(figures_room.as_json(report), type=bench.Report)
    assert again == report
