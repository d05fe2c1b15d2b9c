"""Each statistic against numbers worked out by hand, or against an obvious oracle that shares no code with it."""

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nladv_core import effects
from nladv_core.errors import RecordError, SpecError
from nladv_core.store import Record
from synthetic import FINE, TRAIN, child, parent, record


def every_order(records: list[Record]) -> Iterable[list[Record]]:
    """What is said of records must not hang on the order in which they lie in a folder."""
    return (list(order) for order in itertools.permutations(records)) if len(records) < 6 else [records, records[::-1]]


class TestValue:
    def test_percent_for_shares_only(self) -> None:
        run = record(child(omega=0.004), test_accuracy=0.25, active_fraction=0.125, napl=2.5, apl=7.0, enw=4.0)
        columns = ("test_accuracy", "active_fraction", "napl", "apl", "enw", "omega")
        assert [effects.value(run, column) for column in columns] == [25, 12.5, 2.5, 7, 4, 0.004]

    def test_an_unknown_column_is_refused(self) -> None:
        with pytest.raises(SpecError, match="column is 'depth', expected one of test_accuracy, active_fraction"):
            effects.value(record(child()), "depth")

    def test_a_record_without_the_metric_is_told(self) -> None:
        bare = replace(record(child()), metrics={})
        with pytest.raises(RecordError, match=f"run {bare.key} has no napl among its metrics; recompute it"):
            effects.value(bare, "napl")


class TestParts:
    def test_of_a_network_the_groups_of_one_part_alone(self) -> None:
        history = [{"active": [4.0, 3.0, 2.0]}, {"active": [4.0, 1.0, 0.0]}]
        run = record(child(), units=[(4, 4), (1, 4), (0, 2)], history=history)
        names = ("encoder.layers.0.relu", "decoder.layers.0.relu", "encoders.0.relu")
        run = replace(run, units=[unit | {"name": name} for unit, name in zip(run.units, names, strict=True)])
        (found,) = effects.within([run, record(parent())], "encoder")
        assert effects.history_shares(found).tolist() == [[1.0], [1.0]]
        (found,) = effects.within([run], "decoder")
        assert effects.history_shares(found).tolist() == [[0.75], [0.25]] and run.history == history
        with pytest.raises(RecordError, match="no unit group in head"):
            effects.within([run], "head")


class TestStartEpoch:
    @staticmethod
    def started(seed: int, start: int, accuracy: float, left: float = 0.1, omega: float = 0.01, **more: Any) -> Record:
        """A run that was to make 90 % inactive."""
        given = {"omega": omega, "goal": 0.9, "recipe": FINE} | more
        if start:
            before = parent(seed, recipe=TRAIN.until(start))
            spec = replace(before, parent=before, **given)
        else:
            spec = replace(parent(seed), **given)
        return record(spec, test_accuracy=accuracy / 100, active_fraction=left)

    def test_start_epoch(self) -> None:
        assert effects.start_epoch(self.started(0, 0, 1).spec) == 0
        assert effects.start_epoch(self.started(0, 15, 1).spec) == 15
        assert effects.start_epoch(child(start=3)) == 203

    def test_the_last_unit_may_be_a_rounding_error_away(self) -> None:
        # 0.9 of ten units: 1 - 0.1 is 0.9 exactly or not, depending on how the shares were summed.
        assert self.started(0, 0, 60, left=math.nextafter(0.1, 1)).reached
        assert self.started(0, 0, 60, left=0.05).reached
        assert not self.started(0, 0, 60, left=0.101).reached
        assert not record(child(), active_fraction=0.0).reached  # it had no goal

    def test_a_budget_is_reached_where_as_much_or_less_is_left(self) -> None:
        short = child(omega=1.0, goal=2.7, measure="napl")
        assert record(short, napl=2.69, active_fraction=0.99).reached
        assert record(short, napl=math.nextafter(2.7, 3)).reached
        assert not record(short, napl=2.71, active_fraction=0.01).reached
        few = child(omega=1.0, goal=1000.0, measure="relus")
        assert record(few, relus=1000.0).reached
        assert not record(few, relus=1001.0, napl=0.0, active_fraction=0.0).reached


def brute_longest_run(strong: list[bool]) -> tuple[int, int]:
    """The longest of all slices that are all True, the first of several."""
    found = [
        (j - i, -i)
        for i in range(len(strong))
        for j in range(i + 1, len(strong) + 1)
        if all(strong[k] for k in range(i, j))
    ]
    length, start = max(found, default=(0, 0))
    return (-start, length)


