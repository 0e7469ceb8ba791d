"""One operator, computed: in float64 by our own kernels, by onnx's reference or by ONNX Runtime, else in float32.

onnx's reference implementation has nearly every operator, but not every one of them right in every opset; those that
differ from ONNX Runtime are kernels of ours, or asked of ONNX Runtime (`_NOT_BY_THE_REFERENCE`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, TypeProto, helper
from onnx.reference import ReferenceEvaluator

import msn_deploy.graph.convolve  # these register their kernels
import msn_deploy.graph.resize  # noqa: F401
from msn_deploy.core.errors import first_line
from msn_deploy.core.optional import require
from msn_deploy.graph.doubles import to_single
from msn_deploy.graph.kernels import KERNELS, Call

_NOT_BY_THE_REFERENCE = {"RNN": math.inf, "GRU": math.inf, "LSTM": math.inf, "RoiAlign": 16}
"""Operators that onnx's reference (1.23) gets wrong below an opset: most attributes of the recurrent ones, and older
coordinates."""

Value = Any
"""An array, a list of arrays (a sequence), or None for an input or output that is left out."""


class CannotCompute(Exception):
    """Nobody here computes this operator."""


@dataclass(slots=True)
class Operator:
    """One node that can be run any number of times."""

    node: ir.Node
    opsets: Mapping[str, int]
    in_float32: bool = False
    """Whether its last outputs are numbers of float32."""
    _call: Call = field(init=False)
    _by: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        node = self.node
        given = {name: _python(attribute) for name, attribute in node.attributes.items()}
        self._call = Call(node.op_type, self.opsets.get(node.domain, 1), given, len(node.outputs))

    def __call__(self, inputs: Sequence[Value]) -> Sequence[Value]:
        """Return the outputs. Raises CannotCompute."""
        self.in_float32 = False
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # torch's of read-only weights, numpy's of what overflows
            reasons = []
            for compute in (self._by_kernel, self._by_reference, self._by_runtime):
                try:
                    return compute(inputs)
                except Exception as cause:  # whatever each raises on an operator that it can't run
                    reasons.append(f"{type(cause).__name__}: {first_line(cause)}")
        raise CannotCompute(reasons[-2] if "NotImplemented" not in reasons[-2] else reasons[-1])

    def _by_kernel(self, inputs: Sequence[Value]) -> Sequence[Value]:
        if self.node.domain or self.node.op_type not in KERNELS:
            raise NotImplementedError
        made = KERNELS[self.node.op_type](self._call, *inputs)
        return made if isinstance(made, tuple) else (made,)

    def _by_reference(self, inputs: Sequence[Value]) -> Sequence[Value]:
        if self.node.domain not in ("", "ai.onnx.ml") or self._is_wrong_in_the_reference():
            raise NotImplementedError
        evaluator = ReferenceEvaluator(self._alone(inputs, self.node))
        made: Any = evaluator.run(None, _named(inputs))
        return _in_order(self.node, made)

    def _is_wrong_in_the_reference(self) -> bool:
        return self._call.version < _NOT_BY_THE_REFERENCE.get(self.node.op_type, 0)

    def _by_runtime(self, inputs: Sequence[Value]) -> Sequence[Value]:
        """Ask for doubles first, which ONNX Runtime has for some operators."""
        try:
            return _in_order(self.node, _run(self._alone(inputs, self.node), _named(inputs)))
        except Exception:  # of many kinds: no kernel for doubles, or none at all
            narrow = [_cast(each, np.float64, np.float32) for each in inputs]
            model = ir.from_proto(self._alone(narrow, self.node))
            to_single(model)
            made = _run(ir.to_proto(model), _named(narrow))
            self.in_float32 = True
            return _in_order(self.node, [_cast(each, np.float32, np.float64) for each in made])

    def _alone(self, inputs: Sequence[Value], node: ir.Node) -> ModelProto:
        proto = ir.serde.serialize_node(node)
        del proto.input[:], proto.output[:]
        proto.input.extend("" if each is None else f"i{at}" for at, each in enumerate(inputs))
        proto.output.extend(f"o{at}" if value.name else "" for at, value in enumerate(node.outputs))
        graph = helper.make_graph(
            [proto],
            "one",
            [helper.make_value_info(f"i{at}", _type(each)) for at, each in enumerate(inputs) if each is not None],
            [helper.make_value_info(name, TypeProto()) for name in proto.output if name],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        if node.domain not in self.opsets:
            opsets.append(helper.make_opsetid(node.domain, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _run(model: ModelProto, feed: Mapping[str, Value]) -> Sequence[Value]:
    onnxruntime: Any = require("onnxruntime", step="computing an operator that has no float64")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made: Sequence[Value] = session.run(None, dict(feed))
    return made


def _named(inputs: Sequence[Value]) -> dict[str, Value]:
    return {f"i{at}": each for at, each in enumerate(inputs) if each is not None}


def _in_order(node: ir.Node, made: Sequence[Value]) -> list[Value]:
    """Return outputs in the places that they have in the node, of which some may be left out."""
    found = iter(made)
    return [next(found) if value.name else None for value in node.outputs]


def _type(value: Value) -> TypeProto:
    if isinstance(value, list):
        inner = _type(value[0]) if value else helper.make_tensor_type_proto(1, None)
        return helper.make_sequence_type_proto(inner)
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype)
    return helper.make_tensor_type_proto(kind, [None] * np.ndim(value))


def _cast(value: Value, old: Any, new: Any) -> Value:
    if isinstance(value, list):
        return [_cast(each, old, new) for each in value]
    return value.astype(new) if isinstance(value, np.ndarray) and value.dtype == old else value


def _python(attribute: ir.Attr) -> Any:
    """Return what an attribute holds."""
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    return attribute.value
