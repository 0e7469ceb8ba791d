"""Videos and cameras: what OpenCV is asked for, and what comes of broken frames and of cameras that vanish."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.data.video import Window, arguments_for, frames, pipeline_for, video_source


def opencv(monkeypatch, reads=(), *, gstreamer=False, promised=0.0):
    """A stand-in for OpenCV that gives these reads: a grey level, or None for a frame that cannot be read."""
    seen = SimpleNamespace(opened=[], released=0, shown=[])

    class Capture:
        def __init__(self, *arguments):
            seen.opened.append(arguments)
            self.left = list(reads)

        def read(self):
            level = self.left.pop(0) if self.left else None
            return (False, None) if level is None else (True, np.full((4, 6, 3), (level, 0, 9), np.uint8))

        def get(self, what):
            assert what == 7
            return promised

        def release(self):
            seen.released += 1

    def named_window(title, kind):
        if not gstreamer:
            raise cv2.error("The function is not implemented")

    def shown(title, pixels):
        seen.shown.append(pixels)

    cv2 = SimpleNamespace(
        __version__="4.12.0", VideoCapture=Capture, CAP_GSTREAMER=1800, CAP_FFMPEG=1900, CAP_PROP_FRAME_COUNT=7,
        getBuildInformation=lambda: f"  Video I/O:\n    GStreamer:    {'YES (1.20.3)' if gstreamer else 'NO'}\n",
        error=type("error", (Exception,), {}), namedWindow=named_window, WINDOW_NORMAL=0, imshow=shown,
        waitKey=lambda ms: ord("q") if len(seen.shown) == 2 else -1, destroyWindow=lambda title: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return cv2, seen


def test_what_names_a_video():
    kinds = {
        "film.MP4": "file", "a/b.mkv": "file", "camera:0": "camera", "argus:1": "argus", "rtsp://cam/live": "rtsp",
        "rtsp:/cam/live": "rtsp", "rtsps://10.0.0.2:8554/a?b=1": "rtsp", "a.png": None, "photos": None,
        "camera.png": None,
    }  # fmt: skip
    assert {text: (found := video_source(text)) and found.kind for text in kinds} == kinds


@pytest.mark.parametrize(
    "text",
    [
        "camera:", "camera:x", "camera:/dev/video0", "argus:-1", "camera:1234", "rtsp://", "rtsp:///x",
        'rtsp://a/b" ! filesink location=x', "rtsp://a/b ! fakesink", "rtsp://a/'b", "rtsp://a/b\\c", "rtsp://a/b\nc",
    ],
)  # fmt: skip
def test_what_is_not_a_camera_or_address_never_reaches_opencv(text):
    with pytest.raises(InputError, match=r"does not name a camera|not one of RTSP"):
        video_source(text)


def test_a_password_is_not_shown():
    found = video_source("rtsp://me:secret@cam:554/live?token=abc")
    assert found.text == "rtsp://me:secret@cam:554/live?token=abc"
    assert (found.shown, found.file_name) == ("rtsp://cam:554/live", "rtsp-cam-554-live")


def test_opencv_without_gstreamer_is_asked_for_devices_and_addresses(monkeypatch, tmp_path):
    cv2, _ = opencv(monkeypatch)
    assert arguments_for(video_source("camera:2"), cv2) == (2,)
    assert arguments_for(video_source("rtsp://cam/live"), cv2) == ("rtsp://cam/live", 1900)
    film = str(tmp_path / "film.mp4")
    assert arguments_for(video_source(film), cv2) == (film,)
    with pytest.raises(MissingDependency, match=r"built without it[\s\S]*python3-opencv"):
        arguments_for(video_source("argus:0"), cv2)


def test_opencv_with_gstreamer_is_given_its_pipelines(monkeypatch):
    cv2, _ = opencv(monkeypatch, gstreamer=True)
    end = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    wanted = {
        "camera:2": f"v4l2src device=/dev/video2 ! decodebin ! {end}",
        "argus:1": (
            f"nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM) ! nvvidconv ! video/x-raw,format=BGRx ! {end}"
        ),
        "rtsp://cam/live": f'rtspsrc location="rtsp://cam/live" latency=200 ! decodebin ! {end}',
    }
    for text, pipeline in wanted.items():
        assert arguments_for(video_source(text), cv2) == (pipeline, 1800)
        assert pipeline_for(video_source(text)) == pipeline
    assert arguments_for(video_source("film.mp4"), cv2)[0].endswith("film.mp4")


def levels(found):
    return [str(each) if isinstance(each, InputError) else int(each[0, 0, 2]) for each in found]


def test_frames_of_a_file_come_with_red_first(monkeypatch):
    _, seen = opencv(monkeypatch, [1, 2, 3])
    found = list(frames(video_source("film.mp4")))
    assert [each[0, 0].tolist() for each in found] == [[9, 0, 1], [9, 0, 2], [9, 0, 3]]
    assert found[0].flags.c_contiguous
    assert seen.released == 1


def test_a_broken_frame_costs_no_other(monkeypatch):
    _, seen = opencv(monkeypatch, [1, None, None, 4, 5])
    one, second, third, *others = levels(frames(video_source("film.mp4")))
    assert (one, others) == (1, [4, 5])
    assert ("film.mp4#1 cannot be read" in second, "film.mp4#2 cannot be read" in third) == (True, True)
    assert seen.released == 1


def test_a_file_that_ends_early_is_noted(monkeypatch, caplog):
    opencv(monkeypatch, [1, 2], promised=2000.0)
    with caplog.at_level(logging.WARNING):
        assert levels(frames(video_source("film.mp4"))) == [1, 2]
    assert "says that it has 2000 frames; 2 could be read" in caplog.text


@pytest.mark.parametrize(("reads", "told"), [([], "gives no frames"), ([1, 2], "is gone: it gave 2 frames")])
def test_a_camera_that_vanishes_says_so(monkeypatch, reads, told):
    _, seen = opencv(monkeypatch, reads)
    *before, last = levels(frames(video_source("camera:0")))
    assert before == reads
    assert told in last
    assert seen.released == 1


def test_whoever_stops_looking_frees_the_camera(monkeypatch):
    _, seen = opencv(monkeypatch, [1] * 100)
    found = frames(video_source("camera:0"))
    next(found)
    found.close()
    assert seen.released == 1


def test_a_window_shows_blue_first_and_ends_with_a_key(monkeypatch):
    _, seen = opencv(monkeypatch, gstreamer=True)
    window = Window("x")
    assert window.show(np.full((2, 2, 3), (1, 2, 3), np.uint8))
    assert not window.show(np.zeros((2, 2, 3), np.uint8))
    assert seen.shown[0][0, 0].tolist() == [3, 2, 1]
    window.close()


def test_an_opencv_without_windows(monkeypatch):
    opencv(monkeypatch)
    with pytest.raises(MissingDependency, match=r"cannot open a window[\s\S]*opencv-python"):
        Window("x")
