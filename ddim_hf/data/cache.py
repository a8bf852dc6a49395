"""Images decoded once, into a memory-mapped file that all processes share.

A set too large for that is decoded again each time an image is asked for; both give the same values. The file is named
by the images' fingerprint, which is made from their encoded bytes.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from ..files import whole_file, write_text
from .decoding import decode
from .messages import reason, tell, unreadable
from .sources import Source

IN_MEMORY_BYTES = 2 * 2**30  # the most that each process holds itself, where the cache cannot be written
BLOCK_BYTES, BLOCK_IMAGES = 2**24, 64  # the most of what a thread decodes before it is written
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
    memo = cache / f"{digest(source.stamp())}.content"
    if memo.is_file() and not refresh:
        content = memo.read_text()
    else:
        blocks = _in_blocks(lambda block: list(map(_digest_image, source.read(block))), len(source), 64, "Reading")
        content = digest(*(image for block in blocks for image in block))
        with suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_text(memo, content)
    return digest(content, channels, resolution)


def _digest_image(encoded: bytes | None) -> str:
    return digest(encoded or b"")


def decode_or_reuse(
    source: Source, shape: Shape, cache: Path, key: str, *, max_bytes: int, skip_broken: bool, refresh: bool
) -> tuple[np.ndarray | None, Broken]:
    """The pixels of all readable images, [N, C, H, W], or None beyond `max_bytes`; and which are not readable.

    Raises:
        ValueError: an image cannot be read, unless `skip_broken`.
        OSError: the disk is too full.
    """
    pixels_file, notes = cache / f"{key}.npy", cache / f"{key}.json"
    fits = np.prod(shape) <= max_bytes
    with _lock(cache / f"{key}.lock") as writable:
        if refresh and writable:
            notes.unlink(missing_ok=True)
        with suppress(OSError, ValueError):  # not there, or not whole: made anew
            broken = {int(number): why for number, why in json.loads(notes.read_text()).items()}
            pixels = np.load(pixels_file, mmap_mode="r") if fits else None
            if not fits or pixels.shape == (shape[0] - len(broken), *shape[1:]):
                return pixels, broken
        if not writable:
            tell(f"the cache {cache} cannot be written: every process decodes for itself")
            return _decode_into_memory(source, shape, skip_broken, fits and np.prod(shape) <= IN_MEMORY_BYTES)
        if fits:
            broken = _write_pixels(source, shape, pixels_file, skip_broken)
        else:
            broken = _decode_all(source, shape, lambda block: None, skip_broken, "Checking images")
        write_text(notes, json.dumps(broken))
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
        yield not isinstance(lock, nullcontext)


def _decode_into_memory(
    source: Source, shape: Shape, skip_broken: bool, keep: bool
) -> tuple[np.ndarray | None, Broken]:
    if not keep:
        return None, _decode_all(source, shape, lambda block: None, skip_broken, "Checking images")
    blocks = []
    broken = _decode_all(source, shape, blocks.append, skip_broken, "Decoding images")
    return np.concatenate(blocks), broken


def _write_pixels(source: Source, shape: Shape, path: Path, skip_broken: bool) -> Broken:
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"the decoded images need {needed / 2**30:.2f} GiB and {path.parent} has {free / 2**30:.2f} GiB free: "
            "make room, set DDIM_HF_CACHE to another disk, or lower max_cached_bytes to decode on the fly"
        )
    for scrap in path.parent.glob(f".{path.stem}.*.partial{path.suffix}"):  # of a process that was killed
        scrap.unlink(missing_ok=True)
    header = {"descr": "|u1", "fortran_order": False}
    with whole_file(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        broken = _decode_all(source, shape, lambda block: file.write(block.data), skip_broken, "Decoding images")
        file.seek(0)  # numpy pads headers, so that the number of images can change in place
        np.lib.format.write_array_header_1_0(file, header | {"shape": (shape[0] - len(broken), *shape[1:])})
    return broken


def _decode_all(
    source: Source, shape: Shape, sink: Callable[[np.ndarray], Any], skip_broken: bool, title: str
) -> Broken:
    """Passes the pixels to `sink`, block by block, in order; returns the images left out."""

    def decode_block(numbers: range) -> tuple[np.ndarray, Broken]:
        block, broken = np.empty((len(numbers), *shape[1:]), np.uint8), {}
        for number, encoded in zip(numbers, source.read(numbers), strict=True):
            try:
                block[number - numbers.start - len(broken)] = decode(encoded, *shape[1:3])
            except Exception as error:  # Pillow's decoders raise nearly anything on torn data
                if not skip_broken:
                    raise unreadable(source.label(number), reason(error)) from error
                broken[number] = reason(error)
        return block[: len(numbers) - len(broken)], broken

    left_out = {}
    size = int(np.clip(BLOCK_BYTES // np.prod(shape[1:]), 1, BLOCK_IMAGES))
    for block, broken in _in_blocks(decode_block, len(source), size, title):
        sink(block)
        left_out |= broken
    return left_out


def _in_blocks(function: Callable[[range], Any], count: int, size: int, title: str) -> Iterator[Any]:
    """Yield `function(numbers)` for each block of numbers, in order, from threads; a bar if it takes long."""
    pending = deque()  # few ahead, so that memory stays bounded
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=count, desc=title, unit=" images", delay=2) as bar:

        def oldest() -> Any:
            numbers, future = pending.popleft()
            result = future.result()
            bar.update(len(numbers))
            return result

        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            pending.append((numbers, pool.submit(function, numbers)))
            if len(pending) > 2 * THREADS:
                yield oldest()
        while pending:
            yield oldest()
