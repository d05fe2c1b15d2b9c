"""Each statistic of the ledger against numbers worked out by hand."""

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nladv_core import intervals, outcomes
from nladv_core.errors import RecordError, SpecError
from nladv_core.recipes import RECIPES
from nladv_core.store import Record
from synthetic import FINE, TRAIN, child, parent, record

approx = pytest.approx


def controlled(found: Iterable[Record], **metrics: float) -> list[Record]:
    """The runs, and the control of each, with a NAPL of 32 and all its units, unless said otherwise."""
    found = list(found)
    usual = {"test_accuracy": 0.9, "napl": 32.0, "active_fraction": 1.0} | metrics
    return [*found, *(record(spec, **usual) for spec in dict.fromkeys(one.spec.control for one in found))]


def curve(seed: int, *points: tuple[float, float], **more: Any) -> list[Record]:
    """Runs of one seed at strengths 0.001, 0.002, ...: (accuracy, NAPL) each; the share is half of the NAPL's."""
    return [
        record(child(seed, 0.001 * (i + 1), **more), test_accuracy=y / 100, napl=x, active_fraction=x / 64)
        for i, (y, x) in enumerate(points)
    ]


class TestAtANapl:
    def test_between_its_neighbours(self) -> None:
        runs = controlled([*curve(3, (90, 4), (80, 2)), *curve(1, (88, 9), (86, 6))])
        found = outcomes.at_napl(runs, at=2 * math.sqrt(2))
        assert found.numbers[1] is None and "do not reach NAPL 2.83" in found.why[1]
        assert 85 <= (found.numbers[3] or 0) <= 87  # a straight line says 85, and accuracy is concave
        assert found.estimate is not None and found.estimate.n == 1

    def test_a_run_whose_goal_was_there_counts_as_it_is(self) -> None:
        def ended(napl: float, measure: str = "napl") -> list[Record]:
            goal = replace(child(0, 0.005), goal=3.0 if measure == "napl" else 0.9, measure=measure)
            return controlled([*curve(0, (90, 4), (80, 2)), record(goal, test_accuracy=0.77, napl=napl)])

        for napl in (3.0, 2.941):
            assert outcomes.at_napl(ended(napl), at=3.0).numbers == {0: approx(77)}
        # Above the goal, more than 2 % below it, or with another kind of goal it is a point of the curve as any other.
        for runs in (ended(3.01), ended(2.93), ended(3.0001, "units")):
            assert outcomes.at_napl(runs, at=3.0).numbers[0] != approx(77, abs=0.001)

    def test_a_collapsed_grid_reaches_no_place(self) -> None:
        found = outcomes.at_napl(controlled(curve(0, (10, 0.01), (10, 0.001))), at=3.0)
        assert found.numbers == {0: None} and "more than a factor of 2 apart" in found.why[0]

    def test_without_its_control_nothing_is_said(self) -> None:
        assert outcomes.at_napl(curve(0, (90, 4), (80, 2)), at=3.0).why == {0: "its control was not run"}

    def test_two_networks_are_no_curve(self) -> None:
        mixed = controlled([*curve(0, (90, 4), (80, 2)), *curve(0, (70, 3), residual=False)])
        for ask in (lambda r: outcomes.at_napl(r, at=3.0), outcomes.knee, outcomes.mean_over_strengths):
            with pytest.raises(RecordError, match="pass only the runs of one network"):
                ask(mixed)


