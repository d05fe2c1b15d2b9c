"""Official archives: fetched, checked, and read without unpickling or extracting anything.

CIFAR's binary archives, CINIC-10's and Tiny ImageNet's archives of image files, and the single files of Multi30k. One
is downloaded only when it is asked for (`nladv download`), into `downloads` of the cache; put there by hand, it serves
as well.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from nladv_core.errors import DataError, SpecError
from nladv_core.image_files import Official, Source, annotated, interleave
from nladv_core.places import cache_dir

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 20  # bytes of one image or list in an archive; the real ones stay below 100 KB


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An official archive: what its file is called, where it comes from, and its MD5."""

    file: str
    url: str
    md5: str


@dataclass(frozen=True, kw_only=True)
class CifarArchive(Archive):
    """CIFAR's: rows of `label_bytes` labels (the last one counts) and 3,072 pixels, channel by channel.

    `train` and `test` are the members with the rows, in this order, `names` the one with the class names, one a line.
    """

    label_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
# CIFAR's sums stand on its page. The pages of the two others print none: these are the ones that many public loaders
# compare with, all alike (CINIC-10: 687,544,992 bytes, https://doi.org/10.7488/ds/2448; Tiny ImageNet: 248,100,043).
ARCHIVES: Mapping[str, Archive] = MappingProxyType(
    {
        "cifar10": CifarArchive(
            file="cifar-10-binary.tar.gz",
            url=f"{_CIFAR}cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            label_bytes=1,
            train=tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
            test=("cifar-10-batches-bin/test_batch.bin",),
            names="cifar-10-batches-bin/batches.meta.txt",
        ),
        "cifar100": CifarArchive(
            file="cifar-100-binary.tar.gz",
            url=f"{_CIFAR}cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            label_bytes=2,
            train=("cifar-100-binary/train.bin",),
            test=("cifar-100-binary/test.bin",),
            names="cifar-100-binary/fine_label_names.txt",
        ),
        "cinic10": Archive(
            file="CINIC-10.tar.gz",
            url="https://datashare.ed.ac.uk/server/api/core/bitstreams/e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
            md5="6ee4d0c996905fe93221de577967a372",
        ),
        "tiny-imagenet": Archive(
            file="tiny-imagenet-200.zip",
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
        ),
    }
)


# Texts are a few small files each; sums are those of the files in this commit of the official repository.
_MULTI30K = "https://github.com/multi30k/dataset/raw/a3d2e0d2/data/task1/raw/"
FILES: Mapping[str, tuple[Archive, ...]] = MappingProxyType(
    {
        "multi30k": tuple(
            Archive(file=file, url=f"{_MULTI30K}{file}", md5=md5)
            for file, md5 in (
                ("train.de.gz", "81ff90b99829c0cd4b1b587d394afd39"),
                ("train.en.gz", "0065d13af80720a55ca8153d126e6627"),
                ("test_2016_flickr.de.gz", "efd67d314d98489b716b145475101932"),
                ("test_2016_flickr.en.gz", "ff2c0fcb4893a13bd73414306bc250ae"),
            )
        )
    }
)


def folder(name: str) -> Path:
    """Where the files of a text lie once they are there."""
    return cache_dir() / "downloads" / name


def place(name: str) -> Path:
    """Where the archive of a data set lies once it is there."""
    return cache_dir() / "downloads" / ARCHIVES[name].file


def download(name: str, *, progress: bool = True, timeout: float = 30.0) -> Path:
    """Fetch the archive (or the files) of a data set unless it is there, and check it; returns where it lies.

    What was interrupted is kept beside it (`<file>.part`), and the next call goes on from there.

    Args:
        name: a key of `ARCHIVES` or `FILES`.
        progress: show a bar on standard error, in a terminal.
        timeout: seconds without an answer after which to give up.

    Raises:
        SpecError: no archive is known of that name.
        DataError: it cannot be fetched or kept, or is not what is expected: nothing is left behind then.
    """
    if name == "imagenet":
        raise SpecError(
            "imagenet is given to registered users only: get it at https://image-net.org and put its folders train and "
            "val into a folder imagenet of your data folder (format: data/README.md)"
        )
    if name in FILES:
        for archive in FILES[name]:
            _get(name, archive, folder(name) / archive.file, progress, timeout)
        return folder(name)
    if name not in ARCHIVES:
        raise SpecError(f"no archive of {name!r} is known, expected one of {', '.join((*ARCHIVES, *FILES))}")
    return _get(name, ARCHIVES[name], place(name), progress, timeout)


