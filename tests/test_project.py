"""The repository as a whole: declarations that must agree, and things that must not be in it."""

import doctest
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nladv_core
from nladv_core import book, cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def requirements(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def pins(lines: list[str]) -> dict[str, str]:
    """Name to version of every `name==version` among the lines."""
    found = [re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()) for line in lines]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def tracked() -> list[Path]:
    """Files under version control; all but the ignored ones where this is no repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    for requirement in requirements("book", "test"):
        version = CONSTRAINTS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (str(requirement), version)
        assert "+" not in version, "a local version would shut out every other build"


def test_environment_is_in_step() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    names = {canonicalize_name(requirement.name) for requirement in requirements("book")}
    assert pins(pip) == {name: CONSTRAINTS[name] for name in names}
    assert [line for line in pip if "==" not in line] == ["-c constraints.txt", "-e ."]
    python = next(entry for entry in listed if str(entry).startswith("python="))
    assert PROJECT["requires-python"] == f">={python.removeprefix('python=')}"


def test_the_book_has_every_listed_page_and_lists_every_page() -> None:
    listed = book.pages()
    assert listed[0] == ROOT / "book" / "index.md"
    present = {path for pattern in ("*.md", "*.ipynb") for path in (ROOT / "book").rglob(pattern)}
    assert set(listed) == {path for path in present if ".ipynb_checkpoints" not in path.parts}


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert nladv_core.__version__ == version
    assert str(citation()["version"]) == version
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == version


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_citation_names_software_and_paper() -> None:
    found = citation()
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["type"] == "software" and found["title"].startswith("nladv") and found["license"] == "MIT"
    paper = found["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ali Mehmeti-Göpel", "Disselhoff"]
    assert (paper["year"], paper["volume"], paper["start"], paper["end"]) == (2023, 202, 529, 546)
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2211.17180"}]
    assert found["references"] == [paper]


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_commands_of_the_readme_exist() -> None:
    found = commands()
    assert found[:2] == [["make", "book"], ["make", "test"]]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"book", "test", "bench", "clean"} <= targets
    for words in found:
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "papermill":
            assert (ROOT / words[1]).is_file()
            assert set(words[4::3]) <= set(book.parameters(ROOT / words[1]))
        elif words[0] == "snakemake":
            profile = ROOT / words[words.index("--workflow-profile") + 1] / "config.yaml"
            assert profile.is_file() and f"rule {words[-1]}:" in (ROOT / "Snakefile").read_text()
        elif words[:2] == ["pip", "install"]:
            assert f"{words[2]}==" in (ROOT / "constraints.txt").read_text()
        elif words[:2] == ["nladv", "chapter"]:
            assert set(words[4::3]) <= set(book.parameters(ROOT / "book" / f"{words[2]}.ipynb"))
        elif words[0] == "nladv":
            cli._parser().parse_args(words[1:])  # exits on what the command does not know
        else:
            assert words == [".", ".venv/bin/activate"]


def test_library_example_of_the_readme_runs() -> None:
    example = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert example
    names: dict = {}
    exec(example[1], names)
    assert names["loss"].item() > 0


def test_examples_of_the_reference_say_what_comes_out() -> None:
    names = {"nl": nladv_core, "nn": torch.nn, "torch": torch}
    found = 0
    for name in nladv_core.__all__:
        for example in doctest.DocTestFinder(recurse=False).find(getattr(nladv_core, name), name, globs=names):
            outcome = doctest.DocTestRunner().run(example)
            assert outcome.failed == 0, name
            found += outcome.attempted
    assert found > 5


def test_files_of_the_readme_exist_and_are_all_listed() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    trees = [block for language, block in fenced if not language]
    top = {line.split()[0].rstrip("/").split("/")[0] for line in trees[0].splitlines()}
    present = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert top <= present
    assert present - top <= {".github", ".gitignore", "tests"}
    listed = {line.split()[0] for line in trees[1].splitlines()[1:]}
    assert listed == {path.name for path in (ROOT / "nladv_core").glob("*.py")} - {"__init__.py"}


def test_no_machine_path_or_secret_is_in_the_repository() -> None:
    # Spelled in parts, so that this file does not contain what it forbids.
    folders = "|".join(["work", "root", "tmp", "home", "Users", "opt", "mnt", "scratch"])
    path = re.compile(r"(?<![\w.:/~$})-])/(?:" + folders + r")/[\w.]")
    for file in tracked():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # an image
        for number, line in enumerate(lines, 1):
            assert not path.search(line), f"{file.relative_to(ROOT)}:{number}: {line[:120]}"


def test_no_large_or_unsafe_file_is_in_the_repository() -> None:
    for file in tracked():
        assert file.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".th", ".npy"}, file
        assert file.stat().st_size < 4 << 20, file


def test_scripts_are_executable_and_workflows_only_call_make() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(workflow.read_text())["jobs"]
        for step in (step for job in jobs.values() for step in job["steps"]):
            # Besides, only what `.ci/run` installs by itself as root, and a runner's user cannot.
            assert re.fullmatch(r"make (test|book)|sudo apt-get [-\w &]+", step.get("run", "make test"))
