"""What every operation does to the paths through it: one table of modules, one of calls, and the arithmetic below them.

A rule says which neurons an operation's outputs read. It is asked once per call, with shapes; what it returns is a
*step* on a tape, and the tape can be run again and again: with one row of paths per length for histograms, or forwards
with numbers of paths and then backwards for the probability that a path visits a neuron. Steps only ever add up what
comes in over edges; `Run.merged` then divides by the number of paths where the walk of the NAPL asks for it.

A step may come with its *adjoint*, which distributes what its output neurons carry over the neurons that they read
(the transposed matrix of edges). A step without one is differentiated instead: as exact, at the cost of full maps.

Conventions (ours where the paper is silent): normalisation, dropout and products with weights are one edge; pooling
has one edge per window element that exists; interpolation one per element that is read; attention leads paths through
the values only, from every position that may be attended to (a mask of padding that the input itself decides hides
none: by its shape, a sequence has full length); constants, padding and `x * 0` carry none.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nladv_core.errors import SpecError, UnsupportedNetwork
from nladv_core.linearize import ChannelPReLU
from nladv_core.tracing import keep_whole

Gates = Literal["refuse", "signal"]


# ---------------------------------------------------------------------------------------------------------- arithmetic


class Value(NamedTuple):
    """Path counts that stand in for a tensor of shape S, float64, all to be multiplied by exp(log_scale).

    `parts` is (paths of each length [lengths, *S],), or (number of paths [1, *S], total length [1, *S]); along axes of
    S on which nothing varies a part has size 1, as for broadcasting. With `runs`, axis 1 of S (its channels) consists
    of runs of equal entries, of these lengths, and a part holds one entry for each: concatenation and padding make
    them, and spare a dense network's maps.
    """

    parts: tuple[Tensor, ...]
    log_scale: float = 0.0
    runs: tuple[int, ...] | None = None

    def whole(self) -> Value:
        """The same without runs."""
        if self.runs is None:
            return self
        repeats = torch.tensor(self.runs)
        return Value(tuple(part.repeat_interleave(repeats, 2) for part in self.parts), self.log_scale)


class Taps:
    """How often each output position of a window reads each input position, along one axis: float64 [out, in]."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix
        self.out, self.size = matrix.shape

    @cached_property
    def read(self) -> Tensor:
        """How many each output position reads, one entry if that is the same for all."""
        return _once(self.matrix.sum(1))

    @cached_property
    def reached(self) -> Tensor:
        """1 for each output position that reads any, else 0; likewise."""
        return _once((self.matrix.sum(1) > 0).double())

    @cached_property
    def all_reached(self) -> bool:
        """Whether every output position reads any."""
        return bool(self.reached.all())

    @cached_property
    def written(self) -> Tensor:
        """How often each input position is read; likewise."""
        return _once(self.matrix.sum(0))


def _once(x: Tensor) -> Tensor:
    return x[:1] if bool((x == x[0]).all()) else x


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Product of a matrix with every line of `x` along an axis, counted from the end."""
    if axis == -1:
        return x @ matrix.T
    return matrix @ x if axis == -2 else (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


@dataclass
class Run:
    """One evaluation of a tape.

    Attributes:
        normalized: divide by the number of paths after every merge (NAPL).
        lengths: number of lengths to tell apart: 1 to count paths whatever their length, 0 to carry their number and
            their total length.
        activity: active share per channel of each unit group, in execution order: float64 [C].
        factor: what the last merge multiplied by, a number or a tensor that broadcasts.
    """

    normalized: bool
    lengths: int
    activity: Sequence[Tensor] = ()
    factor: float | Tensor = 1.0

    @property
    def keeps_runs(self) -> bool:
        """Whether channels may be kept as runs; histograms and the NAPL's walk tell them apart anyway."""
        return self.lengths == 1 and not self.normalized

    def begin(self, shape: Sequence[int]) -> Value:
        """An input: one path of length 0 starts at every neuron."""
        paths = torch.zeros(self.lengths, *(1 for _ in shape), dtype=torch.float64)
        paths[0] = 1
        return Value((paths,))

    def merged(self, parts: Iterable[Tensor], log_scale: float, runs: tuple[int, ...] | None = None) -> Value:
        """Sums over incoming edges become a value.

        For the NAPL each neuron's counts are divided by its number of paths. Otherwise numbers of paths grow
        exponentially in depth: before they overflow, all are divided by the largest.
        """
        parts = tuple(parts)
        if self.normalized:
            paths = parts[0].sum(0, keepdim=True) if self.lengths else parts[0]
            carries = paths > 0
            self.factor = inverse = torch.where(carries, paths, math.inf).reciprocal()
            if self.lengths > 1:
                parts = (parts[0] * inverse,)
            else:
                parts = (carries.double(), *(part * inverse for part in parts[1:]))
        else:
            largest = float(parts[0].max())
            if largest > 1e100:  # float64 ends at 1e308, and one operation adds up far fewer than 1e200 edges
                parts = tuple(part / largest for part in parts)
                log_scale += math.log(largest)
                self.factor = 1 / largest
        return Value(parts, log_scale, runs)

    def bend(self, value: Value, activity: Tensor) -> Value:
        """Lengthen paths by one with probability `activity`, which broadcasts against the shape."""
        if self.lengths == 1:
            return value
        if self.lengths:
            (counts,) = value.parts
            longer = torch.cat([torch.zeros_like(counts[:1]), counts[:-1]])
            return Value((torch.lerp(counts, longer, activity),), value.log_scale)
        paths, total = value.parts
        return Value((paths, torch.addcmul(total, activity, paths)), value.log_scale)

    def windows(self, parts: Sequence[Tensor], taps: Sequence[Taps]) -> list[Tensor]:
        """Sum over windows along the last `len(taps)` axes.

        Windows are boxes, so the axes can be summed one after the other. Where nothing varies along an axis (size 1 in
        all parts), the sum is a factor per position; the NAPL divides it out again, so there only its being zero
        matters.
        """
        summed = list(parts)
        for axis, tap in zip(range(-len(taps), 0), taps, strict=True):
            if any(part.shape[axis] > 1 for part in summed):
                for i, part in enumerate(summed):
                    if part.shape[axis] == 1:
                        part = part.expand(*part.shape[:axis], tap.size, *part.shape[part.ndim + axis + 1 :])
                    summed[i] = _along(tap.matrix, part, axis)
            elif not (self.normalized and tap.all_reached):
                factor = tap.reached if self.normalized else tap.read
                factor = factor.view(-1, *(1 for _ in range(-axis - 1)))
                summed = [part * factor for part in summed]
        return summed

    def windows_adjoint(self, adjoint: Tensor, taps: Sequence[Taps], sizes: Sequence[int]) -> Tensor:
        """Give every input position of `windows` what the windows that read it carry.

        `sizes` is the shape of the part that came in. Along an axis on which the NAPL's counts did not vary only the
        sum over positions matters, and their average is enough (see `Tape.visits`).
        """
        for axis, tap in zip(range(-len(taps), 0), taps, strict=True):
            if self.normalized and sizes[axis] == 1:
                if adjoint.shape[axis] > 1 or tap.out != tap.size:
                    adjoint = summed_along(adjoint, axis, tap.out) / tap.size
            elif adjoint.shape[axis] > 1:
                adjoint = _along(tap.matrix.T, adjoint, axis)
            else:
                adjoint = adjoint * tap.written.view(-1, *(1 for _ in range(-axis - 1)))
        return adjoint


