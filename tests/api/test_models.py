"""The list of models, and one of them, as OpenAI and as Anthropic have it."""

import pytest
from anthropic import Anthropic, NotFoundError

from oxlo_local.calls import EchoOptions
from tests.api.conftest import Site, StartSite
from tests.openai_description import judge


def test_what_is_here_is_listed(site: Site) -> None:
    value = site.client.get("/v1/models").json()
    judge("ListModelsResponse", value)
    items = {item["id"]: item for item in value["data"]}
    assert items.keys() == {"echo", "idle", "ear"}
    assert items["echo"] == {
        "id": "echo",
        "object": "model",
        "created": items["echo"]["created"],
        "owned_by": "acme",
        "kind": "chat",
        "status": "ready",
        "context_length": 4096,
        "price_usd": 0.0027,
        "display_name": "Echo",
        "vision": False,
    }
    assert items["echo"]["created"] > 1_500_000_000
    assert (items["idle"]["status"], items["ear"]["kind"]) == ("stopped", "speech")


def test_one_model_by_any_of_its_names(site: Site) -> None:
    for name in ("echo", "parrot", "ECHO"):
        value = site.client.get(f"/v1/models/{name}").json()
        judge("Model", value)
        assert value["id"] == "echo"


def test_a_model_that_is_not_here(site: Site) -> None:
    for name, words in (("far-away", "oxlo pull far-away"), ("ecko", "echo"), ("acme/none", "none")):
        answer = site.client.get(f"/v1/models/{name}")
        judge("ErrorResponse", answer.json())
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found" and words in error["message"]


def test_the_context_is_what_the_worker_found(start_site: StartSite) -> None:
    site = start_site(EchoOptions(ctx=77))
    assert site.client.get("/v1/models/echo").json()["context_length"] == 77


# -- as Anthropic's clients ask ---------------------------------------------------------------------------------------


def test_anthropics_clients_are_given_the_models_that_they_can_ask(site: Site) -> None:
    with Anthropic(base_url=site.url, api_key="any", max_retries=0) as client:
        listed = [*client.models.list()]
        assert [model.id for model in listed] == ["echo", "idle"]
        page = client.models.list(limit=1)
        assert page.has_more and [model.id for model in client.models.list(limit=1)] == ["echo", "idle"]
        assert [model.id for model in client.models.list(after_id="echo").data] == ["idle"]
        assert [model.id for model in client.models.list(before_id="idle").data] == ["echo"]
        one = client.models.retrieve("parrot")
        assert one == listed[0] and (one.type, one.display_name, one.lifecycle) == ("model", "Echo", "active")
        assert one.max_input_tokens == 4096 and one.created_at.year > 2020
        with pytest.raises(NotFoundError) as missing:
            client.models.retrieve("far-away")
        assert missing.value.type == "not_found_error" and "oxlo pull far-away" in str(missing.value)


def test_a_page_that_is_none_is_refused_in_anthropics_form(site: Site) -> None:
    answer = site.client.get("/v1/models?limit=0", headers={"anthropic-version": "2023-06-01"})
    body = answer.json()
    assert answer.status_code == 400 and body["type"] == "error" and body["error"]["param"] == "limit"
