"""Finished runs on disk: one JSON record each, weights and masks as safetensors.

A run is three files in one folder: `<key>.weights.safetensors`, `<key>.masks.safetensors` (linearized ones only) and
`<key>.json`, written last: whoever sees the record sees the rest. A record ends with the SHA-256 of all that stands
before it, so that a bit that flipped is noticed as well. It also names the SHA-256 of the weights or masks that it took
from other runs; if those runs are stored with other ones, it is refused.

Committed records (`data/results/<tier>/`) come with masks; of some the weights are committed too, as
`data/parents/<key>.safetensors` (`nladv keep`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nladv_core import places, values
from nladv_core.checkpoints import Checkpoint, write
from nladv_core.checkpoints import tensors as tensors_in
from nladv_core.errors import NladvError, RecordError, SpecError

# Whatever needs torch is imported where it is used: which runs there are is told without it.
if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from nladv_core.linearize import Masks
    from nladv_core.specs import RunSpec

# The modules whose code decides a result: a record keeps a digest of them.
_DECIDING = (
    "tracing",
    "linearize",
    "path_rules",
    "paths",
    "reports",
    "nets",
    "image_files",
    "datasets",
    "downloads",
    "transformer",
    "texts",
    "tasks",
    "devices",
    "normalization",
    "training",
    "runs",
)


class RecordWarning(UserWarning):
    """A stored file was found damaged and left out or set aside."""


class Busy(NladvError):
    """Another process computes this run."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of a finished run.

    Attributes:
        key, spec: which run.
        metrics: after the final epoch: test_accuracy, train_accuracy, train_loss, active_fraction, napl, apl, enw,
            of networks with max pooling napl_max_pool, the NAPL that counts it as one more unit (§4.2), of
            translations test_perplexity (per token) and test_bleu (0 to 100, of greedy translations), and of runs whose
            goal counts them relus, the ReLUs that one input meets.
        history: one row per epoch, as `training.fit` yields them; `active` follows the order of `units`.
        units: name, channels and active channels of each unit group after the final epoch.
        wall_s: seconds from data to metrics, without those lost with an interruption.
        device, torch, python: where it ran.
        code: package version, git commit (or null) and a digest of the source files that decide a result.
        data: checksum, description, number of classes, whether the whole official set was used, shape of an example,
            and mean and std that images (/ 255) were normalized with, or sacreBLEU's signature of the BLEU.
        parent: null, or the parent's `key` and the `sha256` of the weights or masks that were taken from it, with
            `weights_key` and `weights_sha256` of the run whose weights were taken besides masks; for published weights
            their name, source, URL and SHA-256.
        files: file name and SHA-256 of weights and masks.
        created: UTC time, ISO 8601.
        execution: what does not decide the result, but for the rounding of sums; empty in older records:
            `resumed_after`, the epochs after which the run was interrupted and taken up again, and `compiled`, whether
            its step was, in all epochs (before 0.1.0 was released: whether it was to be).
    """

    key: str
    spec: RunSpec
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    units: list[dict[str, Any]]
    wall_s: float
    device: str
    torch: str
    python: str
    code: dict[str, Any]
    data: dict[str, Any]
    parent: dict[str, str] | None
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    created: str = ""
    execution: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the run had a goal and ended at it or beyond, in what the goal counts (`RunSpec.measure`)."""
        goal, measure = self.spec.goal, self.spec.measure
        if goal is None:
            return False
        # The last unit may be off by a rounding error of shares that were summed in another order.
        if measure == "units":
            return 1 - self.metrics["active_fraction"] >= goal - 1e-6
        return self.metrics[measure] <= goal * (1 + 1e-6)

    def to_json(self) -> dict[str, Any]:
        """JSON values, spec included in its short form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"spec": self.spec.to_json()}

    @classmethod
    def read(cls, path: Path) -> Record:
        """One record file.

        Raises:
            RecordError: unreadable, not JSON, fields missing, or a key that does not belong to its spec.
        """
        from nladv_core.specs import RunSpec

        found = _content(path)
        try:
            spec = RunSpec.from_json(found["spec"])
        except SpecError as error:
            raise RecordError(f"{path}: its spec is not one of ours ({error}); {_REMEDY}") from None
        if not found["key"] == spec.key() == path.name.partition(".")[0]:
            raise RecordError(
                f"{path}: it says key {found['key']!r} but its spec has key {spec.key()}: a foreign or edited record; "
                f"{_REMEDY}"
            )
        return cls(**(found | {"spec": spec}))


_REMEDY = "delete it, then `nladv run` computes it again"
# How a record ends: the SHA-256 of the text without this member. Older records have none.
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"}$')
_SOURCES = ("parent", "weights")  # `specs.SOURCES`, which is not imported here for its torch
_KEY = re.compile("[0-9a-f]{12}")


def _sealed(text: str) -> bytes:
    """The text of a record with its checksum as last member."""
    return f'{text[:-1]},"sha256":"{hashlib.sha256(text.encode()).hexdigest()}"}}'.encode()


def _content(path: Path) -> dict[str, Any]:
    """The fields of a record file, of the right kinds, its spec not looked into."""
    try:
        content = path.read_bytes().rstrip()
        found = json.loads(content)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: found something that is not JSON, expected a run record; {_REMEDY}") from None
    seal = _SEAL.search(content, max(0, len(content) - 100))
    if isinstance(found, dict) and found.pop("sha256", None) is not None:
        body = content[: seal.start()] + b"}" if seal else b""
        if seal is None or hashlib.sha256(body).hexdigest() != seal[1].decode():
            raise RecordError(f"{path}: its checksum is not the one it ends with: damaged or edited; {_REMEDY}")
    if not isinstance(found, dict) or {"execution", *found} != set(Record.__dataclass_fields__):
        raise RecordError(f"{path}: found JSON without the fields of a run record; {_REMEDY}")
    kinds = {"metrics": dict, "history": list, "units": list, "code": dict, "data": dict, "files": dict}
    found.setdefault("execution", {})
    for name, kind in {**kinds, "execution": dict}.items():
        if not isinstance(found[name], kind):
            raise RecordError(f"{path}: its {name} is not a {kind.__name__}; {_REMEDY}")
    parent = found["parent"]
    if parent is not None and not (isinstance(parent, dict) and all(isinstance(x, str) for x in parent.values())):
        raise RecordError(f"{path}: its parent is not given by key and sha256; {_REMEDY}")
    for file in found["files"].values():
        if not isinstance(file, dict) or not all(isinstance(file.get(part), str) for part in ("name", "sha256")):
            raise RecordError(f"{path}: its files are not given by name and sha256; {_REMEDY}")
    return found


def _keys(spec: Any) -> tuple[str, dict[str, str]]:
    """Key of a spec in its short form (`RunSpec.to_json`), as `RunSpec.key` gives it, and keys of its sources by field.

    Without meaning for what is not a spec.
    """
    sources = {name: _keys(spec[name])[0] for name in _SOURCES if name in spec} if isinstance(spec, dict) else {}
    text = values.text(spec | sources if sources else spec)
    return hashlib.sha256(text.encode()).hexdigest()[:12], sources


@cache
def code_version() -> dict[str, Any]:
    """Package version, git commit (None outside a checkout) and a digest of the files that decide a result."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _DECIDING:
        digest.update((here / f"{name}.py").read_bytes())
    root, commit = places.project_root(), None
    if (root / ".git").exists():
        try:
            command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            commit = done.stdout.strip() or None if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            pass  # no git here: the digest of the sources still says which code it was
    from nladv_core import __version__

    return {"version": __version__, "commit": commit, "source": digest.hexdigest()[:12]}


