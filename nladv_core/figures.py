"""Every figure of the book, in one style: colour-blind safe, legible on a telephone, and saying where it comes from.

Each function returns a matplotlib `Figure` with a white sheet (it stays white in the dark scheme, so that a legend's
colours keep their names) and takes `source`, the line that `provenance` writes, which is stamped at its foot.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nladv_core import summaries
from nladv_core.errors import RecordError
from nladv_core.summaries import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Narrow, so that 10 points are still 9 pixels on a screen of 360; the pages show figures 600 pixels wide at most.
WIDTH = 5.2
# Seaborn's "colorblind" palette, and a marker each, so that nothing rests on colour alone.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#5f5f5f"
LOOKS = {"channel": (BLUE, "o", "-"), "layer": (ORANGE, "s", "--"), "pixel": (GREEN, "^", "-.")}


def provenance(tier: str, frame: pd.DataFrame | None = None, *, what: str = "") -> str:
    """The line that says where a figure comes from: tier, data, networks, seeds, torch, code.

    Args:
        tier: the chapter's.
        frame: the runs drawn, one row each, as `Store.frame` returns it; None where nothing was trained.
        what: said after the tier, for instance the network whose paths are counted.

    Raises:
        RecordError: the frame is empty or no frame of runs.
    """
    from nladv_core.store import code_version

    parts = [f"tier {tier}", what]
    code = code_version()
    if frame is not None:
        require(frame, ["data", "net", "seed", "torch", "code"])
        seeds = sorted(set(frame["seed"]))
        parts += [_listed(frame["data"]), _listed(frame["net"])]
        parts += [f"{len(frame)} run{'s' * (len(frame) > 1)}, seed{'s' * (len(seeds) > 1)} {_listed(seeds)}"]
        parts += [f"torch {_listed(frame['torch'])}"]
        digests = sorted(set(frame["code"].astype(str)))
        parts += [f"nladv {code['version']}, code\u00a0{_listed(digests)}"]
        if digests != [code["source"]]:
            parts += [f"of another version than today's {code['source']}"]
    else:
        parts += [
            "nothing trained",
            f"torch {torch.__version__}",
            f"nladv {code['version']}, code\u00a0{code['source']}",
        ]
    return " · ".join(part for part in parts if part)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The book's matplotlib settings, for the length of a `with` block."""
    import seaborn as sns
    from matplotlib import rc_context

    settings = {
        **sns.axes_style("whitegrid"),
        "axes.edgecolor": "#444444",
        "axes.labelcolor": "#222222",
        "axes.labelsize": 10,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "figure.constrained_layout.use": True,
        "figure.dpi": 200,
        "figure.facecolor": "white",
        "font.size": 10,
        "grid.color": "#dddddd",
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.dpi": 200,
        "savefig.facecolor": "white",
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
    with rc_context(settings):
        yield


def _new(rows: int = 1, columns: int = 1, height: float = 3.2, **more: Any) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), **more)
    plt.close(figure)  # the notebook shows what a cell returns, and nothing besides
    return figure, axes


