"""`msn-deploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, Out, parse_batch, parse_shape


def command(
    source: Annotated[str, typer.Argument(help="CHECKPOINT.safetensors, FILE.py:FACTORY or OTHER.onnx.")],
    out: Out = Path("model.onnx"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights for FILE.py:FACTORY (.safetensors, or a .pt state dict).")
    ] = None,
    input_shape: Annotated[str | None, typer.Option(help="N,C,H,W; needed for FILE.py:FACTORY.")] = None,
    batch: Annotated[str, typer.Option(help="Fixed batch size of a checkpoint's export, or `dynamic`.")] = "1",
    opset: Annotated[int | None, typer.Option(min=7, help="ONNX opset.", show_default="17")] = None,
    simplify: Annotated[bool, typer.Option("--simplify/--no-simplify", help="Run onnxsim.")] = True,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold norms into convolutions.")] = True,
    json: Json = None,
) -> None:
    """Fold a network, write one checked ONNX file, and prove that it agrees with its source."""
    from msn_deploy.pipeline import export_onnx

    size, dynamic = parse_batch(batch)
    report = export_onnx(
        source,
        out,
        weights=weights,
        input_shape=parse_shape(input_shape) if input_shape else None,
        dynamic_batch=dynamic,
        batch=size,
        opset=opset,
        fold=fold,
        simplify=simplify,
    )
    if output.emit(report, json, made_from=[report.path]):
        return
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    output.say(f"{report.path}: {output.size(report.bytes)}, {'folded' if report.folded else 'not folded'}")
    output.say(f"  operators  {operators}")
    output.say(
        f"  parity     max |difference of logits| {report.parity.worst:.2g}, same class "
        f"{report.parity.same_class:.2%}, on {report.parity_on}"
    )
