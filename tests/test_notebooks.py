"""Every chapter: how its source is committed, and its cells run live at `smoke` through nbval."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

from nladv_core import book
from nladv_core.errors import SpecError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "book").glob("*.ipynb"))
EACH = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells(source: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(source.read_text())["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_chapters() -> None:
    # Without this a moved folder would leave the tests below with nothing to judge.
    expected = {
        "01_linearization",
        "02_path_length",
        "06_accuracy_and_depth",
        "10_feature_visualization",
        "11_transformer",
        "your_own_network",
    }
    assert expected <= {path.stem for path in SOURCES}


@EACH
def test_outputs_are_not_committed(source: Path) -> None:
    for cell in cells(source):
        if "NBVAL_CHECK_OUTPUT" in text(cell):
            assert cell["outputs"], f"nothing to compare with: {text(cell)!r}"
            assert len(json.dumps(cell["outputs"])) < 4000
        else:
            assert not cell["outputs"], f"clear the output of {text(cell)!r}"
            assert cell["execution_count"] is None


@EACH
def test_metadata_name_the_language(source: Path) -> None:
    metadata = json.loads(source.read_text())["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["kernelspec"]["language"] == "python" == metadata["language_info"]["name"]
    assert set(metadata) <= {"kernelspec", "language_info"}


@EACH
def test_one_cell_of_parameters_then_the_library_checks_them(source: Path) -> None:
    code = cells(source)
    tagged = [index for index, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    parameters = text(code[tagged[0]])
    assert parameters.startswith('tier = "quick"')
    # A comment for each: these names are the chapter's public interface.
    assert all("#" in line for line in parameters.splitlines() if re.match(r"\w+\s*=", line))
    assert f'nl.chapter("{source.stem}", globals())' in text(code[tagged[0] + 1])
    # What this project reads from the cell is what papermill reads from it.
    assert set(papermill.inspect_notebook(str(source))) == set(book.parameters(source))


@EACH
def test_headings_start_with_one_title(source: Path) -> None:
    headings = [line for cell in cells(source, "markdown") for line in text(cell).splitlines() if line.startswith("# ")]
    assert len(headings) == 1


@EACH
def test_cells_run_at_smoke(source: Path, tmp_path: Path) -> None:
    prepared = tmp_path / source.name
    papermill.execute_notebook(str(source), str(prepared), {"tier": "smoke"}, prepare_only=True)
    found = run_nbval(prepared, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed and int(passed[1]) == len(cells(prepared)), found.stdout


def test_nbval_sees_a_failing_cell(tmp_path: Path) -> None:
    # The judge itself: a wrong compared output and an error must both turn it red.
    notebook = {
        "cells": [
            code_cell("1 + 1  # NBVAL_CHECK_OUTPUT", [stream("3\n")]).copy(),
            code_cell("assert False", []),
            code_cell("print(1)", []),
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    source = tmp_path / "wrong.ipynb"
    source.write_text(json.dumps(notebook))
    found = run_nbval(source, tmp_path)
    assert found.returncode == 1
    assert re.search(r"2 failed, 1 passed", found.stdout), found.stdout


def run_nbval(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Nbval in a process of its own, with its own store; configuration and plugins of this run stay outside."""
    environment = os.environ | {"NLADV_STORE": str(folder / "runs"), "NLADV_CACHE": str(folder / "cache")}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-c", os.devnull]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "no:xdist", str(notebook)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)


def code_cell(source: str, outputs: list[dict]) -> dict:
    identity = f"cell-{abs(hash(source))}"
    return {
        "id": identity,
        "cell_type": "code",
        "source": source,
        "metadata": {},
        "outputs": outputs,
        "execution_count": None,
    }


