"""The statistics by which claims are judged: pure functions of finished runs, each with its control.

A statistic takes records and gives one signed number a unit of repetition, or None with the reason why the runs of that
unit say nothing (`Measured`). The unit is the network before linearization, told by its seed. Every loss is against the
*control*: the same recipe from the same parent with all ReLUs kept (`RunSpec.control`). What networks that say nothing
could meet has no value: collapsed ones, and those in which nothing became linear. Accuracies and shares are in percent,
path lengths in units.

`STATISTICS` holds them by the names that `data/claims.toml` uses.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from nladv_core import intervals
from nladv_core.controls import (
    WAYS,
    Curve,
    Measured,
    Runs,
    SaysNothing,
    Unit,
    architecture,
    blocks_of,
    each,
    one_network,
    only,
    way_of,
)
from nladv_core.effects import (
    COLUMNS,
    depth_of,
    layer_shares,
    line,
    longest_run,
    start_epoch,
    strong_layers,
    value,
)
from nladv_core.errors import SpecError
from nladv_core.specs import MASKS, RunSpec
from nladv_core.store import Record
from nladv_core.values import nearest

# A goal run that ends this little below a NAPL stands for that NAPL.
JUST_BELOW = 0.02
# Points that the linearized network must have lost for chapter 03 to say something: less is no damage to catch up
# with, more is no network that the paper speaks of (it lost 1.6 to 3.5).
LOSS_OF_A_SOURCE = (1.0, 5.0)
# One that kept more than this share of its units was hardly linearized.
UNTOUCHED = 0.9
# Layers above half the largest share are a block if this share of them is one run ...
CONNECTED = 0.8
# ... of at least two layers and of at most this share of all layers.
MOST_OF_A_BLOCK = 0.5
PERMUTATIONS = 10_000
# Networks that were to end with an equal share of inactive units: so far it may lie beyond the goal.
BEYOND_THE_GOAL = 0.02
# C11: how many architectures there must be, and how much better than the strength a measure must predict.
ARCHITECTURES = 4
SKILL = 0.75


def _curve(runs: Runs, own: Sequence[Record], column: str, axis: str = "napl") -> Curve:
    """Through the control and the linearized runs of one unit."""
    one_network(own)
    return Curve.through((value(one, axis), value(one, column)) for one in (runs.control(own[0]), *own))


def _ended_at(own: Sequence[Record], napl: float) -> Record | None:
    """The goal run that ended at a NAPL or at most 2 % below it."""
    ended = [one for one in own if one.spec.measure == "napl" and one.spec.goal is not None]
    ended = [one for one in ended if (1 - JUST_BELOW) * napl <= value(one, "napl") <= napl]
    return max(ended, key=lambda one: value(one, "napl"), default=None)


def _at(runs: Runs, own: Sequence[Record], napl: float, column: str) -> float:
    """`column` at a NAPL: that of a goal run that ended there, else interpolated."""
    ended = _ended_at(own, napl)
    return value(ended, column) if ended is not None else _curve(runs, own, column).at(napl)


def at_napl(records: Sequence[Record], *, at: float, column: str = "test_accuracy") -> Measured:
    """`column` at a NAPL, of a goal run that ends at most 2 % below it, else interpolated (`Curve`).

    Raises:
        RecordError: a unit has runs of several networks.
    """
    return each(records, lambda runs, own: _at(runs, own, at, column))


def knee(records: Sequence[Record]) -> Measured:
    """Accuracy stays high down to a small NAPL and then collapses: by how many points both hold; at least 0 if they do.

    With the NAPL N0 and accuracy A0 of the control: *above* is what a halving of the NAPL costs between N0 and N0/4, in
    points; *below* what it costs from N0/8 down to the lowest NAPL reached, at least one halving further. The number is
    the smaller of 1 - above and below - max(3 · above, 1): above the knee a halving costs at most a point, below it
    three times as much and at least one.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        start = runs.control(own[0])
        napl, accuracy = value(start, "napl"), value(start, "test_accuracy")
        curve = _curve(runs, own, "test_accuracy")
        lowest = float(curve.napl[0])
        halvings = math.log2(napl / 8 / lowest)
        if halvings < 1:
            raise SaysNothing(f"its lowest NAPL is {lowest:.3g}, less than a halving below an eighth of {napl:.3g}")
        above = (accuracy - _at(runs, own, napl / 4, "test_accuracy")) / 2
        last = float(np.mean([value(one, "test_accuracy") for one in own if value(one, "napl") == lowest]))
        below = (_at(runs, own, napl / 8, "test_accuracy") - last) / halvings
        return min(1 - above, below - max(3 * above, 1.0))

    return each(records, number)


