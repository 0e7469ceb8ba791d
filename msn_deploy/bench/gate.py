"""Has a model become slower than a limit allows? Against the baseline of the same run, or against an earlier run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msn_deploy.bench.measure import ArmFacts
from msn_deploy.bench.profile import first_difference
from msn_deploy.bench.result import BenchResult
from msn_deploy.bench.stats import CONFIDENCE, Ratio, holm, ratio_between_runs
from msn_deploy.core.errors import GateError, InputError, NotComparable
from msn_deploy.machine.environment import Environment

GateState = Literal["FAILED", "PASSED", "UNSETTLED"]

# What must be equal for two runs to speak of the same machine, in the same state of its clocks.
_DEVICE = ("machine", "cpu", "gpu", "cores_usable", "memory_gib")
_CLOCKS = ("governor", "power_mode", "clocks_pinned", "gpu_limits_mhz")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedModel:
    """One model of the gate."""

    name: str
    ratio: Ratio
    state: GateState
    """UNSETTLED: noise hides whether the limit is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The judgement. limit: 0.03 = 3 % slower. against: what the models were compared with."""

    limit: float
    against: str
    findings: tuple[GatedModel, ...]

    def check(self) -> None:
        """Raise GateError (exit 1) if a model is slower than the limit."""
        failed = [each for each in self.findings if each.state == "FAILED"]
        if failed:
            said = "; ".join(f"{each.name} {described(each.ratio)}" for each in failed)
            raise GateError(
                f"slower than {self.against} by more than {100 * self.limit:g} %: {said}.\n"
                "Measure again on an idle machine to be sure; if it is meant, make a new base with `--json`."
            )


def described(ratio: Ratio) -> str:
    """Write a ratio with its interval."""
    return f"{ratio.ratio:.3f} times as long ({CONFIDENCE:.0%} interval {ratio.low:.3f} to {ratio.high:.3f})"


def parse_limit(text: str) -> float:
    """Turn "slower:3%" into 0.03. Raises InputError."""
    found = re.fullmatch(r"slower:(\d+(?:\.\d+)?)%", text)
    if found is None:
        raise InputError(f"--fail-if {text!r} is not a limit.\nWrite it like slower:3%.")
    return float(found[1]) / 100


def judge_baseline(result: BenchResult, *, limit: float) -> Gate:
    """Compare every arm with the baseline of its own run, but for those that run the same graph: they can't differ."""
    others = [arm for arm in result.arms if arm.name != result.baseline]
    if not others:
        raise InputError(
            "--fail-if needs something to compare with: name a `--baseline`, or a result with `--against`."
        )
    baseline = next(arm for arm in result.arms if arm.name == result.baseline)
    ratios = {arm.name: arm.against_baseline for arm in others if not arm.facts.same_graph(baseline.facts)}
    return _judged(ratios, limit, against=result.baseline)


def judge_regression(result: BenchResult, base: BenchResult, *, limit: float, source: str, seed: int = 0) -> Gate:
    """Compare every arm with the one of its name in an earlier result, which `source` names.

    Raises NotComparable (exit 2) that names the first thing in which the two runs differ.
    """
    check_comparable(result, base, source=source)
    earlier = {arm.name: arm for arm in base.arms}
    found = [
        ratio_between_runs(arm.medians_by_build(), earlier[arm.name].medians_by_build(), seed=seed)
        for arm in result.arms
    ]
    return _judged(dict(zip([arm.name for arm in result.arms], holm(found), strict=True)), limit, against=source)


def check_comparable(result: BenchResult, base: BenchResult, *, source: str) -> None:
    """Raise NotComparable if the two results were not measured alike, or the earlier one is invalid."""
    if not base.validity.valid:
        raise _differs(source, f"it is {base.validity.message.partition('.')[0]}")
    profile = first_difference(result.profile, base.profile)
    if profile is not None:
        raise _differs(source, f"another timing profile: {profile}")
    for kind, keys in (("device", _DEVICE), ("clocks", _CLOCKS)):
        for key in keys:
            ours, theirs = (_known(each.environment, key) for each in (result, base))
            if ours != theirs:
                raise _differs(source, f"another {kind}: {key} {ours} against {theirs}")
    earlier = {arm.name: arm.facts for arm in base.arms}
    for arm in result.arms:
        if arm.name not in earlier:
            raise _differs(source, f"no model {arm.name!r} in it; there is {', '.join(earlier)}")
        for mode, ours, theirs in zip(
            ("images", "runtime_norm_fusions", "inputs"),
            _input_of(arm.facts),
            _input_of(earlier[arm.name]),
            strict=True,
        ):
            if ours != theirs and not (mode == "inputs" and None in (ours, theirs)):  # earlier versions told none
                raise _differs(source, f"another input mode of {arm.name}: {mode} {ours} against {theirs}")


def _known(environment: Environment, key: str) -> Any:
    """Return what stands under a key; memory in whole GiB, because a kernel's own share of it varies."""
    if key == "memory_gib":
        return None if environment.memory_mib is None else round(environment.memory_mib / 1024)
    return getattr(environment, key)


def _input_of(facts: ArmFacts) -> tuple[str | None, ...]:
    return (None if facts.images is None else facts.images.sha256, facts.runtime_norm_fusions, facts.inputs)


def _differs(source: str, what: str) -> NotComparable:
    return NotComparable(
        f"not comparable with {source}: {what}.\nMeasure both alike, or make a new base with `--json`."
    )


def _judged(ratios: Mapping[str, Ratio], limit: float, *, against: str) -> Gate:
    findings = tuple(GatedModel(name=name, ratio=ratio, state=_state(ratio, limit)) for name, ratio in ratios.items())
    return Gate(limit=limit, against=against, findings=findings)


def _state(ratio: Ratio, limit: float) -> GateState:
    if ratio.low > 1 and ratio.p_value < 1 - CONFIDENCE and ratio.ratio > 1 + limit:
        return "FAILED"
    return "PASSED" if ratio.high <= 1 + limit else "UNSETTLED"