class TestKnee:
    HALVINGS = ((90, 16), (89.4, 8), (88, 4), (80, 2), (60, 1))

    def test_by_hand(self) -> None:
        """Above: (90 - 89.4) / 2. Below: from 88 at 32 / 8 to 60 two halvings on."""
        found = outcomes.knee(controlled(curve(0, *self.HALVINGS)))
        assert found.numbers == {0: approx(min(1 - 0.3, 14 - 1))}

    def test_the_smaller_margin_counts(self) -> None:
        flat = outcomes.knee(controlled(curve(0, (90, 16), (90, 8), (90, 4), (89.5, 2), (89, 1))))
        assert flat.numbers == {0: approx(0.5 - 1)}  # half a point a halving is no collapse
        steady = outcomes.knee(controlled(curve(0, (88, 16), (86, 8), (84, 4), (82, 2), (80, 1))))
        assert steady.numbers == {0: approx(min(1 - 2, 2 - 6))}  # a slope that never changes is no knee

    def test_it_must_go_a_halving_below_an_eighth(self) -> None:
        found = outcomes.knee(controlled(curve(0, *self.HALVINGS[:3], (87, 2.1))))
        assert "less than a halving below an eighth of 32" in found.why[0]
        assert outcomes.knee(controlled(curve(0, *self.HALVINGS[:4]))).numbers[0] is not None

    def test_nothing_linear_and_nothing_left_have_no_knee(self) -> None:
        for points in (((90, 32), (90, 31)), ((10, 0.01), (10, 0.001))):
            assert outcomes.knee(controlled(curve(0, *points))).numbers == {0: None}


def test_share_above_napl_takes_off_what_random_units_have() -> None:
    runs = controlled(curve(0, (90, 4), (80, 2)))  # half as large a share as random units have
    assert outcomes.share_above_napl(runs, at=2.0).numbers == {0: approx(100 * (2 / 64 - 2 / 32))}
    drawn = [replace(one, metrics=one.metrics | {"active_fraction": one.metrics["napl"] / 32}) for one in runs]
    assert outcomes.share_above_napl(drawn, at=3.1).numbers == {0: approx(0, abs=1e-12)}


class TestKeptDepth:
    def test_against_the_control_and_not_the_parent(self) -> None:
        """Training alone lost three points: against the parent, two points would be lost at once."""
        runs = controlled(curve(0, (89.5, 16), (88, 8), (80, 4)))
        runs.append(record(parent(0), test_accuracy=0.93, napl=32.0))
        assert outcomes.kept_depth(runs).numbers == {0: approx(8 / 32)}
        assert outcomes.kept_depth(runs, loss=0.5).numbers == {0: approx(16 / 32)}
        assert "at 11 points of loss" in outcomes.kept_depth(runs, loss=11.0).why[0]

    def test_with_max_pooling_counted(self) -> None:
        runs = [
            replace(one, metrics=one.metrics | {"napl_max_pool": one.metrics["napl"] + 1})
            for one in controlled(curve(0, (89.5, 16), (88, 8), (80, 4)))
        ]
        assert outcomes.kept_depth(runs, column="napl_max_pool").numbers == {0: approx(9 / 33)}


class TestWidths:
    @staticmethod
    def widths(seed: int, *enw: float, omega: float = 0.001, **more: float) -> list[Record]:
        runs = []
        for k, left in zip((0.5, 1.0, 2.0), enw, strict=False):
            spec = child(seed, omega, width=k, shortcut="B")
            usual = {"enw": left, "active_fraction": 0.2, "test_accuracy": 0.8 + k / 100, "napl": 6 - k + seed}
            runs.append(record(spec, **(usual | more)))
        return controlled(runs)

    def test_slope_of_the_logarithms(self) -> None:
        for exponent in (0.0, 0.5, 1.0):
            runs = self.widths(0, *(3 * k**exponent for k in (0.5, 1, 2)))
            assert outcomes.enw_slope(runs).numbers == {0: approx(exponent, abs=1e-12)}
        bent = outcomes.enw_slope(self.widths(0, 2, 3, 3.5)).numbers
        logs = [math.log(x) for x in (2, 3, 3.5)]
        assert bent == {0: approx(statistics.linear_regression([math.log(k) for k in (0.5, 1, 2)], logs).slope)}

    def test_strengths_at_which_a_network_says_nothing_are_left_out(self) -> None:
        good, dead = self.widths(0, 3, 3, 3), self.widths(0, 1, 2, 4, omega=0.01, test_accuracy=0.1)
        idle = self.widths(0, 16, 32, 64, omega=0.0001, active_fraction=0.95)
        assert outcomes.enw_slope([*good, *dead, *idle]).numbers == {0: approx(0)}
        more = self.widths(0, 1.5, 3, 6, omega=0.002)
        assert outcomes.enw_slope([*good, *more]).numbers == {0: approx(0.5)}
        for runs, told in ((dead, "collapsed"), (idle, "kept more than 90% of its units")):
            found = outcomes.enw_slope(runs)
            assert found.numbers == {0: None} and told in found.why[0]
        assert "2 widths of at least 3" in outcomes.enw_slope(self.widths(0, 3, 3)).why[0]

    def test_the_ends_share_nothing(self) -> None:
        runs = [one for seed in range(3) for one in self.widths(seed, 3, 3, 3)]
        found = outcomes.widest_minus_narrowest(runs, column="napl")
        assert found.numbers == dict.fromkeys(range(3), approx(-1.5))
        wide, narrow = ([6 - k + seed for seed in range(3)] for k in (2, 0.5))
        expected = intervals.apart(intervals.mean(wide), intervals.mean(narrow))
        assert found.estimate == expected and expected.error > 0  # paired, it would be certain
        assert outcomes.widest_minus_narrowest(runs, column="test_accuracy").numbers[0] == approx(1.5)


