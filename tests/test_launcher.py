"""The processes of a run, and their end with their launcher."""

import os
import subprocess
import sys
import time

import pytest
from conftest import tiny_unet
from training_runs import ROOT, until

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom

LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child is not told of its parent's end")
def test_sampling_ends_with_its_launcher(tmp_path):
    """SIGTERM to a launcher that does not pass it on ends sample.py too: no more images come, and none is torn."""
    DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()).save_pretrained(tmp_path / "model")
    script, images = ROOT / "examples/sample.py", tmp_path / "out/images"
    words = [script, tmp_path / "model", "--output_dir", tmp_path / "out", "--num_images", 100_000]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *map(str, words)], env=environment)
    until(lambda: images.is_dir() and any(images.glob("*.png")))
    (child,) = open(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read().split()
    launcher.terminate()
    launcher.wait(60)
    until(lambda: not os.path.exists(f"/proc/{child}"), 30)
    count = len(list(images.glob("[!.]*.png")))
    time.sleep(0.2)
    assert len(list(images.glob("[!.]*.png"))) == count < 100_000
