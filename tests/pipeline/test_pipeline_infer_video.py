"""`infer` on videos and cameras: all frames in order, few of them in memory, and a clean end whatever ends it."""

from __future__ import annotations

import _thread
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from msn_deploy.cli.infer import command
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline.flow import DEPTH
from msn_deploy.pipeline.infer import infer

COLOURS = [(0, 0, 255), (0, 255, 0), (255, 0, 0)]  # OpenCV's order
LABELS = ["red", "green", "blue"]


@pytest.fixture
def camera(monkeypatch, tmp_path):
    """An OpenCV whose videos have `count` frames; `broken` cannot be read, and `at` calls what happens at a frame."""
    told = SimpleNamespace(count=60, broken=(), at={}, read=0, released=0, shown=[])

    class Capture:
        def __init__(self, *arguments):
            told.read = 0

        def read(self):
            number, told.read = told.read, told.read + 1
            told.at.get(number, lambda: None)()
            if number >= told.count or number in told.broken:
                return False, None
            return True, np.full((6, 8, 3), COLOURS[number % 3], np.uint8)

        def get(self, what):
            return told.count

        def release(self):
            told.released += 1

    def show(title, pixels):
        told.shown.append(pixels.shape)

    cv2 = SimpleNamespace(
        VideoCapture=Capture, getBuildInformation=lambda: "GStreamer: NO", CAP_PROP_FRAME_COUNT=7, WINDOW_NORMAL=0,
        namedWindow=lambda title, kind: None, imshow=show, waitKey=lambda ms: 27 if len(told.shown) == 5 else -1,
        destroyWindow=lambda title: told.shown.append("closed"), error=RuntimeError,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    monkeypatch.chdir(tmp_path)
    Path("film.mp4").write_bytes(b"x")
    before = threading.active_count()
    yield told
    assert threading.active_count() == before, "no thread is left"
    assert told.released == 1


def labels(answers):
    return [told.answer.guesses[0].label if told.answer else "" for told in answers]


def test_all_frames_come_in_order_and_few_are_read_ahead(camera, colours):
    ahead, answers = [], []
    for told in infer(colours, [Path("film.mp4")], threads=1):
        answers.append(told)
        ahead.append(camera.read - len(answers))
    assert [told.image for told in answers] == [f"film.mp4#{at}" for at in range(60)]
    assert labels(answers) == LABELS * 20
    assert max(ahead[:-30]) <= 3 * (DEPTH + 1) + 1  # at the end, reads that find nothing count too


def test_a_broken_frame_costs_no_other(camera, colours):
    camera.broken = (7, 8)
    answers = list(infer(colours, [Path("film.mp4")], threads=1))
    assert [told.image for told in answers] == [f"film.mp4#{at}" for at in range(60)]
    assert [at for at, told in enumerate(answers) if told.error] == [7, 8]
    assert labels(answers)[9:12] == LABELS


def test_whoever_stops_asking_frees_the_camera(camera, colours):
    answers = infer(colours, ["camera:0"], threads=1)
    assert labels([next(answers), next(answers)]) == LABELS[:2]
    answers.close()


def test_frames_are_drawn_at_any_time_but_only_if_asked_for(camera, colours, tmp_path):
    camera.count = 4
    answers = list(infer(colours, ["film.mp4"], save=tmp_path / "out", draw=True, threads=1))
    assert [told.drawn.shape for told in answers] == [(6, 8, 3)] * 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"film.mp4-{at:06d}.png" for at in range(4)]


def run(model, *images, **options):
    given = {"save": None, "display": False, "threads": 1, "trust": False, "plugins": None, "json": None, **options}
    command(model, list(images), **given)


def test_a_camera_that_vanishes_ends_with_what_is_known(camera, colours, capsys):
    camera.count = 12
    with pytest.raises(InputError, match=r"1 of 13 images failed, the first: camera:0 is gone: it gave 12 frames"):
        run(colours, "camera:0")
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 12
    assert "13 frames in " in printed.err
    assert "the bottleneck is " in printed.err


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_camera_cleanly(camera, colours, capsys, tmp_path):
    camera.count = 10**6
    stopped = threading.Event()

    def interrupt():
        _thread.interrupt_main()
        stopped.wait(0.05)

    camera.at[20] = interrupt
    run(colours, "camera:0", json=tmp_path / "answers.json")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("camera")] == [
        f"camera:0#{at}" for at in range(sum(line.startswith("camera") for line in lines))
    ]
    written = json.loads((tmp_path / "answers.json").read_text())
    assert [each["label"] for each in written] == (LABELS * 8)[: len(written)]


def test_a_window_shows_frames_until_a_key_is_typed(camera, colours, capsys):
    run(colours, "camera:0", display=True)
    assert camera.shown == [(6, 8, 3)] * 5 + ["closed"]


def test_a_window_for_images_is_refused(colours, monkeypatch):
    with pytest.raises(InputError, match="--display shows videos and cameras"):
        run(colours, "a.png", display=True)
