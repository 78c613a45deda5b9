"""The only contact with CTranslate2 and faster-whisper's model: load, features, encode, decode, align.

Everything here takes and gives whole batches; who is in them is `engine`'s business. What is encoded stays where it was
computed until single rows of it are wanted.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens, merge_punctuations
from numpy.typing import NDArray

from oxlo_local.calls import SpeechOptions
from oxlo_local.engines.speech.quality import Try
from oxlo_local.engines.speech.timing import Spoken

F32 = NDArray[np.float32]

FRAMES = 100  # a second
BEST_OF = 5  # samples that are drawn at a temperature, of which the likeliest is kept
BEAM = 5
OPENING, CLOSING = (
    "\"'“¿([{-",
    "\"'.。,，!！?？:：”)]}、",
)  # marks that belong to the next word, to the one before
PREFERRED = {
    "cuda": ("float16", "int8_float32", "float32"),
    "cpu": ("int8", "float32"),
}
POSITIONS = "position_encodings/encodings"


class LoadError(Exception):
    """A folder that holds no Whisper model that runs here; the message says why."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder made of some chunks, one row each."""

    view: ctranslate2.StorageView

    def __len__(self) -> int:
        return int(self.view.shape[0])

    def rows(self, places: Sequence[int]) -> list[NDArray[np.generic]]:
        """Copies of single rows, in main memory."""
        view = self.view
        if view.dtype == ctranslate2.DataType.bfloat16:
            view = view.to(ctranslate2.DataType.float32)
        if view.device != "cpu":
            view = view.to_device(ctranslate2.Device.cpu)
        whole = np.array(view, copy=False)
        return [whole[place].copy() for place in places]

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.generic]]) -> "Encoded":
        """Rows together again."""
        return cls(ctranslate2.StorageView.from_array(np.stack(rows)))


