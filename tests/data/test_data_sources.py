"""Which images a name or a folder stands for."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.data import load_split
from msn_deploy.data.idx import read_idx

GRAY = {"height_px": 4, "width_px": 3, "channels": 1}
MNIST = builtin_folder("models").parent.parent / "shared" / "data" / "mnist"


def test_the_bundled_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    wanted = np.round(source.images * 255 / 16).astype(np.uint8)
    test = np.zeros(len(source.target), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(source.target == digit)[::5]] = True
    for split, chosen in (("train", ~test), ("test", test)):
        got = load_split("digits", split, height_px=8, width_px=8, channels=1)
        assert got.classes == tuple("0123456789")
        np.testing.assert_array_equal(got.images[..., 0], wanted[chosen])
        np.testing.assert_array_equal(got.labels, source.target[chosen])
    assert (int((~test).sum()), int(test.sum())) == (1433, 364)


def test_digits_are_resized_to_what_a_network_takes() -> None:
    got = load_split("digits", "test", height_px=28, width_px=32, channels=3)
    assert got.images.shape == (364, 28, 32, 3)
    np.testing.assert_array_equal(got.images[..., 0], got.images[..., 2])
    plain = load_split("digits", "test", height_px=8, width_px=8, channels=1)
    shrunk = got.images[..., 0].reshape(364, 28 // 7, 7, 32 // 8, 8).mean(axis=(2, 4))
    coarse = plain.images[..., 0].reshape(364, 4, 2, 4, 2).mean(axis=(2, 4))
    assert np.corrcoef(shrunk.ravel(), coarse.ravel())[0, 1] > 0.98  # the same pictures, upright


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not on this machine")
def test_mnist_as_it_is_distributed() -> None:
    got = load_split(str(MNIST), "test", height_px=28, width_px=28, channels=1)
    assert got.images.shape == (10000, 28, 28, 1)
    assert np.bincount(got.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    raw = gzip.decompress((MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert got.images.tobytes() == raw[16:]


def _write_idx(
    folder: Path, prefix: str, images: NDArray[np.uint8], labels: list[int], *, packed: bool = False
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, head, data in (
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, *images.shape), images.tobytes()),
        ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, len(labels)), bytes(labels)),
    ):
        path = folder / f"{prefix}-{stem}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(head + data) if packed else head + data)


def _random(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files(tmp_path: Path, packed: bool) -> None:
    _write_idx(tmp_path, "train", _random(6), [3, 1, 4, 1, 5, 9], packed=packed)
    _write_idx(tmp_path, "t10k", _random(2), [2, 7], packed=packed)
    train, test = (load_split(str(tmp_path), split, **GRAY) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images[..., 0], _random(6))
    assert train.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert test.labels.tolist() == [2, 7]
    assert train.classes == test.classes == tuple("0123456789")
    assert train.source == str(tmp_path)


def test_more_than_ten_idx_classes(tmp_path: Path) -> None:
    _write_idx(tmp_path, "train", _random(2), [12, 0])
    assert load_split(str(tmp_path), "train", **GRAY).classes == tuple(str(label) for label in range(13))


@pytest.mark.parametrize(("count", "labels"), [(3, [1, 2]), (2, [1, 2, 3]), (0, [])])
def test_idx_counts_must_agree_and_not_be_zero(tmp_path: Path, count: int, labels: list[int]) -> None:
    _write_idx(tmp_path, "train", _random(count), labels)
    with pytest.raises(InputError, match=f"{count} images, train-labels-idx1-ubyte {len(labels)} labels"):
        load_split(str(tmp_path), "train", **GRAY)


def test_idx_without_labels_or_without_the_split(tmp_path: Path) -> None:
    _write_idx(tmp_path, "train", _random(2), [1, 2])
    with pytest.raises(InputError, match="holds no test data"):
        load_split(str(tmp_path), "test", **GRAY)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\[\.gz\] is missing"):
        load_split(str(tmp_path), "train", **GRAY)


def _write_images(folder: Path, counts: dict[str, int], *, colour: bool = False) -> None:
    """Write count images per class; each is filled with 20 * (index + 1), in red where colour is wanted."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for at in range(count):
            image = np.full((4, 3), 20 * (at + 1), dtype=np.uint8)
            if colour:
                image = np.stack([image, image * 0, image * 0], axis=2)
            Image.fromarray(image).save(folder / name / f"{at:02}.png")


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_an_image_folder_with_a_split_of_its_own(tmp_path: Path, test_name: str) -> None:
    _write_images(tmp_path / "train", {"dog": 3, "cat": 2})
    _write_images(tmp_path / test_name, {"dog": 1, "cat": 1})
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "README.txt").write_text("not an image, and not called one")
    train, test = (load_split(str(tmp_path), split, **GRAY) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [20, 40, 20, 40, 60]
    assert test.labels.tolist() == [0, 1]


def test_an_image_folder_without_split_gives_every_fifth_of_a_class_to_the_test(tmp_path: Path) -> None:
    _write_images(tmp_path, {"a": 7, "b": 5})
    train, test = (load_split(str(tmp_path), split, **GRAY) for split in ("train", "test"))
    assert test.images[:, 0, 0, 0].tolist() == [20, 120, 20]
    assert test.labels.tolist() == [0, 0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [40, 60, 80, 100, 140, 40, 60, 80, 100]
    assert train.labels.tolist() == [0] * 5 + [1] * 4


def test_colour_images_keep_their_colour(tmp_path: Path) -> None:
    _write_images(tmp_path / "train", {"a": 1}, colour=True)
    size = {**GRAY, "channels": 3}
    assert load_split(str(tmp_path), "train", **size).images[0, 0, 0].tolist() == [20, 0, 0]
    assert load_split(str(tmp_path), "train", **GRAY).images[0, 0, 0].tolist() == [6]  # 0.299 * 20


def test_a_folder_for_training_alone_has_no_test(tmp_path: Path) -> None:
    _write_images(tmp_path / "train", {"a": 5})
    with pytest.raises(InputError, match="none called test or testing or val"):
        load_split(str(tmp_path), "test", **GRAY)


def test_a_text_file_called_png_is_named(tmp_path: Path) -> None:
    _write_images(tmp_path / "train", {"a": 2})
    (tmp_path / "train" / "a" / "note.png").write_text("just text")
    with pytest.raises(InputError, match=r"note\.png is not a readable image"):
        load_split(str(tmp_path), "train", **GRAY)


@pytest.mark.parametrize("content", [[], ["a"], ["train"], ["train/a"]])
def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no train data: neither train-images-idx3-ubyte") as caught:
        load_split(str(tmp_path), "train", **GRAY)
    assert len(str(caught.value).splitlines()) <= 3


def test_unknown_names_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data called 'digit'; did you mean 'digits'"):
        load_split("digit", "train", **GRAY)
    with pytest.raises(InputError, match="no data called 'no/such/folder'"):
        load_split("no/such/folder", "train", **GRAY)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file"):
        load_split(str(tmp_path / "a.png"), "train", **GRAY)


def test_first_is_spread_evenly_without_repeats() -> None:
    whole = load_split("digits", "test", height_px=8, width_px=8, channels=1)
    assert whole.first(None) is whole
    assert whole.first(364) is whole
    for count in (1, 2, 7, 100, 363):
        part = whole.first(count)
        assert len(part.images) == len(part.labels) == count
        rows = {image.tobytes() for image in part.images}
        assert len(rows) >= count - 2  # the source itself repeats hardly any picture
        np.testing.assert_array_equal(part.images[-1], whole.images[-1 if count > 1 else 0])


def test_the_digest_depends_on_images_labels_and_classes(tmp_path: Path) -> None:
    digests = set()
    for name, images, labels in (
        ("a", _random(2), [1, 2]),
        ("b", _random(2), [2, 1]),
        ("c", _random(2)[::-1].copy(), [1, 2]),
        ("d", _random(2), [1, 12]),
    ):
        _write_idx(tmp_path / name, "train", images, labels)
        digests.add(load_split(str(tmp_path / name), "train", **GRAY).sha256())
    assert len(digests) == 4
    _write_idx(tmp_path / "e", "train", _random(2), [1, 2], packed=True)
    assert load_split(str(tmp_path / "e"), "train", **GRAY).sha256() in digests


def test_bundled_files_hold_nothing_but_what_the_loader_reads() -> None:
    folder = builtin_folder("calibration") / "digits"
    assert read_idx(folder / "train-images-idx3-ubyte.gz", rank=3).shape == (1433, 8, 8)
    assert read_idx(folder / "t10k-labels-idx1-ubyte.gz", rank=1).shape == (364,)


def _image_folder(folder: Path, count: int) -> None:
    for at, pixels in enumerate(_random(count)):
        path = folder / "train" / "ab"[at % 2] / f"{at:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("kind", ["idx", "folder"])
def test_lazy_images_are_those_of_the_array(tmp_path: Path, kind: str) -> None:
    if kind == "idx":
        _write_idx(tmp_path, "train", _random(30), list(range(10)) * 3)
    else:
        _image_folder(tmp_path, 30)
    size = {"height_px": 6, "width_px": 5, "channels": 3}  # has to be resized
    eager, lazy = (load_split(str(tmp_path), "train", **size, lazy=lazy) for lazy in (False, True))
    assert isinstance(eager.images, np.ndarray)
    assert not isinstance(lazy.images, np.ndarray)
    assert len(lazy.images) == 30
    assert lazy.images.shape == eager.images.shape
    assert lazy.sha256() == eager.sha256()
    np.testing.assert_array_equal(np.asarray(lazy.images[7:12]), eager.images[7:12])
    assert np.asarray(lazy.images[4:4]).shape == (0, 6, 5, 3)
    for seed in (None, 5):
        few, all_few = (each.first(11, seed=seed) for each in (lazy, eager))
        np.testing.assert_array_equal(np.asarray(few.images), all_few.images)
        assert few.as_parent() == all_few.as_parent()


def test_lazy_image_files_are_read_only_when_they_are_looked_at(tmp_path: Path) -> None:
    _image_folder(tmp_path, 40)
    broken = sorted((tmp_path / "train" / "b").iterdir())[3]
    broken.write_bytes(b"no image")
    lazy = load_split(str(tmp_path), "train", **GRAY, lazy=True)
    assert np.asarray(lazy.images[:20]).shape == (20, 4, 3, 1)
    with pytest.raises(InputError, match=f"{broken.name} is not a readable image"):
        np.asarray(lazy.images[20:30])
    with pytest.raises(InputError, match=f"{broken.name} is not a readable image"):
        load_split(str(tmp_path), "train", **GRAY)


def test_a_draw_by_a_seed_is_frozen_and_recorded() -> None:
    from msn_deploy.data.sources import is_as_recorded

    split = load_split("digits", "train", height_px=8, width_px=8, channels=1)
    drawn = split.first(5, seed=3)
    wanted = [131, 514, 600, 648, 890]
    np.testing.assert_array_equal(drawn.images, split.images[wanted])
    assert drawn.read["first"] == [[5, 3]]
    assert split.first(5, seed=4).sha256() != drawn.sha256() != split.first(5).sha256()
    assert is_as_recorded(drawn.as_parent()) is True
    assert is_as_recorded(split.first(100, seed=1).first(20).as_parent()) is True
    parent = drawn.as_parent()
    assert is_as_recorded(replace(parent, read={**parent.read, "first": [[5, 4]]})) is False
    for damaged in ([5, -1], [5, "x"], [0, 1], [5, 3, 1], "5"):
        assert is_as_recorded(replace(parent, read={**parent.read, "first": [damaged]})) is None


@pytest.mark.parametrize("folders", [(".",), ("train", "test"), (".", "sub")])
def test_images_alone_do_where_no_labels_are_needed(tmp_path: Path, folders: tuple[str, ...]) -> None:
    from msn_deploy.data.sources import is_as_recorded

    for name in folders:
        (tmp_path / name).mkdir(exist_ok=True)
        for at, pixels in enumerate(_random(5)):
            Image.fromarray(pixels).save(tmp_path / name / f"{at}.png")
    got = load_split(str(tmp_path), "train", task=None, **GRAY)
    assert len(got.images) == (5 if "train" in folders else 4 * len(folders))
    assert (got.task, got.classes, got.labels.shape) == (None, (), (len(got.images), 0))
    assert is_as_recorded(got.first(2).as_parent()) is True
    if folders == (".",):
        with pytest.raises(InputError, match="holds no train data"):
            load_split(str(tmp_path), "train", **GRAY)


def test_classes_are_kept_where_no_labels_are_needed(tmp_path: Path) -> None:
    _write_images(tmp_path, {"a": 7, "b": 5})
    got = load_split(str(tmp_path), "train", task=None, **GRAY)
    assert (got.task, got.classes) == ("classification", ("a", "b"))
    assert got.sha256() == load_split(str(tmp_path), "train", **GRAY).sha256()
    assert "task" not in got.read
