"""Slow, obvious oracle for path lengths: every neuron is a node, every path is walked. Shares no code with nladv_core.

A network is a list of layers, each a tuple `(kind, *settings)` that may refer to earlier layers by position. `Net`
runs the list with torch modules; `every_path` walks it neuron by neuron with plain Python loops.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """The listed network as torch runs it. Layer 0 is the input."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.parts = nn.ModuleDict()
        shapes = shapes_of(layers)
        for i, (kind, *s) in enumerate(layers):
            if kind == "conv":
                source, out, kernel, stride, padding, dilation, groups = s
                made = nn.Conv2d(shapes[source][0], out, kernel, stride, padding, dilation, groups)
            elif kind == "linear":
                made = nn.Linear(shapes[s[0]][-1], s[1])
            elif kind == "relu":
                made = nn.ReLU()
            elif kind == "norm":
                made = nn.BatchNorm2d(shapes[s[0]][0])
            elif kind == "max":
                made = nn.MaxPool2d(*s[1:])
            elif kind == "avg":
                made = nn.AvgPool2d(*s[1:])
            elif kind in COUNTED and COUNTED[kind].module is not None:
                made = COUNTED[kind].module(shapes[s[0]])
            else:
                continue
            self.parts[str(i)] = made

    def forward(self, x):
        values = []
        for i, (kind, *s) in enumerate(self.layers):
            if kind == "input":
                value = x
            elif str(i) in self.parts:
                value = self.parts[str(i)](values[s[0]])
            elif kind == "add":
                value = values[s[0]] + values[s[1]]
            elif kind == "cat":
                value = torch.cat([values[s[0]], values[s[1]]], 1)
            elif kind == "pad":
                value = F.pad(values[s[0]], (0, 0, 0, 0, s[1], s[2]))
            elif kind == "thin":
                value = values[s[0]][:, :, :: s[1], :: s[1]]
            elif kind == "channels":
                value = values[s[0]][:, s[1] : s[2]]
            elif kind == "mean":
                value = values[s[0]].mean((2, 3))
            elif kind == "flatten":
                value = torch.flatten(values[s[0]], 1)
            else:
                value = COUNTED[kind].call(values[s[0]])
            values.append(value)
        return values[-1]


class Counted(NamedTuple):
    """An operation whose edges are read off a derivative: `count` is the operation with every weight 1, [1, …] -> [1,
    …].
    """

    module: Callable | None  # shape -> module, or None
    call: Callable  # what the network does without a module
    count: Callable
    fits: Callable = lambda shape: True


def _ones(*shape):
    return torch.ones(shape, dtype=torch.float64)


def _gate(x):
    """A constant that lets every other channel pass."""
    return (torch.arange(x.shape[1]) % 2 == 0).to(x.dtype).view(1, -1, 1, 1)


def _same(x):
    return x


COUNTED = {
    "transposed": Counted(
        lambda shape: nn.ConvTranspose2d(shape[0], 2, 2, stride=2, padding=1, output_padding=1),
        _same,
        lambda x: F.conv_transpose2d(x, _ones(x.shape[1], 2, 2, 2), stride=2, padding=1, output_padding=1),
        lambda shape: max(shape) <= 4,
    ),
    "dilated transposed": Counted(
        lambda shape: nn.ConvTranspose2d(shape[0], shape[0], 2, groups=shape[0], dilation=2),
        _same,
        lambda x: F.conv_transpose2d(x, _ones(x.shape[1], 1, 2, 2), groups=x.shape[1], dilation=2),
        lambda shape: max(shape) <= 4,
    ),
    "circular": Counted(
        lambda shape: nn.Conv2d(shape[0], 2, 3, padding=1, padding_mode="circular"),
        _same,
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), _ones(2, x.shape[1], 3, 3)),
    ),
    "reflect": Counted(
        None,
        lambda x: F.pad(x, (1, 0, 0, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 0, 0, 1), mode="reflect"),
        lambda shape: min(shape[1:]) >= 2 and max(shape) <= 4,
    ),
    "replicate": Counted(
        lambda shape: nn.ReplicationPad2d(1),
        _same,
        lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
        lambda s: max(s) <= 3,
    ),
    "zeros around": Counted(
        None, lambda x: F.pad(x, (1, 1, 0, 1)), lambda x: F.pad(x, (1, 1, 0, 1)), lambda shape: max(shape) <= 4
    ),
    "shuffle": Counted(
        None,
        lambda x: x.view(x.size(0), 2, x.size(1) // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
        lambda x: x.view(1, 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
        lambda shape: shape[0] % 2 == 0,
    ),
    "pixels": Counted(
        lambda shape: nn.PixelShuffle(2),
        _same,
        lambda x: F.pixel_shuffle(x, 2),
        lambda s: s[0] % 4 == 0 and max(s[1:]) <= 3,
    ),
    "nearest": Counted(
        lambda shape: nn.Upsample(scale_factor=2),
        _same,
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda shape: max(shape) <= 3,
    ),
    "bilinear": Counted(
        None,
        lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", align_corners=False),
        lambda x: (F.interpolate(x, size=(3, 4), mode="bilinear", align_corners=False), "nonzero"),
    ),
    "adaptive": Counted(
        lambda shape: nn.AdaptiveAvgPool2d((2, 1)), _same, lambda x: (F.adaptive_avg_pool2d(x, (2, 1)), "nonzero")
    ),
    "adaptive max": Counted(
        lambda shape: nn.AdaptiveMaxPool2d((1, 2)), _same, lambda x: (F.adaptive_avg_pool2d(x, (1, 2)), "nonzero")
    ),
    "ceil": Counted(
        lambda shape: nn.MaxPool2d(2, 2, ceil_mode=True),
        _same,
        lambda x: (F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False), "nonzero"),
        lambda shape: min(shape[1:]) >= 2,
    ),
    "turned": Counted(None, lambda x: x.permute(0, 1, 3, 2), lambda x: x.permute(0, 1, 3, 2)),
    "flipped": Counted(None, lambda x: torch.flip(x, (1, 2)), lambda x: torch.flip(x, (1, 2))),
    "half": Counted(None, lambda x: x.chunk(2, dim=1)[1], lambda x: x.chunk(2, dim=1)[1], lambda shape: shape[0] >= 2),
    "rows": Counted(
        None,
        lambda x: torch.cat([x, x[:, :, 1:]], 2),
        lambda x: torch.cat([x, x[:, :, 1:]], 2),
        lambda s: 2 <= s[1] <= 3,
    ),
    "gated": Counted(None, lambda x: x * _gate(x), lambda x: x * _gate(x)),
    "halved": Counted(None, lambda x: (x - 0.3) / 2 * 0.7, lambda x: x),
    "group norm": Counted(lambda shape: nn.GroupNorm(1, shape[0]), _same, _same),
    "last": Counted(lambda shape: nn.Linear(shape[2], 2), _same, lambda x: x @ _ones(x.shape[3], 2)),
}


