"""The claim ledger: how it is read, and which verdict follows from which records."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from nladv_core import claims, effects, experiments
from nladv_core.claims import Claim, Judgement, Outcome, Part
from nladv_core.errors import RecordError, SpecError
from nladv_core.recipes import RECIPES, UNTRAINED
from nladv_core.specs import RunSpec
from nladv_core.store import Record

CHAPTER = {"chapter": "06", "dataset": "cifar10", "granularities": ["channel"]}
AT = {"axis": "napl", "at": 2.7, "column": "test_accuracy"}
VALUE = Part(name="n", statistic="at", experiment=CHAPTER, options=AT, value=90.59, tolerance=0.5)
BOUND = replace(VALUE, value=None, tolerance=None, at_least=90.0)
DIFFERENCE = Part(
    name="n",
    statistic="at",
    experiment=CHAPTER | {"dataset": "cifar100"},
    minus={"dataset": "cifar10"},
    options={"axis": "omega", "at": 0.002, "column": "napl"},
    direction="higher",
)
PAPER_RECIPES = [recipe for name, recipe in RECIPES.items() if not name.startswith(("smoke", "quick", "reduced"))]
PAPER_RECIPES += [RECIPES["cifar-train"].until(epoch) for epoch in range(1, 200)]  # where chapter 04 switches slopes on
T2 = 4.302652729911275  # half a 95 % interval over three seeds, in standard errors; from a printed table


def spec(seed: int = 0, omega: float = 0.001, **more) -> RunSpec:
    shared = {"data": "cifar10", "net": "resnet56", "precision": experiments.TIERS["paper"].precision} | more
    recipe = shared.pop("recipe", RECIPES["cifar-linearize"])
    parent = RunSpec(recipe=RECIPES["cifar-train"], seed=seed, **shared)
    return replace(parent, parent=parent, recipe=recipe, omega=omega)


def record(run: RunSpec, accuracy: float, napl: float, active: float = 0.1) -> Record:
    metrics = {"test_accuracy": accuracy / 100, "napl": napl, "apl": 9.0, "enw": 4.0, "active_fraction": active}
    return Record(
        key=run.key(),
        spec=run,
        metrics=metrics,
        history=[],
        units=[],
        wall_s=1.0,
        device="cpu",
        torch="2",
        python="3",
        code={},
        data={},
        parent=None,
    )


def around(accuracies: list[float], **more) -> list[Record]:
    """Two strengths for each seed whose line passes through `accuracies[seed]` at NAPL 2.7."""
    found = []
    for seed, accuracy in enumerate(accuracies):
        found.append(record(spec(seed, 0.001, **more), accuracy + 1.3, 4.0))
        found.append(record(spec(seed, 0.002, **more), accuracy - 0.7, 2.0))
    return found


def write(folder: Path, found: list[Record]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        (folder / f"{one.key}.json").write_text(json.dumps(one.to_json()))


class TestLedger:
    def test_has_the_fourteen_rows(self) -> None:
        found = claims.read()
        assert [claim.id for claim in found] == [f"C{n}" for n in range(1, 15)]
        assert all(claim.rule.endswith(".") and claim.section for claim in found)

    def test_holds_the_numbers_of_the_paper(self) -> None:
        found = {claim.id: claim for claim in claims.read()}
        numbers = {
            name: [
                (part.options["at"], part.value or part.at_least)
                for part in found[name].parts
                if part.options and part.statistic == "at" and part.minus is None
            ]
            for name in ("C1", "C2", "C13")
        }
        assert numbers == {
            "C1": [(2.7, 90.59), (3.1, 67.64)],
            "C2": [(5.0, 90.29), (5.0, 67.04)],
            "C13": [(3.5, 90.0)],
        }
        assert {part.tolerance for part in found["C1"].parts} == {0.5, None}

    def test_asks_of_each_claim_what_the_paper_says(self) -> None:
        found = {claim.id: claim.parts for claim in claims.read()}

        def asked(name: str, *fields: str) -> list[tuple]:
            return [tuple(getattr(part, field) for field in fields) for part in found[name]]

        # C3: CIFAR-10 is reached but for the global permutation without residual connections; CIFAR-100 by none.
        of_c3 = {
            (p.experiment["dataset"], p.experiment["residuals"][0], p.experiment.get("network"), p.options["masks"]): (
                p.at_least,
                p.direction,
            )
            for p in found["C3"]
            if p.experiment and p.options
        }
        assert len(of_c3) == len(found["C3"]) == 15
        assert {net for _, _, net, _ in of_c3} == {None, "pyramidnet110"}
        for (data, residual, _, kind), criterion in of_c3.items():
            falls_short = data == "cifar100" or (kind, residual) == ("global", False)
            assert criterion == ((None, "lower") if falls_short else (-0.5, None))
        assert asked("C4", "statistic", "direction") == [
            ("late minus early", "higher"),
            ("gained early minus gained late", "higher"),
            ("late minus early", "higher"),
        ]
        assert asked("C5", "statistic", "at_least", "at_most", "direction", "every") == [
            ("connected", 0.8, None, None, True),
            ("connected", None, 0.8, None, True),
            ("centre of the block", None, None, "any", False),
        ]
        assert asked("C6", "statistic", "at_least", "direction")[:2] == [
            ("fit of the inverse share", 0.95, None),
            ("slope of the inverse share", None, "higher"),
        ]
        assert asked("C6", "options", "direction")[2:] == [
            ({"column": "test_accuracy"}, "higher"),
            ({"column": "napl"}, "lower"),
        ]
        assert asked("C7", "statistic", "at_most", "direction", "within") == [
            ("range over depths", 1.0, None, None),
            ("slope over depths", None, "lower", None),
            ("slope over depths", None, None, 0.01),
        ]
        assert ("at the strongest", 0.5) in asked("C8", "statistic", "within")
        assert asked("C9", "statistic", "at_most", "every", "options") == [
            ("kept depth", 0.5, True, {"loss": 2.0, "column": "napl_max_pool"})
        ]
        assert ("last fall", 0.1, True) in asked("C8", "statistic", "at_most", "every")
        assert ("straightness", 0.95, True) in asked("C8", "statistic", "at_least", "every")
        assert {part.options["column"] for part in found["C11"] if part.options} == {"apl", "active_fraction"}
        # A lower perplexity is better: what late starts gain is negative.
        assert asked("C12", "statistic", "options", "direction") == [
            ("late minus early", {"column": "test_perplexity"}, "lower"),
            ("gained early minus gained late", {"by": 20, "column": "test_perplexity"}, "lower"),
        ]

    @pytest.mark.parametrize(
        ("perplexities", "verdicts"),
        [  # at starts 0, 10, 20, 50, 100
            ((9, 7, 6, 5.5, 5), ["reproduced", "reproduced"]),
            ((5, 6, 8, 8.5, 9), ["differs", "differs"]),
            ((9, 8.5, 8, 6, 5), ["reproduced", "differs"]),
        ],
    )
    def test_a_transformer_is_judged_by_its_perplexity(
        self, perplexities: tuple[float, ...], verdicts: list[str]
    ) -> None:
        (claim,) = (claim for claim in claims.read() if claim.id == "C12")
        runs = []
        for spec in claim.parts[0].specs():
            one = record(spec, 50.0, 1.0, active=0.12 if spec.linearized else 1.0)
            at = dict(zip((0, 10, 20, 50, 100), perplexities, strict=True))[spec.start]
            runs.append(replace(one, metrics=one.metrics | {"test_perplexity": at + 0.001 * spec.seed * spec.start}))
        assert [claims.outcome(part, runs).verdict for part in claim.parts] == verdicts
        few = [run for run in runs if run.spec.seed < 2]
        assert {claims.outcome(part, few).verdict for part in claim.parts} == {"too few seeds"}
        halves = [run for run in runs if run.spec.start != 50]  # half an experiment is none
        assert {claims.outcome(part, halves).verdict for part in claim.parts} == {"not run"}

    def test_every_part_reads_full_size_runs_only(self) -> None:
        experimental = [part for claim in claims.read() for part in claim.parts if part.experiment is not None]
        assert len(experimental) >= 30
        for part in experimental:
            for family in part.families() | (part.families(part.minus) if part.minus is not None else frozenset()):
                spec: RunSpec | None = family
                while spec is not None:
                    assert (spec.train, spec.test, spec.size) == (None, None, None)
                    assert spec.recipe in PAPER_RECIPES or (spec.published and spec.recipe == UNTRAINED)
                    spec = spec.parent

    def test_every_experiment_is_one_that_its_chapter_runs(self) -> None:
        """Its statistic finds what it needs in the runs of the chapter as the campaign computes them."""
        for claim in claims.read():
            for part in claim.parts:
                for differing in (
                    [None, part.minus] if part.minus is not None else [None] * (part.experiment is not None)
                ):
                    runs = [record(spec, 50.0, 5.0) for spec in part.specs(differing)]
                    # distinct values, so that no statistic is without an answer for want of a difference
                    runs = [
                        replace(
                            one,
                            metrics=one.metrics
                            | {"napl": 9 - i / len(runs), "test_accuracy": 0.9 - i / 900, "napl_max_pool": 9}
                            | {"test_perplexity": 9 - i / len(runs)},
                        )
                        for i, one in enumerate(runs)
                    ]
                    runs = [replace(one, units=[{"name": "r", "channels": 8, "active": 4}]) for one in runs]
                    found = effects.named(part.statistic, runs, **(part.options or {}))
                    assert len(found) >= claims.SEEDS, (claim.id, part.name)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('id = "C2"', 'id = "C1"', "C1 occurs twice"),
            ("tolerance = 0.5", 'tolerance = "0.5"', "tolerance is '0.5'"),
            ("tolerance = 0.5", "", "takes exactly"),
            ("tolerance = 0.5", "tolerance = 0.5\nat_least = 3.0", "takes exactly"),
            ("value = 90.59\ntolerance = 0.5", "", "found no criterion, but it takes exactly one of value, at_least"),
            ("tolerance = 0.5", "tolerance = -0.5", "expected above 0"),
            ("value = 90.59\ntolerance = 0.5", "within = 0.0", "within is 0, expected above 0"),
            (
                'direction = "any"',
                'direction = "any"\nevery = true',
                "every takes exactly at_least or at_most, found dir",
            ),
            ('statistic = "at"', 'statistic = "mean"', "expected one of"),
            ('statistic = "connected"', 'statistic = "conected"', "did you mean 'connected'"),
            ('axis = "napl"', 'axis = "depth"', "axis is 'depth'"),
            ('column = "test_accuracy"', 'column = "train_accuracy"', "column is 'train_accuracy'"),
            ('masks = "exact"', 'masks = "exat"', "masks is 'exat', expected one of exact, layer, global"),
            ("at = 2.7", 'at = "2.7"', "at is '2.7', expected a number"),
            ("at = 2.7, ", "", "found options axis, column, but it takes axis, at, column"),
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
            ('dataset = "cifar10"', 'tier = "reduced"', "tier cannot be chosen; verdicts rest on paper"),
            ('dataset = "cifar10"', "seeds = 0.5", "seeds is"),
            ("minus = { residual = false }", "minus = { residual = true }", "minus has the same runs"),
            ("minus = { residual = false }", "minus = { omegas = [0.5] }", "minus has the same runs"),
            ("minus = { residual = false }", "minus = { residul = false }", "did you mean 'residual'"),
            ("tolerance = 2.0", "", "takes exactly tolerance"),
            ("reduced = {", "reduced = { colour = 1,", "unknown field 'colour'"),
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
        with pytest.raises(SpecError, match=message) as refusal:
            claims.read(bad)
        if "cannot be read" not in message:
            assert "\n" not in str(refusal.value)

    def test_a_part_that_waits_takes_no_criterion(self) -> None:
        with pytest.raises(SpecError, match="found value, but statistic 'sharpness' takes exactly nothing"):
            Part(name="n", statistic="sharpness", value=1.0)
        assert claims.outcome(Part(name="n", statistic="sharpness"), []).verdict == "not run"

    def test_refuses_a_claim_without_parts(self, tmp_path: Path) -> None:
        bad = tmp_path / "claims.toml"
        bad.write_text('[[claim]]\nid="C1"\nsection=""\ntitle=""\nclaim=""\npaper=""\nrule=""\n')
        with pytest.raises(SpecError, match="has no part"):
            claims.read(bad)

    def test_a_missing_ledger_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"claims\.toml: cannot be read"):
            claims.read(tmp_path / "claims.toml")


class TestValue:
    """A number of the paper with a tolerance: 90.59 ± 0.5 at NAPL 2.7."""

    @pytest.mark.parametrize(
        ("accuracies", "verdict"),
        [
            ([], "not run"),
            ([90.59], "too few seeds"),
            ([90.59, 90.6], "too few seeds"),
            ([90.5, 90.6, 90.7], "reproduced"),
            ([91.08, 91.09, 91.10], "reproduced"),  # 0.5 above: the edge belongs to it
            ([90.08, 90.09, 90.10], "reproduced"),  # 0.5 below
            ([91.10, 91.11, 91.12], "exceeds"),
            ([90.06, 90.07, 90.08], "differs"),
            ([88.0, 90.0, 91.0], "inconclusive"),  # away, but the interval holds the paper's number
            ([93.0, 92.0, 90.2], "inconclusive"),
            ([89.6, 90.59, 91.58], "inconclusive"),  # on the spot by luck
        ],
    )
    def test_verdicts(self, accuracies: list[float], verdict: str) -> None:
        found = claims.outcome(VALUE, around(accuracies))
        assert found.verdict == verdict
        assert found.seeds == len(accuracies)

    def test_numbers_in_the_note(self) -> None:
        found = claims.outcome(VALUE, around([90.4, 90.5, 90.9]))
        half = T2 * statistics.stdev([90.4, 90.5, 90.9]) / math.sqrt(3)
        assert found.note == (f"90.60 % (95 % interval {90.6 - half:.2f} to {90.6 + half:.2f}) at NAPL 2.7, 3 seeds")

    def test_a_changed_record_changes_the_verdict(self, tmp_path: Path) -> None:
        claim = Claim(id="C1", section="", title="", claim="", paper="", rule="", parts=(VALUE,))
        found = around([90.5, 90.6, 90.7])
        write(tmp_path / "paper", found)
        assert claims.judge([claim], tmp_path)[0].verdict == "reproduced"
        for one in found:
            changed = replace(one, metrics=one.metrics | {"test_accuracy": one.metrics["test_accuracy"] - 0.02})
            write(tmp_path / "paper", [changed])
        assert claims.judge([claim], tmp_path)[0].verdict == "differs"

    @pytest.mark.parametrize(
        "more",
        [
            {"train": 10000},
            {"test": 1000},
            {"net": "resnet44"},
            {"net": "resnet56v1"},
            {"width": 2.0},
            {"residual": False},
            {"shortcut": "B"},
            {"data": "cifar100"},
            {"recipe": RECIPES["cifar-linearize"].shortened(6)},
            {"recipe": RECIPES["cifar-linearize-30"]},
        ],
    )
    def test_other_runs_do_not_count(self, more: dict) -> None:
        assert claims.outcome(VALUE, around([90.5, 90.6, 90.7], **more)).verdict == "not run"

    @pytest.mark.parametrize("more", [{"granularity": "layer"}, {"p": 1.0}, {"start": 3}, {"goal": 0.9}])
    def test_other_linearizations_do_not_count(self, more: dict) -> None:
        found = [record(replace(r.spec, **more), 90.6, r.metrics["napl"]) for r in around([90.5, 90.6, 90.7])]
        assert claims.outcome(VALUE, found).verdict == "not run"

    def test_a_shorter_parent_does_not_count(self) -> None:
        found = []
        for one in around([90.5, 90.6, 90.7]):
            assert one.spec.parent
            short = replace(one.spec.parent, recipe=RECIPES["cifar-train"].shortened(20))
            found.append(record(replace(one.spec, parent=short), 90.6, one.metrics["napl"]))
        assert claims.outcome(VALUE, found).verdict == "not run"

    def test_seeds_and_strengths_are_free(self) -> None:
        """Runs at strengths and of seeds that the chapter does not name count as well."""
        named = experiments.AccuracyAndDepth(tier="paper").specs()
        runs = around([90.5, 90.6, 90.7])
        moved = []
        for one in runs:
            again = replace(spec(one.spec.seed + 40, one.spec.omega * 1.7))
            assert {again.omega, again.seed}.isdisjoint({s.omega for s in named} | {s.seed for s in named} - {0})
            moved.append(replace(one, key=again.key(), spec=again))
        assert claims.outcome(VALUE, moved) == claims.outcome(VALUE, runs)
        assert claims.outcome(VALUE, moved).verdict == "reproduced"

    def test_a_seed_that_does_not_get_there_is_told(self) -> None:
        far = [record(spec(9, 0.001), 91, 9), record(spec(9, 0.002), 90.6, 2.8)]
        found = claims.outcome(VALUE, around([90.5, 90.6, 90.7]) + far)
        assert (found.verdict, found.seeds) == ("reproduced", 3)
        assert found.note.endswith("at NAPL 2.7, 3 of 4 seeds")

    def test_parents_and_other_records_are_no_points_of_the_curve(self) -> None:
        found = around([90.5, 90.6, 90.7])
        parents = [record(one.spec.parent, 94, 2.7) for one in found if one.spec.parent]
        assert claims.outcome(VALUE, found + parents) == claims.outcome(VALUE, found)

    def test_curves_that_do_not_get_there_are_no_verdict(self) -> None:
        far = [r for seed in range(3) for r in (record(spec(seed, 0.001), 91, 9), record(spec(seed, 0.002), 90.6, 2.8))]
        found = claims.outcome(VALUE, far)
        assert (found.verdict, found.seeds) == ("inconclusive", 0)
        assert found.note == "the runs of 0 of 3 seeds reach NAPL 2.7"


class TestBound:
    @pytest.mark.parametrize(
        ("accuracies", "verdict"),
        [
            ([], "not run"),
            ([91, 91], "too few seeds"),
            ([91, 91.1, 91.2], "reproduced"),
            ([89, 89.1, 89.2], "differs"),
            ([89.5, 90.5, 91.5], "inconclusive"),
            ([90, 90, 90], "inconclusive"),  # exactly the bound is not above it
        ],
    )
    def test_verdicts(self, accuracies: list[float], verdict: str) -> None:
        # NAPL 2.0 is a measured point: nothing is rounded.
        part = replace(BOUND, options=AT | {"at": 2.0})
        found = [record(spec(seed, 0.002), accuracy, 2.0) for seed, accuracy in enumerate(accuracies)]
        assert claims.outcome(part, found).verdict == verdict

    @pytest.mark.parametrize(
        ("accuracies", "verdict"),
        [
            ([90, 90.1, 90.2], "differs"),
            ([88, 89, 90], "inconclusive"),
            ([88, 88.1, 88.2], "reproduced"),
        ],
    )
    def test_from_above(self, accuracies: list[float], verdict: str) -> None:
        part = replace(BOUND, at_least=None, at_most=89.0, options=AT | {"at": 2.0})
        found = [record(spec(seed, 0.002), accuracy, 2.0) for seed, accuracy in enumerate(accuracies)]
        assert claims.outcome(part, found).verdict == verdict


class TestEvery:
    """A bound that every single seed must keep, the bound itself included."""

    PART = replace(BOUND, at_least=0.8, options=None, statistic="connected", experiment={"chapter": "05"}, every=True)

    @staticmethod
    def runs(patterns: list[str]) -> list[Record]:
        """One run a seed of each network of the chapter, layers from "1" (all active) to "0" (none)."""
        found = []
        for seed, pattern in enumerate(patterns):
            units = [{"name": f"r{i}", "channels": 9, "active": int(one)} for i, one in enumerate(pattern)]
            run = spec(seed, recipe=RECIPES["cifar-linearize-30"], residual=False)
            found.append(replace(record(run, 90, 3), units=units))
        return found

    @pytest.mark.parametrize(
        ("patterns", "verdict"),
        [
            ([], "not run"),
            (["0110", "0110"], "too few seeds"),
            (["0110", "0111", "1110"], "reproduced"),
            (["0110", "0111", "111101"], "reproduced"),  # four of five: exactly 0.8
            (["0110", "0111", "11101"], "differs"),  # 0.75; the interval of the three contains 0.8
            (["0110", "0111", "1110", "0000"], "inconclusive"),  # one seed says nothing
        ],
    )
    def test_at_least(self, patterns: list[str], verdict: str) -> None:
        part = replace(self.PART, experiment={"chapter": "05", "residuals": [False]})
        assert claims.outcome(part, self.runs(patterns)).verdict == verdict

    @pytest.mark.parametrize(
        ("patterns", "verdict"),
        [
            (["1010", "1010", "10101"], "reproduced"),
            (["1010", "1010", "111101"], "reproduced"),
            (["1010", "1010", "0110"], "differs"),
        ],
    )
    def test_at_most(self, patterns: list[str], verdict: str) -> None:
        part = replace(self.PART, at_least=None, at_most=0.8, experiment={"chapter": "05", "residuals": [False]})
        assert claims.outcome(part, self.runs(patterns)).verdict == verdict

    def test_the_note_gives_the_range(self) -> None:
        part = replace(self.PART, experiment={"chapter": "05", "residuals": [False]})
        assert claims.outcome(part, self.runs(["0110", "0111", "1011"])).note == "0.67 to 1.00, 3 seeds"


class TestWithin:
    @pytest.mark.parametrize(
        ("differences", "verdict"),
        [
            ([0.1, -0.1, 0.0], "reproduced"),
            ([0.1, 0.1, 0.1], "reproduced"),
            ([0.45, 0.4, -0.2], "inconclusive"),
            ([0.6, 0.61, 0.62], "differs"),
            ([-0.6, -0.61, -0.62], "differs"),
            ([0.1, 0.0], "too few seeds"),
        ],
    )
    def test_verdicts(self, differences: list[float], verdict: str) -> None:
        part = replace(DIFFERENCE, direction=None, within=0.5)
        assert claims.outcome(part, TestDifference.runs(differences)).verdict == verdict


class TestDifference:
    @staticmethod
    def runs(differences: list[float]) -> list[Record]:
        found = []
        for seed, gap in enumerate(differences):
            found.append(record(spec(seed, 0.002, data="cifar100"), 60, 3 + seed + gap))
            found.append(record(spec(seed, 0.002), 90, 3 + seed))
        return found

    @pytest.mark.parametrize(
        ("direction", "differences", "verdict"),
        [
            ("higher", [], "not run"),
            ("higher", [1.0, 1.1], "too few seeds"),
            ("higher", [1.0, 1.1, 1.2], "reproduced"),
            ("higher", [-1.0, -1.1, -1.2], "differs"),
            ("higher", [-1.0, 0.5, 1.2], "inconclusive"),
            ("lower", [-1.0, -1.1, -1.2], "reproduced"),
            ("lower", [1.0, 1.1, 1.2], "differs"),
            ("any", [-1.0, -1.1, -1.2], "reproduced"),
            ("any", [1.0, 1.1, 1.2], "reproduced"),
            ("any", [-1.0, 0.5, 1.2], "inconclusive"),
        ],
    )
    def test_verdicts(self, direction: str, differences: list[float], verdict: str) -> None:
        part = replace(DIFFERENCE, direction=direction)
        assert claims.outcome(part, self.runs(differences)).verdict == verdict

    def test_pairs_seeds(self) -> None:
        # Unpaired, the seeds' own spread of one unit would drown the difference.
        assert "1.10 (95 % interval 0.85 to 1.35)" in claims.outcome(DIFFERENCE, self.runs([1.0, 1.1, 1.2])).note

    def test_one_side_alone_is_not_run(self) -> None:
        half = [r for r in self.runs([1.0, 1.1, 1.2]) if r.spec.data == "cifar10"]
        found = claims.outcome(DIFFERENCE, half)
        assert (found.verdict, found.note) == ("not run", "no seed for which both were run")

    def test_shares_are_percent(self) -> None:
        part = replace(DIFFERENCE, options=(DIFFERENCE.options or {}) | {"column": "active_fraction"})
        found = [
            replace(r, metrics=r.metrics | {"active_fraction": 0.2}) if r.spec.data == "cifar100" else r
            for r in self.runs([0, 0, 0])
        ]
        assert claims.outcome(part, found).note.startswith("10.00 (")


class TestWholeExperiments:
    """What half an experiment says is no verdict on the whole."""

    WIDTH = Part(
        name="n", statistic="fit of the inverse share", experiment={"chapter": "07"}, at_least=0.95, every=True
    )
    FALL = Part(
        name="n",
        statistic="last fall",
        experiment={"chapter": "09", "datasets": ["cifar10"]},
        at_most=0.1,
        every=True,
    )

    @staticmethod
    def runs(part: Part, **strange: float) -> list[Record]:
        """Linearizations that the part's experiment names, inverse shares on a line, NAPL falling and saturating."""
        specs = [run for run in part.specs() if run.linearized]
        return [record(run, 90, 3 + 1e-9 / run.omega**3, 1 / (2 + 3 * run.width)) for run in specs]

    def test_all_of_it_is_judged(self) -> None:
        for part in (self.WIDTH, self.FALL):
            found = claims.outcome(part, self.runs(part))
            assert (found.verdict, found.seeds) == ("reproduced", 3)

    def test_without_one_width_a_seed_does_not_count(self) -> None:
        kept = [run for run in self.runs(self.WIDTH) if (run.spec.width, run.spec.seed) != (4.0, 2)]
        found = claims.outcome(self.WIDTH, kept)
        assert (found.verdict, found.seeds) == ("too few seeds", 2)
        kept = [run for run in kept if run.spec.width < 4]  # three widths of four, for all seeds
        assert claims.outcome(self.WIDTH, kept).verdict == "not run"

    def test_without_one_strength_a_seed_does_not_count(self) -> None:
        runs = self.runs(self.FALL)
        strongest = max(run.spec.omega for run in runs)
        assert claims.outcome(self.FALL, [run for run in runs if run.spec.omega < strongest]).verdict == "not run"

    def test_at_other_strengths_it_does(self) -> None:
        def moved(run: Record) -> Record:
            again = replace(run.spec, omega=run.spec.omega * 1.5)
            return replace(run, spec=again, key=again.key())

        for part in (self.WIDTH, self.FALL):
            runs = self.runs(part)
            assert claims.outcome(part, [moved(run) for run in runs]) == claims.outcome(part, runs)

    def test_retrainings_count_one_by_one(self) -> None:
        """Their seeds are not those of the network that the masks come from."""
        part = Part(
            name="n",
            statistic="retrained minus linearized",
            experiment={"chapter": "03", "residuals": [True]},
            options={"masks": "exact"},
            direction="lower",
        )
        runs = [
            record(run, {"none": 89.0, "exact": 87.0 + run.seed / 10}.get(run.masks, 50.0), 3.0) for run in part.specs()
        ]
        found = claims.outcome(part, runs)
        assert (found.verdict, found.seeds) == ("reproduced", 5)
        assert found.note.startswith("-1.80 (95 % interval")
        only = [run for run in runs if run.spec.masks in ("none", "exact") and run.spec.seed in (0, 1, 3)]
        assert claims.outcome(part, only).seeds == 3


