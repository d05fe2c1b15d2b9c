"""Intervals against the formulas of a textbook, against scipy's own tests, and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from nladv_core import intervals
from nladv_core.errors import RecordError

T2 = 4.302652729911275  # the 97.5 % quantile with two degrees of freedom, from a printed table


def test_a_mean_by_hand() -> None:
    found = intervals.mean([1.0, 2.0, 3.0])
    assert (found.mean, found.freedom, found.n) == (2.0, 2, 3) and found.error == pytest.approx(1 / math.sqrt(3))
    assert found.interval() == pytest.approx((2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))
    narrow = found.interval(0.90)
    assert narrow == pytest.approx((2 - 2.91998558 / math.sqrt(3), 2 + 2.91998558 / math.sqrt(3)))


def test_one_number_has_no_interval_and_equal_ones_one_of_no_width() -> None:
    assert intervals.mean([5.0]).interval() == (-math.inf, math.inf)
    assert intervals.mean([5.0, 5.0, 5.0]).interval() == (5.0, 5.0)
    with pytest.raises(RecordError, match="found no number"):
        intervals.mean([])
    with pytest.raises(RecordError, match="level is 95"):
        intervals.mean([1.0, 2.0]).interval(95)


def test_two_groups_after_welch() -> None:
    a, b = [3.0, 4.0, 8.0, 1.0], [1.0, 1.5, 0.5]
    found = intervals.apart(intervals.mean(a), intervals.mean(b))
    oracle = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.interval() == pytest.approx((oracle.low, oracle.high)) and found.n == 3
    alone = intervals.apart(intervals.mean([1.0]), intervals.mean(b))
    assert alone.interval() == (-math.inf, math.inf) and alone.mean == 0.0
    still = intervals.apart(intervals.mean([2.0, 2.0]), intervals.mean(b))  # one group without spread
    assert still.freedom == 2 and still.error == intervals.mean(b).error
    assert intervals.apart(intervals.mean([2.0, 2.0]), intervals.mean([1.0, 1.0])).interval() == (1.0, 1.0)


def test_two_treatments_are_the_paired_interval() -> None:
    a, b = [3.0, 4.0, 8.0], [1.0, 3.5, 6.0]
    found = intervals.contrast(
        {i: {"a": x, "b": y} for i, (x, y) in enumerate(zip(a, b, strict=True))}, {"a": 1, "b": -1}
    )
    paired = intervals.mean([x - y for x, y in zip(a, b, strict=True)])
    assert found.interval() == pytest.approx(paired.interval())
    assert (found.freedom, found.n) == (2, 3)


def test_pooled_residuals_are_those_of_the_linear_model() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(4, 3)) + np.array([[5.0], [1.0], [0.0], [-2.0]])
    blocks = {i: dict(zip("abc", row, strict=True)) for i, row in enumerate(table.tolist())}
    found = intervals.contrast(blocks, {"a": 2.0, "b": -1.0, "c": -1.0})
    # The same by ordinary least squares with a column for each block and treatment.
    design = np.array([[*np.eye(4)[i], *np.eye(3)[j][1:]] for i in range(4) for j in range(3)])
    fit, rest, *_ = np.linalg.lstsq(design, table.ravel(), rcond=None)
    weights = np.array([0, 0, 0, 0, -1.0, -1.0])
    error = math.sqrt(rest[0] / 6 * weights @ np.linalg.inv(design.T @ design) @ weights)
    assert found.mean == pytest.approx(weights @ fit) and found.error == pytest.approx(error)
    assert (found.freedom, found.n) == (6, 4)


def test_pooling_is_worth_its_degrees_of_freedom_and_keeps_its_level() -> None:
    """Under the model, 95 % of the intervals hold the truth, and they are shorter than those of single differences."""
    rng = np.random.default_rng(0)
    held, shorter = 0, []
    for _ in range(600):
        table = rng.normal(size=(3, 1)) * 5 + rng.normal(size=(3, 4))
        blocks = {i: dict(enumerate(row)) for i, row in enumerate(table.tolist())}
        low, high = intervals.contrast(blocks, {3: 1, 0: -1}).interval()
        a, b = intervals.mean(table[:, 3] - table[:, 0]).interval()
        held += low <= 0 <= high
        shorter.append((high - low) / (b - a))
    assert 0.925 <= held / 600 <= 0.975 and np.median(shorter) < 0.8


def test_incomplete_blocks_and_other_weights_are_refused() -> None:
    for blocks in ({}, {0: {}}, {0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.0}}):
        with pytest.raises(RecordError, match="pass only complete ones"):
            intervals.contrast(blocks, {"a": 1, "b": -1})
    for weights in ({"a": 1, "c": -1}, {"a": 1}):
        with pytest.raises(RecordError, match="expected some of the treatments"):
            intervals.contrast({0: {"a": 1.0, "b": 2.0}}, weights)
    assert intervals.contrast({0: {"a": 1.0, "b": 3.0}}, {"a": 1, "b": -1}).interval() == (-math.inf, math.inf)


def test_what_chance_alone_finds() -> None:
    assert intervals.by_chance(0) == (0, 0)
    assert intervals.by_chance(12) == (pytest.approx(0.3), pytest.approx(1 - 0.975**12))
    with pytest.raises(RecordError, match="count is -1"):
        intervals.by_chance(-1)
