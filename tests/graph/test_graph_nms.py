import numpy as np
import onnx
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.graph.nms import with_nms
from msn_deploy.tasks import make_task
from msn_deploy.tasks.task import Given

ort = pytest.importorskip("onnxruntime")
CLASSES = ("a", "b", "c")
SIZE = 128.0


def scene(count=200, *, classes=3, seed=0):
    """Boxes around few places, cxcywh in pixels, and probabilities: float32 (2, count, 4) and (2, count, classes)."""
    numbers = np.random.RandomState(seed)
    places = 30 + numbers.rand(2, 6, 2) * 68
    centres = np.stack([of[numbers.randint(0, 6, count)] for of in places]) + numbers.randn(2, count, 2) * 4
    boxes = np.concatenate([centres, 12 + 30 * numbers.rand(2, count, 2)], axis=2).astype(np.float32)
    return boxes, (numbers.rand(2, count, classes) ** 4).astype(np.float32)


def identity(outputs, *, opset=17, batch="N"):
    """A graph that gives what it is fed."""
    specs = {name: (batch, *array.shape[1:]) for name, array in outputs.items()}
    inputs = [onnx.helper.make_tensor_value_info(f"in_{name}", 1, shape) for name, shape in specs.items()]
    made = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in specs.items()]
    nodes = [onnx.helper.make_node("Identity", [f"in_{name}"], [name]) for name in specs]
    graph = onnx.helper.make_graph(nodes, "g", inputs, made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def given(outputs, reading, *, classes=CLASSES, frame=(128, 128), ending="logits"):
    specs = tuple(TensorSpec(name, "float32", (None, *array.shape[1:])) for name, array in outputs.items())
    return Given(
        model="net", classes=classes, named=True, reading=reading, outputs=specs, endings=(ending,) * len(specs),
        frame=frame,
    )  # fmt: skip


def both(outputs, reading, **options):
    """Return the answers by NMS in numpy, and those of the file with NMS in ONNX Runtime."""
    known = given(outputs, reading, **options)
    model, read = with_nms(identity(outputs), known)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {f"in_{name}": array for name, array in outputs.items()})
    (spec,) = session.get_outputs()
    assert (spec.name, spec.shape) == ("detections", ["N", *rows.shape[1:]])
    after = given({"detections": rows}, read)
    return make_task("detection", known).answers(outputs), make_task("detection", after).answers({"detections": rows})


def log(shares):
    return np.log(shares / (1 - shares))


def logits_with(shares, background):
    """Logits whose softmax are the shares, a quarter of them, and what is left."""
    parts = [shares / 4, 1 - shares.sum(axis=2, keepdims=True) / 4]
    return np.log(np.concatenate(parts[::-1] if background == "first" else parts, axis=2)).astype(np.float32)


def outputs_of(head):
    boxes, scores = scene()
    shares = boxes / np.float32(SIZE)
    corners = np.concatenate([shares[..., :2] - shares[..., 2:] / 2, shares[..., :2] + shares[..., 2:] / 2], axis=2)
    if head == "yolov5":
        there = np.full_like(scores[..., :1], 0.9)
        return {"y": np.concatenate([boxes, there, scores], axis=2)}
    if head == "yolov8":
        return {"y": np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1)}
    if head == "fcos":
        numbers = np.random.RandomState(1)
        maps = np.concatenate([log(scores[:, :128] + 1e-6), 0.5 + 3 * numbers.rand(2, 128, 4)], axis=2)
        return {"y": maps.transpose(0, 2, 1).reshape(2, 7, 8, 16).astype(np.float32)}
    return {"boxes": corners, "scores": logits_with(scores, head)}


CASES = {
    "yolov5": ("yolov5", {"head": "yolov5", "iou": "0.4"}),
    "yolov8": ("yolov8", {"head": "yolov8", "iou": "0.45"}),
    "few": ("yolov8", {"head": "yolov8", "max": "5", "score": "0.25"}),
    "best": ("yolov8", {"head": "yolov8", "per_box": "best"}),
    "fcos": ("fcos", {"stride": "8", "iou": "0.2"}),
    "first": ("first", {"head": "ssd", "boxes": "boxes", "iou": "0.4"}),
    "last": ("last", {"head": "ssd", "boxes": "boxes", "background": "last", "iou": "0.4"}),
}


