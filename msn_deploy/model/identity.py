"""What is this graph: in which precision, and the same computation as another? A hash tells that.

Operators, attributes, types, sizes and topology count; names, the order of nodes and (where they are not asked for)
floating-point numbers do not. So a latency difference between two graphs of one hash is noise, or the choice of
kernels.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from msn_deploy.core.model_info import Runtime
from msn_deploy.model.graphs import all_graphs, all_tensors, constants_of, nodes_of_model

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_QUANTISED = (TensorProto.INT8, TensorProto.UINT8)
# Operators of ONNX and of ONNX Runtime that quantise, or compute in integers: QLinearConv, MatMulInteger, QGemm, ...
_INTEGER = re.compile("Quantize|Integer|^Q(Linear|Gemm|Attention)")


def structural_hash(model: ModelProto, *, weights: bool = False) -> str:
    """Return 64 hex digits, equal for graphs that differ in names, node order, weights and metadata alone.

    weights: let every bit of them and the opsets count, so that graphs of one hash compute the same.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    found = _Hasher(opsets, weights).graph(model.graph, {})
    return _hash(found, *sorted(f"{domain} {version}" for domain, version in opsets.items())) if weights else found


def precision_of(model: ModelProto) -> str:
    """Return "int8" for a graph with Q/DQ nodes or integer arithmetic, "fp8" if some of those nodes are in FP8.

    Else it is "fp16" for half-precision weights or casts, and "fp32" without.
    """
    half = TensorProto.FLOAT16
    casts_to_half = quantised = False
    eights = {tensor.name for tensor in all_tensors(model) if tensor.data_type == TensorProto.FLOAT8E4M3FN}
    for node in nodes_of_model(model):
        if _INTEGER.search(node.op_type):
            if eights.intersection(node.input):
                return "fp8"
            quantised = True
        if node.op_type == "Cast":
            casts_to_half |= any(each.name == "to" and each.i == half for each in node.attribute)
    if quantised:
        return "int8"
    return "fp16" if casts_to_half or any(tensor.data_type == half for tensor in all_tensors(model)) else "fp32"


def runtime_of(model: ModelProto) -> Runtime | None:
    """Return what the INT8 of a graph is laid out for; None for a graph without INT8.

    "tensorrt": Q/DQ pairs of symmetric INT8, around float biases. "onnxruntime": all else (UINT8, zero points that are
    not zero, INT32 biases, operators that compute in integers themselves), which TensorRT does not take.
    """
    found: Runtime | None = None
    constants = {name: tensor for graph in all_graphs(model) for name, tensor in constants_of(graph).items()}
    for node in nodes_of_model(model):
        if not _INTEGER.search(node.op_type):
            continue
        found = "tensorrt"
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        stored = constants.get(node.input[0])
        if (
            node.op_type not in ("QuantizeLinear", "DequantizeLinear")
            or (zero is not None and (zero.data_type == TensorProto.UINT8 or numpy_helper.to_array(zero).any()))
            or (stored is not None and stored.data_type == TensorProto.INT32)
        ):
            return "onnxruntime"
    return found


@dataclass(frozen=True, slots=True)
class _Hasher:
    opsets: dict[str, int]
    weights: bool

    def graph(self, graph: GraphProto, outer: dict[str, str]) -> str:
        known = {**outer, "": "absent"}
        for tensor in graph.initializer:
            known[tensor.name] = self.tensor(tensor)
        for index, value in enumerate(each for each in graph.input if each.name not in known):
            given = value.type.tensor_type
            # An open size is one, whatever it is called.
            sizes = [str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in given.shape.dim]
            known[value.name] = _hash("input", str(index), str(given.elem_type), *sizes)
        nodes = []
        for node in graph.node:
            digest = self.node(node, known)
            nodes.append(digest)
            for index, name in enumerate(node.output):
                known[name] = _hash(digest, str(index))
        return _hash("graph", *sorted(nodes), "outputs", *(known[value.name] for value in graph.output))

    def node(self, node: NodeProto, known: dict[str, str]) -> str:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
            return self.tensor(node.attribute[0].t)
        usual = self.defaults(node)
        attributes = [self.attribute(each, known) for each in node.attribute]
        kept = [text for each, text in zip(node.attribute, attributes, strict=True) if usual.get(each.name) != text]
        inputs = [known[name] for name in node.input]
        while inputs and inputs[-1] == "absent":
            inputs.pop()
        domain = "" if node.domain == onnx.defs.ONNX_DOMAIN else node.domain
        return _hash("node", domain, node.op_type, *sorted(kept), "inputs", *inputs)

    def defaults(self, node: NodeProto) -> dict[str, str]:
        """Return what attributes are where they are not spelled out."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:  # an operator of another domain
            return {}
        return {name: self.attribute(entry.default_value, {}) for name, entry in schema.attributes.items()}

    def attribute(self, attribute: AttributeProto, known: dict[str, str]) -> str:
        if attribute.HasField("t"):
            return _hash(attribute.name, self.tensor(attribute.t))
        graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        if graphs:
            return _hash(attribute.name, *(self.graph(each, known) for each in graphs))
        plain = AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        return _hash(attribute.name, plain.SerializeToString(deterministic=True).hex())

    def tensor(self, tensor: TensorProto) -> str:
        """Weights by type and size; other numbers (sizes, axes) by value, for they are part of the structure."""
        sizes = [str(size) for size in tensor.dims]
        if tensor.data_type in (*_FLOATING, *_QUANTISED):
            values = [hashlib.sha256(_bytes(tensor)).hexdigest()] if self.weights else []
            return _hash("weight", str(tensor.data_type), *sizes, *values)
        return _hash("constant", str(tensor.data_type), *sizes, _bytes(tensor).hex())


def _bytes(tensor: TensorProto) -> bytes:
    return bytes(tensor.raw_data) if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
