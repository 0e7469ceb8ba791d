"""What FP16 and INT8 cost in accuracy: MSN against BN, by method and by kind of scale, on the whole test split.

    python benchmarks/int8.py [TABLE ...] [--data mnist=FOLDER] [--work FOLDER]

Takes the checkpoints that `benchmarks/paper.py TABLE ...` left below `--work`, exports and folds each, calibrates it on
training images and evaluates every precision with ONNX Runtime. Results: benchmarks/results/int8.json, with the answers
that were lost and won against FP32. What is there already and comes of the same checkpoint is not measured again.
Also the network built to be hard (one channel 1,000 times the others) with and without an accuracy budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from paper import HERE, TABLES, Run, runs_of

from msn_deploy.core.artifacts import sha256_of, write_json
from msn_deploy.data import load_split, to_input
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.machine.environment import read_environment
from msn_deploy.model.opened import made_model

RESULT = HERE / "results" / "int8.json"
METHODS = ("entropy", "minmax", "percentile", "mse")
METHOD = "mse"  # where one is taken
SAMPLES = 256
TABLES_MEASURED = ("digits-cnn3", "digits-vgg7", "digits-densenet-bc-22", "mnist-cnn3", "mnist-vgg7", "fashion-vgg7")
ARMS = ("BN", "MSN")
HARD = ("mnist-cnn3", 1000.0, 0.005)


class Network:
    """One checkpoint, exported and folded, with its images."""

    def __init__(self, checkpoint: Path, data: dict[str, str]) -> None:
        from msn_deploy.model.opened import open_model
        from msn_deploy.pipeline.export import export_onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(str(checkpoint), path, dynamic_batch=True)
            model = open_model(path, step="benchmarks/int8.py")
        self.graph, info = model.proto, model.info
        assert info is not None
        assert info.preprocess is not None
        source = data.get(info.data, info.data)
        train, test = (load_split(source, split, **info.preprocess.image_size) for split in ("train", "test"))
        self.calibration = to_input(train.first(SAMPLES).images, info.preprocess)
        self.images, self.labels = to_input(test.images, info.preprocess), test.labels
        self.measure()

    def measure(self) -> None:
        """Calibrate the graph as it is now, by every method, and see which answers it gets right."""
        from msn_deploy.model.graphs import activations
        from msn_deploy.quant.calibrate import quantised_tensors, ranges_from
        from msn_deploy.quant.histograms import collect, samples_of

        found = collect(
            self.graph, samples_of(self.graph, self.calibration), quantised_tensors(self.graph), load=run_on_one_thread
        )
        self.ranges = {method: ranges_from(found, method=method) for method in METHODS}
        everything = collect(
            self.graph, samples_of(self.graph, self.calibration), activations(self.graph), load=run_on_one_thread
        )
        self.maxima = ranges_from(everything, method="minmax")
        self.logits = self.run(self.graph)
        self.right = self.logits.argmax(1) == self.labels

    def run(self, graph: Any) -> np.ndarray:
        """Return the logits of all test images."""
        runner = OrtRunner(made_model(Path("model"), graph, graph.SerializeToString()))
        chunks = (self.images[at : at + 256] for at in range(0, len(self.images), 256))
        return np.concatenate([run_images(runner, chunk) for chunk in chunks])

    def against_fp32(self, graph: Any) -> dict[str, float]:
        """Return how many answers are lost and won, and how far the logits are off."""
        from msn_deploy.model.parity import rung

        logits = self.run(graph)
        right = logits.argmax(1) == self.labels
        return {
            "lost": int((self.right & ~right).sum()),
            "won": int((~self.right & right).sum()),
            "sqnr_db": round(rung("int8", {"y": self.logits}, {"y": logits}).sqnr_db, 2),
        }


def measured(checkpoint: Path, data: dict[str, str]) -> dict[str, Any]:
    """Return what every precision of one checkpoint loses and wins against FP32, in images."""
    from msn_deploy.quant.precision import to_fp16
    from msn_deploy.quant.quantize import quantize

    net = Network(checkpoint, data)
    return {
        "images": len(net.labels),
        "fp32_right": int(net.right.sum()),
        "fp16": net.against_fp32(to_fp16(net.graph)),
        "per_channel": {name: net.against_fp32(quantize(net.graph, net.ranges[name])) for name in METHODS},
        "per_tensor": net.against_fp32(quantize(net.graph, net.ranges[METHOD], per_channel=False)),
    }


def hard(checkpoint: Path, factor: float, max_drop: float, data: dict[str, str]) -> dict[str, Any]:
    """Scale a channel behind the first convolution up, and the next layer's weights for it down: the same function."""
    from dataclasses import asdict

    from onnx import numpy_helper

    from msn_deploy.pipeline.budget import as_allowed, within_budget
    from msn_deploy.quant.quantize import quantize
    from msn_deploy.tasks.task import Score

    net = Network(checkpoint, data)
    first, second = [node for node in net.graph.graph.node if node.op_type == "Conv"][:2]
    tensors = {tensor.name: tensor for tensor in net.graph.graph.initializer}
    for name, where, scale in (
        (first.input[1], np.s_[0], factor),
        (first.input[2], np.s_[0], factor),
        (second.input[1], np.s_[:, 0], 1 / factor),
    ):
        value = numpy_helper.to_array(tensors[name]).copy()
        value[where] *= np.float32(scale)
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    net.measure()
    plain = {name: net.against_fp32(quantize(net.graph, net.ranges[name])) for name in METHODS}
    ranges, maxima = net.ranges[METHOD], net.maxima
    name = net.graph.graph.input[0].name
    runs = [{name: net.images[at : at + 256]} for at in range(0, len(net.images), 256)]

    def accuracy(made: Iterable[dict[str, np.ndarray]]) -> Score:
        logits = np.concatenate([next(iter(outputs.values())) for outputs in made])
        right = logits.argmax(1) == net.labels
        return Score(metric="accuracy", value=right.mean(), samples=len(right), each=right.astype(np.float64))

    verdict = within_budget(net.graph, ranges, maxima, runs=runs, judge=accuracy, max_drop=as_allowed(max_drop))[1]
    record = asdict(verdict)
    found = record.pop("metric")
    record |= {"accuracy_fp32": found["fp32"], "accuracy": found["int8"], "max_drop": found["allowed"]}
    record |= {"drop": found["drop"], "interval": found["interval"]}
    return {"factor": factor, "images": len(net.labels), "plain": plain, "verdict": record}