def summed_along(x: Tensor, axis: int, size: int) -> Tensor:
    """Sum over an axis of `size` entries, of which `x` holds all, or one if they are equal; the axis stays."""
    return x * size if x.shape[axis] == 1 else x.sum(axis, keepdim=True)


def _averaged(adjoint: Tensor, sizes: Sequence[int]) -> Tensor:
    """The average along every axis of size 1 in `sizes`."""
    axes = [axis for axis, size in enumerate(sizes) if size == 1 < adjoint.shape[axis]]
    return adjoint.mean(axes, keepdim=True) if axes else adjoint


def _unbroadcast(adjoint: Tensor, shape: Sequence[int], source: Sequence[int]) -> Tensor:
    """Adjoint of broadcasting a tensor of shape `source` to `shape`."""
    added = len(shape) - len(source)
    for axis, size in enumerate(shape):
        if axis < added or source[axis - added] < size:
            adjoint = summed_along(adjoint, axis + 1, size)
    return adjoint.flatten(0, added) if added else adjoint


def spread(part: Tensor, shape: Sequence[int], axes: Iterable[int]) -> Tensor:
    """Widen `part`, which stands in for a tensor of `shape`, to its full size along `axes` of that tensor."""
    sizes = list(part.shape)
    for axis in axes:
        sizes[axis % len(shape) + 1] = shape[axis]
    return part.expand(sizes)


