"""The paper's claims and what the committed records say of them: `data/claims.toml`, read, checked and judged.

A claim has one primary part, whose statistic and criterion stood in the ledger before the runs; the others are
secondary and turn no verdict. A verdict rests on the records in `data/results/paper`; those in `data/results/reduced`
give a direction, by the same statistic. A run counts if it is one of the part's experiment, with the strengths and
seeds that are fixed there; whatever else lies in the folder does not.
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

from nladv_core import controls, effects, experiments, intervals, outcomes, values
from nladv_core.controls import Measured
from nladv_core.errors import SpecError
from nladv_core.intervals import Estimate
from nladv_core.places import project_root
from nladv_core.specs import RunSpec
from nladv_core.store import Record

SIZES = ("paper", "reduced")  # tiers whose records are committed
SEEDS = 3  # fewer repetitions are not judged
# Points that the control may end above its parent, in the mean: more, and the parent was not on its plateau.
PLATEAU = 0.5

# Every word that a part can come to, by the size of its runs, the most favourable first: the one table of them.
WORDS: Mapping[str, Mapping[str, str]] = {
    "paper": {
        "exceeds": "The 95 % interval lies wholly above the paper's number and its tolerance.",
        "reproduced": (
            "The interval lies wholly where the claim says: on its side of zero or of the bound (95 %), or within the "
            "margin of equality (90 %). Of a number of the paper: the mean lies within its tolerance, and the 95 % "
            "interval within twice the tolerance."
        ),
        "inconclusive": "Neither: the repetitions do not settle it, or too many of them say nothing.",
        "differs": "The interval lies wholly on the other side, or wholly outside the margin.",
        "too few seeds": f"Fewer than {SEEDS} repetitions; their values are told.",
        "not run": "No repetition is complete.",
    },
    "reduced": {
        "same direction": "What would be *exceeds* or *reproduced*, were the runs of the paper's size.",
        "undecided": f"Neither, or fewer than {SEEDS} repetitions.",
        "opposite": "What would be *differs*.",
        "nothing yet": "No repetition is complete, or what there is cannot be used; then it says why.",
    },
}
VERDICTS, DIRECTIONS = tuple(WORDS["paper"]), tuple(WORDS["reduced"])
_DIRECTION_OF = {"exceeds": "same direction", "reproduced": "same direction", "differs": "opposite"}
_DIRECTION_OF |= {"inconclusive": "undecided", "too few seeds": "undecided", "not run": "nothing yet"}

# What is written as 0.5 away must not fail, and what is 0 must not be told from 0, for the last digit of a sum.
_ROUNDING = 1e-9
_APART = ("path lengths", "sharpness")  # statistics that need no runs
_CRITERIA = ("value", "at_least", "at_most", "direction", "within")
_DEPTHS = (20, 32, 44, 56)


@lru_cache(maxsize=512)
def _specs(chapter: str, parameters: str) -> tuple[RunSpec, ...]:
    """The runs of a chapter, its parameters as JSON: several parts ask for the same."""
    return tuple(experiments.chapter(chapter, json.loads(parameters)).specs())


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question that records can answer.

    Attributes:
        name: what it is about; never a network or a size, which come from the records.
        primary: whether it decides on the claim.
        statistic: a name in `outcomes.STATISTICS`; `"path lengths"`: C14's, computed now; `"sharpness"`: C10's, from
            the committed pictures (`features.verdict`).
        experiment: `chapter` and parameters of it. Its runs are those of the chapter at the tier, with what they
            descend from and their controls; no other strength or seed counts.
        minus: parameters that differ in a second experiment that shares nothing with the first; its statistic is
            subtracted, the interval is Welch's.
        also: further experiments whose runs are pooled with those of the first.
        options: what the statistic takes.
        reduced, reduced_options: parameters and options that differ at the tier "reduced".
        paper_only: it is not asked at reduced size, as its bound is of the paper's network.
        value, tolerance: the paper's number, and how far the mean may lie from it.
        at_least, at_most: a bound that the whole 95 % interval must keep.
        within: a margin on either side of zero, that of an equality: for the whole 90 % interval.
        direction: of the 95 % interval from zero: `"higher"`, `"lower"` or `"any"`.
    """

    name: str
    statistic: str
    primary: bool = False
    experiment: dict | None = None
    minus: dict | None = None
    also: tuple[dict, ...] = ()
    options: dict | None = None
    reduced: dict | None = None
    reduced_options: dict | None = None
    paper_only: bool = False
    value: float | None = None
    tolerance: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None
    direction: str | None = None

    def __post_init__(self) -> None:
        values.canonical(self, "part")
        free = {"name", "statistic", "primary", "paper_only"}
        given = {f.name for f in fields(self) if getattr(self, f.name) not in (None, ())} - free
        if self.statistic in _APART:
            needed = {"tolerance"} if self.statistic == "path lengths" else {"options"}
            if given - {"reduced_options"} != needed:
                raise SpecError(
                    f"part {self.name!r}: found {', '.join(sorted(given)) or 'nothing'}, but statistic "
                    f"{self.statistic!r} takes exactly {', '.join(sorted(needed))}"
                )
        else:
            self._check_experiment(given)
        if self.direction not in (None, "higher", "lower", "any"):
            raise SpecError(f"part {self.name!r}: direction is {self.direction!r}, expected higher, lower or any")
        for name in ("tolerance", "within"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise SpecError(f"part {self.name!r}: {name} is {bound:g}, expected above 0")

    def _check_experiment(self, given: set[str]) -> None:
        sizes = SIZES[:1] if self.paper_only else SIZES
        for tier in sizes:
            outcomes.check(self.statistic, self.of(tier))
        criteria = given & set(_CRITERIA)
        if len(criteria) != 1 or ("tolerance" in given) != ("value" in given):
            told = ", ".join(sorted(criteria | given & {"tolerance"})) or "no criterion"
            raise SpecError(
                f"part {self.name!r}: found {told}, but it takes exactly one of {', '.join(_CRITERIA)} "
                "(a value with its tolerance)"
            )
        if self.paper_only and given & {"reduced", "reduced_options"}:
            raise SpecError(f"part {self.name!r}: it is not asked at reduced size; leave out reduced, or paper_only")
        for tier in sizes:
            first = self.specs(tier)
            if self.minus is not None and set(first) == set(self.specs(tier, self.minus)):
                raise SpecError(f"part {self.name!r}: minus has the same runs; name a parameter that makes others")

    def of(self, tier: str) -> dict[str, Any]:
        """Options of the statistic at a tier."""
        return dict(self.options or {}) | dict((self.reduced_options or {}) if tier == "reduced" else {})

    def specs(self, tier: str = "paper", differing: Mapping[str, Any] | None = None) -> list[RunSpec]:
        """The runs of the experiments at a tier, with other parameters where `differing` says so.

        Raises:
            SpecError: no chapter is named, or it has no runs, or it refuses a parameter.
        """
        found: dict[RunSpec, None] = {}
        for experiment in (self.experiment or {}, *self.also):
            given = dict(experiment) | dict((self.reduced or {}) if tier == "reduced" else {}) | dict(differing or {})
            named = given.pop("chapter", None)
            if not isinstance(named, str):
                raise SpecError(f"part {self.name!r}: its experiment names no chapter; add chapter and its parameters")
            fixed = {"tier": tier, "device": "cpu"}
            if taken := set(fixed) & set(given):
                raise SpecError(
                    f"part {self.name!r}: {', '.join(sorted(taken))} cannot be chosen; a verdict rests on paper"
                )
            specs = _specs(named, values.text(given | fixed))
            if not specs:
                raise SpecError(f"part {self.name!r}: chapter {named} has no runs that could be judged; name another")
            found |= dict.fromkeys(specs)
        return list(found)

    @property
    def rule(self) -> str:
        """Its criterion in words."""
        if self.direction is not None:
            side = {"higher": "above zero", "lower": "below zero", "any": "apart from zero"}[self.direction]
            return f"{side} (95 % interval)"
        if self.within is not None:
            return f"equal within {self.within:g} (90 % interval)"
        if self.value is not None and self.tolerance is not None:
            return f"{self.value:g} ± {self.tolerance:g} (95 % interval within ± {2 * self.tolerance:g})"
        if self.at_least is not None:
            return f"at least {self.at_least:g} (95 % interval)"
        return f"at most {self.at_most:g} (95 % interval)" if self.at_most is not None else "as the claim's rule says"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id, section, title, claim: where the paper says what, in our words.
        paper: its numbers.
        rule: how the primary part is judged, in words.
        parts: the same for the machine; one of them is primary.
        chapter: the chapter that shows it, or None.
    """

    id: str
    section: str
    title: str
    claim: str
    paper: str
    rule: str
    parts: tuple[Part, ...]
    chapter: str | None = None

    def __post_init__(self) -> None:
        values.canonical(self, f"claim {self.id}")
        primary = [part.name for part in self.parts if part.primary]
        if len(primary) != 1:
            raise SpecError(
                f"claim {self.id}: has {len(primary)} primary parts, expected one [[claim.part]] with primary = true"
            )
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise SpecError(f"claim {self.id}: two parts have one name; tell them apart")

    @property
    def primary(self) -> int:
        """Which of its parts decides."""
        return next(i for i, part in enumerate(self.parts) if part.primary)


@dataclass(frozen=True)
class Outcome:
    """What the records of one size say of one part.

    Attributes:
        word: one of `WORDS` for that size.
        note: the numbers it rests on, or why there are none.
        n: independent repetitions with a number; 0 where nothing was run or repetition means nothing.
        ran: networks, data, epochs and images, from the records; "" where nothing was run.
        estimate: mean and standard error; None without a number.
    """

    word: str
    note: str
    n: int = 0
    ran: str = ""
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Judgement:
    """What the records say of one claim, part by part.

    Attributes:
        claim: it.
        paper: outcomes of its parts at the paper's size.
        reduced: the same at reduced size; None for what is not asked there.
    """

    claim: Claim
    paper: tuple[Outcome, ...]
    reduced: tuple[Outcome | None, ...]

    @property
    def verdict(self) -> str:
        """That of the primary part, one of `VERDICTS`."""
        return self.paper[self.claim.primary].word

    @property
    def direction(self) -> str | None:
        """That of the primary part at reduced size, one of `DIRECTIONS`; None if it is not asked there."""
        found = self.reduced[self.claim.primary]
        return None if found is None else found.word


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
    """Every claim with its verdict from `results/paper` and its direction from `results/reduced`.

    Args:
        claims: default: the ledger.
        results: folder of committed records, default `data/results` of the project; it may be missing.

    Raises:
        RecordError: a committed record is damaged. A verdict that silently leaves one out would be none.
    """
    from nladv_core import features  # not above: it needs what draws, and the ledger is read without

    results = results or project_root() / "data" / "results"
    found = {tier: records(results / tier) for tier in SIZES}
    pictures = {tier: features.committed(tier, results) for tier in SIZES}
    judged = []
    for claim in read() if claims is None else claims:
        by_tier = {
            tier: tuple(outcome(part, found[tier], tier=tier, pictures=pictures[tier]) for part in claim.parts)
            for tier in SIZES
        }
        asked = [not part.paper_only and part.statistic != "path lengths" for part in claim.parts]
        reduced = tuple(one if yes else None for one, yes in zip(by_tier["reduced"], asked, strict=True))
        judged.append(Judgement(claim, by_tier["paper"], reduced))
    return judged


def records(folder: Path) -> list[Record]:
    """The records of a folder by name of file; none if it is missing.

    Raises:
        RecordError: one of them is damaged or foreign.
    """
    return [Record.read(path) for path in sorted(folder.glob("*.json"))]


def outcome(part: Part, found: Sequence[Record], *, tier: str = "paper", pictures: Sequence[Any] = ()) -> Outcome:
    """Apply the rule of one part to the records of a tier, C10's to pictures of that tier."""
    if part.statistic == "path lengths":
        return _path_lengths(part)
    if part.paper_only and tier == "reduced":
        return Outcome("nothing yet", "not asked at reduced size")
    if part.statistic == "sharpness":
        from nladv_core import features

        verdict, note, n = features.verdict(pictures, **part.of(tier))
        word = verdict if tier == "paper" else _DIRECTION_OF[verdict]
        if tier == "reduced" and 0 < n < SEEDS:  # its channels are many, but it is one network
            word = "undecided"
        return Outcome(word, note, n)
    made = _outcome(part, found, tier)
    return made if tier == "paper" else replace(made, word=_DIRECTION_OF[made.word])


def _outcome(part: Part, found: Sequence[Record], tier: str) -> Outcome:
    sides = [_side(part, found, tier, None)]
    if part.minus is not None:
        sides.append(_side(part, found, tier, part.minus))
    ran = what_ran([record for side in sides for record in side.records])
    if left_out := sorted({name for side in sides for name in side.left_out}):
        left = f"{', '.join(left_out)} left out: their NAPL is on another axis"
        if not all(side.records for side in sides):
            return Outcome("not run", left)
    else:
        left = ""
    units = min(len(side.measured.numbers) for side in sides)
    if not units:
        here, wanted = (sum(getattr(side, name) for side in sides) for name in ("here", "wanted"))
        told = f"{here} of {wanted} runs, no repetition complete" if here else "no record"
        return Outcome("not run", _joined(told, left))
    if tier == "reduced" and (told := _off_plateau(sides)):
        return Outcome("not run", told, ran=ran)
    estimates = [side.measured.estimate for side in sides]
    silent = _silent([side.measured for side in sides])
    first, last = estimates[0], estimates[-1]
    if first is None or last is None:
        return Outcome("inconclusive" if units >= SEEDS else "too few seeds", _joined("no value", silent), 0, ran)
    estimate = first if len(estimates) == 1 else intervals.apart(first, last)
    n = min(len(side.measured.found) for side in sides)
    if n < SEEDS:
        told = " against ".join(", ".join(f"{y:.3g}" for y in side.measured.found.values()) for side in sides)
        word = "too few seeds" if units < SEEDS else "inconclusive"
        return Outcome(word, _joined(f"values {told}", silent), n, ran, estimate)
    word, told = weigh(part, estimate)
    return Outcome(word, _joined(told, silent), n, ran, estimate)


def _joined(*told: str) -> str:
    return "; ".join(one for one in told if one)


@dataclass(frozen=True)
class _Side:
    """One experiment of a part: what its complete repetitions say, their records, all there are and are to be."""

    measured: Measured
    records: list[Record]
    family: list[Record]
    here: int
    wanted: int
    left_out: set[str]


def _side(part: Part, found: Sequence[Record], tier: str, differing: Mapping[str, Any] | None) -> _Side:
    """The statistic over the complete repetitions of one experiment."""
    statistic, options = outcomes.STATISTICS[part.statistic], part.of(tier)
    specs = part.specs(tier, differing)
    family = {run.key() for spec in specs for run in (*spec.lineage, *_controls(spec))}
    own = {record.key: record for record in found if record.key in family}
    axis = {record.spec.origin or record.spec.net for record in own.values() if statistic.napl and _v1(record.spec)}

    def repetition(spec: RunSpec) -> tuple[int, str]:
        return controls.unit_of(spec), controls.architecture(spec) if statistic.by_architecture else ""

    wanted: dict[tuple[int, str], set[str]] = {}
    for spec in specs:
        if outcomes.needed(part.statistic, options, spec) and not (statistic.napl and _v1(spec)):
            wanted.setdefault(repetition(spec), set()).update(run.key() for run in (spec, *_controls(spec)))
    whole = {which for which, keys in wanted.items() if keys <= set(own)}
    # What else has been run of a complete repetition comes along: further kinds of masks help with the residuals.
    complete = [record for record in own.values() if repetition(record.spec) in whole]
    every = set().union(*wanted.values())
    measured = statistic.measure(complete, **options)
    return _Side(measured, complete, list(own.values()), len(every & set(own)), len(every), axis)


def _v1(spec: RunSpec) -> bool:
    return spec.net.endswith("v1")


def _controls(spec: RunSpec) -> list[RunSpec]:
    return [spec.control] if spec.omega > 0 else []


def weigh(part: Part, estimate: Estimate) -> tuple[str, str]:
    """The verdict of a part's criterion on an estimate from enough repetitions, and its numbers."""
    level = 0.90 if part.within is not None else 0.95
    low, high = estimate.interval(level)
    note = f"{estimate.mean:.3g} ({level:.0%} interval {low:.3g} to {high:.3g})".replace("%", " %")
    if part.value is not None and part.tolerance is not None:
        note = f"{estimate.mean:.2f} (95 % interval {low:.2f} to {high:.2f})"
        tolerance = part.tolerance + _ROUNDING
        if low > part.value + tolerance:
            return "exceeds", note
        if high < part.value - tolerance:
            return "differs", note
        twice = part.value - 2 * tolerance <= low and high <= part.value + 2 * tolerance
        near = abs(estimate.mean - part.value) <= tolerance
        return ("reproduced" if near and twice else "inconclusive"), note
    if part.direction is not None:
        if low > _ROUNDING or high < -_ROUNDING:
            side = "higher" if low > 0 else "lower"
            return ("reproduced" if part.direction in (side, "any") else "differs"), note
        return "inconclusive", note
    floor = part.at_least if part.at_least is not None else -math.inf
    ceiling = part.at_most if part.at_most is not None else math.inf
    if part.within is not None:
        floor, ceiling = -part.within, part.within
    if floor < low and high < ceiling:
        return "reproduced", note
    return ("differs" if high < floor or low > ceiling else "inconclusive"), note


def _silent(found: Sequence[Measured]) -> str:
    """Why some repetitions say nothing."""
    told: dict[str, list[str]] = {}
    for measured in found:
        for unit, why in measured.why.items():
            told.setdefault(why, []).append(str(unit))
    names = {why: list(dict.fromkeys(units)) for why, units in told.items()}
    each = [f"{', '.join(units[:4])}{', ...' * (len(units) > 4)}: {why}" for why, units in names.items()]
    return "without a value " + "; ".join(each[:3]) + ("; ..." if len(each) > 3 else "") if each else ""


def _off_plateau(sides: Sequence[_Side]) -> str:
    """Why the parents of complete repetitions were not trained to their end, "" if they were.

    Of each network, those that were trained longest: chapter 04 starts from others as well, on purpose.
    """
    by_key = {record.key: record for side in sides for record in side.family}
    networks: dict[tuple[str, str], list[RunSpec]] = {}
    for record in effects.linearized(record for side in sides for record in side.records):
        parent = record.spec.parent
        if parent is not None:
            networks.setdefault((controls.architecture(record.spec), record.spec.data), []).append(record.spec)
    told = []
    for (name, data), specs in sorted(networks.items()):
        longest = max(spec.parent.recipe.epochs for spec in specs if spec.parent is not None)
        gains: dict[tuple[str, str], float | None] = {}
        for spec in specs:
            if spec.parent is not None and spec.parent.recipe.epochs == longest:
                pair = spec.parent.key(), spec.control.key()
                both = [by_key[key] for key in pair if key in by_key]
                accuracy = [effects.value(record, "test_accuracy") for record in both]
                gains[pair] = accuracy[1] - accuracy[0] if len(accuracy) == 2 else None
        there = [gain for gain in gains.values() if gain is not None]
        if len(there) < len(gains):
            told.append(f"{name} on {data}: a parent or control is not committed")
        elif (gain := sum(there) / len(there)) > PLATEAU:
            told.append(f"{name} on {data}: more training alone gained {gain:.1f} points")
    return f"not used, its parents were not on their plateau ({'; '.join(told)})" if told else ""


def what_ran(found: Iterable[Record]) -> str:
    """Networks, data, epochs and images of linearized runs in words, from their specifications; "" for none."""
    specs = [record.spec for record in effects.linearized(found)]
    if not specs:
        return ""
    nets = ", ".join(dict.fromkeys(map(controls.architecture, sorted(specs, key=_depth_and_width))))
    data = " and ".join(sorted({spec.data for spec in specs}))
    before = sorted({spec.parent.recipe.epochs if spec.parent else 0 for spec in specs})
    after = sorted({spec.recipe.epochs for spec in specs})
    both = [_range(epochs) for epochs in (before, after)]
    published = all(spec.parent is not None and spec.parent.published is not None for spec in specs)
    epochs = both[1] if before == [0] else " + ".join(both)
    images = _range(sorted({spec.trained_on for spec in specs}), "{:,}")
    what = "pairs" if all(spec.data in ("multi30k", "number-words") for spec in specs) else "images"
    told = f"{nets} on {data}, {epochs} epochs{' after its publication' * published}, {images} {what}"
    return told


def _range(found: Sequence[int], form: str = "{}") -> str:
    ends = [form.format(one) for one in dict.fromkeys((found[0], found[-1]))]
    return " to ".join(ends)


def _depth_and_width(spec: RunSpec) -> tuple[str, int, float]:
    digits = "".join(filter(str.isdigit, spec.net))
    return spec.net.rstrip("0123456789"), int(digits or 0), spec.width


def chance(judged: Sequence[Judgement], tier: str = "reduced") -> tuple[int, int, float, float]:
    """How many primary parts have a direction that chance could have given, and how many it alone would give.

    Returns:
        Primary parts with enough repetitions; how many of them came out as the claim says; how many chance alone gives
        in the mean (2.5 % each), and the probability that it gives at least one.
    """
    primaries = [(one.paper if tier == "paper" else one.reduced)[one.claim.primary] for one in judged]
    decidable = [found for found in primaries if found is not None and found.n >= SEEDS and found.estimate is not None]
    held = sum(_DIRECTION_OF.get(found.word, found.word) == "same direction" for found in decidable)
    return len(decidable), held, *intervals.by_chance(len(decidable))


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
