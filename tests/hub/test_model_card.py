"""The model card says what a run recorded in its folder, and no more."""

import json

import yaml
from huggingface_hub import ModelCard

from ddim_hf.hub.model_card import BEGIN, model_card, write_model_card

CONFIG = {
    "recipe": "digits",
    "dataset_name": "org/digits",
    "max_train_steps": 1234,
    "learning_rate": 2e-4,
    "ema_decay": 0.9995,
    "hub_model_id": "org/tiny",
    "checkpointing_steps": 1000,
    "output_dir": "/home/someone/runs/digits",
    "command": "python examples/train.py --output_dir /home/someone/runs/digits --token hf_abcdefghijkl",
    "git_commit": "0123abc",
    "versions": {"torch": "2.12.1"},
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
    assert data.license == "apache-2.0" and data.datasets == ["org/digits"] and "ddim" in data.tags
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("fid", 7.25),
        ("frechet_distance", 3.5),
        ("denoising_loss", 0.0301),
    ]
    protocol = {"num_images": 50000, "num_inference_steps": 50, "eta": 0.0, "tau": "quad", "mode": "clean", "seed": 7}
    assert protocol.items() <= data.eval_results[0].metric_args.items()
    for text in ("1234", "0.0002", "0.9995", "0123abc", "torch 2.12.1", "10,709 parameters", "samples.png", "7.25"):
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


def test_what_all_values_share_is_said_once(run):
    """Each metric has a table of its own, in order, of the settings in which its values differ."""
    rows = [
        {"metric": "fid", "value": 4.25, "num_images": 50000, "num_inference_steps": 50, "eta": 0.0, "seed": 3},
        {"metric": "fid", "value": 5.25, "num_images": 50000, "num_inference_steps": 10, "eta": 0.0, "seed": 3},
        {"metric": "denoising_loss", "value": 0.0301, "num_images": 100},
    ]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    assert """## Results

**FID**: num_images 50000, eta 0, seed 3

| num_inference_steps | value |
| --- | --- |
| 10 | 5.25 |
| 50 | 4.25 |

**Denoising loss**: num_images 100

| value |
| --- |
| 0.0301 |

## Network""" in model_card(run)


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
