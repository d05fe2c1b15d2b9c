"""The paper's claims and what the committed records say of them: `data/claims.toml`, read, checked and judged.

A verdict follows from a rule that stood in the ledger before the runs; it rests on the records in `data/results/paper`
and on nothing else. What `data/results/reduced` holds is shown beside it as evidence at reduced size and never judged.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nladv_core import effects, experiments, values
from nladv_core.errors import SpecError
from nladv_core.places import project_root
from nladv_core.specs import RunSpec
from nladv_core.store import Record
from nladv_core.summaries import difference, edition_title

# Of several parts, the first of these that occurs is the verdict on the whole; "exceeds" only if all parts do.
VERDICTS = ("differs", "not run", "too few seeds", "inconclusive", "reproduced", "exceeds")
SEEDS = 3  # fewer are not judged

_APART = ("path lengths", "sharpness")  # statistics that need no runs
_CRITERIA = ("value", "at_least", "at_most", "direction", "within")
_DEPTHS = (20, 32, 44, 56)


@lru_cache(maxsize=128)
def _specs(chapter: str, parameters: str) -> tuple[RunSpec, ...]:
    """The runs of a chapter, its parameters as JSON: several parts ask for the same."""
    return tuple(experiments.chapter(chapter, json.loads(parameters)).specs())


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question that records can answer.

    Attributes:
        name: what it is about.
        statistic: a name in `effects.STATISTICS`; `"path lengths"`: C14's, computed now; `"sharpness"`: C10's, from the
            committed pictures (`features.verdict`).
        experiment: `chapter` and parameters of it, at the tier "paper". Runs that differ from its runs in seed and
            strength only count as well; a seed counts once all networks of the experiment were linearized with it, at
            as many strengths (of what `at` interpolates and of retrainings, whatever there is counts).
        minus: parameters that differ in a second experiment, whose statistic is subtracted seed by seed.
        options: what the statistic takes.
        value, tolerance: the paper's number, and how far the mean may lie from it.
        at_least, at_most: a bound that the whole interval must keep (every single seed, if `every`).
        within: a bound that the whole interval must keep on either side of zero.
        direction: of the interval from zero: `"higher"`, `"lower"` or `"any"`.
        every: a bound holds for every single seed, itself included, in place of the interval.
    """

    name: str
    statistic: str
    experiment: dict | None = None
    minus: dict | None = None
    options: dict | None = None
    value: float | None = None
    tolerance: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None
    direction: str | None = None
    every: bool = False

    def __post_init__(self) -> None:
        values.canonical(self, "part")
        set_to = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {n for n, v in set_to.items() if v is not None and v is not False} - {"name", "statistic"}
        if self.statistic in _APART:
            needed = {"tolerance"} if self.statistic == "path lengths" else set()
            if given != needed:
                raise SpecError(
                    f"part {self.name!r}: found {', '.join(sorted(given)) or 'nothing'}, but statistic "
                    f"{self.statistic!r} takes exactly {', '.join(sorted(needed)) or 'nothing'}"
                )
        else:
            effects.check(self.statistic, self.options or {})
            criteria = given & set(_CRITERIA)
            if len(criteria) != 1 or ("tolerance" in given) != ("value" in given):
                told = ", ".join(sorted(criteria | given & {"tolerance"})) or "no criterion"
                raise SpecError(
                    f"part {self.name!r}: found {told}, but it takes exactly one of {', '.join(_CRITERIA)} "
                    "(a value with its tolerance)"
                )
            if self.every and not criteria & {"at_least", "at_most"}:
                raise SpecError(f"part {self.name!r}: every takes exactly at_least or at_most, found {criteria.pop()}")
            if self.families() == (self.families(self.minus) if self.minus is not None else None):
                raise SpecError(f"part {self.name!r}: minus has the same runs; name a parameter that makes others")
        if self.direction not in (None, "higher", "lower", "any"):
            raise SpecError(f"part {self.name!r}: direction is {self.direction!r}, expected higher, lower or any")
        for name in ("tolerance", "within"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise SpecError(f"part {self.name!r}: {name} is {bound:g}, expected above 0")

    def families(self, differing: Mapping[str, Any] | None = None) -> frozenset[RunSpec]:
        """The experiment's runs without their seeds and strengths (`effects.family`).

        Raises:
            SpecError: no chapter is named, or it has no runs, or it refuses a parameter.
        """
        return frozenset(map(effects.family, self.specs(differing)))

    def specs(self, differing: Mapping[str, Any] | None = None) -> list[RunSpec]:
        """The experiment's runs, with other parameters where `differing` says so.

        Raises:
            SpecError: no chapter is named, or it has no runs, or it refuses a parameter.
        """
        given = dict(self.experiment or {}) | dict(differing or {})
        named = given.pop("chapter", None)
        if not isinstance(named, str):
            raise SpecError(f"part {self.name!r}: its experiment names no chapter; add chapter and its parameters")
        fixed = {"tier": "paper", "device": "cpu"}
        if taken := set(fixed) & set(given):
            raise SpecError(f"part {self.name!r}: {', '.join(sorted(taken))} cannot be chosen; verdicts rest on paper")
        specs = _specs(named, values.text(given | fixed))
        if not specs:
            raise SpecError(f"part {self.name!r}: chapter {named} has no runs that could be judged; name another")
        return list(specs)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id, section, title, claim: where the paper says what, in our words.
        paper: its numbers.
        rule: how the verdict is reached, in words.
        parts: the same for the machine; at least one.
        chapter: the chapter that shows it, or None.
        reduced: fields of `RunSpec` that a run must have to count as evidence at reduced size, or None.
    """

    id: str
    section: str
    title: str
    claim: str
    paper: str
    rule: str
    parts: tuple[Part, ...]
    chapter: str | None = None
    reduced: dict | None = None

    def __post_init__(self) -> None:
        values.canonical(self, f"claim {self.id}")
        if not self.parts:
            raise SpecError(f"claim {self.id}: has no part, expected at least one [[claim.part]]")
        for name in self.reduced or {}:
            if name not in values.hints(RunSpec):
                raise SpecError(f"claim {self.id}: unknown field {name!r}{values.nearest(name, values.hints(RunSpec))}")


@dataclass(frozen=True)
class Outcome:
    """What the records say of one part.

    Attributes:
        verdict: one of `VERDICTS`.
        note: the numbers it rests on, or why there are none.
        seeds: how many repetitions it rests on; 0 where nothing was run or repetition means nothing.
    """

    verdict: str
    note: str
    seeds: int = 0


@dataclass(frozen=True)
class Judgement:
    """What the records say of one claim: part by part, together, and at reduced size."""

    claim: Claim
    outcomes: tuple[Outcome, ...]
    evidence: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The least favourable verdict of the parts, in the order of `VERDICTS`."""
        return min((outcome.verdict for outcome in self.outcomes), key=VERDICTS.index)


def read(path: Path | None = None) -> tuple[Claim, ...]:
    """The ledger, by default `data/claims.toml` of the project.

    Raises:
        SpecError: it cannot be read, or a claim has an unknown, missing, contradictory or mistyped field.
    """
    path = path or project_root() / "data" / "claims.toml"
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path.name}: cannot be read ({error}); restore it") from None
    rows = found.get("claim")
    if not isinstance(rows, list) or set(found) != {"claim"}:
        raise SpecError(f"{path.name}: expected a list of [[claim]] and nothing else")
    claims = []
    for row in rows:
        what = f"{path.name}, claim {row.get('id', '?')}"
        parts = row.pop("part", [])  # in the file each part has a table of its own
        claims.append(values.build(Claim, row | {"parts": parts}, what))
    twice = {claim.id for claim in claims if [other.id for other in claims].count(claim.id) > 1}
    if twice:
        raise SpecError(f"{path.name}: {', '.join(sorted(twice))} occurs twice; give each claim an id of its own")
    return tuple(claims)


