"""The other one on the track: where llama-server is found, and the flags it runs with.

Places, in this order: LLAMA_SERVER (a path), llama-server on PATH, the archive shared/peers/ beside the checkout
(unpacked once into build/peers/), the server inside the xllamacpp wheel. llama-batched-bench, the floor, is looked for
beside the program that was found.

The race is one of schedulers, so both get the same kernels. The archive was compiled from the source that our engine is
compiled from, but for every x86-64 with AVX2, and our engine for this machine: on one core with AVX-512 that is 860
against 760 tokens/s of prefill, and 51 against 74 ms for a step of sixteen. The archive's programs therefore run on our
engine's own libllama and libggml. A server of the user's own runs as it was built.

The flags. What is the same for both (model, threads, context, slots) comes from the load. The rest is what
`llama-server --help` offers and what was best for it on each load:

* --no-kv-unified: a stream for each slot. Its default with a given number of slots, and the faster layout to decode.
* -b 2048 -ub 512: its defaults; smaller batches only cost it throughput. Beside long prompts -b 512, since every slot's
  next token waits for a whole batch: with 2048 its gaps are four times as long, and its short prompts wait as long.
* -fa auto, continuous batching, warm-up, prompt caching: its defaults, and the best there are.
* --cache-ram 0 where every prompt is new: else each finished slot is copied into a cache that nobody will hit. In
  conversations it stays on (8192 MiB, its default).
* --cache-reuse stays 0: it moves cached pieces to new positions, which is no equal output, and no load here has pieces.
* -tb = -t, --no-ui, --no-slots, --timeout 3600; the sampling fields come with each request, the same to both.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ARCHIVE = Path("shared") / "peers" / "llama-server-linux-x86_64.tar.xz"
BASE_FLAGS = (
    "--no-kv-unified",
    "-b",
    "2048",
    "-ub",
    "512",
    "-fa",
    "auto",
    "--no-ui",
    "--no-slots",
    "--timeout",
    "3600",
)
NEW_PROMPTS = ("--cache-ram", "0")
BESIDE_LONG = ("-b", "512", "--cache-ram", "0")
CONVERSATIONS = ("--cache-ram", "8192")


class NoPeer(Exception):
    """No llama-server was found; the message says where it was looked for."""


@dataclass(frozen=True)
class Peer:
    """How to start the peer: `command` before its flags, what its environment needs, and the floor's program."""

    command: tuple[str, ...]
    environ: dict[str, str]
    floor: Path | None
    version: str


@dataclass(frozen=True)
class Shape:
    """What both servers are started with. `ctx` = tokens of each slot. `chunk` and `batch` None: our own defaults."""

    model: Path
    parallel: int
    ctx: int
    threads: int = 1
    chunk: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    backend_sampling: bool | None = None
    peer_flags: tuple[str, ...] = NEW_PROMPTS


def peer_arguments(shape: Shape, port: int, extra: Sequence[str] = ()) -> list[str]:
    """llama-server's command line after the program. Later flags win over earlier ones."""
    sizes = ["-t", str(shape.threads), "-tb", str(shape.threads)]
    sizes += ["-np", str(shape.parallel), "-c", str(shape.parallel * shape.ctx)]
    if shape.gpu_layers is not None:
        sizes += ["-ngl", "all" if shape.gpu_layers < 0 else str(shape.gpu_layers)]
    flags = [*BASE_FLAGS, *shape.peer_flags]
    if shape.flash_attention is not None:
        flags += ["-fa", "on" if shape.flash_attention else "off"]
    if shape.backend_sampling:
        flags += ["--backend-sampling"]
    return ["-m", str(shape.model), "--host", "127.0.0.1", "--port", str(port), *sizes, *flags, *extra]


