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
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.specs import RunSpec
from nladv_core.store import Record

TRAIN, FINE = RECIPES["cifar-train"], RECIPES["cifar-linearize"]


def record(spec: RunSpec, units: Iterable[tuple[int, int]] = (), history: Any = (), **metrics: float) -> Record:
    """A record with these metrics (shares, not percent), and units as (active, channels)."""
    return Record(
        key=spec.key(),
        spec=spec,
        metrics={"test_accuracy": 0.5, "napl": 5.0, "apl": 9.0, "active_fraction": 0.5, "enw": 3.0} | metrics,
        history=list(history),
        units=[{"name": f"relu{i}", "active": a, "channels": c} for i, (a, c) in enumerate(units)],
        wall_s=1.0,
        device="cpu",
        torch="2",
        python="3",
        code={},
        data={},
        parent=None,
    )


def parent(seed: int = 0, **more: Any) -> RunSpec:
    return RunSpec(**({"data": "cifar10", "net": "resnet20", "recipe": TRAIN, "seed": seed} | more))


def child(seed: int = 0, omega: float = 0.001, **more: Any) -> RunSpec:
    """A linearization of the parent with the same network."""
    shape = {name: more.pop(name) for name in ("net", "width", "residual", "shortcut", "data") if name in more}
    start = parent(seed, **shape)
    return replace(start, **({"parent": start, "recipe": FINE, "omega": omega} | more))


def curve(seed: int, *points: tuple[float, float], **more: Any) -> list[Record]:
    """Runs of one seed at strengths 0.001, 0.002, ...: (accuracy, NAPL) each."""
    return [
        record(child(seed, 0.001 * (i + 1), **more), test_accuracy=accuracy / 100, napl=napl)
        for i, (accuracy, napl) in enumerate(points)
    ]


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


class TestInterpolation:
    def test_between_neighbours_and_never_beyond(self) -> None:
        assert effects.interpolate([4, 2], [92, 90], 2.5) == 90.5
        assert effects.interpolate([4, 2], [92, 90], 2) == 90
        assert effects.interpolate([4, 2], [92, 90], 4) == 92
        assert effects.interpolate([4, 2], [92, 90], 1.99) is None
        assert effects.interpolate([4, 2], [92, 90], 4.01) is None
        assert effects.interpolate([3], [92], 3) == 92
        assert effects.interpolate([], [], 1) is None

    def test_neighbours_are_those_in_strength_not_in_napl(self) -> None:
        # The middle strength overshoots: the polygon passes NAPL 3 once on each side of it.
        assert effects.interpolate([4, 2, 3.5], [92, 80, 95], 3) == pytest.approx((86 + 90) / 2)

    def test_a_vertex_counts_once(self) -> None:
        assert effects.interpolate([4, 3, 2], [92, 91, 80], 3) == 91
        # ... also where the polygon turns there, or stays there for a while
        assert effects.interpolate([4, 3, 4], [92, 91, 80], 3) == 91
        assert effects.interpolate([4, 3, 3, 2], [92, 91, 81, 80], 3) == 86

    def test_at(self) -> None:
        records = curve(3, (90, 4), (80, 2)) + curve(1, (88, 5), (86, 3.5), (60, 1))
        for order in every_order(records):
            found = effects.at(order, axis="napl", at=3.0, column="test_accuracy")
            assert found == {3: pytest.approx(85), 1: pytest.approx(86 - 26 * 0.2)}
        assert effects.at(records, axis="napl", at=1.5, column="test_accuracy")[3] is None
        assert effects.at(records, axis="omega", at=0.0015, column="napl") == {3: pytest.approx(3), 1: 4.25}
        assert effects.at(records, axis="omega", at=0.003, column="napl") == {3: None, 1: 1.0}

    def test_a_parent_is_no_point_of_the_curve(self) -> None:
        records = [*curve(0, (90, 4), (80, 2)), record(parent(), test_accuracy=0.99, napl=3.0)]
        assert effects.at(records, axis="napl", at=3.0, column="test_accuracy") == {0: pytest.approx(85)}

    def test_two_networks_are_no_curve(self) -> None:
        mixed = curve(0, (90, 4), (80, 2)) + curve(0, (70, 3), residual=False)
        for statistic, options in (
            ("at", {"axis": "napl", "at": 3.0, "column": "test_accuracy"}),
            ("connected", {}),
            ("centre of the block", {}),
            ("last fall", {}),
            ("straightness", {}),
            ("at the strongest", {}),
            ("kept depth", {}),
        ):
            with pytest.raises(RecordError, match="seed 0 has two runs of one strength; pass only the runs of one"):
                effects.named(statistic, mixed, **options)


