"""Finished runs with their controls: what the statistics of the ledger (`outcomes`) are made of.

The *control* of a linearized network is the same recipe from the same parent with all ReLUs kept (`RunSpec.control`). A
unit of repetition is a network before linearization, told by its seed. A unit whose runs say nothing has no number, but
a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nladv_core import intervals
from nladv_core.effects import linearized, value
from nladv_core.errors import RecordError
from nladv_core.intervals import Estimate
from nladv_core.specs import RunSpec
from nladv_core.store import Record

Unit = int | str

# Between neighbours of a curve further apart than this factor in NAPL nothing is interpolated. Along the curves that we
# know, accuracy per halving of the NAPL changes by about 1.4 points from one halving to the next, so a straight line
# over one halving is off by at most 1.4 / 8 < 0.2 points: less than half the tolerance of half a point.
BRACKET = 2.0
# The same where a NAPL is looked for at a given loss: over two halvings the line is off by 0.7 points, a third of a
# halving or less, and in the same direction for all networks that are compared.
BRACKET_OF_A_LOSS = 4.0
# A network that kept less than this share of its control's accuracy has collapsed.
ALIVE = 0.5


@dataclass(frozen=True)
class Measured:
    """What runs say of one question.

    Attributes:
        numbers: unit of repetition -> its number; None where its runs say nothing.
        why: unit -> why it has none.
        estimate: mean and standard error by the design that the numbers come from; None without a number.
    """

    numbers: Mapping[Unit, float | None]
    why: Mapping[Unit, str] = field(default_factory=dict)
    estimate: Estimate | None = None

    @property
    def found(self) -> dict[Unit, float]:
        """The units that have a number."""
        return {unit: number for unit, number in self.numbers.items() if number is not None}


WAYS = ("chain", "retrained", "at once")


def way_of(spec: RunSpec) -> tuple[str, str, RunSpec] | None:
    """How a run came to its masks: (way, kind of masks, linearized source); None if it took none.

    "retrained": new weights with the masks, trained like the parent; "chain": the same and then, with the same masks,
    the recipe of the linearization, so that as many epochs were spent as on the linearized network; "at once": the
    trained parent with the masks all at once and the recipe of the linearization.
    """
    if spec.omega > 0:
        return None
    parent = spec.parent
    if spec.masks != "none" and parent is not None:
        return ("retrained" if spec.weights is None else "at once"), spec.masks, parent
    if parent is not None and parent.masks != "none" and parent.weights is None and parent.parent is not None:
        source = parent.parent
        return ("chain", parent.masks, source) if spec.start == 0 and spec.recipe == source.recipe else None
    return None


def unit_of(spec: RunSpec) -> int:
    """The unit of repetition that a run belongs to: the seed of the network that everything before it began with.

    A published network is one for all; then it is the seed of what was made of it.
    """
    while spec.parent is not None and spec.parent.published is None:
        spec = spec.parent
    return spec.seed


def architecture(spec: RunSpec) -> str:
    """Network, width, residual connections and shortcut in a phrase."""
    told = spec.origin or spec.net
    told += f" of width {spec.width:g}" if spec.width != 1 else ""
    told += "" if spec.residual else " without residual connections"
    return told + (f" with shortcut {spec.shortcut}" if spec.shortcut != "A" else "")


class SaysNothing(Exception):
    """The runs of a unit say nothing, and why."""


class Runs:
    """Records, and what they are to each other.

    Attributes:
        by_key: all of them.
        units: unit -> its linearized runs in the order of their strength.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.by_key = {record.key: record for record in records}
        self.units: dict[int, list[Record]] = {}
        for record in sorted(linearized(self.by_key.values()), key=lambda one: one.spec.omega):
            self.units.setdefault(unit_of(record.spec), []).append(record)
        self.units = dict(sorted(self.units.items()))

    def control(self, record: Record) -> Record:
        """The control of a linearized run.

        Raises:
            SaysNothing: it is not among the records.
        """
        found = self.by_key.get(record.spec.control.key())
        if found is None:
            raise SaysNothing("its control was not run")
        return found

    def loss(self, record: Record) -> float:
        """Points of accuracy below the control."""
        return value(self.control(record), "test_accuracy") - value(record, "test_accuracy")

    def alive(self, record: Record) -> bool:
        """Whether it kept an active unit and half of the accuracy of its control."""
        kept = value(record, "test_accuracy") >= ALIVE * value(self.control(record), "test_accuracy")
        return kept and record.metrics["active_fraction"] > 0


def each(records: Iterable[Record], number: Callable[[Runs, list[Record]], float]) -> Measured:
    """One number a unit from its linearized runs, and their mean."""
    runs = Runs(records)
    numbers: dict[Unit, float | None] = {}
    why: dict[Unit, str] = {}
    for unit, own in runs.units.items():
        try:
            numbers[unit] = number(runs, own)
        except SaysNothing as nothing:
            numbers[unit], why[unit] = None, str(nothing)
    found = [y for y in numbers.values() if y is not None]
    return Measured(numbers, why, intervals.mean(found) if found else None)


