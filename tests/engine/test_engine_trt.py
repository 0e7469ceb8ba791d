"""The runner on a stand-in GPU that computes in numpy; tests/gpu runs it on a real one."""

from __future__ import annotations

import importlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_trt import Gpu, logits, module

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.model_info import ModelInfo, TensorSpec
from msn_deploy.engine import load_runner, run_images
from msn_deploy.engine.cuda import CudaError
from msn_deploy.engine.plan import Plan
from msn_deploy.engine.trt import TrtRunner

PLAN = Plan(
    path=Path("net.engine"),
    data=b"the bytes that were checked",
    sha256="0" * 64,
    backend="tensorrt",
    backend_version="10.3.0.30",
    precision="fp16",
    compute_capability="8.7",
    device=None,
    jetson=None,
    l4t=None,
    driver=None,
    arch=None,
    dla_core=None,
    version_compatible=False,
    hardware_compatible=False,
    onnx=Parent(role="onnx", file="net.onnx", sha256="1" * 64),
    info=ModelInfo(net="cnn3", norm="msn", classes=("a", "b")),
)
DYNAMIC = (-1, 3, 8, 8)
RANGE = ((2, 3, 8, 8), (4, 3, 8, 8), (6, 3, 8, 8))


def load(gpu=None, plan=PLAN, *, cuda_graph=False, wait=None, mapped=False, **engine):
    gpu = gpu or Gpu()
    trt = module(gpu, **engine)
    return TrtRunner(plan, cuda_graph=cuda_graph, wait=wait, mapped=mapped, trt=trt, cuda=gpu), gpu, trt


def images(count, seed=3):
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def test_the_checked_bytes_are_loaded_and_run_once_before_anyone_asks():
    runner, gpu, trt = load()
    assert trt.seen.plan is PLAN.data
    assert (runner.name, runner.path, runner.info) == ("net.engine", PLAN.path, PLAN.info)
    assert runner.inputs == (TensorSpec("x", "float32", (4, 3, 8, 8)),)
    assert runner.outputs == (TensorSpec("logits", "float32", (4, 5)),)
    assert runner.batch_range == (4, 4)
    assert not np.isnan(gpu.pairs[1].host).any()  # the warm-up went all the way, on zeros
    assert (gpu.pairs[0].host == 0).all()
    runner.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_a_fixed_batch_takes_any_number_of_images(count, cuda_graph):
    runner, _, trt = load(cuda_graph=cuda_graph)
    given = images(count)
    made = run_images(runner, given)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, logits(given), atol=1e-4)
    assert set(trt.seen.shapes) == {4}
    assert runner.last_gpu_ms == 2.0
    runner.close()


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=4), cuda_graph=st.booleans())
def test_an_open_batch_takes_any_sequence_of_sizes(counts, cuda_graph):
    runner, _, trt = load(shape=DYNAMIC, profile=RANGE, cuda_graph=cuda_graph)
    assert (runner.inputs[0].shape, runner.batch_range) == ((None, 3, 8, 8), (2, 6))
    for seed, count in enumerate(counts):
        given = images(count, seed)
        np.testing.assert_allclose(run_images(runner, given), logits(given), atol=1e-4)
    assert min(trt.seen.shapes) >= 2
    assert max(trt.seen.shapes) <= 6
    runner.close()


def test_the_answer_is_the_callers_and_not_a_window_on_the_buffer():
    runner, _, _ = load()
    first = run_images(runner, images(4, 0))
    before = first.copy()
    run_images(runner, images(4, 1))
    np.testing.assert_array_equal(first, before)
    runner.close()


def test_half_precision_buffers_and_strided_images():
    runner, gpu, _ = load(dtypes=("float16", "float16"))
    given = images(4).transpose(0, 1, 3, 2)
    made = run_images(runner, given)
    assert made.dtype == np.float32
    assert {pair.host.dtype for pair in gpu.pairs} == {np.dtype("float16")}
    np.testing.assert_allclose(made, logits(given), rtol=5e-3, atol=5e-2)
    runner.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (images(2).astype(np.float64), "is fed float64"),
        (images(2)[:, :1], "wants 3x8x8 images, the data gives 1x8x8"),
        (images(2)[0], "wants 3x8x8 images"),
        (images(0), "given no image at all"),
    ],
)
def test_images_that_do_not_fit_are_refused_and_the_runner_goes_on(given, words):
    runner, _, _ = load()
    with pytest.raises(InputError, match=words):
        run_images(runner, given)
    np.testing.assert_array_equal(run_images(runner, images(4)), logits(images(4)))
    runner.close()


