"""The log of a run: one line of figures per logging step, and what is counted between two of them."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..files import whole_file, write_text

LOG_FILE = "log.jsonl"


class Window:
    """The losses, the steps and the seconds since the last log line; the clock runs from the start on.

    Args:
        device: where the losses are summed, so that no step waits for it.
        loss, steps, data, seconds: what a checkpoint held of a window that it cut: the sum of the losses, their
            number, the seconds that waited for data and all seconds.
    """

    def __init__(
        self, device: torch.device, loss: float = 0.0, steps: int = 0, data: float = 0.0, seconds: float = 0.0
    ):
        self.loss = torch.tensor(loss, device=device)
        self.steps, self.data = steps, data
        self._before, self._since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time that training took, without the pauses."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def restart(self):
        """Have the clock run from now on: what was done since it was started is not training."""
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still: what is done meanwhile is not training."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self.restart()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """What is done meanwhile counts as waiting."""
        began = time.perf_counter()
        yield
        self.data += time.perf_counter() - began

    def state(self, loss: float) -> dict[str, Any]:
        """What a checkpoint keeps; `loss` is the sum of the losses over all processes."""
        return {"loss": loss, "steps": self.steps, "data": self.data, "seconds": self.seconds}


def log_line(folder: Path, step: int, values: dict[str, float]):
    """Append the figures of a step to the run's log, without those for which JSON has no number (NaN, infinity)."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    with open(folder / LOG_FILE, "a") as stream:
        stream.write(json.dumps({"step": step, **finite}) + "\n")


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
    labels = {"loss": "training", "validation_loss": "held-out images, averaged weights"}
    labels["validation_loss_null"] = "the same without their labels"
    for key, label in labels.items():
        points = [(line["step"], line[key]) for line in read_log(folder) if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 10 else None, label=label)
    axes.set(xlabel="step", ylabel="mean squared error of the prediction", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(picture) as beside:
        figure.savefig(beside, dpi=120)
