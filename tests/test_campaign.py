"""Campaigns: order, time, murder, company; and what `nladv why` says of a run in each state."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bare_environment
from nladv_core import campaign, cli, experiments, runs, store, tiers, workers
from nladv_core.errors import SpecError
from nladv_core.recipes import Recipe
from nladv_core.runs import Paused, RunFailed, RunSpec, Store

ROOT = Path(campaign.__file__).parents[1]
PARENT = RunSpec(
    data="digits",
    net="resnet8",
    width=0.125,
    size=8,
    train=96,
    test=50,
    recipe=Recipe(epochs=3, lr=0.05, batch=32, flip=False),
)
CHILDREN = [replace(PARENT, parent=PARENT, omega=omega) for omega in (0.1, 1.0)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own, and a tier that wants three small runs."""
    monkeypatch.setenv("NLADV_STORE", str(tmp_path / "runs"))
    monkeypatch.setattr(campaign, "wanted", lambda tier: [*CHILDREN, PARENT])
    return Store()


def lines(**more: Any) -> tuple[bool, list[str]]:
    said: list[str] = []
    finished = campaign.campaign("smoke", **({"minutes": 5, "workers": 1} | more), say=said.append)
    return finished, said


@pytest.mark.parametrize("tier", experiments.TIERS)
def test_first_editions_first_chapters_of_the_claims_first_and_one_seed_after_the_other(tier: str) -> None:
    specs = campaign.wanted(tier)
    editions = {name: kind.editions(tier) for name, kind in experiments.CHAPTERS.items()}
    assert set(specs) == {spec for found in editions.values() for edition in found for spec in edition.specs()}
    assert len(specs) == len(set(specs))
    assert set(campaign.FIRST) <= set(editions)
    names = [*campaign.FIRST, *sorted(set(editions) - set(campaign.FIRST))]
    groups = [
        editions[name][number].specs()
        for number in range(max(map(len, editions.values())))
        for name in names
        if number < len(editions[name])
    ]
    if tier == "reduced":  # there the order is written down
        groups = [
            [spec for name, given in row for spec in experiments.CHAPTERS[name](tier=tier, **given).specs()]
            for _, row in tiers.ROWS
        ]
    expected: list[RunSpec] = []
    for runs_of in groups:
        seeds = {
            spec: spec.parent.parent.seed if spec.masks != "none" and spec.parent else spec.seed for spec in runs_of
        }
        for spec in runs_of:
            if spec.role == "retrained further":
                seeds[spec] = seeds[spec.parent]
        for seed in sorted(set(seeds.values())):  # a whole curve of one seed before another seed
            expected += [spec for spec in runs_of if seeds[spec] == seed and spec not in expected]
    assert specs == expected


def test_a_tier_that_nobody_knows() -> None:
    with pytest.raises(SpecError, match="tier is 'huge'"):
        campaign.wanted("huge")


def test_a_campaign_does_everything_and_says_so(own: Store) -> None:
    finished, said = lines()
    assert finished and all(own.state(spec) == "done" for spec in (PARENT, *CHILDREN))
    assert said[0].startswith(f"smoke on cpu, 5 minutes, {own.folder}: 3 of 3 runs left, 0 of them begun, about ")
    # the parent first, then in the order of the list
    assert said[1:4] == [f"done {spec}" for spec in (PARENT, *CHILDREN)]
    assert said[4].startswith("0 of 3 runs left")
    finished, said = lines()
    assert finished and len(said) == 1


def test_a_dry_run_computes_nothing_and_tells_the_order(own: Store) -> None:
    finished, said = lines(dry_run=True)
    assert not finished and not own.folder.exists()
    assert said[1:] == [f"would compute {spec}: 3 epochs" for spec in (PARENT, *CHILDREN)]


