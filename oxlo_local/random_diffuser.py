"""Diffusers pipelines of random numbers, of any shape: what they draw is nonsense, at the real speed.

Tests need small ones, benchmarks the shapes of the real ones. The text encoder knows the bytes of UTF-8, each a token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

END = "<|endoftext|>"
BEGIN = "<|startoftext|>"
POSITIONS = 77  # tokens of a prompt, its begin and end among them, as in the real ones


@dataclass(frozen=True)
class Shape:
    """Of a Stable Diffusion: `size` in pixels, widths by level, of which each but the first halves the picture."""

    size: int = 64
    text_width: int = 32
    text_layers: int = 2
    unet: tuple[int, ...] = (16, 32)
    layers: int = 1
    head: int = 8
    vae: tuple[int, ...] = (8, 16, 16)
    groups: int = 4


SHAPES = {
    "tiny": Shape(),
    "small": Shape(256, 256, 4, (64, 128, 256), 1, 32, (32, 32, 64, 64), 16),
    "1.5": Shape(512, 768, 12, (320, 640, 1280, 1280), 2, 40, (128, 256, 512, 512), 32),
}


def write(folder: Path, shape: Shape | None = None, *, seed: int = 0) -> None:
    """A whole pipeline in `folder`, which is made."""
    pipeline_of(shape or Shape(), folder, seed).save_pretrained(folder, safe_serialization=True)


def pipeline_of(shape: Shape, folder: Path, seed: int) -> StableDiffusionPipeline:
    """The pipeline; its tokenizer is written into `folder` on the way, since it is made of files."""
    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=vae_of(shape),
        text_encoder=text_encoder_of(shape),
        tokenizer=tokenizer_in(folder / "tokenizer"),
        unet=unet_of(shape),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tokenizer_in(folder: Path) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind without merges, so that every byte is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(byte) for byte in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]
    tokens = [*characters, *(f"{character}</w>" for character in characters), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=POSITIONS,
        pad_token=END,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=END,
    )


def text_encoder_of(shape: Shape) -> CLIPTextModel:
    """The text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=shape.text_width,
            intermediate_size=4 * shape.text_width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=max(2, shape.text_width // 64),
            max_position_embeddings=POSITIONS,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def unet_of(shape: Shape) -> UNet2DConditionModel:
    """The network that takes noise away; it looks at the text at every level but the lowest."""
    levels = len(shape.unet)
    return UNet2DConditionModel(
        sample_size=shape.size // 2 ** (len(shape.vae) - 1),
        in_channels=4,
        out_channels=4,
        block_out_channels=shape.unet,
        layers_per_block=shape.layers,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.head,
        norm_num_groups=shape.groups,
    )


def vae_of(shape: Shape) -> AutoencoderKL:
    """What makes pixels of latent numbers, and the other way round."""
    levels = len(shape.vae)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=shape.groups,
        sample_size=shape.size,
        scaling_factor=0.18215,
    )
