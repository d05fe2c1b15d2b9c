"""What there is to do for the book, as a graph: batches of runs, chapters, pages. `Snakefile` turns it into jobs.

What is due is decided by content alone, as everywhere in this project: a chapter by the digest that it carries, a run
by its record. The engine adds parallel processes and clusters, not a second opinion.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nladv_core import book, places
from nladv_core.checkpoints import write
from nladv_core.errors import SpecError
from nladv_core.store import Store

if TYPE_CHECKING:
    from nladv_core.specs import RunSpec

# A worker process is there after about this time, in seconds: torch is large.
_START_UP_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Runs that one job computes, one after the other or side by side.

    Attributes:
        keys: of the runs, parents before children.
        after: names of the batches that compute parents of these runs.
        seconds: rough time on one core (`runs.seconds`), on the safe side of nothing.
    """

    keys: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float

    def at_once(self, cores: int, gpu: float = 0.0) -> int:
        """How many of the runs to compute side by side, at least 1: one on a core, and what one GPU bears.

        Args:
            cores: of the job.
            gpu: the share of a GPU that a run takes, see `gpu_share`.
        """
        bears = math.floor(1 / gpu + 1e-9) if gpu else cores
        return max(1, min(len(self.keys), cores, bears))

    def minutes(self, threads: int) -> int:
        """Time to ask a cluster for, with several runs at once: three times the estimate, at least 10 minutes.

        A job that is cut off loses little: its retry goes on from the last saved epoch.
        """
        return max(10, math.ceil((_START_UP_S + 3 * self.seconds / max(1, threads)) / 60))


def gpu_share(given: object) -> float:
    """The share of a GPU that each run takes: above 0, up to 1; 0: none.

    Raises:
        SpecError: anything else.
    """
    try:
        share = float(str(given))
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise SpecError(
            f"gpu is {given!r}, expected the share of one GPU that each run takes, from 0 to 1: 0.25 for four at once"
        )
    return share


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is due, and in which order.

    Attributes:
        tier: of the book.
        batches: by name, which is the key of the first run.
        chapters: those that are due, each with the batches that it waits for.
        pages: whether the book has to be rendered.
    """

    tier: str
    batches: Mapping[str, Batch] = field(default_factory=dict)
    chapters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pages: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """What `to_json` gave, from a file.

        Raises:
            SpecError: it is gone.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise SpecError(f"the plan {path} cannot be read ({error.strerror}); start the build again") from None
        batches = {
            name: Batch(keys=tuple(batch["keys"]), after=tuple(batch["after"]), seconds=batch["seconds"])
            for name, batch in found["batches"].items()
        }
        chapters = {name: tuple(after) for name, after in found["chapters"].items()}
        return cls(tier=found["tier"], batches=batches, chapters=chapters, pages=found["pages"])


def plan(
    tier: str = "quick",
    folder: Path | None = None,
    *,
    store: Store | None = None,
    batch_minutes: float = 5.0,
    every_run: bool = False,
) -> Plan:
    """What a build of the book at `tier` has to do.

    Runs are needed for chapters that are due; what these have in common is computed once. Short runs share a job,
    because starting a process takes longer than they do.

    Args:
        folder: the build folder, by default `build/` in the project's root.
        store: where records are; default `Store()`.
        batch_minutes: runs are put into one batch until it takes this long on one core; 0: one run a batch.
        every_run: also the missing runs of chapters that are not due.

    Raises:
        SpecError: an unknown tier, or a table of contents or a notebook that is not one.
    """
    folder = folder or places.project_root() / "build"
    store = store or Store()
    due: list[Path] = []
    others: list[Path] = []
    for source in book.chapters():
        given = book.at_tier(source, tier)
        (due if book.is_due(source, given, folder / "notebooks" / source.name) else others).append(source)
    batches: dict[str, Batch] = {}
    waits: dict[str, tuple[str, ...]] = {}
    for sources, wanted in ((due, True), (others, every_run)):
        if not sources or not wanted:
            continue
        needs = {source.stem: _missing(source, tier, store, every_run) for source in sources}
        todo = {key: spec for found in needs.values() for key, spec in found.items()}
        placed = {key: name for name, batch in batches.items() for key in batch.keys}
        batches |= _batches({key: spec for key, spec in todo.items() if key not in placed}, placed, 60 * batch_minutes)
        if sources is due:
            placed = {key: name for name, batch in batches.items() for key in batch.keys}
            waits = {name: tuple(dict.fromkeys(placed[key] for key in found)) for name, found in needs.items()}
    return Plan(tier=tier, batches=batches, chapters=waits, pages=bool(due) or not book.is_rendered(folder))


def _missing(source: Path, tier: str, store: Store, editions: bool) -> dict[str, RunSpec]:
    """What a chapter waits for, on request with what its editions want."""
    from nladv_core import experiments, runs, tiers

    if source.stem not in experiments.CHAPTERS or "tier" not in book.parameters(source):
        return {}
    specs = experiments.wanted(source.stem, tier)
    if not editions:
        specs = experiments.chapter(source.stem, {"tier": tier, "device": "cpu"}).specs()
    return runs.missing(specs, store, refresh=tier in tiers.LIVE)


