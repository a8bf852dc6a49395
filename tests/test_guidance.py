"""Classes and guidance: the pipeline beside loops written out by hand, on a tiny network of the real class."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMPipeline, EulerDiscreteScheduler
from diffusers.utils import logging
from hub_models import WRITER, one_line

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet, guidance, slerp

NAMES = {0: "cat", 1: "dog", 2: "3"}
NULL = 3
STEPS = 6


def class_unet(**overrides):
    """Of three classes and the null class, whose embeddings are so large that images differ."""
    unet = tiny_unet(num_class_embeds=4, **overrides).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    return unet


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return quiet(DDIMCustomPipeline(class_unet(), DDIMSchedulerCustom(), NAMES))


@pytest.fixture(scope="module")
def gentle():
    """A network whose steps have one inverse, as those of a trained one."""
    unet = class_unet()
    with torch.no_grad():
        unet.conv_out.weight *= 0.2
    return quiet(DDIMCustomPipeline(unet, DDIMSchedulerCustom(), NAMES))


# Classes


def test_build_unet_makes_networks_with_classes():
    """build_unet takes num_class_embeds = K + 1, and the network tells the classes apart."""
    unet = build_unet("digits", num_class_embeds=11).eval()
    with torch.no_grad():
        outputs = unet(torch.ones(11, 1, 8, 8), 500, class_labels=torch.arange(11)).sample
    assert outputs.flatten(1).unique(dim=0).shape[0] == 11


@pytest.mark.parametrize(
    "labels, wanted",
    [
        ("cat", [0, 0, 0]),
        (2, [2, 2, 2]),
        (None, [3, 3, 3]),
        (["dog", 0, None], [1, 0, 3]),
        (("1", np.int64(2), "cat"), [1, 2, 0]),
        (torch.tensor([0, 3, 1]), [0, 3, 1]),
        (np.array(["dog", "cat", "3"]), [1, 0, 2]),
        (range(3), [0, 1, 2]),
    ],
)
def test_labels_are_names_numbers_or_none(pipe, labels, wanted):
    """Names, numbers and None become ids, one for all or one for each; a name goes before a number in a string."""
    ids = pipe.class_ids(labels, 3)
    assert ids.dtype == torch.int64 and ids.tolist() == wanted


@pytest.mark.parametrize("label", ["bird", 4, -1, 1.0, True, "-1", b"cat"])
def test_unknown_labels_raise_with_the_allowed_ones(pipe, label):
    """A label that is none raises ValueError in one line that names the classes."""
    with pytest.raises(ValueError) as caught:
        pipe.class_ids([0, label], 2)
    one_line(caught, repr(label), "allowed: cat (0), dog (1), 3 (2), or 3 or None, the null class")


def test_other_numbers_of_labels_raise(pipe):
    """As many labels as images, or one; two classes of one name need their numbers."""
    with pytest.raises(
        ValueError, match=r"class_labels has 2 entries; allowed: one for all images, or one each \(3\)"
    ):
        pipe.class_ids([0, 1], 3)
    crane = DDIMCustomPipeline(pipe.unet, pipe.scheduler, {0: "crane", 1: "crane", 2: "maillot"})
    with pytest.raises(ValueError, match="'crane', the name of classes \\[0, 1\\]; allowed: their numbers"):
        crane.class_ids("crane", 1)


@pytest.mark.parametrize("labels", [{"cat", "dog"}, frozenset([0, 1])])
def test_a_set_of_labels_is_refused(pipe, labels):
    """Labels without an order would fall to any of the images: a set is one line, in sampling too."""
    for call in (
        lambda: pipe.class_ids(labels, 2),
        lambda: pipe(class_labels=labels),
        lambda: pipe.labels_in_turn(labels),
    ):
        with pytest.raises(ValueError, match="class_labels is .*, a set, which has no order; allowed: a list"):
            call()


def test_many_images_take_labels_in_turn(pipe):
    """labels_in_turn gives image k the k-th label modulo their count; "all" is every class but the null class."""
    assert pipe.labels_in_turn("all") == [0, 1, 2]
    assert pipe.labels_in_turn("all", range(2, 6)) == [2, 0, 1, 2]
    assert pipe.labels_in_turn(["dog", None], [0, 7]) == [1, NULL] and pipe.labels_in_turn("dog", range(2)) == [1, 1]
    with pytest.raises(ValueError, match="class_labels has no entries; allowed: one or more"):
        pipe.labels_in_turn([])
    assert DDIMCustomPipeline(tiny_unet(), pipe.scheduler).labels_in_turn(None, range(2)) is None


def test_names_are_checked():
    """Names are for all classes but the null class of a network that has some; by default they are the numbers."""
    unet = class_unet()
    assert DDIMCustomPipeline(unet, DDIMSchedulerCustom()).id2label == {0: "0", 1: "1", 2: "2"}
    for names in ({0: "cat"}, {**NAMES, 3: "null"}, {"a": "cat", "b": "dog", "c": "bird"}):
        with pytest.raises(ValueError, match="allowed here: 0 to 2, without the null class"):
            DDIMCustomPipeline(unet, DDIMSchedulerCustom(), names)
    with pytest.raises(ValueError, match="id2label is a list; allowed: a dict of names by class, or None"):
        DDIMCustomPipeline(unet, DDIMSchedulerCustom(), ["cat", "dog", "bird"])
    plain = tiny_unet()
    assert DDIMCustomPipeline(plain, DDIMSchedulerCustom()).id2label == {}
    with pytest.raises(ValueError, match="id2label names 3 classes, but the network has none"):
        DDIMCustomPipeline(plain, DDIMSchedulerCustom(), NAMES)
    with pytest.raises(ValueError, match="class_labels are given, but the network has no classes"):
        DDIMCustomPipeline(plain, DDIMSchedulerCustom()).class_ids("cat", 1)


def test_names_are_saved_and_loaded(pipe, tmp_path, caplog):
    """A folder's model_index.json holds the names; from_pretrained gives them back with ints as keys, or has none.

    They are those of the network that is saved, whatever the pipeline began with.
    """
    logging.enable_propagation()  # diffusers' warnings
    pipe.save_pretrained(tmp_path / "named")
    assert json.loads((tmp_path / "named" / "model_index.json").read_text())["id2label"]["1"] == "dog"
    back = DDIMCustomPipeline.from_pretrained(tmp_path / "named")
    logging.disable_propagation()
    assert back.id2label == NAMES and back.class_ids("dog", 1).tolist() == [1] and not caplog.records
    assert DDIMCustomPipeline.from_pipe(back).id2label == NAMES
    DDIMCustomPipeline(tiny_unet(), pipe.scheduler).save_pretrained(tmp_path / "plain")
    assert "id2label" not in (tmp_path / "plain" / "model_index.json").read_text()
    assert DDIMCustomPipeline.from_pretrained(tmp_path / "plain").id2label == {}
    for unet, names in ((tiny_unet(num_class_embeds=5), {**NAMES, 3: "3"}), (tiny_unet(), {})):
        back.unet = unet
        back.save_pretrained(tmp_path / "other")
        assert DDIMCustomPipeline.from_pretrained(tmp_path / "other").id2label == names


def test_names_go_to_the_hub_and_back(pipe, hub):
    """A push and a pull keep the names."""
    pipe.push_to_hub("org/classes", token=WRITER)
    assert DDIMCustomPipeline.from_pretrained("org/classes").id2label == NAMES


# The formula


def by_hand(unet, x, predict, steps=STEPS, **config):
    """Plain DDIM from x_T with whatever predict(unet, x, t) returns, clipped as the scheduler clips."""
    scheduler = DDIMSchedulerCustom(**config)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(predict(unet, x, t), t, x).prev_sample
    return x


def of_class(*ids):
    return lambda unet, x, t: unet(x, t, class_labels=torch.tensor(ids)).sample


def guided_by_hand(ids, g, guide=None, interval=(0, 1000)):
    """eps_away + g (eps_class - eps_away) in two passes."""

    def predict(unet, x, t):
        towards = of_class(*ids)(unet, x, t)
        if not interval[0] <= t <= interval[1]:
            return towards
        away = of_class(*[NULL] * len(ids))(unet, x, t) if guide is None else guide(x, t)
        return away + g * (towards - away)

    return predict


def noise(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def sample(pipe, x, **classes):
    return pipe(len(x), latents=x, num_inference_steps=STEPS, output_type="latent", **classes).images


def apart(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("interval", [None, (200, 700)])
def test_guidance_is_the_formula_for_each_prediction_type(pipe, kind, interval):
    """Images are those of a loop that computes eps_null + g (eps_class - eps_null) from two passes, then clips."""
    config = dict(prediction_type=kind, clip_sample_range=0.7)
    typed = quiet(DDIMCustomPipeline(pipe.unet, DDIMSchedulerCustom(**config), NAMES))
    got = sample(typed, noise(2), class_labels=["cat", 2], guidance_scale=2.5, guidance_interval=interval)
    wanted = by_hand(pipe.unet, noise(2), guided_by_hand((0, 2), 2.5, interval=interval or (0, 1000)), **config)
    assert apart(got, wanted) < 1e-5
    assert apart(got, sample(typed, noise(2), class_labels=["cat", 2])) > 1e-2  # guidance does something here


def test_guidance_commutes_with_the_prediction_type(pipe):
    """Guided v and guided x_0 mean the noise that guided eps is: the three are affine in one another."""
    x, g = noise(2).double(), 3.0
    eps_class, eps_null = noise(2, 1).double(), noise(2, 2).double()
    wanted = eps_null + g * (eps_class - eps_null)
    alpha = DDIMSchedulerCustom().alphas_cumprod[400].double()
    for kind in ("sample", "v_prediction"):
        outputs = []
        for eps in (eps_class, eps_null):
            x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()  # eq. 9
            outputs.append(x0 if kind == "sample" else alpha.sqrt() * eps - (1 - alpha).sqrt() * x0)
        scheduler = DDIMSchedulerCustom(prediction_type=kind)
        made = guidance.make_condition([0, 1], 2, NAMES, guidance_scale=g)
        halves = torch.cat(outputs)
        guided = guidance.guided(lambda *_, halves=halves: halves, x, torch.tensor(400), made)
        assert apart(scheduler.predict_epsilon(guided, 400, x), wanted) < 1e-5


def test_both_halves_are_one_batch_in_dits_order(pipe):
    """The network is called once a step, with the classes first and the null class after them."""
    calls = []
    handle = pipe.unet.class_embedding.register_forward_pre_hook(lambda _, ids: calls.append(ids[0].tolist()))
    sample(pipe, noise(2), class_labels=[0, 2], guidance_scale=2)
    assert calls == [[0, 2, NULL, NULL]] * STEPS
    calls.clear()
    sample(pipe, noise(2), class_labels=[0, 2], guidance_scale=2, guidance_interval=(300, 600))
    assert [len(ids) for ids in calls] == [2, 2, 4, 4, 2, 2]  # t is 830, 664, 498, 332, 166, 0
    handle.remove()


def test_scale_1_is_the_conditional_model_bit_for_bit(pipe):
    """At g = 1 the class's own prediction is all, in one pass of as many images."""
    wanted = by_hand(pipe.unet, noise(3), of_class(0, 1, 2))
    assert torch.equal(sample(pipe, noise(3), class_labels=[0, 1, 2], guidance_scale=1.0), wanted)
    assert torch.equal(sample(pipe, noise(3), class_labels=[0, 1, 2]), wanted)


