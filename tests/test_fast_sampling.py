"""enable_fast_sampling: what it chooses, that the images stay what they were, and that it can be undone."""

import pytest
import torch

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
from ddim_hf.fast_sampling import trial_of_bf16

SEEDS = {"batch_size": 3, "seeds": [4, 5, 6], "num_inference_steps": 5, "output_type": "pt"}


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    unet = build_unet("digits", block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=4).eval()
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def strides(pipe):
    return [weight.stride() for weight in pipe.unet.parameters()]


def test_float32_keeps_the_images(pipe):
    """In float32 and uncompiled the images are the plain pipeline's within 1e-4."""
    plain = pipe(**SEEDS).images
    said = pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    assert said == "channels-last; float32 (asked for); not compiled"
    assert (pipe(**SEEDS).images - plain).abs().max() < 1e-4


def test_bf16_is_the_networks_alone(pipe):
    """In bf16 the states stay float32, and the network's output is the plain one to bf16's precision, not exact."""
    x, timestep = torch.randn(3, 1, 8, 8), torch.tensor(500)
    with torch.no_grad():
        plain = pipe.unet(x, timestep).sample
        pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
        fast = pipe._fast(x, timestep)
    assert fast.dtype == torch.float32 and 0 < (fast - plain).abs().mean() < 2**-5 * plain.abs().mean()
    assert all(state.dtype == torch.float32 for state in pipe(**SEEDS, return_trajectory=True).trajectory)


def test_disable_undoes_it(pipe):
    """After disable_fast_sampling weights lie as before and the images are bit for bit the plain ones."""
    plain, before = pipe(**SEEDS).images, strides(pipe)
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    assert strides(pipe) != before
    pipe.disable_fast_sampling()
    assert strides(pipe) == before
    assert torch.equal(pipe(**SEEDS).images, plain)


def test_compiled_keeps_the_images(pipe):
    """Compiled in float32 the images are the plain pipeline's within 1e-4, for a second batch size too."""
    plain = pipe(**SEEDS).images
    assert "compiled on first use" in pipe.enable_fast_sampling(dtype=torch.float32)
    assert (pipe(**SEEDS).images - plain).abs().max() < 1e-4
    one = pipe(**SEEDS | {"batch_size": 1, "seeds": [5]}).images
    assert (one[0] - plain[1]).abs().max() < 1e-4


def test_no_compiler_warns_and_goes_on(pipe, monkeypatch, tmp_path):
    """Without a C++ compiler on the PATH a warning says so, and sampling goes on uncompiled."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found .* uncompiled"):
        said = pipe.enable_fast_sampling(dtype=torch.float32)
    assert said.endswith("not compiled")
    assert pipe(**SEEDS).images.shape == (3, 1, 8, 8)


def test_the_choice_of_dtype_says_why(pipe):
    """Without a dtype the choice follows the device, and the line says which and why; another dtype is refused."""
    pays, reason = trial_of_bf16(torch.device("cpu"))
    assert reason == "cpu has no native bf16" or "times as fast in bf16" in reason
    assert not (pays and "no native" in reason)
    said = pipe.enable_fast_sampling(compile=False)
    assert said.startswith(("channels-last; float32 (", "channels-last; bfloat16 ("))
    with pytest.raises(ValueError, match="dtype is torch.float64; allowed: None, torch.bfloat16, torch.float32"):
        pipe.enable_fast_sampling(dtype=torch.float64)
