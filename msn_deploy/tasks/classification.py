"""What do a classifier's numbers mean? One per class to labels and scores, and how often the labels are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import GateError, InputError

if TYPE_CHECKING:
    from onnx import ModelProto

Ending = Literal["logits", "softmax", "log-softmax", "sigmoid", "unknown"]
"""What a network's numbers are already. unknown: an engine whose graph is not here."""
_ENDINGS: dict[str, Ending] = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
_MOVES = ("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze")
_SUM = 1e-3  # by which probabilities in half precision may miss 1


@dataclass(frozen=True, slots=True)
class Guess:
    """A class and its score, 0 to 1."""

    label: str
    score: float


def ending_of(model: ModelProto) -> Ending:
    """Return what the last operator of a graph makes of the numbers of its first output."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    return _ENDINGS.get(node.op_type, "logits") if node is not None else "logits"


def scores_of(outputs: NDArray[Any], *, ending: Ending = "logits", name: str) -> NDArray[np.float64]:
    """Return the probability of each class for each image, (N, classes), from what a network gives.

    outputs: (N, classes), with any axes of size 1 behind; (N, 1) is the probability or the logit of the second of two
    classes. name: of the model. Raises InputError (exit 2) for anything else, GateError (exit 1) for numbers that are
    not finite.
    """
    numbers = outputs.astype(np.float64)
    while numbers.ndim > 2 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    if numbers.ndim != 2:
        size = "x".join(map(str, outputs.shape[1:])) or "no"
        raise InputError(
            f"{name} gives {size} numbers per image; a classifier gives one for each class.\n"
            "`eval` and `infer` read classifiers; `msn-deploy bench` runs any network."
        )
    if not (finite := np.isfinite(numbers)).all():
        raise GateError(
            f"{name}: {int((~finite).sum())} of {numbers.size} outputs are not finite (NaN or infinite), for "
            f"{int((~finite).any(1).sum())} of {len(numbers)} images: there is no answer."
        )
    if ending == "unknown":
        ending = _told_by(numbers, name)
    if ending == "log-softmax":
        return np.exp(numbers)
    if numbers.shape[1] == 1:
        second = numbers if ending in ("sigmoid", "softmax") else 0.5 * (1 + np.tanh(0.5 * numbers))
        return np.concatenate([1 - second, second], axis=1)
    if ending in ("softmax", "sigmoid"):
        return numbers
    powers = np.exp(numbers - numbers.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _told_by(numbers: NDArray[np.float64], name: str) -> Ending:
    """Return what numbers are by themselves: those of a softmax are not negative and add up to 1."""
    if numbers.shape[1] == 1:
        raise InputError(
            f"{name} gives one number per image, and its graph is not here to tell a probability from a logit.\n"
            "Give the ONNX file that the engine was built from."
        )
    sums = np.abs(numbers.sum(axis=1) - 1).max(initial=0)
    return "softmax" if numbers.min(initial=0) >= 0 and sums <= _SUM else "logits"


def answers(
    outputs: NDArray[Any], classes: Sequence[str], *, name: str, ending: Ending = "logits", named: bool = False
) -> NDArray[np.int64]:
    """Return the index of the likeliest class of each image, (N,).

    name: of the model. named: whether the model itself names the classes, and may have outputs beyond them.
    Raises InputError (exit 2) where there is not one number per class, GateError (exit 1) for numbers that are not
    finite.
    """
    scores = scores_of(outputs, ending=ending, name=name)
    count = scores.shape[1]
    if count < len(classes) or (count > len(classes) and not named):
        raise InputError(
            f"{name} gives {outputs.shape[1]} numbers per image, for {count} classes; the data has {len(classes)}.\n"
            "Give data with the classes that it was trained on."
        )
    likeliest_class: NDArray[np.int64] = scores.argmax(1)
    return likeliest_class


def likeliest(
    outputs: NDArray[Any], classes: Sequence[str], count: int = 1, *, ending: Ending = "logits", name: str
) -> tuple[Guess, ...]:
    """Return the `count` likeliest classes of one image, the best first; a class without a name is its index.

    outputs: (1, classes). Raises what `scores_of` raises.
    """
    scores = scores_of(outputs, ending=ending, name=name)[0]
    best = np.argsort(-scores, kind="stable")[:count]
    return tuple(Guess(classes[at] if at < len(classes) else str(at), float(scores[at])) for at in best)


def accuracy(found: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of answers that are right, 0 to 1."""
    return float((found == labels).mean())


def accuracy_by_class(
    found: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, float]:  # fmt: skip
    """Return the share that is right of the images of each class, 0 to 1; classes without images are left out."""
    of = {name: labels == label for label, name in enumerate(classes)}
    return {name: round(accuracy(found[here], labels[here]), 6) for name, here in of.items() if here.any()}
