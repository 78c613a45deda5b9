"""A file becomes sound, a few seconds at a time: whatever FFmpeg reads, as 16,000 numbers a second of one channel.

The file is somebody's upload, so nothing about it is believed. FFmpeg is given an open file without a name and may open
no other (playlists name files and addresses). Rates at which one packet, or the resampler's own table, would take more
memory than the worker has are refused. A few damaged packets are left out, as every player does; a file that is mostly
damage, or holds clearly less than its header says, fails: half a transcript that looks whole would be worse.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from oxlo_local.errors import UndecodableFile

F32 = NDArray[np.float32]

RATE = 16_000
BLOCK = 4 * RATE  # samples that are handed on together, about
SLOWEST, FASTEST = 1_000, 768_000  # samples a second of a file
READY = ("s16", "s16p")  # numbers of 16 bits; of one channel both lie alike
WIDEST = 8  # channels that FFmpeg knows how to mix down whatever their layout
READ_BYTES = 1 << 17
# Containers whose header says how long the sound is, rather than being guessed from a bit rate.
EXACT = frozenset("wav w64 aiff au caf flac mov,mp4,m4a,3gp,3g2,mj2".split())
MISSING_SECONDS, MISSING_SHARE = 1.0, 0.02  # of an exact length that may lack: rounding, padding of codecs
MISSING_BYTES = 4096
PLACEHOLDER = 0x7FFF0000


class Recording:
    """A file that is being read. Not for two threads at once.

    `seconds` is its length as the header says it, None where it does not. Raises UndecodableFile for what cannot be
    read, here or while reading; `longest` is how many seconds of sound it may hold.
    """

    def __init__(self, path: Path, longest: float) -> None:
        self._longest = longest
        self._bad, self._good, self._samples = 0, 0, 0
        self._why = ""
        if path.stat().st_size == 0:
            raise undecodable("the file is empty")
        self._file = path.open("rb")
        try:
            self._container = opened(_Nameless(self._file))
            self._stream = audio_of(self._container)
        except BaseException:
            self._file.close()
            raise
        self.stream = named(self._stream)
        if (missing := missing_bytes(path)) is not None:
            self.close()
            raise cut_off(self.stream, f"{missing[0]:,} bytes", f"{missing[1]:,} are")
        self.seconds = declared(self._container, self._stream)
        self._exact = says_exactly(self._container, path)
        if self.seconds is not None and self._exact and self.seconds > longest:
            self.close()
            raise too_long(self.stream, longest)

    def blocks(self) -> Iterator[F32]:
        """The sound in order, in blocks of some seconds each."""
        pieces: list[F32] = []
        held = 0
        for piece in self._pieces():
            self._samples += len(piece)
            if self._samples > self._longest * RATE:
                raise too_long(self.stream, self._longest)
            pieces.append(piece)
            held += len(piece)
            if held >= BLOCK:
                whole = np.concatenate(pieces)
                # One packet may hold minutes: what hears it would take memory for all of it at once.
                yield from (whole[start : start + BLOCK] for start in range(0, held, BLOCK))
                pieces, held = [], 0
        if held:
            yield np.concatenate(pieces)
        self._judge()

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()
        self._file.close()

    def _pieces(self) -> Iterator[F32]:
        mixer: _Mixer | None = None
        for frame in self._frames():
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if mixer is None or mixer.form != form:  # a stream may change its form on the way
                if mixer is not None:
                    yield from mixer.rest()
                mixer = _Mixer(frame, self.stream)
            yield from mixer.mix(frame)
        if mixer is not None:
            yield from mixer.rest()

    def _frames(self) -> Iterator[AudioFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:  # what lies behind this cannot be reached
                self._bad += 1
                self._why = reason(error)
                return
            if packet is None:
                return
            try:
                frames = self._stream.codec_context.decode(packet)
            except (av.FFmpegError, ValueError) as error:
                self._bad += 1
                self._why = reason(error)
                continue
            self._good += bool(frames)
            yield from frames

    def _judge(self) -> None:
        """What was read, against what the header says and what could not be read."""
        if self._samples == 0:
            raise undecodable(f"{self.stream} holds no sound{f': {self._why}' if self._why else ''}")
        if self._bad > self._good:
            count = self._bad + self._good
            raise undecodable(f"{self.stream}: {self._bad} of {count} packets are damaged: {self._why}")
        found = self._samples / RATE
        if self.seconds is None or not self._exact:
            return
        if self.seconds - found > MISSING_SECONDS + MISSING_SHARE * self.seconds:
            raise cut_off(self.stream, f"{self.seconds:.1f} s", f"{found:.1f} s are")


class _Nameless:
    """A file of which FFmpeg learns no name: an extension would choose the format."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


