"""Figures of chapters 03 to 05 draw the numbers of the records they are given; the slider over layers stands alone."""

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import synthetic
from nladv_core import effects, slider
from nladv_core import figures_protocols as pictures
from nladv_core.errors import RecordError
from nladv_core.recipes import RECIPES, Recipe
from nladv_core.specs import RunSpec
from nladv_core.store import Record
from test_figures import LINE, axes, texts

LAYERS = ["layer1.0.relu1", "layer1.0.relu2", "layer2.0.relu1", "relu"]


def record(spec: RunSpec, accuracy: float, active: list[list[float]] | None = None, channels: int = 4) -> Record:
    """A finished run with made-up numbers: `active` channels by epoch and layer, each layer with `channels` of them."""
    active = active or [[channels] * len(LAYERS)]
    last = active[-1]
    share = sum(last) / (channels * len(last))
    history = [{"epoch": i + 1, "active": row} for i, row in enumerate(active)]
    made = synthetic.record(spec, history=history, test_accuracy=accuracy, active_fraction=share, napl=1, apl=1, enw=1)
    units = [{"name": name, "channels": channels, "active": count} for name, count in zip(LAYERS, last, strict=True)]
    return replace(made, units=units)


def spec(seed: int = 0, **more: Any) -> RunSpec:
    return RunSpec(data="digits", net="resnet8", recipe=RECIPES["smoke-train"], seed=seed, **more)


def family(residual: bool = True, accuracy: float = 0.9) -> list[Record]:
    """A base network, its linearized form, three new networks for two kinds of masks."""
    base = spec(residual=residual)
    linearized = spec(residual=residual, parent=base, omega=0.1)
    half = [[2.0] * len(LAYERS)]
    found = [record(base, 0.95), record(linearized, accuracy, half)]
    for kind, shift in (("exact", 0.01), ("global", -0.04)):
        for seed in (0, 1, 2):
            again = spec(100 + seed, residual=residual, parent=linearized, masks=kind)
            found.append(record(again, accuracy + shift + 0.01 * (seed - 1), half))
    return found


def starts(goal: float = 0.5, seeds: tuple[int, ...] = (0, 1, 2), **more: Any) -> list[Record]:
    """Starts 0, 2 and 10, three seeds, parents included; half of the units inactive, but not in start 10 of seed 2."""
    found = []
    for seed in seeds:
        for start, accuracy in ((0, 0.5), (2, 0.8), (10, 0.9)):
            parent = None
            if start:
                recipe = Recipe(epochs=start, lr=0.1, batch=64, flip=False)
                parent = RunSpec(data="digits", net="resnet8", recipe=recipe, seed=seed, **more)
                found.append(record(parent, 0.95))
            run = spec(seed, parent=parent, omega=1.0, goal=goal, **more)
            left = 3.0 if (start, seed) == (10, 2) else 2.0
            found.append(record(run, accuracy + 0.01 * seed, [[4.0] * 4, [left] * 4]))
    return found


SHARES = {0: [[4, 4, 3, 1], [4, 2, 1, 0]], 1: [[4, 4, 4, 2], [2, 2, 0, 0]]}


def linearized(residual: bool = True) -> list[Record]:
    """Two seeds with two epochs of four layers, and their parents."""
    found = []
    for seed, active in SHARES.items():
        base = spec(seed, residual=residual)
        run = spec(seed, residual=residual, parent=base, omega=0.1)
        found += [record(base, 0.9), record(run, 0.8, [[float(n) for n in row] for row in active])]
    return found


MASKS = {
    "relu": torch.tensor([True, True, False]),
    "layer1.0.relu1": torch.tensor([[[True]], [[False]]]),
    "layer10.0.relu1": torch.tensor([False, False]),
}
ORDER = ["layer1.0.relu1", "layer10.0.relu1", "relu"]

