"""Interrupted runs: they go on from the last saved epoch and end with the same bits, or say why they start over."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nladv_core import campaign, checkpoints, runs, training
from nladv_core.checkpoints import Checkpoint
from nladv_core.errors import RecordError, SpecError
from nladv_core.recipes import Recipe
from nladv_core.runs import Paused, RecordWarning, RunFailed, RunSpec, Store, compute, run

RECIPE = Recipe(epochs=6, milestones=(4,), lr=0.05, batch=32, flip=False)
PARENT = RunSpec(data="digits", net="resnet8", width=0.125, size=8, train=96, test=50, recipe=replace(RECIPE, epochs=5))
LATE = replace(PARENT, parent=PARENT, recipe=RECIPE, omega=1.0, start=2)  # slopes without momentum at first
GOAL = replace(PARENT, parent=PARENT, recipe=RECIPE, omega=2.0, goal=0.5, pull_back=True)
BUDGET = replace(GOAL, goal=2.7, measure="napl", price="relus")
SPECS = [PARENT, LATE, GOAL, BUDGET]
SAME = ("metrics", "history", "units", "files", "data", "parent", "code")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All runs without any interruption."""
    store = Store(tmp_path_factory.mktemp("whole"), also=())
    run(SPECS, store, progress=False, workers=1)
    assert not list(store.folder.glob(".checkpoints/*")), "runs of less than a few seconds save nothing"
    return store


def assert_same_end(spec: RunSpec, store: Store, whole: Store) -> None:
    """Equal checksums of weights and masks, metrics and history."""
    one, other = store.record(spec), whole.record(spec)
    for name in SAME:
        assert getattr(one, name) == getattr(other, name), name
    assert not list((store.folder / ".checkpoints").glob(f"{spec.key()}*"))


def with_parent(tmp_path: Path, whole: Store) -> Store:
    """A store that has the parent's result and nothing else."""
    store = Store(tmp_path / "runs", also=())
    store.folder.mkdir(parents=True)
    for path in whole.folder.glob(f"{PARENT.key()}.*"):
        shutil.copy(path, store.folder)
    return store


