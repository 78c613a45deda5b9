"""What every test may ask for: the shared folder, a home, a clock, and a real server."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from oxlo_local.random_model import Shape, write

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 150.0  # an engine over torch, on a machine that is busy
STOP_SECONDS = 20.0

# A shell starts jobs in the background with SIGINT ignored, and programs inherit that: Ctrl-C would not reach the ones
# that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and audio beside the checkout; without it the test is skipped."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder `shared` with real models beside the checkout")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty data folder (OXLO_HOME)."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on, and tell the new time."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that moves only when told to."""
    return Clock()


@dataclass
class RunningServer:
    """A real `python -m oxlo_local serve` process."""

    process: subprocess.Popen[bytes]
    home: Path
    log_path: Path
    url: str = ""
    admin_token: str = ""
    model: str = ""

    @property
    def pid(self) -> int:
        """Process id of the parent."""
        return self.process.pid

    @property
    def base_url(self) -> str:
        """What an OpenAI SDK is pointed at."""
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text("utf-8", "replace")

    def rows(self) -> list[sqlite3.Row]:
        """All ledger rows, oldest first, by column name."""
        return ledger_rows(self.home)

    def workers(self) -> list[dict[str, object]]:
        """What `oxlo ps` sees."""
        answer = httpx.get(
            f"{self.url}/admin/workers", headers={"authorization": f"Bearer {self.admin_token}"}
        )
        found = answer.raise_for_status().json()
        workers = found["workers"] if isinstance(found, dict) else found
        assert isinstance(workers, list)
        return workers

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not stop; its log:\n{self.log}") from None


def ledger_rows(home: Path) -> list[sqlite3.Row]:
    """All rows of a home's ledger, oldest first, by column name."""
    connection = sqlite3.connect(home / "ledger.db")
    try:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM entries ORDER BY id").fetchall()
    finally:
        connection.close()


def gone(pid: int) -> bool:
    """Whether no such process is left; a zombie that nobody has collected yet counts as gone."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


StartServer = Callable[..., RunningServer]


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that can be seen from outside."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def demo_model() -> Path:
    """The embedded chat model; without it the test is skipped."""
    path = ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf"
    if not path.is_file():
        pytest.skip("the embedded model oxlo-demo.gguf has not been built")
    return path


def launch(home: Path, log_path: Path, arguments: tuple[str, ...], environ: dict[str, str]) -> RunningServer:
    """Start a server and return at once."""
    log = log_path.open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "oxlo_local", "serve", "--port", "0", *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("OXLO_")},
            "OXLO_HOME": str(home),
            "OXLO_CONFIG": str(home / "config.toml"),
            "HF_HUB_OFFLINE": "1",
            **environ,
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    log.close()
    return RunningServer(process, home, log_path)


def await_ready(server: RunningServer) -> RunningServer:
    """Wait for its address and for /readyz; learn the id of its first model."""
    file = server.home / "serve.json"

    def listening() -> bool:
        assert server.process.poll() is None, f"the server ended:\n{server.log}"
        if not file.is_file():
            return False
        left = json.loads(file.read_text())
        server.url, server.admin_token = left["url"], left["admin_token"]
        return bool(left["pid"] == server.pid)

    def is_ready() -> bool:
        assert server.process.poll() is None, f"the server ended:\n{server.log}"
        return httpx.get(f"{server.url}/readyz").status_code == 200

    until(listening, START_SECONDS)
    until(is_ready, START_SECONDS)
    server.model = str(server.workers()[0]["model"])
    return server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers (arguments of `oxlo serve`; `wait=False` returns before they are ready) and stops them."""
    servers: list[RunningServer] = []

    def start(*arguments: str, home: Path | None = None, wait: bool = True, **environ: str) -> RunningServer:
        if not any(argument.endswith(".gguf") for argument in arguments):
            demo_model()
        folder = home if home is not None else tmp_path / f"home-{len(servers)}"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").touch()
        server = launch(folder, tmp_path / f"serve-{len(servers)}.log", arguments, environ)
        servers.append(server)
        return await_ready(server) if wait else server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


# The end token of the model below: banned by `logit_bias`, an answer is as long as max_tokens says.
END_TOKEN = "1"


@pytest.fixture(scope="session")
def long_winded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that takes a few milliseconds a token, so that there is a middle of a stream."""
    path = tmp_path_factory.mktemp("models") / "long-winded.gguf"
    write(path, shape=Shape(d=256, layers=8, heads=4, kv_heads=2, ff=768, context=4096))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over oxlo-demo (else, with the shared folder, over the stories model) that a whole module uses."""
    arguments: tuple[str, ...] = ("oxlo-demo",)
    if not (ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf").is_file():
        stories = ROOT.parent / "shared" / "models" / "stories260K.gguf"
        if not stories.is_file():
            pytest.skip("neither oxlo-demo.gguf nor the shared stories model is here")
        arguments = (str(stories),)
    folder = tmp_path_factory.mktemp("server")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    running = await_ready(launch(home, folder / "serve.log", (*arguments, "--parallel", "4"), {}))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over `whisper`, a speech model of random numbers: what it hears is nonsense, all else is real."""
    pytest.importorskip("ctranslate2", reason="the speech engine is not installed")
    folder = tmp_path_factory.mktemp("ears")
    home = folder / "home"
    home.mkdir()
    running = await_ready(launch(home, folder / "serve.log", (speech_model(home), "--parallel", "4"), {}))
    yield running
    running.stop()


def speech_model(home: Path) -> str:
    """Makes that model, and the configuration that knows it by the id that is returned."""
    from oxlo_local import random_whisper

    random_whisper.write(home / "whisper", random_whisper.Shape())
    (home / "config.toml").touch()
    (home / "models.toml").write_text(
        f'[models.whisper]\nkind = "speech"\nengine = "speech"\nfile = "{home / "whisper"}"\nprice_usd = 0.0010\n'
    )
    return "whisper"


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over `painter`, an image model of random numbers: what it draws is noise, all else is real."""
    pytest.importorskip("diffusers", reason="the image engine is not installed")
    folder = tmp_path_factory.mktemp("painter")
    home = folder / "home"
    home.mkdir()
    running = await_ready(launch(home, folder / "serve.log", (image_model(home), "--threads", "1"), {}))
    yield running
    running.stop()


def image_model(home: Path) -> str:
    """Makes that model, and the configuration that knows it by the id that is returned."""
    from oxlo_local import random_diffuser

    random_diffuser.write(home / "painter")
    (home / "config.toml").touch()
    (home / "models.toml").write_text(
        f'[models.painter]\nkind = "image"\nengine = "image"\nfile = "{home / "painter"}"\nprice_usd = 0.0010\n'
        "image = { sizes = [[64, 64], [64, 96]], steps = 4 }\n"
        'prices = [{ provider = "bfl", model = "x", per_image = 0.014, match = "nearest", '
        'date = "2026", source = "a test" }]\n'
    )
    return "painter"
