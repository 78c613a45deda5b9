"""Writes the trained parts as the folder that diffusers loads, in 16 bits but for the text encoder.

transformers loads weights as wide as it finds them, diffusers as float32: 16 bits in both would not fit together where
nobody names a type.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from .parts import new_scheduler
from .train import Painter


def pipeline(
    painter: Painter, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts together."""
    return StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=painter.text.eval(),
        tokenizer=tokenizer,
        unet=painter.unet.eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_folder(
    folder: Path, painter: Painter, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer
) -> None:
    """Writes `folder` anew; denoiser and autoencoder become 16 bits wide."""
    shutil.rmtree(folder, ignore_errors=True)
    painter.unet.to(torch.float16)
    pipeline(painter, autoencoder.to(torch.float16), tokenizer).save_pretrained(folder)
