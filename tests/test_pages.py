"""What pages say that is computed: it follows the records, and no prose says it instead."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import evidence
import nladv_core as nl
from nladv_core import book, claims, experiments, pages
from nladv_core.errors import RecordError
from nladv_core.recipes import RECIPES
from nladv_core.store import Record
from synthetic import World, write

ROOT = Path(__file__).parents[1]
NOTHING = Path("no-such-folder")


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return pages.substitutions(NOTHING)


def prose() -> dict[str, str]:
    """The text of each page, without code."""
    texts = {}
    for source in book.pages():
        if source.suffix == ".ipynb":
            cells = json.loads(source.read_text())["cells"]
            texts[source.stem] = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        else:
            texts[source.stem] = source.read_text()
    return texts


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines()]


class TestProse:
    def test_every_value_is_used_and_every_used_one_exists(self, found: dict[str, str]) -> None:
        used = {name for text in prose().values() for name in re.findall(r"\{\{ *(\w+) *\}\}", text)}
        assert used == set(found)

    def test_no_page_types_a_verdict(self) -> None:
        verdict = re.compile(r"\b(?:reproduced|exceeds|differs|inconclusive|too few seeds|not run)\b", re.IGNORECASE)
        for name, text in prose().items():
            # The page of the claims defines the words; the summary and the first page may only take computed ones.
            if name in ("index", "reproduction", "deviations", "sections"):
                assert not verdict.search(text), name
            for line in text.splitlines():
                assert not (re.search(r"\bC\d+\b", line) and verdict.search(line)), (name, line)

    def test_every_word_is_explained_from_the_one_table(self, found: dict[str, str]) -> None:
        for tier, words in claims.WORDS.items():
            assert f"{{{{ words_{tier} }}}}" in prose()["claims"]
            explained = re.findall(r"^(\w[\w ]*)\n: (.+)", found[f"words_{tier}"], re.MULTILINE)
            assert explained == list(words.items())

    def test_every_chapter_stands_in_the_index_of_sections_and_on_the_first_page(self) -> None:
        for source in book.chapters():
            if re.match(r"\d\d_", source.stem):
                assert f"{{doc}}`{source.stem}`" in prose()["sections"]
                assert f"{{doc}}`{source.stem}`" in prose()["index"]


class TestPlan:
    def test_its_rows_sum_up_and_a_gpu_that_nobody_measured_is_said_to_be_assumed(self, found: dict[str, str]) -> None:
        head, _, *rows, last = cells(found["plan_where"].partition("\n\n")[0])
        assert head[1:3] == ["runs", "epochs"] and last[0] == "all"
        for column in (1, 2):
            numbers = [int(row[column].replace(",", "")) for row in (*rows, last)]
            assert sum(numbers[:-1]) == numbers[-1] > 100
        assert "runs on sentences of which no record tells" in found["plan_where"], "there is no record here"
        bill = cells(found["plan_cost"])[2:]
        assert "**not measured**" in bill[0][1] and all("assumed" in row[1] for row in bill[1:])
        assert found["plan_scale"].startswith("Not run")

    def test_rates_come_from_records_and_from_a_benchmark_on_a_gpu(self, tmp_path: Path) -> None:
        records = claims.records(ROOT / "data" / "results" / "reduced")
        write(tmp_path / "reduced", records)
        (tmp_path / "benchmarks").mkdir()
        row = {"network": "resnet56", "device": "cuda", "linearized": False, "ours": [10_000.0]}
        (tmp_path / "benchmarks" / "throughput.json").write_text(json.dumps({"measured": [row]}))
        made = pages.plan(tmp_path)
        bill = cells(made["plan_cost"])[2:]
        assert not any("assumed" in line for row in bill for line in row)
        cpu, gpu = ([row for row in bill if what in row[0]] for what in ("core", "GPU"))
        assert len(cpu) == len(gpu) == 2 and "measured" in gpu[0][1]
        assert "measured, 7,529 × 10⁹ a second" in gpu[0][1]  # 753 million operations an image, 10,000 images a second

    def test_nothing_takes_less_than_its_longest_chain(self) -> None:
        assert pages._time(100 * 3.6e3, 20 * 3.6e3, 1.0, 4) == ["25 h", "20 h"]
        assert pages._time(100 * 3.6e3, 40 * 3.6e3, 1.0, 4) == ["40 h", "40 h"]

    def test_numbers_of_runs_stand_side_by_side_and_what_was_not_tried_is_said(self, tmp_path: Path) -> None:
        rows = [{"what": "read", "count": 1000, "seconds": 0.25}, {"what": "read", "count": 10, "seconds": 120.4}]
        rows += [{"what": "bytes", "count": 10, "bytes": 2e6}]
        path = tmp_path / "scale.json"
        path.write_text(json.dumps({"rows": rows}))
        assert pages._benchmarks(tmp_path).startswith("Not run")
        told = cells(pages._scale(path))
        assert told[0] == ["", "10 runs", "1,000 runs"]
        assert told[2:] == [["read", "120 s", "0.25 s"], ["bytes", "2 MB", "not tried"]]

    def test_benchmarks_are_told_with_their_bars_and_what_was_missed(self, tmp_path: Path) -> None:
        rows = [
            {"what": what, "baseline": "a", "ours": "b", "ratio": ratio, "required": required, "costs": costs}
            for what, ratio, required, costs in (
                ("fast", 4.0, 3.0, False), ("slow", 2.0, 3.0, False), ("cheap", 1.1, 1.3, True),
                ("dear", 1.4, 1.3, True), ("told", 2.0, None, False),
            )
        ]  # fmt: skip
        (tmp_path / "one.json").write_text(json.dumps({"table": rows}))
        told = {row[0]: row[-1] for row in cells(pages._benchmarks(tmp_path))[2:]}
        assert told["fast"] == "at least 3" and told["slow"] == "at least 3: **missed**"
        assert told["cheap"] == "at most 1.3" and told["dear"].endswith("**missed**") and told["told"] == "none"


def parts_of(*names: str) -> list[claims.Part]:
    return [part for claim in claims.read() if claim.id in names for part in claim.parts]


def records_of(tier: str, world: World, *names: str) -> list[Record]:
    """Records of all that some claims rest on, at one size."""
    sides = [(part, d) for part in parts_of(*names) for d in ([None] if part.minus is None else [None, part.minus])]
    asked = [(part, d) for part, d in sides if not (part.paper_only and tier == "reduced")]
    return world(dict.fromkeys(spec for part, d in asked for spec in part.specs(tier, d)))


class TestScoreboard:
    def test_has_a_row_a_claim(self, found: dict[str, str]) -> None:
        rows = cells(found["scoreboard"])[2:]
        assert [re.sub(r"\W*(C\d+)\].*", r"\1", row[0]) for row in rows] == [f"C{n}" for n in range(1, 15)]
        assert {row[2] for row in rows[:-1]} == {"**not run**"} and rows[-1][2] == "**reproduced**"
        assert found["verdicts"] == "1 reproduced, 13 not run" and found["directions"] == "11 nothing yet"
        assert found["chance"].startswith("No primary part has enough repetitions")

    def test_follows_the_records(self, tmp_path: Path) -> None:
        write(tmp_path / "paper", records_of("paper", World(gentle=20.0), "C2"))
        write(tmp_path / "reduced", records_of("reduced", World(), "C1", "C8"))
        judged = claims.judge(results=tmp_path)
        rows = cells(pages.scoreboard(judged))[2:]
        by_name = {one.claim.id: row for one, row in zip(judged, rows, strict=True)}
        assert by_name["C2"][2] == "**differs**" and by_name["C2"][3] == "not asked"
        assert by_name["C12"][2] == "**not run**" and by_name["C12"][3] == "nothing yet"
        assert by_name["C8"][3].startswith("same direction: ")
        assert by_name["C8"][3].endswith("; n = 3; resnet20 on cifar10 and cifar100, 24 + 15 epochs, 50,000 images")
        assert by_name["C13"][2] == "**differs**"  # it reads the same curve
        words = [one.verdict for one in judged]
        counted = [f"{words.count(word)} {word}" for word in claims.VERDICTS if word in words]
        assert pages.verdicts(judged) == ", ".join(counted) and len(counted) >= 3
        assert pages.directions(judged) == "2 same direction, 1 undecided, 8 nothing yet"  # two architectures of C11
        assert "Primary parts with enough repetitions at reduced size: 2, of which 2 came out" in pages.chance(judged)
        assert "chance alone would give 0.05 of them (2.5 % each)" in pages.chance(judged)

    def test_the_page_of_a_claim_says_rule_word_and_numbers_and_folds_what_turns_no_verdict(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "reduced", records_of("reduced", World(), "C8"))
        text = pages.ledger(claims.judge(results=tmp_path))
        block = text[text.index("(claim-c8)=") : text.index("(claim-c9)=")]
        (row,) = (claim for claim in claims.read() if claim.id == "C8")
        assert f"* **Rule**: {row.rule}" in block and f"* **Paper** ({row.section}): {row.paper}." in block
        assert "* **At the paper's size**: *not run* (no record)" in block
        assert re.search(
            r"\* \*\*At reduced size\*\*: \*same direction\* \(0\.\d+ \(95 % interval .*; n = 3; resnet20", block
        )
        folded = block[block.index(":::{dropdown} Secondary parts (3), which turn no verdict") :]
        assert [line[0] for line in cells(folded)[3:6]] == [part.name for part in row.parts[1:]]
        assert block.rstrip().endswith("Verdict: **not run**")

    def test_a_damaged_record_stops_the_page(self, tmp_path: Path) -> None:
        write(tmp_path / "reduced", records_of("reduced", World(), "C12"))
        next((tmp_path / "reduced").glob("*")).write_text("nothing")
        with pytest.raises(RecordError):
            pages.substitutions(tmp_path)

    def test_states_and_compute(self, tmp_path: Path, found: dict[str, str]) -> None:
        assert found["state_reduced"] == found["state_paper"] == "not run"
        records = records_of("reduced", World(), "C8")[:2]
        for record, seconds in zip(records, (3600.0, 5400.0), strict=True):
            object.__setattr__(record, "wall_s", seconds)
        write(tmp_path / "reduced", records)
        assert cells(pages.compute(tmp_path))[2:] == [["`reduced`", "2", "2.5", "cpu"], ["`paper`", "0", "0.0", "none"]]
        whole = pages.substitutions(tmp_path)
        assert whole["state_reduced"] == "2 records committed" and "| 2.5 |" in whole["compute"]


def test_recipes_are_those_that_run(found: dict[str, str]) -> None:
    rows = cells(found["recipes"])[2:]
    assert [row[0].strip("`") for row in rows] == list(RECIPES)
    for row, recipe in zip(rows, RECIPES.values(), strict=True):
        assert int(row[1]) == recipe.epochs and float(row[3]) == recipe.lr
        assert tuple(int(m) for m in re.findall(r"\d+", row[2])) == recipe.milestones
        assert int(row[4].split()[0]) == recipe.batch
        assert f"weight decay {recipe.weight_decay:g}" in row[5]
        assert ("flips on" in row[5]) == recipe.flip and ("warm-up" in row[5]) == bool(recipe.warmup_steps)


def test_strengths_and_sizes_are_those_that_run(found: dict[str, str]) -> None:
    rows = {row[0].strip("`"): row for row in cells(found["strengths"])[2:]}
    assert list(rows) == list(experiments.TIERS)
    for name, (_, data, images, network, omegas, layers, seeds) in rows.items():
        chapter = experiments.AccuracyAndDepth(tier=name)
        children = [spec for spec in chapter.specs() if spec.parent]
        for granularity, told in (("channel", omegas), ("layer", layers)):
            slopes = [spec for spec in children if spec.omega > 0 and spec.goal is None]
            ran = sorted({spec.omega for spec in slopes if spec.granularity == granularity})
            assert [float(omega) for omega in told.split(", ")] == ran
        assert int(seeds) == len({spec.seed for spec in children}) and {spec.data for spec in children} == {data}
        (parent,) = {(p.published or p.net, p.width) for p in chapter.parents()}
        assert network.startswith(parent[0]) and (f"width {parent[1]:g}" in network) == (parent[1] != 1)
        assert ("as published" in network) == (chapter.parents()[0].published is not None)
        counts = [("all" if count is None else f"{count:,}") for count in (children[0].train, children[0].test)]
        assert images == ("all" if set(counts) == {"all"} else " and ".join(counts))
        small = experiments.TaskDifficulty(tier=name).specs()[0]
        first, *others = network.split("; ")
        assert first == parent[0] + (f", width {parent[1]:g}" if parent[1] != 1 else "")
        if experiments.TIERS[name].small is not None:
            assert others.pop(0) == f"{small.net}, width {small.width:g} on {small.train:,} images"
        elsewhere = {
            number: net
            for number, kind in (("05", experiments.Structure), ("07", experiments.Width))
            for net in {spec.net for spec in kind(tier=name).specs()} - {parent[0], small.net}
        }
        assert others == [f"{net} in {number}" for number, net in elsewhere.items()]
        assert bool(elsewhere) == (name == "reduced")


def test_readings_of_the_normalised_path_length(found: dict[str, str]) -> None:
    # 27 blocks of two units at one half each and the last unit; with shortcut A two blocks count three quarters.
    assert found["napl_56_B"] == str(27 + 1)
    assert found["napl_56"] == str(25 + 2 * 3 // 2 + 1)
    assert found["napl_56_v1"] == "42" and found["apl_56"] == "54.9988"


class TestReliability:
    def test_what_was_not_tried_is_not_run(self, found: dict[str, str]) -> None:
        assert found["reliability"].count("\n\nnot run") == found["reliability"].count("## ") == len(pages._FAULTS)

    def test_shows_what_the_tests_wrote_down(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evidence, "RECORDING", True)
        monkeypatch.setattr(evidence, "FOLDER", tmp_path / "reliability")
        (tmp_path / "reliability").mkdir()
        old = {"faults": {"a full | disk": {"outcomes": {"stored": 7}}}}  # of another day: replaced
        (tmp_path / "reliability" / "disk.json").write_text(json.dumps(old))
        for times in (1200, 1300):  # cases of a test: they add up
            with evidence.evidence("disk") as counted:
                counted.note("a full | disk", "one sentence", times)
                counted.note("a full | disk", "stored")
        with pytest.raises(ZeroDivisionError), evidence.evidence("disk") as counted:
            counted.note("what went wrong", "is not written down")
            raise ZeroDivisionError
        text = pages.reliability(tmp_path)
        assert "| a full \\| disk | one sentence: 2,500; stored: 2 |" in text and "what went wrong" not in text
        assert (
            text.count("not run") == len(pages._FAULTS) - 1 and f"torch {torch.__version__.partition('+')[0]}" in text
        )
        (tmp_path / "reliability" / "disk.json").write_text("{}")
        with pytest.raises(RecordError, match=r"disk\.json: is no record of injected faults"):
            pages.reliability(tmp_path)

    def test_every_test_of_faults_has_its_place_and_no_record_a_trace_of_a_machine(self) -> None:
        named = set()
        for path in (ROOT / "tests").glob("test_*.py"):
            if path.name != "test_pages.py":
                named |= set(re.findall(r'with evidence\("(\w+)"\)', path.read_text()))
        assert named == set(pages._FAULTS)
        for path in evidence.FOLDER.glob("*.json"):
            assert path.stem in pages._FAULTS
            for found in json.loads(path.read_text())["faults"].values():
                assert set(found) == {"outcomes", "seconds", "date", "python", "torch", "code"}

    def test_committed_records_are_of_the_full_sets(self) -> None:
        """What the page says is of a hundred kills and ten thousand networks, and nothing was lost or wrong."""
        kills, numbers = (
            [
                found["outcomes"]
                for found in json.loads((evidence.FOLDER / f"{name}.json").read_text())["faults"].values()
            ]
            for name in ("kills", "numbers")
        )
        assert all(found["brought to its end, bit-identical"] >= 1 for found in kills)
        assert sum(found["killed, nothing lost or half written"] for found in kills) >= 100
        (networks,) = (found for found in numbers if "equal to walking every path" in found)
        assert sum(networks.values()) == 10_000 and set(networks) == {
            "equal to walking every path",
            "refused: no path at all",
        }


def test_bars_in_cells_do_not_break_a_table() -> None:
    assert pages.table(["a"], [["x | y"]]).splitlines()[-1] == r"| x \| y |"


class TestReference:
    def test_describes_every_name_the_package_offers(self, found: dict[str, str]) -> None:
        for name in nl.__all__:
            value = getattr(nl, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                kind = "class" if inspect.isclass(value) else "function"
                directive = rf"{{py:{kind}}} {name}(\(.*\))?\n:module: {re.escape(value.__module__)}\n"
                assert re.search(directive, found["api"]), name

    def test_describes_every_module_but_those_that_make_the_book(self, found: dict[str, str]) -> None:
        present = {path.stem for path in (ROOT / "nladv_core").glob("*.py")}
        described = set(re.findall(r"^## (\w+)$", found["api"], re.MULTILINE))
        assert present - described == {"__init__", "book", "cli", "grid", "pages", "slider"}
        assert described <= present

    def test_says_no_private_name_twice_or_machine_path(self, found: dict[str, str]) -> None:
        directives = re.findall(r"\{py:(?:class|function)\} (\w+).*\n:module: (\S+)", found["api"])
        assert len(directives) == len(set(directives)) > 60
        assert not [name for name, _ in directives if name.startswith("_")]
        assert str(ROOT) not in found["api"] and " object at 0x" not in found["api"]

    def test_docstring_becomes_lists(self) -> None:
        text = """Two words.

        Args:
            x: a tensor, [N, C],
                of float.
            a, b: others: two.

        Returns:
            A sum.

        Raises:
            SpecError: x < 0, or `x < 1`, or $5.

        Example:
            >>> 1 < 2
            True
        """
        assert pages.markdown(text).split("\n\n") == [
            "Two words.",
            "\n**Arguments**",
            "* `x`: a tensor, [N, C],\n  of float.\n* `a`, `b`: others: two.",
            "\n**Returns**",
            "A sum.",
            "\n**Raises**",
            "* `SpecError`: x &lt; 0, or `x < 1`, or \\$5.",
            "**Example**",
            "```pycon\n>>> 1 < 2\nTrue\n```",
        ]


def test_the_book_takes_them(found: dict[str, str]) -> None:
    taken = yaml.safe_load(book._configuration())["parse"]["myst_substitutions"]
    assert set(taken) == set(found) and taken["api"] == found["api"]
