"""Line charts as PNG or SVG files, the same bytes each time; pages have charts of their own (see plots.line_plot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.optional import require
from msn_deploy.report.page import COLOURS, LIGHT
from msn_deploy.report.plots import Panel

CURVE_VERSIONS = ("matplotlib", "numpy")
_COLUMNS = 2


def line_chart(panels: Sequence[Panel], *, title: str = "", kind: Literal["png", "svg"] = "png") -> bytes:
    """Draw panels, two in a row, under a title; return the bytes of a picture. Raises MissingDependency."""
    figures = require("matplotlib.figure", step="drawing curves")
    matplotlib = require("matplotlib", step="drawing curves")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "msn-deploy"}):
        figure = figures.Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        for at, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, at + 1), panel)
        stream = BytesIO()
        unsaid = {"Software": None} if kind == "png" else {"Creator": None, "Date": None}
        figure.savefig(stream, format=kind, dpi=110, metadata=unsaid)
    return stream.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    for at, (name, points) in enumerate(panel.lines.items()):
        colour = LIGHT[f"c{at % COLOURS}"]
        marker = "o" if len(points) < 15 else None
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker, markersize=3, linewidth=1.4)
    axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def write_curves(
    history: Sequence[Mapping[str, Any]], path: Path, *, title: str = "", percent: bool = False, log: Path | None = None
) -> None:
    """Write the losses, metrics and learning rates of a training's history over its epochs as a PNG file.

    percent: the metrics are shares, and are shown in percent. log: the file of the history, to be named as the parent.
    """
    names = [key for key, value in history[-1].items() if isinstance(value, float) and "seconds" not in key]
    panels = []
    metrics = [key for key in names if key.startswith(("test_", "validation_"))]
    each_metric = dict.fromkeys(key.split("_", 1)[1] for key in metrics)  # the task's own first
    for heading, keys in (
        ("Loss", [key for key in names if key.endswith("loss")]),
        *((_heading(name), [key for key in metrics if key.split("_", 1)[1] == name]) for name in each_metric),
        ("Logits", [key for key in names if key.endswith("logit")]),
        ("Learning rate", [key for key in names if key == "learning_rate"]),
    ):
        times = 100 if percent and keys and keys[0] in metrics else 1
        lines = {key: [(entry["epoch"], times * entry[key]) for entry in history if key in entry] for key in keys}
        if lines:
            y = heading.lower() if heading.istitle() else heading
            panels.append(Panel(title=heading, x="epoch", y=f"{y} (%)" if times > 1 else y, lines=lines))
    picture = line_chart(panels, title=title)
    parents = [] if log is None else [parent_of(log, role="history")]
    config = {"panels": [panel.title for panel in panels]}
    publish(
        path,
        lambda partial: partial.write_bytes(picture),
        kind="curves",
        parents=parents,
        versions=CURVE_VERSIONS,
        config=config,
    )


def _heading(metric: str) -> str:
    """Return "Accuracy" of "accuracy", and "mIoU" as it is."""
    return metric.capitalize() if metric.islower() else metric
