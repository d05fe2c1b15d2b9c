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
from nladv_core import campaign, cli, costs, datasets, experiments, pilot, runs, store, tiers, workers
from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES, Recipe
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
    """A store of its own, and a tier with one experiment, of three small runs."""
    monkeypatch.setenv("NLADV_STORE", str(tmp_path / "runs"))
    wants(monkeypatch, *CHILDREN, PARENT)
    return Store()


def wants(monkeypatch: pytest.MonkeyPatch, *specs: RunSpec) -> None:
    """Whatever the tier is, these are its runs."""
    monkeypatch.setattr(campaign, "milestones", lambda tier: {"a toy": list(specs)})


# What is said of the three before any of them runs.
TOY = "a toy: 3 runs, 0 s; done after 0 s"


def lines(**more: Any) -> tuple[bool, list[str]]:
    said: list[str] = []
    finished = campaign.campaign("smoke", **({"minutes": 5, "workers": 1} | more), say=said.append)
    return finished, said


@pytest.mark.parametrize("tier", experiments.TIERS)
def test_first_editions_first_chapters_of_the_claims_first_and_one_seed_after_the_other(tier: str) -> None:
    specs = campaign.wanted(tier)
    if tier == "reduced":  # an experiment of no chapter, and the first
        assert specs[: len(pilot.specs())] == pilot.specs()
        specs = specs[len(pilot.specs()) :]
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
    for runs_of in (list(dict.fromkeys(group)) for group in groups):
        # What begins anew from masks belongs to the seed of the network that these come from.
        seeds = {spec: spec.seed for spec in runs_of}
        for spec in runs_of:
            if spec.role.startswith("retrained"):
                seeds[spec] = seeds[spec.parent]
        for seed in sorted(set(seeds.values())):  # a whole curve of one seed before another seed
            expected += [spec for spec in runs_of if seeds[spec] == seed and spec not in expected]
    assert specs == expected


def test_a_tier_that_nobody_knows() -> None:
    for ask in (campaign.wanted, campaign.milestones):
        with pytest.raises(SpecError, match="tier is 'huge'"):
            ask("huge")


@pytest.mark.parametrize("tier", experiments.TIERS)
def test_experiments_hold_each_run_once_where_it_is_wanted_first(tier: str) -> None:
    found = campaign.milestones(tier)
    in_all = [spec for specs in found.values() for spec in specs]
    assert in_all == campaign.wanted(tier) and len(in_all) == len(set(in_all))
    if tier == "reduced":
        titles = [title for title, _ in tiers.ROWS]
        (first, *rest), rows = found, found.copy()
        assert first == campaign.PILOT and rows.pop(first) == pilot.specs() and rest == list(rows)
        found = rows
        assert list(found)[: len(titles)] == titles
        assert not any(found[title] for title in list(found)[len(titles) :]), "other chapters show what these compute"
        early, backbone = titles[0], titles[1]
        assert {spec.data for spec in found[early]} == {"multi30k"}
        assert {spec.net for spec in found[backbone]} == {"resnet20"}
        seen: set[RunSpec] = set()
        for title, row in tiers.ROWS:
            asked = {s for name, given in row for s in experiments.CHAPTERS[name](tier=tier, **given).specs()}
            assert set(found[title]) == asked - seen
            seen |= asked
    else:
        names = list(experiments.CHAPTERS)
        assert [title for title in found if "," not in title] == [
            *campaign.FIRST,
            *sorted(set(names) - set(campaign.FIRST)),
        ]
        firsts = [number for number, title in enumerate(found) if "," not in title]
        assert firsts == list(range(len(names))), "no second edition before every first one"


def test_a_campaign_does_everything_and_says_so(own: Store) -> None:
    finished, said = lines()
    assert finished and all(own.state(spec) == "done" for spec in (PARENT, *CHILDREN))
    assert said[0].startswith(f"smoke on cpu, 5 minutes, {own.folder}: 3 of 3 runs left, 0 of them begun, about ")
    # the parent first, then in the order of the list
    assert said[1:5] == [TOY, *(f"done {spec}" for spec in (PARENT, *CHILDREN))]
    assert said[5].startswith("0 of 3 runs left")
    finished, said = lines()
    assert finished and len(said) == 1


def test_a_dry_run_computes_nothing_and_tells_the_order(own: Store) -> None:
    finished, said = lines(dry_run=True)
    assert not finished and not own.folder.exists()
    assert said[1:] == [TOY, *(f"would compute {spec}: 3 epochs" for spec in (PARENT, *CHILDREN))]


