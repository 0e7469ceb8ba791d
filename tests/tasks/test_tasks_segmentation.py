import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.frame import placement
from msn_deploy.data.labels import IGNORED
from msn_deploy.tasks.segmentation import MaskAnswer, Segmentation, rle_of

RNG = np.random.default_rng(0)
CLASSES = ("background", "road", "car")
LOGITS = RNG.normal(size=(4, 3, 8, 12)).astype(np.float32)


def masks(outputs, classes=CLASSES, placements=None, **options):
    return np.stack([each.mask for each in Segmentation(given(classes, **options)).answers({"y": outputs}, placements)])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (LOGITS, {}),
        (softmax(LOGITS), {"graph": "softmax"}),
        (LOGITS, {"graph": "unknown"}),
        (LOGITS.transpose(0, 2, 3, 1), {}),
        (LOGITS.transpose(0, 2, 3, 1), {"layout": "nhwc"}),
        (LOGITS.transpose(0, 2, 3, 1), {"layout": "nhwc", "classes": ()}),
        (LOGITS, {"classes": ()}),
        (LOGITS.argmax(1), {}),
        (LOGITS.argmax(1)[:, None].astype(np.int32), {}),
        (LOGITS.argmax(1)[..., None].astype(np.uint8), {"graph": "unknown"}),
        (LOGITS.argmax(1).astype(np.float32), {"graph": "argmax"}),
        (LOGITS, {"classes": CLASSES[:2], "named": True}),
        (LOGITS, {"frame": (8, 12)}),
    ],
)
def test_whatever_a_network_gives_the_likeliest_class_is_in_the_mask(outputs, options):
    found = masks(outputs, **options)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LOGITS.argmax(1))


def test_with_a_channel_less_than_classes_the_first_is_where_nothing_reaches_the_threshold():
    odds = np.log(np.array([[[[3.0, 1 / 3, 1.5]]]]))  # probabilities 0.75, 0.25, 0.6
    expected = [[[1, 0, 1]]]
    probabilities = 1 / (1 + np.exp(-odds))
    np.testing.assert_array_equal(masks(odds, ("no", "yes")), expected)
    np.testing.assert_array_equal(masks(odds[:, 0], ("no", "yes")), expected)
    np.testing.assert_array_equal(masks(probabilities, ("no", "yes"), graph="sigmoid"), expected)
    np.testing.assert_array_equal(masks(probabilities, (), graph="sigmoid"), expected)
    np.testing.assert_array_equal(masks(odds, ("no", "yes"), threshold="0.7"), [[[1, 0, 0]]])
    np.testing.assert_array_equal(masks(probabilities, ("no", "yes"), graph="sigmoid", threshold="0.2"), [[[1, 1, 1]]])
    two = np.array([[[[0.9, 0.2, 0.6]], [[0.1, 0.3, 0.7]]]])
    np.testing.assert_array_equal(masks(two, CLASSES, graph="sigmoid"), [[[1, 0, 2]]])


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (LOGITS, {"classes": "abcde"}, "for 5 classes there have to be 5 or 4 channels"),
        (LOGITS[:, :2], {"graph": "softmax"}, "for 3 classes there have to be 3 channels"),
        (LOGITS, {"classes": "ab"}, "for 2 classes there have to be 2 or 1 channels"),
        (LOGITS[:, :1], {"classes": ("road",)}, "a mask has two classes at least"),
        (LOGITS, {"layout": "nhwc"}, "3x8x12 numbers per image as layout=nhwc"),
        (np.zeros((2, 10)), {}, "10 numbers per image"),
        (np.zeros((2, 3, 4, 5, 6)), {}, "3x4x5x6 numbers"),
        (np.zeros((2, 21, 8, 8)), {"classes": ()}, "where the channels are is not said"),
        (LOGITS, {"threshold": "0.4"}, "nothing to hold a threshold"),
        (LOGITS, {"threshold": "1.5"}, "one number between 0 and 1"),
        (LOGITS, {"threshold": "0.5,0.6"}, "one number between 0 and 1"),
        (LOGITS, {"threshold": "half"}, "`--read threshold=half` is not a number"),
        (LOGITS, {"layout": "hwc"}, "did you mean 'nhwc'"),
        (LOGITS, {"treshold": "0.5"}, "did you mean 'threshold'"),
        (np.zeros((1, 1, 4, 4)), {"classes": "ab", "graph": "unknown"}, "its graph is not here"),
        (np.full((1, 4, 4), 255), {}, "labels from 255 to 255|labels from 0 to 255"),
        (np.full((1, 4, 4), -1), {}, "labels from -1 to 0"),
        (np.zeros((1, 4, 4), np.int64), {"threshold": "0.5"}, "are of scores"),
    ],
)
def test_other_outputs_and_other_readings_are_refused(outputs, options, message):
    with pytest.raises(InputError, match=message):
        masks(outputs, **options)


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match=r"1 of 96 outputs are not finite .*, for 1 of 2 images"):
        masks(spoiled((2, 3, 4, 4), (1, 0, 2, 2)))


def test_scores_are_scaled_to_the_frame_before_they_are_decided_and_labels_after():
    scores = np.array([[[[0.0, 1.0]], [[0.4, 0.4]]]])
    np.testing.assert_array_equal(masks(scores, "ab", frame=(1, 8)), [[[1, 1, 1, 1, 0, 0, 0, 0]]])
    scores = np.array([[[[0.0, 4.0]], [[1.0, 1.0]]]])  # equal a quarter of the way
    np.testing.assert_array_equal(masks(scores, "ab", frame=(1, 8)), [[[1, 1, 1, 0, 0, 0, 0, 0]]])
    np.testing.assert_array_equal(masks(scores.argmax(1), "ab", frame=(1, 8)), [[[1, 1, 1, 1, 0, 0, 0, 0]]])


