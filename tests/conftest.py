"""What every test process needs before the first test: one thread, an importable torchvision, stores of its own."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is loaded: the tests run in parallel processes, and sums must not depend on how many threads share them.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def _declare_missing_operators() -> object | None:
    """Make `import torchvision` work where its compiled part does not fit torch's build (CPU torch, CUDA torchvision).

    The import then fails on the schemas of two operators; declaring them lets all but the detection operators work.
    The returned library must be kept alive.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    compiled = Path(spec.origin).with_name("_C.so")
    try:
        torch.ops.load_library(str(compiled))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


_torchvision_library = _declare_missing_operators()


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
