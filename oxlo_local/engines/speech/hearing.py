"""One file under way: what is asked of it, the chunks that wait, and its transcript in order of time.

Chunks are computed in whatever order batches bring about; what they say goes up in the order of the recording.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from oxlo_local.calls import Event, Heard, Language, Segment, SpeechCall, TokenLogprob, Usage
from oxlo_local.engines.speech.batch import Key
from oxlo_local.engines.speech.listening import Chunk, Listening
from oxlo_local.engines.speech.quality import Try, best
from oxlo_local.engines.speech.timing import PRECISION, Clock, Spoken, noticed, pieces_of, settled, within
from oxlo_local.engines.speech.whisper import Whisper
from oxlo_local.errors import ContextLengthExceeded, UnsupportedValue

LONGEST_TOKEN = 64  # characters: what of a long prompt has to be read to have its last tokens


@dataclass
class Part:
    """A chunk, how it was decoded so far, and its row of the encoder's output once it has to be decoded again."""

    chunk: Chunk
    tries: list[Try] = field(default_factory=list)
    row: NDArray[np.generic] | None = None


class Asked:
    """What a call wants, in the model's words. Raises UnsupportedValue and ContextLengthExceeded."""

    def __init__(self, call: SpeechCall, whisper: Whisper) -> None:
        self.call = call
        self._whisper = whisper
        if call.language is not None and call.language not in whisper.languages:
            known = ", ".join(whisper.languages)
            raise UnsupportedValue(
                f"this model does not know the language '{call.language}'; it knows {known}", param="language"
            )
        if call.task == "translate" and not whisper.multilingual:
            raise UnsupportedValue("this model knows English alone and translates nothing", param="model")
        self._before = self._context()
        self.length = len(self.prompt(call.language or "en"))

    def _context(self) -> list[int]:
        """The tokens that the prompt and the expected words take; of a prompt the last ones count, as OpenAI has it."""
        call, whisper = self.call, self._whisper
        tokenizer = whisper.tokenizer("en")
        most = whisper.positions // 2 - 1
        hot = tokenizer.encode(" " + call.hotwords.strip()) if call.hotwords else []
        if len(hot) > most:
            raise ContextLengthExceeded(
                f"the hotwords take {len(hot)} tokens, of which this model reads {most}: send fewer",
                param="hotwords",
            )
        tail = (call.prompt or "").strip()[-most * LONGEST_TOKEN :]
        said = tokenizer.encode(" " + tail) if tail else []
        said = said[len(said) - min(len(said), most - len(hot)) :]
        return [tokenizer.sot_prev, *hot, *said] if hot or said else []

    def prompt(self, language: str) -> list[int]:
        """The tokens before the text; equally many in every language."""
        tokenizer = self._whisper.tokenizer(language, self.call.task)
        plain = [] if self.call.timestamps else [tokenizer.no_timestamps]
        return [*self._before, *tokenizer.sot_sequence, *plain]


