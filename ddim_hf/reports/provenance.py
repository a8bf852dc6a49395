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
    """Return the command, the packages' versions, ddim_hf's git commit and the machine."""
    return {
        "command": command(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "git_commit": git_commit(),
        "machine": machine(),
    }


def machine() -> str:
    """The machine and what computes there: its GPUs, or else its processor and the cores that this process may use."""
    where = f"{platform.system()} {platform.machine()}"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{where}, {f'{count} x ' if count > 1 else ''}{torch.cuda.get_device_name()}"
    return f"{where}, {_cores()} cores{_processor()}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f" of {names[0]}" if names else ""


@cache  # it may have ended by the time that its command line is asked for again
def launcher() -> list[str]:
    """Return the command line of the launcher that started this process, in words; empty where none did.

    A parent that was given this process's script as an argument is one (seen on Linux alone). One that was given the
    whole command, interpreter and all, only wraps it: timeout, nice.
    """
    try:
        words, own = (Path(f"/proc/{of}/cmdline").read_text().split("\0")[:-1] for of in (os.getppid(), "self"))
    except OSError:
        return []
    return words if sys.argv[0] in words[1:] and words[-len(own) :] != own else []


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
    """Return the commit of the checkout that ddim_hf's own files lie in, with "+" if files differ from it.

    None where they are not git's: an installed package, whichever repository it lies or was started in.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    # Within a hook git's own variables would name the repository that the hook is of.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    asked = dict(cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=True)
    return subprocess.run(["git", *words], **asked).stdout.strip()
