"""Specifications and keys, the store under damage and murder, and many runs at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nladv_core import cli, runs, store, training
from nladv_core.errors import RecordError, SpecError
from nladv_core.linearize import active_counts, units
from nladv_core.paths import path_length
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.reports import report
from nladv_core.runs import Record, RecordWarning, RunFailed, RunSpec, Store, run

RECIPE = Recipe(epochs=2, lr=0.05, batch=32, flip=False)


def small(**more: Any) -> RunSpec:
    fields: dict[str, Any] = {"data": "digits", "net": "resnet8", "width": 0.125, "size": 8, "train": 96, "test": 50}
    return RunSpec(**(fields | {"recipe": RECIPE} | more))


PARENT = small()
OTHER_PARENT = small(seed=1)
CHILD = small(parent=PARENT, omega=2.0)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one parent and one linearization; copy it before doing damage."""
    folder = tmp_path_factory.mktemp("filled")
    run([CHILD, PARENT], Store(folder, also=()), progress=False)
    return Store(folder, also=())


@pytest.fixture
def copied(filled: Store, tmp_path: Path) -> Store:
    shutil.copytree(filled.folder, tmp_path / "runs")
    return Store(tmp_path / "runs", also=())


# ------------------------------------------------------------------------------------------------- specs and keys


def test_keys_are_pinned() -> None:
    """Whoever changes these makes every committed record unreachable."""
    parent = RunSpec(data="cifar10", net="resnet56", recipe=RECIPES["cifar-train"])
    child = replace(parent, parent=parent, recipe=RECIPES["cifar-linearize"], omega=0.003, seed=1)
    retrained = replace(parent, parent=child, masks="layer", seed=2)
    assert [spec.key() for spec in (parent, child, retrained, PARENT)] == PINNED


PINNED = ["820c586a4a46", "3d02d631a76b", "1d9b20eae37a", "3dc6ddd95169"]


def test_a_key_is_a_digest_of_what_differs_from_the_defaults() -> None:
    """Recomputed by hand, from the text as it must be."""
    import hashlib

    spec = RunSpec(data="cifar10", net="resnet20", recipe=Recipe(epochs=3, lr=1, batch=64), omega=0.5)
    text = '{"data":"cifar10","net":"resnet20","omega":0.5,"recipe":{"batch":64,"epochs":3,"lr":1.0}}'
    assert spec.key() == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_equal_values_have_equal_keys_whatever_their_type() -> None:
    plain = RunSpec(data="cifar10", net="resnet8", recipe=Recipe(epochs=2, lr=1, batch=8), omega=1, seed=3)
    other = RunSpec(
        data="cifar10",
        net="resnet8",
        recipe=Recipe(epochs=2.0, lr=np.float32(1), batch=np.int64(8), milestones=[]),  # type: ignore[arg-type]
        omega=np.float64(1),
        seed=np.int32(3),  # type: ignore[arg-type]
        size=32,
        width=1,
    )
    assert plain == other and plain.key() == other.key() and hash(plain) == hash(other)
    digits = RunSpec(data="digits", net="resnet8", recipe=RECIPE)
    assert digits.key() == replace(digits, size=16, difficulty=0.5, train=6000, test=2000).key()


CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"net": "resnet8v1"},
    {"width": 0.25},
    {"residual": False},
    {"shortcut": "B"},
    {"size": 9},
    {"difficulty": 0.4},
    {"train": 97},
    {"test": 51},
    {"recipe": replace(RECIPE, lr=0.06)},
    {"precision": "bfloat16"},
    {"omega": 1.0},
    {"omega": 1.0, "start": 1},
    {"omega": 1.0, "goal": 0.5},
    {"omega": 1.0, "goal": 0.5, "pull_back": True},
    {"omega": 1.0, "granularity": "layer"},
    {"omega": 1.0, "p": 1.0},
    {"omega": 1.0, "margin": 0.02},
    {"parent": PARENT},
    {"parent": CHILD},
    {"parent": CHILD, "masks": "exact", "seed": 1},
    {"parent": CHILD, "masks": "layer", "seed": 1},
    {"parent": CHILD, "masks": "layer", "seed": 1, "weights": PARENT},
    {"parent": CHILD, "masks": "layer", "seed": 1, "weights": OTHER_PARENT},
    {"held_out": 10},
    {"recipe": replace(RECIPE, judged=2)},
    {"omega": 2.0, "slope_lr": 2.0},
    {"omega": 2.0, "goal": 0.5, "measure": "relus"},
    {"omega": 2.0, "goal": 0.5, "measure": "napl"},
    {"omega": 2.0, "price": "napl"},
    {"omega": 2.0, "price": "relus"},
    {
        **dict.fromkeys(("size", "train", "test")),
        "data": "cifar10",
        "net": "resnet20v1",
        "width": 1,
        "recipe": UNTRAINED,
        "published": "akamaster/resnet20",
    },
]


