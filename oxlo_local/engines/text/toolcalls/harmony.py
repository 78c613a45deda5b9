"""gpt-oss: the whole answer is messages with headers, of which one may be a call.

    <|channel|>analysis<|message|>The user wants ...<|end|><|start|>assistant<|channel|>commentary to=functions.find
    <|constrain|>json<|message|>{"place": "Oslo"}<|call|>
    <|start|>assistant<|channel|>final<|message|>It is in Norway.<|return|>

Analysis is reasoning. Commentary to nobody (what the model says before it calls) and the final channel are content.
The header's parts come in more than one order.
"""

import re
from collections.abc import Mapping

from oxlo_local.engines.text.toolcalls.format import ANY, Calls, Format, Writing, object_text
from oxlo_local.engines.text.toolcalls.shape import Free, Grammar, Json, OneOf, maybe
from oxlo_local.engines.text.toolcalls.tape import Ended, Say, Steps, Tape

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ENDS = (END, CALL, RETURN, START)


def read(tape: Tape, calls: Calls, marker: str) -> Steps[None]:
    """A call's message, from behind its header, which is `marker`."""
    recipient = re.search(r"to=([^\s<]+)", marker)
    assert recipient is not None
    calls.begin(recipient[1].removeprefix("functions."))
    yield from tape.space()
    yield from object_text(tape, calls.add)
    calls.close()
    try:
        yield from tape.space()
        yield from tape.meets(CALL, END)
    except Ended:
        pass


def header(tape: Tape) -> Steps[str]:
    """The next message's header; "" where text comes without one."""
    yield from tape.space()
    began = yield from tape.meets(START, CHANNEL)
    if not began and not (yield from tape.meets(" to=", "to=")):
        return ""
    rest, _ = yield from tape.until(MESSAGE)
    return f"{began or 'to='}{rest}"


def calls_tool(head: str) -> bool:
    """Whether a message is for a tool."""
    return re.search(r"to=(?!assistant|user)", head) is not None


def body(tape: Tape, say: Say) -> Steps[None]:
    """A message's text, up to its end."""
    yield from tape.relay(say, *ENDS[:3])


class Addressed(Writing):
    """Calls whose header may also begin with the recipient; the end token says as much as their last marker."""

    def grammar(self, tools: Mapping[str, str | None], *, parallel: bool) -> Grammar:
        """The grammar of at least one call of `tools`."""
        json = f" {CONSTRAIN}json{MESSAGE}"
        calls = tuple(
            (*head, Json(schema or ANY), maybe(CALL))
            for name, schema in tools.items()
            for to in [f" to=functions.{name}"]
            for head in ((CHANNEL, f"commentary{to}{json}"), (f"{to}{CHANNEL}commentary{json}",))
        )
        return Grammar("", calls, self.between if parallel else None, "")


NEXT = f"{END}{START}assistant"
HARMONY = Format(
    "harmony",
    detect=r"<\|channel\|>commentary",
    source=r"<\|channel\|>analysis<\|message\|>",
    begins=(),
    marks=(START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL),
    read=read,
    writing=Addressed(
        f"{CHANNEL}commentary to=functions.{{name}} {CONSTRAIN}json{MESSAGE}",
        CALL,
        between=f"{START}assistant",
    ),
    notes=(CHANNEL, OneOf((("analysis",), ("commentary",))), MESSAGE, Free(), NEXT),
    final=(CHANNEL, "final", maybe(f" {CONSTRAIN}json"), MESSAGE),
    resume=NEXT,
)
