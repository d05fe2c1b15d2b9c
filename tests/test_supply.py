"""What is installed: each file by its checksum, under known licences, looked up for known holes where that can be."""

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from test_project import CONSTRAINTS, requirements

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {
    canonicalize_name(name): (version, hashes.count("--hash=sha256:"))
    for name, version, hashes in re.findall(
        r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)((?:\s*\\\n\s+--hash=\S+)*)", LOCK, re.MULTILINE
    )
}
# Installed beside the locked ones from the index of choice, in the version of constraints.txt: builds differ by index.
BY_INDEX = {"torch", "torchvision"}
# What distributions may be licensed under, as they say it in their metadata: all allow use and passing on.
ALLOWED = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|HPND|MPL|Mozilla|Unlicense|Zlib|CC0|public domain|LGPL|Lesser"
    r"|CNRI|0BSD|PostgreSQL",
    re.IGNORECASE,
)


def test_the_lock_holds_what_was_tested_and_every_file_by_its_checksum() -> None:
    assert len(LOCKED) == len(re.findall(r"^\S+==", LOCK, re.MULTILINE)) > 100
    assert all(hashes for _, hashes in LOCKED.values())
    for name, (version, _) in LOCKED.items():
        assert CONSTRAINTS.get(name, version) == version, name
    assert set(CONSTRAINTS) - set(LOCKED) <= BY_INDEX | {"colorama"}
    assert set(LOCKED) - set(CONSTRAINTS) <= {"setuptools", "wheel"}


def test_the_lock_holds_every_direct_dependency() -> None:
    for requirement in requirements("book", "test"):
        assert canonicalize_name(requirement.name) in {*LOCKED, *BY_INDEX}, requirement


def test_a_changed_file_is_not_installed(tmp_path: Path) -> None:
    """That pip is told to look: with the sums of another file it refuses the first package of the list."""
    command = ["make", "--dry-run", "--always-make", "test", "CI=true"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--require-hashes -r requirements.lock" in told
    told = subprocess.run([*command[:-1], "CI="], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "requirements.lock" not in told and "-c constraints.txt" in told


def licence(distribution: metadata.Distribution) -> str:
    """What a distribution says of its licence: by expression, in words, or by classifiers."""
    found = distribution.metadata
    parts = [found.get("License-Expression") or "", *(found.get_all("Classifier") or [])]
    told = [part.removeprefix("License :: ") for part in parts if part.startswith("License ::") or part == parts[0]]
    told.append((found.get("License") or "").strip().partition("\n")[0][:200])
    files = [file for file in distribution.files or [] if re.match(r"(?i)licen[cs]e|copying", file.name)]
    if not any(told) and files:
        told.append(" ".join(files[0].read_text().split())[:100])
    return "; ".join(filter(None, told))


def test_every_dependency_has_a_licence_that_allows_its_use() -> None:
    installed = {canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions()}
    there = sorted(({*LOCKED, *BY_INDEX}) & set(installed))
    assert len(there) > 100
    odd = {name: licence(installed[name]) for name in there if not ALLOWED.search(licence(installed[name]))}
    assert not odd, odd


def test_what_cannot_be_looked_up_is_said_and_no_error(tmp_path: Path) -> None:
    for content in (None, "#!/bin/sh\necho 'ERROR: no connection' >&2\nexit 1\n"):
        if content is not None:
            (tmp_path / "pip-audit").write_text(content)
            (tmp_path / "pip-audit").chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run([ROOT / ".ci" / "audit"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.startswith("not checked: "), done.stdout
    assert "no connection" in done.stdout
    holes = '{"dependencies": [{"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1"}]}]}'
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\necho '{holes}'\nexit 1\n")
    done = subprocess.run([ROOT / ".ci" / "audit"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "PYSEC-1" in done.stdout


@pytest.mark.parametrize("script", ["lock", "audit"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / ".ci" / script, os.X_OK)