class TestDepths:
    @staticmethod
    def depths(*points: tuple[int, float, float], lost: float = 2.0) -> list[Record]:
        """(depth, initial NAPL, NAPL at two points of loss)."""
        runs = []
        for depth, before, left in points:
            own = [
                record(child(0, w, net=f"resnet{depth}"), test_accuracy=0.9 - loss / 100, napl=left * factor)
                for w, loss, factor in ((0.001, lost / 2, 1.5), (0.002, lost, 1.0), (0.004, 3 * lost, 0.5))
            ]
            runs += controlled(own, napl=before)
        return runs

    def test_slope_over_the_initial_depth(self) -> None:
        assert outcomes.depth_slope(self.depths((20, 11, 3), (32, 17, 3), (56, 29, 3))).numbers == {0: approx(0)}
        share = self.depths((20, 11, 2.2), (32, 17, 3.4), (56, 29, 5.8))
        assert outcomes.depth_slope(share).numbers == {0: approx(1)}

    def test_a_depth_that_never_loses_as_much_or_collapsed_says_nothing(self) -> None:
        idle = self.depths((20, 11, 3), (32, 17, 3), (56, 29, 3), lost=0.5)
        assert "depth 20: at 2 points of loss, its networks do not get there" in outcomes.depth_slope(idle).why[0]
        far = self.depths((20, 11, 0.01), (32, 17, 0.01), (56, 29, 0.01), lost=80.0)
        assert "more than a factor of 4 apart" in outcomes.depth_slope(far).why[0]
        assert "2 depths of at least 3" in outcomes.depth_slope(self.depths((20, 11, 3), (32, 17, 3))).why[0]


