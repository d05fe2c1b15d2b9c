"""Compute runs: what is missing, parents first, in parallel over the cores; each result is stored once it is there."""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import platform
import queue
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nladv_core import datasets, nets, paths, places, tasks, texts, training
from nladv_core import devices as several_devices
from nladv_core.checkpoints import Progress
from nladv_core.devices import ALONE, Ranks
from nladv_core.errors import NladvError, RecordError, SpecError
from nladv_core.linearize import (
    active_counts,
    apply_masks_,
    effective_width,
    permute_masks,
    units,
    weighted_activity,
)
from nladv_core.packing import Packing
from nladv_core.reports import unit_weights
from nladv_core.specs import RunSpec
from nladv_core.store import Busy, Record, RecordWarning, Store, code_version, fill, untrained, with_slopes
from nladv_core.workers import Pool, serve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "RecordWarning", "RunFailed", "RunSpec", "Store", "compute", "pick_device", "run"]


def compute(
    spec: RunSpec,
    store: Store,
    *,
    device: str = "auto",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    until: float | None = None,
    tell: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
    compiled: bool | None = None,
) -> Record:
    """Train one run and store it; its parent must be in the store. One CPU thread, so that equal specs end equal.

    A run that lasts is saved after an epoch every few seconds, and goes on from there when it is computed again.

    Args:
        on_epoch: gets the row of each finished epoch, also of those that were finished before an interruption.
        until: stop before this time (`time.time()`), between two epochs, and save.
        tell: gets warnings in words, among them that the run missed its goal; default: `RecordWarning`.
        ranks: the processes that compute this run together (`devices.compute` starts them); the first one stores it.
        compiled: whether to compile the training step (`training.fit`), with a warning if that fails; None: on a GPU,
            and on a CPU in bfloat16, if the run lasts.

    Raises:
        Paused: the time was up.
        NoCompiler: the step of a run that lasts is to be compiled on a CPU, and there is no C++ compiler.
        SpecError, DataError: what the data set or the loop refuses, and a goal that is not below what the network
            begins with.
        RecordError: the parent is missing or damaged.
        TrainingDiverged: the loss left the finite numbers; the last checkpoint, of finite ones, is kept.
    """
    began = time.perf_counter()
    if tell is None:
        tell = _warn
    where = pick_device(device)
    by_rule = compiled is None
    if compiled is None:
        compiled = ranks.count == 1 and worth_compiling(spec, where)
    compiled = compiled and spec.published is None  # which trains nothing
    if compiled:
        _keep_compiled()
        if by_rule and where.type == "cpu":
            _check_compiler()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = _preprocessed(spec, _load(spec.data, spec.size, spec.difficulty, spec.train, spec.test, spec.held_out))
        task = tasks.of(data)
        example = nets.example(spec.net, task.shape)
        net, parent = _initial(spec, store, task)
        price_weights, measure_weights = _budget(spec, net, example)
        under_way = _UnderWay(spec, store, net, _conditions(where, task, parent, compiled, ranks), tell, ranks)
        history = under_way.history
        if spec.published is not None:
            assert isinstance(data, datasets.ImageData)  # no translator is published here
            history.append(training.untrained_row(net, data, precision=spec.precision, device=where))
        else:
            if on_epoch is not None:
                for row in history:
                    on_epoch(row)
            for row in training.fit(
                net,
                task,
                spec.recipe,
                seed=spec.seed,
                omega=spec.omega,
                p=spec.p,
                goal=spec.goal,
                start=spec.start,
                pull_back=spec.pull_back,
                margin=spec.margin,
                slope_lr=spec.slope_lr,
                precision=spec.precision,
                compiled=compiled,
                device=where,
                first=len(history),
                momenta=under_way.momenta,
                ranks=ranks,
                price_weights=price_weights,
                measure_weights=measure_weights,
                not_compiled=under_way.note_not_compiled,
            ):
                history.append(row)
                if on_epoch is not None:
                    on_epoch(row)
                if row["epoch"] < spec.recipe.epochs:
                    under_way.after_epoch(until)
        if ranks.rank > 0:
            ranks.wait()
            return store.record(spec)
        final = history[-1]
        last = task.to(where).at_the_end(net.eval())
        net.cpu()
        measured = net if spec.linearized else with_slopes(net, spec, task.shape)
        counts = active_counts(measured)
        metrics = {name: final[name] for name in ("test_accuracy", "train_accuracy", "train_loss", "active_fraction")}
        metrics |= {name: final[name] for name in ("test_perplexity",) if name in final} | last
        metrics |= {
            "napl": paths.path_length(measured, example).mean,
            "apl": paths.path_length(measured, example, normalized=False).mean,
            "enw": effective_width(measured),
        }
        if any(isinstance(module, nn.MaxPool2d) for module in measured.modules()):  # as the paper counts on ImageNet
            metrics["napl_max_pool"] = paths.path_length(measured, example, count_max_pool=True).mean
        if spec.measure == "relus" and measure_weights is not None:
            metrics["relus"] = weighted_activity(net, measure_weights)
    finally:  # a checkpoint of before the loss diverged, if there is one, stays to be looked at
        torch.set_num_threads(threads)
    record = Record(
        key=spec.key(),
        spec=spec,
        metrics=metrics,
        history=history,
        units=[{"name": name, "channels": c, "active": active} for name, (active, c) in counts.items()],
        wall_s=round(under_way.seconds + time.perf_counter() - began, 3),
        device=device_name(where),
        torch=torch.__version__,
        python=platform.python_version(),
        code=code_version(),
        data=task.told(),
        parent=parent,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        execution={"resumed_after": under_way.resumed_after, "compiled": compiled and not under_way.not_compiled}
        | ({"devices": ranks.count} if ranks.count > 1 else {}),
    )
    record = store.save(record, net)
    ranks.wait()
    if spec.goal is not None and not record.reached:
        tell(
            f"run {spec} missed its goal: {_asked(spec)}, and {_found(spec, metrics)}; give it a larger omega, more "
            "epochs, or a goal nearer to that"
        )
    return record


