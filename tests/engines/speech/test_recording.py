"""Whatever is uploaded becomes sound, or an error that names the stream and what is wrong with it."""

import random
from pathlib import Path

import av
import numpy as np
import pytest

from oxlo_local.engines.speech.recording import RATE, Recording
from oxlo_local.errors import UndecodableFile
from tests.engines.speech.sounds import F32, silence, speech, wav

HOUR = 3600.0


def heard(path: Path, longest: float = HOUR) -> F32:
    recording = Recording(path, longest)
    try:
        return np.concatenate(list(recording.blocks()))
    finally:
        recording.close()


def refused(path: Path, longest: float = HOUR) -> str:
    with pytest.raises(UndecodableFile) as caught:
        heard(path, longest)
    assert caught.value.param == "file" and str(path) not in caught.value.message
    return caught.value.message


def muxed(path: Path, container: str, codec: str, rate: int, seconds: float = 3.0) -> Path:
    """A second of silence, then a tone, in a container."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        tone = np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) * 12_000
        tone[:rate] = 0
        frame = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        assert isinstance(stream, av.AudioStream)
        context = stream.codec_context
        fitting = av.AudioResampler(
            format=context.format.name if context.format else "s16",
            layout="mono",
            rate=rate,
            frame_size=context.frame_size or 1024,
        )
        for piece in [*fitting.resample(frame), *fitting.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 8_000),
        ("wav", "pcm_f32le", 48_000),
        ("flac", "flac", 44_100),
        ("mp3", "libmp3lame", 44_100),
        ("mp4", "aac", 44_100),
        ("adts", "aac", 48_000),
        ("ogg", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("matroska", "pcm_s16le", 16_000),
        ("aiff", "pcm_s16be", 22_050),
        ("avi", "pcm_s16le", 11_025),
    ],
)
def test_containers(container: str, codec: str, rate: int, tmp_path: Path) -> None:
    sound = heard(muxed(tmp_path / "sound", container, codec, rate))
    assert len(sound) / RATE == pytest.approx(3.0, abs=0.1)
    assert np.abs(sound[: RATE // 2]).max() < 0.02
    assert np.abs(sound[2 * RATE :]).max() == pytest.approx(0.37, abs=0.05)


def test_what_needs_no_resampling_is_taken_as_it_is(tmp_path: Path) -> None:
    tone = speech(2.0, 7)
    written = (tone * 32767).astype(np.int16).astype(np.float32) / 32768
    assert np.array_equal(heard(wav(tmp_path / "ready.wav", tone)), written)


def test_sixteen_channels_at_192_kHz(tmp_path: Path) -> None:
    tone = (np.sin(np.arange(2 * 192_000) * 2 * np.pi * 440 / 192_000) * 0.5).astype(np.float32)
    sound = heard(wav(tmp_path / "wide.wav", tone, rate=192_000, channels=16))
    assert len(sound) == 2 * RATE
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_mixed_alike(tmp_path: Path) -> None:
    few, many = (heard(wav(tmp_path / f"{count}.wav", speech(2), channels=count)) for count in (1, 12))
    assert np.abs(few - many).max() < 0.01


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("nothing.mp3", b"", "the file is empty"),
        ("text.mp3", b"Dear all, please find enclosed\n" * 300, "no sound or video file"),
        ("noise.wav", random.Random(0).randbytes(300_000), "no sound or video file"),
        (
            "playlist.m3u8",
            b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
            "no sound or video",
        ),
        ("concat.txt", b"ffconcat version 1.0\nfile /etc/hostname\n", "no sound or video file"),
        (
            "call.sdp",
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
            "no sound or video",
        ),
    ],
)
def test_what_is_no_recording(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert why in refused(path)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    sound = wav(tmp_path / "secret.wav", speech(1))
    for name, content in (
        ("a.m3u8", f"#EXTM3U\n#EXTINF:1,\nfile://{sound}\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", f"ffconcat version 1.0\nfile {sound}\n"),
    ):
        (tmp_path / name).write_text(content)
        assert "no sound or video file" in refused(tmp_path / name)


def test_a_film_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        out.mux(stream.encode(None))
    assert "no stream of sound in it; it holds stream 0 (video)" in refused(path)


def test_no_samples(tmp_path: Path) -> None:
    assert "stream 0 (audio: pcm_s16le) holds no sound" in refused(wav(tmp_path / "none.wav", silence(0)))


@pytest.mark.parametrize("rate", [10, 2_000_000_000])
def test_rates_that_would_take_all_memory(rate: int, tmp_path: Path) -> None:
    assert "samples a second" in refused(wav(tmp_path / "odd.wav", speech(1), rate=rate))


@pytest.mark.parametrize("declared", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFF00])
def test_recorders_that_could_not_go_back_to_their_header(declared: int, tmp_path: Path) -> None:
    assert len(heard(wav(tmp_path / "live.wav", speech(3), declared=declared))) == 3 * RATE


def test_a_wav_that_is_cut_off(tmp_path: Path) -> None:
    message = refused(wav(tmp_path / "cut.wav", speech(3), declared=10 * RATE * 2))
    assert (
        "stream 0 (audio: pcm_s16le) is cut off: its header says 320,000 bytes and 96,000 are there"
        in message
    )


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame")])
def test_others_that_are_cut_off(container: str, codec: str, tmp_path: Path) -> None:
    path = muxed(tmp_path / "whole", container, codec, 44_100, seconds=8.0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is cut off: its header says 8.0 s" in refused(path)


def test_a_film_that_is_cut_off_before_its_index(tmp_path: Path) -> None:
    path = muxed(tmp_path / "whole", "mp4", "aac", 44_100)
    path.write_bytes(path.read_bytes()[:4000])
    assert "no sound or video file that FFmpeg knows" in refused(path)


def test_some_damage_is_left_out(tmp_path: Path) -> None:
    path = muxed(tmp_path / "hurt", "flac", "flac", 44_100, seconds=8.0)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = random.Random(1).randbytes(200)
    path.write_bytes(content)
    assert 7.0 < len(heard(path)) / RATE <= 8.1


def test_mostly_damage_is_refused(tmp_path: Path) -> None:
    path = muxed(tmp_path / "hurt", "flac", "flac", 16_000, seconds=8.0)
    content = bytearray(path.read_bytes())
    spoil = random.Random(2)
    for start in range(100, len(content) - 200, 400):
        content[start : start + 100] = spoil.randbytes(100)
    path.write_bytes(content)
    assert "stream 0 (audio: flac)" in refused(path)


def test_longer_than_allowed(tmp_path: Path) -> None:
    path = wav(tmp_path / "long.wav", silence(20))
    assert "is longer than 0.005 hours" in refused(path, longest=18)
    live = wav(tmp_path / "live.wav", silence(20), declared=0)
    assert "is longer than 0.005 hours" in refused(live, longest=18)


def test_a_header_that_promises_years_is_believed_in_nothing(tmp_path: Path) -> None:
    path = muxed(tmp_path / "tiny.flac", "flac", "flac", 16_000, seconds=1.0)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # STREAMINFO: 36 bits of samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert "is longer than 1 hours" in refused(path)
