"""Few steps that end where many do: schedules fitted to a network by samples of its own, without data.

A schedule is its timesteps tau and three weights for each of them. The place of eps_i in eq. 12 is taken by

    eps-bar_i = w_i0 eps_i + w_i1 eps_{i+1} + w_i2 eps_{i+2},

this prediction of the network and the two before it, nearer the noise; w_i = (1, 0, 0) is DDIM.

The teacher is DDIM in many steps from the same noise. tau is the path along which single DDIM steps, taken from the
teacher's states, err least (Chen et al. 2024, GITS, arXiv:2405.11326, choose it by such a table too). The weights then
lead the student, step after step and each from the state that it has itself come to, as near as they can to the
teacher's, and are then polished together. The first half of the noises is for this fit; the second chooses between
paths, and measures the result.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..images import is_finite
from ..scheduling_ddim_custom import PLAIN, DDIMSchedulerCustom
from .blocks import Block, in_order, own_blocks
from .certificate import error, figures
from .few_steps import FewSteps, Network, Weights, predict
from .paths import choose_paths, one_step_errors
from .polishing import plan, polish

GAMMAS = (1.0, 1.15, 1.3)
RIDGE = 1e-3
MAX_ITERATIONS = 10  # of Gauss and Newton's
MOST_IN_A_BLOCK = 16  # of a pipeline's calibration, as polishing takes whole blocks, and few where it is dear


class Schedule(NamedTuple):
    """The timesteps, descending, and the three weights of each."""

    timesteps: list[int]
    weights: Weights


def fit_schedules(
    network: Network,
    scheduler: DDIMSchedulerCustom,
    draw: Callable[[range], torch.Tensor],
    num_inference_steps: Sequence[int],
    *,
    num_images: int = 128,
    teacher_steps: int = 100,
    max_batch_size: int = MOST_IN_A_BLOCK,
    bar: tqdm | None = None,
) -> Iterator[tuple[int, tuple[Schedule, dict[str, Any]]]]:
    """Yield each S with a schedule and its certificate, as soon as it is fitted.

    Processes that run under torch.distributed share the blocks of max_batch_size images; all of them have to call
    this, and all yield what one alone would.

    Args:
        network: its output for (x, timestep, the images' numbers), of x's shape and the scheduler's prediction_type.
        scheduler: takes the plain steps and the teacher's, its clipping included; left as it is.
        draw: x_T [B, C, H, W] of the images with these numbers, on the network's device.
        num_inference_steps: every S, from 1 to teacher_steps - 1.
        num_images: noises, at least 2.
        teacher_steps: from 2 to T.
        bar: counts the images that have passed through the network.

    Yields:
        The certificate holds `figures` on the second half of the noises for "calibrated", "plain" in S, 2 S and 5 S
        steps (where these are fewer than the teacher's) and the "teacher". It may say that the schedule is worse than
        plain.

    Raises:
        ValueError: the teacher's images are not finite.
    """
    scheduler = copy.deepcopy(scheduler)
    blocks = list(own_blocks(draw, num_images, max_batch_size))
    starts = range(0, num_images - num_images // 2, max_batch_size)  # of the fit's blocks, on all processes
    fitted, held_out = ([block for block in blocks if block.held_out is half] for half in (False, True))
    bar = tqdm(disable=True) if bar is None else bar
    bar.total = sum(_passes(block, num_inference_steps, teacher_steps, starts) for block in blocks)

    scheduler.set_timesteps(teacher_steps)
    for block in blocks:
        _follow_teacher(network, scheduler, block, bar)
    teacher_timesteps = scheduler.timesteps.tolist()
    errors = one_step_errors(scheduler, fitted)
    paths = {gamma: choose_paths(errors, gamma, max(num_inference_steps)) for gamma in GAMMAS}

    measured = {teacher_steps: figures([block.images for block in held_out], held_out)}

    def its_error(candidate: tuple[FewSteps, Weights, dict[str, Any]]) -> float:
        return error(candidate[2], measured[teacher_steps])

    for steps in num_inference_steps:
        counts = [count for count in (steps, 2 * steps, 5 * steps) if count < teacher_steps]
        for count in counts:
            if count not in measured:
                scheduler.set_timesteps(count)
                measured[count] = figures([_plain(network, scheduler, block, bar) for block in held_out], held_out)
        candidates = []
        for path in sorted({tuple(paths[gamma][steps]) for gamma in GAMMAS}):
            few = FewSteps(network, scheduler, [teacher_timesteps[state] for state in path], bar)
            weights, images = fit_weights(few, [*path[1:], teacher_steps], fitted, held_out)
            candidates.append((few, weights, figures(images, held_out)))
        few, weights, _ = min(candidates, key=its_error)
        rounds, chosen, _ = plan(steps, starts)
        polished = polish(few, weights, [block for block in fitted if block.start in chosen], rounds)
        if polished != weights:
            images = [few.walk(block, polished) for block in held_out]
            candidates.append((few, polished, figures(images, held_out)))
        few, weights, found = min(candidates, key=its_error)
        plain = {f"plain {count}": measured[count] for count in counts}
        teacher = {f"teacher {teacher_steps}": measured[teacher_steps]}
        yield steps, (Schedule(few.tau, weights), {f"calibrated {steps}": found, **plain, **teacher})
    bar.total = bar.n  # paths that coincide were walked once
    bar.refresh()


def _passes(block: Block, num_inference_steps: Sequence[int], teacher_steps: int, starts: Sequence[int]) -> int:
    """How often at most the block's images pass through the network, all together."""
    passes = teacher_steps + len(GAMMAS) * sum(num_inference_steps)
    if block.held_out:
        plain = {count for steps in num_inference_steps for count in (steps, 2 * steps, 5 * steps)}
        passes += sum(count for count in plain if count < teacher_steps) + sum(num_inference_steps)
    else:
        plans = (plan(steps, starts) for steps in num_inference_steps)
        passes += sum(polishing for _, chosen, polishing in plans if block.start in chosen)
    return passes * len(block.noise)


# The teacher


def _follow_teacher(network: Network, scheduler: DDIMSchedulerCustom, block: Block, bar: tqdm):
    """Sample the block in the scheduler's steps; of the half for the fit keep what the fit looks at.

    Raises ValueError for images that are NaN or infinite.
    """
    x, states, x0, epsilon = block.noise, [], [], []
    for t in scheduler.timesteps.tolist():
        output = predict(network, block, x, t, bar)
        if not block.held_out:
            states.append(block.seen(x))
            epsilon.append(block.seen(scheduler.predict_epsilon(output, t, x)))
        stepped = scheduler.step(output, t, x)
        x = stepped.prev_sample
        if not block.held_out:
            x0.append(block.seen(stepped.pred_original_sample))
    if bad := [number for number, finite in zip(block.numbers, is_finite(x), strict=True) if not finite]:
        raise ValueError(
            f"the network's images in {len(scheduler.timesteps)} steps, which others are fitted to, are not finite "
            f"(NaN or infinite): those of the noises {bad[:5]}, counted from 0"
        )
    block.images = x
    if not block.held_out:
        block.states, block.x0, block.epsilon = torch.stack([*states, block.seen(x)]), *map(torch.stack, (x0, epsilon))


def _plain(network: Network, scheduler: DDIMSchedulerCustom, block: Block, bar: tqdm) -> torch.Tensor:
    x = block.noise
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(predict(network, block, x, t, bar), t, x).prev_sample
    return x


# How to step


def fit_weights(
    steps: FewSteps, targets: Sequence[int], fitted: list[Block], held_out: list[Block]
) -> tuple[Weights, list[torch.Tensor]]:
    """Return the weights with which each step leads nearest to the teacher's state that is its target, and the images
    that they make of the held-out noises.

    Every step's weights are fitted when the student has come there.
    """
    states = {block: block.noise for block in [*fitted, *held_out]}
    history = {block: [] for block in states}
    weights = []
    for k, target in enumerate(targets):
        outputs = {}
        for block, x in states.items():
            outputs[block], history[block] = steps.predict(block, x, k, history[block])

        def stepped(block: Block, w: Sequence[float], k=k, x=states, outputs=outputs) -> torch.Tensor:
            return steps.step(k, x[block], outputs[block], history[block], w)

        def residuals(w: np.ndarray, target=target, stepped=stepped) -> dict[int, np.ndarray]:
            return {
                block.start: (block.seen(stepped(block, w)).double() - block.states[target]).flatten().numpy()
                for block in fitted
            }

        found = gauss_newton(residuals, PLAIN[: steps.count_weights(k)]) if steps.count_weights(k) else PLAIN
        weights.append([round(float(w), 6) for w in (*found, 0, 0)][:3])
        states = {block: stepped(block, weights[-1]) for block in states}
    return weights, [states[block] for block in held_out]


def gauss_newton(residuals: Callable[[np.ndarray], dict[int, np.ndarray]], start: Sequence[float]) -> np.ndarray:
    """Return weights w near `start` that make the mean square of residuals(w) small.

    The predictions are so much alike that many w do equally well; the ridge, RIDGE times the residuals' mean squared
    slope, takes the one nearest to `start`.

    Args:
        residuals: vectors of this process's blocks by their numbers, at all of w nearly linear.
    """

    def normal_equations(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        # J^T J, J^T r and r^T r of the mean; J by differences, as clipping keeps the residuals piecewise linear
        change, moved = 1e-3, residuals(w)
        columns = [residuals(w + change * unit) for unit in np.eye(len(w))]
        products = {}
        for start, r in moved.items():
            rows = np.stack([*((column[start] - r) / change for column in columns), r])
            products[start] = rows @ rows.T, r.size
        gram, size = (sum(parts) for parts in zip(*in_order(products), strict=True))
        gram = gram / size
        return gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]

    start = np.array(start)
    w = start
    slopes, gradient, square = normal_equations(w)
    ridge, loss = RIDGE * np.trace(slopes) / len(w), square
    if ridge == 0:  # all is clipped, or the predictions are 0
        return start
    for _ in range(MAX_ITERATIONS):
        # (J^T J + ridge) step = -(J^T r + ridge (w - start))
        step = np.linalg.solve(slopes + ridge * np.eye(len(w)), -(gradient + ridge * (w - start)))
        tried = w + step
        equations = normal_equations(tried)
        tried_loss = equations[2] + ridge * ((tried - start) ** 2).sum()
        if not tried_loss < loss * (1 - 1e-6):
            break
        w, loss, (slopes, gradient, _) = tried, tried_loss, equations
    return w
