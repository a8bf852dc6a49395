"""A page to look with: python -m ddim_hf.app MODEL"""

import argparse
from pathlib import Path

from ..command_line import run

MODEL = "models/ddim-cifar10-64"


def main():
    parser = argparse.ArgumentParser(
        prog="python -m ddim_hf.app", description="Serve a page that samples, encodes, interpolates and compares."
    )
    parser.add_argument("model", nargs="?", help=f"folder or Hub id (default: the repository's {MODEL})")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--allow_models", action="store_true", help="let visitors name other folders and Hub ids")
    args = parser.parse_args()

    try:
        from .serving import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'ddim_hf[app]'") from error
    serve(args.model or default_model(), allow_models=args.allow_models, port=args.port)


def default_model() -> str:
    """The repository's own model, from this folder or from the package's checkout."""
    for folder in (Path(), Path(__file__).parents[2]):
        if (folder / MODEL).is_dir():
            return str(folder / MODEL)
    raise ValueError(f"there is no {MODEL} here: name a folder or a Hub id, python -m ddim_hf.app MODEL")


if __name__ == "__main__":
    run(main)