DRAWN = {
    "per_seed": lambda: pictures.per_seed({"a row": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: None}}, LINE, label="points"),
    "masks_by_layer": lambda: pictures.masks_by_layer({"exact": MASKS, "other": MASKS}, ORDER, LINE),
    "retrained_accuracy": lambda: pictures.retrained_accuracy(family() + family(False), LINE),
    "early_and_late": lambda: pictures.early_and_late({"digits, restart": starts()}, LINE),
    "share_maps": lambda: pictures.share_maps({"S": linearized(), "NS": linearized(False)}, LINE),
}


def test_every_figure_function_is_tested_here() -> None:
    returning = {
        name
        for name, function in inspect.getmembers(pictures, inspect.isfunction)
        if function.__module__ == pictures.__name__ and not name.startswith("_")
        if inspect.signature(function).return_annotation == "Figure"
    }
    assert returning == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_say_where_they_come_from_and_label_their_axes(name: str) -> None:
    figure = DRAWN[name]()
    assert LINE in " ".join(texts(figure)).replace("\n", " ")
    shown = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert any(axis.get_xlabel() for axis in shown)
    assert any(axis.get_ylabel() or any(tick.get_text() for tick in axis.get_yticklabels()) for axis in shown)


@pytest.mark.parametrize("name", DRAWN)
def test_letters_are_legible_on_a_telephone_and_the_style_ends(name: str, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure: Figure = DRAWN[name]()
    assert dict(mpl.rcParams) == before
    sizes = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()]
    stamp = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if LINE in text.get_text()]
    assert min(set(sizes) - set(stamp)) * 330 / (72 * figure.get_size_inches()[0]) >= 6.0
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def points(axis: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axis.lines]


class TestPerSeed:
    def test_seeds_mean_and_interval(self) -> None:
        (axis,) = axes(DRAWN["per_seed"]())
        found = points(axis)
        assert ([0.0, 0.0], [0, 1]) in found  # the line at zero
        assert ([1.0, 2.0, 3.0], [0, 0, 0]) in found and ([2.0], [0.0]) in found
        half = 4.303 / math.sqrt(3)  # a printed table's quantile, two degrees of freedom
        interval = next(x for x, y in found if len(x) == 2 and y == [0, 0])
        assert np.allclose(interval, [2 - half, 2 + half], atol=1e-3)
        assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a row", "b"]
        assert "no number" in texts(axis.figure)

    def test_one_seed_has_no_interval(self) -> None:
        (axis,) = axes(pictures.per_seed({"a": {3: 1.5}}, LINE, label="points", reference=None))
        assert points(axis) == [([1.5], [0.0])]

    def test_a_wide_interval_does_not_push_the_points_together(self) -> None:
        (axis,) = axes(pictures.per_seed({"a": {0: 1.0, 1: 2.0}}, LINE, label="points"))
        low, high = axis.get_xlim()
        assert -1 < low < 0 and 2 < high < 3  # the interval of two seeds is 13 wide
        (axis,) = axes(pictures.per_seed({"a": {0: 1.0}}, LINE, label="share", limits=(0, 1)))
        assert axis.get_xlim() == (0, 1)

    def test_rows_from_the_top_down(self) -> None:
        low, high = axes(DRAWN["per_seed"]())[0].get_ylim()
        assert low > high

    @pytest.mark.parametrize("rows", [{}, {"a": {}}, {"a": {0: None}}])
    def test_nothing_to_draw(self, rows: dict) -> None:
        with pytest.raises(RecordError, match="no seed with a number"):
            pictures.per_seed(rows, LINE, label="points")


class TestMasks:
    def test_a_cell_for_each_unit_in_the_order_of_layers(self) -> None:
        axis = axes(DRAWN["masks_by_layer"]())[0]
        (image,) = axis.images
        cells = np.ma.filled(image.get_array().astype(float), np.nan)
        assert np.array_equal(cells, [[1, 0, 1], [0, 0, 1], [np.nan, np.nan, 0]], equal_nan=True)
        assert image.origin == "lower" and image.get_extent() == [0.5, 3.5, 0.5, 3.5]
        assert to_hex(image.cmap(image.norm(1.0))) == pictures.BLUE
        assert axis.get_title(loc="left") == "exact: 3 of 7 active"
        assert sorted(line.get_xdata()[0] for line in axis.lines) == [1.5, 2.5]  # between the stages

    def test_refuses_foreign_masks(self) -> None:
        with pytest.raises(RecordError, match="not those of the 2 layers"):
            pictures.masks_by_layer({"exact": MASKS}, ORDER[:2], LINE)
        for masks, layers in (({}, ORDER), ({"exact": {}}, [])):
            with pytest.raises(RecordError, match="found no masks"):
                pictures.masks_by_layer(masks, layers, LINE)


