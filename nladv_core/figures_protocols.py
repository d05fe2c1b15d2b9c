"""Figures of chapters 03 to 05 and 11: retrained masks, early and late starts, where units stay active.

In the style of `figures`; each function draws whole records, from which it takes its numbers through `effects`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from nladv_core import effects, summaries
from nladv_core.controls import way_of
from nladv_core.effects import BySeed
from nladv_core.errors import RecordError
from nladv_core.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, _new, _stamp, style
from nladv_core.specs import RunSpec
from nladv_core.store import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shares from 0 to 1 as cells, the first row at the bottom.
_CELLS: dict[str, Any] = {"vmin": 0, "vmax": 1, "origin": "lower", "aspect": "auto", "interpolation": "nearest"}
# How masks are carried over to a new network (`RunSpec.masks`), in words.
MASKS = {"exact": "exact masks", "layer": "permuted within layers", "global": "permuted over the network"}
_LOOKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"), (RED, "v", "-"))


# --------------------------------------------------------------------------------------------------- sorting records


def architecture(spec: RunSpec) -> str:
    """A run's network with the paper's letters: S has residual ("short") connections, NS has none."""
    return f"{spec.net} {'S' if spec.residual else 'NS'}" + ("" if spec.width == 1 else f", width × {spec.width:g}")


def by_architecture(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by `architecture`, in their order; where there are several data sets, by these as well."""
    records = list(records)
    several = len({record.spec.data for record in records}) > 1
    found: dict[str, list[Record]] = {}
    for record in records:
        on = f" on {record.spec.data}" if several else ""
        found.setdefault(architecture(record.spec) + on, []).append(record)
    return found


def by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by data set, in their order, digits by difficulty as well."""
    found: dict[str, list[Record]] = {}
    for record in records:
        hard = record.spec.difficulty
        found.setdefault(record.spec.data + ("" if hard is None else f", difficulty {hard:g}"), []).append(record)
    return found


def early_start(starts: Iterable[int]) -> int | None:
    """The start up to which a difference counts as gained early: the paper's epoch 15, if it is one of several starts.

    Otherwise the second start; None if there is no start between the first and the last.
    """
    between = sorted(set(starts))[1:-1]
    return None if not between else 15 if 15 in between else between[0]


def stages(layers: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbouring layers that belong together by the first part of their names.

    Args:
        layers: names of unit groups, such as `"layer1.0.relu1"`, in execution order.

    Returns:
        For each stage its name, its first layer (from 0) and how many layers it has; `layer1` is called "stage 1".
    """
    found: list[tuple[str, int, int]] = []
    for i, name in enumerate(layers):
        head = name.partition(".")[0]
        head = re.sub(r"^(layer|stage)(\d+)$", r"stage \2", head)
        if found and found[-1][0] == head:
            found[-1] = (head, found[-1][1], found[-1][2] + 1)
        else:
            found.append((head, i, 1))
    return found


def mean_shares(records: Sequence[Record]) -> np.ndarray:
    """Mean over runs of the active share by epoch and layer, [epochs + 1, L] in [0, 1]; before the first epoch it is 1.

    Raises:
        RecordError: no run has a penalty, or they differ in layers or epochs.
    """
    found = [effects.history_shares(record) for record in effects.linearized(records)]
    if not found:
        raise RecordError("found no linearized run to draw; compute them first with `nladv run`")
    if len({shares.shape for shares in found}) > 1:
        raise RecordError("the runs differ in layers or epochs, expected those of one experiment; draw them apart")
    mean = np.mean(found, axis=0)
    return np.concatenate([np.ones((1, mean.shape[1])), mean])


# ----------------------------------------------------------------------------------------------------- any statistic


