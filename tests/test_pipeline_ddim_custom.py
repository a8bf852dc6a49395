"""Sampling, and the pipeline on disk, with a tiny network of the real class."""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    UNet2DModel,
)

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet

TINY = dict(block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=4, sample_size=8)


def tiny_pipe(scheduler=None, channels=3, **overrides):
    torch.manual_seed(0)
    unet = build_unet("digits", **{**TINY, "in_channels": channels, "out_channels": channels, **overrides}).eval()
    pipe = DDIMCustomPipeline(unet, scheduler or DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def shared_pipe():
    return tiny_pipe()


@pytest.fixture
def pipe(shared_pipe):
    shared_pipe.scheduler = DDIMSchedulerCustom()
    return shared_pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The images


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rederive", [None, False, True])
def test_images_equal_stock_pipelines(pipe, eta, rederive):
    """With the same generator and positional arguments, images equal stock DDIMPipeline's within 1e-4."""
    stock = DDIMPipeline(pipe.unet, DDIMScheduler())
    stock.set_progress_bar_config(disable=True)
    for steps in (1, 7, 20):
        got, wanted = (each(3, seeded(), eta, steps, rederive, "np").images for each in (pipe, stock))
        assert got.shape == wanted.shape and np.abs(got - wanted).max() < 1e-4
    got, wanted = (each(2, [seeded(3), seeded(4)], eta, 5, rederive, "np", False) for each in (pipe, stock))
    assert type(got) is tuple and len(got) == len(wanted) == 1 and np.abs(got[0] - wanted[0]).max() < 1e-4


def test_pil_images_equal_stock_pipelines(pipe):
    """PIL images have stock's mode, size and, but for a value on the edge between two, stock's bytes."""
    stock = DDIMPipeline(pipe.unet, DDIMScheduler())
    stock.set_progress_bar_config(disable=True)
    got, wanted = (each(2, seeded(), num_inference_steps=5).images for each in (pipe, stock))
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_image_depends_on_its_seed_alone(pipe, eta):
    """An image is its seed's, whatever the batch, its place in it and the chunks."""
    run = dict(eta=eta, num_inference_steps=5, output_type="latent")
    seeds = [11, 22, 33, 44, 55]
    together = pipe(5, seeds=seeds, **run).images
    for size in (1, 2, 5, 9):
        assert torch.allclose(pipe(5, seeds=seeds, max_batch_size=size, **run).images, together, atol=1e-5)
    assert torch.allclose(pipe(1, seeds=[44], **run).images, together[3:4], atol=1e-5)
    assert torch.allclose(pipe(5, seeds=np.array(seeds[::-1]), **run).images, together.flip(0), atol=1e-5)
    assert torch.allclose(pipe(1, seeded(44), **run).images, together[3:4], atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_eta_0_is_a_function_of_the_latents(pipe):
    """At eta 0 the same latents give the same images, and nobody's random numbers are used; the latents stay."""
    latents = torch.randn(2, 3, 8, 8, generator=seeded())
    kept, everyones = latents.clone(), torch.get_rng_state()
    first = pipe(2, num_inference_steps=5, latents=latents, output_type="pt").images
    assert torch.equal(pipe(2, num_inference_steps=5, latents=latents, output_type="pt").images, first)
    assert torch.equal(first, pipe(2, seeded(), num_inference_steps=5, output_type="pt").images)
    assert torch.equal(latents, kept) and torch.equal(torch.get_rng_state(), everyones)


def test_output_types_hold_the_same_images(pipe):
    """pil, np, pt and latent are the same images in their own forms."""
    pil, array, tensor, latent = (
        pipe(2, num_inference_steps=3, seeds=[1, 2], output_type=kind).images for kind in ("pil", "np", "pt", "latent")
    )
    assert array.shape == (2, 8, 8, 3) and tensor.shape == latent.shape == (2, 3, 8, 8)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert torch.allclose(tensor, (latent / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), (array * 255).round())
    assert pipe(num_inference_steps=2).images[0].size == (8, 8)


@pytest.mark.parametrize("output_type", [None, "numpy", "np.array"])
def test_stocks_other_names_of_arrays(pipe, output_type):
    """None, "numpy" and "np.array" are arrays, as in stock, in every method that returns images."""
    stock = DDIMPipeline(pipe.unet, DDIMScheduler())
    stock.set_progress_bar_config(disable=True)
    run = dict(num_inference_steps=3, output_type=output_type)
    got, wanted = (each(2, seeded(), **run).images for each in (pipe, stock))
    assert type(got) is type(wanted) is np.ndarray and np.abs(got - wanted).max() < 1e-4
    assert type(pipe.reconstruct(got, **run).images) is type(pipe.interpolate(0, 1, **run).images) is np.ndarray


def test_images_that_are_not_finite_are_no_pictures(pipe):
    """As "pil" the image of the whole batch is named, in any of its chunks; as "pt" all are returned."""
    latents = torch.randn(5, *pipe.state_shape)
    latents[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"are the images \[3\], counted from 0"):
        pipe(5, latents=latents, num_inference_steps=1, max_batch_size=2)
    images = pipe(5, latents=latents, num_inference_steps=1, max_batch_size=2, output_type="pt").images
    assert images.isnan().flatten(1).any(1).tolist() == [False, False, False, True, False]


def test_an_unknown_output_type_is_refused_everywhere(pipe):
    """Every method that returns images raises ValueError for an output type that there is not, before any step."""
    images = torch.zeros(1, 3, 8, 8)
    for call in (pipe, lambda **run: pipe.reconstruct(images, **run), lambda **run: pipe.interpolate(0, 1, **run)):
        with pytest.raises(ValueError, match="output_type is 'jpg'; allowed: 'pil', 'np', 'pt', 'latent'"):
            call(output_type="jpg", num_inference_steps=1)


@pytest.mark.parametrize("channels, size, mode", [(1, 8, "L"), (3, (8, 16), "RGB"), (4, 8, "RGBA")])
def test_images_have_the_networks_channels_and_size(channels, size, mode):
    """Grey networks give grey images, and a sample_size of (height, width) that height and width."""
    image = tiny_pipe(channels=channels, sample_size=size)(num_inference_steps=2).images[0]
    assert image.mode == mode and image.size == ((8, 8) if size == 8 else (16, 8))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_pipeline_encodes_its_own_images(channels):
    """The images that a network of 1 to 4 channels gives can be encoded by it, and come back within a level."""
    pipe = tiny_pipe(DDIMSchedulerCustom(beta_end=0.001), channels=channels)
    images = pipe(2, seeds=[1, 2], num_inference_steps=3).images
    output = pipe.reconstruct(images, 5, exact=True)
    for image, back in zip(images, output.images, strict=True):
        assert image.mode == back.mode
        assert np.abs(np.asarray(image).astype(int) - np.asarray(back)).max() <= 1


# Networks of other kinds


def test_a_learned_variance_is_left_out():
    """Of a network that predicts mean and variance (out_channels twice in_channels) every method takes the mean."""
    pipe, plain = tiny_pipe(), tiny_pipe()
    weight, bias = plain.unet.conv_out.weight, plain.unet.conv_out.bias
    pipe.unet.register_to_config(out_channels=6)
    pipe.unet.conv_out = torch.nn.Conv2d(weight.shape[1], 6, 3, padding=1)
    with torch.no_grad():
        pipe.unet.conv_out.weight[:3], pipe.unet.conv_out.bias[:3] = weight, bias
    run = dict(num_inference_steps=3, output_type="pt")
    wanted = plain(2, seeds=[1, 2], **run).images
    assert torch.allclose(pipe(2, seeds=[1, 2], **run).images, wanted, atol=1e-5)
    assert torch.allclose(pipe.invert(wanted, 3).latents, plain.invert(wanted, 3).latents, atol=1e-4)
    pipe.enable_fast_sampling(torch.float32, compile=False)
    assert torch.allclose(pipe(2, seeds=[1, 2], **run).images, wanted, atol=1e-4)


def test_a_network_of_no_size_takes_that_of_its_input():
    """Where sample_size is None, latents and images give the size, and without them one line says so."""
    pipe, plain = tiny_pipe(sample_size=None), tiny_pipe()
    run = dict(num_inference_steps=3, output_type="pt")
    latents = torch.randn(2, 3, 8, 8, generator=seeded())
    wanted = plain(2, latents=latents, **run).images
    assert torch.equal(pipe(2, latents=latents, **run).images, wanted)
    assert pipe(2, latents=torch.zeros(2, 3, 16, 8), **run).images.shape == (2, 3, 16, 8)
    assert torch.equal(pipe.reconstruct(wanted, 3).mse, plain.reconstruct(wanted, 3).mse)
    assert torch.equal(pipe.interpolate(*latents, **run).images, plain.interpolate(*latents, **run).images)
    assert torch.equal(pipe.interpolate(*latents[:, None], **run).images, plain.interpolate(*latents, **run).images)
    for call in (pipe, lambda: pipe.interpolate(0, 1)):
        with pytest.raises(ValueError, match="no sample_size; allowed: latents, or images to encode"):
            call()
    with pytest.raises(ValueError, match=r"latents has shape \(2, 1, 8, 8\); allowed: \(2, 3, 8, 8\)"):
        pipe(2, latents=torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images as a tensor have shape \(1, 1, 8, 8\); allowed: \(N, 3, any, any\)"):
        pipe.invert(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(sample_size=9), "states are 9 x 9; allowed with this network: multiples of 2"),
        (dict(sample_size=(8, 7)), "states are 8 x 7; allowed"),
        (dict(class_embed_type="timestep"), "class_embed_type is 'timestep'; allowed: None, with num_class_embeds"),
        (dict(class_embed_type="identity"), "class_embed_type is 'identity'; allowed: None"),
        (dict(num_class_embeds=1), "num_class_embeds is 1; allowed: None, or classes and the null class"),
        (dict(out_channels=4), r"out_channels is 4; allowed with in_channels 3: 3, or 6 \(with a learned variance\)"),
    ],
)
def test_networks_that_cannot_run_are_refused(overrides, message):
    """A network that cannot sample here, or not in its size, raises ValueError in one line in every method."""
    pipe = tiny_pipe(**overrides)
    image = torch.zeros(1, *pipe.state_shape)
    for call in (pipe, lambda: pipe.invert(image), lambda: pipe.reconstruct(image), lambda: pipe.interpolate(0, 1)):
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


# What is seen on the way


@pytest.mark.parametrize("chunk", [None, 2])
def test_trajectory_has_every_state(pipe, chunk):
    """The trajectory is the S + 1 states from x_T to x_0, with S predictions of x_0, for all images."""
    latents = torch.randn(3, 3, 8, 8, generator=seeded())
    run = dict(latents=latents, num_inference_steps=4, max_batch_size=chunk, output_type="latent")
    output = pipe(3, return_trajectory=True, **run)
    in_a_tuple = pipe(3, return_trajectory=True, return_dict=False, **run)
    assert [len(part) for part in in_a_tuple] == [len(part) for part in output.to_tuple()] == [3, 5, 4, 4]
    assert output["trajectory"] is output.trajectory
    assert len(output.trajectory) == 5 and len(output.pred_original_samples) == 4
    assert output.timesteps == [750, 500, 250, 0]
    assert all(state.shape == latents.shape for state in output.trajectory + output.pred_original_samples)
    assert torch.equal(output.trajectory[0], latents) and torch.equal(output.trajectory[-1], output.images)
    assert torch.allclose(output.pred_original_samples[-1], output.images, atol=1e-6)
    pipe.scheduler.set_timesteps(4)
    for i, t in enumerate(pipe.scheduler.timesteps):
        with torch.no_grad():
            eps = pipe.unet(output.trajectory[i], t).sample
        following = pipe.scheduler.step(eps, t, output.trajectory[i]).prev_sample
        assert torch.allclose(following, output.trajectory[i + 1], atol=1e-5)
    plain = pipe(3, **run)
    assert plain.trajectory is None and torch.equal(plain.images, output.images)


def test_callback_sees_each_step_and_may_replace_the_latents(pipe):
    """The callback is called after each step with the state, and what it returns as latents is sampled on."""
    calls = []

    def watch(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        calls.append((step, int(timestep), tensors["latents"], tensors["pred_original_sample"]))

    run = dict(seeds=[7], num_inference_steps=4, output_type="latent", return_trajectory=True)
    output = pipe(callback_on_step_end=watch, **run)
    assert [call[:2] for call in calls] == [(0, 750), (1, 500), (2, 250), (3, 0)]
    assert all(torch.equal(call[2], state) for call, state in zip(calls, output.trajectory[1:], strict=True))
    assert all(torch.equal(call[3], x0) for call, x0 in zip(calls, output.pred_original_samples, strict=True))
    assert torch.equal(pipe(**run).images, output.images)
    zeroed = pipe(callback_on_step_end=lambda pipeline, i, t, tensors: {"latents": tensors["latents"] * 0}, **run)
    assert zeroed.images.abs().max() == 0 and all(state.abs().max() == 0 for state in zeroed.trajectory[1:])


def test_explicit_timesteps_are_visited(pipe):
    """timesteps replaces num_inference_steps: the same tau gives the same images, another tau other ones."""
    run = dict(seeds=[7], output_type="pt")
    given = pipe(timesteps=[750, 500, 250, 0], **run).images
    assert torch.equal(given, pipe(num_inference_steps=4, **run).images)
    assert not torch.equal(given, pipe(timesteps=[900, 500, 250, 0], **run).images)


def test_clip_sample_holds_for_one_call():
    """clip_sample=False samples without clipping in that call alone, thresholding turned off too."""
    free = tiny_pipe(DDIMSchedulerCustom(clip_sample=False))
    run = dict(seeds=[7], num_inference_steps=4, output_type="latent")
    for config in (dict(), dict(thresholding=True)):
        pipe = tiny_pipe(DDIMSchedulerCustom(**config))
        clipped = pipe(**run).images
        assert clipped.abs().max() <= 1 + 1e-6
        assert torch.equal(pipe(clip_sample=False, **run).images, free(**run).images)
        assert torch.equal(pipe(**run).images, clipped)
    assert torch.equal(free(clip_sample=True, **run).images, tiny_pipe()(**run).images)


# Other schedulers, devices and precisions


def test_any_schedulers_config_is_recast():
    """The pipeline recasts another scheduler's config to its own scheduler; its own one it keeps as it is."""
    pipe = tiny_pipe(DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"))
    assert type(pipe.scheduler) is DDIMSchedulerCustom
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    own = DDIMSchedulerCustom(skip_type="quad")
    assert tiny_pipe(own).scheduler is own


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float64, 1e-4)])
def test_precision_is_the_networks(dtype, tolerance):
    """A network in another precision samples in it: images close to float32's, np and PIL in their usual types."""
    run = dict(latents=torch.randn(2, 3, 8, 8, generator=seeded()), num_inference_steps=5)
    wanted = tiny_pipe()(2, output_type="np", **run).images
    pipe = tiny_pipe().to(dtype)
    got = pipe(2, output_type="np", **run).images
    assert got.dtype == np.float32 and np.abs(got - wanted).mean() < tolerance
    assert pipe(2, output_type="latent", **run).images.dtype == dtype
    assert pipe(2, **run).images[0].mode == "RGB" and pipe(seeds=[1], num_inference_steps=2).images


