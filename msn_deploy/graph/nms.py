"""Non-maximum suppression at the end of a detector's graph, so that boxes come out of the file and of its engine.

ONNX's NonMaxSuppression, which TensorRT reads as well, gives as many rows as boxes are kept. What it keeps is marked
among all candidates, and the best are taken, so that every tensor that leaves the graph has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.graph.clean import cleaned
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import free_name, names_of
from msn_deploy.model.opset import opset_of
from msn_deploy.tasks.decoders import NO_FRAME, Way, cell_centres, cell_size, has_boxes_in_rows
from msn_deploy.tasks.heads import Reader, make_reader
from msn_deploy.tasks.task import Given

OUTPUT = "detections"
_LOWEST_OPSET = 13  # since which Softmax is that of one axis
_KEPT = ("score", "show", "max")  # of what is said of a detector: it holds for what comes out of NMS, too


def with_nms(model: ModelProto, given: Given) -> tuple[ModelProto, dict[str, Any]]:
    """Return a detector whose only output is (N, M, 6), and how that is read.

    A row is a box (x1, y1, x2, y2 in pixels of the input), its score and its class, the best first; what is left of the
    M rows (`max`) has score 0. What is kept is what tasks.boxes.nms keeps, but for float32 in place of float64.

    Raises InputError for a head that has no use for NMS, for open sizes, and where pixels are not known.
    """
    reader = make_reader(given)
    way, name = reader.way, given.model
    if reader.overlap is None:
        raise InputError(f"{name} has the head {way.head}, whose boxes need no NMS.\nLeave out `--nms`.")
    if opset_of(model) < _LOWEST_OPSET:
        raise InputError(f"`--nms` needs opset {_LOWEST_OPSET}; {name} has {opset_of(model)}.\nTry `--opset 17`.")
    if way.frame == NO_FRAME and (way.units == "share" or (way.head == "fcos" and not way.stride)):
        raise InputError(
            f"{name} gives boxes as shares of an input whose size in pixels it does not say.\n"
            "Say how images are prepared (`--preprocess`, ...)."
        )
    shapes = {spec.name: spec.shape or () for spec in given.outputs}
    sizes = {role: shapes[output][1:] for role, output in reader.outputs.items()}
    if any(size is None for shape in sizes.values() for size in shape):
        raise InputError(
            f"{name} leaves open how many boxes it gives, and NMS needs the number.\nFix its input's size."
        )
    result = ModelProto()
    result.CopyFrom(model)
    part = _Part(result)
    boxes, scores, count, classes = _READ[way.head](part, reader, sizes)
    rows = min(reader.most, count * classes)
    made = _suppressed(part, boxes, scores, reader, (count, classes, rows))
    first = model.graph.output[0].type.tensor_type.shape.dim
    batch = (first[0].dim_param or first[0].dim_value or None) if first else None
    del result.graph.output[:]
    result.graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, (batch, rows, 6)))
    result = cleaned(result)
    check_valid(result, source="the graph with NMS")
    return result, {"head": "end-to-end"} | {key: given.reading[key] for key in _KEPT if key in given.reading}


class _Part:
    """Nodes that are put behind a graph, whose names nobody else has."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.taken = names_of(model)
        self.count = 0

    def add(
        self, operator: str, *inputs: str | NDArray[Any], made: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        """Append a node that reads tensors and constants; return the name of its last output."""
        names = [self._constant(each) if isinstance(each, np.ndarray) else each for each in inputs]
        results = [made or self._name() for _ in range(outputs)]
        self.graph.node.append(helper.make_node(operator, names, results, name=results[-1], **attributes))
        return results[-1]

    def floats(self, name: str, role: str) -> str:
        """Return an output of the graph as float32."""
        return self.add("Cast", name, to=TensorProto.FLOAT, made=self.free(f"nms_{role}"))

    def sliced(self, name: str, start: int, end: int, *, axis: int) -> str:
        """Return part of a tensor."""
        return self.add("Slice", name, *(np.array([each]) for each in (start, end, axis)))

    def _constant(self, values: NDArray[Any]) -> str:
        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _name(self) -> str:
        self.count += 1
        return self.free(f"nms_{self.count}")

    def free(self, like: str) -> str:
        """Return a name that nobody has, and take it."""
        return free_name(like, self.taken)


Sizes = Mapping[str, tuple[int | None, ...]]
Read = tuple[str, str, int, int]
"""Boxes (N, B, 4), xyxy in pixels, and scores (N, classes, B), by name; B and the number of classes."""


def _yolov5(part: _Part, reader: Reader, sizes: Sizes) -> Read:
    count, width = _ints(sizes["output"])
    given = part.floats(reader.outputs["output"], "output")
    boxes, there, likely = (part.sliced(given, start, end, axis=2) for start, end in ((0, 4), (4, 5), (5, width)))
    scores = part.add("Transpose", part.add("Mul", there, likely), perm=[0, 2, 1])
    return _corners(part, boxes, reader.way), scores, count, width - 5


def _yolov8(part: _Part, reader: Reader, sizes: Sizes) -> Read:
    given, shape = part.floats(reader.outputs["output"], "output"), _ints(sizes["output"])
    if has_boxes_in_rows(reader.way, shape):
        given, shape = part.add("Transpose", given, perm=[0, 2, 1]), shape[::-1]
    rows, count = shape
    boxes = part.add("Transpose", part.sliced(given, 0, 4, axis=1), perm=[0, 2, 1])
    return _corners(part, boxes, reader.way), part.sliced(given, 4, rows, axis=1), count, rows - 4


def _fcos(part: _Part, reader: Reader, sizes: Sizes) -> Read:
    rows, high, wide = _ints(sizes["output"])
    given = part.add("Reshape", part.floats(reader.outputs["output"], "output"), np.array([0, rows, high * wide]))
    scores = part.add("Sigmoid", part.sliced(given, 0, rows - 4, axis=1))
    reach = part.add("Transpose", part.sliced(given, rows - 4, rows, axis=1), perm=[0, 2, 1])
    centres = cell_centres(high, wide)[np.newaxis].astype(np.float32)
    cells = part.add("Add", part.add("Mul", reach, np.array([-1, -1, 1, 1], np.float32)), centres)
    boxes = part.add("Mul", cells, np.tile(cell_size(reader.way, high, wide), 2).astype(np.float32))
    return boxes, scores, high * wide, rows - 4


def _pair(part: _Part, reader: Reader, sizes: Sizes) -> Read:
    way, (count, width) = reader.way, _ints(sizes["scores"])
    scores = part.floats(reader.outputs["scores"], "scores")
    made = {"logits": "Sigmoid" if way.background == "none" else "Softmax", "log-softmax": "Exp"}.get(way.ending)
    if made is not None:
        axis: dict[str, Any] = {"axis": 2} if made == "Softmax" else {}
        scores = part.add(made, scores, **axis)
    start, end = int(way.background == "first"), width - (way.background == "last")
    scores = part.add("Transpose", part.sliced(scores, start, end, axis=2), perm=[0, 2, 1])
    boxes = part.floats(reader.outputs["boxes"], "boxes")
    return _corners(part, boxes, way), scores, count, end - start


_READ: Mapping[str, Callable[[_Part, Reader, Sizes], Read]] = {
    "yolov5": _yolov5,
    "yolov8": _yolov8,
    "fcos": _fcos,
    "ssd": _pair,
}


def _corners(part: _Part, boxes: str, way: Way) -> str:
    """Return boxes (N, B, 4) as xyxy in pixels, in the order of tasks.boxes.as_xyxy."""
    if way.form != "xyxy":
        start, size = (part.sliced(boxes, at, at + 2, axis=2) for at in (0, 2))
        if way.form == "cxcywh":
            start = part.add("Sub", start, part.add("Div", size, np.array(2, np.float32)))
        boxes = part.add("Concat", start, part.add("Add", start, size), axis=2)
    if way.units == "share":
        boxes = part.add("Mul", boxes, np.tile(way.frame, 2).astype(np.float32))
    return boxes


def _suppressed(part: _Part, boxes: str, scores: str, reader: Reader, sizes: tuple[int, int, int]) -> str:
    """Append what makes (N, M, 6) of boxes and scores, and return its name; sizes: B, classes, M."""
    count, classes, rows = sizes
    if reader.way.per_box == "best":
        best = part.add("TopK", scores, np.array([1]), axis=1, outputs=2)  # the index
        is_best = part.add("Equal", best, np.arange(classes).reshape(1, -1, 1))
        scores = part.add("Where", is_best, scores, np.array(0, np.float32))
    limits = np.array(reader.overlap, np.float32), np.array(reader.way.score, np.float32)
    kept = part.add("NonMaxSuppression", boxes, scores, np.array([rows]), *(each.reshape(1) for each in limits))
    blank = part.add("ConstantOfShape", part.add("Shape", scores), value=_one(0))
    ones = part.add("ConstantOfShape", part.sliced(part.add("Shape", kept), 0, 1, axis=0), value=_one(1))
    chosen = part.add("Mul", scores, part.add("ScatterND", blank, kept, ones))
    flat = part.add("Reshape", chosen, np.array([0, classes * count]))
    at = part.add("TopK", flat, np.array([rows]), axis=1, outputs=2)
    best = part.graph.node[-1].output[0]
    label = part.add("Div", at, np.array(count))
    box = part.add("Reshape", part.add("Sub", at, part.add("Mul", label, np.array(count))), np.array([0, rows, 1]))
    corners = part.add("GatherElements", boxes, part.add("Expand", box, np.array([1, 1, 4])), axis=1)
    columns = [part.add("Reshape", each, np.array([0, rows, 1])) for each in (best, part.add("Cast", label, to=1))]
    return part.add("Concat", corners, *columns, axis=2, made=part.free(OUTPUT))


def _one(value: float) -> TensorProto:
    return numpy_helper.from_array(np.array([value], np.float32))


def _ints(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size is not None)
