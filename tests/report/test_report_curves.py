"""Charts: the same bytes each time, and every line and label in them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.report.curves import line_chart, write_curves
from msn_deploy.report.page import LIGHT
from msn_deploy.report.plots import Panel

PANELS = [
    Panel(title="Loss", x="epoch", y="nats", lines={"bn": [(1, 2.0), (2, 0.1)], "msn": [(1, 3.0), (2, 0.2)]}, log=True),
    Panel(title="Accuracy", x="epoch", y="share", lines={"bn": [(1, 0.5), (2, 0.9)]}),
    Panel(title="Drift", x="step", y="of a deviation", lines={"other": [(0, 0.1), (40, 0.4)]}),
]


def test_a_chart_has_the_same_bytes_each_time() -> None:
    assert line_chart(PANELS) == line_chart(PANELS)
    assert line_chart(PANELS) != line_chart(PANELS[:2])


def test_lines_have_the_colours_of_the_pages() -> None:
    picture = np.asarray(Image.open(BytesIO(line_chart(PANELS))).convert("RGB")).reshape(-1, 3)
    for colour in ("c0", "c1"):
        assert (picture == list(bytes.fromhex(LIGHT[colour][1:]))).all(axis=1).sum() > 50, colour


def test_a_trainings_curves_are_a_picture(tmp_path: Path) -> None:
    history = [{"epoch": at, "train_loss": 1.0 / at, "test_accuracy": 0.9, "seconds": 3.0} for at in (1, 2, 3)]
    write_curves(history, tmp_path / "a.curves.png")
    picture = np.asarray(Image.open(BytesIO((tmp_path / "a.curves.png").read_bytes())).convert("RGB"))
    assert picture.std() > 5
    assert picture.shape[1] > picture.shape[0]
    assert read_sidecar(tmp_path / "a.curves.png").kind == "curves"
    write_curves(json.loads(json.dumps(history[:1])), tmp_path / "one.png")
