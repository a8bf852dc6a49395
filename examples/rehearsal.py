"""Rehearse a training at its real size before the device is there: patches of pictures in place of the data, decoded,
cached and read; some steps of the real network, killed and resumed beside a run that is not; samples; their distance.

    python examples/rehearsal.py path/to/pictures outputs/rehearsal-256

Each piece's figures are kept in rehearsal.json as soon as they are there, and the same command goes on: a piece that
was killed is done again, or completed where it can be (patches, samples). Flags that are not listed by --help go to
the training, as examples/train.py has them. What comes out is no model, and no face.
"""

import argparse
import gc
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from transformers import HfArgumentParser

from ddim_hf.command_line import run
from ddim_hf.data import load_images
from ddim_hf.data.patches import make_patches
from ddim_hf.evaluation import Question
from ddim_hf.evaluation.answers import answer
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.files import read_json, write_text
from ddim_hf.generation import generate, load_pipeline
from ddim_hf.reports.markdown import table
from ddim_hf.reports.provenance import machine
from ddim_hf.training import RECIPES, TrainingConfig, train
from ddim_hf.training.batches import BatchOrder, BatchReader
from ddim_hf.training.checkpoints import list_checkpoints
from ddim_hf.training.log import read_log

MIB, GIB = 2**20, 2**30
READ_TOGETHER = 64  # images that the reading piece takes at once, as a training does
NOT_SHOWN = (
    "Not shown: faces, a GPU, and a trained model, whose samples would say something. The distance is that of a "
    "network after a few steps."
)


# What a process takes


def private_memory() -> int:
    """Bytes of this process beside the pages of files, such as the cache's: those are the system's to drop."""
    info = psutil.Process().memory_info()
    return info.rss - getattr(info, "shared", 0)  # "shared" is what Linux calls pages of files


def read_from_disk() -> int | None:
    """Bytes that this process's reads have taken from the disk so far; None where the kernel does not say."""
    with suppress(OSError, AttributeError):
        return psutil.Process().io_counters().read_bytes
    return None


# The pieces: each returns its figures


def patches(args: argparse.Namespace) -> dict:
    """The set, in parquet files."""
    began = time.perf_counter()
    settings = {"resolution": args.resolution, "num_images": args.num_images, "overlap": args.overlap}
    count = make_patches(args.pictures, args.output_dir / "patches", flips=True, **settings)
    size = sum(file.stat().st_size for file in (args.output_dir / "patches").glob("*.parquet"))
    return {"images": count, "seconds of the last call": time.perf_counter() - began, "GiB of files": size / GIB}


def images_of(args: argparse.Namespace):
    folder = args.output_dir
    return load_images(str(folder / "patches"), resolution=args.resolution, cache_dir=folder / "cache")


def decoding(args: argparse.Namespace) -> dict:
    """The set, decoded into the cache; then opened again."""
    before, began = private_memory(), time.perf_counter()
    images = images_of(args)
    first = time.perf_counter() - began
    began = time.perf_counter()
    images_of(args)
    return {
        "images": len(images),
        "seconds of the last call": first,
        "seconds to open it again": time.perf_counter() - began,
        "GiB of the cache": math.prod(images.shape) / GIB,
        "private memory beyond before, MiB": (private_memory() - before) / MIB,
    }


def reading(args: argparse.Namespace) -> dict:
    """The cached set in random order, as a training reads it: from the disk, and from the system's memory."""
    figures = {}
    for state in ("cold", "warm"):
        if state == "cold":
            forget(cached_file(args.output_dir / "cache"))
        images = images_of(args)
        count = min(READ_TOGETHER, len(images))
        steps = (args.num_reads or len(images)) // count
        order = BatchOrder(len(images), count, seed=0)
        reader = BatchReader(images, order, slice(0, count), torch.device("cpu"), steps)
        before, from_disk, began = private_memory(), read_from_disk(), time.perf_counter()
        for step in range(steps):
            reader.take(step)
        seconds = time.perf_counter() - began
        figures |= {f"{state}: images": steps * count, f"{state}: images/s": steps * count / seconds}
        if from_disk is not None:
            figures[f"{state}: MiB from the disk"] = (read_from_disk() - from_disk) / MIB
        figures[f"{state}: private memory beyond before, MiB"] = (private_memory() - before) / MIB
        reader.close()
        del images, reader
        gc.collect()
    return figures