class TestRetrained:
    @staticmethod
    def retrained(source: RunSpec, seed: int, masks: str, accuracy: float) -> Record:
        spec = replace(source, parent=source, recipe=TRAIN, omega=0.0, masks=masks, seed=seed)
        return record(spec, test_accuracy=accuracy)

    def test_minus_the_network_that_the_masks_come_from(self) -> None:
        source = child()
        records = [
            record(parent(), test_accuracy=0.93),
            record(source, test_accuracy=0.89),
            self.retrained(source, 0, "exact", 0.9),
            self.retrained(source, 4, "exact", 0.88),
            self.retrained(source, 0, "layer", 0.87),
        ]
        for order in every_order(records):
            assert effects.retrained(order, masks="exact") == {0: pytest.approx(1), 4: pytest.approx(-1)}
            assert effects.retrained(order, masks="layer") == {0: pytest.approx(-2)}
            assert effects.retrained(order, masks="global") == {}

    def test_without_its_source_there_is_nothing_to_compare_with(self) -> None:
        assert effects.retrained([self.retrained(child(), 0, "exact", 0.9)], masks="exact") == {}
        assert effects.retrained([], masks="exact") == {}

    def test_each_is_compared_with_its_own_source_and_several_sources_are_averaged(self) -> None:
        weak, strong = child(omega=0.001), child(omega=0.004)
        records = [
            record(weak, test_accuracy=0.9),
            record(strong, test_accuracy=0.8),
            self.retrained(weak, 1, "exact", 0.93),
            self.retrained(strong, 1, "exact", 0.81),
        ]
        for order in every_order(records):
            assert effects.retrained(order, masks="exact") == {1: pytest.approx((3 + 1) / 2)}


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

    def test_latest_minus_earliest_and_what_arises_early(self) -> None:
        records = [
            self.started(seed, start, accuracy)
            for seed, accuracies in ((0, (60, 66, 68, 69)), (2, (60, 61, 69, 64)))
            for start, accuracy in zip((0, 15, 50, 200), accuracies, strict=True)
        ]
        for order in (records, records[::-1], records[3:] + records[:3]):
            assert effects.late_minus_early(order) == {0: pytest.approx(9), 2: pytest.approx(4)}
            # 6 of 9 points by epoch 15 and 3 after it; 1 of 4 and 3
            assert effects.gained_early(order) == {0: pytest.approx(6 - 3), 2: pytest.approx(1 - 3)}
            assert effects.gained_early(order, by=50) == {0: pytest.approx(8 - 1), 2: pytest.approx(9 - -5)}
            assert effects.gained_early(order, by=5) == effects.gained_early(order, by=200) == {}
            assert effects.gained_early(order, by=0) == {}

    def test_other_metrics_than_accuracy(self) -> None:
        """A start within one run, as chapter 11 has it, counts like one after a parent."""
        sentences = {"data": "multi30k", "net": "transformer6", "recipe": RECIPES["multi30k-train"]}
        specs = [parent(0, **sentences, omega=0.1, goal=0.9, start=start) for start in (0, 20, 100)]
        records = [
            record(spec, test_perplexity=perplexity, test_bleu=bleu, active_fraction=0.1)
            for spec, perplexity, bleu in zip(specs, (9.0, 6.5, 6.0), (30.0, 35.0, 36.0), strict=True)
        ]
        records.append(record(parent(0, **sentences), test_perplexity=5.0, test_bleu=40.0, active_fraction=1.0))
        assert effects.late_minus_early(records, column="test_perplexity") == {0: pytest.approx(-3)}
        assert effects.late_minus_early(records, column="test_bleu") == {0: pytest.approx(6)}
        assert effects.gained_early(records, by=20, column="test_perplexity") == {0: pytest.approx(-2.5 + 0.5)}

    def test_one_start_is_no_comparison(self) -> None:
        assert effects.late_minus_early([self.started(0, 5, 60)]) == {}
        assert effects.late_minus_early([]) == effects.gained_early([]) == {}

    def test_a_seed_without_all_starts_does_not_count(self) -> None:
        """Its latest start would be another one than the others'."""
        records = [self.started(0, start, 60 + start) for start in (0, 5, 20)]
        records += [self.started(1, start, 60) for start in (0, 5)]
        assert effects.late_minus_early(records) == {0: pytest.approx(20)}
        assert effects.gained_early(records, by=5) == {0: pytest.approx(5 - 15)}

    @pytest.mark.parametrize(("missed", "late"), [(0, None), (15, 8), (200, None)])
    def test_a_missed_goal_is_no_equal_share(self, missed: int, late: float | None) -> None:
        left = {missed: 0.11}
        records = [self.started(0, start, 60 + start / 25, left.get(start, 0.1)) for start in (0, 15, 200)]
        assert effects.late_minus_early(records) == {0: late if late is None else pytest.approx(late)}
        assert effects.gained_early(records) == {0: None}

    def test_the_last_unit_may_be_a_rounding_error_away(self) -> None:
        # 0.9 of ten units: 1 - 0.1 is 0.9 exactly or not, depending on how the shares were summed.
        assert self.started(0, 0, 60, left=math.nextafter(0.1, 1)).reached
        assert effects.reached(self.started(0, 0, 60, left=0.05))
        assert not effects.reached(self.started(0, 0, 60, left=0.101))
        assert not effects.reached(record(child(), active_fraction=0.0))  # it had no goal

    def test_a_budget_is_reached_where_as_much_or_less_is_left(self) -> None:
        short = child(omega=1.0, goal=2.7, measure="napl")
        assert effects.reached(record(short, napl=2.69, active_fraction=0.99))
        assert effects.reached(record(short, napl=math.nextafter(2.7, 3)))
        assert not effects.reached(record(short, napl=2.71, active_fraction=0.01))
        few = child(omega=1.0, goal=1000.0, measure="relus")
        assert effects.reached(record(few, relus=1000.0))
        assert not effects.reached(record(few, relus=1001.0, napl=0.0, active_fraction=0.0))

    def test_runs_without_a_goal_do_not_count(self) -> None:
        records = [self.started(0, 0, 60), self.started(0, 200, 65), record(child(), test_accuracy=0.99)]
        assert effects.late_minus_early(records) == {0: pytest.approx(5)}

    def test_two_schedules_are_refused(self) -> None:
        other = self.started(0, 15, 70, recipe=TRAIN.onwards(15, 60))
        with pytest.raises(RecordError, match="agree in seed, strength and what is compared; pass only the runs of"):
            effects.late_minus_early([self.started(0, 0, 60), self.started(0, 15, 65), other])

    def test_of_several_strengths_the_strongest_that_has_all_starts(self) -> None:
        records = [self.started(0, start, 60 + start, omega=0.01) for start in (0, 5)]
        records += [self.started(0, start, 60 + 2 * start, omega=0.02) for start in (0, 5)]
        records += [self.started(0, 0, 10, omega=0.03)]
        assert effects.late_minus_early(records) == {0: pytest.approx(10)}


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

    @given(st.lists(st.integers(0, 8), min_size=1, max_size=10))
    def test_connected_and_centre_by_counting(self, active: list[int]) -> None:
        run = record(child(), units=[(count, 8) for count in active])
        strong = [2 * count > max(active) for count in active]
        first, length = brute_longest_run(strong)
        if max(active) == 0:
            assert effects.connected([run]) == effects.block_centre([run]) == {0: None}
            return
        assert effects.connected([run]) == {0: pytest.approx(length / sum(strong))}
        places = [i / (len(active) - 1) for i in range(first, first + length)] if len(active) > 1 else [0.0]
        assert effects.block_centre([run]) == {0: pytest.approx(statistics.mean(places))}

    def test_blocks_and_stripes(self) -> None:
        block = record(child(0), units=[(0, 8), (1, 8), (8, 8), (6, 8), (7, 8), (1, 8)])
        stripes = record(child(1), units=[(8, 8), (0, 8)] * 3)
        for order in every_order([block, stripes]):
            assert effects.connected(order) == {0: 1.0, 1: pytest.approx(1 / 3)}
            assert effects.block_centre(order) == {0: pytest.approx(3 / 5), 1: 0.0}

    def test_the_strongest_penalty_counts(self) -> None:
        weak = record(child(omega=0.001), units=[(8, 8), (0, 8), (8, 8)])
        strong = record(child(omega=0.002), units=[(0, 8), (0, 8), (8, 8)])
        for order in every_order([weak, strong, record(parent(), units=[(8, 8)] * 3)]):
            assert effects.connected(order) == {0: 1.0} and effects.block_centre(order) == {0: 1.0}


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


