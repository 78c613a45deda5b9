"""Writes the trained network as a CTranslate2 folder that faster-whisper loads, by way of transformers' Whisper."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from ctranslate2.converters import TransformersConverter
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from .model import Shape
from .tokens import WINDOW_SECONDS, Vocabulary

PREPROCESSOR = {
    "chunk_length": WINDOW_SECONDS,
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "sampling_rate": 16_000,
}


def write_folder(folder: Path, weights: dict[str, torch.Tensor], shape: Shape) -> None:
    """Writes `weights` (the state dict of model.Whisper) to `folder` in 8 bits, replacing what is there."""
    vocabulary = Vocabulary()
    config = WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.mels,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        max_source_positions=shape.source_positions,
        max_target_positions=shape.target_positions,
        pad_token_id=vocabulary.end,
        bos_token_id=vocabulary.end,
        eos_token_id=vocabulary.end,
        decoder_start_token_id=vocabulary.start,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    exported = {name: tensor.float() for name, tensor in weights.items() if name.startswith("model.")}
    exported["proj_out.weight"] = exported["model.decoder.embed_tokens.weight"]
    model.load_state_dict(exported)
    model.generation_config = GenerationConfig(
        suppress_tokens=[],
        begin_suppress_tokens=[],
        alignment_heads=[[shape.decoder_layers - 1, head] for head in range(shape.alignment_heads)],
        lang_to_id={"<|en|>": vocabulary.english},
    )
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        PreTrainedTokenizerFast(tokenizer_object=vocabulary.tokenizer).save_pretrained(scratch)
        vocabulary.tokenizer.save(str(Path(scratch, "tokenizer.json")))
        Path(scratch, "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
        converter = TransformersConverter(scratch, copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(folder), quantization="int8", force=True)