def _batches(todo: Mapping[str, RunSpec], placed: Mapping[str, str], least: float) -> dict[str, Batch]:
    """Runs in batches of at least `least` seconds; `placed` says which batch has runs that are not in `todo`."""
    from nladv_core import runs

    order: dict[str, RunSpec] = {}
    for spec in todo.values():
        order |= {link.key(): link for link in spec.lineage if link.key() in todo and link.key() not in order}
    found: dict[str, Batch] = {}
    where = dict(placed)
    keys: list[str] = []
    seconds = 0.0
    for number, (key, spec) in enumerate(order.items()):
        keys.append(key)
        where[key] = keys[0]
        seconds += runs.seconds(spec)
        if seconds >= least or number == len(order) - 1:
            sources = (source.key() for link in map(order.__getitem__, keys) for source in link.sources)
            after = dict.fromkeys(where[source] for source in sources if source in where)
            after.pop(keys[0], None)
            found[keys[0]] = Batch(keys=tuple(keys), after=tuple(after), seconds=round(seconds, 1))
            keys, seconds = [], 0.0
    return found


def specs(keys: Iterable[str], tier: str | None = None) -> list[RunSpec]:
    """The runs of these keys, among those that chapters want, parents included.

    Args:
        tier: where to look; None: at every tier.

    Raises:
        SpecError: no chapter wants a run with such a key.
    """
    from nladv_core import experiments

    known: dict[str, RunSpec] = {}
    for one in experiments.TIERS if tier is None else (tier,):
        for name in experiments.CHAPTERS:
            known |= {spec.key(): spec for wanted in experiments.wanted(name, one) for spec in wanted.lineage}
    keys = list(keys)
    for key in keys:
        if key not in known:
            raise SpecError(
                f"no chapter wants a run with the key {key!r}{'' if tier is None else f' at tier {tier}'}; "
                "`nladv status` tells what they want"
            )
    return [known[key] for key in keys]


# ------------------------------------------------------------------------------------------- for the Snakefile


class Work:
    """The place of one call of the engine below the build folder: its plan, and a mark for each job that is done.

    Marks belong to one call and say nothing to the next one, which makes a plan of its own; so whatever a killed call
    left is of no weight, and results themselves are never named as outputs, which the engine would delete before it
    makes them anew.

    Args:
        folder: the build folder.
        alone: hold the build folder's lock until this process ends, and sweep away what killed calls left.

    Raises:
        BuildError: another build holds the lock.
    """

    def __init__(self, folder: Path, plan: Plan, *, alone: bool = True) -> None:
        self.plan = plan
        self._lock: AbstractContextManager[Any] | None = book.lock(folder) if alone else None
        top = folder / ".grid"
        if alone:
            shutil.rmtree(top, ignore_errors=True)
        try:
            top.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=top))
            self.folder.chmod(0o755)
            write(self.folder / "plan.json", json.dumps(plan.to_json()).encode())
        except OSError as error:
            raise book.BuildError(f"{top} cannot be written to ({error.strerror or error}); make room there") from None
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ status


def wanted_keys() -> dict[str, dict[str, list[str]]]:
    """Keys of the runs that each chapter wants, by tier, parents left out unless a chapter shows them.

    Kept in the cache under a digest of the whole library, so that reading them takes neither torch nor its seconds.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    path = places.cache_dir() / f"wanted-{digest.hexdigest()[:16]}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    from nladv_core import experiments

    found = {
        tier: {name: [spec.key() for spec in experiments.wanted(name, tier)] for name in experiments.CHAPTERS}
        for tier in experiments.TIERS
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("wanted-*.json"):
            old.unlink(missing_ok=True)
        write(path, json.dumps(found).encode())
    except OSError:
        pass  # a cache that cannot be written only costs time
    return found


def status(tier: str | None = None, store: Store | None = None) -> list[str]:
    """Which runs are stored: one line for the store, one for each chapter that needs runs at each tier (or at `tier`).

    Raises:
        SpecError: an unknown tier.
    """
    store = store or Store()
    wanted = wanted_keys()
    if tier is not None and tier not in wanted:
        raise SpecError(f"tier is {tier!r}, expected one of {', '.join(wanted)}")
    count = len(set(store.keys()))
    lines = [f"{count} runs in {store.folder}" + (f" and {len(store.also)} folders beside it" if store.also else "")]
    for name in next(iter(wanted.values())):
        for one in wanted if tier is None else (tier,):
            states = [store.state(key) for key in wanted[one][name]]
            if states:
                told = [f"{states.count(state)} {state}" for state in dict.fromkeys(["done", *sorted(states)])]
                lines.append(f"{name:24s} {one:8s} {', '.join(told)}, of {len(states)}")
    return lines
