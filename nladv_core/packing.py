"""How many runs share a device: as many as its memory was seen to bear, and no more than add to the summed rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from nladv_core import places
from nladv_core.checkpoints import write

# What one more run must find free before anything was measured, in bytes: CUDA itself, ResNet-56 with a batch of 256
# and the data set; on a CPU torch, data and activations.
_LEAST = {"cuda": 4 << 30, "cpu": 1 << 30}
# Twice as many runs must do at least this much more together, or there are enough of them.
_WORTH_DOUBLING = 1.1


class Packing:
    """How many runs may be under way at once.

    It begins with the number that was best the last time on this device, or with one for each core (of a GPU four),
    and doubles it as long as that raises the summed rate by a tenth; then the best number stays, and is remembered.
    Besides, a run begins only where a quarter more memory is free than the runs before it were seen to take.

    Args:
        where: the device.
        name: of the device; what is remembered belongs to it.
        fixed: a number that somebody chose; memory still has its say.

    Attributes:
        count: how many may run now.
        most: how many might ever.
    """

    def __init__(self, where: torch.device, name: str, fixed: int | None = None) -> None:
        self._where, self._name = where, name
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Every run needs a core: on a GPU to hand out its work.
        self.most = fixed or self._cores
        remembered = None if fixed else _remembered().get(name)
        self.count = fixed or min(self.most, remembered or (4 if where.type == "cuda" else self.most))
        self._settled = fixed is not None or self.count == self.most
        self._free_at_first = free_memory(where)
        self._warm: set[int] = set()
        self._rates: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def allows(self, busy: int, measured: int) -> bool:
        """Whether one more run may begin.

        Args:
            busy: runs under way.
            measured: how many of them have finished an epoch, and so taken the memory that they need.
        """
        if busy >= self.count:
            return False
        if busy == 0:
            return True
        free, least = free_memory(self._where), _LEAST[self._where.type if self._where.type in _LEAST else "cpu"]
        if measured == 0:
            return self._free_at_first > least * (busy + 1)
        each = max(self._free_at_first - free, 0) / busy
        return free - (busy - measured) * max(each, least) > 1.25 * each

    def note(self, worker: int, rate: float, busy: int) -> None:
        """Take in the rate of a run over one epoch, in any unit of work a second that all runs share.

        Args:
            worker: whose run; the newest figure of each counts.
            busy: runs under way.
        """
        if worker not in self._warm:  # the first epoch holds the reading of data, and a compiler's work
            self._warm.add(worker)
            return
        self._rates[worker] = rate
        if self._settled or busy < self.count or len(self._rates) < busy:
            return
        self._seen[self.count] = sum(self._rates.values())
        half = self._seen.get(self.count // 2)
        if self.count < self.most and (half is None or self._seen[self.count] > _WORTH_DOUBLING * half):
            self.count = min(self.most, 2 * self.count)
            self._rates.clear()  # those beside fewer others say nothing now
            return
        self.count = max(self._seen, key=self._seen.__getitem__)
        self._settled = True
        _remember(self._name, self.count)

    def forget(self, worker: int) -> None:
        """A run has ended: its rate no longer counts."""
        self._rates.pop(worker, None)
        self._warm.discard(worker)


def free_memory(where: torch.device) -> int:
    """Bytes that are free on the device: of a GPU its own, else the machine's; without bound where nobody tells."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 1 << 60


def _file() -> Path:
    return places.cache_dir() / "packing.json"


def _remembered() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict)
    return {name: n for name, n in found.items() if type(n) is int and 0 < n < 1000} if good else {}


def _remember(name: str, count: int) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write(_file(), json.dumps(_remembered() | {name: count}).encode())
    except OSError:
        pass  # found out anew the next time