def test_scale_0_and_no_labels_are_the_null_class(pipe):
    """g = 0 leaves the null class's prediction; no labels, and None among labels, mean it."""
    wanted = by_hand(pipe.unet, noise(2), of_class(NULL, NULL))
    assert apart(sample(pipe, noise(2), class_labels=[0, 1], guidance_scale=0), wanted) < 1e-5
    assert torch.equal(sample(pipe, noise(2)), wanted)
    mixed = sample(pipe, noise(2), class_labels=[None, 1])
    assert apart(mixed, by_hand(pipe.unet, noise(2), of_class(NULL, 1))) == 0
    assert apart(mixed[:1], wanted[:1]) < 1e-5 < apart(mixed[1:], wanted[1:])


def test_outside_of_the_interval_is_the_conditional_model(pipe):
    """An interval that holds a single timestep includes its ends; one between two timesteps, which guides nothing, is
    refused."""
    plain = sample(pipe, noise(2), class_labels=1)
    run = dict(class_labels=1, guidance_scale=4)
    with pytest.raises(ValueError, match=r"in which none of the timesteps 830, 664, 498, 332, 166, 0 lies"):
        sample(pipe, noise(2), guidance_interval=(333, 497), **run)
    one = sample(pipe, noise(2), guidance_interval=(332, 332), **run)
    wanted = by_hand(pipe.unet, noise(2), guided_by_hand((1, 1), 4, interval=(332, 332)))
    assert apart(one, wanted) < 1e-5 < apart(one, plain)


