"""`train`: from a recipe to a checkpoint with its history and curves; or a checkpoint further, under INT8."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe, load_recipe, recipe_from_dict, with_settings

if TYPE_CHECKING:
    from msn_deploy.training import TrainResult

_DISTILLED = 0.5  # of the loss, with `distill`


def train(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str] = "runs",
    *,
    norm: str | None = None,
    data: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    weights: str | os.PathLike[str] | None = None,
    quantize: Literal["int8"] | None = None,
    distill: bool = False,
    device: str = "auto",
    samples: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train a recipe; `out/NAME.safetensors` is saved after every epoch, history and curves are next to it.

    Args:
        recipe: A recipe, its TOML file, or a built-in name such as "vgg7_msn"; with `quantize`, a checkpoint.
        out: Folder for what is written.
        norm: In place of the recipe's, as are the next.
        data: Known name or folder.
        epochs: Passes over the data.
        batch_size: Images per step.
        lr: The peak of the learning rate.
        seed: Of weights and shuffling.
        name: Of the files, in place of the recipe's.
        settings: Other keys of the recipe, such as "train.ema=0.99".
        weights: Fine-tune: a checkpoint of the same network to start from.
        quantize: "int8" trains a checkpoint on under INT8, into NAME_int8.safetensors.
        distill: With `quantize`, learn from the float network's outputs too.
        device: "auto", "cpu" or "cuda".
        samples: Use at most that many training images.
        resume: Continue an interrupted run.
        overwrite: Start again where a run of that name is; it is lost.
        tensorboard: Write each epoch's numbers for TensorBoard, too, into `out/tensorboard/NAME`.
        progress: Called after every step.

    Raises:
        InputError: Options or data that can't be used, or a run of that name that would be lost (exit 2).
        GateError: The training diverged (exit 1).
        MissingDependency, MissingDevice: What is not here (exit 3).

    Examples:
        >>> import msn_deploy
        >>> run = msn_deploy.train("cnn3_msn", "runs", epochs=1, samples=64, overwrite=True)
        >>> run.checkpoint.name, len(run.history)
        ('cnn3_msn.safetensors', 1)
    """
    out = Path(out)
    chosen = chosen_recipe(
        recipe, norm=norm, data=data, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, name=name,
        settings=settings, weights=weights, quantize=quantize, distill=distill,
    )  # fmt: skip
    require_none(chosen, out, resume=resume, overwrite=overwrite)
    require("torch", step="train")
    require("safetensors", step="train")
    from msn_deploy import training
    from msn_deploy.pipeline.train_int8 import train_int8
    from msn_deploy.report.curves import write_curves
    from msn_deploy.tasks.task import metric_text

    training.keep_freed_memory()
    options: dict[str, Any] = {
        **{"device": device, "limit_train": samples, "resume": resume},
        **{"tensorboard": tensorboard, "progress": progress},
    }
    if quantize is not None:
        result = train_int8(Path(str(recipe)), out, chosen, **options)
    elif chosen.gan is not None:
        result = training.train_gan(chosen, out=out, **options)
    else:
        result = training.train(chosen, out=out, weights=None if weights is None else Path(weights), **options)
    if not int(os.environ.get("RANK", "0")):  # torchrun: the first process writes for all
        log = out / f"{chosen.name}.history.jsonl"
        metric, unit = result.metric, result.unit
        came_to = f": {metric.replace('_', ' ', 1)} {metric_text(result.info.metrics[metric], unit)}" if metric else ""
        write_curves(
            result.history,
            out / f"{chosen.name}.curves.png",
            title=f"{chosen.name}{came_to}",
            percent=unit == "share",
            log=log,
        )
    return result


def chosen_recipe(
    recipe: str | os.PathLike[str] | Recipe, *, norm: str | None, data: str | None, epochs: int | None,
    batch_size: int | None, lr: float | None, seed: int | None, name: str | None, settings: Sequence[str],
    weights: str | os.PathLike[str] | None, quantize: str | None, distill: bool,
) -> Recipe:  # fmt: skip
    """Return the recipe with all that was asked for in its place. Raises InputError."""
    if quantize is not None:
        from msn_deploy.pipeline.train_int8 import recipe_for

        _check_quantize(quantize, recipe, norm=norm, weights=weights)
        base = recipe_for(str(recipe), data=data)
    elif distill:
        raise InputError("`--distill` is of training under INT8.\nAdd `--quantize int8`, or leave it out.")
    else:
        base = recipe if isinstance(recipe, Recipe) else load_recipe(os.fspath(recipe))
    made = base.override(
        norm=norm, data=data, epochs=epochs, batch_size=batch_size, learning_rate=lr, seed=seed,
        distill=_DISTILLED if distill else None,
    )  # fmt: skip
    made = with_settings(made, settings)
    if name is not None:
        made = recipe_from_dict({**made.to_dict(), "name": name}, source="`--name`")
    if weights is not None and made.gan is not None:
        raise InputError(f"`--weights` has no part in training a GAN such as {made.name}.\nLeave it out.")
    return made


def require_none(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise InputError where a run lies that this one would replace: hours of it may be lost by one line."""
    if resume and overwrite:
        raise InputError("`--resume` continues a run and `--overwrite` loses it.\nGive one of them.")
    if resume or overwrite:
        return
    state, checkpoint = (out / f"{recipe.name}{ending}.safetensors" for ending in (".state", ""))
    others = "`--overwrite` starts again, `--name NAME` keeps both."
    if os.path.exists(state):
        raise InputError(f"{state} is an unfinished run.\n`--resume` continues it, {others}")
    if os.path.exists(checkpoint):
        raise InputError(f"{checkpoint} already exists.\n{others}")


def _check_quantize(
    quantize: str,
    checkpoint: str | os.PathLike[str] | Recipe,
    *,
    norm: str | None,
    weights: str | os.PathLike[str] | None,
) -> None:
    """Refuse what `--quantize` has no part in. Raises InputError."""
    if quantize != "int8":
        raise InputError(f"--quantize {quantize!r} is not known; int8 is.")
    if isinstance(checkpoint, Recipe) or not str(checkpoint).endswith(".safetensors"):
        given = checkpoint.name if isinstance(checkpoint, Recipe) else checkpoint
        raise InputError(
            f"`--quantize int8` trains a checkpoint on, and {given} is not one.\n"
            f"Train it first: msn-deploy train {given}; then give its file, runs/NAME.safetensors."
        )
    if norm is not None or weights is not None:
        option = "--norm" if norm is not None else "--weights"
        raise InputError(f"`{option}` has no part in `--quantize`: the checkpoint has both.\nLeave it out.")
    require("torch", step="train")
    require("safetensors", step="train")
    require("onnx", step="train")
