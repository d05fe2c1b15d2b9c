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
from nladv_core.specs import RunSpec

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
        "directions": directions(judged),
        "chance": chance(judged),
        "words_paper": words("paper"),
        "words_reduced": words("reduced"),
        "ledger": ledger(judged),
        "recipes": recipes(),
        "strengths": strengths(),
        "compute": compute(results),
        "pilot": pilot(results),
        "reliability": reliability(results),
        "api": api(),
    }
    for size in _SIZES:
        number = len(claims.records(results / size))
        made[f"state_{size}"] = f"{number} record{'s' * (number != 1)} committed" if number else "not run"
    return made | plan(results) | dict(path_lengths())


# ------------------------------------------------------------------------------------------------------------ claims


def scoreboard(judged: Sequence[claims.Judgement]) -> str:
    """One row a claim: what it says, the verdict at the paper's size, the direction at reduced size, and what ran."""
    rows = []
    for one in judged:
        where = f" {{doc}}`{one.claim.chapter}`" if one.claim.chapter else ""
        name = f"[{one.claim.id}](#claim-{one.claim.id.lower()})"
        reduced = one.reduced[one.claim.primary]
        told = "not asked" if reduced is None else reduced.word
        if reduced is not None and (reduced.n or reduced.ran):
            told += f": {'; '.join(filter(None, (_numbers(reduced), reduced.ran)))}"
        rows.append([name, f"{one.claim.title} ({one.claim.section}){where}", f"**{one.verdict}**", told])
    return table(["", "claim", "verdict", "at reduced size"], rows)


def verdicts(judged: Sequence[claims.Judgement]) -> str:
    """How many claims have which verdict, in a phrase."""
    return _counted([one.verdict for one in judged], claims.VERDICTS)


def directions(judged: Sequence[claims.Judgement]) -> str:
    """How many claims have which direction at reduced size, in a phrase; those that are not asked there left out."""
    found = [one.direction for one in judged if one.direction is not None]
    return _counted(found, claims.DIRECTIONS)


def _counted(found: Sequence[str], words: Sequence[str]) -> str:
    return ", ".join(f"{found.count(word)} {word}" for word in words if word in found)


def chance(judged: Sequence[claims.Judgement]) -> str:
    """What chance alone would have said of the primary parts at reduced size, in a sentence."""
    count, held, expected, least = claims.chance(judged)
    if not count:
        return "No primary part has enough repetitions at reduced size yet."
    return (
        f"Primary parts with enough repetitions at reduced size: {count}, of which {held} came out as the paper says. "
        f"Were nothing of it true, chance alone would give {expected:.2g} of them (2.5 % each), and at least one with "
        f"probability {least:.2g}; nothing is corrected for that."
    )


def words(tier: str) -> str:
    """The words that a part can come to at one size, each with its meaning, as a list of definitions."""
    return "\n\n".join(f"{word}\n: {meaning}" for word, meaning in claims.WORDS[tier].items())


def ledger(judged: Sequence[claims.Judgement]) -> str:
    """Every claim with the paper's numbers, the rule of its primary part and what came out; the others folded."""
    blocks = []
    for one in judged:
        claim, at = one.claim, one.claim.primary
        lines = [f"(claim-{claim.id.lower()})=", f"## {claim.id}: {claim.title}", "", claim.claim, ""]
        lines += [f"* **Paper** ({claim.section}): {claim.paper}.", f"* **Rule**: {claim.rule}"]
        lines.append(f"* **At the paper's size**: {_told(one.paper[at])}")
        reduced = one.reduced[at]
        lines.append(f"* **At reduced size**: {'not asked' if reduced is None else _told(reduced)}")
        if claim.chapter:
            lines.append(f"* **Chapter**: {{doc}}`{claim.chapter}`")
        rest = [i for i in range(len(claim.parts)) if i != at]
        if rest:
            rows = [
                [claim.parts[i].name, claim.parts[i].rule, *(_told(found) for found in (one.paper[i], one.reduced[i]))]
                for i in rest
            ]
            lines += ["", f":::{{dropdown}} Secondary parts ({len(rest)}), which turn no verdict"]
            lines += [table(["part", "rule", "at the paper's size", "at reduced size"], rows), ":::"]
        blocks.append("\n".join([*lines, "", f"Verdict: **{one.verdict}**"]))
    return "\n\n".join(blocks)


