"""The pilot's rule on records that nobody computed: what it takes, what it leaves open, what the page says."""

import math
from pathlib import Path

import pytest

import synthetic
from nladv_core import campaign, pages, pilot
from nladv_core.store import Record


def records(better: dict[str, float], *, gained: float = 0.0, shift: float = 1.0) -> list[Record]:
    """Accuracy falls by a point a halving of the NAPL from 80 %; `better` lifts a way, `shift` multiplies NAPLs."""
    found = {pilot.parent().key(): synthetic.record(pilot.parent(), test_accuracy=0.80, napl=11.0)}
    for name, runs in pilot.ways().items():
        control, *linearized = runs
        # Two ways share a control, which is the network before linearization trained on.
        found[control.key()] = synthetic.record(control, test_accuracy=0.80 + gained / 100, napl=11.0)
        for spec, napl in zip(linearized, (6.0, 3.5, 2.2, 1.4), strict=True):
            napl *= shift
            points = 80 - math.log2(11 / napl) + better.get(name, 0.0)
            found[spec.key()] = synthetic.record(spec, test_accuracy=points / 100, napl=napl)
    return list(found.values())


def test_all_of_its_runs_are_needed() -> None:
    whole = records({})
    assert {record.key for record in whole} == {spec.key() for spec in pilot.specs()} and len(whole) == 15
    for i in range(len(whole)):
        assert pilot.judge(whole[:i] + whole[i + 1 :]) is None


def test_nobody_sees_a_test_image_and_both_other_ways_have_half_the_steps() -> None:
    assert {spec.held_out for spec in pilot.specs()} == {pilot.HELD_OUT}
    full, *others = [[spec.way or 0.0 for spec in runs[1:]] for runs in pilot.ways().values()]
    strengths = [[spec.omega * spec.slope_lr for spec in runs[1:]] for runs in pilot.ways().values()]
    for ways, omegas in zip(others, strengths[1:], strict=True):
        for way, omega in zip(ways, omegas, strict=True):
            assert way / omega == pytest.approx(full[0] / strengths[0][0] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("better", "chosen"),
    [
        ({}, "half the batch"),
        ({"a stronger penalty": 0.4}, "half the batch"),  # within half a point
        ({"a stronger penalty": 0.7}, "a stronger penalty"),
        ({"a stronger penalty": 0.7, "slopes at twice the rate": 0.9}, "slopes at twice the rate"),
        ({"half the batch": -0.7}, "slopes at twice the rate"),
    ],
)
def test_another_way_must_be_clearly_better(better: dict[str, float], chosen: str) -> None:
    judged = pilot.judge(records(better))
    assert judged is not None and judged.chosen == chosen
    for name, by_napl in judged.accuracy.items():
        for napl, accuracy in by_napl.items():  # straight over log NAPL, so interpolation is exact
            assert accuracy == pytest.approx(80 - math.log2(11 / napl) + better.get(name, 0.0), abs=0.12)


def test_a_way_that_does_not_get_there_leaves_it_open() -> None:
    judged = pilot.judge(records({}, shift=2.0))  # the lowest NAPL is 2.8
    assert judged is not None and judged.chosen is None
    assert all(row[2.0] is None and row[4.0] is not None for row in judged.accuracy.values())


@pytest.mark.parametrize(("gained", "enough"), [(0.4, True), (-1.0, True), (0.6, False)])
def test_a_parent_is_trained_if_its_control_gains_little(gained: float, enough: bool) -> None:
    judged = pilot.judge(records({}, gained=gained))
    assert judged is not None and judged.gained == pytest.approx(gained) and judged.long_enough is enough


def test_the_page_says_what_is_there(tmp_path: Path) -> None:
    assert "0 of the pilot's 15 runs" in pages.pilot(tmp_path)
    synthetic.write(tmp_path / "pilot", records({})[:4])
    assert "4 of the pilot's 15 runs" in pages.pilot(tmp_path)
    synthetic.write(tmp_path / "pilot", records({"a stronger penalty": 0.7}))
    told = pages.pilot(tmp_path)
    assert "Taken: a stronger penalty." in told and "data:image/svg+xml;base64," in told
    assert told == pages.pilot(tmp_path)  # equal records, equal page


def test_it_comes_first_in_the_campaign() -> None:
    first = next(iter(campaign.milestones("reduced").values()))
    assert set(first) == set(pilot.specs())
