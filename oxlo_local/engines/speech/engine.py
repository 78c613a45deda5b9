"""Speech of all files under way is computed in shared batches: each step encodes and decodes one.

A step, in order: let waiting calls in; take over chunks that were read on the side, and send threads for more; choose a
batch (`batch`); encode it, unless all of it was encoded before; find the language of files that did not say theirs;
decode; judge what came of it (`quality`), so that a chunk that fails waits for a batch at the next temperature; align
words; send up what is settled, in the order of each file. One thread owns all of this but the reading.
"""

import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from oxlo_local.calls import (
    Call,
    Done,
    Event,
    Failed,
    Gauges,
    Load,
    ModelFacts,
    SpeechCall,
    SpeechOptions,
    Started,
)
from oxlo_local.engines import Progress
from oxlo_local.engines.speech.batch import share
from oxlo_local.engines.speech.hearing import Asked, Hearing, Part, segments_of
from oxlo_local.engines.speech.listening import Chunk, Listening
from oxlo_local.engines.speech.quality import Try
from oxlo_local.engines.speech.timing import Spoken
from oxlo_local.engines.speech.whisper import Encoded, Whisper, cores
from oxlo_local.engines.turns import Turn
from oxlo_local.errors import OxloError, ServerError, UnsupportedValue

BATCH = {"cpu": 8, "cuda": 16}  # chunks
PARALLEL = {"cpu": 8, "cuda": 32}  # files
LONGEST = 24 * 3600.0  # seconds of a file
READERS = 4
# Seconds that a batch that is not full waits at most, for clips and for long files; and no longer than a usual step.
MOMENT, LINGER = 0.25, 1.0
REST = 0.05  # seconds between two looks at what was read
NICE = 5  # the gateway goes first

Picked = Sequence[tuple[Hearing, Part]]


@dataclass(slots=True)
class _Totals:
    steps: int = 0
    seconds: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0
    tokens: int = 0
    audio: float = 0.0


