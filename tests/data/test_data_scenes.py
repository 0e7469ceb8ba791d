"""`digits-scenes`: the same on every machine, and labels that say what the pictures show."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TASKS, Frame, TaskName
from msn_deploy.data import Split, load_split, scenes
from msn_deploy.data.frame import placement
from msn_deploy.data.idx import read_idx_folder
from msn_deploy.data.images import LazyImages, Raw
from msn_deploy.data.labels import ObjectLabels
from msn_deploy.data.names import folder_of
from msn_deploy.data.sources import IGNORED, is_as_recorded

SIZE = {"height_px": 96, "width_px": 96, "channels": 3}
DIGESTS: dict[TaskName | None, str] = {
    None: "9f67268562e56e6851368916cfd773963a1d17f07cc33379ccfd3b4100648546",
    "classification": "cded9114d771b62d658004c4ffe64ce5cc27a6d4aba45b81264ef2e1ad609dcd",
    "multi-label": "bf6d699a1509874c183c422e8f084f4026a0e9f15560b47a795f35430e6dd13e",
    "segmentation": "94e742c59e809ae05029b5abbdccd157b9b245b7d0ed7bd69c4b0908a8c92058",
    "detection": "1dc3f1393282c7c775f345487b8a268b537cd305077b093dbd9b4e70f693a1c4",
    "regression": "61f9856186b6f613d06535ed8755a0716f97dd7d3ce5edab6774fc842dff174c",
    "depth": "069bab383343c66a85ea008894b91525377470493128f30a7f1735d806304d3d",
    "embedding": "cded9114d771b62d658004c4ffe64ce5cc27a6d4aba45b81264ef2e1ad609dcd",
    "image-to-image": "9aeaeba1fd273e062b6654951ad54f1b1513a7685bb46fa76149956caff9fe93",
}


@cache
def _loaded(task: TaskName | None, split: str = "test") -> Split:
    return load_split("digits-scenes", split, task=task, **SIZE)


@pytest.mark.parametrize("task", [None, *TASKS])
def test_the_data_are_the_same_on_every_machine(task: TaskName | None) -> None:
    made = _loaded(task)
    assert made.sha256() == DIGESTS[task]
    assert made.task == task
    assert len(made.images) == len(made.labels) == 250


def test_scenes_of_a_split_show_its_own_digits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def seen(folder: Path, split: str) -> Raw | None:
        opened.append(split)
        return read_idx_folder(folder, split)

    monkeypatch.setattr(scenes, "read_idx_folder", seen)
    monkeypatch.setattr(scenes, "COUNTS", {"train": 2, "test": 2})
    folder = folder_of("digits-scenes")
    assert folder is not None
    for split in ("train", "test"):
        scenes._scenes.__wrapped__(folder, split)
    assert opened == ["train", "test"]


def test_boxes_are_tight_around_what_the_mask_shows() -> None:
    labels, masks = _loaded("detection").labels, _loaded("segmentation").labels
    assert isinstance(labels, ObjectLabels)
    crowds = 0
    for each, mask in zip(labels.images, masks[..., 0], strict=True):
        assert (each.width_px, each.height_px) == (96, 96)
        assert len(each.labels) >= 1
        assert each.areas.sum() == (mask > 0).sum()
        for box, label, crowd in zip(each.boxes.astype(int), each.labels, each.crowd, strict=True):
            inside = mask[box[1] : box[3], box[0] : box[2]] == 1 + label
            assert inside.any(axis=0)[[0, -1]].all()
            assert inside.any(axis=1)[[0, -1]].all()
            crowds += int(crowd)
    assert 5 <= crowds <= 30


def test_the_labels_of_all_tasks_tell_of_the_same_digits() -> None:
    objects, largest = _loaded("detection").labels.images, _loaded("classification").labels
    there, values = _loaded("multi-label").labels, _loaded("regression").labels
    np.testing.assert_array_equal(_loaded("embedding").labels, largest)
    assert _loaded("regression").classes == ("count", "sum")
    assert there.dtype == bool
    for at, each in enumerate(objects):
        alone = ~each.crowd
        assert set(np.flatnonzero(there[at])) == set(each.labels)
        assert largest[at] == each.labels[alone][np.argmax(each.boxes[alone, 3] - each.boxes[alone, 1])]
        if alone.all():
            assert values[at].tolist() == [len(each.labels), each.labels.sum()]
    assert np.bincount(largest, minlength=10).min() >= 10


def test_larger_digits_are_nearer_and_some_depth_is_not_measured() -> None:
    depth, masks = _loaded("depth").labels, _loaded("segmentation").labels
    assert depth.dtype == np.float32
    assert depth.shape == (250, 96, 96, 1)
    assert np.isnan(depth[:, :, :4]).all()
    assert 0 < np.isnan(depth[:, :, 4:]).mean() < 0.01
    for each, map_, mask in zip(_loaded("detection").labels.images, depth[..., 0], masks[..., 0], strict=True):
        np.testing.assert_allclose(map_[0, 4:][mask[0, 4:] == 0], 12)
        np.testing.assert_allclose(map_[-1, 4:][mask[-1, 4:] == 0], 7)
        for box, label in zip(each.boxes[~each.crowd].astype(int), each.labels[~each.crowd], strict=True):
            here = (slice(box[1], box[3]), slice(max(box[0], 4), box[2]))
            near = map_[here][mask[here] == 1 + label]
            if len(near):  # the height as it was drawn: of the seen part little may be cut off
                assert 96 / np.nanmax(near) <= 1.6 * (box[3] - box[1])


def test_the_wanted_image_is_the_clean_one() -> None:
    spoiled, clean = _loaded("image-to-image"), _loaded(None)
    np.testing.assert_array_equal(spoiled.labels, clean.images)
    error = spoiled.images.astype(float) - clean.images
    assert 18 < error.std() < 30
    assert abs(error.mean()) < 2
    assert clean.labels.shape == (250, 0)


@pytest.mark.parametrize(
    "more",
    [
        {"height_px": 48, "width_px": 48},
        {"height_px": 64, "width_px": 128, "fit": "letterbox", "fill": 114},
        {"height_px": 64, "width_px": 128, "fit": "crop"},
        {"height_px": 128, "width_px": 112, "fit": "pad", "align": "corner"},
    ],
)
def test_maps_lie_where_the_image_lies(more: dict[str, object]) -> None:
    size = {**SIZE, **more}
    at = placement(96, 96, Frame(**size))
    columns, rows = np.meshgrid(np.arange(size["width_px"]) + 0.5, np.arange(size["height_px"]) + 0.5)
    x, y = np.moveaxis(np.floor(at.to_image(np.stack([columns, rows], axis=-1))).astype(int), -1, 0)
    inside = (x >= 0) & (x < 96) & (y >= 0) & (y < 96)
    for task, outside in (("segmentation", IGNORED), ("depth", np.nan)):
        lazy = load_split("digits-scenes", "test", task=task, lazy=True, **size).first(9)  # type: ignore[arg-type]
        assert isinstance(lazy.labels, LazyImages)
        whole = _loaded(task).first(9).labels  # type: ignore[arg-type]
        wanted = np.where(inside, whole[:, y.clip(0, 95), x.clip(0, 95), 0], outside)
        np.testing.assert_array_equal(np.asarray(lazy.labels)[..., 0], wanted)
    wanted_image = load_split("digits-scenes", "test", task="image-to-image", lazy=True, **size).first(9)
    clean = load_split("digits-scenes", "test", task=None, lazy=True, **size).first(9)
    np.testing.assert_array_equal(np.asarray(wanted_image.labels), np.asarray(clean.images))


def test_a_frame_of_grey_gets_grey() -> None:
    got = load_split("digits-scenes", "test", task="image-to-image", lazy=True, **{**SIZE, "channels": 1}).first(3)
    assert np.asarray(got.images).shape == np.asarray(got.labels).shape == (3, 96, 96, 1)


@pytest.mark.parametrize("task", [None, "segmentation", "detection", "embedding", "depth"])
def test_what_was_loaded_is_known_again(task: TaskName | None) -> None:
    parent = _loaded(task).first(20).as_parent()
    assert parent.read["task"] == task
    assert is_as_recorded(parent) is True
    assert is_as_recorded(replace(parent, read={**parent.read, "first": [21]})) is False
    assert is_as_recorded(replace(parent, read={**parent.read, "task": "guessing"})) is None


def test_digits_alone_have_no_boxes() -> None:
    with pytest.raises(InputError, match="digits has one class for each image, and no labels for detection"):
        load_split("digits", "test", task="detection", **SIZE)
