"""Average pooling commutes with a convolution of one pixel, so it goes first: the convolution sees fewer pixels."""

from __future__ import annotations

import onnx_ir as ir

from msn_deploy.graph.affine import attribute, constant, integers
from msn_deploy.graph.operators import keeps_constants


def pool_before_pointwise(graph: ir.Graph) -> dict[str, str]:
    """Move every average pooling before the 1x1 convolution that alone feeds it, in place.

    Returns, for each, the name of the tensor that is gone and of the pooled one that the convolution makes instead.
    """
    moved = {}
    for pool in [node for node in graph if node.op_type == "AveragePool" and not node.domain]:
        value, pooled = pool.inputs[0], pool.outputs[0]
        conv = None if value is None else value.producer()
        if value is None or conv is None or not _is_pointwise(conv) or not keeps_constants(pool):
            continue
        if len(value.uses()) > 1 or value.is_graph_output() or max(integers(pool, "strides") or [1]) == 1:
            continue
        first = conv.inputs[0]
        assert first is not None
        moved[str(value.name)] = str(pooled.name)
        pool.replace_input_with(0, first)
        conv.replace_input_with(0, pooled)
        pooled.replace_all_uses_with(value, replace_graph_outputs=True)
        conv.replace_input_with(0, pooled)
        value.name, pooled.name = pooled.name, f"{first.name}.pooled"
        value.shape, pooled.shape = pooled.shape, None
    if moved:
        graph.sort()
    return moved


def _is_pointwise(conv: ir.Node) -> bool:
    if conv.op_type != "Conv" or conv.domain or len(conv.inputs) < 2:
        return False
    weight = constant(conv.inputs[1])
    plain = not any(integers(conv, "pads")) and set(integers(conv, "strides")) <= {1}
    plain = plain and attribute(conv, "auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    return weight is not None and plain and set(weight.shape[2:]) == {1}
