"""What chapters ask for: parameters checked, runs listed, and nothing computed that nobody needs."""

import types
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import effects, experiments, runs, tiers
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
        linearized = [spec for spec in children if spec.role == "linearized"]
        grid = {(spec.omega, spec.seed) for spec in linearized if spec.granularity == granularity}
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
    """All that it rests on, walked through the two fields that name other runs."""
    sources = [source for source in (spec.parent, spec.weights) if source is not None]
    return [*sources, *(older for source in sources for older in ancestors(source))]


def of(role: str, found: list[RunSpec]) -> list[RunSpec]:
    return [spec for spec in found if spec.role == role]


def every_chapter(name: str, tier: str) -> list[tiers.Chapter]:
    """With its usual parameters, and each edition."""
    return list(dict.fromkeys([CHAPTERS[name](tier=tier, device="cpu"), *CHAPTERS[name].editions(tier)]))


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
        assert tier.mild in (*tier.omegas, 0.5) and tier.omega <= tier.goal_omega
        assert all(goal > 0 for goal in tier.goals) and set(tier.networks) <= set(CHAPTERS)
        assert min(tier.starts) == 0 and max(tier.starts) == RECIPES[tier.training].epochs
        assert 0 < tier.goal < 1 and tier.dataset == tier.datasets[0]
    assert TIERS["paper"].goal == 0.88 and 15 in TIERS["paper"].starts
    assert TIERS["paper"].widths == (0.5, 1, 2, 4) and TIERS["paper"].depths == (20, 32, 44, 56, 110)


def test_the_paper_tier_is_the_paper_s() -> None:
    """§4.2 and App. C: ResNet-56 v2, all of CIFAR-10, 200 + 60 epochs."""
    for spec in specs("06"):
        assert (spec.net, spec.width, spec.shortcut, spec.data, spec.train) == ("resnet56", 1.0, "A", "cifar10", None)
        assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]


def test_the_reduced_tier_has_the_paper_s_networks_whole_data_sets_and_three_parents() -> None:
    tier = TIERS["reduced"]
    assert (tier.dataset, tier.network, tier.width, tier.train, tier.test) == ("cifar10", "resnet20", 1.0, None, None)
    assert tier.small is None and tier.seeds == (0, 1, 2) and tier.precision == "bfloat16"
    for name in ("03", "04", "06", "09"):
        for spec in specs(name, "reduced"):
            assert (spec.net, spec.width, spec.train, spec.origin) == ("resnet20", 1.0, None, None)
            assert spec.recipe.judged == 5 and spec.precision == "bfloat16"


class TestControls:
    """Training alone changes a network; what linearizing changed is told against the same training with all ReLUs."""

    @pytest.mark.parametrize("tier", TIERS)
    @pytest.mark.parametrize("name", [name for name in CHAPTERS if name not in WITHOUT_RUNS])
    def test_every_linearization_has_its_control_among_the_runs_of_its_chapter(self, name: str, tier: str) -> None:
        for edition in every_chapter(name, tier):
            found = edition.specs()
            beside = found
            if name == "01_linearization":  # one live run, which chapter 06 shows with its control
                beside = experiments.wanted("06_accuracy_and_depth", tier)
            linearized = of("linearized", found)
            without = {spec for spec in linearized if spec.control not in beside}
            if name == TWO:  # the stronger one with another seed is itself there for comparison
                repeated = {spec for role, spec in edition.by_role().items() if role == "seed"}  # type: ignore[attr-defined]
                assert without == repeated
                assert all(replace(spec, seed=0).control in found for spec in without)
            else:
                assert not without
            assert len(linearized) > 0 or (name == TWO and edition.network == "squeezenet1_1")  # type: ignore[attr-defined]
            for spec in linearized:
                self.same_but_for_slopes(spec, spec.control)

    def same_but_for_slopes(self, spec: RunSpec, control: RunSpec) -> None:
        assert control.parent == spec.parent and control.control == control
        assert control.omega == 0 and control.goal is None and control.masks == "none"
        if spec.parent is None:  # never trained before, so never anything but ReLUs
            assert control.role == "parent" and control.start == 0
        else:
            assert control.role == "control" and control.start == control.recipe.epochs
        for field in ("data", "net", "width", "residual", "shortcut", "recipe", "seed", "size", "difficulty"):
            assert getattr(control, field) == getattr(spec, field), field
        for field in ("train", "test", "held_out", "precision"):
            assert getattr(control, field) == getattr(spec, field), field

    @pytest.mark.parametrize("name", [name for name in CHAPTERS if name not in WITHOUT_RUNS])
    def test_a_control_controls_something(self, name: str) -> None:
        for tier in TIERS:
            for edition in every_chapter(name, tier):
                found = edition.specs()
                assert set(of("control", found)) <= {spec.control for spec in of("linearized", found)}

    def test_by_hand(self) -> None:
        parent = RunSpec(data="cifar10", net="resnet20", recipe=RECIPES["reduced-train"], seed=4)
        recipe = RECIPES["reduced-linearize"]
        control = replace(parent, parent=parent, recipe=recipe, start=15)
        for more in (
            {"omega": 0.01},
            {"omega": 0.0},
            {"omega": 0.01, "goal": 2.0, "measure": "napl"},
            {"omega": 0.01, "price": "relus", "p": 1.0, "margin": 0.02, "slope_lr": 2.0, "granularity": "layer"},
            {"omega": 0.01, "goal": 0.5, "pull_back": True, "start": 3},
        ):
            one = replace(parent, parent=parent, recipe=recipe, **more)
            assert (one.role, one.control) == ("linearized", control)
        given = replace(
            parent, parent=replace(control, omega=0.01, start=0), weights=parent, masks="layer", recipe=recipe
        )
        assert (given.role, given.control) == ("retrained", control)
        alone = replace(parent, recipe=recipe, omega=0.01, goal=0.5)
        assert alone.control == replace(parent, recipe=recipe) and alone.control.role == "parent"


