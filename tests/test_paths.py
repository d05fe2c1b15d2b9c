"""Path lengths against brute force, the paper's algorithm, and every worked fact."""

import copy
import gc
import math
import random
import weakref

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import nladv_core as nl
from neurons import Net, every_path, random_layers
from nladv_core import nets, paths
from paper_algorithm import histogram as paper_histogram

EXACT = 1e-9


def randomly_masked(net, seed, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    nl.apply_masks_(
        net, {name: torch.rand(mask.shape, generator=generator) < share for name, mask in nl.masks(net).items()}
    )
    return net


def expected_mean(histogram):
    return sum(length * weight for length, weight in histogram.items()) / sum(histogram.values())


def as_tensor(histogram, size):
    total = sum(histogram.values())
    return torch.tensor([float(histogram.get(length, 0) / total) for length in range(size)], dtype=torch.float64)


@pytest.mark.parametrize("block", range(8))  # 8 x 260 networks
@settings(max_examples=260, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9), depth=st.integers(2, 9))
def test_equals_walking_every_path(block, seed, depth):
    judged(random.Random(8 * seed + block), depth)


def judged(rng, depth):
    """Compare one random network with the oracle; returns what came of it."""
    layers = random_layers(rng, depth)
    module = Net(layers).eval()
    try:
        net = nl.linearize(module, layers[0][1:])
    except nl.UnsupportedNetwork as error:  # a ReLU behind a shuffle or a permutation: its channel axis has to be told
        assert "counts the channels is not evident" in str(error), layers
        net = nl.linearize(module, layers[0][1:], channel_axis=1)
    groups = {int(name.split(".")[1]): unit for name, unit in nl.units(net)}
    for unit in groups.values():
        unit.active.copy_(torch.tensor([rng.random() < 0.6 for _ in range(unit.channels)]))

    def active(i, neuron):
        return groups[i].active[neuron[groups[i].channel_axis % (len(neuron) + 1) - 1]]

    walked = every_path(layers, active, limit=20_000)
    if walked is None:
        return "too many paths to walk"
    if not walked[0]:
        with pytest.raises(nl.UnsupportedNetwork, match="no path"):
            nl.path_length(net, layers[0][1:])
        return "refused"
    for normalized, expected in zip((False, True), walked, strict=True):
        found = nl.path_length(net, layers[0][1:], normalized=normalized)
        assert found.mean == pytest.approx(float(expected_mean(expected)), abs=EXACT), layers
        torch.testing.assert_close(found.histogram, as_tensor(expected, len(found.histogram)), atol=EXACT, rtol=0)
    return "equal"


REAL = {
    **{f"{name} {kind}": lambda name=name, kind=kind: nets.build(name, shortcut=kind)
       for name in ("resnet20", "resnet20v1") for kind in "AB"},
    "resnet20 without residuals": lambda: nets.build("resnet20", residual=False),
    **{name: lambda name=name: getattr(torchvision.models, name)() for name in ("resnet18", "densenet121")},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_equals_the_papers_algorithm(name):
    shape = (3, 32, 32) if name in ("resnet18", "densenet121") else (3, 16, 16)
    net = randomly_masked(nl.linearize(REAL[name](), shape), seed=3)
    for normalized in (True, False):
        expected = paper_histogram(net, shape, normalized)
        found = nl.path_length(net, shape, normalized=normalized)
        torch.testing.assert_close(found.histogram, expected, atol=EXACT, rtol=0)
        assert found.mean == pytest.approx(float(expected @ torch.arange(len(expected)).double()), abs=EXACT)


class Times(nn.Module):
    """What stands in for a unit group: active channels multiply by t."""

    def __init__(self, unit, t):
        super().__init__()
        self.unit, self.t = unit, t

    def forward(self, x):
        factor = torch.where(self.unit.active, self.t, 1.0)
        return x * factor.view([-1 if axis == self.unit.channel_axis % x.ndim else 1 for axis in range(x.ndim)])


def derivative_of_log_paths(net, shape):
    """d/dt log P(t) at t = 1: P(t) is the network's summed output for ones, unit weights and active units times t."""
    twin, t = copy.deepcopy(net).eval().double(), torch.ones((), dtype=torch.float64, requires_grad=True)
    for module in twin.modules():
        for parameter in module.parameters(recurse=False):
            nn.init.ones_(parameter)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_(), module.running_var.fill_(1 - module.eps)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.MaxPool2d):  # a sum over the window, but for a factor that the logarithm drops
            twin.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
        elif isinstance(module, nl.ChannelPReLU):
            twin.set_submodule(name, Times(module, t))
    (slope,) = torch.autograd.grad(twin(torch.ones(1, *shape, dtype=torch.float64)).sum().log(), t)
    return float(slope)


