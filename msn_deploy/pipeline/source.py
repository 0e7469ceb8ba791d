"""What `export` starts from: a checkpoint, a network of the user's own, or another ONNX file, as one unfolded graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from msn_deploy.core.artifacts import Parent, parent_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import InputOption, Layout, ModelInfo, Preprocess, TaskName
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import recipe_from_dict
from msn_deploy.data.feeds import is_feeds, open_feeds
from msn_deploy.data.preparation import Preparation, resolved
from msn_deploy.engine import OrtRunner
from msn_deploy.engine.runner import sizes_text
from msn_deploy.model.feeds import (
    BATCH,
    Array,
    ExampleInput,
    Feeds,
    example_of,
    fixed_input,
    joined,
    rows_of,
    with_open_batch,
)
from msn_deploy.model.opened import OpenModel, made_model, open_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from msn_deploy.graph.certificate import CertifiedNorm

_LOG = logging.getLogger(__name__)
_SHAPE_HINT = (
    "A network of your own needs its input size: `--input-shape 1,3,32,32`, or `--input NAME=SHAPE` for each input."
)
_NO_TENSORS = {"sequence": "a sequence", "optional": "an optional", "map": "a map", "sparse_tensor": "a sparse tensor"}
FEW = 32  # rows, for which a pool of threads, which wait busily for work, costs more than it saves

Predict = Callable[[Sequence[Feeds]], dict[str, Array]]
"""Several runs, each with an array for each input, to one array for each output, the runs' rows behind each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What an export may do with its source, and what it has to."""

    weights: Path | None = None
    """Weights of FILE.py:FACTORY (.safetensors, or a .pt state dict); None keeps those that it creates."""
    input_shape: tuple[int, ...] | None = None
    """Of the only input: (N, C, H, W), for a network of the user's own, or to fix open sizes of an ONNX file."""
    inputs: tuple[InputOption, ...] = ()
    """In place of `input_shape`: one or more inputs by name."""
    preparation: Preparation | None = None
    """How images are prepared for it, which the file says from then on."""
    task: TaskName | None = None
    """What its outputs mean, which the file says from then on."""
    classes: tuple[str, ...] = ()
    """Names of classes or values, in the order of the numbers."""
    reading: Mapping[str, str] = field(default_factory=dict)
    """How the task reads the outputs, such as {"head": "yolov8"}; see docs/guides/tasks.md."""
    uint8_input: bool = False
    """Take bytes, and prepare them in the graph."""
    uint8_layout: str | None = None
    """Of the bytes, "NCHW" or "NHWC"; None: that of the network."""
    uint8_colour: str | None = None
    """The order of colours in the bytes, "rgb" or "bgr"; None: "rgb", whatever the order of the network."""
    data: str | None = None
    """What the stages are compared on: feeds (see `data.feeds`), or images where it is known how they are prepared;
    None: what it was trained on, else random numbers."""
    dynamic_batch: bool = False
    """Whether the batch size stays open in the file."""
    batch: int | None = None
    """Rows per run, where the batch size is fixed; None: 1, or what the input's shape or the ONNX file says."""
    opset: int | None = None
    """None: the lowest from 17 on that has what the graph uses, or for a file of others the one that it has."""
    target: str | None = None
    """The machine that the file is for, such as "orin-nano": its TensorRT has to read the opset."""
    fold: bool = True
    """Fold norms into the layers around them. False keeps every norm a node of its own, and leaves the simplifier out,
    which would fuse it."""
    simplify: bool = True
    """Run onnxsim."""
    require_fully_folded: bool = False
    """Refuse a network of which a norm is left."""
    nms: bool = False
    """Put a detector's NMS into the graph, whose only output is then (N, boxes, 6); see `graph.nms`."""
    ladder: bool = False
    """Compare FP16 and INT8 too; neither is written."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("uint8-layout", self.uint8_layout, get_args(Layout)),
            ("uint8-colour", self.uint8_colour, ("rgb", "bgr")),
        ):
            if value is not None and not self.uint8_input:
                raise InputError(f"`--{name}` is of bytes.\nAdd `--uint8-input`.")
            if value is not None and value not in known:
                raise InputError(f"--{name} {value!r} is none of {', '.join(known)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is exported, and how every stage before the fold computes it."""

    graph: ModelProto
    """With every norm."""
    info: ModelInfo
    inputs: tuple[ExampleInput, ...]
    predict: Predict
    """The truth that every later stage is compared with."""
    parents: tuple[Parent, ...]
    """The files that it came from."""
    stages: Mapping[str, Predict] = field(default_factory=dict)
    """What lies between the truth and the fold."""
    layers: tuple[CertifiedNorm, ...] = ()
    """What became of layers that normalise their own weight."""
    exact: Predict | None = None
    """The truth in float64; None for a file of others."""
    graph_is_truth: bool = False
    """Whether the truth is `graph` itself, a file of others."""
    as_trained: bool = False
    """Whether the graph was trained as it is, with its Q/DQ pairs: neither folded nor simplified."""
    in_graph: Preprocess | None = None
    """What the graph does itself to bytes; None for a network that takes prepared numbers."""


