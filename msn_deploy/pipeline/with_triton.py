"""`bundle --with triton`: a model repository of Triton for the engines, as text in the form of its ModelConfig."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, TensorSpec
from msn_deploy.engine import BuildOptions
from msn_deploy.engine.runner import sizes_text
from msn_deploy.model.opened import OpenModel

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}
_DELAY_US = 500  # for which a request waits for others
_SCRIPT = resources.files("msn_deploy.pipeline") / "bundle_scripts" / "triton.sh"
_Shape = tuple[int | None, ...]


def triton_files(models: Sequence[OpenModel], options: BuildOptions) -> dict[str, bytes]:
    """Return the files by their path in the bundle: a configuration for each model, labels, and repository.sh.

    Raises InputError for a model whose inputs or outputs Triton cannot describe.
    """
    files = {"triton/repository.sh": _SCRIPT.read_bytes()}
    for model in models:
        stem = model.path.stem
        files[f"triton/{stem}/config.pbtxt"] = model_config(model, options).encode()
        if _has_labels(model):
            assert model.info is not None
            files[f"triton/{stem}/labels.txt"] = "".join(f"{name}\n" for name in model.info.classes).encode()
    return files


def model_config(model: OpenModel, options: BuildOptions) -> str:
    """Return a model's config.pbtxt. Raises InputError as `triton_files`.

    Requests are batched where every input and output leaves its first size open, up to the batch that the engine is
    built for.
    """
    specs = (*model.inputs, *model.outputs)
    for spec in specs:
        if spec.dtype not in _TYPES or spec.shape is None:
            raise InputError(
                f"{model.path}: Triton needs the type and the rank of each tensor; {spec.name} is {spec.dtype} of "
                f"{sizes_text(spec.shape)}.\nLeave `--with triton` out, or export it with a shape."
            )
    ranges = options.meant_for(model).ranges(model)
    batched = all(spec.shape and spec.shape[0] is None for spec in specs)
    most = min((ranges[spec.name][2][0] for spec in model.inputs), default=1) if batched else 0
    best = {spec.name: ranges[spec.name][1] if spec.name in ranges else spec.shape or () for spec in model.inputs}
    lines = [
        f"name: {_text(model.path.stem)}",
        'platform: "tensorrt_plan"',
        f"max_batch_size: {most}",
        *(line for spec in model.inputs for line in _tensor("input", spec, batched)),
        *(line for spec in model.outputs for line in _tensor("output", spec, batched, labels=_has_labels(model))),
        "instance_group { count: 1 kind: KIND_GPU }",
    ]
    if most > 1:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}")
    lines += ["model_warmup {", '  name: "zeros"', f"  batch_size: {max(most, 1)}"]
    for spec in model.inputs:
        dims = _dims(best[spec.name], batched)
        value = f"data_type: {_TYPES[spec.dtype]} {dims} zero_data: true"
        lines.append(f"  inputs {{ key: {_text(spec.name)} value {{ {value} }} }}")
    lines.append("}")
    if model.info is not None:  # a client reads from the server's configuration how to prepare images
        value = _text(model.info.to_json())
        lines.append(f"parameters {{ key: {_text(METADATA_KEY)} value {{ string_value: {value} }} }}")
    return "\n".join(lines) + "\n"


def _has_labels(model: OpenModel) -> bool:
    """Whether Triton's classification extension can name what the first output says."""
    info = model.info
    return info is not None and info.task == "classification" and bool(info.classes) and len(model.outputs) == 1


def _tensor(kind: str, spec: TensorSpec, batched: bool, *, labels: bool = False) -> Iterator[str]:
    yield f"{kind} {{"
    yield f"  name: {_text(spec.name)}"
    yield f"  data_type: {_TYPES[spec.dtype]}"
    yield f"  {_dims(spec.shape or (), batched)}"
    if not (spec.shape or ())[batched:]:  # Triton knows no tensor without sizes
        yield "  reshape { }"
    if labels:
        yield '  label_filename: "labels.txt"'
    yield "}"


def _dims(shape: _Shape, batched: bool) -> str:
    """Write sizes without the batch; -1 where one is open."""
    return f"dims: [ {', '.join(str(-1 if size is None else size) for size in shape[batched:]) or '1'} ]"


def _text(text: str) -> str:
    """Quote a string as protobuf's text form has it."""
    plain = (chr(each) if 32 <= each < 127 and each not in b'"\\' else f"\\{each:03o}" for each in text.encode())
    return f'"{"".join(plain)}"'
