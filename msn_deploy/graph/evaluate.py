"""What do ONNX graphs compute in float64? The truth that folds and other tools' graphs are compared with.

Several graphs are run side by side: a tensor that both make of the same by the same operators is computed once, each
is gone after its last reader, and the graphs are in step, so that what is compared is never held for long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_ir.passes import common

from msn_deploy.core.errors import InputError
from msn_deploy.graph.doubles import to_double, to_single
from msn_deploy.graph.kernels import KERNELS
from msn_deploy.graph.reference import CannotCompute, Operator, Value
from msn_deploy.graph.subgraphs import HOLDS_GRAPH, Bodies, captured

__all__ = ["Found", "apart", "run_float64", "to_double", "to_single", "values_float64"]

Array = NDArray[Any]
ROUNDING = 1e-9  # difference in float64 that is still rounding, times the largest value where that is above 1
_SMALL = 4096  # numbers up to which constants are told apart by what they hold
_CHUNK = 1 << 18  # numbers that are compared at a time
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
# Their result jumps where a number crosses a bound, or is one of several equal ones: rounding alone may change it.
_JUMPS = {
    *("ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Compress", "DynamicQuantizeLinear", "Equal", "Floor", "Greater"),
    *("GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod", "NonMaxSuppression", "NonZero", "OneHot"),
    *("QuantizeLinear", "Round", "Shrink", "Sign", "ThresholdedRelu", "TopK", "Unique", *_RANDOM),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """One tensor, for one feed, in every graph."""

    feed: int
    """Which of the feeds, from 0."""
    name: str
    values: tuple[Array, ...]
    """One per graph, in their order; none where the graphs make it of the same by the same operators."""
    in_float32: frozenset[str] = frozenset()
    """Names of the nodes on the way to it that could be computed in float32 only."""
    coarse: bool = False
    """Whether the rounding of float32 may be in what the graphs differ by."""


def run_float64(model: ModelProto, x: Array) -> Array:
    """Return the first output for one input batch (N, ...), computed in float64 from the model's weights."""
    double = ir.from_proto(model)
    to_double(double)
    name = str(double.graph.outputs[0].name)
    given = next(each for each in double.graph.inputs if str(each.name) not in double.graph.initializers)
    (found,) = values_float64([double], [{str(given.name): x}], {name})
    return found.values[0]


def values_float64(
    models: Sequence[ir.Model], feeds: Sequence[Mapping[str, Array]], wanted: Collection[str]
) -> Iterator[Found]:
    """Yield each wanted tensor of graphs of doubles (see `to_double`) for each feed, as soon as every graph has it.

    feeds: an array for every input, by its name; those of floats are cast to what the graph takes. What
    was yielded is not kept here. An operator that jumps, or that is computed in float32 only, is not computed again in
    a later graph that gives it the same inputs up to rounding.

    Raises InputError for an operator that nothing here can run.
    """
    plan = _Plan([_inlined(model) for model in models], wanted)
    for at, feed in enumerate(feeds):
        yield from _Run(plan, at, feed).found()


