"""What several seeds say together: means with their spread, and two families of networks compared at equal NAPL.

Every statement rests on the seeds as the independent repetitions: a spread is the standard deviation over them, and a
difference counts only if its 95 % t-interval over them leaves out zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nladv_core import intervals
from nladv_core.errors import RecordError
from nladv_core.values import changed

if TYPE_CHECKING:
    import pandas as pd

    from nladv_core.store import Record, Store


def spread(frame: pd.DataFrame, by: str | Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds, one row a group.

    Args:
        frame: one row a run, as `Store.frame` returns it; no seed may occur twice in a group.
        by: column or columns that name a group.
        values: columns to summarise.

    Returns:
        The columns of `by`, `seeds` (how many), and for each value `<value>` (mean) and `<value>_sd` (with n - 1 in the
        denominator; NaN for a single seed).

    Raises:
        RecordError: the frame is empty, lacks a column, or mixes runs that `by` does not tell apart.
    """
    import pandas as pd

    by = [by] if isinstance(by, str) else list(by)
    require(frame, [*by, "seed", *values])
    groups = frame.groupby(by, sort=True)
    if (groups["seed"].nunique() != groups.size()).any():
        raise RecordError(f"some seed occurs twice for the same {', '.join(by)}; pass only runs of one experiment")
    found: dict[str, Any] = {"seeds": groups.size()}
    for value in values:
        found |= {value: groups[value].mean(), f"{value}_sd": groups[value].std(ddof=1)}
    return pd.DataFrame(found).reset_index()


