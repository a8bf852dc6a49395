"""Results: a file that several evaluations fill, and tables in which nothing that differs shares a cell."""

import itertools
import json
import math
import multiprocessing
from pathlib import Path

import pytest

from ddim_hf.evaluation.results import Results
from ddim_hf.evaluation.tables import lines_by_guidance, tables
from ddim_hf.reports.provenance import machine, package_versions

ROOT = Path(__file__).resolve().parents[2]
ROW = {"metric": "fid", "num_images": 9, "reference": "x", "tau": "uniform", "num_inference_steps": 10, "eta": 0.0}


def test_tables_tell_networks_and_etas_apart():
    """Figures that differ in how the network ran stand in two tables, and etas have all their digits."""
    row = {"metric": "fid", "num_images": 9, "reference": "x", "tau": "uniform", "num_inference_steps": 10}
    rows = [row | {"eta": eta, "network": "float32", "value": 10.0 + eta} for eta in (0.0, 0.2, 0.25, 1.0)]
    text = tables([*rows, row | {"eta": 0.0, "network": "fast sampling, bfloat16", "value": 11.5}])
    assert "| 0.0 | 10.00 |\n| 0.2 | 10.20 |\n| 0.25 | 10.25 |\n| 1.0 | 11.00 |\n" in text
    assert "network float32**" in text and "network fast sampling, bfloat16**\n\n| eta | S = 10 |" in text


@pytest.mark.parametrize(
    "key, values, told",
    [
        ("reference_hash", ["a" * 32, "b" * 32], ["aaaaaaaa", "bbbbbbbb"]),
        ("images_hash", ["a" * 32, "b" * 32], ["aaaaaaaa", "bbbbbbbb"]),
        ("scheduler", [None, {"prediction_type": "v_prediction"}], ["", "prediction_type v_prediction"]),
        ("resolution", [8, 16], ["resolution 8", "resolution 16"]),
        ("mode", ["clean", "legacy_pytorch"], ["mode clean", "mode legacy_pytorch"]),
    ],
)
def test_whatever_differs_has_a_table_of_its_own(key, values, told):
    """Two figures whose protocols differ in anything stand in two tables, whose titles say in what, in few words."""
    text = tables([ROW | {key: value, "value": 10.0 + number} for number, value in enumerate(values)])
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert len(titles) == 2 and "| 10.00 |" in text and "| 11.00 |" in text
    assert all(words in title and len(title) < 120 for words, title in zip(told, titles, strict=True))
    assert titles[0] != titles[1]


def test_two_schedules_for_one_number_of_steps_are_told_apart():
    """Where a schedule was fitted anew both figures stand in the cell, each with the schedule's hash; one has none."""
    fitted = ROW | {"implementation": "ddim_hf calibrated", "num_inference_steps": 5, "schedule": "a" * 32}
    rows = [fitted | {"value": 3.0}, fitted | {"value": 2.0, "schedule": "b" * 32}]
    rows.append(fitted | {"value": 1.5, "num_inference_steps": 10})
    assert "| 0.0 | 3.00 (schedule aaaaaaaa), 2.00 (schedule bbbbbbbb) | 1.50 |" in tables(rows)


def test_sigma_hat_at_another_eta_is_another_line():
    """A folder sampled with sigma_hat at another eta than 1 does not take the place of that at 1."""
    text = tables([ROW | {"variance": "sigma_hat", "eta": eta, "value": 10 + eta} for eta in (1.0, 0.5)])
    assert "| sigma_hat | 11.00 |" in text and "| sigma_hat, eta 0.5 | 10.50 |" in text


def test_a_figure_within_an_interval_is_known_again(tmp_path):
    """A figure with a guidance interval, which a cell holds as a tuple and JSON as a list, is found in the file and
    replaced there."""
    row = ROW | {"guidance_scale": 2.0, "guidance_interval": (100.0, 800.0)}
    Results(tmp_path / "r.json").add(row | {"value": 1.0})
    again = Results(tmp_path / "r.json")
    assert again.has(row) and [found["value"] for found in again.asked()] == [1.0]
    again.add(row | {"value": 2.0})
    assert [found["value"] for found in again.rows] == [2.0]


