"""Files and folders that are whole or not there: written beside their place, synced, and renamed into it."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Other readers see the old file or the new one, whatever happens in between, a power cut included. The name to write
    to ends as `path` does, as some writers choose a format by it, and is this process's own.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which takes its place when the block ends without an error."""
    path = Path(path)
    beside, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for entry in (*beside.rglob("*"), beside):
            sync(entry)
        if path.exists():
            path.rename(old)
        beside.rename(path)
        sync(path.parent)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: str | Path, text: str):
    """Replace a small file as a whole."""
    with whole_file(path) as beside:
        beside.write_text(text)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; ValueError that names the file where it is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): save or download it again") from error


def sync(path: Path):
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def why_not_written(error: Exception) -> str:
    """The reason in a few words, also where a library has an error of its own for a full disk."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return "no space left on the disk" if full else " ".join(str(error).split()) or type(error).__name__
