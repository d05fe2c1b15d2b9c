"""The paper's networks by name (App. C.1), and published weights to start from.

ResNets, of depth d = 6n + 2: one 3x3 stem convolution, three stages of n blocks with two 3x3 convolutions each and
16k / 32k / 64k planes (width factor k), the second and third stage entered with stride 2, global average pooling, one
fully connected layer.

* v2, `"resnet<d>"`, the paper's (He et al. 2016b, pre-activation): normalise, bend, convolve. Nothing between stem and
  first block; one batch norm and one ReLU after the last. The shortcut reads the block's raw input.
* v1, `"resnet<d>v1"` (He et al. 2016a, post-activation): convolve, normalise, bend. One unit group after each addition.

Others: `"pyramidnet110"` and its like of other depths, `"pyramidnet41"` for Tiny ImageNet (`PyramidNet`), `"toynet<d>"`
(`ToyNet`), `"torchvision/resnet50"` for ImageNet, and `"transformer<layers>"` for sentences
(`transformer.Transformer`).

In all but torchvision's and the transformer every ReLU is a module of its own, called once per forward pass.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nladv_core.compat import import_torchvision
from nladv_core.errors import DataError, SpecError
from nladv_core.places import data_dir
from nladv_core.transformer import MULTIPLE, UNKNOWN, Transformer


class PaddedShortcut(nn.Module):
    """Shortcut "A": every stride-th pixel, new channels filled with zeros, half of them (rounded down) in front.

    [N, planes_in, H, W] -> [N, planes, ceil(H / stride), ceil(W / stride)]; no parameters. Splitting the padding is the
    published v1 networks' convention; the paper does not say where its zeros stand.
    """

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        # Means over single pixels, not a slice: the gradient of a slice forgets that memory is channels-last, and a
        # compiled step then writes the gradients of all blocks before it twice.
        self.pool = nn.AvgPool2d(1, stride)
        front = (planes - planes_in) // 2
        self.padding = (0, 0, 0, 0, front, planes - planes_in - front)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(self.pool(x), self.padding)

    def extra_repr(self) -> str:
        """What `print(net)` shows."""
        return f"channels={self.padding[4:]}"


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
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, classes]."""
        x = self.conv1(x)
        if self.version == 1:
            x = self.relu1(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.version == 2:
            x = self.relu(self.bn(x))
        return self.linear(torch.flatten(self.pool(x), 1))


class PyramidShortcut(nn.Module):
    """Shortcut "A" of PyramidNets: 2x2 means where the block has stride 2, new channels filled with zeros behind.

    [N, planes_in, H, W] -> [N, planes, ceil(H / stride), ceil(W / stride)]; no parameters. Means instead of every
    second pixel: as in the code of Han et al. (2017) and the library of the paper's authors.
    """

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.padding = (0, 0, 0, 0, 0, planes - planes_in)

    def forward(self, x: Tensor) -> Tensor:
        """Average and pad."""
        return F.pad(self.pool(x), self.padding)

    def extra_repr(self) -> str:
        """What `print(net)` shows."""
        return f"channels={self.padding[4:]}"


class PyramidBlock(nn.Module):
    """BN-conv-BN-ReLU-conv-BN plus shortcut (no ReLU in front): one unit group; with `bottleneck` two.

    A bottleneck is 1x1, 3x3, 1x1 with a ReLU between each two; its `planes` are a quarter of the block's output.
    """

    def __init__(self, planes_in: int, planes: int, stride: int, residual: bool, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * planes if bottleneck else planes
        self.bn1 = nn.BatchNorm2d(planes_in)
        self.conv1 = _convolution(planes_in, planes, *((1, 1) if bottleneck else (stride, 3)))
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        middle = [_convolution(planes, planes, stride), nn.BatchNorm2d(planes), nn.ReLU()] if bottleneck else []
        self.middle = nn.Sequential(*middle)
        self.conv2 = _convolution(planes, out, kernel=1 if bottleneck else 3)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = PyramidShortcut(planes_in, out, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, planes_in, H, W] -> [N, planes (4 planes in bottlenecks), ceil(H / stride), ceil(W / stride)]."""
        out = self.bn3(self.conv2(self.middle(self.relu1(self.bn2(self.conv1(self.bn1(x)))))))
        return out if self.shortcut is None else out + self.shortcut(x)


class PyramidNet(nn.Module):
    """Widens a little in every block (Han et al. 2017; App. C.1): [N, in_channels, H, W] to logits [N, classes].

    Use `build`, which checks its arguments. Our text of the paper lost the widening; these are the values of its
    authors' library (JGU-VC/activation-pattern-analysis). Block i of b has `round(width * (first + i / b * widening))`
    planes, i = 1 .. b.

    * `"pyramidnet<d>"`, d = 6n + 2: stem 3x3 of 16 without ReLU, 3 stages of n blocks, 16 to 100 planes (α = 84), the
      second and third stage entered with stride 2. One ReLU a block, one at the end: (d - 2) / 2 + 1 unit groups.
      PyramidNet-110, 10 classes: 55 groups, 3,274 units, 3,904,446 parameters (as pytorchcv counts).
    * `"pyramidnet41"`, for Tiny ImageNet's 64 pixels: stem 5x5 of 64, ReLU, 3x3 max pooling with stride 2; bottlenecks
      [3, 4, 6], 32 to 128 planes and four times as many behind each. Two ReLUs a block, one in the stem, one at the
      end: 28 unit groups. 200 classes: 2,752 units, 1,811,742 parameters.

    All-active NAPL with residuals: a path that arrives at one of a block's C outputs came through the branch with
    probability 1/2, and surely if its channel is one of the C - C' that the block adds: 1/2 + (C - C') / (2C). The sum
    over blocks, times the ReLUs of a branch, plus those on every path: 28.8942 for -110 (1 at the end), 16.7140 for -41
    (stem and end: 2); one more if the max pooling of -41 is counted. Without residuals: the number of groups.
    All-active APL: 54.9996 for -110 at 32 pixels, 27.999996 for -41 at 64.

    Initial values as in `ResNet`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        width: float,
        tiny_imagenet: bool,
        classes: int,
        in_channels: int,
        residual: bool,
    ) -> None:
        super().__init__()
        stem, first, widening = (64, 32, 96) if tiny_imagenet else (16, 16, 84)
        planes_in = round(stem * width)
        self.conv1 = _convolution(in_channels, planes_in, kernel=5 if tiny_imagenet else 3)
        self.bn1 = nn.BatchNorm2d(planes_in)
        self.stem = nn.Sequential(*([nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)] if tiny_imagenet else []))
        stages: list[nn.Module] = []
        done = 0
        for number, count in enumerate(blocks):
            stage: list[nn.Module] = []
            for i in range(count):
                done += 1
                planes = round(width * (first + widening * done / sum(blocks)))
                stride = 2 if number > 0 and i == 0 else 1
                stage.append(PyramidBlock(planes_in, planes, stride, residual, tiny_imagenet))
                planes_in = 4 * planes if tiny_imagenet else planes
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(planes_in)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(planes_in, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, classes]."""
        x = self.stem(self.bn1(self.conv1(x)))
        x = self.relu(self.bn(self.layer3(self.layer2(self.layer1(x)))))
        return self.linear(torch.flatten(self.pool(x), 1))


class ToyBlock(nn.Module):
    """Conv-BN-ReLU plus its input, or without: one unit group of `planes` channels."""

    def __init__(self, planes: int, residual: bool) -> None:
        super().__init__()
        self.conv = _convolution(planes, planes)
        self.bn = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[N, planes, H, W] -> the same shape."""
        out = self.relu(self.bn(self.conv(x)))
        return out + x if self.residual else out


