"""The claim ledger: how it is read, which runs count, and which word follows from which numbers."""

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nladv_core import claims, experiments, intervals, outcomes
from nladv_core.claims import Claim, Outcome, Part
from nladv_core.errors import RecordError, SpecError
from nladv_core.recipes import RECIPES, UNTRAINED
from nladv_core.specs import RunSpec
from nladv_core.store import Record
from synthetic import World, noise, record, unit, write

CHAPTER = {"chapter": "06", "dataset": "cifar10", "granularities": ["channel"]}
VALUE = Part(
    name="n", statistic="at NAPL", experiment=CHAPTER, options={"at": 2.7}, value=90.59, tolerance=0.5, paper_only=True
)
BOUND = replace(VALUE, value=None, tolerance=None, at_least=90.0)
HARDER = Part(
    name="n",
    statistic="mean over strengths",
    experiment={"chapter": "09", "datasets": ["cifar100"]},
    minus={"datasets": ["cifar10"]},
    direction="higher",
)
PAPER_RECIPES = [recipe for name, recipe in RECIPES.items() if not name.startswith(("smoke", "quick", "reduced"))]
PAPER_RECIPES += [RECIPES["cifar-train"].until(epoch) for epoch in range(1, 200)]  # where chapter 04 switches slopes on
T2 = 4.302652729911275  # half a 95 % interval over three seeds, in standard errors; from a printed table
T2_90 = 2.919985580353726  # the same of a 90 % interval


def runs(
    part: Part, tier: str = "paper", world: World | None = None, seeds: tuple[int, ...] = (0, 1, 2)
) -> list[Record]:
    """Records of all that a part rests on, of some seeds."""
    sides = [None] if part.minus is None else [None, part.minus]
    specs = dict.fromkeys(spec for differing in sides for spec in part.specs(tier, differing))
    return [one for one in (world or World())(specs) if unit(one.spec) in seeds]


def landed(accuracies: list[float], part: Part = VALUE, tier: str = "paper") -> list[Record]:
    """Runs of chapter 06 of which those with a goal end with these accuracies, one a seed."""
    found = runs(part, tier, World(sd=0.0), tuple(range(len(accuracies))))
    return [
        replace(one, metrics=one.metrics | {"test_accuracy": accuracies[unit(one.spec)] / 100})
        if one.spec.goal is not None
        else one
        for one in found
    ]


def claim(*parts: Part) -> Claim:
    return Claim(id="C", section="", title="", claim="", paper="", rule="", parts=parts)


def estimate(*numbers: float) -> intervals.Estimate:
    return intervals.mean(numbers)


