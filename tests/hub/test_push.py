"""Models go up to a Hub and come down again over HTTP, through the real client; the Hub is `hub_server.py`."""

import json
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_unet
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline
from hub_models import MODEL, WRITER, digest, images, one_line
from hub_server import Fault
from huggingface_hub import ModelCard, constants

from ddim_hf.hub import push_to_hub
from ddim_hf.pipeline_ddim_custom import DDIMCustomPipeline
from ddim_hf.unet import weights_hash

pytestmark = pytest.mark.usefixtures("hub")


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


def test_push_outlasts_a_gateway(hub, run):
    """A gateway's page in place of the Hub's answer is asked again too, and ends in one line where it lasts."""
    hub.faults = [Fault("validate-yaml", status=502, times=2, page=True)]
    push_to_hub(run, "org/tiny", token=WRITER)
    assert len(hub.repos["org/tiny"].messages) == 2
    (run / "samples.png").write_bytes(b"other")
    hub.faults = [Fault("validate-yaml", status=502, page=True)]
    with pytest.raises(OSError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, hub.endpoint, "not its own", "later")
    assert len(hub.repos["org/tiny"].messages) == 2


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


def repeat(error: BaseException, monkeypatch, token: str = WRITER) -> str:
    """Run the command of an error's note as printed, with a stored token; what it prints."""
    (note,) = error.__notes__
    assert "\n" not in note and "hf_" not in note
    words = shlex.split(note.split("; to retry: ")[1])
    assert words[:2] == [sys.executable, "-c"]
    monkeypatch.setenv("HF_TOKEN", token)
    said = []
    exec(words[2], {"print": said.append})
    return said[0]


def test_a_pipelines_push_that_fails_keeps_the_model_and_says_how_to_go_on(hub, pipe, tmp_path, monkeypatch):
    """The folder that pipe.push_to_hub saved to stays, is named, and the command beside it, as printed and run from
    anywhere, makes the push that was meant; a push that succeeds leaves no folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(PermissionError) as caught:
        pipe.push_to_hub("org/tiny", 'It\'s "mine"', private=True, license="mit", token="hf_reader")
    one_line(caught, "may not write to org/tiny")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in caught.value.__notes__[0]
    monkeypatch.chdir("/")
    assert repeat(caught.value, monkeypatch) == f"{hub.endpoint}/org/tiny"
    repo = hub.repos["org/tiny"]
    assert repo.private and repo.messages[1:] == ['It\'s "mine"']
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert repo.files()[weights] == (kept / weights).read_bytes()
    assert ModelCard(repo.files()["README.md"].decode()).data.license == "mit"

    pipe.push_to_hub("org/tiny", token=WRITER)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_stopped_push_keeps_the_model_too(hub, pipe, tmp_path, monkeypatch):
    """Ctrl-C while the weights go up leaves the saved folder, and the command to go on with it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.faults = [Fault("PUT /large", status=500, times=1, do=lambda: os.kill(os.getpid(), signal.SIGINT))]
    with pytest.raises(KeyboardInterrupt) as caught:
        pipe.push_to_hub("org/tiny", token=WRITER)
    assert repeat(caught.value, monkeypatch) == f"{hub.endpoint}/org/tiny"
    assert set(hub.repos["org/tiny"].files()) > MODEL


def push_script(monkeypatch, *words) -> int:
    script = str(Path(__file__).resolve().parents[2] / "examples/push_to_hub.py")
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_the_scripts_push_that_fails_says_how_to_go_on(hub, run, monkeypatch, capsys):
    """push_to_hub.py ends with exit code 2 and one line: what is wrong, where the model lies, and the command."""
    before = digest(run)
    assert push_script(monkeypatch, run, "org/tiny", "--private", "--license", "mit", "--token", "hf_reader") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this token may not write to org/tiny") and f"the model lies in {run}" in line
    failed = OSError()
    failed.add_note(line)
    assert repeat(failed, monkeypatch) == f"{hub.endpoint}/org/tiny" and digest(run) == before
    assert hub.repos["org/tiny"].private
    assert ModelCard(hub.repos["org/tiny"].files()["README.md"].decode()).data.license == "mit"


