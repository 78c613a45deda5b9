"""Llama 3.1 to 3.3: the whole answer is a call, with no marker but sometimes a tag before it.

{"name": "find", "parameters": {"place": "Oslo"}}
<|python_tag|>{"name": "find", "parameters": {"place": "Oslo"}}; {"name": ...}
"""

from oxlo_local.engines.text.toolcalls.format import Envelope, Format, Writing

LLAMA3 = Format(
    "llama3",
    detect=r'<\|end_header_id\|>\s*\{"name": "\w+", "parameters"',
    begins=("<|python_tag|>",),
    read=Envelope(between=(";",)),
    writing=Writing('{"name": {json}, "parameters": ', "}", between="; "),
    bare=True,
)
