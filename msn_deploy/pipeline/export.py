"""`export`: one source to one folded, simplified ONNX file, with a proof of every step between."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msn_deploy.core.artifacts import Parent, publish, sidecar_path, write_json
from msn_deploy.core.errors import FoldError, GateError, InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.data import to_input
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.opened import OpenModel, norms_in, with_info
from msn_deploy.model.parity import Rung, require_ladder, rung
from msn_deploy.pipeline.images import split_for
from msn_deploy.pipeline.source import (
    FEW,
    ExportOptions,
    Images,
    Source,
    in_memory,
    open_source,
    require_packages,
    run_in_ort,
)

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.graph.certificate import Certificate

_LOG = logging.getLogger(__name__)
_MOST_SAMPLES = 512
_RANDOM_NUMBERS = 1 << 14  # of which random inputs consist, at most FEW of them, and two where the batch is open
_CALIBRATION_SAMPLES = 128
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """What the sidecar of an exported file says of it."""

    operators: dict[str, int]
    """How many nodes of each operator it has."""
    ladder: tuple[Rung, ...]
    """Every stage compared with the source."""
    parity_on: str
    """What it was compared on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport(ExportFacts):
    """What an export wrote: the file, its operators with counts, and how far it is from where it came from."""

    path: Path
    bytes: int
    folded: bool
    certificate: Certificate | None
    """What became of every norm (None without folding), also in the file NAME.fold.json."""
    unsimplified_because: str
    """Why onnxsim's graph was not taken; empty if it was, or not asked for."""


def export_onnx(source: str, out: Path, options: ExportOptions | None = None, **changes: Any) -> ExportReport:
    """Export a network: load it, fold it, certify the folds, simplify, compare every stage with the source, write.

    Stages are compared on the test images of the data that the network was trained on, or on seeded random input where
    there are none. `out` is written only if all of them agree.

    Args:
        source: A checkpoint, FILE.py:FACTORY or another ONNX file.
        out: Where the ONNX file goes.
        options: None takes the defaults of ExportOptions.
        **changes: Fields of ExportOptions, in place of those of `options`.

    Raises:
        InputError: The source can't be exported (exit 2); FoldError for a norm that is left where none may be.
        GateError: A fold moves values in float64, or (ParityError) a stage differs from the source (exit 1).
        MissingDependency: A package is not there (exit 3).
    """
    options = replace(options or ExportOptions(), **changes)
    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if out.resolve() == Path(source).resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    require_packages()
    from msn_deploy.graph.certificate import certify  # after the packages were asked for, which these import
    from msn_deploy.graph.export import DEFAULT_OPSET
    from msn_deploy.graph.fold import fold_graph
    from msn_deploy.model.opset import to_opset

    made = open_source(source, options)
    images, images_are = _comparison_input(made)
    truth = made.predict(images)
    rungs = [rung(stage, truth, predict(images)) for stage, predict in made.stages.items()]
    certificate, why = None, ""
    if options.fold:
        folded = fold_graph(made.model.proto)
        certificate = certify(folded, made.layers)
        opset = options.opset or (None if made.graph_is_truth else DEFAULT_OPSET)
        graph = folded.model if opset is None else to_opset(folded.model, opset)
    else:
        graph = copy.deepcopy(made.model.proto)  # the file's metadata is set in place
    file = _file_of(graph, made.info, fold=options.fold)
    if options.fold or not made.graph_is_truth:
        rungs.append(rung("graph folded" if options.fold else "onnx", truth, run_in_ort(file, images)))
    if options.fold and options.simplify:
        file, why = _simplified(file, made.info, truth, images, rungs)
    if options.ladder:
        rungs += _lower_rungs(file.proto, made.info, truth, images)
    require_ladder(rungs, source=source)
    if certificate is not None:
        _require_exact(certificate, source, fully=options.require_fully_folded)
    operators = dict(sorted(Counter(node.op_type for node in file.proto.graph.node).items()))
    facts = ExportFacts(operators=operators, ladder=tuple(rungs), parity_on=images_are)
    _publish(file, facts, certificate, made, out, options)
    return ExportReport(
        path=out,
        bytes=len(file.data),
        operators=operators,
        folded=options.fold and not file.norms,
        ladder=facts.ladder,
        parity_on=images_are,
        certificate=certificate,
        unsimplified_because=why,
    )


