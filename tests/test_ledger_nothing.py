"""What the ledger must not be met by: networks that say nothing. And what each primary part must accept and refuse.

Every row of the audit's list of rules that nothing could meet is a test here: records are made of all runs that the
ledger names, at both sizes, in a world where a claim is as hollow as the row says.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import pytest

from nladv_core import claims, experiments
from nladv_core.claims import Claim, Outcome, Part
from nladv_core.specs import RunSpec
from nladv_core.store import Record
from synthetic import World, collapsed, noise, unit, untouched

HOLDS = {"reproduced", "exceeds", "same direction"}
FAILS = {"differs", "opposite"}


@cache
def ledger() -> dict[str, Claim]:
    return {claim.id: claim for claim in claims.read()}


def primary(name: str) -> Part:
    return ledger()[name].parts[ledger()[name].primary]


def named(name: str, beginning: str) -> Part:
    (found,) = (part for part in ledger()[name].parts if part.name.startswith(beginning))
    return found


def parts() -> list[tuple[str, Part]]:
    return [(claim.id, part) for claim in ledger().values() for part in claim.parts if part.experiment is not None]


def specs(part: Part, tier: str) -> list[RunSpec]:
    sides = [None] if part.minus is None else [None, part.minus]
    return list(dict.fromkeys(spec for differing in sides for spec in part.specs(tier, differing)))


@cache
def _repeated(name: str, part: str, tier: str) -> bool:
    """Whether a part's experiment has enough repetitions at a size to be judged there at all."""
    (found,) = (one for one in ledger()[name].parts if one.name == part)
    return len({unit(spec) for spec in found.specs(tier)}) >= claims.SEEDS


def sizes(part: Part) -> tuple[str, ...]:
    name = next(claim.id for claim in ledger().values() if part in claim.parts)
    return tuple(
        tier for tier in claims.SIZES if (tier == "paper" or not part.paper_only) and _repeated(name, part.name, tier)
    )


Change = Callable[[list[Record]], list[Record]]


def outcomes(part: Part, world: World | None = None, change: Change | None = None) -> dict[str, Outcome]:
    """Tier -> outcome of a part in a world."""
    found = {}
    for tier in sizes(part):
        records = (world or World())(specs(part, tier))
        found[tier] = claims.outcome(part, change(records) if change is not None else records, tier=tier)
    return found


def words(part: Part, world: World | None = None, change: Change | None = None) -> set[str]:
    return {found.word for found in outcomes(part, world, change).values()}


def changed(record: Record, units: Iterable[float] | None = None, **metrics: float) -> Record:
    """The same run with other metrics, and other active shares layer by layer."""
    made = replace(record, metrics=record.metrics | metrics)
    if units is None:
        return made
    shares = [{**u, "active": round(1000 * share)} for u, share in zip(record.units, units, strict=True)]
    return replace(made, units=shares)


def each(change: Callable[[Record], Record]) -> Change:
    """The change of every linearized run, all others as they are."""
    return lambda found: [change(one) if one.spec.omega > 0 else one for one in found]


# ------------------------------------------------------------------------------------------- what must be accepted


@pytest.mark.parametrize("name", [claim for claim in ledger() if claim not in ("C10", "C14")])
def test_the_primary_part_accepts_a_world_as_the_paper_has_it(name: str) -> None:
    found = outcomes(primary(name))
    assert found["paper"].word == "reproduced", found["paper"].note
    assert found["paper"].n >= claims.SEEDS and found["paper"].ran
    assert "paper" in found
    if "reduced" in found:
        assert found["reduced"].word == "same direction", found["reduced"].note


OPPOSITE = {
    "C1": World(relative=3.0),  # every halving costs as much as the last
    "C2": World(gentle=20.0),
    "C3": World(chain=(0.1, 2.0)),
    "C4": World(late=(1.0, -4.0)),
    "C5": World(block=False),
    "C6": World(exponent=1.0),
    "C7": World(relative=0.7),  # a constant share of the initial depth at equal loss
    "C8": World(keep=(1.0, 1.4)),
    "C9": World(relative=3.0),
    "C11": World(shallow=3.0, steep=8.0, gentle=2.0),  # the APL says another loss at every depth
    "C12": World(perplexity=-4.0),
    "C13": World(gentle=20.0),
}


