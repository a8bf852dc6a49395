"""Where figures are kept: results.json, the same as Markdown tables in the form of the paper's table 1, and a plot."""

import json
from pathlib import Path
from typing import Any

from ..files import write_text
from ..generation import MANIFEST
from ..processes import processes
from ..provenance import machine, package_versions

NAMES = {"fid": "FID", "kid": "KID", "frechet_distance": "Frechet distance", "kernel_distance": "Kernel distance"}
NAMES |= {"denoising_loss": "Denoising loss", "reconstruction_mse": "Reconstruction MSE"}
MEASURED = ("value", "by_timesteps", "seconds", "seconds_features", "seconds_waiting")
DISTANCES = tuple(NAMES)[:4]


class Results:
    """The rows of a JSON file; each is a metric, its value and the protocol it was measured by.

    Raises:
        ValueError: the file is there and is not such a file.
    """

    def __init__(self, file: str | Path):
        self.file, self.rows = Path(file), []
        if self.file.is_dir():
            raise ValueError(f"output {str(file)!r} is a folder; allowed: a file, such as results.json")
        if self.file.suffix == ".md":
            raise ValueError(f"output is {str(file)!r}; allowed: a file such as results.json (its table is the .md)")
        if self.file.is_file():
            try:
                self.rows = json.loads(self.file.read_text())["results"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.file} is not a results file: give another --output") from error

    def has(self, row: dict[str, Any]) -> bool:
        """Whether there is a figure of this metric by this protocol."""
        return _protocol(row) in map(_protocol, self.rows)

    def add(self, row: dict[str, Any]):
        """Add or replace a figure; the main process writes all files anew and prints it."""
        self.rows = [other for other in self.rows if _protocol(other) != _protocol(row)] + [row]
        if not processes().is_main_process:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": self.rows, "versions": package_versions(), "machine": machine()}
        write_text(self.file, json.dumps(content, indent=2) + "\n")
        write_text(self.file.with_suffix(".md"), tables(self.rows))
        if row["metric"] in ("fid", "frechet_distance"):
            plot(self.rows, self.file.with_name("fid_vs_steps.png"))
        print(_line(row), flush=True)


def _protocol(row: dict[str, Any]) -> dict[str, Any]:
    """What makes two figures the same one: where a model lies does not, if its weights are known."""
    left_out = (*MEASURED, "model") if row.get("weights_hash") else MEASURED
    return {key: value for key, value in row.items() if key not in left_out and value is not None}


def _line(row: dict[str, Any]) -> str:
    settings = " ".join(
        f"{key}={row[key]}"
        for key in ("num_inference_steps", "eta", "tau", "variance", "implementation", "split", "num_images")
        if row.get(key) is not None
    )
    text = f"{row['metric']} {row['value']:.6g}  {settings}"
    if "seconds" in row:
        waited, total = row["seconds_waiting"], row["seconds"] or 1
        text += (
            f"  ({row['num_images'] / total:.1f} images/s; features {row['seconds_features']:.1f} s beside the "
            f"sampling, which waited {waited:.1f} of {total:.1f} s, {waited / total:.1%})"
        )
    return text


def read_manifest(images: Path) -> dict[str, Any]:
    """How a folder of images was sampled, where `generate` left its manifest beside it."""
    file = images.parent / MANIFEST
    if images.name != "images" or not file.is_file():
        return {}
    kept = ("model", "weights_hash", "num_inference_steps", "eta", "tau", "variance", "seed")
    manifest = json.loads(file.read_text())
    return {key: manifest[key] for key in kept if key in manifest} | {"implementation": "ddim_hf"}


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each metric and protocol, eta down (sigma_hat last) and S across."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_title(row), []).append(row)
    return "\n".join(f"{title}\n\n{_table(group)}" for title, group in groups.items())


def _title(row: dict[str, Any]) -> str:
    parts = [f"{NAMES.get(row['metric'], row['metric'])}"]
    if row.get("feature_extractor"):
        parts[0] += f" on {row['feature_extractor']} ({row['feature_extractor_hash'][:12]})"
    count = f"{row['num_reference']:,} of " if row.get("num_reference") else ""
    parts += [f"{row['num_images']:,} images", f"{count}{row['reference']} {row.get('split') or ''}".strip()]
    for key in ("tau", "seed", "implementation", "network", "model"):
        if row.get(key) is not None:
            parts.append(f"{key} {row[key]}")
    weights = f" ({row['weights_hash'][:12]})" if row.get("weights_hash") else ""
    return f"**{', '.join(parts)}{weights}**"


def _table(rows: list[dict[str, Any]]) -> str:
    if rows[0]["metric"] == "denoising_loss":
        ranges = rows[-1]["by_timesteps"]
        head = ["all timesteps", *(f"{first:g}-{last:g}" for first, last, _ in ranges)]
        return _markdown(head, [[_shown(rows[-1]["value"]), *(_shown(value) for *_, value in ranges)]])
    if all(row.get("num_inference_steps") is None for row in rows):  # of images, with no sampler
        return _markdown(["value"], [[_shown(rows[-1]["value"])]])
    steps = sorted({row.get("num_inference_steps") or 0 for row in rows})
    kinds = sorted({_kind(row) for row in rows})
    cells = {(_kind(row), row.get("num_inference_steps") or 0): _shown(row["value"]) for row in rows}
    head = ["eta", *(f"S = {count}" if count else "" for count in steps)]
    return _markdown(head, [[kind[1], *(cells.get((kind, count), "") for count in steps)] for kind in kinds])


def _kind(row: dict[str, Any]) -> tuple[float, str]:
    """A row of the table: where it sorts, and its name."""
    if row.get("variance") == "sigma_hat":
        return 2.0, "sigma_hat"
    return (-1.0, "") if row.get("eta") is None else (row["eta"], str(float(row["eta"])))


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.4g}"


def plot(rows: list[dict[str, Any]], file: Path):
    """Distance by S, a line for each eta, tau and implementation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    several = len({row.get("network") for row in rows if row.get("num_inference_steps")}) > 1
    for row in rows:
        if row["metric"] in ("fid", "frechet_distance") and row.get("num_inference_steps"):
            label = f"eta {_kind(row)[1]}, {row['tau']}, {row['implementation']}, {row['num_images']:,} images"
            label += f", {row['network']}" if several and row.get("network") else ""
            name = f"{NAMES[row['metric']]} on {row['feature_extractor']}"
            lines.setdefault(f"{name}, {label}", []).append((row["num_inference_steps"], row["value"]))
    if not lines:
        return
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xscale="log", xlabel="steps S", ylabel="distance")
    axes.legend(fontsize=7)
    figure.tight_layout()
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(file)
    pyplot.close(figure)
