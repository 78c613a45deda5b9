"""The smallest pipelines of other families than Stable Diffusion 1: their classes are the real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from oxlo_local.random_diffuser import Shape, text_encoder_of, tokenizer_in

TEMPLATE = "{% for m in messages %}<|u|>{{ m['content'] }}<|e|>{% endfor %}<|a|>"
VOCABULARY = 300


def tokenizer(longest: int = 512) -> PreTrainedTokenizerFast:
    """Bytes, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|u|>", "<|e|>", "<|a|>"]
    made = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(tokens[-3:])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|e|>",
        eos_token="<|e|>",
        model_max_length=longest,
        chat_template=TEMPLATE,
    )


def clip(*, projection: bool, hidden: int = 32) -> Any:
    config = CLIPTextConfig(
        vocab_size=514, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=hidden,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
        )
    )


def vae(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        sample_size=64, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def flow() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def flow_by_size() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def sdxl(folder: Path) -> diffusers.StableDiffusionXLPipeline:
    shape = Shape()
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=text_encoder_of(shape),
        text_encoder_2=clip(projection=True),
        tokenizer=tokenizer_in(folder / "tokenizer"),
        tokenizer_2=tokenizer_in(folder / "tokenizer_2"),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4), transformer_layers_per_block=(1, 1), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )  # fmt: skip


def sd3(folder: Path) -> diffusers.StableDiffusion3Pipeline:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=16,
        ),
        vae=vae(16),
        text_encoder=clip(projection=True),
        text_encoder_2=clip(projection=True),
        text_encoder_3=t5(),
        tokenizer=tokenizer_in(folder / "tokenizer"),
        tokenizer_2=tokenizer_in(folder / "tokenizer_2"),
        tokenizer_3=tokenizer(),
        scheduler=flow(),
    )  # fmt: skip


def flux(folder: Path) -> diffusers.FluxPipeline:
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        ),
        vae=vae(4),
        text_encoder=clip(projection=False),
        text_encoder_2=t5(),
        tokenizer=tokenizer_in(folder / "tokenizer"),
        tokenizer_2=tokenizer(),
        scheduler=flow(),
    )  # fmt: skip


def qwen3(layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip


def klein(folder: Path) -> diffusers.Flux2KleinPipeline:
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=3 * 16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        ),
        text_encoder=qwen3(28),
        tokenizer=tokenizer(),
        scheduler=flow_by_size(),
        is_distilled=True,
    )  # fmt: skip


def z_image(folder: Path) -> diffusers.ZImagePipeline:
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 4, 8], axes_lens=[1024, 64, 64],
        ),
        vae=vae(4),
        text_encoder=qwen3(2),
        tokenizer=tokenizer(),
        scheduler=flow(),
    )  # fmt: skip


def qwen_image(folder: Path) -> diffusers.QwenImagePipeline:
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    seen = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
        ),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=seen)),
        tokenizer=tokenizer(),
        scheduler=flow_by_size(),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "klein": klein,
    "z-image": z_image,
    "qwen-image": qwen_image,
}


def write(folder: Path, family: str) -> None:
    """A whole pipeline of random numbers in `folder`."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[family](folder).save_pretrained(folder, safe_serialization=True)
