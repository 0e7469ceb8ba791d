"""What does an ONNX graph compute in float64? The truth that folds and other tools' graphs are held against."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from msn_deploy.core.errors import InputError
from msn_deploy.graph.reference import OPERATORS

Array = NDArray[Any]
Values = dict[str, Array]


def run_float64(model: ModelProto, x: Array) -> Array:
    """Return the first output for one input batch (N, ...), computed in float64 from the model's weights."""
    return values_float64([to_double(model)], [x])[0][0][model.graph.output[0].name]


def values_float64(models: Sequence[ModelProto], batches: Sequence[Array]) -> list[list[Values]]:
    """Return every tensor of graphs of doubles (see `to_double`) by name, per graph and input batch (N, ...).

    Every graph and batch is a task for a thread. Raises InputError for a graph that the reference implementation can't
    run.
    """
    try:
        evaluators = [ReferenceEvaluator(model, new_ops=OPERATORS) for model in models]
        with ThreadPoolExecutor() as pool, one_thread_each(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only weights; nothing here writes
            found = pool.map(lambda task: _run(*task), product(evaluators, batches))
            return [list(islice(found, len(batches))) for _ in models]
    except Exception as cause:  # whatever numpy or the reference raises on an operator that it can't run
        first = (str(cause).splitlines() or [""])[0][:160]
        raise InputError(
            f"the graph could not be evaluated in float64, to prove its folds: {type(cause).__name__}: {first}\n"
            "`--no-fold` exports it with its norms as they are."
        ) from cause


def _run(evaluator: ReferenceEvaluator, x: Array) -> Values:
    given = next(name for name in evaluator.input_names if name not in evaluator.rt_inits_)
    found = evaluator.run(None, {given: x.astype("float64")}, intermediate=True)
    return {name: value for name, value in found.items() if value is not None}  # optional inputs not there


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


def to_double(model: ModelProto) -> ModelProto:
    """Return a copy whose float32 tensors, casts and types are float64."""
    return _converted(model, TensorProto.FLOAT, TensorProto.DOUBLE)


def to_single(model: ModelProto) -> ModelProto:
    """Return a copy whose float64 tensors, casts and types are float32, each number rounded once."""
    return _converted(model, TensorProto.DOUBLE, TensorProto.FLOAT)


def _converted(model: ModelProto, old: int, new: int) -> ModelProto:
    """Return a copy of a model with one floating type in the place of another; float32 and float64 are meant."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graphs = [copied.graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            _convert_tensor(tensor, old, new)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == old:
                value.type.tensor_type.elem_type = new
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _convert_tensor(attribute.t, old, new)
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                    attribute.i = new
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return copied


def _convert_tensor(tensor: TensorProto, old: int, new: int) -> None:
    if tensor.data_type == old:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(new)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
