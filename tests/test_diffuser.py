"""Which folders and files hold an image model, which of their files make it up, and how large it is."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from oxlo_local import diffuser, random_diffuser
from oxlo_local.errors import BadRequest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    random_diffuser.write(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy whose files are links, to be changed."""
    copy = tmp_path / "mine"
    for file in made.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(made)).hardlink_to(file)
    return copy


def test_the_files_of_a_pipeline(folder: Path) -> None:
    (folder / "README.md").write_text("# mine")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"beside the real ones")
    names = [file.relative_to(folder).as_posix() for file in diffuser.files(folder)]
    assert names[0] == "model_index.json"
    assert "unet/diffusion_pytorch_model.safetensors" in names and "tokenizer/merges.txt" in names
    assert not any(name.endswith((".bin", ".md")) for name in names)


def test_how_large_its_parts_are(folder: Path) -> None:
    sizes = diffuser.sizes(folder)
    assert set(sizes) == {"text_encoder", "unet", "vae"}
    whole = sum(
        tensor.numel() for tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()
    )
    assert sizes["unet"] == whole
    single = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert diffuser.sizes(single) == {"diffusion_pytorch_model": whole}


def test_of_two_number_formats_one_is_taken() -> None:
    names = [
        "model_index.json",
        "README.md",
        "unet/config.json",
        "vae/config.json",
        "safety_checker/config.json",
    ]
    plain = [
        "unet/x.safetensors",
        "vae/x.safetensors",
        "safety_checker/x.safetensors",
        "unet/x.bin",
        "all.safetensors",
    ]
    small = ["unet/x.fp16.safetensors", "text_encoder_3/model.fp16-00001-of-00002.safetensors"]
    found = diffuser.parts([*names, *plain, *small])
    assert found[0] == "model_index.json"
    assert set(found[1:]) == {"unet/config.json", "vae/config.json", "vae/x.safetensors", *small}
    assert diffuser.parts(["config.json", "model.safetensors"]) == []


def test_what_holds_no_pipeline_says_why(folder: Path, tmp_path: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(BadRequest, match=r"vae/diffusion_pytorch_model\.bin is pickled"):
        diffuser.files(folder)
    (folder / "pipeline.py").write_text("print('run me')")
    with pytest.raises(BadRequest, match=r"code of its own \(pipeline\.py\)"):
        diffuser.files(folder)
    with pytest.raises(BadRequest, match=r"lacks model_index\.json"):
        diffuser.files(folder / "vae")
    with pytest.raises(BadRequest, match=r"model\.ckpt is pickled"):
        diffuser.files(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "data", [b"", b"\x08\0\0\0\0\0\0\0not json", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"PK\x03\x04" * 9]
)
def test_what_is_no_safetensors_file_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(BadRequest, match=r"is no \.safetensors file"):
        diffuser.files(file)


def test_a_single_file_is_a_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"), file)
    assert diffuser.files(file) == [file]
