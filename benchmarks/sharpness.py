"""What a picture of a channel costs, against Lucent's own loop over channels.

Both render the same channels of the same network with the same number of steps, the same transformations and the same
size (`fixed_image_size`, so that Lucent does not enlarge to 224 pixels): Lucent's `render_vis` one channel after the
other, ours all of them together. Rounds alternate, so that a busy machine slows both; the figure is the median over
rounds of seconds per channel, Lucent / ours. Lucent gets a fresh copy of the network each round, without the hooks that
its earlier calls left.

Then ours again and again on one network: cost per channel must not grow with the number rendered before. Lucent's
own growth is shown beside it.

Network: ResNet-20 v1 at 32 pixels, linearized, slopes drawn at random. On the CPU with two threads, and on a GPU when
there is one.

Run: `make bench`, or this script with `--steps N`, `--channels N`, `--rounds N`, `--threads N`.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from report import Row, finish
from torch import nn

import nladv_core as nl
from nladv_core import nets, sharpness
from nladv_core.sharpness import Channel, Rendering

NEEDED = {"cpu": 5.0, "cuda": 20.0}  # times faster, from the issue that asked for it
GROWTH = 1.25  # last round's cost over the first one's, at most: rounds differ a little
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network() -> nn.Module:
    """ResNet-20 with slopes between ReLU and line, in eval mode."""
    torch.manual_seed(0)
    net = nl.linearize(nets.build("resnet20v1"), (3, 32, 32))
    for _, unit in nl.units(net):
        unit.slope.data.uniform_(0, 0.9)
    return net.eval()


def lucent_loop(net: nn.Module, channels: Sequence[Channel], rendering: Rendering, device: torch.device) -> None:
    """What one writes with Lucent."""
    parts = sharpness._parts()  # imports it, also where torchvision's build does not fit torch's
    from lucent.optvis import param
    from lucent.optvis.render import render_vis

    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (MEAN, STD))
    transforms = sharpness._transforms(parts, rendering.size)[:-1] + [lambda x: (x - mean) / std]
    for channel in channels:
        render_vis(
            net,
            f"{channel.layer.replace('.', '_')}:{channel.number}",
            lambda: param.image(rendering.size),
            transforms=transforms,
            thresholds=(rendering.steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=rendering.size,
        )


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(device: torch.device, count: int, rendering: Rendering, rounds: int) -> dict[str, Any]:
    """Seconds per channel of both, round by round, and of ours and Lucent's as more and more are rendered."""
    net = network().to(device)
    channels = sharpness.spread_evenly(sharpness.active_channels(net), count)
    few = sharpness.spread_evenly(channels, max(2, count // 16))

    def ours(chosen: Sequence[Channel] = channels) -> None:
        sharpness.render({"net": net}, chosen, rendering, mean=MEAN, std=STD, device=device, progress=False)

    short = Rendering(size=rendering.size, steps=2)
    lucent_loop(copy.deepcopy(net), few[:1], short, device)  # whatever the first call sets up
    sharpness.render({"net": net}, few, short, mean=MEAN, std=STD, device=device, progress=False)
    pairs = []
    for _ in range(rounds):
        fresh = copy.deepcopy(net)
        pairs.append(
            (
                seconds(lambda fresh=fresh: lucent_loop(fresh, few, rendering, device), device) / len(few),  # type: ignore[misc]
                seconds(ours, device) / count,
            )
        )
    again = [seconds(ours, device) / count for _ in range(rounds)]
    hooked = copy.deepcopy(net)
    theirs = [seconds(lambda: lucent_loop(hooked, few[:2], rendering, device), device) / 2 for _ in range(rounds)]
    return {
        "device": device.type,
        "channels": count,
        "steps": rendering.steps,
        "size": rendering.size,
        "lucent": [pair[0] for pair in pairs],
        "ours": [pair[1] for pair in pairs],
        "faster": statistics.median(a / b for a, b in pairs),
        "growth": statistics.median(again[-2:]) / statistics.median(again[:2]),
        "lucent_growth": theirs[-1] / theirs[0],
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # Lucent's libraries are older than today's torch
    rows, table, failures = [], [], []
    for device in [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available():
        row = compare(device, given.channels, Rendering(steps=given.steps), given.rounds)
        rows.append(row)
        lucent, ours = (1000 * statistics.median(row[name]) / given.steps for name in ("lucent", "ours"))
        print(
            f"{device.type:5} a step of a channel: Lucent {lucent:7.2f} ms, ours {ours:7.2f} ms, {row['faster']:.1f} "
            f"times faster (needed: {NEEDED[device.type]:g}); growth {row['growth']:.2f}, Lucent's "
            f"{row['lucent_growth']:.2f}; hooks left: {row['hooks']}",
            flush=True,
        )
        sides = f"Lucent {lucent:.2f} ms", f"{ours:.2f} ms"
        bar = {"ratio": row["faster"], "required": NEEDED[device.type]}
        table.append(Row(what=f"a step of a picture, {device.type}", baseline=sides[0], ours=sides[1], **bar))
        if row["growth"] > GROWTH or row["hooks"]:
            failures.append(f"{device.type}: cost grows by {row['growth']:.2f}, {row['hooks']} hooks are left")
    return finish("sharpness", table, failures, rows=rows)


if __name__ == "__main__":
    sys.exit(main())
