"""Path lengths against the paper's algorithm: one thread, float64, both sides in one run, equal to 1e-9.

The baseline is the forward form of §3.1 (`tests/paper_algorithm.py`): one modified forward pass whose batch axis holds
the histogram. It gives mean and histogram at once, so both of ours are set against its whole time. Ours: the *first
call* analyses the structure; a *repeated* one reads the masks, which change before each.

What is required is that the two agree to 1e-9: mean, and every bin of the histogram. Both are float64 and share no
code, so agreement says that neither has lost more digits than that, unless both lost the same. Theory says how many the
baseline can lose: it only adds, multiplies and divides nonnegative numbers, so no digits cancel, and a bin's relative
error is a product of N factors 1 + δ with |δ| <= u = 1.1e-16, N = Σ fan-in + 5·depth. If roundings are independent and
as often up as down, it exceeds λ·√N·u with a probability of at most 2·exp(-λ²/2) (Higham and Mary 2019, Theorem 2.4);
`bound` is that for λ = 10 (2e-22 per number), times the depth, for the mean. Whatever the roundings, it is at most
N·u times the depth: `worst`, shown and not required, as no rounding comes near it.

Also: time of first and repeated calls per layer for chains up to 2,000 layers; peak memory of a first call
beside that of one inference pass, batch 1, float32. Memory is what torch's profiler saw allocated on the CPU (alloc
minus free, running maximum), and for our calls plus what Python allocated (tracemalloc); parameters exist before and
count in neither. Beside it, the growth of a fresh process by the same call, which also sees oneDNN's own memory.

Run: `make bench`, or this script with `--only NAME ...` (names as in NETWORKS, "depth", "memory").
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Row, finish
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import nladv_core as nl
from nladv_core import compat, nets, paths
from paper_algorithm import histogram as paper_histogram

compat.declare_torchvision_operators()
import torchvision.models as zoo  # noqa: E402

Network = tuple[Callable[[], nn.Module], tuple[int, int, int]]
NETWORKS: dict[str, Network] = {
    "resnet56@32": (lambda: nets.build("resnet56"), (3, 32, 32)),
    "resnet110@32": (lambda: nets.build("resnet110"), (3, 32, 32)),
    "resnet18@64": (zoo.resnet18, (3, 64, 64)),
    "resnet50@224": (zoo.resnet50, (3, 224, 224)),
    "densenet121@224": (zoo.densenet121, (3, 224, 224)),
}
EXACT = 1e-9
ROUNDOFF = 2.0**-53
# Times faster than the baseline, from the issue that asked for it: (measure, what) -> all networks, or by network.
REQUIRED: dict[tuple[str, str], float | dict[str, float]] = {
    ("NAPL", "repeated mean"): 1000,
    ("APL", "repeated mean"): 1000,
    ("NAPL", "histogram"): 100,
    ("NAPL", "first call"): {"resnet56@32": 50, "resnet50@224": 100},
    ("APL", "first call"): {"resnet56@32": 50, "resnet50@224": 100},
}
DEPTHS = (250, 500, 1000, 2000)


def seconds(call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> float:
    """Median processor time of `call`, or its time if that exceeds 2 s; `before` runs untimed ahead of each.

    Both sides run in one thread, so this is their wall time on an idle machine, and fair on a busy one.
    """
    taken: list[float] = []
    while len(taken) < repeats and not (taken and taken[0] > 2):
        before()
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def roundoff_bounds(net: nn.Module) -> tuple[float, float]:
    """Error that rounding may give the baseline's mean, and the largest it can; see the head of this file."""
    fan_in, depth = 0, len(nl.units(net))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in += module.weight[0].numel()
    n = fan_in + 5 * depth
    return 10 * math.sqrt(n) * ROUNDOFF * depth, n * ROUNDOFF * depth


