"""Random-weight image encoders (mmproj files) to go with the models of `random_model`: real code, nothing seen.

Three kinds, one for each way in which llama.cpp gives an image to a text model:

| kind    | an image becomes                                 | the text model reads it                                |
|---------|--------------------------------------------------|--------------------------------------------------------|
| pixtral | a row for each patch, one between two lines      | like text                                              |
| gemma3  | the same number of rows whatever its size        | as a whole: each row sees those behind it (non-causal) |
| qwen2vl | a row for four patches                           | in two dimensions (M-RoPE); wants a qwen2vl text model |
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from oxlo_local.random_model import Tensor, linear, norm

EyeKind = Literal["pixtral", "gemma3", "qwen2vl"]


@dataclass(frozen=True)
class EyeShape:
    """Sizes of an encoder: `d` = its own width, `text_d` = that of the text model, the others as in `Shape`."""

    d: int = 32
    layers: int = 2
    heads: int = 2
    ff: int = 64
    patch: int = 8  # pixels on a side
    image: int = 128  # pixels on a side, where a kind has one size for all
    text_d: int = 64


SMALL = EyeShape()


def write_eye(path: Path, kind: EyeKind, shape: EyeShape = SMALL, *, seed: int = 0) -> None:
    """Write an encoder to `path`. The same arguments give the same bytes."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(f"random {kind} eye d{shape.d} x {shape.layers}")
    writer.add_type("mmproj")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", f"{kind}_merger" if kind == "qwen2vl" else kind)
    writer.add_bool("clip.use_gelu" if kind == "gemma3" else "clip.use_silu", kind != "qwen2vl")
    sizes = {
        "image_size": shape.image,
        "patch_size": shape.patch,
        "embedding_length": shape.d,
        "feed_forward_length": shape.ff,
        "projection_dim": shape.text_d,
        "block_count": shape.layers,
        "attention.head_count": shape.heads,
        "projector.scale_factor": 2,
    }
    for name, size in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", size)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    random = np.random.default_rng(seed)
    for tensor in layout(kind, shape):
        spread = 1 / math.sqrt(math.prod(tensor.shape[1:]))
        drawn = random.standard_normal(tensor.shape, dtype=np.float32) * np.float32(spread)
        constant = None if tensor.fill is None else np.broadcast_to(np.float32(tensor.fill), tensor.shape)
        writer.add_tensor(tensor.name, drawn if constant is None else constant.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def layout(kind: EyeKind, shape: EyeShape) -> Iterator[Tensor]:
    """All tensors of an encoder, under llama.cpp's names."""
    d, text = shape.d, shape.text_d
    patches = (d, 3, shape.patch, shape.patch)
    yield Tensor("v.patch_embd.weight", patches)
    if kind == "pixtral":
        yield Tensor("v.pre_ln.weight", (d,), 1.0)
        yield Tensor("v.token_embd.img_break", (text,))
        yield from linear("mm.1", text, d)
        yield from linear("mm.2", text, text)
    elif kind == "gemma3":
        yield Tensor("v.patch_embd.bias", (d,))
        yield Tensor("v.position_embd.weight", ((shape.image // shape.patch) ** 2, d))
        yield from norm("v.post_ln", d)
        yield Tensor("mm.soft_emb_norm.weight", (d,), 1.0)
        yield Tensor("mm.input_projection.weight", (d, text))
    else:
        yield Tensor("v.patch_embd.weight.1", patches)
        yield from norm("v.post_ln", d)
        yield from linear("mm.0", 4 * d, 4 * d)
        yield from linear("mm.2", text, 4 * d)
    for i in range(shape.layers):
        yield from block(f"v.blk.{i}", kind, shape)


def block(name: str, kind: EyeKind, shape: EyeShape) -> Iterator[Tensor]:
    """One transformer layer."""
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        yield from linear(f"{name}.{part}", shape.d, shape.d)
    yield from norm(f"{name}.ln1", shape.d)
    yield from norm(f"{name}.ln2", shape.d)
    yield from linear(f"{name}.ffn_up", shape.ff, shape.d)
    yield from linear(f"{name}.ffn_down", shape.d, shape.ff)
    if kind == "pixtral":
        yield from linear(f"{name}.ffn_gate", shape.ff, shape.d)
