"""What the tests of faults write down for the page `reliability`: only when asked, so that a test changes no file.

`NLADV_RECORD=1` before pytest makes each of them write `data/results/reliability/<name>.json`, and do the full number
of injections where a shorter one serves otherwise.
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from nladv_core.store import code_version

FOLDER = Path(__file__).parents[1] / "data" / "results" / "reliability"
RECORDING = os.environ.get("NLADV_RECORD") == "1"


def full(many: int, few: int) -> int:
    """How often to inject: `many` where evidence is taken, `few` in an ordinary run."""
    return many if RECORDING else few


class Evidence:
    """Injections and what came of them, counted under a short name of the fault."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def note(self, injected: str, outcome: str, times: int = 1) -> None:
        """Something was injected, and this came of it."""
        self.counts.setdefault(injected, Counter())[outcome] += times


# What this process has written down so far: the cases of a test add up, those of another day are replaced.
_WRITTEN: dict[tuple[str, str], tuple[Counter[str], float]] = {}


@contextmanager
def evidence(name: str) -> Iterator[Evidence]:
    """Counts injections; what a test that passed has counted is added to the record `name`, when asked."""
    found, began = Evidence(), time.perf_counter()
    yield found
    if not RECORDING:
        return
    path = FOLDER / f"{name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"faults": {}}
    for injected, counted in found.counts.items():
        before, seconds = _WRITTEN.get((str(path), injected), (Counter(), 0.0))
        outcomes, seconds = before + counted, seconds + (time.perf_counter() - began) / len(found.counts)
        _WRITTEN[str(path), injected] = outcomes, seconds
        record["faults"][injected] = {
            "outcomes": dict(sorted(outcomes.items())),
            "seconds": round(seconds, 1),
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__.partition("+")[0],
            "code": code_version()["source"],
        }
    record["faults"] = dict(sorted(record["faults"].items()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