def test_image_depends_on_its_seed_and_class_alone(pipe):
    """An image is its seed's and its label's, whatever the batch, its place in it and the chunks."""
    run = dict(num_inference_steps=STEPS, output_type="latent", guidance_scale=2, eta=0.5)
    together = pipe(4, seeds=[5, 6, 7, 8], class_labels=["dog", 0, None, 2], **run).images
    assert apart(pipe(1, seeds=[7], class_labels=None, guide=pipe, **run).images, together[2:3]) < 1e-5
    assert apart(pipe(1, seeds=[8], class_labels="3", **run).images, together[3:]) < 1e-5
    chunks = pipe(seeds=[5, 6, 7, 8], class_labels=[1, 0, 3, 2], max_batch_size=3, **run).images
    assert apart(chunks, together) < 1e-5


# Autoguidance


def test_a_guide_takes_the_null_classs_place(pipe):
    """Autoguidance is eps_guide + g (eps - eps_guide) with the guide's prediction for the same class."""
    guide = quiet(DDIMCustomPipeline(class_unet(), DDIMSchedulerCustom(), NAMES))
    torch.nn.init.normal_(guide.unet.conv_out.weight)
    wanted = by_hand(pipe.unet, noise(2), guided_by_hand((0, 1), 2, lambda x, t: of_class(0, 1)(guide.unet, x, t)))
    for given in (guide, guide.unet):
        got = sample(pipe, noise(2), class_labels=[0, 1], guidance_scale=2, guide=given)
        assert apart(got, wanted) < 1e-5
    plain = tiny_unet().eval()  # without classes, of an unconditional network and one with classes
    wanted = by_hand(pipe.unet, noise(2), guided_by_hand((0, 1), 2, lambda x, t: plain(x, t).sample))
    assert apart(sample(pipe, noise(2), class_labels=[0, 1], guidance_scale=2, guide=plain), wanted) < 1e-5
    unconditional = quiet(DDIMCustomPipeline(tiny_unet(dropout=0.5).eval(), DDIMSchedulerCustom()))
    own = sample(unconditional, noise(2), guidance_scale=3, guide=plain)
    assert apart(own, sample(unconditional, noise(2))) < 1e-4  # of the same weights


