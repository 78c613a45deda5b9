"""One generation: the tokens it knows, how far they are computed, and how its text leaves it.

    waiting -> prefill -> generating -> (finished)          a slot is held in prefill and generating
       ^_________|____________|   preempted: its cache was given away, its tokens stay and are computed again

This file does no computing; the engine moves sequences through their states.
"""

from dataclasses import dataclass, field

from oxlo_local.calls import Text, TextCall, TokenLogprob, Usage
from oxlo_local.engines.text.grammar import Guide
from oxlo_local.engines.text.output import TextOutput
from oxlo_local.engines.text.prefix import Follow, Slot
from oxlo_local.engines.text.sampling import Sampler


@dataclass(slots=True)
class Request:
    """A call in the engine: how many of its choices are open, and what it used so far."""

    call: TextCall
    open_choices: int
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    started: bool = False

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)


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
    guide: Guide | None = None  # of a constrained answer
    sampler: Sampler | None = None  # made when the sequence first gets a slot
    slot: Slot | None = None
    follow: Follow | None = None
    leader: "Sequence | None" = None
    echo: str | None = None  # the prompt's text, still to be emitted
    echo_logprobs: list[TokenLogprob] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)  # of tokens whose text is held back

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def generating(self) -> bool:
        """Whether only the newest token is left to compute."""
        return self.slot is not None and len(self.slot.tokens) == len(self.tokens) - 1 and self.generated > 0

    @property
    def scores_prompt(self) -> bool:
        """Echo with logprobs: each prompt token's row is wanted, so nothing can come from the cache."""
        call = self.request.call
        return call.echo and call.logprobs is not None and self.generated == 0

    def accept(self, token: int) -> bool:
        """Tell the guide of a constrained answer what was drawn; whether the answer is whole with it."""
        if self.guide is None:
            return False
        self.guide.accept(token)
        return self.guide.complete

    def feed(self, piece: bytes, logprob: TokenLogprob | None) -> Text | None:
        """Take a token's bytes; the Text that may leave now, if any."""
        if logprob is not None:
            self._logprobs.append(logprob)
        text = self.output.feed(piece)
        return self._leave(text) if text else None

    def flush(self) -> Text | None:
        """What was held back, when no token follows."""
        text = self._leave(self.output.finish())
        return text if text.text or text.tokens else None

    def _leave(self, text: str) -> Text:
        count = self.output.release()
        logprobs, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return Text(self.request.call.id, self.choice, text, count, logprobs)
