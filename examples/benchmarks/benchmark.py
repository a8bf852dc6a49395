"""Measure ddim_hf beside stock diffusers in one run, in turn, and print medians and ratios as Markdown and JSON.

python examples/benchmarks/benchmark.py                     everything (half an hour on two CPU cores)
python examples/benchmarks/benchmark.py --only step,fast    some of it
python examples/benchmarks/benchmark.py --only training     with DIFFUSERS_SOURCE=CHECKOUT beside diffusers' script too
python examples/benchmarks/benchmark.py --check             exit code 1 if the step's or the pipeline's ratio is lost
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from tqdm.auto import tqdm

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
from ddim_hf.command_line import run
from ddim_hf.reports.provenance import package_versions
from ddim_hf.scheduling_ddim_custom import combine

PROCESSES = Path(__file__).with_name("benchmark_processes.py")
CPU_TIME = "DDIM_HF_BENCHMARK_CPU_TIME"  # in the environment, so that processes of their own have it too


def in_turn(contenders: dict[str, Callable[[], None]], rounds: int, title: str) -> dict[str, float]:
    """Median seconds of each contender over rounds in which each has its turn; a first round is not counted."""
    seconds = {name: [] for name in contenders}
    for number in tqdm(range(rounds + 1), desc=title, leave=False):
        for name, contender in contenders.items():
            synchronize()
            began = clock()
            contender()
            synchronize()
            if number:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock() -> float:
    """Seconds, of the clock or of this process's use of the processor."""
    return time.process_time() if CPU_TIME in os.environ else time.perf_counter()


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure_step(device: torch.device, rounds: int) -> list[dict]:
    """The scheduler's step alone, its arithmetic, and with eta the random draw, which is stock's and ours alike."""
    rows = []
    torch.randn(7 * 2**20).clone()  # 28 MiB, as a network leaves it: glibc keeps freed memory from here on
    for batch_size in (256, 1):
        x, epsilon = torch.randn(2, batch_size, 3, 32, 32, device=device)
        inner = 1 if batch_size == 256 else 20
        for eta in (0.0, 1.0):
            contenders = {
                "draw": lambda x=x, n=inner * 50: repeat(n, randn_tensor, x.shape, dtype=x.dtype, device=x.device),
                "bare": lambda x=x, epsilon=epsilon, n=inner * 50: repeat(n, bare_operations, x, epsilon),
            }
            ours, stock, fitted = DDIMSchedulerCustom(), DDIMScheduler(), DDIMSchedulerCustom()
            ours.set_timesteps(50)
            stock.set_timesteps(50)
            weights = [(1, 0, 0), (1.3, -0.3, 0), *[(1.6, -0.9, 0.3)] * 48]  # such as `calibrate` finds
            fitted.set_timesteps(timesteps=ours.timesteps.tolist(), weights=weights)
            for name, scheduler in (("ours", ours), ("fitted", fitted), ("stock", stock)):
                times = list(scheduler.timesteps) if name == "stock" else scheduler.timesteps.tolist()

                def sweep(scheduler=scheduler, times=times, x=x, epsilon=epsilon, eta=eta, inner=inner):
                    for t in times * inner:
                        scheduler.step(epsilon, t, x, eta=eta)

                contenders[name] = sweep
            median = in_turn(contenders, rounds, f"step, batch {batch_size}, eta {eta:g}")
            ms = {name: value / (inner * 50) * 1e3 for name, value in median.items()}
            row = {
                "what": f"step [{batch_size}, 3, 32, 32], eta {eta:g}",
                "ours ms": ms["ours"],
                "stock ms": ms["stock"],
            }
            row |= {"ratio": ms["stock"] / ms["ours"], "its tensor operations ms": ms["bare"]}
            row |= {"random draw ms": ms["draw"] if eta else 0.0}
            row |= {"fitted ms": ms["fitted"], "fitted to plain": ms["fitted"] / ms["ours"]}
            rows.append(row)
    return rows


def repeat(times: int, function: Callable, *args, **kwargs):
    for _ in range(times):
        function(*args, **kwargs)


