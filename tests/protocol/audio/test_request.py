import pytest

from oxlo_local.calls import SpeechCall, Vad
from oxlo_local.calls.speech import LADDER
from oxlo_local.errors import BadRequest, UnknownParameter, UnsupportedValue
from oxlo_local.protocol.audio.request import GREEDY, AudioRequest, Task, decode, to_call


def form(*fields: tuple[str, str], task: Task = "transcribe") -> AudioRequest:
    return decode([("model", "m"), *fields], task, strict=True)[0]


def call(*fields: tuple[str, str], task: Task = "transcribe") -> SpeechCall:
    return to_call(form(*fields, task=task), task, "/p", "i")


def test_what_nothing_asks_for() -> None:
    assert call() == SpeechCall("i", "/p", timestamps=False)
    assert call(task="translate") == SpeechCall("i", "/p", task="translate", timestamps=False)
    assert (call().temperatures, call().vad) == (LADDER, Vad())


def test_what_everything_asks_for() -> None:
    asked = call(
        ("language", "German"),
        ("prompt", "Grüße"),
        ("hotwords", "Oxlo"),
        ("temperature", "0.3"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("chunking_strategy[type]", "server_vad"),
        ("chunking_strategy[threshold]", "0.6"),
        ("chunking_strategy[silence_duration_ms]", "700"),
    )
    assert asked == SpeechCall(
        "i",
        "/p",
        language="de",
        prompt="Grüße",
        hotwords="Oxlo",
        temperatures=(0.3,),
        words=True,
        vad=Vad(threshold=0.6, silence_ms=700, padding_ms=300),
    )


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ([("temperature", "0")], "temperatures", LADDER),
        ([("temperature", "1")], "temperatures", (1.0,)),
        ([("response_format", "srt")], "timestamps", True),
        ([("response_format", "text")], "timestamps", False),
        ([("include[]", "logprobs")], "logprobs", True),
        ([("vad_filter", "false")], "vad", None),
        ([("vad_filter", "true"), ("chunking_strategy", "auto")], "vad", Vad()),
        ([("chunking_strategy", '{"type": "server_vad"}')], "vad", Vad(0.5, 200, 300)),
        ([("keywords[]", "Oxlo"), ("keywords[]", "srt")], "hotwords", "Oxlo, srt"),
        ([("languages[]", "fr")], "language", "fr"),
        ([("language", "auto")], "language", None),
        ([("language", ""), ("prompt", "")], "prompt", None),
        ([("known_speaker_names[]", "")], "prompt", None),
    ],
)
def test_each_field(fields: list[tuple[str, str]], name: str, value: object) -> None:
    assert getattr(call(*fields), name) == value


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (("response_format", "diarized_json"), "response_format"),
        (("response_format", "ass"), "response_format"),
        (("temperature", "1.1"), "temperature"),
        (("temperature", "warm"), "temperature"),
        (("temperature", "nan"), "temperature"),
        (("language", "klingon"), "language"),
        (("languages", '["fr", "de"]'), "languages"),
        (("timestamp_granularities[]", "char"), "timestamp_granularities[0]"),
        (("timestamp_granularities[]", "word"), "timestamp_granularities"),
        (("include[]", "everything"), "include[0]"),
        (("chunking_strategy", "none"), "chunking_strategy"),
        (("chunking_strategy[type]", "semantic_vad"), "chunking_strategy.type"),
        (("chunking_strategy[threshold]", "0.5"), "chunking_strategy.type"),
        (("chunking_strategy", '{"type": "server_vad", "threshold": 2}'), "chunking_strategy.threshold"),
        (("chunking_strategy", '{"type": "server_vad", "treshold": 1}'), "chunking_strategy"),
        (("vad_filter", "perhaps"), "vad_filter"),
        (("stream", "yes"), "stream"),
        (("known_speaker_names[]", "Anna"), "known_speaker_names"),
        (("file", "hello"), "file"),
        (("model", "again"), "model"),
        (("metadata", "x"), "metadata"),
    ],
)
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_wrong_value_is_named(field: tuple[str, str], param: str, task: Task) -> None:
    with pytest.raises(BadRequest) as caught:
        form(field, task=task)
    assert caught.value.param == param or (task == "translate" and isinstance(caught.value, UnknownParameter))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("stream", "true"), ("response_format", "srt")], "response_format"),
        ([("stream", "true"), ("response_format", "text")], "response_format"),
        ([("include", "logprobs"), ("response_format", "verbose_json")], "include"),
        ([("timestamp_granularities", "word"), ("response_format", "text")], "timestamp_granularities"),
        ([("vad_filter", "false"), ("chunking_strategy", "auto")], "vad_filter"),
        ([("hotwords", "a"), ("keywords", "b")], "keywords"),
        ([("language", "fr"), ("languages", "fr")], "languages"),
    ],
)
def test_fields_that_do_not_go_together(fields: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(
        UnsupportedValue if param != "vad_filter" and param != "keywords" else BadRequest
    ) as caught:
        form(*fields)
    assert caught.value.param == param


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(BadRequest, match="Missing required parameter: 'model'") as caught:
        decode([("language", "en")], "transcribe", strict=False)
    assert caught.value.param == "model"


def test_unknown_fields_are_named_or_refused() -> None:
    fields = [("model", "m"), ("mood", "good"), ("prompt[x]", "y")]
    request, warnings = decode(fields, "transcribe", strict=False)
    assert request.prompt is None and len(warnings) == 2 and '"mood"' in warnings[0]
    with pytest.raises(UnknownParameter):
        decode(fields, "transcribe", strict=True)


def test_probabilities_come_with_a_warning() -> None:
    for task in ("transcribe", "translate"):
        _, warnings = decode([("model", "m"), ("include[]", "logprobs")], task, strict=True)
        assert warnings == [GREEDY]
    assert decode([("model", "m")], "transcribe", strict=True)[1] == []
