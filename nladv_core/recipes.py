"""The paper's training tables as data (App. C.2, Figures 25-27), and the shortened ones of the smaller tiers.

A recipe says how long and how fast a network trains; it knows nothing of networks, data or slopes. `RECIPES` holds them
by name, `<what>-<phase>`. Values that our text of the paper lost or leaves open are ours and said so beside the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from nladv_core.errors import SpecError
from nladv_core.values import canonical, changed

OPTIMIZERS = ("sgd", "adam")
_JUDGED_AT_THE_END = 5  # epochs, enough to see whether a plateau was reached


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of a training table.

    Attributes:
        epochs: passes over the training images, at least 1 (0 in `UNTRAINED` only).
        milestones: epochs (counted from 0, strictly increasing, inside the run) from which on the learning rate is
            multiplied once more by `gamma`.
        lr: learning rate at the start, > 0.
        batch: images or pairs of sentences per forward pass; the last batch of an epoch may be smaller.
        momentum, weight_decay: of SGD. Weight decay never applies to slopes.
        gamma: factor of the multistep schedule (0.1: ours, the paper gives the milestones only).
        flip: random horizontal flips, the paper's only augmentation. Off for digits, whose mirror images are no digits.
        label_smoothing: of the cross entropy, in [0, 1).
        optimizer: "sgd", or "adam", which ignores the momentum; "sgd" ignores betas.
        warmup_steps: steps of the optimiser over which the learning rate rises from 0, in proportion.
        accumulate: batches per step of the optimiser.
        judged: the test split is looked at after every so many epochs, and after each of the last five. It decides
            nothing, and what a run ends with is always measured.

    Raises:
        SpecError: a value of the wrong type or outside its range.
    """

    epochs: int
    lr: float
    batch: int
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 0.1
    flip: bool = True
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    accumulate: int = 1
    judged: int = 1

    def __post_init__(self) -> None:
        canonical(self)
        if self.epochs == self.lr == self.batch == 0:
            if changed(self).keys() != {"epochs", "lr", "batch"}:
                raise SpecError("recipe: nothing is trained (epochs, lr and batch are 0); leave everything else out")
            return
        for name in ("epochs", "batch", "accumulate", "judged"):
            if getattr(self, name) < 1:
                raise SpecError(f"recipe: {name} is {getattr(self, name)}, expected at least 1")
            if getattr(self, name) > 10**6:  # a slip of the pen would run for ever
                raise SpecError(f"recipe: {name} is {float(getattr(self, name)):g}, expected at most a million")
        if not self.lr > 0:
            raise SpecError(f"recipe: lr is {self.lr:g}, expected a learning rate above 0")
        for name in ("momentum", "label_smoothing", *(() if self.optimizer == "sgd" else ("betas",))):
            values = getattr(self, name)
            if not all(0 <= value < 1 for value in (values if isinstance(values, tuple) else (values,))):
                raise SpecError(f"recipe: {name} is {values}, expected to lie in [0, 1)")
        if self.weight_decay < 0 or not 0 < self.gamma <= 1 or self.warmup_steps < 0:
            raise SpecError(
                f"recipe: weight_decay {self.weight_decay:g}, gamma {self.gamma:g}, warmup_steps {self.warmup_steps}; "
                "expected >= 0, in (0, 1] and >= 0"
            )
        steps = self.milestones
        if any(not 0 < m < self.epochs for m in steps) or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise SpecError(
                f"recipe: milestones {list(steps)} with {self.epochs} epochs, expected strictly increasing epochs "
                "inside the run; drop or move those at or after its end"
            )
        if self.optimizer not in OPTIMIZERS:
            raise SpecError(f"recipe: optimizer is {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")

    def lr_at(self, epoch: int, step: int | None = None) -> float:
        """Learning rate during `epoch` (counted from 0), in `step` of the run (from 0); None: after the warm-up."""
        rate = self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return rate if step is None or step >= self.warmup_steps else rate * ((step + 1) / self.warmup_steps)

    def judges(self, epoch: int) -> bool:
        """Whether the test split is looked at after `epoch` (counted from 0)."""
        return (epoch + 1) % self.judged == 0 or epoch >= self.epochs - _JUDGED_AT_THE_END

    def shortened(self, epochs: int) -> Recipe:
        """The same recipe over `epochs` epochs, its milestones moved in proportion and, where they coincide, apart.

        All of them stay: without its last fall a learning rate ends ten times too high.

        Raises:
            SpecError: fewer epochs than there are learning rates.
        """
        count = len(self.milestones)
        if 0 < epochs <= count:
            raise SpecError(
                f"recipe: epochs is {epochs}, expected at least {count + 1}: this recipe has {count + 1} learning "
                "rates, and each needs an epoch"
            )
        moved: list[int] = []
        for milestone in self.milestones:
            moved.append(max(round(milestone * epochs / self.epochs), 1 + (moved[-1] if moved else 0)))
        moved = [min(milestone, epochs - count + i) for i, milestone in enumerate(moved)]
        return replace(self, epochs=epochs, milestones=tuple(moved))

    def until(self, epoch: int) -> Recipe:
        """The first `epoch` epochs of it (at least 1), at the same rates."""
        return replace(self, epochs=epoch, milestones=tuple(m for m in self.milestones if m < epoch))

    def onwards(self, epoch: int, epochs: int) -> Recipe:
        """`epochs` epochs from `epoch` on, at the rates it would have had there; past its end the last rate stays."""
        milestones = tuple(m - epoch for m in self.milestones if epoch < m < epoch + epochs)
        return replace(self, lr=self.lr_at(epoch), epochs=epochs, milestones=milestones)


