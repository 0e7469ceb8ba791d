"""What each step of `calibrate` is worth: ranges by one method, channels of one size, the method that keeps the most.

    python benchmarks/int8_steps.py [CASE ...] [--work FOLDER]

Takes the float checkpoints that `benchmarks/paper.py` and `benchmarks/qat.py` left below `--work`, and trains what is
missing. Each file runs in ONNX Runtime on the whole test split; the calibration images are of the training split.
Result: benchmarks/results/int8-steps.json. What is there and comes of the same checkpoint is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import qat
from paper import HERE

from msn_deploy.core.artifacts import sha256_of, write_json
from msn_deploy.machine.environment import read_environment

RESULT = HERE / "results" / "int8-steps.json"
_ONE: dict[str, tuple[int, ...]] = {"BN": (0,), "MSN": (0,)}
CASES: dict[str, tuple[qat.Case, dict[str, tuple[int, ...]]]] = {
    "cnn3": (qat.Case(title="cnn3, digits", recipe="cnn3"), _ONE),
    "vgg7": (qat.Case(title="VGG7, digits", recipe="vgg7", table="digits-vgg7"), _ONE),
    "densenet": (qat.CASES["densenet"], {"BN": (0, 1, 2), "MSN": (0, 1)}),
    "mobile": (qat.CASES["mobile"], _ONE),
    "thousand": (qat.CASES["thousand"], _ONE),
    "detector": (qat.CASES["detector"], _ONE),
    "unet": (qat.CASES["unet"], _ONE),
}
STEPS = ("mse", "one size", "default")


def measured(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Return the metric and the SQNR after each step, and what the last one chose."""
    from msn_deploy.engine.ort import run_on_one_thread
    from msn_deploy.model.feeds import joined
    from msn_deploy.model.opened import open_model, with_info
    from msn_deploy.model.parity import rung
    from msn_deploy.pipeline.evaluate import open_image_model, require_task
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.pipeline.images import calibration_inputs, split_for
    from msn_deploy.quant.calibrate import chosen, quantised_tensors, ranges_from
    from msn_deploy.quant.equalize import equalize
    from msn_deploy.quant.fp32_nodes import fold_constants
    from msn_deploy.quant.histograms import collect
    from msn_deploy.quant.quantize import quantize
    from msn_deploy.tasks.scoring import score_of

    fp32 = folder / "float.onnx"
    export_onnx(str(checkpoint), fp32, dynamic_batch=True)
    model = open_model(fp32, step="benchmarks/int8_steps.py")
    assert model.info is not None
    given = calibration_inputs(model, None, samples=256)
    plain = fold_constants(model.proto, load=run_on_one_thread)
    began = time.process_time()
    graph, moved = equalize(plain, given.samples, load=run_on_one_thread)
    seconds = {"one size": time.process_time() - began}
    seen = [collect(each, given.samples, quantised_tensors(each), load=run_on_one_thread) for each in (plain, graph)]
    began = time.process_time()
    choice = chosen(graph, given.samples, seen[1], load=run_on_one_thread)
    seconds["method"] = time.process_time() - began
    by_mse = [ranges_from(each, method="mse") for each in seen]
    made = (quantize(plain, by_mse[0]), quantize(graph, by_mse[1]), quantize(graph, choice.ranges))
    files = [folder / f"{at}.onnx" for at in range(len(made))]
    for file, each in zip(files, made, strict=True):
        file.write_bytes(with_info(each, model.info.with_precision("int8")))
    opened = [open_image_model(file, 1) for file in (fp32, *files)]
    wanted = require_task(model.info, model=str(fp32))
    split = split_for(model.info, opened[0].prep, None, "test", task=wanted, lazy=True)
    starts = range(0, len(split.images), 64)
    chunks = [opened[0].prepared(np.asarray(split.images[at : at + 64])) for at in starts]
    outputs = [[each.run(chunk) for chunk in chunks] for each in opened]
    task = opened[0].task(split.classes)
    assert task is not None
    scores = [
        score_of(task, split.labels, opened[0].prep, zip(map(len, chunks), each, strict=True)) for each in outputs
    ]
    kept = [rung("int8", joined(outputs[0]), joined(each)).sqnr_db for each in outputs[1:]]
    return {
        "metric": scores[0].metric,
        "images": len(split.images),
        "fp32": scores[0].value,
        "value": {name: score.value for name, score in zip(STEPS, scores[1:], strict=True)},
        "sqnr_db": {name: round(each, 2) for name, each in zip(STEPS, kept, strict=True)},
        "method": choice.method,
        "on_samples_db": {name: round(each, 2) for name, each in choice.sqnr_db.items()},
        "layers": len(moved),
        "cpu_seconds": {name: round(each, 2) for name, each in seconds.items()},
    }


