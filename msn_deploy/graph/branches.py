"""Parallel linear branches as one convolution, exactly: RepVGG's conv3x3(x) + conv1x1(x) + norm(x), and its relatives.

A sum of convolutions of one tensor with one stride is one convolution, whose kernel is the sum of theirs, each moved to
where it reads. A scaled x + shift is one of one pixel. Differences and per-channel factors on the way are linear, too
(FastViT's x + gamma * (mixer(x) - norm(x))). Zero padding is zeros for all branches, so nothing changes at the border.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import Vector, affine_of, channels_of, constant, present, shape_of
from msn_deploy.graph.edits import set_constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Branches that are one convolution now."""

    made: str
    """Name of the tensor that is their sum."""
    gone: tuple[str, ...]
    """Names of the tensors between the branches and the sum."""
    maps: tuple[ir.Node, ...]
    """Norms and other per-channel maps that went into the convolution, no longer in the graph."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Branch:
    """One term of a sum, scale * conv(x), with its attributes spelled out per axis."""

    conv: ir.Node | None
    """None for x itself."""
    scale: Vector
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    """Zeros before the first pixel."""
    more: tuple[int, ...]
    """By how much smaller or larger its output is than its input, with a stride of one."""
    groups: int = 1


@dataclass(slots=True)
class _Sum:
    """A linear combination, as its operators spell it."""

    terms: list[tuple[ir.Value, Vector | float]] = field(default_factory=list)
    shift: Vector | float = 0.0
    nodes: list[ir.Node] = field(default_factory=list)
    """From the last to the first."""


def merge_branches(graph: ir.Graph) -> list[Merged]:
    """Merge what can be merged, in place; the largest sums first."""
    found = []
    for node in reversed(list(graph)):
        if node.op_type in ("Add", "Sub") and not node.domain and node.graph is graph and affine_of(node) is None:
            merged = _merge(graph, node)
            found += [] if merged is None else [merged]
    return found


def _merge(graph: ir.Graph, root: ir.Node) -> Merged | None:
    total = _Sum()
    _take_apart(root.outputs[0], 1.0, total, is_root=True)
    convs = [conv for conv in (_conv_of(value) for value, _ in total.terms) if conv is not None]
    if not convs or len(total.terms) < 2:
        return None
    base = max(convs, key=lambda conv: present(constant(conv.inputs[1])).size)
    channels = present(constant(base.inputs[1])).shape[0]
    x = present(base.inputs[0])
    branches = [_branch(value, np.broadcast_to(scale, (channels,)), x, base) for value, scale in total.terms]
    if None in branches or not _fit([branch for branch in branches if branch], shape_of(x)[2:]):
        return None
    _write(base, [branch for branch in branches if branch], np.broadcast_to(total.shift, (channels,)))
    made, name = root.outputs[0], str(root.outputs[0].name)
    gone = [*total.nodes, *(conv for conv in convs if conv is not base)]
    names = [str(node.outputs[0].name) for node in [*gone[1:], base]]
    made.name, base.outputs[0].name = None, name
    base.outputs[0].shape, base.outputs[0].type = made.shape, made.type
    made.replace_all_uses_with(base.outputs[0], replace_graph_outputs=True)
    maps = tuple(node for node in total.nodes if affine_of(node) is not None)
    for node in gone:
        graph.remove(node, safe=True)
    return Merged(made=name, gone=tuple(names), maps=maps)


def _take_apart(value: ir.Value, scale: Vector | float, total: _Sum, *, is_root: bool = False) -> None:
    """Add the terms of scale * value to a sum."""
    node = value.producer()
    alone = is_root or (len(value.uses()) == 1 and not value.is_graph_output())
    if node is None or node.domain or not alone:
        total.terms.append((value, scale))
        return
    own = affine_of(node)
    if own is not None:
        total.nodes.append(node)
        total.shift = total.shift + scale * own.of.shift
        _take_apart(own.value, scale * own.of.scale, total)
    elif node.op_type in ("Add", "Sub"):
        total.nodes.append(node)
        _take_apart(present(node.inputs[0]), scale, total)
        _take_apart(present(node.inputs[1]), scale if node.op_type == "Add" else -1 * scale, total)
    else:
        total.terms.append((value, scale))


def _conv_of(value: ir.Value) -> ir.Node | None:
    """Return the convolution by constants that makes a tensor for one reader alone."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Conv" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return None if any(constant(each) is None for each in node.inputs[1:] if each is not None) else node


