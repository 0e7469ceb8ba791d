"""From a factory, or a file of torch's older exporter, to files and engines in FP16 and INT8: four kinds of networks.

A detector of three outputs, two cameras, text of any width, and frames of bytes with channels last.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import any_networks
import numpy as np
import onnx
import pytest
import torch

from msn_deploy.bench import MeasureOptions
from msn_deploy.cli.options import parse_input
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine import BuildOptions, load_runner
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.build import EngineReport, build_engine
from msn_deploy.pipeline.export import export_onnx

pytestmark = pytest.mark.slow

needs_rtx = pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
SAMPLES = 24
QUICK = MeasureOptions(seconds=0.2, block_ms=1, warmup_seconds=0, warmup_queries=2)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal((SAMPLES, *shape)).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """inputs: what the factory is told. arrays: what it is fed. outputs: with their shapes. convs: in INT8 engines.

    opened: axes that the older exporter is told to leave open. floating: layers that have no INT8 kernel.
    """

    inputs: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    outputs: dict[str, tuple[int | None, ...]]
    convs: int
    shapes: tuple[str, ...] = ()
    opened: dict[str, dict[int, str]] | None = None
    floating: int = 0


KINDS = {
    "detector": Kind(
        inputs=("image=1,3,64,64",),
        arrays={"image": floats(3, 64, 64)},
        outputs={"output_0": (1, 8, 8, 8), "output_1": (1, 8, 4, 4), "output_2": (1, 8, 2, 2)},
        convs=11,
    ),
    "stereo": Kind(
        inputs=("left=1,3,32,48", "right=1,3,32,48"),
        arrays={"left": floats(3, 32, 48), "right": floats(3, 32, 48)[::-1].copy()},
        outputs={"disparity": (1, 1, 32, 48), "sure": (1, 1, 32, 48)},
        convs=7,  # the encoder has two, and is used twice
        floating=1,
    ),
    "text": Kind(
        inputs=("line=1,1,32,W=64",),
        arrays={"line": floats(1, 32, 96)},
        outputs={"logits": (1, None, 20)},
        convs=4,
        shapes=("line=1x1x32x32:1x1x32x96:1x1x32x256",),
        opened={"line": {3: "W"}},
    ),
    "camera": Kind(
        inputs=("frame=1,48,64,3:uint8",),
        arrays={"frame": np.random.default_rng(9).integers(0, 256, (SAMPLES, 48, 64, 3)).astype(np.uint8)},
        outputs={"logits": (1, 6)},
        convs=3,
    ),
}


def torch_answers(name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the network itself in float64; its outputs have the names that the file gives them."""
    net = getattr(any_networks, name)().double()
    given = [torch.from_numpy(each) for each in feeds.values()]
    with torch.inference_mode():
        made = net(*(each.double() if each.is_floating_point() else each for each in given))
    values = list(made.values()) if isinstance(made, dict) else list(made) if isinstance(made, tuple) else [made]
    return dict(zip(KINDS[name].outputs, (each.numpy() for each in values), strict=True))


