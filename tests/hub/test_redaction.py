"""Nothing that is published names a folder of this machine, and the commands on a card run in a checkout."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import tiny_unet
from hub_models import WRITER

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.hub import push_to_hub
from ddim_hf.hub.redaction import redact, redact_command

ROOT = Path(__file__).resolve().parents[2]
SPELLINGS = [
    "/home/me/ref.npz",
    "/ref.npz",
    "file:///home/me/ref.npz",
    "FILE:///C:/Users/me/ref.npz",
    "/home/me/my own data/ref.npz",
    "/home/me/Bob's, and ours/ref.npz",
    "~/x/ref.npz",
    "~someone/x/ref.npz",
    "../../me/ref.npz",
    "C:\\Users\\me\\my data\\ref.npz",
    "c:/Users/me/ref.npz",
    "\\\\server\\home\\me\\ref.npz",
    "//server/home/me/ref.npz",
    "zip:///home/me/ref.npz",
]
GOING_UP = [
    "./../../me/photos/ref.npz",
    "data/../../me/private/ref.npz",
    "data/my-set/../../../me/my own data/ref.npz",
    "/home/me/my data/../ref.npz",
    "data\\..\\..\\me\\ref.npz",
]


@pytest.mark.parametrize("path", SPELLINGS)
def test_a_path_out_of_the_working_directory_is_its_last_part(path):
    """In every spelling, alone, within a text, in a list, in what JSON holds, and as a command's word or flag."""
    assert redact(path) == "ref.npz"
    assert redact(f"real images ({path})") == "real images (ref.npz)"
    assert redact(f"from {path} to {path}") == "from ref.npz to ref.npz"
    assert redact({"rows": [{"reference": path, "value": 1.5}, None]}) == {
        "rows": [{"reference": "ref.npz", "value": 1.5}, None]
    }
    command = shlex.join(["python", "examples/evaluate.py", path, f"--reference={path}"])
    assert redact_command(command) == "python examples/evaluate.py ref.npz --reference=ref.npz"


@pytest.mark.parametrize("path", GOING_UP)
def test_a_path_that_goes_up_on_its_way_is_its_last_part(path):
    """Alone, within a text, and as a command's word or flag."""
    assert redact(path) == "ref.npz"
    assert redact(f"real images ({path})") == "real images (ref.npz)"
    command = shlex.join(["python", "examples/evaluate.py", path, f"--reference={path}"])
    assert redact_command(command) == "python examples/evaluate.py ref.npz --reference=ref.npz"


@pytest.mark.parametrize(
    "text",
    [
        "./examples/train.py",
        "outputs/my run/a",
        "org/name",
        "https://huggingface.co/org/name",
        "see s3://bucket/key, hf://datasets/org/name",
        "hf://datasets/org/name@main/file, https://host/@user/x, http://[::1]:80/x, https://host/a/../b",
        "zip://a.png::https://host/x.zip",
        "is it https://host/x?",
        "wait... /",
        "50/100 and/or 1 / 2",
        "ratio: 3:4",
        "fast sampling, bfloat16",
        "50:0.0:500:64",
        "~5 images",
    ],
)
def test_other_text_stays(text):
    """Paths below the working directory, ids, addresses and fractions are no folders of the machine's."""
    assert redact(text) == text
    assert redact_command(shlex.join(["x", *text.split()])) == shlex.join(["x", *text.split()]).replace("./ex", "ex")


@pytest.mark.parametrize(
    "address, shown",
    [
        ("https://alice:s3cr3t@host/x?token=abc", "https://host/x"),
        ("s3://key:se,cr;et@bucket/x", "s3://bucket/x"),
        ("https://alice@host:80/x?a=1;b=2&sig=c", "https://host:80/x"),
        ("zip://a.png::/home/me/x.zip", "zip://a.png::x.zip"),
    ],
)
def test_an_address_keeps_no_credentials(address, shown):
    """Of an address the user, the password and the query go, in a text and as a command's word."""
    assert redact(f"from {address} and ({address})") == f"from {shown} and ({shown})"
    assert redact_command(shlex.join(["x", f"--data={address}"])) == f"x --data={shown}"


@pytest.mark.parametrize("place", ["", "./", f"{ROOT}/", "/home/me/my code/ddim/", "~/ddim/", "C:\\ddim hf\\"])
def test_a_command_names_the_script_that_a_checkout_has(place):
    """A script is named from the sources' folder, wherever those lay, and what else the command says stays."""
    script = place + ("examples\\train.py" if "\\" in place else "examples/train.py")
    flags = "--samplers 50:0.0:500:64 --output_dir outputs/digits --ema_decay 0.999,0.9999"
    launched = ["ACCELERATE_USE_CPU=true", "/home/me/.venv/bin/accelerate", "launch", "--config_file", "/etc/acc.yaml"]
    shown = redact_command(shlex.join([*launched, script, *flags.split()]))
    assert shown == f"ACCELERATE_USE_CPU=true accelerate launch --config_file acc.yaml examples/train.py {flags}"
    assert (ROOT / "examples/train.py").is_file()


def test_tokens_are_named_by_their_variable():
    """A token in a text or command becomes $HF_TOKEN, which a shell fills in."""
    assert redact_command("python examples/push_to_hub.py a b --token hf_abcdefghijkl").endswith("--token $HF_TOKEN")
    assert redact("of hf_abcdefghijkl") == "of $HF_TOKEN"
    assert redact_command("echo 'unbalanced /home/me/x") == "echo 'unbalanced x"


def test_the_names_of_classes_go_up_as_they_are(hub, tmp_path):
    """Names that look like paths or tokens are the same on the Hub: in the model, in its figures and on its card."""
    names = ["/animal/cat", "/vehicle/cat", "hf_something1", "/m/01g317"]
    pipe = DDIMCustomPipeline(tiny_unet(num_class_embeds=5), DDIMSchedulerCustom(), id2label=dict(enumerate(names)))
    pipe.save_pretrained(tmp_path / "run")
    row = {"metric": "label_accuracy", "value": 0.5, "by_class": [[name, 2, 0.5] for name in names]}
    (tmp_path / "run/results.json").write_text(json.dumps({"results": [row]}))
    (tmp_path / "run/config.json").write_text(json.dumps({"label_names": names}))
    push_to_hub(tmp_path / "run", "org/tiny", token=WRITER)
    assert DDIMCustomPipeline.from_pretrained("org/tiny").id2label == dict(enumerate(names))
    files = hub.repos["org/tiny"].files()
    assert json.loads(files["results.json"])["results"] == [row]
    card = files["README.md"].decode()
    assert "0 /animal/cat, 1 /vehicle/cat, 2 hf_something1, 3 /m/01g317." in card and "label_names" not in card


def test_nothing_that_goes_up_names_a_folder(hub, run):
    """A push of a run whose every record names this machine's folders, in all spellings, publishes none of them."""
    paths = SPELLINGS + GOING_UP
    rows = [{"metric": "fid", "value": 1.5, "reference": path, "model": path, "network": path} for path in paths]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    command = shlex.join(["python", str(ROOT / "examples/train.py"), "--cache_dir", *paths])
    for path in paths:
        (run / "config.json").write_text(json.dumps({"command": command, "dataset_name": path, "pretrained": path}))
        push_to_hub(run, "org/tiny", token=WRITER)
        files = {
            name: data for name, data in hub.repos["org/tiny"].files().items() if not name.endswith("safetensors")
        }
        for name, data in files.items():
            for word in (b"home", b"Users", b"server", b"someone", b"Bob", b"me/", str(ROOT).encode()):
                assert word not in data, (path, name)
