"""Asking a server for images: what is sent, and what is made of its stream."""

import base64
import json

import httpx
import pytest

from oxlo_local.client import EventStream
from oxlo_local.drawing import EDITS_PATH, GENERATIONS_PATH, Image, ImageBody, Step, encode, images_of
from oxlo_local.errors import ServerError, WorkerLost
from oxlo_local.protocol.images.request import decode


def stream_of(*events: bytes) -> EventStream:
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    return EventStream(httpx.Response(200, stream=httpx.ByteStream(body)))


def test_the_server_understands_what_is_sent() -> None:
    body = ImageBody(
        model="m",
        prompt="x",
        n=2,
        seed=3,
        steps=4,
        guidance_scale=5.0,
        negative_prompt="y",
        output_format="webp",
    )
    asked = decode(encode(body), "generate", strict=True, max_n=10)[0].request
    assert (asked.prompt, asked.n, asked.seed, asked.steps, asked.stream, asked.progress) == (
        "x", 2, 3, 4, True, True,
    )  # fmt: skip
    edit = ImageBody(model="m", prompt="x", image=b"\x89PNG", mask=b"mask", strength=0.5, embed_metadata=True)
    found = decode(encode(edit), "edit", strict=True, max_n=10)[0]
    assert (found.images[0].data, found.mask and found.mask.data) == (b"\x89PNG", b"mask")
    assert found.request.embed_metadata and (body.path, edit.path) == (GENERATIONS_PATH, EDITS_PATH)
    assert json.loads(encode(ImageBody(model="m", prompt="x"))).keys() == {
        "model", "prompt", "stream", "progress",
    }  # fmt: skip


def test_images_as_they_come() -> None:
    steps: list[Step] = []
    done = {
        "type": "image_generation.completed", "b64_json": base64.b64encode(b"png").decode(), "index": 0, "seed": 9,
        "size": "64x64", "output_format": "png",
    }  # fmt: skip
    stream = stream_of(
        b'{"type":"image_generation.progress","index":0,"step":1,"of":2}',
        b'{"type":"image_generation.partial_image","b64_json":"aGFsZg=="}',
        json.dumps(done).encode(),
        b"[DONE]",
    )
    assert list(images_of(stream, steps.append)) == [Image(0, b"png", 9, "64x64", "png")]
    assert steps == [Step(0, 1, 2)]


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        (b'{"error":{"message":"gone","code":"worker_lost"}}', WorkerLost, "gone"),
        (b"[1]", ServerError, "none of images"),
        (b'{"type":"x"}', ServerError, "without saying why"),
    ],
)
def test_a_stream_that_breaks(event: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        list(images_of(stream_of(event), lambda _: None))
