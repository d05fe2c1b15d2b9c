"""What the pages say that nobody types: verdicts, recipes, path lengths, compute spent, the reference of names.

`substitutions()` gives markdown by name; a page takes it with `{{ name }}` (MyST's substitutions). An unknown name
stops the build, and so does anything here that cannot be computed, so a page cannot say what the records do not.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from nladv_core import claims, experiments
from nladv_core.errors import RecordError
from nladv_core.recipes import RECIPES

_SIZES = ("reduced", "paper")  # tiers whose records are committed
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
# Not for use from outside: they make the book and the command line.
_INTERNAL = ("book", "cli", "grid", "pages", "slider")


def substitutions(results: Path | None = None) -> dict[str, str]:
    """Markdown by the name under which pages take it.

    Args:
        results: folder of committed records, default `data/results` of the project.

    Raises:
        NladvError: the ledger or a committed record is damaged.
    """
    from nladv_core.places import project_root

    results = results or project_root() / "data" / "results"
    judged = claims.judge(results=results)
    made = {
        "scoreboard": scoreboard(judged),
        "verdicts": verdicts(judged),
        "ledger": ledger(judged),
        "recipes": recipes(),
        "strengths": strengths(),
        "compute": compute(results),
        "reliability": reliability(results),
        "api": api(),
    }
    for size in _SIZES:
        number = len(claims.records(results / size))
        made[f"state_{size}"] = f"{number} record{'s' * (number != 1)} committed" if number else "not run"
    return made | dict(path_lengths())


# ------------------------------------------------------------------------------------------------------------ claims


def scoreboard(judged: Sequence[claims.Judgement]) -> str:
    """One row a claim: what it says, the verdict, the first line of evidence at reduced size and how many follow it."""
    rows = []
    for one in judged:
        where = f" {{doc}}`{one.claim.chapter}`" if one.claim.chapter else ""
        first, *more = one.evidence or ("–",)
        evidence = first + (f"; and {len(more)} more" if more else "")
        name = f"[{one.claim.id}](#claim-{one.claim.id.lower()})"
        rows.append([name, f"{one.claim.title} ({one.claim.section}){where}", f"**{one.verdict}**", evidence])
    return table(["", "claim", "verdict", "evidence at reduced size"], rows)


def verdicts(judged: Sequence[claims.Judgement]) -> str:
    """How many claims have which verdict, in a phrase."""
    found = [one.verdict for one in judged]
    counts = [(found.count(verdict), verdict) for verdict in reversed(claims.VERDICTS)]
    return ", ".join(f"{count} {verdict}" for count, verdict in counts if count)


def ledger(judged: Sequence[claims.Judgement]) -> str:
    """Every claim with the paper's numbers, its rule, and what came out part by part."""
    blocks = []
    for one in judged:
        claim = one.claim
        lines = [f"(claim-{claim.id.lower()})=", f"## {claim.id}: {claim.title}", "", claim.claim, ""]
        lines += [f"* **Paper** ({claim.section}): {claim.paper}.", f"* **Rule**: {claim.rule}"]
        parts = zip(claim.parts, one.outcomes, strict=True)
        lines += [f"* **{part.name}**: *{outcome.verdict}* ({outcome.note})" for part, outcome in parts]
        lines += [f"* **At reduced size**: {line}" for line in one.evidence]
        if claim.chapter:
            lines.append(f"* **Chapter**: {{doc}}`{claim.chapter}`")
        blocks.append("\n".join([*lines, "", f"Verdict: **{one.verdict}**"]))
    return "\n\n".join(blocks)


# ----------------------------------------------------------------------------------------------- recipes and numbers


