"""What one operator does to constants, to channels and at the border, as far as it can be known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from msn_deploy.graph.affine import channels_of, constant, present, shape_of

_NO_PADDING = ("NOTSET", "VALID")


def sees_no_border(node: ir.Node) -> bool:
    """Whether a constant before a convolution is one constant per channel behind it."""
    if node.op_type == "ConvTranspose":
        return False  # its border gets fewer contributions, and with a stride every position gets its own
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    # SAME pads nothing where the kernel is one pixel.
    same = auto.startswith("SAME") and set(present(constant(node.inputs[1])).shape[2:]) == {1}
    return same or (auto in _NO_PADDING and not any(node.attributes.get_ints("pads", ())))


def keeps_constants(node: ir.Node) -> bool:
    """Whether a pooling maps a constant to itself at the border, too."""
    given = node.attributes
    if node.op_type != "AveragePool" or given.get_int("count_include_pad", 0) == 0:
        return True
    if any(given.get_ints("pads", ())) or given.get_int("ceil_mode", 0) != 0:
        return False
    return given.get_string("auto_pad", "NOTSET") in _NO_PADDING


def makes_smaller(pool: ir.Node) -> bool:
    """Whether a pooling has a stride."""
    return max(pool.attributes.get_ints("strides", ()), default=1) > 1


def keeps_channels(node: ir.Node) -> bool:
    """Whether a pooling, a reduction or a cut leaves the first two axes alone."""
    at = {"ReduceMean": 1, "Slice": 3}.get(node.op_type)
    if at is None:
        return True
    axes = constant(node.inputs[at]) if len(node.inputs) > at else np.array(node.attributes.get_ints("axes", ()))
    rank = len(shape_of(node.inputs[0]))
    if axes is None or axes.size == 0 or rank == 0:
        return False
    return all(int(axis) % rank >= 2 for axis in axes.ravel())


def interpolates(node: ir.Node) -> bool:
    """Whether a Resize or Upsample makes every output a mean of inputs of its channel, with weights that sum to one."""
    if node.attributes.get_string("mode", "nearest") not in ("nearest", "linear"):
        return False
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False
    before, after = channels_of(node.inputs[0]), channels_of(node.outputs[0])
    return before is not None and before == after


def is_channel_axis(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Concat joins channels, of known number; value: one of its tensors."""
    rank = len(shape_of(value))
    if rank < 2 or node.attributes.get_int("axis", 0) % rank != 1:
        return False
    return all(channels_of(each) is not None for each in node.inputs)


def channel_order(node: ir.Node) -> NDArray[np.int64] | None:
    """Return which channels a Gather takes, in their order; None for any other node, and where that is not known."""
    if node.op_type != "Gather" or node.domain:
        return None
    order = constant(node.inputs[1])
    channels, rank = channels_of(node.inputs[0]), len(shape_of(node.inputs[0]))
    if order is None or order.ndim != 1 or channels is None or node.attributes.get_int("axis", 0) % rank != 1:
        return None
    return np.asarray(order, dtype=np.int64) % channels


def broadcasts(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether two tensors may differ in shape."""
    if left is None or right is None or left.shape is None or right.shape is None:
        return True
    return list(left.shape) != list(right.shape) or len(left.shape) < 2


def named(node: ir.Node) -> str:
    """Return what people can find a node by."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"
