"""What a schedule is worth, on noises that it was not fitted to, beside plain steps and the teacher."""

import math
from typing import Any

import numpy as np
import torch

from .blocks import Block, in_order

BANDS = (1 / 8, 1 / 4)  # cycles per pixel, between them the bands

Certificate = dict[str, dict[str, Any]]


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
    squares, bands = (np.concatenate(part).mean(0) for part in zip(*in_order(parts), strict=True))
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
    if not math.isfinite(found["rms"]):
        return math.inf
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


def is_better(steps: int, certificate: Certificate) -> bool:
    """Whether the schedule's images have less `error` than those of as many plain steps."""
    teacher = _of_teacher(certificate)
    return error(certificate[f"calibrated {steps}"], teacher) < error(certificate[f"plain {steps}"], teacher)


def _of_teacher(certificate: Certificate) -> dict[str, Any]:
    return next(figures for name, figures in certificate.items() if name.startswith("teacher"))


def table(certificates: dict[int, Certificate]) -> str:
    """Return certificates as a text: for each S the differences from the teacher, and what became of it."""
    head = ["S", "plain", "calibrated", "plain 2 S", "plain 5 S", "contrast: plain", "calibrated", "teacher"]
    rows = [head]
    for steps, certificate in certificates.items():
        ours, plain = certificate[f"calibrated {steps}"], certificate[f"plain {steps}"]
        teacher = _of_teacher(certificate)
        more = [certificate.get(f"plain {times * steps}", {}).get("rms") for times in (2, 5)]
        values = [plain["rms"], ours["rms"], *more, plain["std"], ours["std"], teacher["std"]]
        rows.append([str(steps), *("" if value is None else f"{value:.4f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(0, "root mean square difference from the teacher's images, pixels in [0, 1]:")
    dropped = [str(steps) for steps, certificate in certificates.items() if not is_better(steps, certificate)]
    if dropped:
        lines.append(f"not kept, as plain steps are as good: S = {', '.join(dropped)}")
    return "\n".join(lines)
