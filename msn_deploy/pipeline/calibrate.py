"""`calibrate`: an FP32 ONNX file to the INT8 file that an engine is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msn_deploy.core.artifacts import publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import DEFAULT_METHOD, ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.model.parity import Rung, rung
from msn_deploy.pipeline.budget import Verdict, int8_graph, within_budget
from msn_deploy.pipeline.calibration_inputs import calibration_inputs
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.ranges import measured_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from msn_deploy.model.parity import Rung
    from msn_deploy.quant.sufficiency import Drift

DEFAULT_SAMPLES = 256
DEFAULT_PERCENTILE = 99.99
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


def calibrate(
    onnx: Path,
    out: Path,
    *,
    data: str | None = None,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    samples: int = DEFAULT_SAMPLES,
    seed: int | None = None,
    max_drop: float | None = None,
    leave_out: Sequence[str] = (),
    use_cache: bool = True,
    sufficiency: bool = False,
    table: str | None = None,
    progress: Progress = silent,
) -> PrecisionReport:
    """Calibrate on training images (a generator: on latents) and write an INT8 Q/DQ file.

    data: a name or folder; None takes what the model was trained on. method, percentile: of `graph.scales`. samples:
    images of the training split, spread evenly, or drawn by `seed`. max_drop: how much of the accuracy on the test
    split (a share, 0.005 for half a point) may go; the fewest layers that this takes stay in FP16. leave_out: names of
    layers that do in any case. sufficiency: also measure how the scales drift with fewer images. table: also write
    NAME.cache beside `out`, a calibration table for the FP32 file and this release of TensorRT, such as "trt-8.6".
    Memory does not grow with the number of images that calibrate.
    Raises InputError (exit 2; also for images that can't calibrate a network), GateError (exit 1) if no INT8 keeps the
    accuracy, MissingDependency (exit 3).
    """
    model = open_model(onnx, step="calibrate")
    return calibrate_model(
        model, out, data=data, method=method, percentile=percentile, samples=samples, seed=seed, max_drop=max_drop,
        leave_out=leave_out, use_cache=use_cache, sufficiency=sufficiency, table=table, progress=progress,
    )[0]  # fmt: skip


def calibrate_model(
    model: OpenModel,
    out: Path,
    *,
    data: str | None = None,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    samples: int = DEFAULT_SAMPLES,
    seed: int | None = None,
    max_drop: float | None = None,
    leave_out: Sequence[str] = (),
    use_cache: bool = True,
    sufficiency: bool = False,
    table: str | None = None,
    progress: Progress = silent,
) -> tuple[PrecisionReport, OpenModel]:
    """Do the same for a file that is open; return what was written, too."""
    from msn_deploy.model.graphs import activations
    from msn_deploy.quant.placement import place
    from msn_deploy.quant.scales import check_method
    from msn_deploy.quant.trt_table import format_table, parse_release

    check_method(method, percentile)
    release = None if table is None else parse_release(table)
    check_door(model, out)
    proto, info = model.proto, model.info
    placement = place(proto, leave_out=leave_out)
    _check_budget(model.path, info, max_drop, leave_out)
    given = calibration_inputs(info, model.only_input[1], data, samples=samples, seed=seed, model=str(model.path))
    parents = (model.as_parent(), *given.parents)
    measure = partial(
        measured_ranges,
        proto,
        given.inputs,
        key={"model": parents[0].sha256, **given.key},
        method=method,
        percentile=percentile,
        use_cache=use_cache,
        progress=progress,
    )
    ranges = measure(place(proto).tensors, sufficiency=sufficiency)
    maxima = {}
    if max_drop is not None or leave_out:
        maxima = measure(activations(proto), method="minmax", skip_zero=True).values
    verdict, left_out = None, tuple(leave_out)
    if max_drop is None:
        graph, in_fp32 = int8_graph(proto, ranges.values, maxima, left_out)
    else:
        graph, verdict = _within_budget(model, ranges.values, maxima, data, max_drop=max_drop, progress=progress)
        left_out, in_fp32 = verdict.left_out, verdict.in_fp32
    content = with_info(graph, (info or ModelInfo(net="custom", norm="custom")).with_precision("int8"))
    config = {
        "precision": "int8",
        "data": given.source,
        "method": method,
        "percentile": percentile,
        "samples": len(given.inputs),
        "seed": given.seed,
        "max_drop": max_drop,
        "leave_out": list(leave_out),
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
        lambda path: path.write_bytes(content),
        kind="onnx",
        parents=parents,
        versions=VERSIONS,
        config=config,
        facts=facts,
    )
    table_path = None
    if release is not None:
        # The rest by itself: with more tensors as outputs, ONNX Runtime would fuse, and so round, in another way.
        rest = [name for name in activations(proto) if name not in ranges.values]
        scales = {**ranges.values, **placement.shared(ranges.values), **measure(rest, skip_zero=True).values}
        text = format_table(scales, release)
        table_path = out.with_suffix(".cache")
        publish(
            table_path,
            lambda path: path.write_text(text, encoding="utf-8"),
            kind="calibration-table",
            parents=parents,
            versions=VERSIONS,
            config={**config, "table": table},
        )
    made = made_model(out, graph, content)
    report = PrecisionReport(
        path=out,
        bytes=sidecar.bytes,
        bytes_fp32=len(model.data),
        samples=len(given.inputs),
        scales=len(ranges.values),
        parity=rung("int8", _outputs(model, given.inputs), _outputs(made, given.inputs)),
        method=method,
        verdict=verdict,
        left_out=left_out,
        in_fp32=in_fp32,
        warnings=given.warnings,
        cache=ranges.cache,
        drift=ranges.drift,
        table=table_path,
    )
    return report, made


def _check_budget(onnx: Path, info: ModelInfo | None, max_drop: float | None, leave_out: Sequence[str]) -> None:
    if max_drop is None:
        return
    if leave_out:
        raise InputError("`--max-drop` finds the layers to leave out itself.\nGive it or `--leave-out`, not both.")
    if info is not None and info.is_generator:
        raise InputError(f"{onnx} is a generator: it has no accuracy to keep.\nLeave `--max-drop` away.")


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


def _outputs(model: OpenModel, inputs: Any) -> NDArray[np.float32]:
    runner = OrtRunner(model)
    most = min(len(inputs), DEFAULT_SAMPLES)
    return np.concatenate([run_images(runner, inputs[at : min(at + _CHUNK, most)]) for at in range(0, most, _CHUNK)])


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
