"""Plant known bugs, one at a time, in a copy of the project and see whether the tests notice.

Run: `python tests/planted_bugs.py`, with the names of bugs to try only those. Not part of `make test`: each bug costs a
test run. A bug that no test notices ends the script with status 1; so does a bug whose place is no longer in the code,
so that this list cannot go stale unnoticed. First the tests must pass on a copy without a bug.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv", "__pycache__", ".*_cache", "build", "cache")

# name, file, what stands there, what the bug puts in its place, tests that must go red
BUGS = [
    (
        "batch norm's own gradients over all ranks",
        "normalization.py",
        "affine = (None, None) if weight is None else sums.unbind()",
        "affine = (None, None) if weight is None else ctx.total(sums).unbind()",
        "test_devices.py",
    ),
    (
        "batch norm's gradient without the mean",
        "normalization.py",
        "gradient.float() - _wide(plain, values) - found",
        "gradient.float() - found",
        "test_normalization.py",
    ),
    (
        "batch norm compiled as torch has it",
        "normalization.py",
        "(compiled and not torch.compiler.is_compiling())",
        "compiled",
        "test_normalization.py",
    ),
    (
        "penalty sign",
        "linearize.py",
        "distance, 1.0).pow(p), 0.0)\n",
        "distance, 1.0).pow(p), 0.0).neg()\n",
        "test_linearize.py",
    ),
    (
        "a layer counts as one of its channels",
        "linearize.py",
        "return weights.sum().view(1)",
        "return weights.mean().view(1)",
        "test_linearize.py",
    ),
    (
        "a pixel counts as its channel",
        "linearize.py",
        "shares = weights / (self.slope.numel() // self.channels)",
        "shares = weights",
        "test_linearize.py",
    ),
    (
        "a budget is what is removed",
        "linearize.py",
        "self._asked = self._total - goal",
        "self._asked = goal",
        "test_linearize.py",
    ),
    (
        "nobody pays the price",
        "training.py",
        "slope_penalty(net, p, weights=prices)",
        "slope_penalty(net, p)",
        "test_training.py",
    ),
    ("a missed goal is passed over", "runs.py", "not record.reached:", "False:", "test_runs.py"),
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
    # The ledger: which runs count, what they say, which word follows.
    (
        "reduced runs are judged",
        "claims.py",
        "records(results / tier) for",
        'records(results / "reduced") for',
        "test_claims.py",
    ),
    (
        "a secondary part decides",
        "claims.py",
        "self.paper[self.claim.primary].word",
        "self.paper[0].word",
        "test_claims.py",
    ),
    ("two seeds are judged", "claims.py", "SEEDS = 3 ", "SEEDS = 2 ", "test_claims.py"),
    ("tolerance without edge", "claims.py", "part.tolerance + _ROUNDING", "part.tolerance - 0.02", "test_claims.py"),
    ("direction ignored", "claims.py", 'part.direction in (side, "any")', "part.direction", "test_claims.py"),
    (
        "told from zero by a last digit",
        "claims.py",
        "low > _ROUNDING or high < -_ROUNDING",
        "low > 0 or high < 0",
        "test_claims.py",
    ),
    ("bound is enough", "claims.py", "if floor < low and high < ceiling:", "if floor <= low:", "test_claims.py"),
    (
        "wide interval reproduces",
        "claims.py",
        "high <= part.value + 2 * tolerance",
        "high <= part.value + 9",
        "test_claims.py",
    ),
    ("never exceeds", "claims.py", "if low > part.value + tolerance:", "if low > part.value + 99:", "test_claims.py"),
    ("equality at 95 %", "claims.py", "level = 0.90 if", "level = 0.95 if", "test_claims.py"),
    (
        "paired where nothing is shared",
        "claims.py",
        "else intervals.apart(first, last)",
        "else replace(first, mean=first.mean - last.mean)",
        "test_claims.py",
    ),
    (
        "any strength and seed counts",
        "claims.py",
        "if record.key in family}",
        "if record.spec.net in {s.net for s in specs}}",
        "test_claims.py",
    ),
    ("half a repetition is judged", "claims.py", "if keys <= set(own)}", "if keys & set(own)}", "test_claims.py"),
    (
        "a control is not needed",
        "claims.py",
        "for run in (spec, *_controls(spec)))\n    whole",
        "for run in (spec,))\n    whole",
        "test_claims.py",
    ),
    (
        "further kinds of masks left out",
        "claims.py",
        "if repetition(record.spec) in whole]",
        "if repetition(record.spec) in whole and (record.key in set().union(*wanted.values()))]",
        "test_claims.py",
    ),
    (
        "another axis under claims about NAPL",
        "claims.py",
        'return spec.net.endswith("v1")',
        "return False",
        "test_claims.py",
    ),
    ("parents off their plateau", "claims.py", "PLATEAU = 0.5", "PLATEAU = 9.0", "test_claims.py"),
    ("plateau of the first start", "claims.py", "longest = max(", "longest = min(", "test_claims.py"),
    (
        "reduced options at the paper's size",
        "claims.py",
        'if tier == "reduced" else {})\n\n    def specs',
        "if tier else {})\n\n    def specs",
        "test_claims.py",
    ),
    (
        "the words of the other size",
        "claims.py",
        "replace(made, word=_DIRECTION_OF[made.word])",
        "made",
        "test_claims.py",
    ),
    (
        "chance counts what is not judged",
        "claims.py",
        "found.n >= SEEDS and found.estimate is not None",
        "found.word",
        "test_claims.py",
    ),
    (
        "a loss against the parent",
        "controls.py",
        "self.by_key.get(record.spec.control.key())",
        "self.by_key.get((record.spec.parent or record.spec.control).key())",
        "test_controls.py",
    ),
    ("collapsed networks count", "controls.py", "ALIVE = 0.5", "ALIVE = 0.0", "test_ledger_nothing.py"),
    (
        "interpolated over the NAPL",
        "controls.py",
        "PchipInterpolator(np.log(self.napl)",
        "PchipInterpolator(np.log(self.napl) + 0.05",
        "test_controls.py",
    ),
    ("interpolated however far", "controls.py", "BRACKET = 2.0", "BRACKET = 200.0", "test_controls.py"),
    ("a hidden block", "controls.py", "shared = set.intersection(", "shared = set.union(", "test_controls.py"),
    (
        "residuals of two treatments",
        "controls.py",
        "{name: row[name] for name in shared}",
        "{name: row[name] for name in weights}",
        "test_outcomes.py",
    ),
    (
        "no training is taken off",
        "outcomes.py",
        "value(one, column) - value(runs.control(one), column)",
        "value(one, column)",
        "test_ledger_nothing.py",
    ),
    ("missed goals are compared at once", "outcomes.py", "if not one.reached or", "if", "test_outcomes.py"),
    (
        "other shares are compared",
        "outcomes.py",
        "BEYOND_THE_GOAL = 0.02",
        "BEYOND_THE_GOAL = 9.0",
        "test_ledger_nothing.py",
    ),
    (
        "an undamaged source",
        "outcomes.py",
        "LOSS_OF_A_SOURCE = (1.0, 5.0)",
        "LOSS_OF_A_SOURCE = (-9.0, 5.0)",
        "test_ledger_nothing.py",
    ),
    (
        "chains of any length",
        "controls.py",
        "and spec.recipe == source.recipe else None",
        "else None",
        "test_controls.py",
    ),
    ("a slope for a knee", "outcomes.py", "below - max(3 * above, 1.0)", "below - 1.0", "test_outcomes.py"),
    (
        "random units are an effect",
        "outcomes.py",
        ' - 100 * value(one, "napl") / value(start, "napl")',
        "",
        "test_ledger_nothing.py",
    ),
    ("untouched networks count", "outcomes.py", "UNTOUCHED = 0.9", "UNTOUCHED = 1.9", "test_ledger_nothing.py"),
    (
        "no permutations",
        "outcomes.py",
        "return own - float(np.nanmean",
        "return own - 0 * float(np.nanmean",
        "test_outcomes.py",
    ),
    ("anything is a block", "outcomes.py", "if length < 2 or", "if length < 1 or", "test_ledger_nothing.py"),
    ("strength for a measure", "outcomes.py", "SKILL = 0.75", "SKILL = 99.0", "test_ledger_nothing.py"),
    ("fitted on itself", "outcomes.py", "if name != left_out]", "]", "test_outcomes.py"),
    (
        "degrees of freedom of one difference",
        "intervals.py",
        "freedom = (k - 1) * (n - 1)",
        "freedom = n - 1",
        "test_intervals.py",
    ),
    (
        "error of equal groups",
        "intervals.py",
        "(a + b) ** 2 / sum(parts)",
        "first.freedom + second.freedom",
        "test_intervals.py",
    ),
    (
        "the first pictures",
        "features.py",
        'features.title.partition(" on ")[0] == network]',
        "True]",
        "test_features.py",
    ),
    (
        "controls of pictures ignored",
        "features.py",
        "abs(moved.mean) > bound and",
        "abs(moved.mean) > 99 and",
        "test_features.py",
    ),
    (
        "no margin for a plateau",
        "features.py",
        "bound = margin * weak.mean",
        "bound = 0 * weak.mean",
        "test_features.py",
    ),
    (
        "page of other records",
        "pages.py",
        "judged = claims.judge(results=results)",
        "judged = claims.judge()",
        "test_pages.py",
    ),
    ("page without the last column", "pages.py", "for cell in line) +", "for cell in line[:3]) +", "test_pages.py"),
    ("missed goals are compared", "store.py", ">= goal - 1e-6", ">= 0", "test_effects.py"),
    ("missed budgets are compared", "store.py", "<= goal * (1 + 1e-6)", ">= 0", "test_effects.py"),
    ("weakest for strongest", "effects.py", "sorted(found, reverse=True)", "sorted(found)", "test_effects.py"),
    ("seeds without all widths", "effects.py", "if set(runs) == values}", "if runs}", "test_effects.py"),
    ("last run ends too soon", "effects.py", "[*strong.tolist(), False]", "strong.tolist()", "test_effects.py"),
    (
        "retrained as short as linearized",
        "experiments.py",
        "training = self._recipe(tier.training, parent.data)",
        "training = recipe",
        "test_experiments.py",
    ),
    (
        "schedules swapped",
        "experiments.py",
        '{"restart": short, "continue": whole.',
        '{"continue": short, "restart": whole.',
        "test_experiments.py",
    ),
    ("width study with shortcut A", "experiments.py", 'shortcut="B", small', "small", "test_experiments.py"),
    (
        "published parent on foreign data",
        "tiers.py",
        "nets.PUBLISHED[tier.published].data == dataset:",
        "dataset:",
        "test_experiments.py",
    ),
    ("goes on at the first rate", "recipes.py", "lr=self.lr_at(epoch), epochs", "epochs", "test_recipes.py"),
    ("stops a step late", "recipes.py", "if m < epoch))", "if m <= epoch))", "test_recipes.py"),
    (
        "active somewhere is enough",
        "sharpness.py",
        "if all(channel in other",
        "if any(channel in other",
        "test_sharpness.py",
    ),
    (
        "every channel of its own start",
        "sharpness.py",
        "            spectrum.copy_(start)\n",
        "            pass\n",
        "test_sharpness.py",
    ),
    (
        "networks see other networks' pictures",
        "sharpness.py",
        "zip(ready, pictures.split(count), strict=True)}",
        "zip(reversed(list(ready)), pictures.split(count), strict=True)}",
        "test_sharpness.py",
    ),
    (
        "gradient of one direction",
        "sharpness.py",
        "torch.hypot(across, down).mean",
        "torch.hypot(across, across).mean",
        "test_sharpness.py",
    ),
    (
        "corner frequencies only",
        "sharpness.py",
        "radius = torch.hypot(rows[:, None]",
        "radius = torch.minimum(rows[:, None]",
        "test_sharpness.py",
    ),
    (
        "difference of medians",
        "sharpness.py",
        "float(difference.mean()), float(",
        "float(np.median(difference)), float(",
        "test_sharpness.py",
    ),
    (
        "the milder one does not count",
        "features.py",
        '(weak.verdict, strong.verdict) != ("higher", "higher")',
        'strong.verdict != "higher"',
        "test_features.py",
    ),
    ("fillings are read", "transformer.py", "src_key_padding_mask=padding)", ")", "test_transformer.py"),
    ("later words are seen", "transformer.py", "> places[:, None]", "> places[:, None] + 1", "test_transformer.py"),
    ("fillings are asked for", "tasks.py", "masked_fill(labels == PAD, NOT_ASKED)", "clone()", "test_transformer.py"),
    (
        "a penalty for each accumulated batch",
        "training.py",
        "omega > 0 and batch is step[0]:",
        "omega > 0:",
        "test_transformer.py",
    ),
    ("dropout goes on as it likes", "training.py", "        torch.manual_seed(seed)\n", "", "test_transformer.py"),
    ("Adam forgets", "training.py", '"exp_avg_sq": "exp_avg_sq/", ', "", "test_transformer.py"),
    ("warm-up an epoch long", "training.py", "epoch * steps + number)", "epoch)", "test_transformer.py"),
    ("test numbers were trained on", "texts.py", "order[::-1][:test]", "order[:test]", "test_texts.py"),
    ("empty sentences stay", "texts.py", "if all(pair)]", "if any(pair)]", "test_texts.py"),
    ("doubling never pays", "packing.py", "> _WORTH_DOUBLING * half", "> 100 * half", "test_packing.py"),
    (
        "first epochs count",
        "packing.py",
        "if worker not in self._warm:",
        "if False:",
        "test_packing.py",
    ),
    ("memory is not looked at", "packing.py", "> 1.25 * each", "> 0", "test_packing.py"),
    ("the last number of runs stays", "packing.py", "key=self._seen.__getitem__)", "default=0)", "test_packing.py"),
    (
        "children do not wait",
        "runs.py",
        "if spec.parent is not None and spec.parent.key() in todo:",
        "if False and spec.parent is not None:",
        "test_runs.py",
    ),
    ("nobody is killed when the time is up", "runs.py", "timeout=schedule.left()", "timeout=60", "test_campaign.py"),
    ("work is not taken down", "runs.py", "begun.add(number)", "pass", "test_campaign.py"),
    ("half of the operations", "costs.py", "return 3.0 * counter", "return 1.5 * counter", "test_costs.py"),
    ("a run counted with each chapter", "costs.py", "link is not None and link not in seen", "link", "test_costs.py"),
    (
        "no compiler is an error",
        "training.py",
        "except TorchDynamoException as error",
        "except KeyError as error",
        "test_training.py",
    ),
    (
        "bfloat16 rounds away the loss",
        "training.py",
        "logits.float().flatten",
        "logits.bfloat16().flatten",
        "test_training.py",
    ),
]


def noticed(file: str, old: str, new: str, tests: str) -> bool:
    """Whether `tests` fail on a copy of the project with `old` replaced by `new`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
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
    chosen = [bug for bug in BUGS if not sys.argv[1:] or bug[0] in sys.argv[1:]]
    for tests in sorted({bug[-1] for bug in chosen}):
        # Else anything that a copy lacks would look like a bug that was noticed.
        if noticed("__init__.py", "__version__ =", "__version__ =", tests):
            raise SystemExit(f"{tests} fails on a copy without any bug")
    for name, *bug in chosen:
        seen = noticed(*bug)
        print(f"{'red  ' if seen else 'GREEN'}  {name}", flush=True)
        missed += [] if seen else [name]
    print(f"{len(missed)} not noticed" if missed else "every bug turned a test red")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