def test_offloaded_network_samples_and_is_freed():
    """With enable_model_cpu_offload images are the same, and the network is offloaded anew after the call."""
    wanted = tiny_pipe()(seeds=[1], num_inference_steps=3, output_type="pt").images
    pipe = tiny_pipe()
    pipe.enable_model_cpu_offload(device="cpu")
    hook = pipe.unet._hf_hook
    assert torch.equal(pipe(seeds=[1], num_inference_steps=3, output_type="pt").images, wanted)
    assert pipe.unet._hf_hook is not hook


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_cpus_images(pipe):
    """On a GPU the same seeds give the CPU's images within 1e-3, at any eta, with tensors left on the GPU."""
    for eta in (0.0, 1.0):
        run = dict(batch_size=2, seeds=[1, 2], eta=eta, num_inference_steps=5, output_type="pt")
        on_gpu = tiny_pipe().to("cuda")(**run).images
        assert on_gpu.device.type == "cuda"
        assert torch.allclose(on_gpu.cpu(), pipe(**run).images, atol=1e-3)


# On disk


def test_saved_folder_loads_in_stock_diffusers(tmp_path):
    """What save_pretrained writes names stock classes, holds safetensors, and gives stock DDIMPipeline's images."""
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files == {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", weights}
    stock_keys = set(DDIMScheduler().config) | {"_class_name", "_diffusers_version"}
    assert set(json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())) <= stock_keys
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is DDIMPipeline and type(stock.scheduler) is DDIMScheduler
    wanted = pipe(2, seeded(), num_inference_steps=3, output_type="np").images
    assert np.abs(stock(2, seeded(), num_inference_steps=3, output_type="np").images - wanted).max() < 1e-4