def share_above_napl(records: Sequence[Record], *, at: float) -> Measured:
    """Active share minus NAPL / N0 at a NAPL, in percent points.

    Units drawn at random give 0 in every architecture, for the NAPL is linear in the masks: what an architecture does
    by arithmetic is taken off. It is taken off before anything is interpolated, linearly over log NAPL, between
    networks no more than a factor of two apart.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        start = runs.control(own[0])

        def excess(one: Record) -> float:
            return value(one, "active_fraction") - 100 * value(one, "napl") / value(start, "napl")

        if ended := _ended_at(own, at):
            return excess(ended)
        one_network(own)
        return Curve.through([(value(one, "napl"), excess(one)) for one in (start, *own)], monotone=False).at(at)

    return each(records, number)


def _napl_at_loss(runs: Runs, own: Sequence[Record], loss: float, column: str) -> tuple[float, float]:
    """`column` where accuracy is `loss` points below the control's, and that of the control."""
    start = runs.control(own[0])
    curve = _curve(runs, own, "test_accuracy", column)
    try:
        return curve.where(value(start, "test_accuracy") - loss), value(start, column)
    except SaysNothing as nothing:
        raise SaysNothing(f"at {loss:g} points of loss, {nothing}") from None


def kept_depth(records: Sequence[Record], *, loss: float = 2.0, column: str = "napl") -> Measured:
    """`column` where accuracy is `loss` points below the control's, as a share, in [0, 1], of the control's `column`.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        left, before = _napl_at_loss(runs, own, loss, column)
        return left / before

    return each(records, number)


# ----------------------------------------------------------------------------------------------------- widths, depths


def _by(own: Iterable[Record], axis: Callable[[RunSpec], float]) -> dict[float, list[Record]]:
    found: dict[float, list[Record]] = {}
    for one in own:
        found.setdefault(axis(one.spec), []).append(one)
    return dict(sorted(found.items()))


def _width(spec: RunSpec) -> float:
    return spec.width


def _by_strength(runs: Runs, own: Iterable[Record], least: int) -> list[dict[float, Record]]:
    """At each strength, width -> its run; only strengths at which all networks are linearized and none collapsed.

    Raises:
        RecordError: two runs of one width and strength.
        SaysNothing: there is no such strength, or it has fewer than `least` widths.
    """
    strengths = _by(own, lambda spec: spec.omega)
    told, found = "", []
    for omega, some in strengths.items():
        widths = {width: only(one) for width, one in _by(some, _width).items()}
        states = {width: _state(runs, one) for width, one in widths.items()}
        wrong = [f"width {width:g} {state}" for width, state in states.items() if state]
        if len(widths) < least:
            wrong = [f"{len(widths)} widths of at least {least}"]
        if wrong:
            told = f"at strength {omega:g}: {wrong[0]}"
        else:
            found.append(widths)
    if not found:
        raise SaysNothing(told)
    return found


def _state(runs: Runs, one: Record) -> str:
    """Why a network says nothing of what linearization leaves; "" if it does."""
    if not runs.alive(one):
        return "collapsed"
    return f"kept more than {UNTOUCHED:.0%} of its units" if one.metrics["active_fraction"] > UNTOUCHED else ""


def enw_slope(records: Sequence[Record]) -> Measured:
    """Slope of the logarithm of the active units per layer (ENW) over that of the width, at least three widths.

    0: as many units whatever the width; 1: a constant share of them. In the mean over the strengths at which no network
    collapsed and all were linearized, for at others the slope says nothing; None if there is no such strength.

    Raises:
        RecordError: two runs of one width and strength.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        slopes = [
            line(np.log(list(found)).tolist(), [math.log(value(one, "enw")) for one in found.values()])[0]
            for found in _by_strength(runs, own, 3)
        ]
        return float(np.mean(slopes))

    return each(records, number)