class TestRetrained:
    def test_rows_by_kind_and_a_panel_by_architecture(self) -> None:
        short, plain = axes(pictures.retrained_accuracy(family() + family(False, 0.7), LINE))
        assert short.get_title(loc="left") == "resnet8 S" and plain.get_title(loc="left") == "resnet8 NS"
        assert [tick.get_text() for tick in short.get_yticklabels()] == [
            "all units active",
            "linearized",
            "new, exact masks",
            "new, permuted over the network",
        ]
        single = {y[0]: x[0] for x, y in points(short) if len(x) == 1}
        assert np.allclose([single[row] for row in range(4)], [95, 90, 91, 86])
        assert np.allclose(next(x for x, y in points(short) if len(x) == 3 and y == [2, 2, 2]), [90, 91, 92])
        assert any(np.allclose(x, 70) for x, _ in points(plain) if len(x) == 2)  # the dotted line

    def test_needs_a_linearized_network(self) -> None:
        with pytest.raises(RecordError, match="no linearized network"):
            pictures.retrained_accuracy(family()[:1], LINE)


class TestEarlyAndLate:
    def test_means_bands_and_missed_goals(self) -> None:
        top, bottom = axes(DRAWN["early_and_late"]())
        assert np.allclose(top.lines[1].get_data(), [[0, 2, 10], [51, 81, 91]])
        assert np.allclose(bottom.lines[1].get_data(), [[0, 2, 10], [50, 50, (50 + 50 + 25) / 3]])
        (band,) = top.collections
        drawn = {tuple(np.round(vertex, 6)) for vertex in band.get_paths()[0].vertices}
        assert {(0, 50), (0, 52), (10, 90), (10, 92)} <= drawn  # one standard deviation: one point of accuracy
        crosses = [line for line in top.lines if line.get_marker() == "x"]
        assert [(list(line.get_xdata()), list(line.get_ydata())) for line in crosses] == [([10], [92.0])]
        assert any(np.allclose(line.get_ydata(), 50) and line.get_linestyle() == ":" for line in bottom.lines)
        labels = [text.get_text() for text in top.get_legend().get_texts()]
        assert labels == ["digits, restart", "goal not reached"]

    def test_several_metrics_beside_what_was_never_linearized(self) -> None:
        runs = [run for run in starts() if run.spec.goal is not None]
        for i, run in enumerate(runs):
            run.metrics["test_perplexity"], run.metrics["test_bleu"] = 5.0 + i, 30.0
        plain = [record(spec(seed), 0.9) for seed in (0, 1)]
        for run, perplexity in zip(plain, (3.0, 5.0), strict=True):
            run.metrics["test_perplexity"], run.metrics["test_bleu"] = perplexity, 40.0
        both = ("test_perplexity", "test_bleu")
        figure = pictures.early_and_late({"words": runs}, LINE, columns=both, reference=plain)
        top, middle, bottom = axes(figure)
        assert "perplexity" in top.get_ylabel() and "BLEU" in middle.get_ylabel() and "inactive" in bottom.get_ylabel()
        lines = [[float(y) for y in line.get_ydata()] for line in top.lines if line.get_linestyle() == ":"]
        assert lines == [[4.0, 4.0]] and "never linearized" in [t.get_text() for t in top.get_legend().get_texts()]
        (mean,) = (line for line in top.lines if len(line.get_xdata()) == 3)
        assert np.allclose(mean.get_data(), [[0, 2, 10], [8, 9, 10]])
        assert all(patch.get_xy()[1] == pytest.approx(4 - math.sqrt(2)) for patch in top.patches)

    def test_one_seed_and_one_start(self) -> None:
        one = [run for run in starts(seeds=(0,)) if effects.start_epoch(run.spec) == 0]
        top, _ = axes(pictures.early_and_late({"digits": one}, LINE))
        assert np.allclose(top.lines[1].get_data(), [[0], [50]])

    def test_starts_have_ticks_and_crowded_ones_an_axis_that_parts_them(self) -> None:
        _, bottom = axes(DRAWN["early_and_late"]())
        assert list(bottom.get_xticks()) == [0, 2, 10] and bottom.get_xscale() == "linear"
        late = [run for run in starts(seeds=(0,)) if run.spec.goal is not None]
        far = Recipe(epochs=100, lr=0.1, batch=64, flip=False)
        parent = RunSpec(data="digits", net="resnet8", recipe=far)
        late.append(record(spec(parent=parent, omega=1.0, goal=0.5), 0.9, [[2.0] * 4]))
        figure = pictures.early_and_late({"digits": late}, LINE)
        top, bottom = axes(figure)
        assert "square roots" in bottom.get_xlabel()
        figure.draw_without_rendering()
        places = [bottom.transData.transform((x, 0))[0] for x in (0, 2, 10, 100)]
        assert np.allclose((places[1] - places[0]) / (places[3] - places[0]), math.sqrt(2) / 10)

    def test_reached_within_rounding(self) -> None:
        run = record(spec(omega=1.0, goal=0.75), 0.5, [[1.0] * 4])
        assert run.reached
        assert not record(spec(omega=1.0, goal=0.76), 0.5, [[1.0] * 4]).reached
        assert not record(spec(), 0.5).reached

    def test_needs_a_run_with_a_goal(self) -> None:
        for lines in ({}, {"digits": [record(spec(), 0.9)]}):
            with pytest.raises(RecordError, match="no run with a goal"):
                pictures.early_and_late(lines, LINE)

    @pytest.mark.parametrize(
        ("given", "by"),
        [([0, 5, 15, 50, 200], 15), ([10, 0, 5, 2], 2), ([0, 15], None), ([15, 20, 30], 20), ([0], None), ([], None)],
    )
    def test_early_start(self, given: list[int], by: int | None) -> None:
        assert pictures.early_start(given) == by


