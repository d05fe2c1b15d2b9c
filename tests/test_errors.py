"""Every public entry point with bad input: one sentence that says what was found, what was expected or what to do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nladv_core as nl
from evidence import evidence
from nladv_core import (
    book,
    campaign,
    cli,
    datasets,
    downloads,
    experiments,
    features,
    grid,
    nets,
    runs,
    texts,
    training,
)
from nladv_core.recipes import Recipe
from nladv_core.runs import RunSpec, Store

ONE = Recipe(epochs=1, lr=0.1, batch=8, flip=False)
# What a sentence must hold to say what was expected, or what to do.
HELPS = re.compile(
    r"expected|did you mean|known (?:are|is)|there are|chapters with parameters are|use |give |leave it out|delete it"
    r"|restore it|make room|pass |compute it with|makes one|are listed by|needs a whole number|must be|neither stored"
    r"|correct it|get it at|nearest|takes "
)


def sloped() -> nn.Module:
    return nl.linearize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))


def tiny() -> Any:
    return datasets.load("digits", size=8, train=10, test=10)


def store() -> Store:
    return Store("no-such-folder", also=())


# Entry point and mistake -> the call, and what was found, as it stands in the sentence.
LIBRARY: dict[str, tuple[Callable[[Path], Any], str]] = {
    "linearize: no module": (lambda p: nl.linearize("net", (4,)), "'net'"),  # type: ignore[arg-type]
    "linearize: no shape": (lambda p: nl.linearize(nn.ReLU(), "abc"), "'abc'"),  # type: ignore[arg-type]
    "linearize: another shape": (
        lambda p: nl.linearize(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (5,)),
        "2x5 and 4x3",
    ),
    "linearize: no ReLU": (lambda p: nl.linearize(nn.Linear(2, 2), (2,)), "calls no ReLU"),
    "linearize: granularity": (lambda p: nl.linearize(sloped(), (4,), granularity="chanel"), "'chanel'"),  # type: ignore[arg-type]
    "linearize: twice": (lambda p: nl.linearize(sloped(), (4,)), "linearized already"),
    "units: plain network": (lambda p: nl.units(nn.Linear(2, 2)), "no linearization units"),
    "active_fraction: plain network": (lambda p: nl.active_fraction(nn.Linear(2, 2)), "no linearization units"),
    "active_counts: plain network": (lambda p: nl.active_counts(nn.Linear(2, 2)), "no linearization units"),
    "effective_width: plain network": (lambda p: nl.effective_width(nn.Linear(2, 2)), "no linearization units"),
    "project_slopes_: plain network": (lambda p: nl.project_slopes_(nn.Linear(2, 2)), "no linearization units"),
    "slope_penalty: range": (lambda p: nl.slope_penalty(sloped(), p=-1), "-1"),
    "slope_penalty: type": (lambda p: nl.slope_penalty(sloped(), p="half"), "'half'"),  # type: ignore[arg-type]
    "slope_penalty: weights": (lambda p: nl.slope_penalty(sloped(), weights={"x": torch.ones(3)}), "['x']"),
    "freeze_linear_: range": (lambda p: nl.freeze_linear_(sloped(), margin=-1), "-1"),
    "freeze_linear_: type": (lambda p: nl.freeze_linear_(sloped(), margin="x"), "'x'"),  # type: ignore[arg-type]
    "GoalController: share": (lambda p: nl.GoalController(sloped(), 2.0, 1.0), "2.0"),
    "GoalController: strength": (lambda p: nl.GoalController(sloped(), 0.5, -1.0), "-1.0"),
    "GoalController: budget": (
        lambda p: nl.GoalController(sloped(), 4.0, 1.0, weights={"1": torch.ones(3)}),
        "weigh 3",
    ),
    "unit_weights: measure": (lambda p: nl.unit_weights(sloped(), (4,), "flops"), "'flops'"),  # type: ignore[arg-type]
    "unit_weights: plain network": (lambda p: nl.unit_weights(nn.Linear(2, 2), (2,), "napl"), "no linearization units"),
    "parameter_groups: weight decay": (lambda p: nl.parameter_groups(sloped(), "x"), "'x'"),  # type: ignore[arg-type]
    "masks: plain network": (lambda p: nl.masks(nn.Linear(2, 2)), "no linearization units"),
    "apply_masks_: other groups": (lambda p: nl.apply_masks_(sloped(), {"x": torch.ones(3).bool()}), "'x'"),
    "apply_masks_: a list": (lambda p: nl.apply_masks_(sloped(), [1]), "[1]"),  # type: ignore[arg-type]
    "permute_masks: scope": (lambda p: nl.permute_masks(nl.masks(sloped()), scope="chanel"), "'chanel'"),  # type: ignore[arg-type]
    "save_masks: no folder": (lambda p: nl.save_masks(nl.masks(sloped()), p / "no" / "where"), "No such file"),
    "save_masks: no masks": (lambda p: nl.save_masks("masks", p / "m"), "'masks'"),  # type: ignore[arg-type]
    "load_masks: missing": (lambda p: nl.load_masks(p / "none"), "No such file"),
    "load_masks: another file": (lambda p: nl.load_masks(p / "nothing.json"), "nothing.json"),
    "path_length: no module": (lambda p: nl.path_length("net", (4,)), "'net'"),  # type: ignore[arg-type]
    "path_length: another shape": (lambda p: nl.path_length(sloped(), (7,)), "7 features"),
    "visit_probability: another shape": (lambda p: nl.visit_probability(sloped(), (7,)), "7 features"),
    "declare_path_rule: rule": (lambda p: nl.declare_path_rule("x", "y"), "'y'"),  # type: ignore[arg-type]
    "datasets.load: name": (lambda p: datasets.load("cifra10"), "'cifra10'"),
    "datasets.load: size": (lambda p: datasets.load("digits", size="big"), "'big'"),  # type: ignore[arg-type]
    "datasets.load: count": (lambda p: datasets.load("digits", train=0), "train=0"),
    "datasets.load: difficulty": (lambda p: datasets.load("cifar10", difficulty=1.0), "difficulty=1.0"),
    "datasets.load: device": (lambda p: datasets.load("digits", device="warp"), "'warp'"),
    "texts.load: name": (lambda p: texts.load("multi31k"), "'multi31k'"),
    "nets.build: name": (lambda p: nets.build("resnet55"), "'resnet55'"),
    "nets.build: classes": (lambda p: nets.build("resnet8", classes=0), "0"),
    "nets.build: width": (lambda p: nets.build("resnet8", width="wide"), "'wide'"),  # type: ignore[arg-type]
    "nets.load_published: name": (lambda p: nets.load_published("akamaster/resnet21"), "'akamaster/resnet21'"),
    "Recipe: type": (lambda p: Recipe(epochs="three", lr=1, batch=1), "'three'"),  # type: ignore[arg-type]
    "Recipe: range": (lambda p: Recipe(epochs=0, lr=1, batch=1), "epochs is 0"),
    "RunSpec: recipe": (lambda p: RunSpec(data="digits", net="resnet8", recipe="quick"), "'quick'"),  # type: ignore[arg-type]
    "RunSpec.from_json: text": (lambda p: RunSpec.from_json("x"), "found str"),
    "fit: omega": (lambda p: training.fit(sloped(), tiny(), ONE, seed=0, omega=-1), "-1"),
    "fit: data": (lambda p: training.fit(sloped(), "digits", ONE, seed=0), "'digits'"),  # type: ignore[arg-type]
    "fit: recipe": (lambda p: training.fit(sloped(), tiny(), "quick", seed=0), "'quick'"),  # type: ignore[arg-type]
    "fit: device": (lambda p: training.fit(sloped(), tiny(), ONE, seed=0, device="warp"), "'warp'"),
    "fit: precision": (lambda p: training.fit(sloped(), tiny(), ONE, seed=0, precision="half"), "'half'"),
    "runs.run: a text": (lambda p: runs.run(["x"], store()), "'x'"),  # type: ignore[list-item]
    "runs.run: workers": (lambda p: runs.run([], store(), workers=0), "workers is 0"),
    "runs.run: device": (lambda p: runs.run([], store(), device="warp"), "'warp'"),
    "Store.record: a text": (lambda p: store().record("x"), "no record of run x"),
    "Store.weights: missing": (lambda p: store().weights("0" * 12), "no record of run 000000000000"),
    "Store.checkpoint: a text": (lambda p: store().checkpoint("x"), "'x'"),
    "run_chapter: name": (lambda p: book.run_chapter("12_x"), "'12_x'"),
    "run_chapter: parameter": (lambda p: book.run_chapter("06_accuracy_and_depth", {"omgas": 1}), "'omgas'"),
    "page: missing": (lambda p: book.page(p / "none.ipynb"), "none.ipynb"),
    "page: another file": (lambda p: book.page(p / "nothing.json"), "nothing.json"),
    "download: name": (lambda p: downloads.download("cifra10"), "'cifra10'"),
    "download: not to be had": (lambda p: downloads.download("imagenet"), "registered users"),
    "campaign: tier": (lambda p: campaign.campaign("huge", minutes=1, store=store()), "'huge'"),
    "campaign: minutes": (lambda p: campaign.campaign("smoke", minutes=0, store=store()), "minutes is 0"),
    "campaign: no number": (lambda p: campaign.campaign("smoke", minutes=float("nan"), store=store()), "nan"),
    "campaign: workers": (lambda p: campaign.campaign("smoke", minutes=1, workers=0, store=store()), "workers is 0"),
    "why: key": (lambda p: campaign.why("zz", store()), "'zz'"),
    "plan: tier": (lambda p: grid.plan("huge"), "'huge'"),
    "features.read: missing": (lambda p: features.read(p / "none"), "No such file"),
}


@pytest.mark.parametrize("case", LIBRARY)
def test_the_library_says_what_was_found_and_what_to_do(case: str, tmp_path: Path) -> None:
    (tmp_path / "nothing.json").write_text("nothing")
    call, shown = LIBRARY[case]
    with evidence("errors") as found:
        with pytest.raises(nl.NladvError) as told:
            call(tmp_path)
        sentence = str(told.value)
        assert shown in sentence and HELPS.search(sentence) and "\n" not in sentence, sentence
        assert isinstance(told.value, ValueError), "library users need not know our names"
        found.note("a mistake in a call of the library", "one sentence that names it", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"nothing.json"}, "nothing is left behind"


# Parameters as papermill hands them to a notebook's first line of code.
PARAMETERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "tier": ("06", {"tier": "huge"}, "'huge'"),
    "tier, a number": ("06", {"tier": 3}, "3"),
    "an unknown name": ("06", {"omgas": 1}, "'omgas'"),
    "a text for numbers": ("06", {"seeds": "one"}, "'one'"),
    "no value at all": ("06", {"seeds": []}, "seeds is empty"),
    "no number": ("06", {"omegas": [float("nan")]}, "nan"),
    "out of range": ("06", {"omegas": [-1]}, "-1"),
    "a truth for a number": ("06", {"seeds": [True]}, "True"),
    "data set": ("06", {"dataset": "cifra10"}, "'cifra10'"),
    "network": ("06", {"network": "resnet55"}, "'resnet55'"),
    "granularity": ("06", {"granularities": ["chanel"]}, "'chanel'"),
    "device": ("06", {"device": "warp"}, "'warp'"),
    "chapter": ("12", {}, "'12'"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_notebook_says_what_is_wrong_with_its_parameters(case: str) -> None:
    name, given, shown = PARAMETERS[case]
    with evidence("errors") as found:
        with pytest.raises(nl.NladvError) as told:
            experiments.chapter(name, dict(given))
        sentence = str(told.value)
        assert shown in sentence and HELPS.search(sentence) and "\n" not in sentence, sentence
        found.note("a mistake in a parameter of a notebook", "one sentence that names it", 1)


# What each command of the command line may be given, and what it then says.
COMMANDS: dict[str, str] = {
    "run six": "'six'",
    "run 06 --tier huge": "'huge'",
    "run 06 --workers 0": "workers is 0",
    "run 06 -p omegas -1": "-1",
    "run 06 -p omgas 1": "'omgas'",
    "run 06 -p _seeds 1": "'_seeds'",
    "run absent.json": "absent.json cannot be read",
    "run nothing.json": "nothing.json is not JSON",
    "run 000000000000": "'000000000000'",
    "run 000000000000 -p seeds 1": "no parameters",
    "run 000000000000 06": "several keys",
    "status --tier huge": "'huge'",
    "why zz": "'zz'",
    "campaign --minutes 0": "minutes is 0",
    "campaign --minutes nan": "nan",
    "campaign --minutes 1 --tier huge": "'huge'",
    "campaign --minutes 1 --workers 0": "workers is 0",
    "campaign --minutes 1 --device warp": "'warp'",
    "chapter 12": "'12'",
    "chapter absent.ipynb": "absent.ipynb",
    "chapter nothing.ipynb": "nothing.ipynb is not a notebook",
    "chapter 06 -p omgas 1": "'omgas'",
    "plan --tier huge": "'huge'",
    "render absent.ipynb": "absent.ipynb",
    "render nothing.ipynb": "nothing.ipynb is not a notebook",
    "render --build nowhere": "has not been executed",
    "download cifra10": "'cifra10'",
    "keep --tier quick": "'quick'",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_says_it_in_one_line_and_ends_with_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nothing.json", "nothing.ipynb"):
        (tmp_path / name).write_text("nothing")
    with evidence("errors") as found:
        assert cli.main(command.split()) == 2
        told = capsys.readouterr().err
        assert told.startswith("nladv: ") and told.count("\n") == 1 and "Traceback" not in told
        assert COMMANDS[command] in told, told
        found.note("a mistake on the command line", "one sentence that names it, status 2", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"nothing.json", "nothing.ipynb"}


@pytest.mark.parametrize(
    "command", ["", "runs", "run", "run 06 -p omegas", "campaign", "campaign --minutes soon", "why"]
)
def test_what_the_command_line_cannot_parse_ends_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(command.split())
    assert end.value.code == 2 and "usage: nladv" in capsys.readouterr().err


def test_every_command_is_in_the_table() -> None:
    """A new command, or a new public name of the package, has to say what it makes of mistakes too."""
    action = next(a for a in cli._parser()._actions if a.dest == "==SUPPRESS==" or a.nargs == "A...")
    assert set(action.choices or ()) - {"book"} == {command.split()[0] for command in COMMANDS}  # book takes no names
    classes = {name for name in nl.__all__ if isinstance(getattr(nl, name), type) and name != "GoalController"}
    assert {name for name in nl.__all__ if name not in classes and name != "__version__"} <= {
        case.partition(":")[0] for case in LIBRARY
    }


def test_the_end_of_a_command_is_0_2_or_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--tier", "smoke"]) == 0

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_status", interrupted)
    assert cli.main(["status"]) == 130
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "the same command goes on from there" in told
