"""Folders of images: which files are read, which folders are splits; and what `ddim_hf.generation.generate` left."""

import io
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..reports.words import counted
from .decoding import IMAGE_SUFFIXES
from .labels import Labels, number_labels
from .messages import reason, refuse_options, tell, tell_left_out

ARCHIVE_SUFFIXES = (".tar", ".zip")
UNREAD_SUFFIXES = tuple(
    (
        ".heic .heif .hif .avifs .jxl .jxr .j2k .j2c .jpc .jpx .jpf .qoi .exr .hdr .pfm .dds .svg .eps .psd .xcf .ico "
        ".icns .cur .pcx .pcd .sgi .rgb .rgba .bw .ras .xbm .xpm .icb .vda .vst .fits .dcm .dng .cr2 .cr3 .nef .arw "
        ".orf .rw2 .raf"
    ).split()
)  # of pictures
SPLIT_FOLDERS = {"train", "validation", "valid", "val", "test"}
SHARD = re.compile(r"(\d{8})-(\d{8})\.npy")  # a file of generated images, by its first and last number


class ImageFiles:
    """Image files below the folder `root`."""

    def __init__(self, name: str, root: Path, paths: list[Path]):
        self.name, self.root, self.paths = name, root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | None]:
        for number in numbers:
            try:
                yield self.paths[number].read_bytes()
            except FileNotFoundError:  # a link that leads nowhere
                yield None

    def label(self, number: int) -> str:
        return str(self.paths[number])

    def stamp(self) -> str:
        return _stamp(self.paths)

    def labels(self, column: str | None) -> Labels:
        """By the folders directly below the root."""
        refuse_options(self.name, label_column=column)
        parents = [path.relative_to(self.root).parts[:-1] for path in self.paths]
        if not any(parents):
            raise ValueError(f"{self.name!r} has no labels: its images lie in no folders; allowed: one for each class")
        return number_labels(self.name, (parts[0] if parts else None for parts in parents), self.label)


class SampleShards:
    """The images in the .npy files of `ddim_hf.generation.generate`, as the PNG files that it would have written."""

    def __init__(self, name: str, files: list[Path]):
        self.name, self.files, self.shards = name, files, [_open_shard(file) for file in files]
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, number: int) -> tuple[int, int]:
        """Which shard, and which row of it."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return shard, number - (int(self.ends[shard - 1]) if shard else 0)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        for shard, row in map(self._place, numbers):
            pixels = self.shards[shard][row]
            file = io.BytesIO()
            Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, format="PNG")
            yield file.getvalue()

    def label(self, number: int) -> str:
        shard, row = self._place(number)
        return f"image {row} of {self.files[shard]}"

    def stamp(self) -> str:
        return _stamp(self.files)

    def labels(self, column: str | None) -> Labels:
        raise ValueError(f"{self.name!r} has no labels: it holds arrays of samples; allowed: images in class folders")


def _open_shard(file: Path) -> np.ndarray:
    """Its pixels, uint8 [N, H, W, C] or [N, H, W], mapped."""
    first, last = map(int, SHARD.fullmatch(file.name).groups())
    try:
        pixels = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read ({reason(error)}): make it again") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != last - first + 1:
        raise ValueError(f"{file} holds {pixels.dtype} of shape {pixels.shape}, not {last - first + 1} uint8 images")
    return pixels


def _stamp(files: list[Path]) -> str:
    """Paths, sizes and times. The time of the last change (ctime) cannot be set back, as rsync -t does the other's."""
    lines = []
    for file in files:
        try:
            stat = file.stat()
            lines.append(f"{file.absolute()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}")
        except FileNotFoundError:
            lines.append(f"{file.absolute()}|")
    return "\n".join(lines)


# Folders of image files


def open_folder(name: str, folder: Path, files: list[Path]) -> dict[str, ImageFiles | SampleShards]:
    """The images of a folder, by split; `files` are what `visible_files` gives for it.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a shard that is torn.
    """
    images = _with(IMAGE_SUFFIXES, files)
    shards = [file for file in files if SHARD.fullmatch(file.name)]
    tell_unread(name, files)
    if not images and not shards:
        raise FileNotFoundError(f"no images in the folder {name!r}: allowed are {' '.join(IMAGE_SUFFIXES)}, .parquet")
    if images:
        tell_left_out(name, _with(ARCHIVE_SUFFIXES, files), "archive beside the images")
        tell_left_out(name, shards, "array beside the images")
    splits = {}
    for split, (root, found) in _by_split(name, _image_root(folder), images or shards).items():
        found = sorted(found, key=Path.as_posix)
        splits[split] = ImageFiles(name, root, found) if images else SampleShards(name, found)
    _compare_with_manifest(name, _image_root(folder), sum(map(len, splits.values())))
    return splits


