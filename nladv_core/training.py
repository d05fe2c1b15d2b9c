"""One training loop for all of it: plain networks, linearized ones, retraining with masks that stay as they are.

`fit` yields one row per epoch and knows nothing of files. What it reports is the state after that epoch; nobody here
looks for the best one. Within an epoch nothing is read back from the device: sums are kept there and read once.

What makes it fast: data that stay on the device as bytes and are augmented there by the batch, channels-last memory, on
a GPU an optimiser in one kernel, and on request bfloat16 and a compiled step, on a CPU with a batch norm that compiles
well there and shorter vectors for narrow layers. The last two change how sums are rounded, nothing else: not the
order of images, nor their flips.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nladv_core import datasets, tasks
from nladv_core.devices import ALONE, Ranks
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
    slope_weights,
    units,
    weighted_activity,
)
from nladv_core.normalization import Normalization
from nladv_core.recipes import Recipe
from nladv_core.tasks import NOT_ASKED, Batch, Task, stream
from nladv_core.texts import TextData

PRECISIONS = ("float32", "bfloat16")


class NotCompiled(UserWarning):
    """A step that was to be compiled runs as it is."""


class TrainingDiverged(NladvError, ValueError):
    """The loss left the finite numbers."""


def fit(
    net: nn.Module,
    data: datasets.ImageData | TextData | Task,
    recipe: Recipe,
    *,
    seed: int,
    omega: float = 0.0,
    p: float = 0.5,
    goal: float | None = None,
    start: int = 0,
    pull_back: bool = False,
    margin: float = 0.01,
    slope_lr: float = 1.0,
    precision: str = "float32",
    compiled: bool = False,
    device: str | torch.device = "cpu",
    first: int = 0,
    momenta: dict[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    price_weights: Mapping[str, Tensor] | None = None,
    measure_weights: Mapping[str, Tensor] | None = None,
    not_compiled: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train `net` in place on `device`; one row per finished epoch.

    The loss is the cross entropy plus omega times the slope penalty over active units (paper §3). After each step the
    slopes are projected onto [0, 1], and while omega is in force units within `margin` of the line are locked. Without
    omega the slopes are learnable and unregularised, and no unit is locked: the masks stay what they were (§4.1.1).

    Args:
        net: plain, or linearized by `linearize`; left in eval mode on `device`.
        data: images, or sentences and their translations; moved to `device` once.
        recipe: epochs, rates, batch and optimiser.
        seed: decides shuffles, flips and dropout, not the weights `net` came with.
        omega: strength of the regularizer, >= 0.
        p: exponent of the penalty, > 0.
        goal: share of units to make inactive, in (0, 1), or with `measure_weights` what may be left of
            Σ weight·active, above 0 and below what is there at the beginning; the regularizer then stops. None: it acts
            to the end.
        start: first epoch (from 0) with slopes switched on; before it every slope stays as it is (§4.1.2). With omega 0
            it may be the number of epochs: the slopes stay as they are to the end.
        pull_back: from the epoch after the goal is reached, pull the remaining active slopes back to 0 with the same
            omega, every slope alike (the paper advises against it).
        margin: distance from 1 below which a unit counts as linear.
        slope_lr: factor of the recipe's learning rate for slopes, > 0.
        precision: "float32", or "bfloat16" by autocast.
        compiled: compile forward and backward pass (`torch.compile`; with CUDA graphs on a GPU), which takes a minute
            and pays for runs that last. Batches of another shape than the first are left out: of sentences nearly all.
        first: the epoch (from 0) to begin with. With the state dict that `net` had after the epochs before it and their
            `momenta`, the rest is the same to the bit, on the same device and versions.
        momenta: the optimiser's state by parameter name, read at the beginning; brought up to date before each row.
        ranks: the processes that train this network together, each with an equal `net` and all else equal too; the rows
            are those of the whole.
        price_weights: what the penalty charges for each unit, by group name, as for `slope_penalty`. None: each slope
            alike.
        measure_weights: what the goal counts for each unit, by group name, as for `GoalController`; `unit_weights`
            makes some. None: units.
        not_compiled: called besides the warning `NotCompiled`.

    Yields:
        `epoch` (from 1: epochs finished), `lr` and `omega` (in force at the epoch's last step), `train_loss` (mean
        cross entropy without the penalty) and `train_accuracy` over the epoch's batches as they were seen,
        `test_accuracy` after the epoch and what else the task measures (`Task.measured`), `active_fraction` of units in
        [0, 1], `active` (active channels per unit group, in order). Of sentences these are means over tokens, each told
        those before it.

    Raises:
        SpecError: arguments that contradict each other or a recipe this loop does not know.
        TrainingDiverged: the loss became NaN or infinite.

    Warns:
        NotCompiled: there is no compiler here, or it refused the network; the run goes on without.
    """
    if not isinstance(recipe, Recipe):
        raise SpecError(f"the recipe is {recipe!r:.80}, expected a Recipe, such as one of nladv_core.recipes.RECIPES")
    groups = units(net) if any(isinstance(module, ChannelPReLU) for module in net.modules()) else []
    if omega < 0 or not math.isfinite(omega):
        raise SpecError(f"omega is {omega:g}, expected a finite number of at least 0")
    if goal is not None and measure_weights is None and not 0 < goal < 1:
        raise SpecError(f"goal is {goal:g}, expected a share of inactive units between 0 and 1 (both excluded)")
    if omega > 0 and not groups:
        raise SpecError("omega is above 0 but the network has no slopes; linearize it first")
    if goal is not None and omega == 0:
        raise SpecError("a goal share needs omega above 0: nothing drives units towards the line without it")
    if pull_back and goal is None:
        raise SpecError("pull_back acts after a goal share is reached; give a goal too")
    if price_weights is not None and omega == 0:
        raise SpecError("price_weights need omega above 0: without it there is no penalty")
    if measure_weights is not None:
        if goal is None:
            raise SpecError("measure_weights say what a goal counts; give a goal too")
        # A run that goes on may be at its goal already.
        there = weighted_activity(net, measure_weights) if first == 0 else math.inf
        if not 0 < goal < there:
            raise SpecError(f"goal is {goal:g}, expected above 0 and below what is there at the beginning, {there:.6g}")
    prices = None if price_weights is None else slope_weights(net, price_weights)
    latest = recipe.epochs - (omega > 0)
    if not 0 <= start <= latest:
        raise SpecError(f"start is {start}, expected an epoch of the run: 0 to {latest}")
    if not 0 <= first <= recipe.epochs:
        raise SpecError(f"first is {first}, expected an epoch of the run or its end: 0 to {recipe.epochs}")
    if precision not in PRECISIONS:
        raise SpecError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    task = tasks.of(data)
    device, momenta = datasets.checked_device(device), {} if momenta is None else momenta
    return _epochs(
        net,
        task,
        recipe,
        seed,
        omega,
        p,
        goal,
        start,
        pull_back,
        margin,
        slope_lr,
        precision,
        compiled,
        device,
        groups,
        first,
        momenta,
        ranks,
        prices,
        measure_weights,
        not_compiled,
    )


