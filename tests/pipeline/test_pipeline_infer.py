"""`infer` without a trained network: a graph whose logits are pixel sums, so that every answer can be worked out."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import GateError, InputError, MissingDependency
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Preprocess
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.flow import Meter
from msn_deploy.pipeline.infer import Told, infer


@pytest.fixture
def model(colours) -> Path:
    return colours


def label(told: Told) -> str:
    return told.answer.guesses[0].label if told.answer else ""


def score(told: Told) -> float:
    return told.answer.guesses[0].score


def picture(path: Path, colour: tuple[int, int, int], size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def test_preprocessing_comes_from_the_metadata(model, tmp_path):
    (answer,) = infer(model, [picture(tmp_path / "a.png", (255, 51, 0), size=9)], threads=1)
    logits = 16 * (np.array([1.0, 0.2, 0.0]) - 0.25) / 2
    expected = np.exp(logits[0]) / (np.exp(logits).sum() + 1)
    assert (label(answer), answer.error) == ("red", "")
    assert score(answer) == pytest.approx(expected, rel=1e-5)
    assert answer.latency_ms > 0


def test_folders_are_walked_in_name_order_and_other_files_left_alone(model, tmp_path):
    for name, colour in (("in/b/2.png", (0, 255, 0)), ("in/a/9.jpg", (0, 0, 255)), ("in/c.bmp", (0, 0, 0))):
        picture(tmp_path / name, colour)
    (tmp_path / "in/notes.txt").write_text("no image")
    first = picture(tmp_path / "z.png", (255, 0, 0))
    answers = list(infer(model, [first, tmp_path / "in"]))
    assert [(Path(a.image).name, label(a)) for a in answers] == [
        ("z.png", "red"), ("9.jpg", "blue"), ("2.png", "green"), ("c.bmp", "dark"),
    ]  # fmt: skip


def test_an_image_that_cannot_be_read_costs_no_other_answer(model, tmp_path):
    good = picture(tmp_path / "good.png", (0, 255, 0))
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    answers = list(infer(model, [tmp_path / "cut.png", tmp_path / "gone.png", good]))
    assert ["not a readable image" in answers[0].error, "does not exist" in answers[1].error] == [True, True]
    assert [label(answer) for answer in answers] == ["", "", "green"]


def test_answers_come_one_by_one(model, tmp_path):
    """The second file is written only after the first answer."""
    first, second = picture(tmp_path / "1.png", (255, 0, 0)), tmp_path / "2.png"
    answers = infer(model, [first, second])
    assert label(next(answers)) == "red"
    picture(second, (0, 0, 255))
    assert label(next(answers)) == "blue"


def test_what_can_give_no_image_is_refused_before_the_first_answer(model, tmp_path):
    (tmp_path / "empty").mkdir()
    good = picture(tmp_path / "good.png", (0, 255, 0))
    with pytest.raises(InputError, match="empty holds no images"):
        infer(model, [good, tmp_path / "empty"])


@pytest.fixture
def opencv(monkeypatch):
    """A fake OpenCV: two frames, BGR, of pure red and pure blue; `bad.mp4` has none."""
    opened = []

    class Capture:
        def __init__(self, source):
            opened.append(source)
            colours = [] if str(source).endswith("bad.mp4") else [(0, 0, 255), (255, 0, 0)]
            self.frames = [np.full((6, 8, 3), colour, np.uint8) for colour in colours]

        def read(self):
            return (True, self.frames.pop(0)) if self.frames else (False, None)

        def get(self, what):
            return 2.0

        def release(self):
            opened.append("released")

    cv2 = SimpleNamespace(VideoCapture=Capture, getBuildInformation=lambda: "GStreamer: NO", CAP_PROP_FRAME_COUNT=7)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return opened


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Two files that OpenCV is asked about, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("film.mp4", "bad.mp4"):
        (tmp_path / name).write_bytes(b"x")


def test_frames_of_a_video_and_of_a_camera(model, opencv, films, tmp_path):
    meter = Meter()
    *answers, last = infer(model, [Path("film.mp4"), Path("camera:2")], meter=meter)
    assert "camera:2 is gone: it gave 2 frames" in last.error
    assert (meter.items, set(meter.shares())) == (5, {"decode", "prepare", "inference", "drawing"})
    assert [(a.image, label(a)) for a in answers] == [
        ("film.mp4#0", "red"), ("film.mp4#1", "blue"), ("camera:2#0", "red"), ("camera:2#1", "blue"),
    ]  # fmt: skip
    assert opencv == [str(tmp_path / "film.mp4"), "released", 2, "released"]


@pytest.mark.parametrize(
    "source",
    ["http://127.0.0.1/film.mp4", "videotestsrc ! filesink location=film.mp4", "camera:/dev/video0", "camera:"],
)
def test_addresses_and_commands_are_not_given_to_opencv(model, opencv, source):
    with pytest.raises(InputError, match=r"does not exist|does not name a camera"):
        infer(model, [Path(source)])
    assert opencv == []


def test_a_video_without_frames(model, opencv, films):
    (answer,) = infer(model, [Path("bad.mp4")])
    assert "bad.mp4 gives no frames" in answer.error


def test_a_video_without_opencv(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"\.\[video\]"):
        infer(model, [Path("film.mp4")])


def network(path: Path, nodes: str, made: str, task: str = "classification") -> Path:
    onnx = pytest.importorskip("onnx")
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,4,4] x) => (float[{made}] y) {{
        m = GlobalAveragePool(x) f = Flatten(m) {nodes} }}"""
    model = onnx.parser.parse_model(text)
    prep = Preprocess(height_px=4, width_px=4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    info = ModelInfo(net="custom", norm="custom", preprocess=prep, task=task)
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


def test_a_softmax_at_the_end_is_not_applied_twice(tmp_path):
    net = network(tmp_path / "n.onnx", "k = Constant<value_float=9.0>() s = Mul(f, k) y = Softmax<axis=1>(s)", "1,3")
    (answer,) = infer(net, [picture(tmp_path / "a.png", (0, 255, 0))], threads=1)
    assert (label(answer), score(answer)) == ("1", pytest.approx(np.exp(9) / (np.exp(9) + 2), rel=1e-5))


@pytest.mark.parametrize("end", ["y = Sigmoid(s)", "y = Identity(s)"])
def test_one_number_decides_between_two_classes(tmp_path, end):
    nodes = f"r = ReduceMean<axes=[1]>(f) k = Constant<value_float=0.5>() s = Sub(r, k) {end}"
    net = network(tmp_path / "n.onnx", nodes, "1,1")
    light, dark = (picture(tmp_path / f"{at}.png", (at,) * 3) for at in (255, 0))
    answers = list(infer(net, [light, dark], threads=1))
    assert [label(each) for each in answers] == ["1", "0"]
    assert [score(each) for each in answers] == pytest.approx([1 / (1 + np.exp(-0.5))] * 2, rel=1e-5)


def test_a_mask_is_refused_before_the_first_answer(tmp_path):
    net = network(tmp_path / "n.onnx", "y = Relu(x)", "1,3,4,4")
    with pytest.raises(InputError, match="gives 3x4x4 numbers per image; a classifier gives one for each class"):
        infer(net, [picture(tmp_path / "a.png", (0, 0, 0))])


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    net = network(tmp_path / "n.onnx", "y = Log(f)", "1,3")
    with pytest.raises(GateError, match="3 of 3 outputs are not finite"):
        list(infer(net, [picture(tmp_path / "a.png", (0, 0, 0))], threads=1))


def test_eval_refuses_another_number_of_classes_and_numbers_that_are_none(tmp_path):
    for at, name in enumerate("ab"):
        for number in range(5):
            picture(tmp_path / "data" / "test" / name / f"{number}.png", (at * 200, number, 0))
    data = str(tmp_path / "data")
    with pytest.raises(InputError, match="gives 3 numbers per image, for 3 classes; the data has 2"):
        evaluate(network(tmp_path / "n.onnx", "y = Relu(f)", "1,3"), data=data)
    with pytest.raises(GateError, match="not finite"):
        evaluate(network(tmp_path / "n.onnx", "l = Log(f) y = ReduceSum(l)", "1,1"), data=data)
    net = network(
        tmp_path / "n.onnx",
        "r = ReduceMax<axes=[1]>(f) k = Constant<value_float=0.3>() s = Sub(r, k) y = Sigmoid(s)",
        "1,1",
    )
    assert evaluate(net, data=data).accuracy == 1.0


def test_a_network_without_a_task_gives_arrays(tmp_path):
    net = network(tmp_path / "n.onnx", "y = Identity(f)", "1,3", task="")
    image = picture(tmp_path / "in" / "deep" / "a.png", (255, 51, 0))
    (told,) = infer(net, [tmp_path / "in"], save=tmp_path / "out", threads=1)
    assert told.to_json()["outputs"]["y"] == {
        "dtype": "float32", "shape": [3], "min": 0.0, "max": 1.0, "values": pytest.approx([1, 0.2, 0]),
    }  # fmt: skip
    with np.load(tmp_path / "out" / "deep" / "a.png.npz", allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["y"], [1, 0.2, 0], rtol=1e-6)
    with pytest.raises(InputError, match=r"does not say what its outputs mean[\s\S]*--task classification"):
        evaluate(net, data=str(image.parent))


def test_answers_are_drawn_on_the_image_as_it_was(model, tmp_path):
    image = picture(tmp_path / "in" / "deep" / "a.jpg", (250, 10, 20), size=70)
    (told,) = infer(model, [tmp_path / "in"], save=tmp_path / "out", threads=1)
    with Image.open(tmp_path / "out" / "deep" / "a.jpg.png") as drawn, Image.open(image) as original:
        assert drawn.size == (70, 70)
        changed = (np.asarray(drawn) != np.asarray(original)).any(2)
    assert changed[:8, :20].any()  # the caption
    assert not changed[30:].any()
    assert [each.name for each in (tmp_path / "out").rglob("*") if each.is_file()] == ["a.jpg.png"]
    assert told.to_json()["top"][0] == {"label": "red", "score": score(told)}


def test_an_output_may_be_called_as_it_likes(tmp_path):
    onnx = pytest.importorskip("onnx")
    net = network(tmp_path / "n.onnx", "y = Identity(f)", "1,3", task="")
    proto = onnx.load(net)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "file"
    onnx.save(proto, net)
    list(infer(net, [picture(tmp_path / "a.png", (255, 51, 0))], save=tmp_path / "out", threads=1))
    with np.load(tmp_path / "out" / "a.png.npz", allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["file"], [1, 0.2, 0], rtol=1e-6)
