"""Images over real HTTP: drawn, drawn again and masked, every way to send them wrong, and what they cost.

What a model of random numbers draws is noise; what is asked here is all the rest.
"""

import base64
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from openai import BadRequestError

from oxlo_local.outputs import NAME
from tests.api.painting import (
    DRAW,
    EDIT,
    MASK,
    RED,
    VARY,
    client_of,
    draw,
    form,
    images_in,
    last_row,
    left,
    opened,
    text,
)
from tests.conftest import RunningServer, StartServer, gone, until
from tests.openai_description import events_of, judge

pytest.importorskip("PIL", reason="the image engine is not installed")
pytestmark = pytest.mark.timeout(180)  # torch takes its time to be imported where others compute

# -- what is answered --------------------------------------------------------------------------------------------------


def test_words_become_images_by_their_seeds(painter: RunningServer) -> None:
    answer = draw(painter, n=2, seed=7)
    body = answer.json()
    judge("ImagesResponse", {**body, "size": "1024x1024"})
    assert [image.size for image in images_in(answer)] == [(64, 64)] * 2
    assert [each["seed"] for each in body["data"]] == [7, 8]
    assert (body["size"], body["model"], body["usage"]["images"], body["usage"]["steps"]) == (
        "64x64", "painter", 2, 4,
    )  # fmt: skip
    assert body["usage"]["input_tokens"] > 0
    again = draw(painter, seed=8)
    assert again.json()["data"][0]["seed"] == 8
    drawn = draw(painter).json()["data"][0]["seed"]
    assert drawn != draw(painter).json()["data"][0]["seed"]


def test_the_same_seed_is_the_same_file(painter: RunningServer) -> None:
    first, second = (draw(painter, seed=3).json()["data"][0]["b64_json"] for _ in range(2))
    assert first == second != draw(painter, seed=4).json()["data"][0]["b64_json"]


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_and_size(painter: RunningServer, kind: str, name: str) -> None:
    answer = draw(painter, output_format=kind, size="64x96", steps=1)
    (image,) = images_in(answer)
    assert (image.format, image.size, answer.json()["output_format"]) == (name, (64, 96), kind)


def test_compression_makes_files_small(painter: RunningServer) -> None:
    sizes = [
        len(draw(painter, output_format="jpeg", output_compression=each, seed=1, steps=1).content)
        for each in (5, 100)
    ]
    assert sizes[0] < sizes[1]


def test_quality_is_how_many_steps(painter: RunningServer) -> None:
    for quality, steps in (("low", 2), ("medium", 4), ("hd", 8)):
        assert draw(painter, quality=quality).json()["usage"]["steps"] == steps


def test_the_model_may_be_left_out_where_one_runs(painter: RunningServer) -> None:
    assert draw(painter, model=None, steps=1).json()["model"] == "painter"


def test_what_is_written_into_a_file(painter: RunningServer) -> None:
    (marked,) = images_in(draw(painter, embed_metadata=True, seed=5, steps=1))
    assert (marked.info["prompt"], marked.info["seed"], marked.info["model"]) == (
        "a red circle",
        "5",
        "painter",
    )
    (plain,) = images_in(draw(painter, seed=5, steps=1))
    assert not plain.info.get("prompt") and not plain.info.get("seed")


def test_a_stream_is_openais_events(painter: RunningServer) -> None:
    answer = draw(painter, stream=True, partial_images=2, n=2, progress=True, seed=11)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.content)
    kinds = [str(event["type"]).removeprefix("image_generation.") for event in events]
    assert kinds.count("partial_image") == 4 and kinds.count("completed") == 2 and "progress" in kinds
    for event in events:
        if event["type"] != "image_generation.progress":
            names = {"partial_image": "ImageGenPartialImageEvent", "completed": "ImageGenCompletedEvent"}
            judge(names[str(event["type"]).partition(".")[2]], {**event, "size": "auto"})
            assert opened(base64.b64decode(str(event["b64_json"]))).size == (64, 64)
    whole = draw(painter, n=2, seed=11).json()["data"]
    done = [event for event in events if event["type"] == "image_generation.completed"]
    assert [event["b64_json"] for event in done] == [each["b64_json"] for each in whole]
    assert [event["seed"] for event in done] == [11, 12]


