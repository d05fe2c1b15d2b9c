"""Files and parameters made by somebody who means harm: nothing in them runs, nothing is written outside the folders.

Every checksum in them is right: whoever can write a file can compute its sum.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from evidence import evidence, full
from nladv_core import book, cli, datasets, downloads, image_files, nets, runs, store, texts
from nladv_core.errors import DataError, NladvError, RecordError, SpecError
from nladv_core.recipes import Recipe
from nladv_core.runs import Paused, RecordWarning, RunFailed, RunSpec, Store, compute, run

ROOT = Path(book.__file__).parents[1]
PARENT = RunSpec(
    data="digits", net="resnet8", width=0.125, size=8, train=96, test=50, recipe=Recipe(epochs=2, lr=0.05, batch=32)
)
CHILD = replace(PARENT, parent=PARENT, omega=2.0)
RETRAINED = replace(PARENT, parent=CHILD, masks="exact", seed=100)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store(tmp_path_factory.mktemp("filled") / "runs", also=())
    run([CHILD], found, progress=False, workers=1)
    with pytest.raises(Paused):
        compute(RETRAINED, found, device="cpu", until=0.0)
    return found


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """The folder that a test may write to; beside it lies a trap that must not have been sprung when it ends."""
    (tmp_path / "secret").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    yield inside
    assert not (tmp_path / "sprung").exists(), "code in a file was executed"
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "inside"}, "something was written outside"
    assert (tmp_path / "secret").read_text() == "secret"


class Trap:
    """A pickle of this creates a file when it is opened."""

    def __init__(self, inside: Path) -> None:
        self.path = inside.parent / "sprung"

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_the_trap_works(tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "inside")))
    assert (tmp_path / "sprung").exists()


def contents(inside: Path) -> dict[str, bytes]:
    """What may stand where tensors are expected."""
    buffer = io.BytesIO()
    torch.save({"weight": Trap(inside)}, buffer)
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "a pickle that runs code": pickle.dumps(Trap(inside)),
        "a torch file whose pickle runs code": buffer.getvalue(),
        "a safetensors header of 10 GB": struct.pack("<Q", 10 * 10**9) + b'{"a":' + bytes(100),
        "a safetensors header longer than any file": struct.pack("<Q", 2**64 - 1) + b"{}",
        "tensors that lie outside the file": header({"a": tensor | {"data_offsets": [0, 2**40], "shape": [2**38]}}),
        "tensors that lie over one another": header({"a": tensor, "b": tensor}),
        "a shape that overflows": header({"a": tensor | {"shape": [2**40, 2**40]}}),
        "an unknown type of number": header({"a": tensor | {"dtype": "object"}}),
        "tensors of other names": save({"../../x": torch.zeros(2)}),
        "nothing": b"",
    }


def header(found: dict[str, Any]) -> bytes:
    text = json.dumps(found).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def sealed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a record and give it the right checksum again."""
    found = json.loads(path.read_text())
    del found["sha256"]
    change(found)
    path.write_bytes(store._sealed(json.dumps(found)))


@pytest.mark.parametrize("what", ["weights", "masks"])
def test_what_poses_as_tensors_of_a_run_is_refused(filled: Store, inside: Path, what: str) -> None:
    place = Store(shutil.copytree(filled.folder, inside / "runs"), also=())
    path = place.folder / f"{CHILD.key()}.{what}.safetensors"
    with evidence("hostile") as found:
        for name, content in contents(inside).items():
            path.write_bytes(content)
            checksum = hashlib.sha256(content).hexdigest()
            sealed(place.folder / f"{CHILD.key()}.json", lambda f, s=checksum: f["files"][what].update(sha256=s))
            assert place.record(CHILD), "the record itself is whole"
            # Tensors of other names are tensors: that they are not this network's shows when they meet it.
            with pytest.raises((RecordError, SpecError)) as told:
                if what == "weights":
                    place.network(CHILD)
                else:
                    runs.apply_masks_(place.network(CHILD), place.masks(CHILD))
            assert "\n" not in str(told.value)
            found.note(f"{name}, as {what} of a run", "refused")


