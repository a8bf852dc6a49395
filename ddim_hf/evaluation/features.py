"""Where features of images come from: Inception as clean-fid runs it (Parmar et al. 2022), or any TorchScript file."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from .. import broken_torchvision
from ..reports.metrics import GENERAL, WITHIN_CLASSES

MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")
INCEPTION_FILE = "inception-2015-12-05.pt"
LEGACY_FILE = "pt_inception-2015-12-05-6726825d.pth"


class FeatureExtractor:
    """A function from images, uint8 with 1 or 3 channels, to features, float32 array [N, D].

    `name` is "inception-<mode>" or the file's name, `hash` the SHA-256 of its weights' file. `metric` and
    `kernel_metric` are what distances on its features are called: "fid" and "kid" for Inception's, else
    "frechet_distance" and "kernel_distance". Grey is repeated to 3 channels.
    """

    def __init__(self, name: str, hash: str, forward: Callable, resize: Callable | None, device: torch.device):
        self.name, self.hash, self.device = name, hash, device
        self.metric, self.kernel_metric = ("fid", "kid") if resize else (GENERAL["fid"], GENERAL["kid"])
        self.metric_within_classes = self.metric + WITHIN_CLASSES
        self._forward, self._resize = forward, resize
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1)) if resize else None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor | Sequence[torch.Tensor]) -> np.ndarray:
        """Features of images, uint8 [N, C, H, W], or a sequence of [C, H, W] that may differ in size.

        Raises:
            ValueError: images of another type or shape, or a TorchScript file that does not return [N, D].
        """
        for image in images:
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
                given = f"an image is {image.dtype} {tuple(image.shape)}"
                raise ValueError(f"{given}; allowed: torch.uint8 (C, H, W) with C 1 or 3")
        colour = [image.cpu().expand(3, -1, -1) for image in images]
        prepared = list(self._threads.map(self._resized, colour)) if self._resize else [x.float() for x in colour]
        by_size: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(prepared):
            by_size.setdefault(image.shape, []).append(number)
        rows: dict[int, np.ndarray] = {}
        for numbers in by_size.values():
            features = self._forward(torch.stack([prepared[number] for number in numbers]).to(self.device))
            if features.ndim != 2 or len(features) != len(numbers):
                given = f"{self.name} returns {tuple(features.shape)} for {len(numbers)} images"
                raise ValueError(f"{given}; allowed: ({len(numbers)}, D)")
            rows |= zip(numbers, features.float().cpu().numpy(), strict=True)
        return np.stack([rows[number] for number in range(len(prepared))])

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        """One image as clean-fid's ResizeDataset hands it to Inception: where it stays uint8, by way of [0, 1]."""
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        resized = torch.from_numpy(np.array(self._resize(pixels))).permute(2, 0, 1)
        return resized.float().div(255) * 255 if resized.dtype == torch.uint8 else resized


