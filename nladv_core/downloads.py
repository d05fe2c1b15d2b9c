"""CIFAR from its official page: the binary archives, checked and read without unpickling or extracting anything.

An archive is downloaded only when it is asked for (`nladv download`), into `downloads` of the cache; put there by hand,
it serves as well.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from nladv_core.errors import DataError, SpecError
from nladv_core.places import cache_dir

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An official archive: rows of `label_bytes` labels (the last one counts) and 3,072 pixels, channel by channel.

    `train` and `test` are the members with the rows, in this order, `names` the one with the class names, one a line.
    """

    file: str
    md5: str
    label_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    address: str = "https://www.cs.toronto.edu/~kriz/"


ARCHIVES: Mapping[str, Archive] = MappingProxyType(
    {
        "cifar10": Archive(
            file="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            label_bytes=1,
            train=tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
            test=("cifar-10-batches-bin/test_batch.bin",),
            names="cifar-10-batches-bin/batches.meta.txt",
        ),
        "cifar100": Archive(
            file="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            label_bytes=2,
            train=("cifar-100-binary/train.bin",),
            test=("cifar-100-binary/test.bin",),
            names="cifar-100-binary/fine_label_names.txt",
        ),
    }
)


def place(name: str) -> Path:
    """Where the archive of a data set lies once it is there."""
    return cache_dir() / "downloads" / ARCHIVES[name].file


def download(name: str, *, progress: bool = True, timeout: float = 30.0) -> Path:
    """Fetch the archive of a data set unless it is there, and check it; returns where it lies.

    Args:
        name: "cifar10" or "cifar100".
        progress: show on standard error, in a terminal, how much has come.
        timeout: seconds without an answer after which to give up.

    Raises:
        SpecError: no archive is known of that name.
        DataError: it cannot be fetched or kept, or is not what is expected: nothing is left behind then.
    """
    if name not in ARCHIVES:
        raise SpecError(f"no archive of {name!r} is known, expected one of {', '.join(ARCHIVES)}")
    archive, path = ARCHIVES[name], place(name)
    if path.is_file():
        check(name, path)
        return path
    by_hand = f"fetch {archive.address}{archive.file} elsewhere and put it at {path}"
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(archive.address + archive.file, timeout=timeout) as answer,
            partial.open("wb") as kept,
        ):
            total, come = int(answer.headers.get("Content-Length") or 0), 0
            while part := answer.read(1 << 20):
                kept.write(part)
                digest.update(part)
                come += len(part)
                if progress and sys.stderr.isatty():
                    share = f"{100 * come / total:3.0f} % of {total / 1e6:.0f} MB" if total else f"{come / 1e6:.0f} MB"
                    print(f"\r{archive.file}: {share}", end="", file=sys.stderr, flush=True)
            kept.flush()
            os.fsync(kept.fileno())
        if digest.hexdigest() != archive.md5:
            raise DataError(
                f"{name}: what came from {archive.address}{archive.file} has MD5 {digest.hexdigest()}, expected "
                f"{archive.md5}: try again, or {by_hand}."
            )
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(f"{name} cannot be downloaded ({reason}); {by_hand}.") from None
    finally:
        partial.unlink(missing_ok=True)
        if progress and sys.stderr.isatty():
            print(file=sys.stderr)
    return path


def check(name: str, path: Path) -> None:
    """Compare an archive with its published MD5.

    Raises:
        DataError: it differs or cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    if found != ARCHIVES[name].md5:
        raise DataError(
            f"{path} has MD5 {found}, expected {ARCHIVES[name].md5}: it is cut short or another file; delete it "
            f"and run `nladv download {name}`."
        )


def read(name: str, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of both splits in the official order, and the class names.

    Members are read by name into memory; nothing is extracted, so no name in the archive can lead anywhere.

    Raises:
        DataError: not an archive of this layout.
    """
    archive = ARCHIVES[name]
    tensors = {}
    try:
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
    except (tarfile.TarError, OSError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not the archive of {name} ({error}); delete it and download it again.") from None
    return tensors, names


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    with file:
        return file.read()
