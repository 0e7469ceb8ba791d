"""`infer`: what a model says of each image of files, folders, a video or a camera, one at a time."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
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
from msn_deploy.data.video import STEP, VideoSource, arguments_for, frames, video_source
from msn_deploy.pipeline.flow import Meter, Stage, flow
from msn_deploy.pipeline.load import Model, load
from msn_deploy.tasks.arrays import Arrays
from msn_deploy.tasks.task import Answer, Outputs

_LOG = logging.getLogger(__name__)
_TOO_LARGE = " does not fit into the memory of this machine."


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a model says of one image, and how long it took.

    pixels: the upright image, uint8 (H, W, 3). answer: None where there is none, and error says why. latency_ms: of the
    inference alone, without reading and scaling the image. drawn: the image with the answer on it, if asked for.
    """

    image: str
    pixels: NDArray[np.uint8] | None = None
    answer: Answer | Arrays | None = None
    latency_ms: float = 0.0
    error: str = ""
    drawn: NDArray[np.uint8] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        answer = self.answer.to_json() if self.answer is not None else {}
        return {"image": self.image, **answer, "latency_ms": self.latency_ms, "error": self.error}


def infer(
    model: Path,
    sources: Sequence[Path | str],
    *,
    save: Path | None = None,
    draw: bool = False,
    threads: int | None = None,
    trust: bool = False,
    plugins: Sequence[Path] = (),
    meter: Meter | None = None,
) -> Generator[Told, None, None]:
    """Say what a model makes of image files, images below folders, frames of videos and of cameras.

    One image is in memory at a time, each answer comes as soon as it is known, and an image that cannot be read is an
    answer with an `error`. Frames are read, prepared, run and drawn at the same time, in order, a few between any two
    of these stages. A network whose file does not say its task answers with arrays.

    Args:
        model: Checkpoint, ONNX file or engine.
        sources: Files, folders, videos, "camera:0", "argus:0" (a Jetson's), "rtsp://HOST/PATH".
        save: Folder for the images with the answers drawn on them, or for the arrays (.npz); folders stay folders.
        draw: Give each frame of a video with its answer drawn on it.
        threads: Of the runtime.
        trust: Load an engine from elsewhere.
        plugins: Libraries with operators that an engine needs.
        meter: Takes the rate of frames, and how busy each stage is.

    Raises:
        InputError: Before the first answer, for a model or a source that cannot be used.
        MissingDependency: A video without OpenCV, or a camera of Argus without GStreamer.
    """
    loaded = load(model, threads=threads, trust=trust, plugins=plugins)
    videos = {str(source): video for source in sources if (video := video_source(str(source))) is not None}
    for source in sources:
        _check(source, videos.get(str(source)))
    files = [path for source in sources if str(source) not in videos for path in _files_of(Path(source))]

    def told() -> Generator[Told, None, None]:
        levels = _levels_of(files, loaded.preprocess.image_size["channels"])
        for source in sources:
            video = videos.get(str(source))
            if video is not None:
                yield from _of_video(video, loaded, save, draw=draw, meter=meter or Meter())
            else:
                for name, image in _images(Path(source), levels):
                    yield _told(name, image, loaded, save)

    return told()


def _told(name: Name, image: NDArray[np.uint8] | InputError, model: Model, save: Path | None) -> Told:
    frame = _Frame(name, image)
    for work in _works(model, save, draw=False).values():
        frame = work(frame)
    return frame.told()


@dataclass(slots=True)
class _Frame:
    """An image on its way through the stages. pixels: or why it could not be read."""

    name: Name
    pixels: NDArray[np.uint8] | InputError
    batch: NDArray[Any] | None = None
    outputs: Outputs | None = None
    latency_ms: float = 0.0
    answer: Answer | Arrays | None = None
    drawn: NDArray[np.uint8] | None = None

    def told(self) -> Told:
        if isinstance(self.pixels, InputError):
            return Told(image=self.name.shown, error=first_line(self.pixels))
        pixels = self.pixels if self.pixels.ndim == 3 else np.repeat(self.pixels[..., np.newaxis], 3, axis=2)
        return Told(
            image=self.name.shown, pixels=pixels, answer=self.answer, latency_ms=self.latency_ms, drawn=self.drawn
        )


def _works(model: Model, save: Path | None, *, draw: bool) -> dict[str, Callable[[_Frame], _Frame]]:
    """Return what is done with each image, by stage; what is wrong with it stays with it."""

    def prepare(frame: _Frame, pixels: NDArray[np.uint8]) -> None:
        frame.batch = model.prepared(pixels, name=frame.name.shown)

    def inference(frame: _Frame, pixels: NDArray[np.uint8]) -> None:
        assert frame.batch is not None
        frame.outputs, frame.latency_ms = model.ran(frame.batch)
        frame.batch = None

    def drawing(frame: _Frame, pixels: NDArray[np.uint8]) -> None:
        assert frame.outputs is not None
        frame.answer = model.read(frame.outputs, pixels)
        frame.outputs = None
        whole = pixels if pixels.ndim == 3 else np.repeat(pixels[..., np.newaxis], 3, axis=2)
        if save is not None:
            _save(save / frame.name.below, frame.answer, whole)
        if draw:
            frame.drawn = whole if isinstance(frame.answer, Arrays) else frame.answer.drawn(whole)

    def guarded(work: Callable[[_Frame, NDArray[np.uint8]], None]) -> Callable[[_Frame], _Frame]:
        def done(frame: _Frame) -> _Frame:
            if not isinstance(frame.pixels, InputError):
                try:
                    work(frame, frame.pixels)
                except InputError as cause:
                    frame.pixels = cause
                except MemoryError:
                    frame.pixels = InputError(f"{frame.name.shown}{_TOO_LARGE}")
            return frame

        return done

    return {each.__name__: guarded(each) for each in (prepare, inference, drawing)}


def _of_video(video: VideoSource, model: Model, save: Path | None, *, draw: bool, meter: Meter) -> Iterator[Told]:
    """Yield what a model says of each frame, with all stages at work at the same time."""

    def numbered() -> Iterator[_Frame]:
        for at, pixels in enumerate(frames(video)):
            yield _Frame(Name(f"{video.shown}#{at}", Path(f"{video.file_name}-{at:06d}")), pixels)

    stages = [Stage(name, work) for name, work in _works(model, save, draw=draw).items()]
    for frame in flow(numbered(), stages, here=1, meter=meter):
        yield frame.told()


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


def _check(source: Path | str, video: VideoSource | None) -> None:
    """Refuse what can give no image at all."""
    if video is not None:
        arguments_for(video, require("cv2", step=STEP))
        if not video.live:
            with open_input(Path(source), "any"):
                pass
    elif os.path.isdir(source) and not images_below(Path(source)):
        raise InputError(f"{source} holds no images ({', '.join(SUFFIXES)}).")


def _files_of(source: Path) -> list[Path]:
    return images_below(source) if os.path.isdir(source) else [source]


@dataclass(frozen=True, slots=True)
class Name:
    """Of an image. shown: its path, or the source with the number of the frame. below: where what is saved goes."""

    shown: str
    below: Path


def _images(source: Path, levels: Levels | None) -> Iterator[tuple[Name, NDArray[np.uint8] | InputError]]:
    """Yield the name of each image with its pixels (H, W) or (H, W, 3), or with why it could not be read."""
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
