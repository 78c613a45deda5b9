"""Anthropic's messages as the turns of a chat: nothing is lost, and what does not fit together is refused."""

import pytest

from oxlo_local.calls import Message, ToolCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from tests.protocol.messages.asking import asked, call, warnings


def text(words: str, **more: object) -> dict[str, object]:
    return {"type": "text", "text": words, **more}


def user(*content: object) -> dict[str, object]:
    return {"role": "user", "content": list(content)}


def said(*content: object) -> dict[str, object]:
    return {"role": "assistant", "content": list(content)}


def use(id: str, **given: object) -> dict[str, object]:
    return {"type": "tool_use", "id": id, "name": "find", "input": given}


def result(id: str, content: object = "found", **more: object) -> dict[str, object]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def turns(*messages: dict[str, object], **fields: object) -> list[Message]:
    made = call(messages=list(messages), **fields).messages
    assert made is not None
    return made


def test_strings_and_blocks() -> None:
    assert turns({"role": "user", "content": "hi"}) == turns(user(text("hi"))) == [Message("user", "hi")]
    assert turns(user(text("a"), text("b")))[0].content == "a\nb"
    assert turns(user(text("a")), system=[text("x"), text("y")])[0] == Message("system", "x\ny")


def test_neighbours_of_one_role_are_one_turn() -> None:
    found = turns(user(text("a")), user(text("b")), said(text("c")), said(text("d")), user(text("e")))
    assert found == [Message("user", "a\nb"), Message("assistant", "cd"), Message("user", "e")]


def test_a_last_assistant_message_is_there_to_be_continued() -> None:
    assert turns(user(text("a")), said(text("b")))[-1] == Message("assistant", "b")


def test_a_system_message_in_between_stays_where_it_is() -> None:
    roles = [t.role for t in turns(user(text("a")), {"role": "system", "content": "s"}, user(text("b")))]
    assert roles == ["user", "system", "user"]


def test_a_call_and_its_result() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    found = turns(
        user(text("where?")),
        said(thought, text("Let me look."), use("1", place="x"), use("2")),
        user(result("2", [text("b"), text("c")]), text("go on"), result("1", is_error=True)),
    )
    calls = [ToolCall("1", "find", '{"place":"x"}'), ToolCall("2", "find", "{}")]
    assert found == [
        Message("user", "where?"),
        Message("assistant", "Let me look.", tool_calls=calls, reasoning="hm"),
        Message("tool", "b\nc", tool_call_id="2"),
        Message("tool", "Error: found", tool_call_id="1"),
        Message("user", "go on"),
    ]


def test_results_may_come_in_two_messages_and_may_be_empty() -> None:
    found = turns(
        user(text("?")), said(use("1"), use("2")), user(result("1", None)), user(result("2", [])), said(text("so"))
    )  # fmt: skip
    assert [(t.role, t.content) for t in found[2:]] == [("tool", ""), ("tool", ""), ("assistant", "so")]


def test_documents_and_passages_are_shown_as_text() -> None:
    document = {
        "type": "document",
        "title": 'A "title"',
        "context": "old",
        "source": {"type": "text", "media_type": "text/plain", "data": "words"},
    }
    passage = {"type": "search_result", "source": "s", "title": "t", "content": [text("found")]}
    nested = {"type": "document", "source": {"type": "content", "content": [text("one"), text("two")]}}
    plain = {"type": "document", "source": {"type": "content", "content": "three"}}
    (turn,) = turns(user(document, passage, nested, plain))
    assert turn.content == (
        '<document title="A \\"title\\"" context="old">\nwords\n</document>\n'
        '<search_result source="s" title="t">\nfound\n</search_result>\n'
        "<document>\none\ntwo\n</document>\n<document>\nthree\n</document>"
    )


def test_a_thought_that_nobody_here_can_read_is_said_to_have_no_effect() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    messages = [user(text("?")), said(redacted, text("so")), user(text("!"))]
    assert turns(*messages)[1] == Message("assistant", "so")
    assert warnings(messages=messages) == [
        "messages[1].content[0] has no effect: its thoughts can be read by their maker only"
    ]


DEEP: object = {}
for _ in range(400):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([user(text("?")), said(use("1"))], "messages[1].content[0]"),
        ([user(text("?")), said(use("1")), user(text("x"))], "messages[1].content[0]"),
        ([user(text("?")), said(use("1"), use("2")), user(result("1"))], "messages[1].content[1]"),
        ([user(text("?")), said(use("1"), use("1"))], "messages[1].content[1].id"),
        ([user(result("1"))], "messages[0].content[0].tool_use_id"),
        ([user(text("?")), said(use("1")), user(result("2"), result("1"))], "messages[2].content[0].tool_use_id"),
        ([user(text("?")), said(use("1")), user(result("1"), result("1"))], "messages[2].content[1].tool_use_id"),
        ([user(use("1"))], "messages[0].content[0].type"),
        ([said(result("1"))], "messages[0].content[0].type"),
        ([{"role": "system", "content": [use("1")]}], "messages[0].content[0].type"),
        ([user(text("?")), said({**use("1"), "input": "{}"})], "messages[1].content[0].input"),
        ([user(text("?")), said(use("1", n=DEEP))], "messages[1].content[0].input"),
        ([user(text("?")), said({**use("1"), "id": ""})], "messages[1].content[0].id"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(messages: list[dict[str, object]], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(messages=messages)
    assert refused.value.param == param


def image(url: str | None = None) -> dict[str, object]:
    if url is not None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def test_images_become_marks_beside_which_no_line_is_fed() -> None:
    result_image = result("1", [text("see"), image("https://example.com/x.png")])
    made = call(
        messages=[
            user(text("a"), image(), text("b"), text("c")),
            said(use("1")),
            user(result_image, image()),
        ]
    )
    first, second, third = made.pictures
    assert made.messages is not None
    assert [turn.content for turn in made.messages] == [
        f"a{first.mark}b\nc",
        "",
        f"see{second.mark}",
        third.mark,
    ]
    assert (first.url, second.url) == ("data:image/png;base64,AAAA", "https://example.com/x.png")
    assert [picture.param for picture in made.pictures] == [
        "messages[0].content[1].source.data",
        "messages[2].content[0].content[1].source.url",
        "messages[2].content[1].source.data",
    ]
    assert len({picture.mark for picture in made.pictures}) == 3
    assert first.mark != call(messages=[user(image())]).pictures[0].mark, "nobody can guess a mark"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([image("ftp://x")], "messages[0].content[0].source.url"),
        ([image("file:///etc/passwd")], "messages[0].content[0].source.url"),
        (
            [{"type": "image", "source": {"type": "file", "file_id": "x"}}],
            "messages[0].content[0].source.type",
        ),
        ([image()] * 65, "messages"),
    ],
)
def test_what_can_be_no_image_is_named(content: list[dict[str, object]], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(messages=[user(*content)])
    assert refused.value.param == param


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}}
CITED = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "x"},
    "citations": {"enabled": True},
}


@pytest.mark.parametrize(
    ("block", "param"),
    [
        (PDF, "messages[0].content[0].source.type"),
        (CITED, "messages[0].content[0].citations.enabled"),
        ({"type": "web_search_tool_result", "tool_use_id": "1"}, "messages[0].content[0].type"),
    ],
)
def test_what_cannot_be_read_is_refused(block: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedValue) as refused:
        asked(messages=[user(block)])
    assert refused.value.param == param
