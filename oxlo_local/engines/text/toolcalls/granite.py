"""Granite 3: a list behind one token. (Granite 4 writes as Hermes does.)

<|tool_call|>[{"name": "find", "arguments": {"place": "Oslo"}}]
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Writing

GRANITE = Format(
    "granite",
    detect=r"<\|tool_call\|>\s*\[",
    source=r"<\|tool_call\|>",
    begins=("<|tool_call|>",),
    read=Envelope(),
    writing=Writing('{"name": {json}, "arguments": ', "}", begin="<|tool_call|>[", between=", ", end="]"),
)
