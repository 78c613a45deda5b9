"""The header of a GGUF file: what a model is, read in milliseconds and without the engine.

A GGUF file begins with its metadata: the magic `GGUF`, a version (u32), the number of tensors and of key-value pairs
(u64 each), then the pairs: a length-prefixed key, a type number (u32), the value; everything little-endian. Layout and
type numbers are those of ggml's docs/gguf.md, versions 2 and 3.

Only the shape of the model is wanted here (layers, heads, context, size of the vocabulary): it decides what a context
costs in memory. Vocabularies of 150,000 tokens stand in the same header, after the shape in all files that llama.cpp's
converter writes: reading stops at the tokens' count once the shape is known, and steps over the tokens otherwise.

The file may be anybody's, so nothing that it says of itself is believed: a length is checked before it is used, what is
read is bounded in number and size, and a shape that no model has is refused.
"""

import mmap
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, field

from oxlo_local.errors import BadRequest

Value = int | float | bool | str

_NAMED = 5  # of missing parts
SPLIT = re.compile(r"-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)

# Type number -> how struct reads it.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_TOKENS = "tokenizer.ggml.tokens"
_LONGEST_KEPT_ARRAY = 4096  # one number per layer, with room; token scores are longer and are not kept
_MOST_PAIRS = 65_536  # real files have dozens; a header of empty keys would be read for minutes
_LONGEST_KEY = 65_535  # bytes, as the format has it
_LONGEST_TEXT = 16 * 1024 * 1024  # bytes; chat templates have some ten thousand
_MOST_LAYERS = _LONGEST_KEPT_ARRAY
_LARGEST = 1 << 53  # no size of a model comes near; a sum of such numbers is still no burden


class Header(Struct, frozen=True):
    """The metadata of one file. `arrays` holds short numeric arrays, `lengths` the length of every array met."""

    values: dict[str, Value] = field(default_factory=dict)
    arrays: dict[str, list[int | float]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, "" where the file has none."""
        return str(self.values.get("general.architecture", ""))

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, 0 if unknown."""
        return self.lengths.get(_TOKENS, 0) or self.number("vocab_size", 0)

    @property
    def pooling(self) -> str | None:
        """How one vector is made of a text's tokens: mean, cls, last, or rank for a score; None = not said."""
        return _POOLINGS.get(self.number("pooling_type", 0))

    def number(self, key: str, default: int) -> int:
        """The whole number of at most 2**53 under `{architecture}.{key}`; `default` for everything else."""
        return _whole(self.values.get(f"{self.architecture}.{key}"), default)

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """One integer a layer: hybrid models store an array where others have one number."""
        given = self.arrays.get(f"{self.architecture}.{key}")
        if given is not None and len(given) >= layers:
            return [_whole(item, default) for item in given[:layers]]
        return [self.number(key, default)] * layers


def _whole(value: Value | None, default: int) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value <= _LARGEST else default


# Architectures in which layers with a sliding window alternate with full ones, where the file does not list them: one
# layer in so many is full, and the usual window in tokens (llama.cpp's src/models/*.cpp).
_SLIDING = {
    "gemma2": (2, 4096),
    "gemma3": (6, 1024),
    "gemma3n": (5, 1024),
    "gpt-oss": (2, 128),
    "cohere2": (4, 4096),
    "exaone4": (4, 4096),
    "olmo2": (4, 4096),
}


# Encoders look at a whole text at once and keep nothing of it: the architectures of llama.cpp without a cache.
ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert",
     "gemma-embedding", "t5encoder"}
)  # fmt: skip
_POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama.cpp's numbers


