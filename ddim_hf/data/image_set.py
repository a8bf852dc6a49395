"""Images in: the built-in digits, a Hub dataset, a folder, parquet files or a saved dataset -> uint8 tensors.

Every image is decoded once, to [C, H, W] uint8, into a memory-mapped file that all processes share; a set too large
for that is decoded again each time an image is asked for. Both give the same values.
"""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm.auto import tqdm

IMAGE_SUFFIXES = tuple(".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split())
TABLE_SUFFIXES = (".parquet", ".arrow")  # left to the datasets library, and archives too where no images lie beside
DATASET_SUFFIXES = (*TABLE_SUFFIXES, ".tar", ".zip")
SPLIT_FOLDERS = {"train", "validation", "valid", "val", "test"}
ALLOWED = "give a folder of images, a parquet file, a Hub dataset's id (it needs the network once), or 'digits'"
IN_MEMORY_BYTES = 2 * 2**30  # the most that each process holds itself, where the cache cannot be written
THREADS = min(32, os.cpu_count() or 1)


class ImageSet:
    """A read-only sequence of images, all of one shape.

    `shape` is (N, C, H, W), `name` as given to `load_images`, `split` the split it chose (None: all of the digits).
    `fingerprint` is a hex string made from the images' encoded bytes, their order, resolution and channels: the same
    in every process and on every machine that holds the same data, wherever it lies.
    """

    def __init__(self, name, split, fingerprint, shape, pixels=None, rows=None, kept=()):
        self.name, self.split, self.fingerprint, self.shape = name, split, fingerprint, tuple(shape)
        self._pixels, self._rows = pixels, rows  # all decoded, or rows to decode, of which `kept` are readable
        self._numbers = np.asarray(kept) if pixels is None else np.arange(shape[0])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices) -> torch.Tensor:
        """The images at `indices` (a slice; ints as a list, array or 1-D tensor): a new uint8 tensor [B, C, H, W]."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, dtype=torch.int64).flatten().cpu().numpy()
        numbers = self._numbers[indices]
        if self._pixels is not None:
            return torch.from_numpy(self._pixels[numbers])
        batch = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def decode(place: int, number: int) -> None:
            (encoded,) = self._rows.read([number])
            try:
                batch[place] = _decode(encoded, *self.shape[1:3])
            except Exception as error:  # it was readable when the set was opened
                raise _broken_image(self._rows.label(number), _reason(error)) from error

        with ThreadPoolExecutor(max(1, min(THREADS, len(numbers)))) as pool:
            list(pool.map(decode, range(len(numbers)), numbers.tolist()))
        return torch.from_numpy(batch)


def load_images(
    name: str,
    *,
    split: str | None = None,
    resolution: int = 32,
    channels: int = 3,
    image_column: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    skip_broken: bool = False,
    max_cached_bytes: int = 16 * 2**30,
) -> ImageSet:
    """Opens a set of images, each resized (Lanczos, antialiased) and centre-cropped to `resolution` pixels a side.

    `name` is "digits" (scikit-learn's 1,797 images; "test" is every tenth, "train" the others), a local folder of
    images, a folder with parquet files, one parquet file, a `save_to_disk` folder, or a dataset's id on the Hub (at
    `revision`). `split` None means "train", or else the only split. Of a folder of images, the sub-folders train,
    validation, valid, val and test are splits; any others are not. Any image mode becomes `channels` 1 or 3: alpha is
    laid on white, 16 bits are scaled to 8, floats are taken as 0..1 (or 0..255 where any is above 1).

    Decoded images lie in `cache_dir` (default `$DDIM_HF_CACHE`, else `$XDG_CACHE_HOME/ddim_hf`, else
    `~/.cache/ddim_hf`); sets beyond `max_cached_bytes` are read through once and then decoded on each access.

    Raises ValueError or FileNotFoundError, in one line, for a set, split or column that is not there and for an image
    that cannot be read, unless `skip_broken`, which leaves such out; OSError where the disk is too full for the cache.
    """
    if channels not in (1, 3) or resolution < 1:
        raise ValueError(f"channels must be 1 or 3 and resolution at least 1, not {channels} and {resolution}")
    if name == "digits":
        return _digits(split, resolution, channels)
    rows, split = _open(str(name), split, image_column, revision)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
    key = _fingerprint(rows, channels, resolution, cache)
    shape = (len(rows), channels, resolution, resolution)
    with _lock(cache / f"{key}.lock") as writable:
        pixels, broken = _decode_or_reuse(rows, shape, cache / f"{key}.npy", writable, max_cached_bytes, skip_broken)

    if broken and not skip_broken:
        raise _broken_image(rows.label(min(broken)), broken[min(broken)])
    if len(broken) == len(rows):
        raise ValueError(f"none of the {len(rows)} images in {name!r} can be read: {rows.label(0)} ({broken[0]})")
    if broken:
        first = ", ".join(rows.label(number) for number in sorted(broken)[:3])
        warnings.warn(f"{name}: left out {len(broken)} of {len(rows)} images, not readable: {first}", stacklevel=2)
        key = _hash(key, sorted(broken))
    kept = np.delete(np.arange(len(rows)), sorted(broken))
    return ImageSet(name, split, key, (len(kept), *shape[1:]), pixels, rows, kept)


# ---- Where images come from: rows with len, read(numbers) -> encoded images, label(number), and a cheap local stamp


class _Files:
    """Image files."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers) -> Iterator[bytes]:
        return (self.paths[number].read_bytes() for number in numbers)

    def label(self, number: int) -> str:
        return str(self.paths[number])

    def stamp(self) -> str:
        stats = ((path, path.stat()) for path in self.paths)
        return _hash(*(f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}" for path, stat in stats))


class _Column:
    """One column of a `datasets.Dataset`, read as Arrow so that nothing is decoded or copied on the way."""

    def __init__(self, name: str, dataset, column: str):
        self.name, self.column = name, column
        self.dataset = dataset.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers) -> Iterator[bytes | None]:
        for scalar in self.dataset[numbers][self.column]:
            value = scalar.as_py()
            if isinstance(value, dict):
                path = value.get("path")
                value = value.get("bytes") or (Path(path).read_bytes() if path and os.path.isfile(path) else None)
            yield value

    def label(self, number: int) -> str:
        return f"row {number} of {self.name}"

    def stamp(self) -> str:
        return _hash(self.dataset._fingerprint, self.column)


