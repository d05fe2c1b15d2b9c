"""The pilot of the size `reduced`: by which of three ways a shorter linearization comes nearest to the paper's.

A slope without a gradient of the task travels from 0 to its lock while ω · Σ lr / (1 - momentum) reaches 1.33, so fewer
steps need more of something: more steps from the same images (half the batch), a stronger penalty, or a larger learning
rate for slopes. One seed, four strengths a way; the way with the highest accuracy at a NAPL of 2 and of 4 is taken, and
half the batch if it is within half a point of that. Judged on 5,000 training images that were held out, never on the
test images.
"""

from __future__ import annotations

from dataclasses import replace

from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec

HELD_OUT = 5000
# By way: batch, factor of the slopes' learning rate, strengths. Both other ways have half the steps.
WAYS: dict[str, tuple[int, float, tuple[float, ...]]] = {
    "batch 64": (64, 1.0, (0.0014, 0.002, 0.0032, 0.005)),
    "batch 128, slopes at twice the rate": (128, 2.0, (0.0014, 0.002, 0.0032, 0.005)),
    "batch 128, twice the strength": (128, 1.0, (0.0022, 0.003, 0.0042, 0.006)),
}


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
        control = replace(start, start=recipe.epochs)
        found[name] = [control, *(replace(start, omega=omega, slope_lr=slope_lr) for omega in omegas)]
    return found


def specs() -> list[RunSpec]:
    """All of its runs, each once, the ways in turn."""
    rows = ways().values()
    return list(dict.fromkeys([parent(), *(spec for row in zip(*rows, strict=True) for spec in row)]))
