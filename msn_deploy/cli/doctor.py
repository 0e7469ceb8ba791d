"""`msn-deploy doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json
from msn_deploy.core.artifacts import open_input
from msn_deploy.machine.checks import checks


def command(
    model: Annotated[
        Path | None, typer.Argument(help="Also check that building this ONNX file fits in memory.", show_default=False)
    ] = None,
    json: Json = None,
) -> int:
    """Check this machine: packages, TensorRT, driver, memory; exit 3 if something is a problem."""
    model_bytes = 0
    if model is not None:
        with open_input(model) as stream:
            model_bytes = stream.seek(0, 2)
    found = checks(model_bytes=model_bytes)
    if not output.emit(found, json):
        rows = [(check.verdict, check.name, check.found) for check in found]
        output.show_table(rows, head=("verdict", "what", "found"))
        for check in found:
            if check.hint:
                output.say(f"{check.name}: {check.hint}")
    return 3 if any(check.verdict == "problem" for check in found) else 0
