"""Headers of GGUF files: read, measured, refused."""

import math
import struct
import time
from pathlib import Path

import pytest

from oxlo_local.errors import BadRequest
from oxlo_local.gguf import Header, geometry, is_path, read_header, size, whole
from oxlo_local.random_model import write
from tests.hub import gguf_bytes


def test_a_header_tells_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(5000, block_count=3, embedding_length=96))
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.vocab_size == 3
    found = geometry(header, size([path]))
    assert found.weights == 5000
    assert (found.layers, found.embd, found.vocab, found.context) == (3, 96, 3, 2048)
    assert found.kv_per_token == 3 * 2 * (24 + 24), "layers x KV heads x (key + value)"


def test_an_encoder_keeps_no_cache_and_says_how_it_pools(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write(path, "bert", pooling="rank")
    header = read_header(path)
    assert header.pooling == "rank"
    assert geometry(header, 1).pooled and geometry(header, 1).kv_per_token == 0
    write(path, "llama", pooling="last")
    found = geometry(read_header(path), 1)
    assert found.pooled and found.kv_per_token > 0, "a text model keeps one, whatever becomes of its vectors"
    write(path, "llama")
    assert read_header(path).pooling is None and not geometry(read_header(path), 1).pooled


def test_a_real_model_is_read(shared: Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    header = read_header(path)
    assert (header.architecture, header.vocab_size) == ("llama", 512)
    assert geometry(header, 1).kv_per_token == 5 * 4 * (8 + 8)


def test_real_vocabularies_cost_no_more_than_a_tenth_of_a_second(shared: Path) -> None:
    files = sorted((shared / "models" / "vocab").glob("*.gguf"))
    assert files
    for path in files:
        start = time.perf_counter()
        assert read_header(path).vocab_size > 10_000
        assert time.perf_counter() - start < 0.1, path.name


@pytest.mark.parametrize(
    ("values", "arrays", "kv", "state"),
    [
        # Keys and values of their own sizes.
        ({"attention.key_length": 128, "attention.value_length": 64}, {}, 4 * 2 * (128 + 64), 0),
        # Every head its own cache, where nothing is said of fewer.
        ({"attention.head_count_kv": None}, {}, 4 * 8 * (16 + 16), 0),
        # A hybrid: attention in one of four layers, a state in the others.
        (
            {
                "attention.head_count_kv": None,
                "ssm.inner_size": 256,
                "ssm.state_size": 16,
                "ssm.conv_kernel": 4,
            },
            {"attention.head_count_kv": [0, 0, 2, 0]},
            2 * (16 + 16),
            3 * 256 * (16 + 4 - 1) * 4,
        ),
        # Latent attention keeps one vector.
        (
            {"attention.head_count_kv": 1, "attention.key_length": 576, "attention.key_length_mla": 192},
            {},
            4 * 576,
            0,
        ),
    ],
)
def test_what_a_token_costs(
    values: dict[str, int | None], arrays: dict[str, list[int | float]], kv: int, state: int
) -> None:
    numbers: dict[str, int | None] = {
        "block_count": 4, "embedding_length": 128, "attention.head_count": 8, "attention.head_count_kv": 2, **values
    }  # fmt: skip
    header = Header(
        values={
            "general.architecture": "x",
            **{f"x.{key}": number for key, number in numbers.items() if number},
        },
        arrays={f"x.{key}": numbers for key, numbers in arrays.items()},
    )
    found = geometry(header, 0)
    assert (found.kv_per_token, found.state_bytes) == (kv, state)


def one_pair(kind: int, value: bytes) -> bytes:
    """A file whose header has two entries: one under the key `k`, and another one that is not there."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 2, 1) + b"k" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04" + bytes(100), "does not begin with the letters GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "GGUF version 1 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say its architecture"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40), "beyond the end of the file"),
        (gguf_bytes(5000)[:60], "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + bytes(1_000_000), "its header has 9,223,.* entries"),
        (one_pair(9, struct.pack("<IQ", 0, (1 << 64) - 1)), "beyond the end of the file"),  # bytes
        (one_pair(9, struct.pack("<IQ", 8, (1 << 64) - 1)), "beyond the end of the file"),  # texts
        (one_pair(9, struct.pack("<IQQ", 8, 2, (1 << 64) - 1) + bytes(100)), "beyond the end of the file"),
        (one_pair(9, struct.pack("<IQ", 9, 1)), "array of the unsupported type 9"),
        (
            one_pair(8, struct.pack("<Q", 17 << 20) + bytes(17 << 20)),
            "a text in its header has 17,825,792 bytes",
        ),
        (one_pair(99, b""), "unknown type 99"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=words):
        read_header(path)


@pytest.mark.parametrize("layers", [0, 4097, (1 << 32) - 1])
def test_a_number_of_layers_that_no_model_has_is_refused(tmp_path: Path, layers: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(5000, block_count=layers))
    with pytest.raises(BadRequest, match=f"{layers:,} layers cannot be served: 1 to 4,096"):
        geometry(read_header(path), 5000)


@pytest.mark.parametrize("strange", [-1, 0, 1 << 60, math.nan, math.inf, "many", True])
def test_strange_numbers_make_a_geometry_all_the_same(strange: float | str) -> None:
    keys = ("embedding_length", "attention.head_count", "attention.head_count_kv", "context_length",
            "attention.sliding_window", "attention.sliding_window_pattern", "ssm.conv_kernel")  # fmt: skip
    values = {"general.architecture": "x", "x.block_count": 2, **{f"x.{key}": strange for key in keys}}
    arrays = {} if isinstance(strange, str) else {"x.attention.head_count_kv": [strange, strange]}
    found = geometry(Header(values=values, arrays=arrays), 5000)
    assert 0 <= found.context <= 1 << 53 and found.kv_per_token >= 0 and found.window >= 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"cannot read .*m\.gguf: No such file"):
        read_header(tmp_path / "m.gguf")


def test_only_what_looks_like_a_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "MODEL.GGUF", str(tmp_path / "model"), "./model", "~/model"):
        assert is_path(name), name
    for name in (
        "mistral-7b",
        "model",
        "hf:owner/repo",
        "~nobody-of-that-name/model",
        "a" * 300,
        "/" + "a" * 300,
    ):
        assert not is_path(name), name


def test_parts_belong_together(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    for part in parts:
        part.write_bytes(b"12")
    assert whole(parts[1]) == parts
    assert size(parts) == 6
    assert whole(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    parts[2].unlink()
    with pytest.raises(BadRequest, match="do not lie beside it: m-00003-of-00003.gguf"):
        whole(parts[0])
    with pytest.raises(BadRequest, match=r"m-00005-of-99999.gguf and 99994 more$"):
        whole(tmp_path / "m-00001-of-99999.gguf")


@pytest.mark.parametrize(
    ("architecture", "numbers", "listed", "full", "sliding", "window"),
    [
        ("llama", {"attention.sliding_window": 512}, None, 12, 0, 512),  # llama.cpp ignores it there
        ("gemma3", {"attention.sliding_window": 512}, None, 2, 10, 512),
        ("gemma2", {}, None, 6, 6, 4096),
        ("gpt-oss", {"attention.sliding_window": 128}, None, 6, 6, 128),
        ("any", {"attention.sliding_window": 256}, [1] * 9 + [0] * 3, 3, 9, 256),
        ("any", {"attention.sliding_window": 256, "attention.sliding_window_pattern": 3}, None, 4, 8, 256),
    ],
)
def test_layers_with_a_sliding_window_are_told_apart(
    architecture: str,
    numbers: dict[str, int],
    listed: list[int | float] | None,
    full: int,
    sliding: int,
    window: int,
) -> None:
    shape = {"block_count": 12, "embedding_length": 64, "attention.head_count": 1, **numbers}
    header = Header(
        values={"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in shape.items()}},
        arrays={f"{architecture}.attention.sliding_window_pattern": listed} if listed else {},
    )
    found = geometry(header, 0)
    assert (found.kv_per_token, found.window_kv_per_token) == (full * 128, sliding * 128)
    assert found.window == window
