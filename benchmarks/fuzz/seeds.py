"""Small artifacts of every kind that the project writes or reads, made once, of fixed numbers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fuzz.datasets import DATASETS, SIDE
from msn_deploy.bench import MeasureOptions, measure
from msn_deploy.core.artifacts import Parent, parent_of, publish
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Preprocess
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data import load_split
from msn_deploy.engine.calibration_table import format_table
from msn_deploy.nets import build_net
from msn_deploy.pipeline.bench import bench, write_json
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.training import train
from msn_deploy.training.checkpoint import save_checkpoint

RECIPE = """name = "r"
net = "cnn3"
norm = "msn"
data = "digits"
input_shape = [1, 1, 28, 28]
width = 2
fit = "resize"
init = "kaiming"

[train]
epochs = 2
batch_size = 8
optimizer = "adam"
learning_rate = 0.01
warm_up = 0.3
weight_decay = 0.0
label_smoothing = 0.1
validation = 0.25
patience = 1
augment = "crop"
ema = 0.5
power_iterations = 1
seed = 0
"""
SUITE = """name = "s"
title = "a small suite"
threads = 1
precisions = ["fp32", "int8"]
seconds = 2.0
batches = [1]

[[network]]
name = "cnn3"
title = "cnn3, digits"
reference = "BN folded"
recipe = { data = "digits", train = { epochs = 1 } }

[[network.row]]
name = "BN unfolded"
recipe = "cnn3_bn"
fold = false

[[network.row]]
name = "BN folded"
recipe = "cnn3_bn"

[[network.row]]
name = "MSN folded"
recipe = "cnn3_msn"
"""
CALIBRATION = (
    'name = "c"\ndata = "digits"\nsamples = 16\nseed = 1\npreprocess = "model"\nmethod = "mse"\npercentile = 99.9\n'
)
PREPARATION = "mean = [0.5]\nstd = [0.5]\nrange = [0, 1]\n"
FACTORY = """from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
"""
PLAN_FACTS = {
    "backend": "tensorrt", "backend_version": "10.3.0.30", "target": "orin-nano-8gb", "compute_capability": "8.7",
    "device": "Orin", "precision": "int8", "dla_core": None, "version_compatible": False, "hardware_compatible": False,
    "machine": {"arch": "aarch64", "jetson": "NVIDIA Jetson Orin Nano Developer Kit", "l4t": "36.4.3",
    "memory_gib": 7.4,
                "memory_free_gib": 5.1, "driver": None, "gpu_nodes": ["/dev/nvhost-gpu"], "container": False},
}  # fmt: skip
_AUTHORS = ((16, 1, 5, 5), (32, 16, 3, 3), (32, 32, 4, 4))


class _Killed(Exception):
    """Ends a training where a kill would."""


def make_seeds(folder: Path, *, quick: bool = False) -> Path:
    """Write everything below a folder, unless it is there, and return the folder. quick: without a training."""
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    run, home = folder / "run", folder / "home"
    run.mkdir(parents=True)
    os.environ["MSN_DEPLOY_HOME"] = str(home)
    torch.manual_seed(0)
    info = _checkpoint(run / "c.safetensors")
    _network(run / "m.onnx", info, classes=10, side=28, channels=1, parent=run / "c.safetensors")
    calibrate(run / "m.onnx", run / "m.int8.onnx", data="digits", samples=16, method="minmax")
    _engine(run / "e.engine", run / "m.int8.onnx", info)
    measure.__kwdefaults__["clock"] = _steady_clock()
    short = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    result = bench([run / "m.onnx", run / "m.int8.onnx"], threads=1, options=short)
    write_json(result, run / "bench.json", [run / "m.onnx", run / "m.int8.onnx"])
    make_texts(folder / "texts")
    make_weights(folder / "weights")
    if not quick:
        _interrupted(folder / "state", folder / "texts" / "r.toml")
    (home / "trusted.jsonl").write_text(
        "".join(json.dumps({"sha256": f"{at:064x}", "name": "e.engine"}) + "\n" for at in range(5))
    )
    (home / "trusted.jsonl").chmod(0o600)
    _tasks(folder / "tasks")
    for name, write in DATASETS.items():
        place = folder / "data" / name
        place.mkdir(parents=True)
        write(place)
    (folder / "complete").touch()
    return folder


def _steady_clock() -> Callable[[], int]:
    """Return a clock in which a query takes about 1 ms, however busy the machine is: a result that is valid."""
    draw, now = Random(0), 0

    def clock() -> int:
        nonlocal now
        now += draw.randrange(900_000, 1_100_000)
        return now

    return clock


def _checkpoint(path: Path) -> ModelInfo:
    recipe = load_recipe("cnn3_msn").override()
    recipe = type(recipe)(**{**{name: getattr(recipe, name) for name in recipe.__dataclass_fields__}, "width": 2})
    prep = Preprocess(height_px=28, width_px=28, channels=1, mean=(0.3,), std=(0.4,))
    digits = tuple("0123456789")
    info = ModelInfo(net=recipe.net, norm=recipe.norm, task="classification", classes=digits, preprocess=prep,
                     data="digits", recipe=recipe.to_dict(), metrics={"test_accuracy": 0.5, "epoch": 1})  # fmt: skip
    images = [load_split("digits", split, **recipe.image_size).as_parent() for split in ("train", "test")]
    save_checkpoint(path, build_net(recipe, classes=10).eval(), info, parents=images, config={"limit_train": 16})
    return info


def _network(
    path: Path, info: ModelInfo | None, *, classes: int, side: int, channels: int, maps: bool = False,
    shape: tuple[int, ...] = (), parent: Path | None = None,
) -> None:  # fmt: skip
    """Write a Conv with a BatchNormalization behind it, and what makes numbers (or a map) of it."""
    rng = np.random.default_rng(0)
    last = int(np.prod(shape)) if shape else classes
    arrays = {"w": rng.standard_normal((4, channels, 3, 3)), "head": rng.standard_normal((last, 4, 1, 1)),
    "bias": np.zeros(last),
              **{name: np.full(4, 0.5) for name in ("gain", "shift", "mean", "var")}}  # fmt: skip
    inits = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        *([] if maps else [helper.make_node("GlobalAveragePool", ["r"], ["pooled"], name="pool")]),
        helper.make_node("Conv", ["r" if maps else "pooled", "head", "bias"], ["y" if maps else "out"], name="last"),
    ]
    if not maps:
        sizes = numpy_helper.from_array(np.array([1, *(shape or (last,))], np.int64), "sizes")
        inits.append(sizes)
        nodes.append(helper.make_node("Reshape", ["out", "sizes"], ["y"], name="reshape"))
    made = [1, last, side, side] if maps else [1, *(shape or (last,))]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        inits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if info is not None:
        helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    onnx.checker.check_model(model, full_check=True)
    parents = [] if parent is None else [parent_of(parent, role="checkpoint")]
    publish(path, model.SerializeToString(), kind="onnx", parents=parents)


def _engine(path: Path, onnx_file: Path, info: ModelInfo) -> None:
    facts: dict[str, Any] = {**PLAN_FACTS, "info": info.with_precision("int8").to_json()}
    parent = Parent(role="onnx", file=onnx_file.name, sha256=hashlib.sha256(onnx_file.read_bytes()).hexdigest())
    publish(path, b"ftrt, a plan" * 20, kind="engine", parents=[parent], config={"shapes": []}, facts=facts)


def make_texts(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    files = {"r.toml": RECIPE, "s.toml": SUITE, "c.toml": CALIBRATION, "p.toml": PREPARATION, "net.py": FACTORY}
    for net, task, data in (("unet", "segmentation", "masks"), ("detector", "detection", "coco")):
        lines = RECIPE.replace('"cnn3"', f'"{net}"').replace('data = "digits"', f'data = "in/{data}"\ntask = "{task}"')
        lines = lines.replace("1, 28, 28", f"3, {SIDE}, {SIDE}").replace("label_smoothing = 0.1\n", "")
        files[f"{net}.toml"] = lines.replace("width = 2", "width = 4")
    files["k.txt"], files["k.json"] = "cat\ndog\n", '["cat", "dog"]\n'
    files["t.cache"] = format_table({"x": 1.0, "r": 2.5, "y": 3.0, "c": 1.5, "n": 0.5}, 100300)
    for name, text in files.items():
        (folder / name).write_text(text)
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(folder / "digit.png")


def make_weights(folder: Path) -> None:
    """Write weights as torch pickles them, and a checkpoint in the layout of the paper's authors."""
    folder.mkdir(exist_ok=True)
    space: dict[str, Any] = {}
    exec(FACTORY, space)
    torch.save(space["net"]().state_dict(), folder / "w.pt")
    net = {}
    for at, shape in zip((0, 2, 4), _AUTHORS, strict=True):
        net |= {f"main.{at}.weight": torch.randn(shape) / 10, f"main.{at}.bias": torch.zeros(shape[0])}
    net |= {"fc.weight": torch.randn(10, 8192) / 100, "fc.bias": torch.zeros(10)}
    torch.save({"net": net, "acc": 99.1, "epoch": 3}, folder / "Conv_a.t7")


