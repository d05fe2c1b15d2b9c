"""Path lengths against brute force, the paper's algorithm, and every worked fact."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

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


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(2, 9))
def test_equals_walking_every_path(seed, depth):
    rng = random.Random(seed)
    layers = random_layers(rng, depth)
    module = Net(layers).eval()
    try:
        net = nl.linearize(module, layers[0][1:])
    except nl.UnsupportedNetwork as error:
        pytest.fail(f"{layers}: {error}")
    active = {}
    for i in (i for i, (kind, *_) in enumerate(layers) if kind == "relu"):
        unit = dict(nl.units(net))[f"parts.{i}"]
        active[i] = [rng.random() < 0.6 for _ in range(unit.channels)]
        unit.active.copy_(torch.tensor(active[i]))
    walked = every_path(layers, active, limit=20_000)
    if walked is None:  # too many to walk
        return
    if not walked[0]:
        with pytest.raises(nl.UnsupportedNetwork, match="no path"):
            nl.path_length(net, layers[0][1:])
        return
    for normalized, expected in zip((False, True), walked, strict=True):
        found = nl.path_length(net, layers[0][1:], normalized=normalized)
        assert found.mean == pytest.approx(float(expected_mean(expected)), abs=EXACT), layers
        torch.testing.assert_close(found.histogram, as_tensor(expected, len(found.histogram)), atol=EXACT, rtol=0)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("name", "shortcut", "residual"),
    [
        ("resnet20", "A", True),
        ("resnet20", "B", True),
        ("resnet20v1", "A", True),
        ("resnet20v1", "B", True),
        ("resnet20", "A", False),
    ],
)
def test_equals_the_papers_algorithm(name, shortcut, residual, normalized):
    net = randomly_masked(nl.linearize(nets.build(name, shortcut=shortcut, residual=residual), (3, 16, 16)), seed=3)
    expected = paper_histogram(net, 3, 1 if name.endswith("v1") else 2, 16, 16, normalized, residual)
    found = nl.path_length(net, (3, 16, 16), normalized=normalized)
    torch.testing.assert_close(found.histogram, expected, atol=EXACT, rtol=0)
    assert found.mean == pytest.approx(float(expected @ torch.arange(len(expected), dtype=torch.float64)), abs=EXACT)


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


def test_mean_is_the_sum_of_visit_probabilities_over_active_units():
    net = randomly_masked(nl.linearize(nets.build("resnet14", shortcut="B"), (3, 8, 8)), seed=5)
    for normalized in (True, False):
        visits = nl.visit_probability(net, (3, 8, 8), normalized=normalized)
        assert list(visits) == [name for name, _ in nl.units(net)]
        total = sum(float(visits[name][unit.active].sum()) for name, unit in nl.units(net))
        assert nl.path_length(net, (3, 8, 8), normalized=normalized).mean == pytest.approx(total, abs=EXACT)


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


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.GELU(), "GELU"),
        (nn.Softmax(1), "Softmax"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "circular"),
    ],
)
def test_an_operation_without_a_rule_is_refused_by_name(layer, words):
    net = nl.linearize(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), layer), (2, 6, 6))
    with pytest.raises(nl.UnsupportedNetwork, match=words):
        nl.path_length(net, (2, 6, 6))


def test_bad_shapes_are_refused_in_one_sentence():
    net = nl.linearize(nets.build("resnet8"), (3, 8, 8))
    with pytest.raises(nl.UnsupportedNetwork, match="conv1.*shape does not fit"):
        nl.path_length(net, (1, 8, 8))
    with pytest.raises(nl.UnsupportedNetwork, match="example_input is"):
        nl.path_length(net, (3, 0, 8))


def test_gates_are_refused():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            y = F.relu(self.conv(x))
            return y * y.mean((2, 3), keepdim=True)

    with pytest.raises(nl.UnsupportedNetwork, match="gate"):
        nl.path_length(nl.linearize(Gate(), (1, 4, 4)), (1, 4, 4))


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
