"""Per-channel affine maps y = scale * x + shift in an ONNX graph: recognised in any spelling, composed, written back.

A BatchNormalization in evaluation is one, and so is an Add, Sub, Mul or Div with a constant per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Affine:
    """y = scale * x + shift, both (C,) in float64, along axis 1."""

    scale: Vector
    shift: Vector

    def after(self, first: Affine) -> Affine:
        """Return the map that applies `first`, then this one."""
        return Affine(scale=self.scale * first.scale, shift=self.scale * first.shift + self.shift)

    def part(self, start: int, stop: int) -> Affine:
        """Return the map of the channels from start to stop."""
        return Affine(scale=self.scale[start:stop], shift=self.shift[start:stop])

    @property
    def only_scales(self) -> bool:
        """Whether the shift is zero in every channel."""
        return not self.shift.any()

    @property
    def is_finite(self) -> bool:
        """Whether every number in it is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


def constant(value: ir.Value | None) -> NDArray | None:  # type: ignore[type-arg]
    """Return the array that a value always is, or None if it is computed from the input."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    array: NDArray = value.const_value.numpy()  # type: ignore[type-arg]
    return array


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """Return the value of a node's attribute, or the default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def integers(node: ir.Node, name: str) -> list[int]:
    """Return a node's attribute that is a list of integers; empty where it is not there."""
    found = attribute(node, name, ())
    assert isinstance(found, (list, tuple))
    return [int(each) for each in found]


def channels_of(value: ir.Value | None) -> int | None:
    """Return the size of axis 1, or None where it is not known."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None


def affine_of(node: ir.Node) -> tuple[int, Affine] | None:
    """Return which input of a node is mapped, and how, if the node is a per-channel affine map; else None."""
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        terms = [constant(value) for value in node.inputs[1:5]]
        if attribute(node, "training_mode", 0) or any(term is None for term in terms):
            return None
        gain, bias, mean, var = (np.asarray(term, dtype=np.float64) for term in terms)
        if not gain.shape == bias.shape == mean.shape == var.shape == (channels_of(node.inputs[0]),):
            return None
        with np.errstate(invalid="ignore", divide="ignore"):  # a bad variance is reported by who asks, not here
            scale = gain / np.sqrt(var + np.float64(attribute(node, "epsilon", 1e-5)))  # type: ignore[arg-type]
        return 0, Affine(scale=scale, shift=bias - mean * scale)
    if node.op_type not in _ARITHMETIC or len(node.inputs) != 2:
        return None
    left, right = (constant(value) for value in node.inputs)
    if (left is None) == (right is None) or (left is not None and node.op_type == "Div"):
        return None
    mapped, number = (0, right) if left is None else (1, left)
    assert number is not None
    vector = _per_channel(number, node.inputs[mapped])
    if vector is None:
        return None
    one, zero = np.ones_like(vector), np.zeros_like(vector)
    with np.errstate(divide="ignore"):
        inverse = one / vector
    if node.op_type == "Add":
        return mapped, Affine(scale=one, shift=vector)
    if node.op_type == "Sub":
        return mapped, Affine(scale=one, shift=-vector) if mapped == 0 else Affine(scale=-one, shift=vector)
    return mapped, Affine(scale=vector if node.op_type == "Mul" else inverse, shift=zero)


def _per_channel(number: NDArray, value: ir.Value | None) -> Vector | None:  # type: ignore[type-arg]
    """Return a constant that is broadcast against a value as (C,), or None if it is not one number per channel."""
    channels = channels_of(value)
    if channels is None or number.dtype.kind != "f":
        return None
    assert value is not None
    assert value.shape is not None
    rank = len(value.shape)
    if number.ndim > rank:
        return None
    sizes = (1,) * (rank - number.ndim) + number.shape
    if sizes[1] not in (1, channels) or any(size != 1 for axis, size in enumerate(sizes) if axis != 1):
        return None
    return np.broadcast_to(number.reshape(-1), (channels,)).astype(np.float64)
