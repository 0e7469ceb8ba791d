"""`infer`: what a model says of each image of files, folders, a video or a camera, one at a time."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.artifacts import atomic_file
from msn_deploy.core.errors import InputError, first_line
from msn_deploy.core.opening import open_input
from msn_deploy.core.optional import require
from msn_deploy.data.decode import SUFFIXES, Levels, open_picture
from msn_deploy.data.folders import images_below
from msn_deploy.data.survey import measured_levels, survey_files
from msn_deploy.pipeline.load import Model, load
from msn_deploy.tasks.arrays import Arrays
from msn_deploy.tasks.task import Answer

_LOG = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_TOO_LARGE = " does not fit into the memory of this machine."
_CAMERA = re.compile(r"camera:([0-9]{1,3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a model says of one image, and how long it took.

    pixels: the upright image, uint8 (H, W, 3). answer: None where there is none, and error says why. latency_ms: of the
    inference alone, without reading and scaling the image.
    """

    image: str
    pixels: NDArray[np.uint8] | None = None
    answer: Answer | Arrays | None = None
    latency_ms: float = 0.0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        answer = self.answer.to_json() if self.answer is not None else {}
        return {"image": self.image, **answer, "latency_ms": self.latency_ms, "error": self.error}


def infer(
    model: Path,
    sources: Sequence[Path],
    *,
    save: Path | None = None,
    threads: int | None = None,
    trust: bool = False,
    plugins: Sequence[Path] = (),
) -> Iterator[Told]:
    """Say what a model makes of image files, images below folders, frames of videos and of cameras ("camera:0").

    One image is in memory at a time, each answer comes as soon as it is known, and an image that cannot be read is an
    answer with an `error`. A network whose file does not say its task answers with arrays.

    Args:
        model: Checkpoint, ONNX file or engine.
        sources: Files, folders, videos (VIDEO_SUFFIXES), cameras.
        save: Folder for the images with the answers drawn on them, or for the arrays (.npz); folders stay folders.
        threads: Of the runtime.
        trust: Load an engine from elsewhere.
        plugins: Libraries with operators that an engine needs.

    Raises:
        InputError: Before the first answer, for a model or a source that cannot be used.
        MissingDependency: A video without OpenCV.
    """
    loaded = load(model, threads=threads, trust=trust, plugins=plugins)
    for source in sources:
        _check(source)
    channels = loaded.preprocess.image_size["channels"]
    return (_told(name, image, loaded, save) for name, image in _images(sources, channels))


def _told(name: Name, image: NDArray[np.uint8] | InputError, model: Model, save: Path | None) -> Told:
    if isinstance(image, InputError):
        return Told(image=name.shown, error=first_line(image))
    try:
        answer, latency_ms = model.answered(image, name=name.shown)
        pixels = image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)
        if save is not None:
            _save(save / name.below, answer, pixels)
    except InputError as cause:
        return Told(image=name.shown, error=first_line(cause))
    except MemoryError:
        return Told(image=name.shown, error=f"{name.shown}{_TOO_LARGE}")
    return Told(image=name.shown, pixels=pixels, answer=answer, latency_ms=latency_ms)


def _save(path: Path, answer: Answer | Arrays, pixels: NDArray[np.uint8]) -> None:
    """Write the image with the answer drawn on it as a PNG file, or the arrays as path.npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(answer, Arrays):
        with atomic_file(path.with_name(f"{path.name}.npz")) as partial, zipfile.ZipFile(partial, "w") as archive:
            for name, array in answer.arrays.items():  # numpy.savez would take an output called "file" for its own
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return
    if path.suffix.lower() != ".png":  # a.jpg beside a.png stays another file
        path = path.with_name(f"{path.name}.png")
    with atomic_file(path) as partial, partial.open("wb") as out:
        Image.fromarray(answer.drawn(pixels)).save(out, "PNG")


def _check(source: Path) -> None:
    """Refuse what can give no image at all."""
    if _is_stream(source):
        require("cv2", step="infer of a video or camera")
        if not _is_camera(source):  # OpenCV would take other texts for addresses, or for commands of GStreamer
            with open_input(source, "any"):
                pass
        elif not _CAMERA.fullmatch(str(source)):
            raise InputError(f"{source} names no camera.\nGive its number, as in camera:0.")
    elif os.path.isdir(source) and not images_below(source):
        raise InputError(f"{source} holds no images ({', '.join(SUFFIXES)}).")


def _is_stream(source: Path) -> bool:
    return _is_camera(source) or source.suffix.lower() in VIDEO_SUFFIXES


def _is_camera(source: Path) -> bool:
    return str(source).startswith("camera:")


def _files_of(source: Path) -> list[Path]:
    return images_below(source) if os.path.isdir(source) else [source]


@dataclass(frozen=True, slots=True)
class Name:
    """Of an image. shown: its path, or the source with the number of the frame. below: where what is saved goes."""

    shown: str
    below: Path


def _images(sources: Sequence[Path], channels: int) -> Iterator[tuple[Name, NDArray[np.uint8] | InputError]]:
    """Yield the name of each image with its pixels (H, W) or (H, W, 3), or with why it could not be read."""
    levels = _levels_of([path for source in sources if not _is_stream(source) for path in _files_of(source)], channels)
    for source in sources:
        if _is_stream(source):
            yield from _frames(source)
            continue
        for path in _files_of(source):
            name = Name(str(path), path.relative_to(source) if path != source else Path(path.name))
            try:
                pixels = open_picture(path).to_bytes(levels)
            except (InputError, MemoryError) as cause:
                yield name, InputError(f"{path}{_TOO_LARGE}") if isinstance(cause, MemoryError) else cause
            else:
                yield name, pixels


def _levels_of(files: Sequence[Path], channels: int) -> Levels | None:
    """Return what is black and white in files of more than 8 bits; the log says it, and what the network won't see."""
    levels = measured_levels(files)
    if levels is not None:
        _LOG.warning("more than 8 bits: black is taken to be %g and white %g, from the files given", *levels)
    for warning in survey_files(files, channels=channels, levels=levels).warnings:
        _LOG.warning("%s", warning)
    return levels


def _frames(source: Path) -> Iterator[tuple[Name, NDArray[np.uint8] | InputError]]:
    """Yield the frames of a video or camera, until it ends."""
    cv2: Any = require("cv2", step="infer of a video or camera")
    camera = _CAMERA.fullmatch(str(source))
    capture = cv2.VideoCapture(os.path.abspath(source) if camera is None else int(camera[1]))
    at = 0
    with suppress(KeyboardInterrupt):  # how one stops a camera; the answers so far are whole
        while True:
            more, frame = capture.read()
            if not more:
                break
            rgb = np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives BGR
            yield Name(f"{source}#{at}", Path(f"{source.name.replace(':', '')}-{at:06d}")), rgb
            at += 1
    capture.release()
    if at == 0:
        yield (
            Name(str(source), Path()),
            InputError(f"{source} gives no frames: OpenCV cannot open it, or reads none."),
        )
