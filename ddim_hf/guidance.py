"""Classes, and guidance towards them.

A network with classes is given, beside x_t and t, the class of each image: one of K, or the null class, whose index is
K (as in DiT: Peebles and Xie 2022, arXiv:2212.09748) and which stands for an image of any class.

Guidance takes a prediction that leads to the class, and moves it away from one that does so less:

    eps = eps_away + g (eps_towards - eps_away).

eps_away is the same network's for the null class (classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598,
whose eq. 6 has w = g - 1), or a worse network's (autoguidance: Karras et al. 2024, arXiv:2406.02507). At given x_t and
t, x_0 and v are affine in eps, and the weights g and 1 - g sum to 1: so the formula is the same for each prediction
type. A scheduler clips x_0 afterwards.
"""

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel

# Its output for states [B, C, H, W], the timestep (one or [B]), and classes [B] or None; of the states' shape.
Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

SHOWN = 20  # names in a message


def number_of_classes(unet: UNet2DModel) -> int | None:
    """K, without the null class; None for a network without classes."""
    embedded = getattr(unet, "config", {}).get("num_class_embeds")
    return None if embedded is None else embedded - 1


def check_names(id2label: dict[int | str, str], unet: UNet2DModel) -> dict[int, str]:
    """Return the names by class, in order, with ints as keys (JSON has strings).

    Raises ValueError for names that are not those of the network's classes 0 to K - 1.
    """
    if not isinstance(id2label, dict):
        raise ValueError(f"id2label is a {type(id2label).__name__}; allowed: a dict of names by class, or None")
    classes = number_of_classes(unet)
    if classes is None:
        raise ValueError(f"id2label names {len(id2label)} classes, but the network has none; allowed: None")
    try:
        names = {int(key): str(name) for key, name in id2label.items()}
    except ValueError:
        names = {}
    if names.keys() != set(range(classes)):
        keys = ", ".join(map(repr, list(id2label)[:SHOWN]))
        raise ValueError(f"id2label names {keys}; allowed here: 0 to {classes - 1}, without the null class")
    return dict(sorted(names.items()))


def class_ids(class_labels: Any, count: int, id2label: dict[int, str]) -> torch.Tensor | None:
    """Return the classes of `count` images, int64 [count]; None where id2label is empty: without classes.

    Args:
        class_labels: a name of id2label, a number from 0 to K, or None, which is the null class K as well; one for all
            images, or a sequence or tensor with one for each. A string that is no name may be a number.

    Raises ValueError for another name, number or length, and for labels of a network without classes.
    """
    if not id2label:
        if class_labels is not None:
            raise ValueError("class_labels are given, but the network has no classes; allowed: None")
        return None
    labels = listed(class_labels)
    labels = [class_labels] * count if labels is None else labels
    if len(labels) != count:
        raise ValueError(f"class_labels has {len(labels)} entries; allowed: one for all images, or one each ({count})")
    return torch.tensor([_class_id(label, id2label) for label in labels], dtype=torch.int64)


def listed(class_labels: Any) -> list | None:
    """The entries of class_labels; None where it is one label for all images. ValueError for a set."""
    if isinstance(class_labels, set | frozenset):
        raise ValueError(f"class_labels is {class_labels!r}, a set, which has no order; allowed: a list")
    if hasattr(class_labels, "tolist"):
        class_labels = class_labels.tolist()
    several = isinstance(class_labels, Collection) and not isinstance(class_labels, str | bytes)
    return list(class_labels) if several else None


def _class_id(label: Any, id2label: dict[int, str]) -> int:
    null = len(id2label)
    if label is None:
        return null
    named = [number for number, name in id2label.items() if name == label]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise ValueError(f"class_labels has {label!r}, the name of classes {named}; allowed: their numbers")
    try:
        number = int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError):
        number = -1
    if isinstance(label, bool) or not 0 <= number <= null:
        shown = [name if name == str(key) else f"{name} ({key})" for key, name in list(id2label.items())[:SHOWN]]
        more = [f"{null - SHOWN} more"] if null > SHOWN else []
        every = f"{', '.join(shown + more)}, or {null} or None, the null class"
        raise ValueError(f"class_labels has {label!r}; allowed: {every}")
    return number


# What a batch is to show


