"""One network over several devices: a process for each, Lightning Fabric and DDP; the run is that of one process.

Every rank goes through the same batches in the same order, with the same flips, and sees its part of each. Gradients,
the statistics of batch norm and all sums are those of the whole batch, so that ranks hold equal weights and lock equal
units, and the record is that of one device within rounding. Dropout is not: each rank draws for its own part.
"""

from __future__ import annotations

import inspect
import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nladv_core.errors import NladvError, SpecError
from nladv_core.tasks import NOT_ASKED, Batch
from nladv_core.workers import Message, Pool, serve

if TYPE_CHECKING:
    from nladv_core.specs import RunSpec
    from nladv_core.store import Record, Store

_GRACE_S = 10.0  # after a rank broke, for the end of another one to be seen that was the reason


@dataclass(frozen=True)
class Ranks:
    """The processes that train one network together, seen from one of them; the default: a process on its own.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        fabric: Lightning's, which all of them have joined.
    """

    rank: int = 0
    count: int = 1
    fabric: Any = field(default=None, repr=False)

    @property
    def purpose(self) -> tuple[object, ...]:
        """What tells this rank's random streams from those of the first one, which are those of one process."""
        return ("rank", self.rank) if self.rank else ()

    def part(self, batch: Batch) -> Batch:
        """What this rank sees of a batch: a stretch of it, empty if there are fewer examples than ranks."""
        if self.count == 1:
            return batch
        inputs = tuple(whole.tensor_split(self.count)[self.rank] for whole in batch.inputs)
        labels = batch.labels.tensor_split(self.count)[self.rank]
        # Of images each has a label; of sentences it is the number of tokens, which the device knows.
        count = len(labels) if labels.dim() == 1 else int((labels != NOT_ASKED).sum())
        return Batch(inputs, labels, count)

    def share(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Every `count`-th of these batches, to be judged by this rank."""
        return (batch for number, batch in enumerate(batches) if number % self.count == self.rank)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, without gradient; every rank gets the same bits."""
        if self.count == 1:
            return value
        total: Tensor = self.fabric.all_reduce(value.detach().clone().to(self.fabric.device), reduce_op="sum")
        return total

    def trained(self, net: nn.Module) -> nn.Module:
        """What to call in place of `net` in training, so that gradients come out as the mean over ranks.

        To be asked for again when other parameters take part.
        """
        if self.count == 1:
            return net
        trained: nn.Module = self.fabric.setup_module(net)
        return trained

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.count > 1:
            self.fabric.barrier()


ALONE = Ranks()


# --------------------------------------------------------------------------------------------- one run, many processes


def check(count: int, device: str) -> None:
    """Whether a run can have so many devices.

    Raises:
        SpecError: less than one, more than there are, or Lightning Fabric is not installed.
    """
    from nladv_core.runs import pick_device

    where = pick_device(device)
    if count < 1:
        raise SpecError(f"devices is {count}, expected at least 1")
    if count == 1:
        return
    if where.index is not None:
        raise SpecError(f"device is {device!r}, a single one; with {count} devices say 'auto', 'cpu' or 'cuda'")
    there = torch.cuda.device_count() if where.type == "cuda" else os.cpu_count() or 1
    if count > there:
        what = ("GPU" if where.type == "cuda" else "CPU core") + "s" * (there > 1)
        verb = "are" if there > 1 else "is"
        raise SpecError(f"devices is {count}, but there {verb} {there} {what} here; ask for at most {there}")
    try:
        import lightning_fabric  # noqa: F401
    except ImportError:
        raise SpecError(
            "several devices need Lightning Fabric, which is not installed; pip install 'nladv[devices]'"
        ) from None


def compute(
    spec: RunSpec,
    store: Store,
    *,
    count: int,
    device: str = "auto",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Record:
    """`runs.compute` on `count` devices: starts a process for each, and returns the record that the first one stores.

    Args:
        count: of devices, at least 2.
        on_epoch: gets the row of each finished epoch.
        tell: gets warnings in words.

    Raises:
        SpecError: see `check`.
        NladvError: what `runs.compute` raises, or a process that ended by itself.
    """
    check(count, device)
    job = {
        "spec": spec.to_json(),
        "folder": str(store.folder),
        "also": list(map(str, store.also)),
        "parents": store.parents and str(store.parents),
        "device": device,
        "count": count,
        "port": _free_port(),
    }
    with Pool(__name__, "_serve") as pool:
        for rank in range(count):
            pool.give(pool.start(), {**job, "rank": rank})
        left, failure = set(range(count)), ""
        while left:
            try:
                rank, message = pool.events.get(timeout=_GRACE_S if failure else None)
            except Empty:
                break
            if message is None:
                if rank in left:
                    code = pool.processes[rank].wait()
                    how = f"signal {-code}" if code < 0 else f"status {code}"
                    raise NladvError(f"process {rank} of its {count} ended with {how}; run it again")
            elif message["event"] == "failed":
                raise NladvError(message["reason"])
            elif message["event"] == "broken":  # maybe because another one, of which nothing is known yet, is gone
                failure = failure or message["reason"]
                left.discard(rank)
            elif message["event"] == "done":
                left.discard(rank)
            elif message["event"] == "epoch" and on_epoch is not None:
                on_epoch(message["row"])
            elif message["event"] == "warning" and tell is not None:
                tell(message["text"])
    if failure:
        raise NladvError(failure)
    return store.record(spec)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def join(rank: int, count: int, port: int, device: str = "auto") -> Ranks:
    """Take part as process `rank` of `count` on this machine; waits for the others.

    Args:
        port: of the first one, free on 127.0.0.1.
        device: "auto", "cpu" or "cuda"; on GPUs each rank has its own.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    from nladv_core.runs import pick_device

    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    os.environ.update(where)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who joins is of no interest to users
    # Buffers need no broadcast at each step: they are equal because everything that changes them is.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # newer torch; older
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), **{buffers: False})  # type: ignore[arg-type]
    accelerator = pick_device(device).type
    fabric = Fabric(accelerator=accelerator, devices=count, strategy=strategy)
    fabric.launch()
    return Ranks(rank, count, fabric)


def _handle(job: Message, report: Callable[[Message], None]) -> None:
    """The part of one rank in one run."""
    from nladv_core import runs
    from nladv_core.specs import RunSpec
    from nladv_core.store import Store

    rank = job["rank"]

    def say(event: str, **more: Any) -> None:
        if rank == 0 or event in ("done", "failed", "broken"):
            report({"event": event, **more})

    try:
        ranks = join(rank, job["count"], job["port"], job["device"])
        runs.compute(
            RunSpec.from_json(job["spec"]),
            Store(job["folder"], job["also"], job.get("parents")),
            device=str(ranks.fabric.device),
            on_epoch=lambda row: say("epoch", row=row),
            tell=lambda text: say("warning", text=text),
            ranks=ranks,
        )
        say("done")
        torch.distributed.destroy_process_group()
    except NladvError as error:
        say("failed", reason=str(error))
    except BrokenPipeError:
        raise
    except Exception:
        say("broken", reason=f"an error of ours, please report it:\n{traceback.format_exc()}")


def _serve() -> None:
    """A rank's life."""
    serve(_handle)
