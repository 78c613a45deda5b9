"""Measures speech: what the API costs beside the bare library, what batches gain, and the memory that hours take.

1. rate: the same files through the API and by faster-whisper's own batched pipeline, called in this process with the
   same threads, number format, beam and batch, turn by turn; the bar is 3 % more at most. Also how many seconds of
   sound a second of work transcribes. Of jfk.flac over and over, where shared/audio is beside the checkout, and of
   sentences that espeak-ng speaks, else of the recordings that the tests have.
2. batch: four clips at once against one after another, and the bare library's gain when it encodes and decodes the same
   four together; the bar is 85 % of that gain, and never to be slower than serial. Says what encoder and decoder take.
3. memory: a FLAC file of eight hours; the bar is 300 MB beyond the loaded model. And how soon the server answers
   others meanwhile.

Each for two models. `tiny` has the shape of Whisper's tiny (39 M parameters) and random numbers in it; it says one text
of so many letters of every chunk, so that it does a real model's work. oxlo-demo-speech is so small that what is around
it shows; the library fills its chunks of 8 seconds up to 30, so the comparison is not fair to the library there.
Every figure comes from this run on this machine. Exit status 1 when a bar is missed.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, cast

import av
import httpx
import msgspec
import numpy as np
import psutil
from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_server import Check, machine, say, serving  # noqa: E402  # after the path that leads to this checkout

from oxlo_local import random_whisper  # noqa: E402
from oxlo_local.cli import figures  # noqa: E402
from oxlo_local.client import Address  # noqa: E402
from oxlo_local.engines.speech.whisper import cores, preferred  # noqa: E402

F32 = NDArray[np.float32]
RATE = 16_000
TINY = ROOT / "build" / "random-whisper-tiny"
TINY_LETTERS = 110  # in 30 s: about as many tokens as somebody says in that time
DEMO = ROOT / "oxlo_local" / "embedded" / "oxlo-demo-speech"
JFK = ROOT.parent / "shared" / "audio" / "jfk.flac"
RECORDINGS = ROOT / "tests" / "recordings" / "demo_speech"
BATCH, BEAM, CLIPS = 8, 5, 4
PING_SECONDS = 0.2
RATE_BAR, GAIN_BAR, MEMORY_BAR = 1.03, 0.85, 300e6
TEXT = (
    "Open the red door. Turn on the lamp in the kitchen, please. Seven people came to the station at nine, and four of "
    "them took the first train. Nobody had told them that the bridge was closed, so they went back and waited for the "
    "bus. Play the next song. Stop the music and close the window."
)


@dataclass(frozen=True)
class Options:
    """The command line."""

    models: tuple[str, ...]
    parts: frozenset[str]
    threads: int
    rounds: int
    seconds: float
    hours: float
    folder: Path
    as_json: bool


class Result(msgspec.Struct, frozen=True):
    """Everything that was measured."""

    machine: str
    checks: list[Check]


# -- what is heard ----------------------------------------------------------------------------------------------------


def over_and_over(sound: F32, seconds: float) -> F32:
    """The sound repeated to that length."""
    return np.tile(sound, int(np.ceil(seconds * RATE / len(sound))))[: int(seconds * RATE)]


def written(path: Path, sound: F32) -> Path:
    """A WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def spoken(folder: Path) -> tuple[str, F32]:
    """Sentences from espeak-ng, else the tests' recordings of it; half a second of silence after each."""
    pause = np.zeros(RATE // 2, np.float32)
    program = shutil.which("espeak-ng")
    if program is None:
        found = [decode_audio(str(path)) for path in sorted(RECORDINGS.glob("*.flac"))]
        return "the tests' recordings", np.concatenate([part for one in found for part in (one, pause)])
    pieces: list[F32] = []
    for number, sentence in enumerate(TEXT.split(". ")):
        path = folder / "sentence.wav"
        voice = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")[number % 4]
        subprocess.run(
            [program, "-v", voice, "-s", str(140 + 10 * (number % 3)), "-w", path, sentence], check=True
        )
        pieces += [decode_audio(str(path)), pause]
    return "generated speech", np.concatenate(pieces)


def sounds(folder: Path) -> dict[str, F32]:
    """What is transcribed, by name, once each."""
    name, generated = spoken(folder)
    looped = {"jfk.flac": decode_audio(str(JFK))} if JFK.is_file() else {}
    return {**looped, name: generated}


# -- both sides -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A speech model in CTranslate2's form: what `oxlo serve` is given, and the seconds that it hears at once."""

    name: str
    folder: Path
    argument: str
    window: int


MODELS = {
    "tiny": Model("whisper-tiny, random", TINY, str(TINY), 30),
    "demo": Model("oxlo-demo-speech", DEMO, DEMO.name, 8),
}


def made(model: Model) -> Model:
    """The random model of a real shape is made once."""
    if not (model.folder / "model.bin").is_file():
        say(f"making {model.folder.relative_to(ROOT)} (40 MB, once)")
        random_whisper.write(model.folder, replace(random_whisper.SIZES["tiny"], said=TINY_LETTERS))
    return model


class Api:
    """A server of this checkout over one speech model."""

    def __init__(self, address: Address, model: str) -> None:
        self._http = httpx.Client(
            base_url=address.url, timeout=None, headers={"authorization": f"Bearer {address.token}"}
        )
        self._model = model

    def hear(self, path: Path) -> str:
        """The text of a file."""
        fields = {"model": self._model, "language": "en"}
        with path.open("rb") as file:
            answer = self._http.post("/v1/audio/transcriptions", data=fields, files={"file": file})
        if not answer.is_success:
            raise SystemExit(f"{path.name}: {answer.status_code}: {answer.text}")
        return cast(str, answer.json()["text"])

    def alive(self) -> None:
        """Ask whether the server lives, as a client beside the others would."""
        self._http.get("/healthz").raise_for_status()

    @property
    def worker(self) -> psutil.Process:
        """The process that transcribes."""
        return psutil.Process(self._status()["pid"])

    def spent(self) -> tuple[float, float]:
        """Seconds in encoder and decoder so far, once a ping has told."""
        time.sleep(3 * PING_SECONDS)
        gauges = self._status()["gauges"]
        return gauges.get("encoder_seconds", 0.0), gauges.get("decoder_seconds", 0.0)

    def _status(self) -> dict[str, Any]:
        worker: dict[str, Any] = self._http.get("/admin/workers").json()["workers"][0]
        return worker


@contextmanager
def served(model: Model, home: Path, threads: int) -> Iterator[tuple[Api, int]]:
    """A server over the model, warmed; also the process id of its parent."""
    with serving(model.argument, home, "--threads", str(threads), "--ping-seconds", str(PING_SECONDS)) as (
        server,
        address,
        _,
    ):
        yield Api(address, model.folder.name), server.pid


class Library:
    """faster-whisper, called directly."""

    def __init__(self, model: Model, threads: int) -> None:
        self._model = WhisperModel(
            str(model.folder), device="cpu", compute_type=preferred("cpu"), cpu_threads=threads
        )
        self._pipeline = BatchedInferencePipeline(self._model)
        self._frames = int(self._model.feature_extractor.nb_max_frames)

    def hear(self, path: Path) -> str:
        """The text of a file, by the batched pipeline."""
        segments, _ = self._pipeline.transcribe(str(path), language="en", batch_size=BATCH, beam_size=BEAM)
        return "".join(segment.text for segment in segments).strip()

    def features(self, clip: F32) -> F32:
        """What the encoder takes of a clip."""
        found = self._model.feature_extractor(clip)[:, : self._frames]
        return np.pad(found, ((0, 0), (0, self._frames - found.shape[1])))

    def compute(self, clips: Sequence[F32]) -> tuple[float, float]:
        """Seconds that the encoder and the decoder take for the features of clips, in one batch."""
        tokenizer = Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language="en"
        )
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        begun = time.perf_counter()
        encoded = self._model.encode(np.stack(clips))
        between = time.perf_counter()
        self._model.model.generate(
            encoded, [prompt] * len(clips), beam_size=BEAM, return_scores=True, return_no_speech_prob=True
        )
        return between - begun, time.perf_counter() - between


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


