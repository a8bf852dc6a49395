"""Tiny images of known pixels, in every form that the data tests read."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from ddim_hf.data import load_images


def noise(height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write_folder(folder, count=5):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(png(noise(seed=number)))
    return folder


def saved(folder, image, name="0.png", **options):
    folder.mkdir()
    image.save(folder / name, **options)
    return folder


def one(folder, channels=3):
    return load_images(str(folder), resolution=8, channels=channels)[[0]][0].numpy()


def expected(count=5, first=0):
    return np.stack([noise(seed=first + number).transpose(2, 0, 1) for number in range(count)])


def dataset(count=5, columns=("image",), first=0):
    images = {
        column: [{"bytes": png(noise(seed=first + i)), "path": None} for i in range(count)] for column in columns
    }
    features = {column: datasets.Image() for column in columns} | {"label": datasets.Value("int64")}
    return datasets.Dataset.from_dict(images | {"label": list(range(count))}, datasets.Features(features))


def write_configurations(folder, **counts):
    """A dataset of several configurations, so many images each, as its card lists them."""
    folder.mkdir(exist_ok=True)
    lines = ["---", "configs:"]
    for name, count in counts.items():
        dataset(count).to_parquet(folder / f"{name}.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {name}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def error_line(kind, name, **options):
    with pytest.raises(kind) as caught:
        load_images(str(name), **({"resolution": 8} | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)
