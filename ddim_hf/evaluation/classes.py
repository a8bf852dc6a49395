"""Control: whether samples show the classes that they are drawn of, and how near they come to each one's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import ImageSet, load_images
from ..data.cache import digest
from ..processes import gathered
from .features import FeatureExtractor, file_hash, load_torchscript
from .frechet import Statistics, frechet_distance

DIGITS = "digits"  # in a classifier's file's place


@dataclass(frozen=True)
class Classes:
    """The classes of a model, as samples are drawn of them.

    Args:
        names: of the classes, in the model's order.
        frequencies: of the classes among the samples, float64 [K], which sum to 1.
        protocol: what a figure says of them.
    """

    names: tuple[str, ...]
    frequencies: np.ndarray
    protocol: dict[str, str]

    def of(self, seeds: Sequence[int]) -> list[int]:
        """The classes of the images from these seeds, each a function of its seed alone.

        Any stretch of seeds has nearly the frequencies themselves, which single draws would miss by chance.
        """
        # frac(seed phi), Weyl's sequence of the golden ratio phi, in whole numbers: of the class in whose part it is
        ends = np.cumsum(self.frequencies)[:-1]
        return [int(np.searchsorted(ends, (seed * GOLDEN % 2**64) / 2**64, side="right")) for seed in seeds]


GOLDEN = 0x9E3779B97F4A7C15  # (phi - 1) 2^64


def reference_classes(names: Sequence[str], images: ImageSet | None) -> Classes:
    """Return a model's classes at the frequencies that a reference has; all alike where it has no labels (None).

    Raises:
        ValueError: the reference has labels that are none of the model's classes.
    """
    names = tuple(names)
    if images is None:
        return Classes(names, np.full(len(names), 1 / len(names)), {"classes": "all alike"})
    labels = images.labels_as(names, "the model's classes")
    counts = np.bincount(labels, minlength=len(names))
    protocol = {"classes": "as labelled", "labels_hash": digest(names, labels.tolist())}
    return Classes(names, counts / counts.sum(), protocol)


def class_statistics(names: Sequence[str], images: ImageSet, features: np.ndarray) -> list[Statistics]:
    """The statistics of a reference's features [N, D] by the model's classes."""
    labels = images.labels_as(names, "the model's classes")
    return [Statistics().update(features[labels == number]) for number in range(len(names))]


class ClassFigures:
    """What this process knows of its samples' classes.

    Args:
        classes: as samples are drawn.
        classifier: tells the class that a sample shows.
        statistics: of the reference's features by class, for the distance within classes.
    """

    def __init__(
        self, classes: Classes, classifier: "Classifier | None" = None, statistics: list[Statistics] | None = None
    ):
        self.classes, self.classifier, self.reference = classes, classifier, statistics
        self.drawn = np.zeros(len(classes.names), np.int64)
        self.shown = np.zeros(len(classes.names), np.int64)  # those that are taken for the class asked for
        self.statistics = [Statistics() for _ in classes.names]

    def add(self, seeds: Sequence[int], features: np.ndarray, taken: np.ndarray | None):
        """Add the images from these seeds: their features [N, D], and the classes that they are taken for, [N]."""
        drawn = np.array(self.classes.of(seeds))
        np.add.at(self.drawn, drawn, 1)
        if taken is not None:
            np.add.at(self.shown, drawn, taken == drawn)
        if self.reference is not None:
            for number in np.unique(drawn):
                self.statistics[number].update(features[drawn == number])

    def figures(self, extractor: FeatureExtractor) -> dict[str, Any]:
        """By metric the value over all classes, and as "by_class" [name, images, value] of each; over the images of
        all processes, each of which has to call it.

        Raises:
            ValueError: a class that has fewer than two images, for the distance within classes.
        """
        parts = gathered((self.drawn, self.shown, self.statistics))
        drawn, shown = (sum(part[place] for part in parts) for place in (0, 1))
        values: dict[str, Any] = {"by_class": {}}

        def add(metric: str, value: float, by_class: Sequence[float]):
            values[metric] = float(value)
            rows = zip(self.classes.names, drawn.tolist(), map(float, by_class), strict=True)
            values["by_class"][metric] = [list(row) for row, count in zip(rows, drawn, strict=True) if count]

        if self.classifier is not None:
            add("label_accuracy", shown.sum() / drawn.sum(), shown / np.maximum(drawn, 1))
        if self.reference is not None:
            within = []
            for number, name in enumerate(self.classes.names):
                whole = Statistics()
                for part in parts:
                    whole.merge(part[2][number])
                try:
                    within.append(frechet_distance(whole, self.reference[number]))
                except ValueError as error:
                    raise ValueError(f"class {name!r}: {error}; more num_images, or no by_class") from error
            add(extractor.metric_within_classes, np.mean(within), within)
        return values


# Which class an image shows


class Classifier:
    """A function from images, uint8 [N, C, H, W], to the numbers of the model's classes, int64 array [N].

    `name` is the file's name or "digits", `hash` a hash of what it is.
    """

    def __init__(self, name: str, hash: str, predict: Any):
        self.name, self.hash, self._predict = name, hash, predict

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> np.ndarray:
        return self._predict(images)


def load_classifier(file: str | Path, names: Sequence[str], device: torch.device) -> Classifier:
    """Load a TorchScript file, or for "digits" train scikit-learn's support vector machine on the held-out digits.

    Args:
        file: a TorchScript module from float images [N, C, H, W] with values in [0, 1], C and the size the model's
            own, to [N, K], of which the largest is the class: in the order of the model's `id2label`.
        names: the model's classes.

    Raises:
        ValueError, FileNotFoundError: the file is none, or it is for other classes.
    """
    if str(file) == DIGITS:
        return _digits_classifier(tuple(names))
    if not Path(file).is_file():
        raise FileNotFoundError(f"label_accuracy {str(file)!r}: no such file; allowed: a TorchScript file, or digits")
    network = load_torchscript(file, device)

    def predict(images: torch.Tensor) -> np.ndarray:
        scores = network(images.to(device).float() / 255)
        if tuple(scores.shape) != (len(images), len(names)):
            given = f"{Path(file).name} returns {tuple(scores.shape)} for {len(images)} images"
            raise ValueError(f"{given}; allowed: {(len(images), len(names))}, the model's classes")
        return scores.argmax(1).cpu().numpy()

    return Classifier(Path(file).name, file_hash(file), predict)


def _digits_classifier(names: tuple[str, ...]) -> Classifier:
    """Of the test split, which no model here is trained on, and the same images moved by a pixel each way.

    Of the 1,617 others it knows 95.7%.
    """
    from sklearn.svm import SVC

    images = load_images("digits", split="test", resolution=8, channels=1, labelled=True)
    if set(names) != set(images.label_names):
        raise ValueError(f"label_accuracy is digits, and the classes are {', '.join(names[:10])}; allowed: the digits")
    pixels = torch.nn.functional.pad(images[:].float() / 255, (1, 1, 1, 1))
    moved = torch.cat([pixels[..., y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    machine = SVC(C=10, gamma=0.25).fit(moved.flatten(1).numpy(), np.tile(images.labels_as(names), 9))

    def predict(images: torch.Tensor) -> np.ndarray:
        if tuple(images.shape[2:]) != (8, 8):
            raise ValueError(f"label_accuracy is digits, and images are of {tuple(images.shape[2:])}; allowed: (8, 8)")
        return machine.predict((images.float().mean(1) / 255).flatten(1).numpy())

    return Classifier(DIGITS, images.fingerprint, predict)