def older_export(name: str, path: Path) -> Path:
    """Write what torch's older exporter makes of the network: opset 13, names of its own in between."""
    kind = KINDS[name]
    given = tuple(torch.from_numpy(each[:1]) for each in kind.arrays.values())
    names = {"input_names": list(kind.arrays), "output_names": list(kind.outputs), "dynamic_axes": kind.opened}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what many files come from
        torch.onnx.export(getattr(any_networks, name)(), given, path, opset_version=13, dynamo=False, **names)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return the exported file of a network, made once; its feeds lie beside it."""
    done: dict[tuple[str, str], Path] = {}

    def export(name: str, source: str) -> Path:
        if (name, source) not in done:
            folder = tmp_path_factory.mktemp(f"{name}-{source}")
            np.savez(folder / "feeds.npz", **KINDS[name].arrays)
            path = folder / f"{name}.onnx"
            if source == "factory":
                options = [parse_input(each) for each in KINDS[name].inputs]
                export_onnx(f"{any_networks.__file__}:{name}", path, inputs=tuple(options))
            else:
                foreign = older_export(name, folder / "foreign.onnx")
                options = [parse_input(each) for each in KINDS[name].inputs if KINDS[name].opened]
                export_onnx(str(foreign), path, inputs=tuple(options))
            done[name, source] = path
        return done[name, source]

    return export


def built(path: Path, name: str, precision: str) -> EngineReport:
    return build_engine(
        path,
        path.with_name(f"{name}.{precision}.engine"),
        precision=precision,
        data=str(path.with_name("feeds.npz")),
        samples=SAMPLES,
        options=BuildOptions(backend="tensorrt-rtx", shapes=tuple(map(parse_shapes, KINDS[name].shapes))),
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.ravel().astype(float), other.ravel().astype(float)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@needs_rtx
@pytest.mark.parametrize("source", ["factory", "foreign"])
@pytest.mark.parametrize("name", KINDS)
def test_a_network_of_any_kind_goes_from_its_source_to_engines(
    exported: Callable[[str, str], Path], name: str, source: str
) -> None:
    kind, path = KINDS[name], exported(name, source)
    model = onnx.load(path)
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization" and name != "camera"]
    reports = {precision: built(path, name, precision) for precision in ("fp16", "int8")}
    files = {"fp32": path, **{precision: report.onnx for precision, report in reports.items()}}
    for at in range(2):
        feeds = {each: array[at : at + 1] for each, array in kind.arrays.items()}
        truth = torch_answers(name, feeds)
        for precision, allowed in (("fp32", 1e-4), ("fp16", 2e-2), ("int8", None)):
            runner = load_runner(files[precision], threads=1)
            made = runner.run(feeds)
            assert list(made) == list(kind.outputs)
            for output, values in truth.items():
                assert made[output].shape == values.shape
                if allowed is None:
                    assert cosine(made[output], values) > 0.97, output
                else:
                    assert np.abs(made[output] - values).max() <= allowed * np.abs(values).max(), output
    for precision, report in reports.items():
        assert report.typed is not None
        assert report.typed.parity is not None
        assert [each.name for each in report.typed.parity.outputs] == list(kind.outputs)
        assert all(each.sqnr_db > {"fp16": 45, "int8": 15}[precision] for each in report.typed.parity.outputs)
        engine = report.engine
        assert engine is not None
        assert [(spec.name, spec.dtype) for spec in engine.inputs] == [
            (each, array.dtype.name) for each, array in kind.arrays.items()
        ]
        assert engine.outputs == tuple(TensorSpec(each, "float32", shape) for each, shape in kind.outputs.items())
        assert engine.precision == precision
        assert engine.int8_convs == (kind.convs if precision == "int8" else 0)
        assert len(engine.not_int8) == (kind.floating if precision == "int8" else 0)
        assert all("deconv" in layer.kind for layer in engine.not_int8)
        if kind.shapes:
            (given,) = map(parse_shapes, kind.shapes)
            assert engine.ranges == {given.name: given.range}
    measured = bench(list(files.values()), threads=1, data=str(path.with_name("feeds.npz")), options=QUICK)
    assert [arm.facts.precision for arm in measured.arms] == ["fp32", "fp16", "int8"]
    assert len({arm.facts.inputs for arm in measured.arms}) == 1


@pytest.mark.parametrize("name", ["text"])
def test_text_of_every_width_gives_the_answers_of_torch(exported: Callable[[str, str], Path], name: str) -> None:
    runner = load_runner(exported(name, "factory"), threads=1)
    for width in (32, 40, 100, 256):
        feeds = {"line": np.random.default_rng(width).standard_normal((1, 1, 32, width)).astype(np.float32)}
        (made,), (truth,) = runner.run(feeds).values(), torch_answers(name, feeds).values()
        assert made.shape == truth.shape == (1, width // 4, 20)
        assert np.abs(made - truth).max() <= 1e-5 * np.abs(truth).max()