def compact(x: Tensor) -> Tensor:
    """Take one entry along every axis on which `x` does not vary (stride 0)."""
    for axis, (stride, size) in enumerate(zip(x.stride(), x.shape, strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(axis, 0, 1)
    return x


# ---------------------------------------------------------------------------------------------------------------- tape


@dataclass(frozen=True)
class Paths:
    """A tensor of the network on the tape: which step made it, and its shape."""

    step: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Refused:
    """A tensor whose paths nobody can tell; an error only if an output depends on it."""

    reason: str


Adjoint = Callable[..., Sequence[Tensor]]

# Number of steps up to which everything is remembered on the way forward; ResNet-56 has 145.
_SHALLOW = 200


class Step(NamedTuple):
    """One step of a tape; see `Tape.record`."""

    forward: Callable[..., Value]
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    adjoint: Adjoint | None
    takes_runs: bool
    bends: tuple[int | None, int] | None


class _Memo(NamedTuple):
    """What the way back needs of a step's way forward."""

    factor: float | Tensor
    scales: list[float]  # of the sources, against the largest
    sizes: list[Sequence[int]]  # shapes of the sources' parts
    values: list[Value] | None  # the sources, where they are read again


class Tape:
    """The recorded steps of one network for one shape of its inputs."""

    def __init__(self, count_max_pool: bool, gates: Gates):
        self.count_max_pool, self.gates = count_max_pool, gates
        self.steps: list[Step] = []
        self.group_of: dict[int, int] = {}  # id of a unit module -> its position among the groups
        self.bends = 0
        self.outputs: list[Paths] = []
        self._frees: list[list[int]] | None = None

    def record(
        self,
        step: Callable[..., Value],
        sources: Sequence[Paths],
        shape: Sequence[int],
        adjoint: Adjoint | None = None,
        *,
        takes_runs: bool = False,
        bends: tuple[int | None, int] | None = None,
    ) -> Paths:
        """Append `step(run, *values)`, which makes a value of `shape` from those of `sources`.

        Args:
            step: adds up over edges; the sum is in the largest scale of its sources, and at most one call of
                `run.merged` ends it.
            sources: what it reads.
            shape: of the tensor that the value stands in for.
            adjoint: `adjoint(run, x, *sizes)`: what each source is given when the output of the sum carries x, a
                float64 [1, *shape] with size 1 along axes on which it does not vary. `sizes` are the shapes of the
                sources' parts. Without it the step is differentiated.
            takes_runs: whether the step reads channels given as runs (see `Value`).
            bends: (unit group or None, channel axis) of a step that lengthens paths.
        """
        given = tuple(source.step for source in sources)
        self.steps.append(Step(step, given, tuple(shape), adjoint, takes_runs, bends))
        return Paths(len(self.steps) - 1, tuple(shape))

    def finish(self, outputs: Sequence[Paths]) -> None:
        """Name the outputs, drop what they do not depend on, and note when each value is read for the last time."""
        self.outputs = list(outputs)
        last: dict[int, int] = {output.step: len(self.steps) for output in outputs}
        for i in range(len(self.steps) - 1, -1, -1):
            if i in last:
                for source in self.steps[i].sources:
                    last.setdefault(source, i)
        self._frees = [[] for _ in self.steps]
        self._needed = sorted(last)
        for step, reader in last.items():
            if reader < len(self.steps):
                self._frees[reader].append(step)

    def _advance(
        self, run: Run, values: dict[int, Value], steps: Sequence[int], memos: dict[int, _Memo] | None = None
    ) -> None:
        """Run some steps: add their values to those still to be read, drop the others, and take notes if asked."""
        assert self._frees is not None
        for i in steps:
            step = self.steps[i]
            read = [values[source] for source in step.sources]
            if not step.takes_runs:
                read = [value.whole() for value in read]
            run.factor = 1.0
            values[i] = step.forward(run, *read)
            if memos is not None:
                top = max((value.log_scale for value in read), default=0.0)
                again = step.adjoint is None or step.bends is not None
                memos[i] = _Memo(
                    run.factor,
                    [math.exp(value.log_scale - top) for value in read],
                    [value.parts[0].shape for value in read],
                    read if again else None,
                )
            for done in self._frees[i]:
                del values[done]

    def _sums(self, values: dict[int, Value]) -> tuple[list[list[Tensor]], list[float]]:
        """For each part, its sum over the neurons of every output (a row of lengths); scales of the outputs.

        The scales are factors against the largest one, and the sums contain them.
        """
        found = [values[output.step].whole() for output in self.outputs]
        top = max(value.log_scale for value in found)
        scales = [math.exp(value.log_scale - top) for value in found]
        sums: list[list[Tensor]] = []
        for n in range(len(found[0].parts)):
            rows = []
            for value, output, scale in zip(found, self.outputs, scales, strict=True):
                part = value.parts[n]
                copies = math.prod(output.shape) // part[0].numel()
                rows.append(part.flatten(1).sum(1) * (copies * scale))
            sums.append(rows)
        return sums, scales

    def histogram(self, run: Run) -> Tensor:
        """Paths of each length over all output neurons, up to a common factor: float64 [lengths]."""
        values: dict[int, Value] = {}
        self._advance(run, values, self._needed)
        (rows,), _ = self._sums(values)
        return torch.stack(rows).sum(0)

    def visits(self, normalized: bool, sizes: Sequence[int]) -> tuple[list[Tensor], float] | None:
        """Share of paths through every channel of every group, and mean number of other bends on a path.

        Forwards, p is the number of paths (APL) or whether any (NAPL) from the inputs to a neuron; backwards, its
        adjoint x starts at 1 / (sum of p) at the outputs and goes over the edges to the inputs, so that p·x is the
        probability that a path visits the neuron. Everything but `merged` is linear, and merging only multiplies.

        An adjoint of size 1 along an axis means that all entries carry the same. On the NAPL's walk it may instead
        mean their average where p does not vary: then only their sum matters. Groups keep their channels apart
        (`_unit`), so this never mixes the channels of a group.

        The way back reads the way forward once more, the last steps first. For the APL of a deep network only about
        the square root of all steps is remembered at a time, and recomputed from what was alive at its start.

        Args:
            normalized: of the NAPL's walk, or of all paths alike.
            sizes: numbers of channels of the groups.

        Returns:
            float64 [C] of each group, and a number; None if no path leads to an output.
        """
        run = Run(normalized, 1)
        # To recompute pays where there is much to remember: the NAPL has one number per channel, no maps.
        deep = not normalized and len(self._needed) > _SHALLOW
        length = math.isqrt(len(self._needed)) + 1 if deep else len(self._needed)
        pieces = [self._needed[i : i + length] for i in range(0, len(self._needed), length)]
        starts, values = [], dict[int, Value]()
        memos: dict[int, _Memo] = {}
        for piece in pieces:
            starts.append(dict(values))
            self._advance(run, values, piece, memos if piece is pieces[-1] else None)
        (rows,), scales = self._sums(values)
        total = float(torch.stack(rows).sum())
        if not total > 0:
            return None
        one = torch.ones((), dtype=torch.float64)
        weights = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        others = 0.0
        adjoints: dict[int, Tensor] = {}
        for output, scale in zip(self.outputs, scales, strict=True):
            start = (one * (scale / total)).view(1, *(1 for _ in output.shape))
            adjoints[output.step] = adjoints.get(output.step, 0.0) + start
        del values
        wanted = self._lead_from_bends()
        for piece in reversed(pieces):
            start_values = starts.pop()
            if piece is not pieces[-1]:
                self._advance(run, start_values, piece, memos)
            for i in reversed(piece):
                x, memo, step = adjoints.pop(i, None), memos.pop(i), self.steps[i]
                if x is None or not wanted[i]:
                    continue
                if step.bends is not None and memo.values is not None:
                    group, axis = step.bends
                    met = _met(memo.values[0], x, step.shape, axis)
                    if group is None:
                        others += float(met.sum())
                    else:
                        weights[group] += met
                if step.adjoint is not None:
                    if not (isinstance(memo.factor, float) and memo.factor == 1.0):
                        x = x * memo.factor
                    given = step.adjoint(run, x, *memo.sizes)
                    given = [g if scale == 1.0 else g * scale for g, scale in zip(given, memo.scales, strict=True)]
                else:
                    given, more = self._differentiated(step, run, memo, x)
                    others += more
                for source, g, seen in zip(step.sources, given, memo.sizes, strict=True):
                    if not wanted[source]:
                        continue
                    g = _averaged(g, seen) if normalized else g
                    adjoints[source] = adjoints[source] + g if source in adjoints else g
        return weights, others

    def _lead_from_bends(self) -> list[bool]:
        """For each step, whether anything that lengthens paths, or may, comes before it or is it."""
        found: list[bool] = []
        for step in self.steps:
            found.append(
                step.bends is not None
                or (step.adjoint is None and bool(step.sources))
                or any(found[source] for source in step.sources)
            )
        return found

    def _differentiated(self, step: Step, run: Run, memo: _Memo, x: Tensor) -> tuple[list[Tensor], float]:
        """What the sources of a step without adjoint are given, and how much it lengthens paths by itself."""
        assert memo.values is not None
        shapes = [self.steps[source].shape for source in step.sources]
        with torch.enable_grad():
            totals = [torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
            read = [
                Value((value.parts[0], total), value.log_scale)
                for value, total in zip(memo.values, totals, strict=True)
            ]
            made = step.forward(Run(run.normalized, 0), *read).parts[1]
        for axis, size in enumerate(step.shape):
            if made.shape[axis + 1] == 1:
                x = summed_along(x, axis + 1, size)
        if not made.requires_grad:
            return [torch.zeros_like(total) for total in totals], float((made * x).sum())
        given = torch.autograd.grad(made, totals, x.expand(made.shape), allow_unused=True, materialize_grads=True)
        return list(given), float((made.detach() * x).sum())


def _met(value: Value, adjoint: Tensor, shape: Sequence[int], channel: int) -> Tensor:
    """Sum of paths times adjoint over all neurons of each channel: float64 [C]."""
    if value.runs is not None and (channel != 1 or adjoint.shape[2] > 1):
        value = value.whole()
    met = value.parts[0] * adjoint
    varying = [axis + 1 for axis in range(len(shape)) if axis != channel and met.shape[axis + 1] > 1]
    equal = math.prod(n for axis, n in enumerate(shape) if axis != channel and axis + 1 not in varying)
    met = (met.sum(varying) if varying else met) * equal
    met = met.flatten()
    return met.expand(shape[channel]) if value.runs is None else met.repeat_interleave(torch.tensor(value.runs))


# --------------------------------------------------------------------------------------------------------------- rules


def _same(tape: Tape, module: nn.Module, value: Paths, *_: Any, **__: Any) -> Paths:
    """One edge in, one edge out."""
    return value


def _same_call(tape: Tape, value: Paths, /, *_: Any, **__: Any) -> Paths:
    return value


def _nonlinear(tape: Tape, value: Paths) -> Paths:
    """One more nonlinearity on every path."""
    tape.bends += 1
    one = torch.ones((), dtype=torch.float64)
    return tape.record(
        lambda run, v: run.bend(v, one), [value], value.shape, _unchanged, takes_runs=True, bends=(None, 0)
    )


def _unchanged(run: Run, x: Tensor, *sizes: Any) -> list[Tensor]:
    """Adjoint of one edge in, one edge out."""
    return [x]


def _unit(tape: Tape, module: ChannelPReLU, value: Paths) -> Paths:
    ndim = len(value.shape)
    group = tape.group_of[id(module)]
    axis = module.channel_axis % ndim
    view = [-1 if i == axis else 1 for i in range(ndim)]

    def step(run: Run, v: Value) -> Value:
        if run.lengths > 1:
            return run.bend(v, run.activity[group].view(view))
        if not run.normalized:
            return v
        # The NAPL's adjoints are averaged where nothing varies, which must not mix this group's channels: written out.
        return Value((spread(v.parts[0], value.shape, [axis]).contiguous(),), v.log_scale)

    return tape.record(step, [value], value.shape, _unchanged, takes_runs=True, bends=(group, axis))


def _sum_over(tape: Tape, value: Paths, axes: Sequence[int], shape: Sequence[int]) -> Paths:
    """One edge from every entry along `axes` (of the tensor, not negative); `shape` may widen the summed axes again."""
    sizes = [value.shape[axis] for axis in axes]

    def step(run: Run, v: Value) -> Value:
        runs = v.runs
        if runs is not None and 1 in axes:
            v, runs = v.whole(), None
        parts = []
        for part in v.parts:
            for axis, size in zip(axes, sizes, strict=True):
                part = summed_along(part, axis + 1, size)
            parts.append(part)
        return run.merged(parts, v.log_scale, runs)

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        for axis in axes:
            x = summed_along(x, axis + 1, shape[axis])
        return [x]

    return tape.record(step, [value], shape, adjoint, takes_runs=True)


def _linear(tape: Tape, value: Paths, weight: Any) -> Paths:
    if value.shape[-1] != weight.shape[1]:
        raise ValueError(f"{value.shape[-1]} features come in, the linear layer takes {weight.shape[1]}")
    return _sum_over(tape, value, [len(value.shape) - 1], (*value.shape[:-1], weight.shape[0]))


def _linear_rule(tape: Tape, module: Any, value: Paths) -> Paths:
    return _linear(tape, value, module.weight)


def _linear_call(tape: Tape, value: Paths, /, weight: Any, bias: Any = None) -> Paths:
    return _linear(tape, value, weight)


def _matmul_call(tape: Tape, a: Any, b: Any, /, **_: Any) -> Paths:
    """A product with a constant matrix [in, out]: a linear layer."""
    if not isinstance(a, Paths) or isinstance(b, Paths) or b.ndim != 2:
        raise UnsupportedNetwork(
            "a matrix product of two tensors that depend on the input has no path rule; for attention use "
            "nn.MultiheadAttention or scaled_dot_product_attention"
        )
    return _linear(tape, a, b.T)


def _convolution(tape: Tape, value: Paths, out_channels: int, groups: int, taps: Sequence[Taps]) -> Paths:
    """Every output channel of a group reads all of the group's input channels: a box filter of the channel sum."""
    n = len(taps)
    channel = len(value.shape) - n  # with the axis of rows in front
    channels = value.shape[channel - 1]
    shape = (*value.shape[: channel - 1], out_channels, *(tap.out for tap in taps))

    def step(run: Run, v: Value) -> Value:
        if v.runs is not None and groups > 1:
            v = v.whole()
        parts = []
        for part in v.parts:
            if v.runs is not None:
                part = (part * torch.tensor(v.runs).view(-1, *(1 for _ in taps))).sum(channel, keepdim=True)
            elif part.shape[channel] == 1:
                part = part * (channels // groups)
            elif groups == 1:
                part = part.sum(channel, keepdim=True)
            else:
                part = part.unflatten(channel, (groups, channels // groups)).sum(channel + 1)
            parts.append(part)
        parts = run.windows(parts, taps)
        if groups > 1:
            repeats = out_channels // groups
            parts = [p if p.shape[channel] == 1 else p.repeat_interleave(repeats, dim=channel) for p in parts]
        return run.merged(parts, v.log_scale)

    def adjoint(run: Run, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        if groups == 1:
            x = summed_along(x, channel, out_channels)
        elif x.shape[channel] == 1:
            x = x * (out_channels // groups)
        else:
            x = x.unflatten(channel, (groups, out_channels // groups)).sum(channel + 1)
        x = run.windows_adjoint(x, taps, sizes)
        if groups > 1 and x.shape[channel] > 1:
            x = x.repeat_interleave(channels // groups, dim=channel)
        return [x]

    return tape.record(step, [value], shape, adjoint, takes_runs=channel == 2)


def _pool(tape: Tape, value: Paths, taps: Sequence[Taps], bends: bool = False) -> Paths:
    """Every output reads its window, channel by channel."""
    n = len(taps)
    shape = (*value.shape[:-n], *(tap.out for tap in taps))

    def step(run: Run, v: Value) -> Value:
        return run.merged(run.windows(v.parts, taps), v.log_scale, v.runs)

    def adjoint(run: Run, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [run.windows_adjoint(x, taps, sizes)]

    pooled = tape.record(step, [value], shape, adjoint, takes_runs=len(shape) - n > 1)
    return _nonlinear(tape, pooled) if bends and tape.count_max_pool else pooled


def _each(setting: Any, n: int) -> tuple[int, ...]:
    return tuple(setting) if isinstance(setting, tuple | list) else (setting,) * n


def _read(positions: Tensor, size: int) -> Tensor:
    """[out, in] from the input positions [out, taps] that each output reads; positions outside do not exist."""
    return (positions[:, :, None] == torch.arange(size)).sum(1).double()


@lru_cache(maxsize=32)  # networks repeat their layers, and the result is only read
def _taps(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil: bool = False) -> Taps:
    """A window: output o reads o·stride - padding + j·dilation, j = 0 … kernel - 1, where that exists."""
    span = size + sum(padding) - dilation * (kernel - 1) - 1
    out = span // stride + 1
    if ceil and span % stride and out * stride < size + padding[0]:  # the last window must start inside
        out += 1
    if out < 1:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size + sum(padding)} positions")
    return Taps(_read(torch.arange(out)[:, None] * stride - padding[0] + torch.arange(kernel)[None] * dilation, size))


def _padded_taps(taps: Tensor, size: int, padding: tuple[int, int], mode: str) -> Taps:
    """Taps over an axis padded by copies of its own entries, [out, in + padding], as taps over the axis itself."""
    source = torch.arange(size, dtype=torch.float32).view(1, 1, -1)
    copied = F.pad(source, padding, mode=mode).view(-1).long()
    return Taps(taps @ _read(copied[:, None], size))


def _conv_rule(tape: Tape, module: Any, value: Paths) -> Paths:
    m = module
    return _conv_call(tape, value, m.weight, None, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)


def _conv_call(
    tape: Tape,
    value: Paths,
    /,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Paths:
    kernel = tuple(weight.shape[2:])
    n = len(kernel)
    if value.shape[-n - 1] != weight.shape[1] * groups:
        raise ValueError(f"{value.shape[-n - 1]} channels come in, the convolution takes {weight.shape[1] * groups}")
    stride, dilation = _each(stride, n), _each(dilation, n)
    if padding == "same":
        pads = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)]
    else:
        pads = [(p, p) for p in _each(0 if padding == "valid" else padding, n)]
    taps = []
    for size, k, s, pad, d in zip(value.shape[-n:], kernel, stride, pads, dilation, strict=True):
        if mode == "zeros":
            taps.append(_taps(size, k, s, pad, d))
        else:
            taps.append(_padded_taps(_taps(size + sum(pad), k, s, (0, 0), d).matrix, size, pad, mode))
    return _convolution(tape, value, weight.shape[0], groups, taps)


def _transposed_rule(tape: Tape, module: Any, value: Paths, output_size: Any = None) -> Paths:
    m = module
    if output_size is not None:
        raise UnsupportedNetwork("output_size of a transposed convolution has no path rule; set output_padding instead")
    return _transposed_call(tape, value, m.weight, None, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


def _transposed_call(
    tape: Tape,
    value: Paths,
    /,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Paths:
    """Input position i writes to output positions i·stride - padding + j·dilation."""
    kernel = tuple(weight.shape[2:])
    n = len(kernel)
    if value.shape[-n - 1] != weight.shape[0]:
        raise ValueError(f"{value.shape[-n - 1]} channels come in, the convolution takes {weight.shape[0]}")
    settings = (_each(setting, n) for setting in (stride, padding, output_padding, dilation))
    taps = []
    for size, k, s, p, more, d in zip(value.shape[-n:], kernel, *settings, strict=True):
        out = (size - 1) * s - 2 * p + d * (k - 1) + more + 1
        written = _read(torch.arange(size)[:, None] * s - p + torch.arange(k)[None] * d, out)
        taps.append(Taps(written.T.contiguous()))
    return _convolution(tape, value, weight.shape[1] * groups, groups, taps)


def _window_call(
    tape: Tape,
    value: Paths,
    /,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *_: Any,
    n: int,
    bends: bool,
    **__: Any,
) -> Paths:
    stride = kernel_size if stride is None or stride == () else stride
    settings = (_each(setting, n) for setting in (kernel_size, stride, padding, dilation))
    taps = [
        _taps(size, k, s, (p, p), d, ceil_mode) for size, k, s, p, d in zip(value.shape[-n:], *settings, strict=True)
    ]
    return _pool(tape, value, taps, bends)


def _average_call(
    tape: Tape,
    value: Paths,
    /,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    *more: Any,
    n: int,
    **named: Any,
) -> Paths:
    ceil = bool(more[0]) if more else bool(named.get("ceil_mode", False))
    return _window_call(tape, value, kernel_size, stride, padding, 1, ceil, n=n, bends=False)


def _spatial_axes(module: nn.Module) -> int:
    """1, 2 or 3, from the name of the torch class that a module is or derives from."""
    return next(int(kind.__name__[-2]) for kind in type(module).__mro__ if kind.__name__.endswith(("1d", "2d", "3d")))


def _pool_rule(tape: Tape, module: Any, value: Paths) -> Paths:
    m = module
    bends = isinstance(m, nn.modules.pooling._MaxPoolNd)
    dilation = getattr(m, "dilation", 1)
    return _window_call(
        tape, value, m.kernel_size, m.stride, m.padding, dilation, m.ceil_mode, n=_spatial_axes(m), bends=bends
    )


def _adaptive_call(tape: Tape, value: Paths, /, output_size: Any, *, n: int, bends: bool = False, **_: Any) -> Paths:
    taps = []
    for size, out in zip(value.shape[-n:], _each(output_size, n), strict=True):
        out = size if out is None else out
        start, end = torch.arange(out) * size // out, -(-(torch.arange(out) + 1) * size // out)
        position = torch.arange(size)
        taps.append(Taps(((position >= start[:, None]) & (position < end[:, None])).double()))
    return _pool(tape, value, taps, bends)


def _adaptive_rule(tape: Tape, module: Any, value: Paths) -> Paths:
    bends = isinstance(module, nn.modules.pooling._AdaptiveMaxPoolNd)
    return _adaptive_call(tape, value, module.output_size, n=_spatial_axes(module), bends=bends)


def _interpolate_call(
    tape: Tape,
    value: Paths,
    /,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    **named: Any,
) -> Paths:
    """One edge from every entry that the interpolation reads; which these are is asked of torch, axis by axis."""
    n = len(value.shape) - 2
    one = {"nearest": "nearest", "nearest-exact": "nearest-exact", "area": "area"}.get(mode, "linear")
    if mode == "bicubic":
        raise UnsupportedNetwork("bicubic interpolation has no path rule; use bilinear or nearest")
    sizes = [None] * n if size is None else _each(size, n)
    scales = [None] * n if scale_factor is None else _each(scale_factor, n)
    taps = []
    for length, out, scale in zip(value.shape[-n:], sizes, scales, strict=True):
        extra = {"align_corners": align_corners} if one == "linear" else {}
        basis = torch.eye(length, dtype=torch.float64).unsqueeze(1)
        taps.append(Taps((F.interpolate(basis, out, scale, mode=one, **extra)[:, 0].T > 1e-12).double()))
    return _pool(tape, value, taps)


def _upsample_rule(tape: Tape, module: Any, value: Paths) -> Paths:
    m = module
    return _interpolate_call(tape, value, m.size, m.scale_factor, m.mode, m.align_corners)


def _reduce_call(tape: Tape, value: Paths, /, dim: Any = None, keepdim: bool = False, **_: Any) -> Paths:
    """Mean or sum over axes: one edge from every entry."""
    ndim = len(value.shape)
    axes = sorted({axis % ndim for axis in (range(ndim) if dim is None else _each(dim, 1))})
    kept = _sum_over(tape, value, axes, [1 if axis in axes else size for axis, size in enumerate(value.shape)])
    if keepdim:
        return kept
    shape = [size for axis, size in enumerate(value.shape) if axis not in axes]
    rows = [axis + 1 for axis in axes]

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        for row in rows:
            x = x.unsqueeze(row)
        return [x]

    def step(run: Run, v: Value) -> Value:
        return Value(tuple(p.squeeze(rows) for p in v.parts), v.log_scale)

    return tape.record(step, [kept], shape, adjoint)


def _embedding(tape: Tape, value: Paths, features: int) -> Paths:
    shape = (*value.shape, features)

    def step(run: Run, v: Value) -> Value:
        return Value(tuple(part.unsqueeze(-1) for part in v.parts), v.log_scale)

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        return [summed_along(x, -1, features).squeeze(-1)]

    return tape.record(step, [value], shape, adjoint)


def _add_call(tape: Tape, a: Any, b: Any, /, *_: Any, **__: Any) -> Paths:
    """A sum of two operands; a constant carries no path."""
    if not (isinstance(a, Paths) and isinstance(b, Paths)):
        return _with_constant(tape, a, b)
    shape = a.shape if a.shape == b.shape else torch.broadcast_shapes(a.shape, b.shape)

    def step(run: Run, x: Value, y: Value) -> Value:
        if x.log_scale < y.log_scale:
            x, y = y, x
        runs = x.runs or y.runs
        if any(v.runs != runs and (v.runs or v.parts[0].shape[2] > 1) for v in (x, y)):
            x, y, runs = x.whole(), y.whole(), None
        sums = []
        for p, q in zip(x.parts, y.parts, strict=True):
            p, q = (_aligned(part, len(shape)) for part in (p, q))
            sums.append(torch.add(p, q, alpha=math.exp(y.log_scale - x.log_scale)))
        return run.merged(sums, x.log_scale, runs)

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        return [_unbroadcast(x, shape, source.shape) for source in (a, b)]

    alike = len(shape) > 1 and a.shape[1:2] == b.shape[1:2] and len(a.shape) == len(b.shape)
    return tape.record(step, [a, b], shape, adjoint, takes_runs=alike)


def _aligned(part: Tensor, ndim: int) -> Tensor:
    """Add axes of size 1 behind the rows, as broadcasting adds them in front of a tensor."""
    for _ in range(ndim + 1 - part.ndim):
        part = part.unsqueeze(1)
    return part


def _with_constant(tape: Tape, a: Any, b: Any) -> Paths:
    """The paths of one operand in the shape of the result; the other, `b` if both have paths, adds none."""
    value, constant = (a, b) if isinstance(a, Paths) else (b, a)
    shape = torch.broadcast_shapes(value.shape, tuple(getattr(constant, "shape", ())))
    if shape == value.shape:
        return value

    def step(run: Run, v: Value) -> Value:
        return Value(tuple(_aligned(part, len(shape)) for part in v.parts), v.log_scale)

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        return [_unbroadcast(x, shape, value.shape)]

    return tape.record(step, [value], shape, adjoint)


def _scale_call(tape: Tape, a: Any, b: Any, /, *_: Any, **__: Any) -> Any:
    """A product with a constant: a parameter is a weight (one edge), zeros cut the paths."""
    if isinstance(a, Paths) and isinstance(b, Paths):
        return _gate(tape, a, b)
    value = _with_constant(tape, a, b)
    constant = b if isinstance(a, Paths) else a
    if isinstance(constant, nn.Parameter):
        return value
    return _where_nonzero(tape, value, torch.as_tensor(constant) != 0)


def _where_nonzero(tape: Tape, value: Paths, kept: Tensor) -> Paths:
    if bool(kept.all()):
        return value
    mask = kept.to("cpu", torch.float64)

    def step(run: Run, v: Value) -> Value:
        return Value(tuple(part * mask for part in v.parts), v.log_scale)

    return tape.record(step, [value], value.shape, lambda run, x, *_: [x * mask])


SAME_SIZE = (
    "which operand of a product is the signal and which the gate is not evident, as both have one size; a larger "
    "example may tell them apart"
)


def _gate(tape: Tape, a: Paths, b: Paths) -> Any:
    """A product of two tensors that depend on the input: refused, or the larger one is the signal."""
    if tape.gates == "refuse":
        return Refused(
            "a product of two tensors that both depend on the input (a gate) has no agreed path length; pass "
            'gates="signal" to lead paths through the larger operand only'
        )
    size_a, size_b = math.prod(a.shape), math.prod(b.shape)
    if size_a == size_b:
        raise UnsupportedNetwork(SAME_SIZE)
    return _with_constant(tape, a, b) if size_a > size_b else _with_constant(tape, b, a)


def _divide_call(tape: Tape, a: Any, b: Any, /, *_: Any, **__: Any) -> Any:
    if not isinstance(a, Paths) or isinstance(b, Paths | Refused):
        return Refused("a division by a tensor that depends on the input has no agreed path length")
    return _with_constant(tape, a, b)


def _mask_call(tape: Tape, value: Paths, /, mask: Any, *_: Any, **__: Any) -> Paths:
    """masked_fill with a constant mask: what is overwritten carries no path."""
    if isinstance(mask, Paths | Refused):
        raise UnsupportedNetwork("a mask that depends on the input has no path rule")
    return _where_nonzero(tape, value, ~mask)


def _cat_call(tape: Tape, tensors: Sequence[Any], /, dim: int = 0, **named: Any) -> Paths:
    dim = named.get("axis", dim)
    shapes = [tuple(part.shape) for part in tensors]
    ndim = max(map(len, shapes))
    axis = dim % ndim
    shape = [sum(s[axis] for s in shapes) if i == axis else shapes[0][i] for i in range(ndim)]
    places = [i for i, part in enumerate(tensors) if isinstance(part, Paths)]

    def step(run: Run, *values: Value) -> Value:
        top = max(v.log_scale for v in values)
        as_runs = run.keeps_runs and axis == 1
        if not as_runs:
            values = tuple(v.whole() for v in values)
        runs: list[tuple[int, ...]] = [(s[axis],) for s in shapes]
        joined = []
        for n in range(len(values[0].parts)):
            none = torch.zeros((1,) * (ndim + 1), dtype=torch.float64)
            parts = [none if as_runs else spread(none, s, [axis]) for s in shapes]  # a constant carries no path
            for place, v in zip(places, values, strict=True):
                part = v.parts[n]
                if not as_runs:
                    part = spread(part, shapes[place], [axis])
                elif part.shape[2] > 1:
                    runs[place] = v.runs or (1,) * part.shape[2]
                parts[place] = part if v.log_scale == top else part * math.exp(v.log_scale - top)
            joined.append(_joined(parts, axis + 1))
        return run.merged(joined, top, sum(runs, ()) if as_runs else None)

    starts = [sum(s[axis] for s in shapes[:place]) for place in places]

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        if x.shape[axis + 1] == 1:
            return [x] * len(places)
        return [x.narrow(axis + 1, at, shapes[place][axis]) for at, place in zip(starts, places, strict=True)]

    return tape.record(step, [tensors[i] for i in places], shape, adjoint, takes_runs=axis == 1)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenation of parts of which some do not vary along other axes."""
    common = torch.broadcast_shapes(*([m for i, m in enumerate(part.shape) if i != dim] for part in parts))
    return torch.cat([part.expand(*common[:dim], part.shape[dim], *common[dim:]) for part in parts], dim=dim)


def _setitem_call(tape: Tape, value: Any, key: Any, written: Any, /) -> Any:
    """Assignment to entries: they lose the paths that they had and carry those of what is written."""
    places = key if isinstance(key, tuple) else (key,)
    if any(isinstance(place, Paths | Refused) for place in places):
        raise UnsupportedNetwork("an assignment to places that depend on the input has no path rule")
    shape = tuple(value.shape)
    kept = torch.ones(shape, dtype=torch.bool)
    kept[key] = False
    before = _where_nonzero(tape, value, kept) if isinstance(value, Paths) else torch.zeros(shape)
    if not isinstance(written, Paths):
        return before
    ndim, source = torch.empty(shape, device="meta")[key].ndim, written.shape

    def step(run: Run, v: Value) -> Value:
        parts = []
        for part in v.parts:
            whole = torch.zeros(part.shape[0], *shape, dtype=torch.float64)
            whole[(slice(None), *places)] = _aligned(spread(part, source, range(len(source))), ndim)
            parts.append(whole)
        return Value(tuple(parts), v.log_scale)

    return _add_call(tape, before, tape.record(step, [written], shape))


def _stack_call(tape: Tape, tensors: Sequence[Any], /, dim: int = 0) -> Paths:
    axis = dim % (len(tensors[0].shape) + 1)
    wide = [view(tape, x, lambda t: t.unsqueeze(axis)) if isinstance(x, Paths) else x.unsqueeze(axis) for x in tensors]
    return _cat_call(tape, wide, axis)


def _pad_call(tape: Tape, value: Paths, /, pad: Sequence[int], mode: str = "constant", *_: Any, **__: Any) -> Paths:
    """Padding with a constant: the new neurons carry no path; otherwise they copy what they show."""
    shape = list(value.shape)
    for i, amount in enumerate(pad):
        shape[-1 - i // 2] += amount
    if mode == "constant":
        padded = sorted({len(shape) - 1 - i // 2 for i, amount in enumerate(pad) if amount})
        channels_only = padded == [1] and min(pad) >= 0
        before, after = (pad[2 * (len(shape) - 2) + i] for i in (0, 1)) if channels_only else (0, 0)

        def step(run: Run, v: Value) -> Value:
            if run.keeps_runs and channels_only:
                (part,) = v.parts
                own = v.runs or ((value.shape[1],) if part.shape[2] == 1 else (1,) * part.shape[2])
                ends = [torch.zeros((1,) * part.ndim, dtype=torch.float64)] * 2
                return Value((_joined([ends[0], part, ends[1]], 2),), v.log_scale, (before, *own, after))
            parts = (F.pad(spread(part, value.shape, padded), list(pad)) for part in v.whole().parts)
            return Value(tuple(parts), v.log_scale)

        def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
            for axis in padded:
                at = pad[2 * (len(shape) - 1 - axis)]
                x = x if x.shape[axis + 1] == 1 else x.narrow(axis + 1, at, value.shape[axis])
            return [x]

        crops = any(amount < 0 for amount in pad)  # differentiated: what was cut off carries nothing
        return tape.record(step, [value], shape, None if crops else adjoint, takes_runs=channels_only)
    n = len(pad) // 2
    taps = []
    for axis in range(-n, 0):
        size, both = value.shape[axis], (pad[-2 * axis - 2], pad[-2 * axis - 1])
        taps.append(_padded_taps(torch.eye(size + sum(both), dtype=torch.float64), size, both, mode))
    return _pool(tape, value, taps)


def _attention(tape: Tape, value: Paths, queries: int, allowed: Tensor | None) -> Paths:
    """Paths through the values [..., S, E] only: each of the queries' positions reads every position it may attend to.

    `allowed` is bool [..., queries, S] or None for all. Which positions get weight depends on the input; all that may
    do.
    """
    shape = (*value.shape[:-2], queries, value.shape[-1])
    if allowed is None:
        return _sum_over(tape, value, [len(value.shape) - 2], shape)
    taps = allowed.to("cpu", torch.float64)

    def step(run: Run, v: Value) -> Value:
        parts = [taps @ spread(part, value.shape, [-2]) for part in v.parts]
        return run.merged(parts, v.log_scale)

    return tape.record(step, [value], shape)


def _allowed(mask: Any, causal: bool, queries: int, keys: int, true_means: bool) -> Tensor | None:
    """Positions that a mask lets through; a bool mask keeps or hides them, depending on who asks."""
    if isinstance(mask, Paths | Refused):
        raise UnsupportedNetwork("an attention mask that depends on the input has no path rule")
    allowed = None
    if mask is not None:
        allowed = (mask if true_means else ~mask) if mask.dtype == torch.bool else mask > -math.inf
    if causal:
        below = torch.ones(queries, keys, dtype=torch.bool).tril()
        allowed = below if allowed is None else allowed & below
    return allowed


def _sdpa_call(
    tape: Tape,
    query: Any,
    key: Any,
    value: Any,
    /,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Any:
    if not isinstance(value, Paths):
        return Refused("attention over constant values carries no path")
    queries = query.shape[-2]
    return _attention(tape, value, queries, _allowed(attn_mask, is_causal, queries, value.shape[-2], True))


def _multihead_rule(
    tape: Tape,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Value projection, attention, output projection: every feature of the output reads one head each, hence all."""
    if not isinstance(value, Paths):
        return Refused("attention over constant values carries no path"), None
    if key_padding_mask is not None:
        raise UnsupportedNetwork("a key padding mask has no path rule; measure sequences of full length")
    axis = 1 if module.batch_first and len(value.shape) == 3 else 0
    allowed = _allowed(attn_mask, False, query.shape[axis], value.shape[axis], False)
    if allowed is not None and allowed.ndim == 3:
        raise UnsupportedNetwork("an attention mask per head has no path rule; use one for all heads")
    to_last = (lambda x: x) if axis == len(value.shape) - 2 else (lambda x: x.movedim(0, -2))
    back = (lambda x: x) if axis == len(value.shape) - 2 else (lambda x: x.movedim(-2, 0))
    projected = _sum_over(tape, value, [len(value.shape) - 1], (*value.shape[:-1], module.embed_dim))
    read = _attention(tape, view(tape, projected, to_last), query.shape[axis], allowed)
    out = view(tape, read, back)
    weights = Refused("attention weights as an output have no path length; the paths lead through the values")
    return _sum_over(tape, out, [len(out.shape) - 1], out.shape), weights if need_weights else None


def view(tape: Tape, value: Paths, call: Callable[[Tensor], Any]) -> Any:
    """A call that only rearranges entries: done as it is, on every row."""
    made = call(torch.empty(value.shape, device="meta"))

    def step(run: Run, v: Value, part: int | None = None) -> Value:
        results = (torch.vmap(call)(counts.expand(-1, *value.shape)) for counts in v.parts)
        return Value(tuple(compact(r if part is None else r[part]) for r in results), v.log_scale)

    def adjoint(run: Run, x: Tensor, *_: Any, part: int | None = None) -> list[Tensor]:
        with torch.enable_grad():
            entries = torch.zeros((), dtype=torch.float64, requires_grad=True).expand(value.shape)
            shown = call(entries) if part is None else call(entries)[part]
        (given,) = torch.autograd.grad(shown, entries, x[0].expand(shown.shape))
        return [compact(given.unsqueeze(0))]

    if isinstance(made, Tensor):
        return tape.record(step, [value], made.shape, adjoint)
    return type(made)(
        tape.record(partial(step, part=i), [value], x.shape, partial(adjoint, part=i)) for i, x in enumerate(made)
    )


def _slice(tape: Tape, value: Paths, key: Any) -> Paths | None:
    """Indexing by slices alone, axis by axis, so that what does not vary stays compact; None for any other."""
    key = key if isinstance(key, tuple) else (key,)
    if not all(entry is Ellipsis or isinstance(entry, slice) for entry in key) or key.count(Ellipsis) > 1:
        return None
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *(slice(None) for _ in range(len(value.shape) - len(key) + 1)), *key[at + 1 :])
    if len(key) > len(value.shape):
        return None
    shape = torch.empty(value.shape, device="meta")[key].shape
    if 0 in shape:
        return None
    # Steps are positive: whatever keeps its size is shown as it is. Axes are those of parts, behind the rows.
    cut = {axis + 1: part for axis, part in enumerate(key) if shape[axis] < value.shape[axis]}

    def step(run: Run, v: Value) -> Value:
        if 2 in cut:
            v = v.whole()
        parts = []
        for part in v.parts:
            places = [cut[i] if i in cut and size > 1 else slice(None) for i, size in enumerate(part.shape)]
            parts.append(part[tuple(places)])
        return Value(tuple(parts), v.log_scale, v.runs)

    def adjoint(run: Run, x: Tensor, *_: Any) -> list[Tensor]:
        sizes = [value.shape[i - 1] if i in cut else size for i, size in enumerate(x.shape)]
        given = torch.zeros(sizes, dtype=torch.float64)
        given[tuple(cut.get(i, slice(None)) for i in range(len(sizes)))] = x
        return [given]

    return tape.record(step, [value], shape, adjoint, takes_runs=True)


def _view_call(tape: Tape, value: Any, /, *args: Any, target: Any, **kwargs: Any) -> Any:
    if not isinstance(value, Paths):  # an entry of what chunk or split returned
        return target(value, *args, **kwargs)
    if target is operator.getitem and (sliced := _slice(tape, value, *args)) is not None:
        return sliced
    others = [torch.empty(a.shape, device="meta") if isinstance(a, Paths) else a for a in args]
    # What does not vary is kept once (stride 0), which is no reason to refuse another view of it.
    target = {"view": "reshape", "view_as": "reshape_as"}.get(target, target) if isinstance(target, str) else target
    if isinstance(target, str):
        return view(tape, value, lambda x: getattr(x, target)(*others, **kwargs))
    return view(tape, value, lambda x: target(x, *others, **kwargs))


def _attribute_call(tape: Tape, value: Any, name: str, /) -> Any:
    """An attribute of a tensor: its transpose is a view; all others ask for its form."""
    if not isinstance(value, Paths):
        return getattr(value, name)
    found = getattr(torch.empty(value.shape), name)
    if not isinstance(found, Tensor):
        return found
    if name not in ("T", "mT", "H", "mH", "data"):
        raise UnsupportedNetwork(f"the attribute {name!r} of a tensor has no path rule")
    return value if name == "data" else view(tape, value, lambda x: getattr(x, name))


def _view_rule(tape: Tape, module: Any, value: Paths) -> Any:
    return view(tape, value, module.forward)


Rule = Callable[..., Any]

# What a module does to paths: rule(tape, module, *arguments), found by class.
MODULE_RULES: dict[type[nn.Module], Rule] = {
    ChannelPReLU: _unit,
    nn.Linear: _linear_rule,
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], _conv_rule),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], _transposed_rule),
    **dict.fromkeys([nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm], _same),
    **dict.fromkeys([nn.LocalResponseNorm, nn.modules.dropout._DropoutNd, nn.Identity], _same),
    **dict.fromkeys([nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd], _pool_rule),
    nn.modules.pooling._AdaptiveAvgPoolNd: _adaptive_rule,
    nn.modules.pooling._AdaptiveMaxPoolNd: _adaptive_rule,
    nn.Upsample: _upsample_rule,
    nn.Embedding: lambda tape, m, value: _embedding(tape, value, m.embedding_dim),
    nn.MultiheadAttention: _multihead_rule,
    **dict.fromkeys([nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle], _view_rule),
    nn.modules.padding._ConstantPadNd: lambda tape, m, value: _pad_call(tape, value, m.padding),
    nn.modules.padding._ReflectionPadNd: lambda tape, m, value: _pad_call(tape, value, m.padding, "reflect"),
    nn.modules.padding._ReplicationPadNd: lambda tape, m, value: _pad_call(tape, value, m.padding, "replicate"),
}

_VIEWS = (
    *(
        operator.getitem,
        torch.flatten,
        torch.reshape,
        torch.permute,
        torch.transpose,
        torch.chunk,
        torch.split,
        torch.squeeze,
    ),
    *(torch.unsqueeze, torch.unbind, torch.movedim, torch.flip, torch.roll, torch.narrow, torch.swapaxes, torch.tile),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.channel_shuffle, torch.unflatten),
    *(
        "flatten",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "permute",
        "transpose",
        "chunk",
        "split",
        "squeeze",
        "tile",
    ),
    *(
        "unsqueeze",
        "unbind",
        "expand",
        "expand_as",
        "repeat",
        "movedim",
        "flip",
        "roll",
        "narrow",
        "swapaxes",
        "unflatten",
        "t",
    ),
    *("select", "index_select"),
)
_SAMES = (
    *(operator.neg, torch.neg, "neg", F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.batch_norm),
    *(F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm, F.local_response_norm),
    *(
        "contiguous",
        "clone",
        "float",
        "double",
        "half",
        "bfloat16",
        "to",
        "type_as",
        "type",
        "detach",
        "requires_grad_",
    ),
    *(torch.clone, "cpu", "cuda"),
)

# What a function or method does to paths: rule(tape, *arguments), found by the function or the method's name.
CALL_RULES: dict[Any, Rule] = {
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add", "add_"], _add_call),
    **dict.fromkeys([operator.sub, operator.isub, torch.sub, "sub", "sub_"], _add_call),
    **dict.fromkeys([operator.mul, operator.imul, torch.mul, "mul", "mul_"], _scale_call),
    **dict.fromkeys([operator.truediv, operator.itruediv, torch.div, "div", "div_"], _divide_call),
    **dict.fromkeys([operator.matmul, torch.matmul, "matmul", torch.mm, "mm"], _matmul_call),
    **dict.fromkeys(_SAMES, _same_call),
    **{target: partial(_view_call, target=target) for target in _VIEWS},
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], _cat_call),
    torch.stack: _stack_call,
    operator.setitem: _setitem_call,
    builtins.getattr: _attribute_call,
    **dict.fromkeys([torch.mean, "mean", torch.sum, "sum"], _reduce_call),
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _conv_call),
    **dict.fromkeys([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _transposed_call),
    F.linear: _linear_call,
    F.embedding: lambda tape, value, weight, *_, **__: _embedding(tape, value, weight.shape[1]),
    F.pad: _pad_call,
    F.interpolate: _interpolate_call,
    F.scaled_dot_product_attention: _sdpa_call,
    **dict.fromkeys([torch.masked_fill, "masked_fill", "masked_fill_"], _mask_call),
    **{
        getattr(home, f"{kind}{n}d"): partial(rule, n=n, **bends)
        for kind, rule, bends in (
            ("avg_pool", _average_call, {}),
            ("max_pool", _window_call, {"bends": True}),
            ("adaptive_avg_pool", _adaptive_call, {}),
            ("adaptive_max_pool", _adaptive_call, {"bends": True}),
        )
        for n in (1, 2, 3)
        for home in (F, torch)  # a call is recorded under either name
        if hasattr(home, f"{kind}{n}d")
    },
}


def _like(factory: Callable[..., Tensor], value: Paths, *args: Any, **kwargs: Any) -> Tensor:
    return factory(torch.empty(value.shape), *args, **{**kwargs, "device": "cpu"})


# Calls that ask for a shape, a type or a constant of that shape: answered at once, nothing is recorded.
SHAPE_CALLS: dict[Any, Callable[..., Any]] = {
    "size": lambda value, dim=None: torch.Size(value.shape) if dim is None else value.shape[dim],
    "dim": lambda value: len(value.shape),
    "numel": lambda value: math.prod(value.shape),
    "is_floating_point": lambda value: True,
    torch.is_floating_point: lambda value: True,
    "stride": lambda value, *dim: torch.empty(value.shape, device="meta").stride(*dim),
    **{
        factory: partial(_like, factory)
        for factory in (torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like)
    },
    **{
        name: partial(_like, getattr(Tensor, name))
        for name in ("new_zeros", "new_ones", "new_full", "new_tensor", "new_empty")
    },
}


def rule_for_module(module: nn.Module) -> Rule | None:
    """The rule of the nearest class of `module` that has one."""
    return next((MODULE_RULES[kind] for kind in type(module).__mro__ if kind in MODULE_RULES), None)


_SHARING_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
_SHARING_CALLS = {*_VIEWS, *_SAMES} - {
    operator.neg,
    torch.neg,
    "neg",
    torch.clone,
    "clone",
    "repeat",
    "tile",
    torch.tile,
}
_SHARING_CALLS -= {F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm, F.local_response_norm}


def may_share_memory(target: Any) -> bool:
    """Whether what a module or a call returns may be the memory of its first argument under another name."""
    return isinstance(target, _SHARING_MODULES) or not isinstance(target, nn.Module) and target in _SHARING_CALLS


def reads_no_settings(rule: Rule | None) -> bool:
    """Whether a module's rule depends on nothing but its class (so that its settings may change unnoticed)."""
    return rule in (_same, _unit)


_declared: list[Any] = []


def rules_version() -> int:
    """Grows with every declared rule: what was analysed under other rules is out of date."""
    return len(_declared)


def declare_path_rule(target: Any, rule: Literal["same", "nonlinear", "view"] | Rule) -> None:
    """Say what an operation of your own does to paths, for all networks of this process.

    Modules of a class with a rule are kept whole by every later `linearize`, which otherwise looks into all modules
    that are not torch's own; so declare first. A module that calls a ReLU inside is refused then. An attribute
    `is_traced_whole` of the class or module decides instead where it is set.

    Args:
        target: a module class, a function, or the name of a tensor method.
        rule: "same" (entry by entry, no bend), "nonlinear" (entry by entry, one more nonlinearity on every path),
            "view" (entries are only rearranged), or a function `rule(tape, module, *arguments)` for a module class and
            `rule(tape, *arguments)` otherwise, written like those in `nladv_core.path_rules`.

    Raises:
        SpecError: if either is none of these.
    """
    is_module = isinstance(target, type) and issubclass(target, nn.Module)
    if not (is_module or callable(target) or isinstance(target, str)):
        raise SpecError(f"target is {target!r}; expected a module class, a function or the name of a tensor method.")
    ready: dict[str, tuple[Rule, Rule]] = {
        "same": (_same, _same_call),
        "nonlinear": (
            lambda tape, module, value, *_, **__: _nonlinear(tape, value),
            lambda tape, value, *_, **__: _nonlinear(tape, value),
        ),
        "view": (_view_rule, partial(_view_call, target=target)),
    }
    if isinstance(rule, str) and rule not in ready:
        raise SpecError(f"rule is {rule!r}; expected 'same', 'nonlinear', 'view' or a function.")
    made = ready[rule][0 if is_module else 1] if isinstance(rule, str) else rule
    if not callable(made):
        raise SpecError(f"rule is {rule!r}; expected 'same', 'nonlinear', 'view' or a function.")
    (MODULE_RULES if is_module else CALL_RULES)[target] = made
    if is_module and not target.__module__.startswith("torch.nn"):
        keep_whole(target)
    _declared.append(target)
