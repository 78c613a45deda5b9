"""From a folder, or a single file, to diffusers pipelines that share one set of weights, placed where they compute.

Nothing is fetched: a worker never asks the network. Nothing is unpickled, and no code that lies beside weights is run:
weights are read from .safetensors alone, and classes are those of diffusers and transformers.
"""

import inspect
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries below read it
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import torch
import transformers

from oxlo_local.calls import ImageOptions, Mode
from oxlo_local.engines.image.shrunk import shrink

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICKLED = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
VARIANTS = ("fp16", "bf16")  # in the names of files that are there in other number formats too
KINDS: dict[Mode, str] = {"redraw": "Img2ImgPipeline", "inpaint": "InpaintPipeline"}
# Pipelines that look at images while they draw from noise: there is no class for drawing again.
LOOKING = frozenset(
    {"Flux2KleinPipeline", "Flux2Pipeline", "FluxKontextPipeline", "QwenImageEditPlusPipeline"}
)
LEFT_OUT = ("safety_checker", "image_encoder")  # neither draws: who serves a model decides what it may


class LoadError(Exception):
    """What lies there is no pipeline that runs here; the message says why."""


@dataclass(frozen=True)
class Loaded:
    """A pipeline for each mode; all of them share their components."""

    modes: dict[Mode, Any]
    device: str  # cpu or cuda
    dtype: str
    parameters: int
    loras: dict[str, str]  # those that calls may name, and what diffusers calls them

    @property
    def first(self) -> Any:
        """The one that draws from text."""
        return self.modes["draw"]


