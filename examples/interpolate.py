"""Interpolate between images along the great circle of their latents (the paper's eq. 67 and figure 6).

    python examples/interpolate.py outputs/demo outputs/interpolation --seeds 24 0
    python examples/interpolate.py outputs/demo outputs/interpolation --images a.png b.png

Two ends give a strip, four corners a grid. Writes interpolate.png, interpolate.gif and interpolate.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import export_to_gif
from PIL import Image

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import CLASS_FLAGS, add_class_flags, run, take_classes
from ddim_hf.data.decoding import decode
from ddim_hf.data.messages import reason
from ddim_hf.files import whole_file, write_text
from ddim_hf.images import image_grid, label_rows, pixels_to_pil, row_label, square_size


def read_image(path: str, channels: int, resolution: int) -> Image.Image:
    """An image file of any size, mode and depth, as training would see it."""
    encoded = Path(path).read_bytes()
    try:
        pixels = decode(encoded, channels, resolution)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on torn data
        raise ValueError(f"{path} cannot be read ({reason(error)}); allowed: an image file") from error
    return pixels_to_pil(torch.from_numpy(pixels.copy())[None])[0]


def rms_between_neighbours(images: list[Image.Image], columns: int) -> dict[str, list[list[float]]]:
    """Root mean square differences (pixels in [0, 1]) along the rows, and in a grid down the columns."""
    pixels = np.stack([np.asarray(image, dtype=np.float64) / 255 for image in images])
    pixels = pixels.reshape(-1, columns, pixels[0].size)
    along, down = (np.sqrt(np.square(np.diff(pixels, axis=axis)).mean(-1)) for axis in (1, 0))
    return {"along_rows": along.tolist()} | ({"down_columns": down.tolist()} if len(down) else {})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", help="two ends or four corners; 0 1 if nothing is given")
    parser.add_argument("--images", nargs="+", help="image files instead of seeds, of any size")
    parser.add_argument("--num_images", type=int, default=11, help="length of the strip, or of a side of the grid")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    add_class_flags(parser, "of the ends or corners, one for all or one each; mixed between them")
    parser.add_argument("--max_batch_size", type=int, default=64)
    args = parser.parse_args()
    if args.seeds and args.images:
        raise ValueError("--seeds and --images are both given; allowed: one of them")

    classes = take_classes(dict(vars(args)), load=DDIMCustomPipeline.from_pretrained)
    pipe = DDIMCustomPipeline.from_pretrained(args.model)
    corners = args.seeds or [0, 1]
    if args.images:
        size = square_size(pipe.state_shape)
        corners = [read_image(path, **size) for path in args.images]
    images = pipe.interpolate(
        *corners,
        num_images=args.num_images,
        num_inference_steps=args.num_inference_steps,
        max_batch_size=args.max_batch_size,
        **classes,
    ).images

    args.output_dir.mkdir(parents=True, exist_ok=True)
    names = [Path(path).name for path in args.images] if args.images else [f"seed {seed}" for seed in corners]
    ends = [row_label(name, number) for number, name in enumerate(names)]
    rows = [f"{left} to {right}" for left, right in zip(ends[::2], ends[1::2], strict=True)]
    labels = rows if len(rows) == 1 else [rows[0], *[""] * (args.num_images - 2), rows[1]]
    with whole_file(args.output_dir / "interpolate.png") as file:
        label_rows(image_grid(images, args.num_images), labels).save(file)
    with whole_file(args.output_dir / "interpolate.gif") as file:
        export_to_gif([image_grid([image], side=96) for image in images], str(file), fps=6)
    report = {
        "model": args.model,
        "corners": args.images or corners,
        "num_inference_steps": args.num_inference_steps,
        **{name: vars(args)[name] for name in CLASS_FLAGS},
        "rms_between_neighbours": rms_between_neighbours(images, args.num_images),  # a jump stands out
    }
    write_text(args.output_dir / "interpolate.json", json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.output_dir / 'interpolate.png'}, interpolate.gif and interpolate.json")


if __name__ == "__main__":
    run(main)
