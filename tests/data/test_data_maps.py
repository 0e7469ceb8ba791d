"""Images with a map beside each: masks, depths and wanted images, as tools lay them out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data import Split, load_split
from msn_deploy.data.maps import read_depth
from msn_deploy.data.sources import is_as_recorded

SIZE: dict[str, Any] = {"height_px": 4, "width_px": 6, "channels": 3}


def _map(at: int, *, values: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(at).integers(0, values, (4, 6), dtype=np.uint8)


def _save(path: Path, pixels: NDArray[Any] | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def _palette(values: NDArray[np.uint8]) -> Image.Image:
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759)
    return image


def _images(folder: Path, count: int, suffix: str = ".jpg") -> None:
    for at in range(count):
        _save(folder / f"{at}{suffix}", np.full((4, 6, 3), 10 * at, dtype=np.uint8))


def _load(source: Path, split: str = "train", task: Any = "segmentation", **more: Any) -> Split:
    return load_split(str(source), split, task=task, **SIZE, **more)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("images/{}", "labels/{}"),
        ("images/{}", "annotations/{}"),
        ("{}/JPEGImages", "{}/SegmentationClass"),
    ],
)
def test_masks_of_the_usual_layouts(tmp_path: Path, images: str, masks: str) -> None:
    for name, count in (("train", 3), ("val", 2)):
        _images(tmp_path / images.format(name), count)
        for at in range(count):
            _save(tmp_path / masks.format(name) / f"{at}.png", _map(at))
    got = _load(tmp_path)
    assert got.classes == ("0", "1", "2")
    assert got.labels.dtype == np.uint8
    np.testing.assert_array_equal(got.labels[..., 0], [_map(at) for at in range(3)])
    assert got.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert len(_load(tmp_path, "test").labels) == 2
    assert is_as_recorded(got.as_parent()) is True
    assert _load(tmp_path, task=None).labels.shape == (3, 0)


def test_folders_without_splits_and_names_with_mask(tmp_path: Path) -> None:
    _images(tmp_path / "images" / "day", 7)
    for at in range(6):
        _save(tmp_path / "masks" / "day" / f"{at}_mask.gif", _palette(_map(at)))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    got = _load(tmp_path, "test")
    assert got.classes == ("sky", "road", "car")
    np.testing.assert_array_equal(got.labels[..., 0], [_map(0), _map(5)])
    assert len(_load(tmp_path).images) == 4


def _coco(folder: Path, *, regions: bool) -> None:
    images = [{"id": at, "file_name": f"{at}.jpg", "height": 4, "width": 6} for at in range(4)]
    outline = {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]} if regions else {}
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, **outline}
    told = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances.json").write_text(json.dumps(told))


def test_masks_go_before_boxes_of_the_same_images(tmp_path: Path) -> None:
    _images(tmp_path / "images", 4)
    for at in range(4):
        _save(tmp_path / "masks" / f"{at}.png", _map(at))
    _coco(tmp_path, regions=False)
    np.testing.assert_array_equal(_load(tmp_path, "test").labels[0, ..., 0], _map(0))
    assert _load(tmp_path, "test", "detection").classes == ("car",)


def test_depths_are_not_taken_for_masks_where_regions_are_elsewhere(tmp_path: Path) -> None:
    _images(tmp_path / "images", 4)
    for at in range(4):
        _save(tmp_path / "depth_mm" / f"{at}.png", _map(at).astype(np.uint16) + 500)
    _coco(tmp_path, regions=True)
    assert "car" in _load(tmp_path, "test").classes
    assert _load(tmp_path, "test", "depth").labels.dtype == np.float32


def test_images_without_a_mask_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _images(tmp_path / "images", 3)
    _save(tmp_path / "masks" / "2.png", _map(2))
    with caplog.at_level("INFO"):
        assert len(_load(tmp_path, "test").images) == 1
    assert "test: 1 images, 3 classes, 6x4 RGB -> 6x4 RGB (left out: 2 without a map)" in caplog.text


@pytest.mark.parametrize("splits", [True, False])
def test_masks_beside_their_images(tmp_path: Path, splits: bool) -> None:
    for name in ("train", "test") if splits else (".",):
        _images(tmp_path / name, 6)
        for at in range(6):
            _save(tmp_path / name / f"{at}_mask.png", _map(at))
    assert [len(_load(tmp_path, split).images) for split in ("train", "test")] == ([6, 6] if splits else [4, 2])
    np.testing.assert_array_equal(_load(tmp_path, "test").labels[0, ..., 0], _map(0))


def test_pascal_voc(tmp_path: Path) -> None:
    """Its masks have a palette, whose indices are the classes, and its splits are lists."""
    _images(tmp_path / "JPEGImages", 5)
    for at in range(4):
        _save(tmp_path / "SegmentationClass" / f"{at}.png", _palette(np.where(_map(at) == 2, 255, _map(at) * 20)))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("3\n1\n")
    (lists / "val.txt").write_text("0\n2\n")
    got = _load(tmp_path)
    assert got.classes == tuple(map(str, range(21)))
    np.testing.assert_array_equal(got.labels[1, ..., 0], np.where(_map(3) == 2, 255, _map(3) * 20))
    assert _load(tmp_path, "test").images[:, 0, 0, 0].tolist() == [0, 20]
    (lists / "val.txt").write_text("17\n")
    with pytest.raises(InputError, match=r"val\.txt names none of the 4 images"):
        _load(tmp_path, "test")


COLOURS = np.array([[0, 0, 0], [128, 64, 128], [9, 8, 7]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nvoid:9,8,7::\n"),
        ("classes.txt", "background 0 0 0\nroad 128 64 128\nvoid\t9\t8\t7\n"),
    ],
)
def test_colours_that_a_list_tells(tmp_path: Path, name: str, text: str) -> None:
    _images(tmp_path / "images", 1)
    _save(tmp_path / "masks" / "0.png", COLOURS[_map(0)])
    with pytest.raises(InputError, match=r"0\.png is coloured, and which class 0 0 0 is, is not said"):
        _load(tmp_path, "test")
    (tmp_path / "masks" / name).write_text(text)
    got = _load(tmp_path, "test")
    assert got.classes == ("background", "road")
    np.testing.assert_array_equal(got.labels[0, ..., 0], np.where(_map(0) == 2, 255, _map(0)))
    (tmp_path / "masks" / name).write_text(text.replace("void", "more").replace("128", "127"))
    with pytest.raises(InputError, match="which class 128 64 128 is, is not said"):
        _load(tmp_path, "test")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.fromarray(_map(0) // 2 * 255), "nothing but 0 and 255, and 255 is left out"),
        (Image.fromarray(_map(0) * np.uint8(3)), "holds the value 3; .*classes.txt has classes 0 to 1"),
        (Image.fromarray(_map(0).astype(np.uint16) * 300), "holds the value [36]00"),
        (Image.fromarray(np.dstack([_map(0)] * 3 + [_map(1)])), "transparent in parts"),
        (Image.new("L", (6, 5)), r"has 6x5 pixels, 0\.jpg 6x4"),
    ],
)
def test_masks_that_are_wrong_are_named(tmp_path: Path, mask: Image.Image, message: str) -> None:
    _images(tmp_path / "images", 1)
    _save(tmp_path / "masks" / "0.png", mask)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path, "test")
    assert "0.png" in str(caught.value)


def test_grey_masks_in_colour(tmp_path: Path) -> None:
    _images(tmp_path / "images", 1)
    _save(tmp_path / "masks" / "0.png", np.dstack([_map(0)] * 3))
    np.testing.assert_array_equal(_load(tmp_path, "test").labels[0, ..., 0], _map(0))
    _save(tmp_path / "masks" / "0.png", np.dstack([np.uint8(255) * (_map(0) == 1)] * 3))
    (tmp_path / "classes.txt").write_text("ground 0 0 0\nobject 255 255 255\n")
    np.testing.assert_array_equal(_load(tmp_path, "test").labels[0, ..., 0], _map(0) == 1)


def test_a_jpeg_is_not_a_mask(tmp_path: Path) -> None:
    _images(tmp_path / "images", 1)
    _save(tmp_path / "masks" / "0.jpg", _map(0))
    with pytest.raises(InputError, match=r"0\.jpg is a JPEG, which changes values"):
        _load(tmp_path, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names 0 classes"),
        ("a\n" * 255, "names 255 classes"),
        ("a 1 2 3\nb 1 2 3", "another class's"),
        ("a 1 2 300", "beyond 255"),
    ],
)
def test_lists_that_are_wrong_are_named(tmp_path: Path, text: str, message: str) -> None:
    _images(tmp_path / "images", 1)
    _save(tmp_path / "masks" / "0.png", _map(0))
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        _load(tmp_path, "test")


def test_a_mask_is_turned_as_its_image(tmp_path: Path) -> None:
    """A photograph that EXIF turns, and a mask that was drawn on what is seen."""
    turned = Image.new("RGB", (4, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    turned.save(tmp_path / "images" / "0.jpg", exif=exif)
    _save(tmp_path / "masks" / "0.png", _map(0))
    np.testing.assert_array_equal(_load(tmp_path, "test").labels[0, ..., 0], _map(0))


METRES = np.array([[0, 1, 2, 3, 4, 5]] * 4, dtype=np.float32) / 4


@pytest.mark.parametrize(
    ("folder", "name", "stored"),
    [
        ("depth_mm", "0.png", (METRES * 1000).astype(np.uint16)),
        ("depth_cm", "0.tif", METRES * 100),
        ("depth", "0.tiff", np.where(METRES == 0, np.nan, METRES).astype(np.float32)),
        ("depth_m", "0.npy", np.where(METRES == 0, np.inf, METRES).astype(np.float64)),
    ],
)
def test_depths_become_metres(tmp_path: Path, folder: str, name: str, stored: NDArray[Any]) -> None:
    _images(tmp_path / "images", 1)
    path = tmp_path / folder / name
    path.parent.mkdir()
    np.save(path, stored[..., np.newaxis]) if name.endswith("npy") else Image.fromarray(stored).save(path)
    got = _load(tmp_path, "test", task="depth")
    assert got.labels.dtype == np.float32
    np.testing.assert_allclose(got.labels[0, ..., 0], np.where(METRES == 0, np.nan, METRES))
    assert is_as_recorded(got.as_parent()) is True


def test_depths_that_are_wrong_are_named(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", (METRES * 1000).astype(np.uint16))
    with pytest.raises(InputError, match=r"a\.png holds whole numbers \(uint16\)[\s\S]*depth_mm"):
        read_depth(tmp_path / "a.png", unit=None)
    _save(tmp_path / "b.png", COLOURS[_map(0)])
    with pytest.raises(InputError, match=r"b\.png has 3 dimensions, or colours"):
        read_depth(tmp_path / "b.png", unit="m")
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "d.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9)}")
    np.savez(tmp_path / "e.npz", METRES)
    (tmp_path / "e.npz").rename(tmp_path / "e.npy")
    np.save(tmp_path / "f.npy", np.array([["x"]]))
    for name in "cdef":
        with pytest.raises(InputError, match=rf"{name}\.npy (is not|was cut off|holds)"):
            read_depth(tmp_path / f"{name}.npy", unit="m")


def test_wanted_images(tmp_path: Path) -> None:
    for name in ("train", "test"):
        _images(tmp_path / name / "images", 2, ".png")
        for at in range(2):
            _save(tmp_path / name / "targets" / f"{at}.png", np.dstack([_map(at, values=255)] * 3))
    got = _load(tmp_path, task="image-to-image")
    assert got.labels.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(got.labels[..., 0], [_map(at, values=255) for at in range(2)])
    with pytest.raises(InputError, match=r"has no labels for depth: it is images with maps of them"):
        _load(tmp_path, task="depth")


def test_one_class_per_image_is_not_there(tmp_path: Path) -> None:
    _images(tmp_path / "images", 2)
    _save(tmp_path / "masks" / "0.png", _map(0))
    with pytest.raises(InputError, match="no labels for classification: it is images with maps of them"):
        _load(tmp_path, task="classification")


def test_masks_are_looked_up_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _images(tmp_path / "images", 2)
    for at in range(2):
        _save(tmp_path / "masks" / f"{at}.png", COLOURS[_map(at)])
    lines = [f"c{at} {' '.join(map(str, colour))}" for at, colour in enumerate(COLOURS.tolist())]
    (tmp_path / "masks" / "classes.txt").write_text("\n".join(lines))
    whole = _load(tmp_path, task="segmentation").labels
    monkeypatch.setattr("msn_deploy.data.masks._AT_ONCE", 1)
    np.testing.assert_array_equal(_load(tmp_path, task="segmentation").labels, whole)
