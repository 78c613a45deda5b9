"""Continuous batching: calls become sequences, each step computes one batch for all of them, tokens become events.

A step, in order:

1. take over prompts that were read on the side, and forget cancelled calls;
2. admit: give waiting sequences a slot, with the longest prefix that any slot has computed (`prefix.place`);
3. plan which tokens to compute now (`batcher.plan`), and compute them (`Llama.decode`);
4. draw a token for every sequence whose newest row is there, turn it into text, finish what is complete.

What can go wrong, and whom it costs: no room in the cache (unified layout only) costs the idle cache used longest
ago, then the youngest sequence, which is put back and computed again later; a decode that fails is repeated in halves
until the sequence that breaks it stands alone, and only that one's request fails. One thread owns all of this; what
would take longer than a step (megabytes of prompt, compiling a grammar) happens beside it (`intake`, `grammar`).
"""

import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from oxlo_local.calls import (
    Call,
    CountCall,
    DetokenizeCall,
    Done,
    Event,
    Failed,
    Finished,
    FinishReason,
    Gauges,
    Load,
    ModelFacts,
    PromptCall,
    Started,
    Text,
    TextCall,
    TextOptions,
    TokenizeCall,
)
from oxlo_local.engines import Progress
from oxlo_local.engines.questions import Questions
from oxlo_local.engines.text.batcher import Piece, graphs, plan
from oxlo_local.engines.text.cache import Cache
from oxlo_local.engines.text.grammar import Grammars
from oxlo_local.engines.text.intake import Intake, Reading
from oxlo_local.engines.text.llama import CacheFull, DecodeFailed, Llama, Row
from oxlo_local.engines.text.measure import fewest_together, halfway
from oxlo_local.engines.text.prefix import Follow, Place, Slot
from oxlo_local.engines.text.reading import Reader
from oxlo_local.engines.text.sampling import Sampler, logprob, unscored
from oxlo_local.engines.text.sequence import Request, Sequence, choices
from oxlo_local.engines.text.sight import open_sight
from oxlo_local.engines.text.speculation import open_speculation
from oxlo_local.errors import OxloError, ServerError, UnsupportedValue

AHEAD = 32  # cells of a unified cache that each running sequence should find free for its next tokens


@dataclass(slots=True)
class _Totals:
    prefill: int = 0
    cached: int = 0
    generated: int = 0
    steps: int = 0
    seconds: float = 0.0
    preemptions: int = 0


