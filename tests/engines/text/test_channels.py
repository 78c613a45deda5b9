"""Answers of every format taken apart, however they are cut: transcripts, and what no transcript shows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.text.channels import Argued, Begun, Broken, Channels, Said, Spoken, Thought
from oxlo_local.engines.text.thinking import MARKERS, Markers
from oxlo_local.engines.text.toolcalls import FORMATS
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.generic import GENERIC

TOOLS = {
    "find": json.dumps(
        {
            "type": "object",
            "properties": {
                "place": {"type": "string"},
                "count": {"type": "integer"},
                "near": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["place"],
        }
    )
}
TRANSCRIPTS = sorted((Path(__file__).parents[2] / "transcripts").glob("*.txt"))
NAMES = {format.name: format for format in (*FORMATS, GENERIC)}
THINK = MARKERS[0]


@dataclass
class Answer:
    """What was said, whatever the pieces."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]  # name, arguments as they were said
    broken: list[str]


def gathered(said: Sequence[Said]) -> Answer:
    answer = Answer("", "", [], [])
    for one in said:
        match one:
            case Thought():
                answer.reasoning += one.text
            case Spoken():
                answer.content += one.text
            case Begun():
                assert one.index == len(answer.calls)
                answer.calls.append((one.name, ""))
            case Argued():
                name, arguments = answer.calls[one.index]
                answer.calls[one.index] = (name, arguments + one.text)
            case Broken():
                answer.broken.append(one.text)
                answer.content += one.text
    return answer


def answer_of(
    pieces: Sequence[str],
    format: Format | None,
    thinking: Markers | None = None,
    *,
    opened: bool = False,
    whole: bool = True,
    inline: bool = False,
    parallel: bool = True,
    tools: dict[str, str] = TOOLS,
) -> Answer:
    numbers = count()
    channels = Channels(
        format,
        thinking,
        tools=tools,
        new_id=lambda: f"id{next(numbers)}",
        opened=opened,
        inline=inline,
        parallel=parallel,
    )
    said = [one for piece in pieces for one in channels.feed(piece)]
    return gathered([*said, *channels.finish(whole=whole)])


# -- transcripts ------------------------------------------------------------------------------------------------------


@dataclass
class Transcript:
    format: Format
    thinking: Markers | None
    opened: bool
    text: str
    answer: Answer

    def read(self, pieces: Sequence[str]) -> Answer:
        return answer_of(pieces, self.format, self.thinking, opened=self.opened)


def transcript(path: Path) -> Transcript:
    head, _, text = path.read_text("utf-8").partition("\n----\n")
    lines = [line.partition(" ")[::2] for line in head.splitlines()]
    told = dict(lines)
    calls = [value.partition(" ")[::2] for name, value in lines if name == "call"]
    thinking = next((each for each in MARKERS if each.opens == told.get("thoughts")), None)
    broken = [value for name, value in lines if name == "broken"]
    content = text.removesuffix("\n") if broken else told.get("content", "")
    answer = Answer(told.get("reasoning", ""), content, calls, broken)
    return Transcript(NAMES[told["format"]], thinking, "opened" in told, text.removesuffix("\n"), answer)


def test_every_format_has_a_transcript() -> None:
    assert {transcript(path).format.name for path in TRANSCRIPTS} == set(NAMES)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_is_taken_apart_wherever_it_is_cut(path: Path) -> None:
    given = transcript(path)
    whole = given.read([given.text])
    assert (whole.reasoning, len(whole.broken)) == (given.answer.reasoning, len(given.answer.broken))
    assert whole.content.split() == given.answer.content.split()
    assert all(
        text.lstrip().startswith(begin) for text, begin in zip(whole.broken, given.answer.broken, strict=True)
    )
    assert [(name, json.loads(arguments)) for name, arguments in whole.calls] == [
        (name, json.loads(arguments)) for name, arguments in given.answer.calls
    ]
    for cut in range(1, len(given.text)):
        assert given.read([given.text[:cut], given.text[cut:]]) == whole, given.text[:cut]
    assert given.read(list(given.text)) == whole


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_that_is_cut_off_loses_nothing_it_can_show(path: Path) -> None:
    given = transcript(path)
    whole = given.read([given.text])
    for end in range(len(given.text)):
        part = answer_of([given.text[:end]], given.format, given.thinking, opened=given.opened, whole=False)
        assert not part.broken or whole.broken
        assert whole.reasoning.startswith(part.reasoning.rstrip()[: len(whole.reasoning)])
        for (name, arguments), (known, complete) in zip(part.calls, whole.calls, strict=False):
            assert name == known and complete.startswith(arguments)