def test_a_line_by_guidance_is_of_one_protocol():
    """Figures by guidance that differ in anything but guidance are on two lines, whose labels say in what."""
    first = [ROW | {"guidance_scale": scale, "seed": 0, "value": scale} for scale in (1.0, 2.0)]
    others = [{"seed": 9}, {"num_images": 8}, {"weights_hash": "a" * 64}, {"num_inference_steps": 20}]
    others += [{"eta": 1.0, "variance": "sigma"}, {"eta": 1.0, "variance": "sigma_hat"}]
    rows = [row | other for other in [{}, *others] for row in first]
    lines = lines_by_guidance([*rows, ROW | {"value": 3.0}])
    assert list(lines.values()) == [[(1.0, 1.0), (2.0, 2.0)]] * 7
    assert set(lines_by_guidance(first)) == {("fid", "FID, S = 10")}
    guided = [ROW | {"guidance_scale": 2.0, "guide": letter * 64, "value": 5.0} for letter in "ab"]
    assert lines_by_guidance([ROW | {"value": 3.0}, *guided]) == {
        ("fid", f"FID, S = 10, guide {letter * 8}"): [(1.0, 3.0), (2.0, 5.0)] for letter in "ab"
    }
    (points,) = lines_by_guidance([first[0], first[1] | {"guidance_interval": [0.0, 9.0]}]).values()
    assert points == [(1.0, 1.0), (2.0, 2.0)]


def test_the_repositorys_own_results_are_read(tmp_path):
    """A file of figures from before is read, gives the same tables, and a figure that is added leaves them there."""
    file = tmp_path / "results.json"
    file.write_text((ROOT / "models/ddim-cifar10-64/results.json").read_text())
    results = Results(file)
    count, before = len(results.rows), tables(results.rows)
    kinds = ("implementation", "network", "num_images", "tau")
    protocols = {tuple(row[kind] for kind in kinds) for row in results.rows if "eta" in row}
    assert before.count("| eta |") == len(protocols) and max(map(len, before.splitlines())) < 250
    again = next(row for row in results.rows if row.get("num_inference_steps") == 20)
    results.add(again | {"reference_hash": "c" * 32, "value": 1.5})
    assert results.rows[:-1] == json.loads((ROOT / "models/ddim-cifar10-64/results.json").read_text())["results"]
    assert len(results.rows) == len(json.loads(file.read_text())["results"]) == count + 1
    assert "reference_hash cccccccc" in file.with_suffix(".md").read_text()


def test_each_figure_keeps_its_own_machine(tmp_path):
    """A row says where it was measured, which is none of its protocol; one of a file of before says that of the file,
    whichever machine adds to it."""
    file, there = tmp_path / "results.json", {"machine": "Linux x86_64, an abacus", "versions": {"torch": "0.1"}}
    file.write_text(json.dumps({"results": [ROW | {"value": 2.0}], **there}))
    results = Results(file)
    assert results.has(ROW)
    results.add(ROW | {"eta": 1.0, "value": 3.0})
    here = {"machine": machine(), "versions": package_versions()}
    assert json.loads(file.read_text()) == {
        "results": [ROW | {"value": 2.0} | there, ROW | {"eta": 1.0, "value": 3.0} | here]
    }
    assert "abacus" not in tables(results.rows)


def test_a_value_that_is_no_number_is_not_kept(tmp_path):
    """NaN is refused, so that the file is JSON; a file that holds one is read without it."""
    results = Results(tmp_path / "r.json")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="is no figure"):
            results.add(ROW | {"value": value})
    (tmp_path / "old.json").write_text(json.dumps({"results": [ROW | {"value": math.nan}, ROW | {"value": 2.0}]}))
    old = Results(tmp_path / "old.json")
    assert [row["value"] for row in old.rows] == [2.0] and old.has(ROW)
    assert not Results(tmp_path / "r.json").has(ROW)


def _fill(file: Path, first: int):
    results = Results(file)
    for number in range(first, first + 5):
        results.add(ROW | {"metric": "denoising_loss", "seed": number, "value": 1.0, "by_timesteps": []})


def test_two_evaluations_of_one_file_keep_all_rows(tmp_path):
    """Of two processes that add figures to one file at the same time, none loses one of the other's."""
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_fill, args=(tmp_path / "r.json", first)) for first in (0, 100)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    assert sorted(row["seed"] for row in rows) == [*range(5), *range(100, 105)]


