"""Ranges of activations: the true ones, from all images, and only from images that can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from msn_deploy.core.errors import InputError
from msn_deploy.graph import METHODS, calibrate_ranges
from msn_deploy.graph.calibrate import MINIMUM_SAMPLES


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
    assert seen == [(32, 40), (40, 40)]
    assert capfd.readouterr() == ("", "")


def test_entropy_never_goes_beyond_what_was_seen(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn").graph
    images = digits(70)
    images[40] *= 1.5  # in the second chunk, so that the histogram has to grow
    entropy, minmax = (calibrate_ranges(graph, images, method=method) for method in ("entropy", "minmax"))
    assert entropy.keys() == minmax.keys()
    for name, largest in minmax.items():
        assert 0.3 * largest < entropy[name] <= largest * 1.0001


def test_a_batch_that_does_not_divide_the_images(small_net: Callable[..., Any], digits: Callable[..., Any]) -> None:
    from msn_deploy.graph import to_onnx
    from msn_deploy.msn import fold

    graph = to_onnx(fold(small_net("cnn3", "bn")), input_shape=(5, 1, 28, 28))
    images = digits(33)
    images[32] *= 3
    assert calibrate_ranges(graph, images, method="minmax")["input"] == pytest.approx(np.abs(images).max())


@pytest.mark.parametrize("count", [0, 1, MINIMUM_SAMPLES - 1])
def test_too_few_images(exported: Callable[..., Any], digits: Callable[..., Any], count: int) -> None:
    graph = exported("cnn3", "msn").graph
    with pytest.raises(InputError, match=f"{count} images are too few to calibrate on; at least 16"):
        calibrate_ranges(graph, digits(20)[:count])
    assert calibrate_ranges(graph, digits(20)[:MINIMUM_SAMPLES], method="minmax")


@pytest.mark.parametrize("spoil", ["constant", "zero", "nan", "inf"])
def test_images_that_cannot_tell(exported: Callable[..., Any], digits: Callable[..., Any], spoil: str) -> None:
    images = digits(16)
    if spoil in ("constant", "zero"):
        images[:] = 0.7 if spoil == "constant" else 0
    else:
        images[3, 0, 4, 4] = float(spoil)
    with pytest.raises(InputError, match="constant or not finite"):
        calibrate_ranges(exported("cnn3", "msn").graph, images)


def test_an_unknown_method(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="unknown calibration method 'magic'; known are entropy, minmax"):
        calibrate_ranges(exported("cnn3", "msn").graph, digits(16), method="magic")


def test_a_tensor_that_is_always_zero(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph = exported("cnn3", "msn").graph
    for tensor in graph.graph.initializer[:]:
        if tensor.name in graph.graph.node[0].input[1:]:  # weight and bias of the first convolution
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    with pytest.raises(InputError, match=r" is 0\.0 on all 16 calibration images"):
        calibrate_ranges(graph, digits(16), method="minmax")