def inline(figure: Figure) -> str:
    """A figure as the address of an image that is part of the page."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nladv"}):  # and without a date: equal records give an equal page
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _stamp(figure: Figure, source: str) -> Figure:
    """Write the provenance at the foot, where it is cut off by nothing."""
    text = "\n".join(textwrap.wrap(source, 104))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="#555555")
    return figure


# ------------------------------------------------------------------------------------------------------ the unit (§3)


def unit_family(source: str, slopes: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> Figure:
    """The unit φ_α at several slopes, one panel each, from the ReLU to the line."""
    x = np.linspace(-2, 2, 201)
    with style():
        figure, axes = _new(1, len(slopes), 1.9, sharex=True, sharey=True)
        for axis, slope in zip(axes, slopes, strict=True):
            axis.plot(x, np.maximum(x, 0) + slope * np.minimum(x, 0), color=RED if slope < 1 else GREY)
            axis.axhline(0, color="#999999", linewidth=0.7, zorder=0)
            axis.axvline(0, color="#999999", linewidth=0.7, zorder=0)
            axis.set(title=f"α = {slope:g}", xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal", xlabel="x")
        axes[0].set_ylabel("φ(x)")
        return _stamp(figure, source)


def penalty(source: str, exponents: Sequence[float] = (0.5, 1.0, 2.0)) -> Figure:
    """The price |1 - α|^p of one slope, and the pull towards 1 (its negative derivative), for several exponents."""
    looks = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-.")]
    slope = np.linspace(0, 0.9995, 2000)
    with style():
        figure, (price, pull) = _new(1, 2, 2.7)
        for p, (colour, line) in zip(exponents, looks, strict=False):
            price.plot(slope, (1 - slope) ** p, color=colour, linestyle=line, label=f"p = {p:g}")
            pull.plot(slope, p * (1 - slope) ** (p - 1), color=colour, linestyle=line)
        price.set(title="Price", xlabel="slope α", ylabel="$|1-\\alpha|^p$")
        pull.set(title="Pull towards the line", xlabel="slope α", ylabel="$p\\,|1-\\alpha|^{p-1}$", ylim=(0, 5))
        price.legend()
        return _stamp(figure, source)


def settled(source: str, exponents: Sequence[float] = (0.5, 1.0, 2.0), wanted: float = 0.3) -> Figure:
    """Where one slope comes to rest between a task that wants it at `wanted` and a penalty of growing strength."""
    omegas = np.linspace(0, 1.5, 301)
    looks = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-.")]
    with style():
        figure, axis = _new(height=2.8)
        for p, (colour, line) in zip(exponents, looks, strict=False):
            rest = [summaries.settled_slope(omega, p, wanted) for omega in omegas]
            axis.plot(omegas, rest, color=colour, linestyle=line, label=f"p = {p:g}")
        axis.axhline(0.99, color=GREY, linewidth=0.8, linestyle=":")
        axis.text(1.5, 0.97, "locked above 0.99", color=GREY, fontsize=8.5, ha="right", va="top")
        axis.set(xlabel="strength of the penalty ω", ylabel="slope at rest α", ylim=(0.25, 1.04))
        axis.legend(loc="lower right")
        return _stamp(figure, source)


# ------------------------------------------------------------------------------------------- one network, linearized


def slopes_over_epochs(slopes: Tensor, source: str, drawn: int = 160) -> Figure:
    """Paths of single slopes while a network is linearized.

    Args:
        slopes: [epochs + 1, units] in [0, 1], the first row before the first epoch; 1 stands for locked.
        source: provenance.
        drawn: how many units at most, evenly spaced through the network.
    """
    if slopes.ndim != 2 or slopes.numel() == 0:
        raise RecordError(f"found slopes of shape {tuple(slopes.shape)}, expected [epochs + 1, units] with units in it")
    values = slopes.detach().cpu().numpy()
    chosen = np.unique(np.linspace(0, values.shape[1] - 1, drawn).round().astype(int))
    locked = (values[-1, chosen] == 1).sum()
    with style():
        figure, axis = _new(height=3.2)
        for unit in chosen:
            colour, alpha = (GREY, 0.3) if values[-1, unit] == 1 else (BLUE, 0.7)
            axis.plot(values[:, unit], color=colour, alpha=alpha, linewidth=0.9)
        axis.plot([], [], color=GREY, label=f"ends as a line ({locked} of {len(chosen)} drawn)")
        axis.plot([], [], color=BLUE, label=f"stays active ({len(chosen) - locked})")
        axis.set(xlabel="epoch of linearization", ylabel="slope α", ylim=(-0.03, 1.03), xticks=range(len(values)))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
        return _stamp(figure, source)


def active_per_layer(active: Tensor, source: str, first: int = 0) -> Figure:
    """Share of active units by layer and epoch, as a map.

    Args:
        active: [epochs, layers] in [0, 1], layers in execution order.
        source: provenance.
        first: the epoch that the first row stands for.
    """
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    if active.ndim != 2 or active.numel() == 0:
        raise RecordError(
            f"found active shares of shape {tuple(active.shape)}, expected [epochs, layers] with runs in it"
        )
    epochs, layers = active.shape
    with style():
        figure, axis = _new(height=3.2)
        sns.heatmap(
            active.detach().cpu().numpy().T,
            ax=axis,
            cmap="viridis",
            vmin=0,
            vmax=1,
            xticklabels=list(range(first, first + epochs)),
            yticklabels=list(range(1, layers + 1)),
            cbar_kws={"label": "share of units still active"},
        )
        axis.invert_yaxis()
        if layers > 20:
            axis.yaxis.set_major_locator(MaxNLocator(11, integer=True))
        axis.tick_params(rotation=0)
        axis.set(xlabel="epoch of linearization", ylabel="ReLU layer, input at the bottom")
        return _stamp(figure, source)


def accuracy_over_epochs(history: pd.DataFrame, parents: pd.DataFrame, source: str) -> Figure:
    """Test accuracy and active share, epoch by epoch, with the spread over seeds.

    Args:
        history: one row per seed and epoch: seed, epoch, test_accuracy and active_fraction (shares).
        parents: one row per seed: test_accuracy of the network that was linearized.
        source: provenance.
    """
    require(parents, ["test_accuracy"])
    curve = summaries.spread(history, "epoch", ["test_accuracy", "active_fraction"])
    start, start_sd = 100 * parents["test_accuracy"].mean(), 100 * parents["test_accuracy"].std(ddof=1)
    with style():
        figure, (top, bottom) = _new(2, 1, 4.2, sharex=True)
        top.axhline(start, color=GREY, linestyle=":", label="before: all units are ReLUs")
        top.axhspan(start - _zero(start_sd), start + _zero(start_sd), color=GREY, alpha=0.15, linewidth=0)
        for axis, value, colour in ((top, "test_accuracy", BLUE), (bottom, "active_fraction", RED)):
            mean, sd = 100 * curve[value], 100 * curve[f"{value}_sd"].fillna(0)
            label = "while linearizing" if axis is top else None
            axis.plot(curve["epoch"], mean, color=colour, marker="o", markersize=4, label=label)
            axis.fill_between(curve["epoch"], mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        top.set(ylabel="test accuracy, %")
        top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        bottom.set(ylabel="units active, %", xlabel="epoch of linearization", ylim=(-3, 103))
        bottom.set_xticks(sorted(set(curve["epoch"])))
        return _stamp(figure, source)


def _zero(value: float) -> float:
    """A spread as it can be drawn: none for a single seed."""
    return 0.0 if np.isnan(value) else float(value)


# -------------------------------------------------------------------------------------------------------- path lengths


def skip_graph(source: str, layers: int = 4, width: int = 4) -> Figure:
    """Figure 1's graph: one input, `layers` fully connected layers of `width` units, one output, and one skip."""
    with style():
        figure, axis = _new(height=2.6)
        columns = [[0.0], *([float(row) - (width - 1) / 2 for row in range(width)] for _ in range(layers)), [0.0]]
        for x, (left, right) in enumerate(zip(columns, columns[1:], strict=False)):
            for a in left:
                for b in right:
                    axis.plot([x, x + 1], [a, b], color="#9aa5ad", linewidth=0.7, zorder=1)
        angle = np.linspace(0, np.pi, 90)
        reach = len(columns) - 1
        arc = reach / 2 * (1 - np.cos(angle)), -(width / 2 + 0.5) * np.sin(angle)
        axis.plot(*arc, color=ORANGE, linewidth=2.4, zorder=1)
        below, above = -(width / 2 + 0.65), width / 2 + 0.15
        branch = f"branch: {width**layers} paths, {layers} units on each"
        axis.text(reach / 2, below, "skip: 1 path, no unit on it", color="#8a5a00", fontsize=9, ha="center", va="top")
        axis.text(reach / 2, above, branch, color=BLUE, fontsize=9, ha="center")
        for x, rows in enumerate(columns):
            end = x in (0, reach)
            colour = "white" if end else BLUE
            axis.scatter([x] * len(rows), rows, s=120, color=colour, edgecolor="#333333", linewidth=1, zorder=2)
        axis.text(-0.18, 0, "in", ha="right", va="center")
        axis.text(reach + 0.18, 0, "out", ha="left", va="center")
        axis.set(xlim=(-0.6, reach + 0.7), ylim=(-(width / 2 + 1.3), width / 2 + 0.7))
        axis.axis("off")
        return _stamp(figure, source)