def text() -> str:
    """Return the table: one row per network and norm, means over the seeds."""
    if not RESULT.is_file():
        return "Not measured yet: `python benchmarks/int8_steps.py`."
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in json.loads(RESULT.read_text(encoding="utf-8"))["runs"]:
        found.setdefault((run["title"], run["arm"]), []).append(run)
    lines = [
        "| network (metric) | norm, seeds | FP32 | `mse` loses | channels of one size, `mse` | `calibrate` "
        "| SQNR, dB: one after the other | methods taken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (title, arm), runs in found.items():
        lost = [statistics.mean(100 * (run["fp32"] - run["value"][step]) for run in runs) for step in STEPS]
        kept = [statistics.mean(run["sqnr_db"][step] for run in runs) for step in STEPS]
        fp32 = statistics.mean(100 * run["fp32"] for run in runs)
        cells = " | ".join(f"{each:.2f}" for each in (fp32, *lost))
        lines.append(
            f"| {title} ({runs[0]['metric']}) | {arm}, {len(runs)} | {cells} "
            f"| {' / '.join(f'{each:.1f}' for each in kept)} | {', '.join(run['method'] for run in runs)} |"
        )
    every = [run for runs in found.values() for run in runs]
    worst = max(run["sqnr_db"]["mse"] - run["sqnr_db"]["default"] for run in every)
    longest = {step: max(run["cpu_seconds"][step] for run in every) for step in ("one size", "method")}
    said = (
        "Points of the metric, means over the seeds, on test splits; the method is chosen on calibration images, which "
        f"are of the training split. Of {len(every)} networks none keeps more than {worst:.1f} dB less than by "
        f"`mse` alone. Channels of one size take {longest['one size']:.1f} s of CPU time and the choice of "
        f"the method {longest['method']:.1f} s at most. Raw, by `python benchmarks/int8_steps.py`: "
        "`benchmarks/results/int8-steps.json`."
    )
    return "\n".join([*lines, "", said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    options = parser.parse_args()
    qat.register()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"schema": 1, "runs": []}
    done = {(run["case"], run["arm"], run["seed"]): run for run in result["runs"]}
    order = [(name, arm, seed) for name, (_, arms) in CASES.items() for arm in arms for seed in arms[arm]]
    for name, arm, seed in order:
        if name not in options.cases:
            continue
        case = CASES[name][0]
        checkpoint = qat.float_checkpoint(name, case, arm, seed, options.work, {})
        sha256 = sha256_of(checkpoint)
        if done.get((name, arm, seed), {}).get("checkpoint") == sha256:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measured(checkpoint, Path(folder))
        facts = {"case": name, "title": case.title, "arm": arm, "seed": seed, "checkpoint": sha256}
        done[name, arm, seed] = {**facts, **found}
        print(json.dumps(done[name, arm, seed]), flush=True)
        runs = [done[key] for key in order if key in done]
        write_json(RESULT, {"schema": 1, "runs": runs, "environment": read_environment().to_json()})


if __name__ == "__main__":
    main()
