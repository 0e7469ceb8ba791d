"""The training loop: a recipe and its data to a checkpoint, one epoch after the other, each saved before the next.

Beside the checkpoint lie the history (`NAME.history.jsonl`, one line per epoch) and, until the last epoch is done, the
state that `resume` continues from (`NAME.state.safetensors`: weights, optimizer, history).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.artifacts import Parent, publish, sidecar_path
from msn_deploy.core.errors import GateError, InputError, MissingDevice
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe
from msn_deploy.core.train_options import TrainOptions
from msn_deploy.data import Split, load_split, to_input
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.nets import build_net
from msn_deploy.nets.predict import logits_of
from msn_deploy.training.checkpoint import read_tensors, save_checkpoint, write_tensors
from msn_deploy.training.probe import Probe

_RISE = 0.3  # share of the steps in which the learning rate rises from peak / 25; then it falls to almost nothing
_RUN_KEY = "msn_deploy_run"  # in the header of the state


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A finished training: where the checkpoint lies, what it is, and one dict per epoch."""

    checkpoint: Path
    info: ModelInfo
    history: list[dict[str, float]]


def train(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "auto",
    limit_train: int | None = None,
    resume: bool = False,
    progress: Progress = silent,
    probe: Probe | None = None,
) -> TrainResult:
    """Train a recipe on its data and save `out/NAME.safetensors` after every epoch.

    device: "auto", "cpu" or "cuda". limit_train: use at most so many training images. The same recipe, data and
    number of threads give the same weights; a resumed run gives those of a run that was never interrupted.
    Raises InputError (exit 2), MissingDevice (exit 3), and GateError (exit 1) if loss or outputs are no longer finite.
    """
    where = _device(device)
    _, channels, height, width = recipe.input_shape
    size = {"height_px": height, "width_px": width, "channels": channels}
    training = load_split(recipe.data, "train", **size).first(limit_train)
    testing = load_split(recipe.data, "test", **size)
    if training.classes != testing.classes:
        raise InputError(f"{recipe.data}: training has classes {training.classes}, the test {testing.classes}.")
    torch.manual_seed(recipe.train.seed)
    info = ModelInfo(
        net=recipe.net,
        norm=recipe.norm,
        classes=training.classes,
        preprocess=measured_preprocess(training.images),
        data=recipe.data,
        recipe=recipe.to_dict(),
    )
    model = build_net(recipe, classes=len(training.classes)).to(where)
    run = _Run(recipe=recipe, model=model, info=info, out=out, probe=probe)
    if resume:
        run.restore(training)
    run.fit(training, testing, progress=progress)
    return TrainResult(checkpoint=run.checkpoint, info=run.info, history=run.history)