def compare(name: str, failures: list[str]) -> list[dict[str, Any]]:
    """All rows of one network; baseline and ours in turn."""
    build, shape = NETWORKS[name]
    net = nl.linearize(build(), shape)
    generator = torch.Generator().manual_seed(0)

    def new_masks() -> None:
        nl.apply_masks_(
            net, {group: torch.rand(m.shape, generator=generator) < 0.5 for group, m in nl.masks(net).items()}
        )

    rows: list[dict[str, Any]] = []
    bound, worst = roundoff_bounds(net)
    if bound > EXACT:
        failures.append(f"{name}: rounding may move the baseline by {bound:.2g}, more than {EXACT:g}")
    for normalized in (True, False):
        measure = "NAPL" if normalized else "APL"
        new_masks()
        nl.path_length(net, shape, normalized=normalized)  # torch's own first use of each kernel
        results: list[torch.Tensor] = []
        baseline = seconds(lambda: results.append(paper_histogram(net, shape, normalized)), 3)  # noqa: B023
        expected = results[0]
        found = nl.path_length(net, shape, normalized=normalized)
        mean = float(expected @ torch.arange(len(expected), dtype=torch.float64))
        error = max(abs(found.mean - mean), float((found.histogram - expected).abs().max()))
        if error > EXACT:
            failures.append(f"{name}: {measure} differs from the paper's algorithm by {error:.2g}")

        def call() -> nl.PathLength:
            return nl.path_length(net, shape, normalized=normalized)  # noqa: B023

        measured = {
            "first call": seconds(call, 7, paths._known.clear),
            "repeated mean": seconds(call, 101, new_masks),
            "histogram": seconds(lambda: call().histogram, 7, new_masks),
        }
        for what, ours in measured.items():
            needed = REQUIRED.get((measure, what))
            needed = needed.get(name) if isinstance(needed, dict) else needed
            row = {"network": name, "measure": measure, "what": what, "paper_s": baseline, "ours_s": ours}
            row |= {"ratio": baseline / ours, "required": needed, "error": error, "bound": bound, "worst": worst}
            rows.append(row)
            required = f"{needed:.0f}" if needed else "-"
            times = f"{baseline:10.3f} {ours:10.6f} {baseline / ours:8.0f} {required:>9} {error:8.1e} {bound:8.1e}"
            print(f"{name:16} {measure:7} {what:14} {times}", flush=True)
    return rows


class Chain(nn.Module):
    """`depth` linear layers with a ReLU each; residual: with an addition around every two."""

    def __init__(self, depth: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth))
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4] -> [N, 4]."""
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            y = second(first(x))
            x = x + y if self.residual else y
        return x


def lines(call: Callable[[], object]) -> int:
    """How many lines of Python a call executes: its work, which no cache and no other program changes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def depth(failures: list[str]) -> list[dict[str, Any]]:
    """First call and repeated mean per layer, up to 2,000 layers.

    Linear is what is required of the work (`lines`). Of time it cannot be: from about 1,000 layers on, the modules no
    longer fit into the processor's cache, and each costs two to three times as much, once. Quadratic would be 8 times.
    """
    makers: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
        "chain": (lambda d: Chain(d, False), (4,)),
        "residual chain": (lambda d: Chain(d, True), (4,)),
        "resnet, width 1/16": (lambda d: nets.build(f"resnet{6 * (d // 6) + 2}", width=1 / 16), (3, 8, 8)),
    }
    rows: list[dict[str, Any]] = []
    for name, (build, shape) in makers.items():
        linearized = {d: nl.linearize(build(d), shape) for d in DEPTHS}
        for normalized in (True, False):
            per_layer: dict[str, list[float]] = {"first": [], "repeated": []}
            work: list[float] = []
            for net in linearized.values():
                call = lambda: nl.path_length(net, shape, normalized=normalized)  # noqa: B023
                first, again = seconds(call, 5, paths._known.clear), seconds(call, 101)
                layers = len(nl.units(net))
                work.append(lines(call) / layers)
                per_layer["first"].append(first / layers)
                per_layer["repeated"].append(again / layers)
                rows.append(
                    {"network": name, "layers": layers, "normalized": normalized, "first_s": first, "again_s": again}
                    | {"lines": work[-1] * layers}
                )
                times = f"{first * 1e3:9.1f} ms {first / layers * 1e6:7.0f} us/layer"
                times += f"   again {again * 1e3:7.3f} ms {again / layers * 1e6:6.2f} us, {work[-1]:5.1f} lines/layer"
                print(f"{name:19} {'NAPL' if normalized else 'APL':5} {layers:5d} layers {times}", flush=True)
            for what, costs in per_layer.items():
                growth = costs[-1] / costs[0]
                if growth > 4:
                    failures.append(
                        f"{name}, {what} call: a layer costs {growth:.1f} times as much at {DEPTHS[-1]} as at "
                        f"{DEPTHS[0]}"
                    )
            if work[-1] > 1.05 * work[0]:
                failures.append(f"{name}, repeated call: {work[-1]:.1f} lines a layer, {work[0]:.1f} at {DEPTHS[0]}")
    return rows


