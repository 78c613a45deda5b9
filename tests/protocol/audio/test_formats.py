import pytest

from oxlo_local.protocol.audio.formats import Cue, joined, srt, stamp, text, vtt

CUES = [
    Cue(0.0, 1.2345, " One & <two>,"),
    Cue(1.2345, 3661.5, "\n three\n\nfour --> five "),
    Cue(4, 4, " end"),
]


def test_subrip() -> None:
    assert srt(CUES) == (
        "1\n00:00:00,000 --> 00:00:01,234\nOne & <two>,\n\n"
        "2\n00:00:01,234 --> 01:01:01,500\nthree four --> five\n\n"
        "3\n00:00:04,000 --> 00:00:04,001\nend\n\n"
    )


def test_webvtt_escapes_what_it_would_read_as_markup() -> None:
    assert vtt(CUES) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.234\nOne &amp; &lt;two&gt;,\n\n"
        "00:00:01.234 --> 01:01:01.500\nthree four --&gt; five\n\n"
        "00:00:04.000 --> 00:00:04.001\nend\n\n"
    )


def test_text_is_one_line() -> None:
    assert text([Cue(0, 1, " Hello"), Cue(1, 2, " there. ")]) == "Hello there.\n"
    assert joined(["你", "好"]) == "你好"


@pytest.mark.parametrize("render", [srt, vtt])
def test_silence_has_no_cues(render: object) -> None:
    assert callable(render)
    assert render([]) == render([Cue(0, 1, " \n")]) == ("WEBVTT\n\n" if render is vtt else "")


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "00:00:00,000"),
        (59_999, "00:00:59,999"),
        (3_600_000, "01:00:00,000"),
        (360_000_001, "100:00:00,001"),
    ],
)
def test_a_moment(milliseconds: int, shown: str) -> None:
    assert stamp(milliseconds, ",") == shown


def test_times_before_the_beginning_and_short_cues_are_made_good() -> None:
    assert srt([Cue(-0.02, -0.01, "a")]).splitlines()[1] == "00:00:00,000 --> 00:00:00,001"
    assert srt([Cue(0.0015, 0.0016, "a")]).splitlines()[1] == "00:00:00,002 --> 00:00:00,003"
