"""What runs cost: operations by hand, rates from records, every run counted once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nladv_core import campaign, claims, costs, experiments, tiers
from nladv_core.recipes import Recipe
from nladv_core.specs import RunSpec

ROOT = Path(costs.__file__).parents[1]
SPEC = RunSpec(data="cifar10", net="resnet20", recipe=Recipe(epochs=3, lr=0.1, batch=64), train=1000)


def convolutions(depth: int, classes: int) -> float:
    """Multiply-adds of a CIFAR ResNet's forward pass, layer by layer as its paper describes it."""
    n = (depth - 2) // 6
    total = 32 * 32 * 9 * 3 * 16
    for stage, (side, width) in enumerate(((32, 16), (16, 32), (8, 64))):
        first = width if stage == 0 else width // 2
        total += side * side * 9 * width * (first + (2 * n - 1) * width)
    return total + 64 * classes


@pytest.mark.parametrize(("net", "depth"), [("resnet20", 20), ("resnet56", 56)])
def test_operations_are_those_one_counts_by_hand(net: str, depth: int) -> None:
    found = costs.cost(replace(SPEC, net=net))
    assert found.operations == pytest.approx(3 * 2 * convolutions(depth, 10) * 1000 * 3)
    more = costs.cost(replace(SPEC, net=net, data="cifar100", train=None))
    assert more.operations == pytest.approx(3 * 2 * convolutions(depth, 100) * 50_000 * 3)


def test_room_is_that_of_the_parameters() -> None:
    assert costs.cost(SPEC).bytes == 4 * 269_722  # Table 6 of He et al. says 0.27M
    assert costs.cost(SPEC).checkpoint == 2 * costs.cost(SPEC).bytes


def test_every_run_of_a_tier_is_counted_once_with_its_parents() -> None:
    whole = costs.whole(campaign.milestones("paper"))
    found = [spec for specs in whole.values() for spec in specs]
    expected, waiting = set[RunSpec](), campaign.wanted("paper")
    while waiting:
        spec = waiting.pop()
        expected.add(spec)
        waiting += [source for source in (spec.parent, spec.weights) if source is not None]
    assert len(found) == len(set(found)) and set(found) == expected
    assert list(whole)[0] == campaign.FIRST[0]
    assert {title.partition(",")[0] for title in whole} <= set(experiments.CHAPTERS)


def test_what_rests_on_two_runs_is_counted_with_both_and_after_both() -> None:
    source = replace(SPEC, parent=SPEC, omega=0.1)
    given = replace(source, omega=0.0, masks="exact", parent=source, weights=replace(SPEC, seed=1))
    assert costs.whole({"one": [given], "two": [source, SPEC], "three": [replace(SPEC, seed=2)]}) == {
        "one": [SPEC, source, replace(SPEC, seed=1), given],  # and nothing is left of the second
        "three": [replace(SPEC, seed=2)],
    }
    one = costs.cost(SPEC).operations
    assert costs.longest_chain([given], {}) == pytest.approx(3 * one)
    long = replace(SPEC, recipe=replace(SPEC.recipe, epochs=30))
    assert costs.longest_chain([replace(given, weights=long)], {}) == pytest.approx(11 * one)


def test_at_reduced_size_runs_are_counted_under_their_experiments() -> None:
    whole = costs.whole(campaign.milestones("reduced"))
    titles = [campaign.PILOT, *(title for title, _ in tiers.ROWS)]
    told = [title for title in titles if title in whole]  # what is left for others: chapters without an experiment
    assert list(whole)[: len(told)] == told and set(list(whole)[len(told) :]) <= set(experiments.CHAPTERS)
    found = [spec for specs in whole.values() for spec in specs]
    assert len(found) == len(set(found)) and {spec for one in found for spec in one.lineage} == set(found)
    place = {spec: number for number, spec in enumerate(found)}
    assert all(place[source] < place[spec] for spec in found for source in spec.sources)


@pytest.mark.parametrize(
    ("net", "depth", "data", "classes"), [("resnet20", 20, "cifar10", 10), ("resnet8", 8, "cifar100", 100)]
)
def test_operations_of_one_image(net: str, depth: int, data: str, classes: int) -> None:
    spec = replace(SPEC, net=net, data=data)
    assert costs.operations(spec) == pytest.approx(6 * convolutions(depth, classes))
    assert costs.cost(spec).operations == pytest.approx(costs.operations(spec) * 1000 * 3)


def test_the_longest_chain_counts_a_run_and_all_that_it_waits_for() -> None:
    child = replace(SPEC, parent=SPEC, omega=0.1)
    other = replace(SPEC, seed=1, recipe=replace(SPEC.recipe, epochs=5))
    one = costs.cost(SPEC).operations
    assert costs.longest_chain([SPEC, child, other], {}) == pytest.approx(2 * one)


def test_a_rate_is_operations_over_the_time_that_records_say(tmp_path: Path) -> None:
    records = claims.records(ROOT / "data" / "results" / "reduced")
    rates = costs.rates(records)
    trained = [record for record in records if record.spec.recipe.epochs and record.device == "cpu"]
    lengths = costs.lengths_of(records)
    operations = sum(costs.cost(record.spec, lengths).operations for record in trained)
    assert rates["cpu"] == pytest.approx(operations / sum(record.wall_s for record in trained))
    faster = [replace(record, wall_s=record.wall_s / 2) for record in trained]
    assert costs.rates(faster)["cpu"] == pytest.approx(2 * rates["cpu"])


def test_a_benchmark_on_a_gpu_is_a_rate_too_and_runs_that_share_it_count_together(tmp_path: Path) -> None:
    one = 6 * convolutions(20, 10)
    rows = [
        {"network": "resnet20", "device": "cuda", "linearized": False, "ours": [90.0, 100.0, 110.0]},
        {"network": "resnet20", "device": "cuda", "packed": 4, "ours": 300.0},
        {"network": "resnet20", "device": "cuda", "linearized": True, "ours": [1e9]},
        {"network": "resnet20", "device": "cpu", "linearized": False, "ours": [1e9]},
    ]
    assert costs.rates([], tmp_path) == {}
    (tmp_path / "throughput.json").write_text(json.dumps({"measured": rows[:1]}))
    assert costs.rates([], tmp_path) == {costs.BENCHMARKED: pytest.approx(100 * one)}
    (tmp_path / "throughput.json").write_text(json.dumps({"measured": rows}))
    assert costs.rates([], tmp_path) == {costs.BENCHMARKED: pytest.approx(300 * one)}
