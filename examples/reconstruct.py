"""Encode images and decode them again (the paper's table 2), plainly and exactly, over numbers of steps.

    python examples/reconstruct.py outputs/demo outputs/reconstruct

Writes reconstruct.png (a column per image: the original, then each number of steps, plain and exact) and
reconstruct.json (mean squared error per dimension, pixels in [0, 1], averaged over the images).
"""

import argparse
import json
from pathlib import Path

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import CLASS_FLAGS, add_class_flags, add_data_flags, data_options, run, take_classes
from ddim_hf.data import load_images
from ddim_hf.files import whole_file, write_text
from ddim_hf.hub import others_than_trained_on, trained_on
from ddim_hf.images import image_grid, label_rows, pixels_to_pil, square_size


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument(
        "--data",
        help="images to encode: 'digits', a folder, parquet, or a Hub id; those that the model was trained on, as its "
        "record or card names them, if not given",
    )
    parser.add_argument(
        "--split", help="default: that held out in training, test of --data digits, else the data's own"
    )
    add_data_flags(parser)
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[10, 20, 50, 100])
    add_class_flags(parser, "names or numbers, which the images take in turn, or all (default: the null class)")
    parser.add_argument("--max_batch_size", type=int, default=64)
    args = parser.parse_args()
    if args.num_images < 1:
        raise ValueError(f"num_images is {args.num_images}; allowed: whole numbers from 1")

    classes = take_classes(dict(vars(args)), load=DDIMCustomPipeline.from_pretrained)
    pipe = DDIMCustomPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(leave=False)
    size = square_size(pipe.state_shape)
    split = args.split or ("test" if args.data == "digits" else None)
    given = {"name": args.data, "split": split, **data_options(args)}
    data = trained_on(args.model) if args.data is None else {}
    data |= {name: value for name, value in given.items() if value is not None}
    try:
        loaded = load_images(**data, **size)
    except (ValueError, OSError) as error:
        if args.data is None:
            error.add_note(f"{args.model} was trained on {data['name']!r}; --data names other images")
        raise
    if args.data is None and (said := others_than_trained_on(args.model, loaded)):
        print(said)
    images = loaded[: args.num_images]

    if args.class_labels is not None:
        classes["class_labels"] = pipe.labels_in_turn(classes["class_labels"], range(len(images)))
    rows, labels, figures = [pixels_to_pil(images)], ["original"], {}
    for steps in args.num_inference_steps:
        for exact in (False, True):
            output = pipe.reconstruct(images, steps, exact, max_batch_size=args.max_batch_size, **classes)
            rows.append(output.images)
            kind = "exact" if exact else "plain"
            labels.append(f"{steps} steps, {kind}")
            figures.setdefault(str(steps), {})[kind] = output.mse.mean().item()
            print(f"{steps:4d} steps, {kind}: mean squared error {output.mse.mean():.3g}")
        figures[str(steps)]["worst_residual"] = output.residual

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output_dir / "reconstruct.png") as file:
        label_rows(image_grid([image for row in rows for image in row], len(images)), labels).save(file)
    asked = {name: vars(args)[name] for name in CLASS_FLAGS}
    report = {"model": args.model, "data": data["name"], "images": len(images), **asked, "mse": figures}
    write_text(args.output_dir / "reconstruct.json", json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.output_dir / 'reconstruct.png'} and reconstruct.json")


if __name__ == "__main__":
    run(main)
