"""Random-weight GGUF models of real shapes, for benchmarks and tests: real speed, meaningless text.

Speed and memory of a decode depend on the shapes of a model and hardly on its values, and whether a KV cache is reused
rightly shows in the logits of any weights. So a model that nobody had to train or download serves both purposes:

| architecture | stands for               | memory in llama.cpp                                               |
|--------------|--------------------------|-------------------------------------------------------------------|
| llama        | plain attention          | KV cache; any tail of a sequence can be removed                   |
| gemma2       | sliding-window attention | every other layer drops cells older than `window` (once they fill)|
| mamba        | recurrent                | one state a sequence: no part of it can be removed                |
| jamba        | hybrid                   | mamba layers, and attention in every second one                   |
| qwen2vl      | M-RoPE, for images       | KV cache; an image's cells share a position                       |
| bert         | encoder                  | none: a text becomes a vector, with `pooling="rank"` a score      |

Every matrix is drawn with standard deviation 1/sqrt(inputs), so that each layer's output, and the logits, have a
spread of about 1: the history matters to the next token, and no token wins everything.

Vocabularies are byte-level BPE made up here (`oxlo_local` needs no file for it), or copied from another GGUF. Made-up
merges build lower-case words from pairs of letters, with and without a leading space, so that a token of English text
is about 1.6 characters at 512 tokens and 2.5 at 151,936. ChatML markers and fill-in-the-middle tokens are there.

    python -m oxlo_local.random_model --shape 150m OUT.gguf
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import gguf
import numpy as np
from numpy.typing import NDArray

Architecture = Literal["llama", "gemma2", "mamba", "jamba", "qwen2vl", "bert"]
Pooling = Literal["mean", "cls", "last", "rank"]
Quant = Literal["F32", "F16", "Q8_0", "Q4_K_M"]  # of a file
Stored = Literal["F32", "F16", "Q8_0", "Q4_K", "Q6_K"]  # of a tensor
Weights = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]

BOS, EOS = "<s>", "<|im_end|>"
SPECIALS = (BOS, EOS, "<|im_start|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Blocks of the quantised forms: how many weights share one, and the standard deviation of what is drawn for a weight.
# Q8_0: integers -127 .. 127. Q4_K: scale * 0 .. 15 less a minimum of the same mean. Q6_K: -32 .. 31.
BLOCKS: dict[Stored, int] = {"Q8_0": 32, "Q4_K": 256, "Q6_K": 256}
Q8_SPREAD, Q4_SPREAD, Q6_SPREAD = (math.sqrt((levels**2 - 1) / 12) for levels in (255, 16, 64))
K_SCALE = 32  # the scale and the minimum of every sub-block of a Q4_K block; 6 bits wide
SSM_STATE, SSM_CONV = 16, 4  # mamba's own sizes
SSM_STEP = -4.0  # bias of the time step: softplus(-4) = 0.018, a state that remembers some 50 tokens


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `d` = width of the residual stream; `heads` and `kv_heads` count attention heads."""

    d: int = 64
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ff: int = 160
    vocab: int = 512  # ignored where the vocabulary comes from a file
    context: int = 4096  # tokens, as the file claims it was trained with
    window: int = 32  # tokens that a gemma2 sliding-window layer sees
    tied: bool = False  # the output matrix is the embedding matrix


SHAPES = {
    "tiny": Shape(),
    # The layers of SmolLM2-135M, 18 of its 30, under Qwen's vocabulary size: 151 M weights.
    "150m": Shape(d=576, layers=18, heads=9, kv_heads=3, ff=1536, vocab=151_936, context=16_384, tied=True),
    # Qwen2.5-0.5B, Llama-3.1-8B and Qwen2.5-32B, as their configurations give them.
    "0.5b": Shape(d=896, layers=24, heads=14, kv_heads=2, ff=4864, vocab=151_936, context=32_768, tied=True),
    "8b": Shape(d=4096, layers=32, heads=32, kv_heads=8, ff=14_336, vocab=128_256, context=131_072),
    "32b": Shape(d=5120, layers=64, heads=40, kv_heads=8, ff=27_648, vocab=152_064, context=32_768),
}
FILE_TYPES: dict[Quant, gguf.LlamaFileType] = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. `shape` is numpy's order (outputs first); `fill` is a constant, or None for random weights."""

    name: str
    shape: tuple[int, ...]
    fill: float | NDArray[np.float32] | None = None


