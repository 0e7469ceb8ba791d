"""What training under INT8 wins back of what calibration loses: hard cases, MSN next to BN, three seeds each.

    python benchmarks/qat.py [CASE ...] [--seeds 0 1 2] [--data fashion-mnist=FOLDER] [--work FOLDER] [--distill]

Trains each case's float networks below `--work` (what `benchmarks/paper.py` left there is taken), then measures float,
calibrated alone and trained under INT8 on the whole test split with ONNX Runtime, and how far the exported file is from
the training's own outputs. Results: one file per run in benchmarks/results/qat/. A run that is there and comes of
the same checkpoint is not measured again, and a training that was killed goes on: the command can be stopped and typed
again at any time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from paper import HERE

from msn_deploy.core.artifacts import sha256_of, write_json
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.machine.environment import read_environment

RESULTS = HERE / "results" / "qat"
ARMS = {"BN": "bn", "MSN": "msn"}
FACTOR = 1000.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its data, and what makes it hard."""

    title: str
    recipe: str
    """Of `models/`, without the norm."""
    table: str = ""
    """Of `benchmarks/tables/`, whose checkpoints are taken where they are there."""
    data: str = "digits"
    train: dict[str, Any] = field(default_factory=dict)
    """Options of the float training."""
    net: str = ""
    per_channel: bool = True
    spoil: bool = False
    """Whether one channel is made 1,000 times the others."""


CASES = {
    "densenet": Case(
        title="DenseNet-BC-22, digits", recipe="densenet_bc_22", table="digits-densenet-bc-22",
        train={"epochs": 12, "batch_size": 32},
    ),
    "densenet-one-scale": Case(
        title="DenseNet-BC-22, digits, weights with one scale", recipe="densenet_bc_22", table="digits-densenet-bc-22",
        train={"epochs": 12, "batch_size": 32}, per_channel=False,
    ),
    "thousand": Case(title="cnn3, digits, one channel 1,000 times the others", recipe="cnn3", spoil=True),
    "mobile": Case(title="MobileNet-like, digits", recipe="cnn3", net="mobile", train={"epochs": 12}),
    "mobile-one-scale": Case(
        title="MobileNet-like, digits, weights with one scale", recipe="cnn3", net="mobile", train={"epochs": 12},
        per_channel=False,
    ),
    "detector": Case(title="detector, digits-scenes", recipe="detector", table="scenes-detector", data="digits-scenes"),
    "unet": Case(title="U-Net, digits-scenes", recipe="unet", table="scenes-unet", data="digits-scenes"),
    "fashion-densenet": Case(
        title="DenseNet-BC-22, Fashion-MNIST", recipe="densenet_bc_22", table="fashion-densenet-bc-22",
        data="fashion-mnist",
    ),
}  # fmt: skip


def register() -> None:
    """Make the MobileNet-like network known: depthwise and pointwise convolutions with ReLU6 in blocks of two."""
    from torch import nn

    from msn_deploy.msn import MSNConv2d
    from msn_deploy.nets.blocks import Norm, conv_norm
    from msn_deploy.nets.registry import NETS

    def depthwise(norm: Norm, channels: int, stride: int) -> list[nn.Module]:
        if norm.name == "bn":
            conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
            return [conv, nn.BatchNorm2d(channels), nn.ReLU6()]
        if norm.name == "msn":
            return [MSNConv2d(channels, channels, 3, stride, 1, groups=channels, **norm.spectral()), nn.ReLU6()]
        return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.ReLU6()]

    def mobile(norm: Norm, *, in_channels: int, width: int, classes: int, **_: Any) -> nn.Module:
        layers: list[nn.Module] = [*conv_norm(norm, in_channels, width, 3, stride=2, padding=1), nn.ReLU6()]
        channels = width
        for out, stride in ((2 * width, 1), (4 * width, 2), (4 * width, 1), (8 * width, 2)):
            layers += [*depthwise(norm, channels, stride), *conv_norm(norm, channels, out, 1), nn.ReLU6()]
            channels = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    NETS["mobile"] = mobile