def path_histograms(
    histograms: Mapping[str, Tensor], source: str, overlay: Mapping[str, tuple[str, Tensor]] | None = None
) -> Figure:
    """Distributions of path lengths, one panel each, with their means.

    Args:
        histograms: title -> distribution over the lengths 0, 1, ..., [lengths], summing to 1.
        source: provenance.
        overlay: title -> (label, distribution) drawn as dots over the panel of that title.
    """
    from matplotlib.ticker import MaxNLocator

    if not histograms:
        raise RecordError("found no path lengths to draw, expected at least one distribution")
    overlay = overlay or {}
    with style():
        figure, axes = _new(len(histograms), 1, 0.7 + 1.45 * len(histograms), sharex=True, squeeze=False)
        for axis, (title, histogram) in zip(axes.flat, histograms.items(), strict=True):
            mean = float((histogram * torch.arange(len(histogram))).sum())
            axis.bar(np.arange(len(histogram)), histogram.numpy(), width=0.9, color=BLUE, linewidth=0)
            axis.axvline(mean, color=RED, linewidth=1.2, label=f"mean {mean:.6g}")
            if title in overlay:
                label, found = overlay[title]
                shown = np.flatnonzero(found.numpy() > 1e-4)
                axis.plot(shown, found.numpy()[shown], "o", color="black", markersize=3.2, mfc="none", label=label)
            axis.set(title=title, ylabel="probability")
            axis.set_ylim(0, 1.15 * float(histogram.max()))
            axis.legend(loc="upper left")
        axes.flat[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.flat[-1].set_xlabel("effective length: active units on a path")
        return _stamp(figure, source)


def napl_against_share(points: pd.DataFrame, source: str) -> Figure:
    """Path length of networks whose masks were drawn at random, against the share of units left active.

    Args:
        points: share, napl and network (a name), one row a draw.
        source: provenance.
    """
    require(points, ["share", "napl", "network"])
    with style():
        figure, axis = _new(height=3.1)
        looks = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))
        for (network, rows), (colour, marker) in zip(points.groupby("network", sort=False), looks, strict=False):
            axis.plot(rows["share"], rows["napl"], marker, color=colour, markersize=4, alpha=0.7, label=network)
            top = rows.sort_values("share").iloc[-1]
            axis.plot([0, top["share"]], [0, top["napl"]], color=colour, linewidth=1)
        axis.set(xlabel="share of units active", ylabel="NAPL", xlim=(0, 1.02))
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left")
        return _stamp(figure, source)