class TestLedger:
    def test_has_the_fourteen_rows_each_with_one_primary_part(self) -> None:
        found = claims.read()
        assert [one.id for one in found] == [f"C{n}" for n in range(1, 15)]
        assert all(one.rule.endswith(".") and one.section for one in found)
        assert [sum(part.primary for part in one.parts) for one in found] == [1] * 14

    def test_holds_the_numbers_of_the_paper(self) -> None:
        found = [
            (one.id, part.options["at"], part.value or part.at_least, part.tolerance)
            for one in claims.read()
            for part in one.parts
            if part.statistic == "at NAPL" and part.options
        ]
        assert found == [
            ("C1", 2.7, 90.59, 0.5),
            ("C1", 3.1, 67.64, 0.5),
            ("C2", 5.0, 90.29, None),
            ("C2", 5.0, 67.04, None),
            ("C13", 3.5, 90.0, None),
        ]

    def test_asks_of_each_claim_what_the_paper_says(self) -> None:
        asked = {}
        for one in claims.read():
            part = one.parts[one.primary]
            criterion = part.direction or part.rule.partition(" (")[0]
            asked[one.id] = (part.statistic, criterion, part.options or {})
        assert asked == {
            "C1": ("knee", "at least 0", {}),
            "C2": ("at NAPL", "at least 90.29", {"at": 5.0}),
            "C3": ("retrained", "lower", {"masks": "exact"}),
            "C4": ("advantage", "higher", {}),
            "C5": ("autocorrelation", "higher", {}),
            "C6": ("slope of ENW over width", "equal within 0.3", {}),
            "C7": ("slope over depth", "equal within 0.3", {}),
            "C8": ("mean over strengths", "higher", {}),
            "C9": ("kept depth", "at most 0.5", {"loss": 2.0, "column": "napl_max_pool"}),
            "C10": ("sharpness", "as the claim's rule says", {"network": "torchvision/resnet50", "margin": 0.2}),
            "C11": ("error of prediction", "equal within 1", {"measure": "apl"}),
            "C12": ("advantage", "lower", {"column": "test_perplexity"}),  # a lower perplexity is better
            "C13": ("at NAPL", "at least 90", {"at": 3.5}),
            "C14": ("path lengths", "as the claim's rule says", {}),
        }
        # C3: CIFAR-10 is reached but for the global permutation without residual connections; CIFAR-100 by none.
        for part in next(one for one in claims.read() if one.id == "C3").parts:
            assert part.experiment and part.options
            if part.options.get("way", "chain") == "chain":
                strange = part.options["masks"] == "global" and part.experiment["residuals"] == [False]
                short = part.experiment["dataset"] == "cifar100" or strange
                assert (part.direction, part.at_least) == (("lower", None) if short else (None, -0.5)), part.name

    def test_early_starts_are_those_of_the_paper(self) -> None:
        found = {one.id: one.parts[1] for one in claims.read() if one.id in ("C4", "C12")}
        for name, epoch, reduced in (("C4", 15, 2), ("C12", 20, 1)):
            for tier, expected in (("paper", epoch), ("reduced", reduced)):
                specs = [spec for spec in found[name].specs(tier) if spec.omega > 0]
                starts = sorted({spec.start + (spec.parent.recipe.epochs if spec.parent else 0) for spec in specs})
                assert starts[found[name].of(tier)["early"]] == expected

    def test_every_part_reads_full_size_runs_only(self) -> None:
        experimental = [part for one in claims.read() for part in one.parts if part.experiment is not None]
        assert len(experimental) >= 50
        for part in experimental:
            for spec in {run for own in part.specs() for run in own.lineage}:
                assert (spec.train, spec.test, spec.size) == (None, None, None)
                assert spec.recipe in PAPER_RECIPES or (spec.published and spec.recipe == UNTRAINED)

    def test_no_part_names_a_network_that_may_not_have_run(self) -> None:
        for one in claims.read():
            for part in one.parts:
                assert "ResNet" not in part.name and "110" not in part.name and "56" not in part.name, part.name

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('id = "C2"', 'id = "C1"', "C1 occurs twice"),
            ("tolerance = 0.5", 'tolerance = "0.5"', "tolerance is '0.5'"),
            ("tolerance = 0.5", "", "a value with its tolerance"),
            ("tolerance = 0.5", "tolerance = 0.5\nat_least = 3.0", "takes exactly"),
            ("value = 90.59\ntolerance = 0.5", "", "found no criterion, but it takes exactly one of value, at_least"),
            ("tolerance = 0.5", "tolerance = -0.5", "expected above 0"),
            ("within = 0.3", "within = 0.0", "within is 0, expected above 0"),
            ("primary = true\n", "", "claim C1: has 0 primary parts, expected one"),
            ('name = "a knee, CIFAR-100"', 'name = "a knee, CIFAR-100"\nprimary = true', "has 2 primary parts"),
            ('name = "a knee, CIFAR-100"', 'name = "a knee, CIFAR-10"', "two parts have one name"),
            ('statistic = "knee"', 'statistic = "mean"', "expected one of"),
            ('statistic = "knee"', 'statistic = "kneee"', "did you mean 'knee'"),
            ('column = "test_accuracy"', 'column = "train_accuracy"', "column is 'train_accuracy'"),
            ('masks = "exact"', 'masks = "exat"', "masks is 'exat', expected one of exact, layer, global"),
            ("at = 2.7", 'at = "2.7"', "at is '2.7', expected a number"),
            ("{ at = 2.7 }", "{ att = 2.7 }", "found options att, but it takes at, column and needs at"),
            ('direction = "any"', 'direction = "up"', "direction is 'up'"),
            ('chapter = "06"', 'chapter = "16"', "unknown chapter '16'"),
            ('chapter = "06"', "chapter = 6", "its experiment names no chapter"),
            ('chapter = "06", ', "", "its experiment names no chapter"),
            (
                'chapter = "06", dataset = "cifar10", granularities = ["channel"]',
                'chapter = "02"',
                "has no runs that could",
            ),
            ('dataset = "cifar10"', 'datast = "cifar10"', "unknown parameter 'datast'; did you mean 'dataset'"),
            ('dataset = "cifar10"', 'dataset = "cifar11"', "did you mean 'cifar10'"),
            ('dataset = "cifar10"', 'network = "resnet57"', "resnet57"),
            ('dataset = "cifar10"', 'tier = "reduced"', "tier cannot be chosen; a verdict rests on paper"),
            ('dataset = "cifar10"', "seeds = 0.5", "seeds is"),
            ("minus = { residual = false }", "minus = { residual = true }", "minus has the same runs"),
            ("minus = { residual = false }", "minus = { residul = false }", "did you mean 'residual'"),
            (
                "paper_only = true",
                "paper_only = true\nreduced = { width = 2.0 }",
                "not asked at reduced size; leave out",
            ),
            ("tolerance = 2.0", "", "takes exactly tolerance"),
            ("section =", "sektion =", "unknown field 'sektion'; did you mean 'section'"),
            ("[[claim.part]]", "[[claim.teil]]", "unknown field 'teil'"),
            ("[[claim]]", "[[claims]]", "claim"),
            ('id = "C1"', 'id = "C1', "cannot be read"),
        ],
    )
    def test_refuses_a_bad_row(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        text = (Path(__file__).parents[1] / "data" / "claims.toml").read_text()
        assert old in text
        bad = tmp_path / "claims.toml"
        bad.write_text(text.replace(old, new, 1))
        with pytest.raises(SpecError, match=message.replace("(", r"\(")) as refusal:
            claims.read(bad)
        if "cannot be read" not in message:
            assert "\n" not in str(refusal.value)

    def test_a_part_without_runs_takes_no_criterion(self) -> None:
        with pytest.raises(SpecError, match="found options, value, but statistic 'sharpness' takes exactly options"):
            Part(name="n", statistic="sharpness", options={"network": "x"}, value=1.0)

    def test_a_missing_ledger_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"claims\.toml: cannot be read"):
            claims.read(tmp_path / "claims.toml")


