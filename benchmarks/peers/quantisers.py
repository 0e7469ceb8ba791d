"""INT8 of the same networks by several quantisers: `calibrate` and training under INT8 against those of others.

    python benchmarks/peers/quantisers.py [NETWORK ...] [--work FOLDER] [--environment FOLDER] [--out FILE]

ONNX Runtime's quantiser and that of NVIDIA's Model-Optimizer, which is installed into an environment of its own without
its GPU packages (see quantiser.py for the settings). Trains the float networks below `--work` on digits, unless
`benchmarks/paper.py` or `benchmarks/qat.py` left them there: ten minutes of CPU time. Every tool gets the same file and
the same training images, in two processes, one after the other: are both files the same?

Each file runs in ONNX Runtime with all optimisations off, so that it computes what its nodes say and not what ONNX
Runtime's kernels for this CPU make of them, on the whole test split. TensorRT-RTX then builds it, which needs no GPU.
Seconds are the quantiser's own, the shorter of both runs. Training under INT8 is short: EPOCHS epochs.

FILE is written after each network; what is there and comes of the same checkpoint is not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, numpy_helper
from quantiser import TOOLS

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "networks"))
import qat
from run import environment

from msn_deploy.core.artifacts import sha256_of, write_json
from msn_deploy.core.optional import version_of
from msn_deploy.engine import BuildOptions, build_engine_file, what_machine
from msn_deploy.engine.build import choose_site
from msn_deploy.engine.inspector import heavy
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.targets import find_target
from msn_deploy.model.feeds import joined
from msn_deploy.model.graphs import constants_of
from msn_deploy.model.opened import open_model
from msn_deploy.model.parity import rung
from msn_deploy.pipeline.evaluate import open_image_model, require_task
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.images import calibration_inputs, split_for
from msn_deploy.pipeline.train_int8 import recipe_for, train_int8
from msn_deploy.quant.placement import place
from msn_deploy.tasks.scoring import score_of
from msn_deploy.tasks.task import Outputs

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "epyc-2-cores" / "quantisers.json"
PACKAGES = (
    "nvidia-modelopt==0.47.0", "onnx==1.21.0", "onnxruntime==1.24.4",
    # What importing its ONNX part needs, besides what msn-deploy's own environment has.
    "onnx-graphsurgeon==0.6.1", "onnxconverter-common==1.16.0", "onnxslim==0.1.98", "polygraphy==0.53.6",
    "lief==1.0.0", "nvidia-ml-py==13.615.71",
)  # fmt: skip
SAMPLES, EPOCHS, CHUNK = 256, 2, 64
NETWORKS: dict[str, tuple[qat.Case, str, tuple[int, ...]]] = {
    "cnn3": (qat.Case(title="cnn3, digits", recipe="cnn3"), "MSN", (0, 1, 2)),
    "vgg7": (qat.Case(title="VGG7, digits", recipe="vgg7", table="digits-vgg7"), "MSN", (0,)),
    "densenet": (qat.CASES["densenet"], "BN", (0, 1, 2)),
    "mobile": (qat.CASES["mobile"], "BN", (0, 1, 2)),
    "detector": (qat.CASES["detector"], "MSN", (0,)),
    "unet": (qat.CASES["unet"], "BN", (0,)),
    "thousand": (qat.CASES["thousand"], "MSN", (0, 1, 2)),
}


class Judge:
    """The test images of one network, and what its FP32 file says of them."""

    def __init__(self, fp32: Path) -> None:
        self.opened = open_image_model(fp32)
        info, prep = self.opened.info, self.opened.prep
        self.split = split_for(info, prep, None, "test", task=require_task(info, model=str(fp32)), lazy=True)
        self.truth = self.outputs(fp32)

    @cached_property
    def inputs(self) -> list[np.ndarray]:
        images = self.split.images
        return [self.opened.prepared(np.asarray(images[at : at + CHUNK])) for at in range(0, len(images), CHUNK)]

    def outputs(self, file: Path) -> list[Outputs]:
        """Return what a file makes of every chunk of images, computed as its nodes say."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names, given = [each.name for each in session.get_outputs()], session.get_inputs()[0].name
        return [dict(zip(names, session.run(None, {given: chunk}), strict=True)) for chunk in self.inputs]

    def score(self, outputs: list[Outputs]) -> tuple[str, float]:
        """Return the metric of the task by name."""
        task = self.opened.task(self.split.classes)
        assert task is not None
        sizes = (len(chunk) for chunk in self.inputs)
        score = score_of(task, self.split.labels, self.opened.prep, zip(sizes, outputs, strict=True))
        return score.metric, score.value

    def facts(self, file: Path) -> dict[str, Any]:
        """Return what a quantised file keeps, what it is made of and what TensorRT-RTX makes of it."""
        outputs, graph = self.outputs(file), open_model(file, step="benchmark").proto
        return {
            "value": self.score(outputs)[1],
            "sqnr_db": round(rung("int8", joined(self.truth), joined(outputs)).sqnr_db, 2),
            "bytes": file.stat().st_size,
            **nodes_of(graph),
            "engine": engine_of(file),
        }


