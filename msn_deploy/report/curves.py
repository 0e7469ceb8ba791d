"""Line charts, as PNG files or SVG text, the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.optional import require

CURVE_VERSIONS = ("matplotlib", "numpy")
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {"bn": "#0072B2", "msn": "#D55E00", "msn-affine": "#CC79A7", "sn": "#009E73", "none": "#666666"}
_COLUMNS = 2
_OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: named lines of (x, y) points. log: a logarithmic y axis."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False


def line_chart(panels: Sequence[Panel], *, kind: str = "svg") -> bytes:
    """Draw panels, two in a row; return the bytes of a file. kind: "svg" or "png". Raises MissingDependency."""
    figures = require("matplotlib.figure", step="drawing curves")
    matplotlib = require("matplotlib", step="drawing curves")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"svg.hashsalt": "msn-deploy", "font.size": 9, "svg.fonttype": "none"}):
        figure = figures.Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
        for at, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, at + 1), panel)
        stream = BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=110, metadata=metadata)
    return stream.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    for at, (name, points) in enumerate(panel.lines.items()):
        colour = COLOURS.get(name, _OTHERS[at % len(_OTHERS)])
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


def write_curves(history: Sequence[Mapping[str, Any]], path: Path, *, log: Path | None = None) -> None:
    """Write the losses and accuracies of a training's history over its epochs as a PNG file, with a sidecar.

    log: the file of the history, to be named as the parent.
    """
    names = [key for key, value in history[0].items() if isinstance(value, float) and "seconds" not in key]
    panels = []
    for title, keys in (
        ("Loss", [key for key in names if key.endswith("loss")]),
        ("Accuracy", [key for key in names if key.endswith("accuracy")]),
        ("Logits", [key for key in names if key.endswith("logit")]),
    ):
        lines = {key: [(entry["epoch"], entry[key]) for entry in history] for key in keys}
        if lines:
            panels.append(Panel(title=title, x="epoch", y=title.lower(), lines=lines))
    picture = line_chart(panels, kind="png")
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
