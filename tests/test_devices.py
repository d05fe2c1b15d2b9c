"""One network over several devices, tried with two processes on the CPU: gradients, records, agreement, accidents."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ranks_at_work
from nladv_core import cli, devices, runs
from nladv_core.devices import ALONE, Ranks
from nladv_core.errors import NladvError, SpecError
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store
from nladv_core.tasks import NOT_ASKED, Batch, stream
from nladv_core.workers import Pool

# One worker holds the ranks that the tests below share.
pytestmark = pytest.mark.xdist_group("devices")

PARENT = RunSpec(data="digits", net="resnet8", size=8, train=96, test=50, recipe=Recipe(epochs=2, lr=0.05, batch=32))
CHILD = replace(PARENT, parent=PARENT, omega=2.0, recipe=Recipe(epochs=3, lr=0.05, batch=32))


class Team:
    """Two ranks that stay alive from case to case."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool, self.folder, self.port = pool, folder, devices._free_port()

    def all(self, **job: Any) -> list[dict[str, Any]]:
        """Give all of them a job, and wait for what each has to say."""
        for rank in range(2):
            self.pool.give(rank, {"rank": rank, "count": 2, "port": self.port, "folder": str(self.folder), **job})
        found: dict[int, dict[str, Any]] = {}
        while len(found) < 2:
            rank, message = self.pool.events.get(timeout=200)
            assert message is not None, f"rank {rank} has ended"
            found[rank] = message
        return [found[0], found[1]]

    def files(self, case: str, epoch: int) -> list[dict[str, torch.Tensor]]:
        return [load_file(self.folder / f"{case}.{epoch}.{rank}.of.2.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        pool = Pool("ranks_at_work", "main")
    with pool:
        assert [pool.start(), pool.start()] == [0, 1]
        yield Team(pool, tmp_path_factory.mktemp("ranks"))


def alike(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *parts: str, within: float) -> None:
    """Equal up to `within` of the largest number of each tensor."""
    assert some.keys() == other.keys()
    names = [name for name in some if name.partition(":")[0] in parts]
    assert names
    for name in names:
        one, two = some[name].double(), other[name].double()
        assert (one - two).abs().max() <= within * two.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("case", ["one step", "accumulated", "words"])
def test_gradients_are_those_of_one_process_with_the_same_batch(team: Team, tmp_path: Path, case: str) -> None:
    """Of the loss and the penalty, which counts once, through batch norm over the whole batch, of images and words."""
    rows = [said["rows"] for said in team.all(case=case)]
    (alone,) = ranks_at_work.fitted(case, ALONE, tmp_path)
    for rank, found in enumerate(team.files(case, 1)):
        alike(found, load_file(tmp_path / f"{case}.1.0.of.1.safetensors"), "net", "momentum", within=2e-5)
        (row,) = rows[rank]
        assert row.keys() == alone.keys() and row["active"] == alone["active"]
        assert row["train_accuracy"] == alone["train_accuracy"] and row["test_accuracy"] == alone["test_accuracy"]
        for name in row.keys() - {"active"}:
            assert row[name] == pytest.approx(alone[name], rel=1e-5), name


@pytest.mark.parametrize("case", ["goal", "budget"])
def test_ranks_lock_the_same_units_at_the_same_time(team: Team, tmp_path: Path, case: str) -> None:
    """Whatever rounding does, ranks must hold the same bits: a unit that one of them alone has locked stays so."""
    one, two = (said["rows"] for said in team.all(case=case))
    assert one == two
    reached = []
    for epoch in range(1, 6):
        some, other = team.files(case, epoch)
        assert some.keys() == other.keys() and all(torch.equal(some[name], other[name]) for name in some)
        reached.append(sum(int((~mask).sum()) for name, mask in some.items() if name.startswith("mask:")))
    assert reached[0] == 0 < reached[-1], "slopes are switched on after the first epoch, and units are locked then"
    assert one[-1]["omega"] == 0, "the goal was reached: the controller has ended its work in all ranks"
    alone = ranks_at_work.fitted(case, ALONE, tmp_path)
    for row, expected in zip(one, alone, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
        assert row["active_fraction"] == pytest.approx(expected["active_fraction"], abs=0.02)


def test_a_run_on_two_devices_has_the_record_of_one(tmp_path: Path) -> None:
    two, one = Store(tmp_path / "two", ()), Store(tmp_path / "one", ())
    runs.run([CHILD], two, devices=2, device="cpu", progress=False)
    runs.run([CHILD], one, workers=1, device="cpu", progress=False)
    for spec in (PARENT, CHILD):
        found, expected = two.record(spec), one.record(spec)
        assert found.execution == {"resumed_after": [], "compiled": False, "devices": 2}
        assert expected.execution == {"resumed_after": [], "compiled": False}
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=0.021)  # a test image of 50 more or less
        assert (found.key, found.data, found.code) == (expected.key, expected.data, expected.code)
        for row, other in zip(found.history, expected.history, strict=True):
            assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
            assert row["active"] == pytest.approx(other["active"], abs=1)
    assert two.record(CHILD).metrics["active_fraction"] < 1, "units were locked"
    assert sorted(path.suffix for path in two.folder.iterdir() if path.is_file()) == sorted(
        path.suffix for path in one.folder.iterdir() if path.is_file()
    )


def test_a_run_on_two_devices_that_was_interrupted_goes_on(team: Team, tmp_path: Path) -> None:
    stores = {name: tmp_path / name for name in ("broken", "whole")}
    for spec in (PARENT, CHILD):
        team.all(spec=spec.to_json(), folder=str(stores["whole"]), stop=None)
        team.all(spec=spec.to_json(), folder=str(stores["broken"]), stop=2)
        progress = Store(stores["broken"], ()).checkpoint(spec).progress()
        assert progress is not None and progress.epochs == 1
        team.all(spec=spec.to_json(), folder=str(stores["broken"]), stop=None)
    found, expected = (Store(folder, ()).record(CHILD) for folder in stores.values())
    assert found.execution == {"resumed_after": [1], "compiled": False, "devices": 2}
    assert (found.history, found.files) == (expected.history, expected.files)


def test_a_rank_that_dies_ends_the_run_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it in vain; nobody waits for them."""
    pools: list[Pool] = []
    monkeypatch.setattr(devices, "Pool", lambda *what: pools.append(Pool(*what)) or pools[0])

    def kill(row: dict[str, Any]) -> None:
        pools[0].processes[1].kill()

    long = replace(PARENT, recipe=Recipe(epochs=500, lr=0.05, batch=32))
    with pytest.raises(NladvError, match="process 1 of its 2 ended with signal 9; run it again"):
        devices.compute(long, Store(tmp_path, ()), count=2, device="cpu", on_epoch=kill)
    assert all(process.poll() is not None for process in pools[0].processes)


@pytest.mark.parametrize(("killed", "both"), [(True, False), (False, True), (False, False)])
def test_what_a_dead_rank_brings_down_is_not_told_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, both: bool
) -> None:
    """A lost connection can be seen before the end of the process that held its other side."""

    class Scripted(Pool):
        def __init__(self, *what: str) -> None:
            super().__init__(*what)
            self._command = ["sleep", "60"]

        def start(self) -> int:
            number = super().start()
            if number == 1:
                self.events.put((0, {"event": "broken", "reason": "the connection is lost"}))
                if killed:
                    self.processes[1].kill()  # which is seen later
                elif both:
                    self.events.put((1, {"event": "broken", "reason": "so it is here"}))
            return number

    monkeypatch.setattr(devices, "Pool", Scripted)
    monkeypatch.setattr(devices, "_GRACE_S", 60.0 if killed else 0.1)
    told = "process 1 of its 2 ended with signal 9; run it again" if killed else "the connection is lost"
    with pytest.raises(NladvError, match=told):
        devices.compute(PARENT, Store(tmp_path, ()), count=2, device="cpu")


def test_a_run_that_diverges_on_two_devices_is_told_as_on_one(tmp_path: Path) -> None:
    diverging = replace(PARENT, recipe=Recipe(epochs=2, lr=1e30, batch=32))
    with pytest.raises(runs.RunFailed, match="the loss became NaN"):
        runs.run([diverging], Store(tmp_path, ()), devices=2, device="cpu", progress=False)


def test_parts_of_a_batch_are_the_batch_and_only_dropout_is_drawn_apart() -> None:
    images, labels = torch.arange(5.0), torch.arange(5)
    parts = [Ranks(rank, 3).part(Batch((images,), labels, 5)) for rank in range(3)]
    assert torch.equal(torch.cat([part.inputs[0] for part in parts]), images)
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4]] and sum(p.count for p in parts) == 5
    asked = torch.tensor([[1, 2, NOT_ASKED], [3, NOT_ASKED, NOT_ASKED]])
    parts = [Ranks(rank, 3).part(Batch((asked, asked), asked, 3)) for rank in range(3)]
    assert [part.count for part in parts] == [2, 1, 0]
    shared = [list(Ranks(rank, 2).share(iter([Batch((), labels, n) for n in range(5)]))) for rank in range(2)]
    assert [[batch.count for batch in found] for found in shared] == [[0, 2, 4], [1, 3]]
    first, second, alone = (stream(0, "dropout", 1, *ranks.purpose) for ranks in (Ranks(0, 2), Ranks(1, 2), ALONE))
    assert first == alone != second


def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for more, told in (
        ({"devices": 0}, "devices is 0, expected at least 1"),
        ({"devices": 3}, "devices is 3, but there are 2 CPU cores here; ask for at most 2"),
        (
            {"devices": 2, "workers": 2},
            "workers is 2 and devices is 2; on several devices runs come one after",
        ),
    ):
        with pytest.raises(SpecError, match=f"^{told}"):
            runs.run([PARENT], Store(tmp_path, ()), device="cpu", **more)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(SpecError, match="need Lightning Fabric, which is not installed; pip install"):
        runs.run([PARENT], Store(tmp_path, ()), device="cpu", devices=2)
    assert cli.main(["run", "01", "--tier", "smoke", "--devices", "3"]) == 2
    assert "nladv: devices is 3, but there are" in capsys.readouterr().err
