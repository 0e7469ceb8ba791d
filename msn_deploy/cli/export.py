"""`msn-deploy export`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import (
    Json,
    new_file,
    parse_batch,
    parse_classes,
    parse_input,
    parse_numbers,
    parse_pairs,
    parse_shape,
    parse_task,
)
from msn_deploy.core.errors import size_text
from msn_deploy.core.model_info import TASKS

if TYPE_CHECKING:
    from msn_deploy.graph.certificate import Certificate
    from msn_deploy.model.parity import Rung
    from msn_deploy.pipeline.export import ExportReport

EXAMPLES = """
msn-deploy export runs/vgg7_msn.safetensors
msn-deploy export my_net.py:build --weights net.pt --input-shape 1,3,32,32
msn-deploy export yolov8n.onnx --task detection --preprocess yolo
"""
_IMAGES = "Images"
_TASK = "Task"
_MOST_NAMES = 5  # that a line lists


def command(
    source: Annotated[str, typer.Argument(help="CHECKPOINT.safetensors, FILE.py:FACTORY or OTHER.onnx.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=new_file,
            help="File to write.",
            show_default="SOURCE.onnx beside the source; OTHER.folded.onnx",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights for FILE.py:FACTORY (.safetensors, or a .pt state dict).")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="N,C,H,W of the only input; needed for FILE.py:FACTORY.", metavar="N,C,H,W")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SIZES[:TYPE]",
            help="One of several inputs; repeat it. A name in place of a size keeps it open.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="What to compare on: .npz or .npy files, or images.",
            show_default="the known name that the model was trained on, else random numbers",
            metavar="DATA",
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch-size", metavar="N", help="Fixed batch size, or `dynamic`.", show_default="1")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=7, help="ONNX opset.", show_default="17, or more if the network needs it")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The machine whose TensorRT has to read it (`msn-deploy targets`)."),
    ] = None,
    simplify: Annotated[bool, typer.Option("--simplify/--no-simplify", help="Run onnxsim.")] = True,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold norms into convolutions.")] = True,
    require_fully_folded: Annotated[
        bool, typer.Option("--require-fully-folded", help="Fail if a norm can't be folded.")
    ] = False,
    ladder: Annotated[bool, typer.Option("--ladder", help="Compare FP16 and INT8, too; neither is written.")] = False,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"What the outputs mean: {', '.join(TASKS)}.", rich_help_panel=_TASK),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C|FILE", help="Names of the classes or values, in order.", rich_help_panel=_TASK),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option(
            "--read",
            metavar="KEY=VALUE",
            help="How the task reads the outputs, such as head=yolov8; repeatable.",
            rich_help_panel=_TASK,
        ),
    ] = None,
    nms: Annotated[
        bool, typer.Option("--nms", help="Put a detector's NMS into the graph: boxes come out.", rich_help_panel=_TASK)
    ] = False,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FILE.toml",
            help="How images are prepared: imagenet, zero-one, minus-one-one, yolo, or a file.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Subtracted, per channel of the network.", rich_help_panel=_IMAGES),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="What is left is divided by it.", rich_help_panel=_IMAGES)
    ] = None,
    pixel_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW..HIGH",
            help="What black and white become before that: 0..1, 0..255, -1..1.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    colour: Annotated[
        str | None, typer.Option(metavar="rgb|bgr|grey", help="Order of the channels.", rich_help_panel=_IMAGES)
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="stretch|pad|letterbox|crop", help="How images get to the input's size.", rich_help_panel=_IMAGES
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(metavar="PX", help="What a crop first scales to, as 256 for 224.", rich_help_panel=_IMAGES),
    ] = None,
    fill: Annotated[
        int | None, typer.Option(metavar="0..255", help="The grey that pads.", rich_help_panel=_IMAGES)
    ] = None,
    align: Annotated[
        str | None, typer.Option(metavar="centre|corner", help="Where a padded image is.", rich_help_panel=_IMAGES)
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(metavar="bilinear|bicubic|nearest", help="How it is scaled.", rich_help_panel=_IMAGES)
    ] = None,
    uint8_input: Annotated[
        bool,
        typer.Option("--uint8-input", help="The input takes bytes; the graph prepares them.", rich_help_panel=_IMAGES),
    ] = False,
    uint8_layout: Annotated[
        str | None,
        typer.Option(
            metavar="nchw|nhwc",
            help="Of these bytes: channels first or last.",
            show_default="as the network's",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    uint8_colour: Annotated[
        str | None,
        typer.Option(
            metavar="rgb|bgr",
            help="Of these bytes; OpenCV gives bgr.",
            show_default="rgb, whatever the network takes",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Fold a network, write one checked ONNX file, and prove that it agrees with its source."""
    from msn_deploy.data.preparation import preparation
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.pipeline.source import ExportOptions

    size, dynamic = parse_batch(batch)
    stated = {"mean": parse_numbers("mean", mean), "std": parse_numbers("std", std), "range": pixel_range,
              "colour": colour, "fit": fit, "short_side": short_side, "fill": fill, "align": align,
              "interpolation": interpolation}  # fmt: skip
    options = ExportOptions(
        preparation=preparation(preprocess, stated),
        task=parse_task(task),
        classes=parse_classes(classes),
        reading=parse_pairs("read", read),
        uint8_input=uint8_input,
        uint8_layout=uint8_layout and uint8_layout.upper(),
        uint8_colour=uint8_colour,
        weights=weights,
        input_shape=parse_shape(input_shape) if input_shape else None,
        inputs=tuple(parse_input(each) for each in inputs or ()),
        data=data,
        dynamic_batch=dynamic,
        batch=size,
        opset=opset,
        target=target,
        fold=fold,
        simplify=simplify,
        require_fully_folded=require_fully_folded,
        ladder=ladder,
        nms=nms,
    )
    with output.progress_bar() as progress:
        report = export_onnx(source, out, options, progress=progress)
    if output.emit(report, json, made_from=[report.path], then=_next(report)):
        return
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    output.say(f"{report.path}: {size_text(report.bytes)}, {'folded' if report.folded else 'not folded'}")
    output.say(f"  operators  {operators}")
    if report.task:
        named = f", {len(report.classes)} names" if report.classes else ""
        reading = "".join(f", {key} {value}" for key, value in report.reading.items())
        output.say(f"  task       {report.task}{named}{reading}")
    if report.nms is not None:
        output.say(f"  boxes      {report.nms.same} of {report.nms.boxes} are those of NMS in numpy")
    if report.preprocess is not None:
        output.say(f"  images     {report.preprocess.in_words}")
    if report.in_graph is not None:
        output.say(f"  in graph   {report.in_graph.numbers_in_words}; as {report.in_graph.colour}")
    if report.certificate is not None:
        _say_folds(report.certificate)
    if report.unsimplified_because:
        output.say(f"  not simplified: {report.unsimplified_because}")
    output.say(f"  against the source, on {report.parity_on}:")
    rows = [row for each in report.ladder for row in _rows(each)]
    output.show_table(rows, head=("stage", "max diff", "mean diff", "cosine", "SQNR", "same top-1"))


