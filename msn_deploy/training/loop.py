"""The training loop: a recipe and its data to a checkpoint, one epoch after the other, each saved before the next.

Beside the checkpoint lie the history (`NAME.history.jsonl`, one line per epoch), its curves (`NAME.curves.png`) and,
until the last epoch is done, the state that `resume` continues from (`NAME.state.safetensors`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from msn_deploy.core.artifacts import Parent, publish
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.opening import is_same
from msn_deploy.core.partials import claimed
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe
from msn_deploy.core.results import Result
from msn_deploy.data import Split, load_split
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.msn.layers import sigma_errors
from msn_deploy.nets import build_net
from msn_deploy.training.batches import Batches, divided
from msn_deploy.training.checkpoint import (
    TRAIN_VERSIONS,
    Parts,
    remove_state,
    restore_state,
    save_checkpoint,
    save_state,
)
from msn_deploy.training.distributed import World, join
from msn_deploy.training.events import Events
from msn_deploy.training.labels import Labels
from msn_deploy.training.losses import loss_of
from msn_deploy.training.optimizer import (
    averaged,
    freeze,
    into_training,
    learning_rate,
    make_optimizer,
    settled,
    start_from_data,
)
from msn_deploy.training.score import READINGS, Judge, Scored, is_error
from msn_deploy.training.weights import prepared_as, start_from, weights_parent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainResult(Result):
    """A finished training."""

    checkpoint: Path
    info: ModelInfo
    """What the checkpoint says of itself."""
    history: list[dict[str, Any]]
    """One entry per epoch: of networks with a spectral norm also sigma_error, by how much sigma is off at most, as a
    share of the largest singular value, and sigma_layer, where."""
    metric: str | None = None
    """The task's metric in the history, such as test_accuracy or test_mIoU; None for a GAN."""
    unit: str = "share"
    """Of the metric, see tasks.task.Score."""

    def shown(self) -> Iterator[tuple[str, str]]:
        """Yield the checkpoint, the number of epochs, and what the last one came to."""
        yield "checkpoint", str(self.checkpoint)
        yield "epochs", str(len(self.history))
        if self.metric is not None and self.history:
            yield self.metric, f"{self.history[-1][self.metric]:.6g}"


class Observer(Protocol):
    """Looks at a training without changing it; `train` calls it in this order."""

    def begin(self, model: nn.Module) -> None:
        """See the network before its first step; the place to register hooks."""

    def before_step(self, step: int) -> None:
        """See the network with the gradients of step `step` (from 0, through all epochs), before the weights move."""

    def after_epoch(self, entry: Mapping[str, Any]) -> None:
        """See the history's entry of an epoch: epoch (from 1), train_loss, test_accuracy or the like, seconds, ..."""


def train(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "auto",
    limit_train: int | None = None,
    weights: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
    observer: Observer | None = None,
) -> TrainResult:
    """Train a recipe on its data and save `out/NAME.safetensors` after every epoch (with `patience`: the best one).

    The same recipe, data and number of threads give the same weights; a resumed run gives those of a run that was never
    interrupted. Started by torchrun, all processes train one network and the first of them writes.

    Args:
        recipe: The network, its data, and how it is trained.
        out: Folder for the checkpoint, the history and the state to resume from.
        device: "auto", "cpu" or "cuda".
        limit_train: Use at most this number of training images.
        weights: A checkpoint of the same network, or any file that `load_weights` reads, to start from. With another
            number of classes the classifier starts anew, which is logged. Images are prepared as the checkpoint says.
        resume: Take up what an interrupted run left in `out`.
        tensorboard: Write each epoch's numbers for TensorBoard, too, into `out/tensorboard/NAME`.
        progress: Called after every step.
        observer: Looks on without changing anything.

    Raises:
        InputError: The recipe, its data or what is to be resumed can't be used (exit 2).
        MissingDevice: There is no CUDA device (exit 3).
        GateError: Loss or outputs are no longer finite (exit 1).
    """
    if recipe.train.distill:
        raise InputError("train.distill is of training under INT8.\nAdd `--quantize int8`, or leave it out.")
    training, testing = splits_of(recipe, limit_train)
    info = ModelInfo(
        net=recipe.net,
        norm=recipe.norm,
        task=recipe.task,
        reading=READINGS.get(recipe.task, {}),
        classes=training.classes,
        preprocess=prepared_as(weights, measured_preprocess(training.images, fit=recipe.fit)),
        data=recipe.data,
        recipe=recipe.to_dict(),
    )
    with join(device) as world:
        run = Training(
            recipe, training, testing, info=info, out=out, limit_train=limit_train, world=world, weights=weights
        )
        run.start(resume=resume)
        with run.claimed(tensorboard=tensorboard):
            run.fit(progress if world.leads else silent, observer)
    return run.result()