def test_what_poses_as_a_parent_s_weights_is_set_aside_and_trained_again(filled: Store, inside: Path) -> None:
    place = Store(shutil.copytree(filled.folder, inside / "runs"), also=())
    content = contents(inside)["a pickle that runs code"]
    (place.folder / f"{CHILD.key()}.weights.safetensors").write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    sealed(place.folder / f"{CHILD.key()}.json", lambda f: f["files"]["weights"].update(sha256=checksum))
    with pytest.warns(RecordWarning, match="set aside"):
        run([replace(CHILD, parent=CHILD, seed=3)], place, progress=False, workers=1)
    assert place.record(CHILD).files == filled.record(CHILD).files


def test_what_poses_as_a_checkpoint_is_refused_and_the_run_starts_over(filled: Store, inside: Path) -> None:
    whole = Store(shutil.copytree(filled.folder, inside / "whole"), also=())
    shutil.rmtree(whole.folder / ".checkpoints")
    run([RETRAINED], whole, progress=False, workers=1)
    with evidence("hostile") as found:
        for number, (name, content) in enumerate(contents(inside).items()):
            place = Store(shutil.copytree(filled.folder, inside / str(number)), also=())
            (tensors,) = (place.folder / ".checkpoints").glob("*.safetensors")
            tensors.write_bytes(content)
            signed(
                place.folder / ".checkpoints" / f"{RETRAINED.key()}.json", sha256=hashlib.sha256(content).hexdigest()
            )
            with pytest.warns(RecordWarning, match="its checkpoint is of no use .* it starts over"):
                run([RETRAINED], place, progress=False, workers=1)
            assert place.record(RETRAINED).files == whole.record(RETRAINED).files
            found.note(f"{name}, as a checkpoint", "refused, begun anew, bit-identical")


def signed(path: Path, **changes: Any) -> None:
    """Change a checkpoint's description and give it the right checksum again."""
    from nladv_core import values

    body = json.loads(path.read_text())["body"] | changes
    checksum = hashlib.sha256(values.text(body).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": checksum, "body": body}))


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": "../../../secret"},
        {"tensors": 3},
        {"progress": {"conditions": [], "history": [], "seconds": 0, "resumed_after": []}},
        {"progress": {"conditions": {}, "history": "abc", "seconds": 0, "resumed_after": []}},
        {"progress": {"conditions": {}, "history": [], "seconds": "x", "resumed_after": []}},
        {"progress": 7},
    ],
)
def test_a_checkpoint_that_says_odd_things_is_refused(filled: Store, inside: Path, changes: dict[str, Any]) -> None:
    place = Store(shutil.copytree(filled.folder, inside / "runs"), also=())
    signed(place.folder / ".checkpoints" / f"{RETRAINED.key()}.json", **changes)
    with pytest.raises(RecordError):
        place.checkpoint(RETRAINED).load()
    with pytest.warns(RecordWarning, match="starts over"):
        run([RETRAINED], place, progress=False, workers=1)


