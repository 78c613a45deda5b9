"""Images to what the client asked for: one document, or a stream of OpenAI's events.

Base64 is made of each image when it comes, not of all at the end: that would hold up other answers for longer.
"""

import base64
from collections.abc import Mapping
from typing import Final

import msgspec

from oxlo_local.calls import Denoised, Done, Drawn, Event, Preview, Started, Usage
from oxlo_local.protocol import parts
from oxlo_local.protocol.images.request import ImageRequest, Task, named

# OpenAI's names for it; a number of steps of the client's own is none of these.
_QUALITIES: Final = {"hd": "high", "high": "high", "low": "low"}
_PREFIXES: Final[dict[Task, str]] = {
    "generate": "image_generation",
    "edit": "image_edit",
    "vary": "image_edit",
}

_Object = dict[str, object]


def renderer(
    request: ImageRequest, task: Task, *, model: str, created: int, urls: Mapping[int, str]
) -> parts.Renderer:
    """What turns the events of `request` into the bytes that its client asked for.

    `urls` has the address of each image by its index, before the event of that image comes, where addresses are asked
    for. `created` is in Unix seconds.
    """
    if request.stream:
        return Events(request, task, created)
    return Answer(request, model, created, urls)


class Answer:
    """A whole answer: collects the images, and renders at `Done`."""

    def __init__(self, request: ImageRequest, model: str, created: int, urls: Mapping[int, str]) -> None:
        self._request = request
        self._model = model
        self._created = created
        self._urls = urls
        self._images: list[_Object] = []
        self._size = ""

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        if isinstance(event, Drawn):
            self._size = named((event.width, event.height))
            shown: _Object = (
                {"url": self._urls[event.index]}
                if self._request.by_url
                else {"b64_json": text_of(event.data)}
            )
            self._images.append({**shown, "seed": event.seed})
        return self._body(event.usage) if isinstance(event, Done) else b""

    def _body(self, usage: Usage) -> bytes:
        told: _Object = {
            "created": self._created,
            "model": self._model,
            "data": self._images,
            "background": "opaque",
            "output_format": self._request.format,
            "size": self._size,
            "usage": {
                **usage_object(usage.prompt_tokens),
                "images": len(self._images),
                "steps": usage.steps,
            },
        }
        if self._request.own_steps is None:
            told["quality"] = _QUALITIES.get(self._request.quality or "", "medium")
        return msgspec.json.encode(told)


class Events:
    """A streamed answer: what each image looks like so far, then what it has become."""

    def __init__(self, request: ImageRequest, task: Task, created: int) -> None:
        self._request = request
        self._prefix = _PREFIXES[task]
        self._created = created
        self._prompt_tokens = 0

    def add(self, event: Event) -> bytes:
        """The server-sent events of one event."""
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
                return b""
            case Denoised() if self._request.progress:
                progress = {"index": event.index, "step": event.step, "of": event.of}
                return parts.sse({"type": f"{self._prefix}.progress", **progress})
            case Preview():
                return self._image("partial_image", event.index, event.data, partial_image_index=event.number)
            case Drawn():
                size = named((event.width, event.height))
                usage = usage_object(self._prompt_tokens)
                return self._image(
                    "completed", event.index, event.data, size=size, seed=event.seed, usage=usage
                )
            case Done():
                return parts.DONE
            case _:
                return b""

    def _image(self, kind: str, index: int, data: bytes, **more: object) -> bytes:
        request = self._request
        asked = request.pixels
        told: _Object = {
            "type": f"{self._prefix}.{kind}",
            "b64_json": text_of(data),
            "created_at": self._created,
            "size": "auto" if asked is None else named(asked),
            "quality": "auto" if request.own_steps else _QUALITIES.get(request.quality or "", "medium"),
            "background": "opaque",
            "output_format": request.format,
            "index": index,
        }
        return parts.sse({**told, **more})


def text_of(data: bytes) -> str:
    """A file as JSON has it."""
    return base64.b64encode(data).decode("ascii")


def usage_object(prompt_tokens: int) -> _Object:
    """OpenAI's usage. The prompt is all that is made of tokens here; images are counted as images."""
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"text_tokens": prompt_tokens, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": prompt_tokens,
    }