def splits_of(recipe: Recipe, limit_train: int | None) -> tuple[Split, Split]:
    """Load what a recipe learns from, at most `limit_train` images of it, and what it is tested on."""
    training = load_split(recipe.data, "train", task=recipe.task, **recipe.image_size).first(limit_train)
    testing = load_split(recipe.data, "test", task=recipe.task, **recipe.image_size)
    if training.classes != testing.classes:
        raise InputError(f"{recipe.data}: training has classes {training.classes}, the test {testing.classes}.")
    return training, testing


class Run:
    """What every training has: its files, what they are made from, its history and the parts that are resumed."""

    parts: Parts
    measured: tuple[str, ...]
    """How keys of the history start that a number of each epoch stands under."""

    def __init__(
        self,
        recipe: Recipe,
        parents: list[Parent],
        *,
        info: ModelInfo,
        out: Path,
        limit_train: int | None,
        world: World,
    ) -> None:
        self.recipe, self.info, self.world, self.parents = recipe, info, world, parents
        self.config = {
            "recipe": recipe.to_dict(),
            "limit_train": limit_train,
            "device": world.device.type,
            "threads": torch.get_num_threads(),
            "processes": world.size,
        }
        self.out, self.checkpoint = out, out / f"{recipe.name}.safetensors"
        self.state, self.log = out / f"{recipe.name}.state.safetensors", out / f"{recipe.name}.history.jsonl"
        self.history: list[dict[str, Any]] = []
        self._events: Events | None = None
        torch.manual_seed(recipe.train.seed)

    def placed(self, model: nn.Module) -> nn.Module:
        """Return a network on this process's device, in the recipe's memory format."""
        model = model.to(self.world.device)
        if self.recipe.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def start(self, *, resume: bool) -> None:
        """Take up what an interrupted run left, if asked to. Raises InputError."""
        if resume:
            self.history = restore_state(self.state, self.recipe, self.parents, self.parts, measured=self.measured)

    def save(self) -> None:
        """Write what `start` takes up."""
        save_state(self.state, self.recipe, self.parents, self.history, self.parts)

    def tell(self, *said: str) -> None:
        """Log what the last epoch came to, in one line that the command line shows."""
        if self.world.leads:
            epoch, of = self.history[-1]["epoch"], self.recipe.train.epochs
            _LOG.info("%s epoch %d/%d: %s", self.recipe.name, epoch, of, ", ".join(said), extra={"note": True})
        if self._events is not None:
            self._events.add(self.history[-1])

    @contextmanager
    def claimed(self, *, tensorboard: bool) -> Iterator[None]:
        """Be the only training of that name in the folder, with its files for TensorBoard open if they are wanted.

        Raises InputError, and MissingDependency without TensorBoard.
        """
        if not self.world.leads:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(claimed(self.checkpoint))
            if tensorboard:
                folder = self.out / "tensorboard" / self.recipe.name
                self._events = stack.enter_context(Events(folder, done=len(self.history)))
            yield

    def publish(self, path: Path, write: Callable[[Path], object], *, kind: str) -> None:
        """Write a file of the run with its sidecar."""
        publish(path, write, kind=kind, versions=TRAIN_VERSIONS, parents=self.parents, config=self.config)

    def publish_history(self) -> None:
        """Write the history, one line per epoch."""
        text = "".join(json.dumps(entry) + "\n" for entry in self.history)
        self.publish(self.log, lambda path: path.write_text(text, encoding="utf-8"), kind="history")

    def publish_network(self, model: nn.Module, info: ModelInfo) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.checkpoint, model, info, parents=self.parents, config=self.config)

    def result(self) -> TrainResult:
        """Return what the run has come to."""
        return TrainResult(checkpoint=self.checkpoint, info=self.info, history=self.history)


