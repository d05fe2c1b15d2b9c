"""The `nladv` command: compute runs, say what is there, execute a chapter, render the book.

Whatever a user can cause is told in one sentence on standard error, with exit status 2. Libraries are imported when a
command needs them, so that `nladv --help` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import errno
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nladv_core.errors import NladvError, SpecError

_KEY = re.compile("[0-9a-f]{12}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except NladvError as error:
        print(f"nladv: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nladv: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nladv status | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if not full and error.errno not in (errno.EACCES, errno.EPERM):
            raise
        where = f"{error.filename}: " if error.filename else ""
        what = "make room" if full else "check its permissions or name another place"
        print(f"nladv: {where}{error.strerror}; {what}, then the same command goes on from there", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nladv", description="Runs, chapters and book of Nonlinear Advantage.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    run = add("run", _run, "Compute the missing runs of a chapter, runs by key, or the run that a JSON file specifies.")
    run.add_argument("what", metavar="chapter|key|spec.json", nargs="+", help="one chapter, one file, or keys")
    run.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    run.add_argument("--devices", type=int, default=1, help="for each run, one after the other: GPUs, or CPU processes")
    status = add("status", _status, "Say which runs are stored, chapter by chapter.")
    why = add("why", _why, "Say why a stored run is used or not, and what computing it would take.")
    why.add_argument("key", help="a run's key, or as much of it as is unique")
    campaign = add("campaign", _campaign, "Compute missing runs of a tier, the most urgent first, for some minutes.")
    campaign.add_argument("--minutes", type=float, required=True, help="stop (between epochs) before they are over")
    campaign.add_argument("--dry-run", action="store_true", help="only say what would be computed")
    campaign.add_argument("--workers", type=int, help="runs at once (default: what the device bears)")
    campaign.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    keep = add("keep", _keep, "For maintainers: copy a tier's finished runs to data/, records, masks and some weights.")
    keep.add_argument("--tier", required=True, help="reduced, paper or pilot")
    keep.add_argument("--store", type=Path, metavar="FOLDER", help="where they are (default: the live store)")
    chapter = add("chapter", _chapter, "Execute one chapter with papermill, and render it as a page.")
    for command in (run, campaign):
        command.add_argument(
            "--compile",
            action=argparse.BooleanOptionalAction,
            help="compile the training step (default: on a GPU, and on a CPU in bfloat16, for runs that last)",
        )
    chapter.add_argument("what", metavar="chapter")
    chapter.add_argument("-o", "--output", type=Path, help="the executed notebook (default: under build/)")
    chapter.add_argument("--no-page", action="store_true", help="only the notebook")
    book = add("book", _book, "Execute the chapters that changed, one by one, and render the book.")
    plan = add("plan", _plan, "Say what a build of the book has to do.")
    plan.add_argument("--json", action="store_true", help="as JSON")
    plan.add_argument("--every-run", action="store_true", help="also missing runs of chapters that are not due")
    plan.add_argument("--batch-minutes", type=float, default=5.0, help="runs share a job up to this time (default: 5)")
    render = add("render", _render, "Render the book from its executed chapters, or one executed notebook.")
    render.add_argument(
        "notebook", type=Path, nargs="?", help="for instance what papermill wrote; its page goes beside it"
    )
    for command in (book, plan, render):
        command.add_argument("--build", type=Path, metavar="FOLDER", help="the build folder (default: build/)")
    download = add("download", _download, "Fetch a data set from its official page and check it.")
    download.add_argument("what", metavar="data set", help="cifar10, cifar100, cinic10, tiny-imagenet or multi30k")
    for command in (run, status, campaign, chapter, book, plan):
        command.add_argument("--tier", help="smoke, quick, reduced or paper (default: quick)")
    for command in (run, chapter):
        command.add_argument(
            "-p",
            dest="parameters",
            nargs=2,
            action="append",
            default=[],
            metavar=("NAME", "VALUE"),
            help="a parameter of the chapter; lists as [1,2] or 1,2",
        )
    return parser


def _parameters(parsed: argparse.Namespace) -> dict[str, Any]:
    for name, _ in parsed.parameters:
        if not name.isidentifier() or name.startswith("_"):  # a notebook keeps these for itself, unchecked
            raise SpecError(f"{name!r} is not the name of a parameter; they are in the chapter's first cell")
    given = {name: _value(text) for name, text in parsed.parameters}
    if parsed.tier is not None:
        given["tier"] = parsed.tier
    return given


def _value(text: str) -> Any:
    """A parameter from the command line: null, true, a number, a list of them (commas do), or else a string."""
    words = {"null": None, "None": None, "true": True, "True": True, "false": False, "False": False}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return float(text)  # 1. and .5 and +1, which JSON does not know
    except ValueError:
        pass
    if text.startswith("["):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise SpecError(f"the value {text!r} is not a list; write it as [1,2] or 1,2") from None
    if "," in text:
        return [_value(part.strip()) for part in text.split(",") if part.strip()]
    return text


def _run(parsed: argparse.Namespace) -> None:
    from nladv_core import experiments, grid, runs, tiers, workers

    given = _parameters(parsed)
    workers.keep_freed_memory()
    how = {"workers": parsed.workers, "compiled": parsed.compile, "devices": parsed.devices}
    what = parsed.what[0]
    if all(_KEY.fullmatch(key) for key in parsed.what):
        if set(given) - {"tier"}:
            raise SpecError("runs given by key take no parameters but the tier; give the chapter instead")
        refresh, start = given.get("tier") in tiers.LIVE, time.perf_counter()
        number = f"{len(parsed.what)} run{'s' * (len(parsed.what) > 1)}"
        print(f"{number}: computing ...", flush=True)
        runs.run(grid.specs(parsed.what, given.get("tier")), refresh=refresh, **how)
        print(f"{number}: done in {time.perf_counter() - start:.1f} s", flush=True)
        return
    if len(parsed.what) > 1:
        raise SpecError("give one chapter, one file, or several keys (12 hex digits each)")
    if what.endswith(".json"):
        if given:
            raise SpecError("a run given as a file takes no parameters; write them into the file")
        spec = runs.RunSpec.from_json(_json(Path(what)))
        frame = runs.run([spec], **how)
    else:
        frame = experiments.chapter(what, given).run(**how)
    if frame.empty:
        print("nothing to compute: this chapter needs no runs")
        return
    columns = ["key", "net", "data", "seed", "granularity", "omega", "test_accuracy", "napl", "active_fraction"]
    print(frame[columns].to_string(index=False))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error.strerror}); give a chapter or a JSON file with a run") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON ({error}); expected the fields of a run") from None


def _status(parsed: argparse.Namespace) -> None:
    from nladv_core import grid

    print("\n".join(grid.status(parsed.tier)))


def _download(parsed: argparse.Namespace) -> None:
    from nladv_core import downloads

    print(downloads.download(parsed.what))


def _why(parsed: argparse.Namespace) -> None:
    from nladv_core import campaign

    print(campaign.why(parsed.key))


def _campaign(parsed: argparse.Namespace) -> None:
    from nladv_core import campaign

    campaign.campaign(
        parsed.tier or "quick",
        minutes=parsed.minutes,
        device=parsed.device,
        workers=parsed.workers,
        compiled=parsed.compile,
        dry_run=parsed.dry_run,
        say=lambda line: print(line, flush=True),
    )


def _keep(parsed: argparse.Namespace) -> None:
    from nladv_core import kept
    from nladv_core.store import Store

    if parsed.store is not None and not parsed.store.is_dir():
        raise SpecError(f"{parsed.store} is not a folder; name one with runs, such as what NLADV_STORE names")
    kept.keep(parsed.tier, Store(parsed.store), say=lambda line: print(line, flush=True))


def _chapter(parsed: argparse.Namespace) -> None:
    from nladv_core import book, experiments

    given = _parameters(parsed)
    kind = next((kind for name, kind in experiments.CHAPTERS.items() if name.startswith(f"{parsed.what}_")), None)
    notebook = book.run_chapter(kind.name if kind else parsed.what, given, parsed.output)
    print(notebook, flush=True)
    if not parsed.no_page:
        print(book.page(notebook))


def _book(parsed: argparse.Namespace) -> None:
    from nladv_core import book

    print(book.build(**({} if parsed.tier is None else {"tier": parsed.tier}), folder=parsed.build))


def _plan(parsed: argparse.Namespace) -> None:
    from nladv_core import grid

    plan = grid.plan(
        parsed.tier or "quick", parsed.build, batch_minutes=parsed.batch_minutes, every_run=parsed.every_run
    )
    if parsed.json:
        print(json.dumps(plan.to_json(), indent=2))
        return
    for name, batch in plan.batches.items():
        after = f", after {', '.join(batch.after)}" if batch.after else ""
        print(f"batch {name}: {len(batch.keys)} runs, about {batch.seconds:.0f} s on one core{after}")
    for name, batches in plan.chapters.items():
        print(f"chapter {name}" + (f", after {', '.join(batches)}" if batches else ""))
    print("pages" if plan.pages else "nothing has changed")


def _render(parsed: argparse.Namespace) -> None:
    from nladv_core import book

    print(book.page(parsed.notebook) if parsed.notebook else book.render(parsed.build))


if __name__ == "__main__":
    sys.exit(main())
