"""What INT8 costs a U-Net and a detector in their own metric, and the table of both for docs/guides/tasks.md.

    python benchmarks/paper.py scenes-unet scenes-detector       # trains; can be stopped and typed again
    python benchmarks/task_nets.py [TABLE ...] [--work FOLDER]   # exports, calibrates, evaluates

Takes the checkpoints of seed 0 that paper.py left below `--work`, exports and folds each, and calibrates it with a
budget of one point. Results: benchmarks/results/task-nets.json. What comes of the same checkpoint is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accuracy
from int8 import checkpoint_of
from paper import HERE, TABLES, runs_of

from msn_deploy.core.artifacts import sha256_of, write_json
from msn_deploy.core.errors import GateError
from msn_deploy.machine.environment import read_environment

RESULT = HERE / "results" / "task-nets.json"
TABLES_MEASURED = ("scenes-unet", "scenes-detector")
ARMS, SEED = ("BN", "MSN"), 0
MAX_DROP = 0.01
UNEVEN_POINTS = 10


def measured(checkpoint: Path) -> dict[str, Any]:
    """Return the verdict of the budget, and the metrics of every precision on the whole test split."""
    from msn_deploy.pipeline.calibrate import calibrate
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.pipeline.fp16 import cast_to_fp16

    with tempfile.TemporaryDirectory() as folder:
        onnx, half, int8 = (Path(folder) / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
        export_onnx(str(checkpoint), onnx, dynamic_batch=True)
        cast_to_fp16(onnx, half)
        try:
            found = calibrate(onnx, int8, max_drop=MAX_DROP).verdict
        except GateError as cause:
            verdict: dict[str, Any] = {"kind": "FP16", "why": str(cause)}
        else:
            assert found is not None
            verdict = {**asdict(found), "ranking": len(found.ranking)}
        files = {"checkpoint": checkpoint, "fp32": onnx, "fp16": half, "int8": int8}
        scores = {name: evaluate(file) for name, file in files.items() if file.is_file()}
    return {
        "verdict": verdict,
        "metrics": {name: {score.metric: score.value, **score.metrics} for name, score in scores.items()},
    }


def text() -> str:
    """Return what both tables came to, as Markdown."""
    told = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.is_file() else []
    verdicts = {(each["table"], each["arm"]): each["verdict"] for each in told}
    rows, uneven = list[str](), list[str]()
    for table in TABLES_MEASURED:
        result = accuracy.read(table)
        if result is None:
            continue
        for row in accuracy.rows_of(result):
            each = [100 * accuracy.metric_of(run) for run in result["runs"] if run["arm"] == row.arm]
            if max(each) - min(each) > UNEVEN_POINTS:
                uneven.append(f"{row.arm} {', '.join(f'{value:.1f}' for value in each)}")
            value, difference = accuracy.said(row)
            verdict = verdicts.get((table, row.arm))
            rows.append(f"| {result['title']} | {row.arm} | {value} | {difference} | {_verdict(verdict)} |")
    if not rows:
        return (
            "Not measured yet: `make paper TABLES='scenes-unet scenes-detector'` and `python benchmarks/task_nets.py`."
        )
    head = "| | norm | %, mean ± deviation (seeds) | against BN, points (95 %) | INT8 within one point, seed 0 |"
    lines = [head, "|---|---|---|---|---|", *rows]
    if uneven:
        lines += [
            "",
            f"Seeds that differ by more than {UNEVEN_POINTS} points: {'; '.join(uneven)}. Such a training "
            "stays for many epochs where nearly every pixel is background; one that leaves it early comes near "
            "BatchNorm's result.",
        ]
    shipped, other = map(accuracy.read, ("scenes-unet", "scenes-unet-rates"))
    if shipped is not None and other is not None:
        said = "; ".join(f"{row.arm} {accuracy.said(row)[0]}" for row in accuracy.rows_of(other))
        own, rate = (each["runs"][0]["recipe"]["train"]["learning_rate"] for each in (shipped, other))
        lines += ["", f"The recipes of the U-Net train at {own}. At {rate} its mIoU in % is: {said}."]
    return "\n".join(lines)


def _verdict(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    drop = verdict.get("metric")
    left = f", {len(verdict['left_out'])} layers in FP16" if verdict.get("left_out") else ""
    return verdict["kind"] + left + (f" ({drop['name']} {-100 * drop['drop']:+.2f})" if drop else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=TABLES_MEASURED)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    options = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"schema": 1, "runs": []}
    done = {(each["table"], each["arm"]): each for each in result["runs"]}
    for table in options.tables:
        for run in runs_of(TABLES / f"{table}.toml"):
            if run.arm not in ARMS or run.recipe.train.seed != SEED:
                continue
            checkpoint = checkpoint_of(run, options.work)
            sha256 = sha256_of(checkpoint)
            if done.get((table, run.arm), {}).get("checkpoint") == sha256:
                continue
            entry = {"table": table, "arm": run.arm, "seed": SEED, "checkpoint": sha256}
            done[table, run.arm] = {**entry, **measured(checkpoint)}
            print(json.dumps(done[table, run.arm]["verdict"]), flush=True)
            result |= {"max_drop": MAX_DROP, "environment": read_environment().to_json(), "runs": list(done.values())}
            write_json(RESULT, result)


if __name__ == "__main__":
    main()
