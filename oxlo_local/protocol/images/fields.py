"""Every request field of the image endpoints, OpenAI's, the hosted product's and ours, and what becomes of it."""

from dataclasses import replace
from typing import Final

from oxlo_local.protocol.fields import Field

_FIELDS: Final = (
    Field("prompt", "honoured", "1 to 32,000 characters; more than the model reads is a 400"),
    Field(
        "image",
        "honoured",
        "what to start from; in a form a file, or as image[] up to 16 where the model takes so many; in JSON base64, a "
        "data: URI, or a list of these; up to 50 MB each, whose content counts, not their name or type",
    ),
    Field(
        "mask",
        "honoured",
        "of the image's size: drawn anew where it is transparent, or in a mask without alpha where it is white",
    ),
    Field(
        "model",
        "honoured",
        "id, alias or near spelling, of kind image; unset: the only one that runs; the answer's `model` is the id that "
        "ran",
    ),
    Field("n", "honoured", "1 to 10, or the server's lower `choices_max`; each is a unit of the price"),
    Field(
        "size",
        "honoured",
        "WIDTHxHEIGHT, of those that the model lists: another is a 400 with the list, nothing is scaled; auto, as if "
        "unset: the model's own, or of its sizes the nearest in shape to the image sent, which is cropped to it",
    ),
    Field(
        "quality",
        "honoured",
        "how many steps: low half of the model's own, high and hd twice; auto, standard and medium the model's own, "
        "and only these beside `steps`",
    ),
    Field(
        "response_format", "honoured", "b64_json, the default, or url, which expires after `outputs_hours`"
    ),
    Field("output_format", "honoured", "png, jpeg, webp"),
    Field("output_compression", "honoured", "0 to 100, of jpeg and webp; png is always whole"),
    Field("background", "honoured", "auto, opaque; transparent is a 400: models here draw every pixel"),
    Field(
        "stream",
        "honoured",
        "events partial_image and completed as OpenAI names them, with `index` and `seed` besides; only with b64_json",
    ),
    Field("partial_images", "honoured", "0 to 3 of each image; above 0 only with `stream`"),
    Field("moderation", "accepted", "low or auto: nothing is moderated here"),
    Field("user", "accepted", "callers are told apart by their keys"),
    Field("safety_identifier", "accepted", "up to 64 characters; callers are told apart by their keys"),
    Field("style", "neutral", "no such control in local models", ("vivid",)),
    Field("input_fidelity", "neutral", "`strength` says it here", ("low",)),
    Field("complexity", "neutral", "local models plan nothing"),
    Field("frame_count", "neutral", "no animations"),
    Field("frame_duration_ms", "neutral", "no animations"),
    Field("svg", "neutral", "no model here writes SVG"),
    Field("markup", "neutral", "a `mask` says where"),
    Field("width", "extension", "pixels, with `height`; together another form of `size`"),
    Field("height", "extension", "pixels, with `width`"),
    Field("steps", "extension", "1 to 150 denoising steps; unset: the model's own"),
    Field("num_inference_steps", "extension", "another name of `steps`"),
    Field(
        "guidance_scale",
        "extension",
        "0 to 30: how closely the prompt is followed; a 400 for distilled models, which know only their own",
    ),
    Field("guidance", "extension", "another name of `guidance_scale`"),
    Field(
        "negative_prompt",
        "extension",
        "what not to draw; a 400 for models that do not know it, and without guidance",
    ),
    Field(
        "seed",
        "extension",
        "0 to 2^63 - 11; image i is drawn from seed + i; unset: the server draws one; the answer tells each image's",
    ),
    Field("strength", "extension", "above 0, to 1: how much of the image is lost; unset: the model's own"),
    Field("loras", "extension", "names of the model's low-rank weights, or objects with `name` and `weight`"),
    Field("images", "extension", "another name of `image` in JSON; items may be objects with `image_url`"),
    Field("progress", "extension", "true: a stream has an event `image_generation.progress` a step besides"),
    Field("embed_metadata", "extension", "true: prompt, model and seed are written into the file"),
    Field("metadata", "extension", "up to 16 pairs, keys 64, values 512 characters; kept in the ledger row"),
)


def _table(openais: str, others: str) -> tuple[Field, ...]:
    """The fields that OpenAI has on an endpoint, and the others."""
    known = {field.name: field for field in _FIELDS}
    added = (known[name] for name in others.split())
    return (
        *(known[name] for name in openais.split()),
        *(replace(field, fate="extension") if field.fate == "honoured" else field for field in added),
    )


_DRAWING: Final = (
    "num_inference_steps guidance_scale guidance negative_prompt seed loras embed_metadata metadata"
)
_NEVER: Final = "complexity frame_count frame_duration_ms svg"

GENERATIONS: Final = _table(
    "prompt model n size quality response_format output_format output_compression background stream partial_images "
    "moderation style user safety_identifier " + _NEVER,
    f"width height steps {_DRAWING} progress",
)
EDITS: Final = _table(
    "image mask prompt model n size quality response_format output_format output_compression background stream "
    "partial_images user safety_identifier input_fidelity markup " + _NEVER,
    f"images strength width height steps {_DRAWING} progress moderation style",
)
VARIATIONS: Final = _table(
    "image model n size response_format user",
    f"prompt images strength width height quality output_format output_compression steps {_DRAWING}",
)