def _open(name: str, split: str | None, image_column: str | None, revision: str | None):
    """The rows of the chosen split, and that split's name."""
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name):
        raise FileNotFoundError(f"{name!r} does not exist: {ALLOWED}")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{name!r} is a file, and not a .parquet file: {ALLOWED}")
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if path.is_dir() and not saved:
        files = _walk(path)
        suffixes = {file.suffix.lower() for file in files}
        if not suffixes.intersection(TABLE_SUFFIXES if suffixes.intersection(IMAGE_SUFFIXES) else DATASET_SUFFIXES):
            return _open_folder(name, path, files, split, image_column)

    try:
        import datasets

        if saved:
            splits = datasets.load_from_disk(str(path))
        elif path.is_file():
            splits = datasets.load_dataset("parquet", data_files=str(path))
        else:
            splits = datasets.load_dataset(str(path) if path.is_dir() else name, revision=revision)
    except ImportError as error:
        raise ImportError("this data needs the datasets library: pip install 'ddim_hf[train]'") from error
    except Exception as error:  # of many libraries: datasets, huggingface_hub, httpx, pyarrow
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise FileNotFoundError(f"cannot load images from {name!r} ({reason}): {ALLOWED}") from error
    if not isinstance(splits, dict):
        splits = {str(splits.split or "train"): splits}
    split = _choose_split(name, splits, split)
    if len(splits[split]) == 0:
        raise ValueError(f"the split {split!r} of {name!r} holds no images")
    return _Column(name, splits[split], _find_column(name, splits[split], image_column)), split


def _open_folder(name: str, root: Path, files: list[Path], split: str | None, image_column: str | None):
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(f"no images in the folder {name!r}: allowed are {' '.join(IMAGE_SUFFIXES)}, .parquet")
    if image_column is not None:
        raise ValueError(f"no column {image_column!r}: the folder {name!r} holds image files, which have no columns")
    splits = {"train": images}
    tops = {image.relative_to(root).parts[0] for image in images if image.parent != root}
    if tops and ("train" in tops or tops <= SPLIT_FOLDERS):
        splits = {top: [i for i in images if root / top in i.parents] for top in sorted(tops & SPLIT_FOLDERS)}
    split = _choose_split(name, splits, split)
    return _Files(sorted(splits[split], key=Path.as_posix)), split


