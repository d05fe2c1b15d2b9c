"""Chapter 10's experiment (§4.4): the same channels' pictures in a network before and after linearization, compared.

`explore` renders and measures; what it finds can be saved as a record, a JSON file with the measures of every channel
and one sheet of pictures a network, and read again. Records are committed under `data/results/features/<name>/`.

Networks are told apart by their *role*: `relu`, the network that was linearized; `weak` and `strong`, its
linearizations; and two controls: `seed`, the strong one repeated with another seed, and `control`, the ReLU network
trained equally long on the same images without a penalty.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nladv_core import sharpness
from nladv_core.checkpoints import write
from nladv_core.errors import RecordError, SpecError
from nladv_core.sharpness import Channel, Paired, Rendering, paired

if TYPE_CHECKING:
    import pandas as pd

    from nladv_core.experiments import FeatureVisualization
    from nladv_core.store import Store

ROLES = ("relu", "weak", "strong", "seed", "control")
# Measures of a record: those of a picture, and whether the ReLU network recognises it.
MEASURES = (*sharpness.MEASURES, "recognised")
# Which role is compared with which, and what it tells.
PAIRS = (
    ("weak", "relu", "milder linearization minus ReLU network"),
    ("strong", "relu", "stronger linearization minus ReLU network"),
    ("strong", "weak", "stronger minus milder linearization"),
    ("control", "relu", "ReLU network trained on, minus ReLU network"),
    ("weak", "control", "milder linearization minus ReLU network trained on"),
    ("strong", "control", "stronger linearization minus ReLU network trained on"),
    ("seed", "relu", "stronger linearization, another seed, minus ReLU network"),
    ("seed", "strong", "stronger linearization, another seed minus the first"),
)


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """One of the compared networks.

    Attributes:
        role: one of `ROLES`.
        label: how a figure calls it.
        key: of the run or distillation that made it, or the name of a published network.
        accuracy: share of test or held-out images classified correctly, in [0, 1].
        active: active share of its units, in [0, 1].
        agreement: share of held-out images to which it gives the same class as the network that taught it, or None.
        digest: of graph and weights (`sharpness.network_digest`).
    """

    role: str
    label: str
    key: str
    accuracy: float
    active: float
    digest: str
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Features:
    """What was rendered and measured.

    Attributes:
        name: of the record.
        title: of the architecture, in words.
        tier: of the chapter.
        data: what the networks saw, in a sentence.
        networks: which were compared.
        rendering: how pictures were made; its seed is that of the first start.
        starts: seeds of the pictures: every channel was rendered once from each.
        channels: which channels, all active in all networks.
        active_in_all: how many channels are.
        values: measure -> float64 [starts, networks, channels].
        chance: the share that would be recognised by chance.
        shown: positions in `channels` of those whose pictures are kept.
        images: their pictures from the first start, uint8 [networks, shown, 3, size, size].
        made: where and when: device, torch, lucent, code, wall_s, created.
    """

    name: str
    title: str
    tier: str
    data: str
    networks: tuple[NetworkInfo, ...]
    rendering: Rendering
    starts: tuple[int, ...]
    channels: tuple[Channel, ...]
    active_in_all: int
    values: dict[str, np.ndarray]
    chance: float
    shown: tuple[int, ...]
    images: Tensor
    made: dict[str, Any]

    def position(self, role: str) -> int | None:
        """Where the network of a role stands, None if there is none."""
        return next((i for i, net in enumerate(self.networks) if net.role == role), None)

    def of(self, role: str, measure: str = "gradient") -> np.ndarray:
        """A measure of every channel in the network of a role, averaged over starts: float64 [channels].

        Raises:
            SpecError: an unknown measure, or no network has that role.
        """
        row = self.position(role)
        if row is None or measure not in self.values:
            raise SpecError(f"{self.name} has no {measure!r} of {role!r}; found {', '.join(self.values)}")
        return self.values[measure][:, row].mean(0)


# -------------------------------------------------------------------------------------------------------- experiment


def explore(
    chapter: FeatureVisualization,
    store: Store | None = None,
    *,
    progress: bool = True,
    folder: str | Path | None = None,
) -> Features:
    """Train what is missing, render, measure.

    Args:
        chapter: its parameters.
        store: of runs; default `Store()`.
        progress: bars, where somebody looks.
        folder: for finished batches of pictures, see `sharpness.sweep`.

    Raises:
        SpecError: no channel is active in all networks, or whatever `sharpness.render` refuses.
        DataError: images or published weights are not there.
    """
    from nladv_core.runs import pick_device
    from nladv_core.store import code_version

    began = time.perf_counter()
    device = pick_device(chapter.device)
    taught = chapter.distillations()
    networks, infos, data, moments = _distilled(chapter, device) if taught else _from_runs(chapter, store, progress)
    common = sharpness.common_channels(networks)
    channels = sharpness.spread_evenly(common, chapter.channels or len(common))
    starts = chapter.starts or (0,)
    rendering = Rendering(size=chapter.size or 32, steps=chapter.steps or 128, seed=starts[0])
    found = []
    for seed in starts:
        pictures = sharpness.sweep(
            networks,
            channels,
            replace(rendering, seed=seed),
            **moments,
            device=device,
            folder=folder,
            progress=progress,
        )
        judged = [
            sharpness.recognised(networks["relu"], images, channels, **moments, of=rendering.of, device=device).astype(
                float
            )
            for images in pictures.images
        ]
        found.append((pictures, np.stack(judged)))
    first = found[0][0]
    measures = {name: np.stack([pictures.measures[name] for pictures, _ in found]) for name in sharpness.MEASURES}
    measures["recognised"] = np.stack([judged for _, judged in found])
    return Features(
        name=chapter.record_name(),
        title=chapter.title(),
        tier=chapter.tier,
        data=data,
        networks=tuple(infos),
        rendering=rendering,
        starts=starts,
        channels=tuple(channels),
        active_in_all=len(common),
        values=measures,
        chance=sharpness.chance_level(channels),
        shown=tuple(range(len(channels))),
        images=first.images,
        made={
            "device": device.type,
            "torch": torch.__version__,
            "lucent": _version("torch-lucent"),
            "code": code_version(),
            "wall_s": round(time.perf_counter() - began, 1),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _from_runs(
    chapter: FeatureVisualization, store: Store | None, progress: bool
) -> tuple[dict[str, nn.Module], list[NetworkInfo], str, dict[str, Any]]:
    """Networks by role from runs of the store, computed where they are missing."""
    from nladv_core.linearize import linearize
    from nladv_core.store import Store

    store = store or Store()
    chapter.run(store, progress=progress)
    networks, infos = {}, []
    specs = chapter.by_role()
    for role, spec in specs.items():
        record, net = store.record(spec), store.network(spec)
        if not spec.linearized:
            net = linearize(net, tuple(record.data["shape"])).eval()
        networks[role] = net
        label = _label(role, chapter.strengths())
        accuracy, active = (float(record.metrics[name]) for name in ("test_accuracy", "active_fraction"))
        digest = sharpness.network_digest(net)
        infos.append(
            NetworkInfo(role=role, label=label, key=record.key, accuracy=accuracy, active=active, digest=digest)
        )
    record = store.record(specs["weak"])
    return networks, infos, record.data["description"], {name: record.data[name] for name in ("mean", "std")}


def _distilled(
    chapter: FeatureVisualization, device: torch.device
) -> tuple[dict[str, nn.Module], list[NetworkInfo], str, dict[str, Any]]:
    """An ImageNet network and what it taught."""
    from nladv_core import distillation
    from nladv_core.linearize import linearize

    networks: dict[str, nn.Module] = {}
    infos: list[NetworkInfo] = []
    for role, spec in chapter.distillations().items():
        teacher = distillation.TEACHERS[spec.teacher]
        student, record = distillation.distil(spec, device=device)
        if not networks:
            with torch.random.fork_rng(devices=[]):
                networks["relu"] = linearize(teacher.load(), (3, spec.size, spec.size)).eval()
            infos.append(
                NetworkInfo(
                    role="relu",
                    label=_label("relu", ()),
                    key=spec.teacher,
                    accuracy=record["teacher"]["accuracy"],
                    active=1.0,
                    agreement=1.0,
                    digest=sharpness.network_digest(networks["relu"]),
                )
            )
        networks[role] = student
        metrics = record["metrics"]
        infos.append(
            NetworkInfo(
                role=role,
                label=_label(role, chapter.strengths()),
                key=record["key"],
                accuracy=metrics["accuracy"],
                active=metrics["active_fraction"],
                agreement=metrics["agreement"],
                digest=sharpness.network_digest(student),
            )
        )
    told = f"Tiny ImageNet's validation images at {spec.size} px, {spec.fit:,} fitted and {spec.held_out:,} held out."
    return networks, infos, told, {"mean": list(teacher.mean), "std": list(teacher.std)}


def _label(role: str, strengths: Sequence[float]) -> str:
    if role == "relu":
        return "ReLU network"
    if role == "control":
        return "ReLU network, trained on"
    omega = strengths[0] if role == "weak" else strengths[-1]
    return f"ω = {omega:g}" + (", another seed" if role == "seed" else "")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# -------------------------------------------------------------------------------------------------------- comparison


def compare(features: Features, measure: str = "gradient") -> dict[tuple[str, str], Paired]:
    """(role, role) -> the paired comparison of a measure over channels, averaged over starts, for all of `PAIRS`."""
    roles = {net.role for net in features.networks}
    return {
        (first, second): paired(features.of(first, measure), features.of(second, measure))
        for first, second, _ in PAIRS
        if {first, second} <= roles
    }


def verdict(found: Iterable[Features], *, network: str, margin: float = 0.2) -> tuple[str, str, int]:
    """Verdict on C10, the numbers it rests on, and how many networks they come from, by the rule of the ledger.

    Of the mean gradient magnitude over channels active in all networks, with 95 % bootstrap intervals over channels.
    `reproduced`: the pictures are sharper (interval above zero) after the milder and after the stronger linearization,
    and the interval of the stronger minus the milder one lies within `margin` times the milder one's gain. `differs`:
    one of the two is less sharp, or that interval lies wholly outside the margin. Else `inconclusive`, and so without
    the two controls or if one of them passes as well: the network trained on without a penalty by more than the
    margin, or the repetition with another seed by more than it from the first. Without a record `not run`.

    Args:
        found: committed records of one tier.
        network: which of them, by the beginning of its title.
        margin: share of the gain, > 0.

    Raises:
        RecordError: two records of that network.
    """
    own = [features for features in found if features.title.partition(" on ")[0] == network]
    if not own:
        return "not run", f"no record of {network}", 0
    if len(own) > 1:
        raise RecordError(f"{', '.join(features.name for features in own)} are all of {network}; commit one of them")
    pairs = compare(own[0])
    weak, strong, step = (pairs[pair] for pair in (("weak", "relu"), ("strong", "relu"), ("strong", "weak")))
    note = f"{_told(weak)} milder, {_told(strong)} stronger, {_told(step)} between them; {weak.channels} channels of "
    note += f"{own[0].title}; one network, so the intervals say nothing of others"
    if "lower" in (weak.verdict, strong.verdict):
        return "differs", note, 1
    if (weak.verdict, strong.verdict) != ("higher", "higher"):
        return "inconclusive", note, 1
    bound = margin * weak.mean
    checks = {"trained on without a penalty": ("control", "relu"), "with another seed": ("seed", "strong")}
    if not set(checks.values()) <= set(pairs):
        return "inconclusive", f"{note}; without its two controls", 1
    for what, pair in checks.items():
        moved = pairs[pair]
        if moved.verdict != "no clear difference" and abs(moved.mean) > bound and (moved.low > 0 or pair[0] == "seed"):
            return "inconclusive", f"{note}; the control {what} passes as well ({_told(moved)})", 1
    if -bound < step.low and step.high < bound:
        return "reproduced", note, 1
    return ("differs" if step.low > bound or step.high < -bound else "inconclusive"), note, 1


def evidence(found: Iterable[Features]) -> tuple[str, ...]:
    """One line a record: how the sharpness of pictures changed with linearization and with the controls; no verdict."""
    lines = []
    for features in found:
        pairs = compare(features)
        told = [
            f"{_label_of(features, first)} {_told(pairs[first, 'relu'])}" for first in ROLES if (first, "relu") in pairs
        ]
        lines.append(
            f"{features.title}: mean image gradient against the ReLU network: {'; '.join(told)}; "
            f"{len(features.channels)} channels"
        )
    return tuple(lines)


def _label_of(features: Features, role: str) -> str:
    return next(net.label for net in features.networks if net.role == role)


def _told(pair: Paired) -> str:
    """A difference relative to the second network, with its interval."""
    low, high = (100 * end / pair.second for end in (pair.low, pair.high))
    return f"{100 * pair.mean / pair.second:+.1f} % ({low:+.1f} to {high:+.1f})"


def table(features: Features, measure: str = "gradient") -> pd.DataFrame:
    """The comparisons as a table, one row each: difference, interval, effect size, share of channels."""
    import pandas as pd

    found = compare(features, measure)
    rows = []
    for first, second, what in PAIRS:
        if (first, second) not in found:
            continue
        pair = found[first, second]
        rows.append(
            {
                "comparison": what,
                "difference": f"{pair.mean:+.4f}",
                "95 % interval": f"{pair.low:+.4f} to {pair.high:+.4f}",
                "relative": f"{100 * pair.mean / pair.second:+.1f} %" if pair.second else "",
                "effect size": f"{pair.effect:+.2f}",
                "channels higher": f"{100 * pair.share:.0f} %",
                "verdict": pair.verdict,
            }
        )
    return pd.DataFrame(rows)


def overview(features: Features) -> pd.DataFrame:
    """The networks, one row each: accuracy, active share, means of all measures over channels and starts."""
    import pandas as pd

    rows = []
    for net in features.networks:
        row = {
            "network": net.label,
            "accuracy, %": f"{100 * net.accuracy:.1f}",
            "agreement, %": "" if net.agreement is None else f"{100 * net.agreement:.1f}",
            "active, %": f"{100 * net.active:.1f}",
        }
        for measure, (title, scale, digits) in _COLUMNS.items():
            row[title] = f"{scale * features.of(net.role, measure).mean():.{digits}f}"
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame if any(net.agreement is not None for net in features.networks) else frame.drop(columns="agreement, %")


_COLUMNS = {
    "gradient": ("gradient", 1.0, 4),
    "high_frequency": ("high frequencies, %", 100.0, 1),
    "contrast": ("contrast", 1.0, 3),
    "recognised": ("recognised, %", 100.0, 0),
}


# ----------------------------------------------------------------------------------------------------------- records

_FORMAT = 1
_PER_ROW = 12  # pictures in a row of a sheet


def save(features: Features, folder: str | Path, shown: int = 48, quality: int = 88) -> Path:
    """Write a record: `features.json` and `<role>.webp`, one sheet a network; returns the JSON file's path.

    Args:
        folder: is made if need be; its name should be that of the record.
        shown: how many channels' pictures to keep at most, evenly spaced.
        quality: of WebP, 0 to 100.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = np.linspace(0, len(features.shown) - 1, min(shown, len(features.shown))).round().astype(int)
    sheets = {}
    for row, net in enumerate(features.networks):
        buffer = BytesIO()
        Image.fromarray(_sheet(features.images[row, places])).save(buffer, "webp", quality=quality, method=6)
        name = f"{net.role}.webp"
        write(folder / name, buffer.getvalue())
        sheets[net.role] = {"name": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    record = {
        "format": _FORMAT,
        "name": features.name,
        "title": features.title,
        "tier": features.tier,
        "data": features.data,
        "networks": [asdict(net) for net in features.networks],
        "rendering": asdict(features.rendering),
        "starts": list(features.starts),
        "channels": [list(channel) for channel in features.channels],
        "active_in_all": features.active_in_all,
        "values": {name: np.round(found, 6).tolist() for name, found in features.values.items()},
        "chance": features.chance,
        "shown": [features.shown[place] for place in places],
        "sheets": sheets,
        "made": features.made,
    }
    path = folder / "features.json"
    write(path, json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode())
    return path


def read(folder: str | Path) -> Features:
    """A record that `save` wrote.

    Raises:
        RecordError: missing, damaged, or not what its checksums and shapes say.
    """
    from PIL import Image

    path = Path(folder) / "features.json"
    remedy = "restore it, or delete the folder and make the record again"
    try:
        found = json.loads(path.read_text("utf-8"))
        if found.pop("format") != _FORMAT:
            raise ValueError("its format is another")
        rendering = Rendering(**found.pop("rendering"))
        networks = tuple(NetworkInfo(**net) for net in found.pop("networks"))
        channels = tuple(Channel(layer, index) for layer, index in found.pop("channels"))
        shown, starts = tuple(found.pop("shown")), tuple(found.pop("starts"))
        measures = {name: np.array(found["values"][name], dtype=float) for name in MEASURES}
        for name, values in measures.items():
            if values.shape != (len(starts), len(networks), len(channels)) or not np.isfinite(values).all():
                raise ValueError(f"its {name} has shape {values.shape} or holds what is no number")
        sheets = found.pop("sheets")
        images = []
        for net in networks:
            name, checksum = sheets[net.role]["name"], sheets[net.role]["sha256"]
            if Path(name).name != name:
                raise ValueError(f"it names the file {name!r}")
            content = (path.parent / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != checksum:
                raise ValueError(f"{name} has another checksum")
            sheet = np.array(Image.open(BytesIO(content)).convert("RGB"))
            images.append(_cut(sheet, len(shown), rendering.size))
        if any(not 0 <= place < len(channels) for place in shown):
            raise ValueError("it shows a channel that it does not have")
        found |= {"networks": networks, "rendering": rendering, "starts": starts, "channels": channels}
        return Features(**(found | {"values": measures, "shown": shown, "images": torch.stack(images)}))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: is no record of features ({error}); {remedy}") from None


def committed(tier: str | None = None, results: Path | None = None) -> list[Features]:
    """All committed records, of one tier or of all, by name.

    Args:
        results: folder of committed results, default `data/results` of the project.

    Raises:
        RecordError: one of them is damaged.
    """
    from nladv_core.places import project_root

    folder = (results or project_root() / "data" / "results") / "features"
    found = [read(path.parent) for path in sorted(folder.glob("*/features.json"))]
    return [features for features in found if tier in (None, features.tier)]


def provenance(features: Features) -> str:
    """The line that says where a figure comes from."""
    made, rendering = features.made, features.rendering
    starts = f"{len(features.starts)} start{'s' * (len(features.starts) != 1)}"
    parts = [
        f"tier {features.tier}",
        features.title,
        features.data.rstrip("."),
        f"{len(features.channels)} of {features.active_in_all} channels active in all of {len(features.networks)} nets",
        f"{rendering.steps} steps at {rendering.size} px, {starts}",
        f"torch {made['torch']}, torch-lucent {made['lucent']}",
        f"nladv {made['code']['version']}, code\u00a0{made['code']['source']}",
    ]
    return " · ".join(parts)


def _sheet(images: Tensor) -> np.ndarray:
    """Pictures [n, 3, H, W] in rows of `_PER_ROW`, as an array [rows·H, columns·W, 3]; what is left over is grey."""
    count, _, height, width = images.shape
    rows = -(-count // _PER_ROW)
    sheet = np.full((rows * height, min(count, _PER_ROW) * width, 3), 128, dtype=np.uint8)
    for i, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = (i // _PER_ROW) * height, (i % _PER_ROW) * width
        sheet[y : y + height, x : x + width] = picture
    return sheet


def _cut(sheet: np.ndarray, count: int, size: int) -> Tensor:
    """The first `count` pictures of a sheet."""
    rows, columns = -(-count // _PER_ROW), min(count, _PER_ROW)
    if sheet.shape != (rows * size, columns * size, 3):
        raise ValueError(f"a sheet has shape {sheet.shape}")
    cut = sheet.reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3, size, size)
    return torch.from_numpy(cut[:count].copy())


def by_name(found: Sequence[Features]) -> Mapping[str, Features]:
    """Records by their names."""
    return {features.name: features for features in found}
