"""The conversation in the terminal: read a question, stream its answer, carry out slash commands.

Ctrl-C stops the answer and keeps what came; at the prompt it clears the line. Ctrl-D leaves. Enter sends; a backslash
before it, Alt-Enter and an open \"\"\" begin another line. Input history stays in memory unless a file is asked for.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from oxlo_local.catalogue import file_id
from oxlo_local.client import ChatBody, ChatUsage, Client, Head, ModelItem
from oxlo_local.errors import BadRequest, OxloError
from oxlo_local.gguf import is_path
from oxlo_local.transcript import (
    COMMANDS,
    Answer,
    Command,
    Totals,
    Transcript,
    answer_object,
    printable,
    stats_lines,
    understand,
    wants_more,
)

PROMPT, CONTINUED = ">>> ", "... "


def ask(client: Client, body: ChatBody, show: Callable[[str], None]) -> Answer:
    """Stream one answer, piece by piece, into `show`. Ctrl-C ends it early, and the server is told.

    Raises the server's error, also when it comes in the middle of the answer.
    """
    began = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    usage: ChatUsage | None = None
    reason: str | None = None
    head, model, stopped = Head(), body.model, False
    try:
        with client.chat(body) as stream:
            head = stream.head
            for chunk in stream:
                model, usage = chunk.model or model, chunk.usage or usage
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                if chunk.text:
                    first = first or time.perf_counter() - began
                    pieces.append(chunk.text)
                    show(chunk.text)
    except KeyboardInterrupt:
        stopped = True
    return Answer("".join(pieces), head, model, reason, usage, first, time.perf_counter() - began, stopped)


def pick_model(client: Client, wanted: str | None) -> ModelItem:
    """The model to chat with: the one asked for (id, alias, or local file), else the first chat model that is ready.

    Raises ModelNotFound, which names the nearest, or BadRequest when the model is of another kind or there is none.
    """
    listed = client.models()
    if wanted is not None:
        name = file_id(Path(wanted)) if is_path(wanted) else wanted
        # The server resolves aliases and knows the nearest names; servers of another make know only their list.
        item = next((item for item in listed if item.id == name), None) or client.model(name)
        if item.kind != "chat":
            raise BadRequest(f"{item.id} is a model for {item.kind}, not for chat")
        return item
    chat = [item for item in listed if item.kind == "chat"]
    if not chat:
        raise BadRequest("the server has no chat model; `oxlo serve` brings oxlo-demo with it")
    return next((item for item in chat if item.status == "ready"), chat[0])


def ask_once(client: Client, body: ChatBody, *, as_json: bool) -> bool:
    """Ask one question and print its answer alone, as it comes, or as one JSON object. False if Ctrl-C stopped it."""
    show = _show if sys.stdout.isatty() else _pass_on
    answer = ask(client, body, _ignore if as_json else show)
    if as_json:
        sys.stdout.write(msgspec.json.encode(answer_object(answer)).decode())
    sys.stdout.write("\n")
    if answer.head.warnings:
        print(f"oxlo: the server says: {printable(answer.head.warnings)}", file=sys.stderr)
    return not answer.stopped


def prompt_session(history_file: Path | None) -> PromptSession[str]:
    """Line editing. With `history_file` questions are kept there, readable by this user only."""
    history: History = InMemoryHistory()
    if history_file is not None:
        history_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(history_file, os.O_CREAT | os.O_WRONLY, 0o600))
        history = FileHistory(history_file)
    return PromptSession(
        PROMPT,
        history=history,
        multiline=True,
        prompt_continuation=CONTINUED,
        key_bindings=_keys(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
    )


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send_or_go_on(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif wants_more(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def go_on(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class Terminal:
    """One conversation with one server, until the user leaves."""

    def __init__(self, client: Client, transcript: Transcript, session: PromptSession[str]) -> None:
        self._client = client
        self._transcript = transcript
        self._session = session
        self._notes = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._last: Answer | None = None
        self._totals = Totals()
        self._commands: dict[str, Callable[[str], None]] = {
            "system": self._system,
            "model": self._model,
            "save": self._save,
            "load": self._load,
            "reset": self._reset,
            "retry": self._retry,
            "undo": self._undo,
            "stats": self._stats,
            "help": self._help,
        }

    def run(self) -> None:
        """Read and answer until Ctrl-D or /exit. An error ends the line that caused it, never the program."""
        self._note(
            f"{self._transcript.model} at {self._client.address.url}. /help lists the commands, Ctrl-D leaves."
        )
        while True:
            try:
                entered = understand(self._session.prompt())
                if isinstance(entered, Command):
                    if entered.name == "exit":
                        return
                    self._commands[entered.name](entered.argument)
                elif entered:
                    self._answer(entered)
            except OxloError as error:
                self._note(f"error: {error.message}", style="red")
            except KeyboardInterrupt:
                self._note("(Ctrl-D or /exit leaves)")
            except EOFError:
                return

    def _answer(self, question: str) -> None:
        try:
            answer = ask(self._client, self._transcript.body(question), _show)
        except OxloError:
            self._transcript.heard(question, "")
            sys.stdout.write("\n")
            raise
        sys.stdout.write("\n")
        self._transcript.heard(question, answer.text, stopped=answer.stopped)
        self._last = answer
        self._totals.add(answer)
        if answer.stopped and not answer.text:
            self._note("[stopped before the first word; the question is not kept, /retry asks it again]")
        elif answer.stopped:
            self._note("[stopped]")
        elif answer.finish_reason == "length":
            self._note("[cut off: the answer has reached its limit of tokens]")
        if answer.head.warnings:
            self._note(f"[the server says: {answer.head.warnings}]")

    def _system(self, text: str) -> None:
        if text == "clear":
            self._transcript.system = None
        elif text:
            self._transcript.system = text
        self._note(
            f"system prompt: {self._transcript.system}" if self._transcript.system else "no system prompt"
        )

    def _model(self, name: str) -> None:
        if name:
            self._transcript.model = pick_model(self._client, name).id
            self._note(f"now talking to {self._transcript.model}")
            return
        for item in self._client.models():
            if item.kind == "chat":
                self._note(_model_line(item, current=item.id == self._transcript.model))

    def _save(self, name: str) -> None:
        self._transcript.save(Path(os.path.expanduser(name)))
        self._note(f"{len(self._transcript.said)} messages saved to {name}")

    def _load(self, name: str) -> None:
        self._transcript.load(Path(os.path.expanduser(name)))
        for said in self._transcript.said:
            print(f"{PROMPT if said.role == 'user' else ''}{printable(said.content)}")
        self._note(f"{len(self._transcript.said)} messages loaded; talking to {self._transcript.model}")

    def _reset(self, _: str) -> None:
        self._transcript.reset()
        self._note("forgotten; model and system prompt stay")

    def _retry(self, _: str) -> None:
        question = self._transcript.retry()
        if question is None:
            raise BadRequest("there is no question to ask again")
        self._note(f"{PROMPT}{question}")
        self._answer(question)

    def _undo(self, _: str) -> None:
        question = self._transcript.undo()
        if question is None:
            raise BadRequest("there is nothing to take back")
        self._note(f"taken back: {question}")

    def _stats(self, _: str) -> None:
        for line in stats_lines(self._last, self._totals):
            self._note(line)

    def _help(self, _: str) -> None:
        for name, (argument, meaning) in COMMANDS.items():
            self._note(f"/{name} {argument}".ljust(24) + meaning)
        self._note(
            'A line that ends in \\, Alt-Enter, and """ ... """ make longer messages. Ctrl-C stops an answer.'
        )

    def _note(self, line: str, style: str = "dim") -> None:
        self._notes.print(printable(line), style=style)


def _ignore(_: str) -> None:
    pass


def _pass_on(piece: str) -> None:
    """To a pipe or a file as it is, control characters and all."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def _show(piece: str) -> None:
    sys.stdout.write(printable(piece))
    sys.stdout.flush()


def _model_line(item: ModelItem, *, current: bool) -> str:
    price = f", {item.price_usd} USD a request" if item.price_usd is not None else ""
    return f"{'*' if current else ' '} {item.id}  {item.status}{price}"
