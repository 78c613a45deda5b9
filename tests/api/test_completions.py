from tests.api.conftest import Site
from tests.openai_description import events_of, judge, judge_completion_chunk

COMPLETIONS = "/v1/completions"


def test_a_whole_answer_has_a_choice_for_every_prompt_and_sample(site: Site) -> None:
    answer = site.client.post(COMPLETIONS, json={"model": "parrot", "prompt": "one two", "n": 2})
    value = answer.json()
    judge("CreateCompletionResponse", value)
    assert [(choice["index"], choice["finish_reason"]) for choice in value["choices"]] == [
        (0, "length"),
        (1, "length"),
    ]
    assert value["choices"][0]["text"] == "one two " * 8  # 16 tokens, as OpenAI has it
    assert value["model"] == "echo" and value["id"].startswith("cmpl-")
    row = site.rows()[-1]
    assert (row["endpoint"], row["status"], row["completion_tokens"]) == (COMPLETIONS, "settled", 32)


def test_a_streamed_answer(site: Site) -> None:
    body = {"model": "echo", "prompt": "one two", "max_tokens": 3, "stream": True, "metadata": {"a": "b"}}
    chunks = events_of(site.client.post(COMPLETIONS, json=body).content)
    for chunk in chunks:
        judge_completion_chunk(chunk)
    choices = [chunk["choices"][0] for chunk in chunks]  # type: ignore[index]
    assert "".join(choice["text"] for choice in choices) == "one two one "
    assert choices[-1]["finish_reason"] == "length"


def test_an_unknown_field_is_named(site: Site) -> None:
    answer = site.client.post(COMPLETIONS, json={"model": "echo", "prompt": "x", "n_predict": 4})
    assert answer.headers["x-oxlo-warnings"] == 'unknown field "n_predict" has no effect'
