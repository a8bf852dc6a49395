"""Fit few-step schedules to a model: python examples/calibrate.py MODEL --num_inference_steps 5,10,20"""

import argparse
import tempfile
from pathlib import Path

from ddim_hf.calibration import table
from ddim_hf.command_line import add_class_flags, run, take_classes
from ddim_hf.files import why_not_written
from ddim_hf.generation import load_pipeline
from ddim_hf.hub import is_model
from ddim_hf.pipeline_ddim_custom import check_scheduler_folder
from ddim_hf.processes import processes


def main():
    parser = argparse.ArgumentParser(description="Fit few-step schedules to a model, by samples of its own.")
    parser.add_argument("model", help="a folder, or an id on the Hub")
    parser.add_argument("--revision", help="of a model on the Hub: branch, tag or commit")
    parser.add_argument("--output_dir", type=Path, help="save the model there (default: its own folder)")
    parser.add_argument("--num_inference_steps", default="5,6,8,10,15,20", metavar="S,S,...")
    parser.add_argument("--num_images", type=int, default=128, help="noises: half to fit, half to measure")
    parser.add_argument("--teacher_steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="noise k is drawn from seed + k")
    add_class_flags(parser, "those that the schedules are for, or all (default: the null class)", guide=False)
    parser.add_argument(
        "--max_batch_size", type=int, default=64, help="images through the network at once, if below 16"
    )
    parser.add_argument("--fast", action="store_true", help="channels-last, compiled, bf16 where it is faster")
    settings = vars(parser.parse_args())

    model, revision, folder, fast = (settings.pop(key) for key in ("model", "revision", "output_dir", "fast"))
    try:
        settings["num_inference_steps"] = [int(steps) for steps in settings["num_inference_steps"].split(",")]
    except ValueError:
        parser.error(f"--num_inference_steps {settings['num_inference_steps']}; allowed: ints, separated by commas")
    classes = take_classes(settings)
    if folder is None and not Path(model).is_dir():
        parser.error("a model on the Hub needs --output_dir")
    in_place = folder is None or folder.resolve() == Path(model).resolve()
    if in_place:  # said before the work
        check_scheduler_folder(Path(model))
    elif is_model(folder):
        parser.error(f"--output_dir {folder} holds a model already; allowed: a new folder, or that model in place")
    check_writable(Path(model, "scheduler") if in_place else folder)
    pipe = load_pipeline(model, revision=revision)
    first = processes().is_main_process
    if first and not in_place:
        pipe.save_pretrained(folder)
    if fast:
        pipe.enable_fast_sampling()
    pipe.set_progress_bar_config(disable=not first, desc="calibrating", unit="image", smoothing=0.05)

    def save(steps: int):  # each as soon as it is there: all of them can take an hour
        if first:
            pipe.save_scheduler(folder or model)

    certificates = pipe.calibrate(**settings, **classes, callback_on_schedule=save)
    if first:
        print(table(certificates))
        if pipe.scheduler.config.calibrated_schedules:
            print(f"the schedules lie in {Path(folder or model) / 'scheduler' / 'scheduler_config.json'}")


def check_writable(folder: Path):
    """Make a folder, and try to write into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{str(folder)!r} cannot be written: {why_not_written(error)}") from error


if __name__ == "__main__":
    run(main)
