"""Continuous batching on real models: same answers in company, faults that stay alone, nothing leaked."""

import random
from pathlib import Path

import pytest

from oxlo_local.calls import Done, Failed, Finished, Message, Sampling, Started, Text, TextCall
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.engines.text.intake import INLINE
from oxlo_local.engines.text.reading import Reader
from oxlo_local.random_model import Architecture
from tests.engines.text.conftest import Answers, MakeEngine, drive

GREEDY = Sampling(temperature=0)
# ln(probability) in f32. A batch of another shape rounds otherwise: test_llama measures by how much in
# libllama's own batched run. A cache that is off by one token differs by 0.1 and more.
CLOSE = 1e-3
BAN_ALL = dict.fromkeys(range(512), -100.0)
KINDS: list[Architecture] = ["llama", "gemma2", "mamba", "jamba"]


def tokens(count: int, seed: int) -> list[int]:
    """A prompt of `count` token ids that are plain text in every model of random_model."""
    return random.Random(seed).choices(range(10, 400), k=count)


def call(id: str, prompt: str | list[int], max_tokens: int = 12, **more: object) -> TextCall:
    fields: dict[str, object] = {"sampling": GREEDY, "logprobs": 2} | more
    return TextCall(id, prompts=[prompt], max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def assert_same(
    one: Answers, other: Answers, key: tuple[str, int], other_key: tuple[str, int] | None = None
) -> None:
    """Equal tokens with equal probabilities; where they part, the two candidates were a tie but for rounding."""
    left, right = one.logprobs[key], other.logprobs[other_key or key]
    for a, b in zip(left, right, strict=False):
        assert a.logprob is not None and b.logprob is not None
        if a.bytes != b.bytes:
            assert abs(a.top[0].logprob - a.top[1].logprob) < CLOSE, "parted without a tie"
            return
        assert abs(a.logprob - b.logprob) < CLOSE
    assert len(left) == len(right)


# -- the same answer, whatever the company ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["streams", "unified"])
def test_greedy_is_the_same_alone_and_in_a_batch_of_16(
    make_engine: MakeEngine, kind: Architecture, layout: str
) -> None:
    prompts = {f"p{i}": tokens(20 + 7 * i, seed=i) for i in range(16)}
    alone = Answers()
    engine = make_engine(kind, parallel=1, ctx=4096)
    for id, prompt in prompts.items():
        part = drive(engine, [call(id, prompt)])
        alone.logprobs |= part.logprobs
    company = drive(
        make_engine(kind, parallel=16, ctx=4096 if layout == "unified" else 512, kv_layout=layout),
        [call(id, prompt) for id, prompt in prompts.items()],
    )
    for id in prompts:
        assert_same(alone, company, (id, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["streams", "unified"])
def test_a_reused_prefix_gives_what_a_fresh_computation_gives(
    make_engine: MakeEngine, kind: Architecture, layout: str
) -> None:
    head = tokens(150, seed=1)
    prompts = {
        "first": head,
        "goes_on": [*head, *tokens(40, seed=2)],
        "parts_late": [*head[:140], *tokens(30, seed=3)],
        "parts_early": [*head[:60], *tokens(30, seed=4)],
        "again": head,
    }
    engine = make_engine(kind, kv_layout=layout)
    for id, prompt in prompts.items():
        warm = drive(engine, [call(id, prompt)])
        fresh = drive(make_engine(kind, kv_layout=layout), [call(id, prompt)])
        assert fresh.done(id).usage.cached_tokens == 0
        assert_same(fresh, warm, (id, 0))
    if kind == "llama":
        assert warm.done("again").usage.cached_tokens == len(head) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_owner_shares_its_prefix(make_engine: MakeEngine, kind: Architecture) -> None:
    head = tokens(300, seed=5)
    calls = [call(f"s{i}", [*head, *tokens(10, seed=50 + i)]) for i in range(4)]
    engine = make_engine(kind)
    together = drive(engine, calls)
    for one in calls:
        fresh = drive(make_engine(kind, parallel=1), [one])
        assert_same(fresh, together, (one.id, 0))
    # The head once, and each tail: nobody computed the head again.
    assert engine.gauges().prefill_tokens <= 300 + 4 * 10
    assert sorted(together.done(one.id).usage.cached_tokens for one in calls) == [0, 300, 300, 300]


@pytest.mark.parametrize("kind", KINDS)
def test_several_choices_share_one_prompt(make_engine: MakeEngine, kind: Architecture) -> None:
    prompt = tokens(120, seed=6)
    engine = make_engine(kind, parallel=8)
    answers = drive(engine, [call("n", prompt, n=6)])
    fresh = drive(make_engine(kind, parallel=1), [call("n", prompt)])
    for choice in range(6):
        assert_same(fresh, answers, ("n", 0), ("n", choice))
    assert answers.done("n").usage.prompt_tokens == 120
    assert answers.done("n").usage.completion_tokens == sum(len(score) for score in answers.logprobs.values())
    assert engine.gauges().prefill_tokens <= 120 + 6


def test_a_trained_model_tells_the_same_story(make_engine: MakeEngine, shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    opening = "Once upon a time, there was a"
    engine = make_engine(path, parallel=16, ctx=512)
    alone = drive(engine, [call("a", opening, 60)]).texts["a", 0]
    assert alone.startswith(" little girl named Lily.")
    company = drive(engine, [call(f"c{i}", opening, 60) for i in range(40)])
    assert set(company.texts.values()) == {alone}
    assert all(company.done(f"c{i}").usage.cached_tokens == 8 for i in range(40))


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_each_gives_what_a_common_graph_gives(make_engine: MakeEngine, kind: Architecture) -> None:
    calls = [call(f"g{i}", tokens(30 + 20 * i, seed=i), 20) for i in range(4)]
    together, apart = drive(make_engine(kind, together=2), calls), drive(make_engine(kind, together=8), calls)
    for one in calls:
        assert_same(together, apart, (one.id, 0))


def test_what_pays_is_measured_at_load(make_engine: MakeEngine) -> None:
    engine = make_engine(together=None)
    assert engine.facts.options is not None
    assert engine.facts.options.together in (2, 4, 8)
    assert_intact(engine)


# -- one's long prompt, another's next token ------------------------------------------------------------------------


def test_a_long_prompt_delays_nobody_by_more_than_a_chunk(make_engine: MakeEngine) -> None:
    engine = make_engine(ctx=2048, batch=128, chunk=32)
    answers = Answers()
    engine.submit(call("short", tokens(8, seed=1), 200, logprobs=None))
    answers.take(engine.step())
    engine.submit(call("long", tokens(1500, seed=2), 4, logprobs=None))
    before = engine.gauges()
    while "long" not in answers.ends and "short" not in answers.ends:
        answers.take(engine.step())
        now = engine.gauges()
        assert now.prefill_tokens - before.prefill_tokens <= 32
        assert now.generated_tokens > before.generated_tokens, "the short one got its token in every step"
        before = now
    assert "long" in answers.ends


def test_a_stream_of_short_prompts_does_not_keep_a_long_one_waiting(make_engine: MakeEngine) -> None:
    engine = make_engine(ctx=2048, batch=128, chunk=128, parallel=4)
    answers = Answers()
    engine.submit(call("long", tokens(1800, seed=1), 1, logprobs=None))
    read, waited = 0, 0
    for number in range(4000):
        engine.submit(call(f"short {number}", tokens(90, seed=number), 1, logprobs=None))
        answers.take(engine.step())
        long = next((each for each in engine._running.values() if each.request.call.id == "long"), None)
        if long is None or long.slot is None or "long" in answers.ends:
            break
        waited = waited + 1 if len(long.slot.tokens) == read else 0
        read = len(long.slot.tokens)
        assert waited <= 24, "a tile costs eleven times what it does at the beginning: a quarter of 22 steps"
    assert "long" in answers.ends
    assert sum(id.startswith("short") for id in answers.ends) > 200, "and they were answered meanwhile"


def test_new_requests_join_and_finished_ones_leave_between_steps(make_engine: MakeEngine) -> None:
    engine = make_engine(parallel=2)
    calls = [call(f"q{i}", tokens(5, seed=i), 3 + i) for i in range(6)]
    answers = drive(engine, calls)
    assert all(isinstance(end, Done) for end in answers.ends.values())
    assert len(answers.steps) < sum(3 + i for i in range(6)), "two at a time, not one after another"


def test_a_huge_prompt_is_read_on_the_side(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(call("big", "word " * 5_000_000))
    engine.submit(call("small", tokens(5, seed=1)))
    answers = Answers()
    while engine.busy():
        answers.take(engine.step())
    assert answers.failed("big").code == "context_length_exceeded"
    # OpenAI's words: LiteLLM, and what is built on it, knows the error by nothing else. It looks for them in a Python
    # repr, where the apostrophe stays as it is only if there are no quotation marks.
    message = answers.failed("big").message
    assert message.startswith("This model's maximum context length is 1024 tokens") and '"' not in message
    assert answers.done("small").usage.completion_tokens == 12


def test_a_huge_suffix_is_refused_on_the_side(make_engine: MakeEngine) -> None:
    huge = call("big", "x", suffix="word " * 5_000_000)
    assert Reader.size(huge) > INLINE
    failed = drive(make_engine(), [huge]).failed("big")
    assert (failed.code, failed.param) == ("context_length_exceeded", "suffix")
    assert "at least" in failed.message, "without tokenising it"


# -- the cache is full ----------------------------------------------------------------------------------------------


def test_a_full_cache_preempts_the_youngest_and_resumes_it(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_layout="unified", ctx=512, parallel=4)
    calls = [call(f"f{i}", tokens(100, seed=i), 100) for i in range(4)]
    answers = drive(engine, calls)
    assert engine.gauges().preemptions > 0
    for one in calls:
        assert_same(drive(make_engine(parallel=1), [one]), answers, (one.id, 0))


def test_an_idle_cache_gives_way_first(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_layout="unified", ctx=512, parallel=4)
    drive(engine, [call(f"old{i}", tokens(150, seed=i), 4) for i in range(3)])
    answers = drive(engine, [call("new", tokens(400, seed=9), 20)])
    assert answers.done("new").usage.completion_tokens == 20
    assert engine.gauges().preemptions == 0


def test_generation_ends_where_the_context_ends(make_engine: MakeEngine) -> None:
    answers = drive(make_engine(ctx=256), [call("c", tokens(250, seed=1), 100)])
    assert answers.done("c").usage.completion_tokens == 6
    assert Finished("c", 0, "length") in [event for step in answers.steps for event in step]


# -- faults stay alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_that_fails_fails_only_its_own_request(make_engine: MakeEngine, kind: Architecture) -> None:
    engine = make_engine(kind)
    calls = [call(f"x{i}", tokens(30, seed=i), 20) for i in range(4)]

    def poison(step: int, _: Answers) -> None:
        if step == 5:
            (victim,) = [s for s in engine._running.values() if s.request.call.id == "x2"]
            victim.tokens[-1] = 10**6  # libllama refuses the whole batch for it

    answers = drive(engine, calls, each_step=poison)
    assert answers.failed("x2").code == "server_error"
    for one in (calls[0], calls[1], calls[3]):
        assert_same(drive(make_engine(kind, parallel=1), [one]), answers, (one.id, 0))
    again = drive(engine, [call("after", tokens(30, seed=1))])
    assert again.done("after").usage.completion_tokens == 12


def test_a_cancelled_call_ends_within_one_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for i in range(6):  # more than slots, so one waits
        engine.submit(call(f"k{i}", tokens(10, seed=i), 500))
    engine.step()
    engine.cancel("k1")
    engine.cancel("k5")
    engine.cancel("unknown")
    events = engine.step()
    assert {e.id for e in events if isinstance(e, Failed) and e.code == "cancelled"} == {"k1", "k5"}
    assert engine.gauges().running == 4
    for i in (0, 2, 3, 4):
        engine.cancel(f"k{i}")
    engine.step()
    assert not engine.busy()


def test_leaving_at_random_leaks_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    dice = random.Random(7)
    ends: dict[str, int] = {}
    live: list[str] = []
    for i in range(200):
        engine.submit(
            call(f"r{i}", tokens(dice.randint(1, 200), seed=dice.randint(0, 9)), 40, n=dice.randint(1, 3))
        )
        live.append(f"r{i}")
        for _ in range(dice.randint(0, 4)):
            for event in engine.step():
                if isinstance(event, Done | Failed):
                    ends[event.id] = ends.get(event.id, 0) + 1
        if dice.random() < 0.7:
            engine.cancel(live.pop(dice.randrange(len(live))))
    while engine.busy():
        for event in engine.step():
            if isinstance(event, Done | Failed):
                ends[event.id] = ends.get(event.id, 0) + 1
    assert ends == {f"r{i}": 1 for i in range(200)}, "exactly one terminal event each"
    assert_intact(engine)


def assert_intact(engine: TextEngine) -> None:
    """Nothing runs, and the cache holds just the tokens that the slots say."""
    gauges = engine.gauges()
    assert (gauges.running, gauges.waiting) == (0, 0)
    for slot in engine._cache.slots:
        assert not slot.running
        assert engine._llama.computed(slot.index) == len(slot.tokens)


# -- what a request may ask ----------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_text(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = tokens(20, seed=1)
    sampling = Sampling(temperature=1.0, seed=42, top_p=0.95, top_k=40, min_p=0.01)
    first = drive(engine, [call("s", prompt, 30, sampling=sampling, n=2)])
    again = drive(engine, [call("s", prompt, 30, sampling=sampling, n=2)])
    assert first.texts == again.texts
    assert first.texts["s", 0] != first.texts["s", 1], "each choice has a seed of its own"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, typical_p=0.8),
        Sampling(temperature=1.2, mirostat=1),
        Sampling(temperature=1.2, mirostat=2, mirostat_tau=3.0),
        Sampling(temperature=0.5, top_k=5, top_p=0.5, min_p=0.1),
        Sampling(frequency_penalty=1.0, presence_penalty=1.0),
        Sampling(repeat_penalty=1.3, repeat_last_n=-1),
    ],
)
def test_every_way_of_sampling_draws(make_engine: MakeEngine, sampling: Sampling) -> None:
    answers = drive(make_engine(), [call("w", tokens(20, seed=1), 25, sampling=sampling)])
    assert answers.done("w").usage.completion_tokens > 0


@pytest.mark.parametrize("presence", [0.0, 1e-9])
def test_next_to_no_temperature_is_greedy(make_engine: MakeEngine, presence: float) -> None:
    engine = make_engine()
    texts = set()
    for cold in (0.0, 1e-40, 5e-324, 1e-9):
        sampling = Sampling(temperature=cold, presence_penalty=presence)
        texts.add(drive(engine, [call("c", tokens(20, seed=1), sampling=sampling)]).texts["c", 0])
    assert len(texts) == 1


def test_penalties_look_back_on_a_prompt_that_came_from_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = tokens(60, seed=1)
    penalised = call("p", prompt, 30, sampling=Sampling(temperature=0, repeat_penalty=5.0, repeat_last_n=-1))
    fresh, cached = drive(engine, [penalised]), drive(engine, [penalised])
    assert cached.done("p").usage.cached_tokens == len(prompt) - 1
    assert_same(fresh, cached, ("p", 0))
    said = {tuple(score.bytes) for score in cached.logprobs["p", 0]}
    assert said.isdisjoint(tuple(engine._llama.piece(token)) for token in prompt)


def test_backend_sampling_draws_what_the_chain_draws(make_engine: MakeEngine) -> None:
    prompt = tokens(20, seed=1)
    for seed in range(3):
        # A penalty that changes nothing keeps the request with the C chain when it is not in the graph.
        sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9, presence_penalty=1e-9, seed=seed)
        texts = [
            drive(
                make_engine(backend_sampling=on), [call("b", prompt, 25, sampling=sampling, logprobs=None)]
            ).texts
            for on in (True, False)
        ]
        assert texts[0] == texts[1]


