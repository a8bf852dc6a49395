"""Classes, and guidance towards them.

A network with classes is given, beside x_t and t, the class of each image: one of K, or the null class, whose index is
K (as in DiT: Peebles and Xie 2022, arXiv:2212.09748) and which stands for an image of any class.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UNet2DModel

SHOWN = 20  # names in a message


def number_of_classes(unet: UNet2DModel) -> int | None:
    """K, without the null class; None for a network without classes."""
    embedded = getattr(unet, "config", {}).get("num_class_embeds")
    return None if embedded is None else embedded - 1


def check_names(id2label: dict[int | str, str], unet: UNet2DModel) -> dict[int, str]:
    """Return the names by class, in order, with ints as keys (JSON has strings).

    Raises ValueError for names that are not those of the network's classes 0 to K - 1.
    """
    classes = number_of_classes(unet)
    if classes is None:
        raise ValueError(f"id2label names {len(id2label)} classes, but the network has none; allowed: None")
    try:
        names = {int(key): str(name) for key, name in id2label.items()}
    except ValueError:
        names = {}
    if names.keys() != set(range(classes)):
        keys = ", ".join(map(repr, list(id2label)[:SHOWN]))
        raise ValueError(f"id2label names {keys}; allowed here: 0 to {classes - 1}, without the null class")
    return dict(sorted(names.items()))


def class_ids(class_labels: Any, count: int, id2label: dict[int, str]) -> torch.Tensor:
    """Return the classes of `count` images, int64 [count].

    Args:
        class_labels: a name of id2label, a number from 0 to K, or None, which is the null class K as well; one for all
            images, or a sequence or tensor with one for each. A string that is no name may be a number.

    Raises ValueError for another name, number or length.
    """
    labels = listed(class_labels)
    labels = [class_labels] * count if labels is None else labels
    if len(labels) != count:
        raise ValueError(f"class_labels has {len(labels)} entries; allowed: one for all images, or one each ({count})")
    return torch.tensor([_class_id(label, id2label) for label in labels], dtype=torch.int64)


def listed(class_labels: Any) -> list | None:
    """The entries of class_labels; None where it is one label for all images."""
    if hasattr(class_labels, "tolist"):
        class_labels = class_labels.tolist()
    return list(class_labels) if isinstance(class_labels, Iterable) and not isinstance(class_labels, str) else None


def _class_id(label: Any, id2label: dict[int, str]) -> int:
    null = len(id2label)
    if label is None:
        return null
    named = [number for number, name in id2label.items() if name == label]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise ValueError(f"class_labels has {label!r}, the name of classes {named}; allowed: their numbers")
    try:
        number = int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError):
        number = -1
    if isinstance(label, bool) or not 0 <= number <= null:
        shown = [name if name == str(key) else f"{name} ({key})" for key, name in list(id2label.items())[:SHOWN]]
        more = [f"{null - SHOWN} more"] if null > SHOWN else []
        raise ValueError(f"class_labels has {label!r}; allowed: {', '.join(shown + more)}, or None, the null class")
    return number
