"""Make .venv and fill it: what scripts/oxlo and scripts/test run when it is missing or out of date.

Standard library only, and any Python from 3.11 on. Every step can be repeated, and the file `installed` in .venv is
written last: an installation that failed or was interrupted has none, so the next start takes it up again. What a pip
that was killed has left cannot be trusted: then .venv is made anew, with what pip's cache has. pip writes to
`.venv/install.log`; people get one line for each step, on stderr.

Two packages need a choice, made by looking at the machine. llama-cpp-python is on the package index as source only: a
prebuilt wheel is taken where its own index can be reached, else it is compiled here. torch's default build on Linux
brings several GB of CUDA; a machine without an NVIDIA GPU gets the CPU build where PyTorch's index can be reached.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LLAMA_INDEX = "https://abetlen.github.io/llama-cpp-python/whl"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REACH_SECONDS = 6
CUDA_WHEELS = (
    132,
    131,
    130,
    128,
    126,
    125,
    124,
    123,
    122,
    121,
    118,
)  # names cuNNN on LLAMA_INDEX, newest first
OLDEST_CUDA = 11.8  # assumed of a driver that does not say
EXTRAS = ("text", "speech", "image", "dev")


class Stop(Exception):
    """The installation cannot go on; the message is the one line that says why, and what to do."""


@dataclass(frozen=True)
class Machine:
    """What decides between builds. `cuda` is what the driver supports (12.4), None without an NVIDIA GPU."""

    linux: bool
    cuda: float | None
    nvcc: bool
    compiler: bool
    free_gb: float

    @property
    def builds_cuda(self) -> bool:
        """Whether a CUDA build can be compiled here. A toolkit without a GPU, as build machines have, is not enough."""
        return self.cuda is not None and self.nvcc and self.compiler


def look(root: Path) -> Machine:
    """Look at this machine; `nvidia-smi` is asked whether a GPU really answers."""
    cuda = None
    if smi := shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            told = subprocess.run([smi], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
            version = re.search(r"CUDA (?:\w+ )?Version\s*:\s*(\d+\.\d+)", told.stdout)
            if told.returncode == 0:
                cuda = float(version[1]) if version else OLDEST_CUDA
    compilers = [os.environ.get("CXX", "c++"), "c++", "g++", "clang++"]
    return Machine(
        linux=sys.platform == "linux",
        cuda=cuda,
        nvcc=shutil.which("nvcc") is not None,
        compiler=any(shutil.which(name) for name in compilers),
        free_gb=shutil.disk_usage(root).free / 1e9,
    )


def needed_gb(extras: set[str], machine: Machine) -> float:
    """Disk that an installation takes, with what it needs on the way, in GB."""
    torch = 9.0 if machine.linux and machine.cuda else 2.0
    return 0.4 + 1.2 * ("text" in extras) + 0.7 * ("speech" in extras) + torch * ("image" in extras)


def announce(extras: set[str], machine: Machine) -> list[str]:
    """What is about to happen, how long it takes and what it weighs."""
    lines = [
        f"making .venv with {', '.join(sorted(extras))}: about {needed_gb(extras, machine):.1f} GB of disk"
    ]
    if "text" in extras:
        build = "its CUDA build" if machine.builds_cuda else "its CPU build"
        lines.append(
            f"llama-cpp-python: {build}; compiled here unless a wheel is found, 5-15 min on few cores"
        )
        if machine.cuda and not machine.nvcc:
            lines.append(
                "there is a GPU but no nvcc: without a fitting wheel the text engine runs on the CPU"
            )
    if "image" in extras and machine.linux:
        weight = "CUDA build, several GB to download" if machine.cuda else "CPU build, 200 MB to download"
        lines.append(f"torch: {weight} (OXLO_EXTRAS=text leaves it out)")
    return lines


def diagnosis(log: str) -> str:
    """Why a step failed, in one line with what to do, from what it wrote."""
    tail = log[-20_000:]
    unreachable = (
        "Failed to establish|Name or service not known|name resolution|Network is unreachable|ConnectTimeout"
    )
    if re.search("No space left on device", tail):
        return "the disk is full; free some space"
    if re.search(unreachable + "|NewConnectionError|Max retries exceeded", tail):
        return (
            "the package index cannot be reached; connect to the network, or set up pip for an index of yours"
        )
    if re.search("CMAKE_CXX_COMPILER|CMAKE_C_COMPILER", tail):
        return "the C++ compiler does not work; install one (Debian: apt install g++, macOS: xcode-select --install)"
    if missing := re.search(r"No matching distribution found for (\S+)", tail):
        return f"the package index has no {missing[1]} for this Python and platform"
    errors = [line.strip() for line in tail.splitlines() if re.search(r"error\b", line, re.IGNORECASE)]
    return errors[-1][:200] if errors else "it failed without a word"


def say(line: str) -> None:
    """One line for people, on stderr: stdout belongs to the command that is about to run."""
    print(f"oxlo: {line}", file=sys.stderr, flush=True)


def reachable(url: str) -> bool:
    """Whether a host answers within REACH_SECONDS; looking up its name cannot hang, a thread is simply left behind."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=REACH_SECONDS):
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(REACH_SECONDS)


