"""Decoded once, by one process, and mapped by all; or not kept at all."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from image_files import dataset, error_line, expected, noise, png, write_folder
from PIL import Image
from training_runs import until

from ddim_hf.data import cache, image_set, load_images
from ddim_hf.data.image_set import DecodedOnAccess

pytestmark = pytest.mark.usefixtures("own_caches")


def test_the_second_load_decodes_nothing(tmp_path, monkeypatch):
    """Once cached, a set is mapped from the cache's file; another resolution or content makes another file."""
    folder = write_folder(tmp_path / "images")
    first = load_images(str(folder), resolution=8)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode", None)
        again = load_images(str(folder), resolution=8)
    assert again.fingerprint == first.fingerprint and isinstance(again._pixels, np.memmap)
    np.testing.assert_array_equal(again[:], expected())
    assert load_images(str(folder), resolution=4).fingerprint != first.fingerprint
    (folder / "000.png").write_bytes(png(noise(seed=77)))
    changed = load_images(str(folder), resolution=8)
    assert changed.fingerprint != first.fingerprint
    np.testing.assert_array_equal(changed[[0]][0], noise(seed=77).transpose(2, 0, 1))


def test_what_another_version_has_decoded_otherwise_is_not_taken(tmp_path, monkeypatch):
    """Where decoding gives other pixels than the version before, they are decoded anew; the fingerprint, which a
    resumed run compares, is of the encoded images alone and stays."""
    folder = str(write_folder(tmp_path / "images"))
    before = load_images(folder, resolution=8)
    monkeypatch.setattr(image_set, "DECODING", image_set.DECODING + 1)
    monkeypatch.setattr(cache, "decode", lambda *_: np.zeros((3, 8, 8), np.uint8))
    after = load_images(folder, resolution=8)
    assert (after[:] == 0).all() and after.fingerprint == before.fingerprint


