"""`msn-deploy study`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import AtMost, Device, Json, Settings, new_folder
from msn_deploy.core.optional import require

if TYPE_CHECKING:
    from msn_deploy.report.study import Studied

EXAMPLES = """
msn-deploy study cnn3_msn
msn-deploy study vgg7_msn --norms bn,msn --epochs 4 --out study
"""


def command(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or a built-in name such as cnn3_msn.")],
    norms: Annotated[str, typer.Option(help="Norms to train, comma-separated.", metavar="A,B,...")] = "bn,sn,msn",
    data: Annotated[str | None, typer.Option(help="Known name or folder.", show_default="the recipe's")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="the recipe's")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for weights and shuffling.", show_default="the recipe's")
    ] = None,
    device: Device = "auto",
    limit_train: AtMost = None,
    every: Annotated[int, typer.Option(min=1, help="Measure every N steps.")] = 5,
    settings: Settings = None,
    out: Annotated[Path, typer.Option("--out", "-o", callback=new_folder, help="Folder for page and checkpoints.")] = (
        Path("study")
    ),
    json: Json = None,
) -> None:
    """Train a recipe with several norms and compare gradients, means and singular values."""
    from msn_deploy.core.recipes import load_recipe, with_settings  # pydantic, which --help does not wait for

    chosen = with_settings(load_recipe(recipe).override(data=data, epochs=epochs, seed=seed), settings or [])
    require("torch", step="study")
    names = [name.strip() for name in norms.split(",") if name.strip()]
    with output.progress_bar() as progress:
        from msn_deploy.pipeline.study import study
        from msn_deploy.training import keep_freed_memory

        keep_freed_memory()
        result = study(
            chosen,
            names,
            out=out,
            device=device,
            limit_train=limit_train,
            every=every,
            tell=output.note,
            progress=progress,
        )
    told = {"claims": result.claims, "norms": result.norms}
    if output.emit(told, json, made_from=[result.result], then=("verify", out)):
        return
    for each in result.claims:
        output.say_wrapped(f"{each.verdict}: {each.claim}")
        output.say_wrapped(each.numbers, indent="    ", hanging="    ")
    rows = [
        (
            norm,
            f"{found.history[-1]['test_accuracy']:.2%}",
            f"{found.parameters:,}",
            *(f"{_median(found, key):.3g}" for key in ("sparsity", "variance", "drift", "directions")),
        )
        for norm, found in result.norms.items()
    ]
    head = ("norm", "accuracy", "parameters", "sparsity", "variance", "drift", "directions")
    output.show_table(rows, head=head, right=range(1, 7), spare=(2, 6, 3))
    output.say(f"medians over layers and windows of steps; curves and layers: {result.page}")


def _median(found: Studied, key: str) -> float:
    return float(statistics.median(value for window in found.windows for value in window[key]))