def judge(claims: Sequence[Claim] | None = None, results: Path | None = None) -> list[Judgement]:
    """Every claim with its verdict from `results/paper` and its evidence from `results/reduced`.

    Args:
        claims: default: the ledger.
        results: folder of committed records, default `data/results` of the project; it may be missing.

    Raises:
        RecordError: a committed record is damaged. A verdict that silently leaves one out would be none.
    """
    from nladv_core import features  # not above: it needs what draws, and the ledger is read without

    results = results or project_root() / "data" / "results"
    paper, reduced = records(results / "paper"), records(results / "reduced")
    pictures = {tier: features.committed(tier, results) for tier in ("paper", "reduced")}
    judged = []
    for claim in read() if claims is None else claims:
        seen = evidence(claim, reduced) + tuple(line for part in claim.parts for line in measured(part, reduced))
        if any(part.statistic == "sharpness" for part in claim.parts):
            seen += features.evidence(pictures["reduced"])
        judged.append(Judgement(claim, tuple(outcome(part, paper, pictures["paper"]) for part in claim.parts), seen))
    return judged


def records(folder: Path) -> list[Record]:
    """The records of a folder by name of file; none if it is missing.

    Raises:
        RecordError: one of them is damaged or foreign.
    """
    return [Record.read(path) for path in sorted(folder.glob("*.json"))]


