"""What each change to the training step gives on this device, what share of its peak rate the network reaches, and
what bounds it.

    python examples/benchmarks/benchmark_changes.py --network cifar10-64 --batch_size 128
    python examples/benchmarks/benchmark_changes.py --network cifar10-64 --batch_size 512 --only compiled

Another batch size needs a process of its own: in the same one torch would compile for all sizes at once, and slower.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from benchmark import as_markdown, describe_machine, in_turn, synchronize
from benchmark_processes import our_stepper, stock_stepper, write_images
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ddim_hf import build_unet
from ddim_hf.command_line import run

# The stock loop, then ours with one change after the other; the first of ours has the data on the device, the fused
# optimizer, and a loss that is not read in every step.
STEPS = {
    "stock loop": {},
    "stock loop in bf16": {"precision": "bf16"},
    "ours": {"channels_last": False},
    "bf16": {"channels_last": False, "precision": "bf16"},
    "channels-last": {"channels_last": True, "precision": "bf16"},
    "compiled": {"channels_last": True, "precision": "bf16", "compile": True},
    "CUDA graphs": {"channels_last": True, "precision": "bf16", "compile": True},
}
# What a kernel's name tells of its work.
KINDS = {
    "convolutions and matrix products": "conv fprop dgrad wgrad gemm xmma cutlass cudnn nvjet".split(),
    "attention": ["flash", "fmha", "attention"],
    "fused elementwise operations and norms": ["triton"],
    "copies": ["memcpy", "memset"],
}


def flops_of_a_step(network: str) -> int:
    """Floating-point operations of one image's forward and backward pass (a multiply-add is two)."""
    unet, x = build_unet(network), torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(1, dtype=torch.int64)).sample.sum().backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, size: int) -> float:
    """The rate of a bf16 matrix product of size x size: the best of ten."""
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    rates = []
    for _ in range(10):
        synchronize()
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        synchronize()
        rates.append(5 * 2 * size**3 / (time.perf_counter() - began))
    return max(rates)


def stepper(name: str, folder: str, network: str, batch_size: int, dropout: float | None) -> Callable[[], None]:
    settings = {"precision": "no", **STEPS[name]}
    AcceleratorState._reset_state()  # its precision is the process's else
    if name.startswith("stock"):
        return stock_stepper(folder, network, settings["precision"], batch_size)
    compile = settings.pop("compile", False)
    extra = {"channels_last": settings["channels_last"], "dropout": dropout}
    step = our_stepper(folder, network, settings["precision"], compile and name != "compiled", batch_size, **extra)
    if name == "compiled":  # without the graphs that training takes by itself
        step.__self__.unet.compile()
    return step


def shares_of_time(step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Which kinds of kernels a step's time goes to, and how much of it the device waits."""
    step()
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(steps):
            step()
        synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    wall = (time.perf_counter() - began) * 1e6
    shares = collections.Counter()
    for event in sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)[:12]:
        print(
            f"{event.self_device_time_total / wall:6.1%} {event.count // steps:5d} a step  {event.key}",
            file=sys.stderr,
        )
    for event in recorded.key_averages():
        kinds = [kind for kind, words in KINDS.items() if any(word in event.key.lower() for word in words)]
        shares[(kinds or ["other kernels"])[0]] += event.self_device_time_total / wall
    return {**shares, "waiting for the host": max(0.0, 1 - sum(shares.values()))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=["cifar10-64", "cifar10-128"], default="cifar10-64")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--dropout", type=float, help="of ours, if not the network's own 0.1")
    parser.add_argument("--only", default=",".join(STEPS), help=f"by commas: {', '.join(STEPS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    names = args.only.split(",")
    if not set(names) <= set(STEPS):
        raise ValueError(f"--only is {args.only!r}; allowed: {', '.join(STEPS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    inner, peak = (10, peak_flops(device, 8192)) if on_gpu else (1, peak_flops(device, 1024))
    flops = flops_of_a_step(args.network)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        steps = {name: stepper(name, folder, args.network, args.batch_size, args.dropout) for name in names}
        contenders = {name: lambda step=step: [step() for _ in range(inner)] for name, step in steps.items()}
        seconds = in_turn(contenders, args.rounds, f"{args.network}, batch {args.batch_size}")
        shares = shares_of_time(steps[names[-1]]) if on_gpu else {}
    rates = {name: args.batch_size * inner / value for name, value in seconds.items()}
    rows, before = [], None
    for name, rate in rates.items():
        row = {"training step": name, "images/s": rate, "to the row above": rate / (before or rate)}
        rows.append(row | {"to the first row": rate / rates[names[0]], "share of peak": rate * flops / peak})
        before = rate
    about = {"network": args.network, "batch_size": args.batch_size, "dropout": args.dropout}
    about |= {"GFLOP an image": flops / 1e9, "peak TFLOP/s (bf16 matrix product)": peak / 1e12}
    if on_gpu:
        about["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    record = {**describe_machine(device), **about, "rows": rows, f"shares of the time, {names[-1]}": shares}
    print(json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1))
    print(as_markdown(rows))
    if args.output:
        args.output.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(main)
