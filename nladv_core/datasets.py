"""The paper's data sets by name, as uint8 tensors that stay on the device, and one that needs no download.

* `"digits"`: handwritten digits on photographs, made here from what scikit-learn ships. Works offline.
* `"cifar10"`, `"cifar100"`: real images from Parquet packs in the folder named by `NLADV_DATA` (format:
  data/README.md), or else from the official archives that `nladv download` fetches; decoded once into the cache.

Images are augmented and normalised in batch, on the device they lie on.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nladv_core import downloads
from nladv_core.errors import DataError, SpecError
from nladv_core.places import cache_dir, data_dir

DATASETS = ("digits", "cifar10", "cifar100")
DEFAULT_DIFFICULTY = 0.5


# ------------------------------------------------------------------------------------------------ the data as a value


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set, ready for the device. Make one with `load`.

    Attributes:
        name: what `load` was asked for.
        train_images, test_images: uint8 [N, 3, H, W], RGB, 0..255.
        train_labels, test_labels: int64 [N], 0 .. len(classes) - 1.
        classes: name of each label.
        mean, std: float32 [3], of the training images / 255, on the device of the images; std is the population's.
        checksum: SHA-256 (hex) over shapes, pixels and labels of both splits: equal exactly for equal data.
        description: one sentence for a provenance line: what it is and how many rows.
        complete: whether every row of the official splits is there (generated data are always complete). Results on
            part of a data set are never results on that data set.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
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
        return _bundle(  # clones, so that the rows left out can be freed
            self.name,
            self.train_images[:kept_train].clone(),
            self.train_labels[:kept_train].clone(),
            self.test_images[:kept_test].clone(),
            self.test_labels[:kept_test].clone(),
            classes=self.classes,
            description=f"{self.description.rstrip('.')}; of these the first {kept_train:,} and {kept_test:,}.",
            complete=False,
        )


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
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    classes: Sequence[str],
    description: str,
    complete: bool,
) -> ImageData:
    digest = hashlib.sha256()
    for tensor in (train_images, train_labels, test_images, test_labels):
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    mean, std = _moments(train_images)
    return ImageData(
        name,
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes=tuple(classes),
        mean=mean,
        std=std,
        checksum=digest.hexdigest(),
        description=description,
        complete=complete,
    )


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of images / 255, exact: sums over the 256 possible values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = [torch.bincount(channel.flatten().cpu(), minlength=256).double() for channel in images.unbind(1)]
    weights = torch.stack([share / share.sum() for share in shares])
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.float().to(images.device), variance.sqrt().float().to(images.device)


def load(
    name: str,
    *,
    size: int | None = None,
    difficulty: float | None = None,
    train: int | None = None,
    test: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageData:
    """A data set by name.

    Args:
        name: "digits", "cifar10" or "cifar100".
        size: side of the images in pixels. digits: 8 to 128, default 16. CIFAR: 32, its only size.
        difficulty: digits only, 0 (easy) to 1 (hard), default 0.5; see `embedded_digits`.
        train, test: number of images. digits: any, default 6,000 and 2,000. CIFAR: the first so many rows in the order
            of the packs, default all.
        device: where the tensors go.

    Raises:
        SpecError: unknown name or an argument out of range.
        DataError: data not there, or a pack that is damaged or not in the documented format.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name).lower(), DATASETS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(DATASETS)}."
        raise SpecError(f"unknown data set {name!r}; {hint}")
    if name == "digits":
        data = embedded_digits(
            size=16 if size is None else size,
            difficulty=DEFAULT_DIFFICULTY if difficulty is None else difficulty,
            train=6000 if train is None else train,
            test=2000 if test is None else test,
        )
        return data.to(device)
    if size not in (None, 32):
        raise SpecError(f"{name}: size={size!r} was asked for, but its images are 32 pixels; leave size out.")
    if difficulty is not None:
        raise SpecError(f"{name}: difficulty={difficulty!r} was given, but only digits have that knob; leave it out.")
    return _cifar(name).subset(train, test).to(device)


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