def visits(probabilities: Mapping[str, Tensor], source: str) -> Figure:
    """How many units of each layer a path meets if all are active: what each layer can contribute to the mean.

    Args:
        probabilities: group name -> probability that a path visits each channel, [C], in execution order, as
            `visit_probability` returns them.
        source: provenance.
    """
    from matplotlib.ticker import MaxNLocator

    if not probabilities:
        raise RecordError("found no visit probabilities to draw, expected one entry per ReLU layer")
    sums = [float(value.sum()) for value in probabilities.values()]
    with style():
        figure, axis = _new(height=2.7)
        axis.bar(np.arange(1, len(sums) + 1), sums, color=BLUE, width=0.85, linewidth=0)
        axis.set(xlabel="ReLU layer, input on the left", ylabel="probability of a visit", ylim=(0, 1.08))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="x", visible=False)
        return _stamp(figure, source)


def napl_by_group(rows: pd.DataFrame, source: str) -> Figure:
    """What each unit group adds to the NAPL, before linearization (outline) and after, for one or two penalties.

    Args:
        rows: group, penalty, seed, napl (a group's part after linearization) and before (its part with all units
            active); groups in execution order.
        source: provenance.
    """
    require(rows, ["group", "penalty", "seed", "napl", "before"])
    groups, penalties = list(dict.fromkeys(rows["group"])), list(dict.fromkeys(rows["penalty"]))
    means = summaries.spread(rows, ["penalty", "group"], ["napl", "before"]).set_index(["penalty", "group"])
    width = 0.8 / len(penalties)
    with style():
        figure, axis = _new(height=2.9)
        place = np.arange(len(groups))
        before = [means.loc[(penalties[0], group), "before"] for group in groups]
        axis.bar(place, before, width=0.86, color="none", edgecolor=GREY, linestyle=":", label="all units active")
        for n, (penalty, colour, hatch) in enumerate(zip(penalties, (BLUE, ORANGE), ("", "///"), strict=False)):
            part = means.loc[penalty].reindex(groups)
            axis.bar(
                place + (n - (len(penalties) - 1) / 2) * width,
                part["napl"],
                yerr=part["napl_sd"].fillna(0),
                width=0.94 * width,
                color=colour,
                edgecolor="white",
                hatch=hatch,
                linewidth=0,
                error_kw={"ecolor": "#222222", "elinewidth": 1, "capsize": 2},
                label=penalty,
            )
        axis.set_xticks(place, groups)
        axis.set(xlabel="unit group, input on the left", ylabel="part of the NAPL")
        axis.set_ylim(0, 1.45 * max(before))
        axis.legend(loc="upper center", ncols=3, columnspacing=1.2, handlelength=1.4)
        axis.grid(axis="x", visible=False)
        return _stamp(figure, source)


