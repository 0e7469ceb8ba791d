"""Engines with any tensors on the stand-in GPU: types, ranks, open sizes, sizes that the data decide."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_trt import Gpu, Net
from test_engine_trt import load

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine.cuda import CudaError

LINE = ((1, 3, 4), (2, 3, 8), (4, 3, 16))


def stereo(feeds):
    total = feeds["left"] + feeds["right"].astype(np.float32) * feeds["gain"]
    best = total.mean(2).argmax(1)
    return {"sum": total, "best": best.astype(np.int64), "any": np.array(feeds["mask"].any())}


STEREO = Net(
    inputs={
        "left": ("float32", (-1, 3, -1), LINE),
        "right": ("uint8", (-1, 3, -1), LINE),
        "gain": ("float32", (), None),
        "mask": ("bool", (2, 2), None),
    },
    outputs={"sum": ("float32", (-1, 3, -1)), "best": ("int64", (-1,)), "any": ("bool", ())},
    shapes=lambda given: {"sum": given["left"], "best": given["left"][:1], "any": ()},
    compute=stereo,
)


def feeds_of(batch, width, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "left": rng.standard_normal((batch, 3, width)).astype(np.float32),
        "right": rng.integers(0, 256, (batch, 3, width)).astype(np.uint8),
        "gain": np.array(rng.uniform(0.5, 2), np.float32),
        "mask": rng.integers(0, 2, (2, 2)).astype(bool),
    }


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_every_type_and_rank_and_every_size_in_the_range_runs(cuda_graph):
    runner, _, _ = load(net=STEREO, cuda_graph=cuda_graph)
    assert runner.inputs == (
        TensorSpec("left", "float32", (None, 3, None)),
        TensorSpec("right", "uint8", (None, 3, None)),
        TensorSpec("gain", "float32", ()),
        TensorSpec("mask", "bool", (2, 2)),
    )
    assert [(spec.dtype, spec.shape) for spec in runner.outputs][1:] == [("int64", (None,)), ("bool", ())]
    for seed, (batch, width) in enumerate([(4, 16), (1, 4), (3, 9), (3, 9), (2, 16)]):
        feeds = feeds_of(batch, width, seed)
        made, wanted = runner.run(feeds), stereo(feeds)
        assert list(made) == ["sum", "best", "any"]
        for name, array in wanted.items():
            assert (made[name].dtype, made[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(made[name], array)
    runner.close()


@pytest.mark.parametrize(("batch", "width"), [(5, 8), (2, 3), (2, 17)])
def test_sizes_outside_the_range_are_refused_by_the_input_that_has_them(batch, width):
    runner, _, _ = load(net=STEREO)
    with pytest.raises(InputError, match=f"input left takes 1x3x4 to 4x3x16; it is fed {batch}x3x{width}"):
        runner.run(feeds_of(batch, width))
    runner.close()


def test_an_output_that_grows_while_an_input_shrinks_gets_its_room():
    net = Net(
        inputs={"x": ("float32", (-1,), ((1,), (4,), (8,)))},
        outputs={"y": ("float32", (-1,))},
        shapes=lambda given: {"y": (20 - 2 * given["x"][0],)},
        compute=lambda feeds: {"y": np.full(20 - 2 * len(feeds["x"]), feeds["x"].sum())},
    )
    runner, _, _ = load(net=net)
    for count in (8, 1, 5):
        made = runner.run({"x": np.full(count, 2, np.float32)})["y"]
        np.testing.assert_array_equal(made, np.full(20 - 2 * count, 2 * count, np.float32))
    runner.close()


# Sizes that the data decide

FOUND = Net(
    inputs={"x": ("float32", (8,), None)},
    outputs={"found": ("int64", (1, -1)), "count": ("int32", ())},
    shapes=lambda given: {"found": (1, -1), "count": ()},
    compute=lambda feeds: {
        "found": np.stack(np.nonzero(feeds["x"])).astype(np.int64),
        "count": np.array(np.count_nonzero(feeds["x"]), np.int32),
    },
)


def test_outputs_of_a_size_that_the_data_decide_are_read_at_their_size():
    runner, gpu, _ = load(net=FOUND)
    assert runner.outputs[0] == TensorSpec("found", "int64", (1, None))
    for places in ([], [3], [0, 1, 2, 5], [7], []):
        x = np.zeros(8, np.float32)
        x[places] = 2.5
        made = runner.run({"x": x})
        assert (made["found"].dtype, made["found"].tolist()) == (np.int64, [places])
        assert (made["count"].shape, made["count"]) == ((), len(places))
    assert len(gpu.pairs) <= 5  # the buffer only grows
    runner.close()
    assert gpu.log == ["context", "engine", "runtime", "cuda"]


def test_such_a_run_is_not_replayed_from_a_graph():
    gpu = Gpu()
    with pytest.raises(InputError, match=r"makes found of a size that the data decide.*\n.*--cuda-graph"):
        load(gpu, net=FOUND, cuda_graph=True)
    assert gpu.log == ["context", "engine", "runtime", "cuda"]


def test_what_goes_wrong_in_the_allocator_is_raised_outside_of_tensorrt():
    runner, gpu, _ = load(net=FOUND)
    gpu.refuse = "allocate"
    with pytest.raises(CudaError, match="allocate failed: out of memory"):
        runner.run({"x": np.ones(8, np.float32)})
    runner.close()


def test_sizes_that_tensorrt_keeps_on_the_host_are_read_there():
    net = Net(
        inputs={"x": ("float32", (-1, 2), ((1, 2), (2, 2), (4, 2)))},
        outputs={"size": ("int64", (2,)), "y": ("float32", (-1, 2))},
        shapes=lambda given: {"size": (2,), "y": given["x"]},
        compute=lambda feeds: {"size": np.array(feeds["x"].shape), "y": 3 * feeds["x"]},
        on_host=frozenset({"size"}),
    )
    runner, _, _ = load(net=net)
    for count in (4, 2):
        made = runner.run({"x": np.ones((count, 2), np.float32)})
        assert made["size"].tolist() == [count, 2]
        assert made["y"].tolist() == [[3, 3]] * count
    runner.close()