def test_guided_by_itself_is_the_conditional_model(pipe):
    """A network as its own guide changes nothing."""
    plain = sample(pipe, noise(2), class_labels=[0, 1])
    assert apart(sample(pipe, noise(2), class_labels=[0, 1], guidance_scale=3, guide=pipe), plain) < 1e-4


def test_assigned_schedulers_are_guided(pipe):
    """With another scheduler, which scales what the network sees, guidance and its interval are the formula's too."""
    euler = quiet(DDIMCustomPipeline(pipe.unet, pipe.scheduler, NAMES))
    euler.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    got = sample(euler, noise(2), class_labels=["cat", 1], guidance_scale=2, guidance_interval=(200, 700))
    scheduler, predict = EulerDiscreteScheduler(), guided_by_hand((0, 1), 2, interval=(200, 700))
    scheduler.set_timesteps(STEPS)
    x = noise(2) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(predict(pipe.unet, scheduler.scale_model_input(x, t), t), t, x).prev_sample
    assert apart(got, x) < 1e-4


# What has no meaning


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(guidance_scale=2), "guidance_scale is 2 without class_labels; allowed: 1, or with class_labels or a"),
        (dict(class_labels=0, guidance_scale=-1), "guidance_scale is -1; allowed: numbers from 0"),
        (dict(class_labels=0, guidance_scale=float("nan")), "guidance_scale is nan; allowed: numbers from 0"),
        (dict(class_labels=0, guidance_scale="2"), "guidance_scale is '2'; allowed: numbers from 0"),
        (dict(class_labels=0, guidance_interval=(1, 2)), "guidance_interval is given, but guidance_scale is 1"),
        (dict(class_labels=0, guidance_scale=2, guidance_interval=(9, 8)), r"is \(9, 8\); allowed: two timesteps"),
        (dict(class_labels=0, guidance_scale=2, guidance_interval=5), "is 5; allowed: two timesteps"),
        (dict(class_labels=0, guidance_scale=2, guidance_interval="12"), "is '12'; allowed: two timesteps"),
        (dict(class_labels=0, guidance_scale=True), "guidance_scale is True; allowed: numbers from 0"),
        (dict(class_labels=0, guidance_scale=2, guidance_interval=(1, 2, 3)), "allowed: two timesteps"),
        (dict(class_labels=0, guide=tiny_unet()), "guide is given, but guidance_scale is 1"),
        (dict(guidance_scale=2, guide="outputs/old"), "guide is of str; allowed: DDIMCustomPipeline or UNet2DModel"),
        (dict(guidance_scale=2, guide=tiny_unet(num_class_embeds=3)), "the guide has 2 classes; allowed: 3, as the n"),
        (dict(class_labels=["cat", "dog", 0], batch_size=2), "class_labels has 3 entries; allowed: one for all image"),
        (dict(class_labels=torch.full((1, 4), 0.5)), "shares that are negative or do not sum to 1"),
        (dict(class_labels=torch.ones(1, 3)), r"shares of shape \(1, 3\); allowed: \(1, 4\)"),
    ],
)
def test_wrong_guidance_raises_in_every_method(pipe, wrong, message):
    """What has no meaning raises ValueError in one line, before any work, in every method."""
    batch_size = wrong.get("batch_size", 1)
    wrong = {key: value for key, value in wrong.items() if key != "batch_size"}
    image = torch.zeros(batch_size, 1, 8, 8)
    calls = {
        "call": lambda: pipe(batch_size, **wrong),
        "check": lambda: pipe.check_sampling(batch_size, **wrong),
        "invert": lambda: pipe.invert(image, **wrong),
        "reconstruct": lambda: pipe.reconstruct(image, **wrong),
        "predict": lambda: pipe.predict(image, torch.tensor(5), **wrong),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        one_line(caught)


def test_guides_of_other_processes_raise(pipe):
    """A guide of another size, other timesteps, betas, prediction type or names raises ValueError."""
    small = DDIMCustomPipeline(build_unet("digits", sample_size=16), DDIMSchedulerCustom())
    cases = {"1 channels of size 16; allowed: those of the network, 1 channels of size 8": small}
    for message, config in {
        "the guide has 500 timesteps; allowed: 1000": dict(num_train_timesteps=500),
        "the guide's betas are others than the network's": dict(beta_end=0.03),
        "the guide predicts 'sample'; allowed: what the network predicts, 'epsilon'": dict(prediction_type="sample"),
    }.items():
        cases[message] = DDIMCustomPipeline(pipe.unet, DDIMSchedulerCustom(**config), NAMES)
    cases["the guide's classes have other names"] = DDIMCustomPipeline(pipe.unet, pipe.scheduler)
    for message, guide in cases.items():
        with pytest.raises(ValueError, match=message):
            pipe(class_labels=0, guidance_scale=2, guide=guide)


@pytest.mark.parametrize("size", [(8, 8), [8, 8]])
def test_a_size_of_two_numbers_is_that_of_one(size):
    """A guide whose sample_size is a pair, or a list as JSON has it, guides a network of that height and width."""
    plain = quiet(DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()))
    guide = tiny_unet()
    guide.register_to_config(sample_size=size)
    run = dict(num_inference_steps=2, guidance_scale=2.0, seeds=[0], output_type="latent")
    assert torch.equal(plain(guide=guide, **run).images, plain(guide=tiny_unet(), **run).images)
    guide.register_to_config(sample_size=(8, 16))
    with pytest.raises(ValueError, match=r"the guide takes states of 1 channels of size \(8, 16\); allowed"):
        plain(guide=guide, **run)


