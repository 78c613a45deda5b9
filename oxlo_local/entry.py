"""The parts of a model's entry in models.toml: its builds and shape, how it embeds, what others ask for it."""

from decimal import Decimal
from typing import Literal

from msgspec import Struct

Kind = Literal["chat", "embedding", "rerank", "speech", "image", "lora", "tts", "detection"]
Engine = Literal["text", "speech", "image"]
Pooling = Literal["cls", "mean", "last"]
Status = Literal["confirmed", "memory", "unconfirmed"]


class Build(Struct, frozen=True, forbid_unknown_fields=True):
    """One quantisation of a model: its files in the repository (or patterns of them) and their size in all."""

    bytes: int
    files: list[str]
    status: Status
    exact: bool = True  # False: rounded, or taken from a sibling file
    sha256: str | None = None  # of the one weights file


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers that decide what a context costs in memory; a file's own header wins over them."""

    architecture: str | None = None
    layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    params_b: float | None = None
    active_b: float | None = None


class Embedding(Struct, frozen=True, forbid_unknown_fields=True):
    """How an embedding model is used."""

    dimensions: int
    pooling: Pooling
    normalize: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    matryoshka: bool = False  # trained so that its first dimensions alone are an embedding too


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """What a token-billed provider asks for this model, or for the nearest that it has. US dollars."""

    provider: str
    model: str
    match: Literal["exact", "nearest"]
    date: str
    source: str
    status: Status = "confirmed"
    input_per_mtok: Decimal | None = None
    output_per_mtok: Decimal | None = None
    per_audio_minute: Decimal | None = None
    per_image: Decimal | None = None
    per_mchar: Decimal | None = None
    note: str | None = None
