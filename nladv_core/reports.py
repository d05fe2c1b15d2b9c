"""One table of a network: what is active where, what that costs in private inference, what it adds to path lengths.

Conventions, all for *one* example (axis 0 of the inputs counts examples):

* **pixels**: the ReLU count of private inference, active channels × positions of the feature map; with pixel-wise
  slopes the active pixels themselves. A call site inside a loop or a shared module counts as often as it is run.
* **NAPL** of a group: the probabilities that a path visits its channels, summed over the active ones; the groups add up
  to the NAPL, apart from max poolings where those are counted.
* **MACs**: multiply-adds through convolutions, linear layers, matrix products and attention, as PyTorch's
  `FlopCounterMode` counts them, halved. Biases, normalisation, activations and pooling are not counted.
"""

from __future__ import annotations

import contextlib
import html
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from nladv_core.errors import SpecError, UnsupportedNetwork
from nladv_core.linearize import (
    ActivationsLeftAlone,
    ChannelPReLU,
    activations_left_alone,
    active_counts,
    active_fraction,
    effective_width,
    linearize,
    units,
)
from nladv_core.path_rules import Gates
from nladv_core.paths import path_length, visit_probability
from nladv_core.tracing import ExampleInput, example_tensors, graph_of, trace, undisturbed

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 100  # columns of the printed table at most

# What a unit counts: every unit alike, by the probability that a path visits it (the sum over active units is the
# NAPL), or by its pixels (the sum is the number of ReLUs that one input meets).
Measure = Literal["units", "napl", "relus"]
MEASURES: tuple[str, ...] = get_args(Measure)


@dataclass(frozen=True)
class Group:
    """One row: a unit group, that is one ReLU call site."""

    group: str
    active: float
    """Active channels; a whole number unless slopes are pixel-wise."""
    units: int
    """Channels."""
    pixels: int
    """Active ReLUs that one example passes through."""
    pixels_all: int
    """The same if all units were active."""
    napl: float
    """Active units that a path meets here, on average; NaN if path lengths are refused."""
    share: float
    """`napl` as a share of the network's; NaN if that is 0 or refused."""