def test_the_runs_of_the_chapter_at_paper_size_are_those_that_are_judged(tmp_path: Path) -> None:
    for data, height in (("cifar10", 88.0), ("cifar100", 60.0)):
        chapter = experiments.AccuracyAndDepth(tier="paper", dataset=data)
        runs = [run for run in chapter.specs() if run.linearized and run.granularity == "channel"]
        assert len({run.seed for run in runs}) >= claims.SEEDS
        # Any curve that comes by all the NAPLs in question will do.
        order = sorted({run.omega for run in runs})
        found = [record(run, height, 12 - 11 * order.index(run.omega) / (len(order) - 1)) for run in runs]
        write(tmp_path / "paper", found)
    judged = {one.claim.id: one for one in claims.judge(results=tmp_path)}
    for name in ("C1", "C2", "C13"):
        for part, outcome in zip(judged[name].claim.parts, judged[name].outcomes, strict=True):
            assert outcome.verdict == ("differs" if part.minus is None else "not run"), (name, part.name)
    # Chapter 09 takes five of these strengths, of the same network: one part finds all it needs, with no difference.
    assert judged["C8"].outcomes[0].verdict == "inconclusive"
    assert judged["C11"].outcomes[0].verdict == "inconclusive"  # all APLs alike have no ranks


