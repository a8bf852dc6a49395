"""Few steps that end where many do: schedules fitted to a network by samples of its own, without data.

A schedule is its timesteps tau and three weights for each of them. The place of eps_i in eq. 12 is taken by

    eps-bar_i = w_i0 eps_i + w_i1 eps_{i+1} + w_i2 eps_{i+2},

this prediction of the network and the two before it, nearer the noise; w_i = (1, 0, 0) is DDIM.

The teacher is DDIM in many steps from the same noise. tau is the path along which single DDIM steps, taken from the
teacher's states, err least (Chen et al. 2024, GITS, arXiv:2405.11326, choose it by such a table too). The weights then
lead the student, step after step and each from the state that it has itself come to, as near as they can to the
teacher's. The first half of the noises is for this fit; the second chooses between paths, and measures the result.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .scheduling_ddim_custom import PLAIN, DDIMSchedulerCustom, weigh

GAMMAS = (1.0, 1.15, 1.3)
RIDGE = 1e-3
BANDS = (1 / 8, 1 / 4)  # cycles per pixel, between them the bands
ELEMENTS = 3072  # a 32 x 32 colour image whole; of larger states the fit looks at so many values, for memory

Network = Callable[[torch.Tensor, torch.Tensor, range], torch.Tensor]


class Schedule(NamedTuple):
    """The timesteps, descending, and the three weights of each."""

    timesteps: list[int]
    weights: list[list[float]]


class Block:
    """Images that pass through the network together, on the process that they belong to."""

    def __init__(self, numbers: range, held_out: bool, noise: torch.Tensor):
        self.numbers, self.start, self.held_out, self.noise = numbers, numbers.start, held_out, noise
        self.images: torch.Tensor  # the teacher's
        self.states: torch.Tensor  # of the fit: the teacher's x at each of its N timesteps and the data, [N + 1, B, E]
        self.x0: torch.Tensor  # what it predicted there, clipped as its sampler clips, [N, B, E]
        self.epsilon: torch.Tensor  # likewise

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """The values [B, E] of x [B, C, H, W] that the fit looks at, the same E of each image, on the CPU."""
        count = x[0].numel()
        if count <= ELEMENTS:
            return x.flatten(1).cpu()
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:ELEMENTS].sort().values
        return x.flatten(1)[:, chosen.to(x.device)].cpu()


def fit_schedules(
    network: Network,
    scheduler: DDIMSchedulerCustom,
    draw: Callable[[range], torch.Tensor],
    num_inference_steps: Sequence[int],
    *,
    num_images: int = 128,
    teacher_steps: int = 100,
    max_batch_size: int = 64,
    bar: tqdm | None = None,
) -> dict[int, tuple[Schedule, dict[str, Any]]]:
    """Return, for each S, a schedule and its certificate.

    Processes that run under torch.distributed share the blocks of max_batch_size images; all of them have to call
    this, and all return what one alone would.

    Args:
        network: its output for (x, timestep, the images' numbers), of x's shape and the scheduler's prediction_type.
        scheduler: takes the plain steps and the teacher's, its clipping included; left as it is.
        draw: x_T [B, C, H, W] of the images with these numbers, on the network's device.
        num_inference_steps: every S, from 1 to teacher_steps - 1.
        num_images: noises, at least 2.
        teacher_steps: from 2 to T.
        bar: counts the images that have passed through the network.

    Returns:
        The certificate holds `figures` on the second half of the noises for "calibrated", "plain" in S, 2 S and 5 S
        steps (not in more than the teacher's) and the "teacher". It may say that the schedule is worse than plain.
    """
    scheduler = copy.deepcopy(scheduler)
    blocks = list(_own_blocks(draw, num_images, max_batch_size))
    fitted, held_out = ([block for block in blocks if block.held_out is half] for half in (False, True))
    bar = tqdm(disable=True) if bar is None else bar
    bar.total = _passes(fitted, held_out, num_inference_steps, teacher_steps)

    scheduler.set_timesteps(teacher_steps)
    for block in blocks:
        _follow_teacher(network, scheduler, block, bar)
    teacher_timesteps = scheduler.timesteps.tolist()
    errors = one_step_errors(scheduler, fitted)
    paths = {gamma: choose_paths(errors, gamma, max(num_inference_steps)) for gamma in GAMMAS}

    measured = {teacher_steps: figures([block.images for block in held_out], held_out)}
    results = {}
    for steps in num_inference_steps:
        for count in (steps, 2 * steps, 5 * steps):
            if count < teacher_steps and count not in measured:
                scheduler.set_timesteps(count)
                measured[count] = figures([_plain(network, scheduler, block, bar) for block in held_out], held_out)
        candidates = []
        for path in sorted({tuple(paths[gamma][steps]) for gamma in GAMMAS}):
            schedule, images = fit_weights(network, scheduler, teacher_timesteps, path, fitted, held_out, bar)
            candidates.append((schedule, figures(images, held_out)))
        schedule, found = min(candidates, key=lambda candidate: error(candidate[1], measured[teacher_steps]))
        plain = {f"plain {count}": measured[count] for count in (steps, 2 * steps, 5 * steps) if count in measured}
        teacher = {f"teacher {teacher_steps}": measured[teacher_steps]}
        results[steps] = schedule, {f"calibrated {steps}": found, **plain, **teacher}
    bar.total = bar.n  # paths that coincide were walked once
    bar.refresh()
    return results


def _own_blocks(draw, num_images: int, size: int) -> Iterable[Block]:
    """This process's share of the blocks: one block after another goes to the next process."""
    rank, world = _rank_and_world()
    half = num_images - num_images // 2
    starts = [*range(0, half, size), *range(half, num_images, size)]
    for start in starts[rank::world]:
        numbers = range(start, min(start + size, half if start < half else num_images))
        yield Block(numbers, start >= half, draw(numbers))


def _passes(fitted: list[Block], held_out: list[Block], num_inference_steps, teacher_steps: int) -> int:
    """How many images will pass through the network at most."""
    fit, rest = (sum(len(block.noise) for block in half) for half in (fitted, held_out))
    plain = {count for steps in num_inference_steps for count in (steps, 2 * steps, 5 * steps)}
    plain = sum(count for count in plain if count < teacher_steps)
    return (fit + rest) * (teacher_steps + len(GAMMAS) * sum(num_inference_steps)) + rest * plain


# The teacher


def _follow_teacher(network: Network, scheduler: DDIMSchedulerCustom, block: Block, bar: tqdm):
    """Sample the block in the scheduler's steps; of the half for the fit keep what the fit looks at."""
    x, states, x0, epsilon = block.noise, [], [], []
    for t in scheduler.timesteps.tolist():
        output = _predict(network, block, x, t, bar)
        if not block.held_out:
            states.append(block.seen(x))
            epsilon.append(block.seen(scheduler.predict_epsilon(output, t, x)))
        stepped = scheduler.step(output, t, x)
        x = stepped.prev_sample
        if not block.held_out:
            x0.append(block.seen(stepped.pred_original_sample))
    block.images = x
    if not block.held_out:
        block.states, block.x0, block.epsilon = torch.stack([*states, block.seen(x)]), *map(torch.stack, (x0, epsilon))


def _plain(network: Network, scheduler: DDIMSchedulerCustom, block: Block, bar: tqdm) -> torch.Tensor:
    x = block.noise
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(_predict(network, block, x, t, bar), t, x).prev_sample
    return x


def _predict(network: Network, block: Block, x: torch.Tensor, t: int, bar: tqdm) -> torch.Tensor:
    output = network(x, torch.tensor(t, device=x.device), block.numbers)
    bar.update(len(x))
    return output


# Which timesteps


def one_step_errors(scheduler: DDIMSchedulerCustom, blocks: list[Block]) -> np.ndarray:
    """Return the root mean square error [N, N + 1] of one DDIM step from the teacher's state a to its state b.

    States are numbered in the order in which the teacher, whose timesteps the scheduler has, came to them; N is the
    data. The error is that of x_b in its own scale. Where b is not after a it is infinite.
    """
    alpha = scheduler.alphas_cumprod[scheduler.timesteps.cpu()].cpu().double().tolist()
    alpha = np.array([*alpha, float(scheduler.final_alpha_cumprod)])
    signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
    # |signal_b x0_a + noise_b eps_a - x_b|^2 for all a and b, from products that add up over images
    products = {block.start: _products(block) for block in blocks}
    x0_x0, x0_eps, eps_eps, x0_x, eps_x, x_x, count = map(sum, zip(*_in_order(products), strict=True))
    square = np.outer(x0_x0, signal**2) + 2 * np.outer(x0_eps, signal * noise) + np.outer(eps_eps, noise**2)
    square += x_x - 2 * signal * x0_x - 2 * noise * eps_x
    later = np.arange(len(alpha)) > np.arange(len(alpha) - 1)[:, None]
    return np.where(later, np.sqrt(square.clip(0) / count), np.inf)


def _products(block: Block) -> list[np.ndarray]:
    """Sums over a block's values of products: of what the teacher predicted at a, of that with its states b, and of
    these; at last the number of values."""
    sums = [0] * 6
    for image in range(block.states.shape[1]):  # in float64, one image after the other for memory
        x, x0, eps = (part[:, image].double().numpy() for part in (block.states, block.x0, block.epsilon))
        own = [np.einsum("ae,ae->a", a, b) for a, b in ((x0, x0), (x0, eps), (eps, eps))]
        parts = [*own, x0 @ x.T, eps @ x.T, np.einsum("be,be->b", x, x)]
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    return [*sums, block.states[0].numel()]


def choose_paths(errors: np.ndarray, gamma: float, max_steps: int) -> list[list[int]]:
    """Return, for S = 0 to max_steps, the states from which the S steps of the path of least error are taken.

    Args:
        errors: of a step from state a to b, [N, N + 1], infinite where there is none.
        gamma: the k-th step's error counts gamma^k times, which moves the path towards the data if above 1.
    """
    count = len(errors)
    least = np.full(count + 1, np.inf)
    least[0] = 0.0
    came_from, paths = [], [[]]
    for k in range(max_steps):
        # least_{k+1}(b) = min over a of least_k(a) + gamma^k error(a, b)
        through = least[:count, None] + gamma**k * errors
        came_from.append(through.argmin(axis=0))
        least = through.min(axis=0)
        path = [count]
        for previous in reversed(came_from):
            path.append(int(previous[path[-1]]))
        paths.append(path[:0:-1])
    return paths


# How to step


def fit_weights(
    network: Network,
    scheduler: DDIMSchedulerCustom,
    teacher_timesteps: list[int],
    path: Sequence[int],
    fitted: list[Block],
    held_out: list[Block],
    bar: tqdm,
) -> tuple[Schedule, list[torch.Tensor]]:
    """Return the schedule along a path, and the images that it makes of the held-out noises.

    Every step's weights are fitted when the student has come there. The last step remains DDIM's: free, it would
    average over what the student cannot know, and blur. A first step where alpha is 0 remains so too, as eps tells
    nothing there.
    """
    tau = [teacher_timesteps[state] for state in path]
    targets = [*path[1:], len(teacher_timesteps)]
    plain, free = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    plain.set_timesteps(timesteps=tau)
    free.register_to_config(prediction_type="epsilon")
    free.set_timesteps(timesteps=tau)

    states = {block: block.noise for block in [*fitted, *held_out]}
    history = {block: [] for block in states}
    weights = []
    for t, target in zip(tau, targets, strict=True):
        outputs = {block: _predict(network, block, x, t, bar) for block, x in states.items()}
        for block, x in states.items():
            history[block] = [plain.predict_epsilon(outputs[block], t, x), *history[block][:2]]
        if t == tau[-1] or scheduler.alphas_cumprod[t] == 0:
            weights.append(list(PLAIN))
            states = {block: plain.step(outputs[block], t, x).prev_sample for block, x in states.items()}
            continue

        def stepped(block: Block, w: Sequence[float], t=t, x=states) -> torch.Tensor:
            return free.step(weigh(w, history[block]), t, x[block]).prev_sample

        def residuals(w: np.ndarray, target=target, stepped=stepped) -> dict[int, np.ndarray]:
            return {
                block.start: (block.seen(stepped(block, w)).double() - block.states[target]).flatten().numpy()
                for block in fitted
            }

        found = gauss_newton(residuals, PLAIN[: min(len(weights) + 1, 3)])
        weights.append([round(float(w), 6) for w in (*found, 0, 0)][:3])
        states = {block: stepped(block, weights[-1]) for block in states}
    return Schedule(tau, weights), [states[block] for block in held_out]


def gauss_newton(
    residuals: Callable[[np.ndarray], dict[int, np.ndarray]], start: Sequence[float], max_iterations: int = 10
) -> np.ndarray:
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
        gram, size = (sum(parts) for parts in zip(*_in_order(products), strict=True))
        gram = gram / size
        return gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]

    start = np.array(start)
    w = start
    slopes, gradient, square = normal_equations(w)
    ridge, loss = RIDGE * np.trace(slopes) / len(w), square
    if ridge == 0:  # all is clipped, or the predictions are 0
        return start
    for _ in range(max_iterations):
        # (J^T J + ridge) step = -(J^T r + ridge (w - start))
        step = np.linalg.solve(slopes + ridge * np.eye(len(w)), -(gradient + ridge * (w - start)))
        tried = w + step
        equations = normal_equations(tried)
        tried_loss = equations[2] + ridge * ((tried - start) ** 2).sum()
        if not tried_loss < loss * (1 - 1e-6):
            break
        w, loss, (slopes, gradient, _) = tried, tried_loss, equations
    return w


# What it is worth


def figures(images: list[torch.Tensor], blocks: list[Block]) -> dict[str, Any]:
    """Return what the certificate tells of images, pixels in [0, 1], on the blocks of all processes.

    Returns:
        "rms": root mean square difference from the teacher's images. "std": standard deviation of an image's channels
        about their means, root mean square over images. "bands": its square by spatial frequency, up to 1/8, to 1/4
        and above 1/4 cycles per pixel.
    """
    parts = {}
    for block, x in zip(blocks, images, strict=True):
        pixels, wanted = ((y.float().cpu() / 2 + 0.5).clamp(0, 1) for y in (x, block.images))
        parts[block.start] = (
            (pixels - wanted).square().flatten(1).mean(1).double().numpy(),
            _band_energies(pixels).double().numpy(),
        )
    squares, bands = (np.concatenate(part).mean(0) for part in zip(*_in_order(parts), strict=True))
    return {
        "rms": round(float(np.sqrt(squares)), 5),
        "std": round(float(np.sqrt(bands.sum())), 5),
        "bands": [float(f"{energy:.4g}") for energy in bands],
    }


def error(found: dict[str, Any], teacher: dict[str, Any]) -> float:
    """Return how far images are from the teacher's, from the `figures` of both.

    It is their difference times the factor by which their amplitudes are off, the geometric mean over the bands. The
    difference alone prefers blurred images: the mean of what an image may be is nearer to it than another such image.
    """
    # |log(E / E_teacher)| / 2 is the logarithm of that factor in a band
    bands = [(a, b) for a, b in zip(found["bands"], teacher["bands"], strict=True) if b > 0]
    off = [abs(math.log(a / b)) / 2 if a > 0 else math.inf for a, b in bands]
    return found["rms"] * math.exp(sum(off) / len(off)) if found["rms"] > 0 else 0.0


def _band_energies(pixels: torch.Tensor) -> torch.Tensor:
    """The variance about their means of the channels of [B, C, H, W], mean over channels, by BANDS, [B, 3]."""
    height, width = pixels.shape[-2:]
    power = torch.fft.fft2(pixels, norm="forward").abs().square().mean(1)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    edges = (0.0, *BANDS, 1.0)  # the mean itself, at 0, is in none
    inside = [(frequency > low) & (frequency <= high) for low, high in zip(edges, edges[1:], strict=False)]
    return torch.stack([(power * band).sum((1, 2)) for band in inside], dim=1)


# Processes


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _in_order(own: dict[int, Any]) -> list[Any]:
    """The values of all processes' blocks in the order of their numbers, so that sums have the same last bits."""
    parts = [own]
    if _rank_and_world()[1] > 1:
        parts = [None] * _rank_and_world()[1]
        torch.distributed.all_gather_object(parts, own)
    every = {number: value for part in parts for number, value in part.items()}
    return [every[number] for number in sorted(every)]
