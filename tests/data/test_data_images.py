"""Image files and arrays, brought to the size and the channels of a network."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data.images import fit_images, read_image

COLOUR = np.random.default_rng(5).integers(0, 256, (6, 7, 3), dtype=np.uint8)
SIZE = {"height_px": 6, "width_px": 7}


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return (rgb.astype(np.float64) @ [0.299, 0.587, 0.114]).astype(np.int64)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm"])
def test_colour_comes_back_pixel_by_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(path)
    np.testing.assert_array_equal(read_image(path, channels=3, **SIZE), COLOUR)


def test_colour_to_gray_is_luminance(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    gray = read_image(tmp_path / "x.png", channels=1, **SIZE)
    assert gray.shape == (6, 7, 1)
    assert np.abs(gray[..., 0].astype(np.int64) - _luminance(COLOUR)).max() <= 1


def test_gray_to_colour_repeats_it(tmp_path: Path) -> None:
    Image.fromarray(COLOUR[..., 0]).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", channels=3, **SIZE)
    np.testing.assert_array_equal(image, np.repeat(COLOUR[..., :1], 3, axis=2))


def test_16_bits_per_pixel_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = np.arange(42, dtype=np.uint16).reshape(6, 7) * 1598
    Image.fromarray(deep).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", channels=1, **SIZE)[..., 0], np.rint(deep / 257))


def test_resizing_keeps_orientation_and_is_bilinear(tmp_path: Path) -> None:
    image = np.zeros((4, 8), dtype=np.uint8)
    image[:, 4:] = 200  # right half bright
    Image.fromarray(image).save(tmp_path / "x.png")
    small = read_image(tmp_path / "x.png", height_px=2, width_px=4, channels=1)
    assert small.shape == (2, 4, 1)
    assert small[0, 0] == 0
    assert small[0, 3] == 200
    assert 0 < small[0, 1] < small[0, 2] < 200
    np.testing.assert_array_equal(small[0], small[1])


def test_fit_images_matches_read_image(tmp_path: Path) -> None:
    stack = np.stack([COLOUR, COLOUR[::-1]])
    for at, image in enumerate(stack):
        Image.fromarray(image).save(tmp_path / f"{at}.png")
    for channels in (1, 3):
        size = {"height_px": 9, "width_px": 5, "channels": channels}
        fitted = fit_images(stack, **size)
        for at in range(2):
            np.testing.assert_array_equal(fitted[at], read_image(tmp_path / f"{at}.png", **size))


def test_fit_images_leaves_gray_of_the_right_size_as_it_is() -> None:
    gray = COLOUR[np.newaxis, ..., 0]
    np.testing.assert_array_equal(fit_images(gray, channels=1, **SIZE), gray[..., np.newaxis])


@pytest.mark.parametrize(
    "raw", [b"", b"hello, this is text", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "png-header"]
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "note.png").write_bytes(raw)
    with pytest.raises(InputError, match=r"note\.png is not a readable image"):
        read_image(tmp_path / "note.png", channels=1, **SIZE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp"])
def test_damage_anywhere_ends_in_an_image_or_in_our_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(path)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        for raw in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            path.write_bytes(raw)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's, about what it mends
                    image = read_image(path, channels=3, **SIZE)
            except InputError:
                refused += 1
            else:
                assert image.shape == (6, 7, 3)
    assert refused > len(whole) // 6  # at the least, half of the truncations


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_centres_an_image_unscaled_on_black(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (5, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    size = {"height_px": 8, "width_px": 9, "channels": channels, "fit": "pad"}
    wanted = np.zeros((8, 9, channels), dtype=np.uint8)
    wanted[1:6, 2:6] = pixels[..., None]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", **size), wanted)
    np.testing.assert_array_equal(fit_images(pixels[None], **size)[0], wanted)


def test_an_image_larger_than_the_canvas_is_not_cut(tmp_path: Path) -> None:
    Image.new("L", (9, 5)).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=r"a\.png: an image of 9x5 pixels can't be padded to 8x8[\s\S]*fit = \"resize\""
    ):
        read_image(tmp_path / "a.png", height_px=8, width_px=8, channels=1, fit="pad")


@pytest.mark.parametrize("fit", ["resize", "pad"])
@pytest.mark.parametrize("size", [(5, 4), (8, 9)])
def test_arrays_are_fitted_as_files_are(tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    for colour, channels in itertools.product((False, True), (1, 3)):
        image = rng.integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "a.png")
        wanted: dict[str, Any] = {"height_px": 8, "width_px": 9, "channels": channels, "fit": fit}
        one = read_image(tmp_path / "a.png", **wanted)
        np.testing.assert_array_equal(fit_images(np.stack([image, image]), **wanted), np.stack([one, one]))
