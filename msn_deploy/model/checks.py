"""Is a parsed ONNX model whole, of a supported version, and free of numbers that no network works with?

What is refused here would else end in a crash, a hang, all memory used up, or logits that are not numbers; or in the
message of a library that names none of its cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.model.sizes import check_sizes
from msn_deploy.model.tensors import (
    MOST_BYTES,
    all_tensors,
    bytes_of,
    flaw_of,
    graphs_of,
    shape_text,
    size_text,
    sparse_of,
    values_of,
)

OLDEST_OPSET = 9  # of TensorRT's parser
_MOST_NODES = 100_000  # after functions are put in; a function may call others twice, and they others
_ENDLESS = ("Loop", "Scan", "SequenceMap")
_AGAIN = "The file is damaged, or its exporter is at fault. Copy it again, or export the network again."
# Operators whose constants are weights; elsewhere (Clip, Pad, Where, ...) infinity may be meant.
_WEIGHED = {
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu", "Mul", "Div", "Add", "Sub"),
    *(f"{kind}Normalization" for kind in ("Batch", "Instance", "Layer", "Group")),
}


def check_model(onnx: Any, model: Any, *, source: str) -> None:
    """Look a model through; its bytes are not loaded by anything before. Raises InputError of one to three lines."""
    check_opset(onnx, model, source=source)
    _check_functions(model, source=source)
    graphs = [model.graph, *_inner_graphs(model.graph)]
    for node in (node for holder in (model.graph, *model.functions) for node in _all_nodes(holder)):
        if node.domain in ("", "ai.onnx") and node.op_type in _ENDLESS:
            raise InputError(
                f"{source}: {_called(node)} runs a graph inside the graph, as often as its input says.\n"
                "Networks without loops are supported. Export the network with the loop unrolled."
            )
    _check_tensors(onnx, model, source=source)
    for graph in graphs:
        _check_names(graph, source=source)
        _check_circles(graph, source=source)
    for graph in graphs:
        _check_numbers(onnx, graph, source=source)
    check_sizes(onnx, model, source=source)


def check_opset(onnx: Any, model: Any, *, source: str) -> None:
    """Refuse a model that does not say for which version of ONNX it is, or says one that is not supported."""
    newest = onnx.defs.onnx_opset_version()
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    supported = f"Opsets {OLDEST_OPSET} to {newest} are supported."
    if not found:
        raise InputError(
            f"{source} does not say which opset (version of the ONNX operators) its nodes are of.\n"
            f"{supported} Export the network again with one of them."
        )
    if max(found) > newest:
        raise InputError(
            f"{source} is of opset {max(found)}, newer than onnx {onnx.__version__} knows.\n"
            f"{supported} Update onnx and onnxruntime, or export the network with opset 17."
        )
    if min(found) < OLDEST_OPSET:
        raise InputError(
            f"{source} is of opset {min(found)}, which is too old. {supported}\n"
            f"""Convert it: python -c "import onnx, onnx.version_converter as c; """
            f"""onnx.save(c.convert_version(onnx.load('{source}'), 17), 'new.onnx')\""""
        )


