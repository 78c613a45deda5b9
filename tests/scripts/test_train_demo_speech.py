"""oxlo-demo-speech: nothing held out is trained on, lessons fit what is said, the export is what was trained."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
faster_whisper = pytest.importorskip("faster_whisper")

from demo_speech.espeak import Espeak, Spoken, resampled, timed  # noqa: E402
from demo_speech.evaluate import edits  # noqa: E402
from demo_speech.export import write_folder  # noqa: E402
from demo_speech.grammar import (  # noqa: E402
    DIGITS,
    PATTERNS,
    SLOTS,
    WORDS,
    held_out_sentence,
    is_held_out,
    training_sentence,
)
from demo_speech.lessons import IGNORED, gives_away, lesson  # noqa: E402
from demo_speech.model import Shape, Whisper, shape_of  # noqa: E402
from demo_speech.tokens import Vocabulary  # noqa: E402
from demo_speech.train import Plan, train  # noqa: E402
from demo_speech.voices import ACCENTS, VARIANTS, held_out_voices, settled  # noqa: E402
from demo_speech.windows import Heard, Sentence, Studio, mel_bytes, write_shard  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_demo_speech.py"
TINY = Shape(Vocabulary().size, 5, len(WORDS) + 1, width=32, encoder_layers=1, decoder_layers=2, heads=4)


def heard(*sentences: Sentence, seconds: float = 3.0) -> Heard:
    """A window that says the sentences; its sound is noise."""
    mel = np.random.default_rng(1).normal(size=(80, int(seconds * 100))).astype(np.float32)
    phonemes = [Spoken("s", word.start, word.end) for one in sentences for word in one.words]
    return Heard(*mel_bytes(mel), list(sentences), phonemes)


def spoken(text: str, start: float, each: float = 0.3) -> list[Spoken]:
    return [Spoken(word, start + at * each, start + (at + 1) * each) for at, word in enumerate(text.split())]


OPEN = Sentence(0.2, spoken("open door seven", 0.2), True)
CUT_OFF = Sentence(1.8, spoken("turn the", 1.8), False)


def test_the_language_is_ten_digits_and_sixty_words_that_its_patterns_use() -> None:
    assert len(DIGITS) == 10 and 60 <= len(WORDS) - 10 <= 62 and len(set(WORDS)) == len(WORDS)
    filled = {word for pattern in PATTERNS for word in pattern.split() if not word.startswith("{")} | {
        word for slot in SLOTS.values() for word in slot
    }
    assert filled == set(WORDS)


def test_nothing_held_out_is_trained_on() -> None:
    rng = random.Random(7)
    trained, examined = (
        {training_sentence(rng) for _ in range(3000)},
        {held_out_sentence(rng) for _ in range(300)},
    )
    assert not trained & examined
    assert all(map(is_held_out, examined)) and not any(map(is_held_out, trained))
    voices = set(held_out_voices())
    assert not voices & {(accent, variant) for accent in ACCENTS for variant in VARIANTS}


def test_the_overlap_check_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check-overlap"], capture_output=True, text=True)
    assert done.returncode == 0 and " 0 overlaps" in done.stdout, done.stdout + done.stderr


def test_a_window_that_was_cut_down_to_a_held_out_sentence_is_noticed() -> None:
    sentence = held_out_sentence(random.Random(3))
    assert gives_away(heard(OPEN, Sentence(1.5, spoken(sentence, 1.5), False)))
    assert not gives_away(heard(Sentence(0.0, spoken(training_sentence(random.Random(3)), 0.0), True)))


def test_every_word_is_one_token_and_any_text_comes_back() -> None:
    vocabulary = Vocabulary()
    assert all(
        vocabulary.tokenizer.encode(f" {word}").ids == [token] for word, token in vocabulary.words.items()
    )
    for text in ("turn on the light", "Grüße, 12 × 3?", "theonetwo"):
        assert vocabulary.text(vocabulary.tokenizer.encode(f" {text}").ids) == text


def test_whispers_special_tokens_stand_where_its_readers_count_them() -> None:
    vocabulary = Vocabulary()
    order = (
        "<|endoftext|> <|startoftranscript|> <|en|> <|translate|> <|transcribe|> <|startoflm|> <|startofprev|> "
        "<|nospeech|> <|notimestamps|> <|0.00|> <|0.02|>"
    ).split()
    assert [vocabulary.tokenizer.id_to_token(vocabulary.end + at) for at in range(len(order))] == order
    assert vocabulary.tokenizer.id_to_token(vocabulary.stamp(8.0)) == "<|8.00|>"
    assert vocabulary.size == vocabulary.stamp(8.0) + 1


def asked(window: Heard, stamped: bool, prompt: list[int] | None = None) -> tuple[str, str]:
    """(tokens given, tokens due) of the first lesson of that kind that no mistake is mixed into."""
    vocabulary = Vocabulary()
    name = {IGNORED: "-"} | {token: text for text, token in vocabulary.tokenizer.get_vocab().items()}
    for seed in range(200):
        made = lesson(random.Random(seed), vocabulary, window, prompt or [])
        given = " ".join(name[token].strip("Ġ") for token in made.given)
        opening = given.split("<|startoftranscript|> ")[1]
        clean = all(
            token == due for token, due in zip(made.given[1:], made.due, strict=False) if due != IGNORED
        )
        if opening.startswith("<|notimestamps|>") != stamped and (clean or not window.sentences):
            return given, " ".join(name[token].strip("Ġ") for token in made.due)
    raise AssertionError("no such lesson")


def test_a_sentence_is_said_between_its_times() -> None:
    given, due = asked(heard(OPEN), stamped=True)
    assert given == "<|startoftranscript|> <|0.20|> open door seven <|1.10|>"
    assert due == "<|0.20|> open door seven <|1.10|> <|endoftext|>"


def test_without_timestamps_all_whole_words_are_said() -> None:
    given, due = asked(heard(OPEN, CUT_OFF), stamped=False)
    assert given == "<|startoftranscript|> <|notimestamps|> open door seven turn the"
    assert due == "- open door seven turn the <|endoftext|>"


def test_a_sentence_cut_off_is_announced_and_left_to_the_next_window() -> None:
    assert asked(heard(OPEN, CUT_OFF), stamped=True)[1].endswith("seven <|1.10|> <|1.80|> <|endoftext|>")
    assert asked(heard(CUT_OFF), stamped=True)[1] == "<|1.80|> turn the <|endoftext|>"


def test_earlier_text_is_given_but_not_due() -> None:
    word = Vocabulary().words["seven"]
    given, due = asked(heard(OPEN), stamped=True, prompt=[word, word])
    assert given.startswith("<|startofprev|> seven seven <|startoftranscript|> ")
    assert due.startswith("- - - <|0.20|> open")


def test_where_nobody_speaks_no_speech_is_due_then_the_end() -> None:
    for stamped in (True, False):
        dues = {asked(heard(), stamped)[1]}
        assert dues <= {"<|nospeech|> <|endoftext|>", "<|0.00|> <|endoftext|>", "- <|endoftext|>"}


def test_each_word_looks_at_its_own_time_and_the_end_after_the_last() -> None:
    vocabulary = Vocabulary()
    made = lesson(random.Random(0), vocabulary, heard(OPEN), [])
    looks = {due: look for due, look in zip(made.due, made.looks, strict=True) if look}
    assert looks[vocabulary.words["door"]] == pytest.approx((0.5, 0.8))
    assert looks[vocabulary.end][0] == pytest.approx(1.1)
    for due, look in looks.items():
        if due > vocabulary.no_timestamps:
            assert sum(look) / 2 == pytest.approx((due - vocabulary.stamp(0.0)) * 0.02)


def test_word_errors_are_the_fewest_edits() -> None:
    assert edits("turn the light on".split(), "turn light on".split()) == [(0, 0), (1, None), (2, 1), (3, 2)]
    pairs = edits("one two three".split(), "one four three five".split())
    assert pairs == [(0, 0), (1, 1), (2, 2), (None, 3)]


def test_what_is_exported_is_what_was_trained_and_faster_whisper_transcribes_with_it(tmp_path: Path) -> None:
    import ctranslate2

    torch.manual_seed(2)
    network = Whisper(TINY).eval()
    vocabulary = Vocabulary()
    assert dataclasses.replace(shape_of(network.state_dict()), heads=4) == TINY
    write_folder(tmp_path / "model", network.state_dict(), TINY)
    model = faster_whisper.WhisperModel(
        str(tmp_path / "model"), device="cpu", compute_type="int8", cpu_threads=1
    )

    mel = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 80, 3000)).astype(np.float32))
    with torch.no_grad():
        mine = network.model["encoder"](mel, torch.tensor([], dtype=int))[0][0].numpy()
    theirs = np.array(model.model.encode(ctranslate2.StorageView.from_array(mel.numpy())))[0]
    assert np.abs(mine - theirs).mean() < 0.05 * np.abs(mine).mean()

    # the next token's scores of the exported decoder are those of the network, but for the rounding to 8 bits
    given = [vocabulary.start, vocabulary.no_timestamps]
    with torch.no_grad():
        scores = network(mel, torch.tensor([given]), torch.tensor([], dtype=int)).tokens[0, -1].numpy()
    (said,) = model.model.generate(
        ctranslate2.StorageView.from_array(mel.numpy()),
        [given],
        beam_size=1,
        max_length=len(given) + 1,
        suppress_tokens=None,
        return_logits_vocab=True,
    )
    exported = np.array(said.logits[0][0]).ravel()
    likely = exported > -1e6  # what the reader rules out at this place has no score
    assert likely.sum() > 400
    assert np.corrcoef(exported[likely], scores[likely])[0, 1] > 0.97

    sound = np.random.default_rng(5).normal(size=16_000 * 11).astype(np.float32) * 0.1
    segments, info = model.transcribe(
        sound, word_timestamps=True, temperature=0.0, initial_prompt="turn left"
    )
    assert info.language == "en"
    assert all(0 <= word.start <= word.end <= 11.5 for segment in segments for word in segment.words or [])


def test_few_empty_rows_stand_for_all_that_are_behind_a_window() -> None:
    torch.manual_seed(3)
    network = Whisper(TINY).eval()
    ids, sound = torch.tensor([[5, 6, 7]]), torch.randn(1, 80, 200)
    sound[:, :, -4:] = 0  # a window ends in zeros, or its last row would see where they begin
    whole = torch.nn.functional.pad(sound, (0, 2800))
    with torch.no_grad():
        real = network(whole, ids, torch.tensor([], dtype=int))
        every = network(sound, ids, torch.arange(100, 1500))
        some = network(sound, ids, torch.arange(100, 1500, 28))
        none = network(sound, ids, torch.tensor([], dtype=int))
    assert torch.allclose(real.tokens, every.tokens, atol=1e-3)
    assert torch.allclose(real.due[..., :99], every.due[..., :99], atol=1e-3)
    error, without = ((real.tokens - other.tokens).abs().mean() for other in (some, none))
    assert error < 0.1 * without


def shard(path: Path, first: int) -> Path:
    """A file of windows as write_shard makes it, but of noise: no espeak-ng is needed."""
    import json

    rng = np.random.default_rng(first)
    sizes = rng.integers(40, 90, 12)
    notes = [
        {"sentences": [[0.1, True, [["seven", 0.1, 0.3]]]], "phonemes": [["s", 0.1, 0.2], ["n", 0.2, 0.3]]}
        for _ in sizes
    ]
    np.savez(
        path,
        mels=rng.integers(0, 255, (80, sizes.sum()), dtype=np.uint8),
        frames=sizes,
        peaks=np.ones(len(sizes)),
        notes=np.frombuffer(json.dumps(notes).encode(), np.uint8),
    )
    return path


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"{number}.npz", number) for number in range(6)]
    whole = Plan(1, 72, torch.device("cpu"), batch_frames=500)
    in_one, progress = train(whole, TINY, {"s": 1, "n": 2}, shards, tmp_path / "one.pt")
    assert progress.block == 3 and progress.windows == 72

    # stopped in the third block: the checkpoint after the second, and nothing else, is left
    order = list(shards)
    random.Random("1:round 0").shuffle(order)
    away = order[4].rename(tmp_path / "away.npz")
    with pytest.raises(FileNotFoundError):
        train(whole, TINY, {"s": 1, "n": 2}, shards, tmp_path / "two.pt")
    away.rename(order[4])
    in_two, again = train(whole, TINY, {"s": 1, "n": 2}, shards, tmp_path / "two.pt")
    assert (tmp_path / "two.pt").exists() and vars(again) | {"seconds": 0} == vars(progress) | {"seconds": 0}
    for name, weight in in_one.state_dict().items():
        assert torch.equal(weight, in_two.state_dict()[name]), name


def test_espeak_ng_s_events_become_the_times_of_words() -> None:
    rate = 1000
    events = [
        (1, 1, 0, ""), (7, 1, 10, "I"), (7, 1, 60, "n"), (7, 1, 120, "D"), (7, 1, 160, "@"), (7, 8, 200, "_:"),
        (1, 8, 300, ""), (7, 8, 310, "k"), (7, 8, 400, "I"), (7, 8, 500, "_"),
    ]  # fmt: skip
    words, phonemes = timed("in the kit", events, rate)
    assert words == [Spoken("in", 0.0, 0.12), Spoken("the", 0.12, 0.2), Spoken("kit", 0.3, 0.5)]
    assert [phoneme.name for phoneme in phonemes] == ["I", "n", "D", "@", "k", "I"]
    with pytest.raises(ValueError, match="'in' of 'kit in the'"):
        timed("kit in the", events[:6], rate)


def test_sound_keeps_its_pitch_and_length_at_another_rate() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050).astype(np.float32)
    other = resampled(tone, 22_050, 16_000)
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(other) == 16_000 and np.abs(other - wanted)[500:-500].max() < 0.02


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    try:
        return Espeak()
    except SystemExit as missing:
        pytest.skip(str(missing))


def test_espeak_ng_says_every_word_in_its_time(espeak: Espeak) -> None:
    made = espeak.say("turn the light in the kitchen on", settled(random.Random(1), *held_out_voices()[0]))
    assert [word.name for word in made.words] == "turn the light in the kitchen on".split()
    edges = [edge for word in made.words for edge in (word.start, word.end)]
    assert edges == sorted(edges) and edges[-1] <= len(made.sound) / 16_000
    for word in made.words:
        piece = made.sound[int(word.start * 16_000) : int(word.end * 16_000)]
        assert np.abs(piece).max() > 0.02, word


def test_windows_are_the_same_again_and_none_is_longer_than_eight_seconds(
    espeak: Espeak, tmp_path: Path
) -> None:
    from demo_speech.windows import read_shard

    write_shard(tmp_path / "a.npz", 5, 10, 8)
    kept = read_shard(tmp_path / "a.npz")
    again = Studio(5)
    for number, one in enumerate(kept, 10):
        window = again.window(number)
        assert [word.name for s in window.sentences for word in s.words] == [
            word.name for s in one.sentences for word in s.words
        ]
        assert one.mel.shape[1] <= 801 and one.mel.shape[0] == 80
