"""The loss of each task, against numbers worked out by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from msn_deploy.core.recipes import Recipe
from msn_deploy.data.sources import IGNORED
from msn_deploy.training.labels import CROWD, NOTHING, Boxes
from msn_deploy.training.losses import assign, detection_loss, focal_loss, giou_of_sides, loss_of, segmentation_loss

SIDE_PX, CELLS = 32, 8  # so that a cell is 4 pixels wide


def _boxes(*images: list[tuple[list[float], int]]) -> Boxes:
    most = max(map(len, images))
    boxes, labels = torch.zeros(len(images), most, 4, dtype=torch.float64), torch.full((len(images), most), NOTHING)
    for at, objects in enumerate(images):
        for place, (box, label) in enumerate(objects):
            boxes[at, place], labels[at, place] = torch.tensor(box, dtype=torch.float64), label
    return Boxes(boxes, labels)


def _cells(classes: Tensor, wanted: int) -> set[tuple[int, int]]:
    """Return the cells (row, column) of the only image that learn something."""
    return {divmod(int(at), CELLS) for at in (classes[0] == wanted).nonzero()}


def test_cross_entropy_and_dice_leave_out_pixels_without_a_label() -> None:
    logits = torch.tensor([[0.3, -1.2, 0.5], [1.0, 0.0, -0.5]], dtype=torch.float64).view(1, 2, 1, 3)
    masks = torch.tensor([0, 1, IGNORED], dtype=torch.uint8).view(1, 1, 3, 1)
    first = math.log(1 + math.exp(1.0 - 0.3))  # -log softmax of class 0 in the first pixel
    second = math.log(1 + math.exp(-1.2 - 0.0))
    p = [[math.exp(-first), 1 - math.exp(-first)], [1 - math.exp(-second), math.exp(-second)]]
    dice = [(2 * p[at][at] + 1) / (p[0][at] + p[1][at] + 1 + 1) for at in range(2)]
    apart = 1 - sum(dice) / 2
    assert float(segmentation_loss(logits, masks)) == pytest.approx((first + second) / 2 + apart, abs=1e-14)
    assert float(segmentation_loss(logits, torch.full_like(masks, IGNORED))) == 0
    smooth = [
        0.95 * first + 0.05 * math.log(1 + math.exp(0.3 - 1.0)),
        0.95 * second + 0.05 * math.log(1 + math.exp(0.0 + 1.2)),
    ]
    found = segmentation_loss(logits, masks, label_smoothing=0.1)
    assert float(found) == pytest.approx(sum(smooth) / 2 + apart, abs=1e-14)


def test_focal_loss_is_equation_5() -> None:
    logits = torch.tensor([-2.0, 0.7, 3.0, -40.0], dtype=torch.float64)
    targets = torch.tensor([1, 0, 1, 1])
    p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    wanted = [
        -0.25 * (1 - p[0]) ** 2 * math.log(p[0]),
        -0.75 * p[1] ** 2 * math.log(1 - p[1]),
        -0.25 * (1 - p[2]) ** 2 * math.log(p[2]),
        0.25 * 40,  # log p = -40, p = 0
    ]
    torch.testing.assert_close(
        focal_loss(logits, targets), torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_giou_of_boxes_around_a_point() -> None:
    one = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64)  # 4 wide, 4 high
    other = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)  # 3 wide, 2 high
    shared, hull = (1 + 1) * (1 + 1), (2 + 3) * (2 + 2)
    union = 16 + 6 - shared
    assert float(giou_of_sides(one, other)) == pytest.approx(shared / union - (hull - union) / hull, abs=1e-15)
    assert float(giou_of_sides(one, one)) == 1
    nothing = torch.zeros(4, dtype=torch.float64)
    assert float(giou_of_sides(nothing, nothing)) == 0
    assert float(giou_of_sides(nothing, one)) == pytest.approx(-0.0, abs=1e-15)


def test_cells_in_the_middle_of_a_box_learn_it() -> None:
    # 16 pixels: the middle is 8..16 in x and 4..12 in y, where the centres 10, 14 and 6, 10 lie.
    found = assign(_boxes([([4.0, 0.0, 20.0, 16.0], 3)]), CELLS, CELLS, 4.0)
    assert _cells(found.classes, 3) == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert _cells(found.classes, NOTHING) == {divmod(at, CELLS) for at in range(64)} - _cells(found.classes, 3)
    at = 1 * CELLS + 2  # centre (10, 6)
    assert found.sides[0, at].tolist() == [6, 6, 10, 10]


def test_a_thin_box_is_learned_by_the_cells_nearest_to_its_centre() -> None:
    # A quarter of its width to each side of x = 11.5 holds no cell's centre, half a cell holds 10; middle y 10..22.
    thin = assign(_boxes([([9.5, 4.0, 13.5, 28.0], 0)]), CELLS, CELLS, 4.0)
    assert _cells(thin.classes, 0) == {(2, 2), (3, 2), (4, 2), (5, 2)}
    sliver = assign(_boxes([([8.5, 4.0, 9.5, 28.0], 0)]), CELLS, CELLS, 4.0)  # no centre lies inside
    assert not _cells(sliver.classes, 0)


def test_the_smallest_box_wins_and_a_crowd_is_neither_right_nor_wrong() -> None:
    large, small = [0.0, 0.0, 32.0, 32.0], [12.0, 12.0, 20.0, 20.0]
    for order in ([(large, 1), (small, 2)], [(small, 2), (large, 1)]):
        found = assign(_boxes(order), CELLS, CELLS, 4.0)
        assert _cells(found.classes, 2) == {(row, column) for row in (3, 4) for column in (3, 4)}
        assert len(_cells(found.classes, 1)) == 16 - 4
    crowded = assign(_boxes([(large, 1), ([0.0, 0.0, 12.0, 12.0], CROWD)]), CELLS, CELLS, 4.0)
    assert (2, 2) in _cells(crowded.classes, 1)  # in both
    assert _cells(crowded.classes, CROWD) == {(row, col) for row in range(3) for col in range(3)} - {(2, 2)}
    nothing = assign(_boxes([], []), CELLS, CELLS, 4.0)
    assert nothing.classes.tolist() == [[NOTHING] * 64] * 2


def test_the_loss_of_detection_is_focal_and_giou_by_the_number_of_cells() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(2, 5 + 4, CELLS, CELLS, dtype=torch.float64)
    outputs[:, 5:] = outputs[:, 5:].abs()
    objects = _boxes([([4.0, 0.0, 20.0, 16.0], 3), ([24.0, 24.0, 32.0, 32.0], CROWD)], [([12.0, 12.0, 20.0, 20.0], 0)])
    middles = {(0, 1, 2): 3, (0, 1, 3): 3, (0, 2, 2): 3, (0, 2, 3): 3}
    middles |= {(1, row, col): 0 for row in (3, 4) for col in (3, 4)}
    crowd = {(0, row, col) for row in (6, 7) for col in (6, 7)}
    focal = apart = 0.0
    for image in range(2):
        for row in range(CELLS):
            for col in range(CELLS):
                learned = middles.get((image, row, col))
                targets = torch.tensor([int(at == learned) for at in range(5)])
                if (image, row, col) not in crowd:
                    focal += float(focal_loss(outputs[image, :5, row, col], targets).sum())
                if learned is not None:
                    box = objects.boxes[image, 0]
                    x, y = 4 * col + 2, 4 * row + 2
                    sides = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / 4
                    apart += 1 - float(giou_of_sides(outputs[image, 5:, row, col], sides))
    found = detection_loss(outputs, objects, height_px=SIDE_PX)
    assert float(found) == pytest.approx((focal + apart) / 8, abs=1e-12)


def test_a_batch_without_objects_has_a_loss() -> None:
    outputs = torch.zeros(1, 6, CELLS, CELLS, dtype=torch.float64, requires_grad=True)
    loss = detection_loss(outputs, _boxes([]), height_px=SIDE_PX)
    assert float(loss.detach()) == pytest.approx(64 * 2 * 0.75 * 0.25 * math.log(2), abs=1e-12)
    loss.backward()
    assert outputs.grad is not None
    assert not outputs.grad[:, 2:].any()


def test_the_recipe_says_which_loss(small_recipe: Callable[..., Recipe]) -> None:
    recipe = small_recipe("cnn3", "bn", label_smoothing=0.1)
    logits = torch.tensor([[0.3, -1.2], [1.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([1, 0])
    each = [math.log(1 + math.exp(0.3 + 1.2)), math.log(1 + math.exp(0.0 - 1.0))]
    wrong = [each[0] - 1.5, each[1] + 1.0]
    smooth = [0.95 * one + 0.05 * other for one, other in zip(each, wrong, strict=True)]
    assert float(loss_of(recipe)(logits, right)) == pytest.approx(sum(smooth) / 2, abs=1e-14)
    recipe = small_recipe("cnn3", "bn")
    several = loss_of(replace(recipe, task="multi-label"))(logits, torch.tensor([[True, False], [False, False]]))
    terms = [math.log(1 + math.exp(sign * x)) for sign, x in ((-1, 0.3), (1, -1.2), (1, 1.0), (1, 0.0))]
    assert float(several) == pytest.approx(sum(terms) / 4, abs=1e-14)
    values = loss_of(replace(recipe, task="regression"))(logits, torch.tensor([[0.0, 1.0], [1.5, 0.0]]))
    smooth_l1 = [0.5 * 0.3**2, 2.2 - 0.5, 0.5 * 0.5**2, 0.0]
    assert float(values) == pytest.approx(sum(smooth_l1) / 4, abs=1e-14)
