"""Records that nobody computed: the one builder of the tests, and whole worlds in which the claims hold or do not."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Record

TRAIN, FINE = RECIPES["cifar-train"], RECIPES["cifar-linearize"]


def record(spec: RunSpec, units: Iterable[tuple[int, int]] = (), history: Any = (), **metrics: float) -> Record:
    """A record with these metrics (shares, not percent), and units as (active, channels)."""
    return Record(
        key=spec.key(),
        spec=spec,
        metrics={"test_accuracy": 0.5, "napl": 5.0, "apl": 9.0, "active_fraction": 0.5, "enw": 3.0} | metrics,
        history=list(history),
        units=[{"name": f"relu{i}", "active": a, "channels": c} for i, (a, c) in enumerate(units)],
        wall_s=1.0,
        device="cpu",
        torch="2",
        python="3",
        code={"source": "abc"},
        data={"description": "made up"},
        parent=None,
    )


def parent(seed: int = 0, **more: Any) -> RunSpec:
    return RunSpec(**({"data": "cifar10", "net": "resnet20", "recipe": TRAIN, "seed": seed} | more))


def child(seed: int = 0, omega: float = 0.001, **more: Any) -> RunSpec:
    """A linearization of the parent with the same network."""
    shape = {name: more.pop(name) for name in ("net", "width", "residual", "shortcut", "data") if name in more}
    start = parent(seed, **shape)
    return replace(start, **({"parent": start, "recipe": FINE, "omega": omega} | more))


def write(folder: Path, found: Iterable[Record]) -> None:
    """The records as files of a folder of results."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        (folder / f"{one.key}.json").write_text(json.dumps(one.to_json()))


def noise(*what: Any, sd: float) -> float:
    """A normal number that hangs on `what` alone."""
    return random.Random(repr(what)).gauss(0, sd)


def depth(spec: RunSpec) -> int:
    return int("".join(filter(str.isdigit, spec.net.removesuffix("v1"))) or 6)


