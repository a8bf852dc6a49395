"""Train one of the paper's networks by its recipe, evaluate it, and write a report: all that its figures come from.

    python examples/reproduce.py --recipe cifar10-64 --mixed_precision bf16 --compile auto

Every flag that is not listed by --help goes to examples/train.py. A run that was stopped, by --minutes or otherwise,
goes on with the same command, in training as in evaluation.
"""

import argparse
import json
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import DATA_FLAGS, add_data_flags, run
from ddim_hf.evaluation import Question
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.results import read_rows
from ddim_hf.evaluation.rows import protocol
from ddim_hf.evaluation.tables import tables
from ddim_hf.files import whole_file, write_text
from ddim_hf.hub import write_model_card
from ddim_hf.hub.redaction import redact_command
from ddim_hf.reports.markdown import shown
from ddim_hf.reports.metrics import FRECHET
from ddim_hf.training import RECIPES
from ddim_hf.training.log import read_log

HERE = Path(__file__).parent
PARTS = ("train", "evaluate", "show")
FEATURES = ("feature_extractor", "inception_weights")  # flags that other scripts take too, as DATA_FLAGS
HEADLINE = {"num_inference_steps": "10,20,50", "eta": 0, "tau": "uniform", "variance": "sigma"}
CHANCE = HEADLINE | {"num_inference_steps": 50}  # the cell that is measured from several sets of seeds
WRITTEN = "Written by\n\n```sh\npython examples/reproduce.py"  # how a report says that it is one
# The denoising loss that the text this package was written after gives of its models, as reconstruction loss
LOSS_OF_TEXT = {"cifar10-64": "0.03-0.04", "cifar10-128": "0.02-0.03", "celebahq-256": "0.03-0.04"}


def call(script: str, *words: object, minutes: float | None = None):
    """Run an example script; after `minutes`, or when this program is asked to stop, the script is told to save and
    stop (SIGTERM) and waited for, and this program ends too."""
    asked = []

    def stop(number: int, _=None):
        asked.append(number)
        process.send_signal(signal.SIGTERM)

    process = subprocess.Popen([sys.executable, HERE / script, *map(str, words)])
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process.wait(minutes and minutes * 60)
    except subprocess.TimeoutExpired:
        stop(signal.SIGTERM)
        process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if process.returncode or asked:
        sys.exit(128 + asked[0] if asked else process.returncode)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Other flags go to train.py.", allow_abbrev=False
    )
    parser.add_argument("--recipe", choices=["cifar10-64", "cifar10-128", "celebahq-256"], default="cifar10-64")
    parser.add_argument("--dataset_name", help="default: the recipe's")
    add_data_flags(parser, kept="decoded images and reference features")
    parser.set_defaults(max_cached_bytes=None)  # that of the other scripts
    parser.add_argument("--output_dir", type=Path, help="default: outputs/RECIPE")
    parser.add_argument("--report", type=Path, help="default: report.md in the output folder; pictures go beside it")
    parser.add_argument("--parts", default="train,evaluate,show", help="which of these, by commas")
    parser.add_argument("--minutes", type=float, help="stop training after so long; the same command goes on")
    parser.add_argument("--feature_extractor", help="a TorchScript file instead of Inception")
    parser.add_argument("--inception_weights", help="Inception's weights, for machines without network")
    parser.add_argument("--num_images", type=int, default=10_000, help="of each cell of the table")
    parser.add_argument("--headline_images", type=int, help="also S = 10, 20, 50 at eta 0, uniform tau, of so many")
    parser.add_argument("--seeds", type=int, default=1, help="measure S = 50 at eta 0 from so many sets of seeds")
    parser.add_argument("--num_inference_steps", default="10,20,50,100")
    parser.add_argument("--eta", default="0,0.2,0.5,1")
    parser.add_argument("--data_images", type=int, help="of each split, for the denoising loss; default: all")
    parser.add_argument("--fast", action="store_true", help="evaluate with fast sampling")
    parser.add_argument("--note", default="", help="a sentence on the data or the run, for the report")
    args, training = parser.parse_known_args()
    parts = args.parts.split(",")
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts is {args.parts!r}; allowed: {', '.join(PARTS)}, by commas")
    if training and "train" not in parts:
        raise ValueError(f"{training[0]} is no flag of this script and nothing is trained; allowed: see --help")
    if args.minutes is not None and not args.minutes > 0:
        raise ValueError(f"minutes is {args.minutes:g}; allowed: above 0")
    args.dataset_name = args.dataset_name or RECIPES[args.recipe]["dataset_name"]
    args.held_out = RECIPES[args.recipe]["validation_split"]
    args.output_dir = args.output_dir or Path("outputs", args.recipe)
    args.report = args.report or args.output_dir / "report.md"
    if "show" in parts and args.report.exists() and WRITTEN not in args.report.read_text():
        raise ValueError(f"{args.report} was not written by this script; allowed: another --report")
    if args.seeds < 1:
        raise ValueError(f"seeds is {args.seeds}; allowed: whole numbers from 1")
    if "evaluate" in parts:  # said before hours of training
        load_feature_extractor(args.feature_extractor, args.inception_weights)
    if "train" in parts:
        train(args, training)
        args.refresh_cache = False  # once is enough
    if "evaluate" in parts:
        evaluate(args)
    if "show" in parts:
        show(args)


