"""Are two graphs the same computation with other weights? A hash that says so.

Operators, attributes, types, sizes and topology count; names, the order of nodes and floating-point numbers do not. So
a latency difference between two graphs of one hash is noise, or the choice of kernels.
"""

from __future__ import annotations

import hashlib

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_QUANTISED = (TensorProto.INT8, TensorProto.UINT8)


def structural_hash(model: ModelProto) -> str:
    """Return 64 hex digits, equal for graphs that differ in names, node order, weights and metadata alone."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return _graph(model.graph, opsets, {})


def _graph(graph: GraphProto, opsets: dict[str, int], outer: dict[str, str]) -> str:
    known = {**outer, "": "absent"}
    for tensor in graph.initializer:
        known[tensor.name] = _tensor(tensor)
    for index, value in enumerate(each for each in graph.input if each.name not in known):
        given = value.type.tensor_type
        # An open size is one, whatever it is called.
        sizes = [str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in given.shape.dim]
        known[value.name] = _hash("input", str(index), str(given.elem_type), *sizes)
    nodes = []
    for node in graph.node:
        digest = _node(node, opsets, known)
        nodes.append(digest)
        for index, name in enumerate(node.output):
            known[name] = _hash(digest, str(index))
    return _hash("graph", *sorted(nodes), "outputs", *(known[value.name] for value in graph.output))


def _node(node: NodeProto, opsets: dict[str, int], known: dict[str, str]) -> str:
    if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
        return _tensor(node.attribute[0].t)
    usual = _defaults(node, opsets)
    attributes = [_attribute(each, opsets, known) for each in node.attribute]
    kept = [text for each, text in zip(node.attribute, attributes, strict=True) if usual.get(each.name) != text]
    inputs = [known[name] for name in node.input]
    while inputs and inputs[-1] == "absent":
        inputs.pop()
    domain = "" if node.domain == onnx.defs.ONNX_DOMAIN else node.domain
    return _hash("node", domain, node.op_type, *sorted(kept), "inputs", *inputs)


def _defaults(node: NodeProto, opsets: dict[str, int]) -> dict[str, str]:
    """Return what attributes are where they are not spelled out."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:  # an operator of another domain
        return {}
    return {name: _attribute(entry.default_value, {}, {}) for name, entry in schema.attributes.items()}


def _attribute(attribute: AttributeProto, opsets: dict[str, int], known: dict[str, str]) -> str:
    if attribute.HasField("t"):
        return _hash(attribute.name, _tensor(attribute.t))
    graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    if graphs:
        return _hash(attribute.name, *(_graph(each, opsets, known) for each in graphs))
    plain = AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    return _hash(attribute.name, plain.SerializeToString(deterministic=True).hex())


def _tensor(tensor: TensorProto) -> str:
    """Weights by type and size; other numbers (sizes, axes) by value, for they are part of the structure."""
    sizes = [str(size) for size in tensor.dims]
    if tensor.data_type in (*_FLOATING, *_QUANTISED):
        return _hash("weight", str(tensor.data_type), *sizes)
    return _hash("constant", str(tensor.data_type), *sizes, numpy_helper.to_array(tensor).tobytes().hex())


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
