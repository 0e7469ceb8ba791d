"""Small graphs from ONNX's text form, for the rules of where pairs go."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

_WEIGHTS = {
    "w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "k": (3, 4, 1, 1), "wide": (4, 8, 1, 1), "b": (4,), "z": (1, 4, 8, 8),
    "up": (4, 4, 2, 2), "m": (256, 16), "n": (16, 16), "d16": (16,),
}  # fmt: skip
_SHORT = {"conv(": "Conv<pads=[1,1,1,1]>(", "pool(": "MaxPool<kernel_shape=[2,2], strides=[2,2]>("}


def graph(body: str, *, outputs: str = "y") -> ModelProto:
    """A graph in ONNX's text form, (1, 4, 8, 8) in; conv and pool are short for a padded Conv and a MaxPool of 2x2."""
    text = f"g (float[1,4,8,8] x) => ({', '.join(f'float[N,C,H,W] {name}' for name in outputs.split())}) {{{body}}}"
    for short, written in _SHORT.items():
        text = text.replace(short, written)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    rng = np.random.default_rng(3)
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in _WEIGHTS.items():
        if name in read:
            value = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model
