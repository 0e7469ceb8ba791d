"""`calibrate`: an FP32 ONNX file to the INT8 file that an engine is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msn_deploy.core.artifacts import publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import DEFAULT_METHOD, DEFAULT_PERCENTILE, DEFAULT_SAMPLES, ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.model.parity import Rung, classifies, rung
from msn_deploy.pipeline.budget import Verdict, int8_graph, within_budget
from msn_deploy.pipeline.images import calibration_inputs, preprocess_for, split_for
from msn_deploy.pipeline.ranges import measured_ranges
from msn_deploy.quant.scales import check_method
from msn_deploy.quant.trt_table import format_table, parse_release

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from msn_deploy.quant.sufficiency import Drift

VERSIONS = ("onnx", "onnxruntime", "numpy", "pillow")
_CHUNK = 32  # images


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """What a change of precision wrote, and how far its logits are from FP32 on real images (None: not measured).

    left_out: layers that are not INT8, by choice or by the verdict of an accuracy budget (None: no budget). in_fp32:
    nodes that FP16 is not enough for, with the number that says so. warnings: what is doubtful about the images. cache:
    what the calibration cache said. drift: of the scales with fewer images, if asked for. table: the calibration table
    for TensorRT, if asked for.
    """

    path: Path
    bytes: int
    bytes_fp32: int
    samples: int
    scales: int
    parity: Rung | None
    method: str = ""
    verdict: Verdict | None = None
    left_out: tuple[str, ...] = ()
    in_fp32: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()
    cache: str = ""
    drift: tuple[Drift, ...] = ()
    table: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What the user chooses about a calibration. Raises InputError for what cannot be, or not together."""

    data: str | None = None
    """A known name or a folder of images; None takes what the model was trained on."""
    method: str = DEFAULT_METHOD
    """How ranges are chosen: one of METHODS of `quant.scales`."""
    percentile: float = DEFAULT_PERCENTILE
    """Of the values, percent, that the method "percentile" leaves unclipped."""
    samples: int = DEFAULT_SAMPLES
    """Images of the training split; memory does not grow with them."""
    seed: int | None = None
    """Draws the images; None spreads them evenly."""
    max_drop: float | None = None
    """How much of the accuracy on the test split (a share, 0.005 for half a point) may go; the fewest layers that this
    takes stay in FP16."""
    leave_out: Sequence[str] = ()
    """Names of layers that stay in FP16 in any case."""
    use_cache: bool = True
    """Take scales that were calibrated before, where all that they depend on is the same."""
    sufficiency: bool = False
    """Also measure how the scales drift with fewer images."""
    table: str | None = None
    """Also write NAME.cache, a calibration table for the FP32 file and this release of TensorRT, such as "trt-8.6"."""

    def __post_init__(self) -> None:
        check_method(self.method, self.percentile)
        if self.table is not None:
            parse_release(self.table)
        if self.max_drop is not None and self.leave_out:
            raise InputError("`--max-drop` finds the layers to leave out itself.\nGive it or `--leave-out`, not both.")


def calibrate(
    onnx: str | Path,
    out: str | Path,
    options: CalibrationOptions | None = None,
    *,
    progress: Progress = silent,
    **settings: Any,
) -> PrecisionReport:
    """Calibrate on training images (a generator: on latents) and write an INT8 Q/DQ file.

    Args:
        onnx: The FP32 file.
        out: Where to write; the name ends in .onnx.
        options: What is chosen about the calibration.
        progress: Told how far it is.
        **settings: Fields of CalibrationOptions, over those of `options`: `samples=128, method="entropy"`.

    Returns:
        What was written, and how far it is from FP32.

    Raises:
        InputError: A file, option or image that cannot be used (exit 2).
        GateError: No INT8 keeps the accuracy (exit 1).
        MissingDependency: A package is missing (exit 3).
    """
    options = replace(options or CalibrationOptions(), **settings)
    return calibrated(open_model(Path(onnx), step="calibrate"), Path(out), options, progress=progress)[0]