def require_packages() -> None:
    """Raise MissingDependency (exit 3) that names the first package that an export needs and that is not there."""
    for package in ("onnx", "onnx_ir", "onnxscript", "torch"):  # the first of the extra that brings all
        require(package, step="export")


def open_source(source: str | nn.Module, options: ExportOptions) -> Source:
    """Open a source. Raises InputError (exit 2), also for an option that this kind of source has no use for."""
    made = _with_task(_opened(source, options), options)
    if options.preparation is None:
        return made
    name = source if isinstance(source, str) else type(source).__name__
    if len(made.inputs) != 1 or made.info.is_generator:
        raise InputError(
            f"{name} takes {'latents' if made.info.is_generator else f'{len(made.inputs)} inputs'}, and no images.\n"
            "Leave out what says how images are prepared."
        )
    prep = resolved(options.preparation, made.inputs[0].spec, made.info.preprocess, model=name)
    return replace(made, info=replace(made.info, preprocess=prep))


def _with_task(made: Source, options: ExportOptions) -> Source:
    """Return a source whose file will say the task, classes and reading that are asked for."""
    info = made.info
    task = options.task or info.task
    if (options.classes or options.reading) and not task:
        raise InputError("`--classes` and `--read` are of a task.\nSay which: `--task classification`, ...")
    if options.task is not None and info.is_generator:
        raise InputError("a generator makes images; it has no task.\nLeave out `--task`.")
    same = options.task in (None, info.task)
    reading = {**(info.reading if same else {}), **options.reading}
    classes = options.classes or (info.classes if same else ())
    return replace(made, info=replace(info, task=task, classes=classes, reading=reading))


def _opened(source: str | nn.Module, options: ExportOptions) -> Source:
    if options.weights is not None and not options.weights.is_file():
        raise InputError(f"{options.weights} does not exist.\n`--weights` takes a .safetensors or .pt file.")
    if options.inputs and options.input_shape is not None:
        raise InputError("`--input-shape` is for a network of one input.\nGive it or `--input`, not both.")
    if isinstance(source, str) and source.endswith(".onnx"):
        return _open_onnx(Path(source), options)
    from msn_deploy.graph.certificate import certify_layers
    from msn_deploy.graph.export import LOWEST_OPSET, to_onnx
    from msn_deploy.model.graphs import inner_graphs
    from msn_deploy.msn import fold_layers

    net, info, inputs, parents = _opened_net(source, options)
    inputs = _with_batch(inputs, options)
    if info.precision == "int8":
        return _trained_int8(net, info, inputs, parents, options)
    plain, layers = fold_layers(net, share=True) if options.fold else (net, [])
    predict = _in_torch(net, inputs)
    graph = to_onnx(
        plain,
        inputs=inputs,
        opset=max(options.opset or 0, LOWEST_OPSET),
        optimize=False,
    )
    stages: dict[str, Predict] = {}
    if layers:
        stages["layers folded"] = _in_torch(plain, inputs)
    # Without its own fusions of norms. What torch writes for embedding_bag (branches over sequences) crashes ONNX
    # Runtime 1.32, and the process with it: such a graph is run when its constants are computed.
    if options.fold and not any(any(inner_graphs(node)) for node in graph.graph.node):
        stages["onnx"] = lambda feeds: in_ort(in_memory(graph), fuse_norms=False)(feeds)  # no bytes are kept
    return Source(
        graph=graph,
        info=replace(info, precision="fp32"),
        inputs=inputs,
        predict=predict,
        exact=_in_double(net, inputs),
        parents=parents,
        stages=stages,
        layers=tuple(certify_layers(layers)),
    )