class Faked(campaign.Pace):
    """Every run takes an hour; nothing is measured."""

    def measure(self, count: int, until: float | None = None) -> str:
        return f"measured for {count}" + ("" if until is None else f", {until - time.time():.0f} s at most")

    def seconds(self, spec: RunSpec) -> float:
        return 3600.0


def test_a_dry_run_tells_the_hours_of_each_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "Pace", Faked)
    monkeypatch.setattr(datasets, "absent", lambda name: "no sentences here" if name == "multi30k" else None)
    said: list[str] = []
    place = Store(tmp_path / "runs", also=())
    how: dict[str, Any] = {"store": place, "device": "cpu", "workers": 2, "dry_run": True}
    assert not campaign.campaign("reduced", minutes=60, say=said.append, **how)
    assert re.fullmatch(r"left out \d+ runs: no sentences here", said.pop(0))
    assert said.pop(0).startswith("measuring how fast this machine trains") and said.pop(0) == "measured for 2"
    assert not place.folder.exists()
    specs = [spec for spec in campaign.wanted("reduced") if spec.data != "multi30k"]
    everything = {link for spec in specs for link in spec.lineage}
    headline = said.pop(0)
    assert headline.startswith("reduced on cpu, 60 minutes") and f"about {len(everything) / 2:.1f} h with 2" in headline
    # Counted anew: whatever an experiment needs and none before it, half an hour each with two at once.
    seen: set[RunSpec] = set()
    wanted_by = [(campaign.PILOT, pilot.specs())]
    for title, row in tiers.ROWS[1:]:
        chapters = [experiments.CHAPTERS[name](tier="reduced", **given) for name, given in row]
        wanted_by.append((title, [spec for chapter in chapters for spec in chapter.specs()]))
    for title, found in wanted_by:
        fresh = {link for spec in found for link in spec.lineage} - seen
        seen |= fresh
        own, after = (campaign._duration(1800 * count) for count in (len(fresh), len(seen)))
        if fresh:
            assert said.pop(0) == f"{title}: {len(fresh)} runs, {own}; done after {after}"
    assert seen == everything and len(said) == len(everything)
    assert all(line.startswith("would compute ") for line in said)


def test_a_campaign_measures_the_rate_in_a_quarter_of_its_time_and_only_if_it_is_asked_for(
    own: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "Pace", Faked)
    monkeypatch.setattr(runs, "work", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "absent", lambda name: None)
    assert not [line for line in lines()[1] if line.startswith("measur")], "digits are told by what has been run"
    wants(monkeypatch, PARENT, PLAIN)
    assert lines(minutes=8)[1][1] == "measured for 1, 120 s at most"


def test_what_is_begun_takes_only_the_rest_of_its_hours(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "Pace", Faked)
    monkeypatch.setattr(campaign, "_epochs_saved", lambda store, spec: 2 if spec == PARENT else 0)  # of three
    _, said = lines(dry_run=True)
    assert "3 of 3 runs left, 1 of them begun, about 2.3 h with 1 at once" in said[0]
    assert said[1] == "a toy: 3 runs, 2.3 h; done after 2.3 h"
    assert said[2] == f"would compute {PARENT}: 3 epochs, 2 epochs done"


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
    assert said[1] == TOY
    assert said[2] == f"run {PARENT} was stopped within an epoch, as the time was up; it goes on from its last save"
    assert all(process.returncode is not None for process in pools[0].processes), "nobody is left behind"


def test_a_run_whose_epoch_does_not_fit_is_not_begun(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign.Pace, "seconds", lambda *_: 1e9)
    finished, said = lines()
    assert not finished and said[1] == "a toy: 3 runs, 833333.3 h; done after 833333.3 h"
    assert said[2].startswith("3 of 3 runs left") and len(said) == 3


