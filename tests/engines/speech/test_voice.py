"""The probabilities of speech do not depend on how the sound is cut."""

import numpy as np
import pytest
from faster_whisper.vad import get_vad_model

from oxlo_local.engines.speech import stretches
from oxlo_local.engines.speech.voice import FRAME, Voice
from tests.engines.speech.sounds import silence, speech

SOUND = np.concatenate([silence(1), speech(3), silence(1.01)])


def test_speech_is_told_from_silence() -> None:
    found = Voice().hear(SOUND)
    second = 16_000 // FRAME
    assert max(found[: second - 2]) < 0.1 and max(found[-second + 8 :]) < 0.1
    assert min(found[second + 4 : 4 * second - 2]) > 0.3 and np.median(found[second : 4 * second]) > 0.8


@pytest.mark.parametrize("block", [333, FRAME, 16_000, 50_001])
def test_cut_anywhere_it_is_the_same(block: int) -> None:
    voice = Voice()
    found: list[float] = []
    for start in range(0, len(SOUND), block):
        found += voice.hear(SOUND[start : start + block])
    assert found + voice.end() == pytest.approx(whole(), abs=1e-4)


def whole() -> list[float]:
    """What the library says of all of it at once."""
    padded = np.pad(SOUND, (0, -len(SOUND) % FRAME))
    return [float(each) for each in np.asarray(get_vad_model()(padded)).reshape(-1)]


def test_a_frame_is_a_frame() -> None:
    assert stretches.FRAME == FRAME
