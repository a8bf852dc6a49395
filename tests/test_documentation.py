"""README and docs/: every command in them is run, or at least taken by its own script; what they name is there.

A command runs as it is printed, but small and offline:

* in a folder (`house`) where outputs/demo (ten classes), outputs/animals, outputs/cifar10-64-classes and those of
  models/ are tiny models of 8x8 images, and path/to/images holds a few pictures in two folders; the Hub is the tests'
  own;
* with SMALL's flags after the printed ones, so that they win;
* in this process: what `accelerate launch` would start once is run once.

README's Python runs with the repository's real models. What needs GPUs, several machines or hours (NOT_RUN) is taken
by accelerate's parser and by the script's, as is every other command too.
"""

import argparse
import functools
import importlib.util
import inspect
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
import torch
import torch._dynamo
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from PIL import Image
from training_runs import ROOT, save_features, save_tiny_model

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
from ddim_hf.evaluation import Question
from ddim_hf.reports.markdown import table
from ddim_hf.training.peers import FLAGS_OF_DIFFUSERS
from ddim_hf.training.recipe_table import recipe_table

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/**/*.py"))
PAGE = "ddim_hf.app"  # a module with a command line
WITHOUT_ARGUMENTS = ("examples/minimal.py", "examples/benchmarks/benchmark_processes.py")
LANGUAGES = {"sh", "python", "bibtex", "text", "json"}
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

