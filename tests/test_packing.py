"""How many runs share a device: growth by measured rate, limits by measured memory, what is remembered."""

import json
from pathlib import Path

import pytest
import torch

from nladv_core import packing
from nladv_core.packing import Packing

GPU, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Sixteen cores, a device with much memory, nothing remembered."""
    free = {"bytes": 100 * GIB}
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path))
    monkeypatch.setattr(packing.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(packing, "free_memory", lambda where: free["bytes"])
    return free


def epochs(found: Packing, rates: dict[int, float], times: int = 2) -> None:
    """So many epochs of `rates[n]` each, where n runs share the device."""
    for _ in range(times):
        n = found.count
        for worker in range(n):
            found.note(worker, rates[n], n)


def test_the_number_doubles_while_that_pays_and_the_best_one_stays_and_is_remembered(tmp_path: Path) -> None:
    found = Packing(GPU, "a GPU")
    assert found.count == 4 and found.most == 16
    rates = {4: 10.0, 8: 7.0, 16: 3.4}  # together 40, 56, 54.4
    epochs(found, rates)
    assert found.count == 8
    epochs(found, rates)
    assert found.count == 16
    epochs(found, rates)
    assert found.count == 8
    epochs(found, {8: 100.0})
    assert found.count == 8, "it has settled"
    assert json.loads((tmp_path / "packing.json").read_text()) == {"a GPU": 8}
    assert Packing(GPU, "a GPU").count == 8 and Packing(GPU, "another").count == 4


def test_the_first_epoch_of_a_run_says_nothing_of_its_rate() -> None:
    """It holds the reading of data and a compiler's work: four slow epochs must not end the growth, nor begin it."""
    found = Packing(GPU, "a GPU")
    for worker in range(4):
        found.note(worker, 0.001, 4)
    assert found.count == 4
    for worker in range(4):
        found.note(worker, 10.0, 4)
    assert found.count == 8
    for worker in range(4, 8):  # those that are new
        found.note(worker, 0.001, 8)
    for worker in range(4):
        found.note(worker, 9.0, 8)
    assert found.count == 8, "the new ones have not been measured yet"
    for worker in range(4, 8):
        found.note(worker, 9.0, 8)
    assert found.count == 16


def test_fewer_runs_than_meant_decide_nothing() -> None:
    found = Packing(GPU, "a GPU")
    for _ in range(5):
        for worker in range(3):
            found.note(worker, 10.0, 3)
    assert found.count == 4


def test_a_cpu_takes_a_run_a_core_and_a_chosen_number_stands() -> None:
    assert Packing(CPU, "cpu").count == 16 == Packing(CPU, "cpu").most
    chosen = Packing(GPU, "a GPU", fixed=3)
    epochs(chosen, {3: 10.0}, 4)
    assert chosen.count == chosen.most == 3


def test_memory_has_its_say(machine: dict[str, int]) -> None:
    found = Packing(GPU, "a GPU")
    assert found.allows(0, 0) and found.allows(3, 0) and not found.allows(4, 4)
    machine["bytes"] = 80 * GIB  # three runs take 20 GiB
    assert found.allows(3, 3)
    machine["bytes"] = 8 * GIB  # three runs take 92 GiB, a fourth would take 31
    assert not found.allows(3, 3)
    machine["bytes"] = 60 * GIB  # two that are measured take 40, one that has only begun will need as much: no room
    assert found.allows(2, 2)
    machine["bytes"] = 30 * GIB
    assert not found.allows(2, 1)
    assert found.allows(0, 0), "one may always try"


def test_before_anything_is_measured_a_small_device_is_not_filled_blindly(machine: dict[str, int]) -> None:
    machine["bytes"] = 10 * GIB
    found = Packing(GPU, "a small GPU")
    assert [found.allows(busy, 0) for busy in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a GPU": 0}', '{"a GPU": "8"}', '{"a GPU": 1e9}'])
def test_what_is_remembered_is_not_trusted_blindly(tmp_path: Path, content: str) -> None:
    (tmp_path / "packing.json").write_text(content)
    assert Packing(GPU, "a GPU").count == 4


def test_free_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    told = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    assert packing.free_memory(CPU) == pytest.approx(int(told.split()[1]) * 1024, rel=0.2)
