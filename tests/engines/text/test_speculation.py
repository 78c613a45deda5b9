"""Speculative decoding on real models: the same answers as without it, in fewer steps, and nothing left behind."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from oxlo_local.calls import Constraint, Sampling
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.weights import LoadError
from oxlo_local.random_model import Architecture, Shape, write
from tests.engines.text.conftest import Answers, MakeEngine, drive
from tests.engines.text.test_engine import assert_same, call, tokens

CUTTABLE: list[Architecture] = ["llama", "gemma2"]


def looping(count: int, seed: int) -> list[int]:
    """A prompt that says the same thing again and again, as a table or a log does."""
    return (tokens(9, seed) * count)[:count]


def pair(make_engine: MakeEngine, **options: object) -> tuple[TextEngine, TextEngine]:
    """An engine that does not speculate, and one that guesses whenever something repeats."""
    plain = make_engine(**options, speculation="none")
    return plain, make_engine(**options, speculation="lookup", guesses=5)


def assert_idle(engine: TextEngine) -> None:
    gauges = engine.gauges()
    assert gauges.running == gauges.waiting == gauges.kv_strayed == 0
    assert 0 <= gauges.accepted_tokens <= gauges.guessed_tokens


# -- the same answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CUTTABLE)
@pytest.mark.parametrize("layout", ["streams", "unified"])
def test_greedy_is_the_same_with_guesses(make_engine: MakeEngine, kind: Architecture, layout: str) -> None:
    calls = [call(f"c{i}", looping(15 + i, seed=i), 60) for i in range(3)]
    plain, guessing = pair(make_engine, architecture=kind, kv_layout=layout)
    without, with_ = drive(plain, calls), drive(guessing, calls)
    for one in calls:
        assert_same(without, with_, (one.id, 0))
        assert without.done(one.id).usage.completion_tokens == with_.done(one.id).usage.completion_tokens
    assert guessing.gauges().guessed_tokens > 0
    assert_idle(guessing)


def test_a_trained_model_tells_the_same_story_in_fewer_steps(make_engine: MakeEngine, shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    opening = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ask = call("s", opening, 200)
    plain, guessing = pair(make_engine, architecture=path, ctx=512)
    without, with_ = drive(plain, [ask]), drive(guessing, [ask])
    assert without.texts == with_.texts
    gauges = guessing.gauges()
    assert gauges.accepted_tokens > 0
    # Every step draws one token, and as many more as were guessed rightly.
    assert gauges.steps == plain.gauges().steps - gauges.accepted_tokens
    assert gauges.generated_tokens == plain.gauges().generated_tokens
    assert gauges.prefill_tokens == plain.gauges().prefill_tokens
    assert_idle(guessing)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, seed=3),
        Sampling(temperature=0.7, top_k=20, min_p=0.05, seed=4),
        Sampling(temperature=0.7, repeat_penalty=1.05, seed=5),
        Sampling(temperature=0.0, presence_penalty=0.2, frequency_penalty=0.1),
        Sampling(temperature=0.6, mirostat=2, mirostat_tau=3.0, seed=6),
        Sampling(temperature=0.6, logit_bias={100: 3.0}, seed=7),
    ],
    ids=["temperature", "filters", "repeat", "penalties", "mirostat", "bias"],
)
def test_a_seed_draws_the_same_text_with_guesses(
    make_engine: MakeEngine, shared: Path, sampling: Sampling
) -> None:
    path = shared / "models" / "stories260K.gguf"
    ask = call("s", "Lily and Tom, Lily and Tom, Lily and Tom,", 120, sampling=sampling, n=3)
    plain, guessing = pair(make_engine, architecture=path, ctx=512)
    assert drive(plain, [ask]).texts == drive(guessing, [ask]).texts
    assert guessing.gauges().accepted_tokens > 0
    assert_idle(guessing)


def test_scores_are_the_same_with_guesses(make_engine: MakeEngine, shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    ask = call("s", "Lily and Tom, Lily and Tom, Lily and Tom,", 80, echo=True)
    plain, guessing = pair(make_engine, architecture=path, ctx=512)
    without, with_ = drive(plain, [ask]).logprobs["s", 0], drive(guessing, [ask]).logprobs["s", 0]
    assert [score.bytes for score in without] == [score.bytes for score in with_]
    assert all(
        a.logprob == pytest.approx(b.logprob, abs=1e-3)
        for a, b in zip(without, with_, strict=True)
        if a.logprob
    )
    assert guessing.gauges().accepted_tokens > 0


# -- where an answer ends -----------------------------------------------------------------------------------------


@pytest.fixture
def story(make_engine: MakeEngine, shared: Path) -> tuple[TextEngine, TextEngine, str]:
    """Two engines, and what both go on to say after `opening` (below)."""
    plain, guessing = pair(make_engine, architecture=shared / "models" / "stories260K.gguf", ctx=512)
    return plain, guessing, drive(plain, [call("whole", OPENING, 150)]).texts["whole", 0]


OPENING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def test_a_stop_string_ends_an_answer_within_a_guess(story: tuple[TextEngine, TextEngine, str]) -> None:
    plain, guessing, whole = story
    for begin in range(20, len(whole) - 8, 17):
        ask = call(f"stop{begin}", OPENING, 150, stop=[whole[begin : begin + 6]])
        without, with_ = drive(plain, [ask]), drive(guessing, [ask])
        assert without.texts == with_.texts
        assert without.done(ask.id).usage.completion_tokens == with_.done(ask.id).usage.completion_tokens
    assert guessing.gauges().accepted_tokens > 0
    assert_idle(guessing)


def test_the_limit_is_the_limit(story: tuple[TextEngine, TextEngine, str]) -> None:
    plain, guessing, _ = story
    for most in [*range(1, 12), 45, 46, 47]:
        ask = call(f"max{most}", OPENING, most)
        without, with_ = drive(plain, [ask]), drive(guessing, [ask])
        assert without.texts == with_.texts
        assert with_.done(ask.id).usage.completion_tokens == most
    assert_idle(guessing)


def test_generation_ends_where_the_context_ends(make_engine: MakeEngine) -> None:
    _, guessing = pair(make_engine, ctx=256)
    ask = call("all", looping(200, seed=1), max_tokens=1000)
    usage = drive(guessing, [ask]).done("all").usage
    assert usage.prompt_tokens + usage.completion_tokens <= 256
    assert_idle(guessing)


def test_a_constraint_holds_in_guesses(make_engine: MakeEngine) -> None:
    constraint = Constraint("regex", r"(ab){10,30}c(ab){5}", "guided_regex")
    ask = call("g", "abababababababab", 120, constraint=constraint)
    plain, guessing = pair(make_engine)
    without, with_ = drive(plain, [ask]), drive(guessing, [ask])
    assert_same(without, with_, ("g", 0))
    assert set(with_.texts["g", 0]) <= set("abc")
    assert guessing.gauges().accepted_tokens > 0
    assert_idle(guessing)


# -- what the cache holds afterwards --------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_what_was_guessed(make_engine: MakeEngine, shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    plain, guessing = pair(make_engine, architecture=path, ctx=512)
    first = drive(guessing, [call("one", OPENING, 90)]).texts["one", 0]
    ask = call("two", OPENING + first + " Then", 60)
    warm, fresh = drive(guessing, [ask]), drive(plain, [ask])
    assert warm.texts == fresh.texts
    assert warm.done("two").usage.cached_tokens > 60
    assert_idle(guessing)


def test_a_full_cache_costs_guesses_before_it_costs_sequences(make_engine: MakeEngine) -> None:
    calls = [call(f"c{i}", looping(20, seed=i), 100) for i in range(4)]
    plain, guessing = pair(make_engine, kv_layout="unified", ctx=256, parallel=4)
    without, with_ = drive(plain, calls), drive(guessing, calls)
    assert plain.gauges().preemptions and guessing.gauges().preemptions
    for one in calls:
        assert_same(without, with_, (one.id, 0))
    assert_idle(guessing)


def test_leaving_at_random_leaks_nothing(make_engine: MakeEngine) -> None:
    _, engine = pair(make_engine, kv_layout="unified", ctx=256)
    chance = random.Random(4)
    calls = [call(f"c{i}", looping(chance.randrange(5, 60), i), chance.randrange(1, 50)) for i in range(30)]

    def leave(step: int, answers: Answers) -> None:
        open_calls = [one.id for one in calls if one.id not in answers.ends]
        if open_calls and chance.random() < 0.2:
            engine.cancel(chance.choice(open_calls))

    answers = drive(engine, calls, each_step=leave)
    assert len(answers.ends) == 30
    assert engine.gauges().guessed_tokens > 0
    assert_idle(engine)


# -- who speculates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_what_cannot_be_cut_says_so_and_does_not_guess(
    make_engine: MakeEngine, kind: Architecture, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, guessing = pair(make_engine, architecture=kind)
    assert "speculation: none" in capfd.readouterr().err
    assert guessing.facts.options is not None and guessing.facts.options.speculation == "none"
    ask = call("c", looping(40, seed=1), 40)
    assert_same(drive(plain, [ask]), drive(guessing, [ask]), ("c", 0))
    assert guessing.gauges().guessed_tokens == 0


def test_a_sliding_window_guesses_only_within_it(
    make_engine: MakeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    _, engine = pair(make_engine, architecture="gemma2")  # its window: 32 tokens
    assert "first 32 tokens" in capfd.readouterr().err
    drive(engine, [call("far", looping(40, seed=1), 40)])
    assert engine.gauges().guessed_tokens == 0
    drive(engine, [call("near", looping(20, seed=1), 12)])
    assert engine.gauges().guessed_tokens > 0


def test_it_is_measured_what_pays(make_engine: MakeEngine) -> None:
    engine = make_engine(speculation="lookup")
    answers = drive(engine, [call("c", looping(60, seed=1), 60)])
    assert answers.done("c").usage.completion_tokens == 60
    assert_idle(engine)


def test_unasked_it_is_where_it_gains(make_engine: MakeEngine) -> None:
    """A tiny model's token takes less time than a guess."""
    engine = make_engine(speculation=None)
    assert engine.facts.options is not None and engine.facts.options.speculation == "none"


