"""`train CHECKPOINT --quantize int8`: export, calibrate, then train on under the rounding of the file it becomes."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import DEFAULT_METHOD, DEFAULT_PERCENTILE, DEFAULT_SAMPLES
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.images import calibration_inputs, own_data
from msn_deploy.pipeline.quantisable import constants_computed, equalized_text, quantisable
from msn_deploy.pipeline.ranges import measured_ranges
from msn_deploy.quant.calibration_checks import MINIMUM_SAMPLES

if TYPE_CHECKING:
    from msn_deploy.core.model_info import ModelInfo
    from msn_deploy.training import TrainResult

_LOG = logging.getLogger(__name__)
_CHOSEN = ("name", "data", "train")  # of a recipe; all else is the checkpoint's


def train_int8(
    checkpoint: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    per_channel: bool = True,
    device: str = "auto",
    limit_train: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train a float checkpoint on under INT8; `out/NAME_int8.safetensors` is what `export` makes the Q/DQ file of.

    Args:
        checkpoint: Of `train`, in float32.
        out: Folder for the new checkpoint, its history and the state to resume from.
        recipe: `recipe_for(checkpoint)`, perhaps with other options of `train`; None: as it is.
        per_channel: False gives each weight one scale.
        device: "auto", "cpu" or "cuda".
        limit_train: Use at most this number of training images.
        resume: Take up what an interrupted run left in `out`.
        tensorboard: As `train`.
        progress: Called after every step.

    Raises:
        InputError: A checkpoint, data or options that can't be used (exit 2).
        GateError: It diverged, or (ParityError) the fold changes what it computes (exit 1).
        MissingDevice, MissingDependency: What is not here (exit 3).
    """
    from msn_deploy.pipeline.export import export_onnx  # late, as are the next: they import torch and onnx
    from msn_deploy.quant.placement import place
    from msn_deploy.training.graph_net import GraphNet, quantised_net
    from msn_deploy.training.qat import check_options
    from msn_deploy.training.qat import train_int8 as trained

    checkpoint, out = Path(checkpoint), Path(out)
    own, info = _opened(checkpoint)
    chosen = recipe or own
    for each in fields(Recipe):
        if each.name not in _CHOSEN and getattr(chosen, each.name) != getattr(own, each.name):
            raise InputError(f"{each.name} is that of the network in {checkpoint}, and stays.\nLeave it out.")
    check_options(chosen)
    with partial_folder() as folder:
        exported = folder / "float.onnx"
        export_onnx(str(checkpoint), exported, dynamic_batch=True, simplify=False)
        model = open_model(exported, step="train")
    given = calibration_inputs(model, chosen.data, samples=DEFAULT_SAMPLES)
    if len(given.samples) < MINIMUM_SAMPLES:
        raise InputError(f"{len(given.samples)} samples are too few to calibrate on; {MINIMUM_SAMPLES} are needed.")
    ready = quantisable(constants_computed(model), given.samples, sha256=model.sha256)
    for layer, count in ready.equalized.items():
        _LOG.info("%s", equalized_text(layer, count), extra={"note": True})
    ranges = measured_ranges(
        ready.graph,
        given.samples,
        place(ready.graph).tensors,
        key={"model": ready.key, **given.key},
        method=DEFAULT_METHOD,
        percentile=DEFAULT_PERCENTILE,
    )
    return trained(
        chosen,
        quantised_net(ready.graph, ranges.values, per_channel=per_channel),
        GraphNet(ready.graph),
        info=info,
        weights=checkpoint,
        out=out,
        device=device,
        limit_train=limit_train,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )


def recipe_for(checkpoint: str | Path, *, data: str | None = None) -> Recipe:
    """Return how a checkpoint is trained on under INT8.

    data: None takes what it was trained on. Raises InputError for a checkpoint that can't be, as `own_data` for data
    that only the file names, and for a file that is not a checkpoint.
    """
    recipe, info = _opened(Path(checkpoint))
    return recipe.override(data=data or own_data(info))


def _opened(checkpoint: Path) -> tuple[Recipe, ModelInfo]:
    from msn_deploy.training import load_checkpoint
    from msn_deploy.training.qat import quantized_recipe

    _, info = load_checkpoint(checkpoint)
    if info.is_generator:
        raise InputError(f"{checkpoint} is a generator: it has no labels to be trained on with under INT8.")
    if info.precision != "fp32":
        raise InputError(f"{checkpoint} is {info.precision.upper()} already.\nGive the checkpoint it was trained from.")
    return quantized_recipe(recipe_from_dict(info.recipe, source=str(checkpoint))), info
