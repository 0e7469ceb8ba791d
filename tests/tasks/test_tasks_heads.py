"""Each head on numbers whose boxes were worked out by hand: two boxes in a frame of 64 x 32 pixels."""

import numpy as np
import pytest

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.tasks.heads import HEADS, make_reader
from msn_deploy.tasks.task import Given

FRAME = (64, 32)
BOXES = np.array([[8.0, 4, 24, 12], [32, 16, 64, 32]])
CENTRES = np.array([[16.0, 8, 16, 8], [48, 24, 32, 16]])
SHARES = CENTRES / [64, 32, 64, 32]
SCORES = np.array([[0.1, 0.8, 0.3], [0.6, 0.0005, 0.2]])
PAIRS = [(0, 1, 0.8), (1, 0, 0.6), (0, 2, 0.3), (1, 2, 0.2), (0, 0, 0.1)]  # box, class, score, the best first
BEST = [(0, 1, 0.8), (1, 0, 0.6)]
WIDE = np.concatenate([SCORES, np.full((2, 2), 1e-6)], axis=1)
ABC = ("a", "b", "c")
FIVE = (*ABC, "d", "e")


def given(outputs, reading, classes=ABC, *, ending="logits", frame=FRAME, open_sizes=False):
    specs = [
        TensorSpec(name, array.dtype.name, (None, *([None] * (array.ndim - 1) if open_sizes else array.shape[1:])))
        for name, array in outputs.items()
    ]
    return Given(
        model="net",
        classes=tuple(classes),
        named=False,
        reading=reading,
        outputs=tuple(specs),
        endings=(ending,) * len(specs),
        frame=frame and (frame[1], frame[0]),
    )


def seen(outputs, classes=ABC, *, at=0, frame=FRAME, ending="logits", **reading):
    """Return (box, class, score) as they were found, the best first; a box that is none of BOXES is there in full."""
    reader = make_reader(given(outputs, reading, classes, ending=ending, frame=frame))
    found = reader.candidates(outputs, at)
    order = np.argsort(-found.scores, kind="stable")
    return [
        (place(found.boxes[each]), int(found.labels[each]), pytest.approx(float(found.scores[each]), abs=1e-6))
        for each in order
    ]


def place(box):
    near = np.abs(BOXES - box).max(axis=1) < 1e-4
    return int(near.argmax()) if near.any() else box.tolist()


def batch(array):
    """A batch of two, the second of which is what matters."""
    array = np.asarray(array)
    return np.stack([np.zeros_like(array), array]).astype(np.float32 if array.dtype.kind == "f" else array.dtype)


def log(scores):
    return np.log(scores / (1 - scores))


def yolov5():
    return {"output": batch(np.concatenate([CENTRES, [[0.9], [0.9]], SCORES / 0.9], axis=1))}


def yolov8():
    return {"output0": batch(np.concatenate([CENTRES, SCORES], axis=1).T)}


def softmax_logits(*, background):
    """Logits, with a shift, of 0.8 SCORES, two unlikely classes, and what is left for the background."""
    scores = WIDE * 0.8
    rest = 1 - scores.sum(axis=1, keepdims=True)
    return np.log(np.concatenate([rest, scores] if background == "first" else [scores, rest], axis=1)) + 7


SHRUNK = [(box, label, 0.8 * score) for box, label, score in PAIRS]


def test_yolov5_multiplies_the_probabilities_of_object_and_class():
    assert seen(yolov5(), at=1) == PAIRS
    assert seen(yolov5(), at=0) == []
    assert seen(yolov5(), at=1, head="yolov5", per_box="best") == BEST
    assert seen(yolov5(), at=1, score=0.25) == PAIRS[:3]
    halved = yolov5()
    halved["output"][1, :, 4] /= 2
    assert seen(halved, at=1)[0] == (0, 1, 0.4)


def test_yolov8_has_its_boxes_in_columns_or_in_rows():
    assert seen(yolov8(), at=1) == PAIRS
    rows = {"output0": yolov8()["output0"].transpose(0, 2, 1)}
    assert seen(rows, at=1, head="yolov8") == PAIRS
    many = {"output0": np.tile(rows["output0"], (1, 9, 1))}
    assert seen(many, (), at=1, head="yolov8")[:9] == [PAIRS[0]] * 9  # the longer side is that of the boxes


