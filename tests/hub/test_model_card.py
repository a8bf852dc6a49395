"""The model card says what a run recorded in its folder, and no more."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_unet
from diffusers import DDIMPipeline, UNet2DModel
from hub_models import WRITER
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.data.cache import digest
from ddim_hf.hub import model_card, push_to_hub, write_model_card
from ddim_hf.hub.model_card import BEGIN
from ddim_hf.unet import weights_hash

ROOT = Path(__file__).resolve().parents[2]
OUR_MODEL = "models/ddim-cifar10-64"

CONFIG = {
    "recipe": "digits",
    "network": "digits",
    "pretrained": None,
    "dropout": 0.0,
    "dataset_name": "org/digits",
    "dataset_on_hub": True,
    "random_flip": False,
    "samplers": "none",
    "feature_extractor": "inception",
    "validation_split": "none",
    "validation_steps": 777,
    "seed": 0,
    "max_train_steps": 1234,
    "learning_rate": 2e-4,
    "ema_decay": 0.9995,
    "hub_model_id": "org/tiny",
    "checkpointing_steps": 1000,
    "output_dir": "/home/someone/runs/digits",
    "command": "python examples/train.py --output_dir /home/someone/runs/digits --token hf_abcdefghijkl",
    "git_commit": "0123abc",
    "versions": {"torch": "2.12.1"},
    "machine": "Linux x86_64, NVIDIA H100",
    "num_processes": 4,
}
RESULTS = [
    {"metric": "fid", "value": 7.25, "num_images": 50000, "num_inference_steps": 50, "eta": 0.0, "tau": "quad"}
    | {"mode": "clean", "reference": "org/digits", "split": "train", "seed": 7, "feature_extractor": "inception-v3"},
    {"metric": "fid", "value": 3.5, "num_images": 1000, "feature_extractor": "small classifier", "split": "train"},
    {"metric": "denoising_loss", "value": 0.0301},
]


def test_card_states_what_was_recorded_and_no_more(run):
    """The card holds every recorded hyperparameter, metric and protocol, and no placeholder, token or private path."""
    bare = model_card(run)
    assert "diffusers ignores" in bare and "`skip_type`." in bare
    assert "## Training" not in bare and "## How to reproduce" not in bare and "No metric has been measured" in bare
    assert ModelCard(bare).data.eval_results is None and "datasets" not in ModelCard(bare).data.to_dict()

    (run / "config.json").write_text(json.dumps(CONFIG))
    (run / "results.json").write_text(json.dumps({"results": RESULTS}))
    card = ModelCard(write_model_card(run, repo_id="org/tiny").read_text())
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    assert data.datasets == ["org/digits"] and "ddim" in data.tags
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("fid", 7.25),
        ("frechet_distance", 3.5),
        ("denoising_loss", 0.0301),
    ]
    assert data.eval_results[0].dataset_type == "org/digits" and data.eval_results[0].dataset_split == "train"
    protocol = {"num_images": 50000, "num_inference_steps": 50, "eta": 0.0, "tau": "quad", "mode": "clean"}
    assert protocol.items() <= data.eval_results[0].metric_args.items()
    for text in (
        *("1234", "0.0002", "0.9995", "| seed | 0 |", "0123abc", "torch 2.12.1", "10,709 parameters", "samples.png"),
        *("7.25", "seed 7", "clean mode", "On Linux x86_64, NVIDIA H100, 4 processes."),
    ):
        assert text in card.text, text
    for line in (
        'DDIMCustomPipeline.from_pretrained("org/tiny")',
        'DDIMPipeline.from_pretrained("org/tiny")',
        "2010.02502",
    ):
        assert line in card.text
    for text in (
        "More Information",
        "None",
        "null",
        "hf_abc",
        "/home/someone",
        "TODO",
        "| output_dir",
        "hub_model_id",
        "checkpointing",
        # without effect in this run
        "random_flip",
        "inception |",
        "777",
        "dropout | 0",
        "| network",
    ):
        assert text not in card.content, text


def test_only_inception_distances_are_called_fid(run):
    """A Fréchet or kernel distance over other features than Inception's goes by another name, in text and metadata."""
    others = [{"metric": metric, "value": 3.5, "feature_extractor": "small classifier"} for metric in ("fid", "kid")]
    (run / "results.json").write_text(json.dumps({"results": others}))
    card = ModelCard(model_card(run))
    assert [r.metric_type for r in card.data.eval_results] == ["frechet_distance", "kernel_distance"]
    assert [r.metric_name for r in card.data.eval_results] == [
        "Fréchet distance over small classifier",
        "Kernel distance over small classifier",
    ]
    assert "FID" not in card.text.replace("are not FID, nor comparable", "") and "KID" not in card.text


