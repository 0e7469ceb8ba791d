"""`msn-deploy demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.bench_show import show
from msn_deploy.cli.options import Json, Seconds, new_folder
from msn_deploy.core.errors import size_text

EXAMPLES = """
msn-deploy demo
msn-deploy demo --epochs 2 --seconds 1 --out quick
msn-deploy demo cnn3_msn --data my_images
"""


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="Of a classifier; it is trained with BN and with MSN.")
    ] = "vgg7_msn",
    data: Annotated[
        str | None, typer.Option(help="Known name or folder.", show_default="the recipe's", metavar="DATA")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", callback=new_folder, help="Folder for everything.")] = Path(
        "demo"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Train shorter, for a quick look.", show_default="the recipe's")
    ] = None,
    seconds: Seconds = 5.0,
    json: Json = None,
) -> None:
    """Run the whole chain on real data: train BN and MSN, fold, export, quantise, build engines, measure."""
    with output.progress_bar() as progress:
        from msn_deploy.pipeline.demo import demo
        from msn_deploy.training import keep_freed_memory

        keep_freed_memory()
        result = demo(out, recipe, data=data, epochs=epochs, seconds=seconds, tell=output.note, progress=progress)
    told = {"stages": result.stages, "out": str(result.out)}
    if output.emit(told, json, made_from=[result.out / "report.html"], then=("verify", result.out)):
        return
    rows = [
        (
            row.network,
            row.stage,
            f"{row.accuracy:.2%}",
            size_text(row.bytes),
            size_text(row.engine_weight_bytes),
            "-" if row.median_ms is None else f"{row.median_ms:.3f}",
        )
        for row in result.stages
    ]
    output.say("")
    output.show_table(
        rows, head=("network", "stage", "accuracy", "file", "engine weights", "median ms"), right=(2, 3, 4, 5)
    )
    output.say("")
    show(result.result)
    output.say(f"\nEverything is in {result.out}/; open {result.out}/report.html.")
