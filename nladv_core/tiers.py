"""What a tier decides, and what all chapters have in common.

A tier is the size of an experiment. Where a chapter's parameter is None, the tier says what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nladv_core import nets, runs, values
from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.specs import RunSpec
from nladv_core.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What a tier decides where a chapter's parameter is None.

    Attributes:
        dataset, network, width: names and width factor.
        train, test, size, difficulty: how much of a data set, and what kind of digits; None is the whole set.
        training, linearization: names of recipes.
        omegas, layer_omegas: from nearly all units active to the collapse of accuracy, channel-wise and layer-wise.
            Such values scale with the steps and rates of the recipe. A layer's slope answers for all its channels in
            the loss but is penalised once, so it takes a larger omega. The paper's list is lost; these are ours.
        omega: one value in the middle, for a chapter that shows a single strength.
        mild: one that leaves enough units active to see a pattern in (maps of §4.2).
        few: some of `omegas`, for chapters whose subject is another axis; the last is strong enough to hurt accuracy.
        goals: NAPLs that further linearizations end just below, so that networks are compared there without
            interpolation.
        seeds: repetitions, parent and linearization alike.
        short: recipe of the linearization in chapters 03, 04 and 05 (§4.1.1, §4.1.2 and the maps of §4.2).
        goal, goal_omega: share of units to make inactive where that share is fixed (§4.1.2; 88 % according to the
            blog), and a strength that gets there, and to `goals`, in the epochs there are.
        starts: how many epochs of training there were when the slopes are switched on (§4.1.2).
        widths: factors, the narrowest first (§4.3.1).
        family, depths: networks `<family><depth>` (§4.3.2).
        datasets, difficulties: tasks of increasing difficulty (§4.3.3); the second for digits alone.
        small: network, width factor and number of training images where many parents are trained; None: those above.
        networks: by chapter, where it has a network of its own.
        precision: "float32", or "bfloat16", which is faster where the hardware has it, as GPUs do.
    """

    dataset: str
    network: str
    width: float = 1.0
    train: int | None = None
    test: int | None = None
    size: int | None = None
    difficulty: float | None = None
    training: str
    linearization: str
    omegas: tuple[float, ...]
    layer_omegas: tuple[float, ...]
    omega: float
    mild: float
    few: tuple[float, ...]
    goals: tuple[float, ...] = ()
    seeds: tuple[int, ...]
    short: str
    goal: float
    goal_omega: float
    starts: tuple[int, ...]
    widths: tuple[float, ...]
    family: str = "resnet"
    depths: tuple[int, ...]
    datasets: tuple[str, ...]
    difficulties: tuple[float, ...] = ()
    small: tuple[str, float, int] | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"


TIERS: Mapping[str, Tier] = {
    "smoke": Tier(
        dataset="digits",
        network="resnet8",
        width=0.5,
        train=320,
        test=200,
        size=8,
        difficulty=0.0,
        training="smoke-train",
        linearization="smoke-linearize",
        omegas=(0.1, 3.0),
        layer_omegas=(0.1, 3.0),
        omega=0.5,
        mild=0.5,
        few=(0.1, 3.0),
        seeds=(0,),
        short="smoke-linearize",
        goal=0.5,
        goal_omega=3.0,
        starts=(0, 2),
        widths=(0.25, 0.5),
        depths=(8, 14),
        datasets=("digits",),
        difficulties=(0.0, 1.0),
    ),
    "quick": Tier(
        dataset="digits",
        network="resnet14",
        width=0.5,
        train=1500,
        test=1000,
        size=12,
        difficulty=0.25,
        training="quick-train",
        linearization="quick-linearize",
        omegas=(0.023, 0.025, 0.027, 0.03, 0.05, 0.1, 1.0),
        layer_omegas=(0.03, 0.1, 0.3, 1.0, 3.0),
        omega=0.03,
        mild=0.025,
        few=(0.025, 0.05, 0.1),
        seeds=(0, 1, 2),
        short="quick-linearize",
        goal=0.85,
        goal_omega=0.1,
        starts=(0, 2, 5, 10),
        widths=(0.25, 0.5, 0.75),
        depths=(8, 14, 20),
        datasets=("digits",),
        difficulties=(0.25, 1.0),
        small=("resnet8", 0.5, 1500),
    ),
    "reduced": Tier(
        dataset="cifar10",
        network="resnet20",
        training="reduced-train",
        linearization="reduced-linearize",
        # One list for all networks and both data sets, as a strength is a price only where it is the same everywhere:
        # of ResNet-20 on CIFAR-10 about 80, 50, 25, 12 and 5 % of the units are left.
        omegas=(0.0008, 0.0016, 0.003, 0.005, 0.009),
        layer_omegas=(0.003, 0.01, 0.03, 0.1),
        omega=0.003,
        mild=0.0016,
        few=(0.0016, 0.003, 0.009),
        goals=(2.0,),
        seeds=(0, 1, 2),
        short="reduced-linearize",
        goal=0.85,
        goal_omega=0.009,
        starts=(0, 2, 8, 24),
        widths=(0.25, 0.5, 1.0, 2.0),
        depths=(8, 14, 20, 32),
        datasets=("cifar10", "cifar100"),
        networks={"05_structure": "resnet32", "07_width": "resnet14"},
        precision="bfloat16",
    ),
    "paper": Tier(
        dataset="cifar10",
        network="resnet56",
        training="cifar-train",
        linearization="cifar-linearize",
        # From just below the strength at which a slope can get to its lock at all (0.00031) on, dense where units are
        # selected.
        omegas=(0.0003, 0.0005, 0.0007, 0.001, 0.0014, 0.002, 0.0028, 0.004, 0.01),
        layer_omegas=(0.001, 0.003, 0.01, 0.03, 0.1),
        omega=0.001,
        mild=0.001,
        few=(0.0005, 0.001, 0.002, 0.004, 0.01),
        goals=(2.7, 3.1, 3.5, 5.0),
        seeds=(0, 1, 2),
        short="cifar-linearize-30",
        goal=0.88,
        goal_omega=0.005,
        starts=(0, 5, 15, 50, 100, 200),
        widths=(0.5, 1.0, 2.0, 4.0),
        depths=(20, 32, 44, 56, 110),
        datasets=("cifar10", "cifar100", "cinic10"),
        precision="bfloat16",
    ),
}

