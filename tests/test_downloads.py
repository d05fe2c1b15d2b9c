"""Official archives: fetched whole or not at all, read as their authors describe, refused when they differ."""

import functools
import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from nladv_core import cli, datasets, downloads
from nladv_core.errors import DataError, SpecError

PIXELS = np.random.default_rng(1).integers(0, 256, (14, 3, 32, 32), dtype=np.uint8)
LABELS = np.random.default_rng(2).integers(0, 10, 14, dtype=np.uint8)


def make(path: Path, name: str, **replaced: bytes) -> None:
    """A small archive in the official layout: ten training images (two a batch in CIFAR-10) and four test images."""
    archive = downloads.ARCHIVES[name]
    if not isinstance(archive, downloads.CifarArchive):
        return bundle(path, members(name))
    rows = []
    for label, image in zip(LABELS, PIXELS, strict=True):
        labels = bytes([label]) if name == "cifar10" else bytes([7, label])  # coarse, then fine
        rows.append(labels + image[0].tobytes() + image[1].tobytes() + image[2].tobytes())
    count = 10 // len(archive.train)
    parts = {part: b"".join(rows[i * count : (i + 1) * count]) for i, part in enumerate(archive.train)}
    parts[archive.test[0]] = b"".join(rows[10:])
    classes = 10 if name == "cifar10" else 100
    parts[archive.names] = "\n".join(f"class{i}" for i in range(classes)).encode() + b"\n\n"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in parts.items():
            info = tarfile.TarInfo(member)
            content = replaced.get(member.rpartition("/")[2].partition(".")[0], content)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


KINDS = ["airplane", "cat", "truck"]
WNIDS = ["n01443537", "n01629819", "n12267677"]


def members(name: str) -> dict[str, bytes]:
    """CINIC-10 or Tiny ImageNet with three classes: three training images of each, two for testing."""

    def image(split: int, kind: int, number: int) -> bytes:
        buffer = io.BytesIO()
        pixels = np.random.default_rng([split, kind, number]).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32) if name == "cinic10" else (64, 64)).save(buffer, "PNG")
        return buffer.getvalue()

    found: dict[str, bytes] = {"README.md": b"CINIC-10", "synsets-to-cifar-10-classes.txt": b"..."}
    if name == "cinic10":
        for split, word in enumerate(("train", "valid", "test")):
            for k, kind in reversed(list(enumerate(KINDS))):
                for i in range(3 - split):
                    found[f"./{word}/{kind}/n0{i}.png"] = image(split, k, i)
        return found
    root, lines = "tiny-imagenet-200", []
    found = {f"{root}/wnids.txt": "\n".join(WNIDS).encode(), f"{root}/words.txt": b"n00000000\tentity"}
    for k, kind in reversed(list(enumerate(WNIDS))):
        for i in range(3):
            found[f"{root}/train/{kind}/images/{kind}_{i}.JPEG"] = image(0, k, i)
        found[f"{root}/train/{kind}/{kind}_boxes.txt"] = b"..."
        for i in range(2):
            found[f"{root}/val/images/val_{k}{i}.JPEG"] = image(2, k, i)
            lines.append(f"val_{k}{i}.JPEG\t{kind}\t0\t32\t44\t62\n")
    found[f"{root}/test/images/test_0.JPEG"] = image(3, 0, 0)
    found[f"{root}/val/val_annotations.txt"] = "".join(lines).encode()
    return found


