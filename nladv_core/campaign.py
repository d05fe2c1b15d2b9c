"""Work through the missing runs of a tier for as long as there is time, and say why a stored run is used or not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch

from nladv_core import datasets, experiments, runs
from nladv_core.errors import RecordError, SpecError
from nladv_core.packing import Packing
from nladv_core.specs import RunSpec
from nladv_core.store import Store, code_version

# Chapters whose runs are worth most to the claims come first; the others follow in their order.
FIRST = (
    "06_accuracy_and_depth",
    "04_early_and_late",
    "05_structure",
    "03_retraining_masks",
    "09_task_difficulty",
    "07_width",
    "08_depth",
)
# Before anything was measured on a device: seconds for one of `runs.seconds`.
_PACE = {"cpu": 1.0, "cuda": 0.05}


def wanted(tier: str) -> list[RunSpec]:
    """All runs of a tier, each once, the most urgent first.

    Every chapter's first edition (`Chapter.editions`) comes before any second one, chapters in the order `FIRST`;
    within an edition seed by seed, so that there is soon a whole curve of one seed rather than one strength of all.

    Raises:
        SpecError: an unknown tier.
    """
    rank = {name: i for i, name in enumerate(FIRST)}
    ordered: list[tuple[tuple[int, int, str, int], RunSpec]] = []
    for name, kind in experiments.CHAPTERS.items():
        for number, edition in enumerate(kind.editions(tier)):
            urgency = (number, rank.get(name, len(rank)), name)
            ordered += [((*urgency, spec.seed), spec) for spec in edition.specs()]
    ordered.sort(key=lambda found: found[0])
    return list(dict.fromkeys(spec for _, spec in ordered))


def campaign(
    tier: str,
    *,
    minutes: float,
    store: Store | None = None,
    device: str = "auto",
    workers: int | None = None,
    compiled: bool | None = None,
    dry_run: bool = False,
    say: Callable[[str], Any] = print,
) -> bool:
    """Compute missing runs of a tier until `minutes` are over; returns whether nothing is left.

    Runs on data that are not there are left out, and that is said. Several run at once: as many as memory bears and as
    add to the summed rate (`packing.Packing`). What is under way when the time is up is saved and goes on next time; so
    does nearly all of what is under way when the process is killed. The time is never overrun: what has not stopped by
    itself is killed. Several campaigns may work on one store: none does what another is doing.

    Args:
        tier: "smoke", "quick", "reduced" or "paper".
        minutes: > 0.
        workers: runs at once; default: found out.
        compiled: whether to compile training steps (`runs.compute`); None: where it is worth it, for runs that last.
        dry_run: only say what would be done.
        say: gets each line of the report.

    Raises:
        SpecError: an unknown tier or device, or a number out of range.
        RunFailed: runs that failed; all others that there was time for were worked on.
    """
    until = time.time() + 60 * minutes
    if not 0 < minutes < 1e6:
        raise SpecError(f"minutes is {minutes:g}, expected more than 0 (and less than a million)")
    if workers is not None and workers < 1:
        raise SpecError(f"workers is {workers}, expected at least 1")
    store = store or Store()
    where = runs.pick_device(device)
    specs = wanted(tier)
    for name, reason in {spec.data: datasets.absent(spec.data) for spec in specs}.items():
        if reason is not None:
            without = [spec for spec in specs if spec.data != name]
            say(f"left out {len(specs) - len(without)} runs: {reason}")
            specs = without
    if not dry_run:
        store.sweep()
    todo = runs.missing(specs, store, refresh=False)
    packing = Packing(where, runs.device_name(where), workers)
    pace = _pace(store, where)

    def left() -> str:
        waiting = runs.missing(specs, store, refresh=False)
        under_way = sum(_epochs_saved(store, spec) > 0 for spec in waiting.values())
        work = pace * sum(_seconds_left(store, spec) for spec in waiting.values())
        return (
            f"{len(waiting)} of {len({*todo, *(spec.key() for spec in specs)})} runs left, {under_way} of them begun, "
            f"about {_duration(work / max(1, min(packing.count, len(waiting))))} with {packing.count} at once"
        )

    say(f"{tier} on {runs.device_name(where)}, {minutes:g} minutes, {store.folder}: {left()}")
    worth = _worth(todo, specs)
    if dry_run:
        for key in sorted(todo, key=worth.__getitem__, reverse=True):
            saved = _epochs_saved(store, todo[key])
            begun = f", {saved} epochs done" if saved else ""
            say(f"would compute {todo[key]}: {todo[key].recipe.epochs} epochs{begun}")
        return not todo
    if not todo:
        return True

    def watch(event: str, spec: RunSpec, reason: str) -> None:
        say(f"{event} {reason or spec}" if event == "failed" else reason or f"{event} {spec}")

    schedule = runs.Schedule(todo, progress=True, worth=worth, until=until, pace=pace, watch=watch)
    began = time.time()
    runs.work(schedule, store, workers=packing.most, device=device, compiled=compiled, packing=packing)
    share = schedule.filled / max(time.time() - began, 1e-9)
    say(f"{left()}; {share:.0%} of the time was filled with work")
    schedule.raise_failures()
    return not runs.missing(specs, store, refresh=False)


def _worth(todo: dict[str, RunSpec], specs: list[RunSpec]) -> dict[str, float]:
    """By key; a parent is worth as much as the most urgent run that waits for it."""
    worth = dict.fromkeys(todo, float("-inf"))
    for rank, spec in enumerate(specs):
        for needed in spec.lineage:
            if needed.key() in worth:
                worth[needed.key()] = max(worth[needed.key()], -float(rank))
    return worth


def _pace(store: Store, where: torch.device) -> float:
    """Seconds on this device for one of `runs.seconds`, from the runs that it has done."""
    device = runs.device_name(where)
    done = [record for record in store.records() if record.device == device]
    expected = sum(runs.seconds(record.spec) for record in done)
    return sum(record.wall_s for record in done) / expected if expected else _PACE.get(where.type, 1.0)


def _epochs_saved(store: Store, spec: RunSpec) -> int:
    try:
        progress = store.checkpoint(spec).progress()
    except RecordError:
        return 0
    return 0 if progress is None else progress.epochs


def _seconds_left(store: Store, spec: RunSpec) -> float:
    return runs.seconds(spec) * (1 - _epochs_saved(store, spec) / max(1, spec.recipe.epochs))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------------------------------------------------- why


def why(prefix: str, store: Store | None = None) -> str:
    """Why a stored run is used or not, and what it would take to compute it: a few lines.

    Args:
        prefix: a key, or as much of one as names one run: stored, under way, or wanted by a chapter at any tier.

    Raises:
        SpecError: no run or more than one has a key that begins like this.
    """
    store = store or Store()
    users = _users()
    found = {key: spec for key, (spec, _) in users.items()} | dict.fromkeys(set(store.keys()) - users.keys())
    keys = sorted(key for key in found if key.startswith(prefix)) if prefix else []
    if not keys:
        raise SpecError(f"no run has a key that begins with {prefix!r}, neither stored nor wanted by a chapter")
    if len(keys) > 1:
        raise SpecError(f"{len(keys)} runs have keys that begin with {prefix!r}: {', '.join(keys[:4])}...; give more")
    key = keys[0]
    spec, chapters = users.get(key, (None, []))
    lines = _state(store, key, spec)
    if spec is None and store.has(key):
        with contextlib.suppress(RecordError):  # told among the lines already
            spec = store.record(key).spec
    lines.insert(0, f"{spec or key}")
    lines.append(f"wanted by: {', '.join(chapters) or 'no chapter'}")
    for source, what in [] if spec is None else runs.taken_from(spec):
        lines.append(f"takes {what} of {source}: {_source_state(store, source, what)}")
    return "\n".join(lines)


def _users() -> dict[str, tuple[RunSpec, list[str]]]:
    """Every run that a chapter wants, parents included, and which chapters at which tiers."""
    users: dict[str, tuple[RunSpec, list[str]]] = {}
    for tier in experiments.TIERS:
        for name in experiments.CHAPTERS:
            for spec in dict.fromkeys(run for wanted in experiments.wanted(name, tier) for run in wanted.lineage):
                users.setdefault(spec.key(), (spec, []))[1].append(f"{name} ({tier})")
    return users


def _state(store: Store, key: str, spec: RunSpec | None) -> list[str]:
    if not store.has(key):
        lines = [f"missing: there is no record in {store.folder}" + (" or beside it" if store.also else "")]
        try:
            progress = store.checkpoint(key).progress()
        except RecordError as error:
            return [*lines, f"its checkpoint is damaged ({error}): computed from the start"]
        if progress is not None and spec is not None:
            return [*lines, f"begun: goes on after epoch {progress.epochs} of {spec.recipe.epochs}"]
        return [*lines, "not begun" + (f": {spec.recipe.epochs} epochs to compute" if spec is not None else "")]
    try:
        record = store.record(key)
        if "weights" in record.files and not store.committed(key):
            store.weights(key)
    except RecordError as error:
        how = "" if store.committed(key) else "set aside and "
        return [f"damaged: {error}", f"{how}computed again in {store.folder} when it is next needed"]
    made = (
        f"computed {record.created} on {record.device} with torch {record.torch}, code version "
        f"{record.code.get('version')}, sources {record.code.get('source')}"
    )
    if store.committed(key):
        return [f"done, as a committed record: {made}", "used wherever it is wanted; it never goes stale"]
    today = code_version()
    if record.code.get("source") == today["source"]:
        return [f"done: {made}, which are today's", "used wherever it is wanted"]
    return [
        f"older code: {made}; today's are version {today['version']}, sources {today['source']}",
        "used at reduced and paper; computed again by chapters at smoke and quick",
    ]


def _source_state(store: Store, source: RunSpec, what: str) -> str:
    state = store.state(source)
    if state == "missing":
        return "missing, computed first"
    try:
        store.tensors(source, what)
    except RecordError:
        return f"its {what} are missing or damaged, computed first where they are needed"
    return f"{state}, its {what} are there"