@dataclass
class Hearing:
    """The state of a call. `had` counts the chunks that batches gave it."""

    asked: Asked
    had: int
    listening: Listening | None = None
    reading: "Future[list[Chunk]] | None" = None
    parts: list[Part] = field(default_factory=list)  # to be computed, earliest first
    tokens: int = 0  # of all that was said
    language: str | None = None
    probability: float = 1.0
    gone: bool = False  # nobody waits for it any more
    _said: dict[int, tuple[Chunk, list[Segment]]] = field(default_factory=dict)
    _named: bool = False  # whether the language went up
    _next: int = 0  # the chunk whose text goes up next
    _count: int = 0  # segments that went up
    _read: float = 0.0  # seconds of the file that were read
    _heard: float = 0.0  # and of which it is known what was said

    @property
    def id(self) -> str:
        """The call's."""
        return self.asked.call.id

    @property
    def read_whole(self) -> bool:
        """Whether all of the file is read."""
        return self.listening is not None and self.listening.over and self.reading is None

    @property
    def over(self) -> bool:
        """Whether all of the file is read and said."""
        return self.read_whole and not self.parts and not self._said

    def keys(self) -> list[Key]:
        """What the chunks that wait have to have in common with others in a batch."""
        call = self.asked.call
        return [
            Key(call.temperatures[len(part.tries)], part.row is not None, self.asked.length, call.logprobs)
            for part in self.parts
        ]

    def read(self, chunks: Sequence[Chunk]) -> None:
        """Take over what was read."""
        self.parts += [Part(chunk) for chunk in chunks]
        self._read = self.listening.seconds if self.listening is not None else 0.0

    def chosen(self, part: Part, tried: Try) -> Try | None:
        """What a chunk says after this try, None if it has to be tried again."""
        again = tried.fails and len(part.tries) + 1 < len(self.asked.call.temperatures)
        return None if again else best([*part.tries, tried])

    def retry(self, part: Part, tried: Try, row: NDArray[np.generic]) -> None:
        """Keep what the next try needs."""
        part.tries.append(tried)
        part.row = row

    def say(self, part: Part, segments: list[Segment]) -> None:
        """What a chunk says, once it is settled."""
        self.parts.remove(part)
        self._said[part.chunk.index] = (part.chunk, segments)

    def events(self) -> list[Event]:
        """What can go up by now, in the order of the recording."""
        if self.listening is None:
            return []
        up: list[Event] = []
        if not self._named and (self.language is not None or self.over):
            self._named = True
            up.append(Language(self.id, self.language or "", self.probability, self.listening.declared))
        heard = self._heard
        while self._next in self._said:
            chunk, segments = self._said.pop(self._next)
            for segment in segments:
                up.append(structs.replace(segment, index=self._count))
                self._count += 1
            heard = chunk.end
            self._next += 1
        if not self.parts and not self._said:  # all that was read is said, or was silence
            heard = max(heard, self._read)
        if heard > self._heard:
            self._heard = heard
            of = self.listening.seconds if self.listening.over else self.listening.declared
            up.append(Heard(self.id, round(heard, 2), None if of is None else round(of, 2)))
        return up

    def usage(self) -> Usage:
        """What it took so far."""
        seconds = self._heard if self.listening is None or not self.listening.over else self.listening.seconds
        return Usage(
            completion_tokens=self.tokens, audio_seconds=round(seconds, 3), language=self.language or ""
        )

    def leave(self) -> None:
        """Let go of the file, now or when the thread that reads it is through."""
        self.gone = True
        if self.reading is None:
            self._close()
        else:
            self.reading.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        if self.listening is not None:
            self.listening.close()


def segments_of(
    id: str, chunk: Chunk, tried: Try, words: Sequence[Spoken], whisper: Whisper
) -> list[Segment]:
    """What a chunk says, with the times of the recording. Nothing where it is silence."""
    if tried.silent:
        return []
    clock = Clock(chunk.stretches)
    measures = (tried.temperature, tried.avg_logprob, tried.compression, tried.no_speech_prob)
    left = settled(noticed(words, chunk.stretches))
    likely = iter(likelihoods(tried, whisper))
    segments = []
    for piece in pieces_of(tried.tokens, chunk.seconds, whisper.first_timestamp, whisper.end_of_text):
        text = [token for token in piece.tokens if token < whisper.end_of_text]
        here, left = taken(left, len(text))
        timed, here = within(piece, here)
        start, end = clock.span(timed.start, timed.end)
        chances = list(islice(likely, len(text)))
        said = whisper.text(text)
        if said.strip():
            spoken = [clock.word(word) for word in here]
            segments.append(
                Segment(
                    id,
                    0,
                    start,
                    max(end, round(start + PRECISION, 2)),
                    said,
                    list(piece.tokens),
                    *measures,
                    spoken,
                    chances,
                )
            )
    return segments


def taken(words: Sequence[Spoken], tokens: int) -> tuple[list[Spoken], list[Spoken]]:
    """The words that so many tokens make up, and the others."""
    count = 0
    for number, word in enumerate(words):
        if count >= tokens:
            return list(words[:number]), list(words[number:])
        count += word.tokens
    return list(words), []


def likelihoods(tried: Try, whisper: Whisper) -> list[TokenLogprob]:
    """Each token of text with its probability, where that was asked for."""
    out = []
    for token, chance in zip(tried.tokens, tried.logprobs, strict=False):
        if token < whisper.end_of_text:
            data = whisper.piece(token)
            out.append(TokenLogprob(data.decode("utf-8", "replace"), list(data), chance, []))
    return out