def test_a_bias_forces_and_bans_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = tokens(10, seed=1)
    forced = drive(engine, [call("f", prompt, 4, sampling=Sampling(temperature=0, logit_bias={77: 100.0}))])
    assert {tuple(score.bytes) for score in forced.logprobs["f", 0]} == {tuple(engine._llama.piece(77))}
    free = drive(engine, [call("g", prompt, 1)])
    first = next(t for t in range(512) if list(engine._llama.piece(t)) == free.logprobs["g", 0][0].bytes)
    banned = drive(
        engine, [call("h", prompt, 1, sampling=Sampling(temperature=0, logit_bias={first: -100.0}))]
    )
    assert banned.logprobs["h", 0][0].bytes != free.logprobs["g", 0][0].bytes


def test_a_penalty_breaks_repetition(make_engine: MakeEngine) -> None:
    sampling = Sampling(temperature=0, logit_bias={77: 50.0}, presence_penalty=2.0, frequency_penalty=2.0)
    answers = drive(make_engine(), [call("p", tokens(10, seed=1), 40, sampling=sampling)])
    drawn = [tuple(score.bytes) for score in answers.logprobs["p", 0]]
    assert len(set(drawn)) > 1, "50 of bias are used up after some repetitions of 2 + 2"


def test_text_ends_before_a_stop_string(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = tokens(20, seed=1)
    whole = drive(engine, [call("w", prompt, 30)]).texts["w", 0]
    stop = whole[10:14]
    answers = drive(engine, [call("s", prompt, 30, stop=[stop])])
    assert answers.texts["s", 0] == whole[: whole.index(stop)]
    assert Finished("s", 0, "stop", stop) in answers.steps[-1]
    shown = b"".join(bytes(score.bytes) for score in answers.logprobs["s", 0]).decode("utf-8", "replace")
    assert whole.startswith(shown) and stop not in shown


def test_echo_scores_the_prompt_as_decoding_it_does(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = tokens(40, seed=3)
    echoed = drive(engine, [call("e", prompt, 5, echo=True)])
    scores = echoed.logprobs["e", 0]
    assert len(scores) == 45 and scores[0].logprob is None
    # Greedy says what follows each prefix; its probability must be the one that the echo gives as likeliest.
    for length in (1, 7, 39):
        step = drive(engine, [call("one", prompt[:length], 1)]).logprobs["one", 0][0]
        assert step.logprob == pytest.approx(scores[length].top[0].logprob, abs=CLOSE)
    only = drive(engine, [call("o", prompt, 0, echo=True)])
    assert len(only.logprobs["o", 0]) == 40
    assert only.done("o").usage.completion_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_echo_is_scored_once_although_its_prompt_was_computed_twice(
    make_engine: MakeEngine, kind: Architecture
) -> None:
    engine = make_engine(kind)

    def lose(step: int, _: Answers) -> None:
        if step == 1:
            (running,) = engine._running.values()
            assert running.slot is not None and running.slot.tokens
            engine._cache.forget(running.slot)

    prompt = tokens(200, seed=3)
    scores = drive(engine, [call("e", prompt, 2, echo=True)], each_step=lose).logprobs["e", 0]
    assert len(scores) == 202 and [score.logprob is None for score in scores] == [True] + [False] * 201


def test_a_chat_is_rendered_and_answered(make_engine: MakeEngine) -> None:
    engine = make_engine()
    messages = [Message("system", "Be brief."), Message("user", "hello there")]
    answers = drive(engine, [TextCall("chat", messages=messages, sampling=GREEDY, max_tokens=8)])
    assert answers.done("chat").usage.prompt_tokens > 4
    assert isinstance(answers.steps[0][0], Started)
    assert any(isinstance(event, Text) for step in answers.steps for event in step)


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        ({"prompt": [1, 9999]}, "invalid_value", "prompt"),
        ({"prompt": [1] * 1024}, "context_length_exceeded", "prompt"),
        ({"prompt": "a", "sampling": Sampling(logit_bias={600: 1.0})}, "invalid_value", "logit_bias"),
        ({"prompt": "a", "sampling": Sampling(logit_bias=BAN_ALL)}, "invalid_value", "logit_bias"),
        ({"prompt": "a", "stop": [""]}, "invalid_value", "stop"),
    ],
)
def test_what_the_model_cannot_take_fails_with_its_field(
    make_engine: MakeEngine, bad: dict[str, object], code: str, param: str
) -> None:
    answers = drive(make_engine(), [call("bad", **bad)])  # type: ignore[arg-type]
    assert (answers.failed("bad").code, answers.failed("bad").param) == (code, param)


