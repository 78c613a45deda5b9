"""/v1/models on the wire: OpenAI's fields, and what a client of ours wants to know beside them."""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

Status = Literal["ready", "loading", "stopped", "failed"]


class ImageItem(Struct, frozen=True, kw_only=True):
    """What a loaded image model does, and does where a request leaves it open. Sizes are WIDTHxHEIGHT, its own first.

    `guidance` None: it takes no `guidance_scale`; `strength` None: no `strength`. `max_images`: that one request may
    start from.
    """

    modes: list[str]
    sizes: list[str]
    steps: int
    max_steps: int
    guidance: float | None
    negative_prompt: bool
    strength: float | None
    max_images: int
    loras: list[str]


class ModelItem(Struct, frozen=True, kw_only=True):
    """One model that is embedded, pulled or attached. `created` is in Unix seconds, the price per request in USD.

    `vision`: it takes images.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: str
    status: Status
    context_length: int | None
    price_usd: float
    display_name: str
    vision: bool = False
    image: ImageItem | UnsetType = UNSET  # of image models, once they are loaded


def item(model: ModelItem) -> bytes:
    """The body of /v1/models/{id}."""
    return msgspec.json.encode(model)


def listing(models: list[ModelItem]) -> bytes:
    """The body of /v1/models."""
    return msgspec.json.encode({"object": "list", "data": models})
