"""A run is a value: `RunSpec` says everything that decides the outcome, and its key names the result."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nladv_core import datasets, nets, texts, training, values
from nladv_core.errors import SpecError
from nladv_core.recipes import UNTRAINED, Recipe
from nladv_core.reports import MEASURES

GRANULARITIES = ("channel", "layer", "pixel")
MASKS = ("none", "exact", "layer", "global")
# What `datasets.load` takes for digits when nothing is said, written out here so that a key says what it stands for.
_GENERATED: dict[str, dict[str, Any]] = {
    "digits": {"size": 16, "difficulty": 0.5, "train": 6000, "test": 2000},
    "number-words": {"size": 128, "train": 4000, "test": 500},
}


# The fields that name another run; in a key they stand by theirs.
SOURCES = ("parent", "weights")


def _way_to_lock(p: float, margin: float) -> float:
    return (1 - margin ** (2 - p)) / (p * (2 - p)) if p != 2 else -math.log(margin) / 2


def _seeds(spec: RunSpec) -> set[int]:
    """Of a run and of all that it descends from."""
    return {spec.seed}.union(*map(_seeds, spec.sources))


def _usual(data: str) -> dict[str, Any]:
    """What the fields of a data set stand for when nothing is said."""
    if data in texts.TEXTS:
        return _GENERATED.get(data) or {"size": texts.TEXTS[data].vocabulary, **texts.TEXTS[data].rows}
    return _GENERATED.get(data) or {"size": datasets.OFFICIAL[data].side, **datasets.OFFICIAL[data].rows}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides the outcome of one run.

    Attributes:
        data, size, difficulty, train, test: arguments of `datasets.load` (of texts, `size` is that of the vocabulary).
        held_out: so many of the training images, the last ones, are not trained on but judged in place of the test
            images: for choices that the test images must not decide. 0: none.
        net, width, residual, shortcut: arguments of `nets.build`.
        recipe: how long and how fast.
        seed: of weights, shuffles, flips and mask permutations; >= 0.
        parent: the run whose final weights this one starts from; with `masks` other than "none", the linearized run
            whose masks it takes instead, on new weights (paper §4.1.1), then with a seed that no run before it had.
        weights: with `masks`, the run without slopes whose final weights it starts from in place of new ones.
        published: a network that others trained (a key of `nets.PUBLISHED`), taken as it is, to be a parent: `recipe`
            is `recipes.UNTRAINED`. It and all that descend from it see images preprocessed as it was trained.
        omega: strength of the regularizer, >= 0.
        slope_lr: factor of the learning rate for slopes, > 0.
        start: epoch of this run (from 0) at which slopes are switched on; with omega 0 also the number of its epochs:
            never, so that the parent is trained on as it is, a control for what more training does by itself.
        goal: where linearization stops, or None for no goal: the share of units to make inactive, in (0, 1); with
            another `measure`, what is left of it, > 0.
        measure: what the goal counts: "units", "napl" or "relus" (of one input).
        price: what the penalty charges for a unit: "units" (each the same), or by its part of the "napl" or the
            "relus", scaled so that the mean over all slopes is 1.
        pull_back: pull remaining active slopes back to 0 once the goal is reached.
        granularity: one slope per "channel", "layer" or "pixel".
        p, margin: exponent of the penalty; distance from 1 at which a slope locks.
        masks: "none", or the parent's masks "exact", permuted within each "layer", or over the network ("global").
        precision: "float32" or "bfloat16" (autocast).

    Raises:
        SpecError: a value of the wrong type, outside its range, or without any effect on the run it stands in.
    """

    data: str
    net: str
    recipe: Recipe
    seed: int = 0
    size: int | None = None
    difficulty: float | None = None
    train: int | None = None
    test: int | None = None
    held_out: int = 0
    width: float = 1.0
    residual: bool = True
    shortcut: str = "A"
    parent: RunSpec | None = None
    weights: RunSpec | None = None
    published: str | None = None
    omega: float = 0.0
    slope_lr: float = 1.0
    start: int = 0
    goal: float | None = None
    measure: str = "units"
    price: str = "units"
    pull_back: bool = False
    granularity: str = "channel"
    p: float = 0.5
    margin: float = 0.01
    masks: str = "none"
    precision: str = "float32"

    def __post_init__(self) -> None:
        values.canonical(self, "run")
        for name, known in (
            ("data", datasets.NAMES),
            ("granularity", GRANULARITIES),
            ("masks", MASKS),
            ("measure", MEASURES),
            ("price", MEASURES),
            ("precision", training.PRECISIONS),
        ):
            given = getattr(self, name)
            if given not in known:
                raise SpecError(
                    f"run: {name} is {given!r}, expected one of {', '.join(known)}{values.nearest(given, known)}"
                )
        nets.check(self.net, width=self.width, residual=self.residual, shortcut=self.shortcut)
        usual = _usual(self.data)
        said = self.data in _GENERATED  # so that a key says what it stands for
        for name, value in usual.items():
            if said and getattr(self, name) is None:
                object.__setattr__(self, name, value)
            elif not said and getattr(self, name) == value:  # what is all there is goes without saying
                object.__setattr__(self, name, None)
        self._check_task()
        self._check_published()
        self._check_ranges()
        self._check_effect()
        self._check_parent()

    def _check_task(self) -> None:
        """Sentences need a network that reads them, and images one that sees them."""
        text = self.data in texts.TEXTS
        if text != nets.reads_text(self.net):
            takes, other = ("sentences", "transformer6") if text else ("images", "resnet56")
            raise SpecError(f"run: net is {self.net!r}, but {self.data} holds {takes}; expected one such as {other!r}")
        if text:
            fixed: dict[str, tuple[Any, Any]] = {
                "difficulty": (self.difficulty, None),
                "recipe.flip": (self.recipe.flip, False),
            }
            fixed |= {"published": (self.published, None), "held_out": (self.held_out, 0)}
            for name, (given, expected) in fixed.items():
                if given != expected:
                    raise SpecError(f"run: {name} is {given!r}, which sentences do not know; expected {expected!r}")
            if self.granularity == "pixel":
                raise SpecError(
                    "run: granularity is 'pixel', but sentences differ in length; expected 'channel' or 'layer'"
                )

    def _check_published(self) -> None:
        if self.published is None:
            if self.recipe == UNTRAINED:
                raise SpecError("run: its recipe trains nothing, which only a published network may do; give epochs")
            return
        if self.published not in nets.PUBLISHED:
            raise SpecError(
                f"run: no published weights are named {self.published!r}, expected one of {', '.join(nets.PUBLISHED)}"
                f"{values.nearest(self.published, nets.PUBLISHED)}"
            )
        found = nets.PUBLISHED[self.published]
        fixed = {"data": found.data, "net": found.net, "width": 1.0, "residual": True, "shortcut": "A"}
        fixed |= {"recipe": UNTRAINED, "parent": None, "seed": 0, "omega": 0.0, "masks": "none", "start": 0}
        fixed |= {"held_out": 0}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                meant = "one that trains nothing (recipes.UNTRAINED)" if name == "recipe" else repr(value)
                raise SpecError(
                    f"run: {name} is {getattr(self, name)!r}, but the published network {self.published} is taken as "
                    f"it is, expected {meant}; to train it further, make it the parent of a run"
                )

    def _check_ranges(self) -> None:
        if self.omega < 0:
            raise SpecError(f"run: omega is {self.omega:g}, expected at least 0 (0 leaves the slopes unregularised)")
        if self.goal is not None and not 0 < self.goal < (1 if self.measure == "units" else math.inf):
            expected = "a share of inactive units between 0 and 1 (both excluded)"
            if self.measure != "units":
                expected = f"how many {self.measure.upper().replace('RELUS', 'ReLUs')} may be left, above 0"
            raise SpecError(f"run: goal is {self.goal:g}, expected {expected}, or null for no goal")
        if not self.p > 0 or not 0 < self.margin < 1:
            raise SpecError(f"run: p is {self.p:g} and margin {self.margin:g}, expected p > 0 and margin in (0, 1)")
        if not self.slope_lr > 0:
            raise SpecError(f"run: slope_lr is {self.slope_lr:g}, expected a factor above 0")
        if self.seed < 0:
            raise SpecError(f"run: seed is {self.seed}, expected at least 0")
        there = self.train or _usual(self.data)["train"]
        if self.held_out and not 0 < self.held_out < there:
            raise SpecError(f"run: held_out is {self.held_out}, expected fewer than the {there} training images, or 0")
        if self.held_out and self.data != "digits" and self.test is not None:
            raise SpecError(f"run: test is {self.test}, but with held_out no test image is seen; leave test out")
        latest = self.recipe.epochs - (self.omega > 0)
        if self.published is None and not 0 <= self.start <= latest:
            raise SpecError(f"run: start is {self.start}, expected an epoch of it: 0 to {latest}")
        if self.data == "digits":
            sides_and_counts = (8 <= (self.size or 0) <= 128, (self.train or 0) > 0, (self.test or 0) > 0)
            if not all(sides_and_counts) or not 0 <= (self.difficulty or 0) <= 1:
                raise SpecError(
                    f"run: digits with size {self.size}, difficulty {self.difficulty}, train {self.train}, test "
                    f"{self.test}; expected 8 to 128 pixels, 0 to 1, and at least one image each"
                )
            return
        if self.data in texts.TEXTS:
            for name in ("size", "train", "test"):
                least = texts.SMALLEST_VOCABULARY if name == "size" else 1
                most = None if name == "size" else texts.most(self.data)[name]
                asked = getattr(self, name)
                if asked is not None and not (least <= asked and (most is None or asked <= most)):
                    what = "entries of the vocabulary" if name == "size" else "pairs"
                    limits = f"at least {least}" if most is None else f"{least} to {most}"
                    raise SpecError(f"run: {name} is {asked}, expected {limits} {what} of {self.data}, or null")
            return
        official = datasets.OFFICIAL[self.data]
        if self.size is not None or self.difficulty is not None:
            raise SpecError(
                f"run: {self.data} has {official.side} pixels and one difficulty; leave size and difficulty out"
            )
        for name, count in official.rows.items():
            asked = getattr(self, name)
            if asked is not None and not 0 < asked <= count:
                raise SpecError(
                    f"run: {name} is {asked}, expected 1 to {count} images of {self.data}, or null for all of them"
                )

    def _check_effect(self) -> None:
        """Fields without effect must keep their defaults: otherwise two keys would name one result."""
        idle: dict[str, str] = {}
        if not self.linearized:
            reason = "nothing is linearized (no parent, omega 0, no masks)"
            idle |= dict.fromkeys(("start", "granularity", "slope_lr"), reason)
        elif self.start == self.recipe.epochs:
            idle |= {"slope_lr": "no slope is switched on before the end"}
        if self.omega == 0:
            idle |= dict.fromkeys(("goal", "measure", "price", "p", "margin", "pull_back"), "omega is 0")
        elif self.goal is None:
            idle |= dict.fromkeys(("measure", "pull_back"), "there is no goal to reach")
        if not self.residual:
            idle |= {"shortcut": "the network has no residual connections"}
        defaults = {name: f.default for name, f in type(self).__dataclass_fields__.items()}
        for name, reason in idle.items():
            if getattr(self, name) != defaults[name]:
                raise SpecError(f"run: {name} is {getattr(self, name)!r}, but {reason}; leave it out or change that")

        alike = self.price == "units"  # else the dearest slopes come further than the others
        if self.goal is not None and alike and self.way is not None and self.way < _way_to_lock(self.p, self.margin):
            raise SpecError(
                f"run: with omega {self.omega:g} a slope comes at most "
                f"{self.way / _way_to_lock(self.p, self.margin):.0%} of its way to the lock in the "
                f"{self.recipe.epochs - self.start} epochs there are, so the goal cannot be reached; give a larger "
                "omega, more epochs or an earlier start"
            )

    @property
    def way(self) -> float | None:
        """Omega · Σ (learning rate of slopes) / (1 - momentum) over the steps with slopes; None: not of Adam.

        A slope that the task leaves alone follows dα/dτ = ω·p·(1-α)^(p-1) with τ = Σ lr / (1 - momentum), so it gets to
        its lock at 1 - margin when this is (1 - margin^(2-p)) / (p·(2-p)): 1.332 with the paper's p and margin.
        """
        if self.recipe.optimizer != "sgd":
            return None
        steps = math.ceil(math.ceil(self.trained_on / max(self.recipe.batch, 1)) / self.recipe.accumulate)
        rates = sum(self.recipe.lr_at(epoch) for epoch in range(self.start, self.recipe.epochs))
        return self.omega * self.slope_lr * rates * steps / (1 - self.recipe.momentum)

    @property
    def trained_on(self) -> int:
        """Number of training images, or pairs of sentences, that it learns from."""
        return int(self.train or _usual(self.data)["train"]) - self.held_out

    def _check_parent(self) -> None:
        parent = self.parent
        if self.masks != "none":
            if parent is None or not parent.linearized:
                raise SpecError(f"run: masks {self.masks!r} come from a linearized parent run; give one")
            if self.omega > 0:
                raise SpecError("run: retraining with given masks is unregularised; set omega to 0 or masks to 'none'")
            seen = _seeds(parent)
            if self.weights is None and self.seed in seen:
                raise SpecError(
                    f"run: seed is {self.seed}, as of {'a run' if len(seen) > 1 else 'the run'} that its masks come "
                    "from, so it would begin with the same weights and see the images in the same order; give another "
                    "seed"
                )
        if self.weights is not None:
            self._check_weights(self.weights)
        if parent is None:
            return
        shape = ("net", "width", "residual", "shortcut", *(("granularity",) if parent.linearized else ()))
        for name in shape:
            if getattr(self, name) != getattr(parent, name):
                raise SpecError(
                    f"run: {name} is {getattr(self, name)!r} but its parent's is {getattr(parent, name)!r}; "
                    "they must agree"
                )
        if self.held_out != parent.held_out:  # what others trained was trained on all images
            raise SpecError(
                f"run: held_out is {self.held_out} but its parent's is {parent.held_out}; they must agree, or one is "
                "judged on images that the other was trained on"
            )
        if self.origin is not None and self.data != parent.data:
            raise SpecError(
                f"run: data is {self.data!r}, but it descends from {self.origin}, which was trained on "
                f"{parent.data!r}; they must agree"
            )

    def _check_weights(self, weights: RunSpec) -> None:
        if self.masks == "none":
            raise SpecError("run: weights are given without masks; name the run to start from as its parent")
        if weights.linearized:
            raise SpecError(f"run: weights come from {weights}, which has slopes; name a run without them")
        for name in ("data", "net", "width", "residual", "shortcut", "held_out"):
            if getattr(self, name) != getattr(weights, name):
                raise SpecError(
                    f"run: {name} is {getattr(self, name)!r} but that of the run its weights come from is "
                    f"{getattr(weights, name)!r}; they must agree"
                )

    @property
    def sources(self) -> tuple[RunSpec, ...]:
        """The runs whose weights or masks this one takes: those that must be there before it."""
        return tuple(spec for spec in (self.parent, self.weights) if spec is not None)

    @cached_property
    def lineage(self) -> tuple[RunSpec, ...]:
        """All runs that this one rests on, each once and after those that it rests on itself; this one comes last."""
        return (*dict.fromkeys(run for source in self.sources for run in source.lineage), self)

    @property
    def linearized(self) -> bool:
        """Whether the network has slopes: it starts from a parent, is regularised, or takes over masks."""
        return self.parent is not None or self.omega > 0 or self.masks != "none"

    @property
    def role(self) -> str:
        """What it is to other runs of an experiment.

        "parent": a network without slopes; "control": one trained on with its ReLUs kept, as long as it is linearized;
        "retrained": given masks; "retrained further": the end of the chain, a retrained network trained on; else
        "linearized".
        """
        if not self.linearized:
            return "parent"
        if self.masks != "none":
            return "retrained"
        if self.parent is not None and self.parent.masks != "none":
            return "retrained further"
        return "control" if self.omega == 0 and self.start == self.recipe.epochs else "linearized"

    @cached_property
    def control(self) -> RunSpec:
        """The same training with all ReLUs kept: from the same weights, on the same images, for as many epochs.

        What a linearization costs or gains is measured against it: more training alone changes a network as well. Of a
        linearization without a parent it is a network without slopes.
        """
        usual = {name: f.default for name, f in type(self).__dataclass_fields__.items()}
        named = ("omega", "slope_lr", "goal", "measure", "price", "pull_back", "granularity", "p", "margin", "masks")
        plain: dict[str, Any] = {name: usual[name] for name in named}
        start = self.weights or self.parent
        epochs = 0 if start is None else self.recipe.epochs
        return replace(self, **plain, parent=start, weights=None, start=epochs)

    @property
    def origin(self) -> str | None:
        """The published network that this run descends from, by way of weights or only of masks; None: none."""
        return self.parent.origin if self.parent is not None else self.published

    def key(self) -> str:
        """12 hex digits of the SHA-256 of the fields that differ from their defaults, the parent by its key."""
        return self._key

    @cached_property
    def _key(self) -> str:
        found = values.changed(self)
        for name in SOURCES:
            if getattr(self, name) is not None:
                found[name] = getattr(self, name).key()
        return hashlib.sha256(values.text(found).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults, parent and recipe within, as JSON values."""
        return values.changed(self)

    @classmethod
    def from_json(cls, found: Any) -> RunSpec:
        """Inverse of `to_json`.

        Raises:
            SpecError: not an object, unknown or missing fields, or values that the constructor refuses.
        """
        try:
            return values.build(cls, found, "run")
        except RecursionError:
            raise SpecError("run: its parents are nested too deep, expected a few generations") from None

    def __str__(self) -> str:
        what = f"{self.published or self.net} on {self.data}"
        what += f", seed {self.seed}" if self.published is None else ", as published"
        if self.linearized:
            what += f", {self.granularity}-wise, omega {self.omega:g}"
        return f"{self.key()} ({what})"
