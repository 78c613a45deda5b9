"""A model that drafts: right or wrong, the answers stay the same; its cache keeps step; a wrong one is refused."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from oxlo_local.calls import Sampling, TextOptions
from oxlo_local.engines.text.draft import Draft
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.weights import LoadError
from oxlo_local.random_model import Architecture, Shape, write
from tests.conftest import demo_model
from tests.engines.text.conftest import Answers, MakeEngine, drive
from tests.engines.text.test_engine import assert_same, call, tokens
from tests.engines.text.test_speculation import CUTTABLE, assert_idle


@pytest.fixture(scope="session")
def friend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same vocabulary that hardly ever agrees."""
    path = tmp_path_factory.mktemp("drafts") / "friend.gguf"
    write(path, shape=Shape(d=32, layers=1), seed=9)
    return path


@pytest.mark.parametrize("kind", CUTTABLE)
@pytest.mark.parametrize("layout", ["streams", "unified"])
@pytest.mark.parametrize("twin", [True, False], ids=["twin", "friend"])
def test_greedy_is_the_same_with_drafts(
    make_engine: MakeEngine,
    model_path: Callable[[Architecture], Path],
    friend: Path,
    kind: Architecture,
    layout: str,
    twin: bool,
) -> None:
    """A model that drafts for itself is always right but for rounding; a random one is often wrong."""
    calls = [call(f"c{i}", tokens(5 + i, seed=i), 20) for i in range(4)]
    plain = make_engine(kind, kv_layout=layout)
    drafted = make_engine(kind, kv_layout=layout, draft=str(model_path(kind) if twin else friend), guesses=3)
    without, with_ = drive(plain, calls), drive(drafted, calls)
    for one in calls:
        assert_same(without, with_, (one.id, 0))
    gauges = drafted.gauges()
    assert gauges.guessed_tokens > 0
    if twin:
        assert gauges.accepted_tokens > 0.9 * gauges.guessed_tokens
        assert gauges.steps < plain.gauges().steps / 2
    else:
        assert gauges.accepted_tokens < gauges.guessed_tokens
    assert_idle(drafted)


def test_a_draft_follows_prefixes_cuts_and_long_prompts(
    make_engine: MakeEngine, model_path: Callable[[Architecture], Path]
) -> None:
    engine = make_engine(draft=str(model_path("llama")), guesses=4)
    plain = make_engine()
    head = tokens(150, seed=1)  # several chunks
    prompts = {
        "first": head,
        "goes_on": [*head, *tokens(40, seed=2)],
        "parts": [*head[:100], *tokens(30, seed=3)],
        "short": tokens(6, seed=4),
        "again": head,
    }
    for id, prompt in prompts.items():
        before = engine.gauges()
        assert_same(drive(plain, [call(id, prompt, 40)]), drive(engine, [call(id, prompt, 40)]), (id, 0))
        guessed = engine.gauges().guessed_tokens - before.guessed_tokens
        right = engine.gauges().accepted_tokens - before.accepted_tokens
        assert 0.9 * guessed < right, "its cache is in step"
    assert_idle(engine)


def test_many_sequences_draft_together_and_leave_at_random(
    make_engine: MakeEngine, model_path: Callable[[Architecture], Path]
) -> None:
    engine = make_engine(draft=str(model_path("llama")), guesses=3, kv_layout="unified", ctx=256)
    chance = random.Random(5)
    calls = [call(f"c{i}", tokens(chance.randrange(5, 60), i), chance.randrange(1, 40)) for i in range(24)]

    def leave(step: int, answers: Answers) -> None:
        open_calls = [one.id for one in calls if one.id not in answers.ends]
        if open_calls and chance.random() < 0.2:
            engine.cancel(chance.choice(open_calls))

    answers = drive(engine, calls, each_step=leave)
    assert len(answers.ends) == 24
    assert engine.gauges().accepted_tokens > 0
    assert_idle(engine)


def test_a_seed_draws_the_same_text_with_drafts(make_engine: MakeEngine) -> None:
    trained = demo_model()
    asked = "<|im_start|>user\nWhat is oxlo?<|im_end|>\n<|im_start|>assistant\n"
    ask = call("s", asked, 100, sampling=Sampling(temperature=0.5, seed=3), n=2)
    plain = make_engine(trained, ctx=512)
    drafted = make_engine(trained, ctx=512, draft=str(trained), guesses=4)
    assert drive(plain, [ask]).texts == drive(drafted, [ask]).texts
    assert drafted.gauges().accepted_tokens > 0


def test_a_draft_that_cannot_be_one_is_refused(
    make_engine: MakeEngine, model_path: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    write(tmp_path / "larger.gguf", shape=Shape(vocab=1024))
    write(tmp_path / "padded.gguf", shape=Shape(vocab=520))
    with pytest.raises(LoadError, match="vocabulary has 1,024 tokens, and not 512"):
        make_engine(draft=str(tmp_path / "larger.gguf"))
    with pytest.raises(LoadError, match="memory cannot be cut"):
        make_engine(draft=str(model_path("mamba")))
    with pytest.raises(LoadError, match="needs the option draft"):
        make_engine(speculation="draft")
    with pytest.raises(LoadError, match="cannot load"):
        make_engine(draft=str(tmp_path / "nothing.gguf"))
    assert drive(make_engine(draft=str(tmp_path / "padded.gguf"), guesses=3), [call("c", tokens(9, 1))]).done(
        "c"
    )


def test_a_draft_of_another_family_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    """As many tokens, which mean something else."""
    write(tmp_path / "other.gguf", shape=Shape(vocab=3072))
    with pytest.raises(LoadError, match="take a smaller model of the same family"):
        make_engine(demo_model(), draft=str(tmp_path / "other.gguf"), ctx=512)


def test_generation_ends_where_the_context_ends(
    make_engine: MakeEngine, model_path: Callable[[Architecture], Path]
) -> None:
    engine = make_engine(draft=str(model_path("llama")), guesses=30, ctx=256)
    usage = drive(engine, [call("all", tokens(100, seed=1), 1000)]).done("all").usage
    assert usage.prompt_tokens + usage.completion_tokens <= 256
    assert engine.gauges().guessed_tokens > 0
    assert_idle(engine)


def test_its_cache_keeps_step(model_path: Callable[[Architecture], Path]) -> None:
    """What it says does not depend on what it held before: longer, shorter, parted, or another slot's."""
    options = TextOptions(ctx=256, parallel=3, threads=1, chunk=32, kv_type="f32", flash_attention=False)
    target = Llama(model_path("llama"), options, lambda _: None)
    used = Draft(model_path("llama"), target, together=2)
    head = tokens(60, seed=1)
    asked = [
        {0: head[:20]},
        {0: [*head[:20], *tokens(3, seed=2)]},
        {0: head[:15]},
        {0: [*head[:10], *tokens(9, seed=3)], 1: head[:25]},
        {2: [*head[:24], *tokens(5, seed=4)], 1: head[:30]},
    ]
    try:
        for known in asked:
            fresh = Draft(model_path("llama"), target, together=2)
            assert used.guess(known, 4) == fresh.guess(known, 4) != {}
            fresh.close()
        assert used.guess({0: tokens(60, seed=5)}, 4) == {}, "a long text takes its time"
        assert list(used.guess({0: tokens(60, seed=5)}, 4)) == [0]
    finally:
        used.close()
        target.close()
