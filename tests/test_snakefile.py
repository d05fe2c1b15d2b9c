"""The grid on Snakemake: what a change makes due, and a build that is killed, interrupted and taken up again."""

import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import book, cli, experiments, grid, runs
from nladv_core.errors import SpecError
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store
from toy_project import Project

# One worker makes the book that the tests below change.
pytestmark = pytest.mark.xdist_group("grid")

PARENT = RunSpec(data="digits", net="resnet8", size=8, train=96, test=50, recipe=Recipe(epochs=2, lr=0.05, batch=32))
CHILD = replace(PARENT, parent=PARENT, omega=1.0)
GRANDCHILD = replace(PARENT, parent=CHILD, masks="exact", seed=1)
OTHER = replace(PARENT, seed=1)


def todo(*specs: RunSpec) -> dict[str, RunSpec]:
    return {spec.key(): spec for spec in specs}


# ------------------------------------------------------------------------------------------------------- batches


def test_parents_come_before_their_children_in_whatever_order_runs_are_wanted() -> None:
    for least in (0.0, 0.5 * runs.seconds(PARENT), 1.5 * runs.seconds(PARENT), 1e9):
        found = grid._batches(todo(GRANDCHILD, OTHER, CHILD, PARENT), {}, least)
        keys = [key for batch in found.values() for key in batch.keys]
        assert sorted(keys) == sorted(todo(GRANDCHILD, OTHER, CHILD, PARENT))
        assert keys.index(PARENT.key()) < keys.index(CHILD.key()) < keys.index(GRANDCHILD.key())
        before: set[str] = set()
        for name, batch in found.items():
            assert name == batch.keys[0] and set(batch.after) <= before
            before.add(name)


def test_a_batch_is_one_run_at_0_minutes_and_all_short_ones_at_5() -> None:
    single = grid._batches(todo(CHILD, PARENT, OTHER), {}, 0.0)
    assert {name: batch.after for name, batch in single.items()} == {
        PARENT.key(): (),
        CHILD.key(): (PARENT.key(),),
        OTHER.key(): (),
    }
    (together,) = grid._batches(todo(CHILD, PARENT, OTHER), {}, 300.0).values()
    assert together.keys == (PARENT.key(), CHILD.key(), OTHER.key()) and not together.after
    assert together.seconds == pytest.approx(sum(map(runs.seconds, (CHILD, PARENT, OTHER))), abs=0.1)


def test_a_batch_waits_for_that_of_another_chapter() -> None:
    first = grid._batches(todo(PARENT), {}, 0.0)
    (second,) = grid._batches(todo(CHILD), {PARENT.key(): "elsewhere"}, 0.0).values()
    assert list(first) == [PARENT.key()] and second.after == ("elsewhere",)


def test_time_asked_of_a_cluster_grows_with_the_work_and_shrinks_with_the_threads() -> None:
    batch = grid.Batch(keys=("a",), after=(), seconds=7200.0)
    assert batch.minutes(1) > 3 * 120 > batch.minutes(2) > 3 * 60
    assert grid.Batch(keys=("a",), after=(), seconds=0.1).minutes(1) == 10


def test_runs_share_cores_and_a_gpu() -> None:
    batch = grid.Batch(keys=tuple("abcdef"), after=(), seconds=1.0)
    assert [batch.at_once(cores) for cores in (1, 4, 16)] == [1, 4, 6]
    assert [batch.at_once(16, share) for share in (1.0, 0.6, 0.5, 1 / 3, 0.2, 0.1, 0.001)] == [1, 1, 2, 3, 5, 6, 6]
    assert batch.at_once(2, 0.2) == 2
    assert [grid.gpu_share(given) for given in (0, "0.25", 1)] == [0.0, 0.25, 1.0]
    for given in (-0.1, 2, "gpu:1", "nan"):
        with pytest.raises(SpecError, match=f"gpu is {given!r}, expected the share of one GPU that each run takes"):
            grid.gpu_share(given)


