"""Sentences and their translations by name, as token numbers in tensors, German to English.

* `"number-words"`: numbers in words, `zweiundvierzig` → `forty-two`, made here by num2words. Works offline; no number
  of the training split is in the test split.
* `"multi30k"`: Multi30k, task 1 (Elliott et al. 2016): descriptions of photographs and their translations, from the
  folder `multi30k` in `NLADV_DATA`, or fetched by `nladv download multi30k`. The test split is test_2016_flickr; the
  validation split is not used, for nothing is chosen by it.

A vocabulary of parts of words (byte-pair encoding) is learned once from the training sentences of both languages and
kept in the cache. Perplexities are per token of that vocabulary, so they compare within one vocabulary only. A pair
with an empty or overlong side is left out, which the description tells; nothing is ever cut.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nladv_core import downloads
from nladv_core.errors import DataError, SpecError
from nladv_core.places import cache_dir, data_dir
from nladv_core.transformer import BEGIN, END, PAD, POSITIONS, UNKNOWN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Pair = tuple[str, str]  # German, English


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is known of a corpus before it is read: pairs of each split, and entries of its vocabulary if unsaid."""

    rows: Mapping[str, int]
    vocabulary: int
    generated: bool = False


TEXTS: Mapping[str, Corpus] = MappingProxyType(
    {
        "number-words": Corpus(rows={"train": 4000, "test": 500}, vocabulary=128, generated=True),
        "multi30k": Corpus(rows={"train": 29_000, "test": 1000}, vocabulary=8000),
    }
)
# Sentences may have so many tokens, their end not counted.
LONGEST = POSITIONS - 1
# Numbers in words are below this one.
NUMBERS = 10_000
SMALLEST_VOCABULARY = 64
# A file of a corpus has fewer bytes, unpacked; the real ones stay below 3 MB.
_LARGEST = 1 << 28
# What a text needs that images do not: extra `text` of the package.
_NEEDED = ("tokenizers", "sacrebleu", "num2words")
_FILES = {"train": "train", "test": "test_2016_flickr"}
# SHA-256 of the unpacked official files (multi30k/dataset, commit a3d2e0d2).
_OFFICIAL = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
}


# -------------------------------------------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Parts of words and their numbers; the first four are `PAD`, `UNKNOWN`, `BEGIN` and `END` (`transformer`).

    Args:
        content: the JSON text of a Hugging Face tokenizer, as `learn` makes it.
    """

    def __init__(self, content: str) -> None:
        self.content = content

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        # Of the library's threads nothing is gained here, and processes that fork behind them are warned.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        found = Tokenizer.from_str(self.content)
        found.encode_special_tokens = True  # a sentence that spells "<end>" does not end there
        return found

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @classmethod
    def learn(cls, sentences: Iterable[str], size: int) -> Vocabulary:
        """Byte-pair encoding with at most `size` entries; the same sentences give the same vocabulary."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE(unk_token="<unknown>"))
        tokenizer.normalizer = normalizers.NFC()
        # A word with the blank before it, punctuation apart: so a sentence can be put together again.
        parts: list[Any] = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        special = ["<pad>", "<unknown>", "<begin>", "<end>"]
        tokenizer.train_from_iterator(
            sentences, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        )
        return cls(tokenizer.to_str())

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Numbers of the tokens of each sentence, without begin and end; `UNKNOWN` for a character it lacks."""
        found = self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        return [encoded.ids for encoded in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """The sentence up to its end; what is unknown is shown as ⁇."""
        parts = []
        for token in tokens:
            if token == END:
                break
            if token not in (PAD, BEGIN):
                parts.append("⁇" if token == UNKNOWN else str(self._tokenizer.id_to_token(token)))
        return "".join(parts).replace("▁", " ").strip()


# ----------------------------------------------------------------------------------------------------- data as a value


@dataclass(frozen=True, eq=False)
class TextData:
    """Sentences and their translations, ready for the device. Make one with `load`.

    Attributes:
        name: what `load` was asked for.
        train_source, test_source: int32 [N, S], tokens and `END`, filled up with `PAD`.
        train_target, test_target: int32 [N, T], `BEGIN`, tokens and `END`, filled up with `PAD`.
        test_pairs: the sentences of the test split.
        vocabulary: of both languages.
        checksum: SHA-256 (hex) over vocabulary, tokens and test sentences: equal exactly for equal data.
        description: for a provenance line: what it is, how many pairs, which vocabulary, what was left out.
        complete: whether every pair of the official splits is there (generated data are always complete).
    """

    name: str
    train_source: Tensor
    train_target: Tensor
    test_source: Tensor
    test_target: Tensor
    test_pairs: tuple[Pair, ...]
    vocabulary: Vocabulary
    checksum: str
    description: str
    complete: bool

    def to(self, device: str | torch.device) -> TextData:
        """The same data on another device."""
        fields = ("train_source", "train_target", "test_source", "test_target")
        return replace(self, **{field: getattr(self, field).to(device) for field in fields})

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Source tokens of German sentences, int64 [N, S] on the device of the data.

        Raises:
            SpecError: a sentence is empty, too long, or has a character that the vocabulary lacks.
        """
        found = self.vocabulary.encode(sentences)
        for sentence, tokens in zip(sentences, found, strict=True):
            if not tokens or len(tokens) > LONGEST:
                raise SpecError(
                    f"{self.name}: the sentence {sentence[:60]!r} has {len(tokens)} tokens, expected 1 to {LONGEST}; "
                    "give another or split it"
                )
            if UNKNOWN in tokens:
                raise SpecError(
                    f"{self.name}: the sentence {sentence[:60]!r} has characters that no training sentence has; leave "
                    "them out"
                )
        return _rows(found, begin=False).long().to(self.train_source.device)


