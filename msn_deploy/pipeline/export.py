"""`export`: one source to one folded, simplified ONNX file, with a proof of every step between."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from msn_deploy.core.artifacts import Artifact, Parent, json_bytes, publish_together
from msn_deploy.core.errors import FoldError, GateError, InputError
from msn_deploy.core.model_info import DEFAULT_METHOD, ModelInfo, Preprocess, TaskName, TensorSpec
from msn_deploy.core.opening import is_same, open_input
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.results import Result
from msn_deploy.data import to_input
from msn_deploy.data.feeds import is_feeds, open_feeds
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.feeds import BATCH, Feeds, random_feeds, rows_of
from msn_deploy.model.opened import OpenModel, norms_in, with_info
from msn_deploy.model.parity import Rung, allowing, classifies, require_finite, require_ladder, rung
from msn_deploy.pipeline.bytes_input import with_bytes
from msn_deploy.pipeline.images import calibration_inputs, has_inputs, split_for
from msn_deploy.pipeline.nms import SameBoxes, nms_in_graph
from msn_deploy.pipeline.source import (
    FEW,
    ExportOptions,
    Source,
    in_memory,
    in_ort,
    open_source,
    require_packages,
)
from msn_deploy.tasks import make_task
from msn_deploy.tasks.task import Given, ending_of

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from msn_deploy.graph.certificate import Certificate
    from msn_deploy.graph.simplify import Simplifier

_LOG = logging.getLogger(__name__)
_MOST_SAMPLES = 512
_MOST_ROWS = 64  # of one run, where the batch is open
_PROVED_ROWS = 2  # of bytes, where the batch is open
_RANDOM_NUMBERS = 1 << 14  # of which random inputs consist, at most FEW of them, and two where the batch is open
_CALIBRATION_SAMPLES = 128
_STEPS = 6  # that are told of
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExportFacts(Result):
    """What the sidecar of an exported file says of it."""

    operators: dict[str, int]
    """How many nodes of each operator it has."""
    ladder: tuple[Rung, ...]
    """Every stage compared with the source."""
    parity_on: str
    """What it was compared on."""
    nms: SameBoxes | None
    """With NMS in the graph: how many boxes are those of NMS in numpy."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExportReport(ExportFacts):
    """What an export wrote: the file, its operators with counts, and how far it is from where it came from."""

    path: Path
    bytes: int
    folded: bool
    certificate: Certificate | None
    """What became of every norm (None without folding), also in the file NAME.fold.json."""
    preprocess: Preprocess | None
    """How images are prepared for it, if that is known."""
    in_graph: Preprocess | None
    """What the graph does itself to bytes; None where it takes prepared numbers."""
    task: str
    classes: tuple[str, ...]
    reading: dict[str, Any]
    """See ModelInfo."""
    unsimplified_because: str
    """Why onnxsim's graph was not taken; empty if it was, or not asked for."""


def export_onnx(
    source: str | os.PathLike[str] | nn.Module,
    out: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    *,
    progress: Progress = silent,
    **changes: Any,
) -> ExportReport:
    """Export a network: load it, fold it, certify the folds, simplify, compare every stage with the source, write.

    Stages are compared on the test images of the data that the network was trained on, or on seeded random input where
    there are none. `out` is written only if all of them agree.

    Args:
        source: A checkpoint, FILE.py:FACTORY, another ONNX file, or a network in evaluation mode.
        out: Where the ONNX file goes; None: SOURCE.onnx beside the source, or OTHER.folded.onnx.
        options: None takes the defaults of ExportOptions.
        progress: Called at each step.
        **changes: Fields of ExportOptions, in place of those of `options`.

    Raises:
        InputError: The source can't be exported (exit 2); FoldError for a norm that is left where none may be.
        GateError: A fold moves values in float64, or (ParityError) a stage differs from the source (exit 1).
        MissingDependency: A package is not there (exit 3).

    Examples:
        >>> import msn_deploy
        >>> report = msn_deploy.export("runs/cnn3_msn.safetensors")
        >>> report.path.name, report.folded
        ('cnn3_msn.onnx', True)
    """
    options = replace(options or ExportOptions(), **changes)
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    out = beside(source) if out is None else Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if isinstance(source, str) and is_same(out, source):
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    if isinstance(source, str):
        with open_input(_file_of_source(source), "any"):
            progress(0, _STEPS, "loading torch")
    require_packages()
    from msn_deploy.graph.simplify import simplifier  # after the packages were asked for, which it imports

    with simplifier() if options.fold and options.simplify else contextlib.nullcontext() as onnxsim:
        return _export(source, out, options, onnxsim, progress)


