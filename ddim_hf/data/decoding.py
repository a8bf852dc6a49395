"""Encoded images as pixels: any file format and mode that Pillow reads -> uint8 [C, H, W] of one size."""

import io
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from ..images import on_white

DECODING = 3  # goes up where `decode` makes other pixels of an image, so that none of before are taken from a cache
GREY_MODES = {"1", "L", "LA", "I", "F"}
IMAGE_SUFFIXES = tuple(
    ".png .jpg .jpeg .jpe .jfif .mpo .webp .apng .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # of a TIFF


def decode(encoded: bytes | None, channels: int, resolution: int) -> np.ndarray:
    """An encoded image as uint8 [channels, resolution, resolution], upright; raises whatever is wrong with it."""
    if encoded is None:
        raise ValueError("no image there")
    with Image.open(io.BytesIO(encoded)) as image:
        return to_pixels(upright(image), channels, resolution)


def in_colour(encoded: bytes) -> bool:
    """Whether its mode can hold colours."""
    with suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
        return not is_grey(image.mode)
    return False


def is_grey(mode: str) -> bool:
    """Whether a mode of Pillow's holds greys alone."""
    return mode in GREY_MODES or mode.startswith("I;")


def holds_several(encoded: bytes) -> bool:
    """Whether `is_several` of an encoded image."""
    with suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
        return is_several(image)
    return False


def is_several(image: Image.Image) -> bool:
    """Whether an opened image is an animation, or has several pages, of which the first is taken."""
    return image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: a photograph and its preview


def upright(image: Image.Image) -> Image.Image:
    """An opened image, read and turned as its EXIF data say."""
    image.load()
    with suppress(Exception):  # torn EXIF data beside sound pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_pixels(image: Image.Image, channels: int, resolution: int) -> np.ndarray:
    """An image of any mode and size as uint8 [channels, resolution, resolution]."""
    image = _fit(in_channels(image, channels), resolution)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode as L, for one channel, or RGB."""
    return _convert(on_white(_eight_bit(image)), channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Images of 16 bits (I;16, or I), and of floats (F), as L, or LA: Pillow's own conversion clips them at 255."""
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 1 if values.max() <= 1 else 255
    elif image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        # Nothing says what is white in whole numbers of 32 bits, which TIFF alone has; as for floats, 255 may be.
        top = 255 if image.mode == "I" and image.format == "TIFF" and values.max() <= 255 else 65535
    else:
        return image
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns those of 8 bits alone
        values = top - values
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # NaN too
        raise ValueError(f"values of mode {image.mode} from {low:g} to {high:g}, where 0 to {top} is allowed")
    grey = Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """As L or RGB; what is neither grey nor RGB becomes grey by way of RGB, as its colours are defined there."""
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _fit(image: Image.Image, resolution: int) -> Image.Image:
    """The centre square, resized; cut at whole pixels, so that what already has the resolution passes unchanged."""
    side = min(image.size)
    if image.width != image.height:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return image
