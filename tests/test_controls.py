"""Runs with their controls, and curves over the NAPL, against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nladv_core import controls
from nladv_core.controls import Curve, Runs, SaysNothing
from nladv_core.errors import RecordError
from nladv_core.recipes import UNTRAINED
from nladv_core.specs import RunSpec
from synthetic import FINE, TRAIN, child, parent, record

PUBLISHED = RunSpec(data="cifar10", net="resnet20v1", recipe=UNTRAINED, published="akamaster/resnet20")


def chain(source: RunSpec, kind: str = "exact") -> tuple[RunSpec, RunSpec]:
    """A retraining with the masks of a source, and the end of the chain."""
    again = replace(source, parent=source, recipe=TRAIN, omega=0.0, masks=kind, seed=source.seed + 100)
    return again, replace(again, masks="none", parent=again, recipe=source.recipe)


class TestRuns:
    def test_a_unit_is_the_seed_of_the_network_that_everything_began_with(self) -> None:
        source = child(3)
        again, end = chain(source)
        at_once = replace(source, parent=source, weights=source.parent, omega=0.0, masks="exact")
        for spec in (source, source.parent, source.control, again, end, at_once):
            assert spec is not None and controls.unit_of(spec) == 3
        assert controls.unit_of(replace(parent(5), omega=0.1, goal=0.9)) == 5  # linearized from new weights

    def test_linearizations_of_one_published_network_are_told_by_their_own_seeds(self) -> None:
        found = [replace(PUBLISHED, published=None, parent=PUBLISHED, recipe=FINE, omega=0.01, seed=s) for s in (0, 4)]
        assert [controls.unit_of(spec) for spec in found] == [0, 4]

    def test_how_a_run_came_to_its_masks(self) -> None:
        source = child(3)
        again, end = chain(source, "layer")
        at_once = replace(source, parent=source, weights=source.parent, omega=0.0, masks="global")
        assert controls.way_of(again) == ("retrained", "layer", source)
        assert controls.way_of(end) == ("chain", "layer", source)
        assert controls.way_of(at_once) == ("at once", "global", source)
        assert {way for way, _, _ in map(controls.way_of, (again, end, at_once))} == set(controls.WAYS)  # type: ignore
        # Neither a linearized network nor its control took masks; a chain of another length is another experiment.
        assert source.parent is not None
        others: list[RunSpec] = [source, source.parent, source.control, replace(end, recipe=FINE.shortened(6))]
        assert [controls.way_of(spec) for spec in others] == [None] * 4

    def test_an_architecture_in_words(self) -> None:
        assert controls.architecture(child()) == "resnet20"
        assert controls.architecture(child(width=0.5, shortcut="B")) == "resnet20 of width 0.5 with shortcut B"
        assert controls.architecture(child(residual=False)) == "resnet20 without residual connections"
        fine = replace(PUBLISHED, published=None, parent=PUBLISHED, recipe=FINE, omega=0.01)
        assert controls.architecture(fine) == "akamaster/resnet20"

    def test_a_loss_is_against_the_control_and_never_the_parent(self) -> None:
        run = record(child(), test_accuracy=0.80)
        runs = Runs([run, record(parent(), test_accuracy=0.95), record(run.spec.control, test_accuracy=0.85)])
        assert runs.loss(run) == pytest.approx(5)
        with pytest.raises(SaysNothing, match="its control was not run"):
            Runs([run, record(parent(), test_accuracy=0.95)]).loss(run)

    @pytest.mark.parametrize(
        ("accuracy", "share", "alive"), [(0.45, 0.1, True), (0.44, 0.1, False), (0.9, 0.0, False), (0.9, 1e-4, True)]
    )
    def test_a_network_at_less_than_half_of_its_control_has_collapsed(
        self, accuracy: float, share: float, alive: bool
    ) -> None:
        run = record(child(), test_accuracy=accuracy, active_fraction=share)
        assert Runs([run, record(run.spec.control, test_accuracy=0.9)]).alive(run) == alive

    def test_the_linearized_runs_of_a_unit_in_the_order_of_their_strength(self) -> None:
        found = [record(child(seed, omega)) for seed in (1, 0) for omega in (0.004, 0.001)]
        runs = Runs([*found, *found, record(parent())])
        assert {u: [one.spec.omega for one in own] for u, own in runs.units.items()} == dict.fromkeys(
            (0, 1), [0.001, 0.004]
        )

    def test_several_networks_are_no_curve(self) -> None:
        goal = replace(child(omega=0.005), goal=2.0, measure="napl")
        controls.one_network([record(spec) for spec in (child(), child(omega=0.002), goal)])
        for more in ({"residual": False}, {"recipe": FINE.shortened(30)}, {"p": 1.0}, {"granularity": "layer"}):
            with pytest.raises(RecordError, match="pass only the runs of one network on one data set"):
                controls.one_network([record(child()), record(child(**more))])  # type: ignore[arg-type]
        with pytest.raises(RecordError, match="pass only the runs of one strength"):
            controls.only([record(child()), record(child(omega=0.002))])


class TestBlocks:
    WEIGHTS: Any = {"a": 1.0, "b": -1.0}

    def test_a_further_treatment_helps_where_every_block_has_it(self) -> None:
        rows: dict[Any, dict[Any, float]] = {0: {"a": 3, "b": 1}, 1: {"a": 5, "b": 2}, 2: {"a": 4, "b": 2.5}}
        plain = controls.blocks_of(rows, self.WEIGHTS, {})
        assert plain.numbers == {0: 2, 1: 3, 2: 1.5} and plain.estimate is not None and plain.estimate.freedom == 2
        more = {unit: row | {"c": 1.0 + unit} for unit, row in rows.items()}
        pooled = controls.blocks_of(more, self.WEIGHTS, {})
        assert pooled.numbers == plain.numbers and pooled.estimate is not None and pooled.estimate.freedom == 4

    def test_one_complete_block_more_never_hides_the_others(self) -> None:
        """Three seeds have two treatments; a fourth one has a third. They all count."""
        rows: dict[Any, dict[Any, float]] = {unit: {"a": 3 + unit, "b": 1} for unit in range(3)} | {3: {"a": 3, "b": 1}}
        rows[3]["c"] = 9.0
        found = controls.blocks_of(rows, self.WEIGHTS, {})
        assert len(found.found) == 4 and found.estimate is not None and found.estimate.n == 4

    def test_without_a_treatment_of_the_contrast_a_block_has_no_number_and_a_reason(self) -> None:
        found = controls.blocks_of({0: {"a": 3, "b": 1}, 1: {"a": 5}}, self.WEIGHTS, {2: "it missed"})
        assert found.numbers == {0: 2, 1: None, 2: None}
        assert found.why == {1: "the runs that are compared are not all there", 2: "it missed"}
        assert controls.blocks_of({1: {"a": 5}}, self.WEIGHTS, {}).estimate is None


class TestCurve:
    def test_at_its_points_it_is_what_was_measured(self) -> None:
        curve = Curve.through([(8, 92), (2, 80), (4, 90)])
        assert [curve.at(x) for x in (2, 4, 8)] == [80, 90, 92]

    def test_between_them_it_is_over_the_logarithm_and_never_beyond_its_neighbours(self) -> None:
        assert Curve.through([(4, 90), (2, 80)]).at(2 * math.sqrt(2)) == pytest.approx(85)
        straight = Curve.through([(4, 90), (2, 80), (8, 91)], monotone=False)
        assert straight.at(2 * math.sqrt(2)) == pytest.approx(85)

    def test_a_smooth_curve_is_met_within_the_tolerance(self) -> None:
        """Accuracy bends by 1.4 points a halving, as along the curves we know: 0.2 points off at most."""

        def accuracy(napl: float) -> float:
            x = math.log2(29 / napl)
            return 92 - 0.2 * x - 0.7 * x**2

        curve = Curve.through([(29 / 2**i, accuracy(29 / 2**i)) for i in range(6)])
        for x in np.linspace(0.1, 4.9, 50):
            if abs(x - round(x)) > 0.01:
                assert curve.at(29 / 2**x) == pytest.approx(accuracy(29 / 2**x), abs=0.2)

    def test_nothing_is_extrapolated(self) -> None:
        curve = Curve.through([(4, 90), (2, 80)])
        for napl in (1.99, 4.01):
            with pytest.raises(SaysNothing, match="do not reach NAPL"):
                curve.at(napl)
        with pytest.raises(SaysNothing, match="do not reach NAPL"):
            Curve.through([(4, 90)]).at(3)

    def test_nor_interpolated_between_networks_far_apart(self) -> None:
        assert Curve.through([(4, 90), (2, 80)]).at(3) and Curve.through([(4.1, 90), (4, 80), (2, 70)]).at(3)
        with pytest.raises(SaysNothing, match=r"NAPL 2 and 4\.01, more than a factor of 2 apart"):
            Curve.through([(4.01, 90), (2, 80)]).at(3)
        assert Curve.through([(8, 90), (2, 80)]).where(85)
        with pytest.raises(SaysNothing, match="more than a factor of 4 apart"):
            Curve.through([(8.1, 90), (2, 80)]).where(85)

    def test_a_network_without_a_unit_has_no_logarithm_and_equal_ones_their_mean(self) -> None:
        curve = Curve.through([(0, 10), (4, 90), (2, 80), (2, 82)])
        assert curve.napl.tolist() == [2, 4] and curve.column.tolist() == [81, 90]

    def test_what_falls_where_it_should_rise_is_pooled(self) -> None:
        assert Curve.through([(8, 90), (4, 92), (2, 80)]).column.tolist() == [80, 91, 91]
        assert Curve.through([(8, 90), (4, 92), (2, 80)], monotone=False).column.tolist() == [80, 92, 90]

    @given(st.lists(st.tuples(st.floats(0.5, 30), st.floats(10, 95)), min_size=2, max_size=8))
    def test_it_rises_and_where_finds_what_at_gives(self, points: list[tuple[float, float]]) -> None:
        curve = Curve.through(points)
        assert (np.diff(curve.column) >= -1e-9).all() and (np.diff(curve.napl) > 0).all()
        for low, high in zip(curve.napl[:-1], curve.napl[1:], strict=True):
            if 1.001 < high / low <= 2:
                middle = math.sqrt(low * high)
                y = curve.at(middle)
                if curve.at(high) - curve.at(low) > 1e-3 and curve.at(low) + 1e-6 < y < curve.at(high) - 1e-6:
                    assert curve.where(y) == pytest.approx(middle, rel=1e-3)

    def test_where_it_never_gets(self) -> None:
        curve = Curve.through([(4, 90), (2, 80)])
        assert curve.where(80) == pytest.approx(2)
        for y in (79.9, 90.0):
            with pytest.raises(SaysNothing, match="do not get there"):
                curve.where(y)