# -- predictions ----------------------------------------------------------------------------------------------------


def test_a_prediction_that_comes_true_is_counted(story: tuple[TextEngine, TextEngine, str]) -> None:
    plain, guessing, whole = story
    ask = call("p", OPENING, 150, prediction=whole)
    answers = drive(guessing, [ask])
    assert answers.texts["p", 0] == whole
    usage, gauges = answers.done("p").usage, guessing.gauges()
    assert usage.accepted_prediction > 60
    assert usage.accepted_prediction <= gauges.accepted_tokens
    assert usage.accepted_prediction + usage.rejected_prediction <= gauges.guessed_tokens
    assert gauges.steps < plain.gauges().steps / 2
    without = drive(plain, [ask]).done("p").usage
    assert without.accepted_prediction == without.rejected_prediction == 0


def test_a_prediction_with_a_word_changed_is_found_again(story: tuple[TextEngine, TextEngine, str]) -> None:
    _, guessing, whole = story
    words = whole.split(" ")
    words[len(words) // 2] = "elephant"
    answers = drive(guessing, [call("p", OPENING, 150, prediction=" ".join(words))])
    assert answers.texts["p", 0] == whole
    usage = answers.done("p").usage
    assert usage.accepted_prediction > 60 and usage.rejected_prediction > 0


def test_a_prediction_of_something_else_changes_nothing(story: tuple[TextEngine, TextEngine, str]) -> None:
    _, guessing, whole = story
    answers = drive(guessing, [call("p", OPENING, 150, prediction="ZZZ " * 3000)])
    assert answers.texts["p", 0] == whole
    assert answers.done("p").usage.accepted_prediction == 0


# -- drafts ---------------------------------------------------------------------------------------------------------


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


def test_a_seed_draws_the_same_text_with_drafts(make_engine: MakeEngine, shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    ask = call("s", OPENING, 100, sampling=Sampling(temperature=0.5, seed=3), n=2)
    plain = make_engine(path, ctx=512)
    drafted = make_engine(path, ctx=512, draft=str(path), guesses=4)
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


def test_a_draft_of_another_family_is_refused(make_engine: MakeEngine, shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    with pytest.raises(LoadError, match="take a smaller model of the same family"):
        make_engine(path, draft=str(other_words(tmp_path)), ctx=512)


def other_words(folder: Path) -> Path:
    """A model with as many tokens as stories260K, which mean something else."""
    write(folder / "other.gguf", shape=Shape(vocab=512))
    return folder / "other.gguf"
