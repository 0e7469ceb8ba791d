"""The page of a study: claims, curves and a table of layers, in one file without scripts."""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msn_deploy.report.claims import Claim
from msn_deploy.report.curves import Panel, line_chart

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}p{max-width:48em}svg{max-width:100%;height:auto}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em .3em 0;border-bottom:1px solid #ddd;text-align:left;
vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.holds{color:#05714b}.unclear{color:#7a5c00}.not{color:#a8321e}
"""
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
class Study:
    """What was found.

    norms: per norm `parameters` (count), `layers` (names), `windows` (of training.dynamics) and `history` (of the
    training). recipe: of the first norm, as a dict. page, result: where it was written.
    """

    recipe: dict[str, Any]
    norms: dict[str, dict[str, Any]]
    claims: list[Claim]
    page: Path
    result: Path


def render(result: Study) -> str:
    """Return the page's HTML."""
    recipe, train = result.recipe, result.recipe["train"]
    norms = ", ".join(result.norms)
    charts = line_chart(panels_of(result)).decode("utf-8")
    charts = charts[charts.index("<svg") :]  # without the XML declaration, which has no place inside HTML
    title = html.escape(f"{recipe['net']} on {recipe['data']}: training with {norms}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>One training per norm, same seed ({train["seed"]}), data and order: {train["epochs"]} epochs, batches of
{train["batch_size"]}, {html.escape(train["optimizer"])} with {html.escape(train["schedule"])} to
{train["learning_rate"]:g}, init {html.escape(recipe["init"])}. The paper is
<a href="https://arxiv.org/abs/1907.04003">Mean Spectral Normalization, arXiv 1907.04003</a>.</p>
<h2>The paper's claims</h2>
{_claims(result)}
<p>Curves are medians over the layers, of one seed: a difference that is small beside a curve's own wobble says
nothing. Where a norm takes the mean off, the drift before the shift is zero by construction. Gradients of a weight that
is divided by its norm grow as the weight shrinks, so variances compare trainings as they ran, not functions.</p>
{charts}
<h2>Layers, at the end of training</h2>
<p>sigma: tracked over true spectral norm; largest: of the weight that is applied; top: share of the largest eigenvalue
of the gradient's second moment.</p>
{_layers(result)}
</body></html>
"""


def panels_of(result: Study) -> list[Panel]:
    """Return the charts of a study: medians over the layers, by norm."""
    panels = [
        Panel(
            title=title,
            x="step",
            y=unit,
            log=log,
            lines={
                norm: [(window["step"], _median(key, window)) for window in found["windows"]]
                for norm, found in result.norms.items()
            },
        )
        for key, title, unit, log in _CURVES
    ]
    for key, title in (("test_accuracy", "Test accuracy"), ("train_loss", "Training loss")):
        lines = {
            norm: [(entry["epoch"], entry[key]) for entry in found["history"]] for norm, found in result.norms.items()
        }
        panels.append(Panel(title=title, x="epoch", y=title.lower(), lines=lines, log=key == "train_loss"))
    return panels


def _median(key: str, window: dict[str, Any]) -> float:
    """Return the median over the layers of a number, or of the first of several."""
    return statistics.median(each[0] if isinstance(each, list) else each for each in window[key])


def _claims(result: Study) -> str:
    rows = []
    for each in result.claims:
        kind = {"holds": "holds", "unclear": "unclear"}.get(each.verdict, "not")
        cells = (html.escape(each.claim), f'<b class="{kind}">{each.verdict}</b>', html.escape(each.numbers))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if not rows:
        return "<p>These norms allow to judge none of them.</p>"
    return "<table><tr><th>claim</th><th>here</th><th>numbers</th></tr>" + "".join(rows) + "</table>"


def _layers(result: Study) -> str:
    head = ("norm", "layer", "sigma", "largest", "rank", "drift", "sparsity", "top")
    rows = []
    for norm, found in result.norms.items():
        last = found["windows"][-1]
        for at, layer in enumerate(found["layers"]):
            sigma = last["sigma"][at]
            numbers = (
                "" if sigma is None else f"{sigma:.3f}",
                f"{last['singular'][at][0]:.3g}",
                f"{last['rank'][at]:.1f}",
                f"{last['drift'][at]:.3g}",
                f"{last['sparsity'][at]:.3f}",
                f"{last['eigenvalues'][at][0]:.1%}",
            )
            cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
            rows.append(f"<tr><td>{norm}</td><td>{html.escape(layer)}</td>{cells}</tr>")
    names = "".join(f"<th{' class=n' if at > 1 else ''}>{name}</th>" for at, name in enumerate(head))
    return f"<table><tr>{names}</tr>{''.join(rows)}</table>"
