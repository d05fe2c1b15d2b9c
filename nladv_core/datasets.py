"""The paper's data sets by name, as uint8 tensors that stay on the device, and one that needs no download.

* `"digits"`: handwritten digits on photographs, made here from what scikit-learn ships. Works offline.
* `"cifar10"`, `"cifar100"`, `"cinic10"`, `"tiny-imagenet"`: real images from Parquet packs or, for the last two, the
  official folders in the folder named by `NLADV_DATA` (format: data/README.md), or else from the official archives that
  `nladv download` fetches; decoded once into the cache. CINIC-10's validation split is not used (ours: the paper does
  not say); Tiny ImageNet's serves as test split, since the labels of its own are secret.
* `"imagenet"`: ILSVRC-2012 from packs or folders, 224 pixels from the middle of the image whose shorter side is 256
  (§4), decoded once into files of the cache that stay there (150,528 bytes an image: 193 GB for all); its validation
  split serves as test split.

Images are augmented and normalised in batch, on the device they lie on.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nladv_core import downloads, texts
from nladv_core.errors import DataError, SpecError
from nladv_core.image_files import MappedImages, Official, Source, decode, find_packs, folder_source, pack_source
from nladv_core.places import cache_dir, data_dir

_CIFAR_ROWS, _CINIC_ROWS = {"train": 50_000, "test": 10_000}, {"train": 90_000, "test": 90_000}
OFFICIAL: Mapping[str, Official] = MappingProxyType(
    {
        "cifar10": Official(title="CIFAR-10", classes=10, rows=_CIFAR_ROWS),
        "cifar100": Official(title="CIFAR-100", classes=100, rows=_CIFAR_ROWS),
        "cinic10": Official(title="CINIC-10", classes=10, rows=_CINIC_ROWS),
        "tiny-imagenet": Official(
            title="Tiny ImageNet", classes=200, rows={"train": 100_000, "test": 10_000}, side=64, test="val"
        ),
        "imagenet": Official(
            title="ImageNet",
            classes=1000,
            rows={"train": 1_281_167, "test": 50_000},
            side=224,
            resize=256,
            test="val",
            mapped=True,
        ),
    }
)
DATASETS = ("digits", *OFFICIAL)
# All that `load` knows: images, then texts.
NAMES = (*DATASETS, *texts.TEXTS)
DEFAULT_DIFFICULTY = 0.5


# ------------------------------------------------------------------------------------------------ the data as a value


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set, ready for the device. Make one with `load`.

    Attributes:
        name: what `load` was asked for.
        train_images, test_images: uint8 [N, 3, H, W], RGB, 0..255; ImageNet's stay in files (`MappedImages`, which is
            indexed and split like a tensor).
        train_labels, test_labels: int64 [N], 0 .. len(classes) - 1.
        classes: name of each label.
        mean, std: float32 [3], of the training images / 255, on the device of the images; std is the population's.
        checksum: SHA-256 (hex) over shapes, pixels and labels of both splits: equal exactly for equal data.
            (ImageNet's: over the sums of either split.)
        description: one sentence for a provenance line: what it is and how many rows.
        complete: whether every row of the official splits is there (generated data are always complete). Results on
            part of a data set are never results on that data set.
    """

    name: str
    train_images: Tensor | MappedImages
    train_labels: Tensor
    test_images: Tensor | MappedImages
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    checksum: str
    description: str
    complete: bool

    def to(self, device: str | torch.device) -> ImageData:
        """The same data on another device."""
        fields = ("train_images", "train_labels", "test_images", "test_labels", "mean", "std")
        return replace(self, **{field: getattr(self, field).to(device) for field in fields})

    def subset(self, train: int | None = None, test: int | None = None) -> ImageData:
        """The first `train` and `test` rows; None keeps all. Mean, std and checksum are those of the rows kept.

        Raises:
            SpecError: fewer than 1 row, or more than there are.
        """
        kept_train = _checked_count("train", train, len(self.train_labels), self.name)
        kept_test = _checked_count("test", test, len(self.test_labels), self.name)
        if (kept_train, kept_test) == (len(self.train_labels), len(self.test_labels)):
            return self
        return _bundle(
            self.name,
            _head(self.train_images, kept_train),
            self.train_labels[:kept_train].clone(),
            _head(self.test_images, kept_test),
            self.test_labels[:kept_test].clone(),
            classes=self.classes,
            description=f"{self.description.rstrip('.')}; of these the first {kept_train:,} and {kept_test:,}.",
            complete=False,
        )

    def hold_out(self, count: int) -> ImageData:
        """The last `count` training images in place of the test images; the others stay to be trained on.

        Raises:
            SpecError: no training image would be left, or fewer than one is asked for.
        """
        held_out = _checked_count("held_out", count, len(self.train_labels) - 1, self.name)
        if isinstance(self.train_images, MappedImages):
            raise SpecError(
                f"{self.name}: its images stay in files, of which none can be held out; leave held_out out."
            )
        images, labels = self.train_images.clone(), self.train_labels.clone()
        return _bundle(
            self.name,
            images[:-held_out],
            labels[:-held_out],
            images[-held_out:],
            labels[-held_out:],
            classes=self.classes,
            description=f"{self.description.rstrip('.')}; the last {held_out:,} training images are held out and "
            "judged.",
            complete=False,
        )