def test_with_a_placement_the_mask_is_that_of_the_image_without_its_canvas():
    frame = Frame(height_px=8, width_px=8, channels=3, fit="letterbox")
    scores = np.zeros((1, 2, 8, 8))
    scores[:, 1, :, 4:] = 1  # the right half
    scores[:, 1, :2] = 9  # the canvas
    (mask,) = masks(scores, "ab", [placement(16, 8, frame)], frame=(8, 8))
    np.testing.assert_array_equal(mask, np.arange(16)[None].repeat(8, 0) >= 8)
    crop = Frame(height_px=8, width_px=8, channels=3, fit="crop")
    (mask,) = masks(scores, "ab", [placement(16, 8, crop)], frame=(8, 8))
    assert set(np.unique(mask[:, 4:12])) == {0, 1}
    assert (mask[:, :4] == IGNORED).all()


def counted(found, labels, count):
    """Count by hand, pixel by pixel."""
    tp, fp, fn = np.zeros(count), np.zeros(count), np.zeros(count)
    for answer, label in zip(found.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if label == IGNORED:
            continue
        if answer == label:
            tp[answer] += 1
        else:
            fp[answer] += 1
            fn[label] += 1
    return tp, fp, fn


def test_the_metrics_are_those_of_a_plain_count():
    classes = ("background", "road", "car", "never there")
    found = RNG.integers(0, 3, (7, 10, 12))
    labels = np.where(RNG.random((7, 10, 12)) < 0.6, found, RNG.integers(0, 3, (7, 10, 12))).astype(np.uint8)
    labels[:, :2] = IGNORED
    task = Segmentation(given(classes, graph="argmax"))
    meter = task.meter()
    for part in (slice(0, 4), slice(4, 7)):
        meter.add(task.answers({"y": found[part]}), labels[part, ..., None])
    score = meter.score()
    tp, fp, fn = (each[:3] for each in counted(found, labels, 4))
    iou = tp / (tp + fp + fn)
    assert (score.metric, score.unit, score.samples, score.each) == ("mIoU", "share", 7, None)
    assert score.value == pytest.approx(iou.mean(), abs=1e-12)
    assert score.per_class == {name: pytest.approx(value, abs=1e-6) for name, value in zip(classes, iou, strict=False)}
    assert score.others == {
        "pixel_accuracy": pytest.approx(tp.sum() / (tp + fn).sum()),
        "mean_accuracy": pytest.approx((tp / (tp + fn)).mean()),
        "mean_dice": pytest.approx((2 * tp / (2 * tp + fp + fn)).mean()),
    }


def test_a_class_that_is_only_answered_counts_as_missed():
    task = Segmentation(given("abc", graph="argmax"))
    meter = task.meter()
    meter.add(task.answers({"y": np.array([[[0, 0, 1, 2]]])}), np.array([[[0, 0, 0, 1]]], np.uint8)[..., None])
    score = meter.score()
    assert score.per_class == {"a": pytest.approx(2 / 3, abs=1e-6), "b": 0.0, "c": 0.0}
    assert score.value == pytest.approx(2 / 9)
    assert score.others["mean_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((1, 2, 2, 1), IGNORED), "labelled as ignored"),
        (np.full((1, 2, 2, 1), 3), "up to class 3; there are 3 classes"),
        (np.zeros((1, 4, 4, 1)), "does not fit labels"),
    ],
)
def test_labels_that_do_not_suit_are_refused(labels, message):
    task = Segmentation(given(CLASSES, graph="argmax"))
    meter = task.meter()

    def measured():
        meter.add(task.answers({"y": np.zeros((1, 2, 2), np.int64)}), labels.astype(np.uint8))
        return meter.score()

    with pytest.raises(InputError, match=message):
        measured()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, with numpy 2
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 48), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_are_written_as_coco_reads_them(shape, share):
    coco = pytest.importorskip("pycocotools.mask")
    mask = RNG.random(shape) < share
    if share == 0.02:  # long runs, too
        mask[: shape[0] // 2] = True
    np.testing.assert_array_equal(coco.decode({"size": list(shape), "counts": rle_of(mask)}), mask)


def test_an_answer_says_which_share_each_class_has_and_where():
    answer = MaskAnswer(np.array([[0, 0, 1, 4], [0, 0, 1, 1]], np.uint8), CLASSES)
    assert answer.text() == "background 50.0%, road 37.5%, 4 12.5%"
    told = answer.to_json()
    assert (told["width"], told["height"]) == (4, 2)
    assert [(each["label"], each["index"], each["share"]) for each in told["segments"]] == [
        ("background", 0, 0.5),
        ("road", 1, 0.375),
        ("4", 4, 0.125),
    ]
    assert json.loads(json.dumps(told)) == told
    assert MaskAnswer(np.arange(8, dtype=np.uint8)[None], ()).text().endswith("4 12.5%, 3 more")


def test_classes_are_coloured_on_the_image_and_the_background_is_not():
    image = np.full((200, 200, 3), 90, np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[50:100, 20:80] = 2
    made = MaskAnswer(mask, CLASSES).drawn(image)
    changed = (made[:200] != image).any(2)
    np.testing.assert_array_equal(changed, mask == 2)
    assert len(made) > 200  # the legend
    large = MaskAnswer(mask[::10, ::10], CLASSES).drawn(image[::10, ::10])
    assert large.shape[1] == 160
    assert (MaskAnswer(mask, ("sky", "road", "car")).drawn(image)[:200] != image).any(2).all()
