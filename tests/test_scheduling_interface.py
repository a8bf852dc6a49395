"""The scheduler as diffusers' code meets it: every kind of tensor, the other schedulers' configs, bad input."""

import copy
import inspect

import diffusers
import diffusers.utils.logging
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from test_scheduling_ddim_custom import ALPHAS, CONFIGS, draw, error

from ddim_hf import DDIMSchedulerCustom
from ddim_hf.scheduling_ddim_custom import combine


@pytest.fixture
def diffusers_log(caplog):
    """What diffusers logs, which it keeps from the root logger otherwise."""
    diffusers.utils.logging.enable_propagation()
    yield caplog
    diffusers.utils.logging.disable_propagation()


# Tensors of every kind


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config)) or "default")
@pytest.mark.parametrize("size", [4, 160])
def test_inputs_are_never_changed(config, size):
    """No method changes a tensor that it is given, large or small."""
    scheduler = DDIMSchedulerCustom(**config)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[3]
    given = [draw(1, 3, size, size, seed=seed) * 3 for seed in range(3)]
    kept = copy.deepcopy(given)
    output, x, noise = given
    for rederive in (False, True):
        scheduler.step(output, t, x, 1.0, rederive, variance_noise=noise)
    scheduler.invert_step(output, t, x)
    scheduler.predict_epsilon(output, t, x)
    scheduler.add_noise(x, noise, t)
    scheduler.get_velocity(x, noise, t)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "config", [dict(), dict(prediction_type="sample"), dict(thresholding=True, sample_max_value=2)]
)
@pytest.mark.parametrize("size", [4, 160])
def test_results_have_the_samples_dtype_and_precision(dtype, tolerance, config, size):
    """Results have the sample's dtype, whatever the network's, and that dtype's precision: float64's in float64."""
    scheduler = DDIMSchedulerCustom(**config)
    scheduler.set_timesteps(10)
    exact = DDIMSchedulerCustom(**config)
    exact.set_timesteps(10)
    x, drawn, noise = (draw(1, 3, size, size, seed=seed).to(dtype) for seed in range(3))
    for output in (drawn, drawn.float()):
        got = scheduler.step(output, 400, x, eta=1.0, variance_noise=noise)
        wanted = exact.step(output.double(), 400, x.double(), eta=1.0, variance_noise=noise.double())
        for name in ("prev_sample", "pred_original_sample"):
            assert got[name].dtype == dtype
            assert error(got[name].double(), wanted[name]) < tolerance
    alpha = scheduler.alphas_cumprod[400].double()
    wanted = alpha.sqrt() * x.double() + (1 - alpha).sqrt() * noise.double()
    got = scheduler.add_noise(x, noise, torch.tensor([400]))
    assert got.dtype == dtype and error(got.double(), wanted) < tolerance


def test_thresholding_keeps_float64():
    """Dynamic thresholding of float64 states is exact to float64: each image is clipped at its quantile s and divided
    by it."""
    scheduler = DDIMSchedulerCustom(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.5)
    scheduler.set_timesteps(10)
    x, output = draw(2, 3, 4, 4).double(), draw(2, 3, 4, 4, seed=1).double()
    x[0] /= 10  # stays below 1, where s is 1
    alpha = scheduler.alphas_cumprod[100].double()
    x0 = ((x - (1 - alpha).sqrt() * output * 0.1) / alpha.sqrt()).numpy()
    s = np.clip(np.quantile(np.abs(x0), 0.5, axis=(1, 2, 3), keepdims=True), 1, 1.5)
    got = scheduler.step(output * 0.1, 100, x).pred_original_sample
    assert got.dtype == torch.float64 and error(got, np.clip(x0, -s, s) / s) < 1e-12