class TestTiers:
    def test_reduced_records_are_shown_and_never_judged(self, tmp_path: Path) -> None:
        write(tmp_path / "reduced", around([90.5, 90.6, 90.7]))
        for found in claims.judge(results=tmp_path):
            if found.claim.id != "C14":
                assert found.verdict == "not run"
            shown = found.claim.id in ("C1", "C2", "C8", "C13")
            assert bool(found.evidence) == shown
        (line,) = claims.judge(results=tmp_path)[0].evidence
        assert line == (
            "resnet56 on cifar10, channel-wise: from 91.9 % at NAPL 4.00 (ω 0.001) "
            "to 89.9 % at NAPL 2.00 (ω 0.002), 3 seeds"
        )
        assert not any(verdict in line for verdict in claims.VERDICTS)

    def test_paper_records_are_judged_and_no_evidence_at_reduced_size(self, tmp_path: Path) -> None:
        write(tmp_path / "paper", around([90.5, 90.6, 90.7]))
        found = claims.judge(results=tmp_path)[0]
        assert found.outcomes[0].verdict == "reproduced" and not found.evidence
        assert found.verdict == "not run"  # CIFAR-100 is missing

    def test_evidence_is_of_the_runs_asked_for(self) -> None:
        claim = Claim(
            id="C", section="", title="", claim="", paper="", rule="", parts=(VALUE,), reduced={"data": "cifar10"}
        )
        found = [*around([90]), *around([60], data="cifar100"), *around([80], residual=False)]
        told = claims.evidence(claim, found)
        assert [line.partition(":")[0] for line in told] == [
            "resnet56 on cifar10, channel-wise",
            "resnet56 without residual connections on cifar10, channel-wise",
        ]
        assert "from 91.3 % at NAPL 4.00 (ω 0.001) to 89.3 % at NAPL 2.00 (ω 0.002), 1 seed" in told[0]

    def test_evidence_keeps_networks_apart(self) -> None:
        """What differs in more than seed and strength stands on lines of its own, and each line says how."""
        claim = Claim(id="C", section="", title="", claim="", paper="", rule="", parts=(VALUE,), reduced={})
        short = RECIPES["cifar-linearize"].shortened(3)
        published = RunSpec(data="cifar10", net="resnet20v1", recipe=UNTRAINED, published="akamaster/resnet20")
        fine = replace(published, published=None, parent=published, recipe=short, omega=0.004)
        wide = {"width": 2.0, "shortcut": "B"}
        found = [*around([90]), *around([80], recipe=short), *around([70], **wide), record(fine, 91, 5)]
        assert [line.partition(": ")[0] for line in claims.evidence(claim, found)] == [
            "akamaster/resnet20 on cifar10, channel-wise",
            "resnet56 of width 2 with shortcut B on cifar10, channel-wise",
            "resnet56 on cifar10, channel-wise, 3 epochs",
            "resnet56 on cifar10, channel-wise, 60 epochs",
        ]
        assert claims.evidence(claim, found)[0].endswith(": 91.0 % at NAPL 5.00 (ω 0.004), 1 seed")

    def test_parents_retrainings_and_runs_to_a_goal_are_no_evidence(self) -> None:
        claim = Claim(id="C", section="", title="", claim="", paper="", rule="", parts=(VALUE,), reduced={})
        source = spec(0, 0.001)
        others = [
            source.parent,
            replace(source, parent=source, omega=0.0, masks="exact", recipe=RECIPES["cifar-train"]),
            replace(source, goal=0.9),
        ]
        assert claims.evidence(claim, [record(run, 50, 3) for run in others if run]) == ()

    def test_a_part_s_own_statistic_is_evidence(self) -> None:
        """Start epochs at reduced size: by how much the latest beats the first, seed by seed, data set by data set."""
        later, _, harder = next(claim for claim in claims.read() if claim.id == "C4").parts
        found = []
        for data, worth in (("cifar100", 5), ("cifar10", 2)):
            chapter = experiments.EarlyAndLate(tier="reduced", datasets=(data,), seeds=(0, 1, 2))
            for run in chapter.specs():
                if run.goal is not None:
                    started = run.parent.recipe.epochs if run.parent else 0
                    found.append(record(run, 40 + worth * started + run.seed, 3, active=1 - run.goal))
        last = max(experiments.TIERS["reduced"].starts)
        (line,) = claims.measured(later, found)
        gained = f"{5 * last:.2f}"
        assert line == (
            f"{later.name} (datasets cifar100; seeds 0, 1, 2): {gained} (95 % interval {gained} to {gained}), 3 seeds"
        )
        assert f": {3 * last:.2f} (95 %" in claims.measured(harder, found)[0]
        missed = [replace(one, metrics=one.metrics | {"active_fraction": 0.9}) for one in found]
        assert claims.measured(later, missed) == ()
        assert claims.measured(later, found[:-1]) != () == claims.measured(harder, [])
        one_short = [one for one in found if (one.spec.seed, one.spec.parent) != (1, None)]
        assert claims.measured(later, one_short)[0].endswith(", 2 seeds")

    def test_other_strengths_are_other_editions(self) -> None:
        part = next(claim for claim in claims.read() if claim.id == "C11").parts[0]
        edition = experiments.AccuracyAndDepth.editions("reduced")[2]
        runs = [run for run in edition.specs() if run.parent]
        found = [record(run, 90 - i, 9 - i) for i, run in enumerate(runs)]
        found = [replace(one, metrics=one.metrics | {"apl": one.metrics["napl"] + 1}) for one in found]
        (line,) = claims.measured(part, found)
        assert "network resnet20" in line and line.endswith(": 1.00, 1 seed")
        assert claims.measured(part, [replace(one, spec=replace(one.spec, omega=9.0)) for one in found]) == ()

    def test_a_damaged_record_is_an_error_not_a_verdict(self, tmp_path: Path) -> None:
        write(tmp_path / "paper", around([90.5]))
        next((tmp_path / "paper").glob("*.json")).write_text("{")
        with pytest.raises(RecordError):
            claims.judge(results=tmp_path)

    def test_nothing_committed_is_no_error(self, tmp_path: Path) -> None:
        verdicts = {found.claim.id: found.verdict for found in claims.judge(results=tmp_path / "none")}
        assert set(verdicts.values()) == {"not run", "reproduced"}
        assert [name for name, verdict in verdicts.items() if verdict == "reproduced"] == ["C14"]