def _rows(sentences: Sequence[Sequence[int]], *, begin: bool) -> Tensor:
    """Tokens with their end, and begin if asked for, filled up: int32 [N, longest]."""
    found = [[*([BEGIN] if begin else []), *tokens, END] for tokens in sentences]
    rows = torch.full((len(found), max(map(len, found))), PAD, dtype=torch.int32)
    for row, tokens in zip(rows, found, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    return rows


def load(name: str, *, size: int | None = None, train: int | None = None, test: int | None = None) -> TextData:
    """A corpus by name.

    Args:
        name: "number-words" or "multi30k".
        size: entries of the vocabulary at most, default 128 and 8,000; it is learned from all training sentences.
        train, test: number of pairs, the first ones; default 4,000 and 500, or all.

    Raises:
        SpecError: an argument out of range.
        DataError: files missing, damaged, or not in step; or a package that texts need is not installed.
    """
    if name not in TEXTS:
        raise SpecError(f"unknown text {name!r}; known are {', '.join(TEXTS)}.")
    corpus = TEXTS[name]
    reason = absent(name)
    if reason is not None:
        raise DataError(reason)
    size = corpus.vocabulary if size is None else size
    if size < SMALLEST_VOCABULARY:
        raise SpecError(f"{name}: a vocabulary of {size} entries was asked for; give at least {SMALLEST_VOCABULARY}.")
    asked = {"train": train, "test": test}
    notes: list[str] = []
    if corpus.generated:
        pairs = number_words(train or corpus.rows["train"], test or corpus.rows["test"])
        official = True
    else:
        pairs, official = _read(_folder(name) or Path(), notes)
    for split, found in pairs.items():
        pairs[split] = [pair for pair in found if all(pair)]
        if len(pairs[split]) < len(found):
            notes.append(f"{len(found) - len(pairs[split])} {split} pairs with an empty side left out")
    vocabulary = _vocabulary(name, pairs["train"], size)
    tokens: dict[str, tuple[list[list[int]], list[list[int]]]] = {}
    for split, found in pairs.items():
        both = [vocabulary.encode([pair[side] for pair in found]) for side in (0, 1)]
        short = [i for i in range(len(found)) if max(len(both[0][i]), len(both[1][i])) <= LONGEST]
        if len(short) < len(found):
            notes.append(f"{len(found) - len(short)} {split} pairs with more than {LONGEST} tokens left out")
        count = _checked_count(name, split, asked[split], len(short))
        pairs[split] = [found[i] for i in short[:count]]
        tokens[split] = ([both[0][i] for i in short[:count]], [both[1][i] for i in short[:count]])
    unknown = [sum(row.count(UNKNOWN) for row in side) for side in tokens["test"]]
    if any(unknown):
        notes.append(f"{unknown[0]} tokens of the test sources and {unknown[1]} of their translations unknown")
    counts = {split: len(found) for split, found in pairs.items()}
    whole = official and (corpus.generated or counts == dict(corpus.rows))
    return _bundle(name, pairs, tokens, vocabulary, _description(name, counts, len(vocabulary), notes), whole)


def _checked_count(name: str, split: str, count: int | None, available: int) -> int:
    if available == 0:
        raise DataError(f"{name}: no {split} pair is left; restore the files.")
    if count is not None and not 1 <= count <= available:
        raise SpecError(f"{name}: {split}={count} pairs were asked for, expected 1 to {available}.")
    return available if count is None else count


def _bundle(
    name: str,
    pairs: Mapping[str, Sequence[Pair]],
    tokens: Mapping[str, tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]],
    vocabulary: Vocabulary,
    description: str,
    complete: bool,
) -> TextData:
    digest = hashlib.sha256(vocabulary.content.encode())
    tensors = {}
    for split, (source, target) in tokens.items():
        for side, rows in (("source", _rows(source, begin=False)), ("target", _rows(target, begin=True))):
            tensors[f"{split}_{side}"] = rows
            digest.update(repr(tuple(rows.shape)).encode() + rows.numpy().tobytes())
    digest.update(repr(pairs["test"]).encode())
    return TextData(
        name=name,
        **tensors,
        test_pairs=tuple(pairs["test"]),
        vocabulary=vocabulary,
        checksum=digest.hexdigest(),
        description=description,
        complete=complete,
    )