@dataclass(frozen=True)
class Condition:
    """The classes of a batch's images, and how far their predictions are led there.

    Args:
        labels: M classes of each image, int64 [N, M]; None for a network without classes.
        shares: of an image's M predictions in their mixture, [N, M]; None where M is 1.
        null: the null class.
        scale: g.
        interval: the timesteps, both ends included, in which guidance is on; None is all of them.
        guide: predicts what to move away from, in the null class's place.
    """

    labels: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    null: int = 0
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    guide: Network | None = None

    def of(self, images: slice | Sequence[int]) -> "Condition":
        """Return the same for some of the images."""
        parts = {"labels": self.labels, "shares": self.shares}
        return replace(self, **{name: None if part is None else part[images] for name, part in parts.items()})

    def to(self, device: torch.device) -> "Condition":
        parts = {"labels": self.labels, "shares": self.shares}
        return replace(self, **{name: None if part is None else part.to(device) for name, part in parts.items()})

    def guides(self, timestep: float | torch.Tensor) -> bool:
        """Whether guidance is on: elsewhere the network's own prediction is all that is needed."""
        if self.scale == 1 or self.interval is None:
            return self.scale != 1
        if torch.is_tensor(timestep) and timestep.numel() != 1:
            raise ValueError(
                f"guidance_interval is given with {timestep.numel()} timesteps; allowed: one for all images"
            )
        return self.interval[0] <= float(timestep) <= self.interval[1]

    def check_interval_meets(self, timesteps: Sequence[float]):
        """Raise ValueError where guidance is on in none of a schedule's timesteps."""
        if self.scale != 1 and self.interval is not None and not any(map(self.guides, timesteps)):
            shown = ", ".join(f"{t:g}" for t in timesteps[:SHOWN]) + ", ..." * (len(timesteps) > SHOWN)
            low, high = self.interval
            raise ValueError(
                f"guidance_interval is ({low:g}, {high:g}), in which none of the timesteps {shown} lies; allowed: one "
                "that holds some"
            )

    @property
    def classes(self) -> list[int] | None:
        """The classes that have shares, in order; None for a network without classes."""
        if self.labels is None:
            return None
        occur = self.labels if self.shares is None else self.labels[self.shares > 0]
        return occur.unique().tolist()


def make_condition(
    class_labels: Any,
    count: int,
    id2label: dict[int, str],
    *,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guide: Network | None = None,
) -> Condition:
    """Return the condition of `count` images; id2label is empty for a network without classes.

    Args:
        class_labels: as for `class_ids`; or shares, floats [count, K + 1] with rows that sum to 1.

    Raises ValueError, in one line, for what has no meaning: see `DDIMCustomPipeline.__call__`.
    """
    number = isinstance(guidance_scale, Real) and not isinstance(guidance_scale, bool)
    if not (number and 0 <= guidance_scale < math.inf):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; allowed: numbers from 0; 1 is no guidance")
    unused = {"guidance_interval": guidance_interval, "guide": guide}
    unused = [name for name, value in unused.items() if value is not None]
    if guidance_scale == 1 and unused:
        raise ValueError(
            f"{unused[0]} is given, but guidance_scale is 1, which is no guidance; allowed: another scale"
        )
    if guidance_scale != 1 and class_labels is None and guide is None:
        only = "class_labels or a guide" if id2label else "a guide, as the network has no classes"
        raise ValueError(f"guidance_scale is {guidance_scale} without class_labels; allowed: 1, or with {only}")
    interval = None if guidance_interval is None else check_interval(guidance_interval)
    if id2label and torch.is_tensor(class_labels) and class_labels.is_floating_point():
        labels, shares = _largest_shares(class_labels, count, len(id2label) + 1)
    else:
        ids, shares = class_ids(class_labels, count, id2label), None
        labels = None if ids is None else ids[:, None]
    return Condition(labels, shares, len(id2label), float(guidance_scale), interval, guide)


def count_images(batch_size: int, class_labels: Any) -> int:
    """Return batch_size, or in place of its default, 1, as many images as there are labels."""
    labels = listed(class_labels)
    return len(labels) if labels and batch_size == 1 else batch_size


def check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """Return (t_low, t_high); ValueError for anything but two timesteps in this order."""
    try:
        low, high = map(float, () if isinstance(interval, str) else interval)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high < math.inf:
        raise ValueError(
            f"guidance_interval is {interval!r}; allowed: two timesteps (t_low, t_high), from 0, in order"
        )
    return low, high


