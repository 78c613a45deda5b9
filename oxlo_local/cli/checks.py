"""What `oxlo doctor` looks at: each check is a function that finds something and says what to do about it.

A check never raises for a fault of the machine: what it finds is its answer. The engine is not imported here: the demo
model is started in a worker, the way `oxlo serve` starts it, and has to answer its warm-up request.
"""

import asyncio
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct

from oxlo_local.calls import TextOptions
from oxlo_local.catalogue import Catalogue
from oxlo_local.client import Client, locate
from oxlo_local.config import Settings
from oxlo_local.db import Database
from oxlo_local.errors import OxloError
from oxlo_local.hardware import Machine, probe
from oxlo_local.keys import Keys
from oxlo_local.workers.supervisor import Fleet, WorkerSpec

ENGINES = {
    "text": ("llama_cpp_python", "jinja2", "numpy"),
    "speech": ("faster-whisper",),
    "image": ("diffusers", "torch", "transformers"),
}
DEMO = "oxlo-demo"
ENGINE_SECONDS = 60.0
HUB_SECONDS = 5.0


class Finding(Struct, frozen=True):
    """What one check found; `advice` says what to do when `level` is not ok."""

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def findings(settings: Settings, *, online: bool) -> Iterator[Finding]:
    """Run the checks one after the other, cheapest first."""
    machine = probe()
    checks: list[Callable[[], Finding]] = [
        python,
        lambda: memory(machine),
        lambda: gpu(machine),
        *(partial(engine_installed, extra) for extra in ENGINES),
        lambda: home(settings),
        lambda: disk(settings),
        lambda: ledger(settings),
        lambda: models(settings),
        lambda: port(settings),
        lambda: text_engine(settings),
    ]
    if online:
        checks.append(hub)
    for check in checks:
        yield check()


def version_of(distribution: str) -> str | None:
    """The installed version, None when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """The interpreter; an installation refuses one that is too old."""
    found = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    return Finding("python", "ok", found)


def memory(machine: Machine) -> Finding:
    """Cores and memory that this process may use."""
    if machine.ram_total is None or machine.ram_available is None:
        return Finding(
            "memory", "warn", f"{machine.cores} cores, memory unknown", "set --ctx and --parallel yourself"
        )
    free, total = machine.ram_available / 1e9, machine.ram_total / 1e9
    found = f"{machine.cores} cores, {free:.1f} of {total:.1f} GB memory free"
    if machine.ram_available < 1e9:
        return Finding("memory", "warn", found, "only the smallest models will fit; end what you do not need")
    return Finding("memory", "ok", found)


def gpu(machine: Machine) -> Finding:
    """GPUs, and whether the installed text engine can use them."""
    if not machine.gpus:
        return Finding("gpu", "ok", "no NVIDIA GPU; models run on the CPU")
    found = ", ".join(
        f"{each.name} ({each.free / 1e9:.0f} of {each.total / 1e9:.0f} GB free)" for each in machine.gpus
    )
    if machine.gpu_engine:
        return Finding("gpu", "ok", found)
    return Finding(
        "gpu",
        "warn",
        f"{found}, but the installed llama-cpp-python is a CPU build",
        "install the CUDA toolkit (nvcc), remove .venv and run scripts/oxlo again",
    )


def engine_installed(extra: str) -> Finding:
    """Whether the packages of an engine are installed."""
    versions = {name: version_of(name) for name in ENGINES[extra]}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        advice = f"run `OXLO_EXTRAS={extra} scripts/oxlo doctor` in a checkout; elsewhere install the extra [{extra}]"
        return Finding(f"{extra} packages", "warn", f"not installed: {', '.join(missing)}", advice)
    return Finding(
        f"{extra} packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def home(settings: Settings) -> Finding:
    """Whether the data folder can be written."""
    try:
        settings.make_home()
        with tempfile.TemporaryFile(dir=settings.home):
            pass
    except (OxloError, OSError) as error:
        return Finding("data folder", "fail", str(error), "set OXLO_HOME to a folder that you may write to")
    if settings.home.stat().st_mode & 0o077:
        return Finding(
            "data folder", "warn", f"{settings.home} is open to other users", f"chmod 700 '{settings.home}'"
        )
    return Finding("data folder", "ok", str(settings.home))


def disk(settings: Settings) -> Finding:
    """Room for the ledger and for models."""
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free at {folder}"
    if free < 2e8:
        return Finding("disk", "fail", found, "free some space: the ledger must be able to write")
    if free < 5e9:
        return Finding("disk", "warn", found, "most models need 5 GB or more")
    return Finding("disk", "ok", found)


def ledger(settings: Settings) -> Finding:
    """Whether the ledger opens, is of this program's version, and has the pepper of its keys beside it."""
    try:
        with closing(Database.open(settings.ledger_path, busy_seconds=1.0)) as db:
            asyncio.run(Keys(db).check())
    except (OxloError, OSError) as error:
        return Finding("ledger", "fail", str(error), "nothing is served without its ledger; see the message")
    return Finding(
        "ledger", "ok", f"{settings.ledger_path} ({settings.ledger_path.stat().st_size / 1e6:.1f} MB)"
    )


