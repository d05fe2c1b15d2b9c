"""Eight processes on one store: each run is trained once, whoever reads sees whole files, and a dead one lets go."""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import forked
from evidence import evidence, full
from forked import PARENT
from nladv_core.runs import RunSpec, Store, run

# One worker starts the process that the others are forked from.
pytestmark = pytest.mark.xdist_group("forked")
PROCESSES = 8
SPECS = [
    PARENT,
    replace(PARENT, seed=1),
    replace(PARENT, parent=PARENT, omega=1.0),
    replace(PARENT, parent=PARENT, omega=2.0),
    replace(PARENT, parent=replace(PARENT, parent=PARENT, omega=2.0), masks="exact", seed=1),
    replace(PARENT, parent=replace(PARENT, seed=1), omega=1.0, seed=1),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("whole"), also=())
    run(SPECS, store, progress=False, workers=1)
    return store


def trained(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def same(spec: RunSpec, store: Store, whole: Store) -> bool:
    one, other = store.record(spec), whole.record(spec)
    return (one.files, one.metrics, one.history) == (other.files, other.metrics, other.history)


@pytest.mark.parametrize("alike", [True, False], ids=["all want the same", "each wants another part"])
def test_eight_processes_train_each_run_once_and_who_reads_sees_it_whole(
    alike: bool, whole: Store, tmp_path: Path
) -> None:
    with evidence("concurrency") as found:
        for number in range(full(10, 1)):
            store, log = Store(tmp_path / str(number), also=()), tmp_path / f"{number}.log"
            store.folder.mkdir()
            rng = random.Random(number)
            jobs = []
            for _ in range(PROCESSES):
                chosen = SPECS if alike else rng.sample(SPECS, 3)
                jobs.append([spec.to_json() for spec in rng.sample(chosen, len(chosen))])
            reader = forked.start(forked.read, str(store.folder), 3.0)
            processes = [forked.start(forked.compute, str(store.folder), job, str(log), 0.005) for job in jobs]
            for process in processes:
                process.join(600)
                assert process.exitcode == 0, (
                    "an error, or a deadlock" if process.exitcode is None else process.exitcode
                )
            reader.join(60)
            assert reader.exitcode == 0, "a torn read"
            counts = trained(log)
            assert set(counts.values()) == {1} and set(counts) == set(store.keys())
            assert all(same(spec, store, whole) for spec in SPECS if store.has(spec.key()))
            what = "the same runs" if alike else "different runs with common parents"
            found.note(f"{PROCESSES} processes want {what}", "each trained once, bit-identical", len(counts))
            found.note(f"{PROCESSES} processes write, one reads all the while", "no torn read")


def test_a_killed_holder_lets_go_and_another_takes_its_place(whole: Store, tmp_path: Path) -> None:
    """All want one run; whoever trains it is killed, again and again, until one is left."""
    long = replace(PARENT, recipe=replace(PARENT.recipe, epochs=60))
    with evidence("concurrency") as found:
        for number in range(full(3, 1)):
            store, log = Store(tmp_path / str(number), also=()), tmp_path / f"{number}.log"
            processes = [
                forked.start(forked.compute, str(store.folder), [long.to_json()], str(log)) for _ in range(PROCESSES)
            ]
            killed: set[int] = set()
            until = time.monotonic() + 600
            while len(killed) < PROCESSES - 1 and time.monotonic() < until:
                holders = [int(line.split()[1]) for line in log.read_text().splitlines()] if log.is_file() else []
                progress = store.checkpoint(long).progress() if holders else None
                # Once it has saved something itself: before that, nobody would know of its part.
                saved = progress is not None and len(progress.resumed_after) == len(killed)
                if holders and holders[-1] not in killed and saved:
                    os.kill(holders[-1], signal.SIGKILL)
                    killed.add(holders[-1])
                time.sleep(0.002)
            (left,) = [process for process in processes if process.pid not in killed]
            left.join(600)
            assert left.exitcode == 0 and store.state(long) == "done"
            assert len(log.read_text().splitlines()) == PROCESSES, "one at a time, each after the one before was killed"
            record = store.record(long)
            assert len(record.execution["resumed_after"]) == PROCESSES - 1
            assert [row["epoch"] for row in record.history] == list(range(1, 61))
            for process in processes:
                process.join(10)
            found.note("the process that trains is killed, others wait", "another goes on at once", PROCESSES - 1)