def test_failures_do_not_keep_the_others_from_running(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = replace(PARENT, recipe=replace(PARENT.recipe, lr=1e30))
    wants(monkeypatch, replace(hot, parent=hot, omega=1.0), hot, PARENT)
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
    assert said[1:5] == [TOY, *(f"done {spec}" for spec in (PARENT, CHILDREN[1], CHILDREN[0]))]


_TWO = """
import json, sys
from nladv_core import campaign, runs
campaign.milestones = lambda tier: {"a toy": [runs.RunSpec.from_json(found) for found in json.loads(sys.argv[1])]}
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


# --------------------------------------------------------------------------------------------------- how long it takes


PLAIN = RunSpec(data="cifar10", net="resnet20", recipe=RECIPES["reduced-train"], precision="bfloat16")


def pace(place: Store | None = None, rate: float | None = None) -> campaign.Pace:
    found = campaign.Pace(place or Store(also=()), torch.device("cpu"))
    found.rate = rate
    return found


def test_what_is_worth_measuring_is_compiled_and_has_images() -> None:
    assert campaign.costly(PLAIN) and campaign.costly(replace(PLAIN, parent=PLAIN, omega=0.01))
    for cheap in (PARENT, replace(PLAIN, precision="float32"), replace(PLAIN, train=100)):
        assert not campaign.costly(cheap)
    assert not any(campaign.costly(spec) for spec in experiments.wanted("11_transformer", "paper"))


def test_seconds_follow_the_images_that_a_run_sees(own: Store) -> None:
    at = pace(rate=1000.0)
    short = RECIPES["reduced-linearize"]
    # 24 epochs, the test split after 5, 10, 15 and 20 to 24; a forward pass is a third of a step.
    assert at.seconds(PLAIN) == pytest.approx((24 * 50_000 + 8 * 10_000 / 3) / 1000)
    child = replace(PLAIN, parent=PLAIN, recipe=short, omega=0.01)
    tests = 7 * 10_000 / 3  # after 5, 10 and the last five
    assert at.seconds(child) == pytest.approx((1.15 * 15 * 50_000 + tests) / 1000)
    assert at.seconds(replace(child, start=5)) == pytest.approx(((15 + 0.15 * 10) * 50_000 + tests) / 1000)
    assert at.seconds(child.control) == pytest.approx((15 * 50_000 + tests) / 1000)
    held = replace(PLAIN, held_out=5000)
    assert at.seconds(held) == pytest.approx((24 * 45_000 + 8 * 5000 / 3) / 1000)
    fewer = replace(PLAIN, train=40_000, test=4000)
    assert at.seconds(fewer) == pytest.approx((24 * 40_000 + 8 * 4000 / 3) / 1000)
    deep = replace(PLAIN, net="resnet56")
    ratio = costs.operations(deep) / costs.operations(PLAIN)
    assert 3 < ratio < 3.2 and at.seconds(deep) == pytest.approx(ratio * at.seconds(PLAIN))
    assert pace(rate=2000.0).seconds(PLAIN) == pytest.approx(at.seconds(PLAIN) / 2)


def test_before_anything_was_measured_hours_are_guessed(own: Store) -> None:
    for one in (PLAIN, PARENT):
        assert pace().seconds(one) == runs.seconds(one)
    assert pace(rate=1000.0).seconds(PARENT) == runs.seconds(PARENT), "digits are not what was measured"


def test_runs_that_are_not_measured_take_as_long_as_those_before(own: Store) -> None:
    runs.compute(PARENT, own, device="cpu")
    factor = own.record(PARENT).wall_s / runs.seconds(PARENT)
    other = replace(PARENT, seed=5)
    assert pace(own).seconds(other) == pytest.approx(factor * runs.seconds(other))
    # What is committed may be of another machine: it counts where this one has done nothing yet, and only there.
    committed = Store(own.folder.parent / "live", also=[own.folder])
    assert pace(committed).seconds(other) == pytest.approx(factor * runs.seconds(other))
    runs.compute(replace(PARENT, seed=6), committed, device="cpu")
    factor = committed.record(replace(PARENT, seed=6)).wall_s / runs.seconds(PARENT)
    assert pace(committed).seconds(other) == pytest.approx(factor * runs.seconds(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rate_is_measured_by_training(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that trains and compiles in no time, in two processes at once."""
    tiny = replace(PLAIN, net="toynet3", width=0.25, precision="float32", recipe=replace(PLAIN.recipe, batch=8))
    monkeypatch.setattr(campaign, "_MEASURED", tiny)
    monkeypatch.setattr(campaign, "_AT_LEAST", 0.2)
    found = pace()
    told = found.measure(2)
    assert found.rate is not None and found.rate > 10
    rate = re.match(r"measured: ([\d,]+) images a second of ResNet-20 in bfloat16, 2 at once", told)
    assert rate is not None and "\n" not in told
    assert float(rate[1].replace(",", "")) == pytest.approx(2 * found.rate, abs=1)
    slower = "; this processor has no bfloat16 arithmetic" in told
    assert slower == (not torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert found.seconds(tiny) == runs.seconds(tiny), "not worth measuring itself"


@pytest.mark.parametrize(("able", "count", "batch"), [(True, 256, 128), (False, 8, 8)])
def test_the_rate_is_that_of_the_epochs_after_the_first(
    able: bool, count: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one holds the compiler's work; a processor that makes bfloat16 of other numbers gets less to do."""

    def fit(net: Any, data: Any, recipe: Recipe, **how: Any) -> Any:
        assert how["compiled"] == able and how["precision"] == "bfloat16" and how["device"] == torch.device("cpu")
        assert (len(data.train_images), recipe.batch, recipe.judges(0)) == (count, batch, False)
        assert recipe.milestones == () and recipe.lr == 0.1
        return ({"epoch": epoch} for epoch in range(1, 100))

    monkeypatch.setattr(campaign.training, "fit", fit)
    monkeypatch.setattr(campaign, "_has_bfloat16", lambda where: able)
    ticks = iter([60.0, 60.1, 60.2, 60.3, 60.3])  # the compiler took a minute
    monkeypatch.setattr(campaign.time, "perf_counter", lambda: next(ticks))
    told: list[dict[str, Any]] = []
    campaign._rate({"device": "cpu", "spec": PLAIN.to_json(), "seconds": 0.25}, told.append)
    assert told == [{"rate": pytest.approx(3 * count / 0.3)}]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", "cannot be measured: a worker process ended"),
        ("import time; time.sleep(99)", "was not measured, as the time was up"),
    ],
)
def test_where_nothing_can_be_measured_hours_are_guessed(
    own: Store, monkeypatch: pytest.MonkeyPatch, body: str, told: str
) -> None:
    class Broken(workers.Pool):
        def __init__(self, module: str, function: str) -> None:
            super().__init__(module, function)
            self._command = [sys.executable, "-c", body]

    monkeypatch.setattr(campaign, "Pool", Broken)
    found = pace()
    began = time.monotonic()
    assert found.measure(2, until=time.time() + 3) == f"the rate of this machine {told}; hours are guessed"
    assert found.rate is None and time.monotonic() - began < 10
    assert found.seconds(PLAIN) == runs.seconds(PLAIN)


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
    assert (
        "wanted by: 01_linearization (smoke)" in text and f"takes weights of {parent}: missing, computed first" in text
    )
    runs.compute(parent, own, device="cpu")
    with pytest.raises(Paused):
        runs.compute(wanted, own, device="cpu", until=0.0)
    text = told()
    assert (
        "begun: goes on after epoch 1 of 2" in text
        and f"takes weights of {parent}: done, its weights are there" in text
    )
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


def test_why_tells_all_that_a_run_takes(own: Store) -> None:
    source = replace(PARENT, parent=PARENT, omega=2.0)
    given = replace(PARENT, parent=source, masks="exact", weights=PARENT)
    further = replace(PARENT, parent=given)
    for spec in (PARENT, source, given):
        runs.compute(spec, own, device="cpu")
    text = campaign.why(given.key(), own).splitlines()
    assert text[-2:] == [
        f"takes masks of {source}: done, its masks are there",
        f"takes weights of {PARENT}: done, its weights are there",
    ]
    (own.folder / f"{source.key()}.masks.safetensors").unlink()
    (own.folder / f"{PARENT.key()}.json").unlink()
    text = campaign.why(given.key(), own).splitlines()
    assert text[-2:] == [
        f"takes masks of {source}: its masks are missing or damaged, computed first where they are needed",
        f"takes weights of {PARENT}: missing, computed first",
    ]
    runs.compute(PARENT, own, device="cpu")
    runs.compute(further, own, device="cpu")
    assert campaign.why(further.key(), own).splitlines()[-1] == f"takes weights of {given}: done, its weights are there"


def test_why_finds_what_only_rests_on_what_a_chapter_wants() -> None:
    (one,) = experiments.chapter("01", {"tier": "reduced", "device": "cpu"}).specs()
    assert one.parent is not None
    _, chapters = campaign._users()[one.parent.key()]
    assert "01_linearization (reduced)" in chapters and "06_accuracy_and_depth (reduced)" in chapters
    given = [s for s in experiments.wanted("03_retraining_masks", "reduced") if s.weights is not None]
    assert all(campaign._users()[s.key()][1] == ["03_retraining_masks (reduced)"] for s in given[:1])


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
