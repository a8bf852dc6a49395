"""Evaluate a model: python examples/evaluate.py MODEL --reference DATASET_OR_FOLDER, or under accelerate launch."""

import argparse
from collections.abc import Callable

from ddim_hf.command_line import add_data_flags, run
from ddim_hf.evaluation import ALSO, Question, compare, evaluate
from ddim_hf.processes import end_with_launcher, processes


def several(kind: Callable, *choices: str) -> Callable[[str], list]:
    def parse(text: str) -> list:
        values = [kind(part) for part in text.split(",")]
        if choices and not set(values) <= set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {', '.join(choices)}, separated by commas")
        return values

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def main():
    end_with_launcher()
    parser = argparse.ArgumentParser(description="Distances, denoising loss and reconstruction error, with protocol.")
    parser.add_argument("model", help="a model's folder, its id on the Hub, or a folder of images")
    parser.add_argument("--beside", nargs="+", metavar="MODEL", help="models measured alike, side by side")
    parser.add_argument("--reference", required=True, help="dataset, folder, 'digits', or clean-fid's 'cifar10/train'")
    parser.add_argument("--output", default="outputs/results.json", help="a table (.md) and a plot go beside it")
    parser.add_argument("--split", help="of the reference (default: train, or its only one)")
    parser.add_argument("--label_column", help="of the reference; found by its name or type if not given")
    add_data_flags(parser, of="reference", kept="decoded images and reference features")
    parser.add_argument("--revision", help="of the model on the Hub")
    parser.add_argument("--num_inference_steps", type=several(int), default=[50], metavar="S,S,...")
    parser.add_argument("--eta", type=several(float), default=[0.0], metavar="ETA,ETA,...")
    parser.add_argument("--tau", type=several(str, "uniform", "quad"), default=[], help="default: the model's own")
    parser.add_argument("--variance", type=several(str, "sigma", "sigma_hat"), default=[], help="sigma_hat: at eta 1")
    parser.add_argument(
        "--guidance_scale",
        type=several(float),
        default=[1.0],
        metavar="G,G,...",
        help="of classes, or away from the guide",
    )
    parser.add_argument("--guidance_interval", type=several(float), metavar="LOW,HIGH", help="timesteps with guidance")
    parser.add_argument("--guide", metavar="MODEL", help="a worse model, to move away from in the null class's place")
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="image k is made from seed + k")
    parser.add_argument("--max_batch_size", type=int, help="images through the network at once")
    parser.add_argument("--mode", choices=["clean", "legacy_pytorch", "legacy_tensorflow"], default="clean")
    parser.add_argument("--feature_extractor", help="a TorchScript file instead of Inception")
    parser.add_argument("--inception_weights", help="Inception's weights, for machines without network")
    parser.add_argument("--kid", action="store_true", help="also the kernel distance")
    parser.add_argument(
        "--label_accuracy", metavar="FILE", help="a TorchScript classifier, or digits: share that shows its class"
    )
    parser.add_argument(
        "--by_class", action="store_true", help="also the distance within classes, and a table of each"
    )
    parser.add_argument("--no_distance", dest="distance", action="store_false", help="no sampling")
    parser.add_argument("--calibrated", action="store_true", help="also sample by the model's own schedules, at eta 0")
    parser.add_argument(
        "--also", type=several(str, *ALSO), default=[], help="diffusers' DDIMPipeline, other schedulers"
    )
    parser.add_argument("--floor", metavar="SPLIT", help="also the distance of so many real images of this split")
    parser.add_argument("--denoising_loss", dest="loss", action="store_true", help="on --data_splits")
    parser.add_argument("--reconstruction", type=several(int), default=[], metavar="S,S,...", help="on --data_splits")
    parser.add_argument("--data_splits", type=several(str), default=["train", "test"])
    parser.add_argument("--data_images", type=int, help="the first so many of each split (default: all)")
    parser.add_argument("--fast", action="store_true", help="channels-last, compiled, bf16 where faster; not stock")
    settings = vars(parser.parse_args())

    beside, question = settings.pop("beside"), Question(**settings)
    comparison = compare(question, [question.model, *beside]) if beside else evaluate(question)
    if processes().is_main_process:
        if beside:
            print(comparison)
        print(f"the figures lie in {settings['output']}")


if __name__ == "__main__":
    run(main)
