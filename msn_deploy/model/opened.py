"""An ONNX file, opened once: what every later stage takes in place of its path.

What the graph itself can tell (types, shapes, precision, norms left, structure) is told by the graph, and never taken
from the metadata: a file that another tool has changed carries our metadata along. What only the metadata can tell
(classes, preparation, what it was trained on) is kept, and `changed` says that it was written for another graph.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from onnx import ModelProto, ValueInfoProto, helper

from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, TensorSpec, info_from_json
from msn_deploy.model.identity import structural_hash
from msn_deploy.model.onnx_file import precision_of, read_onnx

NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """An ONNX model that was looked through, with all its weights inside. Nobody changes `proto`: stages copy it.

    path: the file, or what it will be called. data: its bytes. info: what the metadata says, with precision, folded and
    graph as the graph itself tells them; None if the file says nothing.
    """

    path: Path
    data: bytes = field(repr=False)
    sha256: str
    proto: ModelProto = field(repr=False, compare=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stored_info: ModelInfo | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.name

    @cached_property
    def precision(self) -> str:
        """What it computes in: "int8" (it has Q/DQ nodes), "fp16" (half-precision weights or casts) or "fp32"."""
        return precision_of(self.proto)

    @cached_property
    def structure(self) -> str:
        """The structural hash: equal for graphs that differ in names, node order and weights alone."""
        return structural_hash(self.proto)

    @cached_property
    def norms(self) -> int:
        """How many normalisation layers the graph still has."""
        return sum(node.op_type in NORMS for node in self.proto.graph.node)

    @property
    def changed(self) -> bool:
        """Whether the metadata was written for another graph than this."""
        return self.stored_info is not None and self.stored_info.graph not in ("", self.structure)

    @cached_property
    def info(self) -> ModelInfo | None:
        """What the file says of itself, as far as only the file can say it."""
        if self.stored_info is None:
            return None
        folded = self.stored_info.folded and not self.norms
        return replace(self.stored_info, precision=self.precision, folded=folded, graph=self.structure)


def open_model(path: Path, *, step: str) -> OpenModel:
    """Read, parse and look through an ONNX file, once; `step` is the command that needs it.

    Raises InputError for a file that is missing, damaged, not ONNX, keeps weights in other files, fails `check_model`,
    or holds damaged metadata of ours; MissingDependency where the package onnx is missing.
    """
    file = read_onnx(path, step=step)
    return _described(path, file.data, file.proto, sha256=file.sha256)


def made_model(path: Path, proto: ModelProto, data: bytes) -> OpenModel:
    """Return a model that a stage of ours has made: `data` are the bytes of `proto`, which need no second look."""
    return _described(path, data, proto, sha256=hashlib.sha256(data).hexdigest())


def _described(path: Path, data: bytes, proto: ModelProto, *, sha256: str) -> OpenModel:
    weights = {tensor.name for tensor in proto.graph.initializer}
    stored = next((entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY), None)
    return OpenModel(
        path=path,
        data=data,
        sha256=sha256,
        proto=proto,
        inputs=tuple(_spec(value) for value in proto.graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in proto.graph.output),
        stored_info=None if stored is None else info_from_json(stored, source=str(path)),
    )


def _spec(value: ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, str(value.type.WhichOneof("value")).removesuffix("_type"), None)
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in tensor.shape.dim
        )
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
