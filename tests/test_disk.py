"""Disks without room, that may only be read, that are somebody else's: one sentence, nothing lost, and on it goes.

Real ones: small file systems in memory, which only root may mount. Where that cannot be, these tests say so and skip.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evidence import Evidence, evidence, full
from nladv_core import cli, datasets, downloads, runs
from nladv_core.errors import DataError
from nladv_core.recipes import Recipe
from nladv_core.runs import RecordWarning, RunSpec, Store, compute, run
from test_datasets import Packs

PARENT = RunSpec(
    data="digits", net="resnet8", width=0.125, size=8, train=96, test=50, recipe=Recipe(epochs=2, lr=0.05, batch=32)
)
CHILD = replace(PARENT, parent=PARENT, omega=2.0)


class Disk:
    """A file system of its own, of some kilobytes."""

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")

    def _mount(self, *options: str) -> None:
        done = subprocess.run(["mount", *options, str(self.folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.decode().strip()}")

    def writable(self, yes: bool) -> None:
        self._mount("-o", f"remount,{'rw' if yes else 'ro'}")

    def fill(self, left: int) -> None:
        """Leave so many kilobytes."""
        ballast = self.folder / "ballast"
        ballast.unlink(missing_ok=True)
        free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        ballast.write_bytes(bytes(max(0, free - 1024 * left)))

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    made: list[Disk] = []

    def mount(kilobytes: int) -> Disk:
        made.append(Disk(tmp_path / f"disk{len(made)}", kilobytes))
        return made[-1]

    yield mount
    for one in made:
        subprocess.run(["umount", str(one.folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("whole"), also=())
    run([CHILD], store, progress=False, workers=1)
    return store


def content(folder: Path) -> dict[str, str]:
    """What lies there, locks and what is being written left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".locks" not in path.parts and path.name != "ballast"
    }


def spec_file(folder: Path, spec: RunSpec) -> str:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec.to_json()))
    return str(path)


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Status 2 and one sentence; returns it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)  # that it cannot be saved on the way either
        assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith("nladv: ") and told.count("\n") == 1 and "Traceback" not in told
    return told


