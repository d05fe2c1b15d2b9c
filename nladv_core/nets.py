"""The paper's CIFAR networks by name, and published weights to start from.

Two families, both of depth d = 6n + 2: one 3x3 stem convolution, three stages of n blocks with two 3x3 convolutions
each and 16k / 32k / 64k planes (width factor k), the second and third stage entered with stride 2, global average
pooling, one fully connected layer.

* v2, `"resnet<d>"`, the paper's (App. C.1; He et al. 2016b, pre-activation): normalise, bend, convolve. Nothing between
  stem and first block; one batch norm and one ReLU after the last. The shortcut reads the block's raw input.
* v1, `"resnet<d>v1"` (He et al. 2016a, post-activation): convolve, normalise, bend. One unit group after each addition.

Every ReLU is a module of its own, called once per forward pass: d - 1 unit groups in either family.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nladv_core.errors import DataError, SpecError
from nladv_core.places import data_dir


class PaddedShortcut(nn.Module):
    """Shortcut "A": every stride-th pixel, new channels filled with zeros, half of them (rounded down) in front.

    [N, planes_in, H, W] -> [N, planes, ceil(H / stride), ceil(W / stride)]; no parameters. Splitting the padding is the
    published v1 networks' convention; the paper does not say where its zeros stand.
    """

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        front = (planes - planes_in) // 2
        self.padding = (0, 0, 0, 0, front, planes - planes_in - front)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)

    def extra_repr(self) -> str:
        """What `print(net)` shows."""
        return f"stride={self.stride}, channels={self.padding[4:]}"


def _convolution(planes_in: int, planes: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(planes_in, planes, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(
    planes_in: int, planes: int, stride: int, residual: bool, kind: str, *, normalise: bool
) -> nn.Module | None:
    """What a block adds to its branch; None without residuals."""
    if not residual:
        return None
    if stride == 1 and planes_in == planes:
        return nn.Identity()
    if kind == "A":
        return PaddedShortcut(planes_in, planes, stride)
    projection = _convolution(planes_in, planes, stride, kernel=1)
    return nn.Sequential(projection, nn.BatchNorm2d(planes)) if normalise else projection


class BlockV1(nn.Module):
    """Post-activation block: conv-BN-ReLU-conv-BN, plus the shortcut, ReLU. Two unit groups of `planes` channels."""

    def __init__(self, planes_in: int, planes: int, stride: int, residual: bool, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _convolution(planes_in, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(planes_in, planes, stride, residual, shortcut, normalise=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, planes_in, H, W] -> [N, planes, ceil(H / stride), ceil(W / stride)]."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return self.relu2(out)


class BlockV2(nn.Module):
    """Pre-activation block: BN-ReLU-conv-BN-ReLU-conv, plus the shortcut of the raw input.

    Two unit groups, of `planes_in` and `planes` channels. Shortcut "B" is a bare 1x1 convolution: a batch norm there
    would be followed by the next block's own.
    """

    def __init__(self, planes_in: int, planes: int, stride: int, residual: bool, shortcut: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(planes_in)
        self.relu1 = nn.ReLU()
        self.conv1 = _convolution(planes_in, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv2 = _convolution(planes, planes)
        self.shortcut = _shortcut(planes_in, planes, stride, residual, shortcut, normalise=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, planes_in, H, W] -> [N, planes, ceil(H / stride), ceil(W / stride)]."""
        out = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
        return out if self.shortcut is None else out + self.shortcut(x)


