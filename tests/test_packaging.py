"""What is shipped, what is declared, and what is pinned: pyproject.toml, constraints.txt and the wheel."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ENGINES = {"llama-cpp-python", "faster-whisper", "diffusers", "torch", "transformers", "numpy", "jinja2"}


def normal(name: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in requirements}


def imported(folder: Path) -> set[str]:
    """Top-level modules that the files of a folder import from outside the standard library."""
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    scripts = {path.stem for path in (ROOT / "scripts").iterdir()}  # pytest puts them on the path
    return found - set(sys.stdlib_module_names) - {"oxlo_local", "tests"} - scripts


def test_base_dependencies_hold_no_engine() -> None:
    assert not names(PROJECT["dependencies"]) & ENGINES


@pytest.mark.parametrize("folder", ["oxlo_local", "tests"])
def test_whatever_is_imported_is_declared(folder: str) -> None:
    declared = names([*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)])
    homes = importlib.metadata.packages_distributions()
    missing = {
        module
        for module in imported(ROOT / folder)
        if not set(map(normal, homes.get(module, [module]))) & declared
    }
    assert not missing


def test_every_declared_dependency_is_pinned_and_the_pin_is_allowed() -> None:
    pins = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    for requirement in [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]:
        (name,) = names([requirement])
        if name == PROJECT["name"]:
            continue
        assert name in pins, f"{name} is not in constraints.txt"
        bound = re.search(r"(==|>=)(.+)$", requirement)
        assert bound is not None, f"{requirement} names no version"
        pinned, wanted = pins[name].split("."), bound[2].split(".")
        if bound[1] == "==":
            assert pinned == wanted
        else:
            assert list(map(int, pinned[: len(wanted)])) >= list(map(int, wanted)), requirement


def test_the_changelog_names_the_version_or_collects_for_it() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text
    assert all(heading in {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
               for heading in re.findall(r"^### (\w+)$", text, re.MULTILINE))  # fmt: skip


def test_the_wheel_has_the_catalogue_the_demo_model_and_the_licence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        assert archive.read("oxlo_local/models.toml") == (ROOT / "models.toml").read_bytes()
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not any(name.startswith(("tests/", "scripts/")) for name in files)
    for file in filter(Path.is_file, (ROOT / "oxlo_local" / "embedded").rglob("*")):
        assert file.relative_to(ROOT).as_posix() in files
