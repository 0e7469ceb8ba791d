"""Images and labels as arrays of one file, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.core.opening import MOST_BYTES
from msn_deploy.data import Split, load_split
from msn_deploy.data.arrays import read_arrays
from msn_deploy.data.feeds import is_feeds, open_feeds
from msn_deploy.data.sources import is_as_recorded

SIZE: dict[str, Any] = {"height_px": 4, "width_px": 5, "channels": 3}


def _random(*shape: int, high: int = 256, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)


IMAGES = _random(7, 4, 5, 3)


def _save(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "set.npz", **arrays)
    return folder / "set.npz"


def _load(source: Path, split: str = "test", task: Any = "classification") -> Split:
    return load_split(str(source), split, task=task, **SIZE)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("images_{}", "labels_{}")],
)
def test_classes_with_splits_by_the_usual_names(tmp_path: Path, images: str, labels: str) -> None:
    arrays = {images.format(name): IMAGES[:count] for name, count in (("train", 3), ("test", 2), ("val", 4))}
    arrays |= {
        labels.format(name): np.arange(count)[:, np.newaxis] for name, count in (("train", 3), ("test", 2), ("val", 4))
    }
    path = _save(tmp_path, **arrays)
    train, test = (_load(path, split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, IMAGES[:3])
    assert train.labels.tolist() == [0, 1, 2]
    assert train.classes == test.classes == tuple("0123")
    assert len(test.images) == 2
    assert is_as_recorded(train.as_parent()) is True
    assert not is_feeds(str(path))


def test_without_splits_every_fifth_is_for_the_test(tmp_path: Path) -> None:
    path = _save(tmp_path, images=IMAGES[..., 0], labels=np.arange(7) % 2, classes=["cat", "dog", "cow"])
    got = _load(path)
    assert got.classes == ("cat", "dog", "cow")
    np.testing.assert_array_equal(got.images[..., 2], IMAGES[[0, 5], ..., 0])
    assert got.labels.tolist() == [0, 1]
    assert len(_load(path, "train").labels) == 5
    assert _load(path, task=None).labels.shape == (2, 0)
    assert _load(path, task="embedding").task == "embedding"


def test_feeds_stay_feeds(tmp_path: Path) -> None:
    for names in (("images",), ("x", "y"), ("images", "orig_target_sizes"), ("input",)):
        assert is_feeds(str(_save(tmp_path, **dict.fromkeys(names, IMAGES))))
    (tmp_path / "a.npz").write_bytes(b"no archive")
    assert is_feeds(str(tmp_path / "a.npz"))
    assert is_feeds("missing.npz")


@pytest.mark.parametrize(
    ("images", "limits"),
    [
        (IMAGES / np.float32(255), [0, 1]),
        (IMAGES / np.float64(127.5) - 1, [-1.0, 1.0]),
        (IMAGES * np.uint16(257), [0, 65535]),
    ],
)
def test_other_types_need_their_range(tmp_path: Path, images: NDArray[Any], limits: list[float]) -> None:
    path = _save(tmp_path, images=images, labels=np.arange(7), range=limits)
    np.testing.assert_array_equal(_load(path).images, IMAGES[[0, 5]])
    with pytest.raises(InputError, match=r"what black and white are is not said\.\nSave it too"):
        _load(_save(tmp_path, images=images, labels=np.arange(7)))


def test_several_classes_and_numbers(tmp_path: Path) -> None:
    several = _random(7, 3, high=2)
    got = _load(_save(tmp_path, images=IMAGES, labels=several), task="multi-label")
    assert got.labels.dtype == bool
    np.testing.assert_array_equal(got.labels, several[[0, 5]] == 1)
    got = _load(_save(tmp_path, images=IMAGES, targets=np.arange(7) / 2), task="regression")
    assert (got.classes, got.labels.tolist()) == (("value 0",), [[0], [2.5]])
    got = _load(_save(tmp_path, images=IMAGES, labels=several * 0.5, classes=list("abc")), task="regression")
    assert got.classes == ("a", "b", "c")


def test_maps(tmp_path: Path) -> None:
    masks, depth = _random(7, 4, 5, high=4), _random(7, 4, 5, 1, high=900, dtype=np.uint16)
    path = _save(tmp_path, images=IMAGES, masks=masks, depth_mm=depth, targets=255 - IMAGES)
    got = _load(path, task="segmentation")
    assert got.classes == tuple("0123")
    np.testing.assert_array_equal(got.labels[..., 0], masks[[0, 5]])
    wanted = np.where(depth == 0, np.nan, depth / 1000)[[0, 5]]
    np.testing.assert_allclose(_load(path, task="depth").labels, wanted, rtol=1e-6)
    np.testing.assert_array_equal(_load(path, task="image-to-image").labels, 255 - IMAGES[[0, 5]])


@pytest.mark.parametrize(
    ("arrays", "task", "message"),
    [
        ({"labels": np.arange(6)}, "classification", "7 images, and labels for 6"),
        ({"labels": np.arange(7) / 2}, "classification", "labels are float64 of 7; one whole number"),
        ({"labels": np.arange(7) - 1}, "classification", "classes from -1 to 5"),
        ({"labels": np.arange(7) * 10**8}, "classification", "classes from 0 to 600000000"),
        ({"labels": np.array(3)}, "classification", "labels is one number"),
        ({"labels": np.arange(7), "classes": list("abc")}, "classification", "a text for each of 7"),
        ({"labels": np.arange(7)}, "multi-label", "0 or 1 for each class"),
        ({"labels": np.arange(7)}, "segmentation", "has no masks; it has images, labels"),
        ({"masks": IMAGES}, "segmentation", "masks are uint8 of 7x4x5x3; N x height x width"),
        ({"masks": IMAGES[..., 0] * 0.5}, "segmentation", "whole numbers from 0 to 255"),
        ({"masks": IMAGES[..., 0] * np.int64(3)}, "segmentation", "whole numbers from 0 to 255"),
        ({"masks": IMAGES[..., 0] // 128 * 255}, "segmentation", "nothing but 0 and 255"),
        ({"masks": IMAGES[:, :3, :, 0]}, "segmentation", "maps are uint8 of 7x3x5, the images uint8 of 7x4x5x3"),
        ({"depth": IMAGES[..., 0]}, "depth", r"depth holds whole numbers \(uint8\)"),
        ({"targets": np.full((7, 2), np.nan)}, "regression", "finite numbers for each image"),
        ({"targets": np.arange(7)}, "image-to-image", "targets are int64 of 7; N x height"),
        (
            {"labels": np.arange(7), "images": IMAGES.transpose(0, 3, 1, 2)},
            "classification",
            r"transpose\(0, 2, 3, 1\)",
        ),
        ({"labels": np.arange(7), "images": IMAGES[:0]}, "classification", "images are uint8 of 0x4x5x3"),
        ({"labels": np.arange(7), "images": IMAGES * np.nan, "range": [0, 1]}, "classification", "not finite"),
        ({"labels": np.arange(7), "images": IMAGES / 2, "range": [1, 0]}, "classification", "is not said"),
        ({"labels": np.arange(7)}, "detection", "no labels for detection: it is arrays"),
        ({"labels": np.arange(7).astype("datetime64[s]")}, "classification", "labels is of datetime64"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, arrays: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _load(_save(tmp_path, **{"images": IMAGES, **arrays}), task=task)
    assert "set.npz" in str(caught.value)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    path = _save(tmp_path, train_images=IMAGES, train_labels=np.arange(7))
    with pytest.raises(InputError, match="no images for testing; it has train_images, train_labels"):
        _load(path)


def test_pickles_and_other_files_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES, labels=np.array([{}] * 7, dtype=object))
    with pytest.raises(InputError, match="holds Python objects, which are never loaded"):
        _load(path)
    for shape, content, message in (
        ((7, 4, 5, 3), b"few", "was cut off: of 420 bytes 3 are there"),
        ((9, 2147483647, 9999, 3), b"few", r"set\.npz has .* of up to 1.25 GiB"),
        ((-1, 4), b"few", "not in numpy's format"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("images", "labels"):
                stream = io.BytesIO()
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
                archive.writestr(f"{name}.npy", stream.getvalue() + content)
        with pytest.raises(InputError, match=message):
            _load(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="is a file of no known format"):
        _load(path)


def _npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = len(header).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


HOSTILE = {
    "not there": _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (7, 4, 5, 3)}", bytes(9)),
    "huge": _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (900000, 40000, 40000)}"),
    "beyond any number": _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**400}, 4, 5)}}"),
    "negative": _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-7, 4, 5)}"),
    "no bytes each": _npy("{'descr': '|U0', 'fortran_order': False, 'shape': (900000000, 4, 5)}"),
    "arrays in arrays": _npy("{'descr': '(900000000,)f4', 'fortran_order': False, 'shape': (7,)}"),
    "many fields": _npy(
        f"{{'descr': {[(f'f{at}', 'u1') for at in range(20_000)]}, 'fortran_order': False}}", version=2
    ),
    "fields": _npy("{'descr': [('a', 'u1'), ('b', 'f4')], 'fortran_order': False, 'shape': (7,)}", bytes(35)),
    "brackets": _npy("(" * 9000),
    "not closed": _npy("{'descr': "),
    "no type": _npy("{'descr': 7, 'fortran_order': False, 'shape': (7,)}"),
    "objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (7,)}", b"\x80\x04N."),
    "a text of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "newer": b"\x93NUMPY\x09\x00\x10\x00" + bytes(16),
    "nothing": b"",
}


@pytest.mark.parametrize("array", HOSTILE.values(), ids=HOSTILE)
def test_headers_that_lie_are_refused(tmp_path: Path, array: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", array)
        with archive.open("labels.npy", "w") as stream:
            np.save(stream, np.arange(7))
    with pytest.raises(InputError, match=r"set\.npz"):
        _load(tmp_path / "set.npz")
    (tmp_path / "x.npy").write_bytes(array)
    with pytest.raises(InputError, match=r"x\.npy"):
        list(open_feeds(tmp_path / "x.npy", [TensorSpec("x", "uint8", (None, 4, 5, 3))]))


def test_what_an_archive_unpacks_to_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path, images=np.zeros((9, 200, 200, 3), dtype=np.uint8), labels=np.arange(9))
    assert path.stat().st_size < 10_000
    monkeypatch.setitem(MOST_BYTES, "data", 1_000_000)
    with pytest.raises(InputError, match=r"set\.npz, unpacked, has 1.03 MiB; files of data of up to"):
        read_arrays(path, "train", "classification")