def _inner_graphs(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                yield inner
                yield from _inner_graphs(inner)


def _check_functions(model: Any, *, source: str) -> None:
    """Refuse functions that call themselves, or that are very many nodes once they are put in."""
    bodies = {(each.domain, each.name): each for each in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    left = dict(bodies)
    while left:  # each round sizes the functions whose calls are all sized
        ready = [key for key, body in left.items() if all((n.domain, n.op_type) not in left for n in _all_nodes(body))]
        if not ready:
            raise InputError(f"{source}: its function {min(left)[1]!r} calls itself.\n{_AGAIN}")
        for key in ready:
            sizes[key] = sum(sizes.get((node.domain, node.op_type), 1) for node in _all_nodes(left.pop(key)))
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _all_nodes(model.graph))
    if total > _MOST_NODES:
        raise InputError(
            f"{source} has {total} nodes once its functions are put in; {_MOST_NODES} are the most.\n{_AGAIN}"
        )


def _all_nodes(holder: Any) -> Iterator[Any]:
    """The nodes of a graph or function and of the graphs inside it."""
    for node in holder.node:
        yield node
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                yield from _all_nodes(inner)


def _check_tensors(onnx: Any, model: Any, *, source: str) -> None:
    for tensor in all_tensors(model):
        flaw = flaw_of(onnx, tensor)
        if flaw is not None:
            raise InputError(f"{source}: the tensor {tensor.name!r} {flaw}.\n{_AGAIN}")
    attributes = (attribute for node in _all_nodes(model.graph) for attribute in node.attribute)
    sparse = [*model.graph.sparse_initializer, *(each for attribute in attributes for each in sparse_of(attribute))]
    for each in sparse:
        dims = list(each.dims)
        if any(size < 0 for size in dims) or bytes_of(onnx, each.values.data_type, dims) > MOST_BYTES:
            raise InputError(
                f"{source}: the sparse tensor {each.values.name!r} is {shape_text(dims)} when it is filled up; "
                f"{size_text(MOST_BYTES)} are the most.\n{_AGAIN}"
            )


def _check_names(graph: Any, *, source: str) -> None:
    """Every tensor has one origin: an input, an initializer (which may be listed as an input too), or a node."""
    stored = [each.name for each in graph.initializer] + [each.values.name for each in graph.sparse_initializer]
    given = [value.name for value in graph.input]
    made = [name for node in graph.node for name in node.output if name]
    for names, what in ((stored, "initializers"), (given, "inputs"), (made, "outputs of nodes")):
        name, count = next(iter(Counter(names).most_common(1)), ("", 0))
        if count > 1:
            raise InputError(f"{source}: {count} {what} are called {name!r}; each tensor has one origin.\n{_AGAIN}")
    for others, what in ((stored, "an initializer"), (given, "an input")):
        both = sorted(set(made) & set(others))
        if both:
            raise InputError(f"{source}: {both[0]!r} is {what} and the output of a node, too.\n{_AGAIN}")


def _check_circles(graph: Any, *, source: str) -> None:
    """No node waits for itself; in which order they stand does not matter to ONNX Runtime."""
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[int, list[int]] = {}
    waits = []
    for at, node in enumerate(graph.node):
        reads = set(node.input)
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                reads |= _reads_outside(inner)
        others = {maker[name] for name in reads if name in maker}
        waits.append(len(others))
        for other in others:
            readers.setdefault(other, []).append(at)
    free = [at for at, count in enumerate(waits) if not count]
    while free:
        for reader in readers.get(free.pop(), ()):
            waits[reader] -= 1
            if not waits[reader]:
                free.append(reader)
    stuck = [node for node, count in zip(graph.node, waits, strict=True) if count]
    if stuck:
        raise InputError(
            f"{source}: {len(stuck)} nodes, such as {_called(stuck[0])}, wait in a circle for each other's output.\n"
            f"{_AGAIN}"
        )


def _reads_outside(graph: Any) -> set[str]:
    """What the nodes of a graph read that the graph itself does not make."""
    reads: set[str] = set()
    own = {each.name for values in (graph.initializer, graph.input) for each in values}
    for node in graph.node:
        reads.update(node.input)
        own.update(node.output)
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                reads |= _reads_outside(inner)
    return reads - own


def _check_numbers(onnx: Any, graph: Any, *, source: str) -> None:
    import numpy as np

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
    weights = {name for node in graph.node if node.op_type in _WEIGHED for name in node.input}
    for name, tensor in constants.items():
        values = values_of(onnx, tensor)
        if values is None or np.isfinite(values).all():
            continue
        nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nans or name in weights:
            raise InputError(
                f"{source}: the weights {name!r} hold {nans} NaN and {infinite} infinite of {values.size} values.\n"
                "The training diverged, or a conversion to half precision overflowed. Export an earlier checkpoint."
            )
    for node in graph.node:
        if node.op_type == "BatchNormalization" and len(node.input) > 4 and node.input[4] in constants:
            epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
            variance = values_of(onnx, constants[node.input[4]])
            bad = 0 if variance is None else int(np.sum(~(variance.astype(np.float64) + epsilon > 0)))
            if bad:
                raise InputError(
                    f"{source}: the variance {node.input[4]!r} of {_called(node)} is zero or negative (with epsilon "
                    f"{epsilon:.3g}) in {bad} of {variance.size} channels.\n"
                    "The file is damaged, or was never trained. Export the network again."
                )
        elif node.op_type == "Div" and len(node.input) > 1 and node.input[1] in constants:
            divisor = values_of(onnx, constants[node.input[1]])
            zeros = 0 if divisor is None else int((divisor == 0).sum())
            if zeros:
                raise InputError(
                    f"{source}: {_called(node)} divides by {node.input[1]!r}, which is zero in {zeros} of "
                    f"{divisor.size} places.\nThe file is damaged, or a norm was exported before it was trained."
                )


def _called(node: Any) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (makes {next(iter(node.output), '')!r})"
