"""Tables of images as people and spreadsheets write them, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data import Split, load_split
from msn_deploy.data.sources import is_as_recorded

SIZE: dict[str, Any] = {"height_px": 4, "width_px": 6, "channels": 3}


def _images(folder: Path, *names: str) -> None:
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (10 * at, 0, 0)).save(folder / name)


def _load(source: Path, split: str = "train", task: Any = "classification", **more: Any) -> Split:
    return load_split(str(source), split, task=task, **SIZE, **more)


def _shown(split: Split) -> list[int]:
    return [int(value) // 10 for value in split.images[:, 0, 0, 0]]


def test_a_class_for_each_image(tmp_path: Path) -> None:
    _images(tmp_path, *[f"{at}.png" for at in range(6)])
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{at}.png,{['dog', 'cat'][at % 2]}\n" for at in range(6))
    )
    train, test = (_load(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog")
    assert (_shown(train), train.labels.tolist()) == ([1, 2, 3, 4], [0, 1, 0, 1])
    assert (_shown(test), test.labels.tolist()) == ([0, 5], [1, 0])
    assert is_as_recorded(train.first(2).as_parent()) is True
    embedding = _load(tmp_path, task="embedding")
    assert embedding.task == embedding.read["task"] == "embedding"
    assert is_as_recorded(embedding.as_parent()) is True
    assert _load(tmp_path / "labels.csv", "test").labels.tolist() == [1, 0]


def test_a_table_for_each_split_and_numbers_as_classes(tmp_path: Path) -> None:
    _images(tmp_path / "images", *[f"{at}.png" for at in range(5)])
    (tmp_path / "train.csv").write_text("filename,class\n3.png,10\n1.png,9\n")
    (tmp_path / "val.csv").write_text("filename,class\nimages/0.png,9\n")
    assert _load(tmp_path).classes == ("9", "10")
    assert _load(tmp_path).labels.tolist() == [1, 0]
    assert _load(tmp_path, "test").labels.tolist() == [0]
    assert _load(tmp_path, "test").classes == ("9", "10")
    (tmp_path / "val.csv").write_text("filename\n0.png\n")  # as contests give it
    assert len(_load(tmp_path).images) == 2
    with pytest.raises(InputError, match=r"val\.csv has no column beside the images"):
        _load(tmp_path, "test")
    assert len(_load(tmp_path, "test", task=None).images) == 1


def test_as_a_spreadsheet_saves_it_in_germany(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a byte order mark, semicolons, decimal commas, quotes, and the line ends of Windows."""
    _images(tmp_path, "a b.png", 'sub/"c".png')
    text = 'Split;Image;Age;Height;Note\r\ntrain;"a b.png";1,5;2;"x;y"\r\nTest;"sub/""c"".png";-3;2,25;z\r\n'
    (tmp_path / "data.csv").write_bytes(text.encode("utf-8-sig"))
    with caplog.at_level("INFO"):
        got = _load(tmp_path, task="regression")
    assert got.classes == ("Age", "Height")
    assert got.labels.tolist() == [[1.5, 2]]
    assert _load(tmp_path, "test", task="regression").labels.tolist() == [[-3, 2.25]]
    assert "1 images, 2 values (Age, Height)" in caplog.text
    assert "columns that are not of regression: Note" in caplog.text


def test_several_classes_for_an_image(tmp_path: Path) -> None:
    _images(tmp_path, "0.png", "1.png")
    (tmp_path / "labels.tsv").write_text(
        "path\tsplit\tDog\tcat\tage\n0.png\ttrain\t1\t0\t1\n1.png\ttraining\t0\t1.0\t7\n"
    )
    got = _load(tmp_path, task="multi-label")
    assert got.classes == ("Dog", "cat")
    assert got.labels.dtype == bool
    assert got.labels.tolist() == [[True, False], [False, True]]


def test_a_validation_is_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    _images(tmp_path, "0.png", "1.png", "2.png")
    rows = "file,set,x\n0.png,train,1\n1.png,VAL,2\n2.png,{},3\n"
    for name, shown in (("valid", [1, 2]), ("test", [2])):
        (tmp_path / "data.csv").write_text(rows.format(name))
        assert _shown(_load(tmp_path, "test", task="regression")) == shown


def test_columns_of_maps(tmp_path: Path) -> None:
    _images(tmp_path, *[f"{kind}{at}.png" for kind in "xt" for at in range(2)])
    for at in range(2):
        Image.new("I;16", (6, 4), 250 + at).save(tmp_path / f"d{at}.png")
        Image.new("L", (6, 4), at + 1).save(tmp_path / f"m{at}.png")
    (tmp_path / "train.csv").write_text(
        "image,mask,depth_mm,target\n" + "".join(f"x{at}.png,m{at}.png,d{at}.png,t{at}.png\n" for at in range(2))
    )
    np.testing.assert_allclose(_load(tmp_path, task="depth").labels[:, 1, 1, 0], [0.25, 0.251])
    wanted = _load(tmp_path, task="image-to-image")
    assert wanted.labels[:, 0, 0, 0].tolist() == [20, 30]
    masks = _load(tmp_path, task="segmentation")
    assert masks.classes == ("0", "1", "2")
    assert masks.labels[:, 0, 0, 0].tolist() == [1, 2]
    for each in (wanted, masks):
        assert is_as_recorded(each.as_parent()) is True


