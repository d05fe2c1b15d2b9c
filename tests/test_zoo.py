"""Networks that people use: torchvision's, a choice of timm's, and PyTorch's transformer layers.

The tables were written down from what the dispatcher counted (tests/dispatched.py, which knows nothing of nladv_core);
the tests count again and compare both with the library. Inputs are as small as each network allows.
"""

import contextlib
from typing import NamedTuple

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import nladv_core as nl
from dispatched import ReluCalls, Walk
from nladv_core import path_rules
from nladv_core.compat import import_torchvision

models = import_torchvision().models

pytestmark = pytest.mark.filterwarnings("ignore::nladv_core.linearize.ActivationsLeftAlone")


class Pinned(NamedTuple):
    """What is known of a network."""

    groups: int  # ReLU calls in training, auxiliary heads included
    units: int  # their channels
    napl: float | None = None  # all units active; None where there is no agreed path length
    refused: str = ""  # how the message begins then
    size: int = 32  # of the image
    axis: int = 1  # which counts the channels


# NAPLs by hand. Each walk meets every ReLU of a chain: n - 1 for an AlexNet or VGG of n layers. In a ResNet it meets
# the stem's and, per block, the one behind the addition and with probability 1/2 the one or two of the branch: 1 + 8·(1
# + 1/2) = 13 for ResNet-18, 1 + 16·(1 + 2/2) = 33 for ResNet-50, 1 + 2·b for a RegNet of b blocks. SqueezeNet: 8
# modules of two steps, one ReLU at either end. MNASNet: stem 2, 16 blocks of 2 of which 10 can be bypassed, last 1.
# ShuffleNet: stem and last 1 each, 13 blocks of 2 on half of the channels, 3 blocks of 1 or 2: 2 + 13 + 4.5. The others
# (DenseNet, Inception) come from the dispatcher's walk alone.
SE = "module 'trunk_output.block1.block1-0.f.se.scale_activation' .Sigmoid. has no path rule"
HARDSWISH = "module 'features.0.2' .Hardswish. has no path rule"
WINDOWS = "operation 'shifted_window_attention' in module 'features.1.0.attn' has no path rule"
TORCHVISION = {
    "alexnet": Pinned(7, 9344, 7, size=64),
    "densenet121": Pinned(121, 41824, 14.067314115079),
    "densenet161": Pinned(161, 109968, 14.791991097987),
    "densenet169": Pinned(169, 79200, 15.032485984772),
    "densenet201": Pinned(201, 114528, 15.323128777329),
    "googlenet": Pinned(61, 9584, 17.156089743590),
    "inception_v3": Pinned(96, 18112, 27.002777777778, size=299),  # its auxiliary head fits no smaller image
    "mnasnet0_5": Pinned(35, 9424, 25),
    "mnasnet0_75": Pinned(35, 13568, 25),
    "mnasnet1_0": Pinned(35, 17232, 25),
    "mnasnet1_3": Pinned(35, 22144, 25),
    "mobilenet_v3_large": Pinned(19, 1936, None, HARDSWISH),
    "mobilenet_v3_small": Pinned(14, 928, None, HARDSWISH),
    "regnet_x_400mf": Pinned(67, 18272, 45),
    "regnet_x_800mf": Pinned(49, 17504, 33),
    "regnet_x_1_6gf": Pinned(55, 20192, 37),
    "regnet_x_3_2gf": Pinned(76, 29552, 51),
    "regnet_x_8gf": Pinned(70, 42272, 47),
    "regnet_x_16gf": Pinned(67, 51872, 45),
    "regnet_x_32gf": Pinned(70, 76136, 47),
    "regnet_y_400mf": Pinned(65, 13736, None, SE),
    "regnet_y_800mf": Pinned(57, 14872, None, SE),
    "regnet_y_1_6gf": Pinned(109, 26806, None, SE),
    "regnet_y_3_2gf": Pinned(85, 32890, None, SE),
    "regnet_y_8gf": Pinned(69, 42488, None, SE),
    "regnet_y_16gf": Pinned(73, 60436, None, SE),
    "regnet_y_32gf": Pinned(81, 78282, None, SE),
    "regnet_y_128gf": Pinned(109, 210118, None, SE),
    "resnet18": Pinned(17, 3904, 13),
    "resnet34": Pinned(33, 7616, 25),
    "resnet50": Pinned(49, 22720, 33),
    "resnet101": Pinned(100, 48832, 67),
    "resnet152": Pinned(151, 71872, 101),
    "resnext50_32x4d": Pinned(49, 30272, 33),
    "resnext101_32x8d": Pinned(100, 97600, 67),
    "resnext101_64x4d": Pinned(100, 97600, 67),
    "shufflenet_v2_x0_5": Pinned(37, 2944, 19.5),
    "shufflenet_v2_x1_0": Pinned(37, 5630, 19.5),
    "shufflenet_v2_x1_5": Pinned(37, 8000, 19.5),
    "shufflenet_v2_x2_0": Pinned(37, 11710, 19.5),
    "squeezenet1_0": Pinned(26, 3976, 18),
    "squeezenet1_1": Pinned(26, 3944, 18),
    "swin_v2_b": Pinned(24, 12288, None, WINDOWS, axis=-1),  # the ReLUs are in the multilayer perceptrons of positions
    "swin_v2_s": Pinned(24, 12288, None, WINDOWS, axis=-1),
    "swin_v2_t": Pinned(12, 6144, None, WINDOWS, axis=-1),
    "vgg11": Pinned(10, 10944, 10),
    "vgg11_bn": Pinned(10, 10944, 10),
    "vgg13": Pinned(12, 11136, 12),
    "vgg13_bn": Pinned(12, 11136, 12),
    "vgg16": Pinned(15, 12416, 15),
    "vgg16_bn": Pinned(15, 12416, 15),
    "vgg19": Pinned(18, 13696, 18),
    "vgg19_bn": Pinned(18, 13696, 18),
    "wide_resnet50_2": Pinned(49, 30272, 33),
    "wide_resnet101_2": Pinned(100, 65088, 67),
}
# More than 100 million parameters: too large to copy and run here. They are counted only, and consist of the modules
# of their twins, which do run.
LARGE = {
    "regnet_x_32gf": "regnet_x_400mf",
    "regnet_y_32gf": "regnet_y_400mf",
    "regnet_y_128gf": "regnet_y_400mf",
    "wide_resnet101_2": "resnet50",
    **{f"vgg{depth}": "vgg11" for depth in (13, 16, 19)},
    **{f"vgg{depth}_bn": "vgg11_bn" for depth in (13, 16, 19)},
}
WITHOUT_RELU = ("convnext_", "efficientnet_", "maxvit_", "mobilenet_v2", "swin_b", "swin_s", "swin_t", "vit_")

