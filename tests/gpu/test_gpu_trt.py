"""Engines on a real GPU: built here, run here, held against ONNX Runtime. `make gpu-test`; skipped without a GPU.

For TensorRT install it as its makers say, for TensorRT-RTX `pip install 'msn-deploy[gpu]'`; pycuda where it compiles.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="these tests build their network with onnx")
pytest.importorskip("onnxruntime", reason="these tests hold engines against ONNX Runtime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from msn_deploy.core.errors import InputError, MissingDependency, MsnDeployError  # noqa: E402
from msn_deploy.engine import (  # noqa: E402
    TARGETS,
    BuildOptions,
    build_engine_file,
    load_runner,
    pick_backend,
    run_images,
    what_machine,
)
from msn_deploy.engine.build import choose_site  # noqa: E402
from msn_deploy.engine.cuda import BindingsCuda, CudaError, PyCuda  # noqa: E402
from msn_deploy.engine.layer_times import time_stages  # noqa: E402
from msn_deploy.engine.preflight import preflight  # noqa: E402
from msn_deploy.engine.trt import TrtRunner  # noqa: E402
from msn_deploy.machine.device import first_gpu  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402
from msn_deploy.pipeline.bench_load import load_of  # noqa: E402

GPU = first_gpu()
LARGEST = 8
pytestmark = [
    pytest.mark.skipif(GPU is None, reason="no NVIDIA GPU answers here"),
    pytest.mark.filterwarnings("default"),  # what other packages warn of when they are imported is not tested here
]
# FP32 convolutions run in TF32 where the GPU has it, which keeps ten bits of each factor.
CLOSE = 0.01


def network(batch):
    """Two convolutions and a linear layer, of random seeded weights, on 3x16x16 images."""
    rng = np.random.default_rng(11)
    weights = {
        "w0": rng.standard_normal((16, 3, 3, 3)) * 0.2,
        "b0": rng.standard_normal(16),
        "w1": rng.standard_normal((32, 16, 3, 3)) * 0.1,
        "b1": rng.standard_normal(32),
        "w2": rng.standard_normal((32, 10)) * 0.3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["a0"]),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["a1"]),
        helper.make_node("GlobalAveragePool", ["a1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def built(request, tmp_path_factory):
    """A folder with an ONNX file and its engine for this GPU, once with an open batch, once with one of four."""
    target = None
    if request.param == "tensorrt-rtx":
        fitting = (each for each in TARGETS if not each.jetson and each.compute_capability == GPU.compute_capability)
        target = next(fitting, None)
        if target is None:
            pytest.skip(f"TensorRT-RTX does not build for {GPU.name}")
    options = BuildOptions(backend=request.param, target=target, batch=LARGEST)
    try:
        backend = pick_backend(request.param, target)
    except MsnDeployError as cause:
        pytest.skip(f"{request.param} does not load: {cause}")
    folder = tmp_path_factory.mktemp("engines")
    for name, batch in (("open", "N"), ("four", 4)):
        onnx.save(network(batch), folder / f"{name}.onnx")
        model = open_model(folder / f"{name}.onnx", step="test")
        site = choose_site(options, model.precision, machine=what_machine(), backend=backend)
        build_engine_file(model, folder / f"{name}.engine", options=options, site=site)
    return folder


@pytest.fixture(params=[PyCuda, BindingsCuda], ids=["pycuda", "cuda-bindings"])
def kind(request):
    """One way to CUDA, whether or not a graph is wanted."""
    try:
        request.param().close()
    except ImportError as cause:
        pytest.skip(str(cause))
    return request.param


def load(path, kind, *, cuda_graph=False):
    return TrtRunner(preflight(path), cuda_graph=cuda_graph, cuda=lambda **options: kind())


def expected(path, given):
    runner = load_runner(path.with_suffix(".onnx"), threads=1)
    logits = run_images(runner, given)
    runner.close()
    return logits


def assert_close(made, path, given):
    wanted = expected(path, given)
    assert made.shape == wanted.shape
    assert np.abs(made - wanted).max() <= CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("name", ["open", "four"])
def test_an_engine_computes_what_onnx_runtime_does(built, kind, name, cuda_graph):
    path = built / f"{name}.engine"
    if cuda_graph and kind is PyCuda and not preflight(path).is_rtx:  # TensorRT-RTX captures by itself
        with pytest.raises(MissingDependency, match="pycuda has no CUDA graphs"):
            load(path, kind, cuda_graph=True)
        return
    runner = load(path, kind, cuda_graph=cuda_graph)
    assert runner.batch_range[1] == {"open": LARGEST, "four": 4}[name]
    for count in (1, 4, 3, 8, 8, 8, 11, 1):  # the same again, so that graphs are used, and others, so that they go
        given = images(count, seed=count)
        assert_close(run_images(runner, given), path, given)
        assert 0 < runner.last_gpu_ms < 1000
    runner.close()
    runner.close()


def test_two_runners_live_side_by_side_and_close_in_any_order(built, kind):
    given = images(5)
    one, two = load(built / "open.engine", kind), load(built / "four.engine", kind)
    for runner in (one, two, one):
        assert_close(run_images(runner, given), built / "open.engine", given)
    one.close()
    assert_close(run_images(two, given), built / "open.engine", given)
    two.close()


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("name", ["open", "four"])
def test_queries_in_flight_on_several_streams_do_not_mix(built, name, cuda_graph):
    path = built / f"{name}.engine"
    runner = TrtRunner(preflight(path), cuda_graph=cuda_graph)
    runners = [runner, runner.another(), runner.another()]
    (given,) = runner.inputs
    for turn in range(5):
        batches = [images(4, seed=10 * turn + at) for at in range(3)]
        for each, batch in zip(runners, batches, strict=True):
            each.submit({given.name: batch})
        for each, batch in zip(reversed(runners), reversed(batches), strict=True):
            assert_close(next(iter(each.collect().values())), path, batch)
    load = load_of(runner, [{given.name: images(4)}], streams=3, copies=True, root=Path("/"))
    block = load.block(300, 1)
    assert len(block.samples) == 300
    assert block.usage.device_mib > 100
    stages = time_stages(runner, [{given.name: images(4)}])
    assert min(stages.copy_in_ms, stages.compute_ms, stages.copy_out_ms) > 0
    for each in runners:
        each.close()


def test_another_thread_runs_an_engine(built, kind):
    runner, given = load(built / "four.engine", kind), images(4)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            assert_close(pool.submit(run_images, runner, given).result(), built / "four.engine", given)
    assert_close(run_images(runner, given), built / "four.engine", given)
    runner.close()


def test_load_runner_takes_an_engine_built_here(built):
    runner = load_runner(built / "open.engine")
    given = images(3)
    assert_close(run_images(runner, given), built / "open.engine", given)
    runner.close()


def test_a_process_that_closes_nothing_ends_well(built, kind):
    """pycuda aborts a process whose context is still pushed, TensorRT one whose GPU is gone before its engine."""
    code = f"""
        import sys
        from pathlib import Path
        import numpy as np
        from msn_deploy.engine import cuda
        from msn_deploy.engine.preflight import preflight
        from msn_deploy.engine.runner import run_images
        from msn_deploy.engine.trt import TrtRunner
        runner = TrtRunner(preflight(Path(sys.argv[1])), cuda=lambda **options: cuda.{kind.__name__}())
        print(run_images(runner, np.zeros((2, 3, 16, 16), np.float32)).shape)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), built / "open.engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "(2, 10)"), done.stderr


def test_a_cuda_error_is_ours(kind):
    opened = kind()
    with pytest.raises(CudaError, match=r"CUDA says cu\w+ failed: "):
        opened.allocate((1 << 44,), "float32")  # 64 TiB
    opened.close()


def test_a_plan_cut_short_is_refused_by_its_hash_and_tensorrt_never_sees_it(built, tmp_path):
    path = tmp_path / "open.engine"
    path.write_bytes((built / "open.engine").read_bytes()[:-64])
    shutil.copyfile(built / "open.plan.json", tmp_path / "open.plan.json")
    with pytest.raises(InputError, match="damaged"):
        load_runner(path)
