"""The FP16 cast: an FP32 ONNX file to its half-precision twin, after a look at the ranges on real images."""

from __future__ import annotations

import logging
from pathlib import Path

from msn_deploy.core.artifacts import publish
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.pipeline.calibrate import VERSIONS, PrecisionReport, check_door
from msn_deploy.pipeline.images import calibration_inputs, has_inputs
from msn_deploy.pipeline.ranges import measured_ranges

_LOG = logging.getLogger(__name__)
_SAMPLES = 128  # images: enough to see the order of magnitude, which is all that counts here


def cast_to_fp16(
    onnx: str | Path, out: str | Path, *, data: str | None = None, progress: Progress = silent
) -> PrecisionReport:
    """Write the FP16 twin of an FP32 file. Nodes that half precision is not enough for stay in FP32, and are named.

    data: images to look at, a name or folder; None takes what the model was trained on, where that is on this machine.
    Without any, weights alone are judged, which the log says.
    Raises InputError (exit 2), MissingDependency (exit 3).
    """
    model = open_model(Path(onnx), step="build-engine --precision fp16")
    return cast(model, Path(out), data=data, progress=progress)[0]


def cast(model: OpenModel, out: Path, *, data: str | None, progress: Progress) -> tuple[PrecisionReport, OpenModel]:
    """Do what `cast_to_fp16` does to an opened model; return the report, and the model that was written."""
    from msn_deploy.model.graphs import activations  # late, as are the next: they import onnx
    from msn_deploy.quant.constants import fold_constants
    from msn_deploy.quant.fp32_nodes import needs_fp32
    from msn_deploy.quant.precision import to_fp16

    check_door(model, out)
    info, proto = model.info, fold_constants(model.proto, load=run_on_one_thread)
    parents = [model.as_parent()]
    maxima: dict[str, float] = {}
    samples = 0
    if has_inputs(info, data):
        given = calibration_inputs(info, model.only_input[1], data, samples=_SAMPLES, model=str(model.path))
        parents += given.parents
        samples = len(given.inputs)
        key = {"model": parents[0].sha256, **given.key}
        maxima = measured_ranges(
            proto, given.inputs, activations(proto), key=key, method="minmax", percentile=100.0,
            skip_zero=True, progress=progress,
        ).values  # fmt: skip
    else:
        _LOG.warning("no images to look at: whether FP16 overflows is judged by the weights of %s alone", model.path)
    in_fp32 = needs_fp32(proto, maxima)
    for name, why in in_fp32.items():
        _LOG.warning("%s stays in FP32: %s", name, why)
    graph = to_fp16(proto, keep_fp32=in_fp32)
    content = with_info(graph, (info or ModelInfo(net="custom", norm="custom")).with_precision("fp16"))
    publish(
        out,
        content,
        kind="onnx",
        parents=parents,
        versions=VERSIONS,
        config={"precision": "fp16", "samples": samples, "recipe": {} if info is None else info.recipe},
        facts={"maxima": maxima, "in_fp32": in_fp32},
    )
    report = PrecisionReport(
        path=out,
        bytes=len(content),
        bytes_fp32=len(model.data),
        samples=samples,
        scales=0,
        parity=None,
        in_fp32=in_fp32,
    )
    return report, made_model(out, graph, content)