TIMM = {
    "densenetblur121d": Pinned(123, 41888, 16.067314115079),
    "dla46_c": Pinned(45, 3584, 22.042857142857),
    "dpn68": Pinned(72, 32558, 23.358500853017),
    "ese_vovnet19b_slim": Pinned(19, 2576, None, "module 'stages.0.blocks.0.attn.gate' .Hardsigmoid."),
    "fasternet_t2": Pinned(14, 11456, 7.5),
    "gernet_s": Pinned(40, 15981, 28),
    "ghostnet_050": Pinned(42, 5664, None, "module 'blocks.3.0.se.gate' .Hardsigmoid."),
    "hardcorenas_b": Pinned(17, 1664, None, "module 'bn1.act' .Hardswish."),
    "hgnetv2_b0": Pinned(31, 6584, 18.687012987013),
    "hrnet_w18_small": Pinned(75, 9376, 22.28125, size=64),
    "inception_v4": Pinned(149, 31584, 40.808333333333, size=96),
    "legacy_seresnet18": Pinned(33, 5944, None, "module 'layer1.0.se_module.sigmoid' .Sigmoid."),
    "legacy_xception": Pinned(35, 24104, 19.5, size=64),
    "regnetx_002": Pinned(40, 9824, 27),
    "regnety_002": Pinned(53, 10556, None, "operation 'sigmoid' in module 's1.b1.se.gate'"),
    "repvgg_a0": Pinned(22, 4496, 22),
    "res2next50": Pinned(81, 28384, 32.875),
    "resnest14d": Pinned(19, 7328, None, "operation 'softmax' in module 'layer1.0.conv2.rsoftmax'"),
    "resnet26t": Pinned(27, 11640, 19),
    "resnetv2_18": Pinned(17, 3904, 10.5),
    "selecsls42": Pinned(41, 9824, 23.5),
    "skresnet18": Pinned(33, 6080, None, "operation 'softmax' in module 'layer1.0.conv1.attn'"),
    "vgg11": Pinned(10, 2752 + 256 + 4096, 10),
}
SMALLER = {"vgg11": {"mlp_ratio": 1 / 16}}  # 256 instead of 4096 units behind the convolutions
ZOO = {("torchvision", name): pinned for name, pinned in TORCHVISION.items() if name not in LARGE}
ZOO |= {("timm", name): pinned for name, pinned in TIMM.items()}


