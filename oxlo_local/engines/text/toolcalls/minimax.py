"""MiniMax M2, tags in a section; M1 has envelopes instead, one a line. MiniCPM's tags are alike.

<minimax:tool_call>
<invoke name="find">
<parameter name="place">Oslo</parameter>
</invoke>
</minimax:tool_call>

<tool_calls>
{"name": "find", "arguments": {"place": "Oslo"}}
</tool_calls>

<function name="find"><param name="place">Oslo</param></function>
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Tagged, Writing

MINIMAX_M2 = Format(
    "minimax-m2",
    detect=r"<minimax:tool_call>",
    begins=("<minimax:tool_call>",),
    marks=("</minimax:tool_call>",),
    read=Tagged(
        first='<invoke name="',
        after_name=('">',),
        key='<parameter name="',
        value='">',
        value_end="</parameter>",
        close="</invoke>",
        end="</minimax:tool_call>",
    ),
    writing=Writing(
        '<invoke name="{name}">\n',
        "</invoke>\n",
        begin="<minimax:tool_call>\n",
        end="</minimax:tool_call>",
        key_before='<parameter name="{key}">',
        key_after="</parameter>\n",
    ),
)
MINIMAX_M1 = Format(
    "minimax-m1",
    detect=r"<tool_calls>\s*\{",
    begins=("<tool_calls>",),
    marks=("</tool_calls>",),
    read=Envelope(close="</tool_calls>"),
    writing=Writing('{"name": {json}, "arguments": ', "}\n", begin="<tool_calls>\n", end="</tool_calls>"),
)
MINICPM = Format(
    "minicpm",
    detect=r'<function name="\w+"><param ',
    begins=('<function name="',),
    read=Tagged(
        first='<function name="',
        after_name=('">',),
        key='<param name="',
        value='">',
        value_end="</param>",
        close="</function>",
    ),
    writing=Writing(
        '<function name="{name}">',
        "</function>",
        between="\n",
        key_before='<param name="{key}">',
        key_after="</param>",
    ),
)