class TestSharedParents:
    """At reduced size a network is trained once for all chapters."""

    def lineage(self) -> dict[RunSpec, set[str]]:
        """Every run, with the chapters that it is computed for."""
        found: dict[RunSpec, set[str]] = {}
        for name in CHAPTERS:
            for spec in experiments.wanted(name, "reduced"):
                for link in (spec, *ancestors(spec)):
                    found.setdefault(link, set()).add(name)
        return found

    def test_there_is_one_for_each_network_data_set_and_seed(self) -> None:
        parents: dict[tuple[Any, ...], RunSpec] = {}
        whole, short = RECIPES["reduced-train"], RECIPES["reduced-linearize"]
        others = set()
        for spec in self.lineage():
            if spec.role != "parent":
                continue
            if spec.recipe != whole:
                others.add(spec)
                continue
            place = (spec.net, spec.width, spec.residual, spec.shortcut, spec.data, spec.seed)
            assert parents.setdefault(place, spec) == spec, place
            assert spec == RunSpec(
                **dict(zip(("net", "width", "residual", "shortcut", "data", "seed"), place, strict=True)),
                recipe=whole,
                precision="bfloat16",
            )
        assert len(parents) > 30
        # All else without slopes: what others trained, sentences, and chapter 04's beginnings and its start 0.
        early = {replace(one, recipe=whole.until(start)) for one in parents.values() for start in (2, 8)}
        begun = {replace(one, recipe=short) for one in parents.values()}
        mine = {spec for spec in others if spec.published is None and spec.data != "multi30k"}
        assert mine <= early | begun and {spec.net for spec in mine} == {"resnet20"}
        assert len(mine) == 2 * 3 * 3, "two data sets, three seeds; starts 0, 2 and 8"

    def test_chapters_share_those_of_resnet_20(self) -> None:
        found = self.lineage()
        for data in ("cifar10", "cifar100"):
            for seed in (0, 1, 2):
                parent = chapter(
                    "06", {"tier": "reduced", "device": "cpu", "dataset": data, "seeds": [seed]}
                ).parents()[0]
                users = {"03_retraining_masks", "04_early_and_late", "06_accuracy_and_depth", "09_task_difficulty"}
                assert users <= found[parent]
        assert found[specs("06", "reduced", seeds=[0])[0]] >= {"08_depth", "01_linearization"}

    def test_only_the_pictures_of_features_rest_on_networks_of_others(self) -> None:
        assert {name for spec, names in self.lineage().items() if spec.origin for name in names} == {TWO}


