"""What the MSN paper (arXiv 1907.04003) says of training, each claim held against a study's numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MOST, _FEW = 0.75, 0.25  # of the (layer, window) pairs, for a claim to hold or to fail
_DRIFTS, _STAYS = 0.1, 0.01  # of a channel's deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim: a sentence with the numbers it was judged by, and "holds", "does not hold" or "unclear"."""

    claim: str
    verdict: str
    numbers: str


def judge_claims(studied: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Judge what the norms at hand allow to judge.

    studied: per norm `parameters` (a count) and `windows` (of training.dynamics). Medians are over layers and windows.
    """
    claims = []
    for other in ("bn", "none"):
        if {"sn", other} <= studied.keys():
            claims.append(_compared(studied, "sparsity", "SN raises gradient sparsity", "sn", other, higher=True))
            claims.append(_compared(studied, "variance", "SN lowers gradient variance", "sn", other, higher=False))
    if {"sn", "msn"} <= studied.keys():
        sn, msn = (statistics.median(_values(studied[norm], "drift")) for norm in ("sn", "msn"))
        verdict = "holds" if sn > _DRIFTS and msn < _STAYS else "does not hold" if sn <= msn else "unclear"
        claims.append(
            Claim(
                claim="SN drifts in mean and MSN does not",
                verdict=verdict,
                numbers=f"|mean| / deviation of a channel before its shift: SN {sn:.3g}, MSN {msn:.2g}",
            )
        )
    if {"bn", "msn"} <= studied.keys():
        bn, msn_count = (studied[norm]["parameters"] for norm in ("bn", "msn"))
        claims.append(
            Claim(
                claim="MSN has fewer trainable parameters than BN",
                verdict="holds" if msn_count < bn else "does not hold",
                numbers=f"{msn_count:,} against {bn:,}, {bn - msn_count:,} fewer ({(bn - msn_count) / bn:.2%})",
            )
        )
    return claims


def _values(studied: Mapping[str, Any], key: str) -> list[float]:
    return [value for window in studied["windows"] for value in window[key]]


def _compared(
    studied: Mapping[str, Mapping[str, Any]], key: str, claim: str, norm: str, other: str, *, higher: bool
) -> Claim:
    """Compare two norms layer by layer and window by window; their windows are those of the same steps."""
    pairs = [
        (one, two)
        for first, second in zip(studied[norm]["windows"], studied[other]["windows"], strict=False)
        for one, two in zip(first[key], second[key], strict=False)
    ]
    share = sum((one > two) if higher else (one < two) for one, two in pairs) / len(pairs)
    medians = [statistics.median(each) for each in zip(*pairs, strict=True)]
    return Claim(
        claim=f"{claim} against {_name(other)}",
        verdict="holds" if share >= _MOST else "does not hold" if share <= _FEW else "unclear",
        numbers=f"median {medians[0]:.3g} with {_name(norm)}, {medians[1]:.3g} with {_name(other)}; "
        f"{'higher' if higher else 'lower'} in {share:.0%} of layers and windows",
    )


def _name(norm: str) -> str:
    return "no norm" if norm == "none" else norm.upper()
