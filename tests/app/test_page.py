"""A Space, pushed, downloaded, and run from its requirements alone: what other programs can ask of its server."""

import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from importlib.metadata import metadata
from pathlib import Path

import gradio_client
import numpy as np
import pytest
import yaml
from conftest import HUB
from hub_models import WRITER, one_line, published
from huggingface_hub import HfApi, snapshot_download
from packaging.specifiers import SpecifierSet
from page_pictures import files, pixels
from PIL import Image
from test_packaging import new_environment, required

from ddim_hf.app.space import push_space, space_files
from ddim_hf.generation import load_pipeline


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def space(model, tmp_path_factory):
    """What lies on the Hub after a push of the page of org/model, downloaded."""
    HUB.reset()
    HUB.add_repo("org/model", published(model))
    push_space("org/page", "org/model", token=WRITER)
    return Path(snapshot_download("org/page", repo_type="space", local_dir=tmp_path_factory.mktemp("space")))


@pytest.fixture(scope="module")
def address(space, tmp_path_factory):
    """Where the Space's app.py is served, in an environment that holds what its requirements.txt asks for."""
    python, packages = new_environment(tmp_path_factory.mktemp("space-environment"))
    for dist in required((space / "requirements.txt").read_text().splitlines()).values():
        for top in {file.parts[0] for file in dist.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(dist.locate_file(top)).resolve())
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV_"))}
    environment = kept | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio"))}
    with subprocess.Popen(
        [python, "app.py"], cwd=space, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        told = []
        for line in server.stdout:
            told.append(line)
            if found := re.search(r"shown at (http://[\d.:]+)", line):
                break
        assert found, "".join(told)
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield found[1]
        server.terminate()


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def test_a_space_says_what_it_is(space):
    """README.md names the sdk, its version, the app and the model; requirements.txt the core and gradio alone."""
    card = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["models"] == ["org/model"]
    needed = (space / "requirements.txt").read_text().splitlines()
    assert f"gradio=={card['sdk_version']}" in needed
    assert card["python_version"] in SpecifierSet(metadata("ddim_hf")["Requires-Python"])
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in needed}
    assert names == {"torch", "diffusers", "huggingface_hub", "safetensors", "numpy", "pillow", "gradio"}


def test_a_second_push_replaces_what_is_no_longer_there(space, tmp_path):
    """Files of ddim_hf that are gone go from the Space; files of the owner's stay; the head is one commit further."""
    repo = HUB.repos["spaces/org/page"]
    repo.commit("main", repo.files() | {"ddim_hf/old.py": b"", "mine.txt": b"kept"}, "by hand")
    count = len(repo.messages)
    assert push_space("org/page", "org/model", token=WRITER).endswith("/spaces/org/page")
    assert "ddim_hf/old.py" not in repo.files() and repo.files()["mine.txt"] == b"kept"
    assert len(repo.messages) == count + 1
    assert HfApi().space_info("org/page").id == "org/page"


def test_a_model_that_not_all_may_read_is_said(space, model, recwarn):
    """A private model is pushed with one line on the secret that the Space needs; a public one without a word."""
    push_space("org/page", "org/model", token=WRITER)
    assert not recwarn.list
    HUB.add_repo("org/hidden", published(model), private=True)
    with pytest.warns(
        UserWarning, match="org/hidden is private, .* make the model public, or set the secret HF_TOKEN"
    ):
        push_space("org/page", "org/hidden", token=WRITER)
    push_space("org/page", "org/model", token=WRITER)


def test_a_space_may_take_the_package_from_elsewhere():
    """With `package` the requirement stands in requirements.txt, and no file of ddim_hf goes up."""
    made = space_files("org/page", "org/model", "ddim_hf @ git+https://host.example/ddim_hf")
    assert set(made) == {"README.md", "requirements.txt", "app.py"}
    assert made["requirements.txt"].decode().startswith("ddim_hf @ git+https://host.example/ddim_hf\ngradio==")


