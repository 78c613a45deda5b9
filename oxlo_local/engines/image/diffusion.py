"""A loaded model: what it can do, what a prompt is to it, and drawing a batch of images in one denoising loop.

The noise of every image comes from a generator of its own, on the CPU, so that it depends on the seed and on nothing
that happens to be drawn beside it.
"""

import gc
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from oxlo_local.calls import ImageFacts, ImageOptions, Lora, Mode
from oxlo_local.engines.image.asking import Key
from oxlo_local.engines.image.latents import Foresight, pixels
from oxlo_local.engines.image.loading import LOOKING, LoadError, load
from oxlo_local.engines.image.source import Source

SLICED = 600_000  # pixels from which on several images are decoded one after the other
TILED = 1_600_000  # and each in tiles
LOOKED_AT = 4  # images that a pipeline that looks at images is shown at most
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
VARYING = ("ZImage", "QwenImage")  # families whose prompts are not padded to one length
THINKING = "ZImage"
TEMPLATED = ("Flux2Klein", THINKING)  # families that show the prompt to a language model as a chat


@dataclass(frozen=True)
class Row:
    """One image to draw."""

    prompt: str
    negative: str
    seed: int
    source: Source | None = None


@dataclass(frozen=True)
class Stepped:
    """`step` of `of` steps are done; previews of some rows."""

    step: int
    of: int
    previews: dict[int, Image]


Pause = Callable[[Stepped], None]
Due = Callable[[int, int], list[int]]  # (step, of) -> rows of which a preview is due


