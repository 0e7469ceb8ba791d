"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.core.errors import InputError

Data = Annotated[
    str | None,
    typer.Option("--data", help="Known name or folder of images.", show_default="what the model was trained on"),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON; - for stdout.")]
Print = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Method = Annotated[str, typer.Option("--method", help="How ranges are chosen: entropy or minmax.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Images to calibrate on.")]


def parse_shape(text: str) -> tuple[int, ...]:
    """Turn "1,3,32,32" or "1x3x32x32" into numbers. Raises InputError."""
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"--input-shape {text!r} is not a list of sizes such as 1,3,32,32.")
    return shape


def parse_batch(text: str) -> tuple[int, bool]:
    """Turn "8" or "dynamic" into (batch, is it dynamic). Raises InputError."""
    if text == "dynamic":
        return 1, True
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--batch {text!r} is neither a number of images nor `dynamic`.")
    return int(text), False