def test_too_little_memory_breaks_no_image(tmp_path, monkeypatch):
    """An image that finds no memory is not left out as one that cannot be read."""

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(cache, "decode", no_memory)
    with pytest.raises(MemoryError):
        load_images(str(write_folder(tmp_path / "images")), resolution=8, skip_broken=True)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    """DDIM_HF_CACHE comes first, then XDG_CACHE_HOME/ddim_hf."""
    folder = str(write_folder(tmp_path / "images"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_images(folder, resolution=8)
    assert list((tmp_path / "cache").glob("*.npy")) and not (tmp_path / "xdg").exists()
    monkeypatch.delenv("DDIM_HF_CACHE")
    load_images(folder, resolution=8)
    assert list((tmp_path / "xdg" / "ddim_hf").glob("*.npy"))


def test_a_set_beyond_the_limit_is_decoded_on_the_fly(tmp_path):
    """Above max_cached_bytes no array is kept, in memory or on disk."""
    folder = str(write_folder(tmp_path / "images"))
    images = load_images(folder, resolution=8, max_cached_bytes=5 * 3 * 64 - 1)
    assert isinstance(images._pixels, DecodedOnAccess) and not list((tmp_path / "cache").glob("*.npy"))
    assert isinstance(load_images(folder, resolution=8, max_cached_bytes=5 * 3 * 64)._pixels, np.memmap)


def test_an_interrupted_decoding_leaves_no_cache(tmp_path, monkeypatch):
    """A run stopped in the middle leaves no array to be mistaken for a whole one, and the next run decodes all."""
    folder = str(write_folder(tmp_path / "images", 200))
    real, calls = cache.decode, iter(range(150))

    def stop(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "decode", stop)
        load_images(folder, resolution=8)
    assert not list((tmp_path / "cache").glob("*.npy"))
    np.testing.assert_array_equal(load_images(folder, resolution=8)[:], expected(200))


def _load_slowly(folder, settings):
    cache.SAVE_SECONDS, cache.THREADS = 0.0, 1
    decode, digest = cache.decode, cache.digest
    cache.decode = lambda *args: (time.sleep(0.001), decode(*args))[1]
    cache.digest = lambda *args: (time.sleep(0.001 * isinstance(args[0], bytes)), digest(*args))[1]
    load_images(folder, **settings)


def _noted(directory):
    """How many images are noted as read, and as decoded."""
    read, decoded = list(directory.glob("[!.]*.digests")), list(directory.glob("[!.]*.progress"))
    return (
        read[0].stat().st_size // 33 if read else 0,
        json.loads(decoded[0].read_text())["done"] if decoded else 0,
    )


@pytest.mark.filterwarnings("ignore:.*left out 1 of 400")
@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_killed_process_is_gone_on_with(tmp_path, monkeypatch, limit):
    """kill -9 amid the reading and amid the decoding: each time the next process begins where that one was, and the
    last has the bytes and the fingerprint of one that was not killed, without scraps."""
    (tmp_path / "images").mkdir()
    for number in range(400):
        Image.new("RGB", (8, 8), (number % 251, number // 251, 9)).save(tmp_path / f"images/{number:03}.bmp")
    (tmp_path / "images/005.bmp").write_bytes(b"torn")
    folder, directory = str(tmp_path / "images"), tmp_path / "killed"
    settings = {"resolution": 8, "skip_broken": True, "max_cached_bytes": limit}
    whole = load_images(folder, cache_dir=tmp_path / "whole", **settings)
    settings["cache_dir"] = directory
    for stage in (0, 1):
        process = multiprocessing.get_context("fork").Process(target=_load_slowly, args=(folder, settings))
        process.start()
        until(lambda stage=stage: _noted(directory)[stage] >= 64)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert 64 <= _noted(directory)[stage] < 400
        if stage == 0:
            (digests,) = directory.glob("*.digests")
            digests.write_bytes(digests.read_bytes() + b"0123")  # a torn line

    for stem in {file.stem for file in directory.glob("[!.]*.lock")}:
        (directory / f".{stem}.1.partial.progress").touch()  # as a kill amid a note may leave one
    counted, done, decode = [], _noted(directory)[1], cache.decode
    monkeypatch.setattr(cache, "decode", lambda *args: (counted.append(1), decode(*args))[1])
    images = load_images(folder, **settings)
    assert len(counted) == 400 - done
    assert images.fingerprint == whole.fingerprint and len(images) == 399
    assert torch.equal(images[:], whole[:])
    kept = {tuple(sorted(file.name for file in folder.iterdir())) for folder in (directory, tmp_path / "whole")}
    assert len(kept) == 1
    for file in directory.glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()


def test_a_torn_image_leaves_nothing_half_decoded(tmp_path, monkeypatch):
    """Where an image cannot be read, what was decoded before it is not left on the disk."""
    monkeypatch.setattr(cache, "SAVE_SECONDS", 0.0)
    folder = write_folder(tmp_path / "images", 130)
    (folder / "129.png").write_bytes(b"torn")
    error_line(ValueError, folder)
    assert not list((tmp_path / "cache").glob("*.unfinished")) and not list((tmp_path / "cache").glob("*.progress"))


def _load_in_process(folder, cache, start, results):
    start.wait()
    images = load_images(folder, resolution=8, cache_dir=cache)
    results.put((os.getpid(), images.fingerprint, images[:].numpy().tobytes()))


def test_processes_at_once_agree(tmp_path):
    """Four processes that open the same new folder at once all get its images, and leave one array and no scraps."""
    folder = str(write_folder(tmp_path / "images", 100))
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()
    arguments = (folder, tmp_path / "together", start, results)
    processes = [context.Process(target=_load_in_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for pid, *_ in found}) == 4 and len({fingerprint for _, fingerprint, _ in found}) == 1
    assert all(pixels == expected(100).tobytes() for *_, pixels in found)
    assert len(list((tmp_path / "together").glob("*.npy"))) == 1 and not list((tmp_path / "together").glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    """Images are kept in memory, or decoded on the fly where that is too much, with a warning."""
    folder = str(write_folder(tmp_path / "images"))
    for limit, kept in ((2**30, True), (0, False)):
        monkeypatch.setattr(cache, "IN_MEMORY_BYTES", limit)
        with pytest.warns(UserWarning, match="cannot be written"):
            images = load_images(folder, resolution=8, cache_dir="/dev/null/cache")
        assert isinstance(images._pixels, np.ndarray) == kept
        np.testing.assert_array_equal(images[:], expected())


def test_a_full_disk_is_told_before_writing(tmp_path, monkeypatch):
    """With too little room for the array the error says how much is needed, how much there is, and what to do."""
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    assert "DDIM_HF_CACHE" in error_line(OSError, write_folder(tmp_path / "images"))


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(tmp_path):
    """As rsync -t and archives do: the new image is read, by its inode and the time of its last change."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, value in enumerate((10, 200)):
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / f"{number}.bmp")
        os.utime(tmp_path / f"{number}.bmp", (1e9, 1e9))
    os.replace(tmp_path / "0.bmp", folder / "0.bmp")
    assert (load_images(str(folder), resolution=8)[:] == 10).all()
    os.replace(tmp_path / "1.bmp", folder / "0.bmp")
    assert (load_images(str(folder), resolution=8)[:] == 200).all()


def test_refresh_cache_reads_and_decodes_everything_again(tmp_path):
    """What no look at times can tell, a saved dataset whose rows were replaced or a damaged cache, is made anew."""
    dataset().save_to_disk(tmp_path / "set")
    (state,) = (tmp_path / "set").glob("state.json")
    before = load_images(str(tmp_path / "set"), resolution=8)
    kept = state.read_text()
    dataset(first=10).save_to_disk(tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "set", dirs_exist_ok=True)
    state.write_text(kept)
    after = load_images(str(tmp_path / "set"), resolution=8, refresh_cache=True)
    assert after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(after[:], expected(5, first=10))
    np.testing.assert_array_equal(load_images(str(tmp_path / "set"), resolution=8)[:], expected(5, first=10))
    for file in (tmp_path / "cache").glob("*.npy"):
        np.lib.format.open_memmap(file, "r+")[:] = 0
    again = load_images(str(tmp_path / "set"), resolution=8, refresh_cache=True)
    np.testing.assert_array_equal(again[:], expected(5, first=10))


def test_refresh_cache_prepares_a_table_again(tmp_path):
    """A parquet file replaced by one of the same time is read again, though `datasets` has kept the old one."""
    for name, first in (("one", 0), ("two", 20)):
        dataset(first=first).to_parquet(tmp_path / f"{name}.parquet")
        os.utime(tmp_path / f"{name}.parquet", (1e9, 1e9))
    load_images(str(tmp_path / "one.parquet"), resolution=8)
    os.replace(tmp_path / "two.parquet", tmp_path / "one.parquet")
    images = load_images(str(tmp_path / "one.parquet"), resolution=8, refresh_cache=True)
    np.testing.assert_array_equal(images[:], expected(5, first=20))