def _trained_int8(
    net: nn.Module,
    info: ModelInfo,
    inputs: tuple[ExampleInput, ...],
    parents: tuple[Parent, ...],
    options: ExportOptions,
) -> Source:
    """Return what was trained under INT8: its graph is the file, but for the batch."""
    from msn_deploy.model.shapes import with_sizes
    from msn_deploy.training.graph_net import GraphNet

    assert isinstance(net, GraphNet)
    if not options.fold or not options.simplify or options.ladder:
        asked = "--no-fold" if not options.fold else "--ladder" if options.ladder else "--no-simplify"
        raise InputError(f"the network was folded and quantised before it was trained.\nLeave `{asked}` out.")
    model = in_memory(net.to_onnx())
    (only,) = inputs
    batch = None if only.open[0] else only.shape[0]
    return Source(
        graph=with_sizes(model, (), batch=batch).proto,
        info=info,
        inputs=inputs,
        predict=_in_torch(net, inputs),
        exact=_in_double(net, inputs),
        parents=parents,
        as_trained=True,
    )


def in_memory(graph: ModelProto, data: bytes | None = None) -> OpenModel:
    """Return a graph of ours as an opened model; data: its bytes, if they are known."""
    return made_model(Path("the exported graph"), graph, graph.SerializeToString() if data is None else data)


def in_ort(model: OpenModel, *, fuse_norms: bool = True) -> Predict:
    """Return what runs a model in ONNX Runtime, with its own fusions or without."""

    def run(feeds: Sequence[Feeds]) -> dict[str, Array]:
        few = sum(map(rows_of, feeds)) <= FEW
        runner = OrtRunner(model, fuse_norms=fuse_norms, threads=1 if few else None)
        outputs = joined([runner.run(each) for each in feeds])
        runner.close()
        return outputs

    return run


def _in_torch(net: nn.Module, inputs: Sequence[ExampleInput]) -> Predict:
    """Return what runs a network in torch, each time a fresh copy: it may remember what it was run on."""
    from msn_deploy.graph.calls import Call
    from msn_deploy.msn.plain import copied

    call = Call(net, inputs)

    def run(feeds: Sequence[Feeds]) -> dict[str, Array]:
        own = copied(net, share=True)
        return joined([call.run(own, each) for each in feeds])

    return run


def _in_double(net: nn.Module, inputs: Sequence[ExampleInput]) -> Predict:
    """Return what runs a network in torch in float64."""

    def run(feeds: Sequence[Feeds]) -> dict[str, Array]:
        exact = [
            {name: each.astype("float64") if each.dtype.kind == "f" else each for name, each in of.items()}
            for of in feeds
        ]
        return _in_torch(copy.deepcopy(net).double(), inputs)(exact)

    return run


def _opened_net(
    source: str | nn.Module, options: ExportOptions
) -> tuple[nn.Module, ModelInfo, tuple[ExampleInput, ...], tuple[Parent, ...]]:
    """Return a network in evaluation mode, what is known of it, its inputs, and the files that it came from."""
    if isinstance(source, str) and source.endswith(".py"):
        raise InputError(f"{source} is a Python file.\nGive the function that makes the network too: {source}:FACTORY")
    if isinstance(source, str) and ".py:" not in source:
        return _checkpoint(Path(source), options)
    from msn_deploy.nets.registry import net_from_file
    from msn_deploy.training import load_weights

    parents = []
    if isinstance(source, str):
        net, name = net_from_file(source), source
        parents.append(parent_of(Path(source.rpartition(":")[0]), role="source"))
    else:
        net, name = source, type(source).__name__
        if any(module.training for module in net.modules()):
            raise InputError(f"{name} is in training mode; call eval() before it is exported.")
    if options.weights is not None:
        load_weights(net, options.weights)
        parents.append(parent_of(options.weights, role="weights"))
    elif isinstance(source, str):
        _LOG.warning(
            "%s is exported with the weights that it creates itself; `--weights FILE` loads trained ones", source
        )
    inputs = _asked_inputs(options)
    if not inputs:
        raise InputError(f"the size of the input of {name} is not known.\n{_SHAPE_HINT}")
    return _in_single_precision(net, name), ModelInfo(net="custom", norm="custom"), inputs, tuple(parents)


