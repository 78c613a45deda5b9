"""Images through the real engine: same answers as libmtmd's own path, alone, in company, from the cache."""

import base64
import ctypes
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C
import llama_cpp.mtmd_cpp as M
import numpy as np
import pytest
from PIL import Image

from oxlo_local.calls import Load, Message, Picture, Sampling, TextCall, TextOptions
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.random_eye import EyeKind
from tests.engines.text.conftest import Answers, drive
from tests.engines.text.test_engine import CLOSE, assert_same
from tests.vision import KINDS, Files, blank_memory, png, sighted_files

__all__ = ["sighted_files"]

GREEDY = Sampling(temperature=0)
LAYOUTS = ["streams", "unified"]
PLAIN = TextOptions(
    ctx=1024, parallel=4, batch=128, chunk=32, threads=1, kv_type="f32", flash_attention=False, together=2
)

Sighted = Callable[..., TextEngine]


def asked(id: str, *content: str | tuple[str], max_tokens: int = 8, **more: Any) -> TextCall:
    """A chat of one turn: texts, and images as one-tuples of their URI."""
    text, pictures = "", []
    for place, part in enumerate(content):
        if isinstance(part, str):
            text += part
            continue
        mark = f"<image-{id}-{place}>"
        text += mark
        pictures.append(Picture(mark, part[0], f"messages[0].content[{place}].image_url.url"))
    messages = [Message("user", text)]
    fields: dict[str, Any] = {"sampling": GREEDY, "logprobs": 2} | more
    return TextCall(id, messages=messages, pictures=pictures, max_tokens=max_tokens, **fields)


@pytest.fixture
def sighted(sighted_files: Files) -> Iterator[Sighted]:
    """`sighted("qwen2vl", parallel=2)`: an engine with an eye, closed after the test."""
    engines: list[TextEngine] = []

    def make(kind: EyeKind, **options: Any) -> TextEngine:
        model, eye = sighted_files(kind)
        fields = {name: getattr(PLAIN, name) for name in PLAIN.__struct_fields__} | options
        eyed = TextOptions(**{**fields, "mmproj": str(eye)})
        with blank_memory():
            engine = TextEngine(Load("text", kind, str(model), eyed), lambda _: None)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def encoded(engine: TextEngine) -> int:
    assert engine._sight is not None
    return engine._sight.encoded


# -- what libmtmd itself computes -------------------------------------------------------------------------------------