export = export_onnx


def beside(source: str | nn.Module) -> Path:
    """Return where the file goes if nobody says: never over the source. Raises InputError for a network in memory."""
    if not isinstance(source, str):
        raise InputError("a network in memory has no file to write next to.\nGive `out`.")
    path = _file_of_source(source)
    return path.with_suffix(".folded.onnx" if path.suffix == ".onnx" else ".onnx")


def _file_of_source(source: str) -> Path:
    return Path(source.rpartition(":")[0] if ".py:" in source else source)


def _export(
    source: str | nn.Module, out: Path, options: ExportOptions, onnxsim: Simplifier | None, progress: Progress
) -> ExportReport:
    from msn_deploy.graph.certificate import certify
    from msn_deploy.graph.clean import cleaned
    from msn_deploy.graph.fold import fold_graph
    from msn_deploy.pipeline.opset import at_opset

    name = source if isinstance(source, str) else type(source).__name__
    progress(1, _STEPS, f"opening {name}")
    made = open_source(source, options)
    if options.uint8_input:
        made = with_bytes(made, model=name, layout=options.uint8_layout, colour=options.uint8_colour)
    feeds, feeds_are = _comparison_feeds(made, options.data)
    progress(2, _STEPS, f"running it on {feeds_are}")
    truth = made.predict(feeds)
    _require_task(made, truth, sum(map(rows_of, feeds)), model=name)
    compared = partial(rung, truth=truth, classifies=classifies(made.info))
    rungs = [compared(stage, outputs=predict(feeds)) for stage, predict in made.stages.items()]
    certificate, why = None, ""
    progress(3, _STEPS, "folding")
    folded = fold_graph(made.graph) if options.fold and not made.as_trained else None
    if folded is not None:
        graph = folded.model
    elif made.graph_is_truth:
        graph = copy.deepcopy(made.graph)  # the file's metadata is set in place
    else:
        graph = cleaned(made.graph)
    graph = at_opset(graph, opset=options.opset, target=options.target, ours=not made.graph_is_truth)
    file = _file_of(graph, made.info, fold=options.fold)
    if onnxsim is not None and made.as_trained:
        onnxsim = None
    if onnxsim is not None:
        onnxsim.start(file.proto, file.data)
    if folded is not None:
        progress(4, _STEPS, "proving the folds in float64")
        try:
            certificate = certify(folded, made.inputs, made.layers, data=_proved_on(made, feeds, options))
        except InputError:
            _require_repeatable(made, feeds, truth, source=name)
            raise
        del folded  # its doubles are as large as the network twice
    progress(5, _STEPS, "comparing every stage with the source")
    if options.fold or not made.graph_is_truth or made.in_graph is not None:
        stage = "onnx" if certificate is None else "graph folded"
        rungs.append(compared(stage, outputs=in_ort(file)(feeds)))
    if onnxsim is not None:
        file, why = _simplified(onnxsim, file, made.info, compared, feeds, rungs)
    if options.ladder:
        rungs += _lower_rungs(file, made.info, compared, feeds)
    if not all(each.passed for each in rungs):
        _require_repeatable(made, feeds, truth, source=name)
        rungs = _beside_rounding(rungs, made, feeds, truth)
    require_ladder(rungs, source=name)
    if certificate is not None:
        _require_exact(certificate, name, fully=options.require_fully_folded)
    info, boxes = made.info, None
    if options.nms:
        file, info, boxes = nms_in_graph(file, file.info or info, feeds, source=name)
    operators = dict(sorted(Counter(node.op_type for node in file.proto.graph.node).items()))
    facts = ExportFacts(operators=operators, ladder=tuple(rungs), parity_on=feeds_are, nms=boxes)
    _publish(file, facts, certificate, made, out, options)
    return ExportReport(
        path=out,
        bytes=len(file.data),
        operators=operators,
        folded=options.fold and not file.norms,
        ladder=facts.ladder,
        parity_on=feeds_are,
        nms=boxes,
        certificate=certificate,
        preprocess=info.preprocess,
        in_graph=made.in_graph,
        task=info.task,
        classes=info.classes,
        reading=info.reading,
        unsimplified_because=why,
    )


def _proved_on(made: Source, feeds: Sequence[Feeds], options: ExportOptions) -> Feeds | None:
    """Return what the folds are proved on in place of the certificate's own numbers: given feeds, or real bytes."""
    if is_feeds(options.data):
        return feeds[0]
    if made.in_graph is None:
        return None
    (given,) = made.inputs
    rows = _PROVED_ROWS if given.open[:1] == (BATCH,) else None
    return {name: array[:rows] for name, array in feeds[0].items()}