@dataclass(frozen=True, repr=False)
class Report:
    """What `report` returns: `print` it, show it in a notebook, or take `.frame` and `.totals`."""

    network: str
    """Class of the network."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs for one example, batch axis included."""
    groups: tuple[Group, ...]
    """The rows, in execution order."""
    totals: dict[str, Any]
    """napl, apl (NaN where refused), napl_max_pool (part of napl), enw, active_fraction, active, units, relu_count,
    relu_count_all, parameters (without slopes), slopes, macs, and left_alone: kind -> number of other activations, or
    None where the network cannot be recorded."""
    refused: str | None
    """Why there are no path lengths; None if there are."""

    @property
    def frame(self) -> pd.DataFrame:
        """One row per unit group, in execution order, with the columns of `Group`."""
        import pandas as pd

        return pd.DataFrame(self.groups, columns=[field.name for field in fields(Group)])

    def __str__(self) -> str:
        """The table, at most 100 columns wide; long names are shortened in the middle."""
        rows = [_cells(group) for group in self.groups]
        foot = self._foot()
        widths = [max(map(len, column)) for column in zip(_HEAD, foot, *rows, strict=True)]
        widths[0] = max(12, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))

        def line(cells: Sequence[str]) -> str:
            first = _shortened(cells[0], widths[0]).ljust(widths[0])
            return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])

        rule = "─" * len(line(foot))
        told = [f"{name:13} {value}" for name, value in self._summary()]
        return "\n".join(
            [self._title(), rule, line(_HEAD), rule, *map(line, rows), rule, line(foot), rule, *_folded(told)]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook: plain tables that take their colours from the page."""

        def row(cells: Sequence[str], tag: str = "td") -> str:
            first = f'<th scope="{"row" if tag == "td" else "col"}" style="{_LEFT}">{html.escape(cells[0])}</th>'
            scope = ' scope="col"' if tag == "th" else ""
            rest = "".join(f'<{tag}{scope} style="{_RIGHT}">{html.escape(c)}</{tag}>' for c in cells[1:])
            return f"<tr>{first}{rest}</tr>"

        body = "".join(row(_cells(group)) for group in self.groups)
        summary = "".join(
            f'<tr><th scope="row" style="{_LEFT}">{html.escape(name)}</th>'
            f'<td style="{_LEFT}">{html.escape(value)}</td></tr>'
            for name, value in self._summary()
        )
        title = html.escape(self._title())
        return (
            '<div style="overflow-x: auto">'
            f'<table class="nladv-report"><caption style="{_LEFT}">{title}</caption>'
            f'<thead style="border-bottom: 1px solid">{row(_HEAD, "th")}</thead><tbody>{body}</tbody>'
            f'<tfoot style="border-top: 1px solid">{row(self._foot())}</tfoot></table>'
            f'<table class="nladv-report"><caption style="{_LEFT}">Totals for one example</caption>'
            f"<tbody>{summary}</tbody></table></div>"
        )

    def _title(self) -> str:
        shapes = ", ".join(str(shape) for shape in self.shapes)
        return f"{self.network}, one example of shape {shapes}"

    def _foot(self) -> list[str]:
        totals = self.totals
        napl = totals["napl"] - totals["napl_max_pool"]
        share = napl / totals["napl"] if totals["napl"] else math.nan
        return _cells(Group("all", totals["active"], totals["units"], totals["relu_count"], 0, napl, share))

    def _summary(self) -> list[tuple[str, str]]:
        totals = self.totals
        if self.refused:
            lengths = [("NAPL, APL", f"refused: {self.refused}")]
        else:
            pools = totals["napl_max_pool"]
            more = f", of which max pooling {pools:.4f}" if pools else ""
            lengths = [("NAPL", f"{totals['napl']:.4f}{more}"), ("APL", f"{totals['apl']:.4f}")]
        active, pixels = totals["active_fraction"], totals["relu_count"] / totals["relu_count_all"]
        left = totals["left_alone"]
        others = "unknown" if left is None else ", ".join(f"{kind} ({n:,})" for kind, n in left.items()) or "none"
        return [
            *lengths,
            ("ENW", f"{totals['enw']:,.2f} active units per group"),
            ("active units", f"{totals['active']:,.6g} of {totals['units']:,} ({100 * active:.2f} %)"),
            ("ReLU count", f"{totals['relu_count']:,} of {totals['relu_count_all']:,} ({100 * pixels:.2f} %)"),
            ("parameters", f"{totals['parameters']:,} and {totals['slopes']:,} slopes"),
            ("MACs", f"{totals['macs']:,}"),
            ("left alone", others),
        ]


_LEFT, _RIGHT = "text-align: left; padding: 0.1em 0.6em", "text-align: right; padding: 0.1em 0.6em"
_HEAD = ("unit group", "active", "units", "pixels", "NAPL", "share")


def report(
    net: nn.Module, example_input: ExampleInput, *, count_max_pool: bool = False, gates: Gates = "refuse"
) -> Report:
    """What is active where, what it costs and what it adds to the path length: see the head of this module.

    One forward pass is run, on one example and in evaluation mode; modes, statistics and random state of the network
    are as before afterwards.

    Args:
        net: a network made by `linearize`, or a module that holds one; any other is copied and linearized first, and
            all its ReLUs count as active.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis, as for `linearize`. Of tensors
            with the batch size of the first, the first example is taken.
        count_max_pool, gates: as for `path_length`.

    Returns:
        A `Report`. Where `path_length` refuses the network, its columns say so and everything else stands.

    Raises:
        UnsupportedNetwork: the network has no ReLU, cannot be recorded, or fails on the example.
        SpecError: no network, an empty batch, or an unknown way with gates.
    """
    if not isinstance(net, nn.Module):
        raise SpecError(f"found {type(net).__name__} where a network was expected; pass a torch.nn.Module.")
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    inputs = example_tensors(net, example_input)
    one = _one_example(inputs)
    name = type(net).__name__
    if not any(isinstance(module, ChannelPReLU) for module in net.modules()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ActivationsLeftAlone)  # the report says so itself
            net = linearize(net, inputs)
    elements, macs = _run(net, one)
    napl = apl = napl_max_pool = math.nan
    by_group: dict[str, float] = {}
    refused = None
    counted: dict[str, Any] = {"count_max_pool": count_max_pool, "gates": gates}
    try:
        visited = visit_probability(net, example_input, **counted)
        by_group = {group: float(visited[group] @ unit.active_channels().cpu()) for group, unit in units(net)}
        napl = path_length(net, example_input, **counted).mean
        apl = path_length(net, example_input, normalized=False, **counted).mean
        napl_max_pool = napl - math.fsum(by_group.values()) if count_max_pool else 0.0
    except UnsupportedNetwork as error:
        refused = str(error)
        napl = apl = napl_max_pool = math.nan
        by_group = {}
    active = active_counts(net)
    groups = []
    for group, unit in units(net):
        on, of = int(unit.active.sum()), unit.active.numel()
        length = by_group.get(group, math.nan)
        groups.append(
            Group(
                group=group,
                active=active[group][0],
                units=unit.channels,
                pixels=elements[group] * on // of,  # as many elements for every slope, so this divides evenly
                pixels_all=elements[group],
                napl=length,
                share=length / napl if napl else math.nan,
            )
        )
    slopes = sum(unit.slope.numel() for _, unit in units(net))
    return Report(
        network=name,
        shapes=tuple(tuple(x.shape) for x in one),
        groups=tuple(groups),
        totals={
            "napl": napl,
            "apl": apl,
            "napl_max_pool": napl_max_pool,
            "enw": effective_width(net),
            "active_fraction": active_fraction(net),
            "active": math.fsum(row.active for row in groups),
            "units": sum(row.units for row in groups),
            "relu_count": sum(row.pixels for row in groups),
            "relu_count_all": sum(row.pixels_all for row in groups),
            "parameters": sum(p.numel() for p in net.parameters()) - slopes,
            "slopes": slopes,
            "macs": macs,
            "left_alone": _left_alone(net, inputs),
        },
        refused=refused,
    )


def unit_weights(net: nn.Module, example_input: ExampleInput, measure: Measure) -> dict[str, Tensor]:
    """What each channel of each unit group counts in a measure of nonlinearity: name -> float64 [C] on the CPU.

    Σ weight·active over all units is the measure, as `report` tells it. Weights depend on structure and shape only, so
    they stay valid while units are locked. `slope_penalty` and `GoalController` take them.

    Args:
        net: a linearized network.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis, as for `report`.
        measure: "units": 1 for each. "napl": the probability that a path visits it (`visit_probability`, §3.1; max
            poolings are not counted), in [0, 1]. "relus": its ReLU evaluations on one example, that is the pixels of
            its feature map, as often as it is run; this runs one forward pass, as `report` does.

    Raises:
        SpecError: an unknown measure, or an empty batch.
        UnsupportedNetwork: no units; a network that path lengths refuse, for "napl"; one that fails on the example, for
            "relus".

    Example:
        >>> net = nl.linearize(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), (3, 10, 10))
        >>> nl.unit_weights(net, (3, 10, 10), "relus")
        {'1': tensor([64., 64.], dtype=torch.float64)}
    """
    if measure not in MEASURES:
        raise SpecError(f"measure is {measure!r}; expected one of {', '.join(map(repr, MEASURES))}.")
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    groups = units(net)
    if measure == "napl":
        return visit_probability(net, example_input)
    if measure == "units":
        return {name: torch.ones(unit.channels, dtype=torch.float64) for name, unit in groups}
    elements, _ = _run(net, _one_example(example_tensors(net, example_input)))
    return {
        name: torch.full((unit.channels,), elements[name] / unit.channels, dtype=torch.float64) for name, unit in groups
    }


# ------------------------------------------------------------------------------------------------------------ counting


def _one_example(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first example of the batch; tensors of another size along axis 0 (masks, say) belong to all examples."""
    batch = inputs[0].shape[0] if inputs[0].ndim else 0
    if batch == 0:
        raise SpecError(
            f"the example has shape {tuple(inputs[0].shape)}, which holds no example; expected a batch of at least one."
        )
    return tuple(x[:1] if x.ndim and x.shape[0] == batch else x for x in inputs)