def test_two_files_of_one_folder_have_pictures_of_their_own(tmp_path):
    """Each file's plots are named by it, and hold no figure of the other; those of results.json as ever."""
    cell = ROW | {"num_inference_steps": 5, "eta": 0.0, "value": 1.0, "metric": "frechet_distance"}
    for name in ("results", "mine"):
        Results(tmp_path / f"{name}.json").add(*(cell | {"guidance_scale": scale} for scale in (1.0, 2.0)))
    pictures = {"fid_vs_steps.png", "guidance.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == pictures | {f"mine-{name}" for name in pictures}


@pytest.mark.parametrize("name", ["notes.md", "notes-fid_vs_steps.png", "notes-guidance.png"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    """A table or picture that lies there without the JSON file, and so was not written with it, is refused at once and
    stays; beside the JSON file it is written anew."""
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(
        ValueError, match=f"notes.json', and {name} is there without it, to be replaced; allowed: another"
    ):
        Results(tmp_path / "notes.json")
    assert (tmp_path / name).read_text() == "somebody's"
    Results(tmp_path / "other.json").add(ROW | {"value": 1.0})
    Results(tmp_path / "other.json").add(ROW | {"value": 2.0})
    assert "2.00" in (tmp_path / "other.md").read_text()


def test_a_figure_of_another_evaluation_counts(tmp_path):
    """What another evaluation has measured since this one began is not measured again."""
    mine, theirs = Results(tmp_path / "r.json"), Results(tmp_path / "r.json")
    theirs.add(ROW | {"value": 3.0})
    assert mine.has(ROW) and not mine.has(ROW, ROW | {"metric": "kid"})


def cells_of(text: str, tau: str) -> dict[tuple[str, int], float]:
    """The figures of the table of this tau, by eta (or sigma_hat) and S."""
    (head, _, *rows) = text.split(f"tau {tau}, ")[1].split("\n\n")[1].splitlines()
    steps = [int(name.removeprefix("S = ")) for name in head.strip("| ").split(" | ")[1:]]
    parts = [[part.strip() for part in row.split("|")[1:-1]] for row in rows]
    return {
        (noise, s): float(value) for noise, *values in parts for s, value in zip(steps, values, strict=True) if value
    }


def test_what_the_report_says_of_its_tables_holds():
    """docs/results.md shows the tables of results.json, and its sentences hold in all the cells that they name."""
    rows = json.loads((ROOT / "models/ddim-cifar10-64/results.json").read_text())["results"]
    text = (ROOT / "docs/results.md").read_text()
    assert all(table in text for table in tables(rows).split("\n\n**"))
    of = {tau: cells_of(text, tau) for tau in ("uniform", "quad")}
    etas, every = ("0.0", "0.2", "0.5", "1.0", "sigma_hat"), (5, 10, 20, 50, 100)
    assert all(set(cells) == set(itertools.product(etas, every)) for cells in of.values())
    worst = {(tau, s): max(etas, key=lambda eta: of[tau][eta, s]) for tau in of for s in every}
    assert worst == dict.fromkeys(worst, "sigma_hat") | {("quad", 5): "1.0"}

    def behind(eta: str, *steps: int) -> list[list[float]]:
        """By how much an eta is behind eta 0, for each tau."""
        return [[cells[eta, s] - cells["0.0", s] for s in steps] for cells in of.values()]

    assert all(costs == sorted(costs, reverse=True) for eta in ("0.5", "1.0") for costs in behind(eta, *every))
    for eta, least, most in (("0.5", 0.95, 3.75), ("1.0", 7.5, 44.5)):
        costs = sum(behind(eta, 5, 10, 20), [])
        assert least < min(costs) and max(costs) < most
    for eta, s, most in (("0.2", 50, 0.5), ("0.5", 50, 0.5), ("0.2", 100, 0.7), ("0.5", 100, 0.7), ("1.0", 100, 0.7)):
        assert all(abs(cost) < most for (cost,) in behind(eta, s))
    helped = {key: of["uniform"][key] - of["quad"][key] for key in of["quad"]}
    assert {key for key, gain in helped.items() if gain > 0} == {
        *(("sigma_hat", s) for s in every),
        ("1.0", 20),
        ("1.0", 50),
        ("0.5", 10),
    }
    assert round(helped["1.0", 50], 1) == 0.1 and round(helped["0.5", 10], 1) == 0.4
    headline = text.split("**5,000 images**")[1]
    plain, fitted = cells_of(headline, "uniform"), cells_of(headline.split("| 0.0 |", 1)[1], "uniform")
    assert fitted["0.0", 10] < plain["0.0", 10] / 2
    assert [round(fitted["0.0", s] - plain["0.0", 50], 1) for s in (10, 20)] == [0.2, -0.4]


def test_a_file_that_cannot_be_written_is_told_before_there_is_a_figure(tmp_path):
    """An output below a file, where no folder can be made, is one line at once, and names the flag."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"--output .*taken/results\.json' cannot be written"):
        Results(tmp_path / "taken" / "results.json")
