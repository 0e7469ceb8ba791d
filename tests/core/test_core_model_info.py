"""The metadata that travels inside model files."""

from __future__ import annotations

import json
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
        ("", "JSONDecodeError"),
        ("not json", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("7", "TypeError"),
        ("{}", "schema"),
        (_with(schema=2), "schema 2"),
        (_with(net=None), "net"),
        (_with(classes=None), "classes"),
        (_with(classes=5), "TypeError"),
        (_with(surprise=1), "surprise"),
        (_with(recipe=[1, 2]), "TypeError"),
        (_with(preprocess="none"), "preprocess|mapping|TypeError"),
        (_with(preprocess={"channels": 2}), "2 channels"),
        (_with(preprocess={"mean": [0.1]}), "3 numbers"),
        (_with(preprocess={"mean": ["a", "b", "c"]}), "TypeError"),
        (_with(preprocess={"mean": [0.1, 0.2, float("nan")]}), "3 numbers"),
        (_with(preprocess={"std": [0.1, 0.0, 0.2]}), "std above 0"),
        (_with(preprocess={"std": [0.1, float("nan"), 0.2]}), "std above 0"),
        (_with(preprocess={"height_px": 0}), "0x48"),
        (_with(preprocess={"height_px": "32"}), "TypeError"),
    ],
)
def test_damaged_metadata_names_source_and_cause(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        info_from_json(text, source="net.onnx")
    assert str(caught.value).startswith("net.onnx holds damaged metadata")