def test_memory_layout_and_kind_of_timestep_do_not_matter():
    """Channels-last, strided and large tensors, and timesteps as ints or 0-dim tensors, give the same values."""
    scheduler = DDIMSchedulerCustom()
    scheduler.set_timesteps(10)
    x, output = draw(2, 3, 128, 128), draw(2, 3, 128, 128, seed=1)
    wanted = scheduler.step(output, 400, x).prev_sample
    parts = [scheduler.step(b, 400, a).prev_sample for a, b in zip(x.split(1), output.split(1), strict=True)]
    assert error(torch.cat(parts), wanted) < 1e-6  # below and above the size from which combine takes one pass
    last = dict(memory_format=torch.channels_last)
    for a, b in ((x.to(**last), output.to(**last)), (x, output.to(**last)), (x.mT.contiguous().mT, output)):
        assert error(scheduler.step(b, 400, a).prev_sample, wanted) < 1e-6
    for t in (torch.tensor(400), np.int64(400), torch.tensor([400])):
        assert torch.equal(scheduler.step(output, t, x).prev_sample, wanted)


def test_combine_is_a_weighted_sum():
    """combine(a, x, b, y) is a x + b y to float32 precision, below and above the size where it changes its method."""
    for size in (2**16 - 1, 2**16):
        x, y = draw(size), draw(size, seed=1)
        assert error(combine(-0.123456789, x, 2.3456789, y), -0.123456789 * x.double() + 2.3456789 * y.double()) < 1e-6


def test_gradients_flow_through_a_step():
    """A step can be differentiated, as guidance does: without clipping its slope is sqrt(alpha_{i-1} / alpha_i)."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    scheduler.set_timesteps(10)
    x = draw(1, 1, 2, 2).requires_grad_()
    scheduler.step(draw(1, 1, 2, 2, seed=1), 400, x).prev_sample.sum().backward()
    assert error(x.grad, np.full((1, 1, 2, 2), np.sqrt(ALPHAS[300] / ALPHAS[400]))) < 2e-5


def test_list_of_generators_draws_each_images_noise():
    """With a list of generators each image's noise is its own generator's."""
    scheduler = DDIMSchedulerCustom()
    scheduler.set_timesteps(10)
    x, output = draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    together = scheduler.step(output, 400, x, eta=1.0, generator=seeded).prev_sample
    alone = scheduler.step(output[1:2], 400, x[1:2], eta=1.0, generator=torch.Generator().manual_seed(6)).prev_sample
    assert torch.equal(together[1:2], alone)


# Among diffusers' schedulers


def scheduler_classes():
    """Every scheduler class that diffusers exports and that needs no arguments, by name."""
    names = [name for name in sorted(dir(diffusers)) if name.endswith("Scheduler") and hasattr(diffusers, name)]
    return [name for name in names if not needs_arguments(getattr(diffusers, name))]


def needs_arguments(scheduler_class):
    parameters = inspect.signature(scheduler_class).parameters.values()
    return any(one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty for one in parameters)


def build(name, **keys):
    """A scheduler of diffusers', at its defaults but for those of `keys` that it has."""
    scheduler_class = getattr(diffusers, name)
    known = inspect.signature(scheduler_class).parameters
    return scheduler_class(**{key: value for key, value in keys.items() if key in known})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the other schedulers