def _checkpoint(
    path: Path, options: ExportOptions
) -> tuple[nn.Module, ModelInfo, tuple[ExampleInput, ...], tuple[Parent, ...]]:
    from msn_deploy.graph.calls import INPUT_NAME
    from msn_deploy.training import load_checkpoint

    net, info = load_checkpoint(path)
    if options.weights is not None:
        raise InputError(f"{path} is a checkpoint and has its own weights.\nLeave out `--weights`.")
    sizes = recipe_from_dict(info.recipe, source=str(path)).network_input
    if options.preparation is not None:
        raise InputError(
            f"{path} is a checkpoint: its images are prepared as in its training.\n"
            "Leave out what says how they are prepared."
        )
    given = _asked_inputs(options)
    if given and (len(given) > 1 or given[0].shape[1:] != sizes or any(given[0].open[1:])):
        raise InputError(
            f"{path} was trained on inputs of {sizes_text(sizes)}, and takes no other.\n"
            "Leave out `--input-shape` and `--input`; `--batch-size N` sets the batch."
        )
    own = given[0] if given else fixed_input(INPUT_NAME, "float32", (1, *sizes))
    return net, info, (replace(own, name=INPUT_NAME, dtype="float32"),), (parent_of(path, role="checkpoint"),)


def _in_single_precision(net: nn.Module, name: str) -> nn.Module:
    """Return the network, or a copy of it in float32 where it is in another precision."""
    import torch

    others = {
        each.dtype
        for each in (*net.parameters(), *net.buffers())
        if each.is_floating_point() and each.dtype != torch.float32
    }
    if not others:
        return net
    _LOG.warning("%s is in %s; it is exported in float32", name, ", ".join(sorted(map(str, others))))
    return copy.deepcopy(net).float()


def _asked_inputs(options: ExportOptions) -> tuple[ExampleInput, ...]:
    from msn_deploy.graph.calls import INPUT_NAME

    if options.input_shape is not None:
        return (fixed_input(INPUT_NAME, "float32", options.input_shape),)
    return tuple(example_of(each) for each in options.inputs)


def _with_batch(inputs: tuple[ExampleInput, ...], options: ExportOptions) -> tuple[ExampleInput, ...]:
    """Return the inputs with the batch that is asked for, in all that share the first one's."""
    if options.dynamic_batch:
        return with_open_batch(inputs)
    if options.batch is None:
        return inputs
    fixed = [
        replace(each, shape=(options.batch, *each.shape[1:]), open=(None, *each.open[1:]))
        if opened.open[:1] == (BATCH,)
        else each
        for each, opened in zip(inputs, with_open_batch(inputs), strict=True)
    ]
    return tuple(fixed)


def _open_onnx(path: Path, options: ExportOptions) -> Source:
    from msn_deploy.model.checks import check_editable
    from msn_deploy.model.shapes import example_inputs, with_sizes

    model = _without_functions(open_model(path, step="export", merge=True))
    check_editable(model.proto, source=str(path), branches=True)
    for spec in (*model.inputs, *model.outputs):
        if spec.dtype in _NO_TENSORS:
            raise InputError(
                f"{path}: {spec.name} is not a tensor but {_NO_TENSORS[spec.dtype]}, which TensorRT has not."
            )
    if not model.inputs:
        raise InputError(f"{path} has no input: it gives the same on every run, and there is nothing to compare it on.")
    if options.weights is not None:
        raise InputError(f"{path} is an ONNX file and has its own weights.\nLeave out `--weights`.")
    wanted = options.inputs
    if options.input_shape is not None:
        name, _ = model.only_input
        wanted = (InputOption(name, tuple((size, None) for size in options.input_shape)),)
    model = with_sizes(model, wanted, batch=options.batch, open_batch=options.dynamic_batch)
    is_sample = options.data is not None and is_feeds(options.data)
    sample = next(iter(open_feeds(str(options.data), model.inputs)), None) if is_sample else None
    return Source(
        graph=model.proto,
        info=model.info or ModelInfo(net="custom", norm="custom"),
        inputs=example_inputs(model, wanted, data=sample),
        predict=in_ort(model),
        parents=(model.as_parent(), *(parent_of(file, role="weights") for file in model.weight_files)),
        graph_is_truth=True,
    )


def _without_functions(model: OpenModel) -> OpenModel:
    """Return a model with the functions that its file defines put in where they are called."""
    if not model.proto.functions:
        return model
    import onnx.inliner

    plain = onnx.inliner.inline_local_functions(model.proto)
    return replace(made_model(model.path, plain, plain.SerializeToString()), sha256=model.sha256)
