"""Images in JSON: every form that they come in, and every way to get it wrong."""

import json
import math
import time

import pytest

from oxlo_local.errors import OxloError, TooLarge
from oxlo_local.protocol.images import sources
from oxlo_local.protocol.images.request import Asked, decode
from oxlo_local.protocol.images.sources import BYTES

PNG = "data:image/png;base64,iVBORw0KGgo="


def edited(**fields: object) -> Asked:
    body = {"prompt": "a red circle", "image": PNG, **fields}
    return decode(json.dumps(body).encode(), "edit", strict=True, max_n=10)[0]


def refusal(**fields: object) -> OxloError:
    begun = time.monotonic()
    with pytest.raises(OxloError) as caught:
        edited(**fields)
    assert time.monotonic() - begun < 1 and len(caught.value.message) < 400
    return caught.value


@pytest.mark.parametrize(
    ("sent", "params"),
    [
        ({"image": PNG}, ["image"]),
        ({"image": "iVBORw0KGgo="}, ["image"]),
        ({"image": "iVBO\nRw0K\r\n Ggo="}, ["image"]),
        ({"image": [PNG, PNG]}, ["image[0]", "image[1]"]),
        ({"image": {"image_url": PNG}}, ["image.image_url"]),
        ({"image": None, "images": [{"image_url": PNG}, PNG]}, ["images[0].image_url", "images[1]"]),
        ({"image": "DATA:IMAGE/JPEG;name=x.jpg;BASE64,iVBORw0KGgo="}, ["image"]),
    ],
)
def test_files_in_json(sent: dict[str, object], params: list[str]) -> None:
    found = edited(**sent)
    assert [each.param for each in found.images] == params
    assert {each.data for each in found.images} == {b"\x89PNG\r\n\x1a\n"} and found.request.image is None


@pytest.mark.parametrize(
    ("sent", "param", "code"),
    [
        ({"image": "data:text/html;base64,PGI+"}, "image", "unsupported_value"),
        ({"image": "data:;base64,PGI+"}, "image", "unsupported_value"),
        ({"image": "data:image/png,%89PNG"}, "image", "invalid_value"),
        ({"image": "data:image/png;base64"}, "image", "invalid_value"),
        ({"image": "data:image/" + "x" * 10_000}, "image", "invalid_value"),
        ({"image": "data:image/png;base64,"}, "image", "undecodable_file"),
        ({"image": ""}, "image", "undecodable_file"),
        ({"image": "a circle"}, "image", "undecodable_file"),
        ({"image": "iVBORw0KGgo"}, "image", "undecodable_file"),
        ({"image": "ïVBORw0KGgo="}, "image", "undecodable_file"),
        ({"image": "https://example.org/a.png"}, "image", "unsupported_value"),
        ({"image": "file:///etc/passwd"}, "image", "unsupported_value"),
        ({"image": []}, "image", "invalid_value"),
        ({"image": [PNG] * 17}, "image", "invalid_value"),
        ({"image": [PNG, "?"]}, "image[1]", "undecodable_file"),
        ({"image": 7}, "image", "invalid_value"),
        ({"image": {"file_id": "file-1"}}, "image", "unsupported_value"),
        ({"images": [PNG]}, "images", "invalid_value"),
        ({"mask": "?"}, "mask", "undecodable_file"),
        ({"mask": [PNG]}, "mask", "invalid_value"),
        ({"input_fidelity": "high"}, "input_fidelity", "unsupported_value"),
        ({"markup": PNG}, "markup", "unsupported_value"),
        ({"strength": 1.5}, "strength", "invalid_value"),
        ({"strength": 0}, "strength", "invalid_value"),
        ({"strength": math.nan}, "strength", "invalid_value"),
    ],
)
def test_every_fault_of_a_file_names_it(sent: dict[str, object], param: str, code: str) -> None:
    error = refusal(**sent)
    assert (error.param, error.code) == (param, code)


def test_a_file_over_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLarge) as caught:
        sources.read("A" * (BYTES * 4 // 3 + 8), "image[3]")
    assert caught.value.param == "image[3]" and "52,428,800" in caught.value.message


def test_a_mask_is_a_file_too() -> None:
    mask = edited(mask=PNG).mask
    assert mask is not None and mask.param == "mask"
