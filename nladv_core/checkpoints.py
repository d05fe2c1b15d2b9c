"""A run under way on disk: a killed one goes on from its last saved epoch and ends as if nothing had happened.

A checkpoint is two files in `.checkpoints` of the store's folder: `<key>.<epoch>.safetensors` with weights and momenta,
and `<key>.json`, written after it, which names it with its checksum and holds the rest. Both replace those of an
earlier epoch; until that is done, the earlier ones are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nladv_core import values
from nladv_core.errors import RecordError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        epochs: how many are finished; 0 before the first.
        conditions: what must be the same for the rest of the run to fit: code, torch, device, data, parent.
        history: the rows of the finished epochs, as `training.fit` yields them.
        seconds: time spent on them.
        resumed_after: after which epochs the run was interrupted and taken up again.
    """

    conditions: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float
    resumed_after: list[int]

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(self.history)


class Checkpoint:
    """The checkpoint of one run, if there is one.

    Args:
        folder: the store's; the checkpoint lies in `.checkpoints` in it.
        key: of the run.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder / ".checkpoints", key
        self._json = self.folder / f"{key}.json"

    def progress(self) -> Progress | None:
        """How far the run is, None if there is no checkpoint; the tensors are not looked at.

        Raises:
            RecordError: the checkpoint is damaged.
        """
        found = self._read()
        return None if found is None else found[0]

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
        """Progress, state dict of the network and momenta by parameter name, on the CPU; None if there is none.

        Raises:
            RecordError: the checkpoint is damaged: unreadable, or not what its checksums say.
        """
        found = self._read()
        if found is None:
            return None
        progress, name, checksum = found
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise RecordError(f"{self.folder / name} cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != checksum:
            raise RecordError(f"{self.folder / name} has another checksum than {self._json.name} says")
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "momentum": {}}
        for full, tensor in tensors(content, self.folder / name).items():
            part, _, parameter = full.partition(":")
            if part not in parts:
                raise RecordError(f"{self.folder / name} holds {full!r}, expected weights and momenta")
            parts[part][parameter] = tensor
        return progress, parts["net"], parts["momentum"]

    def _read(self) -> tuple[Progress, str, str] | None:
        try:
            found = json.loads(self._json.read_text("utf-8"))
            body = found["body"]
            if hashlib.sha256(values.text(body).encode()).hexdigest() != found["sha256"]:
                raise RecordError(f"{self._json} does not have the checksum it names")
            progress, name = Progress(**body["progress"]), body["tensors"]
            kinds: dict[str, Any] = {
                "conditions": dict,
                "history": list,
                "seconds": (int, float),
                "resumed_after": list,
            }
            if not all(isinstance(getattr(progress, field), kind) for field, kind in kinds.items()):
                raise ValueError
            if name != f"{self.key}.{progress.epochs}.safetensors":
                raise RecordError(f"{self._json} names the file {name!r}, expected the one of its epoch")
            return progress, name, body["sha256"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"{self._json} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"{self._json} is not a checkpoint") from None

    def save(self, progress: Progress, net: dict[str, Tensor], momenta: dict[str, Tensor]) -> None:
        """Replace the checkpoint by this state.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {f"net:{name}": tensor.detach().cpu().contiguous() for name, tensor in net.items()}
        kept |= {f"momentum:{name}": tensor.detach().cpu().contiguous() for name, tensor in momenta.items()}
        content = save(kept)
        name = f"{self.key}.{progress.epochs}.safetensors"
        write(self.folder / name, content)
        body = {"progress": asdict(progress), "tensors": name, "sha256": hashlib.sha256(content).hexdigest()}
        checksum = hashlib.sha256(values.text(body).encode()).hexdigest()
        write(self._json, json.dumps({"sha256": checksum, "body": body}, allow_nan=False).encode())
        for old in self.folder.glob(f"{self.key}.*"):
            if old.name not in (name, self._json.name):
                old.unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove the checkpoint and what a killed writer of it left."""
        self._json.unlink(missing_ok=True)
        for left in self.folder.glob(f"{self.key}.*"):
            left.unlink(missing_ok=True)


def tensors(content: bytes, where: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that was read from `where`, in no particular order.

    Raises:
        RecordError: it is something else; a pickle, which could run code, is never opened as one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{where} is not a safetensors file ({error}); delete it, then it is made again") from None


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: under another name, synced, renamed.

    Raises:
        OSError: disk full, no permission.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
