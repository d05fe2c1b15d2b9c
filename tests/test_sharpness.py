"""Pictures of channels: the same in a batch as alone and as Lucent's own loop makes them; nothing left behind."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nladv_core as nl
from nladv_core import sharpness
from nladv_core.errors import NladvError, RecordError, SpecError, UnsupportedNetwork
from nladv_core.sharpness import Channel, Rendering
from nladv_core.store import RecordWarning

HALF: dict[str, Any] = {"mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.25), "device": "cpu", "progress": False}
SHORT = Rendering(steps=10, size=32)


class Small(nn.Module):
    """Two convolutions, a residual connection, a linear layer; its ReLUs are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.pool, self.linear, self.relu3 = nn.AdaptiveAvgPool2d(2), nn.Linear(24, 5), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = x + self.relu2(self.bn2(self.conv2(x)))
        return self.relu3(self.linear(self.pool(x).flatten(1)))


def small(seed: int = 0) -> nn.Module:
    """`Small` with batch statistics that are no identity, in eval mode."""
    torch.manual_seed(seed)
    net = Small()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return net.eval()


def bent(seed: int = 0, granularity: str = "channel", inactive: tuple[int, ...] = ()) -> nn.Module:
    """The same with slopes between 0 and 1, and some units of `relu2` inactive."""
    net = nl.linearize(small(), (3, 32, 32), granularity=granularity)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, unit in nl.units(net):
        unit.slope.data.uniform_(0.0, 0.8, generator=generator)
        if name == "relu2":
            unit.active[list(inactive)] = False
    return net.eval()


@pytest.fixture(scope="module", autouse=True)
def lucent() -> Iterator[Any]:
    yield sharpness._parts()


# ------------------------------------------------------------------------------------------------------------ rendering


def test_a_batch_gives_each_channel_the_picture_it_gets_alone() -> None:
    networks = {"a": bent(0), "b": bent(1)}
    channels = [Channel("relu2", 4), Channel("relu1", 0), Channel("relu3", 2), Channel("relu1", 5), Channel("relu2", 1)]
    together = sharpness.render(networks, channels, Rendering(steps=40), **HALF)
    assert set(together) == {"a", "b"} and together["a"].shape == (5, 3, 32, 32)
    for name, net in networks.items():
        for row, channel in enumerate(channels):
            alone = sharpness.render({name: net}, [channel], Rendering(steps=40), **HALF)[name][0]
            # The same bits wherever the kernels of a small and of a large batch sum in the same order.
            assert (alone - together[name][row]).abs().max() <= 1e-3, (name, channel)
            assert (alone - together[name][row]).abs().mean() <= 1e-5
    assert (together["a"][0] - together["a"][4]).abs().mean() > 0.01  # and not all the same picture
    assert (together["a"][0] - together["b"][0]).abs().mean() > 1e-4


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_the_size_of_a_batch_decides_nothing(batch: int) -> None:
    channels = [Channel("relu2", index) for index in range(6)]
    usual = sharpness.render({"a": bent()}, channels, SHORT, **HALF)["a"]
    assert (sharpness.render({"a": bent()}, channels, SHORT, **HALF, batch=batch)["a"] - usual).abs().max() <= 1e-4


