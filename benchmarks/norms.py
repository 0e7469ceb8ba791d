"""What each norm costs, without training anything: its exported VGG7, and what a training step keeps for its backward.

    python benchmarks/norms.py [--latency]

VGG7 with 16 channels on 32x32 pixels. Counted: nodes, activations that are read and written (see model/cost.py), saved
memory at batches of 1 to 4. `--latency` measures the files in ONNX Runtime as well, interleaved, on one thread: on an
otherwise idle machine. Writes results/norms.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.model_info import NORMS, ModelInfo, Preprocess
from msn_deploy.core.recipes import load_recipe
from msn_deploy.machine.environment import read_environment
from msn_deploy.model.cost import cost_of
from msn_deploy.model.opened import open_model
from msn_deploy.nets import build_net
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.training.checkpoint import save_checkpoint
from msn_deploy.training.optimizer import freeze, into_training

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "norms.json"
WIDTH, BATCHES = 16, (1, 2, 4)
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
from train_step_arms import saved_bytes  # noqa: E402  (a script's neighbour)


def exported(norm: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Export a network whose statistics have seen some batches; return the file, and what is counted in it."""
    recipe = replace(load_recipe("vgg7_bn").override(norm=norm), width=WIDTH)
    torch.manual_seed(0)
    model = build_net(recipe, classes=10).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, *recipe.network_input))
        for each in (each for each in model.parameters() if each.dim() == 1):  # a gain of 1 would leave the graph
            each.add_(0.1 * torch.randn_like(each))
    checkpoint, onnx = folder / f"{norm}.safetensors", folder / f"{norm}.onnx"
    prep = Preprocess(**recipe.image_size, mean=(0.5,), std=(0.5,))
    classes = tuple(map(str, range(10)))
    info = ModelInfo(net=recipe.net, norm=norm, classes=classes, preprocess=prep, recipe=recipe.to_dict())
    save_checkpoint(checkpoint, model.eval(), info)
    report = export_onnx(str(checkpoint), onnx)
    cost = cost_of(open_model(onnx, step="norms").proto, batch=1)
    assert report.certificate is not None
    assert cost is not None
    return onnx, {
        "nodes": sum(report.operators.values()),
        "operators": report.operators,
        "norms_left": len(report.certificate.kept),
        "activation_bytes": cost.activation_bytes,
        "worst_float64": report.certificate.worst.difference,
    }


def saved(norm: str, what: str, batch: int) -> tuple[int, int]:
    """Return the bytes that a training step keeps for its backward, and how many numbers learn."""
    recipe = replace(load_recipe("vgg7_bn").override(norm=norm), width=WIDTH)
    torch.manual_seed(0)
    model = build_net(recipe, classes=10)
    freeze(model, what)  # type: ignore[arg-type]
    into_training(model, what)  # type: ignore[arg-type]
    x = torch.randn(batch, *recipe.network_input)
    own = [*model.parameters(), *model.buffers(), x]
    learning = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return saved_bytes(lambda: model(x).sum(), own), learning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", action="store_true", help="measure the exported files, too")
    options = parser.parse_args()
    before = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    graphs, files, memory = {}, {}, []
    with tempfile.TemporaryDirectory() as name:
        for norm in NORMS:
            files[norm], graphs[norm] = exported(norm, Path(name))
        for norm in NORMS:
            for what in ("none", "statistics", "backbone"):
                found = [saved(norm, what, batch) for batch in BATCHES]
                memory.append(
                    {"norm": norm, "freeze": what, "learning": found[0][1], "bytes": [each[0] for each in found]}
                )
        latency = _latency(files) if options.latency else before.get("latency")
    write_json(
        OUT,
        {
            "schema": 1,
            "environment": read_environment().to_json(),
            "width": WIDTH,
            "batches": BATCHES,
            "graphs": graphs,
            "memory": memory,
            "latency": latency,
        },
    )


def _latency(files: dict[str, Path]) -> dict[str, Any]:
    from msn_deploy.bench import MeasureOptions
    from msn_deploy.pipeline.bench import bench

    order = ["bn", *(norm for norm in files if norm != "bn")]
    result = bench([files[norm] for norm in order], threads=1, options=MeasureOptions(seconds=10.0))
    return {
        "environment": read_environment().to_json(),
        "arms": {
            norm: {"median_ms": arm.median_ms, "ratio": arm.ratio, "interval": arm.ratio_interval}
            for norm, arm in zip(order, result.arms, strict=True)
        },
    }


if __name__ == "__main__":
    main()
