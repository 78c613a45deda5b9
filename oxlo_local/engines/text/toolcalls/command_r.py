"""Command R7B and Command A between markers; Command R and R+ in a fence.

<|START_ACTION|>[
    {"tool_call_id": "0", "tool_name": "find", "parameters": {"place": "Oslo"}}
]<|END_ACTION|>

Action:
```json
[{"tool_name": "find", "parameters": {"place": "Oslo"}}]```
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Writing


def listed(head: str, begin: str, end: str) -> Writing:
    """A list of envelopes, one a line."""
    return Writing(head, "}", begin=f"{begin}[\n", between=",\n", end=f"\n]{end}")


COMMAND_R7B = Format(
    "command-r7b",
    detect=r"<\|START_ACTION\|>",
    begins=("<|START_ACTION|>",),
    marks=("<|END_ACTION|>",),
    read=Envelope(close="<|END_ACTION|>"),
    writing=listed(
        '    {"tool_call_id": "0", "tool_name": {json}, "parameters": ', "<|START_ACTION|>", "<|END_ACTION|>"
    ),
    silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
)
COMMAND_R = Format(
    "command-r",
    detect=r"Action:\s*```json\s*\[",
    begins=("Action:\n```json\n", "Action: ```json\n"),
    read=Envelope(close="```"),
    writing=listed('    {"tool_name": {json}, "parameters": ', "Action:\n```json\n", "```"),
)