def _branch(value: ir.Value, scale: Vector, x: ir.Value, base: ir.Node) -> _Branch | None:
    """Return a term as a branch that reads x and makes what the base does; None if it is not."""
    weight = present(constant(base.inputs[1]))
    axes, groups = weight.ndim - 2, base.attributes.get_int("group", 1)
    one, zero = (1,) * axes, (0,) * axes
    if value is x:
        same = channels_of(x) == len(scale) == weight.shape[1] * groups
        if not same:
            return None
        return _Branch(
            conv=None, scale=scale, kernel=one, strides=one, dilations=one, before=zero, more=zero, groups=groups
        )
    conv = _conv_of(value)
    if conv is None or conv.inputs[0] is not x:
        return None
    other, given = present(constant(conv.inputs[1])), conv.attributes
    if other.shape[:2] != weight.shape[:2] or other.ndim != weight.ndim:
        return None
    kernel = other.shape[2:]
    strides, dilations = (tuple(given.get_ints(name, one)) for name in ("strides", "dilations"))
    pads = _pads(conv, kernel, strides, dilations, shape_of(x)[2:])
    if pads is None:
        return None
    more = [sum(pads[at::axes]) - dilations[at] * (kernel[at] - 1) for at in range(axes)]
    return _Branch(
        conv=conv,
        scale=scale,
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        before=tuple(pads[:axes]),
        more=tuple(more),
        groups=given.get_int("group", 1),
    )


def _pads(
    conv: ir.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int | None],
) -> list[int] | None:
    """Return what a convolution adds before and behind each axis, None if that depends on a size not known."""
    auto = conv.attributes.get_string("auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        return list(
            conv.attributes.get_ints("pads", (0,) * 2 * len(kernel)) if auto == "NOTSET" else (0,) * 2 * len(kernel)
        )
    missing = []
    for at, (width, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        span, size = dilation * (width - 1) + 1, sizes[at] if at < len(sizes) else None
        if span == 1 or stride == 1:
            missing.append(span - 1)
        elif size is None:
            return None
        else:
            missing.append(max(0, (-(-size // stride) - 1) * stride + span - size))
    less = [each // 2 for each in missing]
    more = [each - half for each, half in zip(missing, less, strict=True)]
    return less + more if auto == "SAME_UPPER" else more + less


def _fit(branches: Sequence[_Branch], sizes: Sequence[int | None]) -> bool:
    """Whether branches are one convolution, and one that costs no more than they do together."""
    first = branches[0]
    if any(each.strides != first.strides or each.groups != first.groups for each in branches):
        return False
    for at in range(len(first.kernel)):
        dilation = _dilation(branches, at)
        if dilation is None or any((_most_before(branches, at) - each.before[at]) % dilation for each in branches):
            return False
        size = sizes[at] if at < len(sizes) else None
        stride, more = first.strides[at], {each.more[at] for each in branches}
        if len(more) > 1 and (size is None or len({(size + each - 1) // stride for each in more}) > 1):
            return False
    parts = sum(math.prod(each.kernel) for each in branches)
    return math.prod(_kernel(branches, at) for at in range(len(first.kernel))) <= parts


def _dilation(branches: Sequence[_Branch], at: int) -> int | None:
    """Return the one dilation of all kernels that are longer than a pixel, None if there are two."""
    found = {each.dilations[at] for each in branches if each.kernel[at] > 1}
    return None if len(found) > 1 else max(found, default=1)


def _most_before(branches: Sequence[_Branch], at: int) -> int:
    return max(each.before[at] for each in branches)


def _starts(branches: Sequence[_Branch], at: int) -> Iterator[int]:
    """Yield where in the common kernel each branch's own begins."""
    dilation = present(_dilation(branches, at))
    for each in branches:
        yield (_most_before(branches, at) - each.before[at]) // dilation


def _kernel(branches: Sequence[_Branch], at: int) -> int:
    return max(start + each.kernel[at] for start, each in zip(_starts(branches, at), branches, strict=True))


def _write(base: ir.Node, branches: Sequence[_Branch], shift: Vector) -> None:
    """Make a convolution the sum of branches and a shift."""
    old = present(constant(base.inputs[1]))
    axes = range(old.ndim - 2)
    kernel = tuple(_kernel(branches, at) for at in axes)
    weight = np.zeros((*old.shape[:2], *kernel), dtype=old.dtype)
    bias = np.array(shift, dtype=old.dtype)
    starts = zip(*(tuple(_starts(branches, at)) for at in axes), strict=True)
    for branch, start in zip(branches, starts, strict=True):
        inner = tuple(slice(begin, begin + width) for begin, width in zip(start, branch.kernel, strict=True))
        if branch.conv is None:
            outputs = np.arange(len(bias))
            weight[(outputs, outputs % old.shape[1], *start)] += branch.scale
            continue
        own = present(constant(branch.conv.inputs[1]))
        weight[(slice(None), slice(None), *inner)] += own * branch.scale.reshape(-1, *[1] * (own.ndim - 1))
        given = constant(branch.conv.inputs[2]) if len(branch.conv.inputs) > 2 else None
        bias += 0 if given is None else branch.scale * given
    dilations = [present(_dilation(branches, at)) for at in axes]
    before = [_most_before(branches, at) for at in axes]
    most = [max(each.more[at] for each in branches) for at in axes]
    behind = [most[at] - before[at] + dilations[at] * (kernel[at] - 1) for at in axes]
    base.attributes.pop("auto_pad", None)
    for name, numbers in (("pads", before + behind), ("dilations", dilations), ("kernel_shape", list(kernel))):
        base.attributes[name] = ir.AttrInt64s(name, numbers)
    set_constant(base, 1, weight)
    set_constant(base, 2, bias)
