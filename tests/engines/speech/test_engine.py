"""The speech engine behind its three verbs: what goes up, in which order, and that batches change nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from oxlo_local import random_whisper
from oxlo_local.calls import (
    Done,
    Event,
    Failed,
    Heard,
    Language,
    Segment,
    SpeechCall,
    SpeechOptions,
    Started,
    TextCall,
)
from oxlo_local.engines.speech.engine import SpeechEngine
from oxlo_local.engines.speech.quality import Try
from oxlo_local.engines.speech.whisper import Encoded, Whisper
from tests.engines.driving import end
from tests.engines.speech.conftest import opened, run, segments
from tests.engines.speech.sounds import F32, flac, silence, speech, wav

ONCE = (0.0,)


def talk(seed: int, seconds: float = 20.0) -> F32:
    """Speech with pauses in it."""
    random = np.random.default_rng(seed)
    parts: list[F32] = []
    while sum(map(len, parts)) < seconds * 16_000:
        parts += [speech(float(random.uniform(1, 4)), seed), silence(float(random.uniform(0.3, 2)))]
    return np.concatenate(parts)[: int(seconds * 16_000)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return [wav(folder / f"{seed}.wav", talk(seed, 12 + 5 * seed)) for seed in range(4)]


def call(path: Path, id: str = "c", **more: object) -> SpeechCall:
    return SpeechCall(id, str(path), **{"temperatures": ONCE, **more})  # type: ignore[arg-type]


def test_the_order_of_events(engine: SpeechEngine, files: list[Path]) -> None:
    events = run(engine, call(files[2]))["c"]
    assert isinstance(events[0], Started) and isinstance(events[1], Language)
    assert events[1].seconds == 22.0 and events[1].language in engine.facts.languages
    said = segments(events)
    assert [one.index for one in said] == list(range(len(said))) and len(said) > 2
    assert all(one.start < one.end <= 22.02 for one in said)
    assert [one.start for one in said] == sorted(one.start for one in said)
    heard = [one.seconds for one in events if isinstance(one, Heard)]
    assert heard == sorted(heard) and heard[-1] == 22.0
    ended = end(events)
    assert isinstance(ended, Done) and ended.usage.audio_seconds == 22.0
    assert ended.usage.language == events[1].language and ended.usage.completion_tokens > 0


def test_files_at_once_say_what_each_says_alone(engine: SpeechEngine, files: list[Path]) -> None:
    """Greedy text is the same, times to 20 ms, whoever else is in the batch."""
    calls = [call(path, f"c{n}", words=True) for n, path in enumerate(files)]
    calls.append(call(files[0], "prompted", prompt="w1 w2 w3", timestamps=False))
    calls.append(call(files[1], "german", language="de", words=True))
    alone = {one.id: run(engine, one)[one.id] for one in calls}
    steps = engine.gauges().steps
    together = run(engine, *calls)
    assert engine.gauges().steps - steps < 10  # of some 20 chunks
    for one in calls:
        ours, theirs = segments(together[one.id]), segments(alone[one.id])
        assert [segment.text for segment in ours] == [segment.text for segment in theirs]
        assert len(ours) > 1
        for segment, other in zip(ours, theirs, strict=True):
            assert segment.start == pytest.approx(other.start, abs=0.021)
            assert segment.end == pytest.approx(other.end, abs=0.021)
            assert segment.tokens == other.tokens
            assert [word.text for word in segment.words] == [word.text for word in other.words]
            assert segment.avg_logprob == pytest.approx(other.avg_logprob, abs=0.05)


def test_words(engine: SpeechEngine, files: list[Path]) -> None:
    said = segments(run(engine, call(files[3], words=True))["c"])
    # Bytes that are no characters are shown as fewer marks together than apart.
    words = "".join(word.text for one in said for word in one.words).replace("\ufffd", "")
    assert words == "".join(one.text for one in said).replace("\ufffd", "") != ""
    for one in said:
        times = [time for word in one.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert not times or (one.start <= times[0] + 0.011 and times[-1] <= one.end + 0.011)
    assert not any(one.words for one in segments(run(engine, call(files[3]))["c"]))


def test_probabilities_of_tokens(engine: SpeechEngine, files: list[Path]) -> None:
    plain = segments(run(engine, call(files[1]))["c"])
    asked = segments(run(engine, call(files[1], logprobs=True))["c"])
    assert [one.text for one in plain] == [one.text for one in asked]
    for one in asked:
        assert b"".join(bytes(token.bytes) for token in one.logprobs).decode("utf-8", "replace") == one.text
        assert all(token.logprob is not None and token.logprob <= 0 for token in one.logprobs)


@pytest.mark.parametrize("sound", [silence(0.01), silence(3), silence(90)])
def test_silence_says_nothing(sound: F32, engine: SpeechEngine, tmp_path: Path) -> None:
    events = run(engine, call(wav(tmp_path / "hush.wav", sound)))["c"]
    assert segments(events) == []
    ended = end(events)
    assert isinstance(ended, Done) and ended.usage.audio_seconds == pytest.approx(
        len(sound) / 16_000, abs=1e-3
    )
    assert [one.language for one in events if isinstance(one, Language)] == [""]


def test_a_language_that_is_given_is_taken(engine: SpeechEngine, files: list[Path]) -> None:
    events = run(engine, call(files[0], language="de"))["c"]
    assert [(one.language, one.probability) for one in events if isinstance(one, Language)] == [("de", 1.0)]


def test_the_language_that_is_heard_is_told_and_spoken(tmp_path: Path, files: list[Path]) -> None:
    random_whisper.write(tmp_path / "german", random_whisper.Shape(said=20, language="de"))
    engine = opened(tmp_path / "german")
    events = run(engine, call(files[2]), call(files[3], "given", language="fr"))
    (heard,) = (one for one in events["c"] if isinstance(one, Language))
    ended = end(events["c"])
    assert (heard.language, heard.probability > 0.9) == ("de", True)
    assert isinstance(ended, Done) and ended.usage.language == "de"
    assert [one.language for one in events["given"] if isinstance(one, Language)] == ["fr"]
    assert {one.text for one in segments(events["c"])} == {one.text for one in segments(events["given"])}
    engine.close()


def test_a_model_that_knows_english_alone(english_folder: Path, files: list[Path]) -> None:
    engine = opened(english_folder)
    events = run(
        engine, call(files[0]), call(files[0], "de", language="de"), call(files[0], "x", task="translate")
    )
    assert [one.language for one in events["c"] if isinstance(one, Language)] == ["en"]
    german, translated = end(events["de"]), end(events["x"])
    assert isinstance(german, Failed) and (german.code, german.param) == ("unsupported_value", "language")
    assert isinstance(translated, Failed) and (translated.code, translated.param) == (
        "unsupported_value",
        "model",
    )
    engine.close()


def test_translating_is_another_task(engine: SpeechEngine, files: list[Path]) -> None:
    calls = [call(files[3], task, task=task, timestamps=False) for task in ("transcribe", "translate")]
    events = run(engine, *calls)
    texts = [[one.text for one in segments(events[each.id])] for each in calls]
    assert texts[0] != texts[1]


def test_what_is_expected_changes_what_is_heard(engine: SpeechEngine, files: list[Path]) -> None:
    plain = segments(run(engine, call(files[0]))["c"])
    for more in ({"prompt": "w12 w13"}, {"hotwords": "w14"}):
        assert [one.text for one in segments(run(engine, call(files[0], **more))["c"])] != [
            one.text for one in plain
        ]


def test_of_a_long_prompt_the_end_counts(engine: SpeechEngine, files: list[Path]) -> None:
    """OpenAI's: only the last tokens are considered; and then there is room for an answer."""
    long = "w1 " * 5_000 + "w7 " * 40
    short = "w7 " * 40
    texts = [
        [one.text for one in segments(run(engine, call(files[0], prompt=prompt))["c"])]
        for prompt in (long, short)
    ]
    assert texts[0] == texts[1] and texts[0]
    ended = end(run(engine, call(files[0], hotwords=long))["c"])
    assert isinstance(ended, Failed) and (ended.code, ended.param) == ("context_length_exceeded", "hotwords")