def bare_operations(x: torch.Tensor, epsilon: torch.Tensor):
    """The arithmetic of a step at eta 0 and nothing else: no step can be faster with these operations."""
    x0 = combine(2.0, x, -1.0, epsilon).clamp_(-1, 1)
    combine(0.5, x0, 0.5, epsilon)


def measure_pipeline(device: torch.device, rounds: int, batch_size: int = 16, steps: int = 10) -> list[dict]:
    """Sampling with cifar10-64 at the default settings, and what the pipeline does beside the network."""
    unet = build_unet("cifar10-64").eval().to(device)
    ours, stock = quiet(DDIMCustomPipeline(unet, DDIMScheduler())), quiet(DDIMPipeline(unet, DDIMScheduler()))
    inside = []
    forward = unet.forward

    def timed(*args, **kwargs):
        synchronize()
        began = clock()
        result = forward(*args, **kwargs)
        synchronize()
        inside.append(clock() - began)
        return result

    def whole():
        unet.forward = timed
        ours(batch_size, num_inference_steps=steps)
        unet.forward = forward

    contenders = {
        "ours": lambda: ours(batch_size, num_inference_steps=steps),
        "stock": lambda: stock(batch_size, num_inference_steps=steps),
        "whole": whole,
    }
    median = in_turn(contenders, rounds, f"pipeline, batch {batch_size}")
    network = statistics.median(sum(inside[i : i + steps]) for i in range(steps, len(inside), steps))
    rate = {name: batch_size * steps / value for name, value in median.items()}
    return [
        {
            "what": f"pipeline, cifar10-64, batch {batch_size}, {steps} steps",
            "ours image-steps/s": rate["ours"],
            "stock image-steps/s": rate["stock"],
            "ratio": rate["ours"] / rate["stock"],
            "beside the network": 1 - network / median["whole"],
        }
    ]


def measure_fast(device: torch.device, rounds: int, model: str | None) -> list[dict]:
    """enable_fast_sampling, eager and compiled, beside stock; the pixel difference is against float32."""
    rows = []
    for batch_size in (16,) if device.type == "cpu" else (1, 16, 512):
        if model:
            unet = DDIMCustomPipeline.from_pretrained(model).unet.to(device)
        else:
            unet = build_unet("cifar10-64").eval().to(device)
        plain = quiet(DDIMPipeline(unet, DDIMScheduler()))
        seeds, steps = list(range(batch_size)), 10
        exact = quiet(DDIMCustomPipeline(unet, DDIMScheduler()))(batch_size, seeds=seeds, output_type="pt").images
        stock = in_turn({"stock": lambda n=batch_size, p=plain: p(n, num_inference_steps=10)}, rounds, "stock")[
            "stock"
        ]
        for compile in (False, True):
            fast = quiet(DDIMCustomPipeline(unet, DDIMScheduler()))
            chosen = fast.enable_fast_sampling(compile=compile)
            began = clock()
            images = fast(batch_size, seeds=seeds, output_type="pt").images
            synchronize()
            first = clock() - began
            contenders = {
                "fast": lambda n=batch_size, p=fast: p(n, num_inference_steps=10),
            }
            seconds = in_turn(contenders, rounds, f"fast, batch {batch_size}, compile {compile}")["fast"]
            fast.disable_fast_sampling()
            again = in_turn({"stock": lambda n=batch_size, p=plain: p(n, num_inference_steps=10)}, rounds, "stock")
            reference = statistics.mean([stock, again["stock"]])
            # Untrained weights answer a change in the last digit with another image, so only a model has a difference.
            difference = ((images - exact).abs().mean() * 255).item()
            rows.append(
                {
                    "what": f"fast sampling, {unet_name(model)}, batch {batch_size}: {chosen}",
                    "ours image-steps/s": batch_size * steps / seconds,
                    "stock image-steps/s": batch_size * steps / reference,
                    "ratio": reference / seconds,
                    "first call beyond a later one, s": max(0.0, first - 5 * seconds),
                }
                | ({"mean pixel difference, of 255": difference} if model else {})
            )
    return rows


