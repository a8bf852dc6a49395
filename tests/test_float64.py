"""Apple's MPS has no float64: whatever is computed in it is computed on the CPU."""

import pytest
import torch
from conftest import tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, slerp
from ddim_hf.loss import noise_errors

ATEN = torch.ops.aten


class DeviceWithoutFloat64(TorchDispatchMode):
    """Lets the meta device stand for one: no float64 there, and on the way to the CPU values, though any."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
        there = bool(tensors) and tensors[0].is_meta
        if there and function is ATEN._local_scalar_dense.default:
            return tensors[0].dtype == torch.bool  # whatever is asked is so, whatever is measured is 0
        if there and function is ATEN._to_copy.default and torch.device(keywords.get("device", "meta")).type == "cpu":
            if keywords.get("dtype") == torch.float64:
                raise TypeError("float64 is made on the way from the device, before the CPU")
            return torch.zeros(tensors[0].shape, dtype=keywords.get("dtype") or tensors[0].dtype)
        results = function(*arguments, **keywords)
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor) and result.is_meta and result.dtype == torch.float64:
                raise TypeError(f"{function} makes float64 on the device")
        return results


@pytest.fixture
def pipe():
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()).to("meta")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_device_has_no_float64():
    """The test's own device refuses float64, as MPS does, and takes float32."""
    with DeviceWithoutFloat64():
        x = torch.zeros(2, device="meta") + 1
        for make in (x.double, lambda: x.to("cpu", torch.float64), lambda: torch.zeros(2, device="meta").double()):
            with pytest.raises(TypeError, match="float64"):
                make()
        assert x.cpu().double().shape == (2,)


@pytest.mark.parametrize("config", [dict(), dict(thresholding=True), dict(variance="sigma_hat")])
def test_no_float64_off_the_cpu(pipe, config):
    """Sampling, recording, inversion both ways, reconstruction, interpolation, slerp and the denoising loss make no
    float64 on the device."""
    pipe.scheduler = DDIMSchedulerCustom(**config)
    images, run = torch.zeros(2, 1, 8, 8), dict(num_inference_steps=2)
    with DeviceWithoutFloat64():
        pipe(2, seeds=[0, 1], eta=1.0, return_trajectory=True, output_type="np", **run)
        pipe(2, use_clipped_model_output=True, max_batch_size=1, output_type="pt", **run)
        for exact in (False, True):
            pipe.invert(images, exact=exact, **run)
            pipe.reconstruct(images, exact=exact, **run)
        pipe.interpolate(0, 1, num_images=2, **run)
        latents = torch.zeros(2, 1, 8, 8, device="meta")
        slerp(*latents, 0.5)
        timesteps = torch.zeros(2, dtype=torch.int64, device="meta")
        noise_errors(pipe.predict, pipe.scheduler, latents, timesteps, latents)
