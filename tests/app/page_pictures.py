"""The pictures of a page, read back from its HTML."""

import base64
import io
import re

import numpy as np
from PIL import Image


def files(html: str, kind: str = "png") -> list[Image.Image]:
    """The images that a piece of HTML holds, in order."""
    found = re.findall(rf"data:image/{kind};base64,([\w+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])
