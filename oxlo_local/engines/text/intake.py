"""Calls on their way in: what is quick is read at once, the rest on threads beside the steps.

A megabyte of prompt takes longer than a step to render and tokenise, and so may a grammar, or an image that has to be
fetched and unpacked. Each has threads of its own, since one that waits for a compiler, or for a distant server, must
not hold up one that only has to be read.
"""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from oxlo_local.calls import Constraint, TextCall
from oxlo_local.engines.text.grammar import Frame, Grammars, Guide
from oxlo_local.engines.text.reading import Prompt, Reader

INLINE = 16_384  # characters of prompt that are read within the step, about a millisecond


@dataclass(frozen=True, slots=True)
class Reading:
    """A call as the engine needs it: its prompts, the guide that each choice gets a copy of, the prediction, and the
    tokens that end a thought."""

    prompts: list[Prompt]
    guide: Guide | None
    prediction: list[int]
    closing: list[int]


def constrained(call: TextCall) -> bool:
    """Whether a call's answer is held to a grammar."""
    strict = call.tool_choice == "required" or any(tool.strict for tool in call.tools)
    return call.constraint is not None or strict


class Intake:
    """The calls that are being read. Not for several threads at once."""

    def __init__(self, reader: Reader, grammars: Grammars) -> None:
        self._reader = reader
        self._grammars = grammars
        self._calls: dict[str, tuple[TextCall, Future[Reading]]] = {}
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._constrained = ThreadPoolExecutor(4, thread_name_prefix="constrained")
        self._pictured = ThreadPoolExecutor(4, thread_name_prefix="pictured")

    def take(self, call: TextCall) -> None:
        """Begin to read a call."""
        if call.pictures:
            future = self._pictured.submit(self._read, call)
        elif Reader.size(call) > INLINE:
            threads = self._constrained if constrained(call) else self._prompts
            future = threads.submit(self._read, call)
        else:
            future = self._at_once(call)
        self._calls[call.id] = (call, future)

    def _at_once(self, call: TextCall) -> "Future[Reading]":
        """Read a call now; only a grammar that is not known yet is compiled on a thread, and the call waits for it."""
        future: Future[Reading] = Future()
        try:
            prompts = self._reader.read(call)
            wanted = self._reader.wanted(call, prompts[0].text)
            guide = None if wanted is None else self._grammars.known(wanted)
            if wanted is not None and guide is None:
                return self._constrained.submit(self._guided, call, prompts, wanted)
            future.set_result(self._reading(call, prompts, guide))
        except Exception as error:
            future.set_exception(error)
        return future

    def _read(self, call: TextCall) -> Reading:
        prompts = self._reader.read(call)
        wanted = self._reader.wanted(call, prompts[0].text)
        return self._reading(call, prompts, None) if wanted is None else self._guided(call, prompts, wanted)

    def _guided(self, call: TextCall, prompts: list[Prompt], wanted: Constraint | Frame) -> Reading:
        return self._reading(call, prompts, self._grammars.guide(wanted))

    def _reading(self, call: TextCall, prompts: list[Prompt], guide: Guide | None) -> Reading:
        return Reading(prompts, guide, self._reader.prediction(call), self._reader.closing)

    def arrived(self) -> list[tuple[TextCall, "Future[Reading]"]]:
        """The calls that have been read since the last time; a future holds what was wrong with its call."""
        done = [id for id, (_, future) in self._calls.items() if future.done()]
        return [self._calls.pop(id) for id in done]

    def cancel(self, id: str) -> bool:
        """Forget a call; whether it was here."""
        if id not in self._calls:
            return False
        self._calls.pop(id)[1].cancel()
        return True

    def __len__(self) -> int:
        return len(self._calls)

    def wait(self, seconds: float) -> None:
        """Until one of the calls here has been read, or the time is up."""
        wait([future for _, future in self._calls.values()], timeout=seconds, return_when=FIRST_COMPLETED)

    def close(self) -> bool:
        """End the threads; whether the model may be freed then."""
        self._prompts.shutdown(cancel_futures=True)
        self._constrained.shutdown(cancel_futures=True)
        self._pictured.shutdown(cancel_futures=True)
        return self._grammars.close()