@pytest.mark.parametrize("name", ["resnet20 A", "resnet20v1 B", "resnet56", "resnet18", "resnet50", "small densenet"])
def test_unnormalised_mean_is_the_derivative_of_the_number_of_paths(name):
    made = {
        **REAL,
        "resnet56": lambda: nets.build("resnet56"),
        "resnet50": torchvision.models.resnet50,
        "small densenet": lambda: torchvision.models.DenseNet(8, (3, 4, 3), 16),
    }[name]()
    net = randomly_masked(nl.linearize(made, (3, 32, 32)), seed=7)
    expected = derivative_of_log_paths(net, (3, 40, 32))
    assert nl.path_length(net, (3, 40, 32), normalized=False).mean == pytest.approx(expected, abs=EXACT)


class Figure1(nn.Module):
    """Four fully connected layers of width 4 between one input and one output, one skip around all four."""

    def __init__(self):
        super().__init__()
        widths = [1, 4, 4, 4, 4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = torch.relu(layer(y))
        return self.last(y) + x


def test_figure_1_has_257_paths():
    net = nl.linearize(Figure1(), (1,))
    apl, napl = nl.path_length(net, (1,), normalized=False), nl.path_length(net, (1,))
    assert apl.mean == pytest.approx(4 * 256 / 257, abs=EXACT)
    assert apl.histogram.tolist() == pytest.approx([1 / 257, 0, 0, 0, 256 / 257], abs=EXACT)
    assert napl.mean == pytest.approx(2, abs=EXACT)
    assert napl.histogram.tolist() == pytest.approx([0.5, 0, 0, 0, 0.5], abs=EXACT)


class Chain(nn.Module):
    """L blocks of m units each, with or without residual additions."""

    def __init__(self, blocks, units, residual, width=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(units)) for _ in range(blocks))
        self.residual = residual

    def forward(self, x):
        for block in self.blocks:
            y = x
            for layer in block:
                y = F.relu(layer(y))
            x = x + y if self.residual else y
        return x


@pytest.mark.parametrize(("blocks", "m"), [(1, 1), (5, 1), (7, 2), (12, 3)])
def test_residual_chain_is_binomial(blocks, m):
    found = nl.path_length(nl.linearize(Chain(blocks, m, True), (3,)), (3,)).histogram
    expected = [
        math.comb(blocks, length // m) / 2**blocks if length % m == 0 else 0 for length in range(blocks * m + 1)
    ]
    assert found.tolist() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("normalized", [True, False])
def test_plain_chain_is_the_sum_of_active_shares(normalized):
    net = randomly_masked(nl.linearize(Chain(6, 2, False, width=5), (5,)), seed=0)
    shares = sum(unit.active.float().mean().item() for _, unit in nl.units(net))
    assert nl.path_length(net, (5,), normalized=normalized).mean == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "shortcut", "napl"),
    [
        *[(f"resnet{d}", "A", n) for d, n in ((20, 11), (32, 17), (44, 23), (56, 29))],
        *[(f"resnet{d}v1", "A", n) for d, n in ((20, 15), (32, 24), (44, 33), (56, 42))],
        ("resnet56", "B", 28),
    ],
)
def test_napl_of_all_active_resnets(name, shortcut, napl):
    net = nl.linearize(nets.build(name, shortcut=shortcut), (3, 32, 32))
    assert nl.path_length(net, (3, 32, 32)).mean == pytest.approx(napl, abs=EXACT)


