"""nladv: linearize networks channel by channel and measure what nonlinearity is left.

The re-executable companion to Ali Mehmeti-Göpel & Disselhoff, *Nonlinear Advantage* (ICML 2023). `linearize` and
`paths` are imported at once; everything that knows of data, training or the book only when it is first asked for, so
that `import nladv_core` costs little more than `import torch`.
"""

import importlib
from typing import Any

from nladv_core.errors import DataError, NladvError, RecordError, SpecError, UnsupportedNetwork
from nladv_core.linearize import (
    ActivationsLeftAlone,
    ChannelPReLU,
    GoalController,
    active_counts,
    active_fraction,
    apply_masks_,
    effective_width,
    freeze_linear_,
    linearize,
    load_masks,
    masks,
    parameter_groups,
    permute_masks,
    project_slopes_,
    save_masks,
    slope_penalty,
    units,
)
from nladv_core.path_rules import declare_path_rule
from nladv_core.paths import PathLength, path_length, visit_probability

__version__ = "0.1.0"

_LATER = {
    "experiments": ("chapter",),
    "recipes": ("Recipe", "RECIPES"),
    "reports": ("Report", "report"),
    "runs": ("RunSpec", "Store"),
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names}
_MODULES = ("claims", "compat", "datasets", "experiments", "figures", "nets", "recipes", "runs", "training")

__all__ = [
    "ActivationsLeftAlone",
    "ChannelPReLU",
    "DataError",
    "GoalController",
    "NladvError",
    "PathLength",
    "RecordError",
    "SpecError",
    "UnsupportedNetwork",
    "__version__",
    "active_counts",
    "active_fraction",
    "apply_masks_",
    "declare_path_rule",
    "effective_width",
    "freeze_linear_",
    "linearize",
    "load_masks",
    "masks",
    "parameter_groups",
    "path_length",
    "permute_masks",
    "project_slopes_",
    "save_masks",
    "slope_penalty",
    "units",
    "visit_probability",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"nladv_core.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"nladv_core.{name}")
    raise AttributeError(f"module 'nladv_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_MODULES})
