"""COCO's JSON as COCO, Roboflow and CVAT lay it out, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data import Split, load_split
from msn_deploy.data.images import LazyImages
from msn_deploy.data.labels import ObjectLabels
from msn_deploy.data.sources import is_as_recorded

SIZE: dict[str, Any] = {"height_px": 20, "width_px": 30, "channels": 3}
SQUARE = [4, 2, 14, 2, 14, 12, 4, 12]


def _content(count: int = 2) -> dict[str, Any]:
    """Return images of 30x20 pixels, the first with a dog and a crowd of cats, the others without anything."""
    return {
        "info": {"year": 2017},
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat", "supercategory": "animal"}],
        "images": [{"id": 100 + at, "file_name": f"{at}.png", "width": 30, "height": 20} for at in range(count)],
        "annotations": [
            {"id": 1, "image_id": 100, "category_id": 18, "bbox": [4, 2, 10.5, 10], "area": 100, "iscrowd": 0,
             "segmentation": [SQUARE]},
            {"id": 2, "image_id": 100, "category_id": 17, "bbox": [20, 0, 10, 20], "area": 150.5, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [400, 200]}},
        ],
    }  # fmt: skip


def _write(file: Path, content: Any, images: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    for at, each in enumerate(content["images"] if isinstance(content, dict) else []):
        path = images / str(each["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (at, 9, 9)).save(path, "png")


def _load(source: Path, split: str = "train", task: Any = "detection", **more: Any) -> Split:
    return load_split(str(source), split, task=task, **SIZE, **more)


@pytest.mark.parametrize(
    ("train", "test", "train_images", "test_images"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images/train2017",
         "images/val2017"),
        ("annotations/train.json", "annotations/test.json", "images", "images"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", "train", "valid"),
    ],
)  # fmt: skip
def test_boxes_of_the_usual_layouts(tmp_path: Path, train: str, test: str, train_images: str, test_images: str) -> None:
    _write(tmp_path / train, _content(), tmp_path / train_images)
    _write(tmp_path / test, _content(3), tmp_path / test_images)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    if not train.startswith("annotations/instances"):
        (tmp_path / "annotations" / "captions_train2017.json").unlink()
    got = _load(tmp_path)
    assert got.classes == ("cat", "dog")
    assert got.images[:, 0, 0, 0].tolist() == [0, 1]
    assert isinstance(got.labels, ObjectLabels)
    first, second = got.labels.images
    assert first.boxes.tolist() == [[4, 2, 14.5, 12], [20, 0, 30, 20]]
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [100, 150.5]
    assert (first.width_px, first.height_px) == (30, 20)
    assert second.boxes.shape == (0, 4)
    assert len(_load(tmp_path, "test").images) == 3
    assert is_as_recorded(got.as_parent()) is True


def test_a_file_alone_gives_every_fifth_to_the_test(tmp_path: Path) -> None:
    _write(tmp_path / "all.json", _content(7), tmp_path / "images")
    assert _load(tmp_path / "all.json").images[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 6]
    assert _load(tmp_path / "all.json", "test").images[:, 0, 0, 0].tolist() == [0, 5]
    _write(tmp_path / "annotations" / "instances_default.json", _content(7), tmp_path / "images")  # CVAT's
    assert _load(tmp_path, "test").images[:, 0, 0, 0].tolist() == [0, 5]
    assert _load(tmp_path / "all.json", "test", task=None).labels.shape == (2, 0)


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    content = _content(1)
    drawn = np.random.default_rng(1).random((20, 30)) < 0.3
    packed = masks.encode(np.asfortranarray(drawn.astype(np.uint8)))
    star = [1.5, 18.2, 9, 9.9, 14.1, 19, 3, 12]
    content["annotations"][0]["segmentation"] = [star, [20, 1, 28.4, 1, 28, 6.6]]
    content["annotations"][1]["segmentation"] = {"size": [20, 30], "counts": packed["counts"].decode()}
    _write(tmp_path / "a.json", content, tmp_path)
    got = _load(tmp_path / "a.json", "test", task="segmentation", lazy=True)
    assert got.classes == ("background", "cat", "dog")
    assert isinstance(got.labels, LazyImages)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools 2.0.11 with numpy 2
        dog = masks.decode(masks.merge(masks.frPyObjects([star, [20, 1, 28.4, 1, 28, 6.6]], 20, 30))).astype(bool)
    wanted = np.where(dog & drawn, 255, np.where(dog, 2, np.where(drawn, 1, 0)))
    assert (dog & drawn).any()
    np.testing.assert_array_equal(np.asarray(got.labels)[0, ..., 0], wanted)


def test_an_image_whose_size_is_another_than_was_labelled_is_refused(tmp_path: Path) -> None:
    """A photograph that EXIF turns: its labels have to be for what is seen."""
    content = _content(1)
    _write(tmp_path / "a.json", content, tmp_path)
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "0.png", exif=exif)
    with pytest.raises(InputError, match=r"0\.png has 20x30 pixels; its labels are for 30x20, as it is stored"):
        _load(tmp_path / "a.json", "test")
    content["images"][0] |= {"width": 20, "height": 30}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert _load(tmp_path / "a.json", "test").labels.images[0].height_px == 30


def test_boxes_without_extent_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = _content(1)
    content["annotations"][0]["bbox"] = [3, 3, 0, 7]
    del content["annotations"][1]["area"]
    _write(tmp_path / "a.json", content, tmp_path)
    got = _load(tmp_path / "a.json", "test")
    assert got.labels.images[0].areas.tolist() == [200]
    assert "1 boxes without width or height are left out" in caplog.text


def _break(path: tuple[Any, ...], value: Any) -> Any:
    content: Any = _content()
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return content


ANNOTATION = ("annotations", 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "'images' is not a list of objects"),
        (_break(("annotations",), {}), "'annotations' is not a list of objects"),
        (_break(("images", 0, "id"), "a"), "an image has the id a, not a whole number"),
        (_break(("images", 0, "id"), 101), "two images of one id"),
        (_break(("images", 0, "width"), 0), "image 100 of 0x20 pixels"),
        (_break(("images", 0, "width"), 1 << 40), "image 100 of 1099511627776x20"),
        (_break(("images", 0, "file_name"), None), "has the file_name None"),
        (_break(("categories", 0, "id"), 17), "an id of their own and a name each"),
        (_break(("categories", 0, "name"), 3), "an id of their own and a name each"),
        (_break((*ANNOTATION, "image_id"), 7), "annotation 1 is of image 7, which is not there"),
        (_break((*ANNOTATION, "category_id"), 1), "annotation 1 is of category 1, which is not there"),
        (_break((*ANNOTATION, "category_id"), True), "has the category_id True"),
        (_break((*ANNOTATION, "bbox"), [1, 2, 3]), "x, y, width and height are needed"),
        (_break((*ANNOTATION, "bbox"), [1, 2, 3, -1]), "x, y, width and height are needed"),
        (_break((*ANNOTATION, "bbox"), [1, 2, 3, float("inf")]), "is not a list of numbers"),
        (_break((*ANNOTATION, "bbox"), [1, 2, 3, 10**400]), "is too large"),
        (_break((*ANNOTATION, "bbox"), None), "None is not a list of numbers"),
        (_break((*ANNOTATION, "area"), "big"), "area: .* is not a list of numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, message: str) -> None:
    _write(tmp_path / "a.json", content, tmp_path)
    for at in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{at}.png")
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path / "a.json", "test")
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (None, "has no segmentation"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "a polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "a corner at 1e[+]09, in an image of 30x20"),
        ({"size": [30, 20], "counts": [600]}, "has run lengths for"),
        ({"size": [20, 30], "counts": [400, 100]}, "add up to 500, an image of 30x20 has 600"),
        ({"size": [20, 30], "counts": [700, -100]}, "add up to 600"),
        ({"size": [20, 30], "counts": "\u00e9"}, "in run lengths"),
        ({"size": [20, 30], "counts": "o" * 20}, "in run lengths"),
        ({"size": [20, 30]}, "is not a list of numbers"),
    ],
)
def test_regions_that_are_wrong_are_named(tmp_path: Path, drawn: Any, message: str) -> None:
    _write(tmp_path / "a.json", _break((*ANNOTATION, "segmentation"), drawn), tmp_path)
    with pytest.raises(InputError, match=message):
        _load(tmp_path / "a.json", "test", task="segmentation")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_what_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is not JSON"):
        _load(tmp_path / "a.json")


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "./../images/0.png", "link.png", "c:\\x", ""]
)
def test_no_file_outside_of_the_images_is_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    _write(folder / "a.json", _content(), folder / "images")
    Image.new("RGB", (30, 20)).save(tmp_path / "secret.png")
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    for at in range(2):
        (folder / "a.json").write_text(json.dumps(_break(("images", at, "file_name"), name)))
        with pytest.raises(InputError, match="which is not in"):
            _load(folder / "a.json", "train" if at else "test")


def test_missing_images_and_splits_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "annotations" / "instances_train.json", _content(3), tmp_path / "train")
    with pytest.raises(InputError, match="none for testing"):
        _load(tmp_path, "test")
    (tmp_path / "train" / "2.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 3 images .* such as 2\.png"):
        _load(tmp_path)
    (tmp_path / "train" / "0.png").unlink()
    with pytest.raises(InputError, match=r"names '0\.png', which is in none of"):
        _load(tmp_path)
    with pytest.raises(InputError, match="no labels for depth: it is COCO's JSON, which has them for detection, segm"):
        _load(tmp_path, task="depth")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("images", 0, "width"), 2**24, "image 100 of 16777216x20 pixels"),
        (("images", 0, "height"), 10**300, "is too large"),
        ((*ANNOTATION, "bbox"), [-1e300, 0, 5, 5], "has the bbox"),
        ((*ANNOTATION, "bbox"), [0, 0, 1e308, 1e308], "of an image of 30x20"),
        ((*ANNOTATION, "bbox"), [float("nan"), 0, 5, 5], "not a list of numbers"),
        ((*ANNOTATION, "bbox"), [-1, 0, -5, 5], "has the bbox"),
    ],
)
def test_sizes_that_nothing_has_are_refused(tmp_path: Path, where: Any, value: Any, message: str) -> None:
    _write(tmp_path / "a.json", _break(where, value), tmp_path)
    with pytest.raises(InputError, match=message):
        _load(tmp_path / "a.json", "test")


def test_lists_and_objects_are_counted_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a.json", _content(), tmp_path)
    monkeypatch.setattr("msn_deploy.data.coco._MOST_PARTS", 16)
    with pytest.raises(InputError, match=r"a\.json has 18 lists and objects; up to 16"):
        _load(tmp_path / "a.json")