def _budget(spec: RunSpec, net: nn.Module, example: Any) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """What the penalty charges for each unit of the network that a run begins with, and what its goal counts.

    None where every slope is charged alike, and where the goal counts units or there is none.

    Raises:
        SpecError: the goal is not below what is there.
    """
    charged = counted = None
    if spec.price != "units":
        charged = unit_weights(net, example, spec.price)  # type: ignore[arg-type]  # checked by RunSpec
        # A mean of 1 over slopes, so that omega is as strong as where every slope is charged alike.
        slopes = sum(unit.slope.numel() for _, unit in units(net))
        scale = slopes / math.fsum(float(weights.sum()) for weights in charged.values())
        charged = {name: scale * weights for name, weights in charged.items()}
    if spec.goal is not None and spec.measure != "units":
        counted = unit_weights(net, example, spec.measure)  # type: ignore[arg-type]
        there = {spec.measure: weighted_activity(net, counted)}
        if not spec.goal < there[spec.measure]:
            raise SpecError(
                f"run {spec} has nothing to do: {_asked(spec)}, and {_found(spec, there)} at its beginning; give a "
                "goal below that"
            )
    return charged, counted


def _asked(spec: RunSpec) -> str:
    """The goal of a run in words."""
    if spec.measure == "units":
        return f"its goal is a share of {spec.goal:g} of its units inactive"
    return f"its goal is a NAPL of {spec.goal:g}" if spec.measure == "napl" else f"its goal is {spec.goal:,.0f} ReLUs"


def _found(spec: RunSpec, metrics: Mapping[str, float]) -> str:
    """What there is of what the goal of a run counts, in words."""
    if spec.measure == "units":
        return f"{1 - metrics['active_fraction']:.4g} of them are"
    left = metrics[spec.measure]
    return f"its NAPL is {left:.5g}" if spec.measure == "napl" else f"there are {left:,.0f}"


def _warn(text: str) -> None:
    warnings.warn(text, RecordWarning, stacklevel=4)


class Paused(NladvError):
    """A run was stopped between two epochs because its time was up; what it has done is kept."""


class NoCompiler(NladvError):
    """The step of a run that lasts is to be compiled, and there is nothing to compile it with."""


