"""enable_fast_sampling: what it chooses, that the images stay what they were, and that it can be undone."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
from ddim_hf.fast_sampling import group_averages, group_norm, trial_of_bf16
from ddim_hf.generation import describe_network

SEEDS = {"batch_size": 3, "seeds": [4, 5, 6], "num_inference_steps": 5, "output_type": "pt"}


def tiny_pipe(**overrides):
    torch.manual_seed(0)
    size = dict(block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=4)
    pipe = DDIMCustomPipeline(build_unet("digits", **size, **overrides).eval(), DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return tiny_pipe()


@pytest.fixture
def with_classes():
    """A pipeline whose classes tell, and a call that asks for some."""
    pipe = tiny_pipe(num_class_embeds=4)
    torch.nn.init.normal_(pipe.unet.class_embedding.weight, std=5.0)
    run = SEEDS | {"class_labels": [0, None, 2], "guidance_scale": 1.5}
    assert (pipe(**run).images - pipe(**SEEDS).images).abs().max() > 1e-2
    return pipe, run


def strides(pipe):
    return [weight.stride() for weight in pipe.unet.parameters()]


def test_float32_keeps_the_images(pipe):
    """In float32 and uncompiled the images are the plain pipeline's within 1e-4."""
    plain = pipe(**SEEDS).images
    said = pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    assert said == "channels-last; float32 (asked for); not compiled"
    assert (pipe(**SEEDS).images - plain).abs().max() < 1e-4


def test_classes_keep_the_images(with_classes):
    """A network with classes is sampled with labels and guidance as plainly, within 1e-4."""
    pipe, run = with_classes
    plain = pipe(**run).images
    pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    assert (pipe(**run).images - plain).abs().max() < 1e-4
    assert (pipe(**run, guidance_interval=(0, 500)).images - plain).abs().max() > 1e-4


def test_bf16_is_the_networks_alone(pipe):
    """In bf16 the states stay float32, and the network's output is the plain one to bf16's precision, not exact."""
    x, timestep = torch.randn(3, 1, 8, 8), torch.tensor(500)
    with torch.no_grad():
        plain = pipe.unet(x, timestep).sample
        pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
        fast = pipe.fast_network(x, timestep)
    assert fast.dtype == torch.float32 and 0 < (fast - plain).abs().mean() < 2**-5 * plain.abs().mean()
    assert all(state.dtype == torch.float32 for state in pipe(**SEEDS, return_trajectory=True).trajectory)


def test_exact_encoding_runs_in_float32(pipe):
    """With fast sampling in bf16, exact encoding, reconstruction and interpolation give the images back to 1e-4."""
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)  # random weights of full size let rounding grow a thousandfold
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    again = pipe.reconstruct(images, 10, exact=True, output_type="pt")
    assert again.residual <= 1e-5 and (again.images - images).abs().max() < 1e-4
    ends = [image.movedim(0, -1).numpy() for image in images]
    between = pipe.interpolate(*ends, num_images=2, num_inference_steps=10, output_type="pt").images
    assert (between - images).abs().max() < 1e-4


@pytest.mark.parametrize("mean, tolerance", [(0.0, 1e-5), (30.0, 1e-3)])
@pytest.mark.parametrize("shape", [(3, 12, 8, 8), (3, 12, 20)])
def test_group_norm_is_torchs(shape, mean, tolerance):
    """GroupNorm by channel sums is torch's within 1e-5, and 1e-3 at 30 deviations from zero; images and sequences."""
    module = torch.nn.GroupNorm(4, 12, eps=1e-5)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    x = torch.randn(shape) + mean
    assert (group_norm(module, group_averages(module), x) - module(x)).abs().max() < tolerance


def test_group_norm_of_a_constant():
    """Where nothing varies, rounding does not make the variance negative: the result is the bias."""
    module = torch.nn.GroupNorm(2, 4)
    result = group_norm(module, group_averages(module), torch.full((1, 4, 8, 8), 123.4567))
    assert result.isfinite().all() and result.abs().max() < 0.5


def test_bf16_leaves_some_convolutions_in_float32(pipe):
    """In bf16 the first and last convolution and the shortcuts give float32, and the blocks' own do not."""
    dtypes = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("conv_in", "conv_out", "conv_shortcut", "conv1")):
            module.register_forward_hook(lambda *call, name=name: dtypes.update({name: call[-1].dtype}))
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    pipe(**SEEDS)
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert {"conv_in", "conv_out", "up_blocks.0.resnets.0.conv_shortcut"} <= kept
    assert not any(name.endswith("conv1") for name in kept)


def plain_forwards(pipe):
    return not any("forward" in vars(module) for module in pipe.unet.modules())


