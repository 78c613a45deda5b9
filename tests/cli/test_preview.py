"""Which terminals show images, and what they are sent."""

import base64
import re

import pytest

from oxlo_local.cli.preview import protocol_of, shown

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, None),
    ],
)
def test_the_environment_says_what_a_terminal_shows(environ: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(environ) == protocol


def test_kitty_is_sent_pieces() -> None:
    told = shown(PNG, "kitty")
    assert told is not None and told.endswith("\n")
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", told)
    assert base64.b64decode("".join(chunk for _, chunk in commands)) == PNG
    assert all(len(chunk) <= 4096 for _, chunk in commands) and len(commands) == 4
    assert [keys[-3:] for keys, _ in commands] == ["m=1", "m=1", "m=1", "m=0"] or commands[0][0].endswith(
        ",m=1"
    )
    assert commands[0][0].startswith("a=T,f=100,") and commands[-1][0] == "m=0"


def test_kitty_takes_png_only_and_iterm_takes_all() -> None:
    assert shown(b"\xff\xd8\xff jpeg", "kitty") is None
    told = shown(b"\xff\xd8\xff jpeg", "iterm2")
    assert told is not None and told.startswith("\x1b]1337;File=inline=1;size=8;") and told.endswith("\a\n")
