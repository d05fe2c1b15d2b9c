"""The networks against a functional rewrite of their definition, pinned counts and published results."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paper_algorithm
from nladv_core import datasets, nets
from nladv_core.compat import import_torchvision
from nladv_core.errors import DataError, SpecError
from nladv_core.linearize import apply_masks_, linearize, masks, units
from nladv_core.paths import path_length
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store, run

# --------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet56", {}, 853_018),
        ("resnet56v1", {}, 853_018),
        ("resnet56", {"residual": False}, 853_018),
        ("resnet20", {}, 269_722),
        ("resnet32v1", {}, 464_154),
        ("resnet44v1", {}, 658_586),
        ("resnet20", {"classes": 100}, 275_572),
        ("resnet20", {"in_channels": 1}, 269_434),
        ("resnet56", {"shortcut": "B"}, 855_578),  # + 16 * 32 + 32 * 64
        ("resnet56v1", {"shortcut": "B"}, 855_770),  # + two batch norms
        (
            "resnet56",
            {"width": 2.0, "shortcut": "B"},
            3_412_010,
        ),  # 32² (378 * 9 - 90) + 9 * 32 * 3 + 2 * 4064 + 1290 + 10 * 32²
        ("pyramidnet110", {}, 3_904_446),  # as the tests of pytorchcv count it (pyramidnet110_a84_cifar10), and with
        ("pyramidnet110", {"classes": 100}, 3_913_536),  # 100 classes
        ("pyramidnet110", {"residual": False}, 3_904_446),
        ("pyramidnet41", {"classes": 200}, 1_811_742),
        ("pyramidnet20", {"width": 0.5}, 173_009),
        ("toynet20", {}, 168_298),
        ("toynet56", {"classes": 100, "residual": False}, 505_348),  # 864 + 54 * 9216 + 55 * 64 + 33 * 100
        ("torchvision/resnet50", {"classes": 1000}, 25_557_032),  # as torchvision says
    ],
)
def test_parameter_counts(name: str, options: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in nets.build(name, **options).parameters()) == parameters
    if name.startswith("pyramidnet"):
        assert _pyramid_parameters(name, **options) == parameters


def _pyramid_planes(name: str, width: float = 1) -> list[int]:
    """Channels behind the stem and of each block (in bottlenecks: of its middle), by the definition."""
    stem, first, widening, blocks = 16, 16, 84, (int(name[10:]) - 2) // 2
    if name == "pyramidnet41":
        stem, first, widening, blocks = 64, 32, 96, 13
    w = Fraction(width)
    return [round(w * stem)] + [round(w * (first + Fraction(widening * i, blocks))) for i in range(1, blocks + 1)]


def _pyramid_parameters(
    name: str, classes: int = 10, width: float = 1, residual: bool = True, in_channels: int = 3
) -> int:
    stem, *planes = _pyramid_planes(name, width)
    tiny = name == "pyramidnet41"
    total, before = in_channels * stem * (25 if tiny else 9) + 2 * stem, stem
    for p in planes:
        if tiny:
            total += before * p + 9 * p * p + p * 4 * p + 2 * (before + p + p + 4 * p)
            before = 4 * p
        else:
            total += 9 * before * p + 9 * p * p + 2 * (before + p + p)
            before = p
    return total + 2 * before + (before + 1) * classes


# Lengths of an all-active network's paths, worked out by hand in the docstrings and pinned to what the paper's own
# algorithm gives on these shapes (tests/paper_algorithm.py; minutes for PyramidNet-110, so smaller ones are compared
# below): (unit groups, units, NAPL, APL).
LENGTHS = {
    ("pyramidnet110", True, 32): (55, 3274, 28.894218908130, 54.999570258265),
    ("pyramidnet110", False, 32): (55, 3274, 55, 55),
    ("pyramidnet41", True, 64): (28, 2752, 16.713984328753, 27.999996291522),
    ("pyramidnet41", False, 64): (28, 2752, 28, 28),
    ("toynet20", True, 32): (19, 608, 10, 18.936045358560),
    ("toynet20", False, 32): (19, 608, 19, 19),
    ("toynet56", True, 32): (55, 1760, 28, None),
    ("torchvision/resnet50", True, 64): (49, 22720, 33, None),
}


@pytest.mark.parametrize(("name", "residual", "side"), list(LENGTHS))
def test_path_lengths_of_all_active_networks(name: str, residual: bool, side: int) -> None:
    groups, count, napl, apl = LENGTHS[name, residual, side]
    shape = (3, side, side)
    net = linearize(nets.build(name, residual=residual), shape)
    assert [len(units(net)), sum(unit.channels for _, unit in units(net))] == [groups, count]
    assert path_length(net, shape).mean == pytest.approx(napl, abs=1e-9)
    if apl is not None:
        assert path_length(net, shape, normalized=False).mean == pytest.approx(apl, abs=1e-9)
    pooled = 1 if name in ("pyramidnet41", "torchvision/resnet50") else 0
    assert path_length(net, shape, count_max_pool=True).mean == pytest.approx(napl + pooled, abs=1e-9)
    if name.startswith("pyramidnet") and residual:  # by hand: 1/2 a block, and 1/2 more for a channel that is new
        stem, *planes = _pyramid_planes(name)
        wide, relus, everywhere = (4, 2, 2) if name == "pyramidnet41" else (1, 1, 1)
        ends = [stem, *(wide * p for p in planes)]
        walk = sum(Fraction(1, 2) * (1 + Fraction(b - a, b)) for a, b in itertools.pairwise(ends))
        assert float(everywhere + relus * walk) == pytest.approx(napl, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [("pyramidnet41", {}, 16), ("pyramidnet20", {}, 10), ("toynet8", {}, 9), ("toynet8", {"residual": False}, 8)],
)
def test_path_lengths_are_the_papers(name: str, options: dict, side: int) -> None:
    shape = (3, side, side)
    net = linearize(nets.build(name, width=0.25, **options), shape)
    generator = torch.Generator().manual_seed(0)
    apply_masks_(net, {key: torch.rand(mask.shape, generator=generator) < 0.5 for key, mask in masks(net).items()})
    for normalized in (True, False):
        histogram = paper_algorithm.histogram(net, shape, normalized)
        expected = float(histogram @ torch.arange(len(histogram), dtype=histogram.dtype))
        assert path_length(net, shape, normalized=normalized).mean == pytest.approx(expected, abs=1e-9)


def test_a_record_counts_max_pooling_apart(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, lr=0.01, batch=8, flip=False)
    specs = [
        RunSpec(data="digits", size=8, train=8, test=4, net=net, width=0.125, recipe=recipe)
        for net in ("pyramidnet41", "resnet8")
    ]
    store = Store(tmp_path, also=())
    run(specs, store, workers=1, progress=False)
    pyramid, resnet = (store.record(spec).metrics for spec in specs)
    assert pyramid["napl_max_pool"] == pytest.approx(pyramid["napl"] + 1, abs=1e-9)
    assert "napl_max_pool" not in resnet


@pytest.mark.parametrize(("width", "napl"), [(0.5, 28), (2.0, 28)])
def test_width_with_shortcut_b(width: float, napl: float) -> None:
    net = linearize(nets.build("resnet56", width=width, shortcut="B"), (3, 8, 8))
    assert [unit.channels for _, unit in units(net)][-1] == 64 * width
    assert path_length(net, (3, 8, 8)).mean == pytest.approx(napl, abs=1e-9)


@pytest.mark.parametrize("name", ["resnet8", "resnet14v1", "resnet20", "resnet56", "resnet56v1"])
@pytest.mark.parametrize("options", [{}, {"residual": False}, {"shortcut": "B", "width": 0.5}])
def test_every_relu_is_a_module_called_once(name: str, options: dict) -> None:
    net = nets.build(name, **options).eval()
    depth = int(name.removeprefix("resnet").removesuffix("v1"))
    channels: list[int] = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _inputs, output: channels.append(output.shape[1]))
    with torch.no_grad():
        net(torch.zeros(1, 3, 16, 16))
    assert len(channels) == depth - 1
    planes = 16 * options.get("width", 1)
    assert sum(channels) == planes + 14 * planes * (depth - 2) // 6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *itertools.product(("resnet14", "resnet14v1"), ({}, {"shortcut": "B"}, {"residual": False})),
        *itertools.product(("pyramidnet14", "pyramidnet41", "toynet5"), ({}, {"residual": False})),
    ],
)
def test_default_tracer_follows(name: str, options: dict) -> None:
    net = nets.build(name, **options).eval()
    traced = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(traced(x), net(x))
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    assert set(calls.values()) == {1}
    functions = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert F.relu not in functions and torch.relu not in functions


# A second writing of the definition: one function over the state dict, no module.


def _norm(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    mean, var = (state[f"{key}.running_{s}"][:, None, None] for s in ("mean", "var"))
    weight, bias = (state[f"{key}.{s}"][:, None, None] for s in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def _widened(x: Tensor, planes: int, stride: int) -> Tensor:
    small = x[:, :, ::stride, ::stride]
    out = small.new_zeros(len(x), planes, *small.shape[2:])
    front = (planes - x.shape[1]) // 2
    out[:, front : front + x.shape[1]] = small
    return out


def _by_hand(state: dict[str, Tensor], x: Tensor, blocks: int, version: int, residual: bool, shortcut: str) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    if version == 1:
        x = _norm(state, "bn1", x).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            key = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            first, second = state[f"{key}.conv1.weight"], state[f"{key}.conv2.weight"]
            if version == 1:
                out = F.conv2d(x, first, stride=stride, padding=1)
                out = F.conv2d(_norm(state, f"{key}.bn1", out).clamp(min=0), second, padding=1)
                out = _norm(state, f"{key}.bn2", out)
            else:
                out = F.conv2d(_norm(state, f"{key}.bn1", x).clamp(min=0), first, stride=stride, padding=1)
                out = F.conv2d(_norm(state, f"{key}.bn2", out).clamp(min=0), second, padding=1)
            if residual and stride == 1:
                out = out + x
            elif residual and shortcut == "A":
                out = out + _widened(x, len(second), stride)
            elif residual and version == 1:
                out = out + _norm(
                    state, f"{key}.shortcut.1", F.conv2d(x, state[f"{key}.shortcut.0.weight"], stride=stride)
                )
            elif residual:
                out = out + F.conv2d(x, state[f"{key}.shortcut.weight"], stride=stride)
            x = out.clamp(min=0) if version == 1 else out
    if version == 2:
        x = _norm(state, "bn", x).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def _pyramid_by_hand(state: dict[str, Tensor], x: Tensor, blocks: list[int], residual: bool, tiny: bool) -> Tensor:
    x = _norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=2 if tiny else 1))
    if tiny:
        x = F.max_pool2d(x.clamp(min=0), 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            key, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out, first = _norm(state, f"{key}.bn1", x), state[f"{key}.conv1.weight"]
            out = F.conv2d(out, first) if tiny else F.conv2d(out, first, stride=stride, padding=1)
            out = _norm(state, f"{key}.bn2", out).clamp(min=0)
            if tiny:
                out = F.conv2d(out, state[f"{key}.middle.0.weight"], stride=stride, padding=1)
                out = _norm(state, f"{key}.middle.1", out).clamp(min=0)
            out = F.conv2d(out, state[f"{key}.conv2.weight"], padding=0 if tiny else 1)
            out = _norm(state, f"{key}.bn3", out)
            if residual:
                if stride == 2:  # means over the up to four pixels that exist
                    ones = F.pad(torch.ones_like(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2))
                    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
                    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
                    x = sum(x[:, :, i::2, j::2] for i, j in corners) / sum(ones[:, :, i::2, j::2] for i, j in corners)
                out[:, : x.shape[1]] += x
            x = out
    x = _norm(state, "bn", x).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def _toy_by_hand(state: dict[str, Tensor], x: Tensor, depth: int, residual: bool) -> Tensor:
    x = _norm(state, "bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=1)).clamp(min=0)
    for layer in range(depth - 2):
        out = F.conv2d(x, state[f"layers.{layer}.conv.weight"], padding=1)
        out = _norm(state, f"layers.{layer}.bn", out).clamp(min=0)
        x = out + x if residual else out
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("residual", "shortcut"), [(True, "A"), (True, "B"), (False, "A")])
@pytest.mark.parametrize(("width", "side"), [(1.0, 16), (5 / 16, 15)])  # odd planes, odd side
def test_forward_is_the_definition(version: int, residual: bool, shortcut: str, width: float, side: int) -> None:
    name = f"resnet14{'v1' if version == 1 else ''}"
    net, x = _unlike_any_start(nets.build(name, width=width, residual=residual, shortcut=shortcut), side)
    with torch.no_grad():
        expected = _by_hand(net.state_dict(), x, 2, version, residual, shortcut)
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", ["pyramidnet14", "pyramidnet41", "toynet6"])
@pytest.mark.parametrize(("width", "side"), [(1.0, 16), (5 / 16, 15)])
def test_forward_of_the_others_is_the_definition(name: str, residual: bool, width: float, side: int) -> None:
    net, x = _unlike_any_start(nets.build(name, width=width, residual=residual, classes=7), side)
    with torch.no_grad():
        if name == "toynet6":
            expected = _toy_by_hand(net.state_dict(), x, 6, residual)
        else:
            tiny = name == "pyramidnet41"
            expected = _pyramid_by_hand(net.state_dict(), x, [3, 4, 6] if tiny else [2, 2, 2], residual, tiny)
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)
        assert expected.std(0).min() > 1e-6  # not zeros


def _unlike_any_start(net: nn.Module, side: int) -> tuple[nn.Module, Tensor]:
    """The network in float64 with statistics that a mistake cannot hide behind, and images."""
    generator = torch.Generator().manual_seed(0)
    net = net.double().eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var") or (value.dim() == 1 and value.is_floating_point()):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64))
    return net, torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["resnet8", "resnet8v1", "pyramidnet8", "toynet6"])
def test_trains_as_one_compiled_graph(name: str) -> None:
    torch.manual_seed(0)
    net = nets.build(name, width=0.25)  # four or eight filters
    step = torch.compile(net, backend="eager", fullgraph=True)  # fullgraph: a graph break is an error
    x, y = torch.randn(32, 3, 8, 8), torch.arange(32) % 10
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(step(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["resnet8", "resnet8v1", "pyramidnet8"])
def test_a_compiled_step_keeps_all_gradients_channels_last(name: str) -> None:
    """As convolutions ask for: else they are written a second time, and of a shortcut on by all blocks before it."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    gradients: list[Tensor] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        convolution = torch.ops.aten.convolution_backward.default
        gradients.extend(node.args[0].meta["val"] for node in graph.graph.nodes if node.target is convolution)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=look)
    net = nets.build(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    torch.compile(net, backend=backend)(x).sum().backward()
    assert len(gradients) == sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients)