def load_feature_extractor(
    feature_extractor: str | Path | None = None,
    inception_weights: str | Path | None = None,
    mode: str = "clean",
    device: str | torch.device | None = None,
) -> FeatureExtractor:
    """Load Inception as clean-fid runs it, or a TorchScript file.

    Args:
        feature_extractor: a TorchScript module from float images [N, 3, H, W] with values 0..255, at their own
            resolution, to [N, D]; None takes Inception.
        inception_weights: the file with Inception's weights, for machines without network: clean-fid's
            inception-2015-12-05.pt, or in mode legacy_pytorch pt_inception-2015-12-05-6726825d.pth. None takes what
            clean-fid has downloaded, or downloads it.
        mode: clean-fid's "clean", "legacy_pytorch" or "legacy_tensorflow".
        device: where it runs; None takes a GPU where there is one.

    Raises:
        ValueError: an unknown mode, a file that is not what it should be, or with feature_extractor what is of
            Inception: inception_weights, or a mode that is not the default.
        FileNotFoundError: no such file, or no weights and no network.
        ImportError: clean-fid is missing, or torchvision does not fit torch.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(map(repr, MODES))}")
    for name, file in (("feature_extractor", feature_extractor), ("inception_weights", inception_weights)):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{name} {str(file)!r}: no such file")
    if feature_extractor is not None:
        if inception_weights is not None or mode != "clean":
            given = "inception_weights" if inception_weights is not None else f"mode {mode!r}"
            raise ValueError(
                f"{given} is given with feature_extractor, which replaces Inception; allowed: one of them"
            )
        forward = load_torchscript(feature_extractor, device)
        return FeatureExtractor(Path(feature_extractor).name, file_hash(feature_extractor), forward, None, device)
    import_cleanfid()
    from cleanfid.resize import build_resizer

    load = _legacy_inception if mode == "legacy_pytorch" else _inception
    forward, weights = load(inception_weights, mode, device)
    return FeatureExtractor(f"inception-{mode}", file_hash(weights), forward, build_resizer(mode), device)


def import_cleanfid():
    """Import clean-fid, which imports torchvision; raises ImportError in one line where either cannot be had."""
    if broken_torchvision.reason:
        raise ImportError(
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not fit together "
            f"({broken_torchvision.reason}): install the torchvision that was released with this torch"
        )
    try:
        import cleanfid.fid  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}: FID and KID need clean-fid, pip install 'ddim_hf[eval]'") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _loaded(load: Callable, file: Path, what: str, **arguments: Any) -> Any:
    try:
        return load(str(file), **arguments)
    except Exception as error:  # of pickle, zip and TorchScript
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{str(file)!r} is not {what}, or is torn ({reason[:120]})") from error


def load_torchscript(file: str | Path, device: torch.device) -> torch.jit.ScriptModule:
    """A TorchScript module for evaluation; ValueError where the file is none."""
    return _loaded(torch.jit.load, Path(file), "a TorchScript module", map_location=device).eval()


def _inception(file: str | Path | None, mode: str, device: torch.device) -> tuple[Callable, Path]:
    from cleanfid import downloads_helper
    from cleanfid.inception_torchscript import InceptionV3W

    # clean-fid keeps the file here. It is put there whole, because clean-fid takes any file that it finds.
    kept = Path(tempfile.gettempdir() if os.name == "nt" else "/tmp", INCEPTION_FILE)
    if file is None and not kept.is_file():
        with FileLock(f"{kept}.lock"), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            if not kept.is_file():
                _downloaded(downloads_helper.check_download_inception, folder, url=downloads_helper.inception_url)
                os.replace(Path(folder, INCEPTION_FILE), kept)
    file = Path(file or kept)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(file, Path(folder, INCEPTION_FILE))
        inside = mode == "legacy_tensorflow"
        what = "Inception as a TorchScript module with layers"
        try:
            module = InceptionV3W(folder, download=False, resize_inside=inside)
        except Exception as error:  # of zip and TorchScript
            raise ValueError(f"{str(file)!r} is not {what}, or is torn: delete it or give another") from error
    return module.to(device).eval(), file


def _legacy_inception(file: str | Path | None, mode: str, device: torch.device) -> tuple[Callable, Path]:
    from cleanfid.features import build_feature_extractor
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    hub = torch.hub.get_dir()
    if file is None:
        forward = _downloaded(build_feature_extractor, mode, device, use_dataparallel=False, url=FID_WEIGHTS_URL)
        return forward, Path(hub, "checkpoints", LEGACY_FILE)
    with tempfile.TemporaryDirectory() as folder:  # torch.hub takes a file of this name for its own download
        Path(folder, "checkpoints").mkdir()
        shutil.copyfile(file, Path(folder, "checkpoints", LEGACY_FILE))
        torch.hub.set_dir(folder)
        try:
            return build_feature_extractor(mode, device, use_dataparallel=False), Path(file)
        except Exception as error:  # of pickle, zip and load_state_dict
            raise ValueError(f"{str(file)!r} does not hold Inception's weights for legacy_pytorch") from error
        finally:
            torch.hub.set_dir(hub)


def _downloaded(fetch: Callable, *arguments: Any, url: str, **keywords: Any) -> Any:
    try:
        return fetch(*arguments, **keywords)
    except OSError as error:  # urllib's, all of them
        raise FileNotFoundError(
            f"Inception's weights are not here and cannot be downloaded ({error}): give --inception_weights FILE, "
            f"fetched elsewhere from {url}, or --feature_extractor FILE (TorchScript) for a Frechet distance on other "
            "features; a training goes without by --feature_extractor none, and saves grids of samples alone"
        ) from error
