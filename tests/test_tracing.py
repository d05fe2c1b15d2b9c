"""What can be recorded, what is refused, and what the messages say: module, line, reason and a way out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nladv_core as nl
from nladv_core import nets, path_rules, tracing


class Body(nn.Module):
    """A linear layer, and a forward pass that the subclass decides."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)


# ------------------------------------------------------------------------------------------------- what can be recorded


class Factories(Body):
    """Tensors made in the forward pass, of sizes and on a device that are read off the input."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(9, 4)

    def forward(self, x):
        places = self.places(torch.arange(x.size(1), device=x.device))
        nothing = torch.zeros(x.shape[0], 1, 4, dtype=x.dtype, device=x.device) + torch.full((x.shape[1], 4), 0.5)
        return F.relu(self.layer(x + places)) + nothing + x.new_ones(x.shape[0], 1, 1) + torch.zeros_like(x)


class Assigned(Body):
    """Entries overwritten by a constant, and a tensor filled piece by piece."""

    def forward(self, x):
        y = F.relu(self.layer(x))
        y[:, 0] = 0
        y[y > 1] = 1
        wide = torch.zeros(x.shape[0], 6, device=x.device)
        wide[:, 1:5] = y
        return wide


class FunctionalNorm(Body):
    """Batch norm as a function: in training it takes no batch of one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.relu(F.batch_norm(self.layer(x), self.mean, self.var, training=self.training))


@pytest.mark.parametrize(("model", "shape"), [(Factories(), (5, 4)), (Assigned(), (4,)), (FunctionalNorm(), (4,))])
def test_recorded_networks_take_other_batches(model, shape):
    net = nl.linearize(model, torch.randn(1, *shape))
    x = torch.randn(7, *shape)
    for training in (False, True):
        assert torch.equal(net.train(training)(x), model.train(training)(x))


def test_factories_are_left_as_they_were():
    before = torch.zeros, torch.arange
    with pytest.raises(nl.UnsupportedNetwork):
        nl.linearize(nn.Linear(2, 2), (3,))
    assert (torch.zeros, torch.arange) == before


class Shuffled(nn.Module):
    """A ReLU whose producer does not tell the channel axis, but whose reader does."""

    def __init__(self, reader):
        super().__init__()
        self.reader = reader

    def forward(self, x):
        return self.reader(F.relu(x.reshape(x.shape[0], 6, 4, 5)) + 1)


@pytest.mark.parametrize(("reader", "axis", "channels"), [(nn.Conv2d(6, 2, 1), 1, 6), (nn.Linear(5, 2), -1, 5)])
def test_the_reader_tells_the_channel_axis_where_the_producer_does_not(reader, axis, channels):
    ((_, unit),) = nl.units(nl.linearize(Shuffled(reader), (120,)))
    assert (unit.channel_axis, unit.channels) == (axis, channels)
    with pytest.raises(nl.UnsupportedNetwork, match="counts the channels is not evident"):
        nl.linearize(Shuffled(nn.Identity()), (120,))


# ------------------------------------------------------------------------------------------------------ what is refused


class Branch(Body):
    def forward(self, x):
        y = self.layer(x)
        if y.mean() > 0:
            y = 2 * y
        return F.relu(y)


class Until(Body):
    def forward(self, x):
        y = self.layer(x)
        while (y > 1).any():
            y = F.relu(y) / 2
        return y


class Times(Body):
    def forward(self, x):
        for _ in range(int(self.layer(x).abs().sum())):
            x = F.relu(x)
        return x


class Each(Body):
    def forward(self, x):
        return torch.stack([F.relu(self.layer(row)) for row in x])


@pytest.mark.parametrize(
    ("model", "code", "reason"),
    [
        (Branch, "if y.mean", "decides by the numbers in a tensor"),
        (Until, "while .y > 1..any", "decides by the numbers in a tensor"),
        (Times, "for _ in range.int", "turns a value into a Python number"),
        (Each, "for row in x", "loops over a tensor"),
    ],
)
def test_dynamic_control_flow_is_refused_with_module_line_reason_and_way_out(model, code, reason):
    words = (
        rf"in module '1.0', test_tracing.py line \d+ \(.*{code}.*\): the forward pass {reason}.*; keep .*, linearize"
    )
    with pytest.raises(nl.UnsupportedNetwork, match=words):
        nl.linearize(nn.Sequential(nn.Linear(4, 4), nn.Sequential(model())), (4,))


class Normed(nn.Module):
    """Decides by numbers and has no ReLU: it can be kept whole."""

    def forward(self, x):
        return x / x.norm() if x.norm() > 1 else x