def test_whatever_room_is_left_a_run_is_stored_whole_or_not_at_all(
    disk: Callable[[int], Disk],
    whole: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights take most of the room, then come masks, then the record: the disk is full at each of them."""
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)  # and at checkpoints
    place, spec = disk(512), spec_file(tmp_path, CHILD)
    monkeypatch.setenv("NLADV_STORE", str(place.folder / "runs"))
    run([PARENT], Store(also=()), progress=False, workers=1)
    before = content(place.folder)
    rooms = range(0, 100, 4) if full(1, 0) else range(0, 100, 24)
    outcomes = set()
    with evidence("disk") as found:
        for left in rooms:
            place.fill(left)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RecordWarning)
                status = cli.main(["run", spec])
            told = capsys.readouterr().err
            if status == 2:
                assert told.count("\n") == 1 and "No space left on device" in told and "make room" in told, told
                there = content(place.folder)
                begun = {name for name in there if ".checkpoints" in name}  # epochs for which there was room
                assert {n: s for n, s in there.items() if n not in begun} == before, "what was there is untouched"
                assert not [name for name in there if name.endswith(".tmp")], "nothing is half written"
                assert Store().state(CHILD) == "missing"
                found.note("disk full while a run is stored", "one sentence, nothing half written")
                place.make_room()
                assert cli.main(["run", spec]) == 0, "and on it goes"
                capsys.readouterr()
            else:
                found.note("disk nearly full while a run is stored", "stored")
                place.make_room()
            assert Store().record(CHILD).files == whole.record(CHILD).files
            outcomes.add(status)
            for path in Store().folder.glob(f"{CHILD.key()}.*"):
                path.unlink()
            assert content(place.folder) == before
    assert outcomes == {0, 2}


def test_a_store_that_may_only_be_read_is_read_and_said_to_be_so(
    disk: Callable[[int], Disk],
    whole: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = disk(1024)
    monkeypatch.setenv("NLADV_STORE", str(place.folder / "runs"))
    run([PARENT], Store(also=()), progress=False, workers=1)
    before = content(place.folder)
    place.writable(False)
    with evidence("disk") as found:
        told = refused(["run", spec_file(tmp_path, CHILD)], capsys)
        assert str(place.folder) in told and "Read-only file system" in told and "NLADV_STORE" in told
        assert cli.main(["run", spec_file(tmp_path, PARENT)]) == 0, "what is there is used"
        assert cli.main(["status", "--tier", "smoke"]) == 0
        assert cli.main(["why", PARENT.key()]) == 0
        assert refused(["campaign", "--tier", "smoke", "--minutes", "1", "--workers", "1"], capsys)
        assert content(place.folder) == before
        found.note("store that may only be read", "one sentence, what is there is used", 5)
    place.writable(True)
    assert cli.main(["run", spec_file(tmp_path, CHILD)]) == 0
    assert Store().record(CHILD).files == whole.record(CHILD).files


def as_nobody(command: list[str], said: Path) -> int:
    """Run the command in a child that has given up being root; what it says on standard error goes to `said`."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = os.fork()
    if not child:
        status = 99
        try:
            os.dup2(file, 2)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with open(2, "w", closefd=False) as stderr, contextlib.redirect_stderr(stderr):
                status = cli.main(command)
        except BaseException:
            os.write(file, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(file)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_store_of_somebody_else_is_said_to_be_so(
    whole: Store, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    store = tmp_path / "runs"
    monkeypatch.setenv("NLADV_STORE", str(store))
    run([CHILD], Store(also=()), progress=False, workers=1)  # also loads all that the child may need
    for path in Store().folder.glob(f"{CHILD.key()}.*"):
        path.unlink()
    for folder in [tmp_path, *tmp_path.parents]:
        if not os.stat(folder).st_mode & 0o001 and folder.stat().st_uid == 0 and "pytest" in str(folder):
            folder.chmod(0o755)
    before, said = content(tmp_path), tmp_path / "said"
    spec = spec_file(tmp_path, CHILD)
    with evidence("disk") as found:
        for mode, what in ((0o755, "that one may read but not write"), (0o000, "that one may not even read")):
            store.chmod(mode)
            try:
                assert as_nobody(["run", spec], said) == 2, said.read_text()
            finally:
                store.chmod(0o755)
            told = said.read_text()
            assert told.startswith("nladv: ") and told.count("\n") == 1, told
            assert "Permission denied" in told and "NLADV_STORE" in told
            found.note(f"store {what}", "one sentence, nothing changed")
        assert {name for name in content(tmp_path)} - {"said", "spec.json"} == set(before)
    assert cli.main(["run", spec]) == 0
    assert Store().record(CHILD).files == whole.record(CHILD).files


def test_a_chapter_on_a_full_disk_keeps_what_was_there(
    disk: Callable[[int], Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk(1024)
    output = place.folder / "out.ipynb"
    cells = [("tier = 'smoke'\nsize = 1", ["parameters"]), ("print('x' * size)", [])]
    code = [
        {
            "id": f"c{n}",
            "cell_type": "code",
            "source": s,
            "outputs": [],
            "execution_count": None,
            "metadata": {"tags": t},
        }
        for n, (s, t) in enumerate(cells)
    ]
    source = tmp_path / "chapter.ipynb"
    source.write_text(json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    command = ["chapter", str(source), "--no-page", "-o", str(output)]
    assert cli.main(command) == 0
    before = content(place.folder)
    with evidence("disk") as found:
        for left in (0, 8):
            place.fill(left)
            told = refused([*command, "-p", "size", "40000"], capsys)
            assert "No space left on device" in told and "make room" in told
            assert content(place.folder) == before, "the old result stays, and nothing half done beside it"
            found.note("disk full while a chapter is executed", "one sentence, the old result stays")
        place.make_room()
        place.writable(False)
        told = refused([*command, "-p", "size", "40000"], capsys)
        assert "Read-only file system" in told and content(place.folder) == before
        found.note("disk that may only be read while a chapter is executed", "one sentence, the old result stays")
        place.writable(True)
        assert cli.main([*command, "-p", "size", "40000"]) == 0
    assert "x" * 40000 in output.read_text()


def test_decoded_images_on_a_full_disk_are_one_sentence(
    disk: Callable[[int], Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk(256)
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(place.folder))
    Packs(tmp_path / "data")
    with evidence("disk") as found:
        for left in (0, 4, 20):
            place.fill(left)
            with pytest.raises(DataError, match=r"cannot be kept in .*No space left on device.*make room there"):
                datasets.load("cifar10")
            assert not [name for name in content(place.folder) if not name.endswith(".lock")]
            found.note("disk full while images are decoded", "one sentence, nothing half written")
        place.make_room()
        assert len(datasets.load("cifar10").train_labels) == 11  # type: ignore[union-attr]


def test_a_download_onto_a_full_disk_goes_on_when_there_is_room(
    disk: Callable[[int], Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk(4096)
    monkeypatch.setenv("NLADV_CACHE", str(place.folder))
    page = tmp_path / "page.tar.gz"
    page.write_bytes(os.urandom(2 << 20))
    known = downloads.Archive(
        file="page.tar.gz", url=page.as_uri(), md5=hashlib.md5(page.read_bytes(), usedforsecurity=False).hexdigest()
    )
    monkeypatch.setattr(downloads, "ARCHIVES", {"cinic10": known})
    place.fill(1536)
    with evidence("disk") as found:
        told = refused(["download", "cinic10"], capsys)
        assert "stopped after 1." in told and "No space left on device" in told and "goes on from there" in told
        place.make_room()
        assert cli.main(["download", "cinic10"]) == 0
        assert downloads.place("cinic10").read_bytes() == page.read_bytes()
        found.note("disk full while data are downloaded", "one sentence, goes on when there is room")


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    disk: Callable[[int], Disk], whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk(2048)
    store = Store(place.folder / "runs", also=())
    longer = replace(PARENT, recipe=replace(PARENT.recipe, epochs=4))
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    kept: list[bytes] = []

    def fill(row: dict[str, float]) -> None:
        if row["epoch"] == 3:  # after epoch 2 was saved
            place.fill(0)
            kept.append((store.folder / ".checkpoints" / f"{longer.key()}.json").read_bytes())
        if row["epoch"] == 4:
            kept.append((store.folder / ".checkpoints" / f"{longer.key()}.json").read_bytes())
            raise KeyboardInterrupt

    with evidence("disk") as found:
        with pytest.warns(RecordWarning, match="cannot be saved on the way"), pytest.raises(KeyboardInterrupt):
            compute(longer, store, device="cpu", on_epoch=fill)
        assert kept[0] == kept[1]
        progress = store.checkpoint(longer).load()
        assert progress is not None and progress[0].epochs == 2
        found.note("disk full while a checkpoint is saved", "told, the one before is whole")
        place.make_room()
        assert compute(longer, store, device="cpu").execution == {"resumed_after": [2], "compiled": False}


def test_counting_is_not_possible_without_evidence() -> None:
    assert Evidence().counts == {}
