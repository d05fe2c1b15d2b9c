"""What each chapter may be asked for, and which runs that needs: one frozen dataclass per chapter.

The fields of a chapter are the papermill parameters of its notebook; None stands for what the tier decides. `specs()`
says which runs it needs, and is the one place that does.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args

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
        omega: one value in the middle, for a chapter that shows a single run.
        seeds: repetitions, parent and linearization alike.
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
    seeds: tuple[int, ...]


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
        seeds=(0,),
    ),
    "quick": Tier(
        dataset="digits",
        network="resnet14",
        width=0.5,
        train=2000,
        test=1000,
        size=16,
        difficulty=0.25,
        training="quick-train",
        linearization="quick-linearize",
        omegas=(0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 1.0),
        layer_omegas=(0.03, 0.1, 0.3, 1.0, 3.0),
        omega=0.03,
        seeds=(0, 1, 2),
    ),
    "reduced": Tier(
        dataset="cifar10",
        network="resnet20",
        training="reduced-train",
        linearization="reduced-linearize",
        omegas=(0.001, 0.002, 0.003, 0.005, 0.01, 0.02),
        layer_omegas=(0.003, 0.01, 0.03, 0.1, 0.3),
        omega=0.004,
        seeds=(0, 1),
    ),
    "paper": Tier(
        dataset="cifar10",
        network="resnet56",
        training="cifar-train",
        linearization="cifar-linearize",
        omegas=(0.0003, 0.0005, 0.0007, 0.001, 0.002, 0.004, 0.01),
        layer_omegas=(0.001, 0.003, 0.01, 0.03, 0.1),
        omega=0.001,
        seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What all chapters have in common.

    Attributes:
        tier: "smoke", "quick", "reduced" or "paper".
        device: "auto", "cpu", "cuda", ...
    """

    name: ClassVar[str] = ""
    tier: str = "quick"
    device: str = "auto"

    def __post_init__(self) -> None:
        values.canonical(self, self.name)
        if self.tier not in TIERS:
            raise SpecError(
                f"{self.name}: tier is {self.tier!r}, expected one of {', '.join(TIERS)}"
                f"{values.nearest(self.tier, TIERS)}"
            )
        for field in fields(self):
            if getattr(self, field.name) == ():
                raise SpecError(f"{self.name}: {field.name} is empty, expected at least one value (or null: by tier)")
        runs.pick_device(self.device)
        self.specs()  # whatever a run would refuse is refused here, before anything is computed

    def specs(self) -> list[RunSpec]:
        """The runs that the chapter shows, each once; their parents are trained as needed. No run at all for some."""
        return []

    def run(self, store: Store | None = None, *, workers: int | None = None, progress: bool = True) -> pd.DataFrame:
        """Compute what is missing and return one row per run (`Store.frame`).

        At smoke and quick also what other sources than today's computed; larger runs never go stale.
        """
        refresh = self.tier in ("smoke", "quick")
        return runs.run(self.specs(), store, workers=workers, progress=progress, device=self.device, refresh=refresh)

    def _parent(self, dataset: str | None, network: str | None, seed: int, *, width: float | None = None) -> RunSpec:
        tier = TIERS[self.tier]
        dataset = dataset or tier.dataset
        if network is not None and "/" in network:
            if width not in (None, 1):
                raise SpecError(f"{self.name}: width is {width:g}, but {network} is taken as published; leave it out")
            net = nets.PUBLISHED[network].net if network in nets.PUBLISHED else tier.network
            return RunSpec(data=dataset, net=net, recipe=UNTRAINED, published=network, test=tier.test)
        digits = dataset == "digits"
        return RunSpec(
            data=dataset,
            net=network or tier.network,
            width=tier.width if width is None else width,
            recipe=self._recipe(tier.training, dataset),
            seed=seed,
            size=tier.size if digits else None,
            difficulty=tier.difficulty if digits else None,
            train=tier.train,
            test=tier.test,
        )

    def _child(self, parent: RunSpec, **more: Any) -> RunSpec:
        """A run on the same data that starts from `parent`."""
        return replace(parent, published=None, parent=parent, train=TIERS[self.tier].train, **more)

    def _recipe(self, name: str, dataset: str, epochs: int | None = None) -> Recipe:
        """A recipe by name; mirrored digits are no digits, all other images are flipped (§4)."""
        recipe = replace(RECIPES[name], flip=dataset != "digits")
        return recipe if epochs is None else recipe.shortened(epochs)


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


@dataclass(frozen=True, kw_only=True)
class AccuracyAndDepth(Chapter):
    """Chapter 06 (§4.2): accuracy against NAPL over omega.

    Attributes:
        dataset, width: None: by tier.
        network: a name for `nets.build`, or a published network (a key of `nets.PUBLISHED`, such as
            "akamaster/resnet20") that becomes the one parent of all seeds; None: by tier.
        omegas: strengths for channel-wise slopes, >= 0; None: by tier.
        layer_omegas: strengths for layer-wise slopes, >= 0; None: by tier.
        seeds: repetitions; None: by tier.
        granularities: of "channel", "layer", "pixel" (which takes the channel-wise omegas).
        epochs: of the linearization, its schedule scaled; None: the tier's recipe.
    """

    name: ClassVar[str] = "06_accuracy_and_depth"
    dataset: str | None = None
    network: str | None = None
    width: float | None = None
    omegas: tuple[float, ...] | None = None
    layer_omegas: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    granularities: tuple[str, ...] = ("channel", "layer")
    epochs: int | None = None

    def parents(self) -> list[RunSpec]:
        """The networks before linearization, one per seed; a published network is one for all seeds."""
        return list(dict.fromkeys(self._starts().values()))

    def _starts(self) -> dict[int, RunSpec]:
        """The parent of each seed."""
        seeds = TIERS[self.tier].seeds if self.seeds is None else self.seeds
        return {seed: self._parent(self.dataset, self.network, seed, width=self.width) for seed in seeds}

    def specs(self) -> list[RunSpec]:
        """Parents, and their linearizations for each granularity and omega."""
        tier, starts = TIERS[self.tier], self._starts()
        found = dict.fromkeys(starts.values())
        for granularity in self.granularities:
            layer = granularity == "layer"
            given, usual = (self.layer_omegas, tier.layer_omegas) if layer else (self.omegas, tier.omegas)
            for omega in usual if given is None else given:
                for seed, parent in starts.items():
                    recipe = self._recipe(tier.linearization, parent.data, self.epochs)
                    more = {"recipe": recipe, "omega": omega, "granularity": granularity}
                    found[self._child(parent, seed=seed, **more)] = None
        return list(found)


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


_OWN = {"omega": 0.04, "seeds": (0, 1, 2), "epochs": 7, "images": 1000}
_OWN_SMOKE = {"omega": 1.2, "seeds": (0,), "epochs": 2, "images": 256}  # few steps need a strong pull

CHAPTERS: Mapping[str, type[Chapter]] = {
    kind.name: kind for kind in (Linearization, PathLength, AccuracyAndDepth, YourOwnNetwork)
}

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
