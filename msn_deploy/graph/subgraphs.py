"""If, Loop, Scan and SequenceMap: operators that hold a graph, which is run node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.reference import CannotCompute, Operator, Value

HOLDS_GRAPH = ("If", "Loop", "Scan", "SequenceMap")


def captured(node: ir.Node) -> list[ir.Value]:
    """Return what the graphs in a node read of the graphs around them."""
    inside = [each for graph in _graphs(node) for each in _nodes(graph)]
    own = {value for each in inside for value in each.outputs}
    for graph in (graph for each in (node, *inside) for graph in _graphs(each)):
        own |= {*graph.inputs, *graph.initializers.values()}
    read = [value for each in inside for value in each.inputs]
    read += [value for each in (node, *inside) for graph in _graphs(each) for value in graph.outputs]
    return [value for value in dict.fromkeys(read) if value is not None and value not in own]


def _graphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for each in node.attributes.values():
        if each.type == ir.AttributeType.GRAPH:
            found.append(each.as_graph())
    return found


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in _graphs(node):
            yield from _nodes(inner)


@dataclass(slots=True)
class Bodies:
    """What runs the graphs in one node, any number of times."""

    opsets: Mapping[str, int]
    operators: dict[int, Operator] = field(default_factory=dict)

    @property
    def in_float32(self) -> bool:
        """Whether any operator was computed in float32."""
        return any(each.in_float32 for each in self.operators.values())

    def run(self, node: ir.Node, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> Sequence[Value]:
        """Return the outputs of a node that holds a graph. Raises CannotCompute."""
        return {"If": self._if, "Loop": self._loop, "Scan": self._scan, "SequenceMap": self._map}[node.op_type](
            node, inputs, around
        )

    def _graph(self, graph: ir.Graph, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> list[Value]:
        values = {**around, **dict(zip(graph.inputs, inputs, strict=True))}
        for value in graph.initializers.values():
            if value.const_value is not None and value not in values:
                values[value] = value.const_value.numpy()
        for node in graph:
            given = [None if value is None else values[value] for value in node.inputs]
            if node.op_type in HOLDS_GRAPH and not node.domain:
                made = self.run(node, given, values)
            else:
                made = self.operators.setdefault(id(node), Operator(node, self.opsets))(given)
            values.update(zip(node.outputs, made, strict=True))
        return [values[value] for value in graph.outputs]

    def _if(self, node: ir.Node, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> Sequence[Value]:
        branch = "then_branch" if np.asarray(inputs[0]).item() else "else_branch"
        return self._graph(node.attributes[branch].as_graph(), [], around)

    def _loop(self, node: ir.Node, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> Sequence[Value]:
        body = node.attributes["body"].as_graph()
        most, going, *state = inputs
        go = going is None or bool(np.asarray(going).item())
        collected: list[list[Value]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
        turn = 0
        while go and (most is None or turn < int(np.asarray(most).item())):
            ended, *made = self._graph(body, [np.int64(turn).reshape(()), np.array(go), *state], around)
            go, turn = bool(np.asarray(ended).item()), turn + 1
            state, each = made[: len(state)], made[len(state) :]
            for kept, value in zip(collected, each, strict=True):
                kept.append(value)
        rows = [_stacked(kept, value, 0) for kept, value in zip(collected, body.outputs[1 + len(state) :], strict=True)]
        return [*state, *rows]

    def _scan(self, node: ir.Node, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> Sequence[Value]:
        if self.opsets.get("", 0) < 9:
            raise CannotCompute("a Scan of opset 8")
        body, count = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
        state, rows = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
        outputs = len(body.outputs) - len(state)

        def given(name: str, size: int) -> list[int]:
            return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * size

        ways, axes = given("scan_input_directions", count), given("scan_input_axes", count)
        turns = [
            np.moveaxis(row, axis, 0)[:: -1 if way else 1] for row, axis, way in zip(rows, axes, ways, strict=True)
        ]
        collected: list[list[Value]] = [[] for _ in range(outputs)]
        for turn in range(len(turns[0])):
            made = self._graph(body, [*state, *(row[turn] for row in turns)], around)
            state, each = made[: len(state)], made[len(state) :]
            for kept, value in zip(collected, each, strict=True):
                kept.append(value)
        back, onto = given("scan_output_directions", outputs), given("scan_output_axes", outputs)
        results = [
            _stacked(kept[:: -1 if way else 1], value, axis)
            for kept, value, way, axis in zip(collected, body.outputs[len(state) :], back, onto, strict=True)
        ]
        return [*state, *results]

    def _map(self, node: ir.Node, inputs: Sequence[Value], around: Mapping[ir.Value, Value]) -> Sequence[Value]:
        body = node.attributes["body"].as_graph()
        made = [
            self._graph(body, [each[at] if isinstance(each, list) else each for each in inputs], around)
            for at in range(len(inputs[0]))
        ]
        return [[row[at] for row in made] for at in range(len(node.outputs))]


def _stacked(values: Sequence[Value], declared: ir.Value, axis: int) -> Any:
    if values:
        return np.stack(values, axis)
    sizes = [size if isinstance(size, int) else 0 for size in declared.shape or ()]
    return np.zeros((0, *sizes), dtype=(declared.dtype or ir.DataType.DOUBLE).numpy())