def given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of these flags that are given, for another script; 0 is a value too."""
    values = {f"--{name}": getattr(args, name) for name in names}
    values = {flag: value for flag, value in values.items() if value is not None and value is not False}
    return [word for flag, value in values.items() for word in ([flag] if value is True else [flag, value])]


def train(args: argparse.Namespace, flags: list[str]):
    data = ["--dataset_name", args.dataset_name, "--validation_split", args.held_out, "--output_dir", args.output_dir]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--samplers")
    features = () if parser.parse_known_args(flags)[0].samplers == "none" else FEATURES  # of the evaluation alone
    resumed = [*given(args, *DATA_FLAGS, *features), *flags, "--resume_from_checkpoint", "latest"]
    call("train.py", "--recipe", args.recipe, *data, *resumed, minutes=args.minutes)


def evaluate(args: argparse.Namespace):
    """The table, the same of diffusers' own pipeline, of fitted schedules and of real images, and the denoising loss;
    the headline of more images; a cell from several sets of seeds."""
    table = {"num_inference_steps": args.num_inference_steps, "eta": args.eta, "tau": "uniform,quad"}
    table |= {"variance": "sigma,sigma_hat"}
    errors = ["--denoising_loss", "--data_splits", f"train,{args.held_out}"]
    errors += ["--data_images", args.data_images] if args.data_images else []
    beside = [*also_stock(args.output_dir), "--floor", args.held_out]
    measure(args, table, args.num_images, *beside, *errors)
    if args.headline_images:
        measure(args, HEADLINE, args.headline_images, *beside)
    for number in range(1, args.seeds):
        measure(args, CHANCE, args.num_images, "--seed", number * args.num_images, fitted=False)


def measure(args: argparse.Namespace, cells: dict[str, object], num_images: int, *more: object, fitted: bool = True):
    """Call evaluate.py for these cells, with the schedules that the model has for them where it has any."""
    words = [word for name, value in cells.items() for word in (f"--{name}", value)]
    reference = ["--reference", args.dataset_name, *given(args, *DATA_FLAGS, *FEATURES)]
    output = ["--output", args.output_dir / "results.json", *(["--fast"] if args.fast else [])]
    if fitted and has_schedule(args.output_dir, cells):
        words.append("--calibrated")
    call("evaluate.py", args.output_dir, *reference, *output, *words, "--num_images", num_images, *more)


def also_stock(folder: Path) -> list[str]:
    """evaluate.py's flags for diffusers' own pipeline: none for a model with classes, which it cannot give it."""
    return [] if DDIMCustomPipeline.from_pretrained(folder).id2label else ["--also", "stock"]


def has_schedule(folder: Path, cells: dict[str, object]) -> bool:
    """Whether a model has a fitted schedule for any of these cells, so that evaluate.py takes --calibrated."""
    kinds = {"num_inference_steps": int, "eta": float, "tau": str, "variance": str}
    asked = {name: [kind(part) for part in str(cells[name]).split(",")] for name, kind in kinds.items()}
    return Question(str(folder), "", "", **asked).has_schedule(DDIMCustomPipeline.from_pretrained(folder))


def show(args: argparse.Namespace):
    """The pictures, the model card and the report."""
    folder = args.output_dir
    shutil.rmtree(folder / "first64", ignore_errors=True)  # they may be of other weights
    call("sample.py", folder, "--num_images", 64, "--output_dir", folder / "first64", "--grid")
    held_out = ["--held_out", args.held_out]
    call("nearest.py", folder, args.dataset_name, folder / "nearest", *held_out, *given(args, *DATA_FLAGS))
    args.report.parent.mkdir(parents=True, exist_ok=True)
    pictures = {"samples": folder / "first64" / "samples.png", "nearest": folder / "nearest" / "nearest.png"}
    for name, picture in pictures.items():
        copy_whole(picture, args.report.with_name(f"{args.report.stem}-{name}.png"))
    write_text(args.report, report(args.recipe, folder, args.dataset_name, args.note, args.report.stem))
    copy_whole(pictures["samples"], folder / "samples.png")
    write_model_card(folder)
    print(f"the report lies in {args.report}")


def copy_whole(picture: Path, file: Path):
    """Copy it, whole or not at all."""
    with whole_file(file) as beside:
        shutil.copyfile(picture, beside)


def report(recipe: str, folder: Path, dataset: str, note: str, name: str) -> str:
    """The run's settings, tables and pictures, whose names begin with the report's, as Markdown."""
    rows = read_rows(folder / "results.json")
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows if "machine" in row))
    config = json.loads((folder / "config.json").read_text())
    near = json.loads((folder / "nearest" / "nearest.json").read_text())
    rate = statistics.median(row["images_per_second"] for row in read_log(folder) if "images_per_second" in row)
    names = (
        "batch_size",
        "learning_rate",
        "lr_scheduler",
        "lr_warmup_steps",
        "ema_decay",
        "mixed_precision",
        "compile",
    )
    data = shlex.quote(Path(dataset).name if Path(dataset).exists() else dataset)
    words = [word for word in sys.argv[1:] if word not in ("--note", note)]
    return f"""# {recipe}

