"""NMS in the graph: a detector whose only output is boxes, and that is as good as NMS in numpy makes it."""

from dataclasses import replace

import numpy as np
import pytest

from msn_deploy.core.errors import GateError, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("pycocotools")

from msn_deploy.cli.export import _next  # noqa: E402
from msn_deploy.data.preparation import preparation  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402
from msn_deploy.pipeline import nms  # noqa: E402
from msn_deploy.pipeline.evaluate import evaluate  # noqa: E402
from msn_deploy.pipeline.export import export_onnx  # noqa: E402

DIGITS = tuple("0123456789")


class BrightPlaces(torch.nn.Module):
    """Where it is bright there is a digit: a head "fcos" of 12 x 12 cells of 8 pixels, whose boxes overlap."""

    def __init__(self):
        super().__init__()
        self.look = torch.nn.Conv2d(3, 14, 24, stride=8, padding=8)
        with torch.no_grad():
            torch.manual_seed(0)
            self.look.weight[:10] = 8 / (3 * 24 * 24) * (1 + 0.5 * torch.rand(10, 3, 24, 24))
            self.look.bias[:10] = -4 + torch.rand(10)
            self.look.weight[10:] = 0
            self.look.bias[10:] = torch.tensor([1.5, 2.0, 1.6, 2.1])

    def forward(self, x):
        return self.look(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nms")
    options = {
        "task": "detection",
        "classes": DIGITS,
        "reading": {"iou": "0.4"},
        "preparation": preparation("zero-one", {}),
        "input_shape": (1, 3, 96, 96),
        "data": "digits-scenes",
    }
    plain = export_onnx(BrightPlaces().eval(), folder / "plain.onnx", **options)
    return plain, export_onnx(str(plain.path), folder / "boxes.onnx", nms=True, data="digits-scenes")


def test_the_file_gives_boxes_and_says_how_they_are_read(files):
    plain, report = files
    model = open_model(report.path, step="test")
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("detections", (1, 300, 6))]
    assert report.reading == {"head": "end-to-end"} == model.info.reading
    assert model.info.classes == DIGITS
    assert (plain.nms, plain.reading) == (None, {"iou": "0.4"})
    assert report.nms.same == report.nms.boxes > 1000


def test_eval_of_it_is_that_of_nms_in_numpy(files):
    plain, boxes = (evaluate(each.path, data="digits-scenes", samples=40) for each in files)
    assert plain.metric == boxes.metric == "mAP"
    assert plain.metrics["mAP50"] > 0.001
    assert boxes.value == pytest.approx(plain.value, abs=1e-6)
    assert boxes.metrics == pytest.approx(plain.metrics, abs=1e-6)


def test_boxes_that_differ_are_not_written(files, tmp_path, monkeypatch):
    plain, _ = files
    monkeypatch.setattr(nms, "_SAME_IOU", 2)
    with pytest.raises(GateError, match=r"0 of \d+ boxes of the file with NMS"):
        export_onnx(str(plain.path), tmp_path / "boxes.onnx", nms=True)
    assert not (tmp_path / "boxes.onnx").exists()


def test_a_file_that_gives_boxes_already_needs_no_nms(files, tmp_path):
    with pytest.raises(InputError, match="whose boxes need no NMS"):
        export_onnx(str(files[1].path), tmp_path / "again.onnx", nms=True)


@pytest.mark.parametrize(("task", "told"), [(None, "says no task"), ("regression", "is regression")])
def test_only_a_detector_has_nms(tmp_path, task, told):
    with pytest.raises(InputError, match=f"`--nms` is for detectors.*{told}"):
        export_onnx(BrightPlaces().eval(), tmp_path / "boxes.onnx", input_shape=(1, 3, 96, 96), task=task, nms=True)


def test_the_next_command_is_the_one_that_the_file_is_for(files):
    plain, report = files
    assert _next(report) == ("build-engine", report.path)
    assert _next(plain) == ("calibrate", plain.path)
    int8 = replace(plain, operators={"QuantizeLinear": 3})
    assert _next(int8) == ("build-engine", plain.path, "--precision", "int8")


def test_boxes_are_the_same_by_class_place_and_score():
    from msn_deploy.tasks.detection import DetectionAnswer

    def answer(boxes, scores, labels):
        names = tuple(map(str, labels))
        return DetectionAnswer(
            np.array(boxes, float), np.array(scores), np.array(labels), names, np.ones(len(labels), bool), 0.25
        )

    one = answer([[0, 0, 9, 9], [20, 20, 30, 30]], [0.9, 0.5], [1, 2])
    assert nms._same(one, one) == 2
    assert nms._same(one, answer([[0, 0, 9, 9], [20, 20, 30, 31]], [0.9, 0.5], [1, 2])) == 1
    assert nms._same(one, answer([[0, 0, 9, 9], [20, 20, 30, 30]], [0.9, 0.5], [1, 3])) == 1
    assert nms._same(one, answer([[0, 0, 9, 9]], [0.8], [1])) == 0