def test_networks_without_classes_take_no_labels():
    """Labels for a network without classes raise, and so does guidance without a guide."""
    plain = quiet(DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()))
    for call in (plain, lambda **classes: plain.interpolate(0, 1, **classes)):
        with pytest.raises(ValueError, match="class_labels are given, but the network has no classes; allowed: None"):
            call(class_labels=[0, 1])
        with pytest.raises(ValueError, match="allowed: 1, or with a guide, as the network has no classes"):
            call(guidance_scale=2)


# Encoding and interpolation


def test_guided_encoding_has_an_exact_inverse(gentle):
    """Exact inversion with a class and guidance, an interval too, gives the images back; another class does not."""
    images = noise(3).sigmoid()
    run = dict(num_inference_steps=4, guidance_scale=1.5, guidance_interval=(0, 600), exact=True)
    output = gentle.reconstruct(images, class_labels=["cat", "dog", None], max_batch_size=2, **run)
    assert output.mse.max() < 1e-8 and output.residual < 1e-4
    decoded = gentle(3, latents=output.latents, num_inference_steps=4, clip_sample=False, output_type="pt")
    assert apart(decoded.images, images) > 1e-2


def test_interpolation_between_classes(pipe):
    """Between two classes their predictions are mixed linearly, before guidance; each end is its own class."""
    run = dict(num_inference_steps=STEPS, output_type="latent")
    ends = noise(2)
    strip = pipe.interpolate(*ends, num_images=5, class_labels=["cat", "dog"], guidance_scale=2, **run).images
    alone = sample(pipe, ends, class_labels=["cat", "dog"], guidance_scale=2)
    assert apart(strip[[0, -1]], alone) < 1e-4

    def quarter(unet, x, t):
        cat, dog, null = (of_class(k)(unet, x, t) for k in (0, 1, NULL))
        return null + 2 * (0.75 * cat + 0.25 * dog - null)

    assert apart(strip[1:2], by_hand(pipe.unet, slerp(*ends, 0.25)[None], quarter)) < 1e-4
    same = pipe.interpolate(*ends, num_images=3, class_labels="dog", **run).images
    wanted = sample(pipe, torch.stack([slerp(*ends, w) for w in (0, 0.5, 1)]), class_labels="dog")
    assert apart(same, wanted) < 1e-4