class TestWords:
    def test_every_word_stands_in_the_one_table(self) -> None:
        assert set(claims.VERDICTS) == {
            "exceeds", "reproduced", "inconclusive", "differs", "too few seeds", "not run"
        }  # fmt: skip
        assert set(claims.DIRECTIONS) == {"same direction", "undecided", "opposite", "nothing yet"}
        assert set(claims._DIRECTION_OF) == set(claims.VERDICTS)
        assert set(claims._DIRECTION_OF.values()) == set(claims.DIRECTIONS)


class TestValue:
    """A number of the paper with a tolerance: 90.59 ± 0.5."""

    @pytest.mark.parametrize(
        ("numbers", "word"),
        [
            ([90.5, 90.6, 90.7], "reproduced"),
            ([91.08, 91.09, 91.10], "reproduced"),  # 0.5 above: the edge belongs to it
            ([90.08, 90.09, 90.10], "reproduced"),  # 0.5 below
            ([91.12, 91.14, 91.16], "exceeds"),  # wholly above the tolerance
            ([98.4, 98.5, 98.6], "exceeds"),
            ([91.09, 91.12, 91.15], "inconclusive"),  # not wholly
            ([90.02, 90.04, 90.06], "differs"),
            ([88.0, 90.0, 91.0], "inconclusive"),
            ([90.2, 90.59, 90.98], "reproduced"),  # the interval within ±1
            ([90.16, 90.59, 91.02], "inconclusive"),  # just not: on the spot by luck
            ([90.67, 90.99, 91.31], "inconclusive"),  # near, and its interval leaves ±1 above ...
            ([89.87, 90.19, 90.51], "inconclusive"),  # ... or below
        ],
    )
    def test_words(self, numbers: list[float], word: str) -> None:
        assert claims.weigh(VALUE, estimate(*numbers))[0] == word

    def test_from_records_to_the_page(self) -> None:
        found = claims.outcome(VALUE, landed([90.4, 90.5, 90.9]))
        half = T2 * statistics.stdev([90.4, 90.5, 90.9]) / math.sqrt(3)
        assert (found.word, found.n) == ("reproduced", 3)
        assert found.note == f"90.60 (95 % interval {90.6 - half:.2f} to {90.6 + half:.2f})"
        assert found.ran == "resnet56 on cifar10, 200 + 60 epochs, 50,000 images"
        assert claims.outcome(VALUE, landed([98.4, 98.5, 98.6])).word == "exceeds"

    def test_fewer_than_three_are_told_and_not_judged(self) -> None:
        for accuracies in ([90.59], [90.5, 90.7]):
            found = claims.outcome(VALUE, landed(accuracies))
            assert (found.word, found.n) == ("too few seeds", len(accuracies))
            assert found.note == "values " + ", ".join(f"{y:.3g}" for y in accuracies)


