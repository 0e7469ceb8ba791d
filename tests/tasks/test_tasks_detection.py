import json
from dataclasses import replace

import numpy as np
import pytest

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.model_info import Frame, TensorSpec
from msn_deploy.data.frame import placement
from msn_deploy.data.labels import ObjectLabels, Objects
from msn_deploy.tasks import make_task
from msn_deploy.tasks.detection import DetectionAnswer
from msn_deploy.tasks.task import Given

CLASSES = ("cat", "dog", "fish")


def task(classes=CLASSES, *, shape=(None, 7, 50), **reading):
    given = Given(
        model="net",
        classes=tuple(classes),
        named=False,
        reading=reading,
        outputs=(TensorSpec("y", "float32", shape),),
        endings=("logits",),
    )
    return make_task("detection", given)


def columns(*boxes):
    """Outputs of yolov8 for one image: cx, cy, w, h and three scores of each box."""
    return {"y": np.array(boxes, np.float32).T[np.newaxis]}


def answer(boxes, scores, labels, *, show=0.25):
    return DetectionAnswer(
        boxes=np.array(boxes, float).reshape(-1, 4),
        scores=np.array(scores, float),
        labels=np.array(labels, int),
        names=tuple(CLASSES[label] for label in labels),
        likeliest=np.ones(len(labels), bool),
        show=show,
    )


