"""What an experiment's runs say: one number a seed, the same for a live chapter and for a verdict.

Each function takes the records of one chapter's runs, parents included, and returns a dict from seed to its number, or
to None where the seed's runs do not reach the place that is asked for. A seed whose runs are not all there has no
entry. Accuracies and active shares are in percent, path lengths in units. `STATISTICS` holds the functions by the
names that the ledger of claims uses.

A statistic along the strength (`at`, `last_fall`, ...) takes the runs of one network on one data set; it refuses two
runs of one seed and strength. A statistic along another axis (width, initial depth, start epoch) compares runs of one
strength only: the strongest at which some seed has all values of that axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from nladv_core.errors import RecordError, SpecError
from nladv_core.specs import MASKS, RunSpec
from nladv_core.store import Record
from nladv_core.values import nearest

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
AXES = ("napl", "apl", "active_fraction", "omega")


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


def answered(found: BySeed) -> dict[int, float]:
    """The seeds that have a number."""
    return {seed: number for seed, number in found.items() if number is not None}


def linearized(records: Iterable[Record]) -> list[Record]:
    """The runs with a penalty."""
    return [record for record in records if record.spec.omega > 0]


def by_seed(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Seed -> its runs in the order of their strength."""
    found: dict[int, list[Record]] = {}
    for record in sorted(records, key=lambda one: one.spec.omega):
        found.setdefault(record.spec.seed, []).append(record)
    return found


