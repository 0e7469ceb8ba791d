"""Quantisation-aware training: a folded and calibrated graph learns under the rounding of its own Q/DQ pairs.

It starts from what post-training quantisation gives, and keeps the best of start and epochs on held-out images: by the
task's metric, and where that is the same by the loss.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import DEFAULT_METHOD, DEFAULT_PERCENTILE, ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.data.feeds import ImageSamples
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.graph.export import LOWEST_OPSET, to_onnx
from msn_deploy.graph.fold import fold_graph
from msn_deploy.model.opened import inputs_of
from msn_deploy.model.opset import DEFAULT_OPSET, lowered
from msn_deploy.msn import fold_layers
from msn_deploy.quant.calibrate import chosen
from msn_deploy.quant.calibration_checks import MINIMUM_SAMPLES
from msn_deploy.quant.equalize import equalize
from msn_deploy.quant.histograms import collect
from msn_deploy.quant.placement import place
from msn_deploy.quant.scales import check_method
from msn_deploy.training.batches import Batches, divided
from msn_deploy.training.distributed import join
from msn_deploy.training.graph_net import GraphNet, quantised_net
from msn_deploy.training.labels import Labels
from msn_deploy.training.loop import Training, TrainResult, metric_of, splits_of
from msn_deploy.training.score import is_error

SUFFIX = "_int8"
"""What the name of a recipe gets."""
_OPTIONS: dict[str, Any] = {
    **{"epochs": 8, "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine", "warm_up": 0.1},
    **{"weight_decay": 0.0, "ema": 0.0, "patience": 4, "amp": False, "freeze": "none"},
}
_HELD_OUT = 0.1  # of the training images, where the recipe holds none out
_NO_PART = {"ema": 0.0, "amp": False, "freeze": "none"}
_MOST_AT_ONCE = 64  # held-out images


def quantize_aware(
    module: nn.Module,
    calibration: NDArray[np.float32] | Tensor,
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    per_channel: bool = True,
) -> GraphNet:
    """Return a network's folded twin, whose weights and activations are rounded to INT8 as in the file it becomes.

        net = quantize_aware(module.eval(), images)        # 256 training images (N, C, H, W), prepared
        ...                                                # train `net` as any module: Adam, 1e-3, a few epochs
        onnx.save(net.to_onnx(), "net.int8.onnx")          # msn-deploy build-engine net.int8.onnx --precision int8

    Its norms are folded, so that it is the same in training and in evaluation mode; `module` is not changed.

    Args:
        module: In evaluation mode, of float32, with one input.
        calibration: What the first ranges are measured on, (N, ...), prepared as in the training.
        method: How the first ranges are chosen, see `CalibrationOptions`.
        percentile: Of the values, percent, that the method "percentile" leaves unclipped.
        per_channel: False gives each weight one scale.

    Raises:
        InputError: It can't be exported, holds what is not trained here or nothing to quantise, or there are too few
            samples.

    Examples:
        >>> import msn_deploy, torch
        >>> from torch import nn
        >>> net = nn.Sequential(msn_deploy.MSNConv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
        >>> trained = msn_deploy.quantize_aware(net, torch.rand(64, 1, 8, 8))
        >>> trained(torch.rand(2, 1, 8, 8)).shape  # a module to be trained
        torch.Size([2, 10])
    """
    check_method(method, percentile)
    images = calibration.numpy() if isinstance(calibration, Tensor) else calibration
    if len(images) < MINIMUM_SAMPLES:
        raise InputError(f"{len(images)} samples are too few to calibrate on; {MINIMUM_SAMPLES} are needed.")
    graph = folded_graph(module, (1, *images.shape[1:]))
    samples = ImageSamples(inputs_of(graph)[0].name, images)
    graph, _ = equalize(graph, samples, load=run_on_one_thread)
    seen = collect(graph, samples, place(graph).tensors, load=run_on_one_thread)
    choice = chosen(graph, samples, seen, load=run_on_one_thread, method=method, percentile=percentile)
    return quantised_net(graph, choice.ranges, per_channel=per_channel)


def folded_graph(module: nn.Module, shape: tuple[int, ...]) -> ModelProto:
    """Return the graph of a network, folded, for any batch."""
    plain, _ = fold_layers(module, share=True)
    graph = to_onnx(plain, input_shape=shape, dynamic_batch=True, opset=LOWEST_OPSET, optimize=False)
    return lowered(fold_graph(graph).model, DEFAULT_OPSET)[0]


def quantized_recipe(recipe: Recipe) -> Recipe:
    """Return how the network of a recipe is trained on under INT8: few epochs of Adam, the best of them kept."""
    value = recipe.to_dict()
    held_out = {"validation": recipe.train.validation or _HELD_OUT}
    value |= {"name": recipe.name + SUFFIX, "train": {**value["train"], **_OPTIONS, **held_out}}
    return recipe_from_dict(value, source=f"recipe {recipe.name}")


def check_options(recipe: Recipe) -> None:
    """Raise InputError for options of `train` that have no part in training under INT8."""
    for name, usual in _NO_PART.items():
        if getattr(recipe.train, name) != usual:
            raise InputError(f"train.{name} has no part in training under INT8.\nLeave it out.")
    if not recipe.train.validation:
        raise InputError("train.validation is 0: the best of start and epochs is chosen by held-out images.")


def train_int8(
    recipe: Recipe,
    network: GraphNet,
    teacher: GraphNet,
    *,
    info: ModelInfo,
    weights: Path,
    out: Path,
    device: str = "auto",
    limit_train: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train a calibrated network under INT8 and save the best of start and epochs as `out/NAME.safetensors`.

    Args:
        recipe: As `quantized_recipe` returns it, perhaps with other options of `train`.
        network: Where it starts; it is trained in place.
        teacher: The float network, which `train.distill` compares with.
        info: What the checkpoint says of itself: classes and preprocessing.
        weights: The checkpoint that both come from.
        out: Folder for the checkpoint, the history and the state to resume from.
        device: "auto", "cpu" or "cuda".
        limit_train: Use at most this number of training images.
        resume: Take up what an interrupted run left in `out`.
        tensorboard: As `train`.
        progress: Called after every step.

    Raises:
        InputError, MissingDevice, GateError: As `train`; also for options that have no part in it.
    """
    check_options(recipe)
    training, testing = splits_of(recipe, limit_train)
    if training.classes != info.classes:
        raise InputError(
            f"{recipe.data} has {len(training.classes)} classes, {weights} was trained on {len(info.classes)}.\n"
            "Fine-tune it on the new ones first: msn-deploy train RECIPE --weights CHECKPOINT."
        )
    info = replace(info, precision="int8", folded=True, data=recipe.data, recipe=recipe.to_dict())
    with join(device) as world:
        run = _Quantised(
            recipe, training, testing, info=info, out=out, limit_train=limit_train, world=world, weights=weights,
            made=network,
        )  # fmt: skip
        run.teacher = run.placed(teacher).requires_grad_(False)
        run.start(resume=resume)
        with run.claimed(tensorboard=tensorboard):
            run.fit(progress if world.leads else silent, None)
    return run.result()


class _Quantised(Training):
    """A training whose start is a result, too."""

    teacher: nn.Module

    def __init__(self, recipe: Recipe, training: Any, testing: Any, *, made: GraphNet, **options: Any) -> None:
        self._made = made
        super().__init__(recipe, training, testing, **options)
        _, held_out = divided(training, recipe.train.validation)
        parts = -(-len(held_out.labels) // _MOST_AT_ONCE)
        plain = replace(recipe.train, augment="none", batch_size=len(held_out.labels) // max(1, parts))
        assert self.info.preprocess is not None
        self._held_out = Batches(held_out, self.info.preprocess, plain, device=self.world.device)
        self.begun: dict[str, Any] = {}

    def network(self, classes: int, weights: Path | None) -> nn.Module:
        return self._made

    def step_loss(self, outputs: Tensor, images: Tensor, labels: Labels) -> Tensor:
        share = self.recipe.train.distill
        if not share:
            return self.loss(outputs, labels)
        with torch.no_grad():
            wanted = self.teacher(images)
        apart = distance(outputs, wanted, classes=self.recipe.task in ("classification", "segmentation"))
        return share * apart + (1 - share) * self.loss(outputs, labels) if share < 1 else apart

    def start(self, *, resume: bool) -> None:
        self.begun = {**self.evaluated(self.model, 0.0), "epoch": 0}
        del self.begun["train_loss"]
        super().start(resume=resume)

    def fit(self, progress: Progress, observer: Any) -> None:
        if not self.history and self.world.leads:
            self.publish_history()
            self.publish_network(self.model, self.described(-1))
        super().fit(progress, observer)

    @torch.no_grad()
    def evaluated(self, model: nn.Module, loss: float) -> dict[str, Any]:
        entry = super().evaluated(model, loss)
        losses = [float(self.loss(model(images), labels)) for images, labels in self._held_out.epoch(0)]
        return {**entry, "held_out_loss": sum(losses) / len(losses)}

    def best(self) -> int:
        """Return the index of the best epoch, -1 for the start."""
        sign = -1 if is_error(self.recipe.task) else 1

        def goodness(at: int) -> tuple[float, float, int]:
            entry = self.begun if at < 0 else self.history[at]
            return sign * metric_of(entry, "validation"), -float(entry["held_out_loss"]), -at

        return max(range(-1, len(self.history)), key=goodness)

    def described(self, at: int) -> ModelInfo:
        if at >= 0:
            return super().described(at)
        return replace(self.info, metrics={key: value for key, value in self.begun.items() if "seconds" not in key})

    def publish_history(self) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in (self.begun, *self.history))
        self.publish(self.log, lambda path: path.write_text(text, encoding="utf-8"), kind="history")

    def result(self) -> TrainResult:
        return replace(super().result(), history=[self.begun, *self.history])


def distance(outputs: Tensor, wanted: Tensor, *, classes: bool) -> Tensor:
    """Return how far outputs (n, C, ...) are from those of another network.

    classes: as distributions over dim 1, by the Kullback-Leibler divergence (Hinton et al., 2015, arXiv 1503.02531);
    else as numbers, by the squared error over the variance of what is wanted.
    """
    if classes:
        logs = outputs.log_softmax(1), wanted.log_softmax(1)
        return F.kl_div(*logs, log_target=True, reduction="none").sum(1).mean()
    return F.mse_loss(outputs, wanted) / wanted.var().clamp_min(torch.finfo(wanted.dtype).tiny)
