"""What is this model file? Told from the file and its sidecar alone: nothing is run, and no device is needed."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msn_deploy.core.artifacts import Parent, read_sidecar, sha256_of, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, TensorSpec, info_from_json
from msn_deploy.core.opening import open_input, up_to
from msn_deploy.core.reader import parse_json
from msn_deploy.engine.load import RUNNABLE
from msn_deploy.engine.plan import read_plan
from msn_deploy.model.opened import open_model

_MOST_OPERATORS = 8  # kinds that are named
_MOST_HEADER = 100_000_000  # of a safetensors file, bytes: that format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model file says of itself. None or empty: a file of its kind does not tell.

    inputs, outputs: such as "input: float32 ?x1x28x28", ? for an open size. weights: how many numbers it stores.
    target: what an engine was built for. made_from: files and data, each with the start of its SHA-256.
    """

    file: str
    kind: Literal["checkpoint", "ONNX file", "engine"]
    bytes: int
    sha256: str
    precision: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    opset: int | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    weights: int | None = None
    norms_left: int | None = None
    target: str | None = None
    info: ModelInfo | None = None
    made_from: tuple[str, ...] = ()

    def in_words(self) -> dict[str, str]:
        """Return what is known, by a short title."""
        most = sorted(self.operators.items(), key=lambda each: (-each[1], each[0]))
        operators = ", ".join(f"{count} {name}" for name, count in most[:_MOST_OPERATORS])
        more = f" and {len(most) - _MOST_OPERATORS} more kinds" if len(most) > _MOST_OPERATORS else ""
        told = {
            "target": self.target,
            "precision": self.precision,
            "inputs": "; ".join(self.inputs),
            "outputs": "; ".join(self.outputs),
            "opset": self.opset and str(self.opset),
            "operators": operators + more,
            "weights": self.weights and f"{self.weights:,} numbers",
            "norms": self.norms_left and f"{self.norms_left} not folded",
        }
        if (info := self.info) is not None:
            net = f"{info.net} with {info.norm}" if info.net else ""
            names = f", {len(info.classes)} classes: {', '.join(info.classes[:10])}" if info.classes else ""
            more = ", ..." if len(info.classes) > 10 else ""
            told |= {
                "network": net,
                "task": info.task and f"{info.task}{names}{more}",
                "images": info.preprocess.in_words if info.preprocess is not None else None,
                "measured": ", ".join(f"{name} {value:.4g}" for name, value in info.metrics.items()),
            }
        told["made from"] = "; ".join(self.made_from)
        return {title: value for title, value in told.items() if value}


def describe(path: Path) -> ModelFacts:
    """Describe a checkpoint, an ONNX file or an engine.

    Raises InputError for a file of another kind, one that is damaged, and an engine without its sidecar.
    """
    suffix = path.suffix.lower()
    if suffix not in RUNNABLE:
        what = "is a folder" if os.path.isdir(path) else "is not named like a model file"
        raise InputError(f"{path} {what if os.path.exists(path) else 'does not exist'}.\nGive {', '.join(RUNNABLE)}.")
    if suffix == ".engine":
        return _engine(path)
    return _onnx(path) if suffix == ".onnx" else _checkpoint(path)


def _onnx(path: Path) -> ModelFacts:
    model = open_model(path, step="info", merge=True)
    return ModelFacts(
        file=str(path),
        kind="ONNX file",
        bytes=path.stat().st_size,
        sha256=model.sha256,
        precision=model.precision,
        inputs=tuple(map(_text, model.inputs)),
        outputs=tuple(map(_text, model.outputs)),
        opset=next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), None),
        operators=dict(Counter(node.op_type for node in model.proto.graph.node)),
        weights=sum(math.prod(tensor.dims) for tensor in model.proto.graph.initializer),
        norms_left=model.norms,
        info=model.info,
        made_from=_parents(path),
    )


def _engine(path: Path) -> ModelFacts:
    plan = read_plan(path)
    return ModelFacts(
        file=str(path),
        kind="engine",
        bytes=len(plan.data),
        sha256=plan.sha256,
        precision=plan.precision,
        target=plan.title,
        info=plan.info,
        made_from=_parents(path),
    )


def _checkpoint(path: Path) -> ModelFacts:
    """Read the header alone: names, types and shapes, and the metadata."""
    with open_input(path, "weights") as stream:
        count = int.from_bytes(up_to(stream, 8, source=path), "little")
        size = os.fstat(stream.fileno()).st_size if count else 0
        if not 0 < count <= min(_MOST_HEADER, size - 8):
            raise InputError(f"{path} is not a whole safetensors file.\nCopy it again, or train again.")
        header = parse_json(bytes(up_to(stream, count, source=path)), source=f"the header of {path}",
                            most_bytes=_MOST_HEADER)  # fmt: skip
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise InputError(
            f"{path} is not a checkpoint of `msn-deploy train`: it does not record its network.\n"
            "Weights of your own network: msn-deploy export FILE.py:FACTORY --weights WEIGHTS --input-shape N,C,H,W"
        )
    tensors = [each if isinstance(each, dict) else {} for each in header.values()]
    shapes, spans = ([each.get(key) for each in tensors] for key in ("shape", "data_offsets"))
    if not all(isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape) for shape in shapes):
        raise InputError(f"the header of {path} is damaged: a tensor has no shape.\nCopy it again, or train again.")
    if (
        8
        + count
        + max((span[-1] for span in spans if isinstance(span, list) and span and isinstance(span[-1], int)), default=0)
        != size
    ):
        raise InputError(f"{path} is not a whole safetensors file: it was cut off.\nCopy it again, or train again.")
    info = info_from_json(metadata[METADATA_KEY], source=str(path))
    learned = [shape for each, shape in zip(tensors, shapes, strict=True) if each.get("dtype") != "U8"]  # the graph
    return ModelFacts(
        file=str(path),
        kind="checkpoint",
        bytes=size,
        sha256=sha256_of(path, "weights"),
        precision=info.precision,
        weights=sum(math.prod(shape) for shape in learned),
        info=info,
        made_from=_parents(path),
    )


def _text(spec: TensorSpec) -> str:
    sizes = "any shape" if spec.shape is None else "x".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype} {sizes}"


def _parents(path: Path) -> tuple[str, ...]:
    """Return what the sidecar names as parents; nothing where there is no sidecar, or it is of another file."""
    if not os.path.isfile(sidecar_path(path)):
        return ()
    return tuple(f"{_named(each)} {each.sha256[:12]}" for each in read_sidecar(path).parents)


def _named(parent: Parent) -> str:
    return f"{parent.file} ({parent.role.partition(':')[2] or 'data'})" if parent.is_data else parent.file
