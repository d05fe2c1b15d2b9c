"""What chapters ask for: parameters checked, runs listed, and nothing computed that nobody needs."""

import types
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import effects, runs, tiers
from nladv_core.errors import SpecError
from nladv_core.experiments import CHAPTERS, LIVE, TIERS, AccuracyAndDepth, Linearization, PathLength, chapter
from nladv_core.recipes import RECIPES, UNTRAINED
from nladv_core.specs import RunSpec
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


TWO = "10_feature_visualization"  # whose omegas are two, and nothing else
TEXT = "11_transformer"  # whose data are sentences
WITHOUT_RUNS = ("02_path_length", "your_own_network")


def ancestors(spec: RunSpec) -> list[RunSpec]:
    return [] if spec.parent is None else [spec.parent, *ancestors(spec.parent)]


def rates(spec: RunSpec) -> list[float]:
    """The learning rate in each epoch of a run, to nine digits."""
    return [round(spec.recipe.lr_at(epoch), 9) for epoch in range(spec.recipe.epochs)]


def specs(name: str, tier: str = "paper", **given: Any) -> list[RunSpec]:
    return chapter(name, {"tier": tier, "device": "cpu"} | given).specs()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_specs_at_every_tier(name: str, tier: str) -> None:
    found = specs(name, tier)
    assert bool(found) == (name not in WITHOUT_RUNS)
    assert len({spec.key() for spec in found}) == len(found)
    for spec in [*found, *(ancestor for one in found for ancestor in ancestors(one))]:
        if spec.published is not None:
            assert tier in ("reduced", "paper") and spec.recipe == UNTRAINED
            continue
        if name == TEXT:
            assert spec.data == ("number-words" if tier in ("smoke", "quick") else "multi30k")
            continue
        assert spec.recipe.flip == (spec.data not in ("digits", "imagenet"))
        harder = {"09_task_difficulty": ("cifar100", "cinic10"), "10_feature_visualization": ("imagenet",)}.get(
            name, ()
        )
        assert spec.data in (("digits",) if tier in ("smoke", "quick") else ("cifar10", *harder))
    # What a run starts from is listed as well, where the chapter shows it: all but chapter 01.
    if name != "01_linearization":
        assert {ancestor for spec in found for ancestor in ancestors(spec)} <= set(found)


def test_tiers_are_sorted_and_within_range() -> None:
    """What a chapter reads as "the strongest" or "the narrowest" stands where it says."""
    for name, tier in TIERS.items():
        for field in ("omegas", "layer_omegas", "few", "seeds", "starts", "widths", "depths", "difficulties"):
            values = list(getattr(tier, field))
            assert values == sorted(set(values)), (name, field)
        assert set(tier.few) <= set(tier.omegas) and tier.omega in (*tier.omegas, 0.5)
        assert min(tier.starts) == 0 and max(tier.starts) == RECIPES[tier.training].epochs
        assert 0 < tier.goal < 1 and tier.dataset == tier.datasets[0]
    assert TIERS["paper"].goal == 0.88 and 15 in TIERS["paper"].starts
    assert TIERS["paper"].widths == (0.5, 1, 2, 4) and TIERS["paper"].depths == (20, 32, 44, 56, 110)


def test_the_paper_tier_is_the_paper_s() -> None:
    """§4.2 and App. C: ResNet-56 v2, all of CIFAR-10, 200 + 60 epochs."""
    for spec in specs("06"):
        assert (spec.net, spec.width, spec.shortcut, spec.data, spec.train) == ("resnet56", 1.0, "A", "cifar10", None)
        assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]


