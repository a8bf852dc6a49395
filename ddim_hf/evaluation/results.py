"""Where figures are kept: results.json, with the same as tables and as a plot beside it."""

import json
import math
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..files import why_not_written, write_text
from ..processes import on_main
from ..reports.metrics import FRECHET
from ..reports.provenance import machine, package_versions
from .rows import line, protocol
from .tables import plot, plot_guidance, tables

PICTURES = ("fid_vs_steps.png", "guidance.png")


class Results:
    """The rows of a JSON file, which several evaluations may fill at the same time.

    Every process has to call each method, and all see the main process's file.

    Raises:
        ValueError: the file is there and is not such a file, or the table or a picture beside it is there without it:
            it is not of an evaluation, and would be replaced.
        OSError: it cannot be written; this is found before there is a figure to lose.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        if self.file.is_dir():
            raise ValueError(f"output {str(file)!r} is a folder; allowed: a file, such as results.json")
        if self.file.suffix == ".md":
            raise ValueError(f"output is {str(file)!r}; allowed: a file such as results.json (its table is the .md)")
        self.rows = on_main(self._prepare)
        self._asked: list[dict[str, Any]] = []

    def has(self, *rows: dict[str, Any]) -> bool:
        """Whether there is a figure of each of these metrics and protocols, by whichever evaluation."""
        self.rows = on_main(self._read)
        self._asked += [protocol(row) for row in rows]
        known = [protocol(row) for row in self.rows]
        return all(protocol(row) in known for row in rows)

    def asked(self) -> list[dict[str, Any]]:
        """The rows that `has` was asked for and that are there, in that order."""
        known = {json.dumps(protocol(row), sort_keys=True): row for row in self.rows}
        keys = [json.dumps(row, sort_keys=True) for row in self._asked]
        return [known[key] for key in keys if key in known]

    def add(self, *rows: dict[str, Any]):
        """Add or replace figures; the main process writes all files anew and prints them.

        Raises:
            ValueError: a value is not finite.
        """
        for row in rows:
            if not math.isfinite(row["value"]):
                raise ValueError(f"{line(row)}: this is no figure, and is not kept")
        self.rows = on_main(lambda: self._merge(rows))

    def _prepare(self) -> list[dict[str, Any]]:
        """Make the folder, try to write into it, and read what is there."""
        try:
            with self._lock():
                beside = [self.file.with_suffix(".md"), *map(self._picture, PICTURES)]
                if not self.file.is_file() and (others := [file for file in beside if file.is_file()]):
                    raise ValueError(
                        f"output is {str(self.file)!r}, and {others[0].name} is there without it, to be replaced; "
                        "allowed: another name, or none of this name there"
                    )
                return self._read()
        except OSError as error:
            raise OSError(f"--output {str(self.file)!r} cannot be written: {why_not_written(error)}") from error

    def _read(self) -> list[dict[str, Any]]:
        return read_rows(self.file) if self.file.is_file() else []

    def _lock(self) -> FileLock:
        """Another evaluation may read, add and write at the same time: one after the other."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.file.with_name(f".{self.file.name}.lock"))

    def _picture(self, name: str) -> Path:
        """A picture beside the file, of this name for results.json: other files in the folder have pictures too."""
        return self.file.with_name(name if self.file.stem == "results" else f"{self.file.stem}-{name}")

    def _merge(self, rows: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        """Add to what the file holds by now, and write all of it; return that."""
        with self._lock():
            new, where = [protocol(row) for row in rows], {"machine": machine(), "versions": package_versions()}
            merged = [row for row in self._read() if protocol(row) not in new] + [row | where for row in rows]
            write_text(self.file, json.dumps({"results": merged}, indent=2, allow_nan=False) + "\n")
            write_text(self.file.with_suffix(".md"), tables(merged))
            if any(row["metric"] in FRECHET for row in rows):
                plot(merged, self._picture(PICTURES[0]))
            if {row.get("guidance_scale") for row in merged} - {None, 1}:
                plot_guidance(merged, self._picture(PICTURES[1]))
        for row in rows:
            print(line(row), flush=True)
        return merged


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file. Where one does not say on which machine and with which packages it was measured, as
    in files of before, it was with those of the file.

    Raises ValueError for another file.
    """
    try:
        content = json.loads(file.read_text())
        where = {key: content[key] for key in ("machine", "versions") if key in content}
        # Earlier versions wrote NaN, which is neither a figure nor JSON: it is measured again.
        rows = [row for row in content["results"] if row["metric"] and math.isfinite(row["value"])]
        return [row | where | row for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a results file: give another --output") from error