@pytest.mark.parametrize("name", OPPOSITE)
def test_the_primary_part_refuses_a_world_that_is_the_other_way_round(name: str) -> None:
    assert words(primary(name), OPPOSITE[name]) <= FAILS
    assert set(OPPOSITE) == {claim for claim in ledger() if claim not in ("C10", "C14")}


# ------------------------------------------------------------------------------------------ what nothing must not meet


@pytest.mark.parametrize("tier", claims.SIZES)
@pytest.mark.parametrize("change", [collapsed, untouched])
def test_collapsed_or_untouched_networks_meet_no_part(change: Change, tier: str) -> None:
    """C7: all depths collapsed. C3: a strength so small that no unit is linear. And the same for every other part."""
    asked = [(name, part) for name, part in parts() if tier in sizes(part)]
    found = change(World()(dict.fromkeys(spec for _, part in asked for spec in specs(part, tier))))
    for name, part in asked:
        assert claims.outcome(part, found, tier=tier).word not in HOLDS | FAILS, (name, part.name)
        assert claims.outcome(part, [], tier=tier).word in ("not run", "nothing yet"), (name, part.name)


def test_c7_a_strength_added_afterwards_changes_nothing() -> None:
    """NAPLs that differ among depths, and one omega = 1 at which they are all alike."""
    part, world = primary("C7"), OPPOSITE["C7"]
    for tier in sizes(part):
        there = world(specs(part, tier))
        again = []
        for one in there:
            if one.spec.omega > 0:
                spec = replace(one.spec, omega=1.0)
                again.append(replace(changed(one, napl=0.9, test_accuracy=0.9), spec=spec, key=spec.key()))
        told = claims.outcome(part, there, tier=tier)
        assert told.word in FAILS and claims.outcome(part, [*there, *again], tier=tier) == told


@pytest.mark.parametrize("name", [claim for claim in ledger() if claim not in ("C10", "C14")])
def test_no_strength_or_seed_beside_the_chapter_s_own_counts(name: str) -> None:
    part = primary(name)
    for tier in sizes(part):
        there = World()(specs(part, tier))
        more = []
        for one in there:
            for change in ({"omega": one.spec.omega * 1.5}, {"seed": one.spec.seed + 40}):
                if one.spec.omega > 0 and one.spec.masks == "none":
                    spec = replace(one.spec, **change)  # type: ignore[arg-type]
                    more.append(replace(changed(one, test_accuracy=0.1, napl=9.0), spec=spec, key=spec.key()))
        assert more and claims.outcome(part, there + more, tier=tier) == claims.outcome(part, there, tier=tier)


def _shuffled(one: Record) -> Record:
    """Its layers in another order."""
    shares = [u["active"] / u["channels"] for u in one.units]
    random.Random(one.key).shuffle(shares)
    return changed(one, units=shares)


def test_c5_one_layer_at_the_end_is_no_block() -> None:
    def stands_out(one: Record) -> Record:
        if one.spec.residual:
            return _shuffled(one)
        low = [0.05 + abs(noise(one.key, i, sd=0.01)) for i in range(len(one.units) - 1)]
        return changed(one, units=[*low, 0.9])

    def alike(one: Record) -> Record:
        return _shuffled(one) if one.spec.residual else changed(one, units=[0.05] * (len(one.units) - 1) + [0.9])

    for change in (stands_out, alike):
        for part in ledger()["C5"].parts[:4]:
            assert not words(part, change=each(change)) & HOLDS, part.name


def test_c5_a_random_order_is_neither_a_block_nor_stripes() -> None:
    for part in ledger()["C5"].parts:
        assert not words(part, change=each(_shuffled)) & HOLDS, part.name


@pytest.mark.parametrize("alike", [True, False])
def test_c11_three_unrelated_falling_functions_of_the_strength(alike: bool) -> None:
    """Of the strength alone, the same in all architectures; or another one in each."""

    def change(one: Record) -> Record:
        spec = one.spec
        who = "" if alike else f"{spec.net} {spec.width} {spec.shortcut} {spec.residual}"
        napl, apl, share = (
            10 / (1 + (spec.omega / 0.002) ** (0.5 + random.Random(f"{who} {name}").random()))
            for name in ("napl", "apl", "share")
        )
        accuracy = 0.92 - 0.1 * spec.omega / 0.01 + noise(one.key, sd=0.001)
        return changed(one, napl=napl, apl=apl, active_fraction=share / 20, test_accuracy=accuracy)

    for part in ledger()["C11"].parts[:2]:
        assert not words(part, change=each(change)) & HOLDS


