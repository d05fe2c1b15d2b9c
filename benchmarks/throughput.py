"""One training, fast: images a second of `training.fit` against the usual public loop, in turn, epoch by epoch.

The baseline is written here as one finds it everywhere: eager float32, a `DataLoader` with two workers, torchvision's
transforms on one PIL image after another, `loss.item()` in each step. Ours is what a run of the paper's tier uses:
bytes that stay on the device, channels-last bfloat16, a fused optimiser, a compiled step. Both train the same network
with the same batch on images of CIFAR's shape, with all cores, each in a process of its own that waits while the other
works; the time of an epoch is taken from one end of an epoch to the next, the first one (workers start, the compiler
works) left out, and the figure is the median over rounds.

On a CPU also: how fast it would be if nothing but its bfloat16 convolutions took time, which is as far as anything else
could be improved. On a GPU also: how many times as much several runs do that share it, memory, and the share of its
arithmetic peak.

Run: `make bench`, or this script with `--network NAME`, `--images N`, `--rounds N`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import Row, finish
from torch import nn
from torch.utils.data import DataLoader, Dataset

import nladv_core as nl
from nladv_core import compat, nets, training
from nladv_core.datasets import ImageData
from nladv_core.recipes import RECIPES
from nladv_core.workers import keep_freed_memory

compat.declare_torchvision_operators()
from torchvision import transforms  # noqa: E402

NETWORKS = ("resnet20", "resnet56")
SHAPE = (3, 32, 32)
NEEDED = {"cpu": 3.0, "cuda": 10.0}
NEEDED_PACKED = 20.0
OMEGA = 1e-3
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
# Dense bfloat16 products, operations a second, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Noise of CIFAR's shape as PIL images, as torchvision's own data sets give them."""

    def __init__(self, data: ImageData):
        assert isinstance(data.train_images, torch.Tensor)
        self.images, self.labels = data.train_images.permute(0, 2, 3, 1).numpy(), data.train_labels.tolist()
        steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def noise(images: int) -> ImageData:
    """As many training images and ten to test on, so that an epoch is its training."""
    generator = np.random.default_rng(0)
    pixels = torch.from_numpy(generator.integers(0, 256, (images + 10, *SHAPE), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, images + 10))
    classes = tuple("0123456789")
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    told = ("none", "noise", False)
    return ImageData("noise", pixels[:-10], labels[:-10], pixels[-10:], labels[-10:], classes, mean, std, *told)


def network(name: str, linearized: bool) -> nn.Module:
    torch.manual_seed(0)
    plain = nets.build(name)
    return nl.linearize(plain, SHAPE) if linearized else plain


def usual(net: nn.Module, data: ImageData, batch: int, device: torch.device) -> Iterator[float]:
    """The usual loop: a loss an epoch. With slopes, what one would write first: penalty and clamp layer by layer."""
    loader = DataLoader(
        Pictures(data),
        batch_size=batch,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    net.to(device)
    slopes = [module.slope for module in net.modules() if isinstance(module, nl.ChannelPReLU)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    while True:
        net.train()
        total = 0.0
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = criterion(net(images), labels)
            for slope in slopes:
                loss = loss + OMEGA * (1 - slope + 1e-6).abs().sqrt().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slope in slopes:
                    slope.clamp_(0, 1)
            total += loss.item()
        yield total


def ours(net: nn.Module, data: ImageData, epochs: int, device: torch.device) -> Iterator[Any]:
    recipe = RECIPES["cifar-train"].until(epochs)
    sloped = any(isinstance(module, nl.ChannelPReLU) for module in net.modules())
    how: dict[str, Any] = {"omega": OMEGA} if sloped else {}
    return training.fit(net, data, recipe, seed=0, precision="bfloat16", compiled=True, device=device, **how)


class Loop:
    """One of the two loops in a process of its own, which does an epoch when asked to."""

    def __init__(self, side: str, name: str, linearized: bool, images: int, device: torch.device):
        given = ["--serve", side, "--network", name, "--images", str(images), "--device", device.type]
        command = [sys.executable, __file__, *given, "--threads", str(torch.get_num_threads())]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, *["--linearized"] * linearized], **pipes)

    def epoch(self) -> dict[str, float]:
        """Seconds that it took, and bytes of the device in use at most."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found

    def end(self) -> None:
        """Let the process come to its end."""
        self.process.communicate()


def serve(side: str, name: str, linearized: bool, images: int, device: torch.device) -> None:
    """In such a process: an epoch for each line that comes."""
    data, net = noise(images), network(name, linearized)
    if side == "ours":
        keep_freed_memory()  # as every process of `nladv` that trains
        epochs: Iterator[Any] = ours(net, data, 10_000, device)
    else:
        epochs = usual(net, data, RECIPES["cifar-train"].batch, device)
    for _ in sys.stdin:
        start = time.perf_counter()
        next(epochs)
        seconds = time.perf_counter() - start
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        print(json.dumps({"seconds": seconds, "memory": memory}), flush=True)


def compare(name: str, linearized: bool, images: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Images a second of both loops, epoch by epoch in turn."""
    theirs, fast = (Loop(side, name, linearized, images, device) for side in ("usual", "ours"))
    theirs.epoch()
    first = fast.epoch()["seconds"]
    fast.epoch()
    taken = [(theirs.epoch()["seconds"], fast.epoch()) for _ in range(rounds)]
    theirs.end()
    fast.end()
    found: dict[str, Any] = {"network": name, "linearized": linearized, "device": device.type, "first_s": first}
    found |= {"usual": [images / a for a, _ in taken], "ours": [images / b["seconds"] for _, b in taken]}
    if device.type == "cuda":
        found["memory"] = taken[-1][1]["memory"]
    return found | {"ratio": statistics.median(a / b["seconds"] for a, b in taken)}