# ------------------------------------------------------------------------------------------- real images from packs


@dataclass(frozen=True, kw_only=True)
class _Official:
    """What the whole of a published data set holds."""

    title: str
    classes: int
    rows: dict[str, int]
    side: int = 32


_OFFICIAL = {
    "cifar10": _Official(title="CIFAR-10", classes=10, rows={"train": 50_000, "test": 10_000}),
    "cifar100": _Official(title="CIFAR-100", classes=100, rows={"train": 50_000, "test": 10_000}),
}


def _cifar(name: str) -> ImageData:
    """A set from its packs, or else from the downloaded official archive, by way of the cache.

    Rows of an archive stand in the official order, those of packs in theirs (files by name, then rows as stored). The
    cache file is named after names and contents of all files, so that another or a changed one is noticed.
    """
    official = _OFFICIAL[name]
    key, root, archive = hashlib.sha256(), data_dir(), downloads.place(name)
    if archive.is_file() and (root is None or not (root / name).is_dir()):
        downloads.check(name, archive)
        key.update(f"{archive.name}\n{_file_sum(archive)}\n".encode())
        read: Callable[[], _Decoded] = lambda: downloads.read(name, archive)
    else:
        packs = _find_packs(name)
        for path in packs["train"] + packs["test"]:
            key.update(f"{path.name}\n{path.stat().st_size}\n{_file_sum(path)}\n".encode())
        read = lambda: _read_packs(packs, official)
    cached = cache_dir() / "datasets" / f"{name}-{key.hexdigest()[:16]}.safetensors"
    tensors, classes = _decoded(cached, read)
    counts = {split: len(tensors[f"{split}_labels"]) for split in official.rows}
    complete = counts == official.rows
    lacking = "" if complete else f" (of {official.rows['train']:,} and {official.rows['test']:,})"
    return _bundle(
        name,
        tensors["train_images"],
        tensors["train_labels"],
        tensors["test_images"],
        tensors["test_labels"],
        classes=classes,
        description=f"{official.title}, {counts['train']:,} training and {counts['test']:,} test images{lacking}.",
        complete=complete,
    )


def _find_packs(name: str) -> dict[str, list[Path]]:
    """The Parquet files of either split, by name."""
    root = data_dir()
    help_ = (
        f"put {name}-train-*.parquet and {name}-test.parquet into a folder {name}, set the environment variable "
        f"NLADV_DATA to the folder that holds it (format: data/README.md), run `nladv download {name}`, or use "
        '"digits", which works offline'
    )
    if root is None:
        raise DataError(f"{name} is not there, for NLADV_DATA is not set; {help_}.")
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{name} is not there: {folder} is not a folder; {help_}.")
    files = sorted(folder.glob("*.parquet"))
    packs = {split: [path for path in files if split in path.name] for split in ("train", "test")}
    for split, paths in packs.items():
        if not paths:
            raise DataError(f"{name} is not there: {folder} holds no file *{split}*.parquet; {help_}.")
    return packs


def _file_sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions or copy it again.") from None


_Decoded = tuple[dict[str, Tensor], tuple[str, ...]]


def _decoded(cached: Path, read: Callable[[], _Decoded]) -> _Decoded:
    """Images and labels of both splits and the class names, decoded at most once however many processes ask."""
    from filelock import FileLock

    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_suffix(".lock")):
            stored = _read_cache(cached)
            if stored is None:
                stored = read()
                _write_cache(cached, *stored)
            return stored
    except OSError as error:
        raise DataError(
            f"the decoded images cannot be kept in {cached.parent} ({error.strerror or error}); make room there or set "
            "NLADV_CACHE to a folder that can be written."
        ) from None


