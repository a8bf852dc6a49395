"""What one visitor may ask for: all limits of the page, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a request, and of what the server keeps.

    Args:
        images: of a request.
        passes: of an image through the network in a request: two in a step with guidance, up to `iterations` in a step
            of exact encoding.
        at_once: images through the network at once; a request stops between two of these.
        iterations: of a step of exact encoding.
        waiting: requests that wait for their turn; the next one is told to come back.
        upload_megabytes: of a file.
        upload_megapixels: of an image.
        models: that stay loaded.
        visitors: whose last results, a megabyte or so each, Gradio keeps.
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

    def check(self, images: int, steps: int, passes: int):
        """Raise ValueError for more images, or more passes, so many in each of the steps, than are allowed."""
        if images > self.images:
            raise ValueError(f"{images} images; allowed: up to {self.images}")
        if steps * passes > self.passes:
            raise ValueError(f"{steps} steps are too many for this; allowed: up to {self.passes // passes} steps")

    def check_images(self, images: int, passes: int):
        """Raise ValueError for more images, of so many passes each, than are allowed: where steps cannot be chosen."""
        most = min(self.images, self.passes // passes)
        if images > most:
            raise ValueError(f"{images} images are too many for this; allowed: up to {most}")

    def in_words(self) -> str:
        """One line for visitors."""
        return (
            f"One request: up to {self.images} images, {self.passes} images × steps, files of "
            f"{self.upload_megabytes} MB. Requests take turns; up to {self.waiting} wait."
        )
