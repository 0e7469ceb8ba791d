"""What `export` starts from: a checkpoint, a network of the user's own, or another ONNX file, as one unfolded graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from msn_deploy.model.opened import OpenModel, made_model, open_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from msn_deploy.graph.certificate import CertifiedNorm

_LOG = logging.getLogger(__name__)
_SHAPE_HINT = "A network of your own needs its input size: `--input-shape 1,3,32,32`."
FEW = 32  # images, for which a pool of threads, which wait busily for work, costs more than it saves

Images = NDArray[np.float32]
Predict = Callable[[Images], Images]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What an export may do with its source, and what it has to."""

    weights: Path | None = None
    """Weights of FILE.py:FACTORY (.safetensors, or a .pt state dict); None keeps those that it creates."""
    input_shape: tuple[int, ...] | None = None
    """(N, C, H, W), for a network of the user's own."""
    dynamic_batch: bool = False
    """Whether the batch size stays open in the file."""
    batch: int = 1
    """Images per run of a checkpoint's file, where the batch size is fixed."""
    opset: int | None = None
    """None: DEFAULT_OPSET, or for a file of others the one that it has."""
    fold: bool = True
    """Fold norms into the layers around them. False keeps every norm a node of its own, and leaves the simplifier out,
    which would fuse it."""
    simplify: bool = True
    """Run onnxsim."""
    require_fully_folded: bool = False
    """Refuse a network of which a norm is left."""
    ladder: bool = False
    """Compare FP16 and INT8 too; neither is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is exported, and how every stage before the fold computes it."""

    model: OpenModel
    """Its graph with every norm."""
    info: ModelInfo
    predict: Predict
    """The truth that every later stage is compared with."""
    input_shape: tuple[int, ...]
    parents: tuple[Parent, ...]
    """The files that it came from."""
    stages: Mapping[str, Predict] = field(default_factory=dict)
    """What lies between the truth and the fold."""
    layers: tuple[CertifiedNorm, ...] = ()
    """What became of layers that normalise their own weight."""
    graph_is_truth: bool = False
    """Whether the truth is `model` itself, a file of others."""


def require_packages() -> None:
    """Raise MissingDependency (exit 3) that names the first package that an export needs and that is not there."""
    for package in ("onnx", "onnx_ir", "onnxscript", "torch"):  # the first of the extra that brings all
        require(package, step="export")


def open_source(source: str, options: ExportOptions) -> Source:
    """Open a source. Raises InputError (exit 2)."""
    if source.endswith(".onnx"):
        return _open_onnx(Path(source))
    from msn_deploy.graph.certificate import certify_layers
    from msn_deploy.graph.export import DEFAULT_OPSET, LOWEST_OPSET, to_onnx
    from msn_deploy.msn import fold_layers
    from msn_deploy.training.runner import logits_of

    if ".py:" in source:
        net, info, parents = _own_network(source, options.weights)
        if options.input_shape is None:
            raise InputError(f"the size of the input of {source} is not known.\n{_SHAPE_HINT}")
        shape = options.input_shape
    else:
        from msn_deploy.training import load_checkpoint

        path = Path(source)
        net, info = load_checkpoint(path)
        parents = (parent_of(path, role="checkpoint"),)
        shape = (options.batch, *recipe_from_dict(info.recipe, source=source).network_input)
    plain, layers = fold_layers(net, share=True) if options.fold else (net, [])
    opset = options.opset or DEFAULT_OPSET
    graph = to_onnx(
        plain,
        input_shape=shape,
        dynamic_batch=options.dynamic_batch,
        opset=max(opset, LOWEST_OPSET) if options.fold else opset,
        optimize=False,
    )
    model = in_memory(graph)
    chunk = 64 if options.dynamic_batch else shape[0]
    stages: dict[str, Predict] = {}
    if layers:
        stages["layers folded"] = partial(logits_of, plain, chunk=chunk)
    if options.fold:  # ONNX Runtime would fuse norms itself
        stages["onnx"] = partial(run_in_ort, model, fuse_norms=False)
    return Source(
        model=model,
        info=replace(info, precision="fp32"),
        predict=lambda images: _predicted(net, images, chunk),
        input_shape=shape,
        parents=parents,
        stages=stages,
        layers=tuple(certify_layers(layers)),
    )


def in_memory(graph: ModelProto, data: bytes | None = None) -> OpenModel:
    """Return a graph of ours as an opened model; data: its bytes, if they are known."""
    return made_model(Path("the exported graph"), graph, graph.SerializeToString() if data is None else data)


def run_in_ort(model: OpenModel, images: Images, *, fuse_norms: bool = True) -> Images:
    """Map images (N, C, H, W) to outputs in ONNX Runtime, with its own fusions or without."""
    runner = OrtRunner(model, fuse_norms=fuse_norms, threads=1 if len(images) <= FEW else None)
    outputs = run_images(runner, images)
    runner.close()
    return outputs


def _predicted(net: nn.Module, images: Images, chunk: int) -> Images:
    """Raises InputError for a network that can be traced, and yet does not run or returns no tensor."""
    import torch

    from msn_deploy.graph.export import require_one_output
    from msn_deploy.training.runner import logits_of

    try:
        return logits_of(net, images, chunk=chunk)
    except Exception:
        require_one_output(net, torch.from_numpy(images[:chunk]))
        raise


def _own_network(source: str, weights: Path | None) -> tuple[nn.Module, ModelInfo, tuple[Parent, ...]]:
    from msn_deploy.nets.registry import net_from_file
    from msn_deploy.training import load_weights

    net = net_from_file(source)
    parents = [parent_of(Path(source.rpartition(":")[0]), role="source")]
    if weights is None:
        _LOG.warning(
            "%s is exported with the weights that it creates itself; `--weights FILE` loads trained ones", source
        )
    else:
        load_weights(net, weights)
        parents.append(parent_of(weights, role="weights"))
    return net, ModelInfo(net="custom", norm="custom"), tuple(parents)


def _open_onnx(path: Path) -> Source:
    from msn_deploy.model.checks import check_editable

    model = open_model(path, step="export", merge=True)
    check_editable(model.proto, source=str(path))
    _, shape = model.only_input
    if None in shape[1:]:
        raise InputError(f"{path} leaves sizes other than the batch open; export it with fixed ones.")
    return Source(
        model=model,
        info=model.info or ModelInfo(net="custom", norm="custom"),
        predict=partial(run_in_ort, model),
        input_shape=tuple(size or 1 for size in shape),
        parents=(model.as_parent(), *(parent_of(file, role="weights") for file in model.weight_files)),
        graph_is_truth=True,
    )
