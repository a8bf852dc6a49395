"""What visitors ask for: each request yields what the page shows, from the first moment to the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images import image_grid, pixels_to_pil, states_to_images, states_to_pixels
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .limits import Limits
from .pictures import comparison, downloads, gallery, message, progress, strip
from .settings import TAUS, Settings, taus_of
from .watching import Moment, result, watch

COMPARED_STEPS = (5, 10, 20, 50)
FRAMES = 40  # of a GIF, and of a trajectory
TOLERANCE = 1e-4  # of exact encoding: far below the 8e-3 between two levels of a pixel


@dataclass
class View:
    """What the page shows of a request: HTML, or None for what stays as it is."""

    status: str
    pictures: str | None = None
    files: str | None = None


def sample(pipe: DDIMCustomPipeline, settings: Settings, limits: Limits) -> Iterator[View]:
    """Images while they form: the prediction of x_0 after each step (eq. 9), then the images themselves."""
    settings.check(pipe, limits)
    captions = [f"seed {seed}" for seed in settings.seeds]
    total = settings.steps * -(-settings.images // limits.at_once)
    frames: dict[int, list[torch.Tensor]] = {step: [] for step in _spread(settings.steps)}

    def work(watched, show):
        finished = []  # the images of the chunks before

        def on_step(_, step: int, t: int, state: dict[str, Any]):
            before = sum(map(len, finished))
            x0 = state["pred_original_sample"]
            pixels = states_to_pixels(x0, range(before, before + len(x0)))
            if step in frames:
                frames[step].append(pixels)
            show((len(finished) * settings.steps + step + 1, torch.cat([*finished, pixels])))
            if step == settings.steps - 1:
                finished.append(pixels)

        watched = settings.pipeline(watched)
        return watched(**settings.arguments(pipe, limits), callback_on_step_end=on_step).images

    def view(moment: Moment) -> View:
        step, pixels = moment.latest or (0, torch.empty(0))
        forming = (pixels_to_pil(pixels) if step else []) + [None] * (settings.images - len(pixels))
        return View(
            progress(f"step {step} of {total} · {moment.seconds:.1f} s", step / total), gallery(forming, captions)
        )

    images, seconds = yield from watch(pipe, work, view)
    moments = [image_grid(pixels_to_pil(torch.cat(parts))) for parts in frames.values()]
    name = f"ddim-seed{settings.seed}-steps{settings.steps}"
    done = f"{_count(settings.images, 'image')} in {_count(settings.steps, 'step')}: {seconds:.1f} s"
    yield View(message(done), gallery(images, captions), downloads(name, images, moments))


def compare(pipe: DDIMCustomPipeline, settings: Settings, limits: Limits) -> Iterator[View]:
    """The same seeds in 5, 10, 20 and 50 steps, by each schedule that the model has (the paper's figure 5).

    Below its images stands how far they are from those of the most steps, root mean square of pixels in [0, 1].
    """
    columns = [steps for steps in COMPARED_STEPS if steps <= len(pipe.scheduler)] or [len(pipe.scheduler)]
    most = columns[-1]
    wanted = {
        (tau, steps): replace(settings, tau=tau, steps=steps)
        for steps in columns
        for tau in taus_of(pipe, steps, **settings.condition)
    }
    taus = [tau for tau in TAUS if any(tau == each for each, _ in wanted)]
    limits.check_images(settings.images, sum(steps for _, steps in wanted) * settings.passes_a_step)
    for each in wanted.values():
        each.check(pipe, limits)

    def work(watched, show):
        made = {}
        for key, each in wanted.items():
            made[key] = each.pipeline(watched)(**each.arguments(pipe, limits)).images
            show(dict(made))
        return made

    def cell(made: dict, tau: str, steps: int) -> tuple[list, str]:
        if (tau, steps) not in wanted:
            return [], "no schedule"
        images, best = made.get((tau, steps)), made.get((tau if (tau, most) in wanted else "uniform", most))
        if images is None:
            return [None] * settings.images, ""
        return images, "" if best is None or images is best else f"differs by {_rms(images, best):.3f}"

    def table(made: dict) -> str:
        return comparison(
            [_count(steps, "step") for steps in columns],
            [(tau, [cell(made, tau, steps) for steps in columns]) for tau in taus],
        )

    def view(moment: Moment) -> View:
        made = moment.latest or {}
        done, total = sum(steps for _, steps in made), sum(steps for _, steps in wanted)
        return View(
            progress(f"{len(made)} of {len(wanted)} cells · {moment.seconds:.1f} s", done / total), table(made)
        )

    made, seconds = yield from watch(pipe, work, view)
    yield View(message(f"seeds {settings.seeds[0]} to {settings.seeds[-1]}: {seconds:.1f} s"), table(made))


def encode(pipe: DDIMCustomPipeline, image: Image.Image, steps: int, limits: Limits) -> Iterator[View]:
    """An image's latents (section 4.3) and its reconstruction from them, plain and exact, with their errors."""
    limits.check(1, steps, limits.iterations + 3)  # exact encoding; plain, and both decoded
    settings = dict(num_inference_steps=steps, max_iterations=limits.iterations, tolerance=TOLERANCE)

    def work(watched, show):
        made = []
        for exact in (False, True):
            made.append(watched.reconstruct(image, exact=exact, **settings))
            show(list(made))
        return made

    def row(output: Any) -> list[tuple[list, str]]:
        if output is None:
            return [([image], "")] + [([None], "")] * 3
        decoded = output.images[0]
        difference = (np.asarray(decoded, float) - np.asarray(image, float)) * 8 + 128
        return [
            ([image], ""),
            (states_to_images(output.latents, "pil"), ""),
            ([decoded], f"error {output.mse.item():.2g}{_unsolved(output.residual)}"),
            ([Image.fromarray(difference.clip(0, 255).astype(np.uint8))], ""),
        ]

    def table(made: list) -> str:
        columns = ["image", "latents", "decoded", "difference × 8"]
        return comparison(columns, list(zip(("plain", "exact"), map(row, [*made, None, None][:2]), strict=True)))

    def view(moment: Moment) -> View:
        made = moment.latest or []
        text = f"{'exact' if made else 'plain'}: {moment.batches} passes · {moment.seconds:.1f} s"
        return View(progress(text), table(made))

    made, seconds = yield from watch(pipe, work, view)
    yield View(message(f"encoded and decoded in {_count(steps, 'step')}, twice: {seconds:.1f} s"), table(made))


def interpolate(
    pipe: DDIMCustomPipeline, ends: Sequence[int] | Sequence[Image.Image], images: int, steps: int, limits: Limits
) -> Iterator[View]:
    """The great circle between the latents of two seeds or two images (section 5.3 and eq. 67)."""
    encoded = isinstance(ends[0], Image.Image)
    limits.check(images, steps, images + (2 * limits.iterations if encoded else 0))
    schedule = dict(num_inference_steps=steps, max_batch_size=limits.at_once)

    def work(watched, show):
        if not encoded:
            return watched.interpolate(*ends, num_images=images, **schedule).images, None
        solver = dict(exact=True, max_iterations=limits.iterations, tolerance=TOLERANCE)
        inverse = watched.invert(list(ends), **schedule, **solver)
        made = watched.interpolate(*inverse.latents, num_images=images, clip_sample=False, **schedule).images
        return made, inverse.residual

    def view(moment: Moment) -> View:
        return View(progress(f"{_count(moment.batches, 'pass')} · {moment.seconds:.1f} s"), "")

    (made, residual), seconds = yield from watch(pipe, work, view)
    captions = [f"{k / (images - 1):.0%} of the way" for k in range(images)]
    shown = strip("From one end to the other", [made], [captions], images // 2)
    yield View(message(f"{images} images: {seconds:.1f} s{_unsolved(residual)}"), shown)


def look_into(pipe: DDIMCustomPipeline, settings: Settings, limits: Limits) -> Iterator[View]:
    """One image step by step: the states x_t, and the predictions of x_0 from them (eq. 9)."""
    settings = replace(settings, images=1)
    settings.check(pipe, limits)

    def work(watched, show):
        def on_step(_, step: int, t: int, state: dict[str, Any]):
            show(step + 1)

        arguments = settings.arguments(pipe, limits)
        return settings.pipeline(watched)(**arguments, callback_on_step_end=on_step, return_trajectory=True)

    def view(moment: Moment) -> View:
        step = moment.latest or 0
        return View(progress(f"step {step} of {settings.steps} · {moment.seconds:.1f} s", step / settings.steps), "")

    output, seconds = yield from watch(pipe, work, view)
    shown = _spread(settings.steps)
    states, predictions = (
        [states_to_images(moments[step], "pil")[0] for step in shown]
        for moments in (output.trajectory, output.pred_original_samples)
    )
    names = [f"step {step + 1}, t = {output.timesteps[step]}" for step in shown]
    captions = [[f"{kind} at {name}" for name in names] for kind in ("x_t", "predicted x_0")]
    yield View(
        message(f"seed {settings.seed} in {_count(settings.steps, 'step')}: {seconds:.1f} s"),
        strip("Step", [states, predictions], captions, len(shown) // 2),
    )


def images_of(pipe: DDIMCustomPipeline, settings: Settings, limits: Limits) -> list[Image.Image]:
    """The images that `sample` ends with."""
    settings.check(pipe, limits)
    arguments = settings.arguments(pipe, limits)
    return result(
        watch(pipe, lambda watched, show: settings.pipeline(watched)(**arguments).images, lambda moment: None)
    )


def _spread(steps: int) -> list[int]:
    """At most FRAMES of the steps, evenly, with the first and the last."""
    return sorted(set(np.linspace(0, steps - 1, min(steps, FRAMES)).round().astype(int).tolist()))


def _unsolved(residual: float | None) -> str:
    """What is to be said of images whose exact encoding has not converged."""
    return "" if residual is None or residual <= TOLERANCE else f", but not solved: off by {residual:.2g}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 'es' if thing.endswith('s') else 's'}"


def _rms(images: list[Image.Image], others: list[Image.Image]) -> float:
    """Root mean square difference of pixels in [0, 1]."""
    pixels = [np.stack([np.asarray(image, float) / 255 for image in each]) for each in (images, others)]
    return float(np.sqrt(np.square(pixels[0] - pixels[1]).mean()))