def float_checkpoint(name: str, case: Case, arm: str, seed: int, work: Path, data: dict[str, str]) -> Path:
    """Return the trained float network of a run; it is trained if it is not there."""
    from msn_deploy.training import train

    recipe = load_recipe(f"{case.recipe}_{ARMS[arm]}")
    known = work / case.table / f"{arm}-{seed}" / f"{recipe.name}.safetensors"
    if case.table and known.is_file():
        return known
    source = data.get(case.data, case.data)
    recipe = replace(recipe, data=source, net=case.net or recipe.net)
    recipe = recipe.override(seed=seed, **case.train)
    out = work / "qat" / (case.table or case.net or case.recipe) / f"{arm}-{seed}"
    made, state = out / f"{recipe.name}.safetensors", out / f"{recipe.name}.state.safetensors"
    if not made.is_file() or state.is_file():
        train(recipe, out=out, device="cpu", resume=state.is_file())
    return spoiled(made, recipe, out) if case.spoil else made


def spoiled(checkpoint: Path, recipe: Recipe, out: Path) -> Path:
    """Fold a network, scale a channel behind its first layer up and what reads it down: the same function."""
    import torch

    from msn_deploy.msn import fold
    from msn_deploy.nets import build_net
    from msn_deploy.training.checkpoint import load_checkpoint, save_checkpoint

    model, info = load_checkpoint(checkpoint)
    plain = build_net(recipe.override(norm="none"), classes=len(info.classes))
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    ours, theirs = ([each for each in net.modules() if isinstance(each, kinds)] for net in (plain, fold(model)))
    with torch.no_grad():
        for own, other in zip(ours, theirs, strict=True):
            own.weight.copy_(other.weight)
            assert own.bias is not None
            assert other.bias is not None
            own.bias.copy_(other.bias)
        ours[0].weight[0] *= FACTOR
        ours[0].bias[0] *= FACTOR
        ours[1].weight[:, 0] /= FACTOR
    path = out / "spoiled.safetensors"
    none = recipe.override(norm="none").to_dict() | {"name": "spoiled"}
    save_checkpoint(path, plain, replace(info, norm="none", recipe=none))
    return path


def measured(
    case: Case, checkpoint: Path, work: Path, data: str, distill: bool, again: Callable[[], bool]
) -> dict[str, Any]:
    """Return the metric in float, calibrated and trained, and what the training was."""
    from msn_deploy.engine.ort import run_on_one_thread
    from msn_deploy.model.opened import open_model, with_info
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.pipeline.images import calibration_inputs
    from msn_deploy.pipeline.quantisable import constants_computed, quantisable
    from msn_deploy.pipeline.train_int8 import recipe_for, train_int8
    from msn_deploy.quant.calibrate import chosen, quantised_tensors
    from msn_deploy.quant.histograms import collect
    from msn_deploy.quant.quantize import quantize

    work.mkdir(parents=True, exist_ok=True)
    files = {name: work / f"{name}.onnx" for name in ("float", "ptq", "qat")}
    export_onnx(str(checkpoint), files["float"], dynamic_batch=True, data=data)
    model = open_model(files["float"], step="benchmarks/qat.py")
    assert model.info is not None
    given = calibration_inputs(model, data, samples=256)
    graph = quantisable(constants_computed(model), given.samples, sha256=model.sha256).graph
    seen = collect(graph, given.samples, quantised_tensors(graph), load=run_on_one_thread)
    ranges = chosen(graph, given.samples, seen, load=run_on_one_thread).ranges
    ptq = quantize(graph, ranges, per_channel=case.per_channel)
    files["ptq"].write_bytes(with_info(ptq, model.info.with_precision("int8")))
    recipe = recipe_for(checkpoint, data=data)
    recipe = recipe.override(seed=recipe.train.seed, distill=0.5 if distill else None)
    began = time.process_time()
    result = train_int8(checkpoint, work, recipe, per_channel=case.per_channel, device="cpu", resume=again())
    minutes = (time.process_time() - began) / 60
    export_onnx(str(result.checkpoint), files["qat"], dynamic_batch=True, data=data)
    scores = {name: evaluate(file, data=data) for name, file in files.items()}
    return {
        "metric": scores["float"].metric,
        "images": scores["float"].samples,
        **{name: score.value for name, score in scores.items()},
        "epoch": result.info.metrics["epoch"],
        "history": result.history,
        "train": recipe.to_dict()["train"],
        "cpu_minutes": round(minutes, 2),
        "apart": apart(result.checkpoint, files["qat"], data),
    }