class TestStructure:
    MEAN = [[1, 1, 1, 1], [1, 1, 7 / 8, 3 / 8], [6 / 8, 4 / 8, 1 / 8, 0]]

    def test_mean_shares_by_hand(self) -> None:
        assert np.allclose(pictures.mean_shares(linearized()), self.MEAN)
        with pytest.raises(RecordError, match="no linearized run"):
            pictures.mean_shares([record(spec(), 0.9)])
        other = record(spec(5, parent=spec(5), omega=0.1), 0.9, [[4.0] * 4])
        with pytest.raises(RecordError, match="layers or epochs"):
            pictures.mean_shares([*linearized(), other])

    def test_maps_put_the_input_at_the_bottom(self) -> None:
        figure = DRAWN["share_maps"]()
        short, plain = [axis for axis in axes(figure) if axis.get_label() != "<colorbar>"]
        (image,) = short.images
        assert np.allclose(image.get_array(), np.transpose(self.MEAN))
        assert image.origin == "lower" and image.get_extent() == [-0.5, 2.5, 0.5, 4.5]
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        assert {line.get_ydata()[0] for line in plain.lines} == {2.5, 3.5}  # after layers 2 and 3
        assert {"stage 1", "stage 2", "relu"} <= set(texts(figure))

    def test_one_map_alone(self) -> None:
        shown = [
            axis for axis in pictures.share_maps({"S": linearized()}, LINE).axes if axis.get_label() != "<colorbar>"
        ]
        assert len(shown) == 1

    def test_needs_runs(self) -> None:
        for groups in ({}, {"S": []}):
            with pytest.raises(RecordError, match="no linearized run"):
                pictures.share_maps(groups, LINE)

    def test_stages(self) -> None:
        assert pictures.stages(LAYERS) == [("stage 1", 0, 2), ("stage 2", 2, 1), ("relu", 3, 1)]
        assert pictures.stages(["relu", "features.3"]) == [("relu", 0, 1), ("features", 1, 1)]
        assert pictures.stages([]) == []


