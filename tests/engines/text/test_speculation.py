"""Speculative decoding on real models: the same answers as without it, in fewer steps, and nothing left behind."""

import itertools
import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from oxlo_local.calls import Constraint, Sampling
from oxlo_local.engines.text import guess
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.text.guess import Costs
from oxlo_local.engines.text.speculation import Speculation
from oxlo_local.random_model import Architecture
from tests.conftest import demo_model
from tests.engines.text.conftest import Answers, MakeEngine, drive
from tests.engines.text.test_engine import assert_same, call, tokens

CUTTABLE: list[Architecture] = ["llama", "gemma2"]


@dataclass(frozen=True)
class Teller:
    """A model that writes as it was taught. What it says behind `opening` repeats; behind `asked` it need not."""

    path: Path
    asked: str
    opening: str


@pytest.fixture(params=["oxlo-demo", "stories260K"])
def teller(request: pytest.FixtureRequest) -> Teller:
    if request.param == "oxlo-demo":
        asked = "<|im_start|>user\nShow me Python code for the OpenAI SDK<|im_end|>\n<|im_start|>assistant\n"
        return Teller(demo_model(), asked, f"{asked}{CODE}<|im_end|>\n{asked}")
    path = Path(request.getfixturevalue("shared")) / "models" / "stories260K.gguf"
    opening = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    return Teller(path, opening, opening)


CODE = """\
```python
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any")
answer = client.chat.completions.create(model="oxlo-demo", messages=[{"role": "user", "content": "Hello"}])
print(answer.choices[0].message.content)
```"""


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


def test_a_trained_model_tells_the_same_story_in_fewer_steps(make_engine: MakeEngine, teller: Teller) -> None:
    ask = call("s", teller.opening, 200)
    plain, guessing = pair(make_engine, architecture=teller.path, ctx=512)
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
    make_engine: MakeEngine, teller: Teller, sampling: Sampling
) -> None:
    ask = call("s", teller.opening, 120, sampling=sampling, n=3)
    plain, guessing = pair(make_engine, architecture=teller.path, ctx=512)
    assert drive(plain, [ask]).texts == drive(guessing, [ask]).texts
    assert guessing.gauges().accepted_tokens > 0
    assert_idle(guessing)


def test_scores_are_the_same_with_guesses(make_engine: MakeEngine, teller: Teller) -> None:
    ask = call("s", teller.opening, 80, echo=True)
    plain, guessing = pair(make_engine, architecture=teller.path, ctx=512)
    without, with_ = drive(plain, [ask]).logprobs["s", 0], drive(guessing, [ask]).logprobs["s", 0]
    assert [score.bytes for score in without] == [score.bytes for score in with_]
    assert all(
        a.logprob == pytest.approx(b.logprob, abs=1e-3)
        for a, b in zip(without, with_, strict=True)
        if a.logprob
    )
    assert guessing.gauges().accepted_tokens > 0


# -- where an answer ends -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """Two engines, what both are asked, and what both say."""

    plain: TextEngine
    guessing: TextEngine
    asked: str
    opening: str
    whole: str


@pytest.fixture
def story(make_engine: MakeEngine, teller: Teller) -> Story:
    plain, guessing = pair(make_engine, architecture=teller.path, ctx=512)
    whole = drive(plain, [call("whole", teller.asked, 150)]).texts["whole", 0]
    return Story(plain, guessing, teller.asked, teller.opening, whole)


def test_a_stop_string_ends_an_answer_within_a_guess(story: Story) -> None:
    plain, guessing, whole = story.plain, story.guessing, story.whole
    for begin in range(20, len(whole) - 8, 17):
        ask = call(f"stop{begin}", story.opening, 150, stop=[whole[begin : begin + 6]])
        without, with_ = drive(plain, [ask]), drive(guessing, [ask])
        assert without.texts == with_.texts
        assert without.done(ask.id).usage.completion_tokens == with_.done(ask.id).usage.completion_tokens
    assert guessing.gauges().accepted_tokens > 0
    assert_idle(guessing)


