"""Image files as they are stored, compared with the pixels that the test wrote."""

from __future__ import annotations

import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import MOST_BYTES
from msn_deploy.data import decode
from msn_deploy.data.decode import SUFFIXES, levels_of, look_at, open_picture

RNG = np.random.default_rng(21)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.choice(np.array([0, 1, 77, 128, 254, 255], dtype=np.uint8), (5, 7))

# Where the pixel for display at row y, column x is stored, of height h and width w: EXIF 2.32, 4.6.4, Orientation.
ORIENTATIONS: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    1: lambda y, x, h, w: (y, x),  # row 0 is the top, column 0 the left
    2: lambda y, x, h, w: (y, w - 1 - x),  # top, right
    3: lambda y, x, h, w: (h - 1 - y, w - 1 - x),  # bottom, right
    4: lambda y, x, h, w: (h - 1 - y, x),  # bottom, left
    5: lambda y, x, h, w: (x, y),  # left, top
    6: lambda y, x, h, w: (w - 1 - x, y),  # right, top
    7: lambda y, x, h, w: (w - 1 - x, h - 1 - y),  # right, bottom
    8: lambda y, x, h, w: (x, h - 1 - y),  # left, bottom
}


def _stored(shown: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    height, width = shown.shape[:2]
    sides = (width, height) if orientation >= 5 else (height, width)
    stored = np.zeros((*sides, *shown.shape[2:]), dtype=np.uint8)
    for y, x in np.ndindex(height, width):
        stored[ORIENTATIONS[orientation](y, x, height, width)] = shown[y, x]
    return stored


def _read(path: Path) -> NDArray[np.uint8]:
    return open_picture(path).to_bytes()


def _over_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha.astype(np.float64) / 255
    if pixels.ndim == 3:
        share = share[..., None]
    return pixels * share + 255 * (1 - share)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(path: Path, rows: list[bytes], *, size: tuple[int, int], depth: int, colour: int, extra: bytes = b"") -> None:
    """Write a PNG by hand: of depths and colour types that Pillow does not write."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


def _tiff(path: Path, raw: bytes, tags: dict[int, tuple[str, int]], *, size: tuple[int, int]) -> None:
    """Write a little-endian TIFF by hand, in one strip; tags: of the format "H" or "I", with their values."""
    entries = {256: ("I", size[0]), 257: ("I", size[1]), 259: ("H", 1), 262: ("H", 1), 277: ("H", 1),
               278: ("I", size[1]), 279: ("I", len(raw)), **tags}  # fmt: skip
    entries[273] = ("I", 8 + 2 + 12 * (len(entries) + 1) + 4)
    body = b"".join(
        struct.pack("<HHI", tag, 3 if kind == "H" else 4, 1) + struct.pack("<" + kind, value).ljust(4, b"\0")
        for tag, (kind, value) in sorted(entries.items())
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4) + raw)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    blocks = np.kron(np.array([[0, 60, 120], [180, 255, 30]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    shown = np.repeat(blocks[..., None], 3, axis=2)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(_stored(shown, orientation)).save(path, exif=exif, **options)
    got = _read(path)
    assert got.shape == shown.shape
    np.testing.assert_allclose(got.astype(int), shown, atol=2 if suffix == "jpg" else 0)
    assert (look_at(path).height_px, look_at(path).width_px) == shown.shape[:2]


def test_a_compressed_tiff_is_turned_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(_stored(COLOUR, 6)).save(tmp_path / "x.tif", exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(_read(tmp_path / "x.tif"), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_alpha_is_laid_over_white(tmp_path: Path, suffix: str, grey: bool) -> None:
    pixels = GREY if grey else COLOUR
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.dstack([pixels, ALPHA])).save(path)
    np.testing.assert_allclose(_read(path), _over_white(pixels, ALPHA), atol=0.5)
    assert look_at(path).alpha


def test_black_strokes_on_a_transparent_ground_are_seen(tmp_path: Path) -> None:
    strokes = np.zeros((8, 8, 4), dtype=np.uint8)
    strokes[:, ::2, 3] = 255
    for suffix in ("png", "webp", "gif"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(strokes).save(path, **({"lossless": True} if suffix == "webp" else {}))
        got = _read(path).reshape(8, 8, -1)
        assert (got[:, ::2].max(), got[:, 1::2].min()) == (0, 255)


def test_a_palette_with_and_without_transparency(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    chosen = RNG.integers(0, 16, (5, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 5), chosen.tobytes())
    image.putpalette(colours.tobytes())
    for suffix in ("png", "gif", "bmp", "tif"):
        image.save(tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(_read(tmp_path / f"x.{suffix}"), colours[chosen])
    shares = RNG.integers(0, 256, 16, dtype=np.uint8)
    image.save(tmp_path / "x.png", transparency=shares.tobytes())
    np.testing.assert_allclose(_read(tmp_path / "x.png"), _over_white(colours[chosen], shares[chosen]), atol=0.5)
    for suffix in ("png", "gif"):
        image.save(tmp_path / f"x.{suffix}", transparency=3)
        wanted = np.where((chosen == 3)[..., None], 255, colours[chosen])
        np.testing.assert_array_equal(_read(tmp_path / f"x.{suffix}"), wanted)


def test_a_value_that_is_declared_transparent(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png", transparency=int(GREY[1, 2]))
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), np.where(GREY[1, 2] == GREY, 255, GREY))
    colours = COLOUR % 4  # many share a channel with the key, and some are the key
    Image.fromarray(colours).save(tmp_path / "x.png", transparency=(1, 2, 3))
    same = (colours == [1, 2, 3]).all(axis=2, keepdims=True)
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), np.where(same, 255, colours))
    deep = np.array([[0, 100, 4095]], dtype=np.uint16)
    rows = [deep.astype(">u2").tobytes()]
    _png(tmp_path / "x.png", rows, size=(3, 1), depth=16, colour=0, extra=_chunk(b"tRNS", struct.pack(">H", 0)))
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), [[255, 6, 255]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (5, 8))
    values[0, 0] = 2**bits - 1
    flags = ((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(5, -1)
    rows = [row.tobytes() for row in np.packbits(flags, axis=1)]
    _png(tmp_path / "x.png", rows, size=(8, 5), depth=bits, colour=0)
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), np.rint(values * (255 / (2**bits - 1))))


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_uses_the_bits_that_are_used(tmp_path: Path, suffix: str, white: int) -> None:
    values = (RNG.random((5, 7)) * white).astype(np.uint16)
    values[0, 0] = white - white // 8
    path = tmp_path / f"x.{suffix}"
    if suffix == "pgm":
        path.write_bytes(f"P5 7 5 {max(white, 256)} ".encode() + values.astype(">u2").tobytes())
        np.testing.assert_allclose(_read(path), values * (255 / max(white, 256)), atol=0.51)
        return
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(_read(path), np.rint(values * (255 / white)))
    np.testing.assert_array_equal(open_picture(path).to_bytes((0, 65535)), np.rint(values / 257))
    assert look_at(path).kind == "16-bit grey"
    assert look_at(path).deep


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.sampled_from([(0, 65535), (100, 3000)]))
@settings(max_examples=10, deadline=None)
def test_16_bits_by_stated_levels(values: NDArray[np.uint16], levels: tuple[int, int]) -> None:
    low, high = levels
    wanted = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255
    with TemporaryDirectory() as folder:
        Image.fromarray(values).save(Path(folder, "x.png"))
        np.testing.assert_allclose(open_picture(Path(folder, "x.png")).to_bytes(levels), wanted, atol=0.5001)


@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint32, 2**32 - 1), (np.uint32, 255), (np.int32, 4095), (np.int16, 1023)]
)
def test_whole_numbers_in_tiff(tmp_path: Path, dtype: type[np.integer], white: int) -> None:
    values = (RNG.random((5, 7)) * white).astype(dtype)
    values[0, 0] = white
    bits = values.dtype.itemsize * 8
    tags = {258: ("H", bits), 339: ("H", 1 if values.dtype.kind == "u" else 2)}
    _tiff(tmp_path / "x.tiff", values.tobytes(), tags, size=(7, 5))
    np.testing.assert_allclose(_read(tmp_path / "x.tiff"), values.astype(np.float64) * (255 / white), atol=0.501)
    if values.dtype.kind == "i":
        values -= 50
        _tiff(tmp_path / "x.tiff", values.tobytes(), tags, size=(7, 5))
        low, high = int(values.min()), int(values.max())
        wanted = (values.astype(np.float64) - low) * (255 / (high - low))
        np.testing.assert_allclose(_read(tmp_path / "x.tiff"), wanted, atol=0.501)


def test_12_bits_and_white_is_zero_are_stated_by_the_tiff(tmp_path: Path) -> None:
    values = RNG.integers(0, 200, (5, 8), dtype=np.uint16)  # dark, so that they do not tell the range
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, ((pairs[:, 0] & 15) << 4) | (pairs[:, 1] >> 8), pairs[:, 1] & 255], axis=1)
    _tiff(tmp_path / "x.tif", packed.astype(np.uint8).tobytes(), {258: ("H", 12)}, size=(8, 5))
    np.testing.assert_array_equal(_read(tmp_path / "x.tif"), np.rint(values * (255 / 4095)))
    _tiff(tmp_path / "x.tif", values.tobytes(), {258: ("H", 16), 262: ("H", 0)}, size=(8, 5))
    np.testing.assert_array_equal(_read(tmp_path / "x.tif"), np.rint((65535 - values.astype(np.float64)) / 257))
    Image.fromarray(values.astype(">u2")).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(open_picture(tmp_path / "x.tif").pixels, values)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-40.0, 90.0), (290.0, 310.0)])
def test_fractions_in_tiff(tmp_path: Path, low: float, high: float) -> None:
    values = np.linspace(low, high, 35, dtype=np.float32).reshape(5, 7)
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_allclose(_read(tmp_path / "x.tif"), (values - low) / (high - low) * 255, atol=0.501)
    got = open_picture(tmp_path / "x.tif").to_bytes((low - 1, high + 1))
    np.testing.assert_allclose(got, (values - low + 1) / (high - low + 2) * 255, atol=0.501)


def test_fractions_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = np.ones((5, 7), dtype=np.float32)
    values[2, 2] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: 1 of 35 values"):
        open_picture(tmp_path / "x.tif")


def test_levels_are_of_all_images_together(tmp_path: Path) -> None:
    for at, highest in enumerate((200, 900, 3000)):
        Image.fromarray(np.full((2, 2), highest, dtype=np.uint16)).save(tmp_path / f"{at}.png")
    pictures = [open_picture(tmp_path / f"{at}.png") for at in range(3)]
    assert levels_of(pictures) == (0, 4095)
    assert [levels_of([each]) for each in pictures] == [(0, 255), (0, 1023), (0, 4095)]


def test_16_bits_per_colour_give_their_upper_half_or_an_error(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = [row.astype(">u2").tobytes() for row in values]
    _png(tmp_path / "x.png", rows, size=(7, 5), depth=16, colour=2)
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), values >> 8)
    rows = [(row >> 4).astype(">u2").tobytes() for row in values]
    _png(tmp_path / "x.png", rows, size=(7, 5), depth=16, colour=2)
    with pytest.raises(InputError, match=r"x\.png has 16 bits per channel, and no value above 4095"):
        open_picture(tmp_path / "x.png")


def test_black_and_white(tmp_path: Path) -> None:
    for suffix in ("png", "tif", "bmp"):
        Image.fromarray(GREY > 128).save(tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(_read(tmp_path / f"x.{suffix}").reshape(5, 7, -1)[..., 0], 255 * (GREY > 128))


def test_cmyk(tmp_path: Path) -> None:
    inks = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (7, 5), inks.tobytes()).save(tmp_path / "x.tif")
    shares = 1 - inks.astype(np.float64) / 255
    np.testing.assert_allclose(_read(tmp_path / "x.tif"), shares[..., :3] * shares[..., 3:] * 255, atol=1)
    flat = np.broadcast_to(np.array([200, 40, 90, 30], dtype=np.uint8), (16, 16, 4))
    Image.frombytes("CMYK", (16, 16), flat.tobytes()).save(tmp_path / "x.jpg", quality=100)
    wanted = [55 * 225 / 255, 215 * 225 / 255, 165 * 225 / 255]
    np.testing.assert_allclose(_read(tmp_path / "x.jpg").mean(axis=(0, 1)), wanted, atol=2)


def test_ycbcr(tmp_path: Path) -> None:
    stored = RNG.integers(90, 160, (5, 7, 3), dtype=np.uint8)
    Image.frombytes("YCbCr", (7, 5), stored.tobytes()).save(tmp_path / "x.tif")
    y, cb, cr = np.moveaxis(stored.astype(np.float64), 2, 0) - np.array([0, 128, 128])[:, None, None]
    wanted = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    np.testing.assert_allclose(_read(tmp_path / "x.tif"), wanted.clip(0, 255), atol=1.5)


def test_lab(tmp_path: Path) -> None:
    """CIE L*a*b* of white D50, by the formulas of CIE 15, the Bradford transform to D65 and IEC 61966-2-1."""
    stored = np.array(
        [[255, 0, 0], [0, 0, 0], [128, 0, 0], [160, 22, 238], [90, 248, 22]], dtype=np.uint8
    )  # TIFF 6.0, 23
    Image.frombytes("LAB", (5, 1), stored.tobytes()).save(tmp_path / "x.tif")
    assert stored.tobytes() in (tmp_path / "x.tif").read_bytes()
    lightness, (a, b) = stored[:, 0] * (100 / 255), stored[:, 1:].view(np.int8).T.astype(np.float64)
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1, 0.82521]
    red, green = [3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540]
    linear = (xyz @ np.array([red, green, [0.0719453, -0.2289914, 1.4052427]]).T).clip(0, 1)
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(_read(tmp_path / "x.tif")[0], wanted, atol=2)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_the_first_of_several_pages_is_read(tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(np.full((5, 7, 3), value, dtype=np.uint8)) for value in (10, 200)]
    path = tmp_path / f"x.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert look_at(path).several
    assert set(_read(path).ravel().tolist()) == {10}
    pages[0].save(path)
    assert not look_at(path).several


def test_bounds_hold_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _png(tmp_path / "bomb.png", [b"\0"], size=(60_000, 60_000), depth=8, colour=0)
    with pytest.raises(InputError, match=r"bomb\.png"):
        open_picture(tmp_path / "bomb.png")
    _png(tmp_path / "wide.png", [b"\0"], size=(11_000, 11_000), depth=8, colour=0)
    monkeypatch.setattr(decode, "MOST_PIXELS", 10**8)
    with pytest.raises(InputError, match=r"wide\.png has 11000x11000 pixels; up to 100 million"):
        open_picture(tmp_path / "wide.png")
    monkeypatch.setitem(MOST_BYTES, "image", 10)
    with pytest.raises(InputError, match=r"wide\.png has \d+ bytes; images of up to 10 bytes"):
        look_at(tmp_path / "wide.png")


def test_what_is_out_of_memory_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "_shallow", out_of_memory)
    with pytest.raises(InputError, match=r"x\.png does not fit into the memory"):
        open_picture(tmp_path / "x.png")


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "x.png", format="TGA")
    with pytest.raises(InputError, match=r"x\.png is not a readable image"):
        open_picture(tmp_path / "x.png")
    with pytest.raises(InputError, match="is not a plain file"):
        open_picture(Path("/dev/zero"))


def test_bytes_are_made_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made on the way to them takes four times as much memory."""
    Image.fromarray(np.dstack([COLOUR, ALPHA])).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([GREY, ALPHA])).save(tmp_path / "b.png")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "c.png")
    whole = [open_picture(tmp_path / f"{name}.png").to_bytes() for name in "abc"]
    np.testing.assert_array_equal(whole[2], GREY)
    monkeypatch.setattr(decode, "_AT_ONCE", 14)  # two rows of five
    for name, expected in zip("abc", whole, strict=True):
        np.testing.assert_array_equal(open_picture(tmp_path / f"{name}.png").to_bytes(), expected)


