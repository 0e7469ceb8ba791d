"""From opset 18, the lowest that torch's exporter writes, down to 17, the highest that TensorRT 8 reads.

onnx's own converter stops at reductions whose axes became an input in 18 (an average pool to 1x1 is one), which nearly
every classifier has. Everything else in a network that is older than 18 means the same in both.
"""

from __future__ import annotations

import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.graphs import constants_of, drop_unread_constants

_AXES_INPUT_SINCE_18 = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)


def to_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return the model in another opset; it may be changed in place. Raises InputError where that cannot be done."""
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", onnx.defs.ONNX_DOMAIN))
    if written == opset or (written == 18 and opset == 17 and from_18_to_17(model)):
        return model
    try:
        if written == 18 and opset < 17 and from_18_to_17(model):
            written = 17
        return onnx.version_converter.convert_version(model, opset)
    except Exception as cause:  # its C++ converter raises RuntimeError and more
        raise not_converted(written, opset) from cause


def not_converted(written: int, opset: int) -> InputError:
    """Return the error for a graph of opset `written` that means something else, or nothing, in `opset`."""
    return InputError(
        f"the graph could not be converted to opset {opset}; it needs opset {written}.\nTry `--opset {written}`."
    )


def from_18_to_17(model: ModelProto) -> bool:
    """Rewrite a graph of opset 18 in place as opset 17; where that cannot be done, return False and leave it alone."""
    constants = constants_of(model.graph)
    reductions = [node for node in model.graph.node if node.op_type in _AXES_INPUT_SINCE_18]
    for node in model.graph.node:
        if node.op_type in _AXES_INPUT_SINCE_18:
            if len(node.input) > 1 and node.input[1] not in constants:
                return False
        elif node.domain == "" and _meaning(node, 17) != _meaning(node, 18):
            return False
    for node in reductions:
        if len(node.input) > 1:
            axes = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
            node.input.pop()
            kept = [each for each in node.attribute if each.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("axes", axes)])
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 17
    drop_unread_constants(model.graph)  # those that only the axes inputs read
    return True


def _meaning(node: NodeProto, opset: int) -> int:
    """Return since which opset the operator has meant what it means in this one; -1 if it does not exist there."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).since_version)
    except onnx.defs.SchemaError:
        return -1