def _epochs(
    net: nn.Module,
    task: Task,
    recipe: Recipe,
    seed: int,
    omega: float,
    p: float,
    goal: float | None,
    start: int,
    pull_back: bool,
    margin: float,
    slope_lr: float,
    precision: str,
    compiled: bool,
    device: torch.device,
    slopes: list[tuple[str, ChannelPReLU]],
    first: int,
    momenta: dict[str, Tensor],
    ranks: Ranks,
    prices: Tensor | None,
    measure_weights: Mapping[str, Tensor] | None,
    not_compiled: Callable[[], None] | None,
) -> Iterator[dict[str, Any]]:
    net.to(device).eval()
    if device.type != "cpu" or not _overruns_in_channels_last(net):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what convolutions are fastest in
    task = task.to(device)
    optimizer = _optimizer(net, recipe, slope_lr)
    _restore(optimizer, net, momenta)
    controller = None
    if goal is not None:
        controller = GoalController(net, goal, omega, margin=margin, weights=measure_weights)
    if prices is not None:
        prices = prices.to(slopes[0][1].slope)
    constant, nothing = torch.tensor(omega, device=device), torch.zeros((), device=device)
    forward = _forward(net, precision, device, recipe.label_smoothing)
    if compiled:
        forward = _compiled(forward, device, net, not_compiled)
    normalization = _normalization(net, ranks, compiled, device)
    steps = math.ceil(task.batch_count(recipe) / recipe.accumulate)  # of the optimiser, each epoch

    for epoch in range(first, recipe.epochs):
        switched_on = epoch >= start
        for _, unit in slopes:
            unit.slope.requires_grad_(switched_on)
        if ranks.count > 1 and epoch in (first, start):  # when other parameters take part
            forward = _forward(ranks.trained(net), precision, device, recipe.label_smoothing, reduction="sum")
        # Read once per epoch, not per step: this waits for the device.
        pulling = pull_back and controller is not None and switched_on and controller.reached
        loss_sum, correct, force = nothing.clone(), nothing.clone(), nothing
        sound = nothing.clone()  # batches up to which the sum is a finite number: once it is not, it stays so
        net.train()
        with _dropout(device, stream(seed, "dropout", epoch, *ranks.purpose)), normalization:
            for number, step in enumerate(_lots(task.batches(recipe, seed, epoch), recipe.accumulate)):
                for group in optimizer.param_groups:
                    group["lr"] = group["factor"] * recipe.lr_at(epoch, epoch * steps + number)
                optimizer.zero_grad(set_to_none=True)
                asked = sum(batch.count for batch in step)
                for batch in step:
                    part = ranks.part(batch)
                    logits, loss = forward(part.labels, *part.inputs)
                    if ranks.count > 1:  # the mean over ranks is that over the whole batch, however uneven the parts
                        loss = loss * (ranks.count / batch.count)
                    # Accumulated batches count as the one batch that they stand for.
                    total = loss if len(step) == 1 else loss * (batch.count / asked)
                    if slopes and switched_on and omega > 0 and batch is step[0]:
                        force = controller.omega() if controller is not None else constant
                        total = total + force * slope_penalty(net, p, weights=prices)
                        if pulling:
                            total = total + constant * slope_penalty(net, p, target=0.0)
                    total.backward()
                    with torch.no_grad():
                        loss_sum += loss.detach() * batch.count
                        sound += loss_sum - loss_sum == 0
                        correct += (logits.argmax(-1) == part.labels).sum()
                optimizer.step()
                if slopes and switched_on:
                    project_slopes_(net)
                    if controller is not None:
                        controller.freeze_()
                    elif omega > 0:
                        freeze_linear_tensor_(net, margin)
        judged = recipe.judges(epoch)
        right, lost = _judged(net, task, precision, ranks) if judged else (nothing, _unsound(net))
        loss_sum, correct = ranks.total(loss_sum) / ranks.count, ranks.total(correct)
        found = [loss_sum, correct, force.detach(), right, lost, sound]
        sums = torch.stack([value.to(torch.float64) for value in found]).tolist()
        if not math.isfinite(sums[0]):
            at = f"at step {min(int(sums[5]) // recipe.accumulate + 1, steps)} of {steps} in"
            raise _diverged(sums[0], at, epoch, recipe, omega, precision, begun=epoch > first or sums[5] > 0)
        if not math.isfinite(sums[4]):  # the last step did it; or else it would be saved as good
            raise _diverged(
                sums[4],
                "on the test split after" if judged else "with the weights after",
                epoch,
                recipe,
                omega,
                precision,
                begun=True,
            )
        momenta |= _state(optimizer, net)
        yield {
            "epoch": epoch + 1,
            "lr": recipe.lr_at(epoch, (epoch + 1) * steps - 1),
            "omega": sums[2],
            "train_loss": sums[0] / task.asked,
            "train_accuracy": sums[1] / task.asked,
            "test_accuracy": sums[3] / task.asked_in_test if judged else None,
            **(task.measured(sums[4] / task.asked_in_test) if judged else {}),
            "active_fraction": active_fraction(net) if slopes else 1.0,
            "active": [float(active) for active, _ in active_counts(net).values()] if slopes else [],
        }