@functools.cache
def _edges(kind, shape):
    """[out neurons, in neurons] number of edges, from the derivative of the counting form, and the output's shape."""
    x = torch.zeros(1, *shape, dtype=torch.float64)

    def count(x):
        made = COUNTED[kind].count(x)
        return made[0] if isinstance(made, tuple) else made

    out = count(x)
    matrix = torch.autograd.functional.jacobian(count, x).reshape(out.numel(), -1)
    if isinstance(COUNTED[kind].count(x), tuple):  # an average: what counts is that it is read
        matrix = (matrix > 0).double()
    return matrix.round().long().tolist(), tuple(out.shape[1:])


def _out(size, kernel, stride, padding, dilation=1):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def shapes_of(layers):
    """Shape of every layer without the batch axis, or None where a window does not fit."""
    shapes = []
    for kind, *s in layers:
        if kind == "input":
            shapes.append(tuple(s))
            continue
        c, *rest = shapes[s[0]]
        if kind == "conv":
            _, out, kernel, stride, padding, dilation, _ = s
            shape = (out, *(_out(n, kernel, stride, padding, dilation) for n in rest))
        elif kind in ("max", "avg"):
            shape = (c, *(_out(n, *s[1:]) for n in rest))
        elif kind == "linear":
            shape = (*shapes[s[0]][:-1], s[1])
        elif kind == "cat":
            shape = (c + shapes[s[1]][0], *rest)
        elif kind == "pad":
            shape = (c + s[1] + s[2], *rest)
        elif kind == "thin":
            shape = (c, *(-(-n // s[1]) for n in rest))
        elif kind == "channels":
            shape = (s[2] - s[1], *rest)
        elif kind == "mean":
            shape = (c,)
        elif kind == "flatten":
            shape = (c * rest[0] * rest[1],)
        elif kind in COUNTED:
            shape = _edges(kind, shapes[s[0]])[1]
        else:
            shape = shapes[s[0]]
        shapes.append(shape)
    return shapes


def incoming(layers, shapes, i, neuron):
    """The neurons (layer, index) with an edge to `neuron` of layer i, one entry per edge."""
    kind, *s = layers[i]
    source = s[0]
    if kind in ("relu", "norm"):
        return [(source, neuron)]
    if kind == "add":
        return [(s[0], neuron), (s[1], neuron)]
    if kind == "linear":
        return [(source, (*neuron[:-1], j)) for j in range(shapes[source][-1])]
    if kind == "flatten":
        _, h, w = shapes[source]
        return [(source, (neuron[0] // (h * w), neuron[0] // w % h, neuron[0] % w))]
    if kind in COUNTED:
        matrix, out = _edges(kind, shapes[source])
        places = list(itertools.product(*map(range, shapes[source])))
        row = matrix[list(itertools.product(*map(range, out))).index(neuron)]
        return [(source, place) for place, times in zip(places, row, strict=True) for _ in range(times)]
    c, *position = neuron
    if kind == "cat":
        first = shapes[s[0]][0]
        return [(s[0], neuron)] if c < first else [(s[1], (c - first, *position))]
    if kind == "pad":
        return [(source, (c - s[1], *position))] if s[1] <= c < s[1] + shapes[source][0] else []
    if kind == "thin":
        return [(source, (c, position[0] * s[1], position[1] * s[1]))]
    if kind == "channels":
        return [(source, (c + s[1], *position))]
    planes, h, w = shapes[source]
    if kind == "mean":
        return [(source, (c, y, x)) for y in range(h) for x in range(w)]
    if kind == "conv":
        _, out, kernel, stride, padding, dilation, groups = s
        per_group = planes // groups
        start = c // (out // groups) * per_group
        read = range(start, start + per_group)
    else:
        kernel, stride, padding, dilation = *s[1:], 1
        read = [c]
    edges = []
    for dy, dx in itertools.product(range(kernel), repeat=2):
        y, x = (p * stride - padding + d * dilation for p, d in zip(position, (dy, dx), strict=True))
        if 0 <= y < h and 0 <= x < w:
            edges += [(source, (k, y, x)) for k in read]
    return edges


def every_path(layers, active, limit=200_000):
    """Walk every path from the outputs back to the inputs.

    Args:
        active: `active(i, neuron)` says whether a neuron of the "relu" layer i is active.

    Returns:
        (Counter of lengths over all paths, dict of length -> probability of the backward walk), or None if there are
        more than `limit` paths.
    """
    shapes = shapes_of(layers)
    carries = {}

    def carrying(i, neuron):
        if layers[i][0] == "input":
            return True
        if (i, neuron) not in carries:
            carries[i, neuron] = any([carrying(*edge) for edge in incoming(layers, shapes, i, neuron)])
        return carries[i, neuron]

    last = len(layers) - 1
    ends = [n for n in itertools.product(*map(range, shapes[last])) if carrying(last, n)]
    counted, walked, total = Counter(), Counter(), 0
    stack = [(last, end, 0, 1 / len(ends)) for end in ends]
    while stack:
        i, neuron, length, probability = stack.pop()
        if layers[i][0] == "input":
            counted[length] += 1
            walked[length] += probability
            total += 1
            if total > limit:
                return None
            continue
        if layers[i][0] == "relu":
            length += bool(active(i, neuron))
        edges = [edge for edge in incoming(layers, shapes, i, neuron) if carrying(*edge)]
        stack += [(*edge, length, probability / len(edges)) for edge in edges]
    return counted, walked


def random_layers(rng, depth):
    """A random network of about `depth` layers on tiny images; `rng` is a random.Random."""
    layers = [("input", rng.choice([1, 2, 3]), rng.choice([2, 3, 4]), rng.choice([2, 3]))]
    for _ in range(depth):
        shapes = shapes_of(layers)
        source = len(layers) - 1 if rng.random() < 0.8 else rng.randrange(len(layers))
        c = shapes[source][0]
        same = [i for i, shape in enumerate(shapes) if shape == shapes[source]]
        alike = [i for i, shape in enumerate(shapes) if shape[1:] == shapes[source][1:] and shape[0] + c <= 6]
        kernel = rng.choice([1, 2, 3])
        groups = rng.choice([g for g in (1, 2, 3) if c % g == 0])
        choices = [
            (
                "conv",
                source,
                groups * rng.choice([1, 2]),
                kernel,
                rng.choice([1, 1, 2]),
                rng.choice([0, 1, 1]),
                rng.choice([1, 1, 2]),
                groups,
            ),
            ("relu", source),
            ("relu", source),
            ("norm", source),
            ("add", source, rng.choice(same)),
            ("add", source, rng.choice(same)),
            ("pad", source, rng.choice([0, 1]), rng.choice([0, 1, 2])),
            ("thin", source, 2),
            ("max", source, 2, rng.choice([1, 2]), rng.choice([0, 1])),
            ("avg", source, kernel, rng.choice([1, 2]), rng.choice([0, kernel // 2])),
        ]
        if alike:
            choices.append(("cat", source, rng.choice(alike)))
        fitting = [kind for kind, made in COUNTED.items() if made.fits(shapes[source])]
        choices += [(kind, source) for kind in rng.sample(fitting, min(8, len(fitting)))]
        if c > 1:
            choices.append(("channels", source, rng.choice([0, 1]), c))
        layer = rng.choice(choices)
        if layer[0] == "pad" and c + layer[2] + layer[3] > 6:
            continue
        if layer[0] != "input" and min(shapes_of([*layers, layer])[-1]) >= 1:
            layers.append(layer)
    if not any(kind == "relu" for kind, *_ in layers):
        layers.append(("relu", len(layers) - 1))
    layers.append(rng.choice([("mean", len(layers) - 1), ("flatten", len(layers) - 1)]))
    layers.append(("linear", len(layers) - 1, rng.choice([1, 2, 3])))
    return layers
