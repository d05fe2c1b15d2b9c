"""Numbers that are none, numbers that differ from run to run, and path lengths that could be wrong."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import test_paths
from evidence import evidence, full
from nladv_core import datasets, nets, runs, training
from nladv_core.errors import NladvError
from nladv_core.recipes import Recipe
from nladv_core.runs import RunFailed, RunSpec, Store, run

RECIPE = Recipe(epochs=3, lr=0.05, batch=16, flip=False)
SMALL: dict[str, Any] = {"data": "digits", "net": "resnet8", "width": 0.125, "size": 8, "train": 96, "test": 50}


class Poisoned(nn.Module):
    """A network whose output is spoilt from its forward pass number `at` (from 1) in training on, and in inference
    after so many.
    """

    def __init__(self, at: int, value: float, judging: bool = False) -> None:
        super().__init__()
        self.net, self.at, self.value, self.judging, self.passes = (
            nets.build("resnet8", width=0.125),
            at,
            value,
            judging,
            0,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        spoilt = self.passes >= self.at and self.training != self.judging
        return self.net(x) * (self.value if spoilt else 1.0)


@pytest.fixture(scope="module")
def data() -> datasets.ImageData:
    return datasets.embedded_digits(size=8, difficulty=0.5, train=96, test=50)


def rows(net: nn.Module, data: datasets.ImageData, recipe: Recipe, **more: Any) -> Iterator[dict[str, Any]]:
    return training.fit(net, data, recipe, seed=0, **more)


@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, "NaN"), (-math.inf, "NaN")])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_is_no_number_names_epoch_and_step(
    data: datasets.ImageData, value: float, what: str, accumulate: int
) -> None:
    """Six batches an epoch; whatever the batch, what stands in the message is the step that it belongs to."""
    steps = 6 // accumulate
    with evidence("numbers") as found:
        for batch in range(2, 13, full(1, 3)):
            net = Poisoned(batch, value)
            seen = []
            epoch, place = divmod(batch - 1, 6)
            with pytest.raises(training.TrainingDiverged) as told:
                for row in rows(net, data, replace(RECIPE, accumulate=accumulate)):
                    seen.append(row["epoch"])
            assert seen == list(range(1, epoch + 1))
            where = f"the loss became {what} at step {place // accumulate + 1} of {steps} in epoch {epoch + 1} of 3; "
            assert str(told.value).startswith(where) and "lower lr (now 0.05)" in str(told.value)
            found.note("a loss that becomes NaN at a batch", "stopped; epoch, step and cause named")


def test_losses_whose_sum_is_too_large_for_a_number_stop_it_too(data: datasets.ImageData) -> None:
    """Cross entropies of about 1e38 each: each is a number, their sum is beyond what a float32 holds."""
    with pytest.raises(training.TrainingDiverged, match=r"became (infinite|NaN) at step [12] of 6 in epoch 2 of 3"):
        for _ in rows(Poisoned(7, 1e38), data, RECIPE):
            pass


def test_what_was_no_number_before_the_first_step_is_said_to_be_so(data: datasets.ImageData) -> None:
    net = nets.build("resnet8", width=0.125)
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(
        training.TrainingDiverged, match="at step 1 of 6 in epoch 1 .* what it began with: look for NaN"
    ):
        next(rows(net, data, RECIPE))


def test_a_last_step_that_spoils_the_network_is_noticed(data: datasets.ImageData) -> None:
    """The losses of all batches were finite; the network is not: it must not be saved as the last good one."""
    with pytest.raises(training.TrainingDiverged, match="became NaN on the test split after epoch 2 of 3"):
        for _ in rows(Poisoned(12, math.nan, judging=True), data, RECIPE):
            pass


def test_bfloat16_is_named_among_the_causes(data: datasets.ImageData) -> None:
    with pytest.raises(training.TrainingDiverged, match="or use precision float32"):
        for _ in rows(Poisoned(2, math.nan), data, RECIPE, precision="bfloat16"):
            pass


def test_a_run_that_diverges_keeps_its_last_good_checkpoint_and_says_where(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by a learning rate that rises beyond all bounds in its third epoch."""
    spec = RunSpec(**SMALL, recipe=replace(RECIPE, epochs=4, milestones=(2,)))
    rate = Recipe.lr_at
    monkeypatch.setattr(Recipe, "lr_at", lambda self, epoch, step=None: 1e30 if epoch == 2 else rate(self, epoch, step))
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    store = Store(tmp_path, also=())
    with evidence("numbers") as found:
        with pytest.raises(RunFailed, match=r"at step [23] of 6 in epoch 3 of 4; .* lower lr \(now 1e\+30\)"):
            run([spec], store, progress=False, workers=1)
        kept = store.checkpoint(spec).load()
        assert kept is not None and kept[0].epochs == 2 and store.state(spec) == "missing"
        assert all(torch.isfinite(tensor).all() for part in kept[1:] for tensor in part.values())
        found.note("a run that diverges", "stopped, no record, the last good checkpoint kept")


# ---------------------------------------------------------------------------------------------------------- determinism


def test_the_same_specification_gives_the_same_bits(tmp_path: Any) -> None:
    """Of weights, masks, metrics and every row, whatever ran in the process before."""
    parent = RunSpec(**SMALL, recipe=RECIPE)
    specs = [parent, replace(parent, parent=parent, omega=1.0), replace(parent, parent=parent, omega=1.0, goal=0.5)]
    with evidence("numbers") as found:
        for number in range(full(10, 1)):
            one, other = (Store(tmp_path / f"{number}{side}", also=()) for side in "ab")
            run(specs, one, progress=False, workers=1)
            torch.manual_seed(number)
            torch.rand(number + 1)  # the global random state is of no weight
            run(specs[::-1], other, progress=False, workers=1)
            for spec in specs:
                a, b = one.record(spec), other.record(spec)
                assert (a.files, a.metrics, a.history, a.units) == (b.files, b.metrics, b.history, b.units)
                found.note("the same specification computed twice on a CPU", "bit-identical")


# Of the loss over an epoch: sums in another order round differently, and training enlarges that.
TOLERANCE = 1e-3


def test_threads_change_rounding_and_no_more() -> None:
    """Large enough that torch does share the work; runs themselves use one thread, so that equal specs end equal."""
    data = datasets.embedded_digits(size=32, difficulty=0.5, train=128, test=64)
    before = torch.get_num_threads()
    losses = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                net = nets.build("resnet8")
            losses[threads] = [
                row["train_loss"] for row in rows(net, data, replace(RECIPE, epochs=1, batch=64, lr=0.01))
            ]
    finally:
        torch.set_num_threads(before)
    assert losses[1] == pytest.approx(losses[2], rel=TOLERANCE)
    with evidence("numbers") as found:
        found.note(f"1 and 2 threads, training loss (relative tolerance {TOLERANCE:g})", "equal within it")


# --------------------------------------------------------------------------------------------------------- path lengths


def test_path_lengths_of_random_networks_are_right_or_refused() -> None:
    """Others than those of `test_paths.py`, ten thousand where evidence is taken; the too large are not counted."""
    rng, compared = random.Random("numbers"), 0
    with evidence("numbers") as found:
        while compared < full(10_000, 60):
            try:
                outcome = test_paths.judged(rng, rng.randint(2, 9))
            except NladvError as error:
                raise AssertionError("the oracle knows this network") from error
            compared += outcome in ("equal", "refused")
            outcome = {"equal": "equal to walking every path", "refused": "refused: no path at all"}.get(outcome, "")
            if outcome:
                found.note("path lengths of a random network", outcome)
