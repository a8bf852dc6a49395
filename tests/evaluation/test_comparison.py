"""Several models measured alike, side by side."""

import json
import runpy
import shutil
import sys

import pytest
from conftest import tiny_unet
from hub_models import published
from training_runs import ROOT

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.calibration import describe_sampler
from ddim_hf.evaluation import Comparison, Question, compare, evaluate
from ddim_hf.generation import generate, load_pipeline


def test_models_are_compared_cell_by_cell(files, folders, tmp_path, monkeypatch, capsys):
    """evaluate.py --beside prints both models' distances, those of results.json, and their difference; the claim that
    one is nearer holds in every cell or not at all."""
    unet = tiny_unet()
    for parameter in unet.parameters():
        parameter.data *= 1.2
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "other")
    settings = dict(num_inference_steps=[2, 3], num_images=8, feature_extractor=str(files / "features.pt"))
    settings |= dict(cache_dir=tmp_path / "cache", max_batch_size=8)
    question = Question("", "digits", tmp_path / "results.json", **settings)
    models = [str(files / "tiny"), str(tmp_path / "other")]
    comparison = compare(question, models)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    values = {(row["model"], row["num_inference_steps"]): row["value"] for row in rows}
    assert comparison.values == [[values[name, steps] for steps in (2, 3)] for name in ("tiny", "other")]
    nearer = all(values["other", steps] < values["tiny", steps] for steps in (2, 3))
    assert comparison.better(1) == nearer and not comparison.better(0)

    words = [models[0], "--beside", models[1], "--reference", "digits", "--output", tmp_path / "results.json"]
    words += [
        "--feature_extractor",
        files / "features.pt",
        "--num_images",
        8,
        "--num_inference_steps",
        "2,3",
        "--max_batch_size",
        8,
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words), "--cache_dir", str(tmp_path / "cache")])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "examples/evaluate.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert str(comparison) in said and said.count("frechet_distance ") == 0
    assert f"{values['other', 3] - values['tiny', 3]:+.3g} |" in said
    assert f"{models[1]} is nearer than {models[0]} in {'every' if nearer else 'not every'} cell" in said


def test_better_is_in_every_cell():
    """A model that is nearer in some cells alone is not better."""
    comparison = Comparison(["old", "new", "mixed"], ["a", "b"], [[2.0, 3.0], [1.0, 2.5], [1.0, 3.0]])
    assert comparison.better(1) and not comparison.better(2)
    assert "new is nearer than old in every cell\nmixed is nearer than old in not every cell" in str(comparison)


def fit(folder, steps):
    """Save the tiny model with schedules of so many steps."""
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom())
    schedules = {str(s): {"timesteps": [900, 400, 50][-s:], "weights": [[1, 0, 0]] * s} for s in steps}
    record = {"weights_hash": pipe._weights_hash(), "sampler": describe_sampler(pipe.scheduler.config)}
    pipe.scheduler.change_config(calibrated_schedules=record | {"schedules": schedules})
    pipe.save_pretrained(folder)


def test_cells_that_one_model_alone_has_are_told(files, tmp_path):
    """A schedule that one of the models has alone is no cell of the comparison, which says so."""
    fit(tmp_path / "more", (2, 3))
    fit(tmp_path / "less", (2,))
    question = Question("", "digits", tmp_path / "r.json", num_images=4, num_inference_steps=[2, 3], calibrated=True)
    question.feature_extractor, question.cache_dir = str(files / "features.pt"), tmp_path
    comparison = compare(question, [str(tmp_path / name) for name in ("more", "less")])
    assert len(comparison.cells) == 3 and len(comparison.apart) == 1
    (said,) = [line for line in str(comparison).splitlines() if line.startswith("not compared, as not all have it: ")]
    assert "by ddim_hf calibrated" in said and "S 3" in said


@pytest.fixture
def beside(files, tmp_path):
    """Compare models of `tmp_path`, or `tiny`, as evaluate.py --beside does."""

    def measured(*names, **settings):
        cells = {"num_images": 4, "num_inference_steps": [2]} if "a" not in names else {}
        question = Question("", "digits", tmp_path / "r.json", **cells | settings)
        question.feature_extractor, question.cache_dir = str(files / "features.pt"), files / "cache"
        return compare(question, [str((files if name == "tiny" else tmp_path) / name) for name in names])

    return measured


def save(folder, names=None, **network):
    DDIMCustomPipeline(tiny_unet(**network), DDIMSchedulerCustom(), names).save_pretrained(folder)


def test_a_model_with_classes_beside_one_without(beside, tmp_path):
    """Guidance 1 is none: the cells of a model with classes are those of one without."""
    save(tmp_path / "classes", names={n: str(n) for n in range(10)}, num_class_embeds=11)
    assert len(beside("tiny", "classes").cells) == 1


