"""A run folder to pack, and its bundle."""

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from bundle_devices import ORIN_NANO, onnx_bytes
from PIL import Image

from msn_deploy.core.artifacts import publish, unpack
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Preprocess
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.pipeline.bundle import bundle

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))  # for its stand-ins of TensorRT


@pytest.fixture(autouse=True)
def no_real_time(steady_clock):
    """What `bench` measures here hangs neither on the machine nor on what else it does."""
    with steady_clock():
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run folder: MSN in three precisions, BN, a timing cache, and what a device does not need."""
    folder = tmp_path_factory.mktemp("run")
    files = {
        "net.onnx": onnx_bytes(),
        "net.fp16.onnx": onnx_bytes(half=True),
        "net.int8.onnx": onnx_bytes(quantised=True),
        "twin/net_bn.onnx": onnx_bytes(norm="bn"),
    }
    for name, content in files.items():
        publish(folder / name, lambda path, content=content: path.write_bytes(content), kind="onnx")
    for name, kind in (("net.timing", "timing-cache"), ("net.safetensors", "checkpoint"), ("curves.png", "curves")):
        publish(folder / name, lambda path, kind=kind: path.write_bytes(kind.encode()), kind=kind)
    (folder / "notes.txt").write_text("of the user\n")
    return folder


@pytest.fixture
def unpacked(run, tmp_path) -> Path:
    """A bundle for Orin Nano without wheels, unpacked."""
    bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    return tmp_path / "b"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_net, small_recipe):
    """A small MSN network with statistics that are not neutral."""
    from msn_deploy.data import load_split
    from msn_deploy.training.checkpoint import save_checkpoint

    recipe = small_recipe("cnn3", "msn")
    images = load_split("digits", "train", height_px=28, width_px=28, channels=1)
    info = ModelInfo(
        net="cnn3",
        norm="msn",
        task="classification",
        classes=images.classes,
        preprocess=measured_preprocess(images.images),
        data="digits",
        recipe=recipe.to_dict(),
    )
    path = tmp_path_factory.mktemp("models") / "net.safetensors"
    save_checkpoint(path, small_net("cnn3", "msn"), info)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Smooth pictures of 30 x 20 pixels in three classes, by the channel that is largest."""
    rng = np.random.default_rng(0)
    for at in range(48):
        coarse = rng.integers(0, 180, (4, 5, 3))
        coarse[..., at % 3] += 70
        picture = Image.fromarray(coarse.astype(np.uint8)).resize((30, 20), Image.Resampling.BILINEAR)
        path = tmp_path / "data" / "rgb"[at % 3] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "data"


@pytest.fixture
def colours(tmp_path) -> Path:
    """Four classes, one per colour channel and "dark": the logit of a channel is its sum after preprocessing."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.concatenate([np.eye(3), np.zeros((1, 3))]).astype(np.float32)[..., None, None] * np.ones(
        (1, 1, 4, 4), np.float32
    )
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    prep = Preprocess(height_px=4, width_px=4, channels=3, mean=(0.25,) * 3, std=(2.0,) * 3)
    info = ModelInfo(
        net="custom",
        norm="none",
        task="classification",
        classes=("red", "green", "blue", "dark"),
        preprocess=prep,
    )
    helper.set_model_props(proto, {METADATA_KEY: info.to_json()})
    path = tmp_path / "colours.onnx"
    onnx.save(proto, path)
    return path