def our_arguments(shape: Shape, extra: Sequence[str] = ()) -> list[str]:
    """`oxlo serve`'s command line after `serve`."""
    found = [str(shape.model), "--port", "0", "--threads", str(shape.threads)]
    found += ["--parallel", str(shape.parallel), "--ctx", str(shape.ctx), "--ping-seconds", "0.2"]
    found += ["--speculation", "none"]  # the peer's default, too: a random model's answers run in circles
    for flag, value in (("--chunk", shape.chunk), ("--gpu-layers", shape.gpu_layers)):
        if value is not None:
            found += [flag, str(value)]
    switches = (("flash-attention", shape.flash_attention), ("backend-sampling", shape.backend_sampling))
    for name, wanted in switches:
        if wanted is not None:
            found.append(f"--{name}" if wanted else f"--no-{name}")
    return [*found, *extra]


def floor_arguments(shape: Shape, prompt: int, answer: int, clients: int) -> list[str]:
    """llama-batched-bench's command line after the program: the same work without HTTP, text or sampling."""
    cells = clients * (-(-(prompt + answer) // 256) * 256)
    found = ["-m", str(shape.model), "-t", str(shape.threads), "-tb", str(shape.threads), "-c", str(cells)]
    found += ["-b", "2048", "-ub", "512", "--no-kv-unified", "-fa", "auto"]
    if shape.gpu_layers is not None:
        found += ["-ngl", "all" if shape.gpu_layers < 0 else str(shape.gpu_layers)]
    found += ["-npp", str(prompt), "-ntg", str(answer), "-npl", str(clients)]
    return [*found, "--output-format", "jsonl"]


def find(environ: Mapping[str, str], root: Path) -> Peer:
    """The peer for this machine. Raises NoPeer with every place that was looked at."""
    if given := environ.get("LLAMA_SERVER"):
        program = Path(given).expanduser()
        if not os.access(program, os.X_OK) or not program.is_file():
            raise NoPeer(f"LLAMA_SERVER is {given}, which is no program; give the path of llama-server")
        return _program(program, environ)
    if on_path := shutil.which("llama-server", path=environ.get("PATH", "")):
        return _program(Path(on_path), environ)
    archive = root.parent / ARCHIVE
    if archive.is_file():
        program = unpacked(archive, root / "build" / "peers") / "llama-server"
        return _program(program, environ, kernels())
    if find_spec("xllamacpp") is not None:
        command = (sys.executable, str(Path(__file__).with_name("xllama.py")))
        return Peer(command, dict(environ), None, "the module in the xllamacpp wheel")
    raise NoPeer(
        "no llama-server was found: LLAMA_SERVER is not set, PATH has none, there is no "
        f"{Path('..') / ARCHIVE} beside this checkout, and the package xllamacpp is not installed "
        "(.venv/bin/python -m pip install xllamacpp)"
    )


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder with the archive's programs; unpacked when the archive is newer."""
    mark = folder / "llama-server"
    if not mark.is_file() or mark.stat().st_ctime < archive.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def kernels() -> Path:
    """The folder of libllama and libggml that our own engine loads."""
    found = find_spec("llama_cpp")
    assert found is not None and found.origin is not None, "the race needs the extra 'text'"
    return Path(found.origin).parent / "lib"


def _program(program: Path, environ: Mapping[str, str], libraries: Path | None = None) -> Peer:
    """A program with its libraries beside it, as in a build folder or the archive; `libraries` come before those."""
    folder = program.resolve().parent
    places = (str(libraries or ""), str(folder), environ.get("LD_LIBRARY_PATH", ""))
    environ = {**environ, "LD_LIBRARY_PATH": ":".join(filter(None, places))}
    version = _version(program, environ) + (", on this engine's libllama and libggml" if libraries else "")
    floor = folder / "llama-batched-bench"
    return Peer((str(program),), dict(environ), floor if floor.is_file() else None, version)


def _version(program: Path, environ: Mapping[str, str]) -> str:
    done = subprocess.run(
        [program, "--version"], env=dict(environ), capture_output=True, text=True, timeout=30, check=False
    )
    words = (done.stdout + done.stderr).splitlines()
    return next((line for line in words if line.startswith("version")), f"{program}, which tells no version")
