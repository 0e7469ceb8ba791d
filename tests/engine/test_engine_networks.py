"""Every network of nets/, and two of other designs, built with TensorRT-RTX in every precision for three GPUs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
torch = pytest.importorskip("torch", reason="the networks are built with torch")

from msn_deploy.core.errors import InputError  # noqa: E402
from msn_deploy.core.recipes import load_recipe  # noqa: E402
from msn_deploy.engine import BuildOptions, build_engine_file, find_target, what_machine  # noqa: E402
from msn_deploy.engine.build import choose_site  # noqa: E402
from msn_deploy.engine.ort import run_on_one_thread  # noqa: E402
from msn_deploy.graph.export import to_onnx  # noqa: E402
from msn_deploy.graph.fold import fold_graph  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402
from msn_deploy.model.opset import to_opset  # noqa: E402
from msn_deploy.msn import fold_layers  # noqa: E402
from msn_deploy.nets import build_net  # noqa: E402
from msn_deploy.quant import histograms  # noqa: E402
from msn_deploy.quant.calibrate import quantised_tensors, ranges_from  # noqa: E402
from msn_deploy.quant.precision import to_fp16  # noqa: E402
from msn_deploy.quant.quantize import quantize  # noqa: E402

pytestmark = pytest.mark.slow


def collect(graph, images, *args, **options):
    return histograms.collect(graph, histograms.samples_of(graph, images), *args, load=run_on_one_thread, **options)


TARGETS = ("rtx-sm86", "rtx-sm89", "rtx-sm120")
# Wide enough that convolution weights are most of an engine, narrow enough for a second per build.
WIDTHS = {"cnn3": 32, "vgg7": 16, "densenet_bc_22": 16, "gan": 16, "resnet18": 16, "densenet": 24}
OURS = ("cnn3", "vgg7", "densenet_bc_22", "gan")


def _example(name):
    """Build a network of the tests of msn/, which know nothing of ours."""
    path = Path(__file__).parents[1] / "msn"
    sys.path.insert(0, str(path))  # it imports a neighbour
    try:
        spec = importlib.util.spec_from_file_location("example_nets_of_msn", path / "example_nets.py")
        nets = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nets)
    finally:
        sys.path.remove(str(path))
    if name == "resnet18":
        return nets.trained(lambda: nets.ResNet18(WIDTHS[name])), (1, 3, 32, 32)
    return nets.trained(lambda: nets.DenseNetBC(growth=WIDTHS[name])), (1, 3, 32, 32)


def _ours(name, unsettle):
    recipe = replace(load_recipe(f"{name}_msn"), width=WIDTHS[name])
    torch.manual_seed(0)
    return unsettle(build_net(recipe, classes=10), 0), (1, *recipe.network_input)


def _ranges(graph, images):
    """Without a look at the images, which are noise here: what is built is the same."""
    return ranges_from(collect(graph, images, quantised_tensors(graph)), method="minmax")


@pytest.fixture(scope="module")
def graphs(unsettle):
    """Return the folded graph of a network in a precision, each made once."""
    made = {}

    def make(name, precision):
        if name not in made:
            model, shape = _ours(name, unsettle) if name in OURS else _example(name)
            plain, _ = fold_layers(model.float())
            graph = to_opset(fold_graph(to_onnx(plain, input_shape=shape, opset=18, optimize=False)).model, 17)
            images = np.random.default_rng(5).standard_normal((16, *shape[1:])).astype(np.float32)
            int8 = quantize(graph, _ranges(graph, images))
            made[name] = {"fp32": graph, "fp16": to_fp16(graph), "int8": int8}
        return made[name][precision]

    return make


def _built(graphs, tmp_path, name, precision, target):
    path = tmp_path / f"{name}.{precision}.onnx"
    path.write_bytes(graphs(name, precision).SerializeToString())
    return _engine_of(path, target)


def _engine_of(path, target):
    options = BuildOptions(backend="tensorrt-rtx", target=find_target(target))
    model = open_model(path, step="test")
    site = choose_site(options, model.precision, machine=what_machine())
    return build_engine_file(model, path.with_suffix(".engine"), options=options, site=site)


def _convolutions(graph):
    return sum(node.op_type == "Conv" for node in graph.graph.node)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OURS)
def test_every_network_builds_in_every_precision(graphs, tmp_path, name, target):
    fp32, fp16, int8 = (_built(graphs, tmp_path, name, precision, target) for precision in ("fp32", "fp16", "int8"))
    assert {report.compute_capability for report in (fp32, fp16, int8)} == {target[6:-1] + "." + target[-1]}
    assert 0.45 < fp16.weight_memory_bytes / fp32.weight_memory_bytes < 0.55
    assert int8.weight_memory_bytes / fp32.weight_memory_bytes < 0.35
    assert (fp32.int8_convs, fp16.int8_convs) == (0, 0)
    # TensorRT-RTX has no INT8 transposed convolution: of the generator's it keeps the weights in INT8, no more.
    assert int8.int8_convs == _convolutions(graphs(name, "int8"))
    assert {"fp16"} <= {layer.precision for layer in fp16.layers} <= {"fp16", "fp32", None}


@pytest.mark.parametrize("name", ["resnet18", "densenet"])
def test_residual_additions_and_concatenations_stay_int8(graphs, tmp_path, name):
    fp32, int8 = (_built(graphs, tmp_path, name, precision, "rtx-sm86") for precision in ("fp32", "int8"))
    assert int8.int8_convs == _convolutions(graphs(name, "int8")) == {"resnet18": 20, "densenet": 10}[name]
    assert int8.weight_memory_bytes / fp32.weight_memory_bytes < 0.35


def test_what_tensorrt_rtx_cannot_suppress_is_told_how_else(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,9,4] boxes, float[1,2,9] scores) => (int64[M,3] kept) {
      most = Constant<value=int64[1] {3}>()
      kept = NonMaxSuppression(boxes, scores, most)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(InputError, match=r"no runners that implement it.*\n.*Export the detector without `--nms`"):
        _engine_of(path, "rtx-sm86")