def test_keys_name_runs_that_chapters_want_and_their_parents(capsys: pytest.CaptureFixture[str]) -> None:
    child = experiments.chapter("01", {"tier": "smoke"}).specs()[0]
    assert child.parent is not None
    assert grid.specs([child.key(), child.parent.key()], "smoke") == [child, child.parent]
    with pytest.raises(SpecError, match="no chapter wants a run with the key '0123456789ab' at tier smoke"):
        grid.specs(["0123456789ab"], "smoke")
    for arguments, told in (
        (["run", child.key(), "-p", "omega", "1"], "take no parameters but the tier"),
        (["run", child.key(), "06"], "give one chapter, one file, or several keys"),
    ):
        assert cli.main(arguments) == 2
        assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the engine itself


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A build at smoke that was killed while it trained, interrupted while it executed a chapter, then left alone."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.stopped(signal.SIGKILL, lambda: bool(made.records()))
    kept = made.records()
    assert kept and not made.build.joinpath("html").exists()
    said = made.stopped(signal.SIGINT, lambda: bool(list(made.build.glob("notebooks/.*.partial.ipynb"))))
    assert made.records().items() >= kept.items(), said
    done = made.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert made.records().items() >= kept.items(), "what was finished before the kill was computed again"
    return made


@pytest.fixture
def untouched(project: Project) -> Iterator[Project]:
    """Sources are put back after the test, with other dates than before, which mean nothing here."""
    kept = {
        path: path.read_bytes()
        for folder in ("nladv_core", "book", "data")
        for path in (project.root / folder).rglob("*.*")
        if path.is_file()
    }
    yield project
    for path, content in kept.items():
        path.write_bytes(content)


def test_a_build_that_was_killed_and_interrupted_is_finished(project: Project) -> None:
    assert (project.build / "html" / "index.html").is_file()
    assert {path.name for path in project.build.iterdir()} - {".lock", ".grid"} == {"html", "notebooks"}
    assert not list((project.build / ".grid").iterdir())
    assert sorted(path.name for path in (project.build / "notebooks").iterdir()) == [
        "01_linearization.ipynb",
        "02_path_length.ipynb",
    ]
    store = Store(project.store, also=())
    assert [store.state(key) for key in sorted(store.keys())] == ["done", "done"]


def test_what_is_finished_is_not_done_again(project: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.build.rglob("*.*") if path.is_file()}
    done = project.run()
    assert (done.returncode, done.stdout) == (0, "book: nothing has changed\n"), done.stderr
    assert before.items() <= {path: path.stat().st_mtime_ns for path in project.build.rglob("*.*")}.items()
    assert project.due() == set()


