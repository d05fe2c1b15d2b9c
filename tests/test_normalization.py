"""Batch norm that adds up block by block against torch's own, in one process; with several ranks: test_devices.py."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nladv_core.normalization import Normalization

SHAPES = [(6, 5), (7, 3, 11), (8, 4, 6, 6), (3, 70, 5, 7), (2, 3, 4, 4, 4)]
LAYERS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
HOW: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"momentum": None},
    {"track_running_stats": False},
    {"eps": 0.1, "momentum": 0.7},
]


def stirred(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def trained(net: nn.Module, values: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """What a step leaves: output, gradients, buffers."""
    values = values.clone(memory_format=torch.preserve_format).requires_grad_()
    net.zero_grad(set_to_none=True)
    found = net(values)
    found.backward(gradient)
    assert values.grad is not None
    assert found.dtype == values.dtype and values.grad.dtype == values.dtype
    grads = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    state = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return {"output": found.detach(), "gradient": values.grad, **grads, **state}


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_what_torch_does(shape: tuple[int, ...], how: dict[str, Any]) -> None:
    """Output, gradients and running statistics, of two steps, far from zero too; in evaluation it is torch's own."""
    torch.manual_seed(0)
    own = stirred(LAYERS[len(shape)](shape[1], **how))
    other = copy.deepcopy(own).double()
    normalization = Normalization(own)
    for centre in (0.0, 30.0):
        values, gradient = centre + torch.randn(shape), torch.randn(shape)
        if len(shape) == 4:
            values = values.to(memory_format=torch.channels_last)
        with normalization:
            found = trained(own, values, gradient)
        expected = trained(other, values.double(), gradient.double())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_dtype=False)
    own.load_state_dict(other.eval().state_dict())
    own.eval()
    with normalization:
        assert torch.equal(own(values), other.float()(values))
    assert "forward" not in vars(own)


def test_bfloat16_is_added_up_in_float32() -> None:
    torch.manual_seed(0)
    values = (100 + torch.randn(64, 3, 16, 16)).bfloat16()
    layer = nn.BatchNorm2d(3, momentum=1.0)
    with Normalization(layer):
        assert layer(values).dtype == torch.bfloat16
    torch.testing.assert_close(layer.running_mean, values.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var, values.double().var((0, 2, 3)).float(), rtol=1e-4, atol=0)


def test_ranks_normalize_by_what_all_have() -> None:
    """Two ranks, of which the other is known beforehand: as one that has the values of both."""
    torch.manual_seed(0)
    here, there = torch.randn(8, 4, 6, 6), 5 + 2 * torch.randn(4, 4, 6, 6)
    both = torch.cat([here, there])
    pixels = both.movedim(1, -1).flatten(0, -2)
    others = there.movedim(1, -1).flatten(0, -2)
    # In the order in which they are asked for: how many, their sum, their squared distances from the mean of all.
    missing = iter([torch.tensor([float(len(others))]), others.sum(0), (others - pixels.mean(0)).square().sum(0)])
    layer, whole = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    with Normalization(layer, lambda value: value + next(missing)):
        found = layer(here)
    torch.testing.assert_close(found, whole(both)[: len(here)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, whole.running_var)


def test_without_a_compiler_torchs_own_is_called() -> None:
    layer = nn.BatchNorm2d(3)
    with Normalization(layer, pytest.fail, compiled=True):
        layer(torch.randn(2, 3, 4, 4))


def test_compiled_it_takes_part() -> None:
    """As the compiled step has it: a program that calls `total`."""
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    values = torch.randn(4, 3, 8, 8)
    program = torch.compile(lambda x: layer(x), backend="eager")
    with Normalization(layer, lambda value: 2 * value, compiled=True):  # as if there were twice as much of the same
        found = program(values)
    torch.testing.assert_close(found, other(values), rtol=1e-4, atol=1e-5)
    assert layer.running_var is not None and other.running_var is not None
    count = values[:, 0].numel()
    more = (2 * count) / (2 * count - 1) * (count - 1) / count
    torch.testing.assert_close(layer.running_var - 0.9, (other.running_var - 0.9) * more)