def cached_file(cache: Path) -> Path:
    """The decoded set; ValueError where there is none, or another beside it."""
    files = sorted(cache.glob("*.npy"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{cache} holds other decoded sets than the rehearsal's one: {names}; give another folder")
    return files[0]


def forget(file: Path):
    """Have the system drop what its memory holds of a file's pages."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not on the disk yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def training(args: argparse.Namespace) -> dict:
    """A run that is not disturbed, and one that is killed after half of its steps and goes on, in processes of their
    own; what their last checkpoints hold is compared bit for bit."""
    whole, killed = args.output_dir / "whole", args.output_dir / "killed"
    half = args.train_steps // 2
    if "final_step" not in settings_of(whole):  # else this piece was killed later on
        shutil.rmtree(whole, ignore_errors=True)
        run_training(args, whole)
    shutil.rmtree(killed, ignore_errors=True)
    run_training(args, killed, kill_after=half)
    peak = run_training(args, killed, "--resume_from_checkpoint", "latest")

    one, other = (tensors(list_checkpoints(folder)[-1]) for folder in (whole, killed))
    if one.keys() != other.keys():
        raise ValueError(f"{whole} and {killed} hold checkpoints of different tensors: remove both")
    rows = read_log(whole)
    rates = [row["images_per_second"] for row in rows[1:] if "images_per_second" in row]
    return {
        "steps": rows[-1]["step"],
        "images of a step": args.train_batch_size,
        "seconds a step, median without the first": args.train_batch_size / float(np.median(rates)),
        "peak memory of the resumed process, GiB": peak / GIB,
        "loss of the first and the last step": [rows[0]["loss"], rows[-1]["loss"]],
        "killed after step": half,
        "tensors compared": len(one),
        "tensors that differ": sum(not torch.equal(one[name], other[name]) for name in one),
    }


def settings_of(folder: Path) -> dict:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    files = sorted(checkpoint.rglob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def run_training(args: argparse.Namespace, folder: Path, *more: str, kill_after: int | None = None) -> int:
    """Train in another process, which is killed once the checkpoint of step `kill_after` is there; return the most
    memory that it was seen to take."""
    flags = {"recipe": args.recipe, "dataset_name": args.output_dir / "patches", "resolution": args.resolution}
    flags |= {"cache_dir": args.output_dir / "cache", "output_dir": folder, "batch_size": args.train_batch_size}
    flags |= {"max_train_steps": args.train_steps, "checkpointing_steps": args.train_steps // 2, "logging_steps": 1}
    flags |= {"samplers": "none", "feature_extractor": "none", "logger": "none", "validation_split": "none"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)] + [*args.training, *more]
    (config,) = HfArgumentParser(TrainingConfig).parse_args_into_dataclasses(words)
    context = get_context("forkserver")  # which imports once, for all
    context.set_forkserver_preload(["ddim_hf.training", "transformers"])
    process = context.Process(target=train, args=(config,), daemon=True)
    process.start()
    peak, watched = 0, psutil.Process(process.pid)
    while process.is_alive():
        with suppress(psutil.Error):  # it has just ended
            peak = max(peak, watched.memory_info().rss)
        if kill_after is not None and list_checkpoints(folder):
            process.kill()
            process.join()
            print(f"killed after the checkpoint of step {kill_after}")
            return peak
        time.sleep(0.002 if kill_after is not None else 0.05)
    if kill_after is not None or process.exitcode:
        raise ValueError(f"the training in {folder} ended by itself, with exit code {process.exitcode}")
    return peak


def sampling(args: argparse.Namespace) -> dict:
    """Images of the averaged weights."""
    folder = args.output_dir / "samples"
    there = len(list((folder / "images").glob("*.png")))
    pipe = load_pipeline(args.output_dir / "whole")
    began = time.perf_counter()
    settings = {"num_images": args.num_samples, "num_inference_steps": args.num_inference_steps}
    generate(pipe, folder, max_batch_size=args.max_batch_size, **settings)
    made = args.num_samples - there
    figures = {"images": args.num_samples, "steps": args.num_inference_steps, "of them made by the last call": made}
    return figures | ({"seconds an image": (time.perf_counter() - began) / made} if made else {})


def distance(args: argparse.Namespace) -> dict:
    """The samples' distance to the set."""
    folder, output = args.output_dir, args.output_dir / "distance.json"
    began = time.perf_counter()
    extractor = {"feature_extractor": args.feature_extractor, "inception_weights": args.inception_weights}
    found = answer(
        Question(
            model=str(folder / "samples"),
            reference=str(folder / "patches"),
            output=output,
            cache_dir=folder / "cache",
            **extractor,
        )
    ).asked()
    return {
        **{row["metric"]: row["value"] for row in found},
        "features": Path(args.feature_extractor).name if args.feature_extractor else "inception",
        "seconds of the last call": time.perf_counter() - began,
    }


PIECES: dict[str, Callable[[argparse.Namespace], dict]] = {
    piece.__name__: piece for piece in (patches, decoding, reading, training, sampling, distance)
}


# The report


def as_markdown(report: dict) -> str:
    """What was measured, a row for each figure, and what was not."""
    rows = []
    for piece, kept in report["pieces"].items():
        rows += [[piece, name, shown(value)] for name, value in kept["figures"].items()]
    text = table(["piece", "figure", "value"], rows) + "\n"
    machines = {kept["machine"] for kept in report["pieces"].values()}
    left = [piece for piece in PIECES if piece not in report["pieces"]]
    text += f"Machine: {'; '.join(sorted(machines))}.\n"
    return text + (f"Not run: {', '.join(left)}.\n" if left else "") + NOT_SHOWN + "\n"


def shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Other flags go to the training.", allow_abbrev=False
    )
    parser.add_argument("pictures", type=Path, help="a folder of large pictures, such as wallpapers")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--pieces", default=",".join(PIECES), help="which of these, by commas")
    parser.add_argument("--recipe", choices=list(RECIPES), default="celebahq-256", help="what is trained")
    parser.add_argument("--resolution", type=int, help="default: the recipe's")
    parser.add_argument("--num_images", type=int, default=30_000, help="of the set")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the set's patches, from 0 below 1")
    parser.add_argument("--num_reads", type=int, help="images of each pass of reading; default: all")
    parser.add_argument("--train_steps", type=int, default=20)
    parser.add_argument("--train_batch_size", type=int, default=1, help="images of a step")
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--max_batch_size", type=int, help="images through the network at once, of the samples")
    parser.add_argument("--feature_extractor", help="a TorchScript file instead of Inception")
    parser.add_argument("--inception_weights", help="Inception's weights, for machines without network")
    args, args.training = parser.parse_known_args()
    pieces = args.pieces.split(",")
    if not set(pieces) <= set(PIECES):
        raise ValueError(f"pieces is {args.pieces!r}; allowed: {', '.join(PIECES)}, by commas")
    if args.train_steps < 4 or args.train_steps % 2:
        raise ValueError(f"train_steps is {args.train_steps}; allowed: even numbers from 4")
    args.resolution = args.resolution or RECIPES[args.recipe]["resolution"]
    if "distance" in pieces:  # said before hours of training
        load_feature_extractor(args.feature_extractor, args.inception_weights)

    file = args.output_dir / "rehearsal.json"
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "pieces")}
    settings["pictures"] = str(args.pictures.resolve())
    report = read_json(file) if file.is_file() else {"settings": settings, "pieces": {}}
    there = {"pictures": settings["pictures"]} | report["settings"]  # earlier versions kept no pictures
    if "distance" not in report["pieces"]:  # which alone heeds these
        there |= {name: settings[name] for name in ("feature_extractor", "inception_weights")}
    differing = [name for name, value in settings.items() if there.get(name) != value]
    if differing:
        said = "; ".join(f"{name} {there.get(name)} there, {settings[name]} asked for" for name in differing)
        raise ValueError(f"{file} was made with other settings: {said}. Give another folder")
    report["settings"] = there | settings
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for piece in (piece for piece in PIECES if piece in pieces):
        if piece not in report["pieces"]:
            print(f"{piece} ...", flush=True)
            report["pieces"][piece] = {"figures": PIECES[piece](args), "machine": machine()}
            write_text(file, json.dumps(report, indent=2) + "\n")
    write_text(args.output_dir / "rehearsal.md", as_markdown(report))
    print(as_markdown(report), end="")


if __name__ == "__main__":
    run(main)