def require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a frame that has no rows or lacks a column.

    Raises:
        RecordError: with what is missing and what to do.
    """
    if len(frame) == 0:
        raise RecordError("found no finished runs to summarise or draw; compute them first with `nladv run`")
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        found = ", ".join(map(str, frame.columns))
        raise RecordError(f"the runs lack {', '.join(lacking)}, found {found}; pass what Store.frame() returns")


@dataclass(frozen=True)
class Difference:
    """An effect: its mean over seeds and the 95 % t-interval, in points of accuracy or what `unit` names."""

    mean: float
    low: float
    high: float
    seeds: int
    unit: str = "points"

    @property
    def verdict(self) -> str:
        """`"higher"`, `"lower"`, `"no clear difference"` (zero lies in the interval) or `"too few seeds"` (below 3)."""
        if self.seeds < 3:
            return "too few seeds"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no clear difference"

    def __str__(self) -> str:
        # Accuracies of thousands of images are known to a tenth of a point; other measures have scales of their own.
        mean, low, high = (
            f"{value:+.1f}" if self.unit == "points" else f"{value:+.3g}" for value in (self.mean, self.low, self.high)
        )
        interval = f", 95 % interval {low} to {high}" if self.seeds > 1 else ""
        return f"{f'{mean} {self.unit}'.strip()}{interval}, {self.seeds} seed{'s' * (self.seeds != 1)}"


def difference(values: Sequence[float], *, unit: str = "points") -> Difference:
    """Mean and 95 % t-interval of paired differences, one per seed.

    Args:
        values: in points of accuracy (0 to 100), or in `unit`.
        unit: what they are told in; "" where there is none, as of path lengths.

    Raises:
        RecordError: no values.
    """
    if len(values) == 0:
        raise RecordError("found no seed for which both networks ran; compute the missing runs with `nladv run`")
    found = intervals.mean(values)
    low, high = found.interval()
    return Difference(mean=found.mean, low=low, high=high, seeds=found.n, unit=unit)


@dataclass(frozen=True)
class EqualNapl:
    """Accuracy of one family minus that of another at equal NAPL, by seed.

    Attributes:
        napl: the NAPLs compared, [K], increasing; every seed of both families reaches all of them.
        by_seed: difference in points, [seeds, K].
        first, second: what was compared.
    """

    napl: np.ndarray
    by_seed: np.ndarray
    first: str
    second: str

    def over(self, low: float = -math.inf, high: float = math.inf) -> Difference:
        """The difference averaged over NAPLs in [low, high], then over seeds.

        Raises:
            RecordError: no compared NAPL lies there.
        """
        inside = (self.napl >= low) & (self.napl <= high)
        if not inside.any():
            raise RecordError(
                f"no NAPL between {low:g} and {high:g} was compared, expected one within "
                f"{self.napl[0]:.2f} to {self.napl[-1]:.2f}"
            )
        return difference(self.by_seed[:, inside].mean(axis=1))

    @property
    def middle(self) -> float:
        """The NAPL that halves the compared range."""
        return float((self.napl[0] + self.napl[-1]) / 2)


def at_equal_napl(
    frame: pd.DataFrame, column: str = "granularity", first: str = "channel", second: str = "layer", points: int = 41
) -> EqualNapl | None:
    """Compare two families of runs where their NAPLs overlap, seed by seed.

    Within a seed, accuracy between two neighbouring NAPLs is interpolated linearly; nothing is extrapolated.

    Args:
        frame: one row a run, with `column`, seed, napl and test_accuracy (a share).
        column: which column tells the families apart.
        first, second: its two values; the result is first minus second.
        points: how many equally spaced NAPLs.

    Returns:
        The comparison, or None if no range of NAPLs is reached by every seed of both families.

    Raises:
        RecordError: the frame is empty or lacks a column.
    """
    require(frame, [column, "seed", "napl", "test_accuracy"])
    curves: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    groups: Any = frame[frame[column].isin([first, second])].groupby([column, "seed"])
    for (family, seed), runs in groups:
        # Two runs of equal NAPL have no order: their mean stands for both.
        curve = runs.groupby("napl")["test_accuracy"].mean().sort_index()
        curves[str(family), int(seed)] = (curve.index.to_numpy(float), curve.to_numpy(float))
    seeds = sorted({seed for _, seed in curves if (first, seed) in curves and (second, seed) in curves})
    both = [curves[family, seed][0] for seed in seeds for family in (first, second)]
    low = max((napl[0] for napl in both), default=math.inf)
    high = min((napl[-1] for napl in both), default=-math.inf)
    if not low < high:
        return None
    grid = np.linspace(low, high, points)
    by_seed = [100 * (np.interp(grid, *curves[first, s]) - np.interp(grid, *curves[second, s])) for s in seeds]
    return EqualNapl(napl=grid, by_seed=np.array(by_seed), first=first, second=second)


def settled_slope(omega: float, p: float, wanted: float = 0.3, stiffness: float = 1.0) -> float:
    """Where a single slope comes to rest between a task that wants it at `wanted` and the penalty that wants it at 1.

    The slope in [0, 1] that minimises `stiffness / 2 · (α - wanted)² + omega · |1 - α|^p`, from a grid of 1/1000: a toy
    with one parameter, in which exponents can be compared without training.
    """
    slopes = np.linspace(0, 1, 1001)
    loss = stiffness / 2 * (slopes - wanted) ** 2 + omega * (1 - slopes) ** p
    return float(slopes[loss.argmin()])


def table(frame: pd.DataFrame, parents: pd.DataFrame) -> Any:
    """Mean ± standard deviation over seeds for each granularity and ω, parents first, as a styled pandas table.

    Args:
        frame: linearized runs, one row each.
        parents: the runs they started from.

    Raises:
        RecordError: either is empty or lacks a column.
    """
    import pandas as pd

    values = ["test_accuracy", "napl", "active_fraction", "enw"]
    means = pd.concat(
        [
            spread(parents.assign(granularity="parent"), ["granularity"], values),
            spread(frame, ["granularity", "omega"], values),
        ],
        ignore_index=True,
    )

    rows = [
        {
            "slope per": row["granularity"],
            "ω": "" if math.isnan(row["omega"]) else f"{row['omega']:g}",
            "accuracy, %": _cell(row, "test_accuracy", 100, 1),
            "NAPL": _cell(row, "napl", 1, 2),
            "active, %": _cell(row, "active_fraction", 100, 1),
            "ENW": _cell(row, "enw", 1, 1),
            "seeds": row["seeds"],
        }
        for _, row in means.iterrows()
    ]
    return styled(rows)


def _cell(row: Any, value: str, scale: float, digits: int) -> str:
    mean, sd = scale * row[value], scale * row[f"{value}_sd"]
    return f"{mean:.{digits}f}" if math.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def styled(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> Any:
    """Rows of a table, column name to cell, as a pandas table in the book's style; sentences in it wrap."""
    import pandas as pd

    spaced: Any = [{"selector": "th, td", "props": "padding: 0.2rem 0.5rem; text-align: right; white-space: nowrap"}]
    table = pd.DataFrame(rows).style.hide(axis="index").set_table_styles(spaced)
    table = table.map(lambda cell: "white-space: normal !important; min-width: 11rem" if len(str(cell)) > 24 else "")
    return table.set_table_attributes('class="dataframe"')


