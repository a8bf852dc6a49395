"""Measure what the DDIM paper's tables 1 and 2 hold, each figure beside the paper's: make paper-tables

A network and a GPU are assumed: google/ddpm-cifar10-32, CIFAR-10 and Inception are fetched. A call that was stopped
goes on with the same command. --dry_run prints the cells, the passes and the estimated time.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import DATA_FLAGS, add_data_flags, run
from ddim_hf.evaluation import Question
from ddim_hf.evaluation.answers import answer
from ddim_hf.files import write_text
from ddim_hf.generation import default_max_batch_size, load_pipeline
from ddim_hf.processes import end_with_launcher, processes
from ddim_hf.reports.markdown import shown, table
from ddim_hf.reports.words import in_words

PAPER = json.loads(Path(__file__).with_name("ddim_paper.json").read_text())
DISTANCES, ERRORS = PAPER["table 1"], {int(steps): value for steps, value in PAPER["table 2"].items()}
TEST_IMAGES = 10_000  # of CIFAR-10, which table 2 is measured on
TRIAL = 3  # passes, after one that prepares much


def main():
    end_with_launcher()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google/ddpm-cifar10-32")
    parser.add_argument("--reference", default="uoft-cs/cifar10", help="dataset, with splits train and test")
    parser.add_argument("--output_dir", type=Path, default="outputs/paper_tables")
    parser.add_argument("--num_inference_steps", help="only these S, by commas (default: all of the paper's)")
    parser.add_argument("--num_images", type=int, default=50_000, help="of each distance, from each of two seeds")
    parser.add_argument("--data_images", type=int, default=TEST_IMAGES, help="of the reconstruction error")
    modes = ["clean", "legacy_pytorch", "legacy_tensorflow"]
    parser.add_argument("--mode", choices=modes, help="of Inception (default: legacy_tensorflow)")
    parser.add_argument("--feature_extractor", help="a TorchScript file instead of Inception")
    parser.add_argument("--inception_weights", help="Inception's weights, for machines without network")
    parser.add_argument("--max_batch_size", type=int, help="images through the network at once")
    add_data_flags(parser, of="reference", kept="decoded images and reference features")
    parser.add_argument("--fast", action="store_true", help="channels-last, compiled, bf16 where it is faster")
    parser.add_argument("--dry_run", action="store_true", help="print cells, passes and the estimated time, and stop")
    args = parser.parse_args()
    args.mode = args.mode or ("clean" if args.feature_extractor else "legacy_tensorflow")
    if args.num_inference_steps:
        keep_steps([int(steps) for steps in args.num_inference_steps.split(",")])
    if args.dry_run:
        print(describe(args))
        return
    first, second = (distances(args, seed) for seed in (0, args.num_images))
    text = beside_the_paper(first, second, reconstructions(args))
    if processes().is_main_process:
        write_text(args.output_dir / "tables.md", text)
        print(text)
        print(f"the tables lie in {args.output_dir / 'tables.md'}")


def keep_steps(wanted: list[int]):
    """Leave all cells of other S out."""
    known = {int(steps) for row in DISTANCES for steps in row["fid"]} | set(ERRORS)
    if not set(wanted) <= known:
        raise ValueError(f"num_inference_steps has {wanted}; allowed: those of the paper, {sorted(known)}")
    for row in DISTANCES:
        row["fid"] = {steps: value for steps, value in row["fid"].items() if int(steps) in wanted}
    for steps in set(ERRORS) - set(wanted):
        del ERRORS[steps]


def in_table_1() -> list[int]:
    return [int(steps) for steps in DISTANCES[0]["fid"]]


# What is to be done


def describe(args: argparse.Namespace) -> str:
    """Cells, passes (one image through the network once) and time, by a trial of the network."""
    # A distance is measured from two seeds, and a reconstruction goes there and back.
    passes = {(name(row), int(steps)): 2 * args.num_images * int(steps) for row in DISTANCES for steps in row["fid"]}
    passes |= {("reconstruction", steps): 2 * args.data_images * steps for steps in ERRORS}
    rows, total = [[kind, f"{steps}", f"{count:,}"] for (kind, steps), count in passes.items()], sum(passes.values())
    pipe = load_pipeline(args.model, fast=args.fast)
    seconds = seconds_of_a_pass(pipe, args.max_batch_size or default_max_batch_size(pipe))
    said = f"{len(rows)} cells, {total:,} passes: about {in_words(total * seconds)} on one {pipe.device.type}"
    trial = f"by a trial of {1 / seconds:.3g} a second; features are not counted"
    return f"{table(['cell', 'S', 'passes'], rows)}\n{said}, {trial}"


def seconds_of_a_pass(pipe: DDIMCustomPipeline, images: int) -> float:
    x, t = torch.randn(images, *pipe.state_shape, device=pipe.device), torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        pipe.predict(x, t.to(pipe.device)).sum().item()
        began = time.perf_counter()
        for _ in range(TRIAL):
            pipe.predict(x, t.to(pipe.device)).sum().item()
    return (time.perf_counter() - began) / TRIAL / images


# The figures


def measure(args: argparse.Namespace, **asked: Any) -> list[dict[str, Any]]:
    settings = {key: getattr(args, key) for key in ("max_batch_size", "fast", *DATA_FLAGS)} | {"tau": ["quad"]}
    question = Question(args.model, args.reference, args.output_dir / "results.json", **settings, **asked)
    return answer(question).asked()


def distances(args: argparse.Namespace, seed: int) -> dict[tuple[str, int], float]:
    """Table 1, by row and S."""
    if not in_table_1():
        return {}
    etas = [row["eta"] for row in DISTANCES if row["variance"] == "sigma"]
    cells = {"num_inference_steps": in_table_1(), "eta": etas, "variance": ["sigma", "sigma_hat"], "seed": seed}
    cells |= {key: getattr(args, key) for key in ("num_images", "mode", "feature_extractor", "inception_weights")}
    return {(name(row), row["num_inference_steps"]): row["value"] for row in measure(args, split="train", **cells)}


def reconstructions(args: argparse.Namespace) -> dict[int, float]:
    """Table 2, by S."""
    asked = {"reconstruction": list(ERRORS), "data_splits": ["test"], "data_images": args.data_images}
    rows = measure(args, distance=False, **asked) if ERRORS else []
    return {row["num_inference_steps"]: row["value"] for row in rows}


def name(row: dict[str, Any]) -> str:
    return "sigma_hat" if row["variance"] == "sigma_hat" else f"eta {row['eta']:g}"


def beside_the_paper(
    first: dict[tuple[str, int], float], second: dict[tuple[str, int], float], errors: dict[int, float]
) -> str:
    """Both tables as Markdown, or the one that has cells of these S."""
    text = f"Beside {PAPER['source']}\n"
    text += "\n" + table_1(first, second) if first else ""
    return text + ("\n" + table_2(errors) if errors else "")


def table_1(first: dict[tuple[str, int], float], second: dict[tuple[str, int], float]) -> str:
    """The distances.

    A distance is within chance of the paper's if they differ by at most twice the standard deviation of the difference
    of two such figures. That is estimated from the two seeds of all cells, relative to the figure.
    """
    rows, spread = [], relative_spread(first, second)
    for row in DISTANCES:
        for steps, paper in row["fid"].items():
            key = name(row), int(steps)
            chance = 2 * math.sqrt(2) * spread * first[key]
            figures = [shown(paper), shown(first[key]), shown(second[key]), f"{first[key] - paper:+.3g}"]
            rows.append([key[0], steps, *figures, yes_or_no(abs(first[key] - paper) <= chance)])
    head = ["", "S", "paper", "measured", "from other seeds", "difference", "within chance"]
    chance = f"Chance: one figure has a standard deviation of {spread:.2%}, by two seeds of each cell.\n"
    return f"**Table 1**: the distance, quadratic tau\n\n{table(head, rows)}\n{chance}"


def table_2(errors: dict[int, float]) -> str:
    """The errors, in which nothing is drawn."""
    rows = []
    for steps, paper in ERRORS.items():
        rounding = 0.5 * 10.0 ** -len(f"{paper}".partition(".")[2])
        figures = [f"{paper}", f"{errors[steps]:.2g}", f"{errors[steps] - paper:+.2g}"]
        rows.append([f"{steps}", *figures, yes_or_no(abs(errors[steps] - paper) <= rounding)])
    head = ["S", "paper", "measured", "difference", "within the paper's rounding"]
    title = "**Table 2**: error per dimension of encoding and decoding, in which nothing is drawn"
    return f"{title}\n\n{table(head, rows)}"


def relative_spread(first: dict[tuple[str, int], float], second: dict[tuple[str, int], float]) -> float:
    """The standard deviation of a figure relative to it, from pairs."""
    # Of a pair the variance is (a - b)^2 / 2.
    variances = [((first[key] - second[key]) / ((first[key] + second[key]) / 2)) ** 2 / 2 for key in first]
    return math.sqrt(sum(variances) / len(variances))


def yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


if __name__ == "__main__":
    run(main)
