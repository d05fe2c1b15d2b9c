"""The transformer and the task of translation, against loops over single sentences and single numbers."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nladv_core as nl
from nladv_core import datasets, experiments, nets, runs, tasks, training
from nladv_core.errors import SpecError
from nladv_core.linearize import GoalController, active_counts
from nladv_core.recipes import RECIPES, Recipe
from nladv_core.runs import RunSpec, Store, compute
from nladv_core.texts import TextData
from nladv_core.transformer import BEGIN, END, PAD, greedy, sines

RECIPE = replace(RECIPES["quick-translate"], epochs=3, milestones=(2,), batch=16, warmup_steps=5)


@pytest.fixture(scope="module")
def data() -> TextData:
    found = datasets.load("number-words", train=90, test=24, size=80)
    assert isinstance(found, TextData)
    return found


def network(classes: int = 80, layers: int = 1, width: float = 0.0625, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nets.build(f"transformer{layers}", classes=classes, width=width)


def sloped(data: TextData, seed: int = 0, layers: int = 1) -> nn.Module:
    net = network(len(data.vocabulary), layers, seed=seed)
    return nl.linearize(net, nets.example(f"transformer{layers}", tasks.of(data).shape))


@pytest.fixture(scope="module")
def trained(data: TextData) -> nn.Module:
    """Knows something, so that translations end and differ."""
    net = sloped(data)
    recipe = replace(RECIPE, epochs=20, milestones=(19,), lr=0.012)
    list(training.fit(net, data, recipe, seed=0, omega=0.01, goal=0.4, start=1))
    return net


# ---------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(("layers", "width", "classes"), [(1, 0.0625, 80), (3, 0.125, 50), (6, 1.0, 8000)])
def test_sizes_and_path_lengths_are_those_of_the_formulas(layers: int, width: float, classes: int) -> None:
    net = network(classes, layers, width)
    d = round(512 * width)
    # One attention: 4 d² + 4 d; feed-forward: 2 · 4 d² + 5 d; a norm: 2 d. The decoder has one attention and norm more.
    attention, block, norm = 4 * d * d + 4 * d, 8 * d * d + 5 * d, 2 * d
    counted = layers * (attention + block + 2 * norm) + layers * (2 * attention + block + 3 * norm)
    assert sum(p.numel() for p in net.parameters()) == counted + classes * d + classes * (d + 1)
    example = nets.example(f"transformer{layers}", (5, 4))
    net = nl.linearize(net, example)
    assert [channels for _, channels in active_counts(net).values()] == 2 * layers * [4 * d]
    assert [name.split(".")[0] for name in active_counts(net)] == layers * ["encoder"] + layers * ["decoder"]
    # The walk back from the output, step by step: a unit with probability 1/2, then to the encoder with 1/2.
    expected, here = 0.0, 1.0
    for _ in range(layers):
        expected += here / 2
        expected += here / 2 * layers / 2
        here /= 2
    assert nl.path_length(net, example).mean == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx((1 - 0.5**layers) * (1 + layers / 2))


def test_the_napl_does_not_depend_on_lengths_but_the_apl_does() -> None:
    net = nl.linearize(network(), nets.example("transformer1", (5, 4)))
    lengths = [nets.example("transformer1", shape) for shape in ((5, 4), (9, 2), (1, 1))]
    assert len({round(nl.path_length(net, example).mean, 12) for example in lengths}) == 1
    assert len({round(nl.path_length(net, example, normalized=False).mean, 9) for example in lengths}) == 3


def test_places_are_sines_and_cosines() -> None:
    found = sines(7, 6)
    for place in range(7):
        for i in range(3):
            angle = place / 10_000 ** (2 * i / 6)
            assert found[place, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[place, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("linearized", [False, True])
def test_a_batch_of_mixed_lengths_is_as_good_as_one_by_one(data: TextData, linearized: bool) -> None:
    net = (sloped(data, layers=2) if linearized else network(len(data.vocabulary), 2)).eval()
    batch = next(tasks.of(data).batches(RECIPE, 0, 0))
    source, target = (torch.cat([x, torch.zeros(len(x), 3, dtype=x.dtype)], 1) for x in batch.inputs)
    with torch.no_grad():
        together = net(source, target)
        for row in range(len(source)):
            s, t = (x[row : row + 1, : int((x[row] != PAD).sum())] for x in (source, target))
            assert torch.allclose(net(s, t)[0], together[row, : t.shape[1]], atol=2e-5)


def test_no_position_sees_what_comes_later(data: TextData) -> None:
    net = network(len(data.vocabulary)).eval()
    source, target = torch.randint(4, 60, (2, 6)), torch.randint(4, 60, (2, 7))
    other = target.clone()
    other[:, 4:] = 5
    with torch.no_grad():
        first, second = net(source, target), net(source, other)
    assert torch.allclose(first[:, :4], second[:, :4], atol=1e-6) and not torch.allclose(first[:, 4:], second[:, 4:])


def test_greedy_decoding_is_a_naive_loop(data: TextData, trained: nn.Module) -> None:
    net, limit = trained.eval(), 20
    source = data.test_source.long()
    found = greedy(net, source, limit)
    ended = 0
    for row, tokens in zip(source, found.tolist(), strict=True):
        sentence, said = row[row != PAD][None], [BEGIN]
        while len(said) <= limit and said[-1] != END:
            with torch.no_grad():
                scores = net(sentence, torch.tensor([said]))[0, -1].tolist()
            said.append(max((i for i in range(len(scores)) if i not in (PAD, BEGIN)), key=scores.__getitem__))
        assert [token for token in tokens if token != PAD] == said[1:]
        ended += said[-1] == END
    assert ended > 5 and len(set(map(tuple, found.tolist()))) > 5, "the test must have sentences that end and differ"


# ------------------------------------------------------------------------------------------------------------- the task


def test_perplexity_and_accuracy_are_those_of_a_loop_over_tokens(data: TextData, trained: nn.Module) -> None:
    task = tasks.of(data)
    right, lost = training._judged(trained, task, "float32")
    total, hits, count = 0.0, 0, 0
    for german, english in data.test_pairs:
        (source,), (target,) = data.vocabulary.encode([german]), data.vocabulary.encode([english])
        with torch.no_grad():
            logits = trained(torch.tensor([[*source, END]]), torch.tensor([[BEGIN, *target]]))[0].double()
        for scores, token in zip(logits.tolist(), [*target, END], strict=True):
            total -= math.log(math.exp(scores[token]) / sum(map(math.exp, scores)))
            hits += max(range(len(scores)), key=scores.__getitem__) == token
            count += 1
    assert (count, hits) == (task.asked_in_test, int(right))
    assert float(lost) == pytest.approx(total, rel=1e-5)
    perplexity = task.measured(float(lost) / count)["test_perplexity"]
    assert perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    # Against reading it off the inverse probabilities: their geometric mean.
    assert 1 < perplexity < len(data.vocabulary)


def test_bleu_is_what_the_command_line_says(data: TextData, trained: nn.Module, tmp_path: Path) -> None:
    task = tasks.of(data)
    assert isinstance(task, tasks.Translation)
    (tmp_path / "ours").write_text("".join(f"{said}\n" for said in task.translations(trained.eval())))
    (tmp_path / "reference").write_text("".join(f"{english}\n" for _, english in data.test_pairs))
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "ours", "-m", "bleu", "-b", "-w", "6"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    score = task.at_the_end(trained)["test_bleu"]
    assert score == pytest.approx(float(told), abs=1e-5) and score > 1
    assert task.told()["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_an_epoch_has_every_pair_once_in_batches_of_like_length(data: TextData) -> None:
    task = tasks.of(data)
    seen, widths = [], []
    batches = list(task.batches(RECIPE, 3, 1))
    for batch in batches:
        source, target = batch.inputs
        assert len(source) <= RECIPE.batch and batch.count == int((batch.labels != tasks.NOT_ASKED).sum())
        assert bool((source[:, -1] != PAD).any()) and bool((target[:, -1] != PAD).any()), "cut to the longest"
        widths.append(int((target != PAD).sum(1).max() - (target != PAD).sum(1).min()))
        for s, t, wanted in zip(source.tolist(), target.tolist(), batch.labels.tolist(), strict=True):
            asked = [token for token in wanted if token != tasks.NOT_ASKED]
            assert t[0] == BEGIN and [x for x in t if x not in (PAD, END)][1:] == asked[:-1] and asked[-1] == END
            seen.append((tuple(x for x in s if x), tuple(asked)))
    rows = zip(data.train_source.tolist(), data.train_target.tolist(), strict=True)
    assert sorted(seen) == sorted((tuple(x for x in s if x), tuple(x for x in t if x)[1:]) for s, t in rows)
    assert len(batches) == task.batch_count(RECIPE) == math.ceil(90 / 16)
    assert sum(batch.count for batch in batches) == task.asked
    every = (data.train_target != PAD).sum(1)
    assert sum(widths) / len(widths) < int(every.max() - every.min()) / 2
    again, later = list(task.batches(RECIPE, 3, 1)), list(task.batches(RECIPE, 3, 2))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(batches, again, strict=True))
    assert [batch.labels.tolist() for batch in later] != [batch.labels.tolist() for batch in batches]


# ------------------------------------------------------------------------------------------------------------- training


def test_until_the_start_a_run_is_the_plain_training(data: TextData) -> None:
    plain = list(training.fit(network(len(data.vocabulary)), data, RECIPE, seed=5))
    late = list(training.fit(sloped(data), data, RECIPE, seed=5, omega=3.0, start=2))
    shown = ("train_loss", "train_accuracy", "test_accuracy", "test_perplexity", "lr")
    for name in shown:
        assert [row[name] for row in plain[:2]] == [row[name] for row in late[:2]]
    assert plain[2]["train_loss"] != late[2]["train_loss"]
    assert plain != list(training.fit(network(len(data.vocabulary)), data, RECIPE, seed=6))


def test_training_leaves_the_global_random_state_alone(data: TextData) -> None:
    torch.manual_seed(7)
    net = network(len(data.vocabulary), seed=7)
    before = torch.get_rng_state()
    recipe = replace(RECIPE, epochs=1, milestones=())
    rows = list(training.fit(net, data, recipe, seed=0))
    assert torch.equal(before, torch.get_rng_state())
    net = network(len(data.vocabulary), seed=7)
    torch.manual_seed(8)
    assert list(training.fit(net, data, recipe, seed=0)) == rows, "nor does dropout depend on it"


def test_the_warm_up_is_a_straight_rise_in_steps() -> None:
    recipe = Recipe(epochs=4, lr=0.5, batch=8, warmup_steps=5, milestones=(2,))
    assert [recipe.lr_at(0, step) for step in range(7)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])
    assert recipe.lr_at(3, 20) == pytest.approx(0.05) and recipe.lr_at(0) == 0.5


def test_the_loop_warms_up_and_the_row_tells_the_last_rate(data: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.Adam.step

    def step(self: Any, *more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *more)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    recipe = replace(RECIPE, epochs=2, milestones=(), accumulate=4, warmup_steps=3, lr=0.3)
    rows = list(training.fit(network(len(data.vocabulary)), data, recipe, seed=0))
    # 6 batches are two steps an epoch, the second of two batches.
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3]) and [row["lr"] for row in rows] == pytest.approx([0.2, 0.3])


def test_accumulated_batches_count_as_one(data: TextData) -> None:
    """Gradients of six small batches against that of one loss over all their tokens."""
    recipe = replace(
        RECIPE, epochs=1, milestones=(), optimizer="sgd", momentum=0.0, lr=0.1, warmup_steps=0, accumulate=6
    )
    net = network(len(data.vocabulary)).eval()
    reference = network(len(data.vocabulary)).eval()
    for module in (*net.modules(), *reference.modules()):
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.p = 0.0  # type: ignore[assignment]
            module.dropout = 0.0  # type: ignore[assignment]
    row = list(training.fit(net, data, recipe, seed=0))[0]
    total, count = torch.zeros(()), 0
    for batch in tasks.of(data).batches(recipe, 0, 0):
        logits = reference(*batch.inputs).log_softmax(2)
        for one, wanted in zip(logits, batch.labels, strict=True):
            for scores, label in zip(one, wanted.tolist(), strict=True):
                if label >= 0:
                    total = total - 0.9 * scores[label] - 0.1 * scores.mean()
                    count += 1
    (total / count).backward()
    assert row["train_loss"] == pytest.approx(total.item() / count, rel=1e-4)
    for (name, mine), theirs in zip(net.named_parameters(), reference.parameters(), strict=True):
        assert theirs.grad is not None and torch.allclose(mine, theirs - 0.1 * theirs.grad, atol=2e-5), name


def test_the_penalty_acts_once_a_step_however_many_batches_it_has(data: TextData) -> None:
    recipe = replace(
        RECIPE, epochs=1, milestones=(), optimizer="sgd", momentum=0.0, lr=1e-4, warmup_steps=0, accumulate=6
    )
    net = sloped(data)
    list(training.fit(net, data, recipe, seed=0, omega=100.0))
    # At slope 0 the pull of ω |1 - α|^0.5 is ω / 2; the task's own gradient is far below it.
    slopes = torch.cat([unit.slope.detach() for _, unit in nl.units(net)])
    assert torch.allclose(slopes, torch.full_like(slopes, 1e-4 * 100 / 2), rtol=0.02)


def test_a_goal_is_reached_and_not_passed(trained: nn.Module) -> None:
    total = sum(channels for _, channels in active_counts(trained).values())
    assert 0 <= 1 - nl.active_fraction(trained) - 0.4 < 1 / total
    assert GoalController(trained, 0.4, 1.0).reached


# ----------------------------------------------------------------------------------------------------------------- runs


SPEC = RunSpec(
    data="number-words",
    net="transformer1",
    width=0.0625,
    size=80,
    train=90,
    test=24,
    recipe=replace(RECIPE, epochs=4, milestones=(3,), lr=0.3, accumulate=2),
    omega=0.05,
    goal=0.3,
    start=1,
)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compute(SPEC, Store(tmp_path / "whole", also=()), device="cpu")
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)
    store = Store(tmp_path / "parts", also=())
    for _ in range(3):
        with pytest.raises(runs.Paused):
            compute(SPEC, store, device="cpu", until=0.0)
    again = compute(SPEC, store, device="cpu")
    assert again.execution["resumed_after"] == [1, 2, 3]
    for name in ("metrics", "history", "units", "files", "data", "code"):
        assert getattr(again, name) == getattr(whole, name), name


def test_a_record_tells_what_was_measured_and_its_network_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path, also=())
    record = compute(SPEC, store, device="cpu")
    assert store.record(SPEC).to_json() == record.to_json()
    assert record.metrics["test_perplexity"] == record.history[-1]["test_perplexity"]
    data = datasets.load("number-words", train=90, test=24, size=80)
    task = tasks.of(data)
    assert record.data["checksum"] == task.checksum and record.data["shape"] == list(task.shape)
    net = store.network(SPEC)
    assert training.accuracy(net, data) == record.metrics["test_accuracy"]
    assert task.at_the_end(net)["test_bleu"] == record.metrics["test_bleu"]
    assert nl.active_fraction(net) == record.metrics["active_fraction"]
    assert nl.path_length(net, nets.example(SPEC.net, task.shape)).mean == record.metrics["napl"]
    assert runs.seconds(SPEC) > 0


def test_masks_of_one_go_on_the_weights_of_another(tmp_path: Path) -> None:
    short = replace(SPEC.recipe, epochs=1, milestones=())
    plain = replace(SPEC, omega=0.0, goal=None, start=0)
    source = replace(plain, parent=plain, omega=0.05)
    given = replace(plain, parent=source, weights=plain, masks="exact", recipe=short)
    store = Store(tmp_path, also=())
    runs.run([given], store, progress=False, workers=1, device="cpu")
    net, taken = runs._initial(given, store, tasks.of(datasets.load("number-words", train=90, test=24, size=80)))
    trained = store.weights(plain)
    state = net.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.items())
    masks = store.masks(source)
    assert all(torch.equal(unit.active, masks[name]) for name, unit in nl.units(net))
    assert not all(bool(mask.all()) for mask in masks.values())
    assert taken is not None and (taken["key"], taken["weights_key"]) == (source.key(), plain.key())
    assert store.record(given).metrics["active_fraction"] == store.record(source).metrics["active_fraction"]


@pytest.mark.parametrize("masks", ["none", "layer"])
def test_parents_and_masks_go_with_sentences_too(tmp_path: Path, masks: str) -> None:
    """As chapter 03 retrains, and chapter 04 starts late."""
    short = replace(SPEC.recipe, epochs=1, milestones=())
    omega = 0.0 if masks != "none" else 0.05
    seed = 0 if masks == "none" else 1  # new weights, and another order of sentences
    child = replace(SPEC, parent=SPEC, masks=masks, omega=omega, start=0, goal=None, recipe=short, seed=seed)
    frame = runs.run([child], Store(tmp_path, also=()), progress=False, workers=1, device="cpu")
    assert len(frame) == 1 and frame["active_fraction"][0] <= 0.7 + 1e-9


def test_images_still_refuse_sentences_and_the_other_way_round() -> None:
    with pytest.raises(SpecError, match="holds images"):
        replace(SPEC, data="digits", size=8)


# --------------------------------------------------------------------------------------------------------- the chapter


@pytest.mark.parametrize("tier", ["smoke", "quick", "reduced", "paper"])
def test_a_chapter_compares_starts_within_one_training(tier: str) -> None:
    chapter = experiments.chapter("11", {"tier": tier, "device": "cpu"})
    specs = chapter.specs()
    seeds = {spec.seed for spec in specs}
    assert len(seeds) == (1 if tier == "smoke" else 3)
    for seed in seeds:
        own = [spec for spec in specs if spec.seed == seed]
        assert len([spec for spec in own if not spec.linearized]) == 1
        starts = [spec.start for spec in own if spec.linearized]
        assert starts[0] == 0 and len(starts) >= (2 if tier == "smoke" else 3) and len(set(starts)) == len(starts)
        assert len({spec.recipe for spec in own}) == 1
        (plain,) = (spec for spec in own if not spec.linearized)
        assert all(spec.control == plain for spec in own), "one training of a fixed length, with and without slopes"
        for spec in own:
            # Adam moves a slope by the learning rate a step at most: it must have the time to travel from 0 to 1.
            batches = math.ceil((spec.train or 29_000) / spec.recipe.batch)
            steps = math.ceil(batches / spec.recipe.accumulate)
            rates = [spec.recipe.lr_at(epoch) for epoch in range(spec.start, spec.recipe.epochs)]
            assert steps * sum(rates) > 1.1
    assert {spec.start for spec in specs if spec.linearized} == set(
        {"smoke": (0, 1), "quick": (0, 2, 5), "reduced": (0, 1, 2, 3), "paper": (0, 10, 20, 50, 100)}[tier]
    )
    # Lengths of sentences differ, so that a step is compiled in vain: bfloat16 pays on a GPU alone.
    assert {spec.precision for spec in specs} == {"bfloat16" if tier == "paper" else "float32"}
    if tier == "paper":
        assert (specs[0].data, specs[0].net, specs[0].width) == ("multi30k", "transformer6", 1)
        assert 20 in {spec.start for spec in specs}, "the paper's epoch"


def test_what_the_chapter_refuses() -> None:
    for given, told in (
        ({"omega": 0.0}, "omega is 0"),
        ({"starts": [99]}, "start is 99"),
        ({"goal": 1.5}, "goal is 1.5"),
        ({"epochs": 1}, "epochs is 1, expected at least 2: this recipe has 2 learning rates"),
        ({"epochs": 3, "tier": "paper", "starts": [0]}, None),
        ({"epochs": 2, "tier": "paper", "starts": [0]}, "epochs is 2, expected at least 3"),
    ):
        if told is None:
            (recipe,) = {spec.recipe for spec in experiments.chapter("11", {"device": "cpu"} | given).specs()}
            assert recipe.milestones == (1, 2), "as many falls of the rate as in two hundred epochs"
            continue
        with pytest.raises(SpecError, match=told):
            experiments.chapter("11", {"tier": "quick", "device": "cpu"} | given)
