"""What chapters ask for: parameters checked, runs listed, and nothing computed that nobody needs."""

import types
from pathlib import Path
from typing import Any

import pytest

from nladv_core import experiments
from nladv_core.errors import SpecError
from nladv_core.experiments import CHAPTERS, TIERS, AccuracyAndDepth, Linearization, PathLength, chapter
from nladv_core.recipes import RECIPES
from nladv_core.store import Store

NOTEBOOK: dict[str, Any] = {  # what a kernel's globals hold besides parameters
    "__name__": "__main__",
    "_": "",
    "_dh": ["/"],
    "In": ["", "tier = 'quick'"],
    "Out": {},
    "nl": types,
    "Path": Path,
    "exit": object(),
    "get_ipython": lambda: None,
}


def test_a_notebook_s_globals_become_parameters() -> None:
    found = chapter("06_accuracy_and_depth", NOTEBOOK | {"tier": "smoke", "omegas": [1, 0.5], "seeds": None})
    assert found == AccuracyAndDepth(tier="smoke", omegas=(1.0, 0.5))
    assert chapter("01", dict(NOTEBOOK)) == Linearization()
    assert chapter("path_length", dict(NOTEBOOK)) == PathLength()


def test_the_quick_grid_is_as_large_as_promised() -> None:
    """At least 5 values of omega, 3 seeds, both granularities; parents trained once."""
    found = chapter("06", {})
    specs = found.specs()
    children = [spec for spec in specs if spec.parent]
    assert {spec.parent for spec in children} == set(found.parents()) <= set(specs)
    for granularity in ("channel", "layer"):
        grid = {(spec.omega, spec.seed) for spec in children if spec.granularity == granularity}
        omegas, seeds = {omega for omega, _ in grid}, {seed for _, seed in grid}
        assert len(omegas) >= 5 and len(seeds) >= 3
        assert grid == {(omega, seed) for omega in omegas for seed in seeds}
    assert len({spec.key() for spec in specs}) == len(specs)
    assert all(spec.parent.seed == spec.seed for spec in children if spec.parent)


def test_chapter_01_shows_a_run_that_chapter_06_needs_anyway() -> None:
    assert chapter("01", {}).specs()[0] in chapter("06", {}).specs()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_specs_at_every_tier(name: str, tier: str) -> None:
    specs = chapter(name, {"tier": tier}).specs()
    assert bool(specs) == (name in ("01_linearization", "06_accuracy_and_depth"))
    for spec in specs:
        assert spec.data == ("digits" if tier in ("smoke", "quick") else "cifar10")
        assert spec.recipe.flip == (spec.data != "digits")


def test_the_paper_tier_is_the_paper_s() -> None:
    """§4.2 and App. C: ResNet-56 v2, all of CIFAR-10, 200 + 60 epochs."""
    specs = chapter("06", {"tier": "paper"}).specs()
    for spec in specs:
        assert (spec.net, spec.width, spec.shortcut, spec.data, spec.train) == ("resnet56", 1.0, "A", "cifar10", None)
        assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]


def test_given_values_replace_the_tier_s() -> None:
    found = chapter(
        "06",
        {
            "dataset": "cifar100",
            "network": "resnet20v1",
            "width": 0.5,
            "omegas": [0.1],
            "layer_omegas": [0.2, 0.3],
            "seeds": [4],
            "epochs": 2,
        },
    )
    children = [spec for spec in found.specs() if spec.parent]
    assert sorted((spec.granularity, spec.omega) for spec in children) == [
        ("channel", 0.1),
        ("layer", 0.2),
        ("layer", 0.3),
    ]
    for spec in found.specs():
        assert (spec.data, spec.net, spec.width, spec.seed) == ("cifar100", "resnet20v1", 0.5, 4)
        assert spec.size is None and spec.recipe.flip
    assert {spec.recipe.epochs for spec in children} == {2}
    assert len(chapter("06", {"granularities": ["layer"], "seeds": [0]}).specs()) == 1 + len(
        TIERS["quick"].layer_omegas
    )


def test_the_chapter_beside_the_paper_takes_its_sizes_from_the_tier() -> None:
    smoke, quick, paper = (chapter("your_own_network", {"tier": tier}) for tier in ("smoke", "quick", "paper"))
    assert smoke.seeds == (0,) and smoke.images * smoke.epochs < quick.images * quick.epochs
    assert (paper.omega, paper.seeds, paper.epochs, paper.images) == (
        quick.omega,
        quick.seeds,
        quick.epochs,
        quick.images,
    )
    assert len(quick.seeds) >= 3
    assert chapter("your_own_network", {"omega": 1, "seeds": 4}).seeds == (4,)


