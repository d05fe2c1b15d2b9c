"""Encoded images where they lie (Parquet packs, folders), and decoded ones in a file too large for the memory.

A source gives `Row`s: a label and an encoded image, as bytes or as the file that holds them. `decode` turns rows into
uint8 pixels. Names that come from outside (in annotations, in archives) are looked up among what is there; none is ever
joined to a path.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nladv_core.errors import DataError

COPY_AGAIN = "copy it again and compare its sum with SHA256SUMS"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Official:
    """What the whole of a published data set holds.

    Attributes:
        title: its name in sentences.
        classes: number of labels.
        rows: images of the training and the test split.
        side: of an image, in pixels; `resize` is None where the files have it already.
        resize: the shorter side is brought to this length before `side` x `side` pixels are cut from the middle.
        test: the official split that serves as test split, as it is called in the names of packs and folders.
        mapped: too large for the memory: decoded into a file.
    """

    title: str
    classes: int
    rows: Mapping[str, int]
    side: int = 32
    resize: int | None = None
    test: str = "test"
    mapped: bool = False

    @property
    def splits(self) -> dict[str, str]:
        """Our name of a split -> the official one."""
        return {"train": "train", "test": self.test}


class Row(NamedTuple):
    """One image: what errors call it, its label, and the encoded image or the file that holds it."""

    where: str
    label: int
    content: bytes | Path | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as it lies there: number of rows of either split, names of the classes, and the rows themselves."""

    counts: Mapping[str, int]
    classes: tuple[str, ...]
    rows: Callable[[str], Iterable[Row]]


# ------------------------------------------------------------------------------------------------------------ decoding


def decode(rows: Iterable[Row], official: Official, into: Callable[[int, Tensor], None]) -> list[int]:
    """Decode rows a few hundred at a time, on all cores; `into` gets each lot, uint8 [n, 3, side, side], and its start.

    Returns:
        The labels.

    Raises:
        DataError: an image that cannot be read or decoded, or has other sides than expected.
    """
    labels: list[int] = []
    remaining = iter(rows)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # decoding releases the interpreter lock
        while lot := list(itertools.islice(remaining, 512)):
            images = torch.stack(list(pool.map(lambda row: _decode(row, official), lot)))
            into(len(labels), images)
            labels += [row.label for row in lot]
    return labels