def _unsound(net: nn.Module) -> Tensor:
    """0, or NaN where a weight of `net` is no finite number; 0-d float64."""
    return torch.stack([(parameter.detach() * 0.0).sum().double() for parameter in net.parameters()]).sum()


def _diverged(
    value: float, where: str, epoch: int, recipe: Recipe, omega: float, precision: str, *, begun: bool
) -> TrainingDiverged:
    """What happened, when, and the likely cause."""
    cause = "a step that is too large: "
    cause += f"lower lr (now {recipe.lr_at(epoch):g})" + (f" or omega (now {omega:g})" if omega > 0 else "")
    cause += ", or use precision float32" if precision != "float32" else ""
    if not begun:  # no step has been made yet
        cause = "what it began with: look for NaN, infinite or huge values in its weights and its data"
    what = "NaN" if math.isnan(value) else "infinite"
    return TrainingDiverged(
        f"the loss became {what} {where} epoch {epoch + 1} of {recipe.epochs}; the likely cause is {cause}"
    )


def _normalization(net: nn.Module, ranks: Ranks, compiled: bool, device: torch.device) -> AbstractContextManager[None]:
    """Batch norm over the batches of all ranks taken together, or as a compiled step is fast with."""
    if ranks.count > 1:
        return Normalization(net, ranks.total)
    return Normalization(net, compiled=True) if compiled and device.type == "cpu" else nullcontext()


_Forward = Callable[..., tuple[Tensor, Tensor]]


