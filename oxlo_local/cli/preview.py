"""An image inside the terminal, for terminals that can show one: kitty's protocol, or iTerm2's. Pure.

No program can ask a terminal what it can do without waiting for an answer that may never come, so the environment
decides; inside tmux and screen, which pass neither protocol on, nothing is shown.
"""

import base64
from collections.abc import Mapping
from typing import Literal

Protocol = Literal["kitty", "iterm2"]

ROWS = 20  # of text that an image is as high as
_CHUNK = 4096  # characters of one of kitty's commands


def protocol_of(environ: Mapping[str, str]) -> Protocol | None:
    """How the terminal that this environment belongs to is sent images; None where it cannot show any."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return None
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environ or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def shown(data: bytes, protocol: Protocol) -> str | None:
    """What makes the terminal show this file, and a new line; None for a format that the protocol does not take."""
    text = base64.b64encode(data).decode("ascii")
    if protocol == "iterm2":
        head = f"\x1b]1337;File=inline=1;size={len(data)};height={ROWS};preserveAspectRatio=1:"
        return f"{head}{text}\a\n"
    if not data.startswith(b"\x89PNG"):
        return None
    chunks = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    last = len(chunks) - 1
    commands = (
        f"\x1b_G{f'a=T,f=100,q=2,r={ROWS},' if at == 0 else ''}m={int(at < last)};{chunk}\x1b\\"
        for at, chunk in enumerate(chunks)
    )
    return "".join(commands) + "\n"
