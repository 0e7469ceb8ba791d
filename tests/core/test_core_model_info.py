"""The metadata that travels inside model files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess, info_from_json

INFO = ModelInfo(
    net="vgg7",
    norm="msn-affine",
    folded=True,
    classes=("cat", "dog", "été"),
    preprocess=Preprocess(height_px=32, width_px=48, channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    data="data/pets",
    recipe={"net": "vgg7", "train": {"epochs": 3}},
    metrics={"test_accuracy": 0.97},
)


def test_round_trip() -> None:
    assert info_from_json(INFO.to_json(), source="here") == INFO
    bare = ModelInfo(net="custom", norm="custom")
    assert info_from_json(bare.to_json(), source="here") == bare


def test_files_of_schema_1_mean_what_they_meant() -> None:
    old = json.loads(INFO.to_json()) | {"schema": 1}
    del old["task"], old["reading"]
    assert set(old["preprocess"]) == {"height_px", "width_px", "channels", "mean", "std", "fit"}  # as they had it
    assert info_from_json(json.dumps(old), source="here") == replace(INFO, task="classification")
    assert info_from_json(json.dumps(old | {"schema": 2, "classes": []}), source="here").task == ""
    prep = INFO.preprocess
    assert prep is not None
    assert (prep.fit, prep.colour, prep.layout, prep.interpolation) == ("resize", "rgb", "NCHW", "bilinear")


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": "letterbox", "fill": 114, "align": "corner", "colour": "bgr"},
        {"fit": "crop", "short_px": 56, "interpolation": "bicubic", "layout": "NHWC", "colour": "grey"},
    ],
)
def test_what_is_unusual_is_written_and_read_back(changes: dict[str, Any]) -> None:
    assert INFO.preprocess is not None
    info = replace(INFO, preprocess=replace(INFO.preprocess, **changes))
    assert info_from_json(info.to_json(), source="here") == info
    assert info.to_json() != INFO.to_json()


def test_a_task_and_how_it_is_read_are_kept() -> None:
    info = replace(INFO, task="detection", reading={"head": "yolov8", "score": 0.3})
    assert info_from_json(info.to_json(), source="here") == info


def test_equal_infos_give_equal_text() -> None:
    shuffled = json.dumps(dict(reversed(json.loads(INFO.to_json()).items())))
    assert info_from_json(shuffled, source="here").to_json() == INFO.to_json()


def test_with_precision_changes_nothing_else() -> None:
    changed = INFO.with_precision("int8")
    assert (INFO.precision, changed.precision) == ("fp32", "int8")
    assert changed.with_precision("fp32") == INFO


def _with(**changes: Any) -> str:
    value = json.loads(INFO.to_json())
    for key, item in changes.items():
        if item is None:
            del value[key]
        elif isinstance(item, dict):
            value[key] = {**value[key], **item}
        else:
            value[key] = item
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("not json", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "schema"),
        ("7", "schema"),
        ("{}", "schema None"),
        (_with(schema=4), "schema 4"),
        (_with(schema=[3]), r"schema \[3\]"),
        (_with(task="riddles"), "unknown task 'riddles'"),
        (_with(task=["detection"]), "task must be text"),
        (_with(reading=[1, 2]), "reading must be a section"),
        (_with(reading={"head": [1]}), "reading"),
        (_with(net=None), "net"),
        (_with(net=3), "net must be text, got 3"),
        (_with(precision=True), "precision must be text, got True"),
        (_with(folded="no"), "folded must be true or false"),
        (_with(data=["a", "b"]), "data must be text"),
        (_with(classes=5), "classes must be a list"),
        (_with(classes=[1, 2]), r"classes\[0\] must be text, got 1"),
        (_with(metrics={"a": {"b": {}}}), "metrics"),
        (_with(metrics={"a": "1"}), "metrics"),
        (_with(graph=7), "graph must be text"),
        (_with(surprise=1), "surprise"),
        (_with(recipe=[1, 2]), "recipe must be a section"),
        (_with(preprocess="none"), "preprocess must be a section"),
        (_with(preprocess={"channels": 2}), "2 channels"),
        (_with(preprocess={"mean": [0.1]}), "3 numbers"),
        (_with(preprocess={"mean": ["a", "b", "c"]}), r"mean\[0\] must be a number"),
        (_with(preprocess={"mean": [0.1, 0.2, float("nan")]}), "3 numbers|finite"),
        (_with(preprocess={"std": [0.1, 0.0, 0.2]}), "std above 0"),
        (_with(preprocess={"std": [0.1, float("nan"), 0.2]}), "std above 0|finite"),
        (_with(preprocess={"height_px": 0}), "0x48"),
        (_with(preprocess={"height_px": "32"}), "height_px must be a whole number"),
        (_with(preprocess={"height_px": 40_000, "width_px": 40_000}), "40000x40000 pixels are too large"),
        (_with(preprocess={"height_px": 2**62}), "pixels are too large"),
        (_with(preprocess={"fit": "squeeze"}), "letterbox or crop, not 'squeeze'"),
        (_with(preprocess={"colour": "grey!"}), "grey!"),
        (_with(preprocess={"layout": "CHWN"}), "CHWN"),
        (_with(preprocess={"interpolation": "lanczos"}), "lanczos"),
        (_with(preprocess={"fit": "letterbox", "align": "left"}), "left"),
        (_with(preprocess={"fit": "letterbox", "fill": 256}), "256"),
        (_with(preprocess={"fill": 7}), "of the canvas"),
        (_with(preprocess={"fit": "crop", "short_px": 47}), "shorter side of 47"),
        (_with(preprocess={"short_px": 64}), "shorter side of 64"),
    ],
)
def test_damaged_metadata_names_source_and_cause(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        info_from_json(text, source="net.onnx")
    assert str(caught.value).startswith("net.onnx holds damaged metadata")