class TestCriteria:
    @pytest.mark.parametrize(
        ("criterion", "numbers", "word"),
        [
            ({"at_least": 90.0}, [91, 91.1, 91.2], "reproduced"),
            ({"at_least": 90.0}, [89, 89.1, 89.2], "differs"),
            ({"at_least": 90.0}, [89.5, 90.5, 91.5], "inconclusive"),
            ({"at_least": 90.0}, [90, 90, 90], "inconclusive"),  # exactly the bound is not above it
            ({"at_most": 89.0}, [90, 90.1, 90.2], "differs"),
            ({"at_most": 89.0}, [88, 89, 90], "inconclusive"),
            ({"at_most": 89.0}, [88, 88.1, 88.2], "reproduced"),
            ({"within": 0.5}, [0.1, -0.1, 0.0], "reproduced"),
            ({"within": 0.5}, [0.1, 0.1, 0.1], "reproduced"),
            ({"within": 0.5}, [0.45, 0.4, -0.2], "inconclusive"),
            ({"within": 0.5}, [0.6, 0.61, 0.62], "differs"),
            ({"within": 0.5}, [-0.6, -0.61, -0.62], "differs"),
            ({"within": 0.5}, [0.5, 0.5, 0.5], "inconclusive"),
            ({"direction": "higher"}, [1.0, 1.1, 1.2], "reproduced"),
            ({"direction": "higher"}, [-1.0, -1.1, -1.2], "differs"),
            ({"direction": "higher"}, [-1.0, 0.5, 1.2], "inconclusive"),
            ({"direction": "higher"}, [0.0, 1e-16, 0.0], "inconclusive"),  # the last digit of a sum
            ({"direction": "higher"}, [1e-15, 1e-15, 1e-15], "inconclusive"),
            ({"direction": "lower"}, [-1.0, -1.1, -1.2], "reproduced"),
            ({"direction": "lower"}, [1.0, 1.1, 1.2], "differs"),
            ({"direction": "any"}, [-1.0, -1.1, -1.2], "reproduced"),
            ({"direction": "any"}, [1.0, 1.1, 1.2], "reproduced"),
            ({"direction": "any"}, [-1.0, 0.5, 1.2], "inconclusive"),
        ],
    )
    def test_words(self, criterion: dict[str, Any], numbers: list[float], word: str) -> None:
        part = replace(VALUE, value=None, tolerance=None, **criterion)
        assert claims.weigh(part, estimate(*numbers))[0] == word

    def test_equality_is_judged_by_the_interval_of_90_percent(self) -> None:
        """Within the margin at 90 %, not at 95 %."""
        part, numbers = replace(VALUE, value=None, tolerance=None, within=0.5), (-0.2, 0.0, 0.2)
        half = statistics.stdev(numbers) / math.sqrt(3)
        assert T2_90 * half < 0.5 < T2 * half + 0.1
        word, note = claims.weigh(part, estimate(*numbers))
        assert word == "reproduced" and note.startswith("0 (90 % interval -0.337 to 0.337)")
        wide = (-0.26, 0.0, 0.26)
        assert T2_90 * statistics.stdev(wide) / math.sqrt(3) < 0.5 < T2 * statistics.stdev(wide) / math.sqrt(3)
        assert claims.weigh(part, estimate(*wide))[0] == "reproduced"

    def test_rules_in_words(self) -> None:
        assert VALUE.rule == "90.59 ± 0.5 (95 % interval within ± 1)" and BOUND.rule == "at least 90 (95 % interval)"
        assert HARDER.rule == "above zero (95 % interval)"
        assert replace(BOUND, at_least=None, within=0.3).rule == "equal within 0.3 (90 % interval)"