def calibrated(
    model: OpenModel, out: Path, options: CalibrationOptions, *, progress: Progress
) -> tuple[PrecisionReport, OpenModel]:
    """Do what `calibrate` does to an opened model; return the report, and the model that was written."""
    from msn_deploy.model.graphs import activations  # late, as is the next: they import onnx
    from msn_deploy.quant.placement import place

    check_door(model, out)
    proto, info = model.proto, model.info
    placement = place(proto, leave_out=options.leave_out)
    if options.max_drop is not None and info is not None and info.is_generator:
        raise InputError(f"{model.path} is a generator: it has no accuracy to keep.\nLeave `--max-drop` away.")
    given = calibration_inputs(
        info, model.only_input[1], options.data, samples=options.samples, seed=options.seed, model=str(model.path)
    )
    parents = (model.as_parent(), *given.parents)
    measure = partial(
        measured_ranges,
        proto,
        given.inputs,
        key={"model": parents[0].sha256, **given.key},
        method=options.method,
        percentile=options.percentile,
        use_cache=options.use_cache,
        progress=progress,
    )
    ranges = measure(place(proto).tensors, sufficiency=options.sufficiency)
    maxima = {}
    if options.max_drop is not None or options.leave_out:
        maxima = measure(activations(proto), method="minmax", skip_zero=True).values
    verdict, left_out = None, tuple(options.leave_out)
    if options.max_drop is None:
        graph, in_fp32 = int8_graph(proto, ranges.values, maxima, left_out)
    else:
        graph, verdict = _within_budget(
            model, ranges.values, maxima, options.data, max_drop=options.max_drop, progress=progress
        )
        left_out, in_fp32 = verdict.left_out, verdict.in_fp32
    content = with_info(graph, (info or ModelInfo(net="custom", norm="custom")).with_precision("int8"))
    config = {
        "precision": "int8",
        "data": given.source,
        "method": options.method,
        "percentile": options.percentile,
        "samples": len(given.inputs),
        "seed": given.seed,
        "max_drop": options.max_drop,
        "leave_out": list(options.leave_out),
        "preprocess": given.preprocess,
        "recipe": {} if info is None else info.recipe,
    }
    facts = {
        "ranges": ranges.values,
        "images": given.facts,
        "drift": [asdict(point) for point in ranges.drift],
        "left_out": list(left_out),
        "in_fp32": in_fp32,
        "verdict": None if verdict is None else asdict(verdict),
    }
    sidecar = publish(
        out,
        content,
        kind="onnx",
        parents=parents,
        versions=VERSIONS,
        config=config,
        facts=facts,
    )
    table_path = None
    if options.table is not None:
        # The rest by itself: with more tensors as outputs, ONNX Runtime would fuse, and so round, in another way.
        rest = [name for name in activations(proto) if name not in ranges.values]
        scales = {**ranges.values, **placement.shared(ranges.values), **measure(rest, skip_zero=True).values}
        text = format_table(scales, parse_release(options.table))
        table_path = out.with_suffix(".cache")
        publish(
            table_path,
            text.encode(),
            kind="calibration-table",
            parents=parents,
            versions=VERSIONS,
            config={**config, "table": options.table},
        )
    made = made_model(out, graph, content)
    report = PrecisionReport(
        path=out,
        bytes=sidecar.bytes,
        bytes_fp32=len(model.data),
        samples=len(given.inputs),
        scales=len(ranges.values),
        parity=rung(
            "int8",
            _outputs(model, given.inputs),
            _outputs(made, given.inputs),
            classifies=info is not None and classifies(info),
        ),
        method=options.method,
        verdict=verdict,
        left_out=left_out,
        in_fp32=in_fp32,
        warnings=given.warnings,
        cache=ranges.cache,
        drift=ranges.drift,
        table=table_path,
    )
    return report, made


def _within_budget(
    model: OpenModel,
    ranges: dict[str, float],
    maxima: dict[str, float],
    data: str | None,
    *,
    max_drop: float,
    progress: Progress,
) -> tuple[ModelProto, Verdict]:
    """Hold the budget on all images of the test split."""
    prep = preprocess_for(model.info, model.only_input[1], model=str(model.path))
    test = split_for(model.info, prep, data, "test")
    images = to_input(test.images, prep)
    return within_budget(
        model.proto, ranges, maxima, images=images, labels=test.labels, max_drop=max_drop, progress=progress
    )


def _outputs(model: OpenModel, inputs: Any) -> dict[str, NDArray[np.float32]]:
    runner = OrtRunner(model)
    most = min(len(inputs), DEFAULT_SAMPLES)
    made = [run_images(runner, inputs[at : min(at + _CHUNK, most)]) for at in range(0, most, _CHUNK)]
    return {runner.outputs[0].name: np.concatenate(made)}


def check_door(model: OpenModel, out: Path) -> None:
    """Refuse, before the work, what gives no file of another precision. Raises InputError.

    That is a name that is no ONNX file's, or the input's own; a file of another precision already; a graph that is not
    plain ONNX.
    """
    from msn_deploy.model.checks import check_editable

    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if out.resolve() == model.path.resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    check_editable(model.proto, source=str(model.path))
    if model.precision != "fp32":
        raise InputError(
            f"{model.path} is {model.precision.upper()} already.\nGive the FP32 file that it was made from."
        )