@pytest.mark.parametrize("case", CASES)
def test_boxes_of_the_graph_are_those_of_numpy(case):
    head, reading = CASES[case]
    expected, found = both(outputs_of(head), reading)
    assert len(found) == len(expected) == 2
    for one, other in zip(expected, found, strict=True):
        assert 5 <= len(one.scores) < 300
        assert one.labels.tolist() == other.labels.tolist()
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-6)
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-4)


def test_scores_that_are_probabilities_stay():
    boxes, scores = scene(classes=5)
    outputs = {"boxes": boxes, "scores": scores}
    reading = {"head": "ssd", "background": "none", "format": "cxcywh", "units": "pixels"}
    five = tuple("abcde")
    known = given(outputs, reading, classes=five, ending="sigmoid")
    model, _ = with_nms(identity(outputs), known)
    assert {"Sigmoid", "Softmax"}.isdisjoint(node.op_type for node in model.graph.node)
    logits = given(outputs, reading, classes=five)
    assert "Sigmoid" in [node.op_type for node in with_nms(identity(outputs), logits)[0].graph.node]


def test_yolov8_in_rows_is_turned_round():
    outputs = {"y": outputs_of("yolov8")["y"].transpose(0, 2, 1).copy()}
    expected, found = both(outputs, {"head": "yolov8"})
    assert found[0].labels.tolist() == expected[0].labels.tolist()


def test_what_is_not_read_is_left_out():
    outputs = outputs_of("yolov8") | {"raw": np.zeros((2, 9), np.float32)}
    known = given(outputs, {"head": "yolov8", "output": "y", "score": "0.1", "show": "0.3", "iou": "0.6"})
    model, reading = with_nms(identity(outputs), known)
    assert [value.name for value in model.graph.output] == ["detections"]
    assert "raw" not in {name for node in model.graph.node for name in node.output}
    assert reading == {"head": "end-to-end", "score": "0.1", "show": "0.3"}
    assert known.reading["iou"] == "0.6"


@pytest.mark.parametrize(
    ("head", "reading", "options", "message"),
    [
        ("first", {"head": "detr", "boxes": "boxes"}, {}, "whose boxes need no NMS"),
        ("first", {"head": "ssd", "boxes": "boxes"}, {"frame": None}, "Say how images are prepared"),
        ("fcos", {}, {"frame": None}, "Say how images are prepared"),
    ],
)
def test_what_nms_does_not_fit_is_refused(head, reading, options, message):
    outputs = outputs_of(head)
    with pytest.raises(InputError, match=message):
        with_nms(identity(outputs), given(outputs, reading, **options))


def test_old_opsets_and_open_sizes_are_refused():
    outputs = outputs_of("yolov8")
    known = given(outputs, {"head": "yolov8"})
    with pytest.raises(InputError, match="needs opset 13; net has 11"):
        with_nms(identity(outputs, opset=11), known)
    known = Given(
        model="net", classes=CLASSES, named=True, reading={"head": "yolov8"}, endings=("logits",),
        outputs=(TensorSpec("y", "float32", (None, 7, None)),), frame=(128, 128),
    )  # fmt: skip
    with pytest.raises(InputError, match="leaves open how many boxes"):
        with_nms(identity(outputs), known)


def test_names_that_a_file_has_already_are_left_to_it(squat):
    outputs = {"detections": outputs_of("yolov8")["y"]}
    model, known = identity(outputs), given(outputs, {"head": "yolov8"})
    made, _ = with_nms(model, known)
    other, _ = with_nms(squat(model, made), known)
    assert [value.name for value in made.graph.output] == ["detections_1"]
    one, same = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"in_detections": outputs["detections"]}
        )
        for each in (made, other)
    )
    np.testing.assert_array_equal(one[0], same[0])