@pytest.mark.parametrize("size", [32, 64])
def test_it_is_lucent_s_own_picture(size: int, lucent: Any) -> None:
    """Against `lucent.optvis.render.render_vis`: one channel, one image, its own loop, hooks, objective and colours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import param
        from lucent.optvis.render import render_vis

        net = bent()
        mean, std = (torch.tensor(HALF[name])[:, None, None] for name in ("mean", "std"))
        steps = 12
        transforms = sharpness._transforms(lucent, size)[:-1] + [lambda image: (image - mean) / std]
        for layer, index in (("relu1", 3), ("relu2", 0)):
            np.random.seed(5)
            torch.manual_seed(5)
            found = render_vis(
                net,
                f"{layer}:{index}",
                lambda: param.image(size),
                transforms=transforms,
                thresholds=(steps,),
                preprocess=False,
                progress=False,
                show_image=False,
                fixed_image_size=size,
            )
            expected = torch.from_numpy(found[0][0]).permute(2, 0, 1)
            rendering = Rendering(size=size, steps=steps, seed=5, of="output")
            ours = sharpness.render({"a": net}, [(layer, index)], rendering, **HALF)["a"][0]
            assert (ours - expected).abs().max() < 5e-3, (layer, index)
            assert (ours - expected).abs().mean() < 2e-4
            assert ours.std() > 0.02


def test_the_picture_excites_its_channel() -> None:
    net, channels = bent(), [Channel("relu2", index) for index in range(6)]
    pictures = sharpness.render({"a": net}, channels, Rendering(steps=60), **HALF)["a"]
    seen: dict[str, torch.Tensor] = {}
    net.relu2.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))  # type: ignore[union-attr]
    mean, std = (torch.tensor(HALF[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        net((pictures - mean) / std)
        degrees = seen["x"].mean((2, 3))
        net((torch.full_like(pictures, 0.5) - mean) / std)
        grey = seen["x"].mean((2, 3))
    assert (degrees.diagonal() > grey.diagonal() + 0.03).all()
    assert (degrees.argmax(0) == torch.arange(6)).sum() >= 5  # of all pictures, a channel likes its own best


def test_a_hundred_renders_leave_no_hook_and_no_change() -> None:
    net = bent()
    net.relu1.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    for _ in range(100):
        sharpness.render({"a": net}, [("relu2", 0)], Rendering(steps=1), **HALF)
    for module in net.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_randomness_comes_from_the_seed_alone_and_goes_nowhere(lucent: Any) -> None:
    net = bent()  # its weights are drawn before the states are looked at
    states, devices = (np.random.get_state()[1].copy(), torch.get_rng_state()), (lucent.spatial.device,)
    first = sharpness.render({"a": net}, [("relu2", 0)], SHORT, **HALF)["a"]
    assert (np.random.get_state()[1] == states[0]).all() and torch.equal(torch.get_rng_state(), states[1])
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(sharpness.render({"a": bent()}, [("relu2", 0)], SHORT, **HALF)["a"], first)
    other = sharpness.render({"a": bent()}, [("relu2", 0)], Rendering(steps=10, seed=1), **HALF)["a"]
    assert (other - first).abs().max() > 0.05
    with pytest.raises(SpecError):
        sharpness.render({"a": bent()}, [("relu2", 99)], SHORT, **HALF)
    assert (lucent.spatial.device,) == devices


def test_lucent_s_device_is_the_one_asked_for_while_it_renders(monkeypatch: pytest.MonkeyPatch, lucent: Any) -> None:
    # As on a machine with a GPU when the CPU is asked for: Lucent chose the other device when it was imported.
    for module in (lucent.spatial, lucent.transform):
        monkeypatch.setattr(module, "device", torch.device("meta"))
    assert sharpness.render({"a": bent()}, [("relu2", 0)], SHORT, **HALF)["a"].isfinite().all()
    assert lucent.spatial.device == lucent.transform.device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_picture_up_to_rounding() -> None:
    options = HALF | {"device": "cuda"}
    there = sharpness.render({"a": bent()}, [("relu2", 0), ("relu1", 2)], SHORT, **options)["a"]
    here = sharpness.render({"a": bent()}, [("relu2", 0), ("relu1", 2)], SHORT, **HALF)["a"]
    assert there.device.type == "cpu" and (there - here).abs().mean() < 0.01


@pytest.mark.parametrize("granularity", ["channel", "layer", "pixel"])
def test_the_light_copy_computes_the_same(granularity: str) -> None:
    net = bent(granularity=granularity, inactive=() if granularity != "channel" else (1,))
    dict(nl.units(net))["relu1"].slope.data.zero_()
    dict(nl.units(net))["relu3"].active[:] = False
    light, _ = sharpness._light(net, torch.device("cpu"))
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(light(images), net(images), atol=1e-6)
    kinds = {type(module).__name__ for module in light.modules()}
    assert ("_Bend" in kinds and "Identity" in kinds) == (granularity != "pixel")


def test_plain_networks_and_layers_of_any_kind() -> None:
    """Not linearized at all; a ReLU that works in place must not change what its input was."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    eager = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2], nn.ReLU(inplace=True)).eval()
    wanted = [("1", 2), ("2", 1), ("3", 0)]
    expected = sharpness.render({"a": plain}, wanted, SHORT, **HALF)["a"]
    assert torch.equal(sharpness.render({"a": eager}, wanted, SHORT, **HALF)["a"], expected)


