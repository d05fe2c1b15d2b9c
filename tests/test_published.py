"""Published networks as parents: taken as they are, shown images as their authors did, and named in the record."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nladv_core import datasets, experiments, nets, runs
from nladv_core.errors import SpecError
from nladv_core.paths import path_length
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.runs import RunFailed, RunSpec, Store, run

NAME = "somebody/resnet8"
FINE = Recipe(epochs=1, lr=1e-9, batch=16)
TRUE = nets.PUBLISHED["akamaster/resnet20"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nets.PublishedWeights:
    """A published ResNet-8 and a CIFAR-10 of 40 + 30 random images, in a data folder of their own."""
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    runs._load.cache_clear()
    rng = np.random.default_rng(3)
    for split, count in (("train", 40), ("test", 30)):
        rows = []
        for pixels in rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        path = tmp_path / "data" / "cifar10" / f"cifar10-{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": pa.array(rows, kind), "label": rng.integers(0, 10, count)}), path)
    torch.manual_seed(5)
    net = nets.build("resnet8v1")
    with torch.no_grad():  # so that the answer depends on mean and std
        net.linear.weight.mul_(10)  # type: ignore[union-attr,operator]
    file = tmp_path / "data" / "weights" / "ours.th"
    file.parent.mkdir()
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, file)
    found = replace(
        TRUE,
        file="ours.th",
        net="resnet8v1",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.25, 2.0),
    )
    monkeypatch.setattr(nets, "PUBLISHED", {NAME: found})
    return found


def start(**more: Any) -> RunSpec:
    return RunSpec(**({"data": "cifar10", "net": "resnet8v1", "recipe": UNTRAINED, "published": NAME} | more))


def test_a_published_network_is_evaluated_as_it_is(world: nets.PublishedWeights, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", also=())
    frame = run([start()], store, progress=False, workers=1)
    record = store.record(start())
    net = nets.load_published(NAME)
    data = datasets.load("cifar10")
    mean, std = torch.tensor(world.mean).view(3, 1, 1), torch.tensor(world.std).view(3, 1, 1)

    def judged(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        with torch.no_grad():
            logits = net((images / 255 - mean) / std)
        loss = -logits.log_softmax(1)[range(len(labels)), labels].mean()
        return float((logits.argmax(1) == labels).double().mean()), float(loss)

    metrics = record.metrics
    assert metrics["test_accuracy"] == pytest.approx(judged(data.test_images, data.test_labels)[0])
    expected = judged(data.train_images, data.train_labels)
    assert (metrics["train_accuracy"], metrics["train_loss"]) == pytest.approx(expected, rel=1e-5)
    assert metrics["active_fraction"] == 1 and metrics["napl"] == path_length_of_all_active()
    assert frame["linearized"].tolist() == [False] and frame["epochs"].tolist() == [0]
    assert record.parent == {
        "published": NAME,
        "sha256": world.sha256,
        "source": world.source,
        "url": world.url,
    }
    assert record.data["mean"] == pytest.approx(world.mean) and record.data["std"] == pytest.approx(world.std)
    stored = store.weights(start())
    assert all(torch.equal(value, stored[key]) for key, value in net.state_dict().items())


def path_length_of_all_active() -> float:
    from nladv_core.linearize import linearize

    return path_length(linearize(nets.build("resnet8v1"), (3, 32, 32)), (3, 32, 32)).mean


def test_descendants_start_from_its_weights_and_see_what_it_saw(world: nets.PublishedWeights, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", also=())
    child = RunSpec(data="cifar10", net="resnet8v1", parent=start(), recipe=FINE, omega=1e-6, seed=3)
    grandchild = replace(child, parent=child, omega=0, masks="layer", seed=4)
    run([child, grandchild], store, progress=False, workers=1)
    for spec in (child, grandchild):
        assert spec.origin == NAME and store.record(spec).data["mean"] == pytest.approx(world.mean)
    before, after = store.weights(start()), store.weights(child)
    moving = ("running_mean", "running_var", "num_batches_tracked")
    assert all(torch.allclose(v, after[k], atol=1e-5) for k, v in before.items() if not k.endswith(moving))
    weights = store.record(start()).files["weights"]["sha256"]
    assert store.record(child).parent == {"key": start().key(), "sha256": weights}
    own = RunSpec(data="cifar10", net="resnet8v1", recipe=FINE)
    run([own], store, progress=False, workers=1)
    for one in (start(), child, grandchild):  # all of its images were trained on, so none can be held out
        with pytest.raises(SpecError, match="held_out is 8"):
            replace(one, held_out=8)
    assert store.record(own).data["mean"] == pytest.approx(datasets.load("cifar10").mean.tolist())


def test_the_key_of_the_real_one_is_pinned() -> None:
    spec = RunSpec(data="cifar10", net="resnet20v1", recipe=UNTRAINED, published="akamaster/resnet20")
    text = (
        '{"data":"cifar10","net":"resnet20v1","published":"akamaster/resnet20",'
        '"recipe":{"batch":0,"epochs":0,"lr":0.0}}'
    )
    assert spec.key() == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert not spec.linearized and str(spec) == f"{spec.key()} (akamaster/resnet20 on cifar10, as published)"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"published": "somebody/resnet9"}, "did you mean 'somebody/resnet8'?"),
        ({"net": "resnet8"}, "net is 'resnet8', but the published network somebody/resnet8 is taken as it is"),
        ({"data": "cifar100"}, "expected 'cifar10'"),
        ({"width": 0.5}, "width is 0.5"),
        ({"recipe": FINE}, "expected one that trains nothing"),
        ({"omega": 0.1}, "make it the parent of a run"),
        ({"seed": 1}, "seed is 1"),
    ],
)
def test_what_a_published_network_cannot_be(world: nets.PublishedWeights, change: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        start(**change)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_published_network_has_no_parent_and_its_children_its_data(world: nets.PublishedWeights) -> None:
    with pytest.raises(SpecError, match="parent is"):
        start(parent=start())
    with pytest.raises(SpecError, match=f"descends from {NAME}, which was trained on 'cifar10'"):
        RunSpec(data="cifar100", net="resnet8v1", parent=start(), recipe=FINE)


def test_weights_that_are_not_there_are_told_in_one_sentence(
    world: nets.PublishedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "weights" / "ours.th").unlink()
    with pytest.raises(RunFailed, match=r"there is no file .*ours\.th; download it from") as told:
        run([start()], Store(tmp_path / "runs", also=()), progress=False, workers=1)
    assert "\n" not in str(told.value)


def test_the_chapter_offers_published_networks() -> None:
    found = experiments.chapter("06", {"tier": "reduced", "network": "akamaster/resnet20", "seeds": [0, 1]})
    (parent,) = found.parents()
    assert parent.published == "akamaster/resnet20" and parent.net == "resnet20v1"
    children = [spec for spec in found.specs() if spec.parent]
    assert {spec.seed for spec in children} == {0, 1} and {spec.parent for spec in children} == {parent}
    assert {spec.control for spec in children} <= set(children), "each beside the published network trained on as it is"
    assert found.specs()[0] == parent and all(spec.recipe == RECIPES["reduced-linearize"] for spec in children)
    one = experiments.chapter("01", {"tier": "reduced", "network": "akamaster/resnet56", "seed": 4}).specs()[0]
    assert (one.net, one.seed, one.origin) == ("resnet56v1", 4, "akamaster/resnet56")
    assert experiments.chapter("02", {"network": "akamaster/resnet20"}).network == "resnet20v1"
    for given, told in (
        ({"network": "akamastr/resnet20"}, "did you mean 'akamaster/resnet20'?"),
        ({"network": "akamaster/resnet20", "width": 0.5}, "width is 0.5"),
        ({"network": "akamaster/resnet20", "tier": "quick"}, "data is 'digits'"),
    ):
        with pytest.raises(SpecError) as refusal:
            experiments.chapter("06", {"tier": "reduced"} | given)
        assert told in str(refusal.value)
