"""Printing for people: nothing in a text can move the terminal's cursor or colour it."""

import pytest

from oxlo_local.cli import sheet


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b]0;x\x07", "\ufffd]0;x\ufffd"),
        ("a\nb", "a\ufffdb"),
        ("[red]x[/]", "\\[red]x\\[/]"),
    ],
)
def test_what_a_client_wrote_is_made_harmless(text: str, shown: str) -> None:
    assert sheet.safe(text) == shown


def test_pairs_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    sheet.print_pairs(("name", "[bold]x[/]"), ("long", "y" * 300))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["name", "[bold]x[/]"]
    assert "".join("".join(rest).split()) == "long" + "y" * 300  # folded, not cut
