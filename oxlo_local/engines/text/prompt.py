"""Conversations in, prompt text out: the model's own chat template, and what it cannot take by itself.

A template is a jinja program by the model's vendor, written for transformers: the environment here gives it the same
filters and functions, and leaves every optional variable (`tools`, `enable_thinking`, `date_string`, ...) undefined,
because templates ask `is defined` and take None for a value.

**What a template cannot take** is found out once, at load, by rendering conversations of marker words and looking
which of them come out. A template that raises on a system message, or drops it without a word, gets it at the head of
the next user turn; one that wants alternating roles gets neighbours of one role joined; one that reads content as a
list of parts gets such a list; and `developer` is `system` to all that do not know it. No word of a client is lost.

**Continuing.** A conversation that ends in an assistant turn is one to be continued, as llama-server has it. Where the
template closes a turn is its own affair, so the turn is rendered with a mark at its end, and the prompt is cut there.

**Bounds.** The sandbox keeps a template from the machine. Time is bounded too: some templates look at all messages for
each message, and a hostile client can send a great many. The sandbox sees each call and attribute access of the
running template, and that is where the clock is looked at, beside every piece of output.
"""

import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn, TypeVar

from jinja2 import TemplateError, Undefined, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec.structs import replace

from oxlo_local import errors
from oxlo_local.calls import Message, Tool
from oxlo_local.engines.text import toolcalls
from oxlo_local.engines.text.conversation import (
    ARGUMENT,
    PROBE,
    RESULT,
    SECOND,
    STYLES,
    TOOL,
    Style,
    as_text,
    fields,
    folded,
    joined,
    leading_systems,
    probe,
    thought_of,
    tool_object,
    weight,
)
from oxlo_local.engines.text.thinking import efforts_of, markers_of
from oxlo_local.engines.text.toolcalls.generic import GENERIC, preamble
from oxlo_local.engines.text.toolcalls.harmony import HARMONY

T = TypeVar("T")

RENDER_SECONDS = 5.0  # of CPU time; a thousand turns take most templates 0.02 s, a quadratic one 1.5 s
RENDER_GROWTH = 4  # output may have this many times the messages' characters, ...
RENDER_ALLOWANCE = 1 << 20  # ... and this many more, ...
TURN_ALLOWANCE = 1 << 10  # ... and this many for each turn's markers
CLOCK_EVERY = 1024  # attribute accesses between two looks at the clock

ROLES = {"S": "system", "T": "system", "U": "user", "V": "user", "A": "assistant"}
MARKERS = {letter: f"{letter}marker{letter}" for letter in ROLES}  # words that no template contains


