"""Masks and boxes move with their images: what was on a pixel is on it afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from msn_deploy.core.model_info import Preprocess, TaskName
from msn_deploy.core.recipes import TrainOptions
from msn_deploy.data import Split
from msn_deploy.data.labels import ObjectLabels, Objects
from msn_deploy.data.sources import IGNORED
from msn_deploy.training.batches import Batches, divided
from msn_deploy.training.labels import CROWD, NOTHING, Boxes, Moves, labels_of, moved, picked

COUNT, HEIGHT, WIDTH = 12, 16, 24
PREP = Preprocess(height_px=HEIGHT, width_px=WIDTH, channels=1, mean=(0.0,), std=(1 / 255,))


def _objects(boxes: Any, labels: Any, *, crowd: Any = None, width: int = WIDTH, height: int = HEIGHT) -> Objects:
    count = len(labels)
    return Objects(
        boxes=np.asarray(boxes, dtype=np.float64).reshape(count, 4),
        labels=np.asarray(labels, dtype=np.int64),
        crowd=np.zeros(count, dtype=bool) if crowd is None else np.asarray(crowd),
        areas=np.ones(count),
        width_px=width,
        height_px=height,
    )


def _split(labels: Any, task: TaskName, images: Any = None) -> Split:
    if images is None:
        images = np.random.default_rng(1).integers(1, 200, (COUNT, HEIGHT, WIDTH, 1), dtype=np.uint8)
    return Split(source="made", images=images, labels=labels, classes=("a", "b", "c"), task=task)


def _batches(split: Split, augment: str) -> Batches:
    options = TrainOptions(epochs=1, batch_size=4, learning_rate=0.1, augment=augment, seed=3)  # type: ignore[arg-type]
    return Batches(split, PREP, options, device=torch.device("cpu"))


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_a_mask_stays_on_its_image(augment: str) -> None:
    """Each image is its own mask."""
    split = _split(None, "segmentation")
    split = _split(split.images, "segmentation", split.images)
    seen_border = False
    for epoch in range(3):
        for images, masks in _batches(split, augment).epoch(epoch):
            assert isinstance(masks, torch.Tensor)
            assert masks.dtype == torch.uint8
            border = masks[..., 0] == IGNORED
            seen_border |= bool(border.any())
            assert torch.equal(images[:, 0], torch.where(border, 0, masks[..., 0]).float())
    assert seen_border == ("crop" in augment)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_a_box_stays_on_what_it_shows(augment: str) -> None:
    """Each image is black but for two rectangles, 100 and 200 grey, each with a box."""
    images = np.zeros((COUNT, HEIGHT, WIDTH, 1), dtype=np.uint8)
    every = []
    rng = np.random.default_rng(2)
    for image in images:
        boxes = []
        for grey, left in ((100, 0), (200, 12)):
            x, y = left + int(rng.integers(2, 5)), int(rng.integers(2, 8))
            wide, high = int(rng.integers(3, 7)), int(rng.integers(3, 6))
            image[y : y + high, x : x + wide] = grey
            boxes.append((x, y, x + wide, y + high))
        every.append(_objects(boxes, [1, 2]))
    split = _split(ObjectLabels(tuple(every)), "detection", images)
    found = moves = 0
    for epoch in range(8):
        for pixels, labels in _batches(split, augment).epoch(epoch):
            assert isinstance(labels, Boxes)
            for image, boxes, classes in zip(pixels[:, 0], labels.boxes, labels.labels.tolist(), strict=True):
                for box, label, grey in zip(boxes.tolist(), classes, (100, 200), strict=True):
                    rows, columns = (image == grey).nonzero(as_tuple=True)
                    if label == NOTHING:  # less than a quarter is left
                        assert len(rows) <= 0.25 * 6 * 5
                        continue
                    assert label == {100: 1, 200: 2}[grey]
                    seen = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
                    assert tuple(box) == seen
                    found += 1
                moves += not any(torch.equal(image, torch.from_numpy(each[..., 0]).float()) for each in images)
    assert found > 150
    assert (moves > 0) == (augment != "none")


def test_a_box_of_which_hardly_anything_is_left_is_dropped() -> None:
    quarter, less, crowd = [0, 4, 4, 8], [0, 4, 3.9, 8], [0, 0, 4, 4]
    labels = labels_of(
        _split(ObjectLabels((_objects([quarter, less, crowd], [0, 1, 2], crowd=[0, 0, 1]),)), "detection"), PREP
    )
    far = (2, 3)
    moves = Moves(torch.tensor([2]), torch.tensor([6]), torch.tensor([0]), far)  # to the left by 3
    cut = picked(labels, torch.tensor([0]), moves, (HEIGHT, WIDTH))
    assert isinstance(cut, Boxes)
    assert cut.labels.tolist() == [[0, NOTHING, CROWD]]
    assert cut.boxes[0, 0].tolist() == [0, 4, 1, 8]
    flipped = picked(labels, torch.tensor([0]), Moves(*moves[:2], torch.tensor([1]), far), (HEIGHT, WIDTH))
    assert isinstance(flipped, Boxes)
    assert flipped.boxes[0, 0].tolist() == [WIDTH - 4 - 3 + 6, 4, WIDTH, 8]


def test_boxes_lie_in_the_frame_that_the_image_was_brought_to() -> None:
    """An image of twice the size, letterboxed: 8 pixels of each side are canvas."""
    prep = Preprocess(height_px=32, width_px=32, channels=1, mean=(0.0,), std=(1.0,), fit="letterbox")
    objects = ObjectLabels(
        (
            _objects([[0, 0, 64, 32], [60, -8, 76, 8]], [0, 1], width=64, height=32),
            _objects([], [], width=32, height=32),
        )
    )
    found = labels_of(_split(objects, "detection", np.zeros((2, 32, 32, 1), dtype=np.uint8)), prep)
    assert isinstance(found, Boxes)
    assert found.boxes[0].tolist() == [[0, 8, 32, 24], [30, 4, 32, 12]]
    assert found.labels.tolist() == [[0, 1], [NOTHING, NOTHING]]


def test_numbers_stay_as_they_are() -> None:
    values = np.random.default_rng(0).normal(size=(COUNT, 3))
    chosen, moves = torch.tensor([3, 1]), Moves(*torch.zeros(3, 2, dtype=torch.int64), (2, 3))
    found = picked(labels_of(_split(values, "regression"), PREP), chosen, moves, (HEIGHT, WIDTH))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), values[[3, 1]])


def test_moves_are_what_they_say() -> None:
    image = torch.arange(1, 1 + HEIGHT * WIDTH).view(1, HEIGHT, WIDTH, 1)
    one = torch.tensor([1])
    shifted = moved(image, Moves(0 * one, 6 * one, 0 * one, (2, 3)), fill=-1)  # down by 2, to the left by 3
    assert (shifted[0, :2] == -1).all()
    assert torch.equal(shifted[0, 2:, :-3], image[0, :-2, 3:])
    assert torch.equal(moved(image, Moves(0 * one, 0 * one, one, (0, 0))), image.flip(2))


def test_objects_are_divided_with_their_images() -> None:
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] + np.zeros((1, HEIGHT, WIDTH, 1), dtype=np.uint8)
    labels = ObjectLabels(tuple(_objects([[0, 0, 4, 4]], [at]) for at in range(COUNT)))
    for part, count in zip(divided(_split(labels, "detection", images), 0.25), (9, 3), strict=True):
        assert len(part.images) == len(part.labels) == count
        assert [int(each.labels[0]) for each in part.labels.images] == part.images[:, 0, 0, 0].tolist()
