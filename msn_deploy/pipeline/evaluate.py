"""`eval`: how good are a model's answers on a test split, in the metric of its task?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TASKS, ModelInfo, Preprocess, TaskName, TensorSpec
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.results import Result
from msn_deploy.data import to_input
from msn_deploy.engine.load import Opened
from msn_deploy.engine.plan import Plan
from msn_deploy.engine.runner import image_input, outputs_of_images
from msn_deploy.model.opened import OpenModel
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.models import Described, open_file
from msn_deploy.tasks import make_task
from msn_deploy.tasks.classification import ClassAnswer
from msn_deploy.tasks.scoring import score_of
from msn_deploy.tasks.task import Ending, Given, Outputs, Task, ending_of

_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evaluation(Result):
    """How good a model is on `samples` images, in the metric of its task.

    metric, value, unit, metrics, per_class: see tasks.task.Score; metrics are its others, in `unit_of_metrics`.
    accuracy: `value` of a classifier, and predictions its answers in order; None and () of other tasks. images: which
    they were, by their digest. precision, norms_left, changed: see Described.
    """

    model: str
    sha256: str
    task: TaskName
    data: str
    images: Parent
    samples: int
    metric: str
    value: float
    unit: str
    higher_is_better: bool
    metrics: dict[str, float]
    unit_of_metrics: str
    per_class: dict[str, float]
    accuracy: float | None
    predictions: tuple[int, ...]
    seconds: float
    precision: str | None
    norms_left: int | None
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """A model file that is fed images."""

    run: Callable[[NDArray[Any]], Outputs]
    """What `prepared` gives, for any N, to its outputs."""
    info: ModelInfo | None
    prep: Preprocess
    """What it wants of images."""
    dtype: str
    """Of its input."""
    given: Given
    """What its task is made of."""
    told: Described
    most: int
    """Images that are run at once: not more than one run takes, whose outputs may be of any size."""
    close: Callable[[], None]
    """Frees what the runtime holds."""
    one_at_a_time: bool
    """Whether two threads must not run it at the same time."""

    def prepared(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn images (N, H, W, C), read as `prep.image_size` says, into its input."""
        return to_input(images, self.prep, "uint8" if self.dtype == "uint8" else "float32")

    def task(self, classes: Sequence[str] = ()) -> Task | None:
        """Return its task, None where the file does not say one; classes: of the data, for a file that names none."""
        if self.info is None or not self.info.task:
            return None
        named = self.given if self.given.named else replace(self.given, classes=tuple(classes))
        return make_task(cast(TaskName, self.info.task), named)


def evaluate(
    model: str | os.PathLike[str], *, data: str | None = None, samples: int | None = None, threads: int | None = None,
    trust: bool = False, plugins: Sequence[Path] = (), progress: Progress = silent,
) -> Evaluation:  # fmt: skip
    """Measure a model by its task's metric on the test split of `data`, or of what it was trained on.

    trust: load an engine from elsewhere. plugins: libraries with operators that an engine needs. Raises InputError
    (exit 2), GateError (exit 1) for outputs that are not finite, MissingDependency or MissingDevice (exit 3).

    Examples:
        >>> import msn_deploy
        >>> found = msn_deploy.evaluate("runs/cnn3_msn.onnx", samples=50)
        >>> found.metric, found.samples, 0 <= found.value <= 1
        ('accuracy', 50, True)
    """
    model = Path(model)
    opened = open_image_model(model, threads, trust=trust, plugins=plugins)
    name = require_task(opened.info, model=str(model))
    split = split_for(opened.info, opened.prep, data, "test", task=name, lazy=True).first(samples)
    task = opened.task(split.classes)
    assert task is not None
    began, predictions = time.perf_counter(), list[int]()

    def made() -> Iterator[tuple[int, Outputs]]:
        for start in range(0, len(split.images), opened.most):
            images = np.asarray(split.images[start : start + opened.most])
            yield len(images), opened.run(opened.prepared(images))
            progress(start + len(images), len(split.images), f"evaluating {model.name}")

    def see(answers: Sequence[Any]) -> None:
        predictions.extend(answer.index for answer in answers if isinstance(answer, ClassAnswer))

    score, told = score_of(task, split.labels, opened.prep, made(), see=see), opened.told
    return Evaluation(
        model=str(model),
        sha256=told.sha256,
        task=name,
        data=split.source,
        images=split.as_parent(),
        samples=score.samples,
        metric=score.metric,
        value=score.value,
        unit=score.unit,
        higher_is_better=score.higher_is_better,
        metrics=score.others,
        unit_of_metrics=score.unit_of_others,
        per_class=score.per_class,
        accuracy=score.value if name == "classification" else None,
        predictions=tuple(predictions),
        seconds=time.perf_counter() - began,
        precision=told.precision,
        norms_left=told.norms_left,
        changed=told.changed,
    )


def require_task(info: ModelInfo | None, *, model: str) -> TaskName:
    """Return what a model file says its task is. Raises InputError that says how to tell it."""
    if info is None or not info.task:
        own = model if model.endswith(".onnx") else "MODEL.onnx"
        raise InputError(
            f"{model} does not say what its outputs mean, and so has no metric.\n"
            f"Say it: msn-deploy export {own} --task {'|'.join(TASKS)} --out NEW.onnx"
        )
    return cast(TaskName, info.task)


def open_image_model(
    model: Path, threads: int | None = None, *, trust: bool = False, plugins: Sequence[Path] = ()
) -> ImageModel:
    """Open a checkpoint, ONNX file or engine. Raises InputError for a generator, and for what takes no images."""
    file = open_file(model, trust=trust, plugins=plugins)
    runner = file.runner(provider="cpu" if file.opened else "torch", threads=threads)
    given = image_input(runner)
    info = runner.info
    return ImageModel(
        run=partial(outputs_of_images, runner),
        info=info,
        prep=preprocess_for(info, given.shape or (), model=str(model)),
        dtype=given.dtype,
        told=file.described(runner),
        most=min(_CHUNK, runner.batch_range[1] or _CHUNK),
        given=given_of(str(model), info, runner.outputs, file.opened),
        close=runner.close,
        one_at_a_time=isinstance(file.opened, Plan),
    )


def given_of(
    model: str,
    info: ModelInfo | None,
    outputs: tuple[TensorSpec, ...],
    opened: Opened | None,
    *,
    classes: Sequence[str] = (),
) -> Given:
    """Return what a task is made of. opened: None for a checkpoint. classes: of the data, for a file without names."""
    own = info.classes if info is not None else ()
    prep = info.preprocess if info is not None else None
    return Given(
        model=model,
        classes=own or tuple(classes),
        named=bool(own),
        reading=info.reading if info is not None else {},
        outputs=outputs,
        endings=tuple(_ending_of(opened, at) for at in range(len(outputs))),
        frame=(prep.height_px, prep.width_px) if prep is not None else None,
    )


def _ending_of(opened: Opened | None, output: int) -> Ending:
    """Return what a model file's numbers are: a checkpoint's are logits, of an engine alone it is not known."""
    if opened is None:
        return "logits"
    return ending_of(opened.proto, output) if isinstance(opened, OpenModel) else "unknown"
