"""Train the tables of accuracy: every arm of every table with every seed, each training once.

    python benchmarks/paper.py [TABLE ...] [--jobs 2] [--data mnist=FOLDER] [--work FOLDER]

A table is a file of benchmarks/tables/, its result benchmarks/results/paper/TABLE.json. What a result already holds is
not trained again, unless its recipe has changed; a training that was killed goes on from its last whole epoch. So the
command can be stopped at any time and typed again. The checkpoints stay below `--work`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accuracy import EACH, METRICS, metric_of

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.reader import tomllib
from msn_deploy.core.recipes import Recipe, load_recipe, recipe_from_dict
from msn_deploy.machine.environment import read_environment

HERE = Path(__file__).resolve().parent
TABLES, RESULTS = HERE / "tables", HERE / "results" / "paper"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: which arm of which table, with which seed."""

    table: str
    arm: str
    recipe: Recipe
    limit_train: int | None

    @property
    def key(self) -> tuple[str, int]:
        return self.arm, self.recipe.train.seed

    def folder(self, work: Path) -> Path:
        return work / self.table / f"{self.arm.replace(' ', '-').replace('/', '-')}-{self.recipe.train.seed}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's file, its trainings, where its result lies, and what of it is there."""

    path: Path
    result: Path
    runs: list[Run]
    done: list[dict[str, Any]] = field(default_factory=list)

    @property
    def todo(self) -> list[Run]:
        there = {(each["arm"], each["seed"]) for each in self.done}
        return [run for run in self.runs if run.key not in there]

    def add(self, run: dict[str, Any]) -> None:
        """Keep what a training came to, in the result's file, too."""
        self.done.append(run)
        text = tomllib.loads(self.path.read_text(encoding="utf-8"))
        order = [arm["name"] for arm in text["arm"]]
        result = {
            "schema": 1,
            "title": text["title"],
            "limit_train": text.get("limit_train"),
            "environment": read_environment().to_json(),
            "runs": sorted(self.done, key=lambda each: (order.index(each["arm"]), each["seed"])),
        }
        self.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.result, result)


def table_of(path: Path, results: Path, **train: Any) -> Table:
    """Return a table, with options of its trainings replaced, and what `results` holds of it as it is now."""
    runs = [replace(run, recipe=run.recipe.override(**train)) if train else run for run in runs_of(path)]
    file = results / f"{path.stem}.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
    return Table(path=path, result=file, runs=runs, done=[each for each in kept if is_current(each, runs)])


def runs_of(path: Path) -> list[Run]:
    """Return the trainings of a table, seed by seed."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    runs = []
    for seed in table["seeds"]:
        for arm in table["arm"]:
            own = {key: value for key, value in arm.items() if key not in ("name", "recipe", "train")}
            base = load_recipe(arm["recipe"]).to_dict()
            train = {**base["train"], **table.get("train", {}), **arm.get("train", {}), "seed": seed}
            merged = {**base, **table.get("recipe", {}), **own, "train": train}
            recipe = recipe_from_dict(merged, source=f"{path.name}, {arm['name']}")
            runs.append(Run(table=path.stem, arm=arm["name"], recipe=recipe, limit_train=table.get("limit_train")))
    return runs


def is_current(result: dict[str, Any], runs: list[Run]) -> bool:
    """Tell whether a result is of a training that the table still asks for, with the recipe that it has now."""
    wanted = {run.key: run.recipe for run in runs}.get((result["arm"], result["seed"]))
    return recipe_from_dict(result["recipe"], source="a result") == wanted


def trained(run: Run, work: Path, data: dict[str, str], threads: int) -> dict[str, Any]:
    """Train one run, or go on with it, in this process, and return what the result keeps of it."""
    import gap_nets
    import torch

    from msn_deploy.training import keep_freed_memory, train

    gap_nets.register()
    keep_freed_memory()
    torch.set_num_threads(threads)
    out = run.folder(work)
    recipe = replace(run.recipe, data=data.get(run.recipe.data, run.recipe.data))
    began = out / f"{recipe.name}.state.safetensors"
    result = train(recipe, out=out, limit_train=run.limit_train, resume=began.is_file())
    last, metric = result.history[-1], METRICS[recipe.task]
    return {
        "arm": run.arm,
        "seed": run.recipe.train.seed,
        **{key: value for key, value in result.info.metrics.items() if key.startswith("test_")},
        "train_loss": last["train_loss"],
        EACH[metric]: [entry[metric] for entry in result.history],
        "train_seconds": round(sum(entry["train_seconds"] for entry in result.history), 1),
        "recipe": run.recipe.to_dict(),
    }


def parser_of(text: str, tables: Path, work: Path) -> argparse.ArgumentParser:
    """Return a parser for TABLE ..., --jobs, --threads, --data and --work."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=sorted(path.stem for path in tables.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at the same time")
    parser.add_argument("--threads", type=int, help="of each training; otherwise the cores divided by --jobs")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="where a data set lies")
    parser.add_argument("--work", type=Path, default=work)
    return parser


def settings_of(options: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Return the folders of `--data` by name, and the threads of each training."""
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return dict(each.split("=", 1) for each in options.data), threads


def train_all(tables: list[Table], *, jobs: int, work: Path, data: dict[str, str], threads: int) -> None:
    """Train what is not there yet, `jobs` at the same time, each in a process of its own."""
    owner = {table.path.stem: table for table in tables}
    # One seed of all tables after the other, so that what is cut short compares all arms.
    todo = sorted((run for table in tables for run in table.todo), key=lambda run: run.recipe.train.seed)
    there = sum(len(table.done) for table in tables)
    print(f"{there} trainings are there, {len(todo)} to do, {jobs} at a time", flush=True)
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(trained, run, work, data, threads): run for run in todo}
        for count, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            owner[run.table].add(result)
            left = (time.monotonic() - began) / count * (len(todo) - count)
            print(
                f"{count}/{len(todo)}  {run.table}  {run.arm}, seed {run.recipe.train.seed}: "
                f"{metric_of(result):.2%}  (about {left / 60:.0f} min left)",
                flush=True,
            )


def main() -> None:
    assert __doc__ is not None
    options = parser_of(__doc__, TABLES, HERE.parent / "runs" / "paper").parse_args()
    data, threads = settings_of(options)
    tables = [table_of(TABLES / f"{name}.toml", RESULTS) for name in options.tables]
    train_all(tables, jobs=options.jobs, work=options.work, data=data, threads=threads)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