def _decode(row: Row, official: Official) -> Tensor:
    import numpy as np
    from PIL import Image

    try:
        content = row.content.read_bytes() if isinstance(row.content, Path) else row.content or b""
    except OSError as error:
        raise DataError(f"{row.where} cannot be read ({error.strerror}); check its permissions.") from None
    side, resize = official.side, official.resize
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP", "JPEG")) as image:
            if resize is not None:
                picture = image.convert("RGB")
                width, height = picture.size
                short = min(width, height)
                if width == short:
                    size = (resize, int(resize * height / width))
                else:
                    size = (int(resize * width / height), resize)
                picture = picture.resize(size, Image.Resampling.BILINEAR)
                left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
                pixels = np.array(picture.crop((left, top, left + side, top + side)))
            elif image.size == (side, side):
                pixels = np.array(image.convert("RGB"))
            else:  # known from its header: a small file may have pixels without end
                raise DataError(f"{row.where} is {image.size[0]} x {image.size[1]} pixels; expected {side} x {side}.")
    except DataError:
        raise
    except Exception as error:  # on foreign bytes decoders raise OSError, SyntaxError, struct.error, ...: undocumented
        raise DataError(
            f"{row.where} cannot be decoded ({type(error).__name__}); expected a PNG, WebP or JPEG file: "
            f"{COPY_AGAIN if not isinstance(row.content, Path) else 'copy it again'}."
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


# --------------------------------------------------------------------------------------------------------------- packs


def find_packs(name: str, folder: Path, official: Official, help_: str) -> dict[str, list[Path]]:
    """The Parquet files of either split, by name.

    Raises:
        DataError: a split without one.
    """
    files = sorted(folder.glob("*.parquet"))
    tails = {path: path.name.removeprefix(name) for path in files}
    packs = {split: [path for path in files if word in tails[path]] for split, word in official.splits.items()}
    for split, word in official.splits.items():
        if not packs[split]:
            raise DataError(f"{name} is not there: {folder} holds no file *{word}*.parquet; {help_}.")
    return packs


def pack_source(packs: Mapping[str, Sequence[Path]], official: Official) -> Source:
    """Images from Parquet packs: files by name, then rows as stored.

    Raises:
        DataError: a pack that is damaged or not in the documented format, or packs of different sets.
    """
    read = {split: [_Pack(path, official) for path in paths] for split, paths in packs.items()}
    all_packs = [pack for found in read.values() for pack in found]
    for pack in all_packs:
        if pack.names != all_packs[0].names:
            raise DataError(
                f"{pack.path} names its classes otherwise than the other packs beside it; the packs must be of one set."
            )
    return Source(
        counts={split: sum(len(pack.labels) for pack in found) for split, found in read.items()},
        classes=all_packs[0].names or tuple(str(label) for label in range(official.classes)),
        rows=lambda split: itertools.chain.from_iterable(pack.rows() for pack in read[split]),
    )


class _Pack:
    """One Parquet file, its schema and labels checked; images are read as they are asked for."""

    def __init__(self, path: Path, official: Official) -> None:
        import pyarrow
        import pyarrow.parquet

        self.path = path
        with _whole(path):
            self._file: Any = pyarrow.parquet.ParquetFile(path)
            schema = self._file.schema_arrow
        if not {"image", "label"} <= set(schema.names):
            raise DataError(
                f"{path} has the columns {', '.join(schema.names) or 'none'}; expected image and label, as "
                "data/README.md describes."
            )
        image_type, label_type = schema.field("image").type, schema.field("label").type
        if not pyarrow.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
            raise DataError(
                f"{path}: column image is of type {image_type}; expected a struct with the field bytes (the encoded "
                "file)."
            )
        if not pyarrow.types.is_integer(label_type):
            raise DataError(f"{path}: column label is of type {label_type}; expected int64.")
        if self._file.metadata.num_rows == 0:
            raise DataError(f"{path} holds no row; {COPY_AGAIN}.")
        self.names = _class_names(schema.metadata or {})
        if self.names is not None and len(self.names) != official.classes:
            raise DataError(
                f"{path} names {len(self.names)} classes; {official.title} has {official.classes}: it is another data "
                "set."
            )
        with _whole(path):
            column = self._file.read(columns=["label"]).column("label").combine_chunks()
        if column.null_count:
            raise DataError(f"{path}: {column.null_count} rows have no label; {COPY_AGAIN}.")
        self.labels: list[int] = column.to_pylist()
        for row, label in enumerate(self.labels):
            if not 0 <= label < official.classes:
                raise DataError(
                    f"{path}: row {row} has label {label}; labels of {official.title} are 0 to {official.classes - 1}."
                )

    def rows(self) -> Iterator[Row]:
        number = itertools.count()
        batches = self._file.iter_batches(batch_size=512, columns=["image.bytes"])
        while True:
            with _whole(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                encoded = batch.column("image").field("bytes").to_pylist()
            for content in encoded:
                row = next(number)
                yield Row(f"{self.path}: the image in row {row}", self.labels[row], content)


class _whole:
    """What pyarrow raises on a damaged file, in our words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        import pyarrow

        if isinstance(error, (pyarrow.ArrowException, OSError)):
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path} is not a whole Parquet file ({reason}); {COPY_AGAIN}.") from None


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """Names of the labels, where the schema carries them in the convention of Hugging Face `datasets`."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------------------- folders


def interleave(files: Mapping[str, Sequence[tuple[str, bytes | Path]]]) -> list[Row]:
    """Rows of a split, class -> (what errors call it, content): the first of each class, the second of each, and so on.

    Classes in alphabetical order, which also numbers them; files as they come. So any first N rows are a fair subset.
    """
    ranked = [
        (rank, label, Row(where, label, content))
        for label, name in enumerate(sorted(files))
        for rank, (where, content) in enumerate(files[name])
    ]
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]


def annotated(lines: str, known: Mapping[str, Any], where: str) -> dict[str, str]:
    """File name -> class of each line of Tiny ImageNet's `val_annotations.txt` (file, class, box; tabs between).

    Raises:
        DataError: a line without both, or one that names a file which is not among the `known`.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(lines.splitlines(), start=1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if name not in known or not wnid:
            raise DataError(f"{where}: line {number} names no image that is there and its class, but {line[:80]!r}.")
        found[name] = wnid
    return found


def folder_source(name: str, folder: Path, official: Official, help_: str) -> tuple[Source, str]:
    """Images from the official folders, and a text that changes with the names, sizes or times of the files.

    `<split>/<class>/*` or, as in Tiny ImageNet, `<split>/<class>/images/*` and `val/images/*` with
    `val/val_annotations.txt`. Only files that are named like images count.

    Raises:
        DataError: a split is not there, or its classes are not as many as there should be.
    """
    rows: dict[str, list[Row]] = {}
    classes: dict[str, list[str]] = {}
    fingerprint = [str(official)]
    for split, word in official.splits.items():
        files: dict[str, list[tuple[str, bytes | Path]]] = {}
        place = folder / word
        annotations = place / "val_annotations.txt"
        try:
            if annotations.is_file():
                there = dict(_images(place / "images"))
                text = annotations.read_text("utf-8")
                fingerprint += [text, *there.values()]
                for file, kind in sorted(annotated(text, there, str(annotations)).items()):
                    path = place / "images" / file  # a name that was found there, no other
                    files.setdefault(kind, []).append((f"{path}: the image", path))
            else:
                for entry in sorted(entry.name for entry in os.scandir(place) if entry.is_dir()):
                    inner = place / entry / "images" if (place / entry / "images").is_dir() else place / entry
                    for file, stamp in _images(inner):
                        fingerprint.append(stamp)
                        files.setdefault(entry, []).append((f"{inner / file}: the image", inner / file))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name} is not there: {place} cannot be read ({error}); {help_}.") from None
        if len(files) != official.classes:
            raise DataError(
                f"{place} holds images of {len(files)} classes, one folder each; {official.title} has "
                f"{official.classes}, and a label is the place of its class among them: {help_}."
            )
        rows[split], classes[split] = interleave(files), sorted(files)
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))[0]
        raise DataError(f"{folder}: class {odd} is in one of the folders train and {official.test} only; {help_}.")
    source = Source(
        counts={split: len(found) for split, found in rows.items()},
        classes=tuple(classes["train"]),
        rows=rows.__getitem__,
    )
    return source, "\n".join(fingerprint)


def _images(folder: Path) -> list[tuple[str, str]]:
    """Name of each image file in a folder, in order, with a text that changes with the file."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file():
                told = entry.stat()
                found.append((entry.name, f"{folder.name}/{entry.name} {told.st_size} {told.st_mtime_ns}"))
    return sorted(found)


# ------------------------------------------------------------------------------------- images that stay in their file


class MappedImages:
    """Images uint8 [N, 3, H, W] in a file, read as they are asked for: stands in for a tensor in `ImageData`.

    Indexing with a slice or an index tensor (on any device) gives a tensor on `device`. The file holds the pixels and
    nothing else; the operating system keeps in memory what of it fits.
    """

    dtype = torch.uint8

    def __init__(self, path: Path, shape: Sequence[int], device: str | torch.device = "cpu") -> None:
        import numpy as np

        self.path, self.shape, self.device = path, torch.Size(shape), torch.device(device)
        self._rows = np.memmap(path, dtype=np.uint8, mode="r", shape=tuple(shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The images of these rows, copied to `device`."""
        import numpy as np

        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} of {len(self)} images")
        found = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        wanted, target = index.numpy(), found.numpy()
        lots = [slice(start, start + 16) for start in range(0, len(wanted), 16)]

        def fetch(lot: slice) -> None:
            np.take(self._rows, wanted[lot], axis=0, out=target[lot], mode="clip")  # "raise" would copy twice

        if len(lots) > 1:
            with ThreadPoolExecutor(max_workers=8) as pool:  # several reads from the disk at once
                list(pool.map(fetch, lots))
        elif lots:
            fetch(lots[0])
        return found.to(self.device, non_blocking=True)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: str | torch.device) -> MappedImages:
        """The same images for another device; they stay in their file."""
        return MappedImages(self.path, self.shape, device)

    def head(self, count: int) -> MappedImages:
        """The first `count` images."""
        return MappedImages(self.path, (count, *self.shape[1:]), self.device)