class OtherPrecision(nn.Module):
    """A context whose argument cannot be recorded."""

    def forward(self, x):
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x + 1


@pytest.mark.parametrize(("part", "reason"), [(Normed, "decides by"), (OtherPrecision, "runs by itself, but")])
def test_the_way_out_is_one(part, reason):
    model = nn.Sequential(nn.Linear(4, 4), part(), nn.ReLU())
    with pytest.raises(nl.UnsupportedNetwork, match=f"module '1'.*{reason}.*an attribute is_traced_whole = True"):
        nl.linearize(model, (4,))
    model[1].is_traced_whole = True
    net = nl.linearize(model, (4,))
    for scale in (1e-3, 1e3):
        x = scale * torch.randn(5, 4)
        assert torch.equal(net(x), model(x))
    with pytest.raises(nl.UnsupportedNetwork, match=f"module '1' .{part.__name__}. has no path rule"):
        nl.path_length(net, (4,))


class Renormed(nn.Module):
    """Decides by numbers, and has a path rule."""

    def forward(self, x):
        return x / x.norm() if x.norm() > 1 else x


class Rectified(Renormed):
    """As its parent, with a ReLU that nobody sees from outside."""

    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.fixture
def renormed_rule(monkeypatch):
    monkeypatch.setattr(path_rules, "MODULE_RULES", dict(path_rules.MODULE_RULES))
    monkeypatch.setattr(tracing, "_RULED", set())
    nl.declare_path_rule(Renormed, "nonlinear")


@pytest.mark.usefixtures("renormed_rule")
def test_a_class_with_a_path_rule_is_kept_whole():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Renormed(), nn.Linear(4, 2))
    net = nl.linearize(model, (4,))
    for scale in (1e-3, 1e3):
        x = scale * torch.randn(5, 4)
        assert torch.equal(net(x), model(x))
    assert nl.path_length(net, (4,)).mean == pytest.approx(2)
    model[2].is_traced_whole = False  # an attribute of its own decides instead
    with pytest.raises(nl.UnsupportedNetwork, match="decides by the numbers"):
        nl.linearize(model, (4,))


@pytest.mark.usefixtures("renormed_rule")
def test_a_relu_inside_a_class_with_a_path_rule_is_not_missed():
    model = nn.Sequential(nn.Linear(4, 4), Rectified(), nn.ReLU())
    with pytest.raises(nl.UnsupportedNetwork, match="module '1' .Rectified. has a path rule .* calls a ReLU.*; give"):
        nl.linearize(model, (4,))
    model[1].is_traced_whole = True
    assert [name for name, _ in nl.units(nl.linearize(model, (4,)))] == ["2"]


class Two(Body):
    def forward(self, x, y, scale=2.0):
        return F.relu(self.layer(x)) + scale * y


class Demanding(Body):
    def forward(self, x):
        if x.shape[-1] != 4:
            raise ValueError("expected four features, and got something else.")
        return F.relu(self.layer(x))


def resnet():
    return nets.build("resnet8")


def nothing_wide():
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Cut(), nn.ReLU())


class Cut(nn.Module):
    def forward(self, x):
        return x[:, :0]


image = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        # wrong shape
        (
            resnet,
            (1, 8, 8),
            r"ResNet fails on the example \(\(2, 1, 8, 8\) torch.float32\) by itself, in module 'conv1', .*",
        ),
        (resnet, (3, 8), r"\(\(2, 3, 8\) torch.float32\).*in module 'conv1'"),
        (resnet, (3, 0, 8), "example_input is .3, 0, 8.; expected a tensor"),
        (
            resnet,
            torch.zeros(0, 3, 8, 8),
            r"example_input is empty \(shape \(0, 3, 8, 8\)\); expected a batch of at least",
        ),
        # wrong dtype
        (
            resnet,
            image.long(),
            "torch.int64.*pass an input of the shape and type .*its parameters are torch.float32 on cpu",
        ),
        (resnet, image.double(), "torch.float64.*its parameters are torch.float32 on cpu"),
        (resnet, image.to(torch.complex64), "torch.complex64.*its parameters are torch.float32 on cpu"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(torch.complex64),
            (2,),
            "its parameters are torch.complex64",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(torch.complex64),
            torch.zeros(2, 2, dtype=torch.complex64),
            "module '1': NotImplementedError.*complex",
        ),
        # other devices
        (lambda: resnet().to("meta"), (3, 8, 8), "ResNet is on the meta device, where tensors have no values; move it"),
        (resnet, image.to("meta"), "example_input is on the meta device, without values"),
        # what the network takes
        (Two, (4,), "Two takes 2 to 3 inputs, and example_input has 1; pass a tuple with one tensor for each"),
        (resnet, (image, image), "ResNet takes 1 inputs, and example_input has 2"),
        (
            lambda: nn.Sequential(Demanding()),
            (3,),
            r"module '0', test_tracing.py line \d+ .*ValueError: expected four f",
        ),
        (nothing_wide, (3,), "'3' has no channels .input of shape .2, 0..; remove the layer"),
        (
            lambda: nn.Sequential(nn.Linear(3, 0), nn.ReLU()),
            (3,),
            "'1' has no channels .input of shape .2, 0..; remove the layer",
        ),
        (  # torch itself refuses these
            lambda: nn.Sequential(nn.Conv2d(3, 0, 3), nn.ReLU()),
            (3, 8, 8),
            "in module '0': RuntimeError: .*weight of size .0, 3, 3, 3.",
        ),
        # no network at all
        (lambda: torch.relu, (3,), "the network is <built-in .*>; expected a torch.nn.Module"),
        (lambda: nl.linearize(resnet(), (3, 8, 8)), (3, 8, 8), r"ResNet is linearized already; .*units\(net\)"),
        (resnet, None, "example_input is None; expected a tensor"),
        (resnet, {"x": image}, "example_input is {'x'.*; expected a tensor, a tuple of tensors, or a shape"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_bad_input_is_answered_in_one_sentence(model, example, words):
    with pytest.raises(nl.NladvError, match=f"(?s){words}") as refusal:
        nl.linearize(model(), example)
    message = str(refusal.value)
    assert message.endswith(".") and ".." not in message.replace("...", "")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ((1, 8, 8), "module 'conv1' .Conv2d.: the example's shape does not fit .1 channels come in"),
        (torch.zeros(0, 3, 8, 8), "example_input is empty"),
        ((image, image), "the network was recorded with 1 inputs, and example_input has 2; pass a tuple"),
        ("3x8x8", "example_input is '3x8x8'; expected a tensor"),
        ((), "example_input is .*; expected a tensor"),
    ],
)
def test_bad_examples_are_no_length(example, words):
    net = nl.linearize(resnet(), (3, 8, 8))
    with pytest.raises(nl.NladvError, match=words):
        nl.path_length(net, example)


