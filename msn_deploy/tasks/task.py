"""What is a task? From a network's outputs to answers, from answers and labels to a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import GateError, InputError, did_you_mean
from msn_deploy.core.model_info import TaskName, TensorSpec
from msn_deploy.data.frame import Placement

if TYPE_CHECKING:
    from onnx import ModelProto

Outputs = Mapping[str, NDArray[Any]]
"""What a network gives for a batch: each output by its name, in the network's order, (N, ...)."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is known of a network before it runs, from which its task is made.

    model: what messages call it. classes: their names, or those of values. named: whether the model itself names them,
    and may have numbers beyond them. reading: of ModelInfo. outputs: in the network's order. endings: what the numbers
    of each output are already. frame: height and width of the images that it takes; None where that is not known.
    """

    model: str
    classes: tuple[str, ...]
    named: bool
    reading: Mapping[str, Any]
    outputs: tuple[TensorSpec, ...]
    endings: tuple[Ending, ...]
    frame: tuple[int, int] | None = None


class Answer(Protocol):
    """What a network says of one image. A frozen dataclass of plain values and arrays."""

    def text(self) -> str:
        """Say it in one line, such as "7, 98.1 %" or "3 boxes: person 0.91, dog 0.80, dog 0.44"."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain values: numbers, strings, lists and dicts."""
        ...

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the answer drawn on a copy of the image (H, W, 3), RGB, that it was given for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good answers are.

    metric: name of `value`, the one number that a budget holds. unit: "share" for 0 to 1 (shown as %, dropped in
    percentage points), otherwise what it is measured in, such as "dB", or "" for that of the labels. each: what every
    image adds, (N,), where the metric is the mean of that; None where it is not, as of mAP. others: further metrics, in
    `unit_of_others`. per_class: `metric` of each class that was there.
    """

    metric: str
    value: float
    samples: int
    unit: str = "share"
    higher_is_better: bool = True
    each: NDArray[np.float64] | None = None
    others: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    unit_of_others: str = "share"


class Meter(Protocol):
    """Adds up what a metric needs, a batch at a time, so that not all answers are in memory at once."""

    def add(self, answers: Sequence[Any], labels: Any) -> None:
        """Count answers of as many images; labels: theirs, in the type that the task's data have."""
        ...

    def score(self) -> Score:
        """Return the metric of all that was added."""
        ...


class Task(Protocol):
    """How one network's outputs are read. It is made of `Given`, which raises InputError for outputs of other kinds."""

    name: TaskName
    classes: tuple[str, ...]

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> Sequence[Any]:
        """Return an `Answer` for each image of a batch.

        placements: where each image is in the network's frame; with them, positions and maps are those of the image,
        without them those of the frame. Raises GateError (exit 1) for numbers that are not finite.
        """
        ...

    def meter(self) -> Meter:
        """Return a new, empty meter."""
        ...


def check_reading(given: Given, known: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for what `reading` says and a task does not know.

    known: the keys that it knows, each with its values, or with none where they are not a list.
    """
    for key, value in given.reading.items():
        if key not in known:
            raise InputError(f"{given.model}: unknown `--read {key}={value}`{did_you_mean(key, list(known))}")
        if known[key] and value not in known[key]:
            raise InputError(f"{given.model}: unknown `--read {key}={value}`{did_you_mean(str(value), known[key])}")


def numbers_read(given: Given, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the numbers that `reading` gives for a key, such as "0.5" or "1.5,2". Raises InputError."""
    text = given.reading.get(key)
    if text is None:
        return default
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{given.model}: `--read {key}={text}` is not a number, or several with commas.")
    return numbers


def require_no_names(given: Given) -> None:
    """Raise InputError where the model file names classes that its task has not."""
    if given.named:
        raise InputError(
            f"{given.model} names {len(given.classes)} classes; its task has none.\nLeave out `--classes`."
        )


def threshold_read(given: Given) -> float:
    """Return the probability from which on something holds: `threshold` of `reading`, or 0.5. Raises InputError."""
    numbers = numbers_read(given, "threshold", (0.5,))
    if len(numbers) > 1 or not 0 < numbers[0] < 1:
        raise InputError(f"{given.model}: `--read threshold` takes one number between 0 and 1, 0.5 without it.")
    return numbers[0]


def require_finite(numbers: NDArray[Any], model: str) -> None:
    """Raise GateError (exit 1) unless all of what a network gives, (N, ...), are numbers."""
    finite = np.isfinite(numbers)
    if not finite.all():
        raise GateError(
            f"{model}: {int((~finite).sum())} of {numbers.size} outputs are not finite (NaN or infinite), for "
            f"{int((~finite).reshape(len(numbers), -1).any(1).sum())} of {len(numbers)} images: there is no answer."
        )


def rows_of_numbers(numbers: NDArray[Any], *, model: str, wanted: str) -> NDArray[np.float64]:
    """Return numbers (N, K) with any axes of size 1 behind as float64 (N, K).

    wanted: what they should be, for the message. Raises InputError for other shapes, GateError unless they are finite.
    """
    shape = numbers.shape
    while numbers.ndim > 2 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    if numbers.ndim != 2:
        raise InputError(f"{model} gives {'x'.join(map(str, shape[1:])) or 'no'} numbers per image; {wanted}.")
    require_finite(numbers, model)
    return numbers.astype(np.float64)


def the_output(given: Given) -> tuple[str, Ending]:
    """Return the one output that a task of one output reads, and what its numbers are already.

    That is the only one, or the one that `reading` names as `output`; `ending` there says what the numbers are.
    Raises InputError where there are several and none is named.
    """
    names = [spec.name for spec in given.outputs]
    wanted = given.reading.get("output", names[0] if len(names) == 1 else None)
    if wanted not in names:
        what = "which of them is read is not said" if wanted is None else f"there is no {wanted}"
        raise InputError(
            f"{given.model} has {len(names)} outputs ({', '.join(names)}); {what}.\n"
            "Say it: msn-deploy export ... --read output=NAME"
        )
    return wanted, given.reading.get("ending", given.endings[names.index(wanted)])


def metric_text(value: float, unit: str) -> str:
    """Return a metric as people read it: a share as "98.10%", anything else with its unit."""
    return f"{value:.2%}" if unit == "share" else f"{value:.4g} {unit}".rstrip()


def per_class_mean(each: NDArray[np.float64], labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Return the mean of `each` (N,) over the images of each class that has any; labels (N,)."""
    of = {name: labels == label for label, name in enumerate(classes)}
    return {name: round(float(each[here].mean()), 6) for name, here in of.items() if here.any()}


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
