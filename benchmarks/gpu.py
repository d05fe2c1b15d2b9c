"""All there is to do on a day with a GPU, in one call: does the code run there, how fast, and then the paper's runs.

    python benchmarks/gpu.py --minutes 9                       # on the GPU
    python benchmarks/gpu.py --minutes 3 --device cpu --tier smoke      # a rehearsal anywhere

Four steps, each a process of its own with a time of its own; one that fails or overruns is reported and the next one
begins. What is left of the time belongs to the last step:

* *tests*: the core on this device against the CPU (`tests/test_device.py`);
* *benchmark*: `benchmarks/throughput.py`, a short round;
* *chapter*: the runs of chapter 06 at `smoke`;
* *campaign*: `nladv campaign`, as many runs at once as the device bears, the worthiest first.

`--out` (default: build/gpu) holds each step's log, `report.json`, and what the campaign finished or began, as
`runs-N.tar` of at most 15 MB each, to be unpacked into the folder of runs (`NLADV_STORE`) elsewhere. Nothing is
installed; a package that a step needs and that is not there is named in its log.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST = 15_000_000  # bytes of one archive
# Seconds at most for each step before the campaign, and as a share of all the time there is.
LIMITS = {"tests": (120, 0.25), "benchmark": (120, 0.2), "chapter": (60, 0.15)}
KEPT = 0.03  # share of the time for packing
STARTS = 25  # seconds that a campaign takes to load what it needs, where the machine is slow


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; the exit status: 1 if one of them failed."""
    parser = argparse.ArgumentParser(description="All there is to do on a day with a GPU.")
    parser.add_argument("--minutes", type=float, required=True, help="for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tier", default="paper", help="of the campaign (default: paper)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="+", choices=[*LIMITS, "campaign"], help="some of the steps")
    given = parser.parse_args(arguments)
    if not given.minutes > 0:
        parser.error(f"--minutes is {given.minutes:g}, expected more than 0")
    end = time.monotonic() + 60 * given.minutes
    given.out.mkdir(parents=True, exist_ok=True)
    store = Path(os.environ.get("NLADV_STORE", "").strip() or given.out / "runs").absolute()
    environment = {"NLADV_STORE": str(store), "NLADV_TEST_DEVICE": given.device, "NLADV_PROGRESS": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    report: dict[str, Any] = {"device": given.device, "minutes": given.minutes, "machine": machine(given.device)}
    print(report["machine"], flush=True)
    for name in [*LIMITS, "campaign"]:
        if given.only and name not in given.only:
            continue
        left = end - time.monotonic() - KEPT * 60 * given.minutes
        limit = left if name == "campaign" else min(left, LIMITS[name][0], LIMITS[name][1] * 60 * given.minutes)
        report[name] = step(name, command(name, given.device, given.tier, limit), limit, given.out, environment)
        (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    report["packed"] = list(packed(store, given.out))
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"report: {given.out / 'report.json'}; packed: {', '.join(report['packed']) or 'nothing'}")
    return 0 if all(report[name]["status"] == 0 for name in [*LIMITS, "campaign"] if name in report) else 1


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {"gpu": torch.cuda.get_device_name(), "free_gb": round(free / 1e9, 1), "gb": round(total / 1e9, 1)}
        found["cuda"] = torch.version.cuda
    return found


def command(name: str, device: str, tier: str, seconds: float) -> list[str]:
    """What a step executes."""
    nladv = [sys.executable, "-m", "nladv_core.cli"]
    if name == "tests":
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/test_device.py"]
    if name == "benchmark":
        short = ["--network", "resnet20", "--rounds", "2", "--seconds", "5", "--packed", "4"]
        short += ["--images", "256"] if device == "cpu" else []
        return [sys.executable, "benchmarks/throughput.py", "--device", device, *short]
    if name == "chapter":
        return [*nladv, "run", "06_accuracy_and_depth", "--tier", "smoke", "-p", "device", device]
    minutes = max(seconds - STARTS, 1) / 60  # it never overruns its own time, but that begins when it has started
    return [*nladv, "campaign", "--tier", tier, "--minutes", f"{minutes:.3f}", "--device", device]


def step(name: str, words: Sequence[str], limit: float, out: Path, given: dict[str, str]) -> dict[str, Any]:
    """Execute one step: its exit status (None: it overran its time), how long it took, and the end of its log.

    Args:
        limit: seconds; below 1 it is not begun.
        given: further variables of its environment.
    """
    if limit < 1:
        return {"status": None, "seconds": 0.0, "end": ["no time was left for it"]}
    log, began = out / f"{name}.log", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ | given)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
    took = round(time.monotonic() - began, 1)
    how = "overran its time" if status is None else "ok" if status == 0 else f"failed with status {status}"
    print(f"{name}: {how}, {took:.0f} s", flush=True)
    return {"status": status, "seconds": took, "end": log.read_text(errors="replace").strip().splitlines()[-5:]}


def packed(store: Path, out: Path) -> Iterator[str]:
    """Write what is finished or under way in `store` to archives in `out`; their names."""
    for old in out.glob("runs-*.tar"):
        old.unlink()
    parts: list[list[Path]] = []
    size = MOST
    for path in sorted(
        path for path in store.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")
    ):
        size += path.stat().st_size
        if size > MOST:
            parts.append([])
            size = path.stat().st_size
        parts[-1].append(path)
    for number, paths in enumerate(parts, 1):
        with tarfile.open(out / f"runs-{number}.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(store))
        yield f"runs-{number}.tar"


if __name__ == "__main__":
    sys.exit(main())
