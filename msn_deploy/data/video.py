"""Videos and cameras as frames, by OpenCV: files, cameras of V4L2 and Argus, and streams of RTSP.

    source = video_source("camera:0")       # None for what is not one
    for frame in frames(source): ...         # uint8 (H, W, 3), red, green, blue; or an InputError instead of a frame

OpenCV takes other texts for addresses, or for commands of GStreamer, which can write files: it is handed nothing but
what is made here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.optional import require

_LOG = logging.getLogger(__name__)
SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
STEP = "infer of a video or camera"
_NUMBER = re.compile(r"(camera|argus):([0-9]{1,3})")
_RTSP = re.compile(r"(rtsps?):/{1,2}(?:[^\s\"'!\\/@]+@)?([^\s\"'!\\/@]+)((?:/[^\s\"'!\\]*)?)")
_BROKEN = 30  # frames in a row that cannot be read, after which a file is over
# Without a window of frames behind: what is shown is what the camera sees now.
_NEWEST = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"

Kind = Literal["file", "camera", "argus", "rtsp"]


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video. text: a file, the number of a camera, or an address. shown: what may be printed, without a password."""

    kind: Kind
    text: str
    shown: str

    @property
    def live(self) -> bool:
        """Whether its end is not foreseen."""
        return self.kind != "file"

    @property
    def file_name(self) -> str:
        """What files are called that are made of it."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(self.shown) if self.kind == "file" else self.shown)


def video_source(text: str) -> VideoSource | None:
    """Return what a text names, None for what is not a video. Raises InputError for a wrong camera or address."""
    kind = text.partition(":")[0]
    if kind in ("camera", "argus") and ":" in text:
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise InputError(f"{text} does not name a camera.\nGive its number, as in {kind}:0.")
        return VideoSource("camera" if kind == "camera" else "argus", found[2], text)
    if kind in ("rtsp", "rtsps") and ":" in text:
        found = _RTSP.fullmatch(text)
        if found is None:
            raise InputError("this address is not one of RTSP.\nGive it as rtsp://HOST/PATH.")
        address = re.sub(r"^(rtsps?):/{1,2}", r"\1://", text)
        return VideoSource("rtsp", address, f"{found[1]}://{found[2]}{found[3].partition('?')[0]}")
    if os.path.splitext(text)[1].lower() in SUFFIXES:
        return VideoSource("file", os.path.abspath(text), text)
    return None


def arguments_for(source: VideoSource, cv2: Any) -> tuple[Any, ...]:
    """Return what cv2.VideoCapture is called with: a pipeline of GStreamer where OpenCV was built with it.

    Raises MissingDependency for Argus without it.
    """
    has_gstreamer = re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None
    if source.kind == "argus" and not has_gstreamer:
        raise MissingDependency(
            f"{source.shown} is read by GStreamer, and this OpenCV {cv2.__version__} was built without it.\n"
            "JetPack's has it: sudo apt install python3-opencv (a venv needs --system-site-packages)."
        )
    if source.kind == "file":
        return (source.text,)
    if has_gstreamer:
        return (pipeline_for(source), cv2.CAP_GSTREAMER)
    return (int(source.text),) if source.kind == "camera" else (source.text, cv2.CAP_FFMPEG)


def pipeline_for(source: VideoSource) -> str:
    """Return GStreamer's pipeline for a live source."""
    if source.kind == "argus":  # its frames are in the GPU's memory, which nvvidconv copies from
        return (
            f"nvarguscamerasrc sensor-id={source.text} ! video/x-raw(memory:NVMM) ! nvvidconv ! "
            f"video/x-raw,format=BGRx ! {_NEWEST}"
        )
    if source.kind == "camera":
        return f"v4l2src device=/dev/video{source.text} ! decodebin ! {_NEWEST}"
    return f'rtspsrc location="{source.text}" latency=200 ! decodebin ! {_NEWEST}'


def frames(source: VideoSource) -> Iterator[NDArray[np.uint8] | InputError]:
    """Yield frames, uint8 (H, W, 3), red, green, blue; what ends or breaks a video is an InputError in their place.

    A frame of a file that cannot be read costs no other; a live source that gives none is gone. Raises
    MissingDependency.
    """
    cv2: Any = require("cv2", step=STEP)
    capture = cv2.VideoCapture(*arguments_for(source, cv2))
    try:
        at = broken = 0
        while broken < (1 if source.live else _BROKEN):
            more, frame = capture.read()
            if not more or not _is_frame(frame):
                broken += 1
                continue
            for lost in range(at, at + broken):
                yield InputError(f"{source.shown}#{lost} cannot be read; the frames behind it can.")
            at, broken = at + broken + 1, 0
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives blue, green, red
        if at == 0:
            yield InputError(f"{source.shown} gives no frames: OpenCV cannot open it, or reads none.")
        elif source.live:
            yield InputError(f"{source.shown} is gone: it gave {at} frames, and no more.")
        else:
            promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if promised > at:
                _LOG.warning("%s says that it has %d frames; %d could be read", source.shown, promised, at)
    finally:
        capture.release()


def _is_frame(frame: Any) -> bool:
    return isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and 0 not in frame.shape


class Window:
    """Shows frames as they come; from the thread that made it."""

    def __init__(self, title: str) -> None:
        """Open a window. Raises MissingDependency for an OpenCV without windows, or without a screen."""
        cv2: Any = require("cv2", step="infer --display")
        self._cv2, self._title = cv2, title
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as cause:
            raise MissingDependency(
                f"OpenCV {cv2.__version__} cannot open a window: built without them, or there is no screen.\n"
                "Leave out `--display`, or install opencv-python instead of opencv-python-headless."
            ) from cause

    def show(self, pixels: NDArray[np.uint8]) -> bool:
        """Show pixels (H, W, 3), red, green, blue; returns False once the user types q or Esc."""
        self._cv2.imshow(self._title, pixels[..., ::-1])
        return self._cv2.waitKey(1) & 0xFF not in (ord("q"), 27)

    def close(self) -> None:
        """Close it."""
        self._cv2.destroyWindow(self._title)
