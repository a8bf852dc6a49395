"""What a record says of where it comes from."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim_hf.reports import provenance

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def repository(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "theirs.txt").write_text("theirs")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "theirs")
    return folder


def installed(folder: Path):
    """The module as if the package lay in `folder`."""
    (folder / "ddim_hf").mkdir(parents=True)
    file = shutil.copy(provenance.__file__, folder / "ddim_hf")
    spec = importlib.util.spec_from_file_location("installed_provenance", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ours() -> str:
    if not (ROOT / ".git").exists():
        pytest.skip("the sources are no checkout")
    return git(ROOT, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_packages_own_checkout(ours, tmp_path, monkeypatch):
    """Started in another repository, or from its hook, which sets git's variables, a run records ddim_hf's commit."""
    theirs = repository(tmp_path / "theirs")
    monkeypatch.chdir(theirs)
    assert provenance.git_commit().rstrip("+") == ours
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    assert provenance.git_commit().rstrip("+") == ours


def test_a_program_that_wraps_a_command_is_no_launcher(tmp_path):
    """What `timeout` was given is recorded, and not `timeout`, which would end the run that is to be repeated."""
    script = tmp_path / "script.py"
    script.write_text("from ddim_hf.reports.provenance import command\nprint(command())\n")
    words = [sys.executable, str(script), "--flag", "two words"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(["timeout", "300", *words], env=env, capture_output=True, text=True, check=True).stdout
    assert shlex.split(said) == [Path(sys.executable).name, *words[1:]]


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    """In an environment within someone's repository, or in none, the commit of ddim_hf is not known."""
    theirs = repository(tmp_path / "theirs")
    module = installed(theirs / ".venv/lib/site-packages")
    monkeypatch.chdir(theirs)
    assert module.git_commit() is None
    assert installed(tmp_path / "site-packages").git_commit() is None


def test_a_changed_checkout_is_marked(tmp_path):
    """The commit ends in "+" while a tracked file differs from it."""
    checkout = repository(tmp_path / "checkout")
    module = installed(checkout)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "ours")
    commit = git(checkout, "rev-parse", "HEAD")
    assert module.git_commit() == commit
    (checkout / "theirs.txt").write_text("changed")
    assert module.git_commit() == commit + "+"


def test_the_machine_is_named():
    """The record names the system and what computes: the GPU, or else the processor and how many cores it has here."""
    text = provenance.machine()
    assert text.startswith(f"{platform.system()} {platform.machine()}, ")
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name() in text
    elif platform.system() == "Linux":
        assert f", {len(os.sched_getaffinity(0))} cores" in text
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                assert line.split(": ", 1)[1] in text
