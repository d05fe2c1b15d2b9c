"""Chapter 10's comparison, its records and its galleries; and a network that teaches itself."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nladv_core as nl
from nladv_core import distillation, experiments, features, galleries, sharpness
from nladv_core.distillation import Distillation, Images, Teacher
from nladv_core.errors import DataError, RecordError, SpecError
from nladv_core.features import Features, NetworkInfo
from nladv_core.sharpness import Channel, Rendering
from nladv_core.store import Store
from nladv_core.training import TrainingDiverged

ROOT = Path(__file__).parents[1]


def found(
    gains: dict[str, float] | None = None,
    channels: int = 30,
    noise: float = 0.01,
    name: str = "toy",
    tier: str = "paper",
) -> Features:
    """Features as `explore` returns them: each network's gradient is the ReLU network's plus its gain."""
    gains = {"relu": 0.0, "weak": 0.05, "strong": 0.05} if gains is None else gains
    generator = np.random.default_rng(0)
    base = generator.uniform(0.1, 0.2, channels)
    gradient = np.stack([base + gain + generator.normal(0, noise, channels) * (gain != 0) for gain in gains.values()])
    measures = {measure: np.stack([gradient, gradient + 0.002]) for measure in features.MEASURES}
    measures["gradient"] = np.stack([gradient - 0.001, gradient + 0.001])
    images = torch.from_numpy(generator.integers(0, 256, (len(gains), channels, 3, 8, 8), dtype=np.uint8))
    images = images.repeat_interleave(4, 3).repeat_interleave(4, 4)  # blocks survive WebP
    return Features(
        name=name,
        title="Toy on squares",
        tier=tier,
        data="Squares.",
        networks=tuple(
            NetworkInfo(role=role, label=f"the {role} one", key=role, accuracy=0.9, active=0.5, digest="0")
            for role in gains
        ),
        rendering=Rendering(size=32, steps=5),
        starts=(0, 1),
        channels=tuple(Channel(f"layer{index // 10}", index % 10) for index in range(channels)),
        active_in_all=channels + 3,
        values=measures,
        chance=0.1,
        shown=tuple(range(channels)),
        images=images,
        made={
            "torch": "2",
            "lucent": "0.1.8",
            "code": {"version": "0", "source": "abc"},
            "device": "cpu",
            "wall_s": 1.0,
        },
    )


# ----------------------------------------------------------------------------------------------------------- comparison


def test_starts_are_averaged_and_every_pair_is_compared() -> None:
    toy = found({"relu": 0.0, "weak": 0.05, "strong": 0.08, "seed": 0.07, "control": 0.01})
    assert np.allclose(toy.of("relu"), toy.values["gradient"][:, 0].mean(0))
    pairs = features.compare(toy)
    assert set(pairs) == {(first, second) for first, second, _ in features.PAIRS}
    assert pairs["strong", "relu"].mean == pytest.approx(0.08, abs=0.01)
    assert pairs["strong", "weak"].mean == pytest.approx(0.03, abs=0.01)
    assert len(features.table(toy)) == len(pairs) and len(features.overview(toy)) == 5
    assert set(features.compare(found())) == {("weak", "relu"), ("strong", "relu"), ("strong", "weak")}
    with pytest.raises(SpecError, match="has no 'gradient' of 'control'"):
        found().of("control")


@pytest.mark.parametrize(
    ("weak", "strong", "expected"),
    [
        (0.05, 0.05, "reproduced"),  # sharper, and no further gain
        (0.05, 0.055, "reproduced"),  # a gain within a fifth of the first
        (0.05, 0.09, "differs"),  # a further gain
        (0.09, 0.05, "differs"),
        (0.05, 0.06, "inconclusive"),  # on the margin
        (-0.05, -0.05, "differs"),
        (0.0, 0.0, "inconclusive"),
        (0.05, 1e-9, "inconclusive"),
        (0.0, 0.05, "inconclusive"),
    ],
)
def test_the_verdict_follows_the_rule_of_the_ledger(weak: float, strong: float, expected: str) -> None:
    toy = found({"relu": 0.0, "weak": weak, "strong": strong, "seed": strong, "control": 0.0})
    verdict, note, n = features.verdict([toy], network="Toy")
    assert (verdict, n) == (expected, 1)
    assert "30 channels of Toy on squares; one network" in note and note.count("%") == 3


@pytest.mark.parametrize(
    ("seed", "control", "expected"),
    [
        (0.05, 0.0, "reproduced"),
        (0.05, 0.005, "reproduced"),  # a tenth of the gain comes with training on: less than the margin
        (0.05, 0.05, "inconclusive"),  # all of it does
        (0.09, 0.0, "inconclusive"),  # another seed moves as far
        (0.01, 0.0, "inconclusive"),
        (0.05, -0.05, "reproduced"),  # training on alone blurs
    ],
)
def test_a_control_that_passes_as_well_leaves_no_verdict(seed: float, control: float, expected: str) -> None:
    toy = found({"relu": 0.0, "weak": 0.05, "strong": 0.05, "seed": seed, "control": control})
    verdict, note, _ = features.verdict([toy], network="Toy")
    assert verdict == expected and ("passes as well" in note) == (expected == "inconclusive")


def test_without_its_controls_nothing_is_reproduced() -> None:
    verdict, note, _ = features.verdict([found({"relu": 0.0, "weak": 0.05, "strong": 0.05})], network="Toy")
    assert verdict == "inconclusive" and note.endswith("without its two controls")


def test_the_network_that_is_named_is_judged_and_not_the_first_of_all() -> None:
    toy = found({"relu": 0.0, "weak": 0.05, "strong": 0.05, "seed": 0.05, "control": 0.0})
    blurred = replace(
        found({"relu": 0.0, "weak": -0.05, "strong": -0.05, "seed": -0.05, "control": 0.0}),
        name="a-first",
        title="A first on squares",
    )
    assert features.verdict([blurred, toy], network="Toy")[0] == "reproduced"
    assert features.verdict([blurred, toy], network="A first")[0] == "differs"
    assert features.verdict([blurred], network="Toy") == ("not run", "no record of Toy", 0)
    with pytest.raises(RecordError, match="are all of Toy; commit one of them"):
        features.verdict([toy, replace(toy, name="again")], network="Toy")


def test_evidence_says_how_much_sharper_and_what_the_controls_say() -> None:
    (line,) = features.evidence([found({"relu": 0.0, "weak": 0.05, "strong": 0.08, "control": 0.01})])
    assert line.startswith("Toy on squares: mean image gradient against the ReLU network: the weak one +")
    assert "the control one" in line and line.endswith("30 channels")


# -------------------------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    toy = found()
    path = features.save(toy, tmp_path / "toy", shown=14, quality=95)
    assert {file.name for file in path.parent.iterdir()} == {"features.json", "relu.webp", "weak.webp", "strong.webp"}
    again = features.read(path.parent)
    assert replace(again, values={}, images=toy.images, shown=toy.shown) == replace(toy, values={})
    for name, values in toy.values.items():
        assert np.allclose(again.values[name], values, atol=1e-6)
    assert again.images.shape == (3, 14, 3, 32, 32) and again.shown[0] == 0 and again.shown[-1] == 29
    difference = (again.images.int() - toy.images[:, list(again.shown)].int()).abs().float().mean()
    assert difference < 25  # WebP keeps half the resolution of colours
    shuffled = (again.images.int() - toy.images[:, list(again.shown)].flip(1).int()).abs().float().mean()
    assert shuffled > 2 * difference  # and each picture is in its own place
    assert features.provenance(again) == features.provenance(toy)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "features.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "features.json").write_text("{"), "is no record of features"),
        (lambda folder: (folder / "weak.webp").write_bytes(b"0"), "weak.webp has another checksum"),
        (lambda folder: (folder / "weak.webp").unlink(), "cannot be read"),
        (lambda folder: edit(folder, format=2), "its format is another"),
        (lambda folder: edit(folder, starts=[0]), "has shape"),
        (lambda folder: edit(folder, shown=[99] * 30), "a channel that it does not have"),
        (lambda folder: edit(folder, sheets={"relu": {"name": "../relu.webp", "sha256": ""}}), "it names the file"),
        (lambda folder: edit(folder, more=1), "unexpected keyword argument 'more'"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, damage: Any, told: str) -> None:
    features.save(found(), tmp_path)
    damage(tmp_path)
    with pytest.raises(RecordError) as refusal:
        features.read(tmp_path)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def edit(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(record | changes))


def test_committed_records_are_whole_small_and_no_runs() -> None:
    folder = ROOT / "data" / "results" / "features"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 3 << 20
    for record in features.committed():
        assert (folder / record.name / "features.json").is_file()
        assert record.tier in ("reduced", "paper") and {"relu", "weak", "strong"} <= {n.role for n in record.networks}
    assert "features" not in set(Store("nowhere").keys())


def test_committed_records_of_a_tier(tmp_path: Path) -> None:
    for name, tier in (("b", "paper"), ("a", "reduced")):
        features.save(found(name=name, tier=tier), tmp_path / "features" / name)
    assert [record.name for record in features.committed(results=tmp_path)] == ["a", "b"]
    assert [record.name for record in features.committed("paper", tmp_path)] == ["b"]
    assert features.committed(results=tmp_path / "nothing") == []
    assert [*features.by_name(features.committed(results=tmp_path))] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------------ galleries


def tags(html: galleries.Html, name: str) -> list[str]:
    return re.findall(rf"<{name}\b[^>]*>", html._repr_html_())


def test_a_gallery_describes_every_picture_and_loads_nothing_from_outside() -> None:
    toy = found({"relu": 0.0, "weak": 0.05})
    shown = galleries.gallery(toy, count=5, caption="Five & more.")
    images = tags(shown, "img")
    assert len(images) == 10
    alts = [re.search(r'alt="([^"]*)"', tag)[1] for tag in images]  # type: ignore[index]
    assert alts[0] == "Picture that excites layer0, channel 0, of Toy on squares: the relu one"
    assert len(set(alts)) == 10 and alts[-1].endswith("layer2, channel 9, of Toy on squares: the weak one")
    assert all('src="data:image/webp;base64,' in tag for tag in images)
    text = shown._repr_html_()
    assert "Five &amp; more." in text and "5 steps at 32 px" in text
    assert not re.search(r"https?://|<link|src=\"(?!data:)", text)
    assert text.count("<script>") == 1 and "BODY" not in text and "IDENTITY" not in text
    other = galleries.gallery(toy, count=4)
    ids = [re.search(r'id="([^"]+)"', html._repr_html_())[1] for html in (shown, other)]  # type: ignore[index]
    assert ids[0] != ids[1]  # two on one page do not get in each other's way


def test_a_pair_to_wipe_between_has_a_slider_and_stands_without_it() -> None:
    toy = found({"relu": 0.0, "strong": 0.05})
    html = galleries.before_after(toy)
    assert len(tags(html, "img")) == 2 and len(tags(html, "input")) == 1
    assert "display: none" in html._repr_html_().split("input {")[1][:20]  # shown by the script, which it needs
    best = int(np.argmax(toy.of("strong") - toy.of("relu")))
    assert f"excites {toy.channels[best]}," in tags(html, "img")[0]
    assert "layer1, channel 3" in galleries.before_after(toy, 13)._repr_html_()
    with pytest.raises(SpecError, match="shows 30 channels, but number 30"):
        galleries.before_after(toy, 30)
    with pytest.raises(SpecError, match="no network with the role 'weak'"):
        galleries.before_after(toy, second="weak")


@pytest.mark.parametrize("measure", features.MEASURES)
def test_distributions_draw_every_channel_of_every_network(measure: str) -> None:
    figure = galleries.distributions(found({"relu": 0.0, "weak": 0.05, "strong": 0.05, "control": 0.0}), measure)
    left, right = figure.axes
    assert [len(line.get_ydata()) for line in left.lines if line.get_marker() == "."] == [30] * 4
    assert [len(line.get_ydata()) for line in right.lines if line.get_marker() == "."] == [30] * 3
    assert "5 steps at 32 px" in figure._supxlabel.get_text()


def test_tables_show_the_numbers() -> None:
    toy = found()
    assert "stronger minus milder linearization" in galleries.table(toy).to_html()
    assert "the weak one" in galleries.overview(toy).to_html()


# ----------------------------------------------------------------------------------------------------------- experiment


def test_the_smoke_chapter_renders_what_its_runs_have_in_common(tmp_path: Path) -> None:
    chapter = experiments.chapter("10", {"tier": "smoke", "steps": 3, "device": "cpu"})
    store = Store(tmp_path / "runs", also=())
    first = features.explore(chapter, store, folder=tmp_path / "pictures", progress=False)
    assert [net.role for net in first.networks] == list(features.ROLES)
    assert len(first.channels) == 6 and first.active_in_all >= 6
    assert first.images.shape == (5, 6, 3, 32, 32)
    assert all(values.shape == (1, 5, 6) for values in first.values.values())
    control = store.network(chapter.by_role()["control"])
    assert nl.active_fraction(control) == 1 and all(bool((unit.slope == 0).all()) for _, unit in nl.units(control))
    weights = (store.weights(chapter.by_role()[role])["conv1.weight"] for role in ("relu", "control"))
    assert not torch.equal(*weights)  # it was trained on
    again = features.explore(chapter, store, folder=tmp_path / "pictures", progress=False)
    assert torch.equal(again.images, first.images)
    features.save(first, tmp_path / "record")
    assert features.read(tmp_path / "record").channels == first.channels


# --------------------------------------------------------------------------------------------------------- distillation


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)
        self.relu1, self.relu2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(8, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small teacher and images without any meaning in place of ImageNet's."""

    def load() -> nn.Module:
        torch.manual_seed(0)
        return Tiny().eval()

    teacher = Teacher(load=load, mean=(0.5,) * 3, std=(0.2,) * 3, size=32, title="Tiny", source="here")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (10_000, 3, 16, 16), generator=generator, dtype=torch.uint8)
    classes = torch.arange(0, 1000, 5)
    images = Images(pixels, classes[torch.randint(0, 200, (10_000,), generator=generator)], classes)
    monkeypatch.setattr(distillation, "TEACHERS", {"squeezenet1_1": teacher})
    monkeypatch.setattr(distillation, "tiny_imagenet", lambda: images)


