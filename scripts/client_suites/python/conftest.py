"""Tells the wire which test speaks, and gives tests the names of the models."""

import os
import urllib.request

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Switch off the recorder that LangChain's tests bring along, where it is installed."""
    if hasattr(config.option, "disable_recording"):
        config.option.disable_recording = True


@pytest.fixture(autouse=True)
def named_on_the_wire(request: pytest.FixtureRequest) -> None:
    """Say the test's name before it begins, as it will stand in the results."""
    name = request.node.nodeid.partition("::")[2]
    told = urllib.request.Request(f"{os.environ['WIRE']}/test", name.encode(), method="PUT")
    urllib.request.urlopen(told).close()


@pytest.fixture(scope="session")
def chat() -> str:
    """The chat model's id."""
    return os.environ["CHAT_MODEL"]


@pytest.fixture(scope="session")
def embedder() -> str:
    """The embedding model's id."""
    return os.environ["EMBEDDING_MODEL"]
