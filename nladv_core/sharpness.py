"""Feature visualisations with Lucent, many at a time, and how sharp they are (§4.4).

A channel's picture is the image that excites it most, found by gradient ascent with Lucent's parametrisation (a decayed
Fourier spectrum in decorrelated colours) and Lucent's random transformations. Lucent renders one channel of one network
after the other; here one optimisation renders a batch of channels of several networks. They do not influence each
other: the objective is a sum of one term an image, and Adam works element by element. So a picture is the one that its
channel would get alone, but for the rounding of batched sums.

What Lucent 0.1.8 does otherwise is worked around from outside: its device, fixed at import, is set for the time of a
render; its random numbers, from numpy's and torch's global generators, are seeded and the generators put back; its
hooks, never removed, are not used; no viewer opens; images have the size that is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nladv_core import values
from nladv_core.checkpoints import write
from nladv_core.compat import import_torchvision
from nladv_core.errors import NladvError, RecordError, SpecError
from nladv_core.linearize import ChannelPReLU, units
from nladv_core.store import RecordWarning
from nladv_core.training import _overruns_in_channels_last

Networks = Mapping[str, nn.Module]
OF = ("input", "output")
_LEAST = 4  # images a network at a time
_CHECK_EVERY = 16  # steps between two looks for NaN: each waits for the device


class Channel(NamedTuple):
    """One feature channel: name of the layer (a module of the network, such as a group of units) and number in it."""

    layer: str
    number: int

    def __str__(self) -> str:
        return f"{self.layer}, channel {self.number}"


class RenderingDiverged(NladvError, RuntimeError):
    """A picture or what a network makes of it left the finite numbers."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Everything but network and channel that decides a picture.

    Attributes:
        size: side of the picture and of what the network sees, in pixels. Below 64, transformations are small (pad 4,
            shift by up to 3, scale ± 5 %, turn by up to 5°); from 64 on they are Lucent's standard ones.
        steps: of Adam.
        seed: of the start, a faint noise that is the same for all channels, and of the transformations of each step.
        lr: learning rate of Adam, > 0.
        of: whether the "input" of a layer or its "output" is to be excited. The input of a unit is the same linear
            function of the layer before in all networks, and no unit is dead at the start.

    Raises:
        SpecError: a value of the wrong type or out of range.
    """

    size: int = 32
    steps: int = 128
    seed: int = 0
    lr: float = 0.05
    of: str = "input"

    def __post_init__(self) -> None:
        values.canonical(self)
        for name, least in (("size", 8), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise SpecError(f"rendering: {name} is {getattr(self, name)}, expected at least {least}")
        if not self.lr > 0:
            raise SpecError(f"rendering: lr is {self.lr:g}, expected above 0")
        if self.of not in OF:
            raise SpecError(f"rendering: of is {self.of!r}, expected one of {', '.join(OF)}")


# -------------------------------------------------------------------------------------------- which channels there are


def active_channels(net: nn.Module) -> list[Channel]:
    """All channels of a linearized network whose unit is active (at some pixel, if slopes are pixel-wise).

    Raises:
        UnsupportedNetwork: the network is not linearized.
    """
    return [
        Channel(name, index)
        for name, unit in units(net)
        for index in torch.nonzero(unit.active_channels() > 0).flatten().tolist()
    ]


def common_channels(networks: Networks) -> list[Channel]:
    """The channels that are active in all of the networks, in execution order.

    Raises:
        SpecError: no networks, or no channel is active in all of them.
        UnsupportedNetwork: one of them is not linearized.
    """
    if not networks:
        raise SpecError("found no network to compare, expected at least one")
    found = [active_channels(net) for net in networks.values()]
    rest = [set(channels) for channels in found[1:]]
    common = [channel for channel in found[0] if all(channel in other for other in rest)]
    if not common:
        counts = ", ".join(f"{name} {len(active)}" for name, active in zip(networks, found, strict=True))
        raise SpecError(
            f"no channel is active in all of the networks (active channels: {counts}); compare networks that were "
            "linearized less, or fewer of them"
        )
    return common


def spread_evenly(channels: Sequence[Channel], count: int) -> list[Channel]:
    """At most `count` of the channels, evenly spaced in their order.

    Raises:
        SpecError: fewer than 1 is asked for.
    """
    if count < 1:
        raise SpecError(f"{count} channels were asked for, expected at least 1")
    rows = np.linspace(0, len(channels) - 1, min(count, len(channels))).round().astype(int)
    return [channels[row] for row in rows]


# ------------------------------------------------------------------------------------------------------------ rendering


def render(
    networks: Networks,
    channels: Sequence[Channel | tuple[str, int]],
    rendering: Rendering | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "auto",
    batch: int | None = None,
    inactive: bool = False,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Pictures of the same channels in several networks.

    Args:
        networks: name -> network. None is modified, and none keeps a hook. A layer that is called several times in one
            pass has no single feature map: `linearize` the network, which gives each call a name of its own.
        channels: (name of a layer, number of a channel) each.
        rendering: size, steps, seed, ...; default `Rendering()`.
        mean, std: the networks see (picture - mean) / std, per colour channel.
        device: "auto", "cpu", "cuda", ...
        batch: channels at a time, default by size, device and number of networks; it decides speed and memory only.
        inactive: render channels whose unit is inactive, too.
        progress: a bar over channels, where somebody looks.

    Returns:
        Name of network -> pictures, float32 [channels, 3, size, size] in [0, 1], on the CPU, in the order given.

    Raises:
        SpecError: a layer or channel that does not exist (with the nearest names), one that is inactive, a picture too
            small for a network, a layer without channels, Lucent is not installed.
        RenderingDiverged: NaN or an infinity.
    """
    rendering = rendering or Rendering()
    chosen = [Channel(str(layer), int(index)) for layer, index in channels]
    where, ready, order = _ready(networks, chosen, rendering, mean, std, device, inactive)
    size = batch or _batch(rendering, where, len(networks))
    pictures = {name: torch.empty(len(chosen), 3, rendering.size, rendering.size) for name in networks}
    with _bar(len(chosen), progress) as bar:
        for rows in order.split(size):
            part = [chosen[row] for row in rows.tolist()]
            for name, found in _optimise(ready, part, rendering, where).items():
                pictures[name][rows] = found
            bar.update(len(rows))
    return pictures