def _largest_shares(shares: torch.Tensor, count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The classes [N, M] that have shares in an image, and the shares; M is the most of any image."""
    if shares.shape != (count, classes):
        raise ValueError(f"class_labels are shares of shape {tuple(shares.shape)}; allowed: {(count, classes)}")
    if not (shares >= 0).all() or not torch.allclose(shares.sum(1), torch.ones(()).to(shares), atol=1e-4):
        raise ValueError("class_labels are shares that are negative or do not sum to 1; allowed: those from 0 that do")
    largest, labels = shares.topk(int((shares > 0).sum(1).max()), dim=1)
    return labels, largest if labels.shape[1] > 1 else None


def shares_between(ids: torch.Tensor, num_images: int, classes: int) -> torch.Tensor:
    """Return the shares of the classes, [N, classes], along a strip of two ends, or row by row in a grid of four.

    They are linear along the strip and bilinear in the grid, where corners are top left, top right, bottom left and
    bottom right. A side has num_images.
    """
    corners = torch.nn.functional.one_hot(ids, classes).double()
    weights = torch.linspace(0, 1, num_images, dtype=torch.float64)
    if len(ids) == 4:
        left, right = (_between(corners[i], corners[i + 2], weights) for i in (0, 1))
        return torch.cat([_between(a, b, weights) for a, b in zip(left, right, strict=True)])
    return _between(*corners, weights)


def _between(start: torch.Tensor, end: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (1 - weights)[:, None] * start + weights[:, None] * end


# Predictions


def guided(
    network: Network,
    x: torch.Tensor,
    timestep: torch.Tensor,
    condition: Condition,
    t: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the network's prediction for states [B, C, H, W] as the condition would have it, in one pass or two.

    Args:
        t: `timestep` where its value is at hand, so that a device need not be waited for.
    """
    classes = [None] if condition.labels is None else list(condition.labels.unbind(1))
    if not condition.guides(timestep if t is None else t):
        return _mixture(_predictions(network, x, timestep, classes), condition.shares)
    if condition.guide is not None:
        towards, away = (
            _mixture(_predictions(each, x, timestep, classes), condition.shares) for each in (network, condition.guide)
        )
    else:  # both halves in one batch, the class first, as in DiT
        *of_classes, away = _predictions(network, x, timestep, [*classes, torch.full_like(classes[0], condition.null)])
        towards = _mixture(of_classes, condition.shares)
    # eps = eps_away + g (eps_towards - eps_away)
    return away + condition.scale * (towards - away)


def _predictions(
    network: Network, x: torch.Tensor, timestep: torch.Tensor, classes: list[torch.Tensor | None]
) -> Sequence[torch.Tensor]:
    """The network's prediction of each of the classes [B], all of them in one batch."""
    if len(classes) == 1:
        return [network(x, timestep, classes[0])]
    if torch.is_tensor(timestep) and timestep.ndim > 0:
        timestep = timestep.repeat(len(classes))
    return network(x.repeat(len(classes), 1, 1, 1), timestep, torch.cat(classes)).chunk(len(classes))


def _mixture(predictions: Sequence[torch.Tensor], shares: torch.Tensor | None) -> torch.Tensor:
    """The mean of M predictions, weighted by shares [B, M].

    It is that of the density prod_m p(x_t | c_m)^share_m, but for a constant (Liu et al. 2022, arXiv:2206.01714).
    """
    if shares is None:
        return predictions[0]
    weights = shares.to(predictions[0].dtype).unbind(1)
    return sum(weight.view(-1, 1, 1, 1) * each for weight, each in zip(weights, predictions, strict=True))


def check_guide(
    unet: UNet2DModel, scheduler: SchedulerMixin, guide: UNet2DModel, guides_scheduler: SchedulerMixin | None
):
    """Raise ValueError for a guide whose predictions are not of the same states, timesteps and classes as unet's.

    Of a guide without a pipeline, guides_scheduler None, it is taken that it was trained on the scheduler's betas.
    """
    shapes = [(each.config.in_channels, each.config.sample_size) for each in (unet, guide)]
    # One number is height and width
    pairs = [(channels, [size] * 2 if isinstance(size, int) else list(size or ())) for channels, size in shapes]
    if pairs[0] != pairs[1]:
        shown = ["{} channels of size {}".format(*shape) for shape in shapes]
        raise ValueError(f"the guide takes states of {shown[1]}; allowed: those of the network, {shown[0]}")
    classes = [number_of_classes(each) for each in (unet, guide)]
    if classes[1] not in (None, classes[0]):
        allowed = "none" if classes[0] is None else f"{classes[0]}, as the network has, or none"
        raise ValueError(f"the guide has {classes[1]} classes; allowed: {allowed}")
    if guides_scheduler is None:
        return
    kinds = [each.config.get("prediction_type", "epsilon") for each in (scheduler, guides_scheduler)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"the guide predicts {kinds[1]!r}; allowed: what the network predicts, {kinds[0]!r}")
    alphas = [each.alphas_cumprod.cpu().double() for each in (scheduler, guides_scheduler)]
    if len(alphas[0]) != len(alphas[1]):
        raise ValueError(f"the guide has {len(alphas[1])} timesteps; allowed: {len(alphas[0])}, as the network has")
    if not torch.allclose(*alphas, atol=1e-5):
        raise ValueError("the guide's betas are others than the network's; allowed: the same")
