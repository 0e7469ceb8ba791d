"""From a torch network to an ONNX graph, by torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from msn_deploy.core.errors import InputError, first_line
from msn_deploy.model.opset import from_18_to_17, not_converted
from msn_deploy.msn.pairs import BATCH_NORMS
from msn_deploy.msn.plain import copied

INPUT_NAME = "input"
OUTPUT_NAME = "logits"
LOWEST_OPSET = 18  # that torch's exporter writes; below it, converters are at work
DEFAULT_OPSET = 17  # what TensorRT 8.5 and 8.6 still read; the exporter writes 18 and converts
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def to_onnx(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...],
    dynamic_batch: bool = False,
    opset: int = DEFAULT_OPSET,
    optimize: bool = True,
) -> ModelProto:
    """Export a network in evaluation mode; input (N, C, H, W) called "input", in the precision of the weights.

    The output is called "logits".

    optimize=False keeps every BatchNormalization as a node of its own, where the exporter would fuse it. The same
    network gives the same bytes. Raises InputError if the network can't be exported or runs on no such input.
    """
    if any(module.training for module in model.modules()):
        raise InputError("the network is in training mode; call eval() before it is exported.")
    model = copied(model, share=True).cpu()
    if not optimize:
        _spell_out(model)
    # A batch of two while tracing: torch.export takes a dynamic size of one for a constant.
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    example = torch.zeros((2 if dynamic_batch else input_shape[0], *input_shape[1:]), dtype=dtype)
    try:
        with _quiet():
            program: Any = torch.onnx.export(  # not None, with dynamo
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                optimize=optimize,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
                external_data=False,
                verbose=False,
            )
    except Exception as cause:  # errors of its own, and what its converters raise
        require_one_output(model, example)
        raise InputError(f"torch could not export the network: {_said(cause)}") from cause
    proto: ModelProto = program.model_proto
    returned = program.exported_program.call_spec.out_spec
    if len(proto.graph.output) != 1 or (returned is not None and not returned.is_leaf()):
        require_one_output(model, example)
    written = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if written != opset and not (opset == 17 and written == 18 and from_18_to_17(proto)):
        raise not_converted(written, opset)
    _drop_traces(proto)
    return proto


def require_one_output(model: nn.Module, example: torch.Tensor) -> None:
    """Raise the InputError of a network that does not run, or returns no tensor: torch's exporter says less of it.

    Asked afterwards: a run of a large network takes long, and most are fine.
    """
    try:
        with torch.inference_mode():
            output = model(example)
    except Exception as cause:  # whatever the network itself raises on an input that does not suit it
        raise InputError(
            f"the network does not run on an input of shape {tuple(example.shape)}: {_said(cause)}\n"
            "Check `--input-shape`."
        ) from cause
    if not isinstance(output, torch.Tensor):
        raise InputError(f"the network returns {type(output).__name__}; networks with one output tensor are supported.")


def _said(cause: Exception) -> str:
    return f"{type(cause).__name__}: {first_line(cause)}"


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