def _read_cache(cached: Path) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """None if there is none, or one that something cut short: it can always be made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(cached, framework="pt") as file:
            classes = tuple(json.loads(file.metadata()["classes"]))
            return {key: file.get_tensor(key) for key in file.keys()}, classes  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, SafetensorError):
        return None


def _write_cache(cached: Path, tensors: dict[str, Tensor], classes: tuple[str, ...]) -> None:
    """Atomic: written under another name, synced, then renamed."""
    from safetensors.torch import save_file

    partial = cached.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, partial, metadata={"classes": json.dumps(classes)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(cached)
    finally:
        partial.unlink(missing_ok=True)


def _read_packs(packs: dict[str, list[Path]], official: _Official) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors: dict[str, Tensor] = {}
    names: dict[Path, tuple[str, ...] | None] = {}
    for split, paths in packs.items():
        parts = []
        for path in paths:
            images, labels, names[path] = _read_pack(path, official)
            parts.append((images, labels))
        tensors[f"{split}_images"] = torch.cat([images for images, _ in parts])
        tensors[f"{split}_labels"] = torch.cat([labels for _, labels in parts])
    first = next(iter(names.values()))
    for path, found in names.items():
        if found != first:
            raise DataError(
                f"{path} names its classes otherwise than the other packs beside it; the packs must be of one set."
            )
    return tensors, first or tuple(str(label) for label in range(official.classes))


def _read_pack(path: Path, official: _Official) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Images uint8 [N, 3, side, side], labels int64 [N] and, where the schema has them, class names."""
    import pyarrow
    import pyarrow.parquet

    copy_again = "copy it again and compare its sum with SHA256SUMS"
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a whole Parquet file ({reason}); {copy_again}.") from None
    schema = table.schema
    if not {"image", "label"} <= set(schema.names):
        raise DataError(
            f"{path} has the columns {', '.join(schema.names) or 'none'}; expected image and label, as data/README.md "
            "describes."
        )
    image_type, label_type = schema.field("image").type, schema.field("label").type
    if not pyarrow.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
        raise DataError(
            f"{path}: column image is of type {image_type}; expected a struct with the field bytes (the encoded file)."
        )
    if not pyarrow.types.is_integer(label_type):
        raise DataError(f"{path}: column label is of type {label_type}; expected int64.")
    if table.num_rows == 0:
        raise DataError(f"{path} holds no row; {copy_again}.")
    names = _class_names(schema.metadata or {})
    if names is not None and len(names) != official.classes:
        raise DataError(
            f"{path} names {len(names)} classes; {official.title} has {official.classes}: it is another data set."
        )

    column = table.column("label").combine_chunks()
    if column.null_count:
        raise DataError(f"{path}: {column.null_count} rows have no label; {copy_again}.")
    labels = torch.from_numpy(column.to_numpy().astype("int64"))
    wrong = torch.nonzero((labels < 0) | (labels >= official.classes)).flatten()
    if len(wrong):
        raise DataError(
            f"{path}: row {int(wrong[0])} has label {int(labels[wrong[0]])}; labels of {official.title} are 0 to "
            f"{official.classes - 1}."
        )
    encoded = table.column("image").combine_chunks().field("bytes").to_pylist()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # decoding releases the interpreter lock
        decoded = pool.map(lambda row: _decode(row[1], row[0], path, official.side), enumerate(encoded))
        images = torch.stack(list(decoded))
    return images, labels, names


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """Names of the labels, where the schema carries them in the convention of Hugging Face `datasets`."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None


def _decode(encoded: bytes | None, row: int, path: Path, side: int) -> Tensor:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded or b""), formats=("PNG", "WEBP", "JPEG")) as image:
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # on foreign bytes decoders raise OSError, SyntaxError, struct.error, ...: undocumented
        raise DataError(
            f"{path}: the image in row {row} cannot be decoded ({type(error).__name__}); expected a PNG, WebP or JPEG "
            "file: copy the pack again and compare its sum with SHA256SUMS."
        ) from None
    if pixels.shape != (side, side, 3):
        raise DataError(
            f"{path}: the image in row {row} is {pixels.shape[1]} x {pixels.shape[0]} pixels; expected {side} x {side}."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)
