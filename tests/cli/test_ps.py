"""`oxlo ps` against a real server."""

import json
import re

from typer.testing import CliRunner

from oxlo_local.cli import app
from oxlo_local.cli.ps import Drawing, File, drawn, progress
from tests.conftest import RunningServer


def run(server: RunningServer, *arguments: str) -> str:
    """stdout of `oxlo ps`, as somebody with the server's home sees it."""
    environ = {"OXLO_HOME": str(server.home), "OXLO_CONFIG": str(server.home / "config.toml")}
    result = CliRunner().invoke(app, ["ps", *arguments], env=environ)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_shows_the_model(server: RunningServer) -> None:
    assert re.search(rf"^{re.escape(server.model)}\s+ready\s+\S+\s+\d+", run(server), re.MULTILINE)


def test_json_has_everything(server: RunningServer) -> None:
    (worker,) = json.loads(run(server, "--json"))
    assert worker["model"] == server.model and worker["state"] == "ready"
    assert worker["facts"]["parallel"] == 4 and worker["restarts"] == 0


def test_how_far_a_file_is() -> None:
    assert progress(File("e_1", 750.4, 3600.0)) == "e_1 0:12:30 of 1:00:00 (21%)"
    assert progress(File("e_1", 750.4, None)) == "e_1 0:12:30"


def test_how_far_images_are() -> None:
    assert drawn(Drawing("e_1", 2, 7, 20)) == "e_1 image 3, step 7 of 20 (35%)"
