"""Ranges of activations: the true ones, from all images, and only from images that can tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.graphs import activations
from msn_deploy.quant import calibrate, histograms
from msn_deploy.quant.calibrate import quantised_tensors
from msn_deploy.quant.calibration_checks import MINIMUM_SAMPLES
from msn_deploy.quant.scales import METHODS

calibrate_ranges = partial(calibrate.calibrate_ranges, load=run_on_one_thread)


def collect(graph: ModelProto, images: Any, *args: Any, **options: Any) -> histograms.Histograms:
    return histograms.collect(graph, histograms.samples_of(graph, images), *args, load=run_on_one_thread, **options)


def _activations(graph: ModelProto) -> list[str]:
    """The inputs of everything that is quantised, weights excepted."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    found = [
        name
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm")
        for name in node.input
        if name not in weights
    ]
    return sorted(set(found))


def _with_outputs(graph: ModelProto, names: list[str]) -> ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    for name in names:
        if name != "input":
            copied.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copied


@pytest.mark.parametrize("loud", [2, 35, 69], ids=["first-chunk", "second-chunk", "last-incomplete-chunk"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_minmax_finds_the_true_maximum_wherever_it_is(
    exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any], dynamic: bool, loud: int
) -> None:
    graph = exported("cnn3", "msn", dynamic=dynamic).graph
    images = digits(70)
    images[loud] *= 5
    names = _activations(graph)
    assert len(names) == 4
    ranges = calibrate_ranges(graph, images, method="minmax")
    assert sorted(ranges) == names
    truth = {"input": images, **run(_with_outputs(graph, names), images)}
    for name in names:
        assert np.abs(truth[name]).reshape(70, -1).max(1).argmax() == loud
        assert ranges[name] == pytest.approx(np.abs(truth[name]).max(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_positive_repeatable_and_leave_the_graph_alone(
    exported: Callable[..., Any], digits: Callable[..., Any], method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = exported("cnn3", "bn", dynamic=True).graph
    before = graph.SerializeToString()
    seen = []
    ranges = calibrate_ranges(
        graph, digits(40), method=method, progress=lambda done, total, note="": seen.append((done, total))
    )
    assert sorted(ranges) == _activations(graph)
    assert all(0 < largest < 1e3 for largest in ranges.values())
    assert calibrate_ranges(graph, digits(40), method=method) == ranges
    assert graph.SerializeToString() == before
    assert seen == [(done, 80) for done in range(1, 81)]  # two passes
    assert capfd.readouterr() == ("", "")


def test_entropy_never_goes_beyond_what_was_seen(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn").graph
    images = digits(70)
    images[40] *= 1.5  # in the second chunk, so that the histogram has to grow
    entropy, minmax = (calibrate_ranges(graph, images, method=method) for method in ("entropy", "minmax"))
    assert entropy.keys() == minmax.keys()
    for name, largest in minmax.items():
        assert 0.3 * largest < entropy[name] <= largest * 1.0001


@pytest.fixture(scope="module")
def batches(small_net: Callable[..., Any]) -> dict[str, ModelProto]:
    """One VGG7, whose flattening is a reshape to a constant shape, exported with several batch sizes."""
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.msn import fold

    model = fold(small_net("vgg7", "bn"))
    made = {str(batch): to_onnx(model, input_shape=(batch, 1, 32, 32)) for batch in (1, 2, 8)}
    return {**made, "dynamic": to_onnx(model, input_shape=(1, 1, 32, 32), dynamic_batch=True)}


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_the_same_bits_for_every_batch_and_order(
    batches: dict[str, ModelProto], digits: Callable[..., Any], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = digits(35, 32)
    wanted = calibrate_ranges(batches["1"], images, method=method)
    assert len(wanted) == 11
    for graph in batches.values():
        before = graph.SerializeToString()
        assert calibrate_ranges(graph, images, method=method) == wanted
        assert graph.SerializeToString() == before
    for order in (np.arange(35)[::-1], np.random.default_rng(1).permutation(35), np.roll(np.arange(35), 9)):
        assert calibrate_ranges(batches["8"], images[order], method=method) == wanted
    assert "batch" not in caplog.text


def test_shards_add_up_to_the_whole(batches: dict[str, ModelProto], digits: Callable[..., Any]) -> None:
    """Counts of two groups of images are the counts of all of them, and the first group is what it is alone."""
    images = digits(20, 32)
    names = quantised_tensors(batches["2"])
    groups = np.array([[0] * 12 + [1] * 8, [1, 0] * 10])
    both = collect(batches["2"], images, names, groups=groups)
    whole = collect(batches["1"], images, names)
    for name in names:
        np.testing.assert_array_equal(both.counts[name].sum(axis=1), np.repeat(whole.counts[name][0], 2, axis=0))
        alone = collect(batches["1"], images[:12], [name])
        assert both.first(1)[name][2] == alone.first(None)[name][2] <= whole.first(None)[name][2]
        assert both.counts[name][0, 0].sum() == alone.counts[name].sum()
        assert both.first(1, order=1)[name][2] == collect(batches["1"], images[1::2], [name]).first(None)[name][1]


def test_a_graph_that_holds_its_batch_elsewhere_runs_on_copies_and_says_so(
    digits: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of 4 written into an Expand, which batch 1 does not run with, or not to the same values."""
    make = onnx.helper
    for operator, value in (("Expand", np.array([4, 1, 28, 28])), ("Tile", np.array([1, 1, 1, 1]))):
        weight = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32) / 5, "w")
        ramp = numpy_helper.from_array(np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1), "ramp")
        nodes = [
            make.make_node(operator, ["x", "shape"], ["wide"]),
            make.make_node("Conv", ["wide", "w"], ["c"]),
            make.make_node("Mul", ["c", "ramp"], ["m"]),
            make.make_node("Conv", ["m", "v"], ["y"]),
        ]
        graph = make.make_graph(
            nodes,
            "held",
            [make.make_tensor_value_info("x", TensorProto.FLOAT, (4, 1, 28, 28))],
            [make.make_tensor_value_info("y", TensorProto.FLOAT, (4, 1, 24, 24))],
            [weight, ramp, numpy_helper.from_array(value, "shape"),
             numpy_helper.from_array(np.ones((1, 2, 3, 3), np.float32), "v")],
        )  # fmt: skip
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
        images = digits(18)
        caplog.clear()
        ranges = calibrate_ranges(model, images, method="minmax")
        assert "only runs in batches of 4: each sample is run 4 times" in caplog.text
        windows = np.lib.stride_tricks.sliding_window_view(images[:, 0], (3, 3), axis=(1, 2)).sum(axis=(-1, -2)) / 5
        assert ranges["m"] == pytest.approx(4 * np.abs(windows).max(), rel=1e-5)
        assert ranges["wide"] == np.abs(images).max()


def test_only_the_named_tensors(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn").graph
    whole = calibrate_ranges(graph, digits(20))
    assert calibrate_ranges(graph, digits(20), tensors=["input"]) == {"input": whole["input"]}
    output = graph.graph.output[0].name
    assert list(calibrate_ranges(graph, digits(20), tensors=[output])) == [output]
    with pytest.raises(InputError, match=r"ONNX Runtime .* cannot load the network: .*nowhere"):
        calibrate_ranges(graph, digits(20), tensors=["nowhere"])


def test_weights_are_not_calibrated(tiny: Callable[..., ModelProto]) -> None:
    """Nor constants, nor what is computed from them alone."""
    assert quantised_tensors(tiny("Conv")) == quantised_tensors(tiny("Conv", constant=True)) == ["x"]
    graph = tiny("MatMul")
    graph.graph.node[0].input[1] = "twice"
    graph.graph.node.insert(0, onnx.helper.make_node("Add", ["w", "w"], ["twice"]))
    assert quantised_tensors(graph) == []  # a weight that is computed is no weight


class _Counted:
    """Images that exist only while they are read."""

    def __init__(self, images: Any) -> None:
        self.images, self.largest = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Any:
        part = self.images[index]
        self.largest = max(self.largest, len(part))
        return part


def test_images_are_read_in_chunks(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph, images = exported("cnn3", "msn").graph, digits(70)
    counted = _Counted(images)
    assert calibrate_ranges(graph, counted) == calibrate_ranges(graph, images)
    assert 0 < counted.largest <= 32


@pytest.mark.parametrize("count", [0, 1, MINIMUM_SAMPLES - 1])
def test_too_few_images(exported: Callable[..., Any], digits: Callable[..., Any], count: int) -> None:
    graph = exported("cnn3", "msn").graph
    with pytest.raises(InputError, match=f"{count} images are too few to calibrate on; at least 16"):
        calibrate_ranges(graph, digits(20)[:count])
    assert calibrate_ranges(graph, digits(20)[:MINIMUM_SAMPLES], method="minmax")


@pytest.mark.parametrize("spoil", ["nan", "inf"])
@pytest.mark.parametrize("pixels", [True, False], ids=["input", "inside"])
def test_a_value_that_is_not_finite(
    exported: Callable[..., Any], digits: Callable[..., Any], tensors: Callable[..., Any], spoil: str, pixels: bool
) -> None:
    graph = exported("cnn3", "msn").graph
    images = digits(40)
    if pixels:
        images[35, 0, 4, 4] = float(spoil)
    else:
        bias = next(each for each in graph.graph.initializer if each.name == graph.graph.node[0].input[2])
        bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), float(spoil), np.float32), bias.name))
    name = graph.graph.node[1].output[0]
    words = r"calibration image 35 .* is not finite" if pixels else rf"{name} is {spoil} on calibration sample 0 \("
    with pytest.raises(InputError, match=words):
        calibrate_ranges(graph, images)


def test_an_unknown_method(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"unknown calibration method 'magic'; known are: auto, entropy, minmax, p"):
        calibrate_ranges(exported("cnn3", "msn").graph, digits(16), method="magic")


@pytest.mark.parametrize("kind", ["noise", "constant", "copies", "bytes"])
def test_images_that_cannot_tell(exported: Callable[..., Any], digits: Callable[..., Any], kind: str) -> None:
    graph, images = exported("cnn3", "msn").graph, digits(40)
    spoiled, words = {
        "noise": (np.random.default_rng(0).standard_normal((40, 1, 28, 28)).astype(np.float32), "are noise"),
        "constant": (np.full_like(images, 0.7), "40 of 40 calibration images are constant"),
        "copies": (np.repeat(images[:1], 40, axis=0), "the same image"),
        "bytes": ((images - images.min()) * 100, "not scaled"),
    }[kind]
    with pytest.raises(InputError, match=words):
        calibrate_ranges(graph, spoiled)


def test_the_preprocessing_that_the_model_names_is_what_images_are_held_against(
    exported: Callable[..., Any], digits: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    prep = Preprocess(height_px=28, width_px=28, channels=1, mean=(0.2,), std=(0.3,))
    graph = exported("cnn3", "msn").graph
    assert calibrate_ranges(graph, digits(40) + 2, preprocess=prep)
    assert "mean 2.00 and deviation 1.00 after the model's own preprocessing" in caplog.text
    assert "40 calibration images are few" in caplog.text
    with pytest.raises(InputError, match=r"mean 6\.00 and"):
        calibrate_ranges(graph, digits(40) + 6, preprocess=prep)


def test_a_tensor_that_is_always_zero(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn").graph
    for tensor in graph.graph.initializer[:]:
        if tensor.name in graph.graph.node[0].input[1:]:  # weight and bias of the first convolution
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    ranges = calibrate_ranges(graph, digits(16), method="minmax")
    assert sum(largest == 0 for largest in ranges.values()) == 1


def test_every_float_tensor_that_depends_on_the_image_is_an_activation(exported: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn", dynamic=True).graph
    names = activations(graph)
    made = [name for node in graph.graph.node for name in node.output]
    assert names[0] == "input"
    assert graph.graph.output[0].name in names
    assert set(names) <= {"input", *made}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm", "LeakyRelu"):
            assert {node.input[0], node.output[0]} <= set(names)
        if node.op_type in ("Shape", "Constant"):
            assert not set(node.output) & set(names)