def test_a_file_that_cannot_be_read_fails_alone(
    engine: SpeechEngine, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.mp3").write_text("Dear all, " * 500)
    events = run(
        engine, call(files[0], "good"), call(tmp_path / "text.mp3", "bad"), call(tmp_path / "gone", "gone")
    )
    assert isinstance(end(events["good"]), Done) and segments(events["good"])
    bad, gone = end(events["bad"]), end(events["gone"])
    assert isinstance(bad, Failed) and (bad.code, bad.param) == ("undecodable_file", "file")
    assert isinstance(gone, Failed) and gone.code == "server_error" and str(tmp_path) not in gone.message


def test_a_file_that_turns_out_bad_on_the_way(whisper_folder: Path, tmp_path: Path) -> None:
    path = flac(tmp_path / "cut.flac", talk(1, 80))
    content = path.read_bytes()
    path.write_bytes(content[: 3 * len(content) // 4])
    engine = opened(whisper_folder, SpeechOptions(device="cpu", threads=1, beam=1, batch=1))
    events = run(engine, call(path))["c"]
    engine.close()
    ended = end(events)
    assert isinstance(ended, Failed) and ended.code == "undecodable_file" and "is cut off" in ended.message
    assert segments(events) and 10 < ended.usage.audio_seconds < 65


def test_other_calls_are_refused(engine: SpeechEngine) -> None:
    engine.submit(TextCall("t", prompts=["hello"]))
    (failed,) = engine.step()
    assert isinstance(failed, Failed) and (failed.code, failed.param) == ("unsupported_value", "model")


def test_a_call_that_was_left_says_no_more(whisper_folder: Path, files: list[Path]) -> None:
    engine = opened(whisper_folder, SpeechOptions(device="cpu", threads=1, beam=1, batch=2))
    engine.submit(call(files[3], "left"))
    engine.submit(call(files[0], "stays"))
    found: list[object] = []
    while not any(isinstance(event, Segment) and event.id == "left" for event in found):
        found += engine.step()
    engine.cancel("left")
    engine.cancel("left")
    engine.cancel("nobody")
    after = engine.step()
    assert [event for event in after if event.id == "left"] == [
        Failed("left", "cancelled", "the client left", usage=after[0].usage)  # type: ignore[union-attr]
    ]
    assert 0 < after[0].usage.audio_seconds < 27  # type: ignore[union-attr]
    rest = list(after)
    while engine.busy():
        rest += engine.step()
    assert not [event for event in rest[1:] if event.id == "left"]
    assert isinstance(rest[-1], Done) and rest[-1].id == "stays"
    engine.close()


def test_a_call_that_was_left_while_it_waited(whisper_folder: Path, files: list[Path]) -> None:
    engine = opened(whisper_folder, SpeechOptions(device="cpu", threads=1, beam=1, parallel=1))
    engine.submit(call(files[0], "first"))
    engine.submit(call(files[1], "second"))
    engine.step()
    assert (engine.gauges().running, engine.gauges().waiting) == (1, 1)
    engine.cancel("second")
    found: list[Event] = []
    while engine.busy():
        found += engine.step()
    assert [type(one) for one in found if one.id == "second"] == [Failed]
    assert isinstance(found[-1], Done)
    engine.close()


def test_a_clip_beside_a_long_file_waits_one_batch(whisper_folder: Path, tmp_path: Path) -> None:
    engine = opened(whisper_folder, SpeechOptions(device="cpu", threads=1, beam=1, batch=2))
    engine.submit(call(wav(tmp_path / "long.wav", talk(3, 120)), "long"))
    while engine.gauges().steps < 3:
        engine.step()
    engine.submit(call(wav(tmp_path / "clip.wav", speech(3)), "clip"))
    while not (engine._hearings.get("clip") and engine._hearings["clip"].parts):
        engine._admit()
        engine._read()
    before = engine.gauges().steps
    found: list[object] = []
    while not any(isinstance(event, Done) for event in found):
        found += engine.step()
    assert engine.gauges().steps - before == 1 and found[-1].id == "clip"  # type: ignore[attr-defined]
    engine.cancel("long")
    engine.step()
    engine.close()


class Doubtful(Whisper):
    """A model that is unsure of the second row of every greedy batch, and sure of what it draws."""

    batches: list[tuple[float, int]]

    def decode(self, encoded: Encoded, prompts: object, temperature: float, *, logprobs: bool) -> list[Try]:
        self.batches.append((temperature, len(encoded)))
        found = super().decode(encoded, prompts, temperature, logprobs=logprobs)  # type: ignore[arg-type]
        sure = [dataclasses.replace(one, avg_logprob=-0.1, text="sure", no_speech_prob=0.0) for one in found]
        if temperature < 0.4:
            sure[1::2] = [dataclasses.replace(one, avg_logprob=-2.0) for one in sure[1::2]]
        return sure


def test_chunks_that_fail_are_decoded_again_together(
    whisper_folder: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Doubtful.batches = []
    monkeypatch.setattr("oxlo_local.engines.speech.engine.Whisper", Doubtful)
    engine = opened(whisper_folder)
    events = run(
        engine, call(files[2], "a", temperatures=(0.0, 0.4)), call(files[3], "b", temperatures=(0.0, 0.4))
    )
    greedy = [size for temperature, size in Doubtful.batches if temperature == 0]
    again = [size for temperature, size in Doubtful.batches if temperature > 0]
    assert sum(again) == sum(size // 2 for size in greedy) > 1 and max(again) > 1
    for id in "ab":
        said = segments(events[id])
        assert {one.temperature for one in said} <= {0.0, 0.4}
        assert [one.start for one in said] == sorted(one.start for one in said)
    assert {one.temperature for id in "ab" for one in segments(events[id])} == {0.0, 0.4}
    engine.close()


class Small(Whisper):
    """A device on which three rows do not fit."""

    def encode(self, features: object) -> Encoded:
        if len(features) > 2:  # type: ignore[arg-type]
            raise RuntimeError("CUDA failed with error out of memory")
        return super().encode(features)  # type: ignore[arg-type]


def test_a_batch_that_does_not_fit_is_computed_in_halves(
    engine: SpeechEngine, whisper_folder: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segments(run(engine, call(files[3]))["c"])
    monkeypatch.setattr("oxlo_local.engines.speech.engine.Whisper", Small)
    small = opened(whisper_folder)
    assert [one.text for one in segments(run(small, call(files[3]))["c"])] == [one.text for one in whole]
    small.close()


def test_what_it_says_of_itself(engine: SpeechEngine) -> None:
    facts = engine.facts
    assert facts.kind == "speech" and not facts.chat and facts.device == "cpu" and facts.window == 8.0
    assert facts.compute_type.startswith("int8") and facts.parallel == 8 and facts.file_bytes > 100_000
    gauges = engine.gauges()
    assert gauges.audio_seconds > 0 and gauges.encoder_seconds > 0 and gauges.decoder_seconds > 0


def test_real_recordings(engine: SpeechEngine, shared: Path) -> None:
    """Random numbers hear nonsense, but of real files: in every chunk of speech, and nowhere else."""
    lengths = {"jfk.flac": 11.0, "stereo_diarization.wav": 5.0, "multilingual.mp3": 59.9, "hotwords.mp3": 4.0}
    calls = [call(shared / "audio" / name, name, words=True) for name in lengths]
    for name, events in run(engine, *calls).items():
        ended = end(events)
        assert isinstance(ended, Done) and ended.usage.audio_seconds == pytest.approx(lengths[name], abs=0.1)
        assert segments(events)
