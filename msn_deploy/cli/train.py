"""`msn-deploy train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import AtMost, Device, Json, Settings, new_folder

_TRAINING = "Training"
_START = "Where to start from"
_RUN = "Files of the run"
EXAMPLES = """
msn-deploy train vgg7_msn
msn-deploy train cnn3_msn --data my_images --epochs 20 --name mine
msn-deploy train vgg7_msn --resume
msn-deploy train runs/vgg7_msn.safetensors --quantize int8 --distill
"""
_WORTH_MORE_ITERATIONS = 0.05  # of the largest singular value


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|CHECKPOINT",
            help="Recipe file, or a built-in name such as vgg7_msn; with --quantize, a checkpoint.",
        ),
    ],
    norm: Annotated[
        str | None,
        typer.Option(
            help="msn, msn-affine, sn, bn, gn, ws, gn-ws or none.",
            show_default="the recipe's",
            metavar="NAME",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Known name or folder.", show_default="the recipe's", metavar="DATA")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the recipe's", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", show_default="the recipe's", rich_help_panel=_TRAINING)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="the recipe's", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed for weights and shuffling.", show_default="the recipe's", rich_help_panel=_TRAINING
        ),
    ] = None,
    device: Device = "auto",
    limit_train: AtMost = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=new_folder, help="Folder for the checkpoint.", rich_help_panel=_RUN)
    ] = Path("runs"),
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tune: start from a checkpoint of the same network.", show_default="none", rich_help_panel=_START
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8",
            help="Train a checkpoint on under INT8; writes NAME_int8.safetensors.",
            show_default="none",
            rich_help_panel=_START,
        ),
    ] = None,
    distill: Annotated[
        bool,
        typer.Option(
            "--distill", help="With --quantize: learn from the float network's outputs, too.", rich_help_panel=_START
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the files that are written.",
            show_default="the recipe's",
            metavar="NAME",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.", rich_help_panel=_RUN)] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start again where a run of that name is; it is lost.", rich_help_panel=_RUN),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write OUT/tensorboard/NAME for TensorBoard, too.", rich_help_panel=_RUN),
    ] = False,
    settings: Settings = None,
    json: Json = None,
) -> None:
    """Train a recipe; the checkpoint is saved after every epoch."""
    from msn_deploy.pipeline.train import chosen_recipe, train  # pydantic, which --help does not wait for
    from msn_deploy.tasks.task import metric_text

    choice: dict[str, Any] = {
        **{"norm": norm, "data": data, "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed},
        **{"name": name, "settings": settings or [], "weights": weights, "quantize": quantize, "distill": distill},
    }
    chosen = chosen_recipe(recipe, **choice)
    state, checkpoint, log = (
        out / f"{chosen.name}{ending}" for ending in (".state.safetensors", ".safetensors", ".history.jsonl")
    )
    try:
        with output.progress_bar() as progress:
            result = train(
                recipe, out, **choice, device=device, samples=limit_train, resume=resume, overwrite=overwrite,
                tensorboard=tensorboard, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        if not state.is_file():
            held = "nothing was written" if quantize is None else "start again with `--overwrite`"
            raise KeyboardInterrupt(f"interrupted before the end of the first epoch; {held}.") from None
        held = "last whole epoch" if quantize is None else "best of start and epochs so far"
        raise KeyboardInterrupt(
            f"interrupted; {checkpoint} holds the {held}.\nResume with the same command and `--resume`."
        ) from None
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process speaks for all
        return
    metrics, history = result.info.metrics, result.history
    metric, value = result.metric, metrics.get(result.metric or "")
    kept = next(entry for entry in history if entry["epoch"] == metrics["epoch"])  # with `patience` not the last
    error, layer = kept.get("sigma_error"), kept.get("sigma_layer")
    if not output.emit(
        {
            "checkpoint": str(result.checkpoint),
            "metric": metric,
            "value": value,
            "accuracy": metrics.get("test_accuracy"),
            "sigma_error": error,
            "sigma_layer": layer,
            "history": history,
        },
        json,
        made_from=[checkpoint, log],
        then=("export", checkpoint),
    ):
        losses = ", ".join(f"{key} {metrics[key]:.3f}" for key in ("d_loss", "g_loss") if key in metrics)
        said = losses
        if metric is not None and value is not None:
            said = f"{metric.replace('_', ' ', 1)} {metric_text(value, result.unit)}"
        length = f"{history[-1]['epoch']} epoch{'s' * (history[-1]['epoch'] != 1)}"
        trained = f"{chosen.net} with {chosen.norm}, {length} on {chosen.data}"
        output.say(f"{result.checkpoint}: {trained}, {said}")
        if quantize is not None and metric is not None:
            began = f"calibrated alone {metric_text(history[0][metric], result.unit)}"
            output.say(f"  INT8; {began}; of start and epochs, epoch {metrics['epoch']} is kept")
        if error is not None:
            more = "; `--set train.power_iterations=4` follows it closer" if error > _WORTH_MORE_ITERATIONS else ""
            output.say(f"  sigma off by {error:.2%} at most, in layer {layer}{more}")
