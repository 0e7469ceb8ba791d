"""Per-channel affine maps y = scale * x + shift in an ONNX graph: recognised in any spelling, and composed.

A BatchNormalization in evaluation is one, and so is an Add, Sub, Mul or Div with a constant per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Vector = NDArray[np.float64]
T = TypeVar("T")
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
    def only_shifts(self) -> bool:
        """Whether the scale is one in every channel."""
        return bool((self.scale == 1).all())

    @property
    def is_finite(self) -> bool:
        """Whether every number in it is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """What a node that is an affine map reads, and the map."""

    value: ir.Value
    of: Affine


def present(found: T | None) -> T:
    """Return what every valid node has, such as its first input."""
    if found is None:
        raise ValueError("a node without what its operator needs; the graph was not checked")
    return found


def constant(value: ir.Value | None) -> Array | None:
    """Return the array that a value always is, or None if it is computed from the input."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def shape_of(value: ir.Value | None) -> tuple[int | None, ...]:
    """Return the sizes of a value, None for one that is not known; () where not even their number is known."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def channels_of(value: ir.Value | None) -> int | None:
    """Return the size of axis 1, or None where it is not known."""
    return (*shape_of(value), None, None)[1]


def affine_of(node: ir.Node) -> Mapped | None:
    """Return what a node maps, and how, if it is a per-channel affine map; else None."""
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return _of_norm(node)
    if node.op_type not in _ARITHMETIC or len(node.inputs) != 2:
        return None
    for at, value in enumerate(node.inputs):
        number = constant(node.inputs[1 - at])
        if value is None or constant(value) is not None or number is None or (at == 1 and node.op_type == "Div"):
            continue
        vector = _per_channel(number, value)
        if vector is not None:
            one, zero = np.ones_like(vector), np.zeros_like(vector)
            with np.errstate(divide="ignore"):
                inverse = one / vector
            scale, shift = {
                "Add": (one, vector),
                "Sub": (one, -vector) if at == 0 else (-one, vector),
                "Mul": (vector, zero),
                "Div": (inverse, zero),
            }[node.op_type]
            return Mapped(value, Affine(scale=scale, shift=shift))
    return None


def _of_norm(node: ir.Node) -> Mapped | None:
    value, terms = node.inputs[0], [constant(each) for each in node.inputs[1:5]]
    vectors = [np.asarray(term, dtype=np.float64) for term in terms if term is not None]
    if value is None or node.attributes.get_int("training_mode", 0) != 0 or len(vectors) < 4:
        return None
    gain, bias, mean, var = vectors
    channels = channels_of(value) or gain.size  # shape inference may have failed
    if not gain.shape == bias.shape == mean.shape == var.shape == (channels,):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):  # a bad variance is reported by who asks, not here
        scale = gain / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    return Mapped(value, Affine(scale=scale, shift=bias - mean * scale))


def _per_channel(number: Array, value: ir.Value) -> Vector | None:
    """Return a constant that is broadcast against a value as (C,), or None if it is not one number per channel."""
    channels, rank = channels_of(value), len(shape_of(value))
    if channels is None or number.dtype.kind != "f" or number.ndim > rank:
        return None
    sizes = (1,) * (rank - number.ndim) + number.shape
    if sizes[1] not in (1, channels) or any(size != 1 for axis, size in enumerate(sizes) if axis != 1):
        return None
    return np.broadcast_to(number.reshape(-1), (channels,)).astype(np.float64)
