"""What an image looks like before it is finished: the latents that the scheduler expects in the end, and their pixels.

After a step latents are still noisy. Most schedulers also say, or let one compute, what the finished ones would be; of
the others the noisy ones are shown. How latents become pixels differs between families only in how they are packed and
scaled, which the pipeline's functions and the VAE's configuration tell.
"""

import functools
from typing import Any

import torch
from torch import Tensor


class Foresight:
    """Watches a scheduler's steps, and keeps the finished latents that it expected at the last one."""

    def __init__(self, scheduler: Any) -> None:
        self.wanted = False  # nothing is kept where nobody looks
        self.latents: Tensor | None = None
        self._scheduler = scheduler
        step = scheduler.step

        @functools.wraps(step)  # pipelines ask the function which arguments it takes
        def watched(model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **named: Any) -> Any:
            result = step(model_output, timestep, sample, *more, **named)
            self.latents = self._expected(model_output, sample, result) if self.wanted else None
            return result

        scheduler.step = watched

    def _expected(self, model_output: Tensor, sample: Tensor, result: Any) -> Tensor | None:
        scheduler = self._scheduler
        if isinstance(result, tuple) and len(result) > 1 and isinstance(result[1], Tensor):
            return result[1]
        if type(scheduler).__name__.startswith(
            "FlowMatch"
        ):  # noise and image are the ends of a straight line
            return sample - scheduler.sigmas[scheduler.step_index - 1].to(sample.device) * model_output
        config = scheduler.config
        if "dpmsolver++" in str(config.get("algorithm_type")) or config.get("predict_x0"):
            expected = scheduler.model_outputs[-1]
            return expected if isinstance(expected, Tensor) else None
        return None


def pixels(pipeline: Any, latents: Tensor, width: int, height: int) -> list[Any]:
    """Pillow images of latents, as the pipeline itself makes them of its last ones."""
    vae, config = pipeline.vae, pipeline.vae.config
    latents = latents.to(vae.dtype)
    scale = pipeline.vae_scale_factor
    if hasattr(pipeline, "_unpatchify_latents"):  # FLUX.2
        rows, columns = height // (2 * scale), width // (2 * scale)
        latents = latents.transpose(1, 2).reshape(len(latents), -1, rows, columns)
        spread = torch.sqrt(vae.bn.running_var + config.batch_norm_eps)
        latents = latents * spread.view(1, -1, 1, 1).to(latents) + vae.bn.running_mean.view(1, -1, 1, 1).to(
            latents
        )
        latents = pipeline._unpatchify_latents(latents)
    else:
        if latents.ndim == 3:
            latents = pipeline._unpack_latents(latents, height, width, scale)
        mean, spread = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and spread is not None:
            shape = (1, -1, *(1,) * (latents.ndim - 2))
            by = torch.tensor(spread).view(shape).to(latents) / config.get("scaling_factor", 1.0)
            latents = latents * by + torch.tensor(mean).view(shape).to(latents)
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    found = vae.decode(latents, return_dict=False)[0]
    found = found[:, :, 0] if found.ndim == 5 else found  # one frame of a film
    return list(pipeline.image_processor.postprocess(found.detach(), output_type="pil"))
