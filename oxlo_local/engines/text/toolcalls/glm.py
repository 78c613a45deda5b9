"""GLM 4.5 and later, Ling, Laguna, Spark: keys and values in turn.

<tool_call>find
<arg_key>place</arg_key>
<arg_value>Oslo</arg_value>
</tool_call>
"""

from oxlo_local.engines.text.toolcalls.format import Format, Tagged, Writing

GLM = Format(
    "glm",
    detect=r"<tool_call>\s*\w+\s*<arg_key>",
    begins=("<tool_call>",),
    marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"),
    read=Tagged(
        first="",
        after_name=("<arg_key>",),
        key="<arg_key>",
        value="</arg_key>",
        value_begin="<arg_value>",
        value_end="</arg_value>",
        close="</tool_call>",
    ),
    writing=Writing(
        "<tool_call>{name}\n",
        "</tool_call>",
        between="\n",
        key_before="<arg_key>{key}</arg_key>\n<arg_value>",
        key_after="</arg_value>\n",
    ),
)
