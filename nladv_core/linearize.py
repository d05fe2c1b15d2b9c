"""Replace every ReLU by a unit with a learnable slope, push slopes to 1, and keep track of what stays nonlinear (§3).

A *unit* is one feature channel of one ReLU call site, with slope α for negative inputs: φ_α(x) = max(x, 0) + α·min(x,
0). α = 0 is the ReLU, α = 1 the identity. A unit is *active* while it may bend; once its slope exceeds 1 - margin it
becomes
*inactive*: its slope is locked to exactly 1 for good. While linearizing, ω·Σ|1-α|^p over the active units is added to
the loss.

Conventions that the paper leaves open (ours): active slopes are projected onto [0, 1] after each optimiser step and
carry no weight decay. Activity is counted in channels: a layer-wise slope counts as its channels, a channel with
pixel-wise slopes as its active share.
"""

import itertools
import math
import os
import warnings
import weakref
from collections.abc import Container, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from nladv_core.errors import RecordError, SpecError, UnsupportedNetwork
from nladv_core.tracing import ByMode, ExampleInput, example_tensors, trace, undisturbed

Granularity = Literal["channel", "layer", "pixel"]
Masks = dict[str, Tensor]


class ChannelPReLU(nn.Module):
    """The units of one ReLU call site: φ_α(x) = max(x, 0) + α·min(x, 0), with α = 1 wherever a unit is inactive.

    Attributes:
        slope: parameter α, shape [C] for "channel", [1] for "layer", the feature shape without the batch axis for
            "pixel".
        active: bool buffer of the same shape; it alone decides what is active: an inactive unit is the identity
            whatever its slope holds (momentum may still move a locked slope).
        channels: C, the number of channels of the call site, whatever the granularity.
        channel_axis: which axis of the input counts the channels (may be negative).
        order: position among the call sites of the network, in execution order.
        limit: infinite for a ReLU; 6 for a ReLU6, whose unit is φ_α(x) = c + α·(x - c) with c = x clipped to [0, 6].
    """

    is_traced_whole = True

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        channel_axis: int = 1,
        granularity: Granularity = "channel",
        order: int = 0,
        limit: float = math.inf,
    ):
        """Args: feature_shape is the input's shape without the batch axis 0."""
        super().__init__()
        ndim = len(feature_shape) + 1
        axis = channel_axis % ndim
        self.channels = feature_shape[axis - 1] if axis else 0
        self.channel_axis, self.granularity, self.order, self.limit = channel_axis, granularity, order, limit
        shape = {"channel": (self.channels,), "layer": (1,), "pixel": feature_shape}[granularity]
        self.slope = nn.Parameter(torch.zeros(shape))
        self.active: Tensor
        self.register_buffer("active", torch.ones(shape, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Bend negative inputs; same shape, same dtype."""
        slope = torch.where(self.active, self.slope, 1.0).to(x.dtype)
        one_axis = self.granularity == "layer" or (self.granularity == "channel" and self.channel_axis == 1)
        if one_axis and self.limit == math.inf:
            plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or not slope.requires_grad
            # The same formula, in one kernel.
            return F.prelu(x, slope) if plain or x.device.type != "cpu" else _Bend.apply(x, slope)
        if self.granularity == "channel":
            slope = slope.view([-1 if axis == self.channel_axis % x.ndim else 1 for axis in range(x.ndim)])
        bent = F.relu(x) if self.limit == math.inf else x.clamp(0.0, self.limit)
        return bent + slope * (x - bent)

    @property
    def weight(self) -> float:
        """How many channels one slope stands for: 1, C ("layer") or 1/pixels ("pixel")."""
        return self.channels / self.slope.numel()

    def active_channels(self) -> Tensor:
        """Active share of each channel, float64 [C], in [0, 1]: 0 or 1 unless the slopes are pixel-wise."""
        active = self.active.double()
        if self.granularity == "layer":
            return active.expand(self.channels)
        if self.granularity == "pixel":
            axis = self.channel_axis % (active.ndim + 1) - 1
            return active.mean([i for i in range(active.ndim) if i != axis]) if active.ndim > 1 else active
        return active

    def slope_weights(self, weights: Tensor) -> Tensor:
        """Weights of channels, [C], as weights of slopes, in the slopes' shape: one sum over what is active for both.

        A layer's slope gets the sum over its channels, a pixel's slope its share of its channel's: Σ weights ·
        `active_channels()` = Σ result · `active`.
        """
        if self.granularity == "layer":
            return weights.sum().view(1)
        if self.granularity == "pixel":
            ndim = self.slope.ndim
            axis = self.channel_axis % (ndim + 1) - 1
            shares = weights / (self.slope.numel() // self.channels)
            return shares.view([-1 if i == axis else 1 for i in range(ndim)]).expand(self.slope.shape)
        return weights

    def extra_repr(self) -> str:
        """What `print(net)` shows."""
        active = f"{int(self.active.sum())} of {self.active.numel()} active"
        limit = "" if self.limit == math.inf else f", clipped at {self.limit:g}"
        return f"{self.channels} channels on axis {self.channel_axis}, {self.granularity}-wise{limit}, {active}"


class _Bend(torch.autograd.Function):
    """`F.prelu` for eager training on a CPU, where torch's own backward pass takes five times as long as this one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return F.prelu(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        (gradient,) = gradients
        shaped = slope.view([-1 if axis == 1 else 1 for axis in range(x.ndim)])
        positive = torch.ops.aten.threshold_backward(gradient, x, 0)  # 0 where x <= 0, as for F.relu
        negative = gradient - positive
        if torch.is_grad_enabled():  # somebody differentiates twice: nothing may be overwritten
            return positive + shaped * negative, (negative * x).sum_to_size(shaped.shape).view_as(slope)
        positive.addcmul_(negative, shaped)
        return positive, negative.mul_(x).sum_to_size(shaped.shape).view_as(slope)


# ---------------------------------------------------------------------------------------------------- surgery


class ActivationsLeftAlone(UserWarning):
    """A linearized network keeps activations that are no ReLU."""


def linearize(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    granularity: Granularity = "channel",
    channel_axis: int | Mapping[str, int] | None = None,
    relu6: bool = False,
) -> GraphModule | ByMode:
    """Copy `model`, giving every ReLU call site its own units with slope 0.

    A call site is a place in the forward pass: a module called three times, `F.relu`, `torch.relu`, `x.relu()` and the
    in-place forms each become a group of units of their own, named after the module that the call stands in. The
    copy computes what the model computes: outputs on the example are compared bit by bit in evaluation mode.

    Args:
        model: not modified.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis, e.g. `(3, 32, 32)`.
        granularity: one slope per "channel" (the paper), per "layer" (Layer Folding) or per "pixel" (SNL).
        channel_axis: overrides which axis counts the channels, for all groups or by group name. Without it the axis
            follows the producing operation, or else the reading one: linear, attention and layer norm count
            channels last, convolution and batch norm on axis 1.
        relu6: also linearize ReLU6 (`nn.ReLU6`, `F.relu6`, hardtanh from 0 to 6). Other activations always stay as they
            are; a warning counts them.

    Returns:
        A `torch.fx.GraphModule` with the parameter names of `model`, or a pair of them (`tracing.ByMode`) for a network
        that does different things in training and evaluation; `units(net)` lists the new groups.

    Raises:
        UnsupportedNetwork: if there is no ReLU, the forward pass cannot be recorded, the channel axis is not evident,
            or the copy would not compute the same.
        SpecError: for an unknown granularity or a channel axis that does not exist.

    Warns:
        ActivationsLeftAlone: if the network has activations that are no ReLU.
    """
    if granularity not in get_args(Granularity):
        raise SpecError(
            f"granularity is {granularity!r}; expected one of {', '.join(map(repr, get_args(Granularity)))}."
        )
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    inputs = example_tensors(model, example_input)
    recorded = trace(model, inputs)
    root = recorded.root
    overrides = dict(channel_axis) if isinstance(channel_axis, Mapping) else {}
    made: dict[str, ChannelPReLU] = {}
    planned: list[tuple[Graph, Node, str, bool]] = []
    present = {name for name, _ in root.named_modules(remove_duplicate=False)}
    for graph in recorded.graphs:
        taken: set[str] = set()  # the same call site gets the same name in both modes
        numbered: dict[str, Iterator[str]] = {}
        for node in graph.nodes:
            limit = _limit(node, root)
            if limit is None or (limit < math.inf and not relu6):
                continue
            name = _site_name(node, taken, present, numbered)
            taken.add(name)
            axis = overrides.get(name) if isinstance(channel_axis, Mapping) else channel_axis
            unit = _unit_for(node, name, axis, granularity, len(made), limit, root)
            if name in made and made[name].slope.shape != unit.slope.shape:
                raise UnsupportedNetwork(
                    f"{name!r} has {made[name].channels} channels in training and {unit.channels} in evaluation; "
                    "give the "
                    "two their own modules."
                )
            made.setdefault(name, unit)
            planned.append((graph, node, name, _is_in_place(node, root)))
    left = activations_left_alone(recorded.graphs[-1], root, relu6)
    told = ", ".join(f"{kind} ({count})" for kind, count in left.items())
    if not made and any(isinstance(module, ChannelPReLU) for module in model.modules()):
        raise UnsupportedNetwork(
            f"{type(model).__name__} is linearized already; its units are listed by nladv_core.units(net)."
        )
    if not made:
        raise UnsupportedNetwork(
            f"{type(model).__name__} calls no ReLU, so there is nothing to linearize; expected nn.ReLU, F.relu, "
            f"torch.relu or Tensor.relu somewhere in its forward pass{f', found {told}' if told else ''}."
            + (" Pass relu6=True to linearize ReLU6." if "ReLU6" in left else "")
        )
    if unknown := sorted(overrides.keys() - made.keys()):
        raise SpecError(f"channel_axis names {unknown}, which are no unit groups; the groups are {list(made)}.")
    for name, unit in made.items():
        _set_module(root, name, unit.to(inputs[0].device))
    for graph, node, name, in_place in planned:
        _replace(graph, node, name, in_place)
    net = recorded.network(type(model).__name__)
    _copy_modes(model, net)
    _check_equal(model, net, inputs)
    if left:
        warnings.warn(
            f"linearize left {sum(left.values())} activations of {type(model).__name__} as they are: {told}.",
            ActivationsLeftAlone,
            stacklevel=2,
        )
    return net


def _limit(node: Node, root: nn.Module) -> float | None:
    """Upper limit of the activation that a node calls: infinite for a ReLU, 6 for a ReLU6, None for all else."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if getattr(module, "nonlinearity", None) == "relu" and isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise UnsupportedNetwork(
                f"{node.target!r} is a recurrent layer with a built-in ReLU, whose steps are hidden; write the "
                "recurrence as a loop of nn.Linear and nn.ReLU."
            )
        if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6):  # nn.ReLU6 is one
            return 6.0
        return math.inf if isinstance(module, nn.ReLU) else None
    if node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_"):
        return math.inf
    clips = node.target is F.hardtanh and (*node.args[1:], *node.kwargs.values())[:2] == (0, 6)
    return 6.0 if node.target is F.relu6 or clips else None


# Activations that bend and are neither a ReLU nor part of attention (softmax) or of a loss.
_OTHER_ACTIVATIONS = {
    kind: getattr(nn, kind)
    for kind in (
        *(
            "CELU",
            "ELU",
            "GELU",
            "GLU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
        ),
        *(
            "Mish",
            "PReLU",
            "RReLU",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Threshold",
        ),
    )
}
_OTHER_CALLS = {kind.lower() for kind in _OTHER_ACTIVATIONS} | {"leaky_relu", "logsigmoid", "relu6"}


def activations_left_alone(graph: Graph, root: nn.Module, relu6: bool) -> dict[str, int]:
    """How often the network calls each kind of activation that `linearize` does not touch."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        limit = _limit(node, root)
        kind = None
        if limit == 6.0:
            kind = None if relu6 else "ReLU6"
        elif limit is None and node.op == "call_module":
            module = root.get_submodule(str(node.target))
            kind = next((name for name, known in _OTHER_ACTIVATIONS.items() if isinstance(module, known)), None)
        elif limit is None and node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            kind = name if name in _OTHER_CALLS else None
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _is_in_place(node: Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(root.get_submodule(str(node.target)).inplace)
    return node.target in (torch.relu_, "relu_") or True in (node.kwargs.get("inplace"), *node.args[1:2])


def _site_name(node: Node, taken: Container[str], present: Container[str], numbered: dict[str, Iterator[str]]) -> str:
    """The ReLU module's own path, or `relu` in the module that makes the call; numbered where that is taken."""
    if node.op == "call_module" and node.target not in taken:
        return str(node.target)
    scope = node.meta["scope"]
    base = str(node.target) if node.op == "call_module" else f"{scope}.relu" if scope else "relu"
    # Counting goes on where the last call with this base stopped: a name once passed over never becomes free.
    candidates = numbered.setdefault(base, itertools.chain([base], map(f"{base}_{{}}".format, itertools.count(1))))
    return next(name for name in candidates if name not in present and name not in taken)


def _unit_for(
    node: Node, name: str, axis: int | None, granularity: Granularity, order: int, limit: float, root: nn.Module
) -> ChannelPReLU:
    shape = node.meta["shape"]
    if axis is None:
        axis = _channel_axis(node.all_input_nodes[0], root)
    if axis is None:
        axis = _channel_axis_of_readers(node, root)
    if axis is None:
        raise UnsupportedNetwork(
            f"{name!r}: which axis of its input, of shape {shape}, counts the channels is not evident; pass "
            f"channel_axis={{{name!r}: axis}}."
        )
    if not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
        raise SpecError(
            f"channel_axis of {name!r} is {axis}; expected an axis of its input, of shape {shape}, other than the "
            "batch axis 0."
        )
    if shape[axis] == 0:
        raise UnsupportedNetwork(f"{name!r} has no channels (input of shape {shape}); remove the layer.")
    return ChannelPReLU(shape[1:], axis, granularity, order, limit)


# Operations that leave the channel axis where it is, by class of module, function or method name.
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.Embedding, nn.RNNBase)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
    nn.LocalResponseNorm,
    nn.PixelShuffle,
)
_LAST_FUNCTIONS = {
    "linear",
    "layer_norm",
    "rms_norm",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
    "embedding",
}
_FIRST_FUNCTIONS = {"batch_norm", "group_norm", "instance_norm", "interpolate", "local_response_norm", "pixel_shuffle"}
_MOVES_AXES = {
    "permute",
    "transpose",
    "reshape",
    "view",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "movedim",
    "t",
    "swapaxes",
    "einsum",
}


def _channel_axis(node: Node, root: nn.Module) -> int | None:
    """Follow the producing operations back to one that fixes the channel axis; None when none is found."""
    shape = node.meta.get("shape")
    if shape is not None and len(shape) == 2:
        return 1
    if node.op == "placeholder":
        return 1 if shape is not None and len(shape) in (4, 5) else None
    axis = _axis_fixed_by(node, root)
    if axis != "kept":
        return axis
    axes = [
        _channel_axis(source, root)
        for source in node.all_input_nodes
        if issubclass(source.meta["type"], Tensor | tuple | list)
    ]
    return next((axis for axis in axes if axis is not None), None)


def _channel_axis_of_readers(node: Node, root: nn.Module) -> int | None:
    """Follow the reading operations to one that fixes the channel axis of what it reads; None when none is found."""
    for reader in node.users:
        axis = _axis_fixed_by(reader, root) if issubclass(reader.meta.get("type", object), Tensor) else None
        if axis == "kept":
            axis = _channel_axis_of_readers(reader, root)
        if axis is not None:
            return axis
    return None


def _axis_fixed_by(node: Node, root: nn.Module) -> int | Literal["kept"] | None:
    """The axis on which a call counts channels, "kept" if it leaves the axis where it is, None if it may move it."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, _CHANNELS_LAST):
            return -1
        if isinstance(module, _CHANNELS_FIRST):
            return 1
        if isinstance(module, ChannelPReLU):
            return module.channel_axis
        return None if isinstance(module, nn.Flatten | nn.Unflatten) else "kept"
    kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if kind in _LAST_FUNCTIONS:
        return -1
    if kind in _FIRST_FUNCTIONS or "conv" in kind or "pool" in kind:
        return 1
    return None if kind in _MOVES_AXES or kind == "flatten" else "kept"


def _replace(graph: Graph, node: Node, name: str, in_place: bool) -> None:
    """Put a call of the unit `name` in place of the ReLU call `node`."""
    source = node.all_input_nodes[0]
    with graph.inserting_after(node):
        unit = graph.call_module(name, (source,))
    unit.meta = dict(node.meta)
    if in_place:  # whoever reads the input after the call sees what the call wrote into it
        later, reached = [], False
        for other in graph.nodes:
            if reached and source in other.all_input_nodes and other is not unit:
                later.append(other)
            reached = reached or other is node
        for other in later:
            other.replace_input_with(source, unit)
    node.replace_all_uses_with(unit)
    graph.erase_node(node)


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    setattr(root, last, module)


def _copy_modes(model: nn.Module, net: nn.Module) -> None:
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in net.named_modules():
        parent = name.rsplit(".", 1)[0] if "." in name else ""
        module.training = modes.get(name, modes.get(parent, model.training))


def _check_equal(model: nn.Module, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a copy whose outputs on the example differ in a single bit from the model's, in evaluation mode."""
    modes = [(module, module.training) for whole in (model, net) for module in whole.modules()]
    outputs = []
    try:
        for whole in (model, net):
            whole.eval()
            with undisturbed(inputs[0].device):
                outputs.append(tree_leaves(whole(*(x.clone() for x in inputs))))
    finally:
        for module, training in modes:
            module.training = training
    expected, found = outputs
    same = len(expected) == len(found) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
        if isinstance(a, Tensor)
        else np.array_equal(a, b)
        for a, b in zip(expected, found, strict=True)
    )
    if not same:
        raise UnsupportedNetwork(
            f"{type(model).__name__}: its linearized copy would not compute the same in evaluation mode. Usual causes: "
            "an in-place ReLU or += on a tensor that is read through a view as well (use the out-of-place form), "
            "random numbers in evaluation, or a batch of one with permuted axes, where torch may round otherwise (pass "
            "two examples)."
        )


