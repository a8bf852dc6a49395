"""Runs as processes: killed, stopped, out of disk, two instead of one, under the real launcher."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_folder
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig
from training_runs import (
    ROOT,
    SCRIPT,
    Run,
    difference,
    flags,
    free_port,
    log_lines,
    run_pair,
    save_features,
    save_tiny_model,
    tensors,
    weights,
)

from ddim_hf.data import cache
from ddim_hf.training import samplers, setup
from ddim_hf.training.checkpoints import list_checkpoints, why_torn

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision", "no", "--num_processes", "2"]
ENDLESS = dict(max_train_steps=10**6, lr_scheduler="constant", checkpointing_steps=10**6, logging_steps=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with dropout, whose masks must be resumed too."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", dropout=0.2)


def launch(words: list, *options: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*LAUNCHER, *options, str(SCRIPT), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen) -> str:
    """What it and its children wrote until the last of them ended."""
    text, _ = process.communicate(timeout=150)
    return text


def until(condition, seconds: float = 100):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "it did not come to that"
        time.sleep(0.02)


def test_killed_at_any_moment(model, tmp_path):
    """kill -9 amid the writing of checkpoints and at random moments, then resuming the latest: the same bits as a run
    never stopped."""
    settings = dict(checkpointing_steps=2, ema_decay="0.9,0.99")
    whole = tmp_path / "whole"
    assert Run(tmp_path / "whole.txt", flags(model, whole, **settings)).wait() == 0

    folder, chance = tmp_path / "killed", random.Random()
    words = flags(model, folder, **settings, resume_from_checkpoint="latest")
    moments = [lambda step=step: (folder / f".checkpoint-{step}.partial").exists() for step in (2, 4, 8)]
    moments += [lambda: (folder / "checkpoint-8").exists() and chance.random() < 0.02 for _ in range(2)]
    for number, moment in enumerate(moments):
        run = Run(tmp_path / f"{number}.txt", words)
        killed = run.kill_when(moment)
        assert run.wait() == (-signal.SIGKILL if killed else 0)
        assert killed or number > 2
    last = Run(tmp_path / "last.txt", words)
    assert last.wait() == 0
    assert "no checkpoint in" in (tmp_path / "1.txt").read_text()
    assert "checkpoint-2 at step 2" in (tmp_path / "2.txt").read_text()
    assert difference(weights(folder), weights(whole)) == 0
    assert difference(tensors(folder / "checkpoint-12"), tensors(whole / "checkpoint-12")) == 0
    lines, wanted = ([(line["step"], line["loss"]) for line in log_lines(run)] for run in (folder, whole))
    assert lines == wanted
    assert not list(folder.glob(".checkpoint*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(model, tmp_path, number):
    """SIGTERM and SIGINT end a run within seconds with a whole checkpoint of its last step and the command that goes
    on with it, which gives the same bits as a run never stopped."""
    folder = tmp_path / "run"
    run = Run(tmp_path / "run.txt", flags(model, folder, **ENDLESS))
    assert run.kill_when(lambda: (folder / "log.jsonl").exists() and len(log_lines(folder)) > 2, number)
    began = time.monotonic()
    assert run.wait(30) == 143 and time.monotonic() - began < 30
    (checkpoint,) = list_checkpoints(folder)
    step = log_lines(folder)[-1]["step"]
    assert checkpoint.name == f"checkpoint-{step}" and why_torn(checkpoint) is None
    (command,) = re.findall("to go on: (.*)", run.text())
    words = shlex.split(command)
    assert words[-2:] == ["--resume_from_checkpoint", "latest"]
    words = words[words.index(str(SCRIPT)) + 1 :] + ["--max_train_steps", str(step + 2)]
    assert Run(tmp_path / "on.txt", words).wait() == 0
    whole = flags(model, tmp_path / "whole", **ENDLESS | dict(max_train_steps=step + 2))
    assert Run(tmp_path / "whole.txt", whole).wait() == 0
    assert difference(weights(folder), weights(tmp_path / "whole")) == 0


def test_a_full_disk_ends_a_run_with_one_line(model, tmp_path):
    """Where a checkpoint cannot be written the run ends with code 2, one line of error, and the earlier one intact."""
    folder = tmp_path / "run"
    assert Run(tmp_path / "1.txt", flags(model, folder, max_train_steps=6, lr_scheduler="constant")).wait() == 0
    more = flags(model, folder, lr_scheduler="constant", resume_from_checkpoint="latest", checkpoints_total_limit=1)
    run = Run(tmp_path / "2.txt", more, file_size=20_000)
    assert run.wait() == 2
    (line,) = re.findall("^error: .*$", run.text(), re.MULTILINE)
    assert "checkpoint of step 12 was not written" in line and "intact: checkpoint-6" in line
    assert "Traceback" not in run.text() and why_torn(folder / "checkpoint-6") is None


def test_one_of_two_processes_is_told(model, tmp_path):
    """A signal to one process of a run stops all of them after the same step."""
    folder = tmp_path / "run"
    pair = run_pair(tmp_path, flags(model, folder, **ENDLESS))
    assert pair[1].kill_when(lambda: (folder / "log.jsonl").exists() and len(log_lines(folder)) > 2, signal.SIGTERM)
    assert [run.wait(30) for run in pair] == [143, 143]
    (checkpoint,) = list_checkpoints(folder)
    assert why_torn(checkpoint) is None and checkpoint.name == f"checkpoint-{log_lines(folder)[-1]['step']}"


def impatient():
    """Collectives of 5 seconds at most, and 8 seconds of decoding."""
    limit = timedelta(seconds=5)
    torch.distributed.distributed_c10d.default_pg_timeout = setup.COLLECTIVE_LIMIT = limit
    cache.THREADS, decode = 1, cache.decode
    cache.decode = lambda *args: (time.sleep(0.5), decode(*args))[1]


def test_images_that_take_longer_than_a_collective(model, tmp_path):
    """While one of two processes decodes for longer than a collective may last, the other waits. Where a sampler has
    fewer images than there are processes, its grid holds them."""
    folder = tmp_path / "run"
    words = dict(dataset_name=write_folder(tmp_path / "images", 16), cache_dir=tmp_path / "cache", grey=True)
    words |= dict(samplers="1:0.0:2:1", feature_extractor="none", max_train_steps=2, batch_size=2)
    pair = run_pair(tmp_path, flags(model, folder, **words), before=impatient)
    assert [run.wait() for run in pair] == [0, 0], pair[1].text()[-2000:]
    grid = np.asarray(Image.open(folder / "samples/step-0000002-1-0.png"))
    assert grid.std() > 0


def endless_distance(*_):
    Path("reached").touch()
    while True:
        time.sleep(60)


def with_endless_distance():
    samplers.frechet_distance = endless_distance


def test_a_signal_amid_a_distance(model, tmp_path):
    """SIGTERM while the main process of two takes a distance that does not end: within seconds they leave a whole
    checkpoint, in which that sampler is pending."""
    folder = tmp_path / "run"
    words = ENDLESS | dict(samplers="1:0.0:3:4", feature_extractor=save_features(tmp_path / "features.pt", 64))
    words |= dict(cache_dir=tmp_path / "cache")
    pair = run_pair(tmp_path, flags(model, folder, **words), (tmp_path, tmp_path), before=with_endless_distance)
    until((tmp_path / "reached").exists)
    began = time.monotonic()
    for run in pair:
        os.kill(run.process.pid, signal.SIGTERM)
    assert [run.wait(30) for run in pair] == [143, 143] and time.monotonic() - began < 20
    (checkpoint,) = list_checkpoints(folder)
    assert checkpoint.name == "checkpoint-3" and why_torn(checkpoint) is None
    assert json.loads((checkpoint / "state.json").read_text())["selection"]["pending"] == ["1-0"]


def test_the_launchers_patience_is_a_variable(monkeypatch):
    """torchrun, and so accelerate launch, kills what has not ended so many seconds after SIGTERM: 30, or
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT."""
    counts = dict(min_nodes=1, max_nodes=1, nproc_per_node=2)
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    assert LaunchConfig(**counts).shutdown_timeout == 30
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert LaunchConfig(**counts).shutdown_timeout == 600


def test_what_shared_weights_do_not_take(model, tmp_path):
    """FSDP with a setting that it does not take ends both processes with one line and code 2."""
    pair = run_pair(tmp_path, flags(model, tmp_path / "run", channels_last=True), before=sharded)
    assert [run.wait() for run in pair] == [2, 2]
    assert "error: launched with FSDP and channels_last True; allowed with it: (None, False)" in pair[0].text()


def test_a_dry_run_counts_what_each_process_holds(model, tmp_path):
    """With FSDP on two processes a dry run counts half of weights, moments and averages for each, and says so."""
    pair = run_pair(tmp_path, flags(model, tmp_path / "run", dry_run=True), before=sharded)
    assert [run.wait() for run in pair] == [0, 0], pair[0].text()
    half = 4 * 4 * sum(value.numel() for value in weights(model).values()) / 2
    said = pair[0].text()
    assert f"weights, moments and averages {half / 2**20:,.1f} MiB" in said and "with FSDP: its part of" in said


def slow_to_come():
    """The second of two processes is still being set up when the first is ready."""
    begin = torch.distributed.init_process_group

    def begin_slowly(*args, **keywords):
        begin(*args, **keywords)
        if os.environ["RANK"] == "1":
            time.sleep(2)
            Path("ready").touch()

    torch.distributed.init_process_group = begin_slowly


def test_no_process_ends_while_another_is_set_up(model, tmp_path):
    """The first of two, by whose addresses the second still connects, says its error when both are ready: else the
    second would end with a traceback."""
    training = run_pair(tmp_path, flags(model, tmp_path / "run", batch_size=15), (tmp_path,) * 2, before=slow_to_come)
    assert training[0].wait() == 2 and (tmp_path / "ready").exists()
    assert training[1].wait() == 2

    (tmp_path / "ready").unlink()
    words = [str(model), "--num_images", "0", "--output_dir", str(tmp_path / "images")]
    sampling = run_pair(tmp_path, words, (tmp_path,) * 2, before=slow_to_come, script=SCRIPT.with_name("sample.py"))
    assert sampling[0].wait() == 2 and (tmp_path / "ready").exists()
    assert sampling[1].wait() == 2


def test_processes_that_do_not_divide_the_batch(model, tmp_path):
    """A batch size that two processes cannot share ends both with one line and code 2."""
    pair = run_pair(tmp_path, flags(model, tmp_path / "run", batch_size=15))
    assert [run.wait() for run in pair] == [2, 2]
    assert "error: batch_size is 15; allowed: multiples of 2 (processes 2 x" in pair[0].text()


# Two processes as one


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits recipe's own network, with classes, for 12 steps in one process, with a sampler; and its settings."""
    folder = tmp_path_factory.mktemp("digits")
    words = "--recipe digits --batch_size 16 --max_train_steps 12 --checkpointing_steps 6 --logging_steps 6"
    words = [
        *words.split(),
        "--class_conditional",
        "--logger",
        "none",
        "--samplers",
        "2:1.0:6:31",
        "--validation_images",
        "100",
        "--eval_batch_size",
        "8",
    ]
    words += ["--lr_warmup_steps", "2", "--cache_dir", str(folder / "cache")]
    words += ["--feature_extractor", save_features(folder / "features.pt", pixels=64)]
    assert Run(folder / "one.txt", [*words, "--output_dir", str(folder / "one")]).wait() == 0
    return folder / "one", words


