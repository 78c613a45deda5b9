"""The race at real sizes on an NVIDIA GPU: 8 and 32 billion random weights, 1 to 64 clients, against llama-server.

In this order, each step only when its result is not there yet, everything in build/gpu/:

1. one source archive of llama-cpp-python, the version that this checkout pins: both sides are the same llama.cpp;
2. from it a wheel with CUDA for this GPU's architecture, in a copy of this environment (the environment itself stays as
   it is), and llama-server and llama-batched-bench;
3. the models: 8b as Q4_K_M and F16, 32b as Q4_K_M;
4. scripts/bench-peers on each model over all numbers of clients: with flash attention and backend sampling on, for
   both servers, then with each of them off;
5. a table of absolute tokens/s beside the bandwidth limit: a decode step reads every weight once, so with c clients no
   server can give more than c * bandwidth / bytes of weights tokens/s.

It needs nvidia-smi, nvcc, cmake, a C++ compiler and about 50 GB in build/. --dry-run prints the commands.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from oxlo_local.random_model import SHAPES, layout  # noqa: E402  # after the path that leads to this checkout

BUILD = ROOT / "build" / "gpu"
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MODELS = (("8b", "Q4_K_M"), ("8b", "F16"), ("32b", "Q4_K_M"))
SWITCHES: tuple[tuple[str, ...], ...] = (
    ("--flash-attention", "--backend-sampling"),
    ("--flash-attention", "--no-backend-sampling"),
    ("--no-flash-attention", "--backend-sampling"),
)
ROUNDS = 5
PLAIN = (
    "-DLLAMA_USE_PREBUILT_UI=off",
    "-DLLAMA_OPENSSL=off",
    "-DLLAMA_BUILD_TESTS=off",
)  # or it fetches a web page
CELLS = 8 * 8448  # of the load beside-long
BUFFERS = 1.5e9  # bytes, beside weights and cache

# Memory bandwidth in GB/s by what nvidia-smi calls the GPU, from NVIDIA's data sheets; the longest name that fits wins.
BANDWIDTH: dict[str, float] = {
    "H200": 4800, "H100": 3350, "H100 PCIe": 2000, "H100 NVL": 3938, "GH200": 4000, "B200": 8000,
    "A100": 1555, "A100-SXM4-80GB": 2039, "A100 80GB PCIe": 1935, "L40S": 864, "L40": 864, "L4": 300, "T4": 320,
    "A10": 600, "A10G": 600, "A40": 696, "RTX A6000": 768, "RTX 6000 Ada": 960, "RTX 3090": 936, "RTX 3090 Ti": 1008,
    "RTX 4090": 1008, "RTX 5090": 1792, "RTX 4080": 717, "RTX 5080": 960, "V100": 900,
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine. `architecture` as CMake wants it: 90 for compute capability 9.0."""

    name: str
    architecture: str
    memory_mib: int

    @classmethod
    def of(cls, line: str) -> "Gpu":
        """From a line of `nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv,noheader,nounits`."""
        name, capability, memory = (part.strip() for part in line.split(","))
        return cls(name, capability.replace(".", ""), int(memory))


@dataclass(frozen=True)
class Step:
    """A command, the variables it needs besides ours, and the file that tells that it has been run."""

    command: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()
    done: Path | None = None
    folder: Path = ROOT

    def __str__(self) -> str:
        return shlex.join([*(f"{name}={value}" for name, value in self.environ), *self.command])


def bandwidth_of(name: str) -> float | None:
    """GB/s of a GPU by its name, or None for one that is not in the list."""
    fitting = [known for known in BANDWIDTH if known in name]
    return BANDWIDTH[max(fitting, key=len)] if fitting else None


def pinned(constraints: str) -> str:
    """The version of llama-cpp-python that the checkout pins. Raises ValueError when there is none."""
    for line in constraints.splitlines():
        name, _, version = line.partition("==")
        if name.strip().lower().replace("_", "-") == "llama-cpp-python" and version:
            return version.split("#")[0].split(";")[0].strip()
    raise ValueError("constraints.txt does not pin llama-cpp-python")