def test_boxes_are_in_pixels_or_shares_and_in_any_format():
    outputs = yolov8()
    outputs["output0"][1, :4] = (BOXES / [64, 32, 64, 32]).T
    assert seen(outputs, at=1, format="xyxy", units="share") == PAIRS
    outputs["output0"][1, 2:4] -= outputs["output0"][1, :2]
    assert seen(outputs, at=1, format="xywh", units="share") == PAIRS
    assert seen(outputs, at=1, format="xywh", units="share", frame=None)[1][0] == [0.5, 0.5, 1, 1]


def test_fcos_reaches_from_the_centres_of_its_cells():
    maps = np.full((7, 4, 8), -20.0)  # of 8 x 8 pixels
    maps[3:] = 0
    for (y, x), scores, reach in (((1, 2), SCORES[0], (1.5, 1, 0.5, 0)), ((2, 6), SCORES[1], (2.5, 0.5, 1.5, 1.5))):
        maps[:3, y, x], maps[3:, y, x] = log(scores), reach
    outputs = {"maps": batch(maps)}
    assert seen(outputs, at=1, classes=ABC) == PAIRS
    assert seen(outputs, at=1, stride=8) == PAIRS
    assert seen(outputs, at=1, stride=16)[0][0] == [16, 8, 48, 24]
    assert seen(outputs, at=1, frame=None)[1][0] == [0.5, 0.5, 1, 1]
    with pytest.raises(InputError, match=r"8x4 cells for a frame of 60x32 pixels.*\n.*--read stride"):
        seen(outputs, at=1, frame=(60, 32))


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize("ending", ["logits", "softmax", "unknown"])
def test_ssd_gives_corners_as_shares_and_scores_with_a_background(background, ending):
    logits = softmax_logits(background=background)
    numbers = logits if ending == "logits" else np.exp(logits - 7)
    outputs = {"scores": batch(numbers), "boxes": batch(BOXES / [64, 32, 64, 32])}
    assert seen(outputs, at=1, ending=ending, head="ssd", background=background, classes=FIVE) == SHRUNK[:5]


@pytest.mark.parametrize("ending", ["logits", "sigmoid", "unknown"])
def test_ssd_without_a_background_has_independent_classes(ending):
    outputs = {"boxes": batch(BOXES), "scores": batch(WIDE if ending == "sigmoid" else log(WIDE))}
    assert seen(outputs, FIVE, at=1, ending=ending, head="ssd", background="none", units="pixels") == PAIRS


def test_detr_names_the_best_class_of_each_query():
    outputs = {"logits": batch(softmax_logits(background="last")), "pred_boxes": batch(SHARES)}
    assert seen(outputs, FIVE, at=1, head="detr") == [SHRUNK[0], SHRUNK[1]]
    assert seen(outputs, FIVE, at=1, head="detr", per_box="all") == SHRUNK
    likely_nothing = {**outputs, "logits": outputs["logits"] + np.float32([0, 0, 0, 0, 0, 9])}
    assert seen(likely_nothing, FIVE, at=1, head="detr", score=0.01) == []


def test_rt_detr_has_logits_of_a_sigmoid():
    outputs = {"logits": batch(log(WIDE)), "pred_boxes": batch(SHARES)}
    assert seen(outputs, FIVE, at=1, head="rt-detr") == PAIRS


def test_end_to_end_rows_have_score_and_class():
    rows = [[*BOXES[box], score, label] for box, label, score in PAIRS] + [[0.0] * 6] * 3
    assert seen({"output0": batch(rows)}, at=1) == PAIRS
    padded = batch(rows)
    padded[1, 5:, 5] = -1
    assert seen({"output0": padded}, at=1) == PAIRS


def test_rows_of_yolov7_say_the_image_they_are_of():
    rows = np.array([[image, *BOXES[box], label, score] for box, label, score in PAIRS for image in (1, 2)], np.float32)
    rows[rows[:, 0] == 2, 1:5] += 1
    assert seen({"output": rows}, at=1) == PAIRS
    assert len(seen({"output": rows}, at=2)) == 5
    assert seen({"output": rows}, at=0) == []
    assert seen({"output": rows[:0]}, at=0) == []