def _head(images: Tensor | MappedImages, count: int) -> Tensor | MappedImages:
    """The first images; of tensors a copy, so that the rest can be freed."""
    return images.head(count) if isinstance(images, MappedImages) else images[:count].clone()


def _checked_count(split: str, count: int | None, available: int | None, name: str) -> int:
    if count is None and available is not None:
        return available
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SpecError(f"{name}: {split}={count!r} images were asked for; give a whole number of at least 1.")
    if available is not None and count > available:
        raise SpecError(
            f"{name}: {split}={count} images were asked for, but only {available} are there; ask for fewer."
        )
    return count


def _bundle(
    name: str,
    train_images: Tensor | MappedImages,
    train_labels: Tensor,
    test_images: Tensor | MappedImages,
    test_labels: Tensor,
    *,
    classes: Sequence[str],
    description: str,
    complete: bool,
    summaries: Sequence[_Summary] | None = None,
) -> ImageData:
    if summaries is None and (isinstance(train_images, MappedImages) or isinstance(test_images, MappedImages)):
        summaries = [_Summary.of(train_images, train_labels), _Summary.of(test_images, test_labels)]
    digest = hashlib.sha256()
    if summaries is None:
        for tensor in (train_images, train_labels, test_images, test_labels):
            _add(digest, tensor)
    else:
        digest.update("".join(summary.sha256 for summary in summaries).encode())
    mean, std = _moments(_values(train_images) if summaries is None else summaries[0].values)
    return ImageData(
        name,
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes=tuple(classes),
        mean=mean.to(train_images.device),
        std=std.to(train_images.device),
        checksum=digest.hexdigest(),
        description=description,
        complete=complete,
    )


@dataclass(frozen=True)
class _Summary:
    """Of a split that is too large to be read at each start: SHA-256 of images and labels, number of each value."""

    sha256: str
    values: Tensor

    @classmethod
    def of(cls, images: Tensor | MappedImages, labels: Tensor) -> _Summary:
        digest = hashlib.sha256()
        _add(digest, images)
        _add(digest, labels)
        return cls(digest.hexdigest(), _values(images))


def _add(digest: hashlib._Hash, tensor: Tensor | MappedImages) -> None:
    digest.update(repr(tuple(tensor.shape)).encode())
    for part in tensor.split(4096):
        digest.update(part.cpu().contiguous().numpy().data)


