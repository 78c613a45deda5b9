import json

from oxlo_local.protocol import models
from tests.openai_description import judge

DEMO = models.ModelItem(
    id="oxlo-demo",
    created=1_700_000_000,
    owned_by="oxlo-local",
    kind="chat",
    status="ready",
    context_length=2048,
    price_usd=0.0001,
    display_name="oxlo demo",
)


def test_an_item_has_openais_fields_and_ours() -> None:
    value = json.loads(models.item(DEMO))
    judge("Model", value)
    assert value["object"] == "model" and value["price_usd"] == 0.0001
    assert {"kind", "status", "context_length", "price_usd", "display_name"} <= value.keys()


def test_a_listing_is_a_list_of_items() -> None:
    value = json.loads(models.listing([DEMO, DEMO]))
    judge("ListModelsResponse", value)
    assert value["data"] == [json.loads(models.item(DEMO))] * 2
    judge("ListModelsResponse", json.loads(models.listing([])))