def test_several_inputs_and_outputs_run_by_name():
    runner, _, _ = load(inputs=("a", "b"), outputs=("one", "two"), shape=DYNAMIC, profile=RANGE)
    assert [spec.name for spec in (*runner.inputs, *runner.outputs)] == ["a", "b", "one", "two"]
    for count in (6, 2, 3):
        a, b = images(count, 1), images(count, 2)
        made = runner.run({"b": b, "a": a})
        np.testing.assert_allclose(made["one"], logits(a + b), atol=1e-4)
        np.testing.assert_allclose(made["two"], 2 * logits(a + b), atol=1e-4)
    with pytest.raises(InputError, match=r"2 inputs \(a, b\); a network that is fed images has one"):
        run_images(runner, images(3))
    runner.close()


@pytest.mark.parametrize("count", [1, 7])
def test_a_run_outside_the_range_that_was_built_for_is_refused(count):
    runner, _, _ = load(shape=DYNAMIC, profile=RANGE)
    with pytest.raises(InputError, match=f"2x3x8x8 to 6x3x8x8; it is fed {count}x3x8x8"):
        runner.run({"x": images(count)})
    runner.close()


def test_image_sizes_may_be_open_too():
    profile = ((1, 3, 4, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    runner, _, _ = load(shape=(-1, 3, -1, 8), profile=profile)
    assert runner.inputs[0].shape == (None, 3, None, 8)
    np.testing.assert_allclose(run_images(runner, images(3)), logits(images(3)), atol=1e-4)
    runner.close()


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"dtypes": ("int32", "float32")}, "takes int32 of 4x3x8x8"),
        ({"dtypes": ("float32", "int32")}, r"1 outputs \(logits \(int32\)\); one of floats"),
        ({"made": (5,)}, r"makes \(5,\) of 4 images"),
        ({"outputs": ("boxes", "scores")}, "2 outputs"),
        ({"outputs": ()}, "0 outputs"),
    ],
)
def test_an_engine_that_does_not_map_images_to_floats_is_not_fed_images(engine, words):
    runner, _, _ = load(**engine)
    with pytest.raises(InputError, match=words):
        run_images(runner, images(5))
    runner.close()


# CUDA graphs


def test_a_graph_is_captured_after_a_plain_run_and_again_for_another_shape():
    runner, gpu, _ = load(shape=DYNAMIC, profile=RANGE, cuda_graph=True)
    assert gpu.graphs
    assert (gpu.captures, gpu.launches) == (1, 0)  # the warm-up ran plainly
    run_images(runner, images(6))
    run_images(runner, images(12))
    assert (gpu.captures, gpu.launches) == (1, 3)
    run_images(runner, images(2))
    assert (gpu.captures, gpu.launches) == (2, 3)
    run_images(runner, images(2))
    assert (gpu.captures, gpu.launches) == (2, 4)
    runner.close()


def test_without_it_nothing_is_captured():
    runner, gpu, _ = load()
    run_images(runner, images(4))
    assert (gpu.graphs, gpu.captures, gpu.launches) == (False, 0, 0)
    runner.close()


@pytest.mark.parametrize(("cuda_graph", "strategy"), [(True, "whole"), (False, None)])
def test_tensorrt_rtx_captures_by_itself(cuda_graph, strategy):
    """Its kernels are replaced while it runs: a graph of ours would keep the first ones."""
    plan = replace(PLAN, backend="tensorrt-rtx", backend_version="1.7.1.116")
    runner, gpu, trt = load(plan=plan, rtx=True, version="1.7.1.116", cuda_graph=cuda_graph)
    assert trt.seen.strategy == strategy
    assert (gpu.graphs, gpu.captures) == (False, 0)
    np.testing.assert_array_equal(run_images(runner, images(4)), logits(images(4)))
    runner.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_mapped_buffers_give_the_same_answers_without_a_copy(cuda_graph, monkeypatch):
    runner, gpu, _ = load(shape=DYNAMIC, profile=RANGE, cuda_graph=cuda_graph, mapped=True, wait="sleep")
    assert (gpu.mapped, gpu.waits) == (True, "sleep")
    assert all(gpu.memory[pair.device] is pair.host for pair in gpu.pairs)
    for count in (6, 2, 11, 3):
        given = images(count, count)
        np.testing.assert_allclose(run_images(runner, given), logits(given), atol=1e-4)
    runner.close()


# What a plan asks for


def test_host_code_is_allowed_only_to_a_version_compatible_plan():
    for compatible in (False, True):
        runner, _, trt = load(plan=replace(PLAN, version_compatible=compatible))
        assert trt.seen.host_code is compatible
        runner.close()


def test_a_dla_core_is_chosen_before_the_plan_is_loaded_or_missed():
    runner, _, trt = load(plan=replace(PLAN, dla_core=1), dla_cores=2)
    assert trt.seen.dla == 1
    runner.close()
    gpu = Gpu()
    with pytest.raises(MissingDevice, match=r"DLA core 1, and TensorRT 10\.3\.0\.30 finds 1 here"):
        load(gpu, replace(PLAN, dla_core=1), dla_cores=1)
    assert gpu.log == ["runtime", "cuda"]