def test_apl_of_resnet56_is_just_below_its_depth():
    net = nl.linearize(nets.build("resnet56"), (3, 32, 32))
    assert nl.path_length(net, (3, 32, 32), normalized=False).mean == pytest.approx(54.9988, abs=5e-5)


def test_napl_does_not_depend_on_position():
    net = randomly_masked(nl.linearize(nets.build("resnet14"), (3, 16, 16)), seed=1)
    assert nl.path_length(net, (3, 16, 16)).mean == pytest.approx(nl.path_length(net, (3, 40, 24)).mean, abs=EXACT)
    assert (
        abs(
            nl.path_length(net, (3, 16, 16), normalized=False).mean
            - nl.path_length(net, (3, 40, 24), normalized=False).mean
        )
        > 1e-6
    )


def test_depth_does_not_overflow():
    net = nl.linearize(nets.build("resnet164"), (3, 32, 32))  # about 10^401 paths
    apl = nl.path_length(net, (3, 32, 32), normalized=False)
    assert 162 < apl.mean < 163
    assert float(apl.histogram.sum()) == pytest.approx(1)
    assert float(apl.histogram @ torch.arange(164, dtype=torch.float64)) == pytest.approx(apl.mean, abs=1e-7)


def test_a_resnet_of_a_thousand_layers():
    net = nl.linearize(nets.build("resnet1004", width=1 / 16), (3, 4, 4))  # 6·167 + 2 layers
    napl = nl.path_length(net, (3, 4, 4))
    assert napl.mean == pytest.approx(3 * 167 + 2, abs=EXACT)
    randomly_masked(net, seed=2, share=0.8)
    for normalized in (True, False):
        expected = paper_histogram(net, (3, 4, 4), normalized)
        found = nl.path_length(net, (3, 4, 4), normalized=normalized)
        torch.testing.assert_close(found.histogram, expected, atol=EXACT, rtol=0)
        assert found.mean == pytest.approx(float(expected @ torch.arange(1004).double()), abs=EXACT)


@pytest.mark.parametrize("residual", [True, False])
def test_a_chain_of_two_thousand_layers(residual):
    net = nl.linearize(Chain(1000, 2, residual, width=2), (2,))
    apl, napl = (nl.path_length(net, (2,), normalized=normalized) for normalized in (False, True))
    # A block has four paths through both units and, residual, one around them: 5^1000 paths, or 4^1000.
    assert apl.mean == pytest.approx(2000 * 4 / 5 if residual else 2000, abs=1e-8)
    assert napl.mean == pytest.approx(1000 if residual else 2000, abs=1e-8)
    if not residual:
        assert apl.histogram[-1] == napl.histogram[-1] == 1
        return
    for found, share in ((apl, 0.8), (napl, 0.5)):
        lengths = torch.arange(1001, dtype=torch.float64)
        binomial = torch.distributions.Binomial(1000, torch.tensor(share, dtype=torch.float64)).log_prob(lengths).exp()
        torch.testing.assert_close(found.histogram[::2], binomial, atol=EXACT, rtol=0)
        assert found.histogram[1::2].abs().max() == 0


def test_mean_is_the_sum_of_visit_probabilities_over_active_units():
    net = randomly_masked(nl.linearize(nets.build("resnet14", shortcut="B"), (3, 8, 8)), seed=5)
    for normalized in (True, False):
        visits = nl.visit_probability(net, (3, 8, 8), normalized=normalized)
        assert list(visits) == [name for name, _ in nl.units(net)]
        total = sum(float(visits[name][unit.active].sum()) for name, unit in nl.units(net))
        assert nl.path_length(net, (3, 8, 8), normalized=normalized).mean == pytest.approx(total, abs=EXACT)


