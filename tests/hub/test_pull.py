"""Models come down from a Hub over HTTP, through the real client, and from folders; the Hub is `hub_server.py`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    HeunDiscreteScheduler,
    UnCLIPScheduler,
)
from hub_models import WRITER, images, one_line, published, stock_folder
from hub_server import Fault
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.evaluation import Question
from ddim_hf.generation import load_pipeline
from ddim_hf.hub import is_model, resolve_model

pytestmark = pytest.mark.usefixtures("hub")


def test_what_stock_diffusers_pushed_loads_bit_identically(hub):
    """What stock DDPMPipeline and DDIMPipeline push gives the same images as our pipeline over the same parts."""
    for stock, scheduler in ((DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)):
        stock(tiny_unet(), scheduler(beta_end=0.03)).push_to_hub(f"org/{stock.__name__}", token=WRITER)
        mine = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom.from_config(scheduler(beta_end=0.03).config))
        back = DDIMCustomPipeline.from_pretrained(f"org/{stock.__name__}")
        assert type(back.scheduler) is DDIMSchedulerCustom and np.array_equal(images(back), images(mine))


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("where", ["GET /api/models/org/tiny/revision", "/tree/", "HEAD .*config.json", "GET /large"])
def test_pull_outlasts_a_server_error(hub, tmp_path, where, status):
    """Two errors 429 or 500 in a row, wherever they fall, are asked again, and the model arrives bit for bit."""
    hub.add_repo("org/tiny", published(stock_folder(tmp_path)))
    hub.faults = [Fault(where, status=status, times=2)]
    back = DDIMCustomPipeline.from_pretrained("org/tiny").unet.state_dict()
    assert all(torch.equal(back[key], weight) for key, weight in tiny_unet().state_dict().items())
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("index", [True, False])
def test_weights_at_the_root_load(hub, tmp_path, index):
    """The layout of google/ddpm-cifar10-32, all at the root, loads with and without model_index.json."""
    files = published(stock_folder(tmp_path))
    flat = {Path(name).name: data for name, data in files.items() if index or name != "model_index.json"}
    hub.add_repo("google/ddpm", flat | {"diffusion_pytorch_model.bin": b"pickle"})
    back = DDIMCustomPipeline.from_pretrained("google/ddpm")
    assert np.array_equal(images(back), images(DDIMCustomPipeline.from_pretrained(tmp_path)))
    assert not any(line.endswith(".bin") for line in hub.requests)


def rooted(folder: Path) -> Path:
    """`folder` in the oldest layout: all at the root, without an index."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    return without_index(folder)


def without_index(folder: Path) -> Path:
    (folder / "model_index.json").unlink()
    return folder


@pytest.mark.parametrize("layout", [rooted, without_index])
def test_a_folder_without_an_index_loads_wherever_a_model_is_taken(hub, tmp_path, layout):
    """The oldest layout, and the two folders alone, load from a folder and from the Hub, by from_pretrained and by
    what sample.py and evaluate.py call, with the same images as with an index."""
    expected = images(DDIMCustomPipeline.from_pretrained(stock_folder(tmp_path / "whole")))
    folder = layout(stock_folder(tmp_path / "model"))
    hub.add_repo("org/old", published(folder))
    for name in (folder, str(folder), "org/old"):
        assert np.array_equal(images(DDIMCustomPipeline.from_pretrained(name)), expected)
        assert np.array_equal(images(load_pipeline(name)), expected)
    assert is_model(folder) and not Question(str(folder), "org/digits", tmp_path / "results.json").of_images
    unet = tiny_unet()
    assert DDIMCustomPipeline.from_pretrained(folder, unet=unet).unet is unet
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError) as caught:
        load_pipeline(folder)
    one_line(caught, str(weights), "truncated")


