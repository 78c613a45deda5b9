"""Schemas, names and images made to hurt: each is a 4xx that costs less than a second, and nobody else notices.

What a request costs is told by the processor time of the server and its workers, which a busy machine does not change
as it does the clock; what others notice, by the same stream beside requests that are no trouble. The tests print what
they found (`pytest -k hostile -s`).
"""

import base64
import io
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import httpx
import msgspec
import psutil
import pytest
from PIL import Image

from tests.conftest import RunningServer, await_ready, launch
from tests.engines.image_files import png_bomb
from tests.vision import Files, png, sighted_files

__all__ = ["sighted_files"]

SECONDS = 1.0  # of processor time that a refusal may cost
DISTURBED = 4  # times as long as beside harmless requests may a stream's longest silence be, ...
NOTICED = 0.5  # ... where it is longer than this, in seconds


def nested(depth: int) -> str:
    """A schema as deep as that, as JSON; Python's own writer would not go so far."""
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


SCHEMAS = {
    "a circle": '{"$ref": "#"}',
    "a longer circle": '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}',
    "without an end": '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}',
    "10,000 deep": nested(10_000),
    "300 deep": nested(300),
    "5 MB in one word": '{"type":"object","properties":{"a":{"enum":["' + "a" * 5_000_000 + '"]}}}',
    "5 MB of members": '{"type":"object","properties":{'
    + ",".join(f'"property{number:07}":{{"type":"string"}}' for number in range(120_000))
    + "}}",
    "its own switches": '{"type":"object","x-guidance":{"lenient":true}}',
    "patterns at once": encode(
        {"type": "string", "allOf": [{"pattern": f"a{i}b{{1,9}}"} for i in range(16)]}
    ),
    "a pattern's states": encode({"type": "string", "pattern": "^" + "(a|b)?" * 2000 + "$"}),
}
NAMES = ["", "a b", "a.b", "\u00e9", "a" * 65, '"};', "<tool_call>", "../etc/passwd", "\u0000", "a\n"]
FORMS = {
    "schema": '"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":%s}}}',
    "strict tool": '"tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":%s}}]}',
    "forced tool": '"tools":[{"type":"function","function":{"name":"f","parameters":%s}}],"tool_choice":"required"}',
}


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def gif(frames: int) -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("RGB", (400, 400), (number % 256, 0, 0)) for number in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


IMAGES = {
    "a bomb of 8,000 x 8,000": uri(png_bomb(8000, 8000, 8000)),
    "a bomb of 60,000 x 60,000": uri(png_bomb(60_000, 60_000, 100)),
    "a bomb of 2^31 x 2^31": uri(png_bomb(2**31 - 1, 2**31 - 1, 0)),
    "cut in the middle": png(1, 900, 900)[:-4000],
    "a lie about its type": png(1).replace("image/png", "image/jpeg"),
    "SVG said to be PNG": uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "nothing": uri(b""),
    "no base64": "data:image/png;base64,%%%%",
    "an animation": uri(gif(40), "gif"),
    "20 MB of zeroes": uri(bytes(15_000_000)),
    "an address": "http://169.254.169.254/latest/meta-data",
    "a file": "file:///etc/passwd",
}


def bodies(model: str) -> dict[str, str]:
    """Every hostile request, by what is wrong with it."""
    head = f'{{"model":"{model}","max_tokens":8,"messages":[{{"role":"user","content":"x"}}],'
    made = {
        f"{name}, as {place}": head + form.replace("%s", schema)
        for name, schema in SCHEMAS.items()
        for place, form in FORMS.items()
    }
    tool = '"tools":[{"type":"function","function":{"name":%s}}]}'
    made |= {f"a tool named {name[:20]!r}": head + tool.replace("%s", encode(name)) for name in NAMES}
    for name, url in IMAGES.items():
        content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
        asked = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": content}]}
        made[f"image: {name}"] = encode(asked)
    return made