def libmtmd_logits(model_path: Path, eye_path: Path, text: str, image: str) -> np.ndarray[Any, Any]:
    """The logits behind a prompt with one image, by mtmd_helper_eval_chunks in a context of its own."""
    C.llama_backend_init()
    model = C.llama_model_load_from_file(str(model_path).encode(), C.llama_model_default_params())
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 1024, 512, 512, 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    context = C.llama_init_from_model(model, params)
    options = M.mtmd_context_params_default()
    options.use_gpu, options.n_threads, options.warmup = False, 1, False
    eye = M.mtmd_init_from_file(str(eye_path).encode(), model, options)
    pixels = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).convert("RGB")
    raw = ctypes.cast(ctypes.c_char_p(pixels.tobytes()), ctypes.POINTER(ctypes.c_uint8))
    bitmap = M.mtmd_bitmap_init(pixels.width, pixels.height, raw)
    chunks = M.mtmd_input_chunks_init()
    prompt = text.encode()
    given = M.mtmd_input_text(prompt, len(prompt), True, True)
    assert M.mtmd_tokenize(eye, chunks, ctypes.byref(given), (M.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
    past = C.llama_pos(0)
    assert M.mtmd_helper_eval_chunks(eye, context, chunks, 0, 0, 512, True, ctypes.byref(past)) == 0
    size = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(C.llama_get_logits_ith(context, -1), shape=(size,)).copy()
    M.mtmd_input_chunks_free(chunks)
    M.mtmd_bitmap_free(bitmap)
    M.mtmd_free(eye)
    C.llama_free(context)
    C.llama_model_free(model)
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_logits_are_those_of_libmtmds_own_path(
    sighted: Sighted,
    sighted_files: Files,
    kind: EyeKind,
    layout: str,
) -> None:
    engine = sighted(kind, kv_layout=layout)
    call = asked("a", "What is in ", (png(1),), " here?", logprobs=20)
    prompt = engine._reader.prompt_of(call)
    assert "<__media__>" in prompt
    answers = drive(engine, [call])
    with blank_memory():
        logits = libmtmd_logits(*sighted_files(kind), prompt, png(1)).astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    (first, *_) = answers.logprobs["a", 0]
    assert [top.logprob for top in first.top] == pytest.approx(sorted(expected, reverse=True)[:20], abs=CLOSE)


# -- the same answer, whatever the company ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_is_the_same_alone_and_in_company(sighted: Sighted, kind: EyeKind, layout: str) -> None:
    calls = [
        asked(f"c{i}", "Look at ", (png(i % 3),), " and " * i, *([(png(9),)] if i % 2 else []), "say")
        for i in range(6)
    ]
    calls += [asked(f"t{i}", "only words " * (i + 1)) for i in range(4)]
    alone = Answers()
    for call in calls:
        part = drive(sighted(kind, parallel=1), [call])
        alone.logprobs |= part.logprobs
        part.done(call.id)
    ctx = 4096 if layout == "unified" else 1024
    company = drive(sighted(kind, parallel=8, ctx=ctx, kv_layout=layout), calls)
    for call in calls:
        assert_same(alone, company, (call.id, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_next_turn_computes_and_encodes_no_image_again(
    sighted: Sighted, kind: EyeKind, layout: str
) -> None:
    engine = sighted(kind, kv_layout=layout)
    first = drive(engine, [asked("first", "Look: ", (png(1),), " then", max_tokens=1)])
    before, images = engine.gauges(), encoded(engine)
    longer = asked("first", "Look: ", (png(1),), " then more", " and more again")
    warm = drive(engine, [longer])
    assert encoded(engine) == images == 1
    used = warm.done("first").usage
    ending = 12  # the template's markers, which the longer prompt has further back
    assert used.cached_tokens >= first.done("first").usage.prompt_tokens - ending
    assert engine.gauges().prefill_tokens - before.prefill_tokens == used.prompt_tokens - used.cached_tokens
    assert_same(drive(sighted(kind, kv_layout=layout), [longer]), warm, ("first", 0))
    assert engine.gauges().kv_strayed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_parts_before_an_image_reads_its_rows_from_memory(sighted: Sighted, kind: EyeKind) -> None:
    """Another text before it: the cache cannot be used, and still the encoder rests."""
    engine = sighted(kind)
    drive(engine, [asked("one", "Look: ", (png(1),), " here")])
    call = asked("two", "Quite another beginning: ", (png(1),), " there")
    warm = drive(engine, [call])
    assert encoded(engine) == 1
    assert_same(drive(sighted(kind), [call]), warm, ("two", 0))


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_is_another_answer(sighted: Sighted, kind: EyeKind) -> None:
    engine = sighted(kind)
    one, other = (drive(engine, [asked("a", "Look: ", (png(seed),), " here")]) for seed in (1, 2))
    assert encoded(engine) == 2
    assert other.done("a").usage.cached_tokens < 40
    ours = (
        [score.logprob for score in one.logprobs["a", 0]],
        [score.logprob for score in other.logprobs["a", 0]],
    )
    assert ours[0] != pytest.approx(ours[1], abs=CLOSE)
    assert_same(drive(sighted(kind), [asked("a", "Look: ", (png(2),), " here")]), other, ("a", 0))


@pytest.mark.parametrize("kind", KINDS)
def test_several_choices_and_equal_requests_encode_once(sighted: Sighted, kind: EyeKind) -> None:
    engine = sighted(kind, parallel=4)
    calls = [asked(id, "Look: ", (png(1),), " here", n=2) for id in ("x", "y")]
    answers = drive(engine, calls)
    assert encoded(engine) == 1
    fresh = drive(sighted(kind, parallel=1), [asked("x", "Look: ", (png(1),), " here")])
    for id in ("x", "y"):
        for choice in (0, 1):
            assert_same(fresh, answers, ("x", 0), (id, choice))


def test_image_tokens_count_as_prompt_tokens(sighted: Sighted) -> None:
    engine = sighted("pixtral")
    plain = drive(engine, [asked("a", "Look: ", " here")]).done("a").usage.prompt_tokens
    seen = drive(engine, [asked("b", "Look: ", (png(1, 64, 48),), " here")]).done("b").usage.prompt_tokens
    marker = len(engine._llama.tokenize("[IMG_END]", special=True, add_special=False))
    assert (
        abs(seen - plain - (8 * 6 + 5) - marker) <= 2
    )  # texts on both sides are cut into tokens by themselves


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_cache_preempts_and_sees_again(sighted: Sighted, kind: EyeKind) -> None:
    engine = sighted(kind, kv_layout="unified", ctx=512, parallel=4)
    calls = [asked(f"f{i}", "Look: ", (png(i),), " here", max_tokens=120) for i in range(4)]
    answers = drive(engine, calls)
    assert engine.gauges().preemptions > 0
    for call in calls:
        assert_same(drive(sighted(kind, parallel=1), [call]), answers, (call.id, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_leaves_in_mid_image_leaves_a_sound_cache(sighted: Sighted, kind: EyeKind) -> None:
    engine = sighted(kind, batch=16, chunk=16)
    call = asked("a", "Look: ", (png(1),), " here")
    fresh = drive(engine, [asked("b", "Look: ", (png(2),), " here")])
    engine.submit(call)
    seen = 0
    while not seen:
        engine.step()
        seen = sum(1 for token in engine._cache.slots[engine_slot(engine)].tokens if token < 0)
    engine.cancel("a")
    assert {event.id for event in engine.step()} == {"a"}
    again = drive(engine, [call, asked("b", "Look: ", (png(2),), " here")])
    assert_same(drive(sighted(kind), [call]), again, ("a", 0))
    assert_same(fresh, again, ("b", 0))
    assert engine.gauges().kv_strayed == 0


def engine_slot(engine: TextEngine) -> int:
    return next(iter(engine._running), 0)


# -- nobody waits for somebody else's image ---------------------------------------------------------------------------


def test_tokens_come_on_while_an_image_is_encoded(sighted: Sighted) -> None:
    engine = sighted("qwen2vl", threads=64)  # more than there are cores, so that they take turns
    engine.submit(asked("talk", "words", max_tokens=400, logprobs=None))
    while not engine.gauges().generated_tokens:
        engine.step()
    engine.submit(asked("look", "Look: ", (png(1, 250, 250),), " here", logprobs=None))
    during = 0
    while not encoded(engine):
        before = engine.gauges()
        engine.step()
        now = engine.gauges()
        during += now.generated_tokens - before.generated_tokens
        assert now.generated_tokens > before.generated_tokens, "it got its token in every step"
        assert now.prefill_tokens - before.prefill_tokens <= 32
    assert during >= 2
    engine.cancel("talk")
    drive(engine, [])


def test_text_passes_a_call_that_waits_for_its_image(sighted: Sighted) -> None:
    engine = sighted("pixtral", parallel=1)
    assert engine._sight is not None
    answers = Answers()
    with engine._sight.crossing.step():  # the encoder is held up
        engine.submit(asked("look", "Look: ", (png(1),), " here"))
        while "look" not in engine._requests:
            answers.take(engine.step()) if not engine._running else None
    engine.submit(asked("talk", "words", max_tokens=2))
    while engine.busy():
        answers.take(engine.step())
    assert {answers.done("look").id, answers.done("talk").id} == {"look", "talk"}


def test_a_call_that_leaves_takes_its_encoding_along(sighted: Sighted) -> None:
    engine = sighted("qwen2vl")
    sight = engine._sight
    assert sight is not None
    reached, wait = threading.Event(), threading.Event()
    between = sight.crossing.between

    def held() -> bool:
        reached.set()
        wait.wait(10)
        return between()

    sight.crossing.between = held  # type: ignore[method-assign]
    engine.submit(asked("a", "Look: ", (png(1, 200, 200),)))
    while not reached.is_set():
        engine.step()
    engine.cancel("a")
    (end,) = [event for event in engine.step() if event.id == "a"]
    assert getattr(end, "code", None) == "cancelled"
    assert not sight.busy and not engine.busy()
    wait.set()
    sight.crossing.between = between  # type: ignore[method-assign]
    answers = drive(engine, [asked("b", "Look: ", (png(1, 200, 200),))])
    assert answers.done("b").usage.completion_tokens
    assert encoded(engine) == 1, "the first one was given up"


def test_rows_seen_lately_are_kept_within_bounds(sighted: Sighted) -> None:
    engine = sighted("pixtral", parallel=2)
    sight = engine._sight
    assert sight is not None
    sight._row_bytes = 3 * 71 * 64 * 4
    for seed in range(8):
        drive(engine, [asked("a", f"{seed} Look: ", (png(seed),))])
    assert 1 <= len(sight._rows) <= 4
    answers = drive(engine, [asked("a", "again: ", *((png(seed),) for seed in range(8)))])
    assert answers.done("a").usage.completion_tokens, "more images than memory holds are seen at once"


# -- what cannot be seen ----------------------------------------------------------------------------------------------


def test_a_model_without_an_eye_says_so(make_engine: Callable[..., TextEngine]) -> None:
    engine = make_engine()
    failed = drive(engine, [asked("a", "Look: ", (png(1),))]).failed("a")
    assert (failed.code, failed.param) == ("unsupported_value", "messages[0].content[1].image_url.url")
    assert "cannot see" in failed.message


def test_bad_images_fail_by_name_and_disturb_nobody(sighted: Sighted) -> None:
    engine = sighted("pixtral")
    bad = {
        "text": "data:image/png;base64," + base64.b64encode(b"hello").decode(),
        "cut": png(1)[:-400],
        "not64": "data:image/png;base64,@@@@",
        "lie": png(1).replace("image/png", "image/jpeg"),
        "far": "https://example.org/a.png",
    }
    begun = time.monotonic()
    answers = drive(
        engine, [asked("good", "words"), *(asked(id, "Look: ", (url,)) for id, url in bad.items())]
    )
    assert time.monotonic() - begun < 5
    answers.done("good")
    for id in bad:
        failed = answers.failed(id)
        assert failed.code in ("invalid_value", "unsupported_value"), failed
        assert failed.param == "messages[0].content[1].image_url.url"


def test_an_image_larger_than_the_context_is_too_long(sighted: Sighted) -> None:
    failed = drive(sighted("pixtral", ctx=256), [asked("a", (png(1, 256, 256),))]).failed("a")
    assert failed.code == "context_length_exceeded"


def test_truncation_drops_turns_with_their_images(sighted: Sighted) -> None:
    engine = sighted("pixtral", ctx=512)
    pictures, messages = [], []
    for turn in range(5):
        mark = f"<image-{turn}>"
        pictures.append(Picture(mark, png(turn, 96, 96), f"messages[{2 * turn}]"))
        messages += [Message("user", f"Look {mark}"), Message("assistant", "I do")]
    call = TextCall(
        "a", messages=messages[:-1], pictures=pictures, sampling=GREEDY, max_tokens=8, truncate=True
    )
    used = drive(engine, [call]).done("a").usage
    assert 144 < used.prompt_tokens < 512
