"""What comes of an image call's events: one document, or OpenAI's events."""

import base64
import json

from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
    ImagesResponse,
)
from pydantic import BaseModel

from oxlo_local.calls import Denoised, Done, Drawn, Event, Preview, Started, Usage
from oxlo_local.protocol.images.answer import renderer
from oxlo_local.protocol.images.request import Task, decode
from tests.openai_description import described, description, events_of, judge

EVENTS: list[Event] = [
    Started("i", 5, 0),
    Denoised("i", 0, 1, 2),
    Preview("i", 0, 0, b"half"),
    Denoised("i", 0, 2, 2),
    Drawn("i", 0, b"first", 64, 96, 7),
    Drawn("i", 1, b"second", 64, 96, 8),
    Done("i", Usage(images=2, steps=2, prompt_tokens=5)),
]
SCHEMAS: dict[str, tuple[str, type[BaseModel]]] = {
    "image_generation.partial_image": ("ImageGenPartialImageEvent", ImageGenPartialImageEvent),
    "image_generation.completed": ("ImageGenCompletedEvent", ImageGenCompletedEvent),
    "image_edit.partial_image": ("ImageGenPartialImageEvent", ImageEditPartialImageEvent),
    "image_edit.completed": ("ImageGenCompletedEvent", ImageEditCompletedEvent),
}


def answered(task: Task = "generate", urls: dict[int, str] | None = None, **fields: object) -> bytes:
    body = {"prompt": "x", **({} if task == "generate" else {"image": "eA=="}), **fields}
    request = decode(json.dumps(body).encode(), task, strict=True, max_n=10)[0].request
    made = renderer(request, task, model="m", created=1000, urls=urls or {})
    return b"".join(made.add(event) for event in EVENTS)


def judged(name: str, value: dict[str, object]) -> None:
    """As OpenAI describes it, but for the real size, which is none of its own."""
    judge(name, {**value, "size": "1024x1024"})


def test_a_document_brings_the_images() -> None:
    told = json.loads(answered(n=2))
    judged("ImagesResponse", told)
    ImagesResponse.model_validate_json(json.dumps(told), strict=True)
    assert [base64.b64decode(each["b64_json"]) for each in told["data"]] == [b"first", b"second"]
    assert [each["seed"] for each in told["data"]] == [7, 8]
    assert (told["size"], told["quality"], told["output_format"], told["background"]) == (
        "64x96", "medium", "png", "opaque",
    )  # fmt: skip
    assert (told["created"], told["model"]) == (1000, "m")
    assert told["usage"]["input_tokens"] == told["usage"]["total_tokens"] == 5
    assert (told["usage"]["images"], told["usage"]["steps"]) == (2, 2)


def test_a_document_says_where_the_images_are() -> None:
    told = json.loads(answered(urls={0: "http://h/a", 1: "http://h/b"}, response_format="url", quality="hd"))
    judged("ImagesResponse", told)
    assert [each["url"] for each in told["data"]] == ["http://h/a", "http://h/b"]
    assert told["quality"] == "high" and not any("b64_json" in each for each in told["data"])


def test_steps_of_the_clients_own_are_no_quality_of_openais() -> None:
    assert "quality" not in json.loads(answered(steps=3))


def test_a_stream_is_openais_events() -> None:
    for task, prefix in (("generate", "image_generation"), ("edit", "image_edit")):
        events = events_of(answered(task, stream=True, partial_images=1, size="64x96"))  # type: ignore[arg-type]
        assert [event["type"] for event in events] == [
            f"{prefix}.partial_image",
            f"{prefix}.completed",
            f"{prefix}.completed",
        ]
        for event in events:
            schema, kind = SCHEMAS[str(event["type"])]
            kind.model_validate_json(json.dumps(event), strict=True)
            if described() and task == "generate":
                judged(schema, event)
        assert [event["index"] for event in events] == [0, 0, 1] and events[0]["partial_image_index"] == 0
        assert [event.get("seed") for event in events] == [None, 7, 8]


def test_progress_is_told_to_whoever_asks() -> None:
    events = events_of(answered(stream=True, progress=True))
    assert [event for event in events if event["type"] == "image_generation.progress"] == [
        {"type": "image_generation.progress", "index": 0, "step": step, "of": 2} for step in (1, 2)
    ]
    assert "progress" not in str([event["type"] for event in events_of(answered(stream=True))])


def test_the_description_is_still_what_these_tests_know() -> None:
    if described():
        schemas = description()["components"]["schemas"]  # type: ignore[index]
        assert {name for name, _ in list(SCHEMAS.values())[:2]} <= schemas.keys()