def curves(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Seed -> its linearized runs in the order of their strength, one run for each.

    Raises:
        RecordError: a seed has two runs of one strength, so these are several networks or data sets.
    """
    found = by_seed(linearized(records))
    for seed, runs in found.items():
        if len({run.spec.omega for run in runs}) < len(runs):
            raise RecordError(f"seed {seed} has two runs of one strength; pass only the runs of one network")
    return found


def compared(records: Iterable[Record], axis: Callable[[RunSpec], float]) -> dict[int, dict[float, Record]]:
    """Seed -> value of `axis` -> its run: only seeds that have every value that occurs, all at the same strength.

    That strength is the strongest at which some seed has them all.

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
    for omega in sorted(found, reverse=True):
        whole = {seed: dict(sorted(runs.items())) for seed, runs in found[omega].items() if set(runs) == values}
        if whole:
            return dict(sorted(whole.items()))
    return {}


def interpolate(axis: Sequence[float], column: Sequence[float], at: float) -> float | None:
    """`column` where the polygon through the points, in their order, has `axis` equal to `at`.

    A polygon that passes there more than once counts with the mean of its crossings; one that never does gives None:
    nothing is extrapolated.
    """
    found = [y for x, y in zip(axis, column, strict=True) if x == at]
    for i in range(len(axis) - 1):
        low, high = axis[i], axis[i + 1]
        if min(low, high) < at < max(low, high):
            share = (at - low) / (high - low)
            found.append(column[i] + share * (column[i + 1] - column[i]))
    return float(np.mean(found)) if found else None


def at(records: Sequence[Record], *, axis: str, at: float, column: str) -> BySeed:
    """`column` where `axis` has the value `at`, interpolated linearly between neighbouring strengths."""
    found: BySeed = {}
    for seed, runs in curves(records).items():
        points = [(value(run, axis), value(run, column)) for run in runs]
        found[seed] = interpolate([x for x, _ in points], [y for _, y in points], at)
    return found


# ------------------------------------------------------------------------------------------- retrained masks (§4.1.1)


def retrained(records: Sequence[Record], *, masks: str) -> BySeed:
    """Accuracy of a network trained anew with masks of this kind, minus that of the network the masks come from.

    The seed is that of the retraining; where it took masks from several networks, the mean over these.
    """
    sources = {record.key: record for record in linearized(records)}
    found: dict[int, list[float]] = {}
    for record in records:
        spec = record.spec
        if spec.masks == masks and spec.parent is not None and spec.parent.key() in sources:
            source = sources[spec.parent.key()]
            gap = value(record, "test_accuracy") - value(source, "test_accuracy")
            found.setdefault(spec.seed, []).append(gap)
    return {seed: float(np.mean(gaps)) for seed, gaps in sorted(found.items())}


# ------------------------------------------------------------------------------------------------ start epoch (§4.1.2)


def start_epoch(spec: RunSpec) -> int:
    """Epochs of training before the slopes were switched on."""
    return spec.start + (spec.parent.recipe.epochs if spec.parent is not None else 0)


def reached(record: Record) -> bool:
    """Whether a run with a goal came to it, in what the goal counts."""
    return record.reached


def _by_start(records: Sequence[Record], column: str) -> dict[int, dict[float, float | None]]:
    """Seed -> start epoch -> final `column`, None where the goal was missed: then nothing is compared at equal share.

    Only seeds with all starts that occur.
    """
    found = compared((record for record in records if record.spec.goal is not None), start_epoch)
    return {
        seed: {start: value(run, column) if reached(run) else None for start, run in starts.items()}
        for seed, starts in found.items()
    }


def late_minus_early(records: Sequence[Record], *, column: str = "test_accuracy") -> BySeed:
    """Final `column` at the latest start minus that at the earliest; None where one of the two missed the goal."""
    found: BySeed = {}
    for seed, starts in _by_start(records, column).items():
        if len(starts) > 1:
            late, early = starts[max(starts)], starts[min(starts)]
            found[seed] = None if late is None or early is None else late - early
    return found


def gained_early(records: Sequence[Record], *, by: int = 15, column: str = "test_accuracy") -> BySeed:
    """Of the difference between earliest and latest start: what arises up to start `by`, minus what arises after it.

    None where one of the three missed the goal; no entry where nothing starts at `by`, between the two.
    """
    found: BySeed = {}
    for seed, starts in _by_start(records, column).items():
        if by in starts and min(starts) < by < max(starts):
            three = [starts[start] for start in (min(starts), by, max(starts))]
            there = [accuracy for accuracy in three if accuracy is not None]
            found[seed] = (there[1] - there[0]) - (there[2] - there[1]) if len(there) == 3 else None
    return found


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


def connected(records: Sequence[Record]) -> BySeed:
    """Of the layers whose active share is above half the largest: the share, in [0, 1], in their longest connected run.

    1 is one block, 1 / (number of such layers) the finest stripes; None where no unit is active. At the strongest
    penalty of each seed.
    """
    found: BySeed = {}
    for seed, runs in curves(records).items():
        strong = strong_layers(layer_shares(runs[-1]))
        found[seed] = longest_run(strong)[1] / int(strong.sum()) if strong.any() else None
    return found


def block_centre(records: Sequence[Record]) -> BySeed:
    """Where the middle of the longest connected run of such layers lies: 0 is the first layer, 1 the last.

    None where no unit is active. At the strongest penalty of each seed.
    """
    found: BySeed = {}
    for seed, runs in curves(records).items():
        strong = strong_layers(layer_shares(runs[-1]))
        first, length = longest_run(strong)
        found[seed] = (first + (length - 1) / 2) / max(1, len(strong) - 1) if length else None
    return found


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


def _width(spec: RunSpec) -> float:
    return spec.width


def _inverse_shares(records: Sequence[Record], least: int) -> dict[int, tuple[float, float, float] | None]:
    """Line through the inverse active share over width, for seeds with `least` widths; None: some share is 0."""
    found: dict[int, tuple[float, float, float] | None] = {}
    for seed, runs in compared(records, _width).items():
        shares = [run.metrics["active_fraction"] for run in runs.values()]
        if len(runs) >= least:
            found[seed] = line(list(runs), [1 / share for share in shares]) if min(shares) > 0 else None
    return found


def width_fit(records: Sequence[Record]) -> BySeed:
    """R² of a straight line through the inverse active share over the width factor, at least three widths.

    None where a network has no active unit.
    """
    return {seed: None if fit is None else fit[2] for seed, fit in _inverse_shares(records, 3).items()}


def width_slope(records: Sequence[Record]) -> BySeed:
    """Slope of that line: by how much the inverse active share grows per unit of the width factor, from two widths."""
    return {seed: None if fit is None else fit[0] for seed, fit in _inverse_shares(records, 2).items()}


def widest_minus_narrowest(records: Sequence[Record], *, column: str) -> BySeed:
    """`column` of the widest network minus that of the narrowest."""
    return {
        seed: value(runs[max(runs)], column) - value(runs[min(runs)], column)
        for seed, runs in compared(records, _width).items()
        if len(runs) > 1
    }


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


# --------------------------------------------------------------------------------- strength and difficulty (§4.3.3)


def last_fall(records: Sequence[Record], *, column: str = "napl") -> BySeed:
    """Saturation: the share of the whole fall of `column` that lies between the second strongest and strongest penalty.

    Of at least three strengths; None where it does not fall at all.
    """
    found: BySeed = {}
    for seed, runs in curves(records).items():
        if len(runs) > 2:
            y = [value(run, column) for run in runs]
            found[seed] = (y[-2] - y[-1]) / (y[0] - y[-1]) if y[0] > y[-1] else None
    return found


def straightness(records: Sequence[Record], *, axis: str = "omega", column: str = "test_accuracy") -> BySeed:
    """R² of a straight line through `column` over `axis`, strengths as they are (not their logarithms).

    Of at least three strengths; None where `axis` does not vary.
    """
    found: BySeed = {}
    for seed, runs in curves(records).items():
        if len(runs) > 2:
            x = [value(run, axis) for run in runs]
            found[seed] = line(x, [value(run, column) for run in runs])[2] if len(set(x)) > 1 else None
    return found


def at_the_strongest(records: Sequence[Record], *, column: str = "napl") -> BySeed:
    """`column` at the strongest penalty of each seed."""
    return {seed: value(runs[-1], column) for seed, runs in curves(records).items()}


# --------------------------------------------------------------------------------------------- one measure and another


def kept_depth(records: Sequence[Record], *, loss: float = 2.0, column: str = "napl") -> BySeed:
    """`column` where accuracy is `loss` points below the parent's, as a share of the parent's `column`.

    Interpolated between the parent and the strengths in their order (`interpolate`); None where accuracy never falls so
    far. A seed whose parent is not among the records has no entry.
    """
    parents = {record.key: record for record in records if record.spec.omega == 0 and record.spec.masks == "none"}
    found: BySeed = {}
    for seed, runs in curves(records).items():
        parent = runs[0].spec.parent
        if parent is None or parent.key() not in parents:
            continue
        start = parents[parent.key()]
        points = [start, *runs]
        accuracies = [value(run, "test_accuracy") for run in points]
        depth = interpolate(accuracies, [value(run, column) for run in points], accuracies[0] - loss)
        found[seed] = None if depth is None else depth / value(start, column)
    return found


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


STATISTICS: Mapping[str, Callable[..., BySeed]] = {
    "at": at,
    "retrained minus linearized": retrained,
    "late minus early": late_minus_early,
    "gained early minus gained late": gained_early,
    "connected": connected,
    "centre of the block": block_centre,
    "fit of the inverse share": width_fit,
    "slope of the inverse share": width_slope,
    "widest minus narrowest": widest_minus_narrowest,
    "range over depths": depth_range,
    "slope over depths": depth_slope,
    "last fall": last_fall,
    "straightness": straightness,
    "at the strongest": at_the_strongest,
    "kept depth": kept_depth,
    "rank correlation": rank_correlation,
}


@lru_cache(maxsize=4096)
def family(spec: RunSpec) -> RunSpec:
    """The run without what a ledger leaves free: its seed and its strength, and those of its ancestors."""
    parent = None if spec.parent is None else family(spec.parent)
    return replace(spec, seed=0, omega=1.0 if spec.omega > 0 else 0.0, parent=parent)


def named(statistic: str, records: Sequence[Record], **options: Any) -> BySeed:
    """A statistic by its name in `STATISTICS`.

    Raises:
        SpecError: an unknown name, or options that it does not take.
    """
    function = STATISTICS[check(statistic, options)]
    return function(records, **options)


def check(statistic: str, options: Mapping[str, Any]) -> str:
    """`statistic`, if it exists and takes these options.

    Raises:
        SpecError: it does not.
    """
    if statistic not in STATISTICS:
        raise SpecError(
            f"statistic is {statistic!r}, expected one of {', '.join(STATISTICS)}{nearest(statistic, STATISTICS)}"
        )
    takes = {n: p for n, p in inspect.signature(STATISTICS[statistic]).parameters.items() if n != "records"}
    needed = {name for name, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    if not needed <= set(options) <= set(takes):
        raise SpecError(
            f"statistic {statistic!r}: found options {', '.join(sorted(options)) or 'none'}, but it takes "
            f"{', '.join(takes) or 'none'}" + (f" and needs {', '.join(sorted(needed))}" if needed else "")
        )
    for name, known in (("axis", AXES), ("column", (*COLUMNS, "omega")), ("other", tuple(COLUMNS))):
        if name in options and options[name] not in known:
            raise SpecError(f"statistic {statistic!r}: {name} is {options[name]!r}, expected one of {', '.join(known)}")
    if "masks" in options and options["masks"] not in MASKS[1:]:
        raise SpecError(
            f"statistic {statistic!r}: masks is {options['masks']!r}, expected one of {', '.join(MASKS[1:])}"
        )
    for name in ("at", "by", "loss"):
        if name in options and (isinstance(options[name], bool) or not isinstance(options[name], (int, float))):
            raise SpecError(f"statistic {statistic!r}: {name} is {options[name]!r}, expected a number")
    return statistic
