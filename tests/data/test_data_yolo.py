"""YOLO's text labels as ultralytics, Roboflow and labelImg lay them out, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.data import Split, load_split
from msn_deploy.data.sources import is_as_recorded

SIZE: dict[str, Any] = {"height_px": 20, "width_px": 40, "channels": 3}
BOX, POLYGON = "1 0.5 0.25 0.5 0.5", "0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6"


def _images(folder: Path, *labels: str | None) -> None:
    """Write images of 40x20 pixels, and their labels where "images" in the folder's path is "labels"."""
    below = Path(*("labels" if part == "images" else part for part in folder.parts))
    for each in (folder, below):
        each.mkdir(parents=True, exist_ok=True)
    for at, text in enumerate(labels):
        Image.new("RGB", (40, 20), (at, 0, 0)).save(folder / f"{at}.png")
        if text is not None:
            (below / f"{at}.txt").write_text(text + "\n")


def _load(source: Path, split: str = "train", task: Any = "detection", **more: Any) -> Split:
    return load_split(str(source), split, task=task, **SIZE, **more)


def _yaml(folder: Path, text: str, name: str = "data.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        ("images/train", "images/val", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"),
        ("images/train", "images/val", "train: images/train\nval: [images/val]\nnc: 2\nnames:\n  0: cat\n  1: dog\n"),
        (
            "train/images",
            "valid/images",
            "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cat', 'dog']",
        ),
        ("images/train", "images/val", None),
        ("train/images", "test/images", None),
    ],
)
def test_boxes_of_the_usual_layouts(tmp_path: Path, train: str, test: str, text: str | None) -> None:
    _images(tmp_path / train, BOX, f"{POLYGON}\n\n{BOX}", None)
    _images(tmp_path / test, None, BOX)
    if text is None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    else:
        _yaml(tmp_path, text)
    got = _load(tmp_path)
    assert got.classes == ("cat", "dog")
    assert got.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    first, second, third = got.labels.images
    assert first.boxes.tolist() == [[10, 0, 30, 10]]
    assert first.areas.tolist() == [200]
    np.testing.assert_allclose(second.boxes, [[4, 2, 24, 12], [10, 0, 30, 10]])
    np.testing.assert_allclose(second.areas, [200, 200])
    assert second.labels.tolist() == [0, 1]
    assert len(third.labels) == 0
    assert (third.width_px, third.height_px) == (40, 20)
    assert [len(each.labels) for each in _load(tmp_path, "test").labels.images] == [0, 1]
    assert is_as_recorded(got.as_parent()) is True
    if text is not None:
        assert _load(tmp_path / "data.yaml").sha256() == got.sha256()


def test_what_roboflow_writes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _images(tmp_path / "train/images", BOX)
    _yaml(tmp_path, "train: ../train/images\nval: ../train/images\nnames: [a, b]")
    _load(tmp_path)
    assert "data.yaml says ../train/images: read was train/images" in caplog.text


def test_folders_without_splits_or_names(tmp_path: Path) -> None:
    _images(tmp_path / "images", *[f"{at} 0.5 0.5 0.5 0.5" for at in range(7)])
    got = _load(tmp_path, "test")
    assert got.classes == tuple("0123456")
    assert [each.labels.tolist() for each in got.labels.images] == [[0], [5]]
    assert len(_load(tmp_path).images) == 5
    assert _load(tmp_path, "test", task=None).labels.shape == (2, 0)


def test_lists_of_images(tmp_path: Path) -> None:
    _images(tmp_path / "images/a", BOX, BOX, BOX)
    (tmp_path / "some.txt").write_text("./images/a/2.png\nimages/a/0.png\n")
    _yaml(tmp_path, "train: some.txt\nval: images/a\nnames: [cat, dog]", "coco8.yml")
    assert _load(tmp_path).images[:, 0, 0, 0].tolist() == [2, 0]
    assert len(_load(tmp_path, "test").images) == 3
    (tmp_path / "some.txt").write_text("../x.png\n")
    with pytest.raises(InputError, match=r"some\.txt names '\.\./x\.png', which is not in"):
        _load(tmp_path)
    (tmp_path / "some.txt").write_text("coco8.yml\n")
    with pytest.raises(InputError, match=r"which is not an image"):
        _load(tmp_path)


