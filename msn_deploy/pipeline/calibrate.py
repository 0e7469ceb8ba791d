"""`calibrate`: an FP32 ONNX file to the INT8 or FP8 file that an engine is built from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msn_deploy.core.artifacts import Artifact, publish_together
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import (
    AUTO,
    DEFAULT_METHOD,
    DEFAULT_PERCENTILE,
    DEFAULT_SAMPLES,
    FP8_METHOD,
    QUANTISED,
    RUNTIMES,
    ModelInfo,
    Quantised,
    Runtime,
)
from msn_deploy.core.opening import is_same
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.results import Result
from msn_deploy.data.feeds import ImageSamples, is_feeds, runs_of
from msn_deploy.data.preprocess import PreparedImages
from msn_deploy.engine import BuildOptions, OrtRunner
from msn_deploy.engine.calibration_table import format_table, parse_release
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.feeds import Array, joined, rows_of
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.model.parity import Rung, classifies, require_finite, rung
from msn_deploy.pipeline.budget import (
    CHUNK,
    Allowed,
    Verdict,
    as_allowed,
    quantised_graph,
    ranked,
    within_budget,
    within_sqnr,
)
from msn_deploy.pipeline.evaluate import given_of, require_task
from msn_deploy.pipeline.images import CalibrationInputs, calibration_inputs, preprocess_for, split_for
from msn_deploy.pipeline.quantisable import constants_computed, quantisable
from msn_deploy.pipeline.ranges import measured_ranges, sizes_for_fp16
from msn_deploy.pipeline.tune import TIMED_FEEDS, Tuner, Tuning, engines_for
from msn_deploy.quant.calibration_checks import MINIMUM_SAMPLES
from msn_deploy.quant.scales import FOR_INT8, check_method
from msn_deploy.tasks import make_task
from msn_deploy.tasks.scoring import score_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.quant.layout import Layout
    from msn_deploy.quant.sufficiency import Drift

VERSIONS = ("onnx", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PrecisionReport(Result):
    """What a change of precision wrote, and how far its outputs are from FP32 on the samples (None: not measured).

    precision: of the file. left_out: layers that are not quantised, by choice or by the verdict of a budget (None: no
    budget). in_fp16: layers without a kernel in FP8, and in_fp32: nodes that FP16 is not enough for, each with the
    reason. dead: tensors that are 0 on all samples, and so have no scale of their own. transposed: transposed
    convolutions in INT8, which not every TensorRT has a kernel for. warnings: what is doubtful about the samples.
    cache: what the calibration cache said. drift: of the scales with fewer images, if asked for. table: the calibration
    table for TensorRT, if asked for. runtime: what a quantised file is laid out for. tuning: by measured time, if asked
    for. equalized: how many channels in front of a layer were brought to another size, for INT8's steps.
    sqnr_db_by_method: what each method kept of the worst output, where one was chosen by that.
    """

    path: Path
    precision: str
    bytes: int
    bytes_fp32: int
    samples: int
    scales: int
    parity: Rung | None
    method: str = ""
    sqnr_db_by_method: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    left_out: tuple[str, ...] = ()
    in_fp16: dict[str, str] | None = None
    in_fp32: dict[str, str] | None = None
    dead: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    cache: str = ""
    drift: tuple[Drift, ...] = ()
    table: Path | None = None
    runtime: Runtime | None = None
    tuning: Tuning | None = None
    equalized: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What the user chooses about a calibration. Raises InputError for what cannot be, or not together."""

    data: str | None = None
    """A known name or a folder of images, or feeds (.npz, .npy, a folder of them); None takes what the model was
    trained on."""
    precision: Quantised = "int8"
    """What the file is in. FP8 (E4M3) runs on GPUs from Ada on; all around it is FP16, whatever is left out."""
    method: str | None = None
    """How ranges are chosen: one of METHODS of `quant.scales`, or AUTO for the one that keeps the most of the outputs
    (in FP8: FP8_METHOD); None: DEFAULT_METHOD."""
    percentile: float = DEFAULT_PERCENTILE
    """Of the values, percent, that the method "percentile" leaves unclipped."""
    samples: int = DEFAULT_SAMPLES
    """Images of the training split, or samples of the feeds; memory does not grow with them."""
    seed: int | None = None
    """Draws the samples; None spreads them evenly."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Output -> the input that takes it in the next sample, as in recurrent networks."""
    max_drop: Allowed | float | None = None
    """How much worse the task's metric on the test split may become (a number is a share, 0.005 for half a point); the
    fewest layers that this takes stay in FP16."""
    min_sqnr: float | None = None
    """What every float output has to keep against FP32 on the samples, dB; the fewest layers that this takes stay in
    FP16. For networks without a metric."""
    leave_out: Sequence[str] = ()
    """Names of layers that stay in FP16 in any case."""
    use_cache: bool = True
    """Reuse cached scales, if all that they depend on is the same."""
    sufficiency: bool = False
    """Also measure how the scales drift with fewer images."""
    table: str | None = None
    """Also write NAME.cache, a calibration table for the FP32 file and this release of TensorRT, such as "trt-8.6"."""
    runtime: Runtime = "tensorrt"
    """What the file is laid out for: engines, or ONNX Runtime on a CPU. What is left out there stays in FP32."""
    tune: Literal["latency"] | None = None
    """Also leave out the layers that make the network slower, as it is measured on this machine."""

    def __post_init__(self) -> None:
        check_method(self.ranged_by, self.percentile)
        if self.precision not in QUANTISED:
            raise InputError(
                f"`calibrate` writes INT8 and FP8, not {self.precision!r}{did_you_mean(self.precision, QUANTISED)}"
            )
        if self.precision == "fp8":
            self._check_fp8()
        if self.runtime not in RUNTIMES:
            raise InputError(f"unknown runtime {self.runtime!r}{did_you_mean(self.runtime, RUNTIMES)}")
        if self.tune not in (None, "latency"):
            raise InputError(f"`--tune {self.tune}` is not known{did_you_mean(str(self.tune), ('latency',))}")
        if self.table is not None and self.runtime != "tensorrt":
            raise InputError("`--table` is for TensorRT.\nLeave it out, or leave `--runtime` out.")
        if self.table is not None:
            parse_release(self.table)
        given = {"--max-drop": self.max_drop, "--min-sqnr": self.min_sqnr, "--leave-out": self.leave_out or None}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise InputError(f"`{names[0]}` finds the layers to leave out itself.\nGive it or `{names[1]}`, not both.")
        if self.max_drop is not None and is_feeds(self.data):
            raise InputError(f"{self.data} holds no labels to measure a metric with.\nGive `--min-sqnr 30dB`.")

    @property
    def ranged_by(self) -> str:
        """The method by which ranges are chosen."""
        method = self.method or DEFAULT_METHOD
        return FP8_METHOD if method == AUTO and self.precision == "fp8" else method

    def _check_fp8(self) -> None:
        """Raise InputError for what is of INT8 alone."""
        if self.ranged_by in FOR_INT8:
            raise InputError(
                f"the method {self.ranged_by!r} weighs the even steps of INT8; those of FP8 are a share of the value.\n"
                "Give `--method minmax` or `--method percentile`, or leave it out."
            )
        given = {
            "--runtime": self.runtime != "tensorrt",
            "--table": self.table is not None,
            "--tune": self.tune is not None,
            "--max-drop": self.max_drop is not None,
            "--min-sqnr": self.min_sqnr is not None,
        }
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            raise InputError(f"`{name}` is for INT8.\nLeave it out, or leave out `--precision fp8`.")