def assert_same_run(folder: Path, one: Path, best: Path):
    """The weights, the best model and the logged figures of `folder` are those of one process; its best is `best`."""
    assert difference(weights(folder), weights(one)) < 1e-4
    assert difference(weights(folder / "best-2-1"), weights(best)) < 1e-4
    grids = [Image.open(run / "samples/step-0000012-2-1.png") for run in (folder, one)]
    pixels = [np.asarray(grid).astype(int) for grid in grids]
    assert pixels[0].shape == pixels[1].shape and np.abs(pixels[0] - pixels[1]).max() <= 3
    ours, theirs = log_lines(folder), log_lines(one)
    for name in ("loss", "validation_loss", "validation_loss_null", "sampler-2-1/frechet_distance"):
        a, b = ({line["step"]: line[name] for line in lines if name in line} for lines in (ours, theirs))
        assert a and a == pytest.approx({step: b[step] for step in a}, rel=2e-3), name


def test_two_processes_under_the_launcher(digits, tmp_path):
    """accelerate launch with two processes: within 1e-4 of one process on every weight, the same distances. That they
    share the CPU is said once."""
    one, words = digits
    text = ended(launch([*words, "--output_dir", str(tmp_path / "run")], "--multi_gpu", "--main_process_port", "0"))
    assert '"num_processes": 2' in (tmp_path / "run" / "config.json").read_text(), text
    assert text.count("no GPU is used: 2 processes share the CPU") == 1
    assert_same_run(tmp_path / "run", one, best=one / "best-2-1")


