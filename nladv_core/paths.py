"""How many active units a path through the network meets: average path length (§3.1, App. A).

The computation graph is a DAG of neurons; a path's effective length is the number of *active* units on it.

* **APL** (`normalized=False`): mean effective length of a path drawn uniformly among all input→output paths. Zero
  padding makes it depend on position, so it is computed on full feature maps; pooling counts one edge per window
  element.
* **NAPL** (`normalized=True`): expected number of active units on this backward walk: start at a uniformly random
  output neuron that carries paths; at a linear layer or convolution step to a uniformly random incoming neuron that
  carries paths; at an addition, as bracketed in the code, step into each operand that carries paths with equal
  probability. Zero-padded channels (shortcut "A"), constants and `x * 0` carry no path. In the paper's forward form:
  histograms are normalised per neuron before and after every merge. Other readings of the paper's sentences differ
  slightly: for all-active ResNet-56 they give 28 (each branch one half) or 28 5/6 (normalised before adding only)
      where this gives 29.

Both come from one recursion over the recorded graph. A tensor of the network is stood in for by path counts of the same
shape with one more axis in front, the *rows*: either (number of paths, total length) or one row per length. Every rule
below adds up what comes in over the edges; for the NAPL the result is then divided by its number of paths, neuron by
neuron. What does not vary along an axis is kept once (stride 0), so the NAPL needs one number per channel.

Both means are linear in the activity of the units: mean = Σ_u w_u·active_u, where w_u is the probability that a path
visits u. One backward pass through the recursion gives all w_u. They depend on structure and shape only, so they are
kept with the network and every further mean is a dot product.
"""

import builtins
import functools
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from nladv_core.errors import UnsupportedNetwork
from nladv_core.linearize import ChannelPReLU, linearize, units
from nladv_core.tracing import ExampleInput, example_tensors, trace


@dataclass(frozen=True)
class PathLength:
    """Effective path lengths of a network, for the activity that its units had when this was made."""

    mean: float
    """Mean effective length: from 0 (linear) to the number of ReLU call sites on the longest path."""
    normalized: bool
    """True: the NAPL's backward walk; False: all paths alike (APL)."""
    _histogram: Callable[[], Tensor] = field(repr=False)

    @functools.cached_property
    def histogram(self) -> Tensor:
        """Probability of each length 0, 1, …: float64 [sites + 1], summing to 1. Computed when first asked for."""
        return self._histogram()


def path_length(
    net: nn.Module, example_input: ExampleInput, *, normalized: bool = True, count_max_pool: bool = False
) -> PathLength:
    """Average path length of a network (§3.1): NAPL by default, APL with `normalized=False`.

    Args:
        net: a network made by `linearize`; any other is recorded first and all its ReLUs count as active.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis. Only shapes matter; no forward
            pass is run. The NAPL of a convolutional network does not depend on it.
        normalized: which of the two means; see the head of this module.
        count_max_pool: count each max pooling as one more nonlinearity, as the paper does for ImageNet (§4.2).

    Returns:
        `.mean` (a float, no unit) and `.histogram` (probabilities, computed when asked for).

    Raises:
        UnsupportedNetwork: for an operation without a rule (named, with its module), a shape that does not fit, or
            when no path leads from an input to an output.
    """
    structure = _structure(net, example_input, normalized, count_max_pool)
    activity = structure.activity()
    return PathLength(
        mean=structure.constant + float(structure.weights @ activity),
        normalized=normalized,
        _histogram=lambda: structure.histogram(activity),
    )


def visit_probability(
    net: nn.Module, example_input: ExampleInput, *, normalized: bool = True, count_max_pool: bool = False
) -> dict[str, Tensor]:
    """Probability that a path visits each channel of each unit group: name -> float64 [C], whatever is active.

    It is the derivative of the mean path length with respect to activity: `path_length(net, …).mean` equals the sum of
    these values over the active channels. Arguments and errors as for `path_length`.
    """
    structure = _structure(net, example_input, normalized, count_max_pool)
    return dict(zip(structure.names, structure.weights.split(structure.sizes), strict=True))