def calibrate(
    onnx: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    options: CalibrationOptions | None = None,
    *,
    progress: Progress = silent,
    **settings: Any,
) -> PrecisionReport:
    """Calibrate on training images or feeds (a generator: on latents) and write an INT8 or FP8 Q/DQ file.

    Args:
        onnx: The FP32 file.
        out: Where to write; the name ends in .onnx. None: NAME.PRECISION.onnx beside the FP32 file.
        options: What is chosen about the calibration.
        progress: Told how far it is.
        **settings: Fields of CalibrationOptions, over those of `options`: `samples=128, method="entropy"`.

    Returns:
        What was written, and how far it is from FP32.

    Raises:
        InputError: A file, option or image that cannot be used (exit 2).
        GateError: No INT8 is within the budget, or an output is not finite (exit 1).
        MissingDependency: A package is missing (exit 3).

    Examples:
        >>> import msn_deploy
        >>> report = msn_deploy.calibrate("runs/cnn3_msn.onnx", samples=100)
        >>> report.path.name, report.samples
        ('cnn3_msn.int8.onnx', 100)
    """
    options = replace(options or CalibrationOptions(), **settings)
    path = Path(onnx)
    out = path.with_name(f"{path.stem}.{options.precision}.onnx") if out is None else Path(out)
    return calibrated(open_model(path, step="calibrate"), out, options, progress=progress)[0]


