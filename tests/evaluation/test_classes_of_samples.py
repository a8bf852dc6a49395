"""Classes of samples: how often each is drawn, whether it shows, and the distance within it."""

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from PIL import Image
from sklearn.datasets import load_digits

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.data import load_images
from ddim_hf.evaluation import Question, compare, evaluate, unfinished
from ddim_hf.evaluation.classes import Classes, load_classifier, reference_classes
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.frechet import Statistics, frechet_distance
from ddim_hf.generation import generate, load_pipeline
from ddim_hf.images import states_to_pixels

DIGITS = tuple("0123456789")
CPU = torch.device("cpu")


class Bright(torch.nn.Module):
    """Ten classes, by the mean of the first channel."""

    def forward(self, images):
        return -(images[:, 0].flatten(1).mean(1, keepdim=True) * 10 - 0.5 - torch.arange(10)).abs()


@pytest.fixture(scope="module")
def model(files):
    """A network with the digits' classes, whose embedding is far from zero."""
    unet = tiny_unet(num_class_embeds=11)
    torch.nn.init.normal_(unet.class_embedding.weight, std=3)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), dict(enumerate(DIGITS)))
    pipe.save_pretrained(files / "classes")
    torch.jit.script(Bright()).save(files / "bright.pt")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(files, tmp_path, **settings):
    """What is measured of that model, in few steps."""
    if settings.get("distance", True):
        settings = dict(num_inference_steps=[2], num_images=60, feature_extractor=files / "features.pt") | settings
    reference = settings.pop("reference", "digits")
    return evaluate(str(files / "classes"), reference, tmp_path / "r.json", cache_dir=tmp_path, **settings)


# How often each class is drawn


def test_classes_are_drawn_at_the_references_frequencies():
    """Any stretch of seeds has each class within 2 of its share, far seeds too; a class without images is never drawn,
    and the class of a seed depends on nothing else."""
    frequencies = np.array([0.5, 0.0, 0.3, 0.2])
    classes = Classes(("a", "b", "c", "d"), frequencies, {})
    for first in (0, 777, 2**62):
        drawn = classes.of(range(first, first + 1000))
        assert np.abs(np.bincount(drawn, minlength=4) - 1000 * frequencies).max() <= 2
        assert classes.of([first + 500]) == drawn[500:501]
    assert set(Classes(("a",), np.ones(1), {}).of(range(50))) == {0}


def test_the_references_labels_are_taken_by_name():
    """Frequencies are those of the reference's labels in the model's order, all alike without labels."""
    images = load_images("digits", split="train", resolution=8, labelled=True)
    counts = np.bincount(images.labels)
    classes = reference_classes(DIGITS[::-1], images)
    assert classes.frequencies == pytest.approx(counts[::-1] / 1617)
    assert reference_classes(DIGITS, None).frequencies == pytest.approx(0.1)
    with pytest.raises(ValueError, match="labels 5, 6, 7, 8, 9 are not among the model's classes; allowed: 0, 1"):
        reference_classes(DIGITS[:5], images)


# What classifies


def test_the_digits_classifier_knows_digits_that_it_never_saw():
    """Trained on the held-out tenth it knows over 95% of the other digits, in whichever order the classes are."""
    images = load_images("digits", split="train", resolution=8, channels=3)
    known = np.delete(load_digits().target, slice(None, None, 10))
    assert (load_classifier("digits", DIGITS, CPU)(images[:]) == known).mean() > 0.95
    reversed_order = load_classifier("digits", DIGITS[::-1], CPU)
    assert (9 - reversed_order(images[:300]) == known[:300]).mean() > 0.95
    with pytest.raises(ValueError, match="label_accuracy is digits, and the classes are a, b; allowed: the digits"):
        load_classifier("digits", ["a", "b"], CPU)
    with pytest.raises(ValueError, match=r"images are of \(16, 16\); allowed: \(8, 8\)"):
        reversed_order(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))


