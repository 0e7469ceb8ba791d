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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.home import tomllib
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


def runs_of(path: Path) -> list[Run]:
    """Return the trainings of a table, seed by seed, so that a table that is cut short compares all arms."""
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
    out = work / run.table / f"{run.arm.replace(' ', '-').replace('/', '-')}-{run.recipe.train.seed}"
    recipe = replace(run.recipe, data=data.get(run.recipe.data, run.recipe.data))
    began = out / f"{recipe.name}.state.safetensors"
    result = train(recipe, out=out, limit_train=run.limit_train, resume=began.is_file())
    last = result.history[-1]
    return {
        "arm": run.arm,
        "seed": run.recipe.train.seed,
        "test_accuracy": result.info.metrics["test_accuracy"],
        "train_loss": last["train_loss"],
        "test_accuracies": [entry["test_accuracy"] for entry in result.history],
        "train_seconds": round(sum(entry["train_seconds"] for entry in result.history), 1),
        "recipe": run.recipe.to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=sorted(path.stem for path in TABLES.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at the same time")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="where a data set lies")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    options = parser.parse_args()
    data = dict(each.split("=", 1) for each in options.data)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    todo: list[Run] = []
    done: dict[str, list[dict[str, Any]]] = {}
    for name in options.tables:
        runs = runs_of(TABLES / f"{name}.toml")
        file = RESULTS / f"{name}.json"
        kept = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
        done[name] = [each for each in kept if is_current(each, runs)]
        there = {(each["arm"], each["seed"]) for each in done[name]}
        todo += [run for run in runs if run.key not in there]
    print(
        f"{sum(map(len, done.values()))} trainings are there, {len(todo)} to do, {options.jobs} at a time", flush=True
    )
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(trained, run, options.work, data, threads): run for run in todo}
        for count, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            done[run.table].append(result)
            _write(run.table, done[run.table])
            left = (time.monotonic() - began) / count * (len(todo) - count)
            print(
                f"{count}/{len(todo)}  {run.table}  {run.arm}, seed {run.recipe.train.seed}: "
                f"{result['test_accuracy']:.2%}  (about {left / 60:.0f} min left)",
                flush=True,
            )


def _write(table: str, runs: list[dict[str, Any]]) -> None:
    text = tomllib.loads((TABLES / f"{table}.toml").read_text(encoding="utf-8"))
    order = [arm["name"] for arm in text["arm"]]
    result = {
        "schema": 1,
        "title": text["title"],
        "limit_train": text.get("limit_train"),
        "environment": read_environment().to_json(),
        "runs": sorted(runs, key=lambda each: (order.index(each["arm"]), each["seed"])),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{table}.json", result)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
