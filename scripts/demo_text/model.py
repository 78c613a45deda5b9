"""The network: a llama (RMSNorm, rotary positions, grouped-query attention, SwiGLU) with tied embeddings.

Rotary pairs are neighbours (0,1), (2,3) ..., llama.cpp's convention for this architecture, so that the weights go
into the GGUF as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; `context` is the longest sequence in tokens."""

    vocabulary: int = 3072
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 640
    context: int = 2048
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def rotation(shape: Shape) -> Tensor:
    """cos and sin of every position and pair, (2, context, 1, head_width / 2)."""
    pairs = torch.arange(0, shape.head_width, 2).float() / shape.head_width
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_base**-pairs)
    return torch.stack((angles.cos(), angles.sin()))[:, :, None, :]


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns each neighbouring pair of x (batch, length, heads, head_width) by its position's angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turn[0, : x.shape[1]], turn[1, : x.shape[1]]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over (batch, heads, length, head_width).

    Written out for short sequences: on a CPU the fused kernel's backward pass takes twice the time there.
    """
    length = q.shape[2]
    if length > 256 or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.full((length, length), float("-inf"), device=q.device).triu(1)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + future
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, length, width = x.shape
        normed = self.attn_norm(x)
        q = rotate(self.attn_q(normed).view(batch, length, self.shape.heads, -1), turn)
        k = rotate(self.attn_k(normed).view(batch, length, self.shape.kv_heads, -1), turn)
        v = self.attn_v(normed).view(batch, length, self.shape.kv_heads, -1)
        repeats = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class Llama(nn.Module):
    """Token ids (batch, length) to the stream before the vocabulary (batch, length, width)."""

    turn: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.register_buffer("turn", rotation(shape), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                closing = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.03 / (2 * shape.layers) ** 0.5 if closing else 0.03)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embd(ids)
        for layer in self.blk:
            x = layer(x, self.turn)
        return self.output_norm(x)

    def logits(self, stream: Tensor) -> Tensor:
        """Scores over the vocabulary for rows of the stream."""
        return F.linear(stream, self.token_embd.weight)

    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(weight.numel() for weight in self.parameters())
