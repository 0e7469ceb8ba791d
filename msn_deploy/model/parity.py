"""The parity ladder: how far is every stage of a network, from torch to INT8, from where it came from?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msn_deploy.core.errors import GateError, ParityError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.model.feeds import Array, Feeds, rows_of

STAGES = ("layers folded", "onnx", "graph folded", "simplified", "fp16", "int8", "fp8")
FLOAT_LIMIT, LEAST_LARGEST = 1e-4, 1e-3  # of an output's largest value, which counts as the second at least
_ROUNDINGS = 4  # of the source in float32, which another order of the same sums may be off by
_FEWEST_EQUAL = 0.999  # of integers: an argmax of two that are equal but for rounding may fall either way
# Half precision has 11 bits (66 dB), INT8 about 7 per tensor (42 dB), FP8 4 (31 dB), before errors add up over layers.
LEAST_SQNR_DB = {"fp16": 40.0, "int8": 15.0, "fp8": 15.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """One output of a stage against the same output of the first.

    worst, mean: absolute difference. cosine: of all its numbers as one vector. sqnr_db: power of the truth over power
    of the difference, in decibels; infinite for equal outputs. equal: share of equal numbers, 0 to 1. limit, passed:
    see Rung.
    """

    name: str
    worst: float
    mean: float
    cosine: float
    sqnr_db: float
    equal: float
    limit: str
    passed: bool
    floats: bool = True
    """Whether its numbers are floats; of integers `equal` says more than the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One stage against the first. Each number is that of the output that is worst in it: see OutputDifference.

    samples: rows of the first output. same_class: share of samples with the same largest output, 0 to 1; None for a
    network that does not classify. limit: in words; "the same graph" as the rung before, down to its weights, was not
    run again. passed: whether it was kept by every output.
    """

    stage: str
    samples: int
    worst: float
    mean: float
    cosine: float
    sqnr_db: float
    same_class: float | None
    limit: str
    passed: bool
    outputs: tuple[OutputDifference, ...]


def classifies(info: ModelInfo) -> bool:
    """Return whether the largest number of a network's output is an answer."""
    return info.task == "classification"


def rung(stage: str, truth: Feeds, outputs: Feeds, *, classifies: bool = False) -> Rung:
    """Compare the outputs of one stage, by name, with the truth; a NaN on either side is an infinite difference.

    classifies: whether the first output is (N, classes), so that its largest number is an answer.
    """
    found = tuple(_difference(stage, name, array, outputs.get(name)) for name, array in truth.items())
    first = next(iter(truth))
    worst = max(found, key=lambda each: (not each.passed, each.worst))
    alike = found[0].sqnr_db > -math.inf
    return Rung(
        stage=stage,
        samples=rows_of(truth),
        worst=worst.worst,
        mean=max(each.mean for each in found),
        cosine=min(each.cosine for each in found),
        sqnr_db=min(each.sqnr_db for each in found),
        same_class=_same_class(truth[first], outputs[first]) if classifies and alike else 0.0 if classifies else None,
        limit=worst.limit if len(found) == 1 else f"{worst.limit} in {worst.name}",
        passed=all(each.passed for each in found),
        outputs=found,
    )


def allowing(rung: Rung, lost: Mapping[str, float]) -> Rung:
    """Return a rung of a float32 stage in which each output may be off by _ROUNDINGS times what the source lost itself.

    lost: of each output, the largest difference between the source in float32 and in float64.
    """
    if rung.passed or rung.stage in LEAST_SQNR_DB:
        return rung
    outputs = tuple(_allowing(each, _ROUNDINGS * lost.get(each.name, 0.0)) for each in rung.outputs)
    worst = max(outputs, key=lambda each: (not each.passed, each.worst))
    return replace(
        rung,
        outputs=outputs,
        passed=all(each.passed for each in outputs),
        limit=worst.limit if len(outputs) == 1 else f"{worst.limit} in {worst.name}",
    )


def _allowing(found: OutputDifference, allowed: float) -> OutputDifference:
    if found.passed or not found.worst <= allowed or not math.isfinite(allowed):
        return found
    return replace(found, passed=True, limit=f"at most {allowed:.2g}, {_ROUNDINGS} times the rounding of the source")


def require_ladder(rungs: Sequence[Rung], *, source: str) -> None:
    """Raise ParityError (exit 1) that names the first stage that is too far from the truth."""
    failed = next((each for each in rungs if not each.passed), None)
    if failed is not None:
        raise ParityError(source=source, stage=failed.stage, worst=failed.worst, limit=failed.limit)


def require_finite(outputs: Feeds, *, source: str) -> None:
    """Raise GateError (exit 1) for an output that holds a NaN or an infinity, and say how many of its numbers do."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            raise GateError(
                f"{source}: {int((~finite).sum())} of the {array.size} numbers of its output {name} are not finite "
                "(NaN or infinite)."
            )


def _difference(stage: str, name: str, truth: Array, output: Array | None) -> OutputDifference:
    if output is None or truth.shape != output.shape or truth.dtype.kind != output.dtype.kind:
        limit = f"{truth.dtype} of shape {'x'.join(map(str, truth.shape)) or 'one number'}"
        return OutputDifference(
            name=name, worst=math.inf, mean=math.inf, cosine=0.0, sqnr_db=-math.inf, equal=0.0, limit=limit,
            passed=False,
        )  # fmt: skip
    a, b = truth.astype(np.float64).ravel(), output.astype(np.float64).ravel()
    if not a.size:  # a detector that finds nothing
        return OutputDifference(
            name=name, worst=0.0, mean=0.0, cosine=1.0, sqnr_db=math.inf, equal=1.0, limit="nothing", passed=True
        )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # infinities, and equal outputs
        difference = np.nan_to_num(np.abs(a - b), nan=np.inf)
        power = float(np.square(difference).sum())
        sqnr_db = float(10 * np.log10(np.square(a).sum() / power)) if power else math.inf
        cosine = float((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum())) if a.any() and b.any() else 1.0
    worst, equal = float(difference.max()), float((difference == 0).mean())
    least = LEAST_SQNR_DB.get(stage)
    if truth.dtype.kind != "f":
        limit, kept = f"{_FEWEST_EQUAL:.1%} equal", equal >= _FEWEST_EQUAL or least is not None
    elif least is not None:
        limit, kept = f"at least {least:g} dB", sqnr_db >= least
    else:
        allowed = FLOAT_LIMIT * max(LEAST_LARGEST, float(np.abs(a).max()))
        limit, kept = f"at most {allowed:.2g}", worst <= allowed
    return OutputDifference(
        name=name,
        worst=worst,
        mean=float(difference.mean()),
        cosine=cosine if math.isfinite(cosine) else 0.0,
        sqnr_db=sqnr_db if not math.isnan(sqnr_db) else -math.inf,
        equal=equal,
        limit=limit,
        passed=math.isfinite(worst) and kept,
        floats=truth.dtype.kind == "f",
    )


def _same_class(truth: Array, output: Array) -> float:
    a, b = truth.reshape(len(truth), -1), output.reshape(len(output), -1)
    return float((a.argmax(1) == b.argmax(1)).mean())
