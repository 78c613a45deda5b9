"""What is found out about a machine: whole ones, containers of both cgroup versions, GPUs."""

import os
from pathlib import Path

import psutil
import pytest

from oxlo_local.hardware import Gpu, Machine, parse_smi, probe

MIB = 1024 * 1024
SMI = """0, GPU-aaaa-1, NVIDIA H100 80GB HBM3, 81559, 81007, 9.0
1, GPU-bbbb-2, NVIDIA GeForce RTX 4090, 24564, 23000, 8.9
2, GPU-cccc-3, NVIDIA A100-SXM4-40GB, [N/A], [N/A], 8.0
"""


def write(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine_is_seen_quickly() -> None:
    machine = probe()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.ram_total is not None and machine.ram_available is not None
    assert 0 < machine.ram_available <= machine.ram_total <= psutil.virtual_memory().total


def test_a_cgroup_v2_limit_counts_and_so_does_its_parents(tmp_path: Path) -> None:
    group = "sys/fs/cgroup"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box/inner\n",
            f"{group}/box/memory.max": f"{512 * MIB}\n",
            f"{group}/box/memory.current": f"{300 * MIB}\n",
            f"{group}/box/memory.stat": f"anon 5\ninactive_file {100 * MIB}\n",
            f"{group}/box/cpu.max": "100000 100000\n",
            f"{group}/box/inner/memory.max": "max\n",
            f"{group}/box/inner/cpu.max": "max 100000\n",
        },
    )
    machine = probe(root, {})
    assert machine.ram_total == 512 * MIB
    assert machine.ram_available == (512 - 300 + 100) * MIB
    assert machine.cores == 1


def test_a_cgroup_v1_limit_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu:/\n0::/\n",
            f"{group}/memory/box/memory.limit_in_bytes": f"{256 * MIB}\n",
            f"{group}/memory/box/memory.usage_in_bytes": f"{300 * MIB}\n",
            f"{group}/memory/box/memory.stat": "total_inactive_file 0\n",
            f"{group}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/cpu/cpu.cfs_quota_us": "50000\n",
            f"{group}/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    machine = probe(root, {})
    assert (machine.ram_total, machine.ram_available) == (256 * MIB, 0)
    assert machine.cores == 1


def test_without_cgroups_the_machine_itself_counts(tmp_path: Path) -> None:
    assert probe(tmp_path, {}).ram_total == psutil.virtual_memory().total


def test_gpus_are_read_and_those_without_memory_left_out() -> None:
    gpus = parse_smi(SMI, None)
    assert gpus == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 * MIB, 81007 * MIB, "9.0"),
        Gpu("NVIDIA GeForce RTX 4090", 24564 * MIB, 23000 * MIB, "8.9"),
    )


@pytest.mark.parametrize(
    ("visible", "names"), [("1", ["RTX 4090"]), ("GPU-aaaa", ["H100"]), ("", []), ("-1", [])]
)
def test_hidden_gpus_do_not_count(visible: str, names: list[str]) -> None:
    found = parse_smi(SMI, visible)
    assert len(found) == len(names)
    assert all(name in gpu.name for name, gpu in zip(names, found, strict=True))


def test_no_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe().gpus == ()


def test_gpus_count_only_for_an_engine_that_uses_them() -> None:
    gpu = Gpu("H100", 80, 70, "9.0")
    assert Machine(4, 10, 5, (gpu, gpu), gpu_engine=True).vram_free == 140
    assert Machine(4, 10, 5, (gpu,)).vram_free == 0
    assert Machine(4, 10, 5, (gpu,), gpu_engine=True).at_rest() == Machine(
        4, 10, 10, (Gpu("H100", 80, 80, "9.0"),), gpu_engine=True
    )