class PooledFeatures(nn.Module):
    """Pools over the very axis that counts the channels: neighbouring units are met by different shares of paths."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 7), nn.Linear(3, 4)

    def forward(self, x):
        pooled = F.avg_pool1d(F.relu(self.first(x)).unsqueeze(1), 3, 2).squeeze(1)
        return self.second(F.relu(pooled)) + F.relu(x)


class Joined(nn.Module):
    """Concatenated channels, padded, grouped, sliced and cropped: what is kept as runs is read in every way."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(8, 4, 3, padding=1, groups=2), nn.Conv2d(3, 3, 3, stride=2)

    def forward(self, x):
        x = torch.cat([F.relu(self.stem(x)), x], 1)
        x = F.relu(torch.cat([self.wide(F.relu(x)), x], 1))
        y = F.relu(F.max_pool2d(x, 2, 1)) + F.pad(x[:, 1:7, :-1, 1:], (0, 0, 0, 0, 0, 2))
        y = F.relu(self.grouped(F.relu(F.pad(y, (0, 0, 0, 0, 1, 0))[:, :8])) + y[:, ::2])
        y = F.pad(F.pad(y, (0, 0, 0, 0, 1, 1)) + F.pad(y, (0, 0, 0, 0, 0, 2)), (-1, 1, 0, -1))
        return self.last(torch.roll(F.relu(y), 1, 1).chunk(2, dim=1)[0])


class Unequal(nn.Module):
    """Branches whose numbers of paths differ by a hundred orders of magnitude, added and concatenated.

    4^167 exceeds 1e100: the long branch has just been divided by it where the two meet.
    """

    def __init__(self):
        super().__init__()
        self.deep = nn.ModuleList(nn.Linear(4, 4) for _ in range(167))
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        short, long = F.relu(x), x
        for layer in self.deep:
            long = F.relu(layer(long))
        return self.last(torch.cat([F.relu(short + long), F.relu(long)], 1)) + short[:, :2]


class Filled(nn.Module):
    """A tensor filled in place, and attention that looks back only."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = torch.zeros_like(x) + x
        y[:, 1:, :3] = F.relu(self.first(x))[:, :2, 1:]
        y = F.relu(y)
        return self.last(F.relu(F.scaled_dot_product_attention(y, y, y, is_causal=True) + x)).sum(1)


class Folded(nn.Module):
    """An operation of the user's: every entry is added to its mirror image, and bends once itself."""

    def forward(self, x):
        return torch.tanh(x + x.flip(-1))


class Folds(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fold, self.last = nn.Linear(4, 5), Folded(), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(F.relu(self.fold(F.relu(self.first(x)))[..., :4].repeat(1, 2)[..., :5]))


def folded(tape, module, value):
    """Written like the rules of `path_rules`, with nothing said about the way back."""

    def step(run, v):
        parts = (part.expand(-1, *value.shape) for part in v.parts)
        return run.bend(run.merged([part + part.flip(-1) for part in parts], v.log_scale), torch.ones(()).double())

    tape.bends += 1
    return tape.record(step, [value], value.shape)


@pytest.fixture
def fold_rule(monkeypatch):
    from nladv_core import path_rules, tracing

    monkeypatch.setattr(path_rules, "MODULE_RULES", dict(path_rules.MODULE_RULES))
    monkeypatch.setattr(tracing, "_RULED", set(tracing._RULED))
    nl.declare_path_rule(Folded, folded)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(PooledFeatures, (4,)), (Joined, (2, 6, 7)), (Unequal, (4,)), (Filled, (3, 4)), (Folds, (4,))],
)
@pytest.mark.usefixtures("fold_rule")
def test_the_way_back_agrees_with_the_histogram(model, shape):
    net = nl.linearize(model(), shape)
    masks = nl.masks(net)
    for seed in range(8):
        randomly_masked(net, seed)
        for normalized in (True, False):
            found = nl.path_length(net, shape, normalized=normalized)
            by_histogram = float(found.histogram @ torch.arange(len(found.histogram)).double())
            assert found.mean == pytest.approx(by_histogram, abs=EXACT), normalized
    for normalized in (True, False):  # and unit by unit, over the first and the last group
        visits = nl.visit_probability(net, shape, normalized=normalized)
        nl.apply_masks_(net, {name: torch.zeros_like(mask) for name, mask in masks.items()})
        always = nl.path_length(net, shape, normalized=normalized).histogram
        for name in (next(iter(masks)), next(reversed(masks))):
            for channel in range(len(masks[name])):
                only = {group: torch.zeros_like(mask) for group, mask in masks.items()}
                only[name][channel] = True
                nl.apply_masks_(net, only)
                moved = nl.path_length(net, shape, normalized=normalized).histogram - always
                mean = float(moved @ torch.arange(len(moved)).double())
                assert float(visits[name][channel]) == pytest.approx(mean, abs=EXACT)


