"""`msn-deploy doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json
from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import open_input
from msn_deploy.machine.checks import checks

EXAMPLES = """
msn-deploy doctor
msn-deploy doctor runs/vgg7_msn.onnx
"""


def command(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL|RUN]",
            help="Also check that building this ONNX file fits in memory, or which engines of a run folder still fit.",
            show_default=False,
        ),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Build the engines of RUN that no longer fit again, with the same options."),
    ] = False,
    json: Json = None,
) -> int:
    """Check this machine: packages, TensorRT, driver, memory; exit 3 if something is a problem.

    With a run folder, also say which engines an update of JetPack or of the driver has made stale.
    """
    if rebuild and (model is None or not model.is_dir()):
        raise InputError(
            "`--rebuild` builds the engines of a run folder again.\nGive it: msn-deploy doctor RUN --rebuild"
        )
    model_bytes = 0
    if model is not None and not model.is_dir():
        with open_input(model, "any") as stream:
            model_bytes = stream.seek(0, 2)
    found = checks(model_bytes=model_bytes)
    if model is not None and model.is_dir():
        from msn_deploy.pipeline.doctor import look_at_run, rebuild_run

        with output.progress_bar() as progress:
            found += rebuild_run(model, progress=progress) if rebuild else look_at_run(model)
    if not output.emit(found, json):
        rows = [(check.verdict, check.name, check.found) for check in found]
        output.show_table(rows, head=("verdict", "what", "found"))
        for check in found:
            if check.hint:
                output.say(f"{check.name}: {check.hint}")
    return 3 if any(check.verdict == "problem" for check in found) else 0
