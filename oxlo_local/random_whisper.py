"""Whisper models of random numbers in CTranslate2's form, of any shape: what they hear is nonsense, at the real speed.

Tests need small ones, benchmarks the shapes of the real ones. The vocabulary has Whisper's special tokens and made-up
words; an empty word in it is how CTranslate2 knows a multilingual model.

What a random model says is as long as can be, and it is unsure of it, so that each chunk is tried again at every
temperature. Benchmarks want the length and the confidence of real answers: a model with `said` takes everything for one
text of so many letters. Its positions outweigh all that its layers add, and what comes next is what lies along them.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import LayerNormSpec, LinearSpec
from ctranslate2.specs.whisper_spec import WhisperSpec
from faster_whisper.tokenizer import _LANGUAGE_CODES
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

F32 = NDArray[np.float32]

VOCABULARY = 51_865  # tokens of the real ones
TIMESTAMPS = 1_501
MELS = 80
LOUD = 20.0  # how far positions outweigh what a layer adds, where they decide
CERTAIN = 3.0  # the length of the vectors of what is said; all others have 1


@dataclass(frozen=True)
class Shape:
    """Of a Whisper; `window` is in seconds, `positions` the longest text in tokens."""

    width: int = 32
    heads: int = 2
    encoder_layers: int = 1
    decoder_layers: int = 1
    window: int = 8
    positions: int = 64
    multilingual: bool = True
    vocabulary: int = 2_400
    said: int = 0  # letters that it says of every chunk, if it is multilingual; 0 = what comes of the numbers
    language: str = "en"  # that it takes these to be in


SIZES = {
    "tiny": Shape(384, 6, 4, 4, 30, 448, vocabulary=VOCABULARY),
    "base": Shape(512, 8, 6, 6, 30, 448, vocabulary=VOCABULARY),
    "small": Shape(768, 12, 12, 12, 30, 448, vocabulary=VOCABULARY),
    "medium": Shape(1024, 16, 24, 24, 30, 448, vocabulary=VOCABULARY),
    "large": Shape(1280, 20, 32, 32, 30, 448, vocabulary=VOCABULARY),
    "turbo": Shape(1280, 20, 32, 4, 30, 448, vocabulary=VOCABULARY),
}


def write(folder: Path, shape: Shape, *, seed: int = 0, quantization: str = "int8") -> None:
    """A whole model in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(shape)
    random = np.random.default_rng(seed)
    spec = spec_of(shape, tokenizer.get_vocab_size(), random)
    if shape.said:
        ids = tokenizer.get_vocab()
        teach(spec, [ids[token] for token in said(shape, random)])
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    spec.register_vocabulary([token for token, _ in vocabulary])
    languages = (
        [tokenizer.token_to_id(f"<|{code}|>") for code in _LANGUAGE_CODES] if shape.multilingual else []
    )
    spec.config.lang_ids = languages
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], []
    spec.config.alignment_heads = [(shape.decoder_layers - 1, head) for head in range(shape.heads)]
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    heard = {
        "chunk_length": shape.window,
        "feature_size": MELS,
        "hop_length": 160,
        "n_fft": 400,
        "sampling_rate": 16_000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(heard), encoding="utf-8")


def tokenizer_of(shape: Shape) -> Tokenizer:
    """Bytes, made-up words, then Whisper's special tokens."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(byte) for byte in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]
    codes = list(_LANGUAGE_CODES) if shape.multilingual else []
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in codes)]
    specials += [
        f"<|{name}|>" for name in "translate transcribe startoflm startofprev nospeech notimestamps".split()
    ]
    specials += [f"<|{number * 0.02:.2f}|>" for number in range(TIMESTAMPS)]
    marks = [""] if shape.multilingual else []
    words = shape.vocabulary - len(specials) - len(characters) - len(marks)
    plain_tokens = [*characters, *(f"\u0120w{n}" for n in range(words)), *marks]
    vocabulary = {token: id for id, token in enumerate(plain_tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return tokenizer


def spec_of(shape: Shape, vocabulary: int, random: np.random.Generator) -> WhisperSpec:
    """The model, filled with numbers of about the size that training leaves."""
    width = shape.width
    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)

    def matrix(*size: int) -> F32:
        return random.standard_normal(size, np.float32) * np.float32(np.prod(size[1:]) ** -0.5)

    def linear(into: LinearSpec, rows: int, columns: int, gain: float = 1.0) -> None:
        into.weight, into.bias = matrix(rows, columns) * np.float32(gain), np.zeros(rows, np.float32)

    def norm(into: LayerNormSpec) -> None:
        into.gamma, into.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    def attention(into: MultiHeadAttentionSpec, rows: tuple[int, ...], gain: float = 1.0) -> None:
        norm(into.layer_norm)
        for place, times in zip(into.linear, rows, strict=True):
            linear(place, times * width, width, gain)

    for conv, inputs in ((spec.encoder.conv1, MELS), (spec.encoder.conv2, width)):
        conv.weight, conv.bias = matrix(width, inputs, 3), np.zeros(width, np.float32)
    spec.encoder.position_encodings.encodings = matrix(50 * shape.window, width)
    spec.decoder.position_encodings.encodings = matrix(shape.positions, width)
    spec.decoder.embeddings.weight = matrix(vocabulary, width)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    for half in (spec.encoder, spec.decoder):
        norm(half.layer_norm)
        for layer in half.layer:
            attention(layer.self_attention, (3, 1))
            if half is spec.decoder:
                attention(layer.attention, (1, 2, 1), gain=3.0)  # so that what is heard matters
            norm(layer.ffn.layer_norm)
            linear(layer.ffn.linear_0, 4 * width, width)
            linear(layer.ffn.linear_1, width, 4 * width)
    return spec


def said(shape: Shape, random: np.random.Generator) -> list[str]:
    """The tokens that follow each other, from the first place of a prompt to the end of the text."""
    alphabet = list(string.ascii_letters)
    rounds = -(-shape.said // len(alphabet))
    letters = np.concatenate([random.permutation(alphabet) for _ in range(rounds)])[: shape.said]
    return [f"<|{shape.language}|>", "<|transcribe|>", "<|0.00|>", *letters.tolist(), "<|endoftext|>"]


def teach(spec: WhisperSpec, tokens: list[int]) -> None:
    """Have a model say these one after another, and the last for ever, whatever it hears."""
    places, embeddings = spec.decoder.position_encodings.encodings, spec.decoder.embeddings.weight
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    places[len(tokens) :] = places[len(tokens) - 1]
    embeddings[tokens] = 0
    np.add.at(embeddings, tokens, places[: len(tokens)])
    embeddings[tokens] *= CERTAIN / np.linalg.norm(embeddings[tokens], axis=1, keepdims=True)
    places *= LOUD * places.shape[1] ** 0.5
