"""`msn-deploy infer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Print, Threads, Trust


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    threads: Threads = None,
    trust: Trust = False,
    json: Print = False,
) -> None:
    """Classify images: class, score and latency of each."""
    from msn_deploy.pipeline import infer

    answers = infer(model, images, threads=threads, trust=trust)
    if output.emit(answers, json):
        return
    rows = [(each.image, each.label, f"{each.score:.1%}", f"{each.latency_ms:.2f} ms") for each in answers]
    output.show_table(rows, head=("image", "class", "score", "latency"), right=(2, 3))
