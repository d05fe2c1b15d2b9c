"""One training loop for all of it: plain networks, linearized ones, retraining with masks that stay as they are.

`fit` yields one row per epoch and knows nothing of files. What it reports is the state after that epoch; nobody here
looks for the best one. Within an epoch nothing is read back from the device: sums are kept there and read once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nladv_core import datasets
from nladv_core.errors import NladvError, SpecError
from nladv_core.linearize import (
    ChannelPReLU,
    GoalController,
    active_counts,
    active_fraction,
    freeze_linear_tensor_,
    parameter_groups,
    project_slopes_,
    slope_penalty,
    units,
)
from nladv_core.recipes import Recipe

PRECISIONS = ("float32", "bfloat16")


class TrainingDiverged(NladvError, ValueError):
    """The loss left the finite numbers."""


def stream(seed: int, *purpose: object) -> int:
    """Seed of an independent random stream: equal on every device, torch version and platform.

    Each epoch has streams of its own, so that a run resumed there sees the same shuffles and flips.
    """
    # torch's CPU generator looks at the low 32 bits only: neighbouring seeds are spread over all of them.
    return int.from_bytes(hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()[:7], "big")


def fit(
    net: nn.Module,
    data: datasets.ImageData,
    recipe: Recipe,
    *,
    seed: int,
    omega: float = 0.0,
    p: float = 0.5,
    goal: float | None = None,
    start: int = 0,
    pull_back: bool = False,
    margin: float = 0.01,
    precision: str = "float32",
    device: str | torch.device = "cpu",
    first: int = 0,
    momenta: dict[str, Tensor] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train `net` in place on `device`; one row per finished epoch.

    The loss is the cross entropy plus omega times the slope penalty over active units (paper §3). After each step the
    slopes are projected onto [0, 1], and while omega is in force units within `margin` of the line are locked. Without
    omega the slopes are learnable and unregularised, and no unit is locked: the masks stay what they were (§4.1.1).

    Args:
        net: plain, or linearized by `linearize`; left in eval mode on `device`.
        data: resident images; moved to `device` once.
        recipe: epochs, rates and batch; SGD without accumulation only.
        seed: decides shuffles and flips, not the weights `net` came with.
        omega: strength of the regularizer, >= 0.
        p: exponent of the penalty, > 0.
        goal: share of units to make inactive, in (0, 1); the regularizer then stops. None: it acts to the end.
        start: first epoch (from 0) with slopes switched on; before it every slope stays as it is (§4.1.2). With omega 0
            it may be the number of epochs: the slopes stay as they are to the end.
        pull_back: from the epoch after the goal is reached, pull the remaining active slopes back to 0 with the same
            omega (the paper advises against it).
        margin: distance from 1 below which a unit counts as linear.
        precision: "float32", or "bfloat16" by autocast.
        first: the epoch (from 0) to begin with. With the state dict that `net` had after the epochs before it and their
            `momenta`, the rest is the same to the bit, on the same device and versions.
        momenta: SGD's momentum by parameter name, read at the beginning; brought up to date before each row.

    Yields:
        `epoch` (from 1: epochs finished), `lr`, `omega` (in force at the epoch's last step), `train_loss` (mean cross
        entropy without the penalty) and `train_accuracy` over the epoch's batches as they were seen, `test_accuracy`
        after the epoch, `active_fraction` of units in [0, 1], `active` (active channels per unit group, in order).

    Raises:
        SpecError: arguments that contradict each other or a recipe this loop does not know.
        TrainingDiverged: the loss became NaN or infinite.
    """
    groups = units(net) if any(isinstance(module, ChannelPReLU) for module in net.modules()) else []
    if omega < 0 or not math.isfinite(omega):
        raise SpecError(f"omega is {omega:g}, expected a finite number of at least 0")
    if goal is not None and not 0 < goal < 1:
        raise SpecError(f"goal is {goal:g}, expected a share of inactive units between 0 and 1 (both excluded)")
    if omega > 0 and not groups:
        raise SpecError("omega is above 0 but the network has no slopes; linearize it first")
    if goal is not None and omega == 0:
        raise SpecError("a goal share needs omega above 0: nothing drives units towards the line without it")
    if pull_back and goal is None:
        raise SpecError("pull_back acts after a goal share is reached; give a goal too")
    latest = recipe.epochs - (omega > 0)
    if not 0 <= start <= latest:
        raise SpecError(f"start is {start}, expected an epoch of the run: 0 to {latest}")
    if not 0 <= first <= recipe.epochs:
        raise SpecError(f"first is {first}, expected an epoch of the run or its end: 0 to {recipe.epochs}")
    if precision not in PRECISIONS:
        raise SpecError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if recipe.optimizer != "sgd" or recipe.accumulate != 1 or recipe.warmup_steps:
        raise SpecError("this recipe is for text (Adam, warm-up, accumulated batches); images train with plain SGD")
    device, momenta = torch.device(device), {} if momenta is None else momenta
    return _epochs(
        net, data, recipe, seed, omega, p, goal, start, pull_back, margin, precision, device, groups, first, momenta
    )