# ---------------------------------------------------------------------------------------------------- reading


# Where the units of recorded networks hang: (parent, its key, name, unit); None for the network itself, which the
# entry must not keep alive. A training step asks several times.
_places: weakref.WeakKeyDictionary[nn.Module, list[tuple[nn.Module | None, str, str, ChannelPReLU]]]
_places = weakref.WeakKeyDictionary()


def units(net: nn.Module) -> list[tuple[str, ChannelPReLU]]:
    """All unit groups of a linearized network as (name, module), in execution order.

    Raises:
        UnsupportedNetwork: if there are none.
    """
    net = getattr(net, "_orig_mod", net)
    known = _places.get(net)
    if known is not None and all(
        (net if parent is None else parent)._modules.get(key) is unit for parent, key, _, unit in known
    ):
        return [(name, unit) for _, _, name, unit in known]
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, ChannelPReLU)]
    if not found:
        raise UnsupportedNetwork(
            f"{type(net).__name__} has no linearization units; expected a network made by nladv_core.linearize()."
        )
    found.sort(key=lambda item: item[1].order)
    if isinstance(net, GraphModule | ByMode):  # any other may gain units in a place that nobody looks at here
        split = [(name.rpartition("."), unit) for name, unit in found]
        _places[net] = [
            (net.get_submodule(path) if path else None, key, f"{path}{dot}{key}", unit)
            for (path, dot, key), unit in split
        ]
    return found


