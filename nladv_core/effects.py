"""What a chapter's runs say, one number a seed: what its notebook draws and tells. `outcomes` judges claims.

Each function takes the records of one chapter's runs, parents included, and returns a dict from seed to its number, or
to None where the seed's runs do not reach the place that is asked for. A seed whose runs are not all there has no
entry. Accuracies and active shares are in percent, path lengths in units.

A statistic along an axis (width, initial depth, start epoch) compares runs of one strength only: the strongest at which
some seed has all values of that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nladv_core.errors import RecordError, SpecError
from nladv_core.specs import RunSpec
from nladv_core.store import Record

BySeed = dict[int, float | None]

# Metrics of a record, and what turns them into percent.
COLUMNS: Mapping[str, float] = {
    "test_accuracy": 100.0,
    "active_fraction": 100.0,
    "napl": 1.0,
    "napl_max_pool": 1.0,  # of networks with max pooling: with that counted as one more unit (§4.2, ImageNet)
    "apl": 1.0,
    "enw": 1.0,
    "test_perplexity": 1.0,  # of translations, per token
    "test_bleu": 1.0,  # of translations, 0 to 100
}


def value(record: Record, column: str) -> float:
    """A final metric of a run, accuracies and shares in percent; `"omega"` is its strength.

    Raises:
        SpecError: an unknown column.
        RecordError: the record lacks it.
    """
    if column == "omega":
        return record.spec.omega
    if column not in COLUMNS:
        raise SpecError(f"column is {column!r}, expected one of {', '.join((*COLUMNS, 'omega'))}")
    if column not in record.metrics:
        raise RecordError(f"run {record.key} has no {column} among its metrics; recompute it")
    return COLUMNS[column] * record.metrics[column]


def linearized(records: Iterable[Record]) -> list[Record]:
    """The runs with a penalty."""
    return [record for record in records if record.spec.omega > 0]


def by_seed(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Seed -> its runs in the order of their strength."""
    found: dict[int, list[Record]] = {}
    for record in sorted(records, key=lambda one: one.spec.omega):
        found.setdefault(record.spec.seed, []).append(record)
    return found


def compared(records: Iterable[Record], axis: Callable[[RunSpec], float]) -> dict[int, dict[float, Record]]:
    """Seed -> value of `axis` -> its run: only seeds that have every value that occurs, all at the same strength.

    That strength is the one at which most seeds have them all, of several the strongest.

    Raises:
        RecordError: two runs agree in seed, strength and `axis`, so something else tells them apart.
    """
    found: dict[float, dict[int, dict[float, Record]]] = {}
    for run in linearized(records):
        at_once = found.setdefault(run.spec.omega, {}).setdefault(run.spec.seed, {})
        if axis(run.spec) in at_once:
            raise RecordError(
                f"runs {at_once[axis(run.spec)].key} and {run.key} agree in seed, strength and what is compared; pass "
                "only the runs of one experiment"
            )
        at_once[axis(run.spec)] = run
    values = {value for seeds in found.values() for runs in seeds.values() for value in runs}
    best: dict[int, dict[float, Record]] = {}
    for omega in sorted(found, reverse=True):
        whole = {seed: dict(sorted(runs.items())) for seed, runs in found[omega].items() if set(runs) == values}
        best = whole if len(whole) > len(best) else best
    return dict(sorted(best.items()))


# ------------------------------------------------------------------------------------------------ start epoch (§4.1.2)


def start_epoch(spec: RunSpec) -> int:
    """Epochs of training before the slopes were switched on."""
    return spec.start + (spec.parent.recipe.epochs if spec.parent is not None else 0)


# -------------------------------------------------------------------------------------------------- structure (§4.2)


def within(records: Iterable[Record], part: str) -> list[Record]:
    """The linearized runs as if their networks were no more than one part: its unit groups alone.

    Args:
        part: what the names of its groups begin with, such as "encoder".

    Raises:
        RecordError: a run has no such group.
    """
    found = []
    for record in linearized(records):
        kept = [i for i, unit in enumerate(record.units) if unit["name"].partition(".")[0] == part]
        if not kept:
            raise RecordError(f"run {record.key} has no unit group in {part}; pass runs of a network that has")
        history = [row | {"active": [row["active"][i] for i in kept]} for row in record.history]
        found.append(replace(record, units=[record.units[i] for i in kept], history=history))
    return found


