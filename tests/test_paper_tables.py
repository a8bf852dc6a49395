"""make paper-tables: the DDIM paper's tables beside what is measured, end to end on stand-ins."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hub_models import published
from PIL import Image
from training_runs import ROOT, save_features

from ddim_hf import build_unet

SCRIPT = ROOT / "examples/paper_tables.py"


@pytest.fixture
def words(hub, tmp_path, monkeypatch):
    """A tiny network in the layout of google/ddpm-cifar10-32 at its place, images, features; the call's arguments."""
    torch.manual_seed(0)
    tiny = dict(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1)
    DDPMPipeline(build_unet("cifar10-128", **tiny), DDPMScheduler()).save_pretrained(tmp_path / "model")
    hub.add_repo("google/ddpm-cifar10-32", published(tmp_path / "model"))
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / f"{number}.png")
    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    given = ["--reference", tmp_path / "data", "--output_dir", tmp_path / "out", "--num_inference_steps", "10"]
    given += ["--num_images", 4, "--data_images", 2, "--max_batch_size", 4]
    return [*map(str, given), "--feature_extractor", save_features(tmp_path / "features.pt", 64)]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_each_figure_stands_beside_the_papers(words, tmp_path, monkeypatch, capsys):
    """Each cell of a column has the paper's figure, the measured one, a second seed's, and the difference, and says
    whether that is chance; a second call measures nothing anew."""
    call(monkeypatch, *words)
    assert capsys.readouterr().out.count("frechet_distance ") == 2 * 5
    rows = json.loads((tmp_path / "out/results.json").read_text())["results"]
    call(monkeypatch, *words)
    said = capsys.readouterr().out
    assert "frechet_distance " not in said and (tmp_path / "out/tables.md").read_text() in said

    shown = {
        line[0]: line[1:]
        for line in ([cell.strip() for cell in text.split("|")[1:-1]] for text in said.splitlines())
        if line
    }
    paper = {"eta 0": 13.36, "eta 0.2": 14.04, "eta 0.5": 16.66, "eta 1": 41.07, "sigma_hat": 367.43}
    distances = {
        (row["eta"], row["variance"], row["seed"]): row["value"]
        for row in rows
        if "seed" in row and row["metric"] == "frechet_distance"
    }
    assert {row.get("tau") for row in rows} == {"quad"}
    pairs = []
    for name, figure in paper.items():
        key = (1.0, "sigma_hat") if name == "sigma_hat" else (float(name.removeprefix("eta ")), "sigma")
        first, second = distances[*key, 0], distances[*key, 4]
        cells = shown[name]
        assert cells[0] == "10" and float(cells[1]) == pytest.approx(figure, abs=0.006)
        assert [float(cells[2]), float(cells[3])] == pytest.approx([first, second], rel=1e-3, abs=0.006)
        assert float(cells[4]) == pytest.approx(first - figure, rel=1e-2)
        pairs.append((first, second, figure, cells[5]))
    spread = np.sqrt(np.mean([((a - b) / (a + b)) ** 2 * 2 for a, b, *_ in pairs]))
    assert [answer for *_, answer in pairs] == [
        "yes" if abs(a - figure) <= 2 * np.sqrt(2) * spread * a else "no" for a, _, figure, _ in pairs
    ]
    (error,) = [row["value"] for row in rows if row["metric"] == "reconstruction_mse"]
    assert shown["10"][0] == "0.014" and float(shown["10"][1]) == pytest.approx(error, rel=0.05)
    assert shown["10"][3] == ("yes" if abs(error - 0.014) <= 0.0005 else "no")


def test_a_dry_run_counts_passes(words, tmp_path, monkeypatch, capsys):
    """--dry_run prints the passes of each cell of all the paper's, and their time, and measures nothing."""
    where = words.index("--num_inference_steps")
    call(monkeypatch, *words[:where], *words[where + 2 :], "--dry_run")
    said = capsys.readouterr().out
    assert said.count("\n| ") == 5 * 5 + 7 + 1 and "| sigma_hat | 1000 | 8,000 |" in said
    assert "| reconstruction | 500 | 2,000 |" in said
    total = 2 * 4 * 5 * (10 + 20 + 50 + 100 + 1000) + 2 * 2 * (10 + 20 + 50 + 100 + 200 + 500 + 1000)
    assert re.search(rf"32 cells, {total:,} passes: about \d+ \w+ on one cpu, by a trial of [\d.e+]+ a second", said)
    assert not (tmp_path / "out").exists()


def test_a_table_without_cells_is_left_out():
    """S = 200, which table 2 alone has, gives table 2 alone."""
    script = runpy.run_path(str(SCRIPT))
    script["keep_steps"]([200])
    text = script["beside_the_paper"]({}, {}, {200: 0.0005})
    assert "nan" not in text and "Table 1" not in text and "| 200 | 0.0004 | 0.0005 | +0.0001 | no |" in text


def test_other_steps_are_refused(words, monkeypatch, capsys):
    """A column that the paper does not have is one line."""
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words, "--num_inference_steps", "11")
    assert (
        end.value.code == 2
        and "[11]; allowed: those of the paper, [10, 20, 50, 100, 200, 500, 1000]" in capsys.readouterr().err
    )
