"""`msn-deploy info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json
from msn_deploy.core.errors import size_text

EXAMPLES = """
msn-deploy info runs/vgg7_msn.onnx
"""


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    json: Json = None,
) -> None:
    """Say what a model file is: inputs, outputs, precision, operators, task, preparation, and what it was made from."""
    from msn_deploy.pipeline.info import describe

    facts = describe(model)
    if output.emit(facts, json, made_from=[model]):
        return
    output.say(f"{facts.file}: {facts.kind}, {size_text(facts.bytes)}, SHA-256 {facts.sha256[:12]}")
    for title, value in facts.in_words().items():
        output.say(f"  {title:<12} {value}")