def _description(name: str, counts: Mapping[str, int], entries: int, notes: Sequence[str]) -> str:
    what = {"number-words": f"Numbers below {NUMBERS:,} in words", "multi30k": "Multi30k task 1 (test_2016_flickr)"}[
        name
    ]
    told = [
        f"{what}, German to English, {counts['train']:,} training and {counts['test']:,} test pairs",
        f"one byte-pair vocabulary of {entries:,} entries for both languages",
        *notes,
    ]
    return "; ".join(told) + "."


def _vocabulary(name: str, pairs: Sequence[Pair], size: int) -> Vocabulary:
    """Learned at most once from these sentences: kept in the cache under a digest of them."""
    from nladv_core.checkpoints import write

    sentences = [side for pair in pairs for side in pair]
    version = importlib.import_module("tokenizers").__version__
    digest = hashlib.sha256(repr((sentences, size, version)).encode()).hexdigest()[:16]
    path = cache_dir() / "vocabularies" / f"{name}-{size}-{digest}.vocabulary"
    try:  # the first line is the SHA-256 of the rest: a vocabulary that lost a bit would still be one
        expected, _, content = path.read_bytes().partition(b"\n")
        if expected.decode("ascii") == hashlib.sha256(content).hexdigest():
            return Vocabulary(content.decode())
    except (OSError, UnicodeDecodeError):
        pass  # not learned yet, or damaged
    found = Vocabulary.learn(sentences, size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, f"{hashlib.sha256(found.content.encode()).hexdigest()}\n{found.content}".encode())
    except OSError:
        pass  # a cache that cannot be written only costs time
    return found


def most(name: str) -> dict[str, int]:
    """How many pairs of each split may be asked for."""
    return {split: NUMBERS - 1 for split in TEXTS[name].rows} if TEXTS[name].generated else dict(TEXTS[name].rows)


def absent(name: str) -> str | None:
    """Why a corpus cannot be had at all, in one sentence; None if its files and the packages for it are there."""
    lacking = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if lacking:
        return f'{name} needs {", ".join(lacking)}, not installed here; pip install "nladv[text]" has what texts need.'
    if TEXTS[name].generated or _folder(name) is not None:
        return None
    root = data_dir()
    where = "NLADV_DATA is not set" if root is None else f"{root / name} is not a folder"
    return (
        f"{name} is not there: {where}; put the official files into a folder {name}, set the environment variable "
        f'NLADV_DATA to the folder that holds it, run `nladv download {name}`, or use "number-words", which works '
        "offline."
    )


def _folder(name: str) -> Path | None:
    """Where the files of a corpus lie, or None."""
    root = data_dir()
    folders = [*([] if root is None else [root / name]), downloads.folder(name)]
    return next((folder for folder in folders if folder.is_dir()), None)


# ----------------------------------------------------------------------------------------------------- where it is from


def number_words(train: int, test: int) -> dict[str, list[Pair]]:
    """Numbers below `NUMBERS` in German and English words, in random order, those of either split in it alone.

    The test numbers do not depend on how many there are for training.

    Raises:
        SpecError: fewer than one, or more than there are.
    """
    from num2words import num2words

    if train < 1 or test < 1 or train + test > NUMBERS:
        raise SpecError(
            f"number-words: {train} + {test} pairs were asked for, expected at least 1 and 1, {NUMBERS} in all."
        )
    order = torch.randperm(NUMBERS, generator=torch.Generator().manual_seed(0)).tolist()
    chosen = {"train": order[:train], "test": order[::-1][:test]}
    return {
        split: [(num2words(n, lang="de"), num2words(n, lang="en")) for n in numbers]
        for split, numbers in chosen.items()
    }


def _read(folder: Path, notes: list[str]) -> tuple[dict[str, list[Pair]], bool]:
    """Pairs of either split, and whether the files are the official ones."""
    pairs: dict[str, list[Pair]] = {}
    official = True
    for split, stem in _FILES.items():
        sides = []
        for language in ("de", "en"):
            name = f"{stem}.{language}"
            content = _content(folder, name)
            official = official and hashlib.sha256(content).hexdigest() == _OFFICIAL[name]
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                line = content[: error.start].count(b"\n") + 1
                raise DataError(f"{folder / name}: line {line} is not UTF-8; restore the official file.") from None
            sides.append([line.strip() for line in text.removesuffix("\n").split("\n")])
        german, english = sides
        if len(german) != len(english):
            raise DataError(
                f"{folder}: {stem}.de has {len(german):,} lines and {stem}.en {len(english):,}, expected as many, each "
                "the translation of the other; restore the official files."
            )
        pairs[split] = list(zip(german, english, strict=True))
    if not official:
        notes.append("not the official files")
    return pairs, official


def _content(folder: Path, name: str) -> bytes:
    """A file of the folder, plain or packed by gzip."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise DataError(
            f"{folder} has neither {name} nor {name}.gz; put the official files of Multi30k task 1 there, or run "
            "`nladv download multi30k`."
        )
    path = plain if plain.is_file() else packed
    try:
        with plain.open("rb") if path is plain else gzip.open(packed) as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); restore it.") from None
    if len(content) > _LARGEST:
        raise DataError(f"{path} holds more than {_LARGEST >> 20} MB, expected a few; restore it.")
    return content