def with_inverse_share(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with an active unit, and a column `inverse`: one over their active share (§4.3.1).

    Raises:
        RecordError: no run has an active unit.
    """
    require(frame, ["active_fraction"])
    some = frame[frame["active_fraction"] > 0]
    if not len(some):
        raise RecordError("no network has an active unit left, so the active share has no inverse; lower omega")
    return some.assign(inverse=1 / some["active_fraction"])


def with_depth(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column `depth`, from the name of their network (`effects.depth_in`)."""
    from nladv_core.effects import depth_in

    require(frame, ["net"])
    return frame.assign(depth=[depth_in(net) for net in frame["net"]])


def with_task(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column `task`: the data set, of digits with their difficulty."""
    require(frame, ["data", "difficulty"])
    names = [
        f"{data}, difficulty {difficulty:g}" if data == "digits" else data
        for data, difficulty in zip(frame["data"], frame["difficulty"], strict=True)
    ]
    return frame.assign(task=names)


def tasks(parents: pd.DataFrame) -> Any:
    """Accuracy and NAPL of the networks before linearization, task by task, as a styled pandas table."""
    means = spread(parents, ["task"], ["test_accuracy", "napl"])
    rows = [
        {
            "task": row["task"],
            "accuracy, %": _cell(row, "test_accuracy", 100, 1),
            "NAPL": _cell(row, "napl", 1, 2),
            "seeds": row["seeds"],
        }
        for _, row in means.iterrows()
    ]
    return styled(rows)


def committed(chapter: Any) -> pd.DataFrame:
    """The committed records of a chapter's runs at its tier, one row each; empty if nothing was run.

    Only `data/results/<tier>` counts, never what lies in somebody's cache.
    """
    return _results(chapter.tier).frame(chapter.specs())


def committed_records(chapter: Any) -> list[Record]:
    """The same as whole records, for what a row does not hold: active units layer by layer, epoch by epoch."""
    return _results(chapter.tier).records(chapter.specs())


def committed_editions(kind: Any, tiers: Sequence[str] = ("reduced", "paper")) -> Iterator[tuple[Any, pd.DataFrame]]:
    """What a chapter shows of larger runs: each edition of each tier with its committed records, the first tier first.

    Args:
        kind: the class of a chapter, such as `experiments.Structure`.
        tiers: whose editions.

    Yields:
        The chapter's parameters, and `committed` of them: empty for what was not run, and for what was run in part
        the runs that are there.
    """
    for tier in tiers:
        for edition in kind.editions(tier):
            yield edition, committed(edition)


def parents_and_runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The networks before linearization and those linearized to the end; both empty if one of them is missing.

    Controls are neither, nor are runs that stop at a goal: these are no points of a curve over strengths.
    """
    if not len(frame):
        return frame, frame
    before, after = frame[frame["role"] == "parent"], frame[(frame["role"] == "linearized") & frame["goal"].isna()]
    return (before, after) if len(before) and len(after) else (frame.iloc[:0], frame.iloc[:0])


def edition_title(edition: Any) -> str:
    """What sets an edition of a chapter apart, in a phrase: its tier and the parameters that are not the defaults."""
    told = [str(edition.tier)]
    for name, value in changed(edition).items():
        if name not in ("tier", "device"):
            listed = value if isinstance(value, (list, tuple)) else [value]
            told.append(f"{name} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in listed)}")
    return "; ".join(told)


def _results(tier: str) -> Store:
    from nladv_core.places import project_root
    from nladv_core.store import Store

    results = project_root() / "data" / "results"
    # As a folder beside the live one: committed records come without weights, which a live folder must have.
    return Store(results / ".live", also=(results / tier,))
