"""`export`: a checkpoint, a network of the user's own, or another ONNX file to one checked ONNX file."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent, parent_of, publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import recipe_from_dict
from msn_deploy.data import to_input
from msn_deploy.engine import OrtRunner
from msn_deploy.pipeline.images import split_for

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from msn_deploy.graph import Parity

_LOG = logging.getLogger(__name__)
_ATOL = 1e-4  # of logits, times the largest logit where that is above 1
_MOST_SAMPLES = 1024
_RANDOM_SAMPLES = 32
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")
_SHAPE_HINT = "A network of your own needs its input size: `--input-shape 1,3,32,32`."

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote: the file, its operators with counts, and how far it is from where it came from."""

    path: Path
    bytes: int
    operators: dict[str, int]
    folded: bool
    simplified: bool
    parity: Parity
    parity_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is exported: the graph before simplification, the truth it is held against, and what it came from."""

    graph: ModelProto
    info: ModelInfo
    predict: Predict
    input_shape: tuple[int, ...]
    parents: tuple[Parent, ...]


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
) -> ExportReport:
    """Export a checkpoint, FILE.py:FACTORY or another ONNX file; write `out` only if it agrees with its source.

    input_shape: (N, C, H, W), for a network of the user's own. fold=False keeps every norm a node of its own (and
    leaves the simplifier out, which would fuse it). Agreement is measured on the test images of the data the network
    was trained on, on seeded random input where they are not to be had. Raises InputError (exit 2), ParityError
    (exit 1), MissingDependency (exit 3).
    """
    if out.suffix != ".onnx":
        raise InputError(f"{out} has to end in .onnx.")
    if out.resolve() == Path(source).resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    from msn_deploy.graph import simplify as run_onnxsim
    from msn_deploy.graph.parity import require_parity

    made = _open_source(
        source, weights=weights, input_shape=input_shape, dynamic=dynamic_batch, batch=batch, opset=opset, fold=fold
    )
    images, images_are = _comparison_input(made)
    truth = made.predict(images)
    atol = _ATOL * max(1.0, float(np.abs(truth).max()))
    simplified = run_onnxsim(made.graph).model if simplify and fold else made.graph
    info = _described(made.info, simplified, fold=fold and (simplify or made.info.folded))
    content, parity = _held_against(truth, simplified, info, images)
    if parity.worst > atol and simplified is not made.graph:
        _LOG.warning("kept the unsimplified graph: onnxsim changed the logits by %.3g", parity.worst)
        simplified = made.graph
        content, parity = _held_against(truth, simplified, made.info, images)
        info = made.info
    require_parity(parity, before=source, after=str(out), atol=atol)
    report = ExportReport(
        path=out,
        bytes=len(content),
        operators=dict(sorted(Counter(node.op_type for node in simplified.graph.node).items())),
        folded=info.folded,
        simplified=simplified is not made.graph,
        parity=parity,
        parity_on=images_are,
    )
    publish(
        out,
        lambda path: path.write_bytes(content),
        kind="onnx",
        parents=made.parents,
        versions=_VERSIONS,
        config={"opset": opset, "dynamic_batch": dynamic_batch, "batch": batch, "fold": fold, "simplify": simplify}
        | {"input_shape": list(made.input_shape), "recipe": info.recipe, "atol": _ATOL}
        | {"opsets": {each.domain or "ai.onnx": each.version for each in simplified.opset_import}},
        facts={"operators": report.operators, "parity": asdict(parity), "parity_on": images_are},
    )
    return report


def _described(info: ModelInfo, graph: ModelProto, *, fold: bool) -> ModelInfo:
    """Return the info with `folded` told by the graph itself: the simplifier fuses norms of other tools' files too."""
    return replace(info, folded=fold and not any(node.op_type in _NORMS for node in graph.graph.node))


def _held_against(
    truth: NDArray[np.float32], graph: ModelProto, info: ModelInfo, images: NDArray[np.float32]
) -> tuple[bytes, Parity]:
    """Serialise a graph and compare what ONNX Runtime makes of those very bytes with the truth."""
    from msn_deploy.graph import compare_logits
    from msn_deploy.graph.files import with_info

    content = with_info(graph, info)
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        probe = Path(folder) / "probe.onnx"
        probe.write_bytes(content)
        runner = OrtRunner(probe)
        logits = runner.run(images)
        runner.close()
    return content, compare_logits(truth, logits)


def _open_source(
    source: str,
    *,
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    dynamic: bool,
    batch: int,
    opset: int | None,
    fold: bool,
) -> _Source:
    require("onnx", step="export")
    if source.endswith(".onnx"):
        return _open_onnx(Path(source))
    require("torch", step="export")
    require("onnxscript", step="export")
    from msn_deploy.graph import to_onnx
    from msn_deploy.graph.export import DEFAULT_OPSET
    from msn_deploy.msn import fold as fold_model
    from msn_deploy.nets.predict import logits_of

    if ".py:" in source:
        model, info, parents = _own_network(source, weights)
        if input_shape is None:
            raise InputError(f"the size of the input of {source} is not known.\n{_SHAPE_HINT}")
        shape = input_shape
    else:
        from msn_deploy.training import load_checkpoint

        path = Path(source)
        model, info = load_checkpoint(path)
        parents = (parent_of(path, role="checkpoint"),)
        shape = (batch, *recipe_from_dict(info.recipe, source=source).network_input)
    exported = fold_model(model, strict=False) if fold else model
    graph = to_onnx(exported, input_shape=shape, dynamic_batch=dynamic, opset=opset or DEFAULT_OPSET, optimize=fold)
    return _Source(
        graph=graph,
        info=_described(replace(info, precision="fp32"), graph, fold=fold),
        predict=lambda images: logits_of(model, images, chunk=64 if dynamic else shape[0]),
        input_shape=shape,
        parents=parents,
    )


def _own_network(source: str, weights: Path | None) -> tuple[nn.Module, ModelInfo, tuple[Parent, ...]]:
    from msn_deploy.nets.factory import net_from_file
    from msn_deploy.training import load_weights

    model = net_from_file(source)
    parents = [parent_of(Path(source.rpartition(":")[0]), role="source")]
    if weights is None:
        _LOG.warning(
            "%s is exported with the weights that it creates itself; `--weights FILE` loads trained ones", source
        )
    else:
        load_weights(model, weights)
        parents.append(parent_of(weights, role="weights"))
    return model, ModelInfo(net="custom", norm="custom"), tuple(parents)


def _open_onnx(path: Path) -> _Source:
    from msn_deploy.graph.files import info_of, input_of, read_foreign

    merged = read_foreign(path)
    graph = merged.model
    _, shape = input_of(graph, source=str(path))
    if None in shape[1:]:
        raise InputError(f"{path} leaves sizes other than the batch open; export it with fixed ones.")
    info = info_of(graph, source=str(path)) or _described(ModelInfo(net="custom", norm="custom"), graph, fold=True)
    runner = OrtRunner(path, content=graph.SerializeToString())
    return _Source(
        graph=graph,
        info=info,
        predict=runner.run,
        input_shape=tuple(size or 1 for size in shape),
        parents=(parent_of(path, role="onnx"), *(parent_of(file, role="weights") for file in merged.files)),
    )


def _comparison_input(made: _Source) -> tuple[NDArray[np.float32], str]:
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
    count = -(-_RANDOM_SAMPLES // batch) * batch
    images = np.random.default_rng(0).standard_normal((count, *made.input_shape[1:])).astype(np.float32)
    return images, f"{count} random inputs"
