"""What several seeds say together: means with their spread, and two families of networks compared at equal NAPL.

Every statement rests on the seeds as the independent repetitions: a spread is the standard deviation over them, and a
difference counts only if its 95 % t-interval over them leaves out zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nladv_core.errors import RecordError

if TYPE_CHECKING:
    import pandas as pd


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
    """An effect in points of accuracy: its mean over seeds and the 95 % t-interval."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`"higher"`, `"lower"`, `"no clear difference"` (zero lies in the interval) or `"too few seeds"` (below 3)."""
        if self.seeds < 3:
            return "too few seeds"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no clear difference"

    def __str__(self) -> str:
        interval = f", 95 % interval {self.low:+.1f} to {self.high:+.1f}" if self.seeds > 1 else ""
        return f"{self.mean:+.1f} points{interval}, {self.seeds} seed{'s' * (self.seeds != 1)}"


def difference(values: Sequence[float]) -> Difference:
    """Mean and 95 % t-interval of paired differences, one per seed.

    Raises:
        RecordError: no values.
    """
    found = np.asarray(values, dtype=float)
    if found.size == 0:
        raise RecordError("found no seed for which both networks ran; compute the missing runs with `nladv run`")
    half = math.inf
    if found.size > 1:
        half = t_quantile(found.size - 1) * float(found.std(ddof=1)) / math.sqrt(found.size)
    mean = float(found.mean())
    return Difference(mean=mean, low=mean - half, high=mean + half, seeds=int(found.size))


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: half a 95 % interval, in standard errors."""
    from scipy.stats import t  # comes with scikit-learn

    return float(t.ppf(0.975, freedom))


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

    def cell(row: Any, value: str, scale: float, digits: int) -> str:
        mean, sd = scale * row[value], scale * row[f"{value}_sd"]
        return f"{mean:.{digits}f}" if math.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"

    rows = [
        {
            "slope per": row["granularity"],
            "ω": "" if math.isnan(row["omega"]) else f"{row['omega']:g}",
            "accuracy, %": cell(row, "test_accuracy", 100, 1),
            "NAPL": cell(row, "napl", 1, 2),
            "active, %": cell(row, "active_fraction", 100, 1),
            "ENW": cell(row, "enw", 1, 1),
            "seeds": row["seeds"],
        }
        for _, row in means.iterrows()
    ]
    spaced: Any = [{"selector": "th, td", "props": "padding: 0.2rem 0.5rem; text-align: right; white-space: nowrap"}]
    styled = pd.DataFrame(rows).style.hide(axis="index").set_table_styles(spaced)
    return styled.set_table_attributes('class="dataframe"')


def committed(chapter: Any) -> pd.DataFrame:
    """The committed records of a chapter's runs at its tier, one row each; empty if nothing was run.

    Only `data/results/<tier>` counts, never what lies in somebody's cache.
    """
    from nladv_core.places import project_root
    from nladv_core.store import Store

    return Store(project_root() / "data" / "results" / chapter.tier, also=()).frame(chapter.specs())
