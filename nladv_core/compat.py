"""Import torchvision where its compiled part does not fit torch's build."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_declared: torch.library.Library | None = None  # what it declares lives as long as it does


def declare_torchvision_operators() -> None:
    """Declare the operators without which `import torchvision` stops, if its compiled part cannot be loaded.

    That is so where torch comes without CUDA and torchvision, from PyPI, with it: the import fails on the schemas of
    two operators that its Python code refers to. With those declared everything works but the detection operators. Does
    nothing where the two fit, where torchvision is not installed, and when called again.
    """
    global _declared
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _declared is not None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        _declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_torchvision() -> ModuleType:
    """`import torchvision`, also where its build does not fit torch's (see `declare_torchvision_operators`).

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    declare_torchvision_operators()
    return importlib.import_module("torchvision")
