"""`msn-deploy train`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import AtMost, Device, Json, Settings, new_folder
from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require

_WORTH_MORE_ITERATIONS = 0.05  # of the largest singular value
_DISTILLED = 0.5  # of the loss, with --distill


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|CHECKPOINT",
            help="Recipe file, or a built-in name such as vgg7_msn; with --quantize, a checkpoint.",
        ),
    ],
    norm: Annotated[
        str | None, typer.Option(help="msn, msn-affine, sn, bn, gn, ws, gn-ws or none.", show_default="the recipe's")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Known name or folder.", show_default="the recipe's")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", show_default="the recipe's")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="the recipe's")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for weights and shuffling.", show_default="the recipe's")
    ] = None,
    device: Device = "auto",
    limit_train: AtMost = None,
    out: Annotated[Path, typer.Option("--out", "-o", callback=new_folder, help="Folder for the checkpoint.")] = Path(
        "runs"
    ),
    weights: Annotated[
        Path | None, typer.Option(help="Fine-tune: start from a checkpoint of the same network.", show_default="none")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8", help="Train a checkpoint on under INT8; writes NAME_int8.safetensors.", show_default="none"
        ),
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="With --quantize: learn from the float network's outputs, too.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the files that are written.", show_default="the recipe's")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again where a run of that name is; it is lost.")
    ] = False,
    settings: Settings = None,
    json: Json = None,
) -> None:
    """Train a recipe; the checkpoint is saved after every epoch."""
    from msn_deploy.core.recipes import (
        load_recipe,
        recipe_from_dict,
        with_settings,
    )  # pydantic, which --help does not wait for
    from msn_deploy.pipeline.train_int8 import recipe_for, train_int8

    if quantize is not None:
        _check_quantize(quantize, recipe, norm=norm, weights=weights)
        base = recipe_for(recipe, data=data)
    elif distill:
        raise InputError("`--distill` is of training under INT8.\nAdd `--quantize int8`, or leave it out.")
    else:
        base = load_recipe(recipe)
    chosen = base.override(
        norm=norm, data=data, epochs=epochs, batch_size=batch_size, learning_rate=lr, seed=seed,
        distill=_DISTILLED if distill else None,
    )  # fmt: skip
    chosen = with_settings(chosen, settings or [])
    if name is not None:
        chosen = recipe_from_dict({**chosen.to_dict(), "name": name}, source="`--name`")
    state = out / f"{chosen.name}.state.safetensors"
    checkpoint = out / f"{chosen.name}.safetensors"
    if resume and overwrite:
        raise InputError("`--resume` continues a run and `--overwrite` loses it.\nGive one of them.")
    if not resume and not overwrite:
        _require_none(checkpoint, state)
    if weights is not None and chosen.gan is not None:
        raise InputError(f"`--weights` has no part in training a GAN such as {chosen.name}.\nLeave it out.")
    require("torch", step="train")
    require("safetensors", step="train")
    from msn_deploy.report.curves import write_curves
    from msn_deploy.tasks.task import metric_text
    from msn_deploy.training import keep_freed_memory, train, train_gan

    keep_freed_memory()
    try:
        with output.progress_bar() as progress:
            options: dict[str, Any] = {"limit_train": limit_train, "resume": resume, "progress": progress}
            if quantize is not None:
                result = train_int8(recipe, out, chosen, device=device, **options)
            else:
                run = partial(train, weights=weights) if chosen.gan is None else train_gan
                result = run(chosen, out=out, device=device, **options)
    except KeyboardInterrupt:
        if not state.is_file():
            held = "nothing was written" if quantize is None else "start again without `--resume`"
            raise KeyboardInterrupt(f"interrupted before the end of the first epoch; {held}.") from None
        held = "last whole epoch" if quantize is None else "best of start and epochs so far"
        raise KeyboardInterrupt(
            f"interrupted; {checkpoint} holds the {held}.\nResume with the same command and `--resume`."
        ) from None
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process speaks for all
        return
    log = out / f"{chosen.name}.history.jsonl"
    write_curves(result.history, out / f"{chosen.name}.curves.png", log=log)
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


def _require_none(checkpoint: Path, state: Path) -> None:
    """Raise InputError where a run lies that this one would replace: hours of it may be lost by one line."""
    others = "`--overwrite` starts again, `--name NAME` keeps both."
    if os.path.exists(state):
        raise InputError(f"{state} is an unfinished run.\n`--resume` continues it, {others}")
    if os.path.exists(checkpoint):
        raise InputError(f"{checkpoint} already exists.\n{others}")


def _check_quantize(quantize: str, checkpoint: str, *, norm: str | None, weights: Path | None) -> None:
    """Refuse what `--quantize` has no part in. Raises InputError."""
    if quantize != "int8":
        raise InputError(f"--quantize {quantize!r} is not known; int8 is.")
    if not checkpoint.endswith(".safetensors"):
        raise InputError(
            f"`--quantize int8` trains a checkpoint on, and {checkpoint} is not one.\n"
            f"Train it first: msn-deploy train {checkpoint}; then give its file, runs/NAME.safetensors."
        )
    if norm is not None or weights is not None:
        option = "--norm" if norm is not None else "--weights"
        raise InputError(f"`{option}` has no part in `--quantize`: the checkpoint has both.\nLeave it out.")
    require("torch", step="train")
    require("safetensors", step="train")
    require("onnx", step="train")
