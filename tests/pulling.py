"""Somebody who pulls from a hub on this machine: what the tests of `oxlo pull` share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oxlo_local.catalogue import Catalogue
from oxlo_local.config import Settings, load
from oxlo_local.hardware import Machine
from oxlo_local.hub import Hub
from oxlo_local.pull import Event, Note, Pull
from oxlo_local.store import Manifest, Store
from tests import hub as stand_in
from tests.hub import Repository, gguf_bytes, running_hub

CHUNK = 10 * 1024 * 1024  # huggingface_hub writes to the disk in pieces of this size
GB = 1_000_000_000
SMALL, LARGER = gguf_bytes(4000, seed=1), gguf_bytes(9000, seed=2)

OWN_MODELS = """
[models.tiny]
repo = "own/tiny-GGUF"
default_quant = "Q4_K_M"
shape = { layers = 2, kv_heads = 2, head_dim = 16 }
context = 2048
files.Q4_K_M = { bytes = 4_000, status = "confirmed", files = ["tiny-Q4_K_M.gguf"] }
files.Q8_0 = { bytes = 9_000, status = "confirmed", files = ["tiny-Q8_0.gguf"] }
files.Q2_K = { bytes = 2_000, status = "confirmed", files = ["tiny-q2_k.gguf"] }
[models.big]
repo = "own/big-GGUF"
default_quant = "Q4_K_M"
shape = { layers = 2, kv_heads = 2, head_dim = 16 }
context = 2048
files.Q4_K_M = { bytes = 6_000_000_000, status = "confirmed", files = ["big-Q4_K_M.gguf"] }
files.Q3_K_M = { bytes = 5_000_000_000, status = "confirmed", files = ["big-Q3_K_M.gguf"] }
files.Q2_K = { bytes = 4_000_000_000, status = "confirmed", files = ["big-Q2_K.gguf"] }
[models.heard]
kind = "speech"
engine = "speech"
repo = "own/heard"
default_quant = "float16"
files.float16 = { bytes = 5_000, status = "confirmed", files = ["model.bin", "*.json"] }
[models.drawn]
kind = "image"
engine = "image"
repo = "own/drawn"
default_quant = "float16"
files.float16 = { bytes = 5_000, status = "confirmed", files = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safe*"]}
"""


@pytest.fixture
def site() -> Iterator[stand_in.Hub]:
    with running_hub() as site:
        site.repositories["own/tiny-GGUF"] = Repository(
            {"tiny-Q4_K_M.gguf": SMALL, "tiny-Q8_0.gguf": LARGER, "README.md": b"# tiny"}
        )
        yield site


@dataclass
class Desk:
    """Somebody who pulls: a home, a cache, a machine, and what was told."""

    settings: Settings
    hub: Hub
    machine: Machine = Machine(4, 16 * GB, 12 * GB)
    free: Callable[[Path], int] = lambda path: 1000 * GB
    told: list[Event] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.settings)

    def catalogue(self) -> Catalogue:
        return Catalogue.load(self.settings.user_models_toml, installed=self.store.installed())

    def pull(self, name: str, tell: Callable[[Event], None] | None = None) -> Manifest:
        pulling = Pull(
            store=self.store,
            catalogue=self.catalogue(),
            machine=self.machine,
            hub=self.hub,
            tell=tell or self.told.append,
            free=self.free,
        )
        return pulling.run(name)

    def notes(self) -> str:
        return "\n".join(event.text for event in self.told if isinstance(event, Note))


@pytest.fixture
def desk(site: stand_in.Hub, tmp_path: Path) -> Desk:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").touch()
    (home / "models.toml").write_text(OWN_MODELS)
    settings = load({"home": str(home), "config": str(home / "config.toml")}, environ={})
    settings.make_home()
    return Desk(settings, Hub(endpoint=site.url, cache=tmp_path / "cache"))
