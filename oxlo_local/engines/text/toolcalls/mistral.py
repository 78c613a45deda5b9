"""Mistral: a list of envelopes up to v7, a name and its arguments since.

[TOOL_CALLS][{"name": "find", "arguments": {"place": "Oslo"}, "id": "a1B2c3D4e"}]
[TOOL_CALLS]find[ARGS]{"place": "Oslo"}[TOOL_CALLS]find[CALL_ID]a1B2c3D4e[ARGS]{"place": "Rome"}
"""

from oxlo_local.engines.text.toolcalls.format import Calls, Envelope, Format, Named, Writing
from oxlo_local.engines.text.toolcalls.tape import Steps, Tape

MARKER = "[TOOL_CALLS]"
LISTED = Envelope()
NAMED = Named(MARKER, "[ARGS]", name=r"\s*([^\s{\[]+?)\s*(?:\[CALL_ID\].*)?")


def read(tape: Tape, calls: Calls, marker: str) -> Steps[None]:
    """Either form: some models know both."""
    yield from tape.space()
    listed = (yield from tape.peek()) in "[{"
    yield from (LISTED if listed else NAMED)(tape, calls, marker)


MISTRAL_V3 = Format(
    "mistral-v3",
    detect=r"\[TOOL_CALLS\]\s*\[",
    begins=(MARKER,),
    read=read,
    writing=Writing('{"name": {json}, "arguments": ', "}", begin=f"{MARKER}[", between=", ", end="]"),
    short_ids=True,
)
MISTRAL_V7 = Format(
    "mistral-v7",
    detect=r"\[TOOL_CALLS\]\s*\w+(?:\[CALL_ID\]\w+)?\[ARGS\]",
    begins=(MARKER,),
    marks=("[ARGS]", "[CALL_ID]"),
    read=read,
    writing=Writing(f"{MARKER}{{name}}[ARGS]", ""),
    short_ids=True,
)