class Geometry(Struct, frozen=True):
    """What a text model costs in memory: bytes of its files, numbers kept per token, sizes of its matrices.

    `kv_per_token` counts the numbers (not bytes) that the full attention layers together keep of each token,
    `window_kv_per_token` those that layers with a sliding window keep of the last `window` tokens.
    """

    weights: int
    layers: int
    kv_per_token: int
    window_kv_per_token: int = 0
    window: int = 0
    state_bytes: int = 0  # of one sequence, in layers that keep a state instead of tokens
    vocab: int = 152_000
    embd: int = 4096
    context: int = 0  # the longest context that it was made for, 0 = not known
    estimated: bool = False  # from a catalogue without these numbers
    pooled: bool = False  # a text becomes one vector: no logits, and all its tokens are computed at once
    eye: int = 0  # bytes of its image encoder
    draft: "Geometry | None" = None  # of the small model that drafts for it


def geometry(header: Header, weights: int) -> Geometry:
    """The geometry that a header describes; `weights` is the size of the files in bytes.

    Raises BadRequest for a number of layers that no model has.
    """
    layers = header.number("block_count", 1)
    if not 1 <= layers <= _MOST_LAYERS:
        raise BadRequest(
            f"a GGUF file with {layers:,} layers cannot be served: 1 to {_MOST_LAYERS:,} are possible"
        )
    embd = header.number("embedding_length", 0)
    heads = header.per_layer("attention.head_count", layers, 1)
    kv_heads = header.per_layer("attention.head_count_kv", layers, heads[0])
    head_dim = embd // max(*heads, 1, 1)
    keys = header.number("attention.key_length", head_dim)
    values = header.number("attention.value_length", head_dim)
    if header.number("attention.key_length_mla", 0):
        values = 0  # latent attention keeps one vector, of which the values are a part
    cached = header.architecture not in ENCODERS
    window, windowed = _windows(header, layers)
    sliding = sum(count for count, slides in zip(kv_heads, windowed, strict=True) if slides)
    sliding_size = header.number("attention.key_length_swa", keys) + header.number(
        "attention.value_length_swa", values
    )
    return Geometry(
        weights=weights,
        layers=layers,
        kv_per_token=(sum(kv_heads) - sliding) * (keys + values) if cached else 0,
        window_kv_per_token=sliding * sliding_size if cached else 0,
        window=window,
        state_bytes=_state_bytes(header) * (sum(count == 0 for count in kv_heads) or layers),
        vocab=header.vocab_size,
        embd=embd,
        context=header.number("context_length", 0),
        pooled=not cached or header.pooling is not None,
    )


def _windows(header: Header, layers: int) -> tuple[int, list[bool]]:
    """The sliding window in tokens, and which layers have it."""
    period, usual = _SLIDING.get(header.architecture, (1, 0))
    window = header.number("attention.sliding_window", usual)
    listed = header.arrays.get(f"{header.architecture}.attention.sliding_window_pattern")
    if window and listed is not None and len(listed) >= layers:
        return window, [bool(slides) for slides in listed[:layers]]
    return window, sliding_layers(layers, header.number("attention.sliding_window_pattern", period))


def sliding_layers(layers: int, period: int) -> list[bool]:
    """Which layers have a window where every `period`-th is full."""
    period = max(period, 1)
    return [layer % period < period - 1 for layer in range(layers)]


def usual_window(architecture: str | None) -> tuple[int, int]:
    """(one layer in so many is full, window in tokens) of an architecture whose file is not here; (1, 0) = none."""
    return _SLIDING.get(architecture or "", (1, 0))