def _require_task(made: Source, outputs: Feeds, rows: int, *, model: str) -> None:
    """Raise InputError if outputs of `rows` samples are not of the task that the file will say."""
    info = made.info
    if not info.task:
        return
    one = {name: np.zeros_like(array[:1] if array.shape[:1] == (rows,) else array) for name, array in outputs.items()}
    given = Given(
        model=model,
        classes=info.classes,
        named=bool(info.classes),
        reading=info.reading,
        outputs=tuple(TensorSpec(name, array.dtype.name, (None, *array.shape[1:])) for name, array in one.items()),
        endings=tuple(ending_of(made.graph, at) for at in range(len(one))),
        frame=(info.preprocess.height_px, info.preprocess.width_px) if info.preprocess is not None else None,
    )
    make_task(cast(TaskName, info.task), given).answers(one)


def _publish(
    file: OpenModel,
    facts: ExportFacts,
    certificate: Certificate | None,
    made: Source,
    out: Path,
    options: ExportOptions,
) -> None:
    """Write the file and its certificate, each with a sidecar."""
    chosen = {
        name: getattr(options, name)
        for name in ("opset", "target", "dynamic_batch", "batch", "fold", "simplify", "nms")
    }
    place = certificate_path(out)
    model = Artifact(
        path=out,
        content=file.data,
        kind="onnx",
        parents=made.parents,
        versions=_VERSIONS,
        config=chosen
        | {"input_shape": list(made.inputs[0].shape), "recipe": made.info.recipe}
        | {"inputs": [asdict(each) for each in made.inputs]}
        | {"in_graph": made.in_graph and made.in_graph.to_dict()}
        | {"opsets": {each.domain or "ai.onnx": each.version for each in file.proto.opset_import}},
        facts=asdict(facts),
    )
    if certificate is None:
        publish_together(model, without=[place])
        return
    proof = Artifact(
        path=place,
        content=json_bytes({"schema": "msn-deploy-fold/1", **asdict(certificate)}),
        kind="fold-certificate",
        parents=[Parent(role="onnx", file=out.name, sha256=file.sha256)],
        versions=_VERSIONS,
    )
    publish_together(model, proof)


def certificate_path(model: Path) -> Path:
    """Return where the fold certificate of an exported model lies."""
    return model.with_suffix(".fold.json")


def _file_of(graph: ModelProto, info: ModelInfo, *, fold: bool) -> OpenModel:
    """Return the file, with `folded` told by the graph itself: the simplifier fuses norms of other tools' files too."""
    info = replace(info, folded=fold and not norms_in(graph))
    return in_memory(graph, with_info(graph, info))


def _simplified(
    onnxsim: Simplifier,
    file: OpenModel,
    info: ModelInfo,
    compared: Callable[..., Rung],
    feeds: Sequence[Feeds],
    rungs: list[Rung],
) -> tuple[OpenModel, str]:
    """Return onnxsim's graph, or the given one and the reason, and append the rung of what is returned."""
    result = onnxsim.result()
    if result.kept_because is not None:
        return file, result.kept_because
    if result.unchanged:
        rungs.append(replace(rungs[-1], stage="simplified", limit="the same graph"))
        return file, ""
    other = _file_of(result.model, info, fold=True)
    simplified = compared("simplified", outputs=in_ort(other)(feeds))
    if not simplified.passed and rungs[-1].passed:
        why = f"onnxsim changed the outputs by {simplified.worst:.3g}"
        _LOG.warning("kept the unsimplified graph: %s", why)
        return file, why
    rungs.append(simplified)
    return other, ""


def _lower_rungs(file: OpenModel, info: ModelInfo, compared: Callable[..., Rung], feeds: Sequence[Feeds]) -> list[Rung]:
    """Return the rungs of FP16 and, where there are images to calibrate on, of INT8."""
    from msn_deploy.quant.calibrate import chosen, quantised_tensors
    from msn_deploy.quant.equalize import equalize
    from msn_deploy.quant.fp32_nodes import needs_fp32
    from msn_deploy.quant.histograms import collect
    from msn_deploy.quant.precision import to_fp16
    from msn_deploy.quant.quantize import quantize

    graph = file.proto
    rungs = [compared("fp16", outputs=in_ort(in_memory(to_fp16(graph, keep_fp32=needs_fp32(graph, {}))))(feeds))]
    if info.preprocess is None or info.is_generator or not has_inputs(info, None):
        _LOG.warning("no rung for INT8: there are no images of this network's to calibrate on")
        return rungs
    given = calibration_inputs(file, None, samples=_CALIBRATION_SAMPLES)
    graph, _ = equalize(graph, given.samples, load=run_on_one_thread)
    seen = collect(graph, given.samples, quantised_tensors(graph), load=run_on_one_thread)
    ranges = chosen(graph, given.samples, seen, load=run_on_one_thread, method=DEFAULT_METHOD).ranges
    return [*rungs, compared("int8", outputs=in_ort(in_memory(quantize(graph, ranges)))(feeds))]