def apart(checkpoint: Path, onnx: Path, data: str) -> float:
    """Return the largest difference of a checkpoint's outputs and its file's, over their range, on the test split."""
    from msn_deploy.data import load_split, to_input
    from msn_deploy.engine import OrtRunner, run_images
    from msn_deploy.model.opened import open_model
    from msn_deploy.training import load_checkpoint
    from msn_deploy.training.runner import logits_of

    model, info = load_checkpoint(checkpoint)
    assert info.preprocess is not None
    images = load_split(data, "test", **info.preprocess.image_size).images
    runner = OrtRunner(open_model(onnx, step="benchmarks/qat.py"))
    worst, low, high = 0.0, np.inf, -np.inf
    for at in range(0, len(images), 64):
        x = to_input(images[at : at + 64], info.preprocess)
        wanted = logits_of(model, x)
        worst = max(worst, float(np.abs(run_images(runner, x) - wanted).max()))
        low, high = min(low, float(wanted.min())), max(high, float(wanted.max()))
    return worst / (high - low)


def engine_of(onnx: Path) -> dict[str, Any]:
    """Build a file with TensorRT-RTX, without images: how many layers it places in INT8, and which are not built so."""
    from msn_deploy.engine import BuildOptions
    from msn_deploy.machine.targets import find_target
    from msn_deploy.model.opened import open_model
    from msn_deploy.pipeline.build import build_engine
    from msn_deploy.quant.placement import WEIGHTED

    graph = open_model(onnx, step="benchmarks/qat.py").proto.graph
    options = BuildOptions(backend="tensorrt-rtx", target=find_target("rtx-sm86"))
    built = build_engine(onnx, onnx.with_suffix(".engine"), precision="int8", options=options).engine
    assert built is not None
    placed = sum(node.op_type in WEIGHTED for node in graph.node)
    return {
        "builder": f"TensorRT-RTX {built.backend_version}",
        "placed": placed,
        "not_int8": [layer.name for layer in built.not_int8],
    }


def build_engines(work: Path) -> None:
    """Add to each result whose file is still there what TensorRT-RTX makes of it."""
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        label = result["case"] + "-distilled" * result["distilled"]
        onnx = work / "qat" / f"{label}-int8" / f"{result['arm']}-{result['seed']}" / "qat.onnx"
        if "engine" not in result and onnx.is_file():
            write_json(path, {**result, "engine": engine_of(onnx)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="where a data set lies")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--distill", action="store_true", help="learn from the float network, too; other results")
    parser.add_argument("--engines", action="store_true", help="only build what is measured with TensorRT-RTX")
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no case {min(unknown)}; there are {', '.join(CASES)}")
    if options.engines:
        build_engines(options.work)
        return
    import torch

    from msn_deploy.training import keep_freed_memory

    register()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    folders = dict(each.split("=", 1) for each in options.data)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.cases:
            for arm in options.arms:
                run(name, arm, seed, options.work, folders, distill=options.distill)


def run(name: str, arm: str, seed: int, work: Path, folders: dict[str, str], *, distill: bool) -> None:
    """Measure one run, unless its result is there."""
    case = CASES[name]
    checkpoint = float_checkpoint(name, case, arm, seed, work, folders)
    label = f"{name}{'-distilled' * distill}"
    path, sha256 = RESULTS / f"{label}-{arm}-{seed}.json", sha256_of(checkpoint)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["checkpoint"] == sha256:
        return
    folder = work / "qat" / f"{label}-int8" / f"{arm}-{seed}"
    data = folders.get(case.data, case.data)
    found = measured(case, checkpoint, folder, data, distill, lambda: any(folder.glob("*.state.safetensors")))
    facts = {"case": name, "title": case.title, "arm": arm, "seed": seed, "distilled": distill, "checkpoint": sha256}
    write_json(path, {"schema": 1, **facts, **found, "data": case.data, "environment": read_environment().to_json()})
    print(
        f"{label} {arm} {seed}: float {found['float']:.4f}, calibrated {found['ptq']:.4f}, trained {found['qat']:.4f} "
        f"(epoch {found['epoch']}, {found['cpu_minutes']} min, apart {found['apart']:.1e})",
        flush=True,
    )


if __name__ == "__main__":
    main()