def test_layers_that_are_looked_at_are_not_folded_into_others() -> None:
    """A linearized network has its batch norms put into its convolutions; a network that is no graph has not."""
    wanted = [("conv1", 1), ("bn1", 2), ("conv2", 0), ("bn2", 5)]
    rendering = Rendering(steps=6, of="output")
    folded = sharpness.render({"a": nl.linearize(small(), (3, 32, 32)).eval()}, wanted, rendering, **HALF)["a"]
    assert (folded - sharpness.render({"a": small()}, wanted, rendering, **HALF)["a"]).abs().max() < 1e-3
    light, _ = sharpness._light(nl.linearize(small(), (3, 32, 32)), torch.device("cpu"), ["bn2"])
    called = {str(node.target) for node in light.graph.nodes}
    assert "bn2" in called and "bn1" not in called


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(self.relu(self.conv(x))))


class Huge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 40), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


@pytest.mark.parametrize(
    ("net", "channel", "told"),
    [
        (bent, ("relu22", 0), "a: there is no layer 'relu22'; did you mean 'relu2'?"),
        (bent, ("", 0), "there is no layer ''"),
        (bent, ("relu2", 6), "layer 'relu2' has no channel 6, expected one from 0 to 5"),
        (bent, ("relu2", -1), "layer 'relu2' has no channel -1"),
        (
            lambda: bent(inactive=(2, 3)),
            ("relu2", 3),
            "relu2, channel 3 is inactive, its unit is a line (active there: 0",
        ),
        (lambda: bent(inactive=tuple(range(6))), ("relu2", 3), "none of that layer is active"),
        (Huge, ("relu", 0), "cannot be applied to a picture of 32 × 32 pixels"),
        (Shared, ("relu", 0), "layer 'relu' is called 2 times in one pass, expected once; nladv.linearize"),
        (Shared, ("unused", 0), "layer 'unused' is called 0 times"),
    ],
)
def test_what_cannot_be_rendered_is_told_in_one_sentence(net: Any, channel: tuple[str, int], told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        sharpness.render({"a": net()}, [channel], SHORT, **HALF)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_inactive_channel_can_be_asked_for_all_the_same() -> None:
    found = sharpness.render({"a": bent(inactive=(3,))}, [("relu2", 3)], SHORT, **HALF, inactive=True)
    assert found["a"].isfinite().all()


def test_nan_names_the_channel_the_network_and_the_step() -> None:
    broken = bent()
    broken.conv2.weight.data[4] = float("nan")  # type: ignore[union-attr]
    channels = [("relu2", index) for index in (0, 4)]
    with pytest.raises(sharpness.RenderingDiverged, match=r"bad: relu2, channel 4 gives nan at step 1;"):
        sharpness.render({"good": bent(), "bad": broken}, channels, SHORT, **HALF)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"size": 4}, "size is 4, expected at least 8"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0.0}, "lr is 0, expected above 0"),
        ({"of": "gradient"}, "of is 'gradient', expected one of input, output"),
        ({"steps": "many"}, "steps is 'many', expected an integer"),
    ],
)
def test_a_rendering_that_makes_no_sense_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Rendering(**given)


def test_nothing_to_render_is_refused() -> None:
    for networks, channels in (({}, [("relu1", 0)]), ({"a": bent()}, [])):
        with pytest.raises(SpecError, match="expected at least one of each"):
            sharpness.render(networks, channels, **HALF)
    with pytest.raises(SpecError, match="device is 'tpu'"):
        sharpness.render({"a": bent()}, [("relu1", 0)], **(HALF | {"device": "tpu"}))


def test_cost_does_not_grow_with_the_number_rendered_before() -> None:
    """What is kept between two renders is nothing that grows: no module, no hook, no tensor."""
    import gc

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    net = bent()
    sharpness.render({"a": net}, [("relu2", 0)], Rendering(steps=2), **HALF)
    before = alive()
    for index in range(6):
        sharpness.render({"a": net}, [("relu2", index)], Rendering(steps=2), **HALF)
    assert alive() <= before


# ------------------------------------------------------------------------------------------------------------- channels