def widest_minus_narrowest(records: Sequence[Record], *, column: str) -> Measured:
    """`column` of the widest linearized network minus that of the narrowest; they share nothing, so Welch's interval.

    In the mean over the strengths of `enw_slope`; None if there is none.

    Raises:
        RecordError: two runs of one width and strength.
    """
    ends: tuple[list[float], list[float]] = ([], [])

    def number(runs: Runs, own: list[Record]) -> float:
        found = _by_strength(runs, own, 2)
        both = [float(np.mean([value(one[end(one)], column) for one in found])) for end in (max, min)]
        for end, y in zip(ends, both, strict=True):
            end.append(y)
        return both[0] - both[1]

    found = each(records, number)
    if not ends[0]:
        return found
    return replace(found, estimate=intervals.apart(*map(intervals.mean, ends)))


def depth_slope(records: Sequence[Record], *, loss: float = 2.0) -> Measured:
    """Slope of log NAPL, where accuracy is `loss` points below the control's, over log initial NAPL.

    Over three depths or more. 0: the depth that is left does not depend on the initial depth; 1: it is a constant share
    of it. None where a depth never loses as much, or collapses from one strength to the next.

    Raises:
        RecordError: a depth has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        pairs = []
        for depth, some in _by(own, depth_of).items():
            try:
                pairs.append(_napl_at_loss(runs, some, loss, "napl"))
            except SaysNothing as nothing:
                raise SaysNothing(f"depth {depth:g}: {nothing}") from None
        if len(pairs) < 3:
            raise SaysNothing(f"it has {len(pairs)} depths of at least 3")
        left, before = zip(*pairs, strict=True)
        return line(np.log(before).tolist(), np.log(left).tolist())[0]

    return each(records, number)


# --------------------------------------------------------------------------------------------------- along the strength


def _grid(runs: Runs, own: list[Record]) -> list[Record]:
    """The runs of a unit over its strengths, the weakest first."""
    found = [one for one in own if one.spec.goal is None]
    one_network(found)
    if len(found) < 2:
        raise SaysNothing("it has fewer than two strengths")
    return found


def mean_over_strengths(records: Sequence[Record], *, column: str = "napl") -> Measured:
    """`column` in the mean over all strengths.

    None where the network has collapsed at the weakest strength already, for then the rest says nothing either, and
    where it was hardly linearized at the strongest.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        found = _grid(runs, own)
        if not runs.alive(found[0]):
            raise SaysNothing("nothing is left of it at the weakest strength")
        if found[-1].metrics["active_fraction"] > UNTOUCHED:
            raise SaysNothing(f"it kept more than {UNTOUCHED:.0%} of its units at the strongest penalty")
        return float(np.mean([value(one, column) for one in found]))

    return each(records, number)


def at_the_strongest(records: Sequence[Record], *, column: str = "napl") -> Measured:
    """`column` at the strongest penalty; None where the network collapsed or was hardly linearized.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        strongest = _grid(runs, own)[-1]
        if state := _state(runs, strongest):
            raise SaysNothing(f"at the strongest penalty it {state}")
        return value(strongest, column)

    return each(records, number)


def saturation(records: Sequence[Record]) -> Measured:
    """Fall of the NAPL per doubling of the penalty at its strong end over that along all strengths; at least three.

    1: it falls evenly, 0: it falls no more. None unless at least half of the initial NAPL is there at the weakest
    strength and the network is alive at the strongest, so that neither end is a floor or a ceiling.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        found = _grid(runs, own)
        if len(found) < 3:
            raise SaysNothing("it has fewer than three strengths")
        if value(found[0], "napl") < value(runs.control(found[0]), "napl") / 2:
            raise SaysNothing("less than half of its NAPL is left at the weakest strength")
        if not runs.alive(found[-1]):
            raise SaysNothing("it collapsed at the strongest penalty")
        napl, x = [value(one, "napl") for one in found], [math.log2(one.spec.omega) for one in found]
        whole = (napl[0] - napl[-1]) / (x[-1] - x[0])
        if whole <= 0:
            raise SaysNothing("its NAPL does not fall")
        return (napl[-2] - napl[-1]) / (x[-1] - x[-2]) / whole

    return each(records, number)


