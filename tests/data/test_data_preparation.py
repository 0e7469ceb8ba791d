"""What a user states of how images are prepared, and what comes of it for an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess, TensorSpec
from msn_deploy.data import to_input
from msn_deploy.data.preparation import PRESETS, preparation, resolved

IMAGES = np.random.default_rng(4).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


def _resolved(
    preset: str | None = None,
    *,
    shape: tuple[int | None, ...] = (1, 3, 224, 224),
    dtype: str = "float32",
    was: Preprocess | None = None,
    **options: Any,
) -> Preprocess:
    told = preparation(preset, options)
    assert told is not None
    return resolved(told, TensorSpec("x", dtype, shape), was, model="net.onnx")


# (x - mean) / std of pixels on the range, as published: torchvision's IMAGENET1K weights, timm's IMAGENET_INCEPTION_*,
# ultralytics' predictor (/ 255), Caffe's VGG (BGR, means of 0 to 255, no deviation).
PUBLISHED = {
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "zero-one": lambda x: x / 255,
    "minus-one-one": lambda x: (x / 255 - 0.5) / 0.5,
    "yolo": lambda x: x / 255,
}
STATED = [
    *((preset, {}, published) for preset, published in PUBLISHED.items()),
    (None, {"range": "0..255"}, lambda x: x),
    (None, {"range": "-1..1"}, lambda x: x / 127.5 - 1),
    (None, {"range": "-1..1", "mean": (0.1,), "std": (0.5,)}, lambda x: (x / 127.5 - 1 - 0.1) / 0.5),
    (None, {"range": "0..255", "mean": (103.939, 116.779, 123.68), "colour": "bgr"},
     lambda x: x[..., ::-1] - [103.939, 116.779, 123.68]),
    ("imagenet", {"mean": (0.5, 0.5, 0.5)}, lambda x: (x / 255 - 0.5) / [0.229, 0.224, 0.225]),
    ("minus-one-one", {"std": (2.0,)}, lambda x: (x / 127.5 - 1) / 2),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "options", "published"), STATED)
def test_pixels_become_the_published_numbers(preset: str | None, options: dict[str, Any], published: Any) -> None:
    got = to_input(IMAGES, _resolved(preset, **options))
    wanted = published(IMAGES.astype(np.float64)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "options", "wanted"),
    [
        ("imagenet", {}, {"fit": "crop", "short_px": 256}),
        ("imagenet", {"short_side": 232, "interpolation": "bicubic"},
         {"fit": "crop", "short_px": 232, "interpolation": "bicubic"}),
        ("imagenet", {"fit": "stretch"}, {"fit": "resize"}),
        ("yolo", {}, {"fit": "letterbox", "fill": 114}),
        ("yolo", {"align": "corner", "colour": "bgr"},
         {"fit": "letterbox", "fill": 114, "align": "corner", "colour": "bgr"}),
        ("yolo", {"fit": "crop"}, {"fit": "crop"}),
        ("zero-one", {}, {"fit": "resize"}),
        ("zero-one", {"fit": "pad", "fill": 5}, {"fit": "pad", "fill": 5}),
        ("zero-one", {"colour": "grey"}, {"fit": "resize", "colour": "grey"}),
    ],
)  # fmt: skip
def test_each_option_beats_the_preset(preset: str, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = _resolved(preset, **options).to_dict()
    assert {key: made[key] for key in set(made) - {"height_px", "width_px", "channels", "mean", "std"}} == wanted


def test_the_layout_is_that_of_the_input() -> None:
    assert _resolved("zero-one", shape=(None, 32, 48, 1)).shape == (32, 48, 1)
    assert _resolved("zero-one", shape=(None, 1, 32, 48)).shape == (1, 32, 48)


def test_what_a_file_said_before_stays_where_nothing_new_is_said() -> None:
    was = _resolved("yolo", range="0..255")
    assert _resolved(was=was, align="corner").to_dict() == was.to_dict() | {"align": "corner"}
    assert _resolved(was=was, fit="stretch").to_dict() == {
        key: value for key, value in was.to_dict().items() if key != "fill"
    } | {"fit": "resize"}
    assert _resolved("imagenet", was=was).to_dict() == _resolved("imagenet").to_dict()


def test_bytes_need_no_numbers() -> None:
    made = _resolved(dtype="uint8", shape=(1, 224, 224, 3), colour="bgr")
    np.testing.assert_array_equal(to_input(IMAGES, made, "uint8"), IMAGES[..., ::-1])
    assert _resolved(dtype="uint8", range="0..255").is_bytes
    with pytest.raises(InputError, match="takes bytes"):
        _resolved("imagenet", dtype="uint8")


def test_a_file_says_it_and_options_beat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preprocess = "imagenet"\ninterpolation = "bicubic"\nshort_side = 235\nmean = [0, 0.5, 1]\n')
    made = _resolved(str(path), short_side=240)
    assert (made.mean, made.std) == ((0.0, 0.5, 1.0), (0.229, 0.224, 0.225))
    assert (made.interpolation, made.short_px) == ("bicubic", 240)
    path.write_text('colr = "bgr"\n')
    with pytest.raises(InputError, match=r"mine\.toml: unknown key 'colr'"):
        preparation(str(path), {})


REFUSED: list[tuple[str | None, dict[str, Any], str]] = [
    ("imagenett", {}, "unknown preprocess 'imagenett'; did you mean"),
    (None, {"colour": "bgr"}, "not stated which numbers"),
    (None, {"mean": (123.675, 116.28, 103.53)}, r"outside of the range 0\.\.1"),
    (None, {"range": "255..0"}, "not LOW..HIGH"),
    (None, {"range": "1"}, "not LOW..HIGH"),
    (None, {"range": "nan..1"}, "not LOW..HIGH"),
    (None, {"mean": (0.1, 0.2)}, "mean has 2 numbers and the network 3 channels"),
    (None, {"std": (0.0,)}, "std above 0"),
    (None, {"range": "0..1", "fit": "squeeze"}, "unknown fit 'squeeze'"),
    (None, {"range": "0..1", "colour": "hsv"}, "unknown colour 'hsv'"),
    (None, {"range": "0..1", "interpolation": "lanczos"}, "unknown interpolation"),
    (None, {"range": "0..1", "short_side": 256}, "for a crop"),
    (None, {"range": "0..1", "fit": "crop", "short_side": 100}, "shorter side of 100"),
    (None, {"range": "0..1", "fill": 9}, "of the canvas"),
    (None, {"range": "0..1", "fit": "crop", "align": "corner"}, "of the canvas"),
    ("yolo", {"fill": 256}, "0 to 255"),
    ("imagenet", {"colour": "bgr"}, "red, green, blue"),
    ("imagenet", {"range": "0..255"}, "give `--mean` and `--std`"),
]


@pytest.mark.parametrize(("preset", "options", "why"), REFUSED)
def test_what_contradicts_itself_is_refused(preset: str | None, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        _resolved(preset, **options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3, None, None), "float32"), ((1, 16), "float32"), ((1, 4, 32, 32), "float32"), ((1, 3, 8, 8), "int64")],
)
def test_an_input_that_is_no_image_of_a_fixed_size_is_refused(shape: tuple[int | None, ...], dtype: str) -> None:
    with pytest.raises(InputError, match=r"net\.onnx takes .*images need"):
        _resolved("zero-one", shape=shape, dtype=dtype)


def test_a_preset_for_three_channels_does_not_fit_one() -> None:
    with pytest.raises(InputError, match="3 numbers and the network 1 channels"):
        _resolved("imagenet", shape=(1, 1, 224, 224))


def test_a_file_of_other_colours_needs_numbers_in_their_order() -> None:
    with pytest.raises(InputError, match="in the order rgb"):
        _resolved(was=_resolved("imagenet"), colour="bgr")


def test_nothing_said_is_nothing() -> None:
    assert preparation(None, {"mean": None}) is None