@pytest.mark.usefixtures("fold_rule")
def test_measuring_works_where_gradients_do_not():
    with torch.no_grad():
        expected = [nl.path_length(nl.linearize(model(), (4,)), (4,)).mean for model in (PooledFeatures, Folds)]
    with torch.inference_mode():
        found = [nl.path_length(nl.linearize(model(), (4,)), (4,)).mean for model in (PooledFeatures, Folds)]
        assert nl.path_length(nl.linearize(Filled(), (3, 4)), (3, 4), normalized=False).histogram.sum() == 1
    assert found == expected


class LargestTensor(TorchDispatchMode):
    """Remembers the largest memory behind any tensor that an operation returns [bytes]."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", ["resnet56", "densenet121"])
def test_unnormalised_means_need_no_map_of_all_channels(name):
    made, size, channels = {
        "resnet56": (lambda: nets.build("resnet56"), 32, 16),
        "densenet121": (torchvision.models.densenet121, 128, 64),
    }[name]
    net = nl.linearize(made(), (3, 32, 32))
    with LargestTensor() as seen:
        nl.path_length(net, (3, size, size), normalized=False)
    stem = size // 2 if name == "densenet121" else size
    assert seen.largest < channels * stem**2 * 8 / 2  # float64, and not even half of the channels


def test_layer_slopes_count_as_their_channels_and_pixel_slopes_by_share():
    model = nets.build("resnet8", width=0.25)
    channel, layer = nl.linearize(model, (3, 8, 8)), nl.linearize(model, (3, 8, 8), granularity="layer")
    pixel = nl.linearize(model, (3, 8, 8), granularity="pixel")
    generator = torch.Generator().manual_seed(0)
    for i, ((_, c), (_, whole), (_, p)) in enumerate(
        zip(nl.units(channel), nl.units(layer), nl.units(pixel), strict=True)
    ):
        c.active.fill_(i % 2 == 0)
        whole.active.fill_(i % 2 == 0)
        p.active.copy_(torch.rand(p.active.shape, generator=generator) < 0.5)
    assert nl.path_length(layer, (3, 8, 8)).mean == pytest.approx(nl.path_length(channel, (3, 8, 8)).mean, abs=EXACT)
    visits = nl.visit_probability(pixel, (3, 8, 8))
    by_hand = sum(
        float((visits[name] * unit.active.flatten(1).double().mean(1)).sum()) for name, unit in nl.units(pixel)
    )
    assert nl.path_length(pixel, (3, 8, 8)).mean == pytest.approx(by_hand, abs=EXACT)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.pool(F.relu(self.conv(x))).mean((2, 3)))


def test_max_pooling_counts_as_one_more_when_asked():
    net = nl.linearize(Pooled(), (1, 6, 6))
    for normalized in (True, False):
        plain = nl.path_length(net, (1, 6, 6), normalized=normalized)
        counted = nl.path_length(net, (1, 6, 6), normalized=normalized, count_max_pool=True)
        assert counted.mean == pytest.approx(plain.mean + 1, abs=EXACT)
        assert counted.histogram[1:].tolist() == pytest.approx(plain.histogram.tolist(), abs=EXACT)


def test_a_network_that_is_not_linearized_has_all_its_relus_active():
    assert nl.path_length(nets.build("resnet20"), (3, 32, 32)).mean == pytest.approx(11, abs=EXACT)


def test_measuring_is_silent_and_masks_are_read_at_the_call():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    first = nl.path_length(net, (3, 8, 8))
    nl.units(net)[0][1].active.fill_(False)
    second = nl.path_length(net, (3, 8, 8))
    assert second.mean < first.mean
    assert float(first.histogram @ torch.arange(len(first.histogram)).double()) == pytest.approx(first.mean)
    assert torch.equal(state, torch.get_rng_state()) and modes == [m.training for m in net.modules()]
    nl.units(net)[0][1].active.fill_(True)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_is_kept_of_a_network_does_not_keep_it_alive():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    nl.path_length(net, (3, 8, 8))
    nl.slope_penalty(net)
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None


def test_a_changed_network_is_analysed_again():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.second(F.relu(self.conv(x))) + x

    net = nl.linearize(Small(), (1, 5, 5))
    first = nl.path_length(net, (1, 5, 5), normalized=False).mean
    net.second.kernel_size, net.second.padding = (1, 1), (0, 0)
    net.second.weight = nn.Parameter(torch.zeros(2, 2, 1, 1))
    fresh = nl.linearize(Pooled(), (1, 6, 6))
    assert nl.path_length(net, (1, 5, 5), normalized=False).mean != first
    paths._known.clear()
    again = nl.path_length(net, (1, 5, 5), normalized=False).mean
    assert again != first
    assert nl.path_length(fresh, (1, 6, 6)).mean == pytest.approx(1)


class Squeeze(nn.Module):
    """A convolution weighted by a gate that depends on the input."""

    def __init__(self, bend=None):
        super().__init__()
        self.conv, self.gate, self.bend = nn.Conv2d(2, 3, 1), nn.Linear(3, 3), bend or nn.Sigmoid()

    def forward(self, x):
        x = F.relu(self.conv(x))
        return x * self.bend(self.gate(x.mean((2, 3))))[:, :, None, None]


@pytest.fixture
def squeezed():
    with pytest.warns(nl.ActivationsLeftAlone):
        return nl.linearize(Squeeze(), (2, 6, 6))


def test_an_operation_without_a_rule_is_refused_by_name():
    net = nl.linearize(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Softmax(1)), (2, 6, 6))
    with pytest.raises(nl.UnsupportedNetwork, match="module '2' .Softmax. has no path rule"):
        nl.path_length(net, (2, 6, 6))

    class Unused(nn.Module):
        def forward(self, x):
            torch.fft.fft2(x)  # no output depends on it: no path leads through
            return F.relu(x)

    assert nl.path_length(nl.linearize(Unused(), (2, 6, 6)), (2, 6, 6)).mean == pytest.approx(1)


def test_gates_are_refused_unless_the_user_picks_a_meaning(squeezed):
    with pytest.raises(nl.UnsupportedNetwork, match="module 'bend' .Sigmoid. has no path rule"):
        nl.path_length(squeezed, (2, 6, 6))
    assert nl.path_length(squeezed, (2, 6, 6), gates="signal").mean == pytest.approx(1)
    with pytest.raises(nl.SpecError, match="gates is 'both'"):
        nl.path_length(squeezed, (2, 6, 6), gates="both")


def test_rules_of_ones_own(squeezed, monkeypatch):
    from nladv_core import path_rules

    monkeypatch.setattr(path_rules, "MODULE_RULES", path_rules.MODULE_RULES)
    for table in (path_rules.MODULE_RULES, path_rules.CALL_RULES):
        for key in (nn.Tanh, "sinc"):
            monkeypatch.delitem(table, key, raising=False)
    with pytest.warns(nl.ActivationsLeftAlone):
        net = nl.linearize(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), (2,))
    nl.declare_path_rule(nn.Tanh, "nonlinear")
    found = nl.path_length(net, (2,))
    assert found.mean == pytest.approx(2) and found.histogram.tolist() == pytest.approx([0, 0, 1])
    nl.declare_path_rule(nn.Tanh, "same")
    assert nl.path_length(net, (2,)).mean == pytest.approx(1)
    nl.declare_path_rule(
        nn.Tanh, lambda tape, module, value: path_rules._nonlinear(tape, path_rules._nonlinear(tape, value))
    )
    assert nl.path_length(net, (2,)).mean == pytest.approx(3)
    for target, rule in ((nn.Tanh, "linear"), (3, "same"), (nn.Tanh, 4)):
        with pytest.raises(nl.SpecError, match="expected"):
            nl.declare_path_rule(target, rule)
    del path_rules.MODULE_RULES[nn.Tanh]


class Attending(nn.Module):
    """One attention between two ReLUs, from torch's module or its function, and a skip around it."""

    def __init__(self, causal=False, as_module=True, batch_first=True):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.causal, self.as_module = causal, as_module

    def forward(self, x):
        y = F.relu(self.first(x))
        if not self.as_module:
            y = F.scaled_dot_product_attention(y, y, y, is_causal=self.causal)
        else:
            steps = y.shape[1 if self.attention.batch_first else 0]
            mask = torch.ones(3, 3, dtype=torch.bool).triu(1) if self.causal and steps == 3 else None
            y = self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return self.last(x + F.relu(y))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("as_module", [True, False])