# -------------------------------------------------------------------------------------------------- accuracy and depth


def _by_omega(frame: pd.DataFrame) -> pd.DataFrame:
    measures = [measure for measure in MEASURES if measure != "napl_max_pool" or measure in frame]
    return summaries.spread(frame, ["granularity", "omega"], ["test_accuracy", *measures, "enw"])


# Measures of the nonlinearity that is left, with what the axis says and what turns them into percent.
MEASURES = {
    "napl": ("NAPL: active units on an average path", 1),
    "napl_max_pool": ("NAPL, max pooling counted as one more unit", 1),  # of networks that have one
    "apl": ("APL: active units on a path, all paths equal", 1),
    "active_fraction": ("units active, %", 100),
}


def accuracy_against_napl(frame: pd.DataFrame, parents: pd.DataFrame, source: str, *, measure: str = "napl") -> Figure:
    """Test accuracy against NAPL: a point for each ω, its spread over seeds as bars, single runs behind.

    Args:
        frame: linearized runs, one row each.
        parents: the runs they started from, all units active.
        source: provenance.
        measure: a key of `MEASURES` to take the place of the NAPL (App. B.1, B.2).
    """
    require(parents, ["test_accuracy", measure])
    means = _by_omega(frame)
    with style():
        figure, axis = _new(height=3.5)
        _accuracy_axis(axis, frame, means, parents, measure)
        return _stamp(figure, source)


def _accuracy_axis(
    axis: Axes, frame: pd.DataFrame, means: pd.DataFrame, parents: pd.DataFrame, measure: str = "napl"
) -> None:
    label, scale = MEASURES[measure]
    for granularity, rows in means.groupby("granularity", sort=False):
        colour, marker, line = LOOKS[str(granularity)]
        rows = rows.sort_values(measure)
        runs = frame[frame["granularity"] == granularity]
        axis.plot(
            scale * runs[measure],
            100 * runs["test_accuracy"],
            marker,
            color=colour,
            alpha=0.25,
            markersize=3,
            linewidth=0,
        )
        axis.errorbar(
            scale * rows[measure],
            100 * rows["test_accuracy"],
            xerr=scale * rows[f"{measure}_sd"].fillna(0),
            yerr=100 * rows["test_accuracy_sd"].fillna(0),
            color=colour,
            marker=marker,
            markersize=6,
            linestyle=line,
            elinewidth=1,
            label=f"one slope per {granularity}",
        )
    start = 100 * parents["test_accuracy"].mean()
    sd = _zero(100 * parents["test_accuracy"].std(ddof=1))
    axis.axhline(start, color=GREY, linestyle=":", linewidth=1)
    axis.axhspan(start - sd, start + sd, color=GREY, alpha=0.15, linewidth=0)
    axis.plot(
        scale * parents[measure].mean(),
        start,
        "*",
        color="black",
        markersize=12,
        label="parent, all units active",
        linewidth=0,
    )
    axis.set(xlabel=label, ylabel="test accuracy, %")
    axis.set_xlim(left=0)
    axis.legend(loc="lower right")


