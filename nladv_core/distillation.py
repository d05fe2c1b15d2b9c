"""Linearize a network that was trained on ImageNet without ImageNet: it is its own teacher, on any real images.

The student starts as a copy of the teacher with a slope for every channel. On images without their labels it is trained
to give the teacher's probabilities, while the penalty pulls its slopes to 1: the loss is KL(teacher ‖ student) + ω
Σ|1-α|^0.5 (§3, the task loss replaced). With ω = 0 the student would stay the teacher: there is no "trained equally
long" to compare with.

The images are those of Tiny ImageNet's validation split (64 × 64 pixels, 200 of ImageNet's classes), enlarged; the
first 6,000 are fitted, the last 2,000 held out, and every number reported is about the held-out ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nladv_core import values
from nladv_core.checkpoints import Checkpoint, Progress, write
from nladv_core.compat import declare_torchvision_operators, import_torchvision
from nladv_core.datasets import normalize
from nladv_core.errors import DataError, RecordError, SpecError
from nladv_core.linearize import active_fraction, freeze_linear_, linearize, project_slopes_, slope_penalty, units
from nladv_core.places import cache_dir, data_dir
from nladv_core.training import TrainingDiverged, stream

_SQUEEZENET = "squeezenet1_1_caffe_fp16.npz"
_SQUEEZENET_SHA256 = "099abf38e72c5f7d67deaa9ffddfac9bb7d58f55bf913307fdca25ba43c21173"
_STD = (0.229, 0.224, 0.225)
_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = ("step", *_MOMENTS)  # of Adam
_PACK = "tiny-imagenet-val.parquet"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network trained on ImageNet. Input: RGB / 255, minus `mean`, divided by `std`; `size`: pixels it is used at."""

    load: Callable[[], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    title: str
    source: str


def squeezenet(folder: str | Path | None = None) -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016) with its authors' weights for ImageNet, on the CPU, in eval mode.

    torchvision's architecture; the weights are those of the Caffe model, stored in half precision, in single precision
    here, with a first layer that takes images as `TEACHERS` says rather than BGR from 0 to 255.

    Args:
        folder: where the file lies; by default the folder `weights` of `$NLADV_DATA`.

    Raises:
        DataError: the file is not there or is not the one whose checksum is known.
    """
    root = data_dir()
    if folder is None and root is None:
        raise DataError(f"squeezenet1_1: NLADV_DATA is not set; set it to the folder that holds weights/{_SQUEEZENET}.")
    path = (Path(folder) if folder is not None else Path(str(root)) / "weights") / _SQUEEZENET
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"squeezenet1_1: {path} cannot be read ({error.strerror}); put the file there (data/README.md)."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != _SQUEEZENET_SHA256:
        raise DataError(f"squeezenet1_1: {path} has SHA-256 {found}, expected {_SQUEEZENET_SHA256}; get it again.")
    with np.load(BytesIO(content), allow_pickle=False) as stored:
        state = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
    # The file's first layer takes BGR from 0 to 255; here it takes standardized RGB, so that one learning rate suits.
    first = state["features.0.weight"].flip(1)
    state["features.0.weight"] = first * (255 * torch.tensor(_STD))[:, None, None]
    with torch.random.fork_rng(devices=[]):
        net = import_torchvision().models.squeezenet1_1()
    net.load_state_dict(state)
    return net.eval()


TEACHERS: Mapping[str, Teacher] = MappingProxyType(
    {
        "squeezenet1_1": Teacher(
            load=squeezenet,
            mean=(123 / 255, 117 / 255, 104 / 255),
            std=_STD,
            size=96,
            title="SqueezeNet 1.1",
            source="F. Iandola et al., arXiv:1602.07360; the authors' Caffe model",
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Everything that decides the outcome of one linearization by distillation.

    Attributes:
        omega: strength of the penalty, above 0.
        teacher: a key of `TEACHERS`.
        size: side of the square images in pixels; 0: the teacher's.
        fit, held_out: the first and the last so many images of the 10,000.
        epochs, batch: passes over the fitted images; images a step.
        lr, slope_lr: learning rates of weights and slopes, divided by 10 for the last quarter of the epochs, the
            last one at least. The optimiser is Adam: a network without batch norms does not bear the gradients of plain
            SGD once its slopes move.
        seed: of the order of the images.

    Raises:
        SpecError: a value of the wrong type or out of range.
    """

    omega: float
    teacher: str = "squeezenet1_1"
    size: int = 0
    fit: int = 6000
    held_out: int = 2000
    epochs: int = 3
    batch: int = 50
    lr: float = 0.0002
    slope_lr: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        values.canonical(self)
        if self.teacher not in TEACHERS:
            raise SpecError(
                f"distillation: teacher is {self.teacher!r}, expected one of {', '.join(TEACHERS)}"
                f"{values.nearest(self.teacher, TEACHERS)}"
            )
        if self.size == 0:
            object.__setattr__(self, "size", TEACHERS[self.teacher].size)
        for name, least in (("size", 32), ("fit", 1), ("held_out", 1), ("epochs", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise SpecError(f"distillation: {name} is {getattr(self, name)}, expected at least {least}")
        if self.fit + self.held_out > 10_000:
            raise SpecError(
                f"distillation: {self.fit} images to fit and {self.held_out} held out, expected 10,000 at most"
            )
        if not self.omega > 0:
            raise SpecError(
                f"distillation: omega is {self.omega:g}, expected above 0; without a penalty a network that learns "
                "from itself stays as it is"
            )
        if not (self.lr > 0 and self.slope_lr > 0):
            raise SpecError("distillation: expected learning rates above 0")

    def key(self) -> str:
        """12 hex digits that name the result."""
        return hashlib.sha256(values.text(values.changed(self)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Images:
    """Tiny ImageNet's validation images: uint8 [10000, 3, 64, 64], ImageNet's class number of each, all 200 of them."""

    pixels: Tensor
    labels: Tensor
    classes: Tensor


@lru_cache(maxsize=1)
def tiny_imagenet(folder: Path | None = None) -> Images:
    """The validation images in the order of the pack (every contiguous block holds all classes equally).

    Args:
        folder: where the pack lies; by default `tiny-imagenet` of `$NLADV_DATA`.

    Raises:
        DataError: pack not there or not readable, or timm, which knows ImageNet's order of classes, is not installed.
    """
    import pyarrow.parquet as parquet
    from PIL import Image

    root = data_dir()
    if folder is None and root is None:
        raise DataError(f"tiny-imagenet: NLADV_DATA is not set; set it to the folder that holds tiny-imagenet/{_PACK}.")
    path = (folder or Path(str(root)) / "tiny-imagenet") / _PACK
    try:
        declare_torchvision_operators()  # timm imports torchvision
        from timm.data import ImageNetInfo

        names = (path.parent / "classes.tsv").read_text().splitlines()
        table = parquet.read_table(path)
        encoded = table.column("image").combine_chunks().field("bytes").to_pylist()
        tiny = torch.tensor(table.column("label").to_pylist())
        pixels = torch.stack(
            [torch.from_numpy(np.array(Image.open(BytesIO(one)).convert("RGB"))).permute(2, 0, 1) for one in encoded]
        )
    except ImportError:
        raise DataError("tiny-imagenet: the order of ImageNet's classes comes with timm; install timm.") from None
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"tiny-imagenet: {path} cannot be read ({error}); put the pack there (data/README.md)."
        ) from None
    order = {wnid: number for number, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    classes = torch.tensor([order[line.split("\t")[1]] for line in names])
    return Images(pixels, classes[tiny], classes)


def prepared(pixels: Tensor, spec: Distillation) -> Tensor:
    """Images as the teacher takes them: float [N, 3, size, size], enlarged bilinearly, normalized."""
    teacher = TEACHERS[spec.teacher]
    batch = normalize(pixels, teacher.mean, teacher.std)
    batch = F.interpolate(batch, size=(spec.size, spec.size), mode="bilinear", align_corners=False, antialias=True)
    return batch.contiguous(memory_format=torch.channels_last)


def distil(
    spec: Distillation,
    *,
    device: str | torch.device = "cpu",
    folder: Path | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The linearized student and its record, from the cache or computed now; goes on after the last finished epoch.

    Args:
        device: where to compute.
        folder: where results are kept, default `distilled` of the cache.
        progress: gets a row after each epoch.

    Returns:
        The student, on the CPU in eval mode, and its record: spec, metrics (see `evaluate`), history, seconds, ...

    Raises:
        DataError: weights or images are not there.
        RecordError: a stored result is damaged.
        TrainingDiverged: the loss left the finite numbers.
    """
    from safetensors.torch import load, save

    folder = folder or cache_dir() / "distilled"
    teacher = TEACHERS[spec.teacher].load()
    with torch.random.fork_rng(devices=[]):
        student = linearize(teacher, (3, spec.size, spec.size)).eval()
    path = folder / f"{spec.key()}.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text())
            content = path.with_suffix(".safetensors").read_bytes()
            if record["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError("the checksum of its weights is another")
            student.load_state_dict(load(content))
            return student, record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}: cannot be used ({error}); delete it, then it is computed again") from None
    device = torch.device(device)
    images = tiny_imagenet()
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(folder, spec.key())
    optimizer = _optimizer(student, spec)
    history, seconds, resumed = _resume(checkpoint, student, optimizer, spec)
    for net in (teacher, student):  # the format of the memory is worth a fifth of the time on a CPU
        net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for state in optimizer.state.values():
        state |= {name: state[name].to(device) for name in _MOMENTS}
    if not history:
        history.append({"epoch": 0, **evaluate(teacher, student, images, spec, device)})
    for epoch in range(len(history) - 1, spec.epochs):
        loss = _epoch(teacher, student, optimizer, images.pixels[: spec.fit], spec, epoch, device)
        row = {"epoch": epoch + 1, "loss": loss, **evaluate(teacher, student, images, spec, device)}
        history.append(row)
        momenta = {
            f"{part}:{name}": optimizer.state[parameter][part]
            for name, parameter in student.named_parameters()
            for part in _STATE
        }
        lasted = seconds + time.perf_counter() - began
        checkpoint.save(
            Progress(conditions=_conditions(spec), history=history, seconds=round(lasted, 3), resumed_after=resumed),
            student.state_dict(),
            momenta,
        )
        if progress is not None:
            progress(row)
    student.cpu()
    content = save({name: tensor.contiguous() for name, tensor in student.state_dict().items()})
    record = {
        "key": spec.key(),
        "spec": values.changed(spec),
        "metrics": {name: value for name, value in history[-1].items() if name != "epoch"},
        "teacher": {"accuracy": history[0]["accuracy"], "source": TEACHERS[spec.teacher].source},
        "history": history,
        "wall_s": round(seconds + time.perf_counter() - began, 1),
        "resumed_after": resumed,
        "torch": torch.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write(path.with_suffix(".safetensors"), content)
    write(path, json.dumps(record, indent=1).encode())
    checkpoint.delete()
    return student.eval(), record


@torch.no_grad()
def evaluate(
    teacher: nn.Module, student: nn.Module, images: Images, spec: Distillation, device: torch.device
) -> dict[str, float]:
    """How the student does on the held-out images, shares in [0, 1].

    Returns:
        accuracy: its best of the 200 classes that occur is the right one; agreement: its best of all 1,000 classes is
        the teacher's; divergence: mean KL(teacher ‖ student) in nats; active_fraction.
    """
    student.eval()
    right = agreed = divergence = 0.0
    classes = images.classes.to(device)
    for at in range(10_000 - spec.held_out, 10_000, 250):
        batch = prepared(images.pixels[at : at + 250].to(device), spec)
        labels = images.labels[at : at + 250].to(device)
        expected, found = (F.log_softmax(net(batch), dim=1) for net in (teacher, student))
        right += float((classes[found[:, classes].argmax(1)] == labels).sum())
        agreed += float((found.argmax(1) == expected.argmax(1)).sum())
        divergence += float(F.kl_div(found, expected, reduction="sum", log_target=True))
    count = spec.held_out
    return {
        "accuracy": right / count,
        "agreement": agreed / count,
        "divergence": divergence / count,
        "active_fraction": active_fraction(student),
    }


def _optimizer(student: nn.Module, spec: Distillation) -> torch.optim.Adam:
    slopes = [unit.slope for _, unit in units(student)]
    known = {id(slope) for slope in slopes}
    weights = [parameter for parameter in student.parameters() if id(parameter) not in known]
    groups = [{"params": weights, "lr": spec.lr}, {"params": slopes, "lr": spec.slope_lr}]
    return torch.optim.Adam(groups, lr=spec.lr)


def _epoch(
    teacher: nn.Module,
    student: nn.Module,
    optimizer: torch.optim.Adam,
    pixels: Tensor,
    spec: Distillation,
    epoch: int,
    device: torch.device,
) -> float:
    """One pass; the student stays in eval mode, so that batch norms and dropout compute what the teacher's do."""
    rate = 0.1 if epoch >= spec.epochs - max(1, spec.epochs // 4) else 1.0
    for group, lr in zip(optimizer.param_groups, (spec.lr, spec.slope_lr), strict=True):
        group["lr"] = rate * lr
    order = torch.randperm(spec.fit, generator=torch.Generator().manual_seed(stream(spec.seed, "order", epoch)))
    flips = torch.Generator().manual_seed(stream(spec.seed, "flip", epoch))
    total = 0.0
    for rows in order.split(spec.batch):
        chosen = pixels[rows]
        coins = torch.rand(len(rows), generator=flips) < 0.5
        chosen = torch.where(coins[:, None, None, None], chosen.flip(3), chosen)
        batch = prepared(chosen.to(device), spec)
        with torch.no_grad():
            expected = F.log_softmax(teacher(batch), dim=1)
        loss = F.kl_div(F.log_softmax(student(batch), dim=1), expected, reduction="batchmean", log_target=True)
        optimizer.zero_grad(set_to_none=True)
        (loss + spec.omega * slope_penalty(student)).backward()
        optimizer.step()
        project_slopes_(student)
        freeze_linear_(student)
        total += float(loss.detach()) * len(rows)
    if not math.isfinite(total):
        raise TrainingDiverged(
            f"the loss became {total} in epoch {epoch + 1} of {spec.epochs}; lower lr (now {spec.lr:g})"
        )
    return total / spec.fit


def _conditions(spec: Distillation) -> dict[str, Any]:
    return {"spec": values.changed(spec), "torch": torch.__version__}


def _resume(
    checkpoint: Checkpoint, student: nn.Module, optimizer: torch.optim.Adam, spec: Distillation
) -> tuple[list[dict[str, Any]], float, list[int]]:
    """History, seconds and interruptions of a distillation that was cut; its state is put back. Else it starts anew."""
    try:
        found = checkpoint.load()
    except RecordError:
        found = None
    if found is None or found[0].conditions != _conditions(spec):
        checkpoint.delete()
        return [], 0.0, []
    progress, state, momenta = found
    student.load_state_dict(state)
    for name, parameter in student.named_parameters():
        optimizer.state[parameter] = {part: momenta[f"{part}:{name}"].clone() for part in _STATE}
    return progress.history, progress.seconds, [*progress.resumed_after, len(progress.history) - 1]