def test_every_field_is_part_of_the_key_and_survives_json() -> None:
    specs = [PARENT, *(small(**change) for change in CHANGES)]
    assert len({spec.key() for spec in specs}) == len(specs)
    named = {name for change in CHANGES for name in change}
    assert named == set(RunSpec.__dataclass_fields__)
    for spec in specs:
        again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec and again.key() == spec.key()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"omega": -1}, "omega is -1, expected at least 0"),
        ({"omega": float("nan")}, "omega is nan"),
        ({"omega": "0.1"}, "omega is '0.1', expected a finite number"),
        ({"omega": 1, "goal": 0.0}, "goal is 0"),
        ({"omega": 1, "goal": 1.0}, "goal is 1"),
        ({"data": "cifra10"}, "did you mean 'cifar10'?"),
        ({"net": "resnet9"}, "resnet8"),
        ({"omega": 1, "granularity": "chanel"}, "did you mean 'channel'?"),
        ({"omega": 1, "start": 2}, "start is 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True, expected an integer"),
        ({"precision": "half"}, "expected one of float32, bfloat16"),
        ({"masks": "exact"}, "give one"),
        ({"masks": "exact", "parent": PARENT}, "linearized parent"),
        ({"masks": "exact", "parent": CHILD, "omega": 1}, "unregularised"),
        ({"parent": PARENT, "width": 1}, "must agree"),
        ({"parent": CHILD, "granularity": "layer"}, "must agree"),
        ({"granularity": "layer"}, "nothing is linearized"),
        ({"goal": 0.5}, "omega is 0"),
        ({"omega": 1, "pull_back": True}, "no goal"),
        ({"residual": False, "shortcut": "B"}, "no residual connections"),
        ({"data": "cifar10"}, "leave size and difficulty out"),
        ({"size": 4}, "8 to 128 pixels"),
        ({"recipe": {"epochs": 2}}, "expected a Recipe"),
        ({"recipe": UNTRAINED}, "only a published network may do"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(change: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=".*") as refusal:
        small(**change)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], "found list, expected an object"),
        ({"data": "digits", "net": "resnet8"}, "recipe missing"),
        ({"data": "digits", "nett": "resnet8"}, "unknown field 'nett'; did you mean 'net'?"),
        ({"data": "digits", "net": "resnet8", "recipe": {"epochs": 1}}, "lr, batch missing"),
        (
            {"data": "digits", "net": "resnet8", "recipe": {"epochs": 1, "lr": 1, "batch": 1, "x": 1}},
            "unknown field 'x'",
        ),
    ],
)
def test_json_that_is_no_spec_is_refused(found: Any, told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        RunSpec.from_json(found)
    assert told in str(refusal.value)


# ------------------------------------------------------------------------------------------------------- records


def test_a_record_holds_what_happened(filled: Store) -> None:
    record = filled.record(CHILD)
    assert record.spec == CHILD and record.key == CHILD.key()
    assert [row["epoch"] for row in record.history] == [1, 2]
    assert record.metrics["test_accuracy"] == record.history[-1]["test_accuracy"]
    assert record.metrics["train_loss"] == record.history[-1]["train_loss"]
    net = filled.network(CHILD)
    assert {unit["name"]: (unit["active"], unit["channels"]) for unit in record.units} == active_counts(net)
    assert [unit["active"] for unit in record.units] == record.history[-1]["active"]
    assert record.metrics["napl"] == path_length(net, (3, 8, 8)).mean
    assert record.metrics["apl"] == path_length(net, (3, 8, 8), normalized=False).mean
    active = sum(unit["active"] for unit in record.units)
    assert record.metrics["active_fraction"] == active / sum(unit["channels"] for unit in record.units)
    assert record.metrics["enw"] == pytest.approx(active / len(record.units))
    assert record.parent == {"key": PARENT.key(), "sha256": filled.record(PARENT).files["weights"]["sha256"]}
    assert (record.torch, record.device) == (torch.__version__, "cpu")
    assert record.code["source"] == store.code_version()["source"]
    plain = filled.record(PARENT)
    assert plain.metrics["napl"] == 5 and plain.metrics["active_fraction"] == 1  # ResNet-8: 3 blocks + 1 + 2 · ½
    assert plain.parent is None and set(plain.files) == {"weights"}


# ResNet-8 on images of 8 pixels: three, two and two call sites with feature maps of 8, 4 and 2 pixels a side.
SIDES = (8, 8, 8, 4, 4, 2, 2)


def met(net: torch.nn.Module) -> float:
    """ReLUs that one image meets, counted one by one."""
    count = 0.0
    for (_, unit), side in zip(units(net), SIDES, strict=True):
        for channel in unit.active_channels().tolist():
            count += channel * side * side
    return count


def measured(net: torch.nn.Module, measure: str) -> float:
    return path_length(net, (3, 8, 8)).mean if measure == "napl" else met(net)


def dearest(net: torch.nn.Module, measure: str) -> float:
    """The most that a single slope counts: each alone, of pixels the first of each channel."""
    for _, unit in units(net):
        unit.active.fill_(False)
    found = []
    for _, unit in units(net):
        for first in unit.active.view(len(unit.active), -1)[:, 0]:
            first.fill_(True)
            found.append(measured(net, measure))
            first.fill_(False)
    return max(found)


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
@pytest.mark.parametrize(("measure", "goal"), [("napl", 2.7), ("relus", 300.0)])
def test_a_run_ends_just_below_a_goal_in_what_it_measures(
    filled: Store, tmp_path: Path, granularity: str, measure: str, goal: float
) -> None:
    live = Store(tmp_path, also=[filled.folder])
    spec = replace(CHILD, granularity=granularity, goal=goal, measure=measure, price=measure, omega=20.0)
    told: list[str] = []
    record = runs.compute(spec, live, device="cpu", tell=told.append)
    net = live.network(spec)
    left = measured(net, measure)
    assert record.metrics[measure] == pytest.approx(left, abs=1e-9) and record.reached and not told
    assert ("relus" in record.metrics) == (measure == "relus")
    assert goal - dearest(net, measure) < left <= goal * (1 + 1e-9)
    again = Record.read(next(live.folder.glob(f"{spec.key()}.json")))
    assert again.metrics == record.metrics and again.reached


def test_a_price_is_a_mean_of_one_times_what_a_slope_counts(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def only_looks(*_: Any, price_weights: Any, measure_weights: Any, **__: Any) -> Any:
        seen.append((price_weights, measure_weights))
        raise SpecError("seen")

    monkeypatch.setattr(training, "fit", only_looks)
    live = Store(tmp_path, also=[filled.folder])
    for change in (
        {"price": "relus"},
        {"price": "relus", "granularity": "pixel"},
        {"price": "relus", "granularity": "layer"},
        {},
    ):
        with pytest.raises(SpecError, match="seen"):
            runs.compute(replace(CHILD, **change), live, device="cpu")
    pixels = [side**2 for side in SIDES]
    channels = [2, 2, 2, 4, 4, 8, 8]
    each = [list(price_weights.values()) for price_weights, _ in seen[:3]]
    mean = sum(p * c for p, c in zip(pixels, channels, strict=True)) / sum(channels)
    for by_channel, count, pixel_count in zip(each[0], channels, pixels, strict=True):
        assert by_channel.tolist() == pytest.approx([pixel_count / mean] * count)
    for by_channel, pixel_count in zip(each[1], pixels, strict=True):  # each pixel's slope is charged 1, as in SNL
        assert (by_channel / pixel_count).tolist() == pytest.approx([1.0] * len(by_channel))
    assert sum(float(by_channel.sum()) for by_channel in each[2]) == pytest.approx(len(SIDES))
    assert seen[3] == (None, None), "units: no weights at all, so that no bit changes"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"goal": 5.0, "measure": "napl"}, "its goal is a NAPL of 5, and its NAPL is 5 at its beginning"),
        ({"goal": 7.25, "measure": "napl"}, "its goal is a NAPL of 7.25, and its NAPL is 5 at its beginning"),
        ({"goal": 1e6, "measure": "relus"}, "its goal is 1,000,000 ReLUs, and there are 576 at its beginning"),
    ],
)
def test_a_goal_above_what_the_network_has_is_refused(
    filled: Store, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    spec = replace(CHILD, **change)
    live = Store(tmp_path, also=[filled.folder])
    with pytest.raises(SpecError) as refusal:
        runs.compute(spec, live, device="cpu")
    assert f"run {spec.key()}" in str(refusal.value) and f"{told}; give a goal below that" in str(refusal.value)
    assert "\n" not in str(refusal.value) and live.state(spec) == "missing"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"goal": 0.5, "omega": 0.46}, "its goal is a share of 0.5 of its units inactive, and 0 of them are"),
        ({"goal": 1.5, "measure": "napl", "omega": 0.46}, "its goal is a NAPL of 1.5, and its NAPL is 5"),
        ({"goal": 90, "measure": "relus", "price": "napl", "omega": 0.01}, "its goal is 90 ReLUs, and there are 576"),
    ],
)
def test_a_missed_goal_is_told_in_one_sentence_and_kept(
    filled: Store, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    spec = replace(CHILD, **change)
    live = Store(tmp_path, also=[filled.folder])
    said: list[str] = []
    runs.compute(spec, live, device="cpu", tell=said.append)
    (sentence,) = said
    assert sentence.startswith(f"run {spec.key()}") and f"missed its goal: {told}; give it a larger omega" in sentence
    assert "\n" not in sentence
    assert live.state(spec) == "done" and not live.record(spec).reached


def test_sentences_take_budgets_too(tmp_path: Path) -> None:
    words: dict[str, Any] = {"data": "number-words", "net": "transformer1", "width": 1 / 16, "train": 64, "test": 20}
    recipe = Recipe(epochs=3, lr=0.5, batch=16, flip=False)
    for measure, share in (("napl", 0.6), ("relus", 0.6)):
        spec = RunSpec(**words, recipe=recipe, omega=3.0, goal=0.01, measure=measure, price=measure)
        task = runs.tasks.of(runs._load("number-words", spec.size, None, 64, 20))
        example = runs.nets.example(spec.net, task.shape)
        net = store.with_slopes(store.untrained(spec, task.outputs), spec, task.shape)
        there = report(net, example).totals[{"napl": "napl", "relus": "relu_count"}[measure]]
        spec = replace(spec, goal=share * there)
        place = Store(tmp_path / measure, also=())
        record = runs.compute(spec, place, device="cpu")
        left = report(place.network(spec), example).totals[{"napl": "napl", "relus": "relu_count"}[measure]]
        assert record.reached and record.metrics[measure] == pytest.approx(left) and 0.5 * there < left <= spec.goal


def test_a_record_keeps_the_final_epoch_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.fit

    def falling(*arguments: Any, **more: Any) -> Any:
        for row in real(*arguments, **more):
            yield row | {"test_accuracy": 1 - row["epoch"] / 10, "train_loss": row["epoch"], "train_accuracy": 0.5}

    monkeypatch.setattr(training, "fit", falling)
    place = Store(tmp_path, also=())
    run([PARENT], place, progress=False)
    metrics = place.record(PARENT).metrics
    assert (metrics["test_accuracy"], metrics["train_loss"]) == (0.8, 2)


def test_the_network_of_a_record_is_the_one_that_was_measured(filled: Store) -> None:
    data = runs._load("digits", 8, 0.5, 96, 50)
    for spec in (PARENT, CHILD):
        assert training.accuracy(filled.network(spec), data) == filled.record(spec).metrics["test_accuracy"]
    masks = filled.masks(CHILD)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        unit["name"]: unit["active"] for unit in filled.record(CHILD).units
    }


