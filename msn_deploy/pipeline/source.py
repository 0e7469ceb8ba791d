"""What `export` starts from: a checkpoint, a network of the user's own, or another ONNX file, as one unfolded graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent, parent_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import recipe_from_dict
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import open_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from msn_deploy.graph import CertifiedNorm

_LOG = logging.getLogger(__name__)
_SHAPE_HINT = "A network of your own needs its input size: `--input-shape 1,3,32,32`."

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is exported: its graph with every norm, and the truth that every later stage is held against.

    predict: the truth. graph_is_truth: it is the graph itself, of a file of others. with_plain_layers: the same network
    after its layers were folded; None if none were. layers: what became of those. parents: what it came from.
    """

    graph: ModelProto
    info: ModelInfo
    predict: Predict
    input_shape: tuple[int, ...]
    parents: tuple[Parent, ...]
    graph_is_truth: bool = False
    with_plain_layers: Predict | None = None
    layers: tuple[CertifiedNorm, ...] = ()


def require_packages() -> None:
    """Raise MissingDependency (exit 3) that names the first package that an export needs and that is not there."""
    for package in ("onnx", "onnx_ir", "onnxscript", "torch"):  # the first of the extra that brings all
        require(package, step="export")


def open_source(
    source: str,
    *,
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    dynamic: bool,
    batch: int,
    opset: int,
    fold: bool,
) -> Source:
    """Open a source. Raises InputError (exit 2)."""
    if source.endswith(".onnx"):
        return _open_onnx(Path(source))
    from msn_deploy.graph import to_onnx
    from msn_deploy.graph.export import LOWEST_OPSET
    from msn_deploy.graph.layers import certify_layers
    from msn_deploy.msn import fold_layers
    from msn_deploy.training.runner import logits_of

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
    plain, layers = fold_layers(model, share=True) if fold else (model, [])
    graph = to_onnx(
        plain,
        input_shape=shape,
        dynamic_batch=dynamic,
        opset=max(opset, LOWEST_OPSET) if fold else opset,
        optimize=False,
    )
    chunk = 64 if dynamic else shape[0]
    return Source(
        graph=graph,
        info=replace(info, precision="fp32"),
        predict=lambda images: _predicted(model, images, chunk),
        input_shape=shape,
        parents=parents,
        with_plain_layers=(lambda images: logits_of(plain, images, chunk=chunk)) if layers else None,
        layers=tuple(certify_layers(layers)),
    )


def _predicted(model: nn.Module, images: NDArray[np.float32], chunk: int) -> NDArray[np.float32]:
    """Raises InputError for a network that can be traced, and yet does not run or returns no tensor."""
    import torch

    from msn_deploy.graph.export import require_one_output
    from msn_deploy.training.runner import logits_of

    try:
        return logits_of(model, images, chunk=chunk)
    except Exception:
        require_one_output(model, torch.from_numpy(images[:chunk]))
        raise


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


def _open_onnx(path: Path) -> Source:
    from msn_deploy.model.checks import check_editable

    model = open_model(path, step="export", merge=True)
    check_editable(model.proto, source=str(path))
    _, shape = model.only_input
    if None in shape[1:]:
        raise InputError(f"{path} leaves sizes other than the batch open; export it with fixed ones.")
    return Source(
        graph=model.proto,
        info=model.info or ModelInfo(net="custom", norm="custom"),
        predict=partial(run_images, OrtRunner(model)),
        graph_is_truth=True,
        input_shape=tuple(size or 1 for size in shape),
        parents=(model.as_parent(), *(parent_of(file, role="weights") for file in model.weight_files)),
    )
