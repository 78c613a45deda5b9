"""Files of images: the right kind, lossless where it can be, with what was to be written into them."""

import io
from typing import Literal
from xml.etree import ElementTree

import pytest
from PIL import Image

from oxlo_local.engines.image.file import NAMESPACE, encoded
from tests.engines.image_files import NOISE

LABELS = {"prompt": 'ein "roter" Kreis & 赤い丸 <x>', "model": "tiny", "seed": "7"}


def test_png_loses_nothing_and_carries_its_labels() -> None:
    seen = Image.open(io.BytesIO(encoded(NOISE, "png", 0, LABELS)))
    assert seen.tobytes() == NOISE.tobytes()
    assert seen.info == LABELS
    assert not Image.open(io.BytesIO(encoded(NOISE, "png", 0, {}))).info


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_the_others_carry_them_as_xmp(form: Literal["jpeg", "webp"]) -> None:
    seen = Image.open(io.BytesIO(encoded(NOISE, form, 90, LABELS)))
    assert seen.format == form.upper()
    described = ElementTree.fromstring(seen.info["xmp"]).find(".//{*}Description")
    assert described is not None
    assert {name: described.get(f"{{{NAMESPACE}}}{name}") for name in LABELS} == LABELS
    assert described.findtext(".//{*}li") == LABELS["prompt"]
    assert "xmp" not in Image.open(io.BytesIO(encoded(NOISE, form, 90, {}))).info


def test_characters_that_xml_cannot_write_are_blanks() -> None:
    seen = Image.open(io.BytesIO(encoded(NOISE, "webp", 90, {"prompt": "a\x00b\x1bc"})))
    assert ElementTree.fromstring(seen.info["xmp"]).findtext(".//{*}li") == "a b c"


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_quality_costs_bytes(form: Literal["jpeg", "webp"]) -> None:
    sizes = [len(encoded(NOISE, form, quality, {})) for quality in (0, 50, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