def recipes() -> str:
    """Every training table, one row each."""
    rows = []
    for name, recipe in RECIPES.items():
        batch = str(recipe.batch) + (f" × {recipe.accumulate}" if recipe.accumulate > 1 else "")
        optimizer = f"SGD, momentum {recipe.momentum:g}"
        if recipe.optimizer == "adam":
            optimizer = f"Adam {recipe.betas}"
        milestones = ", ".join(map(str, recipe.milestones)) or "none"
        more = [f"factor {recipe.gamma:g}"] if recipe.milestones else []
        more += [f"weight decay {recipe.weight_decay:g}", f"flips {'on' if recipe.flip else 'off'}"]
        more += [f"{recipe.warmup_steps} warm-up steps"] if recipe.warmup_steps else []
        more += [f"label smoothing {recipe.label_smoothing:g}"] if recipe.label_smoothing else []
        told = f"{optimizer}, {', '.join(more)}"
        rows.append([f"`{name}`", str(recipe.epochs), milestones, f"{recipe.lr:g}", batch, told])
    return table(["recipe", "epochs", "milestones", "lr", "batch", "optimiser and more"], rows)


def strengths() -> str:
    """The penalties that each tier runs, and its size.

    A second network, with its training images, is the one of the chapters that train many parents.
    """
    rows = []
    for name, tier in experiments.TIERS.items():
        train, test = ("all" if count is None else f"{count:,}" for count in (tier.train, tier.test))
        images = "all" if train == test == "all" else f"{train} and {test}"
        omegas, layers = (", ".join(f"{omega:g}" for omega in found) for found in (tier.omegas, tier.layer_omegas))
        network = f"{tier.published}, as published" if tier.published else _sized(tier.network, tier.width)
        if tier.small is not None:
            small, width, count = tier.small
            network += f"; {_sized(small, width)} on {count:,} images"
        rows.append([f"`{name}`", tier.dataset, images, network, omegas, layers, str(len(tier.seeds))])
    head = ["tier", "data", "images (train and test)", "network", "ω, channels", "ω, layers", "seeds"]
    return table(head, rows)


def _sized(network: str, width: float) -> str:
    return network + (f", width {width:g}" if width != 1 else "")


@cache
def path_lengths() -> Mapping[str, str]:
    """Sizes of the conventions about paths, computed on the spot."""
    import torch

    from nladv_core import nets
    from nladv_core.paths import path_length

    def napl(name: str, **options: Any) -> str:
        with torch.random.fork_rng(devices=[]):
            net = nets.build(name, **options)
        return f"{path_length(net, (3, 32, 32)).mean:.4g}"

    lengths = claims.resnet_path_lengths()
    return {
        "napl_56": f"{lengths[56][0]:.4g}",
        "apl_56": f"{lengths[56][1]:.6g}",
        "napl_56_B": napl("resnet56", shortcut="B"),
        "napl_56_v1": napl("resnet56v1"),
    }


def compute(results: Path) -> str:
    """Hours that the committed records took, one row a tier."""
    rows = []
    for size in _SIZES:
        found = claims.records(results / size)
        hours = sum(record.wall_s for record in found) / 3600
        devices = ", ".join(sorted({record.device for record in found})) or "none"
        rows.append([f"`{size}`", str(len(found)), f"{hours:.1f}", devices])
    return table(["tier", "records", "hours", "devices"], rows)


# Records of the tests of faults, in the order in which the page shows them.
_FAULTS = {
    "kills": "Killed at random moments",
    "concurrency": "Many at once",
    "disk": "Disks",
    "corruption": "Damaged files",
    "hostile": "Hostile input",
    "numbers": "Numbers",
    "errors": "Mistakes of users",
}


def reliability(results: Path) -> str:
    """What was injected, how often and what came of it, from the records that the tests wrote themselves.

    Raises:
        RecordError: a record is damaged.
    """
    blocks = []
    for name, title in _FAULTS.items():
        path = results / "reliability" / f"{name}.json"
        if not path.is_file():
            blocks.append(f"## {title}\n\nnot run")
            continue
        rows, made = [], set()
        try:
            for fault, found in json.loads(path.read_text("utf-8"))["faults"].items():
                outcomes = "; ".join(f"{outcome}: {int(times):,}" for outcome, times in found["outcomes"].items())
                rows.append([fault, outcomes])
                made.add(f"{found['date']} with Python {found['python']}, torch {found['torch']}, code {found['code']}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}: is no record of injected faults ({error!r}); take the evidence again") from None
        shown = table(["what was injected", "what came of it: how often"], rows)
        blocks.append(f"## {title}\n\n{shown}\n\nTaken {'; '.join(sorted(made))}.")
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --------------------------------------------------------------------------------------------------------- reference


