"""The paper's algorithm for path lengths (§3.1, "Implementation details"), as PAPER's forward form makes it precise.

One modified forward pass through the recorded network in float64: weights 1, biases 0, normalisation ignored, constant
input, and the batch axis holds the histogram: row l of a tensor counts the paths of length l that end at each neuron.
An active unit shifts its channel's histogram by one row. Pooling counts one edge per window element. For the NAPL the
histograms are normalised per neuron before and after every merge (additions and concatenations). For the APL each
tensor carries one logarithmic scale, as numbers of paths overflow.

It walks the recorded graph and calls torch's own operations on full feature maps; what it does not know it refuses.
Slow on purpose, and the baseline of the benchmark.
"""

import math
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 1e100  # entries are brought back to at most 1 beyond this; float64 ends at 1e308


class Histograms(NamedTuple):
    """Rows of path counts [lengths, *shape], to be multiplied by exp(log_scale); no entry exceeds `bound`."""

    rows: Tensor
    log_scale: float = 0.0
    bound: float = 1.0


def _summed(h: Histograms, rows: Tensor, edges: int) -> Histograms:
    """`rows` are sums over at most `edges` entries of `h`."""
    bound = h.bound * edges
    if bound < LARGEST:
        return Histograms(rows, h.log_scale, bound)
    largest = float(rows.max())
    return Histograms(rows / largest, h.log_scale + math.log(largest), 1.0)


def _layer(module: nn.Conv2d | nn.Linear, h: Histograms) -> Histograms:
    weight = torch.ones(module.weight.shape, dtype=torch.float64)
    if isinstance(module, nn.Linear):
        return _summed(h, F.linear(h.rows, weight), weight[0].numel())
    assert module.padding_mode == "zeros"
    settings: Any = (module.stride, module.padding, module.dilation, module.groups)
    return _summed(h, F.conv2d(h.rows, weight, None, *settings), weight[0].numel())


def _pool(h: Histograms, kernel, stride=None, padding=0, dilation=1, ceil_mode=False) -> Histograms:
    assert dilation == 1
    rows = F.avg_pool2d(h.rows, kernel, stride, padding, ceil_mode, divisor_override=1)
    return _summed(h, rows, kernel**2 if isinstance(kernel, int) else math.prod(kernel))


def _global_pool(h: Histograms, size) -> Histograms:
    assert size in (1, (1, 1))
    return _summed(h, h.rows.sum((2, 3), keepdim=True), h.rows[0, 0].numel())


def _bend(unit: Any, h: Histograms) -> Histograms:
    active = unit.active.double().view([-1 if axis == 1 else 1 for axis in range(h.rows.ndim)])
    shifted = torch.cat([torch.zeros_like(h.rows[:1]), h.rows[:-1]])
    return h._replace(rows=active * shifted + (1 - active) * h.rows)


def _unit_mass(h: Histograms) -> Histograms:
    """Each neuron's histogram divided by its number of paths; all zeros where there are none."""
    mass = h.rows.sum(0, keepdim=True)
    return Histograms(h.rows / torch.where(mass > 0, mass, 1.0))


def _merge(parts: list[Histograms], together, normalized: bool) -> Histograms:
    if normalized:
        return _unit_mass(Histograms(together([_unit_mass(part).rows for part in parts])))
    top = max(part.log_scale for part in parts)
    rows = [part.rows * math.exp(part.log_scale - top) for part in parts]
    return _summed(Histograms(rows[0], top, sum(part.bound for part in parts)), together(rows), 1)


@torch.no_grad()
def histogram(net, shape, normalized=True):
    """Distribution of path lengths of a linearized network on inputs of `shape` [C, H, W]: float64 [groups + 1]."""
    groups = sum(type(module).__name__ == "ChannelPReLU" for module in net.modules())
    found: dict = {}
    readers = {node: len(node.users) for node in net.graph.nodes}

    def called(node) -> Histograms:
        module = net.get_submodule(node.target) if node.op == "call_module" else None
        first = node.args[0]
        if node.target in (operator.add, operator.iadd):
            return _merge([found[operand] for operand in node.args], lambda rows: rows[0] + rows[1], normalized)
        if node.target is torch.cat:
            assert node.args[1:] == (1,)
            return _merge([found[operand] for operand in first], lambda rows: torch.cat(rows, 1), normalized)
        h = found[first]
        if isinstance(module, nn.Conv2d | nn.Linear):
            return _layer(module, h)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            m = module
            return _pool(h, m.kernel_size, m.stride, m.padding, getattr(m, "dilation", 1), m.ceil_mode)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return _global_pool(h, module.output_size)
        if node.target is F.adaptive_avg_pool2d:
            return _global_pool(h, node.args[1])
        if type(module).__name__ == "ChannelPReLU":
            return _bend(module, h)
        if isinstance(module, nn.BatchNorm2d | nn.Identity | nn.Dropout):
            return h
        if node.target in (operator.getitem, F.pad, torch.flatten):  # zeros and rearrangements, row by row
            return h._replace(rows=node.target(h.rows, *node.args[1:], **node.kwargs))
        raise NotImplementedError(f"{node.format_node()} ({type(module).__name__})")

    for node in net.graph.nodes:
        if node.op == "placeholder":
            rows = torch.zeros(groups + 1, *shape, dtype=torch.float64)
            rows[0] = 1
            found[node] = Histograms(rows)
        elif node.op == "output":
            h = found[node.args[0]]
            total = (_unit_mass(h) if normalized else h).rows.flatten(1).sum(1)
            return total / total.sum()
        else:
            found[node] = called(node)
        for read in node.all_input_nodes:
            readers[read] -= 1
            if not readers[read]:
                del found[read]
    raise AssertionError("the graph has no output")
