"""Asking the server `painter` for images, in every form, and looking at what comes."""

import base64
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import RunningServer

Image = pytest.importorskip("PIL.Image", reason="the image engine is not installed")

DRAW, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"


def picture(
    form: str = "PNG",
    mode: str = "RGB",
    size: tuple[int, int] = (64, 64),
    color: object = "red",
    **save: object,
) -> bytes:
    """A file of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, form, **save)
    return file.getvalue()


def mask(size: tuple[int, int] = (64, 64)) -> bytes:
    """Its left half may be drawn anew."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


RED, MASK = picture(), mask()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def draw(
    server: RunningServer, path: str = DRAW, headers: dict[str, str] | None = None, **fields: object
) -> Any:
    body = {"model": "painter", "prompt": "a red circle", **fields}
    sent = {name: value for name, value in body.items() if value is not None}
    return httpx.post(server.url + path, content=json.dumps(sent), headers=_json(headers), timeout=50)


def _json(headers: dict[str, str] | None) -> dict[str, str]:
    return {"content-type": "application/json", **(headers or {})}


def form(server: RunningServer, files: list[Any], path: str = EDIT, **fields: str) -> Any:
    data = {"model": "painter", "prompt": "a red circle", **fields}
    return httpx.post(server.url + path, data=data, files=files, timeout=50)


def opened(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def images_in(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text[:500]
    return [opened(base64.b64decode(each["b64_json"])) for each in answer.json()["data"]]


def left(server: RunningServer) -> list[Path]:
    """Files of requests that are over; there should be none."""
    return [path for path in (server.home / "uploads").rglob("*") if path.is_file()]


def last_row(server: RunningServer) -> sqlite3.Row:
    return server.rows()[-1]


def client_of(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