def test_initial_values() -> None:
    torch.manual_seed(0)
    net = nets.build("resnet20", width=4)
    weight = net.get_parameter("layer3.0.conv1.weight")  # 128 -> 256 planes: fan-out 9 * 256, fan-in 9 * 128
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    torch.manual_seed(0)
    again = nets.build("resnet20", width=4)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet57", {}, "depth 57.*resnet56 or resnet62"),
        ("resnet18v1", {}, "depth 18.*resnet14v1 or resnet20v1"),
        ("resnet2", {}, "depth 2,.*resnet8"),
        ("renset56", {}, "unknown network 'renset56'.*resnet56"),
        ("ResNet-20", {}, "did you mean.*resnet20"),
        ("resnet56v2", {}, "did you mean.*resnet56"),
        ("vgg", {}, "unknown network 'vgg'.*for example"),
        ("resnet020", {}, "unknown network"),
        (56, {}, "by name"),
        ("resnet8", {"width": 0}, "width is 0"),
        ("resnet8", {"width": -1.0}, "width is -1.0"),
        ("resnet8", {"width": float("nan")}, "width is nan"),
        ("resnet8", {"width": "2"}, "width is '2'"),
        ("resnet8", {"width": 0.01}, "leaves no channel"),
        ("resnet8", {"shortcut": "C"}, "shortcut is 'C'"),
        ("resnet8", {"classes": 1}, "classes is 1"),
        ("resnet8", {"classes": 10.0}, "classes is 10.0"),
        ("resnet8", {"in_channels": 0}, "in_channels is 0"),
        ("resnet8", {"residual": "no"}, "residual is 'no'"),
        ("pyramidnet41v1", {}, "did you mean pyramidnet41"),
        ("pyramidnet42", {}, "depth 42.*pyramidnet38 or pyramidnet44"),
        ("pyramidnet110", {"shortcut": "B"}, "widens by zero channels only"),
        ("toynet2", {}, "at least 3 layers: toynet3"),
        ("toynet20v1", {}, "did you mean toynet20"),
        ("toynet20", {"shortcut": "B"}, "widens nowhere"),
        ("toynet20", {"width": 0.01}, "leaves no channel"),
        ("toynet20", {"width": 1 / 32, "classes": 1}, "classes is 1"),
        ("resnet50torchvision", {}, "torchvision/resnet50"),
        ("torchvision/resnet50", {"width": 2.0}, "width is 2.0.*as it is"),
        ("torchvision/resnet50", {"residual": False}, "residual is False.*as it is"),
        ("torchvision/resnet50", {"shortcut": "B"}, 'shortcut is "B".*is as it is'),
        ("torchvision/resnet50", {"in_channels": 1}, "in_channels is 1.*3 channels"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(name: str, options: dict, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        nets.build(name, **options)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- published weights


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nets.PublishedWeights:
    """A published file of our own, in the layout of the real ones, in `tmp_path/weights`."""
    torch.manual_seed(7)
    state = {f"module.{key}": value for key, value in nets.build("resnet8v1").state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    (tmp_path / "weights").mkdir()
    return _publish({"state_dict": state, "best_prec1": 10.0}, tmp_path / "weights", monkeypatch)


def _publish(content: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nets.PublishedWeights:
    path = folder / "ours.th"
    torch.save(content, path)
    entry = replace(
        nets.PUBLISHED["akamaster/resnet20"],
        file=path.name,
        net="resnet8v1",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(nets, "PUBLISHED", {**nets.PUBLISHED, "test/ours": entry})
    return entry


def test_published_weights_load(published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLADV_DATA", str(tmp_path))
    net = nets.load_published("test/ours")
    stored = torch.load(tmp_path / "weights" / published.file, weights_only=True)["state_dict"]
    for key, value in stored.items():
        assert torch.equal(net.state_dict()[key.removeprefix("module.")], value)
    assert not any(module.training for module in net.modules())
    assert nets.load_published("test/ours", folder=tmp_path / "weights").state_dict().keys() == net.state_dict().keys()


def test_published_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NLADV_DATA", raising=False)
    with pytest.raises(DataError, match=r"NLADV_DATA is not set.*download it from https://.*resnet20-12fca82f\.th"):
        nets.load_published("akamaster/resnet20")
    monkeypatch.setenv("NLADV_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"there is no file .*weights.*into the folder weights.*NLADV_DATA"):
        nets.load_published("akamaster/resnet20")
    (tmp_path / "weights" / "resnet20-12fca82f.th").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read"):
        nets.load_published("akamaster/resnet20")
    with pytest.raises(SpecError, match="did you mean .*akamaster/resnet20"):
        nets.load_published("akamaster/resnet21")


def test_torchvisions_weights_are_found_where_it_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torchvision/resnet50"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NLADV_DATA", raising=False)
    place = tmp_path / "home" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    with pytest.raises(DataError, match=rf"no file {place}; download it from https.*let torchvision.models.resnet50"):
        nets.load_published(name)
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=rf"no file {tmp_path}/data/weights/resnet50-0676ba61.pth and no {place}"):
        nets.load_published(name)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"short")
    with pytest.raises(DataError, match=rf"{place} has SHA-256 .*, expected 0676ba61"):
        nets.load_published(name)
    # torchvision's files hold the state dict itself. Ten classes and one stage stand in for its 100 MB.
    torch.manual_seed(3)
    small = import_torchvision().models.resnet.ResNet(
        import_torchvision().models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, width_per_group=64
    )
    torch.save(small.state_dict(), place)
    entry = replace(nets.PUBLISHED[name], sha256=hashlib.sha256(place.read_bytes()).hexdigest(), classes=10)
    monkeypatch.setattr(nets, "PUBLISHED", {name: entry})
    monkeypatch.setattr(
        import_torchvision().models,
        "resnet50",
        lambda weights, num_classes: type(small)(
            import_torchvision().models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=num_classes
        ),
    )
    net = nets.load_published(name)
    assert not net.training and torch.equal(net.state_dict()["fc.weight"], small.fc.weight)


def test_torchvisions_entry_is_what_torchvision_says() -> None:
    published = nets.PUBLISHED["torchvision/resnet50"]
    official = import_torchvision().models.ResNet50_Weights.IMAGENET1K_V1.value
    assert published.url == official.url and published.file == official.url.rpartition("/")[2]
    assert published.file == f"resnet50-{published.sha256[:8]}.pth"  # torch's hub checks these eight digits
    assert published.accuracy == official.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    transform = official.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == (published.mean, published.std)
    with torch.device("meta"):
        assert (
            sum(p.numel() for p in nets.build(published.net, classes=1000).parameters()) == official.meta["num_params"]
        )


def test_damaged_published_weights(published, tmp_path: Path) -> None:
    path = tmp_path / "weights" / published.file
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    found = hashlib.sha256(damaged).hexdigest()
    with pytest.raises(DataError, match=f"has SHA-256 {found}, expected {published.sha256}.*download it again"):
        nets.load_published("test/ours", folder=path.parent)


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["NLADV_TEST_BOMB"],))


def test_published_weights_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "exploded"
    monkeypatch.setenv("NLADV_TEST_BOMB", str(bomb))
    _publish({"state_dict": _Bomb()}, tmp_path, monkeypatch)
    with pytest.raises(DataError, match="cannot read it"):
        nets.load_published("test/ours", folder=tmp_path)
    assert not bomb.exists()
    pickle.loads(pickle.dumps(_Bomb()))  # the bomb is live: an unguarded load would have made the folder
    assert bomb.is_dir()


def _packs() -> Path | None:
    """The folder of real data, where this machine has one: NLADV_DATA, else shared/data beside the repository."""
    named = os.environ.get("NLADV_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "weights").is_dir() and (folder / "cifar10").is_dir() else None


PACKS = _packs()


@pytest.mark.skipif(PACKS is None, reason="no weights and CIFAR-10 packs: set NLADV_DATA to a folder that holds them")
@pytest.mark.parametrize("name", [name for name, entry in nets.PUBLISHED.items() if entry.data == "cifar10"])
def test_published_accuracy(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PACKS is not None
    # Only the test split is wanted: its pack also stands in for the training packs, whose decoding would take longer
    # than everything else here. Folder and cache are shared by all tests (and by xdist's workers, under the file lock).
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "published-accuracy"
    (shared / "cifar10").mkdir(parents=True, exist_ok=True)
    for link in ("cifar10-test.parquet", "cifar10-train.parquet"):
        with contextlib.suppress(FileExistsError):
            (shared / "cifar10" / link).symlink_to(PACKS / "cifar10" / "cifar10-test.parquet")
    monkeypatch.setenv("NLADV_DATA", str(shared))
    monkeypatch.setenv("NLADV_CACHE", str(shared / "cache"))
    data = datasets.load("cifar10", train=1)

    published = nets.PUBLISHED[name]
    net = nets.load_published(name, folder=PACKS / "weights").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    right = 0
    with torch.inference_mode():
        for images, labels in zip(data.test_images.split(100), data.test_labels.split(100), strict=True):
            x = datasets.normalize(images, published.mean, published.std)
            right += int((net(x.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
    assert len(data.test_labels) == 10_000
    assert right == round(published.accuracy * 100)
