"""All weights of a schedule at once, by the images that it ends in.

Weights that were fitted step by step do not know what later steps make of them. From there Levenberg's and Marquardt's
method leads all of them together towards the teacher's images (as solvers are fitted by Shaul et al. 2024,
arXiv:2403.01329, there by gradients through the sampler). How the images change with a weight shows by a difference,
for which the steps after the weight's own are taken again.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..scheduling_ddim_custom import PLAIN
from .blocks import Block, in_order
from .few_steps import FewSteps, Weights

ROUNDS = 3
# Passes of a noise of the fit, on average: longer schedules take fewer rounds, then fewer blocks, but one at least.
MOST_PASSES = 150
MOST_STEPS = 20  # beyond, a block of noises would take thousands of passes for what is hardly worse before
CHANGE = 0.02  # of a weight, that shows in bf16 too
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the weights' mean squared slope


def plan(steps: int, starts: Sequence[int]) -> tuple[int, set[int], int]:
    """Return how many rounds are made, on which of the fit's blocks, by their first images' numbers, and how often at
    most an image of these passes through the network."""
    if steps > MOST_STEPS:
        return 0, set(), 0
    again = sum(min(k + 1, len(PLAIN)) * (steps - 1 - k) for k in range(steps))
    passes = steps + again + len(DAMPINGS) * steps
    rounds = min(ROUNDS, max(1, MOST_PASSES // passes))
    count = min(len(starts), max(1, len(starts) * MOST_PASSES // passes))
    return rounds, {starts[i * len(starts) // count] for i in range(count)}, rounds * passes


def polish(steps: FewSteps, weights: Weights, blocks: list[Block], rounds: int) -> Weights:
    """Return the weights after so many rounds on this process's share of the blocks.

    A round that comes no nearer to the teacher's images is the last one, and left out.
    """
    for _ in range(rounds):
        products = {}
        for block in blocks:
            rows = _slopes_and_distance(steps, block, weights)
            products[block.start] = rows @ rows.T, rows.shape[1]
        gram, size = (sum(parts) for parts in zip(*in_order(products), strict=True))
        gram = gram / size
        slopes, gradient, square = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
        diagonal = np.diag(slopes)
        if not (np.isfinite(gram).all() and diagonal.any()):  # all is clipped
            break
        nearest, before = square, weights
        for damping in DAMPINGS:
            # (J^T J + damping) change = -J^T r
            damped = slopes + damping * diagonal.mean() * np.eye(len(slopes))
            moved = _changed(steps, before, np.linalg.solve(damped, -gradient))
            distances = {block.start: _distance(steps.walk(block, moved), block) for block in blocks}
            found = sum(float(r @ r) for r in in_order(distances)) / size
            if found < nearest:
                nearest, weights = found, moved
            elif nearest < square:  # smaller steps than the best one lead less far
                break
        if not nearest < square:
            break
    return weights


def _slopes_and_distance(steps: FewSteps, block: Block, weights: Weights) -> np.ndarray:
    """How the block's values change with each free weight, a row each, and the last: how far the teacher's are."""
    x, history, before = block.noise, [], []
    for k, w in enumerate(weights):
        output, history = steps.predict(block, x, k, history)
        before.append((x, history))
        x = steps.step(k, x, output, history, w)
    distance, rows = _distance(x, block), []
    for k, w in enumerate(weights):
        for j in range(steps.count_weights(k)):
            x, history = before[k]
            x = steps.step(k, x, None, history, [value + CHANGE * (i == j) for i, value in enumerate(w)])
            x = steps.walk(block, weights, k + 1, x, history)
            rows.append((_distance(x, block) - distance) / CHANGE)
    return np.stack([*rows, distance])


def _distance(images: torch.Tensor, block: Block) -> np.ndarray:
    """Of what the fit looks at of images, as they are seen, from the teacher's."""
    seen, wanted = (block.seen(x.clamp(-1, 1)) for x in (images, block.images))
    return (seen.double() - wanted.double()).flatten().numpy()


def _changed(steps: FewSteps, weights: Weights, change: np.ndarray) -> Weights:
    changes = iter(change.tolist())
    return [
        [round(value + next(changes), 6) if j < steps.count_weights(k) else value for j, value in enumerate(w)]
        for k, w in enumerate(weights)
    ]
