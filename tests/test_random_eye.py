"""Written encoders are the same every time, and mmproj knows them for what they are."""

from pathlib import Path

import pytest

from oxlo_local import gguf
from oxlo_local.mmproj import checked, projector
from oxlo_local.random_eye import EyeKind, EyeShape, layout, write_eye


@pytest.mark.parametrize("kind", ["pixtral", "gemma3", "qwen2vl"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, kind: EyeKind) -> None:
    one, other, third = (tmp_path / f"{name}.gguf" for name in ("one", "other", "third"))
    for path, seed in ((one, 1), (other, 1), (third, 2)):
        write_eye(path, kind, seed=seed)
    assert one.read_bytes() == other.read_bytes() != third.read_bytes()
    assert checked(one) == one
    assert projector(gguf.read_header(one)) == (f"{kind}_merger" if kind == "qwen2vl" else kind)


def test_shapes_are_what_was_asked_for() -> None:
    names = {
        tensor.name: tensor.shape for tensor in layout("pixtral", EyeShape(d=48, layers=3, text_d=80, ff=96))
    }
    assert names["v.patch_embd.weight"] == (48, 3, 8, 8)
    assert names["mm.1.weight"] == (80, 48)
    assert names["v.blk.2.ffn_up.weight"] == (96, 48)
    assert "v.blk.3.ffn_up.weight" not in names
