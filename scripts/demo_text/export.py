"""Writes the trained network and its tokenizer as a GGUF file that llama.cpp loads as a llama.

Matrices are Q8_0, norms float32. There is no output.weight: llama.cpp then uses the embeddings, as the training did.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer

from .model import Shape
from .rendering import TEMPLATE
from .tokens import CONTROL, END, MARKERS, PAD

DESCRIPTION = "Small demonstration chat model of oxlo: talks about using oxlo, not a general assistant."


def write_gguf(
    path: Path, weights: dict[str, torch.Tensor], shape: Shape, tokenizer: Tokenizer, size_label: str
) -> None:
    """Writes `weights` (the state dict of model.Llama) to `path`; `size_label` as in "4.2M"."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("model")
    writer.add_name("oxlo-demo")
    writer.add_basename("oxlo-demo")
    writer.add_finetune("chat")
    writer.add_size_label(size_label)
    writer.add_author("The oxlo authors")
    writer.add_organization("oxlo")
    writer.add_version("1")
    writer.add_license("apache-2.0")
    writer.add_license_name("Apache License 2.0")
    writer.add_description(DESCRIPTION)
    writer.add_languages(["en"])
    writer.add_tags(["text-generation", "chat", "demonstration"])
    _add_shape(writer, shape)
    _add_vocabulary(writer, tokenizer)
    for name, tensor in weights.items():
        array = tensor.detach().float().cpu().contiguous().numpy()
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens in the order of their ids; control tokens end or frame a turn, markers are text that is one token."""
    ids = tokenizer.get_vocab()
    words = sorted(ids, key=ids.__getitem__)
    kinds = [
        gguf.TokenType.CONTROL
        if word in CONTROL
        else gguf.TokenType.USER_DEFINED
        if word in MARKERS
        else gguf.TokenType.NORMAL
        for word in words
    ]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(ids[PAD])
    writer.add_eos_token_id(ids[END])
    writer.add_eot_token_id(ids[END])
    writer.add_pad_token_id(ids[PAD])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE.read_text().rstrip())