def test_groups_keep_their_order_and_tell_apart_what_differs() -> None:
    runs = [*family(False), *family()]
    assert list(pictures.by_architecture(runs)) == ["resnet8 NS", "resnet8 S"]
    wide = RunSpec(data="cifar10", net="resnet8", recipe=RECIPES["smoke-train"], width=2.0)
    found = pictures.by_architecture([*family(), record(wide, 0.5)])
    assert {name: len(group) for name, group in found.items()} == {
        "resnet8 S on digits": 8,
        "resnet8 S, width × 2 on cifar10": 1,
    }
    tasks = pictures.by_task([*starts(difficulty=0.25), *starts(difficulty=1.0), record(wide, 0.5)])
    assert list(tasks) == ["digits, difficulty 0.25", "digits, difficulty 1", "cifar10"]


class TestLayerSlider:
    def shares(self) -> dict[str, np.ndarray]:
        return {
            "resnet8 S": np.array([[1.0, 1.0, 1.0], [0.5, 0.2, 0.25001]]),
            "<b>NS</b>": np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
        }

    def page(self) -> str:
        return slider.layer_slider(self.shares(), [("stage 1", 0, 2), ("relu", 2, 1)])._repr_html_()

    def test_loads_nothing_and_can_be_reached_without_a_mouse(self) -> None:
        page = self.page()
        assert not re.search(r"https?:|\bsrc=|@import|url\(", page)
        assert re.search(r'<input type="range" min="0" max="1" step="1" value="1"\s+aria-label="[^"]+"', page)
        assert "<noscript>" in page and not re.search(r"\b(IDENTITY|LAST|DRAWINGS|SAID|DATA|HEIGHT)\b", page)

    def test_shows_the_last_epoch_without_scripts(self) -> None:
        bars = re.findall(
            r'<rect( class="strong")? x="[\d.]+" width="[\d.]+" y="([\d.]+)" height="([\d.]+)"/>', self.page()
        )
        assert [float(size) for _, _, size in bars] == [45, 18, 22.5, 0, 0, 0]
        assert all(math.isclose(float(y) + float(size), foot, abs_tol=0.02)
                   for (_, y, size), foot in zip(bars, [112] * 3 + [242] * 3, strict=True))  # fmt: skip
        assert [bool(strong) for strong, *_ in bars] == [True, False, False, False, False, False]

    def test_carries_every_epoch_in_numbers_and_words(self) -> None:
        found = re.search(r"const data = (\{.*\});", self.page())
        assert found
        data = json.loads(found[1])
        assert np.allclose(data["shares"], [shares for shares in self.shares().values()], atol=1e-4)
        assert len(data["said"]) == 2
        assert "1 of 3 layers are above half the largest share, 1 of them" in data["said"][1]
        assert data["said"][1].endswith("no unit is active any more.")

    def test_names_cannot_break_the_page(self) -> None:
        markup = self.page().split("<script>")[0]
        assert "<b>" not in markup and "&lt;b&gt;NS" in markup
        assert slider.layer_slider({"</script>": np.ones((2, 1))})._repr_html_().count("</script>") == 1

    def test_two_on_one_page_have_names_of_their_own(self) -> None:
        pages = [slider.layer_slider({"a": np.full((2, 3), share)})._repr_html_() for share in (0.5, 1.0)]
        names = [re.findall(r'id="([^"]+)"', page) for page in pages]
        assert names[0] != names[1] and all(len(found) == 1 for found in names)

    def test_nothing_to_draw_is_refused(self) -> None:
        for shares in ({}, {"a": np.zeros(3)}, {"a": np.zeros((0, 3))}):
            with pytest.raises(RecordError, match="no active shares"):
                slider.layer_slider(shares)
        with pytest.raises(RecordError, match="number of epochs"):
            slider.layer_slider({"a": np.ones((2, 3)), "b": np.ones((3, 3))})