def efficientnms():
    boxes = np.array([BOXES[box] for box, _, _ in PAIRS] + [[np.nan] * 4])
    return {
        "num_dets": batch(np.array([5], np.int32)),
        "det_boxes": batch(boxes),
        "det_scores": batch(np.array([score for *_, score in PAIRS] + [1.0])),
        "det_classes": batch(np.array([label for _, label, _ in PAIRS] + [77], np.int32)),
    }


def test_efficientnms_says_how_many_boxes_count():
    outputs = efficientnms()
    assert seen(outputs, at=1) == PAIRS
    assert seen(outputs, at=0) == []
    outputs["num_dets"][1] = 2
    assert seen(outputs, at=1) == PAIRS[:2]
    mixed = {name: array.astype(np.float32) for name, array in outputs.items()}  # all of floats: said by name
    roles = {"classes": "det_classes", "scores": "det_scores", "count": "num_dets"}
    assert seen(mixed, at=1, head="efficientnms", **roles) == PAIRS[:2]


def test_torchvision_counts_classes_from_one_and_has_one_image():
    outputs = {
        "boxes": np.array([BOXES[box] for box, _, _ in PAIRS], np.float32),
        "labels": np.array([label + 1 for _, label, _ in PAIRS]),
        "scores": np.array([score for *_, score in PAIRS], np.float32),
    }
    assert seen(outputs) == PAIRS
    with pytest.raises(InputError, match="class 3; there are 3 classes, and background is none"):
        seen(outputs, background="none")


@pytest.mark.parametrize(
    ("outputs", "classes", "heads"),
    [
        (yolov5(), ABC, "yolov5"),
        (yolov8(), ABC, "yolov8"),
        ({"y": np.zeros((1, 84, 8400), np.float32)}, (), "yolov5 or yolov8"),
        ({"y": np.zeros((1, 8400, 6), np.float32)}, (), "yolov5 or yolov8 or end-to-end"),
        ({"y": np.zeros((1, 8400, 6), np.float32)}, ("a",), "yolov5 or end-to-end"),
        ({"y": np.zeros((1, 8400, 6), np.float32)}, ("a", "b"), "yolov8 or end-to-end"),
        ({"y": np.zeros((1, 300, 6), np.float32)}, ABC, "end-to-end"),
        ({"y": np.zeros((1, 7, 4, 4), np.float32)}, ABC, "fcos"),
        ({"y": np.zeros((5, 7), np.float32)}, ABC, "yolov7-end"),
        (efficientnms(), ABC, "efficientnms"),
        ({"b": np.zeros((1, 9, 4), np.float32), "s": np.zeros((1, 9, 4), np.float32)}, (), "no head"),
        ({"b": np.zeros((1, 9, 4), np.float32), "s": np.zeros((1, 9, 3), np.float32)}, ABC, "ssd or detr or rt-detr"),
        ({"y": np.zeros((1, 3), np.float32)}, ABC, "no head"),
        ({"y": np.zeros((1, 3, 8, 8, 85), np.float32)}, (), "no head"),
    ],
)
def test_a_head_is_told_by_shapes_only_where_no_other_gives_such(outputs, classes, heads):
    if heads in HEADS:
        assert make_reader(given(outputs, {}, classes)).way.head == heads
        return
    with pytest.raises(InputError) as caught:
        make_reader(given(outputs, {}, classes))
    assert heads in str(caught.value)
    assert "--read head=" in str(caught.value)