def pause(spec: RunSpec, store: Store, epochs: int) -> None:
    """Compute a run up to the end of its epoch `epochs`, counted from where it stands."""
    left = [epochs]

    def count(row: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    class Stop(Exception):
        pass

    with pytest.raises(Stop):
        compute(spec, store, device="cpu", on_epoch=count)


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every epoch."""
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "late start", "goal", "budget"])
def test_a_run_interrupted_after_any_epoch_ends_the_same(
    spec: RunSpec, whole: Store, tmp_path: Path, saving: None
) -> None:
    for epochs in range(2, spec.recipe.epochs + 1):
        store = with_parent(tmp_path / str(epochs), whole) if spec.parent else Store(tmp_path / str(epochs), also=())
        pause(spec, store, epochs)  # raised before that epoch itself was saved
        progress = store.checkpoint(spec).progress()
        assert progress is not None and progress.epochs == epochs - 1
        record = compute(spec, store, device="cpu")
        assert record.execution == {"resumed_after": [epochs - 1], "compiled": False}
        assert_same_end(spec, store, whole)


def test_interrupted_again_and_again(whole: Store, tmp_path: Path, saving: None) -> None:
    store = with_parent(tmp_path, whole)
    for _ in range(4):
        with pytest.raises(Paused, match=rf"run {GOAL.key()}.* was stopped after epoch \d of 6"):
            compute(GOAL, store, device="cpu", until=0.0)
    seen: list[int] = []
    record = compute(GOAL, store, device="cpu", on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [1, 2, 3, 4, 5, 6] and record.execution["resumed_after"] == [1, 2, 3, 4]
    assert_same_end(GOAL, store, whole)


def test_a_run_stops_in_time_and_saves_then_even_if_it_saved_just_now(whole: Store, tmp_path: Path) -> None:
    store = with_parent(tmp_path, whole)
    with pytest.raises(Paused):
        compute(LATE, store, device="cpu", until=time.time() + 0.01)
    files = sorted(path.name for path in (store.folder / ".checkpoints").iterdir())
    assert len(files) == 2 and files[0].startswith(LATE.key()) and files[1] == f"{LATE.key()}.json"
    compute(LATE, store, device="cpu", until=time.time() + 1000)
    assert_same_end(LATE, store, whole)


_SCRIPT = """
import json, sys, warnings
from nladv_core import runs
runs.SAVE_EVERY_S = -1.0
warnings.simplefilter("error")
runs.run([runs.RunSpec.from_json(json.loads(sys.argv[2]))], runs.Store(sys.argv[1], also=()), workers=1, progress=False)
"""
LONG = replace(PARENT, recipe=replace(RECIPE, epochs=60, milestones=(40,)))


def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """Killed again and again wherever it stands, even while it writes; each time it got somewhere."""
    whole = Store(tmp_path / "whole", also=())
    run([LONG], whole, progress=False, workers=1)
    store = Store(tmp_path / "killed", also=())
    command = [sys.executable, "-c", _SCRIPT, str(store.folder), json.dumps(LONG.to_json())]
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    reached = [0]
    for _ in range(5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        for _ in range(3000):
            progress = store.checkpoint(LONG).progress()
            if progress is not None and progress.epochs > reached[-1] or process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(0.007 * len(reached))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        progress = store.checkpoint(LONG).progress()
        assert progress is not None and progress.epochs > reached[-1] and store.state(LONG) == "missing"
        reached.append(progress.epochs)
        assert len(list((store.folder / ".checkpoints").glob("*.safetensors"))) <= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([LONG], store, progress=False, workers=1)
    assert store.record(LONG).execution["resumed_after"] == reached[1:]
    assert_same_end(LONG, store, whole)


# Starting a process takes longer than what is tested here, so one that has everything loaded forks those to be killed.
_FORKING = """
import json, os, sys, warnings
from nladv_core import runs
warnings.simplefilter("error")
specs = [runs.RunSpec.from_json(found) for found in json.loads(sys.argv[2])]
runs.compute(specs[0], runs.Store(sys.argv[1] + "-warm", also=()), device="cpu")
runs.SAVE_EVERY_S = -1.0
store = runs.Store(sys.argv[1], also=())
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            runs.run(specs[1:], store, workers=1, progress=False)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    """A parent and its child, killed after a few epochs each time, at whatever the process is doing then."""
    parent = replace(PARENT, recipe=replace(RECIPE, epochs=40, milestones=(30,)))
    child = replace(parent, parent=parent, recipe=replace(RECIPE, epochs=120, milestones=(80,)), omega=1.0, goal=0.5)
    whole, store = Store(tmp_path / "whole", also=()), Store(tmp_path / "killed", also=())
    run([parent, child], whole, progress=False, workers=1)
    specs = json.dumps([spec.to_json() for spec in (PARENT, parent, child)])
    command = [sys.executable, "-c", _FORKING, str(store.folder), specs]
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

    def reached() -> int:
        """Epochs that are safe, of both runs."""
        epochs = 0
        for spec in (parent, child):
            assert store.state(spec) in ("done", "missing")
            progress = store.checkpoint(spec).progress()
            epochs += spec.recipe.epochs if store.state(spec) == "done" else progress.epochs if progress else 0
        return epochs

    rng = random.Random(0)
    with subprocess.Popen(command, env=environment, text=True, **pipes) as forking:
        assert forking.stdin and forking.stdout

        def start() -> int:
            forking.stdin.write("\n")
            forking.stdin.flush()
            return int(forking.stdout.readline())

        safe = 0
        for _ in range(20):
            process = start()
            until, enough = time.monotonic() + 60, safe + rng.randint(1, 4)
            while reached() < enough and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(process, signal.SIGKILL)
            assert forking.stdout.readline() == f"{-signal.SIGKILL}\n", "it was done before it was killed"
            assert reached() >= enough > safe
            safe = reached()
            # Right after the parent's end, the child may not have reached the end of an epoch yet.
            resumable = child if safe > parent.recipe.epochs else parent
            assert store.state(resumable) == "done" or store.checkpoint(resumable).load() is not None
        start()
        assert forking.stdout.readline() == "0\n"
        _, errors = forking.communicate()
    assert not errors, errors
    resumed = [store.record(spec).execution["resumed_after"] for spec in (parent, child)]
    assert all(found == sorted(set(found)) for found in resumed) and all(resumed)
    # One kill can come between the runs, or before the first epoch of one of them is safe.
    assert 18 <= sum(map(len, resumed)) <= 20
    for spec in (parent, child):
        assert_same_end(spec, store, whole)
    assert not list(store.folder.glob("*.tmp")) and not list(store.folder.glob("*.damaged"))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "weights short": ("*.safetensors", shorten, "another checksum"),
    "weights bit": ("*.safetensors", flip_a_bit, "another checksum"),
    "weights gone": ("*.safetensors", Path.unlink, "cannot be read"),
    "json short": ("*.json", shorten, "is not a checkpoint"),
    "json number": (
        "*.json",
        lambda path: path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1')),
        "does not have the checksum it names",
    ),
    "json foreign": ("*.json", lambda path: path.write_text("[]"), "is not a checkpoint"),
    "json binary": ("*.json", lambda path: path.write_bytes(b"\xff\x00"), "is not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_run_starts_over(whole: Store, tmp_path: Path, damage: str) -> None:
    store = with_parent(tmp_path, whole)
    with pytest.raises(Paused):
        compute(LATE, store, device="cpu", until=0.0)
    pattern, harm, told = DAMAGE[damage]
    (path,) = (store.folder / ".checkpoints").glob(pattern)
    harm(path)
    with pytest.raises(RecordError):
        store.checkpoint(LATE).load()
    with pytest.warns(RecordWarning, match=rf"run {LATE.key()}.*{told}.*it starts over"):
        run([LATE], store, progress=False, workers=1)
    assert store.record(LATE).execution == {"resumed_after": [], "compiled": False}
    assert_same_end(LATE, store, whole)


def test_a_checkpoint_of_other_sources_is_not_continued(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = with_parent(tmp_path, whole)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "code_version", lambda: {"source": "another"})
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(Paused):
            compute(LATE, store, device="cpu", until=0.0)
    with pytest.warns(RecordWarning, match="begun with other sources and version of torch.*starts over"):
        compute(LATE, store, device="cpu")
    assert_same_end(LATE, store, whole)


def test_a_disk_without_room_spoils_the_saving_not_the_run(
    whole: Store, tmp_path: Path, saving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    store = with_parent(tmp_path, whole)
    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.warns(RecordWarning, match=r"cannot be saved on the way \(No space left on device\)") as told:
        compute(LATE, store, device="cpu")
    assert len(told) == 1, "said once, not after each epoch"
    assert_same_end(LATE, store, whole)


def test_a_diverged_run_keeps_the_last_good_checkpoint(
    tmp_path: Path, saving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.fit

    def diverging(*arguments: Any, **more: Any) -> Iterator[dict[str, Any]]:
        for row in real(*arguments, **more):
            if row["epoch"] == 3:
                raise training.TrainingDiverged("the loss became NaN")
            yield row

    monkeypatch.setattr(training, "fit", diverging)
    store = Store(tmp_path, also=())
    with pytest.raises(RunFailed, match="NaN"):
        run([PARENT], store, progress=False, workers=1)
    found = store.checkpoint(PARENT).load()
    assert found is not None and found[0].epochs == 2 and all(torch.isfinite(t).all() for t in found[1].values())


def test_an_epoch_that_is_not_of_the_run_is_refused() -> None:
    data = runs._load("digits", 8, 0.5, 96, 50)
    net = torch.nn.Module()
    with pytest.raises(SpecError, match="first is 6, expected an epoch of the run or its end: 0 to 5"):
        training.fit(net, data, PARENT.recipe, seed=0, first=6)


class Killed(BaseException):
    """Ends a computation where it stands, as SIGKILL would: nothing in the library catches it."""


def before_the_deletion(checkpoint: Checkpoint) -> None:
    raise Killed


def between_the_two_files(checkpoint: Checkpoint) -> None:
    checkpoint._json.unlink()
    raise Killed


def before_what_a_killed_writer_left(checkpoint: Checkpoint) -> None:
    checkpoint._json.unlink()
    for path in checkpoint.folder.glob(f"{checkpoint.key}.*.safetensors"):
        path.rename(path.with_name(f"{path.name}.1.tmp"))
    raise Killed


MOMENTS = [before_the_deletion, between_the_two_files, before_what_a_killed_writer_left]


def killed_at_its_end(store: Store, moment: Callable[[Checkpoint], None] = before_the_deletion) -> list[Path]:
    """Finish LATE after a checkpoint, killed when its record is there; returns what is left of the checkpoint."""
    with pytest.raises(Paused):
        compute(LATE, store, device="cpu", until=0.0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "delete", moment)
        compute(LATE, store, device="cpu")
    left = list((store.folder / ".checkpoints").iterdir())
    assert store.state(LATE) == "done" and left
    return left


def wanted_again(store: Store) -> None:
    assert len(run([LATE], store, progress=False, workers=1)) == 1


def campaigned(store: Store) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "wanted", lambda tier: [LATE])
        assert campaign.campaign("smoke", minutes=1, store=store, workers=1, say=lambda line: None)


def found_done_by_a_worker(store: Store) -> None:
    """Another process finished it, and was killed, between the question what is missing and the lock."""
    told: list[dict[str, Any]] = []
    job = {"spec": LATE.to_json(), "folder": str(store.folder), "also": [], "device": "cpu", "refresh": False}
    runs._handle(job, told.append)
    assert told[-1]["event"] == "done"


def another_wanted(store: Store) -> None:
    run([PARENT], store, progress=False, workers=1)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("meet", [wanted_again, campaigned, found_done_by_a_worker, another_wanted])
def test_whoever_meets_a_run_that_was_killed_at_its_end_sweeps_up(
    whole: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[Checkpoint], None],
    meet: Callable[[Store], None],
) -> None:
    store = with_parent(tmp_path, whole)
    killed_at_its_end(store, moment)
    monkeypatch.setattr(runs, "compute", None)  # nothing needs to be computed any more
    meet(store)
    assert_same_end(LATE, store, whole)
    assert not list((store.folder / ".checkpoints").iterdir())


def test_a_dry_run_of_a_campaign_and_a_reader_delete_nothing(whole: Store, tmp_path: Path) -> None:
    store = with_parent(tmp_path, whole)
    left = killed_at_its_end(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "wanted", lambda tier: [LATE])
        campaign.campaign("smoke", minutes=1, store=store, dry_run=True, say=lambda line: None)
    store.frame([LATE])
    assert sorted((store.folder / ".checkpoints").iterdir()) == sorted(left)


def test_sweeping_leaves_what_is_under_way(whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = with_parent(tmp_path, whole)
    with pytest.raises(Paused):
        compute(GOAL, store, device="cpu", until=0.0)
    begun = set((store.folder / ".checkpoints").iterdir())
    store.sweep()
    assert set((store.folder / ".checkpoints").iterdir()) == begun, "no record is there yet"
    killed_at_its_end(store)
    with store.lock(LATE):
        store.sweep()
        assert len(list((store.folder / ".checkpoints").iterdir())) == 4, "somebody computes it"
    store.sweep()
    assert set((store.folder / ".checkpoints").iterdir()) == begun
    with pytest.raises(Paused), monkeypatch.context() as patch:
        patch.setattr(runs, "code_version", lambda: {"source": "another"})
        compute(LATE, store, device="cpu", until=0.0)
    store.sweep()
    assert len(list((store.folder / ".checkpoints").iterdir())) == 4, "it is to replace a record of other sources"


def test_sweeping_looks_once_at_one_folder_however_many_runs_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, also=())
    (tmp_path / ".checkpoints").mkdir()
    for number in range(1000):
        (tmp_path / f"{number:012x}.json").touch()
    looked, really = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or really(path))
    monkeypatch.setattr(Path, "is_file", None)
    store.sweep()
    assert looked == [tmp_path / ".checkpoints"]
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError()))
    store.sweep()
