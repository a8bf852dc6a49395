"""Where a figure or a model comes from: command, versions, commit, machine."""

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