def write(
    path: Path,
    architecture: Architecture = "llama",
    shape: Shape = SHAPES["tiny"],
    *,
    quant: Quant = "F32",
    seed: int = 0,
    vocab_from: Path | None = None,
    chat_template: str | None = CHATML,
    pooling: Pooling | None = None,
) -> None:
    """Write a model to `path`. The same arguments give the same bytes.

    `vocab_from` is a GGUF whose `tokenizer.*` keys (and chat template, if it has one) are copied; without it
    `shape.vocab` tokens are made up. `pooling` says how an embedding model makes one vector of a text's tokens, "rank"
    that it scores a pair of texts. Raises ValueError where llama.cpp could not load such a shape.
    """
    check(architecture, shape)
    writer = gguf.GGUFWriter(path, architecture)
    if vocab_from is None:
        write_vocabulary(writer, shape.vocab)
        vocab = shape.vocab
        if chat_template is not None:
            writer.add_chat_template(chat_template)
    else:
        vocab = copy_vocabulary(writer, vocab_from)
    write_sizes(writer, architecture, shape)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    writer.add_file_type(FILE_TYPES[quant])

    tensors = list(layout(architecture, shape, vocab, ranks=pooling == "rank"))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[stored_as(tensor, quant, shape)]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(tensor.shape) // weights * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), count, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One tensor at a time: a large model is never whole in memory.
    random = np.random.default_rng(seed)
    for tensor in tensors:
        writer.write_tensor_data(draw(tensor, stored_as(tensor, quant, shape), random))
    writer.close()


