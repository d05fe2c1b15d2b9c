"""A small copy of the project to build and to change: the library, the Snakefile, the profiles, and toy chapters."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from nladv_core import book

ROOT = Path(book.__file__).parents[1]

NOTEBOOK = """
tier = "quick"  # size
---
import nladv_core as nl
chapter = nl.chapter("{name}", globals())
---
print(len(nl.runs.run(chapter.specs(), progress=False)), "runs")
"""


def copy_project(folder: Path, names: Sequence[str]) -> Path:
    """The library, the Snakefile, and of these chapters notebooks that do nothing but compute their runs."""
    for name in ("nladv_core", "profiles", "book/_static"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml", "_config.yml", "book/references.bib"):
        shutil.copy(ROOT / name, folder / name)
    for name in names:
        cells = []
        for number, source in enumerate(NOTEBOOK.format(name=name).strip().split("\n---\n")):
            metadata = {"tags": ["parameters"]} if number == 0 else {}
            cell = {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": None}
            cells.append({"id": f"{name}-{number}", **cell})
        title = {"id": "title", "cell_type": "markdown", "source": f"# {name}", "metadata": {}}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = {"cells": [title, *cells], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (folder / "book" / f"{name}.ipynb").write_text(json.dumps(notebook))
    (folder / "book" / "index.md").write_text("# Toy\n\nOne page.\n")
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": f"book/{name}"} for name in names]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    # What the real pages compute is tested elsewhere, and takes longer than all the rest.
    (folder / "nladv_core" / "pages.py").write_text("def substitutions():\n    return {}\n")
    (folder / "data").mkdir()
    (folder / "data" / "claims.toml").write_text("")
    return folder


class Project:
    """A copy of the project with a few chapters, by default one with runs and one without; a store of its own."""

    def __init__(self, folder: Path, names: Sequence[str] = ("01_linearization", "02_path_length")) -> None:
        self.root = copy_project(folder, names)
        self.store = folder / "runs"
        self.build = folder / "build"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("NLADV_")}
        self.environment |= {"NLADV_STORE": str(self.store), "NLADV_CACHE": str(folder / "cache")}
        self.environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "xdg")}

    def command(self, *more: str, profile: str = "local", tier: str = "smoke") -> list[str]:
        start = [sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}"]
        return [*start, "--config", f"tier={tier}", *more]

    def run(self, *more: str, **what: Any) -> subprocess.CompletedProcess[str]:
        options: Any = {"cwd": self.root, "env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(self.command(*more, **what), **options, timeout=300, check=False)

    def stopped(self, number: int, when: Callable[[], bool]) -> str:
        """Begin a build, send a signal to all its processes at a moment, and return what it said."""
        process = subprocess.Popen(
            self.command(),
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        until = time.monotonic() + 200
        while not when() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        alive = process.poll() is None
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=60)
        assert alive, said
        return said

    def due(self, *more: str, **what: Any) -> set[str]:
        """What a dry run would do: batches by their number of runs, chapters by name, pages."""
        done = self.run("-n", "--quiet", "host", *more, **what)
        assert done.returncode == 0, done.stdout + done.stderr
        text = done.stdout + done.stderr
        command = [sys.executable, "-m", "nladv_core.cli", "plan", "--tier", what.get("tier", "smoke"), "--json"]
        command += ["--every-run"] if "runs" in more else []
        planned = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=True
        )
        plan = json.loads(planned.stdout)
        found = set()
        for kind, wildcards in re.findall(r"^rule (batch|chapter|book):.*?wildcards: ([^\n]*)", text, re.M | re.S):
            name = re.search(rf"{kind}=(\w+)", wildcards)
            if kind == "batch":
                assert name
                found.add(f"{len(plan['batches'][name[1]]['keys'])} runs")
            else:
                found.add(name[1] if name else "pages")
        return found

    def records(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.store.glob("*.json")}
