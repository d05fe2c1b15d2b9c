"""The command line: what it prints, what it refuses, and how it ends."""

import errno
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import book, cli, experiments, grid, places, runs
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store

SPEC = RunSpec(
    data="digits",
    net="resnet8",
    width=0.125,
    size=8,
    train=96,
    test=50,
    recipe=Recipe(epochs=1, lr=0.05, batch=32, flip=False),
    omega=0.5,
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("NLADV_STORE", str(tmp_path / "runs"))
    return Store()


def test_a_run_from_a_file_is_computed_and_printed(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC.to_json()))
    assert cli.main(["run", str(path)]) == 0
    assert SPEC.key() in capsys.readouterr().out
    assert store.state(SPEC) == "done"


def test_run_and_status_of_a_chapter(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["06", "--tier", "smoke", "-p", "omegas", "3,0.1", "-p", "granularities", "channel"]
    assert cli.main(["run", *one]) == 0
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed and len(printed.splitlines()) == 1 + 4  # parent, control, two strengths
    assert cli.main(["status", "--tier", "smoke"]) == 0
    printed = capsys.readouterr().out
    committed = len(list((Path(__file__).parents[1] / "data" / "results").glob("*/" + "[0-9a-f]" * 12 + ".json")))
    assert f"{4 + committed} runs in" in printed
    assert "06_accuracy_and_depth    smoke    4 done, 2 missing, of 6" in printed
    assert cli.main(["run", "02"]) == 0
    assert "needs no runs" in capsys.readouterr().out


def test_status_of_ten_thousand_records_is_a_matter_of_two_seconds(store: Store) -> None:
    """All that chapters want, each with a history as long as the paper's, and many others; processor time."""
    wanted = {
        spec for tier in experiments.TIERS for name in experiments.CHAPTERS for spec in experiments.wanted(name, tier)
    }
    others = [replace(SPEC, seed=seed) for seed in range(10_000 - len(wanted))]
    row = {"epoch": 1, "train_loss": 0.12345678, "train_accuracy": 0.98765432, "lr": 0.1, "active": list(range(55))}
    found = {
        **{"metrics": {"test_accuracy": 0.9}, "units": [], "wall_s": 1.0, "device": "cpu"},
        **{"torch": "2", "python": "3", "code": runs.code_version(), "data": {}, "parent": None, "created": ""},
    }
    store.folder.mkdir(parents=True)
    for spec in {*wanted, *others}:
        name = f"{spec.key()}.weights.safetensors"
        (store.folder / name).touch()
        files = {"weights": {"name": name, "sha256": ""}}
        record = {"key": spec.key(), "spec": spec.to_json(), "files": files, **found}
        record["history"] = [row] * (60 if spec in wanted else 2)
        (store.folder / f"{spec.key()}.json").write_text(json.dumps(record))
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    command = [sys.executable, "-X", "importtime", "-m", "nladv_core.cli", "status"]
    for _ in range(2):  # the first one may have to learn what chapters want
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("10000 runs in ")
    assert all(re.search(r" (\d+) done, of \1$", line) for line in lines[1:]) and len(lines) > 8
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE), "which alone would take two seconds"
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # On a slow processor, four times what it takes to read and check the same files and nothing else.
    began = time.process_time()
    for path in store.folder.glob("*.json"):
        content = path.read_bytes()
        json.loads(content)
        hashlib.sha256(content)
    assert taken < max(2, 4 * (time.process_time() - began)), (taken, time.process_time() - began)


def test_what_chapters_want_is_learnt_anew_if_the_cache_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = grid.wanted_keys()
    assert wanted["smoke"]["01_linearization"] == [experiments.chapter("01", {"tier": "smoke"}).specs()[0].key()]
    (cached,) = places.cache_dir().glob("wanted-*.json")
    for content in ("{", "[]", ""):
        cached.write_text(content)
        assert grid.wanted_keys() == wanted and json.loads(cached.read_text()) == wanted
    monkeypatch.setenv("NLADV_CACHE", os.devnull + "/nowhere")  # a folder that cannot be made
    assert grid.wanted_keys() == wanted


