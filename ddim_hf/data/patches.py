"""A set of small images from large pictures: crops with overlap, and their mirror images, in parquet files.

Parquet, as a set of 30,000 is then 30 files and not 30,000: it is copied, looked up and uploaded at once, the
`datasets` library reads it in any order, and what a killed call had written shows by whole files. The crops are PNGs,
without loss.
"""

import io
import json
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..files import sha256, whole_file
from ..reports.words import counted
from .cache import THREADS, digest
from .decoding import IMAGE_SUFFIXES, in_channels, is_several, upright
from .folders import tell_unread, visible_files
from .messages import reason

SHARD_IMAGES = 1000
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
SETTINGS = b"ddim_hf.patches"  # where a parquet file's metadata say what it was made with


@dataclass(frozen=True)
class Patch:
    """A square crop of a picture, by its left upper corner in the picture as it is seen."""

    picture: str
    left: int
    top: int
    mirrored: bool


def make_patches(
    folder: str | Path,
    output: str | Path,
    *,
    resolution: int = 256,
    num_images: int | None = None,
    overlap: float = 0.0,
    flips: bool = False,
    most_per_picture: int | None = None,
) -> int:
    """Cut the pictures below `folder` into square patches, written to `output` as parquet files that training reads.

    The patches of a picture lie on a grid that reaches all of its borders. Where fewer are wanted they are taken
    evenly, from every picture as many as it has up to a common number; mirror images come after a picture's own. The
    same folder and settings give the same patches. A call that was killed is completed by the next one, where
    the pictures have the same names and content. Those that cannot be read, or are smaller than a patch, are left out
    with a warning.

    Args:
        resolution: side of a patch in the picture's own pixels.
        num_images: of all pictures; None takes all that there are.
        overlap: the least share of a patch's side that the next one covers too, from 0 below 1.
        flips: take each patch's mirror image too.
        most_per_picture: the most patches of one picture.

    Returns:
        How many patches there are: fewer than planned where a picture turned out torn.

    Raises:
        ValueError: settings outside what is listed, more patches wanted than there are, or an `output` that holds
            something else.
        FileNotFoundError: no pictures in the folder.
    """
    for name, value in (
        ("resolution", resolution),
        ("num_images", num_images),
        ("most_per_picture", most_per_picture),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; allowed: whole numbers from 1")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap:g}; allowed: numbers from 0 below 1")
    folder, output = Path(folder), Path(output)
    sizes = _picture_sizes(folder, resolution)
    grids = [_grid(name, size, resolution, overlap) for name, size in sizes.items()]
    counts = _share(grids, num_images, flips, most_per_picture)
    patches = [patch for grid, count in zip(grids, counts, strict=True) for patch in _evenly(grid, count)]
    settings = {"resolution": resolution, "num_images": num_images, "overlap": overlap, "flips": flips}
    settings |= {"most_per_picture": most_per_picture, "pictures": _content(folder, sorted(sizes))}
    return _write(folder, output, sizes, patches, settings)


# Which patches


def _picture_sizes(folder: Path, resolution: int) -> dict[str, tuple[int, int]]:
    """Width and height of the pictures that are large enough, by their names in the folder, from their headers."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; allowed: a folder of pictures")
    there = visible_files(str(folder), folder)
    tell_unread(str(folder), there)
    files = [file for file in there if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(f"no pictures in {folder}; allowed: {' '.join(IMAGE_SUFFIXES)}")
    sizes, small, broken, several = {}, [], [], []
    for file in sorted(files, key=Path.as_posix):
        name = file.relative_to(folder).as_posix()
        try:
            with Image.open(file) as picture:
                size, more = _size_as_seen(picture), is_several(picture)
        except Exception as error:  # Pillow raises nearly anything on torn data
            broken.append(f"{name} ({reason(error)})")
            continue
        if min(size) < resolution:
            small.append(name)
        else:
            sizes[name] = size
            several += [name] * more
    _tell(broken, "picture that cannot be read")
    _tell(small, f"picture smaller than {resolution} pixels")
    _tell(several, "file of several pictures (animations, pages)", "took the first of")
    if not sizes:
        raise ValueError(f"no picture in {folder} is readable and {resolution} pixels wide and high")
    return sizes


def _content(folder: Path, names: list[str]) -> str:
    """What tells these pictures from others of the same names and sizes: a hash of all their bytes."""
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(sha256, [folder / name for name in names])
        return digest(list(zip(names, tqdm(hashes, "pictures", len(names), unit=" pictures", delay=2), strict=True)))


def _size_as_seen(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture when it is upright; it is not decoded."""
    # Of a PNG, getexif would read all the pixels to look for EXIF data behind them.
    exif = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
    # Of a TIFF, newer versions of Pillow have turned the size already; its tags are as they were written.
    size = (picture.tag_v2[256], picture.tag_v2[257]) if picture.format == "TIFF" else picture.size
    return size[::-1] if exif.get(0x0112) in SIDEWAYS else size


def _tell(names: list[str], what: str, done: str = "left out"):
    if names:
        warnings.warn(f"{done} {counted(len(names), what)}: {', '.join(names[:3])}", stacklevel=4)


def _grid(name: str, size: tuple[int, int], resolution: int, overlap: float) -> list[Patch]:
    """The patches of a picture, row by row."""
    stride = max(1, math.floor(resolution * (1 - overlap)))

    def starts(length: int) -> list[int]:
        count = math.ceil((length - resolution) / stride) + 1
        return np.linspace(0, length - resolution, count).round().astype(int).tolist()

    lefts, tops = map(starts, size)
    return [Patch(name, left, top, mirrored=False) for top in tops for left in lefts]