def bundle(path: Path, found: dict[str, bytes]) -> None:
    """A zip or a tar.gz of these members."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in found.items():
                archive.writestr(member, content)
        return
    with tarfile.open(path, "w:gz") as tar:
        for member, content in found.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Knows ranges where `ranges` is set; keeps what was asked for; breaks off after `cut` bytes of an answer."""

    ranges, cut, asked = True, None, []  # type: ignore[var-annotated]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Quiet.asked.append(wanted)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content, start = path.read_bytes(), 0
        if wanted and Quiet.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : None if Quiet.cut is None else start + Quiet.cut])


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served at the address of the archives, which are small ones in it."""
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NLADV_DATA", raising=False)
    for setting, value in {"ranges": True, "cut": None, "asked": []}.items():
        monkeypatch.setattr(Quiet, setting, value)
    for name in ("cinic10", "tiny-imagenet"):
        official = replace(datasets.OFFICIAL[name], classes=3)
        monkeypatch.setattr(datasets, "OFFICIAL", {**datasets.OFFICIAL, name: official})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    table = {}
    for name, archive in downloads.ARCHIVES.items():
        make(folder / archive.file, name)
        md5 = hashlib.md5((folder / archive.file).read_bytes()).hexdigest()
        table[name] = replace(archive, url=address + archive.file, md5=md5)
    monkeypatch.setattr(downloads, "ARCHIVES", table)
    yield folder
    server.shutdown()
    server.server_close()


def kept(tmp_path: Path) -> list[str]:
    found = (path.name for path in (tmp_path / "cache" / "downloads").glob("*"))
    return sorted(name for name in found if not name.endswith(".lock"))


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


def test_single_files_are_fetched_and_read(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = downloads.ARCHIVES["cifar10"].url.rpartition("/")[0]
    table = []
    for archive in downloads.FILES["multi30k"]:
        lines = [f"{i} word{i % 3} words" for i in range(9)] * 4
        content = gzip.compress("\n".join(lines).encode())
        (page / archive.file).write_bytes(content)
        table.append(
            replace(archive, url=f"{address}/{archive.file}", md5=hashlib.md5(content).hexdigest()),
        )
    monkeypatch.setattr(downloads, "FILES", {"multi30k": tuple(table)})
    last = page / table[-1].file
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert cli.main(["download", "multi30k"]) == 2, "a file that came changed"
    assert "has MD5" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"neither test_2016_flickr.en nor .*run `nladv download multi30k`"):
        datasets.load("multi30k", size=64)
    last.write_bytes(whole)
    assert cli.main(["download", "multi30k"]) == 0
    assert capsys.readouterr().out == f"{downloads.folder('multi30k')}\n"
    data = datasets.load("multi30k", size=64)
    assert "36 training and 36 test pairs" in data.description and not data.complete
    (downloads.folder("multi30k") / table[0].file).write_bytes(b"else")
    with pytest.raises(DataError, match="train.de.gz has MD5 .* delete it and run `nladv download multi30k`"):
        downloads.download("multi30k")


def test_an_archive_that_came_changed_is_refused_and_not_kept(page: Path, tmp_path: Path) -> None:
    file = page / downloads.ARCHIVES["cifar10"].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="has MD5 .*, expected .*: try again, or fetch"):
        downloads.download("cifar10")
    assert kept(tmp_path) == []


def test_without_network_one_sentence_says_what_to_do(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"cifar10": replace(downloads.ARCHIVES["cifar10"], url="http://127.0.0.1:9/")}
    (page / downloads.ARCHIVES["cifar100"].file).unlink()
    assert cli.main(["download", "cifar100"]) == 2
    assert "cifar100 cannot be downloaded (Not Found); fetch http" in capsys.readouterr().err
    monkeypatch.setattr(downloads, "ARCHIVES", there)
    assert cli.main(["download", "cifar10"]) == 2
    error = capsys.readouterr().err
    assert f"elsewhere and put it at {downloads.place('cifar10')}" in error and error.count("\n") == 1
    assert kept(tmp_path) == []
    with pytest.raises(DataError, match="run `nladv download cifar10`"):
        datasets.load("cifar10")
    with pytest.raises(SpecError, match="expected one of cifar10"):
        downloads.download("digits")
    with pytest.raises(SpecError, match="registered users only: get it at https://image-net.org"):
        downloads.download("imagenet")


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
        downloads.read("cifar10", path, datasets.OFFICIAL["cifar10"])


def test_what_is_no_archive_and_a_member_that_is_a_link_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is not the archive of cifar10"):
        downloads.read("cifar10", path, datasets.OFFICIAL["cifar10"])
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(downloads.ARCHIVES["cifar10"].train[0])
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="is not the archive of cifar10"):
        downloads.read("cifar10", path, datasets.OFFICIAL["cifar10"])


@pytest.mark.parametrize("name", ["cinic10", "tiny-imagenet"])
def test_archives_of_image_files(name: str, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["download", name]) == 0
    data = datasets.load(name)
    assert data.classes == tuple(KINDS if name == "cinic10" else WNIDS)
    assert data.train_labels.tolist() == [0, 1, 2] * 3 and data.test_labels.tolist() == [0, 1, 2] * (
        1 if name == "cinic10" else 2
    )
    found = members(name)
    for i, image in enumerate(data.train_images):
        member = f"./train/{KINDS[i % 3]}/n0{i // 3}.png"
        if name == "tiny-imagenet":
            member = f"tiny-imagenet-200/train/{WNIDS[i % 3]}/images/{WNIDS[i % 3]}_{i // 3}.JPEG"
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(io.BytesIO(found[member]))))
    # A folder with nothing to train on does not hide the archive. Unpacked by the user, it is the same set to the bit.
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    (folder / f"{name}-val.parquet").touch()
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    assert datasets.load(name).checksum == data.checksum
    for member, content in found.items():
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_bytes(content)
    downloads.place(name).unlink()
    unpacked = datasets.load(name)
    assert unpacked.checksum == data.checksum and unpacked.classes == data.classes


@pytest.mark.parametrize("name", ["cinic10", "tiny-imagenet"])
def test_members_that_lead_astray_are_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / downloads.ARCHIVES[name].file
    official = replace(datasets.OFFICIAL[name], classes=3)
    train = "train/cat/" if name == "cinic10" else f"tiny-imagenet-200/train/{WNIDS[0]}/images/"
    end = "png" if name == "cinic10" else "JPEG"

    def read(found: dict[str, bytes]) -> dict[str, int]:
        bundle(path, found)
        source = downloads.read(name, path, official)
        assert isinstance(source, downloads.Source)
        return dict(source.counts)

    usual, before = read(members(name)), sorted(tmp_path.iterdir())
    astray = {f"{train}../../../../x.{end}": b"x", f"/{train}y.{end}": b"x", f"../{train}z.{end}": b"x"}
    assert read(members(name) | astray) == usual and sorted(tmp_path.iterdir()) == before
    with pytest.raises(DataError, match="is not the archive of"):
        read(members(name) | {f"{train}n9.{end}": bytes((1 << 20) + 1)})
    if name == "cinic10":
        bundle(path, members(name))
        with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as tar:
            info = tarfile.TarInfo("train/cat/n7.png")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
        path = tmp_path / "link.tar.gz"
        with pytest.raises(DataError, match="is no file of a sensible size"):
            downloads.read(name, path, official)
    else:
        lines = "tiny-imagenet-200/val/val_annotations.txt", b"../../wnids.txt\tn01443537\n"
        with pytest.raises(DataError, match="line 1 names no image that is there"):
            read(members(name) | dict([lines]))
        with pytest.raises(DataError, match="is not the archive of tiny-imagenet .*val_annotations"):
            read({key: value for key, value in members(name).items() if "annotations" not in key})
    few = {key: value for key, value in members(name).items() if f"/{KINDS[0]}/" not in key and WNIDS[0] not in key}
    with pytest.raises(DataError, match="are of [23] classes, expected the 3 of"):
        read(few)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not the archive of"):
        downloads.read(name, path, official)


def test_a_download_goes_on_where_it_stopped(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = downloads.ARCHIVES["cifar10"]
    whole = (page / archive.file).read_bytes()
    monkeypatch.setattr(Quiet, "cut", 5000)
    for come in (5000, 10000):
        assert cli.main(["download", "cifar10"]) == 2
        told = capsys.readouterr().err
        assert "the download stopped after 0.0 MB (the connection was closed" in told and told.count("\n") == 1
        assert "the same command goes on from there" in told
        assert (tmp_path / "cache" / "downloads" / f"{archive.file}.part").read_bytes() == whole[:come]
    monkeypatch.setattr(Quiet, "cut", None)
    assert downloads.download("cifar10").read_bytes() == whole
    assert Quiet.asked == [None, "bytes=5000-", "bytes=10000-"] and kept(tmp_path) == [archive.file]


@pytest.mark.parametrize(
    ("left", "ranges", "asked"),
    [
        (slice(0, 4000), False, ["bytes=4000-"]),  # a server that knows no ranges sends all of it
        (slice(0, None), True, ["bytes={size}-", None]),  # all there, but never moved: nothing more to fetch
    ],
)
def test_what_cannot_be_gone_on_with_is_fetched_anew(
    left: slice, ranges: bool, asked: list[str], page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = downloads.ARCHIVES["cifar100"]
    whole = (page / archive.file).read_bytes()
    partial = tmp_path / "cache" / "downloads" / f"{archive.file}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(whole[left])
    monkeypatch.setattr(Quiet, "ranges", ranges)
    assert downloads.download("cifar100").read_bytes() == whole
    assert Quiet.asked == [entry and entry.format(size=len(whole)) for entry in asked]
    assert kept(tmp_path) == [archive.file]


def test_a_beginning_of_something_else_is_noticed_and_dropped(page: Path, tmp_path: Path) -> None:
    partial = tmp_path / "cache" / "downloads" / f"{downloads.ARCHIVES['cifar10'].file}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else")
    with pytest.raises(DataError, match="has MD5 .*: try again"):
        downloads.download("cifar10")
    assert kept(tmp_path) == []
    assert downloads.download("cifar10").is_file()


def test_two_downloads_do_not_mix(page: Path) -> None:
    path = downloads.place("cifar10")
    path.parent.mkdir(parents=True)
    with (
        FileLock(path.with_name(f"{path.name}.lock")),
        pytest.raises(DataError, match="is being downloaded by another process"),
    ):
        downloads.download("cifar10")


def test_checksums_are_sums() -> None:
    files = [file for found in downloads.FILES.values() for file in found]
    for archive in (*downloads.ARCHIVES.values(), *files):
        assert re.fullmatch("[0-9a-f]{32}", archive.md5) and re.match("https?://", archive.url)
