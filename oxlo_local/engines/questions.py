"""Calls that only ask about tokens: they need a model's vocabulary, but no slot and no decode.

A short one is answered where it is taken, between two steps. A long one (megabytes of text take seconds), and one about
a chat, whose template may take its time, is answered on a thread of its own, beside the steps.
"""

import sys
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NoReturn

from oxlo_local.calls import (
    CountCall,
    DetokenizeCall,
    Done,
    Event,
    Failed,
    PromptCall,
    Started,
    Text,
    TextCall,
    TokenCall,
    TokenizeCall,
    Tokens,
    Usage,
)
from oxlo_local.engines.weights import Weights
from oxlo_local.errors import BadRequest, OxloError, ServerError

INLINE = 16_384  # characters or tokens, about a millisecond
MOST = 1 << 20  # characters or tokens: a second of work, and an answer of some 10 MB


class Questions:
    """The questions that one engine has been asked.

    `prompt_of` renders a chat as the model would be given it, `count` says how many tokens that is.
    """

    def __init__(
        self, weights: Weights, prompt_of: Callable[[TextCall], str], count: Callable[[TextCall], int]
    ) -> None:
        self._weights = weights
        self._prompt_of = prompt_of
        self._count = count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="questions")
        self._asked: dict[str, Future[list[Event]]] = {}
        self._ready: list[Event] = []

    def ask(self, call: TokenCall) -> None:
        """Take a question; its answer comes up with `answers`."""
        if not isinstance(call, PromptCall | CountCall) and size(call) <= INLINE:
            self._ready += self._answer(call)
        else:
            self._asked[call.id] = self._thread.submit(self._answer, call)

    def cancel(self, id: str) -> None:
        """Nobody waits for the answer any more. Unknown ids are ignored."""
        future = self._asked.pop(id, None)
        if future is not None:
            future.cancel()
            self._ready.append(Failed(id, "cancelled", "the client left"))

    def answers(self) -> list[Event]:
        """What has been answered since the last time."""
        for id in [id for id, future in self._asked.items() if future.done()]:
            self._ready += self._asked.pop(id).result()
        ready, self._ready = self._ready, []
        return ready

    def busy(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._asked or self._ready)

    def wait(self, seconds: float) -> None:
        """Wait for the thread's next answer, at most so long; for an engine that has nothing else to do."""
        wait(self._asked.values(), timeout=seconds, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Stop the thread; what it is in the middle of is still done."""
        self._thread.shutdown(cancel_futures=True)

    def _answer(self, call: TokenCall) -> list[Event]:
        try:
            return self._events(call)
        except OxloError as error:
            return [Failed(call.id, error.code, error.message, error.param)]
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return [Failed(call.id, ServerError.code, f"the question could not be answered: {error}")]

    def _events(self, call: TokenCall) -> list[Event]:
        weights = self._weights
        if isinstance(call, TokenizeCall | DetokenizeCall) and size(call) > MOST:
            what, param = (
                ("characters", "content") if isinstance(call, TokenizeCall) else ("tokens", "tokens")
            )
            raise BadRequest(f"{size(call):,} {what}: send at most {MOST:,} at once", param=param)
        if isinstance(call, CountCall):
            count = self._count(call.call)
            return [Started(call.id, count, 0), Done(call.id, Usage(prompt_tokens=count))]
        if isinstance(call, TokenizeCall):
            tokens = weights.tokenize(call.text, special=call.parse_special, add_special=call.add_special)
            pieces = [weights.token_bytes(token) for token in tokens]
            answer: Event = Tokens(call.id, tokens, pieces)
            count = len(tokens)
        elif isinstance(call, DetokenizeCall):
            weights.check_tokens(call.tokens, param="tokens")
            text = b"".join(map(weights.token_bytes, call.tokens)).decode("utf-8", "replace")
            answer, count = Text(call.id, 0, text, 0), len(call.tokens)
        else:
            answer, count = Text(call.id, 0, self._prompt_of(call.call), 0), 0
        return [Started(call.id, count, 0), answer, Done(call.id, Usage(prompt_tokens=count))]


def size(call: TokenizeCall | DetokenizeCall) -> int:
    """Characters or tokens of a question."""
    return len(call.text if isinstance(call, TokenizeCall) else call.tokens)


def no_chat(call: TextCall) -> NoReturn:
    """The prompt of a chat with a model that does not chat. Raises BadRequest."""
    raise BadRequest("this model has no chat template", param="messages")
