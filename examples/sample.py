"""Sample images: python examples/sample.py MODEL --num_images 64 --grid, or under accelerate launch"""

import argparse

from ddim_hf.command_line import add_class_flags, run, take_classes
from ddim_hf.generation import generate, load_pipeline
from ddim_hf.processes import end_with_launcher, processes


def main():
    end_with_launcher()
    parser = argparse.ArgumentParser(description="Sample images into a folder; a second call makes what is missing.")
    parser.add_argument("model", help="a folder, or an id on the Hub")
    parser.add_argument("--revision", help="of a model on the Hub: branch, tag or commit")
    parser.add_argument("--output_dir", default="outputs/samples", help="images/ and manifest.json go there")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=50, help="S")
    parser.add_argument("--eta", type=float, default=0.0, help="0 is DDIM, 1 is DDPM")
    parser.add_argument("--tau", choices=["uniform", "quad"], help="default: the model's own")
    parser.add_argument(
        "--variance", choices=["sigma", "sigma_hat"], help="default: the model's own; sigma_hat: eta 1"
    )
    parser.add_argument(
        "--plain_steps",
        dest="calibrated",
        action="store_const",
        const=False,
        help="DDIM's own (default: by a schedule fitted to the model, where it has one for these steps, at eta 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="image k is made from seed + k")
    add_class_flags(parser, "names or numbers, which the images take in turn, or all (default: the null class)")
    parser.add_argument("--max_batch_size", type=int, help="images through the network at once; part of the settings")
    parser.add_argument("--format", choices=["png", "npy"], default="png")
    parser.add_argument(
        "--grid", type=int, nargs="?", const=64, default=0, help="save the first N (64) as samples.png"
    )
    parser.add_argument("--gif", action="store_true", help="save how the first 16 emerge as denoising.gif")
    parser.add_argument("--fast", action="store_true", help="bf16 where native, channels-last, compiled")
    settings = vars(parser.parse_args())

    model, revision, tau, variance, fast = (settings.pop(k) for k in ("model", "revision", "tau", "variance", "fast"))
    if variance == "sigma_hat" and settings["eta"] == 0:
        raise ValueError(
            "variance is sigma_hat and eta is 0, which adds no noise; allowed: --eta 1, or --variance sigma"
        )
    classes = take_classes(settings, load=lambda guide: load_pipeline(guide, fast=fast))
    pipe = load_pipeline(model, revision=revision, tau=tau, variance=variance, fast=fast)
    images = generate(pipe, revision=revision, **settings, **classes)
    if processes().is_main_process:
        print(f"the images lie in {images}")


if __name__ == "__main__":
    run(main)
