"""The data sets: what the digits promise, and packs whole, changed, damaged, foreign or absent."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nladv_core import datasets, nets, places, training
from nladv_core.errors import DataError, SpecError
from nladv_core.image_files import MappedImages
from nladv_core.recipes import Recipe

# ------------------------------------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits() -> datasets.ImageData:
    return datasets.load("digits")


def test_digits_are_ready_for_training(digits: datasets.ImageData) -> None:
    assert digits.train_images.shape == (6000, 3, 16, 16) and digits.test_images.shape == (2000, 3, 16, 16)
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        counts = torch.bincount(labels, minlength=10)
        assert len(counts) == 10 and counts.min() > 0.9 * len(labels) / 10  # classes are balanced
        assert torch.bincount(labels[:200], minlength=10).min() > 5  # and in random order
    assert digits.classes == tuple("0123456789")
    assert digits.complete
    assert "16 px, difficulty 0.5, 6,000 training and 2,000 test" in digits.description


@pytest.mark.parametrize(("size", "train", "test"), [(8, 1, 1), (32, 7, 3), (128, 2, 2), (16, 5000, 1500)])
def test_digits_of_any_size_and_number(size: int, train: int, test: int) -> None:
    data = datasets.load("digits", size=size, train=train, test=test)
    assert data.train_images.shape == (train, 3, size, size) and data.test_images.shape == (test, 3, size, size)
    assert len(torch.unique(data.train_images.flatten(1), dim=0)) == train  # a digit used again looks different


def test_digits_are_deterministic_and_touch_no_global_randomness() -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    torch.manual_seed(1)
    before = states()
    first = datasets.load("digits", train=50, test=20)
    assert states() == before
    torch.manual_seed(2)
    again = datasets.load("digits", train=50, test=20)
    assert torch.equal(first.train_images, again.train_images) and torch.equal(first.test_images, again.test_images)
    assert first.checksum == again.checksum
    more = datasets.load("digits", train=5000, test=20)
    assert torch.equal(more.test_images, first.test_images)  # the test split does not depend on the training split
    others = [datasets.load("digits", train=50, test=20, difficulty=0.6), datasets.load("digits", train=51, test=20)]
    assert len({first.checksum, *(other.checksum for other in others)}) == 3


def test_batches_of_rendering_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load("digits", train=100, test=20)
    monkeypatch.setattr(datasets, "_RENDER_BATCH", 7)
    assert datasets.load("digits", train=100, test=20).checksum == whole.checksum


def test_originals_are_what_scikit_learn_ships() -> None:
    from sklearn.datasets import load_digits, load_sample_image

    digits, labels, photographs = datasets._scikit_learn_originals()
    bunch = load_digits()
    assert np.array_equal(digits[:, 0].numpy() * 16, bunch.images)
    assert np.array_equal(labels.numpy(), bunch.target)
    for photograph, name in zip(photographs, ("china.jpg", "flower.jpg"), strict=True):
        assert np.array_equal((photograph.permute(1, 2, 0) * 255).round().numpy(), load_sample_image(name))


def test_splits_share_no_handwritten_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fifty "digits" that are uniform squares, each of its own brightness, on grey: the centre of an image tells which.
    count = 50
    brightness = (torch.arange(count) + 1) / count
    squares = brightness.double()[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    grey = [torch.full((3, 400, 600), 0.5, dtype=torch.float64)] * 2
    monkeypatch.setattr(datasets, "_scikit_learn_originals", lambda: (squares, torch.arange(count) % 10, grey))
    data = datasets.load("digits", train=400, test=200, difficulty=0)
    seen = {}
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        contrast = (images[:, 0, 8, 8].double() / 255 - 0.5).abs()
        which = torch.round(contrast / 0.4 * count).long() - 1  # opacity 0.8, half of it either way
        assert torch.equal(which % 10, labels)
        seen[split] = set(which.tolist())
        uses = torch.bincount(which)[torch.bincount(which) > 0]
        assert uses.max() - uses.min() <= 1  # none is used again before all were used
    assert not seen["train"] & seen["test"]
    assert len(seen["train"] | seen["test"]) == count
    assert len(seen["test"]) == 20  # 30 % of five, rounded, in each of ten classes


@pytest.mark.parametrize("difficulty", [0, 1])
def test_splits_share_no_part_of_the_photographs(difficulty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Photographs whose pixels say in which column they stand, under empty digits.
    blank = torch.zeros(100, 1, 8, 8, dtype=torch.float64)
    ramp = (torch.arange(600, dtype=torch.float64) / 599).expand(3, 400, 600)
    monkeypatch.setattr(datasets, "_scikit_learn_originals", lambda: (blank, torch.arange(100) % 10, [ramp, ramp]))
    data = datasets.load("digits", train=2000, test=2000, difficulty=difficulty)
    opacity = 0.8 - 0.35 * difficulty
    train, test = (
        (images.double() / 255 - 0.5 * opacity) / (1 - opacity) for images in (data.train_images, data.test_images)
    )
    rounding = 0.5 / 255 / (1 - opacity)
    assert train.min() < 0.02 + rounding and test.max() > 0.98 - rounding  # both use their regions to the edge
    assert train.max() <= 419 / 599 + rounding  # columns 0..419 of 600
    assert test.min() >= 420 / 599 - rounding
    assert train.max() > 0.68 - rounding and test.min() < 0.72 + rounding


def _trained_accuracy(data: datasets.ImageData, net: nn.Module, lr: float) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = datasets.normalize(data.train_images, data.mean, data.std)
    batch, epochs = 64, 4
    steps = epochs * (len(inputs) // batch)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for step in range(steps):
        rows = torch.randint(len(inputs), (batch,), generator=generator)
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = nn.functional.cross_entropy(net(inputs[rows]), data.train_labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    with torch.no_grad():
        predicted = net(datasets.normalize(data.test_images, data.mean, data.std)).argmax(1)
    return float((predicted == data.test_labels).double().mean())


def test_harder_is_harder_and_needs_nonlinearity() -> None:
    accuracy = {}
    for difficulty in (0, 0.5, 1):
        data = datasets.load("digits", difficulty=difficulty, train=3000, test=1000)
        torch.manual_seed(0)
        accuracy[difficulty] = _trained_accuracy(data, nets.build("resnet8"), lr=0.1)
        linear = _trained_accuracy(data, nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), lr=0.01)
        assert linear < 0.4
    assert accuracy[0] > accuracy[0.5] + 0.03 and accuracy[0.5] > accuracy[1] + 0.1
    assert accuracy[0.5] > 0.6, accuracy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 4}, "size=4.*8 to 128"),
        ({"size": 16.0}, "size=16.0"),
        ({"difficulty": 1.5}, "difficulty=1.5.*0 .easy. to 1 .hard."),
        ({"difficulty": float("nan")}, "difficulty=nan"),
        ({"difficulty": "hard"}, "difficulty='hard'"),
        ({"train": 0}, "train=0"),
        ({"test": 2.5}, "test=2.5"),
    ],
)
def test_bad_digit_arguments(options: dict, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        datasets.load("digits", **options)


@pytest.mark.parametrize(
    ("name", "says"), [("cifar-10", "did you mean cifar10"), ("svhn", "known are digits, cifar10")]
)
def test_unknown_name(name: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        datasets.load(name)


# ------------------------------------------------------------------------------------------------------ data in general


def test_moments_are_numpys(digits: datasets.ImageData) -> None:
    values = digits.train_images.numpy().astype(np.float64) / 255
    assert digits.mean.numpy() == pytest.approx(values.mean((0, 2, 3)), abs=1e-7)
    assert digits.std.numpy() == pytest.approx(values.std((0, 2, 3)), abs=1e-7)


def test_subset(digits: datasets.ImageData) -> None:
    part = digits.subset(train=100, test=30)
    assert torch.equal(part.train_images, digits.train_images[:100])
    assert torch.equal(part.test_labels, digits.test_labels[:30])
    assert part.mean.numpy() == pytest.approx(part.train_images.numpy().mean((0, 2, 3)) / 255, abs=1e-6)
    assert part.checksum != digits.checksum and not part.complete and "first 100 and 30" in part.description
    assert digits.subset() is digits
    with pytest.raises(SpecError, match="train=6001 images were asked for, but only 6000"):
        digits.subset(train=6001)


def test_checksum_sees_every_pixel_and_label(digits: datasets.ImageData) -> None:
    small = digits.subset(20, 10)

    def checksum(changed: str | None = None) -> str:
        tensors = {f: getattr(small, f).clone() for f in ("train_images", "train_labels", "test_images", "test_labels")}
        if changed:
            tensors[changed].view(-1)[-1] += 1
        return datasets._bundle(
            "x", **tensors, classes=small.classes, description="something else", complete=True
        ).checksum

    sums = [checksum(f) for f in (None, "train_images", "train_labels", "test_images", "test_labels")]
    assert len(set(sums)) == 5
    assert sums[0] == small.checksum  # name and description do not count


def test_to_moves_every_tensor(digits: datasets.ImageData) -> None:
    there = digits.subset(4, 2).to("meta")
    tensors = (there.train_images, there.train_labels, there.test_images, there.test_labels, there.mean, there.std)
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_augment_mirrors_a_random_half() -> None:
    images = torch.randint(0, 256, (1000, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept, state = images.clone(), torch.get_rng_state()
    out = datasets.augment(images, torch.Generator().manual_seed(3))
    assert torch.equal(images, kept) and torch.equal(torch.get_rng_state(), state)
    assert out.dtype == torch.uint8
    same = (out == images).flatten(1).all(1)
    mirrored = torch.from_numpy((out.numpy() == images.numpy()[:, :, :, ::-1]).reshape(1000, -1).all(1))
    assert torch.all(same ^ mirrored)
    assert 430 < int(mirrored.sum()) < 570  # 4.4 standard deviations
    assert torch.equal(out, datasets.augment(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(out, datasets.augment(images, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_normalize(dtype: torch.dtype, tolerance: float) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    out = datasets.normalize(images, mean, std, dtype)
    assert out.dtype == dtype
    for c in range(3):
        expected = (np.arange(256) / 255 - mean[c]) / std[c]
        assert out[0, c].double().flatten().numpy() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert torch.equal(out, datasets.normalize(images, torch.tensor(mean), torch.tensor(std), dtype))


# -------------------------------------------------------------------------------------------------------------- packs


def _encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def _write_pack(
    path: Path, images: list[bytes | None], labels: list[int | None], names: list[str] | None = None
) -> None:
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(labels, pa.int64()),
        }
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


NAMES = [f"kind {i}" for i in range(10)]


class Packs:
    """A tiny cifar10 in the documented format: two training shards of 6 and 5 rows, a test pack of 4."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.folder = root / "cifar10"
        self.pixels = rng.integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, 15)
        self.parts = {"train-00000-of-00002": (0, 6), "train-00001-of-00002": (6, 11), "test": (11, 15)}
        for name in self.parts:
            self.write(name)

    def path(self, part: str) -> Path:
        return self.folder / f"cifar10-{part}.parquet"

    def write(self, part: str, *, names: list[str] | None = NAMES, **replaced: list) -> None:
        start, stop = self.parts[part]
        kinds = ["PNG", "WEBP"]
        images = [_encode(self.pixels[i], kinds[i % 2]) for i in range(start, stop)]
        labels = self.labels[start:stop].tolist()
        _write_pack(self.path(part), replaced.get("images", images), replaced.get("labels", labels), names)


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packs:
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    return Packs(tmp_path / "data")


