"""Work through the missing runs of a tier for as long as there is time, and say why a stored run is used or not."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from nladv_core import costs, datasets, experiments, nets, pilot, runs, texts, training
from nladv_core.errors import RecordError, SpecError
from nladv_core.packing import Packing
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Store, code_version
from nladv_core.tiers import ROWS
from nladv_core.workers import Pool, serve

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


PILOT = "the pilot"  # of the tier "reduced", an experiment of no chapter


def milestones(tier: str) -> dict[str, list[RunSpec]]:
    """The experiments of a tier, the most urgent first: title -> its runs, each run where it is wanted first.

    At the tier "reduced" its pilot, then those of `tiers.ROWS`; else every chapter's first edition
    (`Chapter.editions`) before any second one, chapters in the order `FIRST`. Within an experiment seed by seed, so
    that there is soon a whole curve of one seed rather than one strength of all.

    Raises:
        SpecError: an unknown tier.
    """
    groups: dict[str, list[RunSpec]] = {}
    if tier == "reduced":
        groups[PILOT] = pilot.specs()
        for title, row in ROWS:
            chapters = [experiments.CHAPTERS[name](tier=tier, device="cpu", **given) for name, given in row]
            groups[title] = [spec for chapter in chapters for spec in chapter.specs()]
        named = {name for _, row in ROWS for name, _ in row}
        rest = [kind for name, kind in experiments.CHAPTERS.items() if name not in named]
        groups |= {kind.name: [spec for edition in kind.editions(tier) for spec in edition.specs()] for kind in rest}
    else:
        rank = {name: i for i, name in enumerate(FIRST)}
        editions = {name: kind.editions(tier) for name, kind in experiments.CHAPTERS.items()}
        order = [(n, rank.get(name, len(rank)), name) for name, found in editions.items() for n in range(len(found))]
        for number, _, name in sorted(order):
            title = name if number == 0 else f"{name}, edition {number + 1}"
            groups[title] = editions[name][number].specs()
    seen: set[RunSpec] = set()
    for title, specs in groups.items():
        fresh = [spec for spec in dict.fromkeys(specs) if spec not in seen]
        groups[title] = sorted(fresh, key=lambda spec: spec.seed % experiments.ANOTHER_SEED)
        seen.update(fresh)
    return groups


def wanted(tier: str) -> list[RunSpec]:
    """All runs of a tier, each once, the most urgent first (`milestones`).

    Raises:
        SpecError: an unknown tier.
    """
    return [spec for specs in milestones(tier).values() for spec in specs]


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
    pace = Pace(store, where)
    if any(costly(spec) for spec in todo.values()):
        say("measuring how fast this machine trains; the first time the compiler takes some minutes ...")
        say(pace.measure(packing.count, None if dry_run else time.time() + 60 * minutes / 4))

    def left() -> str:
        waiting = runs.missing(specs, store, refresh=False)
        under_way = sum(_epochs_saved(store, spec) > 0 for spec in waiting.values())
        work = sum(pace.seconds(spec) * _share_left(store, spec) for spec in waiting.values())
        return (
            f"{len(waiting)} of {len({*todo, *(spec.key() for spec in specs)})} runs left, {under_way} of them begun, "
            f"about {_duration(work / max(1, min(packing.count, len(waiting))))} with {packing.count} at once"
        )

    say(f"{tier} on {runs.device_name(where)}, {minutes:g} minutes, {store.folder}: {left()}")
    worth = _worth(todo, specs)
    ahead, planned = 0.0, set[str]()
    for title, group in milestones(tier).items():
        needed = {link.key(): link for spec in group for link in spec.lineage if link.key() in todo}
        fresh = {key: spec for key, spec in needed.items() if key not in planned}
        own = sum(pace.seconds(spec) * _share_left(store, spec) for spec in fresh.values()) / packing.count
        ahead, planned = ahead + own, planned | fresh.keys()
        if fresh and len(todo) > 1:
            say(f"{title}: {len(fresh)} runs, {_duration(own)}; done after {_duration(ahead)}")
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

    schedule = runs.Schedule(todo, progress=True, worth=worth, until=until, pace=pace.seconds, watch=watch)
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


def costly(spec: RunSpec) -> bool:
    """Whether a run is of the kind whose rate is worth measuring before it is promised: images, in a compiled step."""
    return spec.data not in texts.TEXTS and runs.worth_compiling(spec, torch.device("cpu"))


class Pace:
    """How long runs take on this machine.

    Args:
        store: whose records tell it of runs that are not `costly`, here translations and digits.
        where: the device.

    Attributes:
        rate: training images a second of one ResNet-20 in a compiled step beside as many others as run at once; None:
            not measured.
    """

    def __init__(self, store: Store, where: torch.device) -> None:
        self.where = where
        self.rate: float | None = None
        device = runs.device_name(where)
        done = [record for record in store.records() if record.device == device and not costly(record.spec)]
        own = [record for record in done if not store.committed(record.key)]
        done = own or done  # of other machines, where this one has done nothing yet
        expected = sum(runs.seconds(record.spec) for record in done)
        # Before anything was measured: seconds for one of `runs.seconds`.
        self._usual = sum(record.wall_s for record in done) / expected if expected else _USUAL.get(where.type, 1.0)

    def measure(self, count: int, until: float | None = None) -> str:
        """Train ResNet-20 on noise for some seconds, `count` times at once; a sentence of what came of it.

        The first time the compiler needs a minute or more for it.

        Args:
            until: give up at this time (`time.time()`); None: no end.
        """
        rates: list[float] = []
        with Pool(__name__, "_serve_rate") as pool:
            for _ in range(count):
                job = {"device": str(self.where), "spec": _MEASURED.to_json(), "seconds": _AT_LEAST}
                pool.give(pool.start(), job)
            while len(rates) < count:
                left = None if until is None else max(0.0, until - time.time())
                try:
                    _, answer = pool.events.get(timeout=left)
                except queue.Empty:
                    return "the rate of this machine was not measured, as the time was up; hours are guessed"
                if answer is None:
                    return "the rate of this machine cannot be measured: a worker process ended; hours are guessed"
                rates.append(answer["rate"])
        self.rate = sum(rates) / count
        told = f"measured: {sum(rates):,.0f} images a second of ResNet-20 in bfloat16, {count} at once"
        if not _has_bfloat16(self.where):
            told += "; this processor has no bfloat16 arithmetic (AVX-512 BF16, AMX), which makes it many times slower"
        return told

    def seconds(self, spec: RunSpec) -> float:
        """Of a whole run, alone on its core or beside the others on a GPU."""
        if self.rate is None or not costly(spec):
            return self._usual * runs.seconds(spec)
        epochs = spec.recipe.epochs
        judged = sum(spec.recipe.judges(epoch) for epoch in range(epochs))
        tested = spec.held_out or spec.test or datasets.OFFICIAL[spec.data].rows["test"]
        # A step with slopes takes about 1.15 times as long; a forward pass a third of a step.
        steps = spec.trained_on * (epochs + 0.15 * (epochs - spec.start if spec.linearized else 0))
        images = steps + judged * tested / 3
        return images / self.rate * costs.operations(spec) / costs.operations(_MEASURED)


def _has_bfloat16(where: torch.device) -> bool:
    """Whether the device computes in bfloat16; if not, each product is put together from others."""
    return where.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_USUAL = {"cpu": 1.0, "cuda": 0.05}
_MEASURED = RunSpec(data="cifar10", net="resnet20", recipe=RECIPES["reduced-train"], precision="bfloat16")
_AT_LEAST = 8.0  # seconds of training that are measured


def _rate(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    torch.set_num_threads(1)
    spec, where = RunSpec.from_json(job["spec"]), torch.device(job["device"])
    # Where there is no such arithmetic nothing is gained by compiling, and a whole batch takes minutes.
    able = _has_bfloat16(where)
    recipe = replace(spec.recipe, epochs=10**6, milestones=(), judged=10**6)
    recipe = recipe if able else replace(recipe, batch=8)
    images = torch.zeros((40 if where.type != "cpu" else 2 if able else 1) * recipe.batch, 3, 32, 32, dtype=torch.uint8)
    images.random_(generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) % 10
    data = datasets.ImageData(
        *("noise", images, labels, images[:10], labels[:10], tuple("0123456789")),
        *(torch.full((3,), 0.5), torch.full((3,), 0.25), "none", "noise", False),
    )
    net = nets.build(spec.net, width=spec.width)
    began, seen = 0.0, 0
    for row in training.fit(net, data, recipe, seed=0, precision=spec.precision, compiled=able, device=where):
        if row["epoch"] == 1:  # the compiler's
            began = time.perf_counter()
            continue
        seen += len(images)
        if time.perf_counter() - began > job["seconds"]:
            break
    report({"rate": seen / (time.perf_counter() - began)})


def _serve_rate() -> None:
    """A worker process's life while the rate is measured."""
    serve(_rate)


def _epochs_saved(store: Store, spec: RunSpec) -> int:
    try:
        progress = store.checkpoint(spec).progress()
    except RecordError:
        return 0
    return 0 if progress is None else progress.epochs


def _share_left(store: Store, spec: RunSpec) -> float:
    return 1 - _epochs_saved(store, spec) / max(1, spec.recipe.epochs)


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
