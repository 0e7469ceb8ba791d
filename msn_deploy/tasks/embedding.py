"""Which images show the same? From an image to a vector, and whether vectors of the same are near each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.tasks.drawing import captioned
from msn_deploy.tasks.task import (
    Given,
    Outputs,
    Score,
    check_reading,
    per_class_mean,
    require_no_names,
    rows_of_numbers,
    the_output,
)

_SHOWN = 4  # numbers that a line holds
_PAIRS = 4_000_000  # that are compared at a time
_BINS = 20_000  # of a cosine from -1 to 1: steps of 1e-4
_TOP = 5
_FAR = 0.01  # share of pairs of different classes that may be taken for the same


@dataclass(frozen=True, slots=True)
class VectorAnswer:
    """The vector of one image, float32 (D,), as the network gives it."""

    vector: NDArray[np.float32]

    def text(self) -> str:
        """Return such as "128 numbers, norm 1: 0.0312, -0.12, 0.0071, 0.2, ..."."""
        shown = ", ".join(f"{value:.3g}" for value in self.vector[:_SHOWN].tolist())
        more = ", ..." if len(self.vector) > _SHOWN else ""
        return f"{len(self.vector)} numbers, norm {np.linalg.norm(self.vector):.4g}: {shown}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {"vector": self.vector.tolist()}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with the first of the numbers written on it."""
        return captioned(image, self.text())


class Embedding:
    """A vector for each image, which is near those of images of the same class. reading: `output`."""

    name: TaskName = "embedding"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": ()})
        require_no_names(given)  # those of images are the data's
        self.classes = given.classes
        self._model = given.model
        self._output, _ = the_output(given)

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[VectorAnswer]:
        """Return the vector of each image.

        Raises InputError for outputs that are not vectors, GateError for numbers that are not finite.
        """
        vectors = rows_of_numbers(outputs[self._output], model=self._model, wanted="an embedding is one vector")
        return [VectorAnswer(row) for row in vectors.astype(np.float32)]

    def meter(self) -> RetrievalMeter:
        """Return an empty meter."""
        return RetrievalMeter(self.classes)


class RetrievalMeter:
    """Recall at 1: for how many images the nearest other image, by cosine, is of the same class.

    recall_at_5: for how many one of the five nearest is. tar_at_far_1pct, of verification: the share of pairs of one
    class whose cosine reaches the lowest threshold that at most 1 % of the pairs of different classes reach, in steps
    of 1e-4 of the cosine. Images that are alone in their class are found by others but not counted.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._vectors: list[NDArray[np.float32]] = []
        self._labels: list[int] = []

    def add(self, answers: Sequence[VectorAnswer], labels: NDArray[np.int64]) -> None:
        """Count answers; labels: int64 (N,)."""
        self._vectors += [answer.vector for answer in answers]
        self._labels += labels.tolist()

    def score(self) -> Score:
        """Return the recall at 1. Raises InputError where no class has two images."""
        labels = np.asarray(self._labels)
        vectors = np.stack(self._vectors)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        counted = np.bincount(labels)[labels] > 1
        if not counted.any():
            raise InputError("no class has two images: there is nothing to find.")
        first, among, same, other = _neighbours(vectors, labels)
        return Score(
            metric="recall@1",
            value=float(first[counted].mean()),
            samples=int(counted.sum()),
            each=first[counted].astype(np.float64),
            others={"recall_at_5": float(among[counted].mean())}
            | ({"tar_at_far_1pct": _accepted(same, other)} if other.any() else {}),
            per_class=per_class_mean(first[counted].astype(np.float64), labels[counted], self._classes),
        )


def _neighbours(
    vectors: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Compare vectors (N, D) of length 1 with all others, some rows at a time.

    Return whether the nearest is of the same class, (N,), whether one of the five nearest is, and how often each cosine
    occurs between images of the same class and of different ones, each pair twice, (_BINS + 1,).
    """
    count = len(vectors)
    top = min(_TOP, count - 1)
    first, among = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    same, other = np.zeros(_BINS + 1, dtype=np.int64), np.zeros(_BINS + 1, dtype=np.int64)
    step = max(1, _PAIRS // count)
    for start in range(0, count, step):
        cosines = vectors[start : start + step] @ vectors.T
        rows = np.arange(len(cosines))
        is_same = labels[start : start + step, np.newaxis] == labels
        bins = np.rint((np.clip(cosines, -1, 1) + 1) * (_BINS / 2)).astype(np.intp)
        itself = np.zeros_like(is_same)
        itself[rows, start + rows] = True
        same += np.bincount(bins[is_same & ~itself], minlength=_BINS + 1)
        other += np.bincount(bins[~is_same], minlength=_BINS + 1)
        cosines[itself] = -np.inf
        nearest = np.argpartition(-cosines, top - 1, axis=1)[:, :top]
        among[start : start + step] = np.take_along_axis(is_same, nearest, axis=1).any(1)
        first[start : start + step] = is_same[rows, cosines.argmax(axis=1)]
    return first, among, same, other


def _accepted(same: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the share of pairs of the same class that are taken at the threshold where 1 % of the others are."""
    taken_same, taken_other = np.cumsum(same[::-1]), np.cumsum(other[::-1])
    allowed = np.flatnonzero(taken_other <= _FAR * taken_other[-1])
    return float(taken_same[allowed[-1]] / taken_same[-1]) if len(allowed) else 0.0
