"""Small runs for the training tests: a tiny model to start from, and real processes that start without delay."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.training import TrainingConfig
from ddim_hf.unet import build_unet

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "train.py"
SETTINGS = dict(
    resolution=8,
    batch_size=16,
    logging_steps=4,
    checkpointing_steps=6,
    lr_warmup_steps=2,
    max_train_steps=12,
    logger="none",
    samplers="none",
    validation_split="none",
)


def save_tiny_model(folder: Path, dropout: float = 0.0, names: str = "", **scheduler) -> str:
    """Save a pipeline of 8x8 grey images with attention, and with classes of these names, and return where."""
    blocks = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    torch.manual_seed(0)
    blocks |= dict(num_class_embeds=len(names) + 1) if names else {}
    unet = build_unet("digits", sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, dropout=dropout, **blocks)
    DDIMCustomPipeline(unet, DDIMSchedulerCustom(**scheduler), dict(enumerate(names)) or None).save_pretrained(folder)
    return str(folder)


class Features(torch.nn.Module):
    """Five linear features of the grey image."""

    def __init__(self, pixels: int):
        super().__init__()
        self.register_buffer("matrix", torch.randn(pixels, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images[:, 0].flatten(1) / 255 @ self.matrix


def save_features(file: Path, pixels: int) -> str:
    """Save a feature extractor for images of so many pixels, and return where."""
    torch.jit.script(Features(pixels)).save(str(file))
    return str(file)


def config(model: str, folder: Path, **overrides) -> TrainingConfig:
    return TrainingConfig(**{**SETTINGS, "pretrained": model, "output_dir": str(folder), **overrides})


def flags(model: str, folder: Path, **overrides) -> list[str]:
    settings = {**SETTINGS, "pretrained": model, "output_dir": folder, **overrides}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    files = sorted(Path(checkpoint).rglob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


# Processes: forked from one that has imported everything, as starting Python and torch takes most of a test's time.

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ddim_hf.training", "transformers", "sklearn.datasets"])


def until(condition: Callable[[], bool], seconds: float = 120):
    """Wait until it holds; a test that waits for longer fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _script(
    words: list[str],
    output: Path,
    environment: dict[str, str],
    file_size: int | None,
    folder: Path | None,
    before: Callable[[], None] | None,
    script: Path,
):
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if file_size is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    if before is not None:
        before()
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


class Run:
    """A script, examples/train.py, in a process of its own, with `folder` as its working folder and after a call of
    `before`."""

    def __init__(
        self,
        output: Path,
        words: list[str],
        environment=None,
        file_size: int | None = None,
        folder: Path | None = None,
        before: Callable[[], None] | None = None,
        script: Path = SCRIPT,
    ):
        self.output = Path(output)
        arguments = (words, self.output, environment or {}, file_size, folder, before, script)
        self.process = FORKS.Process(target=_script, args=arguments)
        self.process.start()

    def kill_when(self, condition, number: int = signal.SIGKILL) -> bool:
        """Send a signal as soon as `condition()` holds; False if the process ended before."""
        while self.process.is_alive():
            if condition():
                os.kill(self.process.pid, number)
                return True
            time.sleep(0.0005)
        return False

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.text()[-2000:]}"
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def run_pair(
    folder: Path,
    words: list[str],
    folders: tuple[Path | None, Path | None] = (None, None),
    before: Callable[[], None] | None = None,
    script: Path = SCRIPT,
) -> list[Run]:
    """Two processes of one run, as the launcher starts them, perhaps each with a working folder of its own."""
    shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    shared["ACCELERATE_USE_CPU"] = "true"
    return [
        Run(
            folder / f"rank-{rank}.txt",
            words,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            folder=folders[rank],
            before=before,
            script=script,
        )
        for rank in (0, 1)
    ]