class _Flat:
    """Slopes and activity of all units as one vector each, in execution order; `write_` puts vectors back.

    So a step costs a handful of operations however many layers there are.
    """

    def __init__(self, groups: Sequence[ChannelPReLU]):
        self._slopes: list[Tensor] = [unit.slope for unit in groups]
        self._active = [unit.active for unit in groups]
        self.slopes = torch.cat([slope.flatten() for slope in self._slopes])
        self.active = torch.cat([active.flatten() for active in self._active])

    def write_(self, *, slopes: Tensor, active: Tensor | None = None) -> None:
        """Overwrite the units' slopes, and their activity where given."""
        for own, new in ((self._slopes, slopes), (self._active, active)):
            if new is not None:
                parts = new.split([tensor.numel() for tensor in own])
                torch._foreach_copy_(own, [part.view_as(mine) for part, mine in zip(parts, own, strict=True)])


def _flat(net: nn.Module) -> _Flat:
    return _Flat([unit for _, unit in units(net)])


def active_counts(net: nn.Module) -> dict[str, tuple[float, int]]:
    """For each unit group, (active channels, channels); the first is a whole number unless slopes are pixel-wise."""
    return {name: (float(unit.active.sum()) * unit.weight, unit.channels) for name, unit in units(net)}


def active_fraction(net: nn.Module) -> float:
    """Share of active units among all units, in [0, 1], counted in channels."""
    counts = list(active_counts(net).values())
    return math.fsum(active for active, _ in counts) / sum(total for _, total in counts)


