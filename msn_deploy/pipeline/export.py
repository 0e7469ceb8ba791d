"""`export`: one source to one folded, simplified ONNX file, with a proof of every step between."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent, publish, sidecar_path, write_json
from msn_deploy.core.errors import FoldError, GateError, InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.data import to_input
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import inputs_of, made_model, norms_in, only_input, with_info
from msn_deploy.pipeline.images import split_for
from msn_deploy.pipeline.source import Source, open_source, require_packages

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.graph import Certificate, Rung
    from msn_deploy.graph.simplify import Simplified

_LOG = logging.getLogger(__name__)
_MOST_SAMPLES = 512
_RANDOM_NUMBERS = 1 << 14  # of which random inputs consist, at most _FEW of them, and two where the batch is open
_FEW = 32  # images, for which a pool of threads, which wait busily for work, costs more than it saves
_CALIBRATION_SAMPLES = 128
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote: the file, its operators with counts, and how far it is from where it came from.

    ladder: every stage held against the source. certificate: what became of every norm (None without folding), also in
    the file NAME.fold.json. unsimplified_because: why onnxsim's graph was not taken; empty if it was, or not asked for.
    """

    path: Path
    bytes: int
    operators: dict[str, int]
    folded: bool
    ladder: tuple[Rung, ...]
    parity_on: str
    certificate: Certificate | None
    unsimplified_because: str


def export_onnx(
    source: str,
    out: Path,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    dynamic_batch: bool = False,
    batch: int = 1,
    opset: int | None = None,
    fold: bool = True,
    simplify: bool = True,
    require_fully_folded: bool = False,
    ladder: bool = False,
) -> ExportReport:
    """Export a checkpoint, FILE.py:FACTORY or another ONNX file; write `out` only if it agrees with its source.

    input_shape: (N, C, H, W), for a network of the user's own. fold=False keeps every norm a node of its own (and
    leaves the simplifier out, which would fuse it). ladder: go on to FP16 and INT8, which are not written. Agreement is
    measured on the test images of the data the network was trained on, on seeded random input where they are not to be
    had. Raises InputError (exit 2; FoldError for a norm that is left where none may be), ParityError (exit 1),
    MissingDependency (exit 3).
    """
    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if out.resolve() == Path(source).resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    require_packages()
    from msn_deploy.graph import certify, fold_graph, simplifying
    from msn_deploy.graph.evaluate import one_thread_each
    from msn_deploy.graph.export import DEFAULT_OPSET
    from msn_deploy.model.opset import to_opset
    from msn_deploy.model.parity import require_ladder, rung

    with simplifying() if fold and simplify else nullcontext() as start:
        made = open_source(
            source,
            weights=weights,
            input_shape=input_shape,
            dynamic=dynamic_batch,
            batch=batch,
            opset=opset or DEFAULT_OPSET,
            fold=fold,
        )
        images, images_are = _comparison_input(made)
        with ThreadPoolExecutor() as beside, one_thread_each() if len(images) <= _FEW else nullcontext():
            outputs = {"source": beside.submit(made.predict, images)}
            if made.with_plain_layers is not None:
                outputs["layers folded"] = beside.submit(made.with_plain_layers, images)
            if fold and not made.graph_is_truth:
                outputs["onnx"] = beside.submit(
                    lambda: _outputs(made.graph.SerializeToString(), images, fuse_norms=False)
                )
            graph, certificate, why = made.graph, None, ""
            if fold:
                folded = fold_graph(made.graph)
                target = opset or (None if source.endswith(".onnx") else DEFAULT_OPSET)
                graph = folded.model if target is None else to_opset(folded.model, target)
            finish = None if start is None else start(graph)
            file = _file_of(graph, made.info, fold=fold)
            if fold or not made.graph_is_truth:
                outputs["graph folded" if fold else "onnx"] = beside.submit(_outputs, file.content, images)
            if fold:
                try:
                    certificate = certify(folded, made.layers)
                except InputError:
                    outputs["source"].result()  # a network that does not run is the better reason
                    raise
            truth = outputs.pop("source").result()
            rungs = [rung(stage, truth, each.result()) for stage, each in outputs.items()]
            if finish is not None:
                file, why = _taken(finish(), file, truth, images, rungs)
    if ladder:
        rungs += _lower_rungs(file.graph, made, truth, images)
    require_ladder(rungs, source=source)
    if certificate is not None:
        _require_exact(certificate, source, fully=require_fully_folded)
    report = ExportReport(
        path=out,
        bytes=len(file.content),
        operators=dict(sorted(Counter(node.op_type for node in file.graph.graph.node).items())),
        folded=file.info.folded,
        ladder=tuple(rungs),
        parity_on=images_are,
        certificate=certificate,
        unsimplified_because=why,
    )
    config = {"opset": opset, "dynamic_batch": dynamic_batch, "batch": batch, "fold": fold, "simplify": simplify}
    written = publish(
        out,
        lambda path: path.write_bytes(file.content),
        kind="onnx",
        parents=made.parents,
        versions=_VERSIONS,
        config=config
        | {"input_shape": list(made.input_shape), "recipe": file.info.recipe}
        | {"opsets": {each.domain or "ai.onnx": each.version for each in file.graph.opset_import}},
        facts={"operators": report.operators, "ladder": [asdict(each) for each in rungs], "parity_on": images_are},
    )
    _publish_certificate(certificate, out, Parent(role="onnx", file=written.file, sha256=written.sha256))
    return report


