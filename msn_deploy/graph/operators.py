"""What one operator does to constants, to channels and at the border, as far as it can be known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import attribute, channels_of, constant, integers


def sees_no_border(node: ir.Node) -> bool:
    """Whether a constant before a convolution is one constant per channel behind it."""
    if node.op_type == "ConvTranspose":
        return False  # its border gets fewer contributions, and with a stride every position gets its own
    padded = attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(integers(node, "pads"))
    weight = constant(node.inputs[1])
    assert weight is not None
    # SAME pads nothing where the kernel is one pixel.
    same = str(attribute(node, "auto_pad", "")).startswith("SAME") and set(weight.shape[2:]) == {1}
    return same or not padded


def keeps_constants(node: ir.Node) -> bool:
    """Whether a pooling maps a constant to itself at the border, too."""
    if node.op_type != "AveragePool" or not attribute(node, "count_include_pad", 0):
        return True
    if any(integers(node, "pads")) or attribute(node, "ceil_mode", 0):
        return False
    return attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def keeps_channels(node: ir.Node) -> bool:
    """Whether a pooling or reduction leaves the first two axes alone."""
    if node.op_type != "ReduceMean":
        return True
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(integers(node, "axes"))
    rank = rank_of(node.inputs[0])
    if axes is None or axes.size == 0 or rank == 0:
        return False
    return all(int(axis) % rank >= 2 for axis in axes.ravel())


def interpolates(node: ir.Node) -> bool:
    """Whether a Resize makes every output a mean of inputs of its channel, with weights that sum to one."""
    if attribute(node, "mode", "nearest") not in ("nearest", "linear"):
        return False
    if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    return channels_of(node.inputs[0]) is not None and channels_of(node.inputs[0]) == channels_of(node.outputs[0])


def is_channel_axis(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Concat joins channels, of known number; value: one of its tensors."""
    axis, rank = attribute(node, "axis", 0), rank_of(value)
    assert isinstance(axis, int)
    return rank >= 2 and axis % rank == 1 and all(channels_of(each) is not None for each in node.inputs)


def broadcasts(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether two tensors may differ in shape."""
    if left is None or right is None or left.shape is None or right.shape is None:
        return True
    return list(left.shape) != list(right.shape) or rank_of(left) < 2


def rank_of(value: ir.Value | None) -> int:
    """Return the number of axes, 0 where it is not known."""
    return 0 if value is None or value.shape is None else len(value.shape)


def named(node: ir.Node) -> str:
    """Return what people can find a node by."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"