def bend(records: Sequence[Record]) -> Measured:
    """How far accuracy over the strength lies off the straight line between its ends, at most, as a share of its fall.

    Of at least three strengths; 0 is a straight line. None unless accuracy falls by two points or more between the
    ends, and where the network collapsed at the strongest penalty.

    Raises:
        RecordError: a unit has runs of several networks.
    """

    def number(runs: Runs, own: list[Record]) -> float:
        found = _grid(runs, own)
        if len(found) < 3:
            raise SaysNothing("it has fewer than three strengths")
        if not runs.alive(found[-1]):
            raise SaysNothing("it collapsed at the strongest penalty")
        x, y = [one.spec.omega for one in found], [value(one, "test_accuracy") for one in found]
        if y[0] - y[-1] < 2:
            raise SaysNothing("its accuracy falls by less than two points")
        straight = np.interp(x, [x[0], x[-1]], [y[0], y[-1]])
        return float(np.abs(np.array(y) - straight).max()) / (y[0] - y[-1])

    return each(records, number)


# ------------------------------------------------------------------------------------------- retrained masks (§4.1.1)


def retrained(
    records: Sequence[Record],
    *,
    masks: str,
    way: str = "chain",
    against: str = "linearized",
    losses: tuple[float, float] = LOSS_OF_A_SOURCE,
) -> Measured:
    """Accuracy with masks of a kind, taken in one of three ways, minus that of the linearized network they come from.

    The unit is the linearized network (its seed); several retrainings of one source count with their mean. Sources are
    blocks; linearized and all kinds of masks are treatments. None where the loss of the linearized network lies outside
    `losses`; no entry where nothing took its masks.

    Args:
        records: with the linearized networks and their controls.
        masks: "exact", "layer" or "global".
        way: "chain", "retrained" or "at once" (`way_of`).
        against: "linearized", or another kind of masks.
        losses: from and to how many points below its control a linearized network may be to say something.
    """
    runs = Runs(records)
    numbers: dict[Unit, dict[Any, float]] = {}
    why: dict[Unit, str] = {}
    taken: dict[str, dict[str, list[float]]] = {}
    for record in runs.by_key.values():
        found = way_of(record.spec)
        if found is not None and found[0] == way:
            taken.setdefault(found[2].key(), {}).setdefault(found[1], []).append(value(record, "test_accuracy"))
    for unit, own in runs.units.items():
        source = only(own)
        kinds = {kind: float(np.mean(some)) for kind, some in taken.get(source.key, {}).items()}
        if masks not in kinds:
            continue
        try:
            loss = runs.loss(source)
        except SaysNothing as nothing:
            why[unit] = str(nothing)
            continue
        low, high = losses
        if low <= loss <= high:
            numbers[unit] = {"linearized": value(source, "test_accuracy")} | kinds
        else:
            lost = round(loss, 1) + 0.0
            why[unit] = f"its linearized network lost {lost:g} points against its control, not {low:g} to {high:g}"
    return blocks_of(numbers, {masks: 1.0, against: -1.0}, why)


# ----------------------------------------------------------------------------------------------- start epoch (§4.1.2)


def _by_start(records: Sequence[Record], column: str) -> tuple[dict[Unit, dict[float, float | None]], dict[Unit, str]]:
    """Unit -> start epoch -> `column` minus that of the control, None where the goal was missed; unit -> why."""
    runs = Runs(record for record in records if record.spec.omega == 0 or record.spec.goal is not None)
    found: dict[Unit, dict[float, float | None]] = {}
    why: dict[Unit, str] = {}
    for unit, own in runs.units.items():
        for start, some in _by(own, start_epoch).items():
            one = only(some)
            row = found.setdefault(unit, {})
            try:
                row[start] = None
                gone = 1 - one.metrics["active_fraction"]
                if not one.reached or one.spec.goal is None:
                    raise SaysNothing("missed the goal")
                if gone > one.spec.goal + BEYOND_THE_GOAL:
                    raise SaysNothing(f"ended far beyond the goal, with {gone:.1%} of its units inactive")
                row[start] = value(one, column) - value(runs.control(one), column)
            except SaysNothing as nothing:
                why[unit] = f"start {start:g} {nothing}"
    return found, why


def _starts(found: Mapping[Unit, Mapping[float, float | None]]) -> list[float]:
    return sorted({start for row in found.values() for start in row})