def check(architecture: Architecture, shape: Shape) -> None:
    """Raise ValueError, saying what to change, for sizes that llama.cpp refuses or asserts on."""
    least = 256 + len(SPECIALS)
    if shape.vocab < least:
        raise ValueError(f"vocab is {shape.vocab}: 256 bytes and the markers take at least {least} tokens")
    if shape.d % shape.heads or (shape.d // shape.heads) % 2:
        raise ValueError(f"d = {shape.d} does not split into {shape.heads} heads of an even size")
    if shape.heads % shape.kv_heads:
        raise ValueError(f"heads = {shape.heads} is not a multiple of kv_heads = {shape.kv_heads}")
    if architecture in ("gemma2", "jamba") and shape.layers < 2:
        raise ValueError(f"{architecture} alternates two kinds of layer: layers must be at least 2")


# -- sizes ------------------------------------------------------------------------------------------------------------


def write_sizes(writer: gguf.GGUFWriter, architecture: Architecture, shape: Shape) -> None:
    """The keys that libllama reads the sizes from; a jamba layer without KV heads is a recurrent one."""
    writer.add_name(f"random {architecture} d{shape.d} x {shape.layers}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.d)
    writer.add_block_count(shape.layers)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture == "bert":
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        writer.add_token_type_count(2)
        writer.add_add_eos_token(True)
    if architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
    else:
        writer.add_feed_forward_length(shape.ff)
        writer.add_head_count(shape.heads)
        if architecture != "bert":
            writer.add_rope_dimension_count(shape.d // shape.heads)
    if architecture == "jamba":
        writer.add_head_count_kv([shape.kv_heads if attends(i) else 0 for i in range(shape.layers)])
    elif architecture != "mamba":
        writer.add_head_count_kv(shape.kv_heads)
    if architecture == "qwen2vl":
        eighth = shape.d // shape.heads // 8  # time gets half of a head's pairs, height and width a quarter
        writer.add_rope_dimension_sections([2 * eighth, eighth, eighth, 0])
    if architecture == "gemma2":
        writer.add_sliding_window(shape.window)
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if architecture in ("mamba", "jamba"):
        writer.add_ssm_conv_kernel(SSM_CONV)
        writer.add_ssm_inner_size(2 * shape.d)
        writer.add_ssm_state_size(SSM_STATE)
        writer.add_ssm_time_step_rank(time_step_rank(shape))


def attends(layer: int) -> bool:
    """Whether a jamba layer is an attention layer."""
    return layer % 2 == 1


def time_step_rank(shape: Shape) -> int:
    return max(1, shape.d // 16)


# -- tensors ----------------------------------------------------------------------------------------------------------


def layout(architecture: Architecture, shape: Shape, vocab: int, *, ranks: bool = False) -> Iterator[Tensor]:
    """All tensors of a model, in the order of the file; `ranks` adds the head that makes a score of a vector."""
    if architecture == "bert":
        yield from encoder(shape, vocab)
        if ranks:
            yield from linear("cls", shape.d, shape.d)
            yield from linear("cls.output", 1, shape.d)
        return
    yield Tensor("token_embd.weight", (vocab, shape.d))
    yield Tensor("output_norm.weight", (shape.d,), 1.0)
    if not shape.tied and architecture != "gemma2":
        yield Tensor("output.weight", (vocab, shape.d))
    for i in range(shape.layers):
        block = f"blk.{i}"
        yield Tensor(f"{block}.attn_norm.weight", (shape.d,), 1.0)
        if architecture == "mamba" or (architecture == "jamba" and not attends(i)):
            yield from state_space(block, shape, normed=architecture == "jamba")
        else:
            yield from attention(block, shape)
        if architecture == "gemma2":
            yield Tensor(f"{block}.post_attention_norm.weight", (shape.d,), 1.0)
            yield Tensor(f"{block}.post_ffw_norm.weight", (shape.d,), 1.0)
        if architecture != "mamba":
            yield from feed_forward(block, shape)


def encoder(shape: Shape, vocab: int) -> Iterator[Tensor]:
    """BERT: positions learnt, layers normalised behind each half, biases everywhere."""
    yield Tensor("token_embd.weight", (vocab, shape.d))
    yield Tensor("position_embd.weight", (shape.context, shape.d))
    yield Tensor("token_types.weight", (2, shape.d))
    yield from norm("token_embd_norm", shape.d)
    for i in range(shape.layers):
        block = f"blk.{i}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield from linear(f"{block}.{part}", shape.d, shape.d)
        yield from norm(f"{block}.attn_output_norm", shape.d)
        yield from linear(f"{block}.ffn_up", shape.ff, shape.d)
        yield from linear(f"{block}.ffn_down", shape.d, shape.ff)
        yield from norm(f"{block}.layer_output_norm", shape.d)


def linear(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs))
    yield Tensor(f"{name}.bias", (outputs,))


def norm(name: str, size: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (size,), 1.0)
    yield Tensor(f"{name}.bias", (size,))


def attention(block: str, shape: Shape) -> Iterator[Tensor]:
    kv = shape.d // shape.heads * shape.kv_heads
    yield Tensor(f"{block}.attn_q.weight", (shape.d, shape.d))
    yield Tensor(f"{block}.attn_k.weight", (kv, shape.d))
    yield Tensor(f"{block}.attn_v.weight", (kv, shape.d))
    yield Tensor(f"{block}.attn_output.weight", (shape.d, shape.d))


def feed_forward(block: str, shape: Shape) -> Iterator[Tensor]:
    yield Tensor(f"{block}.ffn_norm.weight", (shape.d,), 1.0)
    yield Tensor(f"{block}.ffn_gate.weight", (shape.ff, shape.d))
    yield Tensor(f"{block}.ffn_up.weight", (shape.ff, shape.d))
    yield Tensor(f"{block}.ffn_down.weight", (shape.d, shape.ff))


def state_space(block: str, shape: Shape, *, normed: bool) -> Iterator[Tensor]:
    """A mamba mixer; jamba normalises its time step, B and C."""
    inner, rank = 2 * shape.d, time_step_rank(shape)
    decay = -np.tile(np.arange(1, SSM_STATE + 1, dtype=np.float32), (inner, 1))
    yield Tensor(f"{block}.ssm_in.weight", (2 * inner, shape.d))
    yield Tensor(f"{block}.ssm_conv1d.weight", (inner, SSM_CONV))
    yield Tensor(f"{block}.ssm_conv1d.bias", (inner,), 0.0)
    yield Tensor(f"{block}.ssm_x.weight", (rank + 2 * SSM_STATE, inner))
    if normed:
        yield Tensor(f"{block}.ssm_dt_norm.weight", (rank,), 1.0)
        yield Tensor(f"{block}.ssm_b_norm.weight", (SSM_STATE,), 1.0)
        yield Tensor(f"{block}.ssm_c_norm.weight", (SSM_STATE,), 1.0)
    yield Tensor(f"{block}.ssm_dt.weight", (inner, rank))
    yield Tensor(f"{block}.ssm_dt.bias", (inner,), SSM_STEP)
    yield Tensor(f"{block}.ssm_a", (inner, SSM_STATE), decay)
    yield Tensor(f"{block}.ssm_d", (inner,), 1.0)
    yield Tensor(f"{block}.ssm_out.weight", (shape.d, inner))


def stored_as(tensor: Tensor, quant: Quant, shape: Shape) -> Stored:
    """Norms, biases, convolutions and rows that make no whole block stay F32, as llama.cpp's quantiser leaves them.

    Q4_K_M is its mixture: the output, and the values and second feed-forward matrices of some layers, are Q6_K. Rows
    that make no block of 256 become Q8_0 in it.
    """
    if tensor.fill is not None or "conv1d" in tensor.name or len(tensor.shape) == 1:
        return "F32"
    kind: Stored = precise(tensor.name, shape) if quant == "Q4_K_M" else quant
    for each in (kind, "Q8_0") if quant == "Q4_K_M" else (kind,):
        if tensor.shape[-1] % BLOCKS.get(each, 1) == 0:
            return each
    return "F32"


def precise(name: str, shape: Shape) -> Literal["Q4_K", "Q6_K"]:
    """Which matrices Q4_K_M keeps more precise: the output; in the first and last eighth of the layers, and in every
    third one between, `attn_v` and `ffn_down`.
    """
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        return "Q6_K"
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "Q4_K"
    layer, eighth = int(name.split(".")[1]), shape.layers // 8
    outer = layer < eighth or layer >= 7 * shape.layers // 8
    return "Q6_K" if outer or (layer - eighth) % 3 == 2 else "Q4_K"


def draw(tensor: Tensor, kind: Stored, random: np.random.Generator) -> Weights:
    """The tensor's weights, as they are stored."""
    if tensor.fill is not None:
        return np.broadcast_to(np.asarray(tensor.fill, dtype=np.float32), tensor.shape).copy()
    spread = 1 / math.sqrt(tensor.shape[-1])
    if kind in ("F32", "F16"):
        numbers = random.standard_normal(tensor.shape, dtype=np.float32) * np.float32(spread)
        return numbers if kind == "F32" else numbers.astype(np.float16)
    # Quantised numbers are drawn as such: quantising 150 M floats takes longer than all the rest.
    return BLOCK_DRAWS[kind](math.prod(tensor.shape) // BLOCKS[kind], spread, random)


def half(number: float) -> NDArray[np.uint8]:
    """A 2-byte scale."""
    return np.frombuffer(np.float16(number).tobytes(), dtype=np.uint8)


def q8_blocks(count: int, spread: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Scale, 32 signed bytes."""
    blocks = np.empty((count, 2 + 32), dtype=np.uint8)
    blocks[:, :2] = half(spread / Q8_SPREAD)
    blocks[:, 2:] = random.integers(-127, 128, (count, 32), dtype=np.int8).view(np.uint8)
    return blocks


def q4_blocks(count: int, spread: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Scale and scale of minima; 8 scales and 8 minima of 6 bits in 12 bytes; 256 nibbles.

    All scales and minima are K_SCALE: their low 4 bits are 0, and their high 2 bits stand above the first 8 bytes.
    """
    scale = spread / Q4_SPREAD / K_SCALE
    blocks = np.empty((count, 2 + 2 + 12 + 128), dtype=np.uint8)
    blocks[:, :2], blocks[:, 2:4] = half(scale), half(scale * 7.5)
    blocks[:, 4:12], blocks[:, 12:16] = K_SCALE | (K_SCALE >> 4) << 6, 0
    blocks[:, 16:] = random.integers(0, 256, (count, 128), dtype=np.uint8)
    return blocks


def q6_blocks(count: int, spread: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Low 4 bits, high 2 bits, 16 signed scales (all 1), scale."""
    blocks = np.empty((count, 128 + 64 + 16 + 2), dtype=np.uint8)
    blocks[:, :192] = random.integers(0, 256, (count, 192), dtype=np.uint8)
    blocks[:, 192:208] = 1
    blocks[:, 208:] = half(spread / Q6_SPREAD)
    return blocks


BlockDraw = Callable[[int, float, np.random.Generator], NDArray[np.uint8]]
BLOCK_DRAWS: dict[Stored, BlockDraw] = {"Q8_0": q8_blocks, "Q4_K": q4_blocks, "Q6_K": q6_blocks}


# -- vocabulary -------------------------------------------------------------------------------------------------------


def write_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A made-up byte-level BPE vocabulary: markers, the 256 bytes, then one token a merge."""
    alphabet = byte_letters()
    merges = list(itertools.islice(merge_pairs(), size - len(SPECIALS) - len(alphabet)))
    tokens = [*SPECIALS, *alphabet, *("".join(pair) for pair in merges)]
    if len(tokens) != size:
        raise ValueError(f"vocab is {size}: at most {len(tokens)} tokens can be made up")
    kinds = [gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * (size - len(SPECIALS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(SPECIALS.index(BOS))
    writer.add_eos_token_id(SPECIALS.index(EOS))
    writer.add_add_bos_token(True)


def byte_letters() -> list[str]:
    """GPT-2's alphabet: the printable character that stands for each byte, in the order of bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def merge_pairs() -> Iterator[tuple[str, str]]:
    """Merges by rank: space + letter and pairs of letters; from these words of 3 and 5 letters behind a space, then of
    3 and 4 letters without one. The likely letters of English come first in each group.
    """
    letters = "etaoinshrdlucmfwypvbgkjqxz"  # by frequency
    space = byte_letters()[0x20]
    by_rank = sorted(itertools.product(range(len(letters)), repeat=2), key=sum)
    pairs = [letters[a] + letters[b] for a, b in by_rank]
    likely = pairs[:60]
    yield from ((space, letter) for letter in letters)
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((space + letter, pair) for letter, pair in itertools.product(letters, pairs))
    yield from ((space + letter + a, b) for letter, a, b in itertools.product(letters, likely, likely))
    yield from itertools.product(pairs, letters)
    yield from itertools.product(pairs, pairs)


def copy_vocabulary(writer: gguf.GGUFWriter, source: Path) -> int:
    """Copy all `tokenizer.*` keys of another GGUF and return the number of tokens."""
    vocab = 0
    for name, key in gguf.GGUFReader(source).fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = key.contents()
        element = key.types[-1] if key.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, key.types[0], element)
        if name == "tokenizer.ggml.tokens":
            vocab = len(value)
    if not vocab:
        raise ValueError(f"{source} holds no vocabulary (tokenizer.ggml.tokens)")
    return vocab


# -- command line -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one model; says on stderr what it wrote and how long it took."""
    parser = argparse.ArgumentParser(
        "python -m oxlo_local.random_model", description="Write a random-weight GGUF."
    )
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--architecture", choices=get_args(Architecture), default="llama")
    parser.add_argument("--quant", choices=get_args(Quant), help="default: F32 for tiny, else Q8_0")
    parser.add_argument("--vocab-from", type=Path, metavar="GGUF", help="copy the vocabulary of this file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    shape = SHAPES[options.shape]
    quant: Quant = options.quant or ("F32" if options.shape == "tiny" else "Q8_0")
    began = time.perf_counter()
    try:
        write(
            options.out,
            options.architecture,
            shape,
            quant=quant,
            seed=options.seed,
            vocab_from=options.vocab_from,
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"random_model: {error}\n")
        return 1
    size, took = options.out.stat().st_size / 1e6, time.perf_counter() - began
    sys.stderr.write(f"{options.out}: {options.architecture} {quant}, {size:.1f} MB in {took:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
