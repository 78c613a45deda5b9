"""The network: a Whisper, its weights named as in transformers, with two things that only the training uses.

Layers that tell phoneme and word from each of the encoder's rows, and the cross-attention of some heads, handed out. By
them the model is taught where in the sound a thing is said: without, finding that out itself takes most of the time.

faster-whisper fills every window up to 30 s with zeros, so that four of five rows are empty. Computing them all would
make training five times as slow; instead a few of them stand for the others, each with the weight of many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokens import READER_STEPS


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; `phonemes` and `words` count the silent one too.

    The first `alignment_heads` heads of the last decoder layer are taught to look at the word that is due, and those of
    the first decoder layer at the word before it.
    """

    vocabulary: int
    phonemes: int
    words: int
    width: int = 128
    encoder_layers: int = 4
    decoder_layers: int = 2
    heads: int = 4
    mels: int = 80
    source_positions: int = READER_STEPS
    target_positions: int = 448
    alignment_heads: int = 2


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's position encodings, (length, channels)."""
    step = math.log(10_000) / (channels // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Attention(nn.Module):
    """Attention of x (batch, length, width) over `source` (batch, rows, width); `weights` (rows,) are added logs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def _parts(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def split(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:2], self.heads, -1).transpose(1, 2)

        return split(self.q_proj(x)), split(self.k_proj(source)), split(self.v_proj(source))

    def _joined(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def forward(
        self, x: Tensor, source: Tensor, weights: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        q, k, v = self._parts(x, source)
        mask = None if weights is None else weights.to(q.dtype)[None, None, None, :]
        return self._joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal))

    def watched(self, x: Tensor, source: Tensor, weights: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """As forward, and the log of the first `heads` heads' attention, (batch, heads, length, rows)."""
        q, k, v = self._parts(x, source)
        logs = ((q @ k.transpose(2, 3) * q.shape[3] ** -0.5).float() + weights).log_softmax(dim=-1)
        return self._joined(logs.exp().to(v.dtype) @ v), logs[:, :heads]


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.width)
        self.fc1 = nn.Linear(shape.width, 4 * shape.width)
        self.fc2 = nn.Linear(4 * shape.width, shape.width)
        self.final_layer_norm = nn.LayerNorm(shape.width)

    def fed_forward(self, x: Tensor) -> Tensor:
        """x after the feed-forward half."""
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return out

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        normed = self.self_attn_layer_norm(x)
        return self.fed_forward(x + self.self_attn(normed, normed, weights))


class DecoderLayer(EncoderLayer):
    """An encoder layer that looks back only, with attention over the encoder's rows between its halves."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.encoder_attn = Attention(shape)
        self.encoder_attn_layer_norm = nn.LayerNorm(shape.width)

    def decoded(self, x: Tensor, rows: Tensor, weights: Tensor, watch: int) -> tuple[Tensor, Tensor]:
        """The stream, and the log of the attention of the first `watch` heads over the rows."""
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed, causal=True)
        normed = self.encoder_attn_layer_norm(x)
        mixed, logs = self.encoder_attn.watched(normed, rows, weights, watch)
        return self.fed_forward(x + mixed), logs


class Encoder(nn.Module):
    """Log-mel (batch, mels, frames) to rows (batch, frames / 2 + empty, width) and the logs of their weights.

    `empty` are the positions behind the window of the rows that stand for all that are there.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(shape.mels, shape.width, 3, padding=1)
        self.conv2 = nn.Conv1d(shape.width, shape.width, 3, stride=2, padding=1)
        # at full strength, positions drown what is heard for the first thousands of steps
        positions = 0.3 * sinusoids(shape.source_positions, shape.width)
        self.embed_positions = nn.Embedding.from_pretrained(positions)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.encoder_layers))
        self.layer_norm = nn.LayerNorm(shape.width)

    def _convolved(self, mel: Tensor) -> Tensor:
        out: Tensor = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        return out

    def forward(self, mel: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        x = self._convolved(mel)
        positions = self.embed_positions.weight
        length, weights = x.shape[1], x.new_zeros(x.shape[1] + len(empty))
        x = x + positions[:length]
        if len(empty):
            nothing = self._convolved(mel.new_zeros(1, mel.shape[1], 16))[:, 4:5]
            x = torch.cat((x, (nothing + positions[empty]).expand(len(x), -1, -1)), dim=1)
            weights[length:] = math.log((len(positions) - length) / len(empty))
        for layer in self.layers:
            x = layer(x, weights if len(empty) else None)
        return self.layer_norm(x), weights


class Decoder(nn.Module):
    """Token ids (batch, length) and the encoder's rows to the stream before the vocabulary, and two log attentions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.watch = shape.alignment_heads
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.embed_positions = nn.Embedding(shape.target_positions, shape.width)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.layer_norm = nn.LayerNorm(shape.width)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.embed_positions.weight.data = 0.05 * sinusoids(shape.target_positions, shape.width)

    def forward(self, ids: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        logs: list[Tensor] = []
        for layer in self.layers:
            x, watched = layer.decoded(x, rows, weights, self.watch)
            logs.append(watched)
        return self.layer_norm(x), logs[0], logs[-1]


@dataclass(frozen=True)
class Scores:
    """Of the next token (batch, length, vocabulary); of each row's phoneme and word (batch, rows, …); and the log of
    the attention (batch, heads, length, rows) that should see the word before, and the word due."""

    tokens: Tensor
    phonemes: Tensor
    words: Tensor
    before: Tensor
    due: Tensor


class Whisper(nn.Module):
    """The whole; `phoneme_head` and `word_head` stay behind when the model is exported."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict({"encoder": Encoder(shape), "decoder": Decoder(shape)})
        self.phoneme_head = nn.Linear(shape.width, shape.phonemes)
        self.word_head = nn.Linear(shape.width, shape.words)

    def forward(self, mel: Tensor, ids: Tensor, empty: Tensor) -> Scores:
        rows, weights = self.model["encoder"](mel, empty)
        stream, before, due = self.model["decoder"](ids, rows, weights)
        rows, before, due = (part[..., : mel.shape[2] // 2, :] for part in (rows, before.mT, due.mT))
        tokens = F.linear(stream, self.model["decoder"].embed_tokens.weight)
        return Scores(tokens, self.phoneme_head(rows), self.word_head(rows), before.mT, due.mT)

    def parameter_count(self) -> int:
        """Number of numbers that are exported."""
        return sum(weight.numel() for weight in self.model.parameters())


def shape_of(weights: dict[str, Tensor]) -> Shape:
    """The sizes of the network that the weights are of (heads aside, which they do not show)."""
    layers = {name.split(".")[1] + name.split(".")[3] for name in weights if ".layers." in name}
    vocabulary, width = weights["model.decoder.embed_tokens.weight"].shape
    return Shape(
        vocabulary,
        len(weights["phoneme_head.bias"]),
        len(weights["word_head.bias"]),
        width,
        encoder_layers=sum(name.startswith("encoder") for name in layers),
        decoder_layers=sum(name.startswith("decoder") for name in layers),
    )
