"""Many small trainings at once: as processes, as one batched program, and one after the other.

* A sweep of eight small runs (digits, the recipe that chapters at `quick` train with), computed by `nladv_core.run`
  with a worker for each core (ours; their start, path lengths and records included), against the trainings of the same
  runs one after the other in one process (baseline), once with one thread and once with all of them; the faster of the
  two is the baseline. The records must equal those of one worker to the bit.
* The same eight networks as one program: their weights stacked, `torch.func.vmap` over them, so that every convolution
  becomes a grouped one. What is timed is forward and backward pass of a step, against eight steps one after the other,
  compiled and not. Told, not required: what wins is what the library does.

Run: `make bench`, or this script with `--rounds N`.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Row, finish
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from nladv_core import datasets, nets, runs, training
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Store, untrained, with_slopes

COUNT = 8
NEEDED = 1.5
RECIPE = RECIPES["quick-train"]
SPECS = [
    RunSpec(data="digits", net="resnet14", width=0.5, train=1800, test=1000, recipe=RECIPE, omega=omega, seed=seed)
    for seed in (0, 1)
    for omega in (0.01, 0.02, 0.03, 0.05)
]


def one_after_the_other(threads: int) -> float:
    """Seconds of the eight trainings in this process, nothing written."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for spec in SPECS:
        data = datasets.load(spec.data, size=spec.size, difficulty=spec.difficulty, train=spec.train, test=spec.test)
        assert isinstance(data, datasets.ImageData)
        net = with_slopes(untrained(spec, 10), spec, tuple(data.train_images.shape[1:]))
        for _ in training.fit(net, data, spec.recipe, seed=spec.seed, omega=spec.omega):
            pass
    return time.perf_counter() - start


def at_once(workers: int) -> tuple[float, dict[str, Any]]:
    """Seconds of the eight runs by `nladv_core.run`, from nothing to records, and what the records say."""
    folder = Path(tempfile.mkdtemp())
    try:
        store = Store(folder)
        start = time.perf_counter()
        runs.run(SPECS, store, workers=workers, progress=False)
        taken = time.perf_counter() - start
        return taken, {spec.key(): (store.record(spec).metrics, store.record(spec).history) for spec in SPECS}
    finally:
        shutil.rmtree(folder)


def steps() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Gradients of eight networks: one after the other, and as one batched program."""
    torch.manual_seed(0)
    shape = (3, 16, 16)
    # Without slopes, which would be one more vector each: graphs that were traced one by one cannot be stacked.
    copies = [nets.build("resnet14", width=0.5).train() for _ in range(COUNT)]
    for net in copies:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # what vmap cannot write to; it costs next to nothing
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
    images, labels = torch.randn(COUNT, RECIPE.batch, *shape), torch.randint(10, (COUNT, RECIPE.batch))
    parameters, buffers = stack_module_state(copies)

    def loss(parameters: Any, buffers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(copies[0], (parameters, buffers), (x,)), y)

    together = vmap(grad(loss), in_dims=(0, 0, 0, 0))

    def one_by_one() -> None:
        for net, x, y in zip(copies, images, labels, strict=True):
            net.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), y).backward()

    return one_by_one, lambda: together(parameters, buffers, images, labels)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, write JSON; 1 if the bar is missed or a record differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows, missed, taken = [], [], []
    _, expected = at_once(1)
    for _ in range(rounds):
        ours, found = at_once(cores)
        if found != expected:
            missed.append("the records of workers differ from those of one process")
        taken.append((min(one_after_the_other(1), one_after_the_other(cores)), ours))
    theirs, ours = (statistics.median(side) for side in zip(*taken, strict=True))
    ratio = statistics.median(a / b for a, b in taken)
    what = f"sweep of {COUNT} small runs, {cores} workers"
    rows.append(Row(what=what, baseline=f"{theirs:.1f} s", ours=f"{ours:.1f} s", ratio=ratio, required=NEEDED))
    print(rows[-1], flush=True)
    torch.set_num_threads(1)
    one_by_one, together = steps()
    for name, batched in (("eager", together), ("compiled", torch.compile(together))):
        one_by_one(), batched()
        pairs = [(seconds(one_by_one), seconds(batched)) for _ in range(5)]
        theirs, ours = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        what = f"{COUNT} networks in one program, {name}, 1 thread"
        rows.append(Row(what=what, baseline=f"{theirs:.0f} ms a step", ours=f"{ours:.0f} ms a step", ratio=ratio))
        print(rows[-1], flush=True)
    return finish("sweep", rows, missed, seconds=taken, cores=cores)


if __name__ == "__main__":
    sys.exit(main())