def stream(line: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": line}


class TestRunChapter:
    """`book.run_chapter` on notebooks made here: names are checked, nothing is half written, nothing is done twice."""

    def notebook(self, folder: Path, *sources: str, metadata: dict | None = None) -> Path:
        found = [code_cell("tier = 'quick'  # size\nomega = 0.1  # strength", [])]
        found[0]["metadata"] = {"tags": ["parameters"]}
        found += [code_cell(source, []) for source in sources]
        path = folder / "chapter.ipynb"
        path.write_text(json.dumps({"cells": found, "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}))
        return path

    def test_executes_with_this_interpreter_and_no_language_in_the_metadata(self, tmp_path: Path) -> None:
        source = self.notebook(tmp_path, "import sys; print(tier, omega, sys.executable)")
        out = book.run_chapter(source, {"omega": 0.5, "tier": "quick"}, tmp_path / "out" / "executed.ipynb")
        assert out == tmp_path / "out" / "executed.ipynb"
        assert [path.name for path in out.parent.iterdir()] == ["executed.ipynb"]
        last = cells(out)[-1]["outputs"][0]["text"]
        assert "".join(last).split() == ["quick", "0.5", sys.executable]
        assert str(tmp_path) not in out.read_text()  # papermill would note its paths

    def test_runs_again_only_when_something_changed(self, tmp_path: Path) -> None:
        mark = tmp_path / "mark"
        source = self.notebook(tmp_path, f"open({str(mark)!r}, 'a').write('x')")
        out = tmp_path / "executed.ipynb"
        for count, params in ((1, {}), (1, {}), (1, {"omega": 0.1}), (2, {"omega": 0.2})):
            book.run_chapter(source, params, out)
            assert len(mark.read_text()) == count
        book.run_chapter(source, {"omega": 0.2}, out, force=True)
        self.notebook(tmp_path, f"open({str(mark)!r}, 'a').write('y')")
        book.run_chapter(source, {"omega": 0.2}, out)
        assert mark.read_text() == "xxxy"
        out.write_text("{not json")  # a damaged result counts as none
        book.run_chapter(source, {"omega": 0.2}, out)
        assert mark.read_text() == "xxxyy"

    @pytest.mark.parametrize(("name", "hint"), [("omga", "did you mean 'omega'"), ("zzz", "it takes tier, omega")])
    def test_refuses_an_unknown_parameter_before_running(self, tmp_path: Path, name: str, hint: str) -> None:
        source = self.notebook(tmp_path, "raise SystemError")
        with pytest.raises(SpecError, match=hint):
            book.run_chapter(source, {name: 1}, tmp_path / "executed.ipynb")
        assert not (tmp_path / "executed.ipynb").exists()

    def test_a_failing_cell_is_named_and_the_old_result_stays(self, tmp_path: Path) -> None:
        out = tmp_path / "out" / "executed.ipynb"
        source = self.notebook(tmp_path, "print('fine')")
        book.run_chapter(source, {}, out)
        before = out.read_bytes()
        self.notebook(tmp_path, "print('so far')", "raise ValueError('first\\nthe last line')", "print('never')")
        with pytest.raises(book.BuildError, match=r"chapter: cell 3 failed with ValueError: the last line; .*failed"):
            book.run_chapter(source, {}, out)
        assert out.read_bytes() == before
        failed = out.with_name("executed.failed.ipynb")
        assert "so far" in failed.read_text()
        assert {path.name for path in out.parent.iterdir()} == {"executed.ipynb", "executed.failed.ipynb"}
        self.notebook(tmp_path, "print('fine again')")
        book.run_chapter(source, {}, out)
        assert not failed.exists()

    def test_a_dying_kernel_is_one_sentence(self, tmp_path: Path) -> None:
        source = self.notebook(tmp_path, "import os; os._exit(1)")
        with pytest.raises(book.BuildError, match="chapter: the kernel stopped"):
            book.run_chapter(source, {}, tmp_path / "executed.ipynb")
        assert not (tmp_path / "executed.ipynb").exists()

    @pytest.mark.parametrize("line", ["omega = 2 * 3", "import os", "a, b = 1, 2", "omega += 1"])
    def test_parameters_are_plain_literals(self, tmp_path: Path, line: str) -> None:
        source = self.notebook(tmp_path)
        source.write_text(source.read_text().replace("omega = 0.1", line))
        with pytest.raises(SpecError, match="among the parameters"):
            book.parameters(source)

    def test_unknown_chapter_names_the_nearest(self) -> None:
        with pytest.raises(SpecError, match="did you mean '01_linearization'"):
            book.run_chapter("01_linearisation")
        with pytest.raises(SpecError, match="no notebook"):
            book.run_chapter("book/nothing.ipynb")