def _get(name: str, archive: Archive, path: Path, progress: bool, timeout: float) -> Path:
    from filelock import FileLock, Timeout

    partial = path.with_name(f"{path.name}.part")
    by_hand = f"fetch {archive.url} elsewhere and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=0):
            if path.is_file():
                _check(name, archive, path)
                return path
            found = _fetch(archive, partial, progress, timeout)
            if found != archive.md5:
                partial.unlink()
                raise DataError(
                    f"{name}: what came from {archive.url} has MD5 {found}, expected {archive.md5}: try again, or "
                    f"{by_hand}."
                )
            partial.replace(path)
    except Timeout:
        raise DataError(f"{name} is being downloaded by another process; wait for it.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        come = partial.stat().st_size if partial.is_file() else 0
        if come:
            raise DataError(
                f"{name}: the download stopped after {come / 1e6:.1f} MB ({reason}); the same command goes on from "
                f"there, or {by_hand}."
            ) from None
        partial.unlink(missing_ok=True)
        raise DataError(f"{name} cannot be downloaded ({reason}); {by_hand}.") from None
    return path


def _fetch(archive: Archive, partial: Path, progress: bool, timeout: float) -> str:
    """Bring `partial` to its full length, from where it ends; returns the MD5 of the whole."""
    digest = hashlib.md5(usedforsecurity=False)
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: there is nothing behind what we have; perhaps it is not of this file
            raise
        partial.unlink()
        return _fetch(archive, partial, progress, timeout)
    with answer:
        if answer.status != 206 or not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with partial.open("r+b" if have else "wb") as kept, _bar(archive.file, total, have, progress) as bar:
            while have and (part := kept.read(min(1 << 20, have - kept.tell()))):
                digest.update(part)
            while part := answer.read(1 << 20):
                kept.write(part)
                digest.update(part)
                bar(len(part))
            kept.truncate()
            come = kept.tell()
            kept.flush()
            os.fsync(kept.fileno())
    if total is not None and come < total:
        raise http.client.HTTPException(f"the connection was closed {(total - come) / 1e6:.1f} MB before the end")
    return digest.hexdigest()


@contextmanager
def _bar(file: str, total: int | None, have: int, wanted: bool) -> Iterator[Any]:
    """A bar over bytes on standard error, where somebody looks."""
    if not wanted or not sys.stderr.isatty() or os.environ.get("NLADV_PROGRESS", "") == "0":
        yield lambda more: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=have, desc=file, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


def check(name: str, path: Path) -> None:
    """Compare an archive with its published MD5.

    Raises:
        DataError: it differs or cannot be read.
    """
    _check(name, ARCHIVES[name], path)


def _check(name: str, archive: Archive, path: Path) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    if found != archive.md5:
        raise DataError(
            f"{path} has MD5 {found}, expected {archive.md5}: it is cut short or another file; delete it "
            f"and run `nladv download {name}`."
        )


def read(name: str, path: Path, official: Official) -> Source | tuple[dict[str, Tensor], tuple[str, ...]]:
    """CIFAR: images uint8 [N, 3, 32, 32] and labels int64 [N] of both splits in the official order, and class names.

    The others: their rows, in the order that `image_files.interleave` makes of the files' names. Members are read by
    name into memory; nothing is extracted, so no name in the archive can lead anywhere.

    Raises:
        DataError: not an archive of this layout.
    """
    archive = ARCHIVES[name]
    try:
        if isinstance(archive, CifarArchive):
            return _read_cifar(archive, path)
        splits = _read_cinic(path) if name == "cinic10" else _read_tiny_imagenet(path)
    except _NOT_AN_ARCHIVE as error:
        raise DataError(f"{path} is not the archive of {name} ({error}); delete it and download it again.") from None
    classes = sorted(splits["train"])
    for split, files in splits.items():
        if sorted(files) != classes or len(classes) != official.classes:
            raise DataError(
                f"{path}: its {split} images are of {len(files)} classes, expected the {official.classes} of "
                f"{official.title} in both splits; delete it and download it again."
            )
    rows = {split: interleave(files) for split, files in splits.items()}
    return Source(
        counts={split: len(found) for split, found in rows.items()}, classes=tuple(classes), rows=rows.__getitem__
    )


# What tarfile and zipfile raise on other files; RuntimeError: encrypted, or compressed in a way they do not know.
_NOT_AN_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    KeyError,
    UnicodeDecodeError,
    RuntimeError,
)
_Files = dict[str, dict[str, list[tuple[str, bytes | Path]]]]  # split -> class -> (what errors call it, content)


