"""Which tensors does an engine take and make? Their types in each TensorRT, and the range of every open size."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine.runner import fits, sizes_text
from msn_deploy.machine.jetpacks import numbers_of

# What trt.DataType calls each type, by numpy's name. Parsers take float64 too, but make float32 of it.
TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_SYNTAX = re.compile(r"\d+(x\d+)*(:\d+(x\d+)*){0,2}")
Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""The smallest shape of an input, the one that kernels are chosen for, and the largest."""


@dataclass(frozen=True, slots=True)
class InputShapes:
    """The shapes of an input with open sizes, as `--shapes` gives them. Raises InputError if they are out of order."""

    name: str
    least: Shape
    best: Shape
    most: Shape

    def __post_init__(self) -> None:
        if len({len(shape) for shape in self.range}) > 1 or min(self.best) < 1:
            raise InputError(f"`--shapes {self}` needs three shapes of as many sizes each, above 0.")
        if any(not low <= best <= high for low, best, high in zip(*self.range, strict=True)):
            raise InputError(f"`--shapes {self}` is out of order.\nGive NAME=SMALLEST:USUAL:LARGEST.")

    @property
    def range(self) -> Range:
        """All three."""
        return self.least, self.best, self.most

    def __str__(self) -> str:
        """Write what the user types: NAME=MIN:OPT:MAX."""
        return f"{self.name}={':'.join(sizes_text(shape) for shape in dict.fromkeys(self.range))}"


def parse_shapes(text: str) -> InputShapes:
    """Read NAME=MIN:OPT:MAX, such as "x=1x3x32x64:1x3x32x320:1x3x32x1280"; NAME=SHAPE stands for all three."""
    name, equals, sizes = text.rpartition("=")
    if not (name and equals and _SYNTAX.fullmatch(sizes)) or sizes.count(":") == 1:
        raise InputError(
            f"`--shapes {text}` is not NAME=SHAPE or NAME=MIN:OPT:MAX.\n"
            "Give the input's name and its sizes: `--shapes image=1x3x320x320:1x3x640x640:4x3x640x640`."
        )
    shapes = [tuple(map(int, each.split("x"))) for each in sizes.split(":")]
    least, best, most = shapes if len(shapes) == 3 else shapes * 3
    return InputShapes(name, least, best, most)


def shape_ranges(
    inputs: Sequence[TensorSpec],
    given: Sequence[InputShapes],
    batches: tuple[int, int, int],
    *,
    source: str,
    batch_asked: bool = False,
    one_size: bool = False,
) -> dict[str, Range]:
    """Return the range of every input that has open sizes, by its name.

    Args:
        inputs: All that the network takes.
        given: What `--shapes` says; it decides alone about its inputs.
        batches: The least, the best and the largest batch: of the first axis of all other inputs that leave it open.
        source: The file.
        batch_asked: The user has chosen the batches; an input with a fixed batch then has to have that one.
        one_size: Every size is fixed (DLA).

    Raises:
        InputError: A size other than the batch is open and not given, or something is given that does not fit.
    """
    _check_given(inputs, given, source=source, one_size=one_size)
    named = {each.name: each for each in given}
    ranges: dict[str, Range] = {}
    for spec in inputs:
        if spec.name in named:
            ranges[spec.name] = named[spec.name].range
            continue
        if spec.shape is None:
            raise InputError(f"{source} does not say the rank of its input {spec.name}.\nExport it with a shape.")
        fixed = [size for size in spec.shape[1:] if size is not None]
        if len(fixed) < len(spec.shape) - 1:
            raise InputError(
                f"{source} leaves more than the batch open: input {spec.name} is {sizes_text(spec.shape)}.\n"
                f"Give the sizes to build for: `--shapes {_example(spec)}` (smallest, usual, largest),\n"
                "or fix them with `msn-deploy export`."
            )
        if spec.shape and spec.shape[0] is None:
            least, best, most = ((batch, *fixed) for batch in batches)
            ranges[spec.name] = (least, best, most)
    if batch_asked and not any(spec.name in ranges and spec.name not in named for spec in inputs):
        _check_fixed_batch(inputs, named, batches, source=source)
    return ranges


def sized_inputs(
    inputs: Sequence[TensorSpec], given: Sequence[InputShapes], *, batch: int, source: str
) -> list[TensorSpec]:
    """Return the inputs with every open size fixed: by what is given for them, the first else by `batch`.

    Raises InputError for a range, and as `shape_ranges` does.
    """
    named = {spec.name for spec in inputs}
    ours = [each for each in given if each.name in named]
    several = next((each for each in ours if each.least != each.most), None)
    if several is not None:
        raise InputError(f"`--shapes {several}` is a range; one query has one shape.\nGive `--shapes NAME=SHAPE`.")
    unnamed = named - {each.name for each in ours}
    left = next((spec for spec in inputs if spec.name in unnamed and None in (spec.shape or ())[1:]), None)
    if left is not None:
        raise InputError(
            f"{source} leaves more than the batch open: input {left.name} is {sizes_text(left.shape)}.\n"
            f"Give the sizes of a query: `--shapes {_example(left, [(batch, 64)])}`."
        )
    ranges = shape_ranges(inputs, ours, (batch,) * 3, source=source)
    return [replace(spec, shape=ranges[spec.name][1]) if spec.name in ranges else spec for spec in inputs]