def _state_bytes(header: Header) -> int:
    """What a state-space layer keeps of a sequence: its state and the last inputs of its convolution, in f32."""
    inner, state = header.number("ssm.inner_size", 0), header.number("ssm.state_size", 0)
    columns = inner + 2 * header.number("ssm.group_count", 0) * state
    return 4 * (inner * state + max(header.number("ssm.conv_kernel", 1) - 1, 0) * columns)


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def advance(self, size: int) -> int:
        """Step over `size` bytes and return where they begin. Raises ValueError beyond the end of the file."""
        begin, end = self.at, self.at + size
        if end > len(self.data):
            raise ValueError("what it lists runs beyond the end of the file")
        self.at = end
        return begin

    def scalar(self, form: str) -> int | float:
        value: int | float
        (value,) = struct.unpack_from(form, self.data, self.advance(struct.calcsize(form)))
        return value

    def count(self) -> int:
        return int(self.scalar("<Q"))

    def text(self, longest: int = _LONGEST_TEXT) -> str:
        length = self.count()
        begin = self.advance(length)
        if length > longest:
            raise ValueError(f"a text in its header has {length:,} bytes")
        return self.data[begin : self.at].decode("utf-8", "replace")

    def skip_texts(self, number: int) -> None:
        if number * 8 > len(self.data) - self.at:
            raise ValueError("what it lists runs beyond the end of the file")
        unpack, end = struct.Struct("<Q").unpack_from, len(self.data) - 8
        at = self.at
        for _ in range(number):
            if at > end:
                raise ValueError("what it lists runs beyond the end of the file")
            at += 8 + unpack(self.data, at)[0]
        self.at = at


def read_header(path: Path) -> Header:
    """Read the metadata of `path`.

    Raises BadRequest when the file cannot be read or is no GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(data))
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        raise BadRequest(f"{path} is no GGUF file that can be served: {error}") from error


def _parse(reader: _Reader) -> Header:
    if reader.data[:4] != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    reader.at = 4
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is not supported, 2 and 3 are")
    reader.count()  # tensors
    pairs = reader.count()
    if pairs > _MOST_PAIRS:
        raise ValueError(f"its header has {pairs:,} entries")
    header = Header()
    for _ in range(pairs):
        key = reader.text(_LONGEST_KEY)
        kind = int(reader.scalar("<I"))
        if kind == _STRING:
            header.values[key] = reader.text()
        elif kind == _ARRAY:
            if _array(reader, key, header):
                break
        elif kind in _SCALARS:
            header.values[key] = reader.scalar(_SCALARS[kind])
        else:
            raise ValueError(f"{key} has the unknown type {kind}")
    if not header.architecture:
        raise ValueError("it does not say its architecture")
    return header


def _array(reader: _Reader, key: str, header: Header) -> bool:
    """Read or step over one array; True when nothing that is wanted can follow."""
    kind = int(reader.scalar("<I"))
    length = reader.count()
    header.lengths[key] = length
    if kind == _STRING:
        if key == _TOKENS and f"{header.architecture}.block_count" in header.values:
            return True
        reader.skip_texts(length)
    elif kind in _SCALARS:
        form = _SCALARS[kind]
        if length <= _LONGEST_KEPT_ARRAY:
            header.arrays[key] = [reader.scalar(form) for _ in range(length)]
        else:
            reader.advance(length * struct.calcsize(form))
    else:
        raise ValueError(f"{key} is an array of the unsupported type {kind}")
    return False


def is_path(name: str) -> bool:
    """Whether a model's name, as somebody typed it, is a file or a folder: it ends like one, or it leads to one."""
    placed = os.sep in name or name.lower().endswith(".safetensors")
    return name.lower().endswith(".gguf") or (placed and os.path.exists(os.path.expanduser(name)))


def whole(path: Path) -> list[Path]:
    """All files of the model that `path` is the file, or any part, of; in order.

    Raises BadRequest when a part is missing.
    """
    match = SPLIT.search(path.name)
    if match is None:
        return [path]
    stem, parts = path.name[: match.start()], int(match["parts"])
    files = [path.with_name(f"{stem}-{part:05d}-of-{parts:05d}.gguf") for part in range(1, parts + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (
            f" and {len(missing) - _NAMED} more" if missing[_NAMED:] else ""
        )
        raise BadRequest(f"{path.name} is one of {parts} parts, and these do not lie beside it: {named}")
    return files


def size(paths: Sequence[Path]) -> int:
    """Bytes of the files together."""
    return sum(path.stat().st_size for path in paths)
