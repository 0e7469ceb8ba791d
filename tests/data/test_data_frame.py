"""Images on their way to a network's size, against sums written out here; no line is shared with what is tested."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.frame import framed, scaled_size
from msn_deploy.data.images import fit_images, read_image


def _weights(old: int, new: int, kind: str) -> np.ndarray:
    """Return the (new, old) matrix of a resampling: a kernel as wide as a pixel of the smaller of both images."""
    scale = old / new
    matrix = np.zeros((new, old))
    for at in range(new):
        centre = (at + 0.5) * scale
        if kind == "nearest":
            matrix[at, math.floor(centre)] = 1
            continue
        stretch = max(scale, 1.0)
        away = np.abs(np.arange(old) + 0.5 - centre) / stretch
        if kind == "bilinear":
            kernel = np.clip(1 - away, 0, None)
        else:  # Keys' cubic with a = -0.5
            near = 1.5 * away**3 - 2.5 * away**2 + 1
            far = -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
            kernel = np.where(away < 1, near, np.where(away < 2, far, 0))
        matrix[at] = kernel / kernel.sum()
    return matrix


def _resized(image: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    """Across first, rounded to bytes, then down, as Pillow does it."""
    rows = np.einsum("vw,hwc->hvc", _weights(image.shape[1], width, kind), image)
    both = np.einsum("uh,hvc->uvc", _weights(image.shape[0], height, kind), _bytes(rows))
    return _bytes(both)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255)


def _expected(image: np.ndarray, size: dict[str, Any]) -> np.ndarray:
    want_h, want_w, kind = size["height_px"], size["width_px"], size.get("interpolation", "bilinear")
    h, w = image.shape[:2]
    if size["fit"] == "resize":
        return _resized(image, want_h, want_w, kind)
    if size["fit"] == "letterbox":
        ratio = min(want_h / h, want_w / w)
        small = _resized(image, round(h * ratio), round(w * ratio), kind)
        canvas = np.full((want_h, want_w, image.shape[2]), size.get("fill", 0), dtype=float)
        left_over = want_h - small.shape[0], want_w - small.shape[1]
        top, left = (0, 0) if size.get("align") == "corner" else (left_over[0] // 2, left_over[1] // 2)
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        return canvas
    if size.get("short_px"):
        short = size["short_px"]
        new_h, new_w = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
    else:
        ratio = max(want_h / h, want_w / w)
        new_h, new_w = round(h * ratio), round(w * ratio)
    large = _resized(image, new_h, new_w, kind)
    top, left = round((new_h - want_h) / 2.0), round((new_w - want_w) / 2.0)
    return large[top : top + want_h, left : left + want_w]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("shape", [(23, 34), (34, 23), (9, 7), (6, 30)])
@pytest.mark.parametrize(
    "how",
    [
        {"fit": "resize"},
        {"fit": "letterbox"},
        {"fit": "letterbox", "fill": 114, "align": "corner"},
        {"fit": "crop"},
        {"fit": "crop", "short_px": 19},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_every_fit_by_every_interpolation(
    tmp_path: Path, how: dict[str, Any], shape: tuple[int, int], interpolation: str
) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    size = {"height_px": 12, "width_px": 16, "channels": 3, "interpolation": interpolation, **how}
    Image.fromarray(image).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", **size)
    assert got.shape == (12, 16, 3)
    np.testing.assert_array_equal(got, fit_images(image[None], **size)[0])
    differences = np.abs(got - _expected(image, size))
    assert differences.max() <= 1  # Pillow rounds after each direction, and may go down first
    assert differences.mean() < 0.25


@pytest.mark.parametrize(
    ("width", "height", "how", "wanted"),
    [
        (500, 375, {"fit": "crop", "short_px": 256}, (341, 256)),  # torchvision.transforms.Resize(256): int(341.33)
        (375, 500, {"fit": "crop", "short_px": 232}, (232, 309)),
        (810, 1080, {"fit": "letterbox"}, (168, 224)),  # ultralytics' bus.jpg
        (1, 5000, {"fit": "letterbox"}, (1, 224)),
        (300, 100, {"fit": "crop"}, (672, 224)),
        (300, 100, {"fit": "resize"}, (224, 224)),
        (30, 10, {"fit": "pad"}, (30, 10)),
    ],
)
def test_sizes_before_padding_or_cropping(
    width: int, height: int, how: dict[str, Any], wanted: tuple[int, int]
) -> None:
    assert scaled_size(width, height, Frame(height_px=224, width_px=224, channels=3, **how)) == wanted


@pytest.mark.parametrize("how", [{"fit": "letterbox", "fill": 9}, {"fit": "crop"}, {"fit": "crop", "short_px": 8}])
def test_what_has_the_size_already_stays_as_it_is(how: dict[str, Any]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    got = fit_images(image, height_px=8, width_px=8, channels=1, **how)
    np.testing.assert_array_equal(got, image[..., None])


def test_a_crop_takes_a_centre_also_of_images_of_the_size_already() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    size = {"height_px": 8, "width_px": 8, "channels": 3, "fit": "crop", "short_px": 10}
    assert np.abs(fit_images(image, **size)[0] - _expected(image[0], size)).max() <= 1


def test_a_canvas_has_its_fill_and_its_corner() -> None:
    image = np.full((1, 2, 3, 3), 7, dtype=np.uint8)
    got = fit_images(image, height_px=4, width_px=5, channels=3, fit="pad", fill=99, align="corner")[0]
    wanted = np.full((4, 5, 3), 99)
    wanted[:2, :3] = 7
    np.testing.assert_array_equal(got, wanted)


def test_no_image_grows_beyond_what_is_decoded() -> None:
    """A crop scales the shorter side: of one pixel, each row would become thousands wide."""
    frame = Frame(height_px=256, width_px=256, channels=1, fit="crop", short_px=512)
    with pytest.raises(InputError, match="of 1x4000 pixels would be scaled to 512x2048000: it is too long"):
        framed(Image.new("L", (1, 4000)), frame)
