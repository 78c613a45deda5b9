"""BERT once more, in plain numpy from the published layout of its tensors: what the engine is compared with."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


class Bert:
    """The float weights of a BERT GGUF file, and a forward pass over them."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
        self._heads = int(reader.fields["bert.attention.head_count"].contents())
        self._layers = int(reader.fields["bert.block_count"].contents())

    def hidden(self, tokens: Sequence[int]) -> F64:
        """The last layer's output, shape (tokens, width)."""
        t = self._tensors
        x = (
            t["token_embd.weight"][list(tokens)]
            + t["position_embd.weight"][: len(tokens)]
            + t["token_types.weight"][0]
        )
        x = self._norm(x, "token_embd_norm")
        for layer in range(self._layers):
            block = f"blk.{layer}"
            x = self._norm(x + self._attention(x, block), f"{block}.attn_output_norm")
            inner = gelu(self._linear(x, f"{block}.ffn_up"))
            x = self._norm(x + self._linear(inner, f"{block}.ffn_down"), f"{block}.layer_output_norm")
        return x

    def vector(self, tokens: Sequence[int], pooling: str) -> F64:
        """The text's vector, of length 1."""
        hidden = self.hidden(tokens)
        pooled = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        vector: F64 = pooled / np.linalg.norm(pooled)
        return vector

    def relevance(self, tokens: Sequence[int]) -> float:
        """What the ranking head says of a pair, as a probability."""
        inner = np.tanh(self._linear(self.hidden(tokens)[0], "cls"))
        return float(1 / (1 + np.exp(-self._linear(inner, "cls.output")[0])))

    def _linear(self, x: F64, name: str) -> F64:
        y: F64 = x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]
        return y

    def _norm(self, x: F64, name: str) -> F64:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        y: F64 = scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]
        return y

    def _attention(self, x: F64, block: str) -> F64:
        def heads(part: str) -> F64:
            return self._linear(x, f"{block}.{part}").reshape(len(x), self._heads, -1).transpose(1, 0, 2)

        q, k, v = heads("attn_q"), heads("attn_k"), heads("attn_v")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return self._linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), f"{block}.attn_output")


def gelu(x: F64) -> F64:
    """The tanh form, within 5e-4 of the exact one."""
    y: F64 = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y