def test_a_bomb_is_named_with_its_limit(tmp_path: Path) -> None:
    _png(tmp_path / "bomb.png", [b"\0"], size=(60_000, 60_000), depth=8, colour=0)
    with pytest.raises(InputError, match=r"bomb\.png has more than 179 million pixels"):
        look_at(tmp_path / "bomb.png")


def test_postscript_under_the_name_of_an_image_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would give it to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for suffix in SUFFIXES:
        path = tmp_path / f"cat{suffix}"
        path.write_bytes(eps)
        for read in (open_picture, look_at, decode.open_indices):
            with pytest.raises(InputError, match="is not a readable image"):
                read(path)
    with pytest.raises(InputError, match="is not a readable image"):
        open_picture(Path("row 0"), content=eps)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("error", [AssertionError, KeyError("x"), RuntimeError, zlib.error, StopIteration, Exception])
def test_whatever_a_decoder_raises_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(decode, "_shallow", fails)
    with pytest.raises(InputError, match=r"x\.png is not a readable image"):
        open_picture(tmp_path / "x.png")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_in_a_png_that_unpack_to_much_are_left_out_or_refused(tmp_path: Path, kind: bytes) -> None:
    """100 MB of zeros in 100 KB, in a chunk that is not an image's pixels."""
    Image.fromarray(GREY).save(tmp_path / "x.png")
    raw = (tmp_path / "x.png").read_bytes()
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    chunk = kind + head + zlib.compress(bytes(100_000_000), 1)
    made = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "x.png").write_bytes(raw[:33] + made + raw[33:])
    tracemalloc.start()
    with suppress(InputError):
        np.testing.assert_array_equal(open_picture(tmp_path / "x.png").pixels, GREY)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_threads_leave_the_settings_of_warnings_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to open ends first, so that the second would put back what the first has silenced."""
    Image.fromarray(GREY).save(path := tmp_path / "x.png")
    real, order, second, first_done = Image.open, list[int](), threading.Event(), threading.Event()

    def slow(*given: Any, **options: Any) -> Any:
        order.append(1)
        if len(order) == 2:
            second.set()
            first_done.wait(0.3)
        else:
            second.wait(0.3)
        return real(*given, **options)

    monkeypatch.setattr(decode.Image, "open", slow)
    before = list(warnings.filters)

    def first() -> None:
        open_picture(path)
        first_done.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(open_picture, path)]:
            done.result()
    assert list(warnings.filters) == before