def objects(boxes, labels, *, crowd=None, areas=None, size=(200, 100)):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Objects(
        boxes=boxes,
        labels=np.array(labels, int),
        crowd=np.array(crowd if crowd is not None else [False] * len(boxes), bool),
        areas=np.array(areas, float) if areas is not None else (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        width_px=size[0],
        height_px=size[1],
    )


def scene(seed):
    """Random objects in images, and answers that find some of them, each of them more or less."""
    numbers = np.random.RandomState(seed)
    answers, labels = [], []
    for _ in range(12):
        count = numbers.randint(0, 9)
        corners = numbers.rand(count, 2) * [120, 50]
        sides = 4 + numbers.rand(count, 2) ** 2 * 140
        boxes, kinds = np.concatenate([corners, corners + sides], axis=1), numbers.randint(0, 2, count)
        crowd = numbers.rand(count) < 0.15
        labels.append(objects(boxes, kinds, crowd=crowd, areas=sides.prod(axis=1) * numbers.uniform(0.5, 1, count)))
        times = np.repeat(np.arange(count), numbers.randint(0, 3, count))
        moved = boxes[times] + numbers.randn(len(times), 4)
        found = np.where(numbers.rand(len(times)) < 0.8, kinds[times], numbers.randint(0, 3, len(times)))
        order = np.argsort(-numbers.rand(len(times)))
        answers.append(answer(moved[order], np.sort(numbers.rand(len(times)))[::-1], found[order]))
    return answers, labels


def in_coco(at, box, label):
    x1, y1, x2, y2 = box
    return {"image_id": 100 + at, "category_id": 7 * int(label) + 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def measured(answers, labels):
    meter = task().meter()
    for start in range(0, len(answers), 5):
        meter.add(answers[start : start + 5], ObjectLabels(tuple(labels[start : start + 5])))
    return meter.score()


def test_boxes_come_through_nms_best_first():
    cat, cat_too, dog = (50, 50, 20, 20, 0.5, 0.01, 0), (50, 50, 20, 21, 0.9, 0, 0), (50, 50, 20, 20, 0, 0.7, 0)
    outputs = columns(cat, cat_too, dog, (9, 9, 8, 8, 0, 0, 0.2))
    (found,) = task().answers(outputs)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.2])
    np.testing.assert_allclose(found.boxes, [[40, 39.5, 60, 60.5], [40, 40, 60, 60], [5, 5, 13, 13]])
    assert (found.labels.tolist(), found.names) == ([0, 1, 2], ("cat", "dog", "fish"))
    assert task(max="2").answers(outputs)[0].labels.tolist() == [0, 1]
    assert task(iou="0.99").answers(outputs)[0].scores.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.2])
    assert task(score="0.6").answers(outputs)[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize("fit", ["resize", "letterbox", "pad", "crop"])
def test_boxes_are_in_pixels_of_the_image_and_inside_of_it(fit):
    frame = Frame(height_px=320, width_px=320, channels=3, fit=fit)
    size = (200, 100)
    at = placement(*size, frame)
    truth = np.array([[60.0, 20, 120, 80], [150, -10, 230, 50]])
    inside = at.to_frame(truth)
    centres = np.concatenate([(inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]], axis=1)
    outputs = columns([*centres[0], 0.9, 0, 0], [*centres[1], 0, 0.8, 0], [*(at.to_frame(truth[0] + 999)), 0.9, 0, 0])
    (found,) = task().answers(outputs, [at])
    np.testing.assert_allclose(found.boxes, [[60, 20, 120, 80], [150, 0, 200, 50]], atol=1e-4)


def test_boxes_without_rows_of_their_own_are_of_one_image():
    row = np.array([[0, 1, 1, 9, 9, 2, 0.5], [1, 2, 2, 8, 8, 1, 0.4]], np.float32)
    frame = Frame(height_px=10, width_px=10, channels=3)
    both = task(shape=(None, 7)).answers({"y": row}, [placement(10, 10, frame)] * 2)
    assert [each.names for each in both] == [("fish",), ("dog",)]
    specs = (
        TensorSpec("boxes", "float32", (None, 4)),
        TensorSpec("labels", "int64", (None,)),
        TensorSpec("scores", "float32", (None,)),
    )
    given = Given(model="net", classes=(), named=False, reading={}, outputs=specs, endings=("logits",) * 3)
    single = make_task("detection", given)
    outputs = {"boxes": row[:1, 1:5], "labels": np.array([18]), "scores": row[:1, 6]}
    assert single.answers(outputs)[0].names == ("17",)
    with pytest.raises(InputError, match="boxes of one image; 2 were given"):
        single.answers(outputs, [placement(10, 10, frame)] * 2)


def test_an_answer_says_the_boxes_that_score_enough():
    boxes = [[0, 0, 9, 9], [5, 5, 20, 9], [0, 0, 9, 9], [1, 1, 2, 2]]
    found = answer(boxes, [0.91, 0.8, 0.5, 0.1], [1, 0, 0, 2])
    assert found.text() == "2 boxes: dog 0.91, cat 0.80"  # a box that has two classes is said once
    assert found.to_json() == {
        "boxes": [
            {"label": "dog", "score": 0.91, "box": [0, 0, 9, 9]},
            {"label": "cat", "score": 0.8, "box": [5, 5, 20, 9]},
        ]
    }
    assert replace(found, show=0.9).text() == "1 box: dog 0.91"
    assert replace(found, show=0.95).text() == "no boxes"
    many = answer([[at, 0, at + 1, 1] for at in range(11)], [0.5] * 11, [0] * 11)
    assert many.text().startswith("11 boxes: ")
    assert many.text().endswith("cat 0.50 and 3 more")
    assert json.loads(json.dumps(many.to_json()))["boxes"][10]["box"] == [10, 0, 11, 1]


@pytest.mark.parametrize(("per_box", "labels"), [("all", [0, 1]), ("best", [0])])
def test_the_second_class_of_a_box_is_not_shown_where_a_better_box_has_the_first(per_box, labels):
    """As in ultralytics: it predicts with the likeliest class of each box, and measures with all of them."""
    (found,) = task(per_box=per_box).answers(columns((50, 50, 20, 20, 0.9, 0.3, 0), (50, 50, 20, 21, 0.8, 0.4, 0)))
    assert found.labels.tolist() == labels
    assert found.text() == "1 box: cat 0.90"


def test_boxes_are_drawn_in_the_colour_of_their_class():
    grey = np.full((180, 240, 3), 128, np.uint8)
    drawn = answer([[20, 40, 80, 70], [90, 60, 110, 80]], [0.9, 0.1], [1, 2]).drawn(grey)
    assert drawn.shape == grey.shape
    assert (grey == 128).all()
    edge = drawn[69, 20:80]
    assert (edge == edge[0]).all()
    assert (edge[0] != 128).any()
    assert (drawn[50:60, 30:70] == 128).all()
    assert (drawn[20:38, 20:60] != 128).any()  # the caption
    assert (drawn[58:, 85:] == 128).all()
    other = answer([[20, 40, 80, 70]], [0.9], [2]).drawn(grey)
    assert (other[69, 20] != edge[0]).any()
    right = answer([[236, 60, 239, 90]], [0.9], [1]).drawn(grey)
    assert (right[40:58, 180:230] != 128).any()  # the caption is moved into the picture
    tiny = answer([[0, 0, 0.2, 0.2], [119.9, 89.9, 120, 90]], [0.9, 0.9], [1, 1]).drawn(grey)
    assert (tiny[0, 0] != 128).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_metric_is_that_of_pycocotools_on_the_same_boxes_in_files(seed, tmp_path, capsys):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    answers, labels = scene(seed)
    score = measured(answers, labels)
    assert capsys.readouterr().out == ""
    truth = {
        "images": [
            {"id": 100 + at, "file_name": f"{at}.png", "height": 100, "width": 200} for at in range(len(labels))
        ],
        "categories": [{"id": 7 * at + 3, "name": name} for at, name in enumerate(CLASSES)],
        "annotations": [],
    }
    found = []
    for at, (seen, there) in enumerate(zip(answers, labels, strict=True)):
        for box, label, crowd, area in zip(there.boxes, there.labels, there.crowd, there.areas, strict=True):
            one = {"id": len(truth["annotations"]) + 1, "iscrowd": int(crowd), "area": area}
            truth["annotations"].append(one | in_coco(at, box, label))
        found += [
            in_coco(at, box, label) | {"score": score}
            for box, label, score in zip(seen.boxes, seen.labels, seen.scores, strict=True)
        ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    theirs = coco.COCO(tmp_path / "truth.json")
    judge = cocoeval.COCOeval(theirs, theirs.loadRes(str(tmp_path / "found.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    order = ["mAP50", "mAP75", *(f"mAP_{size}" for size in ("small", "medium", "large"))]
    order += ["AR1", "AR10", "AR100", *(f"AR_{size}" for size in ("small", "medium", "large"))]
    ours = [score.value, *(score.others.get(name, -1) for name in order)]
    np.testing.assert_allclose(ours, judge.stats, rtol=0, atol=1e-12)
    assert 0.1 < score.value < 0.9
    assert list(score.per_class) == ["cat", "dog"]  # there is no fish
    assert np.mean(list(score.per_class.values())) == pytest.approx(score.value, abs=1e-6)
    assert (score.metric, score.unit, score.samples, score.each) == ("mAP", "share", 12, None)


def test_the_metric_of_what_is_right_is_one_and_of_nothing_zero():
    boxes = [[[10, 10, 40, 40], [50, 10, 80, 60]], [[0, 0, 5, 5]], []]
    labels = [objects(each, [0] * len(each)) for each in boxes]
    right = [answer(each, [0.9, 0.8][: len(each)], [0] * len(each)) for each in boxes]
    assert measured(right, labels).value == pytest.approx(1)
    empty = measured([answer([], [], [])] * 3, labels)
    assert (empty.value, empty.others["AR100"], empty.per_class) == (0, 0, {"cat": 0})
    wrong = [replace(each, labels=each.labels + 1) for each in right]
    assert measured(wrong, labels).value == 0


def test_low_scores_count_in_the_metric_though_they_are_not_shown():
    (found,) = task().answers(columns((25, 25, 30, 30, 0.05, 0, 0)))
    assert found.text() == "no boxes"
    assert measured([found], [objects([[10, 10, 40, 40]], [0])]).value == pytest.approx(1)


def test_a_group_is_neither_found_nor_missed():
    there = objects([[10, 10, 40, 40], [100, 10, 190, 90]], [0, 0], crowd=[False, True])
    found = answer([[10, 10, 40, 40], [100, 10, 140, 50], [150, 50, 190, 90]], [0.5, 0.9, 0.8], [0, 0, 0])
    assert measured([found], [there]).value == pytest.approx(1)
    assert measured([found], [replace(there, crowd=np.array([False, False]))]).value < 0.5


def test_labels_without_an_object_have_no_metric():
    there = objects([[10, 10, 40, 40]], [0], crowd=[True])
    with pytest.raises(InputError, match="the 2 images have no object"):
        measured([answer([], [], [])] * 2, [objects([], []), there])


def test_pycocotools_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(MissingDependency, match=r"\.\[detection\]"):
        task().meter()
    assert task().answers(columns((25, 25, 30, 30, 0.5, 0, 0)))[0].text() == "1 box: cat 0.50"
