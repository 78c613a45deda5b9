"""What is loaded, in which number format and classes; and what is not, in words that say what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from oxlo_local import random_diffuser
from oxlo_local.calls import ImageOptions
from oxlo_local.engines.image.loading import LoadError, classes, load
from oxlo_local.engines.image.shrunk import Shrunk
from tests.engines.image import families, single

CPU = ImageOptions(device="cpu")


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def lora_file(path: Path, width: int = 32, height: int = 16, random: float = 0.0) -> Path:
    """A LoRA of rank 2 for the text that the first level of the network looks at: halves everywhere, or `random`."""
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    noise = torch.Generator().manual_seed(0)
    down = torch.randn(2, width, generator=noise) * random if random else torch.full((2, width), 0.5)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": torch.full((height, 2), 0.5)}, path)
    return path


def test_all_modes_share_one_set_of_weights(tiny_folder: Path) -> None:
    loaded = load(tiny_folder, CPU)
    names = {mode: type(each).__name__ for mode, each in loaded.modes.items()}
    assert names == {
        "draw": "StableDiffusionPipeline",
        "redraw": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
    }
    assert len({id(each.unet) for each in loaded.modes.values()}) == 1
    assert len({id(each.scheduler) for each in loaded.modes.values()}) == 1
    assert (loaded.device, loaded.dtype) == ("cpu", "float32")
    assert loaded.parameters == sum(
        part.numel()
        for name in ("unet", "vae", "text_encoder")
        for part in getattr(loaded.first, name).parameters()
    )


def test_the_number_format_can_be_chosen(tiny_folder: Path) -> None:
    loaded = load(tiny_folder, ImageOptions(device="cpu", dtype="bfloat16"))
    assert {each.unet.dtype for each in loaded.modes.values()} == {
        torch.bfloat16
    } and loaded.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("name", "redraw", "inpaint"),
    [
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        ("Flux2KleinPipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
        ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    ],
)
def test_the_classes_of_the_families(name: str, redraw: str, inpaint: str) -> None:
    assert classes(name, {}) == {"redraw": redraw, "inpaint": inpaint}
    assert classes(name, {"redraw": "OtherPipeline"})["redraw"] == "OtherPipeline"


def test_files_in_a_small_number_format_are_found(copy: Path) -> None:
    for file in list(copy.glob("*/*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert load(copy, CPU).parameters > 0


def test_pickled_weights_are_refused(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), copy / "unet" / "diffusion_pytorch_model.bin")
    assert load(copy, CPU).parameters > 0  # it lies beside those that are taken
    pickled = copy / "ink.pt"
    torch.save({}, pickled)
    with pytest.raises(LoadError, match="oxlo loads no others"):
        load(copy, ImageOptions(device="cpu", loras={"ink": str(pickled)}))
    file.unlink()
    with pytest.raises(LoadError, match=r"unet/diffusion_pytorch_model\.bin is pickled"):
        load(copy, CPU)
    for name in ("model.ckpt", "model.pt", "model.bin"):
        with pytest.raises(LoadError, match="is pickled"):
            load(copy / name, CPU)


def test_code_beside_weights_is_not_run(copy: Path) -> None:
    (copy / "unet" / "own.py").write_text("raise SystemExit('I ran')")
    with pytest.raises(LoadError, match="brings code of its own"):
        load(copy, CPU)


def test_what_is_no_pipeline_says_why(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model_index\.json is missing"):
        load(tmp_path, CPU)
    with pytest.raises(LoadError, match=r"neither a folder with a model_index\.json nor"):
        load(tmp_path / "model.gguf", CPU)
    with pytest.raises(LoadError, match="no pipeline 'OwnPipeline'"):
        load(copy, ImageOptions(device="cpu", pipeline="OwnPipeline"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": ["own", "OwnPipeline"]}))
    with pytest.raises(LoadError, match="no pipeline"):
        load(copy, CPU)
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["antigravity", "AutoencoderKL"]}))
    with pytest.raises(LoadError, match="vae is of antigravity"):
        load(copy, CPU)
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(copy, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(tiny_folder: Path) -> None:
    with pytest.raises(LoadError, match="no GPU that torch can use"):
        load(tiny_folder, ImageOptions(device="cuda"))


def test_a_single_file_needs_a_configuration_and_no_network(
    tiny_folder: Path, copy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "one.safetensors"
    single.write(tiny_folder, file, layers=1, vae_levels=3)
    for weights in copy.glob("*/*.safetensors"):
        weights.unlink()  # what is left is the configuration
    loaded = load(file, ImageOptions(device="cpu", config=str(copy)))
    whole = load(tiny_folder, CPU)
    assert loaded.modes.keys() == whole.modes.keys() and loaded.parameters == whole.parameters
    for name in ("unet", "vae", "text_encoder"):
        theirs = getattr(whole.first, name).state_dict()
        for key, weight in getattr(loaded.first, name).state_dict().items():
            assert torch.equal(weight, theirs[key]), (name, key)
    with pytest.raises(LoadError, match=r"holds weights alone: name a folder .* as image\.config"):
        load(file, CPU)
    with pytest.raises(LoadError, match=r"there is no model_index\.json in it"):
        load(file, ImageOptions(device="cpu", config=str(tmp_path)))


def test_a_single_file_that_lacks_a_part_says_which(tiny_folder: Path, copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    vae = load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({f"first_stage_model.{name}": tensor for name, tensor in vae.items()}, file)
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(file, ImageOptions(device="cpu", config=str(copy)))
    torch.save({}, copy / "unet" / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"unet/pytorch_model\.bin is pickled"):
        load(file, ImageOptions(device="cpu", config=str(copy)))


def test_loras_are_taken_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "ink.safetensors")
    loaded = load(tiny_folder, ImageOptions(device="cpu", loras={"ink.v1": str(file)}))
    assert loaded.loras == {"ink.v1": "ink_v1"}
    fused = load(tiny_folder, ImageOptions(device="cpu", loras={"ink": str(file)}, fused=["ink"]))
    assert fused.loras == {}
    plain = load(tiny_folder, CPU)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    found = [each.first.unet.get_submodule(layer) for each in (plain, fused)]
    assert float((found[1].weight - found[0].weight).detach().mean()) == pytest.approx(
        2 * 0.5 * 0.5, rel=1e-4
    )


def test_sdxl_takes_a_lora_in_the_form_of_other_programs_as_part_of_it(tmp_path: Path) -> None:
    """Lightning's is one: its names have underscores for dots, its matrices are called down, up and alpha."""
    families.write(tmp_path / "xl", "sdxl")
    plain = load(tmp_path / "xl", CPU)
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
    before = plain.first.unet.get_submodule(layer).weight.detach()
    name = f"lora_unet_{layer.replace('.', '_')}"
    weights = {
        f"{name}.lora_down.weight": torch.full((2, before.shape[1]), 0.5),
        f"{name}.lora_up.weight": torch.full((before.shape[0], 2), 0.5),
        f"{name}.alpha": torch.tensor(1.0),  # half of the rank: so much of the product is added
    }
    file = tmp_path / "fast.safetensors"
    save_file(weights, file)
    options = ImageOptions(
        device="cpu", loras={"fast": str(file)}, fused=["fast"], spacing="trailing", steps=4
    )
    fused = load(tmp_path / "xl", options)
    after = fused.first.unet.get_submodule(layer).weight.detach()
    assert torch.allclose(after - before, torch.full_like(before, 0.25), atol=1e-5)
    assert fused.loras == {} and fused.first.scheduler.config.timestep_spacing == "trailing"


