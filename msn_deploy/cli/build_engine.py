"""`msn-deploy build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.calibrate import show_verdict
from msn_deploy.cli.options import (
    DataOrFeeds,
    Json,
    LeaveOut,
    MaxDrop,
    Method,
    MinSqnr,
    Plugins,
    Samples,
    Shapes,
    State,
    Tune,
    new_file,
)
from msn_deploy.core.errors import size_text
from msn_deploy.core.model_info import DEFAULT_SAMPLES
from msn_deploy.core.optional import install
from msn_deploy.engine.build_options import DEFAULT_BATCH, BuildOptions, parse_mib
from msn_deploy.engine.runner import parse_state, sizes_text
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.machine.targets import find_target

if TYPE_CHECKING:
    from msn_deploy.engine import BuildReport, DeviceBuild, DlaPlan
    from msn_deploy.pipeline.build import EngineReport

_SIZES = "Sizes"
_BUILDER = "Builder"
_DLA = "DLA"
EXAMPLES = """
msn-deploy build-engine runs/vgg7_msn.onnx
msn-deploy build-engine runs/vgg7_msn.onnx --precision int8 --max-drop 0.5pp
msn-deploy build-engine runs/vgg7_msn.int8.onnx --target orin-nano
msn-deploy build-engine runs/vgg7_msn.onnx --precision fp8 --target rtx-sm89
"""
_DEFAULT = BuildOptions()
_ROWS = 12  # of the fallback table; the sidecar holds all


def command(
    onnx: Annotated[Path, typer.Argument(help="ONNX file from `export` or `calibrate`.")],
    precision: Annotated[str, typer.Option(help="Precision of the layers.", metavar="fp32|fp16|int8|fp8")] = "fp16",
    data: DataOrFeeds = None,
    method: Method = None,
    samples: Samples = DEFAULT_SAMPLES,
    state: State = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    leave_out: LeaveOut = None,
    tune: Tune = None,
    target: Annotated[str, typer.Option(help="Device; `msn-deploy targets` lists them.", metavar="NAME")] = "auto",
    backend: Annotated[
        str, typer.Option(help="Which TensorRT builds it.", metavar="auto|tensorrt|tensorrt-rtx")
    ] = _DEFAULT.backend,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Maximum batch size (dynamic-batch files only).",
            show_default=str(DEFAULT_BATCH),
            rich_help_panel=_SIZES,
        ),
    ] = None,
    min_batch: Annotated[
        int, typer.Option(min=1, help="Minimum batch size, likewise.", rich_help_panel=_SIZES)
    ] = _DEFAULT.min_batch,
    opt_batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batch size to optimise for, likewise.", show_default="the largest", rich_help_panel=_SIZES
        ),
    ] = None,
    shapes: Shapes = None,
    plugins: Plugins = None,
    workspace: Annotated[
        str,
        typer.Option(
            "--workspace-mib",
            "--workspace",
            metavar="SIZE",
            help="Scratch memory of the builder: MiB, or 512MiB, 1GiB.",
            rich_help_panel=_BUILDER,
        ),
    ] = str(_DEFAULT.workspace_mib),
    timing_cache: Annotated[
        Path | None, typer.Option(help="Timing cache to read and write.", rich_help_panel=_BUILDER)
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=5,
            help="How long to search for kernels.",
            show_default="TensorRT's own",
            rich_help_panel=_BUILDER,
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="An engine that later TensorRT releases load too; slower.",
            rich_help_panel=_BUILDER,
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            help="An engine for every desktop GPU from Ampere on; slower.",
            rich_help_panel=_BUILDER,
        ),
    ] = False,
    dla: Annotated[
        int | None, typer.Option(min=0, help="DLA core to build for; the GPU takes the rest.", rich_help_panel=_DLA)
    ] = None,
    max_dla_fallback: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Fail if more multiply-accumulates than this leave the DLA, percent.",
            rich_help_panel=_DLA,
        ),
    ] = None,
    calibration_table: Annotated[
        Path | None,
        typer.Option(
            help="Scales for INT8 on a DLA up to TensorRT 10.7, from `calibrate --table`; or give --data.",
            rich_help_panel=_DLA,
        ),
    ] = None,
    replicates: Annotated[
        int, typer.Option(min=1, help="Engines to build: NAME.engine, NAME.r2.engine, ...", rich_help_panel=_BUILDER)
    ] = _DEFAULT.replicates,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=new_file,
            help="File to write.",
            show_default="NAME.PRECISION[.dlaN].engine",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Build a TensorRT engine: on a Jetson for that Jetson, elsewhere with TensorRT-RTX ahead of time.

    If the target is another device, write an ONNX file and a build script for it instead.
    """
    from msn_deploy.pipeline.budget import parse_drop, parse_sqnr
    from msn_deploy.pipeline.build import build_engine

    options = BuildOptions(
        precision=precision,
        target=None if target == "auto" else find_target(target),
        backend=backend,
        batch=batch,
        min_batch=min_batch,
        opt_batch=opt_batch,
        shapes=tuple(map(parse_shapes, shapes or ())),
        plugins=tuple(plugins or ()),
        workspace_mib=parse_mib(workspace),
        timing_cache=timing_cache,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla=dla,
        max_dla_fallback=max_dla_fallback,
        calibration_table=calibration_table,
        replicates=replicates,
    )
    with output.progress_bar() as progress:
        report = build_engine(
            onnx,
            out,
            precision=precision,
            data=data,
            method=method,
            samples=samples,
            state=dict(map(parse_state, state or ())),
            max_drop=None if max_drop is None else parse_drop(max_drop),
            min_sqnr=None if min_sqnr is None else parse_sqnr(min_sqnr),
            leave_out=leave_out or (),
            tune=tune,
            options=options,
            progress=progress,
        )
    engines = [report.engine, *report.replicates] if report.engine is not None else []
    made = [engine.path for engine in engines] or [report.onnx]
    here = made if report.engine and report.engine.device else [report.onnx]
    if output.emit(report, json, made_from=made, then=() if report.elsewhere else ("bench", *here)):
        return
    for engine in engines:
        _show_engine(engine, report.onnx)
    if report.typed is not None:
        show_verdict(report.typed)
    if report.elsewhere is not None:
        _show_elsewhere(report, report.elsewhere)


