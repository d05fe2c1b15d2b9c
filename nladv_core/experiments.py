"""What each chapter may be asked for, and which runs that needs: one frozen dataclass per chapter.

The fields of a chapter are the papermill parameters of its notebook; None stands for what the tier decides. `specs()`
says which runs it needs, and is the one place that does.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, get_args

from nladv_core import nets, specs, values
from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.tiers import LIVE, TIERS, Chapter


@dataclass(frozen=True, kw_only=True)
class Linearization(Chapter):
    """Chapter 01 (§3): one network linearized live.

    Attributes:
        dataset, network: by name; None: by tier. The network may be a published one (a key of `nets.PUBLISHED`).
        omega: strength of the regularizer, >= 0; None: by tier.
        seed: of parent and linearization.
    """

    name: ClassVar[str] = "01_linearization"
    dataset: str | None = None
    network: str | None = None
    omega: float | None = None
    seed: int = 0

    def specs(self) -> list[RunSpec]:
        """The one linearization that the chapter shows."""
        tier = TIERS[self.tier]
        parent = self._parent(self.dataset, self.network, self.seed)
        omega = tier.omega if self.omega is None else self.omega
        recipe = self._recipe(tier.linearization, parent.data)
        return [self._child(parent, seed=self.seed, recipe=recipe, omega=omega)]


@dataclass(frozen=True, kw_only=True)
class PathLength(Chapter):
    """Chapter 02 (§3.1, App. A): exact path lengths; nothing is trained.

    Attributes:
        network: whose distributions are drawn; None: by tier.
        size: side of its input in pixels, at least 8.
    """

    name: ClassVar[str] = "02_path_length"
    network: str | None = None
    size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 8:
            raise SpecError(f"{self.name}: size is {self.size}, expected at least 8 pixels")
        if self.network is not None and self.network in nets.PUBLISHED:  # of which only the architecture matters here
            object.__setattr__(self, "network", nets.PUBLISHED[self.network].net)
        self._parent(None, self.network, 0)  # refuses an unknown network
        object.__setattr__(self, "network", self.network or ("resnet20" if self.tier == "smoke" else "resnet56"))


MASKS = specs.MASKS[1:]  # without "none"
SCHEDULES = ("restart", "continue")


WAYS = ("chain", "at once")
# Added to a source's seed for what begins anew, so that its weights and its order of images are other ones.
ANOTHER_SEED = 100


@dataclass(frozen=True, kw_only=True)
class RetrainingMasks(Chapter):
    """Chapter 03 (§4.1.1): networks that are given the pattern of active units of a linearized one.

    Networks are trained and linearized; each is a source of masks, taken as they are, permuted within each layer, or
    over the network. In a *chain* a new network is trained with them from new weights, for as long as the first was
    (the paper's number), and then as long as linearizing took, so that both had equally many epochs. *At once*, the
    trained network itself is given the masks and trained on, as long as linearizing took.

    Attributes:
        dataset, network: None: by tier. Not a published network: its training cannot be repeated here.
        residuals: with residual connections (S), without (NS), or both; None: both at the tier "paper", else with.
        omega: strength of the linearization, > 0; None: by tier.
        masks: of "exact", "layer", "global".
        ways: of "chain", "at once"; None: both, where the chapter is live the first.
        seeds: of the sources, the independent repetitions; None: by tier.
    """

    name: ClassVar[str] = "03_retraining_masks"
    dataset: str | None = None
    network: str | None = None
    residuals: tuple[bool, ...] | None = None
    omega: float | None = None
    masks: tuple[str, ...] = MASKS
    ways: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """At the tier "paper" the networks of the paper's table (Fig. 3)."""
        if tier != "paper":
            return super().editions(tier)
        orders: list[tuple[str, str | None, bool]] = [
            ("cifar10", None, True),
            ("cifar100", None, True),
            ("cifar10", None, False),
            ("cifar100", None, False),
            ("cifar10", "pyramidnet110", True),
        ]
        return [
            cls(tier=tier, device="cpu", dataset=dataset, network=network, residuals=(residual,))
            for dataset, network, residual in orders
        ]

    def specs(self) -> list[RunSpec]:
        """For each architecture and seed: parent, control and linearization, then what its masks are given to."""
        tier = TIERS[self.tier]
        omega = tier.omega if self.omega is None else self.omega
        if not omega > 0:
            raise SpecError(f"{self.name}: omega is {omega:g}, expected above 0: without it every mask is the same")
        ways = self.ways or (WAYS[:1] if self.tier in LIVE else WAYS)
        for chosen, known, field in ((self.masks, MASKS, "masks"), (ways, WAYS, "ways")):
            for one in chosen:
                if one not in known:
                    raise SpecError(f"{self.name}: {field} has {one!r}, expected some of {', '.join(known)}")
        found: dict[RunSpec, None] = {}
        for residual in self.residuals or ((True, False) if self.tier == "paper" else (True,)):
            for seed in self.seeds or tier.seeds:
                parent = self._own(
                    self._parent(self.dataset, self.network, seed, residual=residual, small=True),
                    "was trained elsewhere, and its masks must be tried by the same training",
                )
                recipe = self._recipe(tier.short, parent.data)
                control, source = self._linearized(parent, (omega,), recipe)
                found |= dict.fromkeys((parent, control, source))
                for kind in self.masks:
                    given: dict[str, Any] = {"omega": 0.0, "masks": kind, "parent": source}
                    if "chain" in ways:
                        again = replace(source, **given, seed=seed + ANOTHER_SEED, recipe=parent.recipe)
                        found |= dict.fromkeys((again, replace(again, masks="none", parent=again, recipe=recipe)))
                    if "at once" in ways:
                        found[replace(source, **given, weights=parent)] = None
        return list(found)


@dataclass(frozen=True, kw_only=True)
class EarlyAndLate(Chapter):
    """Chapter 04 (§4.1.2): how long a network was trained before its slopes are switched on, at an equal share left.

    A network is trained for some epochs of the original schedule, then linearized for a given number of epochs until a
    goal share of its units is inactive. Start 0 linearizes a network that was never trained. Beside each stands its
    control, the same training with all ReLUs kept: a late start has been trained for longer, and that alone helps.

    Attributes:
        datasets, difficulties, network, width: None: by tier. Difficulties are those of digits.
        starts: epochs of training before, from 0 to the length of the original training; None: by tier.
        goal: share of units to make inactive, in (0, 1); None: by tier.
        omega: strength until then, > 0; None: by tier.
        schedules: "restart" (the learning rate of the linearization's own recipe) and "continue" (that of the original
            schedule, from where it stopped). The paper does not say which (ours: "restart").
        seeds: repetitions; None: by tier.
        epochs: of the linearization; None: by tier.
    """

    name: ClassVar[str] = "04_early_and_late"
    datasets: tuple[str, ...] | None = None
    difficulties: tuple[float, ...] | None = None
    network: str | None = None
    width: float | None = None
    starts: tuple[int, ...] | None = None
    goal: float | None = None
    omega: float | None = None
    schedules: tuple[str, ...] = ("restart",)
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """At the tier "paper" the harder of two data sets, where the paper sees more, comes first.

        Not with the schedule "continue": its learning rate is a hundredth at the late starts, too little for a slope to
        get to its lock in the epochs there are, so that the goal is out of reach (`RunSpec.way`).
        """
        if tier != "paper":
            return super().editions(tier)
        return [cls(tier=tier, device="cpu", datasets=(data,)) for data in ("cifar100", "cifar10")]

    def specs(self) -> list[RunSpec]:
        """For each task, seed, start and schedule: the parent, its control and its linearization."""
        tier = TIERS[self.tier]
        for schedule in self.schedules:
            if schedule not in SCHEDULES:
                raise SpecError(f"{self.name}: schedules has {schedule!r}, expected some of {', '.join(SCHEDULES)}")
        if self.omega is not None and not self.omega > 0:
            raise SpecError(f"{self.name}: omega is {self.omega:g}, expected above 0: without it no goal is reached")
        difficulties = self.difficulties or ((tier.difficulty,) if tier.difficulty is not None else None)
        datasets = self.datasets or (tier.dataset,)
        difficulties = difficulties if "digits" in datasets else self.difficulties
        found: dict[RunSpec, None] = {}
        for dataset, difficulty in self._tasks(datasets, difficulties):
            for seed in self.seeds or tier.seeds:
                whole = self._parent(dataset, self.network, seed, width=self.width, difficulty=difficulty, small=True)
                self._own(whole, "is known after its training only, but this chapter starts within it")
                found |= dict.fromkeys(
                    spec for start in self.starts or tier.starts for spec in self._from(whole, start)
                )
        return list(found)

    def _from(self, whole: RunSpec, start: int) -> list[RunSpec]:
        tier = TIERS[self.tier]
        if not 0 <= start <= whole.recipe.epochs:
            raise SpecError(
                f"{self.name}: starts has {start}, expected epochs of the training: 0 to {whole.recipe.epochs}"
            )
        short = self._recipe(tier.short, whole.data, self.epochs)
        more: dict[str, Any] = {
            "omega": tier.goal_omega if self.omega is None else self.omega,
            "goal": tier.goal if self.goal is None else self.goal,
        }
        recipes = {"restart": short, "continue": whole.recipe.onwards(start, short.epochs)}
        # At the end of the training it is the very network that other chapters linearize.
        parent = whole if start == whole.recipe.epochs else replace(whole, recipe=whole.recipe.until(max(start, 1)))
        found = [parent] if start else []
        for schedule in self.schedules:
            recipe = recipes[schedule]
            one = self._child(parent, recipe=recipe, **more) if start else replace(whole, recipe=recipe, **more)
            found += [one.control, one]
        return found


@dataclass(frozen=True, kw_only=True)
class Structure(Chapter):
    """Chapter 05 (§4.2): in which layers units stay active, epoch by epoch, with and without residual connections.

    Attributes:
        dataset, network: None: by tier. The network may be a published one (a key of `nets.PUBLISHED`).
        residuals: with residual connections (S), without (NS), or both; None: both, but a published network as it is.
        omega: strength, > 0; None: by tier, mild enough to leave a pattern.
        seeds: repetitions; None: by tier.
        epochs: of the linearization; None: by tier.
    """

    name: ClassVar[str] = "05_structure"
    dataset: str | None = None
    network: str | None = None
    residuals: tuple[bool, ...] | None = None
    omega: float | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """At the tier "paper" on the paper's two data sets."""
        if tier == "paper":
            return [cls(tier=tier, device="cpu", dataset=dataset) for dataset in ("cifar10", "cifar100")]
        return super().editions(tier)

    def specs(self) -> list[RunSpec]:
        """Parents, their controls and their linearizations."""
        tier = TIERS[self.tier]
        omega = tier.mild if self.omega is None else self.omega
        if not omega > 0:
            raise SpecError(f"{self.name}: omega is {omega:g}, expected above 0: without it no unit becomes linear")
        found: dict[RunSpec, None] = {}
        published = self._parent(self.dataset, self.network, 0).published is not None
        for residual in self.residuals or ((True,) if published else (True, False)):
            for seed in self.seeds or tier.seeds:
                parent = self._parent(self.dataset, self.network, seed, residual=residual)
                recipe = self._recipe(tier.short, parent.data, self.epochs)
                found |= dict.fromkeys((parent, *self._linearized(parent, (omega,), recipe, seed=seed)))
        return list(found)


@dataclass(frozen=True, kw_only=True)
class AccuracyAndDepth(Chapter):
    """Chapter 06 (§4.2): accuracy against NAPL over omega.

    Attributes:
        dataset, width: None: by tier.
        network: a name for `nets.build`, or a published network (a key of `nets.PUBLISHED`, such as
            "akamaster/resnet20") that becomes the one parent of all seeds; None: by tier.
        residual: with residual connections (S) or without (NS).
        omegas: strengths for channel-wise slopes, >= 0; None: by tier.
        layer_omegas: strengths for layer-wise slopes, >= 0; None: by tier.
        goals: NAPLs that further channel-wise linearizations end just below; None: by tier.
        seeds: repetitions; None: by tier.
        granularities: of "channel", "layer", "pixel" (which takes the channel-wise omegas).
        epochs: of the linearization, its schedule scaled; None: the tier's recipe.
        p: exponent of the penalty, > 0 (0.5 in the paper).
    """

    name: ClassVar[str] = "06_accuracy_and_depth"
    dataset: str | None = None
    network: str | None = None
    width: float | None = None
    residual: bool = True
    omegas: tuple[float, ...] | None = None
    layer_omegas: tuple[float, ...] | None = None
    goals: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    granularities: tuple[str, ...] = ("channel", "layer")
    epochs: int | None = None
    p: float = 0.5

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """At the tier "paper" its curves: both data sets, with and without residual connections."""

        def edition(**given: Any) -> Any:
            return cls(tier=tier, device="cpu", **({"granularities": ("channel",)} | given))

        if tier == "paper":
            pyramid = {"network": "pyramidnet110"}
            return [
                edition(),
                edition(dataset="cifar100"),
                edition(residual=False),
                edition(dataset="cifar100", residual=False),
                edition(granularities=("layer",)),
                edition(**pyramid),
                edition(**pyramid, residual=False),
                edition(dataset="imagenet", network="torchvision/resnet50", omegas=(0.0003, 0.001, 0.003, 0.01)),
            ]
        return super().editions(tier)

    def parents(self) -> list[RunSpec]:
        """The networks before linearization, one per seed; a published network is one for all seeds."""
        return list(dict.fromkeys(self._starts().values()))

    def _starts(self) -> dict[int, RunSpec]:
        """The parent of each seed."""
        seeds = TIERS[self.tier].seeds if self.seeds is None else self.seeds
        more: dict[str, Any] = {"width": self.width, "residual": self.residual}
        return {seed: self._parent(self.dataset, self.network, seed, **more) for seed in seeds}

    def specs(self) -> list[RunSpec]:
        """Parents and controls, and the linearizations for each granularity and omega, then for each goal."""
        tier, starts = TIERS[self.tier], self._starts()
        recipes = {seed: self._recipe(tier.linearization, one.data, self.epochs) for seed, one in starts.items()}
        found = dict.fromkeys(starts.values())
        for seed, parent in starts.items():
            found |= dict.fromkeys(self._linearized(parent, (), recipes[seed], seed=seed))
        for granularity in self.granularities:
            layer = granularity == "layer"
            given, usual = (self.layer_omegas, tier.layer_omegas) if layer else (self.omegas, tier.omegas)
            for omega in usual if given is None else given:
                for seed, parent in starts.items():
                    more = {"recipe": recipes[seed], "omega": omega, "granularity": granularity}
                    more |= {"p": self.p} if omega > 0 else {}
                    found[self._child(parent, seed=seed, **more)] = None
        usual = tier.goals if "channel" in self.granularities and self.epochs is None else ()
        for goal in usual if self.goals is None else self.goals:
            for seed, parent in starts.items():
                more = {"recipe": recipes[seed], "omega": tier.goal_omega, "p": self.p}
                found[self._child(parent, seed=seed, goal=goal, measure="napl", **more)] = None
        return list(found)


@dataclass(frozen=True, kw_only=True)
class Width(Chapter):
    """Chapter 07 (§4.3.1): how many units stay active in networks of different initial width (shortcut B).

    Attributes:
        dataset, network: None: by tier.
        widths: factors of the number of channels, > 0; None: by tier.
        omegas: strengths, > 0; None: the tier's few, where the chapter is live one in the middle.
        seeds: repetitions; None: by tier.
        epochs: of the linearization; None: by tier.
    """

    name: ClassVar[str] = "07_width"
    dataset: str | None = None
    network: str | None = None
    widths: tuple[float, ...] | None = None
    omegas: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    def specs(self) -> list[RunSpec]:
        """Parents, their controls and their linearizations, width by width."""
        tier = TIERS[self.tier]
        omegas = self.omegas or ((tier.omega,) if self.tier in LIVE else tier.few)
        _above_zero(self.name, omegas)
        found: dict[RunSpec, None] = {}
        for width in self.widths or tier.widths:
            for seed in self.seeds or tier.seeds:
                parent = self._parent(self.dataset, self.network, seed, width=width, shortcut="B", small=True)
                recipe = self._recipe(tier.linearization, parent.data, self.epochs)
                found |= dict.fromkeys((parent, *self._linearized(parent, omegas, recipe, seed=seed)))
        return list(found)


def _above_zero(chapter: str, omegas: Sequence[float]) -> None:
    for omega in omegas:
        if not omega > 0:
            raise SpecError(f"{chapter}: omegas has {omega:g}, expected strengths above 0")


@dataclass(frozen=True, kw_only=True)
class Depth(Chapter):
    """Chapter 08 (§4.3.2, App. B.4): what depth is left in networks of different initial depth.

    Attributes:
        dataset: None: by tier.
        width: None: by tier, where the chapter is live the narrowest of its widths.
        family: networks are named `<family><depth>`: "resnet", "toynet", "akamaster/resnet"; None: by tier.
        depths: None: by tier.
        omegas: strengths, > 0; None: the tier's few, where the chapter is live only the strongest.
        seeds: repetitions; None: by tier.
        epochs: of the linearization; None: by tier.
    """

    name: ClassVar[str] = "08_depth"
    dataset: str | None = None
    width: float | None = None
    family: str | None = None
    depths: tuple[int, ...] | None = None
    omegas: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """At the tier "paper" ResNets, then ToyNets."""
        if tier == "paper":
            return [cls(tier=tier, device="cpu"), cls(tier=tier, device="cpu", family="toynet")]
        return super().editions(tier)

    def specs(self) -> list[RunSpec]:
        """Parents, their controls and their linearizations, depth by depth."""
        tier = TIERS[self.tier]
        family = tier.family if self.family is None else self.family
        # Published networks have the width that they have.
        narrow = self.width is None and self.tier in LIVE and "/" not in family
        width = tier.widths[0] if narrow else self.width
        omegas = self.omegas or (tier.few[-1:] if self.tier in LIVE else tier.few)
        _above_zero(self.name, omegas)
        found: dict[RunSpec, None] = {}
        for depth in self.depths or tier.depths:
            for seed in self.seeds or tier.seeds:
                parent = self._parent(self.dataset, f"{family}{depth}", seed, width=width)
                recipe = self._recipe(tier.linearization, parent.data, self.epochs)
                found |= dict.fromkeys((parent, *self._linearized(parent, omegas, recipe, seed=seed)))
        return list(found)


@dataclass(frozen=True, kw_only=True)
class TaskDifficulty(Chapter):
    """Chapter 09 (§4.3.3): depth and accuracy over the strength of the penalty, on easy and hard data.

    Attributes:
        datasets, difficulties, network, width: None: by tier. Difficulties are those of digits.
        omegas: strengths, >= 0; None: all of the tier's, where the chapter is live its few.
        seeds: repetitions; None: by tier.
        epochs: of the linearization; None: by tier.
    """

    name: ClassVar[str] = "09_task_difficulty"
    datasets: tuple[str, ...] | None = None
    difficulties: tuple[float, ...] | None = None
    network: str | None = None
    width: float | None = None
    omegas: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    def specs(self) -> list[RunSpec]:
        """Parents, their controls and their linearizations, task by task."""
        tier = TIERS[self.tier]
        omegas = self.omegas or (tier.few if self.tier in LIVE else tier.omegas)
        found: dict[RunSpec, None] = {}
        for dataset, difficulty in self._tasks(self.datasets or tier.datasets, self.difficulties):
            for seed in self.seeds or tier.seeds:
                more: dict[str, Any] = {"width": self.width, "difficulty": difficulty, "small": True}
                parent = self._parent(dataset, self.network, seed, **more)
                recipe = self._recipe(tier.linearization, parent.data, self.epochs)
                found |= dict.fromkeys((parent, *self._linearized(parent, omegas, recipe, seed=seed)))
        return list(found)


@dataclass(frozen=True, kw_only=True)
class Unnormalized(AccuracyAndDepth):
    """Chapter A1 (App. B.1): the pictures of chapter 06 over the unnormalised APL, from the same runs."""

    name: ClassVar[str] = "A1_unnormalized"
    runs_of: ClassVar[str] = AccuracyAndDepth.name


@dataclass(frozen=True, kw_only=True)
class ActiveShare(AccuracyAndDepth):
    """Chapter A2 (App. B.2): the pictures of chapter 06 over the share of active units, from the same runs."""

    name: ClassVar[str] = "A2_active_share"
    runs_of: ClassVar[str] = AccuracyAndDepth.name


@dataclass(frozen=True, kw_only=True)
class YourOwnNetwork(Chapter):
    """A chapter beside the paper: networks from elsewhere; one is trained in the notebook, on digits at every tier.

    Attributes:
        omega: strength of the regularizer, above 0; None: by tier.
        seeds: repetitions; None: by tier.
        epochs: of training, and of linearization; None: by tier.
        images: how many to train on, at least 32, one batch; None: by tier.
    """

    name: ClassVar[str] = "your_own_network"
    omega: float | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value in _OWN_SMOKE.items() if self.tier == "smoke" else _OWN.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        limits = {"omega": (1e-12, "a number above 0"), "epochs": (1, "at least 1"), "images": (32, "at least 32")}
        for field, (least, expected) in limits.items():
            if getattr(self, field) < least:
                raise SpecError(f"{self.name}: {field} is {getattr(self, field)}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class FeatureVisualization(Chapter):
    """Chapter 10 (§4.4): pictures of the same channels before and after linearization, and how sharp they are.

    Attributes:
        dataset: by name; None: by tier.
        network: a name for `nets.build`, a published one (a key of `nets.PUBLISHED`), or "squeezenet1_1",
            trained on ImageNet and linearized by distillation; None: by tier.
        omegas: two strengths > 0, the milder one first; None: by tier.
        seed: of parent and linearizations.
        control_seed: of the stronger linearization that is repeated; another than `seed`.
        channels: how many at most, evenly spaced through the network; 0: all; None: by tier.
        starts: seeds of the pictures: every channel is rendered once from each; None: by tier.
        steps: of the rendering; None: by tier.
        size: of the pictures in pixels; None: by tier and network.
    """

    name: ClassVar[str] = "10_feature_visualization"
    dataset: str | None = None
    network: str | None = None
    omegas: tuple[float, ...] | None = None
    seed: int = 0
    control_seed: int = 1
    channels: int | None = None
    starts: tuple[int, ...] | None = None
    steps: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        from nladv_core.sharpness import Rendering

        values.canonical(self, self.name)
        if self.tier == "paper" and self.network is self.dataset is None:
            object.__setattr__(self, "network", "torchvision/resnet50")
            object.__setattr__(self, "dataset", "imagenet")
        for field, value in (_FEATURES.get(self.tier, {}) | _TAUGHT.get(self.network or "", {})).items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        super().__post_init__()
        if self.control_seed == self.seed:
            raise SpecError(f"{self.name}: control_seed is {self.seed} like seed, expected another")
        if (self.channels or 0) < 0:
            raise SpecError(f"{self.name}: channels is {self.channels}, expected at least 0 (0: all of them)")
        if self._taught() and self.dataset is not None:
            raise SpecError(f"{self.name}: {self.network} learns from Tiny ImageNet's images; leave dataset out")
        for start in self.starts or ():
            Rendering(size=self.size or 32, steps=1 if self.steps is None else self.steps, seed=start)

    def _taught(self) -> bool:
        return self.network in _TAUGHT

    def strengths(self) -> tuple[float, ...]:
        """The two strengths.

        Raises:
            SpecError: others were given than two above 0, the smaller one first.
        """
        found = self.omegas or ()
        if len(found) != 2 or not 0 < found[0] < found[1]:
            raise SpecError(f"{self.name}: omegas is {list(found)}, expected two above 0, the smaller one first")
        return found

    def by_role(self) -> dict[str, RunSpec]:
        """The runs by what they are to each other (`features.ROLES`); none for a network taught by distillation."""
        if self._taught():
            return {}
        usual = _DIGITS_NET if self.tier in LIVE else None
        if self.tier == "reduced" and self.dataset in (None, "cifar10"):
            usual = _PUBLISHED_NET
        parent = self._parent(self.dataset, self.network or usual, self.seed)
        if parent.data == "digits":
            parent = replace(parent, size=32)
        weak, strong = self.strengths()
        recipe = self._recipe(TIERS[self.tier].linearization, parent.data)
        if self.tier == "reduced" and parent.published:  # which is trained to its end, and needs little
            recipe = RECIPES["reduced-features"]
        control, mild, hard = self._linearized(parent, (weak, strong), recipe, seed=self.seed)
        again = replace(hard, seed=self.control_seed)
        found = {"relu": parent, "weak": mild, "strong": hard, "seed": again, "control": control}
        if self.tier == "reduced" and parent.published:
            few: dict[str, Any] = {"train": 12_500, "precision": "float32"}
            found |= {role: replace(spec, **few) for role, spec in found.items() if role != "relu"}
        return found

    def specs(self) -> list[RunSpec]:
        """Parent, two linearizations and two controls."""
        return list(self.by_role().values())

    def distillations(self) -> dict[str, Any]:
        """Role -> `distillation.Distillation`, for a network that teaches itself; else nothing."""
        if not self._taught():
            return {}
        from nladv_core.distillation import Distillation

        strengths = zip(("weak", "strong"), self.strengths(), strict=True)
        return {role: Distillation(teacher=str(self.network), omega=omega, seed=self.seed) for role, omega in strengths}

    def title(self) -> str:
        """The architecture and its data in words."""
        if self._taught():
            from nladv_core.distillation import TEACHERS

            return f"{TEACHERS[str(self.network)].title} on ImageNet"
        parent = self.by_role()["relu"]
        return f"{parent.published or parent.net} on {parent.data}"

    def record_name(self) -> str:
        """Of the folder of its committed record."""
        return self.title().replace("/", "-").replace(" ", "-").lower()


# 32 pixels at every tier but the largest; a picture takes 128 steps (fewer only in tests).
_FEATURES: dict[str, dict[str, Any]] = {
    "smoke": {"omegas": (0.1, 0.5), "channels": 6, "starts": (0,), "steps": 12, "size": 32},
    "quick": {"omegas": (0.018, 0.036), "channels": 24, "starts": (0,), "steps": 128, "size": 32},
    "reduced": {"omegas": (0.004, 0.007), "channels": 0, "starts": (0, 1), "steps": 128, "size": 32},
    "paper": {"omegas": (0.003, 0.01), "channels": 0, "starts": (0,), "steps": 512, "size": 224},
}
_DIGITS_NET = "resnet8"
_PUBLISHED_NET = "akamaster/resnet20"
# Networks that were trained on ImageNet and teach themselves (nladv_core.distillation).
_TAUGHT: dict[str, dict[str, Any]] = {
    "squeezenet1_1": {"omegas": (0.002, 0.01), "channels": 64, "starts": (0,), "steps": 160, "size": 128},
}


@dataclass(frozen=True, kw_only=True)
class Translation(Chapter):
    """Chapter 11 (App. B.5): when to linearize a transformer that learns to translate, at an equal share left.

    One training of a fixed length, with the slopes switched on at some epoch of it and pulled until a goal share of
    units is inactive; beside it the same training without slopes.

    Attributes:
        dataset: "number-words" or "multi30k"; None: by tier.
        network: `"transformer<layers>"`; None: by tier.
        width: factor of its 512 numbers a token; None: by tier.
        starts: epochs at which the slopes are switched on, from 0; None: by tier.
        goal: share of units to make inactive, in (0, 1); None: by tier.
        omega: strength until then, > 0; None: by tier.
        seeds: repetitions; None: by tier.
        epochs: of the whole training, its schedule scaled; None: by tier.
    """

    name: ClassVar[str] = "11_transformer"
    dataset: str | None = None
    network: str | None = None
    width: float | None = None
    starts: tuple[int, ...] | None = None
    goal: float | None = None
    omega: float | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None

    def plain(self, seed: int) -> RunSpec:
        """The training without slopes."""
        usual = _TRANSLATION[self.tier]
        dataset = self.dataset or usual["dataset"]
        sizes = {name: usual[name] for name in ("size", "train", "test")} if dataset == usual["dataset"] else {}
        recipe = RECIPES[usual["recipe"]]
        return RunSpec(
            data=dataset,
            net=self.network or usual["network"],
            width=usual["width"] if self.width is None else self.width,
            recipe=recipe if self.epochs is None else recipe.shortened(self.epochs),
            seed=seed,
            # Eager float32 but for the largest: the lengths of sentences differ, so that a step is compiled in vain.
            precision=TIERS[self.tier].precision if self.tier == "paper" else "float32",
            **sizes,
        )

    def specs(self) -> list[RunSpec]:
        """For each seed: the training without slopes, then with, start by start."""
        usual = _TRANSLATION[self.tier]
        omega = usual["omega"] if self.omega is None else self.omega
        if not omega > 0:
            raise SpecError(f"{self.name}: omega is {omega:g}, expected above 0: without it no goal is reached")
        goal = usual["goal"] if self.goal is None else self.goal
        found: dict[RunSpec, None] = {}
        for seed in self.seeds or usual["seeds"]:
            plain = self.plain(seed)
            found[plain] = None
            for start in self.starts or usual["starts"]:
                found[replace(plain, omega=omega, goal=goal, start=start)] = None
        return list(found)


# What a tier decides for sentences. The paper's goal share and strengths are lost; these are ours.
_TRANSLATION: dict[str, dict[str, Any]] = {
    "smoke": {
        **{"dataset": "number-words", "size": 64, "train": 160, "test": 40, "network": "transformer1", "width": 0.0625},
        **{"recipe": "smoke-translate", "starts": (0, 1), "goal": 0.5, "omega": 0.01, "seeds": (0,)},
    },
    "quick": {
        **{
            "dataset": "number-words",
            "size": 128,
            "train": 800,
            "test": 200,
            "network": "transformer1",
            "width": 0.0625,
        },
        **{"recipe": "quick-translate", "starts": (0, 2, 5), "goal": 0.9, "omega": 0.01, "seeds": (0, 1, 2)},
    },
    "reduced": {
        **{
            "dataset": "multi30k",
            "size": 4000,
            "train": 14_500,
            "test": None,
            "network": "transformer2",
            "width": 0.125,
        },
        **{"recipe": "reduced-translate", "starts": (0, 1, 2, 3), "goal": 0.85, "omega": 0.003, "seeds": (0, 1, 2)},
    },
    "paper": {
        **{"dataset": "multi30k", "size": None, "train": None, "test": None, "network": "transformer6", "width": 1.0},
        **{
            "recipe": "multi30k-train",
            "starts": (0, 10, 20, 50, 100),
            "goal": 0.88,
            "omega": 0.001,
            "seeds": (0, 1, 2),
        },
    },
}

_OWN = {"omega": 0.04, "seeds": (0, 1, 2), "epochs": 7, "images": 1000}
_OWN_SMOKE = {"omega": 1.2, "seeds": (0,), "epochs": 2, "images": 256}  # few steps need a strong pull

CHAPTERS: Mapping[str, type[Chapter]] = {
    kind.name: kind
    for kind in (
        Linearization,
        PathLength,
        RetrainingMasks,
        EarlyAndLate,
        Structure,
        AccuracyAndDepth,
        Width,
        Depth,
        TaskDifficulty,
        Unnormalized,
        ActiveShare,
        FeatureVisualization,
        Translation,
        YourOwnNetwork,
    )
}


def wanted(name: str, tier: str) -> list[RunSpec]:
    """All runs that a chapter wants at a tier, each once: those of its default parameters, then of its editions."""
    kind = CHAPTERS[name]
    chapters = [kind(tier=tier, device="cpu"), *kind.editions(tier)]
    return list(dict.fromkeys(spec for one in chapters for spec in one.specs()))


_LITERALS = (str, int, float, bool, list, tuple, dict, type(None))
_IPYTHON = ("In", "Out")
_SEEN = "_nladv_parameters_seen"


def find(name: str) -> type[Chapter]:
    """A chapter by its name or the number in front.

    Raises:
        SpecError: there is none of that name.
    """
    for full, kind in CHAPTERS.items():
        if name in (full, full.partition("_")[0], full.partition("_")[2]):
            return kind
    raise SpecError(
        f"unknown chapter {name!r}{values.nearest(name, CHAPTERS)}; chapters with parameters are {', '.join(CHAPTERS)}"
    )


def chapter(name: str, namespace: dict[str, Any]) -> Any:
    """The parameters of a chapter, from its notebook's `globals()` or any other dict.

    papermill sets parameters that nobody declared as globals and only warns. So every plain value (string, number,
    list, dict, None) under a name that the chapter does not declare is refused, except names that begin with an
    underscore. Once that has passed, a notebook may hold results: when its cells are run again, only its parameter cell
    is looked at.

    Args:
        name: `"06_accuracy_and_depth"`, or `"06"`.
        namespace: names and values; undeclared ones that are not plain values are ignored. A list may be given as JSON
            text (what `papermill -p` passes on) and a single value stands for a list of one.

    Returns:
        The chapter's dataclass.

    Raises:
        SpecError: an unknown chapter, an unknown or mistyped parameter (the nearest declared name is told), a value of
            the wrong type or out of range.
    """
    kind: Any = find(name)
    declared = values.hints(kind)
    for found in _candidates(namespace):
        if found not in declared:
            raise SpecError(
                f"{kind.name}: unknown parameter {found!r}{values.nearest(found, declared)}; "
                f"its parameters are {', '.join(declared)}"
            )
    given = {field: _as_list(namespace[field], hint) for field, hint in declared.items() if field in namespace}
    made = kind(**given)
    namespace[_SEEN] = True
    return made


def _candidates(namespace: Mapping[str, Any]) -> list[str]:
    """Names that should be parameters."""
    plain = [
        name
        for name, value in namespace.items()
        if type(value) in _LITERALS and not name.startswith("_") and name not in _IPYTHON
    ]
    if _SEEN not in namespace:
        return plain
    for cell in reversed(namespace.get("In", [])):
        assigned = _assigned(cell)
        if "tier" in assigned:
            return [name for name in plain if name in assigned]
    return []


def _assigned(source: str) -> set[str]:
    """Names that a cell's source assigns at top level; none if it is not plain Python."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return set()
    targets = [target for s in statements if isinstance(s, ast.Assign) for target in s.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _as_list(value: Any, hint: Any) -> Any:
    """For a parameter that is a list: JSON text is read, a single value becomes a list of one."""
    if not any(getattr(part, "__origin__", None) is tuple for part in (hint, *get_args(hint))):
        return value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value if value is None or isinstance(value, (list, tuple)) else [value]