class TestRetrainingMasks:
    """Chapter 03 (§4.1.1, App. C.2)."""

    def test_protocol(self) -> None:
        found = specs("03", dataset="cifar100", residuals=[False])
        parent, linearized, *retrained = found
        assert (parent.net, parent.residual, parent.data, parent.parent) == ("resnet56", False, "cifar100", None)
        assert parent.recipe == RECIPES["cifar-train"] and parent.omega == 0
        assert linearized.parent == parent and linearized.masks == "none" and linearized.omega > 0
        assert linearized.recipe == RECIPES["cifar-linearize-30"] and linearized.seed == parent.seed
        # Five of each kind, from new weights, as long and as fast as the original training, unregularised.
        assert [(spec.masks, spec.seed) for spec in retrained] == [
            (kind, seed) for kind in ("exact", "layer", "global") for seed in range(5)
        ]
        for spec in retrained:
            assert spec.parent == linearized and spec.omega == 0 and spec.goal is None
            assert rates(spec) == [0.1] * 100 + [0.01] * 50 + [0.001] * 50 == rates(parent)
            assert replace(spec, parent=None, masks="none", seed=0) == parent

    def test_both_architectures_at_paper_size_and_the_first_at_others(self) -> None:
        assert {spec.residual for spec in specs("03")} == {True, False}
        for tier in ("smoke", "quick", "reduced"):
            assert {spec.residual for spec in specs("03", tier)} == {True}
            assert {s.seed for s in specs("03", tier) if s.masks != "none"} == set(TIERS[tier].seeds)

    def test_what_is_chosen(self) -> None:
        found = specs("03", "quick", masks=["layer"], seeds=[7], seed=2, omega=0.5, residuals=[False, True])
        assert [(s.residual, s.masks, s.seed, s.omega) for s in found] == [
            (residual, *run)
            for residual in (False, True)
            for run in (("none", 2, 0.0), ("none", 2, 0.5), ("layer", 7, 0.0))
        ]

    def test_retrains_what_it_trained_itself(self) -> None:
        """A published network's training cannot be repeated: the same training of both is what the chapter compares."""
        for spec in specs("03", "reduced"):
            assert spec.origin is None
            assert spec.recipe in (RECIPES["reduced-train"], RECIPES["reduced-linearize"])
            assert (spec.net, spec.width, spec.train) == TIERS["reduced"].small


class TestEarlyAndLate:
    """Chapter 04 (§4.1.2)."""

    def test_starts_within_the_original_training(self) -> None:
        found = specs("04", datasets=["cifar100"], seeds=[1])
        children = {effects.start_epoch(spec): spec for spec in found if spec.omega > 0}
        assert list(children) == [0, 5, 15, 50, 100, 200]
        whole = specs("06", dataset="cifar100", seeds=[1])[0]
        assert children[0].parent is None and replace(children[0], omega=0, goal=None, recipe=whole.recipe) == whole
        assert children[200].parent == whole
        for start, child in children.items():
            assert (child.goal, child.seed, child.start) == (0.88, 1, 0)
            if child.parent is not None:
                assert replace(child.parent, recipe=whole.recipe) == whole
                assert rates(child.parent) == rates(whole)[:start]

    def test_schedules(self) -> None:
        found = specs("04", schedules=["restart", "continue"], seeds=[0])
        for spec in found:
            if spec.omega == 0:
                continue
            start = effects.start_epoch(spec)
            restarted = [0.1] * 10 + [0.01] * 10 + [0.001] * 10  # Figures 25-27: 30 epochs, steps at 10 and 20
            went_on = {
                0: [0.1] * 30,
                5: [0.1] * 30,
                15: [0.1] * 30,
                50: [0.1] * 30,
                100: [0.01] * 30,
                200: [0.001] * 30,
            }[start]
            assert rates(spec) in (restarted, went_on), start
        for start in (0, 5, 100, 200):
            ran = [rates(spec)[0] for spec in found if spec.omega and effects.start_epoch(spec) == start]
            assert ran == [0.1, {100: 0.01, 200: 0.001}.get(start, 0.1)]
        # A step of the original schedule inside the linearization.
        early = [spec for spec in specs("04", starts=[90], schedules="continue", seeds=[0]) if spec.omega]
        assert rates(early[0]) == [0.1] * 10 + [0.01] * 20
        # The default restarts.
        assert {spec.recipe for spec in specs("04") if spec.omega} == {RECIPES["cifar-linearize-30"]}

    def test_a_start_at_the_end_shares_the_parent_of_chapter_06(self) -> None:
        for tier in ("smoke", "paper"):
            whole = chapter("06", {"tier": tier, "device": "cpu"}).parents()
            assert set(whole) <= set(specs("04", tier))

    def test_where_many_parents_are_trained_they_are_small_and_shared(self) -> None:
        small, width, count = TIERS["quick"].small or ("", 0.0, 0)
        for name in ("03", "04", "09"):
            assert {(spec.net, spec.width, spec.train) for spec in specs(name, "quick")} == {(small, width, count)}
        full = {spec for spec in specs("04", "quick") if not spec.parent and spec.recipe == RECIPES["quick-train"]}
        assert full == {spec for spec in specs("09", "quick", difficulties=[0.25]) if not spec.parent}

    def test_tasks(self) -> None:
        tasks = {(s.data, s.difficulty) for s in specs("04", "quick", difficulties=[0.0, 1.0])}
        assert tasks == {("digits", 0.0), ("digits", 1.0)}
        assert {(s.data, s.difficulty) for s in specs("04", "quick")} == {("digits", 0.25)}
        assert {(s.data, s.difficulty) for s in specs("04", "smoke")} == {("digits", 0.0)}
        mixed = specs("04", "quick", datasets=["cifar10", "digits"], difficulties=[0.5], seeds=[0], starts=[0])
        assert [(s.data, s.difficulty, s.size) for s in mixed] == [("cifar10", None, None), ("digits", 0.5, 12)]
        foreign = specs("04", "quick", datasets=["cifar100"], seeds=[0], starts=[10])
        assert [(s.data, s.difficulty, s.size, s.recipe.flip) for s in foreign] == [("cifar100", None, None, True)] * 2
        assert {s.difficulty for s in specs("04", "reduced", datasets=["digits"], seeds=[0])} == {0.5}

    def test_given_values(self) -> None:
        found = specs("04", "quick", goal=0.3, omega=2.0, epochs=1, width=0.25, starts=[3], seeds=[8])
        assert [(s.goal, s.omega, s.recipe.epochs, s.width, s.seed) for s in found] == [
            (None, 0.0, 3, 0.25, 8),
            (0.3, 2.0, 1, 0.25, 8),
        ]