def test_a_frame_has_one_row_per_finished_run(filled: Store) -> None:
    frame = filled.frame([PARENT, CHILD, small(seed=9)])
    assert list(frame["key"]) == [PARENT.key(), CHILD.key()]
    assert list(frame["omega"]) == [0, 2] and list(frame["linearized"]) == [False, True]
    assert frame["parent"].isna().tolist() == [True, False] and frame["parent"][1] == PARENT.key()
    for column in ("test_accuracy", "train_loss", "napl", "apl", "enw", "active_fraction", "wall_s", "epochs"):
        assert frame[column].notna().all()


def test_nothing_is_computed_twice(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed although it is stored")

    monkeypatch.setattr(runs, "compute", never)
    before = {path: path.stat().st_mtime_ns for path in filled.folder.iterdir()}
    assert len(run([PARENT, CHILD], filled, progress=False, refresh=True)) == 2
    assert {path: path.stat().st_mtime_ns for path in filled.folder.iterdir()} == before


def test_other_sources_make_a_run_stale_only_where_that_is_asked(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = store.code_version()
    monkeypatch.setattr(store, "code_version", lambda: {**now, "source": "another"})
    assert copied.state(CHILD) == "older code"
    assert not runs.missing([CHILD], copied, refresh=False)
    assert set(runs.missing([CHILD], copied, refresh=True)) == {CHILD.key(), PARENT.key()}
    beside = Store(copied.folder.parent / "live", also=[copied.folder])
    assert beside.state(CHILD) == "done", "what is committed never goes stale"


def test_records_beside_the_live_folder_are_read_and_never_written(copied: Store, tmp_path: Path) -> None:
    live = Store(tmp_path / "live", also=[copied.folder])
    copied_before = sorted(path.name for path in copied.folder.iterdir())
    other = replace(CHILD, omega=3.0)
    frame = run([CHILD, other], live, progress=False)
    assert len(frame) == 2
    assert [path.name for path in sorted(live.folder.glob("*.json"))] == [f"{other.key()}.json"]
    assert sorted(path.name for path in copied.folder.iterdir()) == copied_before
    (copied.folder / f"{CHILD.key()}.weights.safetensors").unlink()
    assert live.record(CHILD).metrics["napl"] >= 0, "committed records may come without weights"
    with pytest.raises(RecordError, match="missing, but the record"):
        live.network(CHILD)


def test_a_parent_whose_committed_record_lacks_weights_is_trained_again(copied: Store, tmp_path: Path) -> None:
    (copied.folder / f"{PARENT.key()}.weights.safetensors").unlink()
    live = Store(tmp_path / "live", also=[copied.folder])
    assert set(runs.missing([PARENT, replace(CHILD, omega=3.0)], live, False)) == {
        PARENT.key(),
        replace(CHILD, omega=3.0).key(),
    }


def unsealed(path: Path) -> Path:
    """A record without its checksum, as those were that were written before there was one."""
    path.write_text(re.sub(',"sha256":"[0-9a-f]{64}"}$', "}", path.read_text()))
    return path


DAMAGE = {
    "not json": lambda path: path.write_text("{"),
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "fields missing": lambda path: path.write_text('{"key": 1}'),
    "edited": lambda path: path.write_text(path.read_text().replace('"omega":2.0', '"omega":2.5')),
    "bad spec": lambda path: path.write_text(path.read_text().replace('"omega":2.0', '"omega":-2.0')),
    "another run's": lambda path: shutil.copy(path.with_name(f"{PARENT.key()}.json"), path),
    "key of another": lambda path: path.write_text(path.read_text().replace(CHILD.key(), PARENT.key())),
    "NaN in the spec": lambda path: path.write_text(path.read_text().replace('"omega":2.0', '"omega":NaN')),
    "files without names": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {"a": 1}})),
    "metrics gone": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": 3})),
    "weights gone": lambda path: path.with_name(path.name.replace(".json", ".weights.safetensors")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_told_set_aside_and_computed_again(copied: Store, damage: str) -> None:
    """Without its checksum, which finds what these have in common; `test_corruption.py` is about that."""
    path = unsealed(copied.folder / f"{CHILD.key()}.json")
    good = json.loads(path.read_text())
    DAMAGE[damage](path)
    left = path.read_bytes()
    with pytest.raises(RecordError, match=path.name) as told:
        copied.record(CHILD)
    assert "delete" in str(told.value) and "\n" not in str(told.value)
    assert copied.state(CHILD) == "damaged"
    with pytest.warns(RecordWarning, match="left out"):
        assert list(copied.frame()["key"]) == [PARENT.key()]
    with pytest.warns(RecordWarning, match=r"set aside as .*\.json\.damaged"):
        frame = run([CHILD], copied, progress=False)
    assert frame["test_accuracy"].tolist() == [good["metrics"]["test_accuracy"]]
    assert path.with_name(f"{path.name}.damaged").read_bytes() == left, "nothing is lost"
    assert copied.state(CHILD) == "done"


def test_a_key_that_does_not_match_its_spec_says_both(copied: Store) -> None:
    path = unsealed(copied.folder / f"{CHILD.key()}.json")
    edited = replace(CHILD, omega=2.5)
    path.write_text(path.read_text().replace('"omega":2.0', '"omega":2.5'))
    with pytest.raises(RecordError) as told:
        copied.record(CHILD)
    assert f"says key {CHILD.key()!r} but its spec has key {edited.key()}" in str(told.value)
    assert "foreign or edited record; delete it" in str(told.value)


def test_a_spec_written_another_way_is_the_same_run(copied: Store) -> None:
    """What hashes differently as text is looked at more closely, not refused."""
    path = unsealed(copied.folder / f"{CHILD.key()}.json")
    path.write_text(path.read_text().replace('"omega":2.0', '"omega":2,"seed":0'))
    assert copied.state(CHILD) == copied.state(CHILD.key()) == "done" and copied.record(CHILD).spec == CHILD


def test_a_run_whose_parent_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=rf"no record of run {PARENT.key()}.*compute it with `nladv run`"):
        runs.compute(CHILD, Store(tmp_path, also=()), device="cpu")


