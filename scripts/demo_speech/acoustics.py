"""What happens to a voice on its way: echo of a room, a narrow line, noise, and a level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .espeak import RATE

Sound = NDArray[np.float32]


def quick_length(size: int) -> int:
    """A length of at least `size` that the Fourier transform is quick at: a multiple of 4,000."""
    return -(-size // 4000) * 4000


def noise(rng: np.random.Generator, size: int) -> Sound:
    """Noise of loudness 1 (RMS): white to brown, sometimes with hum, sometimes pulsing."""
    length = quick_length(size)
    spectrum = rng.standard_normal(length // 2 + 1) + 1j * rng.standard_normal(length // 2 + 1)
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / RATE), 20.0)
    made = np.fft.irfft(spectrum * frequency ** -rng.uniform(0.0, 1.2), length)[:size]
    time = np.arange(size) / RATE
    if rng.random() < 0.2:
        hum = rng.choice((50.0, 60.0, 100.0, 120.0)) * rng.integers(1, 4)
        made = made + made.std() * rng.uniform(0.3, 2.0) * np.sin(2 * np.pi * hum * time)
    if rng.random() < 0.2:
        made = made * (1 + rng.uniform(0.2, 0.9) * np.sin(2 * np.pi * rng.uniform(0.3, 6.0) * time))
    return np.asarray(made / (np.sqrt(np.mean(made**2)) + 1e-9), np.float32)


def echoed(rng: np.random.Generator, sound: Sound) -> Sound:
    """The sound in a room whose echo fades by 60 dB in 0.1 to 0.5 s; the direct path stays where it is in time."""
    fade = rng.uniform(0.1, 0.5)
    size = int(fade * RATE)
    tail = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    tail[: int(0.002 * RATE)] = 0
    tail *= rng.uniform(0.2, 0.8) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1.0
    length = quick_length(len(sound) + size)
    return np.fft.irfft(np.fft.rfft(sound, length) * np.fft.rfft(tail, length), length)[: len(sound)].astype(
        np.float32
    )


def narrowed(rng: np.random.Generator, sound: Sound) -> Sound:
    """The sound through a line that cuts lows and highs, at worst like a telephone, and tilts what is between."""
    length = quick_length(len(sound))
    spectrum = np.fft.rfft(sound, length)
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    low, high = rng.uniform(50, 300), rng.uniform(3400, 8000)
    gain = 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high) ** 8)
    gain *= (np.maximum(frequency, 50) / 1000) ** rng.uniform(-0.3, 0.3)
    return np.fft.irfft(spectrum * gain, length)[: len(sound)].astype(np.float32)


def travelled(rng: np.random.Generator, sound: Sound) -> Sound:
    """The sound (samples,) after an echo (in a third of cases), a line (a third), noise (three quarters) and a level.

    Noise lies 6 to 40 dB below the speech; the loudest sample is between 0.03 and 1.
    """
    if rng.random() < 0.33:
        sound = echoed(rng, sound)
    if rng.random() < 0.33:
        sound = narrowed(rng, sound)
    speaking = sound[np.abs(sound) > 0.01]
    loudness = np.sqrt(np.mean(speaking**2)) if len(speaking) else 0.05
    if rng.random() < 0.75:
        below = rng.uniform(6, 40)
        sound = sound + noise(rng, len(sound)) * np.float32(loudness * 10 ** (-below / 20))
    peak = float(np.abs(sound).max())
    return (sound * (10 ** rng.uniform(-1.5, 0.0) / max(peak, 1e-4))).astype(np.float32)