def test_own_keys_survive_the_round_trip(tmp_path):
    """Saved and loaded by our class, the scheduler keeps every key and the weights every bit."""
    config = dict(skip_type="quad", variance="sigma_hat", x0_formula="as_printed", timestep_spacing="trailing")
    pipe = tiny_pipe(DDIMSchedulerCustom(**config))
    pipe.save_pretrained(tmp_path)
    loaded = DDIMCustomPipeline.from_pretrained(str(tmp_path))
    assert type(loaded) is DDIMCustomPipeline and type(loaded.scheduler) is DDIMSchedulerCustom
    assert {key: loaded.scheduler.config[key] for key in config} == config
    state = loaded.unet.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in pipe.unet.state_dict().items())
    given = DDIMCustomPipeline.from_pretrained(tmp_path, scheduler=DDPMScheduler())
    assert type(given.scheduler) is DDIMSchedulerCustom


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_stock_pipelines_folders_load(kind, tmp_path):
    """A folder saved by stock DDPMPipeline or DDIMPipeline loads, and samples as stock DDIMPipeline does."""
    unet = tiny_pipe().unet
    scheduler = DDPMScheduler if kind is DDPMPipeline else DDIMScheduler
    kind(unet, scheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
    ours, stock = DDIMCustomPipeline.from_pretrained(tmp_path), DDIMPipeline.from_pretrained(tmp_path)
    for each in (ours, stock):
        each.set_progress_bar_config(disable=True)
    got, wanted = (each(1, seeded(), 0.3, 5, output_type="np").images for each in (ours, stock))
    assert np.abs(got - wanted).max() < 1e-4


def test_pickled_weights_are_refused(tmp_path):
    """A folder with pickled weights alone raises OSError that speaks of safetensors, and loads where asked for by
    name."""
    pipe = tiny_pipe()
    DDIMPipeline(pipe.unet, DDIMScheduler()).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="safetensors"):
        DDIMCustomPipeline.from_pretrained(tmp_path)
    assert DDIMCustomPipeline.from_pretrained(tmp_path, use_safetensors=False).unet.num_parameters()


