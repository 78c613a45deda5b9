"""The table of engines: each string leads to a class with the verbs of the protocol."""

import importlib

import pytest

from oxlo_local.engines import ENGINES, Engine


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_had_by_its_name(name: str) -> None:
    module, _, attribute = ENGINES[name].partition(":")
    engine = getattr(importlib.import_module(module), attribute)
    verbs = {verb for verb in vars(Engine) if not verb.startswith("_")}
    assert {"submit", "cancel", "step", "busy", "gauges", "close"} == verbs
    assert all(callable(getattr(engine, verb)) for verb in verbs)