def _share(grids: list[list[Patch]], num_images: int | None, flips: bool, most: int | None) -> list[int]:
    """How many patches each picture gives: all that it has up to a common number, which gives `num_images` in all."""
    available = [min(len(grid) * (1 + flips), most or math.inf) for grid in grids]
    if num_images is None:
        return available
    if num_images > sum(available):
        raise ValueError(
            f"num_images is {num_images}, and the pictures give {sum(available)}; allowed: fewer, or more by a larger "
            "--overlap, --flips or --most_per_picture"
        )
    low, high = 0, max(available)
    while low < high:  # the least common number that is enough
        middle = (low + high) // 2
        low, high = (low, middle) if sum(min(n, middle) for n in available) >= num_images else (middle + 1, high)
    counts = [min(count, low) for count in available]
    spare = sum(counts) - num_images  # which the first of those that give the most keep
    for place in [place for place, count in enumerate(counts) if count == low][:spare]:
        counts[place] -= 1
    return counts


def _evenly(grid: list[Patch], count: int) -> list[Patch]:
    """So many patches, evenly over the picture; beyond those that it has, mirrored ones."""
    own = min(count, len(grid))
    chosen = [grid[k * len(grid) // own] for k in range(own)]
    mirrored = count - own
    again = [grid[k * len(grid) // mirrored] for k in range(mirrored)]
    return chosen + [Patch(patch.picture, patch.left, patch.top, mirrored=True) for patch in again]


# Files


def _write(
    folder: Path, output: Path, sizes: dict[str, tuple[int, int]], patches: list[Patch], settings: dict[str, Any]
) -> int:
    """Write the files that are not there yet; return how many images all of them hold."""
    import pyarrow.parquet as parquet

    output.mkdir(parents=True, exist_ok=True)
    for file in sorted(output.glob("*.parquet")):
        _check(file, json.loads((parquet.read_metadata(file).metadata or {}).get(SETTINGS, "{}")), settings)
    starts = range(0, len(patches), SHARD_IMAGES)
    written = 0
    with tqdm(total=len(patches), desc="patches", unit=" images", delay=2) as bar:
        for number, start in enumerate(starts):
            file = output / f"train-{number:05d}-of-{len(starts):05d}.parquet"
            part = patches[start : start + SHARD_IMAGES]
            if file.is_file():
                bar.update(len(part))
            else:
                table = _table(_encoded(folder, sizes, settings["resolution"], part, bar), settings)
                with whole_file(file) as beside:
                    parquet.write_table(table, beside, row_group_size=100, compression="none")  # PNGs are compressed
            written += parquet.read_metadata(file).num_rows
    return written


def _check(file: Path, there: dict[str, Any], settings: dict[str, Any]):
    """Raise ValueError for a file that something else has made."""
    differing = [f"{name} {there.get(name)} there, {settings[name]} asked for" for name in settings]
    differing = [text for text, name in zip(differing, settings, strict=True) if there.get(name) != settings[name]]
    if not there or differing:
        said = "; ".join(differing) if there else "no patches"
        raise ValueError(f"{file} was made with other settings: {said}. Give another folder, or remove it")


def _encoded(
    folder: Path, sizes: dict[str, tuple[int, int]], resolution: int, patches: list[Patch], bar: tqdm
) -> Iterator[tuple[Patch, bytes]]:
    """Yield patches that lie picture by picture, and their PNGs; of a torn picture none, with a warning."""

    def encode(patch: Patch) -> tuple[Patch, bytes]:
        crop = picture.crop((patch.left, patch.top, patch.left + resolution, patch.top + resolution))
        stream = io.BytesIO()
        (ImageOps.mirror(crop) if patch.mirrored else crop).save(stream, "PNG", compress_level=1)
        return patch, stream.getvalue()

    by_picture: dict[str, list[Patch]] = {}
    for patch in patches:
        by_picture.setdefault(patch.picture, []).append(patch)
    with ThreadPoolExecutor(THREADS) as pool:
        for name, some in by_picture.items():
            try:
                with Image.open(folder / name) as opened:
                    picture = in_channels(upright(opened), 3)
                if picture.size != sizes[name]:
                    raise ValueError(f"its header says {sizes[name]}, its pixels {picture.size}")
            except MemoryError:
                raise
            except Exception as error:
                lost = counted(len(some), "image")
                warnings.warn(f"left out {lost} of {name}, which cannot be read: {reason(error)}", stacklevel=5)
            else:
                yield from pool.map(encode, some)
            bar.update(len(some))


def _table(encoded: Iterator[tuple[Patch, bytes]], settings: dict[str, Any]) -> Any:
    """The patches as an Arrow table: each image and where it is from, the columns typed for the `datasets` library."""
    import pyarrow
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    rows = [{"image": {"bytes": png, "path": None}, **vars(patch)} for patch, png in encoded]
    types = {"picture": Value("string"), "left": Value("int32"), "top": Value("int32"), "mirrored": Value("bool")}
    schema = Features({"image": ImageFeature(), **types}).arrow_schema
    schema = schema.with_metadata({**schema.metadata, SETTINGS: json.dumps(settings)})
    return pyarrow.Table.from_pylist(rows, schema=schema)
