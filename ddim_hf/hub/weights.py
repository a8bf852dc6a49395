"""A network's weights as files: under which names diffusers keeps them, how many there are, whether they are whole."""

import math
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

NAME = "diffusion_pytorch_model"


def weight_patterns(variant: str | None, suffix: str) -> list[str]:
    """The names of a network's weights, whole or in parts, as globs."""
    part, dot = "?????-of-?????", f".{variant}" if variant else ""
    patterns = [f"{NAME}{dot}.{suffix}", f"{NAME}{dot}-{part}.{suffix}", f"{NAME}.{suffix}.index{dot}.json"]
    return patterns + ([f"{NAME}-{part}{dot}.{suffix}"] if variant else [])


def main_weights(folder: Path) -> list[Path]:
    """The safetensors files of one copy of the network: all its parts, none of its variants if there are others."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if re.fullmatch(rf"{NAME}(-\d+-of-\d+)?\.safetensors", file.name)] or files[:1]


def count_parameters(files: list[Path]) -> int:
    """The number of weights in safetensors files, from their headers; `OSError` for a file that is cut short."""
    total = 0
    for file in files:
        try:
            with safe_open(file, "np") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except SafetensorError as error:
            raise OSError(f"{file} is truncated or not safetensors ({error}): save or download it again") from error
    return total
