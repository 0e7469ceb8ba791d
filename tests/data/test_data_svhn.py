"""SVHN's .mat files, written by scipy as MATLAB writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.data import load_split

SIZE = {"height_px": 32, "width_px": 32, "channels": 3}
LABELS = [1, 10, 9, 5]


def _images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (len(LABELS), 32, 32, 3), dtype=np.uint8)


def _write(path: Path, **change: Any) -> None:
    content = {"X": _images().transpose(1, 2, 3, 0), "y": np.array(LABELS, dtype=np.uint8)[:, None]} | change
    scipy.io.savemat(path, {key: value for key, value in content.items() if value is not None}, do_compression=True)


def _fails(folder: Path, match: str, split: str = "test") -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_split(str(folder), split, **SIZE)
    assert len(str(caught.value).splitlines()) <= 3


def test_images_upright_and_ten_is_zero(tmp_path: Path) -> None:
    _write(tmp_path / "train_32x32.mat", X=_images(1).transpose(1, 2, 3, 0))
    _write(tmp_path / "test_32x32.mat")
    for split, seed in (("train", 1), ("test", 0)):
        got = load_split(str(tmp_path), split, **SIZE)
        np.testing.assert_array_equal(got.images, _images(seed))
        assert got.labels.tolist() == [1, 0, 9, 5]
        assert got.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": None}, "has no X and y"),
        ({"y": None}, "has no X and y"),
        ({"X": _images().astype(np.float64).transpose(1, 2, 3, 0)}, r"X is float64 \(32, 32, 3, 4\)"),
        ({"X": _images()}, r"X is uint8 \(4, 32, 32, 3\)"),
        ({"X": _images()[:3].transpose(1, 2, 3, 0)}, r"X is uint8 \(32, 32, 3, 3\), y \(4, 1\)"),
        ({"y": np.array([[1], [10], [11], [5]], dtype=np.uint8)}, "whole numbers from 1 to 10"),
        ({"y": np.array([[1], [0], [9], [5]], dtype=np.uint8)}, "whole numbers from 1 to 10"),
        ({"y": np.array([[1], [2.5], [9], [5]])}, "whole numbers from 1 to 10"),
    ],
)
def test_content_that_is_not_svhn(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path / "test_32x32.mat", **change)
    _fails(tmp_path, message)


def test_a_file_that_is_missing_truncated_or_another_format(tmp_path: Path) -> None:
    path = tmp_path / "test_32x32.mat"
    _write(path)
    _fails(tmp_path, r"train_32x32\.mat does not exist", split="train")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _fails(tmp_path, r"test_32x32\.mat is no readable MATLAB file[\s\S]*Download it again")
    path.write_bytes(whole[:116] + bytes(8) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(400))
    _fails(tmp_path, r"no readable MATLAB file \(version 7\.3, an HDF5 file\)")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), at=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_any_damage_is_an_input_error_or_pictures(tmp_path: Path, share: float, at: float, byte: int) -> None:
    path = tmp_path / "test_32x32.mat"
    _write(path)
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] = byte
    path.write_bytes(raw[: round(share * len(raw))])
    try:
        got = load_split(str(tmp_path), "test", **SIZE)
    except InputError:
        return
    assert set(got.labels.tolist()) <= set(range(10))


def test_without_scipy_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "test_32x32.mat")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(MissingDependency, match=r"pip install 'msn-deploy\[data\]'"):
        load_split(str(tmp_path), "test", **SIZE)