@pytest.mark.parametrize("key", ["../secret", "../../secret", "/etc/passwd", "*", "", ".", "3DC6DDD95169", "a" * 5000])
def test_a_path_for_a_key_leads_nowhere(
    filled: Store, inside: Path, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Store(shutil.copytree(filled.folder, inside / "runs"), also=())
    (inside / "secret.json").write_bytes((place.folder / f"{CHILD.key()}.json").read_bytes())
    monkeypatch.setenv("NLADV_STORE", str(place.folder))
    before = sorted(inside.rglob("*"))
    assert not place.has(key) and place.state(key) == "missing"
    for ask in (place.record, place.weights, place.checkpoint):
        with pytest.raises(RecordError):
            ask(key)
    for command in ("run", "why"):
        assert cli.main([command, "--", key]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    # The same in a record: its name on disk is a key, the one it claims is not.
    path = place.folder / f"{CHILD.key()}.json"
    sealed(path, lambda found: found.update(key=key))
    with evidence("hostile") as found:
        with pytest.raises(RecordError, match="a foreign or edited record"):
            place.record(CHILD)
        assert place.state(CHILD) == "damaged"
        found.note("a path or a pattern for a key", "refused")
    assert sorted(inside.rglob("*")) == before


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a path as data set": lambda f: f["spec"].update(data="../../secret"),
    "a path as published weights": lambda f: f["spec"].update(published="../../secret"),
    "a path as file of weights": lambda f: f["files"]["weights"].update(name="../../secret"),
    "an absolute file of weights": lambda f: f["files"]["weights"].update(name="/etc/passwd"),
    "the folder itself as file": lambda f: f["files"]["weights"].update(name=".."),
    "a number for a name": lambda f: f["files"]["weights"].update(name=3),
    "a million epochs of history": lambda f: f.update(history="x" * 10**6),
    "a parent without end": lambda f: f["spec"].update(parent=nested(200)),
    "code as network": lambda f: f["spec"].update(net="__import__('os').system('touch sprung')"),
}


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"parent": found}
    return found


@pytest.mark.parametrize("odd", ODD)
def test_a_record_that_says_odd_things_is_refused(filled: Store, inside: Path, odd: str) -> None:
    place = Store(shutil.copytree(filled.folder, inside / "runs"), also=())
    path = place.folder / f"{CHILD.key()}.json"
    sealed(path, ODD[odd])
    with evidence("hostile") as found:
        with pytest.raises(RecordError) as told:
            place.weights(CHILD)
        assert "\n" not in str(told.value) and len(str(told.value)) < 2000
        found.note("a record with a path, code or nonsense in a field", "refused")


