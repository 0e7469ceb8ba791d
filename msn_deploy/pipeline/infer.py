"""`infer`: what a model says of each image of files, folders, a video or a camera, one at a time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError, first_line
from msn_deploy.core.optional import require
from msn_deploy.data.decode import SUFFIXES, Levels
from msn_deploy.data.folders import images_below
from msn_deploy.data.images import fit_images, read_image
from msn_deploy.data.survey import measured_levels, survey_files
from msn_deploy.pipeline.evaluate import Classifier, open_classifier
from msn_deploy.tasks.classification import likeliest, scores_of

_LOG = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_CAMERA = "camera:"  # and a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says of one image: the likeliest class, its score (0 to 1), and how long it took.

    latency_ms: of the inference alone, without reading and scaling the image. error: why there is no answer; label is
    then empty.
    """

    image: str
    label: str = ""
    score: float = 0.0
    latency_ms: float = 0.0
    error: str = ""


def infer(
    model: Path,
    sources: Sequence[Path],
    *,
    threads: int | None = None,
    trust: bool = False,
    plugins: Sequence[Path] = (),
) -> Iterator[Answer]:
    """Classify image files, the images below folders, frames of videos (VIDEO_SUFFIXES) and of cameras ("camera:0").

    One image is in memory at a time, each answer comes as soon as it is known, and an image that cannot be read is an
    answer with an `error`. trust: load an engine from elsewhere. plugins: libraries with operators that an engine
    needs. Raises InputError before the first answer for a model or a source that cannot be used, MissingDependency for
    a video without OpenCV.
    """
    classifier = open_classifier(model, threads, trust=trust, plugins=plugins)
    prep = classifier.prep
    for source in sources:
        _check(source)
    black = np.zeros((1, prep.height_px, prep.width_px, prep.image_size["channels"]), dtype=np.uint8)
    pays_for_memory = classifier.predict(classifier.prepared(black))
    scores_of(np.zeros_like(pays_for_memory), ending="softmax", name=str(model))  # refuses what is not a classifier
    return (_answer(name, image, classifier) for name, image in _images(sources, prep.image_size))


def _answer(name: str, image: NDArray[np.uint8] | InputError, classifier: Classifier) -> Answer:
    if isinstance(image, InputError):
        return Answer(image=name, error=first_line(image))
    batch = classifier.prepared(image[np.newaxis])
    began = time.perf_counter()
    outputs = classifier.predict(batch)
    latency_ms = (time.perf_counter() - began) * 1e3
    classes = classifier.info.classes if classifier.info else ()
    (best,) = likeliest(outputs, classes, ending=classifier.ending, name=name)
    return Answer(image=name, label=best.label, score=best.score, latency_ms=latency_ms)


def _check(source: Path) -> None:
    """Refuse what can give no image at all."""
    if _is_stream(source):
        require("cv2", step="infer of a video or camera")
    elif os.path.isdir(source) and not images_below(source):
        raise InputError(f"{source} holds no images ({', '.join(SUFFIXES)}).")


def _is_stream(source: Path) -> bool:
    return str(source).startswith(_CAMERA) or source.suffix.lower() in VIDEO_SUFFIXES


def _files_of(source: Path) -> list[Path]:
    return images_below(source) if os.path.isdir(source) else [source]


def _images(sources: Sequence[Path], size: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.uint8] | InputError]]:
    """Yield the name of each image with its pixels (height, width, channels), or with why it could not be read."""
    levels = _levels_of([path for source in sources if not _is_stream(source) for path in _files_of(source)], size)
    for source in sources:
        if _is_stream(source):
            yield from _frames(source, size)
            continue
        for path in _files_of(source):
            try:
                yield str(path), read_image(path, levels=levels, **size)
            except InputError as cause:
                yield str(path), cause


def _levels_of(files: Sequence[Path], size: dict[str, Any]) -> Levels | None:
    """Return what is black and white in files of more than 8 bits; the log says it, and what the network won't see."""
    levels = measured_levels(files)
    if levels is not None:
        _LOG.warning("more than 8 bits: black is taken to be %g and white %g, from the files given", *levels)
    for warning in survey_files(files, channels=size["channels"], levels=levels).warnings:
        _LOG.warning("%s", warning)
    return levels


def _frames(source: Path, size: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.uint8] | InputError]]:
    """Yield the frames of a video or camera, until it ends."""
    cv2: Any = require("cv2", step="infer of a video or camera")
    text = str(source)
    number = text.removeprefix(_CAMERA)
    capture = cv2.VideoCapture(int(number) if text.startswith(_CAMERA) and number.isdecimal() else text)
    at = 0
    with suppress(KeyboardInterrupt):  # how one stops a camera; the answers so far are whole
        while True:
            more, frame = capture.read()
            if not more:
                break
            rgb = np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives BGR
            yield f"{source}#{at}", fit_images(rgb[np.newaxis], **size)[0]
            at += 1
    capture.release()
    if at == 0:
        yield text, InputError(f"{source} gives no frames: it cannot be opened, or is no video.")
