"""The paper's tables, against the numbers as printed there (App. C.2), and what a recipe refuses."""

from dataclasses import replace

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
        ({"judged": 0}, "judged is 0, expected at least 1"),
        ({"judged": 2.5}, "judged is 2.5, expected an integer"),
        ({"judged": 10**7}, "judged is 1e+07, expected at most a million"),
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
    assert RECIPES["cifar-train"].shortened(20).milestones == (10, 15)
    for recipe in RECIPES.values():
        assert recipe.shortened(recipe.epochs) == recipe
        longer = recipe.shortened(3 * recipe.epochs)
        assert longer == replace(
            recipe, epochs=3 * recipe.epochs, milestones=tuple(3 * milestone for milestone in recipe.milestones)
        )


def test_milestones_that_coincide_are_moved_apart() -> None:
    """Each is a fall of the rate: one that is lost leaves a network at ten times the rate it was to end with."""
    features = RECIPES["reduced-features"]
    assert rates(features) == [0.05] * 4 + [0.005, 0.0005]
    assert rates(features.shortened(3)) == [0.05, 0.005, 0.0005]
    assert rates(features.shortened(4)) == [0.05] * 2 + [0.005, 0.0005]
    assert rates(features.shortened(5)) == [0.05] * 3 + [0.005, 0.0005]
    assert RECIPES["quick-train"].shortened(3).milestones == (1, 2)
    assert RECIPES["quick-linearize"].shortened(2).milestones == (1,)
    assert replace(features, milestones=(1, 2)).shortened(3).milestones == (1, 2)


LENGTHS = [*range(1, 30), 60, 200, 1000]


@pytest.mark.parametrize("epochs", LENGTHS)
def test_a_shortened_recipe_has_all_its_milestones_inside_the_run(epochs: int) -> None:
    # One row above all others: three falls in a row, at the end and at the beginning.
    hard = [Recipe(epochs=20, lr=1, batch=1, milestones=found) for found in ((17, 18, 19), (1, 2, 3), (9, 10, 19))]
    for recipe in (*RECIPES.values(), *hard):
        count = len(recipe.milestones)
        if epochs <= count:
            with pytest.raises(SpecError, match=f"epochs is {epochs}, expected at least {count + 1}: ") as refusal:
                recipe.shortened(epochs)
            assert "\n" not in str(refusal.value)
            continue
        short = recipe.shortened(epochs)
        assert {name for name in vars(recipe) if getattr(short, name) != getattr(recipe, name)} <= {
            "epochs",
            "milestones",
        }
        exact = [milestone * epochs / recipe.epochs for milestone in recipe.milestones]
        nearest = tuple(round(milestone) for milestone in exact)
        assert len(short.milestones) == count == len(set(short.milestones))
        assert all(0 < milestone < epochs for milestone in short.milestones)
        # Where the nearest epochs will do they are taken, as ever, so that no key of such a run has changed.
        if len(set(nearest)) == count and all(0 < milestone < epochs for milestone in nearest):
            assert short.milestones == nearest
        assert all(abs(a - b) <= max(count, 0.5) for a, b in zip(short.milestones, exact, strict=True))
        assert short.lr_at(epochs - 1) == recipe.lr_at(recipe.epochs - 1), "it ends with the rate it was to end with"


@pytest.mark.parametrize("epochs", [0, -2])
def test_no_epochs_are_no_shortened_recipe(epochs: int) -> None:
    for recipe in (RECIPES["cifar-train"], RECIPES["smoke-train"]):
        with pytest.raises(SpecError, match=f"epochs is {epochs}, expected at least 1"):
            recipe.shortened(epochs)


# ---------------------------------------------------------------------------------------- how often one looks


@pytest.mark.parametrize(
    ("epochs", "judged", "looks"),
    [
        (24, 5, [5, 10, 15, 20, 21, 22, 23, 24]),
        (15, 5, [5, 10, 11, 12, 13, 14, 15]),
        (12, 1, list(range(1, 13))),
        (8, 3, [3, 4, 5, 6, 7, 8]),
        (5, 5, [1, 2, 3, 4, 5]),
        (3, 1000, [1, 2, 3]),
        (30, 1000, [26, 27, 28, 29, 30]),
    ],
)
def test_the_test_split_is_looked_at_so_often_and_after_each_of_the_last_five(
    epochs: int, judged: int, looks: list[int]
) -> None:
    recipe = Recipe(epochs=epochs, lr=0.1, batch=8, judged=judged)
    assert [epoch + 1 for epoch in range(epochs) if recipe.judges(epoch)] == looks


def test_only_the_recipes_of_the_reduced_size_look_less_often() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe.judged > 1} == {"reduced-train", "reduced-linearize"}


def test_the_reduced_size_gives_slopes_the_way_of_the_paper_s_sixty_epochs() -> None:
    """Sum of the rates over all steps, over 1 - momentum: what a strength must be compared by (2 % at most)."""

    def total(name: str, images: int = 50_000) -> float:
        recipe = RECIPES[name]
        return sum(rates(recipe)) * -(-images // recipe.batch) / (1 - recipe.momentum)

    assert total("cifar-linearize") == pytest.approx(4351, abs=1)
    assert total("reduced-linearize") == pytest.approx(4340, abs=1)
    assert total("cifar-linearize-30") == pytest.approx(2176, abs=1)


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
