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

Both come from one recursion over the recorded graph. Path counts of the same shape stand in for each tensor of the
network: (number of paths, total length), or one row per length. `path_rules` says what each operation does to
them. What does not vary along an axis is kept once (stride 0), so the NAPL needs one number per channel.

Both means are linear in the activity of the units: mean = Σ_u w_u·active_u, where w_u is the probability that a path
visits u. One backward pass through the recursion gives all w_u. They depend on structure and shape only, so they are
kept with the network and every further mean is a dot product.
"""

import functools
import math
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from nladv_core.errors import SpecError, UnsupportedNetwork
from nladv_core.linearize import ChannelPReLU, linearize, units
from nladv_core.path_rules import (
    CALL_RULES,
    SAME_SIZE,
    SHAPE_CALLS,
    Gates,
    Paths,
    Refused,
    Run,
    Tape,
    may_share_memory,
    reads_no_settings,
    rule_for_module,
    rules_version,
)
from nladv_core.tracing import ExampleInput, example_tensors, graph_of, trace, undisturbed


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
    net: nn.Module,
    example_input: ExampleInput,
    *,
    normalized: bool = True,
    count_max_pool: bool = False,
    gates: Gates = "refuse",
) -> PathLength:
    """Average path length of a network (§3.1): NAPL by default, APL with `normalized=False`.

    Args:
        net: a network made by `linearize`; any other is recorded first and all its ReLUs count as active.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis. Only shapes matter; no forward
            pass is run. The NAPL of a convolutional network does not depend on it.
        normalized: which of the two means; see the head of this module.
        count_max_pool: count each max pooling as one more nonlinearity, as the paper does for ImageNet (§4.2).
        gates: a product of two tensors that depend on the input (squeeze-and-excitation) has no agreed meaning: it is
            refused, or with "signal" the larger operand leads the paths and the other counts as a weight.

    Returns:
        `.mean` (a float, no unit) and `.histogram` (probabilities, computed when asked for).

    Raises:
        UnsupportedNetwork: for an operation without a rule that an output depends on (named, with its module; see
            `declare_path_rule`), a shape that does not fit, or when no path leads from an input to an output.
        SpecError: for an unknown way with gates.
    """
    structure = _structure(net, example_input, normalized, count_max_pool, gates)
    activity = structure.activity()
    return PathLength(
        mean=structure.constant + float(structure.weights @ activity),
        normalized=normalized,
        _histogram=lambda: structure.histogram(activity),
    )


def visit_probability(
    net: nn.Module,
    example_input: ExampleInput,
    *,
    normalized: bool = True,
    count_max_pool: bool = False,
    gates: Gates = "refuse",
) -> dict[str, Tensor]:
    """Probability that a path visits each channel of each unit group: name -> float64 [C], whatever is active.

    It is the derivative of the mean path length with respect to activity: `path_length(net, …).mean` equals the sum of
    these values over the active channels. Arguments and errors as for `path_length`.
    """
    structure = _structure(net, example_input, normalized, count_max_pool, gates)
    return dict(zip(structure.names, structure.weights.split(structure.sizes), strict=True))


# ------------------------------------------------------------------------------------- structure, kept with the network


class _Structure:
    """What does not depend on activity: the tape and the weights w_u, for one input shape and one way of counting."""

    def __init__(
        self, net: GraphModule, shapes: Sequence[tuple[int, ...]], normalized: bool, count_max_pool: bool, gates: Gates
    ):
        groups = units(net)
        self.names = [name for name, _ in groups]
        self.units = [unit for _, unit in groups]
        self.sizes = [unit.channels for unit in self.units]
        self._channelwise = all(unit.granularity == "channel" for unit in self.units)
        self._normalized = normalized
        self._tape = Tape(count_max_pool, gates)
        with torch.inference_mode(False), undisturbed(torch.device("cpu")):
            self._fingerprint = _record(net, shapes, self.units, self._tape)
            visits = self._tape.visits(normalized, self.sizes)
        if visits is None:
            raise UnsupportedNetwork(
                "no path leads from an input to an output of the network; there is no mean length."
            )
        weights, self.constant = visits  # the constant: what counted max poolings contribute
        self.weights = torch.cat(weights)

    def fits(self, net: GraphModule) -> bool:
        """Whether the network still has the structure that was analysed."""
        code, modules = self._fingerprint
        if net._code is not code:
            return False
        for parent, name, module, config in modules:
            if (net if parent is None else parent)._modules.get(name) is not module:
                return False
            if config is not None and not _has(module, *config):
                return False
        return True

    def activity(self) -> Tensor:
        """Active share of every channel, concatenated in execution order: float64 [Σ C] on the CPU."""
        if self._channelwise:
            return torch.cat([unit.active for unit in self.units]).to("cpu", torch.float64)
        return torch.cat([unit.active_channels().cpu() for unit in self.units])

    @torch.no_grad()
    def histogram(self, activity: Tensor) -> Tensor:
        """Probability of each length."""
        lengths = len(self.units) + self._tape.bends + 1
        counts = self._tape.histogram(Run(self._normalized, lengths, activity.split(self.sizes)))
        return counts / counts.sum()


_known: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Structure]] = weakref.WeakKeyDictionary()


def _structure(
    net: nn.Module, example_input: ExampleInput, normalized: bool, count_max_pool: bool, gates: Gates
) -> _Structure:
    if gates not in get_args(Gates):
        raise SpecError(f"gates is {gates!r}; expected one of {', '.join(map(repr, get_args(Gates)))}.")
    graph = graph_of(net)
    if graph is not None and any(isinstance(module, ChannelPReLU) for module in graph.modules()):
        shapes = _shapes(net, example_input)
        key = (normalized, count_max_pool, gates, rules_version(), *shapes)
        kept = _known.setdefault(graph, {})
        if key not in kept or not kept[key].fits(graph):
            kept[key] = _Structure(graph, shapes, normalized, count_max_pool, gates)
        return kept[key]
    inputs = example_tensors(net, example_input)
    has_units = any(isinstance(module, ChannelPReLU) for module in net.modules())
    recorded = graph_of(trace(net, inputs).network("Recorded") if has_units else linearize(net, inputs))
    assert recorded is not None
    return _Structure(recorded, [tuple(x.shape) for x in inputs], normalized, count_max_pool, gates)


def _shapes(net: nn.Module, example_input: ExampleInput) -> list[tuple[int, ...]]:
    """Shapes of the inputs, batch axis included; no tensor is made for a shape."""
    if (
        isinstance(example_input, tuple | list)
        and example_input
        and all(type(n) is int and n > 0 for n in example_input)
    ):
        return [(1, *example_input)]
    tensors = example_input if isinstance(example_input, tuple | list) else (example_input,)
    if tensors and all(isinstance(tensor, Tensor) and tensor.numel() for tensor in tensors):
        return [tuple(tensor.shape) for tensor in tensors]  # whatever their device
    return [tuple(x.shape) for x in example_tensors(net, example_input)]  # refuses it, or knows the shape


# Settings of a module by name, and how many attributes it has in all.
_Config = tuple[tuple[tuple[str, Any], ...], int]
# A parent of None is the network itself: the entry must not keep it alive.
_Fingerprint = tuple[str, list[tuple[nn.Module | None, str, nn.Module, _Config | None]]]


def _config(module: nn.Module) -> _Config:
    known = vars(module)
    return tuple((name, value) for name, value in known.items() if name[0] != "_" and name != "training"), len(known)


def _has(module: nn.Module, settings: tuple[tuple[str, Any], ...], count: int) -> bool:
    """Whether a module still has these settings. Looks at identity first: deep networks do not fit into the cache."""
    known = vars(module)
    if len(known) != count:
        return False
    for name, value in settings:
        now = known.get(name, _GONE)
        if now is not value and now != value:
            return False
    return True


_GONE = object()


# ------------------------------------------------------------------------------------------------------- the recursion


def _record(
    net: GraphModule, shapes: Sequence[tuple[int, ...]], groups: Sequence[ChannelPReLU], tape: Tape
) -> _Fingerprint:
    """Follow the recorded graph from the inputs to the outputs and put what it does to paths on the tape.

    Returns:
        What the tape depends on: the generated code, and of every module called where it hangs, which it is, and its
        settings if a rule reads them.
    """
    tape.group_of = {id(unit): position for position, unit in enumerate(groups)}
    env: dict[Node, Any] = {}
    owner: dict[Node, Node] = {}  # whose memory a view shows
    inputs = net.graph.find_nodes(op="placeholder")
    if len(inputs) != len(shapes):
        raise UnsupportedNetwork(
            f"the network was recorded with {len(inputs)} inputs, and example_input has {len(shapes)}; pass a tuple "
            "with one tensor for each."
        )
    given = iter(shapes)
    called = []
    for node in net.graph.nodes:
        if node.op == "placeholder":
            shape = next(given)
            env[node] = tape.record(functools.partial(Run.begin, shape=shape), [], shape)
        elif node.op == "get_attr":
            env[node] = functools.reduce(getattr, str(node.target).split("."), net)
        elif node.op == "output":
            tape.finish(_outputs(map_arg(node.args[0], env.__getitem__)))
        else:
            module = None
            if node.op == "call_module":
                path, _, name = str(node.target).rpartition(".")
                parent = net.get_submodule(path) if path else None
                module = getattr(net if parent is None else parent, name)
                plain = reads_no_settings(rule_for_module(module))
                called.append((parent, name, module, None if plain else _config(module)))
            args, kwargs = (map_arg(given, env.__getitem__) for given in (node.args, node.kwargs))
            env[node] = _call(tape, node, module, args, kwargs)
            source = node.args[0] if node.args else None
            if isinstance(source, Node) and (_is_in_place(node) or may_share_memory(module or node.target)):
                owner[node] = owner.get(source, source)
            if isinstance(source, Node) and _is_in_place(node):
                stale = Refused(
                    f"{_describe(node, module)} writes in place into memory that is read under another name"
                )
                for other in env:
                    if owner.get(other, other) is owner[node] and other is not node:
                        env[other] = stale
                env[source] = env[node]  # later readers of the input read the result
    return net._code, called


def _outputs(structure: Any) -> list[Paths]:
    found = tree_leaves(structure)
    for value in found:
        if isinstance(value, Refused):
            raise UnsupportedNetwork(f"{value.reason}.")
    paths = [value for value in found if isinstance(value, Paths)]
    if not paths:
        raise UnsupportedNetwork("the outputs of the network do not depend on its inputs; there is no path.")
    return paths


def _is_in_place(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op == "call_method" and name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv", "setitem")


def _call(tape: Tape, node: Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """What one call makes of the paths in its arguments, or of constants and sizes."""
    target: Any = node.target if module is None else module
    if isinstance(module, nn.MultiheadAttention) and isinstance(kwargs.get("key_padding_mask"), Paths | Refused):
        # It is made from the input and hides what fills a row up; by its shape alone, a sequence has full length.
        kwargs = {name: value for name, value in kwargs.items() if name != "key_padding_mask"}
    leaves = list(_flat(args)) + list(_flat(kwargs))
    rule = rule_for_module(module) if module is not None else CALL_RULES.get(target)
    refused = next((value for value in leaves if isinstance(value, Refused)), None)
    if refused is not None:
        if rule is not CALL_RULES["mul"]:
            return refused
        if tape.gates == "signal":
            return _signal(node, args) or refused
        if any(isinstance(value, Paths) for value in leaves):
            reason = refused.reason
            return Refused(
                f'{reason}. Its result gates the signal in {_describe(node, None)}; pass gates="signal" to lead paths '
                "through the larger operand only"
            )
        return refused
    if not any(isinstance(value, Paths) for value in leaves):
        with torch.no_grad():  # constants: computed as they are
            if target is operator.setitem:
                args = (args[0].clone(), *args[1:])
                target(*args)
                return args[0]
            return (
                getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
            )
    if target in SHAPE_CALLS and module is None:
        return SHAPE_CALLS[target](*args, **kwargs)
    described = _describe(node, module)
    if rule is None:
        return Refused(
            f"{described} has no path rule, and counting it as nothing would be a guess; say what it does with "
            "nladv_core.declare_path_rule"
        )
    try:
        return rule(tape, module, *args, **kwargs) if module is not None else rule(tape, *args, **kwargs)
    except UnsupportedNetwork as error:
        return Refused(f"{described}: {error}")
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise UnsupportedNetwork(
            f"{described}: the example's shape does not fit ({error}); pass the shape that the network is made for."
        ) from error


def _signal(node: Node, args: Sequence[Any]) -> Paths | Refused | None:
    """What a product carries on, when nobody can tell the paths of one operand or of both: those of the larger.

    Sizes are those of the example that the network was recorded with: a refused tensor has none of its own.
    """
    shapes = [arg.meta.get("shape") if isinstance(arg, Node) else None for arg in node.args[:2]]
    if None in shapes or not all(isinstance(arg, Paths | Refused) for arg in args[:2]):
        return None
    size_a, size_b = (math.prod(shape or ()) for shape in shapes)
    if size_a == size_b:
        paths = any(isinstance(arg, Paths) for arg in args[:2])
        return Refused(f"{_describe(node, None)}: {SAME_SIZE}") if paths else None
    larger = 0 if size_a > size_b else 1
    return args[larger] if node.meta.get("shape") == shapes[larger] else None


def _flat(arguments: Any) -> Iterator[Any]:
    """Everything in the arguments of a recorded call, which are nested in tuples, lists and dicts at most."""
    for value in arguments.values() if isinstance(arguments, dict) else arguments:
        if isinstance(value, tuple | list | dict):
            yield from _flat(value)
        else:
            yield value


def _describe(node: Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"module {node.target!r} ({type(module).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    scope = node.meta.get("scope")
    return f"operation {name!r} in {f'module {scope!r}' if scope else 'the network itself'}"
