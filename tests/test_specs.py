"""Which networks and data sets a run may name, and what goes without saying."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from nladv_core import datasets, experiments, nets, runs
from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.specs import RunSpec

SHORT = Recipe(epochs=2, lr=0.1, batch=16)


def spec(**more: Any) -> RunSpec:
    return RunSpec(**({"data": "cifar10", "net": "resnet8", "recipe": SHORT} | more))


PARENT = spec(seed=3)
SOURCE = spec(parent=PARENT, seed=3, omega=5.0)


@pytest.mark.parametrize("data", datasets.DATASETS)
@pytest.mark.parametrize("net", ["resnet56", "resnet20v1", "pyramidnet110", "pyramidnet41", "toynet20"])
def test_every_network_goes_with_every_data_set(data: str, net: str) -> None:
    found = spec(data=data, net=net, residual=False, width=0.5)
    assert RunSpec.from_json(found.to_json()) == found
    assert runs.seconds(found) > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"net": "pyramidnet110", "shortcut": "B"}, "widens by zero channels only"),
        ({"net": "toynet20", "shortcut": "B"}, "widens nowhere"),
        ({"net": "torchvision/resnet50", "residual": False}, "torchvision's as it is"),
        ({"net": "torchvision/resnet50", "width": 0.5}, "torchvision's as it is"),
        ({"net": "toynet2"}, "at least 3 layers"),
        ({"net": "pyramidnet111"}, "depth 111"),
        ({"data": "tiny_imagenet"}, "did you mean 'tiny-imagenet'"),
        ({"data": "tiny-imagenet", "size": 32}, "64 pixels and one difficulty"),
        ({"data": "imagenet", "size": 256}, "224 pixels and one difficulty"),
        ({"data": "cinic10", "difficulty": 0.5}, "32 pixels and one difficulty"),
        ({"train": 0}, "train is 0, expected 1 to 50000 images of cifar10"),
        ({"data": "cinic10", "test": 90_001}, "test is 90001, expected 1 to 90000"),
        ({"data": "imagenet", "train": -3}, "train is -3, expected 1 to 1281167"),
        ({"held_out": -1}, "held_out is -1, expected fewer than the 50000 training images, or 0"),
        ({"held_out": 50_000}, "held_out is 50000, expected fewer than the 50000 training images"),
        ({"held_out": 100, "train": 100}, "held_out is 100, expected fewer than the 100 training images"),
        ({"held_out": 0.5}, "held_out is 0.5, expected an integer"),
        ({"held_out": 100, "test": 100}, "test is 100, but with held_out no test image is seen; leave test out"),
        (
            {"held_out": 5, "data": "number-words", "net": "transformer1", "recipe": RECIPES["smoke-translate"]},
            "held_out is 5, which sentences do not know; expected 0",
        ),
        ({"omega": 1.0, "slope_lr": 0}, "slope_lr is 0, expected a factor above 0"),
        ({"omega": 1.0, "slope_lr": -1.0}, "slope_lr is -1, expected a factor above 0"),
        ({"slope_lr": 2.0}, "slope_lr is 2.0, but nothing is linearized"),
        (
            {"parent": PARENT, "start": 2, "slope_lr": 2.0},
            "slope_lr is 2.0, but no slope is switched on before the end",
        ),
        ({"omega": 5.0, "measure": "napl"}, "measure is 'napl', but there is no goal to reach"),
        ({"measure": "napl"}, "measure is 'napl', but omega is 0"),
        ({"price": "napl"}, "price is 'napl', but omega is 0"),
        ({"omega": 5.0, "price": "relu"}, "price is 'relu', expected one of units, napl, relus; did you mean 'relus'?"),
        ({"omega": 5.0, "goal": 2.0, "measure": "npal"}, "did you mean 'napl'?"),
        ({"omega": 5.0, "goal": 2.0}, "goal is 2, expected a share of inactive units between 0 and 1"),
        ({"omega": 5.0, "goal": 0, "measure": "napl"}, "goal is 0, expected how many NAPL may be left, above 0"),
        ({"omega": 5.0, "goal": -1, "measure": "relus"}, "goal is -1, expected how many ReLUs may be left, above 0"),
        (
            {"parent": PARENT, "omega": 1.0, "held_out": 9},
            "held_out is 9 but its parent's is 0; they must agree, or one",
        ),
        ({"weights": PARENT}, "weights are given without masks; name the run to start from as its parent"),
        ({"weights": PARENT, "parent": SOURCE}, "weights are given without masks"),
        ({"weights": SOURCE, "parent": SOURCE, "masks": "exact"}, "which has slopes; name a run without them"),
        (
            {"weights": spec(net="resnet14"), "parent": SOURCE, "masks": "exact"},
            "that of the run its weights come from is",
        ),
        (
            {"weights": spec(held_out=9), "parent": SOURCE, "masks": "exact"},
            "held_out is 0 but that of the run its weigh",
        ),
        (
            {"weights": spec(data="cifar100"), "parent": SOURCE, "masks": "exact"},
            "data is 'cifar10' but that of the run",
        ),
        ({"parent": SOURCE, "masks": "exact", "seed": 3}, "seed is 3, as of the run that its masks come from, so it"),
    ],
)
def test_what_no_run_can_be(change: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(told)) as refusal:
        spec(**change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("data", datasets.OFFICIAL)
def test_all_of_a_data_set_goes_without_saying(data: str) -> None:
    official = datasets.OFFICIAL[data]
    said = spec(data=data, size=official.side, **official.rows)
    assert said == spec(data=data) and said.key() == spec(data=data).key()
    assert spec(data=data, train=official.rows["train"] - 1).key() != said.key()


def test_the_keys_of_runs_of_before_are_what_they_were() -> None:
    assert spec().key() == "c7ca23f7be0e"
    assert spec(data="digits", train=100, net="resnet20v1").key() == "31dacbcbcc9a"


# As records have them that were made before there were controls: a field that is added since has its default there,
# so it must not show in a key.
OLD = {
    "8394fdc14cd3": '{"data":"cifar10","net":"resnet14","recipe":{"epochs":6,"lr":0.1,"batch":64,"milestones":[4,5]},'
    '"train":12500,"width":0.5}',
    "c57686b65508": '{"data":"cifar10","net":"resnet14","recipe":{"epochs":6,"lr":0.05,"batch":64,"milestones":[4,5]},'
    '"train":12500,"width":0.5,"parent":{"data":"cifar10","net":"resnet14","recipe":{"epochs":6,"lr":0.1,"batch":64,'
    '"milestones":[4,5]},"train":12500,"width":0.5},"omega":0.011}',
    "86c64c7ced20": '{"data":"cifar10","net":"resnet14","recipe":{"epochs":6,"lr":0.1,"batch":64,"milestones":[4,5]},'
    '"seed":1,"train":12500,"width":0.5,"parent":{"data":"cifar10","net":"resnet14","recipe":{"epochs":6,"lr":0.05,'
    '"batch":64,"milestones":[4,5]},"train":12500,"width":0.5,"parent":{"data":"cifar10","net":"resnet14","recipe":'
    '{"epochs":6,"lr":0.1,"batch":64,"milestones":[4,5]},"train":12500,"width":0.5},"omega":0.011},"masks":"exact"}',
    "ded1b23d0b7e": '{"data":"cifar10","net":"resnet20v1","recipe":{"epochs":6,"lr":0.05,"batch":64,"milestones":[4,5]}'
    ',"seed":1,"train":12500,"parent":{"data":"cifar10","net":"resnet20v1","recipe":{"epochs":0,"lr":0.0,"batch":0},'
    '"published":"akamaster/resnet20"},"omega":0.007}',
    "e8cdb2378a0c": '{"data":"cifar10","net":"resnet20v1","recipe":{"epochs":6,"lr":0.05,"batch":64,"milestones":[4,5]}'
    ',"train":12500,"parent":{"data":"cifar10","net":"resnet20v1","recipe":{"epochs":0,"lr":0.0,"batch":0},'
    '"published":"akamaster/resnet20"},"start":6}',
    "523522cf3815": '{"data":"multi30k","net":"transformer2","recipe":{"epochs":12,"lr":0.002,"batch":64,"milestones":'
    '[9,11],"momentum":0.0,"weight_decay":0.0,"flip":false,"label_smoothing":0.1,"optimizer":"adam","betas":[0.9,0.98],'
    '"warmup_steps":400},"size":4000,"train":14500,"width":0.125,"omega":0.003,"goal":0.85}',
}


@pytest.mark.parametrize("key", OLD)
def test_records_of_before_keep_their_keys(key: str) -> None:
    found = RunSpec.from_json(json.loads(OLD[key]))
    assert found.key() == key and json.loads(json.dumps(found.to_json())) == json.loads(OLD[key])


# The first runs that chapters wanted before there were controls; each is among those that they want now.
LIVE = {
    ("smoke", "01"): ("8fb880952ddf",),
    ("smoke", "04"): ("235dff3259d7", "d61911e77ad0", "d6f475a5fe13"),
    ("smoke", "05"): ("d61911e77ad0", "8fb880952ddf", "b9f369dbe315", "059deaf81ca0"),
    ("smoke", "06"): ("d61911e77ad0", "e5eb1e7d8c60", "738ef9809ecb", "a6ef788a920a", "2e7cd1164643"),
    ("smoke", "10"): ("7f71e49efff8", "44524f7aaefe", "7a53f76aa867", "5196bbece728", "374e1233769a"),
    ("smoke", "11"): ("72c4c2e7b3dd", "e0a302cb8938", "14b19e6050a9"),
    ("quick", "01"): ("190c207743d3",),
    ("quick", "04"): ("e92cd95b6e09", "c3d062a79415", "505d11cbd170", "600995fa2593"),
    ("quick", "07"): ("bcb216b838f5", "b67a40ccbb29", "4dca455c0317", "634f6a16f560"),
    ("quick", "09"): ("5959ef6fb75b", "b44ad80e98b3", "30a16a26940c"),
    ("quick", "11"): ("5ae99fb7d835", "dc0046bfa758", "30a8299faeaf", "d0987d41d106"),
    ("paper", "06"): ("6e1ba3914d0d", "1e4d454896ac", "16d042cee2a6", "44e235b64568"),
    ("paper", "04"): ("9eac178373bd", "2fc16a1cf181", "55ff86082de0", "c5f180c71fe2"),
    ("paper", "11"): ("657540424e00", "08fac3976a02", "43cfd207c1a2"),
}


@pytest.mark.parametrize(("tier", "name"), LIVE)
def test_what_a_chapter_wanted_before_it_still_wants(tier: str, name: str) -> None:
    wanted = [one.key() for one in experiments.wanted(experiments.find(name).name, tier)]
    assert set(LIVE[tier, name]) <= set(wanted)


# Whoever changes these makes records of the reduced size unreachable.
NEW = {
    "held_out": (spec(held_out=5000), "3a86c0669b3d"),
    "judged": (spec(recipe=replace(SHORT, judged=5)), "905cdda3b2c1"),
    "slope_lr": (spec(omega=5.0, slope_lr=2.0), "43c6d38036ca"),
    "measure": (spec(omega=5.0, goal=2.0, measure="napl"), "b82458e86a23"),
    "price": (spec(omega=5.0, price="relus"), "927b974ad37a"),
    "weights": (spec(parent=SOURCE, seed=3, masks="layer", weights=PARENT), "c81fcd18576b"),
}


@pytest.mark.parametrize("field", NEW)
def test_keys_with_what_a_run_can_be_now_are_pinned(field: str) -> None:
    found, key = NEW[field]
    assert found.key() == key
    plain = replace(found.recipe, judged=1) if field == "judged" else None
    default = None if field == "weights" else RunSpec.__dataclass_fields__.get(field)
    if field in ("held_out", "slope_lr", "price"):
        assert default is not None and replace(found, **{field: default.default}).key() != key
    if plain is not None:
        assert replace(found, recipe=plain).key() == spec().key() != key
    again = RunSpec.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found and again.key() == key


def test_a_key_names_both_sources_by_theirs() -> None:
    """Recomputed by hand, from the text as it must be."""
    found = NEW["weights"][0]
    text = (
        f'{{"data":"cifar10","masks":"layer","net":"resnet8","parent":"{SOURCE.key()}",'
        f'"recipe":{{"batch":16,"epochs":2,"lr":0.1}},"seed":3,"weights":"{PARENT.key()}"}}'
    )
    assert found.key() == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_torchvisions_resnet_as_a_parent() -> None:
    name = "torchvision/resnet50"
    parent = spec(data="imagenet", net=name, published=name, recipe=UNTRAINED)
    child = spec(data="imagenet", net=name, parent=parent, recipe=RECIPES["imagenet-linearize"], omega=0.01)
    assert child.origin == name and RunSpec.from_json(child.to_json()) == child
    with pytest.raises(SpecError, match="data is 'cifar10'.*expected 'imagenet'"):
        spec(net=name, published=name, recipe=UNTRAINED)
    assert nets.PUBLISHED[name].net == name


def test_rough_times_follow_the_images() -> None:
    def per_image(data: str) -> float:
        one = spec(data=data)
        return runs.seconds(one) / datasets.OFFICIAL[data].rows["train"]

    assert per_image("cinic10") == pytest.approx(per_image("cifar10"))
    assert per_image("tiny-imagenet") == pytest.approx(4 * per_image("cifar10"))
    assert per_image("imagenet") == pytest.approx(49 * per_image("cifar10"))
    deep, shallow = spec(net="pyramidnet110"), spec(net="pyramidnet20")
    assert runs.seconds(deep) == pytest.approx(5.5 * runs.seconds(shallow))
    assert runs.seconds(spec(net="torchvision/resnet50")) == runs.seconds(spec(net="resnet50"))


# ------------------------------------------------------------------------------------------------ what it is to others


def test_roles() -> None:
    again = spec(parent=SOURCE, masks="exact", seed=4)
    found = {
        "parent": [PARENT, spec(published="akamaster/resnet20", net="resnet20v1", recipe=UNTRAINED)],
        "control": [spec(parent=PARENT, start=2), SOURCE.control],
        "linearized": [SOURCE, spec(omega=5.0), spec(parent=PARENT), spec(parent=PARENT, start=1), spec(parent=SOURCE)],
        "retrained": [again, spec(parent=SOURCE, masks="layer", weights=PARENT, seed=3)],
        "retrained further": [spec(parent=again, seed=4)],
    }
    for role, specs in found.items():
        assert [one.role for one in specs] == [role] * len(specs)


def test_sources_and_lineage() -> None:
    """All that must be there before, each once, what is needed first before what needs it."""
    assert PARENT.sources == () and PARENT.lineage == (PARENT,)
    assert SOURCE.sources == (PARENT,) and SOURCE.lineage == (PARENT, SOURCE)
    given = spec(parent=SOURCE, masks="layer", weights=PARENT, seed=3)
    assert given.sources == (SOURCE, PARENT) and given.lineage == (PARENT, SOURCE, given)
    other = replace(given, weights=spec(seed=9))
    assert other.lineage == (PARENT, SOURCE, spec(seed=9), other)
    further = spec(parent=other, seed=3)
    assert further.lineage == (*other.lineage, further)


def test_a_run_on_held_out_images_learns_from_the_others() -> None:
    assert spec().trained_on == 50_000 and spec(held_out=5000).trained_on == 45_000
    assert spec(train=100, held_out=40).trained_on == 60
    assert spec(data="digits", train=100, held_out=40).trained_on == 60
    child = spec(parent=spec(held_out=9), held_out=9, omega=5.0)
    assert child.control.held_out == 9


def test_what_others_trained_was_trained_on_all_images() -> None:
    """So none of these can be held out from what descends from it."""
    published = spec(published="akamaster/resnet20", net="resnet20v1", recipe=UNTRAINED)
    with pytest.raises(SpecError, match="held_out is 9 but its parent's is 0"):
        spec(net="resnet20v1", parent=published, omega=5.0, held_out=9)
    with pytest.raises(SpecError, match="held_out is 9, but the published network"):
        replace(published, held_out=9)


# ------------------------------------------------------------------------------------- how far a slope gets in a run


SHORTER = replace(RECIPES["reduced-linearize"], batch=16)
WAYS: dict[str, dict[str, Any]] = {
    "the paper's 30 epochs": {"recipe": RECIPES["cifar-linearize-30"]},
    "the reduced size": {"recipe": RECIPES["reduced-linearize"]},
    "a larger rate for slopes": {"recipe": SHORTER, "slope_lr": 2.0, "train": 9000},
    "held-out images": {"recipe": SHORTER, "train": 9010, "held_out": 4000},
    "a late start": {"recipe": SHORTER, "train": 9000, "start": 2},
    "accumulated batches": {"recipe": replace(SHORTER, batch=5, accumulate=3), "train": 8989},
    "SNL's exponent": {"recipe": SHORTER, "train": 9000, "p": 1.0},
    "a square": {"recipe": SHORTER, "train": 9000, "p": 2.0},
    "another margin": {"recipe": SHORTER, "train": 9000, "margin": 0.1},
    "no momentum": {"recipe": replace(SHORTER, momentum=0.0), "train": 9000},
}


def lock(specs: list[RunSpec]) -> list[bool]:
    """Whether slopes that the task leaves alone get to their lock: step by step, by the optimiser that runs use.

    Of runs that differ in omega alone, one slope each.
    """
    one = specs[0]
    slopes, omegas = torch.nn.Parameter(torch.zeros(len(specs))), torch.tensor([spec.omega for spec in specs])
    optimizer = torch.optim.SGD([slopes], lr=1.0, momentum=one.recipe.momentum)
    images = (one.train or 50_000) - one.held_out
    steps = math.ceil(math.ceil(images / one.recipe.batch) / one.recipe.accumulate)
    locked = torch.zeros(len(specs), dtype=torch.bool)
    for epoch in range(one.start, one.recipe.epochs):
        optimizer.param_groups[0]["lr"] = one.slope_lr * one.recipe.lr_at(epoch)
        for _ in range(steps):
            with torch.no_grad():
                slopes.grad = -omegas * one.p * (1 - slopes).pow(one.p - 1)
                optimizer.step()
                locked |= slopes > 1 - one.margin
                slopes.masked_fill_(locked, 0.0)  # what is locked goes nowhere
                omegas.masked_fill_(locked, 0.0)
    return locked.tolist()


@pytest.mark.parametrize("how", WAYS)
def test_the_way_to_the_lock_is_the_one_that_a_free_slope_goes(how: str) -> None:
    given = WAYS[how]
    p, margin = given.get("p", 0.5), given.get("margin", 0.01)
    # The integral of (1 - slope)^(1 - p) / p from 0 to the lock: 1.332 with the paper's p and margin.
    needed = sum((1 - (i + 0.5) * (1 - margin) / 10**5) ** (1 - p) / p for i in range(10**5)) * (1 - margin) / 10**5
    if (p, margin) == (0.5, 0.01):
        assert needed == pytest.approx(1.332, abs=5e-4)
    unit = spec(**given, omega=1.0).way
    assert unit is not None
    below, above = (spec(**given, omega=factor * needed / unit) for factor in (0.97, 1.03))
    assert (below.way, above.way) == (pytest.approx(0.97 * needed), pytest.approx(1.03 * needed))
    assert lock([below, above]) == [False, True]
    goals: list[dict[str, Any]] = [{"goal": 0.5}, {"goal": 2.0, "measure": "napl"}]
    for goal in goals:
        assert replace(above, **goal).way == above.way
        with pytest.raises(
            SpecError, match=r"a slope comes at most 97% of its way to the lock in the \d+ epoch"
        ) as told:
            replace(below, **goal)
        assert "give a larger omega, more epochs or an earlier start" in str(told.value)
        assert "\n" not in str(told.value)


def test_nobody_knows_the_way_of_adam() -> None:
    one = spec(data="number-words", net="transformer1", recipe=RECIPES["smoke-translate"], omega=1e-9, goal=0.5)
    assert one.way is None


@pytest.mark.parametrize("tier", experiments.TIERS)
def test_every_goal_of_a_chapter_can_be_reached(tier: str) -> None:
    """And the strengths of curves are such that the strongest locks units; what cannot be reached is refused anyway."""
    for name in experiments.CHAPTERS:
        strongest = 0.0
        for one in experiments.wanted(name, tier):
            if one.way is not None and one.omega > 0:
                strongest = max(strongest, one.way)
                if one.goal is not None:
                    assert one.way > 1.332
        assert strongest == 0 or strongest > 1.332, name