def per_seed(
    rows: Mapping[str, BySeed],
    source: str,
    *,
    label: str,
    reference: float | None = 0.0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A statistic with one number a seed: a row for each family of runs, with its seeds, mean and 95 % t-interval.

    Args:
        rows: name of a row -> seed -> its number, or None where its runs do not reach the place that is asked for.
        source: provenance.
        label: of the axis.
        reference: where a vertical line stands; None: no line.
        limits: of the axis; None: as the seeds need it. An interval that goes beyond is cut off.

    Raises:
        RecordError: no row has a number.
    """
    found = {name: [y for y in by_seed.values() if y is not None] for name, by_seed in rows.items()}
    every = [y for values in found.values() for y in values]
    if not every:
        raise RecordError("found no seed with a number to draw; compute the missing runs with `nladv run`")
    with style():
        figure, axis = _new(height=1.2 + 0.42 * len(rows))
        if reference is not None:
            axis.axvline(reference, color="#444444", linewidth=1)
        _dots(axis, found, [_LOOKS[i % len(_LOOKS)][:2] for i in range(len(found))])
        if limits is None:
            limits = _room([*every, *([] if reference is None else [reference])])
        axis.set(xlabel=label, xlim=limits)
        return _stamp(figure, source)


def _dots(axis: Axes, rows: Mapping[str, Sequence[float]], looks: Sequence[tuple[str, str]]) -> None:
    """Rows of points from the top down: single seeds faint, their mean, its 95 % t-interval."""
    for place, (values, (colour, marker)) in enumerate(zip(rows.values(), looks, strict=True)):
        if not values:
            axis.text(
                0.5, place, "no number", transform=axis.get_yaxis_transform(), color=GREY, fontsize=9, va="center"
            )
            continue
        over = summaries.difference(values)
        if over.seeds > 1:
            axis.plot(values, [place] * len(values), marker, color=colour, alpha=0.35, markersize=4, linewidth=0)
            axis.plot([over.low, over.high], [place, place], color=colour, linewidth=1.4)
        axis.plot([over.mean], [place], marker, color=colour, markersize=7)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis on which these points lie apart; a wide interval must not push them together."""
    low, high = min(values), max(values)
    room = 0.35 * (high - low) or max(1e-3, 0.02 * abs(low))
    return low - room, high + room


# ------------------------------------------------------------------------------------------- retrained masks (§4.1.1)


def masks_by_layer(masks: Mapping[str, Mapping[str, Tensor]], layers: Sequence[str], source: str) -> Figure:
    """Which units are active in networks of one architecture: a column for each layer, a cell for each unit.

    Args:
        masks: title of a panel -> group name -> bool, True = active, of any shape.
        layers: names of the groups in execution order (a file gives them back in any order).
        source: provenance.

    Raises:
        RecordError: nothing to draw, or masks of other groups than `layers`.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    if not masks or not layers:
        raise RecordError("found no masks to draw, expected at least one network's with at least one layer")
    with style():
        figure, axes = _new(len(masks), 1, 0.9 + 1.15 * len(masks), sharex=True, sharey=True, squeeze=False)
        for axis, (title, groups) in zip(axes.flat, masks.items(), strict=True):
            if set(groups) != set(layers):
                raise RecordError(f"{title}: the masks are not those of the {len(layers)} layers that were named")
            columns = [groups[name].flatten().cpu().numpy() for name in layers]
            cells = np.full((max(map(len, columns)), len(columns)), np.nan)
            for i, column in enumerate(columns):
                cells[: len(column), i] = column
            extent = (0.5, len(columns) + 0.5, 0.5, len(cells) + 0.5)
            axis.imshow(cells, cmap=ListedColormap(["#d9d9d9", BLUE]), extent=extent, **_CELLS)
            for _, first, _ in stages(layers)[1:]:
                axis.axvline(first + 0.5, color="#444444", linewidth=0.8, linestyle=":")
            axis.set(title=f"{title}: {int(np.nansum(cells))} of {int((~np.isnan(cells)).sum())} active", ylabel="unit")
            axis.title.set_fontsize(9.5)
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.grid(visible=False)
        axes.flat[-1].xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.flat[-1].set_xlabel("ReLU layer, input on the left")
        handles = [Patch(color=BLUE, label="active"), Patch(color="#d9d9d9", label="inactive")]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
        return _stamp(figure, source)


# How a network came to its masks (`controls.way_of`), in words.
GIVEN = {"retrained": "new", "chain": "new, trained on", "at once": "at once"}


def given_masks(records: Iterable[Record], kind: str, way: str) -> list[Record]:
    """The runs with masks of this kind (`MASKS`) that came to them in this way (`GIVEN`)."""
    found = [(record, way_of(record.spec)) for record in records]
    return [record for record, taken in found if taken is not None and taken[:2] == (way, kind)]


def retrained_accuracy(records: Sequence[Record], source: str) -> Figure:
    """Accuracy of a network, of its linearized form, and of networks that were given the masks of that, by kind.

    Args:
        records: of one or several architectures, parents included; a panel for each architecture.
        source: provenance.

    Raises:
        RecordError: no linearized network is among them.
    """
    groups = {name: runs for name, runs in by_architecture(records).items() if effects.linearized(runs)}
    if not groups:
        raise RecordError("found no linearized network to draw; compute it first with `nladv run`")
    with style():
        ways = sum(any(given_masks(records, kind, way) for kind in MASKS) for way in GIVEN)
        figure, axes = _new(len(groups), 1, 0.9 + (1.1 + 0.75 * ways) * len(groups), squeeze=False)
        for axis, (name, runs) in zip(axes.flat, groups.items(), strict=True):
            roles = {role: [run for run in runs if run.spec.role == role] for role in ("parent", "control")}
            rows = {"all units active": roles["parent"], "trained on as it is": roles["control"]}
            rows["linearized"] = effects.linearized(runs)
            rows |= {
                f"{first}, {word}": given_masks(runs, kind, way)
                for way, first in GIVEN.items()
                for kind, word in MASKS.items()
            }
            values = {row: [effects.value(run, "test_accuracy") for run in found] for row, found in rows.items()}
            values = {row: found for row, found in values.items() if found}
            kinds = [(colour, marker) for marker in ("o", "s", "^") for colour in (BLUE, ORANGE, GREEN)]
            looks = dict(zip(rows, ((GREY, "*"), (GREY, "P"), (RED, "D"), *kinds), strict=True))
            axis.axvline(float(np.mean(values["linearized"])), color=RED, linestyle=":", linewidth=1)
            _dots(axis, values, [looks[row] for row in values])
            axis.set_xlim(*_room([y for found in values.values() for y in found]))
            axis.set_title(name, x=0, ha="left", fontsize=9.5)
        axes.flat[-1].set_xlabel("test accuracy, %")
        return _stamp(figure, source)


# ------------------------------------------------------------------------------------------------ start epoch (§4.1.2)


# What an axis says of a metric.
_LABELS = {
    "test_accuracy": "final test accuracy, %",
    "test_perplexity": "final perplexity\nper token",
    "test_bleu": "final BLEU",
}


def early_and_late(
    lines: Mapping[str, Sequence[Record]],
    source: str,
    *,
    columns: Sequence[str] = ("test_accuracy",),
    reference: Sequence[Record] = (),
) -> Figure:
    """Final accuracy, and the share made inactive, against the epoch at which linearization starts.

    Args:
        lines: label -> runs of one task and schedule: those with a goal, and in the first panel as a thin broken line
            their controls (`RunSpec.control`), if they are among them.
        source: provenance.
        columns: metrics to draw, one above the other.
        reference: runs that were never linearized: their mean is a dotted line with a band of one standard deviation.

    Raises:
        RecordError: no run with a goal is among them.
    """
    drawn = {label: [run for run in runs if run.spec.goal is not None] for label, runs in lines.items()}
    drawn = {label: runs for label, runs in drawn.items() if runs}
    if not drawn:
        raise RecordError("found no run with a goal to draw; compute them first with `nladv run`")
    goals = sorted({float(run.spec.goal or 0) for runs in drawn.values() for run in runs})
    with style():
        height = 4.6 + 1.5 * (len(columns) - 1)
        figure, axes = _new(len(columns) + 1, 1, height, sharex=True, height_ratios=(*(3 for _ in columns), 2))
        top, bottom = axes[0], axes[-1]
        panels: list[tuple[Axes, Any]] = [
            (axis, partial(effects.value, column=column)) for axis, column in zip(axes, columns, strict=False)
        ]
        panels.append((bottom, _inactive))
        for axis, which in panels[:-1] if reference else ():
            values = [which(run) for run in reference]
            mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axis.axhspan(mean - sd, mean + sd, color=GREY, alpha=0.15, linewidth=0)
            axis.axhline(mean, color=GREY, linestyle=":", label="never linearized" if axis is top else None)
        starts: set[int] = set()
        controlled = 0
        for i, (label, runs) in enumerate(drawn.items()):
            colour, marker, line = _LOOKS[i % len(_LOOKS)]
            starts |= {effects.start_epoch(run.spec) for run in runs}
            for axis, which in panels:
                _band(axis, runs, which, colour, marker, line, label if axis is top else None)
            there = {run.key: run for run in lines[label]}
            pairs = [(effects.start_epoch(run.spec), there.get(run.spec.control.key())) for run in runs]
            controls: dict[int, list[float]] = {}
            for start, control in pairs:
                if control is not None:
                    controls.setdefault(start, []).append(panels[0][1](control))
            if controls and not reference:
                mean_of = [float(np.mean(controls[start])) for start in sorted(controls)]
                kept = f"{label}, ReLUs kept"
                top.plot(sorted(controls), mean_of, color=colour, linestyle=(0, (1, 1.5)), linewidth=1.2, label=kept)
                controlled += 1
        missed = [run for runs in drawn.values() for run in runs if not run.reached]
        for axis, which in panels if missed else ():
            x, y = [effects.start_epoch(run.spec) for run in missed], [which(run) for run in missed]
            what = "goal not reached" if axis is top else None
            axis.plot(x, y, "x", color="black", markersize=7, linewidth=0, zorder=5, label=what)
        for goal in goals:
            named = "goal" if goal == goals[0] else None
            bottom.axhline(100 * goal, color=GREY, linestyle=":", linewidth=1.2, label=named)
        bottom.legend(loc="best")
        for (axis, _), column in zip(panels, columns, strict=False):
            axis.set(ylabel=_LABELS.get(column, column))
        entries = len(drawn) + controlled + bool(missed) + bool(reference)
        top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 if entries > 1 else 1)
        ends = [_inactive(run) for runs in drawn.values() for run in runs] + [100 * goal for goal in goals]
        bottom.set(ylabel="inactive at\nthe end, %", ylim=(max(-3, min(ends) - 8), min(103, max(ends) + 8)))
        bottom.set_xlabel("epochs of training before the start" + _spaced(bottom, sorted(starts)))
        return _stamp(figure, source)


def _inactive(record: Record) -> float:
    return 100 - effects.value(record, "active_fraction")


def _band(
    axis: Axes, runs: Sequence[Record], which: Any, colour: str, marker: str, line: str, label: str | None
) -> None:
    """Mean over seeds by start epoch, a band of one standard deviation, single runs behind."""
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(effects.start_epoch(run.spec), []).append(which(run))
    starts = sorted(found)
    mean = np.array([np.mean(found[start]) for start in starts])
    sd = np.array([np.std(found[start], ddof=1) if len(found[start]) > 1 else 0.0 for start in starts])
    every = [(start, y) for start in starts for y in found[start]]
    axis.plot(*zip(*every, strict=True), marker, color=colour, alpha=0.3, markersize=3.5, linewidth=0)
    axis.fill_between(starts, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
    axis.plot(starts, mean, color=colour, marker=marker, linestyle=line, label=label)


def _spaced(axis: Axes, starts: Sequence[int]) -> str:
    """A tick for each start; if they lie too close on a straight axis, one by square roots, and the word for it."""
    from matplotlib.ticker import FixedLocator, NullLocator

    gaps = np.diff(starts)
    crowded = len(starts) > 1 and gaps.min() < 0.05 * (starts[-1] - starts[0])
    if crowded:
        axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(FixedLocator(list(starts)))
    axis.xaxis.set_minor_locator(NullLocator())
    return " (spaced by square roots)" if crowded else ""


# -------------------------------------------------------------------------------------------------- structure (§4.2)


def share_maps(
    groups: Mapping[str, Sequence[Record]], source: str, *, epochs_of: str = "epoch of linearization"
) -> Figure:
    """Where units stay active: maps of the mean active share, layers over epochs, one beside the other.

    Args:
        groups: title -> linearized runs of one architecture that differ in their seed (others are left out).
        source: provenance.
        epochs_of: what the epochs are those of.

    Raises:
        RecordError: nothing to draw, or runs of several experiments in one group.
    """
    from matplotlib.ticker import MaxNLocator

    if not groups:
        raise RecordError("found no linearized run to draw; compute them first with `nladv run`")
    with style():
        figure, axes = _new(1, len(groups), 4.2, squeeze=False)
        image: Any = None
        for axis, (title, records) in zip(axes.flat, groups.items(), strict=True):
            shares = mean_shares(records)
            names = [unit["name"] for unit in effects.linearized(records)[0].units]
            epochs, layers = shares.shape
            extent = (-0.5, epochs - 0.5, 0.5, layers + 0.5)
            image = axis.imshow(shares.T, cmap="viridis", extent=extent, **_CELLS)
            for name, first, count in stages(names):
                if first:
                    axis.axhline(first + 0.5, color="white", linewidth=1.4)
                    axis.axhline(first + 0.5, color="black", linewidth=0.8, linestyle=":")
                if 0.1 < count / layers < 1:  # a narrower stage has no room for its name, a single one is all there is
                    middle, across = first + 0.5 + count / 2, axis.get_yaxis_transform()
                    axis.text(1.02, middle, name, transform=across, rotation=-90, fontsize=9, va="center", ha="left")
            axis.set_title(title, fontsize=9.5)
            axis.set_xlabel(epochs_of)
            for side, ticks in ((axis.xaxis, 8 if len(groups) < 3 else 3), (axis.yaxis, 8)):
                side.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
            axis.grid(visible=False)
        axes.flat[0].set_ylabel("ReLU layer, input at the bottom")
        figure.colorbar(image, ax=axes, location="top", shrink=0.6, aspect=30, label="share of units still active")
        return _stamp(figure, source)
