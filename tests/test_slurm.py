"""The grid on a real SLURM: the same records as on one machine, and a job that is killed there is sent again."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import one_node_slurm
from one_node_slurm import Slurm
from toy_project import Project

# Beside the other builds, not at the same time as one: this one looks at the clock.
pytestmark = pytest.mark.xdist_group("grid")


@dataclass
class Seen:
    """What one submission of the grid left, and what was seen on the way.

    Attributes:
        records: by key, as they lie in the store.
        jobs: by key, the numbers of SLURM's jobs, in order.
        states: of the jobs, by number, as they were last seen.
        asked: of the jobs, by number: generic resources.
        orphans: jobs that SLURM had before the parent's record was there.
        killed: key of the run whose job was killed after it had been saved, and the epoch that was saved then.
    """

    said: str = ""
    status: int | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, list[str]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    killed: str = ""
    saved: int = 0


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    required = os.environ.get("NLADV_SLURM") == "required"  # as .ci/run says, which installs it
    missing = ", ".join(one_node_slurm.missing())
    if missing and not required:
        pytest.skip(f"needs SLURM, and there is no {missing}: apt-get install {one_node_slurm.PACKAGES}")
    assert not missing, f"no {missing}, which .ci/run installs: {one_node_slurm.PACKAGES}"
    with one_node_slurm.one_node() as cluster:
        # Some versions come up and start no job without accounting (23.11 as Ubuntu 24.04 has it).
        if not required and cluster.ask("srun", "--immediate=20", "--job-name=probe", "echo", "here") != "here":
            pytest.skip(
                f"this SLURM starts no jobs: {cluster.ask('squeue', '-h', '-o', '%r') or cluster.ask('srun', '-V')}"
            )
        yield cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Chapters with five runs, three of them children, of which one lasts long enough to be killed on the way."""
    made = Project(tmp_path_factory.mktemp("project"), ["01_linearization", "04_early_and_late"])
    for name, old, new in (
        ("tiers", 'linearization="smoke-linearize"', 'linearization="quick-train"'),
        ("recipes", '"quick-train": _sgd(10,', '"quick-train": _sgd(40,'),
        ("runs", "SAVE_EVERY_S = 5.0", "SAVE_EVERY_S = 0.1"),
    ):
        path = made.root / "nladv_core" / f"{name}.py"
        source = path.read_text()
        assert source.count(old) == 1
        path.write_text(source.replace(old, new))
    return made


@pytest.fixture(scope="module")
def local(project: Project) -> dict[str, dict[str, Any]]:
    """The records of the grid on this machine."""
    done = project.run("--", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return records(project.store)


@pytest.fixture(scope="module")
def seen(project: Project, slurm: Slurm, local: dict[str, dict[str, Any]]) -> Seen:
    """The same grid in another store, by SLURM; the first child that has been saved is killed."""
    store = project.root / "runs-of-slurm"
    # SLURM here has no accounting, and there is no hurry on a cluster that asks less often than this.
    settings = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    process = subprocess.Popen(
        project.command("gpu=1", *settings, "--", "runs", profile="slurm"),
        cwd=project.root,
        env=project.environment | slurm.environment | {"NLADV_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = Seen()
    parents = {key: record["parent"]["key"] for key, record in local.items() if record["parent"]}
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        for line in slurm.ask("squeue", "--states=all", "-h", "-o", "%i|%T|%b|%k").splitlines():
            number, state, asked, comment = line.split("|")
            if comment == "(null)":
                continue  # the probe of the fixture `slurm`
            key = comment.rpartition("_")[2]
            found.states[number], found.asked[number] = state, asked
            if number not in found.jobs.setdefault(key, []):
                found.jobs[key].append(number)
                if key in parents and not (store / f"{parents[key]}.json").exists():
                    found.orphans.add(number)
        for key in parents:
            checkpoint = store / ".checkpoints" / f"{key}.json"
            if not found.killed and checkpoint.exists():
                slurm.ask("scancel", "--full", "--signal=KILL", found.jobs[key][0])
                found.killed, found.saved = key, len(json.loads(checkpoint.read_text())["body"]["progress"]["history"])
        time.sleep(0.1)
    if process.poll() is None:
        process.terminate()  # it takes its jobs back
    found.said, _ = process.communicate(timeout=60)
    found.status, found.records = process.returncode, records(store)
    return found


def test_the_grid_gives_the_same_records_as_on_this_machine(local: dict[str, dict[str, Any]], seen: Seen) -> None:
    """To the bit, down to the files of the weights, whatever happened on the way."""
    assert seen.status == 0, seen.said
    assert len(local) == 5 and sum(record["parent"] is not None for record in local.values()) == 3
    assert seen.records.keys() == local.keys()
    for key, record in local.items():
        found = seen.records[key]
        assert found.keys() == record.keys()
        assert not record["execution"]["resumed_after"]
        for name in record.keys() - {"wall_s", "created", "execution", "sha256"}:
            assert found[name] == record[name], (key, name)


def test_each_run_is_a_job_that_waits_for_its_parent_and_asks_for_a_gpu(seen: Seen) -> None:
    assert seen.jobs.keys() == seen.records.keys()
    assert {key: len(jobs) for key, jobs in seen.jobs.items()} == {key: 1 + (key == seen.killed) for key in seen.jobs}
    assert not seen.orphans
    assert set(seen.asked.values()) == {"gres:gpu:1"}


def test_a_killed_job_is_sent_again_and_goes_on_from_its_last_saved_epoch(seen: Seen) -> None:
    assert seen.killed, seen.said
    first, second = seen.jobs[seen.killed]
    assert seen.states[first] in ("CANCELLED", "FAILED") and seen.states[second] == "COMPLETED", seen.said
    resumed = {key: record["execution"]["resumed_after"] for key, record in seen.records.items()}
    (epoch,) = resumed.pop(seen.killed)
    assert seen.saved <= epoch < len(seen.records[seen.killed]["history"])
    assert not any(resumed.values()), "nothing else was interrupted"