class _Enough(BaseException):
    """The last layer that is needed was reached; no `Exception`, of which a graph module would print the trace."""


@dataclass(frozen=True)
class _Ready:
    """A network made ready: a copy on the device without gradients of its own, and how images are put before it."""

    net: nn.Module
    layout: torch.memory_format
    mean: Tensor
    std: Tensor

    def see(
        self, images: Tensor, wanted: Mapping[str, tuple[Tensor, Tensor] | None], of: str, stop: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What layers make of `images`, and how often they were called; `stop`: no further than needed.

        `wanted`: layer -> (rows, indices): the spatial means [rows] of channel `indices[i]` for image `rows[i]`; or
        None: those of all channels, [images, C].
        """
        found: dict[str, Tensor] = {}
        calls = dict.fromkeys(wanted, 0)

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any = None) -> None:
                seen = args[0] if of == "input" else output
                which = wanted[name]
                # Taken at once: a later operation may work in place.
                if which is None:
                    found[name] = seen.flatten(2).mean(2) if seen.ndim > 2 else seen.clone()
                else:
                    found[name] = seen[which].reshape(len(which[0]), -1).mean(1)
                calls[name] += 1
                if stop and len(found) == len(wanted):
                    raise _Enough

            return hook

        modules = {name: self.net.get_submodule(name) for name in wanted}
        if of == "input":
            handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
        else:
            handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
        try:
            self.net(((images - self.mean) / self.std).contiguous(memory_format=self.layout))
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found, calls


class _Bend(nn.Module):
    """What a `ChannelPReLU` computes, where no slope needs a gradient: a third of the time of torch's `prelu`."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        slope: Any = self.slope
        return torch.lerp(F.relu(x), x, slope.view(-1, *[1] * (x.ndim - 2)))


def _ready(
    networks: Networks,
    channels: Sequence[Channel],
    rendering: Rendering,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device,
    inactive: bool,
) -> tuple[torch.device, dict[str, _Ready], Tensor]:
    """Device, copies of the networks, the channels' rows in the order of execution; refuses what cannot be drawn."""
    from nladv_core.runs import pick_device

    if not networks or not channels:
        raise SpecError(f"found {len(networks)} networks and {len(channels)} channels, expected at least one of each")
    where = pick_device(str(device))
    centre, scale = (torch.tensor(value, dtype=torch.float32, device=where)[:, None, None] for value in (mean, std))
    layers = list(dict.fromkeys(channel.layer for channel in channels))
    ready, rank = {}, dict[str, int]()
    for name, net in networks.items():
        known = dict(net.named_modules())
        for layer in layers:
            if layer not in known or layer == "":
                raise SpecError(f"{name}: there is no layer {layer!r}{values.nearest(layer, known)}")
        _check_active(name, known, channels, inactive)
        ready[name] = _Ready(*_light(net, where, layers), centre, scale)
        counts, rank = _inspect(name, ready[name], layers, rendering)
        for channel in channels:
            if not 0 <= channel.number < counts[channel.layer]:
                raise SpecError(
                    f"{name}: layer {channel.layer!r} has no channel {channel.number}, expected one from 0 to "
                    f"{counts[channel.layer] - 1}"
                )
    # Neighbours in the network share a batch, so that none is carried far beyond its own layer.
    rows = sorted(range(len(channels)), key=lambda row: (rank[channels[row].layer], channels[row].number))
    return where, ready, torch.tensor(rows)


def _check_active(name: str, known: Mapping[str, nn.Module], channels: Sequence[Channel], inactive: bool) -> None:
    for channel in channels:
        unit = known[channel.layer]
        if inactive or not isinstance(unit, ChannelPReLU) or not 0 <= channel.number < unit.channels:
            continue
        active = unit.active_channels() > 0
        if not active[channel.number]:
            some = torch.nonzero(active).flatten().tolist()
            told = f"active there: {', '.join(map(str, some[:8]))}" if some else "none of that layer is active"
            raise SpecError(
                f"{name}: {channel} is inactive, its unit is a line ({told}); choose an active one, or render it all "
                "the same with inactive=True"
            )


def _light(net: nn.Module, device: torch.device, layers: Sequence[str] = ()) -> tuple[nn.Module, torch.memory_format]:
    """A copy that is fast to differentiate with respect to its input, and the format of its images in memory.

    `layers` are those that are looked at.
    """
    net = getattr(net, "_orig_mod", net)
    with _without_lucent_hooks(net):
        light = copy.deepcopy(net).eval().requires_grad_(False)
    if isinstance(light, GraphModule):
        _fold_batch_norms(light, layers)
    layout = torch.contiguous_format if _overruns_in_channels_last(light) else torch.channels_last
    light.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    for name, unit in list(light.named_modules()):
        if isinstance(unit, ChannelPReLU) and unit.channel_axis == 1 and unit.granularity != "pixel":
            slope = torch.where(unit.active, unit.slope, 1.0).detach()
            kind: nn.Module = _Bend(slope)
            if unit.limit != float("inf"):
                continue
            if bool((slope == 0).all()):
                kind = nn.ReLU()
            elif bool((slope == 1).all()):
                kind = nn.Identity()
            parent, _, last = name.rpartition(".")
            setattr(light.get_submodule(parent), last, kind)
    return light, layout


def _fold_batch_norms(light: GraphModule, layers: Sequence[str]) -> None:
    """Put batch norms into the convolutions before them, where nothing else reads these."""
    modules = dict(light.named_modules())
    calls = Counter(str(node.target) for node in light.graph.nodes if node.op == "call_module")
    for node in list(light.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        convolution, norm = (modules[name] for name in names)
        once = all(calls[name] == 1 and name not in layers for name in names)
        if once and type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
            parent, _, last = names[0].rpartition(".")
            setattr(light.get_submodule(parent), last, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            light.graph.erase_node(node)
    light.recompile()


@contextmanager
def _without_lucent_hooks(net: nn.Module) -> Iterator[None]:
    """Those that an earlier render by Lucent itself has left hold feature maps, which cannot be copied."""
    every = {module: module._forward_hooks for module in net.modules()}
    try:
        for module, hooks in every.items():
            foreign = [
                (key, hook)
                for key, hook in hooks.items()
                if not type(getattr(hook, "__self__", None)).__module__.startswith("lucent.")
            ]
            module._forward_hooks = type(hooks)(foreign)
        yield
    finally:
        for module, hooks in every.items():
            module._forward_hooks = hooks


@torch.no_grad()
def _inspect(
    name: str, ready: _Ready, layers: Sequence[str], rendering: Rendering
) -> tuple[dict[str, int], dict[str, int]]:
    """Number of channels of each layer, and its place in the order of execution."""
    images = torch.full((1, 3, rendering.size, rendering.size), 0.5, device=ready.mean.device)
    try:
        found, calls = ready.see(images, dict.fromkeys(layers), rendering.of, stop=False)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(
            f"{name}: cannot be applied to a picture of {rendering.size} × {rendering.size} pixels ({reason}); give "
            "another size, or layers that work on feature maps"
        ) from None
    for layer in layers:
        if calls[layer] != 1:
            raise SpecError(
                f"{name}: layer {layer!r} is called {calls[layer]} times in one pass, expected once; nladv.linearize "
                "gives every call of a ReLU a layer of its own"
            )
    return {layer: found[layer].shape[1] for layer in layers}, {layer: i for i, layer in enumerate(found)}


def _batch(rendering: Rendering, device: torch.device, networks: int) -> int:
    """Channels at a time: enough to hide the overhead, few enough for the caches or the memory."""
    images = (96 if device.type == "cpu" else 1024) * 32**2 / rendering.size**2
    return max(1, round(max(images, 16 if device.type == "cpu" else 64) / networks))


def _optimise(
    ready: Mapping[str, _Ready], channels: Sequence[Channel], rendering: Rendering, device: torch.device
) -> dict[str, Tensor]:
    """Lucent's optimisation, for all of these channels in all networks at once."""
    asked, size = len(channels), rendering.size
    # A convolution of a few images takes another path than one of many, and rounds otherwise.
    channels = [*channels, *[channels[-1]] * (_LEAST - asked)]
    count = len(channels)
    wanted: dict[str, tuple[Tensor, Tensor] | None] = {}
    for layer in dict.fromkeys(channel.layer for channel in channels):
        rows = [row for row, channel in enumerate(channels) if channel.layer == layer]
        index = [channels[row].number for row in rows]
        wanted[layer] = (torch.tensor(rows, device=device), torch.tensor(index, device=device))
    with _lucent(device, rendering.seed) as lucent:
        # The start that a channel gets alone, for all of them.
        (start,), _ = lucent.spatial.fft_image((1, 3, size, size))
        (spectrum,), plain = lucent.spatial.fft_image((count * len(ready), 3, size, size))
        with torch.no_grad():
            spectrum.copy_(start)
        basis = torch.from_numpy(lucent.color.color_correlation_normalized.T.copy()).to(device)
        # Lucent's own function for this puts the basis on a GPU where there is one, whatever the device.
        picture = lucent.color.to_valid_rgb(lambda: torch.einsum("nchw,cd->ndhw", plain(), basis))
        transform = lucent.transform.compose(_transforms(lucent, size))
        optimizer = torch.optim.Adam([spectrum], lr=rendering.lr)
        for step in range(1, rendering.steps + 1):
            optimizer.zero_grad(set_to_none=True)
            seen = transform(picture())
            # Each network's part of the graph is freed before the next one's is made.
            leaf = seen.detach().requires_grad_()
            excitations = {}
            for (name, net), part in zip(ready.items(), leaf.split(count), strict=True):
                found, _ = net.see(part, wanted, rendering.of)
                excitations[name] = found
                (-torch.cat(list(found.values())).sum()).backward()
            seen.backward(leaf.grad)
            optimizer.step()
            # At the first step also: what is NaN in one channel spreads to the gradients of others.
            if step == 1 or step % _CHECK_EVERY == 0 or step == rendering.steps:
                _check_finite(excitations, wanted, channels, step)
        with torch.no_grad():
            pictures = picture().float().cpu()
    if not pictures.isfinite().all():
        raise RenderingDiverged(f"a picture holds NaN after {rendering.steps} steps; lower lr (now {rendering.lr:g})")
    return {name: found[:asked] for name, found in zip(ready, pictures.split(count), strict=True)}


def _check_finite(
    excitations: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[str, tuple[Tensor, Tensor] | None],
    channels: Sequence[Channel],
    step: int,
) -> None:
    for name, found in excitations.items():
        for layer, value in found.items():
            bad = torch.nonzero(~value.detach().isfinite()).flatten().tolist()
            rows = wanted[layer]
            if bad and rows is not None:
                channel = channels[int(rows[0][bad[0]])]
                raise RenderingDiverged(
                    f"{name}: {channel} gives {float(value[bad[0]])} at step {step}; check the network's weights, or "
                    "lower lr"
                )


def _transforms(lucent: SimpleNamespace, size: int) -> list[Any]:
    """Lucent's standard transformations, or smaller ones for small pictures; then back to the size."""
    make = lucent.transform
    if size < 64:
        chosen = [
            make.pad(4, mode="constant", constant_value=0.5),
            make.jitter(4),
            make.random_scale([0.95, 0.975, 1, 1.025, 1.05]),
            make.random_rotate([-5, -2.5, 0, 0, 2.5, 5]),
            make.jitter(2),
        ]
    else:
        chosen = list(make.standard_transforms)
    return [*chosen, nn.Upsample(size=size, mode="bilinear", align_corners=True)]


@cache
def _parts() -> SimpleNamespace:
    """The parts of Lucent that are used.

    Raises:
        SpecError: it is not installed.
    """
    import_torchvision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kornia 0.4.1 and IPython's display are older than today's Python
            from lucent.optvis import transform
            from lucent.optvis.param import color, spatial
    except ImportError as error:
        raise SpecError(
            f"Lucent cannot be imported ({error}); install torch-lucent==0.1.8 with kornia==0.4.1 (the package named "
            "lucent is another)"
        ) from None
    return SimpleNamespace(transform=transform, color=color, spatial=spatial)


@contextmanager
def _lucent(device: torch.device, seed: int) -> Iterator[SimpleNamespace]:
    """Lucent on `device`, drawing its random numbers from `seed`; afterwards everything is as it was."""
    parts = _parts()
    devices, state = (parts.spatial.device, parts.transform.device), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kornia's use of torch, at each step
            parts.spatial.device = parts.transform.device = device
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield parts
    finally:
        parts.spatial.device, parts.transform.device = devices
        np.random.set_state(state)


def _bar(total: int, wanted: bool) -> Any:
    """A bar over channels in a terminal or a notebook that somebody looks at."""
    from tqdm import tqdm

    ipython = sys.modules.get("IPython")
    watched = sys.stderr.isatty() or (ipython is not None and ipython.get_ipython() is not None)
    shown = wanted and watched and os.environ.get("NLADV_PROGRESS", "") != "0"
    return tqdm(total=total, desc="rendering", unit="channel", leave=False, mininterval=0.3, disable=not shown)


# --------------------------------------------------------------------------------------------------------------- sweeps


@dataclass(frozen=True)
class Pictures:
    """What a sweep found.

    Attributes:
        networks: their names.
        channels: which channels, in the order asked for.
        images: uint8 [networks, channels, 3, size, size].
        measures: name of a measure (`MEASURES`) -> float64 [networks, channels], of the pictures before rounding.
    """

    networks: tuple[str, ...]
    channels: tuple[Channel, ...]
    images: Tensor
    measures: dict[str, np.ndarray]


def sweep(
    networks: Networks,
    channels: Sequence[Channel | tuple[str, int]],
    rendering: Rendering | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    folder: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    batch: int | None = None,
    progress: bool = True,
) -> Pictures:
    """Render and measure many channels; what is finished is kept, so that a sweep can be cut and goes on from there.

    It is kept network by network: one that was rendered beside others need not be rendered again.

    Args:
        folder: where finished batches are kept, in folders named by what decides them; default `features` of the cache.

    The other arguments and errors are those of `render`. A damaged file is computed again, with a `RecordWarning`.
    """
    from nladv_core.places import cache_dir

    rendering = rendering or Rendering()
    chosen = [Channel(str(layer), int(index)) for layer, index in channels]
    if len(set(chosen)) != len(chosen):
        raise SpecError("some channel is asked for twice, expected each once")
    root = Path(folder) if folder is not None else cache_dir() / "features"
    stores = {name: root / _sweep_key(net, rendering, mean, std) for name, net in networks.items()}
    found = {name: _finished(store, rendering.size) for name, store in stores.items()}
    missing = [channel for channel in chosen if any(channel not in kept for kept in found.values())]
    if missing:
        where, ready, order = _ready(networks, missing, rendering, mean, std, device, inactive=False)
        size = batch or _batch(rendering, where, len(networks))
        with _bar(len(chosen), progress) as bar:
            bar.update(len(chosen) - len(missing))
            for rows in order.split(size):
                part = [missing[row] for row in rows.tolist()]
                # A network may have been rendered beside others before, and have all of these.
                todo = {name: ready[name] for name in ready if any(channel not in found[name] for channel in part)}
                for name, pictures in _optimise(todo, part, rendering, where).items():
                    found[name] |= _keep(stores[name], part, pictures)
                bar.update(len(part))
    images = torch.stack([torch.stack([kept[channel][0] for channel in chosen]) for kept in found.values()])
    measured = np.array([[kept[channel][1] for channel in chosen] for kept in found.values()])
    return Pictures(
        tuple(networks), tuple(chosen), images, dict(zip(MEASURES, np.moveaxis(measured, 2, 0), strict=True))
    )


def _sweep_key(net: nn.Module, rendering: Rendering, mean: Sequence[float], std: Sequence[float]) -> str:
    told: dict[str, Any] = {
        "rendering": asdict(rendering),
        "mean": list(map(float, mean)),
        "std": list(map(float, std)),
    }
    told["network"] = network_digest(net)
    return hashlib.sha256(values.text(told).encode()).hexdigest()[:16]


def network_digest(net: nn.Module) -> str:
    """SHA-256 (hex) over the class of a network, its graph where it is one, and all its weights and buffers."""
    digest = hashlib.sha256(f"{type(net).__qualname__} {getattr(net, 'code', '')}".encode())
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _keep(store: Path, part: Sequence[Channel], pictures: Tensor) -> dict[Channel, tuple[Tensor, np.ndarray]]:
    """Measure a batch of one network's pictures and write it; returns it as `_finished` would."""
    from safetensors.torch import save

    measured = torch.stack([measure(pictures) for measure in MEASURES.values()], dim=1)
    images = (pictures * 255).round().to(torch.uint8)
    names = json.dumps([list(channel) for channel in part])
    content = save({"images": images.contiguous(), "measures": measured.contiguous()}, {"channels": names})
    store.mkdir(parents=True, exist_ok=True)
    write(store / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors", content)
    return {channel: (images[i], measured[i].numpy()) for i, channel in enumerate(part)}


def _finished(store: Path, size: int) -> dict[Channel, tuple[Tensor, np.ndarray]]:
    """Channel -> picture, uint8 [3, size, size], and its measures, float64 [measures], of what is there already."""
    from safetensors import SafetensorError, safe_open

    found: dict[Channel, tuple[Tensor, np.ndarray]] = {}
    for path in sorted(store.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                channels = [Channel(layer, index) for layer, index in json.loads(file.metadata()["channels"])]
                images, measured = file.get_tensor("images"), file.get_tensor("measures")
            count = len(channels)
            if images.shape != (count, 3, size, size) or measured.shape != (count, len(MEASURES)):
                raise ValueError("its tensors have other shapes")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path.name}: cannot be used ({error}); it is rendered again", RecordWarning, stacklevel=3)
            continue
        found |= {channel: (images[i], measured[i].numpy()) for i, channel in enumerate(channels)}
    return found


# ------------------------------------------------------------------------------------------------------------- measures


def gradient_magnitude(images: Tensor) -> Tensor:
    """Sharpness: the mean magnitude of the image gradient.

    Central differences in both directions, (I[x+1] - I[x-1]) / 2, their Euclidean norm, averaged over pixels and colour
    channels. The outermost row and column on each side have no such difference and are left out. Unit: the full range
    from black to white a pixel. (The paper names neither operator nor norm; these are ours.)

    Args:
        images: float [..., channels, H, W] in [0, 1], H and W at least 3.

    Returns:
        float64 [...], in [0, 0.71]: a difference is at most 1/2 in either direction.

    Raises:
        SpecError: smaller images.
    """
    x = _pixels(images)
    across = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    return torch.hypot(across, down).mean((-3, -2, -1))


def high_frequency_share(images: Tensor, cutoff: float = 0.25) -> Tensor:
    """A second measure, which does not depend on contrast: the share of spectral power at high frequencies.

    The mean of each colour channel is taken away and a Hann window put over the image, which keeps its borders from
    counting as edges; power is summed over colour channels. High is a radial frequency above `cutoff` cycles a pixel
    (by default half of the highest that a row of pixels can hold); the zero frequency is left out.

    Args:
        images: float [..., channels, H, W], H and W at least 3.
        cutoff: in cycles a pixel, in (0, 0.7).

    Returns:
        float64 [...] in [0, 1]; 0 for an image without any power.

    Raises:
        SpecError: smaller images, or a cutoff out of range.
    """
    if not 0 < cutoff < 0.7:
        raise SpecError(f"cutoff is {cutoff:g}, expected in (0, 0.7) cycles a pixel")
    x = _pixels(images)
    height, width = x.shape[-2:]
    window = torch.hann_window(height, dtype=x.dtype, device=x.device)[:, None]
    window = window * torch.hann_window(width, dtype=x.dtype, device=x.device)
    x = (x - x.mean((-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(x).abs().square().sum(-3)
    rows, columns = (torch.fft.fftfreq(n, dtype=x.dtype, device=x.device) for n in (height, width))
    radius = torch.hypot(rows[:, None], columns)
    high = (power * (radius > cutoff)).sum((-2, -1))
    whole = (power * (radius > 0)).sum((-2, -1))
    return torch.where(whole > 1e-18, high / whole.clamp(min=1e-18), 0.0)


def contrast(images: Tensor) -> Tensor:
    """Standard deviation over pixels, averaged over colour channels: float64 [...] in [0, 0.5] for images in [0, 1]."""
    return _pixels(images).std((-2, -1), correction=0).mean(-1)


def _pixels(images: Tensor) -> Tensor:
    if images.ndim < 3 or min(images.shape[-2:]) < 3:
        raise SpecError(f"found images of shape {tuple(images.shape)}, expected [..., channels, H, W], at least 3 × 3")
    return images.to(torch.float64)


# The first is the paper's.
MEASURES = {"gradient": gradient_magnitude, "high_frequency": high_frequency_share, "contrast": contrast}


# ---------------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Paired:
    """A measure in one network minus the same in another, over channels.

    Attributes:
        first, second: means of either.
        mean, low, high: mean difference and its 95 % bootstrap interval over channels.
        effect: Cohen's d of the paired differences (mean over standard deviation); NaN if they are all equal.
        share: of channels in which the first is larger.
        channels: how many.
    """

    first: float
    second: float
    mean: float
    low: float
    high: float
    effect: float
    share: float
    channels: int

    @property
    def verdict(self) -> str:
        """`"higher"`, `"lower"` or `"no clear difference"` (zero lies in the interval)."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no clear difference"


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, seed: int = 0) -> Paired:
    """Compare two networks channel by channel.

    The interval is a bootstrap over channels (bias-corrected and accelerated, 9,999 resamples). It says how far the
    mean would move with other channels of the same networks; nothing about other networks.

    Args:
        first, second: one value a channel, in the same order, at least two.
        seed: of the resampling.

    Raises:
        RecordError: different lengths, fewer than two channels, or values that are not finite.
    """
    from scipy.stats import bootstrap

    a, b = (np.asarray(found, dtype=float) for found in (first, second))
    if a.shape != b.shape or a.ndim != 1 or a.size < 2:
        raise RecordError(
            f"found {a.size} and {b.size} values, expected one a channel for the same two channels or more"
        )
    difference = a - b
    if not np.isfinite(difference).all():
        raise RecordError("found a value that is not finite, expected one a channel")
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    low = high = mean
    effect = float("nan")
    if spread > 1e-12 * max(1.0, abs(mean)):
        generator = np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate resample of few channels
            interval = bootstrap((difference,), np.mean, rng=generator, n_resamples=9999).confidence_interval
        low, high = float(interval.low), float(interval.high)
        if not np.isfinite([low, high]).all():  # two or three channels: no acceleration can be estimated
            low, high = float(difference.min()), float(difference.max())
        effect = mean / spread
    share = float((difference > 0).mean())
    return Paired(float(a.mean()), float(b.mean()), mean, low, high, effect, share, a.size)


def recognised(
    judge: nn.Module,
    images: Tensor,
    channels: Sequence[Channel],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    of: str = "input",
    device: str | torch.device = "auto",
) -> np.ndarray:
    """Whether a network recognises, in pictures made for another, its own channels.

    The judge looks at the pictures of a layer. Each of its channels is excited by each of them to some degree; degrees
    are standardised over the pictures. A picture is recognised if no other channel (of those in `channels`) of its
    layer is excited by it more than its own.

    Args:
        judge: a network.
        images: pictures of `channels`, uint8 or float in [0, 1], [channels, 3, H, W].
        channels: which channel each was made for.
        mean, std, of, device: as for `render`.

    Returns:
        bool [channels]. By chance, one in as many as the layer has pictures would be recognised (`chance_level`).
    """
    if len(images) != len(channels):
        raise SpecError(f"found {len(images)} pictures and {len(channels)} channels, expected as many")
    rendering = Rendering(size=images.shape[-1], of=of)
    where, ready, _ = _ready({"judge": judge}, list(channels), rendering, mean, std, device, inactive=True)
    seen = images.to(where)
    seen = seen.float() / 255 if seen.dtype == torch.uint8 else seen.float()
    right = np.zeros(len(channels), dtype=bool)
    for layer in dict.fromkeys(channel.layer for channel in channels):
        rows = [row for row, channel in enumerate(channels) if channel.layer == layer]
        index = torch.tensor([channels[row].number for row in rows], device=where)
        with torch.no_grad():
            parts = [ready["judge"].see(part, {layer: None}, of)[0][layer] for part in seen[rows].split(64)]
        degrees = torch.cat(parts)[:, index].double()  # [pictures, channels]
        spread = degrees.std(0, correction=0).clamp(min=1e-12)
        best = ((degrees - degrees.mean(0)) / spread).argmax(1).cpu().numpy()
        right[rows] = best == np.arange(len(rows))
    return right


def chance_level(channels: Sequence[Channel]) -> float:
    """The share of pictures that would be recognised by chance: the mean of one over the pictures of a layer."""
    sizes = [sum(other.layer == channel.layer for other in channels) for channel in channels]
    return float(np.mean([1 / size for size in sizes]))