class ResNet(nn.Module):
    """A CIFAR ResNet: images [N, in_channels, H, W] (H, W >= 4 keep three scales) to logits [N, classes].

    Use `build`, which checks its arguments. With w = planes of the first stage (16 at width 1) and n blocks a stage:

    * unit groups: d - 1. v1: the stem's, then two per block. v2: two per block, then the final one. ResNet-56: 55.
      Units, v1: w + 14nw (ResNet-56: 2,032). v2: the first group of each widening block still has the narrow width,
      the final one 4w; the sum is again w + 14nw.
    * parameters, shortcut "A": w² (378n - 90) + 9 w in_channels + 2 (w + 14nw) + (4w + 1) classes, the same for both
      versions and without residuals. Width 1, 10 classes: ResNet-20 269,722; -32 464,154; -44 658,586; -56 853,018.
      "B" adds 10 w² for its two 1x1 convolutions, in v1 also 12 w for their batch norms.
    * all-active NAPL (PAPER: App. A), residual: v2 3n + 2 with shortcut "A", 3n + 1 with "B"; v1 4.5n + 1.5 and
      4.5n + 1. ResNet-20/32/44/56 v2 "A": 11/17/23/29; v1 "A": 15/24/33/42. Without residuals: d - 1, the number of
      groups.

    Initial values: convolutions normal with variance 2 / (fan-out), batch norms 1 and 0, the last layer as torch has
    it; drawn from torch's global generator, as in every module.
    """

    def __init__(
        self,
        blocks: int,
        planes: int,
        *,
        version: int,
        classes: int,
        in_channels: int,
        residual: bool,
        shortcut: str,
    ) -> None:
        super().__init__()
        self.version = version
        self.conv1 = _convolution(in_channels, planes)
        if version == 1:
            self.bn1 = nn.BatchNorm2d(planes)
            self.relu1 = nn.ReLU()
        block = BlockV1 if version == 1 else BlockV2

        def stage(planes_in: int, planes: int, stride: int) -> nn.Sequential:
            first = block(planes_in, planes, stride, residual, shortcut)
            return nn.Sequential(first, *(block(planes, planes, 1, residual, shortcut) for _ in range(blocks - 1)))

        self.layer1 = stage(planes, planes, 1)
        self.layer2 = stage(planes, 2 * planes, 2)
        self.layer3 = stage(2 * planes, 4 * planes, 2)
        if version == 2:
            self.bn = nn.BatchNorm2d(4 * planes)
            self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * planes, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, classes]."""
        x = self.conv1(x)
        if self.version == 1:
            x = self.relu1(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.version == 2:
            x = self.relu(self.bn(x))
        return self.linear(torch.flatten(self.pool(x), 1))


def build(
    name: str,
    *,
    classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    residual: bool = True,
    shortcut: str = "A",
) -> nn.Module:
    """A network of the paper by name, freshly initialised from torch's global generator, in training mode.

    Args:
        name: `"resnet<d>"` (v2, the paper's) or `"resnet<d>v1"`, d = 6n + 2: 8, 14, 20, ..., 56, ..., 110.
        classes: number of logits, at least 2.
        in_channels: channels of the images, at least 1.
        width: planes are `round(16 * width)` times 1, 2, 4; at least one plane must remain.
        residual: True is the paper's "Short", False its "NoShort": the same blocks without the additions.
        shortcut: where a stage widens, "A" (every second pixel, zero channels) or "B" (1x1 convolution). Unused, but
            still checked, without residuals.

    Raises:
        SpecError: any argument outside these ranges; an unknown name comes with the nearest known ones.
    """
    depth, version = _parse(name)
    if not _is_whole(classes) or classes < 2:
        raise SpecError(f"classes is {classes!r}; a classifier needs a whole number of at least 2.")
    if not _is_whole(in_channels) or in_channels < 1:
        raise SpecError(f"in_channels is {in_channels!r}; images have a whole number of channels, at least 1.")
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not math.isfinite(width) or width <= 0:
        raise SpecError(
            f"width is {width!r}; the width factor must be a finite number above 0 (1.0 gives 16/32/64 planes)."
        )
    planes = round(16 * width)
    if planes < 1:
        raise SpecError(f"width {width!r} leaves no channel; use at least {1 / 16} (one plane in the first stage).")
    if not isinstance(residual, bool):
        raise SpecError(f"residual is {residual!r}; use True (the paper's Short) or False (NoShort).")
    if shortcut not in ("A", "B"):
        raise SpecError(f'shortcut is {shortcut!r}; use "A" (zero-padded identity) or "B" (1x1 convolution).')
    return ResNet(
        (depth - 2) // 6,
        planes,
        version=version,
        classes=classes,
        in_channels=in_channels,
        residual=residual,
        shortcut=shortcut,
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Depths that a near-name suggestion may offer; every other 6n + 2 is built just as well.
_USUAL_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 50, 56, 110)


def _parse(name: object) -> tuple[int, int]:
    """Depth and version of a network name."""
    if not isinstance(name, str):
        raise SpecError(f'a network is asked for by name, such as "resnet56", not by {name!r}.')
    match = re.fullmatch(r"resnet([1-9][0-9]{0,3})(v1)?", name)
    if match is None:
        usual = [f"resnet{depth}{version}" for depth in _USUAL_DEPTHS for version in ("", "v1")]
        near = difflib.get_close_matches(name.lower(), usual, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "for example resnet20, resnet56, resnet56v1."
        raise SpecError(f"unknown network {name!r}; names are resnet<d> (v2) and resnet<d>v1 with d = 6n + 2: {hint}")
    depth = int(match[1])
    if depth < 8 or depth % 6 != 2:
        below = 8 if depth < 8 else depth - (depth - 2) % 6
        near = [f"resnet{d}{match[2] or ''}" for d in ((8,) if depth < 8 else (below, below + 6))]
        raise SpecError(f"{name!r} has depth {depth}, which is not 6n + 2 with n >= 1; nearest: {' or '.join(near)}.")
    return depth, 1 if match[2] else 2


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that others trained and published; nothing of them is part of this project.

    `file` is its name in the folder `weights` of `$NLADV_DATA`, `net` the name for `build`, `data` the name for
    `datasets.load`. Input: images / 255, minus `mean`, divided by `std` (per channel). `accuracy`: per cent of
    CIFAR-10's 10,000 test images, final, as published.
    """

    file: str
    sha256: str
    url: str
    net: str
    data: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float
    licence: str
    source: str


def _akamaster(depth: int, sha256: str, accuracy: float) -> PublishedWeights:
    repository = "https://github.com/akamaster/pytorch_resnet_cifar10"
    file = f"resnet{depth}-{sha256[:8]}.th"
    return PublishedWeights(
        file=file,
        sha256=sha256,
        url=f"{repository}/raw/d5489e89/pretrained_models/{file}",
        net=f"resnet{depth}v1",
        data="cifar10",
        classes=10,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        accuracy=accuracy,
        licence="BSD-2-Clause",
        source=f"Y. Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch, {repository}",
    )


PUBLISHED: Mapping[str, PublishedWeights] = MappingProxyType(
    {
        "akamaster/resnet20": _akamaster(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 91.73),
        "akamaster/resnet32": _akamaster(32, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850", 92.63),
        "akamaster/resnet44": _akamaster(44, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4", 93.10),
        "akamaster/resnet56": _akamaster(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367", 93.39),
    }
)


def load_published(name: str, folder: str | Path | None = None) -> nn.Module:
    """One of `PUBLISHED`, with its weights, on the CPU and in eval mode.

    Args:
        name: a key of `PUBLISHED`, such as "akamaster/resnet20".
        folder: where the file lies; by default the folder `weights` of `$NLADV_DATA`.

    The file is read once: the bytes whose SHA-256 was verified are the bytes that are loaded, and no pickled object
    other than tensors is ever built (`weights_only`).

    Raises:
        SpecError: unknown name.
        DataError: folder or file not there, not readable, or not the published bytes.
    """
    if name not in PUBLISHED:
        near = difflib.get_close_matches(str(name), PUBLISHED, n=3) or list(PUBLISHED)
        raise SpecError(f"no published weights named {name!r}; did you mean {' or '.join(near)}?")
    published = PUBLISHED[name]
    root = data_dir()
    where_to_put_it = (
        f"download it from {published.url} into the folder weights of your data folder and set the environment "
        "variable NLADV_DATA to that data folder"
    )
    if folder is None and root is None:
        raise DataError(f"{name}: NLADV_DATA is not set, so {published.file} cannot be found; {where_to_put_it}.")
    path = (Path(folder) if folder is not None else Path(str(root)) / "weights") / published.file
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name}: there is no file {path}; {where_to_put_it}.") from None
    except OSError as error:
        raise DataError(f"{name}: {path} cannot be read ({error.strerror}); {where_to_put_it}.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != published.sha256:
        raise DataError(
            f"{name}: {path} has SHA-256 {found}, expected {published.sha256}; it is damaged or another file: "
            f"delete it and download it again from {published.url}."
        )
    try:
        stored = torch.load(BytesIO(content), map_location="cpu", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DataError(
            f"{name}: {path} is the published file, but this version of torch cannot read it: {error}"
        ) from error
    net = build(published.net, classes=published.classes)
    net.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    return net.eval()