def test_common_channels_are_active_everywhere_and_in_order() -> None:
    networks = {"a": bent(inactive=(0, 1)), "b": bent(inactive=(1, 5))}
    common = sharpness.common_channels(networks)
    assert [channel.number for channel in common if channel.layer == "relu2"] == [2, 3, 4]
    assert [channel.layer for channel in common] == ["relu1"] * 6 + ["relu2"] * 3 + ["relu3"] * 5
    assert str(common[0]) == "relu1, channel 0"
    three = sharpness.common_channels(networks | {"c": bent(inactive=(3,))})
    assert [channel.number for channel in three if channel.layer == "relu2"] == [2, 4]
    pixels = bent(granularity="pixel")
    dict(nl.units(pixels))["relu2"].active[0, :, 1:] = False  # active at some pixels
    dict(nl.units(pixels))["relu2"].active[1] = False
    assert [c.number for c in sharpness.active_channels(pixels) if c.layer == "relu2"] == [0, 2, 3, 4, 5]


def test_no_common_channel_is_told_with_the_counts() -> None:
    networks = {"a": bent(), "b": bent()}
    for _, unit in nl.units(networks["b"]):
        unit.active[:] = False
    with pytest.raises(SpecError, match=r"no channel is active in all of the networks \(active channels: a 17, b 0\)"):
        sharpness.common_channels(networks)
    with pytest.raises(SpecError, match="no network to compare"):
        sharpness.common_channels({})
    with pytest.raises(UnsupportedNetwork):
        sharpness.common_channels({"a": small()})


def test_channels_spread_evenly() -> None:
    channels = [Channel("a", index) for index in range(10)]
    assert [c.number for c in sharpness.spread_evenly(channels, 4)] == [0, 3, 6, 9]
    assert sharpness.spread_evenly(channels, 99) == channels
    with pytest.raises(SpecError, match="0 channels"):
        sharpness.spread_evenly(channels, 0)