def _told(found: claims.Outcome | None) -> str:
    """One outcome: its word, the numbers, how many repetitions, and what ran."""
    if found is None:
        return "not asked"
    return f"*{found.word}* ({'; '.join(filter(None, (_numbers(found), found.ran)))})"


def _numbers(found: claims.Outcome) -> str:
    return found.note + (f"; n = {found.n}" if found.n else "")


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
        network = _sized(tier.network, tier.width)
        if tier.small is not None:
            small, width, count = tier.small
            network += f"; {_sized(small, width)} on {count:,} images"
        network += "".join(f"; {one} in {chapter.partition('_')[0]}" for chapter, one in tier.networks.items())
        rows.append([f"`{name}`", tier.dataset, images, network, omegas, layers, str(len(tier.seeds))])
    head = ["tier", "data", "images (train and test)", "network", "ω, channels", "ω, layers", "seeds"]
    return table(head, rows)


def pilot(results: Path) -> str:
    """What the pilot of the tier `reduced` says, with its figure, or that it has not been run."""
    from nladv_core import figures
    from nladv_core import pilot as its

    known = claims.records(results / "pilot")
    judged = its.judge(known)
    if judged is None:
        there = {record.key for record in known}
        count = sum(spec.key() in there for spec in its.specs())
        told = f"*Nothing yet*: {count} of the pilot's {len(its.specs())} runs are there."
        return f"{told} Until all are, half the batch is taken."
    rows = []
    for name, by_napl in judged.accuracy.items():
        cells = ["not reached" if y is None else f"{y:.1f} %" for y in by_napl.values()]
        rows.append([name, *cells])
    told = table(["way", *(f"accuracy at NAPL {napl:g}" for napl in its.NAPLS)], rows)
    taken = judged.chosen or f"{its.FIRST}, as one of the ways has no number"
    told += f"\n\nTaken: {taken}. The rule: the highest mean, "
    told += (
        f"but half the batch if it is within {its.CLEARLY:g} points of that. Its control ended {judged.gained:+.1f} "
    )
    told += f"points against the network before linearization, which counts as trained up to {its.PLATEAU:g}."
    first = next(record for record in known if record.key == its.parent().key())
    source = f"reduced, pilot · {first.spec.net} on {first.spec.data} · 1 seed · {len(its.specs())} runs"
    alt = "Accuracy on held-out images over NAPL for three ways of linearizing in fewer steps, with their controls"
    return f"{told}\n\n![{alt}]({figures.inline(its.figure(known, source))})"


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


# --------------------------------------------------------------------------------------------- past this machine


# What a device of one kind is asked to do: a whole tier, all at once.
_MACHINES = (1, 8)
_CORES = (1, 64)
# Shares of a GPU's arithmetic peak; small networks stay far below it.
_SHARES = (0.02, 0.10)
# Dense bfloat16 products of one H200, operations a second (NVIDIA's data sheet).
_PEAK = 989e12