def test_lengths_depend_on_shapes_alone():
    net = nl.linearize(resnet(), (3, 8, 8))
    expected = nl.path_length(net, (3, 8, 8), normalized=False).mean
    for other in (image.to("meta"), image.long(), image.to(torch.complex64)):
        assert nl.path_length(net, other, normalized=False).mean == pytest.approx(expected)
    with pytest.raises(nl.UnsupportedNetwork, match="the network is 'resnet8'; expected a torch.nn.Module"):
        nl.path_length("resnet8", (3, 8, 8))
    two = nl.linearize(Two(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(nl.UnsupportedNetwork, match="recorded with 2 inputs, and example_input has 1"):
        nl.path_length(two, (4,))


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (None, "the masks are None; expected a mapping"),
        ({"relu": [True]}, r"the mask of 'relu' is \[True\]; expected a torch.bool tensor of shape \(4,\)"),
        (
            {"relu": torch.ones(5, dtype=torch.bool)},
            r"'relu' is torch.bool of shape \(5,\); expected .* of shape \(4,\)",
        ),
        ({"relu": torch.ones(4)}, r"'relu' is torch.float32 of shape \(4,\); expected torch.bool"),
        ({"rule": torch.ones(4, dtype=torch.bool)}, r"missing groups \['relu'\], unknown groups \['rule'\]"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(masks, words):
    net = nl.linearize(Demanding(), (4,))
    with pytest.raises(nl.SpecError, match=words):
        nl.apply_masks_(net, masks)
    assert nl.active_fraction(net) == 1


def test_loaded_masks_that_do_not_fit_name_group_and_size(tmp_path):
    wide, narrow = (nl.linearize(nets.build("resnet8", width=width), (3, 8, 8)) for width in (1, 0.5))
    nl.save_masks(nl.masks(wide), tmp_path / "masks")
    name, unit = nl.units(narrow)[0]
    words = rf"the mask of {name!r} is torch.bool of shape \(16,\); expected torch.bool of shape \({unit.channels},\)\."
    with pytest.raises(nl.SpecError, match=words):
        nl.apply_masks_(narrow, nl.load_masks(tmp_path / "masks"))
    other = nl.linearize(nets.build("resnet14"), (3, 8, 8))
    with pytest.raises(nl.SpecError, match=r"missing groups \[.*\], unknown groups \[\]; expected the names that"):
        nl.apply_masks_(other, nl.load_masks(tmp_path / "masks"))
    assert nl.active_fraction(narrow) == nl.active_fraction(other) == 1


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (
            resnet,
            (1, 8, 8),
            r"ResNet fails on the example \(\(2, 1, 8, 8\) torch.float32\) by itself, in module 'conv1'",
        ),
        (resnet, image.double(), "torch.float64.*its parameters are torch.float32 on cpu"),
        (resnet, image.to(torch.complex64), "torch.complex64.*its parameters are torch.float32 on cpu"),
        (lambda: resnet().to("meta"), (3, 8, 8), "ResNet is on the meta device, where tensors have no values"),
        (nothing_wide, (3,), "'3' has no channels"),
        (lambda: nn.Sequential(Demanding()), (3,), "ValueError: expected four features.*; pass an input of the shape"),
    ],
)
def test_bad_input_to_a_measurement_of_any_network(model, example, words):
    with pytest.raises(nl.NladvError, match=f"(?s){words}") as refusal:
        nl.path_length(model(), example)
    assert str(refusal.value).endswith(".")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_examples_follow_the_network_to_its_device():
    net = nl.linearize(resnet().cuda(), image)
    assert {unit.active.device.type for _, unit in nl.units(net)} == {"cuda"}
    assert nl.path_length(net, image).mean == pytest.approx(nl.path_length(resnet(), image).mean)


# ---------------------------------------------------------------------------------------------- paths through all this


def mean(model, shape, **how):
    net = nl.linearize(model, shape)
    return nl.path_length(net, shape, **how).mean


class Pieces(Body):
    """Half of an input's copy replaced by units of it."""

    def forward(self, x):
        y = torch.zeros_like(x) + x
        y[:, :3] = F.relu(self.layer(x))[:, :3]
        y[:, 3] = 7
        return y


def test_assigned_entries_carry_the_paths_of_what_is_assigned():
    assert mean(Pieces(), (4,)) == pytest.approx(1)  # three outputs behind a unit, one constant


class Transposed(Body):
    def forward(self, x):
        return F.relu(self.layer(x)).mT[:, :1] + x.mT[:, :1]


def test_attributes_that_are_views_keep_their_paths():
    net = nl.linearize(Transposed(), (3, 4))
    for active, expected in ((1, 0.5), (0, 0)):  # of the four channels, the first is shown
        nl.apply_masks_(net, {"relu": torch.tensor([active, not active, not active, not active], dtype=torch.bool)})
        assert nl.path_length(net, (3, 4)).mean == pytest.approx(expected)


class Stale(Body):
    """Written through a view, and read under the old name."""

    def __init__(self, late):
        super().__init__()
        self.late = late

    def forward(self, x):
        y = self.layer(x)
        half = y[:, :2]
        half.add_(F.relu(x)[:, :2])
        return y if self.late else half


def test_memory_written_through_a_view_is_no_longer_trusted():
    assert mean(Stale(False), (4,)) == pytest.approx(0.5)
    with pytest.raises(
        nl.UnsupportedNetwork, match="'add_' in the network itself writes in place into memory .* another"
    ):
        mean(Stale(True), (4,))


class Gated(nn.Module):
    """A signal that nobody can measure, and a gate that one could."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 2, 1), act

    def forward(self, x):
        return self.act(self.conv(x)) * F.relu(x.mean((2, 3), keepdim=True))


def test_the_larger_operand_is_the_signal_even_if_it_cannot_be_measured():
    with pytest.warns(nl.ActivationsLeftAlone):
        net = nl.linearize(Gated(nn.Tanh()), (2, 6, 6))
    with pytest.raises(nl.UnsupportedNetwork, match="module 'act' .Tanh. has no path rule"):
        nl.path_length(net, (2, 6, 6), gates="signal")
    twice = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    assert mean(Gated(twice), (2, 6, 6), gates="signal") == pytest.approx(2)


class Swish(Body):
    def forward(self, x):
        y = F.relu(self.layer(x))
        return y * torch.sigmoid(y)


def test_a_product_of_equals_has_no_signal():
    with pytest.warns(nl.ActivationsLeftAlone):
        net = nl.linearize(Swish(), (4,))
    with pytest.raises(nl.UnsupportedNetwork, match="as both have one size"):
        nl.path_length(net, (4,), gates="signal")