def _keep_compiled() -> None:
    """Have torch's compiler keep what it makes in the project's cache, unless the user named another place."""
    folder = places.cache_dir() / "compiled"
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError):  # then torch's own place, among the temporary files
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _check_compiler() -> None:
    """Look for a C++ compiler as torch's own does, before the time of an uncompiled run is spent.

    Raises:
        NoCompiler: there is none.
    """
    from torch._inductor import config, cpp_builder, exc  # here, as it takes seconds

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError):
        names = [config.cpp.cxx] if isinstance(config.cpp.cxx, str) else config.cpp.cxx
        raise NoCompiler(
            "its training step is to be compiled, but there is no C++ compiler: looked for "
            f"{' and '.join(filter(None, names))}, as CXX and the PATH say; install one (Debian's package is g++), or "
            "run it several times more slowly with `nladv run --no-compile` or `nladv campaign --no-compile`"
        ) from None


# From how long a run on (`seconds`, so on one core in float32) a minute or two of compiling is soon made good. On a CPU
# bfloat16 as it is would be slower than float32.
_WORTH_COMPILING = {("cuda", "float32"): 5000.0, ("cuda", "bfloat16"): 5000.0, ("cpu", "bfloat16"): 300.0}


def worth_compiling(spec: RunSpec, where: torch.device) -> bool:
    """Whether a run's step is compiled if nobody says otherwise."""
    return seconds(spec) > _WORTH_COMPILING.get((where.type, spec.precision), math.inf)


# A run is saved at most this often, in seconds: what takes less is sooner done again than kept.
SAVE_EVERY_S = 5.0


# Kept with the conditions of a checkpoint, but not one of them: a run goes on however its first part was computed.
_NOT_COMPILED = "not compiled"