def _check_given(inputs: Sequence[TensorSpec], given: Sequence[InputShapes], *, source: str, one_size: bool) -> None:
    known = {spec.name: spec for spec in inputs}
    for each in given:
        if each.name not in known:
            raise InputError(f"{source} has no input {each.name}{did_you_mean(each.name, list(known))}")
        if sum(other.name == each.name for other in given) > 1:
            raise InputError(f"`--shapes` is given twice for the input {each.name}.\nLeave one out.")
        shape = known[each.name].shape
        if shape is not None and None not in shape:
            raise InputError(
                f"the input {each.name} of {source} has the fixed shape {sizes_text(shape)}.\n"
                f"Leave `--shapes {each}` out, or export the file with open sizes."
            )
        if shape is not None and not all(fits(wanted, shape) for wanted in each.range):
            raise InputError(f"`--shapes {each}` does not fit: the input {each.name} is {sizes_text(shape)}.")
        if one_size and each.least != each.most:
            raise InputError(
                f"on DLA every size is fixed.\nGive one shape: `--shapes {each.name}={sizes_text(each.most)}`."
            )


def _check_fixed_batch(
    inputs: Sequence[TensorSpec], named: Mapping[str, InputShapes], batches: tuple[int, int, int], *, source: str
) -> None:
    """Raise InputError unless the batch that was asked for is the one that the file has anyway."""
    fixed = {spec.shape[0] for spec in inputs if spec.shape and spec.name not in named}
    if fixed != set(batches):
        has = f"a fixed batch of {' and '.join(map(str, fixed))}" if fixed else "its batch given by `--shapes`"
        raise InputError(
            f"{source} has {has}; {batches[2]} was asked for.\n"
            f"Leave `--batch-size`, `--min-batch` and `--opt-batch` out, or export it with `--batch-size dynamic`."
        )


def _example(spec: TensorSpec, made_up: Sequence[tuple[int, int]] = ((1, 32), (1, 64), (4, 128))) -> str:
    """Write a `--shapes` that fits the input. made_up: batch and other sizes of each shape, where they are open."""
    shapes = (
        [size or (batch if at == 0 else open_size) for at, size in enumerate(spec.shape or ())]
        for batch, open_size in made_up
    )
    return f"{spec.name}={':'.join(sizes_text(shape) for shape in shapes)}"


def trtexec_shapes(ranges: Mapping[str, Range]) -> list[str]:
    """Return trtexec's options for the ranges; [] where every size is fixed."""
    if not ranges:
        return []
    # A name with a colon or a comma goes in quotes of trtexec's own.
    names = {name: f"'{name}'" if re.search("[:,]", name) else name for name in ranges}
    return [
        f"--{bound}Shapes={','.join(f'{names[name]}:{sizes_text(shapes[at])}' for name, shapes in ranges.items())}"
        for at, bound in enumerate(("min", "opt", "max"))
    ]


def types_in(version: str) -> list[str]:
    """Return the types of a release of TensorRT, by their names there. Source: its release notes."""
    since = {"UINT8": (8, 5), "BF16": (9,), "INT64": (10,)}
    return [name for name in TYPES.values() if numbers_of(version) >= since.get(name, ())]


def check_types(specs: Sequence[TensorSpec], known: Collection[str], *, source: str, title: str) -> None:
    """Raise InputError for an input or output of a type that is not among the `known` ones of a TensorRT.

    A TensorRT without INT64 (8.x) reads and writes int64 tensors as int32.
    """
    for spec in specs:
        if spec.dtype == "int64" or TYPES.get(spec.dtype) in known:
            continue
        have = [name for name, theirs in TYPES.items() if theirs in known]
        raise InputError(
            f"{title} has no inputs and outputs of {spec.dtype}, the type of {spec.name} in {source}.\n"
            f"Cast it inside the network; these are taken: {', '.join(have)}."
        )


def spec_of(tensor: Any) -> TensorSpec:
    """Describe an ITensor of a network."""
    try:
        shape = tuple(None if size == -1 else int(size) for size in tensor.shape)
    except ValueError:  # of unknown rank: its length is -1
        shape = None
    name = tensor.dtype.name
    return TensorSpec(tensor.name, next((ours for ours, theirs in TYPES.items() if theirs == name), name), shape)
