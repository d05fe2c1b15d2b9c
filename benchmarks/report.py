"""What all benchmarks write, and the one table that `make bench` ends with.

A script leaves `build/benchmarks/<name>.json`: its own measurements, and under `table` one row for each figure that is
quoted, all in the same words. Run as a script this prints the rows of all such files.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "build" / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: both sides measured in one run of a script, in turn.

    Attributes:
        what: the work and the device.
        baseline, ours: what either side is or took, in words, with units.
        ratio: how many times better than the baseline; of costs, ours / baseline.
        required: the bar, or None where the figure is only told.
        costs: whether `ratio` is to stay below the bar rather than above it.
    """

    what: str
    baseline: str
    ours: str
    ratio: float
    required: float | None = None
    costs: bool = False

    @property
    def missed(self) -> bool:
        """Whether the bar was not met."""
        if self.required is None:
            return False
        return self.ratio > self.required if self.costs else self.ratio < self.required

    def __str__(self) -> str:
        bar = "" if self.required is None else f"{'at most' if self.costs else 'at least'} {self.required:g}"
        verdict = "" if self.required is None else "MISSED" if self.missed else "met"
        return f"{self.what:44} {self.baseline:>24} {self.ours:>24} {self.ratio:8.2f}  {bar:14} {verdict}".rstrip()


def finish(name: str, table: Sequence[Row], missed: Sequence[str] = (), **told: Any) -> int:
    """Write `<name>.json` and print what was missed; the exit status: 1 if anything was.

    Args:
        name: of the script.
        table: the figures that are quoted.
        missed: in words, what was missed besides bars of `table`.
        told: whatever else belongs into the file.
    """
    import torch

    missed = [*missed, *(str(row) for row in table if row.missed)]
    found = {"torch": torch.__version__, "table": [asdict(row) for row in table], "missed": missed} | told
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for failure in missed:
        print("MISSED:", failure)
    return 1 if missed else 0


def main() -> int:
    print(f"{'what':44} {'baseline':>24} {'ours':>24} {'ratio':>8}  required")
    missed = False
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text())
        for row in found.get("table", []):
            print(Row(**row))
        missed = missed or bool(found.get("missed"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
