"""What tests let several ranks do, in processes of their own; `python -c` of a `Pool` begins it with `main`."""

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nladv_core import datasets, nets, runs, training
from nladv_core.devices import Ranks, join
from nladv_core.linearize import linearize, masks
from nladv_core.recipes import Recipe
from nladv_core.reports import unit_weights
from nladv_core.specs import RunSpec
from nladv_core.store import Store
from nladv_core.workers import Message, serve

PLAIN: dict[str, Any] = {"lr": 0.05, "flip": False}
# One step: what the optimiser keeps after it are the gradients. With batch norm, a penalty, flips and an odd number.
STEP: dict[str, Any] = {
    "recipe": Recipe(epochs=1, batch=97, **PLAIN | {"flip": True}),
    "train": 97,
    "omega": 0.01,
}
CASES: dict[str, dict[str, Any]] = {
    "one step": STEP,
    "accumulated": STEP | {"recipe": Recipe(epochs=1, batch=25, accumulate=4, **PLAIN)},
    "words": STEP | {"recipe": Recipe(epochs=1, batch=33, accumulate=2, **PLAIN), "train": 65, "data": "number-words"},
    # The last batch is a single image, of which the second rank sees none; units are switched on, locked, pulled back.
    "goal": {
        "recipe": Recipe(epochs=5, batch=64, **PLAIN),
        "train": 129,
        "omega": 3.0,
        "goal": 0.4,
        "start": 1,
        "pull_back": True,
    },
}
CASES["budget"] = CASES["goal"] | {"goal": 2.7, "measure": "napl"}


def network(data: Any) -> nn.Module:
    """The same in every process. No dropout: each rank would draw its own."""
    task = training.tasks.of(data)
    torch.manual_seed(0)
    name, width = ("resnet8", 0.5) if isinstance(data, datasets.ImageData) else ("transformer1", 1 / 16)
    net = nets.build(name, classes=task.outputs, width=width)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return linearize(net, nets.example(name, task.shape))


def fitted(name: str, ranks: Ranks, folder: Path) -> list[dict[str, Any]]:
    """Train a case; leave weights, masks and momenta after each epoch in a file of this rank; return the rows."""
    case = dict(CASES[name])
    words = case.pop("data", "digits")
    train = case.pop("train")
    size = 8 if words == "digits" else None
    data = datasets.load(words, size=size, difficulty=None, train=train, test=50)
    net = network(data)
    measure = case.pop("measure", None)
    if measure is not None:
        case["measure_weights"] = unit_weights(net, (3, 8, 8), measure)
        case["price_weights"] = {which: 20 * weights for which, weights in case["measure_weights"].items()}
    momenta: dict[str, torch.Tensor] = {}
    rows = []
    for row in training.fit(net, data, case.pop("recipe"), seed=3, momenta=momenta, ranks=ranks, **case):
        rows.append(row)
        found = {f"net:{which}": value for which, value in net.state_dict().items()}
        found |= {f"momentum:{which}": value for which, value in momenta.items()}
        found |= {f"mask:{which}": value for which, value in masks(net).items()}
        save_file(
            {which: value.clone().contiguous() for which, value in found.items()},
            folder / f"{name}.{row['epoch']}.{ranks.rank}.of.{ranks.count}.safetensors",
        )
    return rows


@cache
def team(rank: int, count: int, port: int) -> Ranks:
    return join(rank, count, port, "cpu")


class Broken(Exception):
    """A test broke a run off."""


def handle(job: Message, report: Callable[[Message], None]) -> None:
    """A case of this module, or a run, as far as the epoch `stop`."""
    torch.set_num_threads(1)
    runs.SAVE_EVERY_S = -1.0  # after each epoch
    ranks = team(job["rank"], job["count"], job["port"])
    if "case" in job:
        report({"event": "rows", "rows": fitted(job["case"], ranks, Path(job["folder"]))})
        return

    def on_epoch(row: dict[str, Any]) -> None:
        if row["epoch"] == job["stop"]:
            raise Broken

    with contextlib.suppress(Broken):
        spec = RunSpec.from_json(job["spec"])
        runs.compute(spec, Store(job["folder"], ()), device="cpu", on_epoch=on_epoch, ranks=ranks)
    report({"event": "done"})


def main() -> None:
    """A process's life."""
    serve(handle)