def test_c1_units_drawn_at_random_differ_by_arithmetic_alone() -> None:
    """At NAPL 3, S has 10.3 % of its units and NS 5.5 %: for nothing but their 29 and 55 units on a path."""
    part = named("C1", "active share beyond")

    def change(found: list[Record]) -> list[Record]:
        start = {one.key: one.metrics["napl"] for one in found}
        return [
            changed(one, active_fraction=one.metrics["napl"] / start[one.spec.control.key()]) if one.spec.omega else one
            for one in found
        ]

    assert not words(part, change=change) & (HOLDS | FAILS)


def test_c6_active_units_that_grow_with_the_root_of_the_width_are_not_independent_of_it() -> None:
    def change(one: Record) -> Record:
        share = 0.2 * one.spec.width**-0.5 * (1 + noise(one.key, sd=0.02))
        return changed(one, active_fraction=share, enw=37.3 * one.spec.width * share)

    assert words(primary("C6"), change=each(change)) <= FAILS


def test_c6_random_increasing_numbers() -> None:
    def change(one: Record) -> Record:
        widths = sorted(experiments.TIERS["paper" if one.spec.net == "resnet56" else "reduced"].widths)
        draws = random.Random(f"{one.spec.omega} {unit(one.spec)}")
        found = sorted(draws.uniform(1, 20) for _ in widths)
        enw = found[widths.index(one.spec.width)]
        return changed(one, enw=enw, active_fraction=min(0.8, enw / 37.3 / one.spec.width))

    assert not words(primary("C6"), change=each(change)) & HOLDS


@pytest.mark.parametrize("weakest", [0.02, 1.0])
def test_c8_a_saturated_grid_saturates_by_nothing(weakest: float) -> None:
    """All strengths far too strong; and but for the weakest one."""

    def change(one: Record) -> Record:
        first = one.spec.omega == min(experiments.TIERS[_tier(one)].omegas)
        return changed(one, napl=weakest if first else 0.02, test_accuracy=0.1, active_fraction=0.001)

    for part in ledger()["C8"].parts:
        assert not words(part, change=each(change)) & (HOLDS | FAILS), part.name


def _tier(one: Record) -> str:
    return (
        "paper"
        if one.spec.recipe.epochs == 60 or one.spec.data == "cinic10" and one.spec.net == "resnet56"
        else ("reduced")
    )


def test_c4_what_more_training_does_by_itself_is_no_advantage() -> None:
    """Late starts end ten points higher, and so do their controls: nine tenths of what was once called evidence."""
    world = World(late=(0.0, 0.0))
    for tier, found in outcomes(primary("C4"), world).items():
        assert found.word in ("inconclusive", "undecided")
        records = {one.key: one for one in world(specs(primary("C4"), tier))}
        ends = [one for one in records.values() if one.spec.omega > 0 and unit(one.spec) == 0]
        ends.sort(key=lambda one: 0 if one.spec.parent is None else one.spec.parent.recipe.epochs)
        assert ends[-1].metrics["test_accuracy"] - ends[0].metrics["test_accuracy"] > (
            0.005 if tier == "reduced" else 0
        )


def test_c4_networks_of_other_shares_are_not_compared() -> None:
    """The goal is reached and left far behind: no equal share of inactive units."""

    def change(one: Record) -> Record:
        late = one.spec.parent is not None
        return changed(one, active_fraction=1 - (one.spec.goal or 0) if late else 0.01)

    assert words(primary("C4"), change=each(change)) == {"inconclusive", "undecided"}


def test_c9_and_c7_measure_a_loss_against_the_control() -> None:
    """Training alone loses three points: against the parent every network would have lost two."""

    def change(found: list[Record]) -> list[Record]:
        return [
            changed(one, test_accuracy=one.metrics["test_accuracy"] - 0.03) if one.spec.parent is not None else one
            for one in found
        ]

    for name in ("C7", "C9"):
        before, after = (outcomes(primary(name), change=how)["paper"] for how in (None, change))
        assert after.estimate is not None and before.estimate is not None
        assert after.estimate.mean == pytest.approx(before.estimate.mean)
