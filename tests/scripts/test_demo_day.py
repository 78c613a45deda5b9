"""The demonstration day: the same for everybody, varied, and held against what a real server wrote."""

import re
from dataclasses import replace

import demo_day
import pytest
from demo_day import CLIENTS, DAY, Told, busiest_minute, drawn, faults

from tests.conftest import demo_model

DRAWN = drawn(600, 1, demo_day.questions(), demo_day.pages())


def test_a_day_is_the_same_for_everybody_and_in_its_order() -> None:
    assert drawn(600, 1, demo_day.questions(), demo_day.pages()) == DRAWN != drawn(600, 2, ["q"], ["page"])
    seconds = [errand.second for errand in DRAWN]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] < DAY
    assert 1 < busiest_minute(DRAWN) < 30


def test_a_day_has_something_of_everything() -> None:
    assert {errand.client for errand in DRAWN} == set(CLIENTS)
    kinds = {(errand.kind, errand.streamed) for errand in DRAWN}
    assert kinds == {("chat", True), ("chat", False), ("completion", False)}
    assert any(errand.leaves for errand in DRAWN) and any(errand.again for errand in DRAWN)
    words = sorted(len(errand.text.split()) for errand in DRAWN)
    assert words[0] < 12 and words[len(words) // 2] < 40 and words[-1] > 200


def test_rows_are_held_against_what_clients_were_told() -> None:
    one = DRAWN[0]
    told = [Told(one, "e_1", "answered"), Told(one, "e_1", "repeated"), Told(one, None, "insufficient_quota")]
    told += [Told(one, "e_2", "left"), Told(one, "e_3", "context_length_exceeded")]
    right = {"e_1": "settled", "e_2": "settled", "e_3": "refunded"}
    assert faults(told, right) == []
    assert len(faults(told, {**right, "e_3": "settled"})) == 1
    assert len(faults(told, {**right, "e_4": "settled"})) == 1
    assert len(faults(told, {"e_2": "settled", "e_3": "refunded"})) == 1
    assert len(faults([*told, replace(told[0], outcome="answered")], right)) == 1


@pytest.mark.timeout(120)
def test_a_short_day_on_a_real_server(capsys: pytest.CaptureFixture[str]) -> None:
    demo_model()
    assert demo_day.main(["--requests", "25", "--seconds", "2"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\n\d+ rows, each as its client was told\n", told) and "all right: " in told
    assert "settled requests" in told and "by the token at" in told and "hosted flat plan" in told