def effective_width(net: nn.Module) -> float:
    """ENW (§3.1): number of active units per layer (an absolute number), averaged over the ReLU call sites."""
    counts = list(active_counts(net).values())
    return math.fsum(active for active, _ in counts) / len(counts)


def _check_names(what: str, groups: Mapping[str, ChannelPReLU], given: Mapping[str, Tensor], kind: str) -> None:
    """Refuse what is no mapping with exactly the names of the unit groups."""
    if not isinstance(given, Mapping):
        raise SpecError(f"the {what} are {given!r:.80}; expected a mapping from group names to {kind}.")
    if groups.keys() != given.keys():
        missing, unknown = sorted(groups.keys() - given.keys()), sorted(given.keys() - groups.keys())
        raise SpecError(
            f"the {what} do not fit the network: missing groups {missing}, unknown groups {unknown}; expected the "
            "names that units(net) lists, from a network of the same architecture."
        )


def slope_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """Weights of all slopes as one vector: float64 [slopes] on the CPU, in execution order.

    Args:
        net: a linearized network.
        weights: group name -> weights >= 0, one for each channel, [C], as `unit_weights` and `visit_probability` give
            them, or one for each slope, in the slopes' shape. A channel's weight goes to slopes as activity is
            counted: a layer's slope gets the sum over its channels, a pixel's slope its share of its channel's.

    Raises:
        SpecError: if groups are missing or unknown, or weights have another shape, are negative or not finite.
    """
    groups = dict(units(net))
    _check_names("weights", groups, weights, "tensors with a weight for each channel")
    parts = []
    for name, unit in groups.items():
        found, shape = weights[name], tuple(unit.slope.shape)
        expected = f"expected a real tensor of shape ({unit.channels},), one weight a channel"
        expected += f", or {shape}, one a slope" if shape != (unit.channels,) else ""
        if not isinstance(found, Tensor) or found.is_complex():
            raise SpecError(f"the weights of {name!r} are {found!r:.80}; {expected}.")
        if tuple(found.shape) not in ((unit.channels,), shape):
            raise SpecError(f"the weights of {name!r} have shape {tuple(found.shape)}; {expected}.")
        found = found.detach().to("cpu", torch.float64)
        wrong = found[~(found.isfinite() & (found >= 0))]
        if len(wrong):
            raise SpecError(f"the weights of {name!r} hold {float(wrong[0]):g}; expected finite numbers of at least 0.")
        parts.append((found if tuple(found.shape) == shape else unit.slope_weights(found)).flatten())
    return torch.cat(parts)


