"""Between images and the network's states: pixels in [0, 1] or 0..255 are states in [-1, 1]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont, ImageOps

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
ARRAYS = ("np", "numpy", "np.array", None)  # what diffusers' own pipelines take for "np"
LAST_LATIN, LONGEST_LABEL = 0x24F, 24
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels


def check_output_type(output_type: str | None, channels: int):
    """Raise ValueError for a type that `states_to_images` does not know, or not for so many channels."""
    if output_type not in OUTPUT_TYPES + ARRAYS:
        raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(map(repr, OUTPUT_TYPES))}")
    if output_type == "pil" and channels not in MODES:
        raise ValueError(f"output_type is 'pil'; allowed with {channels} channels: 'np', 'pt', 'latent'")


def square_size(state_shape: Sequence[int]) -> dict[str, int]:
    """How images become states of this shape: `resolution` and `channels`, as `load_images` takes them.

    Raises ValueError for states that are no squares, as images are read as squares alone.
    """
    channels, height, width = state_shape
    if height != width:
        raise ValueError(
            f"the network's images have {height} x {width} pixels; allowed: squares, as images are read so"
        )
    return {"resolution": height, "channels": channels}


def states_to_images(
    x: torch.Tensor, output_type: str | None, numbers: Sequence[int] | None = None
) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Turn states [N, C, H, W] into "pil", "np" ([N, H, W, C] in [0, 1]), "pt" ([N, C, H, W]) or "latent" (as is).

    None, "numpy" and "np.array" are "np". Raises ValueError for another type, and as `states_to_pixels` for "pil".
    """
    check_output_type(output_type, channels=x.shape[1])
    if output_type == "latent":
        return x
    if output_type == "pil":
        return pixels_to_pil(states_to_pixels(x, numbers))
    images = (x / 2 + 0.5).clamp_(0, 1)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()


def states_to_pixels(x: torch.Tensor, numbers: Sequence[int] | None = None) -> torch.Tensor:
    """Turn states [N, C, H, W] into pixels 0..255, uint8 [N, C, H, W] on the CPU.

    Raises ValueError for images that are NaN or infinite, with their `numbers`, or else their places: they would be
    black, as if the network had made them so.
    """
    if bad := _not_finite(x, range(len(x)) if numbers is None else numbers):
        raise ValueError(
            f"not finite (NaN or infinite), and so no pictures, are the images {bad[:5]}, counted from 0; "
            "output_type 'pt' gives them as they are"
        )
    return (x.float() / 2).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu()


def is_finite(x: torch.Tensor) -> np.ndarray:
    """For each of the images [N, ...] whether it has neither NaN nor infinities."""
    return ~(~x.isfinite()).flatten(1).any(1).cpu().numpy()


def refuse_not_finite(x: torch.Tensor, seeds: Sequence[int]):
    """Raise ValueError, with their seeds, for images [N, ...] that are NaN or infinite: as pixels they look black."""
    if bad := _not_finite(x, seeds):
        raise ValueError(f"the network's images are not finite (NaN or infinite), from the seeds {bad[:5]}")


def _not_finite(x: torch.Tensor, numbers: Sequence[int]) -> list[int]:
    return sorted({number for number, finite in zip(numbers, is_finite(x), strict=True) if not finite})


