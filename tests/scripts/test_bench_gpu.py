"""The race on a GPU, as far as it can be held to account without one: its commands, its limits, its arithmetic."""

import subprocess
import sys
from typing import get_args

import pytest

import bench_gpu
import bench_peers
from bench_gpu import Gpu
from oxlo_local import random_model
from tests.conftest import ROOT

H100 = Gpu.of("NVIDIA H100 80GB HBM3, 9.0, 81559")


def test_a_gpu_is_read_as_cmake_wants_it() -> None:
    assert H100 == Gpu("NVIDIA H100 80GB HBM3", "90", 81559)
    assert bench_gpu.cmake_flags(H100, driver_library=True)[:2] == [
        "-DGGML_CUDA=on",
        "-DCMAKE_CUDA_ARCHITECTURES=90",
    ]
    assert "-DGGML_CUDA_NO_VMM=on" in bench_gpu.cmake_flags(H100, driver_library=False)


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA GeForce RTX 4090", 1008),
        ("Voodoo2", None),
    ],
)
def test_bandwidth_by_name(name: str, bandwidth: float | None) -> None:
    assert bench_gpu.bandwidth_of(name) == bandwidth


def test_the_pinned_version_is_built_for_both() -> None:
    version = bench_gpu.pinned((ROOT / "constraints.txt").read_text("utf-8"))
    steps = bench_gpu.build_steps(H100, version, driver_library=True, jobs=4)
    words = [str(step) for step in steps]
    assert (
        sum(f"llama_cpp_python-{version}" in word for word in words) == 3
    )  # unpacked, installed, configured
    assert sum("CMAKE_CUDA_ARCHITECTURES=90" in word for word in words) == 2
    with pytest.raises(ValueError, match="does not pin"):
        bench_gpu.pinned("numpy==2.0\n")


def test_every_race_is_a_command_that_bench_peers_takes() -> None:
    for model, quant in bench_gpu.MODELS:
        assert model in random_model.SHAPES and quant in get_args(random_model.Quant)
        for switches in bench_gpu.SWITCHES:
            step, out = bench_gpu.race_step(model, quant, switches, 5)
            options = bench_peers.options_from(step.command[2:])
            assert (options.model, options.quant, options.clients) == (model, quant, bench_gpu.CLIENTS)
            assert options.gpu_layers == -1 and options.json and options.flash_attention is not None
            assert out.suffix == ".json"


def test_what_does_not_fit_is_left_out() -> None:
    half = Gpu("NVIDIA A100-SXM4-40GB", "80", 40960)
    assert bench_gpu.fits(half, "8b", "Q4_K_M") and not bench_gpu.fits(half, "8b", "F16")
    assert not bench_gpu.fits(half, "32b", "Q4_K_M") and bench_gpu.fits(H100, "32b", "Q4_K_M")


def test_the_share_of_the_bandwidth_limit() -> None:
    turn = {"ours": {"tokens_per_second": 300.0}, "peer": {"tokens_per_second": 250.0}}
    report = {"rows": [{"load": "clients-2", "rounds": [turn]}, {"load": "shared", "rounds": [turn]}]}
    # 2 clients, 1000 GB/s over 5 GB of weights: 200 steps a second, 400 tokens/s at most.
    assert bench_gpu.limits(report, 5_000_000_000, 1000.0) == [
        "  2 clients: ours 300, llama-server 250 tokens/s; 75 % of the bandwidth limit"
    ]


def test_a_dry_run_prints_all_and_runs_nothing() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench_gpu.py"),
        "--dry-run",
        "--gpu",
        "NVIDIA H100, 9.0, 81559",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 7 + len(bench_gpu.MODELS) * len(bench_gpu.SWITCHES)
    assert sum("bench_peers.py" in line for line in lines) == 9
