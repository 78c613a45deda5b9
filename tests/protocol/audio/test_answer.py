import json

import pytest

from oxlo_local.calls import Done, Event, Heard, Language, Segment, Started, TokenLogprob, Usage, Word
from oxlo_local.protocol.audio.answer import MEDIA_TYPES, renderer
from oxlo_local.protocol.audio.request import Task, decode
from tests.openai_description import judge

SEGMENTS = [
    Segment(
        "i",
        0,
        0.5,
        2.0004,
        " One two",
        [7, 8],
        0.0,
        -0.25,
        1.1,
        0.01,
        [Word(" One", 0.5, 0.9, 0.99), Word(" two", 1.0, 2.0004, 0.9)],
        [
            TokenLogprob(" One", list(b" One"), -0.1, []),
            TokenLogprob(" two", list(b" two"), float("-inf"), []),
        ],
    ),
    Segment("i", 1, 3.0, 4.0, " three. ", [9], 0.2, -0.5, 1.0, 0.02, [Word(" three.", 3.0, 4.0, 0.5)], []),
]
SPOKEN: list[Event] = [
    Started("i", 0, 0),
    Language("i", "de", 0.98, 4.5),
    SEGMENTS[0],
    Heard("i", 2.5, 4.5),
    SEGMENTS[1],
    Done("i", Usage(audio_seconds=4.5001, language="de")),
]
SILENT: list[Event] = [Started("i", 0, 0), Done("i", Usage(audio_seconds=60.0))]


def answered(events: list[Event], *fields: tuple[str, str], task: Task = "transcribe") -> bytes:
    made = renderer(decode([("model", "m"), *fields], task, strict=True)[0], task)
    return b"".join(made.add(event) for event in events)


def streamed(events: list[Event], *fields: tuple[str, str]) -> list[dict[str, object]]:
    lines = answered(events, ("stream", "true"), *fields).split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-2]]


def test_json() -> None:
    body = json.loads(answered(SPOKEN))
    judge("CreateTranscriptionResponseJson", body)
    assert body == {
        "text": "One two three.",
        "languages": [{"code": "de"}],
        "usage": {"type": "duration", "seconds": 4.5},
    }


def test_json_with_log_probabilities() -> None:
    body = json.loads(answered(SPOKEN, ("include[]", "logprobs")))
    judge("CreateTranscriptionResponseJson", body)
    assert [(one["token"], one["logprob"]) for one in body["logprobs"]] == [(" One", -0.1), (" two", -9999.0)]


@pytest.mark.parametrize(
    ("granularities", "present"),
    [
        ([], {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"segments", "words"}),
    ],
)
def test_verbose_json_has_what_was_asked_for(granularities: list[str], present: set[str]) -> None:
    fields = [("timestamp_granularities[]", each) for each in granularities]
    body = json.loads(answered(SPOKEN, ("response_format", "verbose_json"), *fields))
    judge("CreateTranscriptionResponseVerboseJson", body)
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "german", 4.5)
    assert {"segments", "words"} & body.keys() == present
    if "segments" in present:
        assert [(one["id"], one["seek"], one["end"]) for one in body["segments"]] == [
            (0, 50, 2.0),
            (1, 300, 4.0),
        ]
    if "words" in present:
        assert [one["word"] for one in body["words"]] == ["One", "two", "three."]


def test_a_translation_is_english() -> None:
    body = json.loads(answered(SPOKEN, ("response_format", "verbose_json"), task="translate"))
    judge("CreateTranslationResponseVerboseJson", body)
    assert (body["task"], body["language"], body["languages"]) == ("translate", "english", [{"code": "de"}])
    judge("CreateTranslationResponseJson", json.loads(answered(SPOKEN, task="translate")))


def test_documents_for_people() -> None:
    assert answered(SPOKEN, ("response_format", "text")) == b"One two three.\n"
    assert answered(SPOKEN, ("response_format", "srt")).count(b" --> ") == 2
    assert answered(SPOKEN, ("response_format", "vtt")).startswith(
        b"WEBVTT\n\n00:00:00.500 --> 00:00:02.000\nOne two\n"
    )
    words = answered(SPOKEN, ("response_format", "srt"), ("timestamp_granularities[]", "word"))
    assert words.count(b" --> ") == 3 and b"\nthree.\n" in words
    assert set(MEDIA_TYPES) == {"json", "verbose_json", "text", "srt", "vtt"}


def test_silence_is_an_empty_text() -> None:
    assert json.loads(answered(SILENT))["text"] == "" and json.loads(answered(SILENT))["languages"] == []
    verbose = json.loads(answered(SILENT, ("response_format", "verbose_json")))
    judge("CreateTranscriptionResponseVerboseJson", verbose)
    assert (verbose["text"], verbose["segments"], verbose["language"]) == ("", [], "unknown")
    given = json.loads(answered(SILENT, ("response_format", "verbose_json"), ("language", "fr")))
    assert given["language"] == "french"
    assert answered(SILENT, ("response_format", "text")) == b"\n"
    assert answered(SILENT, ("response_format", "srt")) == b""


def test_a_stream_is_openais_events() -> None:
    events = streamed(SPOKEN, ("include[]", "logprobs"))
    for event in events:
        judge("CreateTranscriptionResponseStreamEvent", event)
    *deltas, last = events
    assert [event["delta"] for event in deltas] == ["One two", " three."]
    assert [len(event["logprobs"]) for event in events] == [2, 0, 2]  # type: ignore[arg-type]
    assert "".join(str(event["delta"]) for event in deltas) == last["text"]
    assert (last["type"], last["duration"]) == ("transcript.text.done", 4.5)


def test_a_verbose_stream_tells_segments_and_progress() -> None:
    fields = [("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
    events = streamed(SPOKEN, *fields)
    for event in events:
        judge("CreateTranscriptionResponseStreamEvent", event)
    assert [event.get("progress") for event in events] == [
        {"seconds": 0.0, "of": 4.5},
        None,
        {"seconds": 2.5, "of": 4.5},
        None,
        None,
    ]
    assert [event["segment"]["id"] for event in events if "segment" in event] == [0, 1]  # type: ignore[index]
    whole = json.loads(answered(SPOKEN, *fields))
    assert {name: events[-1][name] for name in whole if name != "usage"} == {
        name: value for name, value in whole.items() if name != "usage"
    }


def test_a_stream_of_silence_ends_at_once() -> None:
    assert streamed(SILENT) == [
        {"type": "transcript.text.done", "text": "", "languages": [], "duration": 60.0}
    ]