class TestWhichRunsCount:
    def test_what_shares_nothing_is_compared_after_welch(self) -> None:
        """Three networks a side: paired by an RNG number, they would have two degrees of freedom and another width."""
        part = HARDER
        found = claims.outcome(part, runs(part, world=World(sd=1.0))).estimate
        sides = []
        for name in ("cifar100", "cifar10"):
            own = [one for one in runs(part, world=World(sd=1.0)) if one.spec.data == name]
            sides.append(outcomes.mean_over_strengths(own).estimate)
        assert found is not None and None not in sides and found == intervals.apart(*sides)  # type: ignore[arg-type]
        assert 2 < found.freedom <= 4

    def test_one_side_alone_is_not_run(self) -> None:
        half = [one for one in runs(HARDER) if one.spec.data == "cifar10"]
        assert claims.outcome(HARDER, half).word == "not run"

    @pytest.mark.parametrize("role", ["linearized", "control"])
    def test_half_a_repetition_is_none(self, role: str) -> None:
        """A seed counts once all of its runs and their controls are there."""
        part = replace(HARDER, minus=None)
        whole = runs(part)
        (lacking,) = [one for one in whole if one.spec.role == role and unit(one.spec) == 1][:1]
        found = claims.outcome(part, [one for one in whole if one is not lacking])
        assert (found.word, found.n) == ("too few seeds", 2)
        few = [one for one in whole if one.spec.omega > 0.005]
        found = claims.outcome(part, few)
        assert found.word == "not run" and "no repetition complete" in found.note

    def test_more_runs_of_one_seed_never_hide_the_others(self) -> None:
        """Three seeds complete, one of them with a strength more: all three are judged."""
        whole = runs(HARDER)
        spec = next(one.spec for one in whole if one.spec.omega > 0 and unit(one.spec) == 0)
        more = replace(spec, omega=0.02)
        found = claims.outcome(HARDER, [*whole, record(more, test_accuracy=0.1, napl=0.1)])
        assert found == claims.outcome(HARDER, whole) and found.n == 3

    @pytest.mark.parametrize(
        "more",
        [
            {"train": 10000},
            {"net": "resnet44"},
            {"net": "resnet56v1"},
            {"width": 2.0},
            {"residual": False},
            {"data": "cifar100"},
            {"recipe": RECIPES["cifar-linearize-30"]},
            {"granularity": "layer"},
            {"p": 1.0},
            {"start": 3},
            {"seed": 7},
            {"omega": 0.0011},
        ],
    )
    def test_other_runs_do_not_count(self, more: dict[str, Any]) -> None:
        def moved(spec: RunSpec) -> RunSpec:
            shape = {name: more[name] for name in more if name not in ("recipe", "granularity", "p", "start", "omega")}
            before = None if spec.parent is None else replace(spec.parent, **shape)
            return replace(spec, **more, parent=before)

        changed = [moved(one.spec) for one in landed([90.5, 90.6, 90.7]) if one.spec.omega > 0]
        found = claims.outcome(VALUE, World(sd=0.0)(changed))
        assert found.word == "not run"

    def test_a_shorter_parent_does_not_count(self) -> None:
        short = [
            replace(one.spec, parent=replace(one.spec.parent, recipe=RECIPES["cifar-train"].shortened(20)))
            for one in landed([90.5, 90.6, 90.7])
            if one.spec.parent is not None
        ]
        assert claims.outcome(VALUE, World()(short)).word == "not run"

    def test_retrainings_of_all_kinds_help_with_the_residuals(self) -> None:
        part = next(one for one in claims.read() if one.id == "C3").parts[0]
        found = claims.outcome(part, runs(part)).estimate
        assert found is not None and (found.freedom, found.n) == ((4 - 1) * (3 - 1), 3)

    def test_of_a_chain_only_what_it_rests_on_must_be_there(self) -> None:
        part = next(one for one in claims.read() if one.id == "C3").parts[0]
        chain = [one for one in runs(part) if one.spec.weights is None and one.spec.masks not in ("layer", "global")]
        assert claims.outcome(part, chain).word == "reproduced"

    def test_a_repetition_that_says_nothing_is_told(self) -> None:
        part = replace(HARDER, minus=None)
        dead = [
            replace(one, metrics=one.metrics | {"test_accuracy": 0.01})
            if one.spec.omega > 0 and unit(one.spec) == 1
            else one
            for one in runs(part)
        ]
        found = claims.outcome(part, dead)
        assert (found.word, found.n) == ("inconclusive", 2)
        assert found.note.endswith("without a value 1: nothing is left of it at the weakest strength")
        every = [replace(one, metrics=one.metrics | {"test_accuracy": 0.01}) for one in runs(part) if one.spec.omega]
        assert claims.outcome(part, every + [one for one in runs(part) if not one.spec.omega]).note.startswith(
            "no value"
        )