def test_a_torchscript_classifier_sees_pixels_from_0_to_1(model, files):
    """A file is given images in [0, 1] and answers with the largest score; one of other classes is refused."""
    classifier = load_classifier(files / "bright.pt", DIGITS, CPU)
    images = torch.tensor([0, 100, 255, 230], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert classifier(images).tolist() == [0, 3, 9, 9]
    with pytest.raises(ValueError, match=r"bright.pt returns \(4, 10\) for 4 images; allowed: \(4, 2\)"):
        load_classifier(files / "bright.pt", ["a", "b"], CPU)(images)
    with pytest.raises(FileNotFoundError, match="no such file; allowed: a TorchScript file, or digits"):
        load_classifier(files / "absent.pt", DIGITS, CPU)


# The figures


def test_the_figures_of_a_model_with_classes(model, files, tmp_path, capsys):
    """Distance, distance within classes and label accuracy at each guidance are those of samples drawn of the same
    classes by hand; table and plot are there, and nothing is measured twice."""
    settings = dict(guidance_scale=[1.0, 2.0], by_class=True, label_accuracy=files / "bright.pt", split="train")
    rows = asked(files, tmp_path, **settings)
    found = {(row["metric"], row["guidance_scale"]): row for row in rows}
    images = load_images("digits", split="train", resolution=8, channels=1, labelled=True)
    extract = load_feature_extractor(files / "features.pt")
    real, labels = extract(images[:]), np.array(reference_classes(DIGITS, images).of(range(60)))
    assert len(rows) == 6 and np.bincount(labels).min() >= 5
    for scale in (1.0, 2.0):
        sampling = dict(num_inference_steps=2, guidance_scale=scale, class_labels=labels.tolist())
        pixels = states_to_pixels(model(60, seeds=range(60), output_type="latent", **sampling).images)
        features, shown = extract(pixels), load_classifier(files / "bright.pt", DIGITS, CPU)(pixels)
        within = [
            frechet_distance(Statistics().update(features[labels == c]), Statistics().update(real[images.labels == c]))
            for c in range(10)
        ]
        whole = frechet_distance(Statistics().update(features), Statistics().update(real))
        assert found["frechet_distance", scale]["value"] == pytest.approx(whole, rel=1e-4)
        assert found["frechet_distance_within_classes", scale]["value"] == pytest.approx(np.mean(within), rel=1e-3)
        row = found["label_accuracy", scale]
        assert row["value"] == pytest.approx((shown == labels).mean()) and 0 < row["value"] < 1
        by_class = {name: (count, value) for name, count, value in row["by_class"]}
        assert by_class["3"] == (np.sum(labels == 3), pytest.approx((shown == labels)[labels == 3].mean()))
        assert row["classifier"] == "bright.pt" and "feature_extractor" not in row and row["classes"] == "as labelled"
    text = (tmp_path / "r.md").read_text()
    assert "**Label accuracy by bright.pt (" in text
    assert "| 0.0, guidance 1 |" in text and "| 0.0, guidance 2 |" in text and "\n| 7 | " in text
    assert (tmp_path / "r-guidance.png").stat().st_size > 10_000
    capsys.readouterr()
    assert asked(files, tmp_path, **settings) == rows and capsys.readouterr().out == ""


def test_a_killed_cell_keeps_what_its_images_were_taken_for(model, files, tmp_path, monkeypatch):
    """A measurement that ends amid a cell goes on to the same accuracy and distances, and makes no image twice."""
    settings = dict(label_accuracy=files / "bright.pt", by_class=True, max_batch_size=20)
    whole = asked(files, tmp_path / "whole", **settings)
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0)
    call, made = DDIMCustomPipeline.__call__, []

    def count(pipe, *words, seeds, **named):
        made.append(seeds[0])
        if made == [0, 20, 40]:
            raise KeyboardInterrupt
        return call(pipe, *words, seeds=seeds, **named)

    monkeypatch.setattr(DDIMCustomPipeline, "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        asked(files, tmp_path / "killed", **settings)
    rows = asked(files, tmp_path / "killed", **settings)
    assert made == [0, 20, 40, 40]
    assert [row["value"] for row in rows] == pytest.approx([row["value"] for row in whole], rel=1e-9)


def test_the_denoising_loss_is_taken_at_the_labels(model, files, tmp_path, capsys):
    """Loss and reconstruction use the reference's labels, and the null class where it has none, which is said."""
    settings = dict(distance=False, loss=True, reconstruction=[2], data_splits=["test"], data_images=40)
    rows = asked(files, tmp_path, **settings)
    folder = tmp_path / "flat" / "test"
    folder.mkdir(parents=True)
    for number, image in enumerate(load_images("digits", split="test", resolution=8, channels=1)[:40]):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:03}.png")
    capsys.readouterr()
    both = asked(files, tmp_path, **settings, reference=str(tmp_path / "flat"))
    assert "no labels are used, as " in capsys.readouterr().out
    assert [row["classes"] for row in both] == ["as labelled"] * 2 + ["null class"] * 2
    images = load_images("digits", split="test", resolution=8, channels=1, labelled=True)
    for row, labels in ((rows[1], images.labels[:40].tolist()), (both[3], None)):
        mse = model.reconstruct(images[:40], 2, class_labels=labels, output_type="latent").mse.mean().item()
        assert row["value"] == pytest.approx(mse, rel=1e-5)
    assert both[0]["value"] != both[2]["value"]


