"""What would break first with 100,000 runs: store, status, campaign and engine, tried with synthetic records.

Records of as many runs are written to a temporary folder, with histories of five epochs, and each part of the library
that walks over them is timed once: listing, `nladv status`, reading them all, what a campaign finds missing, and a plan
for the engine. Snakemake itself plans as many jobs of one rule (a dry run), up to a number from which it takes minutes.
Nothing is required: these are figures for the page `plan`, which takes them from `data/results/benchmarks`.

Run: this script, with `--runs N [N ...]` and `--jobs N [N ...]`; with `--keep`, the result is written to that folder.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import FOLDER, finish

from nladv_core import grid, runs
from nladv_core.checkpoints import write
from nladv_core.recipes import Recipe
from nladv_core.specs import RunSpec
from nladv_core.store import Store, code_version

KEPT = Path(__file__).resolve().parents[1] / "data" / "results" / "benchmarks"
SPEC = RunSpec(data="cifar10", net="resnet56", recipe=Recipe(epochs=60, lr=0.1, batch=256), omega=0.001)

_SNAKEFILE = """
rule all:
    input:
        expand("marks/{n}", n=range(int(config["jobs"]))),
rule run:
    output:
        touch("marks/{n}"),
    shell:
        "true"
"""


def records(folder: Path, specs: list[RunSpec]) -> int:
    """Write a record for each; bytes on disk."""
    row = {"epoch": 1, "train_loss": 0.12345678, "train_accuracy": 0.98765432, "lr": 0.1, "active": list(range(55))}
    rest = {"metrics": {"test_accuracy": 0.9, "napl": 5.0}, "units": [], "wall_s": 1.0, "device": "cpu"}
    rest |= {"torch": "2", "python": "3", "code": code_version(), "data": {}, "parent": None, "created": ""}
    total = 0
    for spec in specs:
        record = {"key": spec.key(), "spec": spec.to_json(), "files": {}, "history": [row] * 5, **rest}
        total += (folder / f"{spec.key()}.json").write_text(json.dumps(record))
    return total


def seconds(call: Callable[[], Any]) -> float:
    """Processor time, that of child processes included: what else the machine does has no part in it."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = used()
    call()
    return used() - start


def store(count: int) -> list[dict[str, Any]]:
    """Times of all that walks over `count` records."""
    specs = [replace(SPEC, seed=seed) for seed in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = records(folder, specs)
        own = Store(folder, also=())
        environment = os.environ | {"NLADV_STORE": name}
        status = [sys.executable, "-m", "nladv_core.cli", "status"]
        subprocess.run(status, env=environment, check=True, stdout=subprocess.DEVNULL)
        more = [replace(SPEC, seed=count + seed) for seed in range(count)]
        steps: dict[str, Callable[[], Any]] = {
            "list the keys": lambda: list(own.keys()),
            "nladv status": lambda: subprocess.run(status, env=environment, check=True, stdout=subprocess.DEVNULL),
            "read every record": lambda: [own.record(spec) for spec in specs],
            "find what is missing, all done": lambda: runs.missing(specs, own, refresh=False),
            "find what is missing, none done": lambda: runs.missing(more, own, refresh=False),
            "plan batches for the engine": lambda: grid._batches({spec.key(): spec for spec in more}, {}, 300.0),
            "hand out 1,000 runs of a campaign": lambda: hand_out(more, 1000),
        }
        rows = [{"what": what, "count": count, "seconds": seconds(call)} for what, call in steps.items()]
    rows.append({"what": "bytes of records with 5 epochs each", "count": count, "bytes": size})
    for row in rows:
        print(row, flush=True)
    return rows


def hand_out(specs: list[RunSpec], number: int) -> None:
    schedule = runs.Schedule({spec.key(): spec for spec in specs}, progress=False)
    for _ in range(min(number, len(specs))):
        schedule.next()


def engine(count: int) -> dict[str, Any]:
    """Seconds and bytes that Snakemake takes to plan `count` jobs of one rule."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "Snakefile", _SNAKEFILE.encode())
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", "1"]
        jobs = ["--config", f"jobs={count}"]
        taken = seconds(lambda: subprocess.run([*command, *jobs], cwd=folder, check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    row = {"what": "Snakemake plans the jobs", "count": count, "seconds": taken, "bytes": peak}
    print(row, flush=True)
    return row


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--jobs", type=int, nargs="*", default=[100, 1_000])
    parser.add_argument(
        "--keep", action="store_true", help=f"write the result to {KEPT.relative_to(KEPT.parents[2])} as well"
    )
    given = parser.parse_args()
    rows = [engine(count) for count in given.jobs] + [row for count in given.runs for row in store(count)]
    status = finish("scale", [], rows=rows)
    if given.keep:
        KEPT.mkdir(parents=True, exist_ok=True)
        write(KEPT / "scale.json", (FOLDER / "scale.json").read_bytes())
    return status


if __name__ == "__main__":
    sys.exit(main())