def test_a_store_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for workers in (1, 2):
        with pytest.raises(
            RunFailed, match=r"cannot be written to \(.*\); make room there, or name another folder"
        ) as told:
            run([PARENT, OTHER_PARENT], Store(tmp_path / "file" / "runs", also=()), workers=workers, progress=False)
        assert "Traceback" not in str(told.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a file system")
def test_a_disk_without_room_is_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, of 64 KiB."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PARENT.to_json()))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        monkeypatch.setenv("NLADV_STORE", str(disk / "runs"))
        (disk / "ballast").write_bytes(bytes(56 * 1024))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordWarning)  # a slow machine may save on the way, or rather not
            assert cli.main(["run", str(path)]) == 2
        told = capsys.readouterr().err
        assert "the result cannot be written (No space left on device); make room there, or name another" in told
        assert told.count("\n") == 1 and Store().state(PARENT) == "missing"
        assert [path.name for path in (disk / "runs").iterdir()] == [".locks"], "nothing is half written"
        (disk / "ballast").unlink()
        assert cli.main(["run", str(path)]) == 0 and Store().state(PARENT) == "done"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_damaged_weights_are_noticed_by_their_checksum(copied: Store) -> None:
    path = copied.folder / f"{PARENT.key()}.weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match="checksum"):
        copied.network(PARENT)
    assert set(runs.missing([replace(CHILD, omega=9.0)], copied, False)) == {
        PARENT.key(),
        replace(CHILD, omega=9.0).key(),
    }


