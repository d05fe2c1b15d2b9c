"""The seam between the training loop and what is learned: batches of inputs and labels, and what is measured.

The loop (`training`), the store and the campaign know one kind of task. `of` makes one of a data set: images to be
classified, or sentences to be translated. Whatever differs between the two is in this module and nowhere else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nladv_core import datasets
from nladv_core.datasets import ImageData
from nladv_core.errors import SpecError
from nladv_core.recipes import Recipe
from nladv_core.texts import TextData
from nladv_core.transformer import PAD, POSITIONS, greedy

# A label where nothing is asked: behind the end of a sentence. (The one that torch's cross entropy leaves out.)
NOT_ASKED = -100


def stream(seed: int, *purpose: object) -> int:
    """Seed of an independent random stream: equal on every device, torch version and platform.

    Each epoch has streams of its own, so that a run resumed there sees the same shuffles and flips.
    """
    # torch's CPU generator looks at the low 32 bits only: neighbouring seeds are spread over all of them.
    return int.from_bytes(hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees: `net(*inputs)` gives logits [..., classes].

    Attributes:
        inputs: tensors on the device.
        labels: int64 [...], the right classes; `NOT_ASKED` where there is none.
        count: how many labels are asked for.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    count: int


class Task(Protocol):
    """What the loop and the store ask of data.

    Attributes:
        outputs: number of classes that a network tells apart.
        shape: of an example, as `nets.example` takes it.
        checksum: of the data.
        asked, asked_in_test: labels in an epoch, and in the test split.
    """

    outputs: int
    shape: tuple[int, ...]
    checksum: str
    asked: int
    asked_in_test: int

    def to(self, device: str | torch.device) -> Task:
        """The same on another device."""

    def batches(self, recipe: Recipe, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch, in an order (and with flips) that seed and epoch decide."""

    def batch_count(self, recipe: Recipe) -> int:
        """How many batches an epoch has."""

    def test_batches(self) -> Iterator[Batch]:
        """The test split."""

    def measured(self, loss: float) -> dict[str, float]:
        """Further metrics of an epoch, from the mean cross entropy of the test split in nats."""

    def at_the_end(self, net: nn.Module) -> dict[str, float]:
        """Further metrics after the last epoch; `net` is in evaluation mode on the device of the data."""

    def told(self) -> dict[str, Any]:
        """What a record says of the data."""


def of(data: ImageData | TextData | Task) -> Task:
    """The task that a data set poses; a task is given back as it is.

    Raises:
        SpecError: something else.
    """
    if isinstance(data, ImageData):
        return Classification(data)
    if isinstance(data, TextData):
        return Translation(data)
    if not hasattr(data, "batches"):
        raise SpecError(f"the data are {data!r:.80}, expected what `datasets.load` gives")
    return data


