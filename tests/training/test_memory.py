"""The estimate of a step's memory beside what a run on this machine takes."""

import os
import subprocess
import sys

import pytest
from training_runs import ROOT

from ddim_hf.training.memory import step_memory
from ddim_hf.unet import build_unet

# Two steps as a run takes them, after two small ones that load the libraries. The peak is the kernel's. Blocks that
# are freed go back to the kernel, so that what an allocator keeps for later does not count.
STEPS = """
import sys
from pathlib import Path
from ddim_hf.training import TrainingConfig, TrainingRun

def kib(name):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if name in line).split()[1])

def steps(**settings):
    settings |= dict(samplers="none", validation_split="none", logger="none", output_dir=sys.argv[1])
    run = TrainingRun(TrainingConfig(cache_dir=sys.argv[1], mixed_precision=sys.argv[5], **settings))
    run.train_step()
    run.train_step()
    run.close()

steps(batch_size=2)
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
large = dict(dataset_name="digits", network=sys.argv[2], resolution=int(sys.argv[3]), batch_size=int(sys.argv[4]))
steps(**large, gradient_checkpointing=sys.argv[6] == "True")
print(kib("VmHWM") - before)
"""


def test_a_second_pass_adds_the_gradients():
    """With accumulation the gradients, as large as the weights, are there beside the activations of the next pass."""
    unet = build_unet("digits")
    weights = 4 * unet.num_parameters()
    peaks = [step_memory(unet, 8, passes=passes).peak for passes in (1, 2, 3)]
    assert peaks[1] == peaks[2] and 0.3 * weights < peaks[1] - peaks[0] < 1.01 * weights


def test_what_is_divided_is_counted_once():
    """Of what lasts each process of several holds all and the buckets that it sends, or with FSDP its part alone."""
    unet = build_unet("digits")
    weights = 4 * unet.num_parameters()
    one, several, divided = (
        step_memory(unet, 8, num_averages=2, num_processes=count, sharded=sharded)
        for count, sharded in ((1, False), (4, False), (4, True))
    )
    assert (one.lasting, several.lasting, divided.lasting) == (5 * weights, 6 * weights, 5 * weights // 4)
    assert one.passing == several.passing == divided.passing


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "network, batch_size, size, precision, checkpointing",
    [("digits", 256, 8, "no", False), ("cifar10-64", 4, 32, "no", False), ("cifar10-64", 4, 32, "no", True)],
)
def test_the_estimate_is_what_a_run_takes(tmp_path, network, batch_size, size, precision, checkpointing):
    """The estimate is within 20% of the peak that two steps of a run reach on a CPU, in a process of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    words = [str(tmp_path), network, str(size), str(batch_size), precision, str(checkpointing)]
    done = subprocess.run([sys.executable, "-c", STEPS, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    unet = build_unet(network, sample_size=size)
    estimate = step_memory(unet, batch_size, mixed_precision=precision, gradient_checkpointing=checkpointing)
    assert estimate.peak / 2**10 == pytest.approx(float(done.stdout.split()[-1]), rel=0.2)
