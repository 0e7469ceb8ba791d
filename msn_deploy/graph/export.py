"""From a torch network to an ONNX graph, by torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx import ModelProto
from torch import nn

from msn_deploy.core.errors import InputError, root_line
from msn_deploy.graph.calls import INPUT_NAME, Call, returns_flat
from msn_deploy.model.feeds import ExampleInput, fixed_input, random_feeds, with_open_batch
from msn_deploy.model.graphs import free_name
from msn_deploy.model.opset import DEFAULT_OPSET, to_opset
from msn_deploy.msn.pairs import BATCH_NORMS
from msn_deploy.msn.plain import copied

LOWEST_OPSET = 18  # that torch's exporter writes
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def to_onnx(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    inputs: Sequence[ExampleInput] | None = None,
    dynamic_batch: bool = False,
    opset: int = DEFAULT_OPSET,
    optimize: bool = True,
) -> ModelProto:
    """Export a network in evaluation mode. Inputs keep their names, outputs have the names of `calls.named_tensors`.

    Args:
        model: It may take and return any nesting of tensors.
        input_shape: Of the only input, called "input", in the precision of the weights.
        inputs: In place of `input_shape`: every input.
        dynamic_batch: Whether the first size stays open, in all inputs that share it.
        opset: Of the graph.
        optimize: False keeps every BatchNormalization as a node of its own, where the exporter would fuse it.

    Returns:
        The graph; the same network gives the same bytes.

    Raises:
        InputError: The network can't be exported, or does not run on such inputs.
    """
    if any(module.training for module in model.modules()):
        raise InputError("the network is in training mode; call eval() before it is exported.")
    original, model = model, copied(model, share=True).cpu()
    if not optimize:
        _spell_out(model)
    if inputs is None:
        floats = (str(each.dtype).removeprefix("torch.") for each in model.parameters() if each.is_floating_point())
        inputs = (fixed_input(INPUT_NAME, next(floats, "float32"), input_shape or ()),)
    call = Call(model, with_open_batch(inputs) if dynamic_batch else inputs)
    examples = random_feeds([_traceable(each) for each in call.specs])
    args, kwargs = call.arguments(examples)
    names = returns_flat(model, inputs=[spec.name for spec in call.specs])
    try:
        with _quiet():
            program: Any = torch.onnx.export(  # not None, with dynamo
                model,
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=max(opset, LOWEST_OPSET),
                optimize=optimize,
                input_names=[spec.name for spec in call.specs],
                dynamic_shapes=call.dynamic_shapes(model, args, kwargs),
                external_data=False,
                verbose=False,
            )
            _name_values(program.model.graph, names)
            _name_sizes(program.model.graph, call.specs)
            proto: ModelProto = program.model_proto
    except Exception as cause:  # errors of its own, and what its converters raise
        call.run(copied(original, share=True).cpu(), examples)
        raise InputError(f"torch could not export the network: {root_line(cause)}") from cause
    _drop_traces(proto)
    return to_opset(proto, opset)


def _traceable(given: ExampleInput) -> ExampleInput:
    """While tracing, torch.export takes an open size of one for a constant."""
    return given.sized({name: max(2, size) for size, name in zip(given.shape, given.open, strict=True) if name})


def _name_sizes(graph: ir.Graph, inputs: Sequence[ExampleInput]) -> None:
    """Give open sizes their names in place of those that torch made up."""
    names = {}
    for value, given in zip(graph.inputs, inputs, strict=True):
        for size, name in zip(value.shape or (), given.open, strict=True):
            if isinstance(size, ir.SymbolicDim) and size.value and name:
                names[size.value] = name
    made = (value for node in graph for value in node.outputs)
    for value in [*graph.inputs, *made]:
        if value.shape is not None:
            sizes = [each.value if isinstance(each, ir.SymbolicDim) else each for each in value.shape]
            value.shape = ir.Shape([names.get(each, each) if isinstance(each, str) else each for each in sizes])


def _name_values(graph: ir.Graph, outputs: Sequence[str]) -> None:
    """Give the outputs their names, and every other tensor one that no other has.

    torch calls a parameter or buffer at the top of a network and a node alike, such as "mean"; ONNX wants one of each.
    """
    taken = {str(value.name) for value in graph.inputs}
    for at, name in enumerate(outputs):
        if graph.outputs[at].is_graph_input():  # one tensor cannot be both
            given, node = graph.outputs[at], ir.Node("", "Identity", [graph.outputs[at]], num_outputs=1)
            node.outputs[0].type, node.outputs[0].shape = given.type, given.shape
            graph.append(node)
            graph.outputs[at] = node.outputs[0]
        graph.outputs[at].name = free_name(name, taken)
    named = set(graph.outputs)
    made = (value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs)
    for value in [*graph.initializers.values(), *made]:
        if value not in named and value.name:
            named.add(value)
            value.name = free_name(value.name, taken)


def _spell_out(model: nn.Module) -> None:
    """Add zero biases, unit gains and zero shifts, which change no value.

    Without them the unoptimised exporter spells each as four nodes, and a gain in a shape that ONNX does not allow.
    """
    for module in model.modules():
        if isinstance(module, _CONVS) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            if module.weight is None:
                module.weight = nn.Parameter(torch.ones_like(module.running_mean))
            if module.bias is None:
                module.bias = nn.Parameter(torch.zeros_like(module.running_mean))


def _drop_traces(proto: ModelProto) -> None:
    """Remove stack traces and paths of this machine, which the exporter leaves in every node."""
    for entry in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports every missing optional package and conversion on the terminal."""
    loud = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loud]
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        for logger in loud:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