class _Run:
    """The moving parts of one training: model, optimizer, history, and where they are saved."""

    def __init__(self, *, recipe: Recipe, model: nn.Module, info: ModelInfo, out: Path, probe: Probe | None) -> None:
        self.recipe, self.model, self.info, self.probe = recipe, model, info, probe
        self.optimizer = _optimizer(model, recipe.train)
        self.checkpoint = out / f"{recipe.name}.safetensors"
        self.state = out / f"{recipe.name}.state.safetensors"
        self.log = out / f"{recipe.name}.history.jsonl"
        self.history: list[dict[str, float]] = []

    def fit(self, training: Split, testing: Split, *, progress: Progress) -> None:
        options, prep = self.recipe.train, self.info.preprocess
        assert prep is not None
        device = next(self.model.parameters()).device
        images = torch.from_numpy(to_input(training.images, prep)).to(device)
        labels = torch.from_numpy(training.labels).to(device)
        test_input = to_input(testing.images, prep)
        if len(images) < options.batch_size:
            raise InputError(
                f"{len(images)} training images do not fill one batch of {options.batch_size}.\nLower `--batch-size`."
            )
        splits = {"data:train": training, "data:test": testing}
        parents = [Parent(role=role, file=split.source, sha256=split.sha256()) for role, split in splits.items()]
        steps = len(images) // options.batch_size
        if self.probe is not None:
            self.probe.begin(self.model)
        for epoch in range(len(self.history), options.epochs):
            began = time.perf_counter()
            loss = self._epoch(epoch, images, labels, steps, progress)
            logits = logits_of(self.model, test_input)
            lost = int((~np.isfinite(logits).all(axis=1)).sum())
            if lost or not math.isfinite(loss):
                raise GateError(
                    f"the training diverged in epoch {epoch + 1}: loss {loss:.3g}, {lost} of {len(logits)} test images "
                    "without a finite output.\n"
                    f"Lower the learning rate, for example `--lr {options.learning_rate / 3:.2g}`."
                )
            accuracy = float((logits.argmax(1) == testing.labels).mean())
            entry = {"epoch": epoch + 1, "train_loss": loss, "test_accuracy": accuracy}
            self.history.append({**entry, "seconds": round(time.perf_counter() - began, 3)})
            if self.probe is not None:
                self.probe.after_epoch(self.history[-1])
            self.info = replace(self.info, metrics=entry)
            if epoch + 1 < options.epochs:
                self._save_state(training)
            publish(self.log, self._write_history, kind="history", parents=parents)
            save_checkpoint(self.checkpoint, self.model, self.info, parents=parents)
        for path in (sidecar_path(self.state), self.state):
            path.unlink(missing_ok=True)

    def _epoch(self, epoch: int, images: Tensor, labels: Tensor, steps: int, progress: Progress) -> float:
        """Run one pass over the data in an order that depends on seed and epoch alone; return the mean loss."""
        options = self.recipe.train
        shuffle = torch.Generator().manual_seed(options.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=shuffle).to(images.device)
        self.model.train()
        total = torch.zeros((), device=images.device)
        for step in range(steps):
            at = epoch * steps + step
            for group in self.optimizer.param_groups:
                group["lr"] = one_cycle(at / (options.epochs * steps), peak=options.learning_rate)
            chosen = order[step * options.batch_size : (step + 1) * options.batch_size]
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images[chosen]), labels[chosen])
            loss.backward()
            if self.probe is not None:
                self.probe.before_step(at)
            self.optimizer.step()
            total += loss.detach()
            progress(at + 1, options.epochs * steps, self._note(epoch))
        return float(total) / steps

    def _note(self, epoch: int) -> str:
        last = f", test {self.history[-1]['test_accuracy']:.2%}" if self.history else ""
        return f"{self.recipe.name} epoch {epoch + 1}/{self.recipe.train.epochs}{last}"

    def _write_history(self, path: Path) -> None:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in self.history), encoding="utf-8")

    def _save_state(self, training: Split) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        run = {"recipe": self.recipe.to_dict(), "data": training.sha256(), "history": self.history}
        write_tensors(self.state, tensors, {_RUN_KEY: json.dumps(run)})

    def restore(self, training: Split) -> None:
        """Continue from the saved state. Raises InputError if there is none or it is of another recipe or data."""
        if not self.state.is_file():
            raise InputError(f"nothing to resume: {self.state} does not exist.\nStart without `--resume`.")
        tensors, metadata = read_tensors(self.state)
        if _RUN_KEY not in metadata:
            raise InputError(f"{self.state} is not the state of a training.\nStart without `--resume`.")
        run = json.loads(metadata[_RUN_KEY])
        if run["recipe"] != self.recipe.to_dict():
            raise InputError(f"{self.state} was made with other options.\nResume with the options of the first run.")
        if run["data"] != training.sha256():
            raise InputError(
                f"{self.state} was made with other training images than {training.source} holds now.\n"
                "Resume with the data and `--limit-train` of the first run."
            )
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".", 2)
                state.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history = run["history"]


def one_cycle(share: float, *, peak: float) -> float:
    """Return the learning rate at a share (0 to 1) of the training: cosine up to the peak, cosine down to peak / 1e4.

    Source: Smith and Topin, Super-Convergence (arXiv 1708.07120), with torch's OneCycleLR defaults.
    """
    if share < _RISE:
        low, position = peak / 25, share / _RISE
    else:
        low, position = peak / 1e4, (1 - share) / (1 - _RISE)
    return low + (peak - low) * (1 - math.cos(math.pi * position)) / 2


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer](groups, lr=options.learning_rate)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}; known are auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDevice("`--device cuda`: torch finds no CUDA device here.\nUse `--device cpu`, or leave it out.")
    return torch.device(name)