class _UnderWay:
    """What there is of a run that was interrupted, put into `net`, and the saving of what comes now."""

    def __init__(
        self,
        spec: RunSpec,
        store: Store,
        net: nn.Module,
        conditions: dict[str, Any],
        tell: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self.spec, self.net, self.tell, self.conditions, self.ranks = spec, net, tell, conditions, ranks
        self.checkpoint = store.checkpoint(spec)
        self.history: list[dict[str, Any]] = []
        self.momenta: dict[str, torch.Tensor] = {}
        self.seconds, self.resumed_after = 0.0, list[int]()
        self.not_compiled = False  # whether an epoch ran as it is though it was to be compiled
        self._began = self._saved = self._epoch_began = time.perf_counter()
        self._failed = False
        try:
            found = self.checkpoint.load()
            if found is None:
                return
            progress, state, momenta = found
            differ = [what for what, value in conditions.items() if progress.conditions.get(what) != value]
            if differ:
                raise RecordError(f"it was begun with other {' and '.join(differ)}")
            fill(net, state, "its tensors")
        except RecordError as error:
            tell(f"run {spec} was interrupted, and its checkpoint is of no use ({error}); it starts over")
            ranks.wait()  # all have seen that it is of no use
            if ranks.rank == 0:
                self.checkpoint.delete()
            return
        self.history, self.momenta, self.seconds = progress.history, momenta, progress.seconds
        self.resumed_after = [*progress.resumed_after, progress.epochs]
        self.not_compiled = bool(progress.conditions.get(_NOT_COMPILED))

    def note_not_compiled(self) -> None:
        """The compiler refused the step."""
        self.not_compiled = True

    def after_epoch(self, until: float | None) -> None:
        """Save if it is worth it.

        Raises:
            Paused: there is no time for another epoch before `until`.
        """
        now = time.perf_counter()
        lasted, self._epoch_began = now - self._epoch_began, now
        time_is_up = until is not None and time.time() + lasted > until
        if self.ranks.rank == 0 and (time_is_up or (now - self._saved > SAVE_EVERY_S and not self._failed)):
            self._save()
        if time_is_up:
            raise Paused(f"run {self.spec} was stopped after epoch {len(self.history)} of {self.spec.recipe.epochs}")

    def _save(self) -> None:
        seconds = round(self.seconds + time.perf_counter() - self._began, 3)
        conditions = self.conditions | ({_NOT_COMPILED: True} if self.not_compiled else {})
        progress = Progress(
            conditions=conditions, history=self.history, seconds=seconds, resumed_after=self.resumed_after
        )
        try:
            self.checkpoint.save(progress, self.net.state_dict(), self.momenta)
        except OSError as error:
            self._failed = True  # training goes on: the disk may have room again when the result is there
            why = error.strerror or error
            self.tell(f"run {self.spec} cannot be saved on the way ({why}); if it is killed, it starts over")
        self._saved = time.perf_counter()


def _conditions(
    where: torch.device, task: tasks.Task, parent: dict[str, str] | None, compiled: bool, ranks: Ranks
) -> dict[str, Any]:
    """What must be the same for two parts of a run to be as good as one."""
    return {
        "sources": code_version()["source"],
        "version of torch": torch.__version__,
        "device": device_name(where),
        "number of devices": ranks.count,
        "data": task.checksum,
        "parent weights": parent["sha256"] if parent else None,
        "compilation": compiled,
    } | ({"weights of another run": parent["weights_sha256"]} if parent and "weights_sha256" in parent else {})


def device_name(where: torch.device) -> str:
    """What a record says of the device."""
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def pick_device(device: str) -> torch.device:
    """`"auto"` is the GPU where there is one, else the CPU; anything else is torch's name of a device.

    Raises:
        SpecError: a device that is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return datasets.checked_device(device)


@lru_cache(maxsize=2)
def _load(
    name: str, size: int | None, difficulty: float | None, train: int | None, test: int | None, held_out: int = 0
) -> datasets.ImageData | texts.TextData:
    data = datasets.load(name, size=size, difficulty=difficulty, train=train, test=test)
    return data.hold_out(held_out) if held_out and isinstance(data, datasets.ImageData) else data


def _preprocessed(spec: RunSpec, data: datasets.ImageData | texts.TextData) -> datasets.ImageData | texts.TextData:
    """A network that others trained sees images as they showed them to it, and so do its descendants."""
    if spec.origin is None or not isinstance(data, datasets.ImageData):
        return data
    published = nets.PUBLISHED[spec.origin]
    return replace(data, mean=torch.tensor(published.mean), std=torch.tensor(published.std))


def _initial(spec: RunSpec, store: Store, task: tasks.Task) -> tuple[nn.Module, dict[str, str] | None]:
    """The network that a run begins with, and which weights or masks it took, from whom."""
    if spec.published is not None:
        published = nets.PUBLISHED[spec.published]
        origin = {"published": spec.published, "source": published.source, "url": published.url}
        return nets.load_published(spec.published), origin | {"sha256": published.sha256}
    net: nn.Module = untrained(spec, task.outputs)
    parent = spec.parent
    plain = parent if spec.masks == "none" else spec.weights  # whose weights it takes, if it has no slopes
    if plain is not None and not plain.linearized:
        fill(net, store.weights(plain), f"the weights of run {plain}")
    if spec.linearized:
        net = with_slopes(net, spec, task.shape)
    if parent is None:
        return net, None
    if spec.masks != "none":
        taken_over = store.masks(parent)
        try:
            if spec.masks != "exact":
                generator = torch.Generator().manual_seed(training.stream(spec.seed, "masks"))
                scope: Any = spec.masks
                taken_over = permute_masks(taken_over, scope, generator)
            apply_masks_(net, taken_over)
        except SpecError as error:
            raise RecordError(
                f"the masks of run {parent} are another network's, or edited ({str(error).rstrip('.')}); delete its "
                "record and its files, then `nladv run` computes it again"
            ) from None
    elif parent.linearized:
        fill(net, store.weights(parent), f"the weights of run {parent}")
    (_, what), *others = taken_from(spec)
    taken = {"key": parent.key(), "sha256": store.record(parent).files[what]["sha256"]}
    for source, what in others:
        taken |= {f"{what}_key": source.key(), f"{what}_sha256": store.record(source).files[what]["sha256"]}
    return net, taken


# ------------------------------------------------------------------------------------------- many runs at once


class RunFailed(NladvError, RuntimeError):
    """One or more runs could not be finished; the others are stored."""


def run(
    specs: Iterable[RunSpec],
    store: Store | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    device: str = "auto",
    refresh: bool = False,
    devices: int = 1,
    compiled: bool | None = None,
) -> pd.DataFrame:
    """Compute what is missing, parents first and each once, and return one row per run (`Store.frame`).

    Args:
        specs: the runs that are wanted; parents are added as they are needed.
        store: where records are; default `Store()`.
        workers: processes, each with one torch thread; default one per core, and none for work of a few seconds. A
            killed, interrupted or failed call loses only the runs under way.
        progress: a bar over epochs on standard error, in a terminal or a notebook that somebody looks at
            (`NLADV_PROGRESS=0` switches it off).
        device: "auto", "cpu", "cuda", ...
        refresh: also recompute runs in the store's own folder that other sources than today's computed.
        devices: on how many each run is computed, one run after the other; with dropout other numbers come out than on
            one, else the same within rounding.
        compiled: whether to compile training steps (`compute`); None: where it is worth it, for runs that last.

    Raises:
        SpecError: the device is not there, or fewer than one worker; more devices than there are, or several for each
            of several workers.
        RunFailed: runs that failed, each named with the reason; all others were finished first.
    """
    store, specs = store or Store(), list(specs)
    for spec in specs:
        if not isinstance(spec, RunSpec):
            raise SpecError(f"a run is {spec!r:.80}, expected a RunSpec; `RunSpec.from_json` makes one")
    if workers is not None and workers < 1:
        raise SpecError(f"workers is {workers}, expected at least 1")
    where = pick_device(device)
    several_devices.check(devices, device)
    if devices > 1 and workers not in (None, 1):
        raise SpecError(
            f"workers is {workers} and devices is {devices}; on several devices runs come one after the other"
        )
    if devices > 1 and compiled:
        raise SpecError(f"devices is {devices}, and on several devices the step is not compiled; leave one of them out")
    store.sweep()
    tried: set[str] = set()
    # More than once where a parent came out with other bits than before: then its children have to be computed again.
    while todo := {key: spec for key, spec in missing(specs, store, refresh).items() if key not in tried}:
        tried |= todo.keys()
        count = 1 if devices > 1 else workers
        if count is None:
            few = where.type == "cpu" and sum(map(seconds, todo.values())) < 6
            count = 1 if few else (os.cpu_count() or 1) if where.type == "cpu" else 4
        schedule = Schedule(todo, progress)
        work(schedule, store, workers=count, device=device, refresh=refresh, compiled=compiled, devices=devices)
        schedule.raise_failures()
    return store.frame(specs)


def work(
    schedule: Schedule,
    store: Store,
    *,
    workers: int,
    device: str,
    refresh: bool = False,
    compiled: bool | None = None,
    devices: int = 1,
    packing: Packing | None = None,
) -> None:
    """Compute what is in `schedule`, in this process (one worker, no end) or in others, until nothing can be begun.

    Args:
        workers: runs at once at most.
        packing: has a say in how many there are.
    """
    job = {
        "folder": str(store.folder),
        "also": list(map(str, store.also)),
        "parents": store.parents and str(store.parents),
        "device": device,
        "refresh": refresh,
        "devices": devices,
        "compiled": compiled,
        "until": schedule.until and schedule.until - schedule.grace,
    }
    with schedule.bar:
        if min(workers, schedule.total) == 1 and schedule.until is None:
            while (spec := schedule.next()) is not None or schedule.wait():
                if spec is not None:
                    _handle({**job, "spec": spec.to_json()}, schedule.report)
        else:
            _in_processes(schedule, job, min(workers, schedule.total), packing)


def missing(specs: Iterable[RunSpec], store: Store, refresh: bool) -> dict[str, RunSpec]:
    """What has to be computed: wanted runs without a usable record, and their sources that lack weights or masks."""
    todo: dict[str, RunSpec] = {}
    waiting: list[tuple[RunSpec, tuple[str, ...]]] = [(spec, ()) for spec in specs]
    while waiting:
        spec, files = waiting.pop()
        if spec.key() not in todo and not _usable(spec, store, refresh, files):
            todo[spec.key()] = spec
            waiting += [(source, (what,)) for source, what in taken_from(spec)]
    return todo


def taken_from(spec: RunSpec) -> list[tuple[RunSpec, str]]:
    """The sources of a run, each with what it gives: "weights" or "masks"."""
    of_parent = "weights" if spec.masks == "none" else "masks"
    return [(source, of_parent if source is spec.parent else "weights") for source in spec.sources]


def _usable(spec: RunSpec, store: Store, refresh: bool, files: Iterable[str] = ()) -> bool:
    state = store.state(spec)
    if state == "done":
        try:
            for what in files:
                store.tensors(spec, what)
        except RecordError:
            return False
    return state == "done" or (state == "older code" and not refresh)


def seconds(spec: RunSpec) -> float:
    """Rough time of a run on one core, measured for small networks: to order runs by, never to promise."""
    if spec.data in texts.TEXTS:
        pairs = spec.train or texts.TEXTS[spec.data].rows["train"]
        return 0.04 * spec.recipe.epochs * pairs * nets.depth(spec.net) * spec.width * (spec.width + 0.1)
    official = datasets.OFFICIAL.get(spec.data)  # None: digits, which say size and number themselves
    images = spec.train or (official.rows["train"] if official else 0)
    side = spec.size or (official.side if official else 0)
    depth = nets.depth(spec.net)
    return 9e-8 * (spec.recipe.epochs or 0.2) * images * side**2 * depth * (spec.width + 0.5)


_NO_PARENT = "its parent run failed"


class Schedule:
    """Which run comes next, what has been reported, and the bar.

    Args:
        todo: the runs by key, parents included.
        progress: whether to show a bar.
        worth: by key, the most urgent first; default: the longest chains of runs first.
        until: no run is begun that would not finish an epoch before this time (`time.time()`), and all stop then:
            after the last epoch that they can finish, or else they are killed; runs that another process computes are
            left to it. None: no end.
        pace: how long a run takes on this device, in seconds; None: `seconds`.
        watch: gets each end of a run: "done", "paused" or "failed", the run, and a reason.

    Attributes:
        grace: seconds before `until` when runs are to have stopped by themselves.
        filled: seconds, each counted by the share of the runs meant to be at work that were.
    """

    def __init__(
        self,
        todo: Mapping[str, RunSpec],
        progress: bool,
        *,
        worth: Mapping[str, float] | None = None,
        until: float | None = None,
        pace: Callable[[RunSpec], float] | None = None,
        watch: Callable[[str, RunSpec, str], None] | None = None,
    ) -> None:
        self.until, self.pace, self.watch = until, pace or seconds, watch
        self._looked = time.time()
        self.grace = min(3.0, 0.02 * (until - self._looked)) if until is not None else 0.0
        self.filled = 0.0
        self.waiting = dict(todo)
        self.unfinished = set(todo)
        self.failed: dict[str, tuple[RunSpec, str]] = {}
        self.total = len(todo)
        # A run is worth its own time and that of the longest chain of runs that wait for it.
        own = worth
        worth = {key: seconds(spec) for key, spec in todo.items()}
        generations = sorted(todo.values(), key=lambda spec: len(spec.lineage), reverse=True)
        for spec in generations:  # the youngest first, so that what waits for a run is known before it is looked at
            for source in spec.sources:
                if source.key() in todo:
                    worth[source.key()] = max(worth[source.key()], seconds(source) + worth[spec.key()])
        self.worth = worth if own is None else own
        # Heaps and not lists to look through: there may be a hundred thousand runs.
        self._ready: list[tuple[float, int, str]] = []
        self._held: list[tuple[float, int, str]] = []
        self._order = {key: number for number, key in enumerate(todo)}
        self._behind: dict[str, list[str]] = {}
        self._before: dict[str, int] = {}  # by key: how many of its sources are still to be computed
        for key, spec in todo.items():
            before = {source.key() for source in spec.sources} & todo.keys()
            self._before[key] = len(before)
            for first in before:
                self._behind.setdefault(first, []).append(key)
            if not before:
                self._make_ready(key)
        self.bar = _bar(sum(spec.recipe.epochs for spec in todo.values()), progress)

    def _make_ready(self, key: str) -> None:
        heapq.heappush(self._ready, (-self.worth[key], self._order[key], key))

    def next(self) -> RunSpec | None:
        """The most urgent run whose sources are done; None if there is none at the moment."""
        while self._held and self._held[0][0] <= time.monotonic():
            self._make_ready(heapq.heappop(self._held)[2])
        while self._ready:
            key = heapq.heappop(self._ready)[2]
            if self._in_time(self.waiting[key]):  # one for which there is no time now will find none later
                return self.waiting.pop(key)
        return None

    def _in_time(self, spec: RunSpec) -> bool:
        epoch = self.pace(spec) / max(spec.recipe.epochs, 1)
        return self.until is None or time.time() + epoch < self.until - self.grace

    def left(self) -> float | None:
        """Seconds until all has to stop, at least 0; None: no end."""
        return None if self.until is None else max(0.0, self.until - time.time())

    def at_work(self, running: int, meant: int) -> None:
        """Take down that since the last time `running` runs were at work where `meant` could have been."""
        now = time.time()
        self.filled += (now - self._looked) * min(1.0, running / max(1, meant))
        self._looked = now

    def cut_short(self, spec: RunSpec) -> None:
        """Tell that a run did not stop in time by itself."""
        self._tell(
            "paused", spec, f"run {spec} was stopped within an epoch, as the time was up; it goes on from its last save"
        )

    def wait(self) -> bool:
        """Wait a moment for runs that another process computes; False if there is nothing to wait for."""
        if not any(self._in_time(self.waiting[key]) for _, _, key in self._held):
            return False
        time.sleep(0.2)
        return True

    def report(self, message: dict[str, Any]) -> None:
        """Take in what a run reports: an epoch, a warning, its end, or its failure."""
        spec = RunSpec.from_json(message["spec"])
        if message["event"] == "began":
            pass
        elif message["event"] == "epoch":
            self.bar.update(1)
        elif message["event"] == "done":
            self.unfinished.discard(spec.key())
            for key in self._behind.pop(spec.key(), ()):
                self._before[key] -= 1
                if self._before[key] == 0 and key in self.waiting:
                    self._make_ready(key)
            self._tell("done", spec)
            self.bar.set_postfix_str(f"{self.total - len(self.unfinished)} of {self.total} runs")
        elif message["event"] == "warning":
            warnings.warn(message["text"], RecordWarning, stacklevel=2)
        elif message["event"] == "paused":
            self._tell("paused", spec, message["reason"])
        elif message["event"] == "busy":
            key = spec.key()
            self.waiting[key] = spec
            heapq.heappush(self._held, (time.monotonic() + 1.0, self._order[key], key))
        else:
            self.fail(spec, message["reason"])

    def _tell(self, event: str, spec: RunSpec, reason: str = "") -> None:
        if self.watch is not None:
            self.watch(event, spec, reason)

    def fail(self, spec: RunSpec, reason: str) -> None:
        """Note a failure; runs that wait for this one fail with it."""
        self._tell("failed", spec, reason)
        self.unfinished.discard(spec.key())
        self.failed[spec.key()] = (spec, reason)
        for key in self._behind.pop(spec.key(), ()):
            if key in self.waiting:
                self.fail(self.waiting.pop(key), _NO_PARENT)

    def raise_failures(self) -> None:
        """One error for all runs that failed, the first ones in full."""
        if self.failed:
            # Of runs that failed alike, one is told; those that only lacked their parent are counted.
            own = [(spec, reason) for spec, reason in self.failed.values() if reason != _NO_PARENT]
            alike = {reason: spec for spec, reason in reversed(own)}
            told = "; ".join(f"run {spec} failed: {reason}" for reason, spec in list(alike.items())[::-1][:3])
            rest = len(self.failed) - min(len(alike), 3)
            more = f"; {rest} more failed like this or need one of these as parent" if rest else ""
            kept = self.total - len(self.failed)
            raise RunFailed(f"{told}{more} ({kept} of {self.total} missing runs were finished and are kept)")


def _in_processes(schedule: Schedule, job: Mapping[str, Any], count: int, packing: Packing | None) -> None:
    """Hand out runs to worker processes until none is left that can be computed, or the time is up."""
    busy: dict[int, RunSpec] = {}
    begun: set[int] = set()  # those of them that have loaded what they need and are at work
    measured: set[int] = set()  # those that have finished an epoch
    idle: set[int] = set()
    lost = 0

    def may_begin() -> bool:
        if packing is not None:
            return packing.allows(len(busy), len(measured))
        return len(busy) < count - lost

    with Pool(__name__, "_serve") as pool:
        while True:
            while may_begin() and lost < count and (spec := schedule.next()) is not None:
                number = idle.pop() if idle else pool.start()
                busy[number] = spec
                pool.give(number, {**job, "spec": spec.to_json()})
            if not busy:
                if lost < count and schedule.wait():
                    continue
                break
            try:
                number, message = pool.events.get(timeout=schedule.left())
            except queue.Empty:
                for spec in busy.values():
                    schedule.cut_short(spec)
                break
            schedule.at_work(len(begun), packing.count if packing is not None else count)
            if message is None:
                lost += 1
                for those in (idle, begun, measured):
                    those.discard(number)
                code = pool.processes[number].returncode
                if number in busy:
                    how = f"signal {-code}" if code < 0 else f"status {code}"
                    schedule.fail(busy.pop(number), f"its worker process ended with {how}; run it again")
                continue
            schedule.report(message)
            if message["event"] == "began":
                begun.add(number)
            elif message["event"] == "epoch":
                measured.add(number)
                if packing is not None and message["seconds"] is not None:
                    spec = busy[number]
                    work = seconds(spec) / max(spec.recipe.epochs, 1)
                    packing.note(number, work / max(message["seconds"], 1e-6), len(busy))
            if message["event"] in ("done", "failed", "paused", "busy"):
                del busy[number]
                begun.discard(number)
                measured.discard(number)
                if packing is not None:
                    packing.forget(number)
                idle.add(number)
    while schedule.waiting and schedule.until is None:
        schedule.fail(schedule.waiting.popitem()[1], "no worker process was left")


def _handle(job: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Compute one run unless another process has done so meanwhile, and report on it."""
    spec = RunSpec.from_json(job["spec"])
    store = Store(job["folder"], job["also"], job.get("parents"))

    def say(event: str, **more: Any) -> None:
        report({"event": event, "spec": job["spec"], **more})

    until = job.get("until")
    say("began")
    looked = time.perf_counter()
    try:
        begun = store.checkpoint(spec).progress()
    except (RecordError, OSError):  # told where the run is computed
        begun = None
    known = 0 if begun is None else begun.epochs

    def epoch(row: dict[str, Any]) -> None:
        nonlocal looked
        lasted, looked = time.perf_counter() - looked, time.perf_counter()
        say("epoch", seconds=None if row["epoch"] <= known else lasted)  # those of before an interruption took no time

    try:
        with store.lock(spec, wait=until is None):
            # Whoever asked found it unusable, perhaps for its weights; another process may have mended it meanwhile.
            if _usable(spec, store, job["refresh"], ("weights", "masks") if spec.linearized else ("weights",)):
                store.sweep_run(spec)  # that process may have been killed before it could
            else:
                # One of older code is replaced, also if its parent has been already.
                replaced = job["refresh"] and store.stale(spec)
                damaged = store.state(spec) in ("damaged", "done") and not replaced
                names = ", ".join(path.name for path in store.set_aside(spec)) if damaged else ""
                if names:
                    say(
                        "warning",
                        text=f"run {spec} was damaged or not its parent's and is computed again; set aside as {names}",
                    )
                begin: Callable[..., Record] = partial(compute, until=until, compiled=job.get("compiled"))
                if job.get("devices", 1) > 1:
                    begin = partial(several_devices.compute, count=job["devices"])
                begin(
                    spec,
                    store,
                    device=job["device"],
                    on_epoch=epoch,
                    tell=lambda text: say("warning", text=text),
                )
        say("done")
    except Paused as error:
        say("paused", reason=str(error))
    except Busy:
        say("busy")
    except NladvError as error:
        say("failed", reason=str(error))
    except BrokenPipeError:
        raise
    except Exception:
        say("failed", reason=f"an error of ours, please report it:\n{traceback.format_exc()}")


def _serve() -> None:
    """A worker process's life."""
    serve(_handle)


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def _bar(epochs: int, wanted: bool) -> Any:
    ipython = sys.modules.get("IPython")
    watched = sys.stderr.isatty() or (ipython is not None and ipython.get_ipython() is not None)
    if not wanted or not watched or os.environ.get("NLADV_PROGRESS", "") == "0":
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=epochs, desc="training", unit="epoch", leave=False, mininterval=0.3)