def test_damaged_parent_weights_are_set_aside_and_trained_again(copied: Store) -> None:
    path = copied.folder / f"{PARENT.key()}.weights.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.warns(RecordWarning, match="set aside"):
        run([replace(CHILD, omega=9.0)], copied, progress=False, workers=1)
    assert path.read_bytes() == good
    assert path.with_name(f"{path.name}.damaged").read_bytes() == good[:-1]


def test_a_record_cannot_name_a_file_elsewhere(copied: Store) -> None:
    path = unsealed(copied.folder / f"{PARENT.key()}.json")
    found = json.loads(path.read_text())
    found["files"]["weights"]["name"] = "../../secret"
    path.write_text(json.dumps(found))
    with pytest.raises(RecordError, match="expected a plain name"):
        copied.weights(PARENT)


def test_a_missing_record_says_what_to_do(filled: Store) -> None:
    with pytest.raises(RecordError, match="nladv run"):
        filled.record(small(seed=77))


# ------------------------------------------------------------------------------------------------ computing many


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_workers_and_this_process_compute_the_same(tmp_path: Path) -> None:
    again = {"parent": CHILD, "seed": 1}
    specs = [CHILD, replace(CHILD, omega=0.5), small(masks="layer", **again), small(masks="exact", **again)]
    here, there = Store(tmp_path / "here", also=()), Store(tmp_path / "there", also=())
    alone, together = run(specs, here, workers=1, progress=False), run(specs, there, workers=2, progress=False)
    assert tensors(here.folder) == tensors(there.folder) and len(tensors(here.folder)) == 9
    same = ["key", "test_accuracy", "train_loss", "napl", "apl", "active_fraction"]
    assert alone[same].equals(together[same])
    exact = here.masks(specs[3])
    assert all(torch.equal(mask, exact[name]) for name, mask in here.masks(CHILD).items())
    layer = here.masks(specs[2])
    assert {n: int(m.sum()) for n, m in layer.items()} == {n: int(m.sum()) for n, m in exact.items()}


