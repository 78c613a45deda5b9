"""Envelopes of JSON between other markers: Apriel, Nemotron Nano 2, FireFunction, GigaChat; and Functionary's tags.

<tool_calls>[{"name": "find", "arguments": {"place": "Oslo"}}]</tool_calls>
<TOOLCALL>[{"name": "find", "arguments": {"place": "Oslo"}}]</TOOLCALL>
functools[{"name": "find", "arguments": {"place": "Oslo"}}]
<|function_call|>{"name": "find", "arguments": {"place": "Oslo"}}
<function=find>{"place": "Oslo"}</function>
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Named, Writing

HEAD = '{"name": {json}, "arguments": '


def listed(name: str, begin: str, end: str, detect: str) -> Format:
    """A list of envelopes between `begin` and `end`."""
    return Format(
        name,
        detect=detect,
        begins=(begin,),
        marks=(end,) if end else (),
        read=Envelope(close=end),
        writing=Writing(HEAD, "}", begin=f"{begin}[", between=", ", end=f"]{end}"),
    )


APRIEL = listed("apriel", "<tool_calls>", "</tool_calls>", r"<tool_calls>\s*\[")
NEMOTRON = listed("nemotron", "<TOOLCALL>", "</TOOLCALL>", r"<TOOLCALL>\s*\[")
FIREFUNCTION = listed("firefunction", "functools", "", r"functools\[")
GIGACHAT = Format(
    "gigachat",
    detect=r"<\|function_call\|>\s*\{",
    begins=("<|function_call|>",),
    read=Envelope(),
    writing=Writing(f"<|function_call|>{HEAD}", "}"),
)
FUNCTIONARY = Format(
    "functionary",
    detect=r"<function=\w+>\s*\{",
    begins=("<function=",),
    read=Named("<function=", ">", close=("</function>",)),
    writing=Writing("<function={name}>", "</function>"),
)
