"""What the example scripts share: how they end, quietly or with one line, and their flags for classes."""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .guidance import check_interval
from .processes import let_the_first_speak


def run(main: Callable[[], None]):
    """Call `main` and exit; wrong input gives one line on stderr and exit code 2, `--traceback` the traceback too.

    An error's notes, what to do about it, follow it.
    """
    show = "--traceback" in sys.argv
    if show:
        sys.argv.remove("--traceback")
    try:
        main()
    except KeyboardInterrupt as stop:
        print(*getattr(stop, "__notes__", []), sep="\n", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        let_the_first_speak()
        if show:
            traceback.print_exc()
        print("error: " + "; ".join([" ".join(str(error).split()), *getattr(error, "__notes__", [])]), file=sys.stderr)
        sys.exit(2)


CLASS_FLAGS = ("class_labels", "guidance_scale", "guidance_interval", "guide")


def add_class_flags(parser: argparse.ArgumentParser, class_labels: str, guide: bool = True):
    """Add the flags of classes and guidance, of which `take_classes` makes arguments; `class_labels` is its help."""
    parser.add_argument("--class_labels", metavar="LABEL,LABEL,...", help=class_labels)
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="towards the class; 1 is none")
    parser.add_argument("--guidance_interval", metavar="LOW,HIGH", help="timesteps with guidance, in place of all")
    if guide:
        parser.add_argument(
            "--guide", metavar="MODEL", help="a worse model, to move away from in the null class's place"
        )


def take_classes(settings: dict[str, Any], load: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Take CLASS_FLAGS out of a parser's settings, and return them as a pipeline's arguments.

    Args:
        load: the guide, from its folder or id.
    """
    labels, interval = settings.pop("class_labels"), settings.pop("guidance_interval")
    classes = {
        "class_labels": labels.split(",") if labels is not None and "," in labels else labels,
        "guidance_scale": settings.pop("guidance_scale"),
        "guidance_interval": None if interval is None else check_interval(interval.split(",")),
    }
    guide = settings.pop("guide", None)
    return classes if guide is None else classes | {"guide": load(guide)}
