"""Image parts on the wire: what becomes a picture, and what can be said against one at a glance."""

import time
from typing import Any

import msgspec
import pytest

from oxlo_local.calls import TextCall
from oxlo_local.errors import BadRequest, OxloError
from oxlo_local.protocol import chat, pictures

PNG = "data:image/png;base64,iVBORw0KGgo="


def body(*content: Any, role: str = "user") -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": role, "content": list(content)}]})


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(url: object = PNG, **more: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def call(data: bytes) -> TextCall:
    request, _ = chat.decode(data, strict=False)
    return chat.to_call(request, {}, "chatcmpl-77")


def test_an_image_is_a_mark_in_the_text_and_a_picture_beside_it() -> None:
    made = call(
        body(text("Look:"), image(), text("and"), image("https://x.test/a.png", detail="low"), text("?"))
    )
    assert made.messages is not None
    first, second = made.pictures
    assert made.messages[0].content == f"Look:{first.mark}and{second.mark}?"
    assert (first.url, first.low, first.param) == (PNG, False, "messages[0].content[1].image_url.url")
    assert (second.url, second.low) == ("https://x.test/a.png", True)
    assert "chatcmpl-77" in first.mark and first.mark != second.mark


def test_texts_are_still_joined_by_line_feeds() -> None:
    made = call(body(text("a"), text("b"), image(), text("c"), text("d")))
    assert made.messages is not None
    assert made.messages[0].content == f"a\nb{made.pictures[0].mark}c\nd"


def test_an_image_alone_is_a_message() -> None:
    made = call(body(image()))
    assert made.messages is not None
    assert made.messages[0].content == made.pictures[0].mark


@pytest.mark.parametrize(
    ("part", "param", "why"),
    [
        ({"type": "image_url"}, "image_url", "Missing"),
        ({"type": "image_url", "image_url": PNG}, "image_url", "object"),
        (image(""), "image_url.url", ""),
        (image(7), "image_url.url", "str"),
        (image("ftp://x.test/a.png"), "image_url.url", "http"),
        (image("/etc/passwd"), "image_url.url", "http"),
        (image("file:///etc/passwd"), "image_url.url", "http"),
        (image("http://x.test/" + "a" * 9000), "image_url.url", "characters"),
        (image("data:"), "image_url.url", "none of"),
        (image("data:,x"), "image_url.url", "none of"),
        (image("data:text/html;base64,PGI+"), "image_url.url", "text/html"),
        (image("data:image/svg+xml;base64,PGI+"), "image_url.url", "svg"),
        (image("data:image/png,rawbytes"), "image_url.url", "base64"),
        (image("data:image/png;base64"), "image_url.url", "base64"),
        (image("data:image/png;charset=x;base64,AA=="), "image_url.url", "base64"),
        (image("data:image/png;base64," + "A" * 30_000_000), "image_url.url", "bytes"),
        (image(PNG, detail="original"), "image_url.detail", "original"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "type", "input_audio"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_image_is_refused_by_name(part: dict[str, object], param: str, why: str) -> None:
    data = body(text("x"), part)
    begun = time.thread_time()
    with pytest.raises(OxloError) as caught:
        chat.decode(data, strict=False)
    assert time.thread_time() - begun < 1.0
    assert 400 <= caught.value.status < 500
    assert caught.value.param == f"messages[0].content[1].{param}"
    assert why in caught.value.message


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_users_send_images(role: str) -> None:
    with pytest.raises(BadRequest, match="Only a user") as caught:
        chat.decode(body(image(), role=role), strict=False)
    assert caught.value.param == "messages[0].content[0].type"


def test_the_number_of_images_is_bounded() -> None:
    chat.decode(body(*[image()] * pictures.MOST), strict=False)
    with pytest.raises(BadRequest, match="65 images"):
        chat.decode(body(*[image()] * (pictures.MOST + 1)), strict=False)


def test_unknown_members_are_named() -> None:
    _, warnings = chat.decode(body(image(fidelity="high")), strict=False)
    assert any("messages[0].content[0].image_url.fidelity" in warning for warning in warnings)
