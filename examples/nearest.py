"""Show each sample beside the training images nearest to it: does the model generate, or copy?

    python examples/nearest.py outputs/demo digits outputs/nearest

Writes nearest.png (a row per sample: the sample, then its nearest training images) and nearest.json, which has the
distance of each sample to its nearest training image, and for scale the same of as many held-out images.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import add_data_flags, data_options, run
from ddim_hf.data import load_images
from ddim_hf.files import whole_file, write_text
from ddim_hf.images import image_grid, label_rows, pixels_to_pil, square_size, states_to_pixels


def nearest(images: torch.Tensor, training, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean square distances (pixels in [0, 1]) and numbers of each image's nearest neighbours, [N, K]."""
    ours = images.flatten(1).float() / 255
    distances = []
    size = max(1, 2**26 // ours.shape[1])  # of theirs at once: 256 MiB
    for start in range(0, len(training), size):
        theirs = training[start : start + size].flatten(1).float() / 255
        distances.append(torch.cdist(ours, theirs) / ours.shape[1] ** 0.5)
    least = torch.cat(distances, dim=1).topk(neighbours, largest=False)
    return least.values, least.indices


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("data", help="what it was trained on: 'digits', a folder, parquet, or a Hub id")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--held_out", default="test", help="split for scale, or none")
    add_data_flags(parser)
    parser.add_argument("--num_images", type=int, default=16, help="samples, of seeds 0, 1, ...")
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    args = parser.parse_args()

    pipe = DDIMCustomPipeline.from_pretrained(args.model)
    options = {**square_size(pipe.state_shape), **data_options(args)}
    training = load_images(args.data, split=args.split, **options)
    if not 1 <= args.neighbours <= len(training):
        raise ValueError(f"--neighbours is {args.neighbours}; allowed: 1 to {len(training)}, all of {args.data}")
    states = pipe(
        args.num_images,
        num_inference_steps=args.num_inference_steps,
        seeds=range(args.num_images),
        output_type="latent",
        max_batch_size=64,
    ).images
    pixels = states_to_pixels(states)
    distances, numbers = nearest(pixels, training, args.neighbours)
    report = {"model": args.model, "data": args.data, "samples_rms": distances[:, 0].tolist()}
    if args.held_out != "none":
        held_out = load_images(args.data, split=args.held_out, **options)
        report["held_out_rms"] = nearest(held_out[: args.num_images], training, 1)[0][:, 0].tolist()

    rows = []
    for sample, found in zip(pixels_to_pil(pixels), numbers, strict=True):
        rows += [sample, *pixels_to_pil(training[found.tolist()])]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output_dir / "nearest.png") as file:
        labels = [f"seed {seed}" for seed in range(args.num_images)]
        label_rows(image_grid(rows, args.neighbours + 1), labels).save(file)
    write_text(args.output_dir / "nearest.json", json.dumps(report, indent=2) + "\n")
    for name in ("samples_rms", "held_out_rms"):
        if name in report:
            print(f"{name}: median {statistics.median(report[name]):.4f}")
    print(f"wrote {args.output_dir / 'nearest.png'} and nearest.json")


if __name__ == "__main__":
    run(main)