def layers(spec: RunSpec) -> list[str]:
    """Names of the unit groups of a ResNet of its depth."""
    blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range((depth(spec) - 2) // 6)]
    return [f"{block}.relu{i}" for block in blocks for i in (1, 2)] + ["relu"]


def initial(spec: RunSpec) -> float:
    """NAPL with all units active, about: half the depth with residual connections, else the depth."""
    return (depth(spec) - 2) / 2 + 2 if spec.residual else depth(spec) - 1.0


@dataclass(frozen=True)
class World:
    """What a run comes to, if the claims hold (the defaults) or not; numbers in points and units.

    Attributes:
        keep: of the NAPL that a strength leaves, by data set: the larger, the less.
        gentle: points that a halving of the NAPL costs below a NAPL of 6.
        steep: the same below 1.5, on top.
        relative: points per halving from the initial NAPL on; takes the place of both if above 0.
        chain: by data set, the end of the chain minus the linearized network.
        late: nonlinear advantage of the latest start, by data set.
        perplexity: what a start at 0 costs.
        block: whether networks without residual connections keep a block and others stripes; False: the other way.
        exponent: of the active units per layer over the width.
        shallow: of the path lengths of other kinds over the depth; 0: they are functions of the NAPL.
        sd: of the noise, in points.
    """

    keep: tuple[float, float] = (1.0, 0.7)
    gentle: float = 0.6
    steep: float = 5.0
    relative: float = 0.0
    chain: tuple[float, float] = (0.1, -2.0)
    late: tuple[float, float] = (1.0, 4.0)
    perplexity: float = 4.0
    block: bool = True
    exponent: float = 0.0
    shallow: float = 0.0
    sd: float = 0.1

    def __call__(self, specs: Iterable[RunSpec]) -> list[Record]:
        """A record of each run, of all it rests on, and of its control."""
        every = {run: None for spec in specs for run in (*spec.lineage, *_control(spec))}
        return [self.run(spec) for spec in every]

    def run(self, spec: RunSpec) -> Record:
        hard = spec.data in ("cifar100", "imagenet")
        moved = noise(spec.key(), sd=self.sd)
        if spec.net.startswith("transformer"):
            gone = self.perplexity * math.exp(-spec.start / (8 if spec.recipe.epochs > 50 else 0.7))
            share = 1 - (spec.goal or 0)
            cost = gone + noise(spec.key(), sd=self.sd) if spec.omega else 0.0
            return self._made(spec, 50.0, 3.0, share, test_perplexity=5 + noise(spec.seed, sd=1) + cost)
        base = (70.0 if hard else 92.0) + 1.5 * math.log2(spec.width) + noise(unit(spec), spec.data, sd=0.3)
        if spec.masks != "none" or (spec.parent is not None and spec.parent.masks != "none"):
            return self._retrained(spec, hard, moved)
        if spec.omega == 0:
            return self._made(spec, self._trained(spec, base) + moved, initial(spec), 1.0)
        if spec.goal is not None and spec.measure == "units":
            start = 0 if spec.parent is None else spec.parent.recipe.epochs
            gone = 1 - math.exp(-start / (8 if start > 24 or spec.recipe.epochs > 20 else 1.5))
            accuracy = self._trained(spec.control, base) - 6 + self.late[hard] * gone
            return self._made(spec, accuracy + moved, 2.0, 1 - spec.goal)
        napl = self.napl(spec, hard)
        return self._made(spec, base - self.loss(spec, napl, hard) + moved, napl, self._share(spec, napl))

    def napl(self, spec: RunSpec, hard: bool) -> float:
        """NAPL that a strength leaves, or just below the goal."""
        if spec.goal is not None:
            return min(0.99 * spec.goal, initial(spec))
        gone = 2.4 * (spec.omega / 0.01) ** 1.2 * self.keep[hard] * spec.width**0.4
        return 1 / (1 / initial(spec) + gone) * (1 + noise(spec.key(), "napl", sd=0.05 * self.sd))

    def loss(self, spec: RunSpec, napl: float, hard: bool) -> float:
        if self.relative:
            return self.relative * math.log2(initial(spec) / napl)
        found = (1.3 if hard else 1) * self.gentle * (_halvings(6, napl) - _halvings(6, initial(spec)))
        return found + self.steep * _halvings(1.5, napl) + (2.0 if spec.recipe.epochs == 30 else 0.0)

    def _trained(self, spec: RunSpec, base: float) -> float:
        """Accuracy by epochs of training: at a plateau after 20, as published networks are."""
        if spec.origin is not None:
            return base
        epochs = spec.recipe.epochs + (spec.parent.recipe.epochs if spec.parent is not None else 0)
        return base * (1 - 0.4 * math.exp(-epochs / 4))

    def _retrained(self, spec: RunSpec, hard: bool, moved: float) -> Record:
        end = spec.masks == "none"
        again = spec.parent if end else spec
        assert again is not None and again.parent is not None
        source = self.run(again.parent)
        gap = self.chain[hard] - (0.0 if end else 0.3)
        gap -= 2.0 if again.masks == "global" and not spec.residual and not hard else 0.0
        gap -= 1.0 if again.weights is not None and again.masks != "exact" else 0.0
        share, napl = source.metrics["active_fraction"], source.metrics["napl"]
        return self._made(spec, 100 * source.metrics["test_accuracy"] + gap + moved, napl, share)

    def _share(self, spec: RunSpec, napl: float) -> float:
        if spec.shortcut == "B":  # of the study of widths
            wide = 37.3 * spec.width
            left = 0.3 * (0.01 / spec.omega) ** 0.8 * spec.width**self.exponent
            return 1 / (1 / wide + 1 / left) / wide
        return min(1.0, napl / 60 * (depth(spec) / 20) ** self.shallow)

    def _made(self, spec: RunSpec, accuracy: float, napl: float, share: float, **more: float) -> Record:
        metrics = {"test_accuracy": accuracy / 100, "napl": napl, "active_fraction": share, "napl_max_pool": napl + 1}
        metrics |= {"apl": 1.8 * napl * (depth(spec) / 20) ** self.shallow, "enw": 37.3 * spec.width * share} | more
        made = record(spec, **metrics)
        names = layers(spec)
        wave = [self._wave(spec, i / max(1, len(names) - 1), i) for i in range(len(names))]
        units = [
            {"name": name, "channels": 1000, "active": round(1000 * min(1, max(0, s))) if spec.omega else 1000}
            for name, s in zip(names, wave, strict=True)
        ]
        return replace(made, units=units)

    def _wave(self, spec: RunSpec, place: float, i: int) -> float:
        """Active share of a layer."""
        if spec.residual == self.block:
            return 0.3 + 0.2 * (-1) ** i + noise(spec.key(), i, sd=0.2 * self.sd)
        middle = 0.35 if spec.data == "cifar100" else 0.5
        return 0.05 + 0.5 * math.exp(-(((place - middle) / 0.15) ** 2)) + noise(spec.key(), i, sd=0.2 * self.sd)


def unit(spec: RunSpec) -> int:
    while spec.parent is not None and spec.parent.published is None:
        spec = spec.parent
    return spec.seed


def _halvings(high: float, low: float) -> float:
    return max(0.0, math.log2(high / low)) if low > 0 else 20.0


def _control(spec: RunSpec) -> Sequence[RunSpec]:
    return (spec.control,) if spec.omega > 0 else ()


def collapsed(found: Iterable[Record]) -> list[Record]:
    """The same runs, every linearized network at chance with next to nothing left of it."""
    return [_each(one, 0.01 if one.spec.data == "cifar100" else 0.1, 0.004, 0.0005) for one in found]


def untouched(found: Sequence[Record]) -> list[Record]:
    """The same runs at strengths so small that nothing became linear: each is its own control, but for noise."""
    by_key = {one.key: one for one in found}
    made = []
    for one in found:
        taken = one.spec.omega > 0 or one.spec.masks != "none" or (one.spec.parent and one.spec.parent.masks != "none")
        if not taken:
            made.append(one)
            continue
        spec = one.spec
        while spec.omega == 0 and spec.parent is not None:
            spec = spec.parent
        plain = by_key.get(spec.control.key(), one)
        moved = noise(one.key, "untouched", sd=0.001)
        changed = _each(one, plain.metrics["test_accuracy"] + moved, plain.metrics["napl"], 1.0, force=True)
        units = [unit | {"active": unit["channels"]} for unit in one.units]
        perplexity = {n: plain.metrics[n] + moved for n in ("test_perplexity",) if n in plain.metrics}
        made.append(replace(changed, units=units, metrics=changed.metrics | perplexity))
    return made


def _each(one: Record, accuracy: float, napl: float, share: float, force: bool = False) -> Record:
    if one.spec.omega == 0 and not force:
        return one
    more = {"test_accuracy": accuracy, "napl": napl, "napl_max_pool": napl, "apl": 1.8 * napl}
    more |= {"active_fraction": share, "enw": 37.3 * one.spec.width * share}
    more |= {"test_perplexity": 300.0} if "test_perplexity" in one.metrics and not force else {}
    units = [unit | {"active": int(i == 0)} for i, unit in enumerate(one.units)]
    return replace(one, metrics=one.metrics | more, units=units)