SHORT: dict[str, Any] = {"fit": 100, "held_out": 250, "epochs": 2, "batch": 25}


def test_a_student_becomes_linear_and_says_how_well_it_agrees(tiny: None, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    student, record = distillation.distil(
        Distillation(omega=0.5, slope_lr=0.5, **SHORT), folder=tmp_path, progress=rows.append
    )
    assert [row["epoch"] for row in rows] == [1, 2]
    start = record["history"][0]
    assert (start["agreement"], start["active_fraction"]) == (1.0, 1.0) and start["divergence"] == pytest.approx(0)
    metrics = record["metrics"]
    assert metrics["active_fraction"] < 0.5 and metrics["divergence"] > 0 and 0 <= metrics["agreement"] <= 1
    assert nl.active_fraction(student) == metrics["active_fraction"]
    images = distillation.tiny_imagenet()
    spec, teacher = Distillation(omega=0.5, **SHORT), distillation.TEACHERS["squeezenet1_1"].load()
    with torch.no_grad():
        batch = distillation.prepared(images.pixels[-250:], spec)
        expected, given = teacher(batch), student(batch)
    assert metrics["agreement"] == pytest.approx(float((expected.argmax(1) == given.argmax(1)).double().mean()))
    among = images.classes[given[:, images.classes].argmax(1)]
    assert metrics["accuracy"] == pytest.approx(float((among == images.labels[-250:]).double().mean()))
    kept, same = distillation.distil(Distillation(omega=0.5, slope_lr=0.5, **SHORT), folder=tmp_path)
    assert same == record and torch.equal(kept.state_dict()["conv1.weight"], student.state_dict()["conv1.weight"])


def test_a_distillation_that_is_cut_ends_as_if_it_had_not_been(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Distillation(omega=0.05, slope_lr=0.05, **(SHORT | {"epochs": 3}))
    whole, expected = distillation.distil(spec, folder=tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distillation.distil(spec, folder=tmp_path / "cut", progress=stop)
    cut, record = distillation.distil(spec, folder=tmp_path / "cut")
    assert record["resumed_after"] == [1] and record["history"] == expected["history"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(cut.state_dict()[name], tensor), name
    path = tmp_path / "cut" / f"{spec.key()}.safetensors"
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(RecordError, match="checksum of its weights is another.*delete it"):
        distillation.distil(spec, folder=tmp_path / "cut")


def test_a_distillation_that_diverges_says_so(tiny: None, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="in epoch 1 of 2; lower lr"):
        distillation.distil(Distillation(omega=0.05, lr=1e30, **SHORT), folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"omega": 0.0}, "omega is 0, expected above 0; without a penalty"),
        ({"omega": 1, "teacher": "squeezenet"}, "did you mean 'squeezenet1_1'?"),
        ({"omega": 1, "fit": 9000}, "9000 images to fit and 2000 held out, expected 10,000 at most"),
        ({"omega": 1, "epochs": 0}, "epochs is 0"),
        ({"omega": 1, "lr": 0}, "learning rates above 0"),
        ({"omega": 1, "size": 16}, "size is 16, expected at least 32"),
    ],
)
def test_a_distillation_that_makes_no_sense_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(told)):
        Distillation(**given)


