"""What a maintainer commits: finished runs of a tier copied from the live store to `data/`, checked, and whole.

Records and masks go to `data/results/<tier>/`. Weights go to `data/parents/<key>.safetensors`, of few runs only: those
that others start from, which would else be trained again wherever the others are computed, and a few to show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nladv_core import campaign, pilot, places, runs
from nladv_core.checkpoints import write
from nladv_core.errors import RecordError, SpecError
from nladv_core.specs import RunSpec
from nladv_core.store import Record, Store

TIERS = ("reduced", "paper", "pilot")
# Bytes of the folder of weights, and of one file anywhere: every clone carries them for ever.
MOST_IN_ALL, MOST = 60_000_000, 4_000_000
# The fields of a record that say where and when it was computed, rather than what came out.
_CIRCUMSTANCES = ("wall_s", "device", "torch", "python", "code", "created", "execution")


@dataclass(frozen=True)
class _Copy:
    """A file to be written."""

    path: Path
    content: bytes


def wanted(tier: str) -> list[RunSpec]:
    """The runs that are kept of a tier, with all that they rest on, each once and after its sources.

    Raises:
        SpecError: a tier of which nothing is kept.
    """
    if tier not in TIERS:
        why = ": what it computes is computed again within minutes" if tier in ("smoke", "quick") else ""
        raise SpecError(f"nothing is kept of tier {tier!r}{why}; expected one of {', '.join(TIERS)}")
    chosen = pilot.specs() if tier == "pilot" else campaign.wanted(tier)
    return list(dict.fromkeys(needed for spec in chosen for needed in spec.lineage))


def with_weights(specs: list[RunSpec]) -> set[str]:
    """Keys of the runs whose weights are kept: those without slopes that others among them start from, and `shown`.

    Published networks are left out: their weights lie where they were published, with a checksum in `nets.PUBLISHED`.
    """
    taken = (source for spec in specs for source, what in runs.taken_from(spec) if what == "weights")
    parents = {source for source in taken if not source.linearized and source.published is None}
    return {spec.key() for spec in specs if spec in parents or shown(spec)}


def shown(spec: RunSpec) -> bool:
    """Whether a linearized network is one to show: ResNet-20 on CIFAR-10 with the first seed."""
    return spec.linearized and (spec.net, spec.data, spec.seed) == ("resnet20", "cifar10", 0)


def keep(
    tier: str,
    store: Store | None = None,
    *,
    data: Path | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Copy the finished runs of a tier from the live folder of `store` to the committed ones.

    All is checked before anything is written. What is there already stays as it is: doing it again writes nothing.

    Args:
        tier: "reduced", "paper" or "pilot" (`pilot.specs`, of which no weights are kept).
        store: where the runs were computed; default `Store()`. Only its own folder is copied from.
        data: with `results/` and `parents/`; default `data/` of the project.
        say: gets each line of the report.

    Raises:
        SpecError: another tier.
        RecordError: a damaged run, a committed file with another content, or too much for a repository.
    """
    specs = wanted(tier)
    data = data or places.project_root() / "data"
    results, parents = data / "results" / tier, data / "parents"
    live = Store((store or Store()).folder, also=sorted((data / "results").glob("*/")), parents=parents)
    weighty = set() if tier == "pilot" else with_weights(specs)
    copies: dict[str, list[_Copy]] = {}
    stored = 0
    for spec in specs:
        if not (live.folder / f"{spec.key()}.json").is_file():
            continue
        stored += 1
        copies[spec.key()] = _copies(spec, live, results, parents, spec.key() in weighty)
    _check_sizes([copy for files in copies.values() for copy in files], parents)
    for folder in (results, parents):
        for left in folder.glob("*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed while it wrote
    written = 0
    for spec in specs:
        files = copies.get(spec.key(), [])
        for copy in files:  # the record comes last: whoever sees it sees the rest
            copy.path.parent.mkdir(parents=True, exist_ok=True)
            write(copy.path, copy.content)
        if files:
            written += 1
            say(f"copied {spec}: {', '.join(str(copy.path.relative_to(data)) for copy in files)}")
    there = sum((results / f"{spec.key()}.json").is_file() for spec in specs)
    size = sum(path.stat().st_size for path in parents.glob("*.safetensors"))
    say(
        f"{tier}: {written} of {stored} runs in {live.folder} copied; {there} of {len(specs)} wanted runs are in "
        f"{results}, and {size / 1e6:.1f} MB of weights in {parents}"
    )


def _copies(spec: RunSpec, live: Store, results: Path, parents: Path, weights: bool) -> list[_Copy]:
    """What has to be written for one run, the record last; checked against its checksums and what is there."""
    key = spec.key()
    record = live.record(key)
    files = {results / file["name"]: what for what, file in record.files.items() if what != "weights"}
    files |= {parents / f"{key}.safetensors": "weights"} if weights else {}
    copies = []
    for path, what in files.items():
        _, content = live.file(key, what)
        if not path.is_file():
            copies.append(_Copy(path, content))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != record.files[what]["sha256"]:
            raise RecordError(
                f"{path}: it is there with another checksum than the {what} of run {spec} in {live.folder}; delete the "
                "one that shall not stay, nothing was copied"
            )
    for path in sorted(results.parent.glob(f"*/{key}.json")):
        if _result(Record.read(path)) != _result(record):
            raise RecordError(
                f"{path}: it is there with another result than that of run {spec} in {live.folder}; delete the one "
                "that shall not stay, nothing was copied"
            )
    path = results / f"{key}.json"
    if not path.is_file():
        copies.append(_Copy(path, (live.folder / path.name).read_bytes()))
    return copies


def _result(record: Record) -> dict[str, Any]:
    """A record without what may differ when the same comes out again."""
    found = json.loads(json.dumps(record.to_json()))
    return {name: value for name, value in found.items() if name not in _CIRCUMSTANCES}


def _check_sizes(copies: list[_Copy], parents: Path) -> None:
    for copy in copies:
        if len(copy.content) > MOST:
            raise RecordError(
                f"{copy.path}: it would have {len(copy.content) / 1e6:.1f} MB, at most {MOST / 1e6:g} MB are kept in "
                "one file; leave this run out of what is kept, nothing was copied"
            )
    size = sum(path.stat().st_size for path in parents.glob("*.safetensors"))
    size += sum(len(copy.content) for copy in copies if copy.path.parent == parents)
    if size > MOST_IN_ALL:
        raise RecordError(
            f"{parents}: it would have {size / 1e6:.1f} MB, at most {MOST_IN_ALL / 1e6:g} MB of weights are kept; "
            "leave some runs out of `kept.with_weights`, nothing was copied"
        )