def test_masks_come_in_one_order_so_that_their_permutation_is_that_of_the_seed(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors returns tensors in an order that changes from call to call."""
    import safetensors.torch

    real = safetensors.torch.load
    orders = []
    for backwards in (False, True):
        monkeypatch.setattr(
            safetensors.torch, "load", lambda data, back=backwards: dict(sorted(real(data).items(), reverse=back))
        )
        orders.append(list(filled.masks(CHILD)))
    assert orders[0] == orders[1] and len(orders[0]) == 7


def test_a_later_linearization_goes_on_from_masks_and_weights_of_the_first(filled: Store, tmp_path: Path) -> None:
    live = Store(tmp_path, also=[filled.folder])
    onward = small(parent=CHILD, recipe=Recipe(epochs=1, lr=1e-12, batch=96, flip=False))
    run([onward], live, progress=False)
    first = filled.masks(CHILD)
    assert all(torch.equal(mask, first[name]) for name, mask in live.masks(onward).items())
    before, after = filled.weights(CHILD), live.weights(onward)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before if name.endswith("slope"))


def test_failures_are_told_by_name_after_all_others_were_finished(tmp_path: Path) -> None:
    hot = small(recipe=replace(RECIPE, lr=1e30), seed=5)
    child_of_hot = small(parent=hot, seed=5, omega=1.0)
    for workers in (1, 2):
        place = Store(tmp_path / str(workers), also=())
        with pytest.raises(RunFailed) as told:
            run([child_of_hot, hot, PARENT], place, workers=workers, progress=False)
        assert f"run {hot.key()}" in str(told.value) and "lower lr" in str(told.value)
        assert "1 more failed like this or need one of these as parent" in str(told.value)
        assert str(told.value).count("failed:") == 1
        assert "1 of 3 missing runs were finished" in str(told.value)
        assert place.state(PARENT) == "done"


def test_fewer_than_one_worker_and_an_absent_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="workers is 0"):
        run([PARENT], Store(tmp_path), workers=0)
    with pytest.raises(SpecError, match="'warp', which is not available"):
        run([PARENT], Store(tmp_path), device="warp")
    assert not (tmp_path / "runs").exists()


SLOW = small(recipe=replace(RECIPE, epochs=40), seed=8)
_SCRIPT = """
import sys
from nladv_core.runs import RunSpec, Store, run
import json
specs = [RunSpec.from_json(found) for found in json.loads(sys.argv[2])]
run(specs, Store(sys.argv[1], also=()), workers=int(sys.argv[3]), progress=False)
"""


def start(folder: Path, specs: list[RunSpec], workers: int) -> subprocess.Popen[bytes]:
    arguments = [str(folder), json.dumps([spec.to_json() for spec in specs]), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_computation_leaves_a_store_that_goes_on(tmp_path: Path, workers: int) -> None:
    specs = [PARENT, CHILD, SLOW]
    process = start(tmp_path, specs, workers)
    wait_for(tmp_path / f"{PARENT.key()}.json", process)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    place = Store(tmp_path, also=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = [spec for spec in specs if place.state(spec) == "done"]
        assert all(place.state(spec) in ("done", "missing") for spec in specs)
        for spec in done:
            place.network(spec)
    assert PARENT in done
    frame = run(specs, place, workers=1, progress=False)
    assert list(frame["key"]) == [spec.key() for spec in specs]
    assert not list(tmp_path.glob("*.tmp"))


def test_an_interrupt_keeps_finished_runs_and_stops_the_workers(tmp_path: Path) -> None:
    process = start(tmp_path, [PARENT, SLOW, replace(SLOW, seed=9)], 2)
    wait_for(tmp_path / f"{PARENT.key()}.json", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors and process.returncode != 0
    assert Store(tmp_path, also=()).state(PARENT) == "done"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def test_a_leftover_of_a_killed_writer_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / f"{PARENT.key()}.weights.safetensors.12345.tmp"
    left.write_bytes(b"half a file")
    run([PARENT], Store(tmp_path, also=()), progress=False)
    assert not left.exists()


def test_the_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way (disk full) leaves no record behind, whichever file it hits."""
    for failing in (0, 1, 2):
        place = Store(tmp_path / str(failing), also=())
        run([PARENT], place, progress=False)
        count, real = [0], os.replace

        def replaced(
            source: Any, target: Any, count: list[int] = count, failing: int = failing, real: Any = real
        ) -> None:
            count[0] += 1
            if count[0] == failing + 1:
                raise OSError("no space left on device")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replaced)
            with pytest.raises(RunFailed, match="no space left"):
                run([CHILD], place, progress=False)
        assert place.state(CHILD) == "missing"
        assert len(run([CHILD], place, progress=False)) == 1