def active_against_omega(frame: pd.DataFrame, source: str) -> Figure:
    """Share of units that stay active, against ω: mean and standard deviation over seeds."""
    means = _by_omega(frame)
    with style():
        figure, axis = _new(height=2.9)
        for granularity, rows in means.groupby("granularity", sort=False):
            colour, marker, line = LOOKS[str(granularity)]
            mean, sd = 100 * rows["active_fraction"], 100 * rows["active_fraction_sd"].fillna(0)
            axis.errorbar(rows["omega"], mean, yerr=sd, color=colour, marker=marker, linestyle=line, elinewidth=1,
                          label=f"one slope per {granularity}")  # fmt: skip
        positive = means.loc[means["omega"] > 0, "omega"]
        if len(positive) == len(means):
            axis.set_xscale("log")
        elif len(positive):  # zero has no logarithm: a straight piece around it
            axis.set_xscale("symlog", linthresh=positive.min())
        _ticks_at(axis, means["omega"])
        axis.set(xlabel="regularization weight ω", ylabel="units active, %", ylim=(-3, 103))
        axis.legend(loc="best")
        return _stamp(figure, source)


def _ticks_at(axis: Any, values: Iterable[float]) -> None:
    """Ticks at these values alone, written out, but for those that would lie too close to the one before.

    A logarithmic axis over less than a decade would otherwise write its minor ticks over each other.
    """
    found = sorted(set(values))
    places = axis.transData.transform([(value, 0) for value in found])[:, 0]
    room = axis.get_window_extent().width / 9
    kept: list[int] = []
    for i, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= room:
            kept.append(i)
    axis.set_xticks([found[i] for i in kept], [f"{found[i]:g}" for i in kept], minor=False)
    axis.minorticks_off()


_SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (RED, "D", ":"), (PURPLE, "v", "-"))


