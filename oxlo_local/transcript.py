"""A conversation in the terminal, sans terminal: what was said, what a line of input means, what an answer cost.

Turns alternate, user and assistant, because many chat templates refuse anything else: a question that got no answer is
withdrawn (and kept aside for /retry), a stopped answer stays, marked. Nothing here prints, asks or waits.
"""

import difflib
import os
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from oxlo_local.client import ChatBody, ChatUsage, Head, Turn
from oxlo_local.errors import BadRequest

FORMAT = "oxlo-chat-1"
QUOTES = '"""'
_NO_TEXT = re.compile("[\ud800-\udfff]")  # what Python puts in the place of bytes that are no UTF-8

COMMANDS: dict[str, tuple[str, str]] = {
    "system": ("[TEXT|clear]", "show, set or clear the system prompt"),
    "model": ("[NAME]", "list the server's chat models, or change to one"),
    "save": ("FILE", "write the conversation to a JSON file"),
    "load": ("FILE", "go on with a saved conversation"),
    "reset": ("", "forget the conversation, keep model and system prompt"),
    "retry": ("", "ask the last question again"),
    "undo": ("", "take back the last question and its answer"),
    "stats": ("", "tokens, speed and price of the last answer and of this session"),
    "help": ("", "this list"),
    "exit": ("", "leave (so does Ctrl-D)"),
}
SHORTEST = 0.01  # seconds of an answer from which its speed means something

# -- input ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A slash command; `name` is a key of COMMANDS."""

    name: str
    argument: str


def wants_more(text: str) -> bool:
    '''Whether Enter should begin another line: after an opening """ until the closing one.'''
    stripped = text.strip()
    return stripped.startswith(QUOTES) and not (
        len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES)
    )


def understand(text: str) -> Command | str:
    """What was entered: a command, or the message to send ("" = nothing). `//` sends a message that begins with `/`.

    Raises BadRequest, which names the nearest, for an unknown command, and for one that lacks its argument.
    """
    stripped = text.strip()
    if stripped.startswith("//"):
        return stripped[1:]
    if stripped.startswith("/"):
        name, _, argument = stripped[1:].partition(" ")
        return _command(name.lower(), argument.strip())
    if stripped.startswith(QUOTES) and stripped.endswith(QUOTES) and len(stripped) >= 2 * len(QUOTES):
        stripped = stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return stripped


def _command(name: str, argument: str) -> Command:
    name = {"quit": "exit", "bye": "exit", "?": "help"}.get(name, name)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them."
        raise BadRequest(f"no such command: /{name}; {hint} To send it as a message, write //{name}.")
    wanted = COMMANDS[name][0]
    if wanted and not wanted.startswith("[") and not argument:
        raise BadRequest(f"/{name} needs an argument: /{name} {wanted}")
    if argument and not wanted:
        raise BadRequest(f"/{name} takes no argument")
    return Command(name, argument)


# -- what was said ----------------------------------------------------------------------------------------------