class TestStructure:
    """Chapter 05 (§4.2)."""

    def test_protocol(self) -> None:
        found = specs("05")
        assert {spec.residual for spec in found} == {True, False}
        for spec in found:
            assert spec.recipe == RECIPES["cifar-linearize-30" if spec.parent else "cifar-train"]
            assert (spec.net, spec.shortcut, spec.seed in (0, 1, 2)) == ("resnet56", "A", True)
        assert sum(spec.parent is not None for spec in found) == 2 * 3
        assert {spec.omega for spec in found if spec.parent} == {TIERS["paper"].mild}

    def test_a_published_network_is_shown_as_it_is(self) -> None:
        found = specs("05", "reduced")
        assert {spec.residual for spec in found} == {True} and {spec.origin for spec in found} == {"akamaster/resnet20"}
        assert [spec.net for spec in specs("05", "reduced", network="akamaster/resnet56", seeds=[0])] == [
            "resnet56v1"
        ] * 2

    def test_without_residual_connections_both_are_of_one_kind(self) -> None:
        for residuals in ([False], [True, False]):
            found = specs("05", "reduced", residuals=residuals)
            assert {spec.residual for spec in found} == set(residuals)
            assert {(spec.origin, spec.net) for spec in found} == {(None, "resnet20")}
        assert {spec.origin for spec in specs("05", "reduced", residuals=[True])} == {"akamaster/resnet20"}

    def test_at_reduced_size_it_shows_runs_of_other_chapters(self) -> None:
        """So the maps cost nothing."""
        others = ("06_accuracy_and_depth", "08_depth")
        ran = {spec for name in others for edition in CHAPTERS[name].editions("reduced") for spec in edition.specs()}
        for edition in CHAPTERS["05_structure"].editions("reduced"):
            assert set(edition.specs()) <= ran


class TestAccuracyAndDepth:
    """Chapter 06 (§4.2), and A1 and A2 (App. B.1, B.2) from the same runs."""

    @pytest.mark.parametrize("tier", TIERS)
    def test_the_appendix_has_the_same_runs(self, tier: str) -> None:
        for name in ("A1_unnormalized", "A2_active_share"):
            assert [edition.specs() for edition in CHAPTERS[name].editions(tier)] == [
                edition.specs() for edition in CHAPTERS["06_accuracy_and_depth"].editions(tier)
            ]
        assert specs("A1", tier) == specs("A2", tier) == specs("06", tier)

    def test_without_residual_connections(self) -> None:
        found = specs("06", residual=False)
        assert {(spec.residual, spec.net, spec.origin) for spec in found} == {(False, "resnet56", None)}
        # A published network has its own; the tier's is trained here instead.
        assert {(s.residual, s.net, s.origin) for s in specs("06", "reduced", residual=False)} == {
            (False, "resnet20", None)
        }

    def test_exponent(self) -> None:
        children = [spec for spec in specs("06", "quick", p=1.0, omegas=[0.0, 0.1], seeds=[0]) if spec.parent]
        assert {spec.omega > 0: spec.p for spec in children if spec.granularity == "channel"} == {False: 0.5, True: 1.0}
        assert {spec.p for spec in specs("06")} == {0.5}

    def test_pixels_take_the_strengths_of_channels(self) -> None:
        children = [spec for spec in specs("06", "quick", granularities=["pixel"]) if spec.parent]
        assert {spec.granularity for spec in children} == {"pixel"}
        assert sorted({spec.omega for spec in children}) == list(TIERS["quick"].omegas)


