"""`calibrate` and the FP16 cast: an FP32 ONNX file to the typed file that an engine is built from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import OrtRunner, read_onnx
from msn_deploy.pipeline.images import preprocess_for, split_for

if TYPE_CHECKING:
    from msn_deploy.graph import Rung

DEFAULT_SAMPLES = 256
_VERSIONS = ("onnx", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """What a change of precision wrote, and how far its logits are from FP32 on real images (None: not measured)."""

    path: Path
    bytes: int
    bytes_fp32: int
    samples: int
    scales: int
    parity: Rung | None


def calibrate(
    onnx: Path,
    out: Path,
    *,
    data: str | None = None,
    method: str = "entropy",
    samples: int = DEFAULT_SAMPLES,
    progress: Progress = silent,
) -> PrecisionReport:
    """Calibrate on training images and write an INT8 Q/DQ file.

    data: a name or folder; None takes what the model was trained on. samples: images, spread evenly over the training
    split. Raises InputError (exit 2), MissingDependency (exit 3).
    """
    require("onnx", step="calibrate")
    from msn_deploy.graph import calibrate_ranges, quantize
    from msn_deploy.graph.files import info_of, input_of, read_graph, with_info
    from msn_deploy.graph.ladder import rung

    _check_out(onnx, out)
    model = read_graph(onnx)
    _require_fp32(onnx)
    info = info_of(model, source=str(onnx))
    if info is not None and info.is_generator:
        raise InputError(f"{onnx} is a generator: INT8 is calibrated on images, and it takes none.\nUse FP32 or FP16.")
    prep = preprocess_for(info, input_of(model, source=str(onnx))[1], model=str(onnx))
    split = split_for(info, prep, data, "train").first(samples)
    images = to_input(split.images, prep)
    ranges = calibrate_ranges(model, images, method=method, progress=progress)
    content = with_info(
        quantize(model, ranges), (info or ModelInfo(net="custom", norm="custom")).with_precision("int8")
    )
    sidecar = publish(
        out,
        lambda path: path.write_bytes(content),
        kind="onnx",
        parents=(parent_of(onnx, role="onnx"), split.as_parent()),
        versions=_VERSIONS,
        config={
            "precision": "int8",
            "data": split.source,
            "method": method,
            "samples": len(images),
            "preprocess": asdict(prep),
            "recipe": {} if info is None else info.recipe,
        },
        facts={"ranges": ranges},
    )
    parity = rung("int8", OrtRunner(onnx).run(images), OrtRunner(out).run(images))
    return PrecisionReport(
        path=out,
        bytes=sidecar.bytes,
        bytes_fp32=onnx.stat().st_size,
        samples=len(images),
        scales=len(ranges),
        parity=parity,
    )


def cast_to_fp16(onnx: Path, out: Path) -> PrecisionReport:
    """Write the FP16 twin of an FP32 file. Raises InputError for weights that FP16 can't hold."""
    require("onnx", step="build-engine --precision fp16")
    from msn_deploy.graph import to_fp16
    from msn_deploy.graph.files import info_of, read_graph, with_info

    _check_out(onnx, out)
    model = read_graph(onnx)
    _require_fp32(onnx)
    info = info_of(model, source=str(onnx)) or ModelInfo(net="custom", norm="custom")
    content = with_info(to_fp16(model), info.with_precision("fp16"))
    publish(
        out,
        lambda path: path.write_bytes(content),
        kind="onnx",
        parents=(parent_of(onnx, role="onnx"),),
        versions=_VERSIONS,
        config={"precision": "fp16", "recipe": info.recipe},
    )
    return PrecisionReport(
        path=out, bytes=len(content), bytes_fp32=onnx.stat().st_size, samples=0, scales=0, parity=None
    )


def _require_fp32(onnx: Path) -> None:
    precision = read_onnx(onnx, step="calibrate").precision
    if precision != "fp32":
        raise InputError(f"{onnx} is {precision.upper()} already.\nGive the FP32 file that it was made from.")


def _check_out(onnx: Path, out: Path) -> None:
    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if out.resolve() == onnx.resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
