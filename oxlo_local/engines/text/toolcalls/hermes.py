"""Hermes 2 and 3, Qwen 2.5 and 3, QwQ, Granite 4, Bielik, Reka; many others learned it too.

<tool_call>
{"name": "find", "arguments": {"place": "Oslo"}}
</tool_call>
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Writing

HERMES = Format(
    "hermes",
    detect=r'<tool_call>\s*\{"name"',
    source=r"<tool_call>",
    begins=("<tool_call>",),
    marks=("</tool_call>",),
    read=Envelope(close="</tool_call>"),
    writing=Writing('<tool_call>\n{"name": {json}, "arguments": ', "}\n</tool_call>", between="\n"),
)
