"""Sizes that an ONNX file leaves open: fixed by the user and followed through the graph, or kept and tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
from onnx import ModelProto, ValueInfoProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import InputOption, TensorSpec
from msn_deploy.model.feeds import BATCH, ExampleInput, Feeds
from msn_deploy.model.opened import OpenModel, made_model


def with_sizes(
    model: OpenModel, wanted: Sequence[InputOption], *, batch: int | None = None, open_batch: bool = False
) -> OpenModel:
    """Return the model with open sizes fixed, here and wherever the graph names them; its outputs are inferred again.

    Args:
        model: Its inputs may write an open size as a name, as nothing, as 0 or as -1.
        wanted: For each input that is spoken of, its sizes; None in them leaves a size open.
        batch: Fixes the first size of the first input, and of all that share it.
        open_batch: Whether that size has to be open.

    Raises:
        InputError: A size that the file fixes at another number, or an input, rank or type that it has not.
    """
    inputs = {spec.name: spec for spec in model.inputs}
    asked = {option.name: option for option in wanted}
    for option in wanted:
        _check(option, inputs, source=str(model.path))
    first = next(iter(model.inputs))
    own = first.shape[0] if first.shape else None
    if first.shape and (open_batch or batch is not None) and own not in (None, batch):
        said = "`--batch-size dynamic`" if open_batch else f"`--batch-size {batch}`"
        raise InputError(f"{model.path} has a fixed batch of {own}; {said} asks for another.\nLeave it out.")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    named = _named(proto, inputs)
    numbers: dict[str, int] = {}
    for value in named:
        sizes = asked[value.name].sizes if value.name in asked else ()
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            size = sizes[at][0] if at < len(sizes) and sizes[at][1] is None else None
            if at == 0 and value.name == first.name and batch is not None:
                size = batch
            if size is not None and dim.dim_param:
                numbers[dim.dim_param] = _agreed(numbers, dim.dim_param, size, source=str(model.path))
    for dim in (dim for value in named for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param in numbers:
            dim.dim_value = numbers[dim.dim_param]
    if proto == model.proto:
        return model
    return replace(
        made_model(model.path, (fresh := _inferred(proto)), fresh.SerializeToString()),
        sha256=model.sha256,
        weight_files=model.weight_files,
    )


def example_inputs(
    model: OpenModel, wanted: Sequence[InputOption] = (), *, data: Feeds | None = None
) -> tuple[ExampleInput, ...]:
    """Return the inputs with numbers to try their open sizes with: those of `wanted`, else of `data`; 1 for a batch.

    Raises InputError for an open size that no number is given for.
    """
    asked = {option.name: option for option in wanted}
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    found: list[ExampleInput] = []
    batch = None
    for value in (each for each in model.proto.graph.input if each.name not in weights):
        spec = next(each for each in model.inputs if each.name == value.name)
        if spec.shape is None:
            raise InputError(f"{model.path} does not say the shape of its input {spec.name!r}.\nExport it with one.")
        params = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        names = [None if size is not None else param for size, param in zip(spec.shape, params, strict=True)]
        batch = names[0] if not found and names else batch
        sizes = [size for size, _ in asked[spec.name].sizes] if spec.name in asked else [None] * len(names)
        shape = []
        for at, (own, name) in enumerate(zip(spec.shape, names, strict=True)):
            size = own if own is not None else sizes[at] or (1 if name == batch and at == 0 else None)
            if size is None and data is not None and data[spec.name].ndim == len(names):
                size = data[spec.name].shape[at]
            if size is None:
                raise InputError(_open_text(spec, names, source=str(model.path)))
            shape.append(size)
        names = [BATCH if name is not None and name == batch else name for name in names]
        found.append(ExampleInput(name=spec.name, dtype=spec.dtype, shape=tuple(shape), open=tuple(names)))
    return tuple(found)


def _open_text(spec: TensorSpec, names: Sequence[str | None], *, source: str) -> str:
    sizes = list(spec.shape or ())
    fixed = ",".join(str(size or (1 if at == 0 else 320)) for at, size in enumerate(sizes))
    kept = ",".join(
        str(size) if size is not None else str(name) if at == 0 else f"{name}=320"
        for at, (size, name) in enumerate(zip(sizes, names, strict=True))
    )
    return (
        f"{source} leaves sizes of its input {spec.name} open: {', '.join(name for name in names if name)}.\n"
        f"Fix them, `--input {spec.name}={fixed}`, or keep them and say what to try: `--input {spec.name}={kept}`."
    )


def _check(option: InputOption, inputs: dict[str, TensorSpec], *, source: str) -> None:
    spec = inputs.get(option.name)
    if spec is None:
        raise InputError(f"{source} has no input {option.name!r}; it has {', '.join(inputs)}.")
    if option.dtype not in ("", spec.dtype):
        raise InputError(f"the input {spec.name} of {source} is {spec.dtype}, not {option.dtype}.")
    if spec.shape is None:
        return
    fits = len(option.sizes) == len(spec.shape) and all(
        own is None or (size == own and name is None)
        for own, (size, name) in zip(spec.shape, option.sizes, strict=False)
    )
    if not fits:
        own = ",".join("any" if size is None else str(size) for size in spec.shape)
        asked = ",".join(str(name or size) for size, name in option.sizes)
        raise InputError(f"the input {spec.name} of {source} is {own}; {asked} does not fit it.")


def _named(proto: ModelProto, inputs: dict[str, TensorSpec]) -> list[ValueInfoProto]:
    """Give every open size of an input a name, in place, and return the inputs."""
    found = [value for value in proto.graph.input if value.name in inputs]
    for value in found:
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and dim.dim_param in ("", "?"):  # which some write for sizes that are not equal
                dim.dim_param = BATCH if at == 0 else f"{value.name}_{at}"
    return found


def _agreed(numbers: dict[str, int], name: str, size: int, *, source: str) -> int:
    if numbers.get(name, size) != size:
        raise InputError(f"{source} says that sizes called {name} are equal; {numbers[name]} and {size} are asked for.")
    return size


def _inferred(proto: ModelProto) -> ModelProto:
    """Return the model with no sizes but those that follow from its inputs."""
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)
