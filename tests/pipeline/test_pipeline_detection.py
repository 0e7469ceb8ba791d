"""Detectors whose outputs have no row for each image, through the verbs."""

import numpy as np
import onnx
import pytest

from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data import load_split
from msn_deploy.model.opened import with_info
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.tasks.detection import DetectionAnswer, PrecisionMeter

pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

DIGITS = tuple("0123456789")
BRIGHT = 0.62  # a column with a pixel like that begins a box
FOUND = f"""
    one = Constant<value=int64[1] {{1}}>()
    minus = Constant<value=int64[1] {{-1}}>()
    ten = Constant<value=int64[1] {{10}}>()
    limit = Constant<value=float[1] {{{BRIGHT}}}>()
    along = Constant<value=float[4] {{1, 0, 1, 0}}>()
    sides = Constant<value=float[4] {{0, 20, 24, 60}}>()
    most = ReduceMax<axes=[0, 1, 2], keepdims=0>(x)
    bright = Greater(most, limit)
    at = NonZero(bright)
    column = Transpose<perm=[1, 0]>(at)
    left = Cast<to=1>(column)
    shift = Mul(left, along)
    boxes = Add(shift, sides)
    flat = Reshape(column, minus)
    class = Mod(flat, ten)
    scores = Gather(most, flat)
"""
NETS = {
    "torchvision": f"""g (float[1,3,96,96] x) => (float[M,4] boxes, int64[M] labels, float[M] scores) {{
    {FOUND} labels = Add(class, one) }}""",
    "yolov7-end": f"""g (float[1,3,96,96] x) => (float[M,7] y) {{
    {FOUND}
    zero = Sub(scores, scores)
    floats = Cast<to=1>(class)
    image = Unsqueeze(zero, one)
    classes = Unsqueeze(floats, one)
    shares = Unsqueeze(scores, one)
    y = Concat<axis=1>(image, boxes, classes, shares) }}""",
}


@pytest.fixture
def net(tmp_path):
    def make(head):
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {NETS[head]}')
        prep = Preprocess(height_px=96, width_px=96, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
        info = ModelInfo(net="custom", norm="custom", task="detection", classes=DIGITS, preprocess=prep)
        path = tmp_path / "net.onnx"
        path.write_bytes(with_info(model, info))
        return path

    return make


def by_hand(images):
    """The boxes of those networks in numpy."""
    for image in images:
        most = (image.astype(np.float32) / 255).max(axis=(0, 2))
        at = np.flatnonzero(most > np.float32(BRIGHT))
        at = at[np.argsort(-most[at], kind="stable")]
        boxes = np.stack([at, at * 0 + 20, np.minimum(at + 24, 96), at * 0 + 60], axis=1).astype(float)
        names, likeliest = tuple(DIGITS[each % 10] for each in at), np.ones(len(at), bool)
        yield DetectionAnswer(boxes, most[at].astype(float), at % 10, names, likeliest, 0.25)


@pytest.mark.parametrize("head", NETS)
def test_outputs_without_a_row_for_each_image_are_measured(head, net):
    split = load_split("digits-scenes", "test", task="detection", height_px=96, width_px=96, channels=3).first(12)
    answers = list(by_hand(split.images))
    assert len({len(each.labels) for each in answers}) > 5
    meter = PrecisionMeter(DIGITS)
    meter.add(answers, split.labels)
    found, expected = evaluate(net(head), data="digits-scenes", samples=12), meter.score()
    assert (found.metric, found.samples) == ("mAP", 12)
    assert found.metrics["mAP50"] > 0
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.metrics == pytest.approx(expected.others, abs=1e-12)
