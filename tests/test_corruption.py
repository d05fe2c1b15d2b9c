"""Files that lost their end or a bit: each is noticed and named, made again or refused, and never used."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence import Evidence, evidence, full
from nladv_core import datasets, runs, texts
from nladv_core.errors import DataError, RecordError
from nladv_core.recipes import Recipe
from nladv_core.runs import Paused, RecordWarning, RunSpec, Store, compute, run
from test_datasets import Packs

PARENT = RunSpec(
    data="digits", net="resnet8", width=0.125, size=8, train=96, test=50, recipe=Recipe(epochs=2, lr=0.05, batch=32)
)
CHILD = replace(PARENT, parent=PARENT, omega=2.0)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A parent, its linearization, and a checkpoint of a run that was stopped after its first epoch."""
    store = Store(tmp_path_factory.mktemp("filled"), also=())
    run([CHILD], store, progress=False, workers=1)
    with pytest.raises(Paused):
        compute(UNDER_WAY, store, device="cpu", until=0.0)
    return store


UNDER_WAY = replace(CHILD, omega=3.0)


@pytest.fixture
def copied(filled: Store, tmp_path: Path) -> Store:
    shutil.copytree(filled.folder, tmp_path / "runs")
    return Store(tmp_path / "runs", also=())


def harmed(path: Path, many: int, few: int) -> Iterator[tuple[str, int]]:
    """Writes a file again and again with its end missing or one bit flipped, and puts it back at the end.

    Yields which kind of damage it is, and where. All places if the file has no more bytes than asked for, else those
    that a seeded generator chooses, with the first and the last among them.
    """
    good = path.read_bytes()
    count, rng = min(full(many, few), len(good)), random.Random(0)
    places = range(len(good)) if count == len(good) else {0, len(good) - 1, *rng.sample(range(len(good)), count)}
    try:
        for place in sorted(places):
            path.write_bytes(good[:place])
            yield "cut short", place
        for place in sorted(places):
            changed = bytearray(good)
            changed[place] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            yield "one bit flipped", place
    finally:
        path.write_bytes(good)


def refuses(
    read: Callable[[], Any],
    path: Path,
    many: int,
    few: int,
    what: str,
    found: Evidence,
    error: type[Exception] = RecordError,
) -> None:
    """Every damage of the file makes `read` refuse with one sentence that names the file; undamaged it is read."""
    whole = read()
    for kind, place in harmed(path, many, few):
        try:
            again = read()
        except error as told:
            assert path.name in str(told) and "\n" not in str(told), (kind, place)
            found.note(f"{what}, {kind}", "refused, the file named")
            continue
        same = what == "checkpoint, its description" and again[0] == whole[0]  # 1e-05 became 1E-05
        assert same, f"{path.name} was used although it was {kind} at byte {place}"
        found.note(f"{what}, {kind}", "read, not one number changed")
    read()


def test_a_record_that_lost_its_end_or_a_bit_is_never_read(copied: Store) -> None:
    path = copied.folder / f"{CHILD.key()}.json"
    with evidence("corruption") as found:
        refuses(lambda: copied.record(CHILD), path, 10_000, 10_000, "record", found)
    for _ in harmed(path, 300, 100):  # what status and campaigns go by, without looking into the specification
        assert copied.state(CHILD) == copied.state(CHILD.key()) == "damaged"


def test_a_record_from_before_there_were_checksums_is_still_read(copied: Store) -> None:
    path = copied.folder / f"{CHILD.key()}.json"
    content = json.loads(path.read_text())
    assert len(content.pop("sha256")) == 64
    path.write_text(json.dumps(content))
    assert copied.state(CHILD) == "done" and copied.record(CHILD).metrics == content["metrics"]


@pytest.mark.parametrize("what", ["weights", "masks"])
def test_weights_and_masks_that_lost_their_end_or_a_bit_are_never_used(copied: Store, what: str) -> None:
    path = copied.folder / f"{CHILD.key()}.{what}.safetensors"
    with evidence("corruption") as found:
        refuses(lambda: getattr(copied, what)(CHILD), path, 5000, 400, f"{what} of a run", found)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_checkpoint_that_lost_its_end_or_a_bit_is_never_gone_on_from(copied: Store, suffix: str) -> None:
    (path,) = (copied.folder / ".checkpoints").glob(f"{UNDER_WAY.key()}*.{suffix}")
    kind = {"json": "description", "safetensors": "tensors"}[suffix]
    with evidence("corruption") as found:
        refuses(copied.checkpoint(UNDER_WAY).load, path, 5000, 400, f"checkpoint, its {kind}", found)


