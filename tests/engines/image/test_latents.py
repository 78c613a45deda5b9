"""What an image will look like: the scheduler's own expectation of it, and its pixels as the pipeline makes them."""

from pathlib import Path

import diffusers
import pytest
import torch

from oxlo_local.engines.image.latents import Foresight, pixels

SCHEDULERS = (
    "DDIMScheduler DDPMScheduler EulerDiscreteScheduler EulerAncestralDiscreteScheduler HeunDiscreteScheduler "
    "DPMSolverMultistepScheduler UniPCMultistepScheduler LCMScheduler FlowMatchEulerDiscreteScheduler"
).split()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_scheduler_expects_is_what_a_true_prediction_tells(name: str) -> None:
    """From x = image + noise, and the noise told truly, each knows the image after any step."""
    scheduler = getattr(diffusers, name)()
    foresight = Foresight(scheduler)
    scheduler.set_timesteps(8)
    torch.manual_seed(0)
    image, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    time = scheduler.timesteps[2:3]
    flow = name.startswith("FlowMatch")
    if flow:
        noisy = scheduler.scale_noise(image, time, noise)
    else:
        noisy = scheduler.add_noise(image, noise, time)
    foresight.wanted = True
    scheduler.step(noise - image if flow else noise, time[0], noisy, return_dict=False)
    assert foresight.latents is not None
    expected = foresight.latents
    if name == "LCMScheduler":  # it mixes what it expects with what it was given
        assert torch.nn.functional.cosine_similarity(expected.flatten(), image.flatten(), 0) > 0.5
    else:
        assert torch.allclose(
            expected, image.clamp(-1, 1) if scheduler.config.get("clip_sample") else image, atol=2e-2
        )
    foresight.wanted = False
    scheduler.step(noise, scheduler.timesteps[3], noisy, return_dict=False)
    assert foresight.latents is None


def test_one_that_does_not_say_is_not_asked_twice() -> None:
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    foresight = Foresight(scheduler)
    scheduler.set_timesteps(4)
    foresight.wanted = True
    noisy = torch.randn(1, 4, 8, 8)
    scheduler.step(torch.randn(1, 4, 8, 8), scheduler.timesteps[0], noisy, return_dict=False)
    assert foresight.latents is None


def test_pixels_are_the_pipelines_own(tiny_folder: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"prompt": "x", "num_inference_steps": 2}
    made = pipeline(**asked, generator=torch.Generator().manual_seed(1)).images[0]
    latents = pipeline(**asked, generator=torch.Generator().manual_seed(1), output_type="latent").images
    with torch.no_grad():
        (found,) = pixels(pipeline, latents, 64, 64)
    assert found.tobytes() == made.tobytes()