def api() -> str:
    """Public classes and functions of every module, with signatures and docstrings, as Sphinx directives."""
    blocks = []
    for name in modules():
        module = importlib.import_module(f"nladv_core.{name}")
        head = f"## {name}\n\n{markdown(inspect.getdoc(module) or '')}"
        blocks.append("\n\n".join([head, *(_described(found, module.__name__) for found in public(module))]))
    return "\n\n".join(blocks)


def modules() -> list[str]:
    """Names of the modules that the reference describes."""
    found = (path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    return sorted(name for name in found if name not in _INTERNAL)


def public(module: Any) -> list[Any]:
    """Classes and functions that are defined in `module` and do not begin with an underscore, in its order."""
    found = [
        value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)))
        and value.__module__ == module.__name__
    ]
    return list(dict.fromkeys(found))


def _described(found: Any, module: str) -> str:
    if not inspect.isclass(found):
        return _directive("function", f"{found.__name__}{_signature(found)}", module, markdown(inspect.getdoc(found)))
    signature = "" if issubclass(found, Exception) else _signature(found)
    parts = [markdown(inspect.getdoc(found) if found.__doc__ else "")]
    for name, value in vars(found).items():
        if name.startswith("_"):
            continue
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(plain) and plain.__doc__:
            option = ":classmethod:\n" if isinstance(value, classmethod) else ""
            parts.append(_directive("method", f"{name}{_signature(plain, True)}", "", markdown(plain.__doc__), option))
        elif isinstance(value, (property, cached_property)) and value.__doc__:
            parts.append(_directive("property", name, "", markdown(value.__doc__)))
    return _directive("class", f"{found.__name__}{signature}", module, "\n\n".join(parts), fence=4)


def _directive(kind: str, signature: str, module: str, text: str, option: str = "", fence: int = 3) -> str:
    where = f":module: {module}\n" if module else ""
    return f"{':' * fence}{{py:{kind}}} {signature}\n{where}{option}\n{text}\n{':' * fence}"


def _signature(found: Any, method: bool = False) -> str:
    """Parameters with their defaults; types are said in the docstrings where they matter."""
    parameters = []
    for parameter in list(inspect.signature(found).parameters.values())[method:]:
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty))
    return str(inspect.Signature(parameters)).replace("<factory>", "...")


def markdown(docstring: str | None) -> str:
    """A docstring as markdown: its sections become lists, and what could be read as a tag or a formula is escaped."""
    lines = list(_sections(inspect.cleandoc(docstring or "").splitlines()))
    text = "\n".join(lines).strip()
    # Within backticks everything is literal.
    pieces = re.split(r"(`+[^`]*`+)", text)
    for i in range(0, len(pieces), 2):
        pieces[i] = pieces[i].replace("<", "&lt;").replace("$", "\\$").replace("{{", "{ {")
    return "".join(pieces)


def _sections(lines: Sequence[str]) -> Iterator[str]:
    """Lines with every "Args:" and the like as a bold word and the entries below it as a list."""
    inside = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if indent == 0 and line.rstrip(":") in _SECTIONS and line.endswith(":"):
            inside, plain = True, line in ("Returns:", "Yields:")
            title = {"Args": "Arguments"}.get(line[:-1], line[:-1])
            yield from ("", f"**{title}**", "")
        elif inside and line.strip() and indent == 0:
            inside = False
            yield from ("", line)
        elif inside and line.strip():
            entry = re.match(r"([\w.*, ]+): (.*)", line.strip()) if indent == 4 and not plain else None
            if entry:
                names = ", ".join(f"`{name.strip()}`" for name in entry[1].split(","))
                yield f"* {names}: {entry[2]}"
            else:
                yield f"  {line.strip()}" if not plain else line.strip()
        else:
            yield line