TRAINING = "--max_train_steps 1 --batch_size 4 --resolution 8 --samplers none --feature_extractor none --logger none"
SMALL = {
    "train.py": f"{TRAINING} --validation_split none --mixed_precision no --compile False",
    "sample.py": "--num_images 4 --num_inference_steps 2",
    "evaluate.py": "--num_images 40 --num_inference_steps 2 --feature_extractor features.pt",
    "reconstruct.py": "--num_images 2 --num_inference_steps 2 3",
    "interpolate.py": "--num_images 3 --num_inference_steps 2",
    "trajectory.py": "--num_images 2 --num_inference_steps 3",
    "nearest.py": "--num_images 2 --num_inference_steps 2",
    "push_to_hub.py": "",
    "make_patches.py": "--resolution 8 --num_images 4",
    "push_space.py": "",
    "calibrate.py": "--num_inference_steps 2,3 --num_images 20 --teacher_steps 4",
}
# Values that stand for larger ones or for what lies on the real Hub, where they are printed.
STAND_INS = {"uoft-cs/cifar10": "path/to/images", "10,20,50,100": "2,3"}
NOT_RUN = {
    r"^make ": "minutes or hours; what their recipes run is parsed",
    r"^(pip|source) ": "tests/test_packaging.py installs the package",
    r"^(apt-get|find) ": "Debian's packages are not here",
    r"-m pytest": "these tests",
    r"-m ddim_hf.app": "serves until it is stopped; tests/app/ asks its server",
    r"--multi_gpu": "several processes; tests/training/test_processes.py starts two",
    r"benchmarks/": "a GPU, or an hour; tests/test_examples.py runs benchmark.py's first part",
    r"choose_ema\.py": "a run with checkpoints; tests/training/test_choice_of_average.py runs it",
    r"outputs/(short|chosen|cifar10-64-on)": "hours; tests/test_examples.py runs these scripts",
    r"minimal\.py": "a minute; test_minimal_training runs it with fewer steps",
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


class Reached(BaseException):
    """A script has come to its parser, the first argument."""


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser that a script, or a module, makes for itself."""

    def reached(parser, *_, **__):
        raise Reached(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", reached)
        patch.setattr(sys, "argv", [script])
        patch.syspath_prepend(str(Path(ROOT, script).parent))
        with pytest.raises(Reached) as end:
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
    return end.value.args[0]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_fit_their_scripts(command):
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
            if words[1] == PAGE:
                assert not parser_of(PAGE).parse_known_args(words[2:])[1]
        elif program == "bash":
            assert (ROOT / words[0]).is_file()
        elif program.startswith("python"):
            script, *words = words
            if script in WITHOUT_ARGUMENTS:
                assert not words
                continue
            _, unknown = parser_of(script).parse_known_args(words)
            if unknown and script == "examples/reproduce.py":  # it hands them on
                _, unknown = parser_of("examples/train.py").parse_known_args(unknown)
            assert not unknown
        else:
            assert program in ("ruff", "source", "rm", "apt-get", "find"), f"a program that no test knows: {command}"


@pytest.mark.parametrize("command", [text for text in COMMANDS.values() if "examples/evaluate.py" in text])
def test_evaluations_ask_for_nothing_in_vain(command):
    """No documented evaluation, those included that are not run here, has a setting that its others make void."""
    for _, script, *words in expand(command):
        settings = vars(parser_of(script).parse_args(words))
        del settings["beside"]
        Question(**settings).check()


class Sides(torch.nn.Module):
    """Two classes, by which half of an image is the brighter one."""

    def forward(self, images):
        return torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], 1)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What commands find where they run."""
    folder = tmp_path_factory.mktemp("template")
    save_tiny_model(folder / "outputs/demo", names="0123456789")
    save_tiny_model(folder / "models/digits")
    (folder / "outputs/demo/config.json").write_text('{"dataset_name": "digits", "validation_split": "test"}')
    colour = build_unet(
        "digits", sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4
    )
    colour.conv_out.weight.data *= 0.1  # nearer to a trained network, whose exact encoding converges
    DDIMCustomPipeline(colour, DDIMSchedulerCustom()).save_pretrained(folder / "models/ddim-cifar10-64")
    animals = build_unet("digits", block_out_channels=(8, 8), norm_num_groups=4, num_class_embeds=4)
    names = {0: "cat", 1: "dog", 2: "horse"}
    DDIMCustomPipeline(animals, DDIMSchedulerCustom(), names).save_pretrained(folder / "outputs/animals")
    layout = dict(in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, num_class_embeds=3)
    classes = DDIMCustomPipeline(build_unet("digits", **layout), DDIMSchedulerCustom(), {0: "cat", 1: "dog"})
    for name in ("outputs/cifar10-64-classes", "models/ddim-cifar10-64-classes"):
        classes.save_pretrained(folder / name)
    torch.jit.script(Sides()).save(folder / "classifier.pt")
    save_features(folder / "features.pt", 64)
    os.symlink(ROOT / "examples", folder / "examples")
    pictures = [folder / "path/to/images" / kind / f"{number}.png" for kind in ("cat", "dog") for number in range(4)]
    random = np.random.default_rng(0)
    for name in (*pictures, folder / "a.png", folder / "b.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
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
    words = [STAND_INS.get(word, word) for word in words]
    on_data = {"--denoising_loss", "--reconstruction"} & set(words)
    words += [] if "--no_distance" in words else SMALL[Path(script).name].split()
    words += ["--data_images", "4"] if on_data else []
    if Path(script).name == "train.py":
        digits = "digits" in words
        words += ["--pretrained", "models/digits" if digits else "models/ddim-cifar10-64"]
        words += ["--dataset_name", "digits" if digits else "path/to/images"]
        if "--output_dir" in words:  # where a model stands in for the one that is to be trained
            shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_runs(house, page):
    """The Python blocks of a page run one after the other, as printed; README's with the repository's own models."""
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


# What the pages name


def spans(page: Path) -> list[str]:
    return [text for _, language, text in code(page) if not language]


def test_flags_are_there():
    """Each flag that a page names in its prose is one of a script's, or of `accelerate launch`."""
    parsers = [parser_of(script) for script in [*SCRIPTS, PAGE] if script not in WITHOUT_ARGUMENTS]
    known = {"--help", "--traceback"}.union(*(parser._option_string_actions for parser in parsers))
    known |= {*launch_command_parser()._option_string_actions, *FLAGS_OF_DIFFUSERS}
    named = {(page.name, flag) for page in PAGES for text in spans(page) for flag in re.findall(r"--\w+", text)}
    assert {(page, flag) for page, flag in named if flag not in known} == set()


def test_tables_of_training_are_the_scripts_own():
    """docs/training.md has the recipes as --list_recipes prints them, and each flag of diffusers' script with ours."""
    text = (ROOT / "docs/training.md").read_text()
    assert recipe_table() in text
    assert table(["theirs", "ours"], [[f"`{flag}`", ours] for flag, ours in FLAGS_OF_DIFFUSERS.items()]) in text


def test_files_are_there():
    """Each file of the repository that a page names or links to is there, and so is each heading that it links to."""
    for page in PAGES:
        paths = [text for text in spans(page) if re.match(r"(ddim_hf|examples|tests|docs|models)/[^ ]+$", text)]
        assert [path for path in paths if not (ROOT / path).exists()] == [], page.name
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, heading = target.partition("#")
            if "://" not in target:
                other = page.parent / path if path else page
                assert other.exists(), f"{page.name} links to {target}"
                assert not heading or heading in headings(other), f"{page.name} links to {target}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_everything_public_is_documented():
    """docs/api.md has each public name, each method of the pipeline and the scheduler, and each script; a page shows
    each script's command."""
    import ddim_hf

    api = ROOT / "docs/api.md"
    words = set(re.findall(r"\w+", " ".join(text for _, _, text in code(api))))
    public = set(ddim_hf.__all__)
    for kind in (DDIMCustomPipeline, DDIMSchedulerCustom):
        public |= {name for name, value in vars(kind).items() if not name.startswith("_") and inspect.isroutine(value)}
    assert public - words == set()

    shown = [words[1] for command in COMMANDS.values() for words in expand(command) if words[0].startswith("python")]
    tools = {"examples/benchmarks/benchmark_processes.py"}  # benchmark.py calls it
    assert set(SCRIPTS) - tools - set(shown) == set() and set(SCRIPTS) - tools - set(spans(api)) == set()


def test_readme_is_one_screen():
    """README begins with a picture, has the commands that set it up, and stays below 140 lines."""
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 140 and text.index("![") < text.index("```")
    assert "make demo" in text and "make test" in text