def _as_stored(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def test_packs_are_read_pixel_by_pixel_in_their_order(packs: Packs) -> None:
    data = datasets.load("cifar10")
    assert np.array_equal(_as_stored(data.train_images), packs.pixels[:11])
    assert np.array_equal(_as_stored(data.test_images), packs.pixels[11:])
    assert data.train_labels.tolist() == packs.labels[:11].tolist()
    assert data.test_labels.tolist() == packs.labels[11:].tolist()
    assert data.classes == tuple(NAMES)
    assert not data.complete
    assert data.description == "CIFAR-10, 11 training and 4 test images (of 50,000 and 10,000)."
    part = datasets.load("cifar10", train=3, test=2)
    assert np.array_equal(_as_stored(part.train_images), packs.pixels[:3])


def test_grey_images_and_nameless_classes(packs: Packs) -> None:
    grey = packs.pixels[0, :, :, 0]
    for part in packs.parts:
        packs.write(part, names=None)
    packs.write("test", names=None, images=[_encode(grey)], labels=[3])
    data = datasets.load("cifar10")
    assert np.array_equal(_as_stored(data.test_images)[0], np.repeat(grey[:, :, None], 3, axis=2))
    assert data.classes == tuple("0123456789")


def test_one_training_shard_is_enough(packs: Packs) -> None:
    packs.path("train-00001-of-00002").unlink()
    data = datasets.load("cifar10")
    assert len(data.train_labels) == 6 and not data.complete and "6 training" in data.description


def test_decoded_once_and_a_changed_pack_is_noticed(
    packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = datasets.load("cifar10")
    with monkeypatch.context() as patch:
        patch.delattr(datasets, "pack_source")
        assert datasets.load("cifar10").checksum == first.checksum
    packs.write("test", labels=[(label + 1) % 10 for label in packs.labels[11:].tolist()])
    changed = datasets.load("cifar10")
    assert changed.test_labels.tolist() == [(label + 1) % 10 for label in packs.labels[11:].tolist()]
    assert changed.checksum != first.checksum
    assert {path.suffix for path in (tmp_path / "cache" / "datasets").iterdir()} <= {".safetensors", ".lock"}


def test_a_damaged_cache_is_made_again(packs: Packs, tmp_path: Path) -> None:
    first = datasets.load("cifar10")
    (cached,) = (tmp_path / "cache" / "datasets").glob("*.safetensors")
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    assert datasets.load("cifar10").checksum == first.checksum
    assert cached.read_bytes() == whole


def _one_row(**columns: pa.Array) -> pa.Table:
    return pa.table(columns)


def test_damaged_and_foreign_packs_are_named(packs: Packs) -> None:
    path = packs.path("train-00001-of-00002")
    whole = path.read_bytes()
    small = [_encode(packs.pixels[0, :16, :16])]
    image = pa.array([{"bytes": _encode(packs.pixels[0])}])

    def broken(says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            datasets.load("cifar10")
        message = str(caught.value)
        assert str(path) in message and "\n" not in message

    path.write_bytes(whole[: len(whole) // 2])
    broken("not a whole Parquet file .*copy it again and compare its sum with SHA256SUMS")
    path.write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    broken("not a whole Parquet file|cannot be decoded")
    path.write_bytes(b"<html>404</html>")
    broken("not a whole Parquet file")
    path.write_bytes(b"")
    broken("not a whole Parquet file")

    pq.write_table(_one_row(img=image, fine_label=pa.array([1])), path)
    broken("has the columns img, fine_label; expected image and label")
    pq.write_table(_one_row(image=pa.array([b"..."]), label=pa.array([1])), path)
    broken("column image is of type binary; expected a struct")
    pq.write_table(_one_row(image=image, label=pa.array(["cat"])), path)
    broken("column label is of type string; expected int64")
    packs.write("train-00001-of-00002", images=[], labels=[])
    broken("holds no row")

    packs.write("train-00001-of-00002", labels=[0, 1, 10, 2, 3])
    broken("row 2 has label 10; labels of CIFAR-10 are 0 to 9")
    packs.write("train-00001-of-00002", labels=[0, -1, 1, 2, 3])
    broken("row 1 has label -1")
    packs.write("train-00001-of-00002", labels=[0, None, 1, 2, 3])
    broken("1 rows have no label")
    packs.write("train-00001-of-00002", images=small, labels=[0])
    broken("image in row 0 is 16 x 16 pixels; expected 32 x 32")
    packs.write("train-00001-of-00002", images=[_encode(packs.pixels[0]), b"not an image"], labels=[0, 1])
    broken("image in row 1 cannot be decoded")
    packs.write("train-00001-of-00002", images=[None], labels=[0])
    broken("image in row 0 cannot be decoded")
    packs.write("train-00001-of-00002", images=[_encode(packs.pixels[0])[:-800]], labels=[0])
    broken("image in row 0 cannot be decoded")

    packs.write("train-00001-of-00002", names=[f"kind {i}" for i in range(100)])
    broken("names 100 classes; CIFAR-10 has 10")
    packs.write("train-00001-of-00002", names=NAMES[::-1])
    broken("names its classes otherwise")

    path.write_bytes(whole)
    assert len(datasets.load("cifar10").train_labels) == 11  # none of this left a trace


@pytest.mark.parametrize("name", list(datasets.OFFICIAL))
def test_data_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = {"tiny-imagenet": "val", "imagenet": "val"}.get(name, "test")
    folders = "" if name.startswith("cifar") else f".*the official folders train and {test}"
    archive = "" if name == "imagenet" else f".*nladv download {name}"
    what_to_do = rf"put {name}-train-\*\.parquet{folders}.*NLADV_DATA{archive}.*\"digits\", which works offline"
    monkeypatch.delenv("NLADV_DATA", raising=False)
    with pytest.raises(DataError, match=f"NLADV_DATA is not set; {what_to_do}"):
        datasets.load(name)
    monkeypatch.setenv("NLADV_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"is not a folder; {what_to_do}"):
        datasets.load(name)
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}-{test}.parquet").touch()
    with pytest.raises(DataError, match=rf"holds no file \*train\*\.parquet; {what_to_do}"):
        datasets.load(name)


def test_cifar_arguments(packs: Packs) -> None:
    with pytest.raises(SpecError, match="size=16.*32 pixels"):
        datasets.load("cifar10", size=16)
    with pytest.raises(SpecError, match="only digits have that knob"):
        datasets.load("cifar10", difficulty=0.5)
    with pytest.raises(SpecError, match="train=12 .*only 11"):
        datasets.load("cifar10", train=12)


def test_a_cache_that_cannot_be_written(packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be kept in .*set NLADV_CACHE to a folder"):
        datasets.load("cifar10")


# -------------------------------------------------------------------------------------- official folders, real packs


class Pictures(NamedTuple):
    """A small set of images in class folders: by split, class and file name."""

    files: dict[str, dict[str, dict[str, bytes]]]

    @classmethod
    def make(cls, kinds: list[str], counts: dict[str, int], side: int | None, kind: str, test: str) -> Pictures:
        rng = np.random.default_rng(len(kinds))
        files: dict[str, dict[str, dict[str, bytes]]] = {}
        for split, count in counts.items():
            for number, name in enumerate(kinds):
                for i in range(count + (number == 0)):  # the first class has one more
                    size = (side, side) if side is not None else tuple(rng.integers(20, 60, 2))
                    content = _encode(rng.integers(0, 256, (*size, 3), dtype=np.uint8), kind)
                    file = f"{split}_{number}{i}.JPEG" if split == test and test == "val" else f"{name}_{i}.{kind}"
                    files.setdefault(split, {}).setdefault(name, {})[file] = content
        return cls(files)

    def expected(self, split: str) -> list[tuple[int, bytes]]:
        """Label and file in the documented order: the first of each class, the second of each, ..."""
        found = []
        for rank in range(10):
            for label, name in enumerate(sorted(self.files[split])):
                there = sorted(self.files[split][name])
                found += [(label, self.files[split][name][there[rank]])] if rank < len(there) else []
        return found


WNIDS = ["n01443537", "n01629819", "n01641577", "n12267677"]
SMALL = {
    "cinic10": (NAMES[:4], {"train": 3, "valid": 1, "test": 2}, 32, "png", "test"),
    "tiny-imagenet": (WNIDS[::-1], {"train": 3, "val": 2}, 64, "JPEG", "val"),
    "imagenet": (WNIDS, {"train": 3, "val": 2}, None, "JPEG", "val"),
}


@pytest.fixture(params=list(SMALL))
def pictures(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Pictures, Path]:
    """A small copy of a data set in its official folders: its name, what it holds, its folder."""
    name = request.param
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    official = replace(datasets.OFFICIAL[name], classes=4)
    if name == "imagenet":  # 14 pixels from the middle of 16 stand in for 224 of 256
        official = replace(official, side=14, resize=16)
    monkeypatch.setattr(datasets, "OFFICIAL", {**datasets.OFFICIAL, name: official})
    made, folder = Pictures.make(*SMALL[name]), tmp_path / "data" / name
    for split, kinds in made.files.items():
        for kind, files in kinds.items():
            flat = name == "tiny-imagenet" and split == "val"
            inside = folder / split / ("." if flat else kind) / ("images" if name == "tiny-imagenet" else ".")
            inside.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (inside / file).write_bytes(content)
            (inside / "Thumbs.db").touch()  # what lies about is passed over
            (inside / "._x.png").touch()
    if name == "tiny-imagenet":
        lines = [f"{file}\t{kind}\t0\t0\t63\t63\n" for kind, files in made.files["val"].items() for file in files]
        (folder / "val" / "val_annotations.txt").write_text("".join(sorted(lines, reverse=True)))
        (folder / "test" / "images").mkdir(parents=True)
    return name, made, folder


def _pixels(name: str, content: bytes) -> np.ndarray:
    """What an image must become, [3, side, side]: for ImageNet what torchvision's evaluation transform makes of it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if name == "imagenet":
        from torchvision.transforms import v2

        image = v2.Compose([v2.Resize(16), v2.CenterCrop(14)])(image)
    return np.array(image).transpose(2, 0, 1)


def _check(name: str, made: Pictures, data: datasets.ImageData, kept: int | None = None) -> None:
    test = "test" if name == "cinic10" else "val"
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        (test, data.test_images, data.test_labels),
    ):
        expected = made.expected(split)[:kept]
        assert images.shape[0] == len(expected)
        assert labels.tolist() == [label for label, _ in expected]
        assert np.array_equal(images[:].numpy(), np.stack([_pixels(name, content) for _, content in expected]))
    pixels = data.train_images[:].numpy() / 255
    assert data.mean.numpy() == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-6)
    assert data.std.numpy() == pytest.approx(pixels.std((0, 2, 3)), abs=1e-6)


def test_official_folders(pictures: tuple[str, Pictures, Path]) -> None:
    name, made, _ = pictures
    data = datasets.load(name)
    _check(name, made, data)
    assert data.classes == tuple(sorted(SMALL[name][0])) and not data.complete
    title = {"cinic10": "CINIC-10, 13 training and 9 test images (of 90,000 and 90,000)."}
    title["tiny-imagenet"] = "Tiny ImageNet, 13 training and 9 validation images (of 100,000 and 10,000)."
    title["imagenet"] = "ImageNet, 13 training and 9 validation images (of 1,281,167 and 50,000)."
    assert data.description == title[name]
    part = datasets.load(name, train=5, test=5)
    _check(name, made, part, kept=5)
    assert part.checksum != data.checksum and "of these the first 5 and 5" in part.description
    assert data.subset(5, 5).checksum == part.checksum
    with pytest.raises(SpecError, match="train=14 .*only 13"):
        datasets.load(name, train=14)
    with pytest.raises(SpecError, match=rf"size=16.*{data.train_images.shape[2]} pixels"):
        datasets.load(name, size=16)


def test_prepared_once_and_a_changed_file_is_noticed(
    pictures: tuple[str, Pictures, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, made, folder = pictures
    first = datasets.load(name)
    with monkeypatch.context() as patch:
        patch.delattr(datasets, "decode")
        assert datasets.load(name).checksum == first.checksum
    suffixes = {path.suffix for path in (tmp_path / "cache" / "datasets").iterdir()}
    assert suffixes <= {".safetensors", ".lock", ".pixels"}
    kind = sorted(made.files["train"])[0]
    (file,) = folder.glob(f"train/{kind}/**/{kind}_0.*")
    file.write_bytes(made.files["train"][kind][f"{kind}_1{file.suffix}"])
    changed = datasets.load(name)
    assert changed.checksum != first.checksum
    assert np.array_equal(changed.train_images[:1].numpy()[0], _pixels(name, file.read_bytes()))


def test_other_folders_are_refused(pictures: tuple[str, Pictures, Path]) -> None:
    name, made, folder = pictures
    kind = sorted(made.files["train"])[0]
    (file,) = folder.glob(f"train/{kind}/**/{kind}_0.*")

    def broken(says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            datasets.load(name)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    broken(rf"{file}: the image cannot be decoded .*copy it again")
    if name != "imagenet":
        file.write_bytes(_encode(np.zeros((10, 12, 3), np.uint8)))
        broken(f"{file}: the image is 12 x 10 pixels; expected")
    file.write_bytes(whole)
    (folder / "train" / kind).rename(folder / "train" / "n99999999")
    broken("is in one of the folders train and|names its classes")
    (folder / "train" / "n99999999").rename(folder / "elsewhere")
    broken("images of 3 classes, one folder each; .* has 4")
    (folder / "elsewhere").rename(folder / "train" / kind)
    test = SMALL[name][4]
    (folder / test).rename(folder / "other")
    broken(rf"{folder}/{test} cannot be read .*NLADV_DATA")


@pytest.mark.parametrize("pictures", ["tiny-imagenet"], indirect=True)
def test_annotations_lead_nowhere_else(
    pictures: tuple[str, Pictures, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, made, folder = pictures
    annotations = folder / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    secret = tmp_path / "data" / "secret.png"
    secret.write_bytes(_encode(np.zeros((64, 64, 3), np.uint8)))
    for line in ("../../../secret.png\tn01443537\t0\t0\t1\t1\n", f"{secret}\tn01443537\n", "val_00.JPEG\n"):
        annotations.write_text(whole + line)
        with pytest.raises(DataError, match="line 10 names no image that is there and its class"):
            datasets.load(name)
    annotations.write_text(whole)
    unpacked = folder.with_name("moved")
    folder.rename(unpacked)
    folder.mkdir()
    unpacked.rename(folder / "tiny-imagenet-200")  # as the archive unpacks
    _check(name, made, datasets.load(name))


@pytest.mark.parametrize("name", list(SMALL))
def test_packs_of_the_others(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, counts, side, kind, test = SMALL[name]
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    official = replace(datasets.OFFICIAL[name], classes=4)
    if name == "imagenet":
        official = replace(official, side=14, resize=16)
    monkeypatch.setattr(datasets, "OFFICIAL", {**datasets.OFFICIAL, name: official})
    made = Pictures.make(kinds, counts, side, kind, test)
    folder = tmp_path / "data" / name
    for split in counts:
        rows = made.expected(split)
        for number in range(2):
            part = rows[: len(rows) // 2] if number == 0 else rows[len(rows) // 2 :]
            path = folder / f"{name}-{split}-0000{number}-of-00002.parquet"
            _write_pack(path, [content for _, content in part], [label for label, _ in part], sorted(kinds))
    data = datasets.load(name)
    _check(name, made, data)
    assert data.classes == tuple(sorted(kinds))
    _check(name, made, datasets.load(name, train=4, test=4), kept=4)
    path = folder / f"{name}-train-00001-of-00002.parquet"
    part = made.expected("train")[7:]
    _write_pack(path, [*[content for _, content in part], b"no image"], [*[label for label, _ in part], 0])
    with pytest.raises(DataError, match="names its classes otherwise"):
        datasets.load(name)
    _write_pack(path, [b"no image"], [0], sorted(kinds))
    with pytest.raises(DataError, match=rf"{path}: the image in row 0 cannot be decoded"):
        datasets.load(name)


def test_images_that_stay_in_their_file(tmp_path: Path, digits: datasets.ImageData) -> None:
    small = digits.subset(60, 30)
    for split, images in (("train", small.train_images), ("test", small.test_images)):
        (tmp_path / split).write_bytes(images[:].numpy().tobytes())
    mapped = MappedImages(tmp_path / "train", small.train_images.shape)
    assert mapped.dtype == torch.uint8 and len(mapped) == 60 and mapped.device.type == "cpu"
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:1], order[:0], slice(10, 50), slice(None), slice(58, 99)):
        assert torch.equal(mapped[rows], small.train_images[rows])
    assert [len(part) for part in mapped.split(25)] == [25, 25, 10]
    assert torch.equal(torch.cat(list(mapped.split(25))), small.train_images[:])
    for outside in ([60], [-1]):
        with pytest.raises(IndexError):
            mapped[torch.tensor(outside)]

    other = replace(small, train_images=mapped, test_images=MappedImages(tmp_path / "test", small.test_images.shape))
    fewer = other.subset(20, 10)
    assert fewer.mean.tolist() == small.subset(20, 10).mean.tolist() and len(fewer.test_labels) == 10
    assert torch.equal(fewer.train_images[:], small.train_images[:20])
    rows = []
    for data in (small, other):
        torch.manual_seed(0)
        net = nets.build("resnet8", width=0.25)
        rows.append(list(training.fit(net, data, Recipe(epochs=2, lr=0.1, batch=16), seed=0)))
        rows[-1].append(training.untrained_row(net, data))
    assert rows[0] == rows[1]  # the training loop does not see a difference


@pytest.mark.parametrize("pictures", ["imagenet"], indirect=True)  # the only set that stays on the disk
def test_a_disk_that_is_too_small(
    pictures: tuple[str, Pictures, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, _ = pictures
    small = SimpleNamespace(free=13 * 14 * 14 * 3 - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: small)
    with pytest.raises(DataError, match="13 images take 0.0 GB in .*make room, set NLADV_CACHE .*or ask for fewer"):
        datasets.load(name)
    assert not list((tmp_path / "cache" / "datasets").glob("*.pixels"))
    data = datasets.load(name, train=12)
    (pixels,) = (tmp_path / "cache" / "datasets").glob("imagenet-train-*.pixels")
    pixels.write_bytes(b"")  # cut short
    assert datasets.load(name, train=12).checksum == data.checksum
    next((tmp_path / "cache" / "datasets").glob("imagenet-train-*.safetensors")).write_bytes(b"cut")
    assert datasets.load(name, train=12).checksum == data.checksum


def _real(name: str, file: str) -> Path | None:
    """A file of the folder of real data, where this machine has one: NLADV_DATA, else shared/data beside us."""
    named = os.environ.get("NLADV_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder / name / file if (folder / name / file).is_file() else None


TINY = _real("tiny-imagenet", "tiny-imagenet-val.parquet")


@pytest.mark.skipif(TINY is None, reason="no Tiny ImageNet pack: set NLADV_DATA to a folder that holds it")
def test_the_real_validation_split_of_tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TINY is not None
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NLADV_DATA", str(tmp_path))
    (tmp_path / "tiny-imagenet").mkdir()
    (tmp_path / "tiny-imagenet" / TINY.name).symlink_to(TINY)
    with pytest.raises(DataError, match=r"holds no file \*train\*\.parquet"):
        datasets.load("tiny-imagenet")
    (tmp_path / "tiny-imagenet" / "tiny-imagenet-train.parquet").symlink_to(TINY)  # it stands in for both splits
    data = datasets.load("tiny-imagenet")
    assert data.test_images.shape == (10_000, 3, 64, 64) and len(data.classes) == 200 and not data.complete
    assert torch.bincount(data.test_labels).tolist() == [50] * 200
    assert torch.bincount(data.test_labels[:1000], minlength=200).tolist() == [5] * 200  # a fair subset
    assert data.classes[:2] == _first_classes(TINY.with_name("classes.tsv"))
    # The known mean and standard deviation of Tiny ImageNet's training images are 0.480, 0.448, 0.398 and 0.277, 0.269,
    # 0.282; those of 10,000 others lie close by.
    assert data.mean.tolist() == pytest.approx([0.480, 0.448, 0.398], abs=0.005)
    assert data.std.tolist() == pytest.approx([0.277, 0.269, 0.282], abs=0.005)


def _first_classes(table: Path) -> tuple[str, ...]:
    return tuple(line.split("\t")[1] for line in table.read_text().splitlines()[:2])


# ------------------------------------------------------------------------------------------------- places and start-up


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[1]
    assert places.project_root() == root
    for variable in ("NLADV_CACHE", "NLADV_DATA"):
        monkeypatch.delenv(variable, raising=False)
    assert places.cache_dir() == root / "data" / "cache"
    assert places.data_dir() is None
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path))
    monkeypatch.setenv("NLADV_DATA", "~/packs")
    assert places.cache_dir() == tmp_path
    assert places.data_dir() == Path.home() / "packs"
    monkeypatch.setattr(places, "__file__", str(tmp_path / "site-packages" / "nladv_core" / "places.py"))
    monkeypatch.chdir(tmp_path)
    assert places.project_root() == tmp_path


def test_digits_need_no_slow_import() -> None:
    program = (
        "import sys; from nladv_core import datasets\nbefore = set(sys.modules)\n"
        "datasets.load('digits', train=1, test=1)\n"
        "assert not {'PIL', 'pyarrow', 'pandas', 'sklearn'} & before, 'imported at the top'\n"
        "assert not {'pyarrow', 'pandas', 'sklearn', 'scipy'} & set(sys.modules), 'imported by the digits'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=places.project_root())
    assert done.returncode == 0, done.stderr


class TestHeldOut:
    """The last training images, judged in place of the test images."""

    def data(self) -> datasets.ImageData:
        found = datasets.load("digits", size=8, train=40, test=12)
        assert isinstance(found, datasets.ImageData)
        return found

    def test_rows(self) -> None:
        data = self.data()
        held = data.hold_out(10)
        assert torch.equal(held.train_images, data.train_images[:30])
        assert torch.equal(held.train_labels, data.train_labels[:30])
        assert torch.equal(held.test_images, data.train_images[30:])
        assert torch.equal(held.test_labels, data.train_labels[30:])
        # None is in both, and none of the test images is anywhere.
        rows = {image.numpy().tobytes() for image in held.train_images}, {i.numpy().tobytes() for i in held.test_images}
        seen = {image.numpy().tobytes() for image in data.test_images}
        assert not rows[0] & rows[1] and not (rows[0] | rows[1]) & seen
        assert (held.name, held.classes, held.complete) == (data.name, data.classes, False)
        assert held.description.endswith("; the last 10 training images are held out and judged.")

    def test_mean_std_and_checksum_are_those_of_the_rows_there_are(self) -> None:
        data = self.data()
        held = data.hold_out(10)
        values = held.train_images.double() / 255
        assert held.mean.tolist() == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-6)
        assert held.std.tolist() == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), rel=1e-6)
        checksums = {data.hold_out(count).checksum for count in (1, 10, 39)} | {data.checksum, data.subset(30).checksum}
        assert len(checksums) == 5 and held.checksum == self.data().hold_out(10).checksum
        # What the test images are has no say in it.
        other = replace(data, test_images=255 - data.test_images, test_labels=data.test_labels.flip(0))
        assert other.hold_out(10).checksum == held.checksum

    def test_the_data_themselves_stay_as_they_were(self) -> None:
        data = self.data()
        held = data.hold_out(10)
        held.train_images.zero_()
        held.test_images.zero_()
        held.test_labels.zero_()
        again = self.data()
        assert torch.equal(data.train_images, again.train_images) and torch.equal(data.train_labels, again.train_labels)

    @pytest.mark.parametrize("count", [0, -1, 40, 41, 2.5, True, "10"])
    def test_what_cannot_be_held_out(self, count: Any) -> None:
        with pytest.raises(SpecError, match="digits: held_out") as refusal:
            self.data().hold_out(count)
        assert "\n" not in str(refusal.value)

    def test_images_in_files_stay_there(self) -> None:
        mapped = replace(self.data(), train_images=object.__new__(MappedImages))
        with pytest.raises(SpecError, match="digits: its images stay in files, of which none can be held out; leave"):
            mapped.hold_out(10)