class TestWidth:
    """Chapter 07 (§4.3.1): ResNet-56 with planes times k, shortcut B."""

    def test_protocol(self) -> None:
        found = specs("07")
        assert {(spec.width, spec.seed) for spec in found} == {(k, s) for k in (0.5, 1, 2, 4) for s in (0, 1, 2)}
        for spec in found:
            assert (spec.net, spec.shortcut, spec.residual, spec.data) == ("resnet56", "B", True, "cifar10")
            assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]
        assert len(found) == 2 * 12 and {spec.omega for spec in found if spec.parent} == {TIERS["paper"].omega}

    def test_at_reduced_size_the_small_network(self) -> None:
        net, _, train = TIERS["reduced"].small or ("", 0, 0)
        found = specs("07", "reduced")
        assert {(spec.net, spec.train, spec.shortcut, spec.origin) for spec in found} == {(net, train, "B", None)}
        assert {spec.width for spec in found} == set(TIERS["reduced"].widths)


class TestDepth:
    """Chapter 08 (§4.3.2)."""

    def test_protocol(self) -> None:
        found = specs("08")
        assert {spec.net for spec in found} == {f"resnet{d}" for d in (20, 32, 44, 56, 110)}
        children = [spec for spec in found if spec.parent]
        assert {(s.net, s.omega, s.seed) for s in children} == {
            (f"resnet{d}", omega, seed)
            for d in (20, 32, 44, 56, 110)
            for omega in TIERS["paper"].few[-2:]
            for seed in (0, 1, 2)
        }
        for spec in found:
            assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]
        whole = set(specs("06"))
        assert {spec for spec in found if spec.net == "resnet56"} <= whole

    def test_one_strength_where_the_chapter_is_live(self) -> None:
        for tier in LIVE:
            assert {spec.omega for spec in specs("08", tier) if spec.parent} == {TIERS[tier].few[-1]}

    def test_narrow_networks_where_the_chapter_is_live_unless_others_trained_them(self) -> None:
        assert {spec.width for spec in specs("08", "quick")} == {min(TIERS["quick"].widths)}
        assert {spec.width for spec in specs("08", "quick", width=0.75, family="toynet")} == {0.75}
        found = specs("08", "quick", family="akamaster/resnet", dataset="cifar10", depths=[20], seeds=[0])
        assert {(spec.origin, spec.width) for spec in found} == {("akamaster/resnet20", 1.0)}

    def test_published_networks_of_four_depths_on_their_own_data(self) -> None:
        (edition,) = CHAPTERS["08_depth"].editions("reduced")
        assert {spec.origin for spec in edition.specs()} == {f"akamaster/resnet{d}" for d in (20, 32, 44, 56)}
        assert len(edition.specs()) == 4 + 4 * 2  # two seeds of the linearization
        for given in ({"dataset": "cifar100"}, {"width": 0.5}, {"family": "resnet"}):
            found = specs("08", "reduced", depths=[20], seeds=[0], **given)
            assert {(spec.origin, spec.net) for spec in found} == {(None, "resnet20")}


class TestTaskDifficulty:
    """Chapter 09 (§4.3.3)."""

    def test_protocol(self) -> None:
        found = specs("09")
        assert {(s.data, s.omega, s.seed) for s in found if s.parent} == {
            (data, omega, seed)
            for data in ("cifar10", "cifar100", "cinic10")
            for omega in TIERS["paper"].few
            for seed in (0, 1, 2)
        }
        assert set(specs("09", datasets=["cifar10"])) <= set(specs("06"))

    def test_digits_of_several_difficulties(self) -> None:
        assert {spec.difficulty for spec in specs("09", "quick")} == {0.25, 1.0}
        assert {spec.difficulty for spec in specs("09", "quick", difficulties=[0.1])} == {0.1}
        assert {(s.data, s.difficulty) for s in specs("09", "quick", datasets=["cifar10"])} == {("cifar10", None)}

    def test_at_reduced_size_the_parents_of_chapter_04(self) -> None:
        assert {spec for spec in specs("09", "reduced") if not spec.parent} <= {
            spec for edition in CHAPTERS["04_early_and_late"].editions("reduced") for spec in edition.specs()
        }


