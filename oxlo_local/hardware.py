"""What this machine has: cores, memory, GPUs; inside a container, what the container may use.

`probe` takes a few milliseconds where there is no NVIDIA driver, and as long as `nvidia-smi` where there is. What
cannot be found out is None, never a guess. Sources: sched_getaffinity and the cgroup files (versions 1 and 2: every
group from the process's own up to the root may set a limit), psutil for the memory of the whole machine.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

_SMI_FIELDS = "index,uuid,name,memory.total,memory.free,compute_cap"
_SMI_SECONDS = 10
_MIB = 1024 * 1024
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


class Gpu(Struct, frozen=True):
    """One CUDA device; memory in bytes."""

    name: str
    total: int
    free: int
    compute_capability: str


class Machine(Struct, frozen=True):
    """Memory in bytes. `cores` is what this process may use, rounded up."""

    cores: int
    ram_total: int | None
    ram_available: int | None
    gpus: tuple[Gpu, ...] = ()
    gpu_engine: bool = False  # the installed text engine is built for GPUs

    @property
    def vram_total(self) -> int:
        """Memory of all GPUs that the text engine can use."""
        return sum(gpu.total for gpu in self.gpus) if self.gpu_engine else 0

    @property
    def vram_free(self) -> int:
        """Free memory of all GPUs that the text engine can use."""
        return sum(gpu.free for gpu in self.gpus) if self.gpu_engine else 0

    def at_rest(self) -> "Machine":
        """The machine with nothing running: what a model to pull is measured against."""
        gpus = tuple(msgspec.structs.replace(gpu, free=gpu.total) for gpu in self.gpus)
        return msgspec.structs.replace(self, ram_available=self.ram_total, gpus=gpus)


def probe(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Machine:
    """Look at this machine. `root` is where /proc and /sys are."""
    environ = os.environ if environ is None else environ
    total, available = _memory(root)
    return Machine(
        cores=_cores(root),
        ram_total=total,
        ram_available=available,
        gpus=_gpus(environ),
        gpu_engine=_engine_uses_gpus(),
    )


# -- containers -------------------------------------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The cgroup folders that limit this process for one controller, innermost first."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controllers and controller)
        group = top / path.lstrip("/")
        # In a container the path may be the host's, of which only the mounted top is visible.
        yield from (
            folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.is_dir()
        )


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def _statistic(path: Path, names: tuple[str, ...]) -> int:
    pairs = (line.split() for line in _text(path).splitlines())
    return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names), 0)


def _cores(root: Path) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        if not quota.isdigit():
            quota, period = (
                _text(group / "cpu.cfs_quota_us").strip(),
                _text(group / "cpu.cfs_period_us").strip(),
            )
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, -(-int(quota) // int(period)))
    return max(cores, 1)


def _memory(root: Path) -> tuple[int | None, int | None]:
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError):
        return None, None
    total, available = int(memory.total), int(memory.available)
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None:
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        # Pages of files are given back when somebody needs the memory: they count as used, but are not in the way.
        reclaimable = _statistic(group / "memory.stat", ("inactive_file", "total_inactive_file"))
        total = min(total, limit)
        available = min(available, limit - used + reclaimable)
    return total, max(available, 0)


# -- GPUs -------------------------------------------------------------------------------------------------------------


def _gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer is no GPU to count on
        return ()
    return parse_smi(answer.stdout, environ.get("CUDA_VISIBLE_DEVICES"))


def parse_smi(table: str, visible: str | None) -> tuple[Gpu, ...]:
    """The devices of nvidia-smi's csv answer that CUDA_VISIBLE_DEVICES (None = unset) leaves visible."""
    gpus: list[Gpu] = []
    wanted = None if visible is None else [part.strip() for part in visible.split(",")]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 6 or not cells[3].isdigit() or not cells[4].isdigit():
            continue  # a device in MIG mode reports no memory of its own
        index, uuid, name, total, free, capability = cells
        if wanted is not None and not any(
            part == index or (part and uuid.startswith(part)) for part in wanted
        ):
            continue
        gpus.append(Gpu(name, int(total) * _MIB, int(free) * _MIB, capability))
    return tuple(gpus)


def _engine_uses_gpus() -> bool:
    """Whether llama_cpp, which only workers may import, carries a GPU backend beside its library."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).parent / "lib"
    return any(
        any(library.glob(f"*ggml-{backend}*")) for backend in ("cuda", "hip", "vulkan", "sycl", "metal")
    )
