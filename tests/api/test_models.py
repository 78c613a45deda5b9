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
