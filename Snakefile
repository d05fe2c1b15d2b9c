# The grid: runs -> chapters -> book, in parallel, on one machine or a cluster.
#
#   make book                                                                       the book at `quick`
#   snakemake --workflow-profile profiles/local --config tier=reduced               at another size
#   snakemake --workflow-profile profiles/slurm --config tier=paper -- runs         every missing run of a tier, on SLURM
#
# Which runs and chapters are due, and what each waits for, is asked of the library (`nladv plan` prints it), which goes
# by content. So there are no dates here, and no results among the outputs: these are marks of one call, see `grid.Work`.
# More of --config: build=FOLDER, batch_minutes=M (runs share a job until it takes M minutes on one core), gpu=SHARE (of
# one GPU, for each run: 1, or 0.25 for four runs at once on one), gres=WORDS (for such a GPU on a cluster: gpu:1).

import os
import shlex
import sys
from functools import cache
from pathlib import Path

from nladv_core import grid
from nladv_core.errors import NladvError

TIER = str(config.get("tier", "quick"))
BUILD = Path(config.get("build", "build"))
NLADV = f"{shlex.quote(sys.executable)} -m nladv_core.cli"

@cache
def work():
    """This call's plan and marks; only in the call's main process, and not before it has read its command line."""
    try:
        plan = grid.plan(
            TIER,
            BUILD,
            batch_minutes=float(config.get("batch_minutes", 5)),
            every_run="runs" in workflow.dag_settings.targets,
        )
        if not (plan.pages or plan.batches):
            print("book: nothing has changed", flush=True)
        gpu()
        return grid.Work(BUILD, plan, alone=not workflow.dryrun)
    except NladvError as error:  # raised, it would come with a page about rules and wildcards; nothing has begun yet
        print(f"nladv: {error}", file=sys.stderr, flush=True)
        os._exit(2)


def cores():
    """Of a job with several runs. A cluster has no number of cores in all, and the engine refuses to say one."""
    return int(config["batch_threads"] if "batch_threads" in config else workflow.cores)


def gpu():
    return grid.gpu_share(config.get("gpu", 0))


def planned(wildcards):
    """The plan of the call that a job belongs to, also in a process of that job alone."""
    return work().plan if workflow.is_main_process else grid.Plan.read(Path(wildcards.work) / "plan.json")


def batch(wildcards):
    return planned(wildcards).batches[wildcards.batch]


def needs(kind, names):
    """Inputs: the marks of these jobs. A process of one job has been started after them, and asks no more."""
    found = lambda wildcards: [f"{work().folder}/{kind}/{name}" for name in names(wildcards)]
    return lambda wildcards: found(wildcards) if workflow.is_main_process else []


localrules:
    all,
    runs,


wildcard_constraints:
    work=r".*/\.grid/[^/]+",
    batch="[0-9a-f]{12}",
    chapter="[^/]+",


rule all:
    default_target: True
    input:
        needs("page", lambda w: ["book"] if work().plan.pages else []),


rule runs:
    input:
        needs("batch", lambda w: work().plan.batches),


rule batch:
    input:
        needs("batch", lambda w: batch(w).after),
    output:
        touch("{work}/batch/{batch}"),
    params:
        which=lambda w: " ".join(batch(w).keys),
    priority: 1  # chapters wait for them
    threads: lambda w: batch(w).at_once(cores(), gpu())
    resources:
        runtime=lambda w, threads: batch(w).minutes(threads),
        # One machine counts shares of its GPU; a cluster gives a job one.
        gpu_percent=lambda w, threads: round(100 * gpu() * threads),
        gres=lambda w: str(config.get("gres", "gpu:1")) if gpu() else "",
    shell:
        "{NLADV} run {params.which} --tier {TIER} --workers {threads}"


rule chapter:
    input:
        needs("batch", lambda w: planned(w).chapters[w.chapter]),
    output:
        touch("{work}/chapter/{chapter}"),
    params:
        out=lambda w: shlex.quote(str(BUILD / "notebooks" / f"{w.chapter}.ipynb")),
    resources:
        runtime=60,
    shell:
        "{NLADV} chapter {wildcards.chapter} --tier {TIER} --no-page -o {params.out}"


rule book:
    input:
        needs("chapter", lambda w: planned(w).chapters),
    output:
        touch("{work}/page/book"),
    params:
        build=shlex.quote(str(BUILD)),
    resources:
        runtime=30,
    shell:
        "{NLADV} render --build {params.build}"


onerror:
    print(f"the build stopped, what is finished is kept; the engine's own words: {log[0] if log else 'none'}", file=sys.stderr, flush=True)
