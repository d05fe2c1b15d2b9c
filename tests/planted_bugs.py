"""Plant known bugs, one at a time, in a copy of the project and see whether the tests notice.

Run: `python tests/planted_bugs.py`, with the names of bugs to try only those. Not part of `make test`: each bug costs a
test run. A bug that no test notices ends the script with status 1; so does a bug whose place is no longer in the code,
so that this list cannot go stale unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# name, file, what stands there, what the bug puts in its place, tests that must go red
BUGS = [
    (
        "penalty sign",
        "linearize.py",
        "distance, 1.0).pow(p), 0.0).sum()",
        "distance, 1.0).pow(p), 0.0).sum().neg()",
        "test_linearize.py",
    ),
    (
        "freeze margin",
        "linearize.py",
        "frozen = flat.active & (flat.slopes > 1 - margin)",
        "frozen = flat.active & (flat.slopes > 1 - 2 * margin)",
        "test_linearize.py",
    ),
    (
        "freeze margin under a goal",
        "linearize.py",
        "ready = flat.active & (flat.slopes > 1 - self._margin)",
        "ready = flat.active & (flat.slopes > self._margin)",
        "test_linearize.py",
    ),
    ("path shifted by one", "path_rules.py", "paths[0] = 1\n", "paths[-1] = 1\n", "test_paths.py"),
    (
        "inactive units counted",
        "path_rules.py",
        "torch.addcmul(total, activity, paths)",
        "torch.addcmul(total, 1 - activity, paths)",
        "test_paths.py",
    ),
    (
        "wrong channel active",
        "path_rules.py",
        "run.activity[group].view(view)",
        "run.activity[group].roll(1).view(view)",
        "test_paths.py",
    ),
    (
        "shortcut ignored",
        "path_rules.py",
        "alpha=math.exp(y.log_scale - x.log_scale)))",
        "alpha=0.0))",
        "test_paths.py",
    ),
    (
        "not normalised before the sum",
        "path_rules.py",
        "        if self.normalized:\n            paths =",
        "        if self.normalized and parts[0].ndim < 4:\n            paths =",
        "test_paths.py",
    ),
    (
        "locked slope still bends",
        "linearize.py",
        "slope = torch.where(self.active, self.slope, 1.0)",
        "slope = self.slope",
        "test_linearize.py",
    ),
    (
        "weight decay on slopes",
        "linearize.py",
        '{"params": slopes, "weight_decay": 0.0}',
        '{"params": slopes, "weight_decay": weight_decay}',
        "test_linearize.py",
    ),
    (
        "best epoch instead of the last",
        "runs.py",
        "final = history[-1]",
        'final = max(history, key=lambda row: row["test_accuracy"])',
        "test_runs.py",
    ),
    (
        "layer permutation over the whole network",
        "linearize.py",
        'if scope == "layer":',
        'if scope == "none":',
        "test_linearize.py",
    ),
    (
        "reduced runs are judged",
        "claims.py",
        'records(results / "paper")',
        'records(results / "reduced")',
        "test_claims.py",
    ),
    ("best part wins", "claims.py", "return min((outcome.verdict", "return max((outcome.verdict", "test_claims.py"),
    (
        "page of other records",
        "pages.py",
        "judged = claims.judge(results=results)",
        "judged = claims.judge()",
        "test_pages.py",
    ),
    ("page without the last column", "pages.py", "for cell in line) +", "for cell in line[:3]) +", "test_pages.py"),
    ("two seeds are judged", "claims.py", "SEEDS = 3 ", "SEEDS = 2 ", "test_claims.py"),
    ("tolerance without edge", "claims.py", "part.tolerance + 1e-9:", "part.tolerance - 1e-9:", "test_claims.py"),
    ("extrapolated", "claims.py", "if min(low, high) < at < max(low, high)", "if low != high", "test_claims.py"),
    ("direction ignored", "claims.py", 'part.direction in (side, "any")', "part.direction", "test_claims.py"),
    (
        "another recipe counts",
        "claims.py",
        "omega=1.0, parent=replace(spec.parent, seed=0)) != template",
        "omega=1.0, recipe=template.recipe, parent=replace(spec.parent, seed=0)) != template",
        "test_claims.py",
    ),
    ("bound is enough", "claims.py", "over.low > part.at_least", "over.low >= part.at_least", "test_claims.py"),
    ("wide interval reproduces", "claims.py", "<= 2 * part.tolerance", "<= 9 * part.tolerance", "test_claims.py"),
]


def noticed(file: str, old: str, new: str, tests: str) -> bool:
    """Whether `tests` fail on a copy of the project with `old` replaced by `new`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("nladv_core", "tests", "book"):
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "nladv_core" / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise SystemExit(
                f"{file}: {old!r} stands there {text.count(old)} times, expected once; mend the list of bugs."
            )
        path.write_text(text.replace(old, new), "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{tests}"]
        done = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1


def main() -> int:
    """Plant each bug in turn, or those whose names are given."""
    missed = []
    for name, *bug in BUGS:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        seen = noticed(*bug)
        print(f"{'red  ' if seen else 'GREEN'}  {name}", flush=True)
        missed += [] if seen else [name]
    print(f"{len(missed)} not noticed" if missed else "every bug turned a test red")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