class TestPublishedParents:
    @pytest.mark.parametrize("name", ["01", "05", "06"])
    def test_only_on_the_data_that_they_were_trained_on(self, name: str) -> None:
        assert {spec.origin for spec in specs(name, "reduced")} == {"akamaster/resnet20"}
        assert {spec.origin for spec in specs(name, "reduced", dataset="cifar10")} == {"akamaster/resnet20"}
        own = specs(name, "reduced", dataset="cifar100")
        assert {(spec.origin, spec.data, spec.net) for spec in own} == {(None, "cifar100", "resnet20")}
        assert {s.recipe for spec in own for s in ancestors(spec)} == {RECIPES["reduced-train"]}
        assert {spec.train for spec in own} == {TIERS["reduced"].train}

    def test_a_child_sees_the_tier_s_images(self) -> None:
        parent, *children = specs("06", "reduced")
        assert parent.train is None and {spec.train for spec in children} == {TIERS["reduced"].train}
        assert {spec.seed for spec in children} == {0, 1} and {spec.parent for spec in children} == {parent}


class TestEditions:
    @pytest.mark.parametrize("name", CHAPTERS)
    def test_each_is_a_chapter_at_its_tier(self, name: str) -> None:
        for tier in TIERS:
            found = CHAPTERS[name].editions(tier)
            assert found and len(set(found)) == len(found)
            assert {(edition.tier, edition.device) for edition in found} == {(tier, "cpu")}
            assert {type(edition) for edition in found} == {CHAPTERS[name]}
            if tier in ("smoke", "quick"):
                assert found == [CHAPTERS[name](tier=tier, device="cpu")]
        with pytest.raises(SpecError, match="tier is 'huge'"):
            CHAPTERS[name].editions("huge")

    def test_of_the_paper(self) -> None:
        def of(name: str, *names: str) -> list[tuple]:
            return [tuple(getattr(e, n) for n in names) for e in CHAPTERS[name].editions("paper")]

        assert of("03_retraining_masks", "dataset", "residuals") == [
            ("cifar10", (True,)),
            ("cifar100", (True,)),
            ("cifar10", (False,)),
            ("cifar100", (False,)),
            ("cifar10", (True,)),
        ]
        assert [e.network for e in CHAPTERS["03_retraining_masks"].editions("paper")] == [None] * 4 + ["pyramidnet110"]
        assert of("04_early_and_late", "datasets", "schedules") == [
            (("cifar100",), ("restart",)),
            (("cifar10",), ("restart",)),
            (("cifar100",), ("continue",)),
        ]
        assert of("05_structure", "dataset", "residuals") == [("cifar10", None), ("cifar100", None)]
        assert of("06_accuracy_and_depth", "dataset", "residual", "granularities") == [
            (None, True, ("channel",)),
            ("cifar100", True, ("channel",)),
            (None, False, ("channel",)),
            ("cifar100", False, ("channel",)),
            (None, True, ("layer",)),
            (None, True, ("channel",)),
            (None, False, ("channel",)),
            ("imagenet", True, ("channel",)),
        ]
        last = [e.network for e in CHAPTERS["06_accuracy_and_depth"].editions("paper")][-3:]
        assert last == ["pyramidnet110", "pyramidnet110", "torchvision/resnet50"]
        assert len(TIERS["paper"].seeds) >= 3

    def test_at_reduced_size(self) -> None:
        found = CHAPTERS["06_accuracy_and_depth"].editions("reduced")
        origins = [{spec.origin for spec in edition.specs()} for edition in found]
        assert origins == [{"akamaster/resnet20"}, {"akamaster/resnet56"}, {None}, {"akamaster/resnet20"}]
        assert [edition.granularities for edition in found] == [("channel",)] * 3 + [("layer",)]
        data = [edition.datasets for edition in CHAPTERS["04_early_and_late"].editions("reduced")]
        assert data == [("cifar100",), ("cifar10",), ("cifar100",)]


