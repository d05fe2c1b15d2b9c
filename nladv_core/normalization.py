"""Batch norm in training that adds up block by block: of several ranks together, and where a CPU's step is compiled.

What it gives is what torch's gives, up to rounding. torch's own has no sum over ranks on a CPU, and compiled for one it
runs over all pixels once for every 16 channels, each sum waiting for the one before. Blocks of rows stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BLOCK = 256  # rows: 32 KiB with 64 channels of bfloat16, which is what the nearest cache holds


class Normalization:
    """While this context lasts, batch norm of `net` in training goes by the sums over all ranks; it can come again.

    Args:
        net: whose layers.
        total: from a tensor to its sum over all ranks, the same bits on each; None: there is one rank.
        compiled: only where a compiler traces the network; what runs as it is stays torch's own.
    """

    def __init__(
        self, net: nn.Module, total: Callable[[Tensor], Tensor] | None = None, *, compiled: bool = False
    ) -> None:
        # Made once: a compiled program holds for the very function that it was made from.
        self._forward = {
            layer: partial(_normalize, layer, total or _alone, compiled)
            for layer in net.modules()
            if isinstance(layer, _BatchNorm)
        }

    def __enter__(self) -> None:
        for layer, forward in self._forward.items():
            layer.forward = forward  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for layer in self._forward:
            del layer.forward  # the class's own again


def _alone(here: Tensor) -> Tensor:
    return here


def _normalize(layer: _BatchNorm, total: Callable[[Tensor], Tensor], compiled: bool, values: Tensor) -> Tensor:
    """`layer(values)`."""
    if not layer.training or (compiled and not torch.compiler.is_compiling()):
        return type(layer).forward(layer, values)
    found, mean, variance, number = _Normalize.apply(values, layer.weight, layer.bias, layer.eps, total)
    if layer.track_running_stats:
        with torch.no_grad():
            assert layer.running_mean is not None and layer.running_var is not None
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            weight = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean, weight)
            layer.running_var.lerp_(variance * (number / (number - 1)), weight)
    return found


class _Normalize(torch.autograd.Function):
    """weight · (values - mean) / √(variance + eps) + bias over all axes but the second; mean, variance, count."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        total: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, here = _rows(values), values.numel() // values.shape[1]
        number = total(torch.full((1,), here, dtype=rows.dtype, device=values.device))
        share = number.reciprocal()  # a compiler puts such factors into the loop over pixels, where a division is slow
        mean = total(_sum(rows)) * share
        variance = total(_sum((rows - mean).square())) * share
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(values, weight, mean, scale, share)
        ctx.total = total
        ctx.mark_non_differentiable(mean, variance, number)
        # Not from the rows: what comes out keeps the memory layout of `values`, which not every network may change.
        found = values.float() - _wide(mean, values)
        found = found * _wide(scale if weight is None else scale * weight, values)
        found = found if bias is None else found + _wide(bias, values)
        return found.to(values.dtype), mean, variance, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        values, weight, mean, scale, share = ctx.saved_tensors
        rows, normalized = _rows(gradient), (_rows(values) - mean) * scale
        # Of these, each rank's own are its weights' and biases' gradients; means over ranks are for others to take.
        sums = torch.stack([_sum(rows * normalized), _sum(rows)])
        along, plain = ctx.total(sums) * share
        found = (values.float() - _wide(mean, values)) * _wide(scale * along, values)
        found = gradient.float() - _wide(plain, values) - found
        found = found * _wide(scale if weight is None else scale * weight, values)
        affine = (None, None) if weight is None else sums.unbind()
        return found.to(values.dtype), *affine, None, None


def _rows(values: Tensor) -> Tensor:
    """Float32 [blocks, rows, channels] of values [images, channels, ...]."""
    flat = values.movedim(1, -1).reshape(-1, values.shape[1])
    return flat.view(-1, math.gcd(len(flat), _BLOCK), values.shape[1]).float()


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(1).sum(0)


def _wide(channels: Tensor, values: Tensor) -> Tensor:
    return channels.view([-1 if dim == 1 else 1 for dim in range(values.dim())])
