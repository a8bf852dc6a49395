"""Which timesteps few steps take: the path along which single DDIM steps from the teacher's states err least."""

import numpy as np

from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .blocks import Block, in_order


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
    x0_x0, x0_eps, eps_eps, x0_x, eps_x, x_x, count = map(sum, zip(*in_order(products), strict=True))
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