def test_attention_leads_paths_through_the_values(as_module, causal, batch_first):
    example = torch.randn(1, 3, 4) if batch_first or not as_module else torch.randn(3, 1, 4)
    net = nl.linearize(Attending(causal, as_module, batch_first), example)
    assert nl.path_length(net, example).mean == pytest.approx(1)  # half of the walks take the skip, half meet two units
    # Position t reads t + 1 positions or all three; 4 features lead into each value, in the module twice 4 more.
    sources = sum(t + 1 if causal else 3 for t in range(3)) / 3
    through = sources * 4 * (16 if as_module else 1)
    assert nl.path_length(net, example, normalized=False).mean == pytest.approx(2 * through / (through + 1))


def test_transformer_layers_are_measured_by_the_same_rules():
    net = nl.linearize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 5, 8))
    assert nl.path_length(net, torch.randn(1, 5, 8)).mean == pytest.approx(0.5)
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    example = (torch.randn(1, 5, 8), torch.randn(1, 4, 8))
    # Decoder: 1/2 of the walks bend in its last block; of the rest, 1/2 turn to the memory, where 1/2 bend; …
    assert nl.path_length(nl.linearize(model, example), example).mean == pytest.approx(0.5 + 0.5 * 0.5)


def test_a_mask_of_padding_hides_nothing_from_the_paths():
    """By its shape alone, a sequence has full length; any other mask that depends on the input stays refused."""

    class Reading(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind, self.embed, self.out = kind, nn.Embedding(11, 4), nn.Linear(4, 1)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, ids):
            x = F.relu(self.embed(ids))
            mask = {self.kind: ids == 0} if self.kind == "key_padding_mask" else {}
            if self.kind == "attn_mask":
                mask = {self.kind: (ids == 0).expand(3, 3)}
            return self.out(F.relu(self.attention(x, x, x, need_weights=False, **mask)[0]))

    ids = torch.tensor([[1, 2, 3]])
    plain, masked = (nl.linearize(Reading(kind), ids) for kind in ("", "key_padding_mask"))
    for normalized in (True, False):
        lengths = {nl.path_length(net, ids, normalized=normalized).mean for net in (plain, masked)}
        assert len(lengths) == 1
    with pytest.raises(nl.UnsupportedNetwork, match="'eq' in the network itself has no path rule"):
        nl.path_length(nl.linearize(Reading("attn_mask"), ids), ids)