def _numbered(found: Mapping[Unit, Mapping[float, float | None]]) -> dict[Unit, dict[Any, float]]:
    return {unit: {start: y for start, y in row.items() if y is not None} for unit, row in found.items()}


def advantage(records: Sequence[Record], *, column: str = "test_accuracy") -> Measured:
    """The nonlinear advantage NA: [linearized - control] at the latest start, minus the same at the earliest one.

    At an equal share of inactive units; None where the latest or earliest start missed that goal. What more training
    does by itself is in the controls and taken off. Units are blocks, starts treatments.

    Raises:
        RecordError: two schedules, strengths or networks.
    """
    found, why = _by_start(records, column)
    starts = _starts(found)
    if len(starts) < 2:
        return Measured(dict.fromkeys(found), {unit: "it has one start only" for unit in found})
    return blocks_of(_numbered(found), {starts[-1]: 1.0, starts[0]: -1.0}, why)


def gained_early(records: Sequence[Record], *, early: int, column: str = "test_accuracy") -> Measured:
    """Of NA at the latest start: what arises up to an early start, minus what arises after it.

    Args:
        records: as for `advantage`.
        early: which of the starts in their order, from 0; it lies between the earliest and the latest.
        column: a metric.

    Raises:
        RecordError: as `advantage`.
    """
    found, why = _by_start(records, column)
    starts = _starts(found)
    if not 0 < early < len(starts) - 1:
        told = f"of its {len(starts)} starts, number {early} does not lie between the earliest and the latest"
        return Measured(dict.fromkeys(found), dict.fromkeys(found, told))
    weights = {starts[early]: 2.0, starts[0]: -1.0, starts[-1]: -1.0}
    return blocks_of(_numbered(found), weights, why)


# --------------------------------------------------------------------------------------------------- structure (§4.2)


def _neighbours(shares: np.ndarray) -> np.ndarray:
    """Correlation of the shares of neighbouring layers, along the last axis; NaN where one side does not vary."""
    first, second = shares[..., :-1], shares[..., 1:]
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 1e-12, (first * second).sum(axis=-1) / scale, np.nan)


@lru_cache(maxsize=512)
def excess_autocorrelation(shares: tuple[float, ...]) -> float | None:
    """Lag-1 autocorrelation of layer shares minus its mean over 10,000 permutations of the same shares (fixed seed).

    0: the order of the layers means nothing; above: neighbours are alike, a block; below: stripes. None for fewer than
    four layers or where the layers before the last, or after the first, are all alike.
    """
    found = np.array(shares)
    if len(found) < 4:
        return None
    own = float(_neighbours(found))
    if math.isnan(own):
        return None
    shuffled = np.random.default_rng(0).permuted(np.tile(found, (PERMUTATIONS, 1)), axis=1)
    return own - float(np.nanmean(_neighbours(shuffled)))


def _shares(own: list[Record]) -> np.ndarray:
    shares = layer_shares(only(own))
    if not shares.any():
        raise SaysNothing("no unit is active any more")
    return shares


def autocorrelation(records: Sequence[Record]) -> Measured:
    """`excess_autocorrelation` of the layer shares after the last epoch; None where no unit is left or all are alike.

    Raises:
        RecordError: several strengths.
    """

    def number(_: Runs, own: list[Record]) -> float:
        found = excess_autocorrelation(tuple(_shares(own).tolist()))
        if found is None:
            raise SaysNothing("the shares of its layers do not vary")
        return found

    return each(records, number)


def centre(records: Sequence[Record]) -> Measured:
    """Where the middle of the block lies, 0 in the middle of the network, -0.5 at the first layer, 0.5 at the last.

    The block is the longest run of layers whose active share is above half the largest one. None where that is no
    block: fewer than two layers, more than half of all, or less than 80 % of the layers with such a share.

    Raises:
        RecordError: several strengths.
    """

    def number(_: Runs, own: list[Record]) -> float:
        shares = _shares(own)
        strong = strong_layers(shares)
        first, length = longest_run(strong)
        if length < 2 or length > MOST_OF_A_BLOCK * len(shares) or length < CONNECTED * strong.sum():
            raise SaysNothing("its active layers are no block")
        return (first + (length - 1) / 2) / (len(shares) - 1) - 0.5

    return each(records, number)


