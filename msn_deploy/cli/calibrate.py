"""`msn-deploy calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Data, Json, Method, Samples, new_file


def command(
    onnx: Annotated[Path, typer.Argument(help="FP32 ONNX file from `export`.")],
    data: Data = None,
    method: Method = "entropy",
    samples: Samples = 256,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_file, help="File to write.", show_default="NAME.int8.onnx"),
    ] = None,
    json: Json = None,
) -> None:
    """Quantise an ONNX file to INT8 (explicit Q/DQ) on real training images."""
    from msn_deploy.pipeline import calibrate

    with output.progress_bar() as progress:
        report = calibrate(
            onnx,
            out or onnx.with_name(f"{onnx.stem}.int8.onnx"),
            data=data,
            method=method,
            samples=samples,
            progress=progress,
        )
    if output.emit(report, json, made_from=[report.path]):
        return
    output.say(f"{report.path}: {output.size(report.bytes)}, {report.bytes / report.bytes_fp32:.2f} of FP32")
    assert report.parity is not None
    output.say(
        f"  {report.scales} activation scales from {report.samples} images; same class as FP32 on "
        f"{report.parity.same_class:.2%} of them"
    )