# --------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_that_is_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, channels = {"a": bent(0), "b": bent(1)}, [("relu2", index) for index in (3, 0, 5, 1, 2)]
    whole = sharpness.sweep(networks, channels, SHORT, **HALF, folder=tmp_path / "whole")
    rendered, optimise = [], sharpness._optimise

    def interrupted(ready: Any, part: Any, *more: Any) -> Any:
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(list(part))
        return optimise(ready, part, *more)

    monkeypatch.setattr(sharpness, "_optimise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sharpness.sweep(networks, channels, SHORT, **HALF, folder=tmp_path / "cut", batch=2)
    assert sum(map(len, rendered)) == 4
    rendered.clear()
    cut = sharpness.sweep(networks, channels, SHORT, **HALF, folder=tmp_path / "cut", batch=2)
    assert rendered == [[Channel("relu2", 5)]]
    assert cut.channels == whole.channels == tuple(Channel(*channel) for channel in channels)
    assert (cut.images.int() - whole.images.int()).abs().max() <= 1
    for name in sharpness.MEASURES:
        assert np.allclose(cut.measures[name], whole.measures[name], atol=1e-4)
    sharpness.sweep(networks, channels[:2], SHORT, **HALF, folder=tmp_path / "cut")
    assert len(rendered) == 1  # a part of it costs nothing


def test_a_sweep_keeps_network_by_network_and_mends_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, optimise = [], sharpness._optimise
    monkeypatch.setattr(sharpness, "_optimise", lambda ready, *more: asked.append(set(ready)) or optimise(ready, *more))
    channels = [("relu2", 0), ("relu2", 1)]
    first = sharpness.sweep({"a": bent(0)}, channels, SHORT, **HALF, folder=tmp_path)
    both = sharpness.sweep({"a": bent(0), "b": bent(1)}, channels, SHORT, **HALF, folder=tmp_path)
    assert asked == [{"a"}, {"b"}]
    assert torch.equal(both.images[0], first.images[0]) and not torch.equal(both.images[0], both.images[1])
    changed = bent(0)
    changed.conv1.weight.data[0, 0, 0, 0] += 1e-3  # type: ignore[union-attr]
    sharpness.sweep({"a": changed}, channels, SHORT, **HALF, folder=tmp_path)
    sharpness.sweep({"a": bent(0)}, channels, Rendering(steps=10, seed=1), **HALF, folder=tmp_path)
    assert asked[2:] == [{"a"}, {"a"}]  # other weights, other settings: other pictures
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(RecordWarning, match="it is rendered again"):
        again = sharpness.sweep({"a": bent(0)}, channels, SHORT, **HALF, folder=tmp_path)
    assert torch.equal(again.images, first.images)


def test_a_sweep_measures_its_pictures(tmp_path: Path) -> None:
    channels = [("relu2", 0), ("relu1", 1)]
    found = sharpness.sweep({"a": bent()}, channels, SHORT, **HALF, folder=tmp_path)
    pictures = sharpness.render({"a": bent()}, channels, SHORT, **HALF)["a"]
    assert found.images.shape == (1, 2, 3, 32, 32) and found.images.dtype == torch.uint8
    assert torch.equal(found.images[0], (pictures * 255).round().to(torch.uint8))
    for name, measure in sharpness.MEASURES.items():
        assert np.allclose(found.measures[name][0], measure(pictures).numpy())
    with pytest.raises(SpecError, match="asked for twice"):
        sharpness.sweep({"a": bent()}, [("relu2", 0)] * 2, SHORT, **HALF, folder=tmp_path)


# ------------------------------------------------------------------------------------------------------------- measures


def test_gradient_of_a_ramp_is_its_slope() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = torch.stack([0.01 * x + 0.02 * y, 0.03 * x, torch.full_like(x, 0.4)])
    expected = (math.hypot(0.01, 0.02) + 0.03 + 0.0) / 3
    assert float(sharpness.gradient_magnitude(ramp)) == pytest.approx(expected, abs=1e-7)


def test_gradient_against_numpy_s() -> None:
    images = np.random.default_rng(0).random((2, 5, 3, 9, 12))
    found = sharpness.gradient_magnitude(torch.from_numpy(images))
    down, across = np.gradient(images, axis=(-2, -1))  # central differences inside, one-sided at the border
    expected = np.sqrt(down**2 + across**2)[..., 1:-1, 1:-1].mean((-3, -2, -1))
    assert found.shape == (2, 5) and np.allclose(found.numpy(), expected)


def test_gradient_stays_in_its_range() -> None:
    stripes = (torch.arange(16) % 4 < 2).float().expand(3, 16, 16)
    assert float(sharpness.gradient_magnitude(stripes)) == pytest.approx(0.5)
    both = ((stripes + stripes.mT) % 2).float()
    assert float(sharpness.gradient_magnitude(both)) == pytest.approx(math.sqrt(0.5))
    assert float(sharpness.gradient_magnitude(torch.full((3, 8, 8), 0.3))) == 0


def spectrum_share(image: np.ndarray, cutoff: float) -> float:
    """The share by the definition of the transform, written out frequency by frequency."""
    channels, height, width = image.shape
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in (height, width)))
    high = whole = 0.0
    for u in range(height):
        for v in range(width):
            fy, fx = (k / n if k < n / 2 else k / n - 1 for k, n in ((u, height), (v, width)))
            wave = np.exp(-2j * np.pi * np.add.outer(np.arange(height) * u / height, np.arange(width) * v / width))
            power = sum(abs((window * (plane - plane.mean()) * wave).sum()) ** 2 for plane in image)
            whole += power * (u + v > 0)
            high += power * (np.hypot(fy, fx) > cutoff)
    return high / whole


def test_high_frequencies_against_the_definition() -> None:
    image = np.random.default_rng(1).random((3, 8, 11))
    for cutoff in (0.1, 0.25, 0.4):
        found = float(sharpness.high_frequency_share(torch.from_numpy(image), cutoff))
        assert found == pytest.approx(spectrum_share(image, cutoff), rel=1e-9)


def test_high_frequencies_of_waves_and_of_contrast() -> None:
    x = torch.arange(32.0, dtype=torch.float64)

    def wave(cycles: float) -> torch.Tensor:
        return 0.5 + 0.3 * torch.cos(2 * torch.pi * cycles * x / 32).expand(3, 32, 32)

    assert float(sharpness.high_frequency_share(wave(4))) < 0.01
    assert float(sharpness.high_frequency_share(wave(12))) > 0.99
    images = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    faint = 0.5 + 0.01 * (images - 0.5)
    assert torch.allclose(sharpness.high_frequency_share(images), sharpness.high_frequency_share(faint), atol=1e-4)
    assert float(sharpness.high_frequency_share(torch.full((3, 8, 8), 0.2))) == 0
    assert sharpness.high_frequency_share(images).shape == (6,)


