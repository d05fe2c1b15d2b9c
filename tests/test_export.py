"""Linearized networks leave PyTorch's Python: torch.export and ONNX compute what they compute, at any batch size."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

import nladv_core as nl


def partly_linear(net: nn.Module) -> nn.Module:
    """Random slopes, about a third of them locked."""
    generator = torch.Generator().manual_seed(0)
    for _, unit in nl.units(net):
        with torch.no_grad():
            unit.slope.copy_(torch.rand(unit.slope.shape, generator=generator))
    nl.freeze_linear_(net, margin=0.35)
    assert 0 < nl.active_fraction(net) < 1
    return net.eval()


class LastAxis(nn.Module):
    """Channels on the last axis, and a clipped unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(nn.functional.relu6(self.a(x)))).mean(1))


NETWORKS = {
    "channel": lambda: nl.linearize(nl.nets.build("resnet8"), (3, 16, 16)),
    "layer": lambda: nl.linearize(nl.nets.build("resnet8"), (3, 16, 16), granularity="layer"),
    "pixel": lambda: nl.linearize(nl.nets.build("resnet8"), (3, 16, 16), granularity="pixel"),
    "last axis": lambda: nl.linearize(LastAxis(), (5, 3), relu6=True),
    "resnet18": lambda: nl.linearize(torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_export_and_onnx_compute_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = partly_linear(NETWORKS[name]())
    shape = {"last axis": (5, 3), "resnet18": (3, 32, 32)}.get(name, (3, 16, 16))
    exported = torch.export.export(net, (torch.randn(2, *shape),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(5, *shape)
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(exported.module()(x), expected, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of code of its own
        program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # the judge can tell: without the slopes it is another function
        for _, unit in nl.units(net):
            unit.slope.zero_()
            unit.active.fill_(True)
        assert not np.allclose(found, net(x).numpy(), rtol=1e-2, atol=1e-2)
