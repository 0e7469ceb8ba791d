"""`msn-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Data, Json, Threads


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint or ONNX file.")],
    data: Data = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use at most so many test images.")] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Measure accuracy on a test split."""
    from msn_deploy.pipeline import evaluate

    with output.progress_bar() as progress:
        result = evaluate(model, data=data, samples=samples, threads=threads, progress=progress)
    if output.emit(result, json):
        return
    worst = min(result.per_class, key=lambda name: result.per_class[name])
    output.say(f"{result.model}: accuracy {result.accuracy:.2%} on {result.samples} test images of {result.data}")
    output.say(f"  worst class {worst}: {result.per_class[worst]:.2%}")