def test_what_there_is_no_time_for_is_kept_for_the_next_time(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    long = replace(PARENT, recipe=replace(PARENT.recipe, epochs=40_000), seed=1)
    child = replace(long, parent=long, omega=1.0)
    monkeypatch.setattr(campaign, "wanted", lambda tier: [long, child])
    began = time.monotonic()
    finished, said = lines(minutes=0.4)
    assert time.monotonic() - began < 24 + 1 and not finished
    progress = own.checkpoint(long).progress()
    assert progress is not None and 0 < progress.epochs < 40_000
    assert said[1] == f"run {long} was stopped after epoch {progress.epochs} of 40000"
    assert said[2].startswith("2 of 2 runs left, 1 of them begun")
    finished, said = lines(minutes=0.4)
    again = own.checkpoint(long).progress()
    assert again is not None and again.epochs > progress.epochs
    assert again.resumed_after == [progress.epochs]


def test_the_time_is_filled_and_not_overrun(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once, of runs that end in between and of one that would not: nine tenths of a minute are work."""
    short = [replace(PARENT, recipe=replace(PARENT.recipe, epochs=200), seed=seed) for seed in range(40)]
    long = replace(PARENT, recipe=replace(PARENT.recipe, epochs=100_000), seed=99)
    monkeypatch.setattr(campaign, "wanted", lambda tier: [short[0], long, *short[1:]])
    began = time.monotonic()
    finished, said = lines(minutes=1, workers=2)
    taken = time.monotonic() - began
    assert not finished and 54 < taken < 60 + 0.5, taken
    filled = re.search(r"(\d+)% of the time was filled", said[-1])
    assert filled and int(filled[1]) >= 90, said[-1]
    assert sum(line.startswith("done") for line in said) >= 2


# A worker that says it is at work, and never looks at the time.
_DEAF = """
import json, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({"event": "began", "spec": job["spec"]}), flush=True)
time.sleep(3600)
"""


def test_a_run_that_does_not_stop_by_itself_is_killed_in_time(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[workers.Pool] = []

    class Deaf(workers.Pool):
        def __init__(self, module: str, function: str) -> None:
            super().__init__(module, function)
            self._command = [sys.executable, "-c", _DEAF]
            pools.append(self)

    monkeypatch.setattr(runs, "Pool", Deaf)
    began = time.monotonic()
    finished, said = lines(minutes=0.05)
    assert not finished and 2.9 < time.monotonic() - began < 4
    assert said[1] == f"run {PARENT} was stopped within an epoch, as the time was up; it goes on from its last save"
    assert all(process.returncode is not None for process in pools[0].processes), "nobody is left behind"


def test_a_run_whose_epoch_does_not_fit_is_not_begun(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_pace", lambda *_: 1e9)
    finished, said = lines()
    assert not finished and said[1].startswith("3 of 3 runs left") and len(said) == 2


def test_failures_do_not_keep_the_others_from_running(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = replace(PARENT, recipe=replace(PARENT.recipe, lr=1e30))
    monkeypatch.setattr(campaign, "wanted", lambda tier: [replace(hot, parent=hot, omega=1.0), hot, PARENT])
    said: list[str] = []
    with pytest.raises(RunFailed, match="lower lr"):
        campaign.campaign("smoke", minutes=5, workers=1, say=said.append)
    assert own.state(PARENT) == "done" and sum(line.startswith("failed") for line in said) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_another_process_computes_is_left_to_it(own: Store, workers: int) -> None:
    with contextlib.ExitStack() as other:
        other.enter_context(own.lock(CHILDREN[0]))
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if line == f"done {CHILDREN[1]}":  # which did not wait for it
                assert own.state(CHILDREN[0]) == "missing"
                other.close()

        assert campaign.campaign("smoke", minutes=5, workers=workers, say=say)
    assert said[1:4] == [f"done {spec}" for spec in (PARENT, CHILDREN[1], CHILDREN[0])]


_TWO = """
import json, sys
from nladv_core import campaign, runs
campaign.wanted = lambda tier: [runs.RunSpec.from_json(found) for found in json.loads(sys.argv[1])]
campaign.campaign("smoke", minutes=2, workers=1, say=lambda line: print(line, flush=True))
"""


def test_two_campaigns_share_a_store(own: Store) -> None:
    """Each run is computed once, by either; both end when all is done."""
    specs = [*CHILDREN, *(replace(child, seed=1) for child in CHILDREN)]
    text = json.dumps([spec.to_json() for spec in specs])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _TWO, text]
    pair = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in pair:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and not errors, errors
        assert "0 of " in out.splitlines()[-1]
    assert all(own.state(spec) == "done" for spec in specs)
    assert not list(own.folder.glob("*.damaged")) and not list(own.folder.glob("*.tmp"))


@pytest.mark.parametrize(("arguments", "told"), [({"minutes": 0}, "minutes is 0"), ({"workers": 0}, "workers is 0")])
def test_numbers_out_of_range_are_refused(own: Store, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        lines(**arguments)


# ------------------------------------------------------------------------------------------- a machine with little

# torch, numpy, pandas, safetensors, pyarrow and Pillow, and what they bring with them.
PACKAGES = ["torch", "torchgen", "functorch", "numpy", "pandas", "safetensors", "pyarrow", "pil", "pillow", "filelock"]
PACKAGES += ["typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "setuptools"]
PACKAGES += ["dateutil", "six", "pytz", "tzdata", "nvidia", "triton"]


def linked_environment(folder: Path) -> str:
    """The interpreter of a virtual environment that holds these packages, by links, and no others."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(torch.__file__).parents[1].iterdir():
        if re.split(r"[.-]", entry.name)[0].lower() in PACKAGES:
            (site / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


def test_a_plain_copy_with_six_packages_works(tmp_path: Path) -> None:
    """`reduced` on a small CIFAR-10, from copied sources without git or installation; stopped, and killed, in time."""
    bare_environment.campaign_works(linked_environment(tmp_path / "bare"), tmp_path)


# ------------------------------------------------------------------------------------------------------------- why


def test_why_tells_each_state(own: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = experiments.chapter("01", {"tier": "smoke"}).specs()[0]
    parent = wanted.parent
    assert parent is not None

    def told() -> str:
        assert cli.main(["why", wanted.key()[:9]]) == 0
        return capsys.readouterr().out

    text = told()
    assert text.startswith(f"{wanted}\nmissing: there is no record in {own.folder}") and "2 epochs to compute" in text
    assert "wanted by: 01_linearization (smoke)" in text and f"parent: {parent}: missing, computed first" in text
    runs.compute(parent, own, device="cpu")
    with pytest.raises(Paused):
        runs.compute(wanted, own, device="cpu", until=0.0)
    text = told()
    assert "begun: goes on after epoch 1 of 2" in text and f"parent: {parent}: done, its weights are there" in text
    (own.folder / ".checkpoints" / f"{wanted.key()}.json").write_text("{}")
    assert "its checkpoint is damaged" in told()
    own.checkpoint(wanted).delete()
    runs.compute(wanted, own, device="cpu")
    assert "done: computed 20" in told() and "which are today's\nused wherever it is wanted" in told()
    now = store.code_version()
    with monkeypatch.context() as patch:
        patch.setattr(campaign, "code_version", lambda: {**now, "source": "feedc0ffee00"})
        text = told()
        assert f"sources {now['source']}; today's are version {now['version']}, sources feedc0ffee00" in text
        assert text.splitlines()[1].startswith("older code: computed") and "again by chapters at smoke" in text
    committed = Store(own.folder.parent / "live", also=[own.folder])
    text = campaign.why(wanted.key(), committed)
    assert "done, as a committed record: computed" in text and "never goes stale" in text
    weights = own.folder / f"{wanted.key()}.weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged: " in told() and "its checksum is not the record's" in told()
    (own.folder / f"{wanted.key()}.json").write_text("{")
    assert "found something that is not JSON" in told() and "set aside and computed again" in told()


def test_why_knows_stored_runs_that_no_chapter_wants(own: Store) -> None:
    runs.compute(PARENT, own, device="cpu")
    text = campaign.why(PARENT.key(), own)
    assert text.startswith(f"{PARENT}\ndone: ") and text.endswith("wanted by: no chapter")


@pytest.mark.parametrize(("key", "told"), [("xyz", "no run has a key that begins with 'xyz'"), ("", "begins with ''")])
def test_an_unknown_key_is_one_sentence(own: Store, key: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["why", key]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_an_ambiguous_key_lists_some(own: Store) -> None:
    keys = sorted(campaign._users())
    twice = next(a[0] for a, b in zip(keys, keys[1:], strict=False) if a[0] == b[0])
    with pytest.raises(SpecError, match=rf"\d+ runs have keys that begin with '{twice}': {twice}.*give more"):
        campaign.why(twice, own)