def pixels_to_states(pixels: torch.Tensor) -> torch.Tensor:
    """Turn pixels 0..255, [N, C, H, W], into float32 states in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def pixels_to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """Turn pixels, uint8 [N, C, H, W], into images of mode L, LA, RGB or RGBA for 1 to 4 channels."""
    mode = MODES[pixels.shape[1]]
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.frombytes(mode, row.shape[1::-1], row.tobytes()) for row in rows]


def images_to_states(
    images: Any, shape: tuple[int, int | None, int | None], input_type: str = "image"
) -> torch.Tensor:
    """Turn images into float32 states [N, C, H, W] in [-1, 1].

    Args:
        images: PIL image or list of them, array [N, H, W, C] or [H, W, C], tensor [N, C, H, W] or [C, H, W]; uint8 in
            0..255 or floats in [0, 1].
        shape: (C, H, W), which the images must have, with None for what may be anything; PIL images are converted to
            the mode of C channels, transparent parts white where that has none.
        input_type: "image", or "latent" to take a tensor as the states themselves.

    Raises:
        ValueError: another type, size or range.
    """
    if input_type not in ("image", "latent"):
        raise ValueError(f"input_type is {input_type!r}; allowed: 'image', 'latent'")
    states = _to_tensor(images, channels=shape[0])
    fits = states.ndim == 4 and all(want in (None, size) for want, size in zip(shape, states.shape[1:], strict=True))
    if not fits or states.numel() == 0:
        raise ValueError(
            f"images as a tensor have shape {tuple(states.shape)}; "
            f"allowed: (N, {', '.join('any' if want is None else str(want) for want in shape)})"
        )
    if input_type == "latent":
        if not states.is_floating_point():
            raise ValueError(f"latents are {states.dtype}; allowed: floats, as a tensor")
        return states.float()
    if states.dtype == torch.uint8:
        return pixels_to_states(states)
    low, high = states.min().item(), states.max().item()
    if not (0 <= low and high <= 1):
        raise ValueError(
            f"images have values from {low:.3g} to {high:.3g}; allowed: floats in [0, 1] or uint8, "
            "or states of any range with input_type='latent'"
        )
    return states.float() * 2 - 1


def _to_tensor(images: Any, channels: int) -> torch.Tensor:
    """Images of any accepted type as one tensor [N, C, H, W], values as they are."""
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and images and all(isinstance(image, Image.Image) for image in images):
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise ValueError(f"images have sizes {sorted(sizes)}; allowed: one size")
        wide = {image.mode for image in images if image.mode[0] in "IF"}
        if wide:  # Pillow's conversion would clip them at 255
            raise ValueError(f"images have mode {', '.join(sorted(wide))}; allowed: modes of 8 bits a channel")
        if channels not in MODES:
            raise ValueError(f"images are PIL images; allowed with {channels} channels: arrays and tensors")
        mode = MODES[channels]
        opaque = [image if "A" in mode else on_white(image) for image in images]
        pixels = np.stack([np.asarray(image.convert(mode)) for image in opaque])
        return torch.from_numpy(pixels.reshape(*pixels.shape[:3], channels)).permute(0, 3, 1, 2)
    if isinstance(images, np.ndarray):
        if not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
            raise ValueError(f"images are an array of {images.dtype}; allowed: floats in [0, 1] or uint8")
        pixels = np.ascontiguousarray(images if images.ndim == 4 else images[None])
        return torch.from_numpy(pixels).movedim(-1, 1)
    if isinstance(images, torch.Tensor):
        return images if images.ndim == 4 else images[None]
    raise ValueError(f"images is {type(images).__name__}; allowed: PIL image(s), numpy array or torch tensor")


def on_white(image: Image.Image) -> Image.Image:
    """An image that has transparent parts, on white; another as it is."""
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def image_grid(images: Sequence[Image.Image], columns: int | None = None, side: int = 48) -> Image.Image:
    """Arrange images for the eye: row by row with a border around each, those under `side` pixels enlarged to it."""
    columns = columns or max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    scale = max(1, -(-side // min(images[0].size)))
    size = images[0].width * scale, images[0].height * scale
    shown = [ImageOps.expand(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), 2) for image in images]
    blank = Image.new("RGB", shown[0].size)
    return make_image_grid(shown + [blank] * (rows * columns - len(shown)), rows=rows, cols=columns)


def class_grid(images: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
    """A grid of images of which number k shows class k % K of K: a row a class, its name on the left, or the row's
    number where the font has not all its letters.

    As `image_grid` has it where there are not two classes, or not two images of each.
    """
    classes = len(names)
    if classes < 2 or len(images) < 2 * classes:
        return image_grid(images)
    columns, blank = -(-len(images) // classes), Image.new("RGB", images[0].size)
    rows = [[*images[number::classes], blank][:columns] for number in range(classes)]
    labels = [row_label(name, number) for number, name in enumerate(names)]
    return label_rows(image_grid([image for row in rows for image in row], columns), labels)


def row_label(name: str, number: int) -> str:
    """A name in one line of few letters; the number where Pillow's own font, which is for Latin, would draw boxes."""
    text = " ".join(name.split())
    if not text or max(map(ord, text)) > LAST_LATIN:
        return str(number)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 3] + "..."


def label_rows(grid: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Put a text on the left of each row of a grid; the rows are of one height."""
    font, row = ImageFont.load_default(), grid.height / len(labels)
    margin = 8 + round(max(font.getlength(label) for label in labels))
    labelled = Image.new("RGB", (margin + grid.width, grid.height))
    labelled.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(labelled)
    for number, label in enumerate(labels):
        draw.text((4, (number + 0.5) * row - 6), label, fill="white", font=font)
    return labelled