def test_a_model_is_measured_with_a_guide(files, tmp_path):
    """Samples that a worse model guides have the distance of the folder that is sampled so, and a table of its own;
    at guidance 1 the guide has no part. It guides other schedulers too."""
    worse = DDIMCustomPipeline(tiny_unet(block_out_channels=(8, 8)), DDIMSchedulerCustom())
    worse.save_pretrained(tmp_path / "worse")
    larger = DDIMCustomPipeline(tiny_unet(sample_size=16), DDIMSchedulerCustom())
    larger.save_pretrained(tmp_path / "larger")
    tiny = load_pipeline(files / "tiny")
    for scale in (1.0, 2.0):
        guidance = {"guidance_scale": scale, "guide": worse} if scale > 1 else {}
        generate(tiny, tmp_path / f"{scale:g}", num_images=12, num_inference_steps=2, **guidance)
    kept = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache"}
    settings = kept | dict(num_images=12, num_inference_steps=[2], guidance_scale=[1.0, 2.0])
    rows = evaluate(
        str(files / "tiny"), "digits", tmp_path / "r.json", guide=str(tmp_path / "worse"), also=["unipc"], **settings
    )
    folders = [evaluate(str(tmp_path / name), "digits", tmp_path / f"{name}.json", **kept)[0] for name in "12"]
    plain, unipc, guided, guided_unipc = rows
    assert [plain["value"], guided["value"]] == pytest.approx([row["value"] for row in folders], rel=1e-5)
    assert guided["guide"] == folders[1]["guide"] == worse._weights_hash() and "guide" not in plain
    assert len({row["value"] for row in rows}) == 4 and guided_unipc["guide"] == guided["guide"]
    assert (
        plain["guidance_scale"] is None and f"guide worse ({guided['guide'][:12]})" in (tmp_path / "r.md").read_text()
    )
    compared = compare(
        Question(str(files / "tiny"), "digits", tmp_path / "c.json", guide=str(tmp_path / "worse"), **settings),
        [str(files / "tiny"), str(tmp_path / "worse")],
    )
    assert compared.values[0] == pytest.approx([plain["value"], guided["value"]])
    for message, change in {
        "guide is given with guidance_scale 1; allowed: another": dict(guidance_scale=[1.0]),
        "also is stock, which gives a network no guide; allowed: without a guide": dict(also=["stock"]),
        r"in which none of the timesteps 500, 0 lies": dict(guidance_interval=[600, 900]),
        r"guidance_scale \[2.0\] and a guide; allowed: steps and guidance .* without a guide": dict(
            calibrated=True, guidance_scale=[2.0]
        ),
        "the guide takes states of 1 channels of size 16": dict(guide=str(tmp_path / "larger")),
    }.items():
        with pytest.raises(ValueError, match=message):
            change = {"guide": str(tmp_path / "worse"), **settings, **change}
            evaluate(str(files / "tiny"), "digits", tmp_path / "r.json", **change)


def test_what_cannot_be_measured_of_classes_is_one_line(model, files, tmp_path, capsys):
    """Guidance and classifiers of a model without classes, stock, too few images of a class, and by_class without
    labels have a line each; without labels classes are drawn alike, and that is said."""
    for change in (dict(guidance_scale=[2.0]), dict(by_class=True), dict(label_accuracy="digits")):
        with pytest.raises(ValueError, match=f"{[*change][0]} is given, but the model has no classes"):
            evaluate(str(files / "tiny"), "digits", tmp_path / "r.json", **change)
    for message, change in {
        "also is stock, which gives a network no classes": dict(also=["stock"]),
        "guidance_interval is given with guidance_scale 1": dict(guidance_interval=[0, 500]),
        "class '.': a distance of [01] images?; .* more num_images, or no by_class": dict(by_class=True, num_images=8),
    }.items():
        with pytest.raises(ValueError, match=message):
            asked(files, tmp_path, **change)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(flat / f"{number}.png")
    with pytest.raises(ValueError, match="has no labels: its images lie in no folders"):
        asked(files, tmp_path, reference=str(flat), by_class=True)
    rows = asked(files, tmp_path, reference=str(flat), num_images=4)
    assert rows[-1]["classes"] == "all alike" and "no labels are used" in capsys.readouterr().out
