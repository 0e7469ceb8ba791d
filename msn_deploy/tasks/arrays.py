"""What a network gives whose file does not say what it means: arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from msn_deploy.tasks.task import Outputs

_FEW = 8  # numbers that are shown


@dataclass(frozen=True, slots=True)
class Arrays:
    """The outputs for one image, by name, without the batch."""

    arrays: dict[str, NDArray[Any]]

    def text(self) -> str:
        """Return name, size and range of each output, or its numbers where they are few."""
        return "; ".join(f"{name} {_in_words(array)}" for name, array in self.arrays.items())

    def to_json(self) -> dict[str, Any]:
        """Return for each output its type, shape, least and largest number, and all of them where they are few."""
        return {"outputs": {name: _facts(array) for name, array in self.arrays.items()}}


def arrays_of(outputs: Outputs, count: int) -> list[Arrays]:
    """Return the arrays of each of `count` images; what has not a row for each is given to all of them."""
    return [
        Arrays({name: array[at] if array.shape[:1] == (count,) else array for name, array in outputs.items()})
        for at in range(count)
    ]


def _in_words(array: NDArray[Any]) -> str:
    if array.size <= _FEW:
        return f"[{', '.join(f'{value:.4g}' for value in array.ravel().tolist())}]"
    size = "x".join(map(str, array.shape))
    return f"{array.dtype} of {size} from {array.min():.4g} to {array.max():.4g}"


def _facts(array: NDArray[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size:
        facts |= {"min": float(array.min()), "max": float(array.max())}
    return facts | ({"values": array.ravel().tolist()} if array.size <= _FEW else {})