def models(settings: Settings) -> Finding:
    """Whether both models.toml are readable, and what is here."""
    try:
        here = Catalogue.load(settings.user_models_toml, installed={}).here()
    except OxloError as error:
        return Finding("catalogue", "fail", error.message, f"correct {settings.user_models_toml}")
    manifests = len(list(settings.manifests_dir.glob("*.json"))) if settings.manifests_dir.is_dir() else 0
    return Finding("catalogue", "ok", f"{len(here)} embedded or attached, {manifests} pulled")


def port(settings: Settings) -> Finding:
    """Whether the configured port can be had; one that our own server holds is fine."""
    place = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            if _served_here(settings):
                return Finding("port", "ok", f"{place} is served by a running oxlo")
            return Finding(
                "port", "fail", f"{place}: {error.strerror}", "choose another one with --port or OXLO_PORT"
            )
    return Finding("port", "ok", f"{place} is free")


def _served_here(settings: Settings) -> bool:
    try:
        address = locate(settings.serve_file)
        with Client(address) as client:
            client.get("/healthz")
    except OxloError:
        return False
    return address.url.endswith(f":{settings.port}")


def text_engine(settings: Settings) -> Finding:
    """Start the embedded model in a worker and let it answer once."""
    model = Catalogue.load(None, installed={}).models.get(DEMO)
    if version_of("llama_cpp_python") is None or model is None or model.path is None:
        return Finding(
            "text engine", "fail", f"there is no engine to run {DEMO} with", "see the checks above"
        )
    seconds, error, parallel = asyncio.run(_started(settings, model.path))
    if error:
        return Finding(
            "text engine", "fail", error, "the message is the engine's own; installing anew often helps"
        )
    return Finding(
        "text engine", "ok", f"{DEMO} answered after {seconds:.1f} s, {parallel} sequences at once"
    )


async def _started(settings: Settings, path: Path) -> tuple[float, str, int]:
    """Seconds until the model was ready, what went wrong, and how many sequences it runs."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    fleet = Fleet(settings, changed=changed.set)
    begun = loop.time()
    try:
        await fleet.start([WorkerSpec(DEMO, "text", str(path), TextOptions())])
        async with asyncio.timeout(ENGINE_SECONDS):
            while True:
                (worker,) = fleet.status()
                if worker.state in ("ready", "failed", "stopped"):
                    break
                changed.clear()
                await changed.wait()
        error = "" if worker.state == "ready" else worker.last_error or worker.state
        return loop.time() - begun, error, worker.facts.parallel if worker.facts else 0
    except TimeoutError:
        return loop.time() - begun, f"{DEMO} was not ready after {ENGINE_SECONDS:.0f} s", 0
    finally:
        await fleet.stop()


def hub() -> Finding:
    """Whether models can be pulled from where huggingface_hub would go."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(endpoint, timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # whatever it says, it is there
    except (OSError, ValueError) as error:
        return Finding(
            "model hub", "warn", f"{endpoint}: {error}", "`oxlo pull` needs it; what is here works without"
        )
    return Finding("model hub", "ok", f"{endpoint} answers")
