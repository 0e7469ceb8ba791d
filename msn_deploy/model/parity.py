"""The parity ladder: how far is every stage of a network, from torch to INT8, from where it came from?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import ParityError

STAGES = ("layers folded", "onnx", "graph folded", "simplified", "fp16", "int8")
_FLOAT_ATOL = 1e-4  # of logits, times the largest logit where that is above 1
# Half precision has 11 bits (66 dB), INT8 about 7 per tensor (42 dB) before errors add up over layers.
_LEAST_SQNR_DB = {"fp16": 40.0, "int8": 15.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One stage against the first: `worst` and `mean` absolute difference of outputs, and how alike they are.

    cosine: of all outputs as one vector. sqnr_db: power of the truth over power of the difference, in decibels;
    infinite for equal outputs. same_class: share of samples with the same largest output, 0 to 1. samples: how many.
    limit: in words; "the same graph" as the rung before, down to its weights, was not run again. passed: whether it
    was kept.
    """

    stage: str
    samples: int
    worst: float
    mean: float
    cosine: float
    sqnr_db: float
    same_class: float
    limit: str
    passed: bool


def rung(stage: str, truth: NDArray[np.float32], outputs: NDArray[np.float32]) -> Rung:
    """Compare outputs (N, ...) of one stage with the truth; a NaN on either side counts as an infinite difference."""
    if truth.shape != outputs.shape:
        return Rung(
            stage=stage,
            samples=len(truth),
            worst=math.inf,
            mean=math.inf,
            cosine=0.0,
            sqnr_db=-math.inf,
            same_class=0.0,
            limit=f"shape {'x'.join(map(str, truth.shape))}",
            passed=False,
        )
    a, b = truth.astype(np.float64).reshape(len(truth), -1), outputs.astype(np.float64).reshape(len(truth), -1)
    with np.errstate(invalid="ignore", divide="ignore"):  # infinity minus infinity, and equal outputs
        difference = np.nan_to_num(np.abs(a - b), nan=np.inf)
        power = float(np.square(difference).sum())
        sqnr_db = float(10 * np.log10(np.square(a).sum() / power)) if power else math.inf
        cosine = float((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum())) if a.any() and b.any() else 1.0
    worst = float(difference.max())
    least = _LEAST_SQNR_DB.get(stage)
    allowed = _FLOAT_ATOL * max(1.0, float(np.abs(a).max()))
    return Rung(
        stage=stage,
        samples=len(truth),
        worst=worst,
        mean=float(difference.mean()),
        cosine=cosine if math.isfinite(cosine) else 0.0,
        sqnr_db=sqnr_db if not math.isnan(sqnr_db) else -math.inf,
        same_class=float((a.argmax(1) == b.argmax(1)).mean()),
        limit=f"at most {allowed:.2g}" if least is None else f"at least {least:g} dB",
        passed=math.isfinite(worst) and (worst <= allowed if least is None else sqnr_db >= least),
    )


def require_ladder(rungs: list[Rung], *, source: str) -> None:
    """Raise ParityError (exit 1) that names the first stage that is too far from the truth."""
    failed = next((each for each in rungs if not each.passed), None)
    if failed is not None:
        raise ParityError(source=source, stage=failed.stage, worst=failed.worst, limit=failed.limit)