def _run(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[dict[str, int], int]:
    """Elements that pass through each unit group on one example, and multiply-adds of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    elements = dict.fromkeys((group for group, _ in units(net)), 0)

    def count(group: str, _: nn.Module, __: Any, output: Tensor) -> None:
        elements[group] += output.numel()

    modes = [(module, module.training) for module in net.modules()]
    hooks = [unit.register_forward_hook(partial(count, group)) for group, unit in units(net)]
    flops = FlopCounterMode(display=False)
    net.eval()
    try:
        with undisturbed(inputs[0].device), _nothing_fused(net), flops:
            net(*(x.clone() for x in inputs))
    except Exception as error:
        raise UnsupportedNetwork(
            f"{type(net).__name__} stops on one example of shape {', '.join(str(tuple(x.shape)) for x in inputs)} "
            f"with {type(error).__name__}: {error}. Pass the shape and dtype that the network is made for, examples "
            "along axis 0."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return elements, flops.get_total_flops() // 2


@contextlib.contextmanager
def _nothing_fused(net: nn.Module) -> Iterator[None]:
    """Attention and recurrent layers as matrix products: the flop counter does not see into their fused kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in net.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # that some build of torch lacks Intel GPUs
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _left_alone(net: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, int] | None:
    graph = graph_of(net)
    if graph is None:
        try:
            recorded = trace(net, inputs)
        except UnsupportedNetwork:
            return None
        return activations_left_alone(recorded.graphs[-1], recorded.root, relu6=False)
    return activations_left_alone(graph.graph, graph, relu6=False)


# ------------------------------------------------------------------------------------------------------------- writing


def _cells(row: Group) -> list[str]:
    active = f"{row.active:,.0f}" if row.active == round(row.active) else f"{row.active:,.2f}"
    napl = "refused" if math.isnan(row.napl) else f"{row.napl:.4f}"
    share = "–" if math.isnan(row.share) else f"{100 * row.share:.2f} %"
    return [row.group, active, f"{row.units:,}", f"{row.pixels:,}", napl, share]


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    end = width // 2  # the end of a path says more than its middle
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _folded(lines: Sequence[str]) -> list[str]:
    import textwrap

    return [
        part
        for line in lines
        for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
    ]
