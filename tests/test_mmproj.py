"""Which encoder is a model's own."""

from pathlib import Path

import gguf as writer
import pytest

from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.mmproj import beside, checked, stem
from oxlo_local.random_eye import EyeShape, write_eye
from oxlo_local.random_model import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "gemma-3-4b-it-Q4_K_M.gguf")
    return tmp_path


def test_names_are_compared_without_what_is_only_noise() -> None:
    same = ["gemma-3-4b-it-Q4_K_M.gguf", "mmproj-gemma-3-4b-it-f16.gguf", "gemma-3-4b-it.mmproj-Q8_0.gguf",
            "gemma-3-4b-it-BF16-00001-of-00002.gguf", "mmproj-gemma-3-4b-it.gguf"]  # fmt: skip
    assert {stem(Path(name)) for name in same} == {"gemma34bit"}
    assert stem(Path("mmproj-model-f16.gguf")) == stem(Path("mmproj-F16.gguf")) == ""
    assert stem(Path("mmproj-qwen2.5-vl-7b-f16.gguf")) == "qwen25vl7b"


def test_none_lies_there(folder: Path) -> None:
    assert beside(folder / "gemma-3-4b-it-Q4_K_M.gguf") is None


def test_one_that_is_alone_with_the_model_and_as_wide_is_its_own(folder: Path) -> None:
    model = folder / "gemma-3-4b-it-Q4_K_M.gguf"
    write_eye(folder / "mmproj-model-f16.gguf", "gemma3", EyeShape(text_d=128))
    assert beside(model) is None, "it is wider than the model"
    write_eye(folder / "mmproj-model-f16.gguf", "gemma3")
    assert beside(model) == folder / "mmproj-model-f16.gguf"
    write(folder / "another-model-Q8_0.gguf")
    assert beside(model) is None, "it may be the other's"
    assert beside(model, named="mmproj-model-f16.gguf") == folder / "mmproj-model-f16.gguf"


def test_one_that_is_called_like_the_model_is_its_own_in_company_too(folder: Path) -> None:
    write(folder / "another-model-Q8_0.gguf")
    for name in ("mmproj-gemma-3-4b-it-BF16.gguf", "mmproj-gemma-3-4b-it-F16.gguf", "mmproj-other-F16.gguf"):
        write_eye(folder / name, "gemma3")
    own = beside(folder / "gemma-3-4b-it-Q4_K_M.gguf")
    assert own == folder / "mmproj-gemma-3-4b-it-F16.gguf"
    assert beside(folder / "another-model-Q8_0.gguf") is None


def test_what_is_none_is_refused_where_it_was_named_and_passed_over_where_not(folder: Path) -> None:
    model = folder / "gemma-3-4b-it-Q4_K_M.gguf"
    with pytest.raises(BadRequest, match="no image encoder"):
        checked(model)
    with pytest.raises(BadRequest, match="cannot read"):
        checked(folder / "nothing.gguf")
    broken = folder / "mmproj-gemma-3-4b-it.gguf"
    broken.write_bytes(b"GGUF nonsense")
    assert beside(model) is None


def test_encoders_that_need_to_know_their_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    made = writer.GGUFWriter(path, "clip")
    made.add_bool("clip.has_vision_encoder", True)
    made.add_string("clip.projector_type", "hunyuanvl")
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.close()
    with pytest.raises(UnsupportedValue, match="hunyuanvl"):
        checked(path)