class TestReduced:
    def test_the_words_are_others_and_the_statistic_is_the_same(self) -> None:
        for world, word in ((World(), "same direction"), (World(keep=(1.0, 1.4)), "opposite")):
            found = claims.outcome(HARDER, runs(HARDER, "reduced", world), tier="reduced")
            assert (found.word, found.n) == (word, 3) and found.estimate is not None
            assert found.ran == "resnet20 on cifar10 and cifar100, 24 + 15 epochs, 50,000 images"
        two = claims.outcome(HARDER, runs(HARDER, "reduced", seeds=(0, 1)), tier="reduced")
        assert two.word == "undecided" and two.n == 2 and two.note.startswith("values ") and " against " in two.note
        assert claims.outcome(HARDER, [], tier="reduced") == Outcome("nothing yet", "no record")

    def test_the_page_names_what_ran_and_not_the_paper_s_network(self) -> None:
        """What once stood under ResNet-56 was a ResNet-14 of half width on a quarter of the images."""
        small = {"network": "resnet14"}
        part = Part(
            name="n", statistic="advantage", experiment={"chapter": "04", "datasets": ["cifar100"]}, reduced=small,
            direction="higher",
        )  # fmt: skip
        found = claims.outcome(part, runs(part, "reduced"), tier="reduced")
        assert found.ran == "resnet14 on cifar100, 0 to 24 + 15 epochs, 50,000 images"
        few = [
            replace(one, spec=replace(one.spec, width=0.5, train=12_500)) for one in runs(part)[:3] if one.spec.omega
        ]
        assert claims.what_ran(few).startswith("resnet56 of width 0.5 on cifar100")
        assert claims.what_ran(few).endswith("12,500 images") and claims.what_ran([]) == ""

    def test_what_the_paper_s_network_bounds_is_not_asked(self, tmp_path: Path) -> None:
        assert claims.outcome(VALUE, landed([90, 91, 92]), tier="reduced").word == "nothing yet"
        (judged,) = claims.judge([claim(replace(VALUE, primary=True))], tmp_path)
        assert judged.reduced == (None,) and judged.direction is None

    def test_parents_that_were_not_on_their_plateau_are_told_and_not_used(self) -> None:
        def parents(below: float) -> list[Record]:
            return [
                replace(one, metrics=one.metrics | {"test_accuracy": one.metrics["test_accuracy"] - below / 100})
                if one.spec.role == "parent" and one.spec.data == "cifar10"
                else one
                for one in runs(HARDER, "reduced")
            ]

        assert claims.outcome(HARDER, parents(0.3), tier="reduced").word == "same direction"
        found = claims.outcome(HARDER, parents(2.0), tier="reduced")
        assert (found.word, found.n) == ("nothing yet", 0)
        assert "not on their plateau (resnet20 on cifar10: more training alone gained" in found.note
        without = [one for one in runs(HARDER, "reduced") if one.spec.role != "parent"]
        assert "a parent or control is not committed" in claims.outcome(HARDER, without, tier="reduced").note
        # A fourth repetition that is under way, its control not yet run, does not stand in the way of three.
        begun = [one for one in runs(HARDER, "reduced") if not (one.spec.role == "control" and unit(one.spec) == 2)]
        assert claims.outcome(HARDER, begun, tier="reduced").n == 2
        # At the paper's size the recipe is the paper's, and a verdict does not hang on it.
        half = [one for one in runs(HARDER) if one.spec.role != "parent"]
        assert claims.outcome(HARDER, half).word == "reproduced"

    def test_starts_within_the_training_need_no_plateau_but_the_last_does(self) -> None:
        part = next(one for one in claims.read() if one.id == "C4").parts[0]
        found = runs(part, "reduced")
        gains = {
            one.spec.parent.recipe.epochs: one.metrics["test_accuracy"]
            for one in found
            if one.spec.role == "control" and one.spec.parent is not None
        }
        assert len(gains) == 3 and claims.outcome(part, found, tier="reduced").word == "same direction"
        late = [
            replace(one, metrics=one.metrics | {"test_accuracy": one.metrics["test_accuracy"] - 0.02})
            if one.spec.role == "parent" and one.spec.recipe.epochs == 24
            else one
            for one in found
        ]
        assert "plateau" in claims.outcome(part, late, tier="reduced").note

    def test_networks_of_another_axis_stand_under_no_claim_about_napl(self) -> None:
        for given in ({"network": "akamaster/resnet20"}, {"network": "resnet20v1"}):
            part = replace(
                HARDER, experiment={"chapter": "06", "dataset": "cifar10"} | given, minus=None, direction="any"
            )
            found = claims.outcome(part, World()(part.specs("reduced")), tier="reduced")
            assert found.word == "nothing yet" and found.n == 0
            assert found.note == f"{given['network']} left out: their NAPL is on another axis"
        layers = Part(
            name="n",
            statistic="autocorrelation",
            experiment={"chapter": "05", "network": "akamaster/resnet20", "residuals": [True]},
            direction="any",
        )
        assert claims.outcome(layers, World()(layers.specs("reduced")), tier="reduced").ran.startswith(
            "akamaster/resnet20"
        )


