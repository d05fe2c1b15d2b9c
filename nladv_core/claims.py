"""The paper's claims and what the committed records say of them: `data/claims.toml`, read, checked and judged.

A verdict follows from a rule that stood in the ledger before the runs; it rests on the records in `data/results/paper`
and on nothing else. What `data/results/reduced` holds is shown beside it as evidence at reduced size and never judged.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nladv_core import values
from nladv_core.errors import SpecError
from nladv_core.places import project_root
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Record
from nladv_core.summaries import difference

# Of several parts, the first of these that occurs is the verdict on the whole; "exceeds" only if all parts do.
VERDICTS = ("differs", "not run", "too few seeds", "inconclusive", "reproduced", "exceeds")
STATISTICS = ("at", "difference", "path lengths", "unwritten")
SEEDS = 3  # fewer are not judged

_COLUMNS = {"test_accuracy": 100.0, "active_fraction": 100.0, "napl": 1.0}  # and what turns them into percent
_AXES = ("napl", "omega")
_DEPTHS = (20, 32, 44, 56)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question that records can answer.

    Attributes:
        name: what it is about.
        statistic: `"at"`: `column` where `axis` is `at`; `"difference"`: the same for `runs` minus `minus`;
            `"path lengths"`: C14's, computed now; `"unwritten"`: its experiment does not exist yet.
        runs, minus: fields of `RunSpec` with `recipe` and `parent` as names of recipes; what is left out has its
            default, but seed and omega, which are free.
        axis, at, column: `"napl"` or `"omega"`, where on it, and a metric of the final epoch.
        value, tolerance: the paper's number, and how far the mean may lie from it.
        at_least: a bound in place of a number.
        direction: of a difference: `"higher"`, `"lower"` or `"any"`.
    """

    name: str
    statistic: str
    runs: dict | None = None
    minus: dict | None = None
    axis: str | None = None
    at: float | None = None
    column: str | None = None
    value: float | None = None
    tolerance: float | None = None
    at_least: float | None = None
    direction: str | None = None

    def __post_init__(self) -> None:
        values.canonical(self, "part")
        if self.statistic not in STATISTICS:
            raise SpecError(f"part {self.name!r}: statistic is {self.statistic!r}, expected one of {STATISTICS}")
        needed = {
            "at": {"runs", "axis", "at", "column"},
            "difference": {"runs", "minus", "axis", "at", "column", "direction"},
            "path lengths": {"tolerance"},
            "unwritten": set(),
        }[self.statistic]
        given = {f.name for f in fields(self) if getattr(self, f.name) is not None} - {"name", "statistic"}
        if self.statistic == "at":
            needed |= {"value", "tolerance"} if "value" in given else {"at_least"}
        if given != needed:
            raise SpecError(
                f"part {self.name!r}: found {', '.join(sorted(given)) or 'nothing'}, but statistic "
                f"{self.statistic!r} takes exactly {', '.join(sorted(needed)) or 'nothing'}"
            )
        for name, known in (("axis", _AXES), ("column", tuple(_COLUMNS)), ("direction", ("higher", "lower", "any"))):
            found = getattr(self, name)
            if found is not None and found not in known:
                raise SpecError(f"part {self.name!r}: {name} is {found!r}, expected one of {', '.join(known)}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise SpecError(f"part {self.name!r}: tolerance is {self.tolerance:g}, expected above 0")
        for chosen in (self.runs, self.minus):
            if chosen is not None:
                _template(chosen)


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
    results = results or project_root() / "data" / "results"
    paper, reduced = records(results / "paper"), records(results / "reduced")
    return [
        Judgement(claim, tuple(outcome(part, paper) for part in claim.parts), evidence(claim, reduced))
        for claim in (read() if claims is None else claims)
    ]


def records(folder: Path) -> list[Record]:
    """The records of a folder by name of file; none if it is missing.

    Raises:
        RecordError: one of them is damaged or foreign.
    """
    return [Record.read(path) for path in sorted(folder.glob("*.json"))]


def outcome(part: Part, paper: Sequence[Record]) -> Outcome:
    """Apply the rule of one part to the records of the `paper` tier."""
    if part.statistic == "unwritten":
        return Outcome("not run", "its experiment is not written yet")
    if part.statistic == "path lengths":
        return _path_lengths(part)
    first = _by_seed(part, part.runs or {}, paper)
    second = _by_seed(part, part.minus, paper) if part.minus is not None else None
    ran = set(first) if second is None else set(first) & set(second)
    if not ran:
        return Outcome("not run", "no record" if second is None else "no seed for which both were run")
    found = []
    for seed in sorted(ran):
        y = first[seed] if second is None else _minus(first[seed], second[seed])
        if y is not None:
            found.append(y)
    where = f"{_NAMES[part.axis]} {part.at:g}"
    if len(ran) < SEEDS:
        told = f": {np.mean(found):.2f}" if found else ""
        return Outcome("too few seeds", f"{_plural(len(ran))}{told}, expected at least {SEEDS}", len(ran))
    if len(found) < SEEDS:
        return Outcome("inconclusive", f"the runs of {len(found)} of {len(ran)} seeds reach {where}", len(found))
    verdict, note = _verdict(part, found)
    return Outcome(verdict, f"{note} at {where}, {_plural(len(found))}", len(found))


def evidence(claim: Claim, reduced: Sequence[Record]) -> tuple[str, ...]:
    """What linearized `reduced` runs show at their weakest and strongest penalty, one line a network; no verdict."""
    if claim.reduced is None:
        return ()
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in reduced:
        spec = record.spec
        if spec.linearized and all(getattr(spec, name) == wanted for name, wanted in claim.reduced.items()):
            residual = "" if spec.residual else " without residual connections"
            groups.setdefault((spec.net + residual, spec.data, spec.granularity), []).append(record)
    told = []
    for (net, data, granularity), runs in sorted(groups.items()):
        ends = []
        for omega in (min(r.spec.omega for r in runs), max(r.spec.omega for r in runs)):
            end = [r.metrics for r in runs if r.spec.omega == omega]
            accuracy = 100 * np.mean([m["test_accuracy"] for m in end])
            ends.append(f"{accuracy:.1f} % at NAPL {np.mean([m['napl'] for m in end]):.2f} (ω {omega:g})")
        seeds = len({r.spec.seed for r in runs})
        told.append(f"{net} on {data}, {granularity}-wise: from {ends[0]} to {ends[1]}, {_plural(seeds)}")
    return tuple(told)


def interpolate(axis: Sequence[float], column: Sequence[float], at: float) -> float | None:
    """`column` where the polygon through the points, in their order, has `axis` equal to `at`.

    A polygon that passes there more than once counts with the mean of its crossings; one that never does gives None:
    nothing is extrapolated.
    """
    found = [y for x, y in zip(axis, column, strict=True) if x == at]
    for i in range(len(axis) - 1):
        low, high = axis[i], axis[i + 1]
        if min(low, high) < at < max(low, high):
            share = (at - low) / (high - low)
            found.append(column[i] + share * (column[i + 1] - column[i]))
    return float(np.mean(found)) if found else None


_NAMES = {"napl": "NAPL", "omega": "ω", None: ""}


def _verdict(part: Part, found: Sequence[float]) -> tuple[str, str]:
    """Verdict and numbers for one value a seed."""
    over = difference(found)
    unit = " %" if part.column == "test_accuracy" and part.statistic == "at" else ""
    note = f"{over.mean:.2f}{unit} (95 % interval {over.low:.2f} to {over.high:.2f})"
    if part.statistic == "difference":
        if over.low > 0 or over.high < 0:
            side = "higher" if over.low > 0 else "lower"
            return ("reproduced" if part.direction in (side, "any") else "differs"), note
        return "inconclusive", note
    if part.at_least is not None:
        if over.low > part.at_least:
            return "reproduced", note
        return ("differs" if over.high < part.at_least else "inconclusive"), note
    assert part.value is not None and part.tolerance is not None  # checked when the part was made
    away = over.mean - part.value
    # The paper's numbers have two decimals: what is written as 0.5 away must not fail for a rounding error of 1e-15.
    if abs(away) <= part.tolerance + 1e-9:
        # An interval this wide would have the mean within the tolerance by luck.
        return ("reproduced" if over.high - over.mean <= 2 * part.tolerance + 1e-9 else "inconclusive"), note
    if over.low <= part.value <= over.high:
        return "inconclusive", note
    return ("exceeds" if away > 0 else "differs"), note


def _by_seed(part: Part, chosen: Mapping[str, Any], paper: Sequence[Record]) -> dict[int, float | None]:
    """Seed -> the statistic of its runs, None where they do not reach the place that is asked for."""
    template = _template(chosen)
    curves: dict[int, list[tuple[float, float, float]]] = {}
    for record in paper:
        spec = record.spec
        if spec.parent is None or not spec.omega > 0:
            continue
        if replace(spec, seed=0, omega=1.0, parent=replace(spec.parent, seed=0)) != template:
            continue
        y = record.metrics[str(part.column)] * _COLUMNS[str(part.column)]
        x = spec.omega if part.axis == "omega" else record.metrics[str(part.axis)]
        curves.setdefault(spec.seed, []).append((spec.omega, x, y))
    found: dict[int, float | None] = {}
    for seed, points in curves.items():
        points.sort()
        found[seed] = interpolate([x for _, x, _ in points], [y for _, _, y in points], float(part.at or 0.0))
    return found


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _template(chosen: Mapping[str, Any]) -> RunSpec:
    """The run that a `runs` table describes, with seed 0 and omega 1.

    Raises:
        SpecError: an unknown field, recipe or value.
    """
    given = dict(chosen)
    for name in given:
        if name in ("seed", "omega") or name not in values.hints(RunSpec):
            raise SpecError(f"runs: {name!r} cannot be chosen{values.nearest(name, values.hints(RunSpec))}")
    named = {name: given.pop(name, None) for name in ("recipe", "parent")}
    for name, recipe in named.items():
        if recipe not in RECIPES:
            raise SpecError(f"runs: {name} is {recipe!r}, expected a recipe{values.nearest(str(recipe), RECIPES)}")
    shared = {n: v for n, v in given.items() if n in ("data", "net", "width", "residual", "shortcut", "train", "test")}
    try:
        parent = RunSpec(**shared, recipe=RECIPES[named["parent"]])
        return RunSpec(**given, recipe=RECIPES[named["recipe"]], parent=parent, omega=1.0)
    except TypeError as error:
        raise SpecError(f"runs: {error}") from None


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