class _Mixer:
    """Frames of one form -> one channel at RATE."""

    def __init__(self, frame: AudioFrame, stream: str) -> None:
        self.form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if not SLOWEST <= frame.sample_rate <= FASTEST:
            raise undecodable(
                f"{stream} has {frame.sample_rate:,} samples a second; "
                f"{SLOWEST:,} to {FASTEST:,} are read: resample it"
            )
        channels = frame.layout.nb_channels
        # FFmpeg has no rule for mixing more channels than it has names for: those are averaged below.
        self._many = channels > WIDEST
        # A resampler takes 2 ms to build, as much as to read a short clip that needs none.
        ready = frame.format.name in READY and channels == 1 and frame.sample_rate == RATE
        self._resampler = None if ready else AudioResampler(format="s16", layout="mono", rate=RATE)

    def mix(self, frame: AudioFrame) -> Iterator[F32]:
        """What a frame adds."""
        if self._resampler is None:
            yield numbers(frame)
            return
        if self._many:
            frame = averaged(frame)
        frame.pts = None  # gaps in the time stamps are no sound
        for out in self._resampler.resample(frame):
            yield numbers(out)

    def rest(self) -> Iterator[F32]:
        """What the resampler still holds."""
        if self._resampler is None:
            return
        for out in self._resampler.resample(None):
            yield numbers(out)


def opened(file: _Nameless) -> InputContainer:
    """The container in a file. Raises UndecodableFile where FFmpeg knows none."""
    try:
        return av.open(
            file,
            mode="r",
            metadata_errors="ignore",
            buffer_size=READ_BYTES,
            options={"protocol_whitelist": "none"},
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise undecodable(f"it is no sound or video file that FFmpeg knows: {reason(error)}") from None


def audio_of(container: InputContainer) -> AudioStream:
    """The first stream of sound. Raises UndecodableFile where there is none, or no decoder for it."""
    if not container.streams.audio:
        held = ", ".join(f"stream {stream.index} ({stream.type})" for stream in container.streams)
        container.close()
        raise undecodable(f"there is no stream of sound in it; it holds {held or 'no stream at all'}")
    stream = container.streams.audio[0]
    if getattr(stream, "codec_context", None) is None:
        container.close()
        raise undecodable(f"stream {stream.index} (audio): FFmpeg has no decoder for its codec")
    return stream


def named(stream: AudioStream) -> str:
    """What messages call a stream."""
    return f"stream {stream.index} (audio: {stream.codec_context.name})"


def declared(container: InputContainer, stream: AudioStream) -> float | None:
    """Seconds of sound as the header says it."""
    if stream.duration is not None and stream.time_base is not None:
        return max(float(stream.duration * stream.time_base), 0.0)
    if container.duration is not None and len(container.streams) == 1:
        return max(container.duration / av.time_base, 0.0)
    return None


def says_exactly(container: InputContainer, path: Path) -> bool:
    """Whether the length in the header was counted, not guessed from a bit rate."""
    if container.format.name != "mp3":
        return container.format.name in EXACT
    with path.open("rb") as file:
        head = file.read(READ_BYTES)
    return b"Xing" in head or b"Info" in head


def missing_bytes(path: Path) -> tuple[int, int] | None:
    """(promised, there) of a WAV file that is shorter than its header says, which FFmpeg does not mention.

    A recorder that could not go back to its header leaves 0 or a number near 2 or 4 GiB there: that promises nothing.
    """
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return None
        file.seek(12)
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                there = path.stat().st_size - file.tell()
                return (size, there) if there + MISSING_BYTES < size < PLACEHOLDER else None
            file.seek(size + size % 2, 1)
    return None


def averaged(frame: AudioFrame) -> AudioFrame:
    """All channels of a frame as one, equally loud."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    whole = samples.astype(np.float32)
    if samples.dtype.kind in "iu":
        half = np.float32(2 ** (8 * samples.dtype.itemsize - 1))
        whole = whole / half - np.float32(samples.dtype.kind == "u")
    mono = AudioFrame.from_ndarray(whole.mean(axis=0, keepdims=True), format="flt", layout="mono")
    mono.sample_rate = frame.sample_rate
    return mono


def numbers(frame: AudioFrame) -> F32:
    """16-bit samples as numbers from -1 to 1."""
    return frame.to_ndarray().reshape(-1).astype(np.float32) / np.float32(32768)


def undecodable(why: str) -> UndecodableFile:
    """The error for a file that cannot be read."""
    return UndecodableFile(f"the file cannot be decoded: {why}", param="file")


def cut_off(stream: str, promised: str, there: str) -> UndecodableFile:
    """The error for a file of which the end is missing."""
    return undecodable(
        f"{stream} is cut off: its header says {promised} and {there} there; "
        "send the whole file, or repair its header (ffmpeg -i FILE -c copy REPAIRED)"
    )


def too_long(stream: str, longest: float) -> UndecodableFile:
    """The error for more sound than a file may hold."""
    return undecodable(f"{stream} is longer than {longest / 3600:g} hours, the most for one file; split it")


def reason(error: Exception) -> str:
    """FFmpeg's words, without the file's name, which is ours."""
    return str(getattr(error, "strerror", None) or error)