def one_network(own: Sequence[Record]) -> None:
    """Refuse runs of one unit that differ in more than their strength and goal.

    Raises:
        RecordError: they are no curve.
    """
    free = ("omega", "goal", "measure")
    names = [name for name in RunSpec.__dataclass_fields__ if name not in free]
    shapes = {tuple(getattr(one.spec, name) for name in names) for one in own}
    if len(shapes) > 1:
        keys = ", ".join(one.key for one in own[:3])
        raise RecordError(f"runs {keys} are of several networks; pass only the runs of one network on one data set")


def only(own: Sequence[Record]) -> Record:
    """The one run that there should be.

    Raises:
        RecordError: there are several.
    """
    if len(own) > 1:
        raise RecordError(
            f"runs {own[0].key} and {own[1].key} agree in seed and what is compared; pass only the runs of one strength"
        )
    return own[0]


def blocks_of(
    numbers: Mapping[Unit, Mapping[Any, float]], weights: Mapping[Any, float], why: Mapping[Unit, str]
) -> Measured:
    """A contrast of treatments, unit by unit and over all of them.

    A unit has a number if it has the treatments of the contrast. Further treatments help with the residuals where every
    such unit has them.
    """
    said = {unit: "the runs that are compared are not all there" for unit in numbers} | dict(why)
    whole = {unit: row for unit, row in numbers.items() if set(weights) <= set(row)}
    by_unit: dict[Unit, float | None] = dict.fromkeys(sorted({*numbers, *why}, key=str))
    by_unit |= {unit: sum(weight * row[name] for name, weight in weights.items()) for unit, row in whole.items()}
    if not whole:
        return Measured(by_unit, said)
    shared = set.intersection(*(set(row) for row in whole.values()))
    estimate = intervals.contrast({unit: {name: row[name] for name in shared} for unit, row in whole.items()}, weights)
    return Measured(by_unit, {unit: text for unit, text in said.items() if unit not in whole}, estimate)


@dataclass(frozen=True)
class Curve:
    """A column over the NAPL, from the control down to the last network that has an active unit.

    Points of equal NAPL count with their mean. Of a monotone curve, what falls where it should rise is pooled (isotonic
    regression), and between neighbours the column is interpolated over log NAPL by monotone cubics (PCHIP); of another
    one by straight lines over log NAPL. Nothing is extrapolated.

    Attributes:
        napl: increasing, above 0.
        column: rising with it, if monotone.
        monotone: whether it is to rise.
    """

    napl: np.ndarray
    column: np.ndarray
    monotone: bool = True

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]], *, monotone: bool = True) -> Curve:
        """Through (NAPL, value) pairs; those with a NAPL of 0 have no logarithm and are left out."""
        from scipy.optimize import isotonic_regression

        by_napl: dict[float, list[float]] = {}
        for napl, y in points:
            if napl > 0:
                by_napl.setdefault(napl, []).append(y)
        places = sorted(by_napl)
        fitted = np.array([np.mean(by_napl[place]) for place in places], dtype=float)
        if monotone and len(places) > 1:
            fitted = isotonic_regression(fitted, weights=[float(len(by_napl[place])) for place in places]).x
        return cls(np.array(places, dtype=float), fitted, monotone)

    def _between(self, i: int, factor: float) -> Any:
        from scipy.interpolate import PchipInterpolator

        low, high = self.napl[i], self.napl[i + 1]
        if high / low > factor:
            raise SaysNothing(
                f"the neighbouring networks have NAPL {low:.3g} and {high:.3g}, more than a factor of {factor:g} apart"
            )
        if not self.monotone:
            return lambda x: np.interp(x, np.log(self.napl), self.column)
        return PchipInterpolator(np.log(self.napl), self.column)

    def at(self, napl: float) -> float:
        """The column at a NAPL between two networks whose NAPLs are no more than `BRACKET` apart."""
        exact = np.flatnonzero(self.napl == napl)
        if len(exact):
            return float(self.column[exact[0]])
        i = int(np.searchsorted(self.napl, napl)) - 1
        if not 0 <= i < len(self.napl) - 1:
            raise SaysNothing(f"its networks do not reach NAPL {napl:.3g}")
        return float(self._between(i, BRACKET)(math.log(napl)))

    def where(self, y: float) -> float:
        """The NAPL at which the column is `y`, between networks no more than `BRACKET_OF_A_LOSS` apart."""
        from scipy.optimize import brentq

        below = np.flatnonzero(self.column <= y)
        if not len(below) or below[-1] == len(self.napl) - 1:
            raise SaysNothing("its networks do not get there")
        i = int(below[-1])  # of several NAPLs, the largest
        between = self._between(i, BRACKET_OF_A_LOSS)
        ends = math.log(self.napl[i]), math.log(self.napl[i + 1])
        return math.exp(float(brentq(lambda x: float(between(x)) - y, *ends)))