@pytest.mark.parametrize(
    "name, token, words",
    [("org/nothing", WRITER, ["org/nothing"]), ("org/model", "hf_reader", ["may not write"])],
)
def test_a_push_that_cannot_be_gets_one_line(space, name, token, words):
    """A model that is not on the Hub, and a token that may not write."""
    with pytest.raises(OSError) as caught:
        push_space("org/page", name, token=token)
    one_line(caught, *words)


def test_a_model_must_be_on_the_hub(model):
    """A folder of this machine is none that a Space could load."""
    with pytest.raises(ValueError) as caught:
        push_space("org/page", str(model))
    one_line(caught, "push_to_hub.py")


# Its server


def test_other_programs_get_the_same_images(client, model):
    """By gradio_client /images returns, as PNG, the images that the pipeline makes from these settings."""
    shown = client.predict(num_images=3, steps=4, seed=7, eta=0.5, tau="uniform", api_name="/images")
    expected = load_pipeline(model, tau="uniform")(3, num_inference_steps=4, eta=0.5, seeds=[7, 8, 9]).images
    assert np.array_equal(pixels(files(" ".join(shown))), pixels(expected))


def test_a_request_that_fails_leaves_the_server_up(client):
    """A wrong one gets the sentence that says why, and the next one its images."""
    for wrong, words in [
        ({"steps": 5000}, "5000"),
        ({"num_images": 65}, "65"),
        ({"tau": "x"}, "'x'"),
        ({"eta": 2}, "eta"),
    ]:
        with pytest.raises(gradio_client.exceptions.AppError, match=words):
            client.predict(**wrong, api_name="/images")
    assert len(client.predict(steps=1, api_name="/images")) == 1


def test_two_programs_at_once_get_each_its_own(client, address):
    """Requests that wait for each other end with the images of their own seeds."""
    clients = [client, gradio_client.Client(address, verbose=False)]
    jobs = [one.submit(num_images=2, steps=20, seed=seed, api_name="/images") for one in clients for seed in (1, 50)]
    first, other, *again = [job.result() for job in jobs]
    assert [first, other] == again and first != other


def ask(address: str, path: str, data: dict | None = None) -> str:
    content = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(f"{address}{path}", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_no_path_that_a_visitor_names_is_read(address, model, tmp_path):
    """Neither an upload's path, nor a file's address, nor a model's name brings anything of the server's disk."""
    Image.new("L", (8, 8), 77).save(tmp_path / "secret.png")
    with pytest.raises(urllib.error.HTTPError):
        ask(address, f"/gradio_api/file={tmp_path}/secret.png")
    config = json.loads(ask(address, "/config"))
    image = next(part["id"] for part in config["components"] if part["props"].get("label") == "Your image")
    encode = next(
        one for one in config["dependencies"] if one["inputs"][1:2] == [image] and one["targets"][0][1] == "click"
    )
    upload = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    job = {"data": ["", upload, 2], "fn_index": encode["id"], "session_hash": "visitor"}
    ask(address, "/gradio_api/queue/join", job)
    told = ask(address, "/gradio_api/queue/data?session_hash=visitor")
    assert '"success":false' in told and "process_generating" not in told
    job = {"data": ["", {"path": upload["path"]}, 2], "fn_index": encode["id"], "session_hash": "unmarked"}
    ask(address, "/gradio_api/queue/join", job)
    told = ask(address, "/gradio_api/queue/data?session_hash=unmarked")
    assert "this is a path and no upload" in told and "data:image" not in told
    assert not any(part["props"].get("label") == "Folder, or id on the Hub" for part in config["components"])
    job = {"data": [str(model), None, 2], "fn_index": encode["id"], "session_hash": "other"}
    ask(address, "/gradio_api/queue/join", job)
    assert "this page shows one model alone" in ask(address, "/gradio_api/queue/data?session_hash=other")


def test_the_page_asks_nothing_of_other_hosts(address):
    """No font, style or image of the page comes from elsewhere."""
    page = ask(address, "/")
    assert not re.findall(r"fonts\.g\w+\.com", page + ask(address, "/theme.css"))
