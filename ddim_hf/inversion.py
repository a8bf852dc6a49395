"""From images to latents: DDIM's steps run backwards (paper, section 4.3 and eq. 13), exactly if so asked."""

from collections.abc import Callable

import torch
from diffusers.utils import logging

from .scheduling_ddim_custom import DDIMSchedulerCustom

logger = logging.get_logger(__name__)

PATIENCE = 12  # plain steps in a row in which the residual may rise


def encode(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: DDIMSchedulerCustom,
    x: torch.Tensor,
    exact: bool,
    tolerance: float | None,
    max_iterations: int,
    on_step: Callable[[], object],
) -> tuple[list[torch.Tensor], float]:
    """Return the states from the data x_0 to x_T along the scheduler's timesteps, and the worst residual.

    Args:
        network: its output for (x, timestep), of x's shape, of the scheduler's prediction_type.
        scheduler: with its timesteps set.
        x: x_0, [N, C, H, W].
        exact: solve for the x at tau_i whose own prediction leads back to x at tau_{i-1}. Otherwise the prediction at
            tau_{i-1} stands in for it, and the round trip has an error that falls with the number of steps.
        tolerance: a step has converged when an iteration changes no value by more; None takes what x's dtype can
            resolve: 1e-5, float16's 0.004 or bfloat16's 0.03.
        max_iterations: evaluations of the network per exact step; a step that needs more warns and keeps its best.
        on_step: called after each step.
    """

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return network(x, torch.tensor(t, device=x.device))

    if tolerance is None:
        # States reach 4, where neighbouring numbers are 4 eps apart and iterations go to and fro between them.
        tolerance = max(1e-5, 4 * torch.finfo(x.dtype).eps)
    ascending = scheduler.timesteps.tolist()[::-1]
    states, worst = [x], 0.0
    for i, t in enumerate(ascending):
        previous, known = states[-1], ascending[max(i - 1, 0)]  # the data has no timestep of its own and takes tau_1
        epsilon = scheduler.predict_epsilon(predict(previous, known), known, previous)
        x = scheduler.invert_step(epsilon, t, previous, prediction_type="epsilon")
        if exact:
            x, residual = solve_fixed_point(
                lambda x, t=t, previous=previous: _backwards(scheduler, predict(x, t), t, x, previous),
                x,
                tolerance,
                max_iterations,
            )
            worst = max(worst, residual)
            if residual > tolerance:
                logger.warning(
                    f"exact inversion: step {i + 1} of {len(ascending)} (timestep {t}) did not converge in "
                    f"{max_iterations} iterations; residual {residual:.2g}, tolerance {tolerance:g}"
                )
        states.append(x)
        on_step()
    return states, worst


def _backwards(scheduler, output, t, x, previous) -> torch.Tensor:
    """The right-hand side of the equation for x at tau_i, of which `output` is the prediction."""
    kind = scheduler.config.prediction_type
    if kind == "sample":  # of which the step from tau_1 to the data keeps nothing but x_0
        output, kind = scheduler.predict_epsilon(output, t, x), "epsilon"
    return scheduler.invert_step(output, t, previous, prediction_type=kind)


def solve_fixed_point(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tolerance: float, max_iterations: int
) -> tuple[torch.Tensor, float]:
    """Return the best x found for x = function(x), image by image, and the worst residual max |function(x) - x|.

    Fixed-point iteration, sped up by a secant step through the last two iterates (Anderson 1965, of depth 1) while the
    residual falls. Where it rises, up to PATIENCE plain steps are taken: they pass the local minima of the residual,
    which a longer memory settles in.
    """
    best, best_residual = x, x.new_full((len(x),), torch.inf, dtype=torch.float32)
    last_value, last_change, last_residual = x, torch.zeros_like(x), torch.zeros_like(best_residual)
    plain_steps = torch.zeros_like(best_residual)  # in a row
    for _ in range(max_iterations):
        value = function(x)
        change = value - x
        residual = change.abs().flatten(1).amax(1).float()

        # The point on the line through the last two iterates at which the change is smallest, as it is on that line.
        difference = (change - last_change).flatten(1).float()
        weight = (change.flatten(1) * difference).sum(1) / difference.square().sum(1).clamp_min(1e-30)
        plain = (residual > last_residual) & (plain_steps < PATIENCE)
        plain_steps = torch.where(plain, plain_steps + 1, 0)
        weight = torch.where(plain, 0, weight)
        following = value - _per_image(weight.to(x.dtype)) * (value - last_value)

        # Near the solution the next iterate is closer still, and has been paid for; elsewhere it may be anything.
        better = residual < best_residual
        candidate = torch.where(_per_image(residual <= tolerance), following, x)
        best = torch.where(_per_image(better), candidate, best)
        best_residual = torch.where(better, residual, best_residual)
        if best_residual.max() <= tolerance:
            break
        x, last_value, last_change, last_residual = following, value, change, residual
    return best, best_residual.max().item()


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
