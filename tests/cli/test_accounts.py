"""What `oxlo keys` prints: every limit in words and in JSON, and what is left of it."""

import json
import time
from pathlib import Path

import pytest

from oxlo_local.cli import accounts
from oxlo_local.limits import Given


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OXLO_HOME of this process."""
    (home / "config.toml").touch()
    monkeypatch.setenv("OXLO_HOME", str(home))
    monkeypatch.setenv("OXLO_CONFIG", str(home / "config.toml"))
    return home


EVERYTHING = Given(
    prices=("oxlo-*=0.0003",), models="llama-*,oxlo-*", endpoints="chat", budget="20usd/month", rate="30/min",
    daily="500", concurrency="4", expires="90d", zone="Europe/Berlin", tier="batch",
)  # fmt: skip


@pytest.mark.usefixtures("here")
def test_every_limit_is_shown_and_can_be_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    accounts.create_key("ci", "user", EVERYTHING, as_json=True)
    made = json.loads(capsys.readouterr().out)["limits"]
    expires = made.pop("expires")
    assert expires.startswith(time.strftime("%Y-", time.gmtime(time.time() + 90 * 86400)))
    assert made == {
        "models": ["llama-*", "oxlo-*"], "endpoints": ["chat"], "budget": {"usd": "20.0000", "per": "month"},
        "rate": 30, "daily": 500, "concurrency": 4, "zone": "Europe/Berlin", "tier": "batch",
        "prices": {"oxlo-*": "0.0003"}, "plan": None,
    }  # fmt: skip
    accounts.show_key("ci", as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "models llama-*, oxlo-*", "budget 20.0000 USD/month", "rate 30/min", "daily 500", "concurrency 4", "tier batch",
        "prices oxlo-*=0.0003", "time zone Europe/Berlin", "budget left 20.0000 of 20.0000 USD",
        "daily left 500 of 500", "rate left 30 of 30", "concurrency left 4 of 4",
    ):  # fmt: skip
        assert words in shown
    none = Given(
        ("none",), "none", "none", "none", "none", "none", "none", "none", "none", zone="UTC", tier="standard"
    )
    accounts.limit_key("ci", none, as_json=False)
    assert capsys.readouterr().out.endswith("(ci): no limits\n")


@pytest.mark.usefixtures("here")
def test_a_plan_sets_its_numbers_and_leaves_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    accounts.create_key("ci", "user", Given(plan="pro", models="a*", rate="7/min"), as_json=False)
    accounts.list_keys(as_json=False)
    assert "plan pro; models a*; rate 7/min; daily 1000" in capsys.readouterr().out
    accounts.limit_key("ci", Given(plan="free"), as_json=False)
    assert "plan free; models a*; rate 5/min; daily 60; tier batch" in capsys.readouterr().out
    accounts.limit_key("ci", Given(plan="none"), as_json=False)
    assert capsys.readouterr().out.endswith("(ci): models a*\n")