def test_embeddings_pass_paths_on():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 3)

        def forward(self, ids):
            return F.relu(self.out(F.relu(self.embed(ids))))

    ids = torch.randint(11, (2, 5))
    assert nl.path_length(nl.linearize(Words(), ids), ids).mean == pytest.approx(2)


def test_bad_shapes_are_refused_in_one_sentence():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    with pytest.raises(nl.UnsupportedNetwork, match="conv1.*shape does not fit"):
        nl.path_length(net, (1, 8, 8))
    with pytest.raises(nl.UnsupportedNetwork, match="example_input is"):
        nl.path_length(net, (3, 0, 8))


def test_products_with_constants():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.zeros(2))
            self.register_buffer("gate", torch.tensor([1.0, 0.0]))

        def forward(self, x):
            bent = F.relu(self.first(x))
            return self.second(bent * self.scale * 2 + x * 0) + x * self.gate

    # One of two outputs has a skip: walks 1, 1/2; the parameter is a weight although it is zero; x * 0 carries nothing.
    net = nl.linearize(Scaled(), (2,))
    assert nl.path_length(net, (2,)).mean == pytest.approx(0.75, abs=EXACT)
    assert nl.path_length(net, (2,), normalized=False).mean == pytest.approx(8 / 9, abs=EXACT)
