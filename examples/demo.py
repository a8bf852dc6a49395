"""Train on real handwritten digits, load the result with one line, draw each digit; takes minutes on two CPU cores."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from diffusers.utils import export_to_gif

from ddim_hf import DDIMCustomPipeline
from ddim_hf.calibration import table
from ddim_hf.command_line import run
from ddim_hf.data import load_images
from ddim_hf.evaluation.classes import load_classifier
from ddim_hf.images import image_grid, label_rows, states_to_images, states_to_pixels
from ddim_hf.training.log import plot_loss

COLUMNS = 8  # samples of each digit
JUDGED = 500


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
    settings = ["--recipe", "digits", "--class_conditional", "--learning_rate", "0.002", "--output_dir", folder]
    settings += ["--resume_from_checkpoint", "latest"]
    trained = subprocess.run([*launch, *settings])
    if trained.returncode:
        raise ValueError(f"training ended with exit code {trained.returncode}; what it said stands above")

    # Load, and sample a row of each digit
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    digits = [k // COLUMNS for k in range(10 * COLUMNS)]
    output = pipe(class_labels=digits, num_inference_steps=50, seeds=range(len(digits)), return_trajectory=True)

    # Does another program read them as what they are to be?
    asked = [k % 10 for k in range(JUDGED)]
    sampling = dict(seeds=range(JUDGED), num_inference_steps=20, output_type="latent", max_batch_size=100)
    sampling |= dict(calibrated=False)  # also where an earlier demo has left schedules here
    judged = pipe(class_labels=asked, **sampling).images
    real = load_images("digits", split="train", resolution=8, channels=1, labelled=True)
    classifier = load_classifier("digits", list(pipe.id2label.values()), pipe.device)
    accuracy = np.mean(classifier(states_to_pixels(judged)) == asked)
    of_real = np.mean(classifier(real[:]) == real.labels)

    # Fit schedules of few steps
    certificates = pipe.calibrate((5, 10, 20), num_images=32, class_labels="all")
    pipe.save_scheduler(folder)

    # Show
    label_rows(image_grid(output.images, COLUMNS), list(pipe.id2label.values())).save(folder / "samples.png")
    frames = [image_grid(states_to_images(x[::COLUMNS], "pil"), columns=5) for x in output.trajectory]
    export_to_gif(frames + frames[-1:] * 15, str(folder / "denoising.gif"), fps=15)
    plot_loss(folder, folder / "loss.png")
    print(f"""
{accuracy:.1%} of {JUDGED} samples are read as the digit that was asked for (guidance 1, 20 steps)
  by a classifier that was trained on the held-out digits and reads {of_real:.1%} of the real ones

few steps, fitted to this model:
{table(certificates)}

done in {time.monotonic() - began:.0f} s
  the model      {folder} (safetensors; loads with DDIMCustomPipeline and with diffusers' own DDIMPipeline)
  a row a digit  {folder / "samples.png"}
  their making   {folder / "denoising.gif"}
  the loss       {folder / "loss.png"}
next:
  python examples/sample.py {folder} --class_labels all --num_images 100 --output_dir outputs/samples
  python examples/interpolate.py {folder} outputs/interpolation
  python examples/reconstruct.py {folder} outputs/reconstruction""")


if __name__ == "__main__":
    run(main)
