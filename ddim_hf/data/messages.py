"""What is said of images that cannot be read, that are left out, or that were asked for in a way that does not fit."""

import warnings
from collections.abc import Iterable
from pathlib import Path

ALLOWED = "give a folder of images, a parquet file, a Hub dataset's id (it needs the network once), or 'digits'"


def reason(error: Exception) -> str:
    """All that an error of another library says, as the middle of a line."""
    return " ".join(str(error).split()).rstrip(". ") or type(error).__name__


def unreadable(label: str, why: str) -> ValueError:
    return ValueError(
        f"{label} cannot be read ({why}): mend or remove it; a training leaves such images out with --skip_broken"
    )


def tell_left_out(name: str, files: Iterable[Path], what: str):
    """Warn of what is not read, so that nothing is missing in silence."""
    if files := sorted(files):
        warnings.warn(f"{name}: left out {len(files)} {what}: {', '.join(map(str, files[:3]))}", stacklevel=4)


def refuse_options(name: str, **options: str | None):
    """Raise a ValueError for an option that is given and means nothing for this set."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} is {value!r}, and {name!r} has no such thing; allowed there: None")