class TestRetrainingMasks:
    """Chapter 03 (§4.1.1, App. C.2)."""

    @pytest.mark.parametrize("way", ["chain", "at once"])
    def test_protocol(self, way: str) -> None:
        found = specs("03", dataset="cifar100", residuals=[False], ways=[way])
        for seed in (0, 1, 2):
            parent, control, source, *given = [s for s in found if seed in (s.seed, s.seed - 100)]
            assert (parent.net, parent.residual, parent.data, parent.parent) == ("resnet56", False, "cifar100", None)
            assert parent.recipe == RECIPES["cifar-train"] and parent.omega == 0 and parent.seed == seed
            assert source.parent == parent and source.masks == "none" and source.omega == TIERS["paper"].omega
            assert source.recipe == RECIPES["cifar-linearize-30"] and source.seed == seed
            assert control == source.control
            kinds = ["exact", "layer", "global"]
            assert [s.masks for s in given if s.masks != "none"] == kinds
            if way == "chain":
                for again, further in zip(given[::2], given[1::2], strict=True):
                    self.check_chain(parent, source, again, further)
            else:
                for kind, one in zip(kinds, given, strict=True):
                    # The trained weights, the masks at once, and the very training that the control had.
                    assert one == replace(source, omega=0.0, masks=kind, parent=source, weights=parent)
                    assert one.control == control and one.recipe == source.recipe

    def check_chain(self, parent: RunSpec, source: RunSpec, again: RunSpec, further: RunSpec) -> None:
        """From new weights as long and as fast as the original training, unregularised; then as long as linearizing."""
        assert again.parent == source and again.weights is None and again.omega == 0 and again.goal is None
        assert rates(again) == [0.1] * 100 + [0.01] * 50 + [0.001] * 50 == rates(parent)
        assert replace(again, parent=None, masks="none", seed=parent.seed) == parent
        assert further == replace(again, parent=again, masks="none", recipe=source.recipe)
        assert (again.role, further.role) == ("retrained", "retrained further")
        assert further.omega == 0 and further.start == 0

    @pytest.mark.parametrize("tier", TIERS)
    def test_at_the_end_of_a_chain_both_had_as_many_epochs(self, tier: str) -> None:
        for edition in every_chapter("03_retraining_masks", tier):
            found = edition.specs()
            ends = of("retrained further", found)
            assert len(ends) == len([spec for spec in of("retrained", found) if spec.weights is None])
            for end in ends:
                again = end.parent
                assert again is not None and again.parent is not None and again.parent.parent is not None
                source, parent = again.parent, again.parent.parent
                assert again.recipe.epochs + end.recipe.epochs == parent.recipe.epochs + source.recipe.epochs
                assert (again.recipe, end.recipe) == (parent.recipe, source.recipe)

    @pytest.mark.parametrize("tier", TIERS)
    def test_what_begins_anew_shares_no_seed_with_its_source(self, tier: str) -> None:
        """Else it would begin with the weights that the masks were found on, and see images in the same order."""
        for edition in every_chapter("03_retraining_masks", tier):
            for spec in edition.specs():
                if spec.masks != "none" and spec.weights is None:
                    assert spec.seed not in {older.seed for older in ancestors(spec)}
                    assert spec.parent is not None
                    for seed in {older.seed for older in ancestors(spec)}:
                        with pytest.raises(SpecError, match=f"seed is {seed}, as of .* give another seed"):
                            replace(spec, seed=seed)

    def test_sources_are_the_repetitions(self) -> None:
        """One retraining of each of several sources, not several of one."""
        for tier in TIERS:
            for edition in every_chapter("03_retraining_masks", tier):
                found = edition.specs()
                sources = of("linearized", found)
                assert {spec.seed for spec in sources} == set(TIERS[tier].seeds)
                for source in sources:
                    given = [(s.masks, s.weights is None) for s in of("retrained", found) if s.parent == source]
                    assert len(given) == len(set(given)) and {kind for kind, _ in given} == {"exact", "layer", "global"}

    def test_both_architectures_at_paper_size_and_the_first_at_others(self) -> None:
        assert {spec.residual for spec in specs("03")} == {True, False}
        for tier in ("smoke", "quick", "reduced"):
            assert {spec.residual for spec in specs("03", tier)} == {True}

    def test_both_ways_but_only_the_chain_where_the_chapter_is_live(self) -> None:
        for tier in TIERS:
            ways = {spec.weights is None for spec in of("retrained", specs("03", tier))}
            assert ways == ({True} if tier in LIVE else {True, False})
        assert {spec.weights is None for spec in of("retrained", specs("03", "quick", ways=["at once"]))} == {False}

    def test_what_is_chosen(self) -> None:
        found = specs(
            "03", "quick", masks=["layer"], seeds=[7], omega=0.5, residuals=[False, True], ways=["at once", "chain"]
        )
        assert [(s.residual, s.role, s.masks, s.seed, s.omega) for s in found] == [
            (residual, *run)
            for residual in (False, True)
            for run in (
                ("parent", "none", 7, 0.0),
                ("control", "none", 7, 0.0),
                ("linearized", "none", 7, 0.5),
                ("retrained", "layer", 107, 0.0),
                ("retrained further", "none", 107, 0.0),
                ("retrained", "layer", 7, 0.0),
            )
        ]

    def test_retrains_what_it_trained_itself(self) -> None:
        """A published network's training cannot be repeated: the same training of both is what the chapter compares."""
        for spec in specs("03", "reduced"):
            assert spec.origin is None
            assert spec.recipe in (RECIPES["reduced-train"], RECIPES["reduced-linearize"])
            assert (spec.net, spec.width, spec.train) == ("resnet20", 1.0, None)