# ------------------------------------------------------------------------------------- structure, kept with the network


class _Structure:
    """What does not depend on activity: the network's weights w_u, for one input shape and one way of counting."""

    def __init__(self, net: GraphModule, shapes: Sequence[tuple[int, ...]], normalized: bool, count_max_pool: bool):
        groups = units(net)
        self.names = [name for name, _ in groups]
        self.units = [unit for _, unit in groups]
        self.sizes = [unit.channels for unit in self.units]
        self._channelwise = all(unit.granularity == "channel" for unit in self.units)
        self._make = functools.partial(_Recursion, net, shapes, normalized, count_max_pool)
        marks = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in self.sizes]
        with torch.enable_grad():
            mean = self._make(marks, None).mean()
            reached = torch.autograd.grad(mean, marks, allow_unused=True) if mean.requires_grad else [None] * len(marks)
        self.constant = float(mean.detach())  # what counted max poolings contribute
        self.weights = torch.cat(
            [torch.zeros(n, dtype=torch.float64) if w is None else w for w, n in zip(reached, self.sizes, strict=True)]
        )
        self._fingerprint = _fingerprint(net)

    def fits(self, net: GraphModule) -> bool:
        """Whether the network still has the structure that was analysed."""
        code, modules = self._fingerprint
        return net._code is code and all(
            parent._modules.get(name) is module and (config is None or _config(module) == config)
            for parent, name, module, config in modules
        )

    def activity(self) -> Tensor:
        """Active share of every channel, concatenated in execution order: float64 [Σ C] on the CPU."""
        if self._channelwise:
            return torch.cat([unit.active for unit in self.units]).to("cpu", torch.float64)
        return torch.cat([unit.active_channels().cpu() for unit in self.units])

    def histogram(self, activity: Tensor) -> Tensor:
        with torch.no_grad():
            return self._make(list(activity.split(self.sizes)), len(self.units) + 1).distribution()


_known: "weakref.WeakKeyDictionary[nn.Module, dict[Any, _Structure]]" = weakref.WeakKeyDictionary()


def _structure(net: nn.Module, example_input: ExampleInput, normalized: bool, count_max_pool: bool) -> _Structure:
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    has_units = any(isinstance(module, ChannelPReLU) for module in net.modules())
    if has_units and isinstance(net, GraphModule):
        if (
            isinstance(example_input, tuple | list)
            and example_input
            and all(type(n) is int and n > 0 for n in example_input)
        ):
            shapes: list[tuple[int, ...]] = [(1, *example_input)]
        else:
            shapes = [tuple(x.shape) for x in example_tensors(net, example_input)]
        key = (normalized, count_max_pool, *shapes)
        kept = _known.setdefault(net, {})
        if key not in kept or not kept[key].fits(net):
            kept[key] = _Structure(net, shapes, normalized, count_max_pool)
        return kept[key]
    inputs = example_tensors(net, example_input)
    recorded = GraphModule(*trace(net, inputs)) if has_units else linearize(net, inputs)
    return _Structure(recorded, [tuple(x.shape) for x in inputs], normalized, count_max_pool)


def _config(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}


def _fingerprint(net: GraphModule) -> tuple[str, list[tuple[nn.Module, str, nn.Module, dict[str, Any] | None]]]:
    """The generated code, and every module called: where it hangs, which it is, its settings if a rule reads them."""
    modules = []
    for node in net.graph.find_nodes(op="call_module"):
        path, _, name = str(node.target).rpartition(".")
        parent = net.get_submodule(path)
        module = net.get_submodule(str(node.target))
        plain = isinstance(module, ChannelPReLU) or _rule_for_module(module) is _same
        modules.append((parent, name, module, None if plain else _config(module)))
    return net._code, modules


# ------------------------------------------------------------------------------------------------------- the recursion