class Training(Run):
    """The moving parts of one training."""

    def __init__(
        self, recipe: Recipe, training: Split, testing: Split, *, info: ModelInfo, out: Path,
        limit_train: int | None, world: World, weights: Path | None,
    ) -> None:  # fmt: skip
        parents = [training.as_parent(), testing.as_parent()]
        if weights is not None:
            parents.append(weights_parent(weights, out))
        super().__init__(recipe, parents, info=info, out=out, limit_train=limit_train, world=world)
        options, prep = recipe.train, info.preprocess
        assert prep is not None
        self.testing, self.loss = Judge(testing, recipe, info), loss_of(recipe)
        if weights is not None and is_same(weights, self.checkpoint):
            raise InputError(f"{weights} is what the training would write.\nChoose another `--out`.")
        self.model = self.placed(self.network(len(training.classes), weights))
        learned, held_out = divided(training, options.validation)
        self.held_out = Judge(held_out, recipe, info) if len(held_out.labels) else None
        self.tested: Scored | None = None
        self.batches = Batches(learned, prep, options, device=world.device, rank=world.rank, ranks=world.size)
        if recipe.init == "data" and weights is None:
            start_from_data(self.model, next(self.batches.epoch(0))[0])
        self.optimizer = make_optimizer(self.model, options)
        self.average = averaged(self.model, options.ema) if options.ema else None
        self.parts = {"model": self.model, "optimizer": self.optimizer}
        if self.average is not None:
            self.parts = {**self.parts, "average": self.average}
        self.measured = ("train_loss", "test_", *(["validation_"] if self.held_out is not None else []))

    def network(self, classes: int, weights: Path | None) -> nn.Module:
        """Return the network as it is before its first step."""
        model = build_net(self.recipe, classes=classes)
        if weights is not None:
            start_from(model, weights)
        freeze(model, self.recipe.train.freeze)
        return model

    def step_loss(self, outputs: Tensor, images: Tensor, labels: Labels) -> Tensor:
        """Return what a step makes smaller, of outputs in float32."""
        return self.loss(outputs, labels)

    def start(self, *, resume: bool) -> None:
        super().start(resume=resume)
        if self.history and not self.goes_on():
            raise InputError(f"{self.state} is of a training that is done.\nStart without `--resume`.")

    def fit(self, progress: Progress, observer: Observer | None) -> None:
        shared = self.world.shared(self.model)
        if observer is not None:
            observer.begin(self.model)
        if self.history and self.world.leads:  # resumed: killed between the state and what belongs to it?
            self.publish_epoch(self.model if self.average is None else self.average.module)
        while self.goes_on():
            began = time.perf_counter()
            loss = self._epoch(len(self.history), shared, progress, observer)
            trained = time.perf_counter() - began
            served = (
                self.model if self.average is None else settled(self.average, frozen=self.recipe.train.freeze != "none")
            )
            entry = self.evaluated(served, loss)
            rate = self.optimizer.param_groups[0]["lr"]
            seconds = {"train_seconds": round(trained, 3), "seconds": round(time.perf_counter() - began, 3)}
            self.history.append({**entry, "learning_rate": rate, **seconds})
            self.tell(
                f"loss {loss:.3f}",
                *([f"test {self.tested.text()}"] if self.tested is not None else []),
                f"lr {rate:.2g}",
                f"{len(self.batches) * self.recipe.train.batch_size / trained:,.0f} images/s",
                f"{seconds['seconds']:.1f} s",
            )
            if observer is not None:
                observer.after_epoch(self.history[-1])
            if not self.world.leads:
                continue
            if self.goes_on():
                self.save()
            self.publish_epoch(served)
        self.info = self.described(self.best())
        if self.world.leads:
            remove_state(self.state)

    def _epoch(self, epoch: int, shared: nn.Module, progress: Progress, observer: Observer | None) -> float:
        """Run one pass over the data and return the mean loss."""
        options, steps = self.recipe.train, len(self.batches)
        into_training(shared, options.freeze)
        total = torch.zeros((), device=self.world.device)
        for at, (images, labels) in enumerate(self.batches.epoch(epoch), start=epoch * steps):
            rate = learning_rate(at / (options.epochs * steps), options)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad()
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=options.amp):
                outputs = shared(images)
            loss = self.step_loss(outputs.float(), images, labels)
            torch.autograd.backward(loss)
            if options.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
            if observer is not None:
                observer.before_step(at)
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            total += loss.detach()
            progress(at + 1, options.epochs * steps, self._note(epoch))
        return float(self.world.mean(total)) / steps

    def evaluated(self, model: nn.Module, loss: float) -> dict[str, Any]:
        """Return the history's entry of the epoch that has just been trained. Raises GateError if it diverged."""
        tested = self.tested = self.testing.scored(model)
        epoch, rate = len(self.history) + 1, self.recipe.train.learning_rate
        if tested.lost or not math.isfinite(loss):
            raise GateError(
                f"the training diverged in epoch {epoch}: loss {loss:.3g}, {tested.lost} of {len(self.testing)} test "
                "images without a finite output.\n"
                f"Lower the learning rate, for example `--lr {rate / 3:.2g}`."
            )
        entry: dict[str, Any] = {"epoch": epoch, "train_loss": loss, **named("test", tested)}
        if self.held_out is not None:
            entry |= named("validation", self.held_out.scored(model))
        if errors := sigma_errors(model):
            layer = max(errors, key=lambda name: abs(errors[name]))
            entry |= {"sigma_error": abs(errors[layer]), "sigma_layer": layer}
        return entry

    def publish_epoch(self, served: nn.Module) -> None:
        """Write what belongs to the last epoch."""
        self.publish_history()
        if self.best() == len(self.history) - 1:
            self.publish_network(served, self.described(self.best()))

    def best(self) -> int:
        """Return the index of the epoch to keep: the last, or with `patience` the best on the held-out images."""
        last = len(self.history) - 1
        if not self.recipe.train.patience:
            return last
        sign = -1 if is_error(self.recipe.task) else 1
        return max(range(last + 1), key=lambda at: (sign * metric_of(self.history[at], "validation"), -at))

    def goes_on(self) -> bool:
        options, done = self.recipe.train, len(self.history)
        is_stale = bool(options.patience and done) and done - 1 - self.best() >= options.patience
        return done < options.epochs and not is_stale

    def described(self, at: int) -> ModelInfo:
        """Return the info of the network as it was after an epoch, with what is the same in every run."""
        entry = {key: value for key, value in self.history[at].items() if key != "learning_rate"}
        metrics = {key: value for key, value in entry.items() if "seconds" not in key and not isinstance(value, str)}
        return replace(self.info, metrics=metrics)

    def _note(self, epoch: int) -> str:
        last = f", test {self.tested.text()}" if self.tested is not None else ""
        return f"{self.recipe.name} epoch {epoch + 1}/{self.recipe.train.epochs}{last}"

    def result(self) -> TrainResult:
        assert self.tested is not None
        return replace(super().result(), metric=f"test_{self.tested.metric}", unit=self.tested.unit)


def named(split: str, scored: Scored) -> dict[str, float]:
    """Return metrics as the history has them, that of the task first."""
    return {f"{split}_{name}": value for name, value in ({scored.metric: scored.value} | scored.others).items()}


def metric_of(entry: Mapping[str, Any], split: str) -> float:
    """Return the task's metric of an entry of the history."""
    return float(next(value for key, value in entry.items() if key.startswith(f"{split}_")))
