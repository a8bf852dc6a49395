"""Train a DDIM model: python examples/train.py --dataset_name path/to/images --output_dir outputs/mine"""

import argparse
import sys
from typing import NoReturn

from transformers import HfArgumentParser

from ddim_hf.command_line import run
from ddim_hf.processes import let_the_first_speak
from ddim_hf.training import TrainingConfig, TrainingStopped, train
from ddim_hf.training.peers import answer
from ddim_hf.training.recipe_table import defaults_by_recipe, recipe_table


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says each setting's default, in each recipe where they differ."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is not None:
            return super()._get_help_string(action)
        by_recipe = defaults_by_recipe(action.dest)
        return action.help + (f" (default: {by_recipe})" if by_recipe else "")


class ListRecipes(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_):
        print(recipe_table(), end="")
        parser.exit()


class Parser(HfArgumentParser):
    """Says what is wrong in one line; --help lists the flags."""

    def error(self, message: str) -> NoReturn:
        let_the_first_speak()
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def main():
    parser = Parser(TrainingConfig, description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--list_recipes", action=ListRecipes, nargs=0, default=argparse.SUPPRESS, help="print all recipes, and stop"
    )
    if said := answer(sys.argv[1:]):  # before what else may be wrong
        parser.error(said)
    config, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        flags = [word.split("=")[0] for word in unknown if word.startswith("-")]
        shown = [*(flags or unknown)[:3], *["..."] * (len(flags or unknown) > 3)]
        parser.error(f"unknown: {' '.join(shown)}")
    try:
        train(config)
    except TrainingStopped:
        sys.exit(143)


if __name__ == "__main__":
    run(main)