def test_results_are_a_grid_and_four_headlines(run):
    """The figures of a metric are one grid per tau, S across and eta down, under what all share, said once; the
    metadata quotes four, of most images, our own steps and least noise, each under a name of its own."""
    shared = {
        "metric": "fid",
        "seed": 3,
        "reference": "org/digits",
        "split": "train",
        "weights_hash": weights_hash(UNet2DModel.from_pretrained(run / "unet")),
    }
    rows = [
        {
            "value": 10 * eta + 100 / steps + (tau == "uniform") / 3,
            "num_inference_steps": steps,
            "eta": eta,
            "tau": tau,
        }
        | {"variance": variance, "implementation": "ddim_hf", "num_images": 5000}
        | shared
        for tau in ("uniform", "quad")
        for eta, variance in ((1.0, "sigma_hat"), (1.0, "sigma"), (0.0, "sigma"))
        for steps in (100, 50, 20, 10, 5)
    ]
    stock = {"implementation": "stock", "tau": "uniform", "eta": 0.0, "num_inference_steps": 10, "num_images": 5000}
    real = {"implementation": "real images (test)", "num_images": 5000, "value": 0.76, "eta": None}
    rows += [shared | stock | {"value": 1.0}, shared | real | {"seed": None, "weights_hash": None}]
    rows += [{"metric": "denoising_loss", "value": 0.03012345, "num_images": 100, "split": "test", "reference": "x"}]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    card = ModelCard(model_card(run))
    assert (
        f"""## Results

**FID**: 5,000 images, org/digits, train split, seed 3, weights {shared["weights_hash"][:12]}

ddim_hf, uniform tau:

| eta | S = 5 | S = 10 | S = 20 | S = 50 | S = 100 |
| --- | --- | --- | --- | --- | --- |
| 0.0 | 20.33 | 10.33 | 5.33 | 2.33 | 1.33 |
| 1.0 | 30.33 | 20.33 | 15.33 | 12.33 | 11.33 |
| sigma_hat | 30.33 | 20.33 | 15.33 | 12.33 | 11.33 |

ddim_hf, quad tau:

| eta | S = 5 | S = 10 | S = 20 | S = 50 | S = 100 |
| --- | --- | --- | --- | --- | --- |
| 0.0 | 20.00 | 10.00 | 5.00 | 2.00 | 1.00 |
| 1.0 | 30.00 | 20.00 | 15.00 | 12.00 | 11.00 |
| sigma_hat | 30.00 | 20.00 | 15.00 | 12.00 | 11.00 |

diffusers' own pipeline, uniform tau:

| eta | S = 10 |
| --- | --- |
| 0.0 | 1.00 |

**Denoising loss**: 100 images, x, test split

0.03012

## Network"""
        in card.text
    )
    # The model's own tau is quad (its scheduler's skip_type).
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        (f"FID (S = {steps}, eta = 0)", 100 / steps) for steps in (5, 10, 20, 50)
    ]


