"""The average of a run's weights whose samples are best: one of those that were saved, or a combination of them."""

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation import Comparison, Question, compare
from ..files import read_json, whole_folder
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import on_main
from .checkpoints import MODEL_WEIGHTS, Tensors, list_checkpoints, load_checkpoint, why_torn
from .log import LOG_FILE
from .profiles import Profile, combine_profiles, parse_profiles
from .result import with_schedules_of

logger = logging.getLogger(__name__)
CHOICE_FILE = "choice.json"
WRITTEN = {"model_index.json", "unet", "scheduler", "config.json", LOG_FILE, CHOICE_FILE}


@dataclass
class SavedAverages:
    """The averages that a run's checkpoints hold.

    Args:
        pipeline: the folder of the newest checkpoint, which loads like a model.
        step: that checkpoint's.
        weights: by profile and step.
    """

    pipeline: Path
    step: int
    weights: dict[tuple[Profile, int], Tensors]

    def combined(self, wanted: Profile) -> tuple[Tensors, float]:
        """The weights of an average at the last step, and how far its profile is off: 0 for one that was saved."""
        if (wanted, self.step) in self.weights:
            return self.weights[wanted, self.step], 0.0
        coefficients, error = combine_profiles(list(self.weights), wanted, self.step)
        parts = list(self.weights.values())
        # In float64, as coefficients of both signs cancel.
        return {
            name: sum(c * part[name].double() for c, part in zip(coefficients, parts, strict=True)).float()
            for name in parts[0]
        }, error


def load_averages(run: str | Path) -> SavedAverages:
    """Read the averages in the whole checkpoints of a run.

    Raises:
        ValueError: there is none.
    """
    weights, newest = {}, None
    for path in list_checkpoints(Path(run)):
        if reason := why_torn(path):
            logger.warning(f"{path} cannot be used ({reason}); its averages are left out")
            continue
        tensors, state = load_checkpoint(path)
        for number, profile in enumerate(parse_profiles(state["identity"]["ema_decay"])):
            # Checkpoints of earlier versions hold the first by its own name too.
            name = MODEL_WEIGHTS if number == 0 and MODEL_WEIGHTS in tensors else profile.name
            weights[profile, state["step"]] = tensors[name]
            newest = path, state["step"]
    if newest is None:
        raise ValueError(f"{run} holds no whole checkpoint with averages; allowed: a run with --ema_decay")
    return SavedAverages(*newest, weights)


def choose_average(
    run: str | Path, question: Question, lengths: Sequence[Profile] = (), folder: str | Path | None = None
) -> tuple[Comparison, int, dict[str, float]]:
    """Measure a run's averages at its last checkpoint, and those of other lengths made from all that are saved; write
    the one with the least mean distance as a model, in the place of an earlier choice.

    Args:
        run: the run's folder.
        question: which distances, of how many images; its `model` does not count.
        lengths: averages that were not kept.
        folder: where the model is written; `run`/chosen if not given.

    Returns:
        The comparison, the number of the best, and by name how far off each profile is, 0 for one that was saved.

    Raises:
        ValueError, OSError, ImportError: nothing to choose from, a folder that holds something else, or what `compare`
            raises.
    """
    saved, folder = load_averages(run), Path(folder or Path(run, "chosen"))
    on_main(lambda: _check_place(folder))  # before hours of sampling
    candidates = [profile for profile, step in saved.weights if step == saved.step]
    candidates = list(dict.fromkeys([*candidates, *lengths]))
    errors = {}
    with tempfile.TemporaryDirectory(prefix="averages-") as scratch:
        places = [Path(scratch, profile.name) for profile in candidates]
        for profile, place in zip(candidates, places, strict=True):
            pipeline = DDIMCustomPipeline.from_pretrained(saved.pipeline)
            tensors, errors[profile.name] = saved.combined(profile)
            pipeline.unet.load_state_dict(tensors)
            pipeline.save_pretrained(place)
        names = [profile.name for profile in candidates]
        comparison = compare(question, list(map(str, places)), names)
        means = [sum(values) / len(values) for values in comparison.values]
        best = means.index(min(means))

        def write():
            record = {"run": Path(run).name, "step": saved.step, "chosen": names[best], "cells": comparison.cells}
            record |= {"distances": dict(zip(names, comparison.values, strict=True)), "profile_errors": errors}
            with whole_folder(folder) as beside:
                with_schedules_of(folder, DDIMCustomPipeline.from_pretrained(places[best])).save_pretrained(beside)
                # What the card and the report are made of
                if Path(run, LOG_FILE).exists():
                    shutil.copy(Path(run, LOG_FILE), beside)
                if Path(run, "config.json").exists():
                    settings = read_json(Path(run, "config.json"))
                    if settings.get("final_step") != saved.step:  # of a run that has not ended, or goes on
                        settings |= {"final_step": saved.step, "final_loss": None}
                    (beside / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
                (beside / CHOICE_FILE).write_text(json.dumps(record, indent=2) + "\n")

        on_main(write)
    return comparison, best, errors


def _check_place(folder: Path):
    """Raise ValueError for a folder that holds what no choice has written: figures, say, which are of its weights."""
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(there - WRITTEN if CHOICE_FILE in there else there):
        raise ValueError(
            f"{folder} holds {', '.join(others[:3])}, which is not of an earlier choice alone; allowed: another "
            "folder, or remove it"
        )
