import pytest

from oxlo_local.errors import BadRequest
from oxlo_local.protocol.forms import Kinds, members_of

KINDS = Kinds(lists=frozenset({"words"}), objects=frozenset({"vad", "metadata"}))


@pytest.mark.parametrize(
    ("fields", "members"),
    [
        ([("a", "1"), ("b", "x y")], {"a": "1", "b": "x y"}),
        ([("a", ""), ("words", ""), ("words[]", "")], {}),
        ([("words[]", "x"), ("words[]", "y")], {"words": ["x", "y"]}),
        ([("words", "x"), ("words", "y")], {"words": ["x", "y"]}),
        ([("words[0]", "x"), ("words[1]", "y")], {"words": ["x", "y"]}),
        ([("words", '["x", "y"]'), ("words", "[z")], {"words": ["x", "y", "[z"]}),
        ([("vad", "auto")], {"vad": "auto"}),
        ([("vad[type]", "t"), ("vad[threshold]", "0.5")], {"vad": {"type": "t", "threshold": "0.5"}}),
        ([("vad", '{"type": "t", "threshold": 0.5}')], {"vad": {"type": "t", "threshold": 0.5}}),
        ([("vad", "{broken")], {"vad": "{broken"}),
        ([("vad", "[" * 10_000)], {"vad": "[" * 10_000}),
        (
            [("a[]", "x"), ("a[b]", "y"), ("words[x]", "z"), ("[]", "")],
            {"a[]": "x", "a[b]": "y", "words[x]": "z"},
        ),
    ],
)
def test_every_spelling_of_a_member(fields: list[tuple[str, str]], members: object) -> None:
    assert members_of(fields, KINDS) == members


@pytest.mark.parametrize(
    "fields",
    [
        [("a", "1"), ("a", "1")],
        [("vad", "auto"), ("vad[type]", "t")],
        [("vad[type]", "t"), ("vad", "auto")],
        [("vad[type]", "t"), ("vad[type]", "t")],
    ],
)
def test_what_is_said_twice_is_named(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest) as caught:
        members_of(fields, KINDS)
    assert caught.value.param == fields[0][0].partition("[")[0] and "twice" in caught.value.message