# -- what is measured -------------------------------------------------------------------------------------------------


def rate(model: Model, api: Api, library: Library, sound: F32, name: str, options: Options) -> list[Check]:
    """Whole files, one after another, through the API and by the library."""
    path = written(options.folder / "long.wav", over_and_over(sound, options.seconds))
    texts = api.hear(path), library.hear(path)
    ours, theirs = [], []
    for number in range(options.rounds):
        theirs.append(timed(lambda: library.hear(path)))
        ours.append(timed(lambda: api.hear(path)))
        say(
            f"{model.name}, {name}: {theirs[-1]:.2f} s directly, {ours[-1]:.2f} s through the API ({number + 1})"
        )
    ratios = [through / direct for through, direct in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    mine, other = (text.split() for text in texts)
    alike = SequenceMatcher(None, mine, other, autojunk=False).ratio()
    where = f"{model.name}, {options.seconds:.0f} s of {name}"
    return [
        Check(f"{where}: API / library", spread(ratios), f"<= {RATE_BAR}", ratio <= RATE_BAR),
        Check(
            f"{where}: seconds of sound a second", spread([options.seconds / each for each in ours], ".1f")
        ),
        Check(f"{where}: words that both heard alike", f"{alike:.0%}"),
    ]


def batch(model: Model, api: Api, library: Library, sound: F32, name: str, options: Options) -> list[Check]:
    """Four clips of nearly a window each, at once and one after another, and the library with the same four."""
    length = int(0.8 * model.window * RATE)
    whole = over_and_over(sound, 5 * model.window)
    clips = [whole[start : start + length] for start in range(0, CLIPS * RATE * 5, RATE * 5)]
    paths = [written(options.folder / f"clip-{number}.wav", clip) for number, clip in enumerate(clips)]
    features = [library.features(clip) for clip in clips]
    gains, bare, bare_spent, spent = [], [], [], []
    with ThreadPoolExecutor(CLIPS) as pool:
        list(pool.map(api.hear, paths))
        for number in range(options.rounds):
            alone = [library.compute([each]) for each in features]
            whole_batch = library.compute(features)
            bare.append(sum(map(sum, alone)) / sum(whole_batch))
            bare_spent.append((*map(sum, zip(*alone, strict=True)), *whole_batch))
            before = api.spent()
            serial = timed(lambda: [api.hear(path) for path in paths])
            between = api.spent()
            at_once = timed(lambda: list(pool.map(api.hear, paths)))
            after = api.spent()
            gains.append(serial / at_once)
            spent.append((*minus(between, before), *minus(after, between)))
            say(
                f"{model.name}, four clips ({number + 1}): {serial:.2f} s one after another, {at_once:.2f} s at once; "
                f"library {bare[-1]:.2f} x"
            )
    gain, bar = statistics.median(gains), max(1.0, GAIN_BAR * statistics.median(bare))
    where = f"{model.name}, {CLIPS} clips of {length / RATE:.0f} s of {name}"
    return [
        Check(
            f"{where}: at once / one after another",
            spread(gains),
            f">= {bar:.2f}",
            gain >= bar,
        ),
        Check(f"{where}: the library's own gain", spread(bare)),
        Check(f"{where}: encoder, decoder through the API", told(spent)),
        Check(f"{where}: encoder, decoder of the library", told(bare_spent)),
    ]


def minus(after: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    """What was added."""
    return after[0] - before[0], after[1] - before[1]


def told(rounds: Sequence[Sequence[float]]) -> str:
    """Encoder and decoder seconds, one after another and at once, medians."""
    encoder, decoder, both_encoder, both_decoder = (
        statistics.median(column) for column in zip(*rounds, strict=True)
    )
    return f"{encoder:.2f} + {decoder:.2f} s one after another, {both_encoder:.2f} + {both_decoder:.2f} s at once"


def memory(model: Model, api: Api, parent: int, sound: F32, options: Options) -> list[Check]:
    """A long FLAC file: the worker's and the parent's most memory against what they had before."""
    path = options.folder / "long.flac"
    seconds = options.hours * 3600
    taken = timed(lambda: flac(path, over_and_over(sound, 60), seconds))
    size = path.stat().st_size / 1e6
    say(f"{model.name}: made {options.hours:g} h of FLAC, {size:.0f} MB, in {taken:.0f} s")
    processes = {"worker": api.worker, "parent": psutil.Process(parent)}
    before = {name: process.memory_info().rss for name, process in processes.items()}
    most = dict(before)
    over = threading.Event()
    alive: list[float] = []

    def watch() -> None:
        while not over.wait(0.05):
            for name, process in processes.items():
                most[name] = max(most[name], process.memory_info().rss)
            alive.append(1000 * timed(api.alive))

    watching = threading.Thread(target=watch)
    watching.start()
    taken = timed(lambda: api.hear(path))
    over.set()
    watching.join()
    path.unlink()
    where = f"{model.name}, {options.hours:g} h of FLAC ({size:.0f} MB)"
    grown = most["worker"] - before["worker"]
    loaded, peak = before["worker"] / 1e6, most["worker"] / 1e6
    return [
        Check(
            f"{where}: worker's peak beyond the loaded model",
            f"{grown / 1e6:.0f} MB ({peak:.0f} against {loaded:.0f})",
            f"<= {MEMORY_BAR / 1e6:.0f} MB",
            grown <= MEMORY_BAR,
        ),
        Check(
            f"{where}: parent's peak", f"{most['parent'] / 1e6:.0f} against {before['parent'] / 1e6:.0f} MB"
        ),
        Check(f"{where}: seconds of sound a second", f"{seconds / taken:.0f} ({taken:.0f} s)"),
        Check(
            f"{where}: GET /healthz meanwhile",
            f"{statistics.median(alive):.1f} ms, p95 {statistics.quantiles(alive, n=20)[-1]:.1f} ms",
        ),
    ]


def flac(path: Path, sound: F32, seconds: float) -> None:
    """A FLAC file of that length: the sound over and over."""
    samples = (sound * 32767).astype(np.int16)[None]
    with av.open(str(path), "w", format="flac") as out:
        stream = out.add_stream("flac", rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        left = int(seconds * RATE)
        while left:
            piece = samples[:, :left]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="s16", layout="mono")
            frame.sample_rate = RATE
            out.mux(stream.encode(frame))
            left -= piece.shape[1]
        out.mux(stream.encode(None))


# -- the whole --------------------------------------------------------------------------------------------------------


def measure(options: Options) -> list[Check]:
    """Every part of every model that was asked for."""
    checks: list[Check] = []
    heard = sounds(options.folder)
    *_, (name, generated) = heard.items()
    for model in (made(MODELS[each]) for each in options.models):
        with served(model, options.folder / f"home-{model.folder.name}", options.threads) as (api, parent):
            if {"rate", "batch"} & options.parts:
                library = Library(model, options.threads)
            if "rate" in options.parts:
                for each, sound in heard.items():
                    checks += rate(model, api, library, sound, each, options)
            if "batch" in options.parts:
                checks += batch(model, api, library, generated, name, options)
            if "memory" in options.parts and model is MODELS[options.models[-1]]:
                checks += memory(model, api, parent, generated, options)
    return checks


PARTS = ("rate", "batch", "memory")


def options_from(arguments: Sequence[str] | None, folder: Path) -> Options:
    """The command line; --quick lowers what was not given."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-speech", description="Measure speech on this machine."
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run (default: %(default)s)")
    parser.add_argument(
        "--models", default=",".join(MODELS), help="tiny, demo (default: both; memory: the last)"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="engine threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of each side (default: 5)")
    parser.add_argument("--seconds", type=float, help="length of the files of `rate` (default: 240)")
    parser.add_argument("--hours", type=float, help="length of the file of `memory` (default: 8)")
    parser.add_argument("--quick", action="store_true", help="two rounds of short files, and one hour")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    given = parser.parse_args(arguments)
    for what, known in (("only", PARTS), ("models", tuple(MODELS))):
        unknown = set(getattr(given, what).split(",")) - set(known)
        if unknown:
            parser.error(f"--{what} takes {', '.join(known)}, not {', '.join(sorted(unknown))}")
    rounds, seconds, hours = (2, 60.0, 1.0) if given.quick else (5, 240.0, 8.0)
    return Options(
        models=tuple(given.models.split(",")),
        parts=frozenset(given.only.split(",")),
        threads=given.threads,
        rounds=given.rounds or rounds,
        seconds=given.seconds or seconds,
        hours=given.hours or hours,
        folder=folder,
        as_json=given.json,
    )


def show(result: Result) -> None:
    """A table on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else figures.TABLE_WIDTH)
    console.print(result.machine, markup=False)
    table = Table(pad_edge=False)
    for head in ("figure", "measured", "bar", ""):
        table.add_column(head)
    for check in result.checks:
        verdict = {None: "", True: "holds", False: "MISSED"}[check.holds]
        table.add_row(check.name, check.figure, check.bar, verdict)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether every bar holds."""
    with tempfile.TemporaryDirectory() as folder:
        options = options_from(arguments, Path(folder))
        result = Result(machine(options.threads), measure(options))
    if options.as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        show(result)
    return 1 if any(check.holds is False for check in result.checks) else 0


if __name__ == "__main__":
    raise SystemExit(main())