@pytest.mark.parametrize(
    "scheduler", [HeunDiscreteScheduler(), UnCLIPScheduler(), DDIMSchedulerCustom(skip_type="quad")]
)
def test_the_oldest_layouts_scheduler_is_recast_as_any_other(tmp_path, scheduler):
    """A scheduler's config without an index becomes what the pipeline makes of that scheduler."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler")
    theirs = type(scheduler).from_pretrained(tmp_path / "scheduler")
    expected = DDIMCustomPipeline(tiny_unet(), theirs).scheduler
    loaded = DDIMCustomPipeline.from_pretrained(rooted(tmp_path)).scheduler
    assert torch.equal(loaded.alphas_cumprod, expected.alphas_cumprod)
    assert loaded.config.skip_type == expected.config.skip_type
    assert loaded.config.prediction_type == expected.config.prediction_type


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("scheduler/scheduler_config.json", "", ["scheduler_config.json", "not JSON"]),
        ("unet/config.json", '{"_class_name": ', ["unet/config.json", "not JSON"]),
        ("unet/config.json", '{"_class_name": "Transformer2DModel"}', ["Transformer2DModel", "UNet2DModel"]),
        ("scheduler/scheduler_config.json", '{"_class_name": "TheirScheduler"}', ["TheirScheduler", "does not know"]),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(tmp_path, file, content, words):
    """A torn config and a class that is not known end in one line that names it."""
    (without_index(stock_folder(tmp_path)) / file).write_text(content)
    with pytest.raises(ValueError) as caught:
        DDIMCustomPipeline.from_pretrained(tmp_path)
    one_line(caught, *words)


def test_a_revision_of_a_folder_is_refused(tmp_path):
    """A folder has no branches: a revision of it is refused, and not recorded of images that it did not make."""
    with pytest.raises(ValueError) as caught:
        load_pipeline(stock_folder(tmp_path), revision="v9")
    one_line(caught, "'v9'", str(tmp_path), "allowed: of a model on the Hub")


def test_a_folder_of_other_things_is_no_model(tmp_path):
    """What has no UNet, or no schedule, is named so in one line."""
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        load_pipeline(tmp_path)
    one_line(caught, str(tmp_path), "no UNet")
    tiny_unet().save_pretrained(tmp_path)
    assert not is_model(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_pipeline(tmp_path)
    one_line(caught, str(tmp_path), "no scheduler_config.json")


def test_revision_variant_dtype_and_cache(hub, tmp_path):
    """revision, variant, torch_dtype and cache_dir do as in diffusers, and only what is asked for is fetched."""
    files = published(stock_folder(tmp_path / "stock"))
    half = published(stock_folder(tmp_path / "half", variant="fp16"))
    repo = hub.add_repo("org/tiny", files | half | {"checkpoint-1/unet/diffusion_pytorch_model.safetensors": b"old"})
    first = repo.branches["main"]
    weights = load_file(tmp_path / "stock/unet/diffusion_pytorch_model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "later", metadata={"format": "pt"})
    later = files | {"unet/diffusion_pytorch_model.safetensors": (tmp_path / "later").read_bytes()}
    repo.commit("main", later, "later")
    repo.branches["v1"] = first

    load = DDIMCustomPipeline.from_pretrained
    key = "conv_in.weight"
    assert torch.equal(load("org/tiny").unet.state_dict()[key], weights[key] + 1)
    for revision in ("v1", first):
        assert torch.equal(load("org/tiny", revision=revision).unet.state_dict()[key], weights[key])
    half = load("org/tiny", revision="v1", variant="fp16", torch_dtype=torch.bfloat16, cache_dir=tmp_path / "cache")
    assert half.unet.dtype == torch.bfloat16
    fetched = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert fetched == {"diffusion_pytorch_model.fp16.safetensors"}


def test_offline_the_cache_is_enough(hub, tmp_path, monkeypatch):
    """After one pull the model loads with local_files_only, and with the Hub down or out of reach."""
    hub.add_repo("org/tiny", published(stock_folder(tmp_path)))
    with pytest.raises(OSError) as caught:
        DDIMCustomPipeline.from_pretrained("org/tiny", local_files_only=True)
    one_line(caught, "org/tiny", "not in the cache", "local_files_only")
    expected = images(DDIMCustomPipeline.from_pretrained("org/tiny"))

    hub.requests.clear()
    assert np.array_equal(images(DDIMCustomPipeline.from_pretrained("org/tiny", local_files_only=True)), expected)
    assert not hub.requests
    hub.faults = [Fault(".", status=500)]
    assert np.array_equal(images(DDIMCustomPipeline.from_pretrained("org/tiny")), expected)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert np.array_equal(images(DDIMCustomPipeline.from_pretrained("org/tiny")), expected)
    with pytest.raises(ConnectionError) as caught:
        DDIMCustomPipeline.from_pretrained("org/other")
    one_line(caught, "no connection", "check the network")


@pytest.mark.parametrize(
    ("repo_id", "kwargs", "kind", "words"),
    [
        ("org/none", {}, FileNotFoundError, ["org/none", "check the name"]),
        ("org/private", {}, FileNotFoundError, ["org/private", "if it is private", "hf auth login"]),
        ("org/private", {"token": "hf_stranger"}, FileNotFoundError, ["org/private", "if it is private"]),
        ("org/private", {"token": "hf_wrong"}, PermissionError, ["does not accept this token"]),
        ("./outputs/run", {}, ValueError, ["'./outputs/run'", "neither a folder here nor a repo id"]),
        ("org/tiny", {"revision": "v9"}, OSError, ["'v9'", "org/tiny"]),
        ("org/tiny", {"variant": "fp16"}, OSError, ["'fp16'", "unet/diffusion_pytorch_model.safetensors"]),
        ("org/pickled", {}, OSError, ["pickled", "use_safetensors=False"]),
        ("org/pickled", {"use_safetensors": None}, OSError, ["pickled", "use_safetensors=False"]),
        ("org/text", {}, ValueError, ["UNet2DConditionModel", "UNet2DModel"]),
        ("org/data", {}, FileNotFoundError, ["org/data", "no UNet"]),
    ],
)
def test_refused_pull_says_what_to_do(hub, tmp_path, repo_id, kwargs, kind, words):
    """Whatever cannot be loaded ends in one line that names the repo and the remedy, and no large file is fetched."""
    files = published(stock_folder(tmp_path))
    hub.add_repo("org/tiny", files)
    hub.add_repo("org/private", files, private=True)
    pickled = {name.replace(".safetensors", ".bin"): data for name, data in files.items()}
    hub.add_repo("org/pickled", pickled)
    hub.add_repo("org/text", files | {"unet/config.json": b'{"_class_name": "UNet2DConditionModel"}'})
    hub.add_repo("org/data", {"README.md": b"no model"})
    with pytest.raises(kind) as caught:
        DDIMCustomPipeline.from_pretrained(repo_id, **kwargs)
    one_line(caught, *words)
    assert not any("/large/" in line for line in hub.requests)


def test_pickle_loads_where_asked_for_by_name(hub, tmp_path):
    """use_safetensors=False, and nothing else, takes the pickled weights of a repo that has no others."""
    hub.add_repo("org/pickled", published(stock_folder(tmp_path, safe_serialization=False)))
    for kwargs in ({}, {"use_safetensors": None}, {"use_safetensors": True}):
        for name in ("org/pickled", tmp_path):
            with pytest.raises(OSError):
                DDIMCustomPipeline.from_pretrained(name, **kwargs)
    back = DDIMCustomPipeline.from_pretrained("org/pickled", use_safetensors=False)
    assert np.array_equal(images(back), images(DDIMCustomPipeline(tiny_unet(), DDPMScheduler(beta_end=0.03))))


def test_broken_download_resumes_or_says_so(hub, tmp_path):
    """A download cut off once is resumed; one cut short for good, or in the cache, is refused in one line."""
    hub.add_repo("org/tiny", published(stock_folder(tmp_path)))
    expected = images(DDIMCustomPipeline.from_pretrained(tmp_path))
    hub.faults = [Fault("GET /large", truncate="short")]
    with pytest.raises(OSError) as caught:
        DDIMCustomPipeline.from_pretrained("org/tiny")
    one_line(caught, "org/tiny", "truncated", "force_download=True")

    hub.faults = [Fault("GET /large", truncate="cut", times=1)]
    assert np.array_equal(images(DDIMCustomPipeline.from_pretrained("org/tiny", force_download=True)), expected)

    weights = resolve_model("org/tiny") / "unet/diffusion_pytorch_model.safetensors"
    weights.resolve().write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError) as caught:
        DDIMCustomPipeline.from_pretrained("org/tiny")
    one_line(caught, "truncated", "again")
    assert np.array_equal(images(DDIMCustomPipeline.from_pretrained("org/tiny", force_download=True)), expected)


def test_a_folder_that_is_not_there_is_named_where_there_is_no_network(monkeypatch):
    """Loading a mistyped folder without a network says that it is not here, not only that the Hub is out of reach."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as caught:
        DDIMCustomPipeline.from_pretrained("outputs/nowhere")
    one_line(caught, "there is no folder 'outputs/nowhere' here, and no connection to http://127.0.0.1:9")


def test_given_parts_and_folders_load_as_in_diffusers(hub, tmp_path):
    """A unet or scheduler passed in is used without fetching weights, and a folder's broken weights are named."""
    hub.add_repo("org/tiny", published(stock_folder(tmp_path)))
    mine = tiny_unet()
    back = DDIMCustomPipeline.from_pretrained("org/tiny", unet=mine, scheduler=DDIMScheduler(beta_end=0.01))
    assert back.unet is mine and back.scheduler.config.beta_end == 0.01
    assert not any("/large/" in line for line in hub.requests)

    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError) as caught:
        DDIMCustomPipeline.from_pretrained(tmp_path)
    one_line(caught, str(weights), "truncated")


def test_loading_a_model_of_ours_warns_of_nothing(run, caplog):
    """Our own scheduler keys, which stock's scheduler would ignore, are read without a word."""
    from diffusers.utils import logging

    logging.enable_propagation()
    try:
        pipe = DDIMCustomPipeline.from_pretrained(run)
    finally:
        logging.disable_propagation()
    assert pipe.scheduler.config.skip_type == "quad" and not caplog.records
