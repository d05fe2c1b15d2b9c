"""Killed at random moments, wherever it stands: nothing lost, nothing half written, and the end is the same to the bit.

Each line of work is killed and begun again until it comes to its end, which is compared with that of an uninterrupted
one; then from an empty folder, until there were as many kills as asked for. A short set in an ordinary run; the full
one with `NLADV_RECORD=1` (`make faults`).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import forked
from evidence import evidence, full
from forked import PARENT, RECIPE
from nladv_core.runs import RunSpec, Store
from toy_project import Project

# One worker starts the process that the others are forked from.
pytestmark = pytest.mark.xdist_group("forked")
LONG = replace(PARENT, recipe=replace(RECIPE, epochs=30, milestones=(20,)))
CHAIN = [LONG, replace(LONG, parent=LONG, omega=1.0, goal=0.5)]
SHORT = [replace(PARENT, seed=seed, recipe=replace(RECIPE, epochs=1)) for seed in range(8)]
SAME = ("metrics", "history", "units", "files", "data", "parent", "code")


def json_of(specs: list[RunSpec]) -> list[Any]:
    return [spec.to_json() for spec in specs]


# What is killed: its function, its runs, and for how long each file is on its way to its name, so that kills meet it.
WORK: dict[str, tuple[Callable[[Path], BaseProcess], list[RunSpec], int, int]] = {
    "epochs and checkpoints of a run": (
        lambda folder: forked.start(forked.compute, str(folder), json_of(CHAIN), str(folder.with_suffix(".log"))),
        CHAIN,
        30,
        3,
    ),
    "a checkpoint that is being written": (
        lambda folder: forked.start(forked.compute, str(folder), json_of(CHAIN), str(folder.with_suffix(".log")), 0.01),
        CHAIN,
        20,
        3,
    ),
    "a record that is being written": (
        lambda folder: forked.start(forked.compute, str(folder), json_of(SHORT), str(folder.with_suffix(".log")), 0.02),
        SHORT,
        20,
        3,
    ),
    "a campaign": (
        lambda folder: forked.start(forked.campaigning, str(folder), json_of(CHAIN), str(folder.with_suffix(".log"))),
        CHAIN,
        20,
        2,
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All runs without any interruption, each in one go."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    process = forked.start(forked.compute, str(folder), json_of([*CHAIN, *SHORT]), str(folder.with_suffix(".log")))
    process.join(300)
    assert process.exitcode == 0
    return Store(folder, also=())


def intact(store: Store, done: set[str]) -> set[str]:
    """What is finished: all of it whole, nothing lost since `done`; what is under way can be gone on with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = set(store.keys())
        assert keys >= done, "a finished run is lost"
        for key in keys:
            assert store.state(key) == "done"
            store.network(key)
    for path in (store.folder / ".checkpoints").glob("*.json"):
        assert store.checkpoint(path.stem).load() is not None
    assert not list(store.folder.glob("*.damaged"))
    return keys


def same_end(store: Store, whole: Store, specs: list[RunSpec]) -> int:
    """Equal to the bit, and nothing left over; returns how often the runs were taken up again."""
    for spec in specs:
        one, other = store.record(spec), whole.record(spec)
        for name in SAME:
            assert getattr(one, name) == getattr(other, name), name
    assert not list((store.folder / ".checkpoints").glob("*"))
    return sum(len(store.record(spec).execution["resumed_after"]) for spec in specs)


@pytest.mark.parametrize("what", WORK)
def test_killed_at_random_moments_it_ends_the_same(what: str, whole: Store, tmp_path: Path) -> None:
    begin, specs, many, few = WORK[what]
    kills = full(many, few)
    rng = random.Random(what)
    killed = ended = resumed = 0
    lasted = None  # of the work from its begin to its end; learnt from one that is left alone
    with evidence("kills") as found:
        while killed < kills or ended < 2:
            store, done = Store(tmp_path / str(ended), also=()), set[str]()
            while True:
                process = begin(store.folder)
                began = at_work(process, store.folder.with_suffix(".log"))
                if lasted is None or killed == kills:
                    process.join(300)
                else:
                    process.join(rng.uniform(0, 0.7 * lasted))
                if process.exitcode is None:
                    process.kill()
                    process.join(60)
                if process.exitcode == -signal.SIGKILL:  # else it came to its end just then
                    killed += 1
                    done = intact(store, done)
                    continue
                assert process.exitcode == 0
                lasted = lasted or time.monotonic() - began
                break
            intact(store, done)
            resumed += same_end(store, whole, specs)
            ended += 1
        found.note(what, "killed, nothing lost or half written", killed)
        found.note(what, "brought to its end, bit-identical", ended)
        if specs is CHAIN:
            assert resumed >= kills // 4, "kills came before anything was done"
            found.note(what, "times a run went on from a checkpoint", resumed)