def test_weights_are_pickled_here_alone(tmp_path, hub):
    """safe_serialization=False saves a pickle with a warning, which this process loads and another must ask for by
    name; a push of it is refused before anything is written."""
    pipe = tiny_pipe()
    with pytest.warns(UserWarning, match="saved as pickles"):
        pipe.save_pretrained(tmp_path / "model", safe_serialization=False)
    assert [file.suffix for file in (tmp_path / "model/unet").glob("diff*")] == [".bin"]
    assert DDIMCustomPipeline.from_pretrained(tmp_path / "model").unet.num_parameters()
    (tmp_path / "model").rename(tmp_path / "another")
    with pytest.raises(OSError, match="safetensors"):
        DDIMCustomPipeline.from_pretrained(tmp_path / "another")
    pipe.save_pretrained(tmp_path / "another")  # safetensors beside the pickle
    assert DDIMCustomPipeline.from_pretrained(tmp_path / "another").unet.num_parameters()
    with pytest.raises(ValueError, match="no pickle is pushed"):
        pipe.save_pretrained(tmp_path / "pushed", False, push_to_hub=True, repo_id="org/pickled")
    assert not (tmp_path / "pushed").exists()


def test_save_takes_stocks_positional_arguments(tmp_path):
    """save_pretrained(folder, True, "fp16") writes the weights of that variant, as stock's does."""
    tiny_pipe().save_pretrained(tmp_path, True, "fp16")
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert DDIMCustomPipeline.from_pretrained(tmp_path, variant="fp16").unet.num_parameters()
    stock = list(inspect.signature(DDIMPipeline.save_pretrained).parameters)[:6]
    assert list(inspect.signature(DDIMCustomPipeline.save_pretrained).parameters)[:6] == stock


