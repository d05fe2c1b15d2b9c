"""Number words and sentence files: their vocabulary, what is left out, and what is refused."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nladv_core import datasets, downloads, texts
from nladv_core.errors import DataError, SpecError
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.texts import TextData, Vocabulary

GERMAN = ["Ein Hund läuft.", "Eine Frau singt, und ein Mann hört zu.", "Zwei Kinder spielen im Schnee."] * 8
ENGLISH = ["A dog runs.", "A woman sings, and a man listens.", "Two children play in the snow."] * 8


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the four files of Multi30k, with other content where it is given, and names their folder."""

    def written(**other: list[str] | bytes) -> Path:
        folder = tmp_path / "data" / "multi30k"
        folder.mkdir(parents=True, exist_ok=True)
        usual = {"train_de": GERMAN, "train_en": ENGLISH, "test_de": GERMAN[:4], "test_en": ENGLISH[:4]}
        for name, lines in (usual | other).items():
            split, language = name.split("_")
            content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
            stem = {"train": "train", "test": "test_2016_flickr"}[split]
            (folder / f"{stem}.{language}.gz").write_bytes(gzip.compress(content))
        return folder

    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    return written


def load(**more: int) -> TextData:
    found = datasets.load("multi30k", **({"size": 64} | more))
    assert isinstance(found, TextData)
    return found


def sentences(data: TextData, rows: torch.Tensor) -> list[str]:
    return [data.vocabulary.decode(row) for row in rows.tolist()]


# ------------------------------------------------------------------------------------------------------ number words


def test_numbers_are_in_one_split_alone_and_the_test_split_stays() -> None:
    few, many = texts.number_words(300, 50), texts.number_words(2000, 50)
    assert few["test"] == many["test"] and few["train"] == many["train"][:300]
    german = {split: {pair[0] for pair in pairs} for split, pairs in many.items()}
    assert len(german["train"]) == 2000 and len(german["test"]) == 50, "no number twice"
    assert not german["train"] & german["test"]
    every = dict(texts.number_words(texts.NUMBERS - 1, 1)["train"])
    assert every["zweiundvierzig"] == "forty-two"
    assert every["neuntausenddreihunderteins"] == "nine thousand, three hundred and one"


def test_more_numbers_than_there_are_cannot_be_had() -> None:
    with pytest.raises(SpecError, match="9990 \\+ 11 pairs were asked for, expected at least 1 and 1, 10000 in all"):
        texts.number_words(9990, 11)


def test_tensors_are_what_the_sentences_say() -> None:
    data = datasets.load("number-words", train=200, test=30)
    assert isinstance(data, TextData) and data.complete
    pairs = texts.number_words(200, 30)
    for split, rows in (
        ("train", (data.train_source, data.train_target)),
        ("test", (data.test_source, data.test_target)),
    ):
        assert sentences(data, rows[0]) == [german for german, _ in pairs[split]]
        assert sentences(data, rows[1]) == [english for _, english in pairs[split]]
        for side, first in ((rows[0], None), (rows[1], 2)):
            for row in side.tolist():
                end = row.index(3)
                assert all(token > 3 for token in row[first is not None : end]) and set(row[end + 1 :]) <= {0}
                assert first is None or row[0] == first
    assert data.test_pairs == tuple(pairs["test"])


def test_the_same_arguments_give_the_same_checksum_and_others_do_not() -> None:
    sums = [datasets.load("number-words", train=200, test=30, size=size).checksum for size in (100, 100, 90)]
    assert sums[0] == sums[1] != sums[2]
    assert datasets.load("number-words", train=200, test=29, size=100).checksum != sums[0]


# -------------------------------------------------------------------------------------------------------- vocabulary


def test_a_vocabulary_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = "import sys, json; from nladv_core.texts import Vocabulary; "
    script += "print(Vocabulary.learn(json.load(sys.stdin), 70).content)"
    told = json.dumps(GERMAN + ENGLISH)
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            input=told,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1


def test_it_is_learned_once(files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files()
    first = load()
    kept = list((tmp_path / "cache" / "vocabularies").iterdir())
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "learn", None)
        assert load().checksum == first.checksum
    for damaged in ("{", "", '{"a": 1}'):  # it can always be made again
        kept[0].write_text(damaged)
        assert load().checksum == first.checksum


def test_sentences_come_back_as_they_were() -> None:
    vocabulary = Vocabulary.learn(GERMAN + ENGLISH, 80)
    assert len(vocabulary) <= 80
    for sentence in (*GERMAN[:3], *ENGLISH[:3], "Ein Mann, ein Hund."):
        (tokens,) = vocabulary.encode([sentence])
        assert vocabulary.decode([2, *tokens, 3, 9, 0]) == sentence
    assert vocabulary.decode([*vocabulary.encode(["Ein €"])[0], 3]) == "Ein ⁇"


def test_a_sentence_that_spells_a_token_is_no_token() -> None:
    learned = Vocabulary.learn([*GERMAN, "a < b > c"], 80)
    again = Vocabulary(learned.content)
    for vocabulary in (learned, again):
        (tokens,) = vocabulary.encode(["<end> <pad>"])
        assert not {0, 2, 3} & set(tokens)


# ------------------------------------------------------------------------------------------------------------- files


def test_files_of_another_make_are_used_and_said_not_to_be_the_official_ones(files: Callable[..., Path]) -> None:
    files()
    data = load()
    assert not data.complete and "not the official files" in data.description
    assert "24 training and 4 test pairs" in data.description
    assert data.test_pairs == tuple(zip(GERMAN[:4], ENGLISH[:4], strict=True))
    plain = files()
    for packed in list(plain.glob("*.gz")):  # unpacked they are the same data
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert load().checksum == data.checksum


