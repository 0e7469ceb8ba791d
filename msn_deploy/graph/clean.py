"""A graph without what only hides it: constants computed once, no identities, no dead nodes, shapes known."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from msn_deploy.graph.affine import attribute, constant

_MOST_ELEMENTS = 1 << 24  # of a constant that is computed; what repeats a number more often stays an operator
_WEIGHTS_ARE_NO_INPUTS = 4  # version of ONNX's representation since which they need not be listed as such
_NEVER = ("QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "Multinomial")
_SAME_NUMBERS = ("Reshape", "Unsqueeze", "Squeeze")
_LOG = logging.getLogger(__name__)


def clean(model: ir.Model) -> None:
    """Clean a model in place."""
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_dropout(model.graph)
    _infer_shapes(model)
    common.IdentityEliminationPass()(model)
    _fold_constants(model)
    common.RemoveUnusedNodesPass()(model)
    _infer_shapes(model)


def _infer_shapes(model: ir.Model) -> None:
    """Fill in what shapes can be inferred; where the model contradicts itself, its own stay (and no traceback)."""
    loud = logging.getLogger("onnx_ir.passes.common")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        common.ShapeInferencePass()(model)
    finally:
        loud.setLevel(level)


def _drop_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Dropout" and not node.domain and not node.outputs[1:]:
            training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if len(node.inputs) < 3 or node.inputs[2] is None or (training is not None and not training.any()):
                node.op_type = "Identity"
                node.attributes.clear()
                node.resize_inputs(1)


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input. What the reference implementation can't compute stays."""
    opset = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    for node in list(model.graph):
        if node.op_type == "CastLike" and node.inputs[1] is not None and node.inputs[1].dtype is not None:
            _make_cast(node, node.inputs[1].dtype)
        inputs = [constant(value) for value in node.inputs]
        graphs = any(
            entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for entry in node.attributes.values()
        )
        if node.op_type in _NEVER or node.domain or graphs or not inputs or _is_large(node, inputs):
            continue
        if any(array is None and value is not None for array, value in zip(inputs, node.inputs, strict=True)):
            continue
        if node.op_type == "Shape" or any(value is not None and value.is_graph_output() for value in node.outputs):
            continue
        feeds = {str(v.name): a for v, a in zip(node.inputs, inputs, strict=True) if v is not None}
        try:
            results = _evaluated(node, feeds, opset)
        except Exception as cause:  # whatever the reference raises: the node is computed at run time then, as before
            _LOG.debug("%s %s is left to the runtime: %s", node.op_type, node.name, cause)
            continue
        _replace_by_constants(node, results)


def _make_cast(node: ir.Node, dtype: ir.DataType) -> None:
    """CastLike reads nothing but the type of its second input."""
    node.op_type = "Cast"
    node.resize_inputs(1)
    node.attributes["to"] = ir.AttrInt64("to", int(dtype))


def _evaluated(node: ir.Node, feeds: dict[str, np.ndarray], opset: list[onnx.OperatorSetIdProto]) -> list[np.ndarray]:  # type: ignore[type-arg]
    proto = ir.to_proto(node)
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    wanted = [onnx.ValueInfoProto(name=name) for name in proto.output]
    graph = onnx.helper.make_graph([proto], "constant", given, wanted)
    results: list[np.ndarray] = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opset)).run(None, feeds)  # type: ignore[type-arg]
    return results


def _replace_by_constants(node: ir.Node, results: list[np.ndarray]) -> None:  # type: ignore[type-arg]
    graph, first = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    for output, result in zip(node.outputs, results, strict=True):
        tensor = ir.tensor(np.ascontiguousarray(result))
        name = str(output.name)
        # A parameter that is only reshaped keeps the name that people know it by.
        if node.op_type in _SAME_NUMBERS and first is not None and len(first.uses()) == 1 and first.is_initializer():
            name = str(first.name)
            del graph.initializers[name]
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        output.name = None
        graph.register_initializer(value)
        output.replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _is_large(node: ir.Node, inputs: list[np.ndarray | None]) -> bool:  # type: ignore[type-arg]
    """Whether a node makes much of little, so that its result would fill the file."""
    if node.op_type in ("ConstantOfShape", "Expand") and inputs[-1] is not None:
        sizes = [float(size) for size in inputs[-1].ravel()]
        return float(np.prod(sizes, initial=1.0)) > _MOST_ELEMENTS
    if node.op_type == "Range" and all(each is not None and each.size == 1 for each in inputs):
        start, stop, step = (float(each.item()) for each in inputs)  # type: ignore[union-attr]
        return step == 0 or abs((stop - start) / step) > _MOST_ELEMENTS
    return node.op_type in ("Tile", "Resize", "Pad", "OneHot", "Upsample") or bool(attribute(node, "sequence", None))
