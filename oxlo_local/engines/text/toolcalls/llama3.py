"""Llama 3.1 to 3.3: the whole answer is a call, with no marker but sometimes a tag before it.

{"name": "find", "parameters": {"place": "Oslo"}}
<|python_tag|>{"name": "find", "parameters": {"place": "Oslo"}}; {"name": ...}
"""

import json
from collections.abc import Mapping

from oxlo_local.engines.text.toolcalls.format import ANY, Envelope, Format, Writing
from oxlo_local.engines.text.toolcalls.shape import Grammar, Json
from oxlo_local.engines.text.toolcalls.values import alone, definitions


class Bare(Writing):
    """Calls that nothing but their own first words tell from other JSON."""

    def beside(self, tools: Mapping[str, str | None], *, parallel: bool) -> Grammar:
        """Each call is one value: a literal beginning and that of other JSON could not be told apart."""
        calls = []
        for name, schema in tools.items():
            root = json.loads(schema or ANY)
            members = {"name": {"const": name}, "parameters": alone(root, {})}
            envelope = {
                "type": "object",
                "properties": members,
                "required": [*members],
                "additionalProperties": False,
                **definitions(root),
            }
            calls.append((Json(json.dumps(envelope)),))
        return Grammar("", tuple(calls), self.between if parallel else None, "")


LLAMA3 = Format(
    "llama3",
    detect=r'<\|end_header_id\|>\s*\{"name": "\w+", "parameters"',
    begins=("<|python_tag|>",),
    read=Envelope(between=(";",)),
    writing=Bare('{"name": {json}, "parameters": ', "}", between="; "),
    bare=True,
)