def alone(name: str, images: int, seconds: float, device: torch.device) -> float:
    """Images a second of one plain run over `seconds`, in a process of its own among others."""
    keep_freed_memory()
    fast = ours(network(name, False), noise(images), 10_000, device)
    next(fast)
    print("ready", flush=True)
    sys.stdin.readline()
    start, epochs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(fast)
        epochs += 1
    return epochs * images / (time.perf_counter() - start)


def packed(name: str, count: int, images: int, seconds: float, device: torch.device) -> float:
    """Images a second, summed over `count` processes that train at once."""
    given = ["--alone", name, "--images", str(images), "--seconds", str(seconds), "--device", device.type]
    command = [sys.executable, __file__, *given, "--threads", "1"]
    with_pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **with_pipes) for _ in range(count)]
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    return sum(float(run.communicate()[0]) for run in runs)


def convolutions(name: str, batch: int) -> float:
    """Images a second if each convolution's forward and backward pass, in bfloat16, were all that a step does."""
    keep_freed_memory()
    net, total = network(name, False), 0.0
    with torch.no_grad():
        inputs: dict[nn.Module, torch.Tensor] = {}
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda module, given: inputs.update({module: given[0]}))
        net(torch.randn(batch, *SHAPE).to(memory_format=torch.channels_last))
    for number, (module, given) in enumerate(inputs.items()):
        layer = module.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = given.bfloat16().requires_grad_(number > 0)  # nobody asks for the gradient of an image
        gradient, taken = torch.randn_like(layer(x)), []
        for _ in range(4):
            start = time.perf_counter()
            layer(x).backward(gradient)
            taken.append(time.perf_counter() - start)
        total += statistics.median(taken[1:])
    return batch / total


def operations(name: str) -> float:
    """Multiplications and additions of one image's forward and backward pass, counted twice each."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(name, False)(torch.zeros(1, *SHAPE)).sum().backward()
    return float(counter.get_total_flops())


def main() -> int:
    """Measure, print, write JSON; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, help="one network")
    parser.add_argument("--images", type=int, help="of an epoch (default: 2,560, on a GPU 51,200)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--seconds", type=float, default=20.0, help="of runs that share the device")
    parser.add_argument("--packed", type=int, nargs="*", help="runs that share the device (default: 2; on a GPU 4 8)")
    parser.add_argument("--device", help="cpu or cuda (default: what there is)")
    parser.add_argument("--alone", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=("usual", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--linearized", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images = given.images or (51_200 if device.type == "cuda" else 2_560)
    if given.serve:
        serve(given.serve, given.network, given.linearized, images, device)
        return 0
    if given.alone:
        print(alone(given.alone, images, given.seconds, device))
        return 0
    rows, measured = [], []
    for name in [given.network] if given.network else NETWORKS:
        usual_rate = 0.0
        for linearized in (False, True):
            found = compare(name, linearized, images, given.rounds, device)
            measured.append(found)
            theirs, fast = (statistics.median(found[side]) for side in ("usual", "ours"))
            usual_rate = usual_rate or theirs
            what = f"{name}{' with slopes' * linearized}, one run, {device.type}"
            # The bar is for a training as everybody knows it; what the slopes cost is told beside it.
            needed = None if linearized else NEEDED[device.type]
            sides = f"{theirs:,.0f} images/s", f"{fast:,.0f} images/s"
            rows.append(Row(what=what, baseline=sides[0], ours=sides[1], ratio=found["ratio"], required=needed))
            print(rows[-1], flush=True)
            if device.type == "cpu" and not linearized:
                bound = convolutions(name, RECIPES["cifar-train"].batch)
                measured.append({"network": name, "convolutions": bound, "device": device.type})
                sides = f"{theirs:,.0f} images/s", f"{bound:,.0f} images/s"
                rows.append(
                    Row(what=f"{name}, its convolutions alone", baseline=sides[0], ours=sides[1], ratio=bound / theirs)
                )
                print(rows[-1], flush=True)
            if device.type == "cuda" and not linearized:
                found["epoch_s"] = 50_000 / fast
                found["whole_s"] = 260 * 50_000 / fast
                peak = next((p for part, p in PEAKS.items() if part in torch.cuda.get_device_name(device)), None)
                found["of_peak"] = operations(name) * fast / peak if peak else None
                print({key: found[key] for key in ("epoch_s", "whole_s", "of_peak", "memory")}, flush=True)
        for count in given.packed if given.packed is not None else ([4, 8] if device.type == "cuda" else [2]):
            rate = packed(name, count, images, given.seconds, device)
            measured.append({"network": name, "packed": count, "device": device.type, "ours": rate})
            needed = NEEDED_PACKED if device.type == "cuda" else None
            sides = f"{usual_rate:,.0f} images/s", f"{rate:,.0f} images/s"
            what = f"{name}, {count} runs at once, {device.type}"
            rows.append(Row(what=what, baseline=sides[0], ours=sides[1], ratio=rate / usual_rate, required=needed))
            print(rows[-1], flush=True)
    return finish("throughput", rows, measured=measured, threads=torch.get_num_threads())


if __name__ == "__main__":
    sys.exit(main())