def allocated(call: Callable[[], object]) -> int:
    """Peak of the bytes that torch's CPU allocator held during `call` beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def python_memory(call: Callable[[], object]) -> int:
    """Peak of the bytes that Python's allocator held during `call` beyond those before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident_growth(name: str, what: str) -> int:
    """By how much a fresh process grows beyond what it held before, at its peak, in its first such call [bytes].

    This also sees what libraries take from the system by themselves (oneDNN's copies of weights, its code), and what
    they never give back. Linux only: the kernel's high-water mark is reset before the call.
    """
    done = subprocess.run([sys.executable, __file__, "--grow", name, what], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def grow(name: str, what: str) -> None:
    """The process behind `resident_growth`."""
    torch.set_num_threads(1)
    build, shape = NETWORKS[name]
    model = build().eval()
    # A small network first: imports and code that any such call loads.
    small = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    nl.path_length(small, (3, 8, 8)), nl.path_length(small, (3, 8, 8), normalized=False)
    net = nl.linearize(model, (3, 32, 32)) if what != "inference" else model
    image = torch.randn(1, *shape)
    status = Path("/proc/self/status")

    def field(key: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    if what == "inference":
        with torch.inference_mode():
            model(image)
    else:
        nl.path_length(net, shape, normalized=what == "NAPL")
    print(field("VmHWM") - before)


def memory(name: str, failures: list[str]) -> list[dict[str, Any]]:
    """Peak memory of first calls beside one inference pass in float32 with batch 1."""
    build, shape = NETWORKS[name]
    model = build().eval()
    net = nl.linearize(model, shape)
    image = torch.randn(1, *shape)
    with torch.inference_mode():
        model(image)
        inference = allocated(lambda: model(image))
    resident = resident_growth(name, "inference")
    rows: list[dict[str, Any]] = []
    for normalized in (True, False):
        sizes = []
        for meter in (allocated, python_memory):
            paths._known.clear()
            sizes.append(meter(lambda: nl.path_length(net, shape, normalized=normalized)))  # noqa: B023
        measure = "NAPL" if normalized else "APL"
        process = resident_growth(name, measure)
        row = {"network": name, "measure": measure, "tensors": sizes[0], "python": sizes[1], "process": process}
        rows.append(row | {"inference": inference, "inference_process": resident})
        parts = f"{sizes[0] / 1e6:7.2f} MB + Python {sizes[1] / 1e6:5.2f} MB, inference {inference / 1e6:6.2f} MB"
        print(f"{name:16} {measure:5} {parts}; process {process / 1e6:6.1f}, {resident / 1e6:6.1f} MB", flush=True)
        if sum(sizes) >= inference:
            failures.append(f"{name}, {measure}: first call takes {sum(sizes)} bytes, an inference pass {inference}")
    return rows


def main() -> int:
    """Measure, print tables, write JSON beside them; 1 if a result differs or a required figure is missed."""
    if sys.argv[1:2] == ["--grow"]:
        grow(*sys.argv[2:4])
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*NETWORKS, "depth", "memory"])
    chosen = parser.parse_args().only or [*NETWORKS, "depth", "memory"]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    failures: list[str] = []
    results: dict[str, Any] = {"rows": [], "depth": [], "memory": []}
    print(f"Path lengths, torch {torch.__version__}, 1 thread; 'paper' is the paper's algorithm, required to {EXACT:g}")
    print(
        f"{'network':16} {'measure':7} {'what':14} {'paper [s]':>10} {'ours [s]':>10} {'ratio':>8}  required    error"
        "    bound"
    )
    for name in chosen:
        if name in NETWORKS:
            results["rows"] += compare(name, failures)
    if "depth" in chosen:
        results["depth"] = depth(failures)
    if "memory" in chosen:
        results["memory"] = [row for name in NETWORKS for row in memory(name, failures)]
    rows = [
        Row(
            what=f"{row['measure']} of {row['network']}, {row['what']}",
            baseline=f"the paper's {row['paper_s']:.3g} s",
            ours=f"{row['ours_s']:.3g} s",
            ratio=row["ratio"],
            required=row["required"],
        )
        for row in results["rows"]
    ]
    return finish("path_length", rows, failures, **results)


if __name__ == "__main__":
    sys.exit(main())
