"""What the runs of a tier cost: operations, time at measured rates, room on disk.

Operations are counted, not estimated: products and sums of convolutions and matrices (`torch.utils.flop_counter`, two
for each pair) in the forward pass of one example, three times as many with the backward pass, times examples and
epochs. Slopes, norms and evaluation come on top; they are part of the measured rates. A rate is counted operations over
the time that records say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nladv_core import datasets, nets, texts
from nladv_core.specs import RunSpec
from nladv_core.store import Record

# The name under which `rates` tells of a GPU that only a benchmark has measured.
BENCHMARKED = "one GPU, as benchmarked"


@dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
        operations: of all its epochs.
        bytes: of its weights, which stay.
        checkpoint: bytes of what is kept while it is under way: weights and momenta.
    """

    operations: float
    bytes: float
    checkpoint: float


def cost(spec: RunSpec, lengths: Mapping[str, tuple[int, ...]] | None = None) -> Cost:
    """What a run costs.

    Args:
        lengths: tokens of an average pair of sentences, by data set (`lengths_of`); needed for translations.

    Raises:
        KeyError: a translation on data of which no record tells the lengths.
    """
    if spec.data in texts.TEXTS:
        shape = tuple((lengths or {})[spec.data])
        examples, classes = (
            spec.train or texts.TEXTS[spec.data].rows["train"],
            spec.size or texts.TEXTS[spec.data].vocabulary,
        )
    else:
        official = datasets.OFFICIAL.get(spec.data)
        side = spec.size or (official.side if official else 0)
        shape = (3, side, side)
        examples, classes = spec.train or (official.rows["train"] if official else 0), _classes(spec.data)
    one, parameters = _of_one(spec.net, spec.width, spec.residual, spec.shortcut, shape, classes)
    return Cost(one * examples * spec.recipe.epochs, 4.0 * parameters, 8.0 * parameters)


def operations(spec: RunSpec) -> float:
    """Of one training image, forward and backward."""
    official = datasets.OFFICIAL.get(spec.data)
    side = spec.size or (official.side if official else 0)
    shape, classes = (3, side, side), _classes(spec.data)
    return _of_one(spec.net, spec.width, spec.residual, spec.shortcut, shape, classes)[0]


def countable(spec: RunSpec, lengths: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `cost` can tell."""
    return spec.data not in texts.TEXTS or spec.data in lengths


def _classes(data: str) -> int:
    return {"cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000}.get(data, 10)


@cache
def _of_one(
    name: str, width: float, residual: bool, shortcut: str, shape: tuple[int, ...], classes: int
) -> tuple[float, int]:
    """Operations of one example, forward and backward, and the number of parameters; meta tensors hold no numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        net = nets.build(name, classes=classes, width=width, residual=residual, shortcut=shortcut)
        if nets.reads_text(name):
            inputs = [torch.zeros((1, length), dtype=torch.int64) for length in shape]
        else:
            inputs = [torch.zeros(1, *shape)]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(*inputs)
    return 3.0 * counter.get_total_flops(), sum(parameter.numel() for parameter in net.parameters())


def lengths_of(records: Iterable[Record]) -> dict[str, tuple[int, ...]]:
    """Tokens of an average pair of sentences, as records of translations tell them, by data set."""
    return {r.spec.data: tuple(r.data["shape"]) for r in records if r.spec.data in texts.TEXTS and "shape" in r.data}


def rates(records: Iterable[Record], benchmarks: Path | None = None) -> dict[str, float]:
    """Operations a second by device: of records their total over the time they took.

    Args:
        benchmarks: folder of results of `benchmarks/`; where records know no GPU, `throughput.json` may: the rate of
            runs that share it, else of one.
    """
    records = list(records)
    lengths, sums = lengths_of(records), dict[str, list[float]]()
    for record in records:
        if record.spec.recipe.epochs and record.wall_s > 0:
            total = sums.setdefault(record.device, [0.0, 0.0])
            total[0] += cost(record.spec, lengths).operations
            total[1] += record.wall_s
    found = {device: operations / seconds for device, (operations, seconds) in sums.items()}
    for row in _measured(benchmarks):
        if row.get("device") == "cuda" and not row.get("linearized"):
            speed = row["ours"] if isinstance(row["ours"], float) else sorted(row["ours"])[len(row["ours"]) // 2]
            one, _ = _of_one(row["network"], 1.0, True, "A", (3, 32, 32), 10)
            found[BENCHMARKED] = max(found.get(BENCHMARKED, 0.0), speed * one)
    return found


def _measured(benchmarks: Path | None) -> list[dict[str, Any]]:
    path = None if benchmarks is None else benchmarks / "throughput.json"
    if path is None or not path.is_file():
        return []
    return list(json.loads(path.read_text("utf-8")).get("measured", []))


def whole(milestones: Mapping[str, list[RunSpec]]) -> dict[str, list[RunSpec]]:
    """Every run of a tier, those that others rest on included, each once, under the experiment that wants it first.

    Args:
        milestones: the tier's experiments (`campaign.milestones`).
    """
    seen: set[RunSpec] = set()
    found = {}
    for title, specs in milestones.items():
        found[title] = [link for link in dict.fromkeys(x for spec in specs for x in spec.lineage) if link not in seen]
        seen.update(found[title])
    return {title: specs for title, specs in found.items() if specs}


def longest_chain(specs: Iterable[RunSpec], lengths: Mapping[str, tuple[int, ...]]) -> float:
    """Operations of the longest chain of runs that wait for each other: no number of devices is faster than that."""

    def chain(spec: RunSpec) -> float:
        return cost(spec, lengths).operations + max(map(chain, spec.sources), default=0.0)

    return max(map(chain, specs))
