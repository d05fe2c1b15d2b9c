"""CIFAR's official archives: fetched whole or not at all, read as their authors describe, refused when they differ."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nladv_core import cli, datasets, downloads
from nladv_core.errors import DataError, SpecError

PIXELS = np.random.default_rng(1).integers(0, 256, (14, 3, 32, 32), dtype=np.uint8)
LABELS = np.random.default_rng(2).integers(0, 10, 14, dtype=np.uint8)


def make(path: Path, name: str, **replaced: bytes) -> None:
    """A small archive in the official layout: ten training images (two a batch in CIFAR-10) and four test images."""
    archive = downloads.ARCHIVES[name]
    rows = []
    for label, image in zip(LABELS, PIXELS, strict=True):
        labels = bytes([label]) if name == "cifar10" else bytes([7, label])  # coarse, then fine
        rows.append(labels + image[0].tobytes() + image[1].tobytes() + image[2].tobytes())
    count = 10 // len(archive.train)
    members = {part: b"".join(rows[i * count : (i + 1) * count]) for i, part in enumerate(archive.train)}
    members[archive.test[0]] = b"".join(rows[10:])
    classes = 10 if name == "cifar10" else 100
    members[archive.names] = "\n".join(f"class{i}" for i in range(classes)).encode() + b"\n\n"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            content = replaced.get(member.rpartition("/")[2].partition(".")[0], content)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served at the address of the archives, which are small ones in it."""
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NLADV_DATA", raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    table = {}
    for name, archive in downloads.ARCHIVES.items():
        make(folder / archive.file, name)
        md5 = hashlib.md5((folder / archive.file).read_bytes()).hexdigest()
        table[name] = replace(archive, address=address, md5=md5)
    monkeypatch.setattr(downloads, "ARCHIVES", table)
    yield folder
    server.shutdown()
    server.server_close()


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "downloads").glob("*"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_is_fetched_and_read(name: str, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download", name]) == 0
    path = downloads.place(name)
    assert capsys.readouterr().out == f"{path}\n"
    data = datasets.load(name)
    assert np.array_equal(torch.cat([data.train_images, data.test_images]).numpy(), PIXELS)
    assert torch.cat([data.train_labels, data.test_labels]).tolist() == LABELS.tolist()
    assert len(data.train_labels) == 10 and not data.complete
    assert data.classes == tuple(f"class{i}" for i in range(10 if name == "cifar10" else 100))
    (page / downloads.ARCHIVES[name].file).unlink()
    assert downloads.download(name) == path, "what is there is not fetched again"


def test_an_archive_that_came_changed_is_refused_and_not_kept(page: Path, tmp_path: Path) -> None:
    file = page / downloads.ARCHIVES["cifar10"].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="has MD5 .*, expected .*: try again, or fetch"):
        downloads.download("cifar10")
    assert kept(tmp_path) == []


def test_without_network_one_sentence_says_what_to_do(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"cifar10": replace(downloads.ARCHIVES["cifar10"], address="http://127.0.0.1:9/")}
    (page / downloads.ARCHIVES["cifar100"].file).unlink()
    assert cli.main(["download", "cifar100"]) == 2
    assert "cifar100 cannot be downloaded (File not found); fetch http" in capsys.readouterr().err
    monkeypatch.setattr(downloads, "ARCHIVES", there)
    assert cli.main(["download", "cifar10"]) == 2
    error = capsys.readouterr().err
    assert f"elsewhere and put it at {downloads.place('cifar10')}" in error and error.count("\n") == 1
    assert kept(tmp_path) == []
    with pytest.raises(DataError, match="run `nladv download cifar10`"):
        datasets.load("cifar10")
    with pytest.raises(SpecError, match="expected one of cifar10"):
        downloads.download("digits")


def test_a_damaged_archive_in_the_cache_is_noticed(page: Path) -> None:
    path = downloads.download("cifar10")
    path.write_bytes(path.read_bytes()[:-5])
    for act in (lambda: datasets.load("cifar10"), lambda: downloads.download("cifar10")):
        with pytest.raises(DataError, match="cut short or another file; delete it and run `nladv download cifar10`"):
            act()


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        ({"data_batch_3": b"short"}, r"its train rows are \d+ bytes, no multiple of 3073"),
        ({"test_batch": b""}, "its test rows are 0 bytes"),
        ({"batches": b"\xff"}, "is not the archive of cifar10"),
        ({"test_batch": b"\x0a" + bytes(3072)}, "label 10"),
    ],
)
def test_another_layout_is_refused(page: Path, tmp_path: Path, replaced: dict[str, bytes], told: str) -> None:
    path = tmp_path / "other.tar.gz"
    make(path, "cifar10", **replaced)
    with pytest.raises(DataError, match=told):
        downloads.read("cifar10", path)


def test_what_is_no_archive_and_a_member_that_is_a_link_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is not the archive of cifar10"):
        downloads.read("cifar10", path)
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(downloads.ARCHIVES["cifar10"].train[0])
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="is not the archive of cifar10"):
        downloads.read("cifar10", path)