# -- from images -------------------------------------------------------------------------------------------------------


def test_an_image_is_drawn_again_from_json_and_from_a_form(painter: RunningServer) -> None:
    fields: dict[str, Any] = {"seed": 1, "strength": 0.5}
    bare = draw(painter, EDIT, image=text(RED), **fields).json()["data"][0]["b64_json"]
    uri = draw(painter, EDIT, images=[{"image_url": f"data:image/png;base64,{text(RED)}"}], **fields)
    sent = form(painter, [("image[]", ("x.png", RED))], seed="1", strength="0.5")
    assert uri.json()["data"][0]["b64_json"] == sent.json()["data"][0]["b64_json"] == bare
    assert not left(painter)


def test_a_mask_keeps_the_rest(painter: RunningServer) -> None:
    for answer in (
        draw(painter, EDIT, image=text(RED), mask=text(MASK), seed=1),
        form(painter, [("image", ("a", RED)), ("mask", ("b", MASK))], seed="1"),
    ):
        (image,) = images_in(answer)
        assert image.convert("RGB").getpixel((60, 32)) == (255, 0, 0)
    assert not left(painter)


def test_variations_need_no_words(painter: RunningServer) -> None:
    answer = httpx.post(
        painter.url + VARY, data={"model": "painter", "n": "2"}, files={"image": ("a.png", RED)}, timeout=50
    )
    assert len(images_in(answer)) == 2 and not left(painter)


def test_a_stream_of_an_edit(painter: RunningServer) -> None:
    events = events_of(form(painter, [("image", ("a", RED))], stream="true", partial_images="1").content)
    assert [event["type"] for event in events] == ["image_edit.partial_image", "image_edit.completed"]


# -- what does not go together -----------------------------------------------------------------------------------------


def test_the_sizes_are_told(painter: RunningServer) -> None:
    assert "64x64, 64x96" in draw(painter, size="63x63").json()["error"]["message"]
    item = next(
        each for each in httpx.get(f"{painter.url}/v1/models").json()["data"] if each["id"] == "painter"
    )
    assert (item["kind"], item["image"]["sizes"], item["image"]["steps"]) == ("image", ["64x64", "64x96"], 4)


@pytest.mark.parametrize(
    ("files", "words", "param"),
    [
        ([], "'image'", "image"),
        ([("mask", ("m", MASK))], "a mask is laid over one", "image"),
        ([("image", (None, "abc"))], "must be a file", "image"),
        ([("image", ("a", b""))], "empty", "image"),
        ([("image", ("a", RED)), ("mask", ("m", MASK)), ("mask", ("m", MASK))], "one file", "mask"),
        ([("image[]", ("a", RED))] * 17, "at most 16", "image"),
        ([("image", ("a", RED))] * 2, "from 1 at most", "image"),
        ([("image", ("a", RED)), ("markup", ("m", MASK))], "markup", "markup"),
    ],
)
def test_files_that_do_not_go_together(
    painter: RunningServer, files: list[Any], words: str, param: str
) -> None:
    before = len(painter.rows())
    answer = form(painter, [*files, ("filler", ("", b""))])
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"] == param and not left(painter) and len(painter.rows()) == before


def test_other_bodies_are_a_415(painter: RunningServer) -> None:
    for path in (DRAW, EDIT, VARY):
        answer = httpx.post(painter.url + path, content=b"x", headers={"content-type": "image/png"})
        assert answer.status_code == 415
    assert form(painter, [("image", ("a", RED))], DRAW).status_code == 415