fragments = st.lists(
    st.sampled_from(
        [
            "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "find",
            "{", "}",
            '{"name": "find", "arguments": ', '"place"', ": ", '"Oslo"', '"a\\"b"', "[", "]", ",", "\n", " ", "x", "<",
            "3",
            "<function=find>", "<parameter=place>", "</parameter>", "</function>", "<arg_key>place</arg_key>",
            "<arg_value>", "</arg_value>", "<|channel|>", "<|message|>", "<|end|>", "to=functions.find", "analysis",
            "final", "<|tool_call>", "call:find{", 'place:<|"|>', '<|"|>', "<tool_call|>", "true", "\\", "é",
        ]
    ),
    max_size=14,
)  # fmt: skip


@given(
    fragments,
    st.sampled_from([*FORMATS, GENERIC]),
    st.sampled_from([None, THINK]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_the_cuts_never_matter(
    parts: list[str], format: Format, thinking: Markers | None, opened: bool, whole: bool, data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def read(pieces: Sequence[str]) -> Answer:
        return answer_of(pieces, format, thinking, opened=opened and thinking is not None, whole=whole)

    assert read(pieces) == read([text])
    assert read(list(text)) == read([text])


# -- thinking ---------------------------------------------------------------------------------------------------------


def test_a_thought_is_split_off_as_it_comes() -> None:
    channels = Channels(None, THINK, tools={}, new_id=str)
    assert channels.feed("<th") == []
    assert channels.feed("ink>\nWhy") == [Thought("Why")]
    assert channels.thinking
    assert channels.feed(" not?\n</thi") == [Thought(" not?")]
    assert channels.feed("nk>\n\n") == []
    assert channels.feed("Yes.\n") == [Spoken("Yes.\n")]
    assert channels.finish(whole=True) == []


def test_a_thought_whose_opening_is_in_the_prompt() -> None:
    assert answer_of(["Hm.\n</think>\n\nYes."], None, THINK, opened=True) == Answer("Hm.", "Yes.", [], [])


def test_an_answer_without_a_thought_is_content() -> None:
    assert answer_of(["Yes <b>."], None, THINK) == Answer("", "Yes <b>.", [], [])


def test_a_thought_that_never_ends_is_reasoning() -> None:
    assert answer_of(["<think>On and "], None, THINK, whole=False) == Answer("On and ", "", [], [])


def test_inline_reasoning_stays_in_the_content_between_tags() -> None:
    answer = answer_of(["Hm.</think>Yes."], None, THINK, opened=True, inline=True)
    assert answer == Answer("", "<think>\nHm.\n</think>\n\nYes.", [], [])


# -- calls ------------------------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "find", "arguments": {"place": "Oslo"}}\n</tool_call>'


def test_arguments_leave_while_they_are_written() -> None:
    channels = Channels(GENERIC, None, tools=TOOLS, new_id=lambda: "id")
    assert channels.feed('<tool_call>{"name": "find", "arg') == []
    assert channels.feed('uments": {"place": "Os') == [Begun(0, "id", "find"), Argued(0, '{"place": "Os')]
    assert channels.feed('lo"}}') == [Argued(0, 'lo"}')]
    assert channels.called == 1


@pytest.mark.parametrize("name", ["llama3", "harmony", "hermes"])
def test_content_that_goes_on_keeps_its_first_space_and_may_end_in_a_call(name: str) -> None:
    channels = Channels(NAMES[name], None, tools=TOOLS, new_id=str, resumed=True)
    call = NAMES[name].writing.text([("find", '{"place": "Oslo"}')])
    lead = {"harmony": "<|end|><|start|>assistant", "llama3": "<|python_tag|>"}.get(name, "")
    said = [*channels.feed('  {"name": 3} it is.'), *channels.feed(lead + call), *channels.finish(whole=True)]
    assert gathered(said) == Answer("", '  {"name": 3} it is.', [("find", '{"place": "Oslo"}')], [])


def test_json_that_no_marker_announces_is_no_broken_call() -> None:
    text = '{"answer": 3}'
    assert answer_of([text], NAMES["llama3"]) == Answer("", text, [], [])
    begun = '{"name": "find", "parameters": {"place": Oslo}}'
    answer = answer_of([begun], NAMES["llama3"])
    assert len(answer.broken) == 1 and answer.content == begun


def test_without_tools_markers_mean_nothing() -> None:
    assert answer_of([CALL], GENERIC, tools={}).content == CALL


def test_the_answer_ends_with_its_one_call_where_only_one_is_wanted() -> None:
    channels = Channels(GENERIC, None, tools=TOOLS, new_id=lambda: "id", parallel=False)
    assert gathered(channels.feed(CALL + CALL)).calls == [("find", '{"place": "Oslo"}')]
    assert channels.complete
    assert channels.feed("more") == []


@pytest.mark.parametrize(
    ("text", "begun"),
    [
        ('<tool_call>{"name": "remove", "arguments": {}}</tool_call>', False),
        ('<tool_call>{"name": "find", "arguments": {"place": Oslo}}</tool_call>', True),
        ('<tool_call>{"name": "find", "arguments": [1]}</tool_call>', False),
        ("<tool_call>find it</tool_call>", False),
        ('<tool_call>{"name": "find"', False),
        ('<tool_call>{"name": "find", "arguments": {"place": "Os', True),
        ('<tool_call>{"name": "find", "arguments": {"place": ' + "[" * 99, True),
    ],
)
def test_what_is_no_call_is_content(text: str, begun: bool) -> None:
    answer = answer_of([text], GENERIC)
    assert answer.content == text
    assert len(answer.broken) == 1
    if not begun:
        assert not [call for call in answer.calls if call[1]]


def test_a_call_cut_off_stays_half() -> None:
    answer = answer_of(['<tool_call>{"name": "find", "arguments": {"place": "Os'], GENERIC, whole=False)
    assert answer == Answer("", "", [("find", '{"place": "Os')], [])


def test_line_feeds_that_a_model_forgot_to_escape_are_escaped() -> None:
    (call,) = answer_of([CALL.replace("Oslo", "Os\nlo")], GENERIC).calls
    assert json.loads(call[1]) == {"place": "Os\nlo"}


def test_the_order_of_an_envelopes_members_does_not_matter() -> None:
    text = '<tool_call>{"arguments": {"place": "Oslo"}, "id": "7", "name": "find"}</tool_call>'
    assert answer_of([text], GENERIC).calls == [("find", '{"place": "Oslo"}')]


def test_a_tagged_value_has_the_type_that_its_schema_says() -> None:
    text = "<tool_call>\n<function=find>\n<parameter=place>\n42\n</parameter>\n<parameter=count>\n42\n</parameter>\n"
    (call,) = answer_of([text + "</function>\n</tool_call>"], NAMES["qwen3-coder"]).calls
    assert json.loads(call[1]) == {"place": "42", "count": 42}


OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        (OPTIONAL, "10115", "10115"),
        (OPTIONAL, "true", "true"),
        (OPTIONAL, "null", None),
        ({"type": ["string", "null"]}, "[1]", "[1]"),
        ({"type": ["string", "integer"]}, "10115", 10115),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": ["1", 2]}, "2", 2),
        ({}, "10115", 10115),
        ({"anyOf": [{"type": "string"}, {}]}, "10115", 10115),
    ],
)
def test_a_tagged_value_that_may_be_a_string_is_one_where_nothing_else_fits(
    schema: dict[str, object], written: str, value: object
) -> None:
    tools = {"find": json.dumps({"type": "object", "properties": {"code": schema}})}
    text = (
        f"<tool_call>\n<function=find>\n<parameter=code>\n{written}\n</parameter>\n</function>\n</tool_call>"
    )
    (call,) = answer_of([text], NAMES["qwen3-coder"], tools=tools).calls
    assert json.loads(call[1]) == {"code": value}


def test_kimis_ids_are_kept() -> None:
    channels = Channels(NAMES["kimi"], None, tools=TOOLS, new_id=str)
    text = '<|tool_call_begin|>functions.find:3<|tool_call_argument_begin|>{"place": "Oslo"}<|tool_call_end|>'
    assert channels.feed(text)[0] == Begun(0, "functions.find:3", "find")


@pytest.mark.parametrize("format", NAMES.values(), ids=lambda f: f.name)
def test_a_format_reads_what_it_writes(format: Format) -> None:
    calls = [("find", '{"place": "Oslo", "count": 3}'), ("find", '{"place": "Rome"}')]
    answer = answer_of([format.writing.text(calls)], format)
    assert [(name, json.loads(text)) for name, text in answer.calls] == [(n, json.loads(t)) for n, t in calls]
    assert not answer.content.strip()