def weighted_activity(net: nn.Module, weights: Mapping[str, Tensor]) -> float:
    """Σ weight·active over all units: what is there of what the weights count; errors as for `slope_weights`."""
    counted = slope_weights(net, weights)
    return float(counted @ _flat(net).active.to(counted))


# ---------------------------------------------------------------------------------------------------- training


def slope_penalty(
    net: nn.Module, p: float = 0.5, target: float = 1.0, weights: Mapping[str, Tensor] | Tensor | None = None
) -> Tensor:
    """Σ w·|target - α|^p over the active slopes: a scalar (0-d) tensor, to be multiplied by ω (§3).

    The derivative at α = target is infinite for p < 1; it is taken as 0 there, so the gradient is always finite.

    Args:
        net: a linearized network.
        p: exponent, > 0; 0.5 in the paper, 1 in SNL.
        target: 1 pulls towards the identity; 0 pulls active slopes back to the ReLU (§3 advises against it).
        weights: w >= 0 by group name, one for each channel, [C], as `unit_weights` and `visit_probability` give them,
            or one for each slope, in the slopes' shape. A layer's slope is charged the sum over its channels, a
            pixel's slope its share of its channel's. They are checked in each call, which waits for the device if
            they lie on one; a loop calls `linearize.slope_weights` once and passes its result. None: w = 1 for every
            slope, as in the paper.

    Returns:
        The sum, in the slopes' dtype and on their device, with gradient.

    Raises:
        SpecError: if p is not positive, or weights do not fit the network, are negative or not finite.

    Example:
        >>> net = nl.linearize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))
        >>> float(nl.slope_penalty(net).detach())  # three slopes of 0
        3.0
        >>> float(nl.slope_penalty(net, weights={"1": torch.tensor([1.0, 0.5, 0.0])}).detach())
        1.5
    """
    if not isinstance(p, Real) or not p > 0:
        raise SpecError(
            f"the exponent p of the slope penalty is {p!r}; expected a number above 0, such as the paper's 0.5."
        )
    flat = _flat(net)
    distance = (target - flat.slopes).abs()
    counted = flat.active & (distance > 0)
    charged = torch.where(counted, torch.where(counted, distance, 1.0).pow(p), 0.0)
    if weights is None:
        return charged.sum()
    if not isinstance(weights, Tensor):
        weights = slope_weights(net, weights)
    if weights.shape != charged.shape:
        raise SpecError(
            f"the weights are a tensor of shape {tuple(weights.shape)}; expected a mapping from group names, or what "
            f"slope_weights makes of one, of shape {tuple(charged.shape)}."
        )
    return (charged * weights.to(charged)).sum()


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for a `torch.optim` optimiser: `weight_decay` for the network's own, none for the slopes.

    Decaying a slope would pull it back to the ReLU, against the penalty. A network without units gives one group.

    Raises:
        SpecError: if `weight_decay` is negative or no number.
    """
    if not isinstance(weight_decay, Real) or not weight_decay >= 0:
        raise SpecError(f"weight_decay is {weight_decay!r}; expected a number of at least 0, such as 1e-4.")
    slopes = [module.slope for module in net.modules() if isinstance(module, ChannelPReLU)]
    ours = {id(slope) for slope in slopes}
    groups = [{"params": [p for p in net.parameters() if id(p) not in ours], "weight_decay": weight_decay}]
    return [*groups, {"params": slopes, "weight_decay": 0.0}] if slopes else groups


@torch.no_grad()
def project_slopes_(net: nn.Module) -> None:
    """Bring active slopes back into [0, 1] and inactive ones to exactly 1; call after each optimiser step."""
    flat = _flat(net)
    flat.write_(slopes=torch.where(flat.active, flat.slopes.clamp(0, 1), 1.0))


@torch.no_grad()
def freeze_linear_tensor_(net: nn.Module, margin: float = 0.01) -> Tensor:
    """As `freeze_linear_`, but returns the number as a 0-d tensor: no device has to wait for it."""
    _check_margin(margin)
    flat = _flat(net)
    frozen = flat.active & (flat.slopes > 1 - margin)
    flat.write_(slopes=flat.slopes.masked_fill(frozen, 1.0), active=flat.active & ~frozen)
    return frozen.sum()


def freeze_linear_(net: nn.Module, margin: float = 0.01) -> int:
    """Lock every active unit whose slope exceeds 1 - margin: slope exactly 1, inactive for good (§3).

    Args:
        net: a linearized network, changed in place.
        margin: in (0, 1); the paper's is 0.01.

    Returns:
        How many slopes were newly locked.

    Raises:
        SpecError: if the margin is not in (0, 1).
    """
    return int(freeze_linear_tensor_(net, margin))


def _check_margin(margin: float) -> None:
    if not isinstance(margin, Real) or not 0 < margin < 1:
        raise SpecError(f"the freezing margin is {margin!r}; expected a number in (0, 1), such as the paper's 0.01.")


class GoalController:
    """Linearize up to a goal and no further (§4.1.2): a share of inactive units, or a budget of what may be left.

    ω is the given one until what is left to remove comes within `band`, falls linearly to `floor`·ω at the goal, and is
    0 from there on. Besides, a step never locks more units than the goal asks for: the largest slopes go first, so the
    goal is passed by less than one unit (one slope). Nothing here waits for the device, except `.reached`.

    Example:
        >>> net = nl.linearize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))
        >>> budget = nl.GoalController(net, 0.5, omega=0.1, weights=nl.unit_weights(net, (4,), "napl"))
        >>> _ = nl.units(net)[0][1].slope.data.fill_(1.0)  # as if trained; the NAPL is 1, a third for each unit
        >>> int(budget.freeze_()), budget.reached, round(nl.path_length(net, (4,)).mean, 3)
        (2, True, 0.333)
    """

    def __init__(
        self,
        net: nn.Module,
        goal: float,
        omega: float,
        margin: float = 0.01,
        band: float = 0.05,
        floor: float = 0.1,
        weights: Mapping[str, Tensor] | None = None,
    ):
        """Args.

        goal: share of units (counted in channels) to become inactive, in (0, 1). With `weights`: what may be left of
            Σ weight·active, in its unit, above 0 and below the sum over all units. Where it is left already, as in a
            run that is taken up again, it counts as reached.
        omega: regularization weight far from the goal, >= 0.
        margin: freezing margin in (0, 1).
        band: distance to the goal from which ω falls, >= 0, as a share of all that could be removed: of all units
            (channels), or with `weights` of the sum of all weights, whatever is active and whatever the goal.
        floor: share of ω that is left just before the goal, in (0, 1].
        weights: what each unit counts, by group name, as for `slope_penalty`; `unit_weights` makes some. None: its
            channels.

        Raises:
            SpecError: an argument outside its range, or weights that do not fit the network.
        """
        self._units = [unit for _, unit in units(net)]
        if weights is None:
            if not 0 < goal < 1:
                raise SpecError(
                    f"the goal share of inactive units is {goal}; expected a number in (0, 1), such as 0.88."
                )
            counted = torch.cat([torch.full((u.slope.numel(),), u.weight, dtype=torch.float64) for u in self._units])
            self._total: float = sum(unit.channels for unit in self._units)
            self._asked = goal * self._total
        else:
            counted = slope_weights(net, weights)
            self._total = float(counted.sum())
            if not isinstance(goal, Real) or not 0 < goal < self._total:
                raise SpecError(
                    f"the goal is that {goal!r} be left, and all units together weigh {self._total:.6g}; expected a "
                    "number above 0 and below that: give another goal."
                )
            self._asked = self._total - goal
        if not omega >= 0:
            raise SpecError(f"the regularization weight ω is {omega}; expected a number >= 0.")
        if not (band >= 0 and 0 < floor <= 1):
            raise SpecError(f"band is {band} and floor is {floor}; expected band >= 0 and floor in (0, 1].")
        _check_margin(margin)
        self._margin, self._omega, self._band, self._floor = margin, omega, band, floor
        # What each slope counts, in the order of the flattened slopes: without weights its number of channels.
        self._weights = counted.to(self._units[0].slope.device)

    def _missing(self) -> Tensor:
        """What is still to be removed, 0-d float64; <= 0 once the goal is reached."""
        inactive = torch.where(_Flat(self._units).active, 0.0, self._weights).sum()
        # Sums of thirds or of 1/pixels are not exact: a billionth of the whole is not worth another unit.
        return self._asked - inactive - 1e-9 * self._total

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return bool(self._missing() <= 0)

    def omega(self) -> Tensor:
        """ω now in force, a 0-d tensor on the network's device: full, falling within the band, 0 at the goal."""
        missing = self._missing() / self._total
        factor = self._floor + (1 - self._floor) * (missing / self._band if self._band else missing * math.inf)
        return torch.where(missing > 0, self._omega * factor.clamp(max=1.0), 0.0).to(self._units[0].slope.dtype)

    @torch.no_grad()
    def freeze_(self) -> Tensor:
        """Lock units as `freeze_linear_` does, the largest slopes first, until the goal; 0-d tensor: how many."""
        flat = _Flat(self._units)
        ready = flat.active & (flat.slopes > 1 - self._margin)
        order = torch.where(ready, flat.slopes, -math.inf).argsort(descending=True, stable=True)
        weights = torch.where(ready, self._weights, 0.0)[order]
        locked_before = weights.cumsum(0) - weights
        frozen = torch.zeros_like(ready)
        frozen[order] = ready[order] & (locked_before < self._missing())
        flat.write_(slopes=flat.slopes.masked_fill(frozen, 1.0), active=flat.active & ~frozen)
        return frozen.sum()


