"""The rehearsal asks real models through every room, and nothing of it is left behind."""

import logging
import socket
from urllib.parse import urlsplit

import pytest

from oxlo_local.api.rehearsal import _spoken, rehearse
from oxlo_local.calls import EchoOptions
from tests.api.conftest import Site, StartSite, chat_body
from tests.conftest import RunningServer, until


def generated(site: Site) -> int:
    return sum(worker.gauges.generated_tokens for worker in site.fleet.status())


@pytest.mark.parametrize("keyed", [False, True])
def test_a_rehearsal_asks_the_model_and_leaves_no_trace(
    start_site: StartSite, caplog: pytest.LogCaptureFixture, keyed: bool
) -> None:
    caplog.set_level(logging.INFO)
    site = start_site()
    if keyed:
        site.run(site.keys.create("somebody"))
    before, counted = generated(site), site.state.metrics.text()
    site.run(rehearse(site.state))
    until(lambda: generated(site) > before)  # the gauges come with the next ping
    assert site.rows() == []
    assert [line for line in site.state.metrics.text().splitlines() if b"oxlo_requests_total{" in line] == []
    assert b"oxlo_requests_in_flight 0.0" in counted
    assert [record.getMessage() for record in caplog.records if "api" in record.name] == []


def test_a_model_that_hears_is_asked_to(ears: RunningServer) -> None:
    """Its first request finds everything warm: the form's room, the engine's, the row's."""
    where = urlsplit(ears.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as link:
        link.sendall(_spoken("whisper", "accept: */*"))
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"task":"transcribe"' in answer
    assert "a rehearsed request was answered" not in ears.log and "was cut short" not in ears.log


def test_a_rehearsal_that_fails_is_told_and_stops_nothing(
    start_site: StartSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = start_site(EchoOptions())
    site.run(site.fleet.drain(0))
    site.run(rehearse(site.state))
    assert site.rows() == []
    assert site.client.post("/v1/chat/completions", json=chat_body()).status_code == 503