class SpeechEngine:
    """The speech engine behind the three verbs of `engines.Engine`. Raises LoadError for what it cannot load."""

    def __init__(self, load: Load, progress: Progress) -> None:
        options = load.options if isinstance(load.options, SpeechOptions) else SpeechOptions()
        if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, 0) < NICE:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        self._whisper = Whisper(Path(load.path), options)
        progress(1.0)
        device = self._whisper.device
        self._batch = options.batch or BATCH[device]
        self._parallel = options.parallel or PARALLEL[device]
        self._longest = options.longest or LONGEST
        self._waiting: deque[Asked] = deque()
        self._hearings: dict[str, Hearing] = {}
        readers = max(1, min(READERS, cores() // 2))
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="recordings")
        self._up: list[Event] = []
        self._totals = _Totals()
        self._since: float | None = None  # from when on there has been something to compute
        self.facts = ModelFacts(
            architecture="whisper",
            context_length=self._whisper.positions,
            parallel=self._parallel,
            vocab_size=self._whisper.vocab,
            parameters=self._whisper.parameters,
            file_bytes=(Path(load.path) / "model.bin").stat().st_size,
            chat=False,
            kind="speech",
            device="cpu" if device == "cpu" else "gpu",
            compute_type=self._whisper.compute_type,
            languages=self._whisper.languages,
            window=self._whisper.window,
        )
        where = f"{self._whisper.threads} CPU threads" if device == "cpu" else "the GPU"
        sys.stderr.write(
            f"{load.model}: {self._whisper.compute_type} on {where}, {self._batch} chunks a batch\n"
        )

    # -- the three verbs ----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Take a call; whatever is wrong with it comes up as Failed."""
        if not isinstance(call, SpeechCall):
            message = "this model transcribes speech and nothing else"
            self._up.append(Failed(call.id, UnsupportedValue.code, message, "model"))
            return
        try:
            self._waiting.append(Asked(call, self._whisper))
        except OxloError as error:
            self._up.append(Failed(call.id, error.code, error.message, error.param))

    def cancel(self, id: str) -> None:
        """Drop a call between two steps."""
        for asked in self._waiting:
            if asked.call.id == id:
                self._waiting.remove(asked)
                self._up.append(Failed(id, "cancelled", "the client left"))
                return
        if id in self._hearings:
            self._fail(self._hearings[id], "cancelled", "the client left")

    def busy(self) -> bool:
        """Whether a file is under way, or something to be said."""
        return bool(self._waiting or self._hearings or self._up)

    def step(self) -> list[Event]:
        """Compute one batch of chunks."""
        begun = time.monotonic()
        self._admit()
        self._read()
        picked = self._pick()
        if picked and not self._lingers(begun, picked):
            self._since = None
            self._compute(picked)
            self._totals.steps += 1
            self._totals.seconds += time.monotonic() - begun
        elif not self._up:
            self._rest(REST)
        for hearing in list(self._hearings.values()):
            self._up += hearing.events()
            if hearing.over:
                del self._hearings[hearing.id]
                hearing.leave()
                usage = hearing.usage()
                self._totals.audio += usage.audio_seconds
                self._up.append(Done(hearing.id, usage))
        events, self._up = self._up, []
        return events

    def gauges(self) -> Gauges:
        """Counters as of the last step."""
        totals = self._totals
        return Gauges(
            running=len(self._hearings),
            waiting=len(self._waiting),
            generated_tokens=totals.tokens,
            steps=totals.steps,
            step_seconds=totals.seconds,
            audio_seconds=totals.audio,
            encoder_seconds=totals.encoder,
            decoder_seconds=totals.decoder,
        )

    def close(self) -> None:
        """Free the model; calls still in the engine are forgotten."""
        for hearing in self._hearings.values():
            hearing.leave()
        self._readers.shutdown(cancel_futures=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._hearings) < self._parallel:
            asked = self._waiting.popleft()
            # As much as the one that has had least, so that it waits for nobody's past and nobody for its.
            had = min((hearing.had for hearing in self._hearings.values()), default=0)
            hearing = Hearing(asked, had)
            hearing.language = asked.call.language or (None if self._whisper.multilingual else "en")
            self._hearings[hearing.id] = hearing
            self._up.append(Started(hearing.id, 0, 0))

    def _read(self) -> None:
        """Take over what was read, and read on where there is room."""
        room = max(2, -(-2 * self._batch // max(1, len(self._hearings))))
        for hearing in list(self._hearings.values()):
            if hearing.reading is not None and hearing.reading.done():
                reading, hearing.reading = hearing.reading, None
                self._take_over(hearing, reading)
            over = hearing.listening is not None and hearing.listening.over
            if hearing.reading is None and not over and not hearing.gone and len(hearing.parts) < room:
                hearing.reading = self._readers.submit(self._more, hearing)

    def _more(self, hearing: Hearing) -> list[Chunk]:
        """On a reading thread: open the file, or read on."""
        if hearing.gone:
            return []
        if hearing.listening is None:
            whisper = self._whisper
            hearing.listening = Listening(hearing.asked.call, whisper.features, whisper.window, self._longest)
        return hearing.listening.more()

    def _take_over(self, hearing: Hearing, reading: "Future[list[Chunk]]") -> None:
        try:
            hearing.read(reading.result())
        except OxloError as error:
            self._fail(hearing, error.code, error.message, error.param)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._fail(hearing, ServerError.code, f"the file could not be read: {type(error).__name__}")

    def _rest(self, seconds: float) -> None:
        """Wait for something to be read."""
        reading = [hearing.reading for hearing in self._hearings.values() if hearing.reading is not None]
        if reading:
            wait(reading, timeout=seconds, return_when=FIRST_COMPLETED)

    def _lingers(self, now: float, picked: Picked) -> bool:
        """Whether to wait for more chunks: a full batch takes little longer than one that is nearly empty.

        Clips that come together are waited for a moment; files that are long for longer, but not at a clip's cost.
        """
        self._since = now if self._since is None else self._since
        hearings = self._hearings.values()
        if len(picked) >= self._batch or not any(hearing.reading is not None for hearing in hearings):
            return False
        opening = any(hearing.had == 0 and not hearing.parts and not hearing.over for hearing in hearings)
        whole = any(hearing.had == 0 and hearing.parts and hearing.read_whole for hearing in hearings)
        most = MOMENT if opening and whole else 0.0 if whole else LINGER
        usual = self._totals.seconds / max(1, self._totals.steps)
        return now - self._since < min(most, usual)

    # -- computing ----------------------------------------------------------------------------------------------------

    def _pick(self) -> list[tuple[Hearing, Part]]:
        hearings = list(self._hearings.values())
        turns = [Turn(hearing.keys(), hearing.had) for hearing in hearings]
        share(turns, self._batch)
        return [
            (hearing, hearing.parts[place])
            for hearing, turn in zip(hearings, turns, strict=True)
            for place in turn.picked
        ]

    def _compute(self, picked: Picked) -> None:
        picked = [(hearing, part) for hearing, part in picked if not hearing.gone]
        if not picked:
            return
        try:
            self._batched(picked)
        except RuntimeError as error:  # CTranslate2's, such as too little memory
            if len(picked) > 1:
                middle = len(picked) // 2
                self._compute(picked[:middle])
                self._compute(picked[middle:])
                return
            traceback.print_exc(file=sys.stderr)
            self._fail(picked[0][0], ServerError.code, f"this file could not be computed: {error}")

    def _batched(self, picked: Picked) -> None:
        begun = time.monotonic()
        encoded = self._encode(picked)
        encoder = time.monotonic()
        self._name_languages(picked, encoded)
        prompts = [hearing.asked.prompt(hearing.language or "en") for hearing, _ in picked]
        (first, part), *_ = picked
        call = first.asked.call
        temperature = call.temperatures[len(part.tries)]
        tries = self._whisper.decode(encoded, prompts, temperature, logprobs=call.logprobs)
        chosen = [hearing.chosen(part, tried) for (hearing, part), tried in zip(picked, tries, strict=True)]
        words = self._words(picked, chosen, encoded)
        # Nothing is kept before all has been computed, so that a batch that fails can be repeated in halves.
        for place, ((hearing, part), tried) in enumerate(zip(picked, tries, strict=True)):
            hearing.had += 1
            hearing.tokens += len(tried.tokens)
            self._totals.tokens += len(tried.tokens)
            if (settled := chosen[place]) is None:
                hearing.retry(part, tried, encoded.rows([place])[0] if part.row is None else part.row)
            else:
                segments = segments_of(hearing.id, part.chunk, settled, words.get(place, []), self._whisper)
                hearing.say(part, segments)
        self._totals.encoder += encoder - begun
        self._totals.decoder += time.monotonic() - encoder

    def _encode(self, picked: Picked) -> Encoded:
        rows = [part.row for _, part in picked if part.row is not None]
        if rows:
            return Encoded.of(rows)
        return self._whisper.encode([part.chunk.features for _, part in picked])

    def _name_languages(self, picked: Picked, encoded: Encoded) -> None:
        """Files that did not say theirs speak the language of their first chunk, which is always the first picked."""
        if all(hearing.language is not None for hearing, _ in picked):
            return
        for (hearing, _), (language, probability) in zip(picked, self._whisper.heard(encoded), strict=True):
            if hearing.language is None:
                hearing.language, hearing.probability = language, probability

    def _words(
        self, picked: Picked, chosen: Sequence[Try | None], encoded: Encoded
    ) -> dict[int, list[Spoken]]:
        """The words of those that asked for them, by place; aligned together where language and task are the same."""
        groups: dict[tuple[str, str], list[tuple[int, float, list[int]]]] = {}
        for place, ((hearing, part), tried) in enumerate(zip(picked, chosen, strict=True)):
            call = hearing.asked.call
            if tried is None or tried.silent or not call.words:
                continue
            text = [token for token in tried.tokens if token < self._whisper.end_of_text]
            if text:
                key = (hearing.language or "en", call.task)
                groups.setdefault(key, []).append((place, part.chunk.seconds, text))
        found: dict[int, list[Spoken]] = {}
        for (language, task), group in groups.items():
            places = [place for place, _, _ in group]
            rows = encoded if len(places) == len(encoded) else Encoded.of(encoded.rows(places))
            texts, seconds = [text for _, _, text in group], [seconds for _, seconds, _ in group]
            words = self._whisper.align(rows, texts, seconds, self._whisper.tokenizer(language, task))
            found |= dict(zip(places, words, strict=True))
        return found

    def _fail(self, hearing: Hearing, code: str, message: str, param: str | None = None) -> None:
        del self._hearings[hearing.id]
        hearing.leave()
        self._up.append(Failed(hearing.id, code, message, param, usage=hearing.usage()))
