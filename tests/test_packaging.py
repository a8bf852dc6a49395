"""The package as others get it: built, installed into fresh environments, and run there without the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "ddim-cifar10-64"
NOT_CORE = "accelerate datasets transformers cleanfid torchvision scipy matplotlib sklearn tensorboard pyarrow".split()
NOT_CORE += ["gradio"]


def command(*words, cwd: Path) -> str:
    """What a command prints, in an environment without this process's paths; it must succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV_"))}
    environment = kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def new_environment(folder: Path) -> tuple[Path, Path]:
    """A virtual environment without any package: its Python, and where its packages go."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", packages


def install(what: Path, python: Path, *options: str):
    # The tests' own environment, where that one sees it, may have this version: it is to be installed all the same.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed"]
    command(*pip, *options, what, cwd=python.parent)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source archive, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "models", "outputs", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    hooks = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('..'); build_wheel('..')"
    command(sys.executable, "-c", hooks, cwd=folder / "tree")
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and all that the tests' own environment holds."""
    python, packages = new_environment(tmp_path_factory.mktemp("full"))
    (packages / "tests_environment.pth").write_text(
        "\n".join(dict.fromkeys(str(d.locate_file("")) for d in distributions()))
    )
    install(built[0], python)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(built):
    """Every module and py.typed are in it, and no test or example; the metadata has the README and all extras."""
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    inside = {name for name in names if ".dist-info/" not in name}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "ddim_hf").rglob("*.py")}
    assert inside == modules | {"ddim_hf/py.typed", "ddim_hf/app/page.css", "ddim_hf/app/page.js"}
    assert "Description-Content-Type: text/markdown" in metadata and "# ddim_hf" in metadata
    assert set(re.findall(r"Provides-Extra: (\w+)", metadata)) == {"train", "eval", "demo", "app", "test"}


def test_the_source_archive_installs_as_the_wheel_does(built, installed, tmp_path):
    """What pip builds from the archive is file for file what the wheel holds; the scripts and docs are in it too."""
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("examples/sample.py", "docs/training.md", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        assert name in names
    assert not any(name.startswith(("tests", "models")) for name in names)
    python, packages = new_environment(tmp_path / "from-source")
    shutil.copy(next(installed.parents[1].glob("lib/python*/site-packages")) / "tests_environment.pth", packages)
    install(built[1], python, "--no-build-isolation")
    with zipfile.ZipFile(built[0]) as wheel:
        for name in wheel.namelist():
            if ".dist-info/" not in name:
                assert (packages / name).read_bytes() == wheel.read(name)


def test_the_three_lines_of_the_readme_run_from_the_wheel(installed, tmp_path):
    """README's first Python block, in fewer steps, leaves its picture by the installed package, not by the tree's."""
    (block,) = re.findall(r"## Try it.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "models").symlink_to(ROOT / "models")
    block, changed = re.subn(r"num_inference_steps=\d+", "num_inference_steps=2", block)
    assert changed == 1
    script = tmp_path / "lines.py"
    script.write_text(f"{block}\nimport ddim_hf\nprint(ddim_hf.__file__)\n")
    place = command(installed, script, cwd=tmp_path).splitlines()[-1]
    assert Path(place).is_relative_to(installed.parents[1])
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


# The core alone


def required(names: list[str]) -> dict[str, Distribution]:
    """The distributions that these need, themselves included, of those in the tests' environment."""
    # Of two of one name the first on the path is imported: setuptools, once imported, adds older ones of its own.
    known = {canonicalize_name(dist.metadata["Name"]): dist for dist in reversed(list(distributions()))}
    found, pending = {}, [Requirement(name) for name in names]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name not in known:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[name] = known[name]
            pending += map(Requirement, known[name].requires or [])
    return found


@pytest.fixture(scope="module")
def core(built, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and what its core requires, and nothing else."""
    python, packages = new_environment(tmp_path_factory.mktemp("core"))
    install(built[0], python)
    (metadata,) = packages.glob("ddim_hf-*.dist-info")
    own = Distribution.at(metadata)
    for dist in required([line for line in own.requires if "extra ==" not in line]).values():
        for top in {file.parts[0] for file in dist.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(dist.locate_file(top)).resolve())
    return python


CORE_ALONE = """
import importlib.util, sys
here = [name for name in sys.argv[2:] if importlib.util.find_spec(name)]
assert not here, here
import torch
from ddim_hf import DDIMCustomPipeline
pipe = DDIMCustomPipeline.from_pretrained(sys.argv[1])
images = pipe(2, seeds=[0, 1], num_inference_steps=2, eta=1.0).images
latents = pipe.invert(images, num_inference_steps=2).latents
again = pipe.reconstruct(images, num_inference_steps=2)
strip = pipe.interpolate(3, 7, num_images=3, num_inference_steps=2).images
assert len(images) == len(again.images) == 2 and len(strip) == 3 and torch.isfinite(latents).all()
pipe.save_pretrained("saved")
"""


def test_the_core_alone_samples_encodes_and_interpolates(core, tmp_path):
    """With the core's requirements and nothing of the extras, the pipeline does all that it does."""
    (tmp_path / "core.py").write_text(CORE_ALONE)
    command(core, tmp_path / "core.py", MODEL, *NOT_CORE, cwd=tmp_path)
    assert (tmp_path / "saved" / "model_index.json").is_file()


SCRIPTS_IN_TURN = """
import json, runpy, sys
for words in map(json.loads, sys.argv[1:]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
"""


def test_the_scripts_that_sample_run_with_the_core_alone(core, tmp_path):
    """sample.py says what it takes and fills a folder, in both formats; interpolate.py and trajectory.py draw."""
    few = ["--num_images", "2", "--num_inference_steps", "2"]
    calls = [
        ["sample.py", "--help"],
        ["sample.py", str(MODEL), *few, "--output_dir", "png", "--grid", "--gif"],
        ["sample.py", str(MODEL), *few, "--output_dir", "npy", "--format", "npy"],
        ["interpolate.py", str(MODEL), "interpolate", *few],
        ["trajectory.py", str(MODEL), "trajectory", *few],
    ]
    (tmp_path / "in_turn.py").write_text(SCRIPTS_IN_TURN)  # in one process, as each start takes seconds
    words = [json.dumps([str(ROOT / "examples" / script), *rest]) for script, *rest in calls]
    assert "--num_images" in command(core, tmp_path / "in_turn.py", *words, cwd=tmp_path)
    names = "png/samples.png png/denoising.gif png/images/000001.png npy/images/00000000-00000001.npy".split()
    assert all((tmp_path / name).is_file() for name in names)
    assert all(list((tmp_path / name).glob("*.png")) for name in ("interpolate", "trajectory"))


# What is said of the package


def test_the_version_is_said_once_everywhere():
    """setup.cfg, CITATION.cff and the newest entry of CHANGELOG.md name one version."""
    (version,) = re.findall(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [version]
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_continuous_integration_runs_what_the_repository_says():
    """The workflow is YAML that runs .ci/run, and that runs both make lint and make test."""
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["checks"]["steps"]]
    assert {"make lint", "make test"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_every_file_that_contributing_names_exists():
    """The table of where things are leads to files."""
    for name in re.findall(r"`((?:ddim_hf|tests)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / name).exists(), name
