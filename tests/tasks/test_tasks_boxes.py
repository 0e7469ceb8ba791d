import numpy as np
import pytest

from msn_deploy.tasks.boxes import as_xyxy, clipped, iou, nms


def random_boxes(count, *, seed=0, classes=3):
    numbers = np.random.RandomState(seed)
    corners = numbers.rand(count, 2) * 60
    boxes = np.concatenate([corners, corners + 5 + 40 * numbers.rand(count, 2)], axis=1)
    return boxes, np.round(numbers.rand(count), 2), numbers.randint(0, classes, count)  # some scores are equal


def plain_iou(one, other):
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    both = max(wide, 0) * max(high, 0)
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def plain_nms(boxes, scores, labels, overlap):
    kept = []
    for at in sorted(range(len(boxes)), key=lambda each: -scores[each]):
        if all(labels[at] != labels[of] or plain_iou(boxes[at], boxes[of]) <= overlap for of in kept):
            kept.append(at)
    return kept


@pytest.mark.parametrize(
    ("form", "given"), [("xyxy", [10, 20, 14, 28]), ("cxcywh", [12, 24, 4, 8]), ("xywh", [10, 20, 4, 8])]
)
def test_a_box_is_the_same_in_each_format(form, given):
    assert as_xyxy(np.array([given, given], np.float32), form).tolist() == [[10, 20, 14, 28]] * 2


def test_boxes_end_at_the_edges_of_the_image():
    assert clipped(np.array([[-3.0, 2, 50, 9], [41, -5, 60, -1]]), 40, 8).tolist() == [[0, 2, 40, 8], [40, 0, 40, 0]]


def test_overlap_is_intersection_over_union():
    boxes, _, _ = random_boxes(40)
    expected = [[plain_iou(one, other) for other in boxes[:7]] for one in boxes]
    np.testing.assert_allclose(iou(boxes, boxes[:7]), expected, rtol=1e-14)
    point, turned = np.array([[5.0, 5, 5, 5]]), np.array([[8.0, 8, 2, 2]])
    assert [iou(point, point).item(), iou(turned, turned).item(), iou(point, turned).item()] == [0, 0, 0]
    assert iou(boxes, boxes[:0]).shape == (40, 0)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_of_boxes_that_overlap_the_best_of_each_class_is_kept(overlap, classes):
    boxes, scores, labels = random_boxes(300, classes=classes)
    expected = plain_nms(boxes, scores, labels, overlap)
    assert nms(boxes, scores, labels, overlap=overlap, most=300).tolist() == expected
    assert nms(boxes, scores, labels, overlap=overlap, most=10).tolist() == expected[:10]


def test_nothing_is_kept_of_nothing():
    assert nms(np.empty((0, 4)), np.empty(0), np.empty(0, int), overlap=0.5, most=9).tolist() == []


def test_nms_is_that_of_torchvision_and_onnx_on_an_overlap_that_is_equal():
    """Both drop what overlaps by more, and keep what overlaps by just as much."""
    boxes, scores = np.array([[0.0, 0, 2, 2], [1, 0, 3, 2]]), np.array([0.9, 0.8])
    labels = np.zeros(2, int)
    assert iou(boxes[:1], boxes[1:]).item() == 1 / 3
    assert nms(boxes, scores, labels, overlap=1 / 3, most=9).tolist() == [0, 1]
    assert nms(boxes, scores, labels, overlap=0.33, most=9).tolist() == [0]


def test_nms_in_numpy_is_that_of_onnx_runtime():
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,B,4] boxes, float[1,C,B] scores, int64 most, float iou) => (int64[M,3] kept) {
      kept = NonMaxSuppression(boxes, scores, most, iou) }"""
    session = ort.InferenceSession(
        onnx.parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    boxes, scores, labels = random_boxes(400, classes=4)
    boxes, most = boxes.astype(np.float32), np.array(400)
    by_class = np.where(labels == np.arange(4)[:, np.newaxis], scores + 1, 0).astype(np.float32)
    feeds = {
        "boxes": boxes[np.newaxis],
        "scores": by_class[np.newaxis],
        "most": most,
        "iou": np.array(0.45, "f"),
    }
    kept = [at for _, label, at in session.run(None, feeds)[0].tolist() if labels[at] == label]
    found = nms(boxes.astype(np.float64), scores, labels, overlap=0.45, most=400)
    assert sorted(found.tolist()) == sorted(kept)
    assert 20 < len(kept) < 400