def test_truncation_keeps_the_end_of_the_prompt(make_engine: MakeEngine) -> None:
    prompt = tokens(3000, seed=4)
    answers = drive(make_engine(), [call("t", prompt, 24, truncate=True)])
    assert answers.done("t").usage.prompt_tokens == 1000
    fresh = drive(make_engine(parallel=1), [call("t", prompt[-1000:], 24)])
    assert_same(fresh, answers, ("t", 0))


def test_truncation_of_a_text_keeps_the_token_that_begins_every_text(make_engine: MakeEngine) -> None:
    engine = make_engine()
    llama, text = engine._llama, "the end of a long story " * 300
    (prompt,) = engine._reader.read(TextCall("t", prompts=[text], truncate=True, max_tokens=24))
    assert (len(prompt.tokens), prompt.tokens[0]) == (1000, llama.bos)
    said = b"".join(map(llama.piece, prompt.tokens[1:])).decode()
    assert text.endswith(said) and prompt.text == said, "an echo is what was computed"
    (short,) = engine._reader.read(TextCall("t", prompts=["all of it"], truncate=True))
    assert short.text == "all of it"


def test_truncation_makes_room_although_more_is_asked_for_than_the_context_holds(
    make_engine: MakeEngine,
) -> None:
    turns = [Message("user", f"number {i}: tell me a story") for i in range(200)]
    long = TextCall("c", messages=turns, sampling=GREEDY, max_tokens=5000, stop=["e"], truncate=True)
    assert 256 < drive(make_engine(), [long]).done("c").usage.prompt_tokens <= 512
