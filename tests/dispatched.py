"""ReLU calls and path lengths as torch's dispatcher sees them. Shares no code with nladv_core and records no graph.

Every operation, however it is written in Python, passes the dispatcher as one of torch's own. `ReluCalls` lists the
ReLUs among them. `Walk` carries, beside each tensor, the number of paths that end at each of its entries and their
total length, in float64 and entry by entry, and knows for each operation which entries read which. Networks on the meta
device do: nothing here reads a value.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class ReluCalls(TorchDispatchMode):
    """Shapes of the inputs of all ReLU calls, in order."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.relu.default, aten.relu_.default):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


class Ending(NamedTuple):
    """Paths that end at each entry of a tensor: their number and total length, both times exp(scale)."""

    paths: Tensor
    length: Tensor
    scale: float = 0.0

    def each(self, function):
        """The same done to both."""
        return Ending(function(self.paths), function(self.length), self.scale)


# One output of these reads one entry of the first input, wherever that lies: done to the counts as to the tensor.
_COPIES = {
    *(aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int, aten.permute.default),
    *(aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.clone.default),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.constant_pad_nd.default),
    *(aten.reflection_pad2d.default, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten.alias.default),
    *(aten.detach.default, aten.unbind.int, aten._reshape_alias.default, aten.squeeze.dims),
}
# Entry by entry, the first result.
_SAMES = {aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default, aten.div.Tensor}


class Walk(TorchDispatchMode):
    """Mean path length of whatever runs inside, for inputs given to `start`.

    Args:
        active: for each ReLU call in order, float64 [C] (axis 1), or None if all are active.
        normalized: NAPL, else APL.
    """

    def __init__(self, active=None, normalized=True):
        super().__init__()
        self.active, self.normalized, self.calls = active, normalized, 0

    def start(self, x):
        """Let one path of length 0 begin at every entry of `x`."""
        x.ending = Ending(torch.ones(x.shape, dtype=torch.float64), torch.zeros(x.shape, dtype=torch.float64))
        return x

    def mean(self, output):
        """Mean length of the paths that end at the entries of `output`."""
        paths, length, _ = output.ending
        return float(length.sum() / paths.sum())

    def merged(self, ending):
        """What has been added up over edges: a mean length per entry (NAPL), or counts that do not overflow."""
        paths, length, scale = ending
        if self.normalized:
            return Ending((paths > 0).double(), length / paths.clamp_min(1e-300))
        largest = float(paths.max())
        return Ending(paths / largest, length / largest, scale + math.log(largest))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        walked = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and hasattr(x, "ending")]
        if not walked or not any(isinstance(x, Tensor) for x in tree_leaves(result)):
            return result
        ending = self.follow(func, args, kwargs)
        outputs = result if isinstance(ending, list) else [result if isinstance(result, Tensor) else result[0]]
        for output, told in zip(outputs, ending if isinstance(ending, list) else [ending], strict=True):
            assert told.paths.shape == output.shape, (func, told.paths.shape, output.shape)
            output.ending = told
        return result

    def follow(self, func, args, kwargs):
        """How paths pass one operation."""
        x = args[0]
        ending = getattr(x, "ending", None)
        if func in _COPIES:
            made = [func(counts, *args[1:], **kwargs) for counts in ending[:2]]
            if isinstance(made[0], Tensor):
                return Ending(*made, ending.scale)
            return [Ending(paths, length, ending.scale) for paths, length in zip(*made, strict=True)]
        if func in _SAMES:
            return ending
        if func in (aten.relu.default, aten.relu_.default):
            bends = torch.ones(x.shape[1]).double() if self.active is None else self.active[self.calls]
            self.calls += 1
            bends = bends.view([-1 if axis == 1 else 1 for axis in range(x.ndim)])
            return Ending(ending.paths, ending.length + bends * ending.paths, ending.scale)
        if func in (aten.add.Tensor, aten.add_.Tensor, aten.cat.default, aten.sub.Tensor):
            return self.joined(func, args)
        if func in (aten.mul.Tensor, aten.mul_.Tensor):
            x, other = args if hasattr(args[0], "ending") else args[::-1]
            assert not hasattr(other, "ending"), "a gate"
            return x.ending
        if func in (aten.addmm.default, aten.mm.default):
            x, weight = args[-2:]
            assert not hasattr(weight, "ending"), "a product of two tensors that depend on the input"
            return self.merged(x.ending.each(lambda counts: counts.sum(1, keepdim=True).expand(-1, weight.shape[1])))
        return self.merged(ending.each(lambda counts: summed(func, counts, args)))

    def joined(self, func, args):
        """Additions and concatenations: each result reads every operand that has paths there."""
        operands = args[0] if func is aten.cat.default else args[:2]
        tensors = [x for x in operands if isinstance(x, Tensor)]
        top = max(x.ending.scale for x in tensors if hasattr(x, "ending"))

        def counts(x, which):
            if not hasattr(x, "ending"):
                return torch.zeros(x.shape, dtype=torch.float64)
            return x.ending[which] * math.exp(x.ending.scale - top)

        if func is aten.cat.default:
            return self.merged(
                Ending(*(torch.cat([counts(x, which) for x in tensors], *args[1:]) for which in (0, 1)), top)
            )
        return self.merged(Ending(*(sum(counts(x, which) for x in tensors) for which in (0, 1)), top))


def summed(func, counts, args):
    """Sum of `counts` over the window that each output reads."""
    if func is aten.convolution.default:
        _, weight, _, stride, padding, dilation, transposed, _, groups = args
        assert not transposed
        planes = counts.unflatten(1, (groups, -1)).sum(2).flatten(0, 1).unsqueeze(1)
        box = torch.ones(1, 1, *weight.shape[2:], dtype=torch.float64)
        planes = F.conv2d(planes, box, None, stride, padding, dilation).squeeze(1).unflatten(0, (-1, groups))
        return planes.repeat_interleave(weight.shape[0] // groups, 1)
    if func in (aten.max_pool2d_with_indices.default, aten.avg_pool2d.default):
        kernel, stride, padding, *more = [*args[1:], *([], 0)[len(args) - 2 :]]
        if func is aten.max_pool2d_with_indices.default and more:
            dilation, *more = more
            assert dilation in (1, [1, 1])
        return F.avg_pool2d(counts, kernel, stride or kernel, padding, bool(more and more[0]), divisor_override=1)
    if func is aten.mean.dim:
        return counts.sum(args[1], keepdim=len(args) > 2 and args[2])
    if func is aten._adaptive_avg_pool2d.default:
        for axis, outputs in zip((2, 3), args[1], strict=True):
            size = counts.shape[axis]
            bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
            counts = torch.stack([counts.narrow(axis, a, b - a).sum(axis) for a, b in bounds], axis)
        return counts
    raise NotImplementedError(str(func))
