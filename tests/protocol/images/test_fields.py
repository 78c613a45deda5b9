"""The tables of the image endpoints: each has what it reads, and nothing else."""

import msgspec
import pytest

from oxlo_local.protocol.fields import Field
from oxlo_local.protocol.images.fields import EDITS, GENERATIONS, VARIATIONS
from oxlo_local.protocol.images.request import ImageRequest


@pytest.mark.parametrize("table", [GENERATIONS, EDITS, VARIATIONS])
def test_a_table_has_fields_that_are_read_once_each(table: tuple[Field, ...]) -> None:
    read = {field.name for field in msgspec.structs.fields(ImageRequest)}
    names = [field.name for field in table]
    assert len(names) == len(set(names))
    assert {field.name for field in table if field.fate != "neutral"} <= read


def test_every_field_that_is_read_is_in_a_table() -> None:
    read = {field.name for field in msgspec.structs.fields(ImageRequest)}
    assert read <= {field.name for table in (GENERATIONS, EDITS, VARIATIONS) for field in table}


def test_only_edits_take_a_mask_and_only_generations_need_no_image() -> None:
    tables = {"g": GENERATIONS, "e": EDITS, "v": VARIATIONS}
    having = {name: {key for key, table in tables.items() if name in {each.name for each in table}} for name in
              ("mask", "image", "strength", "stream", "prompt")}  # fmt: skip
    assert having == {"mask": {"e"}, "image": {"e", "v"}, "strength": {"e", "v"}, "stream": {"g", "e"},
                      "prompt": {"g", "e", "v"}}  # fmt: skip