def test_no_license_unless_it_is_given(hub, run):
    """A card names the license that is given, else the README's own, else none; one that the Hub does not know ends in
    one line."""

    def pushed(**kwargs):
        push_to_hub(run, "org/tiny", token=WRITER, **kwargs)
        return ModelCard(hub.repos["org/tiny"].files()["README.md"].decode()).data.to_dict().get("license")

    assert pushed() is None
    assert pushed(license="mit") == "mit"
    assert pushed() == "mit"
    assert pushed(license="cc-by-4.0") == "cc-by-4.0"
    with pytest.raises(ValueError) as caught:
        pushed(license="mine")
    one_line(caught, '"license" must be one of', "apache-2.0")
    with pytest.raises(ValueError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER, license="mit", subfolder="a")
    one_line(caught, "license", "subfolder")

    (run / "README.md").write_text("---\nlicense: other\n---\nMine.")
    del hub.repos["org/tiny"]
    assert pushed() == "other"


@pytest.mark.parametrize(
    ("dataset", "on_hub", "published"),
    [
        ("org/digits", True, ["org/digits"]),
        ("data/mine", False, None),
        ("data/mine", None, None),  # of a run that did not record it
        ("mine", False, None),
        ("/home/me/mine", False, None),
        ("digits", False, None),
    ],
)
def test_a_folder_is_never_published_as_a_dataset(hub, run, monkeypatch, tmp_path, dataset, on_hub, published):
    """The card names a dataset of the Hub's if the run recorded that it was one, from wherever the push runs."""
    result = {"metric": "fid", "value": 1.5, "reference": dataset, "split": "train"}
    (run / "results.json").write_text(json.dumps({"results": [result]}))
    record = {"dataset_name": dataset} | ({} if on_hub is None else {"dataset_on_hub": on_hub})
    (run / "config.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    push_to_hub(run, "org/tiny", token=WRITER)
    card = ModelCard(hub.repos["org/tiny"].files()["README.md"].decode())
    assert card.data.to_dict().get("datasets") == published
    assert card.data.eval_results[0].dataset_type == (dataset if published else "other")


def test_push_without_a_network_says_so(run, monkeypatch):
    """A push that reaches no Hub ends in one line that says so."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as caught:
        push_to_hub(run, "org/tiny", token=WRITER)
    one_line(caught, "no connection to http://127.0.0.1:9", "check the network")
    assert "no folder" not in str(caught.value)


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

    assert push_script(monkeypatch, run, "org/tiny", "--token", WRITER) == 0
    assert f"{hub.endpoint}/org/tiny" in capsys.readouterr().out
    assert set(hub.repos["org/tiny"].files()) > MODEL
    assert push_script(monkeypatch, run, "org/tiny") == 2
    assert capsys.readouterr().err.startswith("error: there is no token")


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


def test_a_pipelines_push_keeps_the_figures_of_its_weights(hub, run, pipe, recwarn):
    """A pipeline has no results. Pushed over a repo that has, its card quotes those of its weights as before and
    sets others apart; where the weights change, one line names the samples and results that are of other ones."""
    rows = [{"metric": "fid", "value": 3.25, "weights_hash": weights_hash(pipe.unet)}, {"metric": "kid", "value": 0.5}]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    push_to_hub(run, "org/tiny", token=WRITER)
    repo = hub.repos["org/tiny"]
    kept = {name: repo.files()[name] for name in ("samples.png", "results.json")}

    def card(pushed: DDIMCustomPipeline) -> ModelCard:
        pushed.push_to_hub("org/tiny", token=WRITER)
        assert kept.items() <= repo.files().items()
        return ModelCard(repo.files()["README.md"].decode())

    same = card(pipe)
    assert [row.metric_value for row in same.data.eval_results] == [3.25, 0.5] and "Measured too" not in same.text
    assert not [one for one in recwarn if "the repo keeps" in str(one.message)]

    other = DDIMCustomPipeline(tiny_unet(block_out_channels=(4, 4)), pipe.scheduler)
    with pytest.warns(UserWarning, match="the repo keeps results.json and samples.png from before, .* other weights"):
        changed = card(other)
    assert changed.data.eval_results is None and "No metric has been measured" in changed.text
    assert "3.25" in changed.text.split("but not on these weights:")[1] and "Kernel" not in changed.text

    kept["results.json"] = b"[1]"  # another program's
    repo.commit("main", repo.files() | kept, "by hand")
    assert "Measured too" not in card(other).text


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


def test_whatever_stops_a_push_is_one_line_and_loses_nothing(hub, run, monkeypatch):
    """An error of the upload's own kind, as its transfer library raises, ends as an OSError of one line."""

    def broken(*args, **kwargs):
        raise RuntimeError("Data processing error\nwith a second line")

    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", broken)
    with pytest.raises(OSError, match="Data processing error") as error:
        push_to_hub(run, "org/tiny", token=WRITER)
    assert "\n" not in str(error.value) and sorted(path.name for path in run.rglob("*")) == before
