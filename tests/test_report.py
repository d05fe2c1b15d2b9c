"""Reports against counts made in other ways: ReLU kernels seen by the dispatcher, multiply-adds worked out by hand."""

import html.parser
import math
import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import nladv_core as nl
from nladv_core.errors import SpecError, UnsupportedNetwork
from nladv_core.linearize import ActivationsLeftAlone
from nladv_core.tracing import ByMode


class SeesRelus(TorchDispatchMode):
    """Counts the elements that go through PyTorch's own ReLU kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::relu", "aten::relu_"):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def relus(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    seen = SeesRelus()
    with torch.no_grad(), seen:
        model.eval()(torch.zeros(1, *shape))
    return seen.sizes


class Handmade(nn.Module):
    """A functional ReLU, one in place, and a module that is called twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=False)
        self.norm, self.shared = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.norm(self.a(x)))
        x = self.shared(self.b(F.relu(x + 1)))
        return self.out(self.drop(torch.relu_(x.mean((2, 3)) - 0.1)))


class Squeezed(nn.Module):
    """A gate that multiplies the signal: no agreed path length."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x))
        return (x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (torchvision.models.resnet18, (3, 224, 224)),
        (torchvision.models.densenet121, (3, 64, 64)),
        (torchvision.models.squeezenet1_1, (3, 64, 64)),
        (lambda: nl.nets.build("resnet20v1"), (3, 32, 32)),
        (Handmade, (3, 8, 8)),
    ],
)
def test_relu_count_is_what_the_kernels_see(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = make()
    expected = relus(model, shape)
    found = nl.report(model, shape)
    assert [group.pixels_all for group in found.groups] == expected
    assert [group.pixels for group in found.groups] == expected
    assert found.totals["relu_count"] == found.totals["relu_count_all"] == sum(expected)


def test_known_counts_of_resnet18() -> None:
    """One map of 64x112x112, then four stages of four: 64x56x56, 128x28x28, 256x14x14, 512x7x7."""
    totals = nl.report(torchvision.models.resnet18(), (3, 224, 224)).totals
    assert totals["relu_count"] == 64 * 112**2 + 4 * (64 * 56**2 + 128 * 28**2 + 256 * 14**2 + 512 * 7**2)
    assert totals["parameters"] == 11_689_512  # torchvision's table; its GFLOPS of 1.81 are multiply-adds
    assert round(totals["macs"] / 1e9, 2) == 1.81
    assert totals["units"] == totals["slopes"] == 64 + 4 * (64 + 128 + 256 + 512)


def test_macs_by_hand() -> None:
    totals = nl.report(Handmade(), (3, 8, 8)).totals
    assert totals["macs"] == 8 * 8 * 4 * 3 * 9 + 4 * 4 * 6 * (4 // 2) * 9 + 6 * 5
    assert totals["parameters"] == (4 * 3 * 9 + 4) + 6 * 2 * 9 + 2 * 4 + (6 * 5 + 5)


def test_macs_of_resnet56() -> None:
    """Convolutions of 3x3 in three stages and a linear layer; projections (shortcut B) add two of 1x1: 125.75 M."""
    stages = [(16, 32), (32, 16), (64, 8)]
    macs = 3 * 16 * 9 * 32**2 + 64 * 10
    for n, (width, side) in enumerate(stages):
        narrow = stages[n - 1][0] if n else width
        macs += (narrow * width + 17 * width * width) * 9 * side**2
    assert nl.report(nl.nets.build("resnet56"), (3, 32, 32)).totals["macs"] == macs
    projections = 16 * 32 * 16**2 + 32 * 64 * 8**2
    found = nl.report(nl.nets.build("resnet56", shortcut="B"), (3, 32, 32)).totals["macs"]
    assert found == macs + projections and round(found / 1e6, 2) == 125.75


class Sequences(nn.Module):
    """Whatever PyTorch runs in fused kernels that its flop counter does not see into."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.relu, self.out = part, nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        attends = isinstance(self.part, nn.MultiheadAttention)
        x = self.part(x, x, x, need_weights=False) if attends else self.part(x)
        return self.out(self.relu(x[0] if isinstance(self.part, nn.MultiheadAttention | nn.LSTM) else x))


@pytest.mark.parametrize(
    ("part", "macs"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), 9 * 8 * 24 + 2 * 9 * 9 * 8 + 9 * 8 * 8),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 9 * 8 * 32 + 2 * 9 * 9 * 8 + 2 * 9 * 8 * 16),
        (nn.LSTM(8, 8, batch_first=True), 9 * 4 * (8 * 8 + 8 * 8)),
        (nn.Conv1d(9, 9, 3, padding=1), 8 * 9 * 9 * 3),
        (nn.ConvTranspose1d(9, 9, 1), 8 * 9 * 9),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_macs_of_fused_kernels(part: nn.Module, macs: int) -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    net = nl.linearize(Sequences(part), (9, 8), channel_axis=None if not isinstance(part, nn.LSTM) else -1)
    assert nl.report(net, (9, 8)).totals["macs"] == macs + 9 * 8 * 3
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before