def _values(images: Tensor | MappedImages) -> Tensor:
    """How often each of the 256 values occurs in each channel: int64 [3, 256]."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(4096):  # counting needs several times the memory of what is counted
        counts += torch.stack([torch.bincount(c.flatten().cpu(), minlength=256) for c in part.unbind(1)])
    return counts


def _moments(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of images / 255, exact: sums over the 256 possible values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(1, keepdim=True).double()
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().float()


def load(
    name: str,
    *,
    size: int | None = None,
    difficulty: float | None = None,
    train: int | None = None,
    test: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageData | texts.TextData:
    """A data set by name.

    Args:
        name: "digits", "cifar10", "cifar100", "cinic10", "tiny-imagenet" or "imagenet"; or a text, see `texts.load`, of
            which `size` is that of the vocabulary, and `train` and `test` count pairs of sentences.
        size: side of the images in pixels. digits: 8 to 128, default 16. The others have one size each: 32 for CIFAR
            and CINIC-10, 64 for Tiny ImageNet, 224 for ImageNet.
        difficulty: digits only, 0 (easy) to 1 (hard), default 0.5; see `embedded_digits`.
        train, test: number of images. digits: any, default 6,000 and 2,000. The others: the first so many rows, default
            all. Rows stand as in the packs or in CIFAR's archives; those of folders and of the other archives go round
            the classes in turn, so that the first N are a fair subset.
        device: where the tensors go.

    Raises:
        SpecError: unknown name, a device that is not there, or an argument out of range.
        DataError: data not there, or a pack that is damaged or not in the documented format.
    """
    device = checked_device(device)
    if name not in NAMES:
        near = difflib.get_close_matches(str(name).lower(), NAMES, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(NAMES)}."
        raise SpecError(f"unknown data set {name!r}; {hint}")
    if name in texts.TEXTS:
        if difficulty is not None:
            raise SpecError(
                f"{name}: difficulty={difficulty!r} was given, but only digits have that knob; leave it out."
            )
        return texts.load(name, size=size, train=train, test=test).to(device)
    if name == "digits":
        data = embedded_digits(
            size=16 if size is None else size,
            difficulty=DEFAULT_DIFFICULTY if difficulty is None else difficulty,
            train=6000 if train is None else train,
            test=2000 if test is None else test,
        )
        return data.to(device)
    side = OFFICIAL[name].side
    if size not in (None, side):
        raise SpecError(f"{name}: size={size!r} was asked for, but its images are {side} pixels; leave size out.")
    if difficulty is not None:
        raise SpecError(f"{name}: difficulty={difficulty!r} was given, but only digits have that knob; leave it out.")
    found = _mapped(name, train, test) if OFFICIAL[name].mapped else _resident(name).subset(train, test)
    return found.to(device)


def checked_device(device: str | torch.device) -> torch.device:
    """A device that can be used.

    Raises:
        SpecError: a device that is unknown or not there.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        raise SpecError(f"device is {device!r}, which is not available here; use 'auto', 'cpu' or 'cuda'") from None
    return chosen