class TestWidth:
    @staticmethod
    def widths(
        seed: int, *inverse: float, omega: float = 0.001, widths: tuple[float, ...] = (0.5, 1, 2)
    ) -> list[Record]:
        return [
            record(
                child(seed, omega, width=k, shortcut="B"), active_fraction=1 / y, test_accuracy=0.5 + k / 10, napl=6 - k
            )
            for k, y in zip(widths, inverse, strict=True)
        ]

    def test_a_straight_line_and_a_bent_one(self) -> None:
        records = self.widths(0, 2, 3, 5) + self.widths(1, 2, 5, 5)
        for order in (records, records[::-1]):
            assert effects.width_fit(order) == {
                0: pytest.approx(1),
                1: pytest.approx(statistics.correlation([0.5, 1, 2], [2, 5, 5]) ** 2),
            }
            assert effects.width_slope(order)[0] == pytest.approx(2)
            assert effects.width_slope(order)[1] == pytest.approx(
                statistics.linear_regression([0.5, 1, 2], [2, 5, 5]).slope
            )

    def test_widest_minus_narrowest(self) -> None:
        records = self.widths(4, 2, 3, 5)
        for order in every_order(records):
            assert effects.widest_minus_narrowest(order, column="test_accuracy") == {4: pytest.approx(15)}
            assert effects.widest_minus_narrowest(order, column="napl") == {4: pytest.approx(-1.5)}
            assert effects.widest_minus_narrowest(order, column="active_fraction") == {4: pytest.approx(20 - 50)}

    def test_two_widths_fit_any_line_and_one_none(self) -> None:
        two, one = self.widths(0, 2, 3, widths=(1, 2)), self.widths(0, 2, widths=(1,))
        assert effects.width_fit(two) == effects.width_fit(one) == effects.width_slope(one) == {}
        assert effects.width_slope(two) == {0: pytest.approx(1)}
        assert effects.widest_minus_narrowest(one, column="napl") == {}
        assert effects.width_fit([]) == effects.width_slope([]) == {}

    def test_no_active_unit_has_no_inverse(self) -> None:
        records = [*self.widths(0, 2, 3, widths=(0.5, 1)), record(child(width=2.0, shortcut="B"), active_fraction=0.0)]
        assert effects.width_fit(records) == effects.width_slope(records) == {0: None}

    def test_a_seed_without_all_widths_does_not_count(self) -> None:
        records = self.widths(0, 2, 3, 5) + self.widths(1, 2, 5, widths=(0.5, 1))
        for statistic in (effects.width_fit, effects.width_slope):
            assert set(statistic(records)) == {0}
        assert set(effects.widest_minus_narrowest(records, column="napl")) == {0}

    def test_one_strength_at_a_time(self) -> None:
        records = (
            self.widths(0, 2, 3, 5) + self.widths(0, 4, 6, 10, omega=0.002) + self.widths(0, 9, omega=0.1, widths=(1,))
        )
        assert effects.width_slope(records) == {0: pytest.approx(4)}


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