def outcome(part: Part, paper: Sequence[Record], pictures: Sequence[Any] = ()) -> Outcome:
    """Apply the rule of one part to the records of the `paper` tier, C10's to pictures of that tier."""
    if part.statistic == "path lengths":
        return _path_lengths(part)
    if part.statistic == "sharpness":
        from nladv_core import features

        return Outcome(*features.verdict(next(iter(pictures), None)))
    first = _by_seed(part, paper)
    second = _by_seed(part, paper, part.minus) if part.minus is not None else None
    ran = set(first) if second is None else set(first) & set(second)
    if not ran:
        return Outcome("not run", "no record" if second is None else "no seed for which both were run")
    found = []
    for seed in sorted(ran):
        y = first[seed] if second is None else _minus(first[seed], second[seed])
        if y is not None:
            found.append(y)
    options = part.options or {}
    place = f"{_NAMES.get(options['axis'], options['axis'])} {options['at']:g}" if part.statistic == "at" else ""
    if len(ran) < SEEDS:
        told = f": {np.mean(found):.2f}" if found else ""
        return Outcome("too few seeds", f"{_plural(len(ran))}{told}, expected at least {SEEDS}", len(ran))
    if len(found) < (len(ran) if part.every else SEEDS):
        reached = f"reach {place}" if place else "reach what is asked for"
        return Outcome("inconclusive", f"the runs of {len(found)} of {len(ran)} seeds {reached}", len(found))
    verdict, note = _verdict(part, found)
    seeds = _plural(len(found)) if len(found) == len(ran) else f"{len(found)} of {_plural(len(ran))}"
    return Outcome(verdict, f"{note}{f' at {place}' if place else ''}, {seeds}", len(found))


