"""What the example scripts share: how they end, quietly or with one line, and their flags for classes and data."""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .data import MAX_CACHED_BYTES
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


DATA_FLAGS = (
    "image_column",
    "dataset_config_name",
    "dataset_revision",
    "cache_dir",
    "refresh_cache",
    "skip_broken",
    "max_cached_bytes",
)


def add_data_flags(parser: argparse.ArgumentParser, of: str = "data", kept: str = "decoded images"):
    """Add DATA_FLAGS: how the images `of` a set are read, and where what is `kept` of them lies."""
    parser.add_argument("--image_column", help=f"of the {of}")
    parser.add_argument("--dataset_config_name", help=f"of the {of}: which of its configurations")
    parser.add_argument("--dataset_revision", help=f"of the {of}, on the Hub: branch, tag or commit")
    parser.add_argument("--cache_dir", help=f"for {kept}")
    parser.add_argument("--refresh_cache", action="store_true", help="read and decode all images again")
    parser.add_argument("--skip_broken", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--max_cached_bytes", type=int, default=MAX_CACHED_BYTES, help="of a set kept decoded")


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return DATA_FLAGS as arguments of `ddim_hf.data.load_images`."""
    renamed = {"dataset_config_name": "config_name", "dataset_revision": "revision"}
    return {renamed.get(name, name): getattr(args, name) for name in DATA_FLAGS}