def stripes(records: Sequence[Record]) -> Measured:
    """Logarithm to base 2 of the mean share of the inner ReLUs of all blocks over that of the outer ones.

    Inner: between the two convolutions of a block; outer: on the residual stream. 0: no stripes. None where one of
    the two kinds has no unit left, or the network has no blocks of two.

    Raises:
        RecordError: several strengths.
    """

    def number(_: Runs, own: list[Record]) -> float:
        record = only(own)
        shares = _shares(own)
        inside = "relu1" if record.spec.net.endswith("v1") else "relu2"
        blocks: dict[str, dict[str, float]] = {}
        for unit, share in zip(record.units, shares.tolist(), strict=True):
            block, _, kind = unit["name"].rpartition(".")
            if block:
                blocks.setdefault(block, {})[kind] = share
        pairs = [row for row in blocks.values() if set(row) == {"relu1", "relu2"}]
        inner = sum(row[inside] for row in pairs)
        outer = sum(row["relu1"] + row["relu2"] for row in pairs) - inner
        if inner <= 0 or outer <= 0:
            raise SaysNothing("its blocks have no two kinds of layers with units left")
        return math.log2(inner / outer)

    return each(records, number)


# ------------------------------------------------------------------------------------- which measure (App. B.1, B.2)


def _falling(x: np.ndarray, loss: np.ndarray, at: np.ndarray, rising: bool) -> np.ndarray:
    """What a monotone function fitted to (x, loss) says at `at`; interpolated linearly between its points."""
    from scipy.optimize import isotonic_regression

    places = np.unique(x)
    means = np.array([loss[x == place].mean() for place in places])
    weights = np.array([float((x == place).sum()) for place in places])
    fitted = isotonic_regression(means, weights=weights, increasing=rising).x if len(places) > 1 else means
    return np.interp(at, places, fitted)


def prediction(records: Sequence[Record], *, measure: str, against: str = "napl") -> Measured:
    """How much worse one measure predicts the loss of accuracy than another, in points; the unit is the architecture.

    Each architecture is left out in turn: a monotone function of the measure is fitted to the losses (against their
    controls) of all others, and the error is the mean distance of what it says of the one left out, where the others
    reach. Collapsed networks are left out. All None with fewer than four architectures, and unless `against` predicts
    better than the strength does (error at most three quarters): where the strength says it all, no measure was put
    to the test.

    Args:
        records: linearized networks of several architectures on one data set, with their controls.
        measure: "apl", "active_fraction" or another metric.
        against: the measure it is compared with.
    """
    runs = Runs(records)
    names = (measure, against, "omega")
    points: dict[str, list[list[float]]] = {}
    every = [one for own in runs.units.values() for one in own]
    for one in every:
        try:
            if runs.alive(one):
                row = [runs.loss(one), *(value(one, name) for name in names)]
                points.setdefault(architecture(one.spec), []).append(row)
        except SaysNothing:  # without its control there is no loss
            continue
    table = {name: np.array(rows) for name, rows in sorted(points.items())}
    errors: dict[str, list[float]] = {}
    for left_out, mine in table.items():
        others = [rows for name, rows in table.items() if name != left_out]
        if not others:
            continue
        rest = np.concatenate(others)
        within = (mine[:, 1:] >= rest[:, 1:].min(0)) & (mine[:, 1:] <= rest[:, 1:].max(0))
        inside = mine[within.all(axis=1)]
        if len(inside):
            errors[left_out] = [
                float(np.abs(_falling(rest[:, i], rest[:, 0], inside[:, i], name == "omega") - inside[:, 0]).mean())
                for i, name in enumerate(names, 1)
            ]
    told = ""
    if len(errors) < ARCHITECTURES:
        told = f"{len(errors)} architectures can be compared, expected at least {ARCHITECTURES}"
    elif not sum(row[1] for row in errors.values()) < SKILL * sum(row[2] for row in errors.values()):
        told = f"{against} predicts the loss hardly better than the strength does"
    names_of_all = sorted({architecture(one.spec) for one in every})
    numbers: dict[Unit, float | None] = dict.fromkeys(names_of_all)
    if told:
        return Measured(numbers, dict.fromkeys(names_of_all, told))
    numbers |= {name: row[0] - row[1] for name, row in errors.items()}
    silent = [name for name in names_of_all if name not in errors]
    why: dict[Unit, str] = dict.fromkeys(silent, "none of its networks lies where those of the others do")
    return Measured(numbers, why, intervals.mean([row[0] - row[1] for row in errors.values()]))