def test_lists_as_papermill_passes_them() -> None:
    assert chapter("06", {"omegas": "[0.1, 1]"}).omegas == (0.1, 1.0)
    assert chapter("06", {"omegas": 1}).omegas == (1.0,)
    assert chapter("06", {"granularities": "layer"}).granularities == ("layer",)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("06", {"omgas": [0.1]}, "unknown parameter 'omgas'; did you mean 'omegas'?"),
        ("06", {"Tier": "smoke"}, "unknown parameter 'Tier'; did you mean 'tier'?"),
        ("06", {"zzz": None}, "unknown parameter 'zzz'; its parameters are tier, device, dataset"),
        ("01", {"omegas": [0.1]}, "did you mean 'omega'?"),
        ("06", {"tier": "quik"}, "tier is 'quik', expected one of smoke, quick, reduced, paper; did you mean 'quick'?"),
        ("06", {"tier": 3}, "tier is 3, expected a string"),
        ("06", {"dataset": "cifar"}, "did you mean 'cifar10'?"),
        ("06", {"network": "resnet55"}, "resnet56"),
        ("06", {"omegas": []}, "omegas is empty"),
        ("06", {"seeds": []}, "seeds is empty"),
        ("06", {"omegas": [-0.1]}, "omega is -0.1, expected at least 0"),
        ("06", {"omegas": ["a"]}, "omegas is ['a'], expected a list of finite numbers or null"),
        ("06", {"omegas": "[0.1"}, "expected a list"),
        ("06", {"seeds": [0.5]}, "seeds is [0.5], expected a list of integers"),
        ("06", {"granularities": ["neuron"]}, "granularity is 'neuron'"),
        ("06", {"granularities": None}, "granularities is None"),
        ("06", {"epochs": 0}, "epochs is 0"),
        ("06", {"width": 0}, "width"),
        ("06", {"device": "tpu"}, "device is 'tpu'"),
        ("01", {"omega": -1}, "omega is -1"),
        ("01", {"omega": "high"}, "omega is 'high', expected a finite number or null"),
        ("02", {"network": "vgg"}, "unknown network 'vgg'"),
        ("02", {"size": 4}, "size is 4"),
        ("your_own_network", {"omega": 0}, "omega is 0.0, expected a number above 0"),
        ("your_own_network", {"epochs": 0}, "epochs is 0, expected at least 1"),
        ("your_own_network", {"images": 31}, "images is 31, expected at least 32"),
        ("your_own_network", {"seeds": []}, "seeds is empty"),
        ("your_own_network", {"network": "resnet18"}, "unknown parameter 'network'"),
        ("7", {}, "unknown chapter '7'"),
        ("06_acuracy_and_depth", {}, "did you mean '06_accuracy_and_depth'?"),
    ],
)
def test_a_bad_parameter_is_told_in_one_sentence(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        chapter(name, NOTEBOOK | given)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_cells_run_again_after_results_exist() -> None:
    """A reader who runs the first cells again has variables of the later ones; only the parameter cell counts then."""
    kernel = NOTEBOOK | {"tier": "smoke", "In": ["", "tier = 'smoke'\nseeds = [1]"], "seeds": [1]}
    chapter("06", kernel)
    kernel |= {"omega": 0.3, "best": "a result"}
    kernel["In"] = [*kernel["In"], "%matplotlib inline", "for omega in omegas:\n    best = 'a result'"]
    assert chapter("06", kernel).seeds == (1,)
    kernel |= {"sedes": [2], "In": [*kernel["In"], "tier = 'smoke'\nsedes = [2]"]}
    with pytest.raises(SpecError, match="unknown parameter 'sedes'; did you mean 'seeds'"):
        chapter("06", kernel)


def test_the_smoke_chapter_runs_and_the_second_time_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, also=())
    found = chapter("06", {"tier": "smoke"})
    frame = found.run(store, progress=False)
    assert len(frame) == len(found.specs()) == 5
    children = frame[frame["linearized"]]
    for _, curve in children.groupby("granularity"):
        by_omega = curve.sort_values("omega")["napl"].tolist()
        assert by_omega[0] > by_omega[-1]
    monkeypatch.setattr(experiments.runs, "compute", None)
    assert found.run(store, progress=False).equals(frame)
