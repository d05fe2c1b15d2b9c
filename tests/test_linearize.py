"""Units, surgery, penalty, freezing, goal and masks."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nladv_core as nl
from nladv_core import nets
from nladv_core.linearize import slope_weights

# ------------------------------------------------------------------------------------------------------------- one unit


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_unit_computes_its_formula_value_by_value(granularity, axis):
    unit = nl.ChannelPReLU((3, 4, 5), axis, granularity)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        unit.slope.copy_(torch.rand(unit.slope.shape, generator=generator))
    unit.active.copy_(torch.rand(unit.active.shape, generator=generator) < 0.7)
    x = torch.randn(2, 3, 4, 5, generator=generator)
    y = unit(x)
    for n, c, h, w in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        index = {"layer": (0,), "pixel": (c, h, w), "channel": (c if axis == 1 else w,)}[granularity]
        slope = float(unit.slope.detach()[index]) if unit.active[index] else 1.0
        value = float(x[n, c, h, w])
        assert float(y[n, c, h, w].detach()) == pytest.approx(max(value, 0) + slope * min(value, 0), abs=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_slope_gradient_is_the_sum_over_negative_inputs_and_zero_when_inactive(granularity):
    unit = nl.ChannelPReLU((2, 3, 3), 1, granularity)
    unit.active.view(-1)[0] = False
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    unit(x).sum().backward()
    negative = x.clamp(max=0)
    expected = {"channel": negative.sum((0, 2, 3)), "layer": negative.sum().view(1), "pixel": negative.sum(0)}[
        granularity
    ]
    torch.testing.assert_close(unit.slope.grad, torch.where(unit.active, expected, 0.0))


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_first_and_second_derivatives_are_those_of_the_formula(granularity, shape):
    unit = nl.ChannelPReLU(shape[1:], 1, granularity).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        unit.slope.copy_(torch.rand(unit.slope.shape, generator=generator))
    unit.active.view(-1)[0] = granularity == "layer"

    def formula(x, slope):
        slope = torch.where(unit.active, slope, 1.0).view(-1, *(1 for _ in shape[2:]))
        return x.clamp(min=0) + slope * x.clamp(max=0)

    found, expected = unit(x), formula(x, unit.slope)
    for _ in range(2):  # the first derivatives, then theirs
        torch.testing.assert_close(found, expected)
        found, expected = (
            torch.cat([d.flatten() for d in torch.autograd.grad(y.pow(3).sum(), (x, unit.slope), create_graph=True)])
            for y in (found, expected)
        )
    torch.testing.assert_close(found, expected)


def test_units_are_listed_anew_when_one_is_replaced():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    nl.units(net)
    net.layer1.add_module("extra", nn.Identity())
    other = nl.ChannelPReLU((16, 8, 8), order=1)
    net.set_submodule("layer1.0.relu2", other)
    assert nl.units(net)[1] == ("layer1.0.relu2", other)
    assert nl.units(copy.deepcopy(net))[1][1] is not other


def test_an_inactive_unit_is_the_identity_whatever_its_slope_holds():
    unit = nl.ChannelPReLU((2,), 1)
    with torch.no_grad():
        unit.slope.fill_(-7.0)
    unit.active.fill_(False)
    x = torch.randn(5, 2)
    assert torch.equal(unit(x), x)


# -------------------------------------------------------------------------------------------------------------- surgery


class AllForms(nn.Module):
    """Every way to call a ReLU: shared module, function, method, and their in-place forms."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.relu(self.b(x))
        x = torch.relu(x - 0.1)
        x = F.relu(x - 0.1)
        x = F.relu(x - 0.1, inplace=True)
        x = (x - 0.1).relu()
        x = self.c(x)
        y = x * 2
        self.inplace(x)
        z = x + y  # reads what the in-place call wrote
        torch.relu_(y)
        y.add_(1)
        w = z - 1
        w.relu_()
        return w + z + y


