"""Labels: which class each image of a set shows, as a number into the classes' names."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")  # what such a column is called, the usual first


@dataclass(frozen=True)
class Labels:
    """The classes' names, and for each image the number of its class, int64 [N]."""

    numbers: np.ndarray
    names: tuple[str, ...]

    def numbered_as(self, names: Sequence[str], whose: str) -> np.ndarray:
        """The labels as numbers into other names, `whose` a message calls them; ValueError where those lack one."""
        refuse_others([self.names[number] for number in np.unique(self.numbers)], names, whose)
        places = {name: number for number, name in enumerate(names)}
        return np.array([places.get(name, -1) for name in self.names], np.int64)[self.numbers]


def refuse_others(labels: Iterable[str], names: Sequence[str], whose: str):
    """Raise ValueError for labels that are not among these names, `whose` the message calls them."""
    if lacking := sorted(set(labels) - set(names)):
        allowed = f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}"
        raise ValueError(f"labels {', '.join(lacking[:5])} are not among {whose}; allowed: {allowed}")


def number_labels(
    name: str, values: Iterable[Any], image: Callable[[int], str], names: Sequence[str] | None = None
) -> Labels:
    """Number the labels of a set.

    Args:
        name: of the set, for messages; `image` is what they call an image by its number.
        values: one for each image: a number into `names`, or else the class itself, a string or a whole number. None,
            NaN, an empty string and -1, which the Hub's data sets write for it, are no label.
        names: of the classes, in order. None takes those that occur: in the order of numbers if all are, else by name.

    Raises:
        ValueError: in one line, for images without a label, and for labels of other kinds.
    """
    values = [_label(name, value) for value in values]
    missing = [number for number, value in enumerate(values) if value is None]
    if missing:
        first = ", ".join(map(image, missing[:3]))
        raise ValueError(
            f"{len(missing)} of {len(values)} images in {name!r} have no label ({first}): give them one, or leave "
            "their labels unused"
        )
    if names is None:
        values = [str(value) for value in values]
        names = in_order(set(values))
        places = {label: number for number, label in enumerate(names)}
        values = [places[value] for value in values]
    return Labels(np.array(values, np.int64), tuple(names))


def _label(name: str, value: Any) -> str | int | None:
    if value is None or value == "" or value == -1 or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():  # whole numbers, in a column that lacks some
        return int(value)
    if not isinstance(value, str | int):
        raise ValueError(
            f"labels of {name!r} are {type(value).__name__}, such as {value!r}; allowed: strings and ints"
        )
    return value


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes as they are numbered: as numbers if all are, else by name."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def choose_label_column(name: str, columns: Sequence[str], class_columns: Sequence[str], wanted: str | None) -> str:
    """The wanted column; else one that is called as such columns are; else the only one whose type names classes."""
    if wanted is not None and wanted not in columns:
        raise ValueError(f"{name!r} has no column {wanted!r}: its columns are {list(columns)}")
    named = [column for column in LABEL_COLUMNS if column in columns]
    found = [wanted] if wanted else named or list(class_columns)
    if not named and len(found) != 1:
        what = "no column of labels" if not found else "several columns of labels"
        raise ValueError(f"{name!r} has {what}: choose label_column (--label_column) from {found or list(columns)}")
    return found[0]


def keep_labels(file: Path, count: int, read: Callable[[], Labels], refresh: bool) -> Labels:
    """What `read` returns for so many images, or what an earlier call has left of it in the file."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not whole: read anew
        kept = json.loads(file.read_text())
        if not refresh and len(kept["numbers"]) == count:
            return Labels(np.array(kept["numbers"], np.int64), tuple(kept["names"]))
    labels = read()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"names": labels.names, "numbers": labels.numbers.tolist()}))
    return labels