# ---------------------------------------------------------------------------------------------------------- their names


@dataclass(frozen=True)
class Statistic:
    """A statistic with what the ledger must know of it.

    Attributes:
        measure: the function; it takes records and options.
        says: what its number is, in words.
        napl: whether it reads NAPL values; networks of other kinds (v1) then do not count.
        by_architecture: whether the unit of repetition is an architecture and not a seed.
    """

    measure: Callable[..., Measured]
    says: str
    napl: bool = False
    by_architecture: bool = False


STATISTICS: Mapping[str, Statistic] = {
    "knee": Statistic(knee, "margin of the knee, points a halving", napl=True),
    "at NAPL": Statistic(at_napl, "accuracy at the NAPL, %", napl=True),
    "share above NAPL": Statistic(
        share_above_napl, "active share minus NAPL / initial NAPL, percent points", napl=True
    ),
    "kept depth": Statistic(kept_depth, "NAPL that is left, share of the control's", napl=True),
    "slope of ENW over width": Statistic(enw_slope, "slope of log ENW over log width"),
    "widest minus narrowest": Statistic(widest_minus_narrowest, "widest minus narrowest"),
    "slope over depth": Statistic(depth_slope, "slope of log NAPL over log initial NAPL", napl=True),
    "mean over strengths": Statistic(mean_over_strengths, "mean over the strengths", napl=True),
    "at the strongest": Statistic(at_the_strongest, "at the strongest penalty", napl=True),
    "saturation": Statistic(saturation, "last fall over mean fall of the NAPL", napl=True),
    "bend": Statistic(bend, "distance from a straight line, share of the fall"),
    "retrained": Statistic(retrained, "difference in accuracy, points"),
    "advantage": Statistic(advantage, "nonlinear advantage"),
    "gained early": Statistic(gained_early, "gained early minus gained later"),
    "autocorrelation": Statistic(autocorrelation, "excess autocorrelation of neighbouring layers"),
    "centre of the block": Statistic(centre, "distance of the block from the middle, share of the depth"),
    "stripes": Statistic(stripes, "log2 of inner over outer share"),
    "error of prediction": Statistic(
        prediction, "error minus error with NAPL, points", napl=True, by_architecture=True
    ),
}


def check(statistic: str, options: Mapping[str, Any]) -> Statistic:
    """The statistic of that name, if there is one and it takes these options.

    Raises:
        SpecError: it does not.
    """
    if statistic not in STATISTICS:
        raise SpecError(
            f"statistic is {statistic!r}, expected one of {', '.join(STATISTICS)}{nearest(statistic, STATISTICS)}"
        )
    signature = inspect.signature(STATISTICS[statistic].measure).parameters
    takes = {name: parameter for name, parameter in signature.items() if name != "records"}
    needed = {name for name, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    if not needed <= set(options) <= set(takes):
        raise SpecError(
            f"statistic {statistic!r}: found options {', '.join(sorted(options)) or 'none'}, but it takes "
            f"{', '.join(takes) or 'none'}" + (f" and needs {', '.join(sorted(needed))}" if needed else "")
        )
    known = {"column": (*COLUMNS,), "measure": (*COLUMNS,), "masks": MASKS[1:], "way": WAYS}
    known |= {"against": (*COLUMNS,) if "measure" in takes else ("linearized", *MASKS[1:])}
    for name, given in options.items():
        if name in known:
            if given not in known[name]:
                raise SpecError(
                    f"statistic {statistic!r}: {name} is {given!r}, expected one of {', '.join(known[name])}"
                )
        elif isinstance(given, bool) or not isinstance(given, int if name == "early" else (int, float)):
            raise SpecError(f"statistic {statistic!r}: {name} is {given!r}, expected a number")
    return STATISTICS[statistic]


def needed(statistic: str, options: Mapping[str, Any], spec: RunSpec) -> bool:
    """Whether a statistic, with these options, rests on this run of its experiment; its control goes without saying."""
    if spec.omega > 0:
        return True
    taken = way_of(spec)
    if statistic != "retrained" or taken is None:
        return False
    return taken[0] == options.get("way", "chain") and taken[1] in (options["masks"], options.get("against"))