def test_a_claim_is_worth_its_weakest_part() -> None:
    claim = Claim(id="C", section="", title="", claim="", paper="", rule="", parts=(VALUE,))

    def whole(*verdicts: str) -> str:
        return Judgement(claim, tuple(Outcome(verdict, "") for verdict in verdicts), ()).verdict

    assert whole("exceeds", "exceeds") == "exceeds"
    assert whole("exceeds", "reproduced") == "reproduced"
    assert whole("reproduced", "inconclusive") == "inconclusive"
    assert whole("inconclusive", "too few seeds") == "too few seeds"
    assert whole("reproduced", "not run") == "not run"
    assert whole("not run", "differs", "exceeds") == "differs"


class TestPathLengths:
    """C14 needs no run: what is known of the ResNets on paper decides."""

    PART = Part(name="n", statistic="path lengths", tolerance=2.0)

    def test_lengths(self) -> None:
        found = claims.resnet_path_lengths()
        # d = 6n + 2: 3n blocks with two units at one half each, two of them at three quarters; one unit after the last.
        assert {depth: napl for depth, (napl, _) in found.items()} == pytest.approx({20: 11, 32: 17, 44: 23, 56: 29})
        assert found[56][1] == pytest.approx(54.9988, abs=5e-5)

    @pytest.mark.parametrize(
        ("lengths", "verdict"),
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
    def test_edges(self, monkeypatch: pytest.MonkeyPatch, lengths: dict, verdict: str) -> None:
        monkeypatch.setattr(claims, "resnet_path_lengths", lambda: lengths)
        assert claims.outcome(self.PART, []).verdict == verdict
