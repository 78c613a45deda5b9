"""One generation: the tokens it knows, how far they are computed, and how its text leaves it.

    waiting -> prefill -> generating -> (finished)          a slot is held in prefill and generating
       ^_________|____________|   preempted: its cache was given away, its tokens stay and are computed again

This file does no computing; the engine moves sequences through their states.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from msgspec.structs import replace

from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    CallBroken,
    FinishReason,
    Output,
    Reasoning,
    Text,
    TextCall,
    TokenLogprob,
    Usage,
)
from oxlo_local.engines.text.batcher import Piece, Work
from oxlo_local.engines.text.channels import Argued, Begun, Broken, Channels, Said, Spoken, Thought
from oxlo_local.engines.text.eye import F32
from oxlo_local.engines.text.grammar import Guide
from oxlo_local.engines.text.guess import Guess, Lookup, Trust
from oxlo_local.engines.text.intake import Reading
from oxlo_local.engines.text.llama import Row
from oxlo_local.engines.text.output import TextOutput
from oxlo_local.engines.text.prefix import Follow, Slot
from oxlo_local.engines.text.runs import I32, at, boundary, lag
from oxlo_local.engines.text.sampling import Sampler
from oxlo_local.engines.text.sight import View


@dataclass(slots=True)
class Request:
    """A call in the engine: how many of its choices are open, and what it used so far."""

    call: TextCall
    open_choices: int
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction: int = 0
    rejected_prediction: int = 0
    started: bool = False

    @property
    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.accepted_prediction,
            self.rejected_prediction,
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request."""

    request: Request
    choice: int
    arrival: int
    tokens: list[int]  # prompt, then what was generated; the last generated one is not computed yet
    prompt_length: int
    limit: int  # tokens to generate at most
    output: TextOutput
    channels: Channels | None = None  # of an answer that is more than text
    guide: Guide | None = None  # of a constrained answer
    closing: Tokens[int] = ()  # what ends a thought
    thought: int = 0  # tokens of its thoughts
    images: list[View] = field(default_factory=list)  # in its prompt
    prediction: Tokens[int] = ()  # what its client thinks that the answer will be
    lookup: Lookup | None = None  # made when it first guesses
    trust: Trust = field(default_factory=Trust)  # in what a draft model guesses
    guess: Guess | None = None  # of what comes behind its newest token, within one step
    sampler: Sampler | None = None  # made when the sequence first gets a slot
    slot: Slot | None = None
    passed: int = 0  # steps in a row in which others were computed and it was not
    follow: Follow | None = None
    leader: "Sequence | None" = None
    echo: str | None = None  # the prompt's text, still to be emitted
    echo_logprobs: list[TokenLogprob] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)  # of tokens whose text is held back
    _closed: int = 0  # tokens of `closing` that have come
    _unsaid: int = 0  # tokens that the channels hold back
    _unsaid_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.prompt_length]

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def room(self) -> int:
        """Tokens that may follow the next one."""
        return self.limit - self.generated - 1

    @property
    def ahead(self) -> list[int]:
        """Its tokens, and those it guesses."""
        return self.tokens if self.guess is None else self.tokens + self.guess.tokens

    @property
    def generating(self) -> bool:
        """Whether only the newest token is left to compute."""
        return self.slot is not None and len(self.slot.tokens) == len(self.tokens) - 1 and self.generated > 0

    @property
    def scores_prompt(self) -> bool:
        """Echo with logprobs: each prompt token's row is wanted, so nothing can come from the cache."""
        call = self.request.call
        return call.echo and call.logprobs is not None and self.generated == 0

    def work(self, stop: int | None, *, whole: bool) -> Work:
        """What is to be computed of it, up to `stop` (None: its end) and within one run of an image or of tokens."""
        assert self.slot is not None
        computed, length = len(self.slot.tokens), len(self.tokens)
        image = at(self.images, computed) is not None
        return Work(
            self.slot.index,
            computed,
            length,
            stop=min(length if stop is None else stop, boundary(self.images, computed) or length),
            generating=self.generating,
            fresh=self.generating and self.generated == 1,
            every_logit=self.scores_prompt,
            image=image,
            whole=image and whole,
            lag=lag(self.images, computed),
            guess=0 if self.guess is None else len(self.guess.tokens),
            passed=self.passed,
        )

    def rows(self, piece: Piece) -> tuple[F32, I32 | None]:
        """The rows of a piece of an image, shape (piece.count, width), and their positions (None: in a row)."""
        view = at(self.images, piece.start)
        assert view is not None and view.rows is not None
        here = piece.start - view.start
        positions = view.positions(piece.start, piece.count, view.start - piece.lag)
        return view.rows[here : here + piece.count], positions

    def computed(self, piece: Piece) -> int:
        """Note that a piece of it is in the cache; how many tokens that were, its guess aside."""
        assert self.slot is not None
        known = self.tokens[piece.start : piece.start + piece.count]
        self.slot.tokens += known
        if self.guess is not None:
            self.guess.checked = True
            if self.guess.predicted:
                self.request.rejected_prediction += len(self.guess.tokens)
        return len(known)

    @property
    def due(self) -> int | None:
        """The token that has to come, where what may be thought is spent: the next one of a thought's end."""
        budget = self.request.call.thinking.budget
        if budget is None or self.channels is None or not self.channels.thinking or self.thought < budget:
            return None
        return self.closing[self._closed] if self._closed < len(self.closing) else None

    def take(self, token: int) -> None:
        """The next token was drawn; one that was guessed is computed already."""
        if self.channels is not None and self.channels.thinking:
            self._closed += token == self.due
            self.thought += 1
        else:
            self._closed = 0
        self.tokens.append(token)
        self.request.completion_tokens += 1
        if self.guess is None or self.slot is None or not self.guess.check(token):
            return
        self.slot.tokens.append(token)
        if self.guess.predicted:
            self.request.accepted_prediction += 1
            self.request.rejected_prediction -= 1

    def told_by(self, row: Row) -> bool:
        """Whether a row tells its next token: rows behind a guess that was wrong tell nothing."""
        return self.slot is not None and row.position < len(self.slot.tokens)

    def accept(self, token: int) -> bool:
        """Tell the guide of a constrained answer what was drawn; whether the answer is whole with it."""
        if self.guide is None:
            return False
        self.guide.accept(token)
        self.begin()
        return self.guide.complete

    def begin(self) -> None:
        """Let the guide hold once the answer proper begins: it says nothing of what the model thinks before."""
        if self.guide is not None and not self.guide.begun and (not self.channels or self.channels.answering):
            self.guide.begin()

    def ending(self, reason: FinishReason) -> FinishReason:
        """Why it ended, if it was not cut off: for the sake of its calls, where it made any."""
        called = self.channels is not None and self.channels.called
        return "tool_calls" if called and reason == "stop" else reason

    def feed(self, piece: bytes, logprob: TokenLogprob | None) -> list[Output]:
        """Take a token's bytes; what may leave now."""
        if logprob is not None:
            self._logprobs.append(logprob)
        text = self.output.feed(piece)
        return self._leave(text) if text else []

    def flush(self, *, whole: bool) -> list[Output]:
        """What was held back, when no token follows. `whole`: the model ended its answer; it was not cut off."""
        left = self._leave(self.output.finish())
        if self.channels is not None:
            left += self._told(self.channels.finish(whole=whole))
            if self._unsaid:
                left.append(Text(self.request.call.id, self.choice, "", self._unsaid))
        return [output for output in left if output.tokens or not isinstance(output, Text) or output.text]

    @property
    def complete(self) -> bool:
        """Whether nothing more is wanted of it."""
        return self.output.stopped or (self.channels is not None and self.channels.complete)

    def _leave(self, text: str) -> list[Output]:
        count = self.output.release()
        logprobs, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        if self.channels is None:
            return [Text(self.request.call.id, self.choice, text, count, logprobs)]
        thought = self.channels.thinking
        said = self.channels.feed(text)
        self._unsaid += count
        if thought or self.channels.thinking:
            self.request.reasoning_tokens += count
        else:
            self._unsaid_logprobs += logprobs
        return self._told(said)

    def _told(self, said: list[Said]) -> list[Output]:
        """As events; the last one brings the tokens of all, and of what was held back before."""
        told = [self._event(one) for one in said]
        if told:
            last = replace(told[-1], tokens=self._unsaid)
            # Probabilities are told of content only; those of a marker go with the text behind it, or with none.
            told[-1] = replace(last, logprobs=self._unsaid_logprobs) if isinstance(last, Text) else last
            self._unsaid, self._unsaid_logprobs = 0, []
        return told

    def _event(self, said: Said) -> Output:
        id = self.request.call.id
        match said:
            case Thought():
                return Reasoning(id, self.choice, said.text, 0)
            case Begun():
                return CallBegun(id, self.choice, said.index, said.id, said.name, 0)
            case Argued():
                return CallArguments(id, self.choice, said.index, said.text, 0)
            case Broken():
                return CallBroken(id, self.choice, said.index, said.text, 0)
            case Spoken():
                return Text(id, self.choice, said.text, 0)


def choices(reading: Reading, call: TextCall, *, context: int, arrivals: Iterator[int]) -> list[Sequence]:
    """The sequences of a call whose prompts were read, in order. Raises BadRequest for what is no stop string."""
    prompts = reading.prompts
    outputs = [TextOutput(call.stop) for _ in range(len(prompts) * call.n)]
    request = Request(call, len(outputs), sum(len(prompt.tokens) for prompt in prompts))
    found = []
    for choice, output in enumerate(outputs):
        prompt = prompts[choice // call.n]
        room = context - len(prompt.tokens)
        sequence = Sequence(
            request,
            choice,
            next(arrivals),
            list(prompt.tokens),
            len(prompt.tokens),
            limit=room if call.max_tokens is None else min(call.max_tokens, room),
            output=output,
            channels=prompt.channels and prompt.channels(),
            echo=prompt.text if call.echo else None,
            guide=reading.guide and reading.guide.copy(),
            images=[View(view.start, view.seen, view.image) for view in prompt.images],
            closing=reading.closing,
            prediction=reading.prediction,
        )
        sequence.begin()
        found.append(sequence)
    return found
