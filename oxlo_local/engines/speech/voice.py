"""How likely is speech: Silero's voice activity model, fed block by block, its memory carried from one to the next."""

import numpy as np
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

F32 = NDArray[np.float32]

FRAME = 512  # samples that one probability is about: 32 ms
BEFORE = 64  # samples before a frame that the model looks at too
MEMORY = (1, 1, 128)


class Voice:
    """The probabilities of one recording, whose sound comes in order and is not kept."""

    def __init__(self) -> None:
        self._session = get_vad_model().session
        self._h, self._c = np.zeros(MEMORY, np.float32), np.zeros(MEMORY, np.float32)
        self._before = np.zeros(BEFORE, np.float32)
        self._rest = np.zeros(0, np.float32)

    def hear(self, sound: F32) -> list[float]:
        """The probability of each frame that is complete by now, 0 to 1."""
        sound = np.concatenate([self._rest, sound])
        whole = len(sound) - len(sound) % FRAME
        self._rest = sound[whole:]
        return self._judge(sound[:whole]) if whole else []

    def end(self) -> list[float]:
        """The probability of the last frame, filled up with silence."""
        if not len(self._rest):
            return []
        return self._judge(np.pad(self._rest, (0, FRAME - len(self._rest))))

    def _judge(self, sound: F32) -> list[float]:
        frames = sound.reshape(-1, FRAME)
        before = np.concatenate([self._before[None], frames[:-1, -BEFORE:]])
        self._before = frames[-1, -BEFORE:].copy()
        feed = {"input": np.concatenate([before, frames], axis=1), "h": self._h, "c": self._c}
        found, self._h, self._c = self._session.run(None, feed)
        return [float(probability) for probability in found.reshape(-1)]