def _forward(
    net: nn.Module, precision: str, device: torch.device, label_smoothing: float, reduction: str = "mean"
) -> _Forward:
    """Labels and inputs of a batch to its logits and its loss: all that a compiler can make one program of."""

    def forward(labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        with _autocast(precision, device):
            logits = net(*inputs)
        return logits, _loss(logits, labels, label_smoothing=label_smoothing, reduction=reduction)

    return forward


def _compiled(
    forward: _Forward, device: torch.device, net: nn.Module, not_compiled: Callable[[], None] | None = None
) -> _Forward:
    """`forward`, which is that of `net`, compiled for batches of the shape of the first one."""
    from torch._dynamo.exc import TorchDynamoException  # here, as it takes a second

    how: dict[str, Any] = {"mode": "reduce-overhead"} if device.type == "cuda" else {"options": _vectors(net)}
    # Else programs of the networks before this one count against the number that a function may have.
    torch.compiler.reset()
    fast: _Forward | None = torch.compile(forward, dynamic=False, **how)
    usual: list[torch.Size] | None = None

    def either(labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal fast, usual
        shapes = [x.shape for x in inputs]
        if usual is None:
            usual = shapes
        if fast is None or shapes != usual:
            return forward(labels, *inputs)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return fast(labels, *inputs)
        except TorchDynamoException as error:
            # Nothing has been computed yet: the compiler comes first.
            fast = None
            why = str(error).strip().partition("\n")[0]
            warnings.warn(f"the step is not compiled and runs more slowly ({why})", NotCompiled, stacklevel=4)
            if not_compiled is not None:
                not_compiled()
            return forward(labels, *inputs)

    return either


def _vectors(net: nn.Module) -> dict[str, Any]:
    """Options of the compiler for `net` on this CPU: vectors of 256 bits if it has layers that do not fill 512.

    32 channels of bfloat16 do. With fewer every load and store of a pixel is masked: batch norm's backward pass with 16
    channels took three times as long. One length holds for all layers: with 16 to 64 channels the narrow ones gain more
    than the others lose; where nearly all are wide this was not measured.
    """
    narrow = any(isinstance(module, nn.Conv2d) and module.out_channels < 32 for module in net.modules())
    return {"cpp.simdlen": 256} if narrow and torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


def _optimizer(net: nn.Module, recipe: Recipe, slope_lr: float) -> torch.optim.Optimizer:
    own, *slopes = parameter_groups(net, recipe.weight_decay)
    groups = [own | {"factor": 1.0}, *(group | {"factor": slope_lr} for group in slopes)]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
    # On a CPU it gains next to nothing, and reads a parameter and its momentum by the order in memory alone: with
    # different layouts, which nothing here makes but nothing there refuses, weights would be mixed up in silence.
    fused = all(parameter.device.type == "cuda" for parameter in net.parameters())
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
    )


# What an optimiser keeps of each parameter, and what comes before the parameter's name where that is kept on disk.
_KEPT = {"momentum_buffer": "", "exp_avg": "exp_avg/", "exp_avg_sq": "exp_avg_sq/", "step": "step/"}


def _state(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by name; `_restore` puts it back."""
    found = {}
    for name, parameter in net.named_parameters():
        for what, before in _KEPT.items():
            kept = optimizer.state[parameter].get(what)
            if kept is not None:
                found[before + name] = kept
    return found


def _restore(optimizer: torch.optim.Optimizer, net: nn.Module, momenta: dict[str, Tensor]) -> None:
    for name, parameter in net.named_parameters():
        for what, before in _KEPT.items():
            kept = momenta.get(before + name)
            if kept is None:
                continue
            # In the memory layout of the parameter, as the optimizer would have made it; a count stays where it is.
            like = torch.empty_like(parameter) if kept.shape == parameter.shape else torch.empty_like(kept)
            optimizer.state[parameter][what] = like.copy_(kept)


def _lots(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lots of `size` batches; the last one may be smaller."""
    rest = iter(batches)
    while lot := list(itertools.islice(rest, size)):
        yield lot


@contextmanager
def _dropout(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws from a stream of its own; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _loss(logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
    """Cross entropy of logits [..., classes] over the labels [...] that are asked for."""
    return cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=NOT_ASKED, **more)


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
        size = tasks.at_once(images)
        for batch, truth in zip(images.split(size), labels.split(size), strict=True):
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
    net: nn.Module,
    data: datasets.ImageData | TextData | Task,
    *,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> float:
    """Share of the test labels that `net` gets right, in [0, 1]; `net` is left in eval mode on `device`."""
    device = torch.device(device)
    net.to(device)
    task = tasks.of(data).to(device)
    right, _ = _judged(net, task, precision)
    return float(right) / task.asked_in_test


@torch.no_grad()
def _judged(net: nn.Module, task: Task, precision: str, ranks: Ranks = ALONE) -> tuple[Tensor, Tensor]:
    """Of the test split: how many labels are right, int64, and the sum of cross entropies in nats, float64."""
    net.eval()
    right, lost = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    for batch in ranks.share(task.test_batches()):
        right, lost = right.to(batch.labels.device), lost.to(batch.labels.device)
        with _autocast(precision, batch.labels.device):
            logits = net(*batch.inputs)
        right += (logits.argmax(-1) == batch.labels).sum()
        lost += _loss(logits, batch.labels, reduction="sum")
    return ranks.total(right), ranks.total(lost)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