def test_figures_of_other_weights_are_no_headlines(tmp_path):
    """Only rows of the folder's weights (as loaded, in float32), and those that do not tell whose they are, are quoted
    as the model's: not those of earlier weights, nor of a folder of images. The text has these apart."""
    pipe = DDIMCustomPipeline(tiny_unet().half(), DDIMSchedulerCustom())
    pipe.save_pretrained(tmp_path, variant="fp16")
    own = weights_hash(pipe.unet.float())
    row = {"metric": "fid", "num_inference_steps": 5, "eta": 0.0, "implementation": "ddim_hf"}
    images = {"metric": "fid", "images_hash": "45" * 32}
    rows = [row | {"weights_hash": own, "num_images": 10, "value": 4.0}, row | {"num_images": 8, "value": 3.0}]
    rows += [row | {"weights_hash": "23" * 32, "num_images": 100, "value": 2.0}]
    rows += [images | {"num_images": 100, "value": 1.0}, images | row | {"weights_hash": own, "value": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps({"results": rows}))
    card = ModelCard(model_card(tmp_path))
    assert [result.metric_value for result in card.data.eval_results] == [4.0, 3.0, 0.5]
    of_model, of_others = card.text.split("Measured too, but not on these weights:")
    assert all(f"| 0.0 | {value} |" in of_model for value in ("4.00", "3.00", "0.5"))
    assert "| 0.0 | 2.00 |" in of_others and "images 454545454545: 1.00" in of_others
    (tmp_path / "results.json").write_text(json.dumps({"results": rows[2:4]}))
    assert "No metric has been measured on this model.\n\nMeasured too, but" in model_card(tmp_path)


def test_figures_by_another_scheduler_are_no_headlines(tmp_path):
    """Of these weights, only figures by the scheduler as it is now are quoted as the model's: not those by settings
    that have changed since, in either direction, nor by a fitted schedule that is no longer there."""
    pipe = DDIMCustomPipeline(tiny_unet().eval(), DDIMSchedulerCustom(skip_type="quad"))
    pipe.set_progress_bar_config(disable=True)
    schedules = []
    for teacher_steps in (8, 12):
        pipe.calibrate(3, num_images=6, teacher_steps=teacher_steps)
        schedules.append(digest(pipe.calibrated_schedule(3)))
    row = {"metric": "fid", "num_inference_steps": 3, "eta": 0.0, "implementation": "ddim_hf"}
    row |= {"weights_hash": weights_hash(pipe.unet), "scheduler": None, "tau": "quad"}
    fitted = row | {"implementation": "ddim_hf calibrated"}
    rows = [row | {"value": 4.0}, row | {"value": 3.0, "scheduler": {"x0_formula": "as_printed"}}]
    rows += [fitted | {"value": value, "schedule": one} for value, one in zip((2.0, 1.0), schedules, strict=True)]

    def shown() -> list[list[str]]:
        """The values that are quoted, shown as the model's, and apart."""
        card = ModelCard(model_card(tmp_path))
        results = card.text.split("## Results")[1].split("## Network")[0]
        own, _, apart = results.partition("Measured too on these weights, but by settings or a fitted schedule")
        quoted = [f"{result.metric_value:.2f}" for result in card.data.eval_results or []]
        return [quoted, *(re.findall(r"\b\d\.\d\d\b", text) for text in (own, apart))]

    pipe.save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"results": rows}))
    assert shown() == [["4.00"], ["4.00", "1.00"], ["3.00", "2.00"]]
    pipe.scheduler.change_config(x0_formula="as_printed", calibrated_schedules=None)
    pipe.save_pretrained(tmp_path)
    assert shown() == [["3.00"], ["3.00"], ["4.00", "2.00", "1.00"]]


def test_headlines_tell_how_they_differ(run):
    """Figures by sigma and sigma_hat, with guidance everywhere and at some timesteps, and of other seeds have names or
    arguments of their own; what is the default is not said. Those with a guide come last, and name it."""
    row = {"metric": "fid", "num_images": 10, "num_inference_steps": 5, "eta": 1.0, "seed": 0, "variance": "sigma"}
    guided = {"guidance_scale": 2.0, "guidance_interval": [0, 400]}
    by_a_guide = guided | {"guide_model": "worse", "guide": "ab" * 32}
    others = (by_a_guide, {"variance": "sigma_hat"}, {"seed": 10}, guided)
    rows = [row | other | {"value": 1.0} for other in ({}, *others)]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    told = [(one.metric_name, one.metric_args) for one in ModelCard(model_card(run)).data.eval_results]
    assert len(told) == 4 and not any("worse" in name for name, _ in told)  # which the model alone cannot do
    (run / "results.json").write_text(json.dumps({"results": rows[1:2]}))
    ((name, arguments),) = [(one.metric_name, one.metric_args) for one in ModelCard(model_card(run)).data.eval_results]
    assert name == "FID (S = 5, eta = 1, guidance = 2 at timesteps 0 to 400 away from worse abababababab)"
    assert arguments["guide"] == "ab" * 6 and arguments["guide_model"] == "worse"
    plain = {"num_images": 10, "num_inference_steps": 5, "eta": 1.0}
    assert sorted(told, key=str) == sorted(
        [
            ("FID (S = 5, eta = 1)", plain),
            ("FID (S = 5, sigma_hat, eta = 1)", plain | {"variance": "sigma_hat"}),
            ("FID (S = 5, eta = 1)", plain | {"seed": 10}),
            ("FID (S = 5, eta = 1, guidance = 2 at timesteps 0 to 400)", plain | guided),
        ],
        key=str,
    )


