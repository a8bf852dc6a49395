"""Order, draws and batches: functions of (seed, step, position) alone."""

import numpy as np
import pytest
import torch

from ddim_hf.data import load_images
from ddim_hf.training import batches
from ddim_hf.training.batches import BatchOrder, BatchReader, draw_step, to_states


def test_every_epoch_shows_every_image_once():
    """Cut into epochs, the order is a permutation of all images each time, another one each time."""
    order = BatchOrder(length=10, batch_size=4, seed=0)
    seen = np.concatenate([order.indices(step) for step in range(15)]).reshape(6, 10)
    assert (np.sort(seen) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in seen}) == 6


def test_the_order_depends_on_the_seed_and_the_step_alone():
    """A step's images are the same whichever steps were asked for before, and others with another seed."""
    straight = BatchOrder(100, 16, seed=3)
    expected = [straight.indices(step) for step in range(20)]
    for step in (19, 0, 7, 6, 13):
        assert (BatchOrder(100, 16, seed=3).indices(step) == expected[step]).all()
        assert (straight.indices(step) == expected[step]).all()
    assert (BatchOrder(100, 16, seed=4).indices(0) != expected[0]).any()


def test_a_batch_larger_than_the_set():
    """A batch may hold several epochs."""
    indices = BatchOrder(length=3, batch_size=8, seed=0).indices(1)
    whole = np.concatenate([BatchOrder(3, 1, 0).indices(position) for position in range(8, 16)])
    assert (indices == whole).all()


def test_the_cost_does_not_grow_with_the_step(monkeypatch):
    """Step 100,000,000 draws the permutation of its own epoch alone, as step 0 does."""
    drawn, draw = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **words: drawn.append(args) or draw(*args, **words))
    for step in (0, 10**8):
        BatchOrder(50_000, 125, seed=0).indices(step)
    assert drawn == [(50_000,), (50_000,)]


def test_draws_differ_by_step_and_seed():
    """Each step has its own flips, timesteps and noise; the same step the same."""
    shape, device = (64, 1, 8, 8), torch.device("cpu")
    first = draw_step(0, 5, shape, 1000, device)
    assert all(torch.equal(a, b) for a, b in zip(first, draw_step(0, 5, shape, 1000, device), strict=True))
    for other in (draw_step(0, 6, shape, 1000, device), draw_step(1, 5, shape, 1000, device)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_draws_have_the_right_distribution():
    """Flips are fair, timesteps uniform over [0, T), noise standard normal."""
    flips, timesteps, noise = draw_step(0, 0, (40_000, 1, 2, 2), 1000, torch.device("cpu"))
    assert flips.float().mean() == pytest.approx(0.5, abs=0.01)
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    assert timesteps.float().mean() == pytest.approx(499.5, abs=6)
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)


def test_the_reader_gives_each_process_its_share():
    """Two readers of half a batch each give, together and in order, what the order says, from any step on."""
    images, order = load_images("digits", split="train", resolution=8, channels=1), BatchOrder(1617, 12, seed=0)
    device = torch.device("cpu")
    halves = [BatchReader(images, order, share, device, stop=8) for share in (slice(0, 6), slice(6, 12))]
    for step in range(3, 8):
        batch = torch.cat([half.take(step)[0] for half in halves])
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, images[BatchOrder(1617, 12, seed=0).indices(step)])
    for half in halves:
        half.close()


def test_states():
    """Pixels 0, 255 are -1, 1, and an image is mirrored left to right where its flip says so."""
    images = torch.tensor([[[[0, 255]]], [[[0, 255]]]], dtype=torch.uint8)
    states = to_states(images, torch.tensor([False, True]))
    assert states.tolist() == [[[[-1.0, 1.0]]], [[[1.0, -1.0]]]]
    assert to_states(images, None).tolist() == [[[[-1.0, 1.0]]]] * 2
    assert images.tolist() == [[[[0, 255]]]] * 2


@pytest.mark.parametrize("on_device", ["yes", "no"])
def test_batches_are_the_same_from_a_copy_of_all_images(monkeypatch, on_device):
    """A copy of the set, made block by block, gives the batches that the set itself gives."""
    images, device = load_images("digits", split="test", resolution=8, channels=1), torch.device("cpu")
    monkeypatch.setattr(batches, "COPIED_BYTES", 7 * 64)
    reader = BatchReader(images, BatchOrder(180, 50, seed=0), slice(10, 30), device, 5, on_device)
    assert (reader.resident is not None) == (on_device == "yes")
    for step in range(5):
        assert torch.equal(reader.take(step)[0], images[BatchOrder(180, 50, seed=0).indices(step)[10:30]])
    reader.close()


def test_images_are_copied_where_they_fit(monkeypatch):
    """By itself a GPU gets them within a quarter of its free memory, and a CPU never; asked for beyond what is free,
    it is one line."""
    images, gpu = load_images("digits", split="test", resolution=8, channels=1), torch.device("cuda")
    size = 180 * 64
    for free, wanted in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(batches, "free_memory", lambda device, free=free: free)
        assert batches.is_wanted("auto", images, gpu) == wanted
        assert not batches.is_wanted("auto", images, torch.device("cpu"))
        assert batches.is_wanted("yes", images, gpu) and not batches.is_wanted("no", images, gpu)
    monkeypatch.setattr(batches, "free_memory", lambda device: size - 1)
    with pytest.raises(ValueError, match=r"^data_on_device is yes, .* allowed: auto, or no$"):
        batches.is_wanted("yes", images, gpu)