# Bad input

BAD = [
    (dict(batch_size=0), "batch_size is 0; allowed: whole numbers from 1"),
    (dict(batch_size=-3), "batch_size is -3"),
    (dict(batch_size=1.5), "batch_size is 1.5"),
    (dict(batch_size=None), "batch_size is None"),
    (dict(batch_size=True), "batch_size is True"),
    (dict(max_batch_size=0), "max_batch_size is 0; allowed: whole numbers from 1"),
    (dict(num_inference_steps=0), "num_inference_steps is 0; allowed: whole numbers from 1 to 1000"),
    (dict(num_inference_steps=1001), "num_inference_steps is 1001"),
    (dict(eta=-0.1), r"eta is -0.1; allowed: 0 \(DDIM\) to 1 \(DDPM\)"),
    (dict(eta=1.1), "eta is 1.1"),
    (dict(eta=float("nan")), "eta is nan"),
    (dict(eta="a"), "eta is 'a'; allowed: 0"),
    (dict(eta=True), "eta is True; allowed: 0"),
    (dict(generator=[1]), r"generator is \[1\]; allowed: torch.Generator"),
    (dict(latents=[1]), "latents is list; allowed: a torch tensor"),
    (dict(num_inference_steps="a"), "num_inference_steps is 'a'; allowed: whole numbers from 1"),
    (dict(timesteps=["a"]), r"timesteps is \['a'\]; allowed: strictly decreasing ints"),
    (dict(timesteps=[True]), r"timesteps is \[True\]; allowed: strictly decreasing ints"),
    (dict(seeds=[True]), "seeds has True; allowed: ints"),
    (dict(output_type="jpeg"), "output_type is 'jpeg'; allowed: 'pil', 'np', 'pt', 'latent'"),
    (dict(seeds=[1, 2]), r"seeds has shape \(2,\); allowed: one int per image, \(1,\)"),
    (dict(seeds=[0.9]), "seeds has 0.9; allowed: ints"),
    (dict(seeds=["a"]), "seeds has 'a'; allowed: ints"),
    (dict(seeds=[2**64]), "seeds has 18446744073709551616; allowed: ints of 64 bits"),
    (dict(seeds=3), r"seeds has shape \(\); allowed: one int per image"),
    (dict(seeds=[1], generator=seeded()), "seeds and generator are both given; allowed: one of them"),
    (dict(generator=[seeded()] * 2), r"generator has 2 entries; allowed: one, or batch_size \(1\)"),
    (dict(latents=torch.zeros(1, 3, 8, 4)), r"latents has shape \(1, 3, 8, 4\); allowed: \(1, 3, 8, 8\)"),
    (dict(latents=torch.zeros(2, 3, 8, 8)), r"latents has shape \(2, 3, 8, 8\)"),
    (dict(timesteps=[1, 500]), r"timesteps is \[1, 500\]; allowed: strictly decreasing ints in \[0, 1000\)"),
    (dict(timesteps=[1000]), r"timesteps runs from 1000 to 1000; allowed: ints in \[0, 1000\)"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message[:30] for _, message in BAD])
def test_wrong_arguments_are_refused(pipe, arguments, message):
    """A wrong argument raises ValueError in one line: what was given and what is allowed."""
    with pytest.raises(ValueError, match=message) as raised:
        pipe(**arguments)
    assert "\n" not in str(raised.value)


def test_call_takes_stocks_arguments_in_stocks_order():
    """__call__ begins with stock DDIMPipeline's parameters, by name, order and default; the rest are keyword-only."""

    stock = list(inspect.signature(DDIMPipeline.__call__).parameters.values())
    ours = list(inspect.signature(DDIMCustomPipeline.__call__).parameters.values())
    for wanted, got in zip(stock, ours, strict=False):
        assert (got.name, got.default, got.kind) == (wanted.name, wanted.default, wanted.kind)
    assert len(ours) > len(stock) and all(each.kind is each.KEYWORD_ONLY for each in ours[len(stock) :])


def test_default_network_of_diffusers_runs():
    """Any UNet2DModel will do, one without attention and with its own settings too."""
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DModel(8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, **blocks)
    pipe = DDIMCustomPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(2, num_inference_steps=2).images) == 2
