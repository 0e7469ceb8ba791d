"""SVHN's MATLAB files, written by scipy."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import MOST_BYTES
from msn_deploy.data import load_split
from msn_deploy.data.svhn import read_matlab

savemat = pytest.importorskip("scipy.io").savemat

SIZE = {"height_px": 32, "width_px": 32, "channels": 3}
IMAGES = np.random.default_rng(4).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
X = IMAGES.transpose(1, 2, 3, 0)
Y = np.array([[1], [10], [9], [10]], dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_label_ten_is_the_digit_zero(tmp_path: Path, packed: bool) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": X, "y": Y}, do_compression=packed)
    savemat(tmp_path / "test_32x32.mat", {"X": X[..., :2], "y": Y[:2]}, do_compression=packed)
    train, test = (load_split(str(tmp_path), split, **SIZE) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, IMAGES)
    assert train.labels.tolist() == [1, 0, 9, 0]
    assert test.labels.tolist() == [1, 0]
    assert train.classes == test.classes == tuple("0123456789")


def test_a_missing_split_says_what_was_looked_for(tmp_path: Path) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": X, "y": Y})
    with pytest.raises(InputError, match=r"test_32x32\.mat does not exist"):
        load_split(str(tmp_path), "test", **SIZE)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"y": Y}, "X should be uint8 32x32x3xN, is missing"),
        ({"X": X}, "y should be whole numbers Nx1, is missing"),
        ({"X": X.astype(np.float64), "y": Y}, "is float64 32x32x3x4"),
        ({"X": IMAGES, "y": Y}, "is uint8 4x32x32x3"),
        ({"X": X[:, :, 0], "y": Y}, "is uint8 32x32x4"),
        ({"X": "text", "y": Y}, "X should be uint8"),
        ({"X": X, "y": Y.T}, "y should be whole numbers Nx1, is uint8 1x4"),
        ({"X": X, "y": Y / 2}, "y should be whole numbers Nx1, is float64"),
        ({"X": X, "y": {"a": 1}}, "y should be whole numbers"),
        ({"X": X, "y": Y[:3]}, "holds 4 images and 3 labels"),
        ({"X": X, "y": Y % 10}, "labels 0 to 9, SVHN has 1 to 10"),
        ({"X": X, "y": Y + 1}, "labels 2 to 11, SVHN has 1 to 10"),
    ],
)
def test_other_variables_are_refused(tmp_path: Path, content: dict[str, Any], why: str) -> None:
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(InputError, match=rf"{why}[\s\S]*Download it again: train_32x32\.mat"):
        load_split(str(tmp_path), "train", **SIZE)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n", r"MATLAB 7\.3 \(HDF5\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), r"MATLAB 7\.3 \(HDF5\)"),
        (b"", "not a MATLAB 5 file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "starts with 89 50 4e 47"),
        (b"MATLAB 5.0 MAT-file", "damaged MATLAB file"),
    ],
    ids=["7.3", "hdf5", "empty", "png", "header-alone"],
)
def test_other_formats_are_refused(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / "test_32x32.mat").write_bytes(raw)
    with pytest.raises(InputError, match=why):
        load_split(str(tmp_path), "test", **SIZE)


def test_what_else_a_file_holds_is_left_out(tmp_path: Path) -> None:
    """Also complex numbers, and big-endian files, whose pixels would be right by chance alone."""
    more = {"a": "text", "b": {"c": [1, 2]}, "d": np.array([[1j]]), "e": np.array([["x", [1]]], dtype=object)}
    savemat(tmp_path / "train_32x32.mat", {**more, "X": X, "y": Y.astype(np.int64), "z": 2.5})
    assert load_split(str(tmp_path), "train", **SIZE).labels.tolist() == [1, 0, 9, 0]
    assert sorted(read_matlab(tmp_path / "train_32x32.mat", hint="")) == ["X", "y", "z"]
    raw = bytearray((tmp_path / "train_32x32.mat").read_bytes())
    raw[126:128] = b"MI"
    (tmp_path / "train_32x32.mat").write_bytes(raw)
    with pytest.raises(InputError, match="no mark of little-endian numbers"):
        load_split(str(tmp_path), "train", **SIZE)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=2, max_size=4),
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"]),
    name=st.from_regex("[a-z]{1,9}", fullmatch=True),
    packed=st.booleans(),
)
def test_any_array_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: str, name: str, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("mat") / "x.mat"
    array = np.random.default_rng(len(name)).integers(0, 100, shape).astype(dtype)
    savemat(path, {name: array, "other": np.ones((1, 1))}, do_compression=packed)
    found = read_matlab(path, hint="")
    assert list(found) == [name, "other"]
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_what_is_packed_says_first_how_much_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 MB unpacked to 12 GB."""
    monkeypatch.setitem(MOST_BYTES, "data", 500_000)
    path = tmp_path / "x.mat"
    zeros = np.zeros(300_000, dtype=np.uint8)
    savemat(path, {"a": zeros, "y": Y}, do_compression=True)
    assert read_matlab(path, hint="")["a"].shape == (1, 300_000)
    for content in ({"a": zeros, "b": zeros}, {"a": np.zeros(600_000, dtype=np.uint8)}):  # the first in two
        savemat(path, content, do_compression=True)
        assert path.stat().st_size < 2000
        with pytest.raises(InputError, match=r"x\.mat, unpacked, has .* KiB"):
            read_matlab(path, hint="")


@pytest.mark.parametrize("change", [-1, 1])
def test_packed_bytes_that_are_not_announced_are_damage(tmp_path: Path, change: int) -> None:
    tag = np.array([14, 48 + change], dtype="<u4").tobytes()
    packed = zlib.compress(tag + bytes(48))
    path = tmp_path / "x.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(126) + b"IM" + np.array([15, len(packed)], dtype="<u4").tobytes() + packed)
    with pytest.raises(InputError, match="is a damaged MATLAB file"):
        read_matlab(path, hint="")
