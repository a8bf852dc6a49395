"""Images as clean-fid's own reader of folders gives them, from whatever our reader opens."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import ImageSet, default_cache, load_images
from ..data.cache import THREADS, fingerprint
from ..data.messages import reason
from ..data.sources import Source, open_source

DIGITS_RESOLUTION = 8


class OriginalImages:
    """A read-only sequence of images, each at its own size and in colour, by Pillow's own conversion.

    It has the name, the split and the fingerprint of an `ImageSet`; none of its pixels are kept.
    """

    def __init__(self, name: str, split: str, fingerprint: str, source: Source):
        self.name, self.split, self.fingerprint = name, split, fingerprint
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The images of these numbers, uint8 [3, H, W] each."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._decode, numbers, self._source.read(numbers)))

    def label(self, number: int) -> str:
        """What a message calls this image."""
        return self._source.label(number)

    def _decode(self, number: int, encoded: bytes | None) -> torch.Tensor:
        try:
            if encoded is None:
                raise ValueError("no image there")
            pixels = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
        except Exception as error:  # Pillow's decoders raise nearly anything on torn data
            raise ValueError(f"{self.label(number)} cannot be read ({reason(error)})") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)


def load_originals(
    name: str,
    *,
    split: str | None = None,
    cache_dir: str | Path | None = None,
    refresh_cache: bool = False,
    whole: bool = False,
    **data: str | None,
) -> OriginalImages | ImageSet:
    """Open what `load_images` opens, without its resizing; the arguments are those of `open_source`."""
    if name == "digits":
        return load_images(name, split=split, resolution=DIGITS_RESOLUTION, channels=3, **data)
    source, split = open_source(name, split, refresh_cache=refresh_cache, whole=whole, **data)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
    key = fingerprint(source, channels=3, resolution=0, cache=cache, refresh=refresh_cache)
    return OriginalImages(name, split, key, source)