def evidence(claim: Claim, reduced: Sequence[Record]) -> tuple[str, ...]:
    """What linearized `reduced` runs show at their weakest and strongest penalty, one line a network; no verdict.

    Runs that stop at a goal share are no points of a curve over strengths and left out.
    """
    if claim.reduced is None:
        return ()
    networks: dict[RunSpec, list[Record]] = {}
    for record in effects.linearized(reduced):
        spec = record.spec
        if spec.goal is None and all(getattr(spec, name) == wanted for name, wanted in claim.reduced.items()):
            networks.setdefault(effects.family(spec), []).append(record)
    names = [_network(network) for network in networks]
    told = []
    for network, runs in networks.items():
        name = _network(network)
        if names.count(name) > 1:
            name += f", {network.recipe.epochs} epochs" + (f" on {network.train} images" if network.train else "")
        ends = []
        for omega in sorted({min(r.spec.omega for r in runs), max(r.spec.omega for r in runs)}):
            end = [r.metrics for r in runs if r.spec.omega == omega]
            accuracy = 100 * np.mean([m["test_accuracy"] for m in end])
            ends.append(f"{accuracy:.1f} % at NAPL {np.mean([m['napl'] for m in end]):.2f} (ω {omega:g})")
        seeds = len({r.spec.seed for r in runs})
        told.append(f"{name}: {'from ' * (len(ends) > 1)}{' to '.join(ends)}, {_plural(seeds)}")
    return tuple(sorted(told))


def measured(part: Part, reduced: Sequence[Record]) -> tuple[str, ...]:
    """The statistic of one part over `reduced` runs, a line for each edition of its chapter that has some; no verdict.

    Not of what is interpolated at a place that the paper names: smaller networks have other places.
    """
    if part.statistic in (*_APART, "at"):
        return ()
    given = dict(part.experiment or {})
    kind: Any = experiments.find(given.pop("chapter"))
    told: dict[frozenset[RunSpec], str] = {}
    for edition in kind.editions("reduced"):
        try:
            both = [replace(edition, **given), *([replace(edition, **given | part.minus)] if part.minus else [])]
            first, *second = (chapter.specs() for chapter in both)
        except SpecError:  # an edition that bears no such parameter, as published networks of one kind
            continue
        # Editions are told apart by their strengths, too.
        strengths = {spec.omega for spec in first}
        alike = [record for record in reduced if record.spec.omega in strengths]
        found = _statistic(part, first, alike)
        if second:
            other = _statistic(part, second[0], alike)
            found = {seed: _minus(found[seed], other[seed]) for seed in set(found) & set(other)}
        numbers = [y for y in found.values() if y is not None]
        if numbers:
            title = edition_title(both[0]).partition("; ")[2]
            place = f" ({title})" if title else ""
            # As the rule asks: for every seed, or for their mean.
            note = _interval(numbers) if not part.every else f"{min(numbers):.2f} to {max(numbers):.2f}"
            note = note if len(numbers) > 1 else f"{numbers[0]:.2f}"
            told.setdefault(
                frozenset(map(effects.family, first)), f"{part.name}{place}: {note}, {_plural(len(numbers))}"
            )
    return tuple(told.values())


def _interval(found: Sequence[float], unit: str = "") -> str:
    over = difference(found)
    return f"{over.mean:.2f}{unit} (95 % interval {over.low:.2f} to {over.high:.2f})"


def _network(spec: RunSpec) -> str:
    """A linearized network in words."""
    name = (spec.origin or spec.net) + (f" of width {spec.width:g}" if spec.width != 1 else "")
    name += " without residual connections" if not spec.residual else ""
    name += f" with shortcut {spec.shortcut}" if spec.shortcut != "A" else ""
    return f"{name} on {spec.data}, {spec.granularity}-wise"


_NAMES = {"napl": "NAPL", "apl": "APL", "omega": "ω", "active_fraction": "active share"}
# Statistics that do not need the whole curve of a seed: they look between neighbours, or at single retrainings.
_OF_A_PART = ("at", "kept depth", "retrained minus linearized")


