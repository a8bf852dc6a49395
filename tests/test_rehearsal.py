"""examples/rehearsal.py from pictures to its report, with a tiny network and 16 pixels."""

import json
import mmap
import runpy
import sys

import numpy as np
import pytest
from image_files import noise, png
from training_runs import ROOT, save_features

SCRIPT = ROOT / "examples/rehearsal.py"
TINY = ["--block_out_channels", "32,32", "--layers_per_block", 1, "--attention_levels", "none"]


def rehearse(monkeypatch, folder, *words) -> int:
    """The script's exit code."""
    monkeypatch.setattr(
        sys, "argv", [str(word) for word in ("rehearsal.py", folder / "pictures", folder / "out", *words)]
    )
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def settings(tmp_path, own_caches):
    """A picture, and flags for a rehearsal of seconds."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/noise.png").write_bytes(png(noise(40, 60)))
    words = [
        "--resolution",
        16,
        "--num_images",
        40,
        "--train_steps",
        8,
        "--num_samples",
        6,
        "--num_inference_steps",
        2,
    ]
    words += ["--max_batch_size", 4, "--train_batch_size", 2, "--num_reads", 80]
    return words + ["--feature_extractor", save_features(tmp_path / "features.pt", 16 * 16), *TINY]


def test_a_cache_of_other_sets_is_said(tmp_path):
    """Reading needs the rehearsal's one decoded set: none, or another beside it, is one line that names them."""
    cached_file = runpy.run_path(str(SCRIPT))["cached_file"]
    with pytest.raises(ValueError, match="holds other decoded sets than the rehearsal's one: none"):
        cached_file(tmp_path)
    (tmp_path / "a.npy").touch()
    assert cached_file(tmp_path) == tmp_path / "a.npy"
    (tmp_path / "b.npy").touch()
    with pytest.raises(ValueError, match="one: a.npy, b.npy; give another folder"):
        cached_file(tmp_path)


def test_other_pictures_are_another_rehearsal(monkeypatch, tmp_path, settings, capsys):
    """A folder's figures are of its pictures: with others the call is refused, and --help says what it does in whole
    sentences."""
    assert rehearse(monkeypatch, tmp_path, *settings, "--pieces", "patches") == 0
    (tmp_path / "pictures").rename(tmp_path / "others")
    monkeypatch.setattr(sys, "argv", ["rehearsal.py", *map(str, (tmp_path / "others", tmp_path / "out", *settings))])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2
    assert f"pictures {tmp_path}/pictures there, {tmp_path}/others asked for" in capsys.readouterr().err
    assert rehearse(monkeypatch, tmp_path, "--help") == 0
    assert "samples; their distance." in " ".join(capsys.readouterr().out.split())


def test_a_rehearsal_in_two_calls(monkeypatch, tmp_path, settings, capsys):
    """The pieces are done in any number of calls; the killed run's weights are those of the other, bit for bit; the
    report holds each figure, and a further call repeats nothing."""
    other = "--feature_extractor", save_features(tmp_path / "other.pt", 16 * 16)  # which the distance alone heeds
    first = "--pieces", "patches,decoding,reading"
    assert rehearse(monkeypatch, tmp_path, *settings, *other, *first) == 0
    assert "Not run: training, sampling, distance." in capsys.readouterr().out
    report = json.loads((tmp_path / "out/rehearsal.json").read_text())
    assert report["pieces"]["patches"]["figures"]["images"] == 40
    assert report["pieces"]["decoding"]["figures"]["GiB of the cache"] == 40 * 3 * 16 * 16 / 2**30
    assert report["pieces"]["reading"]["figures"]["cold: images"] == 80

    assert rehearse(monkeypatch, tmp_path, *settings) == 0
    output = capsys.readouterr().out
    pieces = json.loads((tmp_path / "out/rehearsal.json").read_text())["pieces"]
    assert {name: pieces[name] for name in report["pieces"]} == report["pieces"]
    figures = pieces["training"]["figures"]
    assert "killed after the checkpoint of step 4" in output and figures["steps"] == 8
    assert figures["tensors compared"] > 100 and figures["tensors that differ"] == 0
    assert np.isfinite(figures["loss of the first and the last step"]).all()
    assert pieces["sampling"]["figures"]["of them made by the last call"] == 6
    assert len(list((tmp_path / "out/samples/images").glob("*.png"))) == 6
    assert pieces["distance"]["figures"]["frechet_distance"] > 0
    assert "Not run" not in output and "Not shown: faces" in output

    before = (tmp_path / "out/rehearsal.json").stat().st_mtime_ns
    assert rehearse(monkeypatch, tmp_path, *settings) == 0
    assert (tmp_path / "out/rehearsal.json").stat().st_mtime_ns == before
    assert rehearse(monkeypatch, tmp_path, *settings, "--train_steps", 10) == 2
    assert "train_steps 8 there, 10 asked for" in capsys.readouterr().err
    assert rehearse(monkeypatch, tmp_path, *settings, *other) == 2
    assert "feature_extractor" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the pages of files are not told apart")
def test_pages_of_the_cache_are_not_private(tmp_path):
    """Pages of a mapped file are not counted as the process's own memory, though no other process maps them."""
    private_memory = runpy.run_path(str(SCRIPT))["private_memory"]
    np.zeros(2**26, np.uint8).tofile(tmp_path / "pixels")
    before = private_memory()
    pixels = np.memmap(tmp_path / "pixels", mode="r")
    assert pixels.sum() == 0 and private_memory() - before < 2**24
    fresh = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not what the allocator has kept
    own = np.frombuffer(fresh, np.uint8)
    own[:] = 1
    assert own.sum() == 2**26 and private_memory() - before > 2**25