def curves(
    frame: pd.DataFrame,
    x: str,
    panels: Mapping[str, str],
    by: str,
    source: str,
    *,
    xlabel: str,
    names: Mapping[Any, str] | None = None,
    before: pd.DataFrame | None = None,
    lines: Sequence[str] = (),
    logarithmic: bool = False,
) -> Figure:
    """Metrics of linearized networks over one axis: mean and standard deviation over seeds, a line a group.

    Args:
        frame: linearized runs, one row each.
        x: column of the horizontal axis.
        panels: column -> label of the vertical axis, a panel each from top to bottom; accuracies and shares are drawn
            in percent.
        by: column whose values have a line each.
        source: provenance.
        xlabel: of the horizontal axis.
        names: value of `by` -> name in the legend; default: the value itself.
        before: the networks before linearization, one row each with columns `x` and those of the panels, drawn in grey.
        lines: panels that get the least-squares line through all runs of a group, with its R² in the legend.
        logarithmic: the horizontal axis.

    Raises:
        RecordError: no runs, or a column is missing.
    """
    from nladv_core import effects

    means = summaries.spread(frame, [by, x], list(panels))
    with style():
        figure, axes = _new(len(panels), 1, 1.0 + 1.9 * len(panels), sharex=True, squeeze=False)
        for axis, (column, label) in zip(axes[:, 0], panels.items(), strict=True):
            scale = effects.COLUMNS.get(column, 1.0)
            if before is not None:
                start = summaries.spread(before.assign(_=0), ["_", x], [column]).sort_values(x)
                spread = scale * start[f"{column}_sd"].fillna(0)
                axis.errorbar(start[x], scale * start[column], yerr=spread, color=GREY, marker="*", markersize=8,
                              linestyle=":", elinewidth=1, label="before linearization")  # fmt: skip
            for (group, rows), (colour, marker, dashes) in zip(means.groupby(by), itertools.cycle(_SERIES)):
                rows = rows.sort_values(x)
                runs = frame[frame[by] == group]
                name = (names or {}).get(group, str(group))
                fitted = column in lines and runs[x].nunique() > 1
                if fitted:
                    slope, intercept, share = effects.line(runs[x].tolist(), (scale * runs[column]).tolist())
                    ends = np.array([runs[x].min(), runs[x].max()])
                    axis.plot(ends, intercept + slope * ends, color=colour, linewidth=1, alpha=0.6,
                              label=f"line through {name}, R² {share:.2f}")  # fmt: skip
                axis.plot(runs[x], scale * runs[column], marker, color=colour, alpha=0.25, markersize=3, linewidth=0)
                axis.errorbar(rows[x], scale * rows[column], yerr=scale * rows[f"{column}_sd"].fillna(0), color=colour,
                              marker=marker, markersize=5, linestyle="" if fitted else dashes, elinewidth=1,
                              label=name)  # fmt: skip
            axis.set(ylabel=label)
        if logarithmic and (frame[x] > 0).all():
            axes[0, 0].set_xscale("log")
        else:
            axes[-1, 0].set_xticks(sorted(set(frame[x])))
        axes[-1, 0].set_xlabel(xlabel)
        handles, labels = axes[-1 if lines else 0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        return _stamp(figure, source)


def gap_at_equal_napl(comparison: summaries.EqualNapl, source: str) -> Figure:
    """Accuracy of one family minus the other's at equal NAPL: one line a seed, their mean, its 95 % t-interval."""
    gaps = [summaries.difference(column) for column in comparison.by_seed.T]
    with style():
        figure, axis = _new(height=2.9)
        axis.axhline(0, color="#444444", linewidth=1)
        for seed in comparison.by_seed:
            axis.plot(comparison.napl, seed, color=BLUE, alpha=0.35, linewidth=0.9)
        axis.plot(comparison.napl, [gap.mean for gap in gaps], color=BLUE, label="mean over seeds (thin: single seeds)")
        if comparison.by_seed.shape[0] > 1:
            interval = [gap.low for gap in gaps], [gap.high for gap in gaps]
            label = "95 % t-interval, point by point"
            axis.fill_between(comparison.napl, *interval, color=BLUE, alpha=0.18, linewidth=0, label=label)
        low, high = min(0.0, comparison.by_seed.min()), max(0.0, comparison.by_seed.max())
        room = 0.5 * (high - low) + 0.5
        axis.set(xlabel="NAPL", ylabel=f"{comparison.first} minus {comparison.second},\npoints of accuracy")
        axis.set_ylim(low - room, high + room)  # a wide interval must not flatten the lines
        axis.legend(loc="upper right")
        return _stamp(figure, source)


def measure_against_napl(frame: pd.DataFrame, measure: str, source: str) -> Figure:
    """Every linearized network as a point: another measure of what is left (a key of `MEASURES`) over its NAPL."""
    require(frame, ["granularity", "napl", measure])
    label, scale = MEASURES[measure]
    with style():
        figure, axis = _new(height=2.9)
        for granularity, rows in frame.groupby("granularity", sort=False):
            colour, marker, _ = LOOKS[str(granularity)]
            name = f"one slope per {granularity}"
            axis.plot(rows["napl"], scale * rows[measure], marker, color=colour, alpha=0.7, markersize=4, label=name)
        axis.set(xlabel=MEASURES["napl"][0], ylabel=label.partition(":")[0])
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(loc="best")
        return _stamp(figure, source)


def cover(frame: pd.DataFrame, parents: pd.DataFrame, source: str) -> Figure:
    """The book's cover: accuracy against NAPL, and the unit on its way from ReLU to line in a corner."""
    require(parents, ["test_accuracy", "napl"])
    means = _by_omega(frame)
    x = np.linspace(-1, 1, 101)
    with style():
        figure, axis = _new(height=3.5)
        _accuracy_axis(axis, frame, means, parents)
        inset = axis.inset_axes((0.56, 0.36, 0.3, 0.36))
        for slope in (0.0, 0.25, 0.5, 0.75):
            inset.plot(
                x, np.maximum(x, 0) + slope * np.minimum(x, 0), color=RED, alpha=0.9 - 0.8 * slope, linewidth=1.3
            )
        inset.plot(x, x, color=GREY, linewidth=1.3, linestyle="--")
        inset.set(xticks=[], yticks=[], title="ReLU → line")
        inset.title.set_fontsize(8.5)
        inset.grid(visible=False)
        return _stamp(figure, source)


def save_cover(path: str | Path, tier: str = "quick") -> None:
    """Draw the cover from the finished runs of chapter 06 and write it as PNG.

    Args:
        path: where to.
        tier: whose runs; they are not computed here.

    Raises:
        RecordError: they are not in the store.
    """
    from nladv_core.experiments import AccuracyAndDepth
    from nladv_core.store import Store

    frame = Store().frame(AccuracyAndDepth(tier=tier).specs())
    require(frame, ["role"])
    parents, runs = summaries.parents_and_runs(frame)
    # Without matplotlib's own version in the file, equal runs give equal bytes.
    cover(runs, parents, provenance(tier, frame)).savefig(path, metadata={"Software": None})