def test_polygons_become_masks(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    _images(tmp_path / "images", POLYGON + "\n1 0.5 0.1 0.9 0.1 0.9 0.6 0.5 0.6")
    got = _load(tmp_path, "test", task="segmentation")
    assert got.classes == ("background", "0", "1")
    mask = got.labels[0, ..., 0]
    assert (mask[2:12, 4:20] == 1).all()
    assert (mask[2:12, 20:24] == 255).all()
    assert (mask[2:12, 24:36] == 2).all()
    assert np.bincount(mask.ravel())[[0, 1, 2, 255]].tolist() == [800 - 320, 160, 120, 40]
    _images(tmp_path / "images", BOX)
    with pytest.raises(InputError, match=r"0\.txt, line 1 is a box"):
        _load(tmp_path, "test", task="segmentation")


def test_labels_are_for_what_is_seen_of_a_photograph(tmp_path: Path) -> None:
    _images(tmp_path / "images", BOX)
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "images" / "0.png", exif=exif)
    (each,) = _load(tmp_path, "test").labels.images
    assert (each.width_px, each.height_px) == (20, 40)
    assert each.boxes.tolist() == [[5, 0, 15, 20]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat 0.5 0.5 0.5 0.5", "not numbers"),
        ("0 0.5 0.5 0.5", "has 4 numbers; a box has 5"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 6 numbers; a box has 5"),
        ("0 20 10 20 10", "has 10 to 20: not shares"),
        ("0 0.5 0.5 -0.1 0.5", "not shares"),
        ("0 0.5 0.5 0 0.5", "not shares"),
        ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5"),
        ("-1 0.5 0.5 0.5 0.5", "has the class -1"),
        ("0 nan 0.5 0.5 0.5", "not finite"),
        ("9 0.5 0.5 0.5 0.5", "is of class 9; .*classes.txt has 0 to 1"),
        ("1e300 0.5 0.5 0.5 0.5", "has the class 1e300"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path: Path, line: str, message: str) -> None:
    _images(tmp_path / "images", f"{BOX}\n{line}")
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog")
    with pytest.raises(InputError, match=rf"labels/0\.txt, line 2 [\s\S]*{message}"):
        _load(tmp_path, "test")


def test_a_split_that_is_on_another_machine_is_not_needed(tmp_path: Path) -> None:
    _images(tmp_path / "images/val", BOX)
    _yaml(tmp_path, "train: images/train\nval: images/val\nnames: [cat, dog]")
    assert len(_load(tmp_path, "test").labels) == 1
    with pytest.raises(InputError, match="neither a folder nor a list"):
        _load(tmp_path, "train")


def test_images_without_any_labels_are_refused(tmp_path: Path) -> None:
    _images(tmp_path / "images/train", None, None)
    _yaml(tmp_path, "train: images/train\nval: images/train\nnames: [a]")
    with pytest.raises(InputError, match=r"none of the 2 images [\s\S]*Looked for was .*labels/train/0\.txt"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "is not YAML"),
        ("names: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("names:", "not a list of texts"),
        ("names: [yes, no]", "into quotes"),
        ("names: {1: a, 2: b}", "are not 0 to 1"),
        ("names: {a: 0}", "are not 0 to 0"),
        ("names: [a]\nnc: 2", "has 1 names, which is not what `nc:` says"),
        ("names: [a]", "no images for training"),
        ("names: [a]\ntrain: nowhere", "neither a folder nor a list"),
        ("names: [a]\ntrain: 3", "has a int where a folder of images is needed"),
        ("names: [a]\ntrain: /etc", "names '/etc', which is not in"),
        ("names: [a]\ntrain: ../other", "names '../other', which is not in"),
        ("names: [a]\npath: 3", "`path:` is not a text"),
        ("names: [a]\ntrain: out", "names 'out', which is not in"),
        ("names: [a]\npath: ../other\ntrain: images", "names '../other', which is not in"),
    ],
)
def test_a_yaml_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "set"
    _images(folder / "images/train", BOX)
    _images(tmp_path / "other", BOX)
    (folder / "out").symlink_to(tmp_path / "other")
    _yaml(folder, text)
    with pytest.raises(InputError, match=message) as caught:
        _load(folder / "data.yaml")
    assert "data.yaml" in str(caught.value)


def test_the_path_of_a_yaml_may_be_its_own_folder(tmp_path: Path) -> None:
    _images(tmp_path / "images", BOX, BOX)
    _yaml(tmp_path, f"path: {tmp_path}\ntrain: images\nnames: [a, b]")
    assert [len(_load(tmp_path, split).images) for split in ("train", "test")] == [1, 1]


def test_without_pyyaml_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _images(tmp_path / "images", BOX)
    _yaml(tmp_path, "train: images\nnames: [a, b]")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependency, match=r"reading data\.yaml[\s\S]*pip install pyyaml"):
        _load(tmp_path)


def test_a_yaml_does_not_grow_while_it_is_read(tmp_path: Path) -> None:
    """Of 300 bytes, 10^9 entries: each name stands for ten of the one before."""
    _images(tmp_path / "images", BOX)
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}'] * 10)}]}}" for at in range(1, 10)]
    file = _yaml(tmp_path, "train: images\nnames: [cat, dog]\n" + "\n".join(lines))
    with pytest.raises(InputError, match="an alias, which can stand for any number of values"):
        _load(file)


def test_other_yaml_files_beside_it_do_not_matter(tmp_path: Path) -> None:
    _images(tmp_path / "images", BOX)
    _yaml(tmp_path, "train: images\nnames: [cat, dog]\n")
    (tmp_path / "notes.yaml").write_bytes(b"\xff" * 2_000_000)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert _load(tmp_path, "test", None).classes == ()


@pytest.mark.parametrize("line", ["70000 0.5 0.5 0.1 0.1", "1e300 0.5 0.5 0.1 0.1", "0 1e300 0 0 0", "0 -1 0 0.5 0.5"])
def test_numbers_that_nothing_has_are_refused(tmp_path: Path, line: str) -> None:
    _images(tmp_path / "images" / "train", line)
    with pytest.raises(InputError, match=r"0\.txt, line 1 has"):
        _load(tmp_path)
