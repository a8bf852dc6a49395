"""Rows of results as Markdown tables in the form of the paper's table 1, and as a plot."""

import json
from pathlib import Path
from typing import Any

from ..files import whole_file
from ..reports.markdown import grid, noise, shown, table
from ..reports.metrics import CELL, FRECHET, NAMES
from .rows import differing, protocol


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each metric and protocol, eta down (sigma_hat last) and S across."""
    groups = _groups(rows)
    titles = [_title(group[0]) for group in groups]
    for title in {title for title in titles if titles.count(title) > 1}:
        same = [number for number, other in enumerate(titles) if other == title]
        for number, words in zip(same, differing([groups[number][0] for number in same]), strict=True):
            titles[number] += "".join(f", {key} {value}" for key, value in words.items())
    return "\n".join(f"**{title}**\n\n{_table(group)}" for title, group in zip(titles, groups, strict=True))


def _groups(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows by all of their protocol but their cell: each group is a table, in which no two have one cell."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = {name: value for name, value in protocol(row).items() if name not in CELL}
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(row)
    return list(groups.values())


def _title(row: dict[str, Any]) -> str:
    parts = [NAMES.get(row["metric"], row["metric"])]
    if row.get("feature_extractor"):
        parts[0] += f" on {row['feature_extractor']} ({row['feature_extractor_hash'][:12]})"
    if row.get("classifier"):
        parts[0] += f" by {row['classifier']} ({row['classifier_hash'][:12]})"
    count = f"{row['num_reference']:,} of " if row.get("num_reference") else ""
    parts += [f"{row['num_images']:,} images", f"{count}{row['reference']} {row.get('split') or ''}".strip()]
    for key in ("tau", "seed", "implementation", "network", "model"):
        if row.get(key) is not None:
            parts.append(f"{key} {row[key]}")
    if row.get("weights_hash"):
        parts[-1] += f" ({row['weights_hash'][:12]})"
    if row.get("guide"):
        parts.append(f"guide {row.get('guide_model', '')} ({row['guide'][:12]})".replace("  ", " "))
    return ", ".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    if rows[0]["metric"] == "denoising_loss":
        ranges = rows[-1]["by_timesteps"]
        head = ["all timesteps", *(f"{first:g}-{last:g}" for first, last, _ in ranges)]
        return table(head, [[shown(rows[-1]["value"]), *(shown(value) for *_, value in ranges)]])
    if all(row.get("num_inference_steps") is None for row in rows):  # of images, with no sampler
        return table(["value"], [[shown(rows[-1]["value"])]])
    return grid(rows) + _by_class([row for row in rows if row.get("by_class")])


def _by_class(rows: list[dict[str, Any]]) -> str:
    """The figures of each class, a column for each cell."""
    if not rows:
        return ""
    rows = sorted(rows, key=lambda row: (noise(row), row["num_inference_steps"]))
    head = [f"eta {noise(row)[-1]}, S = {row['num_inference_steps']}" for row in rows]
    names = dict.fromkeys(name for row in rows for name, *_ in row["by_class"])
    values = [{name: shown(value) for name, _, value in row["by_class"]} for row in rows]
    counts = {name: f"{count:,}" for row in rows for name, count, _ in row["by_class"]}
    body = [[name, counts[name], *(cell.get(name, "") for cell in values)] for name in names]
    return "\n" + table(["class", "images", *head], body)


def plot(rows: list[dict[str, Any]], file: Path):
    """Distance by S, a line for each eta and protocol."""
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row["metric"] in FRECHET and row.get("num_inference_steps")]
    if not drawn:
        return
    groups = _groups(drawn)
    lines: dict[str, list[tuple[int, float]]] = {}
    for group, words in zip(groups, differing([group[0] for group in groups]), strict=True):
        for row in group:
            label = ", ".join([f"eta {noise(row)[-1]}", *(f"{key} {value}" for key, value in words.items())])
            lines.setdefault(label, []).append((row["num_inference_steps"], row["value"]))
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    steps = sorted({row["num_inference_steps"] for row in drawn})
    axes.set(xscale="log", xlabel="steps S", ylabel=" / ".join(sorted({NAMES[row["metric"]] for row in drawn})))
    axes.set_xticks(steps, steps)
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.tight_layout()
    with whole_file(file) as beside:
        figure.savefig(beside, format="png", dpi=120)


def plot_guidance(rows: list[dict[str, Any]], file: Path):
    """Distances and label accuracy by guidance, a line for each metric, S and protocol."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    distance = figure.subplots()
    accuracy = distance.twinx()
    for number, ((metric, label), points) in enumerate(lines_by_guidance(rows).items()):
        of_labels = metric == "label_accuracy"
        style = {"marker": "s" if of_labels else "o", "linestyle": "--" if of_labels else "-", "color": f"C{number}"}
        (accuracy if of_labels else distance).plot(*zip(*sorted(points), strict=True), label=label, **style)
    distance.set(xlabel="guidance", ylabel="distance")
    accuracy.set(ylabel="label accuracy (dashed)")
    figure.legend(fontsize=7, loc="outside upper center", ncols=2)
    with whole_file(file) as beside:
        figure.savefig(beside, format="png", dpi=120)


def lines_by_guidance(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Guidance and value of each figure with guidance, and without it what is the same but for that, at guidance 1; by
    metric and label."""
    led, plain = [], {}
    for row in rows:
        if row.get("guidance_scale") not in (None, 1):
            led.append(row)
        elif row.get("guidance_scale") == 1:
            plain[_without_guidance(row)] = row["value"]
        else:  # a model without classes
            plain.setdefault(_without_guidance(row), row["value"])
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for metric in dict.fromkeys(row["metric"] for row in led):
        groups = _groups([row for row in led if row["metric"] == metric])
        for group, words in zip(groups, differing([group[0] for group in groups]), strict=True):
            words |= {"guide": group[0]["guide"][:8]} if group[0].get("guide") else {}
            for row in group:
                name, _, _ = noise(row)[-1].partition(", guidance")
                parts = [NAMES.get(metric, metric), f"S = {row['num_inference_steps']}"]
                parts += [] if row["eta"] == 0 else [f"eta {name}"]
                label = ", ".join([*parts, *(f"{key} {value}" for key, value in words.items())])
                line, at_one = lines.setdefault((metric, label), []), plain.get(_without_guidance(row))
                line.append((row["guidance_scale"], row["value"]))
                if at_one is not None and (1.0, at_one) not in line:
                    line.append((1.0, at_one))
    return {key: sorted(points) for key, points in lines.items()}


def _without_guidance(row: dict[str, Any]) -> str:
    """What a row is but for its guidance, and the fitted schedule that belongs to that."""
    left_out = ("guidance_scale", "guidance_interval", "guide", "schedule")
    return json.dumps({key: value for key, value in protocol(row).items() if key not in left_out}, sort_keys=True)