def tell_unread(name: str, files: list[Path]):
    """Warn of pictures among the files of a folder that are of a format which is not read."""
    tell_left_out(name, _with(UNREAD_SUFFIXES, files), "image of a format that is not read")


def _with(suffixes: tuple[str, ...], files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in suffixes]


def _by_split(name: str, root: Path, images: list[Path]) -> dict[str, tuple[Path, list[Path]]]:
    """Where a split lies, and its images: top folders are splits if all of them that hold images are called so, in
    small letters or capitals, else all is one."""
    by_folder: dict[Path, list[Path]] = {}
    for image in images:
        by_folder.setdefault(image.parent, []).append(image)
    by_top: dict[str, list[Path]] = {}
    for folder, found in by_folder.items():
        top = "" if folder == root else folder.relative_to(root).parts[0]
        by_top.setdefault(top, []).extend(found)
    beside = by_top.pop("", [])
    named = sorted(top for top in by_top if top.lower() in SPLIT_FOLDERS)
    others = sorted(by_top.keys() - set(named))
    if len({top.lower() for top in named}) < len(named):
        raise ValueError(f"{name!r} has the folders {named}, which are called the same; allowed: one of each split")
    if named and not others:
        tell_left_out(name, beside, f"image beside the splits {named}")
        return {top.lower(): (root / top, by_top[top]) for top in named}
    if len(named) > 1 or named and len(others) == 1:  # one among several may be a class of that name
        tell(
            f"{name}: its folders {named} are read as one set with the others, {', '.join(others[:3])}, and not as "
            f"splits: {len(images)} images"
        )
    return {"train": (root, _once(name, by_folder))}


def _once(name: str, by_folder: dict[Path, list[Path]]) -> list[Path]:
    """The images of all folders, without those of a folder that is there by two paths."""
    seen, once, again = set(), [], []
    for folder, images in by_folder.items():
        place = os.path.realpath(folder)
        (again if place in seen else once).extend(images)
        seen.add(place)
    tell_left_out(name, again, "image that a link leads to a second time")
    return once


def visible_files(name: str, folder: Path) -> list[Path]:
    """Every file of a folder that is not hidden, below links to folders too, but below a top folder only once."""
    root = _image_root(folder)
    found, seen, not_followed = [], set(), []
    pending = deque([root])  # links last, so that what they lead to keeps its own path
    while pending:
        for below, subfolders, files in os.walk(pending.popleft()):
            place = _place(root, Path(below))
            if place in seen or _leads_back(root, Path(below)):
                not_followed.append(Path(below))
                subfolders.clear()
                continue
            seen.add(place)
            subfolders[:] = sorted(filter(_is_visible, subfolders))
            pending.extend(Path(below, sub) for sub in subfolders if Path(below, sub).is_symlink())
            found += [Path(below, file) for file in files if _is_visible(file)]
    tell_left_out(name, not_followed, "link to a folder that is read already")
    return found


def _place(root: Path, folder: Path) -> tuple[tuple[str, ...], str]:
    """The top folder by way of which a folder is reached, and where it is."""
    return folder.relative_to(root).parts[:1], os.path.realpath(folder)


def _is_visible(name: str) -> bool:
    """Whether a file or folder is read: not what is hidden, nor what macOS puts into archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _leads_back(root: Path, folder: Path) -> bool:
    """Whether it is a link, below the root, to a folder that it lies in."""
    if folder == root or not folder.is_symlink():
        return False
    return Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))


# What `ddim_hf.generation.generate` leaves: images/ and manifest.json, and at times samples.png and denoising.gif


def _image_root(folder: Path) -> Path:
    """Of such a folder the one that holds its images; any other as it is."""
    return folder / "images" if (folder / "images").is_dir() and sample_manifest(folder) else folder


def sample_manifest(folder: Path) -> dict[str, Any]:
    """What was to be sampled; empty where no such file lies."""
    with suppress(OSError, ValueError):
        manifest = json.loads((folder / "manifest.json").read_text())
        if isinstance(manifest, dict) and {"num_images", "num_inference_steps", "format"} <= manifest.keys():
            return manifest
    return {}


def _compare_with_manifest(name: str, images: Path, count: int):
    wanted = sample_manifest(images.parent).get("num_images", count)
    if wanted != count:
        tell(f"{name}: holds {counted(count, 'image')}, and {wanted} were to be sampled")