def test_lines_out_of_step_are_refused(files: Callable[..., Path]) -> None:
    files(train_en=ENGLISH[:-1])
    with pytest.raises(DataError, match=r"train.de has 24 lines and train.en 23, expected as many, .* restore"):
        load()


def test_an_unusual_line_break_is_no_line(files: Callable[..., Path]) -> None:
    files(test_de=["Ein Hund\u2028läuft.", *GERMAN[1:4]], test_en=ENGLISH[:4])
    assert len(load().test_pairs) == 4


def test_missing_files_are_named(files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = files()
    (folder / "train.en.gz").unlink()
    with pytest.raises(
        DataError, match=r"multi30k has neither train.en nor train.en.gz; put .* run `nladv download multi30k`"
    ):
        load()
    monkeypatch.setenv("NLADV_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(
        DataError, match=r"multi30k is not there: .*elsewhere.* is not a folder; put .* \"number-words\""
    ):
        load()
    monkeypatch.delenv("NLADV_DATA")
    assert "NLADV_DATA is not set" in str(datasets.absent("multi30k"))
    assert datasets.absent("number-words") is None


def test_downloaded_files_serve_as_well(
    files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = files()
    monkeypatch.delenv("NLADV_DATA")
    place = downloads.folder("multi30k")
    place.parent.mkdir(parents=True)
    folder.rename(place)
    assert len(load().test_pairs) == 4


def test_damaged_files_are_told(files: Callable[..., Path]) -> None:
    folder = files(test_en=b"ein Hund\n" + b"\xff\xfe\n" + b"a\nb\n")
    with pytest.raises(DataError, match="test_2016_flickr.en: line 2 is not UTF-8; restore"):
        load()
    packed = folder / "test_2016_flickr.en.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"test_2016_flickr.en.gz cannot be read .*; restore it"):
        load()


def test_empty_and_overlong_sentences_are_left_out_and_counted(files: Callable[..., Path]) -> None:
    german, english = [*GERMAN], [*ENGLISH]
    german[3], english[5] = "", "  "
    german[7] = "Hund und " * 400
    files(train_de=german, train_en=english, test_de=["", *GERMAN[:3]], test_en=ENGLISH[:4])
    data = load()
    assert "2 train pairs with an empty side left out" in data.description
    assert "1 train pairs with more than 255 tokens left out" in data.description
    assert "1 test pairs with an empty side left out" in data.description
    kept = [i for i in range(24) if i not in (3, 5, 7)]
    assert sentences(data, data.train_source) == [german[i] for i in kept], "nothing is cut"
    assert data.test_pairs == tuple(zip(GERMAN[:3], ENGLISH[1:4], strict=True))
    with pytest.raises(SpecError, match="train=22 pairs were asked for, expected 1 to 21"):
        load(train=22)


def test_unknown_characters_are_counted(files: Callable[..., Path]) -> None:
    files(test_de=["Ein Hund läuft €.", *GERMAN[1:4]])
    data = load()
    assert "1 tokens of the test sources and 0 of their translations unknown" in data.description
    with pytest.raises(SpecError, match="has characters that no training sentence has"):
        data.encode(["Ein € läuft."])
    with pytest.raises(SpecError, match="has 0 tokens, expected 1 to 255"):
        data.encode([""])
    with pytest.raises(SpecError, match="expected 1 to 255; give another or split it"):
        data.encode(["Hund " * 500])
    assert sentences(data, data.encode(GERMAN[:2])) == GERMAN[:2]


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = texts.importlib.util.find_spec
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else find(name))
    with pytest.raises(
        DataError, match=r'number-words needs sacrebleu, not installed here; pip install "nladv\[text\]"'
    ):
        texts.load("number-words")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"size": 10}, "a vocabulary of 10 entries was asked for; give at least 64"),
        ({"difficulty": 0.5}, "only digits have that knob"),
    ],
)
def test_arguments_out_of_range(more: dict, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        datasets.load("number-words", **more)


# -------------------------------------------------------------------------------------------------------------- specs


def spec(**more: object) -> RunSpec:
    usual = {"data": "multi30k", "net": "transformer6", "recipe": RECIPES["multi30k-train"]}
    return RunSpec(**(usual | more))  # type: ignore[arg-type]


def test_all_of_a_corpus_goes_without_saying() -> None:
    said = spec(size=8000, train=29_000, test=1000)
    assert said == spec() and said.key() == spec().key() and spec(size=4000).key() != spec().key()
    words = {"data": "number-words", "net": "transformer1", "width": 0.0625}
    assert spec(**words) == spec(**words, size=128, train=4000, test=500)
    assert "128" in json.dumps(spec(**words).to_json()), "a generated corpus says what it is"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"net": "resnet56"}, "net is 'resnet56', but multi30k holds sentences; expected one such as 'transformer6'"),
        ({"data": "cifar10"}, "net is 'transformer6', but cifar10 holds images; expected one such as 'resnet56'"),
        ({"recipe": RECIPES["cifar-train"]}, "recipe.flip is True, which sentences do not know"),
        ({"difficulty": 0.5}, "difficulty is 0.5, which sentences do not know"),
        ({"omega": 1.0, "granularity": "pixel"}, "sentences differ in length; expected 'channel' or 'layer'"),
        ({"residual": False}, "known with its residual connections only"),
        ({"shortcut": "B"}, "leave it at"),
        ({"width": 0.01}, "wants a multiple of 16, so use a width that is a multiple of 0.03125"),
        ({"train": 29_001}, "train is 29001, expected 1 to 29000 pairs of multi30k, or null"),
        ({"size": 3}, "size is 3, expected at least 64 entries of the vocabulary"),
    ],
)
def test_what_no_run_can_be(change: dict, told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        spec(**change)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)