def _next(report: ExportReport) -> Sequence[object]:
    """Return the command that a file is made for: calibration comes before INT8, and before NMS."""
    if "QuantizeLinear" in report.operators:
        return "build-engine", report.path, "--precision", "int8"
    return "build-engine" if report.nms is not None else "calibrate", report.path


def _rows(rung: Rung) -> Iterator[tuple[str, ...]]:
    """Yield a stage's row of the table; of several outputs one row each."""
    same = "" if rung.same_class is None else f"{rung.same_class:.2%}"
    for each in rung.outputs:
        yield (
            rung.stage if len(rung.outputs) < 2 else f"{rung.stage}: {each.name}",
            f"{each.worst:.1e}",
            f"{each.mean:.1e}",
            f"{each.cosine:.6f}",
            "equal" if each.sqnr_db == math.inf else f"{each.sqnr_db:.0f} dB",
            same,
        )


def _say_folds(certificate: Certificate) -> None:
    rules = Counter(norm.rule for norm in certificate.norms if norm.rule != "kept")
    told = [f"{count} {rule}" for rule, count in sorted(rules.items())]
    worst = certificate.worst
    told_worst = f"largest change {worst.difference:.1g} (of values up to {worst.of:.2g}), in float64"
    if not worst.of:  # every operator is the one that it was
        told_worst = "nothing that is computed changed"
    output.say(f"  norms      {', '.join(told) or 'none to fold'}; {told_worst}")
    if (norm := certificate.worst_sigma) is not None:
        both = f"{norm.sigma:.4g}, the largest singular value is {norm.sigma_svd:.4g}"
        output.say(f"  sigma      off by {norm.sigma_error:.2%} at most: in layer {norm.norm} it is {both}")
    if certificate.in_float32:
        names = ", ".join(certificate.in_float32[:_MOST_NAMES])
        more = len(certificate.in_float32) - _MOST_NAMES
        output.say(f"  float32    {names}{f' and {more} more' if more > 0 else ''}: compared in float32 only")
    for code, count in sorted(Counter(norm.code for norm in certificate.kept).items()):
        first = next(norm for norm in certificate.kept if norm.code == code)
        output.say(f"  kept       {count} {code}, the first {first.norm}: {first.why}")