def test_no_headline_stands_twice(run):
    """Of a cell that was measured of several numbers of images the metadata quote the most, wherever it was run."""
    row = {"metric": "fid", "eta": 0.0, "seed": 0}
    counts = [(100, 5, "here"), (500, 5, "there"), (100, 10, "here"), (500, 10, "there"), (100, 20, "here")]
    rows = [
        row | {"value": 1.0 + n, "num_images": n, "num_inference_steps": s, "machine": where} for n, s, where in counts
    ]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    told = [(one.metric_name, one.metric_value) for one in ModelCard(model_card(run)).data.eval_results]
    assert told == [(f"FID (S = {s}, eta = 0)", 1.0 + n) for n, s in ((500, 5), (500, 10), (100, 20))]


def test_figures_by_guidance_are_one_grid_and_told_apart(run):
    """Guidance stands in the grid's first column and in a headline's name; neither a class's own figures nor the
    schedule of each S, which is for one cell, make grids of their own."""
    row = {"metric": "fid", "implementation": "ddim_hf", "num_images": 10, "num_inference_steps": 5, "eta": 0.0}
    rows = [row | {"guidance_scale": scale, "value": 4.0 + scale} for scale in (2.0, 1.0)]
    rows = [each | {"by_class": [["cat", 5, each["value"]], ["dog", 5, 9.0]]} for each in rows]
    fitted = {"implementation": "ddim_hf calibrated", "guidance_scale": 1.0}
    rows += [row | fitted | {"num_inference_steps": s, "schedule": f"{s}" * 32, "value": 50 / s} for s in (5, 8)]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    card = ModelCard(model_card(run))
    assert "| 0.0, guidance 1 | 5.00 |\n| 0.0, guidance 2 | 6.00 |\n" in card.text
    assert "| eta | S = 5 | S = 8 |\n| --- | --- | --- |\n| 0.0, guidance 1 | 10.00 | 6.25 |\n" in card.text
    assert "by_class" not in card.text and "cat" not in card.text
    named = [(result.metric_name, result.metric_value) for result in card.data.eval_results]
    assert named == [("FID (S = 5, eta = 0)", 5.0), ("FID (S = 5, eta = 0, guidance = 2)", 6.0)]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"scheduler": {}}, {"scheduler": {"x0_formula": "as_printed"}}, "scheduler x0_formula as_printed:"),
        ({"reference_hash": "01" * 16}, {"reference_hash": "23" * 32}, "reference 232323232323:"),
        ({}, {"of_their_own": 3}, "of_their_own 3:"),
    ],
)
def test_figures_that_differ_in_anything_never_share_a_cell(run, one, other, words):
    """Two rows that differ in any setting, also one that the card has no words for, stand in two grids."""
    row = {"metric": "fid", "num_images": 10, "num_inference_steps": 5, "eta": 0.0}
    (run / "results.json").write_text(
        json.dumps({"results": [row | one | {"value": 1.5}, row | other | {"value": 2.5}]})
    )
    order = [model_card(run).index(part) for part in ("| 0.0 | 1.50 |", words, "| 0.0 | 2.50 |")]
    assert order == sorted(order)


def test_schedule_without_the_settings_that_another_overrides(run):
    """Betas of a cosine schedule, and the spacing that quadratic tau overrides, are not on the card."""
    text = model_card(run)
    assert "| beta_end | 0.03 |" in text and "timestep_spacing" not in text and "rescale_betas" not in text
    file = run / "scheduler/scheduler_config.json"
    cosine = json.loads(file.read_text()) | {"beta_schedule": "squaredcos_cap_v2", "skip_type": "uniform"}
    file.write_text(json.dumps(cosine | {"rescale_betas_zero_snr": True, "clip_sample": False}))
    text = model_card(run)
    assert "beta_end" not in text and "| timestep_spacing | leading |" in text
    assert "| rescale_betas_zero_snr | True |" in text and "| clip_sample | False |" in text


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_lines_that_load_a_pushed_model_run_as_printed(hub, run):
    """The Python on a pushed card, as it stands, loads the model from the Hub and samples an image."""
    push_to_hub(run, "org/tiny", token=WRITER)
    blocks = python_blocks(hub.repos["org/tiny"].files()["README.md"].decode())
    assert len(blocks) == 2
    for block in blocks:
        names = {}
        exec(block, names)
        assert names["image"].size == (8, 8)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_lines_that_load_a_folder_run_as_printed(run, monkeypatch, inside, variant):
    """A card written in a folder loads it from where it was written if that is above it, or else from the folder; by
    its variant where it has no other weights."""
    if variant:
        whole = run / "unet/diffusion_pytorch_model.safetensors"
        whole.rename(whole.with_suffix(f".{variant}.safetensors"))
    monkeypatch.chdir(run.parent if inside else ROOT)
    blocks = python_blocks(write_model_card(run).read_text())
    monkeypatch.chdir(run.parent if inside else run)
    for block in blocks:
        names = {}
        exec(block, names)
        assert names["image"].size == (8, 8)


