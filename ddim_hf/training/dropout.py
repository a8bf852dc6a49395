"""Dropout whose masks are drawn fast on a CPU, for compiled passes."""

from functools import partial

import torch


@torch.library.custom_op(
    "ddim_hf::draw_kept", mutates_args=(), device_types="cpu", tags=(torch.Tag.nondeterministic_seeded,)
)
def draw_kept(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return, in x's shape and layout, whether each element of x is kept: with probability 1 - p, in steps of 2^-16.

    Compiled code needs x itself: of two calls that look alike it may make one, and both would share a mask.
    Four elements share 64 bits of torch's generator, where torch's own dropout takes a draw of it for each.
    """
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    kept = torch.empty_like(x, dtype=torch.bool)  # without gaps, in any layout
    torch.ge(draws, round(p * 2**16) - 2**15, out=kept.as_strided(draws.shape, (1,)))  # 16 bits are -2^15 to 2^15 - 1
    return kept


@draw_kept.register_fake
def _(x: torch.Tensor, p: float) -> torch.Tensor:
    return torch.empty_like(x, dtype=torch.bool)


def dropout(module: torch.nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    """Return x with each element 0 with the module's probability p, else divided by 1 - p; x itself in evaluation."""
    if not module.training or not 0 < module.p < 1:
        return type(module).forward(module, x)
    return torch.where(draw_kept(x, module.p), x / (1 - module.p), 0)


def draw_dropout_fast(network: torch.nn.Module):
    """Let the network's dropouts draw their masks by `draw_kept`."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.forward = partial(dropout, module)
