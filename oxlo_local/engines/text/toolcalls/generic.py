"""For models whose template knows no tools: they are told in the system message what there is and how to call it.

    <tool_call>
    {"name": "find", "arguments": {"place": "Oslo"}}
    </tool_call>

More models have seen these tags than any other format's. Calls and results of earlier turns are told as text.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.hermes import HERMES

GENERIC = replace(HERMES, name="generic", detect="(?!)", source=None)


def preamble(tools: Sequence[object], format: Format) -> str:
    """What the model is told. `tools` are OpenAI's tool objects; `format` is how it is to call them."""
    example = format.writing.text([("the function's name", '{"parameter": "value"}')])
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions, described as JSON, one a line:\n"
        f"{listed}\n"
        "To call one, write nothing but this, once for each call:\n"
        f"{example}\n"
        "You will be given the results. Without need of a function, answer as usual."
    )


def result(name: str | None, content: str) -> str:
    """A tool's result, as text."""
    return f"<tool_response>\n{json.dumps({'name': name, 'content': content}, ensure_ascii=False)}\n</tool_response>"
