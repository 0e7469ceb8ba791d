"""What does an ONNX graph compute in float64? The truth that folds and other tools' graphs are held against."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from msn_deploy.core.errors import InputError
from msn_deploy.graph.reference import OPERATORS

Array = NDArray[Any]
Values = dict[str, Array]


def run_float64(model: ModelProto, x: Array) -> Array:
    """Return the first output for one input batch (N, ...), computed in float64 from the model's weights."""
    double = ir.from_proto(model)
    to_double(double)
    name = model.graph.output[0].name
    return values_float64([double], [x], {name})[0][0][name]


def values_float64(models: Sequence[ir.Model], batches: Sequence[Array], wanted: Collection[str]) -> list[list[Values]]:
    """Return the wanted tensors of graphs of doubles (see `to_double`) by name, per graph and input batch (N, ...).

    Every graph and batch is a task for a thread. Raises InputError for a graph that the reference implementation can't
    run.
    """
    try:
        evaluators = [_evaluator(model) for model in models]
        with ThreadPoolExecutor(os.cpu_count()) as pool, one_thread_each(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only weights; nothing here writes
            found = pool.map(lambda task: _run(*task, wanted), product(evaluators, batches))
            return [list(islice(found, len(batches))) for _ in models]
    except Exception as cause:  # whatever numpy or the reference raises on an operator that it can't run
        first = (str(cause).splitlines() or [""])[0][:160]
        raise InputError(
            f"the graph could not be evaluated in float64, to prove its folds: {type(cause).__name__}: {first}\n"
            "`--no-fold` exports it with its norms as they are."
        ) from cause


def _evaluator(model: ir.Model) -> ReferenceEvaluator:
    """Return what runs the graph on the very arrays of its weights, which a protocol buffer would copy twice."""
    bare = model.clone()
    bare.graph.initializers.clear()
    evaluator = ReferenceEvaluator(ir.to_proto(bare), new_ops=OPERATORS)
    weights = model.graph.initializers.values()
    evaluator.rt_inits_.update({value.name: value.const_value.numpy() for value in weights if value.const_value})
    return evaluator


def _run(evaluator: ReferenceEvaluator, x: Array, wanted: Collection[str]) -> Values:
    given = next(name for name in evaluator.input_names if name not in evaluator.rt_inits_)
    found = evaluator.run(None, {given: x.astype("float64")}, intermediate=True)
    return {name: value for name, value in found.items() if name in wanted}  # the next run takes the others' memory


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let each thread's operators of torch run in that thread alone.

    The threads of small operators mostly wait for each other, busily, and where a core is taken by somebody else (the
    simplifier's process, say) an export takes several times as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_double(model: ir.Model) -> None:
    """Make the float32 tensors, casts and types of a graph float64, in place."""
    _convert(model, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def to_single(model: ir.Model) -> None:
    """Make the float64 tensors, casts and types of a graph float32, in place, each number rounded once."""
    _convert(model, ir.DataType.DOUBLE, ir.DataType.FLOAT)


def _convert(model: ir.Model, old: ir.DataType, new: ir.DataType) -> None:
    """Put one floating type in the place of another; float32 and float64 are meant."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value.dtype == old:
                value.dtype = new
            if value.const_value is not None:
                value.const_value = _converted(value.const_value, old, new)
        for node in graph:
            for each in list(node.attributes.values()):
                if each.type == ir.AttributeType.TENSOR:
                    node.attributes[each.name] = ir.AttrTensor(each.name, _converted(each.as_tensor(), old, new))
            if node.op_type == "Cast" and node.attributes["to"].value == old:
                node.attributes["to"] = ir.AttrInt64("to", int(new))


def _converted(tensor: ir.TensorProtocol, old: ir.DataType, new: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(new.numpy()), name=tensor.name) if tensor.dtype == old else tensor