def test_open_sizes_tell_nothing():
    with pytest.raises(InputError, match="yolov5 or yolov8 or end-to-end"):
        make_reader(given(yolov8(), {}, open_sizes=True))
    assert make_reader(given(yolov8(), {"head": "yolov8"}, open_sizes=True)).outputs == {"output": "output0"}


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"head": "yolo8"}, "did you mean 'yolov8'"),
        ({"head": "yolov8", "scores": "y"}, "unknown `--read scores=y`"),
        ({"head": "yolov8", "scor": "0.5"}, "`--read scor=0.5`; did you mean 'score'"),
        ({"head": "detr", "iou": "0.5"}, "unknown `--read iou=0.5`"),
        ({"head": "yolov8", "format": "corners"}, "known are: xyxy, cxcywh, xywh"),
        ({"head": "yolov8", "score": "much"}, "score=much` is not a number"),
        ({"head": "yolov8", "iou": "70"}, "iou=70` is not a number from 0 to 1"),
        ({"head": "yolov8", "score": "nan"}, "score=nan"),
        ({"head": "yolov8", "max": "1.5"}, "max=1.5` is not a whole number"),
        ({"head": "yolov8", "max": "0"}, "max=0"),
        ({"head": "yolov8", "output": "output1"}, "did you mean 'output0'"),
        ({"head": "detr"}, "which of them are the boxes and scores of a detr head can't be told"),
    ],
)
def test_what_is_said_wrongly_is_refused(reading, message):
    with pytest.raises(InputError, match=message):
        make_reader(given(yolov8(), reading))


def test_options_are_numbers_or_their_text():
    reader = make_reader(given(yolov8(), {"score": "0.1", "iou": "0.5", "max": "10", "show": 0.3}))
    assert (reader.way.score, reader.overlap, reader.most, reader.show) == (0.1, 0.5, 10, 0.3)
    usual = make_reader(given(yolov8(), {}))
    assert (usual.way.score, usual.overlap, usual.most, usual.show) == (0.001, 0.7, 300, 0.25)


def test_outputs_are_named_where_several_could_be_meant():
    boxes, scores = batch(SHARES), batch(softmax_logits(background="last"))
    outputs = {"first": boxes, "pred_boxes": boxes, "logits": scores, "hidden": np.zeros((2, 2, 256), np.float32)}
    with pytest.raises(InputError, match="--read boxes=NAME"):
        seen(outputs, FIVE, head="detr")
    assert seen(outputs, FIVE, at=1, head="detr", boxes="pred_boxes") == [SHRUNK[0], SHRUNK[1]]
    with pytest.raises(InputError, match="--read scores=NAME"):
        seen(outputs, (), head="detr", boxes="pred_boxes")
    with pytest.raises(InputError, match="unknown `--read boxes=pred_box`; did you mean 'pred_boxes'"):
        seen(outputs, FIVE, head="detr", boxes="pred_box")


def test_boxes_and_scores_are_as_many():
    outputs = {
        "logits": batch(np.zeros((9, 3))),
        "pred_boxes": batch(np.zeros((9, 4))),
        "hidden": batch(np.zeros((7, 8))),
    }
    reader = make_reader(given(outputs, {"head": "detr"}, ()))
    assert reader.outputs == {"boxes": "pred_boxes", "scores": "logits"}


def test_arrays_of_another_head_are_refused():
    with pytest.raises(InputError, match="scores of 4 classes; there are names of 3"):
        seen({"y": batch(np.zeros((8, 20)))}, head="yolov8")
    with pytest.raises(InputError, match="scores of -1 classes"):
        seen({"y": batch(np.zeros((9, 4)))}, (), head="yolov5")
    with pytest.raises(InputError, match="boxes 2x4 and scores 3x4"):
        seen({"b": batch(BOXES), "s": batch(np.zeros((3, 4)))}, head="ssd", boxes="b", scores="s")
    with pytest.raises(InputError, match="gives 7 for an image, which the head end-to-end does not"):
        make_reader(given({"y": batch(np.zeros((4, 6)))}, {"head": "end-to-end"})).candidates(
            {"y": np.zeros((2, 7))}, 0
        )


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_numbers_that_are_none_are_no_answer(spoil):
    outputs = yolov8()
    outputs["output0"][1, 6, 0] = spoil
    assert seen(outputs, at=0) == []
    with pytest.raises(GateError, match="1 of 14 outputs are not finite"):
        seen(outputs, at=1)


def test_the_best_candidates_are_kept_of_very_many(monkeypatch):
    monkeypatch.setattr("msn_deploy.tasks.decoders._MOST", 3)
    assert seen(yolov8(), at=1) == PAIRS[:3]
