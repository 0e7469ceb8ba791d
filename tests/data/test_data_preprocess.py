"""From pixels to the numbers that a network takes."""

from __future__ import annotations

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.data import to_input
from msn_deploy.data.preprocess import measured_preprocess


def test_to_input_by_hand() -> None:
    images = np.array([[[[0, 51, 255], [102, 204, 153]]]], dtype=np.uint8)  # one image, 1 x 2 pixels, RGB
    prep = Preprocess(height_px=1, width_px=2, channels=3, mean=(0.5, 0.2, 0.0), std=(0.25, 0.5, 2.0))
    got = to_input(images, prep)
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 1, 2)
    assert got.flags.c_contiguous
    expected = [[(0.0 - 0.5) / 0.25, (0.4 - 0.5) / 0.25], [(0.2 - 0.2) / 0.5, (0.8 - 0.2) / 0.5], [1 / 2, 0.6 / 2]]
    np.testing.assert_allclose(got[0, :, 0], expected, atol=1e-6)


def test_images_of_another_shape_are_refused() -> None:
    prep = Preprocess(height_px=4, width_px=5, channels=1, mean=(0.5,), std=(0.5,))
    for shape in ((2, 5, 4, 1), (2, 4, 5, 3), (2, 4, 5)):
        with pytest.raises(InputError, match=r"do not fit preprocessing to \(4, 5, 1\)"):
            to_input(np.zeros(shape, dtype=np.uint8), prep)


@pytest.mark.parametrize("channels", [1, 3])
def test_measured_preprocess_gives_mean_0_and_deviation_1(channels: int) -> None:
    rng = np.random.default_rng(11)
    spread = np.array([30, 90, 200])[:channels]
    images = (rng.random((40, 6, 5, channels)) * spread + 20).astype(np.uint8)
    prep = measured_preprocess(images)
    assert (prep.height_px, prep.width_px, prep.channels) == (6, 5, channels)
    got = to_input(images, prep).astype(np.float64)
    np.testing.assert_allclose(got.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(got.std(axis=(0, 2, 3)), 1, atol=1e-4)


def test_constant_images_do_not_divide_by_zero() -> None:
    images = np.full((3, 2, 2, 1), 77, dtype=np.uint8)
    got = to_input(images, measured_preprocess(images))
    np.testing.assert_allclose(got, 0, atol=1e-3)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_order_and_layout(colour: str, layout: str) -> None:
    """Caffe's numbers, which are in the order of the network: blue, green, red of 0 to 255."""
    mean, std = np.array([103.939, 116.779, 123.68]), np.array([1.0, 2.0, 58.4])
    prep = Preprocess(
        height_px=3, width_px=5, channels=3, mean=tuple(mean / 255), std=tuple(std / 255), colour=colour, layout=layout
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, prep.image_size["channels"]), dtype=np.uint8)
    got = to_input(images, prep)
    assert got.shape[1:] == prep.shape == ((3, 3, 5) if layout == "NCHW" else (3, 5, 3))
    assert got.flags.c_contiguous
    for sample in np.ndindex(4, 3, 5, 3):
        n, y, x, c = sample
        pixel = images[n, y, x, {"rgb": c, "bgr": 2 - c, "grey": 0}[colour]]
        value = got[n, c, y, x] if layout == "NCHW" else got[n, y, x, c]
        assert value == pytest.approx((float(pixel) - mean[c]) / std[c], abs=1e-4)  # of 255


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_inputs_of_bytes_get_the_bytes(layout: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    size = {"height_px": 3, "width_px": 5, "channels": 3, "layout": layout, "colour": "bgr"}
    prep = Preprocess(**size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    got = to_input(images, prep, "uint8")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, to_input(images, prep).round())
    with pytest.raises(InputError, match="an input of bytes takes 0 to 255"):
        to_input(images, Preprocess(**size, mean=(0.0,) * 3, std=(1.0,) * 3), "uint8")
