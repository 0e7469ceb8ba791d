"""`eval`: how often is a model right on a test split?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import load_runner
from msn_deploy.pipeline.images import preprocess_for, refuse_generator, split_for

_CHUNK = 256

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy (0 to 1) of a model on `samples` images, per class too; predictions stay in order.

    images: which they were, by their digest.
    """

    model: str
    sha256: str
    data: str
    images: Parent
    samples: int
    accuracy: float
    per_class: dict[str, float]
    predictions: tuple[int, ...]
    seconds: float


def evaluate(
    model: Path, *, data: str | None = None, samples: int | None = None, threads: int | None = None,
    trust: bool = False, progress: Progress = silent,
) -> Evaluation:  # fmt: skip
    """Measure accuracy on the test split of `data`, or of what the model was trained on.

    trust: load an engine from elsewhere. Raises InputError (exit 2), MissingDependency or MissingDevice (exit 3).
    """
    predict, info, prep = open_model(model, threads, trust=trust)
    split = split_for(info, prep, data, "test").first(samples)
    images = to_input(split.images, prep)
    began = time.perf_counter()
    predicted: list[NDArray[np.int64]] = []
    for start in range(0, len(images), _CHUNK):
        logits = predict(images[start : start + _CHUNK])
        if logits.ndim != 2 or logits.shape[1] < len(split.classes):
            raise InputError(
                f"{model} gives {logits.shape[1:]} numbers per image; {len(split.classes)} classes need one each."
            )
        predicted.append(logits.argmax(1))
        progress(min(start + _CHUNK, len(images)), len(images), f"evaluating {model.name}")
    answers = np.concatenate(predicted)
    right = answers == split.labels
    per_class = {
        name: round(float(right[split.labels == label].mean()), 6)
        for label, name in enumerate(split.classes)
        if (split.labels == label).any()
    }
    return Evaluation(
        model=str(model),
        sha256=sha256_of(model),
        data=split.source,
        images=split.as_parent(),
        samples=len(images),
        accuracy=float(right.mean()),
        per_class=per_class,
        predictions=tuple(int(answer) for answer in answers),
        seconds=time.perf_counter() - began,
    )


def open_model(
    model: Path, threads: int | None, *, trust: bool = False
) -> tuple[Predict, ModelInfo | None, Preprocess]:
    """Return what a checkpoint, ONNX file or engine predicts (images -> logits), says of itself, wants of images."""
    if model.suffix == ".safetensors":
        torch = require("torch", step="eval of a checkpoint")
        from functools import partial

        from msn_deploy.nets.predict import logits_of
        from msn_deploy.training import load_checkpoint

        if threads is not None:
            torch.set_num_threads(threads)
        net, info = load_checkpoint(model)
        refuse_generator(info, model=str(model))
        assert info.preprocess is not None  # every classifier's checkpoint has it
        return partial(logits_of, net), info, info.preprocess
    runner = load_runner(model, threads=threads, trust=trust)
    return runner.run, runner.info, preprocess_for(runner.info, runner.input_shape, model=str(model))