def test_what_was_damaged_is_computed_again_and_ends_with_the_same_bits(copied: Store, filled: Store) -> None:
    """The whole way: noticed, told, set aside, computed."""
    rng, damages = random.Random(1), full(24, 6)
    whole = Store(copied.folder.parent / "whole", also=())
    run([CHILD, UNDER_WAY], whole, progress=False, workers=1)
    names = [f"{CHILD.key()}.json", f"{CHILD.key()}.weights.safetensors", f"{CHILD.key()}.masks.safetensors"]
    names += [f".checkpoints/{path.name}" for path in (filled.folder / ".checkpoints").iterdir() if path.is_file()]
    with evidence("corruption") as found:
        for number in range(damages):
            store = Store(copied.folder.parent / str(number), also=())
            shutil.copytree(filled.folder, store.folder)
            path = store.folder / names[number % len(names)]
            content = bytearray(path.read_bytes())
            if number % 2:
                content = content[: rng.randrange(len(content))]
            else:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            # A run whose files alone are damaged is found out when they are wanted, as a parent's are.
            onward = replace(CHILD, parent=CHILD)
            retrained = replace(onward, masks="exact", omega=0, seed=1)
            wanted = [UNDER_WAY if ".checkpoints" in str(path) else onward if "weights" in path.name else retrained]
            with pytest.warns(RecordWarning, match="set aside|starts over"):
                run(wanted, store, progress=False, workers=1)
            for spec in (CHILD, UNDER_WAY) if wanted == [UNDER_WAY] else (CHILD,):
                assert store.record(spec).files == whole.record(spec).files
                assert store.record(spec).metrics == whole.record(spec).metrics
            found.note("a file of a run, wanted by a computation", "computed again, bit-identical")


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packs:
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    return Packs(tmp_path / "data")


@pytest.mark.parametrize("style", ["{sum}  ./cifar10/{name}", "{sum} *cifar10/{name}"])
def test_a_data_pack_that_lost_its_end_or_a_bit_is_refused_where_its_sum_is_known(packs: Packs, style: str) -> None:
    path = packs.path("train-00000-of-00002")
    lines = [style.format(sum=datasets._file_sum(found), name=found.name) for found in packs.folder.glob("*.parquet")]
    (packs.folder.parent / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    with evidence("corruption") as found:
        refuses(lambda: datasets.load("cifar10"), path, 1000, 60, "data pack with SHA256SUMS", found, DataError)


def test_a_data_pack_without_a_known_sum_is_refused_or_told_apart(packs: Packs) -> None:
    """Formats of images carry no checksum of their own: then the checksum in the record says that the data differ."""
    path = packs.path("train-00000-of-00002")
    whole = datasets.load("cifar10")
    assert isinstance(whole, datasets.ImageData)
    with evidence("corruption") as found:
        for kind, _ in harmed(path, 1000, 60):
            try:
                data = datasets.load("cifar10")
            except DataError as error:
                # Where shards differ in what they say of the classes, either may be the damaged one.
                assert "cifar10-train-0000" in str(error) and "\n" not in str(error)
                outcome = "refused, the file named"
            else:
                assert isinstance(data, datasets.ImageData) and torch.is_tensor(data.train_images)
                same = torch.equal(data.train_images, whole.train_images)
                same &= torch.equal(data.train_labels, whole.train_labels)
                assert (data.checksum == whole.checksum) == same
                outcome = "read, no pixel and no label changed" if same else "read, its checksum tells it apart"
            found.note(f"data pack without SHA256SUMS, {kind}", outcome)
    assert "refused, the file named" in found.counts["data pack without SHA256SUMS, cut short"]


def test_decoded_images_that_lost_their_end_or_a_bit_are_decoded_again(packs: Packs, tmp_path: Path) -> None:
    whole = datasets.load("cifar10")
    (cached,) = (tmp_path / "cache" / "datasets").glob("*.safetensors")
    good = cached.read_bytes()
    with evidence("corruption") as found:
        for kind, place in harmed(cached, 1000, 100):
            again = datasets.load("cifar10")
            assert (again.checksum, again.classes) == (whole.checksum, whole.classes), (kind, place)  # type: ignore[union-attr]
            assert cached.read_bytes() == good, (kind, place)
            found.note(f"decoded images in the cache, {kind}", "made again")


def test_a_vocabulary_that_lost_its_end_or_a_bit_is_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path))
    whole = texts.load("number-words", train=300, test=50, size=80)
    (cached,) = (tmp_path / "vocabularies").iterdir()
    good = cached.read_bytes()
    with evidence("corruption") as found:
        for kind, place in harmed(cached, 300, 20):
            again = texts.load("number-words", train=300, test=50, size=80)
            assert again.checksum == whole.checksum and cached.read_bytes() == good, (kind, place)
            found.note(f"vocabulary in the cache, {kind}", "made again")


def test_another_run_s_weights_under_this_name_are_refused(copied: Store) -> None:
    """Whole files, in the wrong place: the record says which belong to it."""
    for what in ("weights", "masks"):
        path = copied.folder / f"{CHILD.key()}.{what}.safetensors"
        good = path.read_bytes()
        shutil.copy(copied.folder / f"{PARENT.key()}.weights.safetensors", path)
        with pytest.raises(RecordError, match="checksum"):
            getattr(copied, what)(CHILD)
        path.write_bytes(good)
    assert not runs.missing([CHILD], copied, refresh=False)