class TestEarlyAndLate:
    """Chapter 04 (§4.1.2)."""

    def test_starts_within_the_original_training(self) -> None:
        found = specs("04", datasets=["cifar100"], seeds=[1])
        children = {effects.start_epoch(spec): spec for spec in found if spec.omega > 0}
        assert list(children) == [0, 5, 15, 50, 100, 200]
        whole = specs("06", dataset="cifar100", seeds=[1])[0]
        assert len(found) == 6 * 3 - 1 and {spec.role for spec in found} == {"parent", "control", "linearized"}
        assert children[0].parent is None and replace(children[0], omega=0, goal=None, recipe=whole.recipe) == whole
        assert children[200].parent == whole
        for start, child in children.items():
            assert (child.goal, child.measure, child.seed, child.start) == (0.88, "units", 1, 0)
            # The same training with all ReLUs; of start 0 it begins with random weights as well.
            assert child.control in found and (child.control.parent is None) == (start == 0)
            assert rates(child.control) == rates(child)
            if child.parent is not None:
                assert replace(child.parent, recipe=whole.recipe) == whole
                assert rates(child.parent) == rates(whole)[:start]

    def test_schedules(self) -> None:
        found = specs("04", schedules=["restart", "continue"], seeds=[0], starts=[0, 5, 15, 50, 99])
        for spec in found:
            if spec.omega == 0:
                continue
            start = effects.start_epoch(spec)
            restarted = [0.1] * 10 + [0.01] * 10 + [0.001] * 10  # Figures 25-27: 30 epochs, steps at 10 and 20
            went_on = [0.1] * 30 if start < 99 else [0.1] + [0.01] * 29
            assert rates(spec) in (restarted, went_on), start
        for start in (0, 5, 15, 50, 99):
            ran = [rates(spec) for spec in found if spec.omega and effects.start_epoch(spec) == start]
            assert len(ran) == 2 and ran[0] != ran[1] and ran[0] == [0.1] * 10 + [0.01] * 10 + [0.001] * 10
        # A step of the original schedule inside the linearization.
        early = [spec for spec in specs("04", starts=[90], schedules="continue", seeds=[0]) if spec.omega]
        assert rates(early[0]) == [0.1] * 10 + [0.01] * 20
        # The default restarts.
        assert {spec.recipe for spec in specs("04") if spec.omega} == {RECIPES["cifar-linearize-30"]}

    @pytest.mark.parametrize(("tier", "start"), [("paper", 200), ("reduced", 24)])
    def test_a_schedule_that_never_gets_to_the_goal_is_refused(self, tier: str, start: int) -> None:
        """The rate that the original training ends with moves no slope to its lock in the epochs there are."""
        given = {"schedules": "continue", "seeds": [0]}
        with pytest.raises(SpecError, match="so the goal cannot be reached; give a larger omega") as refusal:
            specs("04", tier, starts=[start], **given)
        assert "\n" not in str(refusal.value)
        strong = specs("04", tier, starts=[start], omega=1.0, **given)  # where it could be
        (one,) = of("linearized", strong)
        assert set(rates(one)) == {0.001}
        assert of("linearized", specs("04", tier, starts=[start // 2], **given))

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
        assert [(s.data, s.difficulty, s.size, s.role) for s in mixed] == [
            (*task, role)
            for task in (("cifar10", None, None), ("digits", 0.5, 12))
            for role in ("parent", "linearized")
        ]
        foreign = specs("04", "quick", datasets=["cifar100"], seeds=[0], starts=[10])
        assert [(s.data, s.difficulty, s.size, s.recipe.flip) for s in foreign] == [("cifar100", None, None, True)] * 3
        assert {s.difficulty for s in specs("04", "reduced", datasets=["digits"], seeds=[0])} == {0.5}

    def test_given_values(self) -> None:
        found = specs("04", "quick", goal=0.3, omega=2.0, epochs=2, width=0.25, starts=[3], seeds=[8])
        assert [(s.role, s.goal, s.omega, s.recipe.epochs, s.recipe.milestones, s.width, s.seed) for s in found] == [
            ("parent", None, 0.0, 3, (), 0.25, 8),
            ("control", None, 0.0, 2, (1,), 0.25, 8),
            ("linearized", 0.3, 2.0, 2, (1,), 0.25, 8),
        ]


class TestStructure:
    """Chapter 05 (§4.2)."""

    def test_protocol(self) -> None:
        found = specs("05")
        assert {spec.residual for spec in found} == {True, False}
        for spec in found:
            assert spec.recipe == RECIPES["cifar-linearize-30" if spec.parent else "cifar-train"]
            assert (spec.net, spec.shortcut, spec.seed in (0, 1, 2)) == ("resnet56", "A", True)
        assert [len(of(role, found)) for role in ("parent", "control", "linearized")] == [2 * 3] * 3
        assert {spec.omega for spec in of("linearized", found)} == {TIERS["paper"].mild}

    def test_a_published_network_is_shown_as_it_is(self) -> None:
        found = specs("05", "reduced", network="akamaster/resnet20")
        assert {spec.residual for spec in found} == {True} and {spec.origin for spec in found} == {"akamaster/resnet20"}
        one = specs("05", "reduced", network="akamaster/resnet56", seeds=[0])
        assert [(spec.net, spec.role) for spec in one] == [
            ("resnet56v1", role) for role in ("parent", "control", "linearized")
        ]

    def test_at_reduced_size_one_deeper_network_with_and_without_residual_connections(self) -> None:
        """Where layers are to be told apart there must be layers."""
        found = specs("05", "reduced")
        assert {(spec.net, spec.residual, spec.seed, spec.origin) for spec in found} == {
            ("resnet32", residual, seed, None) for residual in (True, False) for seed in (0, 1, 2)
        }
        assert {spec.omega for spec in of("linearized", found)} == {TIERS["reduced"].mild}
        for residual in (True, False):
            own = specs("05", "reduced", residuals=[residual])
            assert set(own) == {spec for spec in found if spec.residual == residual}

    def test_at_reduced_size_its_parents_serve_chapter_08(self) -> None:
        deep = {spec for spec in specs("08", "reduced") if spec.net == "resnet32"}
        own = {spec for spec in specs("05", "reduced") if spec.residual}
        assert own <= deep


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
        assert {(s.residual, s.net, s.origin) for s in specs("06", "reduced", residual=False)} == {
            (False, "resnet20", None)
        }

    def test_exponent(self) -> None:
        children = [spec for spec in specs("06", "quick", p=1.0, omegas=[0.0, 0.1], seeds=[0]) if spec.parent]
        assert {spec.omega > 0: spec.p for spec in children if spec.granularity == "channel"} == {False: 0.5, True: 1.0}
        assert {spec.p for spec in specs("06")} == {0.5}

    def test_pixels_take_the_strengths_of_channels(self) -> None:
        children = of("linearized", specs("06", "quick", granularities=["pixel"]))
        assert {spec.granularity for spec in children} == {"pixel"}
        assert sorted({spec.omega for spec in children}) == list(TIERS["quick"].omegas)

    def test_goals_in_napl_end_curves_where_networks_are_compared(self) -> None:
        found = specs("06")
        by_goal = {(s.goal, s.measure, s.seed, s.omega, s.granularity) for s in found if s.goal is not None}
        assert by_goal == {
            (goal, "napl", seed, TIERS["paper"].goal_omega, "channel")
            for goal in (2.7, 3.1, 3.5, 5.0)
            for seed in (0, 1, 2)
        }
        assert not [s for s in specs("06", granularities=["layer"]) if s.goal is not None]
        assert not [s for s in specs("06", epochs=6) if s.goal is not None], "its strength is for the tier's recipe"
        assert not [s for tier in LIVE for s in specs("06", tier) if s.goal is not None]
        given = specs("06", "quick", goals=[1.5], seeds=[2], omegas=[0.1], granularities=["channel"], epochs=8)
        assert [(s.goal, s.measure, s.omega) for s in given if s.goal is not None] == [
            (1.5, "napl", TIERS["quick"].goal_omega)
        ]

    @pytest.mark.parametrize("tier", TIERS)
    def test_one_control_serves_all_strengths_and_granularities_of_a_seed(self, tier: str) -> None:
        controls = of("control", specs("06", tier))
        assert [(spec.seed, spec.granularity) for spec in controls] == [(seed, "channel") for seed in TIERS[tier].seeds]


class TestWidth:
    """Chapter 07 (§4.3.1): ResNet-56 with planes times k, shortcut B."""

    def test_protocol(self) -> None:
        found = specs("07")
        assert {(spec.width, spec.seed) for spec in found} == {(k, s) for k in (0.5, 1, 2, 4) for s in (0, 1, 2)}
        for spec in found:
            assert (spec.net, spec.shortcut, spec.residual, spec.data) == ("resnet56", "B", True, "cifar10")
            assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]
        assert [len(of(role, found)) for role in ("parent", "control")] == [12, 12]
        assert [(s.width, s.seed, s.omega) for s in of("linearized", found)] == [
            (k, seed, omega) for k in (0.5, 1, 2, 4) for seed in (0, 1, 2) for omega in TIERS["paper"].few
        ]

    def test_one_strength_where_the_chapter_is_live(self) -> None:
        for tier in LIVE:
            assert {spec.omega for spec in of("linearized", specs("07", tier))} == {TIERS[tier].omega}

    def test_at_reduced_size_the_paper_s_eightfold_span_of_a_shallower_network(self) -> None:
        found = specs("07", "reduced")
        assert {(spec.net, spec.train, spec.shortcut, spec.origin) for spec in found} == {("resnet14", None, "B", None)}
        assert {spec.width for spec in found} == {0.25, 0.5, 1.0, 2.0}
        assert {spec.omega for spec in of("linearized", found)} == set(TIERS["reduced"].few)


class TestDepth:
    """Chapter 08 (§4.3.2)."""

    def test_protocol(self) -> None:
        found = specs("08")
        assert {spec.net for spec in found} == {f"resnet{d}" for d in (20, 32, 44, 56, 110)}
        assert [(s.net, s.seed, s.omega) for s in of("linearized", found)] == [
            (f"resnet{d}", seed, omega)
            for d in (20, 32, 44, 56, 110)
            for seed in (0, 1, 2)
            for omega in TIERS["paper"].few
        ]
        assert [len(of(role, found)) for role in ("parent", "control")] == [15, 15]
        for spec in found:
            assert spec.recipe == RECIPES["cifar-linearize" if spec.parent else "cifar-train"]
        whole = set(specs("06"))
        assert {spec for spec in found if spec.net == "resnet56"} <= whole

    def test_one_strength_where_the_chapter_is_live(self) -> None:
        for tier in LIVE:
            assert {spec.omega for spec in of("linearized", specs("08", tier))} == {TIERS[tier].few[-1]}

    def test_narrow_networks_where_the_chapter_is_live_unless_others_trained_them(self) -> None:
        assert {spec.width for spec in specs("08", "quick")} == {min(TIERS["quick"].widths)}
        assert {spec.width for spec in specs("08", "quick", width=0.75, family="toynet")} == {0.75}
        found = specs("08", "quick", family="akamaster/resnet", dataset="cifar10", depths=[20], seeds=[0])
        assert {(spec.origin, spec.width) for spec in found} == {("akamaster/resnet20", 1.0)}

    def test_at_reduced_size_four_depths_that_are_trained_here(self) -> None:
        (edition,) = CHAPTERS["08_depth"].editions("reduced")
        assert {(s.net, s.origin, s.data) for s in edition.specs()} == {
            (f"resnet{d}", None, "cifar10") for d in (8, 14, 20, 32)
        }
        assert len(edition.specs()) == 4 * 3 * (2 + 3)  # parent and control, and three strengths
        # Strengths are those of chapter 06, so that its curve of ResNet-20 is one of them.
        of_20 = {spec for spec in edition.specs() if spec.net == "resnet20"}
        assert of_20 <= set(CHAPTERS["06_accuracy_and_depth"].editions("reduced")[0].specs())

    def test_published_networks_of_four_depths(self) -> None:
        found = specs("08", "reduced", family="akamaster/resnet", depths=[20, 32, 44, 56], seeds=[0, 1])
        assert {spec.origin for spec in found} == {f"akamaster/resnet{d}" for d in (20, 32, 44, 56)}
        assert len(found) == 4 + 4 * 2 * (1 + 3)  # one parent for both seeds of the linearization


class TestTaskDifficulty:
    """Chapter 09 (§4.3.3)."""

    def test_protocol(self) -> None:
        found = specs("09")
        assert [(s.data, s.seed, s.omega) for s in of("linearized", found)] == [
            (data, seed, omega)
            for data in ("cifar10", "cifar100", "cinic10")
            for seed in (0, 1, 2)
            for omega in TIERS["paper"].omegas
        ]
        for tier in LIVE:
            assert {spec.omega for spec in of("linearized", specs("09", tier))} == set(TIERS[tier].few)
        assert set(specs("09", datasets=["cifar10"])) <= set(specs("06"))

    def test_digits_of_several_difficulties(self) -> None:
        assert {spec.difficulty for spec in specs("09", "quick")} == {0.25, 1.0}
        assert {spec.difficulty for spec in specs("09", "quick", difficulties=[0.1])} == {0.1}
        assert {(s.data, s.difficulty) for s in specs("09", "quick", datasets=["cifar10"])} == {("cifar10", None)}

    def test_at_reduced_size_the_curves_of_chapter_06(self) -> None:
        curves = {spec for one in CHAPTERS["06_accuracy_and_depth"].editions("reduced") for spec in one.specs()}
        assert set(specs("09", "reduced")) <= curves

    def test_at_reduced_size_the_parents_of_chapter_04(self) -> None:
        assert {spec for spec in specs("09", "reduced") if not spec.parent} <= {
            spec for edition in CHAPTERS["04_early_and_late"].editions("reduced") for spec in edition.specs()
        }


class TestPublishedParents:
    """By name only: what others trained is of another kind than what is trained here."""

    @pytest.mark.parametrize("name", ["01", "05", "06"])
    def test_nobody_takes_one_that_was_not_asked_for(self, name: str) -> None:
        for dataset in (None, "cifar10", "cifar100"):
            given = {} if dataset is None else {"dataset": dataset}
            own = specs(name, "reduced", **given)
            expected = "resnet32" if name == "05" else "resnet20"
            assert {(spec.origin, spec.data, spec.net) for spec in own} == {(None, dataset or "cifar10", expected)}
            assert {s.recipe for spec in own for s in ancestors(spec)} == {RECIPES["reduced-train"]}
            assert {spec.train for spec in own} == {None}

    @pytest.mark.parametrize("name", ["01", "05", "06"])
    def test_only_on_the_data_that_they_were_trained_on(self, name: str) -> None:
        found = specs(name, "reduced", network="akamaster/resnet20")
        assert {(spec.origin, spec.data) for spec in found} == {("akamaster/resnet20", "cifar10")}
        with pytest.raises(SpecError, match="data is 'cifar100', but the published network akamaster/resnet20"):
            specs(name, "reduced", network="akamaster/resnet20", dataset="cifar100")

    def test_a_child_sees_the_tier_s_images(self) -> None:
        parent, *children = specs("06", "reduced", network="akamaster/resnet20")
        assert parent.train is None and {spec.train for spec in children} == {TIERS["reduced"].train}
        assert {spec.seed for spec in children} == {0, 1, 2} and {spec.parent for spec in children} == {parent}


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

    def test_at_reduced_size_they_are_the_rows(self) -> None:
        """What is computed and what is shown are written down once, in the order of their worth."""
        channel, layer = {"granularities": ("channel",)}, {"granularities": ("layer",)}
        deep = channel | {"network": "resnet56", "omegas": (0.0016, 0.003), "goals": (2.7, 3.5), "seeds": (0,)}
        hard = {"dataset": "cifar100"}
        expected: dict[str, list[dict[str, Any]]] = {
            "03_retraining_masks": [
                {**data, "ways": (way,)} for data in (hard, {"dataset": "cifar10"}) for way in ("at once", "chain")
            ],
            "04_early_and_late": [{"datasets": ("cifar100",)}, {"datasets": ("cifar10",)}],
            "06_accuracy_and_depth": [channel, channel | hard, deep, layer | hard],
            "10_feature_visualization": [{}, {"network": "squeezenet1_1"}],
        }
        expected |= {name: expected["06_accuracy_and_depth"] for name in ("A1_unnormalized", "A2_active_share")}
        for name, kind in CHAPTERS.items():
            made = [kind(tier="reduced", device="cpu", **given) for given in expected.get(name, [{}])]
            assert kind.editions("reduced") == made, name
        named = [name for _, row in tiers.ROWS for name, _ in row]
        assert named[0] == TEXT and named[1:4] == ["06_accuracy_and_depth"] * 2 + ["09_task_difficulty"]
        assert set(CHAPTERS) - set(named) == {"01_linearization", "A1_unnormalized", "A2_active_share", *WITHOUT_RUNS}
        titles = [title for title, _ in tiers.ROWS]
        assert len(titles) == len(set(titles)) == 12

    def test_what_they_compute_at_reduced_size(self) -> None:
        found = CHAPTERS["06_accuracy_and_depth"].editions("reduced")
        shown = [{(spec.net, spec.data, spec.origin) for spec in edition.specs()} for edition in found]
        assert shown == [
            {("resnet20", "cifar10", None)},
            {("resnet20", "cifar100", None)},
            {("resnet56", "cifar10", None)},
            {("resnet20", "cifar100", None)},
        ]
        goals = [{(s.goal, s.measure) for s in edition.specs() if s.goal is not None} for edition in found]
        assert goals == [{(2.0, "napl")}, {(2.0, "napl")}, {(2.7, "napl"), (3.5, "napl")}, set()]
        assert len(found[0].specs()) == 3 * (1 + 1 + 5 + 1)  # parent, control, strengths and a goal
        early = CHAPTERS["04_early_and_late"].editions("reduced")
        for edition in early:
            starts = {effects.start_epoch(spec) for spec in of("linearized", edition.specs())}
            assert starts == {0, 2, 8, 24} and len(edition.specs()) == 3 * (3 + 4 + 4)

    def test_committed_runs_of_chapters_10_and_11_stay_wanted(self) -> None:
        """Records of these were kept when the others went; their keys are literal here."""
        features = {spec.key() for spec in experiments.wanted(TWO, "reduced")}
        assert features == {"d5980328a639", "c63a24e7ea26", "f5d8c2cd5553", "ded1b23d0b7e", "e8cdb2378a0c"}
        sentences = {spec.key() for spec in experiments.wanted(TEXT, "reduced")}
        assert sentences >= {
            *("cf74e7182fe5", "523522cf3815", "e45db0bf32c3"),  # seed 0: plain, starts 0 and 2
            *("6525fd81f434", "f21e30f75545", "bf3a854f40cc"),  # seed 1
            "87aab25b503b",  # seed 2, start 3
        }
        committed = {path.stem for path in (Path(__file__).parents[1] / "data" / "results" / "reduced").glob("*.json")}
        assert features | sentences >= {"d5980328a639", "cf74e7182fe5", "87aab25b503b"} <= committed
        every = {spec.key() for name in CHAPTERS for spec in experiments.wanted(name, "reduced")}
        assert committed <= every, "what nobody shows is no record to keep"


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
    assert [(spec.role, spec.granularity, spec.omega) for spec in children] == [
        ("control", "channel", 0.0),
        ("linearized", "channel", 0.1),
        ("linearized", "layer", 0.2),
        ("linearized", "layer", 0.3),
    ]
    for spec in found.specs():
        assert (spec.data, spec.net, spec.width, spec.seed) == ("cifar100", "resnet20v1", 0.5, 4)
        assert spec.size is None and spec.recipe.flip
    assert {spec.recipe.epochs for spec in children} == {2}
    assert len(chapter("06", {"granularities": ["layer"], "seeds": [0]}).specs()) == 2 + len(
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
    for role in ("weak", "strong", "seed", "control"):  # a network at its end needs little
        assert (runs[role].recipe, runs[role].train) == (RECIPES["reduced-features"], 12_500)
        assert (runs[role].precision, runs[role].net) == ("float32", "resnet20v1")
    assert (runs["weak"].omega, runs["strong"].omega) == (0.004, 0.007)
    own = chapter("10", {"tier": "reduced", "network": "resnet20"}).by_role()
    assert {spec.precision for spec in own.values()} == {"bfloat16"} and own["strong"].train is None
    assert (own["relu"].recipe, own["strong"].recipe) == (RECIPES["reduced-train"], RECIPES["reduced-linearize"])
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
        ("03", {"seed": 1}, "unknown parameter 'seed'; did you mean 'seeds'?"),
        ("03", {"ways": ["chain", "at one"]}, "ways has 'at one', expected some of chain, at once"),
        ("03", {"ways": []}, "ways is empty"),
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
        ("04", {"epochs": 1}, "epochs is 1, expected at least 2: this recipe has 2 learning rates, and each needs"),
        ("04", {"tier": "reduced", "epochs": 2}, "epochs is 2, expected at least 3: this recipe has 3 learning rates"),
        ("04", {"omega": 0.001}, "so the goal cannot be reached; give a larger omega, more epochs or an earlier start"),
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
        ("06", {"goals": []}, "goals is empty"),
        ("06", {"goals": [2.0, 0]}, "goal is 0, expected how many NAPL may be left, above 0"),
        ("06", {"goals": [2.0], "epochs": 2, "tier": "paper"}, "epochs is 2, expected at least 3"),
        ("07", {"omega": 0}, "unknown parameter 'omega'; did you mean 'omegas'?"),
        ("07", {"omegas": [0.1, 0]}, "omegas has 0, expected strengths above 0"),
        ("07", {"omegas": []}, "omegas is empty"),
        ("07", {"widths": [0]}, "width"),
        ("07", {"widths": []}, "widths is empty"),
        ("07", {"tier": "reduced", "network": "akamaster/resnet20", "widths": [1]}, "shortcut is 'B', but akamaster"),
        ("08", {"omegas": [0.1, 0]}, "omegas has 0, expected strengths above 0"),
        ("08", {"omegas": []}, "omegas is empty"),
        ("08", {"depths": [21]}, "resnet21"),
        ("08", {"depths": []}, "depths is empty"),
        ("08", {"family": "vgg"}, "unknown network 'vgg8'"),
        (
            "08",
            {"tier": "reduced", "family": "akamaster/resnet", "depths": [26]},
            "no published weights are named 'akamaster/resnet26'",
        ),
        ("08", {"tier": "reduced", "depths": [21]}, "resnet21"),
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
        (
            "11",
            {"epochs": 1},
            "epochs is 1, expected at least 2: this recipe has 2 learning rates, and each needs an epoch",
        ),
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
    assert len(frame) == len(found.specs()) == 6
    assert frame["role"].tolist() == ["parent", "control", *["linearized"] * 4]
    children = frame[frame["role"] == "linearized"]
    (control,) = frame[frame["role"] == "control"].to_dict("records")
    assert (control["active_fraction"], control["napl"]) == (1.0, frame["napl"][0]), "all its units are ReLUs"
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
    lists |= {"ways": ["at once"], "goals": [2.0]}
    given: dict[str, Any] = {name: value for name, value in lists.items() if name in {f.name for f in fields(kind)}}
    foreign = "multi30k" if name == TEXT else "cifar100"
    given |= {"dataset": foreign} if "datasets" not in given else {}
    found = specs(name, "smoke", **given)
    curve = ["parent", "control", "linearized"]
    roles = {
        "01_linearization": ["linearized"],
        "03_retraining_masks": [*curve, "retrained"],
        "04_early_and_late": ["parent", "linearized"],
        TEXT: ["parent", "linearized"],
    }
    roles |= {name: [*curve, "linearized", "linearized"] for name in ("06_accuracy_and_depth", "A1_unnormalized")}
    roles["A2_active_share"] = roles["A1_unnormalized"]
    assert {spec.data for spec in found} == {foreign} and [spec.role for spec in found] == roles.get(name, curve)