def _walk(root: Path) -> list[Path]:
    """Every file below `root`, through links to folders too, without hidden ones."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith((".", "__MACOSX"))]
        found += [Path(folder, file) for file in files if not file.startswith(".")]
    return found


def _choose_split(name: str, splits, split: str | None) -> str:
    present = [str(key) for key in splits]
    chosen = split or ("train" if "train" in present or len(present) > 1 else present[0])
    if chosen not in present:
        raise ValueError(f"{name!r} has no split {chosen!r}: choose from {present}")
    return chosen


def _find_column(name: str, dataset, wanted: str | None) -> str:
    """The one column that holds images, by its type, or else by its bytes."""
    from datasets import Image as ImageFeature

    features = dataset.features
    if wanted is not None and wanted not in features:
        raise ValueError(f"{name!r} has no column {wanted!r}: its columns are {list(features)}")
    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if not images or (wanted and wanted not in images):
        images += [column for column in features if column not in images and _holds_images(name, dataset, column)]
    if wanted is not None and wanted not in images:
        raise ValueError(f"the column {wanted!r} of {name!r} does not hold images: choose from {images}")
    if not images:
        raise ValueError(f"{name!r} has no column of images: its columns are {list(features)}")
    if wanted is None and len(images) > 1:
        raise ValueError(f"{name!r} has several columns of images: choose image_column (--image_column) from {images}")
    return wanted or images[0]


def _holds_images(name: str, dataset, column: str) -> bool:
    kind = str(dataset.data.schema.field(column).type)
    if kind not in ("binary", "large_binary") and not (kind.startswith("struct<") and "bytes: " in kind):
        return False
    for encoded in _Column(name, dataset, column).read(range(min(8, len(dataset)))):  # one torn image must not hide it
        with suppress(Exception):
            Image.open(io.BytesIO(encoded))
            return True
    return False


def _digits(split: str | None, resolution: int, channels: int) -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'ddim_hf[demo]'") from error
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    splits = {None: images, "train": np.delete(images, slice(0, None, 10), axis=0), "test": images[::10]}
    if split not in splits:
        raise ValueError(f"'digits' has no split {split!r}: choose from ['test', 'train'], or None for all of it")
    pixels = np.stack([_pixels(Image.fromarray(image), channels, resolution) for image in splits[split]])
    return ImageSet("digits", split, _hash(splits[split].tobytes(), channels, resolution), pixels.shape, pixels)


def _decode(encoded: bytes | None, channels: int, resolution: int) -> np.ndarray:
    """An encoded image as uint8 [channels, resolution, resolution]; raises whatever is wrong with it."""
    if encoded is None:
        raise ValueError("no image there")
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        with suppress(Exception):  # torn EXIF data beside sound pixels
            ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image, channels, resolution)


def _pixels(image: Image.Image, channels: int, resolution: int) -> np.ndarray:
    image = _eight_bit(image)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    for mode in ("RGB" if image.mode not in ("1", "L") else image.mode, "L" if channels == 1 else "RGB"):
        image = image if image.mode == mode else image.convert(mode)

    # Centre square first, at whole pixels, so that what already has the resolution passes unchanged.
    side = min(image.size)
    if image.width != image.height:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Images of 16 bits (I;16, or I), and of floats (F), as L: Pillow's own conversion clips them at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    top = 65535 if image.mode != "F" else 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):
        raise ValueError(f"values of mode {image.mode} from {low:g} to {high:g}, where 0 to {top} is allowed")
    return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))


# ---- All images: hashed, decoded, cached


def _in_blocks(function: Callable, count: int, size: int, title: str) -> Iterator:
    """`function(range)` for each block of row numbers, in threads, in order, few ahead; a bar if it takes long."""
    pending, done = deque(), 0
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=count, desc=title, unit=" images", delay=2) as bar:
        for start in [*range(0, count, size), *[None] * 2 * THREADS]:
            if start is not None:
                pending.append(pool.submit(function, range(start, min(start + size, count))))
            if pending and (start is None or len(pending) > 2 * THREADS):
                yield pending.popleft().result()
                bar.update(min(size, count - done))
                done += size


def _fingerprint(rows, channels: int, resolution: int, cache: Path) -> str:
    """Of the encoded images, in order. Remembered by file sizes and times, so that only new data is read through."""
    memo = cache / f"{rows.stamp()}.content"
    if memo.is_file():
        content = memo.read_text()
    else:
        blocks = _in_blocks(lambda block: [_hash(row or b"") for row in rows.read(block)], len(rows), 64, "Reading")
        content = _hash(*(row for block in blocks for row in block))
        with suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            _replace(memo, content)
    return _hash(content, channels, resolution)


def _decode_or_reuse(rows, shape: tuple, path: Path, writable: bool, max_bytes: int, skip_broken: bool):
    """The pixels [N, C, H, W], or None if too many, and the broken images, {row: reason}, by way of the cache."""
    notes, lazy = path.with_suffix(".json"), np.prod(shape) > max_bytes
    with suppress(OSError, ValueError):
        broken = {int(number): reason for number, reason in json.loads(notes.read_text()).items()}
        pixels = None if lazy else np.load(path, mmap_mode="r")
        if lazy or pixels.shape == (shape[0] - len(broken), *shape[1:]):
            return pixels, broken
    if not writable:
        warnings.warn(f"the cache {path.parent} cannot be written: every process decodes for itself", stacklevel=3)
        lazy |= np.prod(shape) > IN_MEMORY_BYTES
    in_memory = []
    if lazy:
        broken = _decode_all(rows, shape, lambda block: None, skip_broken, "Checking images")
    elif writable:
        broken = _write_cache(rows, shape, path, skip_broken)
    else:
        broken = _decode_all(rows, shape, in_memory.append, skip_broken, "Decoding images")
    if writable:
        _replace(notes, json.dumps(broken))
    return np.concatenate(in_memory) if in_memory else None if lazy else np.load(path, mmap_mode="r"), broken


def _decode_all(rows, shape: tuple, sink: Callable, skip_broken: bool, title: str) -> dict[int, str]:
    """Passes the pixels to `sink`, block by block, in order; returns the images left out, {row number: reason}."""

    def decode(numbers: range) -> tuple[np.ndarray, dict[int, str]]:
        block, broken = np.empty((len(numbers), *shape[1:]), np.uint8), {}
        for number, encoded in zip(numbers, rows.read(numbers), strict=True):
            try:
                block[number - numbers.start - len(broken)] = _decode(encoded, *shape[1:3])
            except Exception as error:  # Pillow's decoders raise nearly anything on torn data
                if not skip_broken:
                    raise _broken_image(rows.label(number), _reason(error)) from error
                broken[number] = _reason(error)
        return block[: len(numbers) - len(broken)], broken

    left_out, size = {}, int(np.clip(2**24 // np.prod(shape[1:]), 1, 64))  # at most 16 MiB a block
    for block, broken in _in_blocks(decode, len(rows), size, title):
        sink(block)
        left_out |= broken
    return left_out


def _write_cache(rows, shape: tuple, path: Path, skip_broken: bool) -> dict[int, str]:
    """Writes the .npy beside its place and renames it when it is whole, so that a kill leaves no torn cache."""
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"the decoded images need {needed / 2**30:.2f} GiB and {path.parent} has {free / 2**30:.2f} GiB free: "
            "make room, set DDIM_HF_CACHE to another disk, or lower max_cached_bytes to decode on the fly"
        )
    temporary = path.with_suffix(".tmp")
    header = {"descr": "|u1", "fortran_order": False}
    try:
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
            broken = _decode_all(rows, shape, lambda block: file.write(block.data), skip_broken, "Decoding images")
            file.seek(0)  # numpy pads headers, so that the number of images can change in place
            np.lib.format.write_array_header_1_0(file, header | {"shape": (shape[0] - len(broken), *shape[1:])})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return broken


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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


def default_cache() -> Path:
    own, shared = os.environ.get("DDIM_HF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "ddim_hf"


def _hash(*parts) -> str:
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return hashlib.blake2b(parts[0], digest_size=16).hexdigest()
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _broken_image(label: str, reason: str) -> ValueError:
    return ValueError(f"{label} cannot be read ({reason}): mend it, or leave such images out with --skip_broken")