def calibrated(
    model: OpenModel,
    out: Path,
    options: CalibrationOptions,
    *,
    build: BuildOptions | None = None,
    progress: Progress,
) -> tuple[PrecisionReport, OpenModel]:
    """Do what `calibrate` does to an opened model; return the report, and the model that was written.

    build: of the engines that `tune` times.
    """
    from msn_deploy.model.graphs import activations  # late, as are the next: they import onnx
    from msn_deploy.quant.histograms import extremes
    from msn_deploy.quant.layout import Layout
    from msn_deploy.quant.placement import name_of, require_layers, without_fp8

    check_door(model, out)
    info = model.info
    if options.max_drop is not None:
        _require_metric(model)
    timed_as_engine = options.tune is not None and options.runtime == "tensorrt"
    engines = engines_for("int8", build or BuildOptions()) if timed_as_engine else None
    layout = Layout(precision=options.precision, runtime=options.runtime)
    proto = constants_computed(model, layout)
    placement = layout.place(proto, leave_out=options.leave_out)
    in_half = without_fp8(proto) if layout.precision == "fp8" else {}
    require_layers(placement, runtime=layout.runtime, left_out=bool(options.leave_out), without=in_half)
    given = calibration_inputs(model, options.data, samples=options.samples, seed=options.seed, state=options.state)
    if len(given.samples) < MINIMUM_SAMPLES:
        raise InputError(f"{len(given.samples)} samples are too few to calibrate on; {MINIMUM_SAMPLES} are needed.")
    parents = (model.as_parent(), *given.parents)
    key = {"model": model.sha256, **given.key}
    equalized: dict[str, int] = {}
    if options.precision == "int8" and options.table is None:  # a table has the scales of the FP32 file as it is
        ready = quantisable(proto, given.samples, sha256=model.sha256)
        proto, equalized, key["model"] = ready.graph, ready.equalized, ready.key
        placement = layout.place(proto, leave_out=options.leave_out)
    measure = partial(
        measured_ranges,
        proto,
        given.samples,
        key=key,
        method=options.ranged_by,
        percentile=options.percentile,
        use_cache=options.use_cache,
        progress=progress,
    )
    truth = outputs_of(model, given, most=DEFAULT_SAMPLES)
    require_finite(truth, source=str(model.path))
    if layout.runtime == "onnxruntime":
        found = extremes(proto, given.samples, placement.tensors, load=run_on_one_thread, progress=progress)
        layout = replace(layout, extremes=found)
    ranges = measure(placement.tensors, layout=layout, leave_out=options.leave_out, sufficiency=options.sufficiency)
    budget = options.max_drop is not None or options.min_sqnr is not None
    maxima: dict[str, float] = {}
    minima: dict[str, float] = {}
    if layout.precision == "fp8":
        maxima, minima = sizes_for_fp16(proto, given.samples, key=key, progress=progress)
    elif (budget or options.leave_out or options.tune) and layout.runtime == "tensorrt":
        maxima = measure(activations(proto), method="minmax").values
    quantised = partial(quantised_graph, proto, ranges.values, maxima, layout=layout, minima=minima)
    verdict, left_out = None, tuple(options.leave_out)
    tuner = None
    if options.tune is not None:
        timed = list(given.runs(TIMED_FEEDS, most=1))
        tuner = Tuner("int8", lambda names: quantised(names)[0], layout.place(proto).layers, timed, engines, progress)
    if options.max_drop is not None:
        graph, verdict = _within_drop(model, proto, ranges.values, maxima, layout, options, tuner, progress)
    elif options.min_sqnr is not None:
        runs = list(given.runs(DEFAULT_SAMPLES, most=CHUNK))
        graph, verdict = within_sqnr(
            proto,
            ranges.values,
            maxima,
            runs=runs,
            min_sqnr_db=options.min_sqnr,
            layout=layout,
            tune=tuner,
            progress=progress,
        )
    else:
        left_out = left_out if tuner is None else tuner(left_out)
        graph, in_fp32 = quantised(left_out)
    if verdict is not None:
        left_out, in_fp32 = verdict.left_out, verdict.in_fp32
    content = with_info(graph, (info or ModelInfo(net="custom", norm="custom")).with_precision(options.precision))
    made = made_model(out, graph, content)
    outputs = outputs_of(made, given, most=DEFAULT_SAMPLES)
    require_finite(outputs, source=made.name)
    parity = rung(options.precision, truth, outputs, classifies=info is not None and classifies(info))
    table = None
    if options.table is not None:
        # The rest by itself: with more tensors as outputs, ONNX Runtime would fuse, and so round, in another way.
        rest = [name for name in activations(proto) if name not in ranges.values]
        scales = {**ranges.values, **placement.shared(ranges.values), **measure(rest, method=ranges.method).values}
        table = format_table({name: size for name, size in scales.items() if size}, parse_release(options.table))
    config = {
        "precision": options.precision,
        "runtime": options.runtime,
        "data": given.source,
        "method": options.ranged_by,
        "percentile": options.percentile,
        "samples": len(given.samples),
        "seed": given.seed,
        "max_drop": options.max_drop and str(as_allowed(options.max_drop)),
        "min_sqnr": options.min_sqnr,
        "leave_out": list(options.leave_out),
        "tune": options.tune,
        "preprocess": given.preprocess,
        "recipe": {} if info is None else info.recipe,
    }
    if layout.runtime == "onnxruntime":
        transposed = (node for node in proto.graph.node if node.op_type == "ConvTranspose")
        in_fp32 |= {name_of(node): "ONNX Runtime has no INT8 kernel for a ConvTranspose" for node in transposed}
    tuning = None
    if tuner is not None:
        ranking = () if verdict is None else verdict.ranking
        if not ranking and any(array.dtype.kind == "f" for array in truth.values()):
            few = list(given.runs(CHUNK, most=CHUNK))
            ranking = ranked(
                proto, ranges.values, runs=few, leave_out=options.leave_out, layout=layout, progress=progress
            )
        tuning = tuner.tuning(left_out, in_fp32, ranking)
    dead = tuple(name for name, size in placement.shared(ranges.values).items() if not size)
    facts = {
        "ranges": ranges.values,
        "images": given.facts,
        "drift": [asdict(point) for point in ranges.drift],
        "left_out": list(left_out),
        "in_fp16": in_half,
        "in_fp32": in_fp32,
        "dead": list(dead),
        "method": ranges.method,
        "sqnr_db_by_method": ranges.sqnr_db,
        "equalized": equalized,
        "parity": asdict(parity),
        "verdict": None if verdict is None else asdict(verdict),
        "tuning": None if tuning is None else asdict(tuning),
    }
    # All that can fail has not: the files come last.
    table_path = None if table is None else out.with_suffix(".cache")
    files = [
        Artifact(path=out, content=content, kind="onnx", parents=parents, versions=VERSIONS, config=config, facts=facts)
    ]
    if table is not None and table_path is not None:
        config = {**config, "table": options.table}
        scales_only = Artifact(
            path=table_path,
            content=table.encode(),
            kind="calibration-table",
            parents=parents,
            versions=VERSIONS,
            config=config,
        )
        files.append(scales_only)
    sidecar, *_ = publish_together(*files)
    layers = set(placement.layers) - set(left_out)
    report = PrecisionReport(
        path=out,
        precision=options.precision,
        bytes=sidecar.bytes,
        bytes_fp32=len(model.data),
        samples=len(given.samples),
        scales=len(ranges.values),
        parity=parity,
        method=ranges.method,
        sqnr_db_by_method=ranges.sqnr_db,
        verdict=verdict,
        left_out=left_out,
        in_fp16=in_half,
        in_fp32=in_fp32,
        dead=dead,
        transposed=tuple(
            name_of(node) for node in proto.graph.node if node.op_type == "ConvTranspose" and name_of(node) in layers
        ),
        warnings=given.warnings,
        cache=ranges.cache,
        drift=ranges.drift,
        table=table_path,
        runtime=options.runtime,
        tuning=tuning,
        equalized=equalized,
    )
    return report, made