def checkpoint_of(run: Run, work: Path) -> Path:
    path = work / run.table / f"{run.arm}-{run.recipe.train.seed}" / f"{run.recipe.name}.safetensors"
    if not path.is_file():
        sys.exit(f"{path} is missing; train it first: python benchmarks/paper.py {run.table}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=TABLES_MEASURED)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="where a data set lies")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    options = parser.parse_args()
    data = dict(each.split("=", 1) for each in options.data)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"schema": 1, "runs": []}
    done = {(each["table"], each["arm"], each["seed"]): each for each in result["runs"]}
    for table in options.tables:
        for run in runs_of(TABLES / f"{table}.toml"):
            if run.arm not in ARMS:
                continue
            checkpoint = checkpoint_of(run, options.work)
            key = (table, run.arm, run.recipe.train.seed)
            sha256 = sha256_of(checkpoint)
            if done.get(key, {}).get("checkpoint") != sha256:
                entry = {"table": table, "arm": run.arm, "seed": run.recipe.train.seed, "checkpoint": sha256}
                done[key] = {**entry, **measured(checkpoint, data)}
                print(json.dumps(done[key]), flush=True)
            if table == HARD[0] and run.recipe.train.seed == 0:
                result.setdefault("hard", {})[run.arm] = hard(checkpoint, *HARD[1:], data)
            result |= {"samples": SAMPLES, "environment": read_environment().to_json(), "runs": list(done.values())}
            write_json(RESULT, result)


if __name__ == "__main__":
    main()
