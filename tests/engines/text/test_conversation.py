"""Conversations with calls in the form that a template takes."""

from oxlo_local.calls import Message, Tool, ToolCall
from oxlo_local.engines.text.conversation import Style, as_text, fields, joined, short, tool_object
from oxlo_local.engines.text.toolcalls.generic import GENERIC
from oxlo_local.engines.text.toolcalls.granite import GRANITE

ONE, TWO = ToolCall("one", "find", '{"place": "Oslo"}'), ToolCall("two", "find", '{"place": "Rome"}')
CALLS = Message("assistant", "I look.", tool_calls=[ONE, TWO], reasoning="Hm.")
NORTH, SOUTH = Message("tool", "north", tool_call_id="one"), Message("tool", "south", tool_call_id="two")


def test_results_come_in_the_order_of_the_calls_and_are_named() -> None:
    assert as_text([CALLS, SOUTH, NORTH], Style(), GENERIC) == [
        CALLS,
        Message("tool", "north", "find", tool_call_id="one"),
        Message("tool", "south", "find", tool_call_id="two"),
    ]


def test_a_template_of_single_calls_gets_a_turn_for_each() -> None:
    turns = as_text([CALLS, SOUTH, NORTH], Style(single=True), GENERIC)
    assert [(turn.role, turn.content) for turn in turns] == [
        ("assistant", "I look."), ("tool", "north"), ("assistant", ""), ("tool", "south"),
    ]  # fmt: skip
    assert [turn.tool_calls for turn in turns[::2]] == [[ONE], [TWO]]
    assert [turn.reasoning for turn in turns[::2]] == ["Hm.", None]


def test_what_a_template_drops_is_told_as_text() -> None:
    turns = as_text([CALLS, NORTH, SOUTH], Style(calls=False, results=False), GRANITE)
    assert [turn.role for turn in turns] == ["assistant", "user"]
    assert turns[0].content == (
        'I look.\n<|tool_call|>[{"name": "find", "arguments": {"place": "Oslo"}}, '
        '{"name": "find", "arguments": {"place": "Rome"}}]'
    )
    assert not turns[0].tool_calls
    assert turns[1].content.index("north") < turns[1].content.index("south")


def test_users_are_not_joined_where_there_is_no_result() -> None:
    users = [Message("user", "a"), Message("user", "b")]
    assert as_text(users, Style(results=False), GENERIC) == users


def test_turns_with_calls_are_never_joined() -> None:
    turns = [Message("assistant", "a"), CALLS]
    assert joined(turns, ("assistant",)) == turns


def test_a_message_has_the_fields_that_it_was_given_and_no_others() -> None:
    assert fields(Message("user", "x"), parts=False, style=Style()) == {"role": "user", "content": "x"}
    silent = Message("assistant", "", tool_calls=[ONE], reasoning="Hm.")
    style = Style(object_arguments=False, blank=None, short_ids=True, thought="reasoning_content")
    assert fields(silent, parts=False, style=style) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": short("one"),
                "type": "function",
                "function": {"name": "find", "arguments": '{"place": "Oslo"}'},
            }
        ],
        "reasoning_content": "Hm.",
    }
    call = fields(CALLS, parts=False, style=Style())["tool_calls"]
    assert call[0]["function"]["arguments"] == {"place": "Oslo"}  # type: ignore[index]


def test_a_short_id_is_nine_letters_and_digits_and_always_the_same() -> None:
    assert short("a1B2c3D4e") == "a1B2c3D4e"
    assert short("call_123") == short("call_123") != short("call_124")
    assert len(short("call_123")) == 9 and short("call_123").isalnum()


def test_a_tool_is_shown_as_openai_has_it() -> None:
    assert tool_object(Tool("find", '{"type":"object"}')) == {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object"}},
    }
