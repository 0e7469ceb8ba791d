"""`eval`: how often is a model right on a test split?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import run_images
from msn_deploy.engine.runner import image_input
from msn_deploy.model.opened import OpenModel
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.models import Described, ModelFile, open_file
from msn_deploy.tasks.classification import Ending, accuracy, accuracy_by_class, answers, ending_of

_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy (0 to 1) of a model on `samples` images, per class too; predictions stay in order.

    images: which they were, by their digest. precision, norms_left, changed: see Described.
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
    precision: str | None
    norms_left: int | None
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A model file that maps images to one number per class."""

    predict: Callable[[NDArray[Any]], NDArray[np.float32]]
    """What `prepared` gives, for any N, to (N, ...)."""
    info: ModelInfo | None
    prep: Preprocess
    """What it wants of images."""
    dtype: str
    """Of its input."""
    told: Described
    ending: Ending
    """What its numbers are already."""

    def prepared(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn images (N, H, W, C), read as `prep.image_size` says, into its input."""
        return to_input(images, self.prep, "uint8" if self.dtype == "uint8" else "float32")


def evaluate(
    model: Path, *, data: str | None = None, samples: int | None = None, threads: int | None = None,
    trust: bool = False, plugins: Sequence[Path] = (), progress: Progress = silent,
) -> Evaluation:  # fmt: skip
    """Measure accuracy on the test split of `data`, or of what the model was trained on.

    trust: load an engine from elsewhere. plugins: libraries with operators that an engine needs. Raises InputError
    (exit 2), GateError (exit 1) for outputs that are not finite, MissingDependency or MissingDevice (exit 3).
    """
    classifier = open_classifier(model, threads, trust=trust, plugins=plugins)
    split = split_for(classifier.info, classifier.prep, data, "test").first(samples)
    images = classifier.prepared(split.images)
    began = time.perf_counter()
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(images), _CHUNK):
        logits = classifier.predict(images[start : start + _CHUNK])
        named = classifier.info is not None and bool(classifier.info.classes)
        found.append(answers(logits, split.classes, name=str(model), ending=classifier.ending, named=named))
        progress(min(start + _CHUNK, len(images)), len(images), f"evaluating {model.name}")
    predictions = np.concatenate(found)
    told = classifier.told
    return Evaluation(
        model=str(model),
        sha256=told.sha256,
        data=split.source,
        images=split.as_parent(),
        samples=len(images),
        accuracy=accuracy(predictions, split.labels),
        per_class=accuracy_by_class(predictions, split.labels, split.classes),
        predictions=tuple(int(answer) for answer in predictions),
        seconds=time.perf_counter() - began,
        precision=told.precision,
        norms_left=told.norms_left,
        changed=told.changed,
    )


def open_classifier(
    model: Path, threads: int | None = None, *, trust: bool = False, plugins: Sequence[Path] = ()
) -> Classifier:
    """Open a checkpoint, ONNX file or engine. Raises InputError for a generator, and for what takes no images."""
    file = open_file(model, trust=trust, plugins=plugins)
    runner = file.runner(provider="cpu" if file.opened else "torch", threads=threads)
    given = image_input(runner)
    return Classifier(
        predict=partial(run_images, runner),
        info=runner.info,
        prep=preprocess_for(runner.info, given.shape or (), model=str(model)),
        dtype=given.dtype,
        told=file.described(runner),
        ending=_ending_of(file),
    )


def _ending_of(file: ModelFile) -> Ending:
    """Return what a model file's numbers are: a checkpoint's are logits, of an engine alone it is not known."""
    if file.opened is None:
        return "logits"
    return ending_of(file.opened.proto) if isinstance(file.opened, OpenModel) else "unknown"
