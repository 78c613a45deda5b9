"""A Stable Diffusion folder as one file, with the names that the original code gave its weights."""

import re
from pathlib import Path

from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, layers: int) -> str:
    """`down_blocks.0.resnets.0.conv1.weight` -> `input_blocks.1.0.in_layers.2.weight`, and so on."""
    for ours, theirs in ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    match = re.match(
        r"(down_blocks|up_blocks|mid_block)\.?(\d+)?\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name
    )
    assert match is not None, name
    side, level, kind, place, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        for ours, theirs in RESNET.items():
            rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * place}.{rest}"
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{1 + level * (layers + 1) + place}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":  # after the attention, which the lowest level has none of
        return f"output_blocks.{level * (layers + 1) + layers}.{1 if level == 0 else 2}.{rest}"
    return f"output_blocks.{level * (layers + 1) + place}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """`encoder.down_blocks.0.resnets.0.conv1.weight` -> `encoder.down.0.block.0.conv1.weight`, and so on."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, rest = name.split("mid_block.attentions.0.")
        for ours, theirs in ATTENTION.items():
            rest = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", rest)
        return f"{head}mid.attn_1.{rest}"
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def write(folder: Path, file: Path, *, layers: int, vae_levels: int) -> None:
    """The weights of the pipeline in `folder` as one file."""
    found = {}
    for name, tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        found[f"model.diffusion_model.{unet_name(name, layers)}"] = tensor
    for name, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        ours = vae_name(name, vae_levels)
        flat = "attn_1" in ours and tensor.ndim == 2
        found[f"first_stage_model.{ours}"] = tensor[..., None, None].contiguous() if flat else tensor
    for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        inner = name.removeprefix("text_model.")
        found[f"cond_stage_model.transformer.text_model.{inner}"] = tensor
    save_file(found, file)
