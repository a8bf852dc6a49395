"""Images in: any source of images as a set of uint8 tensors, or as they are encoded."""

from .cache import MAX_CACHED_BYTES, default_cache
from .decoding import IMAGE_SUFFIXES
from .description import ImageDescription, describe_images, describe_source
from .image_set import ImageSet, load_images
from .sources import open_source

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_CACHED_BYTES",
    "ImageDescription",
    "ImageSet",
    "default_cache",
    "describe_images",
    "describe_source",
    "load_images",
    "open_source",
]
