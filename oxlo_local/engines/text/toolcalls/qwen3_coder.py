"""Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5; with other outer tags, Seed-OSS.

<tool_call>
<function=find>
<parameter=place>
Oslo
</parameter>
</function>
</tool_call>
"""

from oxlo_local.engines.text.toolcalls.format import Format, Tagged, Writing


def coder(name: str, outer: str) -> Format:
    """The format with these outer tags."""
    begin, end = f"<{outer}>", f"</{outer}>"
    return Format(
        name,
        detect=rf"{begin}\s*<function=",
        begins=(begin, "<function="),
        marks=(end,),
        read=Tagged(
            first="<function=",
            after_name=(">",),
            key="<parameter=",
            value=">",
            value_end="</parameter>",
            close="</function>",
            end=end,
            lined=True,
        ),
        writing=Writing(
            f"{begin}\n<function={{name}}>\n",
            f"</function>\n{end}",
            between="\n",
            key_before="<parameter={key}>\n",
            key_after="\n</parameter>\n",
        ),
    )


QWEN3_CODER = coder("qwen3-coder", "tool_call")
SEED = coder("seed", "seed:tool_call")
