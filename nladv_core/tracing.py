"""Record a network as a graph of operations while looking at real values.

`torch.fx` alone sees symbols: `if x.dim() == 3` or `assert len(x.shape) == 4` stops it. Here every symbol carries the
value that it has on the example input, so that decisions about *shapes and types* are taken as the network takes
them, while decisions about *numbers* (`if x.sum() > 0`) are refused: another input would take another branch.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import inspect
import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nladv_core.errors import SpecError, UnsupportedNetwork

ExampleInput = Tensor | Sequence[Tensor] | Sequence[int]

# fx keeps modules of torch.nn whole; these contain a ReLU in their Python code and are looked into instead.
_LOOK_INTO = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


# Classes of a user that somebody declared a path rule for (see `path_rules.declare_path_rule`).
_RULED: set[type[nn.Module]] = set()


def keep_whole(kind: type[nn.Module]) -> None:
    """Record modules of this class as one call from now on; one that calls a ReLU inside is refused."""
    _RULED.add(kind)


class _RefusesRelu(TorchFunctionMode):
    """While a module runs that is kept whole for its rule: no ReLU may be missed in silence."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__()
        self._message = (
            f"module {path!r} ({kind}) has a path rule and is therefore kept whole, but calls a ReLU, which would not "
            "be linearized; give it an attribute is_traced_whole = False to look into it, or True to leave that ReLU "
            "alone."
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("relu", "relu_"):
            raise UnsupportedNetwork(self._message)
        return func(*args, **(kwargs or {}))


def example_tensors(model: nn.Module, example_input: ExampleInput) -> tuple[Tensor, ...]:
    """The tensors that `model(*tensors)` is called with, on the model's device.

    Args:
        model: only its first parameter is looked at, for device and dtype.
        example_input: a tensor, a tuple of tensors, or a shape without the batch axis such as `(3, 32, 32)`, for which
            two normally distributed examples are made (no global random state is touched).

    Raises:
        UnsupportedNetwork: for anything else, a shape with sizes that are not positive, or a model that is no module or
            on the meta device.
        SpecError: for a tensor without entries or on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedNetwork(f"the network is {model!r:.80}; expected a torch.nn.Module.")
    like = next(model.parameters(), None)
    _check_numbers(model, example_input)
    device = like.device if like is not None else torch.device("cpu")
    dtype = like.dtype if like is not None and like.is_floating_point() else torch.get_default_dtype()
    if isinstance(example_input, Tensor):
        return (example_input.detach().to(device),)
    if isinstance(example_input, Sequence) and not isinstance(example_input, str) and len(example_input) > 0:
        tensors = tuple(item.detach().to(device) for item in example_input if isinstance(item, Tensor))
        if len(tensors) == len(example_input):
            return tensors
        if all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in example_input):
            shape = (2, *(int(item) for item in example_input))
            return (torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype),)
    raise UnsupportedNetwork(
        f"example_input is {example_input!r:.80}; expected a tensor, a tuple of tensors, or a shape of positive "
        "integers without the batch axis such as (3, 32, 32)."
    )


def _check_numbers(model: nn.Module, example_input: Any) -> None:
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UnsupportedNetwork(
            f"{type(model).__name__} is on the meta device, where tensors have no values; move it to another with "
            "model.to_empty(device=...) and load its weights first."
        )
    for tensor in example_input if isinstance(example_input, tuple | list) else (example_input,):
        if isinstance(tensor, Tensor) and (tensor.is_meta or tensor.numel() == 0):
            what = "on the meta device, without values" if tensor.is_meta else "empty"
            raise SpecError(
                f"example_input is {what} (shape {tuple(tensor.shape)}); expected a batch of at least one example."
            )


class _NotTraceable(Exception):
    """What the network did that a graph cannot express; `trace` adds where and a way out."""


class ValueProxy(Proxy):
    """A symbol of the graph together with the value that it has on the example input."""

    value: Any = None  # set as soon as the call is recorded

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.value, name)  # an AttributeError of the network's own passes through as it is
        if callable(attribute):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", builtins.getattr, (self, name), {})

    def __len__(self) -> int:
        if isinstance(self.value, Tensor):
            raise _NotTraceable("takes len() of a tensor, which would fix the batch size")
        return len(self.value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __float__(self) -> float:
        raise _NotTraceable("turns a value into a Python number")

    __int__ = __float__


class _ValueTracer(Tracer):
    def __init__(self, values: tuple[Tensor, ...]):
        super().__init__()
        self._inputs = iter(values)
        self._count = len(values)
        self.looking = False  # True while a value is computed: nothing is recorded then
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _LOOK_INTO):
            return False
        return m.__module__.startswith("torch.nn") or bool(getattr(m, "is_traced_whole", isinstance(m, tuple(_RULED))))

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        code = root_fn.__code__
        names = [*code.co_varnames[1 : code.co_argcount]]
        needed = len(names) - len(root_fn.__defaults__ or ())
        if len(names) < self._count and code.co_flags & inspect.CO_VARARGS:
            names += [f"input_{i}" for i in range(len(names), self._count)]
        if not needed <= self._count <= len(names):
            takes = f"{needed}" if needed == len(names) else f"{needed} to {len(names)}"
            raise UnsupportedNetwork(
                f"{type(self.root).__name__} takes {takes} inputs, and example_input has {self._count}; pass a tuple "
                "with one tensor for each."
            )
        return root_fn, [
            self.root,
            *(self.create_proxy("placeholder", name, (), {}) for name in names[: self._count]),
        ]

    def proxy(self, node: Node) -> Proxy:
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *more, **named)
        self.looking = True
        try:
            proxy.value = self._evaluate(kind, target, _values(args), _values(kwargs))
        finally:
            self.looking = False
        proxy.node.meta["scope"] = self.scope.module_path
        if isinstance(proxy.value, Tensor):
            proxy.node.meta["shape"] = tuple(proxy.value.shape)
        proxy.node.meta["type"] = type(proxy.value)
        return proxy

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return next(self._inputs)
        if kind == "get_attr":
            return _attribute(self.root, target)
        if kind == "call_module":
            # The control flow is that of training, the numbers those of evaluation: a batch norm would otherwise
            # change its statistics and fail on a batch of one, and a dropout would draw random numbers.
            module = self.root.get_submodule(target)
            modes = [(m, m.training) for m in module.modules()]
            module.eval()
            ruled = isinstance(module, tuple(_RULED)) and not hasattr(module, "is_traced_whole")
            looking = _RefusesRelu(target, type(module).__name__) if ruled else contextlib.nullcontext()
            try:
                with looking:
                    return module(*args, **kwargs)
            finally:
                for m, mode in modes:
                    m.training = mode
        if target is F.batch_norm:  # likewise
            call = inspect.signature(target).bind(*args, **kwargs)
            call.arguments["training"] = call.arguments.get("running_mean") is None
            return target(*call.args, **call.kwargs)
        function = getattr(args[0], target) if kind == "call_method" else target
        return function(*(args[1:] if kind == "call_method" else args), **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.looking:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)  # the innermost module comes first
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.looking else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: Any) -> bool:
        if isinstance(obj.value, Tensor):
            raise _NotTraceable("decides by the numbers in a tensor, so another input may take another branch")
        return bool(obj.value)

    def iter(self, obj: Any) -> Iterator[Any]:
        value = obj.value
        if isinstance(value, Tensor):
            raise _NotTraceable("loops over a tensor, which would fix its size")
        return iter([obj[i] for i in range(len(value))])

    def keys(self, obj: Any) -> Any:
        return obj.value.keys()


def _values(structure: Any) -> Any:
    return map_aggregate(structure, lambda item: item.value if isinstance(item, ValueProxy) else item)


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root


# Functions that make a tensor and do not notice that a size, a device or a fill value is a symbol.
_FACTORIES = (
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"),
    *("tensor", "zeros"),
)


@contextlib.contextmanager
def _factories_recorded(tracer: _ValueTracer) -> Iterator[None]:
    """Let torch's factories record their calls as all other operations do by themselves."""

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if tracer.looking or not any(isinstance(leaf, ValueProxy) for leaf in tree_leaves((args, kwargs))):
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return call

    originals = {name: getattr(torch, name) for name in _FACTORIES}
    for name, function in originals.items():
        setattr(torch, name, recording(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, and the global random state restored on exit."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


@dataclass(frozen=True)
class Trace:
    """A recorded network.

    Attributes:
        root: an untouched deep copy of the model, which holds whatever the graphs refer to.
        graphs: one graph, or, for a network that does different things in training and evaluation (auxiliary heads,
            say), one for each: (training, evaluation). Each node carries `meta["scope"]` (path of the module whose code
            made the call), `meta["type"]` and, for tensors, `meta["shape"]`.
    """

    root: nn.Module
    graphs: tuple[Graph, ...]

    def network(self, name: str) -> GraphModule | ByMode:
        """The network that runs the graphs on the modules of the root."""
        for graph in self.graphs:
            graph.lint()
        made = tuple(GraphModule(self.root, graph, class_name=name) for graph in self.graphs)
        return made[0] if len(made) == 1 else ByMode(*made)


class ByMode(nn.Module):
    """A network that runs one recorded graph in training and another in evaluation, on the same modules.

    Modules, parameters and buffers carry the names that they have in the model.
    """

    def __init__(self, training: GraphModule, evaluation: GraphModule) -> None:
        super().__init__()
        for graph in (evaluation, training):
            for path, module in graph.named_children():
                self.add_module(path, _united(self._modules.get(path), module))
            self._parameters |= graph._parameters
            self._buffers |= graph._buffers
        # Not registered: both run on the very dictionaries of this module, so that nothing is listed or moved twice.
        self.__dict__["graphs"] = (training, evaluation)
        for graph in (training, evaluation):
            graph._modules, graph._parameters, graph._buffers = self._modules, self._parameters, self._buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of the present mode."""
        graph = self.__dict__["graphs"][0 if self.training else 1]
        graph.training = self.training
        return graph(*args, **kwargs)


def _united(first: nn.Module | None, second: nn.Module) -> nn.Module:
    """Two containers of the same place, either of which may lack children that the other has."""
    if first is None or first is second:
        return second
    for name, child in second.named_children():
        first.add_module(name, _united(first._modules.get(name), child))
    first._parameters |= second._parameters
    first._buffers |= second._buffers
    return first


def graph_of(net: nn.Module) -> GraphModule | None:
    """The recorded network that `net` is or, by mode, that it runs in evaluation; None if it is not recorded."""
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    if isinstance(net, ByMode):
        return net.__dict__["graphs"][1]
    return net if isinstance(net, GraphModule) else None


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """Record a forward pass of a copy of `model`, once with the control flow of training, once of evaluation.

    Where the two differ in nothing but `self.training` handed to an operation (a functional dropout, say), they become
    one graph that reads the mode when it runs.

    Raises:
        UnsupportedNetwork: if the network fails on the example, or does something that a graph cannot express; the
            message names module, line and a way out.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedNetwork("the network is a TorchScript module, which hides its call sites; pass the original.")
    pristine = _copied(model)
    graphs = []
    for training in (True, False):
        scratch = _copied(model)
        for module in scratch.modules():
            module.training = training
        tracer = _ValueTracer(tuple(x.clone() for x in inputs))
        with undisturbed(inputs[0].device), _factories_recorded(tracer):
            try:
                graph = tracer.trace(scratch)
            except UnsupportedNetwork:
                raise
            except Exception as error:
                raise UnsupportedNetwork(_explain(tracer, error, model, inputs)) from error
        for node in graph.find_nodes(op="get_attr"):
            if "." not in node.target and not hasattr(pristine, node.target):  # a constant that tracing lifted out
                setattr(pristine, node.target, getattr(scratch, node.target))
        graphs.append(graph)
    merged = _merged(*graphs)
    return Trace(pristine, tuple(graphs) if merged is None else (merged,))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedNetwork(
            f"the network cannot be copied (copy.deepcopy: {error}); it must be, to be left alone."
        ) from error


def _merged(training: Graph, evaluation: Graph) -> Graph | None:
    """One graph for both modes, or None if they differ in more than values of `self.training`."""
    twins = list(zip(training.nodes, evaluation.nodes, strict=False))
    if len(training.nodes) != len(evaluation.nodes):
        return None
    twin = {a: b for a, b in twins}
    by_mode: list[tuple[Node, int | str]] = []
    for a, b in twins:
        if (a.op, a.target) != (b.op, b.target) or a.kwargs.keys() != b.kwargs.keys() or len(a.args) != len(b.args):
            return None
        for place, ours, theirs in [
            *((i, x, y) for i, (x, y) in enumerate(zip(a.args, b.args, strict=True))),
            *((key, a.kwargs[key], b.kwargs[key]) for key in a.kwargs),
        ]:
            if ours is True and theirs is False:
                by_mode.append((a, place))
            elif map_aggregate(ours, lambda x: twin.get(x, x) if isinstance(x, Node) else x) != theirs:
                return None
    if by_mode:
        first = next(node for node in training.nodes if node.op != "placeholder")
        with training.inserting_before(first):
            mode = training.create_node("get_attr", "training")
        mode.meta = {"scope": "", "type": bool}
        for node, place in by_mode:
            if isinstance(place, int):
                node.update_arg(place, mode)
            else:
                node.update_kwarg(place, mode)
    return training


_KEPT_WHOLE = "give the module that does it, if no ReLU is in there, an attribute is_traced_whole = True"


def _explain(tracer: _ValueTracer, error: Exception, model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """One sentence: in which module and line the trace stopped, why, and what to do."""
    module = f"module {tracer.failed_in!r}" if tracer.failed_in else "the network itself"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "/torch/" not in frame.filename and "<eval_with_key>" not in frame.filename
    ]
    line = f", {frames[-1].filename.rsplit('/', 1)[-1]} line {frames[-1].lineno} ({frames[-1].line})" if frames else ""
    place, found = f"in {module}{line}", f"{type(error).__name__}: {error}".rstrip(". ")
    if isinstance(error, _NotTraceable):
        return (
            f"{place}: the forward pass {error}; keep such a decision out of the network, linearize the parts before "
            f"and after it separately, or {_KEPT_WHOLE}."
        )
    if _runs(model, inputs):
        return (
            f"{place}: the forward pass runs by itself, but this call cannot be recorded ({found}); linearize the "
            f"parts around it separately, or {_KEPT_WHOLE}."
        )
    given = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in inputs)
    like = next(model.parameters(), None)
    made = "" if like is None else f"; its parameters are {like.dtype} on {like.device}"
    return (
        f"{type(model).__name__} fails on the example ({given}) by itself, {place}: {found}; pass an input of the "
        f"shape and type that it is made for{made}."
    )


def _runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a copy of the network, in evaluation, takes the example."""
    with undisturbed(inputs[0].device):
        try:
            copy.deepcopy(model).eval()(*(x.clone() for x in inputs))
        except Exception:
            return False
    return True