def test_what_is_not_there_is_told_with_the_place_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NLADV_DATA", raising=False)
    distillation.tiny_imagenet.cache_clear()
    with pytest.raises(DataError, match="set it to the folder that holds weights/squeezenet1_1_caffe"):
        distillation.squeezenet()
    with pytest.raises(DataError, match="set it to the folder that holds tiny-imagenet/tiny-imagenet-val.parquet"):
        distillation.tiny_imagenet()
    with pytest.raises(DataError, match="cannot be read"):
        distillation.squeezenet(tmp_path)
    with pytest.raises(DataError, match="tiny-imagenet: .* cannot be read"):
        distillation.tiny_imagenet(tmp_path)
    (tmp_path / "squeezenet1_1_caffe_fp16.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="has SHA-256"):
        distillation.squeezenet(tmp_path)


def test_squeezenet_is_the_published_one() -> None:
    from nladv_core.places import data_dir

    if data_dir() is None or not (Path(str(data_dir())) / "weights").is_dir():
        pytest.skip("NLADV_DATA is not set")
    net = distillation.squeezenet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_235_496
    assert len(sharpness.active_channels(nl.linearize(net, (3, 64, 64)))) == 3944
    images = distillation.tiny_imagenet()
    assert (
        images.pixels.shape == (10_000, 3, 64, 64) and len(images.classes) == len(set(images.classes.tolist())) == 200
    )
    with torch.no_grad():
        logits = net(distillation.prepared(images.pixels[:400], Distillation(omega=1, size=128)))
    right = images.classes[logits[:, images.classes].argmax(1)] == images.labels[:400]
    assert 0.24 < right.double().mean() < 0.4  # 30 % of all 10,000