def thinned(net: nn.Module, seed: int = 0) -> nn.Module:
    """About half of the slopes inactive, at random."""
    generator = torch.Generator().manual_seed(seed)
    nl.apply_masks_(net, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in nl.masks(net).items()})
    return net


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_columns_of_a_partly_linear_network(granularity) -> None:
    net = thinned(nl.linearize(nl.nets.build("resnet8"), (3, 16, 16), granularity=granularity))
    found = nl.report(net, (3, 16, 16))
    bent: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def count(name: str):
        def hook(unit, args, output) -> None:
            # What a ReLU network evaluates: every element whose own slope is active.
            (x,) = args
            mask = unit.active.view(-1, 1, 1) if granularity == "channel" else unit.active
            bent[name], sizes[name] = int(mask.expand(x.shape[1:]).sum()), x.numel()

        return hook

    hooks = [unit.register_forward_hook(count(name)) for name, unit in nl.units(net)]
    net.eval()(torch.zeros(1, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    visits = nl.visit_probability(net, (3, 16, 16))
    assert [row.group for row in found.groups] == list(bent)
    for row in found.groups:
        assert (row.pixels, row.pixels_all) == (bent[row.group], sizes[row.group])
        assert row.units == len(visits[row.group])
        unit = dict(nl.units(net))[row.group]
        assert row.active == pytest.approx(row.units * unit.active.float().mean().item(), abs=1e-6)
        assert row.napl == pytest.approx(float(visits[row.group] @ unit.active_channels()), abs=1e-12)
    totals = found.totals
    assert math.fsum(row.napl for row in found.groups) == pytest.approx(totals["napl"], abs=1e-12)
    assert math.fsum(row.share for row in found.groups) == pytest.approx(1, abs=1e-12)
    assert totals["napl"] == nl.path_length(net, (3, 16, 16)).mean
    assert totals["apl"] == nl.path_length(net, (3, 16, 16), normalized=False).mean
    assert 0 < totals["napl"] < 5 and totals["apl"] != totals["napl"]
    assert totals["active_fraction"] == nl.active_fraction(net) and totals["enw"] == nl.effective_width(net)
    assert totals["active"] == pytest.approx(totals["active_fraction"] * totals["units"])
    assert totals["relu_count"] == sum(bent.values())
    assert totals["slopes"] == sum(unit.slope.numel() for _, unit in nl.units(net))


class MapsAndNumbers(nn.Module):
    """A ReLU over feature maps, and one over numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.head(self.b(torch.relu(self.a(x))).mean((2, 3))))


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_unit_weights_by_hand(granularity) -> None:
    net = nl.linearize(MapsAndNumbers(), (3, 10, 10), granularity=granularity)
    for _, unit in nl.units(net):
        unit.active.view(-1)[0] = False  # no matter
    expected = {"units": (1, 1), "relus": (8 * 8, 1), "napl": (1 / 4, 1 / 5)}  # two layers of a chain
    for measure, (inner, outer) in expected.items():
        for example in ((3, 10, 10), torch.zeros(7, 3, 10, 10)):  # of a batch one example counts
            weights = nl.unit_weights(net, example, measure)
            assert list(weights) == [name for name, _ in nl.units(net)]
            assert [w.tolist() for w in weights.values()] == [[inner] * 4, pytest.approx([outer] * 5)]
            assert all(w.dtype == torch.float64 for w in weights.values())


def test_a_unit_that_is_run_twice_counts_twice() -> None:
    inside = nl.linearize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)), (4,))

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inside(self.inside(x))

    assert [w.tolist() for w in nl.unit_weights(Loop(), (4,), "relus").values()] == [[2.0, 2.0, 2.0]]


def test_unit_weights_leave_modes_and_random_state_alone() -> None:
    net = nl.linearize(MapsAndNumbers(), (3, 10, 10)).train()
    state = torch.random.get_rng_state()
    for measure in ("units", "napl", "relus"):
        nl.unit_weights(net, (3, 10, 10), measure)
    assert all(module.training for module in net.modules()) and torch.equal(state, torch.random.get_rng_state())


def test_max_pooling_counts_on_request() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(16, 2))
    assert nl.report(model, (3, 4, 4)).totals["napl"] == 2
    found = nl.report(model, (3, 4, 4), count_max_pool=True)
    assert found.totals["napl"] == pytest.approx(3) and found.totals["napl_max_pool"] == pytest.approx(1)
    assert [row.share for row in found.groups] == [pytest.approx(1 / 3)] * 2
    assert "NAPL          3.0000, of which max pooling 1.0000" in str(found)


class TestRefusedPathLength:
    def test_everything_else_stands(self) -> None:
        found = nl.report(Squeezed(), (3, 8, 8))
        assert found.refused and "sigmoid" in found.refused and 'gates="signal"' in found.refused
        assert math.isnan(found.totals["napl"]) and math.isnan(found.totals["apl"])
        assert [(row.active, row.units, row.pixels) for row in found.groups] == [(4, 4, 4 * 64)]
        assert math.isnan(found.groups[0].napl) and found.frame["napl"].isna().all()
        assert found.totals["macs"] == 3 * 4 * 64 + 4 * 4 and found.totals["left_alone"] == {"sigmoid": 1}
        for text in (str(found), found._repr_html_()):
            assert "refused" in text and "nan" not in text
        assert " ".join(found.refused.split()) in " ".join(str(found).split())

    def test_a_way_with_gates_gives_numbers(self) -> None:
        found = nl.report(Squeezed(), (3, 8, 8), gates="signal")
        assert found.refused is None and found.totals["napl"] == 1


def state(net: nn.Module) -> list:
    tensors = {name: value.clone() for name, value in net.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    return [tensors, hooks, [module.training for module in net.modules()], [p.grad for p in net.parameters()]]


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_alone(fails: bool) -> None:
    net = nl.linearize(Handmade(), (3, 8, 8)).train()
    net.get_submodule("norm").eval()
    before, random = state(net), torch.get_rng_state()
    if fails:
        with pytest.raises(UnsupportedNetwork):
            nl.report(net, (4, 8, 8))
    else:
        nl.report(net, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    after = state(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + torch.rand_like(x))


def test_random_numbers_and_gradients_are_not_touched() -> None:
    net = nl.linearize(Noisy(), (3, 4, 4))
    random = torch.get_rng_state()
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    nl.report(net, x)
    assert torch.equal(torch.get_rng_state(), random) and x.grad is None


def test_the_batch_and_the_form_of_the_example_do_not_matter() -> None:
    net = thinned(nl.linearize(Handmade(), (3, 8, 8)))
    found = nl.report(net, (3, 8, 8))
    for example in (torch.zeros(1, 3, 8, 8), torch.zeros(7, 3, 8, 8), (torch.zeros(2, 3, 8, 8),)):
        other = nl.report(net, example)
        assert other.groups == found.groups and other.totals == found.totals
        assert other.shapes == ((1, 3, 8, 8),)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.relu(self.out(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]))


def test_a_mask_belongs_to_all_examples() -> None:
    found = nl.report(Masked(), (torch.zeros(3, 5, 8), torch.zeros(5, 5)))
    assert found.totals["relu_count"] == 5 * 8 and found.shapes == ((1, 5, 8), (5, 5))


class Twofold(nn.Module):
    """An auxiliary head in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.out = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor):
        x = F.relu(self.body(x))
        return (self.out(x), self.side(F.relu(x - 1))) if self.training else self.out(x)


def test_units_that_only_training_runs_have_no_pixels() -> None:
    net = nl.linearize(Twofold(), (4,))
    assert isinstance(net, ByMode)
    found = nl.report(net, (4,))
    assert [(row.units, row.pixels_all) for row in found.groups] == [(6, 6), (6, 0)]
    assert found.totals["napl"] == 1 and found.totals["macs"] == 4 * 6 + 6 * 2


def test_a_module_that_holds_a_linearized_network() -> None:
    net = thinned(nl.linearize(Handmade(), (3, 8, 8)))
    inner, outer = nl.report(net, (3, 8, 8)), nl.report(nn.Sequential(nn.Identity(), net), (3, 8, 8))
    assert [row.group for row in outer.groups] == [f"1.{row.group}" for row in inner.groups]
    assert [(r.pixels, r.napl) for r in outer.groups] == [(r.pixels, pytest.approx(r.napl)) for r in inner.groups]
    for name, value in inner.totals.items():
        assert outer.totals[name] == (value if name == "left_alone" else pytest.approx(value)), name


def test_an_entirely_linear_network_has_no_shares() -> None:
    net = nl.linearize(Handmade(), (3, 8, 8))
    nl.apply_masks_(net, {name: torch.zeros_like(mask) for name, mask in nl.masks(net).items()})
    found = nl.report(net, (3, 8, 8))
    assert found.totals["napl"] == found.totals["apl"] == found.totals["relu_count"] == found.totals["active"] == 0
    assert found.frame["share"].isna().all() and (found.frame["napl"] == 0).all()
    assert "–" in str(found) and "refused" not in str(found)


def test_activations_left_alone_are_told_and_not_warned_of() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2), nn.ReLU6())
    found = nl.report(model, (3,))  # a warning would be an error here
    assert found.totals["left_alone"] == {"SiLU": 1, "ReLU6": 1}
    assert "left alone    SiLU (1), ReLU6 (1)" in str(found)
    with pytest.warns(ActivationsLeftAlone):
        both = nl.linearize(model, (3,), relu6=True)
    assert nl.report(both, (3,)).totals["left_alone"] == {"SiLU": 1}
    assert nl.report(nn.Sequential(nn.ReLU()), (3,)).totals["left_alone"] == {}