def unet_name(model: str | None) -> str:
    return f"the model {Path(model).name}" if model else "cifar10-64"


def from_processes(*arguments: str) -> list[dict]:
    """Rows measured in fresh processes, by benchmark_processes.py."""
    import subprocess

    done = subprocess.run([sys.executable, PROCESSES, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{PROCESSES.name} {' '.join(arguments)} ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def as_markdown(rows: list[dict]) -> str:
    """One table for each set of columns."""
    lines, columns = [], None
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += ["", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        cells = [
            value if isinstance(value, str) else format(value, ".3g" if abs(value) < 100 else ".0f")
            for value in row.values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_machine(device: torch.device) -> dict:
    names = {}
    if Path("/proc/cpuinfo").exists():
        pairs = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in pairs}
    flags = names.get("flags", "").split()
    return {
        "processor": names.get("model name", platform.processor()),
        "vector units": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "seconds are": "of the processor" if CPU_TIME in os.environ else "on the clock",
        "load at the start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": package_versions(),
    }


def lost_ratios(rows: list[dict]) -> list[str]:
    """The claims that do not hold, with slack for a noisy machine.

    Memory decides how far [256, 3, 32, 32] can be ahead of stock, so there the step is also held to its arithmetic.
    """
    least = {"step [256, 3, 32, 32], eta 0": 1.7, "step [1, 3, 32, 32], eta 0": 2.4}
    lost = []
    for row in rows:
        if row["ratio"] < least.get(row["what"], 0):
            lost.append(f"{row['what']}: ratio {row['ratio']:.2f} < {least[row['what']]}")
        if row["what"] == "step [256, 3, 32, 32], eta 0" and row["ours ms"] > 1.3 * row["its tensor operations ms"]:
            lost.append(f"{row['what']}: {row['ours ms'] / row['its tensor operations ms']:.2f} times its arithmetic")
    for row in rows:
        if "beside the network" in row and (row["ratio"] < 0.95 or row["beside the network"] > 0.04):
            lost.append(f"{row['what']}: ratio {row['ratio']:.2f} < 0.95 or {row['beside the network']:.1%} > 4%")
    return lost


def check_choices(flag: str, given: list[str], allowed: tuple[str, ...]):
    unknown = [value for value in given if value not in allowed]
    if unknown:
        raise ValueError(f"{flag} has {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def main():
    parts = ("step", "pipeline", "fast", "startup", "growth", "processes", "training")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts), help=f"parts by commas: {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", help="a trained model for the fast part (folder or Hub id)")
    parser.add_argument(
        "--networks", default="", help="of the training part, by commas (default: cifar10-64, on a GPU both)"
    )
    parser.add_argument("--batch_size", type=int, help="of the training part (default: 64, on a GPU 128)")
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="count the processor's seconds, of step, pipeline, fast and training, where others use it too",
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--check", action="store_true", help="only step and pipeline; fail if a ratio is lost")
    args = parser.parse_args()
    wanted = ["step", "pipeline"] if args.check else args.only.split(",")
    check_choices("--only", wanted, parts)
    check_choices("--networks", args.networks.split(",") if args.networks else [], ("cifar10-64", "cifar10-128"))
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; allowed: whole numbers from 1")
    if args.cpu_time:
        os.environ[CPU_TIME] = "1"
    device, rows = torch.device(args.device), []
    machine = describe_machine(device)
    for part in wanted:
        if part == "step":
            rows += measure_step(device, args.rounds)
        elif part == "pipeline":
            rows += measure_pipeline(device, args.rounds)
        elif part == "fast":
            rows += measure_fast(device, args.rounds, args.model)
        else:
            training = [args.networks, *([str(args.batch_size)] if args.batch_size else [])]
            rows += from_processes(part, *(training if part == "training" else []))
    print(json.dumps(machine))
    print(as_markdown(rows))
    if args.output:
        args.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    lost = lost_ratios(rows) if args.check else []
    for line in lost:
        print(f"lost: {line}", file=sys.stderr)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    run(main)