class TestStrength:
    def test_last_fall(self) -> None:
        records = curve(0, (90, 10), (85, 4), (80, 3)) + curve(1, (90, 5), (85, 5), (80, 6))
        records += curve(2, (90, 10), (80, 3)) + curve(3, (90, 5), (85, 2), (80, 3))
        for order in (records, records[::-1]):
            # 1 of 7 units; it rises; two strengths say nothing; beyond the fall (it rises again)
            assert effects.last_fall(order) == {0: pytest.approx(1 / 7), 1: None, 3: pytest.approx(-1 / 2)}
        assert effects.last_fall(records, column="test_accuracy")[0] == pytest.approx(0.5)

    def test_straightness(self) -> None:
        records = curve(0, (90, 10), (85, 4), (80, 3)) + curve(1, (90, 10), (85, 4), (60, 4))
        found = effects.straightness(records)
        assert found == {0: pytest.approx(1), 1: pytest.approx(statistics.correlation([1, 2, 3], [90, 85, 60]) ** 2)}
        over_napl = effects.straightness(records, axis="napl")
        assert over_napl[0] == pytest.approx(statistics.correlation([10, 4, 3], [90, 85, 80]) ** 2)
        assert effects.straightness(curve(0, (90, 10), (80, 4))) == {}

    def test_straightness_of_equal_values(self) -> None:
        assert effects.straightness(curve(0, (10, 2), (10, 1.5), (10, 1))) == {0: 1.0}
        assert effects.straightness(curve(0, (90, 2), (50, 2), (10, 2)), axis="napl") == {0: None}

    def test_at_the_strongest(self) -> None:
        records = curve(0, (90, 10), (85, 4)) + curve(1, (90, 10))
        assert effects.at_the_strongest(records) == {0: 4, 1: 10}
        assert effects.at_the_strongest(records[::-1], column="test_accuracy") == {0: 85, 1: 90}
        assert effects.at_the_strongest([record(parent())]) == {}


