"""What do a classifier's numbers mean? Logits (N, classes) to labels and scores, and how often the labels are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Guess:
    """A class and its softmax score, 0 to 1."""

    label: str
    score: float


def answers(logits: NDArray[np.float32], classes: Sequence[str], *, name: str) -> NDArray[np.int64]:
    """Return the index of the likeliest class of each image, (N,); `name` is that of the model.

    Raises InputError for what is not at least one number per class.
    """
    if logits.ndim != 2 or logits.shape[1] < len(classes):
        raise InputError(f"{name} gives {logits.shape[1:]} numbers per image; {len(classes)} classes need one each.")
    likeliest_class: NDArray[np.int64] = logits.argmax(1)
    return likeliest_class


def likeliest(logits: NDArray[np.float32], classes: Sequence[str], count: int = 1) -> tuple[Guess, ...]:
    """Return the `count` likeliest classes of one image, the best first; a class without a name is its index."""
    numbers = logits.astype(np.float64).ravel()
    scores = np.exp(numbers - numbers.max())
    scores /= scores.sum()
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