def at_once(images: Any) -> int:
    """Images to judge at once: 1,000, or of those with more than 64 pixels a side what takes as much memory."""
    return min(1000, max(1, 1000 * 64**2 // math.prod(images.shape[2:])))


class Classification:
    """Images and their classes: a label an image; flips if the recipe says so."""

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.outputs, self.shape, self.checksum = len(data.classes), tuple(data.train_images.shape[1:]), data.checksum
        self.asked, self.asked_in_test = len(data.train_labels), len(data.test_labels)

    def to(self, device: str | torch.device) -> Classification:
        """The same on another device."""
        return Classification(self.data.to(device))

    def batches(self, recipe: Recipe, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch: every image once."""
        data, device = self.data, self.data.mean.device
        shuffled = torch.randperm(self.asked, generator=torch.Generator().manual_seed(stream(seed, "order", epoch)))
        flips = torch.Generator(device).manual_seed(stream(seed, "flip", epoch))
        for chosen in shuffled.to(device).split(recipe.batch):
            images, labels = data.train_images[chosen], data.train_labels[chosen]
            if recipe.flip:
                images = datasets.augment(images, flips)
            yield self._batch(images, labels)

    def batch_count(self, recipe: Recipe) -> int:
        """How many batches an epoch has."""
        return math.ceil(self.asked / recipe.batch)

    def test_batches(self) -> Iterator[Batch]:
        """As many at once as `at_once` says."""
        data = self.data
        size = at_once(data.test_images)
        for images, labels in zip(data.test_images.split(size), data.test_labels.split(size), strict=True):
            yield self._batch(images, labels)

    def _batch(self, images: Tensor, labels: Tensor) -> Batch:
        return Batch((datasets.normalize(images, self.data.mean, self.data.std),), labels, len(labels))

    def measured(self, loss: float) -> dict[str, float]:
        """Nothing further."""
        return {}

    def at_the_end(self, net: nn.Module) -> dict[str, float]:
        """Nothing further."""
        return {}

    def told(self) -> dict[str, Any]:
        """What a record says of the data."""
        data = self.data
        return {
            "checksum": data.checksum,
            "description": data.description,
            "complete": data.complete,
            "classes": self.outputs,
            "shape": list(self.shape),
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
        }


class Translation:
    """Sentences and their translations: a label for every token of the translation and its end.

    A batch holds sentences of similar length: the shuffled pairs are cut into lots of 64 batches, each lot is sorted by
    length and cut into batches, and the batches are shuffled.
    """

    _LOT = 64

    def __init__(self, data: TextData) -> None:
        self.data = data
        self.outputs, self.checksum = len(data.vocabulary), data.checksum
        # Lengths stay where Python is: a batch is cut to its longest sentence without waiting for the device.
        self._lengths = {
            name: (getattr(data, name) != PAD).sum(1).cpu()
            for name in ("train_source", "train_target", "test_source", "test_target")
        }
        # BEGIN is no label.
        self.asked, self.asked_in_test = (
            int((self._lengths[f"{split}_target"] - 1).sum()) for split in ("train", "test")
        )
        # An average test pair: unnormalised path lengths depend on how long sentences are.
        source, target = self._lengths["test_source"], self._lengths["test_target"] - 1
        self.shape: tuple[int, ...] = (round(float(source.double().mean())), round(float(target.double().mean())))

    def to(self, device: str | torch.device) -> Translation:
        """The same on another device."""
        return Translation(self.data.to(device))

    def batches(self, recipe: Recipe, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch: every pair once."""
        shuffled = torch.randperm(
            len(self.data.train_source), generator=torch.Generator().manual_seed(stream(seed, "order", epoch))
        )
        found: list[Tensor] = []
        for lot in shuffled.split(self._LOT * recipe.batch):
            # By source within target: both sides of a batch are nearly of one length.
            keys = self._lengths["train_target"][lot] * (POSITIONS + 1) + self._lengths["train_source"][lot]
            found += lot[keys.argsort(stable=True)].split(recipe.batch)
        last = torch.randperm(len(found), generator=torch.Generator().manual_seed(stream(seed, "batches", epoch)))
        for number in last.tolist():
            yield self._batch("train", found[number])

    def batch_count(self, recipe: Recipe) -> int:
        """How many batches an epoch has."""
        return math.ceil(len(self.data.train_source) / recipe.batch)

    def test_batches(self) -> Iterator[Batch]:
        """100 pairs at once, the shortest first."""
        for chosen in self._lengths["test_target"].argsort(stable=True).split(100):
            yield self._batch("test", chosen)

    def _batch(self, split: str, chosen: Tensor) -> Batch:
        source, target = (self._cut(f"{split}_{side}", chosen) for side in ("source", "target"))
        labels = target[:, 1:]
        count = int(self._lengths[f"{split}_target"][chosen].sum()) - len(chosen)
        return Batch((source, target[:, :-1]), labels.masked_fill(labels == PAD, NOT_ASKED), count)

    def _cut(self, name: str, chosen: Tensor) -> Tensor:
        rows = getattr(self.data, name)
        return rows[chosen.to(rows.device), : int(self._lengths[name][chosen].max())].long()

    def measured(self, loss: float) -> dict[str, float]:
        """Perplexity: the number of tokens among which a guess would be as uncertain."""
        return {"test_perplexity": math.exp(min(loss, 700.0))}

    def at_the_end(self, net: nn.Module) -> dict[str, float]:
        """BLEU of greedy translations of the test split, 0 to 100."""
        from sacrebleu.metrics import BLEU

        references = [english for _, english in self.data.test_pairs]
        return {"test_bleu": float(BLEU().corpus_score(self.translations(net), [references]).score)}

    def translations(self, net: nn.Module) -> list[str]:
        """Greedy translations of the test sentences, in their order; `net` is in evaluation mode on the data's device.

        None is longer than the longest training translation.
        """
        found = [""] * len(self.data.test_source)
        for chosen in self._lengths["test_source"].argsort(stable=True).split(100):
            told = self._greedy(net, self._cut("test_source", chosen))
            for place, sentence in zip(chosen.tolist(), told, strict=True):
                found[place] = sentence
        return found

    def translate(self, net: nn.Module, sentences: Sequence[str]) -> list[str]:
        """The same of German sentences of one's own.

        Raises:
            SpecError: a sentence is empty, too long, or has a character that no training sentence has.
        """
        return self._greedy(net, self.data.encode(sentences))

    def _greedy(self, net: nn.Module, source: Tensor) -> list[str]:
        limit = int(self._lengths["train_target"].max())
        return [self.data.vocabulary.decode(row) for row in greedy(net, source, limit).tolist()]

    def told(self) -> dict[str, Any]:
        """What a record says of the data."""
        return {
            "checksum": self.data.checksum,
            "description": self.data.description,
            "complete": self.data.complete,
            "classes": self.outputs,
            "shape": list(self.shape),
            "bleu": _signature(),
        }


def _signature() -> str:
    """How BLEU is counted, as sacreBLEU writes it."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])  # only then does it know the number of references
    return str(metric.get_signature())