class Environment:
    """The virtual environment of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / ".venv"
        self.python = self.path / "bin" / "python"
        self.stamp = self.path / "installed"
        self.log = self.path / "install.log"
        self.busy = self.path / "busy"  # there while pip works: one that was killed may leave half a package
        self.constraints = root / "constraints.txt"
        self._step_at = 0  # where in the log the latest step begins

    def extras(self, fingerprint: str) -> set[str] | None:
        """The extras of a finished installation with this fingerprint, None when there is none."""
        try:
            found, extras = self.stamp.read_text().splitlines()
        except (OSError, ValueError):
            return None
        return set(extras.split()) if found == fingerprint and os.access(self.python, os.X_OK) else None

    def create(self) -> None:
        """Make the empty environment, unless a sound one is left from an earlier try."""
        self.stamp.unlink(missing_ok=True)
        whole = self.python.exists() and not self.busy.exists()
        if whole and self._run([str(self.python), "-m", "pip", "--version"]) == 0:
            return
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir()
        if self._run([sys.executable, "-m", "venv", str(self.path)]) != 0:
            raise Stop(f"cannot make a virtual environment in {self.path}: {diagnosis(self.logged())}")

    def pip(self, *arguments: str, **variables: str) -> bool:
        """`pip install` under the constraints; True when it worked."""
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        return self._run([*command, "-c", str(self.constraints), *arguments], variables) == 0

    def uninstall(self, name: str) -> None:
        """Remove a distribution."""
        self._run([str(self.python), "-m", "pip", "uninstall", "--yes", name])

    def must(self, *arguments: str, **variables: str) -> None:
        """`pip`, where there is no other way. Raises Stop."""
        if not self.pip(*arguments, **variables):
            raise Stop(f"{diagnosis(self.logged())} (all of pip's words: {self.log}), then run this again")

    def imports(self, module: str) -> bool:
        """Whether the installed module loads, with the native libraries that it needs."""
        return self._run([str(self.python), "-c", f"import {module}"]) == 0

    def has(self, name: str, version: str) -> bool:
        """Whether a distribution is installed in this version, whatever local build (+cpu) it is."""
        folders = self.path.glob(f"lib/python*/site-packages/{name}-*.dist-info")
        return any(re.fullmatch(rf"{name}-{re.escape(version)}(\+.*)?", folder.stem) for folder in folders)

    def pinned(self, name: str) -> str:
        """The version that constraints.txt names."""
        found = re.search(rf"^{name}==(\S+)", self.constraints.read_text(), re.MULTILINE)
        if found is None:
            raise Stop(f"constraints.txt does not name {name}")
        return found[1]

    def logged(self) -> str:
        """What the latest step has written. What earlier ones wrote explains nothing: they may have been overcome."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._step_at)
            return log.read().decode("utf-8", "replace")

    def _run(self, command: list[str], variables: dict[str, str] | None = None) -> int:
        """Run a step with its output in the log; say every minute that it still runs. Dies with us."""
        self.busy.touch()
        with self.log.open("a") as log:
            self._step_at = log.tell()
            print("+", *command, file=log, flush=True)
            environ = {**os.environ, **(variables or {})}
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=self.root,
            )
            begun = time.monotonic()
            try:
                while True:
                    try:
                        code = process.wait(timeout=60)
                        self.busy.unlink()
                        return code
                    except subprocess.TimeoutExpired:
                        say(f"  still at it after {(time.monotonic() - begun) / 60:.0f} min")
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def install_torch(env: Environment, machine: Machine) -> None:
    """torch alone, before what needs it: the CPU build from PyTorch's index where that is what the machine needs."""
    version = env.pinned("torch")
    if env.has("torch", version):
        return
    wanted = f"torch=={version}"
    if machine.linux and machine.cuda is None and reachable(f"{TORCH_CPU_INDEX}/"):
        if env.pip(wanted, "--index-url", TORCH_CPU_INDEX):
            return
        say("PyTorch's CPU index did not deliver; trying the package index")
    env.must(wanted)


def llama_wheels(machine: Machine) -> list[str]:
    """The names of the prebuilt builds that suit the machine, best first."""
    if machine.cuda is not None:
        return [f"cu{number}" for number in CUDA_WHEELS if number <= round(machine.cuda * 10)][:3]
    return ["cpu"] if machine.linux else ["metal"]


