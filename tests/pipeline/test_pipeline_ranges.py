"""The calibration cache: found only where every part is the same, and told which part is not."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.pipeline.ranges import PARTS, cache_folder, entry_path, look_up, store

KEY: dict[str, Any] = {
    "model": "a" * 64,
    "images": "b" * 64,
    "samples": {"count": 256, "seed": None},
    "preprocessing": {"height_px": 28, "mean": (0.13,)},
    "method": {"name": "percentile", "percentile": 99.99},
    "tensors": ["input", "relu"],
    "versions": {"calibrator": 1, "onnxruntime": "1.20", "numpy": "2.1"},
}
RANGES = {"input": 0.1 + 0.2, "relu": 1 / 3}
FLIPS: list[tuple[str, Any, str]] = [
    ("model", "c" * 64, "model changed (aaaaaaaa -> cccccccc)"),
    ("images", "c" * 64, "images changed (bbbbbbbb -> cccccccc)"),
    ("samples", {"count": 128, "seed": None}, "samples changed (count 256 -> 128)"),
    ("samples", {"count": 256, "seed": 1}, "samples changed (seed None -> 1)"),
    ("preprocessing", {"height_px": 28, "mean": (0.5,)}, "preprocessing changed (mean [0.13] -> (0.5,))"),
    ("method", {"name": "mse"}, "method changed (name percentile -> mse, percentile 99.99 -> None)"),
    ("method", {"name": "percentile", "percentile": 99.9}, "method changed (percentile 99.99 -> 99.9)"),
    ("tensors", ["input"], "tensors changed"),
    ("versions", {**KEY["versions"], "calibrator": 2}, "versions changed (calibrator 1 -> 2)"),
    ("versions", {**KEY["versions"], "onnxruntime": "1.23"}, "versions changed (onnxruntime 1.20 -> 1.23)"),
    ("versions", {**KEY["versions"], "numpy": "2.2"}, "versions changed (numpy 2.1 -> 2.2)"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_was_stored_is_found_to_the_bit(home: Path) -> None:
    assert look_up(KEY).entry is None
    assert look_up(KEY).said == "no cached scales for this model"
    assert not home.exists()  # looking leaves nothing behind
    store(KEY, {"ranges": RANGES, "drift": [{"images": 16}]})
    found = look_up(deepcopy(KEY))
    assert found.entry is not None
    assert found.entry.ranges == RANGES
    assert found.entry.drift == ({"images": 16},)
    assert found.said == f"scales from cache {entry_path(KEY)}"
    assert entry_path(KEY).parent == cache_folder() == home / "calibration"


@pytest.mark.parametrize(("part", "value", "words"), FLIPS, ids=[f"{part}-{at}" for at, (part, *_) in enumerate(FLIPS)])
def test_each_part_flipped_once_is_a_miss_that_names_it(part: str, value: Any, words: str) -> None:
    store(KEY, {"ranges": RANGES})
    found = look_up({**KEY, part: value})
    assert found.entry is None
    assert found.said == f"no cached scales fit: {words}"


def test_every_part_is_flipped() -> None:
    assert {part for part, *_ in FLIPS} == set(PARTS) == set(KEY)


def test_the_nearest_entry_is_the_one_to_compare_with() -> None:
    store({**KEY, "method": {"name": "mse"}, "images": "d" * 64}, {"ranges": RANGES})
    store({**KEY, "method": {"name": "minmax"}}, {"ranges": RANGES})
    store({**KEY, "model": "e" * 64, "images": "f" * 64}, {"ranges": RANGES})
    said = look_up(KEY).said
    assert said == "no cached scales fit: method changed (name minmax -> percentile, percentile None -> 99.99)"
    other = {**KEY, "model": "9" * 64, "images": "8" * 64}
    assert look_up(other).said == "no cached scales for this model"


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "range", "seal", "list", "schema", "folder"])
def test_a_damaged_entry_is_a_miss_with_a_warning(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store(KEY, {"ranges": RANGES})
    path = entry_path(KEY)
    content = path.read_text()
    value = json.loads(content)
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {
            "empty": "",
            "cut": content[: len(content) // 2],
            "text": "scales",
            "range": content.replace(str(RANGES["relu"]), "0.5"),
            "seal": json.dumps({**value, "seal": "0"}),
            "list": json.dumps([value]),
            "schema": json.dumps({**value, "schema": 2}),
        }[damage]
        assert changed != content
        path.write_text(changed)
    assert look_up(KEY).entry is None
    assert f"calibration cache {path} is damaged" in caplog.text
    if damage != "folder":
        store(KEY, {"ranges": RANGES})
        assert look_up(KEY).entry is not None


def test_a_home_that_cannot_be_written_is_a_warning(
    below_a_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(below_a_file))
    store(KEY, {"ranges": RANGES})
    assert "the scales are not cached" in caplog.text
    assert look_up(KEY).entry is None