def test_contrast_is_the_standard_deviation() -> None:
    image = np.random.default_rng(2).random((3, 7, 9))
    assert float(sharpness.contrast(torch.from_numpy(image))) == pytest.approx(image.std((1, 2)).mean())


@pytest.mark.parametrize("measure", sharpness.MEASURES.values())
def test_measures_refuse_what_is_no_image(measure: Any) -> None:
    for shape in ((3, 2, 8), (8, 8), (1, 3, 8, 1)):
        with pytest.raises(SpecError, match="at least 3 × 3"):
            measure(torch.zeros(shape))
    with pytest.raises(SpecError, match="cutoff is 0.8"):
        sharpness.high_frequency_share(torch.zeros(3, 8, 8), 0.8)


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_paired_difference_interval_and_effect() -> None:
    generator = np.random.default_rng(3)
    a, shift = generator.random(60), generator.normal(0.1, 0.2, 60)
    found = sharpness.paired(a + shift, a)
    assert found.mean == pytest.approx(shift.mean()) and found.channels == 60
    assert found.effect == pytest.approx(shift.mean() / shift.std(ddof=1))
    assert found.share == (shift > 0).mean()
    # The oracle: plain percentiles of means of resamples; for 60 nearly normal values the two agree.
    means = np.sort([generator.choice(shift, 60).mean() for _ in range(20_000)])
    assert found.low == pytest.approx(means[500], abs=0.008) and found.high == pytest.approx(means[19_500], abs=0.008)
    assert sharpness.paired(a + shift, a) == found  # the same seed, the same interval
    mirrored = sharpness.paired(a, a + shift)
    assert mirrored.mean == -found.mean and mirrored.effect == -found.effect


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(120):
        found = sharpness.paired(generator.normal(0.5, 1.0, 40), np.zeros(40))
        covered += found.low <= 0.5 <= found.high
    assert 105 <= covered <= 120  # 95 % of 120 is 114


def test_verdict_of_a_comparison() -> None:
    values = np.linspace(0, 1, 20)
    assert sharpness.paired(values + 1, values).verdict == "higher"
    assert math.isnan(sharpness.paired(values + 1, values).effect)  # all the same: no spread to compare with
    assert sharpness.paired(values, values + values).verdict == "lower"
    assert sharpness.paired(values, values[::-1]).verdict == "no clear difference"


@pytest.mark.parametrize(("a", "b"), [([1], [2]), ([1, 2], [1, 2, 3]), ([], []), ([[1, 2]], [[1, 2]])])
def test_a_comparison_needs_pairs(a: Any, b: Any) -> None:
    with pytest.raises(RecordError, match="expected one a channel"):
        sharpness.paired(a, b)
    with pytest.raises(RecordError, match="not finite"):
        sharpness.paired([1.0, float("nan")], [1.0, 2.0])


def test_recognised_are_pictures_that_excite_their_own_channel_most() -> None:
    judge = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()).eval()
    judge[0].weight.data = torch.tensor([[1.0, 0, 0], [0, 10.0, 0], [0, 0, 0.1]])[:, :, None, None]
    pictures = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for colour in range(3):
        pictures[colour, colour] = 255
    channels = [Channel("1", index) for index in range(3)]
    options = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "device": "cpu"}
    assert sharpness.recognised(judge, pictures, channels, **options).tolist() == [True, True, True]
    swapped = pictures[[1, 0, 2]]
    assert sharpness.recognised(judge, swapped, channels, **options).tolist() == [False, False, True]
    assert sharpness.chance_level(channels) == pytest.approx(1 / 3)
    assert sharpness.chance_level([*channels, Channel("0", 0)]) == pytest.approx((3 * 1 / 3 + 1) / 4)
    with pytest.raises(SpecError, match="3 pictures and 2 channels"):
        sharpness.recognised(judge, pictures, channels[:2], **options)


def test_errors_are_ours() -> None:
    assert issubclass(sharpness.RenderingDiverged, NladvError)
