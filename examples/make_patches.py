"""Make a training set of small images from a folder of large pictures, by crops with overlap and mirror images.

    python examples/make_patches.py path/to/pictures outputs/patches --resolution 256 --overlap 0.5 --flips

The result is a folder of parquet files, which examples/train.py --dataset_name takes. The same command completes a
call that was killed.
"""

import argparse
from pathlib import Path

from ddim_hf.command_line import run
from ddim_hf.data.patches import make_patches


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="pictures, in any sub-folders")
    parser.add_argument("output", type=Path, help="where the set is written")
    parser.add_argument("--resolution", type=int, default=256, help="side of a patch, in the picture's own pixels")
    parser.add_argument(
        "--num_images", type=int, help="in all, as evenly from the pictures as they allow; default: all"
    )
    parser.add_argument("--overlap", type=float, default=0.0, help="the least share of a side, from 0 below 1")
    parser.add_argument("--flips", action="store_true", help="mirror images too")
    parser.add_argument("--most_per_picture", type=int, help="the most patches of one picture")
    settings = vars(parser.parse_args())
    count = make_patches(**settings)
    print(f"{count:,} patches lie in {settings['output']}; examples/train.py --dataset_name takes them")


if __name__ == "__main__":
    run(main)