def _adam(epochs: int, milestones: tuple[int, ...], lr: float, batch: int, **more: Any) -> Recipe:
    """For sentences: Adam as the paper has it for Multi30k."""
    fixed: dict[str, Any] = {"optimizer": "adam", "betas": (0.9, 0.98), "momentum": 0.0, "weight_decay": 0.0}
    fixed |= {"flip": False, "label_smoothing": 0.1}
    return Recipe(epochs=epochs, milestones=milestones, lr=lr, batch=batch, **(fixed | more))


def _sgd(epochs: int, milestones: tuple[int, ...], lr: float, batch: int, **more: Any) -> Recipe:
    return Recipe(epochs=epochs, milestones=milestones, lr=lr, batch=batch, **more)


# What belongs to a network that others trained and that is taken as it is.
UNTRAINED = Recipe(epochs=0, lr=0, batch=0)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # The paper's rows. Retraining with transferred masks (§4.1.1) uses the row of the original training.
        "cifar-train": _sgd(200, (100, 150), 0.1, 256),
        "cinic-train": _sgd(200, (100, 150), 0.1, 256),
        "tiny-imagenet-train": _sgd(80, (70, 75), 0.1, 128),
        "cifar-linearize": _sgd(60, (20, 40), 0.1, 256),
        "cifar-linearize-30": _sgd(30, (10, 20), 0.1, 256),  # §4.1.1, §4.1.2 and the maps of §4.2
        "cinic-linearize": _sgd(34, (10, 22), 0.1, 256),
        # Lost in our text of the paper. Ours: CIFAR's, shortened as its training is (80 of 200 epochs).
        "tiny-imagenet-linearize": _sgd(24, (8, 16), 0.1, 128),
        "imagenet-linearize": _sgd(6, (2, 4), 0.01, 40, flip=False),  # centre crops (§4)
        "multi30k-train": _adam(200, (160, 180), 0.00082, 30, accumulate=10, warmup_steps=2900),
        # Ours, for the smaller tiers. A slope must travel from 0 to 1 within sum(lr) / (1 - momentum) * omega / 2, so
        # fewer steps need a larger omega; lengths and rates were chosen so that a parent trains to a plateau.
        "smoke-train": _sgd(2, (), 0.05, 64, flip=False),
        "smoke-linearize": _sgd(2, (), 0.05, 64, flip=False),
        "quick-train": _sgd(10, (7, 9), 0.1, 64, flip=False),
        "quick-linearize": _sgd(4, (3,), 0.1, 64, flip=False),
        # Whole data sets on two cores. Half the batch of the training gives slopes the way that the paper's 60 epochs
        # give them: the sum of lr over all steps, over 1 - momentum, is 4,340 (4,351 there), so strengths are on one
        # scale.
        "reduced-train": _sgd(24, (12, 18), 0.1, 128, judged=5),
        "reduced-linearize": _sgd(15, (5, 10), 0.1, 64, judged=5),
        "reduced-features": _sgd(6, (4, 5), 0.05, 64),  # of chapter 10, on a quarter of the images
        # The same for sentences. Adam moves a slope by about the learning rate a step, whatever omega: after the slopes
        # are switched on the rates must sum up to more than 1.
        "smoke-translate": _adam(2, (), 0.2, 20, warmup_steps=2),
        "quick-translate": _adam(12, (11,), 0.01, 40, warmup_steps=20),
        "reduced-translate": _adam(12, (9, 11), 0.002, 64, warmup_steps=400),
    }
)
