"""Train the paper's own tables: SVHN with VGG7, CIFAR10 with DenseNet-BC, and its GANs, with the norms it compares.

    python benchmarks/paper_tables.py [TABLE ...] [--estimate] [--epochs N] [--jobs 2] [--data svhn=FOLDER]

A table is a file of benchmarks/tables/paper/. Nothing is downloaded: a table whose data are not on this machine is left
out, one that was asked for by name is refused. First a few steps of each network are timed, and the command says how
long the tables will take; with `--estimate` that is all. It can be stopped at any time and typed again: finished
trainings are kept in benchmarks/results/paper-tables/, others go on from their last whole epoch below `--work`.
`--epochs` tries the whole chain with fewer epochs; the results of a trial lie below `--work` alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import accuracy  # noqa: E402  # found beside this file, also by the processes that are started
import paper  # noqa: E402

from msn_deploy.core.errors import MissingDependency, MsnDeployError  # noqa: E402
from msn_deploy.core.reader import tomllib  # noqa: E402
from msn_deploy.data.names import KNOWN  # noqa: E402
from msn_deploy.data.sources import is_local, load_split  # noqa: E402

TABLES, RESULTS = HERE / "tables" / "paper", HERE / "results" / "paper-tables"
STEPS, ENOUGH_S = 30, 10.0  # that are timed of each network, whichever is reached first; at least three steps
_FORWARD = 1 / 3  # of a training step, for an image that is only looked at


class _EnoughError(Exception):
    """Ends a training that was started to be timed."""


def available(tables: list[paper.Table], data: dict[str, str], *, named: bool) -> list[paper.Table]:
    """Return the tables whose data are here. Raises MissingDependency if none is, or one of `named` tables is not."""
    there = []
    for table in tables:
        name = table.runs[0].recipe.data
        if is_local(data.get(name, name)):
            there.append(table)
            continue
        places = f"$MSN_DEPLOY_DATA/{name}" if os.environ.get("MSN_DEPLOY_DATA") else f"$MSN_DEPLOY_DATA, into {name}"
        told = f"{table.path.stem}: {name} is not on this machine, and nothing is downloaded.\n"
        told += f"Put {KNOWN[name].files} into {places}, or name its folder: --data {name}=FOLDER."
        if named:
            raise MissingDependency(told)
        print(f"left out  {told}", flush=True)
    if not there:
        raise MissingDependency("none of the paper's data are on this machine.")
    return there


def step_seconds(run: paper.Run, data: dict[str, str]) -> tuple[float, float]:
    """Time steps of one training as it will be; return the seconds of a step, and how many steps it has."""
    import torch

    from msn_deploy.training import train, train_gan

    times: list[float] = []
    totals: list[float] = []

    def look(done: float, total: float, note: str = "") -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        totals.append(total)
        if len(times) > STEPS or (len(times) > 3 and times[-1] - times[0] > ENOUGH_S):
            raise _EnoughError

    recipe = replace(run.recipe, data=data.get(run.recipe.data, run.recipe.data))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        (train if recipe.gan is None else train_gan)(recipe, out=Path(folder), progress=look)
    spans = [after - before for before, after in itertools.pairwise(times)]
    if not spans:
        raise MsnDeployError(
            f"{run.recipe.data} has images for {len(times)} step of {run.recipe.name}; two are needed."
        )
    return statistics.median(spans), totals[0]


def estimate(table: paper.Table, work: Path, data: dict[str, str]) -> float:
    """Return the seconds that a table still takes, one training at a time; prints what it rests on."""
    left = 0.0
    for arm, first in {run.arm: run for run in reversed(table.todo)}.items():
        seconds, steps = step_seconds(first, data)
        epochs = first.recipe.train.epochs
        share = 1.0
        if first.recipe.gan is None:
            source, size = data.get(first.recipe.data, first.recipe.data), first.recipe.image_size
            counts = [len(load_split(source, split, **size).labels) for split in ("train", "test")]
            share += _FORWARD * counts[1] / counts[0]
        runs = [run for run in table.todo if run.arm == arm]
        to_do = sum(max(0, epochs - _epochs_there(run, work)) for run in runs)
        own = seconds * steps / epochs * to_do * share
        print(
            f"{table.path.stem}  {arm}: {seconds * 1e3:.0f} ms a step, {to_do} epochs to do: {_said(own)}", flush=True
        )
        left += own
    return left


def _epochs_there(run: paper.Run, work: Path) -> int:
    log = run.folder(work) / f"{run.recipe.name}.history.jsonl"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else 0


def _said(seconds: float) -> str:
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def train_gans(table: paper.Table, work: Path, data: dict[str, str]) -> None:
    """Train the GANs of a table that are not there yet, each judged by the BN network that has its seed."""
    import gan

    judges = tomllib.loads(table.path.read_text(encoding="utf-8"))["judge"]
    for run in table.todo:
        seed, name = run.recipe.train.seed, run.recipe.data
        classifier = next((work / judges / f"{accuracy.BASELINE}-{seed}").glob("*_bn.safetensors"), None)
        if classifier is None:
            raise MsnDeployError(
                f"{table.path.stem} is judged by the {accuracy.BASELINE} network of {judges}, seed {seed}, which is "
                f"not below {work}.\nTrain both: python benchmarks/paper_tables.py {judges} {table.path.stem}"
            )
        source = data.get(name, name)
        seen = gan.judged(replace(run.recipe, data=source), run.folder(work), classifier, source)
        table.add({"arm": run.arm, "seed": seed, **seen, "recipe": run.recipe.to_dict()})


def text_of(table: paper.Table) -> str:
    """Return what is known of a table, as Markdown."""
    title = tomllib.loads(table.path.read_text(encoding="utf-8"))["title"]
    done = sorted(table.done, key=lambda each: each["seed"])
    if any("fid" in each for each in done):
        rows = [f"| {title} | seed | score | FID | FID of real images |", "|---|---|---|---|---|"]
        for each in done:
            numbers = f"{each['generated']['score']:.2f} | {each['fid']:.1f} | {each['fid_real']:.1f}"
            rows.append(f"| {each['arm']} | {each['seed']} | {numbers} |")
        return "\n".join(rows)
    rows = [f"| {title} | last epoch, % | best epoch, % | against BN, points (95 %) |", "|---|---|---|---|"]
    for row in accuracy.rows_of({"runs": done}):
        best = [100 * max(each["test_accuracies"]) for each in done if each["arm"] == row.arm]
        last, gap = accuracy.said(row)
        rows.append(f"| {row.arm} | {last} | {statistics.mean(best):.2f} | {gap} |")
    return "\n".join(rows)


def main() -> None:
    assert __doc__ is not None
    parser = paper.parser_of(__doc__, TABLES, HERE.parent / "runs" / "paper-tables")
    parser.add_argument("--estimate", action="store_true", help="say how long it will take, and train nothing")
    parser.add_argument("--epochs", type=int, help="for a trial, in place of the tables' own")
    options = parser.parse_args()
    data, threads = paper.settings_of(options)
    trial: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    work = options.work / f"trial-{options.epochs}" if trial else options.work
    results = work / "results" if trial else RESULTS
    tables = [paper.table_of(TABLES / f"{name}.toml", results, **trial) for name in options.tables]
    tables = available(tables, data, named=options.tables != parser.get_default("tables"))

    import torch

    from msn_deploy.training import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    left = sum(estimate(table, work, data) for table in tables)
    print(
        f"all of it: about {_said(left)} for one training at a time, timed on this machine as busy as it is", flush=True
    )
    if options.estimate:
        return
    of_gans = [table for table in tables if table.runs[0].recipe.gan is not None]
    others = [table for table in tables if table not in of_gans]
    paper.train_all(others, jobs=options.jobs, work=work, data=data, threads=threads)
    for table in of_gans:
        train_gans(table, work, data)
    for table in tables:
        print("\n" + text_of(table))


if __name__ == "__main__":
    try:
        main()
    except MsnDeployError as cause:
        print(cause, file=sys.stderr)
        raise SystemExit(cause.exit_code) from None