def load(path: Path, options: ImageOptions) -> Loaded:
    """Load what lies at `path`. Raises LoadError."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise LoadError("there is no GPU that torch can use here: leave the option device out")
    dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
    pipeline = _opened(path, options, DTYPES[dtype])
    _spaced(pipeline, options)
    parameters = sum(each.numel() for module in _modules(pipeline) for each in module.parameters())
    loras = _take_loras(pipeline, options)
    kind = options.weights or "full"
    if kind != "full":
        if loras:
            raise LoadError(f"weights in {kind} take no LoRA that calls name: leave out loras, or weights")
        for module in _modules(pipeline):
            shrink(module, kind)
    _arrange(pipeline, device, options.offload or "none")
    modes: dict[Mode, Any] = {"draw": pipeline}
    for mode, name in classes(type(pipeline).__name__, options.modes or {}).items():
        modes[mode] = (
            pipeline if name == type(pipeline).__name__ else _class(name)(**_parts_for(name, pipeline))
        )
    for each in modes.values():
        each.set_progress_bar_config(disable=True)
    return Loaded(modes, device, dtype if kind == "full" else kind, parameters, loras)


def classes(name: str, given: dict[Mode, str]) -> dict[Mode, str]:
    """The classes of the other modes, by the name of the one that draws from text: as diffusers names them."""
    stem = name.removesuffix("Pipeline")
    found = {mode: stem + ending for mode, ending in KINDS.items() if hasattr(diffusers, stem + ending)}
    if name in LOOKING:
        found.setdefault("redraw", name)
    return {mode: each for mode, each in (found | given).items() if mode != "draw"}


def _opened(path: Path, options: ImageOptions, dtype: torch.dtype) -> Any:
    try:
        if path.is_dir():
            return _from_folder(path, options, dtype)
        return _from_file(path, options, dtype)
    except LoadError:
        raise
    except (
        Exception
    ) as error:  # of diffusers, transformers or safetensors: whatever a broken folder makes them raise
        raise LoadError(f"{path} cannot be loaded: {error}") from error


def _from_folder(folder: Path, options: ImageOptions, dtype: torch.dtype) -> Any:
    index = folder / "model_index.json"
    if not index.is_file():
        raise LoadError(f"{folder} is no diffusers pipeline: model_index.json is missing")
    described = json.loads(index.read_text("utf-8"))
    name = options.pipeline or described.get("_class_name")
    found = _class(name)
    files = [file for file in folder.rglob("*") if file.is_file()]
    if any(file.suffix == ".py" for file in files):
        raise LoadError(f"{folder} brings code of its own, which oxlo does not run")
    _check_parts(described)
    _check_weights(folder, described, files)
    weights = [file.name for file in files if file.suffix == ".safetensors" and file.parent != folder]
    variants = {form for form in VARIANTS for name in weights if f".{form}" in name}
    plain = any(not any(f".{form}" in name for form in VARIANTS) for name in weights)
    without: dict[str, bool | None] = {
        part: None for part in LEFT_OUT if part in inspect.signature(found.__init__).parameters
    }
    if "requires_safety_checker" in inspect.signature(found.__init__).parameters:
        without["requires_safety_checker"] = False
    return found.from_pretrained(
        str(folder),
        dtype=dtype,
        variant=None if plain or not variants else min(variants),
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=True,
        **without,
    )


def _check_parts(described: dict[str, object]) -> None:
    """Refuse a part whose class is of another library: to look for it would import whatever is named."""
    for name, part in described.items():
        library = part[0] if isinstance(part, list) and len(part) == 2 else None
        if library not in (None, "diffusers", "transformers") and not hasattr(
            diffusers.pipelines, str(library)
        ):
            raise LoadError(f"{name} is of {library}: oxlo loads parts of diffusers and transformers alone")


def _check_weights(folder: Path, described: dict[str, object], files: Iterable[Path]) -> None:
    """Refuse a component that has pickled weights and no others."""
    parts = [folder / name for name in described if (folder / name).is_dir()]
    for part in parts:
        own = [file for file in files if file.parent == part]
        pickled = [file.name for file in own if file.suffix in PICKLED]
        if pickled and not any(file.suffix == ".safetensors" for file in own):
            raise LoadError(
                f"{part.name}/{pickled[0]} is pickled, and unpickling runs whatever code it holds: oxlo loads "
                ".safetensors alone"
            )


def _from_file(path: Path, options: ImageOptions, dtype: torch.dtype) -> Any:
    if path.suffix in PICKLED:
        raise LoadError(
            f"{path.name} is pickled, and unpickling runs whatever code it holds: oxlo loads .safetensors alone"
        )
    if path.suffix != ".safetensors":
        raise LoadError(f"{path} is neither a folder with a model_index.json nor a .safetensors file")
    if options.config is None:
        raise LoadError(
            f"{path.name} holds weights alone: name a folder with the configuration of such a pipeline (its "
            "model_index.json, the folders of its parts, its tokenizer; no weights are needed) as image.config in "
            "your models.toml"
        )
    config = Path(options.config).expanduser()
    if not (config / "model_index.json").is_file():
        raise LoadError(f"image.config = {config}: there is no model_index.json in it")
    for file in config.glob("*/*"):
        if file.suffix in PICKLED:
            raise LoadError(f"image.config = {config}: {file.parent.name}/{file.name} is pickled; remove it")
    name = options.pipeline or json.loads((config / "model_index.json").read_text("utf-8")).get("_class_name")
    found = _class(name)
    if not hasattr(found, "from_single_file"):
        raise LoadError(f"a {name} cannot be loaded from a single file")
    return found.from_single_file(str(path), config=str(config), dtype=dtype, local_files_only=True)


def _class(name: object) -> Any:
    """A pipeline class of diffusers."""
    found = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Pipeline") else None
    if found is None:
        raise LoadError(f"diffusers {diffusers.__version__} has no pipeline {name!r}")
    return found


def _parts_for(name: str, pipeline: Any) -> dict[str, object]:
    """What another class is made of: the components of this pipeline, and those of its settings that it knows."""
    wanted = inspect.signature(_class(name).__init__).parameters
    known = {**dict(pipeline.config), **pipeline.components}
    return {part: known[part] for part in wanted if part in known}


def _modules(pipeline: Any) -> list[torch.nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def _spaced(pipeline: Any, options: ImageOptions) -> None:
    """Another spacing of timesteps, which weights distilled to few steps may need."""
    if options.spacing is not None:
        scheduler = pipeline.scheduler
        if "timestep_spacing" not in scheduler.config:
            raise LoadError(
                f"a {type(scheduler).__name__} spaces its timesteps as it does: leave out spacing"
            )
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing=options.spacing)


def _take_loras(pipeline: Any, options: ImageOptions) -> dict[str, str]:
    """Load the LoRAs and make those that are to be so a part of the weights; returns the others."""
    taken: dict[str, str] = {}
    for name, file in (options.loras or {}).items():
        path = Path(file).expanduser()
        if path.suffix != ".safetensors":
            raise LoadError(f"LoRA {name}: {path} is no .safetensors file, and oxlo loads no others")
        if not path.is_file():
            raise LoadError(f"LoRA {name}: there is no file {path}")
        if not hasattr(pipeline, "load_lora_weights"):
            raise LoadError(f"LoRA {name}: a {type(pipeline).__name__} takes none")
        taken[name] = name.replace(".", "_")  # peft makes modules of the names
        try:
            pipeline.load_lora_weights(
                str(path.parent), weight_name=path.name, adapter_name=taken[name], local_files_only=True
            )
        except Exception as error:  # whatever weights of another model make it raise
            raise LoadError(f"LoRA {name}: {path} does not go with this model: {error}") from error
    if options.fused:
        missing = set(options.fused) - set(options.loras or {})
        if missing:
            raise LoadError(f"fused names {', '.join(sorted(missing))}, which loras does not")
        adapters = [taken.pop(name) for name in options.fused]
        pipeline.fuse_lora(adapter_names=adapters)
        pipeline.delete_adapters(adapters)
        if not taken:  # nothing is left of peft's layers then
            pipeline.unload_lora_weights()
    return taken


def _arrange(pipeline: Any, device: str, offload: str) -> None:
    """Put the weights where they are computed with, in the order that flat convolutions like."""
    for module in (getattr(pipeline, name) for name in ("unet", "vae") if hasattr(pipeline, name)):
        if all(weight.ndim < 5 for weight in module.parameters()):
            module.to(memory_format=torch.channels_last)
    if offload == "model" and device == "cuda":
        pipeline.enable_model_cpu_offload()
    elif offload == "sequential" and device == "cuda":
        pipeline.enable_sequential_cpu_offload()
    else:
        pipeline.to(device)
    where = f" with {offload} offload" if offload != "none" else ""
    sys.stderr.write(f"{type(pipeline).__name__} is on {device}{where}\n")
