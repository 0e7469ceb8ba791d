"""What a set of images is like, in one line, and what of it a network does not see."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msn_deploy.data import load_split
from msn_deploy.data.sources import is_as_recorded
from msn_deploy.data.survey import measured_levels, survey_arrays, survey_files

RNG = np.random.default_rng(8)
GREY = {"height_px": 4, "width_px": 3, "channels": 1}


def _write(folder: Path, *images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{at}.png" for at in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def _colour(height: int = 5, width: int = 6, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_sizes_kinds_and_what_is_transparent(tmp_path: Path) -> None:
    files = _write(tmp_path, _colour(), _colour(40, 50), _colour(9, 9, 4))
    found = survey_files(files, channels=3, levels=None)
    assert found.stored == "6x5 to 50x40 RGB, RGBA; 1 can be transparent: what is behind them is white"
    assert found.warnings == ()


def test_colour_that_a_network_does_not_see_is_warned_of(tmp_path: Path) -> None:
    grey = np.repeat(_colour(channels=1), 3, axis=2)
    files = _write(tmp_path, _colour(), grey, _colour())
    (warning,) = survey_files(files, channels=1, levels=None).warnings
    assert "2 of 3" in warning
    assert survey_files(files, channels=3, levels=None).warnings == ()
    assert survey_files(files[1:2], channels=1, levels=None).warnings == ()
    assert survey_arrays(np.stack([_colour()]), channels=1).warnings
    assert survey_arrays(np.stack([grey]), channels=1).warnings == ()
    assert survey_arrays(grey[np.newaxis, ..., 0], channels=1).stored == "6x5 grey"


def test_levels_are_measured_over_all_files_and_a_narrow_range_is_warned_of(tmp_path: Path) -> None:
    files = _write(tmp_path, *(np.full((4, 3), value, dtype=np.uint16) for value in (100, 800, 4000)), _colour())
    assert measured_levels(files) == (0, 4095)
    assert measured_levels(files[3:]) is None
    assert survey_files(files, channels=3, levels=(0, 4095)).warnings == ()
    (warning,) = survey_files(files, channels=3, levels=(0, 65535)).warnings
    assert "leaves 16 of 256" in warning


def test_both_splits_are_read_by_the_same_levels_which_are_recorded(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "a", np.full((4, 3), 4000, dtype=np.uint16))
    _write(tmp_path / "test" / "a", np.full((4, 3), 1000, dtype=np.uint16))
    train, test = (load_split(str(tmp_path), split, **GREY) for split in ("train", "test"))
    assert (train.images[0, 0, 0, 0], test.images[0, 0, 0, 0]) == (249, 62)  # of 4095
    assert test.read["levels"] == [0, 4095]
    assert is_as_recorded(test.as_parent()) is True
    stated = load_split(str(tmp_path), "test", levels=(0, 1000), **GREY)
    assert stated.images[0, 0, 0, 0] == 255
    assert is_as_recorded(stated.as_parent()) is True
    assert stated.sha256() != test.sha256()


def test_a_data_set_is_described_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        _write(tmp_path / name, *(_colour(40, 50) for _ in range(3)))
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "none").mkdir()
    with caplog.at_level(logging.INFO, logger="msn_deploy"):
        load_split(str(tmp_path), "train", **GREY)
    line, empty, colour = caplog.records
    assert line.getMessage() == "train: 4 images, 2 classes, 50x40 RGB -> 3x4 grey (left out: 1 hidden or system file)"
    assert (line.levelno, hasattr(line, "note")) == (logging.INFO, True)
    assert "no image in none" in empty.getMessage()
    assert "colour is thrown away: 4 of 4" in colour.getMessage()