def _show_engine(built: BuildReport, onnx: Path) -> None:
    output.say(
        f"{built.path}: {size_text(built.plan_bytes)}, {built.precision.upper()}, built in {built.seconds:.1f} s"
    )
    output.say(f"  from       {onnx}")
    output.say(
        f"  builder    {built.backend} {built.backend_version}, target {built.target or built.device or 'this GPU'}"
    )
    for what, specs in (("inputs", built.inputs), ("outputs", built.outputs)):
        named = (f"{each.name} {each.dtype} {sizes_text(each.shape)}" for each in specs)
        output.say(f"  {what:10} {', '.join(named)}")
    for name, shapes in built.ranges.items():
        output.say(f"  takes      {name} of {', '.join(map(sizes_text, dict.fromkeys(shapes)))}")
    convs, others, title = built.int8_convs, built.not_int8, "INT8"
    if built.precision == "fp8":
        convs, others, title = built.fp8_convs, built.not_fp8, "FP8"
    output.say(
        f"  layers     {len(built.layers) or '-'}, {title} convolutions {'-' if convs is None else convs}; "
        f"weights {size_text(built.weight_memory_bytes)}"
    )
    if built.dla is not None:
        _show_dla(built.dla)
    for layer in others[:_ROWS]:
        output.say(f"  {f'not {title}':10} {layer.name} ({layer.kind}, {layer.precision or 'type not told'})")
    if len(others) > _ROWS:
        output.say(f"             ... and {len(others) - _ROWS} more")
    for warning in built.warnings[:2]:
        output.say(f"  warning    {warning}")


def _show_dla(plan: DlaPlan) -> None:
    fallen = [layer for layer in plan.layers if layer.reason]
    output.say(
        f"  DLA {plan.core}      {len(plan.layers) - len(fallen)} of {len(plan.layers)} layers; "
        f"{plan.fallback_percent:.1f} % of the multiply-accumulates on the GPU, {plan.transitions} changes of device"
    )
    if fallen:
        total = sum(layer.macs for layer in plan.layers) or 1
        rows = [(each.name, each.kind, f"{each.macs / total:.1%}", each.reason) for each in fallen[:_ROWS]]
        output.show_table(rows, head=("on the GPU", "operator", "share", "because"), right=(2,))
    if len(fallen) > _ROWS:
        output.say(f"  ... and {len(fallen) - _ROWS} more")


def _show_elsewhere(report: EngineReport, there: DeviceBuild) -> None:
    output.say(f"No engine was built here: {there.why}.")
    if report.proxy is None and there.plugins:
        output.say("  unchecked  TensorRT-RTX, the builder of this machine, takes no plugins")
    elif report.proxy is None:
        output.say(f"  unchecked  no NVIDIA builder here; TensorRT-RTX is one: {install('rtx')}")
    else:
        seen = report.proxy
        output.say(
            f"  checked    with {seen.builder} for {seen.target} as a stand-in: {seen.layers} layers, "
            f"{f'{seen.fp8_convs} FP8' if seen.fp8_convs else f'{seen.int8_convs} INT8'} convolutions, "
            f"weights {size_text(seen.weight_memory_bytes)}"
        )
    if there.dla is not None:
        _show_dla(there.dla)
    if report.typed is None:
        output.say(f"  takes      {report.onnx}")
    copied = ", ".join([report.onnx.name, "its .json", *there.beside, *there.plugins])
    output.say(f"Copy {copied} and {there.script.name} into one folder of the device, and run there:")
    output.say(f"  ./{there.script.name}")
    output.say("It takes the first of these that the device has:")
    for command in there.commands:
        output.say(f"  {command}")
    for release, line in there.trtexec.items():
        output.say(f"  {line}   # {release}")
