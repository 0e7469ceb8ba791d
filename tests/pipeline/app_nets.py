"""ONNX files of three tasks, with random weights, for what `bundle --with` adds to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from msn_deploy.core.artifacts import publish
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Preprocess

DIGITS = tuple("0123456789")
RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ALIKE = {"mean": (0.485, 0.456, 0.406), "std": (0.25, 0.25, 0.25)}
STRIDES = {"classification": 8, "detection": 8, "segmentation": 4}


def network(
    path: Path,
    task: str,
    *,
    size: tuple[int, int] = (64, 64),
    channels: int = 3,
    classes: tuple[str, ...] = DIGITS,
    reading: dict[str, Any] | None = None,
    batch: int | str = 1,
    softmax: bool = False,
    **prep: Any,
) -> Path:
    """Write one convolution: of its classes, of a detector's map, or of a map of classes."""
    stride, made = STRIDES[task], len(classes) + 4 * (task == "detection")
    weights = np.random.default_rng(0).normal(0, 0.3, (made, channels, stride, stride)).astype(np.float32)
    shape: list[int | str] = [batch, made, size[0] // stride, size[1] // stride]
    nodes = [helper.make_node("Conv", ["x", "w"], ["map"], strides=[stride] * 2)]
    if task == "classification":
        nodes += [
            helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["c"]),
        ]
        shape = shape[:2]
    last = "c" if task == "classification" else "map"
    nodes.append(
        helper.make_node("Softmax", [last], ["y"], axis=1) if softmax else helper.make_node("Identity", [last], ["y"])
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = ModelInfo(
        net="custom",
        norm="none",
        task=task,
        classes=classes,
        reading=reading or {},
        preprocess=Preprocess(height_px=size[0], width_px=size[1], channels=channels, **prep) if prep else None,
    )
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    publish(path, lambda partial: partial.write_bytes(model.SerializeToString()) and None, kind="onnx")
    return path


def classifier(path: Path, **more: Any) -> Path:
    """Of digits in grey."""
    return network(path, "classification", size=(32, 32), channels=1, mean=(0.3,), std=(0.2,), fit="letterbox", **more)


def detector(path: Path, **more: Any) -> Path:
    """As those that are trained here."""
    return network(
        path,
        "detection",
        reading={"head": "fcos", "score": 0.3, "show": 0.5},
        fit="letterbox",
        fill=114,
        **{**RGB, **more},
    )


def segmenter(path: Path, **more: Any) -> Path:
    """A class for each pixel, of a fourth of the size."""
    prep = {"fit": "crop", "short_px": 100, "interpolation": "bicubic", "colour": "bgr", **RGB, **more}
    return network(path, "segmentation", size=(64, 96), classes=("background", *DIGITS), **prep)