def cmake_flags(gpu: Gpu, *, driver_library: bool) -> list[str]:
    """CUDA for one architecture. Without libcuda at link time ggml has to do without its virtual memory."""
    flags = ["-DGGML_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={gpu.architecture}", "-DGGML_NATIVE=on"]
    return flags if driver_library else [*flags, "-DGGML_CUDA_NO_VMM=on"]


def build_steps(gpu: Gpu, version: str, *, driver_library: bool, jobs: int) -> list[Step]:
    """What makes the engine and its peer out of one source archive."""
    flags = cmake_flags(gpu, driver_library=driver_library)
    source = BUILD / f"llama_cpp_python-{version}"
    python = BUILD / "venv" / "bin" / "python"
    archive = source.with_name(f"{source.name}.tar.gz")
    vendor, out = source / "vendor" / "llama.cpp", BUILD / "llama.cpp"
    pip = (sys.executable, "-m", "pip")
    download = ("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(BUILD))
    return [
        Step((*pip, *download, f"llama-cpp-python=={version}"), done=archive),
        Step(("tar", "xzf", str(archive), "-C", str(BUILD)), done=vendor / "CMakeLists.txt"),
        Step((sys.executable, "-m", "venv", str(BUILD / "venv")), done=python),
        Step(
            (
                str(python),
                "-m",
                "pip",
                "install",
                "-c",
                str(ROOT / "constraints.txt"),
                f"{ROOT}[dev]",
                "jinja2",
                "numpy",
            ),
            done=BUILD / "venv" / "bin" / "oxlo",
        ),
        Step(
            (str(python), "-m", "pip", "install", "--no-deps", str(archive)),
            environ=(("CMAKE_ARGS", " ".join(flags)), ("CMAKE_BUILD_PARALLEL_LEVEL", str(jobs))),
            done=BUILD / "engine-built",
        ),
        Step(
            (
                "cmake",
                "-S",
                str(vendor),
                "-B",
                str(out),
                *flags,
                "-DCMAKE_BUILD_TYPE=Release",
                *PLAIN,
            ),
            done=out / "CMakeCache.txt",
        ),
        Step(
            (
                "cmake",
                "--build",
                str(out),
                "-j",
                str(jobs),
                "--target",
                "llama-server",
                "llama-batched-bench",
            ),
            done=out / "bin" / "llama-batched-bench",
        ),
    ]


def race_step(model: str, quant: str, switches: Sequence[str], rounds: int) -> tuple[Step, Path]:
    """One run of the table on one model, and where its JSON goes."""
    python = BUILD / "venv" / "bin" / "python"
    name = "_".join([model, quant.lower(), *(each.removeprefix("--") for each in switches)])
    command = [str(python), str(ROOT / "scripts" / "bench_peers.py"), "--model", model, "--quant", quant]
    command += ["--gpu-layers", "-1", "--clients", ",".join(map(str, CLIENTS)), "--rounds", str(rounds)]
    command += ["--chunk", "512", *switches, "--json"]
    server = BUILD / "llama.cpp" / "bin" / "llama-server"
    return Step(tuple(command), environ=(("LLAMA_SERVER", str(server)),)), BUILD / f"{name}.json"


def fits(gpu: Gpu, model: str, quant: str) -> bool:
    """Whether the GPU has room for both servers: weights, the cache of the load with the most tokens, buffers."""
    shape, bits = SHAPES[model], {"Q4_K_M": 4.85, "F16": 16.0, "Q8_0": 8.5}[quant]
    weights = sum(math.prod(tensor.shape) for tensor in layout("llama", shape, shape.vocab)) * bits / 8
    cell = 2 * 2 * shape.layers * shape.kv_heads * (shape.d // shape.heads)  # keys and values, two bytes each
    return 2 * (weights + CELLS * cell + BUFFERS) < gpu.memory_mib * 2**20


def limits(report: Mapping[str, object], weights: int, bandwidth: float | None) -> list[str]:
    """Lines of the table: clients, tokens/s of both, and the share of the bandwidth limit that ours reaches."""
    lines = []
    rows = report["rows"]
    assert isinstance(rows, list)
    for row in rows:
        if not row["load"].startswith("clients-") or not row["rounds"]:
            continue
        clients = int(row["load"].removeprefix("clients-"))
        ours, peer = (
            sorted(turn[who]["tokens_per_second"] for turn in row["rounds"])[len(row["rounds"]) // 2]
            for who in ("ours", "peer")
        )
        line = f"{clients:3} clients: ours {ours:.0f}, llama-server {peer:.0f} tokens/s"
        if bandwidth is not None:
            line += f"; {100 * ours / (clients * bandwidth * 1e9 / weights):.0f} % of the bandwidth limit"
        lines.append(line)
    return lines


def found_gpu() -> Gpu:
    """This machine's first GPU. Raises SystemExit, with what is missing."""
    missing = [name for name in ("nvidia-smi", "nvcc", "cmake", "c++") if shutil.which(name) is None]
    if missing:
        raise SystemExit(
            f"bench-gpu: {', '.join(missing)} is not here; it needs an NVIDIA GPU and CUDA's compiler"
        )
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    return Gpu.of(subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0])


def perform(step: Step) -> None:
    """Run a step that has not been run. Raises CalledProcessError."""
    if step.done is not None and step.done.exists():
        return
    print(f"+ {step}", file=sys.stderr, flush=True)
    subprocess.run(step.command, env={**os.environ, **dict(step.environ)}, check=True, cwd=step.folder)
    if step.done is not None and step.done.name == "engine-built":
        step.done.touch()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, race, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of every load ({ROUNDS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once (all cores)")
    parser.add_argument(
        "--bandwidth", type=float, help="GB/s of the GPU's memory (from a list of data sheets)"
    )
    parser.add_argument("--gpu", metavar="NAME,CAPABILITY,MIB", help="for --dry-run where there is no GPU")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    options = parser.parse_args(arguments)
    gpu = Gpu.of(options.gpu) if options.gpu and options.dry_run else found_gpu()
    driver = (
        shutil.which("ldconfig") is not None
        and "libcuda.so"
        in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    )
    version = pinned((ROOT / "constraints.txt").read_text("utf-8"))
    steps = build_steps(gpu, version, driver_library=driver, jobs=options.jobs)
    races = [
        (model, quant, *race_step(model, quant, switches, options.rounds))
        for model, quant in MODELS
        if fits(gpu, model, quant)
        for switches in SWITCHES
    ]
    if not races:
        print(
            f"bench-gpu: {gpu.name} has room for none of the models twice (both servers hold one)",
            file=sys.stderr,
        )
        return 1
    if options.dry_run:
        print("\n".join(str(step) for step in (*steps, *(race[2] for race in races))))
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    for step in steps:
        perform(step)
    bandwidth = options.bandwidth or bandwidth_of(gpu.name)
    if bandwidth is None:
        print(f"{gpu.name} is not in the list of bandwidths: give --bandwidth for the limit", file=sys.stderr)
    missed = False
    for model, quant, step, out in races:
        print(f"+ {step} > {out}", file=sys.stderr, flush=True)
        with out.open("wb") as file:
            done = subprocess.run(
                step.command, env={**os.environ, **dict(step.environ)}, stdout=file, check=False
            )
        if not out.stat().st_size:
            return done.returncode or 1
        missed |= done.returncode != 0
        weights = (ROOT / "build" / f"random-{model}-{quant.lower()}.gguf").stat().st_size
        print(f"\n{out.stem} on {gpu.name}, {weights / 1e9:.1f} GB of weights")
        print("\n".join(limits(json.loads(out.read_bytes()), weights, bandwidth)))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