def _publish(
    file: OpenModel,
    facts: ExportFacts,
    certificate: Certificate | None,
    made: Source,
    out: Path,
    options: ExportOptions,
) -> None:
    """Write the file and its certificate, each with a sidecar."""
    chosen = {name: getattr(options, name) for name in ("opset", "dynamic_batch", "batch", "fold", "simplify")}
    written = publish(
        out,
        lambda path: path.write_bytes(file.data),
        kind="onnx",
        parents=made.parents,
        versions=_VERSIONS,
        config=chosen
        | {"input_shape": list(made.input_shape), "recipe": made.info.recipe}
        | {"opsets": {each.domain or "ai.onnx": each.version for each in file.proto.opset_import}},
        facts=asdict(facts),
    )
    place = certificate_path(out)
    if certificate is None:  # an older one would speak of another model
        for path in (sidecar_path(place), place):
            path.unlink(missing_ok=True)
        return
    value = {"schema": "msn-deploy-fold/1", **asdict(certificate)}
    publish(
        place,
        lambda path: write_json(path, value),
        kind="fold-certificate",
        parents=(Parent(role="onnx", file=written.file, sha256=written.sha256),),
        versions=_VERSIONS,
    )


def certificate_path(model: Path) -> Path:
    """Return where the fold certificate of an exported model lies."""
    return model.with_suffix(".fold.json")


def _file_of(graph: ModelProto, info: ModelInfo, *, fold: bool) -> OpenModel:
    """Return the file, with `folded` told by the graph itself: the simplifier fuses norms of other tools' files too."""
    info = replace(info, folded=fold and not norms_in(graph))
    return in_memory(graph, with_info(graph, info))


def _simplified(
    file: OpenModel, info: ModelInfo, truth: Images, images: Images, rungs: list[Rung]
) -> tuple[OpenModel, str]:
    """Return onnxsim's graph, or the given one and the reason, and append the rung of what is returned."""
    from msn_deploy.graph.simplify import simplify

    result = simplify(file.proto)
    if result.kept_because is not None:
        return file, result.kept_because
    if result.unchanged:
        rungs.append(replace(rungs[-1], stage="simplified", limit="the same graph"))
        return file, ""
    other = _file_of(result.model, info, fold=True)
    simplified = rung("simplified", truth, run_in_ort(other, images))
    if not simplified.passed and rungs[-1].passed:
        why = f"onnxsim changed the outputs by {simplified.worst:.3g}"
        _LOG.warning("kept the unsimplified graph: %s", why)
        return file, why
    rungs.append(simplified)
    return other, ""


def _lower_rungs(graph: ModelProto, info: ModelInfo, truth: Images, images: Images) -> list[Rung]:
    """Return the rungs of FP16 and, where there are images to calibrate on, of INT8."""
    from msn_deploy.quant.calibrate import calibrate_ranges
    from msn_deploy.quant.precision import to_fp16
    from msn_deploy.quant.quantize import quantize

    rungs = [rung("fp16", truth, run_in_ort(in_memory(to_fp16(graph)), images))]
    if info.preprocess is None or not info.data or info.is_generator:
        _LOG.warning("no rung for INT8: there are no images of this network's to calibrate on")
        return rungs
    split = split_for(info, info.preprocess, None, "train").first(_CALIBRATION_SAMPLES)
    images_seen = to_input(split.images, info.preprocess)
    ranges = calibrate_ranges(graph, images_seen, load=run_on_one_thread, preprocess=info.preprocess)
    return [*rungs, rung("int8", truth, run_in_ort(in_memory(quantize(graph, ranges)), images))]


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


def _comparison_input(made: Source) -> tuple[Images, str]:
    """Return images (N, C, H, W) to compare on, in whole batches, and what they are."""
    info, batch = made.info, made.input_shape[0]
    if info.preprocess is not None and info.data:
        try:
            split = split_for(info, info.preprocess, None, "test").first(_MOST_SAMPLES)
        except InputError as cause:
            _LOG.warning("compared on random input: %s", str(cause).splitlines()[0])
        else:
            whole = len(split.labels) // batch * batch
            if whole:
                return to_input(split.images[:whole], info.preprocess), f"{whole} test images of {info.data}"
    least = 2 if made.model.only_input[1][0] is None else 1
    wanted = min(FEW, max(least, _RANDOM_NUMBERS // int(np.prod(made.input_shape[1:]))))
    count = -(-wanted // batch) * batch
    images = np.random.default_rng(0).standard_normal((count, *made.input_shape[1:])).astype(np.float32)
    return images, f"{count} random inputs"