def test_kinds_of_models_and_endpoints_go_together(painter: RunningServer) -> None:
    body = {"model": "painter", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{painter.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "/v1/images/generations" in answer.json()["error"]["message"]


# -- by address --------------------------------------------------------------------------------------------------------


def test_an_image_by_address_is_had_by_whoever_knows_it(painter: RunningServer) -> None:
    answer = draw(painter, response_format="url", n=2, output_format="webp", seed=1, steps=1)
    urls = [each["url"] for each in answer.json()["data"]]
    names = [url.rpartition("/")[2] for url in urls]
    assert all(url.startswith(f"{painter.url}/v1/outputs/") for url in urls) and len(set(urls)) == 2
    assert all(NAME.fullmatch(name) for name in names)
    whole = draw(painter, n=2, output_format="webp", seed=1, steps=1).json()["data"]
    for url, each in zip(urls, whole, strict=True):
        got = httpx.get(url)
        assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")
        assert (
            got.headers["x-content-type-options"] == "nosniff" and "max-age=" in got.headers["cache-control"]
        )
        assert got.content == base64.b64decode(each["b64_json"])
    until(lambda: all(name not in painter.log for name in names))
    assert "GET /v1/outputs/{name} 200" in painter.log
    path = painter.home / "outputs" / names[0]
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    assert httpx.get(urls[0]).status_code == 404


def test_the_address_has_the_name_that_the_client_called(painter: RunningServer) -> None:
    port = urlsplit(painter.url).port
    answer = draw(painter, response_format="url", steps=1, headers={"host": f"localhost:{port}"})
    assert answer.json()["data"][0]["url"].startswith(f"http://localhost:{port}/v1/outputs/")


@pytest.mark.parametrize(
    "name", ["", "..%2fledger.db", "%2e%2e/ledger.db", "0" * 32, "0" * 32 + ".png", "x" * 5000]
)
def test_no_other_file_is_had(painter: RunningServer, name: str) -> None:
    answer = httpx.get(f"{painter.url}/v1/outputs/{name}")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_each_image_is_a_unit_of_one_row(painter: RunningServer) -> None:
    answer = draw(painter, n=3, size="64x96", metadata={"for": "x"})
    row = last_row(painter)
    assert row["id"] == answer.headers["x-oxlo-entry"] and answer.headers["x-oxlo-price-usd"] == "0.0030"
    assert (row["status"], row["units"], row["price_micros"], row["images"]) == ("settled", 3, 3000, 3)
    assert (row["steps"], row["size"], json.loads(row["metadata"])) == (4, "64x96", {"for": "x"})
    seconds = (row["total_ms"] - row["queue_ms"]) / 1000
    assert row["draw_seconds"] == pytest.approx(seconds, abs=0.002) and row["first_output_ms"] > 0
    metrics = httpx.get(f"{painter.url}/metrics").text
    assert re.search(r'oxlo_image_seconds_count\{model="painter"\} [1-9]', metrics)
    assert re.search(r'oxlo_denoising_steps_total\{model="painter"\} [1-9]', metrics)


def test_a_client_that_leaves_pays_for_what_was_complete(painter: RunningServer) -> None:
    fields = {"model": "painter", "prompt": "x", "n": 10, "steps": 30, "stream": True, "progress": True}
    with httpx.stream("POST", painter.url + DRAW, json=fields, timeout=50) as answer:
        seen: list[dict[str, Any]] = []
        for line in answer.iter_lines():
            if "completed" in line:
                break
            if '"step":9,' in line and not seen:
                seen += painter.workers()[0]["drawings"]  # type: ignore[arg-type]
    until(lambda: last_row(painter)["status"] != "open")
    row = last_row(painter)
    assert (row["status"], row["error_code"]) == ("settled", "cancelled")
    assert 1 <= row["units"] == row["images"] < 10 and row["price_micros"] == 1000 * row["units"]
    assert row["steps"] == 30 and seen and seen[0]["call"] == row["id"] and seen[0]["of"] == 30


def test_a_client_that_leaves_before_an_image_pays_nothing_and_leaves_nothing(painter: RunningServer) -> None:
    body = {"model": "painter", "prompt": "x", "image": text(RED), "steps": 150, "n": 10, "strength": 1}
    body |= {"stream": True, "progress": True}
    with httpx.stream("POST", painter.url + EDIT, json=body, timeout=50) as answer:
        next(line for line in answer.iter_lines() if "progress" in line)
    until(lambda: last_row(painter)["status"] != "open")
    assert (last_row(painter)["status"], last_row(painter)["reason"]) == ("refunded", "cancelled")
    until(lambda: not left(painter))
    until(lambda: painter.workers()[0]["running"] == 0)
    assert draw(painter, steps=1).status_code == 200


def test_the_same_request_is_answered_once(painter: RunningServer) -> None:
    before, headers = len(painter.rows()), {"idempotency-key": "picture"}
    first, again = (draw(painter, response_format="url", headers=headers, steps=1) for _ in range(2))
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["x-oxlo-replayed"] == "true" and len(painter.rows()) == before + 1
    assert httpx.get(again.json()["data"][0]["url"]).status_code == 200
    for path, words in ((EDIT, {"prompt": "x"}), (VARY, {})):
        forms = [
            httpx.post(
                painter.url + path,
                data={"model": "painter", "steps": "2", **words},
                files={"image": ("a.png", RED)},
                headers={"idempotency-key": "form"},
                timeout=50,
            )
            for _ in range(2)
        ]
        assert forms[0].status_code == 200 and forms[0].content == forms[1].content
    assert len(painter.rows()) == before + 3 and not left(painter)


def test_what_is_half_sent_goes_with_its_server_also_after_kill_9_and_outputs_with_their_time(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("oxlo-demo", home=tmp_path / "killed")

    def body() -> Iterator[bytes]:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        yield head + RED
        until(lambda: left(server))
        server.process.send_signal(signal.SIGKILL)
        until(lambda: gone(server.pid))
        yield b"x"

    with pytest.raises(httpx.HTTPError):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        httpx.post(server.url + EDIT, content=body(), headers=kind, timeout=50)
    server.process.wait()
    assert len(left(server)) == 1
    outputs = server.home / "outputs"
    outputs.mkdir()
    old, young = outputs / ("0" * 32 + ".png"), outputs / ("1" * 32 + ".png")
    old.write_bytes(RED)
    young.write_bytes(RED)
    os.utime(old, (1, 1))
    again = start_server("oxlo-demo", home=server.home)
    assert not left(again) and list(outputs.iterdir()) == [young] and again.rows() == []
    assert httpx.get(f"{again.url}/v1/outputs/{young.name}").content == RED
    answer = httpx.post(again.url + DRAW, json={"prompt": "x"})
    assert answer.status_code == 400 and "no image model" in answer.json()["error"]["message"]


# -- the SDK -----------------------------------------------------------------------------------------------------------


def test_the_sdk_draws_edits_streams_and_varies(painter: RunningServer, tmp_path: Path) -> None:
    client = client_of(painter)
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "m.png").write_bytes(MASK)
    drawn = client.images.generate(model="painter", prompt="x", n=2, size="64x64", quality="low")
    assert drawn.data and len(drawn.data) == 2 and opened(base64.b64decode(drawn.data[0].b64_json or ""))
    with (tmp_path / "a.png").open("rb") as image, (tmp_path / "m.png").open("rb") as hole:
        edited = client.images.edit(model="painter", image=[image], mask=hole, prompt="x")
    assert edited.data and edited.usage is not None
    stream = client.images.generate(model="painter", prompt="x", stream=True, partial_images=1)
    assert [event.type for event in stream] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    with pytest.warns(DeprecationWarning):  # the SDK's own, of late
        varied = client.images.create_variation(
            model="painter", image=tmp_path / "a.png", n=1, response_format="url"
        )
    assert varied.data and httpx.get(varied.data[0].url or "").status_code == 200
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(model="painter", prompt="x", size="512x512")
    assert caught.value.param == "size" and not left(painter)


def test_nobody_waits_for_a_model_to_learn_that_a_field_is_wrong(painter: RunningServer) -> None:
    began = time.monotonic()
    body = {"model": "painter", "prompt": "x", "n": 10, "steps": 150, "stream": True, "progress": True}
    with httpx.stream("POST", painter.url + DRAW, json=body, timeout=50) as answer:
        assert answer.status_code == 200
        assert draw(painter, n=99).status_code == 400 and draw(painter, size="1x1").status_code == 400
    assert time.monotonic() - began < 5