{WRITTEN} {redact_command(shlex.join(words))}
```

from what the run recorded, whose training was started, or last gone on with, by

```sh
{redact_command(config["command"])}
```

{note}

**Training**: {config["final_step"]:,} steps ({config["final_step"] * config["batch_size"]:,} images) on {data},
{rate:.0f} images/s (median of the log) on {config["machine"]}; loss {config["final_loss"]:.4f} at the end;
{", ".join(f"{name} {config[name]}" for name in names)}, seed {config["seed"]}.

**Distances** are of the averaged weights' samples to the training split; "real images" is the same distance of as many
held-out images (or all there are), which is what a perfect model would get. The table was measured on
{machines}. Only distances at the same number of images compare.

{chance(rows)}{denoising(recipe, rows)}{tables(of_first_seeds(rows))}
**The true FID** (the recipe's own images without loss, Inception, the paper's 50,000 samples) is measured by

```sh
accelerate launch examples/evaluate.py {shlex.quote(str(folder))} --reference {RECIPES[recipe]["dataset_name"]} \\
    --num_images 50000 \\
    --num_inference_steps 10,20,50,100 --eta 0,0.2,0.5,1 --tau uniform,quad --variance sigma,sigma_hat
```

**Samples**: the first 64 seeds, 50 steps, not chosen.

![samples]({name}-samples.png)

**Copies?** A sample, then the training images nearest to it. The root mean square distance to the nearest, pixels in
[0, 1]: median {statistics.median(near["samples_rms"]):.3f} for {len(near["samples_rms"])} samples and
{statistics.median(near["held_out_rms"]):.3f} for {len(near["held_out_rms"])} held-out images.

![nearest training images]({name}-nearest.png)
"""


def of_first_seeds(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row.get("seed") in (None, 0)]


def chance(rows: list[dict]) -> str:
    """How much one cell varies with the seeds, where it was measured from several sets of them."""
    wanted = {"implementation": "ddim_hf", "eta": 0.0, **{key: CHANCE[key] for key in ("tau", "variance")}}
    wanted |= {"num_inference_steps": CHANCE["num_inference_steps"]}
    cells: dict[str, list[dict]] = {}
    for row in rows:
        if row["metric"] in FRECHET and all(row.get(key) == value for key, value in wanted.items()):
            cells.setdefault(json.dumps({**protocol(row), "seed": None}, sort_keys=True), []).append(row)
    said = ""
    for cell in cells.values():
        if len(cell) > 1:
            values = [row["value"] for row in sorted(cell, key=lambda row: row["seed"])]
            said += (
                f"**Chance**: S = 50, eta 0, uniform tau, {cell[0]['num_images']:,} images from {len(values)} sets of "
                f"seeds: {', '.join(map(shown, values))}. The largest is {max(values) - min(values):.2g} above the "
                "smallest.\n\n"
            )
    return said


def denoising(recipe: str, rows: list[dict]) -> str:
    """The denoising loss beside that of the text that this package was written after."""
    losses = [f"{shown(row['value'])} on {row['split']}" for row in rows if row["metric"] == "denoising_loss"]
    if not losses:
        return ""
    return (
        f"**Denoising loss**: {', '.join(losses)}; by timesteps below. The text that this package was written after "
        f"gives {LOSS_OF_TEXT[recipe]} for its model.\n\n"
    )


if __name__ == "__main__":
    run(main)
