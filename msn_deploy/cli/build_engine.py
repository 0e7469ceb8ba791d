"""`msn-deploy build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Data, Json, Method, Samples, new_file


def command(
    onnx: Annotated[Path, typer.Argument(help="ONNX file from `export` or `calibrate`.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp16",
    data: Data = None,
    method: Method = "entropy",
    samples: Samples = 256,
    target: Annotated[str, typer.Option(help="Device; `msn-deploy targets` lists them.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Largest batch, where the file leaves it open.")] = 8,
    workspace_mib: Annotated[int, typer.Option(min=1, help="Scratch memory of the builder, MiB.")] = 256,
    timing_cache: Annotated[Path | None, typer.Option(help="Timing cache to read and write.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_file, help="File to write.", show_default="NAME.PRECISION.engine"),
    ] = None,
    json: Json = None,
) -> None:
    """Build a TensorRT engine: on a Jetson for that Jetson, elsewhere with TensorRT-RTX ahead of time."""
    from msn_deploy.engine import BuildOptions, find_target
    from msn_deploy.pipeline import build_engine

    stem = onnx.stem.removesuffix(f".{precision}")
    options = BuildOptions(
        target=None if target == "auto" else find_target(target),
        backend=backend,
        batch=batch,
        workspace_mib=workspace_mib,
        timing_cache=timing_cache,
    )
    with output.progress_bar() as progress:
        report = build_engine(
            onnx,
            out or onnx.with_name(f"{stem}.{precision}.engine"),
            precision=precision,
            data=data,
            method=method,
            samples=samples,
            options=options,
            progress=progress,
        )
    if output.emit(report, json, made_from=[report.engine.path]):
        return
    built = report.engine
    output.say(
        f"{built.path}: {output.size(built.plan_bytes)}, {built.precision.upper()}, built in {built.seconds:.1f} s"
    )
    output.say(f"  from       {report.onnx}")
    output.say(f"  builder    {built.backend} {built.backend_version}, target {built.target or 'this GPU'}")
    output.say(
        f"  layers     {built.layers if built.layers is not None else '-'}, INT8 convolutions "
        f"{built.int8_convs if built.int8_convs is not None else '-'}; weights {output.size(built.weight_memory_bytes)}"
    )
    for warning in built.warnings[:2]:
        output.say(f"  warning    {warning}")