class TestStrengths:
    def test_mean_over_the_grid(self) -> None:
        runs = controlled(curve(0, (90, 16), (85, 6), (80, 2)))
        assert outcomes.mean_over_strengths(runs).numbers == {0: approx(8)}
        assert outcomes.mean_over_strengths(runs, column="active_fraction").numbers == {0: approx(12.5)}
        goal = record(replace(child(0, 0.005), goal=3.0, measure="napl"), napl=3.0)
        assert outcomes.mean_over_strengths([*runs, goal]).numbers == {0: approx(8)}

    def test_a_grid_on_which_nothing_is_left_or_nothing_happened(self) -> None:
        dead = outcomes.mean_over_strengths(controlled(curve(0, (10, 0.01), (10, 0.001))))
        assert dead.why == {0: "nothing is left of it at the weakest strength"}
        idle = [
            replace(one, metrics=one.metrics | {"active_fraction": 0.95})
            for one in controlled(curve(0, (90, 31), (90, 30)))
        ]
        assert "kept more than 90% of its units" in outcomes.mean_over_strengths(idle).why[0]
        assert "kept more than 90% of its units" in outcomes.at_the_strongest(idle).why[0]

    def test_at_the_strongest(self) -> None:
        assert outcomes.at_the_strongest(controlled(curve(0, (90, 16), (85, 6)))).numbers == {0: approx(6)}
        assert "collapsed" in outcomes.at_the_strongest(controlled(curve(0, (90, 16), (10, 0.1)))).why[0]

    def test_saturation_per_doubling(self) -> None:
        def strengths(*napl: float, accuracy: float = 80) -> list[Record]:
            return controlled(
                record(child(0, 0.001 * 2**i), napl=x, test_accuracy=accuracy / 100, active_fraction=0.2)
                for i, x in enumerate(napl)
            )

        assert outcomes.saturation(strengths(28, 20, 12, 4)).numbers == {0: approx(1)}
        assert outcomes.saturation(strengths(28, 6, 4, 4)).numbers == {0: approx(0)}
        assert "less than half of its NAPL" in outcomes.saturation(strengths(15, 6, 4, 4)).why[0]
        assert "collapsed" in outcomes.saturation(strengths(28, 6, 4, 4, accuracy=10)).why[0]
        assert "does not fall" in outcomes.saturation(strengths(28, 6, 28)).why[0]

    def test_bend(self) -> None:
        straight = controlled(curve(0, (90, 16), (85, 8), (80, 4)))
        assert outcomes.bend(straight).numbers == {0: approx(0, abs=1e-9)}
        assert outcomes.bend(controlled(curve(0, (90, 16), (89, 8), (80, 4)))).numbers == {0: approx(0.4)}
        assert "less than two points" in outcomes.bend(controlled(curve(0, (90, 16), (89.5, 8), (89, 4)))).why[0]
        assert "collapsed" in outcomes.bend(controlled(curve(0, (90, 16), (50, 8), (10, 4)))).why[0]


class TestRetrained:
    @staticmethod
    def source(seed: int, ends: dict[str, float], loss: float = 2.0, way: str = "chain") -> list[Record]:
        """A linearized network at 80 %, and networks with its masks: accuracies by kind."""
        spec = child(seed)
        runs = controlled([record(spec, test_accuracy=0.8)], test_accuracy=0.8 + loss / 100)
        for kind, accuracy in ends.items():
            again = replace(spec, parent=spec, recipe=TRAIN, omega=0.0, masks=kind, seed=seed + 100)
            last = replace(again, masks="none", parent=again, recipe=FINE)
            at_once = replace(spec, parent=spec, weights=spec.parent, omega=0.0, masks=kind)
            made = {"chain": last, "retrained": again, "at once": at_once}[way]
            runs.append(record(made, test_accuracy=accuracy / 100))
        return runs

    @pytest.mark.parametrize("way", outcomes.WAYS)
    def test_minus_the_network_that_the_masks_come_from(self, way: str) -> None:
        runs = [*self.source(0, {"exact": 79, "layer": 77}, way=way), *self.source(1, {"exact": 81}, way=way)]
        for order in (runs, runs[::-1]):
            assert outcomes.retrained(order, masks="exact", way=way).numbers == {0: approx(-1), 1: approx(1)}
            assert outcomes.retrained(order, masks="layer", way=way).numbers == {0: approx(-3)}
            against = outcomes.retrained(order, masks="exact", way=way, against="layer")
            assert against.numbers == {0: approx(2), 1: None}
            for other in {*outcomes.WAYS} - {way}:
                assert outcomes.retrained(order, masks="exact", way=other).numbers == {}

    @pytest.mark.parametrize(("loss", "counts"), [(0.0, False), (0.9, False), (1.1, True), (4.9, True), (5.1, False)])
    def test_a_source_must_have_lost_one_to_five_points(self, loss: float, counts: bool) -> None:
        found = outcomes.retrained(self.source(0, {"exact": 79}, loss), masks="exact")
        assert (found.numbers[0] is not None) == counts
        assert counts or f"lost {loss:g} points against its control, not 1 to 5" in found.why[0]

    def test_residuals_are_pooled_over_all_kinds_of_masks(self) -> None:
        rng = np.random.default_rng(1)
        table = 79 + rng.normal(size=(3, 3))
        rows = [dict(zip(("exact", "layer", "global"), row, strict=True)) for row in table.tolist()]
        runs = [one for seed, row in enumerate(rows) for one in self.source(seed, row)]
        found = outcomes.retrained(runs, masks="exact").estimate
        expected = intervals.contrast(
            {seed: row | {"linearized": 80.0} for seed, row in enumerate(rows)}, {"exact": 1, "linearized": -1}
        )
        assert found is not None and found.freedom == (4 - 1) * (3 - 1)
        assert (found.mean, found.error) == (approx(expected.mean), approx(expected.error))

    def test_several_retrainings_of_one_source_are_one_repetition(self) -> None:
        runs = self.source(0, {"exact": 79})
        end = runs[-1].spec
        assert end.parent is not None
        another = replace(end, seed=200, parent=replace(end.parent, seed=200))
        found = outcomes.retrained([*runs, record(another, test_accuracy=0.77)], masks="exact")
        assert found.numbers == {0: approx(-2)} and found.estimate is not None and found.estimate.n == 1


