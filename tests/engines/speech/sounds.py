"""Sound made of numbers: something that passes for speech, silence, and files around it."""

import struct
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
RATE = 16_000
# The resonances of a, e, i, o, u in Hz.
VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))


def silence(seconds: float) -> F32:
    return np.zeros(int(seconds * RATE), np.float32)


def speech(seconds: float, seed: int = 0) -> F32:
    """Vowels of an eighth of a second each, spoken by a buzzing voice; voice activity models take it for speech."""
    random = np.random.default_rng(seed)
    out = np.zeros(int(seconds * RATE), np.float32)
    syllable = RATE // 8
    spectrum = np.fft.rfftfreq(syllable, 1 / RATE)
    phase = 0.0
    for start in range(0, len(out), syllable):
        pitch = random.uniform(105, 150)
        buzz = np.zeros(syllable, np.float32)
        while phase < syllable:
            buzz[int(phase)] = 1.0
            phase += RATE / pitch
        phase -= syllable
        vowel = VOWELS[random.integers(len(VOWELS))]
        shape = sum(1 / (1 + ((spectrum - formant) / 90) ** 2) for formant in vowel)
        heard = np.fft.irfft(np.fft.rfft(buzz) * shape, syllable) * np.hanning(syllable)
        out[start : start + syllable] = heard[: len(out) - start]
    return (0.4 * out / max(1e-9, float(np.abs(out).max()))).astype(np.float32)


def wav(path: Path, sound: F32, *, rate: int = RATE, channels: int = 1, declared: int | None = None) -> Path:
    """A 16-bit WAV file; `declared` = what its header says of the size of the data, in bytes."""
    data = np.repeat((sound * 32767).astype("<i2")[:, None], channels, axis=1).tobytes()
    size = len(data) if declared is None else declared
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    riff = struct.pack("<I", min(36 + size, 0xFFFFFFFF))
    path.write_bytes(b"RIFF" + riff + b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + data)
    return path


def flac(path: Path, sound: F32) -> Path:
    """A FLAC file."""
    with av.open(str(path), "w", format="flac") as out:
        stream = out.add_stream("flac", rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(
            (sound * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Codec:
    """A way to keep sound: a container by FFmpeg's name, a codec, and perhaps a film beside it."""

    container: str
    codec: str
    rate: int = RATE
    channels: int = 1
    film: str | None = None
    bits: int = 0  # a second, 0 = as the codec likes it

    def __str__(self) -> str:
        parts = [
            f"{self.container} / {self.codec}",
            f"{self.rate} Hz",
            "stereo" if self.channels == 2 else "",
        ]
        return ", ".join(part for part in [*parts, f"film {self.film}" if self.film else ""] if part)


def written(path: Path, source: Path, codec: Codec) -> Path | None:
    """The sound of `source` in that form; None where FFmpeg was built without what that takes."""
    try:
        with av.open(str(path), "w", format=codec.container) as out:
            film = _film(out, codec.film) if codec.film else None
            # FFmpeg's own Vorbis encoder counts as an experiment.
            sound = out.add_stream(codec.codec, rate=codec.rate, options={"strict": "experimental"})
            assert isinstance(sound, av.AudioStream)
            sound.layout = "stereo" if codec.channels == 2 else "mono"
            if codec.bits:
                sound.bit_rate = codec.bits
            context = sound.codec_context
            context.open()
            fitting = av.AudioResampler(
                format=context.format.name,
                layout=sound.layout.name,
                rate=codec.rate,
                frame_size=context.frame_size or 1024,
            )
            with av.open(str(source)) as given:
                for frame in [*given.decode(audio=0), None]:
                    for piece in fitting.resample(frame):
                        out.mux(sound.encode(piece))
            out.mux(sound.encode(None))
            if film is not None:
                for _ in range(25):
                    out.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
                out.mux(film.encode(None))
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, ValueError):
        return None
    return path


def _film(out: av.container.OutputContainer, codec: str) -> av.VideoStream:
    """A dark square."""
    stream = out.add_stream(codec, rate=25)
    assert isinstance(stream, av.VideoStream)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return stream