def nodes_of(graph: ModelProto) -> dict[str, int]:
    """Count the Q and DQ nodes of a file."""
    counts = Counter(node.op_type for node in graph.graph.node)
    return {"q": counts["QuantizeLinear"], "dq": counts["DequantizeLinear"]}


def scales_of(graph: ModelProto) -> list[bytes]:
    """Return the scales and zero points of all Q and DQ nodes, in an order that does not depend on names."""
    constants = constants_of(graph.graph)
    pairs = (node for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    return sorted(
        node.op_type.encode()
        + b"".join(numpy_helper.to_array(constants[name]).tobytes() for name in node.input[1:] if name in constants)
        for node in pairs
    )


def alike(one: Path, other: Path) -> str:
    """Say what two runs have in common: "bytes", "scales" or "nothing"."""
    if one.read_bytes() == other.read_bytes():
        return "bytes"
    first, second = (open_model(file, step="benchmark").proto for file in (one, other))
    return "scales" if scales_of(first) == scales_of(second) else "nothing"


def engine_of(file: Path) -> dict[str, Any]:
    """Build a file with TensorRT-RTX: its layers, and how many of the convolutions and matrix products read INT8."""
    options = BuildOptions(backend="tensorrt-rtx", target=find_target("rtx-sm86"), precision="int8")
    site = choose_site(options, "int8", machine=what_machine())
    model, out = open_model(file, step="benchmark"), file.with_suffix(".engine")
    try:
        built = build_engine_file(model, out, options=options, site=site)
    except Exception as cause:  # that it does not build is a result
        return {"refused": f"{type(cause).__name__}: {cause}"[:400]}
    weighted = heavy(built.layers)
    return {
        "builder": f"TensorRT-RTX {built.backend_version}",
        "layers": len(built.layers),
        "heavy": len(weighted),
        "int8": sum(layer.precision == "int8" for layer in weighted),
    }


def quantised(tool: str, python: Path, fp32: Path, feeds: Path, out: Path) -> dict[str, float]:
    """Run one tool in a process of its own, and return its seconds."""
    source = {"PYTHONPATH": str(HERE.parents[1])} if tool.startswith("msn-deploy") else {}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    interpreter = python if tool.startswith("modelopt") else Path(sys.executable)
    command = [str(each) for each in (interpreter, HERE / "quantiser.py", tool, fp32, feeds, out)]
    done = subprocess.run(command, env=kept | source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


def by_tools(judge: Judge, python: Path, fp32: Path, feeds: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each tool and what became of the network in its hands."""
    for tool in TOOLS:
        one, other = (fp32.with_name(f"{tool}-{run}.onnx") for run in (1, 2))
        try:
            took = [quantised(tool, python, fp32, feeds, out) for out in (one, other)]
        except RuntimeError as cause:
            yield tool, {"refused": str(cause)}
            continue
        shorter = {name: min(each[name] for each in took) for name in took[0]}
        yield tool, {**judge.facts(one), **shorter, "two_runs": alike(one, other)}


def by_training(judge: Judge, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Train under INT8, a little, and return the same facts."""
    recipe = recipe_for(checkpoint)
    recipe = recipe.override(epochs=EPOCHS, seed=recipe.train.seed)
    wall, cpu = time.perf_counter(), time.process_time()
    again = any(folder.glob("*.state.safetensors"))
    trained = train_int8(checkpoint, folder, recipe, device="cpu", resume=again).checkpoint
    took = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    out = folder / "trained.onnx"
    export_onnx(str(trained), out, dynamic_batch=True)
    return {**judge.facts(out), **took}


def measured(checkpoint: Path, folder: Path, python: Path) -> dict[str, Any]:
    """Return what every tool makes of one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    fp32, feeds = folder / "fp32.onnx", folder / "feeds.npz"
    export_onnx(str(checkpoint), fp32, dynamic_batch=True)
    model = open_model(fp32, step="benchmark")
    np.savez(feeds, **joined(list(calibration_inputs(model, None, samples=SAMPLES).samples)))
    judge = Judge(fp32)
    metric, value = judge.score(judge.truth)
    tools = {}
    for tool, facts in by_tools(judge, python, fp32, feeds):
        tools[tool] = facts
        print(f"  {tool}: {facts}", flush=True)
    tools["trained"] = by_training(judge, checkpoint, folder)
    print(f"  trained: {tools['trained']}", flush=True)
    return {
        "metric": metric,
        "images": len(judge.split.images),
        "layers": len(place(model.proto).layers),
        "bytes_fp32": fp32.stat().st_size,
        "fp32": value,
        "load": round(os.getloadavg()[0], 1),
        "tools": tools,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "runs" / "paper")
    parser.add_argument("--environment", type=Path, default=HERE.parents[1] / ".venv" / "quantisers")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if unknown := set(options.networks) - NETWORKS.keys():
        parser.error(f"no network {min(unknown)}; there are {', '.join(NETWORKS)}")
    import torch

    logging.getLogger("msn_deploy").setLevel(logging.ERROR)  # that files were changed by another tool is the point
    qat.register()
    torch.set_num_threads(1)
    python = environment(options.environment.resolve(), PACKAGES)
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"runs": []}
    done = {(each["network"], each["arm"], each["seed"]): each for each in result["runs"]}
    for name in options.networks:
        case, arm, seeds = NETWORKS[name]
        for seed in seeds:
            checkpoint = qat.float_checkpoint(name, case, arm, seed, options.work, {})
            key, sha256 = (name, arm, seed), sha256_of(checkpoint)
            if done.get(key, {}).get("checkpoint") == sha256:
                continue
            print(name, arm, seed, flush=True)
            facts = {"network": name, "title": case.title, "arm": arm, "seed": seed, "checkpoint": sha256}
            done[key] = facts | measured(checkpoint, options.work / "quantisers" / f"{name}-{arm}-{seed}", python)
            write_json(options.out, {
                "schema": 1,
                "samples": SAMPLES,
                "epochs": EPOCHS,
                "versions": {"onnxruntime": version_of("onnxruntime")},
                "packages_of_modelopt": list(PACKAGES),
                "environment": read_environment().to_json(),
                "runs": [done[each] for each in ordered(done)],
            })  # fmt: skip


def ordered(keys: Any) -> list[tuple[str, str, int]]:
    """Sort by the order of NETWORKS, then by seed."""
    known = list(NETWORKS)
    return sorted((key for key in keys if key[0] in known), key=lambda key: (known.index(key[0]), key[1], key[2]))


if __name__ == "__main__":
    main()
