"""Chat templates: the vendors' own, and the traits of each made small."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.calls import Message
from oxlo_local.engines.text import prompt
from oxlo_local.engines.text.conversation import leading_systems, truncate
from oxlo_local.engines.text.prompt import ChatTemplate
from oxlo_local.errors import BadRequest, ServerError

VENDORS = Path(__file__).parents[4] / "shared" / "templates"
NOON = datetime(2026, 7, 26, 12, 0)

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RAISES_ON_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("in messages %}", "in messages if message.role != 'system' %}")
HEAD_SYSTEM_ONLY = CHATML.replace(
    "in messages %}",
    "in messages %}{% if message.role == 'system' and loop.index0 %}{% continue %}{% endif %}",
)
LAST_SYSTEM_WINS = (
    "{% set ns = namespace(s='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}{% endif %}{% endfor %}[{{ ns.s }}]"
) + DROPS_SYSTEM
ALTERNATES = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
) + CHATML
FIRST_SYSTEM_ONLY = (
    "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('System comes first') }}"
    "{% endif %}{% endfor %}"
) + CHATML


def system(content: str) -> Message:
    return Message(role="system", content=content)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


TALK = [system("Be terse."), user("First?"), assistant("One."), user("Second?")]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", clock=lambda: NOON)


# -- the vendors' templates -------------------------------------------------------------------------------------------

vendors = sorted(VENDORS.glob("*.jinja"))


@pytest.mark.skipif(not vendors, reason="the folder of vendors' templates is not beside this checkout")
@pytest.mark.parametrize("path", vendors, ids=lambda path: path.stem)
def test_a_vendors_template_renders_continues_and_loses_nothing(path: Path) -> None:
    vendor = template(path.read_text())
    text = vendor.render(TALK)
    places = [text.index(turn.content) for turn in TALK]
    assert places[1:] == sorted(places[1:])  # Mistral-Nemo puts the system message last
    assert "None" not in text.replace("/None", "")
    assert vendor.render([*TALK[:2], assistant("The answer is ")]).endswith("The answer is ")
    late = [*TALK[:3], system("Now in French."), system("Politely."), user("Third?"), user("Fourth?")]
    text = vendor.render(late)
    assert all(turn.content in text for turn in late)


# -- what transformers offers -----------------------------------------------------------------------------------------


def test_blocks_are_trimmed_and_optional_variables_are_undefined() -> None:
    source = "  {% if tools is defined %}\nT\n{% endif %}\n  {% if not documents %}\nD{{ nothing }}\n  {% endif %}\nE"
    assert template(source).render([user("x")]) == "D\nE"


def test_the_vendors_functions_and_filters_are_there() -> None:
    source = "{{ strftime_now('%d %b %Y') }} {{ {'k': 'é<', 'a': [1, none]} | tojson }} {{ bos_token }}{{ eos_token }}"
    assert template(source).render([user("x")]) == '26 Jul 2026 {"k": "é<", "a": [1, null]} <s></s>'


def test_tojson_takes_what_transformers_takes() -> None:
    source = "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=True, indent=1, separators=(',', ':'), sort_keys=true) }}"
    assert template(source).render([user("x")]) == '{\n "a":"\\u00e9",\n "b":1\n}'


def test_loop_controls_work() -> None:
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}"
    assert template(source).render([user("a"), assistant("b"), user("c")]) == "b"


def test_generation_tags_mean_nothing() -> None:
    source = "a{% generation %}{{ messages[0].content }}{% set x = 1 %}{% endgeneration %}{{ x is defined }}"
    assert template(source).render([user("b")]) == "abFalse"


def test_text_that_comes_only_with_tools_may_be_added() -> None:
    assert template("{% set s = 'a' + functions %}{{ s }}{{ functions + 'b' }}").render([user("x")]) == "ab"


def test_the_date_is_a_day() -> None:
    assert template("Today is {{ datetime }}").render([user("x")]) == "Today is Jul 26 2026"


def test_a_name_is_defined_only_where_it_was_given() -> None:
    source = "{% for m in messages %}{{ m.name if m.name is defined else '-' }}{% endfor %}"
    assert template(source).render([user("x"), Message(role="user", content="y", name="Ann")]) == "-Ann"


# -- what a template cannot take --------------------------------------------------------------------------------------


def test_a_system_message_is_left_where_it_is_taken() -> None:
    plain = template(CHATML)
    assert not plain.folds_system
    assert plain.render(TALK[:2]) == "<|system|>Be terse.<|end|>\n<|user|>First?<|end|>\n<|assistant|>"


@pytest.mark.parametrize("source", [RAISES_ON_SYSTEM, DROPS_SYSTEM])
def test_a_rejected_system_message_is_folded_into_the_user_turn(source: str) -> None:
    folding = template(source)
    assert folding.folds_system
    assert (
        folding.render([system("A"), system("B"), user("C")]) == "<|user|>A\n\nB\n\nC<|end|>\n<|assistant|>"
    )
    assert folding.render([system("A"), assistant("B"), user("C")]) == (
        "<|user|>A<|end|>\n<|assistant|>B<|end|>\n<|user|>C<|end|>\n<|assistant|>"
    )
    assert folding.render([system("A")]) == "<|user|>A<|end|>\n<|assistant|>"


@pytest.mark.parametrize("source", [HEAD_SYSTEM_ONLY, FIRST_SYSTEM_ONLY, LAST_SYSTEM_WINS])
def test_a_later_system_message_is_folded_where_only_the_first_is_taken(source: str) -> None:
    text = template(source).render(
        [system("A"), system("B"), user("C"), assistant("D"), system("E"), user("F")]
    )
    assert "A\n\nB" in text
    assert text.endswith("<|user|>E\n\nF<|end|>\n<|assistant|>")


def test_neighbours_of_one_role_are_joined_where_roles_must_alternate() -> None:
    text = template(ALTERNATES).render([user("A"), user("B"), assistant("C"), assistant("D"), user("E")])
    assert text == "<|user|>A\n\nB<|end|>\n<|assistant|>C\n\nD<|end|>\n<|user|>E<|end|>\n<|assistant|>"
    assert "A<|end|>" in template(CHATML).render([user("A"), user("B")])


def test_content_is_a_list_of_parts_where_the_template_reads_one() -> None:
    source = CHATML.replace("message.content }}", "message.content[0].text }}")
    assert template(source).render([user("A")]) == "<|user|>A<|end|>\n<|assistant|>"


def test_developer_is_system_unless_the_template_knows_it() -> None:
    developer = Message(role="developer", content="A")
    assert template(CHATML).render([developer]).startswith("<|system|>A")
    assert template(CHATML + "{# developer #}").render([developer]).startswith("<|developer|>A")


# -- continuing -------------------------------------------------------------------------------------------------------


def test_a_last_assistant_turn_is_continued_exactly() -> None:
    source = CHATML.replace("message.content }}", "message.content | trim }}")
    assert template(source).render([user("A"), assistant("B ")]) == "<|user|>A<|end|>\n<|assistant|>B "
    assert template(CHATML).render([user("A"), assistant("")]) == "<|user|>A<|end|>\n<|assistant|>"


def test_without_a_generation_prompt_every_turn_is_closed() -> None:
    text = template(CHATML).render([user("A"), assistant("B")], new_turn=True)
    assert text == "<|user|>A<|end|>\n<|assistant|>B<|end|>\n<|assistant|>"


def test_a_template_that_cannot_continue_says_so() -> None:
    source = CHATML.replace("message.content }}", "message.content | length }}")
    with pytest.raises(BadRequest, match="cannot continue") as refused:
        template(source).render([user("A"), assistant("B")])
    assert refused.value.param == "messages"


# -- refusals and bounds ----------------------------------------------------------------------------------------------


def test_a_template_that_does_not_compile_is_an_error_with_its_line() -> None:
    with pytest.raises(ServerError, match=r"endfor.*line 2"):
        template("x\n{% endfor %}")


def test_a_refusal_comes_in_the_templates_own_words() -> None:
    with pytest.raises(BadRequest, match="roles must alternate") as refused:
        template(ALTERNATES).render([assistant("A"), user("B")])
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].content + 1 }}", "{{ nothing.more }}", "{{ messages.append(1) }}"],
)
def test_a_template_that_fails_refuses_the_conversation(source: str) -> None:
    with pytest.raises(BadRequest, match="refuses this conversation"):
        template(source).render([user("A")])


def test_no_message_at_all_is_refused() -> None:
    with pytest.raises(BadRequest, match="empty"):
        template(CHATML).render([])


def test_the_sandbox_hides_pythons_insides() -> None:
    assert (
        template("{{ ''.__class__ }}{{ messages.__init__ }}{{ raise_exception.__globals__ }}").render(TALK)
        == ""
    )


def test_the_clients_words_are_never_run() -> None:
    assert "{{ 1 + 1 }}" in template(CHATML).render([user("{{ 1 + 1 }}")])


@pytest.mark.parametrize(
    "body",
    [
        "{% if a.content == b.content %}{% endif %}",  # no output
        "{% set x = a['content'] %}",
        "x",
    ],
)
def test_time_is_bounded_where_a_template_is_quadratic(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(prompt, "RENDER_SECONDS", 0.2)
    quadratic = template("{% for a in messages %}{% for b in messages %}" + body + "{% endfor %}{% endfor %}")
    began = time.thread_time()
    with pytest.raises(BadRequest, match=r"fewer messages|more text"):
        quadratic.render([user("A")] * 20_000)
    assert time.thread_time() - began < 2


def test_time_is_bounded_where_a_template_only_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "RENDER_SECONDS", 0.2)
    source = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(BadRequest, match="fewer messages"):
        template(source).render([user("A")])
    with pytest.raises(BadRequest, match="Range too big"):
        template("{% for i in range(10 ** 9) %}{% endfor %}").render([user("A")])


def test_threads_that_render_at_once_have_a_clock_each(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = template("{{ meanwhile() }}" + CHATML)

    def meanwhile() -> str:
        """Another thread begins to render, and has no time left."""
        monkeypatch.setattr(prompt, "RENDER_SECONDS", -1.0)
        with ThreadPoolExecutor(1) as other:
            late = other.submit(chat.render, [user("B")], switches={"meanwhile": str})
            with pytest.raises(BadRequest, match="fewer messages"):
                late.result()
        return ""

    assert "A" in chat.render([user("A")], switches={"meanwhile": meanwhile})


def test_output_is_bounded_where_a_template_multiplies() -> None:
    source = "{% for a in messages %}{% for b in messages %}{{ b.content }}{% endfor %}{% endfor %}"
    with pytest.raises(BadRequest, match="far more text"):
        template(source).render([user("x" * 10_000)] * 100)


def test_a_long_conversation_is_within_the_bounds() -> None:
    talk = [user("x" * 1000), assistant("y" * 1000)] * 2000 + [user("z")]
    assert len(template(CHATML).render(talk)) > 4_000_000


# -- truncation -------------------------------------------------------------------------------------------------------

turns = st.lists(st.sampled_from([user("u"), assistant("a"), system("s")]), min_size=1, max_size=30)


@given(turns, st.integers(0, 31))
def test_truncation_drops_as_few_of_the_oldest_turns_as_it_can(talk: list[Message], room: int) -> None:
    asked = 0

    def fits(part: Sequence[Message]) -> bool:
        nonlocal asked
        asked += 1
        return len(part) <= room

    head = leading_systems(talk)
    starts = [i for i in range(head + 1, len(talk)) if talk[i].role == "user"]
    candidates = [talk, *([*talk[:head], *talk[i:]] for i in starts)]
    expected = next((part for part in candidates if len(part) <= room), None)
    found = truncate(talk, fits)
    assert found == expected
    assert asked <= 8


def test_truncation_keeps_the_system_message_and_the_last_question() -> None:
    talk = [system("s"), user("1"), assistant("2"), user("3"), assistant("4"), user("5")]
    assert truncate(talk, lambda part: len(part) <= 4) == [talk[0], *talk[3:]]
    assert truncate(talk, lambda part: len(part) <= 2) == [talk[0], talk[5]]
    assert truncate(talk, lambda part: len(part) <= 1) is None