def certificate_path(model: Path) -> Path:
    """Return where the fold certificate of an exported model lies."""
    return model.with_suffix(".fold.json")


def _publish_certificate(certificate: Certificate | None, out: Path, model: Parent) -> None:
    if certificate is None:  # an older one would speak of another model
        for path in (sidecar_path(certificate_path(out)), certificate_path(out)):
            path.unlink(missing_ok=True)
        return
    value = {"schema": "msn-deploy-fold/1", **asdict(certificate)}
    publish(
        certificate_path(out),
        lambda path: write_json(path, value),
        kind="fold-certificate",
        parents=(model,),
        versions=_VERSIONS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What would be written: a graph, what it says of itself, and the very bytes that the parity is measured on."""

    graph: ModelProto
    info: ModelInfo
    content: bytes


def _file_of(graph: ModelProto, info: ModelInfo, *, fold: bool) -> _File:
    """Return the file, with `folded` told by the graph itself: the simplifier fuses norms of other tools' files too."""
    info = replace(info, folded=fold and not norms_in(graph))
    return _File(graph=graph, info=info, content=with_info(graph, info))


def _taken(
    result: Simplified,
    file: _File,
    truth: NDArray[np.float32],
    images: NDArray[np.float32],
    rungs: list[Rung],
) -> tuple[_File, str]:
    """Return onnxsim's graph, or the given one and the reason, and append the rung of what is returned."""
    from msn_deploy.model.parity import rung

    if result.kept_because is not None:
        return file, result.kept_because
    if result.unchanged:
        rungs.append(replace(rungs[-1], stage="simplified", limit="the same graph"))
        return file, ""
    other = _file_of(result.model, file.info, fold=True)
    simplified = rung("simplified", truth, _outputs(other.content, images))
    if not simplified.passed and rungs[-1].passed:
        why = f"onnxsim changed the outputs by {simplified.worst:.3g}"
        _LOG.warning("kept the unsimplified graph: %s", why)
        return file, why
    rungs.append(simplified)
    return other, ""


def _lower_rungs(
    graph: ModelProto, made: Source, truth: NDArray[np.float32], images: NDArray[np.float32]
) -> list[Rung]:
    """Return the rungs of FP16 and, where there are images to calibrate on, of INT8."""
    from msn_deploy.model.parity import rung
    from msn_deploy.quant import calibrate_ranges, quantize, to_fp16

    rungs = [rung("fp16", truth, _outputs(to_fp16(graph).SerializeToString(), images))]
    if made.info.preprocess is None or not made.info.data or made.info.is_generator:
        _LOG.warning("no rung for INT8: there are no images of this network's to calibrate on")
        return rungs
    split = split_for(made.info, made.info.preprocess, None, "train").first(_CALIBRATION_SAMPLES)
    ranges = calibrate_ranges(graph, to_input(split.images, made.info.preprocess), preprocess=made.info.preprocess)
    return [*rungs, rung("int8", truth, _outputs(quantize(graph, ranges).SerializeToString(), images))]


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


def _outputs(content: bytes, images: NDArray[np.float32], *, fuse_norms: bool = True) -> NDArray[np.float32]:
    """Run a file in ONNX Runtime, whose own fusions are those that users get; the unfolded graph is nobody's file."""
    import onnx

    model = made_model(Path("the exported graph"), onnx.load_model_from_string(content), content)
    runner = OrtRunner(model, fuse_norms=fuse_norms, threads=1 if len(images) <= _FEW else None)
    outputs = run_images(runner, images)
    runner.close()
    return outputs


def _comparison_input(made: Source) -> tuple[NDArray[np.float32], str]:
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
    least = 2 if only_input(inputs_of(made.graph), source="the graph")[1][0] is None else 1
    wanted = min(_FEW, max(least, _RANDOM_NUMBERS // int(np.prod(made.input_shape[1:]))))
    count = -(-wanted // batch) * batch
    images = np.random.default_rng(0).standard_normal((count, *made.input_shape[1:])).astype(np.float32)
    return images, f"{count} random inputs"
