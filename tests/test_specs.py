"""Which networks and data sets a run may name, and what goes without saying."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nladv_core import datasets, nets, runs
from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe
from nladv_core.specs import RunSpec

SHORT = Recipe(epochs=2, lr=0.1, batch=16)


def spec(**more: Any) -> RunSpec:
    return RunSpec(**({"data": "cifar10", "net": "resnet8", "recipe": SHORT} | more))


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