@pytest.fixture(scope="module")
def seeing(sighted_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a model of random weights that sees."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").touch()
    model, eye = sighted_files("pixtral")
    arguments = (str(model), "--mmproj", str(eye), "--parallel", "4", "--threads", "1")
    running = await_ready(launch(folder / "home", folder / "serve.log", arguments, {}))
    yield running
    running.stop()


@dataclass(frozen=True)
class Cost:
    """What became of a request: processor time of the server and its workers, and time by the clock, in seconds."""

    status: int
    processor: float
    clock: float


def processor_seconds(server: RunningServer) -> float:
    parent = psutil.Process(server.pid)
    used = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(times.user + times.system for times in used)


def cost(server: RunningServer, body: str) -> Cost:
    """Send it and wait for the answer."""
    before, begun = processor_seconds(server), time.monotonic()
    answer = httpx.post(
        f"{server.base_url}/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    clock = time.monotonic() - begun
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"].isprintable() and error["type"] and "code" in error
    return Cost(answer.status_code, processor_seconds(server) - before, clock)


def table(costs: Mapping[str, Cost]) -> str:
    lines = [f"{'request':<42} status  processor   clock"]
    lines += [
        f"{name:<42} {each.status:>6}  {each.processor:>7.2f} s {each.clock:>6.2f} s"
        for name, each in costs.items()
    ]
    return "\n" + "\n".join(lines) + "\n"


def plain(model: str) -> str:
    return encode({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})


def test_a_hostile_request_costs_less_than_a_second(seeing: RunningServer) -> None:
    control = cost(seeing, plain(seeing.model))
    costs = {name: cost(seeing, body) for name, body in bodies(seeing.model).items()}
    sys.stdout.write(table({"(a plain request)": control, **costs}))
    assert control.status == 200
    assert {name: each.status for name, each in costs.items() if each.status not in (400, 413)} == {}
    assert {name: each for name, each in costs.items() if each.processor >= SECONDS} == {}


def silences(server: RunningServer, *others: str) -> list[float]:
    """The times between the pieces of a stream, while the other requests are made one after another."""
    gaps: list[float] = []
    over = Event()
    asked = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Go on."}],
        "stream": True,
        "logit_bias": {"1": -100},
    }

    def listen() -> None:
        while not over.is_set():
            with httpx.stream(
                "POST", f"{server.base_url}/chat/completions", json=asked, timeout=60
            ) as answer:
                last = None
                for _ in answer.iter_lines():
                    now = time.monotonic()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
                    if over.is_set():
                        return

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen)
        for body in others:
            cost(server, body)
        over.set()
        listening.result()
    return gaps


def longest(gaps: list[float]) -> float:
    """The longest silence but two, which the machine may be to blame for; a hostile schema comes in three forms."""
    return sorted(gaps)[-3]


def test_hostile_requests_disturb_no_stream(seeing: RunningServer) -> None:
    hostile = bodies(seeing.model).values()
    calm = silences(seeing, *[plain(seeing.model)] * len(hostile))
    troubled = silences(seeing, *hostile)
    sys.stdout.write(
        f"\nlongest silence of a stream: {longest(calm):.3f} s beside plain requests, "
        f"{longest(troubled):.3f} s beside these\n"
    )
    assert len(calm) > 20 and len(troubled) > 100
    assert longest(troubled) < max(NOTICED, DISTURBED * longest(calm))


def test_hostile_requests_at_once_are_refused_while_others_are_answered(seeing: RunningServer) -> None:
    chosen = [body for name, body in bodies(seeing.model).items() if "pattern" in name or "5 MB" in name]
    with ThreadPoolExecutor(len(chosen)) as pool:
        asking = [pool.submit(cost, seeing, body) for body in chosen]
        answered = cost(seeing, plain(seeing.model))
        assert answered.status == 200
        assert {each.result().status for each in asking} <= {400, 413, 503}