def _read_cinic(path: Path) -> _Files:
    """`<split>/<class>/<name>.png`; the validation split is passed over."""
    found: dict[tuple[str, str, str], bytes] = {}
    with tarfile.open(path, "r|gz") as tar:  # as a stream: looking up by name would unpack it again and again
        for member in tar:
            match = re.fullmatch(r"(?:\./)?(?:CINIC-10/)?(train|test)/([a-z]+)/([^/]+\.png)", member.name)
            if match is not None:
                found[match[1], match[2], match[3]] = _member(tar, member)
    files: _Files = {"train": {}, "test": {}}
    for (split, kind, file), content in sorted(found.items()):
        files[split].setdefault(kind, []).append((f"{path}: the image {split}/{kind}/{file}", content))
    return files


def _read_tiny_imagenet(path: Path) -> _Files:
    """`train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`."""
    root = "tiny-imagenet-200"
    files: _Files = {"train": {}, "test": {}}
    validation = {}

    def content(info: zipfile.ZipInfo) -> bytes:
        if info.file_size > _LARGEST:
            raise zipfile.BadZipFile(f"{info.filename} would be {info.file_size:,} bytes")
        return bundle.read(info)

    with zipfile.ZipFile(path) as bundle:
        for info in sorted(bundle.infolist(), key=lambda info: info.filename):
            if match := re.fullmatch(rf"{root}/train/(n[0-9]+)/images/([^/]+\.JPEG)", info.filename):
                where = f"{path}: the image {info.filename}"
                files["train"].setdefault(match[1], []).append((where, content(info)))
            elif match := re.fullmatch(rf"{root}/val/images/([^/]+\.JPEG)", info.filename):
                validation[match[1]] = info
        text = content(bundle.getinfo(f"{root}/val/val_annotations.txt")).decode()
        for file, kind in sorted(annotated(text, validation, f"{path}: val_annotations.txt").items()):
            where = f"{path}: the image val/images/{file}"
            files["test"].setdefault(kind, []).append((where, content(validation[file])))
    return files


def _read_cifar(archive: CifarArchive, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors = {}
    with tarfile.open(path, "r:gz") as tar:
        for split, members in (("train", archive.train), ("test", archive.test)):
            content = b"".join(_member(tar, member) for member in members)
            width = archive.label_bytes + _PIXELS
            if not content or len(content) % width:
                raise DataError(f"{path}: its {split} rows are {len(content)} bytes, no multiple of {width}.")
            rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, width)
            tensors[f"{split}_labels"] = rows[:, archive.label_bytes - 1].long()
            tensors[f"{split}_images"] = rows[:, archive.label_bytes :].reshape(-1, 3, 32, 32).clone()
        names = tuple(_member(tar, archive.names).decode("ascii").split())
    highest = max(int(tensors[f"{split}_labels"].max()) for split in ("train", "test"))
    if highest >= len(names):
        raise DataError(f"{path}: a row has label {highest}, but there are {len(names)} classes.")
    return tensors, names


def _member(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    if isinstance(member, tarfile.TarInfo) and (not member.isreg() or member.size > _LARGEST):
        raise tarfile.TarError(f"{member.name} is no file of a sensible size")
    file = tar.extractfile(member)
    if file is None:
        raise KeyError(f"{member} is not a file")
    with file:
        return file.read()
