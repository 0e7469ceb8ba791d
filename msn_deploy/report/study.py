"""A study: what trainings of one recipe with several norms look like from inside, and what the MSN paper says of them.

The record of a study, its judgement of the paper's claims (arXiv 1907.04003), and its page.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msn_deploy.report.page import render
from msn_deploy.report.plots import Panel, line_plot

ClaimVerdict = Literal["holds", "does not hold", "unclear", "too short to tell"]

_MOST, _FEW = 0.75, 0.25  # of the (layer, window) pairs, for a claim to hold or to fail
_ENOUGH = 5  # windows of steps; fewer say nothing about a training
_DRIFTS, _STAYS = 0.1, 0.01  # of a channel's deviation
_CURVES = (
    ("drift", "Mean drift", "|mean| / deviation, before the shift", False),
    ("shifted", "Mean that the activation sees", "|mean| / deviation, after the shift", False),
    ("sparsity", "Sparsity of the gradient (Hoyer)", "0: even, 1: one entry", False),
    ("variance", "Variance of the gradient over steps", "mean over entries", True),
    ("rank", "Effective rank of the weights", "of the weight that is applied", False),
    ("singular", "Largest singular value of the weights", "of the weight that is applied", False),
    ("eigenvalues", "Largest eigenvalue of the gradient", "share of the second moment", False),
    ("directions", "Directions of the gradient", "participation ratio, of at most 64", False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LipschitzBounds:
    """Of the trained network, see msn_deploy.msn.lipschitz; the upper ones are None for the reason `why`."""

    lower: float
    upper: float | None
    upper_by_matrix: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """One training. parameters: a count. layers: names. windows: of training.dynamics. history: a row per epoch."""

    parameters: int
    layers: Sequence[str]
    windows: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    lipschitz: LipschitzBounds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim: a sentence, what the study says of it, and the numbers it was judged by."""

    claim: str
    verdict: ClaimVerdict
    numbers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What was found, by norm. recipe: of the first norm, as a dict. page, result: where it was written."""

    recipe: dict[str, Any]
    norms: dict[str, Studied]
    claims: list[Claim]
    page: Path
    result: Path


def study_html(study: Study) -> str:
    """Return the page: claims, curves and a table of layers, in one file without scripts."""
    recipe = study.recipe
    return render(
        "study.html.j2",
        title=f"{recipe['net']} on {recipe['data']}: training with {', '.join(study.norms)}",
        measured_on=[],
        recipe=recipe,
        train=recipe["train"],
        answer=answer(study.norms),
        claims=study.claims,
        norms=study.norms,
        charts=[line_plot(panel) for panel in panels_of(study)],
    )


def panels_of(study: Study) -> list[Panel]:
    """Return the charts of a study: medians over the layers, by norm."""
    panels = [
        Panel(
            title=title,
            x="step",
            y=unit,
            log=log,
            lines={
                norm: [(window["step"], _median(key, window)) for window in found.windows]
                for norm, found in study.norms.items()
            },
        )
        for key, title, unit, log in _CURVES
    ]
    for key, title in (("test_accuracy", "Test accuracy"), ("train_loss", "Training loss")):
        lines = {norm: [(entry["epoch"], entry[key]) for entry in found.history] for norm, found in study.norms.items()}
        panels.append(Panel(title=title, x="epoch", y=title.lower(), lines=lines, log=key == "train_loss"))
    return panels


def _median(key: str, window: Mapping[str, Any]) -> float:
    """Return the median over the layers of a number, or of the first of several."""
    return float(statistics.median(each[0] if isinstance(each, list) else each for each in window[key]))


def judge_claims(studied: Mapping[str, Studied]) -> list[Claim]:
    """Judge what the norms at hand allow to judge; what is watched over windows of steps needs `_ENOUGH` of them.

    studied: by norm. Medians are over layers and windows.
    """
    claims = []
    for other in ("bn", "none"):
        if {"sn", other} <= studied.keys():
            claims.append(_compared(studied, "sparsity", "SN raises gradient sparsity", "sn", other, higher=True))
            claims.append(_compared(studied, "variance", "SN lowers gradient variance", "sn", other, higher=False))
    if {"sn", "msn"} <= studied.keys():
        claims.append(_drifted(studied))
    windows = min((len(found.windows) for found in studied.values()), default=0)
    if windows < _ENOUGH:
        short = f"{windows} window{'s' * (windows != 1)}; needs {_ENOUGH}"
        claims = [Claim(claim=each.claim, verdict="too short to tell", numbers=short) for each in claims]
    if {"bn", "msn"} <= studied.keys():
        bn, msn_count = (studied[norm].parameters for norm in ("bn", "msn"))
        claims.append(
            Claim(
                claim="MSN has fewer trainable parameters than BN",
                verdict="holds" if msn_count < bn else "does not hold",
                numbers=f"{msn_count:,} against {bn:,}, {bn - msn_count:,} fewer ({(bn - msn_count) / bn:.2%})",
            )
        )
    return claims


def answer(studied: Mapping[str, Studied]) -> str:
    """Say in one sentence how far each norm lets the mean drift; nothing without norms, or with too few windows."""
    if not studied or min(len(found.windows) for found in studied.values()) < _ENOUGH:
        return ""
    drifts = {norm: statistics.median(_values(found, "drift")) for norm, found in studied.items()}
    keep = [_name(norm) for norm, drift in drifts.items() if drift < _STAYS]
    parts = [f"{' and '.join(keep)} keep{'s' * (len(keep) == 1)} the mean at 0"] if keep else []
    parts += [f"{_name(norm)} drifts by {drift:.2g} deviations" for norm, drift in drifts.items() if drift >= _STAYS]
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _drifted(studied: Mapping[str, Studied]) -> Claim:
    sn, msn = (statistics.median(_values(studied[norm], "drift")) for norm in ("sn", "msn"))
    return Claim(
        claim="SN drifts in mean and MSN does not",
        verdict="holds" if sn > _DRIFTS and msn < _STAYS else "does not hold" if sn <= msn else "unclear",
        numbers=f"|mean| / deviation of a channel before its shift: SN {sn:.3g}, MSN {msn:.2g}",
    )


def _values(studied: Studied, key: str) -> list[float]:
    return [value for window in studied.windows for value in window[key]]


def _compared(studied: Mapping[str, Studied], key: str, claim: str, norm: str, other: str, *, higher: bool) -> Claim:
    """Compare two norms layer by layer and window by window; their windows are those of the same steps."""
    pairs = [
        (one, two)
        for first, second in zip(studied[norm].windows, studied[other].windows, strict=False)
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