def plan(results: Path) -> dict[str, str]:
    """What the tier `paper` costs, where that goes, and what synthetic records say of 100,000 runs."""
    from nladv_core import campaign, costs

    known = [record for size in _SIZES for record in claims.records(results / size)]
    lengths = costs.lengths_of(known)
    runs, left_out = dict[str, list[RunSpec]](), 0
    for title, specs in costs.whole(campaign.milestones("paper")).items():
        runs.setdefault(title.partition(",")[0], []).extend(specs)  # a chapter's editions together
    rows, total, room, under_way = [], 0.0, 0.0, 0.0
    measured: list[tuple[str, int, int, float, float]] = []
    countable = []
    for name, specs in runs.items():
        told = [spec for spec in specs if costs.countable(spec, lengths)]
        left_out += len(specs) - len(told)
        found = [costs.cost(spec, lengths) for spec in told]
        operations, size = sum(one.operations for one in found), sum(one.bytes for one in found)
        measured.append((name, len(told), sum(spec.recipe.epochs for spec in told), operations, size))
        total, room = total + operations, room + size
        under_way = max([under_way, *(one.checkpoint for one in found)])
        countable += told
    for name, count, epochs, operations, size in measured:
        cells = [
            f"{count}",
            f"{epochs:,}",
            f"{operations / 1e18:.3g}",
            f"{operations / total:.0%}",
            f"{size / 1e9:.2g} GB",
        ]
        rows.append([f"{{doc}}`{name}`", *cells])
    all_runs, all_epochs = sum(row[1] for row in measured), sum(row[2] for row in measured)
    rows.append(["all", f"{all_runs}", f"{all_epochs:,}", f"{total / 1e18:.3g}", "100%", f"{room / 1e9:.2g} GB"])
    where = table(["chapter", "runs", "epochs", "10¹⁸ operations", "share", "weights"], rows)
    if left_out:
        where += f"\n\nNot counted: {left_out} runs on sentences of which no record tells how long they are."
    chain = costs.longest_chain(countable, lengths)
    rates = costs.rates(known, results / "benchmarks")
    bill = []
    for device, rate in sorted(rates.items()):
        for number in _CORES if device == "cpu" else _MACHINES:
            what = f"{number} core{'s' * (number > 1)} like ours" if device == "cpu" else f"{number} × {device}"
            bill.append([what, f"measured, {rate / 1e9:,.0f} × 10⁹ a second each", *_time(total, chain, rate, number)])
    if not any(device != "cpu" for device in rates):
        bill.append(["one H200, or 8", "**not measured**: no record and no benchmark of a GPU is committed", "–", "–"])
        for share in _SHARES:
            for number in _MACHINES:
                how = f"assumed, {share:.0%} of its arithmetic peak"
                bill.append([f"{number} × H200", how, *_time(total, chain, share * _PEAK, number)])
    head = ["device", "rate", "the whole tier", "at the least, for its longest chain of runs"]
    room_told = (
        f"{room / 1e9:.2g} GB of final weights, and while runs are under way up to {under_way / 1e6:.0f} MB for each"
    )
    return {
        "plan_cost": table(head, bill),
        "plan_where": where,
        "plan_room": room_told,
        "plan_runs": f"{all_runs} runs, {all_epochs:,} epochs, {total / 1e18:.3g} × 10¹⁸ operations",
        "plan_bench": _benchmarks(results / "benchmarks"),
        "plan_scale": _scale(results / "benchmarks" / "scale.json"),
    }


def _time(operations: float, chain: float, rate: float, number: int) -> list[str]:
    """Of all operations on so many devices, and of the longest chain on one."""
    return [_hours(max(operations / number, chain) / rate / 3600), _hours(chain / rate / 3600)]


def _hours(hours: float) -> str:
    if hours < 100:
        return f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h"
    days = hours / 24
    return f"{days:,.0f} days" if days < 1000 else f"{days / 365:.1f} years"


def _benchmarks(folder: Path) -> str:
    """The rows of all benchmarks whose results are committed, with the bars that were set before."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text("utf-8")).get("table", []):
            required, ratio = row["required"], row["ratio"]
            bar = "none" if required is None else f"{'at most' if row['costs'] else 'at least'} {required:g}"
            met = required is None or (ratio <= required if row["costs"] else ratio >= required)
            cells = [row["what"], row["baseline"], row["ours"], f"{ratio:.2f}", bar if met else f"{bar}: **missed**"]
            rows.append(cells)
    return (
        table(["what", "baseline", "ours", "ratio", "required"], rows) if rows else "Not run: `make bench` measures it."
    )


def _scale(path: Path) -> str:
    """Times by the number of runs, as `benchmarks/scale.py` left them."""
    if not path.is_file():
        return "Not run: `python benchmarks/scale.py` measures it."
    rows = json.loads(path.read_text("utf-8"))["rows"]
    counts = sorted({row["count"] for row in rows})
    found = {(row["what"], row["count"]): row for row in rows}

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "not tried"
        if "seconds" not in row:
            return f"{row['bytes'] / 1e6:,.0f} MB"
        return f"{row['seconds']:.2g} s" if row["seconds"] < 10 else f"{row['seconds']:,.0f} s"

    lines = [
        [what, *(cell(found.get((what, count))) for count in counts)] for what in dict.fromkeys(r["what"] for r in rows)
    ]
    return table(["", *(f"{count:,} runs" for count in counts)], lines)


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
    """Lines with every "Args:" and the like as a bold word and the entries below it as a list, an example as code."""
    inside = False
    if "Example:" in lines:  # it comes last
        at = lines.index("Example:")
        example = [line[4:] for line in lines[at + 1 :]]
        yield from (*_sections(lines[:at]), "**Example**", "", "```pycon", *example, "```")
        return
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