def append(line: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(path.read_text() + line)


CHANGES: dict[str, tuple[str, Callable[[Path], Any], set[str]]] = {
    "code of the results": (
        "nladv_core/nets.py",
        append("# new\n"),
        {"2 runs", "01_linearization", "02_path_length", "pages"},
    ),
    "code of the figures": (
        "nladv_core/figures.py",
        append("# new\n"),
        {"01_linearization", "02_path_length", "pages"},
    ),
    "code of the engine, and a date": (
        "nladv_core/cli.py",
        lambda path: (append("# new\n")(path), path.with_name("nets.py").touch()),
        set(),
    ),
    "a spec": (
        "nladv_core/tiers.py",
        lambda path: path.write_text(path.read_text().replace("omega=0.5,", "omega=0.6,")),
        {"1 runs", "01_linearization", "02_path_length", "pages"},
    ),
    "a notebook": (
        "book/02_path_length.ipynb",
        lambda p: p.write_text(p.read_text() + "\n"),
        {"02_path_length", "pages"},
    ),
    "results": ("data/claims.toml", append("# new\n"), {"01_linearization", "02_path_length", "pages"}),
    "a page": ("book/index.md", append("More.\n"), {"pages"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_due_what_it_touches(untouched: Project, change: str) -> None:
    name, edit, due = CHANGES[change]
    edit(untouched.root / name)
    assert untouched.due() == due


def test_a_lost_record_is_missed_only_by_who_needs_it(untouched: Project) -> None:
    child = experiments.chapter("01", {"tier": "smoke"}).specs()[0]
    record = untouched.store / f"{child.key()}.json"
    kept = record.read_bytes()
    record.unlink()
    try:
        assert untouched.due() == set(), "the chapter has what it showed"
        assert untouched.due("--", "runs") == {"1 runs"}, "who asks for all runs gets it"
        append("\n")(untouched.root / "book" / "01_linearization.ipynb")
        assert untouched.due() == {"1 runs", "01_linearization", "pages"}
    finally:
        record.write_bytes(kept)


def test_a_cluster_gets_one_job_for_each_run(untouched: Project) -> None:
    """The profile for SLURM with its plugin, as far as it can be tried without a cluster."""
    done = untouched.run("-n", "--quiet", "host", "--", "runs", profile="slurm", tier="quick")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = re.findall(r"^rule batch:\n(.*?)\n\[", done.stdout + done.stderr, re.M | re.S)
    child = experiments.chapter("01", {"tier": "quick"}).specs()[0]
    assert child.parent is not None and len(jobs) == 2
    (job,) = (job for job in jobs if f"batch={child.key()}" in job)
    assert re.search(rf"input: \S+/batch/{child.parent.key()}\n", job), "the parent first"
    assert re.search(r"runtime=\d+", job) and "mem_mb=" in job
    assert all(re.search(r"gpu_percent=0, gres=\n", job + "\n") for job in jobs), "no GPU unless somebody says so"


def test_runs_that_share_a_gpu_share_a_job_on_a_cluster_and_take_turns_on_one_machine(untouched: Project) -> None:
    def job(*config: str, profile: str) -> str:
        done = untouched.run(*config, "-n", "--quiet", "host", "--", "runs", profile=profile, tier="quick")
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = re.findall(r"^rule batch:\n(.*?)\n\[", done.stdout + done.stderr, re.M | re.S)
        return str(found)

    both = job("gpu=0.5", "gres=gpu:a100:1", "batch_minutes=5", "batch_threads=8", profile="slurm")
    assert "threads: 2\n" in both and "gpu_percent=100" in both and "gres=gpu:a100:1" in both
    here = job("gpu=0.8", profile="local")
    assert "threads:" not in here and "gpu_percent=80" in here


def test_another_build_or_tier_is_one_sentence(project: Project) -> None:
    done = project.run(tier="huge")
    assert done.returncode == 2 and "tier is 'huge', expected one of smoke" in done.stderr
    done = project.run("gpu=2")
    assert done.returncode == 2 and "gpu is 2, expected the share of one GPU that each run takes" in done.stderr
    lock = book.lock(project.build)
    with lock:
        done = project.run()
    assert done.returncode == 2 and "another build is using build/; wait for it or stop it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chapter_that_fails_is_told_and_the_other_is_finished(untouched: Project) -> None:
    path = untouched.root / "book" / "02_path_length.ipynb"
    path.write_text(path.read_text().replace("print(len(", "raise ValueError('a bug') or print(len("))
    page = untouched.root / "book" / "01_linearization.ipynb"
    page.write_text(page.read_text().replace("# 01_linearization", "# Anew"))
    executed = untouched.build / "notebooks" / "01_linearization.ipynb"
    html = (untouched.build / "html" / "index.html").stat().st_mtime_ns
    done = untouched.run()
    assert done.returncode != 0
    assert re.search("^nladv: 02_path_length: cell . failed with ValueError: a bug", done.stderr, re.M)
    assert "the build stopped, what is finished is kept" in done.stderr
    assert "# Anew" in executed.read_text(), "what does not depend on it goes on"
    assert (untouched.build / "html" / "index.html").stat().st_mtime_ns == html