class TestStructure:
    def test_shares(self) -> None:
        run = record(child(), units=[(4, 16), (0, 16), (32, 32)])
        assert effects.layer_shares(run).tolist() == [0.25, 0, 1]
        with pytest.raises(RecordError, match="names no unit group; recompute it"):
            effects.layer_shares(record(child()))

    def test_shares_by_epoch(self) -> None:
        history = [{"active": []}, {"active": [16.0, 8.0]}, {"active": [4.0, 0.0]}]  # slopes on after the first epoch
        run = record(child(), units=[(4, 16), (0, 8)], history=history)
        assert effects.history_shares(run).tolist() == [[1, 1], [0.25, 0]]
        for bare in (record(child(), units=[(4, 16)]), record(child(), history=[{"active": []}])):
            with pytest.raises(RecordError, match="has no epochs with active units"):
                effects.history_shares(bare)

    def test_strong_layers_are_above_half_the_largest(self) -> None:
        assert effects.strong_layers(np.array([0.2, 0.4, 0.21, 0.0])).tolist() == [False, True, True, False]
        assert not effects.strong_layers(np.zeros(3)).any()

    @given(st.lists(st.booleans(), max_size=12))
    def test_longest_run_is_that_of_the_brute_search(self, strong: list[bool]) -> None:
        assert effects.longest_run(np.array(strong, dtype=bool)) == brute_longest_run(strong)


class TestLine:
    @given(
        st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8).filter(
            lambda points: len({x for x, _ in points}) > 1 and len({y for _, y in points}) > 1
        )
    )
    def test_against_the_standard_library(self, points: list[tuple[int, int]]) -> None:
        x, y = [float(a) for a, _ in points], [float(b) for _, b in points]
        slope, intercept, fit = effects.line(x, y)
        expected = statistics.linear_regression(x, y)
        assert (slope, intercept) == pytest.approx((expected.slope, expected.intercept), abs=1e-9)
        assert fit == pytest.approx(statistics.correlation(x, y) ** 2, abs=1e-9)

    def test_equal_values_are_a_line(self) -> None:
        assert effects.line([1, 2, 3], [0.1, 0.1, 0.1]) == (0.0, 0.1, 1.0)

    @pytest.mark.parametrize("x", [[], [1], [2, 2, 2]])
    def test_one_place_is_no_line(self, x: list[float]) -> None:
        with pytest.raises(RecordError, match="expected at least two to draw a line"):
            effects.line(x, x)


class TestDepth:
    @staticmethod
    def depths(seed: int, *napl: float, omega: float = 0.01, depths: tuple[int, ...] = (20, 32, 56)) -> list[Record]:
        return [record(child(seed, omega, net=f"resnet{d}"), napl=n) for d, n in zip(depths, napl, strict=True)]

    def test_depth_in_a_name(self) -> None:
        assert [effects.depth_of(child(net=name)) for name in ("resnet56", "resnet20v1")] == [56, 20]

        class Bare:
            net = "transformer"

        with pytest.raises(SpecError, match="network 'transformer' has no depth in its name"):
            effects.depth_of(Bare)  # type: ignore[arg-type]

    def test_range_and_slope(self) -> None:
        records = self.depths(0, 3.0, 2.4, 2.8) + self.depths(1, 3.0, 3.0, 3.0)
        for order in (records, records[::-1]):
            assert effects.depth_range(order) == {0: pytest.approx(0.6), 1: 0.0}
            slope = statistics.linear_regression([20, 32, 56], [3.0, 2.4, 2.8]).slope
            assert effects.depth_slope(order) == {0: pytest.approx(slope), 1: 0.0}
        assert effects.depth_range(records, column="test_accuracy") == {0: 0.0, 1: 0.0}

    def test_at_the_strongest_penalty_that_all_depths_have(self) -> None:
        weak, strong = self.depths(0, 9.0, 7.0, 5.0, omega=0.004), self.depths(0, 3.0, 2.9, 2.8)
        stronger = self.depths(0, 1.0, omega=0.1, depths=(56,))  # another chapter's
        assert effects.depth_range(weak + strong + stronger) == {0: pytest.approx(0.2)}

    def test_half_an_experiment_is_none(self) -> None:
        records = self.depths(0, 3.0, 2.4, 2.8) + self.depths(1, 3.0, 2.9, depths=(20, 32))
        assert set(effects.depth_range(records)) == set(effects.depth_slope(records)) == {0}
        assert effects.depth_range(self.depths(0, 3.0, depths=(20,))) == {}
        assert effects.depth_slope([]) == {}


class TestMeasures:
    def test_rank_correlation(self) -> None:
        def runs(seed: int, *pairs: tuple[float, float]) -> list[Record]:
            return [record(child(seed, 0.001 * (i + 1)), napl=a, apl=b) for i, (a, b) in enumerate(pairs)]

        records = runs(0, (5, 50), (4, 49), (1, 2)) + runs(1, (5, 2), (4, 3), (1, 4))
        records += runs(2, (4, 1), (3, 4), (2, 3), (1, 2)) + runs(3, (5, 2), (4, 3)) + runs(4, (5, 2), (5, 3), (5, 4))
        records += runs(5, (5, 2), (4, 2), (3, 1))
        found = effects.rank_correlation(records, column="apl")
        # without ties 1 - 6 Σd² / (n³ - n): d = 3, 1, 1, 1 for seed 2, whose ranks are 4 3 2 1 and 1 4 3 2
        assert found == {
            0: pytest.approx(1),
            1: pytest.approx(-1),
            2: pytest.approx(1 - 6 * 12 / 60),
            4: None,
            5: pytest.approx(statistics.correlation([3, 2, 1], [2.5, 2.5, 1])),
        }
        assert effects.rank_correlation(records, column="napl", other="apl")[2] == pytest.approx(-0.2)
