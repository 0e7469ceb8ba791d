"""The comparison of tasks with independent scripts: the files say the same in every format, and what is off is seen."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from msn_deploy.data.sources import load_split

pytestmark = pytest.mark.slow
pytest.importorskip("pycocotools")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SIZE = {"height_px": 40, "width_px": 64, "channels": 3, "fit": "letterbox"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    folders = [str(BENCHMARKS), str(BENCHMARKS / "tasks")]
    sys.path[:0] = folders
    try:
        import independent
        import peers
        import scenes
        import task_peers_text

        yield SimpleNamespace(independent=independent, peers=peers, scenes=scenes, text=task_peers_text)
    finally:
        for each in folders:
            sys.path.remove(each)


@pytest.fixture(scope="module")
def data(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pictures of the test split."""
    folder: Path = tmp_path_factory.mktemp("peers") / "data"
    bench.scenes.write_scenes(folder, splits=("test",))
    return folder


def test_every_format_says_the_same_of_the_pictures(data: Path) -> None:
    coco, text = (
        load_split(str(data / source), "test", task="detection", lazy=True, **SIZE)
        for source in ("boxes", "boxes/data.yaml")
    )
    masks = load_split(str(data / "masks"), "test", task="segmentation", lazy=True, **SIZE)
    assert coco.classes == text.classes == masks.classes[1:]
    assert len(coco.labels) == len(text.labels) == len(masks.labels) > 100
    assert len({each.width_px for each in coco.labels.images}) > 10
    crowds = 0
    for one, other in zip(coco.labels.images, text.labels.images, strict=True):
        crowds += one.crowd.sum()
        np.testing.assert_allclose(one.boxes[~one.crowd], other.boxes, atol=1e-9)
        np.testing.assert_array_equal(one.labels[~one.crowd], other.labels)
    assert crowds > 0
    first = sorted((data / "masks" / "masks" / "test").iterdir())
    for objects, path in zip(coco.labels.images[:20], first, strict=False):
        classes = np.asarray(Image.open(path))
        for (x1, y1, x2, y2), label in zip(objects.boxes.astype(int), objects.labels, strict=True):
            assert (classes[y1:y2, x1:x2] == 1 + label).any()


def test_boxes_of_the_file_are_those_of_the_independent_script(bench: Any, data: Path, tmp_path: Path) -> None:
    """On random weights: as many boxes as can be, many of which overlap."""
    random = np.random.RandomState(3)
    weight = (0.4 * random.randn(14, 3, 8, 8)).astype(np.float32)
    scale = np.ones((1, 14, 1), dtype=np.float32)
    scale[:, :4] = np.asarray([64, 40, 30, 30]).reshape(4, 1)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["maps"], strides=[8, 8]),
        helper.make_node("Reshape", ["maps", "shape"], ["rows"]),
        helper.make_node("Sigmoid", ["rows"], ["shares"]),
        helper.make_node("Mul", ["shares", "scale"], ["out"]),
    ]
    held = {"weight": weight, "shape": np.asarray([1, 14, -1]), "scale": scale}
    graph = helper.make_graph(
        nodes, "detector", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 40, 64])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 14, 40])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    given, made = tmp_path / "net.onnx", tmp_path / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), given)
    words = ["export", given, "--preprocess", "yolo", "--task", "detection", "--read", "head=yolov8"]
    words += ["--classes", ",".join("0123456789"), "--out", made]
    done = subprocess.run(
        [sys.executable, "-m", "msn_deploy", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = bench.peers.boxes_measured(made, str(data / "boxes"))
    network = bench.independent.Network(str(given))
    some = {f"{at:04d}.png" for at in range(12)}
    others = {name: bench.independent.boxes_of(network, data / "boxes" / "images" / "test" / name) for name in some}
    told = bench.peers.compared({name: ours[name] for name in some}, others)
    assert told["alone"] == 0
    assert told["pairs"] > 1000
    assert told["least_iou"] > 0.999
    assert told["largest_score_difference"] < 1e-4


def test_what_differs_is_seen(bench: Any) -> None:
    box = {"label": 3, "score": 0.8, "box": [10.0, 10.0, 30.0, 50.0]}
    one = {"a.png": [box, {**box, "box": [60.0, 10.0, 80.0, 30.0]}]}
    same = bench.peers.compared(one, one)
    assert (same["pairs"], same["alone"], same["least_iou"], same["largest_score_difference"]) == (2, 0, 1.0, 0.0)
    for changed, pairs, alone in (
        ({"label": 4}, 1, 2),
        ({"score": 0.7}, 2, 0),
        ({"box": [10.0, 10.0, 30.0, 40.0]}, 2, 0),
    ):
        told = bench.peers.compared(one, {"a.png": [{**box, **changed}, one["a.png"][1]]})
        assert (told["pairs"], told["alone"]) == (pairs, alone)
        if not alone:
            assert told["least_iou"] < 0.999 or told["largest_score_difference"] > 1e-4
    assert bench.peers.compared(one, {"b.png": []})["alone"] == 2


def test_the_committed_result_holds_what_is_wanted_and_others_do_not(bench: Any) -> None:
    path = BENCHMARKS / "results" / "xeon-2-cores" / "task-peers.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert bench.peers.failures(result) == []
    off = copy.deepcopy(result)
    off["detection"]["labels"]["coco"]["boxes"]["alone"] = 1
    off["segmentation"]["crop"]["difference_per_class"] = 1e-5
    assert [each.split(":")[0] for each in bench.peers.failures(off)] == ["coco", "crop"]
