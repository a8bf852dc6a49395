"""Watch samples form: the states x_t and the predictions of x_0 (eq. 9) from noise to image.

    python examples/trajectory.py outputs/demo outputs/trajectory

Writes trajectory.png (two rows per sample: x_t, and the predicted x_0 below it), trajectory.gif (x_t on the left, the
predicted x_0 on the right) and trajectory.json (how far each prediction still is from the image it leads to).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from diffusers.utils import export_to_gif, make_image_grid
from PIL import Image

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import CLASS_FLAGS, add_class_flags, run, take_classes
from ddim_hf.files import whole_file, write_text
from ddim_hf.images import label_rows, states_to_images


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--eta", type=float, default=0.0, help="0 is DDIM, 1 is DDPM")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    add_class_flags(parser, "names or numbers, which the samples take in turn, or all (default: the null class)")
    parser.add_argument("--columns", type=int, default=12, help="moments shown in the PNG")
    args = parser.parse_args()
    if args.columns < 1:
        raise ValueError(f"--columns is {args.columns}; allowed: 1 or more")

    classes = take_classes(dict(vars(args)), load=DDIMCustomPipeline.from_pretrained)
    pipe = DDIMCustomPipeline.from_pretrained(args.model)
    if args.class_labels is not None:
        classes["class_labels"] = pipe.labels_in_turn(classes["class_labels"], range(args.num_images))
    output = pipe(
        args.num_images,
        eta=args.eta,
        num_inference_steps=args.num_inference_steps,
        seeds=range(args.seed, args.seed + args.num_images),
        output_type="latent",
        return_trajectory=True,
        **classes,
    )
    predictions, final = output.pred_original_samples, output.images
    scale = max(1, 64 // pipe.state_shape[2])

    def draw(states):
        images = states_to_images(states, "pil")
        sizes = ((image.width * scale, image.height * scale) for image in images)
        return [image.resize(size, Image.Resampling.NEAREST) for image, size in zip(images, sizes, strict=True)]

    # Moment i: the state after step i, and the prediction that was made in it.
    noisy, clean = [draw(x) for x in output.trajectory[1:]], [draw(x) for x in predictions]
    shown = np.unique(np.linspace(0, len(clean) - 1, args.columns).round().astype(int))
    cells = [row[i][k] for k in range(args.num_images) for row in (noisy, clean) for i in shown]
    frames = [
        make_image_grid([one[k] for k in range(args.num_images) for one in moment], args.num_images, 2)
        for moment in zip(noisy, clean, strict=True)
    ]

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output_dir / "trajectory.png") as file:
        labels = [f"seed {args.seed + k}, {kind}" for k in range(args.num_images) for kind in ("x_t", "x_0")]
        label_rows(make_image_grid(cells, 2 * args.num_images, len(shown)), labels).save(file)
    with whole_file(args.output_dir / "trajectory.gif") as file:
        export_to_gif([frame.convert("RGB") for frame in frames], str(file), fps=10)
    report = {
        "model": args.model,
        "eta": args.eta,
        **{name: vars(args)[name] for name in CLASS_FLAGS},
        "timesteps": output.timesteps,
        "mse_of_predicted_x0": [((x - final) / 2).square().mean().item() for x in predictions],
    }
    write_text(args.output_dir / "trajectory.json", json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.output_dir / 'trajectory.png'}, trajectory.gif and trajectory.json")


if __name__ == "__main__":
    run(main)
