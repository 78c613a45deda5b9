"""What encoding an image does to the next tokens of others: gaps between tokens without it, during it, and unguarded.

    python scripts/bench_images.py [--talkers 4] [--threads N]

A text model of 150 M weights and an encoder of the shape of SigLIP-base (12 layers, 768 wide, 1,024 patches, 85 M
weights), both random. Some sequences talk; then one asks about an image. `turns`: the encoder and the steps take turns,
as they do where both have more threads than there are cores; `at once`: they do not.
"""

import argparse
import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from oxlo_local.calls import Load, Message, Picture, Sampling, Text, TextCall, TextOptions
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.random_eye import EyeShape, write_eye
from oxlo_local.random_model import SHAPES, write

EYE = EyeShape(d=768, layers=12, heads=12, ff=3072, patch=14, image=448, text_d=576)
GREEDY = Sampling(temperature=0)


def picture(seed: int) -> str:
    """A data: URI of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def gaps(engine: TextEngine, talkers: int, seed: int | None) -> tuple[list[float], float]:
    """Seconds between the tokens of those who talk while an image is encoded (None: none is), and what that took."""
    for i in range(talkers):
        words = [Message("user", f"{i} once upon a time")]
        engine.submit(TextCall(f"t{i}", messages=words, sampling=GREEDY, max_tokens=1500))
    for _ in range(2 * talkers + 8):
        engine.step()
    assert engine._sight is not None
    before, begun = engine._sight.encoded, time.perf_counter()
    if seed is not None:
        pictures = [Picture("<image>", picture(seed), "image")]
        turns = [Message("user", "<image>")]
        engine.submit(TextCall("i", messages=turns, pictures=pictures, sampling=GREEDY, max_tokens=1))
    last: dict[str, float] = {}
    found: list[float] = []
    while engine._sight.encoded == before and (seed is not None or time.perf_counter() - begun < 4):
        for event in engine.step():
            if isinstance(event, Text) and event.id != "i":
                now = time.perf_counter()
                found += [now - last[event.id]] if event.id in last else []
                last[event.id] = now
    took = time.perf_counter() - begun
    for i in range(talkers):
        engine.cancel(f"t{i}")
    engine.cancel("i")
    while engine.busy():
        engine.step()
    return found, took


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--talkers", type=int, default=4)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, eye = Path(folder) / "model.gguf", Path(folder) / "mmproj.gguf"
        write(model, shape=SHAPES["150m"], quant="Q8_0")
        write_eye(eye, "gemma3", EYE)
        engine = TextEngine(
            Load(
                "text",
                "m",
                str(model),
                TextOptions(ctx=2048, parallel=8, threads=options.threads, mmproj=str(eye)),
            ),
            lambda _: None,
        )
        assert engine._sight is not None
        crossing = engine._sight.crossing
        sys.stdout.write(
            f"{'':12} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8} {'tok/s each':>10} {'encoding s':>10}\n"
        )
        for number, name in enumerate(("nobody looks", "turns", "at once", "alone") * 2):
            crossing._turns = name == "turns"
            talkers = 0 if name == "alone" else options.talkers
            found, took = gaps(engine, talkers, None if name == "nobody looks" else number)
            times = np.array(found or [np.nan]) * 1000
            rate = 1000 / times.mean()
            p50, p95, most = (float(np.percentile(times, share)) for share in (50, 95, 100))
            encoding = "" if name == "nobody looks" else f"{took:.2f}"
            sys.stdout.write(f"{name:12} {p50:8.1f} {p95:8.1f} {most:8.1f} {rate:10.1f} {encoding:>10}\n")
        engine.close()


if __name__ == "__main__":
    main()
