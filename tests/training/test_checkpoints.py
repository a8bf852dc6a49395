"""Checkpoints: whole or not there, verified when read, few."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from ddim_hf.files import write_text
from ddim_hf.training.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    set_aside_newer,
    why_torn,
)
from ddim_hf.training.result import save_model

FILES = {"unet": {"a": torch.arange(40_000.0)}, "ema": {"b": torch.ones(3, 2).T}}


def save(run, step, limit=9):
    return save_checkpoint(run, step, FILES, {"note": [1, None]}, limit)


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    """A checkpoint gives back its tensors, its state and its step."""
    files, state = load_checkpoint(save(tmp_path, 7))
    assert state == {"note": [1, None], "step": 7}
    assert all(torch.equal(files[file][key], FILES[file][key]) for file in FILES for key in FILES[file])


def test_what_was_done_since_without_a_step_is_saved(tmp_path):
    """A second save of a step replaces its state, and the checkpoint stays whole."""
    files = {"unet": {"a": torch.arange(3.0)}}
    save_checkpoint(tmp_path, 4, files, {"pending": ["50-0", "100-1"]}, 3)
    saved = save_checkpoint(tmp_path, 4, files, {"pending": ["100-1"]}, 3)
    assert why_torn(saved) is None
    tensors, state = load_checkpoint(saved)
    assert state == {"pending": ["100-1"], "step": 4} and torch.equal(tensors["unet"]["a"], torch.arange(3.0))


def test_the_oldest_go_by_number(tmp_path):
    """Beyond the limit the oldest are deleted, by number and not by name, and nothing else is left behind."""
    for step in (8, 9, 10, 11):
        save(tmp_path, step, limit=3)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]


DAMAGE = {
    "short file": lambda path: os.truncate(path / "unet.safetensors", 1000),
    "one bit": lambda path: (path / "unet.safetensors").write_bytes(
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]))((path / "unet.safetensors").read_bytes())
    ),
    "no file": lambda path: (path / "ema.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "torn state": lambda path: os.truncate(path / "state.json", 40),
    "other state": lambda path: (path / "state.json").write_text('{"files": 3}'),
    "empty folder": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_the_one_before_used(tmp_path, caplog, damage):
    """Whatever is wrong with the newest is named in a warning, and the one before it is taken."""
    whole, torn = save(tmp_path, 1), save(tmp_path, 2)
    DAMAGE[damage](torn)
    assert why_torn(whole) is None and why_torn(torn)
    assert find_checkpoint(tmp_path, "latest") == whole
    assert f"{torn} cannot be used" in caplog.text
    with pytest.raises(ValueError, match="checkpoint-2: "):
        find_checkpoint(tmp_path, str(torn))
    DAMAGE[damage](whole)
    with pytest.raises(ValueError, match="no checkpoint in .* can be used"):
        find_checkpoint(tmp_path, "latest")
    assert find_checkpoint(tmp_path / "new", "latest") is None


def test_newer_ones_are_set_aside(tmp_path):
    """What lies beyond the step that is resumed keeps its files under another name, and leftovers go."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    for leftover in (".checkpoint-9.partial", ".checkpoint-0.old", "checkpoint-3.aside"):
        (tmp_path / leftover).mkdir()
    assert [path.name for path in set_aside_newer(tmp_path, 1)] == ["checkpoint-2.aside", "checkpoint-3.aside"]
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2.aside", "checkpoint-3.aside"]
    assert why_torn(tmp_path / "checkpoint-3.aside") is None


@contextmanager
def largest_file(size: int):
    """The kernel refuses files beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_leaves_the_earlier_ones(tmp_path):
    """Where the disk takes no more the error says so and what is intact, even if the limit would let that one go."""
    earlier = save(tmp_path, 1)
    with largest_file(100_000), pytest.raises(OSError, match="step 2 was not written: .*intact: checkpoint-1"):
        save(tmp_path, 2, limit=1)
    assert names(tmp_path) == ["checkpoint-1"] and why_torn(earlier) is None


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_is_named(tmp_path):
    """On a disk that is full the error says that there is no space left, and earlier checkpoints stay whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        earlier = save(disk, 1)
        with pytest.raises(OSError, match="step 2 was not written: no space left on the disk; intact: checkpoint-1$"):
            save(disk, 2, limit=1)
        assert names(disk) == ["checkpoint-1"] and why_torn(earlier) is None
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_optimizer_goes_on_as_if_never_stopped(tmp_path):
    """AdamW restored from a checkpoint takes the same steps, bit for bit, in channels-last layout too."""

    def build():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def steps(layer, optimizer, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            layer(torch.randn(2, 3, 5, 5, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer = build()
    steps(straight, optimizer, range(6))
    stopped, optimizer = build()
    steps(stopped, optimizer, range(3))
    files = {"unet": stopped.state_dict(), "optimizer": optimizer_tensors(optimizer, stopped)}
    files, _ = load_checkpoint(save_checkpoint(tmp_path, 3, files, {}, 1))
    again, optimizer = build()
    again.load_state_dict(files["unet"])
    restore_optimizer(optimizer, again, files["optimizer"])
    assert optimizer.state[again.weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    steps(again, optimizer, range(3, 6))
    assert torch.equal(again.weight, straight.weight) and torch.equal(again.bias, straight.bias)
    assert not torch.equal(stopped.weight, straight.weight)


def test_small_files_are_replaced_as_a_whole(tmp_path):
    """A text that cannot be written leaves the one before."""
    write_text(tmp_path / "config.json", json.dumps({"a": 1}))
    with largest_file(1000), pytest.raises(OSError):
        write_text(tmp_path / "config.json", "x" * 100_000)
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


def test_the_optimizer_before_its_first_step_comes_back(tmp_path):
    """A checkpoint of an optimizer that has not stepped restores one that has not stepped."""
    layer = torch.nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW(layer.parameters()) for _ in range(2)]
    save_checkpoint(tmp_path, 0, {"optimizer": optimizer_tensors(optimizers[0], layer)}, {}, 1)
    files, _ = load_checkpoint(tmp_path / "checkpoint-0")
    restore_optimizer(optimizers[1], layer, files["optimizer"])
    assert not any(optimizers[1].state[parameter] for parameter in layer.parameters())


def test_a_full_disk_at_the_end_is_one_line(tmp_path):
    """A result that cannot be written is an OSError of one line, whatever safetensors calls it."""
    from training_runs import save_tiny_model

    from ddim_hf import DDIMCustomPipeline

    pipeline = DDIMCustomPipeline.from_pretrained(save_tiny_model(tmp_path / "model"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="the model was not written to .*; checkpoints are intact"):
            save_model(pipeline, tmp_path / "result")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
