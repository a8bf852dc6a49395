"""README and docs/: every command in them is run, or at least taken by its own script; what they name is there.

A command runs as it is printed, but small and offline:

* in a folder (`house`) where outputs/demo and models/ddim-cifar10-64 are tiny models of 8x8 images, and path/to/images
  holds a few generated pictures; the Hub is the tests' own;
* with SMALL's flags after the printed ones, so that they win;
* in this process: what `accelerate launch` would start once is run once.

README's Python runs with the repository's real model. What needs GPUs, several machines or hours (NOT_RUN) is taken by
accelerate's parser and by the script's, as is every other command too.
"""

import argparse
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch._dynamo
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from PIL import Image
from training_runs import ROOT, save_features, save_tiny_model

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS = sorted(ROOT.glob("examples/**/*.py"))
LANGUAGES = {"sh", "python", "bibtex", "text", "json"}
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

TRAINING = "--max_train_steps 1 --batch_size 4 --resolution 8 --samplers none --feature_extractor none --logger none"
SMALL = {
    "train.py": f"{TRAINING} --validation_split none --mixed_precision no --compile False",
    "sample.py": "--num_images 4 --num_inference_steps 2",
    "evaluate.py": "--num_images 4 --num_inference_steps 2 --data_images 4 --feature_extractor features.pt",
    "reconstruct.py": "--num_images 2 --num_inference_steps 2 3",
    "interpolate.py": "--num_images 3 --num_inference_steps 2",
    "trajectory.py": "--num_images 2 --num_inference_steps 3",
    "nearest.py": "--num_images 2 --num_inference_steps 2",
    "push_to_hub.py": "",
}
# Values that stand for larger ones or for what lies on the real Hub, where they are printed.
STAND_INS = {"uoft-cs/cifar10": "path/to/images", "10,20,50,100": "2,3"}
NOT_RUN = {
    r"^make ": "minutes or hours; what their recipes run is parsed",
    r"^pip ": "tests/test_package.py installs the package",
    r"--multi_gpu": "several processes; tests/training/test_processes.py starts two",
    r"benchmarks/": "a GPU, or an hour; tests/test_examples.py runs benchmark.py's first part",
    r"cifar10-jpeg": "data that are not here",
}


def code(page: Path) -> list[tuple[int, str, str]]:
    """(line, language, text) of each fenced block of a page, and of each span in backticks (language "")."""
    text = page.read_text()
    found = [(text.count("\n", 0, block.start()) + 2, block[2], block[3]) for block in FENCE.finditer(text)]
    assert {language for _, language, _ in found} <= LANGUAGES, f"{page.name}: a block of an unknown language"
    prose = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in re.finditer(r"`([^`]+)`", prose):
        found.append((prose.count("\n", 0, span.start()) + 1, "", " ".join(span[1].split())))
    return found


def commands(page: Path) -> list[tuple[int, str]]:
    """(line, command) of each command on a page: the lines of its sh blocks, and what reads as one in its prose."""
    found = []
    for line, language, text in code(page):
        if language == "sh":
            lines = re.sub(r"\\\n *", " ", text).splitlines()
            found += [
                (line, shlex.join(words)) for words in (shlex.split(one, comments=True) for one in lines) if words
            ]
        elif not language and re.match(r"(python\d? |make |pip |accelerate launch .*examples/)", text):
            found.append((line, text))
    return found


COMMANDS = {f"{page.name}:{line} {text}": text for page in PAGES for line, text in commands(page)}
RUN = {name: text for name, text in COMMANDS.items() if not any(re.search(pattern, text) for pattern in NOT_RUN)}