def test_no_chapter_of_the_default_size_takes_long() -> None:
    """By the rough measure of `runs.seconds`, on one core; what an earlier chapter has computed costs nothing."""
    seen: set[RunSpec] = set()
    cost = {}
    for name in CHAPTERS:
        found = {spec for one in specs(name, "quick") for spec in [one, *ancestors(one)]}
        cost[name] = sum(runs.seconds(spec) for spec in found - seen)
        seen |= found
    assert sum(cost.values()) < 2 * 5 * 60  # two cores
    assert max(cost.values()) < 120 and cost["A1_unnormalized"] == cost["A2_active_share"] == 0
    smoke = {spec for name in CHAPTERS for spec in specs(name, "smoke")}
    assert sum(map(runs.seconds, smoke)) < 5


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


def test_chapter_10_compares_a_network_with_what_became_of_it() -> None:
    """Two strengths, the stronger one with another seed, and the parent trained equally long without a penalty."""
    found = chapter("10", {"tier": "reduced"})
    runs = found.by_role()
    assert list(runs) == ["relu", "weak", "strong", "seed", "control"]
    assert {spec.parent for role, spec in runs.items() if role != "relu"} == {runs["relu"]}
    assert runs["relu"].published == "akamaster/resnet20"
    assert {runs["weak"], runs["strong"]} < set(chapter("06", {"tier": "reduced"}).specs())
    assert runs["seed"] == replace(runs["strong"], seed=1)
    assert runs["control"] == replace(runs["strong"], omega=0.0, start=runs["strong"].recipe.epochs)
    assert all(spec.size == 32 for spec in chapter("10", {}).specs())
    taught = chapter("10", {"tier": "reduced", "network": "squeezenet1_1"})
    assert taught.specs() == [] and list(taught.distillations()) == ["weak", "strong"]
    assert [edition.record_name() for edition in type(found).editions("reduced")] == [
        "akamaster-resnet20-on-cifar10",
        "squeezenet-1.1-on-imagenet",
    ]
    paper = chapter("10", {"tier": "paper"})
    assert (paper.network, paper.dataset, paper.size, paper.channels) == ("torchvision/resnet50", "imagenet", 224, 0)


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
        ("03", {"omega": 0}, "omega is 0, expected above 0: without it every mask is the same"),
        ("03", {"masks": ["exact", "exat"]}, "masks has 'exat', expected some of exact, layer, global"),
        ("03", {"masks": ["none"]}, "masks has 'none'"),
        ("03", {"masks": []}, "masks is empty"),
        ("03", {"seeds": [-1]}, "seed is -1, expected at least 0"),
        ("03", {"residuals": "yes"}, "residuals is ['yes'], expected a list of true or falses or null"),
        (
            "03",
            {"tier": "reduced", "network": "akamaster/resnet20"},
            "akamaster/resnet20 was trained elsewhere, and its masks must be tried by the same training; name a",
        ),
        ("04", {"starts": [11]}, "starts has 11, expected epochs of the training: 0 to 10"),
        ("04", {"starts": [-1]}, "starts has -1"),
        ("04", {"starts": [0.5]}, "starts is [0.5], expected a list of integers"),
        ("04", {"starts": []}, "starts is empty"),
        ("04", {"schedules": ["restart", "continu"]}, "schedules has 'continu', expected some of restart, continue"),
        ("04", {"schedules": []}, "schedules is empty"),
        ("04", {"goal": 1}, "goal is 1, expected a share of inactive units between 0 and 1"),
        ("04", {"goal": 0}, "goal is 0"),
        ("04", {"omega": 0}, "omega is 0, expected above 0: without it no goal is reached"),
        ("04", {"epochs": 0}, "epochs is 0"),
        ("04", {"datasets": ["cifar10"], "difficulties": [0.5]}, "only digits have them and the data are cifar10"),
        ("04", {"difficulties": [2]}, "difficulty 2"),
        (
            "04",
            {"tier": "reduced", "network": "akamaster/resnet20"},
            "akamaster/resnet20 is known after its training only, but this chapter starts within it; name a network",
        ),
        ("05", {"omega": 0}, "omega is 0, expected above 0: without it no unit becomes linear"),
        ("05", {"residuals": []}, "residuals is empty"),
        ("05", {"seeds": []}, "seeds is empty"),
        (
            "05",
            {"tier": "reduced", "network": "akamaster/resnet20", "residuals": [False]},
            "residual is False, but akamaster/resnet20 is taken as it was published",
        ),
        ("06", {"p": 0}, "p is 0"),
        ("06", {"layer_omegas": []}, "layer_omegas is empty"),
        (
            "06",
            {"tier": "reduced", "network": "akamaster/resnet20", "residual": False},
            "residual is False, but akamaster/resnet20 is taken as it was published",
        ),
        ("06", {"tier": "reduced", "network": "akamaster/resnet20", "width": 2}, "width is 2, but akamaster/resnet20"),
        ("07", {"omega": 0}, "omega is 0, expected above 0"),
        ("07", {"widths": [0]}, "width"),
        ("07", {"widths": []}, "widths is empty"),
        ("07", {"tier": "reduced", "network": "akamaster/resnet20", "widths": [1]}, "shortcut is 'B', but akamaster"),
        ("08", {"omegas": [0.1, 0]}, "omegas has 0, expected strengths above 0"),
        ("08", {"omegas": []}, "omegas is empty"),
        ("08", {"depths": [21]}, "resnet21"),
        ("08", {"depths": []}, "depths is empty"),
        ("08", {"family": "vgg"}, "unknown network 'vgg8'"),
        ("08", {"tier": "reduced", "depths": [26]}, "no published weights are named 'akamaster/resnet26'"),
        ("09", {"omegas": [-1]}, "omega is -1"),
        ("09", {"datasets": []}, "datasets is empty"),
        ("09", {"datasets": ["cifar10", "cifar11"]}, "did you mean 'cifar10'?"),
        ("09", {"datasets": ["cifar100"], "difficulties": [0.5]}, "difficulties are given, but only digits have them"),
        ("09", {"tier": "paper", "difficulties": [0.5]}, "leave difficulties out"),
        ("A1", {"omgas": [1]}, "A1_unnormalized: unknown parameter 'omgas'"),
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
        ("10", {"omegas": [0.1]}, "omegas is [0.1], expected two above 0, the smaller one first"),
        ("10", {"omegas": [0.2, 0.1]}, "omegas is [0.2, 0.1], expected two above 0, the smaller one first"),
        ("10", {"control_seed": 0}, "control_seed is 0 like seed, expected another"),
        ("10", {"channels": -1}, "channels is -1, expected at least 0"),
        ("10", {"steps": 0}, "steps is 0, expected at least 1"),
        ("10", {"size": 4}, "size is 4, expected at least 8"),
        ("10", {"starts": []}, "starts is empty"),
        ("10", {"network": "squeezenet1_1", "dataset": "cifar10"}, "leave dataset out"),
        ("10", {"network": "squeezenet"}, "unknown network 'squeezenet'"),
        ("10", {"tier": "papr"}, "did you mean 'paper'?"),
        ("your_own_network", {"omega": 0}, "omega is 0.0, expected a number above 0"),
        ("your_own_network", {"epochs": 0}, "epochs is 0, expected at least 1"),
        ("your_own_network", {"images": 31}, "images is 31, expected at least 32"),
        ("your_own_network", {"seeds": []}, "seeds is empty"),
        ("your_own_network", {"network": "resnet18"}, "unknown parameter 'network'"),
        ("13", {}, "unknown chapter '13'"),
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
    monkeypatch.setattr(tiers.runs, "compute", None)
    assert found.run(store, progress=False).equals(frame)


@pytest.mark.parametrize("name", [name for name in CHAPTERS if name not in (*WITHOUT_RUNS, TWO)])
def test_lists_of_one_are_enough(name: str) -> None:
    """Foreign parameters: another data set, one of everything."""
    kind = CHAPTERS[name]
    lists = {"omegas": [0.1], "layer_omegas": [0.1], "seeds": [5], "starts": [0], "widths": [1], "depths": [8]}
    lists |= {"datasets": ["cifar100"], "residuals": [False], "masks": ["exact"], "schedules": ["continue"]}
    given: dict[str, Any] = {name: value for name, value in lists.items() if name in {f.name for f in fields(kind)}}
    foreign = "multi30k" if name == TEXT else "cifar100"
    given |= {"dataset": foreign} if "datasets" not in given else {}
    found = specs(name, "smoke", **given)
    assert {spec.data for spec in found} == {foreign} and len(found) <= 3