def test_status_tells_of_damage_and_survives_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    spec = experiments.chapter("01", {"tier": "smoke"}).specs()[0]
    store.folder.mkdir(parents=True)
    (store.folder / f"{spec.key()}.json").write_text("not a record")
    assert cli.main(["status"]) == 0
    assert "01_linearization         smoke    0 done, 1 damaged, of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "06", "-p", "omgas", "1"], "did you mean 'omegas'?"),
        (["run", "06", "-p", "omegas", "-1"], "omega is -1"),
        (["run", "06", "-p", "omegas", "[1,"], "write it as [1,2] or 1,2"),
        (["run", "06", "--tier", "huge"], "tier is 'huge'"),
        (["run", "06", "--workers", "0"], "workers is 0"),
        (["run", "six"], "unknown chapter 'six'"),
        (["run", "absent.json"], "absent.json cannot be read"),
        (["run", "absent.json", "--tier", "quick"], "takes no parameters"),
        (["status", "--tier", "huge"], "tier is 'huge'"),
        (["run", "06", "-p", "dataset", "cifar10", "--workers", "1", "-p", "seeds", "0"], "NLADV_DATA"),
    ],
)
def test_a_user_s_mistake_is_one_sentence_and_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NLADV_DATA", raising=False)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("nladv: ") and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(("text", "told"), [("{", "is not JSON"), ("[]", "expected an object"), ("{}", "missing")])
def test_a_file_that_is_no_run_is_refused(
    tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    assert cli.main(["run", str(path)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 0.003),
        ("1", 1),
        (".5", 0.5),
        ("cifar10", "cifar10"),
        ("null", None),
        ("True", True),
        ("[1, 0.5]", [1, 0.5]),
        ("1,0.5", [1, 0.5]),
        ("channel,layer", ["channel", "layer"]),
        ("['layer']", ["layer"]),
    ],
)
def test_values_from_the_command_line(text: str, value: Any) -> None:
    found = cli._value(text)
    assert found == value and type(found) is type(value)


def test_chapter_and_book_hand_over_to_the_book(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(book, "run_chapter", lambda *arguments: calls.append(arguments) or arguments[2])
    monkeypatch.setattr(book, "build", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(book, "render", lambda *arguments: calls.append(("render", *arguments)))
    monkeypatch.setattr(book, "page", lambda *arguments: calls.append(("page", *arguments)))
    chapter = ["chapter", "06", "--tier", "smoke", "-p", "seeds", "[1]", "-o", "out.ipynb"]
    assert cli.main(chapter) == 0
    assert cli.main([*chapter, "--no-page"]) == 0
    assert cli.main(["render"]) == 0
    assert cli.main(["render", "out.ipynb"]) == 0
    assert cli.main(["book", "--tier", "smoke"]) == 0
    assert cli.main(["book"]) == 0
    parameters = {"seeds": [1], "tier": "smoke"}
    books = [{"tier": "smoke", "folder": None}, {"folder": None}]
    executed, page = ("06_accuracy_and_depth", parameters, Path("out.ipynb")), ("page", Path("out.ipynb"))
    assert calls == [executed, page, executed, ("render", None), page, *books]


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some.ipynb")

    monkeypatch.setattr(book, "run_chapter", full)
    assert cli.main(["chapter", "06", "--tier", "smoke"]) == 2
    told = capsys.readouterr().err
    assert told == "nladv: some.ipynb: No space left on device; make room, then the same command goes on from there\n"


def test_without_a_command_it_says_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2 and "usage: nladv" in capsys.readouterr().err


def test_help_loads_no_more_than_it_needs() -> None:
    code = "import sys\nfrom nladv_core import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('pandas' in sys.modules, 'nladv_core.runs' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


def test_control_c_ends_with_130_and_keeps_what_is_finished(tmp_path: Path) -> None:
    parent = RunSpec.from_json({**SPEC.to_json(), "omega": 0})
    long = Recipe(epochs=5000, lr=0.05, batch=32, flip=False)
    child = replace(parent, parent=parent, recipe=long, omega=0.1)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(child.to_json()))
    environment = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    command = [sys.executable, "-m", "nladv_core.cli", "run", str(path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    store = Store()
    for _ in range(3000):  # two processes that load torch, perhaps on a busy machine
        if store.state(parent) == "done":
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.decode().count("\n") == 1 and "finished runs are kept" in errors.decode()
    assert store.state(parent) == "done" and store.state(child) == "missing"