def install_llama(env: Environment, machine: Machine) -> None:
    """llama-cpp-python: a prebuilt wheel that loads, else compiled here."""
    version = env.pinned("llama-cpp-python")
    if env.has("llama_cpp_python", version) and env.imports("llama_cpp"):
        return
    wanted = f"llama-cpp-python=={version}"
    # pip's cache does not know how a wheel was built: a CPU build from it must never stand in for another one.
    compiled_anew = ("--no-cache-dir", "--no-binary", "llama-cpp-python", wanted)
    if "CMAKE_ARGS" in os.environ:
        say("compiling llama-cpp-python with your CMAKE_ARGS")
        env.must(*compiled_anew)
    elif prebuilt_llama(env, machine, wanted):
        return
    elif machine.builds_cuda and env.pip(*compiled_anew, CMAKE_ARGS="-DGGML_CUDA=on"):
        pass
    elif machine.compiler:
        if machine.builds_cuda:
            say(f"the CUDA build failed ({diagnosis(env.logged())}); the text engine will run on the CPU")
        env.must(wanted)
    elif not env.pip("--only-binary", "llama-cpp-python", wanted):
        raise Stop(
            "llama-cpp-python has to be compiled and there is no C++ compiler;"
            " install one (Debian: apt install g++, macOS: xcode-select --install) and run this again"
        )
    if not env.imports("llama_cpp"):
        raise Stop(f"llama-cpp-python was installed but does not load: {diagnosis(env.logged())}")


def prebuilt_llama(env: Environment, machine: Machine, wanted: str) -> bool:
    """Try the project's own index of wheels; one that does not load here (no CUDA runtime, say) is removed again."""
    if not reachable(f"{LLAMA_INDEX}/cpu/"):
        return False
    for name in llama_wheels(machine):
        index = ("--index-url", f"{LLAMA_INDEX}/{name}", "--only-binary", "llama-cpp-python")
        if env.pip("--force-reinstall", "--no-deps", *index, wanted):
            if env.pip(wanted) and env.imports("llama_cpp"):
                say(f"took the prebuilt llama-cpp-python ({name})")
                return True
            env.uninstall("llama-cpp-python")
    return False


def check_disk(env: Environment, extras: set[str], machine: Machine) -> None:
    """Raise Stop when the disk is too small; what an earlier try has already put there counts as free."""
    already = sum(file.lstat().st_size for file in env.path.rglob("*") if not file.is_dir()) / 1e9
    needed = needed_gb(extras, machine)
    if machine.free_gb + already < needed:
        less = (
            ""
            if extras <= {"text", "dev"}
            else f"; OXLO_EXTRAS=text needs {needed_gb({'text'}, machine):.1f} GB"
        )
        raise Stop(
            f"{needed:.1f} GB of disk are needed and {machine.free_gb:.1f} GB are free at {env.root}: free some{less}"
        )


def steps(env: Environment, extras: set[str], machine: Machine) -> list[tuple[str, Callable[[], None]]]:
    """The steps by name, in order. What may need a compiler is first: who has none should know before torch comes."""
    found: list[tuple[str, Callable[[], None]]] = []
    if "text" in extras:
        found.append(("llama-cpp-python", lambda: install_llama(env, machine)))
    if "image" in extras:
        found.append(("torch", lambda: install_torch(env, machine)))
    found.append(("everything else", lambda: env.must("--editable", f".[{','.join(sorted(extras))}]")))
    return found


def install(env: Environment, extras: set[str]) -> None:
    """All steps, each timed. Raises Stop."""
    machine = look(env.root)
    for line in announce(extras, machine):
        say(line)
    check_disk(env, extras, machine)
    begun = time.monotonic()
    env.create()
    planned = steps(env, extras, machine)
    for number, (name, step) in enumerate(planned, 1):
        say(f"{number}/{len(planned)} {name}")
        step()
    say(f"installed in {(time.monotonic() - begun) / 60:.1f} min")


def main() -> int:
    """`install.py ROOT FINGERPRINT EXTRA…`; 0 when .venv is complete, also when another start has made it so."""
    root, fingerprint, wanted = Path(sys.argv[1]), sys.argv[2], set(sys.argv[3:])
    if unknown := wanted - set(EXTRAS):
        say(f"OXLO_EXTRAS names {', '.join(sorted(unknown))}; the extras are text, speech, image and all")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    env = Environment(root)
    try:
        with open(root / ".venv.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another start is installing; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            have = env.extras(fingerprint)
            if have is not None and wanted <= have:
                return 0
            extras = wanted | (have or set())
            install(env, extras)
            env.stamp.write_text(f"{fingerprint}\n{' '.join(sorted(extras))}\n")
    except (Stop, OSError) as error:  # a checkout that this user may not write to, say
        say(f"stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next start begins again, with what pip has already downloaded")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
