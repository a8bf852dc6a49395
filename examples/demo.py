"""Train on real handwritten digits, load the result with one line, and sample it; takes minutes on two CPU cores."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from diffusers.utils import export_to_gif

from ddim_hf import DDIMCustomPipeline
from ddim_hf.calibrated_schedules import table
from ddim_hf.command_line import run
from ddim_hf.images import image_grid, states_to_images
from ddim_hf.training.log import plot_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    folder = parser.parse_args().output_dir
    began = time.monotonic()

    # Train, or go on with a demo that was interrupted
    script = Path(__file__).with_name("train.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(os.cpu_count()), script]
    settings = ["--recipe", "digits", "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    trained = subprocess.run([*launch, *settings])
    if trained.returncode:
        raise ValueError(f"training ended with exit code {trained.returncode}; what it said stands above")

    # Load and sample
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    output = pipe(batch_size=64, num_inference_steps=50, seeds=range(64), return_trajectory=True)

    # Fit schedules of few steps
    certificates = pipe.calibrate((5, 10, 20), num_images=32)
    pipe.save_scheduler(folder)

    # Show
    image_grid(output.images).save(folder / "samples.png")
    frames = [image_grid(states_to_images(x[:16], "pil")) for x in output.trajectory]
    export_to_gif(frames + frames[-1:] * 15, str(folder / "denoising.gif"), fps=15)
    plot_loss(folder, folder / "loss.png")
    print(f"""
few steps, fitted to this model:
{table(certificates)}

done in {time.monotonic() - began:.0f} s
  the model      {folder} (safetensors; loads with DDIMCustomPipeline and with diffusers' own DDIMPipeline)
  64 samples     {folder / "samples.png"}
  their making   {folder / "denoising.gif"}
  the loss       {folder / "loss.png"}
next:
  python examples/sample.py {folder} --num_images 100 --output_dir outputs/samples
  python examples/interpolate.py {folder} outputs/interpolation
  python examples/reconstruct.py {folder} outputs/reconstruction""")


if __name__ == "__main__":
    run(main)
