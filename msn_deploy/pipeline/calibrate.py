"""`calibrate` and the FP16 cast: an FP32 ONNX file to the typed file that an engine is built from."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data.calibration_checks import check_images, check_labels, examine
from msn_deploy.data.preprocess import PreparedImages
from msn_deploy.engine import OrtRunner, read_onnx
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.ranges import measured_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from msn_deploy.graph import Rung
    from msn_deploy.graph.sufficiency import Drift

_LOG = logging.getLogger(__name__)
DEFAULT_SAMPLES = 256
DEFAULT_PERCENTILE = 99.99
_CHUNK = 32  # images
_VERSIONS = ("onnx", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """What a change of precision wrote, and how far its logits are from FP32 on real images (None: not measured).

    warnings: what is doubtful about the images. cache: what the calibration cache said. drift: of the scales with fewer
    images, if asked for. table: the calibration table for TensorRT, if asked for.
    """

    path: Path
    bytes: int
    bytes_fp32: int
    samples: int
    scales: int
    parity: Rung | None
    method: str = ""
    warnings: tuple[str, ...] = ()
    cache: str = ""
    drift: tuple[Drift, ...] = ()
    table: Path | None = None


def calibrate(
    onnx: Path,
    out: Path,
    *,
    data: str | None = None,
    method: str = "entropy",
    percentile: float = DEFAULT_PERCENTILE,
    samples: int = DEFAULT_SAMPLES,
    seed: int | None = None,
    use_cache: bool = True,
    sufficiency: bool = False,
    table: str | None = None,
    progress: Progress = silent,
) -> PrecisionReport:
    """Calibrate on training images and write an INT8 Q/DQ file.

    data: a name or folder; None takes what the model was trained on. method, percentile: of `graph.scales`. samples:
    images of the training split, spread evenly, or drawn by `seed`. sufficiency: also measure how the scales drift with
    fewer images. table: also write NAME.cache beside `out`, a calibration table for the FP32 file and this release of
    TensorRT, such as "trt-8.6". Memory does not grow with the number of images.
    Raises InputError (exit 2; also for images that can't calibrate a network), MissingDependency (exit 3).
    """
    require("onnx", step="calibrate")
    from msn_deploy.graph import quantize
    from msn_deploy.graph.calibrate import quantised_tensors
    from msn_deploy.graph.files import info_of, input_of, read_graph, with_info
    from msn_deploy.graph.ladder import rung
    from msn_deploy.graph.scales import check_method
    from msn_deploy.graph.trt_table import format_table, parse_release, table_tensors

    check_method(method, percentile)
    release = None if table is None else parse_release(table)
    _check_out(onnx, out)
    model = read_graph(onnx)
    _require_fp32(onnx)
    info = info_of(model, source=str(onnx))
    if info is not None and info.is_generator:
        raise InputError(f"{onnx} is a generator: INT8 is calibrated on images, and it takes none.\nUse FP32 or FP16.")
    prep = preprocess_for(info, input_of(model, source=str(onnx))[1], model=str(onnx))
    split = split_for(info, prep, data, "train", lazy=True).first(samples, seed=seed)
    images = PreparedImages(split.images, prep)
    facts = examine(images)
    warnings = (*check_images(facts, info and info.preprocess), *check_labels(split.labels, split.classes))
    for doubt in warnings:
        _LOG.warning("%s", doubt)

    parents = (parent_of(onnx, role="onnx"), split.as_parent())
    measure = partial(
        measured_ranges,
        model,
        images,
        key={
            "model": parents[0].sha256,
            "images": parents[1].sha256,
            "samples": {"count": len(images), "seed": seed},
            "preprocessing": asdict(prep),
        },
        method=method,
        percentile=percentile,
        use_cache=use_cache,
        progress=progress,
    )
    tensors = quantised_tensors(model)
    ranges = measure(tensors, sufficiency=sufficiency)
    content = with_info(
        quantize(model, ranges.values), (info or ModelInfo(net="custom", norm="custom")).with_precision("int8")
    )
    config = {
        "precision": "int8",
        "data": split.source,
        "method": method,
        "percentile": percentile,
        "samples": len(images),
        "seed": seed,
        "preprocess": asdict(prep),
        "recipe": {} if info is None else info.recipe,
    }
    measured = {"images": asdict(facts), "drift": [asdict(point) for point in ranges.drift]}
    sidecar = publish(
        out,
        lambda path: path.write_bytes(content),
        kind="onnx",
        parents=parents,
        versions=_VERSIONS,
        config=config,
        facts={"ranges": ranges.values, **measured},
    )
    table_path = None
    if release is not None:
        # The rest by itself: with more tensors as outputs, ONNX Runtime would fuse, and so round, in another way.
        rest = [name for name in table_tensors(model) if name not in ranges.values]
        text = format_table({**ranges.values, **measure(rest, skip_zero=True).values}, release)
        table_path = out.with_suffix(".cache")
        publish(
            table_path,
            lambda path: path.write_text(text, encoding="utf-8"),
            kind="calibration-table",
            parents=parents,
            versions=_VERSIONS,
            config={**config, "table": table},
        )
    shown = PreparedImages(split.first(DEFAULT_SAMPLES).images, prep)
    return PrecisionReport(
        path=out,
        bytes=sidecar.bytes,
        bytes_fp32=onnx.stat().st_size,
        samples=len(images),
        scales=len(ranges.values),
        parity=rung("int8", _logits(onnx, shown), _logits(out, shown)),
        method=method,
        warnings=warnings,
        cache=ranges.cache,
        drift=ranges.drift,
        table=table_path,
    )


def _logits(onnx: Path, images: PreparedImages) -> NDArray[np.float32]:
    runner = OrtRunner(onnx)
    return np.concatenate([runner.run(images[at : at + _CHUNK]) for at in range(0, len(images), _CHUNK)])


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
