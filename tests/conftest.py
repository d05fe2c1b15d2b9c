"""What every test process needs before the first test: one thread, an importable torchvision, stores of its own."""

import os
import signal
from collections.abc import Iterator

# Before torch is loaded: the tests run in parallel processes, and sums must not depend on how many threads share them.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from nladv_core import compat

torch.set_num_threads(1)
# Started in the background, a shell's jobs ignore Ctrl-C and hand that on to the processes that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
compat.declare_torchvision_operators()  # before any test imports torchvision


@pytest.fixture(autouse=True, scope="session")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the project's own cache and runs, or knows the builder's repository settings."""
    folder = tmp_path_factory.mktemp("nladv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLADV_STORE", str(folder / "runs"))
        patch.setenv("NLADV_CACHE", str(folder / "cache"))
        patch.delenv("NLADV_REPOSITORY_URL", raising=False)
        patch.delenv("NLADV_REPOSITORY_BRANCH", raising=False)
        yield
