"""Do two stages of the same network agree on the same images?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import ParityError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two stages are apart: on `samples` images, `worst` and `mean` absolute difference of logits."""

    samples: int
    worst: float
    mean: float
    same_class: float
    """Share of images with the same predicted class, 0 to 1."""


def compare_logits(before: NDArray[np.float32], after: NDArray[np.float32]) -> Parity:
    """Compare logits (N, classes) of two stages; a NaN on either side counts as an infinite difference."""
    if before.shape != after.shape:
        return Parity(samples=len(before), worst=float("inf"), mean=float("inf"), same_class=0.0)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.nan_to_num(np.abs(before.astype(np.float64) - after), nan=np.inf)
    flat_before, flat_after = before.reshape(len(before), -1), after.reshape(len(after), -1)
    return Parity(
        samples=len(before),
        worst=float(difference.max()),
        mean=float(difference.mean()),
        same_class=float((flat_before.argmax(1) == flat_after.argmax(1)).mean()),
    )


def require_parity(parity: Parity, *, before: str, after: str, atol: float) -> None:
    """Raise ParityError (exit 1) if the worst difference is above `atol`."""
    if not parity.worst <= atol:
        raise ParityError(before=before, after=after, worst=parity.worst, atol=atol)