def _epochs(
    net: nn.Module,
    data: datasets.ImageData,
    recipe: Recipe,
    seed: int,
    omega: float,
    p: float,
    goal: float | None,
    start: int,
    pull_back: bool,
    margin: float,
    precision: str,
    device: torch.device,
    slopes: list[tuple[str, ChannelPReLU]],
    first: int,
    momenta: dict[str, Tensor],
) -> Iterator[dict[str, Any]]:
    net.to(device).eval()
    if device.type == "cpu" and not _overruns_in_channels_last(net):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster
    data = data.to(device)
    groups = parameter_groups(net, recipe.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for name, parameter in net.named_parameters():
        if name in momenta:  # in the memory layout of the parameter, as the optimizer would have made it
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momenta[name])
    controller = GoalController(net, goal, omega, margin=margin) if goal is not None else None
    constant, nothing = torch.tensor(omega, device=device), torch.zeros((), device=device)
    count = len(data.train_labels)

    for epoch in range(first, recipe.epochs):
        switched_on = epoch >= start
        for _, unit in slopes:
            unit.slope.requires_grad_(switched_on)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        # Read once per epoch, not per step: this waits for the device.
        pulling = pull_back and controller is not None and switched_on and controller.reached
        order = torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, "order", epoch))).to(device)
        flips = torch.Generator(device).manual_seed(stream(seed, "flip", epoch))
        loss_sum, correct, force = nothing.clone(), nothing.clone(), nothing
        net.train()
        for batch in order.split(recipe.batch):
            images, labels = data.train_images[batch], data.train_labels[batch]
            if recipe.flip:
                images = datasets.augment(images, flips)
            with _autocast(precision, device):
                logits = net(datasets.normalize(images, data.mean, data.std))
            loss = cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            total = loss
            if slopes and switched_on and omega > 0:
                force = controller.omega() if controller is not None else constant
                total = loss + force * slope_penalty(net, p)
                if pulling:
                    total = total + constant * slope_penalty(net, p, target=0.0)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            if slopes and switched_on:
                project_slopes_(net)
                if controller is not None:
                    controller.freeze_()
                elif omega > 0:
                    freeze_linear_tensor_(net, margin)
            with torch.no_grad():
                loss_sum += loss.detach() * len(batch)
                correct += (logits.argmax(1) == labels).sum()
        right = _correct(net, data, precision)
        sums = torch.stack([loss_sum, correct, force.detach().to(loss_sum.dtype), right.to(loss_sum.dtype)]).tolist()
        if not math.isfinite(sums[0]):
            raise TrainingDiverged(
                f"the loss became {'NaN' if math.isnan(sums[0]) else 'infinite'} in epoch {epoch + 1} of "
                f"{recipe.epochs}; the likely cause is a step that is too large: lower lr (now {recipe.lr_at(epoch):g})"
                + (f" or omega (now {omega:g})" if omega > 0 else "")
            )
        buffers = {name: optimizer.state[weight].get("momentum_buffer") for name, weight in net.named_parameters()}
        momenta |= {name: buffer for name, buffer in buffers.items() if buffer is not None}
        yield {
            "epoch": epoch + 1,
            "lr": recipe.lr_at(epoch),
            "omega": sums[2],
            "train_loss": sums[0] / count,
            "train_accuracy": sums[1] / count,
            "test_accuracy": sums[3] / len(data.test_labels),
            "active_fraction": active_fraction(net) if slopes else 1.0,
            "active": [float(active) for active, _ in active_counts(net).values()] if slopes else [],
        }


def _overruns_in_channels_last(net: nn.Module) -> bool:
    """Whether oneDNN would write past its buffer while training `net`, which crashes or gives wrong gradients.

    It does for a strided 1×1 convolution with fewer input channels than a vector has lanes, 8 or 16 by processor
    (https://github.com/uxlfoundation/oneDNN/issues/6035, open at the time of writing).
    """
    return any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < 16
        for module in net.modules()
    )


def untrained_row(
    net: nn.Module, data: datasets.ImageData, *, device: str | torch.device = "cpu", precision: str = "float32"
) -> dict[str, Any]:
    """The row of epoch 0, for a network that is taken as it is; `net` is left in eval mode on `device`.

    `train_loss` and `train_accuracy` are over the first 10,000 training images, unmirrored.
    """
    device = torch.device(device)
    net.to(device).eval()
    data = data.to(device)
    images, labels = data.train_images[:10_000], data.train_labels[:10_000]
    loss = torch.zeros((), device=device, dtype=torch.float64)
    right = torch.zeros((), device=device, dtype=torch.int64)
    with torch.no_grad(), _autocast(precision, device):
        for batch, truth in zip(images.split(_at_once(data)), labels.split(_at_once(data)), strict=True):
            logits = net(datasets.normalize(batch, data.mean, data.std)).float()
            loss += cross_entropy(logits, truth, reduction="sum")
            right += (logits.argmax(1) == truth).sum()
    return {
        "epoch": 0,
        "lr": 0.0,
        "omega": 0.0,
        "train_loss": float(loss) / len(labels),
        "train_accuracy": float(right) / len(labels),
        "test_accuracy": accuracy(net, data, device=device, precision=precision),
        "active_fraction": 1.0,
        "active": [],
    }


def accuracy(
    net: nn.Module, data: datasets.ImageData, *, device: str | torch.device = "cpu", precision: str = "float32"
) -> float:
    """Share of the test images that `net` classifies correctly, in [0, 1]; `net` is left in eval mode on `device`."""
    device = torch.device(device)
    net.to(device)
    data = data.to(device)
    right = _correct(net, data, precision)
    return float(right) / len(data.test_labels)


@torch.no_grad()
def _correct(net: nn.Module, data: datasets.ImageData, precision: str) -> Tensor:
    net.eval()
    batch = _at_once(data)
    right = torch.zeros((), dtype=torch.int64, device=data.test_images.device)
    with _autocast(precision, data.test_images.device):
        for images, labels in zip(data.test_images.split(batch), data.test_labels.split(batch), strict=True):
            right += (net(datasets.normalize(images, data.mean, data.std)).argmax(1) == labels).sum()
    return right


def _at_once(data: datasets.ImageData) -> int:
    """Images to judge at once: 1,000, or of those with more than 64 pixels a side what takes as much memory."""
    return min(1000, max(1, 1000 * 64**2 // math.prod(data.test_images.shape[2:])))


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
