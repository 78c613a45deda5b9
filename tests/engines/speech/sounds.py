"""Sound made of numbers: something that passes for speech, silence, and files around it."""

import struct
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