def test_two_processes_do_not_train_the_same_run_twice(tmp_path: Path) -> None:
    spec = small(recipe=replace(RECIPE, epochs=10))
    processes = [start(tmp_path, [spec], 1) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    place = Store(tmp_path, also=())
    assert place.state(spec) == "done"
    with place.lock(spec):
        again = start(tmp_path, [spec], 1)
        again.communicate(timeout=60)  # what is done needs no lock
    assert again.returncode == 0


def test_a_record_reads_back_as_it_was(filled: Store) -> None:
    record = filled.record(CHILD)
    again = Record.read(filled.folder / f"{CHILD.key()}.json")
    assert again == record and again.to_json() == json.loads(json.dumps(record.to_json()))


def test_epochs_of_before_an_interruption_say_nothing_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told again in no time, they would pass for the fastest there are, and runs would be packed by that."""
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    store = Store(tmp_path, also=())
    spec = replace(PARENT, recipe=replace(PARENT.recipe, epochs=3, milestones=()))
    with pytest.raises(runs.Paused):
        runs.compute(spec, store, device="cpu", until=0.0)
    told: list[dict[str, Any]] = []
    job = {"spec": spec.to_json(), "folder": str(tmp_path), "also": [], "device": "cpu", "refresh": False}
    runs._handle(job, told.append)
    seconds = [message["seconds"] for message in told if message["event"] == "epoch"]
    assert seconds[0] is None and len(seconds) == 3 and all(taken > 0 for taken in seconds[1:])


# ------------------------------------------------------------------------------ masks of one run, weights of another


GIVEN = small(parent=CHILD, weights=OTHER_PARENT, masks="exact")


@pytest.mark.parametrize("masks", ["exact", "layer", "global"])
def test_a_run_begins_with_the_weights_of_one_and_the_masks_of_another(
    filled: Store, tmp_path: Path, masks: str
) -> None:
    live = Store(tmp_path, also=[filled.folder])
    run([OTHER_PARENT], live, progress=False)
    spec = replace(GIVEN, masks=masks)
    task = runs.tasks.of(runs._load("digits", 8, 0.5, 96, 50))
    net, taken = runs._initial(spec, live, task)
    state, trained = net.state_dict(), live.weights(OTHER_PARENT)
    assert trained.keys() < state.keys() and all(torch.equal(state[name], trained[name]) for name in trained)
    source = live.masks(CHILD)
    mine = {name: unit.active for name, unit in units(net)}
    assert mine.keys() == source.keys() and not all(bool(mask.all()) for mask in source.values())
    total = sum(int(mask.sum()) for mask in source.values())
    assert sum(int(mask.sum()) for mask in mine.values()) == total
    if masks != "global":
        assert [int(mask.sum()) for mask in mine.values()] == [int(source[name].sum()) for name in mine]
    assert all(torch.equal(mine[name], source[name]) for name in mine) == (masks == "exact")
    assert all(bool((unit.slope[unit.active] == 0).all()) for _, unit in units(net)), "what is active is a ReLU"
    assert taken == {
        "key": CHILD.key(),
        "sha256": live.record(CHILD).files["masks"]["sha256"],
        "weights_key": OTHER_PARENT.key(),
        "weights_sha256": live.record(OTHER_PARENT).files["weights"]["sha256"],
    }
    again, _ = runs._initial(spec, live, task)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_such_a_run_trains_these_weights_and_leaves_these_masks(filled: Store, tmp_path: Path) -> None:
    live = Store(tmp_path, also=[filled.folder])
    still = replace(GIVEN, recipe=Recipe(epochs=1, lr=1e-12, batch=96, flip=False))
    run([still, GIVEN], live, progress=False, workers=1)
    before, after = live.weights(OTHER_PARENT), live.weights(still)
    learned = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learned)
    assert any(not torch.equal(before[name], live.weights(GIVEN)[name]) for name in learned)
    for spec in (still, GIVEN):
        assert all(torch.equal(mask, live.masks(CHILD)[name]) for name, mask in live.masks(spec).items())
        record = live.record(spec)
        assert record.spec == spec and record.metrics["napl"] == live.record(CHILD).metrics["napl"]
        assert record.parent is not None and record.parent["weights_key"] == OTHER_PARENT.key()
    assert live.frame([GIVEN])["role"].tolist() == ["retrained"]


def test_it_waits_for_both(tmp_path: Path) -> None:
    todo = runs.missing([GIVEN], Store(tmp_path, also=()), refresh=False)
    assert set(todo.values()) == {GIVEN, CHILD, PARENT, OTHER_PARENT}
    for last in (CHILD, OTHER_PARENT):
        schedule = runs.Schedule(todo, progress=False)
        begun = [schedule.next(), schedule.next()]
        assert set(begun) == {PARENT, OTHER_PARENT} and schedule.next() is None
        first, *rest = [spec for spec in (PARENT, OTHER_PARENT, CHILD) if spec != last] + [last]
        for done in (first, *rest):
            assert GIVEN.key() in schedule.waiting and GIVEN.key() not in [key for *_, key in schedule._ready]
            schedule.report({"event": "done", "spec": done.to_json()})
            if done == PARENT:
                assert schedule.next() == CHILD
        assert schedule.next() == GIVEN and schedule.next() is None


@pytest.mark.parametrize("failing", [PARENT, CHILD, OTHER_PARENT], ids=["parent of the masks", "masks", "weights"])
@pytest.mark.parametrize("when", ["before the other", "after the other"])
def test_one_that_fails_is_enough(tmp_path: Path, failing: RunSpec, when: str) -> None:
    schedule = runs.Schedule(runs.missing([GIVEN], Store(tmp_path, also=()), refresh=False), progress=False)
    other = OTHER_PARENT if failing != OTHER_PARENT else PARENT
    reports = [("failed", failing), ("done", other)]
    if failing == CHILD:
        schedule.report({"event": "done", "spec": PARENT.to_json()})
    for event, spec in reports if when == "before the other" else reports[::-1]:
        schedule.report({"event": event, "spec": spec.to_json(), "reason": "it did"})
    assert {spec for spec, reason in schedule.failed.values() if reason == "its parent run failed"} == (
        {CHILD, GIVEN} if failing == PARENT else {GIVEN}
    )
    assert GIVEN.key() not in schedule.waiting and GIVEN not in [schedule.next() for _ in range(3)]


def test_a_run_whose_weights_fail_fails_with_them(filled: Store, tmp_path: Path) -> None:
    live = Store(tmp_path, also=[filled.folder])
    hot = small(recipe=replace(RECIPE, lr=1e30), seed=5)
    with pytest.raises(RunFailed, match="1 more failed like this or need one of these as parent") as told:
        run([replace(GIVEN, weights=hot)], live, progress=False, workers=1)
    assert f"run {hot.key()}" in str(told.value) and "0 of 2 missing runs were finished" in str(told.value)


def test_what_is_taken_must_be_there_and_nothing_else(copied: Store) -> None:
    """Of the run that its masks come from no weights are needed, and of the other one no masks."""
    run([OTHER_PARENT], copied, progress=False)
    assert runs.taken_from(GIVEN) == [(CHILD, "masks"), (OTHER_PARENT, "weights")]
    assert runs.taken_from(CHILD) == [(PARENT, "weights")] and runs.taken_from(PARENT) == []
    (copied.folder / f"{CHILD.key()}.weights.safetensors").unlink()
    live = Store(copied.folder.parent / "live", also=[copied.folder])
    assert list(runs.missing([GIVEN], live, False)) == [GIVEN.key()]
    (copied.folder / f"{CHILD.key()}.masks.safetensors").unlink()
    assert set(runs.missing([GIVEN], live, False)) == {GIVEN.key(), CHILD.key()}
    (copied.folder / f"{OTHER_PARENT.key()}.weights.safetensors").unlink()
    assert set(runs.missing([GIVEN], live, False)) == {GIVEN.key(), CHILD.key(), OTHER_PARENT.key()}
    (copied.folder / f"{PARENT.key()}.weights.safetensors").unlink()
    assert set(runs.missing([GIVEN], live, False)) == {s.key() for s in (GIVEN, CHILD, OTHER_PARENT, PARENT)}


def test_with_other_weights_an_interrupted_run_starts_over(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    live = Store(tmp_path, also=[filled.folder])
    run([OTHER_PARENT], live, progress=False)
    with pytest.raises(runs.Paused):
        runs.compute(GIVEN, live, device="cpu", until=0.0)
    real, task = runs._initial, runs.tasks.of(runs._load("digits", 8, 0.5, 96, 50))
    taken = real(GIVEN, live, task)[1]
    assert taken is not None
    other = taken | {"weights_sha256": "0" * 64}
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_initial", lambda *a: (real(*a)[0], other))
        with pytest.warns(RecordWarning, match="begun with other weights of another run\\); it starts over"):
            runs.compute(GIVEN, live, device="cpu")


# ------------------------------------------------------------------------------------ images held out, fewer looks


def test_what_is_held_out_is_judged_and_neither_trained_on_nor_are_test_images_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = small(held_out=24)
    specs = [parent, replace(parent, parent=parent, omega=2.0)]
    stores = [Store(tmp_path / name, also=()) for name in ("plain", "other test images")]
    frame = run(specs, stores[0], progress=False, workers=1)
    data = runs.datasets.load("digits", size=8, difficulty=0.5, train=96, test=50)
    held = data.hold_out(24)
    for spec in specs:
        record = stores[0].record(spec)
        assert record.metrics["test_accuracy"] == training.accuracy(stores[0].network(spec), held)
        assert (record.data["checksum"], record.spec.held_out) == (held.checksum, 24)
        assert record.data["mean"] == held.mean.tolist()
    real = runs.datasets.load

    def load(name: str, **how: Any) -> Any:
        found = real(name, **how)
        return replace(found, test_images=255 - found.test_images, test_labels=(found.test_labels + 1) % 10)

    runs._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(runs.datasets, "load", load)
        again = run(specs, stores[1], progress=False, workers=1)
    runs._load.cache_clear()
    assert tensors(stores[0].folder) == tensors(stores[1].folder)
    same = ["key", "test_accuracy", "train_loss", "napl", "data_checksum"]
    assert frame[same].equals(again[same])
    # Trained on the first 72, as if there were no more, but for the mean that these have as well.
    fewer = small(train=72)
    run([fewer], stores[0], progress=False)
    assert all(
        torch.equal(tensor, stores[0].weights(parent)[name]) for name, tensor in stores[0].weights(fewer).items()
    )


LONG = small(recipe=replace(RECIPE, epochs=9, milestones=(6,)))
SELDOM = small(recipe=replace(LONG.recipe, judged=3))


def test_looking_less_often_changes_nothing_but_what_was_seen(tmp_path: Path) -> None:
    place = Store(tmp_path, also=())
    runs_of = [
        *(LONG, SELDOM),
        *(replace(one, parent=PARENT, omega=2.0) for one in (LONG, SELDOM)),
    ]
    run([PARENT, *runs_of], place, progress=False, workers=1)
    for often, seldom in (runs_of[:2], runs_of[2:]):
        one, other = place.weights(often), place.weights(seldom)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert place.record(often).metrics == place.record(seldom).metrics
        rows, fewer = place.record(often).history, place.record(seldom).history
        assert [row["epoch"] for row in fewer if row["test_accuracy"] is None] == [1, 2, 4]
        for row, less in zip(rows, fewer, strict=True):
            assert less["test_accuracy"] in (None, row["test_accuracy"])
            assert {**row, "test_accuracy": None} == {**less, "test_accuracy": None}
        assert '"test_accuracy":null' in (place.folder / f"{seldom.key()}.json").read_text()


def test_an_interrupted_run_that_looks_seldom_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runs.compute(SELDOM, Store(tmp_path / "whole", also=()), device="cpu")
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    place = Store(tmp_path / "parts", also=())
    for _ in range(4):
        with pytest.raises(runs.Paused):
            runs.compute(SELDOM, place, device="cpu", until=0.0)
    again = runs.compute(SELDOM, place, device="cpu")
    for name in ("metrics", "history", "units", "files"):
        assert getattr(again, name) == getattr(whole, name), name


def test_the_factor_for_slopes_reaches_the_loop(filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = training.fit

    def fit(*arguments: Any, **how: Any) -> Any:
        seen.append(how["slope_lr"])
        return real(*arguments, **how)

    monkeypatch.setattr(training, "fit", fit)
    live = Store(tmp_path, also=[filled.folder])
    fast = replace(CHILD, slope_lr=3.0)
    run([fast], live, progress=False, workers=1)
    assert seen == [3.0]
    assert live.record(fast).metrics["active_fraction"] < live.record(CHILD).metrics["active_fraction"] < 1