def apart(one: Value, other: Value) -> tuple[float, float]:
    """Return the largest absolute difference (infinite where one of both is not finite), and the largest value."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        each = [apart(a, b) for a, b in zip(one, other, strict=True)]
        return max((gap for gap, _ in each), default=0.0), max((size for _, size in each), default=0.0)
    a, b = np.asarray(one), np.asarray(other)
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return (0.0 if a.shape == b.shape and bool((a == b).all()) else np.inf), 0.0
    flat, against = a.reshape(-1), b.reshape(-1)
    difference = largest = 0.0
    for start in range(0, a.size, _CHUNK):
        x, y = (each[start : start + _CHUNK].astype(np.float64, copy=False) for each in (flat, against))
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(x - y)
            size = np.abs(x)
        worst = gap.max()
        if not np.isfinite(worst):
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
            gap[np.isnan(gap)] = np.inf
            worst, size = gap.max(), size[np.isfinite(size)]
        difference, largest = max(difference, float(worst)), max(largest, float(size.max(initial=0.0)))
    return difference, largest


def _inlined(model: ir.Model) -> ir.Model:
    """Return the model without functions of its own."""
    if not model.functions:
        return model
    other = model.clone()
    common.InlinePass()(other)
    return other


@dataclass(slots=True, eq=False)
class _Step:
    """One operator, of the first graph that has it."""

    node: ir.Node
    opsets: Mapping[str, int]
    reads: list[int | None]
    makes: list[int]
    name: str
    captures: dict[ir.Value, int] = field(default_factory=dict)
    """What its subgraphs read of the graph around them."""
    twin: _Step | None = None
    """The same node in the first graph, where it reads other tensors there."""
    in_float32: bool = False
    """Whether its last outputs are no more exact than float32."""
    _operator: Operator = field(init=False)
    _bodies: Bodies = field(init=False)

    def __post_init__(self) -> None:
        self._operator, self._bodies = Operator(self.node, self.opsets), Bodies(self.opsets)
        if _to_float32(self.node):  # whoever reads it has no float64
            self.name = next((reader.name or self.name for reader, _ in self.node.outputs[0].uses()), self.name)

    def run(self, inputs: Sequence[Value], around: Mapping[int, Value]) -> Sequence[Value]:
        """Return its outputs; around: what its subgraphs read, by number. Raises CannotCompute."""
        if self.node.op_type in HOLDS_GRAPH and not self.node.domain:
            values = {value: around[number] for value, number in self.captures.items()}
            made = self._bodies.run(self.node, inputs, values)
            self.in_float32 = self._bodies.in_float32
        else:
            made = self._operator(inputs)
            self.in_float32 = self._operator.in_float32 or _to_float32(self.node)
        return made

    @property
    def needs(self) -> set[int]:
        """What has to be there before it is run."""
        own = {each for each in (*self.reads, *self.captures.values()) if each is not None}
        return own if self.twin is None else own | self.twin.needs | set(self.twin.makes)


class _Plan:
    """What is computed, in which order, and how often it is read. A tensor is a number, the same in every graph."""

    def __init__(self, models: Sequence[ir.Model], wanted: Collection[str]) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._steps: dict[Hashable, _Step] = {}
        self.maker: dict[int, _Step] = {}
        self.constants: dict[int, ir.TensorProtocol] = {}
        self.inputs: dict[str, tuple[int, ir.DataType | None]] = {}
        self.names: list[dict[str, int]] = []
        self._place: dict[int, int] = {}
        self._twins: dict[str, _Step] = {}
        for model in models:
            self.names.append(self._add(model))
        self.order: list[_Step | tuple[str, tuple[int, ...]]] = []
        self.uses: Counter[int] = Counter()
        self._schedule([name for name in self.names[0] if name in wanted])

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _add(self, model: ir.Model) -> dict[str, int]:
        known: dict[ir.Value, int] = {}
        for value in model.graph.inputs:
            known[value] = self._number(("input", value.name))
            self.inputs.setdefault(str(value.name), (known[value], value.dtype))
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                known[value] = self._number(_same_constant(value.const_value))
                self.constants[known[value]] = value.const_value
                self.inputs.pop(str(value.name), None)
        first = not self.names
        for node in model.graph:
            step = self._step(node, model.opset_imports, known)
            for value, number in zip(node.outputs, step.makes, strict=True):
                known[value] = number
            self._place.setdefault(id(step), len(self._place))
            twin = self._twins.get(str(node.outputs[0].name))
            if first:
                self._twins[str(node.outputs[0].name)] = step
            elif twin is not None and twin is not step and twin.twin is None and _may_share(twin, step):
                step.twin = twin
        return {str(value.name): number for value, number in known.items() if value.name}

    def _step(self, node: ir.Node, opsets: Mapping[str, int], known: Mapping[ir.Value, int]) -> _Step:
        reads = [None if value is None else known[value] for value in node.inputs]
        captures = {value: known[value] for value in captured(node) if value in known}
        key = (*_same_operator(node, opsets), *reads, *captures.values())
        if key not in self._steps:
            makes = [self._number((key, at)) for at in range(len(node.outputs))]
            name = node.name or str(node.outputs[0].name)
            self._steps[key] = _Step(node, opsets, reads, makes, name, captures)
            self.maker.update(dict.fromkeys(makes, self._steps[key]))
        return self._steps[key]

    def _schedule(self, wanted: Sequence[str]) -> None:
        done: set[int] = set()
        for name in wanted:
            if not all(name in names for names in self.names):
                continue
            numbers = tuple(names[name] for names in self.names)
            if len(numbers) > 1 and len(set(numbers)) == 1:
                self.order.append((name, ()))
                continue
            for number in numbers:
                for step in self._missing(number, done):
                    self.order.append(step)
                    self.uses.update(step.needs)
            self.order.append((name, numbers))
            self.uses.update(set(numbers))

    def _missing(self, number: int, done: set[int]) -> list[_Step]:
        """Return what is left to be run for a tensor, in the order of the graphs."""
        found, left = [], [number]
        while left:
            step = self.maker.get(left.pop())
            if step is not None and id(step) not in done:
                done.add(id(step))
                found.append(step)
                left += step.needs
        return sorted(found, key=lambda step: self._place[id(step)])


def _to_float32(node: ir.Node) -> bool:
    """Whether a node makes float32 of what somebody computes with; the scales of a Resize are float32 in any file."""
    if node.op_type != "Cast" or node.domain or node.attributes["to"].value != ir.DataType.FLOAT:
        return False
    return any(reader.op_type not in ("Resize", "Upsample") for reader, _ in node.outputs[0].uses())


def _same_constant(tensor: ir.TensorProtocol) -> Hashable:
    if tensor.size > _SMALL:
        return ("constant", id(tensor))
    array = tensor.numpy()
    return (
        "constant",
        str(array.dtype),
        array.shape,
        str(array.tolist()) if array.dtype == object else array.tobytes(),
    )


def _same_operator(node: ir.Node, opsets: Mapping[str, int]) -> tuple[Hashable, ...]:
    given = [
        ir.serde.serialize_attribute(each).SerializeToString(deterministic=True) for each in node.attributes.values()
    ]
    name = node.outputs[0].name if node.op_type in (*_RANDOM, *HOLDS_GRAPH) else None
    outputs = tuple(bool(value.name) for value in node.outputs)
    return (node.domain, node.op_type, opsets.get(node.domain), name, outputs, *sorted(given))


def _may_share(one: _Step, other: _Step) -> bool:
    """Whether two steps are one operator, whose result may have to be taken over."""
    if _same_operator(one.node, one.opsets) != _same_operator(other.node, other.opsets):
        return False
    kind = other.node.op_type
    return kind in _JUMPS or kind not in KERNELS or bool(other.node.domain) or len(other.makes) > 1


class _Run:
    """One feed."""

    def __init__(self, plan: _Plan, feed: int, given: Mapping[str, Array]) -> None:
        self.plan, self.feed = plan, feed
        self.values: dict[int, Value] = {}
        self.left = Counter(plan.uses)
        self.narrow: dict[int, frozenset[_Step]] = {}
        """By tensor, the operators before it that were computed in float32."""
        for name, (number, dtype) in plan.inputs.items():
            if self.left[number]:
                self.values[number] = _as(given[name], dtype)

    def found(self) -> Iterator[Found]:
        """Run everything."""
        for each in self.plan.order:
            if isinstance(each, _Step):
                self._do(each)
                self._release(each.needs)
                continue
            name, numbers = each
            narrow = [self.narrow.get(number, frozenset()) for number in numbers]
            yield Found(
                feed=self.feed,
                name=name,
                values=tuple(self._value(number) for number in numbers),
                in_float32=frozenset(step.name for steps in narrow for step in steps),
                coarse=len(set(narrow)) > 1,
            )
            self._release(set(numbers))

    def _value(self, number: int | None) -> Value:
        if number is None:
            return None
        constant = self.plan.constants.get(number)
        return self.values[number] if constant is None else constant.numpy()

    def _release(self, numbers: set[int]) -> None:
        for number in numbers:
            self.left[number] -= 1
            if not self.left[number]:
                self.values.pop(number, None)

    def _do(self, step: _Step) -> None:
        twin = step.twin
        if twin is not None and (step.node.op_type in _JUMPS or twin.in_float32) and self._agree(twin, step):
            made: Sequence[Value] = [self.values.get(number) for number in twin.makes]
            narrow = next((self.narrow[number] for number in twin.makes if number in self.narrow), frozenset())
        else:
            try:
                around = {number: self._value(number) for number in step.captures.values()}
                made = step.run([self._value(number) for number in step.reads], around)
            except CannotCompute as cause:
                raise InputError(
                    f"{step.name} ({step.node.op_type}) could not be computed, to prove the folds: {cause}\n"
                    "`--no-fold` exports the graph with its norms as they are."
                ) from cause
            own: frozenset[_Step] = frozenset({step} if step.in_float32 else ())
            before = [number for number in (*step.reads, *step.captures.values()) if number is not None]
            narrow = own.union(*(self.narrow.get(number, frozenset()) for number in before))
        for number, value in zip(step.makes, made, strict=True):
            if self.left[number]:
                self.values[number] = value
                if narrow:
                    self.narrow[number] = narrow

    def _agree(self, one: _Step, other: _Step) -> bool:
        """Whether two steps read the same, up to rounding."""
        pairs = zip((*one.reads, *one.captures.values()), (*other.reads, *other.captures.values()), strict=True)
        return all(a == b or _is_rounding(self._value(a), self._value(b)) for a, b in pairs)


def _is_rounding(one: Value, other: Value) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        alike = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
        return alike and all(_is_rounding(a, b) for a, b in zip(one, other, strict=True))
    if one is None or other is None:
        return one is other
    difference, largest = apart(one, other)
    return difference <= (ROUNDING * max(1.0, largest) if one.dtype.kind == "f" else 0)


def _as(x: Value, dtype: ir.DataType | None) -> Value:
    if isinstance(x, list):
        return [_as(each, dtype) for each in x]
    is_float = x is not None and x.dtype.kind == "f" and dtype is not None and dtype.is_floating_point()
    return x.astype(dtype.numpy(), copy=False) if is_float and dtype is not None else x
