"""`msn-deploy diff`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import DataOrFeeds, Json, Plugins, Trust, new_file

if TYPE_CHECKING:
    from msn_deploy.pipeline.diff import Difference, DiffReport, TensorDifference

EXAMPLES = """
msn-deploy diff runs/vgg7_msn.int8.onnx runs/vgg7_msn.onnx
msn-deploy diff net.engine net.onnx --data photos --plot diff.svg
"""
_SHOWN = 10
_ROUNDING_DB = 100.0  # what float32 loses by another order of the same sums is beyond


def command(
    model: Annotated[Path, typer.Argument(help="ONNX file or engine.")],
    reference: Annotated[Path, typer.Argument(help="ONNX file that it should agree with, such as its FP32 file.")],
    data: DataOrFeeds = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Images or samples to compare on.")] = 16,
    every: Annotated[bool, typer.Option("--all", help="List every tensor in order, not only the worst.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|.png", callback=new_file, help="Draw the differences along the network."),
    ] = None,
    trust: Trust = False,
    plugins: Plugins = None,
    json: Json = None,
) -> None:
    """Compare two files tensor by tensor: where they begin to differ, and which layers add most to it."""
    from msn_deploy.pipeline.diff import diff, plot_kind, write_plot

    if plot is not None:
        plot_kind(plot)
    with output.progress_bar() as progress:
        report = diff(
            model,
            reference,
            data=data,
            samples=samples,
            trust=trust,
            plugins=plugins or (),
            progress=progress,
        )
    if plot is not None:
        write_plot(report, plot)
    if output.emit(report, json, made_from=[model, reference]):
        return
    output.say(f"{report.model} against {report.reference}, {report.samples} samples of {report.data}")
    output.show_table(
        [(name, *_cells(found)) for name, found in report.outputs.items()],
        head=("output", "SQNR, dB", "cosine", "largest error"),
        right=(1, 2, 3),
    )
    _show_inside(report, every=every)
    if plot is not None:
        output.say(f"drawn: {plot}")


def _show_inside(report: DiffReport, *, every: bool) -> None:
    if not report.tensors:
        return
    if report.inside != report.model:
        output.say(
            f"inside: {report.inside}, which the engine was built from. Marking an engine's tensors as outputs would "
            "change what it fuses, so the engine itself is compared by its outputs alone."
        )
    if report.disturbed_db < _ROUNDING_DB:
        output.say(
            "to see them, tensors were made outputs, which keeps the runtime from fusing: by that alone the outputs "
            f"move ({report.disturbed_db:.1f} dB)."
        )
    rows = report.tensors if every else report.worst[:_SHOWN]
    output.show_table(
        [_row(each) for each in rows],
        head=("layer", "operator", "adds, dB", "SQNR, dB", "cosine", "largest error", "by"),
        right=(2, 3, 4, 5),
        gap=2,
    )
    if not rows:
        output.say("every tensor is equal, bit for bit")
    first = report.first_off
    count = f"{len(report.tensors)} tensors compared" + (
        f", {len(report.unmatched)} of the reference are not in the model" if report.unmatched else ""
    )
    if first is None:
        output.say(f"{count}; none is off (that is {report.limit})")
    else:
        where = first.model_tensor if first.by == "name" else f"{first.tensor}, {first.model_tensor} in the model"
        output.say(f"{count}; the first that is off ({report.limit}): {first.layer} ({first.operator}), {where}")


def _row(each: TensorDifference) -> tuple[str, ...]:
    sqnr, cosine, worst = _cells(each.total)
    return each.layer, each.operator, "-" if each.own is None else _db(each.own.sqnr_db), sqnr, cosine, worst, each.by


def _cells(found: Difference) -> tuple[str, str, str]:
    return _db(found.sqnr_db), f"{found.cosine:.6f}", f"{found.worst:.3g}"


def _db(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "equal" if value > 0 else "-"
