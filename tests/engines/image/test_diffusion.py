"""Every family draws, draws again, fills masks, is previewed as it will look, and counts prompts as it reads them."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from torch._dynamo.utils import counters

from oxlo_local import random_diffuser
from oxlo_local.calls import ImageOptions, Lora, Mode
from oxlo_local.engines.image.asking import Key
from oxlo_local.engines.image.diffusion import Diffusion, Row, Stepped, lack, settle_threads
from oxlo_local.engines.image.source import Source
from tests.engines.image import families
from tests.engines.image.conftest import OPTIONS
from tests.engines.image.test_loading import lora_file
from tests.engines.image_files import NOISE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
CPU = ImageOptions(device="cpu", sizes=[(64, 64)], steps=2, strength=0.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    settle_threads(1)


def mask() -> Image.Image:
    """The left half."""
    made = Image.new("L", (64, 64), 0)
    made.paste(255, (0, 0, 32, 64))
    return made


def furthest(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


def drawn(
    diffusion: Diffusion, mode: Mode, *prompts: str, loras: tuple[Lora, ...] = ()
) -> tuple[list[Image.Image], list[Stepped]]:
    """Images of these prompts, seeds from 7 on, and what was said at each step, with previews of all."""
    facts = diffusion.facts
    strength = facts.strength if mode != "draw" else 0.0
    key = Key(mode, 64, 64, facts.steps, facts.guidance, False, strength, loras, "")
    source = None if mode == "draw" else Source([NOISE], mask() if mode == "inpaint" else None)
    rows = [Row(prompt, "", 7 + place, source) for place, prompt in enumerate(prompts)]
    said: list[Stepped] = []
    images = diffusion.draw(
        key, rows, said.append, lambda step, of: list(range(len(rows))) if step <= of else []
    )
    return images, said


@pytest.mark.parametrize(
    ("family", "looks", "tokens", "longest"),
    [
        ("sdxl", False, 7, 77),
        ("klein", True, 8, 512),
        pytest.param("sd3", False, 5, 256, marks=pytest.mark.slow),
        pytest.param("flux", False, 5, 512, marks=pytest.mark.slow),
        pytest.param("z-image", False, 8, 512, marks=pytest.mark.slow),
        pytest.param(
            "qwen-image", False, 184, 512, marks=pytest.mark.slow
        ),  # its instructions are tokens too
    ],
)
def test_every_family_draws_in_each_mode(
    family: str, looks: bool, tokens: int, longest: int, tmp_path: Path
) -> None:
    families.write(tmp_path / family, family)
    diffusion = Diffusion(tmp_path / family, CPU)
    assert diffusion.facts.modes == ["draw", "redraw", "inpaint"]
    assert diffusion.looks == looks == (diffusion.facts.max_images > 1)
    assert (diffusion.facts.prompt_tokens, diffusion.tokens("hello")) == (longest, tokens)
    both, said = drawn(diffusion, "draw", "hello", "hello, hello")
    assert [(one.step, one.of) for one in said] == [(1, 2), (2, 2)]
    assert [furthest(image, said[-1].previews[row]) <= 1 for row, image in enumerate(both)] == [True, True]
    alone, _ = drawn(diffusion, "draw", "hello")
    assert furthest(alone[0], both[0]) <= 2 and furthest(*both) > 16
    for mode in ("redraw", "inpaint"):
        again, _ = drawn(diffusion, mode, "hello", "hello, hello")
        assert [image.size for image in again] == [(64, 64)] * 2 and furthest(*again) > 16
        assert furthest(again[0], alone[0]) > (0 if looks else 16)


def test_distilled_ones_are_not_guided(tmp_path: Path) -> None:
    families.write(tmp_path / "klein", "klein")
    facts = Diffusion(tmp_path / "klein", ImageOptions(device="cpu")).facts
    assert (facts.guided, facts.negative, facts.guidance, facts.strength) == (False, False, 1.0, 0.0)


def test_a_lora_changes_what_is_drawn_by_its_weight_and_only_where_it_is_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    file = lora_file(tmp_path / "ink.safetensors", random=50.0)
    options = ImageOptions(device="cpu", steps=2, guidance=1.0, loras={"ink.v1": str(file)})
    diffusion = Diffusion(tiny_folder, options)
    assert diffusion.facts.loras == ["ink.v1"]
    (plain,), _ = drawn(diffusion, "draw", "x")
    (nothing,), _ = drawn(diffusion, "draw", "x", loras=(Lora("ink.v1", 0.0),))
    (much,), _ = drawn(diffusion, "draw", "x", loras=(Lora("ink.v1", 1.0),))
    assert furthest(plain, nothing) <= 1 and furthest(plain, much) > 4
    (again,), _ = drawn(diffusion, "draw", "x")
    assert again.tobytes() == plain.tobytes()
    (bare,), _ = drawn(Diffusion(tiny_folder, ImageOptions(device="cpu", steps=2, guidance=1.0)), "draw", "x")
    assert furthest(bare, plain) <= 1


def test_fewer_bits_draw_nearly_the_same(tmp_path: Path) -> None:
    random_diffuser.write(tmp_path, random_diffuser.Shape(text_width=256))
    images = [
        drawn(Diffusion(tmp_path, ImageOptions(device="cpu", steps=2, weights=kind)), "draw", "x")[0][0]
        for kind in (None, "int8")
    ]
    assert 0 < furthest(*images) < 40


def test_large_pictures_are_decoded_in_turn_and_in_tiles(tiny_folder: Path) -> None:
    diffusion = Diffusion(tiny_folder, OPTIONS)
    vae = diffusion._loaded.first.vae
    for size, rows, sliced, tiled in (
        (64 * 64, 4, False, False),
        (512 * 512, 4, True, False),
        (2048**2, 1, True, True),
    ):
        diffusion._decode_sparingly(size, rows)
        assert (vae.use_slicing, vae.use_tiling) == (sliced, tiled)


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (2) must match"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, lacks: bool) -> None:
    assert (lack(error) is not None) == lacks


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it compiles
def test_compiled_for_its_sizes_it_draws_the_same(tiny_folder: Path) -> None:
    plain, compiled = Diffusion(tiny_folder, CPU), Diffusion(tiny_folder, CPU)
    compiled.compile([1, 2])
    before = dict(counters["frames"])
    for prompts in (
        ("x",),
        ("x", "y"),
        ("x", "y", "z"),
    ):  # the last of them as it is: nothing compiles any more
        for one, other in zip(
            drawn(plain, "draw", *prompts)[0], drawn(compiled, "draw", *prompts)[0], strict=True
        ):
            assert furthest(one, other) <= 2
    assert dict(counters["frames"]) == before
    torch.compiler.reset()
    torch.compiler.set_stance("default")