@pytest.mark.parametrize("when", ["before", "after"])
def test_anothers_forward_is_kept_and_run(pipe, when):
    """A forward that someone else has replaced, as offloading hooks do, is run by fast sampling too, and stays."""
    calls, forward = [], pipe.unet.forward

    def hooked(*arguments, **keywords):
        calls.append(arguments)
        return forward(*arguments, **keywords)

    if when == "before":
        pipe.unet.forward = hooked
    pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    pipe.unet.forward = hooked
    pipe(**SEEDS)
    pipe.disable_fast_sampling()
    assert len(calls) == SEEDS["num_inference_steps"] and vars(pipe.unet)["forward"] is hooked


def test_an_offloaded_network_runs_fast(pipe):
    """With enable_model_cpu_offload, before or after, bf16's own forwards are run and the network is offloaded."""
    wanted = pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False) and pipe(**SEEDS).images
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(**SEEDS).images, wanted)
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    assert torch.equal(pipe(**SEEDS).images, wanted)


def test_two_pipelines_that_share_a_network(pipe):
    """Two pipelines of one network enable and disable in any order; each keeps its own images, plain or in bf16."""
    other = DDIMCustomPipeline(pipe.unet, pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    plain = other(**SEEDS).images
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    fast = pipe(**SEEDS).images
    assert plain_forwards(other) and (other(**SEEDS).images - plain).abs().max() < 1e-5
    other.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    pipe.disable_fast_sampling()
    assert (other(**SEEDS).images - fast).abs().max() < 1e-5 < (fast - plain).abs().max()
    other.disable_fast_sampling()
    assert plain_forwards(pipe) and torch.equal(pipe(**SEEDS).images, plain)


def test_what_is_done_to_the_weights_is_sampled(pipe):
    """Weights changed in place, loaded or put in the place of others show in fast sampling as in plain sampling."""
    pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    images = [pipe(**SEEDS).images]
    weights = {name: weight * 0.9 for name, weight in pipe.unet.state_dict().items()}
    for change in (
        lambda unet: unet.conv_in.weight.data.mul_(0.5),
        lambda unet: unet.load_state_dict(weights),
        lambda unet: setattr(unet.conv_out, "weight", torch.nn.Parameter(unet.conv_out.weight.flip(1))),
    ):
        change(pipe.unet)
        fast = pipe(**SEEDS).images
        assert all((fast - before).abs().max() > 1e-3 for before in images)
        plain = DDIMCustomPipeline(pipe.unet, pipe.scheduler)
        plain.set_progress_bar_config(disable=True)
        assert (plain(**SEEDS).images - fast).abs().max() < 1e-4
        images.append(fast)


def test_dropout_follows_the_network():
    """A network switched to eval() after fast sampling began samples without dropout."""
    torch.manual_seed(0)
    unet = build_unet("digits", block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=4, dropout=0.5)
    pipe = DDIMCustomPipeline(unet.train(), DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    assert not torch.equal(pipe(**SEEDS).images, pipe(**SEEDS).images)
    pipe.unet.eval()
    assert torch.equal(pipe(**SEEDS).images, pipe(**SEEDS).images)


def test_the_device_is_that_of_the_call(pipe):
    """Fast sampling that was enabled on another device is set up anew on the one that the pipeline has moved to."""
    plain, weights = pipe(**SEEDS).images, {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    pipe.to("meta")
    pipe.enable_fast_sampling(dtype=torch.float32, compile=False)
    pipe.unet.to_empty(device="cpu").load_state_dict(weights)
    assert (pipe(**SEEDS).images - plain).abs().max() < 1e-4
    assert pipe.fast_network.device.type == "cpu"


@pytest.mark.parametrize("when", ["before", "after"])
def test_half_precision_weights(pipe, when):
    """A network in bf16 runs fast too, whether it was cast before or after."""
    if when == "before":
        pipe.to(torch.bfloat16)
    pipe.enable_fast_sampling(dtype=torch.bfloat16, compile=False)
    pipe.to(torch.bfloat16)
    assert pipe(**SEEDS).images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_was_loaded_in_half_precision(pipe, dtype):
    """It computes in its own dtype, says so, and keeps its images; another one that is asked for is refused."""
    pipe.to(dtype)
    plain = pipe(**SEEDS).images
    assert "the network's own" in pipe.enable_fast_sampling(compile=False)
    assert describe_network(pipe) == f"fast sampling, {str(dtype).removeprefix('torch.')}"
    fast = pipe(**SEEDS).images
    assert fast.dtype == plain.dtype and (fast - plain).abs().mean() < 0.02
    with pytest.raises(ValueError, match=f"dtype is torch.float32; allowed with a network of {dtype}: None"):
        pipe.enable_fast_sampling(torch.float32)


@pytest.mark.slow
def test_the_network_that_is_there_is_sampled(pipe):
    """A compiled pipeline's copy samples its own weights, and another network put into it is sampled, fast too."""
    pipe.enable_fast_sampling(dtype=torch.float32)
    pipe(**SEEDS)
    twin = copy.deepcopy(pipe)
    for parameter in twin.unet.parameters():
        parameter.data.mul_(0.5)
    images = twin(**SEEDS).images
    twin.disable_fast_sampling()
    assert (images - twin(**SEEDS).images).abs().max() < 1e-4
    assert (images - pipe(**SEEDS).images).abs().max() > 0.1
    pipe.unet = twin.unet
    assert (pipe(**SEEDS).images - images).abs().max() < 1e-4 and pipe.fast_network.unet is twin.unet


@pytest.mark.slow
def test_more_batch_sizes_than_torchs_own_limit(pipe):
    """Where torch's own limit is one compilation, a second batch size is compiled all the same."""
    pipe.enable_fast_sampling(dtype=torch.float32)
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()  # else code that an earlier test compiled for a network of this layout would be found
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for size in (4, 5):
            counters.clear()
            pipe.fast_network(torch.randn(size, 1, 8, 8), torch.tensor(1))
            assert counters["stats"]["unique_graphs"] == 1 and pipe.fast_network.compiled


@pytest.mark.parametrize("settings", [dict(dtype=torch.bfloat16, compile=False), dict(dtype=torch.float32)])
def test_disable_undoes_it(pipe, settings):
    """After disable_fast_sampling weights lie as before and the images are bit for bit the plain ones."""
    plain, before = pipe(**SEEDS).images, strides(pipe)
    pipe.enable_fast_sampling(**settings)
    assert strides(pipe) != before
    pipe.disable_fast_sampling()
    assert strides(pipe) == before and plain_forwards(pipe)
    assert torch.equal(pipe(**SEEDS).images, plain)


def test_compiled_keeps_the_images(with_classes, capsys):
    """Compiled in float32 images are the plain pipeline's within 1e-4, with labels and guidance and without, which are
    two batch sizes; what was chosen, and that the first call of each compiles and for how long, is said."""
    pipe, run = with_classes
    plain, without = pipe(**run).images, pipe(**SEEDS).images
    assert "compiled on first use" in pipe.enable_fast_sampling(dtype=torch.float32)
    assert (pipe(**run).images - plain).abs().max() < 1e-4 and pipe.fast_network.compiled
    chosen, compiling, compiled = capsys.readouterr().out.splitlines()
    assert chosen.startswith("fast sampling: channels-last; float32")
    assert re.fullmatch(r"compiling the network for \d images of 8 x 8: about \d+ s, or .*", compiling)
    assert re.fullmatch(r"compiled in \d+ s", compiled)
    assert (pipe(**SEEDS).images - without).abs().max() < 1e-4


def test_compiled_bf16_is_near(pipe):
    """Compiled in bf16 one call of the network is the plain one to bf16's precision."""
    x, timestep = torch.randn(3, 1, 8, 8), torch.tensor(500)
    with torch.no_grad():
        plain = pipe.unet(x, timestep).sample
        pipe.enable_fast_sampling(dtype=torch.bfloat16)
        fast = pipe.fast_network(x, timestep)
    assert fast.dtype == torch.float32 and 0 < (fast - plain).abs().mean() < 2**-5 * plain.abs().mean()


def test_no_compiler_warns_and_goes_on(pipe, monkeypatch, tmp_path):
    """Without a C++ compiler on the PATH a warning says so, and sampling goes on uncompiled."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found .* uncompiled"):
        said = pipe.enable_fast_sampling(dtype=torch.float32)
    assert said.endswith("not compiled")
    assert pipe(**SEEDS).images.shape == (3, 1, 8, 8)


FAILING = """
import torch
from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
unet = build_unet("digits", block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=4).eval()
pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom())
plain = pipe(2, seeds=[1, 2], num_inference_steps=3, output_type="pt").images
print(pipe.enable_fast_sampling(dtype=torch.float32))
fast = pipe(2, seeds=[1, 2], num_inference_steps=3, output_type="pt").images
print((fast - plain).abs().max().item() < 1e-4, pipe.fast_network.compiled)
"""


@pytest.mark.slow
def test_a_failing_compiler_warns_and_goes_on(tmp_path):
    """Where g++ fails, as without Python's headers, a warning says so and the images are the plain ones."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CXX": "g++"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", FAILING], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "True False", done.stderr
    said = re.search(r"compilation failed \((.*)\): fast sampling goes on uncompiled", done.stderr)
    assert said and ("no headers" in said[1] or "No working C++ compiler" in said[1])


def test_the_choice_of_dtype_says_why(pipe):
    """Without a dtype the choice follows the device, and the line says which and why; another dtype is refused."""
    pays, reason = trial_of_bf16(torch.device("cpu"))
    assert reason == "cpu has no native bf16" or "times as fast in bf16" in reason
    assert not (pays and "no native" in reason)
    said = pipe.enable_fast_sampling(compile=False)
    assert said.startswith(("channels-last; float32 (", "channels-last; bfloat16 ("))
    with pytest.raises(ValueError, match="dtype is torch.float64; allowed: None, torch.bfloat16, torch.float32"):
        pipe.enable_fast_sampling(dtype=torch.float64)