@dataclass(frozen=True)
class _Paths:
    """Path counts that stand in for a tensor of shape S: `counts * exp(log_scale)`, float64 [rows, *S]."""

    counts: Tensor
    log_scale: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.counts.shape[1:])


def _compact(x: Tensor, keep: Iterable[int] = ()) -> Tensor:
    """Take one entry along every axis on which `x` does not vary (stride 0), except those in `keep`."""
    kept = {axis % x.ndim for axis in keep}
    index = tuple(
        slice(0, 1) if stride == 0 and size > 1 and axis not in kept else slice(None)
        for axis, (stride, size) in enumerate(zip(x.stride(), x.shape, strict=True))
    )
    return x[index]


class _Recursion:
    """One pass over the recorded graph, from the inputs to the outputs.

    Args:
        activity: for each unit group in execution order, active share per channel, float64 [C].
        rows: None to carry (number of paths, total length), else the number of lengths to tell apart.
    """

    def __init__(
        self,
        net: GraphModule,
        shapes: Sequence[tuple[int, ...]],
        normalized: bool,
        count_max_pool: bool,
        activity: Sequence[Tensor],
        lengths: int | None,
    ):
        self.net, self.normalized, self.count_max_pool = net, normalized, count_max_pool
        pools = sum(_is_max_pool(node, net) for node in net.graph.nodes) if count_max_pool else 0
        self.by_length = lengths is not None
        self.rows = lengths + pools if lengths is not None else 2
        self.activity = {id(unit): a for (_, unit), a in zip(units(net), activity, strict=True)}
        self.outputs = self._run(shapes)

    def mean(self) -> Tensor:
        """Mean length over all paths (or walks) that end in an output neuron, 0-d."""
        paths, total = self._totals()
        return total[1] / paths

    def distribution(self) -> Tensor:
        """Probability of each length, [lengths]."""
        paths, total = self._totals()
        return total / paths

    def _totals(self) -> tuple[Tensor, Tensor]:
        top = max(value.log_scale for value in self.outputs)
        total = sum(value.counts.flatten(1).sum(1) * math.exp(value.log_scale - top) for value in self.outputs)
        assert isinstance(total, Tensor)
        paths = total.sum() if self.by_length else total[0].detach()
        if not paths > 0:
            raise UnsupportedNetwork(
                "no path leads from an input of the network to an output; a mean length does not exist."
            )
        return paths, total

    def _run(self, shapes: Sequence[tuple[int, ...]]) -> list[_Paths]:
        env: dict[Node, Any] = {}
        given = iter(shapes)
        for node in self.net.graph.nodes:
            if node.op == "placeholder":
                env[node] = self._input(next(given, None), node)
            elif node.op == "get_attr":
                env[node] = functools.reduce(getattr, str(node.target).split("."), self.net)
            elif node.op == "output":
                found = [
                    value
                    for value in tree_leaves(torch.fx.node.map_arg(node.args[0], env.__getitem__))
                    if isinstance(value, _Paths)
                ]
                if not found:
                    raise UnsupportedNetwork("the outputs of the network do not depend on its inputs; no path exists.")
                return found
            else:
                args = torch.fx.node.map_arg(node.args, env.__getitem__)
                kwargs = torch.fx.node.map_arg(node.kwargs, env.__getitem__)
                env[node] = self._call(node, args, kwargs)
                if (
                    isinstance(node.target, str)
                    and node.op == "call_method"
                    and node.target.endswith("_")
                    and isinstance(node.args[0], Node)
                ):
                    env[node.args[0]] = env[node]  # in place: later readers of the input read the result
        raise AssertionError("a graph ends with its output")

    def _input(self, shape: tuple[int, ...] | None, node: Node) -> Any:
        if shape is None:
            return node.args[0] if node.args else None
        counts = torch.zeros(self.rows, dtype=torch.float64)
        counts[0] = 1  # one path of length 0 starts at every input neuron
        return _Paths(counts.view(-1, *(1 for _ in shape)).expand(-1, *shape))

    def _call(self, node: Node, args: Any, kwargs: Any) -> Any:
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not any(isinstance(value, _Paths) for value in tree_leaves((args, kwargs))):
            with torch.no_grad():  # constants, sizes: computed as they are
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                target: Any = node.target if module is None else module
                return target(*args, **kwargs)
        try:
            if module is not None:
                rule = _rule_for_module(module)
                if rule is not None:
                    return rule(self, module, *args, **kwargs)
            else:
                rule = CALL_RULES.get(node.target)
                if rule is not None:
                    return rule(self, *args, **kwargs)
                if node.target in _SHAPE_CALLS:
                    return _SHAPE_CALLS[node.target](*args, **kwargs)
                if node.target in _VIEW_CALLS:
                    return self._view(node, args, kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, UnsupportedNetwork):
                raise
            raise UnsupportedNetwork(
                f"{_describe(node, module)}: the example's shape does not fit ({error}); pass the shape that the "
                "network is made for."
            ) from error
        raise UnsupportedNetwork(
            f"{_describe(node, module)} has no path rule, and counting it as nothing would be a guess; "
            "see nladv_core.paths.MODULE_RULES and CALL_RULES for what has one."
        )

    def _view(self, node: Node, args: Any, kwargs: Any) -> Any:
        """A call that only rearranges entries: done as it is, on every row."""
        value, function = args[0], cast(Callable[..., Any], node.target)

        def call(x: Tensor) -> Any:
            if node.op == "call_method":
                return getattr(x, str(node.target))(*args[1:], **kwargs)
            return function(x, *args[1:], **kwargs)

        result = torch.vmap(call)(value.counts)
        if isinstance(result, Tensor):
            return _Paths(result, value.log_scale)
        return type(result)(_Paths(part, value.log_scale) for part in result)

    # What rules are made of.

    def merged(self, counts: Tensor, log_scale: float, shape: Sequence[int]) -> _Paths:
        """Finish a rule: `counts` summed over incoming edges become paths of `shape` (spread along axes kept once).

        For the NAPL the counts of each neuron are divided by its number of paths; otherwise the tensor is rescaled by
        its largest entry, since numbers of paths grow exponentially in depth and overflow.
        """
        if self.normalized:
            paths = (counts.sum(0, keepdim=True) if self.by_length else counts[:1]).detach()
            counts = torch.where(paths > 0, counts / torch.where(paths > 0, paths, 1.0), 0.0)
            return _Paths(counts.expand(-1, *shape))
        largest = float(counts.detach().max())
        if largest > 0:
            counts, log_scale = counts / largest, log_scale + math.log(largest)
        return _Paths(counts.expand(-1, *shape), log_scale)

    def bend(self, value: _Paths, activity: Tensor) -> _Paths:
        """Lengthen paths by one with probability `activity`, which broadcasts against the value's shape."""
        counts = _compact(value.counts)
        if self.by_length:
            longer = torch.cat([torch.zeros_like(counts[:1]), counts[:-1]])
            counts = (1 - activity) * counts + activity * longer
        else:
            paths, total = counts[:1], counts[1:]
            total = total + activity * paths
            counts = torch.cat([paths.expand(total.shape), total])
        return _Paths(counts.expand(-1, *value.shape), value.log_scale)

    def windows(self, counts: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """Sum over windows along the last `len(taps)` axes.

        `taps[d]` is float64 [out, in]: how often output position o reads input position i along axis d. Windows are
        boxes, so the axes can be summed one after the other. Where the counts do not vary along an axis, the sum is a
        factor per position; the NAPL divides it out again, so there only its being zero matters.
        """
        for axis, tap in zip(range(-len(taps), 0), taps, strict=True):
            if counts.stride(axis) != 0 and counts.shape[axis] > 1:
                counts = (counts.movedim(axis, -1) @ tap.T).movedim(-1, axis)
                continue
            factor = tap.sum(1)
            if self.normalized:
                factor = (factor > 0).double()
            if bool((factor == factor[0]).all()):  # still the same everywhere: one entry is enough
                factor = factor[:1]
            counts = counts.narrow(axis, 0, 1) * factor.view(-1, *(1 for _ in range(-axis - 1)))
        return counts.expand(*counts.shape[: counts.ndim - len(taps)], *(len(tap) for tap in taps))


def _describe(node: Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"module {node.target!r} ({type(module).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    scope = node.meta.get("scope")
    return f"operation {name!r} in {f'module {scope!r}' if scope else 'the network itself'}"


# ------------------------------------------------------------------------------------------------------------ the rules


def _same(walk: _Recursion, module: nn.Module, value: _Paths, *_: Any, **__: Any) -> _Paths:
    """One edge in, one edge out: normalisation, dropout, identity."""
    return value


def _same_call(walk: _Recursion, value: _Paths, /, *_: Any, **__: Any) -> _Paths:
    return value


def _unit(walk: _Recursion, module: ChannelPReLU, value: _Paths) -> _Paths:
    activity = walk.activity[id(module)]
    ndim = len(value.shape)
    axis = module.channel_axis % ndim
    return walk.bend(value, activity.view([-1 if i == axis else 1 for i in range(ndim)]))


def _linear(walk: _Recursion, value: _Paths, out_features: int) -> _Paths:
    counts = _compact(value.counts, keep=(-1,)).sum(-1, keepdim=True)
    return walk.merged(counts, value.log_scale, (*value.shape[:-1], out_features))


def _convolution(walk: _Recursion, value: _Paths, out_channels: int, groups: int, taps: Sequence[Tensor]) -> _Paths:
    """Every output channel of a group reads all of the group's input channels: a box filter of the channel sum."""
    n = len(taps)
    counts = _compact(value.counts)
    channel = counts.ndim - n - 1
    channels = value.shape[channel - 1]
    if counts.shape[channel] == 1:
        counts = (counts * (channels // groups)).expand(*counts.shape[:channel], groups, *counts.shape[channel + 1 :])
    else:
        counts = counts.unflatten(channel, (groups, channels // groups)).sum(channel + 1)
    spread = counts.expand(*counts.shape[: channel + 1], *value.shape[-n:])
    counts = _compact(walk.windows(spread, taps))
    if groups > 1 and counts.shape[channel] > 1:
        counts = counts.repeat_interleave(out_channels // groups, dim=channel)
    shape = (*value.shape[: channel - 1], out_channels, *(len(tap) for tap in taps))
    return walk.merged(counts, value.log_scale, shape)


def _pool(walk: _Recursion, value: _Paths, taps: Sequence[Tensor], bends: bool = False) -> _Paths:
    n = len(taps)
    counts = _compact(walk.windows(_compact(value.counts, keep=range(-n, 0)), taps))
    pooled = walk.merged(counts, value.log_scale, (*value.shape[:-n], *(len(tap) for tap in taps)))
    return walk.bend(pooled, torch.ones((), dtype=torch.float64)) if bends and walk.count_max_pool else pooled


def _each(setting: Any, n: int) -> tuple[int, ...]:
    return tuple(setting) if isinstance(setting, tuple | list) else (setting,) * n


def _taps(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil: bool = False) -> Tensor:
    """[out, in]: 1 where output o = sum over j of input o·stride - padding + j·dilation exists, else 0."""
    span = size + sum(padding) - dilation * (kernel - 1) - 1
    out = span // stride + 1
    if ceil and span % stride and out * stride < size + padding[0]:  # the last window must start inside
        out += 1
    if out < 1:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size + sum(padding)} positions")
    read = torch.arange(out)[:, None] * stride - padding[0] + torch.arange(kernel)[None] * dilation
    return (read[:, :, None] == torch.arange(size)).sum(1).double()


def _conv_rule(walk: _Recursion, module: nn.Module, value: _Paths) -> _Paths:
    m: Any = module
    if m.padding_mode != "zeros":
        raise UnsupportedNetwork(f"padding mode {m.padding_mode!r} of a convolution has no path rule; use zeros.")
    return _conv_call(walk, value, m.weight, None, m.stride, m.padding, m.dilation, m.groups)


def _conv_call(
    walk: _Recursion,
    value: _Paths,
    /,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Paths:
    kernel = tuple(weight.shape[2:])
    n = len(kernel)
    if value.shape[-n - 1] != weight.shape[1] * groups:
        raise ValueError(f"{value.shape[-n - 1]} channels come in, the convolution takes {weight.shape[1] * groups}")
    stride, dilation = _each(stride, n), _each(dilation, n)
    if padding == "same":
        pads = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)]
    else:
        pads = [(p, p) for p in _each(0 if padding == "valid" else padding, n)]
    taps = [_taps(*setting) for setting in zip(value.shape[-n:], kernel, stride, pads, dilation, strict=True)]
    return _convolution(walk, value, weight.shape[0], groups, taps)


def _linear_rule(walk: _Recursion, module: nn.Module, value: _Paths) -> _Paths:
    return _linear_call(walk, value, module.weight)


def _linear_call(walk: _Recursion, value: _Paths, /, weight: Any, bias: Any = None) -> _Paths:
    if value.shape[-1] != weight.shape[1]:
        raise ValueError(f"{value.shape[-1]} features come in, the linear layer takes {weight.shape[1]}")
    return _linear(walk, value, weight.shape[0])


def _pool_taps(
    value: _Paths, n: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
) -> list[Tensor]:
    stride = kernel if stride is None or stride == () else stride
    settings = zip(
        value.shape[-n:], _each(kernel, n), _each(stride, n), _each(padding, n), _each(dilation, n), strict=True
    )
    return [_taps(size, k, s, (p, p), d, ceil) for size, k, s, p, d in settings]


def _spatial_axes(module: nn.Module) -> int:
    """1, 2 or 3, from the name of the torch class that a pooling module is or derives from."""
    return next(int(kind.__name__[-2]) for kind in type(module).__mro__ if kind.__name__.endswith(("1d", "2d", "3d")))


def _pool_rule(walk: _Recursion, module: nn.Module, value: _Paths) -> _Paths:
    m: Any = module
    n = _spatial_axes(m)
    bends = isinstance(m, nn.modules.pooling._MaxPoolNd)
    taps = _pool_taps(value, n, m.kernel_size, m.stride, m.padding, getattr(m, "dilation", 1), m.ceil_mode)
    return _pool(walk, value, taps, bends)


def _adaptive_taps(size: int, out: int) -> Tensor:
    start = torch.arange(out) * size // out
    end = -(-(torch.arange(out) + 1) * size // out)
    position = torch.arange(size)
    return ((position >= start[:, None]) & (position < end[:, None])).double()


def _adaptive_call(walk: _Recursion, value: _Paths, /, output_size: Any, n: int = 2, bends: bool = False) -> _Paths:
    sizes = [size if out is None else out for size, out in zip(value.shape[-n:], _each(output_size, n), strict=True)]
    return _pool(
        walk, value, [_adaptive_taps(size, out) for size, out in zip(value.shape[-n:], sizes, strict=True)], bends
    )


def _adaptive_rule(walk: _Recursion, module: nn.Module, value: _Paths) -> _Paths:
    m: Any = module
    return _adaptive_call(
        walk, value, m.output_size, _spatial_axes(m), isinstance(m, nn.modules.pooling._AdaptiveMaxPoolNd)
    )


def _mean_call(walk: _Recursion, value: _Paths, /, dim: Any = None, keepdim: bool = False, **_: Any) -> _Paths:
    """Mean or sum over axes: one edge from every entry."""
    ndim = len(value.shape)
    axes = sorted(axis % ndim for axis in _each(range(ndim) if dim is None else dim, 1))
    counts = value.counts
    for axis in axes:
        size = value.shape[axis]
        counts = (
            counts.narrow(axis + 1, 0, 1) * size if counts.stride(axis + 1) == 0 else counts.sum(axis + 1, keepdim=True)
        )
    kept = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    result = walk.merged(_compact(counts), value.log_scale, kept)
    if keepdim:
        return result
    return _Paths(result.counts.squeeze([axis + 1 for axis in axes]), result.log_scale)


def _add_call(walk: _Recursion, a: Any, b: Any, /, *_: Any, **__: Any) -> _Paths:
    """A sum of two operands; a constant carries no path."""
    if not (isinstance(a, _Paths) and isinstance(b, _Paths)):
        return _with_constant(a, b)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    top = max(a.log_scale, b.log_scale)
    parts = [
        _compact(value.counts.reshape(walk.rows, *(1,) * (len(shape) - len(value.shape)), *value.shape))
        * math.exp(value.log_scale - top)
        for value in (a, b)
    ]
    return walk.merged(parts[0] + parts[1], top, shape)


def _with_constant(a: Any, b: Any) -> _Paths:
    value, constant = (a, b) if isinstance(a, _Paths) else (b, a)
    shape = torch.broadcast_shapes(value.shape, tuple(getattr(constant, "shape", ())))
    if shape == value.shape:
        return value
    extra = (1,) * (len(shape) - len(value.shape))
    return _Paths(value.counts.reshape(-1, *extra, *value.shape).expand(-1, *shape), value.log_scale)


def _scale_call(walk: _Recursion, a: Any, b: Any, /, *_: Any, **__: Any) -> _Paths:
    """A product with a constant: a parameter is a weight (one edge), zeros cut the paths."""
    if isinstance(a, _Paths) and isinstance(b, _Paths):
        raise UnsupportedNetwork(
            "a product of two tensors that both depend on the input (a gate) has no agreed path length."
        )
    value = _with_constant(a, b)
    constant = b if isinstance(a, _Paths) else a
    if isinstance(constant, nn.Parameter):
        return value
    nonzero = (torch.as_tensor(constant) != 0).to("cpu", torch.float64)
    if bool(nonzero.all()):
        return value
    return _Paths(value.counts * nonzero, value.log_scale)


def _divide_call(walk: _Recursion, a: Any, b: Any, /, *_: Any, **__: Any) -> _Paths:
    if not isinstance(a, _Paths) or isinstance(b, _Paths):
        raise UnsupportedNetwork("a division by a tensor that depends on the input has no agreed path length.")
    return _with_constant(a, b)


def _cat_call(walk: _Recursion, tensors: Sequence[Any], dim: int = 0, **_: Any) -> _Paths:
    ndim = max(len(getattr(part, "shape", ())) for part in tensors)
    axis = dim % ndim
    top = max(part.log_scale for part in tensors if isinstance(part, _Paths))
    parts = []
    for part in tensors:
        if isinstance(part, _Paths):
            parts.append(_compact(part.counts, keep=(axis + 1,)) * math.exp(part.log_scale - top))
        else:  # a constant carries no path
            parts.append(torch.zeros(walk.rows, *part.shape, dtype=torch.float64))
    others = torch.broadcast_shapes(*([n for i, n in enumerate(part.shape) if i != axis + 1] for part in parts))
    spread = [part.expand(*others[: axis + 1], part.shape[axis + 1], *others[axis + 1 :]) for part in parts]
    shapes = [tuple(part.shape) for part in tensors]
    shape = [sum(s[axis] for s in shapes) if i == axis else shapes[0][i] for i in range(ndim)]
    return walk.merged(torch.cat(spread, dim=axis + 1), top, shape)


def _pad_call(
    walk: _Recursion, value: _Paths, /, pad: Sequence[int], mode: str = "constant", *_: Any, **__: Any
) -> _Paths:
    """Padding with a constant: the new neurons carry no path."""
    if mode != "constant":
        raise UnsupportedNetwork(f"padding mode {mode!r} has no path rule; use constant padding.")
    padded = [-1 - i // 2 for i, amount in enumerate(pad) if amount]
    counts = F.pad(_compact(value.counts, keep=padded), list(pad))
    shape = list(value.shape)
    for i, amount in enumerate(pad):
        shape[-1 - i // 2] += amount
    return _Paths(counts.expand(-1, *shape), value.log_scale)


Rule = Callable[..., _Paths]

# What a module does to paths: rule(recursion, module, *arguments), found by class.
MODULE_RULES: dict[type[nn.Module], Rule] = {
    ChannelPReLU: _unit,
    nn.Linear: _linear_rule,
    nn.Conv1d: _conv_rule,
    nn.Conv2d: _conv_rule,
    nn.Conv3d: _conv_rule,
    nn.modules.batchnorm._BatchNorm: _same,
    nn.modules.dropout._DropoutNd: _same,
    nn.Identity: _same,
    nn.modules.pooling._AvgPoolNd: _pool_rule,
    nn.modules.pooling._MaxPoolNd: _pool_rule,
    nn.modules.pooling._AdaptiveAvgPoolNd: _adaptive_rule,
    nn.modules.pooling._AdaptiveMaxPoolNd: _adaptive_rule,
    nn.Flatten: lambda walk, m, value: _Paths(torch.vmap(m)(value.counts), value.log_scale),
}

# What a function or method does to paths: rule(recursion, *arguments), found by the function or the method's name.
CALL_RULES: dict[Any, Rule] = {
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add", "add_"], _add_call),
    **dict.fromkeys([operator.sub, operator.isub, torch.sub, "sub", "sub_"], _add_call),
    **dict.fromkeys([operator.mul, operator.imul, torch.mul, "mul", "mul_"], _scale_call),
    **dict.fromkeys([operator.truediv, torch.div, "div", "div_"], _divide_call),
    **dict.fromkeys(
        [operator.neg, torch.neg, "neg", F.dropout, F.batch_norm, "contiguous", "clone", "float"], _same_call
    ),
    **dict.fromkeys([torch.cat, torch.concat], _cat_call),
    **dict.fromkeys([torch.mean, "mean", torch.sum, "sum"], _mean_call),
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _conv_call),
    F.linear: _linear_call,
    F.pad: _pad_call,
    F.adaptive_avg_pool2d: _adaptive_call,
    F.adaptive_max_pool2d: functools.partial(_adaptive_call, bends=True),
    F.avg_pool2d: lambda walk, value, kernel_size, stride=None, padding=0, ceil_mode=False, **_: _pool(
        walk, value, _pool_taps(value, 2, kernel_size, stride, padding, 1, ceil_mode)
    ),
    F.max_pool2d: lambda walk, value, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **_: _pool(
        walk, value, _pool_taps(value, 2, kernel_size, stride, padding, dilation, ceil_mode), True
    ),
}

# Calls that only rearrange entries; they act on every row as they are.
_VIEW_CALLS = {
    operator.getitem,
    *(
        torch.flatten,
        torch.reshape,
        torch.permute,
        torch.transpose,
        torch.chunk,
        torch.split,
        torch.squeeze,
        torch.unsqueeze,
    ),
    *("flatten", "view", "reshape", "permute", "transpose", "chunk", "split", "squeeze", "unsqueeze", "expand"),
}

# Calls that ask for a shape.
_SHAPE_CALLS: dict[Any, Callable[..., Any]] = {
    "size": lambda value, dim=None: torch.Size(value.shape) if dim is None else value.shape[dim],
    "dim": lambda value: len(value.shape),
    builtins.getattr: lambda value, name: getattr(value.counts[0], name),
}


def _rule_for_module(module: nn.Module) -> Rule | None:
    return next((MODULE_RULES[kind] for kind in type(module).__mro__ if kind in MODULE_RULES), None)


def _is_max_pool(node: Node, net: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(
            net.get_submodule(str(node.target)), nn.modules.pooling._MaxPoolNd | nn.modules.pooling._AdaptiveMaxPoolNd
        )
    return "max_pool" in getattr(node.target, "__name__", "")
