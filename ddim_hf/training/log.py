"""The log of a run: one line of figures per logging step."""

import json
from pathlib import Path

from ..files import write_text

LOG_FILE = "log.jsonl"


def log_line(folder: Path, step: int, values: dict[str, float]):
    """Append the figures of a step to the run's log."""
    with open(folder / LOG_FILE, "a") as stream:
        stream.write(json.dumps({"step": step, **values}) + "\n")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log; one that a kill cut short is left out."""
    if not (folder / LOG_FILE).exists():
        return []
    lines = []
    for text in (folder / LOG_FILE).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def trim_log(folder: Path, step: int):
    """Leave out what a run that is resumed at `step` will log again."""
    kept = [json.dumps(line) for line in read_log(folder) if line["step"] <= step]
    write_text(folder / LOG_FILE, "".join(line + "\n" for line in kept))


def plot_loss(folder: Path, picture: Path):
    """Draw the training and validation loss of a run's log into a PNG; ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("validation_loss", "held-out images, averaged weights")):
        points = [(line["step"], line[key]) for line in read_log(folder) if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 10 else None, label=label)
    axes.set(xlabel="step", ylabel="mean squared error of the prediction", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