# --------------------------------------------------------------------------------------- augmentation, normalisation


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability one half (PAPER §4: flip only, no crop).

    Args:
        images: [N, C, H, W], any dtype; not modified.
        generator: on the same device; the only source of randomness.
    """
    coins = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(coins[:, None, None, None], images.flip(3), images)


def normalize(
    images: Tensor,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(images / 255 - mean) / std per channel, computed in float32 and returned as `dtype`.

    Args:
        images: uint8 [N, C, H, W].
        mean, std: C values each, of images / 255; tensors on the images' device cost no transfer.
        dtype: floating-point type of the result.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device)[:, None, None]
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device)[:, None, None]
    return ((images.to(torch.float32) / 255 - mean) / std).to(dtype)


# --------------------------------------------------------------------------------------------- digits on photographs

# Columns of the photographs, as shares of their width, from which either split cuts its patches. The test split has
# its own photograph regions and its own handwritten digits, so nothing it shows was seen in training.
_REGIONS = {"train": (0.0, 0.7), "test": (0.7, 1.0)}
_TEST_SHARE = 0.3
_SEEDS = {"split": 1, "train": 2, "test": 3}
_RENDER_BATCH = 4096  # bounds the memory of rendering, not its result


def embedded_digits(*, size: int, difficulty: float, train: int, test: int) -> ImageData:
    """Handwritten digits, drawn in random colours over random patches of two photographs: RGB, 10 classes.

    The recipe of MNIST-M (Ganin et al. 2016) on data that scikit-learn ships: the 1,797 digits of the UCI optical
    recognition set (8 x 8; Alpaydin and Kaynak 1998) and two sample photographs. Each digit is enlarged, put through a
    random affine map and drawn over a patch: `(1 - opacity) * patch + opacity * (grey ± digit / 2)`, with a random sign
    for each colour channel. (MNIST-M takes the absolute difference of patch and digit, which wipes the digit out on
    grey patches.) The mean over the signs is the same for every class, so a linear classifier of the pixels stays near
    20 % where a small ResNet exceeds 90 %.

    About 30 % of the handwritten digits of each class appear in the test split only; training patches come from the
    left 70 % of the photographs, test patches from the rest. Every digit of a split is used once before
    any is used again, each time with a new map, patch and colour. Row order is random. The same arguments give the same
    images: nothing depends on, or changes, any global random state; the test images do not depend on the number of
    training images. Mirrored digits are not digits: train without flips.

    `difficulty` d mixes all three of, linearly between d = 0 and d = 1:

    * contrast: opacity from 0.8 to 0.45;
    * jitter: rotation up to ±5° to ±20°, scale 0.9 ± 0.05 to ± 0.2, shear up to ±0.05 to ±0.25, shift up to ±4 % to
      ±12 % of the image's side;
    * clutter: patches of 12 to 40 photograph pixels a side, brought to the image's size: the larger, the busier.

    Photographs, as the README of scikit-learn's `datasets/images` states: `china.jpg` by danielbuechele and
    `flower.jpg`, attributed to danielbuechele there too, with links to the Flickr page of vultilion; both Creative
    Commons Attribution 2.0 (https://creativecommons.org/licenses/by/2.0/).

    At d = 0 / 0.5 / 1, 16 pixels, 6,000 images and six epochs, a ResNet-8 reaches about 99 / 94 / 76 %.

    Args:
        size: side in pixels, 8 to 128.
        difficulty: 0 to 1.
        train, test: number of images, at least 1.

    Raises:
        SpecError: an argument out of range.
        DataError: scikit-learn is not installed.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 128:
        raise SpecError(f"digits: size={size!r} pixels was asked for; give a whole number from 8 to 128.")
    if isinstance(difficulty, bool) or not isinstance(difficulty, (int, float)) or not 0 <= difficulty <= 1:
        raise SpecError(f"digits: difficulty={difficulty!r} was asked for; give a number from 0 (easy) to 1 (hard).")
    counts = {
        "train": _checked_count("train", train, None, "digits"),
        "test": _checked_count("test", test, None, "digits"),
    }
    digits, labels, photographs = _scikit_learn_originals()
    images, targets = {}, {}
    for split, rows in _split_originals(labels).items():
        generator = torch.Generator().manual_seed(_SEEDS[split])
        chosen = rows[_in_rounds(len(rows), counts[split], generator)]
        uniforms = torch.rand(counts[split], 12, generator=generator, dtype=torch.float64)
        region = [_columns(photograph, *_REGIONS[split]) for photograph in photographs]
        images[split] = torch.cat(
            [
                _render(
                    digits[chosen[i : i + _RENDER_BATCH]],
                    uniforms[i : i + _RENDER_BATCH],
                    region,
                    size,
                    float(difficulty),
                )
                for i in range(0, counts[split], _RENDER_BATCH)
            ]
        )
        targets[split] = labels[chosen]
    return _bundle(
        "digits",
        images["train"],
        targets["train"],
        images["test"],
        targets["test"],
        classes=[str(digit) for digit in range(10)],
        description=f"Handwritten digits on photographs, {size} px, difficulty {difficulty:g}, "
        f"{counts['train']:,} training and {counts['test']:,} test images.",
        complete=True,
    )


def _scikit_learn_originals() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Digits [1797, 1, 8, 8] and photographs [3, H, W], float64 in [0, 1], and labels [1797].

    What `sklearn.datasets.load_digits` and `load_sample_images` return (a test compares), read from the same files:
    importing scikit-learn takes seconds, and every worker process would.
    """
    import numpy as np
    from PIL import Image

    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "digits are made from data that scikit-learn ships, and it is not installed; install scikit-learn."
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets"
    try:
        table = np.loadtxt(folder / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
        photographs = [np.array(Image.open(folder / "images" / f"{name}.jpg")) for name in ("china", "flower")]
    except (OSError, ValueError) as error:
        raise DataError(
            f"digits are made from files in {folder} that this installation of scikit-learn lacks or has changed "
            f"({error}); install the version that constraints.txt names."
        ) from None
    digits, labels = torch.from_numpy(table[:, :64]), torch.from_numpy(table[:, 64].copy())
    return (
        digits.reshape(-1, 1, 8, 8).double() / 16,
        labels,
        [torch.from_numpy(photograph).permute(2, 0, 1).double() / 255 for photograph in photographs],
    )


def _split_originals(labels: Tensor) -> dict[str, Tensor]:
    """Row numbers of the handwritten digits of either split, class by class."""
    generator = torch.Generator().manual_seed(_SEEDS["split"])
    rows: dict[str, list[Tensor]] = {"train": [], "test": []}
    for label in range(10):
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(_TEST_SHARE * len(members))
        rows["test"].append(members[:held_out])
        rows["train"].append(members[held_out:])
    return {split: torch.cat(parts) for split, parts in rows.items()}


def _in_rounds(available: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `available`, in random order, each used once before any is used again."""
    rounds = [torch.randperm(available, generator=generator) for _ in range(math.ceil(count / available))]
    return torch.cat(rounds)[:count]


def _columns(photograph: Tensor, start: float, stop: float) -> Tensor:
    width = photograph.shape[2]
    return photograph[:, :, round(start * width) : round(stop * width)]


def _render(digits: Tensor, uniforms: Tensor, photographs: list[Tensor], size: int, difficulty: float) -> Tensor:
    """One image for each digit [N, 1, 8, 8] and row of twelve numbers in [0, 1): uint8 [N, 3, size, size].

    In float64, so that no two machines round a pixel differently for want of digits.
    """

    def between(easy: float, hard: float) -> float:
        return easy + (hard - easy) * difficulty

    signed = 2 * uniforms - 1
    angle = math.radians(between(5, 20)) * signed[:, 0]
    scale = 0.9 + between(0.05, 0.2) * signed[:, 1]
    shear = between(0.05, 0.25) * signed[:, 2]
    shift = 2 * between(0.04, 0.12) * signed[:, 3:5]  # the sampling grid spans [-1, 1]
    opacity = between(0.8, 0.45)
    side = between(12, 40)

    # Rotation, shear and scale as the inverse map that sampling needs: from the image back to the handwritten digit.
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack([cos, sin + shear * cos, -sin, cos - shear * sin], dim=1).view(-1, 2, 2)
    offset = -(matrix @ shift[:, :, None])
    grid = F.affine_grid(torch.cat([matrix, offset], dim=2), [len(digits), 1, size, size], align_corners=False)
    drawing = F.grid_sample(digits, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp_(0, 1)

    patches = torch.empty(len(digits), 3, size, size, dtype=torch.float64)
    photograph_of = (uniforms[:, 5] * len(photographs)).long()
    for number, photograph in enumerate(photographs):
        members = torch.nonzero(photograph_of == number).flatten()
        patches[members] = _cut_patches(photograph, uniforms[members, 6:8], side, size)

    sign = torch.where(uniforms[:, 8:11] < 0.5, -0.5, 0.5)[:, :, None, None]
    image = (1 - opacity) * patches + opacity * (0.5 + sign * drawing)
    return image.mul_(255).round_().to(torch.uint8)


def _cut_patches(photograph: Tensor, corners: Tensor, side: float, size: int) -> Tensor:
    """Square patches of `side` photograph pixels, resampled to [N, 3, size, size].

    `corners` [N, 2] in [0, 1) places the upper left corner (x, y) anywhere that keeps the patch inside the photograph.
    """
    blur = max(1, round(side / size))  # a box as wide as the sampling step, against aliasing
    height, width = photograph.shape[1:]
    soft = F.avg_pool2d(photograph[None], blur, stride=1)
    room = torch.tensor([width - side, height - side], dtype=torch.float64)
    # Pixel centres of the patch in photograph pixels, then in the blurred image's [-1, 1] (align_corners=True).
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size * side - blur / 2
    x = (corners[:, :1] * room[0] + steps) / (soft.shape[3] - 1) * 2 - 1
    y = (corners[:, 1:] * room[1] + steps) / (soft.shape[2] - 1) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    return F.grid_sample(
        soft.expand(len(corners), -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=True
    )


# ------------------------------------------------------------------------------------ real images, decoded only once


def _source(name: str) -> tuple[str, Callable[[], Source | _Decoded]]:
    """A text that changes with the files of a data set, and how to read them: packs, official folders, or an archive.

    Raises:
        DataError: nothing there, or not as documented.
    """
    official, root = OFFICIAL[name], data_dir()
    help_ = _help(name)
    archive = downloads.place(name) if name in downloads.ARCHIVES else None
    folder = None if root is None else root / name
    packed = folder is not None and any(folder.glob("*train*.parquet"))
    unpacked = None
    if folder is not None and name in _FOLDERS:
        unpacked = next((path for path in (folder, folder / "tiny-imagenet-200") if (path / "train").is_dir()), None)
    if archive is not None and archive.is_file() and not packed and unpacked is None:
        downloads.check(name, archive)
        return f"{archive.name}\n{_file_sum(archive)}\n", lambda: downloads.read(name, archive, official)
    reason = absent(name)
    if reason is not None or folder is None:
        raise DataError(reason)
    if unpacked is not None and not packed:
        source, fingerprint = folder_source(name, unpacked, official, help_)
        return fingerprint, lambda: source
    packs = find_packs(name, folder, official, help_)
    paths = [path for found in packs.values() for path in found]
    told = _file_end if official.mapped else _listed_sum
    fingerprint = "".join(f"{path.name}\n{path.stat().st_size}\n{told(path)}\n" for path in paths)
    return fingerprint, lambda: pack_source(packs, official)


def absent(name: str) -> str | None:
    """Why a data set is not there at all, in one sentence; None if there is an archive or a folder of it.

    Nothing is read, so `load` may still refuse what is there.
    """
    if name in texts.TEXTS:
        return texts.absent(name)
    if name == "digits" or (name in downloads.ARCHIVES and downloads.place(name).is_file()):
        return None
    root = data_dir()
    if root is None:
        return f"{name} is not there, for NLADV_DATA is not set; {_help(name)}."
    if not (root / name).is_dir():
        return f"{name} is not there: {root / name} is not a folder; {_help(name)}."
    return None


# Sets whose official form is folders of image files.
_FOLDERS = ("cinic10", "tiny-imagenet", "imagenet")


def _help(name: str) -> str:
    """What to do when a data set is not there."""
    test = OFFICIAL[name].test
    ways = [f"put {name}-train-*.parquet and {name}-{test}.parquet into a folder {name}"]
    if name in _FOLDERS:
        inside = "images" if name == "tiny-imagenet" else "class folders"
        ways[0] = (
            f"put {name}-train-*.parquet and {name}-{test}.parquet, or the official folders train and {test} with "
        )
        ways[0] += f"their {inside}, into a folder {name}"
    ways[0] += ", set the environment variable NLADV_DATA to the folder that holds it (format: data/README.md)"
    if name in downloads.ARCHIVES:
        ways.append(f"run `nladv download {name}`")
    return ", ".join([*ways, 'or use "digits", which works offline'])


def _file_sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions or copy it again.") from None


def _listed_sum(path: Path) -> str:
    """The sum of a file, which must be the one that a `SHA256SUMS` in its folder or the one above says, if one does."""
    found = _file_sum(path)
    for folder in (path.parent, path.parent.parent):
        listed = folder / "SHA256SUMS"
        try:
            lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
        except (OSError, UnicodeDecodeError):
            raise DataError(f"{listed} cannot be read; restore it or take it away.") from None
        for line in lines:
            expected, _, name = line.partition(" ")
            name = name.lstrip(" *").removeprefix("./")  # as sha256sum writes them, of text and of binary files
            if name == path.relative_to(folder).as_posix() and expected != found:
                raise DataError(
                    f"{path} has SHA-256 {found}, but {listed} says {expected}: it is damaged or another file; copy it "
                    "again."
                )
    return found


def _file_end(path: Path) -> str:
    """The sum of the last 64 KiB, where a Parquet file says what it holds: for packs too large to be read each time."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions or copy it again.") from None


_Decoded = tuple[dict[str, Tensor], tuple[str, ...]]


def _resident(name: str) -> ImageData:
    """A set from packs, folders or the downloaded official archive, by way of the cache.

    The cache file is named after names and contents of all files, so that another or a changed one is noticed.
    """
    official = OFFICIAL[name]
    fingerprint, read = _source(name)
    key = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    tensors, classes = _decoded(
        cache_dir() / "datasets" / f"{name}-{key}.safetensors", lambda: _tensors(read(), official)
    )
    counts = {split: len(tensors[f"{split}_labels"]) for split in official.rows}
    return _bundle(
        name,
        tensors["train_images"],
        tensors["train_labels"],
        tensors["test_images"],
        tensors["test_labels"],
        classes=classes,
        description=_description(official, counts),
        complete=counts == official.rows,
    )


def _description(official: Official, counts: Mapping[str, int]) -> str:
    lacking = "" if counts == official.rows else f" (of {official.rows['train']:,} and {official.rows['test']:,})"
    test = "test" if official.test == "test" else "validation"
    return f"{official.title}, {counts['train']:,} training and {counts['test']:,} {test} images{lacking}."


def _tensors(source: Source | _Decoded, official: Official) -> _Decoded:
    """All images of a source, decoded."""
    if not isinstance(source, Source):
        return source
    tensors: dict[str, Tensor] = {}
    for split, count in source.counts.items():
        images = torch.empty(count, 3, official.side, official.side, dtype=torch.uint8)

        def keep(start: int, lot: Tensor, images: Tensor = images) -> None:
            images[start : start + len(lot)] = lot

        tensors[f"{split}_labels"] = torch.tensor(decode(source.rows(split), official, keep))
        tensors[f"{split}_images"] = images
    return tensors, source.classes


def _decoded(cached: Path, read: Callable[[], _Decoded]) -> _Decoded:
    """Images and labels of both splits and the class names, decoded at most once however many processes ask."""
    with _cache(cached.with_suffix(".lock")):
        stored = _read_cache(cached, "classes")
        if stored is None:
            stored = read()
            _write_cache(cached, stored[0], "classes", stored[1])
        return stored[0], tuple(stored[1])


@contextmanager
def _cache(lock: Path) -> Iterator[None]:
    """The folder of prepared images, locked; what the disk refuses becomes one sentence."""
    from filelock import FileLock

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        raise DataError(
            f"the decoded images cannot be kept in {lock.parent} ({error.strerror or error}); make room there or set "
            "NLADV_CACHE to a folder that can be written."
        ) from None


def _read_cache(cached: Path, told: str) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors and what the metadata tell (JSON); None if there is none, or one that something cut short or changed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(cached, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            value, checksum = json.loads(file.metadata()[told])
            return (tensors, value) if checksum == _sum(tensors, value) else None
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # it can always be made again


def _sum(tensors: Mapping[str, Tensor], value: Any) -> str:
    """SHA-256 of all that a file of the cache holds."""
    digest = hashlib.sha256(json.dumps(value).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} ".encode())
        _add(digest, tensor)
    return digest.hexdigest()


def _write_cache(cached: Path, tensors: dict[str, Tensor], told: str, value: Any) -> None:
    """Atomic: written under another name, synced, then renamed. `value` is what `_read_cache` gives back as `told`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = cached.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, partial, metadata={told: json.dumps([value, _sum(tensors, value)])})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(cached)
    except SafetensorError as error:  # its own for what the disk refuses
        raise OSError(str(error)) from None
    finally:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- real images that fill a disk


def _mapped(name: str, train: int | None, test: int | None) -> ImageData:
    """A set whose decoded images stay in files of the cache; no more of it is decoded than is asked for."""
    official = OFFICIAL[name]
    fingerprint, read = _source(name)
    source = read()
    assert isinstance(source, Source)
    kept = {
        split: _checked_count(split, count, source.counts[split], name)
        for split, count in (("train", train), ("test", test))
    }
    found = {split: _prepared(name, split, source, fingerprint, kept[split]) for split in kept}
    description = _description(official, source.counts)
    if kept != source.counts:
        description = f"{description.rstrip('.')}; of these the first {kept['train']:,} and {kept['test']:,}."
    return _bundle(
        name,
        *found["train"][:2],
        *found["test"][:2],
        classes=source.classes,
        description=description,
        complete=kept == official.rows,
        summaries=[summary for _, _, summary in found.values()],
    )


def _prepared(
    name: str, split: str, source: Source, fingerprint: str, count: int
) -> tuple[MappedImages, Tensor, _Summary]:
    """The first `count` images of a split in their file, made at most once; beside it labels and summary.

    The pixels are written first: whoever sees the labels sees them whole.
    """
    official = OFFICIAL[name]
    key = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    pixels = cache_dir() / "datasets" / f"{name}-{split}-{count}-{key}.pixels"
    labels = pixels.with_suffix(".safetensors")
    shape = (count, 3, official.side, official.side)
    with _cache(pixels.with_suffix(".lock")):
        whole = pixels.is_file() and pixels.stat().st_size == math.prod(shape)
        stored = _read_cache(labels, "sha256") if whole else None
        if stored is None:
            free = shutil.disk_usage(pixels.parent).free
            if math.prod(shape) > free:
                raise DataError(
                    f"{name}: {count:,} images take {math.prod(shape) / 1e9:.1f} GB in {pixels.parent}, where "
                    f"{free / 1e9:.1f} GB are free; make room, set NLADV_CACHE to a larger disk, or ask for fewer "
                    f"images ({split})."
                )
            partial = pixels.with_suffix(f".{os.getpid()}.tmp")
            digest, values = hashlib.sha256(repr(shape).encode()), torch.zeros(3, 256, dtype=torch.int64)
            try:
                with partial.open("wb") as file, _progress(f"{name} {split}", count) as bar:

                    def keep(start: int, lot: Tensor) -> None:
                        nonlocal values
                        content = lot.contiguous().numpy().data
                        file.write(content)
                        digest.update(content)
                        values = values + _values(lot)
                        bar(len(lot))

                    rows = itertools.islice(source.rows(split), count)
                    found = torch.tensor(decode(rows, official, keep))
                    file.flush()
                    os.fsync(file.fileno())
                labels.unlink(missing_ok=True)
                partial.replace(pixels)
            finally:
                partial.unlink(missing_ok=True)
            _add(digest, found)
            stored = {"labels": found, "values": values}, digest.hexdigest()
            _write_cache(labels, stored[0], "sha256", stored[1])
        (tensors, sha256) = stored
        return MappedImages(pixels, shape), tensors["labels"], _Summary(sha256, tensors["values"])


@contextmanager
def _progress(what: str, count: int) -> Iterator[Callable[[int], object]]:
    """A bar over images on standard error, where somebody looks."""
    if not sys.stderr.isatty() or os.environ.get("NLADV_PROGRESS", "") == "0":
        yield lambda more: None
        return
    from tqdm import tqdm

    with tqdm(total=count, desc=f"decoding {what}", unit="image", leave=False) as bar:
        yield bar.update
