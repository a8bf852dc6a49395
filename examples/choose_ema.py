"""Choose the length of a run's average by its samples: python examples/choose_ema.py RUN --reference DATASET"""

import argparse
from pathlib import Path

from ddim_hf.command_line import add_data_flags, run
from ddim_hf.evaluation import Question
from ddim_hf.processes import processes
from ddim_hf.training.choice_of_average import choose_average
from ddim_hf.training.profiles import parse_profile


def main():
    parser = argparse.ArgumentParser(description="Measure a run's averages, kept or not, and write the best.")
    parser.add_argument("run", type=Path, help="the run's folder, with checkpoints")
    parser.add_argument("--reference", required=True, help="dataset or folder, as in evaluate.py")
    parser.add_argument("--lengths", default="", help="averages that were not kept: 0.9995,power:0.07")
    parser.add_argument("--output_dir", type=Path, help="where the best is written (default: RUN/chosen)")
    parser.add_argument("--num_inference_steps", default="20,50", metavar="S,S,...", help="their mean decides")
    parser.add_argument("--num_images", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0, help="image k is made from seed + k")
    parser.add_argument("--split", help="of the reference (default: train, or its only one)")
    add_data_flags(parser, of="reference", kept="decoded images and reference features")
    parser.add_argument("--feature_extractor", help="a TorchScript file instead of Inception")
    parser.add_argument("--inception_weights", help="Inception's weights, for machines without network")
    parser.add_argument("--max_batch_size", type=int, help="images through the network at once")
    parser.add_argument("--fast", action="store_true", help="channels-last, compiled, bf16 where it is faster")
    settings = vars(parser.parse_args())

    folder, lengths, steps = (settings.pop(name) for name in ("run", "lengths", "num_inference_steps"))
    output_dir = settings.pop("output_dir") or folder / "chosen"
    lengths = [parse_profile(text) for text in lengths.split(",") if text]
    settings |= {"num_inference_steps": [int(part) for part in steps.split(",")]}
    question = Question(str(folder), output=folder / "averages.json", **settings)
    comparison, best, errors = choose_average(folder, question, lengths, output_dir)
    if processes().is_main_process:
        print(comparison)
        for name, error in errors.items():
            if error > 0:
                print(f"{name} was not kept: the profile of the combination that stands for it is off by {error:.2%}")
        print(f"the best, {comparison.models[best]}, lies in {output_dir}")


if __name__ == "__main__":
    run(main)
