"""A network's weights as files: under which names diffusers keeps them, how many there are, whether they are whole."""

import math
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..files import read_json

NAME = "diffusion_pytorch_model"


def weight_patterns(variant: str | None, suffix: str) -> list[str]:
    """The names of a network's weights, whole or in parts, as globs."""
    part, dot = "?????-of-?????", f".{variant}" if variant else ""
    patterns = [f"{NAME}{dot}.{suffix}", f"{NAME}{dot}-{part}.{suffix}", f"{NAME}.{suffix}.index{dot}.json"]
    return patterns + ([f"{NAME}-{part}{dot}.{suffix}"] if variant else [])


def loaded_weights(folder: Path) -> list[Path]:
    """The safetensors files that are loaded from `folder`, of all variants: where there is an index, those it names.

    Raises:
        FileNotFoundError: an index names a file that is not there.
    """
    files = sorted(folder.glob(f"{NAME}*.safetensors"))
    for index in sorted(folder.glob(f"{NAME}.safetensors.index*.json")):
        variant = index.name.removeprefix(f"{NAME}.safetensors.index").removesuffix("json").strip(".") or None
        named = _named(index)
        if missing := [name for name in named if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{index} names {missing[0]}, which is not there: save the model again")
        files = [file for file in files if file.name in named or variant_of(file.name) != variant]
    return files


def main_weights(folder: Path) -> list[Path]:
    """The safetensors files of one copy of the network: all its parts, none of its variants if there are others."""
    files = loaded_weights(folder)
    variants = [variant_of(file.name) for file in files]
    variant = None if None in variants else next(iter(variants), None)
    return [file for file in files if variant_of(file.name) == variant]


def variant_of(name: str) -> str | None:
    """The variant in the name of a file of weights: "fp16" in `diffusion_pytorch_model.fp16.safetensors`."""
    return ".".join(re.sub(r"-\d+-of-\d+", "", name).split(".")[1:-1]) or None


def remove_replaced(folder: Path, variant: str | None, suffix: str):
    """Remove what an earlier save has left of a network that was saved anew: of whole and parts, what is not new.

    diffusers removes the parts itself, but not their index, by which everyone would look for them.
    """
    whole, _, index, *_ = weight_patterns(variant, suffix)
    if (folder / index).is_file():
        of_parts = all((folder / name).is_file() for name in _named(folder / index))
        (folder / (whole if of_parts else index)).unlink(missing_ok=True)


def _named(index: Path) -> list[str]:
    return sorted(set(read_json(index)["weight_map"].values()))


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
