"""README.md against the program: generated parts, commands, settings, links, and the first call, which is run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from oxlo_local import config
from oxlo_local.catalogue import Catalogue
from oxlo_local.cli import app
from tests.conftest import ROOT, RunningServer, demo_model

README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """scripts/readme.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("oxlo_readme", ROOT / "scripts" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_by_hand() -> str:
    """The README without what `scripts/readme` writes."""
    return re.sub(r"<!-- begin .*?<!-- end [^>]*-->", "", README, flags=re.DOTALL)


def commands_in(text: str) -> list[str]:
    """Every `oxlo ...` line that a reader could type: in shell blocks, and quoted in sentences."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [part.partition("#")[0].strip() for block in blocks for part in re.split(r"[\n|]", block)]
    quoted = re.findall(r"`((?:[A-Z_]+=\S+ )?(?:scripts/)?oxlo [^`]+)`", text)
    found = [re.sub(r"^([A-Z_]+=\S+ )?(scripts/)?", "", line) for line in [*lines, *quoted]]
    return sorted({line for line in found if line.startswith("oxlo ")})


def test_the_generated_parts_are_up_to_date(generator: ModuleType) -> None:
    assert generator.render(README) == README, "run scripts/readme"


def test_the_commands_are_found() -> None:
    assert "oxlo pull mistral-7b" in commands_in(README) and len(commands_in(README)) > 20


@pytest.mark.parametrize("line", commands_in(README))
def test_every_command_that_is_named_exists_with_its_flags(line: str) -> None:
    words = line.split()[1:]
    command: object = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = getattr(command, "commands", {})[words.pop(0)]
    if line != "oxlo ANY ARGS" and not line.startswith("oxlo --"):
        assert command is not typer.main.get_command(app) and getattr(command, "name", "oxlo") in line
        assert words == [] or getattr(command, "commands", None) is None, f"{line} is no command"
    known = {name for each in getattr(command, "params", []) for name in (*each.opts, *each.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known


def test_every_setting_and_variable_that_is_named_exists() -> None:
    known = {setting.variable for setting in config.SETTINGS} | config.OTHER_VARIABLES
    assert set(re.findall(r"\bOXLO_[A-Z_]+\b", README)) <= known


def test_links_and_paths_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py|[a-z_]+\.py)`", written_by_hand()):
        named = Path(path)
        assert named.stem == "x" or any((root / named).exists() for root in (ROOT, ROOT / "oxlo_local")), path


def test_codes_that_are_named_exist(generator: ModuleType) -> None:
    codes = {line.split("|")[2].strip(" `") for line in generator.errors().splitlines()[2:]}
    named = set(re.findall(r"[45]\d\d `([a-z_]+)`", written_by_hand()))
    assert named and named <= codes


def test_the_example_catalogue_is_a_good_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "models.toml").write_text("".join(block for block in blocks if "[models" in block))
    catalogue = Catalogue.load(tmp_path / "models.toml", installed={})
    assert catalogue.find("my-sdxl").image.fused == ["lightning"]
    assert catalogue.find("mine").title == "My model"
    assert (
        catalogue.find("mistral-7b").price_micros == 500 and catalogue.find("mistral-7b").options.ctx == 16384
    )


def test_the_first_call_works(server: RunningServer, tmp_path: Path) -> None:
    demo_model()
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet is not None
    assert "http://127.0.0.1:8000/v1" in snippet[1]
    script = tmp_path / "first_call.py"
    script.write_text(snippet[1].replace("http://127.0.0.1:8000/v1", server.base_url))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "oxlo pull" in done.stdout
