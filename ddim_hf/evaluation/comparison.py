"""Several models measured alike: their distances beside each other, cell by cell."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..reports.markdown import shown, table
from ..reports.metrics import CELL, DISTANCES
from .answers import answer, load_checked
from .questions import Question

KEYS = ("metric", "num_images", "implementation", "tau", "guidance_interval", "guide", *CELL)


@dataclass(frozen=True)
class Comparison:
    """The distances of several models in the same cells.

    Args:
        models: their names; the first is what the others are compared with.
        cells: what each cell is, in words.
        values: of each model, its distance in each cell.
        apart: what cells are that some of the models alone have, such as schedules fitted for other steps.
    """

    models: list[str]
    cells: list[str]
    values: list[list[float]]
    apart: Sequence[str] = ()

    def better(self, model: int) -> bool:
        """Whether a model is nearer to the reference than the first in every cell."""
        return all(ours < first for ours, first in zip(self.values[model], self.values[0], strict=True))

    def __str__(self) -> str:
        """A Markdown table; below it for each other model whether it is nearer in every cell, and what is apart."""
        rows = []
        for cell, *values in zip(self.cells, *self.values, strict=True):
            rows.append([cell, *map(shown, values), *(f"{value - values[0]:+.3g}" for value in values[1:])])
        head = ["distance", *self.models, *(f"{name} less {self.models[0]}" for name in self.models[1:])]
        said = [
            f"{name} is nearer than {self.models[0]} in {'every cell' if self.better(number) else 'not every cell'}"
            for number, name in enumerate(self.models[1:], start=1)
        ]
        said += [f"not compared, as not all have it: {cell}" for cell in self.apart]
        return table(head, rows) + "\n" + "\n".join(said)


def compare(question: Question, models: Sequence[str], names: Sequence[str] | None = None) -> Comparison:
    """Measure several models by one question, each figure as `evaluate` does, and compare their distances.

    Args:
        question: its `model` does not count, and its `revision` is of the first. Schedules (`calibrated`) are measured
            of those that have some.
        models: folders or ids, or folders of images.
        names: what they are called; their own if not given.

    Raises:
        ValueError: the models have no cells in common, or what `evaluate` raises; before any is measured if it can be
            known by then.
        OSError, ImportError: as `evaluate`.
    """
    revisions = [question.revision, *[None] * (len(models) - 1)]
    questions = [replace(question, model=m, revision=r) for m, r in zip(models, revisions, strict=True)]
    measured = [_distances(one) for one in _checked(questions)]
    cells = [cell for cell in measured[0] if all(cell in other for other in measured[1:])]
    if not cells:
        found = "; ".join(_in_words(dict(next(iter(one), ()))) for one in measured)
        raise ValueError(f"{', '.join(models)} have no distance in common ({found}); allowed: with the same cells")
    values = [[one[cell] for cell in cells] for one in measured]
    apart = [cell for cell in dict.fromkeys(cell for one in measured for cell in one) if cell not in cells]
    shared, others = ([_in_words(dict(cell)) for cell in some] for some in (cells, apart))
    return Comparison(list(names or models), shared, values, others)


def _checked(questions: list[Question]) -> list[Question]:
    """The questions as they can be asked of each model; raises what is wrong with any, and where sizes differ."""
    for question in questions:
        question.check()
    of_images = [question.of_images for question in questions]
    if all(of_images):
        return questions
    if any(of_images):
        names = ", ".join(question.model for question in questions)
        raise ValueError(f"{names} have no distance in common: models and folders of images; allowed: of one kind")
    sizes, fitted = zip(*map(_size_and_fitted, questions), strict=True)
    if different := [size for size in sizes if size != sizes[0]]:
        raise ValueError(f"the models' images are of {sizes[0]} and of {different[0]}; allowed: of one size")
    if not any(fitted):
        return questions
    return [replace(question, calibrated=has) for question, has in zip(questions, fitted, strict=True)]


def _size_and_fitted(question: Question) -> tuple[dict[str, int], bool]:
    """The size of a model's images, and whether schedules are asked of it that it has."""
    checked = load_checked(replace(question, calibrated=False))
    return checked.size, question.calibrated and question.has_schedule(checked.pipe, checked.guide)


def _distances(question: Question) -> dict[tuple, float]:
    """Each distance that is asked for, by its cell."""
    rows = [row for row in answer(question).asked() if row["metric"] in DISTANCES]
    rows = [row for row in rows if not str(row.get("implementation")).startswith("real images")]
    return {_cell(row): row["value"] for row in rows}


def _cell(row: dict[str, Any]) -> tuple:
    # No guidance is guidance 1: so a model without classes has the cells of one with.
    kept = {key: row.get(key) for key in KEYS if key != "schedule"}
    kept["guidance_scale"] = None if kept["guidance_scale"] == 1 else kept["guidance_scale"]
    interval = kept["guidance_interval"]
    return tuple((kept | {"guidance_interval": None if interval is None else tuple(interval)}).items())


def _in_words(cell: dict[str, Any]) -> str:
    words = {"num_inference_steps": "S", "implementation": "by"}
    return ", ".join(f"{words.get(key, key)} {value}" for key, value in cell.items() if value is not None)
