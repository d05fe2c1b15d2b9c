"""Figures say where they come from and draw the numbers they are given; summaries of seeds agree with sums by hand."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

import nladv_core as nl
from nladv_core import figures, slider, summaries
from nladv_core.errors import RecordError

LINE = "tier smoke · made up · torch 0 · nladv 0"


def runs() -> pd.DataFrame:
    """Two granularities, three strengths, three seeds: numbers made up so that means and deviations are easy."""
    rows = []
    for granularity, shift in (("channel", 0.0), ("layer", -0.06)):
        for omega, napl, accuracy in ((0.1, 4.0, 0.90), (0.3, 2.0, 0.80), (1.0, 0.0, 0.10)):
            for seed in (0, 1, 2):
                rows.append(
                    {
                        "granularity": granularity,
                        "omega": omega,
                        "seed": seed,
                        "napl": napl + 0.1 * seed,
                        "apl": 1.5 * napl,
                        "test_accuracy": accuracy + shift + 0.01 * (seed - 1),
                        "active_fraction": napl / 8,
                        "enw": 2 * napl,
                        "data": "digits",
                        "net": "resnet8",
                        "torch": "2.13.0",
                        "code": "abc",
                        "linearized": True,
                    }
                )
    return pd.DataFrame(rows)


def parents() -> pd.DataFrame:
    found = runs().query("granularity == 'channel' and omega == 0.1").copy()
    return found.assign(
        napl=8.0, apl=12.0, test_accuracy=[0.94, 0.95, 0.96], active_fraction=1.0, linearized=False, omega=0.0
    )


def history() -> pd.DataFrame:
    rows = [
        {"seed": seed, "epoch": epoch, "test_accuracy": 0.5 + 0.1 * epoch + 0.02 * seed, "active_fraction": 1 / epoch}
        for seed in (0, 1, 2)
        for epoch in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def comparison() -> summaries.EqualNapl:
    found = summaries.at_equal_napl(runs())
    assert found is not None
    return found


HALVES = {"a chain": torch.tensor([0.5, 0.5], dtype=torch.float64)}
POINTS = pd.DataFrame({"share": [0.0, 0.5, 1.0], "napl": [0.0, 2.0, 4.0], "network": "one"})
GROUPS = pd.DataFrame(
    [
        {"group": group, "penalty": penalty, "seed": seed, "napl": napl + 0.1 * seed, "before": before}
        for group, before in (("relu", 1.0), ("act", 0.5))
        for penalty, napl in (("alike", 0.2), ("weighted", 0.1))
        for seed in (0, 1, 2)
    ]
)

DRAWN = {
    "unit_family": lambda: figures.unit_family(LINE),
    "penalty": lambda: figures.penalty(LINE),
    "settled": lambda: figures.settled(LINE),
    "slopes_over_epochs": lambda: figures.slopes_over_epochs(torch.tensor([[0.0, 0.0], [0.5, 1.0]]), LINE),
    "active_per_layer": lambda: figures.active_per_layer(torch.tensor([[1.0, 1.0], [0.25, 0.5]]), LINE),
    "accuracy_over_epochs": lambda: figures.accuracy_over_epochs(history(), parents(), LINE),
    "skip_graph": lambda: figures.skip_graph(LINE),
    "path_histograms": lambda: figures.path_histograms(HALVES, LINE),
    "napl_against_share": lambda: figures.napl_against_share(POINTS, LINE),
    "visits": lambda: figures.visits({"relu": torch.tensor([0.25, 0.25])}, LINE),
    "napl_by_group": lambda: figures.napl_by_group(GROUPS, LINE),
    "accuracy_against_napl": lambda: figures.accuracy_against_napl(runs(), parents(), LINE),
    "active_against_omega": lambda: figures.active_against_omega(runs(), LINE),
    "gap_at_equal_napl": lambda: figures.gap_at_equal_napl(comparison(), LINE),
    "curves": lambda: figures.curves(
        runs().query("granularity == 'channel'"), "omega", {"napl": "NAPL"}, "granularity", LINE, xlabel="strength"
    ),
    "measure_against_napl": lambda: figures.measure_against_napl(runs(), "apl", LINE),
    "cover": lambda: figures.cover(runs(), parents(), LINE),
}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def axes(figure: Figure) -> Any:
    """A figure's axes, without their types: what is read from them is as various as what is drawn."""
    return figure.axes


