"""What one visitor may ask for: all limits of the page, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a request, and of what the server keeps.

    Args:
        images: of a request.
        passes: of images through the network in a request: images times steps, and in exact encoding times iterations.
        at_once: images through the network at once; a request stops between two of these.
        iterations: of a step of exact encoding.
        waiting: requests that wait for their turn; the next one is told to come back.
        upload_megabytes: of a file.
        upload_megapixels: of an image.
        models: that stay loaded.
        visitors: whose last results, a megabyte or so each, Gradio keeps; who comes back later begins anew.
    """

    images: int = 64
    passes: int = 3200
    at_once: int = 16
    iterations: int = 50
    waiting: int = 20
    upload_megabytes: int = 10
    upload_megapixels: int = 40
    models: int = 2
    visitors: int = 50

    def check(self, images: int, steps: int, iterations: int = 1):
        """Raise ValueError for a request of more images, or passes, than are allowed."""
        if images > self.images:
            raise ValueError(f"{images} images; allowed: up to {self.images}")
        if images * steps * iterations > self.passes:
            most = self.passes // (images * iterations)
            raise ValueError(f"{steps} steps are too many for this; allowed: up to {most} steps")

    def in_words(self) -> str:
        """One line for visitors."""
        return (
            f"One request: up to {self.images} images, {self.passes} images × steps, files of "
            f"{self.upload_megabytes} MB. Requests take turns; up to {self.waiting} wait."
        )
