"""`oxlo serve`: one flag for every setting, converted by the setting's own rules."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from oxlo_local.cli import app
from oxlo_local.config import SETTINGS, Setting


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_a_flag(setting: Setting) -> None:
    help_text = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output
    assert f"{setting.flag} " in help_text
    assert f"{setting.flag} SECONDS" not in help_text or "seconds" in setting.help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "Expected int <= 65535"),
        (["--port", "eight"], "it is integer"),
        (["--auth", "sometimes"], "auto | always | never"),
        (["--default-price-usd", "cheap"], "US dollars"),
        (["--parallel", "0"], "Expected int >= 1"),
    ],
)
def test_a_bad_value_is_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "no.toml")])
    assert result.exit_code == 1
    assert "no.toml" in str(result.exception)
