"""Images decoded once, into a memory-mapped file that all processes share.

A set too large for that is decoded again each time an image is asked for; both give the same values. The file is named
by the images' fingerprint, which is made from their encoded bytes.

One process reads and decodes; the others of its machine wait for its lock, for as long as it takes. One that is killed
leaves what it has done, and the next goes on from there:

    <stamp>.digests       the digests of the encoded images that are read, a line each
    <key>.unfinished      the array of the images that are decoded
    <key>.progress        how many those are, and which of them cannot be read
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from ..files import sync, write_text
from ..reports.words import counted
from .decoding import decode, holds_several, in_colour
from .messages import reason, tell, unreadable
from .sources import Source

MAX_CACHED_BYTES = 16 * 2**30  # of a decoded set that is kept, unless told
IN_MEMORY_BYTES = 2 * 2**30  # the most that each process holds itself, where the cache cannot be written
BLOCK_BYTES, BLOCK_IMAGES = 2**24, 64  # the most of what a thread decodes before it is written
SAVE_SECONDS = 2.0  # between two notes of how much is decoded
THREADS = min(32, os.cpu_count() or 1)

Shape = tuple[int, int, int, int]  # N, C, H, W
Broken = dict[int, str]  # the images that cannot be read, {number: reason}


def default_cache() -> Path:
    """`$DDIM_HF_CACHE`, else `$XDG_CACHE_HOME/ddim_hf`, else `~/.cache/ddim_hf`."""
    if own := os.environ.get("DDIM_HF_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "ddim_hf"


def digest(*parts: Any) -> str:
    """A hex string of 32 digits; one part of bytes is hashed as it is, anything else by its repr."""
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else repr(parts).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint(source: Source, channels: int, resolution: int, cache: Path, refresh: bool = False) -> str:
    """Of the encoded images, in order. Remembered by the source's stamp, so that only new data is read through."""
    stamp = digest(source.stamp())
    memo, digests = cache / f"{stamp}.content", cache / f"{stamp}.digests"
    with _lock(cache / f"{stamp}.lock") as writable:
        if refresh and writable:
            for file in (memo, digests):
                file.unlink(missing_ok=True)
        if memo.is_file() and not refresh:
            content = memo.read_text()
        elif writable:
            content = digest(*_digest_all(source, digests))
            write_text(memo, content)
            digests.unlink()
        else:
            content = digest(*(image for block in _digest_blocks(source, 0) for image in block))
    return digest(content, channels, resolution)


def _digest_all(source: Source, file: Path) -> list[str]:
    """The digests of all images; what a killed process has left of them in `file` is not made again."""
    known = re.match(rb"([0-9a-f]{32}\n)*", file.read_bytes() if file.is_file() else b"")[0]
    with open(file, "ab") as lines:
        lines.truncate(len(known))  # the last line may be torn
        for block in _digest_blocks(source, known.count(b"\n")):
            lines.write("".join(f"{image}\n" for image in block).encode())
            lines.flush()
    return file.read_text().split()


def _digest_blocks(source: Source, start: int) -> Iterator[list[str]]:
    def digests(numbers: range) -> list[str]:
        return [digest(encoded or b"") for encoded in source.read(numbers)]

    return (block for _, block in _in_blocks(digests, range(start, len(source)), 64, "Reading"))


def decode_or_reuse(
    source: Source, shape: Shape, cache: Path, key: str, *, max_bytes: int, skip_broken: bool, refresh: bool
) -> tuple[np.ndarray | None, Broken]:
    """The pixels of all readable images, [N, C, H, W], or None beyond `max_bytes`; and which are not readable.

    Raises:
        ValueError: an image cannot be read, unless `skip_broken`.
        OSError: the disk is too full.
    """
    pixels_file, notes = cache / f"{key}.npy", cache / f"{key}.json"
    unfinished, progress = cache / f"{key}.unfinished", cache / f"{key}.progress"
    fits = np.prod(shape) <= max_bytes
    with _lock(cache / f"{key}.lock") as writable:
        if refresh and writable:
            for file in (notes, progress):
                file.unlink(missing_ok=True)
        with suppress(OSError, ValueError):  # not there, or not whole: made anew
            broken = {int(number): why for number, why in json.loads(notes.read_text()).items()}
            pixels = np.load(pixels_file, mmap_mode="r") if fits else None
            if not fits or pixels.shape == (shape[0] - len(broken), *shape[1:]):
                return pixels, broken
        if not writable:
            tell(f"the cache {cache} cannot be written: every process decodes for itself")
            return _decode_into_memory(source, shape, skip_broken, fits and np.prod(shape) <= IN_MEMORY_BYTES)
        if fits:
            _check_room(unfinished, int(np.prod(shape)))
        try:
            broken = _go_on(source, shape, unfinished, progress, skip_broken, keep=fits)
        except ValueError:  # with another image in that one's place it is another set
            unfinished.unlink()
            progress.unlink(missing_ok=True)
            raise
        if fits:
            unfinished.replace(pixels_file)
            sync(cache)
        write_text(notes, json.dumps(broken))
        for file in (unfinished, progress):
            file.unlink(missing_ok=True)
        return np.load(pixels_file, mmap_mode="r") if fits else None, broken


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Makes other processes wait while one decodes; says whether the cache can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire()
    except OSError:
        lock = nullcontext()
    with lock:
        writable = not isinstance(lock, nullcontext)
        if writable:  # what is half written here is of processes that were killed, as each writes under the lock
            for scrap in path.parent.glob(f".{path.stem}.*.partial.*"):
                scrap.unlink(missing_ok=True)
        yield writable


