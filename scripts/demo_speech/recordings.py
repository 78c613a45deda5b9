"""A few recordings of the examination as FLAC files, and what is said in them when, for tests without espeak-ng."""

from __future__ import annotations

import json
import random
from pathlib import Path

import av
import numpy as np

from .acoustics import Sound
from .espeak import RATE, Espeak
from .evaluate import recording
from .voices import held_out_voices


def write_flac(path: Path, sound: Sound) -> None:
    """The sound (samples,) in 16 bits."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        samples = np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_recordings(folder: Path, seed: int) -> None:
    """Seven recordings of one sentence and one of five, with said.json: {file: [[[word, start, end], ...], ...]}."""
    espeak, rng = Espeak(), random.Random(f"{seed}:recordings")
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, list[list[tuple[str, float, float]]]] = {}
    for number, voice in enumerate(rng.sample(held_out_voices(), 8)):
        made = recording(espeak, rng, voice, 1 if number < 7 else 5)
        name = f"{voice[0]}-{voice[1]}.flac".lower()
        write_flac(folder / name, made.sound)
        said[name] = [
            [(word.name, round(word.start, 3), round(word.end, 3)) for word in sentence]
            for sentence in made.sentences
        ]
    (folder / "said.json").write_text(json.dumps(said, indent=1) + "\n")