class TestStarts:
    @staticmethod
    def started(seed: int, start: int, accuracy: float, alone: float, left: float = 0.1, **more: Any) -> list[Record]:
        """A run that was to make 90 % inactive, and its control."""
        given = {"omega": 0.01, "goal": 0.9, "recipe": FINE} | more
        before = parent(seed, recipe=TRAIN.until(max(start, 1)))
        spec = replace(before, parent=before, **given) if start else replace(parent(seed), **given)
        run = record(spec, test_accuracy=accuracy / 100, active_fraction=left)
        return [run, record(spec.control, test_accuracy=alone / 100, active_fraction=1.0)]

    def row(self, seed: int, *pairs: tuple[float, float], **more: Any) -> list[Record]:
        starts = (0, 5, 15, 200)[: len(pairs) - 1] + (200,)
        found = [self.started(seed, start, *pair, **more) for start, pair in zip(starts, pairs, strict=True)]
        return [one for both in found for one in both]

    def test_what_training_alone_gains_is_taken_off(self) -> None:
        """Ten points better when late, of which the controls have nine."""
        runs = [one for seed in range(3) for one in self.row(seed, (60, 65), (70, 74), (70 + 0.1 * seed, 74))]
        found = outcomes.advantage(runs)
        assert found.numbers == {seed: approx(1 + 0.1 * seed) for seed in range(3)}
        assert found.estimate is not None and found.estimate.freedom == (3 - 1) * (3 - 1)
        same = [one for seed in range(3) for one in self.row(seed, (60, 65), (69, 74), (69, 74))]
        assert outcomes.advantage(same).numbers == dict.fromkeys(range(3), approx(0, abs=1e-9))

    def test_what_arises_early(self) -> None:
        runs = self.row(0, (60, 60), (62, 60), (63, 60), (64, 60))
        assert outcomes.gained_early(runs, early=2).numbers == {0: approx(3 - 1)}
        assert outcomes.gained_early(runs, early=1).numbers == {0: approx(2 - 2)}
        for early in (0, 3, 9):
            found = outcomes.gained_early(runs, early=early)
            assert found.numbers == {0: None} and "does not lie between" in found.why[0]

    @pytest.mark.parametrize(("left", "told"), [(0.11, "missed the goal"), (0.05, "ended far beyond the goal")])
    def test_another_share_of_units_is_no_equal_share(self, left: float, told: str) -> None:
        runs = [*self.started(0, 0, 60, 65), *self.started(0, 200, 70, 74, left=left)]
        found = outcomes.advantage(runs)
        assert found.numbers == {0: None} and f"start 200 {told}" in found.why[0]
        assert outcomes.advantage([*self.started(0, 0, 60, 65), *self.started(0, 200, 70, 74, left=0.09)]).found

    def test_a_start_without_a_number_in_between_costs_degrees_of_freedom_alone(self) -> None:
        runs = [one for seed in range(3) for one in self.row(seed, (60, 65), (66, 70), (70, 74))]
        missed = [
            replace(one, metrics=one.metrics | {"active_fraction": 0.5})
            if one.spec.goal and one.spec.parent and one.spec.parent.recipe.epochs == 5 and one.spec.seed == 1
            else one
            for one in runs
        ]
        whole, less = (outcomes.advantage(some).estimate for some in (runs, missed))
        assert whole is not None and less is not None
        assert (whole.mean, whole.freedom, less.mean, less.freedom) == (approx(1), 4, approx(1), 2)

    def test_without_a_control_nothing_is_said(self) -> None:
        runs = [one for one in self.row(0, (60, 65), (70, 74)) if one.spec.omega]
        assert "its control was not run" in outcomes.advantage(runs).why[0]
        assert outcomes.advantage(self.started(0, 0, 60, 65)).why == {0: "it has one start only"}

    def test_two_schedules_are_refused(self) -> None:
        other = self.started(0, 5, 70, 74, recipe=TRAIN.onwards(5, 60))
        with pytest.raises(RecordError, match="agree in seed and what is compared"):
            outcomes.advantage([*self.row(0, (60, 65), (70, 74), (71, 74)), *other])

    def test_starts_within_one_training_share_one_control(self) -> None:
        more = {"data": "multi30k", "net": "transformer6", "recipe": RECIPES["multi30k-train"]}
        specs = [parent(0, **more, omega=0.1, goal=0.9, start=start) for start in (0, 20, 100)]
        runs = [
            record(spec, test_perplexity=y, active_fraction=0.1) for spec, y in zip(specs, (9, 6.5, 6), strict=True)
        ]
        runs.append(record(parent(0, **more), test_perplexity=5.0, active_fraction=1.0))
        assert {spec.control for spec in specs} == {parent(0, **more)}
        assert outcomes.advantage(runs, column="test_perplexity").numbers == {0: approx(-3)}
        assert outcomes.gained_early(runs, early=1, column="test_perplexity").numbers == {0: approx(-2.5 + 0.5)}


