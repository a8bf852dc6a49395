"""Train a DDIM model: python examples/train.py --dataset_name path/to/images --output_dir outputs/mine"""

import sys
from typing import NoReturn

from transformers import HfArgumentParser

from ddim_hf.command_line import run
from ddim_hf.training import TrainingConfig, TrainingStopped, train


class Parser(HfArgumentParser):
    """Says what is wrong in one line; --help lists the flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def main():
    (config,) = Parser(TrainingConfig, description=__doc__).parse_args_into_dataclasses()
    try:
        train(config)
    except TrainingStopped:
        sys.exit(143)


if __name__ == "__main__":
    run(main)