class ToyNet(nn.Module):
    """Constant width, one size, skips over single layers (App. B.4): [N, in_channels, H, W] to logits [N, classes].

    Use `build`, which checks its arguments. `"toynet<d>"` has d - 1 layers Conv3x3-BN-ReLU of 32 filters (times the
    width factor) and one fully connected layer behind global average pooling. The first layer has stride 2 (ours: the
    paper says that no later one strides), the d - 2 others a residual connection each.

    With w filters:

    * d - 1 unit groups of w units; parameters 9 w in_channels + 9 w² (d - 2) + 2 w (d - 1) + (w + 1) classes.
      ToyNet-20, 10 classes: 168,298.
    * all-active NAPL: 1 + (d - 2) / 2 = d / 2, for every path meets the first layer's unit and each other one with
      probability 1/2; without residuals d - 1. All-active APL of ToyNet-20 at 32 pixels: 18.9360.

    Initial values as in `ResNet`.
    """

    def __init__(self, layers: int, planes: int, *, classes: int, in_channels: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, planes, stride=2)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.layers = nn.Sequential(*(ToyBlock(planes, residual) for _ in range(layers - 1)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(planes, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, classes]."""
        x = self.layers(self.relu1(self.bn1(self.conv1(x))))
        return self.linear(torch.flatten(self.pool(x), 1))


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
        name: `"resnet<d>"` (v2, the paper's), `"resnet<d>v1"` or `"pyramidnet<d>"` with d = 6n + 2: 8, 14, 20, ..., 56,
            ..., 110; `"pyramidnet41"`; `"toynet<d>"`, d >= 3; `"torchvision/resnet50"` (25,557,032 parameters with 1000
            classes, 22,720 units in 49 groups, all-active NAPL 33, with max pooling 34); `"transformer<layers>"`, the
            paper's `"transformer6"`, for sentences.
        classes: number of logits, at least 2; of a transformer also the entries of its vocabulary.
        in_channels: channels of the images, at least 1; 3 for torchvision's. A transformer has none.
        width: factor of all planes (`round(16 * width)` times 1, 2, 4 in ResNets); at least one plane must remain.
            torchvision's has 1 only. A transformer has 512 × width numbers a token, a multiple of 16.
        residual: True is the paper's "Short", False its "NoShort": the same blocks without the additions. torchvision's
            and the transformer have True only.
        shortcut: where a ResNet's stage widens, "A" (every second pixel, zero channels) or "B" (1x1 convolution).
            Unused, but still checked, without residuals. The others have one kind each and want the default.

    Raises:
        SpecError: any argument outside these ranges, or torchvision is not installed; an unknown name comes with the
            nearest known ones.
    """
    check(name, width=width, residual=residual, shortcut=shortcut)
    if not _is_whole(classes) or classes < 2:
        raise SpecError(f"classes is {classes!r}; a classifier needs a whole number of at least 2.")
    if not _is_whole(in_channels) or in_channels < 1:
        raise SpecError(f"in_channels is {in_channels!r}; images have a whole number of channels, at least 1.")
    family, depth = _parse(name)
    if family == "transformer":
        return Transformer(depth, round(512 * width), classes=classes)
    if family == "torchvision/resnet":
        if in_channels != 3:
            raise SpecError(f"in_channels is {in_channels!r}; {name} takes images of 3 channels.")
        try:
            return import_torchvision().models.resnet50(weights=None, num_classes=classes)
        except ModuleNotFoundError:
            raise SpecError(
                f'{name} is torchvision\'s, and torchvision is not installed; pip install "nladv[book]" has it.'
            ) from None
    if family == "toynet":
        return ToyNet(depth - 1, round(32 * width), classes=classes, in_channels=in_channels, residual=residual)
    if family == "pyramidnet":
        tiny = depth == _TINY_DEPTH
        blocks = (3, 4, 6) if tiny else 3 * ((depth - 2) // 6,)
        return PyramidNet(
            blocks, width=width, tiny_imagenet=tiny, classes=classes, in_channels=in_channels, residual=residual
        )
    version = 1 if family == "resnetv1" else 2
    return ResNet(
        (depth - 2) // 6,
        round(16 * width),
        version=version,
        classes=classes,
        in_channels=in_channels,
        residual=residual,
        shortcut=shortcut,
    )


def check(name: str, *, width: float = 1.0, residual: bool = True, shortcut: str = "A") -> None:
    """Whether `build` knows this network; arguments as there.

    Raises:
        SpecError: it does not.
    """
    family, _ = _parse(name)
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not math.isfinite(width) or width <= 0:
        raise SpecError(f"width is {width!r}; the width factor must be a finite number above 0 (1.0 is the paper's).")
    if width > 64:  # a slip of the pen would fill the memory
        raise SpecError(f"width is {width!r}; the width factor may be at most 64 (1.0 is the paper's).")
    if family == "transformer" and 512 * width % MULTIPLE:
        raise SpecError(
            f"width is {width!r}, which makes {512 * width:g} numbers a token; {name} wants a multiple of "
            f"{MULTIPLE}, so use a width that is a multiple of {MULTIPLE / 512:g}."
        )
    narrowest = 32 if family == "toynet" else 16  # planes at width 1
    if round(narrowest * width) < 1:
        raise SpecError(f"width {width!r} leaves no channel; use at least {1 / narrowest} (one plane in {name}).")
    if not isinstance(residual, bool):
        raise SpecError(f"residual is {residual!r}; use True (the paper's Short) or False (NoShort).")
    if shortcut not in ("A", "B"):
        raise SpecError(f'shortcut is {shortcut!r}; use "A" (zero-padded identity) or "B" (1x1 convolution).')
    if shortcut == "B" and not family.startswith("resnet"):
        one = {"pyramidnet": "widens by zero channels only", "toynet": "widens nowhere"}.get(family, "is as it is")
        raise SpecError(f'shortcut is "B", but {name} {one}; leave it at "A".')
    if family == "transformer" and not residual:
        raise SpecError(f"residual is False, but {name} is known with its residual connections only; leave it out.")
    if family == "torchvision/resnet" and (width != 1 or not residual):
        given = f"width is {width!r}" if width != 1 else "residual is False"
        raise SpecError(f"{given}, but {name} is torchvision's as it is; leave width and residual out.")


def reads_text(name: str) -> bool:
    """Whether a network takes sentences, not images."""
    return _parse(name)[0] == "transformer"


def depth(name: str) -> int:
    """The depth in a name: 56 of "resnet56"; of a transformer the layers of its encoder, as many as of its decoder."""
    return _parse(name)[1]


def example(name: str, shape: Sequence[int]) -> tuple[int, ...] | tuple[Tensor, Tensor]:
    """What `linearize` and `path_length` take as example for a network.

    Args:
        name: of the network.
        shape: of an image, [C, H, W]; of a pair of sentences, their numbers of tokens.
    """
    if not reads_text(name):
        return tuple(shape)
    source, target = (torch.full((2, length), UNKNOWN, dtype=torch.int64) for length in shape)
    return source, target


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Depths that a near-name suggestion may offer; every other 6n + 2 is built just as well.
_USUAL_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 50, 56, 110)
_TINY_DEPTH = 41


def _parse(name: object) -> tuple[str, int]:
    """Family and depth of a network name."""
    if not isinstance(name, str):
        raise SpecError(f'a network is asked for by name, such as "resnet56", not by {name!r}.')
    if name == "torchvision/resnet50":
        return "torchvision/resnet", 50
    match = re.fullmatch(r"(resnet|pyramidnet|toynet|transformer)([1-9][0-9]{0,3})(v1)?", name)
    if match is None or (match[3] and match[1] != "resnet"):
        usual = [f"{family}{d}" for family in ("resnet", "pyramidnet", "toynet") for d in _USUAL_DEPTHS]
        usual += [f"resnet{d}v1" for d in _USUAL_DEPTHS] + [f"pyramidnet{_TINY_DEPTH}", "torchvision/resnet50"]
        usual += [f"transformer{layers}" for layers in range(1, 7)]
        near = difflib.get_close_matches(name.lower(), usual, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "for example resnet20, resnet56, resnet56v1."
        raise SpecError(
            f"unknown network {name!r}; names are resnet<d> (v2), resnet<d>v1 and pyramidnet<d> with d = 6n + 2, "
            f"pyramidnet{_TINY_DEPTH}, toynet<d>, transformer<layers>, torchvision/resnet50: {hint}"
        )
    family, depth = match[1] + (match[3] or ""), int(match[2])
    if family == "transformer":
        return family, depth
    if family == "toynet":
        if depth < 3:
            raise SpecError(f"{name!r} has depth {depth}; a ToyNet needs at least 3 layers: toynet3.")
        return family, depth
    if (family, depth) != ("pyramidnet", _TINY_DEPTH) and (depth < 8 or depth % 6 != 2):
        below = 8 if depth < 8 else depth - (depth - 2) % 6
        near = [f"{match[1]}{d}{match[3] or ''}" for d in ((8,) if depth < 8 else (below, below + 6))]
        raise SpecError(f"{name!r} has depth {depth}, which is not 6n + 2 with n >= 1; nearest: {' or '.join(near)}.")
    return family, depth


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that others trained and published; nothing of them is part of this project.

    `file` is its name in the folder `weights` of `$NLADV_DATA`, `net` the name for `build`, `data` the name for
    `datasets.load`. Input: images / 255, minus `mean`, divided by `std` (per channel). `accuracy`: per cent of
    the test images, final, as published. `hub`: whether torchvision fetches this file itself, into torch's hub folder.
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
    hub: bool = False


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
        # What `pretrained=True` gave when the paper was written; the SHA-256 begins as the file's name says it must.
        "torchvision/resnet50": PublishedWeights(
            file="resnet50-0676ba61.pth",
            sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
            url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
            net="torchvision/resnet50",
            data="imagenet",
            classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            accuracy=76.13,
            licence="BSD-3-Clause",
            source="torchvision, ResNet50_Weights.IMAGENET1K_V1, https://github.com/pytorch/vision",
            hub=True,
        ),
    }
)


def load_published(name: str, folder: str | Path | None = None) -> nn.Module:
    """One of `PUBLISHED`, with its weights, on the CPU and in eval mode.

    Args:
        name: a key of `PUBLISHED`, such as "akamaster/resnet20".
        folder: where the file lies; by default the folder `weights` of `$NLADV_DATA` or, for torchvision's, else where
            torchvision puts what it fetches (`$TORCH_HOME/hub/checkpoints`).

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
    if published.hub:
        where_to_put_it += ", or let torchvision.models.resnet50(weights='IMAGENET1K_V1') fetch it once"
    folders = [Path(folder)] if folder is not None else [root / "weights"] if root is not None else []
    if folder is None and published.hub:
        folders.append(Path(torch.hub.get_dir()) / "checkpoints")
    if not folders:
        raise DataError(f"{name}: NLADV_DATA is not set, so {published.file} cannot be found; {where_to_put_it}.")
    path = next((place / published.file for place in folders if (place / published.file).exists()), None)
    if path is None:
        missing = " and no ".join(str(place / published.file) for place in folders)
        raise DataError(f"{name}: there is no file {missing}; {where_to_put_it}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {path} cannot be read ({error.strerror}); {where_to_put_it}.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != published.sha256:
        raise DataError(
            f"{name}: {path} has SHA-256 {found}, expected {published.sha256}; it is damaged or another file: "
            f"delete it and download it again from {published.url}."
        )
    try:
        stored = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # on foreign bytes torch raises UnpicklingError, RuntimeError, EOFError, ...: undocumented
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: {path} has the published checksum, but this version of torch cannot read it ({reason}); use "
            "the version that constraints.txt names."
        ) from None
    stored = stored.get("state_dict", stored)
    net = build(published.net, classes=published.classes)
    net.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    return net.eval()