def test_grid_between_four_classes(pipe):
    """A grid's shares are bilinear: its middle is a quarter of each corner's prediction, as shares given by hand."""
    corners = noise(4)
    run = dict(num_inference_steps=STEPS, output_type="latent")
    grid = pipe.interpolate(*corners, num_images=3, class_labels=[0, 1, 2, None], **run).images
    assert apart(grid[[0, 2, 6, 8]], sample(pipe, corners, class_labels=[0, 1, 2, 3])) < 1e-4
    middle = slerp(slerp(*corners[:2], 0.5), slerp(*corners[2:], 0.5), 0.5)[None]
    assert apart(grid[4:5], sample(pipe, middle, class_labels=torch.full((1, 4), 0.25))) < 1e-4
    right = slerp(corners[1], corners[3], 0.5)[None]
    assert apart(grid[5:6], sample(pipe, right, class_labels=torch.tensor([[0, 0.5, 0, 0.5]]))) < 1e-4


def test_images_of_two_classes_meet(gentle):
    """Images that are encoded with their classes end the strip between them."""
    images = [np.full((8, 8, 1), value) for value in (0.2, 0.8)]
    strip = gentle.interpolate(*images, num_images=3, num_inference_steps=STEPS, class_labels=[0, 1], output_type="np")
    assert np.abs(strip.images[[0, -1]] - np.stack(images)).max() < 1e-3


# predict, fast sampling, schedulers


def test_predict_takes_classes_and_guidance(pipe):
    """predict returns the guided prediction, for one timestep and for one an image."""
    x, t = noise(2), torch.tensor([100, 900])
    towards = pipe.unet(x, t, class_labels=torch.tensor([0, 1])).sample
    away = pipe.unet(x, t, class_labels=torch.tensor([NULL, NULL])).sample
    wanted = away + 2 * (towards - away)
    got = pipe.predict(x, t, class_labels=["cat", "dog"], guidance_scale=2)
    assert apart(got, wanted) < 1e-5
    assert torch.equal(pipe.predict(x, t, class_labels=["cat", "dog"]), towards)
    with pytest.raises(ValueError, match="guidance_interval is given with 2 timesteps; allowed: one for all images"):
        pipe.predict(x, t, class_labels=0, guidance_scale=2, guidance_interval=(0, 500))


def test_stock_loads_the_folder_and_has_a_way_to_labels(pipe, tmp_path):
    """Stock's DDIMPipeline loads what is saved, can pass no labels, and given them beforehand makes our images."""
    pipe.save_pretrained(tmp_path)
    stock = quiet(DDIMPipeline.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="class_labels should be provided when doing class conditioning"):
        stock(num_inference_steps=1)
    stock.unet.forward = partial(stock.unet.forward, class_labels=torch.tensor([2, 0]))
    run = dict(num_inference_steps=STEPS, output_type="np")
    theirs = stock(2, generator=torch.Generator().manual_seed(0), **run).images
    ours = pipe(2, generator=torch.Generator().manual_seed(0), class_labels=[2, "cat"], **run).images
    assert np.abs(theirs - ours).max() < 1e-4
