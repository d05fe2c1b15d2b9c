"""Start-up: what importing the library costs beside torch, and `nladv status` with 10,000 records.

Processor time of fresh processes, in turn. The package's own import loads nothing; so the time with everything that
linearization and path lengths need is measured as well, and that is what the bar stands for.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from report import Row, finish

from nladv_core.recipes import Recipe
from nladv_core.specs import RunSpec
from nladv_core.store import code_version

ROUNDS = 7
NEEDED = 1.3
RECORDS, SECONDS = 10_000, 2.0


def processor_time(command: Sequence[str], **environment: str) -> float:
    """Seconds of a fresh process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def records(folder: Path, count: int) -> None:
    """Records of `count` runs with a history as long as the paper's."""
    row = {"epoch": 1, "train_loss": 0.12345678, "train_accuracy": 0.98765432, "lr": 0.1, "active": list(range(55))}
    rest = {"metrics": {"test_accuracy": 0.9}, "units": [], "wall_s": 1.0, "device": "cpu", "torch": "2", "python": "3"}
    rest |= {"code": code_version(), "data": {}, "parent": None, "created": "", "history": [row] * 60}
    for seed in range(count):
        spec = RunSpec(data="digits", net="resnet8", recipe=Recipe(epochs=60, lr=0.1, batch=64, flip=False), seed=seed)
        name = f"{spec.key()}.weights.safetensors"
        (folder / name).touch()
        record = {"key": spec.key(), "spec": spec.to_json(), "files": {"weights": {"name": name, "sha256": ""}}, **rest}
        (folder / f"{spec.key()}.json").write_text(json.dumps(record))


def main() -> int:
    """Measure, print, write JSON; 1 if a bar is missed."""
    imports = {
        "torch": "import torch",
        "nladv_core": "import nladv_core",
        "nladv_core, all that it offers": "import nladv_core as nl; [getattr(nl, name) for name in nl.__all__]",
    }
    for code in imports.values():
        processor_time(["-c", code])
    taken = [{name: processor_time(["-c", code]) for name, code in imports.items()} for _ in range(ROUNDS)]
    torch_s = statistics.median(times["torch"] for times in taken)
    rows = []
    for name in list(imports)[1:]:
        ours = statistics.median(times[name] for times in taken)
        ratio = statistics.median(times[name] / times["torch"] for times in taken)
        sides = f"torch {torch_s:.2f} s", f"{ours:.2f} s"
        rows.append(
            Row(what=f"import {name}", baseline=sides[0], ours=sides[1], ratio=ratio, required=NEEDED, costs=True)
        )
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        records(Path(folder), RECORDS)
        command = ["-m", "nladv_core.cli", "status"]
        times = [processor_time(command, NLADV_STORE=folder) for _ in range(4)][1:]
    status = statistics.median(times)
    what = f"nladv status, {RECORDS:,} records"
    rows.append(
        Row(
            what=what,
            baseline=f"{SECONDS:g} s allowed",
            ours=f"{status:.2f} s",
            ratio=status / SECONDS,
            required=1,
            costs=True,
        )
    )
    print(rows[-1], flush=True)
    return finish("startup", rows, imports=taken, status=times)


if __name__ == "__main__":
    sys.exit(main())
