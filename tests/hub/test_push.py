"""Models go up to a Hub and come down again over HTTP, through the real client; the Hub is `hub_server.py`."""

import hashlib
import json
import multiprocessing
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from hub_server import Fault
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from ddim_hf.hub import push_to_hub, resolve_model
from ddim_hf.pipeline_ddim_custom import DDIMCustomPipeline
from ddim_hf.scheduling_ddim_custom import DDIMSchedulerCustom

WRITER = "hf_writer"
MODEL = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}


pytestmark = pytest.mark.usefixtures("hub")


def images(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np", **kwargs).images


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def published(folder, names=None):
    """What a folder holds, as a repo's files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


# Push


def test_push_is_one_commit_of_what_a_user_needs(hub, run):
    """A push is one commit of the model, its card and its samples, and of nothing else in the run's folder."""
    (run / "results.json").write_text('{"results": []}')
    url = push_to_hub(run, "org/tiny", token=WRITER, commit_message="Trained")
    assert url == f"{hub.endpoint}/org/tiny"
    assert set(hub.repos["org/tiny"].files()) == MODEL | {".gitattributes", "README.md", "samples.png", "results.json"}
    assert hub.repos["org/tiny"].messages == ["initial commit", "Trained"]
    assert b"secret" not in b"".join(hub.repos["org/tiny"].files().values())


def test_round_trip_is_bit_identical_in_ddim_hf_and_in_diffusers(hub, pipe):
    """A pushed pipeline comes back with the same images and our scheduler keys, and stock diffusers runs it."""
    pipe.push_to_hub("org/tiny", private=True, token=WRITER, commit_message="Mine")
    assert hub.repos["org/tiny"].private and hub.repos["org/tiny"].messages[1:] == ["Mine"]
    assert set(hub.repos["org/tiny"].files()) == MODEL | {".gitattributes", "README.md"}

    back = DDIMCustomPipeline.from_pretrained("org/tiny", token="hf_reader")
    assert back.scheduler.config.skip_type == "quad" and back.scheduler.config.beta_end == 0.03
    assert np.array_equal(images(back), images(pipe))

    stock = DiffusionPipeline.from_pretrained("org/tiny", token="hf_reader")
    assert type(stock) is DDIMPipeline and type(stock.scheduler) is DDIMScheduler
    assert np.array_equal(images(stock), images(DDIMPipeline(pipe.unet, DDIMScheduler(beta_end=0.03))))
    assert not hub.cdn_authorised


def test_save_with_push_is_the_same_push(hub, pipe, tmp_path):
    """save_pretrained(push_to_hub=True) pushes as push_to_hub does, in one commit, whatever else the folder holds."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id="org/tiny", token=WRITER, private=True)
    repo = hub.repos["org/tiny"]
    assert repo.private and len(repo.messages) == 2 and set(repo.files()) == MODEL | {".gitattributes", "README.md"}
    assert json.loads(repo.files()["model_index.json"])["_class_name"] == "DDIMPipeline"


def test_push_takes_no_path_of_this_machine_along(hub, run):
    """What diffusers and a run record of this machine's folders stays here, also for a model that was loaded."""
    (run / "results.json").write_text(
        '{"results": [{"metric": "fid", "value": 1.5, "reference": "/home/me/x/ref.npz"}]}'
    )
    DDIMCustomPipeline.from_pretrained(run).push_to_hub("org/again", token=WRITER)
    push_to_hub(run, "org/tiny", token=WRITER)
    for repo_id in ("org/again", "org/tiny"):
        for name, data in hub.repos[repo_id].files().items():
            assert b"/home/me" not in data and str(run.parent).encode() not in data, (repo_id, name)


def test_push_to_branch_to_pull_request_and_again(hub, run):
    """A push goes to the branch or pull request named, main stays as it is, and a repeat of a push commits nothing."""
    push_to_hub(run, "org/tiny", token=WRITER)
    repo, main = hub.repos["org/tiny"], hub.repos["org/tiny"].branches["main"]
    push_to_hub(run, "org/tiny", token=WRITER)
    assert len(repo.messages) == 2

    (run / "samples.png").write_bytes(b"other")
    assert push_to_hub(run, "org/tiny", token=WRITER, revision="v2").endswith("/org/tiny/tree/v2")
    assert repo.files("v2")["samples.png"] == b"other"
    assert push_to_hub(run, "org/tiny", token=WRITER, create_pr=True).endswith("/discussions/1")
    assert repo.branches["main"] == main


def test_no_pickle_goes_up(hub, run, pipe):
    """Pickled weights alone are no run to push, and asking for them by diffusers' argument is refused."""
    with pytest.raises(ValueError) as caught:
        pipe.push_to_hub("org/tiny", token=WRITER, safe_serialization=False)
    one_line(caught, "safetensors")
    (run / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "safetensors", "save_pretrained")
    assert not hub.requests


@pytest.mark.parametrize(
    ("repo_id", "token", "kind", "words"),
    [
        ("org/tiny", None, PermissionError, ["no token", "hf auth login"]),
        ("org/tiny", "hf_wrong", PermissionError, ["does not accept this token", "write access"]),
        ("org/tiny", "hf_reader", PermissionError, ["may not write to org/tiny", "settings/tokens"]),
        ("org/new", "hf_stranger", PermissionError, ["may not write to org/new", "settings/tokens"]),
        ("org/tiny/v2", WRITER, ValueError, ["'org/tiny/v2'", "user/name"]),
        ("org/ti ny", WRITER, ValueError, ["'org/ti ny'", "user/name"]),
    ],
)
def test_refused_push_says_what_to_do(hub, run, repo_id, token, kind, words):
    """No token, a wrong one, one without write access and a malformed repo id each end in one line with the remedy."""
    hub.add_repo("org/tiny", {"README.md": b"mine"})
    before = digest(run)
    with pytest.raises(kind) as caught:
        push_to_hub(run, repo_id, token=token)
    one_line(caught, *words)
    assert hub.repos["org/tiny"].messages == ["as published"] and digest(run) == before


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize(
    "where", ["repos/create", "GET /api/models/org/tiny", "preupload", "PUT /large", "commit/main"]
)
def test_push_outlasts_a_server_error(hub, run, where, status):
    """Two errors 429 or 500 in a row, wherever they fall, are asked again, and the push arrives as one commit."""
    hub.faults = [Fault(where, status=status, times=2)]
    push_to_hub(run, "org/tiny", token=WRITER)
    assert set(hub.repos["org/tiny"].files()) > MODEL and len(hub.repos["org/tiny"].messages) == 2


@pytest.mark.parametrize(("status", "words"), [(429, ["429", "wait"]), (500, ["HTTP 500", "later"])])
@pytest.mark.parametrize("where", ["preupload", "PUT /large", "commit/main"])
def test_lasting_server_error_leaves_repo_and_run_as_they_were(hub, run, where, status, words):
    """An error that lasts is asked again, ends in one clear line, and changes neither the repo nor the run."""
    hub.add_repo("org/tiny", {"README.md": b"mine"})
    hub.faults, before = [Fault(where, status=status)], digest(run)
    with pytest.raises(OSError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, *words)
    assert len([line for line in hub.requests if where.split("/")[0] in line]) >= 5
    assert hub.repos["org/tiny"].files() == {"README.md": b"mine"} and digest(run) == before


def test_push_without_a_network_says_so(run, monkeypatch):
    """A push that reaches no Hub ends in one line that says so."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "no connection to http://127.0.0.1:9", "check the network")
    assert "no folder" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named_where_there_is_no_network(monkeypatch):
    """Loading a mistyped folder without a network says that it is not here, not only that the Hub is out of reach."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as caught:
        DDIMCustomPipeline.from_pretrained("outputs/nowhere")
    one_line(caught, "there is no folder 'outputs/nowhere' here, and no connection to http://127.0.0.1:9")


def test_push_yields_to_a_commit_made_meanwhile(hub, run):
    """A commit that someone makes while a push is under way is not overwritten: the push stops and says so."""
    repo = hub.add_repo("org/tiny", {"README.md": b"mine"})
    hub.faults = [Fault("preupload", do=lambda: repo.commit("main", {"README.md": b"newer"}, "meanwhile"))]
    with pytest.raises(OSError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "org/tiny", "changed while", "push again")
    assert repo.files() == {"README.md": b"newer"}


def test_push_killed_before_its_commit_leaves_the_repo_as_it_was(hub, run, capsys, monkeypatch):
    """A push whose process dies while it uploads changes nothing on the Hub, and the command to retry it succeeds."""
    hub.add_repo("org/tiny", {"README.md": b"mine"})
    fork = multiprocessing.get_context("fork")  # a process of its own, without importing torch again
    client = fork.Process(target=push_to_hub, args=(run, "org/tiny"), kwargs={"token": WRITER})
    hub.faults = [Fault("PUT /large", status=500, times=1, do=lambda: client.kill())]
    client.start()
    client.join(60)
    assert client.exitcode == -9 and any("PUT /large" in line for line in hub.requests)
    assert hub.repos["org/tiny"].files() == {"README.md": b"mine"}

    script = str(Path(__file__).resolve().parents[2] / "examples/push_to_hub.py")
    monkeypatch.setattr(sys, "argv", [script, str(run), "org/tiny", "--token", WRITER])
    runpy.run_path(script, run_name="__main__")
    assert f"{hub.endpoint}/org/tiny" in capsys.readouterr().out
    assert set(hub.repos["org/tiny"].files()) > MODEL
    monkeypatch.setattr(sys, "argv", [script, str(run), "org/tiny"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(script, run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no token")


# Pull


def stock_folder(folder, **save):
    DDPMPipeline(tiny_unet(), DDPMScheduler(beta_end=0.03)).save_pretrained(folder, **save)
    return folder


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
    rooted = {Path(name).name: data for name, data in files.items() if index or name != "model_index.json"}
    hub.add_repo("google/ddpm", rooted | {"diffusion_pytorch_model.bin": b"pickle"})
    back = DDIMCustomPipeline.from_pretrained("google/ddpm")
    assert np.array_equal(images(back), images(DDIMCustomPipeline.from_pretrained(tmp_path)))
    assert not any(line.endswith(".bin") for line in hub.requests)


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


# The README on the Hub


def test_push_keeps_what_someone_wrote_into_the_readme(hub, run):
    """A push rewrites our marked part of the README alone: the text around it stays byte for byte, metadata too."""
    hub.add_repo(
        "org/tiny", {"README.md": b"---\nlicense: mit\nmine: [1, 2]\ntags:\n- art\n---\r\n# My words\r\n\xc3\xa9"}
    )
    push_to_hub(run, "org/tiny", token=WRITER)
    repo = hub.repos["org/tiny"]
    first = ModelCard(repo.files()["README.md"].decode())
    assert first.text.startswith("# My words\r\né") and "## Network" in first.text
    data = first.data.to_dict()
    assert (data["license"], data["mine"], data["library_name"]) == ("mit", [1, 2], "diffusers")
    assert {"art", "ddim"} <= set(data["tags"])

    edited = repo.files()["README.md"].replace(b"## Network", b"## Scribble") + b"\n\nLast words\r\n\\1 \n"
    repo.commit("main", repo.files() | {"README.md": edited}, "edited on the Hub")
    push_to_hub(run, "org/tiny", token=WRITER)
    again = repo.files()["README.md"]
    assert again == edited.replace(b"## Scribble", b"## Network")


def test_readme_that_cannot_be_read_stops_the_push(hub, run):
    """Where the Hub's README cannot be fetched or parsed, the push stops in one line: it is never taken for absent."""
    hub.add_repo("org/tiny", {"README.md": b"mine"})
    hub.faults = [Fault("resolve/.*/README.md", status=500)]
    with pytest.raises(OSError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "HTTP 500")
    hub.add_repo("org/tiny", {"README.md": b"---\na: [\n---\nmine"})
    hub.faults = []
    with pytest.raises(ValueError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "org/tiny", "README.md", "not YAML")
    assert hub.repos["org/tiny"].messages == ["as published"]


def test_unfinished_run_is_refused(tmp_path):
    """A folder that is no finished run is refused in one line that names what is missing."""
    with pytest.raises(FileNotFoundError) as caught:
        push_to_hub(tmp_path, "org/tiny", token=WRITER)
    one_line(caught, str(tmp_path), "model_index.json")


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


def test_whatever_stops_a_push_is_one_line_and_loses_nothing(hub, run, monkeypatch):
    """An error of the upload's own kind, as its transfer library raises, ends as an OSError of one line."""

    def broken(*args, **kwargs):
        raise RuntimeError("Data processing error\nwith a second line")

    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", broken)
    with pytest.raises(OSError, match="Data processing error") as error:
        push_to_hub(run, "org/tiny", token=WRITER)
    assert "\n" not in str(error.value) and sorted(path.name for path in run.rglob("*")) == before
