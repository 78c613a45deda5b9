"""A deterministic engine that says its prompt back, and breaks on request: it exists to test `workers/`, never an API.

One step gives every running call one word. Faults of the load are asked for in `EchoOptions`; faults of a call by
words in its prompt, which count the words that were said before:

    !crash=K   abort the process, as a failed assertion in native code does
    !exit=K    raise out of the step loop
    !hang=K    never return from the step, while the other thread still answers
    !fail=K    fail this call alone
    !print=K   print on fd 1, as native libraries do
    !stray=K   send events of calls that nobody made, and a second end after this call's own
"""

import os
import re
import time
from collections import deque
from dataclasses import dataclass
from threading import Event as Never

from oxlo_local.calls import (
    Call,
    Done,
    EchoOptions,
    Event,
    Failed,
    Finished,
    FinishReason,
    Gauges,
    Load,
    ModelFacts,
    Started,
    Text,
    TextCall,
    Usage,
)
from oxlo_local.engines import Progress

FAULT = re.compile(r"!(crash|exit|hang|fail|print|stray)=(\d+)")


@dataclass
class _Saying:
    """A call and how far it has come: `said` words of `words`, the same in each of its choices."""

    call: TextCall
    prompt_tokens: int
    words: list[str]
    limit: int
    faults: dict[str, int]
    said: int = 0
    stray: bool = False

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.said * self.call.n)


class EchoEngine:
    """Answers a call with the words of its last message, over and over up to max_tokens, else once."""

    def __init__(self, load: Load, progress: Progress) -> None:
        """Load nothing, slowly if asked. Raises RuntimeError with `load_error`'s words."""
        options = load.options if isinstance(load.options, EchoOptions) else EchoOptions()
        for tenth in range(1, 11):
            time.sleep(options.load_seconds / 10)
            progress(tenth / 10)
            if tenth == 5 and options.load_exit is not None:
                os._exit(options.load_exit)
        if options.load_error is not None:
            raise RuntimeError(options.load_error)
        self.facts = ModelFacts(architecture="echo", context_length=options.ctx, parallel=options.parallel)
        self._options = options
        self._waiting: deque[_Saying] = deque()
        self._running: dict[str, _Saying] = {}
        self._failures: list[Event] = []
        self._steps = 0
        self._generated = 0

    def submit(self, call: Call) -> None:
        """Queue a call; a prompt longer than the context fails with the next step."""
        if not isinstance(call, TextCall):
            self._failures.append(Failed(call.id, "unsupported_value", "it says words back and nothing else"))
            return
        texts = [m.content for m in call.messages or []] + [
            p for p in call.prompts or [] if isinstance(p, str)
        ]
        prompt = [word for text in texts for word in text.split()]
        if len(prompt) > self._options.ctx:
            words = f"the prompt has {len(prompt)} tokens, the context {self._options.ctx}"
            self._failures.append(Failed(call.id, "context_length_exceeded", words))
            return
        words_back = (texts[-1].split() if texts else []) or ["?"]
        faults = {name: int(after) for name, after in FAULT.findall(texts[-1] if texts else "")}
        limit = call.max_tokens if call.max_tokens is not None else len(words_back)
        self._waiting.append(_Saying(call, len(prompt), words_back, limit, faults))

    def cancel(self, id: str) -> None:
        """Drop a call; its Failed comes with the next step."""
        saying = self._running.pop(id, None)
        if saying is None:
            saying = next((one for one in self._waiting if one.call.id == id), None)
            if saying is None:
                return
            self._waiting.remove(saying)
        self._failures.append(Failed(id, "cancelled", "the call was cancelled", usage=saying.usage()))

    def step(self) -> list[Event]:
        """One word for every running call."""
        self._steps += 1
        if self._options.step_seconds:
            time.sleep(self._options.step_seconds)
        events, self._failures = self._failures, []
        while self._waiting and len(self._running) < self._options.parallel:
            saying = self._waiting.popleft()
            self._running[saying.call.id] = saying
            events.append(Started(saying.call.id, saying.prompt_tokens, 0))
        for saying in list(self._running.values()):
            events.extend(self._say(saying))
        return events

    def _say(self, saying: _Saying) -> list[Event]:
        id = saying.call.id
        for fault, after in saying.faults.items():
            if after == saying.said and (failed := self._break(fault, saying)) is not None:
                return [failed]
        choices = range(saying.call.n)
        if saying.said >= saying.limit:
            del self._running[id]
            reason: FinishReason = "stop" if saying.call.max_tokens is None else "length"
            ends: list[Event] = [
                *(Finished(id, choice, reason) for choice in choices),
                Done(id, saying.usage()),
            ]
            return ends + self._strays(id) if saying.stray else ends
        word = saying.words[saying.said % len(saying.words)]
        saying.said += 1
        self._generated += len(choices)
        return [Text(id, choice, word + " ", 1) for choice in choices]

    def _break(self, fault: str, saying: _Saying) -> Event | None:
        id = saying.call.id
        if fault == "crash":
            os.abort()
        if fault == "exit":
            raise RuntimeError("asked to leave the step loop")
        if fault == "hang":
            Never().wait()
        if fault == "print":
            os.write(1, b"\x00\xff native noise on fd 1\n")
        if fault == "stray":
            saying.stray = True
        if fault == "fail":
            del self._running[id]
            return Failed(id, "server_error", "asked to fail", usage=saying.usage())
        return None

    def _strays(self, id: str) -> list[Event]:
        return [
            Text("nobody", 0, "stray", 1),
            Done("nobody", Usage()),
            Text(id, 0, "late", 1),
            Done(id, Usage()),
        ]

    def busy(self) -> bool:
        """Whether a call is waiting, running, or has yet to hear of its failure."""
        return bool(self._waiting or self._running or self._failures)

    def gauges(self) -> Gauges:
        """Counters as of the last step."""
        return Gauges(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_total=self._options.ctx * self._options.parallel,
            generated_tokens=self._generated,
            steps=self._steps,
        )

    def close(self) -> None:
        """Nothing to free."""