def test_every_figure_function_is_tested_here() -> None:
    returning = {
        name
        for name, function in inspect.getmembers(figures, inspect.isfunction)
        if function.__module__ == figures.__name__ and not name.startswith("_")
        if inspect.signature(function).return_annotation == "Figure"
    }
    assert returning == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_say_where_they_come_from(name: str) -> None:
    assert LINE in " ".join(texts(DRAWN[name]())).replace("\n", " ")


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"skip_graph"}))
def test_axes_are_labelled(name: str) -> None:
    figure = DRAWN[name]()
    # The colour bar and the cover's inset explain themselves; stacked and neighbouring panels share a label.
    shown = [axis for axis in figure.axes if axis.axison and axis.get_label() != "<colorbar>"]
    assert any(axis.get_xlabel() for axis in shown) and any(axis.get_ylabel() for axis in shown)
    if len(shown) == 1:
        assert shown[0].get_xlabel() and shown[0].get_ylabel()


@pytest.mark.parametrize("name", DRAWN)
def test_sheet_is_white_and_letters_are_legible_on_a_telephone(name: str, tmp_path: Path) -> None:
    figure = DRAWN[name]()
    assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
    smallest = min(
        text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and LINE not in text.get_text()
    )
    # 330 of a telephone's 360 pixels are left for a figure.
    assert smallest * 330 / (72 * figure.get_size_inches()[0]) >= 6.0
    figure.savefig(tmp_path / "figure.png")  # what is drawn last may still fail
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("name", DRAWN)
def test_style_ends_with_the_figure(name: str) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    DRAWN[name]()
    assert dict(mpl.rcParams) == before


def test_nothing_to_draw_is_refused_with_what_to_do() -> None:
    nothing = runs().iloc[:0]
    for call in (
        lambda: figures.accuracy_against_napl(nothing, parents(), LINE),
        lambda: figures.accuracy_against_napl(runs(), nothing, LINE),
        lambda: figures.active_against_omega(nothing, LINE),
        lambda: figures.accuracy_over_epochs(nothing, parents(), LINE),
        lambda: figures.provenance("quick", nothing),
        lambda: figures.cover(nothing, parents(), LINE),
        lambda: summaries.table(nothing, parents()),
        lambda: summaries.at_equal_napl(nothing),
    ):
        with pytest.raises(RecordError, match="no finished runs .* compute them first with `nladv run`"):
            call()
    with pytest.raises(RecordError, match=r"expected \[epochs, layers\]"):
        figures.active_per_layer(torch.zeros(0, 3), LINE)
    with pytest.raises(RecordError, match=r"expected \[epochs \+ 1, units\]"):
        figures.slopes_over_epochs(torch.zeros(3), LINE)
    with pytest.raises(RecordError, match="at least one distribution"):
        figures.path_histograms({}, LINE)
    with pytest.raises(RecordError, match="one entry per ReLU layer"):
        figures.visits({}, LINE)
    with pytest.raises(RecordError, match="lack napl"):
        figures.active_against_omega(runs().drop(columns="napl"), LINE)


def test_save_cover_without_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLADV_STORE", str(tmp_path / "nothing"))
    with pytest.raises(RecordError, match="no finished runs"):
        figures.save_cover(tmp_path / "cover.png", tier="paper")
    assert not (tmp_path / "cover.png").exists()


def bars_of(axis: Any) -> list[BarContainer]:
    return [found for found in axis.containers if isinstance(found, BarContainer)]