def _require_metric(model: OpenModel) -> None:
    """Refuse `--max-drop` for what has no metric. Raises InputError."""
    if model.info is not None and model.info.is_generator:
        raise InputError(f"{model.path} is a generator: it has no metric to keep.\nLeave out `--max-drop`.")
    if model.info is None or not model.info.task:
        raise InputError(
            f"{model.path} does not say its task, and so has no metric.\n"
            "Give `--min-sqnr 30dB` in place of `--max-drop`, or say it: `msn-deploy export ... --task NAME`."
        )


def _within_drop(
    model: OpenModel,
    proto: ModelProto,
    ranges: dict[str, float],
    maxima: dict[str, float],
    layout: Layout,
    options: CalibrationOptions,
    tune: Tuner | None,
    progress: Progress,
) -> tuple[ModelProto, Verdict]:
    """Hold the budget of the task's metric on all images of the test split."""
    assert options.max_drop is not None
    name, shape = model.only_input
    prep = preprocess_for(model.info, shape, model=str(model.path))
    wanted = require_task(model.info, model=str(model.path))
    test = split_for(model.info, prep, options.data, "test", task=wanted, lazy=True)
    task = make_task(wanted, given_of(str(model.path), model.info, model.outputs, model, classes=test.classes))
    samples = ImageSamples(name, PreparedImages(test.images, prep, model.inputs[0].dtype))
    runs = list(runs_of(samples, model.inputs, samples.rows, most=CHUNK))
    return within_budget(
        proto,
        ranges,
        maxima,
        runs=runs,
        judge=lambda made: score_of(task, test.labels, prep, zip(map(rows_of, runs), made, strict=True)),
        max_drop=as_allowed(options.max_drop),
        layout=layout,
        tune=tune,
        progress=progress,
    )


def outputs_of(model: OpenModel, given: CalibrationInputs, *, most: int) -> dict[str, Array]:
    """Run a model on the first samples, at most `most`, and return all its outputs."""
    runner = OrtRunner(model)
    made = joined([runner.run(feeds) for feeds in given.runs(most, most=CHUNK)])
    runner.close()
    return made


def check_door(model: OpenModel, out: Path) -> None:
    """Fail early for what gives no file of another precision. Raises InputError.

    That is a name that is not an ONNX file's, or the input's own; a file of another precision already; a graph that is
    not plain ONNX.
    """
    from msn_deploy.model.checks import check_editable

    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if is_same(out, model.path):
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    check_editable(model.proto, source=str(model.path))
    if model.precision != "fp32":
        raise InputError(
            f"{model.path} is {model.precision.upper()} already.\nGive the FP32 file that it was made from."
        )