class TestStructure:
    @staticmethod
    def layered(*shares: float, seed: int = 0, **more: Any) -> Record:
        return record(child(seed, **more), units=[(round(1000 * share), 1000) for share in shares])

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 10), min_size=4, max_size=6))
    def test_excess_autocorrelation_against_all_permutations(self, shares: list[int]) -> None:
        def own(order: Iterable[int]) -> float | None:
            first, second = list(order)[:-1], list(order)[1:]
            varies = len(set(first)) > 1 and len(set(second)) > 1
            return statistics.correlation(first, second) if varies else None

        found, alone = outcomes.excess_autocorrelation(tuple(map(float, shares))), own(shares)
        if alone is None:
            assert found is None
            return
        every = [y for y in map(own, itertools.permutations(shares)) if y is not None]
        assert found == approx(alone - statistics.mean(every), abs=0.03)  # of 10,000 drawn permutations

    def test_a_random_order_has_none_in_the_mean(self) -> None:
        rng = np.random.default_rng(0)
        shares = rng.random(20)
        found = [outcomes.excess_autocorrelation(tuple(rng.permutation(shares).tolist())) for _ in range(150)]
        assert np.mean([y for y in found if y is not None]) == approx(0, abs=0.06)

    def test_a_block_stripes_and_one_layer_alone(self) -> None:
        block, stripes = [0.1] * 5 + [0.8, 0.9, 0.8] + [0.1] * 5, [0.9, 0.1] * 7
        numbers = [outcomes.autocorrelation([self.layered(*shares)]).numbers[0] for shares in (block, stripes)]
        assert numbers[0] is not None and numbers[1] is not None
        assert numbers[0] > 0.5 and numbers[1] < -0.8
        for alone in ([0.1] * 12 + [0.9], [0.5] * 8, [0.9] + [0.1] * 12):
            assert outcomes.autocorrelation([self.layered(*alone)]).why == {0: "the shares of its layers do not vary"}
        assert outcomes.autocorrelation([self.layered(*[0.0] * 8)]).why == {0: "no unit is active any more"}

    def test_centre_of_a_block_and_of_what_is_none(self) -> None:
        assert outcomes.centre([self.layered(0, 0.1, 0.9, 0.8, 0.1, 0, 0)]).numbers == {0: approx(2.5 / 6 - 0.5)}
        for shares in ([0.1] * 6 + [0.9], [0.9] * 7, [0.9, 0.1] * 4, [0.9, 0.8, 0.1, 0.1, 0.9, 0.1, 0.1]):
            assert outcomes.centre([self.layered(*shares)]).why == {0: "its active layers are no block"}

    def test_inner_over_outer(self) -> None:
        names = ["layer1.0.relu1", "layer1.0.relu2", "layer2.0.relu1", "layer2.0.relu2", "relu"]
        for net, sign in (("resnet20", 1), ("resnet20v1", -1)):
            run = self.layered(0.1, 0.4, 0.2, 0.8, 0.9, net=net)
            run = replace(run, units=[u | {"name": n} for u, n in zip(run.units, names, strict=True)])
            assert outcomes.stripes([run]).numbers == {0: approx(2 * sign)}
        assert "no two kinds" in outcomes.stripes([self.layered(0.1, 0.4)]).why[0]

    def test_several_strengths_are_refused(self) -> None:
        both = [self.layered(0.1, 0.4, 0.2, 0.3), self.layered(0.1, 0.4, 0.2, 0.3, omega=0.002)]
        for ask in (outcomes.autocorrelation, outcomes.centre, outcomes.stripes):
            with pytest.raises(RecordError, match="pass only the runs of one strength"):
                ask(both)


