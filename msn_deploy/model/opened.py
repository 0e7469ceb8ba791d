"""An ONNX file, opened once: what every later stage takes in place of its path.

What the graph itself can tell (types, shapes, precision, norms left, structure) is taken from the graph, and never
from the metadata: a file that another tool has changed carries our metadata along. What only the metadata can tell
(classes, preparation, what it was trained on) is kept, and `changed` says that it was written for another graph.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Runtime, TensorSpec, info_from_json
from msn_deploy.core.optional import require

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_LOG = logging.getLogger(__name__)
# The package onnx is imported by what opens a file, never by importing this module: a device may be without it.
NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """An ONNX model that was looked through, with all its weights inside. Nobody changes `proto`: stages copy it."""

    path: Path
    """The file, or what it will be called."""
    data: bytes = field(repr=False)
    """The bytes of `proto`."""
    sha256: str
    """Of the file itself, without the weights that it keeps in other files."""
    proto: ModelProto = field(repr=False, compare=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stored_info: ModelInfo | None = field(default=None, repr=False)
    """What the metadata says, word by word; `info` has what of it still holds."""
    weight_files: tuple[Path, ...] = ()
    """Files beside it that held its weights; they are merged into `proto`."""

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.name

    @cached_property
    def precision(self) -> str:
        """What it computes in: "int8" or "fp8" (Q/DQ nodes), "fp16" (half-precision weights or casts) or "fp32"."""
        from msn_deploy.model.identity import precision_of

        return precision_of(self.proto)

    @cached_property
    def runtime(self) -> Runtime | None:
        """What its INT8 is laid out for; None: it has none."""
        from msn_deploy.model.identity import runtime_of

        return runtime_of(self.proto)

    @cached_property
    def structure(self) -> str:
        """The structural hash: equal for graphs that differ in names, node order and weights alone."""
        from msn_deploy.model.identity import structural_hash

        return structural_hash(self.proto)

    @cached_property
    def norms(self) -> int:
        """How many normalisation layers the graph still has."""
        return norms_in(self.proto)

    @property
    def changed(self) -> bool:
        """Whether the metadata was written for another graph than this."""
        return self.stored_info is not None and self.stored_info.graph not in ("", self.structure)

    @cached_property
    def info(self) -> ModelInfo | None:
        """What the metadata says, with precision, runtime, folded and graph as the graph tells them; None: nothing."""
        if self.stored_info is None:
            return None
        folded = self.stored_info.folded and not self.norms
        return replace(
            self.stored_info,
            precision=self.precision,
            runtime=self.runtime or "",
            folded=folded,
            graph=self.structure,
        )

    @property
    def in_words(self) -> str:
        """What the graph is, such as "an INT8 graph with 3 normalisations left"."""
        norms = f"{self.norms} normalisation{'s' * (self.norms > 1)} left" if self.norms else "no normalisation left"
        return f"an {self.precision.upper()} graph with {norms}"

    @property
    def only_input(self) -> tuple[str, tuple[int | None, ...]]:
        """Name and shape of the only input. Raises InputError if there are several."""
        return only_input(self.inputs, source=str(self.path))

    def as_parent(self) -> Parent:
        """Describe the file as the parent of what is made from it."""
        return Parent(role="onnx", file=self.path.name, sha256=self.sha256)


def open_model(path: Path, *, step: str, merge: bool = False) -> OpenModel:
    """Read, parse and look through an ONNX file, once; `step` is the command that needs it.

    merge: take in the weights that it keeps in files beside it, which is refused otherwise. Raises InputError for a
    file that is missing, damaged, not ONNX, fails `check_model`, or holds damaged metadata of ours; MissingDependency
    where the package onnx is missing.
    """
    require("onnx", step=step)
    from msn_deploy.model.checks import check_model
    from msn_deploy.model.reading import merge_weights, parse, refuse_external

    data, proto = parse(path)
    sha256 = hashlib.sha256(data).hexdigest()
    files: tuple[Path, ...] = ()
    if not merge:
        refuse_external(path, proto)
    elif files := merge_weights(path, proto, inside=len(data)):
        data = proto.SerializeToString()
    check_model(proto, source=str(path))
    model = _described(path, data, proto, sha256=sha256, weight_files=files)
    if model.changed:
        _LOG.warning(
            "%s was changed by another tool: it is %s, and its metadata was written for another graph",
            path,
            model.in_words,
        )
    return model


def made_model(path: Path, proto: ModelProto, data: bytes) -> OpenModel:
    """Return a model that a stage of ours has made: `data` are the bytes of `proto`, which need no second look."""
    return _described(path, data, proto, sha256=hashlib.sha256(data).hexdigest())


def with_info(model: ModelProto, info: ModelInfo) -> bytes:
    """Serialise a graph with the info as its only metadata, with hash and runtime of this very graph; in place too.

    Equal graphs and infos give equal bytes.
    """
    from onnx import helper

    from msn_deploy.model.identity import runtime_of, structural_hash

    info = replace(info, graph=structural_hash(model), runtime=runtime_of(model) or "")
    del model.metadata_props[:]
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    return bytes(model.SerializeToString(deterministic=True))


def norms_in(model: ModelProto) -> int:
    """Return how many normalisation layers a graph has."""
    return sum(node.op_type in NORMS for node in model.graph.node)


def inputs_of(model: ModelProto) -> tuple[TensorSpec, ...]:
    """Return what a graph takes; weights that are listed as inputs too do not count."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights)


def only_input(inputs: Sequence[TensorSpec], *, source: str) -> tuple[str, tuple[int | None, ...]]:
    """Return name and shape of the only input. Raises InputError if there are several, or one of no known rank."""
    if len(inputs) != 1:
        raise InputError(f"{source} has {len(inputs)} inputs; networks with one image input are supported.")
    if inputs[0].shape is None:
        raise InputError(f"{source} does not say the shape of its input {inputs[0].name!r}.\nExport it with one.")
    return inputs[0].name, inputs[0].shape


def _described(
    path: Path, data: bytes, proto: ModelProto, *, sha256: str, weight_files: tuple[Path, ...] = ()
) -> OpenModel:
    stored = next((entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY), None)
    return OpenModel(
        path=path,
        data=data,
        sha256=sha256,
        proto=proto,
        inputs=inputs_of(proto),
        outputs=tuple(_spec(value) for value in proto.graph.output),
        stored_info=None if stored is None else info_from_json(stored, source=str(path)),
        weight_files=weight_files,
    )


def _spec(value: ValueInfoProto) -> TensorSpec:
    from onnx import helper

    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, str(value.type.WhichOneof("value")).removesuffix("_type"), None)
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.dim_value > 0 else None  # some exporters write an open size as 0 or -1
            for dim in tensor.shape.dim
        )
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:  # not told, or of a newer onnx
        dtype = f"type {tensor.elem_type}"
    return TensorSpec(value.name, dtype, shape)