class TestMeasures:
    def test_kept_depth(self) -> None:
        start = record(parent(), test_accuracy=0.92, napl=11.0)
        records = [start, *curve(0, (91, 6), (89, 4))]
        for order in every_order(records):
            # 90 % lies halfway between the two strengths
            assert effects.kept_depth(order) == {0: pytest.approx(5 / 11)}
            assert effects.kept_depth(order, loss=0.5) == {0: pytest.approx(8.5 / 11)}
            assert effects.kept_depth(order, loss=3.5) == {0: None}
            assert effects.kept_depth(order, loss=1, column="test_accuracy") == {0: pytest.approx(91 / 92)}

    def test_each_seed_has_its_parent(self) -> None:
        starts = [record(parent(seed), test_accuracy=0.9 + seed / 100, napl=10.0 * (seed + 1)) for seed in (0, 1)]
        records = starts + curve(0, (86, 2)) + curve(1, (87, 4))
        # 88 of 90 -> 86: half of the way from 10 to 2; 89 of 91 -> 87: half of the way from 20 to 4
        assert effects.kept_depth(records) == {0: pytest.approx(0.6), 1: pytest.approx(0.6)}
        assert effects.kept_depth(records[1:]) == {1: pytest.approx(0.6)}

    def test_a_published_parent_serves_all_seeds(self) -> None:
        start = RunSpec(data="cifar10", net="resnet20v1", recipe=UNTRAINED, published="akamaster/resnet20")
        fine = [replace(start, published=None, parent=start, recipe=FINE, omega=0.01, seed=seed) for seed in (0, 1)]
        records = [record(start, test_accuracy=0.92, napl=15.0)]
        records += [record(spec, test_accuracy=0.88, napl=5.0) for spec in fine]
        assert effects.kept_depth(records) == {0: pytest.approx(10 / 15), 1: pytest.approx(10 / 15)}

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


