"""Seconds and memory of a training step, with and without gradient checkpointing, beside what --dry_run estimates; and
the largest batch that the estimate allows a device.

    python examples/benchmarks/benchmark_memory.py --recipe celebahq-256 --batch_sizes 1,2,4

Each row comes from a process of its own: two steps as examples/train.py takes them, on noise. On a CPU the peak is the
kernel's, above what the process had after steps of a small network; freed blocks go back to the kernel at once, so
that what an allocator keeps for later does not count, unless --own_allocator leaves glibc as it is. On a GPU it is
torch's.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddim_hf import build_unet
from ddim_hf.command_line import run
from ddim_hf.files import write_text
from ddim_hf.reports.markdown import table
from ddim_hf.reports.provenance import machine
from ddim_hf.training import RECIPES, TrainingConfig, TrainingRun
from ddim_hf.training.memory import step_memory
from ddim_hf.unet import UNET_CONFIGS

GIB = 2**30
DEVICES = (16, 24, 40, 80)  # GiB
TO_THE_KERNEL = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
NOISE = 8  # images


def write_noise(folder: Path, size: int, channels: int):
    """A few images of noise as PNGs."""
    random = np.random.default_rng(0)
    for number in range(NOISE):
        pixels = random.integers(0, 256, (size, size, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / f"{number}.png")


def resident(name: str) -> int:
    """Bytes of this process's memory that are in use ("VmRSS") or were at the most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def two_steps(folder: str, **settings: object) -> dict[str, float]:
    """Take two training steps; return the wall clock's and the process's seconds of the second."""
    off = {"samplers": "none", "validation_split": "none", "logger": "none"}
    training = TrainingRun(TrainingConfig(output_dir=f"{folder}/run", cache_dir=folder, **off, **settings))
    training.train_step()
    training.state.window.loss.item()  # waits for the device
    wall, own = time.perf_counter(), time.process_time()
    training.train_step()
    training.state.window.loss.item()
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - own}
    training.close()
    return seconds


def measure(settings: dict[str, object]) -> dict[str, float]:
    """Seconds of a step and the bytes that it takes; in a process of its own."""
    network = UNET_CONFIGS[settings["recipe"]]
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        write_noise(pictures, network["sample_size"], network["in_channels"])
        two_steps(folder, recipe="digits", batch_size=2)  # loads what all networks need
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        seconds = two_steps(folder, dataset_name=str(pictures), **settings)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")
    return {**seconds, "peak": peak - before}


@cache
def estimate(recipe: str, precision: str, checkpointing: bool, batch_size: int) -> int:
    """Bytes of a step, as --dry_run gives them."""
    with torch.device("meta"):
        unet = build_unet(recipe)
    return step_memory(unet, batch_size, mixed_precision=precision, gradient_checkpointing=checkpointing).peak


def largest_batch(estimated: Callable[[int], int], limit: int) -> int:
    """The largest batch whose estimate is within `limit` bytes; 0 if one image is beyond."""
    few, count = 8, 16
    for _ in range(2):  # each image takes about the same: a line through two batches leads near, and then nearer
        slope = (estimated(count) - estimated(few)) / (count - few)
        count = max(1, few + int((limit - estimated(few)) / slope))
        count += count == few
    while count and estimated(count) > limit:
        count -= 1
    while estimated(count + 1) <= limit:
        count += 1
    return count


def measured_rows(args: argparse.Namespace, batch_sizes: list[int]) -> list[dict]:
    """A row for each batch, without and with checkpointing; printed as they come, as one may take minutes."""
    rows = []
    for batch_size in batch_sizes:
        for checkpointing in (False, True):
            settings = {"recipe": args.recipe, "batch_size": batch_size, "gradient_checkpointing": checkpointing}
            settings |= {"mixed_precision": args.mixed_precision, "channels_last": args.channels_last}
            row = settings | {"estimate": estimate(args.recipe, args.mixed_precision, checkpointing, batch_size)}
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                try:
                    row |= pool.submit(measure, settings).result()
                except BrokenProcessPool:
                    row["why_not"] = "killed, most likely for want of memory"
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def as_markdown(rows: list[dict], largest: list[dict]) -> str:
    """Both tables."""
    head = ["batch", "checkpointing", "s a step", "CPU s a step", "peak, GiB", "estimate, GiB"]
    body = []
    for row in rows:
        figures = [row.get("why_not", ""), "", ""]
        if "peak" in row:
            figures = [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak'] / GIB:.2f}"]
        on = "yes" if row["gradient_checkpointing"] else "no"
        body.append([str(row["batch_size"]), on, *figures, f"{row['estimate'] / GIB:.2f}"])
    text = table(head, body) + "\n" if rows else ""
    sizes = [[row["what"], *(str(row[f"{size} GiB"]) for size in DEVICES)] for row in largest]
    return text + (table(["largest batch", *(f"{size} GiB" for size in DEVICES)], sizes) if largest else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="celebahq-256", help="whose network and settings")
    parser.add_argument("--batch_sizes", default="1,2,4", help="to measure, by commas; none")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--no_devices", dest="devices", action="store_false", help="no table of largest batches")
    parser.add_argument("--own_allocator", action="store_true", help="count what glibc's malloc keeps, too")
    parser.add_argument("--output", type=Path, help="the rows as JSON")
    args = parser.parse_args()
    words = [] if args.batch_sizes == "none" else args.batch_sizes.split(",")
    if not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"batch_sizes is {args.batch_sizes!r}; allowed: whole numbers from 1 by commas, or none")
    if words and not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        raise OSError("the peak is read from /proc, which is not here; allowed: --batch_sizes none")
    if not args.own_allocator:
        os.environ.update(TO_THE_KERNEL)  # of the processes that measure

    rows = measured_rows(args, [int(word) for word in words])
    largest = []
    for checkpointing in (False, True) if args.devices else ():
        what = f"{args.recipe}, {args.mixed_precision}, {'with' if checkpointing else 'without'} checkpointing"
        estimated = partial(estimate, args.recipe, args.mixed_precision, checkpointing)
        sizes = {f"{size} GiB": largest_batch(estimated, size * GIB) for size in DEVICES}
        largest.append({"what": what, **sizes})
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(as_markdown(rows, largest), end="")
    if args.output:
        write_text(args.output, json.dumps({"machine": machine(), "rows": rows, "largest": largest}, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