# ------------------------------------------------------------------------------------------------------------- written


def nested(names: str, depth: int) -> nn.Module:
    net: nn.Module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    for _ in range(depth):
        net = nn.ModuleDict({names: net})
    return net


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nested("a_rather_long_name", 8)

    def forward(self, x: Tensor) -> Tensor:
        part = self.parts
        while isinstance(part, nn.ModuleDict):
            part = part["a_rather_long_name"]
        return part(x)


def test_the_text_is_aligned_and_fits_a_terminal() -> None:
    for net, shape in ((Deep(), (3,)), (torchvision.models.densenet121(), (3, 32, 32)), (Squeezed(), (3, 8, 8))):
        found = nl.report(net, shape)
        lines = str(found).splitlines()
        assert max(map(len, lines)) <= 100
        table = lines[1 : 7 + len(found.groups)]
        assert len({len(line) for line in table}) == 1
        assert set(table[0]) == set(table[2]) == set(table[-1]) == {"─"}
        assert repr(found) == str(found)
    long = str(nl.report(Deep(), (3,))).splitlines()[4]
    assert long.startswith("parts.a_rather_long") and "…" in long and "a_rather_long_name.1 " in long


class Reader(html.parser.HTMLParser):
    """Open and close must match; texts of cells by row."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headers = 0

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "th":
            assert dict(attrs)["scope"] in ("row", "col")
            self.headers += 1

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_the_page_shows_the_same_numbers_in_the_colours_of_the_page() -> None:
    found = nl.report(thinned(nl.linearize(Handmade(), (3, 8, 8))), (3, 8, 8))
    page, reader = found._repr_html_(), Reader()
    reader.feed(page)
    assert not reader.open and reader.headers >= len(found.groups) + 6
    assert [row[0] for row in reader.rows[1 : 1 + len(found.groups)]] == [row.group for row in found.groups]
    printed = str(found)
    for row in reader.rows:
        assert all(cell in printed for cell in row)
    assert page.count("<caption") == page.count("<table") == 2
    assert not re.search(r"colou?r|background|#[0-9a-f]{3}", page)


def test_names_cannot_break_the_page() -> None:
    model = nn.Sequential()
    model.add_module("<b>&", nn.ReLU())
    page = nl.report(model, (3,))._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;&amp;" in page


def test_frame_and_totals() -> None:
    found = nl.report(nl.nets.build("resnet8"), (3, 16, 16))
    frame = found.frame
    assert list(frame.columns) == ["group", "active", "units", "pixels", "pixels_all", "napl", "share"]
    assert len(frame) == len(found.groups) == 7 and frame["pixels"].dtype == "int64"
    assert frame["pixels"].sum() == found.totals["relu_count"]
    assert frame["napl"].sum() == pytest.approx(found.totals["napl"])


@pytest.mark.parametrize(
    ("net", "example", "told", "kind"),
    [
        ("resnet18", (3, 32, 32), "found str where a network was expected", SpecError),
        (nn.Linear(3, 2), (3,), "no ReLU", UnsupportedNetwork),
        (Handmade(), (4, 8, 8), "channels", UnsupportedNetwork),
        (Handmade(), (0, 8, 8), "expected a tensor", UnsupportedNetwork),
        (Handmade(), torch.zeros(0, 3, 8, 8), "expected a batch of at least one", SpecError),
        (Handmade(), torch.tensor(1.0), "holds no example", SpecError),
        (Handmade(), torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "complex", UnsupportedNetwork),
        (nl.linearize(Handmade(), (3, 8, 8)), (4, 8, 8), "stops on one example of shape (1, 4,", UnsupportedNetwork),
    ],
)
def test_bad_input_is_told(net, example, told: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=re.escape(told)):
        nl.report(net, example)


def test_an_unknown_way_with_gates_is_refused() -> None:
    with pytest.raises(SpecError, match="gates is 'open'"):
        nl.report(Squeezed(), (3, 8, 8), gates="open")  # type: ignore[arg-type]