class Said(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One turn. `stopped` marks an answer that Ctrl-C cut short."""

    role: Literal["user", "assistant"]
    content: str
    stopped: bool = False


class Options(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is sent with every question; None leaves the choice to the model's own settings."""

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Saved(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The file that /save writes."""

    format: str
    model: str
    messages: list[Said]
    system: str | None = None
    options: Options = Options()


@dataclass
class Transcript:
    """The conversation so far and what it is held with. `unanswered` = the question that was withdrawn last."""

    model: str
    system: str | None = None
    options: Options = Options()
    said: list[Said] = field(default_factory=list)
    unanswered: str | None = None

    def body(self, question: str) -> ChatBody:
        """The request that asks `question` after all that was said. Raises BadRequest for bytes that are no text."""
        turns = [Turn("system", self.system)] if self.system else []
        turns += [*(Turn(said.role, said.content) for said in self.said), Turn("user", question)]
        if any(_NO_TEXT.search(turn.content) for turn in turns):
            raise BadRequest("there are bytes in it that are no UTF-8 text; such a message cannot be sent")
        return ChatBody(
            model=self.model,
            messages=turns,
            temperature=self.options.temperature,
            max_completion_tokens=self.options.max_tokens,
            seed=self.options.seed,
        )

    def heard(self, question: str, answer: str, *, stopped: bool = False) -> None:
        """Keep a question with its answer; with none, only put the question aside."""
        if not answer:
            self.unanswered = question
            return
        self.unanswered = None
        self.said += [Said("user", question), Said("assistant", answer, stopped)]

    def undo(self) -> str | None:
        """Take back the last question and its answer. Returns the question, None when there is none."""
        if not self.said:
            return None
        question = self.said[-2].content
        del self.said[-2:]
        return question

    def retry(self) -> str | None:
        """The question to ask again: the one that got no answer, else the last one, which is taken back."""
        question, self.unanswered = self.unanswered, None
        return question if question is not None else self.undo()

    def reset(self) -> None:
        """Forget what was said."""
        self.said.clear()
        self.unanswered = None

    def save(self, path: Path) -> None:
        """Write a file that only this user can read: conversations are private.

        Raises BadRequest when it cannot be written, or would overwrite a file that is no saved conversation.
        """
        if os.path.exists(path):
            try:
                read_saved(path)
            except BadRequest as error:
                raise BadRequest(
                    f"{path} is there and is no saved conversation; choose another name"
                ) from error
        saved = Saved(FORMAT, self.model, self.said, self.system, self.options)
        text = msgspec.json.format(msgspec.json.encode(saved), indent=2) + b"\n"
        try:
            with open(path, "wb", opener=_private) as file:
                os.fchmod(file.fileno(), 0o600)  # one that was there may be open to others
                file.write(text)
        except OSError as error:
            raise BadRequest(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Go on with a saved conversation, with its model and settings. Raises BadRequest as `read_saved` does."""
        saved = read_saved(path)
        self.model, self.system, self.options = saved.model, saved.system, saved.options
        self.said = list(saved.messages)
        self.unanswered = None


def read_saved(path: Path) -> Saved:
    """A file that /save has written. Raises BadRequest that says what is wrong with it."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Saved)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is no saved conversation: {str(error).replace('`', '')}") from error
    if saved.format != FORMAT:
        raise BadRequest(f"{path} has format {saved.format!r}; this version reads {FORMAT!r}")
    roles = [said.role for said in saved.messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadRequest(f"{path}: messages must alternate, user then assistant")
    return saved


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


# -- what it cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One answer as this client saw it. Times in seconds from asking; `usage` is None when it was cut short."""

    text: str
    head: Head
    model: str
    finish_reason: str | None
    usage: ChatUsage | None
    first_output: float | None
    total: float
    stopped: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None when it cannot be told, as of an answer that came in one piece."""
        if self.usage is None or self.first_output is None or self.usage.completion_tokens < 2:
            return None
        seconds = self.total - self.first_output
        return (self.usage.completion_tokens - 1) / seconds if seconds >= SHORTEST else None

    @property
    def price(self) -> Decimal:
        """US dollars: the reserved price, or nothing when it was cut before any output, which is refunded."""
        return Decimal(self.head.price_usd or 0) if self.text else Decimal(0)


class AnswerObject(Struct, frozen=True):
    """An answer as `--json` prints it. What is not known is null; milliseconds are counted from asking."""

    model: str
    content: str
    finish_reason: str | None
    usage: ChatUsage | None
    first_output_ms: float | None
    total_ms: float
    tokens_per_second: float | None
    entry: str | None
    price_usd: str | None
    stopped: bool


def answer_object(answer: Answer) -> AnswerObject:
    """The JSON form of an answer."""
    speed = answer.tokens_per_second
    return AnswerObject(
        model=answer.model,
        content=answer.text,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        first_output_ms=None if answer.first_output is None else round(answer.first_output * 1000, 1),
        total_ms=round(answer.total * 1000, 1),
        tokens_per_second=None if speed is None else round(speed, 1),
        entry=answer.head.entry or None,
        price_usd=answer.head.price_usd or None,
        stopped=answer.stopped,
    )


@dataclass
class Totals:
    """Sums over a session."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    price: Decimal = Decimal(0)
    uncounted: int = 0  # stopped answers, whose tokens nobody told us

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.answers += 1
        self.price += answer.price
        if answer.usage is None:
            self.uncounted += 1
            return
        self.prompt_tokens += answer.usage.prompt_tokens
        self.cached_tokens += answer.usage.cached_tokens
        self.completion_tokens += answer.usage.completion_tokens


def stats_lines(answer: Answer | None, totals: Totals) -> list[str]:
    """What /stats prints: the last answer, then the session."""
    if answer is None:
        return ["nothing asked yet"]
    lines = [f"last answer   {_words(answer)}"]
    timing = [f"total {answer.total * 1000:.0f} ms"]
    if answer.first_output is not None:
        timing.insert(0, f"first output {answer.first_output * 1000:.0f} ms")
    if answer.tokens_per_second is not None:
        timing.append(f"{answer.tokens_per_second:.1f} tokens/s")
    lines.append(f"              {', '.join(timing)}")
    if answer.head.entry:
        lines.append(f"              {answer.head.price_usd} USD, ledger entry {answer.head.entry}")
    more = f" (and {totals.uncounted} stopped)" if totals.uncounted else ""
    prompt = f"{totals.prompt_tokens} prompt tokens ({totals.cached_tokens} cached)"
    completion = f"{totals.completion_tokens} completion tokens{more}"
    return [*lines, f"this session  {totals.answers} answers, {prompt}, {completion}, {totals.price} USD"]


def _words(answer: Answer) -> str:
    if answer.usage is None:
        return "stopped: its tokens were not reported"
    usage = answer.usage
    return (
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), {usage.completion_tokens} completion "
        f"tokens, finish reason {answer.finish_reason}"
    )


def printable(text: str) -> str:
    """`text` with its control characters made visible: an answer must not be able to drive the terminal."""
    if text.isprintable():
        return text
    return "".join(f"\\x{ord(char):02x}" if _control(char) else char for char in text)


def _control(char: str) -> bool:
    return (ord(char) < 0x20 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0