def test_the_version_that_is_imported_counts():
    gpu = Gpu()
    with pytest.raises(InputError, match=r"built by TensorRT 10\.3\.0\.30, and here is TensorRT 10\.7\.0"):
        load(gpu, version="10.7.0")
    assert gpu.log == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"dtypes": ("bfloat16", "float32")}, "tensor x of BF16"),
        ({"dtypes": ("float32", "bfloat16")}, "tensor logits of BF16"),
    ],
)
def test_an_engine_whose_tensors_cannot_be_fed_or_read_is_refused_and_freed(engine, words):
    gpu = Gpu()
    with pytest.raises(InputError, match=words):
        load(gpu, **engine)
    assert gpu.log == ["context", "engine", "runtime", "cuda"]


@pytest.mark.parametrize(
    ("call", "kind", "freed"),
    [
        ("Runtime", MissingDevice, ["cuda"]),
        ("deserialize_cuda_engine", InputError, ["runtime", "cuda"]),
        ("create_execution_context", MissingDevice, ["engine", "runtime", "cuda"]),
        ("set_input_shape", CudaError, ["context", "engine", "runtime", "cuda"]),
        ("set_tensor_address", CudaError, ["context", "engine", "runtime", "cuda"]),
        ("execute_async_v3", CudaError, ["context", "engine", "runtime", "cuda"]),
    ],
)
def test_what_tensorrt_says_is_in_the_error_and_nothing_is_left(call, kind, freed):
    gpu = Gpu()
    with pytest.raises(kind, match=f"{call} went wrong") as caught:
        load(gpu, refuse=call)
    assert "TensorRT 10.3.0.30" in str(caught.value)
    assert "y.cpp" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert gpu.log == freed


@pytest.mark.parametrize("call", ["allocate", "copy", "timed", "wait", "capture"])
def test_what_cuda_says_is_in_the_error_and_nothing_is_left(call):
    gpu = Gpu(refuse=call)
    with pytest.raises(CudaError, match=f"CUDA says {call} failed: out of memory"):
        load(gpu, cuda_graph=True)
    assert gpu.log == ["context", "engine", "runtime", "cuda"]


def test_a_failing_clean_up_does_not_hide_what_failed():
    class Broken(Gpu):
        def close(self):
            raise CudaError("CUDA says cuMemFree failed: an illegal memory access was encountered.")

    with pytest.raises(InputError, match="BF16"):
        load(Broken(), dtypes=("float32", "bfloat16"))


def test_closing_frees_each_thing_before_what_it_points_into_and_only_once():
    runner, gpu, _ = load(cuda_graph=True)
    runner.close()
    assert gpu.log == ["context", "engine", "runtime", "cuda"]
    runner.close()
    assert gpu.log == ["context", "engine", "runtime", "cuda"]
    with pytest.raises(RuntimeError, match=r"net\.engine was closed"):
        run_images(runner, images(4))


def test_a_runner_that_nobody_closes_is_closed_at_the_end(monkeypatch):
    calls = []
    monkeypatch.setattr("atexit.register", calls.append)
    runner, gpu, _ = load()
    assert calls == [runner.close]
    calls[0]()
    assert gpu.log == ["context", "engine", "runtime", "cuda"]


def test_another_thread_may_run_it_at_another_time():
    runner, gpu, _ = load()
    with ThreadPoolExecutor(2) as pool:
        for seed in range(4):
            batch = images(4, seed)
            made = pool.submit(runner.run, {"x": batch}).result()
            np.testing.assert_allclose(made["logits"], logits(batch), atol=1e-4)
    assert len(gpu.current_in) == 1, "no thread keeps the context"
    runner.close()


# From a file


def test_an_engine_file_goes_through_the_preflight_into_the_runner(forge_plan, orin, monkeypatch, caplog):
    gpu = Gpu()
    loaded = {"tensorrt": module(gpu)}
    monkeypatch.setattr("msn_deploy.engine.preflight.what_is_here", orin)
    monkeypatch.setattr("msn_deploy.engine.trt.require", lambda name, *, step: loaded[name])
    monkeypatch.setattr(
        TrtRunner.__init__,
        "__kwdefaults__",
        {"cuda_graph": False, "wait": None, "mapped": False, "trt": None, "cuda": gpu, "beside": None},
    )
    path = forge_plan(b"from a file")
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="not trusted"):
        load_runner(path)
    assert loaded["tensorrt"].seen.plan is None
    runner = load_runner(path, trust=True)
    assert loaded["tensorrt"].seen.plan == b"from a file"
    np.testing.assert_allclose(run_images(runner, images(5)), logits(images(5)), atol=1e-4)
    runner.close()


def test_a_tensorrt_whose_libraries_do_not_load_is_a_missing_dependency(monkeypatch):
    def broken(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingDependency, match=r"TensorRT does not load: libnvinfer\.so\.10"):
        TrtRunner(PLAN, cuda=Gpu())
