"""DeepSeek: R1 with the arguments in a fence, V3.1 without; V3.2 and V4 in tags of its own (DSML).

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find
```json
{"place": "Oslo"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{"place": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜DSML｜function_calls>
<｜DSML｜invoke name="find">
<｜DSML｜parameter name="place" string="true">Oslo</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>
"""

from oxlo_local.engines.text.toolcalls.format import Format, Named, Tagged, Writing

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ENTER, SEPARATOR, LEAVE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

DEEPSEEK_R1 = Format(
    "deepseek-r1",
    detect=f"{ENTER}function{SEPARATOR}",
    source=f"{ENTER}' *\\+ *tool\\['type'\\]",
    begins=(BEGIN, ENTER),
    marks=(SEPARATOR, LEAVE, END),
    read=Named(ENTER, SEPARATOR, close=("```", LEAVE), end=END, named_later="\n```json"),
    writing=Writing(
        f"{ENTER}function{SEPARATOR}{{name}}\n```json\n", f"\n```{LEAVE}", begin=BEGIN, between="\n", end=END
    ),
)
DEEPSEEK_V31 = Format(
    "deepseek-v3.1",
    detect=f"{ENTER}(?!function{SEPARATOR})[^<]+{SEPARATOR}",
    begins=(BEGIN, ENTER),
    marks=(SEPARATOR, LEAVE, END),
    read=Named(ENTER, SEPARATOR, close=(LEAVE,), end=END),
    writing=Writing(f"{ENTER}{{name}}{SEPARATOR}", LEAVE, begin=BEGIN, end=END),
)


def dsml(name: str, section: str) -> Format:
    """DSML with this name of the section."""
    begin, end = f"<｜DSML｜{section}>", f"</｜DSML｜{section}>"
    return Format(
        name,
        detect=begin,
        begins=(begin,),
        marks=("｜DSML｜", end),
        read=Tagged(
            first='<｜DSML｜invoke name="',
            after_name=('">',),
            key='<｜DSML｜parameter name="',
            value='">',
            value_end="</｜DSML｜parameter>",
            close="</｜DSML｜invoke>",
            end=end,
        ),
        writing=Writing(
            '<｜DSML｜invoke name="{name}">\n',
            "</｜DSML｜invoke>\n",
            begin=f"{begin}\n",
            end=end,
            key_before='<｜DSML｜parameter name="{key}" string="{textual}">',
            key_after="</｜DSML｜parameter>\n",
        ),
    )


DEEPSEEK_V32 = dsml("deepseek-v3.2", "function_calls")
DEEPSEEK_V4 = dsml("deepseek-v4", "tool_calls")