def test_the_card_of_the_model_in_the_repository(monkeypatch, tmp_path):
    """It is what the code writes; its first screen has the picture; huggingface_hub reads its figures from it; it is
    below 170 lines beside the rows of its tables, without a long hash; and its lines run."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / OUR_MODEL / "README.md").read_text()
    assert model_card(OUR_MODEL) == text
    card = ModelCard(text)
    assert sum(line[:1] != "|" for line in text.splitlines()) < 170 and not re.search(r"[0-9a-f]{32}", text)
    lines = [line for line in card.text.splitlines() if line and line != BEGIN]
    assert lines[:2] == ["# ddim-cifar10-64", "![Samples](samples.png)"]
    index = yaml.safe_load(text.split("---")[1])["model-index"]
    name, results = model_index_to_eval_results(index)
    assert name == "ddim-cifar10-64" and results == card.data.eval_results
    assert len({result.metric_name for result in results}) == len(results)
    distances = [result for result in results if result.metric_type == "frechet_distance"]
    assert len(distances) >= 2
    for result in distances:
        assert re.search(r"\(S = \d+, eta = 0\)$", result.metric_name) and f"{result.metric_value:.4g}" in text
        row = {"num_inference_steps": result.metric_args["num_inference_steps"], "eta": 0.0, "tau": "uniform"}
        row |= {"num_images": result.metric_args["num_images"]}
        rows = json.loads((ROOT / OUR_MODEL / "results.json").read_text())["results"]
        (value,) = (r["value"] for r in rows if r | row == r and r["implementation"] == "ddim_hf")
        assert abs(result.metric_value / value - 1) < 5e-4
    for block in python_blocks(text):
        names = {}
        exec(block.replace("=50", "=2"), names)
        assert names["image"].size == (32, 32)


def test_a_card_written_before_the_repository_had_a_name(run):
    """Its results go on under the repository's name alone, and what was written around our part stays."""

    def names(card):
        return [entry["name"] for entry in yaml.safe_load(card.split("---")[1])["model-index"]]

    (run / "results.json").write_text(json.dumps({"results": RESULTS}))
    path = write_model_card(run)
    assert names(path.read_text()) == [run.name]
    path.write_text(path.read_text().replace(BEGIN, f"The images are JPEGs.\n\n{BEGIN}"))
    text = model_card(run, repo_id="org/tiny")
    assert names(text) == ["org/tiny"]
    assert text.count("The images are JPEGs.") == 1


def test_card_names_the_classes(tmp_path, monkeypatch):
    """The card of a model with classes names them and shows two calls, ours and stock's, which run as they stand."""
    names = {0: "it's a dog", 1: "sea|cat", 2: "bird"}
    DDIMCustomPipeline(tiny_unet(num_class_embeds=4), DDIMSchedulerCustom(), names).save_pretrained(tmp_path / "model")
    card = model_card(tmp_path / "model")
    assert "0 it's a dog, 1 sea\\|cat, 2 bird.\n" in card and "of 3 classes" in card
    assert "None is the null class, 3" in card and "It takes no prompt, only a class" in card
    assert "guidance_scale=1.5" in card
    (tmp_path / "model/config.json").write_text('{"label_dropout": 0.0}')
    untrained = model_card(tmp_path / "model")
    assert "The run has not trained the null class, 3" in untrained and "guidance_scale=" not in untrained
    (tmp_path / "model/config.json").unlink()
    monkeypatch.chdir(tmp_path)
    card = model_card(tmp_path / "model")
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        made = {}
        exec(block.replace("=50", "=2"), made)
        assert len(made["images"]) == 4
    stock = DDIMPipeline.from_pretrained("model")
    with pytest.raises(ValueError) as raised:  # as the card says
        stock(num_inference_steps=1)
    assert str(raised.value) in " ".join(card.split())

    DDIMCustomPipeline(tiny_unet(num_class_embeds=102), DDIMSchedulerCustom()).save_pretrained(tmp_path / "many")
    assert "98, 99 and 1 more, which `pipeline.id2label` names." in model_card(tmp_path / "many")
    DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()).save_pretrained(tmp_path / "none")
    assert "lasses" not in model_card(tmp_path / "none")