@pytest.mark.parametrize("name", scheduler_classes())
@pytest.mark.parametrize("keys", [dict(), dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")])
def test_recasting_keeps_the_process(name, keys, tmp_path, diffusers_log):
    """Each scheduler that needs no arguments becomes a DDIM of the same betas and prediction type, as an object and
    from a saved folder, without a warning, or is refused because its process has none."""
    other = build(name, **keys)
    other.save_pretrained(tmp_path)
    for recast in (
        lambda: DDIMSchedulerCustom.from_scheduler(other),
        lambda: DDIMSchedulerCustom.from_pretrained(tmp_path),
    ):
        if "alphas_cumprod" not in vars(other):
            with pytest.raises(ValueError, match=f"{name} cannot become a DDIM: its process has no betas; allowed"):
                recast()
            continue
        ours = recast()
        assert ours.alphas_cumprod.numpy() == pytest.approx(other.alphas_cumprod.numpy(), rel=1e-5)
        assert ours.config.prediction_type == other.config.get("prediction_type", "epsilon")
        assert "were passed to" not in diffusers_log.text
        again = DDIMSchedulerCustom.from_config(ours.config)
        assert torch.equal(again.alphas_cumprod, ours.alphas_cumprod)


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace"])
def test_betas_that_no_key_names_are_kept(schedule, tmp_path):
    """Sigmoid and Laplace betas come along, into a saved folder too, from which stock DDIM reads the same ones."""
    source = diffusers.DDPMScheduler(beta_schedule=schedule)
    ours = DDIMSchedulerCustom.from_scheduler(source)
    ours.save_pretrained(tmp_path)
    for scheduler in (ours, DDIMSchedulerCustom.from_pretrained(tmp_path), DDIMScheduler.from_pretrained(tmp_path)):
        assert scheduler.alphas_cumprod.numpy() == pytest.approx(source.alphas_cumprod.numpy(), rel=1e-5)


def test_recasting_takes_positional_and_patched_betas():
    """Betas given by position, which diffusers files under the defaults, and betas patched later come along."""
    positional = diffusers.HeunDiscreteScheduler(500, 0.001, 0.03)
    patched = DDIMScheduler()
    patched.alphas_cumprod = patched.alphas_cumprod**0.5
    for source in (positional, patched):
        ours = DDIMSchedulerCustom.from_scheduler(source, skip_type="quad")
        assert ours.alphas_cumprod.numpy() == pytest.approx(source.alphas_cumprod.numpy(), rel=1e-5)
        assert ours.config.skip_type == "quad"
    assert len(DDIMSchedulerCustom.from_scheduler(positional, num_train_timesteps=70)) == 70


@pytest.mark.parametrize(
    "name, keys, reason",
    [
        ("UniPCMultistepScheduler", dict(use_flow_sigmas=True), "use_flow_sigmas makes its process flow matching"),
        ("UniPCMultistepScheduler", dict(prediction_type="flow_prediction"), "prediction_type is 'flow_prediction'"),
        ("EulerDiscreteScheduler", dict(timestep_type="continuous"), "its network takes noise levels"),
    ],
)
def test_recasting_refuses_other_processes(name, keys, reason):
    """A scheduler that has betas but does not use them, or whose network takes or gives something else, is refused."""
    with pytest.raises(ValueError, match=f"{name} cannot become a DDIM: .*{reason}.*; allowed: betas"):
        DDIMSchedulerCustom.from_scheduler(build(name, **keys))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the other schedulers
@pytest.mark.parametrize("name", DDIMSchedulerCustom._compatibles)
def test_configs_go_both_ways(name, diffusers_log):
    """from_config takes another scheduler's config as stock DDIM does, but with that scheduler's betas, and gives back
    each key that both have; one without betas is refused."""
    keys = dict(num_train_timesteps=900, beta_start=0.002, prediction_type="v_prediction", steps_offset=1)
    other = build(name, **keys)
    if "beta_schedule" not in other.config:
        with pytest.raises(ValueError, match="cannot become a DDIM: its process has no betas"):
            DDIMSchedulerCustom.from_config(other.config)
        return
    ours, stock = DDIMSchedulerCustom.from_config(other.config), DDIMScheduler.from_config(other.config)
    parameters = inspect.signature(DDIMScheduler).parameters.keys() - {"beta_end", "beta_schedule"}
    assert {key: ours.config[key] for key in parameters} == {key: stock.config[key] for key in parameters}
    assert torch.allclose(ours.alphas_cumprod, other.alphas_cumprod, rtol=1e-5, atol=0)
    back = type(other).from_config(ours.config)
    for key in keys.keys() & inspect.signature(type(other)).parameters.keys():
        assert ours.config[key] == back.config[key] == keys[key]
    assert "were passed to" not in diffusers_log.text


def test_compatibles_are_stocks():
    """compatibles lists the classes that stock DDIMScheduler lists."""
    assert set(DDIMSchedulerCustom().compatibles) == set(DDIMScheduler().compatibles)
    assert DDIMScheduler in DDIMSchedulerCustom().compatibles


def test_config_has_stocks_keys_and_defaults():
    """Every config key of stock is here with the same default."""
    ours, stock = DDIMSchedulerCustom().config, DDIMScheduler().config
    assert {key: ours[key] for key in stock if key[0] != "_"} == {k: v for k, v in stock.items() if k[0] != "_"}


def test_save_and_load_keep_the_config(tmp_path):
    """save_pretrained and from_pretrained keep all keys, our own and trained_betas included."""
    betas = np.linspace(0.01, 0.2, 10)
    config = dict(num_train_timesteps=10, trained_betas=betas, skip_type="quad", variance="sigma_hat")
    scheduler = DDIMSchedulerCustom(x0_formula="as_printed", **config)
    scheduler.save_pretrained(tmp_path)
    loaded = DDIMSchedulerCustom.from_pretrained(tmp_path)
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    for key in ("skip_type", "variance", "x0_formula", "num_train_timesteps"):
        assert loaded.config[key] == scheduler.config[key]


def test_another_pipeline_of_diffusers_runs_with_it():
    """Stock DDPMPipeline samples with this scheduler in its place."""
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DModel(8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, **blocks)
    pipe = DDPMPipeline(unet, DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_inference_steps=3, output_type="np").images
    assert images.shape == (1, 8, 8, 3) and np.isfinite(images).all()


# Bad input

BAD_CONFIGS = [
    (dict(beta_schedule="sigmoid"), "beta_schedule is 'sigmoid'; allowed: 'linear'"),
    (dict(prediction_type="noise"), "prediction_type is 'noise'"),
    (dict(timestep_spacing="even"), "timestep_spacing is 'even'"),
    (dict(skip_type="cubic"), "skip_type is 'cubic'"),
    (dict(x0_formula="other"), "x0_formula is 'other'"),
    (dict(variance="large"), "variance is 'large'"),
    (dict(num_train_timesteps=0), "num_train_timesteps is 0; allowed"),
    (dict(trained_betas=[]), r"trained_betas has shape \(0,\)"),
    (dict(trained_betas=[[0.1, 0.2]]), r"trained_betas has shape \(1, 2\)"),
    (dict(trained_betas=[0.1, float("nan")]), "betas from nan to nan"),
    (dict(trained_betas=[0.1, float("inf")]), "betas from 0.1 to inf"),
    (dict(beta_start=-0.1), "betas from -0.1"),
    (dict(beta_start=-0.1, beta_schedule="scaled_linear"), "betas from nan"),
]


@pytest.mark.parametrize("config, message", BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_config_outside_its_range_is_refused(config, message):
    """A config value outside its range raises ValueError with what was given and what is allowed."""
    with pytest.raises(ValueError, match=message) as raised:
        DDIMSchedulerCustom(**config)
    assert "allowed" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config, t, given",
    [
        (dict(beta_start=0.0), 0, "from 1 at timestep 0 to 1"),
        (dict(beta_start=1e-9), 0, "from 1 at timestep 0 to 1"),
        (dict(beta_start=0.01, beta_end=0.2), 980, "from 0 at timestep 980 to 0"),
        (dict(trained_betas=[0.1, 1.2]), 1, "from -0.18 at timestep 1 to 0.9"),
        (dict(trained_betas=[0.1, 1.0, 0.1]), 2, "from 0 at timestep 2 to 0"),
        (dict(num_train_timesteps=20_000), 19_600, "from 0 at timestep 19600 to 0"),
    ],
)
def test_a_step_without_a_meaning_is_refused(config, t, given):
    """Betas that divide by zero somewhere leave all other steps as they are; the one that would divide is refused in
    one line, and so is a step in which alpha falls."""
    scheduler = DDIMSchedulerCustom(prediction_type="v_prediction", clip_sample=False, **config)
    scheduler.set_timesteps(min(50, len(scheduler)))
    x = draw(1, 1, 2, 2)
    with pytest.raises(ValueError, match=f"alphas_cumprod goes {given}, where .*; allowed: from 0") as raised:
        scheduler.step(x, t, x)
    assert "\n" not in str(raised.value)
    other = 0 if t else 20
    assert scheduler.step(x, other, x).prev_sample.isfinite().all()


def test_noise_is_not_added_with_betas_above_1():
    """add_noise refuses alphas outside [0, 1], where stock returns NaN."""
    x = draw(1, 1, 2, 2)
    with pytest.raises(ValueError, match="alphas_cumprod goes from 0.9 to -0.18; allowed: 0 to 1"):
        DDIMSchedulerCustom(trained_betas=[0.1, 1.2]).add_noise(x, x, torch.tensor([1]))


BAD_TIMESTEPS = [
    (dict(), "give one of num_inference_steps and timesteps"),
    (dict(num_inference_steps=3, timesteps=[2, 1, 0]), "give one of"),
    (dict(num_inference_steps=0), "num_inference_steps is 0; allowed: whole numbers from 1 to 1000"),
    (dict(num_inference_steps=-5), "num_inference_steps is -5"),
    (dict(num_inference_steps=1001), "num_inference_steps is 1001"),
    (dict(num_inference_steps=2.5), "num_inference_steps is 2.5"),
    (dict(num_inference_steps=True), "num_inference_steps is True"),
    (dict(num_inference_steps="50"), "num_inference_steps is '50'"),
    (dict(timesteps=[]), r"timesteps is \[\]; allowed: strictly decreasing ints in \[0, 1000\)"),
    (dict(timesteps=[1, 2]), r"timesteps is \[1, 2\]"),
    (dict(timesteps=[5, 5]), "strictly decreasing"),
    (dict(timesteps=[5, 2.5]), "strictly decreasing"),
    (dict(timesteps=[1000, 2]), "timesteps runs from 1000 to 2"),
    (dict(timesteps=[5, -1]), "timesteps runs from 5 to -1"),
]


@pytest.mark.parametrize("arguments, message", BAD_TIMESTEPS, ids=str)
def test_timesteps_outside_their_range_are_refused(arguments, message):
    """set_timesteps raises ValueError with what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        DDIMSchedulerCustom().set_timesteps(**arguments)


@pytest.mark.parametrize("offset, spoken", [(-1, "-1"), (1, "1000")])
def test_offset_beyond_the_schedule_is_refused(offset, spoken):
    """A steps_offset that leads out of [0, T) is refused, where indexing would wrap around or fail later."""
    with pytest.raises(ValueError, match=f"steps_offset {offset} .*{spoken}.*allowed: 0 to 999"):
        DDIMSchedulerCustom(steps_offset=offset).set_timesteps(1000)


def test_step_refuses_what_it_cannot_do():
    """step and invert_step raise ValueError with one clear line for each argument that has no transition."""
    x = draw(1, 1, 2, 2)
    scheduler = DDIMSchedulerCustom()
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.step(x, 10, x)
    scheduler.set_timesteps(10)
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=f"timestep is {t}; allowed: 0 to 999"):
            scheduler.step(x, t, x)
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"eta is {eta}; allowed: 0"):
            scheduler.step(x, 500, x, eta=eta)
    with pytest.raises(ValueError, match="generator and variance_noise are both given"):
        scheduler.step(x, 500, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match="prediction_type is 'noise'; allowed"):
        scheduler.invert_step(x, 500, x, prediction_type="noise")
    zero = DDIMSchedulerCustom(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    zero.set_timesteps(10)
    with pytest.raises(ValueError, match="zero terminal SNR.*allowed: prediction_type 'v_prediction'"):
        zero.step(x, 999, x)
