"""Compiled steps of runs: what was compiled is kept, no compiler is told before any training, records say what was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import campaign, cli, places, runs, training
from nladv_core.recipes import Recipe
from nladv_core.runs import NoCompiler, Paused, RunFailed, RunSpec, Store, compute, run

SPEC = RunSpec(
    data="digits",
    net="toynet3",
    width=0.125,
    residual=False,
    size=8,
    train=96,
    test=50,
    recipe=Recipe(epochs=3, lr=0.05, batch=32, flip=False),
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile steps with")

# What is compiled by rule is computed in a process of its own: torch looks for a compiler once, and remembers.
_SCRIPT = """
import json, sys, warnings
from nladv_core import runs, training
runs._WORTH_COMPILING = {("cpu", "float32"): 0.0}
spec, store, told = runs.RunSpec.from_json(json.loads(sys.argv[1])), runs.Store(sys.argv[2], also=()), {}
try:
    runs.compute(spec, store, device="cpu", on_epoch=lambda row: told.setdefault("epochs", []).append(row["epoch"]))
    told["by rule"] = store.record(spec).execution["compiled"]
except runs.NoCompiler as error:
    told["refused"] = str(error)
told["after the rule"] = store.state(spec)
if len(sys.argv) > 3:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        told["asked"] = runs.compute(spec, store, device="cpu", compiled=True).execution["compiled"]
    told["warned"] = [str(one.message) for one in found if issubclass(one.category, training.NotCompiled)]
    told["not asked"] = runs.compute(spec, store, device="cpu", compiled=False).execution["compiled"]
if "by rule" in told:
    from torch._dynamo.utils import counters
    told["from the cache"] = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps(told))
"""


def computed(tmp_path: Path, *more: str, **environment: str) -> dict[str, Any]:
    """What a fresh process tells, in which every run lasts long enough to be compiled by rule."""
    root = str(Path(runs.__file__).parents[1])
    inherited = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment = inherited | {"PYTHONPATH": root, "NLADV_CACHE": str(tmp_path / "cache")} | environment
    command = [sys.executable, "-c", _SCRIPT, json.dumps(SPEC.to_json()), str(tmp_path / "runs"), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize(("variable", "value"), [("PATH", ""), ("CXX", os.path.join(os.sep, "nonexistent", "c++"))])
def test_without_a_compiler_a_run_that_is_to_be_compiled_is_refused_before_it_is_trained(
    tmp_path: Path, variable: str, value: str
) -> None:
    told = computed(tmp_path, *(["asked"] if variable == "CXX" else []), **{variable: value})
    assert "epochs" not in told and told["after the rule"] == "missing"
    for part in (value or "g++", "there is no C++ compiler", "install", "--no-compile"):
        assert part in told["refused"]
    assert "\n" not in told["refused"]
    if variable == "PATH":
        return
    assert told["asked"] is False and len(told["warned"]) == 1, "asked for, it goes on and says so"
    assert told["not asked"] is False


@needs_compiler
def test_what_was_compiled_is_kept_in_the_cache_for_the_next_process(tmp_path: Path) -> None:
    told = computed(tmp_path)
    assert told["by rule"] is True and told["from the cache"] == 0
    kept = tmp_path / "cache" / "compiled"
    assert any(path.is_file() for path in kept.rglob("*"))
    told = computed(tmp_path)
    assert told["by rule"] is True and told["from the cache"] > 0


def test_the_compiler_s_cache_is_the_project_s_unless_the_user_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    runs._keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine" and not (tmp_path / "cache").exists()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    runs._keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(places.cache_dir() / "compiled")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("NLADV_CACHE", str(tmp_path / "file"))
    runs._keep_compiled()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ, "torch's own place serves where the cache cannot be written to"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nothing is compiled; the last entry says whether the compiler takes the step or refuses it."""
    takes = [True]

    def compiled(forward: Any, device: Any, net: Any, not_compiled: Callable[[], None] | None) -> Any:
        def either(*arguments: Any) -> Any:
            if not takes[-1] and not_compiled is not None:
                not_compiled()
            return forward(*arguments)

        return either

    monkeypatch.setattr(training, "_compiled", compiled)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    return takes


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
def test_a_record_says_compiled_only_if_every_epoch_was(
    compiler: list[bool], tmp_path: Path, first: bool, then: bool
) -> None:
    store = Store(tmp_path, also=())
    compiler.append(first)
    with pytest.raises(Paused):
        compute(SPEC, store, device="cpu", until=0.0, compiled=True)
    compiler.append(then)
    with pytest.raises(Paused):
        compute(SPEC, store, device="cpu", until=0.0, compiled=True)
    compiler.append(True)
    record = compute(SPEC, store, device="cpu", compiled=True)
    assert record.execution == {"resumed_after": [1, 2], "compiled": first and then}


def test_what_is_not_compiled_is_not_said_to_be(tmp_path: Path, compiler: list[bool]) -> None:
    assert compute(SPEC, Store(tmp_path, also=()), device="cpu").execution["compiled"] is False


def test_runs_and_campaigns_tell_it_once_and_do_without_on_request(
    tmp_path: Path, compiler: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise NoCompiler("there is no C++ compiler")

    monkeypatch.setattr(runs, "_WORTH_COMPILING", {("cpu", "float32"): 0.0})
    monkeypatch.setattr(runs, "_check_compiler", none)
    store, specs = Store(tmp_path, also=()), [SPEC, replace(SPEC, seed=1)]
    with pytest.raises(RunFailed, match="1 more failed like this") as told:
        run(specs, store, workers=1, progress=False)
    assert str(told.value).count("there is no C++ compiler") == 1
    frame = run(specs, store, workers=1, progress=False, compiled=False)
    assert len(frame) == 2 and not store.record(SPEC).execution["compiled"]
    given: dict[str, Any] = {}
    monkeypatch.setattr(campaign, "campaign", lambda tier, **more: given.update(more))
    assert cli.main(["campaign", "--tier", "smoke", "--minutes", "1", "--no-compile"]) == 0
    assert given["compiled"] is False
    assert cli.main(["campaign", "--tier", "smoke", "--minutes", "1"]) == 0 and given["compiled"] is None


def test_a_campaign_hands_the_wish_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(campaign, "wanted", lambda tier: [SPEC])
    monkeypatch.setattr(runs, "work", lambda schedule, store, **more: given.update(more))
    campaign.campaign("smoke", minutes=1, store=Store(tmp_path, also=()), compiled=False, say=lambda line: None)
    assert given["compiled"] is False
