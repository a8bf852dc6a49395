"""What the tests of evaluation measure with and on: small feature extractors, a tiny model, folders of images."""

from pathlib import Path

import numpy as np
import torch
from conftest import tiny_unet
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom


class Features(torch.nn.Module):
    """Eight filters, their means and maxima: features [N, 16] of float images 0..255."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x / 255))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Layers(torch.nn.Module):
    """Inception's interface: images in about [-1, 1] to features [N, 2048]."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 9, stride=8)

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 8).flatten(1)


class Inception(torch.nn.Module):
    """What clean-fid expects in inception-2015-12-05.pt."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x, return_features: bool = True):
        x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear")
        return self.layers((x - 128) / 128)


def save_files(folder: Path) -> Path:
    """TorchScript files, `features.pt` and `inception.pt`, and a model, `tiny`."""
    torch.manual_seed(0)
    torch.jit.script(Features()).save(folder / "features.pt")
    torch.jit.script(Inception()).save(folder / "inception.pt")
    DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom()).save_pretrained(folder / "tiny")
    return folder


def save_folders(root: Path) -> Path:
    """Two folders of colour images of 16 pixels: smooth ones, and the same kind with noise."""
    random = np.random.default_rng(0)
    for name, noise in (("a", 0), ("b", 30)):
        (root / name).mkdir()
        for i in range(60):
            small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((16, 16))
            pixels = np.asarray(small) + noise * random.standard_normal((16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:03d}.png")
    return root


def pixels(folder: Path) -> torch.Tensor:
    """All images of such a folder, uint8 [N, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in sorted(folder.iterdir())])
