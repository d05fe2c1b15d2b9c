"""The paper's algorithm for path lengths (§3.1, "Implementation details"), as PAPER's forward form makes it precise.

One modified forward pass of a CIFAR ResNet in float64: weights 1, biases 0, batch norms ignored, constant input, and
the batch axis holds the histogram. An active unit shifts its channel's histogram by one. For the NAPL the histograms
are normalised per neuron before and after every addition. Slow on purpose, and the baseline of the benchmark.
"""

import torch
from torch.nn import functional as F


def _ones(convolution, histogram):
    weight = torch.ones(convolution.weight.shape, dtype=torch.float64)
    return F.conv2d(
        histogram, weight, stride=convolution.stride, padding=convolution.padding, groups=convolution.groups
    )


def _bend(unit, histogram):
    active = unit.active.double().view(1, -1, 1, 1)
    shifted = torch.cat([torch.zeros_like(histogram[:1]), histogram[:-1]])
    return active * shifted + (1 - active) * histogram


def _unit_mass(histogram):
    mass = histogram.sum(0, keepdim=True)
    return torch.where(mass > 0, histogram / mass.clamp_min(1e-300), 0.0)


@torch.no_grad()
def histogram(net, blocks, version, height=32, width=32, normalized=True, residual=True):
    """Distribution of path lengths of a linearized `nladv_core.nets.ResNet`: float64 [groups + 1]."""
    groups = sum(1 for module in net.modules() if type(module).__name__ == "ChannelPReLU")
    h = torch.zeros(groups + 1, 3, height, width, dtype=torch.float64)
    h[0] = 1.0

    def rescale(h):
        return _unit_mass(h) if normalized else h / h.max()

    def shortcut(block, x):
        if hasattr(block, "shortcut") and hasattr(block.shortcut, "weight"):
            return _ones(block.shortcut, x)
        if hasattr(block, "shortcut") and any(hasattr(part, "weight") for part in block.shortcut.children()):
            return _ones(getattr(block.shortcut, "0"), x)
        stride = block.conv1.stride[0]
        extra = block.conv1.out_channels - block.conv1.in_channels
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra // 2, extra - extra // 2))

    def add(a, b):
        """Sum of two histograms; unnormalised counts share one scale, carried by the caller."""
        return _unit_mass(_unit_mass(a) + _unit_mass(b)) if normalized else a + b

    h = _ones(net.conv1, h)
    if version == 1:
        h = _bend(net.relu1, h)
    h = rescale(h)
    for stage in (1, 2, 3):
        for index in range(blocks):
            block = getattr(getattr(net, f"layer{stage}"), str(index))
            branch = h
            if version == 2:
                branch = _ones(block.conv2, _bend(block.relu2, _ones(block.conv1, _bend(block.relu1, branch))))
            else:
                branch = _ones(block.conv2, _bend(block.relu1, _ones(block.conv1, branch)))
            h = add(branch, shortcut(block, h)) if residual else branch
            if version == 1:
                h = _bend(block.relu2, h)
            h = rescale(h)
    if version == 2:
        h = _bend(net.relu, h)
    total = h.sum((1, 2, 3))  # pooling and the last layer read every neuron alike
    return total / total.sum()
