"""A vocabulary read through libllama, without a context."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from oxlo_local.engines.weights import LoadError, Weights
from oxlo_local.errors import BadRequest
from oxlo_local.random_model import write


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    path = tmp_path_factory.mktemp("weights") / "tiny.gguf"
    write(path)
    loaded = Weights(path, 0, lambda _: None)
    yield loaded
    loaded.close()
    loaded.close()  # twice does no harm


def test_every_token_has_bytes_that_people_can_read(weights: Weights) -> None:
    marker = weights.tokenize("<|im_start|>", special=True, add_special=False)
    assert len(marker) == 1 and weights.piece(marker[0]) == b""
    assert weights.token_bytes(marker[0]) == b"<|im_start|>"
    assert all(weights.token_bytes(token) for token in range(weights.n_vocab))


def test_tokens_are_checked_before_they_reach_native_code(weights: Weights) -> None:
    weights.check_tokens([0, weights.n_vocab - 1], param="tokens")
    for wrong in (-1, weights.n_vocab):
        with pytest.raises(
            BadRequest, match=f"no token {wrong}: token ids run from 0 to {weights.n_vocab - 1}"
        ):
            weights.check_tokens([0, wrong], param="tokens")


def test_a_file_that_is_no_model_is_told_in_libllamas_words(tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(LoadError, match=r"cannot load noise\.gguf: \S"):
        Weights(path, 0, lambda _: None)