@pytest.mark.parametrize("depth", [10**5, 900])
def test_json_that_is_nested_too_deep_is_refused(inside: Path, depth: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"parent":' * depth + "1" + "}" * depth
    place = Store(inside / "runs", also=())
    place.folder.mkdir()
    path = place.folder / f"{CHILD.key()}.json"
    for content in (text, json.dumps({"key": CHILD.key(), "spec": None}).replace("null", text)):
        path.write_text(content)
        with pytest.raises(RecordError):
            place.record(CHILD)
        assert place.state(CHILD) == "damaged"
    (inside / "spec.json").write_text(text)
    assert cli.main(["run", str(inside / "spec.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------------------------ weights and archives


def test_published_weights_that_run_code_are_never_unpickled(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the checksum is the published one, which takes the publisher himself."""
    name = "akamaster/resnet20"
    published = nets.PUBLISHED[name]
    with evidence("hostile") as found:
        for kind, content in contents(inside).items():
            if kind == "tensors of other names":
                continue
            (inside / published.file).write_bytes(content)
            with pytest.raises(DataError, match="has SHA-256"):
                nets.load_published(name, inside)
            known = replace(published, sha256=hashlib.sha256(content).hexdigest())
            with monkeypatch.context() as patch:
                patch.setattr(nets, "PUBLISHED", {name: known})
                with pytest.raises(DataError) as told:
                    nets.load_published(name, inside)
            assert "\n" not in str(told.value)
            found.note(f"{kind}, as published weights", "refused")


def test_archives_whose_members_lead_outside_write_nothing(inside: Path) -> None:
    """Beside what `test_downloads.py` shows of members that are passed over: links, devices, absolute names."""
    names = ["../sprung", "../../sprung", f"{inside.parent}/sprung", "cifar-10-batches-bin/../../sprung"]
    kinds = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    with evidence("hostile") as found:
        for set_name in ("cifar10", "cifar100", "cinic10"):
            for name in [*names, "train/cat/x.png", downloads.ARCHIVES["cifar10"].train[0]]:  # type: ignore[attr-defined]
                for kind, code in kinds.items():
                    path = inside / "archive.tar.gz"
                    with tarfile.open(path, "w:gz") as tar:
                        info = tarfile.TarInfo(name)
                        info.type, info.linkname = code, "../secret"
                        tar.addfile(info)
                    with pytest.raises(DataError):
                        downloads.read(set_name, path, datasets.OFFICIAL[set_name])
                    path.unlink()
                    found.note(f"tar member that leads outside ({kind})", "refused, nothing written")
        for name in [*names, "tiny-imagenet-200/train/n01/images/../../../../sprung.JPEG"]:
            path = inside / "archive.zip"
            with zipfile.ZipFile(path, "w") as bundle:
                bundle.writestr(name, "x")
            with pytest.raises(DataError):
                downloads.read("tiny-imagenet", path, datasets.OFFICIAL["tiny-imagenet"])
            path.unlink()
            found.note("zip member that leads outside", "refused, nothing written")


def test_files_that_unpack_without_end_are_refused(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLADV_DATA", str(inside))
    monkeypatch.setenv("NLADV_CACHE", str(inside / "cache"))
    folder = inside / "multi30k"
    folder.mkdir()
    bomb = gzip.compress(bytes(1 << 20)) * 300  # members follow one another: 300 MB in 300 KB
    for name in ("train.de", "train.en", "test_2016_flickr.de", "test_2016_flickr.en"):
        (folder / f"{name}.gz").write_bytes(bomb)
    with evidence("hostile") as found:
        with pytest.raises(DataError, match="more than"):
            texts.load("multi30k")
        found.note("a gzip file that unpacks to 300 MB", "refused")
        # A picture of a few kilobytes: refused by its header, before its pixels take a quarter of a gigabyte.
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((9000, 9000), dtype=bool)).save(buffer, "PNG", optimize=True)
        row = image_files.Row("here", 0, buffer.getvalue())
        opened: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "convert", lambda *_: opened.append(1))
            with pytest.raises(DataError, match="is 9000 x 9000 pixels; expected 32 x 32"):
                image_files._decode(row, datasets.OFFICIAL["cifar10"])
        assert not opened
        found.note("a picture of 81 million pixels for one of 32 × 32", "refused")


# ------------------------------------------------------------------------------------------ parameters, YAML, notebooks

CODE = [
    "__import__('os').system('touch {trap}')",
    "smoke'; import os; os.system('touch {trap}'); x = '",
    'smoke"\nimport os; os.system("touch {trap}")\nx = "',
    "!!python/object/apply:os.system ['touch {trap}']",
    "$(touch {trap})",
    "`touch {trap}`",
    "[__import__('os').system('touch {trap}')]",
    "{{{{ cycler.__init__.__globals__.os.system('touch {trap}') }}}}",
]


@pytest.mark.parametrize("number", range(len(CODE)))
def test_a_parameter_with_code_in_it_is_a_text(
    inside: Path, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inside)
    text = CODE[number].format(trap=inside.parent / "sprung")
    with evidence("hostile") as found:
        commands = (["run", "06", "-p", "tier", text], ["run", "06", "-p", "omegas", text], ["run", text])
        for command in (
            *commands,
            ["run", "06", "-p", text, "1"],
            ["chapter", "02", "-p", text, "1"],
            ["status", "--tier", text],
        ):
            assert cli.main(command) == 2, command
            told = capsys.readouterr().err
            assert told.startswith("nladv: ") and "Traceback" not in told
            found.note("code as a parameter on the command line", "refused")


def test_a_parameter_with_code_in_it_reaches_a_notebook_as_a_text(inside: Path) -> None:
    """All of them in one execution, each as the value it is."""
    texts_ = [text.format(trap=inside.parent / "sprung") for text in CODE]
    cells = [
        "value = []",
        f"import json, pathlib; pathlib.Path({str(inside / 'came')!r}).write_text(json.dumps(value))",
    ]
    code = [
        {"id": f"c{n}", "cell_type": "code", "source": s, "outputs": [], "execution_count": None}
        | {"metadata": {"tags": ["parameters"]} if n == 0 else {}}
        for n, s in enumerate(cells)
    ]
    source = inside / "chapter.ipynb"
    source.write_text(json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with evidence("hostile") as found:
        book.run_chapter(source, {"value": texts_}, inside / "out.ipynb")
        assert json.loads((inside / "came").read_text()) == texts_
        found.note("code as a parameter of a notebook", "a text, not executed", len(texts_))


def test_yaml_tags_build_nothing(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table of contents and the settings of the book, in papermill's parameters and the engine's."""
    trap = inside.parent / "sprung"
    evil = f"!!python/object/apply:os.system ['touch {trap}']"
    with evidence("hostile") as found:
        for content in (evil, f"root: {evil}", f"parse: {evil}", "a: [", "&a [*a, *b]", "- a"):
            for name in ("_toc.yml", "_config.yml"):
                for path in ("_toc.yml", "_config.yml"):
                    shutil.copy(ROOT / path, inside / path)
                (inside / name).write_text(content)
                with monkeypatch.context() as patch:
                    patch.setattr(book, "project_root", lambda: inside)
                    with pytest.raises(SpecError, match=name) as told:
                        book.pages() if name == "_toc.yml" else book._configuration()
                assert "\n" not in str(told.value)
                found.note("a YAML tag that runs code, or no YAML, in the book's settings", "refused")
        from papermill.iorw import NoDatesSafeLoader

        for text in CODE:
            try:
                value = yaml.load(text.format(trap=trap), Loader=NoDatesSafeLoader)
            except yaml.YAMLError:
                value = ""
            assert isinstance(value, (str, list, dict))
            found.note("a YAML tag that runs code, in papermill's parameters", "not executed")


def test_the_engine_takes_code_for_a_text(inside: Path) -> None:
    trap = inside.parent / "sprung"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NLADV_STORE": str(inside / "runs")}
    with evidence("hostile") as found:
        for text in (CODE[3], CODE[0], CODE[4])[: full(3, 1)]:
            command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/local", "-n"]
            command += ["--directory", str(inside), "--config", f"build={inside / 'build'}"]
            done = subprocess.run(
                [*command, f"tier={text.format(trap=trap)}"],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2 and "tier is" in done.stderr and "Traceback" not in done.stderr, done.stderr
            found.note("code as a setting of the engine", "refused")


SPECS: dict[str, Any] = {
    "a path as data": {"data": "../../secret"},
    "code as data": {"data": "__import__('os').system('touch sprung')"},
    "endless epochs": {"recipe": {"epochs": 1e308, "lr": 0.1, "batch": 8}},
    "a class": {"__class__": "os.system"},
    "no number": {"omega": "NaN"},
    "a huge width": {"width": 1e9},
}


@pytest.mark.parametrize("odd", SPECS)
def test_a_specification_that_says_odd_things_is_refused(
    inside: Path, odd: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inside)
    monkeypatch.setenv("NLADV_STORE", str(inside / "runs"))
    path = inside / "spec.json"
    path.write_text(json.dumps(PARENT.to_json() | SPECS[odd]))
    with evidence("hostile") as found:
        assert cli.main(["run", str(path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("nladv: ") and told.count("\n") == 1 and "report" not in told
        found.note("a specification with a path, code or nonsense in a field", "refused")


def test_errors_of_ours_are_not_what_hostile_files_cause() -> None:
    """What the tests above expect are errors that a user's input can cause, each a sentence."""
    for error in (RecordError, DataError, SpecError, RunFailed):
        assert issubclass(error, NladvError)