class Whisper:
    """A loaded model. `folder` holds a model in CTranslate2's form. Raises LoadError."""

    def __init__(self, folder: Path, options: SpeechOptions) -> None:
        missing = [
            name for name in ("model.bin", "config.json", "tokenizer.json") if not (folder / name).is_file()
        ]
        if missing:
            raise LoadError(
                f"{folder} is no Whisper model in CTranslate2's form: {', '.join(missing)} is missing"
            )
        self.threads = options.threads or cores()
        shapes = shapes_of(folder / "model.bin")
        self.device, self._model = self._load(folder, options)
        self._core = self._model.model
        self.compute_type = str(self._core.compute_type)
        self.languages: list[str] = list(self._model.supported_languages)
        self.multilingual = bool(self._core.is_multilingual)
        self.window = float(self._model.feature_extractor.chunk_length)
        self._frames = int(self._model.feature_extractor.nb_max_frames)
        self.positions = shapes.get(f"decoder/{POSITIONS}", (448,))[0]
        heard = 2 * shapes.get(f"encoder/{POSITIONS}", (self._frames // 2,))[0]
        if heard < self._frames:
            raise LoadError(
                f"its encoder takes {heard} frames and preprocessor_config.json says {self._frames}: "
                "chunk_length is longer than the window that it was trained with"
            )
        self.parameters = sum(
            int(np.prod(shape)) for name, shape in shapes.items() if name.endswith("weight")
        )
        self.vocab = int(self._model.hf_tokenizer.get_vocab_size())
        self._beam = options.beam or BEAM
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}
        self._suppressed = list(get_suppressed_tokens(self.tokenizer("en"), [-1]))

    def _load(self, folder: Path, options: SpeechOptions) -> tuple[str, WhisperModel]:
        """The model where the options say, else on the GPU, and on the CPU where that fails."""
        devices = (
            [options.device]
            if options.device
            else ["cuda"] * bool(ctranslate2.get_cuda_device_count()) + ["cpu"]
        )
        for device in devices:
            try:
                kind = options.compute_type or preferred(device)
                return device, WhisperModel(
                    str(folder), device=device, compute_type=kind, cpu_threads=self.threads
                )
            except (RuntimeError, ValueError, OSError) as error:
                if device == devices[-1]:
                    raise LoadError(f"the model cannot be loaded: {error}") from error
                sys.stderr.write(f"the GPU is not used: {error}\n")
        raise AssertionError("there is always a device")

    # -- text ---------------------------------------------------------------------------------------------------------

    def tokenizer(self, language: str, task: str = "transcribe") -> Tokenizer:
        """The tokenizer for a language and what is to be done with it."""
        found = self._tokenizers.get((language, task))
        if found is None:
            found = Tokenizer(self._model.hf_tokenizer, self.multilingual, task=task, language=language)
            self._tokenizers[language, task] = found
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that are none."""
        return str(self.tokenizer("en").decode(list(tokens)))

    @property
    def end_of_text(self) -> int:
        """Tokens below it are text."""
        return int(self.tokenizer("en").eot)

    @property
    def first_timestamp(self) -> int:
        """Tokens from it on are times."""
        return int(self.tokenizer("en").timestamp_begin)

    def piece(self, token: int) -> bytes:
        """The bytes that a token of text stands for."""
        written = self._model.hf_tokenizer.id_to_token(token) or ""
        return bytes(self._bytes[character] for character in written if character in self._bytes)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        """How GPT-2's vocabularies write bytes: as themselves where they print, else from U+0100 on in their order."""
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in set(plain)]
        return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}

    # -- sound --------------------------------------------------------------------------------------------------------

    def features(self, sound: F32) -> F32:
        """The spectrogram of a chunk, shape (mels, frames). Safe on any thread."""
        found: F32 = self._model.feature_extractor(sound)[..., :-1]
        return found.astype(np.float32, copy=False)

    def encode(self, features: Sequence[F32]) -> Encoded:
        """What the encoder makes of chunks, each filled up to a window."""
        batch = np.zeros((len(features), features[0].shape[0], self._frames), np.float32)
        for row, one in zip(batch, features, strict=True):
            kept = one[:, : self._frames]
            row[:, : kept.shape[1]] = kept
        return Encoded(self._core.encode(ctranslate2.StorageView.from_array(batch)))

    def heard(self, encoded: Encoded) -> list[tuple[str, float]]:
        """The likeliest language of each row, and its probability."""
        return [(found[0][0][2:-2], float(found[0][1])) for found in self._core.detect_language(encoded.view)]

    def decode(
        self, encoded: Encoded, prompts: Sequence[Sequence[int]], temperature: float, *, logprobs: bool
    ) -> list[Try]:
        """One try of each row. The prompts are equally long."""
        if temperature > 0:
            how = {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
        else:
            how = {"beam_size": 1 if logprobs else self._beam}  # a beam search gives no logits
        found = self._core.generate(
            encoded.view,
            [list(prompt) for prompt in prompts],
            max_length=self.positions,
            return_scores=True,
            return_no_speech_prob=True,
            return_logits_vocab=logprobs,
            suppress_tokens=self._suppressed,
            **how,
        )
        return [self._try(one, temperature, logprobs=logprobs) for one in found]

    def _try(
        self, found: ctranslate2.models.WhisperGenerationResult, temperature: float, *, logprobs: bool
    ) -> Try:
        tokens = tuple(found.sequences_ids[0])
        likely = (
            [logprob(step, token) for step, token in zip(found.logits[0], tokens, strict=False)]
            if logprobs
            else []
        )
        return Try(
            tokens=tokens,
            text=self.text(tokens),
            temperature=temperature,
            # The score is the mean over the tokens; the end of the text is one more.
            avg_logprob=found.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_prob=float(found.no_speech_prob),
            logprobs=tuple(likely),
        )

    def align(
        self, encoded: Encoded, texts: Sequence[Sequence[int]], seconds: Sequence[float], tokenizer: Tokenizer
    ) -> list[list[Spoken]]:
        """The words of each row's text, which is not empty, with the marks around them."""
        frames = [min(int(np.ceil(each)) * FRAMES, self._frames) for each in seconds]
        rows = self._model.find_alignment(tokenizer, [list(text) for text in texts], encoded.view, frames)
        for row in rows:
            merge_punctuations(row, OPENING, CLOSING)
        return [
            [
                Spoken(
                    word["word"],
                    min(float(word["start"]), limit),
                    min(float(word["end"]), limit),
                    float(word["probability"]),
                    len(word["tokens"]),
                )
                for word in row
                if word["word"]
            ]
            for row, limit in zip(rows, seconds, strict=True)
        ]


def logprob(logits: ctranslate2.StorageView, token: int) -> float:
    """ln(probability) of a token, from what the model gave for all of them."""
    numbers = np.array(logits.to_device(ctranslate2.Device.cpu), dtype=np.float64).reshape(-1)
    top = numbers.max()
    return float(numbers[token] - top - np.log(np.exp(numbers - top).sum()))


def preferred(device: str) -> str:
    """What a device computes fastest with, without loss that anybody hears."""
    supported = ctranslate2.get_supported_compute_types(device)
    return next((each for each in PREFERRED[device] if each in supported), "default")


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every variable in a model.bin, without reading the numbers. Raises LoadError."""
    shapes: dict[str, tuple[int, ...]] = {}
    size = path.stat().st_size
    with path.open("rb") as file:

        def number(length: int) -> int:
            return int.from_bytes(file.read(length), "little")

        def name() -> str:
            return file.read(number(2)).rstrip(b"\0").decode("utf-8", "replace")

        version, spec, _, count = number(4), name(), number(4), number(4)
        if spec != "WhisperSpec" or version < 4:
            raise LoadError(f"{path} is no Whisper model in CTranslate2's form")
        for _ in range(count):
            variable, rank = name(), number(1)
            shapes[variable] = tuple(number(4) for _ in range(rank))
            number(1)  # the type of its numbers
            file.seek(number(4), 1)
            if file.tell() > size:
                raise LoadError(f"{path} is cut off: pull it again")
    return shapes
