"""A graph without what only hides it: constants computed once, no identities, no dead nodes, shapes known.

onnxscript computes the constants and onnx_ir removes what nobody reads. Neither fuses anything: every norm stays.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from msn_deploy.graph.affine import constant
from msn_deploy.graph.edits import set_constant
from msn_deploy.graph.sequences import has_old_sequences, split_plainly, type_sequences

_MOST_GROWTH = 1 << 22  # numbers (16 MiB of float32) that a file may gain, beside as many as it has
_WEIGHTS_ARE_NO_INPUTS = 4  # version of ONNX's representation since which they need not be listed as such
_TRACE = "pkg.onnxscript.optimizer.folded_from"  # which names of tensors fold_constants leaves in the file
_SAME_NUMBERS = ("Reshape", "Unsqueeze", "Squeeze")


def cleaned(model: ModelProto) -> ModelProto:
    """Return a clean model; the input is left alone."""
    graph = ir.from_proto(model)
    clean(graph)
    return ir.to_proto(graph)


def clean(model: ir.Model) -> None:
    """Clean a model in place."""
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
    with _quiet():
        _lift(model)
        names = _prepare(model.graph)
        _infer_shapes(model)
        split_plainly(model)
        _drop_identities(model)
        if not has_old_sequences(model):
            _fold_constants(model)
        _lift(model)
        split_plainly(model)  # by sizes that are computed now
        _drop_identities(model)
        _make_numbers(model)
        common.RemoveUnusedNodesPass()(model)
        _infer_shapes(model)
    for graph in model.graphs():
        for value in (*graph.initializers.values(), *(output for node in graph for output in node.outputs)):
            value.metadata_props.pop(_TRACE, None)
    for value in list(model.graph.initializers.values()):
        if names.get(str(value.name), value.name) not in model.graph.initializers:
            value.name = names[str(value.name)]


def _fold_constants(model: ir.Model) -> None:
    try:
        fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=sys.maxsize,
            output_size_limit=sys.maxsize,
            should_fold=_Budget(model.graph),
        )
    except RuntimeError:  # what it raises of an operator that it knows, and did not expect in this form
        common.NameFixPass()(model)  # its last step; what it has not reached stays an operator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings (with tracebacks) of what can't be inferred or computed: it stays as it was."""
    loud = [logging.getLogger(name) for name in ("onnx_ir.passes.common", "onnxscript.optimizer")]
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def _infer_shapes(model: ir.Model) -> None:
    type_sequences(model)
    # Not strict: an operator that can't be inferred leaves its own sizes open, and not those of the whole graph.
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _drop_identities(model: ir.Model) -> None:
    """Remove every Identity but those that make an output of what their own graph does not compute.

    onnx_ir's pass breaks branches that return a value from around them.
    """
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Identity" and not node.domain]:
            value, made = node.inputs[0], node.outputs[0]
            if value is None:
                continue
            if made.is_graph_output():
                source = value.producer()
                if source is None or source.graph is not graph or value.is_graph_output():
                    continue
                value.shape, value.type = made.shape or value.shape, value.type or made.type
                name, made.name = made.name, None
                made.replace_all_uses_with(value, replace_graph_outputs=True)
                value.name = name
            made.replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _make_numbers(model: ir.Model) -> None:
    """Give Range numbers where it reads lists of one.

    ONNX's own expansion of AffineGrid has such; ONNX Runtime takes them where they are computed, but not as constants.
    """
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Range" and not node.domain]:
            for at, value in enumerate(node.inputs):
                array = constant(value)
                if array is not None and array.shape == (1,):
                    set_constant(node, at, array.reshape(()))


def _lift(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _prepare(graph: ir.Graph) -> dict[str, str]:
    """Make ready for the passes; return the names of constants that are parameters in another shape, and of those.

    Nodes without a name get that of their output, which they are called by elsewhere, before a pass makes one up. What
    a file says of the shapes of its constants goes: sizes are trusted later, and it may say anything.
    """
    names: dict[str, str] = {}
    constants = {value for value in graph.initializers.values() if not value.is_graph_input()}
    for node in graph:
        node.name = node.name or node.outputs[0].name
        if node.op_type == "Dropout" and not node.domain and len(node.inputs) == 1 and not node.outputs[1:]:
            node.op_type = "Identity"  # before opset 12; later ones are known to the library
            node.attributes.clear()
        if node.op_type in ("Shape", "Size") or all(value is None or value in constants for value in node.inputs):
            for output in node.outputs:
                output.shape = None
                constants.add(output)
        first = node.inputs[0] if node.op_type in _SAME_NUMBERS else None
        if first is not None and first in constants and len(first.uses()) == 1:
            names[str(node.outputs[0].name)] = names.get(str(first.name), str(first.name))
    return names


class _Budget:
    """Which nodes may be computed: together they may not make the file much larger. Q/DQ is refused by the library."""

    def __init__(self, graph: ir.Graph) -> None:
        self.left = _MOST_GROWTH + _numbers(graph.initializers.values())

    def __call__(self, node: ir.Node) -> bool | None:
        """Return False for a node that stays, None where the library decides, and True where it would not."""
        (output, *others), shape = node.outputs, node.outputs[0].shape
        if others or output.is_graph_output() or shape is None or not shape.is_static() or node.op_type == "Bernoulli":
            return False
        gone = {value for value in node.inputs if value is not None and len(value.uses()) == 1}
        growth = math.prod(shape.numpy()) - _numbers(gone)
        if growth > self.left:
            return False
        self.left -= growth
        return True if node.op_type == "ConstantOfShape" else None


def _numbers(constants: Iterable[ir.Value]) -> int:
    return sum(value.const_value.size for value in constants if value.const_value is not None)