class TestPrediction:
    @staticmethod
    def networks(apl: float, count: int = 5) -> list[Record]:
        """Loss is 16 / NAPL; each architecture gets to its NAPLs at strengths of its own."""
        runs = []
        for i in range(count):
            for j in range(6):
                napl = 8 / 1.4 ** (j + i / 3)
                spec = child(0, 0.001 * 2**j, net=f"resnet{20 + 6 * i}")
                other = napl * (1 + i) ** apl
                runs.append(record(spec, napl=napl, apl=other, test_accuracy=0.9 - 0.16 / napl, active_fraction=0.2))
        return controlled(runs)

    def test_a_measure_that_goes_with_the_napl_predicts_as_well(self) -> None:
        found = outcomes.prediction(self.networks(0.0), measure="apl")
        assert len(found.numbers) == 5 and all(y == approx(0, abs=1e-9) for y in found.found.values())
        assert found.estimate is not None and found.estimate.n == len(found.found) >= 4

    def test_one_that_hangs_on_the_architecture_predicts_worse(self) -> None:
        found = outcomes.prediction(self.networks(1.0), measure="apl").estimate
        assert found is not None and found.mean > 0.5

    def test_the_left_out_architecture_is_predicted_by_the_others_alone(self) -> None:
        """By hand: two points each; a third architecture in between is off by what the others' line misses."""
        losses = {20: ((8, 2.0), (2, 8.0)), 32: ((6, 3.0), (3, 6.0))}
        runs = [
            record(child(0, 0.001 * (j + 1), net=f"resnet{d}"), napl=x, apl=x, test_accuracy=0.9 - y / 100)
            for d, points in losses.items()
            for j, (x, y) in enumerate(points)
        ]
        table = outcomes._falling(np.array([8.0, 2.0]), np.array([2.0, 8.0]), np.array([6.0, 3.0]), False)
        assert table.tolist() == [approx(4), approx(7)]
        assert outcomes.prediction(controlled(runs), measure="apl").found == {}  # two architectures are too few

    def test_where_the_strength_says_it_all_no_measure_is_tried(self) -> None:
        runs = []
        for one in self.networks(0.0):
            j = round(math.log2(one.spec.omega / 0.001)) if one.spec.omega else 0
            moved = {"napl": 8 / 1.4**j, "apl": 9 / 1.2**j, "test_accuracy": 0.9 - 0.02 * j}
            runs.append(replace(one, metrics=one.metrics | moved) if one.spec.omega else one)
        found = outcomes.prediction(runs, measure="apl")
        assert not found.found and set(found.why.values()) == {
            "napl predicts the loss hardly better than the strength does"
        }

    def test_collapsed_networks_and_few_architectures(self) -> None:
        dead = [
            replace(one, metrics=one.metrics | {"test_accuracy": 0.1}) if one.spec.omega else one
            for one in self.networks(0.0)
        ]
        for runs, told in ((dead, "0 architectures"), (self.networks(0.0, 3), "3 architectures")):
            found = outcomes.prediction(runs, measure="apl")
            assert found.estimate is None and all(why.startswith(told) for why in found.why.values()) and found.why


