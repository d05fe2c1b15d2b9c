"""Work for processes that tests kill. They are forked from one that has everything loaded, so that a kill costs little.

`start` gives a process; what it does is one of the functions below, all of which say how they end by their exit status.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from nladv_core import book, campaign, runs, workers
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store

torch.set_num_threads(1)
RECIPE = Recipe(epochs=3, lr=0.05, batch=32, flip=False)
SMALL: dict[str, Any] = {"data": "digits", "net": "resnet8", "width": 0.125, "size": 8, "train": 96, "test": 50}
PARENT = RunSpec(**SMALL, recipe=RECIPE)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def _begin() -> None:
    """Start the process that is forked from, with the path on which it finds this module: it is not told of another."""
    folders = [str(Path(__file__).parent), str(Path(runs.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        forkserver.ensure_running()


def start(work: Any, *arguments: Any) -> BaseProcess:
    """A process that does `work` and is on its way when this returns."""
    _begin()
    process = _context.Process(target=work, args=arguments)
    process.start()
    return process


def _read(specs: Sequence[Any]) -> list[RunSpec]:
    return [RunSpec.from_json(spec) for spec in specs]


def _watched(log: str, slow: float) -> None:
    """Each computation leaves a line in `log`; each file that is written is on its way for `slow` seconds."""
    compute, replace = runs.compute, os.replace

    def told(spec: RunSpec, *arguments: Any, **more: Any) -> Any:
        with open(log, "a") as file:
            file.write(f"{spec.key()} {os.getpid()}\n")
        return compute(spec, *arguments, **more)

    def slowly(*arguments: Any, **more: Any) -> None:
        time.sleep(slow)
        replace(*arguments, **more)
        time.sleep(slow)

    runs.compute = told
    if slow:
        os.replace = slowly  # type: ignore[assignment]


def compute(folder: str, specs: Sequence[Any], log: str, slow: float = 0.0) -> None:
    """`runs.run`, saving after every epoch; a warning is an error."""
    warnings.simplefilter("error")
    _watched(log, slow)
    runs.SAVE_EVERY_S = -1.0
    runs.run(_read(specs), Store(folder, also=()), workers=1, progress=False)


# A worker of a campaign: saves after every epoch, and leaves the line of `_watched` in the campaign's name.
_WORKER = """
import os
from nladv_core import runs
runs.SAVE_EVERY_S, compute = -1.0, runs.compute
def told(spec, *arguments, **more):
    with open({log!r}, "a") as file:
        file.write(f"{{spec.key()}} {{os.getppid()}}\\n")
    return compute(spec, *arguments, **more)
runs.compute = told
runs._serve()
"""


def campaigning(folder: str, specs: Sequence[Any], log: str) -> None:
    """`campaign.campaign` of these runs."""

    class Watched(workers.Pool):
        def __init__(self, module: str, function: str) -> None:
            super().__init__(module, function)
            self._command = [sys.executable, "-c", _WORKER.format(log=log)]

    warnings.simplefilter("error")
    runs.Pool = Watched  # type: ignore[misc]
    campaign.wanted = lambda tier: _read(specs)
    store = Store(folder, also=())
    if not campaign.campaign("smoke", minutes=9, workers=1, store=store, say=lambda line: None):
        sys.exit(1)


def execute(notebook: str, out: str) -> None:
    """`book.run_chapter`."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    book.run_chapter(Path(notebook), {}, Path(out))


def read(folder: str, seconds: float) -> None:
    """Read everything in a store again and again; ends with status 1 as soon as something is not whole."""
    warnings.simplefilter("error")
    store, until = Store(folder, also=()), time.monotonic() + seconds
    while time.monotonic() < until:
        for key in list(store.keys()):
            assert store.state(key) == "done"
            store.network(key)
            store.record(key)
            if store.record(key).spec.linearized:
                store.masks(key)


# The first computation of a process loads much; those that are forked have it behind them.
with tempfile.TemporaryDirectory() as _folder:
    json.dumps(runs.run([PARENT], Store(_folder, also=()), workers=1, progress=False)["key"].tolist())