class TextEngine:
    """The text engine behind the three verbs of `engines.Engine`. Raises LoadError when the model cannot be loaded."""

    def __init__(self, load: Load, progress: Progress) -> None:
        options = load.options if isinstance(load.options, TextOptions) else TextOptions()
        self._llama = Llama(Path(load.path), options, progress)
        self._sight = open_sight(self._llama)
        self._reader = Reader(self._llama, self._sight)
        self._cache = Cache(self._llama)
        self._running: dict[int, Sequence] = {}  # by slot
        self._waiting: list[Sequence] = []
        self._requests: dict[str, Request] = {}
        self._grammars = Grammars(self._llama)
        self._intake = Intake(self._reader, self._grammars)
        self._stops: dict[int, int] = {}
        self._up: list[Event] = []
        self._questions = Questions(self._llama, self._reader.prompt_of, self._reader.count)
        self._answered = False
        self._together = self._llama.options.together or fewest_together(self._llama, len(self._cache.slots))
        self._halfway = halfway(self._llama)
        self._speculation = open_speculation(self._llama, self._together)
        self._arrivals = count()
        self._strayed = 0
        self._totals = _Totals()
        self.facts = ModelFacts(
            architecture=self._llama.meta("general.architecture") or "unknown",
            context_length=self._llama.context_length,
            parallel=len(self._cache.slots),
            vocab_size=self._llama.n_vocab,
            parameters=self._llama.parameters,
            file_bytes=self._llama.file_bytes,
            chat=self._reader.chats,
            sees=self._sight is not None,
            thinks=self._reader.thinks,
            thinking_knows=self._reader.thinking_knows,
            device=self._llama.device,
            options=replace(
                self._llama.options,
                together=self._together,
                speculation="none" if self._speculation is None else self._speculation.kind,
            ),
        )

    # -- the three verbs ----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Take a call; whatever is wrong with it comes up as Failed."""
        if isinstance(call, TokenizeCall | DetokenizeCall | PromptCall | CountCall):
            self._questions.ask(call)
            return
        if not isinstance(call, TextCall):
            self._up.append(
                Failed(call.id, UnsupportedValue.code, "this model writes text and nothing else", "model")
            )
            return
        self._intake.take(call)

    def cancel(self, id: str) -> None:
        """Drop a call between two steps."""
        self._questions.cancel(id)
        if self._intake.cancel(id):
            self._up.append(Failed(id, "cancelled", "the client left"))
        elif id in self._requests:
            self._fail(id, "cancelled", "the client left")

    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._intake or self._up or self._questions.busy())

    def step(self) -> list[Event]:
        begun = time.monotonic()
        answers = self._questions.answers()
        self._answered = bool(answers) and not self._answered
        if self._answered:  # they need no decode; but never twice in a row, or a flood would stop all others
            return answers
        self._up += answers
        for call, future in self._intake.arrived():
            self._enter(call, future)
        self._admit()
        if self._speculation is not None:
            self._speculation.propose(self._running.values())
        pieces = self._plan()
        with self._sight.crossing.step() if self._sight is not None and pieces else nullcontext():
            for graph in graphs(pieces, self._together, mixed=self._llama.mixes):
                self._compute(self._still(graph))
        for slot in self._speculation.settle() if self._speculation is not None else ():
            self._cache.rewind(slot)
        if pieces:
            self._totals.steps += 1
            self._totals.seconds += time.monotonic() - begun
        elif not self._up:
            self._wait(0.05)
        if not self._running:
            self._strayed = self._cache.strayed()
        events, self._up = self._up, []
        return events

    def _wait(self, seconds: float) -> None:
        """Nothing can be computed: wait for what is being made on the side."""
        if self._intake:
            self._intake.wait(seconds)
        elif self._sight is not None and self._sight.busy:
            self._sight.wait(seconds)
        else:
            self._questions.wait(seconds)

    def gauges(self) -> Gauges:
        totals = self._totals
        return Gauges(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._intake),
            kv_used=self._cache.used(),
            kv_idle=self._cache.used(idle=True),
            kv_strayed=self._strayed,
            kv_total=self._cache.size,
            prefill_tokens=totals.prefill,
            cached_tokens=totals.cached,
            generated_tokens=totals.generated,
            steps=totals.steps,
            step_seconds=totals.seconds,
            preemptions=totals.preemptions,
            guessed_tokens=0 if self._speculation is None else self._speculation.proposed,
            accepted_tokens=0 if self._speculation is None else self._speculation.accepted,
        )

    def close(self) -> None:
        """Free the model; calls still in the engine are forgotten."""
        idle = self._intake.close()
        self._questions.close()
        if self._sight is not None:
            self._sight.close()
        for sequence in [*self._running.values(), *self._waiting]:
            if sequence.sampler:
                sequence.sampler.close()
        if self._speculation is not None:
            self._speculation.close()
        if idle:
            self._llama.close()

    # -- in -----------------------------------------------------------------------------------------------------------

    def _enter(self, call: TextCall, future: "Future[Reading]") -> None:
        try:
            reading = future.result()
            sequences = choices(reading, call, context=self._llama.context_length, arrivals=self._arrivals)
        except OxloError as error:
            self._up.append(Failed(call.id, error.code, error.message, error.param))
            return
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._up.append(Failed(call.id, ServerError.code, f"the prompt could not be read: {error}"))
            return
        self._requests[call.id] = sequences[0].request
        self._waiting += sequences

    def _admit(self) -> None:
        """Give slots to waiting sequences in order of arrival; one that follows another lets later ones pass."""
        self._stops.clear()
        idle = len(self._cache.slots) - len(self._running)
        for sequence in list(self._waiting):
            if idle == 0:
                return
            where = self._where(sequence)
            if where is None or not self._has_room(sequence):
                return
            if isinstance(where, Follow):
                sequence.follow, sequence.leader = where, self._running[where.leader]
                self._stops[where.leader] = min(where.length, self._stops.get(where.leader, where.length))
                continue
            if self._sight is not None and sequence.images:
                try:
                    if not self._sight.ready(sequence.request.call.id, sequence.images, where.keep):
                        continue  # those behind it need not wait for its images
                except OxloError as error:
                    self._fail(sequence.request.call.id, error.code, error.message, error.param)
                    return
            self._waiting.remove(sequence)
            self._start(sequence, where)
            idle -= 1

    def _where(self, sequence: Sequence) -> Place | Follow | None:
        follow = sequence.follow
        if follow is not None:
            slot = self._cache.slots[follow.leader]
            if self._running.get(follow.leader) is sequence.leader and len(slot.tokens) < follow.length:
                return follow
            sequence.follow = sequence.leader = None
        return self._cache.place(sequence.tokens, reuse=not sequence.scores_prompt, images=sequence.images)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the shared cells of a unified cache can take the sequence beside the running ones.

        Prefixes shared between them count twice, so this errs towards waiting; a preempted sequence that came back too
        early would only be preempted again.
        """
        if not self._llama.unified or not self._running:
            return True
        known = sum(len(running.tokens) + AHEAD for running in self._running.values())
        return known + len(sequence.tokens) + AHEAD <= self._llama.context_length

    def _start(self, sequence: Sequence, where: Place) -> None:
        slot = self._cache.enter(where, sequence.tokens, sequence.images)
        keep = len(slot.tokens)
        sequence.slot = slot
        self._running[slot.index] = sequence
        request = sequence.request
        if sequence.sampler is None:
            call = request.call
            sequence.sampler = Sampler(
                self._llama,
                call.sampling,
                choice=sequence.choice,
                prompt=sequence.prompt,
                alternatives=call.logprobs,
                guide=sequence.guide,
            )
            if sequence.choice % call.n == 0:
                request.cached_tokens += keep
            self._totals.cached += keep
        sequence.sampler.attach(slot.index)
        if not request.started:
            request.started = True
            self._up.append(Started(request.call.id, request.prompt_tokens, request.cached_tokens))

    # -- computing ----------------------------------------------------------------------------------------------------

    def _plan(self) -> list[Piece]:
        whole = self._llama.eye is not None and self._llama.eye.whole
        works = [
            sequence.work(self._stops.get(slot), whole=whole)
            for slot, sequence in sorted(self._running.items(), key=lambda item: item[1].arrival)
        ]
        options = self._llama.options
        pieces = plan(works, batch=options.batch or 1, chunk=options.chunk or 1, halfway=self._halfway)
        computed = {piece.slot for piece in pieces}
        for slot, sequence in self._running.items():
            sequence.passed = 0 if slot in computed else sequence.passed + 1
        return pieces

    def _still(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Those that stand as planned: a failure takes all choices of its request along, a preemption clears a slot."""
        return [
            piece
            for piece in pieces
            if piece.slot in self._running and piece.start == len(self._cache.slots[piece.slot].tokens)
        ]

    def _compute(self, pieces: list[Piece]) -> None:
        """Decode `pieces` and draw from their rows; on failure make room, or find the piece that breaks the batch."""
        if not pieces:
            return
        try:
            with self._grammars.beside(
                [guide for piece in pieces if (guide := self._running[piece.slot].guide)]
            ):
                rows = self._decode(pieces)
        except CacheFull:
            self._make_room(pieces)
            return
        except DecodeFailed as error:
            self._halve(pieces, error)
            return
        for piece in pieces:
            sequence = self._running[piece.slot]
            count = sequence.computed(piece)
            if count > 1 or not sequence.generated:
                self._totals.prefill += count
        for row in rows:
            self._draw(self._running.get(row.slot), row)

    def _decode(self, pieces: list[Piece]) -> list[Row]:
        if not pieces[0].image:
            return self._llama.decode(pieces, lambda slot: self._running[slot].ahead)
        (piece,) = pieces  # an image has a graph of its own
        return self._llama.decode_rows(piece, *self._running[piece.slot].rows(piece))

    def _make_room(self, pieces: list[Piece]) -> None:
        """Free cells: those for guesses, an idle cache, or the youngest sequence's."""
        guessing = {piece.slot for piece in pieces if self._running[piece.slot].guess}
        if guessing:
            for slot in guessing:
                self._running[slot].guess = None
            pieces = [
                Piece(piece.slot, piece.start, 1, "last", lag=piece.lag) if piece.slot in guessing else piece
                for piece in pieces
            ]
        elif not self._cache.forget_oldest():
            youngest = max(self._running.values(), key=lambda sequence: sequence.arrival)
            if len(self._running) > 1:
                self._preempt(youngest)
            else:
                message = "the KV cache has no room for this request alone"
                self._fail(youngest.request.call.id, ServerError.code, message)
        self._compute(self._still(pieces))

    def _preempt(self, sequence: Sequence) -> None:
        self._cache.forget(self._leave_slot(sequence))
        self._waiting.insert(0, sequence)
        self._totals.preemptions += 1

    def _halve(self, pieces: list[Piece], error: DecodeFailed) -> None:
        for piece in pieces:
            self._cache.rewind(self._cache.slots[piece.slot])
        if len(pieces) == 1:
            sequence = self._running[pieces[0].slot]
            self._fail(
                sequence.request.call.id, ServerError.code, f"this request could not be computed: {error}"
            )
            return
        middle = len(pieces) // 2
        for half in (pieces[:middle], pieces[middle:]):
            self._compute(self._still(half))

    # -- out ----------------------------------------------------------------------------------------------------------

    def _draw(self, sequence: Sequence | None, row: Row) -> None:
        if sequence is None or sequence.sampler is None or not sequence.told_by(row):
            return
        call = sequence.request.call
        if sequence.scores_prompt and row.position < sequence.prompt_length - 1:
            self._score(sequence, row)
            return
        self._echo(sequence)
        if sequence.limit == 0:
            self._finish(sequence, "length")
            return
        try:
            token, scored = sequence.sampler.sample(row, sequence.due)
        except OxloError as error:
            self._fail(call.id, error.code, error.message, error.param)
            return
        if token in self._llama.eog:
            self._finish(sequence, "stop")
            return
        sequence.take(token)
        self._totals.generated += 1
        piece = self._llama.piece(token)
        if sequence.channels is not None:
            piece = piece or self._reader.markers.get(token, b"")
        self._up += sequence.feed(piece, scored)
        if sequence.accept(token) or sequence.complete:
            self._finish(sequence, "stop")
        elif sequence.generated >= sequence.limit:
            self._finish(sequence, "length")

    def _score(self, sequence: Sequence, row: Row) -> None:
        if row.position == 0:  # also once more, where the cache was given away or lost in mid-prompt
            sequence.echo_logprobs = [unscored(self._llama, sequence.tokens[0])]
        token = sequence.tokens[row.position + 1]
        alternatives = sequence.request.call.logprobs or 0
        sequence.echo_logprobs.append(logprob(self._llama, self._llama.logits(row), token, alternatives))

    def _echo(self, sequence: Sequence) -> None:
        if sequence.echo is not None:
            if sequence.scores_prompt and sequence.prompt_length == 1:
                sequence.echo_logprobs.append(unscored(self._llama, sequence.tokens[0]))
            text = Text(sequence.request.call.id, sequence.choice, sequence.echo, 0, sequence.echo_logprobs)
            self._up.append(text)
            sequence.echo, sequence.echo_logprobs = None, []

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._up += sequence.flush(whole=reason == "stop")
        self._leave_slot(sequence)
        self._drop(sequence)
        request = sequence.request
        id = request.call.id
        self._up.append(Finished(id, sequence.choice, sequence.ending(reason), sequence.output.met))
        request.open_choices -= 1
        if request.open_choices == 0:
            del self._requests[id]
            self._up.append(Done(id, request.usage))

    def _fail(self, id: str, code: str, message: str, param: str | None = None) -> None:
        request = self._requests.pop(id)
        if self._sight is not None:
            self._sight.cancel(id)
        for sequence in [s for s in self._running.values() if s.request is request]:
            self._leave_slot(sequence)
            self._drop(sequence)
        for sequence in [s for s in self._waiting if s.request is request]:
            self._waiting.remove(sequence)
            self._drop(sequence)
        self._up.append(Failed(id, code, message, param, request.usage))

    def _leave_slot(self, sequence: Sequence) -> Slot:
        slot = sequence.slot
        assert slot is not None
        if sequence.sampler:
            sequence.sampler.detach()
        for view in sequence.images:
            view.rows = None
        del self._running[slot.index]
        self._cache.leave(slot)
        sequence.slot = None
        return slot

    def _drop(self, sequence: Sequence) -> None:
        if sequence.sampler:
            sequence.sampler.close()
            sequence.sampler = None