def _verdict(part: Part, found: Sequence[float]) -> tuple[str, str]:
    """Verdict and numbers for one value a seed."""
    over = difference(found)
    percent = part.statistic == "at" and part.minus is None and (part.options or {})["column"] == "test_accuracy"
    note = _interval(found, " %" if percent else "")
    low, high = (min(found), max(found)) if part.every else (over.low, over.high)
    if part.every:
        note = f"{low:.2f} to {high:.2f}"
    if part.direction is not None:
        if low > 0 or high < 0:
            side = "higher" if low > 0 else "lower"
            return ("reproduced" if part.direction in (side, "any") else "differs"), note
        return "inconclusive", note
    if part.at_least is not None or part.at_most is not None or part.within is not None:
        floor = part.at_least if part.at_least is not None else -math.inf
        ceiling = part.at_most if part.at_most is not None else math.inf
        if part.within is not None:
            floor, ceiling = -part.within, part.within
        if part.every:
            return ("reproduced" if floor <= low and high <= ceiling else "differs"), note
        if floor < low and high < ceiling:
            return "reproduced", note
        return ("differs" if high < floor or low > ceiling else "inconclusive"), note
    assert part.value is not None and part.tolerance is not None  # checked when the part was made
    away = over.mean - part.value
    # The paper's numbers have two decimals: what is written as 0.5 away must not fail for a rounding error of 1e-15.
    if abs(away) <= part.tolerance + 1e-9:
        # An interval this wide would have the mean within the tolerance by luck.
        return ("reproduced" if over.high - over.mean <= 2 * part.tolerance + 1e-9 else "inconclusive"), note
    if over.low <= part.value <= over.high:
        return "inconclusive", note
    return ("exceeds" if away > 0 else "differs"), note


def _by_seed(part: Part, paper: Sequence[Record], differing: Mapping[str, Any] | None = None) -> effects.BySeed:
    """Seed -> the statistic of its runs, None where they do not reach the place that is asked for."""
    return _statistic(part, part.specs(differing), paper)


def _statistic(part: Part, specs: Sequence[RunSpec], records: Sequence[Record]) -> effects.BySeed:
    """The same of the runs of any experiment."""
    wanted = set(map(effects.family, specs))
    chosen = [record for record in records if effects.family(record.spec) in wanted]
    found = effects.named(part.statistic, chosen, **(part.options or {}))
    if part.statistic in _OF_A_PART:
        return found
    return {seed: y for seed, y in found.items() if _whole(seed, specs, [record.spec for record in chosen])}


def _whole(seed: int, wanted: Sequence[RunSpec], ran: Sequence[RunSpec]) -> bool:
    """Whether `seed` has every linearized network that is wanted, at as many strengths: half an experiment is none."""

    def strengths(specs: Iterable[RunSpec]) -> dict[RunSpec, set[float]]:
        found: dict[RunSpec, set[float]] = {}
        for spec in specs:
            if spec.omega > 0:
                found.setdefault(effects.family(spec), set()).add(spec.omega)
        return found

    have = strengths(spec for spec in ran if spec.seed == seed)
    return all(len(have.get(network, ())) >= len(omegas) for network, omegas in strengths(wanted).items())


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


@lru_cache(maxsize=4)
def resnet_path_lengths(pixels: int = 32) -> dict[int, tuple[float, float]]:
    """Depth -> (NAPL, APL) of the paper's ResNets (v2, shortcut A), all units active, for square RGB images."""
    import torch

    from nladv_core import nets
    from nladv_core.linearize import linearize
    from nladv_core.paths import path_length

    found = {}
    for depth in _DEPTHS:
        with torch.random.fork_rng(devices=[]):
            net = linearize(nets.build(f"resnet{depth}"), (3, pixels, pixels))
        both = [path_length(net, (3, pixels, pixels), normalized=normalized).mean for normalized in (True, False)]
        found[depth] = (both[0], both[1])
    return found


def _path_lengths(part: Part) -> Outcome:
    lengths = resnet_path_lengths()
    tolerance = float(part.tolerance or math.nan)
    holds = all(
        abs(napl - depth / 2) <= tolerance and depth - tolerance <= apl < depth
        for depth, (napl, apl) in lengths.items()
    )
    told = "; ".join(f"ResNet-{depth} {napl:.4g} and {apl:.6g}" for depth, (napl, apl) in lengths.items())
    return Outcome("reproduced" if holds else "differs", f"NAPL and APL: {told}")


def _plural(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"