class ChatTemplate:
    """A compiled chat template and what is known about it.

    `folds_system`: it takes no system message, so that one goes into a user turn. Raises ServerError, with jinja's own
    words, where the source does not compile.
    """

    def __init__(
        self, source: str, *, bos_token: str, eos_token: str, clock: Callable[[], datetime] = datetime.now
    ) -> None:
        self._clock = clock
        self._environment = TemplateEnvironment(clock)
        self._tokens: dict[str, object] = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = self._environment.from_string(source)
            self.knows = frozenset(meta.find_undeclared_variables(self._environment.parse(source)))
            """The variables that it reads."""
        except (TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            place = f" (line {line})" if line else ""
            raise errors.ServerError(f"the model's chat template does not compile: {error}{place}") from None
        self._style = Style()
        self._parts = False
        self._parts = not self._keeps("U") and self._keeps("U", parts=True)
        self._knows_developer = "developer" in source
        readable = self._keeps("UAV")  # else nothing can be told from what does not come out
        self.folds_system = readable and not self._keeps("SU")
        self._folds_later_system = readable and not self._keeps("SUATV")
        self._joins_systems = readable and not self._keeps("STU")
        self._joins_turns = readable and not self._keeps("UV")
        self._takes_tools = TOOL.name in self._probed([PROBE], Style())
        self._style, rendered = self._find_style()
        self.format = toolcalls.detect(rendered, source, takes_tools=self._takes_tools)
        """How its model writes calls."""
        if self.format is GENERIC:
            self._takes_tools, self._style = False, Style(calls=False, results=False)
        self._style = dataclasses.replace(self._style, thought=thought_of(source))
        self.thoughts = markers_of(source)
        """What its model's thoughts stand between, None where it has no such markers."""
        self.thinks = self.thoughts is not None or self.format is HARMONY
        """Whether its model thinks before it answers."""
        self.efforts = efforts_of(source, interpolates=self.format is HARMONY)
        """The efforts of thinking that it takes."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        switches: Mapping[str, object] | None = None,
        new_turn: bool = False,
    ) -> str:
        """The prompt of a conversation, ready for the assistant's next words.

        `switches` are further variables of the template. A last assistant turn is continued, unless a `new_turn` is
        wanted behind it. Raises BadRequest (param "messages"), in the template's own words, where it refuses the
        conversation.
        """
        variables = dict(switches or {})
        if tools and self._takes_tools:
            variables["tools"] = [tool_object(tool) for tool in tools]
        elif tools:
            told = preamble([tool_object(tool) for tool in tools], self.format)
            messages = [Message("system", told), *messages]
            if len(messages) > 1 and messages[1].role in ("system", "developer"):
                messages = joined([messages[0], replace(messages[1], role="system")], ("system",)) + list(
                    messages[2:]
                )
        turns = self._adapt(messages)
        if not turns:
            raise errors.BadRequest("messages is empty: send at least one message", param="messages")
        if turns[-1].role == "assistant" and not new_turn:
            return self._continue(turns, variables)
        return self._run(turns, add_generation_prompt=True, parts=self._parts, variables=variables)

    def _continue(self, turns: list[Message], variables: Mapping[str, object]) -> str:
        mark = secrets.token_hex(16)  # nobody can have written it
        turns[-1] = replace(turns[-1], content=turns[-1].content + mark)
        text = self._run(turns, add_generation_prompt=False, parts=self._parts, variables=variables)
        text, found, _ = text.rpartition(mark)
        if not found:
            message = (
                "this model's chat template cannot continue an assistant message: end with a user message"
            )
            raise errors.BadRequest(message, param="messages")
        return text

    def _adapt(self, messages: Sequence[Message]) -> list[Message]:
        """The same words, in a conversation that the template takes."""
        turns = as_text(messages, self._style, self.format)
        if not self._knows_developer:
            turns = [replace(turn, role="system") if turn.role == "developer" else turn for turn in turns]
        if self._joins_systems or self.folds_system:
            turns = joined(turns, ("system",))
        if self._folds_later_system:
            head = 0 if self.folds_system else leading_systems(turns)
            turns = turns[:head] + folded(turns[head:])
        if self._joins_turns:
            turns = joined(turns, ("user", "assistant"))
        return turns

    def _find_style(self) -> tuple[Style, str]:
        """How it wants to be given a call, and a call as it renders one ("" = it drops calls)."""
        for style in STYLES:
            whole = self._probed(probe(), style)
            text = whole or self._probed(probe()[:2], style)
            if ARGUMENT in text:
                single = SECOND not in self._probed(probe(SECOND)[:2], style)
                found = dataclasses.replace(style, results=RESULT in whole, single=single)
                return found, text.rpartition(PROBE.content)[2]
        return Style(calls=False, results=RESULT in self._probed([*probe()[:1], probe()[2]], Style())), ""

    def _probed(self, turns: Sequence[Message], style: Style) -> str:
        """The text of a probing conversation; "" where the template refuses it."""
        self._style = style
        variables = {"tools": [tool_object(TOOL)]}
        try:
            return self._run(turns, add_generation_prompt=True, parts=self._parts, variables=variables)
        except errors.BadRequest:
            return ""

    def _run(
        self,
        turns: Sequence[Message],
        *,
        add_generation_prompt: bool,
        parts: bool,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        limit = RENDER_GROWTH * sum(weight(turn) for turn in turns)
        limit += RENDER_ALLOWANCE + TURN_ALLOWANCE * len(turns)
        limit += len(to_json((variables or {}).get("tools"))) * RENDER_GROWTH
        variables = {
            **self._tokens,
            **(variables or {}),
            "messages": Given(fields(turn, parts=parts, style=self._style) for turn in turns),
            "add_generation_prompt": add_generation_prompt,
            # FireFunction's template wants it. The day only: a time in the prompt would defeat prefix reuse.
            "datetime": self._clock().strftime("%b %d %Y"),
        }
        pieces: list[str] = []
        self._environment.start_clock()
        try:
            for piece in self._template.generate(variables):
                self._environment.look_at_clock()
                limit -= len(piece)
                if limit < 0:
                    raise TemplateError("it writes far more text than the conversation has")
                pieces.append(piece)
        # A template is a program, and a conversation that it was not written for can make it fail in any way.
        except Exception as error:
            words = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            message = f"the model's chat template refuses this conversation: {words}"
            raise errors.BadRequest(message, param="messages") from None
        return "".join(pieces)

    def _keeps(self, letters: str, *, parts: bool = False) -> bool:
        """Whether a conversation of markers comes out whole."""
        turns = [Message(role=ROLES[letter], content=MARKERS[letter]) for letter in letters]
        try:
            text = self._run(turns, add_generation_prompt=True, parts=parts or self._parts)
        except errors.BadRequest:
            return False
        return all(MARKERS[letter] in text for letter in letters)


# -- jinja ------------------------------------------------------------------------------------------------------------


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; to a prompt it means nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Given(list[dict[str, object]]):
    """A list that a template is given, and does not change."""


class BlankUndefined(Undefined):
    """Nothing, also in `+`, as it is in `~`: some templates add text that only comes with tools."""

    def __add__(self, other: T) -> T:
        return other

    def __radd__(self, other: T) -> T:
        return other


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What transformers offers to a template, with a clock on its running time."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=BlankUndefined,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = to_json
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: clock().strftime(form)
        # Long prompts are rendered beside the steps, on threads of their own.
        self._rendering = threading.local()
        self._accesses = 0

    def start_clock(self) -> None:
        """Give this thread its time."""
        self._rendering.deadline = time.thread_time() + RENDER_SECONDS

    def look_at_clock(self) -> None:
        """Raise TemplateError when this thread's time is up."""
        if time.thread_time() > self._rendering.deadline:
            raise TemplateError(f"it needs more than {RENDER_SECONDS:g} s: send fewer messages")

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """A template's own lists may grow and shrink, as Kimi's do; the conversation is not its own."""
        return (attr in ("append", "pop") and type(obj) is list) or super().is_safe_attribute(
            obj, attr, value
        )

    def getattr(self, obj: object, attribute: str) -> object:
        self._count()
        return super().getattr(obj, attribute)

    def getitem(self, obj: object, argument: object) -> object:
        self._count()
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        __self.look_at_clock()
        return super().call(__context, __obj, *args, **kwargs)

    def _count(self) -> None:
        self._accesses += 1
        if not self._accesses % CLOCK_EVERY:
            self.look_at_clock()


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=to_list,  # of what `map` and `select` give
    )


def to_list(value: object) -> list[object]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return list(value)
