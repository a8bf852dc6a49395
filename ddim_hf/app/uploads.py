"""What visitors upload: a file of any kind becomes pixels of the model's size, or one sentence."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..data.decoding import decode
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .limits import Limits


def read_upload(path: str | Path | None, pipe: DDIMCustomPipeline, limits: Limits) -> Image.Image:
    """The file's image as the network takes it: the centre square, in its size and channels. Raises ValueError."""
    if path is None:
        raise ValueError("there is no image yet: upload one, take one with the camera, or press an example")
    channels, height, width = pipe.state_shape
    if channels not in (1, 3) or height != width:
        raise ValueError("images cannot be uploaded for this model: its states are neither grey nor colour squares")
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:  # which names a folder of the server's
        raise ValueError("this upload is no longer kept; upload it again") from error
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = image.width * image.height
        if pixels <= limits.upload_megapixels * 1e6:
            return Image.fromarray(decode(encoded, channels, height).transpose(1, 2, 0).squeeze())
    except Exception as error:  # whatever a decoder meets in a file that it was not made for
        raise ValueError("this file cannot be read as an image; allowed: PNG, JPEG, WebP, GIF, BMP, TIFF") from error
    raise ValueError(f"the image has {pixels / 1e6:.0f} megapixels; allowed: up to {limits.upload_megapixels}")


def drawing() -> Image.Image:
    """An example to encode: a boat on the sea."""
    side = 256
    rows = np.linspace(0, 1, side)[:, None, None]
    sky = (1 - rows) * [80, 140, 220] + rows * [235, 225, 200]
    image = Image.fromarray(np.broadcast_to(sky, (side, side, 3)).astype(np.uint8))
    pen, unit = ImageDraw.Draw(image), side / 16
    shapes = [
        ("ellipse", (11, 2, 14, 5), "#ffe08a"),
        ("rectangle", (0, 11, 16, 16), "#1f5f8b"),
        ("polygon", (3, 10, 13, 10, 11, 13, 5, 13), "#7a2e1d"),
        ("polygon", (8, 3, 8, 9.6, 12, 9.6), "#fafafa"),
        ("polygon", (7.6, 4, 7.6, 9.6, 4.4, 9.6), "#d9483b"),
    ]
    for shape, corners, colour in shapes:
        getattr(pen, shape)([unit * corner for corner in corners], fill=colour)
    return image