class TestJudge:
    def test_the_primary_part_decides_and_no_secondary_one_turns_it(self, tmp_path: Path) -> None:
        primary, other = replace(BOUND, primary=True), replace(BOUND, name="other", at_least=99.0)
        write(tmp_path / "paper", landed([90.5, 90.6, 90.7]))
        (found,) = claims.judge([claim(other, primary)], tmp_path)
        assert [one.word for one in found.paper] == ["differs", "reproduced"] and found.verdict == "reproduced"

    def test_a_changed_record_changes_the_verdict(self, tmp_path: Path) -> None:
        row = claim(replace(VALUE, primary=True))
        write(tmp_path / "paper", landed([90.5, 90.6, 90.7]))
        assert claims.judge([row], tmp_path)[0].verdict == "reproduced"
        write(tmp_path / "paper", landed([88.5, 88.6, 88.7]))
        assert claims.judge([row], tmp_path)[0].verdict == "differs"

    def test_records_of_one_size_say_nothing_at_the_other(self, tmp_path: Path) -> None:
        row = claim(replace(HARDER, primary=True))
        write(tmp_path / "reduced", runs(HARDER, "reduced"))
        (found,) = claims.judge([row], tmp_path)
        assert (found.verdict, found.direction) == ("not run", "same direction")
        write(tmp_path / "reduced", runs(HARDER, "paper"))
        write(tmp_path / "paper", runs(HARDER, "reduced"))
        assert claims.judge([row], tmp_path)[0] == found

    def test_a_damaged_record_is_an_error_not_a_verdict(self, tmp_path: Path) -> None:
        write(tmp_path / "paper", landed([90.5]))
        next((tmp_path / "paper").glob("*.json")).write_text("{")
        with pytest.raises(RecordError):
            claims.judge(results=tmp_path)

    def test_nothing_committed_is_no_error(self, tmp_path: Path) -> None:
        found = claims.judge(results=tmp_path / "none")
        assert {one.verdict for one in found} == {"not run", "reproduced"}
        assert [one.claim.id for one in found if one.verdict == "reproduced"] == ["C14"]
        assert {one.direction for one in found} == {"nothing yet", None}
        assert claims.chance(found) == (0, 0, 0, 0)

    def test_the_pictures_of_the_network_that_is_named_are_judged(self) -> None:
        """Not those of the alphabetically first record."""
        asked: list[Any] = []

        def verdict(found: Any, **options: Any) -> tuple[str, str, int]:
            asked.append((found, options))
            return "reproduced", "told", 1

        part = next(one for one in claims.read() if one.id == "C10").parts[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nladv_core.features.verdict", verdict)
            assert claims.outcome(part, [], pictures=["a", "b"]) == Outcome("reproduced", "told", 1)
            # Its channels are many, but at reduced size one network decides nothing.
            assert claims.outcome(part, [], tier="reduced", pictures=["c"]) == Outcome("undecided", "told", 1)
        assert asked == [
            (["a", "b"], {"network": "torchvision/resnet50", "margin": 0.2}),
            (["c"], {"network": "akamaster/resnet20", "margin": 0.2}),
        ]

    def test_what_chance_alone_would_say(self, tmp_path: Path) -> None:
        rows = [replace(claim(replace(HARDER, primary=True, direction=way)), id=way) for way in ("higher", "lower")]
        rows.append(replace(claim(replace(VALUE, primary=True)), id="C1"))  # not asked at reduced size
        write(tmp_path / "reduced", runs(HARDER, "reduced"))
        found = claims.judge(rows, tmp_path)
        assert [one.direction for one in found] == ["same direction", "opposite", None]
        assert claims.chance(found) == (2, 1, pytest.approx(0.05), pytest.approx(1 - 0.975**2))
        assert claims.chance(found, "paper") == (0, 0, 0, 0)


def test_every_experiment_is_one_that_its_chapter_runs() -> None:
    """Its statistic finds what it needs in the runs of the chapter as the campaign computes them, at either size."""
    for one in claims.read():
        for part in one.parts:
            for tier in claims.SIZES[: 1 if part.paper_only else 2]:
                if part.experiment is not None and part.statistic != "saturation":
                    found = claims.outcome(part, runs(part, tier, World(gentle=1.2)), tier=tier)
                    seeds = {unit(spec) for spec in part.specs(tier)}
                    assert found.n >= min(claims.SEEDS, len(seeds)), (one.id, part.name, tier, found.note)


class TestPathLengths:
    """C14 needs no run: what is known of the ResNets on paper decides."""

    PART = Part(name="n", statistic="path lengths", tolerance=2.0)

    def test_lengths(self) -> None:
        found = claims.resnet_path_lengths()
        # d = 6n + 2: 3n blocks with two units at one half each, two of them at three quarters; one unit after the last.
        assert {depth: napl for depth, (napl, _) in found.items()} == pytest.approx({20: 11, 32: 17, 44: 23, 56: 29})
        assert found[56][1] == pytest.approx(54.9988, abs=5e-5)

    @pytest.mark.parametrize(
        ("lengths", "word"),
        [
            ({20: (11.0, 19.0)}, "reproduced"),
            ({20: (12.0, 18.0)}, "reproduced"),
            ({20: (12.1, 19.0)}, "differs"),
            ({20: (7.9, 19.0)}, "differs"),
            ({20: (11.0, 17.9)}, "differs"),
            ({20: (11.0, 20.0)}, "differs"),
            ({20: (11.0, 19.0), 32: (30.0, 31.0)}, "differs"),
        ],
    )
    def test_edges(self, monkeypatch: pytest.MonkeyPatch, lengths: dict, word: str) -> None:
        monkeypatch.setattr(claims, "resnet_path_lengths", lambda: lengths)
        assert claims.outcome(self.PART, []).word == word


def test_the_builder_s_noise_hangs_on_what_it_is_given_alone() -> None:
    assert noise("a", 1, sd=1.0) == noise("a", 1, sd=1.0) != noise("a", 2, sd=1.0)
    assert experiments.TIERS["paper"].seeds == (0, 1, 2)