def test_every_call_site_becomes_a_group_of_its_own_and_nothing_changes():
    model = AllForms()
    state = copy.deepcopy(model.state_dict())
    net = nl.linearize(model, (4,))
    assert [(name, unit.channels) for name, unit in nl.units(net)] == [
        ("relu", 6),
        ("relu_1", 6),
        ("relu_2", 6),
        ("relu_3", 6),
        ("relu_4", 6),
        ("relu_5", 6),
        ("inplace", 5),
        ("relu_6", 5),
        ("relu_7", 5),
    ]
    x = torch.randn(7, 4)
    for training in (False, True):
        assert torch.equal(net.train(training)(x), model.train(training)(x))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert isinstance(model.relu, nn.ReLU)
    assert {name for name, _ in model.named_parameters()} < {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
@pytest.mark.parametrize("name", ["resnet14", "resnet14v1"])
def test_slope_zero_is_the_same_network_in_both_modes(name, granularity):
    torch.manual_seed(0)
    model = nets.build(name)
    x = torch.randn(4, 3, 16, 16)
    model(x)  # batch statistics that are not the initial ones
    net = nl.linearize(model, (3, 16, 16), granularity=granularity)
    assert torch.equal(net.eval()(x), model.eval()(x))
    out, expected = net.train()(x), model.train()(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    ours = dict(net.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(ours[key].grad, parameter.grad)


def test_slope_one_is_affine():
    net = nl.linearize(nets.build("resnet14"), (3, 8, 8)).eval().double()
    nl.apply_masks_(net, {name: torch.zeros_like(mask) for name, mask in nl.masks(net).items()})
    x, y = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(0.3 * x + 0.7 * y), 0.3 * net(x) + 0.7 * net(y))


def test_the_model_is_left_alone_and_the_copy_starts_in_its_mode():
    model = nets.build("resnet8").eval()
    model.layer1.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():
        net = nl.linearize(model, torch.randn(1, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not net.training and net.layer1.training and net.get_submodule("layer1.0.bn1").training
    assert all(p.requires_grad for p in net.parameters())
    assert net(torch.randn(5, 3, 12, 12)).shape == (5, 10)  # neither batch nor image size is fixed
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_transformer_layers_count_channels_last():
    net = nl.linearize(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0), torch.randn(5, 2, 32))
    ((name, unit),) = nl.units(net)
    assert (unit.channels, unit.channel_axis, tuple(unit.slope.shape)) == (64, -1, (64,)) and name == "relu"
    model = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
    assert [
        unit.channels for _, unit in nl.units(nl.linearize(model, (torch.randn(2, 5, 16), torch.randn(2, 4, 16))))
    ] == [24, 24]


def test_residual_networks_of_torchvision():
    from torchvision.models import resnet50

    net = nl.linearize(resnet50(), (3, 64, 64))
    groups = nl.units(net)
    assert (len(groups), sum(unit.channels for _, unit in groups)) == (49, 22720)
    assert [name for name, _ in groups[:4]] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.0.relu_2"]


def test_channel_axis_follows_the_producer_or_the_override():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv1d(3, 4, 1), nn.Linear(7, 5)

        def forward(self, x):
            x = F.relu(self.conv(x))
            x = F.relu(self.linear(x))
            return F.relu(x.transpose(1, 2))

    with pytest.raises(nl.UnsupportedNetwork, match=r"'relu_2'.*\(2, 5, 4\).*channel_axis=\{'relu_2': axis\}"):
        nl.linearize(Sequence(), (3, 7))
    net = nl.linearize(Sequence(), (3, 7), channel_axis={"relu_2": 1})
    assert [unit.channels for _, unit in nl.units(net)] == [4, 5, 5]
    with pytest.raises(nl.SpecError, match="'relu_9'"):
        nl.linearize(Sequence(), (3, 7), channel_axis={"relu_2": 1, "relu_9": 1})
    with pytest.raises(nl.SpecError, match="channel_axis of 'relu' is 3"):
        nl.linearize(Sequence(), (3, 7), channel_axis=3)


class Branch(nn.Module):
    def forward(self, x):
        return F.relu(x) if x.sum() > 0 else x


class ByShape(nn.Module):
    def forward(self, x):
        b, c = x.shape
        return F.relu(x).view(b, c, 1) if x.dim() == 2 and len(x.shape) == 2 else x


class View(nn.Module):
    def forward(self, x):
        y = x * 1
        first = y[:, :1]
        y.relu_()
        return first + y


class ByFlag(nn.Module):
    """What the mode decides is handed to an operation."""

    def forward(self, x):
        return F.dropout(F.relu(x), 0.5, self.training)


class ByBranch(nn.Module):
    """What the mode decides is which code runs, with a head of its own in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aside = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.register_buffer("shift", torch.ones(3))
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x):
        x = F.relu(self.body(x))
        if self.training:
            return self.head(x) * self.scale + self.shift, F.relu(self.aside(x))
        return F.softmax(self.head(x) * self.scale + self.shift, 1)


def test_a_flag_that_follows_the_mode_stays_one():
    net, model = nl.linearize(ByFlag(), (64,)), ByFlag()
    x = torch.randn(3, 64)
    assert torch.equal(net.eval()(x), F.relu(x))
    torch.manual_seed(0)
    dropped = net.train()(x)
    torch.manual_seed(0)
    assert torch.equal(dropped, model.train()(x)) and (dropped == 0).float().mean() > 0.6


def test_a_network_that_differs_by_mode_keeps_both():
    model = ByBranch()
    net = nl.linearize(model, (4,))
    assert [(name, unit.channels) for name, unit in nl.units(net)] == [("relu", 6), ("relu_1", 2)]
    assert {name for name, _ in model.named_parameters()} < {name for name, _ in net.named_parameters()}
    assert {name for name, _ in model.named_buffers()} < {name for name, _ in net.named_buffers()}
    x = torch.randn(5, 4)
    for made in (net, copy.deepcopy(net)):
        assert torch.equal(made.eval()(x), model.eval()(x))
        for ours, theirs in zip(made.train()(x), model.train()(x), strict=True):
            assert torch.equal(ours, theirs)
        nl.units(made)[0][1].active.fill_(False)
        assert torch.equal(made(x)[0], model.head(model.body(x)) * model.scale + model.shift)
        assert not torch.equal(made.eval()(x), model.eval()(x))
        nl.units(made)[0][1].active.fill_(True)
    doubled = net.double()
    assert doubled.train()(x.double())[0].dtype == torch.float64
    doubled.load_state_dict(net.state_dict())


def test_decisions_by_shape_are_followed():
    net = nl.linearize(ByShape(), (4,))
    assert net(torch.randn(5, 4)).shape == (5, 4, 1)


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), (2,), "calls no ReLU"),
        (nn.Sequential(nn.Identity(), Branch()), (2,), "module '1', test_linearize.py line .*decides by the numbers"),
        (View(), (4,), "view"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (4,), "module '0'.*RuntimeError: mat1 and mat2"),
        (nn.Sequential(nn.RNN(2, 2, nonlinearity="relu")), (3, 2), "recurrent layer"),
        (nets.build("resnet8"), "3x8x8", "example_input is '3x8x8'"),
        (nets.build("resnet8"), (), "example_input is"),
    ],
)
def test_what_cannot_be_done_faithfully_is_refused(model, example, words):
    with pytest.raises(nl.UnsupportedNetwork, match=words):
        nl.linearize(model, example)


def test_relu6_is_linearized_on_demand_and_counted_otherwise():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU6(), nn.Hardtanh(0, 6), nn.Tanh())
    with pytest.warns(
        nl.ActivationsLeftAlone, match=r"left 3 activations of Sequential as they are: ReLU6 \(2\), Tanh"
    ):
        assert len(nl.units(nl.linearize(model, (3,)))) == 1
    with pytest.warns(nl.ActivationsLeftAlone, match=r"left 1 .*Tanh \(1\)"):
        net = nl.linearize(model, (3,), relu6=True)
    assert [unit.limit for _, unit in nl.units(net)] == [math.inf, 6, 6]
    x = 20 * torch.randn(50, 3)
    assert torch.equal(net(x), model(x))
    unit = nl.units(net)[1][1]
    with torch.no_grad():
        unit.slope.fill_(0.25)
    values = torch.tensor([[-8.0, 3.0, 6.0, 10.0]])
    assert unit(values).tolist() == [[-2.0, 3.0, 6.0, 7.0]]
    unit.active.fill_(False)
    assert torch.equal(unit(values), values)
    with pytest.raises(nl.UnsupportedNetwork, match=r"ReLU6 \(1\). Pass relu6=True"):
        nl.linearize(nn.Sequential(nn.Linear(2, 2), nn.ReLU6()), (2,))


def test_an_unknown_granularity_is_refused():
    with pytest.raises(nl.SpecError, match="granularity is 'neuron'.*'channel', 'layer', 'pixel'"):
        nl.linearize(nets.build("resnet8"), (3, 8, 8), granularity="neuron")


def test_units_of_a_network_that_has_none():
    with pytest.raises(nl.UnsupportedNetwork, match="no linearization units"):
        nl.units(nn.Linear(2, 2))


def test_copies_compiled_wrappers_and_state_dicts_keep_the_units():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    nl.units(net)[2][1].active[3] = False
    again = copy.deepcopy(net)
    assert [name for name, _ in nl.units(again)] == [name for name, _ in nl.units(net)]
    assert not nl.units(again)[2][1].active[3]
    fresh = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    fresh.load_state_dict(net.state_dict())
    assert nl.active_fraction(fresh) == nl.active_fraction(net) < 1


# ------------------------------------------------------------------------------------------- penalty, freezing, the
# goal


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = nl.linearize(nets.build("resnet8", width=0.5), (3, 8, 8))
    with torch.no_grad():
        for _, unit in nl.units(made):
            unit.slope.uniform_(0, 1)
    return made


def slopes_of(net):
    return [pair for _, unit in nl.units(net) for pair in zip(unit.slope.tolist(), unit.active.tolist(), strict=True)]


@pytest.mark.parametrize("p", [0.5, 1, 2])
@pytest.mark.parametrize("target", [1.0, 0.0])
def test_penalty_is_the_sum_over_active_units(net, p, target):
    for _, unit in nl.units(net):
        unit.active[::3] = False
    penalty = nl.slope_penalty(net, p, target)
    assert penalty.shape == ()
    expected = math.fsum(abs(target - slope) ** p for slope, active in slopes_of(net) if active)
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)


def test_penalty_pushes_slopes_up_and_its_gradient_is_finite_everywhere(net):
    with torch.no_grad():
        nl.units(net)[0][1].slope[:3] = torch.tensor([1.0, 0.0, 1 - 1e-7])
    nl.slope_penalty(net).backward()
    for _, unit in nl.units(net):
        assert unit.slope.grad.isfinite().all()
        assert (unit.slope.grad <= 0).all()  # descending it raises the slope
    first = nl.units(net)[0][1].slope
    assert first.grad[0] == 0 and first.grad[1] == pytest.approx(-0.5)


def random_weights(net, seed=0):
    """One for each channel, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.rand(unit.channels, generator=generator, dtype=torch.float64) for name, unit in nl.units(net)}
    return {name: weights * (weights > 0.1) for name, weights in made.items()}


def priced(net, weights):
    """Of each slope, one after the other: its value, whether it is active, and its weight, channel by channel."""
    for name, unit in nl.units(net):
        for index in itertools.product(*map(range, unit.slope.shape)):
            channels = weights[name].tolist()
            if unit.granularity == "layer":
                weight = math.fsum(channels)
            else:  # all feature maps of these networks have channels first
                weight = channels[index[0]] / math.prod(unit.slope.shape[1:])
            yield float(unit.slope.detach()[index]), bool(unit.active[index]), weight


def sloped(granularity):
    torch.manual_seed(0)
    made = nl.linearize(nets.build("resnet8", width=0.25), (3, 8, 8), granularity=granularity)
    with torch.no_grad():
        for _, unit in nl.units(made):
            unit.slope.uniform_(0, 1)
            unit.active.copy_(torch.rand(unit.active.shape) < 0.7)
    return made


@pytest.mark.parametrize("p", [0.5, 2])
@pytest.mark.parametrize("target", [1.0, 0.0])
@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_penalty_charges_each_unit_its_weight(granularity, p, target):
    net = sloped(granularity)
    weights = random_weights(net)
    expected = math.fsum(weight * abs(target - slope) ** p for slope, active, weight in priced(net, weights) if active)
    backwards = dict(reversed(weights.items()))  # names decide, not their order
    for given in (weights, backwards, slope_weights(net, weights)):
        assert float(nl.slope_penalty(net, p, target, weights=given).detach()) == pytest.approx(expected, rel=1e-5)


def test_penalty_takes_visit_probabilities_as_they_are(net):
    with torch.no_grad():
        for _, unit in nl.units(net):
            unit.slope.zero_()
            unit.active[::2] = False
    visits = nl.visit_probability(net, (3, 8, 8))
    assert float(nl.slope_penalty(net, weights=visits).detach()) == pytest.approx(nl.path_length(net, (3, 8, 8)).mean)


def test_penalty_with_weights_of_one_is_the_one_without(net):
    found = []
    for weights in (None, nl.unit_weights(net, (3, 8, 8), "units")):
        penalty = nl.slope_penalty(net, weights=weights)
        found.append([penalty, *torch.autograd.grad(penalty, [unit.slope for _, unit in nl.units(net)])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_may_be_given_for_each_slope():
    net = sloped("pixel")
    weights = {name: torch.rand(unit.slope.shape) for name, unit in nl.units(net)}
    expected = 0.0
    for name, unit in nl.units(net):
        for index in itertools.product(*map(range, unit.slope.shape)):
            distance = 1 - float(unit.slope.detach()[index])
            expected += float(weights[name][index]) * distance**0.5 * bool(unit.active[index])
    assert float(nl.slope_penalty(net, weights=weights).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_penalty_is_that_of_each_unit_times_its_weight(net):
    weights = random_weights(net)
    nl.slope_penalty(net, weights=weights).backward()
    for name, unit in nl.units(net):
        for slope, gradient, weight in zip(unit.slope.tolist(), unit.slope.grad.tolist(), weights[name], strict=True):
            assert gradient == pytest.approx(-0.5 * float(weight) / math.sqrt(1 - slope), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w, name: w.pop(name), "missing groups ['relu']"),
        (lambda w, name: w.update(x=torch.ones(3)), "unknown groups ['x']"),
        (
            lambda w, name: w.update({name: torch.ones(7)}),
            "'relu' have shape (7,); expected a real tensor of shape (8,)",
        ),
        (lambda w, name: w.update({name: torch.tensor(1.0)}), "'relu' have shape ()"),
        (lambda w, name: w.update({name: [1.0] * 8}), "'relu' are [1.0, 1.0"),
        (lambda w, name: w.update({name: torch.ones(8, dtype=torch.complex64)}), "expected a real tensor"),
        (lambda w, name: w[name].__setitem__(2, -0.5), "'relu' hold -0.5; expected finite numbers of at least 0"),
        (lambda w, name: w[name].__setitem__(2, math.nan), "'relu' hold nan"),
        (lambda w, name: w[name].__setitem__(2, math.inf), "'relu' hold inf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(net, change, told):
    first = nl.units(net)[0][0]
    weights = random_weights(net)
    change(weights, first)
    calls = (
        lambda: nl.slope_penalty(net, weights=weights),
        lambda: nl.GoalController(net, 1.0, omega=0.1, weights=weights),
    )
    for call in calls:
        with pytest.raises(nl.SpecError) as refusal:
            call()
        assert told.replace("'relu'", repr(first)) in str(refusal.value) and "\n" not in str(refusal.value)


def test_weights_that_are_no_mapping_are_refused(net):
    with pytest.raises(nl.SpecError, match="weights are 'napl'; expected a mapping"):
        nl.slope_penalty(net, weights="napl")
    with pytest.raises(nl.SpecError, match=r"a tensor of shape \(3,\); expected a mapping"):
        nl.slope_penalty(net, weights=torch.ones(3))


def test_penalty_refuses_an_exponent_that_is_not_positive(net):
    with pytest.raises(nl.SpecError, match="exponent p .* is 0"):
        nl.slope_penalty(net, p=0)


def test_freezing_locks_what_exceeds_the_margin_for_good(net):
    with torch.no_grad():
        nl.units(net)[1][1].slope[:4] = torch.tensor([0.9901, 0.98999, 0.9, 1.0])
    before = slopes_of(net)
    expected = sum(slope > 0.99 for slope, _ in before)
    assert nl.freeze_linear_(net) == expected >= 2
    assert nl.freeze_linear_(net) == 0
    for (old, _), (new, active) in zip(before, slopes_of(net), strict=True):
        assert (new, active) == ((1.0, False) if old > 0.99 else (old, True))
    unit = nl.units(net)[1][1]
    assert unit.active[:4].tolist() == [False, True, True, False]
    with torch.no_grad():  # momentum moves a locked slope; projecting brings it back, and it stays inactive
        unit.slope[0] = 0.4
    nl.project_slopes_(net)
    assert unit.slope[0] == 1 and not unit.active[0]


def test_a_wider_margin_freezes_more_and_a_silly_one_is_refused(net):
    expected = sum(slope > 0.6 for slope, _ in slopes_of(net))
    assert 0 < expected == nl.freeze_linear_(net, margin=0.4) < len(slopes_of(net))
    for margin in (0, 1, -0.1):
        with pytest.raises(nl.SpecError, match="margin"):
            nl.freeze_linear_(net, margin)


def test_projection_keeps_active_slopes_in_the_unit_interval(net):
    with torch.no_grad():
        nl.units(net)[0][1].slope[:3] = torch.tensor([-0.3, 1.7, 0.5])
    nl.project_slopes_(net)
    assert nl.units(net)[0][1].slope[:3].tolist() == [0.0, 1.0, 0.5]


def test_no_weight_decay_on_slopes(net):
    groups = nl.parameter_groups(net, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    before = slopes_of(net)
    weights = [p.detach().clone() for p in groups[0]["params"]]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert slopes_of(net) == before
    assert any(not torch.equal(a, b) for a, b in zip(weights, groups[0]["params"], strict=True))
    assert (
        nl.parameter_groups(nn.Linear(2, 2), 0.1)[0]["weight_decay"] == 0.1
        and len(nl.parameter_groups(nn.Linear(2, 2), 0.1)) == 1
    )


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
@pytest.mark.parametrize("goal", [0.1, 0.5, 0.88])
def test_goal_is_passed_by_at_most_one_unit(granularity, goal):
    torch.manual_seed(1)
    net = nl.linearize(nets.build("resnet14", width=0.25), (3, 8, 8), granularity=granularity)
    controller = nl.GoalController(net, goal, omega=0.1)
    largest = max(unit.weight for _, unit in nl.units(net)) / sum(unit.channels for _, unit in nl.units(net))
    shares = []
    for _ in range(40):
        with torch.no_grad():
            for _, unit in nl.units(net):
                unit.slope += 0.2 * torch.rand(unit.slope.shape)
        before = nl.active_fraction(net)
        ready = [unit.slope > 1 - 0.01 for _, unit in nl.units(net)]
        frozen = int(controller.freeze_())
        for (_, unit), near in zip(nl.units(net), ready, strict=True):
            assert near[~unit.active].all()  # only what had come within the margin (or was locked, at exactly 1)
        nl.project_slopes_(net)
        assert (frozen > 0) == (nl.active_fraction(net) < before)
        shares.append(1 - nl.active_fraction(net))
    assert controller.reached and shares == sorted(shares)
    assert goal - 1e-6 <= shares[-1] <= goal + largest + 1e-6
    assert float(controller.omega()) == 0 and int(controller.freeze_()) == 0


def test_goal_locks_the_largest_slopes_first(net):
    controller = nl.GoalController(net, 0.015, omega=0.1)
    with torch.no_grad():
        for _, unit in nl.units(net):
            unit.slope.clamp_(max=0.9)
        nl.units(net)[0][1].slope[:3] = torch.tensor([0.991, 0.999, 0.995])
    assert int(controller.freeze_()) == math.ceil(0.015 * len(slopes_of(net))) == 2
    assert nl.units(net)[0][1].active[:3].tolist() == [True, False, False]


def test_omega_is_full_far_from_the_goal_and_falls_near_it(net):
    controller = nl.GoalController(net, 0.5, omega=2.0, band=0.25, floor=0.1)
    total, seen = len(slopes_of(net)), []
    for _, unit in nl.units(net):
        for i in range(unit.channels):
            inactive = 1 - nl.active_fraction(net)
            seen.append((inactive, float(controller.omega())))
            unit.active[i] = False
    for inactive, omega in seen:
        expected = 0 if inactive >= 0.5 else 2.0 * min(1, 0.1 + 0.9 * (0.5 - inactive) / 0.25)
        assert omega == pytest.approx(expected, abs=2e-5)
    assert len(seen) == total


def measured(net, measure):
    """What is left, by what knows nothing of weights."""
    if measure == "napl":
        return nl.path_length(net, (3, 8, 8)).mean
    counts = []
    # Feature maps of 8, 4 and 2 pixels a side: three, two and two call sites.
    for (_, unit), side in zip(nl.units(net), (8, 8, 8, 4, 4, 2, 2), strict=True):
        share = float(unit.active.double().mean())  # each slope of a group stands for as many
        counts.append(share * unit.channels * (side * side if measure == "relus" else 1))
    return math.fsum(counts)


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
@pytest.mark.parametrize(("measure", "goal"), [("napl", 2.7), ("napl", 0.31), ("relus", 900.0), ("units", 21.5)])
def test_a_budget_is_passed_by_less_than_one_unit(granularity, measure, goal):
    torch.manual_seed(1)
    net = nl.linearize(nets.build("resnet8", width=0.25), (3, 8, 8), granularity=granularity)
    controller = nl.GoalController(net, goal, omega=0.1, weights=nl.unit_weights(net, (3, 8, 8), measure))
    left = [measured(net, measure)]
    while not controller.reached:
        assert left[-1] > goal and len(left) < 200 and float(controller.omega()) > 0
        with torch.no_grad():
            for _, unit in nl.units(net):
                unit.slope += 0.1 * torch.rand(unit.slope.shape)
        before = [(unit.slope.detach().clone(), unit.active.clone()) for _, unit in nl.units(net)]
        frozen = int(controller.freeze_())
        for (slope, active), (_, unit) in zip(before, nl.units(net), strict=True):
            assert (slope[active & ~unit.active] > 0.99).all()
        nl.project_slopes_(net)
        left.append(measured(net, measure))
        assert (frozen > 0) == (left[-1] < left[-2])
    assert left[-1] <= goal * (1 + 1e-9)
    assert float(controller.omega()) == 0 and int(controller.freeze_()) == 0
    # The goal was asked for by every unit but the last: with that one back, it would not be reached.
    locked = [
        (float(slope[index]), unit, index)
        for (slope, active), (_, unit) in zip(before, nl.units(net), strict=True)
        for index in itertools.product(*map(range, slope.shape))
        if active[index] and not unit.active[index]
    ]
    _, unit, index = min(locked, key=lambda found: found[0])
    unit.active[index] = True
    assert measured(net, measure) > goal


def test_a_budget_of_units_is_the_share_that_leaves_as_many(net):
    """Step by step: the same strengths, the same units locked."""
    other = copy.deepcopy(net)
    total = len(slopes_of(net))
    share = nl.GoalController(net, 0.7, omega=2.0, band=0.3, floor=0.2)
    ones = nl.unit_weights(other, (3, 8, 8), "units")
    budget = nl.GoalController(other, total - 0.7 * total, omega=2.0, band=0.3, floor=0.2, weights=ones)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        assert float(share.omega()) == pytest.approx(float(budget.omega()), abs=1e-6)
        with torch.no_grad():
            for (_, unit), (_, same) in zip(nl.units(net), nl.units(other), strict=True):
                unit.slope += 0.1 * torch.rand(unit.slope.shape, generator=generator)
                same.slope.copy_(unit.slope)
        assert int(share.freeze_()) == int(budget.freeze_())
        assert slopes_of(net) == slopes_of(other)
    assert share.reached and budget.reached


def test_omega_falls_within_the_band_of_a_budget(net):
    weights = random_weights(net)
    total = math.fsum(float(w.sum()) for w in weights.values())
    goal = 0.4 * total
    controller = nl.GoalController(net, goal, omega=2.0, band=0.25, floor=0.1, weights=weights)
    seen = []
    for name, unit in nl.units(net):
        for i in range(unit.channels):
            left = math.fsum(float(weights[n][u.active].sum()) for n, u in nl.units(net))
            expected = 0 if left <= goal else 2.0 * min(1, 0.1 + 0.9 * (left - goal) / (0.25 * total))
            assert float(controller.omega()) == pytest.approx(expected, abs=2e-5), name
            assert controller.reached == (expected == 0)
            seen.append(expected)
            unit.active[i] = False
    assert {0, 2.0} < set(seen)


def test_weights_stay_valid_while_units_are_locked_and_a_goal_may_be_reached_already(net):
    """As in a run that is taken up again."""
    weights = nl.unit_weights(net, (3, 8, 8), "napl")
    for _, unit in nl.units(net):
        unit.active[1:] = False
    again = nl.unit_weights(net, (3, 8, 8), "napl")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert nl.GoalController(net, 4.0, omega=0.1, weights=weights).reached


@pytest.mark.parametrize("goal", [0, -1.0, 5, 5.1, math.inf, math.nan, "2.7"])
def test_a_budget_that_leaves_everything_or_less_than_nothing_is_refused(net, goal):
    with pytest.raises(nl.SpecError) as refusal:
        nl.GoalController(net, goal, omega=0.1, weights=nl.unit_weights(net, (3, 8, 8), "napl"))
    told = f"the goal is that {goal!r} be left, and all units together weigh 5; expected a number above 0 and below"
    assert told in str(refusal.value)


@pytest.mark.parametrize("budget", [False, True])
def test_a_step_of_the_controller_reads_nothing_back(net, budget, monkeypatch):
    """What would wait for a device: numbers and truth values of tensors, and copies."""
    weights = nl.unit_weights(net, (3, 8, 8), "napl") if budget else None
    controller = nl.GoalController(net, 0.5, omega=0.1, weights=weights)
    prices = slope_weights(net, nl.visit_probability(net, (3, 8, 8)))

    def waits(*_, **__):
        raise AssertionError("waits for the device")

    for name in ("__bool__", "__float__", "__int__", "__len__", "item", "tolist", "numpy", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    controller.omega()
    controller.freeze_()
    nl.slope_penalty(net, weights=prices if budget else None)
    with pytest.raises(AssertionError, match="waits"):
        assert controller.reached


@pytest.mark.parametrize("goal", [0, 1, -0.5, 1.5, float("nan")])
def test_a_goal_outside_its_range_is_refused(net, goal):
    with pytest.raises(nl.SpecError, match="goal share .* in \\(0, 1\\)"):
        nl.GoalController(net, goal, omega=0.1)


def test_a_negative_omega_is_refused(net):
    with pytest.raises(nl.SpecError, match="ω is -1"):
        nl.GoalController(net, 0.5, omega=-1)


# -------------------------------------------------------------------------------------------------------------- masks


def test_shares_and_width_count_channels():
    model = nets.build("resnet8", width=0.5)
    channel, layer, pixel = (nl.linearize(model, (3, 8, 8), granularity=g) for g in ("channel", "layer", "pixel"))
    widths = [unit.channels for _, unit in nl.units(channel)]
    for made in (channel, layer, pixel):
        assert nl.active_fraction(made) == 1
        assert nl.effective_width(made) == pytest.approx(sum(widths) / len(widths))
    nl.units(channel)[0][1].active[:4] = False
    nl.units(layer)[0][1].active[:] = False
    nl.units(pixel)[0][1].active[:4, :, :4] = False  # half of the pixels of four channels
    assert nl.active_fraction(channel) == pytest.approx(1 - 4 / sum(widths))
    assert nl.active_fraction(layer) == pytest.approx(1 - widths[0] / sum(widths))
    assert nl.active_fraction(pixel) == pytest.approx(1 - 2 / sum(widths))
    assert nl.active_counts(pixel)["layer1.0.relu1"] == (pytest.approx(widths[0] - 2), widths[0])
    assert nl.effective_width(channel) == pytest.approx((sum(widths) - 4) / len(widths))


def test_masks_move_between_networks(net, tmp_path):
    for i, (_, unit) in enumerate(nl.units(net)):
        unit.active[i % 3 :: 3] = False
    nl.save_masks(nl.masks(net), tmp_path / "masks.safetensors")
    loaded = nl.load_masks(tmp_path / "masks.safetensors")
    other = nl.linearize(nets.build("resnet8", width=0.5), (3, 8, 8))
    nl.apply_masks_(other, loaded)
    assert all(torch.equal(mask, loaded[name]) for name, mask in nl.masks(net).items())
    for _, unit in nl.units(other):
        assert unit.slope.tolist() == [0.0 if active else 1.0 for active in unit.active]
    nl.apply_masks_(other, {name: torch.ones_like(mask) for name, mask in loaded.items()})
    assert all(unit.slope.abs().max() == 0 for _, unit in nl.units(other))  # a unit that returns is a ReLU again
    loaded["relu"].fill_(False)
    assert nl.units(other)[-1][1].active.any()
    assert list(tmp_path.iterdir()) == [tmp_path / "masks.safetensors"]


def test_masks_that_do_not_fit_are_refused(net):
    good = nl.masks(net)
    with pytest.raises(nl.SpecError, match=r"missing groups \['relu'\], unknown groups \['elu'\]"):
        nl.apply_masks_(net, {**{k: v for k, v in good.items() if k != "relu"}, "elu": good["relu"]})
    with pytest.raises(nl.SpecError, match=r"'relu'.*\(3,\); expected torch.bool of shape \(32,\)"):
        nl.apply_masks_(net, {**good, "relu": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(nl.SpecError, match="torch.float32"):
        nl.apply_masks_(net, {**good, "relu": torch.ones(32)})
    assert nl.active_fraction(net) == 1


def test_permutations_keep_counts_and_shuffle_within_their_scope(net):
    for i, (_, unit) in enumerate(nl.units(net)):
        unit.active[: unit.channels // (i + 2)] = False
    given = nl.masks(net)
    kept = {name: mask.clone() for name, mask in given.items()}
    layer = nl.permute_masks(given, "layer", torch.Generator().manual_seed(0))
    whole = nl.permute_masks(given, "global", torch.Generator().manual_seed(0))
    assert {n: int(m.sum()) for n, m in layer.items()} == {n: int(m.sum()) for n, m in given.items()}
    assert sum(int(m.sum()) for m in whole.values()) == sum(int(m.sum()) for m in given.values())
    assert {n: int(m.sum()) for n, m in whole.items()} != {n: int(m.sum()) for n, m in given.items()}
    assert {n: m.shape for n, m in whole.items()} == {n: m.shape for n, m in given.items()}
    assert any(not torch.equal(layer[n], given[n]) for n in given)
    assert all(torch.equal(kept[n], given[n]) for n in given)
    again = nl.permute_masks(given, "layer", torch.Generator().manual_seed(0))
    assert all(torch.equal(layer[n], again[n]) for n in given)
    backwards = dict(reversed(given.items()))
    for scope, expected in (("layer", layer), ("global", whole)):
        found = nl.permute_masks(backwards, scope, torch.Generator().manual_seed(0))
        assert all(torch.equal(found[n], expected[n]) for n in given)  # whatever order a file gives them back in
    with pytest.raises(nl.SpecError, match="'network'.*'layer' or 'global'"):
        nl.permute_masks(given, "network")


def test_a_damaged_mask_file_is_refused(net, tmp_path):
    path = tmp_path / "masks.safetensors"
    nl.save_masks(nl.masks(net), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(nl.RecordError, match="masks.safetensors cannot be read"):
        nl.load_masks(path)
    with pytest.raises(nl.RecordError, match="nothing.safetensors"):
        nl.load_masks(tmp_path / "nothing.safetensors")
    from safetensors.torch import save_file

    save_file({"relu": torch.ones(3)}, path)
    with pytest.raises(nl.RecordError, match="not bool"):
        nl.load_masks(path)
