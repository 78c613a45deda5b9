from starlette.requests import HTTPConnection

from oxlo_local.api.exchange import SANE_ID, Exchange, exchange_of


def test_an_exchange_travels_in_the_scope_and_knows_its_age() -> None:
    exchange = Exchange("id")
    scope = {"type": "http", "headers": [], "oxlo.exchange": exchange}
    assert exchange_of(HTTPConnection(scope)) is exchange
    first = exchange.seconds
    assert 0 <= first <= exchange.seconds
    assert exchange.created > 1_700_000_000


def test_ids_that_may_stand_in_headers_logs_and_rows() -> None:
    for good in ("a", "req_0.1-B", "x" * 128):
        assert SANE_ID.fullmatch(good)
    for bad in ("", "x" * 129, "a b", "a\n", "a;b", "caf\u00e9", '"a"', "<script>"):
        assert not SANE_ID.fullmatch(bad)
