"""nladv: linearize networks channel by channel and measure what nonlinearity is left.

The re-executable companion to Ali Mehmeti-Göpel & Disselhoff, *Nonlinear Advantage* (ICML 2023). A module is imported
when one of its names is first asked for: what needs no network (`nladv status`, the grid of runs) then does without the
seconds that `import torch` takes.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nladv_core.errors import DataError, NladvError, RecordError, SpecError, UnsupportedNetwork

if TYPE_CHECKING:
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
    from nladv_core.reports import unit_weights

__version__ = "0.1.0"

_LATER = {
    "experiments": ("chapter",),
    "linearize": (
        *("ActivationsLeftAlone", "ChannelPReLU", "GoalController", "active_counts", "active_fraction", "apply_masks_"),
        *("effective_width", "freeze_linear_", "linearize", "load_masks", "masks", "parameter_groups"),
        *("permute_masks", "project_slopes_", "save_masks", "slope_penalty", "units"),
    ),
    "path_rules": ("declare_path_rule",),
    "paths": ("PathLength", "path_length", "visit_probability"),
    "recipes": ("Recipe", "RECIPES"),
    "reports": ("Report", "report", "unit_weights"),
    "runs": ("RunSpec", "Store"),
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names}
_MODULES = (
    *("claims", "compat", "datasets", "experiments", "figures", "nets", "path_rules", "paths", "recipes", "runs"),
    *("sharpness", "tracing", "training"),
)

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
    "unit_weights",
    "units",
    "visit_probability",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"nladv_core.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"nladv_core.{name}")
    raise AttributeError(f"module 'nladv_core' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps the name `linearize` for the function: an import of the module of that name would bind it to the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "linearize" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_MODULES})