def _interrupted(folder: Path, recipe: Path) -> None:
    """Leave what a training leaves that is killed in its second epoch."""

    def kill(done: float, total: float, note: str = "") -> None:
        if (folder / "r.state.safetensors").is_file():
            raise _Killed

    with contextlib.suppress(_Killed):
        train(load_recipe(str(recipe)), out=folder, limit_train=32, progress=kill)
    assert (folder / "r.state.safetensors").is_file()


def _tasks(folder: Path) -> None:
    """Write a network for each task, for the data sets that have labels for it."""
    folder.mkdir(exist_ok=True)
    small, wide = {"side": SIDE, "channels": 3}, {"side": 32, "channels": 3}
    digits, two = tuple("0123456789"), ("cat", "dog")
    cifar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    depth: dict[str, Any] = {"maps": True, **small}
    nets: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
        "grey": ("classification", digits, {"side": 28, "channels": 1}),
        "cifar": ("classification", cifar, wide),
        "svhn": ("classification", digits, wide),
        "two": ("classification", two, small),
        "boxes": ("detection", ("car", "person"), {"shape": (6, 21), **small}),
        "masks": ("segmentation", ("road", "car", "sky"), {"maps": True, **small}),
        "coco-masks": ("segmentation", ("background", "car", "person"), {"maps": True, **small}),
        "depth": ("depth", (), depth),
        "wanted": ("image-to-image", (), depth),
        "values": ("regression", ("height", "leaves", "wet"), small),
        "labels": ("multi-label", ("wet",), small),
        "value": ("regression", ("value",), small),
        "vector": ("embedding", (), {"shape": (5,), **small}),
        "arrays": ("", (), small),
    }
    for name, (task, classes, size) in nets.items():
        prep = Preprocess(
            height_px=size["side"], width_px=size["side"], channels=size["channels"],
            mean=(0.5,) * size["channels"], std=(0.5,) * size["channels"],
        )  # fmt: skip
        reading = {"head": "yolov8"} if task == "detection" else {}
        info = ModelInfo(net="custom", norm="none", task=task, classes=classes, preprocess=prep, reading=reading)
        count = {"depth": 1, "image-to-image": 3}.get(task, len(classes) or 5)
        _network(folder / f"{name}.onnx", info, classes=count, **size)
