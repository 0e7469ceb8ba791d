"""What shapes does a graph compute from its constants? Worked out where shape inference does not.

Exporters write `expand` as half a dozen nodes that end in a shape: ConstantOfShape, Mul, Equal, Where. Shape inference
of onnx follows few of them, ONNX Runtime computes all of them as it loads.
"""

from __future__ import annotations

import math
from typing import Any

_FEW = 1024  # elements: no shape has more
_MOST_WORK = 1 << 20  # of the product of the inputs' sizes, which bounds what broadcasting makes of them
_BOUNDED = {  # operators whose result has no more elements than that product
    *("Abs", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Floor", "Ceil", "Cast", "Identity"),
    *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Where"),
    *("Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "ReduceProd"),
}


def compute_constants(onnx: Any, model: Any) -> None:
    """Replace in place every node that makes a small tensor of small constants by what it makes."""
    import numpy as np
    from onnx.reference import ReferenceEvaluator  # late: it takes as long to import as all the rest

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    known = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= _FEW
    }
    kept = []
    for node in model.graph.node:
        made = None
        if len(node.output) == 1 and _is_small(node, known):
            try:
                with np.errstate(all="ignore"):
                    made = ReferenceEvaluator(node, opsets=opsets).run(None, {n: known[n] for n in node.input if n})[0]
            except Exception:  # whatever it raises on a node that does not fit: then its result stays open
                made = None
        if made is None or made.size > _FEW:
            kept.append(node)
            continue
        known[node.output[0]] = made
        model.graph.initializer.append(onnx.numpy_helper.from_array(made, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _is_small(node: Any, known: dict[str, Any]) -> bool:
    """Tell whether a node can be computed here at little cost."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Constant":  # its value has been looked at: it holds what it claims
        return all(math.prod(attribute.t.dims) <= _FEW for attribute in node.attribute)
    if not all(name in known for name in node.input if name):
        return False
    if node.op_type == "ConstantOfShape":
        sizes = [int(size) for size in known[node.input[0]].ravel()]
        return all(size >= 0 for size in sizes) and math.prod(sizes) <= _FEW
    return node.op_type in _BOUNDED and math.prod(known[name].size for name in node.input if name) <= _MOST_WORK