def _beside_rounding(rungs: list[Rung], made: Source, feeds: Sequence[Feeds], truth: Feeds) -> list[Rung]:
    """Return the rungs with a limit for each output that is not below what the source itself loses in float32."""
    if made.exact is None:
        return rungs
    try:
        exact = made.exact(feeds)
    except InputError as cause:  # a network that makes float32 tensors of its own
        _LOG.warning("how much the source itself loses in float32 is not known: %s", str(cause).splitlines()[0])
        return rungs
    lost = {each.name: each.worst for each in rung("source in float32", exact, truth).outputs}
    return [allowing(each, lost) for each in rungs]


def _require_repeatable(made: Source, feeds: Sequence[Feeds], truth: Feeds, *, source: str) -> None:
    """Raise GateError for a network that answers the same input in two ways, or not in numbers."""
    require_finite(truth, source=source)
    again = rung("again", truth, made.predict(feeds))
    if not again.passed:
        raise GateError(
            f"{source} is random in evaluation: two runs on the same input differ by {again.worst:.3g}.\n"
            "Nothing was written. What is drawn has to follow `self.training`, as `nn.Dropout` does."
        )


def _require_exact(certificate: Certificate, source: str, *, fully: bool) -> None:
    worst = certificate.worst
    if not certificate.is_exact:
        raise GateError(
            f"{source}: the fold of {worst.norm} moves values of {worst.of:.3g} by {worst.difference:.3g} in float64.\n"
            "That is an error of msn-deploy; please report it. Nothing was written. `--no-fold` exports without."
        )
    if fully and certificate.kept:
        first = certificate.kept[0]
        raise FoldError(
            f"{len(certificate.kept)} of {len(certificate.norms)} norms can't be folded, the first: {first.norm} "
            f"({first.code}: {first.why}).\nNothing was written. Without `--require-fully-folded` they stay operators.",
            code=first.code,
        )


def _comparison_feeds(made: Source, data: str | None) -> tuple[Sequence[Feeds], str]:
    """Return what the stages are compared on, one run behind the other, and what it is."""
    info, inputs = made.info, made.inputs
    if data is not None and is_feeds(data):
        given = open_feeds(data, [each.spec for each in inputs]).first(_MOST_SAMPLES)
        return list(given.runs(most=_MOST_ROWS)), f"{len(given)} samples of {data}"
    if data is not None and info.preprocess is None:
        raise InputError(
            f"it is not known how images are prepared for this network, so that {data} can't be fed to it.\n"
            "Say it (`--preprocess imagenet`, ...), or give `--data` an .npz or .npy file of prepared inputs."
        )
    first = inputs[0]
    is_open, batch = first.open[:1] == (BATCH,), (first.shape or (1,))[0]
    if info.preprocess is not None and (data or info.data) and len(inputs) == 1:
        try:
            split = split_for(info, info.preprocess, data, "test").first(_MOST_SAMPLES)
        except InputError as cause:
            if data is not None:
                raise
            _LOG.warning("compared on random input: %s", str(cause).splitlines()[0])
        else:
            step = _MOST_ROWS if is_open else batch
            whole = len(split.labels) if is_open else len(split.labels) // batch * batch
            if whole:
                images = to_input(split.images[:whole], info.preprocess, first.dtype)
                runs = [{first.name: images[at : at + step]} for at in range(0, whole, step)]
                return runs, f"{whole} test images of {data or info.data}"
    row = sum(int(np.prod(each.shape[1:])) for each in inputs)
    wanted = min(FEW, max(2 if is_open else 1, _RANDOM_NUMBERS // max(1, row)))
    sizes = [{BATCH: wanted}] if is_open else [{}] * -(-wanted // batch)
    others = {name: 2 * size for each in inputs for size, name in zip(each.shape, each.open, strict=True) if name}
    others.pop(BATCH, None)
    sizes += [others] * bool(others)  # what stays open is tried with a second size
    runs = [random_feeds([each.sized(of) for each in inputs], seed=at) for at, of in enumerate(sizes)]
    return runs, f"{sum(map(rows_of, runs))} random inputs"
