"""The core on another device than the CPU, against the CPU: `NLADV_TEST_DEVICE` names it; by default the CPU itself.

For a day with a GPU (`benchmarks/gpu.py`): few tests, seconds each, of all that moves tensors about.
"""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nladv_core as nl
from nladv_core import datasets, nets, runs, training
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store

DEVICE = os.environ.get("NLADV_TEST_DEVICE", "").strip() or "cpu"
RECIPE = Recipe(epochs=3, lr=0.05, batch=64, milestones=(2,), flip=False)
PARENT = RunSpec(data="digits", net="resnet8", width=0.5, size=8, train=256, test=128, recipe=RECIPE)
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def data() -> datasets.ImageData:
    return datasets.load("digits", size=8, train=256, test=128)


def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nl.linearize(nets.build("resnet8", width=0.5), SHAPE)


def trained(data: datasets.ImageData, device: str, **how: Any) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    net = network()
    rows = list(training.fit(net, data, RECIPE, seed=0, device=device, **how))
    return net, rows


@pytest.mark.parametrize("how", [{"omega": 0.5}, {"omega": 3.0, "goal": 0.5}, {"omega": 0.0}], ids=str)
def test_training_there_is_training_here(data: datasets.ImageData, how: dict[str, Any]) -> None:
    there, rows = trained(data, DEVICE, **how)
    _, expected = trained(data, "cpu", **how)
    assert {parameter.device.type for parameter in there.parameters()} == {torch.device(DEVICE).type}
    assert rows[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=2e-3)
    assert rows[-1]["active_fraction"] == pytest.approx(expected[-1]["active_fraction"], abs=0.1)
    slopes = torch.cat([unit.slope.detach().flatten() for _, unit in nl.units(there)])
    assert float(slopes.min()) >= 0 and float(slopes.max()) <= 1
    if "goal" in how:
        assert rows[-1]["active_fraction"] == pytest.approx(0.5, abs=1 / sum(u.channels for _, u in nl.units(there)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bfloat16_learns_there(data: datasets.ImageData, compiled: bool) -> None:
    if compiled and torch.device(DEVICE).type == "cpu":
        pytest.skip("tests of training.fit compile on a CPU")
    _, rows = trained(data, DEVICE, omega=0.1, precision="bfloat16", compiled=compiled)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_masks_penalty_and_path_lengths_there() -> None:
    here = network()
    there = copy.deepcopy(here).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in nl.masks(here).items()}
    for net in (here, there):
        nl.apply_masks_(net, masks)
    assert nl.slope_penalty(there).item() == pytest.approx(nl.slope_penalty(here).item())
    for normalized in (True, False):
        expected = nl.path_length(here, SHAPE, normalized=normalized).mean
        assert nl.path_length(there, SHAPE, normalized=normalized).mean == pytest.approx(expected, rel=1e-9)
    shuffled = nl.permute_masks(nl.masks(there), "global", torch.Generator().manual_seed(1))
    again = nl.permute_masks(nl.masks(here), "global", torch.Generator().manual_seed(1))
    assert all(torch.equal(shuffled[name].cpu(), again[name]) for name in again)


def test_a_chain_of_runs_there(tmp_path: Path) -> None:
    linearized = replace(PARENT, parent=PARENT, omega=1.0)
    again = replace(PARENT, parent=linearized, masks="layer", seed=100)
    at_once = replace(PARENT, parent=linearized, weights=PARENT, masks="exact")
    store = Store(tmp_path, also=())
    frame = runs.run([linearized, linearized.control, again, at_once], store, device=DEVICE, progress=False)
    assert len(frame) == 4 and frame["test_accuracy"].between(0, 1).all()
    for spec in (again, at_once):
        assert store.record(spec).metrics["active_fraction"] == store.record(linearized).metrics["active_fraction"]
    assert store.record(linearized).device == runs.device_name(torch.device(DEVICE))
