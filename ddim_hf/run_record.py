"""What a run writes about itself: versions, commit, command, and one line of figures per logging step."""

import json
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .checkpointing import write_text

LOG_FILE = "log.jsonl"
PACKAGES = ("ddim_hf", "torch", "diffusers", "accelerate", "datasets", "transformers", "numpy")


def describe_run() -> dict[str, Any]:
    """Return the command, the packages' versions, the git commit of the working directory and the kind of machine."""
    return {
        "command": command(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "git_commit": git_commit(),
        "machine": machine(),
    }


def machine() -> str:
    """The kind of machine and, where there is one, its GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}{gpu}"


@cache  # it may have ended by the time that its command line is asked for again
def launcher() -> list[str]:
    """Return the command line of the launcher that started this process, in words; empty where none did.

    A parent that was given this process's script as an argument is one (seen on Linux alone).
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []
    return words if sys.argv[0] in words[1:] else []


def command(*more: str) -> str:
    """Return the command that started this run, the launcher's where there is one, with `more` in the place of
    any --resume_from_checkpoint that it had if `more` has it."""
    words = launcher() or [sys.executable, *sys.argv]
    if Path(words[0]).name.startswith("python") and Path(words[1]).name == "accelerate":
        words = words[1:]
    words = [Path(words[0]).name, *words[1:]]
    if more[:1] == ("--resume_from_checkpoint",) and more[0] in words:
        place = words.index(more[0])
        del words[place : place + 2]
    on_cpu = ["ACCELERATE_USE_CPU=true"] if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" else []
    return " ".join([*on_cpu, shlex.join([*words, *more])])


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a run depends on."""
    installed = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def git_commit() -> str | None:
    """Return the commit checked out in the working directory, with "+" if files differ from it; None outside git."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.stdout.strip() else "")


def log_line(folder: Path, step: int, values: dict[str, float]):
    """Append the figures of a step to the run's log."""
    with open(folder / LOG_FILE, "a") as stream:
        stream.write(json.dumps({"step": step, **values}) + "\n")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log; one that a kill cut short is left out."""
    if not (folder / LOG_FILE).exists():
        return []
    lines = []
    for text in (folder / LOG_FILE).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def trim_log(folder: Path, step: int):
    """Leave out what a run that is resumed at `step` will log again."""
    kept = [json.dumps(line) for line in read_log(folder) if line["step"] <= step]
    write_text(folder / LOG_FILE, "".join(line + "\n" for line in kept))


def plot_loss(folder: Path, picture: Path):
    """Draw the training and validation loss of a run's log into a PNG; ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("validation_loss", "held-out images, averaged weights")):
        points = [(line["step"], line[key]) for line in read_log(folder) if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 10 else None, label=label)
    axes.set(xlabel="step", ylabel="mean squared error of the prediction", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
