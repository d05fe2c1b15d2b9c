"""The pilot of the size `reduced`: by which of three ways a shorter linearization comes nearest to the paper's.

A slope without a gradient of the task travels from 0 to its lock while ω · Σ lr / (1 - momentum) grows to 1.33
(`RunSpec.way`), so fewer steps need more of something: more steps from the same images (half the batch), a stronger
penalty, or a larger learning rate for slopes. One seed, four strengths a way. Judged on 5,000 training images that were
held out, never on the test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nladv_core import controls
from nladv_core.effects import value
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = 5000
# By way: batch, factor of the slopes' learning rate, strengths. Both other ways have half the steps.
WAYS: Mapping[str, tuple[int, float, tuple[float, ...]]] = {
    "half the batch": (64, 1.0, (0.0014, 0.002, 0.0032, 0.005)),
    "slopes at twice the rate": (128, 2.0, (0.0014, 0.002, 0.0032, 0.005)),
    "a stronger penalty": (128, 1.0, (0.0022, 0.003, 0.0042, 0.006)),
}
FIRST = next(iter(WAYS))  # taken unless another is clearly better
NAPLS = (2.0, 4.0)  # where the ways are compared
CLEARLY = 0.5  # points that another way must be better by, in the mean over `NAPLS`
PLATEAU = 0.5  # points by which the control may end above the parent, or the training was too short


def parent() -> RunSpec:
    """The one network that all ways linearize."""
    return RunSpec(
        data="cifar10", net="resnet20", recipe=RECIPES["reduced-train"], held_out=HELD_OUT, precision="bfloat16"
    )


def ways() -> dict[str, list[RunSpec]]:
    """By way: its control, then its strengths."""
    found = {}
    for name, (batch, slope_lr, omegas) in WAYS.items():
        recipe = replace(RECIPES["reduced-linearize"], batch=batch)
        start = replace(parent(), parent=parent(), recipe=recipe)
        linearized = [replace(start, omega=omega, slope_lr=slope_lr) for omega in omegas]
        found[name] = [linearized[0].control, *linearized]
    return found


def specs() -> list[RunSpec]:
    """All of its runs, each once, the ways in turn."""
    rows = ways().values()
    return list(dict.fromkeys([parent(), *(spec for row in zip(*rows, strict=True) for spec in row)]))


@dataclass(frozen=True)
class Judgement:
    """What the pilot's records say.

    Attributes:
        accuracy: way -> NAPL (`NAPLS`) -> accuracy in percent of the held-out images, interpolated over log NAPL
            (`controls.Curve`); None where its networks do not reach that NAPL.
        gained: points by which the control of the first way ended above the parent.
        chosen: the way with the highest mean, the first one if it is within `CLEARLY` of that; None if a way lacks a
            number.
    """

    accuracy: Mapping[str, Mapping[float, float | None]]
    gained: float
    chosen: str | None

    @property
    def long_enough(self) -> bool:
        """Whether the parent was on its plateau."""
        return self.gained <= PLATEAU


def judge(records: Sequence[Record]) -> Judgement | None:
    """The three ways compared; None unless all of the pilot's runs are among the records."""
    by_key = {record.key: record for record in records}
    if not all(spec.key() in by_key for spec in specs()):
        return None
    accuracy: dict[str, dict[float, float | None]] = {}
    for name, runs in ways().items():
        points = [by_key[spec.key()] for spec in runs]
        curve = controls.Curve.through((value(one, "napl"), value(one, "test_accuracy")) for one in points)
        accuracy[name] = {}
        for napl in NAPLS:
            try:
                accuracy[name][napl] = curve.at(napl)
            except controls.SaysNothing:
                accuracy[name][napl] = None
    control = by_key[ways()[FIRST][0].key()]
    gained = value(control, "test_accuracy") - value(by_key[parent().key()], "test_accuracy")
    means = {
        name: sum(y for y in row.values() if y is not None) / len(row)
        for name, row in accuracy.items()
        if None not in row.values()
    }
    chosen = None
    if len(means) == len(WAYS):
        best = max(means, key=means.__getitem__)
        chosen = best if means[best] > means[FIRST] + CLEARLY else FIRST
    return Judgement(accuracy, gained, chosen)


def figure(records: Sequence[Record], source: str) -> Figure:
    """Accuracy on the held-out images over NAPL, a line for each way, its control as the last point."""
    from nladv_core.figures import BLUE, GREEN, GREY, ORANGE, _new, _stamp, style

    by_key = {record.key: record for record in records}
    with style():
        canvas, axis = _new(height=3.4)
        looks = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."))
        for (name, runs), (colour, marker, line) in zip(ways().items(), looks, strict=True):
            points = sorted(
                (value(one, "napl"), value(one, "test_accuracy")) for one in (by_key[s.key()] for s in runs)
            )
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=name)
        for napl in NAPLS:
            axis.axvline(napl, color=GREY, linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="NAPL", ylabel="accuracy on held-out images, %")
        axis.legend(loc="lower right")
        return _stamp(canvas, source)