def test_what_does_not_compare_is_said_before_anything_is_measured(beside, tmp_path):
    """Models of two sizes, a model and a folder of images, and a setting that the second model cannot have are refused
    with the first unmeasured."""
    save(tmp_path / "large", sample_size=16)
    save(tmp_path / "classes", names={n: str(n) for n in range(10)}, num_class_embeds=11)
    (tmp_path / "pictures").mkdir()
    for names, settings, message in [
        (("tiny", "large"), {}, r"'resolution': 8.* and of .*'resolution': 16.*; allowed: of one size"),
        (("tiny", "pictures"), {}, "num_inference_steps, num_images are given, and .*pictures' is a folder of images"),
        (
            ("tiny", "pictures"),
            {"num_images": 50_000, "num_inference_steps": [50]},
            "models and folders of images; allowed",
        ),
        (("classes", "tiny"), {"guidance_scale": [2.0]}, "guidance_scale is given, but the model has no classes"),
    ]:
        with pytest.raises(ValueError, match=message):
            beside(*names, **settings)
    assert not (tmp_path / "r.json").exists()


def test_folders_of_other_numbers_of_images_are_refused(beside, folders, tmp_path):
    """The distances of 5 images and of 3 do not compare, and the line says that."""
    for name, count in (("a", 5), ("few", 3)):
        (tmp_path / name).mkdir()
        for file in sorted((folders / "a").iterdir())[:count]:
            shutil.copy(file, tmp_path / name)
    with pytest.raises(
        ValueError, match="no distance in common .*num_images 5; .*num_images 3.; allowed: with the same"
    ):
        beside("a", "few")


def test_a_model_without_schedules_is_compared_by_its_plain_steps(beside, tmp_path):
    """With calibrated, a model that has no schedule is measured plainly, and the other's schedule is told apart."""
    fit(tmp_path / "fitted", (2,))
    save(tmp_path / "plain")
    for names in (("fitted", "plain"), ("plain", "fitted")):
        comparison = beside(*names, calibrated=True)
        assert len(comparison.cells) == 1 and "by ddim_hf," in comparison.cells[0]
        assert len(comparison.apart) == 1 and "by ddim_hf calibrated" in comparison.apart[0]
    with pytest.raises(
        ValueError, match="calibrated with .*; allowed: steps and guidance that the model has a schedule for"
    ):
        beside("plain", "plain", calibrated=True)


def test_the_revision_is_the_first_models(hub, files, tmp_path):
    """A revision is of the first model alone: those beside it need no branch of that name."""
    repo = hub.add_repo("org/tiny", published(files / "tiny"))
    repo.branches["v1"] = repo.branches["main"]
    settings = {"num_images": 4, "num_inference_steps": [2], "feature_extractor": str(files / "features.pt")}
    question = Question("", "digits", tmp_path / "r.json", **settings, cache_dir=files / "cache", revision="v1")
    first, second = compare(question, ["org/tiny", str(files / "tiny")]).values
    assert first == second


def test_a_guide_or_an_interval_of_its_own_is_a_cell_of_its_own(files, tmp_path):
    """Folders that were sampled with other guides, intervals or kinds of guidance do not compare; an interval in whole
    numbers is the same one as in floats."""
    tiny = load_pipeline(files / "tiny")
    guides = [DDIMCustomPipeline(tiny_unet(block_out_channels=(8, size)), DDIMSchedulerCustom()) for size in (8, 16)]
    made = {"a": {"guide": guides[0]}, "b": {"guide": guides[1]}}
    made |= {"c": {"guide": guides[0], "guidance_interval": (0, 500)}}
    for name, guidance in made.items():
        sampling = {"num_images": 4, "num_inference_steps": 2, "guidance_scale": 2.0}
        generate(tiny, tmp_path / name, **sampling, **guidance)
    settings = dict(feature_extractor=str(files / "features.pt"), cache_dir=tmp_path / "cache")
    for other in "bc":
        with pytest.raises(ValueError, match="have no distance in common"):
            compare(
                Question("", "digits", tmp_path / "f.json", **settings),
                [str(tmp_path / name) for name in ("a", other)],
            )
    guides[0].save_pretrained(tmp_path / "guide")
    models = [str(files / "tiny"), str(tmp_path / "guide")]
    settings |= dict(num_images=4, num_inference_steps=[2], guidance_scale=[2.0], guide=models[1])
    first, again = (
        compare(Question("", "digits", tmp_path / "m.json", guidance_interval=interval, **settings), models)
        for interval in ([0.0, 500.0], [0, 500])
    )
    assert first == again and len(first.cells) == 1


def test_no_fitted_schedule_is_taken_with_a_guide(files, tmp_path):
    """A schedule was not fitted to a guide: it has a cell without guidance alone."""
    fit(tmp_path / "fitted", (2,))
    question = Question(str(tmp_path / "fitted"), "digits", tmp_path / "r.json", num_images=4, num_inference_steps=[2])
    question.feature_extractor, question.cache_dir = str(files / "features.pt"), tmp_path
    question.calibrated, question.guide, question.guidance_scale = True, str(files / "tiny"), [1.0, 2.0]
    rows = evaluate(question)
    assert [(row["implementation"], row.get("guidance_scale"), "guide" in row) for row in rows] == [
        ("ddim_hf", None, False),
        ("ddim_hf calibrated", None, False),
        ("ddim_hf", 2.0, True),
    ]
