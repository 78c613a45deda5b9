"""oxlo-demo-image over real HTTP, which draws what it is told: the stock OpenAI SDK, judged by what can be seen."""

import asyncio
import base64
import io
from collections.abc import Iterable, Iterator

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("diffusers", reason="the image engine is not installed")

from demo_image.judge import Sight  # noqa: E402
from demo_image.judge import judge as look  # noqa: E402
from openai import AsyncOpenAI, OpenAI  # noqa: E402
from openai.types import Image as Answered  # noqa: E402

from tests.api.painting import client_of, mask, opened  # noqa: E402
from tests.conftest import RunningServer, await_ready, launch  # noqa: E402

pytestmark = pytest.mark.timeout(180)  # torch takes its time to be imported where others compute
MODEL = "oxlo-demo-image"
CIRCLE = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over the embedded image model."""
    folder = tmp_path_factory.mktemp("demo")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    running = await_ready(launch(home, folder / "serve.log", (MODEL, "--threads", "1"), {}))
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(demo: RunningServer) -> OpenAI:
    return client_of(demo)


def files(answer: Iterable[Answered] | None) -> list[bytes]:
    return [base64.b64decode(one.b64_json or "") for one in answer or ()]


def seen(file: bytes) -> Sight | None:
    return look(np.asarray(opened(file).convert("RGB")))


def named(file: bytes) -> tuple[str, str, str] | None:
    """Colour, shape and background."""
    sight = seen(file)
    return (sight.colour, sight.shape, sight.background) if sight else None


def test_words_are_drawn(client: OpenAI) -> None:
    made = client.images.generate(model=MODEL, prompt=CIRCLE, n=4, extra_body={"seed": 20})
    shown = [named(file) for file in files(made.data)]
    assert shown.count(("red", "circle", "blue")) >= 3, shown
    assert made.size == "64x64"


def test_a_seed_is_the_same_file_alone_and_nearly_so_in_company(demo: RunningServer, client: OpenAI) -> None:
    alone, again = (
        files(client.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": 5}).data)
        for _ in range(2)
    )
    assert alone == again

    async def together() -> list[bytes]:
        async with AsyncOpenAI(base_url=demo.base_url, api_key="none", max_retries=0) as many:
            made = await asyncio.gather(
                *(
                    many.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": seed})
                    for seed in (5, 6, 7, 8)
                )
            )
        return [file for one in made for file in files(one.data)]

    company = asyncio.run(together())
    assert len({*company}) == 4
    apart = np.asarray(opened(company[0])).astype(int) - np.asarray(opened(alone[0]))
    assert np.abs(apart).max() <= 2


def test_a_picture_is_drawn_again_in_another_colour(client: OpenAI) -> None:
    (circle,) = files(client.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": 1}).data)
    made = client.images.edit(
        model=MODEL,
        image=io.BytesIO(circle),
        prompt="a large yellow circle on a blue background",
        n=4,
        extra_body={"seed": 1, "strength": 0.8},
    )
    shown = [seen(file) for file in files(made.data)]
    assert sum(one is not None and (one.colour, one.background) == ("yellow", "blue") for one in shown) >= 3


def test_a_mask_keeps_what_it_covers(client: OpenAI) -> None:
    (circle,) = files(client.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": 1}).data)
    made = client.images.edit(
        model=MODEL,
        image=io.BytesIO(circle),
        mask=io.BytesIO(mask()),
        prompt="a small white star at the left on a blue background",
        extra_body={"seed": 3, "strength": 1.0},
    )
    before, after = (
        np.asarray(opened(file).convert("RGB")).astype(int) for file in (circle, *files(made.data))
    )
    assert np.array_equal(before[:, 32:], after[:, 32:])
    assert np.abs(before[:, :32] - after[:, :32]).max() > 60


def test_a_stream_shows_the_picture_while_it_is_drawn(client: OpenAI) -> None:
    stream = client.images.generate(
        model=MODEL, prompt=CIRCLE, stream=True, partial_images=3, extra_body={"seed": 9}
    )
    *partial, done = stream
    assert [one.type for one in partial] == ["image_generation.partial_image"] * 3
    assert done.type == "image_generation.completed"
    last = base64.b64decode(done.b64_json)
    (whole,) = files(client.images.generate(model=MODEL, prompt=CIRCLE, extra_body={"seed": 9}).data)
    assert last == whole
    goal = np.asarray(opened(whole).convert("RGB")).astype(int)
    away = [
        np.abs(np.asarray(opened(base64.b64decode(one.b64_json)).convert("RGB")) - goal).mean()
        for one in partial
    ]
    assert away == sorted(away, reverse=True) and away[-1] < away[0] / 2