# ---------------------------------------------------------------------------------------------------- masks


def masks(net: nn.Module) -> Masks:
    """Copies of all activity masks: group name -> bool tensor of the slope's shape, True = active."""
    return {name: unit.active.clone() for name, unit in units(net)}


@torch.no_grad()
def apply_masks_(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Make exactly the units in `masks` active, in place.

    Units that become inactive get slope 1; units that become active again restart as a ReLU (slope 0); others keep
    their slope.

    Raises:
        SpecError: if groups are missing or unknown, or a mask is not a bool tensor of its group's shape.
    """
    groups = dict(units(net))
    _check_names("masks", groups, masks, "bool tensors")
    for name, mask in masks.items():
        shape = tuple(groups[name].active.shape)
        if not isinstance(mask, Tensor):
            raise SpecError(f"the mask of {name!r} is {mask!r:.80}; expected a torch.bool tensor of shape {shape}.")
        if tuple(mask.shape) != shape or mask.dtype != torch.bool:
            raise SpecError(
                f"the mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape "
                f"{shape}."
            )
    for name, mask in masks.items():
        unit, mask = groups[name], mask.to(groups[name].active.device)
        unit.slope.masked_fill_(mask & ~unit.active, 0.0)
        unit.slope.masked_fill_(~mask, 1.0)
        unit.active.copy_(mask)


def permute_masks(
    masks: Mapping[str, Tensor], scope: Literal["layer", "global"], generator: torch.Generator | None = None
) -> Masks:
    """Shuffle the masks within each group ("layer") or over the whole network ("global") (§4.1.1).

    Both keep the number of active slopes; "layer" keeps it in every group. The arguments are left alone.

    Args:
        masks: as returned by `masks(net)`.
        scope: what is shuffled together.
        generator: a CPU generator; without it the global random state is used.

    Raises:
        SpecError: for an unknown scope.
    """

    def shuffled(flat: Tensor) -> Tensor:
        return flat[torch.randperm(flat.numel(), generator=generator).to(flat.device)]

    # By name: a file gives its tensors back in any order, and a seed must mean one permutation.
    ordered = {name: masks[name] for name in sorted(masks)}
    if scope == "layer":
        return {name: shuffled(mask.flatten()).view_as(mask) for name, mask in ordered.items()}
    if scope == "global":
        flat = shuffled(torch.cat([mask.flatten() for mask in ordered.values()]))
        parts = flat.split([mask.numel() for mask in ordered.values()])
        return {name: part.view_as(mask).clone() for (name, mask), part in zip(ordered.items(), parts, strict=True)}
    raise SpecError(f"the scope of a mask permutation is {scope!r}; expected 'layer' or 'global'.")


def save_masks(masks: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write masks as safetensors (bool, True = active): a complete file, or none.

    Raises:
        SpecError: if these are no masks.
        RecordError: if the file cannot be written.
    """
    from safetensors.torch import save

    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise SpecError(f"the masks are {masks!r:.80}; expected a mapping from group names to bool tensors.")
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    kept = {name: mask.cpu().contiguous() for name, mask in masks.items()}
    try:
        with open(temporary, "wb") as file:
            file.write(save(kept, {"content": "nladv masks, True = active"}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RecordError(
            f"{path} cannot be written ({error.strerror}); make room there or name another place."
        ) from None


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """Read masks that `save_masks` wrote.

    Raises:
        RecordError: if the file is not there, damaged, or holds anything but bool tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecordError(
            f"{path} cannot be read as a mask file ({error}); expected safetensors written by save_masks()."
        ) from error
    wrong = [name for name, mask in loaded.items() if mask.dtype != torch.bool]
    if wrong:
        raise RecordError(
            f"{path} holds tensors that are not bool ({', '.join(wrong)}); expected masks written by save_masks()."
        )
    return loaded
