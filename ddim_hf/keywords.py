"""Keywords that a method does not have, answered in one line with those that it has."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

P, R = ParamSpec("P"), TypeVar("R")

# What other pipelines, of diffusers and elsewhere, call it.
OURS = {
    "seed": "seeds=[{value}]",
    "generators": "generator={value}",
    "num_images": "batch_size={value}",
    "num_images_per_prompt": "batch_size={value}",
    "num_samples": "batch_size={value}",
    "n_samples": "batch_size={value}",
    "steps": "num_inference_steps={value}",
    "num_steps": "num_inference_steps={value}",
    "ddim_steps": "num_inference_steps={value}",
    "ddim_eta": "eta={value}",
    "cfg_scale": "guidance_scale={value}",
    "guidance": "guidance_scale={value}",
    "labels": "class_labels={value}",
    "classes": "class_labels={value}",
    "noise": "latents, x_T as a tensor",
    "image": "images, one or a list of them",
    "callback": "callback_on_step_end, called as (pipeline, step, timestep, tensors) after each step",
    "callback_steps": "callback_on_step_end, which is called after every step",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end, which is given latents and pred_original_sample",
    "tau": "timesteps, or skip_type in the scheduler's config",
    "skip_type": "timesteps, or skip_type in the scheduler's config",
    "variance": "eta, or variance in the scheduler's config",
    "sigmas": "timesteps, strictly decreasing ints",
}


def answer_unknown(method: Callable[P, R]) -> Callable[P, R]:
    """Return the method with a TypeError, for a keyword that it does not have, that says which one is meant."""
    known = inspect.signature(method).parameters

    @functools.wraps(method)
    def answering(*args: P.args, **keywords: P.kwargs) -> R:
        for name, value in keywords.items():
            if name not in known:
                raise TypeError(f"{method.__name__.strip('_')} takes no {name}; allowed: {_ours(name, value, known)}")
        return method(*args, **keywords)

    return answering


def _ours(name: str, value: Any, known: Collection[str]) -> str:
    """What a keyword is called among the `known` ones; all of these where that cannot be told."""
    answer = OURS.get(name, "")
    if answer.replace("=", ",").split(",")[0] in known:
        shown = repr(value)
        return answer.format(value=shown if len(shown) <= 40 else "...")
    return ", ".join(difflib.get_close_matches(name, known, n=1) or [key for key in known if key != "self"])
