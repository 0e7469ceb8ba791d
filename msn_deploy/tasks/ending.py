"""What does a graph make of its numbers last? Then a task need not guess whether they are logits or probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from onnx import ModelProto

Ending = Literal["logits", "softmax", "log-softmax", "sigmoid", "argmax", "unknown"]
"""What numbers are already. unknown: an engine whose graph is not here."""
ENDINGS: tuple[Ending, ...] = get_args(Ending)
_ENDINGS: dict[str, Ending] = {
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "Sigmoid": "sigmoid",
    "ArgMax": "argmax",
}
_MOVES = (
    *("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Resize", "Slice", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)


def ending_of(model: ModelProto, output: int = 0) -> Ending:
    """Return what the last operator of a graph makes of the numbers of one of its outputs.

    Of parts that are put together, as of a detector's levels, each has to end in it.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting, seen, found = [model.graph.output[output].name], set[str](), set[Ending]()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is not None and node.op_type in (*_MOVES, "Concat"):
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            waiting += [each for each in inputs if each not in seen]
            seen.update(inputs)
        else:
            found.add(_ENDINGS.get(node.op_type, "logits") if node is not None else "logits")
    return found.pop() if len(found) == 1 else "logits"