def test_the_limit_is_the_limit(story: Story) -> None:
    plain, guessing = story.plain, story.guessing
    for most in [*range(1, 12), 45, 46, 47]:
        ask = call(f"max{most}", story.opening, most)
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


def test_a_conversation_goes_on_from_what_was_guessed(make_engine: MakeEngine, teller: Teller) -> None:
    plain, guessing = pair(make_engine, architecture=teller.path, ctx=512)
    first = drive(guessing, [call("one", teller.opening, 90)]).texts["one", 0]
    ask = call("two", teller.opening + first + " Then", 60)
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


def test_what_is_guessed_in_vain_again_and_again_is_given_up(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every two of eight letters stand side by side in the prompt, so all that is drawn looks like a copy."""
    letters = range(20, 28)
    prompt = [token for pair in itertools.product(letters, letters) for token in pair]
    bias = dict.fromkeys(letters, 100.0)

    def guesses(stake: float) -> int:
        monkeypatch.setattr(guess, "STAKE", stake)
        engine = make_engine(speculation="lookup")
        costs = Costs([(1, 1.0), (2, 1.5), (4, 9.0)], together=2)
        engine._speculation = speculation = Speculation(engine._llama, costs, fixed=None, rows=20)
        for seed in range(30):
            drawn = Sampling(temperature=1.0, seed=seed, logit_bias=bias)
            drive(engine, [call("v", prompt, 20, sampling=drawn)])
        return speculation.proposed

    assert guesses(math.inf) >= 30, "each text makes its own experience"
    assert guesses(4.0) < 20


def test_unasked_only_a_request_alone_is_guessed_for(make_engine: MakeEngine) -> None:
    engine = make_engine(speculation="lookup")
    costs = Costs([(1, 1.0), (2, 1.0), (4, 1.0), (8, 1.0), (16, 1.0), (32, 1.0)], together=2)
    engine._speculation = Speculation(engine._llama, costs, fixed=None, rows=100, only_alone=True)
    drive(engine, [call(id, looping(40, seed=1), 20) for id in ("a", "b")])
    assert engine.gauges().guessed_tokens == 0
    drive(engine, [call("alone", looping(40, seed=1), 20)])
    assert engine.gauges().guessed_tokens > 0


def test_unasked_it_is_where_it_gains(make_engine: MakeEngine) -> None:
    """A tiny model's token takes less time than a guess."""
    engine = make_engine(speculation=None)
    assert engine.facts.options is not None and engine.facts.options.speculation == "none"


# -- predictions ----------------------------------------------------------------------------------------------------


def test_a_prediction_that_comes_true_is_counted(story: Story) -> None:
    plain, guessing, whole = story.plain, story.guessing, story.whole
    ask = call("p", story.asked, 150, prediction=whole)
    answers = drive(guessing, [ask])
    assert answers.texts["p", 0] == whole
    usage, gauges = answers.done("p").usage, guessing.gauges()
    assert usage.accepted_prediction > 60
    assert usage.accepted_prediction <= gauges.accepted_tokens
    assert usage.accepted_prediction + usage.rejected_prediction <= gauges.guessed_tokens
    assert gauges.steps < plain.gauges().steps / 2
    without = drive(plain, [ask]).done("p").usage
    assert without.accepted_prediction == without.rejected_prediction == 0


def test_a_prediction_with_a_word_changed_is_found_again(story: Story) -> None:
    guessing, whole = story.guessing, story.whole
    words = whole.split(" ")
    words[len(words) // 2] = "elephant"
    answers = drive(guessing, [call("p", story.asked, 150, prediction=" ".join(words))])
    assert answers.texts["p", 0] == whole
    usage = answers.done("p").usage
    assert usage.accepted_prediction >= 50 and usage.rejected_prediction > 0


def test_a_prediction_of_something_else_changes_nothing(story: Story) -> None:
    guessing, whole = story.guessing, story.whole
    answers = drive(guessing, [call("p", story.asked, 150, prediction="ZZZ " * 3000)])
    assert answers.texts["p", 0] == whole
    assert answers.done("p").usage.accepted_prediction == 0
