"""`train` and `study` with a recipe for another task than classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_data import write_rectangles

pytestmark = pytest.mark.slow


def test_train_says_the_metric_of_the_task(ok: Any, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path, count=20)
    small = ("--set", "width=2", "--set", "input_shape=[1, 3, 32, 32]", "--data", data, "--epochs", 1)
    out = ("--batch-size", 4, "--out", tmp_path / "run")
    outcome = ok("train", "unet_msn", *small, *out, "--json", "-")
    told = json.loads(outcome.out)
    assert (told["metric"], told["accuracy"]) == ("test_mIoU", None)
    assert told["value"] == told["history"][0]["test_mIoU"]
    said = ok("train", "unet_msn", *small, *out, "--overwrite").out
    assert f"test mIoU {told['value']:.2%}" in said


def test_a_study_is_of_classifiers(cli: Any, tmp_path: Path) -> None:
    outcome = cli("study", "unet_msn", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "unet_msn is for segmentation; `study` looks at classifiers" in outcome.err
    assert not (tmp_path / "out").exists()