def test_equal_values_and_one_seed_everywhere() -> None:
    """Any statistic takes a single seed whose runs all say the same, and no runs at all."""
    same = [record(child(omega=0.001 * i), units=[(4, 8), (4, 8)]) for i in (1, 2, 3)]
    options: dict[str, dict[str, Any]] = {
        "at": {"axis": "napl", "at": 5.0, "column": "test_accuracy"},
        "retrained minus linearized": {"masks": "exact"},
        "widest minus narrowest": {"column": "napl"},
        "rank correlation": {"column": "apl"},
    }
    found = {}
    for name in effects.STATISTICS:
        assert effects.named(name, [], **options.get(name, {})) == {}
        found[name] = effects.named(name, same, **options.get(name, {}))
    assert {name: by_seed[0] for name, by_seed in found.items() if by_seed} == {
        "at": 50,
        "connected": 1,
        "centre of the block": 0.5,
        "last fall": None,
        "straightness": 1,
        "at the strongest": 5,
        "rank correlation": None,
    }


class TestNames:
    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("conected", {}, "statistic is 'conected', expected one of at, retrained minus linearized"),
            ("conected", {}, "did you mean 'connected'?"),
            ("at", {}, "found options none, but it takes axis, at, column and needs at, axis, column"),
            ("at", {"axis": "napl", "at": 3.0}, "found options at, axis, but it takes"),
            ("connected", {"column": "napl"}, "found options column, but it takes none"),
            ("depth of it", {}, "expected one of"),
            ("at", {"axis": "enw", "at": 3.0, "column": "napl"}, "axis is 'enw', expected one of napl, apl"),
            ("at", {"axis": "napl", "at": "low", "column": "napl"}, "at is 'low', expected a number"),
            ("at", {"axis": "napl", "at": True, "column": "napl"}, "at is True, expected a number"),
            ("at", {"axis": "napl", "at": 3.0, "column": "train_accuracy"}, "column is 'train_accuracy'"),
            ("rank correlation", {"column": "apl", "other": "omega"}, "other is 'omega', expected one of"),
            ("retrained minus linearized", {"masks": "none"}, "masks is 'none', expected one of exact, layer, global"),
            ("gained early minus gained late", {"by": "15"}, "by is '15', expected a number"),
            ("range over depths", {"colum": "napl"}, "found options colum, but it takes column"),
        ],
    )
    def test_what_is_refused(self, name: str, options: dict[str, Any], told: str) -> None:
        for ask in (effects.check, lambda name, given: effects.named(name, [], **given)):
            with pytest.raises(SpecError) as refusal:
                ask(name, options)
            assert told in str(refusal.value) and "\n" not in str(refusal.value)

    def test_a_name_stands_for_its_function(self) -> None:
        records = curve(0, (90, 10), (85, 4), (80, 3))
        assert effects.check("last fall", {"column": "apl"}) == "last fall"
        assert effects.named("last fall", records, column="test_accuracy") == {0: pytest.approx(0.5)}
        assert len(set(effects.STATISTICS.values())) == len(effects.STATISTICS)


class TestFamily:
    def test_seed_and_strength_are_free_in_every_generation(self) -> None:
        for one, other in (
            (child(0, 0.001), child(5, 0.03)),
            (parent(1), parent(2)),
            *(
                (replace(child(0), parent=child(0), omega=0.0, masks="exact", seed=3), again)
                for again in [replace(child(4, 0.1), parent=child(4, 0.1), omega=0.0, masks="exact")]
            ),
        ):
            assert one != other and effects.family(one) == effects.family(other)

    @pytest.mark.parametrize(
        "change",
        [
            {"net": "resnet32"},
            {"data": "cifar100"},
            {"width": 2.0},
            {"residual": False},
            {"shortcut": "B"},
            {"recipe": FINE.shortened(6)},
            {"granularity": "layer"},
            {"p": 1.0},
            {"goal": 0.9},
            {"start": 3},
            {"margin": 0.02},
            {"omega": 0.0},
        ],
    )
    def test_nothing_else_is(self, change: dict[str, Any]) -> None:
        assert effects.family(child(**change)) != effects.family(child())

    def test_nor_anything_of_the_parent(self) -> None:
        for before in (parent(recipe=Recipe(epochs=200, lr=0.2, batch=256)), parent(train=10_000)):
            assert effects.family(replace(child(), parent=before)) != effects.family(child())


def test_seeds_without_a_number_have_no_answer() -> None:
    assert effects.answered({0: 1.5, 1: None, 2: 0.0}) == {0: 1.5, 2: 0.0}
