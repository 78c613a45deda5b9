"""The installer's decisions: which build, how much disk, what a failed pip means."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def install() -> ModuleType:
    """scripts/install.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("oxlo_install", ROOT / "scripts" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_toolkit_without_a_gpu_does_not_build_cuda(install: ModuleType) -> None:
    assert not install.Machine(linux=True, cuda=None, nvcc=True, compiler=True, free_gb=50).builds_cuda
    assert not install.Machine(linux=True, cuda=12.4, nvcc=False, compiler=True, free_gb=50).builds_cuda
    assert install.Machine(linux=True, cuda=12.4, nvcc=True, compiler=True, free_gb=50).builds_cuda


def test_wheels_are_no_newer_than_the_driver(install: ModuleType) -> None:
    machine = install.Machine(linux=True, cuda=12.4, nvcc=False, compiler=True, free_gb=50)
    assert install.llama_wheels(machine) == ["cu124", "cu123", "cu122"]
    assert install.llama_wheels(install.Machine(True, None, False, True, 50)) == ["cpu"]
    assert install.llama_wheels(install.Machine(False, None, False, True, 50)) == ["metal"]


def test_the_announcement_says_what_torch_weighs(install: ModuleType) -> None:
    everything = {"text", "speech", "image"}
    gpu = install.Machine(linux=True, cuda=13.0, nvcc=False, compiler=True, free_gb=50)
    told = "\n".join(install.announce(everything, gpu))
    assert "several GB" in told and "no nvcc" in told
    cpu = install.Machine(linux=True, cuda=None, nvcc=False, compiler=True, free_gb=50)
    assert "200 MB" in "\n".join(install.announce(everything, cpu))
    assert "torch" not in "\n".join(install.announce({"text"}, gpu))
    assert (
        install.needed_gb({"text"}, gpu)
        < install.needed_gb(everything, cpu)
        < install.needed_gb(everything, gpu)
    )


def test_the_readme_says_what_the_installer_asks_for(install: ModuleType) -> None:
    everything = {"text", "speech", "image"}
    machines = [install.Machine(True, cuda, False, True, 50) for cuda in (None, 13.0)]
    text, all_cpu, all_cuda = (
        f"{install.needed_gb(extras, machine):.1f}"
        for extras, machine in (({"text"}, machines[0]), (everything, machines[0]), (everything, machines[1]))
    )
    told = f"{text} GB of disk instead of {all_cpu}, or of {all_cuda} with torch's CUDA build"
    assert told in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "NewConnectionError: Failed to establish a new connection: Name or service not known",
            "cannot be reached",
        ),
        ("CMake Error: CMAKE_CXX_COMPILER not set", "C++ compiler"),
        ("ERROR: No matching distribution found for llama-cpp-python==9", "no llama-cpp-python==9"),
        ("one\nerror: subprocess-exited-with-error\n", "subprocess-exited"),
        (
            "+ python -c import llama_cpp\nOSError: libcudart.so.12: cannot open shared object file",
            "libcudart",
        ),
        ("", "without a word"),
    ],
)
def test_a_failed_pip_is_one_line_with_what_to_do(install: ModuleType, log: str, says: str) -> None:
    told = install.diagnosis(log)
    assert says in told and "\n" not in told


def test_a_step_is_explained_by_its_own_words(install: ModuleType, tmp_path: Path) -> None:
    """The log keeps every try: a disk that was full yesterday is not why today's step failed."""
    env = install.Environment(tmp_path)
    env.python.parent.mkdir(parents=True)
    env.python.symlink_to(sys.executable)
    env.log.write_text("OSError: [Errno 28] No space left on device\n")
    assert not env.imports("nothing_of_that_name")
    assert "No module named 'nothing_of_that_name'" in install.diagnosis(env.logged())


def test_a_missing_compiler_is_found_out_before_torch_is_fetched(install: ModuleType, tmp_path: Path) -> None:
    machine = install.Machine(True, None, False, False, 50)
    planned = install.steps(install.Environment(tmp_path), {"text", "speech", "image"}, machine)
    assert [name for name, _ in planned] == ["llama-cpp-python", "torch", "everything else"]


def test_too_little_disk_stops_before_anything_is_made(install: ModuleType, tmp_path: Path) -> None:
    env = install.Environment(tmp_path)
    machine = install.look(tmp_path)
    assert machine.free_gb > 0
    small = install.Machine(True, None, False, True, free_gb=0.1)
    with pytest.raises(
        install.Stop, match=r"1\.6 GB of disk are needed and 0\.1 GB are free at .*: free some$"
    ):
        install.check_disk(env, {"text"}, small)
    with pytest.raises(install.Stop, match="OXLO_EXTRAS=text needs 1.6 GB$"):
        install.check_disk(env, {"text", "speech", "image"}, small)
    assert not env.path.exists()


def test_a_stamp_counts_only_with_its_fingerprint_and_a_python(install: ModuleType, tmp_path: Path) -> None:
    env = install.Environment(tmp_path)
    assert env.extras("1 2") is None
    env.python.parent.mkdir(parents=True)
    env.stamp.write_text("1 2\ntext dev\n")
    assert env.extras("1 2") is None
    env.python.symlink_to(sys.executable)
    assert env.extras("1 2") == {"text", "dev"}
    assert env.extras("3 4") is None


@pytest.mark.timeout(240)
def test_what_a_killed_pip_left_is_thrown_away(install: ModuleType, tmp_path: Path) -> None:
    env = install.Environment(tmp_path)
    env.create()
    installed = env.path / "something installed"
    installed.touch()
    env.create()
    assert installed.exists() and not env.busy.exists()
    env.busy.touch()
    env.create()
    assert not installed.exists() and env.python.exists()


def test_every_build_that_needs_a_choice_is_pinned(install: ModuleType) -> None:
    env = install.Environment(ROOT)
    assert env.pinned("torch") == "2.13.0"
    assert env.pinned("llama-cpp-python") == "0.3.36"


def test_an_unknown_extra_is_wrong_usage(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "install.py"), str(tmp_path), "1 2", "texd"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "texd" in done.stderr and not (tmp_path / ".venv").exists()


def test_a_checkout_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / ".venv.lock").mkdir()  # as good as a folder of somebody else's
    command = [sys.executable, str(ROOT / "scripts" / "install.py"), str(tmp_path), "1 2", "text"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("oxlo: stopped: ") and ".venv.lock" in done.stderr