class Diffusion:
    """A loaded model. `path` is a folder in diffusers' form, or a single .safetensors file. Raises LoadError."""

    def __init__(self, path: Path, options: ImageOptions) -> None:
        self._options = options
        self._loaded = load(path, options)
        self._foresight = Foresight(self._loaded.first.scheduler)
        self._weighted: tuple[Lora, ...] | None = None
        self.device = self._loaded.device
        self.dtype = self._loaded.dtype
        self.parameters = self._loaded.parameters
        self.architecture = type(self._loaded.first).__name__
        self.looks = self.architecture in LOOKING
        if self._loaded.loras:
            self._weigh(())

    # -- what it can do -----------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> ImageFacts:
        """What it does, by its options, its configuration and its class, in this order."""
        options, takes = self._options, self._takes("draw")
        modes: list[Mode] = [mode for mode in ("draw", "redraw", "inpaint") if mode in self._loaded.modes]
        distilled = bool(self._loaded.first.config.get("is_distilled"))
        usual = 1.0 if distilled else self._default("draw", self._guidance_name)
        guided = not distilled if options.guided is None else options.guided
        negative = "negative_prompt" in takes and guided and self._guidance_name in takes
        strength = self._default("redraw", "strength") if "redraw" in modes else 0.0
        return ImageFacts(
            modes=modes,
            sizes=options.sizes or [self._usual_size],
            steps=options.steps or int(self._default("draw", "num_inference_steps")),
            guidance=usual if options.guidance is None else options.guidance,
            guided=guided,
            negative=negative if options.negative is None else options.negative,
            strength=strength if options.strength is None else options.strength,
            max_images=LOOKED_AT if self.looks else 1,
            prompt_tokens=self.prompt_tokens,
            loras=list(self._loaded.loras),
        )

    @property
    def _usual_size(self) -> tuple[int, int]:
        first = self._loaded.first
        if hasattr(first, "unet"):
            latent = first.unet.config.sample_size
        else:
            latent = getattr(first, "default_sample_size", None) or 1024 // first.vae_scale_factor
        side = int(latent if isinstance(latent, int) else latent[0]) * first.vae_scale_factor
        return side, side

    @property
    def _guidance_name(self) -> str:
        """The argument that guides: where there are two, the other one is for models that were taught a number."""
        return "true_cfg_scale" if self.architecture.startswith("QwenImage") else "guidance_scale"

    def _takes(self, mode: Mode) -> Mapping[str, inspect.Parameter]:
        """The arguments of a mode's pipeline."""
        return inspect.signature(self._loaded.modes[mode].__call__).parameters

    def _default(self, mode: Mode, name: str) -> float:
        """What an argument of a mode's pipeline is where nobody says; 0 where there is none."""
        parameter = self._takes(mode).get(name)
        found = None if parameter is None else parameter.default
        return float(found) if isinstance(found, int | float) else 0.0

    # -- prompts ------------------------------------------------------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt, what begins and ends it included: of the encoder that reads most."""
        told = int(self._default("draw", "max_sequence_length"))
        return told or int(max((each.model_max_length for each in self._tokenizers), default=0))

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has for the encoder that needs the fewest, and reads it whole."""
        counts, first = [], self._loaded.first
        for tokenizer in self._tokenizers:
            if self.architecture.startswith(TEMPLATED):
                said = [{"role": "user", "content": prompt}]
                thinks = self.architecture.startswith(THINKING)
                text = tokenizer.apply_chat_template(
                    said, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
                )
                counts.append(len(tokenizer(text, verbose=False).input_ids))
            elif hasattr(first, "prompt_template_encode"):  # what stands before the prompt is dropped again
                text = first.prompt_template_encode.format(prompt)
                counts.append(
                    len(tokenizer(text, verbose=False).input_ids) - first.prompt_template_encode_start_idx
                )
            elif tokenizer.model_max_length >= self.prompt_tokens:
                counts.append(len(tokenizer(prompt, truncation=False, verbose=False).input_ids))
        return max(counts, default=0)

    @cached_property
    def _tokenizers(self) -> list[Any]:
        parts = self._loaded.first.components
        return [part for name, part in parts.items() if name.startswith("tokenizer") and part is not None]

    # -- drawing ------------------------------------------------------------------------------------------------------

    def draw(self, key: Key, rows: Sequence[Row], pause: Pause, due: Due) -> list[Image]:
        """Draw a batch; `pause` is called after each step, with previews of the rows that are `due` then."""
        pipeline = self._loaded.modes[key.mode]
        if key.loras != (self._weighted or ()):
            self._weigh(key.loras)
        self._decode_sparingly(key.width * key.height, len(rows))

        def stepped(
            _: object, place: int, __: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            of = int(pipeline.num_timesteps)
            expected = self._foresight.latents
            latents = tensors["latents"] if expected is None else expected
            previews = {row: self._seen(key, latents[row : row + 1]) for row in due(place + 1, of)}
            self._foresight.wanted = bool(due(place + 2, of))
            pause(Stepped(place + 1, of, previews))
            return tensors

        try:
            arguments = self._arguments(key, rows)
            self._foresight.wanted = True
            return list(pipeline(**arguments, callback_on_step_end=stepped).images)
        finally:
            self._foresight.latents = None
            if self._options.offload not in (None, "none"):
                self._loaded.first.maybe_free_model_hooks()

    def _arguments(self, key: Key, rows: Sequence[Row]) -> dict[str, object]:
        takes = self._takes(key.mode)
        given: dict[str, object] = {
            "prompt": [row.prompt for row in rows],
            "height": key.height,
            "width": key.width,
            "num_inference_steps": key.steps,
            self._guidance_name: key.guidance,
            "generator": [torch.Generator().manual_seed(row.seed) for row in rows],
        }
        if self.facts.negative:
            given["negative_prompt"] = [row.negative or self._nothing for row in rows]
        sources = [row.source for row in rows if row.source is not None]
        if sources and self.looks and key.mode == "redraw":
            given["image"] = sources[0].images
        elif sources:
            given["image"] = [source.images[0] for source in sources]
        if key.mode == "inpaint":
            given["mask_image"] = [source.mask for source in sources]
        if key.strength:
            given["strength"] = key.strength
        return {name: value for name, value in given.items() if name in takes}

    @property
    def _nothing(self) -> str:
        """What stands for no negative prompt."""
        return " " if self.architecture.startswith("QwenImage") else ""

    def _seen(self, key: Key, latents: torch.Tensor) -> Image:
        found: Image = pixels(self._loaded.modes[key.mode], latents, key.width, key.height)[0]
        return found

    def _weigh(self, loras: tuple[Lora, ...]) -> None:
        """Add these LoRAs, and no others."""
        first = self._loaded.first
        if loras:
            first.enable_lora()
            names = [self._loaded.loras[lora.name] for lora in loras]
            first.set_adapters(names, [lora.weight for lora in loras])
        else:
            first.disable_lora()
        self._weighted = loras

    def _decode_sparingly(self, size: int, rows: int) -> None:
        """Pixels take more memory than anything before them: of much at once images take turns, then their tiles."""
        vae = self._loaded.first.vae
        if hasattr(vae, "enable_slicing"):
            vae.enable_slicing() if size * rows > SLICED else vae.disable_slicing()
        if hasattr(vae, "enable_tiling"):
            vae.enable_tiling() if size > TILED else vae.disable_tiling()

    def compile(self, counts: Sequence[int]) -> list[Image]:
        """Compile the network for all sizes listed and so many images at once; whatever else comes later runs as it is.

        Raises LoadError where the network sees prompts of varying length.
        """
        if self.architecture.startswith(VARYING):
            raise LoadError(
                f"a {self.architecture} cannot be compiled: it computes with as many tokens as a prompt has"
            )
        first = self._loaded.first
        name = "unet" if hasattr(first, "unet") else "transformer"
        getattr(first, name).compile(dynamic=False)
        facts = self.facts
        for width, height in facts.sizes:
            for count in counts:
                key = Key("draw", width, height, 1, facts.guidance, False, 0.0, (), "")
                self.draw(
                    key, [Row("warm", "", seed) for seed in range(count)], lambda _: None, lambda *_: []
                )
        torch.compiler.set_stance("eager_on_recompile")
        return []

    # -- memory -------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Give back what torch keeps for later."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def lack(error: BaseException) -> str | None:
    """What a failure says of the memory that it lacked; None for any other failure."""
    text = str(error)
    told = isinstance(error, RuntimeError) and any(words in text.lower() for words in NO_MEMORY)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or told:
        return (text.splitlines() or [""])[0][:300]
    return None


def settle_threads(threads: int | None) -> int:
    """Compute with as many threads as said, else as there are cores, where the caller does; returns how many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    count = threads or cores
    torch.set_num_threads(count)
    return count
