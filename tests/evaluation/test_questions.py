"""What can be asked of a model."""

import pytest
from conftest import tiny_unet

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.evaluation import evaluate
from ddim_hf.evaluation.answers import _time_to_come
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.questions import Cell, Question

DISTANCES = dict(
    num_inference_steps=[10], eta=[0.5], variance=["sigma"], guidance_scale=[2.0], num_images=4, floor="test"
)
DISTANCES |= dict(guidance_interval=[0, 9], label_accuracy="digits", by_class=True, calibrated=True, also=["stock"])
DISTANCES |= dict(guide="a/guide")
MODELS = DISTANCES | dict(
    loss=True, reconstruction=[2], data_splits=["test"], data_images=3, distance=False, fast=True
)
MODELS |= dict(tau=["quad"], label_column="label", skip_broken=True, revision="main", max_batch_size=3)
MODELS |= dict(max_cached_bytes=7)
NO_DISTANCES = DISTANCES | dict(
    split="test", mode="legacy_pytorch", feature_extractor="f.pt", inception_weights="i.pt"
)
NO_DISTANCES |= dict(kid=True, tau=["quad"])
ERRORS = dict(data_splits=["test"], data_images=3)
OF_WHAT = {
    "'{model}' is a folder of images; allowed: a model": (MODELS, {}),
    "'{model}' is a folder of images without kid; allowed: a model, or kid": ({"seed": 5}, {}),
    "no distance is asked for; allowed: with distances": (NO_DISTANCES, {"distance": False, "loss": True}),
    "a reconstruction draws nothing; allowed: with distances or loss": (
        {"seed": 5},
        {"distance": False, "reconstruction": [2]},
    ),
    "no loss and no reconstruction is asked for; allowed: with one of them": (ERRORS, {}),
}


@pytest.mark.parametrize("why", OF_WHAT)
def test_a_setting_without_effect_is_refused_by_name(tmp_path, why):
    """Each setting that has no effect on what is asked for ends in a line that names it; given as its default it does
    not, as a list or as a tuple."""
    given, others = OF_WHAT[why]
    of_images = "folder" in why
    (tmp_path / "0.png").touch()
    model, defaults = str(tmp_path) if of_images else "a/model", Question("", "", "")
    for name, value in given.items():
        question = Question(model, "digits", "results.json", **others, **{name: value})
        with pytest.raises(ValueError, match=f"^{name} is given, and {why.format(model=model)}$"):
            question.check()
        default = getattr(defaults, name)
        setattr(question, name, list(default) if isinstance(default, tuple) else default)
        question.check()
    two = dict(list(given.items())[:2])
    if len(two) == 1:
        return
    with pytest.raises(ValueError, match=f"^{', '.join(two)} are given, and "):
        Question(model, "digits", "results.json", **others, **two).check()


def test_an_eta_that_no_cell_has_is_refused():
    """sigma_hat is drawn at eta 1: another eta is refused where the variance asked for, or else the model's own, is
    sigma_hat alone; beside sigma it is that of sigma's cells."""
    pipes = [DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom(variance=name)) for name in ("sigma", "sigma_hat")]

    def cells(pipe, **asked) -> list[tuple[str, float]]:
        question = Question("tiny", "digits", "results.json", num_inference_steps=(2,), num_images=2, **asked)
        return [(cell.variance, cell.eta) for cell in question.cells(pipe)]

    for pipe, asked in ((pipes[0], {"variance": ["sigma_hat"]}), (pipes[1], {})):
        with pytest.raises(ValueError, match="^eta is given, and the variance is sigma_hat alone; allowed: 1, or"):
            cells(pipe, eta=[0, 0.2], **asked)
        assert cells(pipe, **asked) == cells(pipe, eta=[1.0], **asked) == [("sigma_hat", 1.0)]
    both = {"eta": [0, 0.2], "variance": ["sigma", "sigma_hat"]}
    assert cells(pipes[1], **both) == [("sigma", 0.0), ("sigma", 0.2), ("sigma_hat", 1.0)]


def test_a_question_takes_nothing_beside_it():
    """Keywords beside a whole Question are refused by name, and not ignored."""
    with pytest.raises(TypeError, match="a Question and num_images, kid; allowed: a Question alone"):
        evaluate(Question("tiny", "digits", "results.json"), num_images=4, kid=True)


def test_what_is_of_inception_is_refused_with_other_features(files):
    """A file of features replaces Inception: its weights, or a mode of it, are refused beside it."""
    features = files / "features.pt"
    for given, named in (
        ({"inception_weights": files / "inception.pt"}, "inception_weights"),
        ({"mode": "legacy_pytorch"}, "mode"),
    ):
        with pytest.raises(ValueError, match=f"^{named}.* is given with feature_extractor, which replaces Inception"):
            load_feature_extractor(features, **given)


def test_asking_for_cells_changes_no_scheduler():
    """The cells of a question are checked on a schedule of their own: the pipeline's scheduler stays as it was."""
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom())
    question = Question("tiny", "digits", "results.json", num_inference_steps=(2, 4), num_images=2)
    assert [cell.num_inference_steps for cell in question.cells(pipe)] == [2, 4]
    assert pipe.scheduler.num_inference_steps is None
    question.num_inference_steps = (2000,)
    with pytest.raises(ValueError, match="2000; allowed: whole numbers from 1 to 1000"):
        question.cells(pipe)


def test_a_guided_cell_is_estimated_at_two_passes_a_step():
    """Of a cell without guidance that took 10 minutes, one of as many steps with guidance takes 20."""
    plain, guided = (Cell("uniform", "sigma", 0.0, 20, "ddim_hf", scale) for scale in (1.0, 2.0))
    taken = {"seconds": 600.0, "seconds_waiting": 0.0}
    assert _time_to_come(taken, plain, [guided], 0) == "about 20 minutes for the 1 cell to come"
    assert _time_to_come(taken, guided, [plain, guided], 0) == "about 15 minutes for the 2 cells to come"
