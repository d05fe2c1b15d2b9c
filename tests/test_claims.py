"""The claim ledger: how it is read, and which verdict follows from which records."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from nladv_core import claims, experiments
from nladv_core.claims import Claim, Judgement, Outcome, Part
from nladv_core.errors import RecordError, SpecError
from nladv_core.recipes import RECIPES
from nladv_core.specs import RunSpec
from nladv_core.store import Record

RUNS = {"data": "cifar10", "net": "resnet56", "recipe": "cifar-linearize", "parent": "cifar-train"}
VALUE = Part(
    name="n", statistic="at", runs=RUNS, axis="napl", at=2.7, column="test_accuracy", value=90.59, tolerance=0.5
)
BOUND = replace(VALUE, value=None, tolerance=None, at_least=90.0)
DIFFERENCE = Part(
    name="n",
    statistic="difference",
    runs=RUNS | {"data": "cifar100"},
    minus=RUNS,
    axis="omega",
    at=0.002,
    column="napl",
    direction="higher",
)
T2 = 4.302652729911275  # half a 95 % interval over three seeds, in standard errors; from a printed table


def spec(seed: int = 0, omega: float = 0.001, **more) -> RunSpec:
    shared = {"data": "cifar10", "net": "resnet56"} | more
    recipe = shared.pop("recipe", RECIPES["cifar-linearize"])
    parent = RunSpec(recipe=RECIPES["cifar-train"], seed=seed, **shared)
    return replace(parent, parent=parent, recipe=recipe, omega=omega)


def record(run: RunSpec, accuracy: float, napl: float, active: float = 0.1) -> Record:
    metrics = {"test_accuracy": accuracy / 100, "napl": napl, "active_fraction": active}
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
            name: [(part.at, part.value or part.at_least) for part in found[name].parts if part.statistic == "at"]
            for name in ("C1", "C2", "C13")
        }
        assert numbers == {
            "C1": [(2.7, 90.59), (3.1, 67.64)],
            "C2": [(5.0, 90.29), (5.0, 67.04)],
            "C13": [(3.5, 90.0)],
        }
        assert {part.tolerance for part in found["C1"].parts} == {0.5, None}

    def test_every_part_reads_full_size_runs_only(self) -> None:
        for claim in claims.read():
            for part in claim.parts:
                for chosen in filter(None, (part.runs, part.minus)):
                    assert not {"train", "test", "size"} & set(chosen)
                    assert chosen["recipe"].startswith("cifar-") and chosen["parent"] == "cifar-train"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('id = "C2"', 'id = "C1"', "C1 occurs twice"),
            ("tolerance = 0.5", 'tolerance = "0.5"', "tolerance is '0.5'"),
            ("tolerance = 0.5", "", "takes exactly"),
            ("tolerance = 0.5", "tolerance = 0.5\nat_least = 3.0", "takes exactly"),
            ("tolerance = 0.5", "tolerance = -0.5", "expected above 0"),
            ('statistic = "at"', 'statistic = "mean"', "expected one of"),
            ('axis = "napl"', 'axis = "depth"', "axis is 'depth'"),
            ('column = "test_accuracy"', 'column = "train_accuracy"', "column is 'train_accuracy'"),
            ('direction = "any"', 'direction = "up"', "direction is 'up'"),
            ('recipe = "cifar-linearize"', 'recipe = "cifar-lineraize"', "did you mean 'cifar-linearize'"),
            ('net = "resnet56"', 'nett = "resnet56"', "'nett' cannot be chosen; did you mean 'net'"),
            ('net = "resnet56"', "seed = 3", "'seed' cannot be chosen"),
            ('net = "resnet56"', 'net = "resnet57"', "resnet57"),
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
        with pytest.raises(SpecError, match=message):
            claims.read(bad)

    def test_refuses_a_claim_without_parts(self, tmp_path: Path) -> None:
        bad = tmp_path / "claims.toml"
        bad.write_text('[[claim]]\nid="C1"\nsection=""\ntitle=""\nclaim=""\npaper=""\nrule=""\n')
        with pytest.raises(SpecError, match="has no part"):
            claims.read(bad)

    def test_a_missing_ledger_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"claims\.toml: cannot be read"):
            claims.read(tmp_path / "claims.toml")


class TestInterpolation:
    def test_between_neighbours_and_never_beyond(self) -> None:
        assert claims.interpolate([4, 2], [92, 90], 2.5) == 90.5
        assert claims.interpolate([4, 2], [92, 90], 2) == 90
        assert claims.interpolate([4, 2], [92, 90], 1.99) is None
        assert claims.interpolate([4, 2], [92, 90], 4.01) is None
        assert claims.interpolate([], [], 1) is None

    def test_neighbours_are_those_in_strength_not_in_napl(self) -> None:
        # The middle strength overshoots: the polygon passes NAPL 3 once on each side of it.
        assert claims.interpolate([4, 2, 3.5], [92, 80, 95], 3) == pytest.approx((86 + 90) / 2)


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
        part = replace(BOUND, at=2.0)
        found = [record(spec(seed, 0.002), accuracy, 2.0) for seed, accuracy in enumerate(accuracies)]
        assert claims.outcome(part, found).verdict == verdict


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
        part = replace(DIFFERENCE, column="active_fraction")
        found = [
            replace(r, metrics=r.metrics | {"active_fraction": 0.2}) if r.spec.data == "cifar100" else r
            for r in self.runs([0, 0, 0])
        ]
        assert claims.outcome(part, found).note.startswith("10.00 (")


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
        chosen = zip(judged[name].claim.parts, judged[name].outcomes, strict=True)
        assert {outcome.verdict for part, outcome in chosen if part.statistic == "at"} == {"differs"}, name
    assert judged["C8"].outcomes[0].verdict == "inconclusive"  # no difference at all, but measured
    assert judged["C1"].outcomes[2].verdict == "not run"  # no chapter has the network without residual connections yet


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