def at_work(process: BaseProcess, log: Path) -> float:
    """Wait until the process has begun its first computation, or has ended; returns when that was."""
    until = time.monotonic() + 600
    while process.exitcode is None and time.monotonic() < until:
        if log.is_file() and f" {process.pid}\n" in log.read_text():
            break
        time.sleep(0.002)
    return time.monotonic()


NOTEBOOK = [
    "tier = 'smoke'",
    "import json\nimport forked\nfrom nladv_core import runs",
    "store = runs.Store({store!r}, also=())\nruns.SAVE_EVERY_S = -1.0",
    "specs = [runs.RunSpec.from_json(found) for found in json.loads({specs!r})]",
    "frame = runs.run(specs, store, workers=1, progress=False)\nframe['test_accuracy'].tolist()",
]


def outputs(notebook: Path) -> list[Any]:
    return [cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"]]


def test_a_notebook_killed_while_it_is_executed_ends_the_same(whole: Store, tmp_path: Path) -> None:
    """The process that drives the kernel is killed; the kernel notices and ends, or has just done its work."""
    rng = random.Random(0)
    with evidence("kills") as found:
        kills = full(6, 1)
        source, out, store = tmp_path / "chapter.ipynb", tmp_path / "out.ipynb", Store(tmp_path / "runs", also=())
        texts = [text.replace("{store!r}", repr(str(store.folder))) for text in NOTEBOOK]
        texts[1] = texts[1].replace("import forked", f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})")
        texts[3] = texts[3].replace("{specs!r}", repr(json.dumps(json_of(SHORT))))
        cells = [
            {"id": f"c{n}", "cell_type": "code", "source": text, "outputs": [], "execution_count": None}
            | {"metadata": {"tags": ["parameters"]} if n == 0 else {}}
            for n, text in enumerate(texts)
        ]
        source.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        killed, lasted = 0, None
        while killed < kills:
            began = time.monotonic()
            process = forked.start(forked.execute, str(source), str(out))
            process.join(300 if lasted is None else rng.uniform(0.3, 0.9) * lasted)
            if process.exitcode is None:
                process.kill()
                process.join(60)
                killed += 1
                assert not out.exists() or outputs(out), "whole or not there"
            else:
                assert process.exitcode == 0
                lasted = lasted or time.monotonic() - began
                out.unlink()
                shutil.rmtree(store.folder)
        process = forked.start(forked.execute, str(source), str(out))
        process.join(300)
        assert process.exitcode == 0
        expected = [whole.record(spec).metrics["test_accuracy"] for spec in SHORT]
        assert outputs(out)[-1][0]["data"]["text/plain"] == [str(expected)] or str(expected) in json.dumps(
            outputs(out)[-1]
        ).replace("\\n", "")
        intact(store, set())
        same_end(store, whole, SHORT)
        assert {path.name for path in tmp_path.glob("*.ipynb")} == {"chapter.ipynb", "out.ipynb"}
        found.note("a notebook while it is executed", "killed, nothing lost or half written", killed)
        found.note("a notebook while it is executed", "brought to its end, bit-identical", 1)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    if not full(1, 0):
        pytest.skip("takes minutes: test_snakefile.py kills a build twice; NLADV_RECORD=1 kills it at random moments")
    yield Project(tmp_path / "project")


def test_a_build_of_the_book_killed_at_random_moments_ends_the_same(project: Project) -> None:
    """Snakemake with all that it has started, as a machine that goes down does it."""
    rng, killed = random.Random(0), 0
    with evidence("kills") as found:
        whole = Project(project.root.parent / "whole")
        began = time.monotonic()
        assert whole.run().returncode == 0
        lasted = time.monotonic() - began
        while killed < 4:
            process = subprocess.Popen(
                project.command(),
                cwd=project.root,
                env=project.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                process.wait(rng.uniform(0.2, 0.8) * lasted)
                shutil.rmtree(project.store)  # it came to its end before: from the beginning
                shutil.rmtree(project.build)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                intact(Store(project.store, also=()), set())
        done = project.run()
        assert done.returncode == 0, done.stdout + done.stderr
        store, other = Store(project.store, also=()), Store(whole.store, also=())
        keys = set(other.keys())
        assert set(store.keys()) == keys and keys
        for key in keys:
            for name in SAME:
                assert getattr(store.record(key), name) == getattr(other.record(key), name), name
        for path in whole.build.glob("notebooks/*.ipynb"):
            assert outputs(path) == outputs(project.build / "notebooks" / path.name)
        found.note("a build of the book by Snakemake", "killed, nothing lost or half written", killed)
        found.note("a build of the book by Snakemake", "brought to its end, bit-identical", 1)


def test_the_full_set_kills_a_hundred_times() -> None:
    assert sum(many for _, _, many, _ in WORK.values()) + 6 + 4 == 100
    assert os.environ.get("NLADV_RECORD") == "1" or sum(few for *_, few in WORK.values()) <= 12