def _decode_into_memory(
    source: Source, shape: Shape, skip_broken: bool, keep: bool
) -> tuple[np.ndarray | None, Broken]:
    blocks, broken = [], {}
    for _, block, left_out in _decoded(source, shape, skip_broken, 0, _title(keep)):
        blocks += [block] if keep else []
        broken |= left_out
    return np.concatenate(blocks) if keep else None, broken


def _check_room(unfinished: Path, size: int):
    """Raise OSError where the disk is too full for so many bytes, less those that are there already."""
    needed = size - (unfinished.stat().st_size if unfinished.is_file() else 0)
    free = shutil.disk_usage(unfinished.parent).free
    if needed > free:
        raise OSError(
            f"the decoded images need {needed / 2**30:.2f} GiB and {unfinished.parent} has {free / 2**30:.2f} GiB "
            "free: make room, set DDIM_HF_CACHE or --cache_dir to another disk, or decode on the fly by a lower "
            "--max_cached_bytes"
        )


def _go_on(source: Source, shape: Shape, unfinished: Path, progress: Path, skip_broken: bool, keep: bool) -> Broken:
    """Decode all images from where a killed process has come to, and with `keep` make their array of its own.

    Returns those that are left out.
    """
    done, broken = 0, {}
    with suppress(OSError, ValueError):  # none was killed
        noted = json.loads(progress.read_text())
        done, broken = noted["done"], {int(number): why for number, why in noted["broken"].items()}
    image_bytes = int(np.prod(shape[1:])) if keep else 0
    unfinished.touch()
    with open(unfinished, "r+b") as file:
        begin = _write_header(file, shape)
        end = begin + (done - len(broken)) * image_bytes
        if unfinished.stat().st_size < end:  # they were not kept
            done, broken, end = 0, {}, begin
        file.truncate(end)
        file.seek(end)
        saved = time.monotonic()
        for numbers, block, left_out in _decoded(source, shape, skip_broken, done, _title(keep)):
            if keep:
                file.write(block.data)
            broken |= left_out
            if time.monotonic() - saved >= SAVE_SECONDS:
                # The pixels are on the disk before the note that says so.
                file.flush()
                os.fsync(file.fileno())
                write_text(progress, json.dumps({"done": numbers.stop, "broken": broken}))
                saved = time.monotonic()
        _write_header(file, (shape[0] - len(broken), *shape[1:]))
        file.flush()
        os.fsync(file.fileno())
    return broken


def _write_header(file: BinaryIO, shape: Shape) -> int:
    """Write an array's header, padded by numpy so that the number of images can change in place; return its length."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _title(keep: bool) -> str:
    return "Decoding images" if keep else "Checking images"


def _decoded(
    source: Source, shape: Shape, skip_broken: bool, start: int, title: str
) -> Iterator[tuple[range, np.ndarray, Broken]]:
    """Yield, block by block, the numbers of images, the pixels of those that can be read, and the others."""

    several, coloured = [], []

    def decode_block(numbers: range) -> tuple[np.ndarray, Broken]:
        block, broken = np.empty((len(numbers), *shape[1:]), np.uint8), {}
        for number, encoded in zip(numbers, source.read(numbers), strict=True):
            try:
                block[number - numbers.start - len(broken)] = decode(encoded, *shape[1:3])
                several.extend([number] * holds_several(encoded))
                coloured.extend([number] * (shape[1] == 1 and in_colour(encoded)))
            except MemoryError:  # nothing is wrong with the image
                raise
            except Exception as error:  # Pillow's decoders raise nearly anything on torn data
                if not skip_broken:
                    raise unreadable(source.label(number), reason(error)) from error
                broken[number] = reason(error)
        return block[: len(numbers) - len(broken)], broken

    size = int(np.clip(BLOCK_BYTES // np.prod(shape[1:]), 1, BLOCK_IMAGES))
    for numbers, (block, broken) in _in_blocks(decode_block, range(start, len(source)), size, title):
        yield numbers, block, broken
    if several:
        tell(
            f"{counted(len(several), 'image')} of several pictures (animations, pages): the first is taken, as of "
            f"{source.label(min(several))}"
        )
    if coloured:
        tell(f"{counted(len(coloured), 'image')} in colour made grey, as {source.label(min(coloured))}")


def _in_blocks(function: Callable[[range], Any], numbers: range, size: int, title: str) -> Iterator[tuple[range, Any]]:
    """Yield each block of numbers and `function` of it, in order, from threads; a bar if it takes long."""
    pending = deque()  # few ahead, so that memory stays bounded
    bar = tqdm(initial=numbers.start, total=numbers.stop, desc=title, unit=" images", delay=2)
    with ThreadPoolExecutor(THREADS) as pool, bar:

        def oldest() -> tuple[range, Any]:
            block, future = pending.popleft()
            result = future.result()
            bar.update(len(block))
            return block, result

        for start in range(0, len(numbers), size):
            block = numbers[start : start + size]
            pending.append((block, pool.submit(function, block)))
            if len(pending) > 2 * THREADS:
                yield oldest()
        while pending:
            yield oldest()
