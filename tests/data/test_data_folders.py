"""Folders as people have them: splits by their usual names, files of the system, folders without images."""

from __future__ import annotations

from pathlib import Path

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.data.folders import class_folders, images_below


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(folder: Path, split: str) -> dict[str, list[str]]:
    return {name: [path.name for path in files] for name, files in class_folders(folder, split).files.items()}


def test_files_of_the_system_are_skipped_and_counted(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/1.png", "cat/._1.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/notes.TXT", "cat/2.heic")
    _touch(tmp_path, "__MACOSX/cat/._1.png", ".ipynb_checkpoints/1.png", "dog/@eaDir/1.png", "dog/3.PNG", "read.me")
    found = class_folders(tmp_path, "train")
    assert _names(tmp_path, "train") == {"cat": ["1.png"], "dog": ["3.PNG"]}
    assert (found.skipped.system, dict(found.skipped.others)) == (6, {".txt": 1, ".heic": 1, ".me": 1})
    assert found.skipped.in_words() == "6 hidden or system files, 1 .heic, 1 .me, 1 .txt"
    assert not found.own


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/b.png", "cat/2023/a.jpg", "cat/2023/c.webp", "cat/a.tif")
    assert _names(tmp_path, "train") == {"cat": ["a.jpg", "c.webp", "a.tif", "b.png"]}
    assert images_below(tmp_path) == class_folders(tmp_path, "train").files["cat"]


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["test", "Val", "valid", "Validation"])
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    _touch(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png", f"{test}/dog/4.png")
    assert _names(tmp_path, "train") == {"cat": ["1.png"], "dog": ["2.png"]}
    assert _names(tmp_path, "test") == {"cat": ["3.png"], "dog": ["4.png"]}
    assert [path.name for path in class_folders(tmp_path, "test").beside] == ["1.png", "2.png"]


def test_the_test_split_comes_before_the_validation(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/1.png", "val/cat/2.png", "test/cat/3.png")
    assert _names(tmp_path, "test") == {"cat": ["3.png"]}


def test_a_split_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/1.png", "Train/cat/2.png")
    if len(list(tmp_path.iterdir())) == 2:
        with pytest.raises(InputError, match="has Train/ and train/"):
            class_folders(tmp_path, "train")


def test_a_folder_without_images_is_not_a_class(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/1.png", "train/empty/notes.txt", "train/dog/2.png", "test/cat/3.png")
    (tmp_path / "test" / "dog").mkdir()
    train, test = (class_folders(tmp_path, split) for split in ("train", "test"))
    assert (list(train.files), train.empty) == (["cat", "dog"], ("empty",))
    assert (list(test.files), test.empty) == (["cat", "dog"], ())  # a class, of which the test has no image


def test_a_split_alone_keeps_classes_that_it_has_no_image_of(tmp_path: Path) -> None:
    """They are compared with the classes of a model, whose test may lack one."""
    _touch(tmp_path, "test/cat/3.png")
    (tmp_path / "test" / "dog").mkdir()
    assert _names(tmp_path, "test") == {"cat": ["3.png"], "dog": []}