def untrained(spec: RunSpec, classes: int) -> nn.Module:
    """The network that `spec` names, with the weights its seed decides; the global random state is left alone."""
    import torch

    from nladv_core import nets, training

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.stream(spec.seed, "weights"))
        return nets.build(spec.net, classes=classes, width=spec.width, residual=spec.residual, shortcut=spec.shortcut)


def with_slopes(net: nn.Module, spec: RunSpec, shape: Sequence[int]) -> nn.Module:
    """`net` linearized as `spec` says; `shape` is that of an example (`nets.example`)."""
    from nladv_core import nets
    from nladv_core.linearize import linearize

    granularity: Any = spec.granularity  # checked by RunSpec; the parameter is a Literal
    return linearize(net, nets.example(spec.net, shape), granularity=granularity)


def fill(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Put a stored state dict into a network.

    Raises:
        RecordError: it has other names or shapes than the network.
    """
    try:
        net.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise RecordError(f"{what} do not fit the network ({first}): another run's, or edited; {_REMEDY}") from None


class Store:
    """Finished runs in a folder, and in others beside it that are only read.

    Args:
        folder: where runs are written; default `$NLADV_STORE`, else `data/cache/runs` of the project.
        also: folders to read from besides, in this order; default those under `data/results` of the project. Their
            records may come without weights, and never go stale.
        parents: a folder with weights of committed records, `<key>.safetensors`, read where the file beside the record
            is missing; default `data/parents` of the project, or none if `also` is given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        also: Sequence[str | Path] | None = None,
        parents: str | os.PathLike[str] | None = None,
    ) -> None:
        chosen = folder or os.environ.get("NLADV_STORE", "").strip() or places.cache_dir() / "runs"
        self.folder = Path(chosen).expanduser().absolute()
        if also is None:
            data = places.project_root() / "data"
            also = sorted(found for found in (data / "results").glob("*") if found.is_dir())
            parents = parents or data / "parents"
        self.also = tuple(Path(other).absolute() for other in also)
        self.parents = None if parents is None else Path(parents).absolute()
        self._source_files: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}  # by path: time and size, files

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    # -- reading

    def _find(self, key: str) -> Path | None:
        if _KEY.fullmatch(key):  # anything else might lead elsewhere
            for folder in (self.folder, *self.also):
                path = folder / f"{key}.json"
                try:
                    if path.is_file():
                        return path
                except PermissionError:
                    raise _closed(folder) from None
        return None

    def has(self, key: str) -> bool:
        """Whether there is a record, be it damaged."""
        return self._find(key) is not None

    def committed(self, key: str) -> bool:
        """Whether the record that is used lies beside the live folder."""
        path = self._find(key)
        return path is not None and path.parent != self.folder

    def keys(self) -> Iterator[str]:
        """Keys of all records, damaged ones included, each once."""
        seen: set[str] = set()
        for folder in (self.folder, *self.also):
            if folder.is_dir():
                try:
                    names = [entry.name[:-5] for entry in os.scandir(folder) if entry.name.endswith(".json")]
                except PermissionError:
                    raise _closed(folder) from None
                fresh = {name for name in names if _KEY.fullmatch(name)} - seen
                seen |= fresh
                yield from sorted(fresh)

    def record(self, run: RunSpec | str) -> Record:
        """The record of a run, given by spec or key.

        Raises:
            RecordError: missing or damaged, or its weights are gone; or it took other weights or masks than those that
                are stored of its sources.
        """
        key = run if isinstance(run, str) else run.key()
        path = self._find(key)
        if path is None:
            raise RecordError(f"no record of run {run} in {self.folder}; compute it with `nladv run`")
        record = Record.read(path)
        self._check_files(path, record.files)
        sources = {name: getattr(record.spec, name) for name in _SOURCES}
        sources = {name: source.key() for name, source in sources.items() if source is not None}
        self._check_sources(path, record.__dict__ | {"spec": {"masks": record.spec.masks}}, sources)
        return record

    def _check_files(self, path: Path, files: dict[str, Any]) -> None:
        if path.parent != self.folder:
            return
        for file in files.values():
            if not (path.parent / _inside(file["name"])).is_file():
                raise RecordError(
                    f"{path}: its file {file['name']} is missing; delete the record, then `nladv run` computes it again"
                )

    def _check_sources(self, path: Path, found: dict[str, Any], named: dict[str, str]) -> None:
        """Refuse a record that took something else than what the runs in its specification have.

        A run may be stored in several folders, as one that was computed again here because its weights were not
        committed: the record belongs to it if it took what one of them names.

        Args:
            path, found: of the record, and its fields.
            named: keys of the sources that its specification names, by field.
        """
        key, parent = found["key"], found["parent"]
        if parent is None or "published" in parent:
            return
        of_parent = "weights" if found["spec"].get("masks", "none") == "none" else "masks"
        taken = [("parent", parent.get("key", ""), of_parent, parent.get("sha256", ""))]
        if "weights_key" in parent:
            taken.append(("weights", parent["weights_key"], "weights", parent.get("weights_sha256", "")))
        for name, source, what, checksum in taken:
            if source != named.get(name):
                raise RecordError(
                    f"{path}: run {key} says that it took {what} of run {source}, but its specification names "
                    f"{named.get(name, 'no run')}; {self._to_delete(path, found)}"
                )
            stored: set[str] = set()
            for folder in (path.parent, self.folder, *self.also):
                file = self._files_of(f"{folder}/{source}.json").get(what)
                if file is not None and file["sha256"] == checksum:
                    break
                stored |= set() if file is None else {file["sha256"]}
            else:
                if stored:
                    raise RecordError(
                        f"{path}: run {key} took {what} of run {source} with the SHA-256 {checksum[:12]}..., but run "
                        f"{source} is stored with {', '.join(f'{other[:12]}...' for other in sorted(stored))}, so they "
                        f"do not belong together; {self._to_delete(path, found)}"
                    )

    def _to_delete(self, path: Path, found: dict[str, Any]) -> str:
        """What to do about a record that is not its parent's child; in the live folder `runs.run` does it by itself."""
        files = [path.parent / _inside(file["name"]) for file in found["files"].values()]
        if self.parents is not None and path.parent != self.folder:
            files.append(self.parents / f"{found['key']}.safetensors")
        there = [file.name if file.parent == path.parent else str(file) for file in files if file.is_file()]
        return f"delete {' and '.join([str(path), *there])}, then `nladv run` computes it again"

    def _files_of(self, path: str) -> dict[str, Any]:
        """The files that a record names, kept until it changes; empty if it is missing or damaged."""
        try:
            stat = os.stat(path)
        except OSError:
            return {}
        stamp = stat.st_mtime_ns, stat.st_size
        kept = self._source_files.get(path)
        if kept is None or kept[0] != stamp:
            try:
                kept = stamp, _content(Path(path))["files"]
            except RecordError:
                kept = stamp, {}
            self._source_files[path] = kept
        return kept[1]

    def state(self, run: RunSpec | str) -> str:
        """`"done"`, `"older code"` (done by other sources than today's), `"damaged"` or `"missing"`.

        A record that does not belong to what is stored of its parent is damaged, too.

        Args:
            run: a spec, or the key of one.
        """
        key = run if isinstance(run, str) else run.key()
        path = self._find(key)
        if path is None:
            return "missing"
        try:
            found = _content(path)
            own, sources = _keys(found["spec"])
            if found["key"] == key == own:  # then the spec is the one that has this key
                self._check_files(path, found["files"])
                self._check_sources(path, found, sources)
                source = found["code"].get("source")
            else:
                source = self.record(key).code.get("source")
        except (RecordError, ValueError, RecursionError):  # NaN has no place in a spec, nor have endless parents
            return "damaged"
        if path.parent == self.folder and source != code_version()["source"]:
            return "older code"
        return "done"

    def stale(self, run: RunSpec) -> bool:
        """Whether the live folder has a whole record of it by other sources than today's; its parent may be another."""
        path = self.folder / f"{run.key()}.json"
        try:
            found = _content(path)
            self._check_files(path, found["files"])
        except RecordError:
            return False
        return bool(found["code"].get("source") != code_version()["source"])

    def records(self, runs: Iterable[RunSpec | str] | None = None) -> list[Record]:
        """The records there are, of `runs` or of all; damaged ones are left out with a `RecordWarning`."""
        found = []
        for run in self.keys() if runs is None else runs:
            if self._find(run if isinstance(run, str) else run.key()) is None:
                continue
            try:
                found.append(self.record(run))
            except RecordError as error:
                warnings.warn(f"left out: {error}", RecordWarning, stacklevel=2)
        return found

    def frame(self, runs: Iterable[RunSpec | str] | None = None) -> pd.DataFrame:
        """One row a finished run: what was run, and its final-epoch metrics. Missing runs have no row.

        Columns: key, parent (its key, or missing), data, data_checksum, difficulty, net, width, residual, shortcut,
        seed, epochs, linearized, role, granularity, omega, goal, measure, start, masks,
        precision; test_accuracy, train_accuracy
        (shares), train_loss, active_fraction, napl, apl, enw; wall_s, device, torch, code (digest), created.
        """
        import pandas as pd

        copied = (
            "data difficulty net width residual shortcut seed granularity omega goal measure start masks precision role"
        )
        rows = []
        for record in self.records(runs):
            spec = record.spec
            row: dict[str, Any] = {"key": record.key, "parent": spec.parent.key() if spec.parent else None}
            row |= {name: getattr(spec, name) for name in copied.split()} | {"linearized": spec.linearized}
            row |= {"epochs": spec.recipe.epochs} | record.metrics
            row |= {"wall_s": record.wall_s, "device": record.device, "torch": record.torch, "created": record.created}
            rows.append(row | {"code": record.code.get("source"), "data_checksum": record.data.get("checksum")})
        return pd.DataFrame(rows)

    def tensors(self, run: RunSpec | str, what: str) -> dict[str, Tensor]:
        """The file of a finished run that its record calls `what`, "weights" or "masks"; checksum verified.

        Raises:
            RecordError: missing or damaged, or it has none.
        """
        where, content = self.file(run, what)
        return dict(sorted(tensors_in(content, where).items()))  # they come in an order that differs from call to call

    def file(self, run: RunSpec | str, what: str) -> tuple[Path, bytes]:
        """Where the file is that the record of a finished run calls `what`, and its content; checksum verified.

        Weights that are not beside a record are looked for in the folder of parents.

        Raises:
            RecordError: missing or damaged, or it has none.
        """
        record = self.record(run)
        path = self._find(record.key)
        file = record.files.get(what)
        if file is None or path is None:
            raise RecordError(f"run {record.spec} has no {what}")
        beside = where = path.parent / _inside(file["name"])
        if what == "weights" and self.parents is not None and not beside.is_file():
            where = self.parents / f"{record.key}.safetensors"
        try:
            content = where.read_bytes()
        except OSError:
            nor = "" if where == beside else f", and so is {where}"
            raise RecordError(
                f"{beside}: missing{nor}, but the record of run {record.key} names it; run it again"
            ) from None
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            with_record = f" and {path.name}" if where == beside else ""
            raise RecordError(
                f"{where}: its checksum is not the record's: damaged or replaced; delete it{with_record}, then "
                "`nladv run` computes them again"
            )
        return where, content

    def weights(self, run: RunSpec | str) -> dict[str, Tensor]:
        """Final weights, slopes and masks as a state dict on the CPU; checksum verified.

        Raises:
            RecordError: missing or damaged.
        """
        return self.tensors(run, "weights")

    def masks(self, run: RunSpec | str) -> Masks:
        """Final masks of a linearized run (True = active), checksum verified.

        Raises:
            RecordError: missing or damaged, or the run was not linearized.
        """
        return self.tensors(run, "masks")

    def network(self, run: RunSpec | str) -> nn.Module:
        """The trained network of a finished run, with its slopes and masks, on the CPU in eval mode.

        Raises:
            RecordError: missing or damaged.
        """
        record = self.record(run)
        spec = record.spec
        net: nn.Module = untrained(spec, record.data["classes"])
        if spec.linearized:
            net = with_slopes(net, spec, record.data["shape"])
        fill(net, self.weights(record.key), f"the weights of run {spec}")
        return net.eval()

    # -- writing

    def checkpoint(self, run: RunSpec | str) -> Checkpoint:
        """What is kept of a run under way (there may be nothing).

        Raises:
            RecordError: a text that is no key.
        """
        key = run if isinstance(run, str) else run.key()
        if not _KEY.fullmatch(key):
            raise RecordError(f"{key!r} is not the key of a run, expected 12 hex digits")
        return Checkpoint(self.folder, key)

    def sweep(self) -> None:
        """Delete the checkpoints that finished runs of the live folder left: those of processes killed at their end.

        The record is written before the checkpoint is deleted, so a kill in between leaves both. One look at the folder
        of checkpoints, which holds only runs under way; a run that a process computes is left alone, as it holds the
        lock. A folder that cannot be read or written to is left as it is.
        """
        try:
            names = [entry.name for entry in os.scandir(self.folder / ".checkpoints")]
        except OSError:
            return
        for key in sorted({name.partition(".")[0] for name in names}):
            if _KEY.fullmatch(key) and (self.folder / f"{key}.json").is_file():
                with suppress(Busy, RecordError), self.lock(key, wait=False):
                    self.sweep_run(key)

    def sweep_run(self, run: RunSpec | str) -> None:
        """What `sweep` does for one run; the caller holds its lock.

        A checkpoint by other sources than the record's stays: it belongs to a computation that is to replace it.
        """
        checkpoint = self.checkpoint(run)
        try:
            source = _content(self.folder / f"{checkpoint.key}.json")["code"].get("source")
        except RecordError:
            return  # not finished, or damaged and so to be computed again
        try:
            progress = checkpoint.progress()
        except RecordError:
            progress = None  # half deleted or damaged: of no use to anybody
        if progress is None or progress.conditions.get("sources") == source:
            with suppress(OSError):
                checkpoint.delete()

    @contextmanager
    def lock(self, run: RunSpec | str, *, wait: bool = True) -> Iterator[None]:
        """Held while a run is computed, so that no two processes train it at once; a dead holder lets go.

        Raises:
            Busy: another process holds it, and `wait` is False.
            RecordError: the folder cannot be written to.
        """
        from filelock import FileLock, Timeout

        folder = self.folder / ".locks"
        lock = FileLock(folder / f"{run if isinstance(run, str) else run.key()}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise Busy(f"run {run} is being computed by another process") from None
        except OSError as error:
            raise RecordError(
                f"{self.folder}: it cannot be written to ({error.strerror or error}); make room there, or name another "
                "folder by NLADV_STORE"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def save(self, record: Record, net: nn.Module) -> Record:
        """Write weights, masks and, last, the record: complete files or none; returns it with its files named."""
        from safetensors.torch import save

        from nladv_core.linearize import masks

        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{record.key}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed while it wrote
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        contents = {"weights": save(state)}
        if record.spec.linearized:
            active = {name: mask.cpu().contiguous() for name, mask in masks(net).items()}
            contents["masks"] = save(active, {"content": "nladv masks, True = active"})
        files = {}
        try:
            for what, content in contents.items():
                name = f"{record.key}.{what}.safetensors"
                write(self.folder / name, content)
                files[what] = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
            record = Record(**(record.__dict__ | {"files": files}))
            text = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":"))
            write(self.folder / f"{record.key}.json", _sealed(text))
        except OSError as error:
            for file in files.values():  # without the record they are nobody's, and only take room
                (self.folder / file["name"]).unlink(missing_ok=True)
            raise RecordError(
                f"{self.folder}: the result cannot be written ({error.strerror or error}); make room there, or name "
                "another folder by NLADV_STORE"
            ) from None
        self.checkpoint(record.key).delete()
        return record

    def set_aside(self, run: RunSpec) -> list[Path]:
        """Rename a damaged run's files in the live folder to `<name>.damaged`, so that nothing is lost."""
        moved = []
        for path in sorted(self.folder.glob(f"{run.key()}.*")):
            if path.suffix in (".json", ".safetensors"):
                target = path.with_name(f"{path.name}.damaged")
                os.replace(path, target)
                moved.append(target)
        return moved


def _closed(folder: Path) -> RecordError:
    return RecordError(
        f"{folder}: it cannot be read (Permission denied); check its permissions, or name another folder by NLADV_STORE"
    )


def _inside(name: str) -> str:
    """A file name from a record, refused if it would lead out of the record's folder."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise RecordError(f"a record names the file {name!r}, expected a plain name; delete the record")
    return name