def expand(command: str) -> list[list[str]]:
    """What a command runs, as words that begin with a program: make's recipes, and what accelerate launches."""
    words = shlex.split(command)
    while "=" in words[0]:  # FOO=1 program
        words = words[1:]
    program = Path(words[0]).name
    if program == "make":
        dry = ["make", "-n", "-C", ROOT, "-o", ".venv/installed", *words[1:]]
        made = subprocess.run(dry, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        lines = [line for line in made.stdout.replace("\\\n", " ").splitlines() if not line.startswith("make")]
        return [words for line in lines for words in expand(line)]
    if (program, *words[1:2]) == ("accelerate", "launch"):
        launched = launch_command_parser().parse_args(words[2:])
        return [["python", launched.training_script, *launched.training_script_args]]
    return [[program, *words[1:]]]


class Taken(BaseException):
    """A script's parser has taken its words: (parser, settings, words that it does not know)."""


def parse(monkeypatch, script: str, words: list[str]) -> tuple:
    """Run a script up to its parser, and return what that took; it exits where a word does not fit."""

    def taken(parser, *arguments, **keywords):
        raise Taken(parser, *original(parser, *arguments, **keywords))

    original = argparse.ArgumentParser.parse_known_args
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", taken)
        patch.setattr(sys, "argv", [script, *words])
        patch.syspath_prepend(str(Path(ROOT, script).parent))
        with pytest.raises(Taken) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.args


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_fit_their_scripts(monkeypatch, command):
    """Each command names a program or script that is there, and flags and values that it takes."""
    for program, *words in expand(command):
        if program == "pip":
            install, requirement = words
            extras = re.fullmatch(r"\.(?:\[(.*)\])?", requirement)[1]
            setup = ConfigParser()
            setup.read(ROOT / "setup.cfg")
            assert install == "install" and set(extras.split(",") if extras else ()) <= {
                *setup["options.extras_require"]
            }
        elif program.startswith("python") and words[0] == "-m":
            assert importlib.util.find_spec(words[1])
        elif program.startswith("python"):
            script, *words = words
            if "ArgumentParser" in Path(ROOT, script).read_text() or words:
                _, _, unknown = parse(monkeypatch, script, words)
                if unknown:  # cifar10.py hands them on
                    assert script == "examples/cifar10.py" and not parse(monkeypatch, "examples/train.py", unknown)[2]
        else:
            assert program in ("ruff", "source", "rm"), f"a program that no test knows: {command}"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What commands find where they run."""
    folder = tmp_path_factory.mktemp("template")
    save_tiny_model(folder / "outputs/demo")
    colour = build_unet(
        "digits", sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4
    )
    DDIMCustomPipeline(colour, DDIMSchedulerCustom()).save_pretrained(folder / "models/ddim-cifar10-64")
    save_features(folder / "features.pt", 64)
    os.symlink(ROOT / "examples", folder / "examples")
    pictures = folder / "path/to/images"
    pictures.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(pictures / f"{number}.png" for number in range(8)), folder / "a.png", folder / "b.png"):
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(name)
    return folder


@pytest.fixture
def house(template, tmp_path, monkeypatch, hub):
    """A copy of the template as working folder, before a Hub with models at org/...; no precision left from before."""
    shutil.copytree(template, tmp_path / "house", symlinks=True)
    monkeypatch.chdir(tmp_path / "house")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    model = template / "models/ddim-cifar10-64"
    files = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    for name in ("org/ddim-cifar10", "org/name"):
        hub.add_repo(name, files)
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch._dynamo.config.patch(disable=True):  # compiling takes a minute
        yield


def test_each_reason_not_to_run_is_needed():
    """Each pattern of NOT_RUN still meets a command."""
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in COMMANDS.values())] == []


@pytest.mark.parametrize("command", RUN.values(), ids=RUN)
def test_commands_run(monkeypatch, house, command):
    """Each command that needs no GPU, no second process and no hours ends well."""
    ((_, script, *words),) = expand(command)
    words = [STAND_INS.get(word, word) for word in words] + SMALL[Path(script).name].split()
    if Path(script).name == "train.py":
        digits = "digits" in words
        words += ["--pretrained", "outputs/demo" if digits else "models/ddim-cifar10-64"]
        words += ["--dataset_name", "digits" if digits else "path/to/images"]
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_runs(house, page):
    """The Python blocks of a page run one after the other, as printed; README's with the repository's own model."""
    if page.name == "README.md":
        shutil.rmtree("models")
        os.symlink(ROOT / "models", "models")
    names = {"__name__": "__main__"}
    for line, language, text in code(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + text, page, "exec"), names)  # a traceback names the page's line
    if page.name == "README.md":
        assert Image.open("sample.png").size == (32, 32)


def test_minimal_training(house):
    """examples/minimal.py trains, and its result loads and draws samples."""
    runpy.run_path("examples/minimal.py")["main"](steps=2, batch_size=4, num_samples=4, output_dir="minimal")
    assert Image.open("minimal/samples.png").size == (2 * 52, 2 * 52)
    assert DDIMCustomPipeline.from_pretrained("minimal")(output_type="pt").images.shape == (1, 1, 8, 8)