def test_two_processes_after_one(digits, tmp_path):
    """Six steps in one process and six in two, of which one alone has the folder: within 1e-4 of twelve in one on
    every weight."""
    one, words = digits
    folders = (tmp_path / "here", tmp_path / "elsewhere")
    folder = folders[0] / "run"
    shutil.copytree(one / "checkpoint-6", folder / "checkpoint-6")
    words = [*words, "--output_dir", "run", "--resume_from_checkpoint", "latest"]
    pair = run_pair(tmp_path, words, folders)
    assert [run.wait() for run in pair] == [0, 0], pair[1].text()[-2000:]
    assert "resuming" in pair[0].text() and '"num_processes": 2' in (folder / "config.json").read_text()
    assert not list(folders[1].iterdir())
    assert_same_run(folder, one, best=one)  # it sampled after its last step alone


def sharded():
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"  # the launcher's own


def test_two_processes_that_share_the_weights(digits, tmp_path):
    """Six steps in one process and six in two with FSDP2, on CPUs: within 1e-4 of twelve in one on every weight of the
    result, with the same figures; and the checkpoint holds the same tensors within 1e-4."""
    one, words = digits
    folder = tmp_path / "run"
    shutil.copytree(one / "checkpoint-6", folder / "checkpoint-6")
    words = [*words, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    pair = run_pair(tmp_path, words, before=sharded)
    assert [run.wait() for run in pair] == [0, 0], pair[1].text()[-2000:]
    assert_same_run(folder, one, best=one)
    record = json.loads((folder / "config.json").read_text())
    assert record["sharded"] and record["num_processes"] == 2
    ours, theirs = (tensors(run / "checkpoint-12") for run in (folder, one))
    assert ours.keys() == theirs.keys()
    # The bias of attention's keys changes nothing, and AdamW makes steps of what rounding leaves of its gradient.
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours if "to_k.bias" not in name)


