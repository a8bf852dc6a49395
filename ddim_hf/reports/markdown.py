"""Markdown tables, and figures in the form of the paper's table 1."""

from typing import Any


def grid(rows: list[dict[str, Any]]) -> str:
    """The values of rows that differ in the sampler alone: eta and guidance down (sigma_hat last), S across.

    Of several schedules that were fitted for one S each has its value in the cell, with its hash.
    """
    steps = sorted({row.get("num_inference_steps") or 0 for row in rows})
    noises = sorted({noise(row) for row in rows})
    cells: dict[tuple, dict[str | None, str]] = {}
    for row in rows:
        cell = cells.setdefault((noise(row), row.get("num_inference_steps") or 0), {})
        cell[row.get("schedule")] = shown(row["value"])
    head = ["eta", *(f"S = {count}" if count else "" for count in steps)]
    return table(head, [[kind[-1], *(_cell(cells.get((kind, count), {})) for count in steps)] for kind in noises])


def _cell(values: dict[str | None, str]) -> str:
    if len(values) < 2:
        return "".join(values.values())
    return ", ".join(f"{value} (schedule {str(schedule)[:8]})" for schedule, value in values.items())


def noise(row: dict[str, Any]) -> tuple[float, float, str]:
    """How much noise a row's sampler adds, and its guidance: both as its place in a table, and their name."""
    eta, guidance = row.get("eta"), row.get("guidance_scale")
    led = "" if guidance is None else f", guidance {guidance:g}"
    if row.get("variance") == "sigma_hat":
        eta = row.get("eta", 1.0)
        return 2.0 + eta, guidance or 0.0, ("sigma_hat" if eta == 1 else f"sigma_hat, eta {eta:g}") + led
    return (-1.0, 0.0, "") if eta is None else (eta, guidance or 0.0, str(float(eta)) + led)


def shown(value: float) -> str:
    """Two decimals, or four digits of what is below one."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4g}"


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
