"""What a training step sees, as a pure function of (seed, step, position in the global batch)."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import torch

from ..data import ImageSet

COPIED_BYTES = 2**26  # of a set that moves to the device, at once
AHEAD = 3  # batches read in advance

ORDER, DRAWS, DROPOUT, VALIDATION, LABELS = range(5)  # independent streams of random numbers


def seed_for(*key: int) -> int:
    """Return a 63-bit seed that is a hash of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class BatchOrder:
    """Which images each step takes: a new permutation of all images per epoch, cut into steps without remainder.

    Args:
        length: number of images.
        batch_size: images of a step, over all processes.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch_size: int, seed: int):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Return the [batch_size] indices of a step; the cost does not grow with the step."""
        # The images of all steps stand in one row, epoch after epoch; a step is a stretch of it, perhaps over the
        # end of an epoch. Each epoch has a seed of its own, so that any step is found without those before it.
        position = step * self.batch_size + np.arange(self.batch_size)
        epochs, places = position // self.length, position % self.length
        result = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(seed_for(self.seed, ORDER, int(epoch)))
                self._epoch, self._permutation = epoch, torch.randperm(self.length, generator=generator).numpy()
            here = epochs == epoch
            result[here] = self._permutation[places[here]]
        return result


class BatchReader:
    """A process's share of each step's images and labels, read ahead by a thread, or taken from a copy on the device.

    Args:
        images: the data set.
        order: which images a step takes.
        share: this process's slice of the global batch.
        device: where the uint8 images are put.
        stop: the steps that will be asked for end before it.
        on_device: "yes" copies all images to the device; "auto" does on a GPU of whose free memory they take at most
            a quarter; "no" leaves them in the cache's file, which all processes of a machine share.

    Raises:
        ValueError: "yes", and they are more than the device has free.
    """

    def __init__(
        self,
        images: ImageSet,
        order: BatchOrder,
        share: slice,
        device: torch.device,
        stop: int,
        on_device: str = "auto",
    ):
        self.images, self.order, self.share, self.device, self.stop = images, order, share, device, stop
        self.resident = copied(images, device) if is_wanted(on_device, images, device) else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future] = deque()

    def _read(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        indices = self.order.indices(step)[self.share]
        batch = torch.from_numpy(indices) if self.resident is not None else self.images[indices]
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels[indices])
        if self.device.type == "cuda":
            return batch.pin_memory(), labels if labels is None else labels.pin_memory()
        return batch, labels

    def take(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a step's images, uint8 [share, C, H, W], and labels, int64 [share], None of images that have none.

        Both are on the device, which is not waited for.

        From the first step that is asked for on, each has to be the one after the last.
        """
        # Steps from `step` on wait in the queue in their order; it is filled up before the first is taken out.
        for later in range(step + len(self._ahead), min(step + AHEAD, self.stop)):
            self._ahead.append(self._pool.submit(self._read, later))
        batch, labels = self._ahead.popleft().result()
        batch = batch.to(self.device, non_blocking=True)
        labels = labels if labels is None else labels.to(self.device, non_blocking=True)
        return batch if self.resident is None else self.resident[batch], labels

    def close(self):
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def is_wanted(on_device: str, images: ImageSet, device: torch.device) -> bool:
    """Whether all images are copied to the device; the arguments are those of `BatchReader`."""
    if on_device == "no" or on_device == "auto" and device.type != "cuda":
        return False
    needed, free = int(np.prod(images.shape)), free_memory(device)
    if on_device == "yes" and needed > free:
        raise ValueError(
            f"data_on_device is yes, the images take {needed / 2**30:.2f} GiB and {device} has {free / 2**30:.2f} GiB "
            "free; allowed: auto, or no"
        )
    return on_device == "yes" or needed <= free / 4


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free, by its driver or by the system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def copied(images: ImageSet, device: torch.device) -> torch.Tensor:
    """All images on the device, by way of few at once."""
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, COPIED_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), size):
        whole[start : start + size] = images[start : start + size].to(device)
    return whole


def draw_step(
    seed: int, step: int, shape: tuple[int, int, int, int], num_train_timesteps: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the random numbers of a step for the whole global batch of `shape` [B, C, H, W].

    Every process draws them all and uses its own slice, so that the number of processes does not matter.

    Returns:
        flips (bool [B]), timesteps (int64 [B] in [0, T)) and noise (float32, of `shape`), on the device.
    """
    generator = torch.Generator(device).manual_seed(seed_for(seed, DRAWS, step))
    flips = torch.rand(shape[0], generator=generator, device=device) < 0.5
    timesteps = torch.randint(num_train_timesteps, (shape[0],), generator=generator, device=device)
    noise = torch.randn(shape, generator=generator, device=device)
    return flips, timesteps, noise


def draw_hidden(seed: int, step: int, batch_size: int, rate: float, device: torch.device) -> torch.Tensor:
    """Return whose labels a step hides, bool [B] for the whole global batch: each with probability `rate`.

    The network takes the null class there, so that it learns both terms of guidance (Ho and Salimans 2022, alg. 1).
    """
    generator = torch.Generator(device).manual_seed(seed_for(seed, LABELS, step))
    return torch.rand(batch_size, generator=generator, device=device) < rate


def to_states(images: torch.Tensor, flips: torch.Tensor | None) -> torch.Tensor:
    """Return uint8 images [B, C, H, W] as states in [-1, 1], mirrored where `flips` [B] is true."""
    if flips is not None:
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    return images.float().div_(127.5).sub_(1)
