"""Images in: any source of images as a set of uint8 tensors."""

from .image_set import IMAGE_SUFFIXES, ImageSet, default_cache, load_images

__all__ = ["IMAGE_SUFFIXES", "ImageSet", "default_cache", "load_images"]
