"""The pages of Anthropic's list of models."""

import json

import pytest
from anthropic.types import ModelInfo

from oxlo_local.errors import BadRequest
from oxlo_local.protocol.messages.models import item, listing
from oxlo_local.protocol.models import ModelItem


def model(id: str, kind: str = "chat") -> ModelItem:
    return ModelItem(
        id=id,
        created=1_700_000_000,
        owned_by="acme",
        kind=kind,
        status="ready",
        context_length=4096,
        price_usd=0.001,
        display_name=id.upper(),
    )


MODELS = [model("a"), model("ear", "speech"), model("b"), model("c"), model("d")]


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ({}, "abcd", False),
        ({"limit": "4"}, "abcd", False),
        ({"limit": "3"}, "abc", True),
        ({"after_id": "a"}, "bcd", False),
        ({"after_id": "a", "limit": "2"}, "bc", True),
        ({"after_id": "d"}, "", False),
        ({"before_id": "d"}, "abc", False),
        ({"before_id": "d", "limit": "2"}, "bc", True),
        ({"before_id": "a"}, "", False),
    ],
)
def test_a_page_holds_what_was_asked_for(query: dict[str, str], ids: str, more: bool) -> None:
    page = json.loads(listing(MODELS, query))
    assert "".join(each["id"] for each in page["data"]) == ids and page["has_more"] is more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_a_model_is_as_the_sdk_reads_it() -> None:
    read = ModelInfo.model_validate_json(item(MODELS[0]), strict=True)
    assert (read.id, read.display_name, read.created_at.timestamp()) == ("a", "A", 1_700_000_000)
    assert read.lifecycle == "active" and read.max_input_tokens == read.max_tokens == 4096


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"limit": "000000001999"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"after_id": "ear"}, "after_id"),
        ({"before_id": "none"}, "before_id"),
        ({"after_id": "a", "before_id": "b"}, "before_id"),
    ],
)
def test_a_page_that_is_none_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        listing(MODELS, query)
    assert refused.value.param == param
