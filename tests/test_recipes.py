"""The paper's tables, against the numbers as printed there (App. C.2), and what a recipe refuses."""

import pytest

from nladv_core.errors import SpecError
from nladv_core.recipes import RECIPES, UNTRAINED, Recipe

# epochs, lr, batch, weight decay, {epoch: learning rate there}
PRINTED = {
    "cifar-train": (200, 0.1, 256, 1e-4, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001, 199: 0.001}),
    "cinic-train": (200, 0.1, 256, 1e-4, {99: 0.1, 100: 0.01, 150: 0.001}),
    "tiny-imagenet-train": (80, 0.1, 128, 1e-4, {69: 0.1, 70: 0.01, 75: 0.001}),
    "cifar-linearize": (60, 0.1, 256, 1e-4, {19: 0.1, 20: 0.01, 40: 0.001}),
    "cifar-linearize-30": (30, 0.1, 256, 1e-4, {9: 0.1, 10: 0.01, 20: 0.001}),
    "cinic-linearize": (34, 0.1, 256, 1e-4, {9: 0.1, 10: 0.01, 22: 0.001}),
    "imagenet-linearize": (6, 0.01, 40, 1e-4, {1: 0.01, 2: 0.001, 4: 0.0001}),
    "multi30k-train": (200, 0.00082, 30, 0.0, {159: 0.00082, 160: 0.000082, 180: 0.0000082}),
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_recipe_of_the_paper_has_its_printed_values(name: str) -> None:
    recipe = RECIPES[name]
    epochs, lr, batch, decay, rates = PRINTED[name]
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.weight_decay) == (epochs, lr, batch, decay)
    for epoch, rate in rates.items():
        assert recipe.lr_at(epoch) == pytest.approx(rate, rel=1e-12)
    if name != "multi30k-train":
        assert (recipe.optimizer, recipe.momentum) == ("sgd", 0.9)


def test_the_translation_recipe_names_its_optimiser() -> None:
    recipe = RECIPES["multi30k-train"]
    assert (recipe.optimizer, recipe.betas, recipe.warmup_steps, recipe.accumulate) == ("adam", (0.9, 0.98), 2900, 10)
    assert recipe.label_smoothing == 0.1


def test_digits_and_sentences_are_never_mirrored() -> None:
    text = {name for name in RECIPES if name.endswith("translate") or name.startswith("multi30k")}
    assert not any(RECIPES[name].flip for name in RECIPES if name.startswith(("smoke", "quick")) or name in text)
    images = {name for name in RECIPES if name.startswith(("cifar", "cinic", "tiny", "reduced"))} - text
    assert all(RECIPES[name].flip for name in images)


def test_sentences_have_the_paper_s_optimiser_at_every_tier() -> None:
    shown = ("optimizer", "betas", "momentum", "weight_decay", "label_smoothing")
    for name in ("smoke-translate", "quick-translate", "reduced-translate"):
        assert [getattr(RECIPES[name], x) for x in shown] == [getattr(RECIPES["multi30k-train"], x) for x in shown]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5, expected an integer"),
        ({"batch": True}, "batch is True, expected an integer"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": "fast"}, "lr is 'fast', expected a finite number"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"milestones": (2, 2)}, "strictly increasing"),
        ({"milestones": (0,)}, "milestones"),
        ({"milestones": (10,)}, "drop or move"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"optimizer": "lion"}, "'lion', expected one of sgd, adam"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(change: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=".*") as refusal:
        Recipe(**{"epochs": 10, "lr": 0.1, "batch": 8} | change)  # type: ignore[arg-type]
    assert told in str(refusal.value)


def test_only_the_recipe_of_what_is_not_trained_has_no_epochs() -> None:
    assert (UNTRAINED.epochs, UNTRAINED.lr, UNTRAINED.batch) == (0, 0, 0)
    for change in ({"lr": 0.1}, {"batch": 8}, {"epochs": 1}):
        with pytest.raises(SpecError, match="is 0"):
            Recipe(**{"epochs": 0, "lr": 0, "batch": 0} | change)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="leave everything else out"):
        Recipe(epochs=0, lr=0, batch=0, flip=False)


def test_a_shortened_recipe_keeps_the_proportions() -> None:
    short = RECIPES["cifar-linearize"].shortened(6)
    assert (short.epochs, short.milestones, short.lr) == (6, (2, 4), 0.1)
    assert RECIPES["cifar-linearize"].shortened(1).milestones == ()


def rates(recipe: Recipe) -> list[float]:
    """The learning rate of each epoch, to nine digits."""
    return [round(recipe.lr_at(epoch), 9) for epoch in range(recipe.epochs)]


WHOLE = [0.1] * 100 + [0.01] * 50 + [0.001] * 50  # App. C.2: CIFAR, 200 epochs


@pytest.mark.parametrize("epoch", [1, 99, 100, 101, 150, 151, 199, 200])
def test_the_first_epochs_of_a_recipe(epoch: int) -> None:
    recipe = RECIPES["cifar-train"]
    assert rates(recipe.until(epoch)) == WHOLE[:epoch]
    same = {name for name in vars(recipe) if getattr(recipe.until(epoch), name) == getattr(recipe, name)}
    assert set(vars(recipe)) - same <= {"epochs", "milestones"}


def test_all_epochs_of_a_recipe_are_the_recipe() -> None:
    for recipe in RECIPES.values():
        assert recipe.until(recipe.epochs) == recipe == recipe.onwards(0, recipe.epochs)


@pytest.mark.parametrize("epoch", [0, 1, 70, 99, 100, 101, 149, 150, 199, 200, 230])
@pytest.mark.parametrize("epochs", [1, 30, 60, 200])
def test_a_recipe_goes_on_at_the_rates_it_would_have_had(epoch: int, epochs: int) -> None:
    recipe = RECIPES["cifar-train"]
    onwards = recipe.onwards(epoch, epochs)
    assert rates(onwards) == (WHOLE + [0.001] * 500)[epoch : epoch + epochs]
    assert (onwards.batch, onwards.momentum, onwards.weight_decay, onwards.flip) == (256, 0.9, 1e-4, True)


def test_no_epoch_is_no_recipe() -> None:
    for make in (lambda: RECIPES["cifar-train"].until(0), lambda: RECIPES["cifar-train"].onwards(3, 0)):
        with pytest.raises(SpecError, match="epochs is 0, expected at least 1"):
            make()
