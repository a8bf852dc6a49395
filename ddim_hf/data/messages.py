"""What is said of images that cannot be read, that are left out, or that were asked for in a way that does not fit."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from ..processes import is_first
from ..reports.words import counted

ALLOWED = "give a folder of images, a parquet file, a Hub dataset's id (it needs the network once), or 'digits'"


def reason(error: Exception) -> str:
    """All that an error of another library says, as the middle of a line."""
    return " ".join(str(error).split()).rstrip(". ") or type(error).__name__


def unreadable(label: str, why: str) -> ValueError:
    return ValueError(
        f"{label} cannot be read ({why}): mend or remove it, or leave such images out with --skip_broken"
    )


def tell(text: str):
    """Warn, on one of a run's processes: all of them read the same data. A warning that was given is not repeated."""
    if is_first():
        warnings.warn_explicit(text, UserWarning, __name__, 0, registry=_told)


_told: dict = {}  # the warnings module's own notes


def tell_left_out(name: str, files: Iterable[Path], what: str):
    """Warn of what is not read, so that nothing is missing in silence; `what` it is, of one."""
    if files := sorted(files):
        tell(f"{name}: left out {counted(len(files), what)}: {', '.join(map(str, files[:3]))}")


def refuse_options(name: str, **options: str | None):
    """Raise a ValueError for an option that is given and means nothing for this set."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} is {value!r}, and {name!r} has no such thing; allowed there: None")
