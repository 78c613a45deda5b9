"""Kimi K2: the id names the function; the count in it runs through the conversation.

<|tool_calls_section_begin|><|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>{"place": "Oslo"}
<|tool_call_end|><|tool_calls_section_end|>
"""

from oxlo_local.engines.text.toolcalls.format import Format, Named, Writing

BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
ENTER, SEPARATOR, LEAVE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

KIMI = Format(
    "kimi",
    detect=r"<\|tool_call_begin\|>",
    begins=(BEGIN, ENTER),
    marks=(SEPARATOR, LEAVE, END),
    read=Named(
        ENTER,
        SEPARATOR,
        close=(LEAVE,),
        end=END,
        name=r"\s*(?:functions\.)?(\S+?)(?::\d+)?\s*",
        whole_is_id=True,
    ),
    writing=Writing(f"{ENTER}functions.{{name}}:0{SEPARATOR}", LEAVE, begin=BEGIN, end=END),
)