def test_loras_that_do_not_go_with_it_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no file"):
        load(tiny_folder, ImageOptions(device="cpu", loras={"ink": str(tmp_path / "gone.safetensors")}))
    other = lora_file(tmp_path / "other.safetensors", width=48)
    with pytest.raises(LoadError, match="does not go with this model"):
        load(tiny_folder, ImageOptions(device="cpu", loras={"ink": str(other)}))
    with pytest.raises(LoadError, match="fused names clay, which loras does not"):
        load(tiny_folder, ImageOptions(device="cpu", fused=["clay"]))
    file = lora_file(tmp_path / "ink.safetensors")
    with pytest.raises(LoadError, match="take no LoRA that calls name"):
        load(tiny_folder, ImageOptions(device="cpu", loras={"ink": str(file)}, weights="int8"))


def test_a_lora_that_is_part_of_the_model_is_so_in_small_weights_too(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    random_diffuser.write(wide, random_diffuser.Shape(text_width=1024, unet=(64, 64), head=32, groups=8))
    file = lora_file(tmp_path / "ink.safetensors", width=1024, height=64)
    options = ImageOptions(device="cpu", loras={"ink": str(file)}, fused=["ink"], weights="int8")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    plain, fused = (load(wide, each).first.unet.get_submodule(layer) for each in (CPU, options))
    assert isinstance(fused, Shrunk)
    assert float((fused.weight - plain.weight).detach().mean()) == pytest.approx(2 * 0.5 * 0.5, rel=1e-2)


def test_another_spacing_of_timesteps(tiny_folder: Path) -> None:
    assert load(tiny_folder, CPU).first.scheduler.config.timestep_spacing == "leading"
    spaced = load(tiny_folder, ImageOptions(device="cpu", spacing="trailing"))
    assert {each.scheduler.config.timestep_spacing for each in spaced.modes.values()} == {"trailing"}


def test_a_scheduler_without_spacing_says_so(tmp_path: Path) -> None:
    families.write(tmp_path, "z-image")
    with pytest.raises(LoadError, match="a FlowMatchEulerDiscreteScheduler spaces its timesteps as it does"):
        load(tmp_path, ImageOptions(device="cpu", spacing="trailing"))
