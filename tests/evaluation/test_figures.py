"""Distances of samples: where their features are computed, and what a kill leaves of them."""

import math
import threading

import numpy as np
import pytest
import torch

from ddim_hf.data import ImageSet
from ddim_hf.evaluation import distances
from ddim_hf.evaluation.features import FeatureExtractor
from ddim_hf.evaluation.figures import _Extraction, image_distances
from ddim_hf.evaluation.frechet import Statistics, frechet_distance
from ddim_hf.evaluation.references import BATCH
from ddim_hf.evaluation.unfinished import Unfinished


def test_a_cpu_is_not_shared_with_a_second_thread():
    """Features are computed by the thread that samples: another one's OpenMP threads would slow the sampling down."""
    threads = set()

    def forward(images):
        threads.add(threading.current_thread())
        return images.flatten(1)[:, :4]

    def make(block, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randint(256, (3, 2, 2), generator=g).to(torch.uint8) for g in generators])

    extractor = FeatureExtractor("first pixels", "", forward, None, torch.device("cpu"))
    reference = Statistics().update(np.random.default_rng(0).uniform(0, 255, (50, 4)).astype(np.float32))
    found = distances(make, extractor, reference, num_images=30, block=8)
    assert threads == {threading.current_thread()}
    images = np.concatenate([make(1, [seed]) for seed in range(30)])
    assert found["frechet_distance"] == pytest.approx(
        frechet_distance(Statistics().update(extractor(torch.from_numpy(images))), reference), rel=1e-9
    )
    assert 0 < found["seconds_features"] <= found["seconds_waiting"] <= found["seconds"]


def test_real_images_are_measured_few_at_once():
    """The distance of real images (`--floor`) reads those that are taken a batch at a time, each once."""
    asked = []

    class Recorded(ImageSet):
        def __getitem__(self, numbers):
            asked.append(list(numbers))
            return super().__getitem__(numbers)

    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1, 2, 2), dtype=np.uint8)
    extractor = FeatureExtractor("pixels", "", lambda x: x[:, 0].flatten(1), None, torch.device("cpu"))
    reference = Statistics().update(np.random.default_rng(1).uniform(0, 255, (50, 4)))
    found = image_distances(Recorded("a folder", "train", "", pixels), extractor, reference, count=500)
    assert sum(asked, []) == list(range(0, 1000, 2)) and max(map(len, asked)) <= BATCH
    whole = Statistics().update(pixels[::2].reshape(500, 4))
    assert found["frechet_distance"] == pytest.approx(frechet_distance(whole, reference), rel=1e-9)


# What a kill leaves of a cell


class Killed(Exception):
    pass


def first_pixels() -> FeatureExtractor:
    """A linear map of an image, whose last bits depend on how many pass at once."""
    matrix = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    return FeatureExtractor("a map", "", lambda x: x.flatten(1) @ matrix, None, torch.device("cpu"))


class Sampler:
    """Makes images from seeds, counts them, and is killed after so many blocks."""

    def __init__(self, blocks: int = 1000):
        self.blocks, self.made = blocks, []

    def __call__(self, block: int, seeds: list[int]) -> torch.Tensor:
        if len(self.made) == self.blocks:
            raise Killed
        self.made.append(seeds[0])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randint(256, (3, 2, 2), generator=g).to(torch.uint8) for g in generators])


def test_a_killed_cell_goes_on_where_it_was(tmp_path, monkeypatch):
    """A cell that is killed and called again makes the missing blocks alone, and has the figures of one that was not,
    to 1e-9; when it is done nothing is left of it."""
    monkeypatch.setattr("ddim_hf.evaluation.unfinished.SAVE_SECONDS", 0.0)
    features = first_pixels()(Sampler()(40, list(range(500, 540))))
    reference = Statistics().update(features), features
    settings = {"num_images": 30, "block": 4, "seed": 3}
    whole = distances(Sampler(), first_pixels(), *reference, **settings)

    unfinished = Unfinished({"cell": 1}, tmp_path)
    sampler = Sampler(blocks=5)
    with pytest.raises(Killed):
        distances(sampler, first_pixels(), *reference, **settings, unfinished=unfinished)
    assert sampler.made == [3, 7, 11, 15, 19]
    (unfinished.folder / "torn.npz").write_bytes(b"torn")
    (unfinished.folder / "00000008.npz").unlink()  # another process's, which had not come so far
    again = Sampler()
    resumed = distances(again, first_pixels(), *reference, **settings, unfinished=Unfinished({"cell": 1}, tmp_path))
    assert again.made == [11, 23, 27, 31] and "seconds" not in resumed
    for metric in ("frechet_distance", "kernel_distance"):
        assert resumed[metric] == pytest.approx(whole[metric], rel=1e-9)

    other = Sampler()
    distances(other, first_pixels(), *reference, **settings, unfinished=Unfinished({"cell": 2}, tmp_path))
    assert len(other.made) == 8
    unfinished.remove()
    assert not unfinished.folder.exists()


def test_a_cell_is_measured_where_nothing_can_be_kept(tmp_path):
    """Where the cache cannot be written the cell is measured all the same, with a warning."""
    (tmp_path / "unfinished").write_text("a file in the folder's place")
    unfinished = Unfinished({}, tmp_path)
    unfinished._saved_at = -math.inf
    reference = Statistics().update(np.random.default_rng(0).standard_normal((50, 6)))
    with pytest.warns(UserWarning, match="cannot be written"):
        distances(Sampler(), first_pixels(), reference, num_images=8, block=4, unfinished=unfinished)


@pytest.mark.parametrize("beside", [False, True])
def test_blocks_are_extracted_in_order_and_their_errors_arrive(beside):
    """Beside the sampling or within it, blocks are extracted in order, and what one raises ends the cell."""
    seen, threads = [], set()

    def extract(part, images):
        threads.add(threading.current_thread())
        if part[0] == 9:
            raise ValueError("the ninth")
        seen.append(part[0])

    with _Extraction(extract, beside=beside) as extraction:
        for number in range(8):
            extraction.put([number], torch.zeros(1))
        extraction.finish()
    assert seen == list(range(8)) and (threading.current_thread() not in threads) == beside
    seconds = extraction.seconds()
    assert 0 < seconds["seconds_features"] and seconds["seconds_waiting"] <= seconds["seconds"]
    with pytest.raises(ValueError, match="the ninth"), _Extraction(extract, beside=beside) as extraction:
        extraction.put([9], torch.zeros(1))
        extraction.finish()