# The experiments of the tier "reduced", the worthiest first: what it is, and which chapters with which parameters. They
# share parents and controls wherever network, data set, seed and recipe agree.
ROWS: tuple[tuple[str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("a transformer, early and late", (("11_transformer", {}),)),
    (
        "backbone: ResNet-20, CIFAR-10 and CIFAR-100",
        (
            ("06_accuracy_and_depth", {"granularities": ("channel",)}),
            ("06_accuracy_and_depth", {"granularities": ("channel",), "dataset": "cifar100"}),
            ("09_task_difficulty", {}),
        ),
    ),
    ("early and late, CIFAR-100", (("04_early_and_late", {"datasets": ("cifar100",)}),)),
    ("masks on trained weights, CIFAR-100", (("03_retraining_masks", {"dataset": "cifar100", "ways": ("at once",)}),)),
    ("masks on new weights, CIFAR-100", (("03_retraining_masks", {"dataset": "cifar100", "ways": ("chain",)}),)),
    ("structure with and without residual connections", (("05_structure", {}),)),
    (
        "ResNet-56, the paper's network",
        (
            (
                "06_accuracy_and_depth",
                {
                    "granularities": ("channel",),
                    "network": "resnet56",
                    "omegas": (0.0016, 0.003),
                    "goals": (2.7, 3.5),
                    "seeds": (0,),
                },
            ),
        ),
    ),
    (
        "early and late and masks, CIFAR-10",
        (
            ("04_early_and_late", {"datasets": ("cifar10",)}),
            ("03_retraining_masks", {"dataset": "cifar10", "ways": ("at once",)}),
            ("03_retraining_masks", {"dataset": "cifar10", "ways": ("chain",)}),
        ),
    ),
    (
        "layers beside channels, CIFAR-100",
        (("06_accuracy_and_depth", {"granularities": ("layer",), "dataset": "cifar100"}),),
    ),
    ("initial depth", (("08_depth", {}),)),
    ("initial width", (("07_width", {}),)),
    ("features", (("10_feature_visualization", {}), ("10_feature_visualization", {"network": "squeezenet1_1"}))),
)

# What chapters compute as they are executed: runs of older code are computed again. Larger runs never go stale.
LIVE = ("smoke", "quick")


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What all chapters have in common.

    Attributes:
        tier: "smoke", "quick", "reduced" or "paper".
        device: "auto", "cpu", "cuda", ...
    """

    name: ClassVar[str] = ""
    runs_of: ClassVar[str] = ""  # the chapter whose runs it shows, if it has none of its own
    tier: str = "quick"
    device: str = "auto"

    def __post_init__(self) -> None:
        values.canonical(self, self.name)
        if self.tier not in TIERS:
            raise SpecError(
                f"{self.name}: tier is {self.tier!r}, expected one of {', '.join(TIERS)}"
                f"{values.nearest(self.tier, TIERS)}"
            )
        for parameter in fields(self):
            if getattr(self, parameter.name) == ():
                raise SpecError(
                    f"{self.name}: {parameter.name} is empty, expected at least one value (or null: by tier)"
                )
        runs.pick_device(self.device)
        self.specs()  # whatever a run would refuse is refused here, before anything is computed

    def specs(self) -> list[RunSpec]:
        """The runs that the chapter shows, each once; their parents are trained as needed. No run at all for some."""
        return []

    @classmethod
    def editions(cls, tier: str) -> list[Self]:
        """The parameters at `tier` whose records are committed and shown on the page, the most urgent first.

        At the tier "reduced" those that `ROWS` names, if it names any.
        """
        named = cls.runs_of or cls.name
        found = [given for _, row in ROWS for name, given in row if name == named and tier == "reduced"]
        return [cls(tier=tier, device="cpu", **given) for given in found or [{}]]

    def run(self, store: Store | None = None, **how: Any) -> pd.DataFrame:
        """Compute what is missing and return one row per run (`Store.frame`).

        At smoke and quick also what other sources than today's computed; larger runs never go stale.

        Args:
            store: where records are; default `Store()`.
            how: further arguments of `runs.run`: workers, progress, compiled, devices.
        """
        return runs.run(self.specs(), store, device=self.device, refresh=self.tier in LIVE, **how)

    def _parent(
        self,
        dataset: str | None,
        network: str | None,
        seed: int,
        *,
        width: float | None = None,
        residual: bool = True,
        shortcut: str = "A",
        difficulty: float | None = None,
        small: bool = False,
    ) -> RunSpec:
        """The run that trains a network before it is linearized, or that takes one as it was published."""
        tier = TIERS[self.tier]
        dataset = dataset or tier.dataset
        usual, factor, train = tier.small if small and tier.small else (tier.network, tier.width, tier.train)
        usual = tier.networks.get(self.name, usual)
        if network is not None and "/" in network:
            found = f"width is {width:g}" if width not in (None, 1) else "" if residual else "residual is False"
            found = found or ("" if shortcut == "A" else f"shortcut is {shortcut!r}")
            if found:
                raise SpecError(
                    f"{self.name}: {found}, but {network} is taken as it was published; name a network that is "
                    "trained here"
                )
            net = nets.PUBLISHED[network].net if network in nets.PUBLISHED else tier.network
            return RunSpec(data=dataset, net=net, recipe=UNTRAINED, published=network, test=tier.test)
        digits = dataset == "digits"
        return RunSpec(
            data=dataset,
            net=network or usual,
            width=factor if width is None else width,
            residual=residual,
            shortcut=shortcut,
            recipe=self._recipe(tier.training, dataset),
            seed=seed,
            size=tier.size if digits else None,
            difficulty=(tier.difficulty if difficulty is None else difficulty) if digits else None,
            train=train,
            test=tier.test,
            precision=tier.precision,
        )

    def _own(self, parent: RunSpec, why: str) -> RunSpec:
        """`parent`, unless it was trained elsewhere."""
        if parent.published is not None:
            raise SpecError(f"{self.name}: {parent.published} {why}; name a network that is trained here")
        return parent

    def _child(self, parent: RunSpec, **more: Any) -> RunSpec:
        """A run on the same data that starts from `parent`; with `start` after its last epoch the control of others."""
        train = TIERS[self.tier].train if parent.published else parent.train
        return replace(parent, published=None, parent=parent, train=train, precision=TIERS[self.tier].precision, **more)

    def _linearized(self, parent: RunSpec, omegas: Iterable[float], recipe: Recipe, **more: Any) -> list[RunSpec]:
        """The control of linearizations of `parent` (`RunSpec.control`), then these, one for each strength."""
        control = self._child(parent, recipe=recipe, start=recipe.epochs, **more)
        return [control, *(self._child(parent, recipe=recipe, omega=omega, **more) for omega in omegas)]

    def _recipe(self, name: str, dataset: str, epochs: int | None = None) -> Recipe:
        """A recipe by name; mirrored digits are no digits, all other images are flipped (§4).

        The paper has recipes of their own for some data sets (App. C.2).
        """
        family = _RECIPES_OF.get(dataset)
        if family is not None and name.startswith("cifar-"):
            named = name.replace("cifar", family)
            name = next((known for known in (named, named.removesuffix("-30")) if known in RECIPES), name)
        recipe = replace(RECIPES[name], flip=_flipped(name, dataset))
        return recipe if epochs is None else recipe.shortened(epochs)

    def _tasks(
        self, datasets: tuple[str, ...], difficulties: tuple[float, ...] | None
    ) -> list[tuple[str, float | None]]:
        """Data sets, the digits once for each difficulty."""
        if difficulties and "digits" not in datasets:
            raise SpecError(
                f"{self.name}: difficulties are given, but only digits have them and the data are "
                f"{', '.join(datasets)}; leave difficulties out"
            )
        each = difficulties or TIERS[self.tier].difficulties or (None,)
        return [(name, difficulty) for name in datasets for difficulty in (each if name == "digits" else (None,))]


def _flipped(name: str, dataset: str) -> bool:
    # The small tiers' recipes say no because their data are digits; other data at that size are flipped all the same.
    return dataset != "digits" and (RECIPES[name].flip or name.startswith(("smoke-", "quick-")))


_RECIPES_OF = {"cinic10": "cinic", "tiny-imagenet": "tiny-imagenet", "imagenet": "imagenet"}
