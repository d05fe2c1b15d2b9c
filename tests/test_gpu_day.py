"""`benchmarks/gpu.py`, rehearsed: each step guarded and reported, on a CPU."""

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def day() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_day", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_that_fails_or_overruns_is_reported_and_the_next_begins(
    day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NLADV_STORE", raising=False)
    texts = {
        "tests": "print('wrong'); raise SystemExit(3)",
        "benchmark": "import time; print('begun', flush=True); time.sleep(60)",
        "chapter": "import os; print(os.environ['NLADV_TEST_DEVICE'], os.environ['NLADV_STORE'])",
        "campaign": "import os, pathlib; p = pathlib.Path(os.environ['NLADV_STORE']); p.mkdir(); "
        "[(p / f'{n}.json').write_bytes(bytes(60)) for n in 'abc']",
    }
    monkeypatch.setattr(day, "command", lambda name, *_: [sys.executable, "-c", texts[name]])
    monkeypatch.setattr(day, "LIMITS", {"tests": (20, 1.0), "benchmark": (2, 1.0), "chapter": (20, 1.0)})
    monkeypatch.setattr(day, "MOST", 120)
    assert day.main(["--minutes", "1", "--device", "cpu", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert [report[name]["status"] for name in texts] == [3, None, 0, 0]
    assert report["tests"]["end"] == ["wrong"] and report["benchmark"]["end"] == ["begun"]
    assert report["chapter"]["end"] == [f"cpu {tmp_path / 'runs'}"]
    assert report["packed"] == ["runs-1.tar", "runs-2.tar"]
    with tarfile.open(tmp_path / "runs-1.tar") as first, tarfile.open(tmp_path / "runs-2.tar") as second:
        assert [*first.getnames(), *second.getnames()] == ["a.json", "b.json", "c.json"]


def test_nothing_is_begun_without_time(day: ModuleType, tmp_path: Path) -> None:
    assert day.main(["--minutes", "0.0001", "--device", "cpu", "--out", str(tmp_path), "--only", "campaign"]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["campaign"] == {"status": None, "seconds": 0.0, "end": ["no time was left for it"]}


def test_its_commands_run_as_they_are(day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones, but for the benchmark, which is only asked whether it knows its arguments."""
    monkeypatch.delenv("NLADV_STORE", raising=False)
    monkeypatch.setattr(day, "LIMITS", {name: (100, 1.0) for name in day.LIMITS})
    own = day.command
    monkeypatch.setattr(day, "command", lambda name, *rest: own(name, *rest) + ["--help"] * (name == "benchmark"))
    words = ["--minutes", "2", "--device", "cpu", "--tier", "smoke", "--out", str(tmp_path)]
    assert day.main([*words, "--only", "benchmark", "chapter"]) == 0
    assert day.main(["--minutes", "1", *words[2:], "--only", "campaign"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["campaign"]["status"] == 0 and report["packed"] == ["runs-1.tar"]
    with tarfile.open(tmp_path / "runs-1.tar") as archive:
        names = archive.getnames()
    assert sum(name.endswith(".json") for name in names) >= 6  # those of the chapter at least