class TestDrawnNumbers:
    def test_accuracy_against_napl(self) -> None:
        (axis,) = axes(figures.accuracy_against_napl(runs(), parents(), LINE))
        bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
        drawn = {str(bar.get_label()).split()[-1]: bar for bar in bars}
        assert set(drawn) == {"channel", "layer"}
        x, y = drawn["channel"].lines[0].get_data()
        assert np.allclose(x, [0.1, 2.1, 4.1])  # means of napl + 0, 0.1, 0.2
        assert np.allclose(y, [10, 80, 90])
        assert np.allclose(drawn["layer"].lines[0].get_ydata(), [4, 74, 84])
        horizontal, vertical = drawn["channel"].lines[2]
        # One standard deviation to either side: 0.1 in NAPL, one point of accuracy.
        assert np.allclose(np.ptp([s[:, 0] for s in horizontal.get_segments()], axis=1), 0.2)
        assert np.allclose(np.ptp([s[:, 1] for s in vertical.get_segments()], axis=1), 2.0)
        star = next(line for line in axis.lines if line.get_marker() == "*")
        assert np.allclose(star.get_data(), [[8], [95]])

    @pytest.mark.parametrize(("measure", "scale", "star"), [("apl", 1.5, 12), ("active_fraction", 100 / 8, 100)])
    def test_accuracy_against_another_measure(self, measure: str, scale: float, star: float) -> None:
        (axis,) = axes(figures.accuracy_against_napl(runs(), parents(), LINE, measure=measure))
        bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
        assert np.allclose(bars[0].lines[0].get_data(), [[0, 2 * scale, 4 * scale], [10, 80, 90]])
        assert next(line for line in axis.lines if line.get_marker() == "*").get_xdata()[0] == star
        assert measure[:3] in axis.get_xlabel().lower()

    def test_with_max_pooling_counted_where_there_is_some(self) -> None:
        some, before = (frame.assign(napl_max_pool=frame["napl"] + 1) for frame in (runs(), parents()))
        (plain,) = axes(figures.accuracy_against_napl(runs(), parents(), LINE))
        (counted,) = axes(figures.accuracy_against_napl(some, before, LINE, measure="napl_max_pool"))
        bars = [next(c for c in a.containers if isinstance(c, ErrorbarContainer)) for a in (plain, counted)]
        first, second = (np.asarray(c.lines[0].get_data()) for c in bars)
        assert np.allclose(second - first, [[1] * 3, [0] * 3])
        assert "max pooling" in counted.get_xlabel()

    def test_measure_against_napl(self) -> None:
        (axis,) = axes(figures.measure_against_napl(runs(), "active_fraction", LINE))
        clouds = [line for line in axis.lines if len(line.get_xdata()) == 9]
        assert len(clouds) == 2 and max(clouds[0].get_ydata()) == 50  # percent

    def test_curves(self) -> None:
        some = runs().query("granularity == 'channel'").assign(width=lambda f: 10 * f["omega"], omega=0.5)
        panels = {"napl": "NAPL", "test_accuracy": "accuracy"}
        before = parents().assign(width=3.0)
        figure = figures.curves(
            some, "width", panels, "omega", LINE, xlabel="factor", names={0.5: "half"}, before=before, lines=["napl"]
        )
        top, bottom = axes(figure)[:2]
        assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("NAPL", "accuracy", "factor")
        star, bars = [c for c in bottom.containers if isinstance(c, ErrorbarContainer)]
        assert np.allclose(star.lines[0].get_data(), [[3], [95]]) and star.get_label() == "before linearization"
        assert np.allclose(bars.lines[0].get_data(), [[1, 3, 10], [90, 80, 10]]) and bars.get_label() == "half"
        x, y = np.repeat([1.0, 3, 10], 3), np.tile([0, 0.1, 0.2], 3) + np.repeat([4.0, 2, 0], 3)
        fitted = next(line for line in top.lines if "R²" in str(line.get_label()))
        slope = np.cov(x, y)[0, 1] / x.var(ddof=1)
        assert np.allclose(fitted.get_ydata(), y.mean() + slope * (np.array([1, 10]) - x.mean()))
        assert f"R² {np.corrcoef(x, y)[0, 1] ** 2:.2f}" in str(fitted.get_label())
        assert "half" in texts(figure) and "before linearization" in texts(figure)
        assert bottom.get_xticks().tolist() == [1, 3, 10]

    def test_curves_on_a_logarithmic_axis_of_one_point(self) -> None:
        one = runs().query("granularity == 'channel' and omega == 0.1 and seed == 0")
        given: Any = {"xlabel": "x", "logarithmic": True, "lines": ["napl"]}
        (axis,) = axes(figures.curves(one, "omega", {"napl": "NAPL"}, "granularity", LINE, **given))
        assert axis.get_xscale() == "log" and not any("R²" in str(line.get_label()) for line in axis.lines)

    def test_single_runs_are_drawn_too(self) -> None:
        (axis,) = axes(figures.accuracy_against_napl(runs(), parents(), LINE))
        clouds = [line for line in axis.lines if len(line.get_xdata()) == 9]
        assert len(clouds) == 2
        assert np.allclose(sorted(clouds[0].get_ydata()), [9, 10, 11, 79, 80, 81, 89, 90, 91])

    def test_ticks_of_strengths_close_together_are_written_out_and_do_not_touch(self) -> None:
        close = runs().assign(omega=lambda frame: frame["omega"].rank(method="dense") * 0.001 + 0.004)
        figure = figures.active_against_omega(close, LINE)
        (axis,) = axes(figure)
        labels = [label for label in axis.get_xticklabels() if label.get_text()]
        assert labels and {float(label.get_text()) for label in labels} <= set(close["omega"].round(6))
        figure.canvas.draw()
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
        assert not axis.get_xticks(minor=True).size

    def test_active_against_omega(self) -> None:
        (axis,) = axes(figures.active_against_omega(runs(), LINE))
        assert axis.get_xscale() == "log"
        bar: Any = next(c for c in axis.containers if isinstance(c, ErrorbarContainer))
        assert np.allclose(bar.lines[0].get_data(), [[0.1, 0.3, 1.0], [50.0, 25.0, 0.0]])

    def test_omega_zero_has_a_place(self) -> None:
        (axis,) = axes(figures.active_against_omega(runs().replace({"omega": {0.1: 0.0}}), LINE))
        assert axis.get_xscale() == "symlog"
        bar: Any = next(c for c in axis.containers if isinstance(c, ErrorbarContainer))
        assert bar.lines[0].get_xdata()[0] == 0

    def test_one_seed_has_no_spread(self) -> None:
        one = runs().query("seed == 0")
        (axis,) = axes(figures.accuracy_against_napl(one, parents().query("seed == 0"), LINE))
        _, vertical = next(c for c in axis.containers if isinstance(c, ErrorbarContainer)).lines[2]
        assert np.allclose(np.ptp([s[:, 1] for s in vertical.get_segments()], axis=1), 0)

    def test_active_per_layer_puts_the_input_at_the_bottom(self) -> None:
        shares = torch.tensor([[1.0, 0.9], [0.5, 0.1], [0.2, 0.0]])
        axis = axes(figures.active_per_layer(shares, LINE))[0]
        drawn = axis.collections[0].get_array().reshape(2, 3)
        assert np.allclose(drawn, shares.numpy().T)
        low, high = axis.get_ylim()
        assert low < high  # row 0, the first layer, is the lowest

    def test_slopes_and_their_legend(self) -> None:
        slopes = torch.tensor([[0.0, 0.0, 0.0], [0.4, 1.0, 1.0], [0.3, 1.0, 1.0]])
        (axis,) = axes(figures.slopes_over_epochs(slopes, LINE))
        paths = [line.get_ydata() for line in axis.lines if len(line.get_ydata()) == 3]
        assert np.allclose(np.stack(paths, axis=1), slopes)
        assert [t.get_text() for t in axis.get_legend().get_texts()] == [
            "ends as a line (2 of 3 drawn)",
            "stays active (1)",
        ]

    def test_accuracy_over_epochs(self) -> None:
        top, bottom = axes(figures.accuracy_over_epochs(history(), parents(), LINE))
        assert np.allclose(top.lines[-1].get_data(), [[1, 2, 3], [62, 72, 82]])
        assert np.allclose(top.lines[0].get_ydata(), 95)
        assert np.allclose(bottom.lines[-1].get_ydata(), [100, 50, 100 / 3])

    def test_path_histogram_and_its_mean(self) -> None:
        histogram = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64)
        (axis,) = axes(figures.path_histograms({"t": histogram}, LINE, {"t": ("model", histogram.flip(0))}))
        assert np.allclose([patch.get_height() for patch in axis.patches], [0.25, 0, 0.75])
        assert "mean 1.5" in [t.get_text() for t in axis.get_legend().get_texts()]
        dots = next(line for line in axis.lines if line.get_marker() == "o")
        assert np.allclose(dots.get_data(), [[0.0, 2.0], [0.75, 0.25]])

    def test_visits(self) -> None:
        (axis,) = axes(figures.visits({"a": torch.tensor([0.25, 0.25]), "b": torch.tensor([1.0])}, LINE))
        assert np.allclose([patch.get_height() for patch in axis.patches], [0.5, 1.0])

    def test_napl_by_group(self) -> None:
        (axis,) = axes(figures.napl_by_group(GROUPS, LINE))
        before, alike, weighted = ([bar.get_height() for bar in bars] for bars in bars_of(axis))
        assert before == [1.0, 0.5]
        assert np.allclose(alike, [0.3, 0.3]) and np.allclose(weighted, [0.2, 0.2])
        assert [text.get_text() for text in axis.get_xticklabels()] == ["relu", "act"]
        assert {text.get_text() for text in axis.get_legend().get_texts()} == {"all units active", "alike", "weighted"}

    def test_penalty_is_the_library_s(self) -> None:
        net = nl.linearize(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()), (1,))
        price = axes(figures.penalty(LINE))[0]
        for line, p in zip(price.lines, (0.5, 1.0, 2.0), strict=True):
            for index in (0, 700, 1900):
                (unit,) = (unit for _, unit in nl.units(net))
                with torch.no_grad():
                    unit.slope.fill_(float(line.get_xdata()[index]))
                assert math.isclose(
                    nl.slope_penalty(net, p).item(), line.get_ydata()[index], rel_tol=1e-4, abs_tol=1e-6
                )

    def test_unit_family_is_the_library_s(self) -> None:
        unit = nl.ChannelPReLU((1,))
        for axis, slope in zip(axes(figures.unit_family(LINE)), (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
            x, y = axis.lines[0].get_data()
            with torch.no_grad():
                unit.slope.fill_(slope)
                expected = unit(torch.tensor(np.asarray(x), dtype=torch.float32)[:, None])[:, 0]
            assert np.allclose(y, expected, atol=1e-6)


class TestProvenance:
    def test_names_everything(self) -> None:
        line = figures.provenance("quick", runs(), what="ω = 1")
        for part in ("tier quick", "ω = 1", "digits", "resnet8", "18 runs, seeds 0, 1, 2", "torch 2.13.0", "abc"):
            assert part in line
        assert f"nladv {nl.__version__}" in line

    def test_says_when_the_code_is_another(self) -> None:
        from nladv_core.store import code_version

        today = code_version()["source"]
        assert "another version" in figures.provenance("quick", runs())
        assert "another version" not in figures.provenance("quick", runs().assign(code=today))
        assert f"code\u00a0{today}" in figures.provenance("quick")
        assert "nothing trained" in figures.provenance("quick")

    def test_one_run_one_seed(self) -> None:
        assert "1 run, seed 0 " in figures.provenance("quick", runs().iloc[:1])


class TestSummaries:
    def test_spread_by_hand(self) -> None:
        found = summaries.spread(runs(), ["granularity", "omega"], ["napl"]).iloc[0]
        assert found["granularity"] == "channel" and found["seeds"] == 3
        assert math.isclose(found["napl"], 4.1)
        assert math.isclose(found["napl_sd"], 0.1)  # 0, 0.1, 0.2 with two degrees of freedom

    def test_spread_refuses_mixed_runs(self) -> None:
        with pytest.raises(RecordError, match="some seed occurs twice"):
            summaries.spread(runs(), "omega", ["napl"])

    def test_t_interval_against_a_printed_table(self) -> None:
        found = summaries.difference([1.0, 2.0, 3.0])
        half = 4.303 * 1 / math.sqrt(3)  # two degrees of freedom, 97.5 %
        assert found.mean == 2 and found.seeds == 3
        assert math.isclose(found.low, 2 - half, abs_tol=1e-3) and math.isclose(found.high, 2 + half, abs_tol=1e-3)

    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ([1.0, 1.1, 0.9], "higher"),
            ([-1.0, -1.1, -0.9], "lower"),
            ([1.0, 2.0, 3.0], "no clear difference"),
            ([5.0, 5.0], "too few seeds"),
            ([5.0], "too few seeds"),
        ],
    )
    def test_verdicts(self, values: list[float], verdict: str) -> None:
        assert summaries.difference(values).verdict == verdict

    def test_words(self) -> None:
        assert str(summaries.difference([1.0])) == "+1.0 points, 1 seed"
        assert str(summaries.difference([0.0123], unit="")) == "+0.0123, 1 seed"
        in_layers = r"\+0\.02 layers, 95 % interval -0\.00484 to \+0\.0448, 3 seeds"
        assert re.fullmatch(in_layers, str(summaries.difference([0.01, 0.02, 0.03], unit="layers")))
        assert re.fullmatch(
            r"-2\.0 points, 95 % interval -4\.5 to \+0\.5, 3 seeds", str(summaries.difference([-1, -2, -3]))
        )
        with pytest.raises(RecordError, match="no seed"):
            summaries.difference([])

    def test_equal_napl_by_hand(self) -> None:
        # Both families share their NAPLs within a seed, so the difference is the shift of 6 points everywhere.
        found = comparison()
        assert np.allclose(found.by_seed, 6)
        assert math.isclose(found.napl[0], 0.2) and math.isclose(found.napl[-1], 4.0)  # reached by every seed
        assert found.over(high=found.middle).verdict == "higher"
        assert math.isclose(found.middle, 2.1)

    def test_equal_napl_interpolates_between_neighbours_only(self) -> None:
        rows = [("channel", 0.0, 0.2), ("channel", 2.0, 0.6), ("layer", 1.0, 0.5), ("layer", 3.0, 0.9)]
        frame = pd.DataFrame(rows, columns=["granularity", "napl", "test_accuracy"]).assign(seed=0)
        found = summaries.at_equal_napl(frame, points=3)
        assert found is not None
        assert np.allclose(found.napl, [1, 1.5, 2])
        assert np.allclose(found.by_seed, [[40 - 50, 50 - 60, 60 - 70]])
        with pytest.raises(RecordError, match="no NAPL between 5"):
            found.over(low=5)

    def test_equal_napl_without_overlap_is_none(self) -> None:
        rows = [("channel", 0.0, 0.2), ("channel", 1.0, 0.6), ("layer", 2.0, 0.5), ("layer", 3.0, 0.9)]
        frame = pd.DataFrame(rows, columns=["granularity", "napl", "test_accuracy"]).assign(seed=0)
        assert summaries.at_equal_napl(frame) is None
        assert summaries.at_equal_napl(frame.query("granularity == 'channel'")) is None

    def test_table(self) -> None:
        found = summaries.table(runs(), parents()).data
        assert list(found["slope per"]) == ["parent", *["channel"] * 3, *["layer"] * 3]
        first = found.iloc[1]
        assert (first["ω"], first["accuracy, %"], first["NAPL"], first["seeds"]) == (
            "0.1",
            "90.0 ± 1.0",
            "4.10 ± 0.10",
            3,
        )
        assert summaries.table(runs().query("seed == 0"), parents().query("seed == 0")).data["NAPL"].iloc[1] == "4.00"

    def test_runs_with_another_column(self) -> None:
        frame = runs().assign(net="resnet20v1", difficulty=0.25)
        assert set(summaries.with_depth(frame)["depth"]) == {20}
        assert set(summaries.with_task(frame)["task"]) == {"digits, difficulty 0.25"}
        assert set(summaries.with_task(frame.assign(data="cifar10", difficulty=None))["task"]) == {"cifar10"}
        inverse = summaries.with_inverse_share(frame)
        assert set(inverse["inverse"]) == {2.0, 4.0} and len(inverse) == 12  # of 18, a third has no active unit
        with pytest.raises(RecordError, match="no network has an active unit left.*lower omega"):
            summaries.with_inverse_share(frame.assign(active_fraction=0.0))

    def test_tasks(self) -> None:
        told = summaries.tasks(parents().assign(task="digits, difficulty 1")).to_html()
        assert "digits, difficulty 1" in told and "95.0 ± 1.0" in told and "8.00 ± 0.00" in told

    def test_settled_slope(self) -> None:
        # p = 2 has a closed form; p = 1 is soft thresholding; without a penalty the task has its way.
        assert math.isclose(summaries.settled_slope(0.5, 2, wanted=0.3), (0.3 + 1.0) / 2.0, abs_tol=1e-3)
        assert math.isclose(summaries.settled_slope(0.4, 1, wanted=0.3), 0.7, abs_tol=1e-3)
        assert summaries.settled_slope(0.71, 1, wanted=0.3) == 1
        assert math.isclose(summaries.settled_slope(0.0, 0.5, wanted=0.3), 0.3, abs_tol=1e-3)

    def test_nothing_is_committed_for_a_tier_without_results(self) -> None:
        from nladv_core.experiments import AccuracyAndDepth

        assert len(summaries.committed(AccuracyAndDepth(tier="smoke"))) == 0
        assert summaries.committed_records(AccuracyAndDepth(tier="smoke")) == []

    def test_every_edition_is_shown_with_the_records_there_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nladv_core import places
        from nladv_core.experiments import RetrainingMasks
        from nladv_core.store import Store

        # Committed means in data/results/<tier> of the project, and not in a store of one's own.
        monkeypatch.setattr(places, "project_root", lambda: tmp_path)
        (run,) = [spec for spec in RetrainingMasks(tier="smoke").specs() if spec.parent is None]
        nl.runs.compute(run, Store(tmp_path / "data" / "results" / "smoke", also=()), device="cpu")
        for weights in (tmp_path / "data" / "results" / "smoke").glob("*.safetensors"):
            weights.unlink()  # which are not committed
        found = list(summaries.committed_editions(RetrainingMasks, ("smoke", "paper")))
        editions = [edition for edition, _ in found]
        assert editions == [*RetrainingMasks.editions("smoke"), *RetrainingMasks.editions("paper")]
        assert [len(frame) for _, frame in found] == [1, *[0] * (len(found) - 1)]
        assert [record.key for record in summaries.committed_records(editions[0])] == [run.key()]

    def test_an_edition_says_what_sets_it_apart(self) -> None:
        from nladv_core.experiments import AccuracyAndDepth, Structure

        assert summaries.edition_title(Structure(tier="reduced", device="cpu")) == "reduced"
        edition = AccuracyAndDepth(tier="paper", dataset="cifar100", omegas=(0.001, 0.01), residual=False)
        assert summaries.edition_title(edition) == "paper; dataset cifar100; residual False; omegas 0.001, 0.01"


def test_slider_loads_nothing_and_can_be_reached_without_a_mouse() -> None:
    page = slider.unit_slider(margin=0.02)._repr_html_()
    assert not re.search(r"https?:|\bsrc=|@import|url\(", page)
    assert re.search(r'<input type="range"[^>]*aria-label="[^"]+"', page)
    assert "<noscript>" in page and "1 - 0.02" in page and "MARGIN" not in page