def layer_shares(record: Record) -> np.ndarray:
    """Share of active channels of each layer after the last epoch, [L] in [0, 1], layers in execution order.

    Raises:
        RecordError: the record names no unit.
    """
    if not record.units:
        raise RecordError(f"run {record.key} names no unit group; recompute it")
    return np.array([unit["active"] / unit["channels"] for unit in record.units])


def history_shares(record: Record) -> np.ndarray:
    """Share of active channels by epoch and layer, [epochs, L] in [0, 1], after each epoch of the run.

    Raises:
        RecordError: the record has no epochs.
    """
    channels = np.array([unit["channels"] for unit in record.units], dtype=float)
    rows = [row["active"] for row in record.history if len(row["active"]) == len(channels)]
    if not rows or not len(channels):
        raise RecordError(f"run {record.key} has no epochs with active units; recompute it")
    return np.array(rows, dtype=float) / channels


def strong_layers(shares: np.ndarray) -> np.ndarray:
    """Which layers hold an active share above half the largest one, [L] bool; none if nothing is active."""
    return shares > shares.max() / 2


def longest_run(strong: np.ndarray) -> tuple[int, int]:
    """First index and length of the longest connected run of True, the first of several; (0, 0) if there is none."""
    best, began = (0, 0), None
    for i, inside in enumerate([*strong.tolist(), False]):
        if inside and began is None:
            began = i
        elif not inside and began is not None:
            best = max(best, (began, i - began), key=lambda found: found[1])
            began = None
    return best


# ------------------------------------------------------------------------------------------ width and depth (§4.3.1-2)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line; R² is 1 where y does not vary.

    Raises:
        RecordError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise RecordError(f"found {len(set(x))} value(s) on the axis, expected at least two to draw a line through")
    a, b = np.asarray(x, float), np.asarray(y, float)
    slope, intercept = np.polyfit(a, b, 1)
    if np.ptp(b) == 0:  # also where the mean is a rounding error away from all of them
        return 0.0, float(b[0]), 1.0
    rest = ((b - slope * a - intercept) ** 2).sum()
    return float(slope), float(intercept), float(1 - rest / ((b - b.mean()) ** 2).sum())


def depth_in(net: str) -> int:
    """The depth in a network's name: 56 of "resnet56" and of "resnet56v1".

    Raises:
        SpecError: it has none.
    """
    digits = "".join(filter(str.isdigit, net.removesuffix("v1")))
    if not digits:
        raise SpecError(f"network {net!r} has no depth in its name, expected one such as resnet56")
    return int(digits)


def depth_of(spec: RunSpec) -> int:
    """Initial depth of a run's network (`depth_in`)."""
    return depth_in(spec.net)


def depth_range(records: Sequence[Record], *, column: str = "napl") -> BySeed:
    """Largest minus smallest `column` among initial depths."""
    found: BySeed = {}
    for seed, runs in compared(records, depth_of).items():
        if len(runs) > 1:
            all_of_them = [value(run, column) for run in runs.values()]
            found[seed] = max(all_of_them) - min(all_of_them)
    return found


def depth_slope(records: Sequence[Record], *, column: str = "napl") -> BySeed:
    """By how much `column` grows per layer of initial depth (least squares)."""
    return {
        seed: line(list(runs), [value(run, column) for run in runs.values()])[0]
        for seed, runs in compared(records, depth_of).items()
        if len(runs) > 1
    }


# --------------------------------------------------------------------------------------------- one measure and another


def rank_correlation(records: Sequence[Record], *, column: str, other: str = "napl") -> BySeed:
    """Spearman's rank correlation of two measures over the linearized networks of a seed, at least three of them.

    None where one of the measures does not vary.
    """
    from scipy.stats import spearmanr

    found: BySeed = {}
    for seed, runs in by_seed(linearized(records)).items():
        a, b = [value(run, other) for run in runs], [value(run, column) for run in runs]
        if len(runs) > 2:
            found[seed] = float(spearmanr(a, b).statistic) if min(len(set(a)), len(set(b))) > 1 else None
    return found
