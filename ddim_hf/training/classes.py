"""The classes of a run: which labels can be trained on, and how a network comes to know them."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import UNet2DModel

from ..data import ImageSet
from ..guidance import number_of_classes

# Adam goes about one learning rate a step, and an embedding that starts at zero has a long way to go. Fine-tuned on
# the digits for 200 steps, 14% of samples showed their class, hardly more than by chance; at 20 times the rate 88%.
FROM_ZERO = 20
SHOWN = 10  # names of classes in a line


def check_labels(images: ImageSet):
    """Raise ValueError, in one line, for labels that no class can be learnt from."""
    shown = [images.label_names[number] for number in np.unique(images.labels)]
    check_classes(images.name, shown, len(images.label_names), len(images))


def check_classes(name: str, shown: Sequence[str], count: int, num_images: int):
    """Raise ValueError for a set whose images show these of so many classes, if no class can be learnt from it."""
    if len(shown) < 2:
        raise ValueError(f"all images of {name!r} have the label {shown[0]!r}; allowed with class_conditional: two")
    if count >= num_images:
        raise ValueError(
            f"{name!r} has {count} labels for {num_images} images; allowed with class_conditional: fewer labels than "
            "images (--label_column)"
        )


def classes_without_images(images: ImageSet) -> list[str]:
    """A line that names the classes which no image shows; none where all are shown."""
    names = images.label_names
    lacking = [names[number] for number in range(len(names)) if number not in images.labels]
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    said = f"{len(lacking)} of {len(names)} classes have no images and are not learnt: {', '.join(lacking[:SHOWN])}"
    return [f"warning: {said}{more}"] if lacking else []


def with_classes(
    unet: UNet2DModel, names: Sequence[str], theirs: Sequence[str] | None, seed: int | None = None
) -> tuple[UNet2DModel, list[str]]:
    """Return the network with a class for each name, then the null class, and in lines what changes by that.

    Where a trained network has no classes their embedding starts at zero: it computes what it did, whatever the class.
    A new one's is drawn from the standard normal distribution, as torch does it: from zero it learns the classes many
    times slower. A network that has classes keeps the embedding of those that are among the names, and of its null
    class, as which new ones start.

    Args:
        theirs: the names of the classes that the network has; None takes as many to be the same ones.
        seed: of a new network's embedding; None where the network is trained already.

    Raises:
        ValueError: it has another number of classes, without names.
    """
    had = unet.config.num_class_embeds
    theirs = list(names) if theirs is None and had == len(names) + 1 else theirs
    if had is not None and theirs is None:
        raise ValueError(
            f"the network has num_class_embeds {had} and no names for them; allowed with {len(names)} labels: "
            f"{len(names) + 1}"
        )
    if had is not None and list(theirs) == list(names):
        return unet, []
    weights = unet.state_dict()
    with torch.device(unet.device):  # that of descriptions has no weights
        network = UNet2DModel.from_config(unet.config, num_class_embeds=len(names) + 1)
        embedding = torch.zeros_like(network.class_embedding.weight)
    said = []
    if had is None and seed is not None:
        embedding.normal_(generator=torch.Generator().manual_seed(seed))
    elif had is not None:
        before = weights["class_embedding.weight"]
        places = {name: number for number, name in enumerate(theirs)}
        embedding[:] = before[[places.get(name, -1) for name in (*names, None)]]
        kept = [name for name in names if name in places]
        said = [
            f"note: of the pretrained model's {len(theirs)} classes {len(kept)} are kept by name; "
            f"{len(names) - len(kept)} new ones start as its null class"
        ]
    network.load_state_dict(weights | {"class_embedding.weight": embedding})
    return network.train(unet.training), said


def null_labels(unet: UNet2DModel, count: int) -> torch.Tensor | None:
    """The null class for so many images, int64 [count] on the network's device; None for a network without classes."""
    null = number_of_classes(unet)
    return None if null is None else torch.full((count,), null, dtype=torch.int64, device=unet.device)