@contextlib.contextmanager
def no_initialisation():
    """Modules are made without drawing random numbers, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield


def bare(library, name):
    """A network whose parameters hold whatever is in memory."""
    with no_initialisation():
        if library == "timm":
            return timm.create_model(name, **SMALLER.get(name, {}))
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, **more)


NOISE = torch.randn(999_983, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def built(library, name):
    """A network with random weights, scaled so that activations neither vanish nor explode."""
    model = bare(library, name)
    for key, parameter in model.named_parameters():
        size = parameter.numel()
        noise = NOISE.repeat(-(-size // len(NOISE)))[:size].view_as(parameter)
        if parameter.ndim > 1:
            parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
        else:
            parameter.copy_(0.1 * noise + (0 if key.endswith("bias") else 1))
    return model


def images(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def seeded(net, x, training):
    """Everything that a network returns in the given mode, always with the same random numbers."""
    torch.manual_seed(2)
    return [tensor for tensor in tree_leaves(net.train(training)(x)) if isinstance(tensor, torch.Tensor)]


def half_masked(net):
    generator = torch.Generator().manual_seed(3)
    nl.apply_masks_(
        net, {name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in nl.masks(net).items()}
    )


@pytest.mark.parametrize(("library", "name"), ZOO)
def test_network(library, name):
    pinned = ZOO[library, name]
    model, x = built(library, name), images(pinned.size)
    net = nl.linearize(model, x[:1])
    groups = nl.units(net)
    with torch.no_grad():
        expected = seeded(model, x, False)
        assert all(tensor.isfinite().all() and tensor.std() > 0 for tensor in expected)
        for ours, theirs in zip(seeded(net, x, False), expected, strict=True):
            assert torch.equal(ours, theirs)
        with ReluCalls() as calls:
            expected = seeded(model, x, True)
        for ours, theirs in zip(seeded(net, x, True), expected, strict=True):
            assert torch.equal(ours, theirs)
    channels = [shape[pinned.axis] for shape in calls.shapes]
    assert (len(channels), sum(channels)) == (pinned.groups, pinned.units)
    # An auxiliary head runs in the middle of the network, and its units come last.
    assert sorted(unit.channels for _, unit in groups) == sorted(channels)
    shape = (3, pinned.size, pinned.size)
    if pinned.napl is None:
        with pytest.raises(nl.UnsupportedNetwork, match=pinned.refused):
            nl.path_length(net, shape)
        return
    assert nl.path_length(net, shape).mean == pytest.approx(pinned.napl, abs=1e-9)
    half_masked(net)
    active = [unit.active.double() for key, unit in groups if "aux" not in key.lower()]
    model.eval().to("meta")
    for normalized in (True, False):
        found = nl.path_length(net, shape, normalized=normalized)
        with torch.no_grad(), Walk(active, normalized) as walk:
            walked = walk.mean(model(walk.start(torch.empty(1, *shape, device="meta"))))
        assert walk.calls == len(active)
        assert found.mean == pytest.approx(walked, abs=1e-9)
        histogram = found.histogram
        assert histogram.isfinite().all() and float(histogram.sum()) == pytest.approx(1, abs=1e-9)
        lengths = torch.arange(len(histogram), dtype=torch.float64)
        assert float(histogram @ lengths) == pytest.approx(found.mean, abs=1e-9)


def test_every_classification_network_of_torchvision_is_in_the_table():
    listed = set(models.list_models(models))
    assert {name for name in listed if not name.startswith(WITHOUT_RELU)} == set(TORCHVISION)


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "maxvit_t", "mobilenet_v2", "swin_t", "vit_b_32"]
)
def test_the_other_families_call_no_relu(name):
    with torch.no_grad(), ReluCalls() as calls:
        bare("torchvision", name).to("meta")(torch.empty(2, 3, 224, 224, device="meta"))
    assert calls.shapes == []


@pytest.mark.parametrize("name", LARGE)
def test_large_network(name):
    model, twin = bare("torchvision", name).to("meta"), bare("torchvision", LARGE[name])
    assert sum(parameter.numel() for parameter in model.parameters()) > 100e6
    assert {type(module) for module in model.modules()} == {type(module) for module in twin.modules()}
    with torch.no_grad(), ReluCalls() as calls:
        model(torch.empty(2, 3, 64, 64, device="meta"))
    pinned = TORCHVISION[name]
    assert (len(calls.shapes), sum(shape[1] for shape in calls.shapes)) == (pinned.groups, pinned.units)
    if pinned.napl is not None:
        with torch.no_grad(), Walk() as walk:
            walked = walk.mean(model.eval()(walk.start(torch.empty(1, 3, 32, 32, device="meta"))))
        assert walked == pytest.approx(pinned.napl, abs=1e-9)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", "googlenet"),
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "shufflenet_v2_x0_5"),
        ("timm", "hrnet_w18_small"),
        ("timm", "regnety_002"),
    ],
)
def test_parameter_gradients_are_equal(library, name):
    model, x = built(library, name), images(64, batch=3)
    net = nl.linearize(model, x)
    ours = dict(net.named_parameters())
    for made in (model, net):
        sum(tensor.square().mean() for tensor in seeded(made, x, True)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0 or name == "hrnet_w18_small", key
        torch.testing.assert_close(ours[key].grad, parameter.grad, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------------- transformers


def encoder_layer(**more):
    return nn.TransformerEncoderLayer(16, 2, 24, **more)


@pytest.mark.parametrize(
    ("model", "inputs", "groups"),
    [
        (encoder_layer(), 1, [24]),
        (encoder_layer(batch_first=True), 1, [24]),
        (encoder_layer(norm_first=True, activation=nn.ReLU()), 1, [24]),
        (nn.TransformerEncoder(encoder_layer(batch_first=True), 2), 1, [24, 24]),
        (nn.TransformerDecoderLayer(16, 2, 40, norm_first=True), 2, [40]),
        (nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 40, batch_first=True), 3), 2, [40, 40, 40]),
        (nn.Transformer(16, 2, 1, 2, 24, batch_first=True), 2, [24, 24, 24]),
    ],
)
def test_transformer_layers(model, inputs, groups):
    generator = torch.Generator().manual_seed(4)
    x = [torch.randn(3, 5, 16, generator=generator) for _ in range(inputs)]
    net = nl.linearize(model, tuple(x))
    for training in (False, True):  # with dropout
        torch.manual_seed(2)
        with ReluCalls() as calls:
            expected = model.train(training)(*x)
        torch.manual_seed(2)
        assert torch.equal(net.train(training)(*x), expected)
        assert [shape[-1] for shape in calls.shapes] == groups
    with torch.no_grad():  # here torch takes a path of its own through an encoder layer
        assert torch.equal(net.eval()(*x), model.eval()(*x))
    assert [unit.channels for _, unit in nl.units(net)] == groups
    found = nl.path_length(net, tuple(x))
    assert float(found.histogram @ torch.arange(len(groups) + 1).double()) == pytest.approx(found.mean)
    # Each layer ends in a skip around its two linear maps: half of the walks bend there, whatever leads to it.
    assert float(nl.visit_probability(net, tuple(x))[nl.units(net)[-1][0]].sum()) == pytest.approx(0.5)


# --------------------------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("library", "name", "napl"),
    # As without the gates: 1 + 2·16 and 1 + 2·13 blocks, ResNet-18.
    [("torchvision", "regnet_y_400mf", 33), ("timm", "regnety_002", 27), ("timm", "skresnet18", 13)],
)
def test_gates_as_weights(library, name, napl):
    # At 32 pixels one is left in the end, a gate is as large as its signal, and nobody can tell them apart.
    for size, means in ((32, None), (64, napl)):
        net = nl.linearize(built(library, name), (3, size, size))
        with pytest.raises(nl.UnsupportedNetwork, match='pass gates="signal"'):
            nl.path_length(net, (3, size, size))
        if means is None:
            with pytest.raises(nl.UnsupportedNetwork, match="both have one size; a larger example"):
                nl.path_length(net, (3, size, size), gates="signal")
        else:
            assert nl.path_length(net, (3, size, size), gates="signal").mean == pytest.approx(means)


def test_other_activations_with_a_declared_rule(monkeypatch):
    with pytest.warns(nl.ActivationsLeftAlone, match=r"left 28 activations .*Hardswish \(19\), Hardsigmoid \(9\)"):
        net = nl.linearize(built("torchvision", "mobilenet_v3_small"), (3, 64, 64))
    monkeypatch.setattr(path_rules, "MODULE_RULES", dict(path_rules.MODULE_RULES))
    nl.declare_path_rule(nn.Hardswish, "nonlinear")
    with pytest.raises(nl.UnsupportedNetwork, match="module 'features.1.block.1.scale_activation' .Hardsigmoid."):
        nl.path_length(net, (3, 64, 64))
    # Stem 1; blocks with one nonlinearity 1, without a bypass 4·2, with one 6·2/2; last convolution 1, classifier 1.
    assert nl.path_length(net, (3, 64, 64), gates="signal").mean == pytest.approx(1 + 1 + 4 * 2 + 6 + 1 + 1)


def test_attention_written_out_with_a_declared_rule(monkeypatch):
    from torchvision.models.swin_transformer import _patch_merging_pad, shifted_window_attention
    from torchvision.ops import stochastic_depth

    net = nl.linearize(built("torchvision", "swin_v2_t"), (3, 32, 32))
    monkeypatch.setattr(path_rules, "CALL_RULES", dict(path_rules.CALL_RULES))
    monkeypatch.setattr("nladv_core.paths.CALL_RULES", path_rules.CALL_RULES)
    monkeypatch.setattr(path_rules, "MODULE_RULES", dict(path_rules.MODULE_RULES))
    nl.declare_path_rule(shifted_window_attention, "same")
    nl.declare_path_rule(stochastic_depth, "same")
    nl.declare_path_rule(_patch_merging_pad, "view")
    nl.declare_path_rule(nn.GELU, "nonlinear")
    found = nl.path_length(net, (3, 32, 32))
    # The ReLUs see positions, not the image: no path meets them. 12 blocks with a skip around the GELU.
    assert found.mean == pytest.approx(12 / 2)
    assert all(float(visits.sum()) == 0 for visits in nl.visit_probability(net, (3, 32, 32)).values())
