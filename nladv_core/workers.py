"""A few worker processes that stay alive from job to job, and talk in lines of JSON over pipes.

Importing torch takes seconds, so workers are reused. They are plain `python -c` processes rather than `multiprocessing`
ones because those import the caller's main module again: that fails in a notebook and in a script without a guard.
A worker ends with its caller: on Linux at once, elsewhere when its next line meets a closed pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class Pool:
    """Processes that each run `serve` in `module`'s function `function`, begun one by one; a context manager.

    Attributes:
        events: (worker, message) as they come; the message None says that the worker's process has ended.
        processes: by the worker's number.
    """

    def __init__(self, module: str, function: str) -> None:
        self.events: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        folder = str(Path(__file__).resolve().parent.parent)
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # So that a plain copy of the sources works without being installed.
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        # Ctrl-C reaches every process of the terminal; the parent ends these, also while they still load torch.
        deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
        self._command = [sys.executable, "-c", f"{deaf}; from {module} import {function}; {function}()"]
        self.processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def start(self) -> int:
        """Begin one more process; its number."""
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        self.processes.append(process)
        number = len(self.processes) - 1
        self._readers.append(threading.Thread(target=self._read, args=(number,), daemon=True))
        self._readers[number].start()
        return number

    def _read(self, number: int) -> None:
        stdout = self.processes[number].stdout
        assert stdout is not None
        for line in stdout:
            self.events.put((number, json.loads(line)))
        self.processes[number].wait()
        self.events.put((number, None))

    def give(self, number: int, job: Mapping[str, Any]) -> None:
        """Send one job; a worker whose process has ended reports that in `events`."""
        stdin = self.processes[number].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process, reader in zip(self.processes, self._readers, strict=True):
            process.wait()
            reader.join()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _die_with_the_caller() -> None:
    """Ask Linux for a kill when the caller ends, however it does; nobody is left behind to train for nobody."""
    caller = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != caller:  # it ended just before
        os._exit(0)


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, in this process from now on: for processes that train on a CPU.

    A step of a training allocates what the step before it has freed. glibc gives blocks of such sizes back to the
    kernel each time, and page faults then take a tenth of a step. Does nothing with other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the most it takes: above it blocks are mapped one by one
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: whatever is free at the end of the heap stays


def serve(handle: Callable[[Message, Callable[[Message], None]], None]) -> None:
    """In a worker: `handle` gets job after job, and a way to report, until the caller closes the pipe."""
    _die_with_the_caller()
    keep_freed_memory()
    # Ctrl-C reaches the whole process group; the caller decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not garble the answers

    def report(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        for line in sys.stdin:
            handle(json.loads(line), report)
    except BrokenPipeError:
        os._exit(0)  # the caller is gone; an orderly exit would flush into the closed pipe again