class TestNames:
    def test_a_name_stands_for_its_function(self) -> None:
        measures = [statistic.measure for statistic in outcomes.STATISTICS.values()]
        assert len(set(measures)) == len(measures)
        assert outcomes.check("knee", {}).measure is outcomes.knee

    @pytest.mark.parametrize("name", outcomes.STATISTICS)
    def test_no_record_is_no_number(self, name: str) -> None:
        options: dict[str, dict[str, Any]] = {
            "at NAPL": {"at": 3.0},
            "share above NAPL": {"at": 3.0},
            "widest minus narrowest": {"column": "napl"},
            "retrained": {"masks": "exact"},
            "gained early": {"early": 1},
            "error of prediction": {"measure": "apl"},
        }
        found = outcomes.check(name, options.get(name, {})).measure([], **options.get(name, {}))
        assert (found.numbers, found.estimate) == ({}, None)

    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("kne", {}, "statistic is 'kne', expected one of knee, at NAPL"),
            ("kne", {}, "did you mean 'knee'?"),
            ("at NAPL", {}, "found options none, but it takes at, column and needs at"),
            ("knee", {"column": "napl"}, "found options column, but it takes none"),
            ("at NAPL", {"at": "low"}, "at is 'low', expected a number"),
            ("at NAPL", {"at": True}, "at is True, expected a number"),
            ("at NAPL", {"at": 3.0, "column": "train_accuracy"}, "column is 'train_accuracy'"),
            ("retrained", {"masks": "none"}, "masks is 'none', expected one of exact, layer, global"),
            (
                "retrained",
                {"masks": "exact", "way": "slow"},
                "way is 'slow', expected one of chain, retrained, at once",
            ),
            (
                "retrained",
                {"masks": "exact", "against": "napl"},
                "against is 'napl', expected one of linearized, exact",
            ),
            ("retrained", {"masks": "exact", "losses": [0, 9]}, "losses is [0, 9], expected a number"),
            ("gained early", {"early": 1.5}, "early is 1.5, expected a number"),
            ("error of prediction", {"measure": "omega"}, "measure is 'omega', expected one of"),
        ],
    )
    def test_what_is_refused(self, name: str, options: dict[str, Any], told: str) -> None:
        with pytest.raises(SpecError) as refusal:
            outcomes.check(name, options)
        assert told in str(refusal.value) and "\n" not in str(refusal.value)

    def test_what_a_statistic_rests_on(self) -> None:
        source = child()
        again = replace(source, parent=source, recipe=TRAIN, omega=0.0, masks="exact", seed=100)
        end = replace(again, masks="none", parent=again, recipe=FINE)
        for spec, chain, first in (
            (source, True, True),
            (again, False, True),
            (end, True, False),
            (parent(), False, False),
        ):
            assert outcomes.needed("retrained", {"masks": "exact"}, spec) == chain
            assert outcomes.needed("retrained", {"masks": "exact", "way": "retrained"}, spec) == first
        assert not outcomes.needed("retrained", {"masks": "layer"}, end)
        assert outcomes.needed("knee", {}, source) and not outcomes.needed("knee", {}, end)