def test_two_machines(digits, tmp_path):
    """Two launchers, as two machines on loopback: within 1e-4 of one process on every weight."""
    one, words = digits
    port = str(free_port())
    machines = [
        launch(
            [*words, "--output_dir", str(tmp_path / "run")],
            *("--multi_gpu", "--num_machines", "2", "--machine_rank", str(rank), "--same_network"),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", port),
        )
        for rank in (0, 1)
    ]
    texts = [ended(machine) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert '"num_processes": 2' in (tmp_path / "run" / "config.json").read_text()
    assert_same_run(tmp_path / "run", one, best=one / "best-2-1")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child is not told of its parent's end")
def test_ending_the_launcher_saves(model, tmp_path):
    """accelerate launch --cpu --num_processes 2 starts one process, which a warning says with what starts two; when
    the launcher is terminated its child saves, prints the launcher's command to go on, and ends."""
    folder = tmp_path / "run"
    process = launch(flags(model, folder, **ENDLESS), "--cpu")
    until(lambda: (folder / "log.jsonl").exists() and len(log_lines(folder)) > 2)
    process.terminate()
    text = ended(process)
    (checkpoint,) = list_checkpoints(folder)
    assert why_torn(checkpoint) is None
    assert "warning: accelerate launch started one process; for several on the CPU: ACCELERATE_USE_CPU=true" in text
    (command,) = re.findall("to go on: (.*)", text)
    assert "accelerate.commands.launch" in command and command.endswith("--resume_from_checkpoint latest")


def test_one_run_at_a_time_in_a_folder(model, tmp_path):
    """A second run waits until the first one, which is told to stop, has saved, and goes on from there."""
    words = flags(model, tmp_path / "run", **ENDLESS, resume_from_checkpoint="latest")
    first = Run(tmp_path / "first.txt", words)
    until(lambda: (tmp_path / "run/log.jsonl").exists() and log_lines(tmp_path / "run"))
    second = Run(tmp_path / "second.txt", words)
    until(lambda: "another run is at work" in second.text())
    assert first.process.is_alive()
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.wait() == 143
    until(lambda: "resuming" in second.text())
    (saved,) = list_checkpoints(tmp_path / "run")
    assert f"resuming {saved} at step" in second.text()
    until(lambda: log_lines(tmp_path / "run")[-1]["step"] > int(saved.name.split("-")[1]))
    os.kill(second.process.pid, signal.SIGTERM)
    assert second.wait() == 143


@pytest.mark.slow
def test_a_signal_that_ends_the_compiler_too(model, tmp_path):
    """To a whole process group, as by `timeout`: the run says what is saved, and no traceback."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nkill -TERM 0\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": str(compiler)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags(model, tmp_path / "run"), "--compile"],
        env=environment,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "stopped after step 0; what followed failed (InductorError), the last checkpoint is none; to" in done.stdout