def test_the_first_column_has_the_images_where_none_is_called_so(tmp_path: Path) -> None:
    _images(tmp_path, "0.png")
    (tmp_path / "train.csv").write_text("photo, kind\n0.png, dog\n")
    assert _load(tmp_path).classes == ("dog",)


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("", "classification", "has no rows"),
        ("file,label\n", "classification", "has no rows"),
        ("0.png,dog\n1.png,cat\n", "classification", "The first line has to name the columns"),
        ("file,label\n0.png\n", "classification", "line 2 has 1 fields, the first line 2"),
        ('file,label\n0.png,"dog\n', "classification", "is not a table"),
        ("file,file\n0.png,1\n", "classification", "a name of their own"),
        ("file,\n0.png,1\n", "classification", "a name of their own"),
        ("file,label\n\n0.png,dog\n9.png,dog\n", "classification", r"line 4 names '9\.png' as file, which is not in"),
        ("file,label\n../x.png,dog\n", "classification", r"names '\.\./x\.png', which is not in"),
        ("file,label\n/etc/passwd,dog\n", "classification", "names '/etc/passwd', which is not in"),
        ("file,label\nlink.png,dog\n", "classification", r"names 'link\.png', which is not in"),
        ("file,label\n0.png,dog\n0.png,\n", "classification", "line 3 has no label"),
        ("file,a,b\n0.png,dog,cat\n", "classification", "which is the class"),
        ("file,split,a\n0.png,maybe,1\n", "classification", "column split holds 'maybe'"),
        ("file,split,a\n0.png,test,1\n", "classification", "has no row for the train split"),
        ("file,age\n0.png,old\n", "regression", "none holds numbers alone"),
        ("file,age\n0.png,nan\n", "regression", "none holds numbers alone"),
        ("file,age\n0.png,1\n0.png,\n", "regression", "line 3 has no age"),
        ("file,age\n0.png,2\n", "multi-label", "none holds 0 and 1 alone"),
        ("file,age\n0.png,2\n", "depth", "for depth one has to be called depth_mm"),
        ("file,a,b\n0.png,2,3\n", "image-to-image", "has to be called target or wanted or clean"),
        ("file,depth\n0.png,0.png\n", "depth", "dimensions, or colours"),
        ("file,label\n0.png,dog\n", "detection", "no labels for detection: it is a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, task: str, message: str) -> None:
    folder = tmp_path / "set"
    _images(folder, "0.png")
    _images(tmp_path, "x.png")
    (folder / "link.png").symlink_to(tmp_path / "x.png")
    (folder / "data.csv").write_text(text)
    source = folder if "split" in text or not text.startswith("file,label") else folder / "data.csv"
    with pytest.raises(InputError, match=message):
        _load(source, "train" if "split" in text else "test", task=task)


def test_a_table_that_is_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"file,label\nM\xfcller.png,dog\n")
    with pytest.raises(InputError, match=r"a\.csv is not a text in UTF-8 \(byte 12\)"):
        _load(tmp_path / "a.csv")


def test_a_split_without_a_table_is_named(tmp_path: Path) -> None:
    _images(tmp_path, "0.png")
    (tmp_path / "train.csv").write_text("file,label\n0.png,dog\n")
    with pytest.raises(InputError, match=r"has train\.csv, and no table for testing"):
        _load(tmp_path, "test")


@pytest.mark.parametrize("text", ["1e999", "-1e400"])
def test_numbers_beyond_all_numbers_are_named(tmp_path: Path, text: str) -> None:
    _images(tmp_path, "0.png", "1.png")
    (tmp_path / "train.csv").write_text(f"file,age\n0.png,3\n1.png,{text}\n")
    with pytest.raises(InputError, match=r"train\.csv, line 3 has a age that is too large"):
        _load(tmp_path, task="regression")


def test_twenty_thousand_columns_take_no_time(tmp_path: Path) -> None:
    """A column was searched for by name among all, several times: minutes."""
    _images(tmp_path, "0.png")
    names = [f"c{at}" for at in range(20_000)]
    (tmp_path / "train.csv").write_text(f"file,{','.join(names)}\n0.png{',1' * len(names)}\n")
    before = time.process_time()
    assert len(_load(tmp_path, task="multi-label").classes) == 20_000
    assert time.process_time() - before < 5
