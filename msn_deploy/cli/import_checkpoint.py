"""`msn-deploy import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, new_file
from msn_deploy.core.optional import require

EXAMPLES = """
msn-deploy import-checkpoint model.t7 --out runs/model.safetensors
"""


def command(
    file: Annotated[Path, typer.Argument(help="A .t7 file of github.com/AntixK/mean-spectral-norm.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_file, help="File to write.", show_default="NAME.safetensors"),
    ] = None,
    json: Json = None,
) -> None:
    """Convert a checkpoint published by the MSN paper's authors into one of ours, with the same outputs."""
    require("torch", step="import-checkpoint")
    require("safetensors", step="import-checkpoint")
    from msn_deploy.training import import_checkpoint

    result = import_checkpoint(file, out or Path(f"{file.parent / file.stem}.safetensors"))
    if output.emit(result, json, made_from=[result.checkpoint], then=("export", result.checkpoint)):
        return
    output.say(
        f"{result.checkpoint}: {result.net} with {result.norm}, {result.parameters:,} parameters, "
        f"recorded test accuracy {result.recorded_test_accuracy:.2%} (epoch {result.epoch})"
    )
